"""Identical calls in flight share one provider call: each gets all of it, whoever else leaves."""

import asyncio
import gzip
import json
from collections import Counter
from dataclasses import dataclass, field

import pytest

from mitmgate import cache, layer, sink, tape
from support.cached import ERROR, HIT, KEEP, KEY, MISS, shown
from support.client import Answer, Call
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.sharing import PRICE, Slow, heard_by, tape_of
from support.speech import (
    ANSWER,
    ASK,
    ASK_STREAM,
    CHAT,
    DONE,
    HEL,
    LO,
    ROLE,
    STOP,
    STREAM,
    USAGE,
    chunk,
    sse,
)

GZIP = "content-encoding: gzip"


def readable(answer: Answer) -> bytes:
    """Return what *answer* says, its coding undone."""
    return gzip.decompress(answer.body) if answer.header("content-encoding") == "gzip" else answer.body


# -- a thousand at once -----------------------------------------------------------------------------------------------

CROWD = 1000
CONNECTIONS = 20


async def crowd(gateway: Gateway, count: int, ask: bytes) -> list[Call]:
    """Begin *count* identical calls on ``CONNECTIONS`` connections."""
    clients = [await gateway.http2() for _ in range(CONNECTIONS)]
    return [await clients[n % CONNECTIONS].begin(CHAT, ask, KEY, KEEP) for n in range(count)]


async def check_books(gateway: Gateway) -> None:
    """A thousand rows, and one of them paid."""
    rows = await gateway.rows(CROWD)
    assert len(rows) == len({row["id"] for row in rows}) == CROWD
    assert Counter((row["source"], row["cache_status"]) for row in rows) == {
        ("provider", "MISS"): 1,
        ("cache", "HIT"): CROWD - 1,
    }
    assert {row["terminal"] for row in rows} == {"complete"}
    assert {(row["input_tokens"], row["output_tokens"], row["usage_source"]) for row in rows} == {(9, 3, "reported")}
    assert sum(row["cost_nanousd"] for row in rows) == PRICE
    assert sum(row["saved_nanousd"] or 0 for row in rows) == (CROWD - 1) * PRICE
    assert len(await gateway.rows(CROWD, "select * from attempts")) == 1


async def test_a_thousand_identical_calls_make_one_and_are_paid_once(gateway: Gateway, provider: Provider) -> None:
    all_here = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await all_here.wait()
        await wire.answer(ANSWER)

    provider.on(CHAT, waits)
    calls = await crowd(gateway, CROWD, ASK)
    await heard_by(gateway, CROWD)
    all_here.set()

    answers = [await call.end() for call in calls]

    assert {(answer.status, answer.body, answer.complete) for answer in answers} == {(200, ANSWER, True)}
    assert Counter(map(shown, answers)) == {MISS: 1, HIT: CROWD - 1}
    assert len({answer.header("cf-aig-log-id") for answer in answers}) == CROWD
    assert len(provider.heard) == 1
    await check_books(gateway)


