"""Perform an exchange: try the places that may answer, in order, and bring the first good answer to where it is wanted.

Runs when every room before it has let the request through. Promise: the client gets the provider's bytes, or an error
in its own API's words; once a byte is out, nothing is sent again; each phase has its own clock; where nobody is left
to hear it, the attempt ends at once, except where the provider would bill the whole answer anyway
(``after_client_leaves: drain``). What failed keeps its own row among the attempts.
"""

import asyncio
from contextlib import suppress

from mitmgate import hints
from mitmgate.arrival import Arrival
from mitmgate.attempts import Attempts, name_cancelled
from mitmgate.breaker import Breakers, Permit, Resting
from mitmgate.clock import Clock
from mitmgate.course import Course, Outcome
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Leg
from mitmgate.fields import Get, fields_of
from mitmgate.hedge import Hedges
from mitmgate.layer import Gone
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.policy.match import acts, shadows
from mitmgate.pool import Failed, Pool
from mitmgate.provider_keys import Keys
from mitmgate.retry import Failure, GiveUp, NextTarget, Retries, Wait, next_step, rule_for
from mitmgate.sink import Sink
from mitmgate.usage import Usage


class Upstream:
    name = "mitmgate.upstream"

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        usage: Usage,
        retries: Retries,
        breakers: Breakers,
        hedges: Hedges,
        keys: Keys | None = None,
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.retries, self.breakers, self.hedges = retries, breakers, hedges
        self.keys = keys if keys and keys.held else None
        self.attempts = Attempts(clock, usage, breakers, hedges, self.keys)
        self.caller = self.attempts.caller
        self.drains = policy.upstream.after_client_leaves

    def open(self, pool: Pool) -> None:
        """Send by *pool* from now on."""
        self.caller.pool = pool
        if self.keys:
            self.keys.pool = pool

    async def close(self) -> None:
        if self.caller.pool:
            await self.caller.pool.close()

    # -- the answer

    async def answer(self, x: Exchange, sink: Sink) -> None:
        """Write the answer of *x* to *sink*. Raises ``Gone`` or ``CancelledError`` when nobody is left to hear it."""
        slug = x.provider.slug if x.provider else "default"
        sink.drain = x.dialect is not None and self.drains.get(slug, self.drains.get("default")) == "drain"
        get = fields_of(x)
        course = Course(x, sink, self.clock, acts(self.policy.retry, get) or rules.Retry())
        if self.policy.breaker:
            course.breaker, course.shadows = acts(self.policy.breaker, get), shadows(self.policy.breaker, get)
        try:
            async with asyncio.timeout(x.timeouts.total_s) as total:
                await self._try_legs(course, get)
        except TimeoutError:
            if not total.expired():
                raise
            await self._give_up(course, Failed("timeout", f"no complete answer within {x.timeouts.total_s:g} s"))
        finally:
            if course.answer:
                course.answer.close()
            name_cancelled(x)

    async def _try_legs(self, course: Course, get: Get) -> None:
        """Go from leg to leg until there is an answer, or nothing left to try."""
        x, policy_retry = course.x, course.retry
        while course.legs_left >= 0:
            leg = course.leg
            course.retry = rule_for(policy_retry, x.controls, leg, x.headers)
            course.tries += 1
            permit = self.breakers.ask(leg.key, course.breaker)
            if isinstance(permit, Resting):
                self._skip(course, permit)
                continue
            if await self._try_leg(course, permit, get):
                return
        await self._end(course)

    async def _try_leg(self, course: Course, permit: Permit, get: Get) -> bool:
        """Make one attempt; True where the client has its answer, whatever that is."""
        leg = course.leg
        if course.tries == 1:
            self.retries.called(leg.key)
        outcome, permit = await self.attempts.make(course, permit)
        if isinstance(outcome, Arrival) and outcome.cause is None:
            self.retries.admitted(outcome.leg.key)
            await self._deliver(course, outcome, permit)
            return True
        course.keep(outcome)
        if course.sink.upload is not None:
            await self._end(course, GiveUp("its upload has gone out once, and nobody has kept it"))
            return True
        failure = self._failure(course, outcome)
        step = self.retries.decide(course.retry, course.x.fall_back_on, failure, leg.key)
        self._note_shadows(course, get, failure)
        if isinstance(step, Wait):
            await self._wait(course, step, failure)
            return False
        if isinstance(step, NextTarget):
            self._go_on(course, failure)
            return False
        await self._end(course, step)
        return True

    def _failure(self, course: Course, outcome: Outcome) -> Failure:
        x, named_s, final = course.x, None, False
        if isinstance(outcome, Arrival):
            attempt, (_, body) = outcome.attempt, outcome.body()
            named_s = hints.named_wait(attempt.headers, body, self.clock.wall(), attempt.status or 0)
            final = hints.is_final(attempt.status or 0, attempt.headers, attempt.reading.error_type)
        return Failure(
            outcome.cause or 0,
            attempt_on_target=course.tries,
            elapsed_s=self.clock.now() - x.started,
            targets_left=course.legs_left,
            named_s=named_s,
            final=final,
            fell_back=any(attempt.target != course.leg.target for attempt in x.attempts),
        )

    # -- between attempts

    async def _wait(self, course: Course, step: Wait, failure: Failure) -> None:
        why = " as the provider asked" if step.named else ""
        detail = f"{course.leg.target}: {failure.cause}; waited {step.seconds:.3f} s{why}"
        course.note("retry", course.retry.name, "retry", detail)
        course.wait_s = step.seconds
        await asyncio.sleep(step.seconds)

    def _go_on(self, course: Course, failure: Failure) -> None:
        x = course.x
        left = course.leg.target
        x.step += 1
        course.tries, course.wait_s = 0, 0.0
        detail = f"{left}: {failure.cause}; on to {course.leg.target}"
        course.note("route", x.route_rule, "fallback", detail)

    def _skip(self, course: Course, resting: Resting) -> None:
        """Pass by a leg that rests; where it was the last, ``x.step`` stays behind the end."""
        x = course.x
        rule = course.breaker.name if course.breaker else "breaker"
        course.note("breaker", rule, "rest", f"{resting.target} rests: {resting.seconds:.1f} s left")
        course.resting.append(resting)
        x.step += 1
        course.tries, course.wait_s = 0, 0.0

    def _note_shadows(self, course: Course, get: Get, failure: Failure) -> None:
        """Note which shadowed rules would have tried again here."""
        for rule in shadows(self.policy.retry, get):
            if isinstance(next_step(rule, frozenset(), failure, 0.5, True), Wait):
                detail = f"{course.leg.target}: {failure.cause}"
                course.note("retry", rule.name, "retry", detail, shadow=True)

    # -- bringing it to the client

    async def _deliver(
        self, course: Course, arrival: Arrival, permit: Permit | None = None, should_retry: bool | None = None
    ) -> None:
        """Hand *arrival* on, and the rest of it as it comes."""
        x, sink, attempt = course.x, course.sink, arrival.attempt
        self._adopt(x, arrival)
        try:
            head = arrival.head(should_retry)
            if arrival.whole:
                await sink.whole(head, *arrival.body())
                return
            await sink.head(head)
            await _pass_on(sink, *arrival.body())
            while chunk := await self.caller.next(x, arrival):
                await _pass_on(sink, arrival.feed(chunk), arrival.tap.plain)
                if permit and (attempt.reading.first_content or attempt.reading.error_event):
                    self.attempts.tell(course, permit, arrival.cause)
                    permit = None
            await _pass_on(sink, self.caller.finish(arrival), arrival.tap.plain)
            if permit and attempt.reading.ended:
                self.attempts.tell(course, permit, arrival.cause)
            if not sink.gone:
                await sink.end()
        except Failed as failed:
            with suppress(Gone):
                await _pass_on(sink, arrival.tap.release(), arrival.tap.plain)
            attempt.error_type, attempt.detail = failed.cause, failed.detail
            await self._break_off(course, failed)
            if permit:
                self.attempts.tell(course, permit, failed.cause)
        finally:
            arrival.close()
            attempt.error_type = attempt.error_type or attempt.reading.error_type  # told behind the first content
            if permit:
                permit.released()
            if self.policy.hedge and attempt.answer.first_content is not None:
                self.hedges.note(arrival.leg.key, attempt.answer.first_content - attempt.started)

    def _adopt(self, x: Exchange, arrival: Arrival) -> None:
        """Make the answer of one attempt the answer of the exchange."""
        x.answer = arrival.attempt.answer
        x.origin = arrival.attempt.origin
        x.sent_body = arrival.leg.body
        x.step = _step_of(x, arrival.leg)

    async def _break_off(self, course: Course, failed: Failed) -> None:
        if failed.cause != "timeout":
            await course.sink.cut(failed.detail, "cut")
        else:
            last = Refusal(504, "timeout", f"mitmgate ended this stream: {failed.detail}", error_type="timeout")
            await course.sink.cut(failed.detail, "timeout", last)

    # -- when nothing is left to try

    async def _end(self, course: Course, step: GiveUp | None = None) -> None:
        """Give the client the best of what there is: the provider's last answer, else an error of our own."""
        x = course.x
        should_retry = False if len(x.attempts) > 1 else step.should_retry if step else None
        if course.answer:
            answer, course.answer = course.answer, None
            await self._deliver(course, answer, should_retry=should_retry)
        elif course.failed:
            await self._give_up(course, course.failed, should_retry)
        else:
            await self._refuse_resting(course)

    async def _give_up(self, course: Course, failed: Failed, should_retry: bool | None = None) -> None:
        """Tell the client that no answer, or no more of it, will come."""
        x = course.x
        for attempt in x.attempts:  # those under way: two of them, where one is hedged
            if attempt.error_type is None and not attempt.reading.ended:
                attempt.error_type, attempt.detail = failed.cause, failed.detail
        if course.sink.started:
            await self._break_off(course, failed)
            return
        if x.step >= len(x.legs):
            x.step = len(x.legs) - 1
        host = next((attempt.host for attempt in reversed(x.attempts) if attempt.detail == failed.detail), x.host)
        is_timeout = failed.cause == "timeout"
        refusal = Refusal(
            504 if is_timeout else 502,
            "timeout" if is_timeout else "connection",
            f"mitmgate could not get an answer from {host}: {failed.detail}",
            error_type=failed.cause,
            should_retry=should_retry,
        )
        await course.sink.refuse(refusal, "timeout" if is_timeout else "failed")

    async def _refuse_resting(self, course: Course) -> None:
        x, rule = course.x, course.breaker
        x.step = 0
        soonest_s = max(1.0, min(resting.seconds for resting in course.resting))
        where = self.policy.where(f"breaker[{self.policy.breaker.index(rule)}]") if rule else None
        names = " and ".join(dict.fromkeys(leg.target for leg in x.legs))
        refusal = Refusal(
            503,
            "overloaded",
            f"{names} failed too often and rests; the next probe is in {soonest_s:.0f} s"
            f" (rule {rule.name if rule else 'breaker'}{f', {where}' if where else ''})",
            rule=rule.name if rule else None,
            where=where,
            retry_after_s=soonest_s,
            should_retry=True if soonest_s <= 60 else None,
        )
        await course.sink.refuse(refusal, "refused")


async def _pass_on(sink: Sink, piece: bytes, plain: bytes) -> None:
    if not piece or (sink.gone and sink.drain):
        return
    try:
        await sink.data(piece, plain)
    except Gone:
        if not sink.drain:
            raise


def _step_of(x: Exchange, leg: Leg) -> int:
    """Return the index of *leg*; a spare one has that of the leg at the same target, else stands behind all."""
    same = [n for n, one in enumerate(x.legs) if one is leg] or [
        n for n, one in enumerate(x.legs) if one.target == leg.target
    ]
    return same[0] if same else len(x.legs)
