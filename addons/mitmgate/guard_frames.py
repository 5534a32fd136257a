"""Cut an answer into frames, and put a frame together again around another payload. Pure, on bytes.

A frame is what a provider says in one go, with all the bytes around it: a server-sent event, an element of the one
list that Gemini streams, a JSON line, a message of Amazon's event stream. ``payload`` is what is said, mostly JSON;
``saying`` returns the same frame with another payload. What says nothing (blanks, brackets) is a frame, too.

Promises: the raw bytes of all frames, joined, are the bytes that were fed; the cut cannot matter; linear time. What is
no frame of its kind (text between two elements, say) becomes the payload of one, so that nothing passes unseen. Differs
from ``dialects.sse`` and its kin, which read for the books and pass over what they do not know: here nothing may be
passed over, so a frame over ``MOST_BYTES`` and a wrong checksum raise ``Unreadable``.
"""

import binascii
import json
import re
from collections.abc import Callable
from typing import Literal, Protocol
from zlib import crc32

from mitmgate.dialects import eventstream, refusals
from mitmgate.dialects.base import Dialect
from mitmgate.dialects.counts import parse
from mitmgate.dialects.framing import BLANKS, LINE_TYPES
from mitmgate.dialects.sse import BOM, COLON
from mitmgate.errors import Refusal

MOST_BYTES = 32 << 20
"""Of one frame; a longer one is an attack or a fault."""

type Framing = Literal["events", "list", "lines", "messages", "body", "binary"]
"""``body``: one JSON value or a text, to be had whole; ``binary``: sound, pictures, files, where no text is."""

BINARY = ("audio/", "image/", "video/", "font/", "octet-stream", "application/zip", "application/pdf", "model/")
"""Parts of the content types in which no rule looks."""

EXCEPTION = {
    b":message-type": b"exception",
    b":exception-type": b"modelStreamErrorException",
    b":content-type": b"application/json",
}
"""Headers of what Amazon's SDKs raise in the middle of a stream."""


class Unreadable(Exception):
    """The answer cannot be looked into; the message ends the sentence "The answer cannot be read: …"."""


class Frame:
    """One frame; here one that carries nothing."""

    __slots__ = ("name", "payload", "raw")

    def __init__(self, raw: bytes, payload: bytes | None = None, name: str = "") -> None:
        self.raw = raw
        """All of its bytes, as they came."""
        self.payload = payload
        """What it says; None = nothing."""
        self.name = name
        """Of the event, empty where it has none."""

    def saying(self, payload: bytes) -> bytes:
        """Return the bytes of this frame with *payload* in place of its own."""
        return payload


class Cutter(Protocol):
    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that *data* completes. Raises ``Unreadable``."""

    def end(self) -> list[Frame]:
        """Return what is left: also a frame that lacks its end is one."""


# -- which framing it is ----


def framing_of(content_type: str, data: bytes, stream: bool) -> Framing | None:
    """Return how an answer is framed that begins with *data*; None while that is not known.

    Content types lie, so the first byte that is not blank decides, as for whoever reads for the books. *stream*: a
    stream was asked for; then also a lone object is taken for a line.
    """
    content_type = content_type.lower()
    if eventstream.TYPE in content_type:
        return "messages"
    if any(part in content_type for part in BINARY):
        return "binary"
    if BOM.startswith(data):
        return None
    start = data.removeprefix(BOM).lstrip(BLANKS)
    first = start[:1]
    if not first:
        return None
    if first == b"[":
        return "list" if stream else "body"
    if first == b"{":
        return "lines" if stream or any(word in content_type for word in LINE_TYPES) else "body"
    return "events" if first in b"deri:" or "event-stream" in content_type else "body"


# -- server-sent events ----

EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
"""A line's end and an empty line; atomic, for CRLF is one line end and not two."""
LINE_END = re.compile(rb"\r\n|\n|\r")
LINE_BREAKS = b"\r\n"
UNSAID = (b"id", b"retry", b"event")
"""Fields that say nothing to a person."""

type Spans = list[tuple[int, int]]


