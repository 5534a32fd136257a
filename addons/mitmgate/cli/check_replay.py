"""``mitmgate check POLICY --replay 7d``: what was recorded, run through a new policy, and what that would have changed.

``rerun`` decides call by call; here the outcomes add up, per tenant and per rule, while the rows go by, so a million of
them take no more memory than a thousand. Money is told by where it comes from: answers out of the cache, cheaper
models, and, apart from both, calls that would be refused.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmgate.cli import render
from mitmgate.cli.columns import GAP, Block, Column, block_widths, packed
from mitmgate.cli.common import console, on_terminal
from mitmgate.cli.policy_file import Environment
from mitmgate.clock import ManualClock, SystemClock, iso
from mitmgate.errors import PolicyError
from mitmgate.policy import Policy, loads
from mitmgate.recorded import wall_of
from mitmgate.rehearsal import rehearsal
from mitmgate.rerun import Rerun
from mitmgate.rerun_tally import RuleSums, Sums, Tally
from mitmgate.store import recordings
from mitmgate.store.recordings import Act
from mitmgate.store.selection import Filters, Window
from mitmgate.store.versions import versions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PROGRESS_EVERY = 500
"""Calls between two looks at the bar."""


# -- the run ----------------------------------------------------------------------------------------------------------


def run(policy: Policy, since: str, until: str, filters: Filters, rows: int, path: Path, as_json: bool) -> None:
    """Run what was recorded in the database at *path* through *policy*, and print what would have changed."""
    wall = SystemClock().wall()
    window = Window(render.time_of("--replay", since, wall), render.time_of("--until", until, wall))
    with render.reading(path) as conn, progress(recordings.count(conn, window, filters)) as done:
        tally, unknown = asyncio.run(replayed(conn, policy, window, filters, done))
    if as_json:
        said = {"since": window.since, "until": window.until or iso(wall), "policy": policy.path}
        click.echo(render.as_json({**said, "sha256": policy.sha256, **as_object(tally, unknown)}))
    else:
        print_tally(render.console(), policy, window, tally, unknown, rows)


async def replayed(
    conn: sqlite3.Connection, policy: Policy, window: Window, filters: Filters, done: Callable[[int], None]
) -> tuple[Tally, dict[str, int]]:
    """Return what became of the calls, and what could not be decided; *done* hears how many are done."""
    tally = Tally(recordings.acted(conn, window, filters))
    clock = ManualClock(started_wall=_first(conn, window, filters))
    with rehearsal(policy, clock, bytes(32)) as rooms:
        rerun = Rerun(policy, rooms, clock, _policies(conn))
        for call in recordings.calls(conn, window, filters, rerun.bodies):
            tally.add(await rerun.take(call))
            done(tally.total.calls)
        rerun.end()
    return tally, dict(rerun.unknown.most_common())


def _first(conn: sqlite3.Connection, window: Window, filters: Filters) -> float:
    """Return when the first of the calls came."""
    first = next(iter(recordings.calls(conn, window, filters)), None)
    return wall_of(first) if first else 0.0


def _policies(conn: sqlite3.Connection) -> dict[str, Policy]:
    """Return the policies that held, by their hash; without those that this version, or this machine, cannot read."""
    found: dict[str, Policy] = {}
    for version in versions(conn):
        try:
            found[version.sha256] = loads(version.text, version.path or "default.yaml", Environment(os.environ))
        except PolicyError:
            continue
    return found


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of *total* calls are done, as whoever does them tells: a bar on a terminal, nothing elsewhere."""
    if not on_terminal() or total < PROGRESS_EVERY:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: None if done % PROGRESS_EVERY else bar.update(task, completed=done)


# -- for machines -----------------------------------------------------------------------------------------------------


def as_object(tally: Tally, unknown: dict[str, int]) -> dict[str, Any]:
    """Return what ``--json`` prints beside the window and the policy."""
    tenants = [{"tenant": tenant, **asdict(sums)} for tenant, sums in by_change(tally)]
    rules = [
        {
            "room": room,
            "rule": rule,
            "action": action,
            "shadow": shadow,
            "then": sums.then,
            "now": sums.now,
            "nanousd": sums.nanousd,
            "example": sums.example,
        }
        for (room, rule, action, shadow), sums in in_order(tally)
    ]
    undecided = [{"what": what, "calls": calls} for what, calls in unknown.items()]
    return {"total": asdict(tally.total), "tenants": tenants, "rules": rules, "undecided": undecided}


def by_change(tally: Tally) -> list[tuple[str | None, Sums]]:
    """Return the tenants, those with the most changes first."""
    return sorted(tally.tenants.items(), key=lambda row: (-row[1].changed, -row[1].calls, str(row[0])))


ROOMS = ("auth", "identify", "guard", "limit", "cache", "budget", "shape", "route")


def in_order(tally: Tally) -> list[tuple[Act, RuleSums]]:
    """Return the rules in the order of their rooms, in each of them the busiest first."""

    def key(row: tuple[Act, RuleSums]) -> tuple[int, int, Act]:
        room = row[0][0]
        return ROOMS.index(room) if room in ROOMS else len(ROOMS), -max(row[1].now, row[1].then), row[0]

    return sorted(tally.rules.items(), key=key)


# -- for people -------------------------------------------------------------------------------------------------------

type Row = dict[str, Any]

