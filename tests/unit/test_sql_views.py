"""The views answer in plain SQLite what people ask first."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mitmgate.store.views import FAILED, VIEWS
from support.sample_traces import at, attempt, call, database, event, feedback, id_of, insert, rows_of

CALLS = [
    call(1, minutes=0),
    call(2, minutes=1, terminal="truncated", stream=1, duration_ms=9000.0, output_tokens=90),
    call(
        3,
        minutes=2,
        tenant="globex",
        status_code=503,
        error_type="503",
        cost_nanousd=None,
        duration_ms=50.0,
        attempts=2,
    ),
    call(4, minutes=60, tenant="globex", attempts=2, cost_nanousd=3_000_000, target="eu", session_id="s-1"),
    call(5, minutes=61, tenant="globex", cost_nanousd=None, session_id="s-1", response_model="gpt-4o-mini"),
    call(
        6, minutes=60 * 24 + 30, attempts=0, source="cache", cost_nanousd=0, saved_nanousd=2_000_000, duration_ms=None
    ),
]
ATTEMPTS = [
    attempt(1, 1),
    attempt(1, 2, first_byte_ms=400.0),
    attempt(1, 3, status_code=503, error_type="503", first_byte_ms=900.0),
    attempt(2, 3, status_code=None, error_type="timeout", first_byte_ms=None, wait_ms=250.0, cost_nanousd=None),
    attempt(1, 4, status_code=429, error_type="rate_limit", target="us", cost_nanousd=1_000_000),
    attempt(2, 4, target="eu", provider_name="azure.ai.openai", wait_ms=500.0, cost_nanousd=2_000_000),
    attempt(1, 5),
]


@pytest.fixture(scope="module")
def conn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A connection as the ``sqlite3`` shell has it: nothing of ours registered."""
    path = database(tmp_path_factory.mktemp("traces") / "traces.db", rows_of(*CALLS, attempts=ATTEMPTS))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "policy_events", [event(3)])
        insert(conn, "feedback", [feedback(2, kind="stream_interrupted", source="gateway")])
        yield conn


def ask(conn: sqlite3.Connection, sql: str) -> list[tuple[object, ...]]:
    return conn.execute(sql).fetchall()


@pytest.mark.parametrize("name", [name for name, _ in VIEWS])
def test_every_view_is_in_the_database_and_has_rows(conn: sqlite3.Connection, name: str) -> None:
    assert ask(conn, f"SELECT * FROM {name}")


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        (
            "SELECT day, tenant, calls, errors, cost_nanousd, cost_usd, unpriced, saved_usd FROM v_cost_by_tenant_day",
            [
                ("2026-11-25", "acme", 1, 0, 0, 0.0, 0, 0.002),
                ("2026-11-24", "globex", 3, 1, 3_000_000, 0.003, 1, 0.0),
                ("2026-11-24", "acme", 2, 1, 2_000_000, 0.002, 0, 0.0),
            ],
        ),
        ("SELECT id, status_code, terminal FROM v_errors", [(id_of(3), 503, "complete"), (id_of(2), 200, "truncated")]),
        (
            "SELECT id, duration_ms, wait_ms, first_byte_ms, ms_per_output_token FROM v_slow LIMIT 2",
            [(id_of(2), 9000.0, 0.0, 400.0, 100.0), (id_of(1), 100.0, 0.0, 40.0, 5.0)],
        ),
        (
            "SELECT id, first_target, first_error, last_target, recovered, wait_ms, wasted_nanousd, wasted_usd "
            "FROM v_retries",
            [
                (id_of(4), "us", "rate_limit", "eu", 1, 500.0, 1_000_000, 0.001),
                (id_of(3), None, "503", None, 0, 250.0, 1_000_000, 0.001),
            ],
        ),
        ("SELECT id, terminal, output_tokens FROM v_streams_interrupted", [(id_of(2), "truncated", 90)]),
        (
            "SELECT request_model, response_model, calls, first_seen FROM v_models",
            [("gpt-4o", "gpt-4o-2024-08-06", 5, at(0)), ("gpt-4o", "gpt-4o-mini", 1, at(61))],
        ),
        (
            "SELECT id, room, action, tenant, status_code FROM v_policy_events",
            [(id_of(3), "retry", "retry", "globex", 503)],
        ),
        ("SELECT session_id, calls, cost_usd, first_at, last_at FROM v_sessions", [("s-1", 2, 0.003, at(60), at(61))]),
        (
            "SELECT hour, model, calls, input_tokens, output_tokens FROM v_tokens_by_model_hour "
            "WHERE model = 'gpt-4o-mini'",
            [("2026-11-24T10:00Z", "gpt-4o-mini", 1, 100, 20)],
        ),
        (
            "SELECT id, n, target, error_type, tenant FROM v_attempts WHERE id = (SELECT id FROM v_retries LIMIT 1)",
            [(id_of(4), 1, "us", "rate_limit", "globex"), (id_of(4), 2, "eu", None, "globex")],
        ),
        ("SELECT id, kind, tenant FROM v_feedback", [(id_of(2), "stream_interrupted", "acme")]),
    ],
    ids=lambda it: it.split(" FROM ")[1].split(" ")[0] if isinstance(it, str) else "",
)
def test_a_view_answers(conn: sqlite3.Connection, sql: str, rows: list[tuple[object, ...]]) -> None:
    assert ask(conn, sql) == rows


