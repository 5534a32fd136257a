"""What would become of one request: section by section which rules act, why, and what came of it.

The request goes through a ``rehearsal``. Before each room its rules are asked whether they act (``explain``), behind it
what it did is written down: events, counters, the cache's key, places. A request that is refused on its way, or has its
answer, does not reach the rooms behind; their rules are asked all the same, and said to be not reached.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from mitmgate import explain, redact
from mitmgate.arrival import url_of
from mitmgate.cache import Stored
from mitmgate.charges import Standing
from mitmgate.counters import left, said
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.explain import Verdict
from mitmgate.fields import fields_of
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.policy.match import acts
from mitmgate.policy.units import show_percent, show_time
from mitmgate.recorded import Row
from mitmgate.rehearsal import Rehearsal
from mitmgate.retry import rule_for
from mitmgate.rewrite import brings_key, is_credential

ASKED_BY: dict[str, tuple[str, ...]] = {
    "guard": ("guard",),
    "limit": ("limit",),
    "cache": ("cache",),
    "budget": ("budget",),
    "shape": ("shape",),
    "route": ("route", "hedge"),
}
"""Room -> the sections whose rules it asks. Those of ``identify`` are labels, ``auth`` has none."""

ON_THE_WAY = ("retry", "timeout", "breaker")
"""Sections that say how an answer is had once it is known of whom."""

ORDER = ("auth", "identify", "guard", "limit", "cache", "budget", "shape", "route", "hedge", *ON_THE_WAY)
"""As a request meets them."""

GOES_BEFORE: dict[str, str] = {
    "cache-ttl": "cache",
    "cache-key": "cache",
    "skip-cache": "cache",
    "fallback": "route",
    "byok-alias": "route",
    "max-attempts": "retry",
    "retry-delay": "retry",
    "backoff": "retry",
    "request-timeout": "timeout",
    "custom-cost": "budget",
}
"""A ``cf-aig-*`` header, without the prefix -> the section that it has a say in."""

WHO = (
    *("provider", "operation", "model", "stream", "input_tokens", "host", "path"),
    *("tenant", "user", "session", "route", "tier", "sla", "region", "colo", "prompt_version", "auth"),
)
"""Fields that say who asks for what."""

NOTHING = {"guard": "nothing found in the request", "shape": "nothing to change"}
"""What is said of a rule that acts and had nothing to do."""

KEY_DIGITS = 12
"""Of a cache key: enough for ``mitmgate cache show``."""


@dataclass(slots=True)
class Section:
    """What one section does with the request."""

    name: str
    reached: bool = False
    """False where the request was refused, or had its answer, before."""
    rules: list[Verdict] = field(default_factory=list)
    says: list[str] = field(default_factory=list)
    """What came of it, as sentences."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same for machines: ``counters`` of limits and budgets, the ``key`` of the cache, ``places`` of a route."""


@dataclass(slots=True)
class Forecast:
    """What would become of one request."""

    request: str
    """``POST https://…``."""
    verdict: Literal["sent", "answered", "refused", "passed"] = "sent"
    """``answered``: out of the cache. ``passed``: no rule has a say in it."""
    ends: str = ""
    """The verdict as a sentence."""
    refusal: Refusal | None = None
    who: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)
    """``cf-aig-*`` as they were read; a key never."""
    notices: list[str] = field(default_factory=list)
    """What was assumed of it, and what could not be looked at."""
    sections: list[Section] = field(default_factory=list)

    def section(self, name: str) -> Section:
        return next(one for one in self.sections if one.name == name)

    def passes(self, why: str) -> "Forecast":
        self.verdict, self.ends = "passed", why
        return self

    def refused(self, refusal: Refusal) -> "Forecast":
        self.verdict, self.refusal = "refused", refusal
        self.ends = f"It would be refused with {refusal.status}: {refusal.message}"
        return self


async def forecast(
    x: Exchange, policy: Policy, rooms: Rehearsal, made: Forecast, row: Row | None = None, is_kept: bool = True
) -> Forecast:
    """Take *x* through *rooms*, which are those of *policy*, and write into *made* what becomes of it.

    *row*: it is a recorded one, and its body *is_kept*, or is not.
    """
    looking = Looking(policy, rooms)
    if row is None:
        await rooms.admit(x, looking)
    else:
        await rooms.admit_again(x, row, is_kept, looking)
    looking.end(x)
    made.sections = list(looking.sections.values())
    made.who = who(x)
    made.headers = {f"cf-aig-{name}": value for name, value in x.controls.items() if not is_credential(name)}
    _conclude(x, made)
    rooms.cache.abandon(x)
    return made


