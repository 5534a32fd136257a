"""The thread that writes kept answers down: in batches, within bounds, and never in anybody's way.

What waits for it is bounded in bytes. While the file is locked it waits on; after any other error the batch at hand is
given up and counted, and the file is left alone for a moment. One line says so, another when it is over.
"""

import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from mitmgate.clock import Clock
from mitmgate.store import answer_file, files
from mitmgate.store.answer_file import AnswerFile, Mark, Marker
from mitmgate.store.entry import Entry
from mitmgate.store.files import NotOurs

log = logging.getLogger("mitmgate.cache")

TROUBLE = (sqlite3.Error, OSError, NotOurs)
"""What a file may do to us."""

PATIENCE_S = 5.0
"""A lock that is shorter is everyday business between processes: nothing is said."""

MOST_USES = 10_000
"""Entries whose use waits to be noted; more are not noted: the order in which they make room gets vague."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, and seconds."""

    memory: int = 32 * 2**20
    entry_in_memory: int = 4 * 2**20
    entry: int = 16 * 2**20
    """A larger one is not kept."""
    backlog: int = 64 * 2**20
    """May wait to be written."""
    batch: int = 4 * 2**20
    """Written in one transaction."""
    every_s: float = 2.0
    """So often uses are noted and what has expired is cleared away; after an error, the file rests so long."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How the store is doing; of the file, as its writer saw it last."""

    entries: int = 0
    bytes: int = 0
    evictions: int = 0
    """Entries that made room for others since the start."""
    dropped: int = 0
    """Answers that are not in the file for want of room, time or a disk."""
    outage: str | None = None
    """Why nothing can be written just now; None = all is well."""


# -- what waits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry that the file does not have yet."""

    entry: Entry
    size: int
    mark: Mark
    """When it was put. It was meant by every purge since."""


