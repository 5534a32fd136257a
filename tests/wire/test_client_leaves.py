"""A client that leaves ends its attempt at once, in whatever phase; what it had got by then is in the row."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from mitmgate.clock import ManualClock
from mitmgate.exchange import Exchange
from support.gateway import Gateway, OpenGateway
from support.hosts import Hosts, is_down
from support.provider import Heard, Provider, Script, Wire
from support.scripts import begins
from support.speech import (
    ASK,
    ASK_CLAUDE,
    ASK_STREAM,
    CHAT,
    CLAUDE_DELTA,
    CLAUDE_START,
    CLAUDE_STOP,
    CLAUDE_TEXT,
    DONE,
    HEL,
    LO,
    MESSAGES,
    ROLE,
    STOP,
    STREAM,
    USAGE,
)


async def is_silent(_heard: Heard, wire: Wire) -> None:
    await wire.silence()


async def stops(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    for piece in (ROLE, HEL, LO):
        await wire.chunk(piece)
    await wire.silence()


async def test_leaving_before_the_body_is_whole_reaches_nobody_and_is_one_row(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def stops_half_way() -> AsyncIterator[bytes]:
        yield ASK[:5]
        await asyncio.Event().wait()

    client = await gateway.client(version)
    call = client.upload(CHAT, stops_half_way(), len(ASK))
    await gateway.until(lambda: bool(gateway.chain.door.arrived))

    call.leave()

    row = await gateway.row()
    assert (row["terminal"], row["status_code"], row["attempts"]) == ("client_abort", None, 0)
    assert provider.heard == []
    assert not gateway.chain.door.arrived


async def test_leaving_while_the_provider_thinks_closes_its_connection(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    provider.on(CHAT, is_silent)
    client = await gateway.client(version)
    call = await client.begin(CHAT, ASK)
    await provider.asked.wait()

    call.leave()

    await asyncio.wait_for(provider.left.wait(), 5)
    row = await gateway.row()
    assert (row["terminal"], row["status_code"], row["attempts"]) == ("client_abort", None, 1)


async def test_leaving_in_the_middle_of_a_stream_closes_the_providers_connection(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    provider.on(CHAT, stops)
    client = await gateway.client(version)
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE + HEL + LO))

    call.leave()

    await asyncio.wait_for(provider.left.wait(), 5)
    row = await gateway.row()
    assert (row["terminal"], row["status_code"]) == ("client_abort", 200)
    assert row["output_tokens"] > 0
    assert row["usage_source"] == "estimated"


async def test_a_row_of_a_client_that_left_has_the_usage_reported_so_far(gateway: Gateway, provider: Provider) -> None:
    async def stops_early(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(CLAUDE_START)
        await wire.chunk(CLAUDE_TEXT)
        await wire.silence()

    provider.on(MESSAGES, stops_early)
    client = await gateway.http1("api.anthropic.com")
    call = await client.begin(MESSAGES, ASK_CLAUDE)
    await call.body(len(CLAUDE_START + CLAUDE_TEXT))

    call.leave()

    row = await gateway.row()
    assert (row["terminal"], row["input_tokens"]) == ("client_abort", 25)


@pytest.mark.parametrize(
    ("host", "path", "ask", "pieces"),
    [
        ("api.openai.com", CHAT, ASK_STREAM, [ROLE, HEL, LO, STOP]),
        ("api.anthropic.com", MESSAGES, ASK_CLAUDE, [CLAUDE_START, CLAUDE_TEXT, CLAUDE_DELTA]),
    ],
)
async def test_a_client_that_leaves_after_the_finish_reason_has_a_complete_answer(
    gateway: Gateway, provider: Provider, version: str, host: str, path: str, ask: bytes, pieces: list[bytes]
) -> None:
    """clients.md point 2: litellm leaves Anthropic streams after ``message_delta``, every time."""

    async def never_ends(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in pieces:
            await wire.chunk(piece)
        await wire.silence()

    provider.on(path, never_ends)
    client = await gateway.client(version, host)
    call = await client.begin(path, ask)
    await call.body(len(b"".join(pieces)))

    call.leave()

    row = await gateway.row()
    assert row["terminal"] == "complete"
    await asyncio.wait_for(provider.left.wait(), 5)


async def test_a_reset_ends_one_stream_of_a_connection_and_no_other(gateway: Gateway, provider: Provider) -> None:
    goes_on = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await goes_on.wait()
        for piece in STREAM[1:]:
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, waits)
    provider.on("/v1/responses", stops)
    client = await gateway.http2()
    stays = await client.begin(CHAT, ASK_STREAM)
    leaves = await client.begin("/v1/responses", ASK_STREAM)
    await stays.body(len(ROLE))
    await leaves.body(len(ROLE))

    leaves.leave()

    await asyncio.wait_for(provider.left.wait(), 5)
    goes_on.set()
    answer = await stays.end()
    assert (answer.body, answer.complete) == (b"".join(STREAM), True)
    rows = {row["path"]: row["terminal"] for row in await gateway.rows(2)}
    assert rows == {CHAT: "complete", "/v1/responses": "client_abort"}


async def test_closing_the_connection_ends_all_its_streams(gateway: Gateway, provider: Provider) -> None:
    provider.on(CHAT, stops)
    client = await gateway.http2()
    calls = [await client.begin(CHAT, ASK_STREAM) for _ in range(3)]
    for call in calls:
        await call.body(len(ROLE))

    client.abort()

    rows = await gateway.rows(3)
    assert [row["terminal"] for row in rows] == ["client_abort"] * 3


async def test_a_client_that_only_half_closes_is_gone(gateway: Gateway, provider: Provider) -> None:
    provider.on(CHAT, is_silent)
    client = await gateway.plain()
    await client.begin(f"/openai{CHAT}", ASK)
    await provider.asked.wait()

    client.writer.write_eof()

    await asyncio.wait_for(provider.left.wait(), 5)
    assert (await gateway.row())["terminal"] == "client_abort"


async def test_both_sides_may_leave_at_once(gateway: Gateway, provider: Provider) -> None:
    leave = asyncio.Event()

    async def cuts(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await leave.wait()
        wire.reset()

    provider.on(CHAT, cuts)
    client = await gateway.http1()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE))

    leave.set()
    call.leave()

    row = await gateway.row()
    assert row["terminal"] in ("client_abort", "truncated")


async def test_drain_reads_to_the_end_and_books_the_whole_usage(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    left = asyncio.Event()

    async def goes_on(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(CLAUDE_START)
        await wire.chunk(CLAUDE_TEXT)
        await left.wait()
        await wire.chunk(CLAUDE_DELTA)
        await wire.chunk(CLAUDE_STOP)
        await wire.send(b"0\r\n\r\n")

    provider.on(MESSAGES, goes_on)
    async with open_gateway(upstream="after_client_leaves: {anthropic: drain}") as gateway:
        client = await gateway.client(version, "api.anthropic.com")
        call = await client.begin(MESSAGES, ASK_CLAUDE)
        await call.body(len(CLAUDE_START + CLAUDE_TEXT))
        [down] = gateway.chain.live

        call.leave()
        await gateway.until(lambda: down.gone)
        left.set()

        row = await gateway.row()
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (25, 15, "reported")
    assert row["status_code"] == 200
    assert not provider.left.is_set()


async def test_drain_before_any_answer_cancels(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(MESSAGES, is_silent)
    async with open_gateway(upstream="after_client_leaves: {anthropic: drain}") as gateway:
        client = await gateway.http1("api.anthropic.com")
        call = await client.begin(MESSAGES, ASK_CLAUDE)
        await provider.asked.wait()

        call.leave()

        await asyncio.wait_for(provider.left.wait(), 5)
        assert (await gateway.row())["terminal"] == "client_abort"


async def test_the_usage_chunk_a_client_did_not_wait_for_is_still_booked(gateway: Gateway, provider: Provider) -> None:
    """clients.md point 2: mistralai and ``llm`` close with the last chunk in flight."""

    async def never_ends(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in (ROLE, HEL, LO, STOP, USAGE, DONE):
            await wire.chunk(piece)
        await wire.silence()

    provider.on(CHAT, never_ends)
    client = await gateway.http1()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE + HEL + LO + STOP + DONE))

    call.leave()

    row = await gateway.row()
    assert (row["terminal"], row["input_tokens"], row["output_tokens"]) == ("complete", 9, 3)


# -- in every phase of an attempt -------------------------------------------------------------------------------------

OPENAI, OTHER = "api.openai.com", "other.example"
SOON_S = 0.1
REST_S = 15.0
RULES = """
targets:
  other: {provider: openai, base_url: "https://other.example"}
