"""Rows reach the file that the path leads to now, whatever became of the one before."""

import logging
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mitmgate.clock import ManualClock
from mitmgate.store import schema
from mitmgate.store.rows import Row, Rows
from mitmgate.store.sink import Sink

AT = "2026-11-24T16:42:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traces.db"


@pytest.fixture
def sink(path: Path) -> Iterator[Sink]:
    sink = Sink(path, ManualClock(started_wall=1_764_000_000.0))
    yield sink
    sink.close()


def exchange(name: str, **columns: str | int | float | bytes | None) -> Rows:
    row: Row = {"id": name, "started_at": AT, **columns}
    return Rows(exchanges=[row], attempts=[{"exchange_id": name, "n": 1}])


def ids(path: Path) -> list[str]:
    conn = sqlite3.connect(path)
    found = [row[0] for row in conn.execute("SELECT id FROM exchanges ORDER BY rowid")]
    conn.close()
    return found


def test_an_item_is_written_to_all_its_tables(path: Path, sink: Sink) -> None:
    sink.write([
        Rows(
            exchanges=[{"id": "e1", "started_at": AT, "tenant": "acme"}],
            attempts=[{"exchange_id": "e1", "n": 1, "status_code": 200}],
            spans=[{"name": "tool", "started_at": AT, "span_id": "s"}],
            policy_events=[{"exchange_id": "e1", "at": AT, "room": "limit", "action": "refuse", "shadow": 0}],
            payloads=[
                {"exchange_id": "e1", "kind": "request", "encoding": "identity", "bytes": 2, "body": "{}", "whole": 1}
            ],
            feedback=[{"exchange_id": "e1", "at": AT, "kind": "score", "value": 0.5}],
        )
    ])  # fmt: skip
    conn = sqlite3.connect(path)
    assert conn.execute("SELECT id, tenant, user FROM exchanges").fetchall() == [("e1", "acme", None)]
    assert conn.execute("SELECT exchange_id, n, status_code FROM attempts").fetchall() == [("e1", 1, 200)]
    assert conn.execute("SELECT name, span_id FROM spans_stored").fetchall() == [("tool", "s")]
    assert conn.execute("SELECT room, action FROM policy_events").fetchall() == [("limit", "refuse")]
    assert conn.execute("SELECT kind, body FROM payloads").fetchall() == [("request", "{}")]
    assert conn.execute("SELECT kind, value FROM feedback").fetchall() == [("score", 0.5)]
    conn.close()


