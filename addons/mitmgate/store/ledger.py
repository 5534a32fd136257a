"""What was counted, exactly: by every worker, over restarts, and over ``kill -9``.

``limit`` and ``budget`` reserve before a call, ``spend`` settles after it. To reserve is one transaction, on the event
loop (see ``ledger_file`` for why), so workers that share the file never let in one call too many.

- All or nothing: where one charge that may refuse finds its counter full, nothing is counted, not by shadows either.
- ``requests`` are spent at once and given back when settled without them. Tokens and cost are reserved, and what was
  really used is booked in their place, at the time of the reservation: more than was reserved is recorded, less is
  given back. ``concurrent`` is held until settled.
- A reservation never expires by itself, however long its call takes. It belongs to the process that made it; what a
  dead process held is taken back when the ledger is opened, and in every ``sweep``. What it had spent stays.
- What a call has used is known to this process at once, and written with the next reservation, or within 5 ms. A
  process that is killed in these moments has not settled the call: its request stays counted, the rest is taken back.
- Traffic does not depend on the disk: while the file is locked for longer than 0.2 s, full, gone or damaged, counting
  goes on in memory from what is known, exact within this process. The file is tried again once a second, and told what
  was counted meanwhile. Nothing here raises for reasons of the disk.

A ledger that was never opened counts in memory alone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mitmgate.charges import Charge, Settled, Standing, Unit
from mitmgate.clock import Clock
from mitmgate.counting import MOST, Calendars, Moment
from mitmgate.policy.values import Span
from mitmgate.store.ledger_books import NO_VERSION, Ahead, Books, Ended, Hold, Memory, Settling
from mitmgate.store.ledger_file import (
    DOWN_PATIENCE_S,
    PATIENCE_S,
    START_PATIENCE_S,
    TROUBLE,
    LedgerFile,
    boot_id,
)
from mitmgate.store.ledger_transaction import FileBooks

log = logging.getLogger("mitmgate.ledger")

TRY_AGAIN_S = 1.0

LATER_S = 0.005
"""So long a settlement waits for a reservation that takes it along."""

type Hears = Callable[[Charge], bool]
"""Whether it matters what settling a charge has done to its counter."""


def all_of_it(charge: Charge) -> bool:
    return True


def nothing(charge: Charge) -> bool:
    return False


def soon(work: Callable[[], None]) -> bool:
    """Have the running loop do *work* after ``LATER_S``; return False where there is no loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    loop.call_later(LATER_S, work)
    return True


@dataclass(slots=True)
class Stats:
    """For ``/metrics``."""

    outage: int = 0
    """1 while the file cannot be written."""
    outages: int = 0
    counters: int = 0
    """In the file, at the last sweep."""
    taken_back: int = 0
    """Reservations of processes that died."""


# -- decisions --------------------------------------------------------------------------------------------------------


def admit(holder: str, charges: Sequence[Charge], now: Moment, books: Books) -> tuple[list[Standing], list[Hold]]:
    """Book all of *charges* or, where one of them refuses, none; no two of them are of one counter.

    Return how each counter stands then, and what was taken.
    """
    counters = [books.counter(charge.counter, charge.every) for charge in charges]
    asked = list(zip(charges, counters, strict=True))
    full = {charge.counter for charge, counter in asked if not counter.fits(charge)}
    holds: list[Hold] = []
    if not full or not any(charge.refuses for charge in charges if charge.counter in full):
        holds = [Hold(charge, counter.at, min(charge.amount, MOST)) for charge, counter in asked]
        books.reserve(holder, holds, counters)
    return [counter.standing(charge, now, charge.counter in full) for charge, counter in asked], holds


def book(ended: Ended, hears: Hears, now: Moment, books: Settling) -> list[Settled]:
    """Book what the call that has *ended* has used in the place of what it holds; return what was to be heard."""
    settled = []
    for hold in ended.holds:
        charge = hold.charge
        counter = books.counter(charge.counter, charge.every)
        before = counter.window.used
        books.settle(ended.holder, hold, counter, ended.amount(charge))
        if hears(charge):
            settled.append(Settled(charge, before, counter.standing(charge, now)))
    return settled


