"""``mitmgate check POLICY --request FILE`` and ``--row ID``: what the policy does with one request, rule by rule.

``forecast`` finds it out, beside the counters and the kept answers of the gateway where there are any; here it is read
and printed. What a request says is a stranger's text, and what guards find is told by kind and count alone.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmgate import recorded, redact
from mitmgate.cli import render, request_file
from mitmgate.cli.common import db_path
from mitmgate.cli.request_door import exchange_of
from mitmgate.cli.request_file import Asked, Unclear
from mitmgate.cli.show import verdict
from mitmgate.clock import Clock, SystemClock
from mitmgate.errors import Refusal
from mitmgate.explain import Verdict
from mitmgate.forecast import Forecast, Section, forecast
from mitmgate.policy import Policy
from mitmgate.recorded import Row
from mitmgate.rehearsal import Rehearsal, rehearsal
from mitmgate.store import queries

if TYPE_CHECKING:
    from rich.console import Console


def run(policy: Policy, file: str | None, row_id: str | None, home: Path, db: Path | None, as_json: bool) -> int:
    """Say what becomes of the request in *file*, or of the recorded call *row_id*; return the exit code."""
    clock, path = SystemClock(), db_path(home, db)
    with render.said(), rehearsal(policy, clock, _secret(home), path) as rooms:
        if file is not None:
            made = of_file(asked_in(file), policy, rooms, clock)
        else:
            made = of_row(*_recorded(path, row_id or "last"), policy, rooms, clock)
    if as_json:
        click.echo(json.dumps(asdict(made), ensure_ascii=False, default=str))
    else:
        print_forecast(render.console(), made)
    return 1 if made.verdict == "refused" else 0


def of_file(asked: Asked, policy: Policy, rooms: Rehearsal, clock: Clock) -> Forecast:
    """Return what becomes of a request out of a file."""
    made = Forecast(f"{asked.method} {redact.url(asked.url)}", notices=list(asked.assumed))
    x = exchange_of(asked, policy, rooms, clock)
    if isinstance(x, str):
        return made.passes(x)
    if isinstance(x, Refusal):
        return made.refused(x)
    return asyncio.run(forecast(x, policy, rooms, made))


def of_row(row: Row, body: bytes | None, policy: Policy, rooms: Rehearsal, clock: Clock) -> Forecast:
    """Return what would become of a recorded call, were it sent now; *body* None: it was not kept."""
    notices = [f"then: {verdict(dict(row))}", *_unknown(row, body, policy)]
    made = Forecast(f"{row['method']} https://{row['host']}{row['path']}", notices=notices)
    x = recorded.exchange_of(row, body, rooms.hosts, policy, clock.now())
    if x is None:
        return made.passes(f"{row['host']} is no provider's host: it is tunnelled, and no rule is asked.")
    x.started_wall = clock.wall()
    return asyncio.run(forecast(x, policy, rooms, made, row, body is not None))


def _unknown(row: Row, body: bytes | None, policy: Policy) -> Iterator[str]:
    yield "rows have no headers: a rule that asks for one takes it for absent, and none goes before a rule"
    if body is None:
        yield "its body was not kept: guard and shape have nothing to look at, and its tokens are those of the row"
    elif recorded.is_altered(row, body):
        yield "its body was kept with its secrets masked: they cannot be found in it any more"
    if policy.auth and not row["key_name"]:
        yield "it came without a key of the gateway's, which auth would ask for"


# -- where it comes from ----------------------------------------------------------------------------------------------


def asked_in(file: str) -> Asked:
    """Return the request in *file*, ``-`` = stdin."""
    try:
        return request_file.read(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except OSError as e:
        raise click.UsageError(f"--request {file}: {(e.strerror or 'it cannot be read').lower()}") from e
    except Unclear as e:
        raise click.UsageError(f"--request {file}: {e}") from e


def _recorded(path: Path, row_id: str) -> tuple[Row, bytes | None]:
    """Return the row, and the body of its request where all of it was kept."""
    with render.reading(path) as conn:
        found = queries.exchange(conn, row_id, ("payloads",))
    kept = (one["body"] for one in found["payloads"] if one["kind"] == "request" and one["whole"])
    return found["exchange"], next(kept, None)


def _secret(home: Path) -> bytes:
    """Return what the gateway in *home* hashes keys with; something else where there is none."""
    try:
        return (home / "secret").read_bytes()
    except OSError:
        return bytes(32)


# -- saying it --------------------------------------------------------------------------------------------------------

STATES: dict[str, tuple[str, str]] = {
    "acts": ("acts", "green"),
    "shadow": ("would act", "magenta"),
    "behind": ("too late", "dim"),
    "no": ("does not", "dim"),
}
"""What a rule does -> the word, its style."""

VERDICTS = {"refused": "bold red", "answered": "bold green", "sent": "bold green", "passed": "bold yellow"}


def print_forecast(out: "Console", made: Forecast) -> None:
    out.print(render.inert(made.request), style="bold", soft_wrap=True)
    for notice in made.notices:
        out.print(render.inert(notice), style="yellow", soft_wrap=True)
    pairs = {**made.who, **made.headers}
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        out.out(f"  {name:{width}}  {render.inert(_value(value))}", highlight=False)
    for section in made.sections:
        if section.rules or section.says:
            _print_section(out, section)
    out.print()
    out.print(render.inert(made.ends), style=VERDICTS[made.verdict], soft_wrap=True)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if type(value) is int else json.dumps(value, ensure_ascii=False, default=str)


def _print_section(out: "Console", section: Section) -> None:
    render.heading(out, section.name if section.reached else f"{section.name} (not reached)")
    width = max((len(rule.rule) for rule in section.rules), default=0)
    for rule in section.rules:
        _print_rule(out, rule, width, section.reached)
    for sentence in section.says:
        out.print(f"    {render.inert(sentence)}", soft_wrap=True)


def _print_rule(out: "Console", rule: Verdict, width: int, reached: bool) -> None:
    from rich.text import Text

    word, style = STATES[rule.state]
    if rule.state == "acts" and not reached:
        word, style = "matches", ""
    line = Text(f"  {render.inert(rule.rule):{width}}  ")
    line.append(f"{word:9}", style)
    line.append(f"  {render.inert(rule.why)}", "dim" if rule.state in ("no", "behind") else "")
    line.append(f"  {render.inert(rule.where)}" if rule.where else "", "dim")
    out.print(line, soft_wrap=True)
