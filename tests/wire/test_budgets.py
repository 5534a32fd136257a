"""Budgets hold on the wire: what is spent is what the rows say, and who is near the end goes to a cheaper model."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from mitmgate.dialects.openai_chat import Chat
from support.apis import APIS, OPENAI, Api
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.scripts import answers, begins, closes, in_turn, is_silent, resets
from support.selling import Sells, streamed, used
from support.speech import ASK, ASK_STREAM, CHAT, DONE, HEL, LO, MESSAGES, ROLE, STOP

ACME = 'cf-aig-metadata: {"tenantId": "acme"}'
GLOBEX = 'cf-aig-metadata: {"tenantId": "globex"}'
NANO = 10**9
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"
SIGNED = "authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261124/us-east-1/bedrock/aws4_request, Signature=0"

STEPS = """
budget:
  - name: tenant-day
    per: tenant
    cost: 1 USD
    every: day
    soft: 50 %
    downgrade: {at: 90 %, to: {model: gpt-4o-mini}}
"""


def ask(model: str = "gpt-4o", **more: Any) -> bytes:
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10} | more
    ).encode()


ASKING = Chat().read_request(CHAT, json.loads(ask())).input_tokens_estimate
"""Tokens that ``ask`` is estimated to send."""
ASKING_USD = ASKING * Decimal("0.0000025")
"""What they cost of gpt-4o."""


def left_usd(answer: Answer) -> Decimal:
    return Decimal((answer.header("cf-aig-budget-remaining") or "").partition(";")[0])


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    rows = await gateway.rows(
        1, "select room, rule, action, shadow from policy_events where room != 'usage' order by at"
    )
    return [tuple(row.values()) for row in rows]


@asynccontextmanager
async def spent_up(
    open_gateway: OpenGateway, provider: Provider, policy: str = STEPS, *headers: str
) -> AsyncIterator[Gateway]:
    """Open a gateway by which acme has spent 0.95 of its dollar; afterwards calls use 1,000 tokens in, 500 out."""
    sells = Sells(provider, 0, 95_000)
    async with open_gateway(policy) as gateway:
        await (await gateway.http1()).post(CHAT, ask(), ACME, *headers)
        await gateway.rows(1)
        sells.input_tokens, sells.output_tokens = 1_000, 500
        yield gateway


# -- a cheaper model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_call_of_a_tenant_near_its_end_goes_to_the_small_model(
    open_gateway: OpenGateway, provider: Provider, version: str, stream: bool
) -> None:
    async with spent_up(open_gateway, provider) as gateway:
        answer = await (await gateway.client(version)).post(CHAT, ask(stream=stream, temperature=0.5), ACME)
        rows = await gateway.rows(2)
        seen = await events(gateway)

    sent = json.loads(provider.heard[1].body)
    assert (sent["model"], sent["temperature"], sent["messages"]) == ("gpt-4o-mini", 0.5, json.loads(ASK)["messages"])
    assert (answer.status, answer.complete) == (200, True)
    assert b'"model": "gpt-4o-mini"' in answer.body.replace(b'":"', b'": "')
    assert (answer.header("content-type") or "").startswith("text/event-stream" if stream else "application/json")
    assert answer.header("cf-aig-route") == "downgraded; rule=tenant-day"
    assert answer.header("cf-aig-model") == "gpt-4o-mini"
    assert (rows[1]["request_model"], rows[1]["response_model"]) == ("gpt-4o", "gpt-4o-mini")
    assert rows[1]["cost_nanousd"] == 1_000 * 150 + 500 * 600
    assert seen == [("budget", "tenant-day", "soft", 0), ("budget", "tenant-day", "downgrade", 0)]


async def test_what_a_downgraded_call_cost_is_the_small_models_price(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with spent_up(open_gateway, provider) as gateway:
        client = await gateway.http1()
        before = left_usd(await client.post(CHAT, ask(), ACME))
        await gateway.rows(2)
        after = left_usd(await client.post(CHAT, ask(), ACME))

    assert before - after == Decimal("0.00045")


async def test_only_the_tenant_that_has_spent_it_is_downgraded(open_gateway: OpenGateway, provider: Provider) -> None:
    async with spent_up(open_gateway, provider) as gateway:
        answer = await (await gateway.http1()).post(CHAT, ask(), GLOBEX)

    assert json.loads(provider.heard[1].body)["model"] == "gpt-4o"
    assert answer.header("cf-aig-route") is None


async def test_a_downgraded_call_is_refused_where_even_that_is_too_dear(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with spent_up(open_gateway, provider) as gateway:
        answer = await (await gateway.http1()).post(CHAT, ask(max_tokens=90_000), ACME)
        rows = await gateway.rows(2)

    assert (answer.status, answer.header("cf-aig-source"), len(provider.heard)) == (429, "budget", 1)
    assert (rows[1]["error_type"], rows[1]["cost_nanousd"]) == ("insufficient_quota", 0)


async def test_a_rule_of_route_keeps_its_places_and_gets_the_small_model(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    more = """
targets:
  eu: {provider: openai, base_url: "https://llm.corp.example", headers: {authorization: env:EU_KEY}}
