"""Time, handed in: rules never ask the system, so tests can turn the clock."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Two readings: one to subtract, one to write down."""

    def now(self) -> float:
        """Return monotonic seconds: never jumps, means nothing by itself."""

    def wall(self) -> float:
        """Return seconds since 1970, UTC."""


class SystemClock:
    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until a test turns it."""

    seconds: float = 0.0
    started_wall: float = 1_700_000_000.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.started_wall + self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def iso(wall: float) -> str:
    """Return ``2026-11-24T16:42:00.123Z``: sorts as text, always milliseconds, always UTC."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
