"""``mitmgate report`` says the same in a table and in JSON, fits its terminal, and knows what to say about nothing."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from mitmgate.cli.report import report
from mitmgate.clock import SystemClock, iso
from support.sample_traces import call, database, rows_of

CALLS = [
    *(call(n, duration_ms=n * 100.0, time_to_first_token_ms=n * 10.0) for n in range(1, 11)),
    *(
        call(n, provider_name="anthropic", request_model="claude", route="agent", cost_nanousd=5_000_000)
        for n in (11, 12)
    ),
    call(13, provider_name="anthropic", request_model="claude", route="agent", cost_nanousd=None, status_code=200),
    call(14, provider_name="anthropic", request_model="claude", route="agent", cost_nanousd=None, status_code=529),
]
ALL = ["--since", "all"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return database(tmp_path_factory.mktemp("traces") / "traces.db", rows_of(*CALLS))


def run(path: Path, *args: str, columns: int = 200) -> Result:
    home = str(path.parent / "home")
    return CliRunner().invoke(report, ["--home", home, "--db", str(path), *args], env={"COLUMNS": str(columns)})


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.output.splitlines()]


def test_json_has_the_window_and_a_row_per_group(path: Path) -> None:
    found = json.loads(run(path, *ALL, "--until", "2026-11-24T10:00Z", "--json").output)
    assert list(found) == ["since", "until", "rows", "targets"]
    assert (found["since"], found["until"]) == (None, "2026-11-24T10:00:00.000Z")
    first, second = found["rows"]
    assert list(first)[:4] == ["tenant", "provider_name", "request_model", "route"]
    numbers = {name: first[name] for name in ("calls", "errors", "input_tokens", "output_tokens", "cost_nanousd")}
    assert numbers == {"calls": 10, "errors": 0, "input_tokens": 1000, "output_tokens": 200, "cost_nanousd": 10_000_000}
    assert [first[name] for name in ("p50_ms", "p95_ms", "p99_ms")] == [500.0, 1000.0, 1000.0]
    assert [first[name] for name in ("ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms")] == [50.0, 100.0, 100.0]
    assert (second["cost_nanousd"], second["unpriced"], second["errors"]) == (10_000_000, 1, 1)


def test_json_says_until_when_it_counted(path: Path) -> None:
    before = iso(SystemClock().wall())
    found = json.loads(run(path, "--since", "2026-11-24", "--json").output)
    assert found["since"] == "2026-11-24T00:00:00.000Z"
    assert found["until"] >= before


def test_the_table_has_a_line_per_group_and_a_total(path: Path) -> None:
    shown = lines(run(path, *ALL))
    start = next(n for n, line in enumerate(shown) if line.startswith("provider"))
    table = [line.split() for line in shown[start:]]
    assert table[1][:9] == ["openai", "gpt-4o", "chat", "10", "0", "1,000", "400", "200", "0.0100"]
    assert table[2][:9] == ["anthropic", "claude", "agent", "4", "25.00", "400", "160", "80", "0.0100+"]
    assert table[3][:7] == ["total", "14", "7.14", "1,400", "560", "280", "0.0200+"]
    assert shown[-1] == "all of them: tenant acme"


def test_the_totals_say_what_a_cost_misses(path: Path) -> None:
    text = run(path, *ALL).output
    assert "14 calls · 1 error (7.14 %) · 1,400 tokens in (560 cached), 280 out · cost $0.0200, saved $0" in text
    assert "1 answered call without a known price" in text
    assert "known price" not in run(path, *ALL, "--model", "gpt-4o").output


def test_the_totals_say_what_retries_and_the_cache_did(tmp_path: Path) -> None:
    calls = [
        call(1),
        call(2, attempts=2, cache_status="MISS"),
        call(3, attempts=4, step=1, cache_status="BYPASS"),
        call(4, attempts=3, status_code=503, cache_status="MISS"),
        call(5, attempts=0, source="cache", cache_status="HIT", cost_nanousd=0, saved_nanousd=2_000_000),
    ]
    path = database(tmp_path / "t.db", rows_of(*calls))

    shown = lines(run(path, *ALL, "--by", "tenant"))

    assert "2.50 tries per sent call · 3 tried again, 2 of them with success · 1 answered elsewhere" in shown
    assert "1 of 3 looked up were in the cache · 0 of 0 streams interrupted, 0 left by the client" in shown
    (row,) = json.loads(run(path, *ALL, "--by", "tenant", "--json").output)["rows"]
    assert (row["saved_nanousd"], row["retried"], row["recovered"], row["moved"]) == (2_000_000, 3, 2, 1)
    assert row["cache_hit_share"] == pytest.approx(1 / 3)


def test_an_unknown_number_is_a_dash_and_an_unknown_cost_says_so(tmp_path: Path) -> None:
    path = database(
        tmp_path / "t.db", rows_of(call(1, cost_nanousd=None, input_tokens=None, time_to_first_token_ms=None))
    )
    text = run(path, *ALL).output
    assert "– tokens in" in text
    assert "cost unknown" in text
    assert "first token p50 –, p95 –, p99 – ms" in text


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(path: Path, columns: int) -> None:
    shown = lines(run(path, *ALL, columns=columns))
    assert max(cell_len(line) for line in shown) <= columns
    headings = " ".join(line for line in shown if line.startswith("provider")).split()
    assert [
        name for name in ("calls", "cached", "saved", "hits", "ttft", "total", "tries", "cut") if name not in headings
    ] == []
    assert "total p50 300, p95 1,000, p99 1,000 ms" in " ".join(shown)
    assert not any("…" in word and any(c.isdigit() for c in word) for line in shown for word in line.split())


def test_a_pipe_gets_no_colour(path: Path) -> None:
    assert "\x1b" not in run(path, *ALL).output


def test_a_terminal_without_block_characters_gets_ascii(path: Path) -> None:
    result = CliRunner(charset="ascii").invoke(report, ["--db", str(path), *ALL], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert not any(c in result.output for c in "▁█")
    assert "#####" in result.output


def test_groups_beyond_the_limit_are_counted(path: Path) -> None:
    shown = lines(run(path, *ALL, "--by", "minute", "--rows", "3"))
    assert shown[-1] == "and 11 more groups; --rows 0 prints all"
    assert "more groups" not in run(path, *ALL, "--by", "minute", "--rows", "0").output


def test_by_none_is_one_row_over_all(path: Path) -> None:
    (row,) = json.loads(run(path, *ALL, "--by", "none", "--json").output)["rows"]
    assert row["calls"] == 14


def test_filters_reach_the_query(path: Path) -> None:
    found = json.loads(run(path, *ALL, "--json", "--provider", "anth*", "--where", "status_code < 400").output)
    assert [row["calls"] for row in found["rows"]] == [3]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--by", "tenat"], "cannot report by 'tenat' (did you mean tenant?)"),
        (["--since", "soon"], "--since: 'soon' is no time"),
        (["--until", "soon"], "--until: 'soon' is no time"),
        (["--where", "1) OR (1"], "closes a bracket that it did not open"),
    ],
)
def test_a_wrong_option_ends_with_a_sentence_and_code_2(path: Path, args: list[str], says: str) -> None:
    result = run(path, *args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_where_there_is_no_database_it_says_what_to_do(tmp_path: Path) -> None:
    result = run(tmp_path / "none.db")
    assert result.exit_code == 1
    assert "there is no trace database" in result.stderr


@pytest.mark.parametrize(
    ("rows", "args", "says"),
    [
        ([], ALL, "No call is recorded yet."),
        ([call(1)], ["--since", "2027-01-01"], "the newest is from 2026-11-24T09:01:00.000Z"),
        ([call(1)], ["--since", "all", "--tenant", "nobody"], "matches; loosen a filter"),
    ],
)
def test_about_nothing_it_says_what_to_do(
    tmp_path: Path, rows: list[dict[str, object]], args: list[str], says: str
) -> None:
    result = run(database(tmp_path / "t.db", rows_of(*rows)), *args)  # type: ignore[arg-type]
    assert result.exit_code == 0
    assert says in result.output
    assert json.loads(run(tmp_path / "t.db", *args, "--json").output)["rows"] == []


def test_a_hostile_tenant_cannot_act(tmp_path: Path) -> None:
    name = "\x1b[2J[red]evil[/red]\u202e"
    path = database(tmp_path / "t.db", rows_of(call(1, tenant=name), call(2)))
    text = run(path, *ALL).output
    assert "␛[2J[red]evil[/red]\\u202e" in text
    assert "\x1b" not in text
    found = run(path, *ALL, "--json")
    assert "\x1b" not in found.output
    assert name in [row["tenant"] for row in json.loads(found.output)["rows"]]


def test_the_course_of_time_has_calls_errors_and_each_provider(path: Path) -> None:
    shown = lines(run(path, *ALL))
    drawn = [line for line in shown if "  max " in line]
    assert [line[:15].rstrip() for line in drawn] == ["calls", "errors", "ttft  openai", "ttft  anthropic"]