async def test_a_thousand_identical_streams_make_one_also_those_that_come_late(
    gateway: Gateway, provider: Provider
) -> None:
    slow = Slow([ROLE, HEL], [LO, STOP, USAGE, DONE])
    provider.on(CHAT, slow.script)
    early = await crowd(gateway, CROWD // 2, ASK_STREAM)
    for call in early:
        await call.body(len(ROLE + HEL))
    late = await crowd(gateway, CROWD // 2, ASK_STREAM)
    for call in late:
        assert await call.body(len(ROLE + HEL)) == ROLE + HEL
    slow.go_on()

    answers = [await call.end() for call in early + late]

    assert {(answer.status, answer.body, answer.complete) for answer in answers} == {(200, slow.whole, True)}
    assert Counter(map(shown, answers)) == {MISS: 1, HIT: CROWD - 1}
    assert len(provider.heard) == 1
    await check_books(gateway)


# -- who follows whom -------------------------------------------------------------------------------------------------


async def test_a_late_joiner_gets_the_stream_from_its_first_byte(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    slow = Slow([ROLE, HEL], [LO, STOP, USAGE, DONE])
    provider.on(CHAT, slow.script)
    leader = await (await gateway.client(version)).begin(CHAT, ASK_STREAM, KEEP)
    await leader.body(len(ROLE + HEL))

    follower = await (await gateway.client(version)).begin(CHAT, ASK_STREAM, KEEP)

    assert await follower.body(len(ROLE + HEL)) == ROLE + HEL
    assert shown(await follower.head()) == HIT
    slow.go_on()
    assert (await follower.end()).body == (await leader.end()).body == slow.whole


async def test_who_comes_when_it_is_over_finds_it_kept(gateway: Gateway, provider: Provider) -> None:
    provider.streams(CHAT, STREAM)
    client = await gateway.http1()

    answers = [await client.post(CHAT, ASK_STREAM, KEEP) for _ in range(3)]

    assert [shown(answer) for answer in answers] == [MISS, HIT, HIT]
    assert (gateway.chain.cache.tapes, gateway.chain.cache.decisions) == ({}, {})


@pytest.mark.parametrize(
    "fields",
    [
        ("authorization: Bearer sk-2", KEEP),
        (KEY, KEEP, "cf-aig-cache-key: v2"),
        (KEY, KEEP, "cf-aig-skip-cache: true"),
        (KEY, KEEP, "cache-control: no-cache"),
        (KEY, "cf-aig-cache-ttl: 0"),
        (KEY,),
    ],
    ids=["another key", "a cache key", "skips the cache", "no-cache", "ttl 0", "no cache at all"],
)
async def test_who_may_not_share_the_answer_asks_for_itself(
    gateway: Gateway, provider: Provider, fields: tuple[str, ...]
) -> None:
    slow = Slow.silent(STREAM)
    provider.on(CHAT, slow.script)
    leader = await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEY, KEEP)
    await heard_by(gateway, 1)

    other = await (await gateway.http1()).begin(CHAT, ASK_STREAM, *fields)
    await gateway.until(lambda: len(provider.heard) == 2)
    slow.go_on()

    assert (await other.end()).body == (await leader.end()).body == slow.whole


async def test_a_policy_may_leave_identical_calls_apart(open_gateway: OpenGateway, provider: Provider) -> None:
    slow = Slow.silent(STREAM)
    provider.on(CHAT, slow.script)
    async with open_gateway("cache_store: {coalesce: false}") as gateway:
        calls = [await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEEP) for _ in range(2)]
        await gateway.until(lambda: len(provider.heard) == 2)
        slow.go_on()

        answers = [await call.end() for call in calls]
        after = await (await gateway.http1()).post(CHAT, ASK_STREAM, KEEP)

    assert [shown(answer) for answer in (*answers, after)] == [MISS, MISS, HIT]


async def test_each_follower_gets_a_coding_that_it_accepts(gateway: Gateway, provider: Provider) -> None:
    goes_on = asyncio.Event()
    coded = gzip.compress(ANSWER)

    async def waits(_heard: Heard, wire: Wire) -> None:
        await goes_on.wait()
        await wire.answer(coded, "200 OK", "application/json", GZIP)

    provider.on(CHAT, waits)
    accepts = ["accept-encoding: gzip", "accept-encoding: gzip", "accept-encoding: identity"]
    calls = [await (await gateway.http1()).begin(CHAT, ASK, KEEP, accept) for accept in accepts]
    await heard_by(gateway, 3)
    goes_on.set()

    answers = [await call.end() for call in calls]

    assert [answer.body for answer in answers] == [coded, coded, ANSWER]
    assert [answer.header("content-encoding") for answer in answers] == ["gzip", "gzip", None]
    assert len(provider.heard) == 1


async def test_a_coding_cut_anywhere_is_undone_for_who_does_not_accept_it(gateway: Gateway, provider: Provider) -> None:
    """The first bytes of a gzip say nothing yet: an empty chunk would end the answer."""
    goes_on = asyncio.Event()
    coded = gzip.compress(b"".join(STREAM))

    async def trickles(_heard: Heard, wire: Wire) -> None:
        await goes_on.wait()
        await wire.stream([coded[at : at + 4] for at in range(0, len(coded), 4)], "text/event-stream", GZIP)

    provider.on(CHAT, trickles)
    calls = [
        await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEEP, accept)
        for accept in ("accept-encoding: gzip", "accept-encoding: identity")
    ]
    await heard_by(gateway, 2)
    goes_on.set()

    answers = [await call.end() for call in calls]

    assert [(answer.complete, readable(answer)) for answer in answers] == [(True, b"".join(STREAM))] * 2


