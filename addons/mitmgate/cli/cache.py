"""``mitmgate cache``: the answers that are kept: a list, one of them in full, and how to be rid of them.

Works beside running gateways, and without one. Keys are hashes and say nothing of what was asked; the answers are what
they are, so ``show`` prints them as inert text.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmgate.cli import render
from mitmgate.cli.common import db_option, db_path, home_option
from mitmgate.clock import SystemClock, iso
from mitmgate.errors import StartError
from mitmgate.store import answer_file
from mitmgate.store.answer_file import Amount, Kept, Which

if TYPE_CHECKING:
    from rich.console import Console

    from mitmgate.store.entry import Entry

KEY_DIGITS = 12
"""Of a key on the screen: enough to name it in ``show`` and ``--key``."""

UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


# -- how things look --------------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """Return a length of time in one unit: ``45s``, ``12m``, ``3.5h``, ``29d``."""
    for size, unit in UNITS:
        if seconds >= size:
            n = seconds / size
            return f"{n:.1f}{unit}".replace(".0", "") if n < 10 else f"{n:.0f}{unit}"
    return f"{seconds:.0f}s"


def expiry(kept: Kept, wall: float) -> str:
    """Return how long an answer is fresh; ``stale`` where it may only stand in for an error, else ``expired``."""
    if kept.expires_at > wall:
        return span(kept.expires_at - wall)
    return "stale" if kept.gone_at > wall else "expired"


def size(n: int) -> str:
    """Return bytes in the unit that suits them: ``812 B``, ``4.1 KiB``, ``2.0 GiB``."""
    for one, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= one:
            return f"{n / one:.1f} {unit}"
    return f"{n} B"


type Cell = Callable[[Kept, float], str]

COLUMNS: dict[str, Cell] = {
    "key": lambda kept, _: kept.key[:KEY_DIGITS],
    "age": lambda kept, wall: span(max(0.0, wall - kept.stored_at)),
    "expires": expiry,
    "size": lambda kept, _: size(kept.bytes),
    "hits": lambda kept, _: render.count(kept.hits),
    "model": lambda kept, _: render.inert(kept.model),
    "tenant": lambda kept, _: render.inert(kept.tenant),
    "route": lambda kept, _: render.inert(kept.route),
    "rule": lambda kept, _: render.inert(kept.rule),
}
RIGHT = frozenset({"age", "expires", "size", "hits"})


def counted(amount: Amount) -> str:
    """Return ``2 answers, 12.1 KiB``."""
    return f"{render.counted(amount.entries, 'answer')}, {size(amount.bytes)}"


MOMENTS = ("stored_at", "expires_at", "gone_at", "used_at")


def columns(kept: Kept) -> dict[str, Any]:
    """Return what is known of an answer, for machines."""
    return {name: iso(it) if name in MOMENTS else it for name, it in asdict(kept).items()}


# -- which entries ----------------------------------------------------------------------------------------------------


def which_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose entries; ``which_of`` takes what they give."""
    for option in reversed(
        (
            click.option("--tenant", "tenants", multiple=True, metavar="NAME",
                         help="Only answers to this tenant; * and ? are wildcards, repeatable."),
            click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model, as asked for."),
            click.option("--route", "routes", multiple=True, metavar="NAME", help="Only this route."),
            click.option("--key", "keys", multiple=True, metavar="KEY", callback=_keys,
                         help="Only this key, or keys that begin so."),
            click.option("--older-than", metavar="TIME", help="Only what was kept before: 30m, 24h, 7d, an ISO time."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _keys(_ctx: click.Context, _param: click.Parameter, keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_hex(key) for key in keys)


def _hex(key: str) -> str:
    """Return *key* if it can be (the beginning of) one."""
    if not key or len(key) > 64 or not all(digit in "0123456789abcdef" for digit in key.lower()):
        raise click.BadParameter(f"{key!r} is no key: up to 64 hex digits, as mitmgate cache ls prints them")
    return key.lower()


def which_of(
    tenants: tuple[str, ...],
    models: tuple[str, ...],
    routes: tuple[str, ...],
    keys: tuple[str, ...],
    older_than: str | None,
    wall: float,
) -> Which:
    moment = render.time_of("--older-than", older_than, wall) if older_than is not None else None
    return Which(tenants, models, routes, keys, datetime.fromisoformat(moment).timestamp() if moment else None)


# -- the commands -----------------------------------------------------------------------------------------------------


@click.group(
    epilog="""\b
Examples:
  mitmgate cache ls                          what is kept, the newest first
  mitmgate cache show 3fa9c1                 one answer; the beginning of a key is enough
  mitmgate cache purge --tenant acme         forget all answers to one tenant
  mitmgate cache purge --older-than 1h --model "gpt-5*"
"""
)
def cache() -> None:
    """List, show and purge the answers that are kept."""


@cache.command(
    epilog="""\b
Examples:
  mitmgate cache ls --tenant acme --rows 0
  mitmgate cache ls --json | jq '.answers[] | select(.hits == 0) | .key'
"""
)
@which_options
@click.option("--rows", default=40, show_default=True, type=click.IntRange(0), help="Answers to print; 0 = all.")
@click.option("--json", "as_json_", is_flag=True, help="All of them, as one JSON object.")
@home_option
@db_option
def ls(rows: int, as_json_: bool, home: Path, db: Path | None, **options: Any) -> None:
    """List what is kept, the newest first."""
    wall = SystemClock().wall()
    which = which_of(**options, wall=wall)
    with render.said(), answer_file.opened(answer_file.beside(db_path(home, db))) as conn:
        whole = answer_file.total(conn, which)
        found = answer_file.listed(conn, which, None if as_json_ else rows or None)
    if as_json_:
        click.echo(render.as_json({**asdict(whole), "answers": list(map(columns, found))}))
    else:
        print_list(render.console(), found, whole, which, wall)


def print_list(out: "Console", rows: list[Kept], whole: Amount, which: Which, wall: float) -> None:
    """Print *rows* as a table, and a line with what the *whole* is."""
    from rich.table import Table

    if not rows:
        out.print("No answer is kept." if which.is_all else "No kept answer matches; loosen an option.")
        return
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in RIGHT else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row, wall) for cell in COLUMNS.values()))
    out.print(table)
    out.out(f"\n{counted(whole)}", highlight=False)
    if len(rows) < whole.entries:
        out.out(f"{whole.entries - len(rows):,} more; --rows 0 prints all", style="dim", highlight=False)


