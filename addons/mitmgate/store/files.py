"""The trace file as a file: open it, tell whether it is ours, notice that it was moved, set a broken one aside.

Nothing here knows a table. The version of the schema stands in ``PRAGMA user_version``, so that a reader can tell an
unknown one without sqlite-utils.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

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


class NotOurs(StartError):
    """The file is another program's, or of another version; the message says which file and what to do."""


def version_of(conn: sqlite3.Connection, path: Path, application: int) -> int | None:
    """Return the version of the tables in *path*, None where there are none.

    Raises ``NotOurs`` where they are not those of *application*, an ``application_id``: the folder may be an app's own,
    and its files may have our names.
    """
    # Tables first: another process may be making them, and whoever sees them sees the two numbers as well.
    (tables,) = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (found,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if tables and found != application:
        raise NotOurs(f"{path} is a database of another program: name a trace database in another folder with --db")
    return version if tables else None


def is_version(conn: sqlite3.Connection, path: Path, application: int, version: int) -> bool:
    """Return whether the tables of *version* are there; False where none are. Raises ``NotOurs`` for any others."""
    found = version_of(conn, path, application)
    if found not in (None, version):
        raise NotOurs(f"{path} has version {found} and this mitmgate knows version {version}: upgrade mitmgate")
    return found is not None


@contextlib.contextmanager
def looking(path: Path, mode: Literal["ro", "rw"], aside: str) -> Iterator[sqlite3.Connection]:
    """Open the file at *path* for a command, which never makes it, and close it.

    *aside* says when a gateway sets a broken one aside: "starts". Raises ``StartError``, in a sentence, where the file
    cannot be used.
    """
    address = f"file:{quote(str(path.resolve()))}?mode={mode}"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10.0, isolation_level=None)) as conn:
            yield conn
    except (sqlite3.Error, OSError) as e:
        if is_broken(e):
            raise StartError(f"{path} is no usable database ({e}); a gateway sets it aside when it {aside}") from e
        raise StartError(f"{path} cannot be used: {e}") from e


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