class Event(Frame):
    """A server-sent event."""

    __slots__ = ("asides", "values")

    def __init__(self, raw: bytes, values: Spans, asides: Spans, name: str) -> None:
        super().__init__(raw, b"\n".join([raw[start:end] for start, end in values]) if values else None, name)
        self.values = values
        """Where its data, line by line, stands in ``raw``."""
        self.asides = asides
        """Where comments stand beside it."""

    def saying(self, payload: bytes) -> bytes:
        lines = payload.split(b"\n")
        if len(lines) != len(self.values):  # text that is no JSON may have lost a line
            lines = [b" ".join(lines)] + [b""] * (len(self.values) - 1)
        return _spliced(self.raw, self.values, lines)

    def aside(self) -> bytes:
        """Return what its comments say."""
        return b"\n".join([self.raw[start:end] for start, end in self.asides])

    def without_asides(self) -> "Event":
        """Return it with empty comments."""
        return event_of(_spliced(self.raw, self.asides, [b""] * len(self.asides)))


def _spliced(raw: bytes, spans: Spans, pieces: list[bytes]) -> bytes:
    parts: list[bytes] = []
    done = 0
    for (start, end), piece in zip(spans, pieces, strict=True):
        parts += (raw[done:start], piece)
        done = end
    return b"".join((*parts, raw[done:]))


def event_of(raw: bytes) -> Event:
    """Return the event whose bytes are *raw*.

    What stands outside of any known field is part of what it says, and so are comments where they stand alone.
    """
    end = len(raw.rstrip(b"\r\n"))
    if raw.startswith(b"data: ") and raw.find(b"\n", 0, end) < 0 and raw.find(b"\r", 0, end) < 0:
        return Event(raw, [(6, end)], [], "")  # nearly all of them
    values: Spans = []
    asides: Spans = []
    name = b""
    at = len(BOM) if raw.startswith(BOM) else 0
    for line in raw[at:].splitlines(keepends=True):
        field, colon, _ = line.partition(b":")
        start, end = at + len(field) + len(colon), at + len(line.rstrip(b"\r\n"))
        at += len(line)
        if not field and colon:
            asides.append((start, end))
        elif field == b"data" and colon:
            values.append((start + 1 if raw[start : start + 1] == b" " else start, end))
        elif field == b"error" and colon:
            values.append((start, end))
        elif field == b"event" and colon:
            name = raw[start:end].strip()
        elif line.strip(b"\r\n") and not (field in UNSAID and colon):
            values.append((at - len(line), end))
    if not values:
        values, asides = asides, values
    return Event(raw, values, asides, name.decode("utf-8", "replace"))


