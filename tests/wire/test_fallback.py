"""Where one place fails the next one answers: in order, in time, and with its own key."""

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import trustme

from mitmgate.clock import ManualClock
from support.apis import ANTHROPIC, GEMINI, OPENAI, Api
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.hosts import DOWN, Hosts, carries, is_down
from support.provider import Provider, Script
from support.provider import provider as open_provider
from support.scripts import answers, begins, closes, in_turn, is_silent, resets, streams
from support.speech import ANSWER, ROLE

APP = "app.openai.azure.com"
SA, EU = "aoai-sa.openai.azure.com", "aoai-eu.openai.azure.com"
AT = "/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21"
AT_EU = AT.replace("/gpt-5/", "/gpt-5-eu/")
KEYS = {"AOAI_SA_KEY": "sa-secret", "AOAI_EU_KEY": "eu-secret"}
APP_KEY = "api-key: app-secret"

TARGETS = """
targets:
  azure-openai-sa: {provider: azure-openai, base_url: "https://aoai-sa.openai.azure.com", headers: {api-key: env:AOAI_SA_KEY}}
  azure-openai-eu: {provider: azure-openai, base_url: "https://aoai-eu.openai.azure.com", headers: {api-key: env:AOAI_EU_KEY},
                    deployments: {gpt-5: gpt-5-eu}}
"""  # noqa: E501
ROUTE = """
route:
  - name: azure
    match: {provider: azure-openai}
    try: [azure-openai-sa, azure-openai-eu]
"""
HI = [{"role": "user", "content": "hi"}]
ASK = json.dumps({"messages": HI}).encode()
ASK_STREAM = json.dumps({"messages": HI, "stream": True}).encode()


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


@pytest.fixture
def open_azure(open_gateway: OpenGateway) -> OpenGateway:
    """Return how to open a gateway in front of both regions, with more policy than their targets."""

    def opened(rules: str = ROUTE, **more: Any) -> contextlib.AbstractAsyncContextManager[Gateway]:
        return open_gateway(TARGETS + rules, **{"hosts": (APP, SA, EU), "env": KEYS} | more)

    return opened


async def ask(gateway: Gateway, *fields: str) -> Answer:
    client = await gateway.http1(APP)
    return await client.post(AT, ASK, APP_KEY, *fields)


def where(answer: Answer) -> tuple[str | None, ...]:
    """Return what the head says of the answer's way: attempts, step, place."""
    return tuple(answer.header(f"cf-aig-{name}") for name in ("attempts", "step", "provider"))


async def tries(gateway: Gateway) -> list[tuple[Any, ...]]:
    """Return (target, status, error type) of all attempts, in order."""
    rows = await gateway.rows(1, "select target, status_code, error_type from attempts order by exchange_id, n")
    return [tuple(row.values()) for row in rows]


# -- an outage --------------------------------------------------------------------------------------------------------

OUTAGE = """
    fall_back_on: [429, 5xx, connect, timeout, reset, error_event]
timeout: {first_byte: 1 s, total: 5 s}
breaker: {window: 30 s, min_requests: 5, failures: 50 %, rest: 15 s}
"""
REST_S = 15.0
DOWNS: dict[str, Script | None] = {
    "refused": None,
    "503": is_down,
    "hangs": is_silent,
    "cut before content": begins(ROLE, then=closes),
    "error event first": streams(OPENAI.error),
}
"""How South Africa fails; None = nobody listens."""


@contextlib.asynccontextmanager
async def south_africa(authority: trustme.CA, bound: socket.socket, script: Script) -> AsyncIterator[Provider]:
    async with open_provider(authority, bound) as region:
        region.on(AT, script)
        yield region