# -- errors -----------------------------------------------------------------------------------------------------------


@dataclass
class Failing:
    """A provider that fails in its own way, when it may."""

    way: str
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, _heard: Heard, wire: Wire) -> None:
        await self.goes_on.wait()
        match self.way:
            case "503" | "429":
                await wire.answer(ERROR, f"{self.way} No", "application/json", "retry-after: 7")
            case "reset":
                wire.reset()
            case "timeout":
                await wire.silence()
            case "cut":
                await wire.stream_head()
                await wire.chunk(ROLE + HEL)
                wire.cut()
            case "event":
                await wire.stream([ROLE, HEL, sse({"error": {"message": "no", "type": "server_error"}})])


@pytest.mark.parametrize(
    ("version", "way", "status", "source", "cache_status"),
    [
        ("h1", "503", 503, "provider", "MISS"),
        ("h2", "429", 429, "provider", "MISS"),
        ("h1", "reset", 502, "gateway", "MISS"),
        ("h2", "timeout", 504, "gateway", "MISS"),
        ("h1", "cut", 200, "cache", "HIT"),
        ("h2", "cut", 200, "cache", "HIT"),
        ("h1", "event", 200, "cache", "HIT"),
    ],
)
async def test_an_error_goes_to_all_who_wait_and_is_not_kept(
    open_gateway: OpenGateway, provider: Provider, version: str, way: str, status: int, source: str, cache_status: str
) -> None:
    failing = Failing(way)
    provider.on(CHAT, failing.script)
    async with open_gateway("timeout: {first_byte: 400 ms}" if way == "timeout" else "") as gateway:
        clients = [await gateway.client(version) for _ in range(3)]
        calls = [await client.begin(CHAT, ASK_STREAM, KEEP) for client in clients]
        await heard_by(gateway, 3)
        failing.goes_on.set()

        first, *others = sorted([await call.end() for call in calls], key=shown_attempts, reverse=True)
        rows = await gateway.rows(3)
        provider.streams(CHAT, STREAM)
        after = await (await gateway.client(version)).post(CHAT, ASK_STREAM, KEEP)

    told = [(answer.status, answer.complete, message_of(answer)) for answer in (first, *others)]
    assert told == [(status, way != "cut", message_of(first))] * 3
    assert shown(first)[0] == "MISS"
    assert [(shown(other)[0], other.header("cf-aig-source")) for other in others] == [(cache_status, source)] * 2
    assert [other.header("cf-aig-attempts") for other in others] == ["0", "0"]
    assert [answer.header("retry-after") for answer in others] == [first.header("retry-after")] * 2
    assert sorted(row["attempts"] for row in rows) == [0, 0, 1]
    assert len({row["terminal"] for row in rows}) == 1
    assert len({row["error_type"] for row in rows}) == 1
    assert {row["cost_nanousd"] for row in rows if not row["attempts"]} <= {0}
    assert (shown(after), len(provider.heard)) == (MISS, 2)


def shown_attempts(answer: Answer) -> str:
    return answer.header("cf-aig-attempts") or ""


def message_of(answer: Answer) -> str:
    """Return what an answer says, less the id of its own row."""
    if answer.header("content-type") != "application/json":
        return answer.body.decode()
    return str(json.loads(answer.body)["error"]["message"]).replace(answer.header("cf-aig-log-id") or "", "ID")


