"""Decide what follows a failed attempt: wait and try again, change target, or give up.

Runs after each failed attempt, as long as the client has not received a byte. ``next_step`` is pure: it takes facts and
returns a decision. ``Retries`` adds what must be remembered between calls: how many retries a target had lately, and
when those that wait for it will come. ``upstream`` acts on the step.

Promises: a call makes no more attempts on a target than its rule allows; no wait ends after ``within``; what would fail
again in the same way is not tried again; an outage is not amplified beyond ``ratio``; a wait that the provider named is
never shortened, and those who were named the same moment do not come back as one wave.

The n-th wait on a target is ``delay`` (constant), ``delay * n`` (linear) or ``delay * 2**(n - 1)`` (exponential), but
``max_delay`` at most; ``jitter: full`` draws it from 0 to there. A wait that the provider named takes its place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, cast

from mitmgate.clock import Clock
from mitmgate.exchange import Leg
from mitmgate.hints import LASTING_S, NEVER
from mitmgate.lately import PerTarget, Window
from mitmgate.policy.values import Causes, Retry

RATIO_S = 10.0
"""Retries and calls are compared over so long."""
FREE_RETRIES = 10
"""So many retries in that time are always allowed: a ratio of few calls says nothing."""

UNKNOWN_RATE = 50.0
"""Calls per second that a target is believed to admit, while it has admitted none."""
CAUTION = 0.9
"""Those who wait come back at this share of the rate that was seen: new calls come beside them."""
SPREAD_S = 2.0
"""They are spread over so long at least, where the rate asks for more."""

BACKOFFS: Mapping[str, Callable[[int], float]] = {
    "constant": lambda n: 1.0,
    "linear": lambda n: float(n),
    "exponential": lambda n: 2.0 ** min(n - 1, 30),  # a float overflows at 2.0**1024
}
"""By how much ``delay`` grows for the n-th wait."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What the latest attempt left behind."""

    cause: int | str
    """The status, or how it failed before the first content: ``connect``, ``timeout``, ``reset``, ``error_event``."""
    attempt_on_target: int
    """1 for the first attempt on this target."""
    elapsed_s: float
    """Since the exchange began."""
    targets_left: int
    named_s: float | None = None
    """The wait that the provider named (``hints.named_wait``)."""
    final: bool = False
    """No wait cures it (``hints.is_final``)."""
    fell_back: bool = False
    """Another target has been tried before this one."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Try this target again after *seconds*."""

    seconds: float
    named: bool = False
    """The provider asked for it."""


@dataclass(frozen=True, slots=True)
class NextTarget:
    pass


@dataclass(frozen=True, slots=True)
class GiveUp:
    reason: str
    """Ends the sentence "No further attempt because …"."""
    should_retry: bool | None = None
    """``x-should-retry`` for the client; None leaves the decision to it."""


type Step = Wait | NextTarget | GiveUp


# -- the rule of one call ---------------------------------------------------------------------------------------------


def rule_for(rule: Retry, controls: Mapping[str, Any], leg: Leg, headers: Mapping[str, str]) -> Retry:
    """Return *rule* as it holds for a call to *leg*.

    What the call's own element or place says goes before the ``cf-aig-*`` headers (*controls*), these before the
    policy. A delay that the client named is waited in full: no jitter, and at least the first one uncapped. What the
    client's SDK has already retried by itself, as its ``x-stainless-retry-count`` says, is taken from the attempts.
    """
    attempts = _first(leg.attempts, controls.get("max-attempts"), rule.attempts)
    attempts = max(1, attempts - _sdk_retries(headers))
    backoff = _first(leg.backoff, controls.get("backoff"), rule.backoff)
    if (attempts, backoff) != (rule.attempts, rule.backoff):
        rule = replace(rule, attempts=attempts, backoff=cast(Any, backoff))
    delay_ms = controls.get("retry-delay")
    delay_s = _first(leg.delay_s, None if delay_ms is None else delay_ms / 1000)
    if delay_s is None:
        return rule
    return replace(rule, delay_s=delay_s, max_delay_s=max(delay_s, rule.max_delay_s), jitter="none")


def _first(*values: Any) -> Any:
    for value in values:
        if value is not None:
            return value
    return None


def _sdk_retries(headers: Mapping[str, str]) -> int:
    text = headers.get("x-stainless-retry-count", "").strip()
    return int(text) if len(text) <= 3 and text.isascii() and text.isdigit() else 0


# -- the decision -----------------------------------------------------------------------------------------------------


def holds(causes: Causes, cause: int | str) -> bool:
    """Return whether *cause* is among *causes*, by itself or by its class; an error event is a 5xx, too."""
    if cause in causes:
        return True
    if cause == "error_event":
        return "5xx" in causes
    return isinstance(cause, int) and f"{cause // 100}xx" in causes


def next_step(rule: Retry, fall_back_on: Causes, failure: Failure, random: float, may_retry: bool) -> Step:
    """Return the next step; *random* in [0, 1) draws the jitter, *may_retry* is the word of the ratio."""
    wait_s = wait_for(rule, failure, random)
    reason = _against(rule, failure, wait_s, may_retry)
    if reason is None:
        return Wait(wait_s, named=failure.named_s is not None)
    if failure.targets_left and holds(fall_back_on, failure.cause):
        return NextTarget()
    return GiveUp(reason, _should_retry(rule, failure, may_retry))


