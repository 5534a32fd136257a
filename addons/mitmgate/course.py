"""How far an exchange has come on its way from place to place: what ``upstream`` and ``attempts`` both look at."""

from dataclasses import dataclass, field

from mitmgate.arrival import Arrival
from mitmgate.breaker import Permit, Resting
from mitmgate.clock import Clock
from mitmgate.exchange import Event, Exchange, Leg
from mitmgate.policy import values as rules
from mitmgate.pool import Failed
from mitmgate.sink import Sink

type Outcome = Arrival | Failed
"""What an attempt brought."""


@dataclass(slots=True)
class Course:
    """How far an exchange has come."""

    x: Exchange
    sink: Sink
    clock: Clock
    retry: rules.Retry
    breaker: rules.Breaker | None = None
    tries: int = 0
    """At the present leg."""
    wait_s: float = 0.0
    """Before the next attempt."""
    answer: Arrival | None = None
    """The latest answer, where it was not good enough."""
    failed: Failed | None = None
    """How the latest attempt broke off, where it brought no answer."""
    resting: list[Resting] = field(default_factory=list)
    shadows: list[rules.Breaker] = field(default_factory=list)
    """Rules that only note when they would let a place rest."""
    watchers: list[Permit] = field(default_factory=list)
    """Theirs, for the attempt under way."""

    @property
    def leg(self) -> Leg:
        return self.x.legs[self.x.step]

    @property
    def legs_left(self) -> int:
        return len(self.x.legs) - self.x.step - 1

    @property
    def can_go_on(self) -> bool:
        """If the attempt under way fails, something else could still be tried."""
        if self.sink.upload is not None:
            return False
        return self.tries < self.retry.attempts or self.legs_left > 0 or self.x.spare is not None

    def note(self, room: str, rule: str, action: str, detail: str, *, shadow: bool = False) -> None:
        """Note that a rule acted, now."""
        self.x.events.append(Event(room, rule, action, shadow, detail, self.clock.now()))

    def drop(self, outcome: Outcome) -> None:
        """Close what nobody wants; but a whole answer, good or not, is better than none at the end."""
        if isinstance(outcome, Failed):
            return
        if outcome.cause is not None and outcome.whole and self.answer is None:
            self.answer = outcome
        else:
            outcome.close()

    def keep(self, outcome: Outcome) -> None:
        """Keep what could still be handed on when nothing better comes."""
        if isinstance(outcome, Failed):
            self.failed = outcome
            return
        self.failed = None
        if self.answer:
            self.answer.close()
        self.answer = outcome
