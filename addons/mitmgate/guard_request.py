"""Look at a request, and do what the rules say: forbid it, block it, redact it, flag it.

Asked by ``guard`` with the rules that match. All of them look before any acts, so that each finding has its event; then
the first that blocks refuses. Where nothing blocks, the body goes on without what rules redact, and the request is read
again, so that estimates are of what will be sent.

A placeholder is the kind: ``[email]``. Where the rule restores, each different value has a number, ``[email_1]``, and
``Exchange.placeholders`` knows what it stands for; the numbers pass over those that the text itself has.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from mitmgate import guard_body
from mitmgate.dialects.base import Json
from mitmgate.exchange import Exchange, Leg
from mitmgate.guard_body import Look, Place, Unreadable
from mitmgate.guard_find import Found, redacted
from mitmgate.guard_tools import offered
from mitmgate.policy.values import Ask
from mitmgate.usage import is_signed

if TYPE_CHECKING:
    from mitmgate.guard import Guard

LONG_BYTES = 128 * 1024
"""A longer body is looked at in a thread: it takes more than ten milliseconds."""

CHECKSUMS = frozenset({b"content-md5", b"content-digest", b"digest", b"repr-digest"})
"""Headers that are not true any more of a body that was changed."""

SHOWN = frozenset(
    {"provider", "host", "method", "operation", "model", "tier", "stream", "route", "region", "colo", "sla"}
)
"""Fields whose values may be told."""

MOST_TEXTS = 1000
"""Names and tags of which is remembered what may be seen of them: rule after rule asks for the same."""

STREAMED = f"its body is larger than {guard_body.MOST_BYTES >> 20} MiB"


@dataclass(slots=True)
class Body:
    """A body that will be sent: the request's own, or that of one element of a universal request."""

    data: bytes
    coding: str | None
    content_type: str
    leg: Leg | None = None
    looked: Look | None = None


@dataclass(slots=True)
class Findings:
    """What a look has shown."""

    bodies: list[Body]
    fault: str | None = None
    """Why they could not be read."""
    places: list[Place] = field(default_factory=list)
    counts: dict[int, Counter[str]] = field(default_factory=dict)
    """Rule -> kind -> how often it was found."""

    def count(self) -> None:
        """Fill in what follows from the bodies."""
        self.places = [place for body in self.bodies if body.looked for place in body.looked.places]
        for place in self.places:
            self.counts.setdefault(place.found.rule, Counter())[place.found.kind] += 1


