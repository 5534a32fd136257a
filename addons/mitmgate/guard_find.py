"""Find what a guard looks for: in a whole text, or in one that is still coming.

``Finders`` is made of the rules of one policy. ``find`` takes a whole text. ``Channel`` takes one text field of a
stream piece by piece and gives back what may go on, redacted; it keeps back what the next piece could still make a
finding of.

Promises: wherever a text is cut, what a ``Channel`` gives is what ``redacted`` makes of the whole; it keeps back at
most ``HELD`` characters. What could be a finding and is still undecided after so many counts as one, from its start:
its placeholder goes out, and all of it is swallowed. A pattern that takes too long raises ``TimeoutError``: whoever
asks refuses then, since nobody knows what the text holds.

How a text that is still coming is judged: a kind is made of certain characters and is so long at most, hence what comes
can only touch the end of what is here. For a policy's own patterns, and for secrets that run on, the library ``regex``
tells from where a pattern runs into the end of the text.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from mitmgate.guard_seek import (
    BREAK,
    NUMBER_CHARS,
    NUMBER_LENGTH,
    STIRS,
    WORD_LENGTH,
    Hit,
    Seeker,
    Seekers,
    Views,
    seekers_of,
)
from mitmgate.policy.kinds import KINDS
from mitmgate.policy.values import Ask, Guard

HELD = 256
"""Characters of a stream that are kept back at most."""
CONTEXT = 64
"""Characters that are kept behind that, so that a pattern sees what stood before."""
HIDDEN = 16 * 1024
"""A finding that grows longer while it is swallowed goes on to the end of its text."""
OFTEN = 4096
"""Where more than this is being swallowed, it is looked at once per ``HELD`` characters: each look is at all of it."""
PATIENCE_S = 0.25
"""For one search of a policy's own pattern: one that takes longer is a mistake, or the text is an attack."""
PLANS = 256
"""Sets of rules that are remembered: rules for one tenant each make many."""

SEAM = "\n\0\n"
"""Between texts that are looked at together: no pattern of a kind goes over it."""

OWN = "pattern"
"""The kind of what a policy's own pattern finds."""


@dataclass(frozen=True, slots=True)
class Found:
    """One finding. Never the text itself: this may be kept and told."""

    start: int
    end: int
    kind: str
    """A kind, or ``pattern`` for an own pattern."""
    rule: int
    """Index into ``policy.guard``."""


type Replace = Callable[[Found, str], str]
"""(finding, its text) -> what stands in its place."""


def placeholder(found: Found, _: str = "") -> str:
    """Return ``[email]``."""
    return f"[{found.kind}]"


def hides(rule: Guard) -> bool:
    """Return whether what *rule* finds may not be seen by whoever comes next."""
    return not rule.shadow and rule.then != "flag" and not isinstance(rule.then, Ask)


class _Rule:
    """One rule of ``guard``, as far as finding goes."""

    def __init__(self, rule: Guard) -> None:
        import regex  # here, because most policies have no guard

        self.kinds = frozenset(word for word in rule.find if word in KINDS)
        self.own = [Seeker.of(OWN, word, PATIENCE_S) for word in rule.find if word not in KINDS]
        self.allow = [regex.compile(pattern) for pattern in rule.allow]
        self.hides = hides(rule)

    def rest(self, hits: list[Hit], text: str) -> list[Hit]:
        """Return those of *hits* that the rule does not allow."""
        return [hit for hit in hits if not self._allows(text[hit.start : hit.end])] if self.allow else hits

    def _allows(self, text: str) -> bool:
        return any(pattern.fullmatch(text, timeout=PATIENCE_S) for pattern in self.allow)


class _Plan:
    """What several rules together look for."""

    def __init__(self, rules: list[tuple[int, _Rule]]) -> None:
        self.rules = rules
        kinds = [kind for kind in KINDS if any(kind in rule.kinds for _, rule in rules)]
        self.seekers = Seekers(seeker for kind in kinds for seeker in seekers_of(kind))
        self.own = [seeker for _, rule in rules for seeker in rule.own]
        self.has_words = any(seeker.form.made_of == "word" for seeker in self.seekers)
        self.has_numbers = any(seeker.form.made_of == "number" for seeker in self.seekers)
        self.endless = [seeker for seeker in self.seekers if seeker.form.endless and seeker.form.made_of == "word"]
        self.lines = [seeker for seeker in self.seekers if seeker.form.made_of == "lines"]
        self.hides = any(rule.hides for _, rule in rules)


