"""What an alert rule watches: figures over calls, breakers, budgets. Each ``Watch`` is fed with the rows that are new,
and says at any moment how things stand.

    Calls      a share or a sum over the last ``over``, apart for each value of ``per``
    Breakers   a place rests, from the event that says so until an attempt that began later was answered
    Budgets    its share that is used (``soft``, ``downgrade``), or that it refused somebody (``hard``)

``Calls`` keeps two numbers per slice of time, a sixtieth of ``over``, so a window is exact to that; a call counts from
when it ended, or an hour-long stream that broke just now would never be seen.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from mitmgate.clock import iso
from mitmgate.policy.match import fits
from mitmgate.policy.values import Alert, Budget, Policy, When
from mitmgate.store import watch
from mitmgate.store.budget_uses import BudgetUse
from mitmgate.store.queries import percentile
from mitmgate.store.watch import EVIDENCE, FIGURES, Columns, Fields, Span, Values

SLICES = 60
"""Of a window."""

MOST_VALUES = 5000
"""Values of ``per`` that a rule tells apart; calls of any further one are not watched, which is said in the log."""

QUIET_S = 300.0
"""A budget that refused nobody for so long, and has room again, refuses no more."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """How one value of ``per`` stands, at one moment."""

    values: Values
    breached: bool
    figure: float | None = None
    """A share, milliseconds, nano-dollars; None = there is nothing to go by."""
    part: int = 0
    """Calls that speak for an alarm; nano-dollars that are used."""
    whole: int = 0
    """Of so many calls; of so many nano-dollars."""


class Watch(Protocol):
    rule: Alert
    names: tuple[str, ...]
    """What the ``Values`` of its sightings are called."""

    def since(self, wall: float, breached: Mapping[Values, float]) -> float:
        """Return from when on rows are needed, if it begins at *wall*; *breached* since when it was when it ended."""

    def feed(self, conn: sqlite3.Connection, span: Span) -> None:
        """Take in new rows."""

    def sightings(self, wall: float) -> list[Sighting]:
        """Return how things stand; a value that nothing is known of any more is left out.

        Raises ``StartError``, ``sqlite3.Error`` or ``OSError`` where nobody can tell just now.
        """

    def exact(self, conn: sqlite3.Connection, seen: Sighting, wall: float) -> Sighting:
        """Return *seen* with its figure as a message tells it."""

    def evidence(self, conn: sqlite3.Connection, values: Values, wall: float) -> list[str]:
        """Return the ids of up to ``EVIDENCE`` calls that show it best."""


type BudgetUses = Callable[[Budget], Mapping[Values, BudgetUse]]
"""budget -> how each of its counters stands, by the values of its ``per``. Raises where nobody can tell just now."""


def watch_of(rule: Alert, policy: Policy, uses: BudgetUses) -> Watch:
    """Return what *rule* of *policy* watches."""
    if rule.when.watch == "breaker":
        return Breakers(rule)
    if rule.when.watch == "budget":
        [budget] = [budget for budget in policy.budget if budget.name == rule.when.subject]
        return Budgets(rule, budget, uses)
    return Calls(rule)


def _fields_of(rule: Alert, *first: str) -> Iterator[str]:
    yield from first
    for says in (rule.match, rule.unless):
        yield from sorted(says.fields if says else ())


# -- figures over calls -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """Two numbers per slice of time, and their sums."""

    whole: int = 0
    part: int = 0
    slices: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Slice -> (whole, part)."""

    def add(self, slice_: int, whole: int, part: int) -> None:
        had_whole, had_part = self.slices.get(slice_, (0, 0))
        self.slices[slice_] = had_whole + whole, had_part + part
        self.whole += whole
        self.part += part

    def forget(self, before: int) -> None:
        """Let go of the slices *before* one."""
        for gone in [slice_ for slice_ in self.slices if slice_ < before]:
            whole, part = self.slices.pop(gone)
            self.whole -= whole
            self.part -= part