def who(x: Exchange) -> dict[str, Any]:
    """Return who asks for what, as far as it is known; a path without its keys."""
    get = fields_of(x)
    found = {name: value for name in WHO if (value := get(name)) is not None}
    found["path"] = redact.url(x.path)
    return found | ({"key": x.proof.name} if x.proof else {})


def _conclude(x: Exchange, made: Forecast) -> None:
    if x.refusal:
        made.refused(x.refusal)
    elif x.replay:
        made.verdict, made.ends = "answered", "It would be answered out of the cache."
    elif x.dialect is None:
        made.passes("It would be passed on: it generates nothing, and gets no row.")
    else:
        places = ", then ".join(map(place_said, made.section("route").facts.get("places", [])))
        made.ends = f"It would be sent to {places}."


def place_said(place: dict[str, Any]) -> str:
    return f"{place['target']} as {place['model']}" if place["model"] else str(place["target"])


# -- on its way -------------------------------------------------------------------------------------------------------


class Looking:
    """Hears of an exchange on its way, and keeps what each room did to it."""

    def __init__(self, policy: Policy, rooms: Rehearsal) -> None:
        self.policy, self.rooms = policy, rooms
        self.sections = {name: Section(name) for name in ORDER}
        self._events = self._notes = self._standings = self._asked = 0
        """So many there were before the room that is asked now."""

    def before(self, room: str, x: Exchange) -> None:
        self._events, self._notes = len(x.events), len(x.notes)
        self._standings, self._asked = len(self.rooms.ledger.noted), len(self.rooms.asked)
        for name in ASKED_BY.get(room, ()):
            self._ask(name, x, reached=True)

    def after(self, room: str, x: Exchange) -> None:
        if room == "identify":
            self._ask_labels(x, reached=True)
        if room in self.sections:
            section = self.sections[room]
            section.reached = True
            section.says += x.notes[self._notes :]
            section.says += [f"{asked}, which is not done here" for asked in self.rooms.asked[self._asked :]]
        for event in x.events[self._events :]:
            name = event.room if event.room in self.sections else room
            would = "would " if event.shadow else ""
            self.sections[name].says.append(f"{event.rule}: {would}{event.action}: {event.detail or 'done'}")
        for standing in self.rooms.ledger.noted[self._standings :]:
            self._count(standing)
        if room == "cache":
            self._tell_cache(x)
        if room in ("guard", "shape"):
            self._tell_idle(room, x)

    def end(self, x: Exchange) -> None:
        """Ask the rules that *x* did not come to, and say what goes before them."""
        goes_on = not x.refusal and not x.replay and x.dialect is not None
        if not self.sections["identify"].reached:
            self.rooms.by_name["identify"].admit(x)  # nobody is told, but the other rules can be asked
            self._ask_labels(x, reached=False)
        for name in ORDER:
            if name in ON_THE_WAY or (name not in ("auth", "identify") and not self.sections[name].reached):
                self._ask(name, x, reached=goes_on and name in ON_THE_WAY)
        self._tell_auth(x)
        for control, name in GOES_BEFORE.items():
            if control in x.controls:
                self.sections[name].says.insert(0, f"the header cf-aig-{control} goes before what rules say")
        if goes_on:
            self._tell_way(x)

    def _ask(self, name: str, x: Exchange, *, reached: bool) -> None:
        section = self.sections[name]
        section.rules, section.reached = explain.explain(self.policy, name, fields_of(x)), reached

    def _ask_labels(self, x: Exchange, *, reached: bool) -> None:
        section = self.sections["identify"]
        section.rules, section.reached = explain.labels(self.policy, fields_of(x)), reached

    # -- what came of it

    def _tell_auth(self, x: Exchange) -> None:
        section = self.sections["auth"]
        section.reached = True
        if self.policy.auth is None:
            section.says.append("nobody is asked for a key")
        elif x.proof:
            section.says.append(f"the key is {x.proof.name}'s")
        else:
            section.says.append("no key of the gateway's came that opens the door")

    def _tell_idle(self, room: str, x: Exchange) -> None:
        """Say which rules of *room* act and had nothing to do."""
        told = {event.rule for event in x.events if event.room == room}
        told |= {note.removeprefix(f"{room} ").partition(":")[0] for note in x.notes if note.startswith(f"{room} ")}
        acting = [rule.rule for rule in self.sections[room].rules if rule.state in ("acts", "shadow")]
        later = {rule.name for rule in self.policy.guard if room == "guard" and "request" not in rule.sides}
        for names, says in (
            ([name for name in acting if name not in told | later], NOTHING[room]),
            ([name for name in acting if name in later], "will look at the answer"),
        ):
            if names:
                self.sections[room].says.append(f"{', '.join(names)}: {says}")

    def _count(self, standing: Standing) -> None:
        charge = standing.charge
        counter = {
            "rule": charge.rule,
            "unit": "nanousd" if charge.unit == "cost" else charge.unit,
            "amount": charge.amount,
            "used": standing.used,
            "reserved": standing.reserved,
            "most": charge.most + standing.granted,
            "left": standing.left,
            "reset_s": round(standing.reset_s, 3),
            "full": standing.full,
        }
        section = self.sections[charge.room]
        section.facts.setdefault("counters", []).append(counter)
        section.says.append(f"{charge.rule}: {said(charge.unit, charge.amount)} {_taken(standing)}; {left(standing)}")

    def _tell_cache(self, x: Exchange) -> None:
        section, cache = self.sections["cache"], self.rooms.cache
        if isinstance(x.replay, Stored):
            entry, age_s = x.replay.entry, max(0, int(x.replay.entry.age_s(cache.clock.wall())))
            section.facts = {"status": "HIT", "key": entry.key, "rule": entry.rule, "age_s": age_s}
            section.says.append(f"key {entry.key[:KEY_DIGITS]} is there, {age_s} s old: that is the answer")
            return
        key, decision = cache.decisions.get(x.id, ("", None))
        if decision is None:
            if x.cache_status:
                section.facts = {"status": x.cache_status}
                section.says.append("neither looked up nor kept")
            return
        section.facts = {
            "status": x.cache_status,
            "key": key,
            "rule": decision.rule,
            "ttl_s": decision.ttl_s,
            "scope": list(decision.scope),
            "kept": decision.keep,
        }
        looked = "is not there" if decision.look_up else "is not looked up"
        kept = f"a good answer is kept for {show_time(decision.ttl_s)}" if decision.keep else "its answer is not kept"
        section.says.append(f"key {key[:KEY_DIGITS]}, parted by {', '.join(decision.scope)}, {looked}; {kept}")

    def _tell_way(self, x: Exchange) -> None:
        get, says = fields_of(x), {name: self.sections[name].says for name in ("route", "hedge", *ON_THE_WAY)}
        places = [self._place(x, n) for n in range(len(x.legs))]
        self.sections["route"].facts["places"] = places
        says["route"] += [f"{n + 1}. {_place_in_full(place)}" for n, place in enumerate(places)]
        if x.hedge and x.spare:
            after = f"p{x.hedge.percentile}" if x.hedge.after_s is None else show_time(x.hedge.after_s)
            says["hedge"].append(f"{x.hedge.name}: a second attempt at {x.spare.target}, after {after} without content")
        if x.legs:
            retry = rule_for(acts(self.policy.retry, get) or rules.Retry(), x.controls, x.legs[0], x.headers)
            says["retry"].append(retry_said(retry))
        says["timeout"].append(timeout_said(x.timeouts))
        if breaker := acts(self.policy.breaker, get):
            says["breaker"].append(breaker_said(breaker))

    def _place(self, x: Exchange, n: int) -> dict[str, Any]:
        leg = x.legs[n]
        is_ours = leg.is_target and brings_key(self.policy.targets[leg.target])
        return {
            "target": leg.target,
            "model": leg.model,
            "url": redact.url(url_of(leg)),
            "key": "the target's" if is_ours else "as sent",
            "body_changed": leg.body is not None,
        }


