"""A policy's rooms with nobody outside: a request goes through them, nothing is sent and nothing is written.

``mitmgate check`` asks by it what would become of a request, and ``rerun`` of all that was recorded. The rooms are the
gateway's own, wired as ``chain`` wires them. Other than there

- counters begin with what a gateway has counted, where there is its file, and go on in memory;
- kept answers are looked up in the file, and none is put there;
- a target that a rule would ask (a guard's verdict, a summary) is not asked: it is noted, and the request goes on.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, override

from mitmgate import recorded
from mitmgate.chain import Rooms
from mitmgate.charges import Charge, Standing
from mitmgate.clock import Clock
from mitmgate.counting import US, Calendars
from mitmgate.exchange import Exchange
from mitmgate.policy import Policy
from mitmgate.policy.values import Ask, Guard, Target
from mitmgate.recorded import Row
from mitmgate.sink import Sink
from mitmgate.state import State
from mitmgate.store import answer_file, ledger_file
from mitmgate.store.answers import AnswerStore
from mitmgate.store.entry import Entry
from mitmgate.store.ledger import Ledger
from mitmgate.store.ledger_books import Memory
from mitmgate.store.ledger_transaction import read_counter

NOT_RECORDED = frozenset({"entry", "auth"})
"""Rooms that ask of a head what no row has: how a body was wrapped, and which key came."""


class Imagined(Ledger):
    """A ledger that counts in memory alone, and notes how each counter stood that was asked."""

    def __init__(self, clock: Clock, timezone: str) -> None:
        super().__init__(Path("spend.db"), clock, timezone)
        self.noted: list[Standing] = []

    def begin_with(self, conn: sqlite3.Connection) -> None:
        """Begin with what the file behind *conn* says, and ask it once for each counter."""
        now = ledger_file.moment_of(conn, self.clock, Calendars(self.timezone), ledger_file.boot_id())
        self._file.anchor = now.steady - round(self.clock.now() * US)
        self._memory = Memory(lambda name, every, at: read_counter(conn, name, every, at))

    @override
    def reserve(self, holder: str, charges: Sequence[Charge]) -> list[Standing]:
        standings = super().reserve(holder, charges)
        self.noted += standings
        return standings


class Shelf(AnswerStore):
    """Kept answers to look at: those of a file, where there is one."""

    def __init__(self, path: Path, clock: Clock, conn: sqlite3.Connection | None) -> None:
        super().__init__(path, 1, clock)
        self.conn = conn

    @override
    def peek(self, key: str) -> Entry | None:
        return None

    @override
    async def get(self, key: str) -> Entry | None:
        entry = answer_file.read(self.conn, key) if self.conn else None
        return entry if entry and entry.usable_if_error(self.clock.wall()) else None


class Rehearsal(Rooms):
    """The rooms of one policy, for exchanges that nobody waits for."""

    def __init__(self, policy: Policy, state: State, ledger: Imagined) -> None:
        super().__init__(unplugged(policy), state)
        self.state, self.ledger = state, ledger
        self.asked: list[str] = []
        """What for a target would have been asked: ``guard injection: asks judge``."""
        steps: list[Any] = [*self.heads, *self.admits, *self.settles]
        self.by_name: dict[str, Any] = {room_of(step): step.__self__ for step in steps}
        """Every room."""
        self.steps = [(room_of(step), step) for step in self.admits]

    def take_answers(self, answers: AnswerStore) -> None:
        """Look answers up in *answers* from now on."""
        self.state.answers = self.cache.store = answers

    @override
    async def _carry_inner(self, x: Exchange, sink: Sink) -> None:
        why = x.notes[-1].partition(": ")[2] if x.notes else ""
        asked = x.target or x.headers.get("cf-aig-fallback")
        self.asked.append(f"{why}: asks {asked}")

    async def admit(self, x: Exchange, watcher: "Watcher | None" = None) -> None:
        """Take *x* as far as a provider would be asked, or to the room that refuses it or has its answer."""
        self._take_heads(x)
        await self._take_admits(x, watcher)

    async def admit_again(self, x: Exchange, row: Row, is_kept: bool, watcher: "Watcher | None" = None) -> None:
        """Do the same with the recorded call *row*, whose body *is_kept*, or is not."""
        self._take_heads(x, without=NOT_RECORDED)
        recorded.begin(x, row, is_kept)
        await self._take_admits(x, watcher, row)

    def _take_heads(self, x: Exchange, without: frozenset[str] = frozenset()) -> None:
        x.rooms = self
        for step in self.heads:
            if room_of(step) not in without:
                step(x)

    async def _take_admits(self, x: Exchange, watcher: "Watcher | None", row: Row | None = None) -> None:
        for room, step in self.steps:
            if x.refusal or x.replay:
                return
            if row is not None and room == "entry":
                continue
            if watcher:
                watcher.before(room, x)
            if (more := step(x)) is not None:
                await more
            if row is not None and room == "identify":
                recorded.identified(x, row)
            if watcher:
                watcher.after(room, x)


class Watcher(Protocol):
    """Hears of each room (by its name: ``limit``) that an exchange comes to."""

    def before(self, room: str, x: Exchange) -> None: ...

    def after(self, room: str, x: Exchange) -> None: ...


def room_of(step: Any) -> str:
    """Return the name of the room that a step is of: ``limit``."""
    return str(step.__self__.name).removeprefix("mitmgate.")


def unplugged(policy: Policy) -> Policy:
    """Return *policy* without what only matters once something is sent: no account is real, no verdict is had."""
    targets = {name: _with_plain_key(target) for name, target in policy.targets.items()}
    return replace(policy, targets=targets, guard=tuple(_that_goes_on(rule) for rule in policy.guard), alert=())


def _with_plain_key(target: Target) -> Target:
    """Return *target* with a key in its headers in place of an account that tokens are minted from."""
    if target.google is None:
        return target
    return replace(target, google=None, headers={**target.headers, "authorization": "Bearer minted"})


def _that_goes_on(rule: Guard) -> Guard:
    return replace(rule, then=replace(rule.then, on_error="pass")) if isinstance(rule.then, Ask) else rule


@contextmanager
def rehearsal(policy: Policy, clock: Clock, secret: bytes, database: Path | None = None) -> Iterator[Rehearsal]:
    """Make a rehearsal; *database* is the trace database beside which the gateway's other files lie, None = none do.

    Raises ``StartError`` where one of them cannot be read, or where a gateway could not start with the policy.
    """
    with ExitStack() as stack:
        database = database or Path("nowhere") / "traces.db"
        state = State(unplugged(policy), database, secret, clock)
        ledger = Imagined(clock, policy.timezone)
        counted, kept = ledger_file.beside(database), answer_file.beside(database)
        if counted.exists():
            ledger.begin_with(stack.enter_context(ledger_file.looking(counted)))
        shelf = stack.enter_context(answer_file.opened(kept)) if kept.exists() else None
        state.ledger, state.answers = ledger, Shelf(kept, clock, shelf)
        yield Rehearsal(policy, state, ledger)
