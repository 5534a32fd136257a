"""``policies/team.yaml``, behind its corporate proxy, does over real sockets what its comments say."""

import asyncio
import base64
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest

from mitmgate.clock import Clock, ManualClock
from mitmgate.dialects.openai_chat import Chat
from mitmgate.store import key_file
from mitmgate.store.key_file import Made
from support import talks
from support.client import Answer, Client
from support.corporate import corporate
from support.gateway import Gateway
from support.hosts import Hosts, is_down
from support.policies import OpenPolicy
from support.provider import Heard, Provider, Wire
from support.receiver import Receiver, receiver
from support.scripts import answers, in_turn
from support.selling import asks, used
from support.speech import ANSWER, CHAT, CLAUDE_ANSWER, MESSAGES
from support.talks import prose, rounds

SUPPORT = "of-the-support-app-0123456789"
ENV = {
    "SUPPORT_APP_KEY": SUPPORT,
    "AOAI_SA_KEY": "key-of-sa",
    "AOAI_EU_KEY": "key-of-eu",
    "SLACK_WEBHOOK": "https://hooks.slack.example/services/1",
    "PAGER_URL": "https://pager.example/enqueue",
}
OPENAI, CLAUDE, APP = "api.openai.com", "api.anthropic.com", "app-resource.openai.azure.com"
SA, EU, CORP = "aoai-sa.openai.azure.com", "aoai-eu.openai.azure.com", "llm.corp.example"
VERSION = "?api-version=2025-04-01-preview"
AT_SA = f"/openai/deployments/gpt-5/chat/completions{VERSION}"
AT_EU = f"/openai/deployments/gpt-5-eu/chat/completions{VERSION}"
AT_MINI = f"/openai/deployments/gpt-5-mini/chat/completions{VERSION}"

KEY = f"cf-aig-authorization: Bearer {SUPPORT}"
OWN_KEY = "authorization: Bearer sk-of-the-app"
ROUTED = "cf-aig-route"
FAQ, SUGGESTIONS = 'cf-aig-metadata: {"feature": "faq"}', 'cf-aig-metadata: {"feature": "suggestions"}'

NOON = 1_795_608_000.0
"""25 November 2026, 12:00 UTC."""
USD_20 = 2_000_000
"""Tokens of gpt-5's answers that cost so much: as many as a tenant has for a day."""


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


class Team:
    """How to open the policy: everything goes by its corporate proxy."""

    def __init__(self, open_policy: OpenPolicy, provider: Provider) -> None:
        self.open_policy, self.provider = open_policy, provider
        self.proxied: list[str] = []
        """What the proxy was asked."""

    @contextlib.asynccontextmanager
    async def opened(self, clock: Clock | None = None, **env: str) -> AsyncIterator[Gateway]:
        async with corporate("gate:s3cret") as proxy:
            proxy.places = {f"{host}:443": self.provider.port for host in (OPENAI, CLAUDE, APP, SA, EU, CORP)}
            proxy.asked = self.proxied
            async with self.open_policy("team", ENV | {"CORP_PROXY": proxy.url} | env, clock=clock) as gateway:
                yield gateway


@pytest.fixture
def team(open_policy: OpenPolicy, provider: Provider) -> Team:
    return Team(open_policy, provider)


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


async def ask(client: Client, body: bytes = asks("gpt-5"), *fields: str) -> Answer:
    """Ask OpenAI's own host with the app's own key."""
    return await client.post(CHAT, body, KEY, OWN_KEY, *fields)


async def ask_azure(gateway: Gateway, *fields: str, body: bytes = asks("gpt-5"), path: str = AT_SA) -> Answer:
    """Ask with the gateway's key in the place of Azure's."""
    client = await gateway.http1(APP)
    return await client.post(path, body, f"api-key: {SUPPORT}", *fields)


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    sql = "select room, rule, action from policy_events where room not in ('usage', 'alert') order by at, rowid"
    return [tuple(row.values()) for row in await gateway.rows(1, sql)]


def sent(heard: Heard) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(heard.body)
    return body


def refused_by(answer: Answer) -> str:
    message = json.loads(answer.body)["error"]["message"]
    return str(message).rpartition("(rule ")[2].partition(",")[0]


