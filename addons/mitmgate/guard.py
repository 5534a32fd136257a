"""What may leave, and what may come back: bodies are blocked, redacted or flagged (policy: ``guard``).

Runs on the complete request after ``identify`` and ``auth``, before anything is counted, cached or sent; and around the
answer, wherever that comes from. Every rule that matches acts. A rule looks for kinds and patterns (``guard_find``) in
all text of a body (``guard_body``), for tools that are not on its list, or, where it has neither, finds fault with the
match itself: a model, a host. One that asks (``guard_ask``) has the text judged by a target of the policy.

Promises: a blocked request never leaves. A redacted one is changed once, before a place is chosen, so that every place
gets the same; neither rows nor screens nor metadata show what a rule blocks or redacts. What a rule must read and
cannot, it refuses. Nothing but what was found changes, and a finding is told by rule, kind and count, never by its
text.

Not looked at: headers and paths (they carry the provider's keys), WebSockets, and of a body what is no text: pictures,
sound, files of other types.

This module decides; ``guard_request`` looks at requests, ``guard_stream`` at answers. Both, and the libraries behind
them, are loaded where a policy has a guard.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

from mitmgate.clock import Clock
from mitmgate.errors import Refusal
from mitmgate.exchange import Event, Exchange, Leg
from mitmgate.fields import Get, fields_of
from mitmgate.guard_tools import Allowed
from mitmgate.inner import Ask as AskTarget
from mitmgate.policy import Policy
from mitmgate.policy.match import Rules, fits
from mitmgate.policy.values import Ask
from mitmgate.policy.values import Guard as Rule

if TYPE_CHECKING:
    from mitmgate.sink import Sink

SAID = {
    "secret": "a secret",
    "credit_card": "a credit card number",
    "email": "an email address",
    "phone": "a phone number",
    "national_id": "a national id",
    "iban": "a bank account number",
    "ip_address": "an IP address",
    "pattern": "what its pattern describes",
    "tool": "a call of a tool that is not on its list",
}
"""Kind of finding -> how a refusal calls it."""

type Side = Literal["request", "response"]

OF_CALLS = frozenset({"model", "tier", "stream", "operation", "input_tokens"})
"""Fields that only a call has which generates something: who finds fault with one says nothing of other calls."""


SPECIMEN = "a@b.example, +1 212 555 0100, SSN 219-09-9999, GB33BUKB20201555555555, 4111 1111 1111 1111, 8.8.8.8"
"""Something of each kind: what it takes to know them is loaded once, in a third of a second, and not while a call
waits.
"""


def warm(policy: Policy) -> None:
    """Load, in any thread, what the guards of *policy* need, so that making them is quick."""
    if policy.guard:
        from mitmgate.guard_find import Finders

        Finders(policy.guard).find(SPECIMEN, range(len(policy.guard)))


class Guard:
    """The room. A rule is known by its index in the policy."""

    name = "mitmgate.guard"

    def __init__(self, policy: Policy, ask: AskTarget, clock: Clock) -> None:
        self.policy, self.ask, self.clock = policy, ask, clock
        self.rules = policy.guard
        self.index = {rule.name: index for index, rule in enumerate(self.rules)}
        self.on_requests = Rules(rule for rule in self.rules if "request" in rule.sides)
        self.on_answers = Rules(rule for rule in self.rules if "response" in rule.sides and finds(rule))
        self.allowed = {index: Allowed(rule.tools) for index, rule in enumerate(self.rules) if rule.tools}
        self.hiding = frozenset(self._all(lambda rule: not rule.shadow and rule.then in ("block", "redact")))
        self.blocking = frozenset(self._all(lambda rule: not rule.shadow and rule.then == "block"))
        self.cover: Callable[[str], str] | None = None
        """Makes of a text what all rules together let be seen of it; None where none hides anything."""
        if self.rules:
            from mitmgate.guard_find import Finders
            from mitmgate.guard_request import Inspector

            self.finders = Finders(self.rules)
            self.finders.find(SPECIMEN, range(len(self.rules)))
            self.inspector = Inspector(self)
            if covered := self.inspector.covered:
                self.cover = partial(self.inspector.uncovered, tuple(covered))

    def _all(self, holds: Callable[[Rule], bool]) -> Iterator[int]:
        return (index for index, rule in enumerate(self.rules) if holds(rule))

    # -- requests

    def head(self, x: Exchange) -> None:
        """Let nothing of *x* be seen before it was looked at: another room may refuse it first."""
        if self.cover:
            x.masked, x.shows = b"", self.cover

    def admit(self, x: Exchange) -> Awaitable[None] | None:
        """Block, redact or flag the request of *x*."""
        if not self.rules:
            return None
        x.masked = x.shows = None
        get = fields_of(x)
        watching = self._on_answer(get)
        x.guarded = any(map(self.hides, watching))
        x.guards = tuple(self.rules[rule].name for rule in watching if self.changes(rule))
        active = self._on_request(x, get)
        return self.inspector.inspect(x, active) if active else None

    def _on_request(self, x: Exchange, get: Get) -> list[int]:
        """Return the rules that look at this request."""
        fitting = {self.index[rule.name] for rule in self.on_requests.fitting(get)}
        for leg in x.legs:  # elements of the universal endpoint: each is asked for itself
            fitting |= {self.index[rule.name] for rule in self.on_requests.fitting(as_of(leg, get))}
        if x.dialect is None:
            fitting = {index for index in fitting if self._is_for_all(self.rules[index])}
        return sorted(fitting)

    def _is_for_all(self, rule: Rule) -> bool:
        """Return whether *rule* says something of calls that generate nothing, too."""
        return bool(rule.find) or (not finds(rule) and not OF_CALLS & self.fields_asked(self.index[rule.name]))

    def wants_body(self, x: Exchange) -> bool:
        """Return whether the body of *x* has to be here as a whole, though nobody else would read it."""
        if not any(rule.find and self.hides(self.index[rule.name]) for rule in self.on_requests.rules):
            return False
        from mitmgate.guard_body import MOST_BYTES, is_binary

        length = x.headers.get("content-length", "")
        is_too_long = length.isdigit() and int(length) > MOST_BYTES
        return not is_too_long and not is_binary(x.headers.get("content-type", ""))

    # -- answers

    def watch(self, x: Exchange, sink: "Sink") -> "Sink":
        """Return where to write the answer of *x* so that *sink* gets of it what the rules let through."""
        active = self._on_answer(fields_of(x)) if self.on_answers else []
        if not active:
            return sink
        from mitmgate import guard_ask, guard_stream

        asking = [rule for rule in active if isinstance(self.rules[rule].then, Ask)]
        if asking:
            sink = guard_ask.Judged(x, sink, guard_ask.Asking(self), asking)
        return guard_stream.watch(x, sink, self, [rule for rule in active if rule not in asking])

    def restored(self, x: Exchange, client: "Sink") -> "Sink":
        """Return where to write an answer so that *client* finds in it what placeholders stand for."""
        if not x.placeholders:
            return client
        from mitmgate import guard_stream

        return guard_stream.restored(x, client)

    def _on_answer(self, get: Get) -> list[int]:
        return [self.index[rule.name] for rule in self.on_answers.fitting(get)] if self.on_answers else []

    # -- what a rule does

    def hides(self, rule: int) -> bool:
        """Return whether nobody may see what *rule* finds: it blocks or redacts."""
        return rule in self.hiding

    def changes(self, rule: int) -> bool:
        """Return whether an answer may be another one, or none, where *rule* looks at it."""
        one = self.rules[rule]
        return self.hides(rule) or (isinstance(one.then, Ask) and not one.shadow)

    def blocks(self, rule: int) -> bool:
        return rule in self.blocking

    def fields_asked(self, rule: int) -> frozenset[str]:
        """Return the fields that the match of *rule* asks for."""
        one = self.rules[rule]
        return frozenset(name for match in (one.match, one.unless) if match for name in match.fields)

    def fields_at_fault(self, rule: int) -> list[str]:
        """Return the fields in which *rule* finds fault where it has nothing but its match: those of its ``unless``."""
        one = self.rules[rule]
        at_fault = one.unless or one.match
        return sorted(at_fault.fields) if at_fault else []

    def get_where(self, x: Exchange, rule: int) -> Get:
        """Return how the fields are looked up by which *rule* matches *x*, or one element of it."""
        get = fields_of(x)
        ways = (get, *(as_of(leg, get) for leg in x.legs))
        return next((way for way in ways if fits(self.rules[rule], way)), get)

    def forbids(self, rule: int, tool: str) -> bool:
        """Return whether *rule* has a list of tools, and *tool* is not on it."""
        allowed = self.allowed.get(rule)
        return allowed is not None and not allowed.has(tool)

    # -- what is said of it

    def where(self, rule: int) -> str | None:
        return self.policy.where(f"guard[{rule}]")

    def named(self, rule: int) -> str:
        """Return ``guard rule 'pii' (policy.yaml:12)``."""
        where = self.where(rule)
        return f"guard rule {self.rules[rule].name!r}{f' ({where})' if where else ''}"

    def refusal(self, x: Exchange, rule: int, kinds: Iterable[str], side: Side = "response") -> Refusal:
        """Return the 403 for what *rule* found: *kinds* are ``email``, ``tool`` …, or what it says of a match."""
        found = listed(kinds)
        if side == "response":
            message = f"The answer was stopped by {self.named(rule)}: it holds {found}"
        else:
            message = (
                f"The request was blocked by {self.named(rule)}: it holds {found}; take that out and send it again"
            )
        return self._refusal(rule, message)

    def unreadable(self, x: Exchange, rule: int, why: str, side: Side = "response") -> Refusal:
        """Return the 403 for what *rule* has to look at and cannot: *why* says "its coding is unknown"."""
        return self._refusal(rule, f"The {_thing(side)} cannot be checked by {self.named(rule)}: {why}")

    def forbidden(self, rule: int, what: str) -> Refusal:
        """Return the 403 for a request that *rule* does not allow: *what* is ``model 'gpt-4'``, ``the tool 'rm'``."""
        return self._refusal(rule, f"The request was blocked by {self.named(rule)}, which does not allow {what}")

    def unasked(self, rule: int, why: str, side: Side) -> Refusal:
        """Return the 403 for what nobody could judge; it may be tried again."""
        message = f"The {_thing(side)} was held back: {self.named(rule)} needs a verdict on it, and {why}; try again"
        return self._refusal(rule, message, should_retry=True)

    def judged(self, rule: int, verdict: str, side: Side) -> Refusal:
        """Return the 403 for what the target of *rule* has found at fault."""
        return self._refusal(rule, f"The {_thing(side)} was stopped by {self.named(rule)}: it was judged as {verdict}")

    def _refusal(self, rule: int, message: str, should_retry: bool = False) -> Refusal:
        return Refusal(
            403,
            "permission",
            message,
            source="guard",
            error_type="guard",
            rule=self.rules[rule].name,
            where=self.where(rule),
            should_retry=should_retry,
        )

    def note(self, x: Exchange, found: Mapping[int, Mapping[str, int]], side: Side = "response") -> None:
        """Let row and header of *x* say what was found: rule -> kind -> how often. A later word replaces an earlier."""
        for rule, counts in found.items():
            self.event(x, rule, f"{side}: {counted(counts)}", side)
            self.tell(x, rule, list(counts), side)

    def event(self, x: Exchange, rule: int, detail: str, side: Side = "request", action: str = "") -> None:
        one = self.rules[rule]
        action = action or ("block" if isinstance(one.then, Ask) else one.then)
        known = next((event for event in x.events if _is_same(event, one.name, action, side)), None)
        if known:
            known.detail = detail
            return
        at = self.clock.now() if side == "response" else None
        x.events.append(Event("guard", one.name, action, one.shadow, detail, at))

    def tell(self, x: Exchange, rule: int, kinds: list[str], side: Side) -> None:
        """Let ``cf-aig-dlp`` say what *rule* flagged or blocked; what is redacted is not there any more."""
        if self.rules[rule].shadow or self.rules[rule].then == "redact":
            return
        name = self.rules[rule].name
        check = side.upper()
        x.findings[:] = [one for one in x.findings if (one["policy_ids"], one["check"]) != ([name], check)]
        profile: dict[str, object] = {"context": {}, "entry_ids": kinds, "profile_id": name}
        x.findings.append({"profile": profile, "policy_ids": [name], "check": check})


def finds(rule: Rule) -> bool:
    """Return whether *rule* looks for something; else the match itself is the finding."""
    return bool(rule.find or rule.tools or isinstance(rule.then, Ask))


def as_of(leg: Leg, get: Get) -> Get:
    """Return *get* for one element of a universal request."""
    own: dict[str, object | None] = {
        "provider": leg.provider.slug if leg.provider else None,
        "host": leg.host,
        "path": leg.path.partition("?")[0],
        "model": leg.request.model,
        "stream": leg.request.stream,
        "operation": leg.dialect.operation if leg.dialect else None,
        "input_tokens": leg.request.input_tokens_estimate,
    }
    return lambda name: own[name] if name in own else get(name)


def counted(counts: Mapping[str, int]) -> str:
    """Return ``2 email, 1 phone``."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def listed(kinds: Iterable[str]) -> str:
    """Return ``an email address and a phone number``."""
    words = [SAID.get(kind, kind) for kind in kinds]
    if len(words) < 2:
        return "".join(words) or "what it forbids"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _thing(side: Side) -> str:
    return "answer" if side == "response" else "request"


def _is_same(event: Event, rule: str, action: str, side: Side) -> bool:
    told = (event.detail or "").startswith(f"{side}:")
    return told and (event.room, event.rule, event.action) == ("guard", rule, action)
