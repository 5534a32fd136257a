"""The gateway as people run it: ``mitmgate serve`` in a process of its own, and the shell of the app beside it."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from mitmgate.cli.common import Running, read_run
from mitmgate.cli.environment import TABLE_OF_VARIABLES, variables, way_to
from support import provider as providers
from support.provider import Provider

ADDONS = Path(__file__).parents[2] / "addons"
PATIENCE_S = 20.0
"""Longest wait for another process; nothing here takes a tenth of it."""


def until[Found](look: Callable[[], Found | None], what: str) -> Found:
    """Return what *look* finds, once it finds something: another process cannot be awaited, only asked again."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {PATIENCE_S:g} s")
        time.sleep(0.01)
    return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mitmgate", *arguments]


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without anything that a gateway or a client would obey, and with *more*."""
    obeyed = {"SSL_CERT_DIR", "ALL_PROXY", "all_proxy", *(name for row in TABLE_OF_VARIABLES for name in row.names)}
    kept = {
        name: value for name, value in os.environ.items() if name not in obeyed and not name.startswith("MITMGATE_")
    }
    return kept | {"PYTHONPATH": str(ADDONS), "PYTHONUNBUFFERED": "1"} | more


@dataclass
class Serving:
    """A gateway that runs, until ``stop``."""

    process: subprocess.Popen[str]
    home: Path
    running: Running
    read: set[str] = field(default_factory=set)
    """Ids of rows that a test has had."""

    @property
    def port(self) -> int:
        return int(self.running.listen.rpartition(":")[2])

    @property
    def base_url(self) -> str:
        return str(self.running.base_url)

    @property
    def environment(self) -> dict[str, str]:
        """What ``mitmgate env`` has an app export."""
        return variables(way_to(self.running, self.home), {})

    def query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(self.running.db, timeout=5)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]

    def new_rows(self, count: int) -> list[dict[str, Any]]:
        """Return the *count* rows that no test has had yet, oldest first, as soon as they are written."""

        def look() -> list[dict[str, Any]] | None:
            if not self.running.db.exists() or not self.query("select 1 from sqlite_master where name = 'exchanges'"):
                return None
            rows = [row for row in self.query("select * from exchanges order by id") if row["id"] not in self.read]
            return rows if len(rows) >= count else None

        rows = until(look, f"{count} rows")
        self.read |= {row["id"] for row in rows}
        if len(rows) > count:
            raise AssertionError(f"{len(rows)} rows where {count} were expected: {[row['path'] for row in rows]}")
        return rows

    def new_row(self) -> dict[str, Any]:
        [row] = self.new_rows(1)
        return row

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Return the exit code, once there is one."""
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal()
        return self.ended()


def set_up(monkeypatch: pytest.MonkeyPatch, gateway: Serving, key: str) -> None:
    """Set this process up as ``mitmgate env`` says, so that what is called here goes through *gateway*, with *key*."""
    for name, value in gateway.environment.items():
        monkeypatch.setenv(name, value)
    for vendor in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{vendor}_API_KEY", key)


def start(home: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``serve`` on free ports; it may not come up."""
    doors = ["--listen", "127.0.0.1:0", "--base-url-listen", "127.0.0.1:0"]
    told = command("serve", "--home", str(home), *doors, *options)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(told, env=clean_environment(**environment), **pipes)


@contextlib.contextmanager
def serve(home: Path, policy: str, *options: str, **environment: str) -> Iterator[Serving]:
    """Run a gateway whose policy is the text *policy*; *options* are more of ``serve``'s, and win."""
    home.mkdir(exist_ok=True)
    (home / "policy.yaml").write_text(policy)
    process = start(home, "--policy", str(home / "policy.yaml"), *options, **environment)

    def look() -> Running | None:
        if process.poll() is not None:
            raise ChildProcessError(f"serve ended with {process.returncode}: {process.communicate()[0]}")
        return read_run(home)

    try:
        serving = Serving(process, home, until(look, "the gateway"))
        threading.Thread(target=_empty, args=(process,), daemon=True).start()
        yield serving
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _empty(process: subprocess.Popen[str]) -> None:
    """Read what the gateway says, so that a full pipe never stops it; show it where a test fails."""
    if process.stdout:
        for line in process.stdout:
            print(line, end="")
        process.stdout.close()


def refused(home: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Start a ``serve`` that must not come up; return its exit code and what it said."""
    process = start(home, *options, **environment)
    try:
        said, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"serve came up, or hung: {said}") from None
    return process.returncode, said


@contextlib.contextmanager
def provider_beside(authority: trustme.CA) -> Iterator[Provider]:
    """Run a scripted provider in a thread, so that blocking clients are answered while a test waits for them."""
    opened: Future[tuple[Provider, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        closing = asyncio.Event()
        async with providers.provider(authority) as told:
            opened.set_result((told, asyncio.get_running_loop(), closing))
            await closing.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    told, loop, closing = opened.result(PATIENCE_S)
    try:
        yield told
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join()


def policy_text(port: int, ca: Path, more: str = "") -> str:
    """Return a policy by which provider hosts are dialled at *port* of this machine."""
    redirects = "".join(f'    "{host}:443": "127.0.0.1:{port}"\n' for host in providers.HOSTS[:8])
    return f"version: 1\nupstream:\n  ca: {ca}\n  connect_to:\n{redirects}{more}"
