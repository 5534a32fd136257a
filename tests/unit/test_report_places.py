"""A report says of each place what it was asked and when it rested, whoever answered in the end."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from mitmgate.cli.report import report
from mitmgate.store.places import places
from mitmgate.store.reader import open_reader
from mitmgate.store.rows import Row
from mitmgate.store.selection import EVERYTHING, Filters, Window
from support.sample_traces import at, attempt, call, database, event, insert, rows_of

ZA: dict[str, Any] = {"provider_name": "azure.ai.openai", "target": "azure-za", "host": "za.openai.azure.com"}
SE: dict[str, Any] = {"provider_name": "azure.ai.openai", "target": "azure-se", "host": "se.openai.azure.com"}
OPENAI: dict[str, Any] = {"target": "openai", "host": "api.openai.com"}

CALLS = [
    call(1, attempts=3, step=1),
    call(2, attempts=2, step=1, tenant="globex"),
    call(3, attempts=1),
    call(4, attempts=0, status_code=503, terminal="refused"),
]
TRIES = [
    attempt(1, 1, **ZA, status_code=503, error_type="overloaded", first_byte_ms=100.0, cost_nanousd=None),
    attempt(2, 1, **ZA, status_code=None, error_type="reset", first_byte_ms=None, cost_nanousd=None),
    attempt(3, 1, **SE, first_byte_ms=300.0),
    attempt(1, 2, **ZA, status_code=None, error_type="cancelled", first_byte_ms=None, cost_nanousd=None),
    attempt(2, 2, **SE, first_byte_ms=500.0),
    attempt(1, 3, **OPENAI),
]


def rest(of: int, detail: str, **columns: Any) -> Row:
    return event(of, room="breaker", rule="breaker", action="rest", detail=detail, **columns)


EVENTS = [
    rest(1, "azure-za rests for 15 s"),
    rest(2, "azure-za rests: 12.0 s left"),
    rest(4, "azure-za rests: 3.0 s left", at=at(4)),
    rest(3, "api.openai.com rests for 15 s"),
    rest(4, "gemini rests: 3.0 s left"),
    rest(3, "azure-se rests for 15 s", shadow=1),
    event(1, detail="azure-za: 503; waited 0.200 s"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = database(tmp_path / "traces.db", rows_of(*CALLS, attempts=TRIES))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "policy_events", EVENTS)
    return path


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_reader(path)) as conn:
        yield conn


def told(rows: list[Row], *names: str) -> dict[str, tuple[Any, ...]]:
    return {row["target"]: tuple(row[name] for name in names) for row in rows}


def test_attempts_count_where_they_were_made_and_cancelled_ones_speak_against_nobody(conn: sqlite3.Connection) -> None:
    rows = places(conn, Window(), EVERYTHING)

    assert told(rows, "attempts", "retries", "errors", "cancelled", "error_share", "cost_nanousd") == {
        "azure-za": (3, 1, 2, 1, 1.0, None),
        "azure-se": (2, 0, 0, 0, 0.0, 2_000_000),
        "openai": (1, 0, 0, 0, 0.0, 1_000_000),
        "gemini": (0, 0, 0, 0, None, None),
    }
    assert told(rows, "host", "first_byte_p50_ms", "first_byte_p95_ms")["azure-se"] == (SE["host"], 300.0, 500.0)


def test_a_place_rests_by_its_name_or_its_host_and_a_shadow_lets_nobody_rest(conn: sqlite3.Connection) -> None:
    rows = places(conn, Window(), EVERYTHING)

    assert told(rows, "rests", "passed_by", "last_rest_at") == {
        "azure-za": (1, 2, at(4)),
        "azure-se": (0, 0, None),
        "openai": (1, 0, at(3)),
        "gemini": (0, 1, at(4)),
    }


def test_only_the_calls_of_the_report_count(conn: sqlite3.Connection) -> None:
    assert told(places(conn, Window(), Filters(tenants=("globex",))), "attempts", "rests", "passed_by") == {
        "azure-za": (1, 0, 1),
        "azure-se": (1, 0, 0),
    }
    assert told(places(conn, Window(since=at(2.5)), Filters(where="status_code < 400")), "attempts") == {"openai": (1,)}


def run(path: Path, *args: str, columns: int = 200) -> str:
    options = ["--home", str(path.parent), "--db", str(path), "--since", "all", *args]
    result = CliRunner().invoke(report, options, env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_report_ends_with_a_line_per_place(path: Path) -> None:
    *_, heading, first, second, third, fourth = run(path).splitlines()

    assert heading.split() == [
        *("target", "host", "attempts", "retries", "errors", "%", "rests", "passed", "by"),
        *("first", "byte", "p50", "p95", "cancelled", "cost", "$"),
    ]
    assert first.split() == ["azure-za", ZA["host"], "3", "1", "100.00", "1", "2", "100", "100", "1", "–"]
    assert second.split() == ["azure-se", SE["host"], "2", "0", "0", "0", "0", "300", "500", "0", "0.00200"]
    assert [line.split()[0] for line in (third, fourth)] == ["openai", "gemini"]


def test_json_has_them_too(path: Path) -> None:
    found = json.loads(run(path, "--json"))

    assert told(found["targets"], "attempts", "rests")["azure-za"] == (3, 1)


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 130])
def test_a_narrow_terminal_loses_the_host_first_and_no_number(path: Path, columns: int) -> None:
    table = run(path, columns=columns).splitlines()[-5:]

    assert max(cell_len(line) for line in table) <= columns
    assert ("host" in table[0]) == (columns >= 130)
    assert table[1].split()[:1] == ["azure-za"]
    assert "…" not in "".join(table)


def test_places_beyond_the_most_are_counted(tmp_path: Path) -> None:
    tries = [attempt(n, 1, target=f"t{n}", host="h") for n in range(1, 26)]

    text = run(database(tmp_path / "t.db", rows_of(call(1, attempts=25), attempts=tries)))

    assert text.splitlines()[-1] == "and 5 more targets; --json has them all"


def test_a_hostile_target_cannot_act(tmp_path: Path) -> None:
    tries = [attempt(1, 1, target="\x1b[2J[red]evil[/red]")]

    text = run(database(tmp_path / "t.db", rows_of(call(1), attempts=tries)))

    assert "␛[2J[red]evil[/red]" in text
    assert "\x1b" not in text
