"""The way in for every command that only looks: a connection that cannot write, and knows how to show bodies.

Registers ``unzstd(body)`` and ``payload_text(encoding, body)``, and puts a view ``v_payloads`` of its own over the
stored one, so that large bodies are readable, too. Keep no statement open: a reader that holds a row holds the log.
"""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

from mitmgate.errors import StartError
from mitmgate.store import bodies, files

CACHE_KIB = 16 * 1024

V_PAYLOADS = """
CREATE TEMP VIEW v_payloads AS
SELECT exchange_id, kind, content_type, encoding, bytes, whole, body, payload_text(encoding, body) AS text
FROM main.payloads
"""


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection with ``sqlite3.Row`` rows; any thread may use it, one at a time.

    Raises StartError, in one sentence, where there is no database, no traces in it, or a newer mitmgate's.
    """
    if not path.exists():
        raise StartError(f"there is no trace database at {path} yet: start the gateway and send a request through it")
    try:
        return _prepared(_connected(path), path)
    except sqlite3.DatabaseError as e:
        if files.is_broken(e):
            raise StartError(f"{path} is no usable database ({e}); a starting gateway sets it aside") from e
        raise StartError(f"{path} cannot be read: {e}") from e


def _connected(path: Path) -> sqlite3.Connection:
    """Return a connection to *path*; one on a read-only medium, with no log beside it, is opened as unchanging."""
    address = f"file:{quote(str(path.resolve()))}?mode=ro"
    conn = sqlite3.connect(address, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return conn
    except sqlite3.DatabaseError as e:
        conn.close()
        if not isinstance(e, sqlite3.OperationalError) or files.identity(Path(f"{path}-wal")) is not None:
            raise
    return sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None, check_same_thread=False)


def _prepared(conn: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    try:
        files.refuse_newer(conn, path)
        found = conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'exchanges'").fetchone()
        if found is None:
            raise StartError(f"{path} holds no traces: name the trace database with --db")
        conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        conn.create_function("unzstd", 1, lambda body: bodies.unpack("zstd", body), deterministic=True)
        conn.create_function("payload_text", 2, bodies.text, deterministic=True)
        conn.execute(V_PAYLOADS)
        conn.execute("PRAGMA query_only = ON")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            conn.close()
        raise
    conn.row_factory = sqlite3.Row
    return conn