class Finders:
    """What the rules of one policy look for."""

    def __init__(self, rules: Sequence[Guard]) -> None:
        self._rules = [_Rule(rule) if rule.find else None for rule in rules]
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def _plan(self, active: Sequence[int]) -> _Plan:
        key = tuple(active)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            plan = self._plans[key] = _Plan([(index, rule) for index in key if (rule := self._rules[index])])
        return plan

    def hides(self, active: Sequence[int]) -> bool:
        """Return whether any rule of *active* keeps from sight what it finds; the others only tell of it."""
        return self._plan(active).hides

    def is_hidden(self, found: Found) -> bool:
        rule = self._rules[found.rule]
        return rule is not None and rule.hides

    def find(self, text: str, active: Sequence[int], start: int = 0) -> list[Found]:
        """Return what the rules *active* find in *text*, which is whole, from *start* on, in order.

        What one rule finds does not overlap: what would is one finding, of the kind that begins it.
        """
        plan = self._plan(active)
        kinds = _kind_hits(plan, text, start) if STIRS.search(text, start) else {}
        if not kinds and not plan.own:
            return []
        found: list[Found] = []
        for index, rule in plan.rules:
            hits = [hit for kind, some in kinds.items() if kind in rule.kinds for hit in some]
            for seeker in rule.own:
                hits += seeker.hits(Views(text), start)
            found += [Found(hit.start, hit.end, hit.kind, index) for hit in _apart(rule.rest(hits, text))]
        found.sort(key=lambda one: (one.start, -one.end))
        return found

    def find_each(self, parts: Sequence[tuple[str, str]], active: Sequence[int]) -> list[list[Found]]:
        """Return what is found in each of many texts: (what stands before it and is not looked at, the text).

        The kinds look at all of them at once, joined by what no kind crosses; that is ten times as fast.
        """
        plan = self._plan(active)
        joined = "".join(f"{SEAM}{before}{text}" for before, text in parts)
        kinds = _kind_hits(plan, joined, 0) if STIRS.search(joined) else {}
        each: list[list[Found]] = [[] for _ in parts]
        if not kinds and not plan.own:
            return each
        starts = list(accumulate((len(before) + len(text) + len(SEAM) for before, text in parts), initial=len(SEAM)))
        for index, rule in plan.rules:
            hits: dict[int, list[Hit]] = {}
            for kind, some in kinds.items():
                for hit in some if kind in rule.kinds else ():
                    n = bisect_right(starts, hit.start) - 1
                    at = starts[n] + len(parts[n][0])
                    if hit.start >= at:
                        hits.setdefault(n, []).append(Hit(hit.start - at, hit.end - at, kind))
            for seeker in rule.own:
                for n, (_, text) in enumerate(parts):
                    if own := list(seeker.hits(Views(text), 0)):
                        hits.setdefault(n, []).extend(own)
            for n, some in hits.items():
                each[n] += [Found(hit.start, hit.end, hit.kind, index) for hit in _apart(rule.rest(some, parts[n][1]))]
        for found in each:
            found.sort(key=lambda one: (one.start, -one.end))
        return each

    def look(self, text: str, active: Sequence[int], start: int = 0) -> tuple[list[Found], int]:
        """Return what is certain in a *text* that goes on, of what begins at *start* or later, and up to where that is.

        Behind that place nothing can be said yet; it is the text's length where everything can. No finding crosses it.
        """
        plan = self._plan(active)
        if not plan.own and not STIRS.search(text, start):
            return [], _last_word(text, start)
        found = self.find(text, active, start)
        certain = _before(found, _certain(plan, text, start))
        if len(text) - certain > HELD and found:  # a guess of where something could begin fell into a finding
            certain = _before(found, _opens(plan, text, start))
        return [one for one in found if one.start < certain], certain

    def suspect(self, text: str, active: Sequence[int], start: int) -> Found:
        """Return what the undecided text from *start* on counts as: what has, or may have, begun first.

        It may be a finding that has ended, where another may have begun within it.
        """
        plan = self._plan(active)
        views = Views(text)
        begun: list[tuple[int, int, str]] = []
        for index, rule in plan.rules:
            seekers = [seeker for seeker in plan.seekers if seeker.form.kind in rule.kinds] + rule.own
            begun += [(seeker.opens(views, start), index, seeker.form.kind) for seeker in seekers]
        place, index, kind = min(begun)
        found = self.find(text, active, start)
        if found and found[0].start <= place:
            index, kind = found[0].rule, found[0].kind
        return Found(start, len(text), kind, index)


