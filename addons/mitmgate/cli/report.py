"""``mitmgate report``: what calls cost, how fast they were and how they ended, by whatever groups them.

Four parts on a terminal: sentences of totals, the course of time as sparklines (calls, errors, and the first token per
provider, since that is where an incident shows), the groups, and the places that were asked, with their errors and
rests. A number that is not known is ``–``, never 0; where a cost misses calls that have no price, it says so.
``--json`` gives the same numbers without the pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitmgate.cli import course, render
from mitmgate.cli.columns import GAP, Block, Column, add_names, block_widths, packed
from mitmgate.cli.common import db_option, db_path, home_option
from mitmgate.cli.places import print_places
from mitmgate.clock import SystemClock, iso
from mitmgate.store import queries
from mitmgate.store.places import places
from mitmgate.store.queries import Row
from mitmgate.store.selection import EVERYTHING, Filters, Window

if TYPE_CHECKING:
    import sqlite3

    from rich.console import Console
    from rich.table import Table

# -- the groups -------------------------------------------------------------------------------------------------------

HEADINGS = {
    "provider_name": "provider",
    "request_model": "model",
    "response_model": "answered by",
    "operation_name": "operation",
    "status_code": "status",
    "error_type": "error",
    "session_id": "session",
}
"""Column heading of a by-value, where it is not its name."""


BLOCKS: tuple[Block, ...] = (
    (
        Column("calls", lambda row: render.count(row["calls"])),
        Column("errors %", lambda row: render.share(row["error_share"]), is_share=True),
    ),
    (
        Column("in", lambda row: render.count(row["input_tokens"])),
        Column("cached", lambda row: render.count(row["cache_read_input_tokens"])),
        Column("out", lambda row: render.count(row["output_tokens"])),
    ),
    (
        Column("cost $", lambda row: cost(row)),
        Column("saved $", lambda row: render.usd(row["saved_nanousd"])),
        Column("hits %", lambda row: render.share(row["cache_hit_share"]), is_share=True),
    ),
    (
        Column("ttft p50", lambda row: render.ms(row["ttft_p50_ms"])),
        Column("p95", lambda row: render.ms(row["ttft_p95_ms"])),
        Column("p99", lambda row: render.ms(row["ttft_p99_ms"])),
    ),
    (
        Column("total p50", lambda row: render.ms(row["p50_ms"])),
        Column("p95", lambda row: render.ms(row["p95_ms"])),
        Column("p99", lambda row: render.ms(row["p99_ms"])),
    ),
    (
        Column("tries", lambda row: render.times(row["attempts_per_sent"])),
        Column("cut", lambda row: render.count(row["streams_interrupted"])),
    ),
)
"""Columns that stay together: calls; tokens; money and what the cache saved of it; milliseconds to the first token; in
all; attempts per sent call and streams interrupted."""

BAR = 16
"""Columns of a bar."""

FEW = 20
"""A share of fewer calls than this says little."""


def cost(row: Row) -> str:
    """Return the cost, with a mark where it is too low because some calls have no price."""
    text = render.usd(row["cost_nanousd"])
    return f"{text}+" if row["unpriced"] and row["cost_nanousd"] is not None else text


def table(
    by: Sequence[str], columns: Sequence[Column], rows: Sequence[Row], total: Row, bars: Sequence[str], name_width: int
) -> "Table":
    """Return a table of *rows* and their *total*; *bars* (one per row, or none) close each line."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", show_footer=len(rows) > 1, footer_style="bold")
    add_names(made, [heading(name) for name in by], name_width, footers=("total",))
    for column in columns:
        made.add_column(column.heading, footer=column.text(total), justify="right", no_wrap=True)
    if bars:
        made.add_column("", no_wrap=True)
    for n, row in enumerate(rows):
        names = [Text(render.inert(row[name])) for name in by]
        numbers = [Text(column.text(row), style=emphasis(column, row)) for column in columns]
        made.add_row(*names, *numbers, *([bars[n]] if bars else []))
    return made


def heading(name: str) -> str:
    return render.inert(HEADINGS.get(name, name))


