"""``policies/saas.yaml`` does over real sockets what its comments say: what tenants may use, and who hears of it."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from mitmgate.clock import ManualClock
from mitmgate.dialects.openai_chat import Chat
from mitmgate.store import key_file
from mitmgate.store.key_file import Made
from support import talks
from support.client import Answer, Client
from support.gateway import Gateway
from support.hosts import carries
from support.policies import OpenPolicy
from support.provider import Heard, Provider, Wire
from support.receiver import Receiver, receiver
from support.scripts import answers, in_turn
from support.selling import Sells, asks, used
from support.speech import CHAT
from support.talks import prose, rounds

PRODUCT = "of-the-product-0123456789"
KEY = f"authorization: Bearer {PRODUCT}"
ENV = {
    "PRODUCT_KEY": PRODUCT,
    "OPENAI_KEY": "openai-secret",
    "OPENAI_SPARE_KEY": "openai-spare-secret",
    "SLACK_WEBHOOK": "https://hooks.slack.example/services/1",
}
NOON = 1_795_608_000.0
"""25 November 2026, 12:00 UTC."""
MIDNIGHT_S, MONTHS_END_S = 12 * 3600, 5 * 86_400 + 12 * 3600
"""From there on."""

PER_MILLION_USD = 10
"""What a million tokens of gpt-5's answers cost."""

REMAINING, ROUTED = "cf-aig-limit-remaining", "cf-aig-route"


def of(tenant: str | None, **tags: str) -> str:
    """Return the tags that our own servers send with a call of *tenant*'s; acme pays, others try."""
    return f"cf-aig-metadata: {json.dumps(({'tenantId': tenant} if tenant else {}) | tags)}"


def spends(usd: float) -> int:
    """Return how many tokens of gpt-5's cost *usd*."""
    return round(usd * 1_000_000 / PER_MILLION_USD)


async def post(client: Client, tenant: str, body: bytes = asks("gpt-5"), **tags: str) -> Answer:
    return await client.post(CHAT, body, KEY, of(tenant, **tags))


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    sql = "select room, rule, action from policy_events where room not in ('usage', 'alert') order by at, rowid"
    return [tuple(row.values()) for row in await gateway.rows(1, sql)]


def refused_by(answer: Answer) -> str:
    """Return the rule that an error names."""
    message = json.loads(answer.body)["error"]["message"]
    return str(message).rpartition("(rule ")[2].partition(",")[0]


def wait_s(answer: Answer) -> int:
    return int(answer.header("retry-after") or 0)


def sent(heard: Heard) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(heard.body)
    return body


# -- who calls --------------------------------------------------------------------------------------------------------


