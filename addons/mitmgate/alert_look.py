"""One look after the other: what is new in the trace database, what follows from it for each rule, and what to tell.

``Watcher.look`` is all there is to it; ``alert`` calls it every few seconds and does the telling. A breach begins with
the first look that finds the figure too high, and is over when two looks in a row have found it low.
"""

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from mitmgate import alert_message
from mitmgate.alert_watch import BudgetUses, Calls, Sighting, Watch, watch_of
from mitmgate.errors import StartError
from mitmgate.policy import Policy
from mitmgate.store import files, watch
from mitmgate.store.alert_file import State
from mitmgate.store.reader import open_reader
from mitmgate.store.watch import Span, Values

log = logging.getLogger("mitmgate.alert")

CHUNK = 20_000
"""Rows read in one query: a reader that takes long holds up the folding of the log."""

TROUBLE = (sqlite3.Error, OSError, StartError)
"""Why nothing can be seen just now."""

type Key = tuple[str, Values]
"""(name of the rule, values of ``per``)."""


# -- decisions --------------------------------------------------------------------------------------------------------


def step(
    held: Literal["breach", "clear"] | None, is_breached: bool, was_below: bool
) -> Literal["breach", "clear", "below"] | None:
    """Return what follows from one look: something to tell, ``below`` for the first time, or nothing.

    *held* is how it stood; *was_below* says that the look before found it below, while the breach was not over yet.
    """
    if is_breached:
        return None if held == "breach" else "breach"
    if held != "breach":
        return None
    return "clear" if was_below else "below"


# -- one look after the other -----------------------------------------------------------------------------------------


class Watcher:
    """The rules of one policy, over one database."""

    def __init__(self, policy: Policy, database: Path, states: Iterable[State], uses: BudgetUses) -> None:
        self.policy = policy
        self.database = database
        self.states: dict[Key, State] = {}
        for state in states:
            self.keep(state)
        self.where = {rule.name: policy.where(f"alert[{n}]") for n, rule in enumerate(policy.alert)}
        self._uses = uses
        self._watches: list[Watch] = []
        self._below: set[Key] = set()
        """Breaches that the look before found below."""
        self._conn: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Which file the connection is to."""
        self._read = 0
        """Rows up to this one have been taken in."""
        self._complained: set[str] = set()

    def look(self, wall: float) -> list[State]:
        """Take in the new rows and return the states that have changed, each with its notice.

        Raises ``StartError`` where there is no database yet, ``sqlite3.Error`` or ``OSError`` where it cannot be read.
        """
        try:
            conn = self._connected(wall)
            self._take_in(conn)
            changed = [state for one in self._watches for state in self._changes(conn, one, wall)]
        except TROUBLE:
            self.close()
            raise
        for state in changed:  # only now: what a broken look has found is found again by the next
            self.keep(state)
        return changed

    def keep(self, state: State) -> None:
        """Remember *state*; one that is over and told is as good as none."""
        if state.state == "clear" and state.told:
            self.states.pop(state.key, None)
        else:
            self.states[state.key] = state

    def close(self) -> None:
        if self._conn is not None:
            with suppress(sqlite3.Error):
                self._conn.close()
            self._conn = None

    # -- rows

    def _connected(self, wall: float) -> sqlite3.Connection:
        """Return the connection; a new one, with everything counted anew, where the file is another one than before."""
        found = files.identity(self.database)
        if self._conn is not None and found == self._file:
            newest = watch.newest(self._conn)
            if newest >= self._read:
                return self._conn
        self.close()  # set aside, moved, or its rows were numbered anew by a VACUUM
        conn = self._conn = open_reader(self.database)
        self._file = found
        self._watches = [watch_of(rule, self.policy, self._uses) for rule in self.policy.alert]
        self._read = watch.before(conn, min(one.since(wall, self._breached(one)) for one in self._watches))
        return conn

    def _breached(self, one: Watch) -> Mapping[Values, float]:
        return {
            state.values: state.since
            for state in self.states.values()
            if state.rule == one.rule.name and state.state == "breach"
        }

    def _take_in(self, conn: sqlite3.Connection) -> None:
        newest = watch.newest(conn)
        while self._read < newest:
            span = Span(self._read, min(self._read + CHUNK, newest))
            for one in self._watches:
                one.feed(conn, span)
            self._read = span.upto

    # -- what has changed

    def _changes(self, conn: sqlite3.Connection, one: Watch, wall: float) -> list[State]:
        name = one.rule.name
        try:
            seen = {sighting.values: sighting for sighting in one.sightings(wall)}
        except TROUBLE as e:
            self._complain(name, f"alert: {name}: nobody can tell how things stand: {e}")
            return []
        if isinstance(one, Calls) and one.overflowed:
            self._complain(f"{name} values", f"alert: {name}: more values of {', '.join(one.names)} than are watched")
        gone = [Sighting(values, False) for values in self._breached(one) if values not in seen]
        found = [self._change(conn, one, sighting, wall) for sighting in (*seen.values(), *gone)]
        return [state for state in found if state]

    def _change(self, conn: sqlite3.Connection, one: Watch, seen: Sighting, wall: float) -> State | None:
        key = one.rule.name, seen.values
        held = self.states.get(key)
        next_step = step(held.state if held else None, seen.breached, key in self._below)
        self._below.discard(key)
        if next_step == "below":
            self._below.add(key)
        if next_step is None or next_step == "below":
            return None
        since = held.since if held and next_step == "clear" else wall
        notice = alert_message.notice(
            one.rule,
            next_step,
            one.exact(conn, seen, wall),
            names=one.names,
            at=wall,
            since=since,
            evidence=one.evidence(conn, seen.values, wall) if next_step == "breach" else (),
            where=self.where[one.rule.name],
            budget=next((budget for budget in self.policy.budget if budget.name == one.rule.when.subject), None),
        )
        return State(*key, next_step, since, wall, asdict(notice), told=one.rule.shadow)

    def _complain(self, kind: str, message: str) -> None:
        if kind not in self._complained:
            self._complained.add(kind)
            log.warning("%s (said once)", message)