# -- answers larger than what is held ---------------------------------------------------------------------------------


PARTS = [chunk("x" * 8_000) for _ in range(64)]


@pytest.fixture
def most_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how much of an answer is held: less than half of one."""
    most = 100_000
    monkeypatch.setattr(tape, "MOST_BYTES", most)
    return most


async def test_an_answer_larger_than_what_is_held_goes_to_those_who_are_there_and_is_not_kept(
    gateway: Gateway, provider: Provider, version: str, most_bytes: int
) -> None:
    slow = Slow([ROLE], PARTS[:32], [*PARTS[32:], STOP, USAGE, DONE])
    provider.on(CHAT, slow.script)
    calls = [await (await gateway.client(version)).begin(CHAT, ASK_STREAM, KEEP) for _ in range(2)]
    await heard_by(gateway, 2)
    under_way = tape_of(gateway)
    slow.go_on()
    for call in calls:
        await call.body(len(b"".join([ROLE, *PARTS[:32]])))

    late = await (await gateway.client(version)).begin(CHAT, ASK_STREAM, KEEP)
    await gateway.until(lambda: len(provider.heard) == 2)

    assert under_way.size <= most_bytes + len(PARTS[0])
    slow.go_on()
    assert [(await call.end()).body for call in (*calls, late)] == [slow.whole] * 3
    assert shown(await late.head()) == MISS
    after = await (await gateway.client(version)).post(CHAT, ASK_STREAM, KEEP)
    assert (shown(after), len(provider.heard)) == (MISS, 3)


async def test_the_slowest_of_them_sets_the_pace(gateway: Gateway, provider: Provider, most_bytes: int) -> None:
    many = PARTS * 20
    slow = Slow([ROLE], [*many, STOP, DONE])
    provider.on(CHAT, slow.script)
    leader = await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEEP)
    client = await gateway.http2()
    client.reads = False
    follower = await client.begin(CHAT, ASK_STREAM, KEEP)
    await heard_by(gateway, 2)
    under_way = tape_of(gateway)

    slow.go_on()
    await gateway.until(lambda: under_way.size > most_bytes)

    assert under_way.size <= most_bytes + 2**18
    assert not leader.over
    follower.leave()
    assert (await leader.end()).body == slow.whole


@pytest.fixture
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cache, layer, sink):
        monkeypatch.setattr(module, "HEARD_S", 0.05)


async def begin_without_reading(gateway: Gateway) -> Call:
    """Return a call whose client takes one window of its answer, and no more."""
    client = await gateway.http2()
    client.reads = False
    return await client.begin(CHAT, ASK_STREAM, KEEP)


@pytest.mark.usefixtures("_short_grace")
async def test_who_shares_an_answer_and_never_reads_it_is_let_go_after_the_total_limit(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    slow = Slow.silent([ROLE, *PARTS, *PARTS, STOP, DONE])
    provider.on(CHAT, slow.script)
    async with open_gateway("timeout: {total: 300 ms}") as gateway:
        for n in range(2):
            await begin_without_reading(gateway)
            await heard_by(gateway, n + 1)
        slow.go_on()

        rows = await gateway.rows(2)

    assert {(row["source"], row["terminal"], row["status_code"]) for row in rows} == {
        ("provider", "timeout", 200),
        ("cache", "timeout", 200),
    }


@pytest.mark.usefixtures("_short_grace")
async def test_who_has_a_hit_and_never_reads_it_is_let_go_after_the_total_limit(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.streams(CHAT, [ROLE, *PARTS, *PARTS, STOP, DONE])
    async with open_gateway("timeout: {total: 300 ms}") as gateway:
        await (await gateway.http1()).post(CHAT, ASK_STREAM, KEEP)

        await begin_without_reading(gateway)

        *_, row = await gateway.rows(2)
    assert (row["source"], row["terminal"], row["status_code"]) == ("cache", "timeout", 200)
