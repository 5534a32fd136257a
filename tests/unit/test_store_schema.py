"""The trace database is made, upgraded and judged when a writer opens it."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmgate.errors import StartError
from mitmgate.store import files, schema

WALL = 1_764_000_000.0  # 2025-11-24T16:00:00Z

OPENED: list[sqlite3.Connection] = []


def open_store(path: Path, wall: float) -> sqlite3.Connection:
    """Open a store that is closed when the test is over."""
    OPENED.append(schema.open_store(path, wall))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


CONTRACT = {
    "exchanges": (
        "id started_at trace_id parent_span_id session_id event_id prompt_version route tenant user auth region colo "
        "sla tier provider_name operation_name request_model response_model response_id host path stream status_code "
        "terminal error_type source cache_status attempts step target input_tokens cache_read_input_tokens "
        "cache_creation_input_tokens output_tokens reasoning_output_tokens usage_source cost_nanousd saved_nanousd "
        "price_version finish_reasons tool_calls time_to_first_token_ms duration_ms gateway_ms request_sha256 "
        "sent_sha256 policy_sha256 user_agent metadata"
    ),
    "attempts": (
        "exchange_id n target provider_name host status_code error_type wait_ms connect_ms first_byte_ms duration_ms "
        "input_tokens output_tokens cost_nanousd reused_connection"
    ),
    "spans": (
        "exchange_id trace_id span_id parent_span_id name kind started_at duration_ms host status_code"
    ),
    "policy_events": "exchange_id at room rule action shadow detail",
    "payloads": "exchange_id kind content_type encoding bytes body",
    "feedback": "exchange_id at kind value source comment",
}  # fmt: skip


@pytest.mark.parametrize("table", CONTRACT)
def test_the_published_columns_come_first_and_in_order(tmp_path: Path, table: str) -> None:
    conn = open_store(tmp_path / "traces.db", WALL)
    published = CONTRACT[table].split()
    assert schema.columns(conn, table)[: len(published)] == published


def test_the_version_is_the_number_of_migrations() -> None:
    assert len(schema.migrations._migrations) == files.VERSION


def test_a_new_file_gives_space_back_and_keeps_a_log_beside_it(tmp_path: Path) -> None:
    conn = open_store(tmp_path / "traces.db", WALL)
    assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_new_file_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    open_store(tmp_path / "home" / "traces.db", WALL)
    assert (tmp_path / "home" / "traces.db").stat().st_mode & 0o077 == 0


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    open_store(path, WALL).close()
    first = _schema(path)
    open_store(path, WALL).close()
    assert _schema(path) == first


def test_a_view_whose_text_has_changed_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    conn = open_store(path, WALL)
    made = _schema(path)
    conn.execute("DROP VIEW v_payloads")
    conn.execute("CREATE VIEW v_payloads AS SELECT 1 AS old")
    conn.close()
    open_store(path, WALL).close()
    assert _schema(path) == made


def test_several_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    together = threading.Barrier(4)
    failures: list[Exception] = []

    def open_it() -> None:
        together.wait()
        try:
            open_store(path, WALL)
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_newer_version_is_refused_in_one_sentence_that_names_both(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    conn = open_store(path, WALL)
    conn.execute("PRAGMA user_version = 7")
    conn.close()
    with pytest.raises(StartError) as refused:
        open_store(path, WALL)
    assert str(refused.value) == (
        f"{path} has schema version 7 and this mitmgate knows version {files.VERSION}: "
        "upgrade mitmgate, or name another file with --db"
    )


@pytest.mark.parametrize("content", [b"no database " * 1000, b"hello", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_set_aside_and_said(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traces.db"
    path.write_bytes(content)
    conn = open_store(path, WALL)
    assert schema.columns(conn, "exchanges")
    assert (tmp_path / "traces.db.broken-20251124T160000Z").read_bytes() == content
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "traces.db.broken-20251124T160000Z" in caplog.text


def test_a_second_broken_file_of_the_same_second_keeps_the_first(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    for content in (b"first" * 500, b"second" * 500):
        path.write_bytes(content)
        open_store(path, WALL).close()
        path.unlink()
    assert (tmp_path / "traces.db.broken-20251124T160000Z").read_bytes() == b"first" * 500
    assert (tmp_path / "traces.db.broken-20251124T160000Z-2").read_bytes() == b"second" * 500


ID = "0190f000-0000-7000-8000-0123456789ab"


def test_spans_show_the_phases_that_rows_already_tell(tmp_path: Path) -> None:
    conn = open_store(tmp_path / "traces.db", WALL)
    conn.execute(
        "INSERT INTO exchanges (id, started_at, trace_id, gateway_ms, streamed) VALUES (?, ?, ?, ?, ?)",
        (ID, "2026-11-24T16:42:00.000Z", "t1", 3.5, 1),
    )
    conn.execute(
        "INSERT INTO attempts"
        " (exchange_id, n, started_at, wait_ms, connect_ms, first_byte_ms, first_token_ms, duration_ms)"
        " VALUES (?, 2, ?, 1500, 20, 100, 200, 1000)",
        (ID, "2026-11-24T16:42:02.000Z"),
    )
    conn.execute(
        "INSERT INTO spans_stored (exchange_id, trace_id, span_id, name, started_at, duration_ms)"
        " VALUES (?, 't1', 'aaaabbbbccccdddd', 'retrieval', '2026-11-24T16:41:59.000Z', 250)",
        (ID,),
    )
    spans = conn.execute(
        "SELECT name, started_at, duration_ms FROM spans WHERE exchange_id = ? ORDER BY started_at, name", (ID,)
    ).fetchall()
    assert spans == [
        ("retrieval", "2026-11-24T16:41:59.000Z", 250),
        ("policy", "2026-11-24T16:42:00.000Z", 3.5),
        ("wait", "2026-11-24T16:42:00.500Z", 1500),
        ("connect", "2026-11-24T16:42:02.000Z", 20),
        ("provider.first_token", "2026-11-24T16:42:02.020Z", 180),
        ("provider.stream", "2026-11-24T16:42:02.200Z", 800),
    ]


def test_derived_spans_have_ids_of_their_own_below_the_exchange(tmp_path: Path) -> None:
    conn = open_store(tmp_path / "traces.db", WALL)
    conn.execute("INSERT INTO exchanges (id, started_at, gateway_ms) VALUES (?, '2026', 1)", (ID,))
    for n in (1, 2):
        conn.execute(
            "INSERT INTO attempts (exchange_id, n, started_at, connect_ms, first_byte_ms)"
            " VALUES (?, ?, '2026-01-01', 1, 2)",
            (ID, n),
        )
    spans = conn.execute("SELECT span_id, parent_span_id, trace_id FROM spans").fetchall()
    assert len({span_id for span_id, _, _ in spans}) == len(spans) == 5
    assert all(len(span_id) == 16 and int(span_id, 16) for span_id, _, _ in spans)
    assert {(parent, trace) for _, parent, trace in spans} == {("80000123456789ab", None)}


@pytest.mark.parametrize("view", schema.ALL_VIEWS)
def test_every_view_answers_without_functions_of_ours(tmp_path: Path, view: str) -> None:
    open_store(tmp_path / "traces.db", WALL).close()
    plain = sqlite3.connect(tmp_path / "traces.db")
    assert plain.execute(f"SELECT * FROM {view}").fetchall() == []
    plain.close()


def test_errors_of_a_time_range_are_found_by_the_index_made_for_them(tmp_path: Path) -> None:
    conn = open_store(tmp_path / "traces.db", WALL)
    plan = conn.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM exchanges"
        " WHERE (status_code >= 400 OR terminal <> 'complete') AND started_at > '2026'"
    ).fetchall()
    assert "exchanges_failed" in plan[0][3]


def _schema(path: Path) -> list[tuple[str, str]]:
    conn = sqlite3.connect(path)
    found = conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    conn.close()
    return found