@pytest.mark.parametrize(
    "bad",
    [
        exchange("good 1"),  # an id that is there already
        Rows(exchanges=[{"id": "bad"}]),  # started_at is missing
        exchange("bad", input_tokens=10**30),
        exchange("bad", tenant="\ud800"),
    ],
)
def test_a_row_that_the_database_refuses_costs_itself_and_nothing_else(
    path: Path, sink: Sink, bad: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    bad.attempts.clear()
    sink.write([exchange("good 1"), bad, exchange("good 2")])
    sink.write([exchange("good 3")])
    assert ids(path) == ["good 1", "good 2", "good 3"]
    assert sink.refused == 1
    assert [record.message.split(":")[1] for record in caplog.records] == [
        " a row of exchanges was refused and is lost"
    ]


def test_a_deleted_file_is_begun_anew(path: Path, sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    sink.write([exchange("before")])
    path.unlink()
    sink.write([exchange("after")])
    assert ids(path) == ["after"]
    assert "was deleted, moved or replaced while in use" in caplog.text


def test_a_moved_file_keeps_its_rows_and_later_ones_go_to_the_path(path: Path, sink: Sink, tmp_path: Path) -> None:
    sink.write([exchange("before")])
    path.rename(tmp_path / "moved.db")
    sink.write([exchange("after")])
    assert ids(tmp_path / "moved.db") == ["before"]
    assert ids(path) == ["after"]


def test_a_file_that_another_process_replaced_is_taken_up(path: Path, sink: Sink, tmp_path: Path) -> None:
    sink.write([exchange("old")])
    other = schema.open_store(tmp_path / "other.db", 0)
    other.execute("INSERT INTO exchanges (id, started_at) VALUES ('theirs', '2026')")
    other.close()
    (tmp_path / "other.db").rename(path)
    sink.write([exchange("ours")])
    sink.close()
    assert ids(path) == ["theirs", "ours"]


def test_a_file_that_became_garbage_is_noticed_set_aside_and_begun_anew(
    path: Path, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    sink.write([exchange("before")])
    sink.fold_log()
    sink.check()
    garbage = b"garbage " * 20_000
    path.write_bytes(garbage)
    with pytest.raises(sqlite3.DatabaseError) as broken:
        sink.check()
    sink.failed(broken.value)
    sink.write([exchange("after")])
    assert ids(path) == ["after"]
    assert (path.parent / "traces.db.broken-20251124T160000Z").read_bytes() == garbage
    assert "set aside as traces.db.broken-20251124T160000Z" in caplog.text


def test_damage_behind_an_intact_head_is_set_aside_at_the_second_failure(
    path: Path, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(50):
        sink.write([exchange(f"e{number}", path="/" * 500)])
    sink.close()
    size = path.stat().st_size
    root = _root_page(path, "exchanges")
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    assert path.stat().st_size == size
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError) as broken:
            sink.write([exchange("after")])
        sink.failed(broken.value)
    sink.write([exchange("after")])
    assert ids(path) == ["after"]
    assert "is damaged (database disk image is malformed): set aside as" in caplog.text


def test_a_failure_that_was_over_by_itself_sets_nothing_aside(path: Path, sink: Sink, tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"garbage " * 1000)
    other = sqlite3.connect(tmp_path / "garbage.db")
    with pytest.raises(sqlite3.DatabaseError) as passing:
        other.execute("SELECT * FROM sqlite_master")
    other.close()
    for name in ("e1", "e2", "e3"):
        sink.write([exchange(name)])
        sink.failed(passing.value)
    assert ids(path) == ["e1", "e2", "e3"]
    assert not list(tmp_path.glob("*.broken-*"))


def test_the_log_of_a_replaced_file_does_not_become_the_new_ones(path: Path, sink: Sink, tmp_path: Path) -> None:
    sink.write([exchange("old")])
    reader = sqlite3.connect(path, isolation_level=None)  # keeps the log from being folded
    reader.execute("BEGIN")
    reader.execute("SELECT id FROM exchanges").fetchall()
    sink.write([exchange("old too")])
    other = schema.open_store(tmp_path / "other.db", 0)
    other.execute("INSERT INTO exchanges (id, started_at) VALUES ('theirs', '2026')")
    other.close()
    (tmp_path / "other.db").rename(path)
    sink.write([exchange("ours")])
    assert ids(path) == ["theirs", "ours"]
    reader.close()
    assert ids(path) == ["theirs", "ours"]


def test_a_lock_is_an_error_and_nothing_of_the_batch_is_written(path: Path, sink: Sink) -> None:
    sink.open().execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError) as locked:
        sink.write([exchange("waits")])
    sink.failed(locked.value)
    other.execute("ROLLBACK")
    other.close()
    assert ids(path) == []
    sink.write([exchange("waits")])
    assert ids(path) == ["waits"]


def test_a_full_disk_is_an_error_and_the_next_try_succeeds_once_there_is_room(path: Path, sink: Sink) -> None:
    sink.write([exchange("before")])
    batch = [exchange(f"e{number}", path="/" * 2000) for number in range(100)]
    with files_of_at_most(path.stat().st_size), pytest.raises(sqlite3.OperationalError) as full:
        sink.write(batch)
    sink.failed(full.value)
    assert ids(path) == ["before"]
    sink.write(batch)
    assert len(ids(path)) == 101


def test_closing_leaves_one_file(path: Path, sink: Sink) -> None:
    sink.write([exchange("e1")])
    sink.close()
    assert [file.name for file in path.parent.iterdir()] == ["traces.db"]
    assert ids(path) == ["e1"]


def test_the_log_is_folded_once_no_reader_is_in_the_way(path: Path, sink: Sink) -> None:
    sink.write([exchange("e1")])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT id FROM exchanges").fetchall()
    sink.write([exchange("e2")])
    assert not sink.fold_log()
    reader.close()
    assert sink.fold_log()
    assert Path(f"{path}-wal").stat().st_size == 0


def test_what_is_refused_is_said_once_per_table(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        sink.write([Rows(exchanges=[{"id": "bad"}])])
    assert sink.refused == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def _root_page(path: Path, table: str) -> int:
    conn = sqlite3.connect(path)
    (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    conn.close()
    return int(page)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond *size* bytes: writing then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
