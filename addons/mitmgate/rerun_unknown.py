"""What nobody can know of recorded calls: it is not guessed, but said, and counted. Pure; ``rerun`` asks.

Each thing is a sentence about a call, "its request was not kept: …". What a policy never asks for is never missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mitmgate import explain, recorded
from mitmgate.exchange import Exchange
from mitmgate.fields import Get, fields_of
from mitmgate.guard import finds
from mitmgate.policy import Policy
from mitmgate.policy.match import Match, Rule, compile_match
from mitmgate.rerun_outcome import Call, Outcome

MATCHED = ("guard", "limit", "budget", "cache", "shape", "route", "retry", "timeout", "breaker", "hedge")
"""Sections whose rules have a match."""


@dataclass(frozen=True, slots=True)
class Blind:
    """A rule that asks for what no row has."""

    name: str
    fields: frozenset[str]
    known: Match | None
    """Its match without them."""

    @classmethod
    def of(cls, section: str, rule: Rule) -> "Blind":
        fields = recorded.unknown_to(rule.match) | recorded.unknown_to(rule.unless)
        known = {name: value for name, value in (rule.match.says if rule.match else {}).items() if name not in fields}
        return cls(f"{section} {getattr(rule, 'name', '')}".strip(), fields, compile_match(known) if known else None)

    def decides(self, get: Get) -> bool:
        """Return whether nothing but what no row has keeps the rule from acting."""
        return self.known is None or self.known.holds(get)


class Unknowns:
    """What of a call a policy asks for and nobody knows."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        found = [Blind.of(section, rule) for section in MATCHED for rule in getattr(policy, section)]
        found += [Blind.of("identify", label) for label in explain.labelled(policy)]
        self.blind = [rule for rule in found if rule.fields]
        self.finds = any(finds(rule) for rule in policy.guard)
        self.bodies = bodies_read(policy)

    def of(self, x: Exchange, outcome: Outcome) -> Iterator[str]:
        """Yield a sentence for each thing that is not known of *x*."""
        yield from self._bodies(outcome)
        get = fields_of(x)
        for rule in self.blind:
            if rule.decides(get):
                yield f"{rule.name} asks for {', '.join(sorted(rule.fields))}, which rows do not have: taken for absent"
        if self.policy.auth and not outcome.call["key_name"]:
            yield "it came without a key of the gateway's, which auth asks for: taken for one that has one"
        if outcome.now == "sent" and _has_usage(outcome.call) and None in (outcome.cost_then, outcome.cost_now):
            yield "no price is known for it: its cost is left out"
        if outcome.let_in and outcome.now == "sent":
            yield "it was refused then: it counts what would be reserved for it"

    def _bodies(self, outcome: Outcome) -> Iterator[str]:
        call: Call = outcome.call
        if "request" in self.bodies:
            if call["request"] is None:
                yield "its request was not kept: guard, shape and the like had nothing to look at"
            elif self.finds and recorded.is_altered(call, call["request"]):
                yield "its request was kept with its secrets masked: they cannot be found in it any more"
        if "response" in self.bodies and outcome.now == "sent" and call["response"] is None:
            yield "its answer was not kept: guards on answers had nothing to look at"


def _has_usage(call: Call) -> bool:
    return call["input_tokens"] is not None or call["output_tokens"] is not None


def bodies_read(policy: Policy) -> frozenset[str]:
    """Return which bodies (``request``, ``response``) *policy* looks into."""
    sides = {side for rule in policy.guard if finds(rule) for side in rule.sides}
    looks = bool(policy.shape) or any(rule.downgrade for rule in policy.budget) or any(c.ignore for c in policy.cache)
    if looks or any(field.startswith("body.") for field in _fields(policy)):
        sides.add("request")
    return frozenset(sides)


def _fields(policy: Policy) -> Iterator[str]:
    rules: list[Rule] = [rule for section in MATCHED for rule in getattr(policy, section)]
    for rule in (*rules, *explain.labelled(policy)):
        for match in (rule.match, rule.unless):
            yield from match.fields if match else ()
