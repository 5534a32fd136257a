"""The rules of ``limit`` and ``budget`` made ready to count, and what they say of a counter in words.

A ``Counter`` is made of each rule when a policy is taken, so that a request pays for the rules that match it alone. It
counts apart for each value of the rule's ``per``; a request without the field is counted under the empty one.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from math import ceil, inf
from typing import Literal

from mitmgate.charges import Charge, Standing, Unit, counter_name
from mitmgate.exchange import Exchange
from mitmgate.fields import Get, Hidden, text_of
from mitmgate.policy import Policy
from mitmgate.policy.units import show_money, show_span
from mitmgate.policy.values import Budget, Limit
from mitmgate.rewrite import is_credential

UNCOUNTED = frozenset({"replay", "gateway"})
"""Doors of calls that nobody pays for: looked at again by a person, or made by the gateway itself."""

MOST_NAMES = 1000
"""Names of counters that a rule remembers; making one takes ten times as long as finding it."""

A_MINUTE_S, AN_HOUR_S = 60.0, 3600.0


def is_counted(x: Exchange) -> bool:
    """True for calls of a model that somebody outside makes."""
    return x.dialect is not None and x.door not in UNCOUNTED


class Counter[R: (Limit, Budget)]:
    """One rule, ready to count *unit*."""

    def __init__(
        self, policy: Policy, room: Literal["limit", "budget"], rule: R, unit: Unit, most: int, refuses: bool
    ) -> None:
        self.room: Literal["limit", "budget"] = room
        self.rule: R = rule
        self.unit, self.most, self.refuses = unit, most, refuses
        self.match, self.unless = rule.match, rule.unless
        self.where = policy.where(f"{room}[{getattr(policy, room).index(rule)}]")
        """``policy.yaml:12``; None where no file says it."""
        self._name = lru_cache(MOST_NAMES)(self._named)
        self._per = [(field, is_secret(field)) for field in rule.per]

    def charge(self, get: Get, amount: int) -> Charge:
        """Return the rule's claim to *amount* for the request behind *get*."""
        rule = self.rule
        values = [counted(get(field), secret) for field, secret in self._per]
        counter = self._name(*values)
        return Charge(self.room, rule.name, counter, self.unit, self.most, rule.every, amount, self.refuses)

    def _named(self, *values: str) -> str:
        rule = self.rule
        return counter_name(self.room, rule.name, self.unit, rule.every, list(zip(rule.per, values, strict=True)))


def counted(value: object | None, secret: bool) -> str:
    """Return what a request is counted under: the text of *value*, empty where there is none. A key, or what a guard
    hides, is never written as it is.
    """
    text = text_of(value)
    if text and (secret or isinstance(text, Hidden)):
        return f"sha256:{sha256(text.encode('utf-8', 'replace')).hexdigest()}"
    return text


def is_secret(field: str) -> bool:
    """Return whether the value of *field* is a key."""
    family, _, name = field.partition(".")
    return family == "header" and is_credential(name)


def mark(standing: Standing, share: float) -> int:
    """Return the count at which *share* of a counter is used, with what was granted to it."""
    return _share_of(share, standing.charge.most + standing.granted)


@lru_cache(MOST_NAMES)
def _share_of(share: float, most: int) -> int:
    return ceil(Decimal(str(share)) * most)


# -- in words ---------------------------------------------------------------------------------------------------------

UNITS: dict[Unit, tuple[str, str]] = {
    "requests": ("request", "requests"),
    "tokens": ("token", "tokens"),
    "concurrent": ("call at once", "calls at once"),
}
"""One of it, several of it; money has its own form."""


TIMES = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def said(unit: Unit, count: int) -> str:
    """Return ``2,000,000 tokens``, ``1 request``, ``0.8 USD``."""
    if unit == "cost":
        return show_money(count)
    one, several = UNITS[unit]
    return f"{count:,} {one if count == 1 else several}"


def rate(charge: Charge, granted: int = 0) -> str:
    """Return what the rule of *charge* allows: ``60 requests every 1 m``, ``20 USD a day``."""
    most = said(charge.unit, charge.most + granted)
    if charge.every is None:
        return most
    return f"{most} a {charge.every}" if isinstance(charge.every, str) else f"{most} every {show_span(charge.every)}"


def whom(charge: Charge) -> str:
    """Return whom the counter of *charge* is for, to be said after ``60 requests``: `` for tenant acme``."""
    values = json.loads(charge.counter)[-1]
    people = [f"{field} {_short(value)}" if value else f"no {field}" for field, value in values.items()]
    return f" for {' and '.join(people)}" if people else ""


def _short(value: str | list[str]) -> str:
    """Return a value that had been too long for the counter's name by its beginning."""
    return value if isinstance(value, str) else f"{value[0]}…"


def left(standing: Standing) -> str:
    """Return ``60 requests every 1 m for tenant acme, 0 left``: how it stands, for an event or an error.

    ``alert`` knows the event of a full budget by its last word.
    """
    charge = standing.charge
    of = f"{rate(charge, standing.granted)}{whom(charge)}"
    if charge.unit == "cost":
        return f"{of}, {show_money(standing.left)} left"
    return f"{of}, {standing.left:,} left"


def again(unit: Unit, wait_s: float) -> str:
    """Return when it works again, as the beginning of a sentence."""
    if unit == "concurrent":
        return f"It works again when one of them has ended; try in {time_said(wait_s)}"
    return f"It works again in {time_said(wait_s)}"


def time_said(seconds: float) -> str:
    """Return ``37 s``, ``2 m 5 s``, ``1 h 47 m``, ``3 d 4 h``: never less than *seconds*."""
    rest = ceil(seconds)
    for (unit, size), (finer, part) in pairwise(TIMES):
        if rest >= size:
            whole, more = divmod(ceil(rest / part), size // part)
            return f"{whole} {unit} {more} {finer}" if more else f"{whole} {unit}"
    return f"{rest} s"


def named(rule: str, where: str | None) -> str:
    """Return ``rule burst, policy.yaml:12``."""
    return f"rule {rule}, {where}" if where else f"rule {rule}"


# -- of those that said no --------------------------------------------------------------------------------------------


def longest(full: Sequence[Standing]) -> Standing:
    """Return the one of *full*, not empty, that takes the longest: one that never has room before all others."""
    return max(full, key=lambda standing: inf if standing.wait_s is None else standing.wait_s)


def should_retry(wait_s: float | None) -> bool | None:
    """Return ``x-should-retry``: within a minute yes, within an hour as the client thinks, later or never no."""
    if wait_s is None or wait_s > AN_HOUR_S:
        return False
    return True if wait_s <= A_MINUTE_S else None
