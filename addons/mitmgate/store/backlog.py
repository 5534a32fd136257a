"""What waits for the disk: a bounded line that drops bodies before rows, and the oldest first.

``put`` runs on the event loop and costs about a microsecond; ``take`` runs in the writer's thread. Both sides of the
bounds are counted: items, and the bytes that they hold in memory.
"""

from collections import deque
from dataclasses import dataclass
from threading import Lock

from mitmgate.store.rows import Renders


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, and how it is written."""

    items: int = 100_000
    bytes: int = 256 * 2**20
    """A lock of 30 s fits in at 300 requests/s with 25 kB each. Used only while the disk cannot be written."""
    batch_items: int = 200
    batch_bytes: int = 8 * 2**20
    """Of one transaction: what a second of work can render and write."""
    every_s: float = 0.25
    """A smaller batch is written after this long, so a ``kill -9`` loses less than a second."""


class Slot:
    """One waiting item and the bytes it holds."""

    __slots__ = ("item", "size")

    def __init__(self, item: Renders, size: int) -> None:
        self.item = item
        self.size = size


class Backlog:
    """The line. Old items that lost their bodies stand in ``_shed``, the others behind them in ``_whole``."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.entered = 0
        """Items ever put."""
        self.bytes = 0
        """Held by waiting items and by those taken and not yet written."""
        self.rows_dropped = 0
        self.payloads_dropped = 0
        self._shed: deque[Slot] = deque()
        self._whole: deque[Slot] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._shed) + len(self._whole)

    def put(self, item: Renders, size: int) -> None:
        """Append *item*, which holds about *size* bytes; make room by dropping the oldest bodies, then items."""
        with self._lock:
            self.entered += 1
            self.bytes += size
            self._whole.append(Slot(item, size))
            if self.bytes > self.limits.bytes or len(self) > self.limits.items:
                self._make_room()

    def take(self) -> list[Slot]:
        """Return the next batch, oldest first; ``done`` gives back its bytes once it is written."""
        batch: list[Slot] = []
        size = 0
        with self._lock:
            while len(batch) < self.limits.batch_items and size < self.limits.batch_bytes:
                slot = self._pop()
                if slot is None:
                    break
                batch.append(slot)
                size += slot.size
        return batch

    def done(self, batch: list[Slot]) -> None:
        """The items of *batch* are out of memory."""
        with self._lock:
            self.bytes -= sum(slot.size for slot in batch)

    def _pop(self) -> Slot | None:
        if self._shed:
            return self._shed.popleft()
        return self._whole.popleft() if self._whole else None

    def _make_room(self) -> None:
        while self.bytes > self.limits.bytes and self._whole:
            slot = self._whole.popleft()
            freed = min(slot.item.shed(), slot.size)
            if freed:
                self.payloads_dropped += 1
            slot.size -= freed
            self.bytes -= freed
            self._shed.append(slot)
        while self.bytes > self.limits.bytes or len(self) > self.limits.items:
            oldest = self._pop()
            if oldest is None:
                return
            self.bytes -= oldest.size
            self.rows_dropped += 1