# -- who calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        KEY,
        f"Proxy-Authorization: Basic {base64.b64encode(f'app:{SUPPORT}'.encode()).decode()}",
        f"api-key: {SUPPORT}",
    ],
    ids=["cf-aig-authorization", "Proxy-Authorization", "in the provider's place"],
)
async def test_the_apps_key_is_taken_in_each_place_and_a_target_supplies_azures(
    team: Team, hosts: Hosts, place: str
) -> None:
    hosts.says(SA, AT_SA, ANSWER)
    async with team.opened() as gateway:
        answer = await (await gateway.http1(APP)).post(AT_SA, asks("gpt-5"), place)
        stranger = await (await gateway.http1(APP)).post(AT_SA, asks("gpt-5"), "api-key: of-a-stranger")
        row, _ = await gateway.rows(2)

    [heard] = hosts.provider.heard
    assert (answer.status, stranger.status) == (200, 401)
    assert (heard.sni, heard.header("api-key")) == (SA, "key-of-sa")
    assert not any(SUPPORT.encode() in value for _, value in heard.fields)
    assert (row["key_name"], row["tenant"], row["sla"], row["region"]) == ("support-app", "acme", "gold", "jnb")
    assert team.proxied == [f"CONNECT {SA}:443 HTTP/1.1"]


