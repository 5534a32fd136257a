"""The trace file as a file: open it, tell whether it is ours, notice that it was moved, set a broken one aside.

Nothing here knows a table. The version of the schema stands in ``PRAGMA user_version``, so that a reader can tell an
unknown one without sqlite-utils.
"""

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from mitmgate.errors import StartError

VERSION = 2
"""Of the schema: the number of its migrations."""

WAL_BYTES = 64 * 2**20
"""The write-ahead log is cut back to this; under overlapping readers it once grew to 320 MB."""

BUSY_S = 1.0
"""One try waits so long for another process's lock. The writer tries again: this bounds how soon it can stop."""

BROKEN = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
"""Primary result codes of a file that no database can be read from."""


def connect(path: Path, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """Return a connection for writing; a new file is readable by its owner only, since it will hold prompts."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Only where it is missing: closing any descriptor of a file gives up all of the process's locks on it (POSIX).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    conn = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        conn.execute("PRAGMA synchronous = NORMAL")
        conn.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        abandon(conn)
        raise
    return conn


def refuse_newer(conn: sqlite3.Connection, path: Path) -> None:
    """Raise StartError where a newer mitmgate has written *path*."""
    (found,) = conn.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise StartError(
            f"{path} has schema version {found} and this mitmgate knows version {VERSION}: "
            "upgrade mitmgate, or name another file with --db"
        )


def is_broken(error: BaseException) -> bool:
    """True where *error* says that the file is no database, or a damaged one."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in BROKEN


def is_locked(error: BaseException) -> bool:
    """True where *error* says that another process holds the file."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def set_aside(path: Path, wall: float) -> Path:
    """Rename *path*, its ``-wal`` and ``-shm`` to ``NAME.broken-TIME`` (of *wall*, seconds since 1970); return it."""
    stamp = datetime.fromtimestamp(wall, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    number = 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.broken-{stamp}-{number}")
        number += 1
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside


def identity(path: Path) -> tuple[int, int] | None:
    """Return (device, inode) of the file that *path* leads to now, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def abandon(conn: sqlite3.Connection) -> None:
    """Close *conn* without a last checkpoint, which deletes ``-wal`` by name: that may be another file's by now."""
    with contextlib.suppress(sqlite3.Error):
        conn.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
    with contextlib.suppress(sqlite3.Error):
        conn.close()