def _kind_hits(plan: _Plan, text: str, start: int) -> dict[str, list[Hit]]:
    views = Views(text)
    hits: dict[str, list[Hit]] = {}
    for seeker in plan.seekers.near(views):
        for hit in seeker.hits(views, start):
            hits.setdefault(hit.kind, []).append(hit)
    return hits


def _apart(hits: list[Hit]) -> list[Hit]:
    """Return *hits* with those that overlap made one, of the kind of the first or, where several begin, the longest."""
    if len(hits) < 2:
        return hits
    hits.sort(key=lambda hit: (hit.start, -hit.end))
    apart = hits[:1]
    for hit in hits[1:]:
        last = apart[-1]
        if hit.start >= last.end:
            apart.append(hit)
        elif hit.end > last.end:
            apart[-1] = last._replace(end=hit.end)
    return apart


# -- where more text could make a difference --------------------------------------------------------------------------


def _last_word(text: str, start: int) -> int:
    """Return where the last word begins of a text in which no kind stirs; what a number begins with goes with it."""
    found = BREAK.search(text, start)
    at = start + len(text[start : found.end()].rstrip("(+ ")) if found else start
    capitals = text[max(start, at - 2) : at]
    if len(capitals) == 2 and capitals.isupper() and capitals.isascii() and capitals.isalpha():
        return at - 2
    return at


def _certain(plan: _Plan, text: str, start: int) -> int:
    """Return a place before which no more text can make a difference; it may be some characters early."""
    length = certain = len(text)
    if plan.has_words:
        found = BREAK.search(text, start)
        certain = found.end() if found else start
        if length - certain > WORD_LENGTH:
            endless = min((seeker.opens(Views(text), start) for seeker in plan.endless), default=length)
            certain = min(length - WORD_LENGTH, endless)
    if plan.has_numbers:
        numbers = start + len(text[start:].rstrip(NUMBER_CHARS))
        certain = min(certain, max(numbers, length - NUMBER_LENGTH))
    for seeker in (*plan.lines, *plan.own):
        certain = min(certain, seeker.opens(Views(text), start))
    return max(certain, start)


def _opens(plan: _Plan, text: str, start: int) -> int:
    """Return the same place exactly: each pattern is asked."""
    views = Views(text)
    places: Iterable[int] = (seeker.opens(views, start) for seeker in (*plan.seekers, *plan.own))
    return min(places)


def _before(found: list[Found], certain: int) -> int:
    """Return *certain*, or the place before a finding that crosses it: what overlaps is decided together."""
    for one in reversed(found):
        if one.start < certain < one.end:
            certain = one.start
    return certain


# -- redacting --------------------------------------------------------------------------------------------------------


def redacted(text: str, hidden: Iterable[Found], replace: Replace = placeholder) -> str:
    """Return *text* with each of *hidden* replaced; what overlaps is replaced once, as the first."""
    pieces: list[str] = []
    done = 0
    for first, end in clusters(hidden):
        pieces += (text[done : first.start], replace(first, text[first.start : end]))
        done = end
    return "".join((*pieces, text[done:]))


def clusters(found: Iterable[Found]) -> list[tuple[Found, int]]:
    """Return *found*, which is in order, as what overlaps together: the first of each, and where all of it ends."""
    joined: list[tuple[Found, int]] = []
    for one in found:
        if joined and one.start < joined[-1][1]:
            first, end = joined[-1]
            joined[-1] = first, max(end, one.end)
        else:
            joined.append((one, one.end))
    return joined


