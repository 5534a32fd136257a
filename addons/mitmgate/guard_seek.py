"""Look for one form of a finding: where it stands in a text, and where more text could still make one.

A pattern is asked only where something cheap says that it may match: a literal that stands in each match, looked for
in the text, in the text in lower case, or in its *shape*, where each digit is ``0`` and each capital ``A``:
``078-05-1120`` is ``000-00-0000`` there, and ten kilobytes are searched for that in two microseconds.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import regex

from mitmgate import guard_kinds
from mitmgate.guard_kinds import ESCAPED, Form

BREAKS = rf"""\s"'`\\,;&<>(){{}}\[\]|{ESCAPED}"""
"""Characters that stand in no word (see ``Form.made_of``)."""
BREAK = regex.compile(rf"(?r)[{BREAKS}]")
"""Finds the last one."""
STIRS = re.compile(rf"[0-9@]|[^{BREAKS}]{{15}}|-----")
"""What a text has in it that holds a finding of any kind, whole or but for its end."""

NUMBER_CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ ().+-/"
"""What numbers are made of."""
NUMBER_LENGTH = 64
"""No number is longer, with the two characters that are looked at behind it."""
WORD_LENGTH = 192
"""No word is longer, unless it is endless."""
SHORT = 1024
"""Up to so many characters one pass for all literals costs less than one for each."""
REACH = 2 * NUMBER_LENGTH
"""Around a literal so far is looked at, in steps of ``NUMBER_LENGTH``."""