async def test_a_provider_without_a_target_needs_the_apps_own_key(team: Team, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    async with team.opened() as gateway:
        client = await gateway.http1()
        without = await client.post(CHAT, asks("gpt-4o"), f"authorization: Bearer {SUPPORT}")
        with_it = await ask(client, asks("gpt-4o"))

    assert (without.status, with_it.status) == (401, 200)
    assert [heard.header("authorization") for heard in hosts.provider.heard] == ["Bearer sk-of-the-app"]


@pytest.mark.parametrize(
    ("said", "tenant"),
    [
        (('cf-aig-metadata: {"tenantId": "globex"}', "x-tenant-id: initech"), "globex"),
        (("x-tenant-id: initech",), "initech"),
        ((), None),
    ],
)
async def test_a_key_that_names_no_tenant_leaves_it_to_the_call(
    team: Team, hosts: Hosts, said: tuple[str, ...], tenant: str | None
) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    async with team.opened() as gateway:
        key = key_file.new_key()
        made = Made(key_file.digest_of(gateway.chain.state.secret, key), "of-all", None, None, (), 0.0, None)
        with closing(key_file.open_file(key_file.beside(gateway.db))) as conn:
            key_file.add(conn, made)
        client = await gateway.http1()
        answer = await client.post(CHAT, asks("gpt-4o"), f"cf-aig-authorization: Bearer {key}", OWN_KEY, *said)
        row = await gateway.row()

    assert (answer.status, row["tenant"]) == (200 if tenant else 400, tenant)


# -- what may leave ---------------------------------------------------------------------------------------------------


async def test_guards_block_redact_flag_and_allow_what_they_list(team: Team, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, ANSWER.replace(b"hello", b"Ask jane@corp.example"))
    async with team.opened() as gateway:
        client = await gateway.http1()
        secret = await ask(client, asks("gpt-4o", "It is sk-ant-api03-Ab12Cd34Ef56Gh78Ij90"))
        card = await ask(client, asks("gpt-4o", "Pay with 4111 1111 1111 1111"))
        person = await ask(client, asks("gpt-4o", "Write to john@corp.example"))
        topic = await ask(client, asks("gpt-4o", "What of Project Kestrel?"))
        model = await ask(client, asks("o3"))

    assert [answer.status for answer in (secret, card, person, topic, model)] == [403, 403, 200, 200, 403]
    assert [sent(heard)["messages"][0]["content"] for heard in hosts.provider.heard] == [
        "Write to [email]",
        "What of Project Kestrel?",
    ]
    assert json.loads(person.body)["choices"][0]["message"]["content"] == "Ask [email]"
    assert json.loads(topic.header("cf-aig-dlp") or "")["findings"][0]["policy_ids"] == ["topics"]


# -- limits and money -------------------------------------------------------------------------------------------------


async def test_a_tenant_has_sixty_requests_a_minute_eight_at_once_of_a_model(team: Team, hosts: Hosts) -> None:
    go_on = asyncio.Event()

    async def waits(heard: Heard, wire: Wire) -> None:
        await go_on.wait()
        await wire.answer(used(sent(heard)["model"], 10, 5))

    hosts.on(OPENAI, CHAT, waits)
    async with team.opened() as gateway:
        client = await gateway.http2()
        batch = [await client.begin(CHAT, asks("gpt-4o"), KEY, OWN_KEY) for _ in range(9)]
        ninth = await batch[-1].end()
        other = await client.begin(CHAT, asks("gpt-5-mini"), KEY, OWN_KEY)
        go_on.set()
        given = [await call.end() for call in [*batch[:-1], other]]
        await gateway.rows(10)
        given += [await ask(client, asks("gpt-4o")) for _ in range(52)]

    assert (ninth.status, refused_by(ninth)) == (429, "parallel")
    assert Counter(answer.status for answer in given) == {200: 60, 429: 1}
    assert refused_by(given[-1]) == "burst"


async def test_a_tenants_tokens_of_a_day_last_until_midnight(team: Team, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, used("gpt-4o", 1_999_500, 0))
    async with team.opened(ManualClock(started_wall=NOON)) as gateway:
        client = await gateway.http1()
        first = await ask(client, asks("gpt-4o", max_tokens=100))
        await gateway.rows(1)
        short, long = [await ask(client, asks("gpt-4o", max_tokens=tokens)) for tokens in (100, 600)]

    assert [answer.status for answer in (first, short, long)] == [200, 200, 429]
    assert (refused_by(long), long.header("retry-after")) == ("daily-tokens", str(12 * 3600))


async def test_a_tenants_day_of_money_is_told_at_80_and_goes_to_the_small_model_at_90_on_azure_too(
    team: Team, hosts: Hosts, hook: Receiver
) -> None:
    hosts.on(
        SA,
        AT_SA,
        in_turn(answers(used("gpt-5", 0, USD_20 * 8 // 10)), answers(used("gpt-5", 0, USD_20 * 15 // 100))),
    )
    hosts.says(SA, AT_MINI, used("gpt-5-mini", 0, 500))
    async with team.opened(ManualClock(started_wall=NOON), SLACK_WEBHOOK=hook.url) as gateway:
        given = []
        for n in range(1, 4):
            given.append(await ask_azure(gateway))
            await gateway.rows(n)
        large = await ask_azure(gateway, body=asks("gpt-5", max_tokens=3 * USD_20))
        small = await ask_azure(gateway, body=asks("gpt-5-mini"), path=AT_MINI)
        acted = await events(gateway)
        rows = await gateway.rows(5)
        await asyncio.to_thread(gateway.chain.state.alerts.look)
        await asyncio.to_thread(gateway.chain.state.alerts.notifier.wait, 10.0)

    assert [answer.header(ROUTED) for answer in given] == [
        "shaped; rule=cap-output",
        "shaped; rule=cap-output",
        "downgraded; rule=tenant-day, shaped; rule=cap-output",
    ]
    assert [heard.path for heard in hosts.provider.heard] == [AT_SA, AT_SA, AT_MINI, AT_MINI]
    assert (rows[2]["request_model"], rows[2]["response_model"], rows[2]["cost_nanousd"]) == (
        "gpt-5",
        "gpt-5-mini",
        10**6,
    )
    assert (large.status, refused_by(large)) == (429, "tenant-day")
    assert int(large.header("retry-after") or 0) == 12 * 3600
    assert (small.status, small.header("cf-aig-budget-remaining")) == (200, None)
    assert [event for event in acted if event[0] == "budget"] == [
        ("budget", "tenant-day", "soft"),
        ("budget", "tenant-day", "downgrade"),
        ("budget", "tenant-day", "downgrade"),
        ("budget", "tenant-day", "refuse"),
    ]
    assert [(told["alert"], told["per"]) for told in hook.messages] == [("spend", {"tenant": "acme"})]


# -- what is kept, and what is cut ------------------------------------------------------------------------------------


async def test_faqs_are_kept_for_the_tenant_and_marked_calls_for_the_key(team: Team, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, answers(used("gpt-4o", 10, 5)))
    other_key = OWN_KEY.replace("app", "other-app")
    async with team.opened() as gateway:
        client = await gateway.http1()
        given = [
            await client.post(CHAT, asks("gpt-4o"), KEY, key, mark)
            for mark in (FAQ, "x-cacheable: 1")
            for key in (OWN_KEY, OWN_KEY, other_key)
        ]
        given.append(await ask(client, asks("gpt-4o")))

    assert [answer.header("cf-aig-cache-status") for answer in given] == [
        *("MISS", "HIT", "HIT"),
        *("MISS", "HIT", "MISS"),
        None,
    ]


async def test_prompts_are_cut_marked_and_summarized_and_large_models_bounded(team: Team, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, answers(used("gpt-4o", 10, 5)))
    hosts.says(EU, "/openai/v1/chat/completions", ANSWER.replace(b"hello", b"They talked of roads."))
    hosts.says(CLAUDE, MESSAGES, CLAUDE_ANSWER)
    long = [*rounds(59, tokens=1100)[:-1], talks.Round(59, says=prose(500, "And now?"), answered=False)]
    system = [{"type": "text", "text": prose(6000)}]
    claude = {
        "model": "claude-haiku-4-5",
        "max_tokens": 9,
        "system": system,
        "messages": talks.chat(rounds(1))["messages"][1:],
    }
    async with team.opened() as gateway:
        client = await gateway.http1()
        cut = await ask(client, json.dumps(talks.chat(long)).encode(), SUGGESTIONS)
        bounded = await ask(client, asks("gpt-5"))
        summed = await ask(client, json.dumps(talks.chat(long)).encode())
        marked = await (await gateway.http1(CLAUDE)).post(
            MESSAGES, json.dumps(claude).encode(), KEY, "x-api-key: of-the-app"
        )

    heard = hosts.heard(OPENAI)
    assert [answer.header(ROUTED) for answer in (cut, bounded, summed, marked)] == [
        "shaped; rule=long-suggestions",
        "shaped; rule=cap-output",
        "shaped; rule=condense-history",
        "shaped; rule=claude-context",
    ]
    assert Chat().read_request(CHAT, sent(heard[0])).input_tokens_estimate <= 20_000
    assert sent(heard[1])["max_completion_tokens"] == 4000
    assert "They talked of roads." in heard[2].body.decode()
    assert hosts.asked[EU] >= 1
    assert sent(hosts.heard(CLAUDE)[0])["system"][0]["cache_control"] == {"type": "ephemeral"}


# -- where it goes ----------------------------------------------------------------------------------------------------


async def test_where_south_africa_is_down_europe_answers_by_its_own_name_for_the_model(
    team: Team, hosts: Hosts, hook: Receiver
) -> None:
    hosts.on(SA, AT_SA, is_down)
    hosts.says(EU, AT_EU, ANSWER)
    env = {"SLACK_WEBHOOK": hook.url, "PAGER_URL": hook.url.replace("hook", "pager")}
    async with team.opened(**env) as gateway:
        answer = await ask_azure(gateway, "cf-aig-retry-delay: 1")
        acted = await events(gateway)

    assert (answer.status, answer.header("cf-aig-provider"), answer.header("cf-aig-step")) == (
        200,
        "azure-openai-eu",
        "1",
    )
    assert [(heard.sni, heard.header("api-key")) for heard in hosts.provider.heard] == [
        *[(SA, "key-of-sa")] * 3,
        (EU, "key-of-eu"),
    ]
    assert [event for event in acted if event[0] == "route"] == [("route", "azure", "fallback")]


async def test_errors_of_a_provider_are_told_to_slack_and_to_the_pager(
    team: Team, hosts: Hosts, hook: Receiver
) -> None:
    hosts.says(OPENAI, CHAT, b'{"error":{"message":"no"}}', "400 Bad Request")
    env = {"SLACK_WEBHOOK": hook.url, "PAGER_URL": hook.url.replace("hook", "pager")}
    async with team.opened(**env) as gateway:
        client = await gateway.http1()
        for _ in range(10):
            await ask(client, asks("gpt-4o"))
        await gateway.rows(10)
        await asyncio.to_thread(gateway.chain.state.alerts.look)
        await asyncio.to_thread(gateway.chain.state.alerts.notifier.wait, 10.0)

    assert {told["alert"] for told in hook.messages} == {"errors"}
    assert sorted(path.split("/")[1] for path in hook.paths) == ["hook", "pager"]


async def test_a_tenth_of_the_sessions_goes_to_the_canary_and_stays_there(team: Team, hosts: Hosts) -> None:
    async def says(heard: Heard, wire: Wire) -> None:
        await wire.answer(used(sent(heard)["model"], 10, 5))

    hosts.on(OPENAI, CHAT, says)
    async with team.opened() as gateway:
        client = await gateway.http1()
        for n in range(25):
            for _ in range(2):
                await ask(client, asks("gpt-5"), f"x-session-id: s{n}")

    models = [sent(heard)["model"] for heard in hosts.provider.heard]
    assert models[::2] == models[1::2]
    assert 1 <= models[::2].count("gpt-5-next") <= 8
    assert set(models) == {"gpt-5", "gpt-5-next"}


async def test_a_host_of_its_own_is_a_provider_like_any_other(team: Team, hosts: Hosts) -> None:
    hosts.says(CORP, CHAT, ANSWER)
    async with team.opened() as gateway:
        answer = await (await gateway.http1(CORP)).post(CHAT, asks("gpt-4o"), KEY, OWN_KEY)
        row = await gateway.row()

    assert (answer.status, row["provider_name"], row["tenant"]) == (200, "corp-llm", "acme")
