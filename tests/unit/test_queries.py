"""A report adds up what is known, says what is not, and never lets a condition do more than read."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mitmgate.store import queries
from mitmgate.store.bodies import pack
from mitmgate.store.queries import NotOne
from mitmgate.store.reader import open_reader
from mitmgate.store.rows import Rows
from mitmgate.store.selection import BadQuery, Filters, Window, moment
from support.sample_traces import at, attempt, call, database, id_of, insert, rows_of

# Ten calls of acme that differ in duration only, and one of each thing that a report tells apart.
TEN = [call(n, duration_ms=n * 100.0, time_to_first_token_ms=n * 10.0, gateway_ms=float(n)) for n in range(1, 11)]
GLOBEX: dict[str, Any] = {
    "tenant": "globex",
    "provider_name": "anthropic",
    "request_model": "claude-sonnet-4-5",
    "stream": 1,
}
OTHERS = [
    call(11, **GLOBEX, cost_nanousd=None),
    call(12, **GLOBEX, status_code=429, error_type="rate_limit", attempts=3, cost_nanousd=None, input_tokens=None,
         cache_read_input_tokens=None, output_tokens=None, time_to_first_token_ms=None),
    call(13, **GLOBEX, terminal="truncated", cost_nanousd=500_000),
    call(14, **GLOBEX, terminal="client_abort", cost_nanousd=250_000),
    call(15, **GLOBEX, source="cache", cache_status="HIT", attempts=0, cost_nanousd=0, saved_nanousd=750_000),
    call(16, **GLOBEX, source="budget", status_code=429, terminal="refused", error_type="insufficient_quota",
         attempts=0, cost_nanousd=0, saved_nanousd=None, time_to_first_token_ms=None),
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "traces.db"
    return database(path, rows_of(*TEN, *OTHERS, attempts=[attempt(n, 12, status_code=429) for n in (1, 2, 3)]))


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_reader(path)) as conn:
        yield conn


def ids(conn: sqlite3.Connection, filters: Filters, window: Window = Window()) -> list[int]:  # noqa: B008 - frozen
    """Return the numbers of the calls that *filters* let through."""
    return [row["rowid"] for row in queries.latest(conn, 100, window, filters)]


# -- report -----------------------------------------------------------------------------------------------------------


def test_a_report_has_a_row_per_tenant_provider_model_and_route_with_the_most_calls_first(
    conn: sqlite3.Connection,
) -> None:
    rows = queries.report(conn)
    assert [tuple(row[name] for name in queries.DEFAULT_BY) for row in rows] == [
        ("acme", "openai", "gpt-4o", "chat"),
        ("globex", "anthropic", "claude-sonnet-4-5", "chat"),
    ]
    assert [row["calls"] for row in rows] == [10, 6]


ACME = {
    "errors": 0,
    "error_share": 0.0,
    "input_tokens": 1000,
    "cache_read_input_tokens": 400,
    "cache_creation_input_tokens": None,  # nobody ever said
    "output_tokens": 200,
    "reasoning_output_tokens": 50,
    "cost_nanousd": 10_000_000,
    "unpriced": 0,
    "saved_nanousd": 0,
    "attempts_per_sent": 1.0,
    "streams": 0,
    "streams_interrupted": 0,
    "cache_hits": 0,
    "p50_ms": 500.0,
    "p95_ms": 1000.0,
    "p99_ms": 1000.0,
    "ttft_p50_ms": 50.0,
    "ttft_p95_ms": 100.0,
    "ttft_p99_ms": 100.0,
    "gateway_p50_ms": 5.0,
    "gateway_p95_ms": 10.0,
}
GLOBEX_SUMS = {
    "errors": 4,  # 429, truncated, left by the client, refused
    "error_share": 4 / 6,
    "input_tokens": 500,  # the 429 has no counters, the other five have
    "cost_nanousd": 750_000,
    "unpriced": 1,  # the 429 used nothing, so only call 11 is missing from the cost
    "saved_nanousd": 750_000,
    "sent": 4,
    "attempts": 6,
    "attempts_per_sent": 1.5,  # 3 + 1 + 1 + 1 over four calls that were sent; not over six
    "streams": 6,
    "streams_interrupted": 2,
    "client_aborts": 1,
    "cache_hits": 1,
}


@pytest.mark.parametrize(("tenant", "numbers"), [("acme", ACME), ("globex", GLOBEX_SUMS)])
def test_a_row_carries_exact_sums_and_nearest_rank_percentiles(
    conn: sqlite3.Connection, tenant: str, numbers: dict[str, object]
) -> None:
    (row,) = queries.report(conn, by=["tenant"], filters=Filters(tenants=(tenant,)))
    assert {name: row[name] for name in numbers} == numbers


def test_what_no_row_knows_is_null_and_not_zero(conn: sqlite3.Connection) -> None:
    (row,) = queries.report(conn, by=[], filters=Filters(where="terminal = 'complete' AND status_code = 429"))
    nothing = ("input_tokens", "output_tokens", "cost_nanousd", "ttft_p50_ms", "ttft_p99_ms")
    assert {name: row[name] for name in nothing} == dict.fromkeys(nothing)


def test_the_total_takes_its_percentiles_from_the_calls_and_not_from_the_rows(conn: sqlite3.Connection) -> None:
    _, total = queries.report_with_total(conn, Window(), ["tenant"], Filters())
    (direct,) = queries.report(conn, by=[])
    assert total == direct
    assert (total["calls"], total["p50_ms"], total["cost_nanousd"]) == (16, 200.0, 10_750_000)


def test_a_report_over_no_call_has_no_row(conn: sqlite3.Connection) -> None:
    assert queries.report_with_total(conn, Window(since=at(500)), [], Filters()) == ([], None)


@pytest.mark.parametrize(
    ("values", "percent", "value"),
    [
        ([], 50, None),
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 95, 95.0),
        ([float(n) for n in range(1, 102)], 99, 100.0),
    ],
)
def test_a_percentile_is_a_value_that_occurred(values: list[float], percent: int, value: float | None) -> None:
    assert queries.percentile(values, percent) == value


@pytest.mark.parametrize("name", sorted(queries.DIMENSIONS))
def test_calls_can_be_grouped_by_every_dimension(conn: sqlite3.Connection, name: str) -> None:
    rows = queries.report(conn, by=[name])
    assert sum(row["calls"] for row in rows) == 16
    assert all(name in row for row in rows)


def test_times_are_whole_utc_times_in_order(conn: sqlite3.Connection) -> None:
    def values(name: str) -> list[str]:
        return [row[name] for row in queries.report(conn, by=[name])]

    assert values("day") == ["2026-11-24"]
    assert values("hour") == ["2026-11-24T09:00Z"]
    assert values("ten_minutes") == ["2026-11-24T09:00Z", "2026-11-24T09:10Z"]
    assert values("minute")[:2] == ["2026-11-24T09:01Z", "2026-11-24T09:02Z"]


def test_the_course_of_time_has_calls_errors_and_the_median_first_token_per_provider(conn: sqlite3.Connection) -> None:
    assert queries.course(conn, Window(since=at(9)), "ten_minutes", Filters()) == [
        {"provider_name": "openai", "ten_minutes": "2026-11-24T09:00Z", "calls": 1, "errors": 0, "ttft_p50_ms": 90.0},
        {
            "provider_name": "anthropic",
            "ten_minutes": "2026-11-24T09:10Z",
            "calls": 6,
            "errors": 4,
            "ttft_p50_ms": 50.0,
        },
        {"provider_name": "openai", "ten_minutes": "2026-11-24T09:10Z", "calls": 1, "errors": 0, "ttft_p50_ms": 100.0},
    ]


def test_short_names_mean_the_columns(conn: sqlite3.Connection) -> None:
    assert queries.dimensions(["provider", "model", "provider_name"]) == ("provider_name", "request_model")


def test_a_name_that_nothing_can_be_grouped_by_is_answered_with_the_nearest(conn: sqlite3.Connection) -> None:
    with pytest.raises(BadQuery, match=r"'tenat' \(did you mean tenant\?\)"):
        queries.report(conn, by=["tenat"])


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("metadata.team", {"red": 2, None: 2}),
        ("metadata.beta", {"true": 1, "false": 1, None: 2}),
        ("metadata.n", {3: 1, None: 3}),
        ("metadata.a'b\".c", {"odd": 1, None: 3}),
        ("metadata.nobody", {None: 4}),
    ],
)
def test_calls_are_grouped_by_any_tag_whatever_its_name(tmp_path: Path, name: str, groups: dict[object, int]) -> None:
    tags = ['{"team": "red", "beta": true}', '{"team": "red", "beta": false, "n": 3}', """{"a'b\\".c": "odd"}""", None]
    path = database(tmp_path / "t.db", rows_of(*(call(n, metadata=text) for n, text in enumerate(tags))))
    with closing(open_reader(path)) as conn:
        assert {row[name]: row["calls"] for row in queries.report(conn, by=[name])} == groups