class Calls:
    """A figure over calls: ``error_rate``, ``interrupted``, ``p95_ms``, ``spend``."""

    def __init__(self, rule: Alert) -> None:
        self.rule = rule
        self.names = rule.when.per
        self.figure = FIGURES[rule.when.watch]
        self.columns = Columns(_fields_of(rule, *rule.when.per))
        self.slice_s = max(rule.when.over_s / SLICES, 0.001)
        self.tallies: defaultdict[Values, Tally] = defaultdict(Tally)
        self.overflowed = False
        """There were more than ``MOST_VALUES``."""

    def since(self, wall: float, breached: Mapping[Values, float]) -> float:
        return wall - self.rule.when.over_s

    def feed(self, conn: sqlite3.Connection, span: Span) -> None:
        for found in watch.counted(conn, self.figure, self.rule.when.above, self.columns, span, self.slice_s):
            if not fits(self.rule, found.fields.get):
                continue
            values = watch.values_of(found.fields, self.names)
            if values not in self.tallies and len(self.tallies) >= MOST_VALUES:
                self.overflowed = True
                continue
            self.tallies[values].add(found.slice, found.whole, found.part)

    def sightings(self, wall: float) -> list[Sighting]:
        oldest = int(wall / self.slice_s) - SLICES + 1
        for values, tally in list(self.tallies.items()):
            tally.forget(oldest)
            if not tally.slices:
                del self.tallies[values]
        return [self._sighting(values, tally) for values, tally in self.tallies.items()]

    def _sighting(self, values: Values, tally: Tally) -> Sighting:
        when = self.rule.when
        whole, part = tally.whole, tally.part
        if when.watch == "spend":
            return Sighting(values, part > when.above, part, part, whole)
        if whole < when.min_requests:
            return Sighting(values, False, None, part, whole)
        share = part / whole
        if when.watch == "p95_ms":
            return Sighting(values, is_above_p95(part, whole), None, part, whole)
        return Sighting(values, share > when.above, share, part, whole)

    def exact(self, conn: sqlite3.Connection, seen: Sighting, wall: float) -> Sighting:
        if self.rule.when.watch != "p95_ms" or not seen.whole:
            return seen
        since = self.since(wall, {})
        taken: list[float] = []
        for fields, some in watch.samples(conn, self.columns, watch.before(conn, since), since):
            if self._is_of(fields, seen.values):
                taken += some
        return Sighting(seen.values, seen.breached, percentile(sorted(taken), 95), seen.part, seen.whole)

    def evidence(self, conn: sqlite3.Connection, values: Values, wall: float) -> list[str]:
        since = self.since(wall, {})
        rows = watch.worst(conn, self.figure, self.rule.when.above, self.columns, watch.before(conn, since), since)
        return first(id_ for id_, fields in rows if self._is_of(fields, values))

    def _is_of(self, fields: Fields, values: Values) -> bool:
        return watch.values_of(fields, self.names) == values and fits(self.rule, fields.get)


