"""What happened lately at each target: counts over the last seconds, and the latest figures, for a bounded number of
targets.

``retry``, ``breaker`` and ``hedge`` count with it, ``limit`` has the lengths of answers from it. Promise: a count and a
look cost the same however much happens, and memory does not grow with the names that strangers bring.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from math import ceil

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


SAMPLES_NEEDED = 20
"""Fewer figures say nothing of what most of them are."""
SAMPLES_KEPT = 200
SAMPLES_LATE = 10
"""A percentile may be so many samples late: sorting for each request would cost more than it tells."""


class Samples:
    """The latest figures of something, and what most of them stay below."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=SAMPLES_KEPT)
        self._in_order: list[float] = []
        """The same, the least first; as of ``_late`` samples ago."""
        self._late = 0

    def add(self, figure: float) -> None:
        self._latest.append(figure)
        self._late += 1

    def percentile(self, p: int) -> float | None:
        """Return the figure that *p* percent do not exceed; None = too few are known."""
        if len(self._latest) < SAMPLES_NEEDED:
            return None
        if not self._in_order or self._late >= SAMPLES_LATE:
            self._in_order, self._late = sorted(self._latest), 0
        return percentile(self._in_order, p)


def percentile(in_order: list[float], p: int) -> float:
    """Return the least of *in_order* (sorted, not empty) that *p* percent do not exceed; *p* from 1 to 100."""
    return in_order[ceil(p * len(in_order) / 100) - 1]


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
