"""``mitmgate show``: one exchange in full: its columns and attempts, where time went, what rules did, what was said.

What requests and answers say is a stranger's text: it goes through ``render.inert`` before it reaches the terminal, and
``--json`` escapes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from mitmgate.cli import conversation, render
from mitmgate.cli.common import db_option, db_path, home_option
from mitmgate.store import queries
from mitmgate.store.queries import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# -- columns ----------------------------------------------------------------------------------------------------------

GROUPS: dict[str, tuple[str, ...]] = {
    "who": (
        *(
            "tenant",
            "user",
            "auth",
            "tier",
            "sla",
            "region",
            "colo",
            "route",
            "prompt_version",
            "session_id",
            "event_id",
        ),
        *("trace_id", "parent_span_id", "user_agent", "metadata"),
    ),
    "asked": (
        "operation_name",
        "request_model",
        "stream",
        "method",
        "host",
        "path",
        "door",
        "request_sha256",
        "sent_sha256",
    ),
    "answered": (
        *(
            "source",
            "status_code",
            "terminal",
            "error_type",
            "error_detail",
            "provider_name",
            "target",
            "step",
            "attempts",
        ),
        *("response_model", "response_id", "finish_reasons", "tool_calls", "cache_status", "notes"),
    ),
    "used": (
        *("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"),
        *("reasoning_output_tokens", "usage_source", "cost_nanousd", "saved_nanousd", "price_version", "price_detail"),
    ),
    "time": ("started_at", "time_to_first_token_ms", "duration_ms", "gateway_ms", "waited_ms", "policy_sha256"),
}
"""The columns of ``exchanges``, as a person asks for them; those that are in no group come last, under "more"."""


def grouped(row: Row) -> Iterator[tuple[str, list[str]]]:
    """Yield (group, its columns that have a value), then the rest."""
    named = {name for names in GROUPS.values() for name in names}
    rest = [name for name in row if name not in named and name != "id"]
    for group, names in (*GROUPS.items(), ("more", rest)):
        if known := [name for name in names if row.get(name) is not None]:
            yield group, known


def value(name: str, it: Any) -> str:
    """Return a column's value with its unit."""
    if it is None:
        return render.NULL
    if name.endswith("_nanousd"):
        return f"${render.usd(it)}  ({it:,} nano-dollars)"
    if name.endswith("_ms"):
        return render.ms_unit(it)
    if name.endswith(("_tokens", "_bytes")):
        return f"{it:,}"
    return render.inert(it)


def print_columns(out: "Console", row: Row) -> None:
    width = max(len(name) for name in row)
    for group, names in grouped(row):
        render.heading(out, group)
        for name in names:
            out.out(f"  {name:{width}}  {value(name, row[name])}", highlight=False)
    if unknown := [name for name in row if row[name] is None]:
        render.heading(out, "null")
        for line in wrap(", ".join(unknown), max(out.width - 2, 20)):
            out.out(f"  {line}", style="dim", highlight=False)


def verdict(row: Row) -> str:
    """Return what became of the call, in one line."""
    who = f"{render.inert(row['provider_name'])}/{render.inert(row['response_model'] or row['request_model'])}"
    return " · ".join(
        (
            f"{render.inert(row['status_code'])} {render.inert(row['terminal'])}",
            *([render.inert(row["error_type"])] if row["error_type"] else []),
            who,
            f"tenant {render.inert(row['tenant'])}",
            render.ms_unit(row["duration_ms"]),
            *(["HIT"] if row["cache_status"] == "HIT" else []),
            *([render.counted(row["attempts"], "attempt")] if (row["attempts"] or 0) > 1 else []),
            f"{render.count(row['input_tokens'])} → {render.count(row['output_tokens'])} tokens",
            f"cost {render.dollars(row['cost_nanousd'])}"
            + (f", saved {render.dollars(row['saved_nanousd'])}" if row["saved_nanousd"] else ""),
        )
    )


