"""The places of a report: what each was asked, how it did, and when it rested.

The groups of a report count calls, and a call's row names only the place that answered in the end. Whose fault it was
that it took so long stands here. A terminal that is too narrow loses the host first, then columns from the right;
``--json`` has them all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mitmgate.cli import render
from mitmgate.cli.columns import GAP, Block, Column, add_names, block_widths, packed
from mitmgate.store.queries import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BLOCKS: tuple[Block, ...] = (
    (
        Column("attempts", lambda row: render.count(row["attempts"])),
        Column("retries", lambda row: render.count(row["retries"])),
        Column("errors %", lambda row: render.share(row["error_share"])),
    ),
    (
        Column("rests", lambda row: render.count(row["rests"])),
        Column("passed by", lambda row: render.count(row["passed_by"])),
    ),
    (
        Column("first byte p50", lambda row: render.ms(row["first_byte_p50_ms"])),
        Column("p95", lambda row: render.ms(row["first_byte_p95_ms"])),
    ),
    (
        Column("cancelled", lambda row: render.count(row["cancelled"])),
        Column("cost $", lambda row: render.usd(row["cost_nanousd"])),
    ),
)
"""Attempts, those that followed another one at the same place, and the share that failed; how often the breaker let it
rest, and how many calls passed it by meanwhile; milliseconds to the first byte; attempts that were ended because
another answer came first or nobody was left to hear it, and what all of them cost.
"""

NAMES = ("target", "host")
NAME_WIDTH = 28
MOST = 20
"""Places on the screen, the busiest first."""


def print_places(out: "Console", rows: Sequence[Row]) -> None:
    """Print a table of *rows*, as ``store.places`` gives them."""
    if not rows:
        return
    shown = rows[:MOST]
    widths = block_widths(BLOCKS, shown)
    names = next((names for names in (NAMES, NAMES[:1]) if sum(widths.values()) <= _room(out, names, shown)), NAMES[:1])
    blocks = packed(widths, _room(out, names, shown))[0]
    out.print()
    out.print(_table(names, [column for block in blocks for column in block], shown))
    if len(shown) < len(rows):
        out.out(f"and {len(rows) - len(shown):,} more targets; --json has them all", style="dim", highlight=False)


def _room(out: "Console", names: Sequence[str], rows: Sequence[Row]) -> int:
    """Return the columns that *names* leave for numbers."""
    return out.width - sum(min(_width(name, rows), NAME_WIDTH) + GAP for name in names) + GAP


def _width(name: str, rows: Sequence[Row]) -> int:
    from rich.cells import cell_len

    return max(len(name), *(cell_len(render.inert(row[name])) for row in rows))


def _table(names: Sequence[str], columns: Sequence[Column], rows: Sequence[Row]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    add_names(made, names, NAME_WIDTH)
    for column in columns:
        made.add_column(column.heading, justify="right", no_wrap=True)
    for row in rows:
        style = "red" if row["rests"] else ""
        made.add_row(
            *(Text(render.inert(row[name])) for name in names), *(column.text(row) for column in columns), style=style
        )
    return made
