"""Limits hold on the wire: exactly so many go through, whoever is refused is told, and nothing is ever lost."""

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import pytest

from mitmgate.clock import ManualClock
from mitmgate.dialects.openai_chat import Chat
from mitmgate.policy import Policy
from support.apis import ANTHROPIC, APIS, OPENAI, Api
from support.client import Answer, Call
from support.gateway import Gateway, OpenGateway, policy_for
from support.provider import HOSTS, Heard, Provider, Script, Wire
from support.scripts import answers, begins, closes, in_turn, is_silent, resets, streams
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, ROLE, STOP, USAGE

ACME = 'cf-aig-metadata: {"tenantId": "acme"}'
REMAINING = "cf-aig-limit-remaining"


def asks(tokens: int) -> bytes:
    """Return a request that may use *tokens* in all."""
    body: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    asked = Chat().read_request(CHAT, body).input_tokens_estimate
    return json.dumps({**body, "max_tokens": tokens - asked}).encode()


def uses(input_tokens: int, output_tokens: int) -> bytes:
    """Return an answer that used these tokens."""
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return json.dumps({**json.loads(ANSWER), "usage": usage}).encode()


def statuses(given: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in given)


def left(answer: Answer) -> int:
    """Return how many are left, as *answer* says."""
    return int((answer.header(REMAINING) or "").partition(";")[0])


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    rows = await gateway.rows(
        1, "select room, rule, action, shadow from policy_events where room != 'usage' order by at"
    )
    return [tuple(row.values()) for row in rows]


# -- so many, and not one more ----------------------------------------------------------------------------------------


async def test_of_two_hundred_calls_at_once_exactly_sixty_go_through(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("limit: [{name: burst, per: tenant, requests: 60, every: 1 m}]") as gateway:
        clients = [await gateway.http2() for _ in range(4)]
        calls = [await clients[n % 4].begin(CHAT, ASK, ACME) for n in range(200)]
        given = [await call.end() for call in calls]
        other = await clients[0].post(CHAT, ASK, 'cf-aig-metadata: {"tenantId": "globex"}')
        rows = await gateway.rows(201)

    through = [answer for answer in given if answer.status == 200]
    told = [answer for answer in given if answer.status == 429]
    assert (len(through), len(told), other.status) == (60, 140, 200)
    assert len(provider.heard) == 61
    assert sorted(left(answer) for answer in through) == list(range(60))
    assert {answer.header("x-should-retry") for answer in told} == {"true"}
    assert all(0 < int(answer.header("retry-after") or 0) <= 60 for answer in told)
    assert Counter((row["status_code"], row["source"], row["error_type"], row["terminal"]) for row in rows) == {
        (200, "provider", None, "complete"): 61,
        (429, "rate-limit", "rate_limit", "refused"): 140,
    }


async def test_of_five_calls_of_a_hundred_tokens_against_a_hundred_exactly_one_goes_through(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    go_on = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await go_on.wait()
        await wire.answer(uses(20, 37))

    provider.on(CHAT, waits)
    async with open_gateway("limit: [{name: tokens, tokens: 100, every: 1 m}]") as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, asks(100)) for _ in range(5)]
        for call in calls[1:]:
            await call.end()
        go_on.set()
        given = [await call.end() for call in calls]
        await gateway.rows(5)
        too_large = await client.post(CHAT, asks(44))
        fits = await client.post(CHAT, asks(43))
        await gateway.rows(7)
        full = await client.post(CHAT, asks(20))

    assert statuses(given) == {200: 1, 429: 4}
    assert (too_large.status, left(too_large)) == (429, 43)
    assert (fits.status, left(fits)) == (200, 0)
    assert full.status == 429, "57 and 57 were used"


async def test_never_more_calls_at_once_than_the_rule_says(open_gateway: OpenGateway, provider: Provider) -> None:
    under_way: set[Wire] = set()
    most, go_on = [0], asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        under_way.add(wire)
        most.append(len(under_way))
        await go_on.wait()
        under_way.discard(wire)
        await wire.answer(ANSWER)

    provider.on(CHAT, waits)
    async with open_gateway("limit: [{name: parallel, per: tenant, concurrent: 3}]") as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, ASK, ACME) for _ in range(20)]
        told = [await call.end() for call in calls[3:]]
        await gateway.until(lambda: len(under_way) == 3)
        go_on.set()
        given = [await call.end() for call in calls[:3]]
        await gateway.rows(20)
        for _ in range(3):
            for call in [await client.begin(CHAT, ASK, ACME) for _ in range(3)]:
                given.append(await call.end())
            await gateway.rows(len(gateway.settled))

    assert (statuses(told), statuses(given)) == ({429: 17}, {200: 12})
    assert {(answer.header("retry-after-ms"), answer.header("x-should-retry")) for answer in told} == {("1000", "true")}
    assert max(most) == 3