def wait_for(rule: Retry, failure: Failure, random: float) -> float:
    """Return the seconds to wait before another attempt on the same target."""
    if failure.named_s is not None:
        return failure.named_s
    own_s = own_wait(rule, failure.attempt_on_target)
    return own_s if rule.jitter == "none" else random * own_s


def own_wait(rule: Retry, n: int) -> float:
    """Return the seconds of the *n*-th wait as the rule has them, before any jitter."""
    return min(rule.max_delay_s, rule.delay_s * BACKOFFS[rule.backoff](n))


def _against(rule: Retry, failure: Failure, wait_s: float, may_retry: bool) -> str | None:
    """Return what speaks against another attempt on this target, None where nothing does."""
    if _is_final(failure):
        return "no wait cures this failure"
    if failure.cause in NEVER:
        return f"the same request would get {failure.cause} again"
    if not holds(rule.retry_on, failure.cause):
        return f"the policy does not retry {failure.cause}"
    if failure.attempt_on_target >= rule.attempts:
        return "the only attempt failed" if rule.attempts == 1 else f"all {rule.attempts} attempts failed"
    if not may_retry:
        return f"the target has had its {rule.ratio:.0%} of retries for now"
    if failure.elapsed_s + wait_s > rule.within_s:
        return f"waiting {wait_s:.1f} s would pass the limit of {rule.within_s:g} s"
    return None


def _is_final(failure: Failure) -> bool:
    return failure.final or (failure.named_s is not None and failure.named_s > LASTING_S)


def _should_retry(rule: Retry, failure: Failure, may_retry: bool) -> bool | None:
    """Return the word to a client that could retry by itself.

    Where nothing was ever tried again and no rule would have, the answer stays as the provider gave it.
    """
    if failure.attempt_on_target > 1 or failure.fell_back:
        return False
    if rule.attempts == 1:
        return None
    retried = holds(rule.retry_on, failure.cause) and failure.cause not in NEVER
    return False if _is_final(failure) or (retried and not may_retry) else None


# -- the memory -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ledger:
    """What one target was asked lately."""

    calls: Window = field(default_factory=lambda: Window(RATIO_S))
    retries: Window = field(default_factory=lambda: Window(RATIO_S))
    """Without those at a moment that the provider named."""
    admitted: Window = field(default_factory=lambda: Window(RATIO_S))
    last: float = -inf
    """When the last of those who wait for a named moment will come; monotonic seconds."""


class Retries:
    """The decider with a memory, per target."""

    def __init__(self, clock: Clock, random: Callable[[], float]) -> None:
        self.clock = clock
        self.random = random
        self._ledgers = PerTarget(_Ledger)

    def called(self, target: str) -> None:
        """A call makes its first attempt on *target*."""
        self._ledgers[target].calls.add(self.clock.now())

    def admitted(self, target: str) -> None:
        """An answer below 400 came from *target*."""
        self._ledgers[target].admitted.add(self.clock.now())

    def decide(self, rule: Retry, fall_back_on: Causes, failure: Failure, target: str) -> Step:
        """Return the next step of a call whose attempt on *target* failed; a wait is taken to be waited."""
        ledger = self._ledgers[target]
        may_retry = failure.named_s is not None or self._has_room(ledger, rule.ratio)
        step = next_step(rule, fall_back_on, failure, self.random(), may_retry)
        if not isinstance(step, Wait):
            return step
        if step.named:
            left_s = rule.within_s - failure.elapsed_s
            return replace(step, seconds=self._spread(ledger, self._least(ledger, rule, failure, left_s), left_s))
        ledger.retries.add(self.clock.now())
        return step

    def _has_room(self, ledger: _Ledger, ratio: float) -> bool:
        now = self.clock.now()
        return ledger.retries.total(now) < max(FREE_RETRIES, int(ratio * ledger.calls.total(now)))

    def _least(self, ledger: _Ledger, rule: Retry, failure: Failure, left_s: float) -> float:
        """Return the wait that the provider named, or the rule's own where that one has proved too short.

        Who is turned away again while others wait has been told too little: the limit opens later than was said. Where
        the rule's own wait would pass *left_s*, the provider's stands.
        """
        named_s = failure.named_s or 0.0
        if failure.attempt_on_target == 1 or ledger.last <= self.clock.now() + named_s:
            return named_s
        own_s = own_wait(rule, failure.attempt_on_target)
        return own_s if named_s < own_s < left_s else named_s

    def _spread(self, ledger: _Ledger, wait_s: float, left_s: float) -> float:
        """Return *wait_s* or more, so that those who wait come one by one, as fast as the target lately took calls.

        Who waits alone comes at its moment exactly. Where the queue would be longer than ``SPREAD_S`` and *wait_s*, or
        pass *left_s*, chance spreads over that time.
        """
        now = self.clock.now()
        rate = CAUTION * ledger.admitted.most(now) or UNKNOWN_RATE
        queued_s = max(wait_s, ledger.last + 1 / rate - now) if ledger.last > now else wait_s
        longest_s = max(0.0, min(max(wait_s, SPREAD_S), left_s - wait_s))
        if queued_s > wait_s + longest_s:
            return wait_s + self.random() * longest_s
        ledger.last = now + queued_s
        return queued_s