# -- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(), list(range(1, 17))),
        (Filters(tenants=("globex",)), list(range(11, 17))),
        (Filters(tenants=("acme", "globex")), list(range(1, 17))),
        (Filters(tenants=("glo*",)), list(range(11, 17))),
        (Filters(tenants=("' OR 1 --",)), []),
        (Filters(models=("gpt-4o",)), list(range(1, 11))),
        (Filters(models=("gpt-4o-2024-08-06",), tenants=("acme",)), list(range(1, 11))),
        (Filters(providers=("anthropic",), where="status_code = 429"), [12, 16]),
        (Filters(routes=("nowhere",)), []),
        (Filters(where="attempts > 1 OR cache_status = 'HIT'"), [12, 15]),
        (Filters(where="id IN (SELECT exchange_id FROM attempts WHERE n = 3)"), [12]),
        (Filters(where="tenant = 'acme' -- 1", tenants=()), None),
    ],
)
def test_filters_choose_rows(conn: sqlite3.Connection, filters: Filters, found: list[int] | None) -> None:
    if found is None:
        with pytest.raises(BadQuery, match="without '--'"):
            ids(conn, filters)
    else:
        assert ids(conn, filters) == found


def test_a_provider_is_found_by_its_slug_and_by_the_name_in_the_rows(tmp_path: Path) -> None:
    path = database(tmp_path / "t.db", rows_of(call(1, provider_name="azure.ai.openai"), call(2)))
    with closing(open_reader(path)) as conn:
        assert ids(conn, Filters(providers=("azure-openai",))) == [1]
        assert ids(conn, Filters(providers=("azure.ai.openai",))) == [1]


