"""Whoever leaves a shared answer takes nothing from the others; when the last one leaves, the provider hears it."""

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest

from mitmgate import master
from support.cached import HIT, KEEP, MISS, shown
from support.client import Call
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.sharing import PRICE, Slow, heard_by, tape_of
from support.speech import (
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
    USAGE,
    chunk,
)

SOON_S = 0.1
"""Within this time the provider hears that nobody listens any more."""


@dataclass(frozen=True)
class Phase:
    """How far the answer has come when somebody leaves."""

    name: str
    said: tuple[bytes, ...]
    """By the provider."""
    fields: tuple[str, ...]
    heard: bytes
    """What its clients have got."""
    status: int | None


PHASES = [
    Phase("before the head", (), (), b"", None),
    Phase("in the hold", (ROLE,), ("cf-aig-max-attempts: 2",), b"", None),
    Phase("in the stream", (ROLE, HEL), (), ROLE + HEL, 200),
]


def speaks(provider: Provider, phase: Phase) -> Slow:
    """Have *provider* speak as far as *phase*, and the rest when it may."""
    rest = [piece for piece in (ROLE, HEL, LO, STOP, USAGE, DONE) if piece not in phase.said]
    slow = Slow(list(phase.said), rest) if phase.said else Slow.silent(rest)
    provider.on(CHAT, slow.script)
    return slow


async def begin(gateway: Gateway, provider: Provider, version: str, phase: Phase, count: int) -> list[Call]:
    """Return *count* calls that wait for one answer, which has come as far as *phase*; the first one leads."""
    calls = []
    for n in range(count):
        calls.append(await (await gateway.client(version)).begin(CHAT, ASK_STREAM, KEEP, *phase.fields))
        await heard_by(gateway, n + 1)
    said = len(b"".join(phase.said))
    leader = tape_of(gateway).leader
    await asyncio.wait_for(provider.asked.wait(), 5)
    await gateway.until(lambda: leader.attempts[0].answer.size == said)
    for call in calls:
        await call.until(lambda answer: answer.size == len(phase.heard))
    return calls


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_the_leader_leaves_and_its_followers_get_all_of_it(
    gateway: Gateway, provider: Provider, version: str, phase: Phase
) -> None:
    slow = speaks(provider, phase)
    leader, *followers = await begin(gateway, provider, version, phase, 3)

    leader.leave()
    await heard_by(gateway, 2)
    slow.go_on()
    answers = [await follower.end() for follower in followers]

    assert [(answer.body, answer.complete, shown(answer)) for answer in answers] == [(slow.whole, True, HIT)] * 2
    assert len(provider.heard) == 1
    assert not provider.left.is_set()
    rows = await gateway.rows(3)
    paid = next(row for row in rows if row["attempts"])
    assert (paid["terminal"], paid["status_code"], paid["source"]) == ("client_abort", phase.status, "provider")
    assert (paid["input_tokens"], paid["output_tokens"], paid["usage_source"]) == (9, 3, "reported")
    assert paid["cost_nanousd"] == PRICE
    others = [(row["terminal"], row["cost_nanousd"], row["saved_nanousd"]) for row in rows if row is not paid]
    assert others == [("complete", 0, PRICE)] * 2


@pytest.mark.parametrize(("version", "count"), [("h1", 3), ("h2", 1), ("h2", 3)])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_when_all_have_left_the_provider_hears_it_at_once(
    gateway: Gateway, provider: Provider, version: str, phase: Phase, count: int
) -> None:
    slow = speaks(provider, phase)
    calls = await begin(gateway, provider, version, phase, count)
    under_way = tape_of(gateway)

    for call in calls:
        call.leave()

    await asyncio.wait_for(provider.left.wait(), SOON_S)
    rows = await gateway.rows(count)
    assert [(row["terminal"], row["status_code"]) for row in rows] == [("client_abort", phase.status)] * count
    assert sorted(row["attempts"] for row in rows) == [0] * (count - 1) + [1]
    assert under_way.task is not None
    assert under_way.task.done()
    assert (gateway.chain.cache.tapes, gateway.chain.cache.decisions) == ({}, {})
    attempts = await gateway.rows(count, "select n from attempts")
    assert len(attempts) == 1
    slow.go_on()
    after = await (await gateway.client(version)).post(CHAT, ASK_STREAM, KEEP)
    assert (shown(after), after.body) == (MISS, slow.whole)


