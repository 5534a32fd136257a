"""An event loop on which waiting costs nothing: whenever nobody has anything left to do, time jumps to the next timer.

It is its own ``Clock``. Time starts at 0 and moves by timers alone, so a run is the same each time, and an hour of
time-outs takes as long as the work between them. Nothing from outside can wake it: no sockets, no threads.
"""

import asyncio
from typing import Any

STARTED_WALL = 1_700_000_000.0


class Stuck(Exception):
    """Somebody waits, and there is no timer that could ever end it."""


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._selector = self  # where the base class would wait for sockets

    def time(self) -> float:
        return self.seconds

    now = time

    def wall(self) -> float:
        return STARTED_WALL + self.seconds

    def select(self, wait_s: float | None) -> list[Any]:
        """Wait *wait_s* seconds: it is later at once."""
        if wait_s is None:
            raise Stuck(f"at {self.seconds:.3f} s nothing is left that could happen")
        self.seconds += wait_s
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that would still go off."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [timer for timer in scheduled if not timer.cancelled()]
