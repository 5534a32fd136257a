"""Values with units, both ways: ``5 m`` -> 300.0 and 300.0 -> ``5 m``.

Every number of a policy that measures something says what it measures in, so ``30`` alone is refused with the unit that
was probably meant. Each reader takes the text as it stands in the file and raises ``ValueError`` with a sentence; each
``show_*`` writes the shortest text that reads back as the same value.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

type Calendar = Literal["day", "week", "month"]
"""A unit of the calendar, in the policy's timezone; ``1 d`` is any 24 hours instead."""

_CALENDAR: Mapping[str, Calendar] = {"day": "day", "week": "week", "month": "month"}

MS_PER_UNIT: Mapping[str, int] = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
"""Largest first: ``show_time`` takes the first that divides."""

BYTES_PER_UNIT: Mapping[str, int] = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}

NANO_PER_USD = 10**9
USD_DECIMALS = 9

MEANT: Mapping[str, str] = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s",
    "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hr": "h", "hrs": "h", "hour": "h", "hours": "h",
    "day": "d", "days": "d", "msec": "ms", "millisecond": "ms", "milliseconds": "ms",
    "week": "d", "weeks": "d", "month": "d", "months": "d",
    "k": "KiB", "kb": "KiB", "m": "MiB", "mb": "MiB", "g": "GiB", "gb": "GiB", "t": "TiB", "tb": "TiB",
    "kib": "KiB", "mib": "MiB", "gib": "GiB", "tib": "TiB", "b": "B", "byte": "B", "bytes": "B",
    "$": "USD", "usd": "USD", "dollar": "USD", "dollars": "USD", "percent": "%", "pct": "%",
}  # fmt: skip
"""What other tools write -> what is read here; looked up in lower case."""

QUANTITY = re.compile(r"([+-]?)([0-9][0-9_]*)(\.[0-9]+)?\s*([^\s0-9.+-]*)", re.ASCII)

DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)

MOST_DECIMALS = 12

MOST = Decimal(10**15)
"""No quantity of a policy is larger, whatever its unit: beyond it floats lose whole numbers."""


def time(text: str) -> float:
    """Return seconds of ``500 ms``, ``30 s``, ``5 m``, ``1 h`` or ``30 d``."""
    number, unit = _split(text, "a time", tuple(MS_PER_UNIT), likely="s")
    milliseconds = number * MS_PER_UNIT[unit]
    if milliseconds != int(milliseconds):
        raise ValueError(f"{text!r} is finer than a millisecond")
    return int(milliseconds) / 1000


def span(text: str) -> float | Calendar:
    """Return seconds, or the calendar unit itself where *text* is ``day``, ``week`` or ``month``."""
    return _CALENDAR[text] if text in _CALENDAR else time(text)


def moment(text: str) -> float:
    """Return seconds since 1970 of ``2027-01-31T18:00Z``; of a date alone, when it is over. UTC unless it says more."""
    text = text.strip()
    try:
        if DATE.fullmatch(text):
            return (datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=1)).timestamp()
        said = datetime.fromisoformat(text)
        return (said.astimezone(UTC) if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no date or time; write it like 2027-01-31 or 2027-01-31T18:00Z") from None


def size(text: str) -> int:
    """Return bytes of ``2 MiB`` (1024s) or ``2 MB`` (1000s)."""
    number, unit = _split(text, "a size", tuple(BYTES_PER_UNIT), likely="MiB")
    whole = number * BYTES_PER_UNIT[unit]
    if whole != int(whole):
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(whole)


def money(text: str) -> int:
    """Return nano-dollars of ``20 USD``: integers, so that sums stay exact."""
    number, _ = _split(text, "an amount of money", ("USD",), likely="USD")
    nano = number * NANO_PER_USD
    if nano != int(nano):
        raise ValueError(f"{text!r} has more than {USD_DECIMALS} decimals; money is counted in billionths of a dollar")
    return int(nano)


def percent(text: str) -> float:
    """Return the share that ``20 %`` is: 0.2. Between 0 and 1."""
    number, _ = _split(text, "a percentage", ("%",), likely="%")
    if number > 100:
        raise ValueError(f"{text!r} is more than 100 %")
    return float(number / 100)


def show_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0 s"
    return _show(milliseconds, MS_PER_UNIT)


def show_span(value: float | Calendar) -> str:
    return value if isinstance(value, str) else show_time(value)


def show_moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def show_size(size_bytes: int) -> str:
    return _show(size_bytes, BYTES_PER_UNIT) if size_bytes else "0 B"


def show_money(nanousd: int) -> str:
    return f"{_plain(Decimal(nanousd) / NANO_PER_USD)} USD"


def show_percent(share: float) -> str:
    return f"{_plain(Decimal(str(share)) * 100)} %"


def _split(text: str, what: str, units: tuple[str, ...], likely: str) -> tuple[Decimal, str]:
    """Return number and unit of *text*; *likely* is the unit to suggest where there is none."""
    found = QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not {what}; write a number and a unit: 5 {likely}")
    sign, whole, decimals, unit = found.groups()
    digits = whole + (decimals or "")
    if sign == "-":
        raise ValueError(f"{text!r} is negative; {what} cannot be")
    if not unit:
        raise ValueError(f"{digits} has no unit; write {digits} {likely} (units: {', '.join(units)})")
    if unit not in units:
        raise ValueError(f"{unit!r} is no unit of {what}{_meant(unit, units)}")
    if len(decimals or "") > 1 + MOST_DECIMALS:
        raise ValueError(f"{text!r} has more than {MOST_DECIMALS} decimals")
    number = Decimal(digits.replace("_", ""))
    if number > MOST:
        raise ValueError(f"{text!r} is too large")
    return number, unit


def _meant(unit: str, units: tuple[str, ...]) -> str:
    meant = unit.lower() if unit.lower() in units else MEANT.get(unit.lower())
    if meant in units:
        return f"; did you mean {meant!r}?"
    return f"; units are {', '.join(units)}"


def _show(amount: int, units: Mapping[str, int]) -> str:
    unit = next(unit for unit, each in units.items() if amount % each == 0)
    return f"{amount // units[unit]} {unit}"


def _plain(number: Decimal) -> str:
    """Return *number* without exponent and without trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
