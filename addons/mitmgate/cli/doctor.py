"""``mitmgate doctor``: why nothing arrives, or why a client complains, found before a person has to guess.

Each check looks at one thing and answers with findings: ``ok``, ``warn`` (works, but not as you may think) or ``fail``
(does not work), with what to do. Checks change nothing and send nothing beyond this machine: the TLS check asks the
proxy door for a provider's host and looks at the certificate that comes back, which the gateway makes without dialling
anyone.
"""

import json
import os
import re
import shutil
import sqlite3
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

from mitmgate.cli import door_probe, roots
from mitmgate.cli.common import DATABASE, Running, accepts, console, db_option, home_option, load_run, read_run
from mitmgate.cli.environment import direct_remarks, proxy_remarks, way_to
from mitmgate.errors import PolicyError, StartError

type Level = Literal["ok", "warn", "fail"]

COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
CA_DAYS = 30
"""A CA that ends sooner gets a warning."""
FREE_MIB = 512
DEFAULT_DOORS = ("127.0.0.1:8080", "127.0.0.1:8081")
PROBED_HOST = "api.openai.com"
LOSSES = {
    "mitmgate_rows_dropped_total": "rows",
    "mitmgate_payloads_dropped_total": "bodies",
    "mitmgate_cache_dropped_total": "cached answers",
}
RESTING = re.compile(r'^mitmgate_breaker_state\{target="([^"]*)"\} ([12])$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    text: str
    do: str = ""
    """What mends it; empty where nothing has to be done."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What every check looks at."""

    home: Path
    db: Path
    running: Running | None
    env: Mapping[str, str]

    @property
    def ca(self) -> Path:
        return self.home / "ca"


type Check = Callable[[Facts], Iterator[Finding]]


# -- this program -----------------------------------------------------------------------------------------------------


def python(_facts: Facts) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"Python {found} at {sys.executable}")  # an older one could not have read this file


def engine(_facts: Facts) -> Iterator[Finding]:
    try:
        found = metadata.version("mitmproxy")
    except metadata.PackageNotFoundError:
        yield Finding("mitmproxy", "fail", "mitmproxy is not installed", "./mitm.sh installs it")
        return
    if (12, 3) <= numbers(found) < (13,):
        yield Finding("mitmproxy", "ok", f"mitmproxy {found}")
    else:
        yield Finding("mitmproxy", "fail", f"mitmproxy {found} does not fit", "install mitmproxy>=12.3,<13")


def numbers(version: str) -> tuple[int, ...]:
    """Return ``(12, 3, 1)`` of ``12.3.1``, also of ``v22.21.0`` and ``13.0.dev1``."""
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


# -- the home ---------------------------------------------------------------------------------------------------------


def home(facts: Facts) -> Iterator[Finding]:
    if not facts.home.is_dir():
        yield Finding("home", "warn", f"{facts.home} is not there yet", "`mitmgate serve` makes it")
        return
    mode = stat.S_IMODE(facts.home.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "home",
            "fail",
            f"{facts.home} has mode {mode:04o}: others can read keys and prompts",
            f"chmod 700 {facts.home}",
        )
    elif not os.access(facts.home, os.W_OK):
        yield Finding("home", "fail", f"{facts.home} cannot be written to", "chown it to the gateway's user")
    else:
        yield Finding("home", "ok", f"{facts.home}, mode {mode:04o}")
    free = shutil.disk_usage(facts.home).free >> 20
    if free < FREE_MIB:
        yield Finding("disk", "warn", f"{free} MiB are free in {facts.home}", "make room, or rows will be lost")


def certificate(facts: Facts) -> Iterator[Finding]:
    path = facts.ca / "mitmproxy-ca-cert.pem"
    if not path.is_file():
        yield Finding("CA", "warn", f"{path} is not there yet", "`mitmgate serve` makes it")
        return
    yield from key_file(facts.ca / "mitmproxy-ca.pem")
    days = days_left(path)
    if days is None:
        yield Finding("CA", "fail", f"{path} holds no certificate", f"move {facts.ca} away and start the gateway again")
    elif days < 0:
        yield Finding(
            "CA", "fail", f"our CA ended {-days} days ago", f"move {facts.ca} away and start the gateway again"
        )
    elif days < CA_DAYS:
        yield Finding(
            "CA", "warn", f"our CA ends in {days} days", f"move {facts.ca} away soon; clients need the new one"
        )
    else:
        yield Finding("CA", "ok", f"{path}, good for {days} days")


def key_file(path: Path) -> Iterator[Finding]:
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("CA", "fail", f"{path} holds the CA's key and others can read it", f"chmod 600 {path}")


def days_left(path: Path) -> int | None:
    from cryptography import x509

    try:
        [der, *_] = roots.certificates(path.read_bytes())
        end = x509.load_der_x509_certificate(der).not_valid_after_utc
    except (OSError, ValueError):
        return None
    return (end - datetime.now(UTC)).days


