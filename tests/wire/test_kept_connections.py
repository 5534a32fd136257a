"""Provider connections are kept and shared; one that died while nobody looked costs a client nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from support.gateway import Gateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, CHAT


async def dies_when_used_again(heard: Heard, wire: Wire) -> None:
    """Answer the first request of a connection, drop the second unread: how a stale kept connection looks."""
    if "used" in vars(wire.reader):
        wire.reset()
        return
    vars(wire.reader)["used"] = True
    await wire.answer(ANSWER)


async def dies(_heard: Heard, wire: Wire) -> None:
    wire.reset()


async def test_connections_are_shared_by_all_clients(gateway: Gateway, provider: Provider, version: str) -> None:
    provider.says(CHAT, ANSWER)
    for _ in range(3):
        client = await gateway.client(version)
        await client.post(CHAT, ASK)
        await client.close()

    assert provider.connections == 1
    reused = await gateway.rows(3, "select reused_connection from attempts order by exchange_id")
    assert [row["reused_connection"] for row in reused] == [0, 1, 1]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_kept_connection_that_died_is_replayed_once_and_not_counted(
    gateway: Gateway, provider: Provider, version: str, method: str
) -> None:
    provider.on(CHAT, dies_when_used_again)
    client = await gateway.client(version)
    await client.post(CHAT, ASK, method=method)

    answer = await client.post(CHAT, ASK, method=method)

    assert (answer.status, answer.body) == (200, ANSWER)
    assert [heard.connection for heard in provider.heard] == [0, 0, 1]
    if method == "POST":
        assert answer.header("cf-aig-attempts") == "1"
        attempts = await gateway.rows(2, "select n, error_type from attempts")
        assert attempts == [{"n": 1, "error_type": None}] * 2


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_the_replay_goes_on_a_new_connection_since_its_neighbours_may_be_dead_too(
    gateway: Gateway, provider: Provider, method: str
) -> None:
    both = asyncio.Barrier(2)
    used: set[int] = set()

    async def dies_when_used_again_in_company(heard: Heard, wire: Wire) -> None:
        if heard.connection in used:
            wire.reset()
            return
        used.add(heard.connection)
        if len(used) <= 2:
            await both.wait()
        await wire.answer(ANSWER)

    provider.on(CHAT, dies_when_used_again_in_company)
    client = await gateway.http2()
    warm = [await client.begin(CHAT, ASK) for _ in range(2)]
    for call in warm:
        await call.end()

    answer = await client.post(CHAT, ASK, method=method)

    assert (answer.status, answer.body) == (200, ANSWER)
    assert len(provider.heard) == 4
    assert provider.heard[3].connection == 2


async def test_a_fresh_connection_that_dies_is_not_replayed(gateway: Gateway, provider: Provider) -> None:
    provider.on(CHAT, dies)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK)

    assert answer.status == 502
    assert len(provider.heard) == 1


async def test_there_is_one_replay_and_no_second(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    provider.on("/v1/responses", dies)
    client = await gateway.http1()
    await client.post(CHAT, ASK)

    answer = await client.post("/v1/responses", ASK)

    assert answer.status == 502
    assert [heard.connection for heard in provider.heard] == [0, 0, 1]


async def test_a_streamed_upload_is_not_replayed(gateway: Gateway, provider: Provider) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield bytes(1 << 20)

    provider.says(CHAT, ANSWER)
    provider.on("/v1/files", dies, raw=True)
    client = await gateway.http1()
    await client.post(CHAT, ASK)

    answer = await client.upload("/v1/files", pieces(), 2 << 20).end()

    assert answer.status == 502
    assert [heard.connection for heard in provider.heard] == [0, 0]


async def test_a_half_read_answer_is_not_replayed(gateway: Gateway, provider: Provider) -> None:
    async def begins_and_dies(_heard: Heard, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        wire.cut()

    provider.says(CHAT, ANSWER)
    provider.on("/v1/responses", begins_and_dies)
    client = await gateway.http1()
    await client.post(CHAT, ASK)

    answer = await client.post("/v1/responses", ASK)

    assert answer.status == 502
    assert len(provider.heard) == 2


async def test_fifty_streams_of_one_http2_connection_run_at_once(gateway: Gateway, provider: Provider) -> None:
    together = asyncio.Barrier(50)

    async def waits_for_all(_heard: Heard, wire: Wire) -> None:
        await together.wait()
        await wire.answer(ANSWER)

    provider.on(CHAT, waits_for_all)
    client = await gateway.http2()
    calls = [await client.begin(CHAT, ASK) for _ in range(50)]

    answers = [await call.end() for call in calls]

    assert {(answer.status, answer.body) for answer in answers} == {(200, ANSWER)}
    assert provider.connections == 50
