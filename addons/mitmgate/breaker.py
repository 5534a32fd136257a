"""Let a target that keeps failing rest, and ask it again with one call at a time.

``upstream`` asks before each attempt and tells afterwards how it went. Promises: while a target rests no call reaches
it; after the rest exactly one goes, the probe, and the others wait for its word; a call that its client left says
nothing; what began before the rest cannot end it.

    closed     every call goes; opens once the last ``window`` saw ``min_requests`` end, a share of ``failures`` badly
    open       no call goes, for ``rest``
    half_open  the probe goes: its success closes, its failure opens; let go undecided, the next call is the probe

A rule counts for itself: where two rules speak of one target each judges by the calls that it matched.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from mitmgate.clock import Clock
from mitmgate.lately import PerTarget, Window
from mitmgate.policy.values import Breaker

type State = Literal["closed", "open", "half_open"]

GRAVITY: tuple[State, ...] = ("closed", "half_open", "open")
"""The worst last."""

FAILURES: frozenset[int | str] = frozenset({"connect", "timeout", "reset", "error_event"})
"""Beside every 5xx; 429 and the other 4xx speak of the caller, not of the target's health."""

PROBE_S = 1.0
"""How long somebody is asked to stay away while a probe is under way: nobody knows when it ends."""


def is_failure(cause: int | str) -> bool:
    """Return whether an attempt that failed by *cause* speaks against its target."""
    return cause >= 500 if isinstance(cause, int) else cause in FAILURES


@dataclass(frozen=True, slots=True)
class Resting:
    """The target may not be asked now."""

    target: str
    seconds: float
    """Until the next probe could go."""


def soonest(restings: Iterable[Resting]) -> float:
    """Return the seconds until the first of *restings* could be asked; 0 where there are none."""
    return min((resting.seconds for resting in restings), default=0.0)


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to make one attempt. The first word on how it went counts, any further one is ignored."""

    target: str
    would_rest: float | None = None
    """Seconds that a rule with ``shadow`` would have let the target rest; None where it would have permitted, too."""
    _counter: "_Counter | None" = field(default=None, repr=False)
    """Who wants to hear; None = nobody, or it has been told."""
    _era: int = field(default=0, repr=False)

    def succeeded(self) -> None:
        """The target gave what it should."""
        if counter := self._hand_in():
            counter.succeeded(self)

    def failed(self) -> bool:
        """The target failed; True where this was the failure that lets it rest."""
        counter = self._hand_in()
        return counter.failed(self) if counter else False

    def released(self) -> None:
        """The attempt ended without saying anything about the target."""
        if counter := self._hand_in():
            counter.released(self)

    def _hand_in(self) -> "_Counter | None":
        counter, self._counter = self._counter, None
        return counter if counter and counter.era == self._era else None


class _Counter:
    """One rule's count of one target."""

    def __init__(self, rule: Breaker, clock: Clock) -> None:
        self.rule = rule
        self.clock = clock
        self.era = 0
        """Moves on whenever the target goes to rest: what permits of an earlier era say is outdated."""
        self.good, self.bad = Window(rule.window_s), Window(rule.window_s)
        self.rests_until: float | None = None
        """Monotonic seconds; None = closed."""
        self.probe: Permit | None = None

    @property
    def state(self) -> State:
        if self.rests_until is None:
            return "closed"
        return "open" if self.clock.now() < self.rests_until else "half_open"

    def ask(self, target: str) -> Permit | Resting:
        state = self.state
        if state == "open":
            return Resting(target, (self.rests_until or 0.0) - self.clock.now())
        if state == "half_open" and self.probe:
            return Resting(target, PROBE_S)
        permit = Permit(target, None, self, self.era)
        if state == "half_open":
            self.probe = permit
        return permit

    def succeeded(self, permit: Permit) -> None:
        if permit is self.probe:
            self._close()
        else:
            self.good.add(self.clock.now())

    def failed(self, permit: Permit) -> bool:
        now = self.clock.now()
        self.bad.add(now)
        if permit is not self.probe and not self._is_too_much(now):
            return False
        self._open(now)
        return True

    def released(self, permit: Permit) -> None:
        if permit is self.probe:
            self.probe = None

    def _is_too_much(self, now: float) -> bool:
        bad = self.bad.total(now)
        total = bad + self.good.total(now)
        return total >= self.rule.min_requests and bad >= self.rule.failures * total

    def _open(self, now: float) -> None:
        self.era += 1
        self.rests_until, self.probe = now + self.rule.rest_s, None

    def _close(self) -> None:
        self.rests_until, self.probe = None, None
        self.good, self.bad = Window(self.rule.window_s), Window(self.rule.window_s)


class Breakers:
    """All targets' breakers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._counters: PerTarget[list[_Counter]] = PerTarget(list)

    def ask(self, target: str, rule: Breaker | None) -> Permit | Resting:
        """Return leave for one attempt on *target*, or for how long it rests.

        A permit must be told how the attempt went, or be released. A *rule* with ``shadow`` always permits, and says
        what it would have done.
        """
        if rule is None:
            return Permit(target)
        said = self._counter(target, rule).ask(target)
        if rule.shadow and isinstance(said, Resting):
            return Permit(target, would_rest=said.seconds)
        return said

    def states(self) -> dict[str, State]:
        """Return the state of each target that a rule has watched, the worst where there are several."""
        worst: dict[str, State] = {}
        for target, counters in self._counters.items():
            states = [counter.state for counter in counters if not counter.rule.shadow]
            if states:
                worst[target] = max(states, key=GRAVITY.index)
        return worst

    def _counter(self, target: str, rule: Breaker) -> _Counter:
        counters = self._counters[target]
        for counter in counters:
            if counter.rule is rule:
                return counter
        counters.append(_Counter(rule, self.clock))
        return counters[-1]