async def test_a_follower_that_leaves_takes_nothing_from_the_others(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    slow = speaks(provider, PHASES[2])
    leader, leaves, stays = await begin(gateway, provider, version, PHASES[2], 3)

    leaves.leave()
    await heard_by(gateway, 2)
    slow.go_on()

    assert [(await call.end()).body for call in (leader, stays)] == [slow.whole] * 2
    rows = await gateway.rows(3)
    left = [row for row in rows if row["terminal"] == "client_abort"]
    assert [(row["source"], row["attempts"], row["cost_nanousd"]) for row in left] == [("cache", 0, 0)]
    assert Counter(row["terminal"] for row in rows) == {"complete": 2, "client_abort": 1}
    assert not provider.left.is_set()


async def test_a_reader_that_left_behind_the_finish_reason_has_a_complete_answer(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    phase = Phase("behind the finish", (ROLE, HEL, LO, STOP), (), ROLE + HEL + LO + STOP, 200)
    speaks(provider, phase)
    calls = await begin(gateway, provider, version, phase, 2)

    for call in calls:
        call.leave()

    assert [row["terminal"] for row in await gateway.rows(2)] == ["complete", "complete"]


async def test_a_kill_of_the_leader_is_no_kill_of_its_followers(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    phase = PHASES[2]
    slow = speaks(provider, phase)
    leader, follower = await begin(gateway, provider, version, phase, 2)
    down = next(one for one in gateway.chain.live if one.started and one.flow.id == tape_of(gateway).leader.flow.id)

    down.flow.kill()
    await down.kill()
    killed = await leader.end()
    slow.go_on()

    assert (killed.body, killed.complete) == (ROLE + HEL, False)
    assert ((await follower.end()).body, provider.left.is_set()) == (slow.whole, False)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_gateway_that_stops_ends_all_who_share_and_asks_no_more(
    gateway: Gateway, provider: Provider, phase: Phase
) -> None:
    speaks(provider, phase)
    calls = await begin(gateway, provider, "h2", phase, 3)
    under_way = tape_of(gateway)

    await asyncio.wait_for(master.drain(gateway.engine, gateway.chain.door, 0.05), 5)

    answers = [await call.end() for call in calls]
    rows = await gateway.rows(3)
    await asyncio.wait_for(provider.left.wait(), 5)
    assert {(answer.status, answer.complete) for answer in answers} == {(phase.status or 503, phase.status is None)}
    assert {row["terminal"] for row in rows} == {"failed" if phase.status is None else "truncated"}
    assert under_way.task is not None
    assert under_way.task.done()


async def test_a_follower_that_has_not_read_as_far_as_the_finish_has_no_complete_answer(
    gateway: Gateway, provider: Provider
) -> None:
    """The provider is done long since; what counts is what this client got."""
    long = [chunk("x" * 60_000) for _ in range(40)]
    slow = Slow([ROLE, *long], [STOP, USAGE, DONE])
    provider.on(CHAT, slow.script)
    leader = await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEEP)
    await heard_by(gateway, 1)
    client = await gateway.http2()
    client.reads = False
    follower = await client.begin(CHAT, ASK_STREAM, KEEP)
    await follower.body(65_535)
    slow.go_on()
    assert (await leader.end()).body == slow.whole

    follower.leave()

    rows = await gateway.rows(2)
    assert {(row["source"], row["terminal"]) for row in rows} == {("provider", "complete"), ("cache", "client_abort")}


# -- where the provider bills the whole answer anyway -----------------------------------------------------------------

DRAIN = "after_client_leaves: {anthropic: drain}"


async def begin_claude(gateway: Gateway, version: str) -> Call:
    return await (await gateway.client(version, "api.anthropic.com")).begin(MESSAGES, ASK_CLAUDE, KEEP)


async def test_a_drained_answer_is_booked_whole_and_kept_since_it_is_paid(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    slow = Slow([CLAUDE_START, CLAUDE_TEXT], [CLAUDE_TEXT, CLAUDE_DELTA, CLAUDE_STOP])
    provider.on(MESSAGES, slow.script)
    async with open_gateway(upstream=DRAIN) as gateway:
        calls = [await begin_claude(gateway, version) for _ in range(2)]
        for call in calls:
            await call.body(len(CLAUDE_START + CLAUDE_TEXT))

        for call in calls:
            call.leave()
        await heard_by(gateway, 0)
        slow.go_on()

        rows = await gateway.rows(2)
        after = await (await begin_claude(gateway, version)).end()
    paid = next(row for row in rows if row["attempts"])
    assert (paid["terminal"], paid["input_tokens"], paid["output_tokens"]) == ("client_abort", 25, 15)
    assert paid["usage_source"] == "reported"
    assert not provider.left.is_set()
    assert (shown(after), after.body) == (HIT, slow.whole)


async def test_who_comes_while_an_answer_is_drained_gets_all_of_it(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    slow = Slow([CLAUDE_START], [CLAUDE_TEXT], [CLAUDE_DELTA, CLAUDE_STOP])
    provider.on(MESSAGES, slow.script)
    async with open_gateway(upstream=DRAIN) as gateway:
        leader = await begin_claude(gateway, version)
        await leader.body(len(CLAUDE_START))
        answer = tape_of(gateway).leader.attempts[0].answer
        leader.leave()
        await heard_by(gateway, 0)
        slow.go_on()
        await gateway.until(lambda: answer.size == len(CLAUDE_START + CLAUDE_TEXT))

        late = await begin_claude(gateway, version)
        await heard_by(gateway, 1)
        slow.go_on()

        assert (await late.end()).body == slow.whole
    assert len(provider.heard) == 1
