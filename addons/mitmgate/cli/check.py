"""``mitmgate check``: is this policy right, and what would it do?

Says everything that is wrong in one go, or shows the policy as the gateway would run it: every default written out,
times in human units, secrets as ``env:NAME``. Reads the same environment as ``serve``, so a missing secret shows here
first.
"""

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from mitmgate.cli.common import complain, console
from mitmgate.cli.render import NULL, inert
from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import Policy, default, load, show
from mitmgate.providers import TABLE

if TYPE_CHECKING:
    from rich.console import Console

INDENT = "  "
LABEL_COLUMNS = 26


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: ok, faults, policy, hosts.")
@click.argument("path", metavar="[POLICY]", required=False)
def check(as_json: bool, path: str | None) -> None:
    """Validate POLICY and show what would apply; without one, the built-in default.

    Exit code 0 if the gateway would run with it, 1 if not. Each fault is a line on stderr that says where, what is
    wrong and what was probably meant.

    \b
    mitmgate check team.yaml
    mitmgate check --json team.yaml | jq .faults
    mitmgate check            # what runs when nobody writes a policy
    """
    try:
        policy = load(Path(path), os.environ, path) if path else default()
    except PolicyError as e:
        _refuse(e.faults, as_json)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(as_object(policy, ()), indent=2, ensure_ascii=False))
    else:
        _print(policy)


# -- what there is to say ---------------------------------------------------------------------------------------------


def intercepted(policy: Policy) -> dict[str, list[str]]:
    """Return whose hosts are intercepted: the policy's own providers and targets, then the built-in table."""
    own = {row.name: list(row.hosts) for row in policy.providers}
    targets = {f"target {name}": [urlsplit(target.base_url).netloc] for name, target in policy.targets.items()}
    return own | targets | {provider.slug: list(provider.hosts) for provider in TABLE}


def observed(policy: Policy) -> dict[str, list[str]]:
    """Return the observed hosts by kind."""
    kinds: dict[str, list[str]] = {}
    for entry in policy.observe:
        kinds.setdefault(entry.kind, []).extend(entry.hosts)
    return kinds


def as_object(policy: Policy | None, faults: tuple[Fault, ...]) -> dict[str, Any]:
    """Return what ``--json`` prints; *policy* is None where it has *faults*."""
    said: dict[str, Any] = {"ok": not faults, "faults": [asdict(fault) for fault in faults]}
    if policy is not None:
        said["policy"] = show(policy)
        said["sha256"] = policy.sha256
        said["hosts"] = {"intercepted": intercepted(policy), "observed": observed(policy)}
    return said


def rows(value: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (indented name, value) for every entry of a section, nested ones below their name."""
    for name, entry in value.items():
        label = INDENT * depth + inert(name)
        if isinstance(entry, list) and any(isinstance(item, dict) for item in entry):
            entry = {f"[{n}]": item for n, item in enumerate(entry)}
        if isinstance(entry, dict) and entry:
            yield label, ""
            yield from rows(entry, depth + 1)
        else:
            yield label, _words(entry)


def _words(value: object) -> str:
    if isinstance(value, list | dict):
        return ", ".join(map(_words, value)) or NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    return inert(value)


# -- saying it --------------------------------------------------------------------------------------------------------


def _refuse(faults: tuple[Fault, ...], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(as_object(None, faults), indent=2, ensure_ascii=False))
    for fault in faults:
        complain(inert(fault))


def _print(policy: Policy) -> None:
    out = console()
    name = inert(policy.path or "the built-in default")
    out.print(f"{name} is valid; its sha256 begins {policy.sha256}", style="green", soft_wrap=True)
    out.print()
    _print_rows(out, show(policy))
    out.print("\nWhat would apply", style="bold")
    _print_rows(out, {"intercepted": intercepted(policy), "observed": observed(policy)})
    out.print("Every other host is tunnelled, untouched and unseen.")


def _print_rows(out: "Console", sections: dict[str, Any]) -> None:
    """Print *sections* as two columns; long values go on below their column on a terminal, and stay whole in a pipe."""
    from rich.text import Text

    width = out.width - LABEL_COLUMNS if out.is_terminal else sys.maxsize
    for label, value in rows(sections):
        style = "" if label.startswith(INDENT) else "bold cyan"
        lines = textwrap.wrap(value, max(width, 20), break_on_hyphens=False) or [""]
        head = Text(f"{label:<{LABEL_COLUMNS - 2}}  " if value else label, style)
        body = ("\n" + " " * LABEL_COLUMNS).join(lines)
        out.print(head + Text(body), soft_wrap=True)
