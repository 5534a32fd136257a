"""Cut a server-sent event stream into events, on bytes, however the network cut it.

Differs from the standard (https://html.spec.whatwg.org/multipage/server-sent-events.html) in three ways, each because
money hangs on it: the last event counts though no blank line follows, JSON that stands outside of any field (Google
tells of a failure that way) or in a field called ``error`` (older llama.cpp) is handed out as an event of its own, and
a payload over ``WHOLE_BYTES`` is handed out reduced (``skim``).

Promise: linear time in the bytes fed, whatever their cut; a bounded number of bytes kept, whatever is sent.
"""

from typing import NamedTuple

from mitmgate.dialects.skim import WHOLE_BYTES, Skimmer

LF, CR, COLON = 10, 13, 58
BOM = b"\xef\xbb\xbf"
FIELDS = frozenset({b"data", b"event", b"id", b"retry"})


class Event(NamedTuple):
    name: bytes
    """Of the ``event`` field, empty where there was none."""
    data: bytes
    """The ``data`` lines joined by LF; still undecoded, for a character may have come in two reads."""
    stray: bool = False
    """The data stood outside of any field."""


class Parser:
    """Feed it bytes, take events. Comments and fields without meaning here are passed over."""

    __slots__ = (
        "_after_cr",
        "_begun",
        "_data",
        "_long",
        "_name",
        "_reduced",
        "_size",
        "_skimmer",
        "_stray",
        "_tail",
        "_whole",
    )

    def __init__(self, whole_bytes: int = WHOLE_BYTES) -> None:
        self._whole = whole_bytes
        self._begun = False
        """The byte order mark is behind us."""
        self._after_cr = False
        """The last byte was CR: a LF that follows belongs to it."""
        self._tail = bytearray()
        """Of a line that has not ended yet."""
        self._long: bytes | None = None
        """The unfinished line is too long to keep: ``b"data"`` goes through the skimmer, ``b"other"`` is passed
        over.
        """
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._skimmer: Skimmer | None = None
        """Of a payload that is too long to keep."""
        self._reduced = b""
        self._stray: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that *data* completes."""
        if not self._begun:
            data = self._past_mark(data)
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == LF:
                data = data[1:]
        if not data:
            return []
        events: list[Event] = []
        lines = data.splitlines()  # of bytes: at CR, LF and CRLF only
        last = data[-1]
        self._after_cr = last == CR
        rest = b"" if last in (LF, CR) else lines.pop()
        if lines and (self._tail or self._long):
            self._take(self._complete(lines[0]), events)
            del lines[0]
        for line in lines:
            self._take(line, events)
        if rest:
            self._grow(rest)
        return events

    def end(self) -> list[Event]:
        """Return the events that still lack their blank line."""
        events: list[Event] = []
        if not self._begun:
            self._begun = True  # fewer bytes than a byte order mark has
        if self._tail or self._long:
            self._take(self._complete(b""), events)
        self._take(b"", events)
        return events

    def _past_mark(self, data: bytes) -> bytes:
        data = bytes(self._tail) + data
        self._tail.clear()
        if len(data) < len(BOM) and BOM.startswith(data):
            self._tail += data
            return b""
        self._begun = True
        return data.removeprefix(BOM)

    def _grow(self, piece: bytes) -> None:
        """Take a piece of a line whose end is still to come."""
        if self._long:
            if self._long == b"data":
                self._reduce(piece)
            return
        self._tail += piece
        if len(self._tail) <= self._whole:
            return
        line = bytes(self._tail)
        self._tail.clear()
        if not line.startswith(b"data:"):
            self._long = b"other"
            return
        self._long = b"data"
        self._add(_value(line, 5))
        self._skim()

    def _complete(self, end: bytes) -> bytes | None:
        """Return the whole line that *end* ends, None where the line was too long and is dealt with."""
        if self._long:
            self._grow(end)
            self._long = None
            return None
        line = bytes(self._tail) + end
        self._tail.clear()
        return line

    def _take(self, line: bytes | None, events: list[Event]) -> None:
        """Take one whole line; None for one that is dealt with."""
        if line is None:
            return
        if not line:
            if self._data or self._skimmer or self._stray:
                self._dispatch(events)
            self._name = b""
        elif line.startswith(b"data:"):
            if self._stray:
                self._dispatch_stray(events)
            self._add(_value(line, 5))
        elif line.startswith(b"event:"):
            if self._stray:
                self._dispatch_stray(events)
            self._name = _value(line, 6)
        elif line.startswith(b"error:") and line[6:].lstrip()[:1] == b"{":
            self._dispatch(events)
            events.append(Event(b"error", _value(line, 6), stray=True))
        elif line[0] == COLON or line.partition(b":")[0] in FIELDS:  # a comment, or of no meaning here
            pass
        elif self._stray or line.lstrip()[:1] in (b"{", b"["):
            self._add_stray(line)

    def _add(self, value: bytes) -> None:
        if self._skimmer:
            self._reduce(b"\n" + value)
            return
        self._data.append(value)
        self._size += len(value) + 1
        if self._size > self._whole:
            self._skim()

    def _skim(self) -> None:
        if self._skimmer is None:
            self._skimmer = Skimmer()
            self._reduce(b"\n".join(self._data))
            self._data = []

    def _reduce(self, piece: bytes) -> None:
        if self._skimmer:
            for document in self._skimmer.feed(piece):
                self._reduced = self._reduced or document

    def _add_stray(self, line: bytes) -> None:
        self._size += len(line) + 1
        if self._size <= self._whole:
            self._stray.append(line)

    def _dispatch(self, events: list[Event]) -> None:
        if self._stray:
            self._dispatch_stray(events)
        if self._skimmer:
            data = self._reduced or self._skimmer.end() or b"too long, and no JSON"
        elif len(self._data) == 1:
            data = self._data[0]
        else:
            data = b"\n".join(self._data)
        if data:
            events.append(Event(self._name, data))
        self._data, self._size = [], 0
        self._skimmer, self._reduced = None, b""

    def _dispatch_stray(self, events: list[Event]) -> None:
        events.append(Event(b"", b"\n".join(self._stray), stray=True))
        self._stray = []
        self._size = 0


def _value(line: bytes, start: int) -> bytes:
    """Return a field's value: one space after the colon is not part of it."""
    return line[start + 1 :] if line[start : start + 1] == b" " else line[start:]
