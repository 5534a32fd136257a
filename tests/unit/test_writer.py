"""One thread writes every row; traffic neither waits for it nor learns that a disk is full."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mitmgate
from mitmgate.clock import ManualClock, SystemClock
from mitmgate.errors import StartError
from mitmgate.policy.values import Trace
from mitmgate.store import schema
from mitmgate.store.rows import Row, Rows
from mitmgate.store.writer import Limits, Writer

AT = "2026-11-24T16:42:00.000Z"

type Make = Callable[..., Writer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traces.db"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """Make writers that are closed at the end."""
    made: list[Writer] = []

    def writer(**options: Limits | Trace) -> Writer:
        made.append(Writer(path, SystemClock(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield writer
    for one in made:
        one.close(5)


def row(name: str) -> Rows:
    return Rows(exchanges=[{"id": name, "started_at": AT}])


def ids(path: Path) -> list[str]:
    conn = sqlite3.connect(path)
    found = [row[0] for row in conn.execute("SELECT id FROM exchanges ORDER BY rowid")]
    conn.close()
    return found


def comes_true(writer: Writer, condition: Callable[[], bool]) -> bool:
    """Keep the writer's thread awake until *condition* holds; False where ten seconds were not enough."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        writer.flush(1)
    return True


def test_rows_are_in_the_file_after_flush_in_the_order_they_came(path: Path, make: Make) -> None:
    writer = make()
    writer.start()
    for number in range(450):
        writer.put(row(f"e{number}"), 100)
    assert writer.flush(10)
    assert ids(path) == [f"e{number}" for number in range(450)]
    assert (writer.stats.rows_written, writer.stats.queued, writer.stats.queued_bytes) == (450, 0, 0)


def test_a_few_rows_are_written_without_being_asked_for(path: Path, make: Make) -> None:
    writer = make()
    written = threading.Event()
    writer.listen(lambda row: written.set())
    writer.start()
    writer.put(row("alone"), 100)
    assert written.wait(10)
    assert ids(path) == ["alone"]


def test_rows_put_before_the_start_are_written(path: Path, make: Make) -> None:
    writer = make()
    writer.put(row("early"), 100)
    writer.start()
    assert writer.flush(10)
    assert ids(path) == ["early"]


def test_closing_writes_what_waits_and_leaves_one_file(path: Path, make: Make) -> None:
    writer = make()
    writer.start()
    for number in range(1000):
        writer.put(row(f"e{number}"), 100)
    assert writer.close(10)
    assert len(ids(path)) == 1000
    assert [file.name for file in path.parent.iterdir()] == ["traces.db"]


def test_an_item_that_cannot_be_rendered_costs_itself_and_is_said_once(
    path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def render(self) -> Rows:
            raise KeyError("a bug")

        def shed(self) -> int:
            return 0

    writer = make()
    for item in (row("good 1"), Broken(), Broken(), row("good 2")):
        writer.put(item, 100)
    writer.start()
    assert writer.flush(10)
    assert ids(path) == ["good 1", "good 2"]
    assert (writer.stats.rows_written, writer.stats.rows_dropped) == (2, 2)
    complaints = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info is not None and record.exc_info[0] for record in complaints] == [KeyError]
    assert "a Broken cannot be turned into rows" in complaints[0].message


def test_listeners_get_each_written_row_and_may_fail(make: Make) -> None:
    heard: list[Row] = []

    def fails(row: Row) -> None:
        raise RuntimeError("not today")

    writer = make()
    writer.listen(fails)
    writer.listen(heard.append)
    writer.start()
    for name in ("a", "b"):
        writer.put(row(name), 100)
    assert writer.flush(10)
    assert [heard_row["id"] for heard_row in heard] == ["a", "b"]


def test_a_lock_loses_nothing(path: Path, make: Make) -> None:
    writer = make()
    writer.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for number in range(500):
        writer.put(row(f"e{number}"), 100)
    assert not writer.flush(0.01)
    other.execute("COMMIT")
    other.close()
    assert writer.flush(10)
    assert len(ids(path)) == 500
    assert (writer.stats.rows_dropped, writer.stats.outage) == (0, None)


