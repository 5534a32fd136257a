"""One thread that writes every row. Traffic never waits for it, and never learns that a disk is full.

Rooms ``put`` items; the thread renders them (prices, redaction, hashes, compression) and hands them to ``sink`` in
batches: every 200 items or 250 ms.

Promises:
- ``put`` never blocks and never raises; a ``kill -9`` loses less than a second and corrupts nothing.
- A lock held by somebody else, a full disk, a read-only, deleted, moved or corrupt file: rows wait in a bounded
  backlog, oldest bodies are dropped first, then oldest rows; both are counted; one log line says so and another when
  it is over. The thread tries again four times a second.
- An item that cannot be rendered, or a row that the database refuses, costs itself and nothing else.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mitmgate.clock import Clock
from mitmgate.errors import StartError
from mitmgate.policy.values import Trace
from mitmgate.store import files
from mitmgate.store.backlog import Backlog, Limits, Slot
from mitmgate.store.outage import Outage
from mitmgate.store.prune import Pruner
from mitmgate.store.rows import Renders, Row, Rows
from mitmgate.store.sink import Sink

__all__ = ["Limits", "Rows", "Stats", "Writer"]

log = logging.getLogger("mitmgate.store")

IDLE_S = 2.0
"""After this long without a row the write-ahead log is folded into the file."""

WORK_S = 1e-3
"""Longest time that items are rendered without a breath."""

YIELD_S = 50e-6
"""The breath, unless there is a backlog: the event loop gets the interpreter between two items, not only when Python's
switch interval of 5 ms is over. Measured at 200 requests/s on two busy cores: the loop's p99.9 wait 8 ms instead of 12
(7 without a writer). A breath before each item would cost a request 0.1 ms of CPU in changes of thread."""

CHECK_S = 30.0
"""How often the file is looked at from outside."""

type Listener = Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class Stats:
    """How the writer is doing, at one moment."""

    rows_written: int
    """Items that reached the database."""
    rows_dropped: int
    """Items that did not and never will, and single rows that the database refused."""
    payloads_dropped: int
    """Items written, or waiting, without their bodies."""
    queued: int
    queued_bytes: int
    outage: str | None
    """Why nothing can be written just now; None = all is well."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is being written: items out of the backlog and their rows."""

    slots: list[Slot]
    rendered: list[Rows]