def nothing_more(now: Moment, books: Books) -> None:
    """Only what waits is to be written."""


def look(charges: Sequence[Charge], now: Moment, books: Books) -> list[Standing]:
    """Return how counters stand for *charges* that nobody makes."""
    pairs = [(charge, books.counter(charge.counter, charge.every)) for charge in charges]
    return [counter.standing(charge, now, not counter.fits(charge)) for charge, counter in pairs]


# -- the ledger -------------------------------------------------------------------------------------------------------


class Ledger:
    """Every method is for the event loop's thread."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        timezone: str = "UTC",
        boot: str | None = None,
        later: Callable[[Callable[[], None]], bool] = soon,
    ) -> None:
        """*boot* names this boot of the machine, for tests that restart it. *later* does work within moments, where it
        returns True.
        """
        self.path, self.clock, self._later = path, clock, later
        self.stats = Stats()
        self._calendars = Calendars(timezone)
        self._file = LedgerFile(path, clock, boot_id() if boot is None else boot)
        self._memory = Memory(self._file.read)
        self._holds: dict[str, list[Hold]] = {}
        """Of the calls under way, by holder."""
        self._ended: list[Ended] = []
        """Calls that are settled in memory, and not yet in the file."""
        self._is_awaited = False
        """What waits will be written in a moment."""
        self._is_open = False
        self._down_since: float | None = None
        """When the file could not be used any more, monotonic seconds; None while it can."""
        self._try_at = 0.0
        self._rows_in = ""
        """Birth of the file that the rows of ``_holds`` are in."""
        self._made = 0
        """Counters made since the last sweep."""
        self._swept_after = 0
        """Transactions at the last sweep."""

    @property
    def timezone(self) -> str:
        """Of days, weeks and months. A window that has begun is finished by the calendar that it began with."""
        return self._calendars.timezone

    @timezone.setter
    def timezone(self, name: str) -> None:
        if name != self._calendars.timezone:
            self._calendars = Calendars(name)

    @property
    def waiting(self) -> int:
        """How many calls are settled in memory, and not yet in the file."""
        return len(self._ended)

    # -- life

    def open(self) -> None:
        """Use the file from now on, made if missing, and take back what dead processes held."""
        self._is_open = True
        try:
            self._file.open(START_PATIENCE_S)
        except TROUBLE as e:
            self._failed(e)
            return
        self._rows_in = self._file.birth
        self.sweep()

    def sweep(self) -> None:
        """Take back what dead processes held, forget what is empty, try a lost file again. Every few seconds."""
        if not self._is_open:
            return
        if self._down_since is not None or self._ended:
            self._write(nothing_more)
        if self._down_since is not None:
            return
        try:
            self._file.owner.live()
            self._file.see_others()
            dead = self._file.dead()
            has_orphans = self._file.held() != sum(hold.row is not None for hold in self._all_holds())
        except TROUBLE as e:
            self._failed(e)
            return
        if dead or has_orphans or self._file.transactions != self._swept_after:
            self._write(partial(self._tidy, dead, has_orphans))
            self._swept_after = self._file.transactions

    def close(self) -> None:
        """Let go of the file in good order. What is still held is taken back by whoever opens it next."""
        if self._is_open and (self._down_since is not None or self._ended):
            self._try_at = 0.0
            self._write(nothing_more)
        self._is_open = False
        self._file.close()

    # -- what rooms ask

    def reserve(self, holder: str, charges: Sequence[Charge]) -> list[Standing]:
        """Count *charges* for the call *holder*, all or none; adds to what it holds already.

        Return how each counter stands right after, in the order of *charges*. No two may be of one counter.
        """
        if not charges:
            return []
        standings, holds = self._write(partial(admit, holder, charges))
        if holds:
            self._holds.setdefault(holder, []).extend(holds)
        return standings

    def settle(
        self,
        holder: str,
        used: Mapping[Unit, int],
        apart: Mapping[str, int] | None = None,
        hears: Hears = all_of_it,
    ) -> list[Settled]:
        """Book what the call *holder* has *used* in the place of all that it holds; a unit that is missing is 0.

        *apart*: by counter, of those that count something else than the others of their unit. Return what it has done
        to the counters of those charges that somebody *hears* of.
        A holder that holds nothing, or no longer, is none: nothing is counted.
        """
        holds = self._holds.get(holder)
        if not holds:
            return []
        ended = Ended(holder, holds, used, apart or {})
        try:
            if self._may_wait(ended, hears):
                return self._settle_ahead(ended, hears)
            return self._write(partial(book, ended, hears))
        finally:
            del self._holds[holder]

    def release(self, holder: str, hears: Hears = all_of_it) -> list[Settled]:
        """Give back all that *holder* holds, ``requests`` too."""
        return self.settle(holder, {}, hears=hears)

    def standing(self, charges: Sequence[Charge]) -> list[Standing]:
        """Return how the counters of *charges* stand, and whether each would fit, without counting anything."""
        if not charges:
            return []
        if self._is_open and self._down_since is None:
            try:
                return self._look(charges)
            except TROUBLE as e:
                self._failed(e)
        now = self._file.moment(self._calendars)
        return look(charges, now, self._memory.at(now))

    def _look(self, charges: Sequence[Charge]) -> list[Standing]:
        file = self._file
        conn = file.looking()
        if any(ended.version != file.version for ended in self._ended):
            self._on_file(nothing_more)
        now = file.moment(self._calendars)
        return look(charges, now, FileBooks(conn, file.owner.name, now, self._memory.known, file.version))

    def grant(self, counter: str, every: Span | None, amount: int) -> None:
        """Add *amount* to what *counter* may count in this window; in one that slides, for *every* from now on."""
        self._write(lambda now, books: books.grant(books.counter(counter, every), amount))

    # -- settled in memory, and written a little later

    def _may_wait(self, ended: Ended, hears: Hears) -> bool:
        """Return whether memory knows what settling *ended* will do in the file, and somebody will see to that."""
        if not self._is_open or self._down_since is not None:
            return False
        known, version = self._memory.known, self._file.version
        for hold in ended.holds:
            counter = known.get(hold.charge.counter)
            if counter is None or counter.version != version or counter.every != hold.charge.every:
                return False
        if not self._file.is_alone and any(hears(hold.charge) for hold in ended.holds):
            return False  # who else counts there may be the one who passes a mark
        if not self._is_awaited:
            self._is_awaited = self._later(self._write_what_waits)
        return self._is_awaited

    def _settle_ahead(self, ended: Ended, hears: Hears) -> list[Settled]:
        now = self._file.moment(self._calendars)
        books = Ahead(self._memory.known, now)
        settled = book(ended, hears, now, books)
        ended.version, ended.changed = self._file.version, books.changed
        self._ended.append(ended)
        return settled

    def _write_what_waits(self) -> None:
        self._is_awaited = False
        if self._ended and self._is_open:
            self._write(nothing_more)

    def _catch_up(self, now: Moment, books: FileBooks) -> None:
        """Settle in the file what is settled in memory."""
        if all(ended.version == books.version for ended in self._ended):
            books.confirm(self._ended)
            return
        for ended in self._ended:  # somebody else has written meanwhile
            ended.version = NO_VERSION
            book(ended, nothing, now, books)

    # -- where it is written

    def _write[T](self, work: Callable[[Moment, Books], T]) -> T:
        """Do *work* on the file, in one transaction, or in memory where that cannot be."""
        if self._is_open and (self._down_since is None or self._came_back(self._down_since)):
            try:
                return self._on_file(work)
            except TROUBLE as e:
                self._failed(e)
        now = self._file.moment(self._calendars)
        return work(now, self._memory.at(now))

    def _on_file[T](self, work: Callable[[Moment, Books], T]) -> T:
        file = self._file
        conn = file.begin(PATIENCE_S)
        now = file.moment(self._calendars)
        books = FileBooks(conn, file.owner.name, now, self._memory.known, file.version)
        try:
            if self._ended:
                self._catch_up(now, books)
            done = work(now, books)
            books.write()
            file.commit()
        except BaseException:
            file.roll_back()
            self._memory.unlearn(books.touched.values(), now)
            for ended in self._ended:
                ended.version = NO_VERSION
            raise
        self._ended.clear()
        self._learn(books)
        return done

    def _learn(self, books: FileBooks) -> None:
        """Know what was committed."""
        books.committed()
        self._memory.learn(books.touched.values())
        self._made += books.made

    def _shift(self, us: int) -> None:
        """Take over another anchor: times that slide were counted by one that is *us* less."""
        self._memory.shift(us)
        for hold in self._all_holds():
            if isinstance(hold.charge.every, float | int):
                hold.at += us

    def _tidy(self, dead: Sequence[str], has_orphans: bool, now: Moment, books: Books) -> None:
        if not isinstance(books, FileBooks):
            return
        books.write()
        self.stats.counters = self._file.tidy(now, self._made)
        self._made = 0
        for owner in dead:
            self.stats.taken_back += books.take_back(owner)
        if has_orphans:
            books.take_back(self._file.owner.name, keep={hold.row for hold in self._all_holds()})

    def _all_holds(self) -> Iterator[Hold]:
        return (hold for holds in self._holds.values() for hold in holds)

    # -- trouble

    def _failed(self, error: Exception) -> None:
        """The file cannot be used, or still cannot."""
        self._file.failed(error)
        now = self.clock.now()
        self._try_at = now + TRY_AGAIN_S
        if self._down_since is not None:
            return
        self._down_since = now
        self._settle_in_memory()
        self.stats.outage = 1
        self.stats.outages += 1
        log.error(
            "ledger: %s cannot be used: %s. Limits and budgets count in memory, each process for itself; "
            "what is counted will be carried over",
            self.path,
            error,
        )

    def _settle_in_memory(self) -> None:
        """Let memory tell the file later what still waited to be written."""
        now = self._file.moment(self._calendars)
        names = {hold.charge.counter for ended in self._ended for hold in ended.holds}
        self._memory.unlearn([self._memory.known[name] for name in names & self._memory.known.keys()], now)
        for ended in self._ended:
            book(ended, nothing, now, self._memory.at(now))
        self._ended.clear()

    def _came_back(self, since: float) -> bool:
        """Return whether the file can be used again; it has been told then what was counted without it."""
        if self.clock.now() < self._try_at:
            return False
        try:
            self._tell()
        except TROUBLE as e:
            self._failed(e)
            return False
        self._down_since = None
        self.stats.outage = 0
        log.warning(
            "ledger: %s is used again, after %.0f s; what was counted meanwhile is in it",
            self.path,
            self.clock.now() - since,
        )
        return True

    def _tell(self) -> None:
        """Tell the file what was counted without it, in one transaction."""
        anchor = self._file.anchor
        try:
            conn = self._file.begin(DOWN_PATIENCE_S)
        finally:
            if self._file.anchor != anchor:
                self._shift(self._file.anchor - anchor)
        now = self._file.moment(self._calendars)
        books = FileBooks(conn, self._file.owner.name, now, version=self._file.version)
        if self._file.birth == self._rows_in:
            books.add(self._memory, self._holds)
        else:
            books.begin_with(self._memory, self._holds)
        books.write()
        self._file.commit()
        self._rows_in = self._file.birth
        self._memory.told()
        self._learn(books)
