"""``mitmgate keys``: who may come in through the doors, and how the provider keys fare that the gateway holds.

A new key is printed once, alone on stdout, and kept nowhere: only its hash goes into ``keys.db``. Running gateways go
by that file at their next request, so a key is good at once, and a revoked one is not.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmgate.cli import render
from mitmgate.cli.cache import span
from mitmgate.cli.common import db_option, db_path, home_option, warn
from mitmgate.cli.policy_file import policy_of, policy_option
from mitmgate.clock import SystemClock, iso
from mitmgate.errors import PolicyError, StartError
from mitmgate.home import secret_of
from mitmgate.policy import Policy, units
from mitmgate.policy.forms import closest
from mitmgate.policy.secret import Secret
from mitmgate.policy.values import Key
from mitmgate.store import files, key_file, provider_keys
from mitmgate.store.key_file import Made

if TYPE_CHECKING:
    from rich.console import Console

type Row = Mapping[str, Any]
"""One key, as ``--json`` shows it; moments are seconds since 1970 until then."""

STYLES = {"revoked": "dim", "expired": "yellow", "cooling": "yellow", "resting": "red"}
"""State -> how its row looks."""
MOST_CHARS = 256
"""Of a name, a tenant, a user."""
TROUBLE = (sqlite3.Error, OSError)


# -- how things look --------------------------------------------------------------------------------------------------

type Cell = Callable[[Row, float], str]


def _text(name: str) -> Cell:
    return lambda row, _: render.inert(row[name])


def _until(name: str, never: str) -> Cell:
    def cell(row: Row, wall: float) -> str:
        moment = row[name]
        if moment is None:
            return never
        return f"in {span(moment - wall)}" if moment > wall else f"{span(wall - moment)} ago"

    return cell


def _ago(name: str) -> Cell:
    def cell(row: Row, wall: float) -> str:
        if row[name] is None:  # a key of the policy that is not set in this shell cannot be looked up
            return render.NULL if row.get("auth", "") is None else "never"
        return f"{span(max(0.0, wall - row[name]))} ago"

    return cell


def _models(row: Row, _wall: float) -> str:
    return render.inert(", ".join(row["models"])) if row["models"] else "all"


def _made(row: Row, _wall: float) -> str:
    return render.inert(row["where"]) if row["made_at"] is None else iso(row["made_at"])[:10]


GATEWAY: Mapping[str, Cell] = {
    "name": _text("name"),
    "state": _text("state"),
    "tenant": _text("tenant"),
    "user": _text("user"),
    "models": _models,
    "expires": _until("expires_at", "never"),
    "made": _made,
    "last used": _ago("used_at"),
}
"""Keys of the gateway's own."""

PROVIDER: Mapping[str, Cell] = {
    "target": _text("target"),
    "alias": _text("alias"),
    "state": _text("state"),
    "until": _until("until", render.NULL),
    "refused with": _text("status"),
    "refused": _ago("refused_at"),
    "last used": _ago("used_at"),
}
"""Keys of providers' that targets hold: ``provider_keys.pool_rows``."""

MOMENTS = ("expires_at", "made_at", "revoked_at", "used_at", "until", "refused_at")


def as_object(row: Row) -> dict[str, Any]:
    """Return *row* for machines."""
    return {name: iso(it) if name in MOMENTS and it is not None else it for name, it in row.items()}


def print_rows(out: "Console", heading: str, columns: Mapping[str, Cell], rows: Sequence[Row], wall: float) -> None:
    """Print *rows* as a table under *heading*; nothing where there are none."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row, wall)) for cell in columns.values()), style=STYLES.get(row["state"], ""))
    render.heading(out, heading)
    out.print(table)


# -- which keys there are ---------------------------------------------------------------------------------------------


def made_row(made: Made, used_at: float | None, wall: float) -> Row:
    return {
        "name": made.name,
        "state": made.state(wall),
        "tenant": made.tenant,
        "user": made.user,
        "models": list(made.models),
        "expires_at": made.expires_at,
        "made_at": made.made_at,
        "revoked_at": made.revoked_at,
        "used_at": used_at,
        "auth": made.digest.hex(),
        "where": None,
    }


def policy_row(key: Key, digest: bytes | None, where: str | None, used_at: float | None, wall: float) -> Row:
    is_over = key.expires is not None and key.expires <= wall
    return {
        "name": key.name,
        "state": "expired" if is_over else "active",
        "tenant": key.tenant,
        "user": key.user,
        "models": list(key.models),
        "expires_at": key.expires,
        "made_at": None,
        "revoked_at": None,
        "used_at": used_at,
        "auth": digest.hex() if digest else None,
        "where": where,
    }


def gateway_rows(path: Path, home: Path, policy: Policy | None, wall: float) -> list[Row]:
    """Return the policy's keys in the order of the file, then those of the file at *path* by name."""
    with said(path):
        conn = key_file.look_into(path, files.BUSY_S)
        if conn is None:
            made, uses = [], {}
        else:
            with closing(conn):
                made, uses = key_file.listed(conn), key_file.uses(conn)
    return [*_policy_rows(policy, home, uses, wall), *(made_row(one, uses.get(one.digest), wall) for one in made)]