def is_above_p95(slow: int, calls: int) -> bool:
    """Return whether the 95th percentile (nearest rank) of *calls* is one of the *slow*."""
    rank = -(-95 * calls // 100)
    return slow > calls - rank


def first(ids: Iterable[str]) -> list[str]:
    """Return the first few different *ids*."""
    found: dict[str, None] = {}
    for id_ in ids:
        found[id_] = None
        if len(found) == EVIDENCE:
            break
    return list(found)


# -- breakers ---------------------------------------------------------------------------------------------------------


class Breakers:
    """Places that rest: a target, or a host where there is none."""

    def __init__(self, rule: Alert) -> None:
        self.rule = rule
        self.names: tuple[str, ...] = ("target",)
        self.columns = Columns(_fields_of(rule))
        self.rested: dict[str, str] = {}
        """Place -> when it last began to rest, ISO time."""
        self.answered: dict[str, str] = {}
        """Name of a target or host -> when the latest attempt began that it answered, ISO time."""

    def since(self, wall: float, breached: Mapping[Values, float]) -> float:
        """Begin early enough to hear what became of the places that rested."""
        for values, at in breached.items():
            self.rested[values[0]] = iso(at)
        return min([wall - self.rule.when.over_s, *breached.values()])

    def feed(self, conn: sqlite3.Connection, span: Span) -> None:
        for event in watch.acted(conn, "breaker", ("rest",), self.columns, span):
            place, begins, _ = event.detail.partition(watch.RESTS)
            if begins and self.rule.when.subject in (None, place) and fits(self.rule, event.fields.get):
                note(self.rested, place, event.at)
        for name, at in watch.answered(conn, span).items():
            note(self.answered, name, at)

    def sightings(self, wall: float) -> list[Sighting]:
        self.rested = {place: at for place, at in self.rested.items() if at > self.answered.get(place, "")}
        return [Sighting((place,), True) for place in self.rested]

    def exact(self, conn: sqlite3.Connection, seen: Sighting, wall: float) -> Sighting:
        return seen

    def evidence(self, conn: sqlite3.Connection, values: Values, wall: float) -> list[str]:
        return watch.failed_at(conn, values[0], watch.before(conn, wall - self.rule.when.over_s))


def note(times: dict[str, str], name: str, at: str) -> None:
    """Note the latest time of *name*; who has not been heard of for longest makes room."""
    times[name] = max(times.pop(name, ""), at)
    if len(times) > MOST_VALUES:
        del times[next(iter(times))]


# -- budgets ----------------------------------------------------------------------------------------------------------


class Budgets:
    """The counters of one budget."""

    def __init__(self, rule: Alert, budget: Budget, uses: BudgetUses) -> None:
        self.rule = rule
        self.budget = budget
        self.names = budget.per
        self.uses = uses
        self.columns = Columns(budget.per)
        self.refused: dict[Values, float] = {}
        """When a counter last refused somebody, or would have; seconds since 1970."""
        self.events: dict[Values, list[str]] = {}
        """The latest calls on which it acted."""

    def since(self, wall: float, breached: Mapping[Values, float]) -> float:
        return wall - QUIET_S

    def feed(self, conn: sqlite3.Connection, span: Span) -> None:
        for event in watch.acted(conn, "budget", ACTIONS, self.columns, span, self.budget.name):
            values = watch.values_of(event.fields, self.names)
            self.events[values] = [event.id, *self.events.pop(values, [])][:EVIDENCE]
            if len(self.events) > MOST_VALUES:
                del self.events[next(iter(self.events))]
            if event.action in HARD and event.detail.endswith(NO_ROOM):
                self.refused[values] = datetime.fromisoformat(event.at).timestamp()

    def sightings(self, wall: float) -> list[Sighting]:
        uses = self.uses(self.budget)
        self.refused = {values: at for values, at in self.refused.items() if self._refuses(values, at, uses, wall)}
        return [
            self._sighting(values, uses.get(values, BudgetUse(0, 0)))
            for values in {**uses, **self.refused}
            if fits(self.rule, dict(zip(self.names, values, strict=False)).get)
        ]

    def _refuses(self, values: Values, at: float, uses: Mapping[Values, BudgetUse], wall: float) -> bool:
        """Return whether a counter that refused somebody at *at* is still one that does."""
        use = uses.get(values)
        return wall - at < QUIET_S or (use is not None and use.used >= use.most)

    def _sighting(self, values: Values, use: BudgetUse) -> Sighting:
        share = use.used / use.most if use.most else 0.0
        return Sighting(values, self._is_breached(values, share), share, use.used, use.most)

    def _is_breached(self, values: Values, share: float) -> bool:
        step = step_of(self.rule.when, self.budget)
        refuses = self.rule.when.at == "hard" and values in self.refused
        return refuses or (step is not None and share >= step)

    def exact(self, conn: sqlite3.Connection, seen: Sighting, wall: float) -> Sighting:
        return seen

    def evidence(self, conn: sqlite3.Connection, values: Values, wall: float) -> list[str]:
        return self.events.get(values, [])


def step_of(when: When, budget: Budget) -> float | None:
    """Return the share of *budget* from which on *when* holds; None where it has no such step."""
    if when.at == "hard":
        return 1.0
    if when.at == "soft":
        return budget.soft
    return budget.downgrade.at if budget.downgrade else None


HARD = ("hard", "refuse")
ACTIONS = ("soft", "downgrade", *HARD)
NO_ROOM = " left"
"""So ends the event of a full counter; ``unpriced: refuse`` refuses, too, and says nothing of how much there is."""
