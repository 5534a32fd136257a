"""``mitmgate serve`` and ``web``: both doors, headless or inside mitmweb.

Ports are bound, the home is made and the policy is read before anything starts, so that what is wrong is one sentence.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mitmgate import __version__
from mitmgate.cli.common import DATABASE, default_home, read_run, serve_options, warn
from mitmgate.errors import StartError
from mitmgate.policy import Policy

LISTEN = "127.0.0.1:8080"
BASE_URL_LISTEN = "127.0.0.1:8081"

type Ready = Callable[[str | None], None]
"""Called once both doors accept, with the address of mitmweb's page where there is one."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``serve`` was told, made absolute."""

    listen: str
    base_url_listen: str | None
    policy_path: str | None
    home: Path
    db: Path
    workers: int
    web: bool = False
    web_port: int = 8082
    open_browser: bool = False


@click.command()
@serve_options
def serve(**told: Any) -> None:
    """Open both doors and trace every LLM call that comes through them.

    \b
    mitmgate serve
    mitmgate serve --listen 127.0.0.1:9000 --base-url-listen off
    mitmgate serve --policy policy.yaml --home /srv/mitmgate --workers 2
    """
    sys.exit(start(_settings(**told)))


@click.command()
@serve_options
@click.option(
    "--web-port", envvar="MITMGATE_WEB_PORT", type=int, default=8082, show_default=True, help="mitmweb's page."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
def web(web_port: int, open_browser: bool, **told: Any) -> None:
    """The same gateway inside mitmweb: prompts and answers to look at while they stream.

    \b
    mitmgate web
    mitmgate web --web-port 9999 --open
    """
    sys.exit(start(_settings(**told, web=True, web_port=web_port, open_browser=open_browser)))


def _settings(
    listen: str | None,
    base_url_listen: str | None,
    policy: str | None,
    home: Path,
    db: Path | None,
    workers: int | None,
    **web: Any,
) -> Settings:
    base_url = base_url_listen or BASE_URL_LISTEN
    if web.get("web") and workers not in (None, 1):
        raise StartError("mitmweb shows the flows of one process; leave --workers out")
    return Settings(
        listen or LISTEN,
        None if base_url == "off" else base_url,
        policy,
        home,
        db or home / DATABASE,
        workers or 1,
        **web,
    )


def start(settings: Settings) -> int:
    """Run a gateway with *settings* until it is stopped; return the exit code. Raises ``StartError``,
    ``PolicyError``."""
    if sys.flags.optimize == 0 and "coverage" not in sys.modules:
        # mitmproxy type-checks every message and layer state under __debug__: a sixth of what a request costs.
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, [sys.executable, "-P", "-m", "mitmgate", *sys.argv[1:]])

    from mitmgate.home import Home, check_database
    from mitmgate.policy import default, load, notices

    policy = load(Path(settings.policy_path), os.environ, settings.policy_path) if settings.policy_path else default()
    if running := read_run(settings.home):
        raise StartError(
            f"a gateway already runs in {settings.home} (process {running.pid}, {running.listen});"
            " stop it, or give --home DIR"
        )
    home = Home(settings.home)
    secret = home.prepare()
    check_database(settings.db)
    refuse_open_doors(settings, policy)
    for notice in notices(policy):
        warn(notice)
    sockets = bind(settings)
    if settings.workers > 1:
        return _share(settings, policy, home, secret, sockets)
    return _work(settings, policy, home, secret, sockets, lambda page: _announce(settings, policy, home, sockets, page))


# -- doors


def bind(settings: Settings) -> dict[str, socket.socket]:
    """Return the doors' listening sockets, bound; raise ``StartError`` where an address cannot be had."""
    doors = {"proxy": _bind(settings.listen, "--listen")}
    if settings.base_url_listen:
        doors["base-url"] = _bind(settings.base_url_listen, "--base-url-listen")
    return doors


def refuse_open_doors(settings: Settings, policy: Policy) -> None:
    """Raise ``StartError`` where other machines would get in and nobody is asked for a key, or nobody has one."""
    doors = {"--listen": settings.listen, "--base-url-listen": settings.base_url_listen}
    for option, address in doors.items():
        if address is None or is_loopback(split(address, option)[0]):
            continue
        if policy.auth is None:
            raise StartError(
                f"{option} {address} is no loopback address: other machines would get in,"
                " and the policy has no `auth` section; add `auth: {}` to it, or listen on 127.0.0.1"
            )
        if not policy.auth.keys and not live_keys(settings.db):
            raise StartError(
                f"{option} {address} is open to other machines, and nobody has a key yet:"
                f" make one with `mitmgate keys new NAME{_homed(settings)}`, or put one into the policy"
            )


def live_keys(database: Path) -> int:
    """Return how many keys beside *database* open a door now; raise ``StartError`` where they cannot be read."""
    import sqlite3

    from mitmgate.clock import SystemClock
    from mitmgate.store import key_file

    path = key_file.beside(database)
    try:
        return key_file.live(path, SystemClock.wall())
    except (sqlite3.Error, OSError) as e:
        raise StartError(f"the keys in {path} cannot be read: {e}") from e


