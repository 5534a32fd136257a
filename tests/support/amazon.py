"""Messages of Amazon's binary event stream, written by hand."""

import base64
import json
from typing import Any
from zlib import crc32


def message(payload: Any, **headers: str) -> bytes:
    """Return one message; a header is given as ``event_type="metadata"``."""
    head = b""
    for key, value in headers.items():
        name = b":" + key.replace("_", "-").encode()
        head += bytes([len(name)]) + name + b"\x07" + len(value).to_bytes(2) + value.encode()
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    prelude = (16 + len(head) + len(body)).to_bytes(4) + len(head).to_bytes(4)
    prelude += crc32(prelude).to_bytes(4)
    whole = prelude + head + body
    return whole + crc32(whole).to_bytes(4)


def event(name: str, payload: Any) -> bytes:
    return message(payload, message_type="event", event_type=name)


def chunk(inner: Any) -> bytes:
    """Return the model's own JSON as InvokeModel wraps it."""
    return event("chunk", {"bytes": base64.b64encode(json.dumps(inner).encode()).decode()})


def exception(name: str, payload: Any) -> bytes:
    return message(payload, message_type="exception", exception_type=name)