@pytest.mark.parametrize("how", DOWNS)
async def test_an_outage_is_answered_elsewhere_and_looked_at_by_one_probe_after_each_rest(
    open_azure: OpenGateway, authority: trustme.CA, provider: Provider, how: str
) -> None:
    clock, down, well = ManualClock(), DOWNS[how], streams(OPENAI.stream)
    provider.on(AT_EU, well)
    async with contextlib.AsyncExitStack() as stack:
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        region = await stack.enter_async_context(south_africa(authority, bound, down)) if down else None
        there = {SA: bound.getsockname()[1]}
        gateway = await stack.enter_async_context(
            open_azure(ROUTE + OUTAGE, hosts=(APP, EU), elsewhere=there, clock=clock)
        )
        client = await gateway.http2(APP)

        async def crowd(count: int = 10) -> Counter[tuple[int, bytes, str | None]]:
            answered = await asyncio.gather(*(client.post(AT, ASK_STREAM, APP_KEY) for _ in range(count)))
            return Counter((answer.status, answer.body, answer.header("cf-aig-provider")) for answer in answered)

        async def asked() -> int:
            """Return how many attempts South Africa has had."""
            return [target for target, _, _ in await tries(gateway)].count("azure-openai-sa")

        assert await crowd() == {(200, OPENAI.stream, "azure-openai-eu"): 10}
        before = await asked()
        assert 5 <= before <= 10
        assert await crowd() == {(200, OPENAI.stream, "azure-openai-eu"): 10}
        assert await asked() == before
        clock.advance(REST_S)
        assert await crowd() == {(200, OPENAI.stream, "azure-openai-eu"): 10}
        assert await asked() == before + 1
        if region is None:
            region = await stack.enter_async_context(south_africa(authority, bound, well))
        region.on(AT, well)
        clock.advance(REST_S)
        assert await crowd(1) == {(200, OPENAI.stream, "azure-openai-sa"): 1}
        assert await crowd() == {(200, OPENAI.stream, "azure-openai-sa"): 10}

        rows = await gateway.rows(41)
    assert {row["terminal"] for row in rows} == {"complete"}
    assert Counter((row["target"], row["step"]) for row in rows) == {
        ("azure-openai-eu", 1): 30,
        ("azure-openai-sa", 0): 11,
    }
    for heard in provider.heard:
        assert heard.header("api-key") == "eu-secret"
        assert not carries(heard, "sa-secret")
        assert not carries(heard, "app-secret")
    assert {heard.header("api-key") for heard in region.heard} == {"sa-secret"}
    assert not any(carries(heard, secret) for heard in region.heard for secret in ("eu-secret", "app-secret"))


@pytest.mark.parametrize(("api", "version"), [(ANTHROPIC, "h1"), (GEMINI, "h2")], ids=str)
async def test_every_api_has_a_place_to_fall_back_to(
    open_gateway: OpenGateway, hosts: Hosts, version: str, api: Api
) -> None:
    """The key that the app sends goes to the host that it asked, and to no other."""
    key = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}[api.name]
    rules = f"""
targets:
  first: {{provider: {api.slug}, base_url: "https://{api.host}"}}
  second: {{provider: {api.slug}, base_url: "https://other.example", headers: {{{key}: env:SECOND_KEY}}}}
route: [{{name: two, match: {{provider: {api.slug}}}, try: [first, second]}}]
"""
    hosts.on(api.host, api.path, streams(api.error))
    hosts.on("other.example", api.path, streams(api.stream))
    async with open_gateway(rules, env={"SECOND_KEY": "second-secret"}) as gateway:
        client = await gateway.client(version, api.host)

        answer = await client.post(api.path, api.ask, f"{key}: app-secret")

        row = await gateway.row()
        assert [target for target, _, _ in await tries(gateway)] == ["first", "second"]
    assert (answer.status, answer.body, where(answer)) == (200, api.stream, ("2", "1", "second"))
    assert (row["target"], row["step"], row["attempts"], row["terminal"]) == ("second", 1, 2, "complete")
    assert [heard.header(key) for heard in hosts.heard(api.host)] == ["app-secret"]
    assert [heard.header(key) for heard in hosts.heard("other.example")] == ["second-secret"]
    assert not carries(hosts.heard("other.example")[0], "app-secret")


# -- which failure leads where ----------------------------------------------------------------------------------------


async def test_each_place_has_its_own_attempts(open_azure: OpenGateway, hosts: Hosts) -> None:
    hosts.on(SA, AT, is_down)
    hosts.on(EU, AT_EU, in_turn(is_down, answers(ANSWER)))
    async with open_azure(f"{ROUTE}retry: {{attempts: 2, delay: 1 ms}}") as gateway:
        answer = await ask(gateway)

        row = await gateway.row()
        did = await gateway.rows(1, "select room, rule, action, detail from policy_events order by at")
        waits = await gateway.rows(1, "select wait_ms > 0 as waited from attempts order by n")
        assert await tries(gateway) == [
            ("azure-openai-sa", 503, "server_error"),
            ("azure-openai-sa", 503, "server_error"),
            ("azure-openai-eu", 503, "server_error"),
            ("azure-openai-eu", 200, None),
        ]
    assert (answer.status, answer.body, where(answer)) == (200, ANSWER, ("4", "1", "azure-openai-eu"))
    assert answer.header("cf-aig-model") == "gpt-4o-2024-08-06"
    assert (row["attempts"], row["step"], row["target"], row["host"]) == (4, 1, "azure-openai-eu", APP)
    assert [(event["room"], event["rule"], event["action"]) for event in did] == [
        ("retry", "retry", "retry"),
        ("route", "azure", "fallback"),
        ("retry", "retry", "retry"),
    ]
    assert did[1]["detail"] == "azure-openai-sa: 503; on to azure-openai-eu"
    assert [wait["waited"] for wait in waits] == [0, 1, 0, 1]