def _homed(settings: Settings) -> str:
    """Return the options by which another command finds the same keys."""
    if settings.db != settings.home / DATABASE:
        return f" --home {settings.home} --db {settings.db}"
    return "" if settings.home == default_home() else f" --home {settings.home}"


def split(address: str, option: str) -> tuple[str, int]:
    """Return host and port of *address*; raise ``StartError`` where it is none."""
    host, _, port_text = address.rpartition(":")
    if ":" not in address or not port_text.isdigit() or int(port_text) > 65535:
        raise StartError(f"{option} {address!r} is no HOST:PORT, e.g. 127.0.0.1:8080")
    return host.strip("[]"), int(port_text)


def _bind(address: str, option: str) -> socket.socket:
    host, port = split(address, option)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise StartError(
            f"{address} cannot be listened on: {error.strerror};"
            f" stop what uses it, or give another with {option} HOST:PORT"
        ) from error
    return bound


def is_loopback(host: str) -> bool:
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# -- one process, or several


def _work(
    settings: Settings, policy: Policy, home: Any, secret: bytes, sockets: dict[str, socket.socket], ready: Ready
) -> int:
    _quiet_logs()
    try:
        asyncio.run(_gateway(settings, policy, home, secret, sockets, ready))
    finally:
        home.withdraw()
    return 0


async def _gateway(
    settings: Settings, policy: Policy, home: Any, secret: bytes, sockets: dict[str, socket.socket], ready: Ready
) -> None:
    from mitmproxy import options

    from mitmgate import master
    from mitmgate.chain import Chain

    chain = Chain(policy, settings.db, secret)
    chain.reload.watch(settings.policy_path)
    master.listen_on(sockets)
    opts = options.Options(confdir=str(home.ca))
    if settings.web:
        from mitmgate.web_master import page_url, web_master

        page_engine = web_master(opts, chain, settings.web_port, settings.open_browser)
        page_engine.options.update(**master.QUIET, mode=master.modes("base-url" in sockets))
        await master.run(page_engine, chain.door, lambda: ready(page_url(page_engine)))
        return
    engine = master.GatewayMaster(opts, chain.door)
    engine.options.update(**master.QUIET, mode=master.modes("base-url" in sockets))
    await master.run(engine, chain.door, lambda: ready(None))


def _share(settings: Settings, policy: Policy, home: Any, secret: bytes, sockets: dict[str, socket.socket]) -> int:
    """Run several workers behind the same doors; return the exit code."""
    from mitmgate import chain, master  # noqa: F401  # imported before the fork: once in memory, not once a worker
    from mitmgate.workers import Workers

    _quiet_logs()
    for bound in sockets.values():
        bound.listen(512)

    def work(ready: Callable[[], None]) -> int:
        return _work(settings, policy, home, secret, sockets, lambda _page: ready())

    workers = Workers(settings.workers, work)
    try:
        return workers.run(lambda: _announce(settings, policy, home, sockets, None))
    finally:
        home.withdraw()


def _announce(
    settings: Settings, policy: Policy, home: Any, sockets: dict[str, socket.socket], page: str | None
) -> None:
    """Both doors accept: write ``run.json`` and say what to export, and where mitmweb's *page* is."""
    from mitmgate.clock import SystemClock, iso
    from mitmgate.home import RunFile

    proxy = _shown(sockets["proxy"])
    base_url = _shown(sockets["base-url"]) if "base-url" in sockets else None
    home.announce(
        RunFile(
            pid=os.getpid(),
            listen=proxy,
            base_url_listen=base_url,
            db=str(settings.db),
            policy=settings.policy_path,
            ca_cert=str(home.ca_cert),
            ca_bundle=str(home.bundle),
            started_at=iso(SystemClock.wall()),
            version=__version__,
        )
    )
    lines = [
        f"mitmgate {__version__}",
        f"  proxy door     http://{proxy}",
        f"  base-URL door  {f'http://{base_url}/PROVIDER/…' if base_url else 'off'}",
        f"  policy         {settings.policy_path or 'the default (policies/default.yaml)'}",
        f"  traces         {settings.db}",
        *([f"  mitmweb        {page}"] if page else []),
        "",
        "In the shell of your app (`mitmgate env` prints what every client needs):",
        f"  export HTTPS_PROXY=http://{'user:KEY@' if policy.auth else ''}{proxy}",
        f"  export SSL_CERT_FILE={home.bundle}",
        "or start it with: mitmgate run -- COMMAND",
    ]
    click.echo("\n".join(lines))
    sys.stdout.flush()


def _quiet_logs() -> None:
    """Warnings and errors on stderr; mitmproxy's own launcher would log every connection."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mitmgate").setLevel(logging.INFO)
