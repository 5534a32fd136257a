"""Charges to make, and ledgers to make them on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mitmgate.charges import Charge, Standing, Unit, counter_name
from mitmgate.clock import Clock
from mitmgate.policy.values import Span
from mitmgate.store.ledger import Ledger, soon

type Later = Callable[[Callable[[], None]], bool]

BOOT = "first boot"


def charge(
    rule: str,
    unit: Unit = "requests",
    most: int = 60,
    every: Span | None = 60.0,
    amount: int = 1,
    refuses: bool = True,
    tenant: str = "acme",
) -> Charge:
    """Return one charge; ``concurrent`` has no window, and money is a budget's."""
    room = "budget" if unit == "cost" else "limit"
    span = None if unit == "concurrent" else every
    name = counter_name(room, rule, unit, span, [("tenant", tenant)])
    return Charge(room, rule, name, unit, most, span, amount, refuses)


def opened(path: Path, clock: Clock, timezone: str = "UTC", boot: str = BOOT, later: Later = soon) -> Ledger:
    ledger = Ledger(path, clock, timezone, boot, later)
    ledger.open()
    return ledger


class Moments:
    """What is to be done in a moment, until the test says that it has passed."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def later(self, work: Callable[[], None]) -> bool:
        self.due.append(work)
        return True

    def pass_(self) -> None:
        due, self.due = self.due, []
        for work in due:
            work()


def kill(ledger: Ledger) -> None:
    """End *ledger* as ``kill -9`` ends its process: nothing is written or given back, and the kernel drops the lock."""
    ledger._is_open = False
    ledger._file.drop()
    ledger._file.owner.let_go()


def fits(standings: Sequence[Standing]) -> bool:
    """Return whether a call was let in."""
    return not any(standing.full and standing.charge.refuses for standing in standings)


def counts(standings: Sequence[Standing]) -> list[tuple[int, int]]:
    """Return (used, reserved) of each."""
    return [(standing.used, standing.reserved) for standing in standings]