class Inspector:
    def __init__(self, guard: "Guard") -> None:
        self.guard, self.finders, self.rules = guard, guard.finders, guard.rules
        rules = list(enumerate(self.rules))
        self.finding = {index for index, rule in rules if rule.find}
        self.asking = {index for index, rule in rules if isinstance(rule.then, Ask)}
        self.forbidding = {index for index, rule in rules if rule.tools} | (
            {index for index, _ in rules} - self.finding - self.asking
        )
        """These have a list of tools, or find fault with the match itself."""
        sides = (index for index, rule in rules if "request" in rule.sides)
        self.covered = [index for index in sides if index in self.finding & guard.hiding]
        """These hide what they find in a request."""
        self.uncovered = lru_cache(MOST_TEXTS)(self._uncovered)

    def inspect(self, x: Exchange, active: list[int]) -> Awaitable[None] | None:
        """Do what the rules *active* say of *x*; waits only where somebody is asked, or the body is long."""
        finding = [rule for rule in active if rule in self.finding]
        asking = [rule for rule in active if rule in self.asking]
        bodies = bodies_of(x) if finding else []
        if not self.guard.hiding.isdisjoint(finding):
            x.masked = b""  # until it is known what may be shown, also where this breaks or the client leaves
        if sum(len(body.data) for body in bodies) > LONG_BYTES:
            return self._inspect_long(x, active, finding, asking, bodies)
        findings = self._look(x, finding, bodies)
        self._judge(x, active, findings)
        return self._ask(x, asking, findings)

    async def _inspect_long(
        self, x: Exchange, active: list[int], finding: list[int], asking: list[int], bodies: list[Body]
    ) -> None:
        findings = await asyncio.to_thread(self._look, x, finding, bodies)
        self._judge(x, active, findings)
        if (more := self._ask(x, asking, findings)) is not None:
            await more

    def _ask(self, x: Exchange, asking: list[int], findings: Findings) -> Awaitable[None] | None:
        """Have the request judged by others; a rule with ``find`` has it judged only where that is found."""
        asking = [rule for rule in asking if rule not in self.finding or findings.fault or rule in findings.counts]
        if not asking or x.refusal:
            return None
        from mitmgate.guard_ask import Asking

        return Asking(self.guard).about_request(x, asking)

    def _look(self, x: Exchange, finding: list[int], bodies: list[Body]) -> Findings:
        """Look for what the rules *finding* look for. Pure, so that a thread may do it."""
        findings = Findings(bodies)
        if x.streamed_upload and finding and not guard_body.is_binary(x.headers.get("content-type", "")):
            findings.fault = STREAMED
        try:
            for body in bodies:
                plain = guard_body.plain(body.data, body.coding)
                body.looked = guard_body.look(plain, body.content_type, self.finders, finding)
        except Unreadable as unreadable:
            findings.fault = str(unreadable)
        except TimeoutError:
            findings.fault = "a pattern of the policy takes too long for it"
        findings.count()
        return findings

    # -- what follows

    def _judge(self, x: Exchange, active: list[int], findings: Findings) -> None:
        tools = tools_of(x) if any(rule in self.guard.allowed for rule in active) else []
        for rule in active:
            if rule in self.forbidding:
                self._forbid(x, rule, tools)
            if rule in findings.counts or findings.fault:
                self._find(x, rule, findings)
        self._mask(x, active, findings)
        if not x.refusal and not findings.fault:
            self._redact(x, findings)

    def _forbid(self, x: Exchange, rule: int, tools: list[str]) -> None:
        """Take *rule*, which has a list of tools or nothing but its match: note and refuse what it does not allow."""
        guard = self.guard
        what = self._wrong_tool(rule, tools) if rule in guard.allowed else self._at_fault(x, rule)
        if what is None:
            return
        guard.event(x, rule, f"request: {what}")
        guard.tell(x, rule, ["tool"] if rule in guard.allowed else guard.fields_at_fault(rule), "request")
        if guard.blocks(rule):
            x.refuse(guard.forbidden(rule, what))

    def _wrong_tool(self, rule: int, tools: list[str]) -> str | None:
        wrong = next((tool for tool in tools if self.guard.forbids(rule, tool)), None)
        return None if wrong is None else f"the tool {wrong[:80]!r}"

    def _at_fault(self, x: Exchange, rule: int) -> str:
        get = self.guard.get_where(x, rule)
        return ", ".join(_shown(name, get(name)) for name in self.guard.fields_at_fault(rule))

    def _find(self, x: Exchange, rule: int, findings: Findings) -> None:
        """Note what *rule* has found, and refuse it; refuse as well what it had to read and could not."""
        guard = self.guard
        if rule not in self.finding or rule in self.asking:
            return
        if not findings.fault:
            counts = findings.counts[rule]
            guard.note(x, {rule: counts}, "request")
            if guard.blocks(rule):
                x.refuse(guard.refusal(x, rule, counts, "request"))
        elif guard.hides(rule):
            x.refuse(guard.unreadable(x, rule, findings.fault, "request"))
        else:
            x.notes.append(f"guard: {self.rules[rule].name} has not looked at the request: {findings.fault}")

    # -- what is not shown

    def _mask(self, x: Exchange, active: list[int], findings: Findings) -> None:
        """Let rows and screens not show what rules block or redact."""
        hiding = [rule for rule in active if rule in self.finding and rule in self.guard.hiding]
        if not hiding:
            return
        if findings.fault:
            x.masked = b""  # what cannot be read cannot be masked
        elif any(self.finders.is_hidden(place.found) for place in findings.places):
            x.masked = self._masked(x, hiding, findings)
        else:
            x.masked = None
        x.shows = partial(self.uncovered, tuple(hiding))  # rules go by who it is: a user's limit is no other's

    def _masked(self, x: Exchange, hiding: list[int], findings: Findings) -> bytes:
        """Return the client's own body, which an entry may have wrapped, without what rules hide."""
        looked = findings.bodies[0].looked if x.native_body is None else None
        if looked is None:
            try:
                plain = guard_body.plain(x.body or b"", x.headers.get("content-encoding"))
                looked = guard_body.look(plain, x.headers.get("content-type", ""), self.finders, hiding)
            except (Unreadable, TimeoutError):
                return b""
        return looked.without(self.finders.is_hidden, _kind)

    def _uncovered(self, hiding: tuple[int, ...], text: str) -> str:
        """Return what may be seen of *text*, a name or a tag, by the rules *hiding*."""
        try:
            found = self.finders.find(text, hiding)
        except TimeoutError:
            return ""  # what cannot be looked at cannot be shown
        return redacted(text, found) if found else text

    # -- what goes on

    def _redact(self, x: Exchange, findings: Findings) -> None:
        """Let the request go on without what rules redact; refuse it where it must not be changed."""
        changed = [place for place in findings.places if self._redacts(place.found)]
        if not changed:
            return
        if is_signed(x) or any(place.signed for place in changed):
            rule = min(place.found.rule for place in changed)
            x.refuse(self.guard.unreadable(x, rule, "what it holds has to be taken out, but it is signed", "request"))
            return
        words = Words(x, self, b"".join(body.looked.body for body in findings.bodies if body.looked))
        for body in findings.bodies:
            if body.looked:
                self._send(x, body, body.looked.without(self._redacts, words.word))
        x.sent_fields = [one for one in x.sent_fields if one[0].lower() not in CHECKSUMS]

    def _redacts(self, found: Found) -> bool:
        return self.finders.is_hidden(found) and self.rules[found.rule].then == "redact"

    def _send(self, x: Exchange, body: Body, new: bytes) -> None:
        if body.looked is None or new is body.looked.body:
            return
        parsed = _parsed(new)
        if body.leg:
            body.leg.body = new
            if body.leg.dialect:
                body.leg.request = body.leg.dialect.read_request(body.leg.path, parsed)
        if body.leg is None or body.leg is x.legs[0]:
            x.rewrite(new, parsed)
            if x.dialect:
                x.request = x.dialect.read_request(x.path, parsed)


