"""``mitmgate policy log``: which policy held when, and what each edit changed.

``policy_sha256`` of a row says which version decided about it.
"""

import difflib
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mitmgate.cli.common import console, db_option, db_path, home_option
from mitmgate.cli.render import counted, inert
from mitmgate.errors import StartError
from mitmgate.store.reader import open_reader
from mitmgate.store.versions import Version, versions

if TYPE_CHECKING:
    from rich.console import Console

CONTEXT = 1
"""Unchanged lines shown around a change: with the line numbers of the head they are enough to find it."""
STYLES = {"+": "green", "-": "red", "@": "cyan"}


@click.group(
    epilog="""\b
Examples:
  mitmgate policy log                       every version, the newest first, with what it changed
  mitmgate policy log --json | jq '.[0]'
  mitmgate policy show 3fa9c1               the file as it was; the beginning of a hash is enough"""
)
def policy() -> None:
    """Which policy held when."""


@policy.command()
@home_option
@db_option
@click.option("--json", "as_json", is_flag=True, help="A list of objects: at, sha256, path, added, removed, diff.")
@click.option("-n", "--last", metavar="COUNT", type=click.IntRange(1), help="Only the newest so many.")
@click.option("--no-diff", is_flag=True, help="Only a line for each version.")
def log(home: Path, db: Path | None, as_json: bool, last: int | None, no_diff: bool) -> None:
    """List the versions, the newest first: since when each held, and what changed.

    \b
    mitmgate policy log
    mitmgate policy log --last 3 --no-diff
    """
    kept = _kept(home, db)
    pairs = list(zip(kept, [None, *kept[:-1]], strict=True))[::-1][:last]
    if as_json:
        click.echo(json.dumps([as_object(version, before) for version, before in pairs], indent=2, ensure_ascii=False))
        return
    out = console()
    for version, before in pairs:
        _print(out, version, before, no_diff)


@policy.command()
@home_option
@db_option
@click.argument("sha256")
def show(home: Path, db: Path | None, sha256: str) -> None:
    """Print the file as it was in the version whose hash begins with SHA256, as rows name it.

    \b
    mitmgate policy show 3fa9c1 > team-as-it-was.yaml
    """
    found = {one.sha256: one for one in _kept(home, db) if one.sha256.startswith(sha256.lower())}
    if not found:
        raise StartError(f"no version begins with {sha256}; mitmgate policy log lists them")
    if len(found) > 1:
        raise StartError(f"{sha256} begins {len(found)} versions: {', '.join(found)}; give more digits")
    click.echo(next(iter(found.values())).text, nl=False)


def _kept(home: Path, db: Path | None) -> list[Version]:
    with closing(open_reader(db_path(home, db))) as conn:
        kept = versions(conn)
    if not kept:
        raise StartError("no version has been written down yet: start the gateway once")
    return kept


# -- what there is to say ---------------------------------------------------------------------------------------------


def difference(version: Version, before: Version | None) -> list[str]:
    """Return what *version* changed, in the lines of ``diff -u``; of the first one nothing."""
    if before is None:
        return []
    lines = difflib.unified_diff(before.text.splitlines(), version.text.splitlines(), n=CONTEXT, lineterm="")
    return list(lines)[2:]


def changes(diff: list[str]) -> tuple[int, int]:
    """Return how many lines were (added, removed)."""
    return sum(line.startswith("+") for line in diff), sum(line.startswith("-") for line in diff)


def as_object(version: Version, before: Version | None) -> dict[str, object]:
    """Return what ``--json`` prints of a version."""
    diff = difference(version, before)
    added, removed = changes(diff)
    said = asdict(version)
    del said["text"]
    return {**said, "added": added, "removed": removed, "diff": diff}


def _print(out: "Console", version: Version, before: Version | None, no_diff: bool) -> None:
    diff = difference(version, before)
    out.print(f"{version.at}  {version.sha256}  {_said(version, before, diff)}", style="bold", soft_wrap=True)
    if no_diff or not diff:
        return
    for line in diff:
        out.print(f"  {inert(line)}", style=STYLES.get(line[:1], ""), soft_wrap=True)
    out.print()


def _said(version: Version, before: Version | None, diff: list[str]) -> str:
    name = inert(version.path or "the built-in default")
    if before is None:
        return f"{name}, {counted(version.text.count('\n'), 'line')}"
    added, removed = changes(diff)
    return f"{name}, +{added} -{removed}"