class Writer:
    """The thread and its backlog."""

    def __init__(self, path: Path, clock: Clock, *, trace: Trace | None = None, limits: Limits | None = None) -> None:
        self.clock = clock
        self.limits = limits or Limits()
        self.backlog = Backlog(self.limits)
        self._sink = Sink(path, clock)
        self._pruner = Pruner(trace or Trace(), clock)
        self._outage = Outage(path, self.backlog)
        self._listeners: list[Listener] = []
        self._rows_written = 0
        self._rows_lost = 0
        """Items that could not be rendered, or were still waiting at the end."""
        self._batch: Batch | None = None
        self._log_to_fold = False
        self._quiet_since = clock.now()
        self._check_at = clock.now() + CHECK_S
        self._complained: set[str] = set()
        self._breathed = 0.0
        """When the event loop was last let in, by ``time.monotonic``."""
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closing_at: float | None = None
        """When patience ends, by ``time.monotonic``: joining a thread takes real time, whatever a test's clock says."""
        self._settled = threading.Condition()
        self._settled_upto = 0
        """Of the items ever put, how many are written or dropped for good; guarded by ``_settled``."""

    # -- for the rooms

    def start(self) -> None:
        """Open the database and start the thread.

        Raises StartError where a newer mitmgate wrote the file: its rows would be misread. Any other trouble with the
        file is an outage like those that come later: the gateway serves, and says so.
        """
        try:
            self._sink.open()
        except (sqlite3.Error, OSError) as e:
            self._failed(e)
        self._thread = threading.Thread(target=self._run, name="mitmgate-writer", daemon=True)
        self._thread.start()

    def put(self, item: Renders, size: int) -> None:
        """Hand over *item*, which holds about *size* bytes of memory; never blocks, never raises."""
        self.backlog.put(item, size)
        if len(self.backlog) >= self.limits.batch_items:
            self._wake.set()

    def listen(self, listener: Listener) -> None:
        """Call *listener* with each exchange row once it is written, in the writer's thread."""
        self._listeners.append(listener)

    def keep(self, trace: Trace) -> None:
        """Take over an edited policy's ages and sizes."""
        self._pruner.trace = trace

    @property
    def stats(self) -> Stats:
        batch = self._batch
        return Stats(
            rows_written=self._rows_written,
            rows_dropped=self.backlog.rows_dropped + self._sink.refused + self._rows_lost,
            payloads_dropped=self.backlog.payloads_dropped,
            queued=len(self.backlog) + (len(batch.slots) if batch else 0),
            queued_bytes=self.backlog.bytes,
            outage=self._outage.reason,
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put so far is written or dropped; return False where that took too long."""
        wanted = self.backlog.entered
        self._wake.set()
        with self._settled:
            return self._settled.wait_for(lambda: self._settled_upto >= wanted, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write what waits, fold the log into the file and end the thread; return False where rows were lost."""
        if self._thread is None:
            return True
        self._closing_at = time.monotonic() + timeout_s
        self._wake.set()
        self._thread.join(timeout_s + 2 * files.BUSY_S)
        self._thread = None
        lost = self.stats.queued
        self._rows_lost += lost
        if lost:
            log.error("store: %d rows were not written before the end: %s", lost, self._outage.reason or "no time left")
        return lost == 0

    # -- the thread

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            except Exception:
                self._complain("turn", "the writer stumbled and goes on")
            if self._must_end():
                break
            self._wake.wait(self.limits.every_s)
            self._wake.clear()
        self._sink.close()

    def _must_end(self) -> bool:
        if self._closing_at is None:
            return False
        nothing_left = self._batch is None and not len(self.backlog)
        return nothing_left or time.monotonic() >= self._closing_at

    def _turn(self) -> None:
        """Write all that waits, then tidy up."""
        while batch := self._next_batch():
            if not self._write(batch):
                return
            if self._must_end():
                return
        self._outage.caught_up()
        if self._outage.reason is None:
            self._tidy()

    def _next_batch(self) -> Batch | None:
        """Return the batch at hand, or the next one, rendered; None where nothing waits."""
        if self._batch is None:
            slots = self.backlog.take()
            if slots:
                self._batch = Batch(slots, [rows for slot in slots if (rows := self._render(slot.item)) is not None])
        return self._batch

    def _render(self, item: Renders) -> Rows | None:
        if time.monotonic() - self._breathed > WORK_S and len(self.backlog) < self.limits.batch_items:
            time.sleep(YIELD_S)
            self._breathed = time.monotonic()
        try:
            return item.render()
        except Exception:
            self._rows_lost += 1
            kind = type(item).__name__
            self._complain(f"render {kind}", f"a {kind} cannot be turned into rows and is lost")
            return None

    def _write(self, batch: Batch) -> bool:
        """Write *batch*; False where that must be tried again later."""
        try:
            self._sink.write(batch.rendered)
        except (sqlite3.Error, OSError, StartError) as e:
            self._failed(e)
            return False
        self._batch = None
        self._rows_written += sum(not rows.policies for rows in batch.rendered)  # a policy is no traffic
        self.backlog.done(batch.slots)
        self._outage.wrote(self.clock.now())
        self._log_to_fold = True
        self._quiet_since = self.clock.now()
        self._tell_listeners(batch)
        self._tell_settled()
        return True

    def _failed(self, error: Exception) -> None:
        self._outage.failed(error, files.is_locked(error), self.clock.now())
        try:
            self._sink.failed(error)
        except OSError as e:
            self._complain("set aside", f"the damaged file cannot be set aside: {e}")
        self._tell_settled()

    def _tidy(self) -> None:
        """Prune a step, more while no row comes; fold the log into the file when it is quiet; look after the file."""
        try:
            conn = self._sink.open()
            while self._closing_at is None and self._pruner.step(conn):
                self._log_to_fold = True
                if len(self.backlog):
                    break
            now = self.clock.now()
            if self._log_to_fold and now - self._quiet_since >= IDLE_S:
                self._log_to_fold = not self._sink.fold_log()
                self._check_at = now
            if now >= self._check_at:
                self._check_at = now + CHECK_S
                self._sink.check()
        except (sqlite3.Error, OSError, StartError) as e:
            if not files.is_locked(e):
                self._failed(e)

    # -- who is told

    def _tell_listeners(self, batch: Batch) -> None:
        if not self._listeners:
            return
        written = [row for rows in batch.rendered for row in rows.exchanges]
        for listener in self._listeners:
            for row in written:
                try:
                    listener(row)
                except Exception:
                    self._complain(f"listener {listener!r}", "whoever listens to written rows failed")

    def _tell_settled(self) -> None:
        """Items that are neither waiting nor at hand are written or dropped; ``flush`` waits for that."""
        with self._settled:
            self._settled_upto = self.backlog.entered - self.stats.queued
            self._settled.notify_all()

    def _complain(self, kind: str, message: str) -> None:
        """Log the current exception with its traceback, once per *kind*."""
        if kind not in self._complained and len(self._complained) < 100:
            self._complained.add(kind)
            log.exception("store: %s (said once, then counted)", message)
