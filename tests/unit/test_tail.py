"""``mitmgate tail`` shows each row once, in order, whatever becomes of the file meanwhile."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from mitmgate.cli import tail as module
from mitmgate.cli.tail import FIELDS, Follower, columns, heading, line, tail
from mitmgate.errors import StartError
from mitmgate.store import queries
from mitmgate.store.selection import Filters
from support.sample_traces import call, database, id_of, insert, rows_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return database(tmp_path / "traces.db", rows_of(*(call(n) for n in range(1, 6))))


def add(path: Path, *ns: int, **values: Any) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "exchanges", [call(n, **values) for n in ns])


def run(path: Path, *args: str, columns: int = 200) -> Result:
    home = str(path.parent / "home")
    return CliRunner().invoke(tail, ["--home", home, "--db", str(path), *args], env={"COLUMNS": str(columns)})


def seen(rows: list[dict[str, object]]) -> list[object]:
    return [row["id"] for row in rows]


def test_it_begins_with_the_newest_rows_in_order(path: Path) -> None:
    shown = run(path, "--no-follow", "-n", "2").output.splitlines()
    assert shown[0].split() == " ".join(FIELDS).split()
    assert [row.split()[-1] for row in shown[1:]] == [id_of(4), id_of(5)]


def test_a_line_says_who_what_how_and_for_how_much(path: Path) -> None:
    (_, row) = run(path, "--no-follow", "-n", "1").output.splitlines()
    assert row.split() == [
        *("09:05:00.000", "acme", "openai/gpt-4o-2024-08-06", "200", "complete", "100", "→", "20", "0.00100"),
        *("50", "100", id_of(5)),
    ]


def test_json_is_one_object_a_line_with_every_column(path: Path) -> None:
    add(path, 6, metadata='{"feature": "search"}')
    first, second = (json.loads(row) for row in run(path, "--no-follow", "--json", "-n", "2").output.splitlines())
    assert (first["id"], second["id"]) == (id_of(5), id_of(6))
    assert second["metadata"] == {"feature": "search"}
    assert second["finish_reasons"] == ["stop"]
    with closing(sqlite3.connect(path)) as conn:
        assert list(first) == [column[1] for column in conn.execute("PRAGMA table_info(exchanges)")]


def test_filters_and_the_time_hold_for_the_rows_there_are(path: Path) -> None:
    add(path, 6, tenant="globex")
    assert run(path, "--no-follow", "--json", "--tenant", "globex").output.count("\n") == 1
    assert run(path, "--no-follow", "--json", "--since", "2026-11-24T09:05Z").output.count("\n") == 2


def test_an_answer_that_is_not_the_providers_says_whose_it_is(path: Path) -> None:
    add(path, 6, source="gateway", terminal="failed")
    assert "failed (gateway)" in run(path, "--no-follow", "-n", "1").output


@pytest.mark.parametrize(
    ("columns", "way"),
    [
        ({}, ""),
        ({"cache_status": "MISS"}, ""),
        ({"cache_status": "HIT", "attempts": 0}, "HIT"),
        ({"attempts": 3}, "×3"),
        ({"attempts": 3, "step": 1, "target": "azure-eu"}, "×3→azure-eu"),
        ({"attempts": 1, "step": 1, "target": "azure-eu"}, "→azure-eu"),
        ({"cache_status": "HIT", "attempts": 2}, "HIT×2"),
        ({"cache_status": "HIT", "attempts": 0, "step": 1, "target": "azure-eu"}, "HIT"),
        ({"attempts": None, "step": None}, ""),
    ],
)
def test_an_answer_that_was_not_had_at_first_try_is_marked(path: Path, columns: dict[str, Any], way: str) -> None:
    add(path, 6, **columns)
    head, row = run(path, "--no-follow", "-n", "1").output.splitlines()
    start = head.index("way ")
    assert row[start : start + FIELDS["way"].width].strip() == way


def test_a_terminal_of_120_columns_shows_the_mark_and_the_first_token() -> None:
    assert {"way", "first ms", "tokens"} <= columns(120).keys()


def test_without_following_a_missing_database_is_an_error(tmp_path: Path) -> None:
    result = run(tmp_path / "none.db", "--no-follow")
    assert result.exit_code == 1
    assert "there is no trace database" in result.stderr


# -- following --------------------------------------------------------------------------------------------------------


def naps(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Let something happen during each wait between two looks; Ctrl-C after the last."""
    left = list(steps)

    def nap(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(time, "sleep", nap)


def test_it_follows_until_ctrl_c_and_ends_well(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps(monkeypatch, lambda: add(path, 6), lambda: None, lambda: add(path, 7, 8))
    result = run(path, "--json", "-n", "1")
    assert result.exit_code == 0
    assert seen([json.loads(row) for row in result.output.splitlines()]) == [id_of(5), id_of(6), id_of(7), id_of(8)]


def test_it_waits_for_a_database_and_then_shows_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.db"
    naps(monkeypatch, lambda: None, path.touch, lambda: database(path, rows_of(call(1), call(2))))
    result = run(path, "--json", "-n", "0")
    assert result.exit_code == 0
    assert f"waiting for {path}" in result.stderr
    assert seen([json.loads(row) for row in result.stdout.splitlines()]) == [id_of(1), id_of(2)]


def test_a_condition_that_is_none_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.db"
    naps(monkeypatch, lambda: database(path, rows_of(call(1))))
    result = run(path, "--where", "tenat = 1")
    assert result.exit_code == 2
    assert "did you mean tenant?" in result.stderr


def test_each_look_brings_each_row_once(path: Path) -> None:
    follower = Follower(path, Filters())
    assert seen(follower.look()) == [id_of(n) for n in range(1, 6)]
    assert follower.look() == []
    add(path, 6, 7)
    assert seen(follower.look()) == [id_of(6), id_of(7)]


def test_rows_that_a_filter_hides_are_not_looked_at_again(path: Path) -> None:
    follower = Follower(path, Filters(tenants=("globex",)))
    assert follower.look() == []
    assert follower.seen == 5
    add(path, 6, tenant="globex")
    assert seen(follower.look()) == [id_of(6)]


def test_a_burst_larger_than_one_look_arrives_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "TAIL_ROWS", 2)
    follower = Follower(path, Filters())
    assert [seen(follower.look()) for _ in range(4)] == [[id_of(1), id_of(2)], [id_of(3), id_of(4)], [id_of(5)], []]


def test_a_new_file_in_the_place_of_the_old_is_shown_from_its_start(path: Path, tmp_path: Path) -> None:
    follower = Follower(path, Filters())
    follower.look()
    for file in tmp_path.glob("traces.db*"):
        file.unlink()
    assert follower.look() == []
    database(path, rows_of(call(9)))
    assert seen(follower.look()) == [id_of(9)]


def test_a_file_that_stays_unreadable_is_said_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    path.write_bytes(b"this is no database, and will not become one" * 100)
    follower = Follower(path, Filters())
    for _ in range(module.PATIENCE):
        assert follower.look() == []
    with pytest.raises(StartError, match="no usable database"):
        follower.look()


# -- the line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 79, 80, 100, 120, 150, 400])
def test_a_line_fits_and_keeps_what_identifies_the_call(width: int) -> None:
    row = call(1, tenant="a very long tenant name 日本語", request_model="m" * 90, response_model=None, attempts=12)
    text = line({"cache_status": None, "target": None, **row}, columns(width))
    assert cell_len(text) <= max(width, 78)
    assert cell_len(heading(columns(width))) <= max(width, 78)
    assert id_of(1)[: module.SHORT_ID] in text
    assert "complete" in text


def test_a_narrow_terminal_loses_the_first_token_first_and_the_tenant_last() -> None:
    there = [{name for name in FIELDS if name in columns(width)} for width in range(200, 60, -1)]
    gone = list(dict.fromkeys(name for wide, narrow in pairwise(there) for name in wide - narrow))
    assert gone == ["first ms", "way", "tokens", "cost $", "tenant"]


def test_hostile_names_are_inert(path: Path) -> None:
    add(path, 6, tenant="\x1b[31m\nx", response_model="[link=evil]m[/link]", provider_name="\x07")
    text = run(path, "--no-follow", "-n", "1").output
    assert "␛[31m␊x" in text
    assert "␇/[link=evil]m[/link]" in text
    assert "\x1b" not in text
    assert text.count("\n") == 2
