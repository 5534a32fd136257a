"""Bodies go first, rows later, and both earlier where the file grows too large."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmgate.clock import ManualClock, iso
from mitmgate.policy.values import Trace
from mitmgate.store import schema
from mitmgate.store.prune import CHUNK, EVERY_S, Pruner, first_id, used_bytes

DAY = 86400.0
CLOCK_START = 1_764_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(started_wall=CLOCK_START)


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(schema.open_store(tmp_path / "traces.db", CLOCK_START)) as opened:
        yield opened


def add(conn: sqlite3.Connection, age_s: float, number: int = 0, body: bytes = b"body") -> str:
    """Insert an exchange that began *age_s* ago with one row in every table that belongs to it."""
    wall = CLOCK_START - age_s
    exchange_id = first_id(wall)[:-6] + f"{number:06d}"
    at = iso(wall)
    conn.execute("INSERT INTO exchanges (id, started_at) VALUES (?, ?)", (exchange_id, at))
    conn.execute("INSERT INTO attempts (exchange_id, n) VALUES (?, 1)", (exchange_id,))
    conn.execute("INSERT INTO spans_stored (exchange_id, name, started_at) VALUES (?, 'tool', ?)", (exchange_id, at))
    conn.execute(
        "INSERT INTO policy_events (exchange_id, at, room, action) VALUES (?, ?, 'limit', 'refuse')", (exchange_id, at)
    )
    conn.execute("INSERT INTO feedback (exchange_id, at, kind) VALUES (?, ?, 'thumbs')", (exchange_id, at))
    conn.execute(
        "INSERT INTO payloads (exchange_id, kind, encoding, bytes, body) VALUES (?, 'request', 'identity', ?, ?)",
        (exchange_id, len(body), body),
    )
    return exchange_id


def count(conn: sqlite3.Connection, table: str) -> int:
    (rows,) = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(rows)


def prune(conn: sqlite3.Connection, pruner: Pruner) -> None:
    while pruner.step(conn):
        pass


def test_bodies_older_than_keep_go_and_their_rows_stay(conn: sqlite3.Connection, clock: ManualClock) -> None:
    add(conn, 31 * DAY)
    young = add(conn, 29 * DAY)
    pruner = Pruner(Trace(keep_s=30 * DAY), clock)
    prune(conn, pruner)
    assert conn.execute("SELECT exchange_id FROM payloads").fetchall() == [(young,)]
    assert count(conn, "exchanges") == 2
    assert str(pruner.total) == "0 rows and 1 bodies"


def test_rows_older_than_keep_rows_go_with_all_that_belongs_to_them(
    conn: sqlite3.Connection, clock: ManualClock
) -> None:
    add(conn, 401 * DAY)
    young = add(conn, 399 * DAY)
    prune(conn, Pruner(Trace(keep_rows_s=400 * DAY), clock))
    assert conn.execute("SELECT id FROM exchanges").fetchall() == [(young,)]
    for table in ("attempts", "policy_events", "spans_stored", "feedback"):
        assert conn.execute(f"SELECT exchange_id FROM {table}").fetchall() == [(young,)]


def test_observed_calls_that_were_never_joined_age_as_rows_do(conn: sqlite3.Connection, clock: ManualClock) -> None:
    for age_s in (401 * DAY, 399 * DAY):
        at = iso(CLOCK_START - age_s)
        conn.execute("INSERT INTO spans_stored (name, started_at) VALUES ('retrieval', ?)", (at,))
        conn.execute("INSERT INTO policy_events (at, room, action) VALUES (?, 'limit', 'refuse')", (at,))
    prune(conn, Pruner(Trace(keep_rows_s=400 * DAY), clock))
    assert (count(conn, "spans_stored"), count(conn, "policy_events")) == (1, 1)


def test_each_step_takes_one_chunk(conn: sqlite3.Connection, clock: ManualClock) -> None:
    for number in range(CHUNK + 3):
        add(conn, 31 * DAY, number)
    pruner = Pruner(Trace(), clock)
    assert pruner.step(conn)
    assert count(conn, "payloads") == 3
    assert pruner.step(conn)
    assert count(conn, "payloads") == 0
    assert not pruner.step(conn)


def test_a_file_too_large_loses_its_oldest_bodies_and_shrinks(conn: sqlite3.Connection, clock: ManualClock) -> None:
    ids = [add(conn, 2000.0 - number, number, body=bytes(2000)) for number in range(1500)]
    before = used_bytes(conn)
    most = int(before * 0.7)
    prune(conn, Pruner(Trace(max_bytes=most), clock))
    left = [row[0] for row in conn.execute("SELECT exchange_id FROM payloads ORDER BY exchange_id")]
    assert left == ids[-len(left) :]
    assert 0 < len(left) < 1500
    assert used_bytes(conn) <= most
    assert count(conn, "exchanges") == 1500


def test_where_bodies_are_not_enough_the_oldest_rows_go(conn: sqlite3.Connection, clock: ManualClock) -> None:
    ids = [add(conn, 2000.0 - number, number) for number in range(1200)]
    prune(conn, Pruner(Trace(max_bytes=int(used_bytes(conn) * 0.5)), clock))
    left = [row[0] for row in conn.execute("SELECT id FROM exchanges ORDER BY id")]
    assert count(conn, "payloads") == 0
    assert left == ids[-len(left) :]
    assert 0 < len(left) < 1200


def test_freed_pages_go_back_to_the_file_system(tmp_path: Path, conn: sqlite3.Connection, clock: ManualClock) -> None:
    for number in range(400):
        add(conn, 31 * DAY, number, body=bytes(4000))
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    large = (tmp_path / "traces.db").stat().st_size
    prune(conn, Pruner(Trace(), clock))
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (tmp_path / "traces.db").stat().st_size < large - 200 * 4096 + 1


def test_after_a_round_it_rests(conn: sqlite3.Connection, clock: ManualClock) -> None:
    pruner = Pruner(Trace(), clock)
    assert not pruner.step(conn)
    add(conn, 31 * DAY)
    assert not pruner.step(conn)
    clock.advance(EVERY_S)
    assert pruner.step(conn)


def test_a_time_has_its_smallest_id() -> None:
    assert first_id(1_764_000_000.123) == "019ab697-e87b-7000-8000-000000000000"
    assert first_id(0) < first_id(1_764_000_000.122) < first_id(1_764_000_000.123)