class Channel:
    """One text field of a stream: ``feed`` it as it comes, and ``end`` it; both give what may go on."""

    def __init__(
        self,
        finders: Finders,
        active: Sequence[int],
        replace: Replace = placeholder,
        on_found: Callable[[Found], Any] | None = None,
    ) -> None:
        hiding = tuple(rule for rule in active if finders.hides((rule,)))
        telling = tuple(rule for rule in active if rule not in hiding)
        self.finders, self.replace = finders, replace
        self.active = hiding or telling
        self.on_found = on_found
        """Told of each finding once, before anything behind it is given; positions are those in the whole text."""
        self._hides = bool(hiding)
        """Otherwise nothing is kept back: the text is only looked at."""
        self._beside = Channel(finders, telling, replace, on_found) if hiding and telling else None
        """Looks for what is only told of: that keeps nothing back."""
        self._text = ""
        """What was given lately, and what is not decided yet."""
        self._base = 0
        """Where in the whole text that begins."""
        self._from = 0
        """Up to here of it all is decided."""
        self._gone_to = 0
        """Up to here it has left, or something in its place has."""
        self._forced: Found | None = None
        """What is being swallowed, undecided."""
        self._lost = False
        """That has grown too long to keep: the rest is swallowed unseen."""
        self._unseen = 0
        """Characters that have come since the last look."""

    @property
    def held(self) -> int:
        """Characters that have come and are kept back."""
        return len(self._text) - self._gone_to if self._hides and not self._forced else 0

    def feed(self, text: str) -> str:
        """Take the next piece; return what may go on of all that came."""
        if self._beside:
            self._beside.feed(text)
        if not text or self._lost:
            return ""
        self._text += text
        self._unseen += len(text)
        if self._forced and len(self._text) > OFTEN and self._unseen < HELD:
            return ""
        self._unseen = 0
        found, certain = self.finders.look(self._text, self.active, self._from)
        given = self._give(found, certain)
        if len(self._text) - self._from > HELD:
            given += self._force()
        self._forget()
        return given if self._hides else text

    def end(self) -> str:
        """Return what was kept back: nothing more comes."""
        if self._beside:
            self._beside.end()
        if self._lost:
            return ""
        found = self.finders.find(self._text, self.active, self._from)
        given = self._give(found, len(self._text))
        return given if self._hides else ""

    def _give(self, found: list[Found], certain: int) -> str:
        """Return the text up to *certain* as it may go on; *found* is all that is in it."""
        if certain == self._from:
            return ""
        for one in found:
            self._tell(one)
        pieces: list[str] = []
        done = self._gone_to
        for first, end in self._covered(found):
            if first.start >= self._gone_to and not self._is_forced(first):
                pieces += (self._text[done : first.start], self.replace(first, self._text[first.start : end]))
            done = max(done, end)
        pieces.append(self._text[done:certain])
        self._from = certain
        self._gone_to = max(done, certain)
        self._forced = None
        return "".join(pieces)

    def _covered(self, found: list[Found]) -> list[tuple[Found, int]]:
        """Return what is hidden of *found*; what was swallowed counts as found where it was no match in the end."""
        hidden = [one for one in found if self.finders.is_hidden(one)]
        forced = self._forced
        if forced and not any(map(self._is_forced, hidden)):
            hidden.insert(0, forced)
        return clusters(hidden)

    def _is_forced(self, found: Found) -> bool:
        """Return whether *found* is what was being swallowed: it was told, and its placeholder is out."""
        return self._forced is not None and found.start == self._forced.start

    def _tell(self, found: Found) -> None:
        if self._forced and self._is_forced(found) and found.rule == self._forced.rule:
            return
        if self.on_found:
            self.on_found(Found(found.start + self._base, found.end + self._base, found.kind, found.rule))

    def _force(self) -> str:
        """Decide what has been undecided for too long: it is what it may be, and goes on as long as it may."""
        given = ""
        length = len(self._text)
        if self._forced is None:
            suspect = self.finders.suspect(self._text, self.active, self._from)
            self._tell(suspect)
            if suspect.start >= self._gone_to:  # else it goes on in what was hidden just now
                given = self.replace(suspect, self._text[suspect.start :])
            self._forced = suspect
        self._forced = replace(self._forced, end=length)
        if length - self._from > HIDDEN:
            self._lost, self._text = True, ""
            self._from = self._gone_to = 0
        return given

    def _forget(self) -> None:
        """Let go of what is decided, but for the context of what comes."""
        spare = self._from - CONTEXT
        if spare > CONTEXT:
            self._text = self._text[spare:]
            self._base += spare
            self._from -= spare
            self._gone_to -= spare
            if self._forced:
                forced = self._forced
                self._forced = replace(forced, start=forced.start - spare, end=forced.end - spare)