# -- in words ---------------------------------------------------------------------------------------------------------


def _taken(standing: Standing) -> str:
    if standing.full:
        return "does not fit" if standing.charge.refuses else "would not fit"
    return "counted" if standing.charge.unit in ("requests", "concurrent") else "reserved"


def _place_in_full(place: dict[str, Any]) -> str:
    body = ", the body changed" if place["body_changed"] else ""
    return f"{place_said(place)}: {place['url']}, the key {place['key']}{body}"


def retry_said(rule: rules.Retry) -> str:
    if rule.attempts == 1:
        return "one attempt at each place"
    return (
        f"{rule.attempts} attempts at each place; the first wait {show_time(rule.delay_s)}, {rule.backoff},"
        f" none longer than {show_time(rule.max_delay_s)} or later than {show_time(rule.within_s)}"
    )


def timeout_said(rule: rules.Timeout) -> str:
    times = {"connect": rule.connect_s, "first byte": rule.first_byte_s, "idle": rule.idle_s, "total": rule.total_s}
    return ", ".join(f"{name} {'none' if time is None else show_time(time)}" for name, time in times.items())


def breaker_said(rule: rules.Breaker) -> str:
    return (
        f"{rule.name}: a place rests for {show_time(rule.rest_s)} where {show_percent(rule.failures)} of"
        f" {rule.min_requests} calls or more fail within {show_time(rule.window_s)}"
    )