def _policy_rows(policy: Policy | None, home: Path, uses: Mapping[bytes, float], wall: float) -> Iterator[Row]:
    for n, key in enumerate(policy.auth.keys if policy and policy.auth else ()):
        digest = key_file.digest_of(secret_of(home), key.key) if _is_set(key.key) and home.is_dir() else None
        where = policy.where(f"auth.keys[{n}]") if policy else None
        yield policy_row(key, digest, where, uses.get(digest) if digest else None, wall)


def _is_set(secret: str) -> bool:
    """Return whether a secret of the policy is known in this shell."""
    return isinstance(secret, Secret) and secret.source.rpartition("env:")[2] in os.environ


@contextmanager
def said(path: Path) -> Iterator[None]:
    """Turn what may be wrong with the file at *path* into one sentence."""
    try:
        yield
    except TROUBLE as e:
        raise StartError(f"{path} cannot be used: {e}") from e


# -- the commands -----------------------------------------------------------------------------------------------------


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  mitmgate keys                                            who may come in, until when, and when they last did
  mitmgate keys new support-app --tenant acme --expires 90d
  mitmgate keys new intern --model "gpt-5-mini*" --model "claude-haiku-*"
  mitmgate keys revoke support-app                         it opens nothing from the next request on
""",
)
@click.option("--json", "as_json", is_flag=True, help='{"keys": […], "provider_keys": […]}, every column.')
@policy_option
@home_option
@db_option
@click.pass_context
def keys(ctx: click.Context, as_json: bool, policy_path: str | None, home: Path, db: Path | None) -> None:
    """Make, list and revoke keys of the gateway's own; without a command, list them.

    A key opens the gateway's doors where the policy has an `auth` section. It is sent as `cf-aig-authorization`, as
    Proxy-Authorization (HTTPS_PROXY=http://user:KEY@HOST:PORT), or in place of the provider's own key, which a target
    of the policy then supplies.
    """
    if ctx.invoked_subcommand is not None:
        return
    wall = SystemClock().wall()
    database = db_path(home, db)
    policy = _policy_or_none(home, policy_path)
    own = gateway_rows(key_file.beside(database), home, policy, wall)
    pools = provider_keys.pool_rows(
        database.with_name(provider_keys.FILE), wall, policy.targets if policy and policy.path else None
    )
    if as_json:
        click.echo(render.as_json({"keys": list(map(as_object, own)), "provider_keys": list(map(as_object, pools))}))
        return
    out = render.console()
    if not own:
        out.print("There are no keys of the gateway's own; `mitmgate keys new NAME` makes one.")
    print_rows(out, "keys of the gateway", GATEWAY, own, wall)
    print_rows(out, "keys of providers", PROVIDER, pools, wall)


def _policy_or_none(home: Path, path: str | None) -> Policy | None:
    """Return the policy; None, and a sentence, where the running gateway's cannot be read from here."""
    try:
        return policy_of(home, path)
    except PolicyError as e:
        if path:
            raise
        warn(f"the policy's keys are not listed: {e}")
        return None


def _name(_ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    if text is not None and not (0 < len(text.strip()) <= MOST_CHARS and text.isprintable()):
        raise click.BadParameter(f"it takes 1 to {MOST_CHARS} printable characters")
    return text.strip() if text else None


def _globs(_ctx: click.Context, _param: click.Parameter, globs: tuple[str, ...]) -> tuple[str, ...]:
    if not all(glob.strip() for glob in globs):
        raise click.BadParameter("it takes a model's name, with * and ? as wildcards")
    return tuple(glob.strip() for glob in globs)


def moment(text: str, wall: float) -> float:
    """Return when a key ends that was made at *wall*: ``90d``, ``12 h``, a date (to its end) or a time.

    Raises ``click.UsageError``.
    """
    try:
        at = units.moment(text) if units.DATE.match(text.strip()) else wall + units.time(text)
    except ValueError as e:
        raise click.UsageError(f"--expires: {e}; it takes 90d, 12h, 2027-01-31 or 2027-01-31T18:00Z") from e
    if at <= wall:
        raise click.UsageError(f"--expires: {text} is over already")
    return at


@keys.command(
    epilog="""\b
Examples:
  mitmgate keys new support-app --tenant acme
  export OPENAI_API_KEY=$(mitmgate keys new laptop --user ann --expires 30d)
  mitmgate keys new intern --model "gpt-5-mini*" --expires 2027-01-31 --json | jq -r .key
"""
)
@click.argument("name", callback=_name)
@click.option("--tenant", metavar="NAME", callback=_name, help="Whose calls these are, whatever they claim.")
@click.option("--user", metavar="NAME", callback=_name, help="Who makes them, whatever they claim.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="GLOB",
    callback=_globs,
    help="Only models like this; * and ? are wildcards, repeatable.",
)
@click.option("--expires", metavar="TIME", help="When it ends: 90d, 12h, a date (to its end, UTC), an ISO time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the key and its columns.")
@home_option
@db_option
def new(
    name: str,
    tenant: str | None,
    user: str | None,
    models: tuple[str, ...],
    expires: str | None,
    as_json: bool,
    home: Path,
    db: Path | None,
) -> None:  # fmt: skip
    """Make a key and print it: this once, and alone on stdout."""
    wall = SystemClock().wall()
    expires_at = moment(expires, wall) if expires else None
    path = key_file.beside(db_path(home, db))
    key = key_file.new_key()
    with said(path):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = key_file.digest_of(secret_of(home), key)
        made = Made(digest, name, tenant, user, models, wall, expires_at)
        with closing(key_file.open_file(path)) as conn:
            key_file.add(conn, made)
    if as_json:
        click.echo(json.dumps({"key": key, **as_object(made_row(made, None, wall))}, ensure_ascii=False))
        return
    click.echo(key)
    until = f", until {iso(expires_at)}" if expires_at else ""
    click.secho(f"{name} is made{until}. The key is shown this once: keep it where secrets are kept.", err=True)


@keys.command(
    epilog="""\b
Examples:
  mitmgate keys revoke support-app
"""
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the columns of the key that was revoked.")
@policy_option
@home_option
@db_option
def revoke(name: str, as_json: bool, policy_path: str | None, home: Path, db: Path | None) -> None:
    """Let the key NAME open nothing from the next request on. That cannot be taken back; its name is free again."""
    wall = SystemClock().wall()
    path = key_file.beside(db_path(home, db))
    with said(path):
        made, names = _revoked(path, name, wall)
    if made is None:
        raise StartError(_nobody(name, names, _policy_or_none(home, policy_path)))
    if as_json:
        click.echo(json.dumps(as_object(made_row(made, None, wall)), ensure_ascii=False))
    else:
        click.echo(f"{name} is revoked; running gateways refuse it from now on")


def _revoked(path: Path, name: str, wall: float) -> tuple[Made | None, list[str]]:
    """Return the key that was revoked, and the names of all that could be."""
    if not path.exists():
        return None, []
    with closing(key_file.open_file(path)) as conn:
        names = [made.name for made in key_file.listed(conn) if made.revoked_at is None]
        return key_file.revoke(conn, name, wall), names


def _nobody(name: str, names: Sequence[str], policy: Policy | None) -> str:
    for n, key in enumerate(policy.auth.keys if policy and policy.auth else ()):
        if policy and key.name == name:
            return f"{name} is a key of the policy: take it out of {policy.where(f'auth.keys[{n}]')}"
    meant = closest(name, names)
    return f"there is no key {name!r} that opens anything" + (f"; did you mean {meant!r}?" if meant else "")
