"""Decide when a second attempt starts beside a slow one, and whether it may.

``upstream`` asks before and during an attempt, and notes how long each target took to its first content. Promises:
where the wait is a percentile, none starts before the target has shown its own (``SAMPLES_NEEDED``); never more of them
than ``ratio`` of the calls, so that a target that has become slow is not asked twice for everything.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil

from mitmgate.clock import Clock
from mitmgate.lately import PerTarget, Window
from mitmgate.policy.values import Hedge

RATIO_S = 10.0
"""Second attempts and calls are compared over so long."""
FREE_HEDGES = 1
"""So many in that time are always allowed, else a target of few calls would never see one; ``ratio: 0`` allows none."""
SAMPLES_NEEDED = 20
SAMPLES_KEPT = 200
SAMPLES_LATE = 10
"""A percentile may be so many samples late: sorting for each request would cost more than it tells."""


@dataclass(slots=True)
class _Record:
    """What is known of one target."""

    calls: Window = field(default_factory=lambda: Window(RATIO_S))
    hedges: Window = field(default_factory=lambda: Window(RATIO_S))
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    """Seconds to the first content, the oldest first."""
    in_order: list[float] = field(default_factory=list)
    """The same, the least first; as of ``late`` samples ago."""
    late: int = 0


class Hedges:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._records = PerTarget(_Record)

    def called(self, target: str) -> None:
        """A call that could be hedged makes its first attempt on *target*."""
        self._records[target].calls.add(self.clock.now())

    def note(self, target: str, seconds: float) -> None:
        """*target* took *seconds* from the request to its first content."""
        record = self._records[target]
        record.samples.append(seconds)
        record.late += 1

    def delay(self, rule: Hedge, target: str) -> float | None:
        """Return after how many seconds without content a second attempt is due; None = too little is known."""
        if rule.after_s is not None:
            return rule.after_s
        record = self._records[target]
        if len(record.samples) < SAMPLES_NEEDED:
            return None
        if not record.in_order or record.late >= SAMPLES_LATE:
            record.in_order, record.late = sorted(record.samples), 0
        return percentile(record.in_order, rule.percentile)

    def may(self, rule: Hedge, target: str) -> bool:
        """Return whether *rule* leaves room for one more second attempt beside *target* now."""
        if rule.ratio <= 0:
            return False
        record, now = self._records[target], self.clock.now()
        return record.hedges.total(now) < max(FREE_HEDGES, int(rule.ratio * record.calls.total(now)))

    def started(self, target: str) -> None:
        """A second attempt started beside one on *target*."""
        self._records[target].hedges.add(self.clock.now())


def percentile(in_order: list[float], p: int) -> float:
    """Return the least of *in_order* (sorted, not empty) that *p* percent do not exceed; *p* from 1 to 100."""
    return in_order[ceil(p * len(in_order) / 100) - 1]
