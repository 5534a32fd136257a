"""Recorded calls through a new policy: what it would have done with each, in their own time.

Calls come oldest first, by a clock that is turned to when they came, so that windows slide and calendars turn as they
did. Each goes through the rooms (``rehearsal``) as far as a provider would be asked; what was answered then is its
answer now, after as long as it took then: its usage and cost settle limits and budgets, guards look at it, and a good
one is kept where a cache rule says so. Counters begin at 0; of the cache only those answers are there from before that
were found then.

Calls that the gateway made itself are no part of it, nor are retries, hedges and breakers: how a place would have
answered that was not asked, nobody knows. The same holds for more, which is counted (``rerun_unknown``).
"""

import heapq
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from math import inf

from mitmgate import cache_rules, recorded
from mitmgate.answers import Head
from mitmgate.cache_rules import Decision
from mitmgate.clock import ManualClock
from mitmgate.dialects.base import Reading, Usage
from mitmgate.exchange import Answer, Attempt, Event, Exchange, Leg
from mitmgate.fields import Get, fields_of
from mitmgate.inner import Collected
from mitmgate.policy import Policy
from mitmgate.policy.match import acts, fits
from mitmgate.pricing import PRICES, Priced, Prices
from mitmgate.rehearsal import Rehearsal
from mitmgate.rerun_cache import STEERED, KeptKeys, age_of, entry_of
from mitmgate.rerun_outcome import (
    Call,
    Outcome,
    acted_then,
    fate_then,
    has_acted,
    is_same_model,
    is_same_place,
    price_then,
    reading_of,
    refuser_of,
    was_answered,
)
from mitmgate.rerun_unknown import Unknowns

log = logging.getLogger("mitmgate.check")

STEP_S = 0.001
"""Rows tell times in milliseconds, cut: a call may begin this much later than its row says, behind the end of another.
"""

SETTLES = ("route", "account", "spend")
"""Rooms that have to know how a call ended, in their order; the others keep books, and there are none here."""

UNSEEN = "its host is no provider's in this policy: it would be tunnelled"
BROKEN = "a room broke, and a gateway would have refused it"


@dataclass(slots=True)
class Pending:
    """A call whose answer is still on its way."""

    x: Exchange
    call: Call
    key: str
    """Under which its answer may be kept."""
    decision: Decision | None
    """None = it may not be."""


