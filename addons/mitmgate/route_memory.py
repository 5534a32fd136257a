"""What ``route`` remembers between requests: who was answered where, and how many went through a branch.

Both memories are bounded, and turn by the clock that is handed in. What is forgotten for want of room is always what
nobody has asked for the longest.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable

from mitmgate.clock import Clock
from mitmgate.policy.values import Within

STAYS_S = 600.0
"""So long after its last answer somebody keeps the place; a provider's prompt cache seldom lives longer."""
MOST_VALUES = 10_000
"""Of sessions, users, tenants … in one memory."""
MOST_STAMPS = 1_000_000
"""Requests that all windows together remember, 8 bytes and a float each."""


class Places[Place]:
    """Where somebody was last answered."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._kept: OrderedDict[Hashable, tuple[Place, float]] = OrderedDict()
        """Whoever -> the place, and when they were answered there; the longest ago stands first."""

    def get(self, who: Hashable) -> Place | None:
        """Return the place where *who* was answered in the last ten minutes."""
        place, at = self._kept.get(who, (None, 0.0))
        return place if self.clock.now() - at < STAYS_S else None

    def put(self, who: Hashable, place: Place) -> None:
        self._kept[who] = (place, self.clock.now())
        self._kept.move_to_end(who)
        if len(self._kept) > MOST_VALUES:
            self._kept.popitem(last=False)


class Windows:
    """How many requests went where lately; windows slide, and are exact: 60 a minute lets 60 of a burst through."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._stamps: OrderedDict[Hashable, deque[float]] = OrderedDict()
        """Whatever is counted apart -> when each request went through; the longest untouched stands first."""
        self._total = 0

    def enter(self, counter: Hashable, within: Within) -> float | None:
        """Count a request; None where it may pass, else the seconds until one may (this one is not counted)."""
        now = self.clock.now()
        stamps = self._stamps.setdefault(counter, deque())
        self._stamps.move_to_end(counter)
        while stamps and now - stamps[0] >= within.every_s:
            stamps.popleft()
            self._total -= 1
        if len(stamps) >= within.requests:
            return stamps[0] + within.every_s - now if stamps else within.every_s
        stamps.append(now)
        self._total += 1
        self._forget()
        return None

    def _forget(self) -> None:
        while len(self._stamps) > 1 and (len(self._stamps) > MOST_VALUES or self._total > MOST_STAMPS):
            _, stamps = self._stamps.popitem(last=False)
            self._total -= len(stamps)
