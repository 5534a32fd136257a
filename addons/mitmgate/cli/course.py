"""The course of time of a report, as sparklines: calls, errors, and the first token of each provider.

An incident shows here first: latency is drawn per provider, scaled from zero, and a line whose peak is over four times
its middle is red. A time without calls is zero calls and no latency, never a line drawn across.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mitmgate.cli import render
from mitmgate.store import queries
from mitmgate.store.queries import Row
from mitmgate.store.selection import Filters, Window

if TYPE_CHECKING:
    import sqlite3

    from rich.console import Console

UNITS: tuple[tuple[str, timedelta, timedelta], ...] = (
    ("minute", timedelta(minutes=1), timedelta(hours=1)),
    ("ten_minutes", timedelta(minutes=10), timedelta(hours=10)),
    ("hour", timedelta(hours=1), timedelta(days=14)),
    ("day", timedelta(days=1), timedelta.max),
)
"""Name of the dimension, its width, and the longest window that it is used for."""

SPARK_COLUMNS = 60
PROVIDERS = 6
"""Sparklines for so many, the busiest first."""


@dataclass(frozen=True, slots=True)
class Series:
    """One sparkline: a label, the values in time order, and how values that share a column become one."""

    label: str
    values: list[float | None]
    fold: Callable[[list[float]], float]
    text: Callable[[float | None], str]


def unit_for(start: datetime, end: datetime) -> tuple[str, timedelta]:
    return next((name, width) for name, width, longest in UNITS if end - start <= longest)


def buckets(start: datetime, end: datetime, width: timedelta) -> list[str]:
    """Return the beginnings of all buckets that the window touches, written as the dimensions write them."""
    epoch = datetime.min.replace(tzinfo=UTC)
    first = start - (start - epoch) % width
    n = -(-(end - first) // width)
    times = (first + i * width for i in range(max(n, 1)))
    return [f"{time:%Y-%m-%d}" if width >= timedelta(days=1) else f"{time:%Y-%m-%dT%H:%M}Z" for time in times]


def series(rows: Sequence[Row], unit: str, times: Sequence[str]) -> list[Series]:
    """Return the sparklines of *rows*, as ``queries.course`` gives them."""
    place = {time: n for n, time in enumerate(times)}
    calls: list[float | None] = [0.0] * len(times)
    errors: list[float | None] = [0.0] * len(times)
    first: dict[str, list[float | None]] = {}
    weight: dict[str, int] = {}
    for row in rows:
        n = place.get(row[unit])
        if n is None:
            continue
        calls[n] = (calls[n] or 0) + row["calls"]
        errors[n] = (errors[n] or 0) + row["errors"]
        name = render.inert(row["provider_name"])
        first.setdefault(name, [None] * len(times))[n] = row["ttft_p50_ms"]
        weight[name] = weight.get(name, 0) + row["calls"]
    busiest = sorted(first, key=lambda name: -weight[name])[:PROVIDERS]
    providers = [Series(f"ttft  {name}", first[name], max, render.ms) for name in busiest]
    return [Series("calls", calls, sum, render.count), Series("errors", errors, sum, render.count), *providers]


def print_series(out: "Console", all_series: Sequence[Series], unit: str) -> None:
    """Print a sparkline per series that has a value, its largest value behind it."""
    from rich.cells import cell_len, set_cell_size

    shown = [one for one in all_series if any(value is not None for value in one.values)]
    label_width = min(max(cell_len(one.label) for one in shown), max(out.width // 3, 22))
    width = max(min(SPARK_COLUMNS, out.width - label_width - 16), 8)
    for one in shown:
        values = render.folded(one.values, width, one.fold)
        line = render.sparkline(values, ascii_only=render.is_ascii(out))
        label = set_cell_size(one.label, label_width)
        top = max(value for value in values if value is not None)
        out.out(f"{label}  {line}  max {one.text(top)}", style="red" if stands_out(values) else None, highlight=False)
    each = {"minute": "a minute", "ten_minutes": "ten minutes", "hour": "an hour", "day": "a day"}[unit]
    parts = -(-len(shown[0].values) // width)
    columns = f"each column {each}" if parts == 1 else f"each column about {parts} times {each}"
    out.print(f"{columns}; ttft: ms to the first token, p50", style="dim")


def stands_out(values: Sequence[float | None]) -> bool:
    """True where the largest value is over four times the middle one: the line of an incident."""
    known = sorted(value for value in values if value)
    return len(known) > 4 and known[-1] > 4 * known[len(known) // 2]


def print_course(out: "Console", conn: "sqlite3.Connection", window: Window, filters: Filters, now: str | None) -> None:
    """Print the course of time over *window*, as far as there are rows."""
    oldest, newest = queries.extent(conn)
    start = datetime.fromisoformat(max(window.since or oldest, oldest))
    end = datetime.fromisoformat(window.until or (now if now and window.since else newest)) + timedelta(milliseconds=1)
    unit, width = unit_for(start, end)
    times = buckets(start, end, width)
    print_series(out, series(queries.course(conn, window, unit, filters), unit, times), unit)