route: [{name: home, match: {model: gpt-4o}, try: [eu]}]
"""
    Sells(provider, 0, 95_000)
    provider.on("/chat/completions", provider.scripts[CHAT])
    async with open_gateway(STEPS + more, env={"EU_KEY": "Bearer sk-eu"}) as gateway:
        client = await gateway.http1()
        for n in (1, 2):
            answer = await client.post(CHAT, ask(), ACME)
            await gateway.rows(n)

    assert [(heard.header("host"), json.loads(heard.body)["model"]) for heard in provider.heard] == [
        ("llm.corp.example", "gpt-4o"),
        ("llm.corp.example", "gpt-4o-mini"),
    ]
    assert (answer.header("cf-aig-provider"), answer.header("cf-aig-route")) == ("eu", "downgraded; rule=tenant-day")


async def test_a_call_may_go_to_another_target_instead(open_gateway: OpenGateway, provider: Provider) -> None:
    policy = (
        STEPS.replace("{model: gpt-4o-mini}", "{target: cheap}")
        + """
targets:
  cheap: {provider: openai, base_url: "https://llm.corp.example/v1", headers: {authorization: env:CHEAP_KEY}}
"""
    )
    Sells(provider, 0, 95_000)
    async with open_gateway(policy, env={"CHEAP_KEY": "Bearer sk-cheap"}) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ask(), ACME, "authorization: Bearer sk-mine")
        await gateway.rows(1)
        answer = await client.post(CHAT, ask(), ACME, "authorization: Bearer sk-mine")

    assert [(heard.header("host"), heard.header("authorization")) for heard in provider.heard] == [
        ("api.openai.com", "Bearer sk-mine"),
        ("llm.corp.example", "Bearer sk-cheap"),
    ]
    assert (answer.header("cf-aig-provider"), answer.header("cf-aig-route")) == ("cheap", "downgraded; rule=tenant-day")


async def test_a_conversation_with_signed_thinking_leaves_byte_for_byte(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    policy = STEPS.replace("gpt-4o-mini", "claude-haiku-4-5")
    thinking = {"type": "thinking", "thinking": "hm", "signature": "EqQBCgIYAhIM"}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [thinking]},
        {"role": "user", "content": "?"},
    ]
    body = json.dumps({"model": "claude-opus-4-1", "max_tokens": 10, "messages": turns}).encode()
    provider.says(MESSAGES, b'{"type": "message", "usage": {"input_tokens": 1, "output_tokens": 1}}')
    async with spent_up(open_gateway, provider, policy) as gateway:
        answer = await (await gateway.http1("api.anthropic.com")).post(MESSAGES, body, ACME)
        rows = await gateway.rows(2)

    assert provider.heard[1].body == body
    assert (answer.status, answer.header("cf-aig-route")) == (200, None)
    assert json.loads(rows[1]["notes"]) == [
        "budget: tenant-day does not downgrade this call: it carries signed thinking of its model"
    ]


async def test_a_signed_request_leaves_byte_for_byte(open_gateway: OpenGateway, provider: Provider) -> None:
    path = "/model/anthropic.claude-3-5-sonnet-20240620-v1:0/converse"
    body = b'{"messages":  [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": 5}}'
    provider.says(path, b'{"output": {}, "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}}')
    async with spent_up(open_gateway, provider) as gateway:
        answer = await (await gateway.http1(BEDROCK)).post(path, body, ACME, SIGNED)
        rows = await gateway.rows(2)

    assert (provider.heard[1].body, provider.heard[1].path) == (body, path)
    assert (answer.status, answer.header("cf-aig-route")) == (200, None)
    assert "its body is signed" in rows[1]["notes"]


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_a_refusal_says_in_the_clients_own_words_which_rule_where_and_when(
    open_gateway: OpenGateway, provider: Provider, api: Api, version: str
) -> None:
    policy = "budget:\n  - {name: month, per: tenant, cost: 0.000001 USD, every: 1 h}"
    async with open_gateway(policy) as gateway:
        answer = await (await gateway.client(version, api.host)).post(api.path, api.ask, ACME)
        row = await gateway.row()
        seen = await events(gateway)

    lines = gateway.chain.policy.text.splitlines()
    [line] = [number for number, text in enumerate(lines, 1) if "name: month" in text]
    message = json.loads(answer.body)["error"]["message"]
    assert message.startswith("Budget month has no room for this call, which may cost 0.0")
    assert "0.000001 USD every 1 h for tenant acme, 0.000001 USD left." in message
    assert message.endswith(f"(rule month, policy.yaml:{line}). (mitmgate row {row['id']})")
    assert (answer.status, answer.header("x-should-retry"), provider.heard) == (429, "false", [])
    assert answer.header("cf-aig-budget-remaining") == "0.000001; rule=month; unit=USD; reset=0"
    assert (row["source"], row["error_type"], row["terminal"]) == ("budget", "insufficient_quota", "refused")
    assert seen == [("budget", "month", "refuse", 0)]


async def test_the_words_of_a_spent_budget_are_those_of_the_provider(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    Sells(provider, 0, 200_000)
    async with open_gateway("budget: [{name: hour, cost: 1 USD, every: 1 h}]") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ask())
        await gateway.rows(1)
        answer = await client.post(CHAT, ask())

    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "is spent: 1 USD every 1 h, 0 USD left. It works again in 1 h" in error["message"]
    assert 3590 < int(answer.header("retry-after") or 0) <= 3600


async def test_calls_at_once_cannot_spend_more_than_there_is(open_gateway: OpenGateway, provider: Provider) -> None:
    Sells(provider, 0, 20_000)
    async with open_gateway("budget: [{name: day, cost: 1 USD, every: day}]") as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, ask(max_tokens=24_000)) for _ in range(50)]
        given = [await call.end() for call in calls]
        rows = await gateway.rows(50)

    assert sum(answer.status == 200 for answer in given) >= 4
    assert sum(row["cost_nanousd"] for row in rows) <= NANO


async def test_hard_record_lets_pass(open_gateway: OpenGateway, provider: Provider) -> None:
    Sells(provider, 0, 200_000)
    async with open_gateway("budget: [{name: day, cost: 1 USD, every: day, hard: record}]") as gateway:
        client = await gateway.http1()
        given = []
        for n in (1, 2):
            given.append(await client.post(CHAT, ask()))
            await gateway.rows(n)
        seen = await events(gateway)

    assert [answer.status for answer in given] == [200, 200]
    assert seen == [("budget", "day", "hard", 0)] * 2


# -- what is counted is what the rows say -----------------------------------------------------------------------------


async def test_after_a_day_of_everything_the_budget_has_what_the_rows_sum_up_to(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(
        CHAT,
        in_turn(
            answers(used("gpt-4o", 1_000, 500)),
            answers(OPENAI.busy, "429 Too Many"),
            resets,
            answers(used("gpt-4o-2024-08-06", 700, 70)),
            begins(*streamed("gpt-4o-mini", 400, 40), then=ends_chunks),
            begins(ROLE, HEL, LO, STOP, DONE, then=ends_chunks),
            begins(ROLE, HEL, then=closes),
            begins(ROLE, HEL, then=is_silent),
            answers(used("gpt-4o", 300, 30)),
        ),
    )
    policy = """
