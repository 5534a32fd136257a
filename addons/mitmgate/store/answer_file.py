"""The file of kept answers, ``cache.db`` beside the trace database: open it, read, write, list and purge.

Synchronous; the store's two threads call it, and the ``cache`` command, each with a connection of its own. Several
processes may share the file. Two tables, so that noting a use does not write a body again.

``cache.db-purged`` beside it grows by a byte at each purge, and gets a new time when an answer was replaced that was
still fresh. Whoever holds answers in memory looks at it before it gives one away: a microsecond or two, and no lock.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mitmgate.clock import Clock
from mitmgate.errors import StartError
from mitmgate.store import bodies, files
from mitmgate.store.entry import COLUMNS, Entry, entry_of, facts_of
from mitmgate.store.files import NotOurs
from mitmgate.store.rows import Value
from mitmgate.store.selection import Values, matches, pattern

log = logging.getLogger("mitmgate.cache")

NAME = "cache.db"

APPLICATION = 0x6D67_6361
"""``PRAGMA application_id``: the folder may be an app's own, and ``cache.db`` that app's."""

VERSION = 1
"""``PRAGMA user_version``. A file of another version is emptied: it costs a few calls to the provider, no data."""

CHUNK = 200
"""Entries deleted in one transaction: nobody waits for the lock for long."""

SLACK_PAGES = 4096
"""Free pages (16 MiB) that stay in the file for the next answers; more go back to the disk."""

ONE_AT_A_TIME = threading.Lock()
"""Two threads of a process that come upon a damaged file set aside one."""

SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    stored_at REAL NOT NULL,
    ttl_s REAL NOT NULL,
    stale_s REAL NOT NULL,
    gone_at REAL NOT NULL,
    used_at REAL NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL,
    rule TEXT NOT NULL,
    tenant TEXT,
    route TEXT,
    model TEXT,
    provider_name TEXT NOT NULL,
    host TEXT NOT NULL,
    path TEXT NOT NULL
);
CREATE INDEX entries_gone ON entries (gone_at);
CREATE INDEX entries_used ON entries (used_at);
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY,
    facts_encoding TEXT NOT NULL,
    facts BLOB NOT NULL,
    body_encoding TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE TRIGGER entries_deleted AFTER DELETE ON entries BEGIN DELETE FROM bodies WHERE id = old.id; END;
"""


# -- the file ---------------------------------------------------------------------------------------------------------


def beside(database: Path) -> Path:
    """Return where the answers lie that belong to the trace *database*."""
    return database.with_name(NAME)


def open_file(path: Path, wall: float) -> sqlite3.Connection:
    """Return a connection for writing to the file at *path*, made if missing.

    A damaged file is set aside under a name that tells the time *wall*, and said. Raises sqlite3.Error, OSError or
    ``NotOurs`` where there can be no connection.
    """
    found = files.identity(path)
    try:
        return _opened(path)
    except sqlite3.DatabaseError as e:
        if not files.is_broken(e):
            raise
        _set_aside(path, found, e, wall)
        return _opened(path)


def _set_aside(path: Path, broken: tuple[int, int] | None, error: Exception, wall: float) -> None:
    """Set the file at *path* aside, unless another thread or process has put a new one in its place already."""
    with ONE_AT_A_TIME:
        if files.identity(path) == broken:
            aside = files.set_aside(path, wall)
            log.warning("cache: %s is damaged (%s): set aside as %s, a new one is begun", path, error, aside.name)


def _opened(path: Path) -> sqlite3.Connection:
    conn = files.connect(path)
    try:
        _prepare(conn, path)
    except BaseException:
        files.abandon(conn)
        raise
    conn.row_factory = sqlite3.Row
    return conn


def _prepare(conn: sqlite3.Connection, path: Path) -> None:
    """Make the tables where they are missing or of another version. Of several processes one does, the others wait."""
    if _is_current(conn, path):
        return
    conn.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only counts before the first table
    conn.execute("PRAGMA journal_mode = WAL")
    with transaction(conn):
        if _is_current(conn, path):
            return
        for table in ("entries", "bodies"):
            conn.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in SCHEMA.split(";\n"):
            conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {APPLICATION}")
        conn.execute(f"PRAGMA user_version = {VERSION}")


