"""The same answer again: byte for byte, a stream as a stream, for no money, and without asking anybody."""

import asyncio
import gzip
import json
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner

from mitmgate.cli.cache import cache
from mitmgate.clock import ManualClock
from support.cached import HIT, KEEP, MISS, USAGE_COLUMNS, shown, told
from support.client import Answer, Call
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, MESSAGES, ROLE, STOP, STREAM, USAGE, chunk
from support.voices import HOSTS, Api, Said, stream


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# -- a hit ------------------------------------------------------------------------------------------------------------


async def test_the_second_call_is_a_hit_and_the_provider_hears_nothing_of_it(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.client(version)

    first = await client.post(CHAT, ASK, KEEP)
    second = await client.post(CHAT, ASK, KEEP)

    assert (shown(first), shown(second)) == (MISS, HIT)
    assert (second.status, second.body, second.complete) == (200, ANSWER, True)
    assert second.header("content-length") == str(len(ANSWER))
    assert (second.header("cf-aig-provider"), second.header("cf-aig-step")) == ("openai", "0")
    assert second.header("cf-aig-model") == "gpt-4o-2024-08-06"
    assert len(provider.heard) == 1
    first_row, second_row = await gateway.rows(2)
    assert [answer.header("cf-aig-log-id") for answer in (first, second)] == [first_row["id"], second_row["id"]]


async def test_a_hit_costs_nothing_saves_the_first_price_and_uses_what_the_first_used(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    await client.post(CHAT, ASK, KEEP)
    await client.post(CHAT, ASK, KEEP)

    first, hit = await gateway.rows(2)

    assert (first["source"], first["cache_status"], first["attempts"]) == ("provider", "MISS", 1)
    assert (hit["source"], hit["cache_status"], hit["attempts"]) == ("cache", "HIT", 0)
    assert first["cost_nanousd"] == 9 * 2_500 + 3 * 10_000
    assert (hit["cost_nanousd"], hit["saved_nanousd"]) == (0, first["cost_nanousd"])
    assert first["saved_nanousd"] is None
    assert [hit[name] for name in USAGE_COLUMNS] == [first[name] for name in USAGE_COLUMNS]
    attempts = await gateway.rows(2, "select exchange_id from attempts")
    assert attempts == [{"exchange_id": first["id"]}]


async def test_a_hit_says_how_old_it_is(open_gateway: OpenGateway, provider: Provider, clock: ManualClock) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(clock=clock) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, KEEP)

        clock.advance(42.7)

        assert shown(await client.post(CHAT, ASK, KEEP)) == ("HIT", "42", "cache", "0")


async def test_a_hit_needs_no_provider_and_survives_a_restart(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    provider.streams(CHAT, [*STREAM[:-1], USAGE, DONE])
    async with open_gateway() as gateway:
        first = await (await gateway.client(version)).post(CHAT, ASK_STREAM, KEEP)
        [first_row] = await gateway.rows(1)

    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    async with open_gateway(port=port) as gateway:
        second = await (await gateway.client(version)).post(CHAT, ASK_STREAM, KEEP)
        *_, second_row = await gateway.rows(1)

    assert (second.body, second.header("content-type")) == (b"".join(STREAM), "text/event-stream")
    assert (shown(first), shown(second)[0]) == (MISS, "HIT")
    assert [second_row[name] for name in USAGE_COLUMNS] == [first_row[name] for name in USAGE_COLUMNS]
    assert second_row["saved_nanousd"] == first_row["cost_nanousd"] > 0


# -- streams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speech:
    """A stream as one API has it: where and how it is asked for."""

    api: Api
    path: str
    ask: dict[str, Any]

    def pieces(self, asked: bytes) -> list[bytes]:
        return stream(Said(self.api), asked)


SPEECHES = [
    Speech("chat", CHAT, {"model": "gpt-5-mini", "messages": [], "stream": True}),
    Speech("responses", "/v1/responses", {"model": "gpt-5", "input": "hi", "stream": True}),
    Speech("messages", MESSAGES, {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [], "stream": True}),
    Speech("gemini", "/v1beta/models/gemini-2.5-flash:streamGenerateContent", {"contents": []}),
]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.api)
async def test_a_stream_is_replayed_byte_for_byte_and_booked_alike(
    gateway: Gateway, provider: Provider, version: str, speech: Speech, coding: str
) -> None:
    async def script(heard: Heard, wire: Wire) -> None:
        pieces = speech.pieces(heard.body)
        if coding == "gzip":
            await wire.stream([gzip.compress(piece) for piece in pieces], "text/event-stream", "content-encoding: gzip")
        else:
            await wire.stream(pieces)

    provider.on(speech.path, script)
    body = json.dumps(speech.ask).encode()
    query = "?alt=sse" if speech.api == "gemini" else ""
    client = await gateway.client(version, HOSTS[speech.api])

    first = await client.post(speech.path + query, body, KEEP, "accept-encoding: gzip")
    second = await client.post(speech.path + query, body, KEEP, "accept-encoding: gzip")

    assert (shown(first), shown(second)) == (MISS, HIT)
    assert second.body == plain(first) == b"".join(speech.pieces(body))
    assert (second.status, second.complete, second.header("content-encoding")) == (200, True, None)
    assert second.header("content-type") == first.header("content-type") == "text/event-stream"
    first_row, second_row = await gateway.rows(2)
    assert [second_row[name] for name in USAGE_COLUMNS] == [first_row[name] for name in USAGE_COLUMNS]
    assert (second_row["cost_nanousd"], second_row["saved_nanousd"]) == (0, first_row["cost_nanousd"])
    assert second_row["output_tokens"] == 50
    assert second_row["time_to_first_token_ms"] is not None


def plain(answer: Answer) -> bytes:
    if answer.header("content-encoding") != "gzip":
        return answer.body
    return gzip.decompress(answer.body)


@pytest.mark.parametrize("ask", [ASK, ASK_STREAM], ids=["plain", "stream"])
async def test_a_large_answer_is_replayed_at_its_readers_pace(
    gateway: Gateway, provider: Provider, version: str, ask: bytes
) -> None:
    long = "x" * 1_500_000
    pieces = [ROLE, *(chunk(long[at : at + 10_000]) for at in range(0, len(long), 10_000)), STOP, DONE]
    if ask is ASK:
        provider.says(CHAT, told(long))
    else:
        provider.streams(CHAT, pieces)
    client = await gateway.client(version)

    first = await client.post(CHAT, ask, KEEP)
    second = await client.post(CHAT, ask, KEEP)

    assert (shown(first), shown(second)) == (MISS, HIT)
    assert second.body == first.body == (told(long) if ask is ASK else b"".join(pieces))
    assert second.complete


PAUSE_S = 0.2
LIVE = "cache: [{name: paced, ttl: 1 m, replay: live}]"


async def hesitates(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    await wire.chunk(ROLE + HEL)
    await asyncio.sleep(PAUSE_S)  # time itself is what is recorded here
    await wire.chunk(LO + STOP + DONE)
    await wire.send(b"0\r\n\r\n")


async def test_live_replays_a_stream_at_the_pace_at_which_it_came(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, hesitates)
    now = asyncio.get_running_loop().time
    async with open_gateway(LIVE) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK_STREAM)

        call = await client.begin(CHAT, ASK_STREAM)
        half, half_at = await call.body(len(ROLE + HEL)), now()
        answer = await call.end()

    assert half == ROLE + HEL
    assert now() - half_at >= PAUSE_S / 4  # how fast this machine is just now is no fact
    assert (answer.body, answer.complete, shown(answer)) == (b"".join(STREAM), True, HIT)
    assert len(provider.heard) == 1


@pytest.mark.parametrize(
    ("early", "terminal"),
    [([ROLE, HEL], "client_abort"), ([ROLE, HEL, LO, STOP], "complete")],
    ids=["before", "behind"],
)
async def test_who_leaves_a_live_replay_before_its_finish_has_no_complete_answer(
    open_gateway: OpenGateway,
    provider: Provider,
    clock: ManualClock,
    version: str,
    early: list[bytes],
    terminal: str,
) -> None:
    """The pause is half a minute of the gateway's clock: nobody waits for its end."""
    heard = asyncio.Event()

    async def pauses(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(b"".join(early))
        await heard.wait()
        clock.advance(30)
        await wire.chunk(b"".join(piece for piece in STREAM if piece not in early))
        await wire.send(b"0\r\n\r\n")

    async def begin() -> Call:
        call = await (await gateway.client(version)).begin(CHAT, ASK_STREAM)
        assert await call.body(len(b"".join(early))) == b"".join(early)
        return call

    provider.on(CHAT, pauses)
    async with open_gateway(LIVE, clock=clock) as gateway:
        first = await begin()
        heard.set()
        assert (await first.end()).body == b"".join(STREAM)
        leaves, stays = await begin(), await begin()

        leaves.leave()

        await gateway.until(lambda: len(gateway.settled) == 2)
        x = gateway.settled[-1]
        assert (x.source, x.terminal, len(provider.heard)) == ("cache", terminal, 1)
        assert not stays.over


async def test_who_leaves_a_large_replay_in_the_middle_has_no_complete_answer(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, told("x" * 1_000_000))
    await (await gateway.http1()).post(CHAT, ASK, KEEP)
    client = await gateway.http2()
    client.reads = False
    call = await client.begin(CHAT, ASK, KEEP)
    await call.body(65_535)

    call.leave()

    *_, row = await gateway.rows(2)
    assert (row["source"], row["terminal"]) == ("cache", "client_abort")


async def test_estimated_usage_is_the_same_on_a_hit(gateway: Gateway, provider: Provider) -> None:
    provider.streams(CHAT, STREAM)
    client = await gateway.http1()
    for _ in range(2):
        await client.post(CHAT, ASK_STREAM, KEEP)

    first, hit = await gateway.rows(2)

    assert (first["usage_source"], hit["usage_source"]) == ("estimated", "estimated")
    assert [hit[name] for name in USAGE_COLUMNS] == [first[name] for name in USAGE_COLUMNS]
    assert (hit["cost_nanousd"], hit["saved_nanousd"]) == (0, first["cost_nanousd"])
    assert first["cost_nanousd"] > 0


# -- purging ----------------------------------------------------------------------------------------------------------


async def purge(gateway: Gateway, *which: str) -> str:
    """Purge as a person at another terminal would."""
    await asyncio.to_thread(gateway.chain.state.answers.flush, 5.0)
    command = partial(CliRunner().invoke, cache, ["purge", *which, "--home", str(gateway.home.path)])
    result = await asyncio.to_thread(command)
    assert result.exit_code == 0, result.output
    return result.output


async def test_what_was_purged_beside_a_running_gateway_is_served_no_more(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    await client.post(CHAT, ASK, KEEP)
    assert shown(await client.post(CHAT, ASK, KEEP)) == HIT

    said = await purge(gateway, "--all")

    assert said.startswith("purged 1 answer")
    assert shown(await client.post(CHAT, ASK, KEEP)) == MISS


async def test_purging_one_model_leaves_the_others(gateway: Gateway, provider: Provider) -> None:
    other = ASK.replace(b"gpt-4o", b"gpt-5")
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    for body in (ASK, other):
        await client.post(CHAT, body, KEEP)

    await purge(gateway, "--model", "gpt-5")

    answers = [await client.post(CHAT, body, KEEP) for body in (ASK, other)]
    assert [answer.header("cf-aig-cache-status") for answer in answers] == ["HIT", "MISS"]
