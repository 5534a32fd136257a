"""The gateway's own keys, as a running gateway knows them: each request asks the file, and remembers what it said.

``find`` runs on the event loop. It looks whether anybody has changed the file since (``PRAGMA data_version``, and the
file's identity) and goes by memory where nobody has, so a new, a revoked and an expired key count at the next request,
in every worker. A look that changed nothing costs 5 us, one in the file 9 us.

When a key was used is written by a thread of its own, two seconds later.

Promises: ``find`` waits for no lock longer than a hundredth of a second. While the file cannot be read, keys that were
found before go on, and about others it raises ``Unreadable``: nobody gets in whom nobody knows. One log line says so,
another that it is over.
"""

import logging
import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from mitmgate.clock import Clock
from mitmgate.errors import StartError
from mitmgate.store import files, key_file
from mitmgate.store.key_file import Made

log = logging.getLogger("mitmgate.auth")

WAIT_S = 0.01
"""Longest wait of the event loop for somebody else's lock; readers of a write-ahead log hardly ever meet one."""

REST_S = 0.25
"""After a look that failed the file is left alone for so long."""

PATIENCE_S = 2.0
"""A lock that is shorter is not worth a log line."""

NOTE_S = 2.0
"""Uses are collected for so long before they are written."""

TROUBLE = (sqlite3.Error, OSError, StartError, ValueError, TypeError)
"""What a file of any content, or none, may raise. The last two: a row that was damaged by hand."""

type Version = tuple[int, int]
"""(number of the connection, ``data_version`` there): changes whenever somebody else has changed the file."""


class Unreadable(Exception):
    """The file cannot be read just now, and the key is not among those that are remembered."""


class GatewayKeys:
    def __init__(self, path: Path, secret: bytes, clock: Clock) -> None:
        self.path, self.secret, self.clock = path, secret, clock
        self._name = str(path)
        self._conn: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._opened = 0
        self._known: dict[bytes, tuple[Version, Made]] = {}
        """Digest -> what the file said, and when. Only keys of the file are here."""
        self._outage = _Outage(path)
        self._rests_until = 0.0
        self._uses: dict[bytes, float] = {}
        self._lock = threading.Lock()
        """Guards ``_uses``."""
        self._used, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start to write down uses. The file is made with the first key, or the first use of one of the policy's."""
        self._closing.clear()
        self._thread = threading.Thread(target=self._note_for_ever, name="mitmgate-keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write down what waits and let go of the file; blocks."""
        self._closing.set()
        self._used.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self._drop()

    def digest_of(self, key: str) -> bytes:
        """Return what stands for *key*, here and in rows."""
        return key_file.digest_of(self.secret, key)

    # -- looking up

    def find(self, digest: bytes) -> Made | None:
        """Return the key that *digest* stands for, whatever its state; None where there is none. Raises
        ``Unreadable``."""
        now = self.clock.now()
        if now < self._rests_until:
            return self._remembered(digest)
        try:
            made = self._look(digest)
        except TROUBLE as e:
            self._drop()
            self._rests_until = now + REST_S
            self._outage.failed(e, now)
            return self._remembered(digest)
        self._outage.over()
        return made

    def _look(self, digest: bytes) -> Made | None:
        conn = self._connection()
        if conn is None:
            return None
        version = self._opened, conn.execute("PRAGMA data_version").fetchone()[0]
        known = self._known.get(digest)
        if known and known[0] == version:
            return known[1]
        made = key_file.find(conn, digest)
        if made:
            self._known[digest] = version, made
        else:
            self._known.pop(digest, None)
        return made

    def _remembered(self, digest: bytes) -> Made:
        known = self._known.get(digest)
        if known is None:
            raise Unreadable
        return known[1]

    def _connection(self) -> sqlite3.Connection | None:
        """Return the connection to the file that lies at the path now; None where none does."""
        try:
            found = os.stat(self._name)  # noqa: PTH116  (a ``Path`` doubles the time)
        except FileNotFoundError:
            self._drop()
            self._known.clear()  # whoever takes the file away takes the keys away
            return None
        identity = found.st_dev, found.st_ino
        if self._conn is not None and identity != self._identity:
            self._drop()
        if self._conn is None:
            self._conn = key_file.look_into(self.path, WAIT_S)
            self._identity = identity
            self._opened += 1
        return self._conn

    def _drop(self) -> None:
        if self._conn is not None:
            files.abandon(self._conn)
            self._conn = None

    # -- uses

    def used(self, digest: bytes) -> None:
        """Note that the key has opened a door just now."""
        with self._lock:
            self._uses[digest] = self.clock.wall()
        if not self._used.is_set():
            self._used.set()

    def flush(self) -> None:
        """Write down the uses that wait; blocks."""
        with self._lock:
            uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            conn = key_file.open_file(self.path)
        except TROUBLE as e:
            log.debug("auth: the last use of %d keys is not noted: %s", len(uses), e)
            return
        with suppress(sqlite3.Error):
            conn.execute("PRAGMA synchronous = NORMAL")  # a moment that a power cut forgets is no loss
            key_file.note_uses(conn, uses)
        files.abandon(conn)

    def _note_for_ever(self) -> None:
        while not self._closing.is_set():
            self._used.wait()
            self._closing.wait(NOTE_S)
            self._used.clear()
            self.flush()


class _Outage:
    """What is said while the file cannot be read: one line when it begins, one when it is over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.since: float | None = None
        self.said = False

    def failed(self, error: Exception, now: float) -> None:
        self.since = now if self.since is None else self.since
        if self.said or (files.is_locked(error) and now - self.since < PATIENCE_S):
            return
        self.said = True
        log.error(
            "auth: the keys in %s cannot be read: %s. Keys that were used lately go on, others are refused",
            self.path,
            error,
        )

    def over(self) -> None:
        if self.said:
            log.warning("auth: the keys in %s can be read again", self.path)
        self.since, self.said = None, False