# -- what belongs to it -----------------------------------------------------------------------------------------------

ATTEMPTS = {
    "n": "n",
    "target": "target",
    "provider_name": "provider",
    "host": "host",
    "status_code": "status",
    "error_type": "error",
    "wait_ms": "wait ms",
    "connect_ms": "connect",
    "first_byte_ms": "first byte",
    "duration_ms": "all",
    "reused_connection": "reused",
    "input_tokens": "in",
    "output_tokens": "out",
    "cost_nanousd": "cost $",
}
"""Column of the table -> its heading."""

EVENTS = {name: name for name in ("at", "room", "rule", "action", "shadow", "detail")}
FEEDBACK = {name: name for name in ("at", "kind", "value", "source", "comment")}


def answering(row: Row, attempts: Sequence[Row]) -> Row | None:
    """Return the attempt whose answer the client got; None where it was the gateway's own, or out of the cache.

    That is the last one that ended well; where none did, the last one that was not ended for another's sake.
    """
    if row["source"] != "provider":
        return None
    ran = [attempt for attempt in attempts if attempt["error_type"] != "cancelled"]
    well = [attempt for attempt in ran if attempt["error_type"] is None]
    return next(reversed(well or ran), None)


def marked(row: Row, attempts: Sequence[Row]) -> list[Row]:
    """Return the attempts; of several, the one that answered has a mark behind its number."""
    answered = answering(row, attempts) if len(attempts) > 1 else None
    return [{**attempt, "n": f"{attempt['n']}*"} if attempt is answered else attempt for attempt in attempts]


SPARE = ("reused_connection", "host", "connect_ms", "output_tokens", "input_tokens", "wait_ms")
"""Columns that go, in this order, where the terminal is too narrow; ``--json`` has them all."""


