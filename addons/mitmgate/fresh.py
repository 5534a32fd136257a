"""A value that expires: made once for all who wait for it, and made anew before anybody has to.

``provider_keys`` keeps tokens and temporary credentials in it. Promises: however many ask at once, one makes it; who
leaves while it is made does not spoil it for the others; as long as the old value holds, nobody waits for the new one,
and a failure to make that one costs nobody anything.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mitmgate.clock import Clock

log = logging.getLogger("mitmgate.fresh")

EARLY_S = 300.0
"""So long before its end a value is made anew, beside the traffic …"""
LATE_S = 30.0
"""… and so long before its end it is used no more: it has to hold when it arrives, too."""
PAUSE_S = 10.0
"""Between two tries to make a new one while the old one still holds."""


@dataclass(frozen=True, slots=True)
class Made[T]:
    """A value, and how long it holds from now; seconds."""

    value: T
    lasts_s: float


class Fresh[T]:
    """*name* says in a log line what it is: ``the token of vertex-eu``."""

    def __init__(self, name: str, make: Callable[[], Awaitable[Made[T]]], clock: Clock) -> None:
        self.name, self.make, self.clock = name, make, clock
        self._value: T | None = None
        self._made_at = self._renew_at = self._ends_at = 0.0
        """Monotonic seconds."""
        self._making: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return a value that holds. Raises what ``make`` raises, where there is none."""
        now = self.clock.now()
        if self._value is not None and now < self._ends_at:
            if now >= self._renew_at:
                self._renew_at = now + PAUSE_S
                self._start()
            return self._value
        return await asyncio.shield(self._start())

    def forget(self) -> None:
        """Use the value no more: somebody would not take it. One that is newer than that word may be stays."""
        if self.clock.now() >= self._made_at + PAUSE_S:
            self._value = None

    def _start(self) -> "asyncio.Task[T]":
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make())
            self._making.add_done_callback(self._made)
        return self._making

    async def _make(self) -> T:
        made = await self.make()
        now = self.clock.now()
        self._value, self._made_at = made.value, now
        self._renew_at = now + made.lasts_s - min(EARLY_S, made.lasts_s / 4)
        self._ends_at = now + made.lasts_s - min(LATE_S, made.lasts_s / 10)
        return made.value

    def _made(self, task: "asyncio.Task[T]") -> None:
        self._making = None
        if not task.cancelled() and (error := task.exception()):
            log.warning("fresh: %s could not be made: %s", self.name, error)