def bundle(facts: Facts) -> Iterator[Finding]:
    path = facts.ca / "bundle.pem"
    if not path.is_file():
        yield Finding("bundle", "warn", f"{path} is not there yet", "`mitmgate serve` makes it")
        return
    held = roots.certificates(path.read_bytes())
    ours = roots.certificates(roots.read(facts.ca / "mitmproxy-ca-cert.pem"))
    if not set(ours) <= set(held):
        yield Finding("bundle", "fail", f"{path} lacks our CA: clients refuse the gateway", "start the gateway again")
    elif len(held) <= len(ours):
        yield Finding(
            "bundle", "fail", f"{path} holds no public roots: tunnelled hosts fail", "start the gateway again"
        )
    else:
        yield Finding("bundle", "ok", f"{path}, {len(held) - len(ours)} public roots and ours")


# -- the gateway ------------------------------------------------------------------------------------------------------


def gateway(facts: Facts) -> Iterator[Finding]:
    running = facts.running
    if running is not None:
        doors = f"{running.listen} and {running.base_url_listen or 'no base-URL door'}"
        yield Finding("gateway", "ok", f"process {running.pid}, {doors}, since {running.started_at}")
        return
    left = load_run(facts.home)
    text = f"none runs in {facts.home}" + (f" (process {left.pid} left its run.json behind)" if left else "")
    yield Finding("gateway", "warn", text, "`mitmgate serve`, or `mitmgate run -- CMD`")
    for door in DEFAULT_DOORS:
        if accepts(door):
            yield Finding("ports", "warn", f"another program listens on {door}", "stop it, or serve with another port")


def base_url_door(facts: Facts) -> Iterator[Finding]:
    """Its ``/healthz``, and what its ``/metrics`` say was lost, and which targets rest."""
    if facts.running is None or facts.running.base_url is None:
        return
    try:
        door_probe.get(facts.running.base_url + "/healthz")
        text = door_probe.get(facts.running.base_url + "/metrics")
    except OSError as e:
        yield Finding(
            "base-URL door", "fail", f"{facts.running.base_url} does not answer: {e}", "start the gateway again"
        )
        return
    yield Finding("base-URL door", "ok", f"{facts.running.base_url}/healthz answers")
    lost = [f"{total:,.0f} {word}" for name, word in LOSSES.items() if (total := summed(text, name))]
    if lost:
        yield Finding(
            "losses", "warn", f"{' and '.join(lost)} could not be kept", "see the gateway's log for mitmgate.store"
        )
    else:
        yield Finding("losses", "ok", "no row, body or cached answer was lost since it started")
    yield from resting(text)


def resting(exposition: str) -> Iterator[Finding]:
    """The targets that the breaker lets rest now, or asks with one call at a time."""
    for target, state in RESTING.findall(exposition):
        text = f"{target} rests: it failed too often" if state == "2" else f"{target} has rested; the next call shows"
        yield Finding("breaker", "warn", text, "`mitmgate report --since 1h` says how it does")


def summed(exposition: str, name: str) -> float:
    """Return the sum over all series of metric *name* in a Prometheus text."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", exposition, re.MULTILINE)
    return sum(map(float, values))


def interception(facts: Facts) -> Iterator[Finding]:
    """A handshake for a provider's host through the proxy door: the leaf must be ours."""
    if facts.running is None:
        return
    try:
        door_probe.handshake(facts.running.listen, PROBED_HOST, facts.running.ca_cert)
    except ssl.SSLCertVerificationError as e:
        text = f"the certificate for {PROBED_HOST} is not signed by {facts.running.ca_cert}: {e.verify_message}"
        yield Finding("interception", "fail", text, "is another proxy listening there? start the gateway again")
    except OSError as e:
        text = f"no TLS for {PROBED_HOST} through {facts.running.listen}: {e}"
        yield Finding("interception", "fail", text, "see the gateway's log")
    else:
        yield Finding("interception", "ok", f"{PROBED_HOST} through the proxy door shows our certificate")


def set_aside(check: str, path: Path) -> Iterator[Finding]:
    for broken in sorted(path.parent.glob(f"{path.name}.broken-*")):
        yield Finding(
            check, "warn", f"{broken} was set aside: it was no database", "delete it when you need it no more"
        )


def database(facts: Facts) -> Iterator[Finding]:
    yield from set_aside("database", facts.db)
    if not facts.db.exists():
        yield Finding("database", "warn", f"{facts.db} is not there yet", "the gateway's first row makes it")
        return
    from mitmgate.store.reader import open_reader

    try:
        with closing(open_reader(facts.db)) as conn:
            (rows,) = conn.execute("SELECT count(*) FROM exchanges").fetchone()
    except (StartError, sqlite3.Error) as e:
        yield Finding("database", "fail", str(e), "restore it from a backup, or move it away; a new one is begun")
        return
    yield Finding("database", "ok", f"{facts.db}, {rows:,} calls, {facts.db.stat().st_size / 2**20:.1f} MiB")


