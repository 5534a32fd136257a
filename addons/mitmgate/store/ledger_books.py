"""The pages of the ledger: one counter as it is worked with, and where counters are kept.

``Books`` is what the ledger's decisions are made on: the file (``ledger_transaction``), one transaction at a time,
``Ahead`` of the file where a call has ended, or ``Memory`` while the file cannot be used. Whoever opens a counter in
any of them sees it as it is now.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mitmgate import counting
from mitmgate.charges import Charge, Standing, Unit
from mitmgate.counting import Moment, Sliding, Window, window_of
from mitmgate.policy.values import Span

log = logging.getLogger("mitmgate.ledger")

MOST_KNOWN = 10_000
"""Counters that memory remembers; of more, those that were not asked for longest are forgotten."""

NO_VERSION = 0
"""No state of the file."""


@dataclass(slots=True)
class Hold:
    """What one charge of a call under way has taken."""

    charge: Charge
    at: int
    """Under which it was booked."""
    amount: int
    row: int | None = None
    """In the file's ``reservations``; None where it is not there, as of ``requests``, which are spent at once."""

    @property
    def is_reserved(self) -> bool:
        return self.charge.unit != "requests"


@dataclass(slots=True)
class Counter:
    """One counter, rolled to the moment at which it was opened."""

    name: str
    every: Span | None
    window: Window
    grants: Window | None
    """What was added to its amount, in a window of the same kind."""
    at: int
    """What comes now is booked under this."""
    saved: tuple[bytes, bytes] | None = None
    """Window and grants, packed, as they are in the file; None where it is not there."""
    unsaved: tuple[bytes, bytes] | None = None
    """As they will be, once the transaction is committed; None where nothing was written."""
    version: int = NO_VERSION
    """Of the file at which it was as it is here, but for calls that have ended since (``Ahead``)."""

    @property
    def granted(self) -> int:
        return self.grants.used if self.grants else 0

    def fits(self, charge: Charge) -> bool:
        """Return whether there is room for *charge*."""
        window = self.window
        granted = self.grants.used if self.grants else 0
        return window.used + window.reserved + charge.amount <= charge.most + granted

    def standing(self, charge: Charge, now: Moment, full: bool = False) -> Standing:
        window = self.window
        granted = self.grants.used if self.grants else 0
        wait_s = counting.wait_s(window, self.grants, charge.amount, charge.most, now) if full else None
        return Standing(charge, window.used, window.reserved, granted, window.reset_s(now), wait_s, full)

    def empty_at(self, now: Moment) -> int:
        """Return the steady time from which on nothing is lost with it."""
        return max(self.window.empty_at(now), self.grants.empty_at(now) if self.grants else 0)

    def grant(self, amount: int, now: Moment) -> None:
        """Add *amount* to what may be used in this window; in one that slides, for as long as it is from now on."""
        self.grants = self.grants or window_of(self.every)
        self.grants.add(self.grants.roll(now), amount, 0)


@dataclass(slots=True)
class Ended:
    """A call that is over, and what it has used."""

    holder: str
    holds: Sequence[Hold]
    used: Mapping[Unit, int]
    apart: Mapping[str, int]
    """By counter, of those that count something else than the others of their unit."""
    version: int = NO_VERSION
    """Of the file, as counters in memory have it with this call settled; ``NO_VERSION`` where none have."""
    changed: list[Counter] = field(default_factory=list)
    """The counters that had something to settle, then."""

    def amount(self, charge: Charge) -> int:
        """Return what it has used of the counter of *charge*."""
        return self.apart.get(charge.counter, self.used.get(charge.unit, 0))


def opened(name: str, every: Span | None, window: bytes, grants: bytes, now: Moment) -> Counter:
    """Return the counter that was packed, as it is *now*; one that cannot be read begins anew."""
    try:
        counter = Counter(name, every, window_of(every, window), window_of(every, grants) if grants else None, 0)
    except ValueError as e:
        log.error("ledger: what was counted of %s cannot be read and begins anew: %s", name, e)
        counter = Counter(name, every, window_of(every), None, 0)
    counter.saved = window, grants
    return rolled(counter, now)


def new(name: str, every: Span | None, now: Moment) -> Counter:
    return rolled(Counter(name, every, window_of(every), None, 0), now)


def rolled(counter: Counter, now: Moment) -> Counter:
    counter.at = counter.window.roll(now)
    if counter.grants:
        counter.grants.roll(now)
    return counter


def reshaped(counter: Counter, every: Span | None, now: Moment) -> Counter:
    """Let *counter* count in windows of *every* from now on: its rule was edited."""
    counter.every, counter.window = every, window_of(every, counter.window.pack())
    if counter.grants:
        counter.grants = window_of(every, counter.grants.pack())
    return rolled(counter, now)


class Settling(Protocol):
    """Books in which a call can be settled."""

    def counter(self, name: str, every: Span | None) -> Counter:
        """Return the counter as it is now; a new one where there is none."""

    def settle(self, holder: str, hold: Hold, counter: Counter, used: int) -> None:
        """Book *used* in the place of what *hold* took."""


class Books(Settling, Protocol):
    def reserve(self, holder: str, holds: Sequence[Hold], counters: Sequence[Counter]) -> None:
        """Book what each of *holds* takes of its counter: ``requests`` as used, the rest as reserved."""

    def grant(self, counter: Counter, amount: int) -> None:
        """Add *amount* to what may be used in this window."""


