"""``mitmgate run -- CMD``: a program that reaches its providers through the gateway, and does not know it.

Uses the gateway that runs in ``--home``; where none does, one is started for the program's life, on free ports. The
program keeps our terminal, our standard streams and our signals, and we keep its exit code: 128 + n where signal n
ended it, 127 where it does not exist, 126 where it cannot be executed. Nothing of ours goes to stdout; what was traced
is one line on stderr, for a person at a terminal only.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from click.core import ParameterSource

from mitmgate.cli import background, roots
from mitmgate.cli.common import Running, complain, on_terminal, read_run, serve_options, warn
from mitmgate.cli.environment import KEY, remarks, variables, way_to
from mitmgate.clock import SystemClock, iso
from mitmgate.errors import StartError

ANY_PORT = "127.0.0.1:0"
NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128

FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
"""A terminal sends these to the whole foreground group: the program has them without us."""


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: mitmgate run --policy team.yaml -- python app.py",
)
@serve_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD [ARG]…")
@click.pass_context
def run(
    ctx: click.Context,
    listen: str | None,
    base_url_listen: str | None,
    policy: str | None,
    home: Path,
    db: Path | None,
    workers: int | None,
    command: tuple[str, ...],
) -> None:
    """Run a program with proxy and CA variables set (Python, Node, curl, Java, Go, gRPC, AWS).

    The options are those of `serve`, for the gateway that is started where none runs. For one that asks for a key
    (`auth`), set MITMGATE_KEY: the proxy's address then has it.
    """
    signal.signal(signal.SIGTERM, leave)
    code = why_not(command[0], os.environ)
    if code:
        ctx.exit(code)
    refuse_vain_options(ctx, home)
    options = {
        "--listen": listen or ANY_PORT,
        "--base-url-listen": base_url_listen or ANY_PORT,
        "--policy": policy,
        "--db": db,
        "--workers": workers,
    }
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    with background.gateway(home, given) as running:
        since = iso(SystemClock.wall())
        code = carry(command, environment_for(running, home))
        running_db = running.db
    if on_terminal():
        click.secho(f"mitmgate: {summary(running_db, since)}", dim=True, err=True)
    ctx.exit(code)


def leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End as the signal would, but by way of every ``finally``: no half-started gateway is left behind."""
    sys.exit(SIGNALLED + number)


def why_not(program: str, env: Mapping[str, str]) -> int:
    """Return 127 or 126 where *program* cannot be run, and say why; 0 where it can.

    Asked first, so that no gateway is started for nothing.
    """
    if shutil.which(program, path=env.get("PATH")):
        return 0
    found = any((Path(folder) / program).is_file() for folder in folders_of(program, env))
    complain(f"mitmgate run: {program}: " + ("is not executable" if found else "no such program"))
    return NOT_EXECUTABLE if found else NOT_FOUND


def folders_of(program: str, env: Mapping[str, str]) -> list[str]:
    """Return the folders that a shell would look for *program* in."""
    return ["."] if os.sep in program else env.get("PATH", os.defpath).split(os.pathsep)


def refuse_vain_options(ctx: click.Context, home: Path) -> None:
    """Raise StartError where an option was typed that the gateway already running in *home* does not follow."""
    running = read_run(home)
    if running is None:
        return
    for name in ("listen", "base_url_listen", "policy", "db", "workers"):
        typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and ctx.params[name] != getattr(running, name, None):
            option = name.replace("_", "-")
            raise StartError(
                f"gateway {running.pid} already runs in {home}, so --{option} would do nothing; "
                f"leave it out, stop that gateway, or name another --home"
            )


def environment_for(running: Running, home: Path) -> dict[str, str]:
    """Return the program's environment, and say what in ours a person should know about."""
    truststore, troubles = roots.prepare(running.ca_bundle, os.environ)
    way = way_to(running, home, truststore, os.environ.get(KEY))
    for sentence in (*troubles, *remarks(way, os.environ)):
        warn(f"mitmgate: {sentence}")
    return {**os.environ, **variables(way, os.environ)}


# -- the program ------------------------------------------------------------------------------------------------------


def carry(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run *command* to its end, with our signals passed on; return the exit code a shell would show."""
    program: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if program is None:
            early.append(number)
        elif number not in FROM_TERMINAL or not in_foreground():
            program.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in FORWARDED if heeded(number)}
    try:
        program = subprocess.Popen(command, env=dict(env))
        for number in early:
            program.send_signal(number)
        return exit_code(program.wait())
    except OSError as e:
        complain(f"mitmgate run: {command[0]}: {e.strerror}")
        return NOT_FOUND if isinstance(e, FileNotFoundError) else NOT_EXECUTABLE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heeded(number: int) -> bool:
    """Return whether a signal is not ignored. Under ``nohup`` one is, and the program must inherit that."""
    return signal.getsignal(number) is not signal.SIG_IGN


def in_foreground() -> bool:
    """Return whether we, and so our program, are in the terminal's foreground group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def exit_code(returned: int) -> int:
    """Return what a shell calls the end that Python calls *returned*: -15 is 143."""
    return returned if returned >= 0 else SIGNALLED - returned


# -- what was traced --------------------------------------------------------------------------------------------------


def summary(db: Path, since: str) -> str:
    """Return a line on the calls that database *db* holds since *since* (ISO 8601)."""
    from mitmgate.cli import render
    from mitmgate.store import queries
    from mitmgate.store.reader import open_reader
    from mitmgate.store.selection import EVERYTHING, Window

    try:
        with closing(open_reader(db)) as conn:
            _, total = queries.report_with_total(conn, Window(since), (), EVERYTHING)
    except StartError as e:
        return str(e)
    if total is None:
        return "no LLM call came through the gateway; if there should be some, `mitmgate doctor` looks for the reason"
    return (
        f"{counted(total['calls'], 'call')}, {counted(total['errors'], 'error')} · "
        f"{render.count(total['input_tokens'])} tokens in, {render.count(total['output_tokens'])} out · "
        f"cost {render.dollars(total['cost_nanousd'])} · `mitmgate report --since {since}`"
    )


def counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