# -- slots come back --------------------------------------------------------------------------------------------------

type End = Callable[[Gateway, Provider, Call], Awaitable[object]]


async def leaves_at_once(_gateway: Gateway, provider: Provider, call: Call) -> None:
    await provider.asked.wait()
    call.leave()


async def leaves_in_the_middle(_gateway: Gateway, _provider: Provider, call: Call) -> None:
    await call.body(len(ROLE + HEL))
    call.leave()


async def waits_for_the_end(_gateway: Gateway, _provider: Provider, call: Call) -> None:
    await call.end()


GOOD = streams(ROLE, HEL, LO, STOP, USAGE, DONE)

ENDS: dict[str, tuple[list[Script], End, tuple[str, ...]]] = {
    "a client leaves before the answer": ([is_silent], leaves_at_once, ()),
    "a client leaves in a stream": ([begins(ROLE, HEL, then=is_silent)], leaves_in_the_middle, ()),
    "an error": ([answers(OPENAI.busy, "500 Failed")], waits_for_the_end, ()),
    "a reset": ([resets], waits_for_the_end, ()),
    "a cut stream": ([begins(ROLE, HEL, then=closes)], waits_for_the_end, ()),
    "a clock": ([is_silent], waits_for_the_end, ("cf-aig-request-timeout: 20",)),
    "retries": ([resets] * 3, waits_for_the_end, ("cf-aig-max-attempts: 3", "cf-aig-retry-delay: 1")),
    "a header that names no target": ([], waits_for_the_end, ("cf-aig-fallback: nowhere",)),
}
"""How a call ends: what the provider does, what the client does, and what it had asked for."""


@pytest.mark.parametrize(("scripts", "end", "headers"), ENDS.values(), ids=ENDS)
async def test_a_slot_is_free_again_after(
    open_gateway: OpenGateway,
    provider: Provider,
    version: str,
    scripts: list[Script],
    end: End,
    headers: tuple[str, ...],
) -> None:
    provider.on(CHAT, in_turn(*scripts, GOOD))
    async with open_gateway("limit: [{name: parallel, concurrent: 1}]") as gateway:
        call = await (await gateway.client(version)).begin(CHAT, ASK_STREAM, *headers)
        await end(gateway, provider, call)
        await gateway.rows(1)
        client = await gateway.client(version)
        again = await client.post(CHAT, ASK_STREAM)
        await gateway.rows(2)
        once_more = await client.post(CHAT, ASK_STREAM)

    assert (again.status, once_more.status) == (200, 200)
    assert left(again) == 0


async def test_a_slot_is_held_until_the_stream_is_over(open_gateway: OpenGateway, provider: Provider) -> None:
    go_on = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE + HEL)
        await go_on.wait()
        await wire.chunk(LO + STOP + USAGE + DONE)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, waits)
    async with open_gateway("limit: [{name: parallel, concurrent: 1}]") as gateway:
        client = await gateway.http2()
        call = await client.begin(CHAT, ASK_STREAM)
        await call.body(len(ROLE + HEL))
        early = await client.post(CHAT, ASK_STREAM)
        go_on.set()
        await call.end()
        await gateway.rows(2)
        late = await client.post(CHAT, ASK_STREAM)

    assert (early.status, late.status) == (429, 200)


# -- what counts ------------------------------------------------------------------------------------------------------


async def test_a_call_that_the_tokens_refuse_costs_no_request(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    policy = "limit: [{name: burst, requests: 2, every: 1 h}, {name: tokens, tokens: 100, every: 1 h}]"
    async with open_gateway(policy) as gateway:
        client = await gateway.http1()
        given = []
        for n, tokens in enumerate([200, 200, 200, 40, 40, 40], 1):
            given.append(await client.post(CHAT, asks(tokens)))
            await gateway.rows(n)

    assert [answer.status for answer in given] == [429, 429, 429, 200, 200, 429]
    assert [json.loads(answer.body)["error"]["message"][:12] for answer in given if answer.status == 429] == [
        "Limit tokens",
        "Limit tokens",
        "Limit tokens",
        "Limit burst ",
    ]


async def test_a_hit_is_a_request_and_no_tokens(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, uses(30, 60))
    policy = "limit: [{name: burst, requests: 3, every: 1 h}, {name: tokens, tokens: 100, every: 1 h}]"
    async with open_gateway(policy) as gateway:
        client = await gateway.http1()
        given = []
        for n in range(1, 5):
            given.append(await client.post(CHAT, asks(100), "cf-aig-cache-ttl: 60", "authorization: Bearer sk-1"))
            await gateway.rows(n)

    assert [(answer.status, answer.header("cf-aig-cache-status")) for answer in given] == [
        (200, "MISS"),
        (200, "HIT"),
        (200, "HIT"),
        (429, None),
    ]
    assert [given[1].header(REMAINING), given[2].header(REMAINING)] == [
        "1; rule=burst; unit=requests; reset=3600",
        "0; rule=burst; unit=requests; reset=3600",
    ]


async def test_whoever_follows_a_call_is_a_request_of_its_own(open_gateway: OpenGateway, provider: Provider) -> None:
    go_on = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await go_on.wait()
        await wire.answer(ANSWER)

    provider.on(CHAT, waits)
    async with open_gateway("limit: [{name: burst, requests: 3, every: 1 h}]") as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, ASK, "cf-aig-cache-ttl: 60", "authorization: Bearer sk-1") for _ in range(5)]
        for call in calls[3:]:
            await call.end()
        go_on.set()
        given = [await call.end() for call in calls]

    assert [answer.status for answer in given] == [200, 200, 200, 429, 429]
    assert len(provider.heard) == 1