def take(hold: Hold) -> tuple[int, int]:
    """Return what *hold* adds to (used, reserved)."""
    return (hold.amount, 0) if hold.charge.unit == "requests" else (0, hold.amount)


def change(hold: Hold, used: int, is_held: bool = True) -> tuple[int, int]:
    """Return what settling *hold* adds to (used, reserved); *is_held* is False where it was taken back meanwhile."""
    unit = hold.charge.unit
    if unit == "requests":
        return used - hold.amount, 0
    return (0 if unit == "concurrent" else used), (-hold.amount if is_held else 0)


# -- ahead of the file ------------------------------------------------------------------------------------------------


class Ahead:
    """Counters as they will be in the file when the calls have been settled there that are over."""

    def __init__(self, known: Mapping[str, Counter], now: Moment) -> None:
        self.known, self.now = known, now
        self.changed: list[Counter] = []

    def counter(self, name: str, every: Span | None) -> Counter:
        return rolled(self.known[name], self.now)

    def settle(self, holder: str, hold: Hold, counter: Counter, used: int) -> None:
        used, reserved = change(hold, used)
        if used or reserved:
            counter.window.add(hold.at, used, reserved)
            self.changed.append(counter)


# -- while the file cannot be used ------------------------------------------------------------------------------------


class Memory:
    """What this process knows of the counters, and what it has counted since the file could not be used.

    ``known`` is what the file said last, and spares reading what nobody else has written since. In an outage a counter
    moves from there to ``here``, where decisions are made; ``fresh`` holds only what was added, so that the file can be
    told when it is back, whatever others did to it.
    """

    def __init__(self, read: Callable[[str, Span | None, Moment], Counter | None]) -> None:
        self._read = read
        """Asks the file, where it can be read although it cannot be written."""
        self.known: OrderedDict[str, Counter] = OrderedDict()
        self.here: dict[str, Counter] = {}
        self.fresh: dict[str, Counter] = {}
        self.gone: list[tuple[int, str]] = []
        """(row, holder) of reservations that were settled and still stand in the file."""
        self.now: Moment

    def at(self, now: Moment) -> "Memory":
        """Return it, as of *now*."""
        self.now = now
        return self

    def learn(self, counters: Iterable[Counter]) -> None:
        """Remember how the file has *counters*."""
        for counter in counters:
            if counter.unsaved:
                counter.saved, counter.unsaved = counter.unsaved, None
            self.known[counter.name] = counter
            self.known.move_to_end(counter.name)
        while len(self.known) > MOST_KNOWN:
            self.known.popitem(last=False)

    def unlearn(self, counters: Iterable[Counter], now: Moment) -> None:
        """Forget what a transaction did to *counters* that came to nothing."""
        for counter in counters:
            self.known.pop(counter.name, None)
            if counter.saved:
                self.known[counter.name] = opened(counter.name, counter.every, *counter.saved, now)

    def counter(self, name: str, every: Span | None) -> Counter:
        found = self.here.get(name) or self._read(name, every, self.now) or self.known.pop(name, None)
        if found is None:
            found = new(name, every, self.now)
        elif found.every != every:
            reshaped(found, every, self.now)
        self.here[name] = found
        if len(self.here) > MOST_KNOWN:
            self._forget()
        return rolled(found, self.now)

    def reserve(self, holder: str, holds: Sequence[Hold], counters: Sequence[Counter]) -> None:
        for hold, counter in zip(holds, counters, strict=True):
            self._add(counter, hold.at, *take(hold))

    def settle(self, holder: str, hold: Hold, counter: Counter, used: int) -> None:
        if hold.row is not None:
            self.gone.append((hold.row, holder))
        self._add(counter, hold.at, *change(hold, used))

    def grant(self, counter: Counter, amount: int) -> None:
        counter.grant(amount, self.now)
        self._fresh(counter).grant(amount, self.now)

    def _add(self, counter: Counter, at: int, used: int, reserved: int) -> None:
        counter.window.add(at, used, reserved)
        self._fresh(counter).window.add(at, used, reserved)

    def _fresh(self, counter: Counter) -> Counter:
        fresh = self.fresh.get(counter.name)
        if fresh is None or fresh.every != counter.every:
            packed = fresh.window.pack() if fresh else b""
            fresh = Counter(counter.name, counter.every, window_of(counter.every, packed), None, 0)
            self.fresh[counter.name] = fresh
        return rolled(fresh, self.now)

    def _forget(self) -> None:
        """Forget some of the counters that came first; not those of calls under way."""
        for name in list(self.here)[: MOST_KNOWN // 10]:
            if not self.here[name].window.reserved:
                del self.here[name]
                self.fresh.pop(name, None)

    def shift(self, us: int) -> None:
        """Take over steady time that is *us* more."""
        for counter in (*self.known.values(), *self.here.values(), *self.fresh.values()):
            for window in (counter.window, counter.grants):
                if isinstance(window, Sliding):
                    window.shift(us)

    def told(self) -> None:
        """The file has been told all of it."""
        for counter in self.here.values():
            counter.version = NO_VERSION
        self.learn(self.here.values())
        self.here.clear()
        self.fresh.clear()
        self.gone.clear()