def cached_answers(facts: Facts) -> Iterator[Finding]:
    """The file of the answer cache; it is there once an answer was kept."""
    from mitmgate.store import answer_file

    path = answer_file.beside(facts.db)
    yield from set_aside("cache", path)
    if not path.exists():
        return
    try:
        with answer_file.opened(path) as conn:
            kept = answer_file.total(conn, answer_file.Which())
    except StartError as e:
        yield Finding("cache", "warn", str(e), "nothing: its answers are asked for anew")
        return
    yield Finding("cache", "ok", f"{path}, {kept.entries:,} answers, {kept.bytes / 2**20:.1f} MiB")


def policy(facts: Facts) -> Iterator[Finding]:
    from mitmgate.policy import load

    path = facts.running.policy if facts.running else facts.env.get("MITMGATE_POLICY")
    if not path:
        yield Finding("policy", "ok", "the built-in default")
        return
    try:
        load(Path(path), facts.env, path)
    except PolicyError as e:
        more = f" (and {len(e.faults) - 1} more)" if len(e.faults) > 1 else ""
        yield Finding("policy", "fail", f"{e.faults[0]}{more}", f"mend it; `mitmgate check {path}` shows all")
    else:
        yield Finding("policy", "ok", path)


# -- the clients of this shell ----------------------------------------------------------------------------------------


def shell(facts: Facts) -> Iterator[Finding]:
    """Whether a program started here would come to the gateway."""
    if facts.running is None:
        return
    advice = 'eval "$(mitmgate env)", or `mitmgate run -- CMD`'
    way = way_to(facts.running, facts.home)
    proxy = facts.env.get("HTTPS_PROXY") or facts.env.get("https_proxy")
    if not proxy:
        yield Finding("shell", "warn", "HTTPS_PROXY is not set here: programs go past the gateway", advice)
    elif proxy_remarks(way, facts.env):
        yield Finding("shell", "warn", "HTTPS_PROXY does not name this gateway", advice)
    elif facts.env.get("SSL_CERT_FILE") != str(way.bundle):
        yield Finding("shell", "warn", "SSL_CERT_FILE does not name our bundle: clients refuse the gateway", advice)
    else:
        yield Finding("shell", "ok", f"HTTPS_PROXY and SSL_CERT_FILE lead to {way.proxy_url}")
    for sentence in direct_remarks(facts.env):
        yield Finding("shell", "warn", sentence, "take those hosts out of NO_PROXY")


def node(facts: Facts) -> Iterator[Finding]:
    """Node learnt to read proxy variables late, and reads them only when told to."""
    program = shutil.which("node", path=facts.env.get("PATH"))
    if program is None:
        return
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=10
    ).stdout.strip()
    yield node_finding(said, facts.env.get("NODE_USE_ENV_PROXY"))


def node_finding(version: str, switch: str | None) -> Finding:
    if not reads_proxy(numbers(version)):
        text = f"Node {version} reads no proxy variable: its LLM SDKs go past the gateway"
        return Finding("node", "warn", text, "use Node 22.21 or 24, undici's EnvHttpProxyAgent, or the base-URL door")
    if switch != "1":
        text = f"Node {version} reads proxy variables only with NODE_USE_ENV_PROXY=1"
        return Finding("node", "warn", text, '`mitmgate run` and `eval "$(mitmgate env)"` set it')
    return Finding("node", "ok", f"Node {version} with NODE_USE_ENV_PROXY=1")


def reads_proxy(version: tuple[int, ...]) -> bool:
    """Return whether that Node knows ``NODE_USE_ENV_PROXY``: it came with 24, later with 22.21, never with 23."""
    return version >= (24,) or (22, 21) <= version < (23,)


CHECKS: tuple[Check, ...] = (
    python, engine, home, certificate, bundle, policy, database, cached_answers, gateway, base_url_door, interception,
    shell, node,
)  # fmt: skip
"""In the order in which a fault in one explains those after it."""


# -- the command ------------------------------------------------------------------------------------------------------


def examine(facts: Facts) -> list[Finding]:
    """Return what all checks find. A check that breaks is a finding, too."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found.extend(check(facts))
        except Exception as e:
            found.append(Finding(check.__name__, "fail", f"the check itself failed: {e!r}", "please report this"))
    return found


@click.command()
@home_option
@db_option
@click.option("--json", "as_json", is_flag=True, help='{"ok", "findings": [{check, level, text, do}]}.')
def doctor(home: Path, db: Path | None, as_json: bool) -> None:
    """Find set-up faults; exit code 1 where something cannot work."""
    running = read_run(home)
    path = db or (running.db if running else home / DATABASE)
    found = examine(Facts(home, path, running, os.environ))
    failed = any(finding.level == "fail" for finding in found)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        show(found)
    if failed:
        raise SystemExit(1)


def show(found: list[Finding]) -> None:
    from rich.text import Text

    out = console()
    width = max(len(finding.check) for finding in found)
    for finding in found:
        advice = f"\n     {'':{width}}  → {finding.do}" if finding.do else ""
        level = Text(f"{finding.level:4}", style=COLOURS[finding.level])
        out.print(level, Text(f"{finding.check:{width}}  {finding.text}{advice}"), soft_wrap=True)