class Backlog:
    """What the event loop hands over. Each call takes a microsecond at most."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0
        """Of entries that wait, and of those at hand."""
        self.dropped = 0
        """Entries that never reached the file."""
        self.wake = threading.Event()
        """Set when there is something to do."""
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._at_hand: dict[str, Waiting] = {}
        self._uses: dict[str, tuple[float, int]] = {}

    def put(self, waiting: Waiting) -> None:
        """Append an entry; it takes the place of one of its key. Where there is no room it is dropped."""
        with self._lock:
            if older := self._waiting.pop(waiting.entry.key, None):
                self.bytes -= older.size
            if self.bytes + waiting.size > self.limits.backlog:
                self.dropped += 1
                return
            self._waiting[waiting.entry.key] = waiting
            self.bytes += waiting.size
        self.wake.set()

    def refuse(self) -> None:
        """Count an entry that is not kept."""
        with self._lock:
            self.dropped += 1

    def find(self, key: str) -> Entry | None:
        """Return the entry that waits, or is being written."""
        with self._lock:
            waiting = self._waiting.get(key) or self._at_hand.get(key)
        return waiting.entry if waiting else None

    def used(self, key: str, wall: float) -> None:
        """Note that the entry was used at *wall*."""
        with self._lock:
            if not self._uses:
                self.wake.set()
            if key in self._uses or len(self._uses) < MOST_USES:
                self._uses[key] = wall, self._uses.get(key, (0.0, 0))[1] + 1

    def forget(self) -> None:
        """Let go of what waits: it was purged. What is at hand is left out by its mark."""
        with self._lock:
            self.bytes -= sum(waiting.size for waiting in self._waiting.values())
            self._waiting.clear()
            self._at_hand.clear()

    def take(self) -> list[Waiting]:
        """Return the next batch, oldest first; it can be found, and counts, until it is ``done``."""
        batch: list[Waiting] = []
        size = 0
        with self._lock:
            while self._waiting and size < self.limits.batch:
                key, waiting = self._waiting.popitem(last=False)
                self._at_hand[key] = waiting
                batch.append(waiting)
                size += waiting.size
        return batch

    def done(self, batch: list[Waiting], dropped: int = 0) -> None:
        """*batch* is in the file, less *dropped* of it."""
        with self._lock:
            self.bytes -= sum(waiting.size for waiting in batch)
            self._at_hand.clear()
            self.dropped += dropped

    def take_uses(self) -> dict[str, tuple[float, int]]:
        """Return what was used since: key -> (when last, how often)."""
        with self._lock:
            uses, self._uses = self._uses, {}
        return uses


# -- the thread -------------------------------------------------------------------------------------------------------

GATHER_S = 0.05
"""What comes within this time is written together; a ``kill -9`` loses no more."""


class Writer:
    def __init__(self, path: Path, max_bytes: int, clock: Clock, limits: Limits, backlog: Backlog) -> None:
        self.max_bytes = max_bytes
        self.limits = limits
        self.backlog = backlog
        self.outage = Outage(path)
        self._clock = clock
        self._file = AnswerFile(path, clock)
        self._marker = Marker(path)
        self._batch: list[Waiting] = []
        """Being written, or to be tried again."""
        self._stats = Stats()
        self._tidy_at = 0.0
        """By ``time.monotonic``, as all that this thread waits for."""
        self._flushes: list[threading.Event] = []
        """Set when all that waited at the time is written, or given up."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def stats(self) -> Stats:
        return replace(self._stats, dropped=self.backlog.dropped, outage=self.outage.reason)

    def start(self) -> None:
        """Start the thread; it touches no disk before it has something to write."""
        self._thread = threading.Thread(target=self._run, name="mitmgate-cache-write", daemon=True)
        self._thread.start()

    def flush(self, within_s: float) -> bool:
        """Write what waits and tidy, now; True where that is done within *within_s* seconds. Blocks."""
        done = threading.Event()
        self._flushes.append(done)
        self.backlog.wake.set()
        return done.wait(within_s)

    def stop(self, within_s: float) -> None:
        """Write what waits, and end the thread; return after *within_s* seconds at the latest."""
        self._stop.set()
        self.backlog.wake.set()
        if self._thread is not None:
            self._thread.join(within_s)
            self._thread = None

    def _run(self) -> None:
        while not self._stop.is_set():
            flushes = list(self._flushes)
            if flushes:
                self._tidy_at = 0.0
            error = self._work()
            if error is None or not files.is_locked(error):
                for done in flushes:
                    self._flushes.remove(done)
                    done.set()
            if error is not None:
                self._stop.wait(self.limits.every_s)
                continue
            self.backlog.wake.wait(self.limits.every_s if self._file.conn else None)
            self._stop.wait(GATHER_S)
            self.backlog.wake.clear()
        self._tidy_at = 0.0
        self._work()
        self._file.close()

    def _work(self) -> Exception | None:
        """Write all that waits, and tidy where it is time; return why that did not work."""
        try:
            while batch := self._batch or self.backlog.take():
                self._batch = batch
                self._write()
            self._tidy()
        except TROUBLE as e:
            self._failed(e)
            return e
        except Exception as e:
            log.exception("cache: answers cannot be written, and are not kept")
            self._give_up()
            return e
        return None

    def _write(self) -> None:
        packed = [(waiting, answer_file.pack(waiting.entry)) for waiting in self._batch]
        conn = self._file.open()
        with answer_file.transaction(conn):
            purged = self._marker.read().purged  # whoever purges now waits for this transaction
            replaced = [answer_file.write(conn, one) for waiting, one in packed if waiting.mark.purged == purged]
            evicted = answer_file.make_room(conn, self.max_bytes)
        if any(replaced):
            self._marker.replaced()
        self.backlog.done(self._batch)
        self._batch = []
        self._stats = replace(self._stats, evictions=self._stats.evictions + evicted)
        self.outage.over()

    def _tidy(self) -> None:
        """Note uses, clear away what has expired, look how large the file is; not more often than need be."""
        if time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + self.limits.every_s
        if self._file.conn is None and files.identity(self._file.path) is None:
            return  # nothing was ever kept here
        conn = self._file.open()
        with answer_file.transaction(conn):
            answer_file.note_uses(conn, self.backlog.take_uses())
        self._clear(conn)
        answer_file.shrink(conn)
        self._stats = replace(self._stats, entries=answer_file.count(conn), bytes=answer_file.used_bytes(conn))

    def _clear(self, conn: sqlite3.Connection) -> None:
        """Delete what is of no use any more, in bites."""
        while not self._stop.is_set():
            with answer_file.transaction(conn):
                gone = answer_file.drop_gone(conn, self._clock.wall())
            if gone < answer_file.CHUNK:
                return

    def _failed(self, error: Exception) -> None:
        locked = files.is_locked(error)
        if not locked:
            self._give_up()
        self._file.failed(error)
        self.outage.failed(error, locked)

    def _give_up(self) -> None:
        self.backlog.done(self._batch, dropped=len(self._batch))
        self._batch = []


class Outage:
    """Whether answers can be kept just now, and what was said about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reason: str | None = None
        """Why not; None = all is well."""
        self._since = 0.0
        self._said = False

    def failed(self, error: Exception, locked: bool) -> None:
        """Another try has failed; *locked* where another process holds the file."""
        if self.reason is None:
            self._since = time.monotonic()
        self.reason = str(error) or type(error).__name__
        if self._said or (locked and time.monotonic() - self._since < PATIENCE_S):
            return
        self._said = True
        log.error("cache: answers cannot be kept in %s: %s. Traffic goes on without them", self.path, self.reason)

    def over(self) -> None:
        """A try has succeeded."""
        if self._said:
            log.warning("cache: answers are kept in %s again, after %.0f s", self.path, time.monotonic() - self._since)
        self.reason = None
        self._said = False
