"""Look at whole bodies: what is found where, and the same body without it. Pure.

A JSON body is looked at text by text (``guard_leaves``), any other text as it stands, of a multipart body the parts
that are text. What is found has its place in the body's own bytes, so that nothing but it changes. Files in a multipart
body, pictures, sound and other bytes that are no text are not looked at.

Raises ``Unreadable`` where a body should be text and cannot be read as such.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mitmgate.dialects.inflate import inflater
from mitmgate.guard_find import Finders, Found, clusters
from mitmgate.guard_leaves import Leaf, Undone, leaves_of

MOST_BYTES = 32 << 20
"""A larger body is not looked at."""
STEP_BYTES = 64 * 1024
"""Inflated at a time, so that a bomb is noticed early."""

BINARY = re.compile(
    r"^(?:image|audio|video|font)/|^application/(?:octet-stream|pdf|zip|gzip|x-tar|vnd\.amazon|x-protobuf|grpc)"
)
"""Content types whose bytes say nothing to a pattern."""
BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
HEADER = re.compile(rb"(?im)^content-type:[ \t]*([^\r\n]*)")
FILE = re.compile(rb"(?im)^content-disposition:[^\r\n]*\bfilename\*?=")


class Unreadable(Exception):
    """A body that a rule has to read, and cannot; the message ends the sentence "The request cannot be checked: …"."""


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of a body that is one text."""

    start: int
    """Bytes of the body."""
    end: int
    kind: Literal["json", "text"]
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class Place:
    """One finding in a body."""

    found: Found
    """By its place in the region's text."""
    text: str
    """What was found, escapes undone; never kept."""
    quote: str = ""
    """It is a number of JSON: this has to stand around a word in its place."""
    signed: bool = False
    """The provider takes it unchanged or not at all."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a body has shown."""

    body: bytes
    """Plain: its content coding undone."""
    regions: list[tuple[Region, str, list[Place]]]
    """Of those in which something was found: where, the text, what."""

    @property
    def places(self) -> Iterator[Place]:
        for _, _, places in self.regions:
            yield from places

    def without(self, hides: Callable[[Found], bool], word: Callable[[Place], str]) -> bytes:
        """Return the body with a *word* in place of every finding that *hides*; the same object where there is none."""
        pieces: list[bytes] = []
        done = 0
        for region, text, places in self.regions:
            hidden = [place for place in places if hides(place.found)]
            if hidden:
                new = _replaced(text, hidden, word).encode(region.encoding, _errors(region))
                pieces += (self.body[done : region.start], new)
                done = region.end
        return b"".join((*pieces, self.body[done:])) if pieces else self.body


def plain(body: bytes, coding: str | None) -> bytes:
    """Return *body* without its content *coding*, a header's value. Raises ``Unreadable``."""
    if coding:
        body = _inflated(body, coding)
    if len(body) > MOST_BYTES:
        raise Unreadable(f"its body is larger than {MOST_BYTES >> 20} MiB")
    return body


def look(body: bytes, content_type: str, finders: Finders, active: Sequence[int]) -> Look:
    """Return what the rules *active* find in *body*, plain. Raises ``Unreadable``."""
    shown: list[tuple[Region, str, list[Place]]] = []
    for region in regions_of(body, content_type):
        text = body[region.start : region.end].decode(region.encoding, _errors(region))
        leaves = list(leaves_of(text)) if region.kind == "json" else [Leaf(0, len(text), text)]
        places = list(_places(leaves, finders, active))
        if places:
            places.sort(key=lambda place: (place.found.start, -place.found.end))
            shown.append((region, text, places))
    return Look(body, shown)


def _places(leaves: list[Leaf], finders: Finders, active: Sequence[int]) -> Iterator[Place]:
    parts = [(f"{leaf.name}: " if leaf.name else "", leaf.text) for leaf in leaves]
    seen: set[Found] = set()
    for leaf, found in zip(leaves, finders.find_each(parts, active), strict=True):
        for one in found:
            start, end = leaf.place(one.start, one.end)
            placed = Found(start, end, one.kind, one.rule)
            if placed not in seen:  # once in JSON inside of a string, once in that string
                seen.add(placed)
                quote = leaf.quote(one.start, one.end)
                yield Place(placed, leaf.text[one.start : one.end], quote, leaf.signed)


def _replaced(text: str, hidden: list[Place], word: Callable[[Place], str]) -> str:
    by_found = {place.found: place for place in reversed(hidden)}
    pieces: list[str] = []
    done = 0
    for first, end in clusters(place.found for place in hidden):
        place = by_found[first]
        if end > first.end:  # what other rules found goes on behind it
            place = replace(place, text=Undone(text[first.start : end]).text)
        pieces += (text[done : first.start], place.quote, word(place), place.quote)
        done = end
    return "".join((*pieces, text[done:]))


