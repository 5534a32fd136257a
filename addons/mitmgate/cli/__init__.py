"""The ``mitmgate`` command: a table of commands, each imported when it is called.

Reading commands never import mitmproxy, and ``mitmgate --help`` imports no command at all: the table carries the one
line that the overview shows. A mistake of the user's ends in a sentence on stderr, a bug in a traceback.

Exit codes: 0; 1 = the gateway (or a check) says no; 2 = wrong usage or a policy with faults; 130 = Ctrl-C;
141 = whoever read our output went away. ``run`` has the exit code of its program.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from mitmgate import __version__
from mitmgate.cli.common import complain
from mitmgate.errors import PolicyError, StartError

INTERRUPTED = 130
PIPE_CLOSED = 141


class Entry(NamedTuple):
    """A command: the module below ``mitmgate.cli`` that has it as an attribute of its name, and its line of help."""

    module: str
    help: str


COMMANDS: dict[str, Entry] = {
    "serve": Entry("serve", "Both doors, headless; prints what to export."),
    "web": Entry("serve", "Both doors, with mitmweb in the browser."),
    "run": Entry("run", "Run a program with proxy and CA variables set."),
    "demo": Entry("demo", "Offline: a scripted provider, real SDK calls, the report."),
    "tail": Entry("tail", "Live rows."),
    "report": Entry("report", "Tables: calls, errors, tokens, cost, latency."),
    "show": Entry("show", "One request in full."),
    "budget": Entry("budget", "Who stands where with each limit and budget; grant more."),
    "alert": Entry("alert", "Which alert rules are breached; try whom they tell."),
    "cache": Entry("cache", "List, show and purge the answers that are kept."),
    "keys": Entry("keys", "Who may come in: make, list and revoke keys."),
    "usage": Entry("usage", "What the gateway would book for recorded responses."),
    "check": Entry("check", "Validate a policy and show what would apply."),
    "policy": Entry("policy", "Which policy held when, and what each edit changed."),
    "env": Entry("env", "The lines to export for a gateway that already runs."),
    "doctor": Entry("doctor", "Find set-up faults."),
}
"""In the order of a first day: start it, use it, read it, mend it."""


class Commands(click.Group):
    """The group over ``COMMANDS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"mitmgate.cli.{entry.module}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"mitmgate.cli.{entry.module}.{cmd_name} is {command!r}, not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.exceptions.NoSuchCommand(name, possibilities=list(COMMANDS), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mitmgate", message="%(prog)s %(version)s")
def group() -> None:
    """An AI gateway that an app joins by setting HTTPS_PROXY. Without a command: serve."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line *args* (default: the process's) and exit."""
    given = list(sys.argv[1:] if args is None else args)
    sys.exit(carry_out(given or ["serve"]))


def carry_out(args: list[str]) -> int:
    """Carry out *args*; return the exit code. What went wrong has then been said on stderr."""
    try:
        with group.make_context("mitmgate", args) as ctx:
            group.invoke(ctx)
        sys.stdout.flush()  # a reader that left shows here, while it can still be handled
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except PolicyError as e:
        complain(str(e))
        return 2
    except StartError as e:
        complain(f"mitmgate: {e}")
        return 1
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return PIPE_CLOSED
    return 0


def discard_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