BLOCKS: tuple[Block, ...] = (
    (
        Column("calls", lambda row: render.count(row["calls"])),
        Column("changed", lambda row: render.count(row["changed"])),
    ),
    (
        Column("refused", lambda row: _some(row["refused"])),
        Column("let in", lambda row: _some(row["let_in"])),
    ),
    (
        Column("moved", lambda row: _some(row["moved"])),
        Column("downgraded", lambda row: _some(row["downgraded"])),
    ),
    (
        Column("hits", lambda row: _some(row["hits"])),
        Column("lost", lambda row: _some(row["lost"])),
    ),
    (
        Column("shaped", lambda row: _some(row["shaped"])),
        Column("guarded", lambda row: _some(row["guarded"])),
    ),
    (
        Column("cost $", lambda row: render.usd(row["cost_then_nanousd"])),
        Column("now $", lambda row: render.usd(row["cost_now_nanousd"])),
    ),
    (
        Column("by hits $", lambda row: render.usd(row["saved_by_hits_nanousd"])),
        Column("by models $", lambda row: render.usd(row["saved_by_models_nanousd"])),
        Column("refused $", lambda row: render.usd(row["refused_nanousd"])),
    ),
)
"""Columns that stay together: calls; doors; places; the cache; bodies; cost then and now; what of it was saved by hits,
by cheaper models, and what refused calls had cost."""

TENANT_WIDTH = 24


def _some(n: int) -> str:
    return render.count(n) if n else render.NULL


def print_tally(
    out: "Console", policy: Policy, window: Window, tally: Tally, unknown: dict[str, int], rows: int
) -> None:
    name = render.inert(policy.path or "the built-in policy")
    total = tally.total
    if not total.calls:
        out.print(
            f"No call is recorded from {window.since or 'the first'} to {window.until or 'now'}; look further back."
        )
        return
    out.print(f"{render.counted(total.calls, 'call')} through {name}", style="bold", soft_wrap=True)
    for line in sentences(total):
        out.print(line, soft_wrap=True)
    _print_tenants(out, tally, rows)
    _print_rules(out, tally, rows)
    if unknown:
        render.heading(out, "could not be decided")
        for what, calls in unknown.items():
            out.print(f"  {calls:>9,}  {render.inert(what)}", soft_wrap=True)


def sentences(total: Sums) -> list[str]:
    """Return the whole of it in a few lines."""
    words = (
        (total.refused, "refused"),
        (total.let_in, "let in that had been refused"),
        (total.moved, "sent to another place or model"),
        (total.downgraded, "downgraded"),
        (total.hits, "out of the cache"),
        (total.lost, "not out of the cache any more"),
        (total.shaped, "shaped"),
        (total.guarded, "touched by guards"),
        (total.unseen, "not seen any more"),
    )
    changes = ", ".join(f"{n:,} {what}" for n, what in words if n) or "nothing"
    money = [
        f"{_saved(total.saved_by_hits_nanousd)} by the cache",
        f"{_saved(total.saved_by_models_nanousd)} by other models",
        f"${render.usd(total.refused_nanousd)} not spent on calls that are refused",
        *([f"${render.usd(total.let_in_nanousd)} spent on calls that are let in"] if total.let_in else []),
    ]
    return [
        f"{render.counted(total.changed, 'call')} would have come out differently: {changes}",
        f"cost ${render.usd(total.cost_then_nanousd)}, now ${render.usd(total.cost_now_nanousd)}: {', '.join(money)}",
    ]


def _saved(nanousd: int) -> str:
    return f"${render.usd(nanousd)} saved" if nanousd >= 0 else f"${render.usd(-nanousd)} more"


def _print_tenants(out: "Console", tally: Tally, rows: int) -> None:
    shown = [{"tenant": tenant, **asdict(sums)} for tenant, sums in by_change(tally)]
    total: Row = asdict(tally.total)
    cut = shown[: rows or None]
    width = min(TENANT_WIDTH, max(6, *(len(render.inert(row["tenant"])) for row in cut)))
    for blocks in packed(block_widths(BLOCKS, [*cut, total]), out.width - width - GAP):
        out.print()
        out.print(_tenant_table(cut, total, [column for block in blocks for column in block]))
    if len(cut) < len(shown):
        out.out(f"and {len(shown) - len(cut):,} more tenants; --rows 0 prints all", style="dim", highlight=False)


def _tenant_table(rows: Sequence[Row], total: Row, columns: Sequence[Column]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", show_footer=len(rows) > 1, footer_style="bold")
    made.add_column("tenant", footer="total", overflow="ellipsis", max_width=TENANT_WIDTH)
    for column in columns:
        made.add_column(column.heading, footer=column.text(total), justify="right", no_wrap=True)
    for row in rows:
        made.add_row(Text(render.inert(row["tenant"])), *(Text(column.text(row)) for column in columns))
    return made


def _print_rules(out: "Console", tally: Tally, rows: int) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = in_order(tally)
    if not shown:
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("room", "rule", "does"):
        made.add_column(name, overflow="fold")
    for name in ("then", "now", "saved $"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("such as", style="dim", no_wrap=True)
    for (room, rule, action, shadow), sums in shown[: rows or None]:
        does = f"would {action}" if shadow else action
        money = render.usd(sums.nanousd) if sums.nanousd else ""
        made.add_row(
            room,
            Text(render.inert(rule)),
            does,
            render.count(sums.then),
            render.count(sums.now),
            money,
            sums.example or "",
        )
    out.print()
    out.print(made)
    if rows and len(shown) > rows:
        out.out(f"and {len(shown) - rows:,} more rules; --rows 0 prints all", style="dim", highlight=False)