def emphasis(column: Column, row: Row) -> str:
    """Return the style of a number: a share of a few calls is grey, or one error of two would look like an outage."""
    return "dim" if column.is_share and row["calls"] < FEW else ""


def share_bars(rows: Sequence[Row], width: int, ascii_only: bool) -> list[str]:
    """Return a bar per row, over its share of the largest cost; over calls where no cost is known."""
    name = "cost_nanousd" if any(row["cost_nanousd"] for row in rows) else "calls"
    top = max((row[name] or 0 for row in rows), default=0)
    if len(rows) < 2 or not top:
        return []
    return [render.bar((row[name] or 0) / top, width, ascii_only=ascii_only) for row in rows]


NAME_WIDTH = 16
"""Of a name where the terminal is too narrow for all of it."""


def print_groups(out: "Console", by: Sequence[str], rows: Sequence[Row], total: Row) -> None:
    """Print the groups as one table where the terminal is wide enough, else as several below each other."""
    by, same = apart(by, rows)
    bars = share_bars(rows, BAR, render.is_ascii(out))
    names = [cells_width(name, rows) for name in by]
    numbers = block_widths(BLOCKS, [*rows, total])
    bar_room = BAR + GAP if bars else 0
    widest = max(names, default=0)
    if sum(names) + GAP * len(by) + sum(numbers.values()) + bar_room <= out.width:
        out.print(table(by, [column for block in BLOCKS for column in block], rows, total, bars, widest))
    else:
        name_width = min(widest, NAME_WIDTH)
        room = out.width - sum(min(width, name_width) + GAP for width in names)
        for n, blocks in enumerate(packed(numbers, room)):
            fits = sum(numbers[block] for block in blocks) + bar_room <= room
            columns = [column for block in blocks for column in block]
            out.print("\n" if n else "", end="")
            out.print(table(by, columns, rows, total, bars if fits and not n else [], name_width))
    if same:
        out.out(
            "all of them: " + ", ".join(f"{heading(name)} {render.inert(rows[0][name])}" for name in same), style="dim"
        )


def apart(by: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the by-names that tell rows apart, and those that say the same in all of several rows."""
    same = [name for name in by if len(rows) > 1 and len({row[name] for row in rows}) == 1]
    return [name for name in by if name not in same], same


def cells_width(name: str, rows: Sequence[Row]) -> int:
    from rich.cells import cell_len

    return max(cell_len(heading(name)), *(cell_len(render.inert(row[name])) for row in rows))


# -- the totals -------------------------------------------------------------------------------------------------------


def totals(total: Row) -> list[str]:
    """Return the whole report as a few lines of words and numbers."""
    n = {name: render.count(total[name]) for name in queries.SUMS}
    lines = [
        f"{render.counted(total['calls'], 'call')} · {render.counted(total['errors'], 'error')} "
        f"({render.share(total['error_share'])} %) · "
        f"{n['input_tokens']} tokens in ({n['cache_read_input_tokens']} cached), {n['output_tokens']} out · "
        f"cost {render.dollars(total['cost_nanousd'])}, saved {render.dollars(total['saved_nanousd'])}",
        f"first token {spread(total, 'ttft_')} · total {spread(total, '')} · gateway {spread(total, 'gateway_')}",
        f"{render.times(total['attempts_per_sent'])} tries per sent call · {n['retried']} tried again, "
        f"{n['recovered']} of them with success · {n['moved']} answered elsewhere",
        f"{n['cache_hits']} of {n['cache_lookups']} looked up were in the cache · "
        f"{n['streams_interrupted']} of {render.counted(total['streams'], 'stream')} interrupted, "
        f"{n['client_aborts']} left by the client",
    ]
    if total["unpriced"]:
        answered = render.counted(total["unpriced"], "answered call")
        lines.append(f"{answered} without a known price; a cost that misses some is marked +")
    return lines


def spread(row: Row, prefix: str) -> str:
    """Return ``p50 365, p95 980, p99 1,502 ms``."""
    percents = queries.SAMPLES[prefix][1]
    return ", ".join(f"p{percent} {render.ms(row[f'{prefix}p{percent}_ms'])}" for percent in percents) + " ms"


# -- the command ------------------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  mitmgate report                                    the last 24 hours
  mitmgate report --since 1h --by provider,target    who is slow now
  mitmgate report --since 7d --by tenant,day         what each tenant costs
  mitmgate report --by metadata.feature --tenant acme
  mitmgate report --where "attempts > 1" --json
"""
)
@click.option(
    "--by",
    default=",".join(queries.DEFAULT_BY),
    show_default=True,
    metavar="NAMES",
    help="What groups the calls, separated by commas: columns of exchanges, provider, model, hour, day, metadata.NAME; "
    "none for one row over all.",
)
@click.option(
    "--since", default="24h", show_default=True, metavar="TIME", help="30m, 24h, 7d, 2w back, an ISO time, or all."
)
@click.option("--until", default="all", metavar="TIME", help="Likewise; only calls before it count.  [default: now]")
@render.filter_options
@click.option("--rows", default=40, show_default=True, type=click.IntRange(0), help="Groups to print at most; 0 = all.")
@click.option("--json", "as_json", is_flag=True, help="All groups, all targets, all numbers, as one JSON object.")
@home_option
@db_option
def report(
    by: str, since: str, until: str, filters: Filters, rows: int, as_json: bool, home: Path, db: Path | None
) -> None:
    """Calls, errors, tokens, cost and latency, by tenant, provider, model, route or anything else; then each place."""
    wall = SystemClock().wall()
    window = Window(render.time_of("--since", since, wall), render.time_of("--until", until, wall))
    names = [name for part in by.split(",") if (name := part.strip()) and name != "none"]
    with render.reading(db_path(home, db)) as conn:
        if as_json:
            found = {
                "rows": queries.report(conn, window.since, window.until, names, filters),
                "targets": places(conn, window, filters),
            }
            click.echo(render.as_json({"since": window.since, "until": window.until or iso(wall), **found}))
        else:
            print_report(render.console(), conn, window, names, filters, rows, now=iso(wall))


