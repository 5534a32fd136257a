"""How far each counter of a budget is, read out of the ledger beside a gateway that writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mitmgate.charges import counter_name
from mitmgate.clock import Clock
from mitmgate.counting import Calendars
from mitmgate.policy.values import Budget
from mitmgate.store import ledger_file
from mitmgate.store.ledger_books import Counter, opened
from mitmgate.store.watch import Values


class BudgetUse(NamedTuple):
    """How far one counter of a budget is, in nano-dollars."""

    used: int
    """Settled."""
    most: int
    """With what was granted on top."""


def budget_uses(path: Path, budget: Budget, clock: Clock, timezone: str) -> dict[Values, BudgetUse]:
    """Return how each counter of *budget* stands in the ledger at *path*; of one that was never made, nothing.

    Raises ``StartError`` where the ledger cannot be read.
    """
    if not path.exists():
        return {}
    name = counter_name("budget", budget.name, "cost", budget.every, ())
    prefix = name.removesuffix("{}]")
    with ledger_file.looking(path) as conn:
        now = ledger_file.moment_of(conn, clock, Calendars(timezone), ledger_file.boot_id())
        rows = conn.execute(COUNTERS, [prefix, prefix + "\U0010ffff"]).fetchall()
    return {
        _values(name): _use(opened(name, every, window, grants, now), budget) for name, every, window, grants in rows
    }


COUNTERS = "SELECT name, every, window, grants FROM counters WHERE name >= ? AND name < ?"


def _values(counter: str) -> Values:
    """Return the values of ``per`` in a counter's name; one that was too long for it by its beginning."""
    named: Mapping[str, str | list[str]] = json.loads(counter)[-1]
    return tuple(value if isinstance(value, str) else f"{value[0]}…" for value in named.values())


def _use(counter: Counter, budget: Budget) -> BudgetUse:
    return BudgetUse(counter.window.used, budget.cost_nanousd + counter.granted)
