"""Outcomes of a rerun, added up: in all, per tenant, per rule. Pure.

Money is told by where it comes from: ``cost_then - cost_now`` is what hits save, less what lost ones cost, and what
other models save, and what refused calls had cost, less what calls cost that are let in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mitmgate.rerun_outcome import SAYS_NO, Outcome
from mitmgate.store.recordings import Act

MOST_TENANTS = 10_000
"""Tenants that are told apart; names come from clients, so there may be any number of them."""

OTHERS = "(others)"

OF_THEN = "(then)"
"""A rule, or a header, by which a call was a hit then and is none now."""

UNTOLD = frozenset({"usage", "retry", "hedge", "breaker", "alert"})
"""Rooms whose rules act on the way to an answer, which is not gone here."""


@dataclass(slots=True)
class Sums:
    """Of some calls: how many changed in which way, and what they cost, as far as that is known, in nano-dollars."""

    calls: int = 0
    changed: int = 0
    refused: int = 0
    let_in: int = 0
    moved: int = 0
    downgraded: int = 0
    hits: int = 0
    lost: int = 0
    shaped: int = 0
    guarded: int = 0
    unseen: int = 0
    cost_then_nanousd: int = 0
    cost_now_nanousd: int = 0
    saved_by_hits_nanousd: int = 0
    saved_by_models_nanousd: int = 0
    refused_nanousd: int = 0
    let_in_nanousd: int = 0

    def add(self, outcome: Outcome) -> None:
        self.calls += 1
        self.changed += outcome.changed
        self.refused += outcome.refused
        self.let_in += outcome.let_in
        self.moved += outcome.moved
        self.downgraded += outcome.downgraded
        self.hits += outcome.hit
        self.lost += outcome.lost
        self.shaped += outcome.shaped
        self.guarded += outcome.guarded
        self.unseen += outcome.now == "unseen"
        self._add_money(outcome)

    def _add_money(self, outcome: Outcome) -> None:
        """A call counts where both of its costs are known; else the difference would say something of nothing."""
        then, now = outcome.cost_then, outcome.cost_now
        if then is None or now is None:
            return
        self.cost_then_nanousd += then
        self.cost_now_nanousd += now
        if outcome.refused:
            self.refused_nanousd += then - now
        elif outcome.let_in:
            self.let_in_nanousd += now - then
        elif "hit" in (outcome.then, outcome.now):
            self.saved_by_hits_nanousd += then - now
        else:
            self.saved_by_models_nanousd += then - now


@dataclass(slots=True)
class RuleSums:
    """On how many calls one rule acted in one way."""

    then: int = 0
    now: int = 0
    nanousd: int = 0
    """That it kept from being spent, beyond what was kept then."""
    example: str | None = None
    """The id of the first such call of now."""


class Tally:
    """All outcomes. Its memory does not grow with the calls."""

    def __init__(self, acted: Mapping[Act, int]) -> None:
        """*acted*: on how many calls each rule acted then."""
        self.total = Sums()
        self.tenants: dict[str | None, Sums] = {}
        self.rules: dict[Act, RuleSums] = {act: RuleSums(then=calls) for act, calls in acted.items() if _is_told(act)}

    def add(self, outcome: Outcome) -> None:
        self.total.add(outcome)
        self._of(outcome.call["tenant"]).add(outcome)
        for act in dict.fromkeys(acts_of(outcome)):
            rule = self.rules.setdefault(act, RuleSums())
            rule.now += 1
            rule.nanousd += _kept_from(act, outcome)
            rule.example = rule.example or outcome.call["id"]

        if outcome.then == "hit":
            self.rules.setdefault(("cache", outcome.hit_by or OF_THEN, "hit", False), RuleSums()).then += 1

    def _of(self, tenant: str | None) -> Sums:
        if tenant not in self.tenants and len(self.tenants) >= MOST_TENANTS:
            tenant = OTHERS
        return self.tenants.setdefault(tenant, Sums())


def acts_of(outcome: Outcome) -> Iterator[Act]:
    """Yield what rules did to a call: its events, and what no event tells: hits, and other places."""
    for event in outcome.events:
        if _is_told(act := (event.room, event.rule, event.action, event.shadow)):
            yield act
    if outcome.refused_by and not any(event.action in SAYS_NO and not event.shadow for event in outcome.events):
        yield *outcome.refused_by, "refuse", False
    if outcome.hit_by:
        yield "cache", outcome.hit_by, "hit", False
    if outcome.moved and outcome.sent_by and not outcome.downgraded:
        yield "route", outcome.sent_by, "move", False


def _is_told(act: Act) -> bool:
    room, _, action, shadow = act
    return room not in UNTOLD and ((room, action) != ("route", "fallback") or shadow)


def _kept_from(act: Act, outcome: Outcome) -> int:
    """Return the money that *act* kept from being spent, which then was."""
    _, _, action, shadow = act
    then, now = outcome.cost_then, outcome.cost_now
    if shadow or then is None or now is None:
        return 0
    return then - now if action in ("refuse", "block", "hit", "downgrade", "move", "split") else 0
