"""The file of the keys that the gateway itself gave out, ``keys.db`` beside the trace database.

A key is seen once, by whoever makes it. What is kept is its HMAC-SHA256 under the home's secret: a copy of the file
opens nothing, and a name that is looked for in it betrays nothing by the time that takes. A revoked key stays in the
file, so that its holder hears why; its name is free again.

Synchronous. The running gateway looks at the file by ``gateway_keys``, the ``keys`` command by way of this module.
"""

import hmac
import json
import secrets
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mitmgate.errors import StartError
from mitmgate.store import files
from mitmgate.store.answer_file import transaction

NAME = "keys.db"

PREFIX = "mg-"
"""How every key begins that was made here; no provider's does."""

RANDOM_BYTES = 32

APPLICATION = 0x6D67_6B79
"""``PRAGMA application_id``: the folder may be an app's own, and ``keys.db`` that app's."""

VERSION = 1

SCHEMA = """
CREATE TABLE keys (
    digest BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    tenant TEXT,
    user TEXT,
    models TEXT NOT NULL,
    made_at REAL NOT NULL,
    expires_at REAL,
    revoked_at REAL
) WITHOUT ROWID;
CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;
CREATE TABLE uses (digest BLOB PRIMARY KEY, used_at REAL NOT NULL) WITHOUT ROWID;
"""
"""``uses`` knows the policy's own keys, too. ``models`` is a JSON list of globs."""

COLUMNS = "digest, name, tenant, user, models, made_at, expires_at, revoked_at"

type State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Made:
    """A key of the file. Moments are seconds since 1970."""

    digest: bytes
    name: str
    tenant: str | None
    user: str | None
    models: tuple[str, ...]
    """Globs of the models that it may ask for; empty = all."""
    made_at: float
    expires_at: float | None = None
    """None = never."""
    revoked_at: float | None = None

    def state(self, wall: float) -> State:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= wall else "active"


# -- keys -------------------------------------------------------------------------------------------------------------


def new_key() -> str:
    """Return a fresh key: ``mg-`` and 256 random bits. It has a digit, by which redaction tells it from a word."""
    while True:
        key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
        if any(char.isdigit() for char in key):  # of 1,500 keys one has none
            return key


def digest_of(secret: bytes, key: str) -> bytes:
    """Return what stands for *key* in the file: useless without the home's *secret*."""
    return hmac.digest(secret, key.encode("utf-8", "surrogatepass"), "sha256")


# -- the file ---------------------------------------------------------------------------------------------------------


def beside(database: Path) -> Path:
    """Return where the keys lie that belong to the trace *database*."""
    return database.with_name(NAME)


def open_file(path: Path) -> sqlite3.Connection:
    """Return a connection for writing to the file at *path*, made if missing.

    What it commits is on the disk: a power cut brings no revoked key back. Raises sqlite3.Error or OSError where there
    can be none, ``StartError`` where the file is somebody else's or a newer mitmgate's.
    """
    conn = files.connect(path)
    try:
        conn.execute("PRAGMA synchronous = FULL")
        _prepare(conn, path)
    except BaseException:
        files.abandon(conn)
        raise
    return conn


def look_into(path: Path, wait_s: float) -> sqlite3.Connection | None:
    """Return a connection for reading, which waits for a lock *wait_s* at most; None where there are no keys yet.

    Raises as ``open_file`` does.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return None
    address = f"file:{quote(str(path.resolve()))}?mode=rw"  # a reader of a write-ahead log writes beside it
    conn = sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)
    try:
        conn.execute("PRAGMA query_only = ON")
        if _is_ours(conn, path):
            return conn
    except BaseException:
        files.abandon(conn)
        raise
    files.abandon(conn)  # somebody is about to make it
    return None


def _prepare(conn: sqlite3.Connection, path: Path) -> None:
    """Make the tables where they are missing. Of several processes one does, the others wait."""
    if _is_ours(conn, path):
        return
    conn.execute("PRAGMA journal_mode = WAL")
    with transaction(conn):
        if _is_ours(conn, path):
            return
        for statement in SCHEMA.split(";\n"):
            conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {APPLICATION}")
        conn.execute(f"PRAGMA user_version = {VERSION}")


def _is_ours(conn: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables are there; raises ``StartError`` where they are no keys, or a newer mitmgate's."""
    found = files.version_of(conn, path, APPLICATION)
    if found is not None and found > VERSION:
        raise StartError(f"{path} was written by a newer mitmgate; upgrade this one")
    return found is not None


# -- reading ----------------------------------------------------------------------------------------------------------


def find(conn: sqlite3.Connection, digest: bytes) -> Made | None:
    """Return the key that *digest* stands for."""
    row = conn.execute(f"SELECT {COLUMNS} FROM keys WHERE digest = ?", (digest,)).fetchone()
    return _made(row) if row and hmac.compare_digest(row[0], digest) else None


def listed(conn: sqlite3.Connection) -> list[Made]:
    """Return all keys, by name; of one name the newest first."""
    return [_made(row) for row in conn.execute(f"SELECT {COLUMNS} FROM keys ORDER BY name, made_at DESC")]


def uses(conn: sqlite3.Connection) -> dict[bytes, float]:
    """Return when each key was last used, seconds since 1970; digest -> moment."""
    return dict(conn.execute("SELECT digest, used_at FROM uses").fetchall())


def live(path: Path, wall: float) -> int:
    """Return how many keys in the file at *path* open a door at *wall*. Raises as ``open_file`` does."""
    conn = look_into(path, files.BUSY_S)
    if conn is None:
        return 0
    with closing(conn):
        return sum(made.state(wall) == "active" for made in listed(conn))


def _made(row: tuple[bytes, str, str | None, str | None, str, float, float | None, float | None]) -> Made:
    digest, name, tenant, user, models, made_at, expires_at, revoked_at = row
    return Made(digest, name, tenant, user, tuple(json.loads(models)), made_at, expires_at, revoked_at)


# -- writing ----------------------------------------------------------------------------------------------------------


def add(conn: sqlite3.Connection, made: Made) -> None:
    """Write down a new key. Raises ``StartError`` where its name belongs to one that still opens the doors."""
    values = (
        made.digest, made.name, made.tenant, made.user, json.dumps(made.models), made.made_at, made.expires_at,
        made.revoked_at,
    )  # fmt: skip
    with transaction(conn):
        conn.execute(
            "UPDATE keys SET revoked_at = expires_at WHERE name = ? AND revoked_at IS NULL AND expires_at <= ?",
            (made.name, made.made_at),
        )
        try:
            conn.execute(f"INSERT INTO keys ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError as e:
            raise StartError(
                f"there is a key {made.name!r} already; take another name, or `mitmgate keys revoke {made.name}` first"
            ) from e


def revoke(conn: sqlite3.Connection, name: str, wall: float) -> Made | None:
    """Let the key *name* open nothing from now on, and return it; None where there is no such key, or no more."""
    with transaction(conn):
        row = conn.execute(
            f"UPDATE keys SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL RETURNING {COLUMNS}", (wall, name)
        ).fetchone()
    return _made(row) if row else None


def note_uses(conn: sqlite3.Connection, used: Mapping[bytes, float]) -> None:
    """Write down when keys were used; digest -> seconds since 1970."""
    with transaction(conn):
        conn.executemany(
            "INSERT INTO uses VALUES (?, ?)"
            " ON CONFLICT (digest) DO UPDATE SET used_at = max(used_at, excluded.used_at)",
            list(used.items()),
        )