def test_two_writers_share_one_file(path: Path, make: Make) -> None:
    writers = [make(), make()]
    for writer in writers:
        writer.start()
    for number in range(600):
        for name, writer in enumerate(writers):
            writer.put(row(f"{name}-{number}"), 100)
    assert all(writer.flush(20) for writer in writers)
    assert len(ids(path)) == 1200


def test_an_outage_is_said_once_counted_and_over_by_itself(
    path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # nothing can be written to a directory
    writer = make(limits=Limits(items=3, every_s=0.01))
    writer.start()
    for number in range(5):
        writer.put(row(f"e{number}"), 100)
    assert not writer.flush(0.1)
    outage = writer.stats.outage
    path.rmdir()
    assert writer.flush(10)
    assert outage == "unable to open database file"
    assert writer.stats.outage is None
    written = ids(path)
    assert written[-1] == "e4"
    assert len(written) + writer.stats.rows_dropped == 5
    assert 0 < writer.stats.rows_dropped < 5
    said = [record.message for record in caplog.records if record.name == "mitmgate.store"]
    assert len(said) == 2
    assert "rows cannot be written" in said[0]
    assert "rows are written" in said[1]


def test_a_file_deleted_while_in_use_is_begun_anew(path: Path, make: Make) -> None:
    writer = make()
    writer.start()
    writer.put(row("before"), 100)
    assert writer.flush(10)
    path.unlink()
    writer.put(row("after"), 100)
    assert writer.flush(10)
    assert ids(path) == ["after"]


def test_a_newer_database_refuses_the_start(path: Path, make: Make) -> None:
    conn = schema.open_store(path, 0)
    conn.execute("PRAGMA user_version = 99")
    conn.close()
    with pytest.raises(StartError, match="schema version 99"):
        make().start()


def test_rows_that_could_not_be_written_before_the_end_are_counted(
    path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    writer = make()
    writer.start()
    writer.put(row("lost"), 100)
    assert not writer.close(0.1)
    assert writer.stats.rows_dropped == 1
    assert "1 rows were not written before the end" in caplog.text


def test_old_rows_are_pruned_by_the_thread(path: Path, make: Make) -> None:
    conn = schema.open_store(path, 0)
    conn.execute("INSERT INTO exchanges (id, started_at) VALUES ('01000000-0000-7000-8000-000000000000', '2004')")
    conn.close()
    writer = make(trace=Trace(keep_rows_s=1.0))
    writer.start()
    assert comes_true(writer, lambda: ids(path) == [])


def test_a_turned_clock_folds_the_log_when_it_is_quiet(path: Path) -> None:
    clock = ManualClock()
    writer = Writer(path, clock, limits=Limits(every_s=0.01))
    writer.start()
    writer.put(row("e"), 100)
    assert writer.flush(10)
    assert Path(f"{path}-wal").stat().st_size > 0
    clock.advance(3)
    assert comes_true(writer, lambda: Path(f"{path}-wal").stat().st_size == 0)
    assert writer.close(10)


KILLED = """
import sys, time
from pathlib import Path
from mitmgate.clock import SystemClock
from mitmgate.store.rows import Rows
from mitmgate.store.writer import Writer

writer = Writer(Path(sys.argv[1]), SystemClock())
writer.start()
for number in range(10_000_000):
    writer.put(Rows(exchanges=[{"id": f"{number:08d}", "started_at": f"{time.time():.3f}"}]), 100)
    if number % 50 == 0:
        print(number, flush=True)
        time.sleep(0.002)
"""


def test_kill_9_loses_less_than_a_second_and_corrupts_nothing(path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(mitmgate.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=env
    )  # fmt: skip
    if process.stdout is None:
        raise RuntimeError("the program has no output")
    for line in process.stdout:
        if int(line) >= 5000:
            break
    conn = sqlite3.connect(path)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.stdout.close()
    process.wait()
    put = int(rest.split()[-1]) if rest.split() else 5000
    assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (last,) = conn.execute("SELECT max(id) FROM exchanges").fetchone()
    (written,) = conn.execute("SELECT count(*) FROM exchanges").fetchone()
    conn.close()
    assert written == int(last) + 1  # without a gap
    assert put - int(last) < 25_000  # put within one second at the pace above
