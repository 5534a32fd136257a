"""What happened lately at each target: counts over the last seconds, for a bounded number of targets.

``retry``, ``breaker`` and ``hedge`` count with it. Promise: a count and a look cost the same however much happens, and
memory does not grow with the names that strangers bring.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

SLICES = 10
"""A window forgets a tenth of its time at once."""
MOST_TARGETS = 1000
"""Targets of a policy are few; the hosts of a proxy's clients need not be."""


class Window:
    """How often something happened in the last *span_s* seconds. Times are readings of the monotonic clock."""

    def __init__(self, span_s: float) -> None:
        self._slice_s = span_s / SLICES
        self._slices: deque[tuple[int, int]] = deque()
        """(number of the slice since the clock's zero, count), the oldest first."""
        self._total = 0

    def add(self, now: float) -> None:
        number = self._forget(now)
        count = self._slices.pop()[1] if self._slices and self._slices[-1][0] == number else 0
        self._slices.append((number, count + 1))
        self._total += 1

    def total(self, now: float) -> int:
        self._forget(now)
        return self._total

    def most(self, now: float) -> int:
        """Return the count of the fullest slice, a tenth of the span."""
        self._forget(now)
        return max((count for _, count in self._slices), default=0)

    def _forget(self, now: float) -> int:
        """Drop the slices that have left the window; return the number of the present one."""
        number = int(now / self._slice_s)
        while self._slices and self._slices[0][0] <= number - SLICES:
            self._total -= self._slices.popleft()[1]
        return number


class PerTarget[T]:
    """One *T* for each target, made when the target is first named; the one unused the longest goes first."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept: OrderedDict[str, T] = OrderedDict()

    def __getitem__(self, target: str) -> T:
        one = self._kept.get(target)
        if one is not None:
            self._kept.move_to_end(target)
            return one
        one = self._kept[target] = self._make()
        if len(self._kept) > MOST_TARGETS:
            self._kept.popitem(last=False)
        return one

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> Iterator[tuple[str, T]]:
        yield from self._kept.items()