def test_blame_goes_to_the_target_that_failed_and_not_to_the_one_that_answered(conn: sqlite3.Connection) -> None:
    sql = "SELECT provider_name, target, attempts, failed, failed_share, rate_limited FROM v_attempt_health"
    assert sorted(ask(conn, f"{sql} WHERE target IS NOT NULL")) == [
        ("azure.ai.openai", "eu", 1, 0, 0.0, 0),
        ("openai", "us", 1, 1, 1.0, 1),
    ]


def test_attempt_health_covers_the_day_up_to_the_newest_call(tmp_path: Path) -> None:
    """Percentiles are over the attempts that got a byte; a timeout counts as failed and has none."""
    last = 24 * 60
    timed = [attempt(1, n, first_byte_ms=n * 10.0) for n in range(1, 21)]
    lost = attempt(1, 21, first_byte_ms=None, status_code=None, error_type="timeout")
    old = attempt(1, 22, first_byte_ms=1e6)
    calls = [*(call(n, minutes=last) for n in range(1, 22)), call(22, minutes=0)]
    path = database(tmp_path / "t.db", rows_of(*calls, attempts=[*timed, lost, old]))
    sql = "SELECT hour, attempts, failed, timeouts, first_byte_p50_ms, first_byte_p95_ms FROM v_attempt_health"
    with closing(sqlite3.connect(path)) as conn:
        assert ask(conn, sql) == [("2026-11-25T09:00Z", 21, 1, 1, 100.0, 190.0)]


def test_a_time_range_of_single_calls_is_found_through_an_index(conn: sqlite3.Connection) -> None:
    for view in ("v_errors", "v_slow", "v_retries", "v_streams_interrupted", "v_attempts"):
        plan = ask(conn, f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE started_at >= '2026-11-24T10'")
        assert any("INDEX exchanges_" in str(step[3]) and "started_at>" in str(step[3]) for step in plan), (view, plan)


def test_the_meaning_of_an_error_is_the_one_that_an_index_covers(conn: sqlite3.Connection) -> None:
    plan = ask(conn, f"EXPLAIN QUERY PLAN SELECT id FROM exchanges WHERE {FAILED} AND started_at > '2026'")
    assert "exchanges_failed" in str(plan)


def test_a_new_database_answers_every_view_with_nothing(tmp_path: Path) -> None:
    with closing(sqlite3.connect(database(tmp_path / "t.db", rows_of()))) as conn:
        assert {name: ask(conn, f"SELECT * FROM {name}") for name, _ in VIEWS} == {name: [] for name, _ in VIEWS}
