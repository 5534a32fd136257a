"""How a body lies in ``payloads``: small ones as plain text, so that the ``sqlite3`` shell can read them, large ones
as zstd.

The column ``encoding`` says which: ``identity`` or ``zstd``. Text that SQLite can hold as such is stored as TEXT;
bytes that are not UTF-8, or carry a NUL (where the shell would stop), are stored as BLOB.
"""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from mitmgate.store.rows import Value

Unreadable = zstd.ZstdError
"""What ``unpack`` raises for a body that is damaged."""

PLAIN_BYTES = 32 * 1024
"""Up to here a body is stored plain. Measured: below it zstd halves a body, above 64 KiB it makes a sixth of it."""


def pack(body: bytes) -> tuple[str, str | bytes]:
    """Return (encoding, what to store) for *body*."""
    if len(body) > PLAIN_BYTES:
        return "zstd", zstd.compress(body, 3)
    if b"\0" in body:
        return "identity", body
    try:
        return "identity", body.decode()
    except UnicodeDecodeError:
        return "identity", body


def unpack(encoding: Value, stored: Value) -> bytes:
    """Return the body as it came; *stored* is a ``payloads.body`` and *encoding* the column beside it."""
    if stored is None:
        return b""
    data = stored if isinstance(stored, bytes) else str(stored).encode()
    return zstd.decompress(data) if encoding == "zstd" else data


def text(encoding: Value, stored: Value) -> str:
    """Return the body as text for people: never raises, what is not UTF-8 shows as ``�``."""
    try:
        return unpack(encoding, stored).decode(errors="replace")
    except Unreadable as e:
        return f"[unreadable: {e}]"