def test_a_bracket_in_a_wildcard_means_itself(tmp_path: Path) -> None:
    path = database(tmp_path / "t.db", rows_of(call(1, tenant="[eu] shop"), call(2, tenant="e shop")))
    with closing(open_reader(path)) as conn:
        assert ids(conn, Filters(tenants=("[eu]*",))) == [1]


def test_a_window_takes_its_beginning_in_and_leaves_its_end_out(conn: sqlite3.Connection) -> None:
    assert ids(conn, Filters(), Window(since=at(3), until=at(6))) == [3, 4, 5]


NOW = 1_795_510_800.0  # 2026-11-24T09:00Z


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("30m", "2026-11-24T08:30:00.000Z"),
        ("1.5h", "2026-11-24T07:30:00.000Z"),
        (" 7 d ", "2026-11-17T09:00:00.000Z"),
        ("2w", "2026-11-10T09:00:00.000Z"),
        ("45s", "2026-11-24T08:59:15.000Z"),
        ("99999w", "1970-01-01T00:00:00.000Z"),
        ("2026-11-20", "2026-11-20T00:00:00.000Z"),
        ("2026-11-20T10:30", "2026-11-20T10:30:00.000Z"),
        ("2026-11-20T10:30:00+02:00", "2026-11-20T08:30:00.000Z"),
        ("2026-11-20T10:30:00.123Z", "2026-11-20T10:30:00.123Z"),
        ("all", None),
    ],
)
def test_a_time_is_said_as_an_age_or_in_iso(text: str, means: str | None) -> None:
    assert moment(text, NOW) == means


@pytest.mark.parametrize("text", ["yesterday", "1 hour", "", "-1h", "24", "2026-13-01"])
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(BadQuery, match="is no time: write 30m"):
        moment(text, NOW)


# -- conditions of the user's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("1) OR (1", "closes a bracket that it did not open"),
        ("(1", "leaves a bracket open"),
        ("1; DELETE FROM exchanges", "one condition, without ';'"),
        ("1 -- and so on", "one condition, without '--'"),
        ("1 /* and", r"one condition, without '/\*'"),
        ("tenant = 'acme", "without its end"),
        ("tenant = ?", "placeholder"),
        ("tenant = :t", "placeholder"),
        ("", "is empty"),
        ("tenat = 'acme'", r"no such column: tenat \(did you mean tenant\?\)"),
        ("DELETE FROM exchanges", "syntax error"),
        ("1 IN (SELECT name FROM pragma_table_info('exchanges'))", "may only read"),
        ("load_extension('x') IS NULL", "may only read|no such function"),
        ("1 IN (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n)", "may only read"),
        ("count(*) > 1", "misuse of aggregate"),
        ("json_extract(user_agent, '$.x') = 1", "malformed JSON"),
    ],
)
def test_a_condition_that_is_none_gets_one_sentence(tmp_path: Path, where: str, says: str) -> None:
    path = database(tmp_path / "t.db", rows_of(call(1, user_agent="curl")))
    with closing(open_reader(path)) as conn:
        for ask in (
            lambda: queries.report(conn, filters=Filters(where=where)),
            lambda: ids(conn, Filters(where=where)),
        ):
            with pytest.raises(BadQuery, match=says) as caught:
                ask()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "where", ["route = 'a)b' OR 1", 'tenant = "acme"', "[tenant] = 'acme'", "metadata ->> '$.x' IS NULL"]
)
def test_brackets_and_marks_inside_quotes_do_not_count(conn: sqlite3.Connection, where: str) -> None:
    assert 1 in ids(conn, Filters(where=where))