def print_rows(out: "Console", title: str, headings: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Print the columns of *rows* that *headings* name, as a table; one without any value is left out."""
    if not rows:
        return
    render.heading(out, title)
    used = [name for name in headings if any(row.get(name) is not None for row in rows)]
    spare = [name for name in SPARE if name in used]
    while spare and render.natural_width(out, table(headings, used, rows)) > out.width:
        used.remove(spare.pop(0))
    out.print(table(headings, used, rows))


def table(headings: Mapping[str, str], names: Sequence[str], rows: Sequence[Row]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=True, header_style="dim")
    for name in names:
        number = all(isinstance(row.get(name), int | float | None) for row in rows)
        made.add_column(headings[name], justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell(name, row.get(name))) for name in names))
    return made


def cell(name: str, it: Any) -> str:
    if name.endswith("_ms"):
        return render.ms(it)
    if name.endswith("_nanousd"):
        return render.usd(it)
    if name.endswith("_tokens"):
        return render.count(it)
    return render.inert(it[11:23] if name == "at" and it else it)


# -- where the time went ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phase:
    """A span on the time line of its exchange, in milliseconds from the exchange's start."""

    label: str
    start_ms: float
    duration_ms: float

    @property
    def end_ms(self) -> float:
        return self.start_ms + self.duration_ms


def phases(row: Row, spans: Sequence[Row]) -> list[Phase]:
    """Return the spans as phases, in the order they began; a host tells apart what has the same name."""
    names = [span["name"] for span in spans]
    found = []
    for span in spans:
        several = names.count(span["name"]) > 1 and span["host"]
        label = f"{span['name']} {span['host']}" if several else str(span["name"])
        start_ms = max(since(row["started_at"], span["started_at"]), 0.0)
        found.append(Phase(render.inert(label), start_ms, span["duration_ms"] or 0.0))
    return sorted(found, key=lambda phase: (phase.start_ms, phase.end_ms))


def since(start: str, time: str | None) -> float:
    """Return the milliseconds from *start* to *time*, both as ``started_at`` is written."""
    if time is None:
        return 0.0
    return (datetime.fromisoformat(time) - datetime.fromisoformat(start)).total_seconds() * 1000


def waterfall(all_phases: Sequence[Phase], duration_ms: float, width: int, ascii_only: bool) -> list[str]:
    """Return a line per phase: its name, its bar on the time line of *width* columns, how long it took.

    What took no time is a dot, and the line is as long as the longest phase where that outlasts the exchange.
    """
    whole_ms = max([duration_ms, *(phase.end_ms for phase in all_phases)]) or 1.0
    label_width = max(len(phase.label) for phase in all_phases)
    lines = []
    for phase in all_phases:
        before = min(int(phase.start_ms / whole_ms * width), width - 1)
        left = width - before
        mark = render.bar(phase.duration_ms / whole_ms * width / left, left, ascii_only=ascii_only) or "."
        lines.append(
            f"  {phase.label:{label_width}}  {' ' * before + mark:{width}}  {render.ms_unit(phase.duration_ms)}"
        )
    return lines


def print_waterfall(out: "Console", row: Row, spans: Sequence[Row]) -> None:
    found = phases(row, spans)
    if not found:
        return
    render.heading(out, f"where {render.ms_unit(row['duration_ms'])} went")
    longest = max(out.width // 2 - 6, 12)
    found = [replace(phase, label=phase.label[:longest]) for phase in found]
    width = min(72, out.width - max(len(phase.label) for phase in found) - 16)
    for line in waterfall(found, row["duration_ms"] or 0.0, width, render.is_ascii(out)):
        out.out(line, highlight=False)


# -- the command ------------------------------------------------------------------------------------------------------


def print_exchange(out: "Console", found: dict[str, Any], prompt: bool = True) -> None:
    """Print all of an exchange (as ``queries.exchange`` gives it) to *out*."""
    row = found["exchange"]
    out.out(row["id"], style="bold", highlight=False)
    out.out(verdict(row), highlight=False)
    print_columns(out, row)
    print_rows(out, "attempts", ATTEMPTS, marked(row, found["attempts"]))
    if len(found["attempts"]) > 1:
        out.print("  * gave the answer", style="dim")
    for attempt in found["attempts"]:
        if attempt.get("error_detail"):
            out.print(f"  {attempt['n']}: {render.inert(attempt['error_detail'])}", style="dim")
    print_waterfall(out, row, found["spans"])
    print_rows(out, "policy events", EVENTS, found["events"])
    print_rows(out, "feedback", FEEDBACK, found["feedback"])
    if prompt:
        conversation.print_said(out, row, found["payloads"])


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    """Return all of an exchange for machines: JSON columns parsed, bodies as text."""
    payloads = [
        {
            **{name: it for name, it in payload.items() if name != "body"},
            "text": payload["body"].decode(errors="replace"),
        }
        for payload in found.get("payloads", [])
    ]
    return {**found, "exchange": render.unfolded(found["exchange"]), "payloads": payloads}


@click.command(
    epilog="""\b
Examples:
  mitmgate show last                   the newest exchange
  mitmgate show 019abc12-3456          a beginning is enough, if only one id begins so
  mitmgate show last --no-prompt       without prompt and answer
  mitmgate show ID --json | jq .exchange.cost_nanousd
"""
)
@click.argument("id")
@click.option(
    "--prompt/--no-prompt", default=True, help="Show prompt and answer, or leave them out.  [default: prompt]"
)
@click.option(
    "--json", "as_json_", is_flag=True, help="One JSON object: exchange, attempts, spans, events, feedback, payloads."
)
@home_option
@db_option
def show(id: str, prompt: bool, as_json_: bool, home: Path, db: Path | None) -> None:
    """Show one exchange in full. ID is an id, the beginning of one, or "last"."""
    parts = [name for name in queries.PARTS if prompt or name != "payloads"]
    with render.reading(db_path(home, db)) as conn:
        found = queries.exchange(conn, id, parts)
    if as_json_:
        click.echo(render.as_json(as_json(found)))
    else:
        print_exchange(render.console(), found, prompt)