def busy(*more: str) -> Script:
    return answers(OPENAI.busy, "429 Too Many Requests", *more)


@dataclass(frozen=True)
class Case:
    """What South Africa does; what the rules say; and what becomes of the call."""

    script: Script
    status: int
    asked: dict[str, int]
    route: str = ""
    retry: str = "attempts: 1"


CASES = {
    "a reset leads on": Case(resets, 200, {SA: 1, EU: 1}, "fall_back_on: [429, reset]"),
    "a 503 leads on": Case(is_down, 200, {SA: 1, EU: 1}),
    "unless the rule leaves it out": Case(is_down, 503, {SA: 1}, "fall_back_on: [429, reset]"),
    "a 400 does not": Case(answers(DOWN, "400 Bad Request"), 400, {SA: 1}),
    "nor does a 401": Case(answers(DOWN, "401 Unauthorized"), 401, {SA: 1}, retry="attempts: 3"),
    "unless the rule says so": Case(answers(DOWN, "400 Bad Request"), 200, {SA: 1, EU: 1}, "fall_back_on: [400]"),
    "or names its class": Case(answers(DOWN, "404 Not Found"), 200, {SA: 1, EU: 1}, "fall_back_on: [4xx]"),
    "a long wait is spent elsewhere": Case(
        busy("retry-after: 30"), 200, {SA: 1, EU: 1}, retry="attempts: 3, within: 5 s"
    ),
    "a short one where it is": Case(
        in_turn(busy("retry-after-ms: 20"), answers(ANSWER)), 200, {SA: 2}, retry="attempts: 2, within: 5 s"
    ),
    "a quota that is used up leads on": Case(
        answers(b'{"error":{"code":"insufficient_quota"}}', "429 Too Many Requests"),
        200,
        {SA: 1, EU: 1},
        retry="attempts: 3",
    ),
}


async def test_which_failure_leads_on(open_azure: OpenGateway, hosts: Hosts) -> None:
    ways, retries = ["\nroute:"], ["retry:"]
    for name, case in CASES.items():
        match = f'name: "{name}", match: {{header.x-case: "{name}"}}'
        ways.append(f"  - {{{match}, try: [azure-openai-sa, azure-openai-eu], {case.route}}}")
        retries.append(f"  - {{{match}, {case.retry}}}")
    happened = {}
    async with open_azure("\n".join([*ways, *retries])) as gateway:
        for name, case in CASES.items():
            hosts.provider.heard.clear()
            hosts.on(SA, AT, case.script)
            hosts.on(EU, AT_EU, answers(ANSWER, "200 OK", "connection: close"))

            answer = await ask(gateway, f"x-case: {name}")

            happened[name] = (answer.status, dict(hosts.asked))
    assert happened == {name: (case.status, case.asked) for name, case in CASES.items()}


# -- when no place answers --------------------------------------------------------------------------------------------


LAST: list[tuple[Script, int, bytes, tuple[str, ...]]] = [
    (busy(), 429, OPENAI.busy, ("2", "1", "azure-openai-eu")),
    (answers(OPENAI.busy, "400 Bad Request"), 400, OPENAI.busy, ("2", "1", "azure-openai-eu")),
    (resets, 503, DOWN, ("2", "0", "azure-openai-sa")),
]
"""What Europe does, and what the client gets: its answer, whatever that is; where it has none, South Africa's."""


async def test_where_all_fail_the_last_answer_reaches_the_client_as_it_came(
    open_azure: OpenGateway, hosts: Hosts
) -> None:
    hosts.on(SA, AT, is_down)
    async with open_azure() as gateway:
        for script, status, body, way in LAST:
            hosts.on(EU, AT_EU, script)

            answer = await ask(gateway)

            assert (answer.status, answer.body, where(answer)) == (status, body, way)
            assert (answer.header("x-should-retry"), answer.header("cf-aig-source")) == ("false", "provider")
        rows = await gateway.rows(len(LAST))
    assert [(row["status_code"], row["target"], row["step"]) for row in rows] == [
        (status, way[2], int(way[1])) for _, status, _, way in LAST
    ]