budget: [{name: day, per: tenant, cost: 1 USD, every: day}]
limit: [{name: tokens, per: tenant, tokens: 1000000, every: day}]
cache: [{match: {metadata.kept: present}, ttl: 1 h}]
"""
    async with open_gateway(policy) as gateway:
        client = await gateway.http1()
        retried = ("cf-aig-max-attempts: 3", "cf-aig-retry-delay: 1")
        for body, headers in ((ask(), ()), (ask(), retried), (ASK_STREAM, ()), (ASK_STREAM, ())):
            await client.post(CHAT, body, ACME, *headers)
        await (await gateway.http1()).post(CHAT, ASK_STREAM, ACME)
        left = await (await gateway.http1()).begin(CHAT, ASK_STREAM, ACME)
        await left.body(len(ROLE + HEL))
        left.leave()
        kept = 'cf-aig-metadata: {"tenantId": "acme", "kept": true}'
        client = await gateway.http1()
        for _ in range(3):
            await client.post(CHAT, ask(), kept)
        rows = await gateway.rows(9)
        look = await client.post(CHAT, ask(max_tokens=0), ACME)

    assert [row["usage_source"] for row in rows].count("estimated") == 3
    assert [row["cache_status"] for row in rows].count("HIT") == 2
    cost = sum(row["cost_nanousd"] for row in rows)
    tokens = sum(row["input_tokens"] + row["output_tokens"] for row in rows if row["source"] == "provider")
    assert left_usd(look) == 1 - Decimal(cost) / NANO - ASKING_USD
    assert (look.header("cf-aig-limit-remaining") or "").partition(";")[0] == str(1_000_000 - tokens - ASKING)


async def ends_chunks(_heard: Heard, wire: Wire) -> None:
    await wire.send(b"0\r\n\r\n")


async def test_a_hit_costs_nothing(open_gateway: OpenGateway, provider: Provider) -> None:
    Sells(provider, 0, 60_000)
    async with open_gateway("budget: [{name: day, cost: 1 USD, every: day}]") as gateway:
        client = await gateway.http1()
        given = []
        for n in (1, 2, 3):
            given.append(await client.post(CHAT, ask(), "cf-aig-cache-ttl: 60", "authorization: Bearer sk-1"))
            await gateway.rows(n)

    assert [answer.header("cf-aig-cache-status") for answer in given] == ["MISS", "HIT", "HIT"]
    assert [answer.header("cf-aig-budget-remaining") is None for answer in given] == [False, True, True]


async def test_what_is_spent_outlives_the_gateway(open_gateway: OpenGateway, provider: Provider) -> None:
    given = []
    Sells(provider, 0, 60_000)
    for _ in range(3):
        async with open_gateway("budget: [{name: month, cost: 1 USD, every: month}]") as gateway:
            given.append(await (await gateway.http1()).post(CHAT, ask(max_tokens=1)))
            await gateway.rows(1)

    assert [answer.status for answer in given] == [200, 200, 429]


# -- no price ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unpriced", "status", "acts"),
    [
        ("refuse", 429, [("budget", "day", "refuse", 0)]),
        ("allow", 200, [("budget", "day", "flag", 0)]),
        ("assume 0.01 USD", 200, []),
    ],
)
async def test_a_model_without_a_price_is_what_the_policy_says(
    open_gateway: OpenGateway, provider: Provider, unpriced: str, status: int, acts: list[tuple[Any, ...]]
) -> None:
    Sells(provider, 1_000_000, 1_000_000)
    async with open_gateway(f"budget: [{{name: day, cost: 1 USD, every: day, unpriced: {unpriced}}}]") as gateway:
        client = await gateway.http1()
        answer = await client.post(CHAT, ask("our-own-model"))
        row = await gateway.row()
        seen = await events(gateway)
        look = left_usd(await client.post(CHAT, ask(max_tokens=0)))

    assert (answer.status, seen) == (status, acts)
    assert row["cost_nanousd"] == (None if status == 200 else 0)
    assert (b"openai has no known price for our-own-model" in answer.body) is (status == 429)
    assert look == (Decimal("0.99") if unpriced.startswith("assume") else 1) - ASKING_USD


@pytest.mark.parametrize(("per_token", "counted"), [("0.001", "0.5"), ("0", "0.005")])
async def test_a_price_of_the_requests_own_is_the_rows_and_the_larger_one_the_budgets(
    open_gateway: OpenGateway, provider: Provider, per_token: str, counted: str
) -> None:
    Sells(provider, 0, 500)
    async with open_gateway("budget: [{name: day, cost: 1 USD, every: day}]") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ask(), f'cf-aig-custom-cost: {{"per_token_out": {per_token}}}')
        row = await gateway.row()
        look = left_usd(await client.post(CHAT, ask(max_tokens=0)))

    assert row["cost_nanousd"] == int(Decimal(per_token) * 500 * NANO)
    assert look == 1 - Decimal(counted) - ASKING_USD


async def test_a_budget_that_is_full_takes_nothing_from_those_who_follow(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    go_on = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await go_on.wait()
        await wire.answer(used("gpt-4o", 10, 5))

    provider.on(CHAT, waits)
    policy = """
