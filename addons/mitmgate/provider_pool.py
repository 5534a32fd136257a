"""Which key of a target's pool is next, and how all of them fare (policy: ``targets``: ``keys``).

Of a pool the key goes that was refused the longest ago, and of those that nobody refused the one that was used the
longest ago, so calls spread over all of them.

    ready     goes
    cooling   a 429: until the provider said, else 30 s
    resting   a 401, 402, 403 or a quota that will not come back: ten minutes

``choose`` and ``rest_for`` are pure; ``KeyStates`` remembers. Promises: a key that was refused is not used while
another one is ready; a success makes it ready again; where none is ready the one goes that will be soonest: the
provider has the last word, not our books. What rests outlives an edit of the policy and a restart, and is told to the
other workers within seconds. Only aliases are here, never a key.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from mitmgate.clock import Clock
from mitmgate.policy.values import Target
from mitmgate.store import provider_keys as store
from mitmgate.store.provider_keys import Row, State

log = logging.getLogger("mitmgate.provider_keys")

REST_S = 600.0
COOL_S = 30.0
FORGOTTEN_S = 3600.0
"""A refusal older than this says nothing about which key to use."""
RESTS: Set[int] = frozenset({401, 402, 403})
"""Statuses that speak against a key, not of a moment too busy."""
TOLD_S = 2.0
"""News about keys is written at most so late."""

GRAVITY: tuple[State, ...] = ("ready", "cooling", "resting")
"""As /metrics counts them."""


# -- pure -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Key:
    """How one key fares. Times are monotonic seconds."""

    state: State = "ready"
    until: float = -inf
    """It cools or rests so long."""
    status: int | None = None
    """Of the answer that refused it last."""
    refused: float = -inf
    used: float = -inf
    turn: int = 0
    """Counts up with every use of any key: two uses may share one reading of the clock."""
    changed: float = -inf

    def state_at(self, now: float) -> State:
        return self.state if now < self.until else "ready"


def choose(keys: Mapping[str, Key], now: float, tried: Set[str] = frozenset()) -> str | None:
    """Return the alias to use next, of those not in *tried*; None where all are."""
    left = [alias for alias in keys if alias not in tried]
    ready = [alias for alias in left if keys[alias].state_at(now) == "ready"]
    if ready:
        return min(ready, key=lambda alias: (_refused(keys[alias], now), keys[alias].turn))
    return min(left, key=lambda alias: keys[alias].until, default=None)


def _refused(key: Key, now: float) -> float:
    return key.refused if now - key.refused < FORGOTTEN_S else -inf


def rest_for(status: int, named_s: float | None, final: bool) -> tuple[Literal["cooling", "resting"], float] | None:
    """Return what becomes of a key that *status* was answered to, and for how long; None: nothing.

    *named_s* and *final* are what ``hints`` makes of the answer.
    """
    if status in RESTS or (status == 429 and final):
        return "resting", max(REST_S, named_s or 0.0)
    return ("cooling", named_s or COOL_S) if status == 429 else None


# -- the memory -------------------------------------------------------------------------------------------------------


class KeyStates:
    """How all keys of all pools fare; outlives a policy. *path*: where it is written, None = nowhere."""

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self.clock, self.path = clock, path
        self.pools: dict[str, dict[str, Key]] = {}
        """Target -> alias -> key: those of the policy that holds."""
        self._kept = {(row.target, row.alias): row for row in (store.read(path) if path else ())}
        """What was written before, by this process or another."""
        self._turn = 0
        self._news: set[tuple[str, str]] = set()
        self._telling: asyncio.Task[None] | None = None
        self._complained = False

    def know(self, targets: Iterable[Target]) -> None:
        """Count the keys of *targets*, and no others."""
        before, self.pools = self.pools, {}
        for target in targets:
            old = before.get(target.name, {})
            self.pools[target.name] = {alias: old.get(alias) or self._key(target.name, alias) for alias in target.keys}

    def choose(self, target: str, tried: Set[str]) -> str | None:
        return choose(self.pools.get(target, {}), self.clock.now(), tried)

    def has_ready(self, target: str, tried: Set[str]) -> bool:
        """Return whether a key of *target* is ready that is not in *tried*."""
        now = self.clock.now()
        pool = self.pools.get(target, {})
        return any(key.state_at(now) == "ready" for alias, key in pool.items() if alias not in tried)

    def used(self, target: str, alias: str) -> None:
        if key := self._of(target, alias):
            self._turn += 1
            key.used, key.turn = self.clock.now(), self._turn
            self._note(target, alias)

    def succeeded(self, target: str, alias: str) -> None:
        """The provider took the key."""
        key = self._of(target, alias)
        if key and key.status is not None:
            key.state, key.until, key.status, key.refused = "ready", -inf, None, -inf
            self._changed(target, alias, key)

    def refused(self, target: str, alias: str, status: int, state: State, seconds: float) -> bool:
        """The provider did not take it: it is in *state* for *seconds*. Return whether it was not so before."""
        key = self._of(target, alias)
        if key is None:
            return False
        now = self.clock.now()
        before = key.state_at(now)
        key.state, key.until, key.status, key.refused = state, now + seconds, status, now
        self._changed(target, alias, key)
        return before != state

    def states(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], int]:
        """Return the series of ``mitmgate_provider_key_state``."""
        now = self.clock.now()
        return {
            ("mitmgate_provider_key_state", (("target", target), ("alias", alias))): GRAVITY.index(key.state_at(now))
            for target, pool in self.pools.items()
            for alias, key in pool.items()
        }

    def _of(self, target: str, alias: str) -> Key | None:
        return self.pools.get(target, {}).get(alias)  # a call may end after an edit that took its key away

    # -- what is written

    def rows(self, only: Set[tuple[str, str]] | None = None) -> list[Row]:
        """Return the keys as they are written; *only* these."""
        return [
            self._row(target, alias, key)
            for target, pool in self.pools.items()
            for alias, key in pool.items()
            if only is None or (target, alias) in only
        ]

    async def close(self) -> None:
        """Write what is left."""
        if self._telling:
            self._telling.cancel()
        if self._news:
            await self._tell()

    def _changed(self, target: str, alias: str, key: Key) -> None:
        key.changed = self.clock.now()
        self._note(target, alias)

    def _note(self, target: str, alias: str) -> None:
        """Have it written soon."""
        if self.path is None:
            return
        self._news.add((target, alias))
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell_soon())

    async def _tell_soon(self) -> None:
        await asyncio.sleep(TOLD_S)
        self._telling = None
        await self._tell()

    async def _tell(self) -> None:
        """Write the news, and hear those of the other workers."""
        if self.path is None:
            return
        rows, self._news = self.rows(self._news), set()
        try:
            found = await asyncio.to_thread(store.exchange, self.path, rows)
        except (sqlite3.Error, OSError) as error:
            if not self._complained:
                log.warning(
                    "provider_keys: %s cannot be written, so no other worker hears of a key: %s", self.path, error
                )
            self._complained = True
            return
        self._complained = False
        for row in found:
            self._kept[row.target, row.alias] = row
            key = self._of(row.target, row.alias)
            if key and row.changed_at > self._wall(key.changed) + 0.001:
                self._adopt(key, row)

    def _key(self, target: str, alias: str) -> Key:
        """Return the key as it was when it was written last."""
        key = Key()
        if row := self._kept.get((target, alias)):
            self._adopt(key, row)
        return key

    def _adopt(self, key: Key, row: Row) -> None:
        key.state, key.status = row.state, row.status
        key.until, key.changed = self._monotonic(row.until), self._monotonic(row.changed_at)
        key.refused = -inf if row.refused_at is None else self._monotonic(row.refused_at)
        key.used = max(key.used, -inf if row.used_at is None else self._monotonic(row.used_at))

    def _row(self, target: str, alias: str, key: Key) -> Row:
        refused_at = None if key.refused == -inf else self._wall(key.refused)
        used_at = None if key.used == -inf else self._wall(key.used)
        until, changed_at = (self._wall(at) if at > -inf else 0.0 for at in (key.until, key.changed))
        return Row(target, alias, key.state, until, key.status, refused_at, used_at, changed_at)

    def _wall(self, at: float) -> float:
        return at - self.clock.now() + self.clock.wall()

    def _monotonic(self, at: float) -> float:
        return at - self.clock.wall() + self.clock.now()
