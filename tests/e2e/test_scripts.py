"""The gateway in mitmproxy's programs: ``mitmdump -s addons/gateway.py``, ``mitmweb -s …``, and ``mitmgate web``."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import sqlite3
import ssl
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.client import PATIENCE_S, Answer, Http1
from support.provider import Provider
from support.serving import ADDONS, clean_environment, policy_text
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, STREAM
from support.web import Page

PROXY_DOOR = "regular@127.0.0.1:0"
BASE_URL_DOOR = "reverse:http://base-url.invalid@127.0.0.1:0"
LISTENS = re.compile(r"listening at 127\.0\.0\.1:(\d+)")
PROXY = re.compile(r"proxy door +http://127\.0\.0\.1:(\d+)")
PAGE = re.compile(r"(?:Web server listening at|mitmweb) +http://127\.0\.0\.1:(\d+)/\?token=(\w+)")
GOOD = ("--set", "connection_strategy=lazy", "--set", "upstream_cert=false")


def free_port() -> int:
    """Return a port that nobody listens on just now: mitmweb cannot say which one it took."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@dataclass
class Running:
    """One of mitmproxy's programs, and what it has said so far."""

    process: Process
    home: Path
    said: str = ""

    async def hear(self, pattern: re.Pattern[str] | str) -> re.Match[str]:
        """Return where *pattern* was said; fail with all that was, where it ends before or takes too long."""
        if self.process.stdout is None:
            raise AssertionError("nothing to listen to")
        async with asyncio.timeout(PATIENCE_S):
            while not (found := re.search(pattern, self.said)):
                line = await self.process.stdout.readline()
                if not line:
                    raise AssertionError(f"it ended before {pattern!r}:\n{self.said}")
                self.said += line.decode()
        return found

    async def port(self) -> int:
        """Return where its door is."""
        return int((await self.hear(f"{LISTENS.pattern}|{PROXY.pattern}")).expand(r"\1\2"))

    async def ask(self, body: bytes) -> Answer:
        """Return the answer of one call through the proxy door."""
        trust = ssl.create_default_context(cafile=str(self.home / "ca" / "bundle.pem"))
        client = await Http1.tunnel(await self.port(), "api.openai.com", trust)
        try:
            return await client.post(CHAT, body, "authorization: Bearer sk-live-1234567890")
        finally:
            await client.close()

    async def stop(self) -> int:
        """Return its exit code after SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        rest, _ = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        self.said += rest.decode()
        return self.process.returncode or 0

    def rows(self) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(self.home / "traces.db")) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("select * from exchanges")]


class Start(Protocol):
    def __call__(self, *command: str) -> AbstractAsyncContextManager[Running]: ...


def script(program: str, *options: str, door: str = PROXY_DOOR) -> tuple[str, ...]:
    """Return the command line of one of mitmproxy's programs with our script."""
    run = f"from mitmproxy.tools.main import {program}; {program}()"
    return ("-c", run, "-s", str(ADDONS / "gateway.py"), "--mode", door, *options)


@pytest.fixture
def start(ca_file: Path, provider: Provider, home_path: Path) -> Start:
    """Return how to start a program of Python; its home and its policy are those of this test."""
    policy = home_path / "policy.yaml"
    policy.write_text(policy_text(provider.port, ca_file))
    ours = {"MITMGATE_HOME": str(home_path), "MITMGATE_POLICY": str(policy)}

    @contextlib.asynccontextmanager
    async def started(*command: str) -> AsyncIterator[Running]:
        if "-s" in command:
            command = (*command, "--set", f"confdir={home_path / 'ca'}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=PIPE, stderr=STDOUT, env=clean_environment(**ours)
        )
        running = Running(process, home_path)
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return started