class Events:
    """Cuts server-sent events. A comment between two of them goes on at once: it says that somebody lives."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.looked = 0
        """So far no end of an event was found."""

    def feed(self, data: bytes) -> list[Frame]:
        self.kept += data
        frames: list[Frame] = []
        while frame := self._next():
            frames.append(frame)
        if len(self.kept) > MOST_BYTES:
            raise Unreadable(f"an event of it is longer than {MOST_BYTES >> 20} MiB")
        return frames

    def _next(self) -> Frame | None:
        kept = self.kept
        if not kept:
            return None
        if kept[0] in LINE_BREAKS:
            return self._taken(len(kept) - len(kept.lstrip(LINE_BREAKS)), Frame)
        size = self._line() if kept[0] == COLON else self._event()
        if not size:
            self.looked = len(kept)
            return None
        return self._taken(size, event_of)

    def _line(self) -> int:
        """Return the length of the first line, 0 where it goes on."""
        end = LINE_END.search(self.kept, self.looked)
        return end.end() if end else 0

    def _event(self) -> int:
        """Return the length of the first event, 0 where it goes on."""
        start = max(self.looked - 3, 0)
        plain = self.kept.find(b"\n\n", start)
        if plain >= 0 and self.kept.find(b"\r", start, plain) < 0:
            return plain + 2
        end = EVENT_END.search(self.kept, start)
        return end.end() if end else 0

    def _taken(self, size: int, make: Callable[[bytes], Frame]) -> Frame:
        raw = bytes(self.kept[:size])
        del self.kept[:size]
        self.looked = 0
        return make(raw)

    def end(self) -> list[Frame]:
        return [self._taken(len(self.kept), event_of)] if self.kept else []


# -- values that follow each other: elements of one list, or lines ----

STRUCTURE = re.compile(rb'["{}\[\]]')
IN_STRING = re.compile(rb'["\\]')
BETWEEN = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n,\[\]\x1e]*")
"""What may stand between two values and says nothing; the last sets off values in a ``json-seq``."""
BLANK = re.compile(rb"[ \t\r\n]*")


class Element(Frame):
    """A value with what stands around it."""

    __slots__ = ("end", "start")

    def __init__(self, raw: bytes) -> None:
        between = BETWEEN.match(raw)
        self.start = between.end() if between and raw[between.end() : between.end() + 1] == b"{" else 0
        self.end = len(raw.rstrip(BLANKS)) or len(raw)
        super().__init__(raw, raw[self.start : self.end])

    def saying(self, payload: bytes) -> bytes:
        return self.raw[: self.start] + payload + self.raw[self.end :]


def element_of(raw: bytes) -> Frame:
    """Return the value in *raw*, or what stands between two."""
    between = BETWEEN.fullmatch(raw)
    return Frame(raw) if between else Element(raw)


class Values:
    """Cuts JSON objects that follow each other, of one list or of none."""

    def __init__(self, in_list: bool) -> None:
        self.base = 1 if in_list else 0
        """How many brackets are open between two values."""
        self.kept = bytearray()
        self.at = 0
        """Where to read on in ``kept``."""
        self.depth = 0
        self.in_string = False

    def feed(self, data: bytes) -> list[Frame]:
        self.kept += data
        frames: list[Frame] = []
        while (size := self._ended()) is not None:
            frames.append(self._taken(size))
        if self.kept and self._is_between() and BETWEEN.fullmatch(self.kept):
            frames.append(self._taken(len(self.kept)))
        if len(self.kept) > MOST_BYTES:
            raise Unreadable(f"a value of it is longer than {MOST_BYTES >> 20} MiB")
        return frames

    def _is_between(self) -> bool:
        """True between two lines, and behind a list; within one a comma waits for its element, so that another one may
        still be put before both.
        """
        return self.depth < self.base and b"]" in self.kept if self.base else self.depth == 0

    def _ended(self) -> int | None:
        """Return the length of the first value, and of the blanks around it; None where it goes on."""
        kept = self.kept
        while True:
            found = (IN_STRING if self.in_string else STRUCTURE).search(kept, self.at)
            if found is None:
                self.at = len(kept)
                return None
            mark = found[0]
            if mark == b"\\":
                if found.end() == len(kept):
                    self.at = found.start()
                    return None
                self.at = found.end() + 1
                continue
            self.at = found.end()
            if mark == b'"':
                self.in_string = not self.in_string
            elif mark in b"{[":
                self.depth += 1
            else:
                self.depth -= 1
                if self.depth == self.base and mark == b"}":
                    blank = BLANK.match(kept, self.at)
                    return blank.end() if blank else self.at

    def _taken(self, size: int) -> Frame:
        raw = bytes(self.kept[:size])
        del self.kept[:size]
        self.at = 0
        return element_of(raw)

    def end(self) -> list[Frame]:
        return [self._taken(len(self.kept))] if self.kept else []


# -- Amazon's event stream ----


class Message(Frame):
    """A message of Amazon's event stream; what InvokeModel wraps in base64 is unwrapped."""

    __slots__ = ("body", "head", "wrapped")

    def __init__(self, raw: bytes) -> None:
        self.head = eventstream.PRELUDE + int.from_bytes(raw[4:8])
        """Length of its prelude and headers."""
        self.body = raw[self.head : -eventstream.CHECKSUM]
        event = eventstream.event_of(raw)
        name = event.name.decode("utf-8", "replace") if event else ""
        self.wrapped = b""
        """The base64 in ``body`` that holds the payload."""
        payload = self.body
        if event and name == "chunk" and event.data != self.body:
            self.wrapped, payload = parse(self.body)["bytes"].encode(), event.data
        super().__init__(raw, payload or None, name)

    def saying(self, payload: bytes) -> bytes:
        if self.wrapped:
            payload = self.body.replace(self.wrapped, binascii.b2a_base64(payload, newline=False), 1)
        return message(self.raw[eventstream.PRELUDE : self.head], payload)