class Rerun:
    """The calls of one time through one policy. ``take`` them in their order; ``end`` comes last."""

    def __init__(
        self,
        policy: Policy,
        rooms: Rehearsal,
        clock: ManualClock,
        policies: Mapping[str, Policy] | None = None,
        prices: Prices = PRICES,
    ) -> None:
        """*rooms* are those of *policy*, by *clock*. *policies*: by their hash, those that held then, as far as they
        are known.
        """
        self.policy, self.rooms, self.clock, self.prices = policy, rooms, clock, prices
        self.policies = policies or {}
        self.kept = KeptKeys(clock, policy.cache_store.max_bytes)
        rooms.take_answers(self.kept)
        self.unknown: Counter[str] = Counter()
        """What could not be decided -> of how many calls."""
        self._unknowns = Unknowns(policy)
        self.bodies = self._unknowns.bodies
        """Kinds of bodies that calls should come with."""
        self._began: float | None = None
        """When the first call came, seconds since 1970."""
        self._call: Call = {}
        """The one that goes through the rooms."""
        self._pending: list[tuple[float, int, Pending]] = []
        """(when it ends, …), the first to end first."""
        self._number = count()

    async def take(self, call: Call) -> Outcome:
        """Return what becomes of *call*, which came after all that were taken before."""
        wall = recorded.wall_of(call)
        self._began = wall if self._began is None else self._began
        self._end_until(wall)
        self._turn(wall)
        self._call = call
        outcome = Outcome(call, fate_then(call), cost_then=call["cost_nanousd"])
        body = call["request"]
        x = recorded.exchange_of(call, body, self.rooms.hosts, self.policy, self.clock.now())
        if x is None:
            outcome.cost_now = outcome.cost_then
            self.unknown[UNSEEN] += 1
            return outcome
        try:
            await self.rooms.admit_again(x, call, body is not None, self)
            await self._judge(x, outcome)
        except Exception:
            log.exception("check: the call %s broke a room", call["id"])
            self.unknown[BROKEN] += 1
        self.unknown.update(self._unknowns.of(x, outcome))
        self.unknown.update(f"{asked}, and nobody knows what it would have said" for asked in self.rooms.asked)
        self.rooms.asked.clear()
        return outcome

    def end(self) -> None:
        """All calls were taken: let those end that are under way."""
        self._end_until(inf)

    # -- time

    def _turn(self, wall: float) -> None:
        self.clock.seconds = max(self.clock.seconds, wall - self.clock.started_wall)

    def _end_until(self, wall: float) -> None:
        """Let the calls end that ended before *wall*, as far as rows can tell."""
        while self._pending and self._pending[0][0] <= wall + STEP_S:
            ended, _, pending = heapq.heappop(self._pending)
            self._turn(ended)
            self._settle(pending)

    # -- the cache of then

    def after(self, room: str, x: Exchange) -> None:
        """Hear of each room that the call has left: it is known whose it is, so how it was steered is, too."""
        if room == "identify" and self._call["cache_status"]:
            x.controls |= self._steered(x)

    def before(self, room: str, x: Exchange) -> None:
        """Hear of each room that the call comes to."""
        if room == "cache" and self._call["cache_status"] == "HIT":
            self._put_back(x)

    def _steered(self, x: Exchange) -> dict[str, object]:
        """Return the headers that *x* must have come with, as far as the cache goes."""
        then = self.policies.get(self._call["policy_sha256"] or "")
        if acts(self.policy.cache if then is None else then.cache, self._fields_then(x, then)):
            return {}
        return STEERED[self._call["cache_status"]]

    def _fields_then(self, x: Exchange, then: Policy | None) -> Get:
        get = fields_of(x)
        if then is None:
            return get
        labels = {name: self._call[name] for name in ("route", "tier", "sla")}
        return lambda name: labels[name] if name in labels else get(name)

    def _put_back(self, x: Exchange) -> None:
        """Let the answer be there that *x* found then, if it was kept before the first of all calls came."""
        age_s = age_of(self._call)
        decision = cache_rules.decide(self.policy.cache, x.controls, x.headers, fields_of(x))
        if age_s is None or decision is None or self._began is None:
            return
        stored_at = self.clock.wall() - age_s
        if stored_at < self._began:
            entry = entry_of(x, self.rooms.cache.key(x, decision), decision, stored_at, reading_of(self._call))
            self.kept.keep(entry, self._call["answer_bytes"] or 0)

    # -- one call

    async def _judge(self, x: Exchange, outcome: Outcome) -> None:
        """Find out what became of *x*, and let it end in its time."""
        call, took_s = outcome.call, 0.0
        key, decision = self.rooms.cache.decisions.pop(x.id, ("", None))
        if not call["attempts"]:
            self._find_again(x, call)
        if x.refusal:
            outcome.now, outcome.cost_now, outcome.refused_by = "refused", 0, refuser_of(x)
        elif x.replay:
            outcome.now, outcome.cost_now = "hit", 0
            outcome.hit_by = self._cache_rule(x)
            x.source, x.status, x.how = "cache", 200, "end"
        else:
            took_s = (call["duration_ms"] or 0.0) / 1000
            self._send(x, outcome)
            await self._watch_answer(x, call)
        if call["attempts"] and not x.refusal:
            self._find_again(x, call)
        if x.refusal and outcome.now != "refused":  # for its answer, which is paid all the same
            outcome.now, outcome.refused_by = "refused", refuser_of(x)
        outcome.events = x.events
        outcome.shaped = has_acted(x, "shape") and not acted_then(call, "shape")
        outcome.guarded = has_acted(x, "guard") and not acted_then(call, "guard")
        pending = Pending(x, call, key, decision if decision and decision.keep else None)
        heapq.heappush(self._pending, (self.clock.wall() + took_s, next(self._number), pending))

    def _find_again(self, x: Exchange, call: Call) -> None:
        """Let guards find what they found then: rows and bodies do not show any more what a rule blocks or redacts."""
        acted = [(rule, action) for room, rule, action in call["acted"] if room == "guard"]
        if not acted:
            return
        guard, get = self.rooms.guard, fields_of(x)
        for n, rule in enumerate(guard.rules):
            if (rule.name, rule.then) in acted and guard.hides(n) and fits(rule, get) and not _has_event(x, rule.name):
                x.events.append(Event("guard", rule.name, str(rule.then), detail="as then: what it found is masked"))
                if guard.blocks(n):
                    x.refuse(guard.refusal(x, n, ["what it found then"]))

    def _cache_rule(self, x: Exchange) -> str:
        decision = cache_rules.decide(self.policy.cache, x.controls, x.headers, fields_of(x))
        return decision.rule if decision else cache_rules.BY_HEADER

    def _send(self, x: Exchange, outcome: Outcome) -> None:
        """Let *x* go to the first of its places, and have the answer of then."""
        call, leg = outcome.call, x.legs[0]
        reading = reading_of(call)
        if not was_answered(call):
            need = self.rooms.state.lengths.need(x, leg.model)
            reading.usage, reading.estimated = Usage(need.input, need.output), True
        priced = self._price(x, leg, reading.usage)
        same_model = is_same_model(call, leg, priced)
        outcome.now, outcome.sent_by = "sent", x.route_rule
        outcome.downgraded = x.downgrade is not None and not acted_then(call, "budget", "downgrade")
        outcome.moved = outcome.then == "sent" and not (same_model and is_same_place(call, leg))
        outcome.cost_now = price_then(call) if same_model and was_answered(call) else priced.cost_nanousd
        reading.response_model = reading.response_model if same_model else leg.model
        self._put_answer(x, call, leg, reading)

    def _price(self, x: Exchange, leg: Leg, usage: Usage) -> Priced:
        """Return what *usage* costs at *leg*."""
        provider = leg.provider or x.provider
        at = datetime.fromtimestamp(x.started_wall, UTC)
        return self.prices.price(provider.prices if provider else "", leg.host, (leg.model,), usage, at)

    def _put_answer(self, x: Exchange, call: Call, leg: Leg, reading: Reading) -> None:
        """Give *x* the answer that *reading* tells of, as if it came from *leg*."""
        provider = leg.provider or x.provider
        status = call["status_code"] if was_answered(call) else 200
        name = provider.provider_name if provider else ""
        attempt = Attempt(1, leg.target, name, leg.host, x.started, status=status, model=leg.model)
        attempt.answer = Answer(reading, size=call["answer_bytes"] or 0)
        x.attempts, x.answer, x.origin = [attempt], attempt.answer, attempt.origin
        x.status, x.how = status, call["how"] or "end"
        x.answer_headers = {"content-type": "text/event-stream" if call["streamed"] else "application/json"}

    async def _watch_answer(self, x: Exchange, call: Call) -> None:
        """Let guards look at the answer of then, where it was kept."""
        if call["response"] is None:
            return
        heard = Collected(x)
        sink = self.rooms.guard.watch(x, heard)
        if sink is not heard:
            kind = call["response_type"] or "application/json"
            head = Head(x.status or 200, b"", [(b"content-type", kind.encode())], {"content-type": kind})
            await sink.whole(head, call["response"], call["response"])

    # -- its end

    def _settle(self, pending: Pending) -> None:
        x, tapes = pending.x, self.rooms.state.tapes
        if tapes.get(pending.key) is x.tape:
            tapes.pop(pending.key, None)
        if x.refusal:
            x.how, x.status, x.source = "refused", x.refusal.status, x.refusal.source
        elif pending.decision:
            self._keep(pending, pending.decision)
        for name in SETTLES:
            self.rooms.by_name[name].settle(x)
        self.rooms.ledger.noted.clear()

    def _keep(self, pending: Pending, decision: Decision) -> None:
        """Let the answer of a call be kept, where it may be; of one that was refused then nobody knows."""
        x, call = pending.x, pending.call
        if not was_answered(call) or cache_rules.why_not_kept(x.status, x.reading, x.how, bool(call["streamed"])):
            return
        entry = entry_of(x, pending.key, decision, self.clock.wall(), x.reading)
        self.kept.keep(entry, call["answer_bytes"] or 0)


def _has_event(x: Exchange, rule: str) -> bool:
    return any((event.room, event.rule) == ("guard", rule) for event in x.events)
