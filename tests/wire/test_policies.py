"""The policies that come with the gateway do over real sockets what their comments say."""

import asyncio
import json
from collections import Counter
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest

from mitmgate.clock import SystemClock
from mitmgate.policy import load
from mitmgate.store.places import places
from mitmgate.store.reader import open_reader
from mitmgate.store.selection import EVERYTHING, Window
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.speech import ANSWER, CHAT, DONE, HEL, LO, ROLE, STOP, STREAM, USAGE

POLICIES = Path(__file__).parents[2] / "policies"
KEYS = {
    "AZURE_OPENAI_KEY": "azure-secret",
    "AOAI_ZA_KEY": "za-secret",
    "AOAI_SE_KEY": "se-secret",
    "AOAI_SA_KEY": "sa-secret",
    "AOAI_EU_KEY": "eu-secret",
    "SUPPORT_APP_KEY": "mg-support",
    "PRODUCT_KEY": "mg-product",
    "OPENAI_KEY": "openai-secret",
    "OPENAI_SPARE_KEY": "openai-spare-secret",
    "MODERATION_KEY": "moderation-secret",
    "CORP_PROXY": "http://proxy.corp.example:3128",
    "SLACK_WEBHOOK": "https://hooks.slack.example/services/1",
    "PAGER_URL": "https://pager.example/enqueue",
}

HI = [{"role": "user", "content": "hi"}]
ASK = json.dumps({"model": "gpt-5", "messages": HI}).encode()
ASK_STREAM = json.dumps({"model": "gpt-5", "messages": HI, "stream": True}).encode()
BUSY = b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}'
DOWN = b'{"error":{"message":"no capacity","type":"server_error","code":null}}'
WITH_USAGE = [ROLE, HEL, LO, STOP, USAGE, DONE]

AZURE = "my-resource.openai.azure.com"
ZA, SE = "my-za.openai.azure.com", "my-se.openai.azure.com"
DIALLED = ("api.openai.com", "app-resource.openai.azure.com", AZURE, ZA, SE)

type Opened = AbstractAsyncContextManager[Gateway]


def with_policy(open_gateway: OpenGateway, name: str) -> Opened:
    """Open a gateway with the policy *name* as it stands; only hosts are dialled at the scripted provider."""
    return open_gateway((POLICIES / f"{name}.yaml").read_text(), hosts=DIALLED, env=KEYS)


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_policy_loads(path: Path) -> None:
    assert load(path, KEYS).version == 1


