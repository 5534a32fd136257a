"""``mitmgate alert``: which rules are watched and how they stand; ``alert test`` tries whether anybody is reached.

The list is what the running gateway, or the last one, wrote down: it needs neither the policy nor its secrets.
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmgate.cli import render
from mitmgate.cli.cache import span
from mitmgate.cli.common import db_option, db_path, home_option, read_run
from mitmgate.clock import SystemClock, iso
from mitmgate.errors import StartError
from mitmgate.store import alert_file
from mitmgate.store.alert_file import State, Watched

if TYPE_CHECKING:
    from rich.console import Console

    from mitmgate.notify_send import Answer
    from mitmgate.policy import Policy
    from mitmgate.policy.values import Alert

STYLES = {"breach": "bold red", "quiet": "dim"}


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  mitmgate alert                            every rule, and since when it is breached for whom
  mitmgate alert --json | jq '.[] | select(.states[].state == "breach") | .name'
  mitmgate alert test --policy team.yaml    tell every receiver that this is a test
""",
)
@click.option("--json", "as_json", is_flag=True, help="A list of rules: name, watches, to, shadow, where, states.")
@home_option
@db_option
@click.pass_context
def alert(ctx: click.Context, as_json: bool, home: Path, db: Path | None) -> None:
    """Which alert rules are breached, and since when."""
    if ctx.invoked_subcommand is not None:
        return
    path = db_path(home, db).with_name(alert_file.NAME)
    with render.said(), alert_file.looking(path) as conn:
        rules, states = alert_file.rules(conn), alert_file.states(conn)
    if as_json:
        click.echo(render.as_json([as_object(rule, states) for rule in rules]))
    else:
        print_rules(render.console(), rules, states, SystemClock().wall())


# -- the list ---------------------------------------------------------------------------------------------------------


def as_object(rule: Watched, states: list[State]) -> dict[str, Any]:
    """Return a rule and its states, for machines."""
    said = asdict(rule)
    said["to"] = said.pop("receivers")
    del said["names"]
    return {**said, "states": [_state(rule, state) for state in states if state.rule == rule.name]}


def _state(rule: Watched, state: State) -> dict[str, Any]:
    return {
        "state": state.state,
        "per": dict(zip(rule.names, state.values, strict=False)),
        "since": iso(state.since),
        "changed_at": iso(state.changed_at),
        "says": state.notice.get("says"),
        "value": state.notice.get("value"),
        "evidence": state.notice.get("evidence"),
        "told": state.told,
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the list."""

    rule: str
    state: str
    changed: str
    about: str
    says: str


def lines_of(rule: Watched, states: list[State], wall: float) -> list[Line]:
    """Return a line for each state of *rule*, what is breached first; one that says so where it was never breached."""
    own = sorted((state for state in states if state.rule == rule.name), key=lambda state: state.state == "clear")
    name = f"{rule.name} (shadow)" if rule.shadow else rule.name
    if not own:
        return [Line(name, "quiet", render.NULL, "", rule.watches)]
    return [
        Line(name, state.state, f"{span(wall - state.changed_at)} ago", _about(rule, state), _said(state))
        for state in own
    ]


def _about(rule: Watched, state: State) -> str:
    return ", ".join(f"{name} {value or render.NULL}" for name, value in zip(rule.names, state.values, strict=False))


def _said(state: State) -> str:
    said = str(state.notice.get("says", ""))
    return said if state.told else f"{said} (not delivered yet)"


def print_rules(out: "Console", rules: list[Watched], states: list[State], wall: float) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rules:
        out.print("The policy has no alert rule.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("rule", "state", "changed", "who", "what"):
        table.add_column(name, overflow="fold")
    for rule in rules:
        for line in lines_of(rule, states, wall):
            cells = (line.rule, line.state, line.changed, line.about, line.says)
            table.add_row(*(Text(render.inert(cell), style=STYLES.get(line.state, "")) for cell in cells))
    out.print(table)


# -- the test ---------------------------------------------------------------------------------------------------------


@alert.command(
    epilog="""\b
Examples:
  mitmgate alert test                        every rule of the running gateway's policy
  mitmgate alert test errors --policy team.yaml
"""
)
@click.argument("name", required=False)
@click.option(
    "--policy",
    "policy_path",
    envvar="MITMGATE_POLICY",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The policy.  [default: the running gateway's]",
)
@home_option
def test(name: str | None, policy_path: str | None, home: Path) -> None:
    """Tell each receiver, of rule NAME or of all rules, that this is a test; say what it answered.

    Exit code 1 where one could not be told. Addresses come from this shell's environment.
    """
    policy = _policy(policy_path, home)
    rules = _chosen(policy, name)
    reached = [_try(policy, rule, address) for rule in rules for address in dict.fromkeys(rule.to)]
    if not all(reached):
        sys.exit(1)


def _policy(path: str | None, home: Path) -> "Policy":
    from mitmgate.policy import load

    if path is None:
        running = read_run(home)
        path = running.policy if running else None
    if path is None:
        raise StartError("no gateway runs with a policy in this home; name the policy with --policy FILE")
    return load(Path(path), os.environ, path)


def _chosen(policy: "Policy", name: str | None) -> "list[Alert]":
    from mitmgate.policy.forms import did_you_mean, listing

    if not policy.alert:
        raise StartError(f"{policy.path} has no alert rule")
    chosen = [rule for rule in policy.alert if name in (None, rule.name)]
    if not chosen:
        known = [rule.name for rule in policy.alert]
        hint = did_you_mean(name or "", known) or f"; there are {listing(known, 'and')}"
        raise StartError(f"{policy.path} has no alert rule {name!r}{hint}")
    return chosen


def _try(policy: "Policy", rule: "Alert", address: str) -> bool:
    """Send the message once, and say what came of it."""
    from mitmgate import notify_send
    from mitmgate.alert_message import trial

    where = policy.where(f"alert[{policy.alert.index(rule)}]")
    answer = notify_send.deliver(address, trial(rule, SystemClock().wall(), where), policy.upstream)
    click.secho(_outcome(rule, address, answer), fg=None if answer.ok else "red", err=not answer.ok)
    return answer.ok


def _outcome(rule: "Alert", address: str, answer: "Answer") -> str:
    from mitmgate.notify_send import shown

    return f"{render.inert(rule.name)}: {shown(address)}: {'' if answer.ok else 'FAILED: '}{answer.says}"