async def test_apps_send_the_gateways_key_where_openais_stood_and_openai_gets_its_own(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    Sells(provider)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        stranger = await client.post(CHAT, asks("gpt-5"), "authorization: Bearer sk-of-a-stranger", of("acme"))
        answer = await post(client, "acme", feature="suggestions", userId="u7")
        refused, row = await gateway.rows(2)

    assert (stranger.status, refused["terminal"], answer.status) == (401, "refused", 200)
    [heard] = provider.heard
    assert heard.header("authorization") in ("Bearer openai-secret", "Bearer openai-spare-secret")
    assert not carries(heard, PRODUCT)
    assert {name: row[name] for name in ("key_name", "tenant", "user", "route", "tier", "sla", "target")} == {
        "key_name": "product",
        "tenant": "acme",
        "user": "u7",
        "route": "suggestions",
        "tier": "large",
        "sla": "paying",
        "target": "openai",
    }


async def test_a_call_of_nobodys_is_a_400(open_policy: OpenPolicy, provider: Provider) -> None:
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        answer = await (await gateway.http1()).post(CHAT, asks("gpt-5"), KEY, of(None, userId="u7"))

    assert (answer.status, provider.heard) == (400, [])
    assert "takes no request without tenant" in json.loads(answer.body)["error"]["message"]


async def test_a_tenants_own_key_says_who_it_is_and_nothing_else_does(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    Sells(provider)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        key = key_file.new_key()
        made = Made(key_file.digest_of(gateway.chain.state.secret, key), "of-initech", "initech", None, (), 0.0, None)
        with closing(key_file.open_file(key_file.beside(gateway.db))) as conn:
            key_file.add(conn, made)
        client = await gateway.http1()
        answer = await client.post(CHAT, asks("gpt-5"), f"authorization: Bearer {key}", of("acme"))
        row = await gateway.row()

    assert (answer.status, row["tenant"], row["sla"], row["key_name"]) == (200, "initech", None, "of-initech")


@pytest.mark.parametrize(
    ("model", "status"), [("gpt-5", 200), ("gpt-5-mini", 200), ("gpt-5-nano", 200), ("gpt-4o", 403), ("o3", 403)]
)
async def test_what_is_not_listed_is_refused_before_it_costs_anything(
    open_policy: OpenPolicy, provider: Provider, model: str, status: int
) -> None:
    Sells(provider)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        answer = await post(client, "acme", asks(model))
        row = await gateway.row()
        later = await post(client, "acme")

    assert (answer.status, row["tier"]) == (status, "large" if model == "gpt-5" else "small" if status == 200 else None)
    assert len(provider.heard) == (2 if status == 200 else 1)
    assert later.header(REMAINING) == "19; rule=parallel; unit=concurrent; reset=0"


async def test_a_key_that_openai_refuses_rests_and_the_spare_one_goes_on(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    async def knows_the_spare(heard: Heard, wire: Wire) -> None:
        if heard.header("authorization") == "Bearer openai-secret":
            await wire.answer(b'{"error":{"message":"no","code":"invalid_api_key"}}', "401 Unauthorized")
        else:
            await wire.answer(used("gpt-5", 10, 5))

    provider.on(CHAT, knows_the_spare)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        given = [await post(client, "acme") for _ in range(3)]
        metrics = gateway.chain.state.metrics.text().decode()

    assert [answer.status for answer in given] == [200] * 3
    assert [heard.header("authorization") for heard in provider.heard].count("Bearer openai-secret") == 1
    assert 'mitmgate_provider_key_state{target="openai",alias="main"} 2' in metrics


async def test_a_call_that_fails_is_tried_once_more(open_policy: OpenPolicy, provider: Provider) -> None:
    provider.on(CHAT, in_turn(answers(b"{}", "503 Busy"), answers(used("gpt-5", 10, 5))))
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        answer = await post(await gateway.http1(), "acme")

    assert (answer.status, answer.header("cf-aig-attempts")) == (200, "2")


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_a_burst_of_a_trial_is_refused_and_slows_nobody_else(open_policy: OpenPolicy, provider: Provider) -> None:
    Sells(provider)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http2()
        given = [await post(client, "initech") for _ in range(61)]
        other = await post(client, "hooli")
        paying = [await post(client, "acme") for _ in range(61)][-1]

    assert Counter(answer.status for answer in given) == {200: 60, 429: 1}
    assert (refused_by(given[-1]), given[-1].header("x-should-retry")) == ("burst-trial", "true")
    assert 0 < wait_s(given[-1]) <= 60
    assert (other.status, paying.status) == (200, 200)
    assert (paying.header(REMAINING) or "").startswith("539; rule=burst-paying; unit=requests; reset=")


async def test_of_one_tenants_batch_twenty_run_at_once_and_the_others_have_room(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    under_way, go_on = [0], asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        under_way[0] += 1
        await go_on.wait()
        await wire.answer(used("gpt-5", 10, 5))

    provider.on(CHAT, waits)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http2()
        batch = [await client.begin(CHAT, asks("gpt-5"), KEY, of("acme")) for _ in range(21)]
        refused = await batch[-1].end()
        other = await client.begin(CHAT, asks("gpt-5"), KEY, of("globex"))
        await gateway.until(lambda: under_way[0] == 21)
        go_on.set()
        given = [await call.end() for call in [*batch[:-1], other]]

    assert (refused.status, refused_by(refused), refused.header("retry-after-ms")) == (429, "parallel", "1000")
    assert [answer.status for answer in given] == [200] * 21


async def test_a_trials_tokens_of_the_day_end_at_midnight_and_a_paying_tenants_do_not(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    Sells(provider, 499_500, 0)
    clock = ManualClock(started_wall=NOON)
    async with open_policy("saas", ENV, "api.openai.com", clock=clock) as gateway:
        client = await gateway.http1()
        for n, tenant in enumerate(("initech", "acme"), 1):
            await post(client, tenant)
            await gateway.rows(n)
        refused, paying = await post(client, "initech"), await post(client, "acme")
        clock.advance(MIDNIGHT_S)
        next_day = await post(client, "initech")

    assert (refused.status, refused_by(refused), wait_s(refused)) == (429, "trial-tokens", MIDNIGHT_S)
    assert refused.header("x-should-retry") == "false"
    assert (paying.status, next_day.status) == (200, 200)


async def test_suggestions_are_counted_for_each_user_hits_included(open_policy: OpenPolicy, provider: Provider) -> None:
    Sells(provider)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        given = [await post(client, "acme", feature="suggestions", userId="u7") for _ in range(21)]
        same_name = await post(client, "globex", feature="suggestions", userId="u7")
        other = await post(client, "acme", feature="suggestions", userId="u8")

    assert Counter(answer.status for answer in given) == {200: 20, 429: 1}
    assert refused_by(given[-1]) == "suggestions-per-user"
    assert (same_name.status, other.status) == (200, 200)


# -- money ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


async def test_a_paying_tenant_near_its_months_money_goes_on_with_the_small_model_and_is_refused_at_the_end(
    open_policy: OpenPolicy, provider: Provider, hook: Receiver
) -> None:
    sells = Sells(provider, 0, spends(165))
    clock = ManualClock(started_wall=NOON)
    async with open_policy("saas", ENV | {"SLACK_WEBHOOK": hook.url}, "api.openai.com", clock=clock) as gateway:
        client = await gateway.http1()
        after_80 = [await post(client, "acme")]
        await gateway.rows(1)
        sells.output_tokens = spends(20)
        after_80.append(await post(client, "acme"))
        await gateway.rows(2)
        sells.output_tokens = 5 * spends(10)  # of the small model, at a fifth of the price
        after_90 = await post(client, "acme")
        other = await post(client, "globex")
        await gateway.rows(4)
        at_the_end = await post(client, "acme", asks("gpt-5", max_tokens=spends(30)))
        rows = await gateway.rows(5)
        acted = await events(gateway)
        for _ in range(2):
            await asyncio.to_thread(gateway.chain.state.alerts.look)
        await asyncio.to_thread(gateway.chain.state.alerts.notifier.wait, 10.0)
        clock.advance(MONTHS_END_S)
        next_month = await post(client, "acme")

    assert [sent(heard)["model"] for heard in provider.heard] == ["gpt-5", "gpt-5", "gpt-5-mini", "gpt-5", "gpt-5"]
    assert [answer.header(ROUTED) for answer in (*after_80, after_90, other, next_month)] == [
        None,
        None,
        "downgraded; rule=tenant-month",
        None,
        None,
    ]
    assert (rows[2]["request_model"], rows[2]["response_model"]) == ("gpt-5", "gpt-5-mini")
    assert rows[2]["cost_nanousd"] == 10 * 10**9
    assert (at_the_end.status, refused_by(at_the_end)) == (429, "tenant-month")
    assert json.loads(at_the_end.body)["error"]["code"] == "insufficient_quota"
    assert (wait_s(at_the_end), at_the_end.header("x-should-retry")) == (MONTHS_END_S, "false")
    assert acted == [
        ("budget", "tenant-month", "soft"),
        ("budget", "tenant-month", "downgrade"),
        ("budget", "tenant-month", "downgrade"),
        ("budget", "tenant-month", "refuse"),
    ]
    assert {(told["alert"], told["state"], *told["per"].values()) for told in hook.messages} == {
        ("tenant-near-its-end", "breach", "acme"),
        ("tenant-refused", "breach", "acme"),
        ("runaway", "breach", "acme"),
        ("runaway", "breach", "globex"),
    }
    [refusal] = [told["text"] for told in hook.messages if told["alert"] == "tenant-refused"]
    assert "budget tenant-month has no room for what was asked" in refusal


async def test_the_house_is_told_and_nobody_is_refused_for_it(
    open_policy: OpenPolicy, provider: Provider, hook: Receiver
) -> None:
    Sells(provider, 0, spends(175))
    async with open_policy("saas", ENV | {"SLACK_WEBHOOK": hook.url}, "api.openai.com") as gateway:
        client = await gateway.http1()
        given = []
        for n, tenant in enumerate(("acme", "globex", "hooli", "initech"), 1):
            given.append(await post(client, tenant))
            await gateway.rows(n)
        acted = await events(gateway)
        await asyncio.to_thread(gateway.chain.state.alerts.look)
        await asyncio.to_thread(gateway.chain.state.alerts.notifier.wait, 10.0)

    assert [answer.status for answer in given] == [200] * 4
    assert [action for _, rule, action in acted if rule == "house-day"] == ["soft", "hard", "hard"]
    assert "house-near-its-end" in {told["alert"] for told in hook.messages}


async def test_a_trial_goes_on_with_the_small_model_from_half_of_its_money_on(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    sells = Sells(provider, 0, spends(2.6))
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        await post(client, "initech")
        await gateway.rows(1)
        sells.output_tokens = 5
        small = await post(client, "initech")
        smallest = await post(client, "initech", asks("gpt-5-nano"))

    assert [sent(heard)["model"] for heard in provider.heard] == ["gpt-5", "gpt-5-mini", "gpt-5-nano"]
    assert (small.header(ROUTED), smallest.header(ROUTED)) == ("downgraded; rule=trial-month", None)


async def test_what_is_spent_is_spent_after_a_restart_too(open_policy: OpenPolicy, provider: Provider) -> None:
    sells = Sells(provider, 0, spends(185))
    given = []
    for _ in range(2):
        async with open_policy("saas", ENV, "api.openai.com") as gateway:
            given.append(await post(await gateway.http1(), "acme"))
            await gateway.rows(1)
        sells.output_tokens = 5

    assert [answer.header(ROUTED) for answer in given] == [None, "downgraded; rule=tenant-month"]


async def test_a_model_without_a_price_is_not_free(open_policy: OpenPolicy, provider: Provider) -> None:
    provider.says("/v1/embeddings", b'{"model": "text-embedding-3-next", "data": [], "usage": {"prompt_tokens": 5}}')
    body = b'{"model": "text-embedding-3-next", "input": "hi"}'
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        paying = await client.post("/v1/embeddings", body, KEY, of("acme"))
        await gateway.rows(1)
        again = await client.post("/v1/embeddings", body, KEY, of("acme"))
        trial = await client.post("/v1/embeddings", body, KEY, of("initech"))

    assert (paying.status, again.status) == (200, 200)
    assert (again.header("cf-aig-budget-remaining") or "").startswith("199.98; rule=tenant-month; unit=USD")
    assert (trial.status, refused_by(trial)) == (429, "trial-month")


# -- what is kept, and what is cut ------------------------------------------------------------------------------------


async def test_a_suggestion_is_kept_for_its_tenant_alone(open_policy: OpenPolicy, provider: Provider) -> None:
    Sells(provider)
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        given = [
            await post(client, tenant, feature=feature)
            for tenant, feature in (
                ("acme", "suggestions"),
                ("acme", "suggestions"),
                ("globex", "suggestions"),
                ("acme", "chat"),
            )
        ]

    assert [answer.header("cf-aig-cache-status") for answer in given] == ["MISS", "HIT", "MISS", None]
    assert len(provider.heard) == 3


async def test_a_long_suggestion_loses_its_oldest_turns_and_a_short_one_gets_a_short_answer(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    Sells(provider)
    long = talks.chat(rounds(90)) | {"model": "gpt-5"}
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        cut = await post(client, "acme", json.dumps(long).encode(), feature="suggestions")
        brief = await post(client, "acme", feature="suggestions")
        chat = await post(client, "acme", json.dumps(long).encode())
        rows = await gateway.rows(3)

    shaped, bounded, whole = map(sent, provider.heard)
    assert Chat().read_request(CHAT, shaped).input_tokens_estimate <= 4000 < rows[0]["prompt_tokens_before"]
    assert (shaped["messages"][0], shaped["messages"][-1]) == (long["messages"][0], long["messages"][-1])
    assert rows[0]["prompt_tokens_after"] <= 4000
    assert bounded["max_completion_tokens"] == 200
    assert whole == long
    assert [answer.header(ROUTED) for answer in (cut, brief, chat)] == [
        "shaped; rule=short-suggestions",
        "shaped; rule=brief-suggestions",
        None,
    ]


async def test_a_trials_endless_conversation_is_cut_and_a_paying_tenants_is_not(
    open_policy: OpenPolicy, provider: Provider
) -> None:
    Sells(provider)
    turns = [*rounds(39, tokens=800)[:-1], talks.Round(39, says=prose(500, "And now?"), answered=False)]
    body = json.dumps(talks.chat(turns) | {"model": "gpt-5"}).encode()
    async with open_policy("saas", ENV, "api.openai.com") as gateway:
        client = await gateway.http1()
        trial, paying = await post(client, "initech", body), await post(client, "acme", body)

    assert Chat().read_request(CHAT, sent(provider.heard[0])).input_tokens_estimate <= 30_000
    assert provider.heard[1].body == body
    assert (trial.header(ROUTED), paying.header(ROUTED)) == ("shaped; rule=long-trials", None)
