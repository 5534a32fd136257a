"""What every command shares: where the gateway lives, which database to read, and how to speak to a terminal.

A running gateway writes ``HOME/run.json`` once both doors accept and removes it at its end; ``read_run`` is how the
other commands find it. Nothing here imports mitmproxy, so a command that only reads starts in a tenth of a second.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

DATABASE = "traces.db"
RUN_FILE = "run.json"

type Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that runs now, as it describes itself in ``run.json``."""

    pid: int
    listen: str
    """The proxy door, ``host:port``."""
    base_url_listen: str | None
    """The base-URL door, ``host:port``; None where it is off."""
    db: Path
    policy: str | None
    """As given on its command line; None = the built-in policy."""
    ca_cert: Path
    ca_bundle: Path
    started_at: str
    version: str

    @property
    def proxy_url(self) -> str:
        """Return what ``HTTPS_PROXY`` says."""
        host, port = reachable(self.listen)
        return f"http://{url_host(host)}:{port}"

    @property
    def base_url(self) -> str | None:
        if self.base_url_listen is None:
            return None
        host, port = reachable(self.base_url_listen)
        return f"http://{url_host(host)}:{port}"


# -- options ----------------------------------------------------------------------------------------------------------


def default_home() -> Path:
    return Path.home() / ".mitmgate"


def home_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--home`` (``MITMGATE_HOME``), an absolute ``Path``."""
    return click.option(
        "--home",
        envvar="MITMGATE_HOME",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_home,
        show_default="~/.mitmgate",
        callback=lambda _ctx, _param, home: home.expanduser().absolute(),
        help="The gateway's folder: certificates, traces, run.json.",
    )(command)


def db_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--db`` (``MITMGATE_DB``), an absolute ``Path`` or None."""
    return click.option(
        "--db",
        envvar="MITMGATE_DB",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=lambda _ctx, _param, db: db and db.expanduser().absolute(),
        help="The trace database.  [default: HOME/traces.db]",
    )(command)


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``serve``, for whoever starts a gateway; ``None`` and ``()`` where nothing was given."""
    options: tuple[Decorator, ...] = (
        click.option(
            "--listen", envvar="MITMGATE_LISTEN", metavar="HOST:PORT", help="The proxy door; port 0 = any free."
        ),
        click.option(
            "--base-url-listen",
            envvar="MITMGATE_BASE_URL_LISTEN",
            metavar="HOST:PORT|off",
            help="The base-URL door; port 0 = any free, off = none.",
        ),
        click.option(
            "--policy",
            envvar="MITMGATE_POLICY",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="The policy; without one, policies/default.yaml holds.",
        ),
        home_option,
        db_option,
        click.option(
            "--workers", envvar="MITMGATE_WORKERS", type=click.IntRange(1), metavar="N", help="Worker processes."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


# -- the running gateway ----------------------------------------------------------------------------------------------


def read_run(home: Path) -> Running | None:
    """Return the gateway that runs in *home*; None where none does.

    ``run.json`` outlives a gateway that was killed, and its pid may since belong to another program. So a gateway
    counts as running when its process lives and its proxy door takes a connection.
    """
    running = load_run(home)
    if running is None or not is_alive(running.pid) or not accepts(running.listen):
        return None
    return running


def load_run(home: Path) -> Running | None:
    """Return what ``run.json`` says, whether or not that gateway still runs; None where it says nothing readable."""
    try:
        said = json.loads((home / RUN_FILE).read_bytes())
        return Running(
            pid=int(said["pid"]),
            listen=str(said["listen"]),
            base_url_listen=said["base_url_listen"],
            db=Path(said["db"]),
            policy=said["policy"],
            ca_cert=Path(said["ca_cert"]),
            ca_bundle=Path(said["ca_bundle"]),
            started_at=str(said["started_at"]),
            version=str(said["version"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_alive(pid: int) -> bool:
    """Return whether process *pid* runs, whoever owns it; a dead one that nobody has waited for does not."""
    if pid <= 0:
        return False  # kill(0) and kill(-1) mean whole groups
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not is_zombie(pid)


def is_zombie(pid: int) -> bool:
    """Return whether Linux knows *pid* as dead but not waited for; in a container without an init it stays so for
    long."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return said.rpartition(")")[2].split()[0] == "Z"  # the name before it may hold anything, brackets too


def accepts(listen: str, within_s: float = 1.0) -> bool:
    """Return whether something takes TCP connections at *listen* (``host:port``)."""
    try:
        socket.create_connection(reachable(listen), timeout=within_s).close()
    except (OSError, ValueError):
        return False
    return True


def reachable(listen: str) -> tuple[str, int]:
    """Return host and port at which a door is reached from this machine: every-interface addresses become loopback."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    loopback = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
    return loopback.get(host, host), int(port)


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def db_path(home: Path, db: Path | None) -> Path:
    """Return the database to read: the one named, else the running gateway's, else ``HOME/traces.db``."""
    if db is not None:
        return db
    running = read_run(home)
    return running.db if running else home / DATABASE


# -- speaking ---------------------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> "Console":
    """Return a console that colours on a terminal only, and takes what it is given for text, never for markup."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def complain(text: str) -> None:
    """Say one thing that went wrong on stderr: red on a terminal, plain elsewhere."""
    click.secho(text, fg="red", err=True)


def warn(text: str) -> None:
    """Say something that a person should know, on stderr."""
    click.secho(text, fg="yellow", err=True)


def on_terminal() -> bool:
    """Return whether stderr is read by a person."""
    return sys.stderr.isatty()
