"""What rooms ask of the ledger: counts to add, all or nothing, and how each counter stands.

``limit`` and ``budget`` make ``Charge``s, ``store/ledger`` carries them out. A charge is reserved before the call from
an estimate; when the call is over it is settled with what was really used, or released.

Values, and never changed once they are made; not ``frozen``, since each request makes a dozen of them, and that takes
five times as long.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from mitmgate.policy.values import Span

type Unit = Literal["requests", "tokens", "concurrent", "cost"]
"""``cost`` is counted in nano-dollars."""


@dataclass(slots=True)
class Charge:
    """One rule's claim on one counter. What is counted under one ``counter`` is one count, whatever the policy file."""

    room: Literal["limit", "budget"]
    rule: str
    counter: str
    """Names the counter: section, rule and the values of ``per``, so that no two can ever be the same."""
    unit: Unit
    most: int
    every: Span | None
    """Seconds that slide, a unit of the calendar, None for ``concurrent``."""
    amount: int
    """Reserved until the call is over; ``requests`` are spent at once."""
    refuses: bool = True
    """False: it is counted and never says no (``shadow``, ``hard: record``)."""


@dataclass(slots=True)
class Standing:
    """How a counter stood right after it was asked."""

    charge: Charge
    used: int
    """Settled, in the window as it is now; of ``concurrent`` always 0."""
    reserved: int
    """By calls under way, the asking one included where it was let in."""
    granted: int
    """Added to ``most`` for this window by ``mitmgate budget grant``."""
    reset_s: float
    """Until the window's oldest count leaves it, or the calendar turns; 0 where nothing is counted."""
    wait_s: float | None
    """Of one that is full: until the same amount would fit if nothing else came; None = never."""
    full: bool = False
    """It said no, or would have."""

    @property
    def left(self) -> int:
        return max(0, self.charge.most + self.granted - self.used - self.reserved)

    @property
    def share_left(self) -> float:
        most = self.charge.most + self.granted
        return self.left / most if most else 0.0


def tightest(standings: Iterable[Standing]) -> Standing | None:
    """Return the one with the smallest share left, None of none."""
    return min(standings, key=lambda standing: standing.share_left, default=None)


@dataclass(slots=True)
class Settled:
    """One charge of a call that is over, and what it has done to its counter."""

    charge: Charge
    before: int
    """What was used just before, in the window as it is now."""
    standing: Standing
    """How the counter stands now."""


LONG_VALUE = 80
"""A value of ``per`` with more characters, which a client may have made up, is named by so many and a hash."""


def counter_name(room: str, rule: str, unit: Unit, every: Span | None, values: Sequence[tuple[str, str]]) -> str:
    """Return the name of a counter: JSON, so that people can read it and no two can be the same.

    ``["limit", "burst", "requests", "sliding", {"tenant": "acme"}]``; *values* are (field, value) in the order of
    ``per``. Days, weeks and months count apart. All windows that slide are one kind, so that a rule whose ``1 m`` was
    edited to ``5 m`` goes on from what the minute still remembers.
    """
    window = every if isinstance(every, str) else "at once" if every is None else "sliding"
    return json.dumps([room, rule, unit, window, {field: _named(value) for field, value in values}])


def _named(value: str) -> str | list[str]:
    if len(value) <= LONG_VALUE:
        return value
    return [value[:LONG_VALUE], sha256(value.encode(errors="surrogatepass")).hexdigest()]