def test_a_writable_connection_cannot_be_made_to_write_by_a_condition(tmp_path: Path) -> None:
    path = database(tmp_path / "t.db", rows_of(call(1)))
    with closing(sqlite3.connect(path)) as conn:
        conn.create_function("wipe", 0, lambda: conn.execute("DELETE FROM exchanges").rowcount)
        with pytest.raises(BadQuery):
            queries.report(conn, filters=Filters(where="wipe() IS NULL"))
        assert conn.execute("SELECT count(*) FROM exchanges").fetchone() == (1,)


def test_the_connection_is_free_again_after_a_condition(conn: sqlite3.Connection) -> None:
    queries.report(conn, filters=Filters(where="1"))
    assert conn.execute("PRAGMA table_info(exchanges)").fetchall()


# -- tail -------------------------------------------------------------------------------------------------------------


def test_tail_gives_what_was_written_after_a_row_in_order(conn: sqlite3.Connection) -> None:
    assert [row["id"] for row in queries.tail(conn, 14)] == [id_of(15), id_of(16)]
    assert [row["rowid"] for row in queries.tail(conn, 0, limit=3)] == [1, 2, 3]
    assert queries.tail(conn, queries.newest_rowid(conn)) == []


# -- show -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [id_of(12), id_of(12)[:13], id_of(12).upper(), f" {id_of(12)} "])
def test_an_exchange_is_found_by_its_id_or_its_beginning(conn: sqlite3.Connection, said: str) -> None:
    found = queries.exchange(conn, said)
    assert found["exchange"]["id"] == id_of(12)
    assert [row["n"] for row in found["attempts"]] == [1, 2, 3]


def test_last_is_the_newest_exchange(conn: sqlite3.Connection) -> None:
    assert queries.find(conn, "last") == id_of(16)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("019e0000-000", "beginning of several ids:\n  019e0000-0001.* acme  gpt-4o"),
        ("", "beginning of several ids"),
        ("ffff", f"no exchange begins with 'ffff'; the newest are:\n  {id_of(16)}"),
        ("%", "no exchange begins with '%'"),
        ("' OR 1=1 --", "no exchange begins with"),
    ],
)
def test_an_id_that_is_not_one_is_answered_with_those_there_are(conn: sqlite3.Connection, said: str, says: str) -> None:
    with pytest.raises(NotOne, match=says):
        queries.exchange(conn, said)


def test_an_empty_database_has_no_exchange_to_suggest(tmp_path: Path) -> None:
    with closing(open_reader(database(tmp_path / "t.db", Rows()))) as conn:
        for said in ("last", "01"):
            with pytest.raises(NotOne, match="no exchange yet"):
                queries.find(conn, said)


def test_an_exchange_comes_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    encoding, stored = pack(b"x" * 100_000)
    rows = rows_of(call(1), call(2), attempts=[attempt(1, 1)])
    path = database(tmp_path / "t.db", rows)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "policy_events", [{"exchange_id": id_of(1), "at": at(1), "room": "limit", "action": "flag"}])
        insert(conn, "feedback", [{"exchange_id": id_of(1), "at": at(2), "kind": "thumbs", "value": 1}])
        body: dict[str, Any] = {"exchange_id": id_of(1), "bytes": 100_000, "encoding": encoding, "body": stored}
        insert(conn, "payloads", [{**body, "kind": "response"}, {**body, "kind": "request"}])
    with closing(open_reader(path)) as conn:
        found = queries.exchange(conn, id_of(1))
        assert queries.exchange(conn, id_of(2), parts=["attempts"]).keys() == {"exchange", "attempts"}
    assert encoding == "zstd"
    assert [payload["kind"] for payload in found["payloads"]] == ["request", "response"]
    assert found["payloads"][0]["body"] == b"x" * 100_000
    assert (found["events"][0]["room"], found["feedback"][0]["kind"]) == ("limit", "thumbs")
    assert {span["name"] for span in found["spans"]} == {"policy", "provider.first_token"}