budget: [{name: day, per: tenant, cost: 1 USD, every: day}]
cache: [{match: {model: gpt-4o}, ttl: 1 h, scope: [provider]}]
"""
    async with open_gateway(policy) as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, ask(max_tokens=90_000), tenant) for tenant in (ACME, GLOBEX, ACME, GLOBEX)]
        await gateway.until(lambda: sum(len(one.listeners) for one in gateway.chain.cache.tapes.values()) == 4)
        go_on.set()
        given = [await call.end() for call in calls]

    assert [answer.status for answer in given] == [200] * 4
    assert [answer.header("cf-aig-budget-remaining") is None for answer in given] == [False, True, True, True]


async def test_a_call_that_its_budget_refuses_is_followed_by_nobody(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    sells = Sells(provider, 0, 200_000)
    policy = """
budget: [{name: day, match: {tenant: acme}, cost: 1 USD, every: day}]
cache: [{match: {model: gpt-4o}, ttl: 1 h, scope: [provider]}]
"""
    async with open_gateway(policy) as gateway:
        client = await gateway.http2()
        await client.post(CHAT, ask(seed=1), ACME)
        await gateway.rows(1)
        sells.output_tokens = 5
        # Sent in one go, so that the second call is here before the first one's refusal is.
        json_body = ("content-type", "application/json")
        streams = [client.start("POST", CHAT, ask(seed=2), json_body, tag(tenant)) for tenant in ("acme", "globex")]
        refused, answered = [await client.answer(stream) for stream in streams]

    assert (refused.status, answered.status) == (429, 200)
    assert answered.header("cf-aig-cache-status") == "MISS"


def tag(tenant: str) -> tuple[str, str]:
    return "cf-aig-metadata", json.dumps({"tenantId": tenant})
