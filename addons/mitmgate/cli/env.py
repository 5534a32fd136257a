"""``mitmgate env``: the lines that bring a shell to a gateway that already runs.

Prints what ``run`` would set and nothing else on stdout, so that ``eval "$(mitmgate env)"`` is safe: where no gateway
runs, stdout stays empty, a sentence goes to stderr, and the exit code is 1.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePath

import click

from mitmgate.cli import roots
from mitmgate.cli.common import home_option, read_run, warn
from mitmgate.cli.environment import KEY, remarks, variables, way_to
from mitmgate.errors import StartError

type Line = Callable[[str, str], str]


def sh_line(name: str, value: str) -> str:
    quoted = value.replace("'", "'\"'\"'")
    return f"export {name}='{quoted}'"


def fish_line(name: str, value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{quoted}'"


def powershell_line(name: str, value: str) -> str:
    quoted = value.replace("'", "''")
    return f"$env:{name} = '{quoted}'"


LINES: dict[str, Line] = {"sh": sh_line, "fish": fish_line, "powershell": powershell_line}
OF_SHELL = {"fish": "fish", "pwsh": "powershell", "powershell": "powershell"}
"""The login shell's name -> how its lines look; all others speak sh."""


def shell_of(path: str) -> str:
    """Return the kind of the shell at *path*, as ``$SHELL`` names it."""
    return OF_SHELL.get(PurePath(path).name, "sh")


@click.command(epilog='Example: eval "$(mitmgate env)"')
@home_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name to value.")
@click.option("--shell", type=click.Choice(list(LINES)), help="Whose syntax.  [default: as $SHELL says]")
def env(home: Path, as_json: bool, shell: str | None) -> None:
    """Print the lines to export for a gateway that already runs.

    Where it asks for a key (`auth`), set MITMGATE_KEY before: the proxy's address then has it.
    """
    running = read_run(home)
    if running is None:
        raise StartError(f"no gateway runs in {home}; start one with `mitmgate serve`, or use `mitmgate run -- CMD`")
    truststore, troubles = roots.prepare(running.ca_bundle, os.environ)
    way = way_to(running, home, truststore, os.environ.get(KEY))
    for sentence in (*troubles, *remarks(way, os.environ)):
        warn(f"mitmgate: {sentence}")
    values = variables(way, os.environ)
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    line = LINES[shell or shell_of(os.environ.get("SHELL", ""))]
    click.echo("\n".join(line(name, value) for name, value in values.items()))
