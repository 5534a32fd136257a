"""The file of the ledger, ``spend.db`` beside the trace database: open it, one transaction at a time, tidy it up.

Synchronous, on the event loop: a transaction of three counters takes some 30 us, and a thread would cost more, as each
call would have to win the interpreter back. So nothing here may wait: the log is folded in by a thread of its own
(``Folding``), since that is what waits for the disk, and another process's lock is waited for with tiny naps.

The tables: ``counters``: what was counted, packed by ``counting``. ``reservations``: what calls under way hold, with
whose they are. ``boot``: what to add to this boot's monotonic clock to get *steady* time, which all processes agree on,
no setting of a clock can move, and a reboot continues. ``birth``: what tells this file from one that was deleted.
"""

import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from mitmgate.clock import Clock
from mitmgate.counting import US, Calendars, Moment
from mitmgate.errors import StartError
from mitmgate.policy.values import Span
from mitmgate.store import files, owners
from mitmgate.store.files import NotOurs
from mitmgate.store.folding import Folding
from mitmgate.store.ledger_books import NO_VERSION, Counter, opened
from mitmgate.store.ledger_transaction import read_counter
from mitmgate.store.owners import Owner

log = logging.getLogger("mitmgate.ledger")

NAME = "spend.db"

APPLICATION = 0x6D67_7370
"""``PRAGMA application_id``: the folder may be an app's own, and ``spend.db`` that app's."""

VERSION = 1
"""``PRAGMA user_version``."""

PATIENCE_S = 0.2
"""So long is waited for a lock, once. Other workers keep it for a tenth of a millisecond, unless the system sets one
aside just then."""

DOWN_PATIENCE_S = 0.005
"""So long while the file is known to be out of use."""

NAP_S = 0.0001
"""Between two looks whether the lock is free. SQLite's own waiting begins with 1 ms and grows, so that under load
somebody is always left standing."""

START_PATIENCE_S = 2.0
"""At the start several workers make one file."""

LOOKED_AT = 500
"""Counters that one ``tidy`` looks at, at least."""

SCHEMA = """
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    every,
    empty_at INTEGER NOT NULL,
    grants BLOB NOT NULL,
    window BLOB NOT NULL
);
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY,
    holder TEXT NOT NULL,
    owner TEXT NOT NULL,
    counter TEXT NOT NULL,
    every,
    at INTEGER NOT NULL,
    amount INTEGER NOT NULL
);
CREATE TABLE boot (id TEXT NOT NULL, anchor INTEGER NOT NULL, seen INTEGER NOT NULL);
CREATE TABLE birth (id TEXT NOT NULL)
"""


TROUBLE = (sqlite3.Error, OSError, NotOurs)
"""What a disk, a lock or a strange file may raise."""


def beside(database: Path) -> Path:
    """Return where the ledger lies that belongs to the trace *database*."""
    return database.with_name(NAME)