# -- what a body is made of -------------------------------------------------------------------------------------------


def regions_of(body: bytes, content_type: str) -> list[Region]:
    """Return the pieces of *body* that are text, in order. Raises ``Unreadable``."""
    kind = content_type.lower()
    if not body.strip():
        return []
    if kind.startswith("multipart/"):
        return list(_parts(body, content_type))
    if is_binary(kind):
        return []
    return _text(body, 0, kind)


def is_binary(content_type: str) -> bool:
    """Return whether a body of this type says nothing to a pattern."""
    return BINARY.search(content_type.lower()) is not None


def _text(body: bytes, start: int, content_type: str) -> list[Region]:
    """Return the region of *body*, which begins at *start* of the whole."""
    end = start + len(body)
    if body.lstrip()[:1] in (b"{", b"[", b'"') or "json" in content_type or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = json.detect_encoding(body)
        try:
            json.loads(body.decode(encoding, "surrogatepass"))
            return [Region(start, end, "json", encoding)]
        except (ValueError, RecursionError) as error:
            if "json" in content_type and "ndjson" not in content_type and "jsonl" not in content_type:
                raise Unreadable("its body is not JSON, though its content-type says so") from error
    if "json" in content_type or _is_lines(body):
        return list(_lines(body, start))
    if b"\0" in body[:1024]:
        return []  # bytes, whatever their type says
    return [Region(start, end, "text")]


def _is_lines(body: bytes) -> bool:
    """Return whether *body* looks like JSON, one object a line: the input of a batch."""
    first = body.lstrip().split(b"\n", 1)[0].strip()
    return first.startswith(b"{") and first.endswith(b"}")


def _lines(body: bytes, start: int) -> Iterator[Region]:
    """Yield each line: as JSON where it is that, else as text."""
    for line in body.splitlines(keepends=True):
        stop = start + len(line)
        if line.strip():
            try:
                json.loads(line)
                yield Region(start, stop, "json")
            except (ValueError, RecursionError):
                yield Region(start, stop, "text")
        start = stop


def _parts(body: bytes, content_type: str) -> Iterator[Region]:
    """Yield the text parts of a multipart *body*."""
    named = BOUNDARY.search(content_type)
    if not named:
        raise Unreadable("its body is multipart without a boundary")
    mark = b"--" + named[1].strip().encode()
    at = body.find(mark)
    if at < 0:
        raise Unreadable("its body has none of the parts that its content-type announces")
    while at >= 0:
        following = body.find(mark, at + len(mark))
        begin = at + len(mark)
        part = body[begin : following if following >= 0 else len(body)]
        head, gap, content = _divided(part)
        if gap:
            kind = HEADER.search(head)
            told = kind[1].decode("latin-1").lower() if kind else ""
            if told.startswith(("text/", "application/json", "application/x-ndjson", "application/jsonl")) or (
                not FILE.search(head) and not is_binary(told)
            ):
                yield from _part_text(content, begin + len(head) + len(gap), told)
            elif _is_lines(content):
                yield from _lines(content, begin + len(head) + len(gap))  # a batch file, whatever its type says
        at = following


def _divided(part: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the head of a *part*, the empty line, and its content."""
    for gap in (b"\r\n\r\n", b"\n\n"):
        head, found, content = part.partition(gap)
        if found:
            return head, found, content
    return part, b"", b""


def _part_text(content: bytes, start: int, content_type: str) -> list[Region]:
    stripped = content.rstrip(b"\r\n")
    if not stripped.strip():
        return []
    return _text(stripped, start, content_type)


def _errors(region: Region) -> str:
    """Return how bytes that are no text of the encoding are kept as they are."""
    return "surrogatepass" if region.kind == "json" else "surrogateescape"


def _inflated(body: bytes, coding: str) -> bytes:
    undo = inflater(coding)
    if undo is None:
        raise Unreadable(f"its content-encoding {coding[:80]!r} is not known here")
    pieces = bytearray()
    for at in range(0, len(body), STEP_BYTES):
        pieces += undo.feed(body[at : at + STEP_BYTES])
        if undo.dead:
            raise Unreadable(f"its body could not be inflated because {undo.dead}")
        if len(pieces) > MOST_BYTES:
            break
    if body and not pieces:
        raise Unreadable("its body could not be inflated because it ends before anything can be read")
    return bytes(pieces)