@cache.command(
    epilog="""\b
Examples:
  mitmgate cache show 3fa9c1
  mitmgate cache show 3fa9c1 --json | jq -r .body
"""
)
@click.argument("key")
@click.option("--json", "as_json_", is_flag=True, help="One JSON object: its columns, head, pieces and body.")
@home_option
@db_option
def show(key: str, as_json_: bool, home: Path, db: Path | None) -> None:
    """Show one answer. KEY is a key or the beginning of one."""
    path = answer_file.beside(db_path(home, db))
    with render.said(), answer_file.opened(path) as conn:
        kept = one(answer_file.listed(conn, Which(keys=(_hex(key),)), most=2), key)
        entry = answer_file.read(conn, kept.key)
        if entry is None:
            raise StartError(f"the answer {kept.key[:KEY_DIGITS]} was purged just now, or is damaged")
    if as_json_:
        click.echo(render.as_json({**columns(kept), **answer_of(entry)}))
    else:
        print_entry(render.console(), kept, entry, SystemClock().wall())


def one(found: list[Kept], key: str) -> Kept:
    """Return the only row found."""
    if not found:
        raise StartError(f"no answer is kept whose key begins with {key}; mitmgate cache ls lists them")
    if len(found) > 1:
        raise StartError(f"several keys begin with {key}; give more digits")
    return found[0]


def answer_of(entry: "Entry") -> dict[str, Any]:
    """Return what was answered, for machines."""
    return {
        "target": entry.target,
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in entry.fields],
        "reading": asdict(entry.reading),
        "pieces": [[at_ms, len(piece)] for at_ms, piece in entry.pieces],
        "body": entry.body.decode(errors="replace"),
    }


def print_entry(out: "Console", kept: Kept, entry: "Entry", wall: float) -> None:
    """Print an answer's facts, its head and what it says."""
    from mitmgate.cli import conversation

    out.out(kept.key, style="bold", highlight=False)
    for name, fact in facts(kept, entry, wall).items():
        out.out(f"  {name:11}  {render.inert(fact)}", highlight=False)
    render.heading(out, "head")
    for raw_name, raw_value in entry.fields:
        line = f"{raw_name.decode('latin-1')}: {raw_value.decode('latin-1')}"
        out.out(f"  {render.inert(line)}", highlight=False)
    body = {"content_type": entry.content_type, "bytes": len(entry.body), "body": entry.body}
    dialect = conversation.dialect_of({"host": kept.host, "provider_name": kept.provider_name, "path": kept.path})
    conversation.print_body(out, "answer", body, conversation.answer_turns(dialect, body))


def facts(kept: Kept, entry: "Entry", wall: float) -> dict[str, str]:
    usage = entry.reading.usage
    took_ms = entry.pieces[-1][0] if entry.pieces else 0
    return {
        "kept": f"{iso(kept.stored_at)}, {span(entry.age_s(wall))} ago, by rule {kept.rule}",
        "expires": expiry(kept, wall),
        "used": render.counted(kept.hits, "time"),
        "asked by": f"tenant {kept.tenant or render.NULL}, route {kept.route or render.NULL}",
        "answered by": f"{entry.target} ({kept.host}), {entry.reading.response_model or kept.model or render.NULL}",
        "tokens": f"{render.count(usage.input_tokens)} in, {render.count(usage.output_tokens)} out",
        "finish": " ".join(entry.reading.finish_reasons) or render.NULL,
        "size": f"{size(kept.bytes)} in the file; "
        f"{render.counted(len(entry.pieces), 'piece')} over {render.ms_unit(took_ms)}",
    }


@cache.command(
    epilog="""\b
Examples:
  mitmgate cache purge --key 3fa9c1
  mitmgate cache purge --tenant acme --older-than 1h
  mitmgate cache purge --all
"""
)
@which_options
@click.option("--all", "everything", is_flag=True, help="All that is kept.")
@click.option("--json", "as_json_", is_flag=True, help='{"entries": …, "bytes": …}, what went.')
@home_option
@db_option
def purge(everything: bool, as_json_: bool, home: Path, db: Path | None, **options: Any) -> None:
    """Forget answers; every running gateway does so at once."""
    which = which_of(**options, wall=SystemClock().wall())
    if which.is_all and not everything:
        raise click.UsageError("say which answers: --tenant, --model, --route, --key, --older-than, or --all")
    if everything and not which.is_all:
        raise click.UsageError("--all leaves nothing to choose: give it alone, or leave it out")
    path = answer_file.beside(db_path(home, db))
    with render.said(), answer_file.opened(path, "rw") as conn:
        gone = answer_file.purge(conn, path, which)
    if as_json_:
        click.echo(json.dumps(asdict(gone)))
    else:
        click.echo(f"purged {counted(gone)}")