class Hosts:
    """Scripts by host: several hosts are dialled at one provider."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.scripts: dict[str, Script] = {}

    def on(self, host: str, path: str, script: Script) -> None:
        self.scripts[host] = script
        self.provider.on(path, self._play)

    async def _play(self, heard: Heard, wire: Wire) -> None:
        await self.scripts[heard.sni or ""](heard, wire)

    @property
    def asked(self) -> Counter[str | None]:
        """How often each host was asked."""
        return Counter(heard.sni for heard in self.provider.heard)

    def heard(self, host: str) -> list[Heard]:
        return [heard for heard in self.provider.heard if heard.sni == host]


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


async def answers(_heard: Heard, wire: Wire) -> None:
    await wire.answer(ANSWER)


async def streams(_heard: Heard, wire: Wire) -> None:
    await wire.stream(WITH_USAGE)


async def is_down(_heard: Heard, wire: Wire) -> None:
    await wire.answer(DOWN, "503 Service Unavailable")


async def is_silent(_heard: Heard, wire: Wire) -> None:
    await wire.silence()


# -- resilient.yaml

AT_AZURE = "/openai/deployments/gpt-5-prod/chat/completions?api-version=2025-04-01-preview"


async def test_an_outage_of_openai_is_answered_by_azure_and_openai_is_left_alone(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.on("api.openai.com", CHAT, is_down)
    hosts.on(AZURE, AT_AZURE, answers)
    async with with_policy(open_gateway, "resilient") as gateway:
        client = await gateway.http2()
        calls = [client.post(CHAT, ASK, "authorization: Bearer sk-app") for _ in range(12)]

        answered = await asyncio.gather(*calls)

        asked = hosts.asked["api.openai.com"]
        later = await client.post(CHAT, ASK, "authorization: Bearer sk-app")
        rows = await gateway.rows(13)
        rests = await gateway.rows(13, "select detail from policy_events where action = 'rest' order by at")
        metrics = gateway.chain.state.metrics.text().decode()
        with closing(open_reader(gateway.db)) as conn:
            told = {row["target"]: row for row in places(conn, Window(), EVERYTHING)}
    assert [(answer.status, answer.body) for answer in [*answered, later]] == [(200, ANSWER)] * 13
    assert {(row["target"], row["step"], row["terminal"]) for row in rows} == {("azure", 1, "complete")}
    assert (hosts.asked["api.openai.com"], later.header("cf-aig-attempts")) == (asked, "1")
    assert rests[0]["detail"] == "openai rests for 15 s"
    assert 'mitmgate_breaker_state{target="openai"} 2' in metrics
    assert (told["openai"]["attempts"], told["openai"]["rests"], told["azure"]["rests"]) == (asked, 1, 0)
    assert told["openai"]["passed_by"] >= 1
    for heard in hosts.heard(AZURE):
        assert (heard.header("api-key"), heard.header("authorization")) == ("azure-secret", None)
        assert heard.body == ASK
    for heard in hosts.heard("api.openai.com"):
        assert (heard.header("authorization"), heard.header("api-key")) == ("Bearer sk-app", None)


async def test_a_burst_of_429_is_waited_out_where_it_is(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async def is_busy_at_first(_heard: Heard, wire: Wire) -> None:
        if len(hosts.provider.heard) <= 3:
            await wire.answer(BUSY, "429 Too Many Requests", "application/json", "retry-after-ms: 60")
        else:
            await wire.answer(ANSWER)

    hosts.on("api.openai.com", CHAT, is_busy_at_first)
    async with with_policy(open_gateway, "resilient") as gateway:
        client = await gateway.http2()

        answered = await asyncio.gather(*(client.post(CHAT, ASK) for _ in range(3)))

        waits = await gateway.rows(3, "select wait_ms from attempts where n = 2")
    assert [answer.status for answer in answered] == [200] * 3
    assert [answer.header("cf-aig-attempts") for answer in answered] == ["2"] * 3
    assert [wait["wait_ms"] >= 60 for wait in waits] == [True] * 3
    assert hosts.asked[AZURE] == 0


async def test_what_would_be_wrong_everywhere_stays_where_it_is(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async def refuses(_heard: Heard, wire: Wire) -> None:
        await wire.answer(b'{"error":{"message":"bad key","code":"invalid_api_key"}}', "401 Unauthorized")

    hosts.on("api.openai.com", CHAT, refuses)
    async with with_policy(open_gateway, "resilient") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

    assert (answer.status, answer.header("cf-aig-attempts"), hosts.asked[AZURE]) == (401, "1", 0)


async def test_a_stream_that_is_slower_than_all_before_it_is_asked_of_azure_too(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.on("api.openai.com", CHAT, streams)
    hosts.on(AZURE, AT_AZURE, streams)
    async with with_policy(open_gateway, "resilient") as gateway:
        client = await gateway.http1()
        for _ in range(20):
            await client.post(CHAT, ASK_STREAM)
        before = hosts.asked[AZURE]
        hosts.on("api.openai.com", CHAT, is_silent)

        answer = await client.post(CHAT, ASK_STREAM)

        last = (await gateway.rows(21))[-1]
        tries = await gateway.rows(
            21, f"select target, error_type from attempts where exchange_id = '{last['id']}' order by n"
        )
    assert (before, answer.body, answer.header("cf-aig-provider")) == (0, b"".join(STREAM), "azure")
    assert tries == [{"target": "openai", "error_type": "cancelled"}, {"target": "azure", "error_type": None}]


# -- azure-two-regions.yaml

AT_APP = "/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21"
AT_SE = "/openai/deployments/gpt-5-eu/chat/completions?api-version=2024-10-21"
APP_KEY = "api-key: of-the-app"


async def ask_azure(gateway: Gateway, *fields: str) -> Answer:
    client = await gateway.http1("app-resource.openai.azure.com")
    return await client.post(AT_APP, ASK, APP_KEY, *fields)


async def test_whichever_resource_the_app_names_south_africa_answers(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(ZA, AT_APP, answers)
    async with with_policy(open_gateway, "azure-two-regions") as gateway:
        answer = await ask_azure(gateway)

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert (answer.status, answer.header("cf-aig-provider"), answer.header("cf-aig-step")) == (200, "azure-za", "0")
    assert (heard.sni, heard.header("host"), heard.header("api-key")) == (ZA, ZA, "za-secret")
    assert (row["target"], row["region"], row["provider_name"]) == ("azure-za", "johannesburg", "azure.ai.openai")


async def test_when_south_africa_is_down_sweden_answers_and_the_session_stays_there(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.on(ZA, AT_APP, is_down)
    hosts.on(SE, AT_SE, answers)
    async with with_policy(open_gateway, "azure-two-regions") as gateway:
        moved = await ask_azure(gateway, "x-session-id: s1")
        hosts.on(ZA, AT_APP, answers)
        stayed = await ask_azure(gateway, "x-session-id: s1")
        another = await ask_azure(gateway, "x-session-id: s2")
        rows = await gateway.rows(3)
    assert [answer.status for answer in (moved, stayed, another)] == [200] * 3
    assert [(row["target"], row["attempts"]) for row in rows] == [("azure-se", 3), ("azure-se", 1), ("azure-za", 1)]
    assert {heard.header("api-key") for heard in hosts.heard(ZA)} == {"za-secret"}
    assert {heard.header("api-key") for heard in hosts.heard(SE)} == {"se-secret"}
    assert all(b"of-the-app" not in value for heard in hosts.provider.heard for _, value in heard.fields)


async def test_what_may_not_leave_south_africa_fails_there(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(ZA, AT_APP, is_down)
    hosts.on(SE, AT_SE, answers)
    async with with_policy(open_gateway, "azure-two-regions") as gateway:
        answer = await ask_azure(gateway, 'cf-aig-metadata: {"residency": "za"}')
        forced = await ask_azure(gateway, 'cf-aig-metadata: {"residency": "za"}', "cf-aig-fallback: azure-se")
    assert (answer.status, answer.body, answer.header("x-should-retry")) == (503, DOWN, "false")
    assert forced.status >= 400
    assert "stays-in-za" in forced.body.decode()
    assert hosts.asked == {ZA: 2}


async def test_when_both_regions_rest_callers_hear_at_once_when_to_come_back(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.on(ZA, AT_APP, is_down)
    hosts.on(SE, AT_SE, is_down)
    async with with_policy(open_gateway, "azure-two-regions") as gateway:
        await asyncio.gather(*(ask_azure(gateway) for _ in range(5)))
        asked = hosts.asked.total()

        answer = await ask_azure(gateway)

    assert (answer.status, answer.header("cf-aig-source"), answer.header("cf-aig-attempts")) == (503, "gateway", "0")
    assert 1 <= int(answer.header("retry-after") or 0) <= 10
    assert "azure-za and azure-se" in answer.body.decode()
    assert hosts.asked.total() == asked


# -- faq-cache.yaml


def marked(tenant: str | None = "acme") -> str:
    tags = {"feature": "faq"} | ({"tenantId": tenant} if tenant else {})
    return f"cf-aig-metadata: {json.dumps(tags)}"


async def test_a_question_asked_before_is_answered_out_of_the_cache(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    provider.says(CHAT, ANSWER)
    async with with_policy(open_gateway, "faq-cache") as gateway:
        client = await gateway.client(version)

        first = await client.post(CHAT, ASK, marked(), "authorization: Bearer sk-1")
        second = await client.post(CHAT, ASK, marked(), "authorization: Bearer sk-2")

        asked, hit = await gateway.rows(2)
    assert (first.body, first.header("cf-aig-cache-status")) == (ANSWER, "MISS")
    assert (second.body, second.header("cf-aig-cache-status")) == (ANSWER, "HIT")
    assert len(provider.heard) == 1
    assert asked["cost_nanousd"] > 0
    assert (hit["cost_nanousd"], hit["saved_nanousd"], hit["attempts"]) == (0, asked["cost_nanousd"], 0)


async def test_a_stream_is_replayed_as_a_stream(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.streams(CHAT, WITH_USAGE)
    async with with_policy(open_gateway, "faq-cache") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK_STREAM, marked())

        answer = await client.post(CHAT, ASK_STREAM, marked())

    assert answer.header("cf-aig-cache-status") == "HIT"
    assert answer.header("content-type") == "text/event-stream"
    assert answer.body == b"".join(STREAM)


async def test_an_sdk_that_goes_at_the_last_word_leaves_the_answer_to_the_next(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """OpenAI's SDKs close a stream at ``[DONE]``, before the transport's end has come."""
    left = asyncio.Event()

    async def ends_late(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in WITH_USAGE:
            await wire.chunk(piece)
        await left.wait()
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, ends_late)
    async with with_policy(open_gateway, "faq-cache") as gateway:
        sdk = await (await gateway.http1()).begin(CHAT, ASK_STREAM, marked())
        await sdk.body(len(b"".join(STREAM)))
        [tape] = gateway.chain.cache.tapes.values()
        sdk.leave()
        await gateway.until(lambda: not tape.listeners)
        left.set()
        first = await gateway.row()

        answer = await (await gateway.http1()).post(CHAT, ASK_STREAM, marked())

    assert (first["terminal"], first["input_tokens"]) == ("complete", 9)
    assert (answer.header("cf-aig-cache-status"), answer.body) == ("HIT", b"".join(STREAM))
    assert len(provider.heard) == 1


@pytest.mark.parametrize(
    ("ask", "tag", "status"),
    [
        ({}, marked(), "HIT"),
        ({"user": "u2", "safety_identifier": "x", "metadata": {"ticket": "7"}}, marked(), "HIT"),
        ({"temperature": 0.2}, marked(), "MISS"),
        ({"temperature": 0.9}, marked(), None),
        ({}, marked("globex"), "MISS"),
        ({}, marked(None), None),
        ({}, 'cf-aig-metadata: {"tenantId": "acme"}', None),
    ],
    ids=[
        "the same",
        "who asks is no part of the question",
        "another question",
        "variety",
        "another tenant",
        "no tenant",
        "no mark",
    ],
)
async def test_only_the_tenants_own_answer_to_the_same_question_is_served(
    open_gateway: OpenGateway, provider: Provider, ask: dict[str, object], tag: str, status: str | None
) -> None:
    provider.says(CHAT, ANSWER)
    async with with_policy(open_gateway, "faq-cache") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, marked())

        answer = await client.post(CHAT, json.dumps({"model": "gpt-5", "messages": HI, **ask}).encode(), tag)

    assert (answer.body, answer.header("cf-aig-cache-status")) == (ANSWER, status)
    assert len(provider.heard) == (1 if status == "HIT" else 2)


class Later(SystemClock):
    """The wall clock of two hours on."""

    @staticmethod
    def wall() -> float:
        return SystemClock.wall() + 7200


async def test_an_old_answer_stands_in_where_no_new_one_can_be_had(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with with_policy(open_gateway, "faq-cache") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, marked())
        await gateway.rows(1)
        gateway.chain.cache.clock = gateway.chain.state.answers.clock = Later()
        provider.on(CHAT, is_down)

        answer = await client.post(CHAT, ASK, marked())

        row = (await gateway.rows(2))[-1]
    assert (answer.status, answer.body, answer.header("cf-aig-cache-status")) == (200, ANSWER, "HIT")
    assert int(answer.header("cf-aig-cache-age") or 0) >= 7200
    assert (row["source"], row["attempts"], len(provider.heard)) == ("cache", 3, 4)
