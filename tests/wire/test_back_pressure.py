"""The client's pace is the provider's pace, in both directions: nothing piles up in memory, nobody else is slowed."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from mitmgate import layer, sink
from support.gateway import Gateway, OpenGateway
from support.memory import FLAT, MIB, resident
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT

FILES = "/v1/files"
SIZE = 64 * MIB
PIECE = bytes(range(256)) * 256
"""64 KiB."""


async def pieces_of_upload() -> AsyncIterator[bytes]:
    for _ in range(SIZE // len(PIECE)):
        yield PIECE


def hash_of_upload() -> str:
    digest = hashlib.sha256()
    for _ in range(SIZE // len(PIECE)):
        digest.update(PIECE)
    return digest.hexdigest()


# -- answers


class Flood:
    """A stream of events without end, for a client that does not read."""

    def __init__(self) -> None:
        self.sent = 0
        self.stuck = asyncio.Event()
        """Set once the provider's own write had to wait for a while."""

    async def script(self, _heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        event = b"data: " + b"x" * 65528 + b"\n\n"
        while self.sent < 2 * SIZE:
            try:
                async with asyncio.timeout(0.3):
                    await wire.chunk(event)
            except TimeoutError:
                self.stuck.set()
                await wire.silence()
            self.sent += len(event)


async def test_a_client_that_does_not_read_holds_the_provider_up(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    flood = Flood()
    provider.on(CHAT, flood.script)
    provider.says("/v1/responses", ANSWER)
    client = await gateway.client(version)
    before = resident()
    client.reads = False
    call = await client.begin(CHAT, ASK_STREAM)
    client.reads = True

    await asyncio.wait_for(flood.stuck.wait(), 20)

    assert flood.sent < FLAT
    assert resident() - before < FLAT
    neighbour = client if version == "h2" else await gateway.http1()
    assert (await neighbour.post("/v1/responses", ASK)).body == ANSWER
    call.leave()
    await asyncio.wait_for(provider.left.wait(), 5)


async def test_a_client_that_never_reads_is_let_go_after_the_total_limit(
    open_gateway: OpenGateway, provider: Provider, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer, "HEARD_S", 0.05)
    monkeypatch.setattr(sink, "HEARD_S", 0.05)
    provider.on(CHAT, Flood().script)
    async with open_gateway("timeout: {total: 300 ms}") as gateway:
        client = await gateway.client(version)
        client.reads = False
        await client.begin(CHAT, ASK_STREAM)

        row = await gateway.row()

    assert (row["terminal"], row["status_code"]) == ("timeout", 200)


async def test_a_window_shut_for_longer_than_the_idle_limit_cuts_nothing(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    body = PIECE * 64
    provider.streams(CHAT, [body[at : at + 65536] for at in range(0, len(body), 65536)])
    async with open_gateway("timeout: {idle: 50 ms}") as gateway:
        client = await gateway.http2()
        client.reads = False
        call = await client.begin(CHAT, ASK_STREAM)
        assert len(await call.body(65535)) == 65535  # a window, and not a byte more
        await asyncio.sleep(0.3)  # the client's slowness is what is tested: six idle limits

        client.open_window(1)

        answer = await call.end()
    assert (answer.body, answer.complete) == (body, True)


async def test_a_fast_client_gets_a_large_answer_whole_with_memory_flat(gateway: Gateway, provider: Provider) -> None:
    async def floods(_heard: Heard, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // len(PIECE)):
            await wire.send(PIECE)

    provider.on("/v1/files/file-1/content", floods)
    client = await gateway.http1()
    before = resident()
    await client.send("GET", "/v1/files/file-1/content", client.host)
    _, fields = await client.head()
    digest = hashlib.sha256()
    left = SIZE
    while left:
        piece = await client.reader.read(min(left, 65536))
        digest.update(piece)
        left -= len(piece)

    assert ("content-length", str(SIZE)) in fields
    assert digest.hexdigest() == hash_of_upload()
    assert resident() - before < FLAT


async def test_a_client_slower_than_the_idle_limit_is_not_cut(open_gateway: OpenGateway, provider: Provider) -> None:
    body = PIECE * 160
    provider.streams(CHAT, [body[at : at + 65536] for at in range(0, len(body), 65536)])
    async with open_gateway("timeout: {idle: 50 ms}") as gateway:
        client = await gateway.http1()
        await client.send("POST", CHAT, client.host, ASK_STREAM)
        await asyncio.sleep(0.3)  # the client's slowness is what is tested: six idle limits without a read

        answer = await client.receive("POST")

    assert answer.complete
    assert answer.body == body


# -- uploads


async def reads_all(wire: Wire, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        piece = await wire.reader.read(min(size, 65536))
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


async def test_a_large_upload_arrives_whole_with_memory_flat(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def hashes(heard: Heard, wire: Wire) -> None:
        size = int(heard.header("content-length") or 0)
        await wire.answer((await reads_all(wire, size)).encode())

    provider.on(FILES, hashes, raw=True)
    client = await gateway.client(version)
    before = resident()

    answer = await client.upload(FILES, pieces_of_upload(), SIZE).end()

    assert answer.body.decode() == hash_of_upload()
    assert resident() - before < FLAT


async def test_a_provider_that_does_not_read_holds_the_upload_up(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    goes_on = asyncio.Event()

    async def waits(heard: Heard, wire: Wire) -> None:
        await goes_on.wait()
        await wire.answer((await reads_all(wire, int(heard.header("content-length") or 0))).encode())

    provider.on(FILES, waits, raw=True)
    provider.says(CHAT, ANSWER)
    client = await gateway.client(version)
    before = resident()
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for piece in pieces_of_upload():
            sent += len(piece)
            yield piece

    call = client.upload(FILES, counted(), SIZE)
    assert call.sending
    await asyncio.wait({call.sending}, timeout=0.5)  # long enough to send all of it, were it not held up

    assert not call.sending.done()
    assert sent < FLAT
    assert resident() - before < FLAT
    neighbour = client if version == "h2" else await gateway.http1()
    assert (await neighbour.post(CHAT, ASK)).body == ANSWER
    goes_on.set()
    answer = await call.end()
    assert answer.body.decode() == hash_of_upload()


async def test_an_early_413_reaches_a_client_that_is_still_sending(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    body = b'{"error":{"message":"too large","type":"invalid_request_error","param":null,"code":null}}'

    async def refuses(_heard: Heard, wire: Wire) -> None:
        await wire.answer(body, "413 Payload Too Large", "application/json", "connection: close")
        wire.cut()

    provider.on(FILES, refuses, raw=True)
    client = await gateway.client(version)
    heard = asyncio.Event()

    async def goes_on_when_it_has_heard() -> AsyncIterator[bytes]:
        for _ in range(SIZE // len(PIECE) - 16):
            yield PIECE
        await heard.wait()
        for _ in range(16):
            yield PIECE

    call = client.upload(FILES, goes_on_when_it_has_heard(), SIZE)

    assert (await call.head()).status == 413
    assert await call.body(len(body)) == body
    heard.set()
    assert (await call.end()).complete


async def test_a_client_that_leaves_in_the_middle_of_an_upload_closes_the_providers_connection(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    half_way = asyncio.Event()

    async def reads(_heard: Heard, wire: Wire) -> None:
        await wire.reader.readexactly(4 * MIB)
        half_way.set()
        while await wire.reader.read(65536):
            pass

    async def stops_half_way() -> AsyncIterator[bytes]:
        for _ in range(5 * MIB // len(PIECE)):
            yield PIECE
        await half_way.wait()
        await asyncio.Event().wait()

    provider.on(FILES, reads, raw=True)
    client = await gateway.client(version)
    client.upload(FILES, stops_half_way(), SIZE)
    await asyncio.wait_for(half_way.wait(), 5)

    client.abort()

    await asyncio.wait_for(provider.left.wait(), 5)
    assert await gateway.rows() == []


async def test_a_large_call_is_streamed_and_its_row_says_so(gateway: Gateway, provider: Provider, version: str) -> None:
    size = 17 * MIB

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE

    async def answers(heard: Heard, wire: Wire) -> None:
        await reads_all(wire, int(heard.header("content-length") or 0))
        await wire.answer(ANSWER)

    provider.on(CHAT, answers, raw=True)
    client = await gateway.client(version)

    answer = await client.upload(CHAT, pieces(), size, "content-type: application/json").end()

    assert answer.body == ANSWER
    row = await gateway.row()
    assert (row["terminal"], row["input_tokens"], row["request_model"]) == ("complete", 9, None)
    assert any("streamed upload" in note for note in gateway.settled[0].notes)
