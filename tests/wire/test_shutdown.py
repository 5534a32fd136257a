"""SIGTERM: the doors close at once, live streams may finish, what is over the grace is cut and gets its row."""

import asyncio
import gc
import json
import os
import signal
from collections.abc import Iterator

import pytest

from mitmgate import master
from support.client import Call
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, ROLE, STREAM


class Waiting:
    """A stream whose end the test lets through."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()

    async def script(self, _heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await self.goes_on.wait()
        for piece in STREAM[1:]:
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")


async def begin(gateway: Gateway, version: str) -> Call:
    """Return a stream of which the first event has come."""
    call = await (await gateway.client(version)).begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE))
    return call


async def closed(gateway: Gateway) -> None:
    """Return once the proxy door takes no connection any more."""
    await gateway.until(lambda: not gateway.engine.addons.get("proxyserver").listen_addrs())


async def test_a_live_stream_finishes_while_the_doors_are_closed(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    stream = Waiting()
    provider.on(CHAT, stream.script)
    call = await begin(gateway, version)

    draining = asyncio.ensure_future(master.drain(gateway.engine, gateway.chain.door, 10))
    await closed(gateway)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", gateway.base_url_port)
    assert not draining.done()
    stream.goes_on.set()
    answer = await call.end()

    await asyncio.wait_for(draining, 5)
    assert (answer.body, answer.complete) == (b"".join(STREAM), True)
    assert (await gateway.row())["terminal"] == "complete"


async def test_a_stream_over_the_grace_is_cut_and_gets_its_row(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    provider.on(CHAT, Waiting().script)
    call = await begin(gateway, version)

    await asyncio.wait_for(master.drain(gateway.engine, gateway.chain.door, 0.05), 5)

    answer = await call.end()
    row = await gateway.row()
    assert (answer.body, answer.complete) == (ROLE, False)
    assert (row["terminal"], row["status_code"]) == ("truncated", 200)
    await asyncio.wait_for(provider.left.wait(), 5)


async def test_a_call_over_the_grace_that_has_no_answer_yet_gets_a_503(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def is_silent(_heard: Heard, wire: Wire) -> None:
        await wire.silence()

    provider.on(CHAT, is_silent)
    call = await (await gateway.client(version)).begin(CHAT, ASK)
    await asyncio.wait_for(provider.asked.wait(), 5)

    await asyncio.wait_for(master.drain(gateway.engine, gateway.chain.door, 0.05), 5)

    answer = await call.end()
    row = await gateway.row()
    assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert json.loads(answer.body)["error"]["message"]
    assert (row["terminal"], row["status_code"]) == ("failed", 503)


async def test_a_client_that_does_not_read_gets_its_row_all_the_same(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "TOLD_S", 0.05)
    provider.streams(CHAT, [bytes(65536)] * 64)
    client = await gateway.http2()
    client.reads = False
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(65535)

    await asyncio.wait_for(master.drain(gateway.engine, gateway.chain.door, 0.05), 5)

    assert (await gateway.row())["terminal"] == "truncated"


async def test_an_idle_connection_is_closed_at_once(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    await client.post(CHAT, ASK)

    await asyncio.wait_for(master.drain(gateway.engine, gateway.chain.door, 10), 5)

    assert await asyncio.wait_for(client.reader.read(), 5) == b""


@pytest.fixture
def _memory_as_before() -> Iterator[None]:
    """``master.run`` tunes the collector of its process, and freezes what is there."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("_memory_as_before")
async def test_one_signal_drains_and_a_second_ends_it_at_once(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, Waiting().script)
    async with open_gateway(run=master.run) as gateway:
        await begin(gateway, "h1")
        os.kill(os.getpid(), signal.SIGTERM)
        await closed(gateway)
        assert not gateway.running.done()

        os.kill(os.getpid(), signal.SIGTERM)

        await asyncio.wait_for(gateway.running, 5)
