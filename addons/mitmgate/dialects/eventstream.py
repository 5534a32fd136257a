"""Cut Amazon's binary event stream into events, on bytes, however the network cut it.

Source: https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html. A message is: its length, the length of
its headers, a checksum of these two, headers, payload, a checksum of all. InvokeModel wraps the model's own JSON in
``{"bytes": BASE64}``, which is undone here; a failure in mid-stream is a message of the type ``exception``.

Promise: after a checksum that is wrong nothing more is read, for the lengths cannot be trusted either; a message over
``WHOLE_BYTES`` is passed over, so that a bounded number of bytes is kept.
"""

import binascii
import json
from zlib import crc32

from mitmgate.dialects.counts import parse
from mitmgate.dialects.sse import Event

TYPE = "application/vnd.amazon.eventstream"

PRELUDE, CHECKSUM = 12, 4
WHOLE_BYTES = 1024 * 1024
STRING = 7
"""The type of a header's value that is text, with its length in two bytes."""
FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Type of a header's value -> its bytes, where the type decides."""


class Parser:
    """Feed it bytes, take events; the name of each is its ``:event-type`` or ``:exception-type``."""

    __slots__ = ("_kept", "_skip", "broken")

    def __init__(self) -> None:
        self._kept = bytearray()
        self._skip = 0
        """Bytes still to come of a message that is passed over."""
        self.broken = False
        """A checksum was wrong, or the stream ended within a message."""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that *data* completes."""
        if self.broken:
            return []
        if self._skip:
            passed = min(self._skip, len(data))
            self._skip -= passed
            data = data[passed:]
        self._kept += data
        events: list[Event] = []
        at = 0
        while (size := self._size_at(at)) and not self._skip:
            if len(self._kept) - at < size:
                break
            message = bytes(self._kept[at : at + size])
            at += size
            if crc32(message[:-CHECKSUM]) != int.from_bytes(message[-CHECKSUM:]):
                self.broken = True
                break
            if event := event_of(message):
                events.append(event)
        del self._kept[:at]
        return events

    def end(self) -> list[Event]:
        self.broken = self.broken or bool(self._kept) or bool(self._skip)
        return []

    def _size_at(self, at: int) -> int:
        """Return the length of the message that begins at *at*; 0 where it is not known yet, or not to be read."""
        prelude = bytes(self._kept[at : at + PRELUDE])
        if len(prelude) < PRELUDE or self.broken:
            return 0
        size = int.from_bytes(prelude[:4])
        if crc32(prelude[:8]) != int.from_bytes(prelude[8:]) or size < PRELUDE + CHECKSUM:
            self.broken = True
            return 0
        if size > WHOLE_BYTES:
            here = len(self._kept) - at
            self._skip = max(size - here, 0)
            del self._kept[at : at + min(size, here)]
            return self._size_at(at) if not self._skip else 0
        return size


def event_of(message: bytes) -> Event | None:
    """Return the event in a whole *message*; None where it has no payload."""
    end = PRELUDE + int.from_bytes(message[4:8])
    headers = _headers(message[PRELUDE:end])
    payload = message[end:-CHECKSUM]
    name = headers.get(b":event-type", b"")
    if headers.get(b":message-type") in (b"exception", b"error"):
        name = headers.get(b":exception-type") or headers.get(b":error-code") or b"exception"
        return Event(b"error", _told(name, payload))
    if name == b"chunk":
        payload = _unwrapped(payload)
    return Event(name, payload) if payload else None


def _headers(raw: bytes) -> dict[bytes, bytes]:
    """Return the headers whose values are text."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(raw):
        name_end = at + 1 + raw[at]
        name, kind = raw[at + 1 : name_end], raw[name_end : name_end + 1]
        at = name_end + 1
        if not kind:
            break
        if kind[0] in FIXED:
            at += FIXED[kind[0]]
            continue
        size = int.from_bytes(raw[at : at + 2])
        if kind[0] == STRING:
            found[name] = raw[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def _told(name: bytes, payload: bytes) -> bytes:
    """Return an exception in the form in which others tell of a failure."""
    try:
        body = parse(payload)
    except (ValueError, RecursionError):
        body = {}
    told = body if isinstance(body, dict) else {}
    return json.dumps({"error": {**told, "type": name.decode("utf-8", "replace")}}).encode()


def _unwrapped(payload: bytes) -> bytes:
    try:
        return binascii.a2b_base64(parse(payload)["bytes"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return payload
