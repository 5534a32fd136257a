"""Make the attempts of a course: one, or a second beside a slow one; tell the breaker how each went.

Runs once per try at a leg. Promises: whoever got a permit gives it back, with what the attempt says about the place or
without a word; an attempt that was ended from outside says why in its row; of two attempts the first with content wins
and the other is ended. Where a target has a pool of keys and one of them was refused, the try goes on with the next
(``provider_keys``): an attempt of its own in the rows, and no retry.
"""

from collections.abc import Coroutine
from typing import Any

from mitmgate.arrival import HOLD_S, Arrival, Caller
from mitmgate.breaker import Breakers, Permit, Resting, is_failure
from mitmgate.clock import Clock
from mitmgate.course import Course, Outcome
from mitmgate.exchange import Attempt, Exchange, Leg
from mitmgate.hedge import Hedges
from mitmgate.pool import Failed
from mitmgate.provider_keys import Keys
from mitmgate.race import race
from mitmgate.usage import Usage


class Attempts:
    def __init__(self, clock: Clock, usage: Usage, breakers: Breakers, hedges: Hedges, keys: Keys | None) -> None:
        self.clock, self.usage = clock, usage
        self.breakers, self.hedges = breakers, hedges
        self.keys = keys
        """None where no target holds keys that have to be chosen or made."""
        self.caller = Caller(clock, usage, keys)

    async def make(self, course: Course, permit: Permit) -> tuple[Outcome, Permit]:
        """Return what the attempt at the course's leg brought, and the permit of the place that it came from.

        A stream that has yet to show its content leaves the permit open: ``tell`` is for whoever goes on reading it.
        """
        self._ask_shadows(course)
        try:
            outcome, permit = await self._first_of_two(course, permit)
        except BaseException:
            for watcher in course.watchers:
                watcher.released()
            raise
        self._tell_shadows(course, outcome.cause)
        return outcome, permit

    # -- one attempt

    async def _attempt(
        self, course: Course, leg: Leg, permit: Permit, wait_s: float = 0.0, *, beside: bool = False
    ) -> Outcome:
        """Return what the attempt brought; the breaker has been told, unless a stream has yet to show its content.

        *beside*: another attempt is under way, or may be, and whichever has its content first is to win.
        """
        try:
            if self.keys and self.keys.holds(leg):
                outcome = await self._by_keys(self.keys, course, leg, wait_s, beside)
            else:
                outcome = await self._send(course, leg, wait_s, beside)
        except BaseException:
            permit.released()
            raise
        if isinstance(outcome, Failed) or _has_shown(outcome):
            self.tell(course, permit, outcome.cause)
        return outcome

    async def _by_keys(self, keys: Keys, course: Course, leg: Leg, wait_s: float, beside: bool) -> Outcome:
        """Make attempts at *leg* with one key after the other, while one is refused and another is ready."""
        tried: set[str] = set()
        while True:
            keys.arm(leg, course.x, tried)
            outcome = await self._send(course, leg, wait_s, beside)
            if news := keys.tell(leg, outcome):
                course.note("targets", leg.target, "rest", news)
            if course.sink.upload is not None or not keys.may_go_on(leg, course.x, outcome, tried):
                return outcome
            course.drop(outcome)
            wait_s = 0.0

    async def _send(self, course: Course, leg: Leg, wait_s: float, beside: bool) -> Outcome:
        x = course.x
        attempt = self._begin(x, leg, wait_s)
        try:
            hold_s = None if beside else HOLD_S if course.can_go_on else 0.0
            arrival = await self.caller.call(x, leg, attempt, course.sink.upload, hold_s)
        except Failed as failed:
            attempt.error_type, attempt.detail, attempt.ended = failed.cause, failed.detail, self.clock.now()
            return failed
        except BaseException:
            attempt.ended = self.clock.now()
            raise
        if arrival.cause is not None:
            attempt.error_type = attempt.reading.error_type or str(arrival.cause)
        return arrival

    def _begin(self, x: Exchange, leg: Leg, wait_s: float) -> Attempt:
        if not leg.asked_usage:
            self.usage.ask(x, leg)
        provider = leg.provider.provider_name if leg.provider else leg.host
        attempt = Attempt(len(x.attempts) + 1, leg.target, provider, leg.host, self.clock.now(), wait_s)
        attempt.model = leg.model
        x.attempts.append(attempt)
        x.sent_body = leg.body
        return attempt

    # -- what the breaker hears

    def tell(self, course: Course, permit: Permit, cause: int | str | None) -> None:
        """Tell the breaker how an attempt went; note where this was one failure too many."""
        if cause == "timeout" and "request-timeout" in course.x.controls:
            permit.released()  # the client's own clock: its haste must not close the place to others
            return
        rule = course.breaker
        if cause is None or not is_failure(cause):
            permit.succeeded()
        elif permit.failed() and rule:
            course.note("breaker", rule.name, "rest", f"{permit.target} rests for {rule.rest_s:g} s")

    def _ask_shadows(self, course: Course) -> None:
        """Have the shadowed rules watch the attempt that is to come, and note where they would have forbidden it."""
        asked = [(rule, self.breakers.ask(course.leg.key, rule)) for rule in course.shadows]
        course.watchers = [permit for _, permit in asked if isinstance(permit, Permit)]
        for rule, permit in asked:
            if isinstance(permit, Permit) and permit.would_rest is not None:
                detail = f"{permit.target} would rest: {permit.would_rest:.1f} s left"
                course.note("breaker", rule.name, "rest", detail, shadow=True)

    def _tell_shadows(self, course: Course, cause: int | str | None) -> None:
        for permit in course.watchers:
            if cause is None or not is_failure(cause):
                permit.succeeded()
            else:
                permit.failed()
        course.watchers = []

    # -- two attempts at once

    async def _first_of_two(self, course: Course, permit: Permit) -> tuple[Outcome, Permit]:
        """Make the attempt that is due, and where it takes too long a second one elsewhere; return what came first."""
        x, leg = course.x, course.leg
        delay_s = self._hedge_delay(course)
        first = self._attempt(course, leg, permit, course.wait_s, beside=delay_s is not None)
        if delay_s is None:
            return await first, permit
        permits = [permit]

        def second() -> Coroutine[Any, Any, Outcome] | None:
            return self._second(course, permits)

        outcome = await race(first, second, delay_s, lambda one: one.cause is None, course.drop)
        if len(permits) == 1:
            return outcome, permit
        self._name_loser(x, outcome)
        won = 0 if isinstance(outcome, Failed) or outcome.leg is leg else 1
        permits[1 - won].released()  # says nothing where its attempt has said how that place is
        return outcome, permits[won]

    def _hedge_delay(self, course: Course) -> float | None:
        """Return after how long a second attempt starts; None where none does."""
        x = course.x
        if x.hedge is None or course.sink.upload is not None:
            return None
        if course.tries == 1 and x.step == 0:
            self.hedges.called(course.leg.key)
        return self.hedges.delay(x.hedge, course.leg.key) if x.spare else None

    def _second(self, course: Course, permits: list[Permit]) -> Coroutine[Any, Any, Outcome] | None:
        x = course.x
        if x.spare is None or x.hedge is None or not self.hedges.may(x.hedge, course.leg.key):
            return None
        permit = self.breakers.ask(x.spare.key, course.breaker)
        if isinstance(permit, Resting):
            return None
        spare, x.spare = x.spare, None
        permits.append(permit)
        self.hedges.started(course.leg.key)
        detail = f"{course.leg.target} had no content; asked {spare.target}, too"
        course.note("hedge", x.hedge.name, "hedge", detail)
        return self._attempt(course, spare, permit, beside=True)

    def _name_loser(self, x: Exchange, outcome: Outcome) -> None:
        winner = outcome.attempt if isinstance(outcome, Arrival) else None
        for attempt in x.attempts[-2:]:
            if attempt is not winner and attempt.error_type is None:
                attempt.error_type, attempt.detail = "cancelled", "another attempt had its content first"


def _has_shown(arrival: Arrival) -> bool:
    """Return whether *arrival* has shown how its place is doing: a stream may still have to."""
    return arrival.cause is not None or arrival.whole or bool(arrival.attempt.reading.first_content)


def name_cancelled(x: Exchange) -> None:
    """Say of attempts that were ended from outside why they brought nothing."""
    for attempt in x.attempts:
        if attempt.error_type is None and attempt.answer is not x.answer:
            attempt.error_type, attempt.detail = "cancelled", "nobody was left to hear its answer"