async def test_each_place_may_have_its_own_time_and_the_last_one_keeps_it(
    open_azure: OpenGateway, hosts: Hosts
) -> None:
    hosts.on(SA, AT, is_silent)
    hosts.on(EU, AT_EU, is_silent)
    places = "[{target: azure-openai-sa, timeout: 60 ms}, {target: azure-openai-eu, timeout: 120 ms}]"
    async with open_azure(f"route: [{{name: azure, try: {places}}}]") as gateway:
        answer = await ask(gateway)

        times = await gateway.rows(1, "select error_type, duration_ms from attempts order by n")
    assert (answer.status, where(answer)[:2]) == (504, ("2", "1"))
    assert "0.12 s" in json.loads(answer.body)["error"]["message"]
    assert answer.header("x-should-retry") == "false"
    assert [row["error_type"] for row in times] == ["timeout", "timeout"]
    assert 60 <= times[0]["duration_ms"] < 120 <= times[1]["duration_ms"] < 1000


async def test_the_total_limit_counts_over_all_places(open_azure: OpenGateway, hosts: Hosts) -> None:
    hosts.on(SA, AT, is_silent)
    hosts.on(EU, AT_EU, is_silent)
    async with open_azure(f"{ROUTE}timeout: {{first_byte: 120 ms, total: 180 ms}}") as gateway:
        answer = await ask(gateway)

        row = await gateway.row()
        assert [target for target, _, _ in await tries(gateway)] == ["azure-openai-sa", "azure-openai-eu"]
    assert answer.status == 504
    assert "0.18 s" in json.loads(answer.body)["error"]["message"]
    assert (row["terminal"], row["error_type"]) == ("timeout", "timeout")
    assert 180 <= row["duration_ms"] < 1000


# -- by header --------------------------------------------------------------------------------------------------------


ORDERS = {
    "azure-openai-eu, azure-openai-sa": ([EU], ("1", "0", "azure-openai-eu")),
    "azure-openai-sa,azure-openai-eu": ([SA, EU], ("2", "1", "azure-openai-eu")),
    "azure-openai-sa": ([SA], ("1", "0", "azure-openai-sa")),
    "none": ([SA], ("1", "0", "azure-openai-sa")),
}
"""The header, who is asked then, and what the answer's head says of its way."""


async def test_the_header_is_the_whole_order(open_azure: OpenGateway, hosts: Hosts) -> None:
    hosts.on(SA, AT, is_down)
    hosts.says(EU, AT_EU, ANSWER)
    happened = {}
    async with open_azure() as gateway:
        for names in ORDERS:
            hosts.provider.heard.clear()

            answer = await ask(gateway, f"cf-aig-fallback: {names}")

            happened[names] = ([heard.sni for heard in hosts.provider.heard], where(answer))
            assert answer.status == (200 if EU in hosts.asked else 503)
            assert not any(carries(heard, "cf-aig-fallback") for heard in hosts.provider.heard)
        did = await gateway.rows(4, "select rule from policy_events where action = 'fallback'")
    assert happened == ORDERS
    assert did == [{"rule": "cf-aig-fallback"}]


async def test_a_name_that_is_no_target_is_the_clients_fault(
    open_azure: OpenGateway, hosts: Hosts, version: str
) -> None:
    async with open_azure(hosts=(APP, SA, EU, "api.anthropic.com")) as gateway:
        openai = await gateway.client(version, APP)
        anthropic = await gateway.client(version, "api.anthropic.com")

        first = await openai.post(AT, ASK, "cf-aig-fallback: azure-openai-sa, azure-openai-us")
        second = await anthropic.post("/v1/messages", ASK, "cf-aig-fallback: azure-openai-us")

    for answer in (first, second):
        assert (answer.status, answer.header("cf-aig-attempts"), answer.header("x-should-retry")) == (400, "0", "false")
        message = json.loads(answer.body)["error"]["message"]
        assert "cf-aig-fallback" in message
        assert "'azure-openai-us'" in message
        assert "azure-openai-eu, azure-openai-sa" in message
    assert json.loads(second.body)["type"] == "error"
    assert hosts.provider.heard == []
