"""One transaction of the ledger's file: counters read, changed and written, and what calls under way hold.

``ledger_file`` begins and commits it, and owns the tables; whatever is done here is done together or not at all.
Counters are changed in memory and written at the end, each once. All methods raise ``sqlite3.Error``.
"""

import sqlite3
from collections.abc import Container, Mapping, Sequence
from functools import cache

from mitmgate.counting import Moment, merge, used_alone, window_of
from mitmgate.policy.values import Span
from mitmgate.store.ledger_books import (
    NO_VERSION,
    Counter,
    Ended,
    Hold,
    Memory,
    change,
    new,
    opened,
    reshaped,
    rolled,
    take,
)


class FileBooks:
    """``Books`` in the file, inside a transaction."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        owner: str,
        now: Moment,
        known: Mapping[str, Counter] | None = None,
        version: int = NO_VERSION,
    ) -> None:
        """*known*: counters that need not be read where they are of this *version* of the file."""
        self.conn, self.owner, self.now = conn, owner, now
        self.known, self.version = known or {}, version
        self.touched: dict[str, Counter] = {}
        """Those that were asked for."""
        self.changed: dict[str, Counter] = {}
        """Those to write."""
        self.made = 0
        """Counters that were not in the file."""
        self._rows: list[tuple[Hold, int]] = []
        """Of holds that were noted."""

    def counter(self, name: str, every: Span | None) -> Counter:
        counter = self.touched.get(name) or self._opened(name, every)
        return counter if counter.every == every else reshaped(counter, every, self.now)

    def _opened(self, name: str, every: Span | None) -> Counter:
        counter = self.known.get(name)
        if counter is not None and counter.version == self.version:
            rolled(counter, self.now)
        else:
            counter = read_counter(self.conn, name, every, self.now) or new(name, every, self.now)
            counter.version = self.version
        self.touched[name] = counter
        return counter

    def reserve(self, holder: str, holds: Sequence[Hold], counters: Sequence[Counter]) -> None:
        for hold, counter in zip(holds, counters, strict=True):
            counter.window.add(hold.at, *take(hold))
            self.changed[counter.name] = counter
        self.hold(holder, [hold for hold in holds if hold.is_reserved])

    def hold(self, holder: str, holds: Sequence[Hold]) -> None:
        """Note what a call under way has reserved."""
        if not holds:
            return
        values: list[object] = []
        for hold in holds:
            charge = hold.charge
            values += (holder, self.owner, charge.counter, charge.every, hold.at, hold.amount)
        last = self.conn.execute(_insert_holds(len(holds)), values).lastrowid or 0
        self._rows += zip(holds, range(last - len(holds) + 1, last + 1), strict=True)

    def settle(self, holder: str, hold: Hold, counter: Counter, used: int) -> None:
        is_held = hold.row is None or self.conn.execute(LET_GO, (hold.row, holder)).rowcount == 1
        used, reserved = change(hold, used, is_held)
        if used or reserved:
            counter.window.add(hold.at, used, reserved)
            self.changed[counter.name] = counter

    def confirm(self, calls: Sequence[Ended]) -> None:
        """Write that *calls* are settled, as they are in memory already."""
        for ended in calls:
            for counter in ended.changed:
                self.touched[counter.name] = self.changed[counter.name] = rolled(counter, self.now)
        rows = [(hold.row, ended.holder) for ended in calls for hold in ended.holds if hold.row is not None]
        self.conn.executemany(LET_GO, rows)

    def grant(self, counter: Counter, amount: int) -> None:
        counter.grant(amount, self.now)
        self.changed[counter.name] = counter

    def write(self) -> None:
        """Write the counters that were changed."""
        old: list[tuple[object, ...]] = []
        made: list[tuple[object, ...]] = []
        for counter in self.changed.values():
            window, grants = packed = counter.window.pack(), counter.grants.pack() if counter.grants else b""
            before = counter.unsaved or counter.saved
            if packed == before:
                continue  # a slot was given back and taken again
            counter.unsaved = packed
            rows = old if before else made
            rows.append((counter.every, counter.empty_at(self.now), grants, window, counter.name))
        if old:
            self.conn.executemany(UPDATE, old)
        if made:
            self.conn.executemany(INSERT, made)
        self.made += len(made)
        self.changed.clear()

    def committed(self) -> None:
        """All of it is in the file."""
        for hold, row in self._rows:
            hold.row = row

    def take_back(self, owner: str, keep: Container[int | None] = ()) -> int:
        """Give back what *owner* has reserved, except for the rows to *keep*; return how many that were."""
        found = self.conn.execute("SELECT id, counter, every, at, amount FROM reservations WHERE owner = ?", (owner,))
        rows = [row for row in found.fetchall() if row[0] not in keep]
        for row, name, every, at, amount in rows:
            self.conn.execute("DELETE FROM reservations WHERE id = ?", (row,))
            counter = self.counter(name, every)
            if counter.saved:  # else it was forgotten, as all of it had left
                counter.window.add(at, 0, -amount)
                self.changed[name] = counter
        return len(rows)

    # -- when the file can be used again

    def add(self, memory: Memory, holds: Mapping[str, Sequence[Hold]]) -> None:
        """Add what was counted in *memory* while this file could not be written, and the *holds* that are new."""
        for fresh in memory.fresh.values():
            self._merge(self.counter(fresh.name, fresh.every), fresh)
        self.conn.executemany(LET_GO, memory.gone)
        for holder, held in holds.items():
            self.hold(holder, [hold for hold in held if hold.is_reserved and hold.row is None])

    def begin_with(self, memory: Memory, holds: Mapping[str, Sequence[Hold]]) -> None:
        """Begin this file, which came in the place of a lost one, with what *memory* knows, and all *holds*.

        Other workers do the same. So each adds what its own calls hold, and what was used is written by the first,
        to which the others only add what they counted since.
        """
        for base in (memory.known | memory.here).values():
            counter, fresh = self.counter(base.name, base.every), memory.fresh.get(base.name)
            if counter.saved is None:
                self._merge(counter, base, reserved=False)
            elif fresh:
                self._merge(counter, fresh, reserved=False)
        for holder, held in holds.items():
            reserved = [hold for hold in held if hold.is_reserved]
            self.reserve(holder, reserved, [self.counter(hold.charge.counter, hold.charge.every) for hold in reserved])

    def _merge(self, counter: Counter, other: Counter, reserved: bool = True) -> None:
        merge(counter.window, other.window.booked() if reserved else used_alone(other.window))
        for count in other.grants.booked() if other.grants else ():
            counter.grants = counter.grants or window_of(counter.every)
            counter.grants.roll(self.now)
            counter.grants.add(*count)
        self.changed[counter.name] = counter


@cache
def _insert_holds(count: int) -> str:
    """Return the statement that makes so many rows at once; their ids follow each other."""
    return f"INSERT INTO reservations (holder, owner, counter, every, at, amount) VALUES {', '.join([HOLD] * count)}"


HOLD = "(?, ?, ?, ?, ?, ?)"
LET_GO = "DELETE FROM reservations WHERE id = ? AND holder = ?"
INSERT = "INSERT INTO counters (every, empty_at, grants, window, name) VALUES (?, ?, ?, ?, ?)"
UPDATE = "UPDATE counters SET every = ?, empty_at = ?, grants = ?, window = ? WHERE name = ?"
READ = "SELECT window, grants FROM counters WHERE name = ?"


def read_counter(conn: sqlite3.Connection, name: str, every: Span | None, now: Moment) -> Counter | None:
    row = conn.execute(READ, (name,)).fetchone()
    return opened(name, every, row[0], row[1], now) if row else None