def message(headers: bytes, payload: bytes) -> bytes:
    """Return a message of the event stream, with its two checksums."""
    size = eventstream.PRELUDE + len(headers) + len(payload) + eventstream.CHECKSUM
    prelude = size.to_bytes(4) + len(headers).to_bytes(4)
    prelude += crc32(prelude).to_bytes(4)
    whole = prelude + headers + payload
    return whole + crc32(whole).to_bytes(4)


def text_headers(headers: dict[bytes, bytes]) -> bytes:
    """Return *headers*, whose values are text, as a message carries them."""
    parts = [
        bytes([len(name)]) + name + bytes([eventstream.STRING]) + len(value).to_bytes(2) + value
        for name, value in headers.items()
    ]
    return b"".join(parts)


class Messages:
    """Cuts the messages of Amazon's event stream; a wrong checksum ends it, for then no length can be trusted."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        self.kept += data
        frames: list[Frame] = []
        at = 0
        while (size := self._size_at(at)) and len(self.kept) - at >= size:
            raw = bytes(self.kept[at : at + size])
            if crc32(raw[: -eventstream.CHECKSUM]) != int.from_bytes(raw[-eventstream.CHECKSUM :]):
                raise Unreadable("a checksum in it is wrong")
            frames.append(Message(raw))
            at += size
        del self.kept[:at]
        return frames

    def _size_at(self, at: int) -> int:
        """Return the length of the message that begins at *at*; 0 where it is not known yet."""
        prelude = bytes(self.kept[at : at + eventstream.PRELUDE])
        if len(prelude) < eventstream.PRELUDE:
            return 0
        size = int.from_bytes(prelude[:4])
        least = eventstream.PRELUDE + int.from_bytes(prelude[4:8]) + eventstream.CHECKSUM
        if crc32(prelude[:8]) != int.from_bytes(prelude[8:]) or size < least:
            raise Unreadable("a checksum in it is wrong")
        if size > MOST_BYTES:
            raise Unreadable(f"a message of it is longer than {MOST_BYTES >> 20} MiB")
        return size

    def end(self) -> list[Frame]:
        if self.kept:
            raise Unreadable("it ends within a message")
        return []


CUTTERS: dict[Framing, Callable[[], Cutter]] = {
    "events": Events,
    "list": lambda: Values(in_list=True),
    "lines": lambda: Values(in_list=False),
    "messages": Messages,
}
"""The framings of streams; the others are no streams."""


def one_more(framing: Framing, frame: Frame, payload: bytes, behind: bytes, before: bytes) -> bytes:
    """Return a frame like *frame* that says *payload*, to stand *behind* some bytes and *before* others."""
    if framing == "list":
        return b",\r\n" + payload
    if framing == "lines":
        begins = b"" if not behind or behind[-1] in LINE_BREAKS else b"\n"
        return begins + payload + (b"" if before and before[0] in LINE_BREAKS else b"\n")
    made = frame.saying(payload)
    return made + b"\n" if made.endswith(b"\n\r") else made  # the other half of a CRLF came after the frame


def framing_named(content_type: str, dialect: Dialect) -> Framing | None:
    """Return the framing of a stream by its head alone; None for what is no stream."""
    if "event-stream" in content_type:
        return "events"
    if eventstream.TYPE in content_type:
        return "messages"
    if any(word in content_type for word in LINE_TYPES):
        return "lines"
    return "list" if dialect.operation == "generate_content" else None


def last_words(framing: Framing | None, dialect: Dialect, refusal: Refusal, log_id: str | None) -> bytes | None:
    """Return *refusal* as the last frame of an answer that has begun; None where nobody could read it there."""
    match framing:
        case "events":
            return dialect.error_event(refusal, log_id)
        case "list":
            return b",\r\n" + refusals.body(refusals.google(refusal, log_id)) + b"]"
        case "lines":
            return dialect.error_body(refusal, log_id) + b"\n"
        case "messages":
            told = json.dumps({"message": refusals.message(refusal, log_id)}).encode()
            return message(text_headers(EXCEPTION), told)
        case _:
            return None