async def test_mitmdump_is_a_gateway_with_our_script(start: Start, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with start(*script("mitmdump", *GOOD)) as program:
        answer = await program.ask(ASK)

        assert (answer.status, answer.body) == (200, ANSWER)
        assert await program.stop() == 0
        [row] = program.rows()
        assert (row["id"], row["status_code"]) == (answer.header("cf-aig-log-id"), 200)
        assert (row["request_model"], row["terminal"]) == ("gpt-4o", "complete")
        assert "door:" not in program.said
        assert "Traceback" not in program.said


async def test_bytes_that_are_no_http_do_not_get_past_the_gateway_to_a_provider(
    start: Start, provider: Provider
) -> None:
    """mitmproxy's ``rawtcp``, which is on by default, hands on whatever does not begin with a letter."""
    async with start(*script("mitmdump", *GOOD)) as program:
        trust = ssl.create_default_context(cafile=str(program.home / "ca" / "bundle.pem"))
        client = await Http1.tunnel(await program.port(), "api.openai.com", trust)
        client.writer.write(b"\0\0 nonsense HTTP/1.1\r\n\r\n")

        answer = await client.listen().end()

        await client.close()
        assert answer.status == 400
        assert provider.connections == 0


async def test_mitmdump_has_the_base_url_door_too(start: Start, provider: Provider) -> None:
    provider.streams(CHAT, STREAM)
    async with start(*script("mitmdump", *GOOD, door=BASE_URL_DOOR)) as program:
        client = await Http1.plain(await program.port())

        answer = await client.post("/openai/chat/completions", ASK_STREAM)

        await client.close()
        assert (answer.status, answer.body) == (200, b"".join(STREAM))
        assert await program.stop() == 0
        [row] = program.rows()
        assert (row["host"], row["stream"]) == ("api.openai.com", 1)


async def test_mitmweb_shows_the_call_with_our_script(start: Start, provider: Provider) -> None:
    provider.streams(CHAT, STREAM)
    page = ("--set", f"web_port={free_port()}", "--set", "web_open_browser=false")
    async with start(*script("mitmweb", *GOOD, *page)) as program:
        await shows_the_call(program)


async def test_mitmgate_web_shows_the_call_on_the_page_that_it_names(start: Start, provider: Provider) -> None:
    provider.streams(CHAT, STREAM)
    doors = ("--listen", "127.0.0.1:0", "--base-url-listen", "127.0.0.1:0")
    async with start("-m", "mitmgate", "web", *doors, "--web-port", "0") as program:
        await shows_the_call(program)


async def shows_the_call(program: Running) -> None:
    """Make a call and find it on the page; then the program ends well, and the row is there."""
    address = await program.hear(PAGE)

    answer = await program.ask(ASK_STREAM)

    page = Page(int(address[1]), address[2])
    row_id = answer.header("cf-aig-log-id")
    flow = await page.flow()
    assert flow["comment"].startswith("gpt-4o")
    assert flow["comment"].endswith(str(row_id))
    assert flow["marked"] == "⚡"
    assert (await page.content("request"))["view_name"] == "LLM prompt"
    assert (await page.content("response"))["text"].endswith("assistant\n    hello")
    assert "sk-live-1234567890" not in json.dumps(flow)
    assert await program.stop() == 0
    [row] = program.rows()
    assert row["id"] == row_id
    assert "Traceback" not in program.said


async def test_a_page_whose_port_is_taken_is_one_sentence(start: Start) -> None:
    doors = ("--listen", "127.0.0.1:0", "--base-url-listen", "off")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with start("-m", "mitmgate", "web", *doors, "--web-port", str(port)) as program:
            await program.hear(f"127.0.0.1:{port}: Address already in use; give another with --web-port PORT")
            assert await asyncio.wait_for(program.process.wait(), PATIENCE_S) == 1
            assert "Traceback" not in program.said


async def test_each_option_that_defeats_the_gateway_is_warned_about(start: Start) -> None:
    wrong = ("connection_strategy=eager", "stream_large_bodies=1m", "store_streamed_bodies=true", "ssl_insecure=true")
    options = [word for option in wrong for word in ("--set", option)]
    door = "upstream:http://127.0.0.1:9@127.0.0.1:0"
    async with start(*script("mitmdump", *options, door=door)) as program:
        for warning in (*(option.partition("=")[0] for option in wrong), "mode upstream:"):
            await program.hear(f"door: {warning}")


@pytest.mark.parametrize(("door", "warned"), [("regular@0", True), ("regular@127.0.0.1:0", False)])
async def test_a_door_open_to_other_machines_is_warned_about(start: Start, door: str, warned: bool) -> None:
    async with start(*script("mitmdump", "--set", "connection_strategy=eager", door=door)) as program:
        await program.hear("door: connection_strategy")  # said after what the doors are bound to
        assert ("other machines" in program.said) == warned