hedge: [{name: tail, match: {header.x-hedge: present}, after: 20 ms, to: other, ratio: 100 %}]
retry: {attempts: 3, delay: 5 s, jitter: none}
timeout: {connect: 400 ms}
breaker: {min_requests: 1, failures: 100 %, rest: 15 s}
"""


@dataclass(frozen=True)
class Phase:
    script: Script
    reached: Callable[[Exchange], bool]
    errors: list[str | None]
    """Of each attempt, as its row has them."""
    fields: tuple[str, ...] = ()
    keeps: int = 0
    """Connections that stay open for later calls."""
    tasks: int = 0
    """That work for the call beside its own."""


PHASES = {
    "connect": Phase(is_silent, lambda x: len(x.attempts) == 1, ["cancelled"]),
    "first byte": Phase(is_silent, lambda x: len(x.attempts) == 1, ["cancelled"]),
    "wait before a retry": Phase(is_down, lambda x: x.attempts[0].ended is not None, ["server_error"], keeps=1),
    "hold": Phase(begins(ROLE, then=is_silent), lambda x: x.attempts[0].answer.size > 0, ["cancelled"]),
    "stream before its content": Phase(
        begins(ROLE, then=is_silent), lambda x: x.status == 200, [None], ("cf-aig-max-attempts: 1",)
    ),
    "stream": Phase(begins(ROLE, HEL, then=is_silent), lambda x: x.status == 200, [None]),
    "hedge": Phase(is_silent, lambda x: len(x.attempts) == 2, ["cancelled"] * 2, ("x-hedge: 1",), tasks=2),
}


@dataclass
class Mute:
    """A server that accepts and never says a word: no TLS handshake with it comes to its end."""

    port: int = 0
    asked: int = 0
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self.open += 1
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass
        self.open -= 1
        writer.close()


@pytest.fixture
async def mute() -> AsyncIterator[Mute]:
    told = Mute()
    async with await asyncio.start_server(told.serve, "127.0.0.1", 0) as server:
        told.port = server.sockets[0].getsockname()[1]
        yield told


def at_work() -> int:
    """Return how many tasks run code of the gateway's own."""
    frames = [getattr(task.get_coro(), "cr_frame", None) for task in asyncio.all_tasks()]
    return sum(frame is not None and frame.f_globals["__name__"].startswith("mitmgate.") for frame in frames)


