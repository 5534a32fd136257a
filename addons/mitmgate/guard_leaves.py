"""Find the texts of a JSON body by their place in it, as a guard looks at them. Pure.

Every string is one, and in what an app fills in as it likes (tool arguments, results, metadata) every name and every
long number, too. Left out are the bytes of pictures and files, addresses of pictures, and what a provider has signed or
sealed. A text that is JSON itself, as tool arguments are, is looked at with its own escapes undone as well.

Positions are kept, so that what is found is changed where it stands and every other byte stays. Names that stand twice
in an object are both read: which of them a provider takes is its own affair.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

TOKEN = re.compile(r'"((?:[^"\\]++|\\.)*+)"(\s*:)?|[{}\[\]]|(?<![\w.+-])\d{9,20}(?![\w.+-])', re.DOTALL)
"""A string (a name, where a colon follows), a bracket, a long number."""

ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.", re.DOTALL)

FREE = frozenset({"arguments", "args", "metadata", "response", "parameters", "input_schema", "inputSchema", "json"})
"""Objects that an app or a model fills in: every name in them is theirs."""
FREE_OBJECTS = frozenset({"input", "output", "result"})
"""The same, where the value is an object; lists of these names hold turns."""

SEALED = frozenset({"signature", "thoughtSignature", "thought_signature", "encrypted_content", "encrypted_index"})
"""Nobody but the provider can read these, and none may change them."""
SIGNED = frozenset({"thinking"})
"""These are read, but a signature goes with them: the provider takes them unchanged or not at all."""

FILES = frozenset({"data", "file_data", "bytes", "b64_json", "image", "audio", "images", "image_base64"})
ADDRESSES = frozenset({"url", "uri", "image_url", "file_url", "fileUri", "file_uri"})
DATA_URL = re.compile(r"data:[\w/+.\-]{0,80}[;,]")
ADDRESS = re.compile(r"(?:https?|gs|s3)://|data:[\w/+.\-]{0,80}[;,]")
BASE64 = re.compile(r"[A-Za-z0-9+/_\-]{256,}={0,2}")
LONG = 4096
"""A word of base64 that is longer is a file wherever it stands."""

DEPTH = 3
"""JSON within JSON within JSON is looked at, and no deeper."""


@dataclass(slots=True)
class Leaf:
    """A text to look at."""

    start: int
    """Where it stands in the body, quotes excluded."""
    end: int
    text: str
    """Escapes undone."""
    name: str = ""
    """Of the member that holds it, where an app chose that."""
    signed: bool = False
    is_json: bool = False
    """The text is JSON, in a string or as it stands."""
    undone: "Undone | None" = None
    """None: it stands in the body as it is."""

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Return where in the body the characters from *start* up to *end* of ``text`` stand."""
        if self.undone is None:
            return self.start + start, self.start + end
        return self.start + self.undone.raw(start), self.start + self.undone.raw(end)

    def quote(self, start: int, end: int) -> str:
        """Return what has to stand around a word in place of a number of JSON; empty for any other place."""
        if not self.is_json or not self.text[start:end].isdigit():
            return ""
        if (start, end) not in {token.span() for token in TOKEN.finditer(self.text)}:
            return ""
        return '"' if self.undone is None else '\\"'


class Undone:
    """The inside of a JSON string with its escapes undone; an escape that means nothing stays as it is."""

    def __init__(self, written: str) -> None:
        self.written = written
        try:
            self.text: str = json.loads(f'"{written}"', strict=False)
        except ValueError:
            self.text = ESCAPE.sub(lambda escape: _character(escape[0]), written)

    def raw(self, at: int) -> int:
        """Return where the character at *at* of ``text`` was written; at the end of the text, where that ended."""
        plain, written = self._places
        n = bisect_right(plain, at) - 1
        return written[n] + at - plain[n]

    @cached_property
    def _places(self) -> tuple[list[int], list[int]]:
        """Where each escape ends: in ``text``, and as written. Asked for only where something was found."""
        plain, written = [0], [0]
        for escape in ESCAPE.finditer(self.written):
            before = escape.start() - written[-1]
            plain.append(plain[-1] + before + len(_character(escape[0])))
            written.append(escape.end())
        return plain, written


def _character(escape: str) -> str:
    try:
        return str(json.loads(f'"{escape}"'))
    except ValueError:
        return escape


@dataclass(slots=True)
class _Inside:
    """An object or list that is being read."""

    name: str
    free: bool


def leaves_of(body: str, free: bool = False, depth: int = DEPTH) -> Iterator[Leaf]:
    """Yield the texts of *body*, JSON, in order; *free*: it is an app's own throughout."""
    within: list[_Inside] = [_Inside("", free)]
    name = ""
    for token in TOKEN.finditer(body):
        first = body[token.start()]
        inside = within[-1]
        if first == '"':
            if token[2] is not None:
                name = token[1]
                if inside.free:
                    yield from _strings(token, "", True, depth)
            elif not _is_left_out(name, token[1], inside.free):
                yield from _strings(token, name, inside.free, depth)
        elif first in "{[":
            is_free = inside.free or name in FREE or (first == "{" and name in FREE_OBJECTS)
            within.append(_Inside(name, is_free))
        elif first in "}]":
            if len(within) > 1:
                name = within.pop().name
        elif inside.free:
            yield Leaf(token.start(), token.end(), token[0], name, is_json=True)


def _strings(token: re.Match[str], name: str, free: bool, depth: int) -> Iterator[Leaf]:
    raw = token[1]
    start, end = token.span(1)
    plain = Undone(raw) if "\\" in raw else None
    leaf = Leaf(start, end, plain.text if plain else raw, name if free else "", undone=plain)
    leaf.signed = name in SIGNED and not free
    leaf.is_json = plain is not None and leaf.text.lstrip()[:1] in ("{", "[")
    yield leaf
    if leaf.is_json and depth > 1 and "\\" in leaf.text:
        for inner in leaves_of(leaf.text, True, depth - 1):
            if inner.undone:  # the others were looked at with all of it
                yield Leaf(0, 0, inner.text, inner.name, leaf.signed, undone=_Nested(leaf, inner))


class _Nested(Undone):
    """A text whose escapes were undone twice: a place in it is asked of the inner one, then of the outer."""

    def __init__(self, outer: Leaf, inner: Leaf) -> None:
        self.outer, self.inner, self.text = outer, inner, inner.text

    def raw(self, at: int) -> int:
        within, _ = self.inner.place(at, at)
        place, _ = self.outer.place(within, within)
        return place


def _is_left_out(name: str, raw: str, free: bool) -> bool:
    """Return whether a string holds no text that anybody could read or change."""
    if free:
        return len(raw) > LONG and BASE64.fullmatch(raw) is not None
    if name in SEALED:
        return True
    if name in ADDRESSES:
        return ADDRESS.match(raw) is not None
    is_long = len(raw) > (256 if name in FILES else LONG)
    return is_long and bool(DATA_URL.match(raw) or BASE64.fullmatch(raw))
