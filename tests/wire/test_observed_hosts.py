"""Observed hosts: one span per call, bodies never kept, streamed in both directions as if nobody looked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.gateway import Gateway, OpenGateway
from support.memory import MIB
from support.provider import Heard, Provider, Wire, read_body
from support.speech import STREAM

HOST = "search.corp.example"
POLICY = f'observe: [{{hosts: ["{HOST}"], kind: retrieval}}]'


@pytest.fixture
async def gateway(open_gateway: OpenGateway) -> AsyncIterator[Gateway]:
    async with open_gateway(POLICY) as running:
        yield running


async def spans(gateway: Gateway) -> list[dict[str, Any]]:
    await gateway.until(lambda: not gateway.chain.state.observed.under_way)
    return await gateway.rows(0, "select * from spans")


async def test_a_call_is_one_span_and_no_row(gateway: Gateway, provider: Provider, version: str) -> None:
    provider.says("/query", b'{"matches":[]}')
    client = await gateway.client(version, HOST)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    answer = await client.post(
        "/query", b'{"vector":[1]}', f"traceparent: 00-{trace}-00f067aa0ba902b7-01", "cf-aig-metadata: {}"
    )

    [span] = await spans(gateway)
    assert (answer.status, answer.body) == (200, b'{"matches":[]}')
    assert [name for name, _ in answer.fields if name.lower().startswith("cf-aig")] == []
    assert (span["name"], span["kind"], span["host"], span["status_code"]) == ("retrieval", "client", HOST, 200)
    assert (span["exchange_id"], span["trace_id"], span["parent_span_id"]) == (None, trace, "00f067aa0ba902b7")
    assert span["duration_ms"] > 0
    assert await gateway.rows() == []
    assert await gateway.rows(0, "select * from payloads") == []
    assert provider.heard[0].header("cf-aig-metadata") is None
    assert provider.heard[0].body == b'{"vector":[1]}'


async def test_each_piece_of_an_answer_leaves_before_the_next(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def waits_for_the_client(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        size = 0
        for piece in STREAM:
            await wire.chunk(piece)
            size += len(piece)
            await call.body(size)
        await wire.send(b"0\r\n\r\n")

    provider.on("/stream", waits_for_the_client)
    client = await gateway.client(version, HOST)

    call = await client.begin("/stream", b"{}")

    assert (await call.end()).body == b"".join(STREAM)


async def test_an_upload_goes_on_while_it_arrives(gateway: Gateway, provider: Provider, version: str) -> None:
    first_is_here = asyncio.Event()

    async def reads(heard: Heard, wire: Wire) -> None:
        await wire.reader.readexactly(5)
        first_is_here.set()
        await wire.reader.readexactly(5)
        await wire.answer(b"{}")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.wait_for(first_is_here.wait(), 5)
        yield b" then"

    provider.on("/upload", reads, raw=True)
    client = await gateway.client(version, HOST)

    answer = await client.upload("/upload", pieces(), 10).end()

    assert answer.body == b"{}"


async def test_a_large_call_passes_and_nothing_of_it_is_kept(gateway: Gateway, provider: Provider) -> None:
    body = bytes(4 * MIB)

    async def echoes(heard: Heard, wire: Wire) -> None:
        await wire.answer(await read_body(heard, wire.reader), "200 OK", "application/octet-stream")

    provider.on("/upsert", echoes, raw=True)
    client = await gateway.http1(HOST)

    answer = await client.post("/upsert", body)

    assert answer.body == body
    assert len(await spans(gateway)) == 1


async def test_a_call_that_fails_is_a_span_without_a_status(gateway: Gateway, provider: Provider) -> None:
    async def resets(_heard: Heard, wire: Wire) -> None:
        wire.reset()

    provider.on("/query", resets)
    client = await gateway.http1(HOST)

    await client.post("/query", b"{}")

    [span] = await spans(gateway)
    assert span["status_code"] is None


async def test_a_client_that_leaves_ends_its_call(gateway: Gateway, provider: Provider, version: str) -> None:
    async def is_silent(_heard: Heard, wire: Wire) -> None:
        await wire.silence()

    provider.on("/poll", is_silent)
    client = await gateway.client(version, HOST)
    await client.begin("/poll", method="GET")
    await asyncio.wait_for(provider.asked.wait(), 5)

    client.abort()

    await asyncio.wait_for(provider.left.wait(), 5)
    assert len(await spans(gateway)) == 1


async def test_twenty_calls_of_one_client_connection_are_twenty_spans(gateway: Gateway, provider: Provider) -> None:
    """clients.md point 6: a changed address once made every call open a connection, and the sixth hang."""
    provider.says("/query", b"{}")
    client = await gateway.http1(HOST)

    for _ in range(20):
        assert (await client.post("/query", b"{}")).status == 200

    assert len(await spans(gateway)) == 20
    assert provider.connections == 1


async def test_the_certificate_is_checked(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway(POLICY, trusted=False) as gateway:
        client = await gateway.http1(HOST)

        answer = await client.post("/query", b"{}")

        assert answer.status == 502
        assert provider.heard == []
