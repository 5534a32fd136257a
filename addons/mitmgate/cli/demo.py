"""``mitmgate demo``: the whole product on one machine, with nothing faked between the SDK and the provider.

A scripted provider stands in for four real ones, a gateway of its own runs in a temporary home, and a program with
the real SDKs calls through ``HTTPS_PROXY``, in the environment that ``mitmgate run`` would give it. Each call is shown
as the app saw it and as the row that the gateway wrote; then comes the report. Needs no network and no key, and leaves
nothing behind.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import click

from mitmgate.cli import background, render
from mitmgate.cli.common import DATABASE, Running
from mitmgate.cli.environment import variables, way_to
from mitmgate.cli.report import print_report
from mitmgate.cli.tail import Printer
from mitmgate.demo.provider import AZURE, HOSTS, Place, provider
from mitmgate.errors import StartError
from mitmgate.store import queries
from mitmgate.store.reader import open_reader
from mitmgate.store.selection import Window

SDKS = {"openai": "openai", "anthropic": "anthropic", "google.genai": "google-genai"}
"""Module -> what to install."""

POLICY = """\
version: 1
identify:
  route:
    agent: {{metadata.feature: agent}}
    faq: {{metadata.feature: faq}}
guard:
  - {{name: people, find: email, then: redact, restore: true}}
limit:
  - {{name: trial, match: {{tenant: initech}}, requests: 1, every: 1 m}}
budget:
  - {{name: big-model, match: {{model: gpt-5}}, per: tenant, cost: 0.0002 USD, every: 1 h,
     downgrade: {{at: 50 %, to: {{model: gpt-5-mini}}}}, hard: record}}
cache:
  - {{name: faq, match: {{route: faq}}, ttl: 1 h}}
route:
  - {{name: spare, match: {{provider: openai}}, try: [openai, azure]}}
retry: {{attempts: 2, delay: 100 ms}}
targets:
  openai: {{provider: openai, base_url: "https://api.openai.com/v1"}}
  azure: {{provider: azure-openai, base_url: "https://{azure}"}}
upstream:
  ca: {ca}
  connect_to: {connect_to}
"""

KEYS = {"OPENAI_API_KEY": "sk-demo", "ANTHROPIC_API_KEY": "sk-ant-demo", "GEMINI_API_KEY": "demo"}
NOT_TAKEN = ("OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "ALL_PROXY", "all_proxy")
"""Variables of the caller's that would lead the SDKs elsewhere."""

ROW_WITHIN_S = 10.0
LOOK_EVERY_S = 0.02
BY = ("tenant", "provider_name", "request_model")


@click.command(epilog="Example: mitmgate demo --keep")
@click.option("--keep", is_flag=True, help="Keep the gateway's folder with its database, to look into afterwards.")
def demo(keep: bool) -> None:
    """Offline: a scripted provider, real SDK calls through the proxy, then the report."""
    refuse_without_sdks()
    with folder(keep) as home:
        play(home)
    if keep:
        click.echo(f"\nKept: {home}. Look into it with\n  mitmgate show last --home {home}")


def refuse_without_sdks() -> None:
    """Raise StartError where an SDK is not installed."""
    lacking = [package for module, package in SDKS.items() if not is_installed(module)]
    if lacking:
        raise StartError(
            f"the demo calls real SDKs and lacks {', '.join(lacking)}: `./mitm.sh demo` installs them, "
            f"or pip install 'mitmgate[demo]'"
        )


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


@contextmanager
def folder(keep: bool) -> Iterator[Path]:
    """Give a home for the gateway, removed afterwards unless it is to be kept."""
    with tempfile.TemporaryDirectory(prefix="mitmgate-demo-", delete=not keep, ignore_cleanup_errors=True) as name:
        yield Path(name)


def play(home: Path) -> None:
    with provider(home) as place:
        policy = home / "policy.yaml"
        policy.write_text(policy_for(place))
        options = ["--listen=127.0.0.1:0", "--base-url-listen=off", f"--policy={policy}", f"--db={home / DATABASE}"]
        click.echo("A gateway, a provider that follows a script, and three real SDKs, all on this machine.")
        with background.gateway(home, options) as running:
            click.echo(f"  gateway   HTTPS_PROXY={running.proxy_url}")
            click.echo(f"  provider  https://{place.address} plays {', '.join(HOSTS)}\n")
            call_and_show(running, home)
    click.echo()
    with closing(open_reader(running.db)) as conn:
        print_report(render.console(), conn, Window(), BY)


def policy_for(place: Place) -> str:
    """Return the demo's policy: the real names, dialled at *place*."""
    connect_to = {f"{host}:443": place.address for host in HOSTS}
    return POLICY.format(azure=AZURE, ca=json.dumps(str(place.ca)), connect_to=json.dumps(connect_to))  # JSON is YAML


def call_and_show(running: Running, home: Path) -> None:
    """Run the app; after each of its calls print what it saw and the row of it."""
    env = environment_of_app(running, home, os.environ)
    command = [sys.executable, "-P", "-m", "mitmgate.demo.app"]
    rows = Rows(running.db)
    printer = Printer(as_json=False)
    printer.head()
    app = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        for line in app.stdout or ():
            call = json.loads(line)
            click.echo(f"{call['scene']}: {shortened(call['saw'])}")
            printer.rows([rows.next()])
        if app.wait():
            raise StartError(f"the demo's app ended with {app.returncode}; what it said stands above")
    finally:
        app.kill()
        app.wait()


def environment_of_app(running: Running, home: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the app's environment: the caller's, without what leads SDKs elsewhere, and with what leads them to us."""
    kept = {name: value for name, value in env.items() if not name.startswith(NOT_TAKEN)}
    return {**kept, **KEYS, **variables(way_to(running, home), {})}


def shortened(text: str, most: int = 70) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


class Rows:
    """The rows of a database, one after the other, as they are written."""

    def __init__(self, db: Path) -> None:
        self.db = db
        self.seen = 0

    def next(self) -> queries.Row:
        """Return the next row; raise StartError where none comes."""
        deadline = time.monotonic() + ROW_WITHIN_S
        while time.monotonic() < deadline:
            if found := self.look():
                self.seen = found[0]["rowid"]
                return found[0]
            time.sleep(LOOK_EVERY_S)
        raise StartError(f"a call was answered, but no row of it came into {self.db} within {ROW_WITHIN_S:.0f} s")

    def look(self) -> list[queries.Row]:
        """Return the row after the last one seen, if it is there yet."""
        if not self.db.exists():
            return []
        with closing(open_reader(self.db)) as conn:
            return queries.tail(conn, self.seen, limit=1)