async def test_a_retry_is_no_request_of_its_own_and_every_attempt_uses_tokens(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, in_turn(answers(OPENAI.busy, "429 Too Many"), answers(uses(10, 20))))
    policy = "limit: [{name: burst, requests: 2, every: 1 h}, {name: tokens, tokens: 100, every: 1 h}]"
    async with open_gateway(policy + "\nretry: {attempts: 3, delay: 1 ms}") as gateway:
        client = await gateway.http1()
        first = await client.post(CHAT, asks(50))
        await gateway.rows(1)
        second = await client.post(CHAT, asks(70))

    assert (first.status, first.header("cf-aig-attempts")) == (200, "2")
    assert (second.status, second.header(REMAINING)) == (200, "0; rule=burst; unit=requests; reset=3600")


async def test_a_call_without_a_row_counts_like_any_other(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("limit: [{name: burst, requests: 1, every: 1 h}]") as gateway:
        client = await gateway.http1()
        first = await client.post(CHAT, ASK, "cf-aig-collect-log: false")
        second = await client.post(CHAT, ASK, "cf-aig-collect-log: false")

    assert [answer.status for answer in (first, second)] == [200, 429]
    assert second.header("cf-aig-log-id") is None


async def test_what_generates_nothing_is_not_counted(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says("/v1/models", b'{"data": []}')
    provider.says(CHAT, ANSWER)
    async with open_gateway("limit: [{name: burst, requests: 1, every: 1 h}]") as gateway:
        client = await gateway.http1()
        lists = [await client.post("/v1/models", method="GET") for _ in range(3)]
        answer = await client.post(CHAT, ASK)

    assert [one.status for one in (*lists, answer)] == [200] * 4
    assert lists[0].header(REMAINING) is None


# -- what a client is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_a_refusal_says_in_the_clients_own_words_which_rule_where_and_when(
    open_gateway: OpenGateway, provider: Provider, api: Api, version: str
) -> None:
    provider.streams(api.path, [api.stream])
    clock = ManualClock()
    policy = "limit:\n  - {name: burst, per: tenant, requests: 1, every: 1 m}"
    async with open_gateway(policy, clock=clock) as gateway:
        client = await gateway.client(version, api.host)
        await client.post(api.path, api.ask, ACME)
        clock.advance(22.6)
        answer = await client.post(api.path, api.ask, ACME)
        rows = await gateway.rows(2)

    [line] = [number for number, text in enumerate(gateway.chain.policy.text.splitlines(), 1) if "name: burst" in text]
    message = json.loads(answer.body)["error"]["message"]
    assert message == (
        "Limit burst is full: 1 request every 1 m for tenant acme, 0 left. It works again in 38 s "
        f"(rule burst, policy.yaml:{line}). (mitmgate row {rows[1]['id']})"
    )
    assert {name: answer.header(name) for name in ("retry-after", "retry-after-ms", "x-should-retry")} == {
        "retry-after": "38",
        "retry-after-ms": "37400",
        "x-should-retry": "true",
    }
    assert answer.header("cf-aig-source") == "rate-limit"
    assert answer.header("cf-aig-attempts") == "0"
    assert answer.header(REMAINING) == "0; rule=burst; unit=requests; reset=38"
    assert (rows[1]["error_type"], rows[1]["cost_nanousd"], rows[1]["error_detail"]) == (
        "rate_limit",
        0,
        message.rpartition(" (")[0],
    )
    assert await events(gateway) == [("limit", "burst", "refuse", 0)]


async def test_the_answer_of_the_provider_carries_what_is_left(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.streams(CHAT, [OPENAI.stream])
    async with open_gateway("limit: [{name: burst, requests: 5, every: 1 m}]") as gateway:
        client = await gateway.http1()
        given = [await client.post(CHAT, ASK_STREAM) for _ in range(2)]

    assert [answer.header(REMAINING) for answer in given] == [
        "4; rule=burst; unit=requests; reset=60",
        "3; rule=burst; unit=requests; reset=60",
    ]
    assert [answer.body for answer in given] == [OPENAI.stream] * 2


async def test_a_window_slides(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    clock = ManualClock()
    async with open_gateway("limit: [{name: burst, requests: 2, every: 1 m}]", clock=clock) as gateway:
        client = await gateway.http1()
        given = []
        for seconds in (0, 30, 29, 1, 1, 29, 1):
            clock.advance(seconds)
            given.append(await client.post(CHAT, ASK))

    assert [answer.status for answer in given] == [200, 200, 429, 200, 429, 200, 429]


async def test_a_shadow_touches_nothing_and_says_what_it_would_have_done(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("limit: [{name: tight, shadow: true, requests: 1, every: 1 m}]") as gateway:
        client = await gateway.http1()
        given = [await client.post(CHAT, ASK) for _ in range(2)]
        await gateway.rows(2)
        seen = await events(gateway)

    assert [(answer.status, answer.body, answer.header(REMAINING)) for answer in given] == [(200, ANSWER, None)] * 2
    assert seen == [("limit", "tight", "refuse", 1)]


# -- what outlives ----------------------------------------------------------------------------------------------------


def edited(gateway: Gateway, provider: Provider, text: str) -> Policy:
    """Return the policy that *gateway* would have, were its file edited to say *text*."""
    ca = gateway.chain.policy.upstream.ca
    return policy_for(provider.port, None, HOSTS[:10], text, f"ca: {ca}")


async def test_counts_outlive_an_edited_policy(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    rule = "limit: [{{name: burst, requests: {}, every: 1 h}}]"
    async with open_gateway(rule.format(2)) as gateway:
        client = await gateway.http1()
        given = [await client.post(CHAT, ASK) for _ in range(3)]
        gateway.chain.take(edited(gateway, provider, rule.format(3)))
        given += [await client.post(CHAT, ASK) for _ in range(2)]

    assert [answer.status for answer in given] == [200, 200, 429, 200, 429]


async def test_a_call_under_way_settles_by_the_policy_that_it_came_by(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, in_turn(is_silent, answers(ANSWER)))
    rule = "limit: [{{name: parallel, concurrent: 1}}, {{name: burst, requests: {}, every: 1 h}}]"
    async with open_gateway(rule.format(5)) as gateway:
        call = await (await gateway.http1()).begin(CHAT, ASK)
        await provider.asked.wait()
        gateway.chain.take(edited(gateway, provider, rule.format(6)))
        client = await gateway.http1()
        early = await client.post(CHAT, ASK)
        call.leave()
        await gateway.until(lambda: len(gateway.chain.live) == 0)
        late = await client.post(CHAT, ASK)

    assert (early.status, late.status) == (429, 200)
    assert late.header(REMAINING) == "0; rule=parallel; unit=concurrent; reset=0"


async def test_counts_outlive_the_gateway(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    rule = "limit: [{name: burst, requests: 3, every: 1 h}]"
    given = []
    for _ in range(2):
        async with open_gateway(rule) as gateway:
            client = await gateway.http1()
            given += [await client.post(CHAT, ASK) for _ in range(2)]

    assert [answer.status for answer in given] == [200, 200, 200, 429]


async def test_a_locked_ledger_stops_nobody_and_still_counts(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("limit: [{name: burst, requests: 2, every: 1 h}]") as gateway:
        client = await gateway.http1()
        given = [await client.post(CHAT, ASK)]
        with closing(sqlite3.connect(gateway.db.with_name("spend.db"), isolation_level=None)) as other:
            other.execute("begin exclusive")
            given += [await client.post(CHAT, ASK) for _ in range(2)]
            other.execute("rollback")

    assert [answer.status for answer in given] == [200, 200, 429]


async def test_two_apis_share_a_count_that_does_not_part_them(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    provider.streams(ANTHROPIC.path, [ANTHROPIC.stream])
    async with open_gateway("limit: [{name: all, requests: 2, every: 1 h}]") as gateway:
        openai, claude = await gateway.http1(), await gateway.http1(ANTHROPIC.host)
        given = [
            await openai.post(CHAT, ASK),
            await claude.post(ANTHROPIC.path, ANTHROPIC.ask),
            await openai.post(CHAT, ASK),
            await claude.post(ANTHROPIC.path, ANTHROPIC.ask),
        ]

    assert [answer.status for answer in given] == [200, 200, 429, 429]
