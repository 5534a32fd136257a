"""``mitmgate check``: is this policy right, and what would it do?

Says everything that is wrong in one go, or shows the policy as the gateway would run it: every default written out,
times in human units, secrets as ``env:NAME``. Reads the same environment as ``serve``, so a missing secret shows here
first.

``--request``, ``--row`` (``check_request``) and ``--replay`` (``check_replay``) ask what it would do with calls; they
load the gateway's rooms, which takes a second.
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

from mitmgate.cli import render
from mitmgate.cli.common import complain, console, db_option, db_path, home_option
from mitmgate.cli.policy_file import Environment
from mitmgate.cli.render import NULL, inert
from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import Policy, default, load, notices, show
from mitmgate.providers import TABLE
from mitmgate.store.selection import Filters

if TYPE_CHECKING:
    from rich.console import Console

INDENT = "  "
LABEL_COLUMNS = 26


@click.command(
    epilog="""\b
Examples:
  mitmgate check team.yaml
  mitmgate check --json team.yaml | jq .faults
  mitmgate check                                  what runs when nobody writes a policy
  mitmgate check team.yaml --request call.http    which rules act on it, and why
  pbpaste | mitmgate check team.yaml --request -
  mitmgate check team.yaml --row last             the same for a recorded call
  mitmgate check new.yaml --replay 7d             what new.yaml would have changed
"""
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object; of a policy alone: ok, faults, notices, policy, hosts."
)
@click.option(
    "--request",
    "request_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Show which rules act on this request: HTTP as it goes over the wire (POST URL, headers, an empty line, the"
    " body), a curl command, a HAR, or a JSON body alone, which is taken for OpenAI's chat. - = stdin.",
)
@click.option("--row", "row_id", metavar="ID", help='The same for a recorded call: an id, its beginning, or "last".')
@click.option(
    "--replay", "since", metavar="TIME", help="Run what was recorded since TIME (7d, 24h, all) through POLICY."
)
@click.option("--until", default="all", metavar="TIME", help="Likewise; of --replay.  [default: now]")
@render.filter_options
@click.option("--rows", default=20, show_default=True, type=click.IntRange(0), help="Lines of each table; 0 = all.")
@home_option
@db_option
@click.argument("path", metavar="[POLICY]", required=False)
def check(
    as_json: bool,
    request_file: str | None,
    row_id: str | None,
    since: str | None,
    until: str,
    filters: Filters,
    rows: int,
    home: Path,
    db: Path | None,
    path: str | None,
) -> None:
    """Validate POLICY and show what would apply; without one, the built-in default.

    Each fault is a line on stderr that says where, what is wrong and what was probably meant. What is right and has no
    effect is said in a line of its own.

    With --request or --row: what it would do with one request, rule by rule, beside the counters and kept answers of
    the gateway in --home. With --replay: what would have changed. Nothing is sent and nothing is written; secrets that
    the policy names need not be set then.

    Exit code 0 if the gateway would run with it, 1 if not, or if the request would be refused.
    """
    asked = [option for option, given in (("--request", request_file), ("--row", row_id), ("--replay", since)) if given]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)} ask for different things; give one of them")
    try:
        env = Environment(os.environ) if asked else os.environ
        policy = load(Path(path), env, path) if path else default()
    except PolicyError as e:
        _refuse(e.faults, as_json)
        sys.exit(1)
    if request_file or row_id:
        from mitmgate.cli import check_request

        sys.exit(check_request.run(policy, request_file, row_id, home, db, as_json))
    if since:
        from mitmgate.cli import check_replay

        check_replay.run(policy, since, until, filters, rows, db_path(home, db), as_json)
    elif as_json:
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
        said["notices"] = notices(policy)
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
    for notice in notices(policy):
        out.print(inert(notice), style="yellow", soft_wrap=True)
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