class Words:
    """What stands in the place of findings in one request."""

    def __init__(self, x: Exchange, inspector: Inspector, text: bytes) -> None:
        self.x, self.rules, self.text = x, inspector.rules, text
        self.known: dict[tuple[str, str], str] = {}
        """(kind, value) -> its placeholder."""
        self.numbers: Counter[str] = Counter()
        """Kind -> the number that was given last."""

    def word(self, place: Place) -> str:
        kind = place.found.kind
        if not self.rules[place.found.rule].restore:
            return f"[{kind}]"
        name = self.known.get((kind, place.text))
        if name is None:
            name = self.known[kind, place.text] = self._next(kind)
            self.x.placeholders[name] = place.text
        return name

    def _next(self, kind: str) -> str:
        while True:
            self.numbers[kind] += 1
            name = f"[{kind}_{self.numbers[kind]}]"
            if name.encode() not in self.text:
                return name


def bodies_of(x: Exchange) -> list[Body]:
    """Return what will be sent of *x*."""
    kind = x.headers.get("content-type", "")
    if x.legs:
        return [Body(leg.body, None, kind, leg) for leg in x.legs if leg.body]
    if x.native_body is not None:
        return [Body(x.native_body, None, kind)]
    return [Body(x.body, x.headers.get("content-encoding"), kind)] if x.body else []


def tools_of(x: Exchange) -> list[str]:
    """Return the names of the tools that *x* offers, whoever may answer it."""
    if x.legs:
        return [tool for leg in x.legs for tool in offered(_parsed(leg.body or b""))]
    return offered(x.json)


def _shown(name: str, value: object | None) -> str:
    """Return ``model 'gpt-4'``, or the name alone of a field whose value may be somebody's secret."""
    if value is None:
        return f"no {name}"
    return f"{name} {str(value)[:80]!r}" if name in SHOWN else f"this {name}"


def _kind(place: Place) -> str:
    return f"[{place.found.kind}]"


def _parsed(body: bytes) -> Json:
    """Return what *body* says; None where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
