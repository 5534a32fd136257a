"""Row ids: UUIDv7 (RFC 9562), so that ids sort by the time of the request."""

import os
import time


def uuid7() -> str:
    """Return a lower-case UUIDv7; its first 48 bits are milliseconds since 1970."""
    random = int.from_bytes(os.urandom(10))
    high = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | random >> 68
    low = 0x8000_0000_0000_0000 | random & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
