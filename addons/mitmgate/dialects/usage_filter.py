"""Take the usage chunk that only the gateway asked for out of an OpenAI-style stream.

Runs on the way to the client, after ``ask`` put the question into the request. The extra event is the one whose
``choices`` are an empty list and whose ``usage`` is an object; everything else passes byte for byte.

Promise: an event that is whole leaves at once, comments with it; an unfinished one waits, up to ``HELD_BYTES`` and
never beyond the end of the stream. Linear time, whatever the cut.
"""

import re

from mitmgate.dialects.counts import parse

_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')

HELD_BYTES = 64 * 1024


def is_usage_chunk(payload: bytes) -> bool:
    """True for the data of the event that exists for the sake of its usage alone."""
    if not _NO_CHOICES.search(payload):
        return False
    try:
        chunk = parse(payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and bool(chunk.get("usage")) and "error" not in chunk


class UsageFilter:
    """``feed`` and ``end`` return what the client gets now; they never raise."""

    __slots__ = ("_after_cr", "_drop_lf", "_held", "_line", "_pass", "_size", "removed")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        """The whole lines of the event under way, line ends included; empty or under ``HELD_BYTES``."""
        self._size = 0
        """Bytes of these lines."""
        self._line = bytearray()
        """Of the line under way."""
        self._pass = False
        """The event under way is too long to hold: its rest goes on at once."""
        self._after_cr = False
        self._drop_lf = False
        """The event just taken out ended in CR; a LF that follows is part of it."""
        self.removed = 0
        """Events taken out."""

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        if data and self._after_cr and data[:1] == b"\n":
            if not self._drop_lf:
                self._put(out, b"\n")
            data = data[1:]
        if data:
            self._after_cr = self._drop_lf = False
        for line in data.splitlines(keepends=True):
            if line[-1:] not in b"\r\n":
                self._grow(out, line)
                break
            if self._line:
                line = bytes(self._line) + line
                self._line.clear()
            self._whole(out, line)
        if data:
            self._after_cr = data.endswith(b"\r")
        return b"".join(out)

    def end(self) -> bytes:
        """Return what is held; a usage chunk that lacks its blank line is one, too."""
        held = b"".join(self._held) + bytes(self._line)
        payload = _payload([*self._held, bytes(self._line)])
        self._held, self._size, self._pass = [], 0, False
        self._line.clear()
        if is_usage_chunk(payload):
            self.removed += 1
            return b""
        return held

    def _whole(self, out: list[bytes], line: bytes) -> None:
        """Take one whole line."""
        blank = not line.rstrip(b"\r\n")
        if self._pass:
            out.append(line)
            self._pass = not blank
        elif blank:
            self._close(out, line)
        elif not self._held and line[:1] == b":":  # a comment between events: life, and nothing to wait for
            out.append(line)
        else:
            self._held.append(line)
            self._size += len(line)
            self._release_if_long(out)

    def _close(self, out: list[bytes], blank: bytes) -> None:
        if is_usage_chunk(_payload(self._held)):
            self.removed += 1
            self._drop_lf = blank.endswith(b"\r")
        else:
            out.extend(self._held)
            out.append(blank)
        self._held, self._size = [], 0

    def _grow(self, out: list[bytes], piece: bytes) -> None:
        """Take a piece of a line whose end is still to come."""
        if self._pass:
            out.append(piece)
            return
        self._line += piece
        self._release_if_long(out)

    def _release_if_long(self, out: list[bytes]) -> None:
        if self._size + len(self._line) <= HELD_BYTES:
            return
        out.extend(self._held)
        out.append(bytes(self._line))
        self._held, self._size, self._pass = [], 0, True
        self._line.clear()

    def _put(self, out: list[bytes], line_feed: bytes) -> None:
        """Put a LF behind the CR that came in the piece before, wherever that line is now."""
        if self._held:
            self._held[-1] += line_feed
        else:
            out.append(line_feed)


def _payload(lines: list[bytes]) -> bytes:
    """Return the data of an event given as lines."""
    values = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    return b"\n".join(values)