def _is_current(conn: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables are those of this version; raises ``NotOurs`` where they are no cache's."""
    return files.version_of(conn, path, APPLICATION) == VERSION


@contextlib.contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """Run what is inside as one transaction that may write; nothing of it stays where it raises."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        raise


class AnswerFile:
    """One thread's connection, made again when the file was deleted, moved or replaced, or after an error."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.conn: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def open(self) -> sqlite3.Connection:
        """Return the connection; raises as ``open_file`` does."""
        if self.conn is not None and files.identity(self.path) != self._file:
            self.drop()
        if self.conn is None:
            self.conn = open_file(self.path, self.clock.wall())
            self._file = files.identity(self.path)
        return self.conn

    def failed(self, error: Exception) -> None:
        """Make ready for another try after *error*; a file that is damaged is set aside when it is opened again."""
        if self.conn is None or files.is_locked(error):
            return
        self.drop()
        if files.is_broken(error):
            with contextlib.suppress(OSError):
                _set_aside(self.path, self._file, error, self.clock.wall())

    def drop(self) -> None:
        """Let go of the connection, leaving whatever lies at the path alone."""
        if self.conn is not None:
            files.abandon(self.conn)
            self.conn = None

    def close(self) -> None:
        """Let go of it in good order: the log is folded in by whoever is the last."""
        if self.conn is not None and files.identity(self.path) == self._file:
            with contextlib.suppress(sqlite3.Error):
                self.conn.close()
            self.conn = None
        self.drop()


# -- what others did --------------------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """Two values that only change; None before the first time."""

    purged: tuple[int, int] | None
    """By every purge."""
    replaced: int | None
    """By every purge, and whenever an answer took the place of one that was still fresh."""


class Marker:
    """The file that tells other processes."""

    def __init__(self, path: Path) -> None:
        self.path = f"{path}-purged"

    def read(self) -> Mark:
        try:
            found = os.stat(self.path)  # noqa: PTH116  (a ``Path`` doubles the time)
        except OSError:
            return NEVER
        return Mark((found.st_ino, found.st_size), found.st_mtime_ns)

    def purged(self) -> None:
        """Tell every process to let go of all that it holds; raises OSError."""
        with open(self.path, "ab") as file:  # noqa: PTH123
            file.write(b".")

    def replaced(self) -> None:
        """Tell every process to read again what it holds; raises OSError."""
        with open(self.path, "ab"):  # noqa: PTH123
            pass
        now = time.time_ns()  # what the system would set by itself moves in steps of milliseconds
        os.utime(self.path, ns=(now, now))


NEVER = Mark(None, None)


# -- for the store ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """An entry as it is written: compressing it takes no lock."""

    entry: Entry
    facts: tuple[str, str | bytes]
    body: tuple[str, str | bytes]

    @property
    def bytes(self) -> int:
        return len(self.facts[1]) + len(self.body[1])


def pack(entry: Entry) -> Packed:
    return Packed(entry, bodies.pack(facts_of(entry)), bodies.pack(entry.body))


def read(conn: sqlite3.Connection, key: str) -> Entry | None:
    """Return the entry; raises sqlite3.Error. One that is damaged is none."""
    row = conn.execute("SELECT * FROM entries JOIN bodies USING (id) WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    try:
        facts = bodies.unpack(row["facts_encoding"], row["facts"])
        return entry_of(row, facts, bodies.unpack(row["body_encoding"], row["body"]))
    except (ValueError, KeyError, TypeError, AttributeError, bodies.Unreadable) as e:
        log.warning("cache: the entry %s cannot be read and counts as none: %s", key[:12], e)
        return None


INSERT = f"""
INSERT INTO entries ({", ".join(COLUMNS)}, gone_at, used_at, bytes) VALUES ({", ".join("?" * (len(COLUMNS) + 3))})
"""


def write(conn: sqlite3.Connection, packed: Packed) -> bool:
    """Put an entry in the place of an older one; True where that one was still fresh, so others may hold it."""
    entry = packed.entry
    (fresh,) = conn.execute(
        "SELECT count(*) FROM entries WHERE key = ? AND stored_at + ttl_s > ?", (entry.key, entry.stored_at)
    ).fetchone()
    conn.execute("DELETE FROM entries WHERE key = ?", (entry.key,))
    columns = [_storable(getattr(entry, name)) for name in COLUMNS]
    made = conn.execute(INSERT, (*columns, entry.gone_at, entry.stored_at, packed.bytes))
    conn.execute("INSERT INTO bodies VALUES (?, ?, ?, ?, ?)", (made.lastrowid, *packed.facts, *packed.body))
    return bool(fresh)


def _storable(value: Value) -> Value:
    """Return *value* as SQLite takes it: a model's name out of a stranger's JSON may hold lone surrogates."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def note_uses(conn: sqlite3.Connection, uses: Mapping[str, tuple[float, int]]) -> None:
    """Write down the uses of entries: key -> (when last, how often since)."""
    values = [(at, n, key) for key, (at, n) in uses.items()]
    conn.executemany("UPDATE entries SET used_at = max(used_at, ?), hits = hits + ? WHERE key = ?", values)


def drop_gone(conn: sqlite3.Connection, wall: float) -> int:
    """Delete some of the entries that are of no use any more; return how many."""
    chunk = "SELECT id FROM entries WHERE gone_at <= ? ORDER BY gone_at LIMIT ?"
    return conn.execute(f"DELETE FROM entries WHERE id IN ({chunk})", (wall, CHUNK)).rowcount


def make_room(conn: sqlite3.Connection, max_bytes: int) -> int:
    """Delete the entries that were not used for longest, until the file is not larger than *max_bytes*; return how
    many.
    """
    evicted = 0
    while (over := used_bytes(conn) - max_bytes) > 0:
        victims = _longest_unused(conn, over)
        if not victims:
            break
        conn.executemany("DELETE FROM entries WHERE id = ?", victims)
        evicted += len(victims)
    return evicted


def _longest_unused(conn: sqlite3.Connection, least_bytes: int) -> list[tuple[int]]:
    """Return the ids of entries that give back about *least_bytes*."""
    victims: list[tuple[int]] = []
    for row in conn.execute("SELECT id, bytes FROM entries ORDER BY used_at LIMIT ?", (CHUNK,)).fetchall():
        victims.append((row[0],))
        least_bytes -= row[1]
        if least_bytes <= 0:
            break
    return victims


def used_bytes(conn: sqlite3.Connection) -> int:
    """Return what the file takes, less its free pages: bodies, indexes and all."""
    pages, free, size = (conn.execute(f"PRAGMA {name}").fetchone()[0] for name in _PAGES)
    return int((pages - free) * size)


_PAGES = ("page_count", "freelist_count", "page_size")


def count(conn: sqlite3.Connection) -> int:
    return int(conn.execute("SELECT count(*) FROM entries").fetchone()[0])


def shrink(conn: sqlite3.Connection, keep_pages: int = SLACK_PAGES) -> None:
    """Give free pages beyond *keep_pages* back to the disk."""
    (free,) = conn.execute("PRAGMA freelist_count").fetchone()
    if free > keep_pages:
        conn.execute(f"PRAGMA incremental_vacuum({free - keep_pages})").fetchall()


# -- for the command --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Which:
    """Which entries a question is about. A field with several values matches any of them; ``*`` and ``?`` are
    wildcards.
    """

    tenants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Keys, or their beginnings."""
    before: float | None = None
    """Kept before this moment: seconds since 1970."""
    since: float | None = None

    @property
    def is_all(self) -> bool:
        return self == Which()


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is to know of an entry without reading it. Moments are seconds since 1970."""

    key: str
    stored_at: float
    expires_at: float
    gone_at: float
    """Until then it may stand in for an answer that could not be had."""
    used_at: float
    """When it was last served; at first, when it was kept."""
    hits: int
    bytes: int
    """In the file."""
    rule: str
    tenant: str | None
    route: str | None
    model: str | None
    provider_name: str
    host: str
    path: str


@dataclass(frozen=True, slots=True)
class Amount:
    entries: int
    bytes: int


def clause(which: Which) -> tuple[str, Values]:
    """Return what follows ``WHERE``, and the values to bind."""
    terms: list[str] = []
    values: Values = []
    for column, wanted in (("tenant", which.tenants), ("model", which.models), ("route", which.routes)):
        if wanted:
            terms.append("(" + " OR ".join(matches(column, value) for value in wanted) + ")")
            values += [pattern(value) for value in wanted]
    if which.keys:
        terms.append("(" + " OR ".join("substr(key, 1, ?) = ?" for _ in which.keys) + ")")
        values += [value for key in which.keys for value in (len(key), key.lower())]
    for compare, moment in (("<", which.before), (">=", which.since)):
        if moment is not None:
            terms.append(f"stored_at {compare} ?")
            values.append(moment)
    return " AND ".join(terms) or "1", values


@contextlib.contextmanager
def opened(path: Path, mode: Literal["ro", "rw"] = "ro") -> Iterator[sqlite3.Connection]:
    """Open the file at *path* to look at it (``ro``) or to purge it (``rw``), and close it; never makes or changes it.

    Raises StartError, in a sentence, where it cannot be used.
    """
    if not path.exists():
        raise StartError(
            f"there is no answer cache at {path} yet: a gateway makes it when it keeps its first answer, "
            "which takes a cache rule in the policy or the request header cf-aig-cache-ttl"
        )
    with files.looking(path, mode, "uses it") as conn:
        conn.row_factory = sqlite3.Row
        if not _is_current(conn, path):
            raise NotOurs(f"{path} was written by another version of mitmgate; a gateway of this one empties it")
        yield conn


def listed(conn: sqlite3.Connection, which: Which, most: int | None = None) -> list[Kept]:
    """Return the entries that *which* means, the newest first, at most *most*."""
    where, values = clause(which)
    text = f"SELECT {KEPT} FROM entries WHERE {where} ORDER BY stored_at DESC, id DESC LIMIT ?"
    return [Kept(*row) for row in conn.execute(text, (*values, -1 if most is None else most))]


KEPT = """
key, stored_at, stored_at + ttl_s, gone_at, used_at, hits, bytes, rule, tenant, route, model, provider_name, host, path
"""


def total(conn: sqlite3.Connection, which: Which) -> Amount:
    """Return how many entries *which* means, and their bytes."""
    where, values = clause(which)
    n, size = conn.execute(f"SELECT count(*), coalesce(sum(bytes), 0) FROM entries WHERE {where}", values).fetchone()
    return Amount(n, size)


def purge(conn: sqlite3.Connection, path: Path, which: Which) -> Amount:
    """Delete the entries that *which* means; no gateway serves one of them from the moment this returns.

    Their bytes are overwritten and given back. Raises sqlite3.Error or OSError.

    The mark is set twice: before anything is deleted, for what other processes still have to write down (they leave it
    out), and at the end, for what they have read meanwhile.
    """
    marker = Marker(path)
    conn.execute("PRAGMA secure_delete = ON")
    marker.purged()
    where, values = clause(which)
    gone = Amount(0, 0)
    while True:
        with transaction(conn):
            chunk = f"SELECT id, bytes FROM entries WHERE {where} LIMIT ?"
            victims = conn.execute(chunk, (*values, CHUNK)).fetchall()
            conn.executemany("DELETE FROM entries WHERE id = ?", [(row["id"],) for row in victims])
        gone = Amount(gone.entries + len(victims), gone.bytes + sum(row["bytes"] for row in victims))
        if len(victims) < CHUNK:
            break
        time.sleep(0)  # between two locks a gateway gets its turn
    marker.purged()
    shrink(conn, keep_pages=0)
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return gone