SHAPES = bytes.maketrans(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0" * 10 + b"A" * 26)
NUMBER = re.compile(rb"0(?<![\w.\-]0)[0 ().+\-/]{7,}0")
"""What may be a number, in a shape; those in the middle of a UUID are not looked at."""
FRACTION = re.compile(rb"0{1,8}\.0+")
"""No number that is looked for is written so."""
LONG = 9
"""Digits of a number that is long."""


class Hit(NamedTuple):
    start: int
    end: int
    kind: str


class Views:
    """A text as it is searched for literals; each view has the same length."""

    __slots__ = ("_folded", "_long", "_shape", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._folded: str | None = None
        self._shape: bytes | None = None
        self._long: bytes | None = None

    @property
    def folded(self) -> str:
        """The text in lower case."""
        if self._folded is None:
            text = self.text
            self._folded = text.lower() if text.isascii() else "".join(map(_lower, text))
        return self._folded

    @property
    def shape(self) -> bytes:
        if self._shape is None:
            self._shape = self.text.encode("latin-1", "replace").translate(SHAPES)
        return self._shape

    @property
    def long(self) -> bytes:
        """The shapes of numbers with nine digits or more, one a line."""
        if self._long is None:
            numbers = [one for one in NUMBER.findall(self.shape) if one.count(b"0") >= LONG]
            self._long = b"\n".join([one for one in numbers if not FRACTION.fullmatch(one)])
        return self._long


def _lower(character: str) -> str:
    lower = character.lower()
    return lower if len(lower) == 1 else character  # of a dotted capital I there are two


class Seeker:
    """One form: finds it, and tells where it may still be beginning."""

    def __init__(self, form: Form, timeout_s: float | None = None) -> None:
        self.form = form
        self.timeout_s = timeout_s
        self.view = "long" if form.long and form.view == "shape" else form.view
        """Where its literals have to stand for it to be asked."""
        self.near: list[Any] = [literal.encode() for literal in form.near] if form.view == "shape" else [*form.near]
        self.pattern = regex.compile(form.pattern)
        # It never matches, so `regex` goes on to every place from which it runs into the text's end: two characters
        # behind a match are asked for because a form may look that far ahead.
        self.open = regex.compile(rf"(?:{form.pattern})(?s:.){{2}}(?!)")

    @classmethod
    def of(cls, kind: str, pattern: str, timeout_s: float) -> "Seeker":
        """Return the seeker of a policy's own *pattern*."""
        return cls(Form(kind, pattern, made_of="anything"), timeout_s)

    def is_near(self, views: Views) -> bool:
        """Return whether a match may stand in the text."""
        if self.form.long and not views.long:
            return False
        view = getattr(views, self.view)
        for literal in self.near:  # noqa: SIM110  (twice as fast as any())
            if literal in view:
                return True
        return False

    def hits(self, views: Views, start: int) -> Iterator[Hit]:
        """Yield what is found of what begins at *start* or later."""
        text, form = views.text, self.form
        if form.lead is not None:
            for at in self._led(views, start):
                if (match := self.pattern.match(text, at)) and (hit := self._judged(text, at, match.end())):
                    yield hit
        elif form.view == "shape":
            for at, stop in self._windows(views, start):
                yield from self._search(views, at, stop)
        else:
            yield from self._search(views, start, None)

    def opens(self, views: Views, start: int) -> int:
        """Return the first place from *start* on where more text could make a match; the text's length if nowhere."""
        text = views.text
        if self.form.lead is not None:
            places = (at for at in self._led(views, start) if self.open.match(text, at, partial=True))
            return min(places, default=len(text))
        match = self.open.search(text, start, partial=True, timeout=self.timeout_s)
        return match.start() if match else len(text)

    def _search(self, views: Views, at: int, stop: int | None) -> Iterator[Hit]:
        text = views.text
        while match := self.pattern.search(text, at, stop, timeout=self.timeout_s):
            begin, end = match.span()
            if stop is not None and end > stop - 2 and stop < len(text):
                return  # it may go on behind the window, and lies in the next one as a whole
            hit = self._judged(text, begin, end) if end > begin and self._has_literal(views, begin, end) else None
            if hit:
                yield hit
            at = hit.end if hit else begin + 1

    def _has_literal(self, views: Views, begin: int, end: int) -> bool:
        """Return whether a literal stands in the match itself: another one nearby must make no difference."""
        if not self.near:
            return True
        match = getattr(views, self.form.view)[begin:end]
        return any(literal in match for literal in self.near)

    def _judged(self, text: str, start: int, end: int) -> Hit | None:
        measure = self.form.measure
        length = measure(text[start:end]) if measure else end - start
        return Hit(start, start + length, self.form.kind) if length else None

    def _led(self, views: Views, start: int) -> Iterator[int]:
        """Yield the places, from *start* on, behind a literal and what leads from it to a value."""
        form, view, text = self.form, getattr(views, self.form.view), views.text
        for literal in self.near:
            at = view.find(literal, max(0, start - guard_kinds.LEAD_LENGTH))
            while at >= 0:
                behind = at + len(literal)
                if not (form.apart and at and text[at - 1].isalpha()):
                    lead = form.lead.match(text, behind) if form.lead else None
                    if lead and lead.end() >= start:
                        yield lead.end()
                at = view.find(literal, behind)

    def _windows(self, views: Views, start: int) -> Iterator[tuple[int, int]]:
        """Yield where to look around the literals: from, up to; in order, none overlapping the one before."""
        shape, done = views.shape, start
        places = []
        for literal in self.near:
            at = shape.find(literal, start)
            while at >= 0:
                places.append(at)
                at = shape.find(literal, at + NUMBER_LENGTH)
        for at in sorted(places):
            begin, stop = max(at - self.form.back, start), at + REACH
            if stop > done:
                yield begin, stop
                done = stop


class Seekers:
    """Many seekers, of which most texts ask none."""

    def __init__(self, seekers: Iterable[Seeker]) -> None:
        self.all = tuple(seekers)
        groups: dict[tuple[str, bool], list[Seeker]] = {}
        for seeker in self.all:
            is_common = min(map(len, seeker.near)) == 1  # a dot stands in every other text
            groups.setdefault((seeker.view, is_common), []).append(seeker)
        self._gates = [(view, _gate(some), some) for (view, _), some in groups.items()]

    def __iter__(self) -> Iterator[Seeker]:
        return iter(self.all)

    def near(self, views: Views) -> Iterator[Seeker]:
        """Yield those that may find something."""
        is_short = len(views.text) <= SHORT
        for view, gate, seekers in self._gates:
            if is_short and not gate.search(getattr(views, view)):
                continue
            for seeker in seekers:
                if seeker.is_near(views):
                    yield seeker


def _gate(seekers: list[Seeker]) -> re.Pattern[Any]:
    """Return what finds any of their literals, in one pass."""
    literals = sorted({re.escape(literal) for seeker in seekers for literal in seeker.near})
    either = b"|" if isinstance(literals[0], bytes) else "|"
    return re.compile(either.join(literals))


@lru_cache(16)
def seekers_of(kind: str) -> tuple[Seeker, ...]:
    """Return the seekers of *kind*."""
    return tuple(map(Seeker, guard_kinds.forms_of(kind)))
