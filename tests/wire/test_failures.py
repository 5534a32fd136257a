"""What the client gets when the provider fails, and what the row says: one attempt, nothing sent twice."""

import asyncio
import json
import socket
from dataclasses import dataclass

import pytest
import trustme

from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.provider import provider as open_provider
from support.speech import (
    ANSWER,
    ASK,
    ASK_CLAUDE,
    ASK_STREAM,
    CHAT,
    CLAUDE_START,
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

# -- before the first byte


async def resets(_heard: Heard, wire: Wire) -> None:
    wire.reset()


async def closes(_heard: Heard, wire: Wire) -> None:
    wire.cut()


async def is_silent(_heard: Heard, wire: Wire) -> None:
    await wire.silence()


async def talks_nonsense(_heard: Heard, wire: Wire) -> None:
    await wire.send(b"\x16\x03\x01 220 mail.example ESMTP\r\n\r\n")
    await wire.silence()


async def sends_half_an_answer(_heard: Heard, wire: Wire) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
    await wire.send(head.encode() + ANSWER[:50])
    wire.cut()


@pytest.mark.parametrize(
    ("script", "status", "error_type", "terminal"),
    [
        (resets, 502, "reset", "failed"),
        (closes, 502, "reset", "failed"),
        (talks_nonsense, 502, "reset", "failed"),
        (sends_half_an_answer, 502, "reset", "failed"),
        (is_silent, 504, "timeout", "timeout"),
    ],
)
async def test_no_answer_is_an_error_in_the_clients_dialect(
    open_gateway: OpenGateway,
    provider: Provider,
    version: str,
    script: Script,
    status: int,
    error_type: str,
    terminal: str,
) -> None:
    provider.on(CHAT, script)
    async with open_gateway("timeout: {first_byte: 100 ms}") as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    error = json.loads(answer.body)["error"]
    assert answer.status == status
    assert answer.header("content-type") == "application/json"
    assert answer.header("cf-aig-source") == "gateway"
    assert answer.header("cf-aig-attempts") == "1"
    assert "api.openai.com" in error["message"]
    assert row["id"] in answer.body.decode()
    assert (row["status_code"], row["error_type"], row["terminal"]) == (status, error_type, terminal)
    assert (row["attempts"], row["source"]) == (1, "gateway")
    assert len(provider.heard) == 1


async def test_a_provider_that_refuses_is_a_502(open_gateway: OpenGateway, version: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    async with open_gateway(port=port) as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert answer.status == 502
    assert json.loads(answer.body)["error"]["message"]
    assert (row["error_type"], row["terminal"], row["attempts"]) == ("connect", "failed", 1)


async def test_a_provider_that_never_completes_the_handshake_is_a_504(open_gateway: OpenGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:  # accepts by its backlog, never answers the TLS hello
        async with open_gateway("timeout: {connect: 100 ms}", port=bound.getsockname()[1]) as gateway:
            client = await gateway.http1()

            answer = await client.post(CHAT, ASK)

            row = await gateway.row()
    assert answer.status == 504
    assert (row["error_type"], row["terminal"]) == ("timeout", "timeout")


async def test_a_certificate_of_an_unknown_authority_is_a_502_and_nothing_is_sent(open_gateway: OpenGateway) -> None:
    async with open_provider(trustme.CA()) as stranger:
        stranger.says(CHAT, ANSWER)
        async with open_gateway(port=stranger.port) as gateway:
            gateway.engine.options.update(ssl_insecure=True)  # mitmproxy's switch must not reach the pool
            client = await gateway.http1()

            answer = await client.post(CHAT, ASK)

            row = await gateway.row()
    assert answer.status == 502
    assert "certificate" in json.loads(answer.body)["error"]["message"].lower()
    assert row["error_type"] == "connect"
    assert stranger.heard == []


@pytest.mark.parametrize(("path", "form"), [(CHAT, "openai"), (MESSAGES, "anthropic")])
async def test_each_api_gets_its_own_form_of_error(
    open_gateway: OpenGateway, provider: Provider, path: str, form: str
) -> None:
    provider.on(path, resets)
    async with open_gateway() as gateway:
        host = "api.anthropic.com" if form == "anthropic" else "api.openai.com"
        client = await gateway.http1(host)

        answer = await client.post(path, ASK)

    error = json.loads(answer.body)
    assert error["error"]["message"]
    assert (error.get("type") == "error") == (form == "anthropic")


# -- in the middle of a stream


async def cuts(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    for piece in (ROLE, HEL, LO):
        await wire.chunk(piece)
    wire.cut()


async def resets_in_the_middle(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    for piece in (ROLE, HEL, LO):
        await wire.chunk(piece)
    wire.reset()


async def cuts_right_after_the_last_event(_heard: Heard, wire: Wire) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join([ROLE, HEL, STOP, USAGE, DONE])
    await wire.send(head + b"%x\r\n%b\r\n" % (len(body), body))  # everything but the end of the chunks, in one segment
    wire.cut()


@dataclass(frozen=True)
class Break:
    script: Script
    bytes_: bytes
    terminal: str


@pytest.mark.parametrize(
    "case",
    [
        Break(cuts, ROLE + HEL + LO, "truncated"),
        Break(cuts_right_after_the_last_event, ROLE + HEL + STOP + USAGE + DONE, "complete"),
    ],
    ids=lambda case: case.script.__name__,
)
async def test_a_cut_stream_gives_every_byte_and_then_the_break(
    open_gateway: OpenGateway, provider: Provider, version: str, case: Break
) -> None:
    provider.on(CHAT, case.script)
    async with open_gateway("usage: leave") as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK_STREAM)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.complete) == (200, case.bytes_, False)
    assert (row["terminal"], row["status_code"], row["attempts"]) == (case.terminal, 200, 1)
    assert len(provider.heard) == 1


def _has_seen_the_cut(gateway: Gateway) -> bool:
    pool = gateway.chain.upstream.caller.pool
    return pool is not None and not any(one.connected for one in pool.session.connector._acquired)  # type: ignore[union-attr]


async def test_what_had_come_before_the_cut_arrives_also_where_the_client_was_slow(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """The gateway sees the cut while the last event still waits in its buffer."""
    much = b"data: " + b"x" * 335_000 + b"\n\n"  # one window, what the gateway holds for a client, and a little
    stuck = asyncio.Event()

    async def cuts_while_the_client_is_slow(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(much)
        await stuck.wait()
        await wire.chunk(USAGE)
        wire.cut()

    provider.on(CHAT, cuts_while_the_client_is_slow)
    async with open_gateway("usage: leave") as gateway:
        client = await gateway.http2()
        client.reads = False
        call = await client.begin(CHAT, ASK_STREAM)
        await call.body(65535)
        stuck.set()
        await gateway.until(lambda: _has_seen_the_cut(gateway))

        client.open_window(1)

        answer = await call.end()
        row = await gateway.row()
    assert (answer.body, answer.complete) == (much + USAGE, False)
    assert row["input_tokens"] == 9


async def test_an_http2_connection_lives_on_after_one_of_its_streams_was_cut(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, resets_in_the_middle)
    async with open_gateway() as gateway:
        client = await gateway.http2()
        cut = await client.post(CHAT, ASK_STREAM)
        provider.says(CHAT, ANSWER)

        answer = await client.post(CHAT, ASK)

    assert not cut.complete
    assert (answer.status, answer.body) == (200, ANSWER)


async def stops(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    await wire.chunk(ROLE)
    await wire.chunk(HEL)
    await wire.silence()


async def test_a_stream_that_stops_ends_with_an_error_event_after_the_idle_limit(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    provider.on(CHAT, stops)
    async with open_gateway("timeout: {idle: 100 ms}") as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK_STREAM)

        row = await gateway.row()
    rest = answer.body.removeprefix(ROLE + HEL)
    assert len(rest) < len(answer.body)
    assert "silent" in json.loads(rest.partition(b"data: ")[2])["error"]["message"]
    assert b"[DONE]" not in rest
    assert (row["terminal"], row["error_type"], row["status_code"]) == ("timeout", "timeout", 200)
    await asyncio.wait_for(provider.left.wait(), 5)


async def test_comments_and_pings_count_as_life(open_gateway: OpenGateway, provider: Provider) -> None:
    async def pings(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for _ in range(6):
            await wire.chunk(b": ping\n\n")
            await asyncio.sleep(0.05)  # the gap is what is tested: each below the limit, all together above it
        for piece in STREAM:
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, pings)
    async with open_gateway("timeout: {idle: 200 ms}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

    assert answer.complete
    assert answer.body.endswith(b"".join(STREAM))


async def trickles(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    while not wire.reader.gone.is_set():
        await wire.chunk(HEL)
        await asyncio.sleep(0.01)  # a trickle has gaps


async def test_a_stream_that_trickles_on_is_ended_at_the_total_limit(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    provider.on(CHAT, trickles)
    async with open_gateway("timeout: {total: 200 ms}") as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK_STREAM)

        row = await gateway.row()
    assert answer.body.startswith(HEL)
    assert b'"error"' in answer.body
    assert (row["terminal"], row["error_type"]) == ("timeout", "timeout")
    await asyncio.wait_for(provider.left.wait(), 5)


async def test_the_clock_of_one_request_can_be_set_by_its_header(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, is_silent)
    async with open_gateway() as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK, "cf-aig-request-timeout: 80")

    assert answer.status == 504
    assert "0.08 s" in json.loads(answer.body)["error"]["message"]


async def test_mitmproxys_own_idle_limit_does_not_end_a_call(gateway: Gateway, provider: Provider) -> None:
    async def thinks_longer(_heard: Heard, wire: Wire) -> None:
        await asyncio.sleep(1.5)  # its limits are whole seconds
        await wire.answer(ANSWER)

    gateway.engine.options.update(tcp_timeout=1)
    provider.on(CHAT, thinks_longer)
    client = await gateway.http1()

    assert (await client.post(CHAT, ASK)).body == ANSWER


async def test_an_error_answer_of_the_provider_passes_as_it_came(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    body = b'{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
    provider.says(CHAT, body, "429 Too Many Requests", "application/json", "retry-after-ms: 300", "retry-after: 1")
    async with open_gateway() as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert (answer.status, answer.body) == (429, body)
    assert (answer.header("retry-after-ms"), answer.header("retry-after")) == ("300", "1")
    assert (answer.header("cf-aig-source"), row["source"]) == ("provider", "provider")
    assert (row["status_code"], row["terminal"], row["attempts"]) == (429, "complete", 1)
    assert len(provider.heard) == 1


async def test_an_anthropic_stream_that_stops_ends_in_anthropics_words(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async def stops_early(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(CLAUDE_START)
        await wire.chunk(CLAUDE_TEXT)
        await wire.silence()

    provider.on(MESSAGES, stops_early)
    async with open_gateway("timeout: {idle: 100 ms}") as gateway:
        client = await gateway.http1("api.anthropic.com")

        answer = await client.post(MESSAGES, ASK_CLAUDE)

        row = await gateway.row()
    rest = answer.body.removeprefix(CLAUDE_START + CLAUDE_TEXT)
    assert rest.startswith(b"event: error\ndata: ")
    assert row["input_tokens"] == 25