def print_report(
    out: "Console",
    conn: "sqlite3.Connection",
    window: Window,
    by: Sequence[str] = queries.DEFAULT_BY,
    filters: Filters = EVERYTHING,
    most: int = 40,
    now: str | None = None,
) -> None:
    """Print the report of the calls in *window* to *out*, at most *most* groups of it (0 = all).

    *now* is where the course of time ends if the window is open, so that it shows when calls stopped; None = at the
    last one.
    """
    rows, total = queries.report_with_total(conn, window, by, filters)
    if total is None:
        out.print(nothing(conn, window))
        return
    shown = rows[: most or None]
    out.print(title(window, filters), style="bold")
    for line in totals(total):
        out.print(line)
    out.print()
    course.print_course(out, conn, window, filters, now)
    out.print()
    if by:
        print_groups(out, queries.dimensions(by), shown, total)
    if len(shown) < len(rows):
        out.out(f"and {len(rows) - len(shown):,} more groups; --rows 0 prints all", style="dim")
    print_places(out, places(conn, window, filters))


def title(window: Window, filters: Filters) -> str:
    """Return what the report is about: the window and the filters, in one line."""
    since, until = (text and text[:16].replace("T", " ") for text in (window.since, window.until))
    wanted = [
        f"{name} {' or '.join(values)}"
        for name, values in (
            ("tenant", filters.tenants),
            ("model", filters.models),
            ("route", filters.routes),
            ("provider", filters.providers),
            ("where", (filters.where,) if filters.where else ()),
        )
        if values
    ]
    return render.inert(" · ".join([f"{since or 'everything'} to {until or 'now'} UTC", *wanted]))


def nothing(conn: "sqlite3.Connection", window: Window) -> str:
    """Return what to do where no call matches."""
    extent = queries.extent(conn)
    if extent is queries.NOTHING:
        return (
            "No call is recorded yet. Start the gateway (mitmgate serve), run a program through it "
            "(mitmgate run -- CMD), or see it work (mitmgate demo)."
        )
    newest = extent[1]
    if window.since and newest < window.since:
        return (
            f"No call since {window.since}; the newest is from {newest}. Look further back: --since 7d, or --since all."
        )
    return f"No call from {window.since or 'the first'} to {window.until or 'now'} matches; loosen a filter or --since."
