"""What became of one recorded call, then and now. Pure; ``rerun`` finds it out.

Money is in nano-dollars; what nobody knows is None, never 0.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mitmgate.dialects.base import Reading, Usage
from mitmgate.exchange import Event, Exchange, Leg
from mitmgate.pricing import Priced

type Call = Mapping[str, Any]
"""As ``store.recordings`` gives it."""

type Fate = Literal["sent", "hit", "refused", "unseen"]
"""``hit``: answered out of the cache. ``unseen``: its host is nobody's, so no rule was asked."""

BY_RULE = frozenset({"rate-limit", "budget", "guard"})
"""Sources of answers that a rule gave in the provider's place."""

SAYS_NO = frozenset({"refuse", "block"})
"""Actions of rules that refuse."""


@dataclass(slots=True)
class Outcome:
    """One call, then and now."""

    call: Call
    then: Fate
    now: Fate = "unseen"
    cost_then: int | None = None
    """As its row says: 0 of a hit and of a refusal."""
    cost_now: int | None = None
    refused_by: tuple[str, str] | None = None
    """(room, rule)."""
    hit_by: str | None = None
    """The cache rule."""
    sent_by: str | None = None
    """The rule that chose the places."""
    moved: bool = False
    """Another place, or another model, is asked first."""
    downgraded: bool = False
    """By a budget, and then it was not."""
    shaped: bool = False
    guarded: bool = False
    """A guard finds something, and then none did."""
    events: list[Event] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """It is refused, and then it was not."""
        return self.now == "refused" and self.then != "refused"

    @property
    def let_in(self) -> bool:
        return self.then == "refused" and self.now in ("hit", "sent")

    @property
    def hit(self) -> bool:
        """It comes out of the cache, and then it did not."""
        return self.now == "hit" and self.then != "hit"

    @property
    def lost(self) -> bool:
        """It came out of the cache, and now it is sent."""
        return self.then == "hit" and self.now == "sent"

    @property
    def changed(self) -> bool:
        ways = (self.refused, self.let_in, self.hit, self.lost, self.moved, self.downgraded, self.shaped, self.guarded)
        return any(ways) or self.now == "unseen"


# -- then -------------------------------------------------------------------------------------------------------------


def fate_then(call: Call) -> Fate:
    if call["source"] == "cache":
        return "hit"
    if call["source"] in BY_RULE:
        return "refused"
    return "refused" if call["source"] == "gateway" and not call["attempts"] else "sent"


def was_answered(call: Call) -> bool:
    """Return whether its row tells of an answer; of one that was refused at the door it tells of none."""
    return fate_then(call) != "refused" or bool(call["attempts"])


def price_then(call: Call) -> int | None:
    """Return what the answer cost where it came from."""
    cost: int | None = call["saved_nanousd"] if fate_then(call) == "hit" else call["cost_nanousd"]
    return cost


def acted_then(call: Call, room: str, action: str = "") -> bool:
    """Return whether a rule of *room* acted then, a shadow not counted; by that *action*, where one is given."""
    return any(act[0] == room and (not action or act[2] == action) for act in call["acted"])


COUNTERS = (
    *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    *("cache_creation_1h_input_tokens", "reasoning_output_tokens", "input_audio_tokens", "output_audio_tokens"),
)


def usage_of(call: Call) -> Usage:
    return Usage(**{name: call[name] for name in COUNTERS}, service_tier=call["service_tier"])


def reading_of(call: Call) -> Reading:
    """Return what the row says of its answer."""
    usage, is_whole = usage_of(call), call["terminal"] == "complete"
    return Reading(
        usage=usage,
        usage_seen=call["usage_source"] in ("reported", "reported_partial"),
        usage_final=call["usage_source"] == "reported",
        response_model=call["response_model"],
        finish_reasons=json.loads(call["finish_reasons"] or "[]"),
        first_content=bool(usage.output_tokens),
        ended=is_whole,
        finished=is_whole,
        error_type=call["error_type"],
        error_event=call["terminal"] == "error_event",
        parse_errors=call["parse_errors"] or 0,
        streamed=bool(call["streamed"]),
        estimated=call["usage_source"] == "estimated",
    )


# -- now --------------------------------------------------------------------------------------------------------------


def is_same_model(call: Call, leg: Leg, priced: Priced) -> bool:
    """Return whether *leg* asks for the model that answered then; *priced*: that answer, at *leg*.

    Names differ (a date, a deployment), so the price table's entry decides where both answers have one.
    """
    if leg.model is None or leg.model == call["response_model"]:
        return True
    then, now = _model_in(call["price_detail"]), _model_in(priced.detail if priced.version else None)
    return then == now if then and now else leg.model == call["request_model"]


def _model_in(detail: str | None) -> str | None:
    """Return the model of a price's ``openai/gpt-4o``, whoever sells it."""
    return (detail or "").partition("/")[2] or None


def is_same_place(call: Call, leg: Leg) -> bool:
    first = call["first_target"] or call["target"]
    return first is None or first == leg.target


def refuser_of(x: Exchange) -> tuple[str, str]:
    """Return (room, rule) of what refused *x*."""
    for event in reversed(x.events):
        if event.action in SAYS_NO and not event.shadow:
            return event.room, event.rule
    refusal = x.refusal
    room, dot, rule = (refusal.rule or "" if refusal else "").partition(".")  # ``identify.require``
    return (room, rule) if dot else ("gateway", refusal.kind if refusal else "")


def has_acted(x: Exchange, room: str) -> bool:
    return any(event.room == room and not event.shadow for event in x.events)