@pytest.mark.parametrize("name", PHASES)
async def test_leaving_ends_every_attempt_at_once_and_gives_the_breakers_probe_back(
    open_gateway: OpenGateway, provider: Provider, mute: Mute, version: str, name: str
) -> None:
    phase, hosts, clock, seen = PHASES[name], Hosts(provider), ManualClock(), list[Exchange]()
    elsewhere = {OPENAI: mute.port} if name == "connect" else {}

    def asked() -> int:
        return mute.asked if elsewhere else hosts.asked[OPENAI]

    def is_quiet() -> bool:
        open_now = mute.open if elsewhere else provider.open_connections
        return not gateway.chain.live and at_work() == idle and open_now == phase.keeps

    hosts.on(OPENAI, CHAT, is_down)
    hosts.on(OTHER, CHAT, is_silent)
    async with open_gateway(RULES, clock=clock, elsewhere=elsewhere) as gateway:
        gateway.chain.rooms.admits.append(seen.append)
        client = await gateway.client(version)
        assert (await client.post(CHAT, ASK_STREAM, "cf-aig-max-attempts: 1")).status >= 503
        await gateway.rows(1)
        idle = at_work()
        hosts.on(OPENAI, CHAT, phase.script)
        clock.advance(REST_S)
        call = await client.begin(CHAT, ASK_STREAM, *phase.fields)  # the probe
        await gateway.until(lambda: asked() == 2 and phase.reached(seen[-1]))
        await gateway.until(lambda: hosts.asked[OTHER] == len(phase.errors) - 1)
        assert at_work() == idle + phase.tasks

        call.leave()

        async with asyncio.timeout(SOON_S):
            await gateway.until(is_quiet)
        row = (await gateway.rows(2))[-1]
        attempts = await gateway.rows(
            2, f"select error_type, duration_ms from attempts where exchange_id = '{row['id']}' order by n"
        )
        clock.advance(REST_S)
        await (await gateway.client(version)).begin(CHAT, ASK_STREAM)
        await gateway.until(lambda: asked() == 3)
    assert (row["terminal"], row["attempts"]) == ("client_abort", len(phase.errors))
    assert [attempt["error_type"] for attempt in attempts] == phase.errors
    assert all(attempt["duration_ms"] is not None for attempt in attempts)
