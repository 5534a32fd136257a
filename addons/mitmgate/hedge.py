"""Decide when a second attempt starts beside a slow one, and whether it may.

``upstream`` asks before and during an attempt, and notes how long each target took to its first content. Promises:
where the wait is a percentile, none starts before the target has shown its own (``lately.SAMPLES_NEEDED``); never more
of them than ``ratio`` of the calls, so that a target that has become slow is not asked twice for everything.
"""

from dataclasses import dataclass, field

from mitmgate.clock import Clock
from mitmgate.lately import PerTarget, Samples, Window
from mitmgate.policy.values import Hedge

RATIO_S = 10.0
"""Second attempts and calls are compared over so long."""
FREE_HEDGES = 1
"""So many in that time are always allowed, else a target of few calls would never see one; ``ratio: 0`` allows none."""


@dataclass(slots=True)
class _Record:
    """What is known of one target."""

    calls: Window = field(default_factory=lambda: Window(RATIO_S))
    hedges: Window = field(default_factory=lambda: Window(RATIO_S))
    contents: Samples = field(default_factory=Samples)
    """Seconds to the first content."""


class Hedges:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._records = PerTarget(_Record)

    def called(self, target: str) -> None:
        """A call that could be hedged makes its first attempt on *target*."""
        self._records[target].calls.add(self.clock.now())

    def note(self, target: str, seconds: float) -> None:
        """*target* took *seconds* from the request to its first content."""
        self._records[target].contents.add(seconds)

    def delay(self, rule: Hedge, target: str) -> float | None:
        """Return after how many seconds without content a second attempt is due; None = too little is known."""
        if rule.after_s is not None:
            return rule.after_s
        return self._records[target].contents.percentile(rule.percentile)

    def may(self, rule: Hedge, target: str) -> bool:
        """Return whether *rule* leaves room for one more second attempt beside *target* now."""
        if rule.ratio <= 0:
            return False
        record, now = self._records[target], self.clock.now()
        return record.hedges.total(now) < max(FREE_HEDGES, int(rule.ratio * record.calls.total(now)))

    def started(self, target: str) -> None:
        """A second attempt started beside one on *target*."""
        self._records[target].hedges.add(self.clock.now())