def boot_id() -> str:
    """Return what names this boot of the machine; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


# -- the file ---------------------------------------------------------------------------------------------------------


class LedgerFile:
    """The connection, made again when the file was deleted, moved or replaced, or after an error.

    ``begin`` raises ``TROUBLE``, as does all that goes on in a transaction; then ``failed`` makes ready for another
    try.
    """

    def __init__(self, path: Path, clock: Clock, boot: str) -> None:
        self.path, self.clock, self.boot = path, clock, boot
        self.owner = Owner(path.with_suffix(".owners"))
        self.conn: sqlite3.Connection | None = None
        self.identity: tuple[int, int] | None = None
        """Of the file that is open; once it is deleted its inode may come again."""
        self.birth = ""
        """Of the file that was opened last."""
        self.anchor = round((clock.wall() - clock.now()) * US)
        """Microseconds to add to the monotonic clock; from the file, once there is one."""
        self._folding = Folding(path)
        self._last_looked_at = ""
        self.version = NO_VERSION
        """Another one whenever somebody else may have changed a counter."""
        self.is_alone = False
        """No other process has it open, as far as was seen."""
        self._data_version: int | None = None
        """SQLite's own number for that, of this connection."""

    def moment(self, calendars: Calendars) -> Moment:
        clock = self.clock
        return Moment(round(clock.now() * US) + self.anchor, round(clock.wall() * US), calendars)

    # -- opening

    def open(self, patience_s: float = PATIENCE_S) -> None:
        """Open the file, made if missing; one that is damaged is set aside, and said."""
        try:
            self._open(patience_s)
        except sqlite3.DatabaseError as e:
            if not files.is_broken(e):
                raise
            self._set_aside(e)
            self._open(patience_s)

    def _open(self, patience_s: float) -> None:
        conn = patiently(lambda: files.connect(self.path, busy_s=0), patience_s)
        try:
            patiently(lambda: self._prepare(conn), patience_s)
            self.owner.live()
        except BaseException:
            files.abandon(conn)
            raise
        self.conn, self.identity = conn, files.identity(self.path)
        self.version += 1
        self._data_version = None  # a connection's own: another's could be the same
        self.is_alone = False
        (self.birth,) = conn.execute("SELECT id FROM birth").fetchone()
        owners.clear(self.owner.folder)

    def _prepare(self, conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        if not is_current(conn, self.path):
            make_tables(conn, self.path)
        self._set_anchor(conn)

    def _set_anchor(self, conn: sqlite3.Connection) -> None:
        """Go by the steady time of whoever opened the file first in this boot; after a boot, it never goes back."""
        now = round(self.clock.now() * US)
        found = conn.execute("SELECT id, anchor, seen FROM boot").fetchone()
        if not self._is_of_this_boot(found, now):
            conn.execute("BEGIN IMMEDIATE")
            with ending(conn):
                found = conn.execute("SELECT id, anchor, seen FROM boot").fetchone()
                if not self._is_of_this_boot(found, now):
                    found = (self.boot, max(round(self.clock.wall() * US), found[2] if found else 0) - now, now)
                    conn.execute("DELETE FROM boot")
                    conn.execute("INSERT INTO boot VALUES (?, ?, ?)", found)
        self.anchor = found[1]

    def _is_of_this_boot(self, found: tuple[str, int, int] | None, now: int) -> bool:
        return found is not None and found[0] == self.boot and found[1] + now >= found[2]

    def _set_aside(self, error: Exception) -> None:
        if files.identity(self.path) is not None:
            aside = files.set_aside(self.path, self.clock.wall())
            log.warning("ledger: %s is damaged (%s): set aside as %s, a new one is begun", self.path, error, aside.name)

    # -- transactions

    def begin(self, patience_s: float = PATIENCE_S) -> sqlite3.Connection:
        """Begin a transaction that may write."""
        if self.conn is None:
            self.open(patience_s)
        conn = self.reading()
        begin(conn, patience_s)
        self._note_version(conn)
        return conn

    def commit(self) -> None:
        if self.conn is not None:
            self.conn.execute("COMMIT")
        self._folding.committed()

    def reading(self) -> sqlite3.Connection:
        """Return the connection, to read from it without a transaction."""
        if self.conn is None or files.identity(self.path) != self.identity:
            raise OSError(f"{self.path} was deleted, moved or replaced")
        return self.conn

    def looking(self) -> sqlite3.Connection:
        """Return the same, and know whether somebody else has written."""
        conn = self.reading()
        self._note_version(conn)
        return conn

    def _note_version(self, conn: sqlite3.Connection) -> None:
        (found,) = conn.execute("PRAGMA data_version").fetchone()
        if found == self._data_version:
            return
        if self._data_version is not None:
            self.is_alone = False
        self._data_version = found
        self.version += 1

    def roll_back(self) -> None:
        if self.conn is not None and self.conn.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self.conn.execute("ROLLBACK")

    def failed(self, error: Exception) -> None:
        """Roll back, and let go of a file that is damaged or gone."""
        self.roll_back()
        if self.conn is None:
            return
        if files.is_broken(error):
            self.drop()
            with contextlib.suppress(OSError):
                self._set_aside(error)
        elif files.identity(self.path) != self.identity:
            self.drop()

    def drop(self) -> None:
        """Let go of the connection, leaving whatever lies at the path alone."""
        if self.conn is not None:
            files.abandon(self.conn)
            self.conn = None

    def close(self) -> None:
        """Let go of the file in good order: its log is folded in."""
        self._folding.close()
        if self.conn is not None and files.identity(self.path) == self.identity:
            with contextlib.suppress(*TROUBLE):
                self.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self.conn.close()
                self.conn = None
        self.drop()
        self.owner.leave()

    @property
    def transactions(self) -> int:
        return self._folding.transactions

    # -- reading without a lock

    def read(self, name: str, every: Span | None, now: Moment) -> Counter | None:
        """Return a counter as the file has it, where it can be read; None where it has none, or cannot be."""
        if self.conn is None:
            return None
        try:
            return read_counter(self.conn, name, every, now)
        except TROUBLE:
            return None

    # -- tidying up

    def see_others(self) -> None:
        """See whether any other process lives that has the file open."""
        self.looking()  # what somebody wrote before this says nothing any more
        self.is_alone = self.owner.is_alone()

    def dead(self) -> list[str]:
        """Return the owners of reservations who live no more."""
        text = "SELECT DISTINCT owner FROM reservations WHERE owner != ?"
        found = self.reading().execute(text, (self.owner.name,)).fetchall()
        return [name for (name,) in found if owners.is_dead(self.owner.folder, name)]

    def held(self) -> int:
        """Return how many reservations the file has of this process."""
        text = "SELECT count(*) FROM reservations WHERE owner = ?"
        return int(self.reading().execute(text, (self.owner.name,)).fetchone()[0])

    def tidy(self, now: Moment, made: int) -> int:
        """Forget counters that say nothing any more, some at a time and twice as many as were *made* since the last
        time; return how many there are. Whatever was known of counters is not known any more.
        """
        conn = self.reading()
        conn.execute("UPDATE boot SET seen = max(seen, ?)", (now.steady,))
        text = "SELECT name, empty_at FROM counters WHERE name > ? ORDER BY name LIMIT ?"
        limit = max(LOOKED_AT, 2 * made)
        looked_at = conn.execute(text, (self._last_looked_at, limit)).fetchall()
        self._last_looked_at = looked_at[-1][0] if len(looked_at) == limit else ""
        conn.executemany(
            "DELETE FROM counters WHERE name = ?", [(name,) for name, empty_at in looked_at if empty_at <= now.steady]
        )
        self.version += 1
        return int(conn.execute("SELECT count(*) FROM counters").fetchone()[0])


def begin(conn: sqlite3.Connection, patience_s: float) -> None:
    """Begin a transaction that may write."""
    try:
        conn.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        patiently(lambda: conn.execute("BEGIN IMMEDIATE"), patience_s)


def patiently[T](step: Callable[[], T], patience_s: float) -> T:
    """Return what *step* does as soon as nobody else holds the file; raises what it raised last after *patience_s*."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return step()
        except sqlite3.OperationalError as e:
            if not files.is_locked(e) or time.monotonic() > give_up_at:
                raise
        time.sleep(NAP_S)


@contextlib.contextmanager
def ending(conn: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside; nothing of it stays where it raises."""
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        raise


def is_current(conn: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables are there; raises ``NotOurs`` where they are not those of this version."""
    return files.is_version(conn, path, APPLICATION, VERSION)


def make_tables(conn: sqlite3.Connection, path: Path) -> None:
    """Make the tables where they are missing. Of several processes one does; the others find the file locked."""
    conn.execute("PRAGMA page_size = 1024")  # what a transaction changes is written by the page
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("BEGIN IMMEDIATE")
    with ending(conn):
        if not is_current(conn, path):
            for statement in SCHEMA.split(";\n"):
                conn.execute(statement)
            conn.execute("INSERT INTO birth VALUES (?)", (secrets.token_hex(8),))
            conn.execute(f"PRAGMA application_id = {APPLICATION}")
            conn.execute(f"PRAGMA user_version = {VERSION}")


# -- for the command --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def looking(path: Path, mode: Literal["ro", "rw"] = "ro") -> Iterator[sqlite3.Connection]:
    """Open the file at *path* to look at it (``ro``) or to grant something (``rw``), and close it; never makes it.

    Raises StartError, in a sentence, where it cannot be used.
    """
    if not path.exists():
        raise StartError(f"nothing is counted at {path} yet: a gateway makes it when it starts")
    with files.looking(path, mode, "starts") as conn:
        if not is_current(conn, path):
            raise NotOurs(f"{path} is empty: a gateway makes it ready")
        yield conn


def moment_of(conn: sqlite3.Connection, clock: Clock, calendars: Calendars, boot: str) -> Moment:
    """Return now as the file's gateways see it."""
    now, wall = round(clock.now() * US), round(clock.wall() * US)
    found = conn.execute("SELECT id, anchor, seen FROM boot").fetchone()
    if found and found[0] == boot:
        return Moment(found[1] + now, wall, calendars)
    return Moment(max(wall, found[2] if found else 0), wall, calendars)


def counters(conn: sqlite3.Connection, now: Moment) -> Iterator[Counter]:
    """Yield every counter, as it is now."""
    for name, every, window, grants in conn.execute("SELECT name, every, window, grants FROM counters"):
        yield opened(name, every, window, grants, now)
