"""Dynamic routes over real sockets: an app asks for ``dynamic/NAME`` as its model, and rules say who answers.

They work at ``/compat``, as the only element of the universal endpoint, and at a provider's own host through the proxy.
Clients' keys say ``of-the-app``, those of the targets name their target.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.hosts import Hosts, carries, is_down
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, CHAT, CLAUDE_ANSWER, DONE, HEL, LO, MESSAGES, ROLE, STOP, STREAM, USAGE

OPENAI, CLAUDE, GROQ, ZA = ("api.openai.com", "api.anthropic.com", "api.groq.com", "za.openai.azure.com")
DIALLED = (OPENAI, CLAUDE, GROQ, ZA)
AT_GROQ = "/openai/v1/chat/completions"
AT_ZA = "/openai/deployments/gpt-4o-za/chat/completions?api-version=2024-10-21"
WITH_USAGE = [ROLE, HEL, LO, STOP, USAGE, DONE]
HI = [{"role": "user", "content": "hi"}]
BEARER, JSON = "authorization: Bearer of-the-app", "content-type: application/json"

POLICY = """
usage: leave
route:
  - name: support
    match: {model: dynamic/support}
    choose:
      - {match: {metadata.plan: free}, try: [{target: groq, model: llama-3.1-8b}]}
      - {match: {header.x-beta: present}, try: [{target: openai, model: gpt-5}]}
      - {match: {body.response_format.type: json_schema}, try: [{target: openai, model: gpt-4.1}]}
      - {match: {stream: true}, unless: {metadata.plan: present}, try: [{target: groq, model: llama-3.3-70b}]}
      - try: [{target: za, model: gpt-4o}, {target: claude, model: claude-haiku-4-5}]
  - name: metered
    match: {model: dynamic/metered}
    choose:
      - {within: {requests: 1, every: 1 m, per: user}, try: [{target: za, model: gpt-4o}]}
      - {within: {requests: 2, every: 1 h, per: user}, try: [{target: groq, model: llama-3.1-8b}]}
  - {name: halves, match: {model: dynamic/halves}, split: {openai: 1, groq: 1}, by: user}
  - name: gold
    match: {model: dynamic/gold}
    choose: [{match: {metadata.plan: gold}, try: [{target: za, model: gpt-4o}]}]
  - {name: own, match: {model: [dynamic/own, fastest]}, try: [{model: gpt-4o-mini}]}
  - {name: nameless, match: {model: dynamic/nameless}, try: claude}
  - {name: half-named, match: {model: dynamic/half-named}, try: [claude, {model: gpt-4o-mini}]}
  - {name: fast, match: {model: fast, path: "*/chat/completions"}, try: [{target: groq, model: llama-3.1-8b}]}
targets:
  za: {provider: azure-openai, base_url: "https://za.openai.azure.com", headers: {api-key: env:ZA},
       deployments: {gpt-4o: gpt-4o-za}, api_version: 2024-10-21}
  openai: {provider: openai, base_url: "https://api.openai.com/v1", headers: {Authorization: "Bearer env:OPENAI"},
           deployments: {dynamic/halves: gpt-4o}}
  groq: {provider: groq, base_url: "https://api.groq.com/openai/v1", headers: {Authorization: "Bearer env:GROQ"},
         deployments: {dynamic/halves: llama-3.3-70b}}
  claude: {provider: anthropic, base_url: "https://api.anthropic.com", headers: {Authorization: "Bearer env:CLAUDE"}}
"""
KEYS = {name: f"key-of-{name.lower()}" for name in ("ZA", "OPENAI", "GROQ", "CLAUDE")}
OWN_KEY = {ZA: "key-of-za", OPENAI: "key-of-openai", GROQ: "key-of-groq", CLAUDE: "key-of-claude"}


async def answers(heard: Heard, wire: Wire) -> None:
    """Answer in OpenAI's wire: a stream where one was asked for."""
    if json.loads(heard.body).get("stream"):
        await wire.stream(WITH_USAGE)
    else:
        await wire.answer(ANSWER)


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    """Return hosts of which each answers."""
    hosts = Hosts(provider)
    for host, path in ((OPENAI, CHAT), (CLAUDE, CHAT), (GROQ, AT_GROQ), (ZA, AT_ZA)):
        hosts.on(host, path, answers)
    return hosts


def asking(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": HI, **more}


# -- the three ways in


async def by_compat(gateway: Gateway, body: dict[str, Any], *fields: str) -> Answer:
    client = await gateway.plain()
    return await client.post("/v1/acct/gw/compat/chat/completions", json.dumps(body).encode(), JSON, BEARER, *fields)


async def by_universal(gateway: Gateway, body: dict[str, Any], *fields: str) -> Answer:
    client = await gateway.plain()
    headers = {"Authorization": "Bearer of-the-app"}
    element = {"provider": "compat", "endpoint": "chat/completions", "headers": headers, "query": body}
    return await client.post("/v1/acct/gw", json.dumps([element]).encode(), JSON, "api-key: of-the-app", *fields)


async def by_proxy(gateway: Gateway, body: dict[str, Any], *fields: str) -> Answer:
    client = await gateway.http2()
    return await client.post(CHAT, json.dumps(body).encode(), JSON, BEARER, *fields)


type Way = Callable[..., Awaitable[Answer]]
WAYS = [by_compat, by_universal, by_proxy]


@pytest.mark.parametrize("way", WAYS)
async def test_a_name_leads_to_a_place_with_its_own_model_and_key(
    open_gateway: OpenGateway, hosts: Hosts, way: Way
) -> None:
    plan = 'cf-aig-metadata: {"plan": "free"}'
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        plain = await way(gateway, asking("dynamic/support"), plan)
        stream = await way(gateway, asking("dynamic/support", stream=True), plan)

        rows = await gateway.rows(2)
    assert (plain.status, plain.body, stream.body) == (200, ANSWER, b"".join(WITH_USAGE))
    for more, heard, answer, row in zip(
        ({}, {"stream": True}), hosts.provider.heard, (plain, stream), rows, strict=True
    ):
        assert (heard.sni, heard.header("host"), heard.path) == (GROQ, GROQ, AT_GROQ)
        assert heard.body == json.dumps(asking("llama-3.1-8b", **more)).encode()
        assert [value for name, value in heard.fields if name.lower() == b"authorization"] == [b"Bearer key-of-groq"]
        assert not carries(heard, "of-the-app")
        assert (answer.header("cf-aig-provider"), answer.header("cf-aig-step")) == ("groq", "0")
        assert (row["provider_name"], row["target"], row["step"]) == ("groq", "groq", 0)
        assert (row["request_model"], row["operation_name"]) == ("dynamic/support", "chat")
        assert (row["input_tokens"], row["output_tokens"], row["terminal"]) == (9, 3, "complete")
        assert row["sent_sha256"] not in (None, row["request_sha256"])


CONDITIONS: list[tuple[dict[str, Any], list[str], str, str | None]] = [
    ({}, ['cf-aig-metadata: {"plan": "free"}', "x-beta: 1"], GROQ, "llama-3.1-8b"),
    ({}, ["x-beta: 1"], OPENAI, "gpt-5"),
    ({"response_format": {"type": "json_schema"}}, [], OPENAI, "gpt-4.1"),
    ({"stream": True}, [], GROQ, "llama-3.3-70b"),
    ({"stream": True}, ['cf-aig-metadata: {"plan": "gold"}'], ZA, None),
    ({}, [], ZA, None),
]
"""Members of the body and headers, and the place and model that they lead to; Azure goes by its path."""


@pytest.mark.parametrize("way", WAYS)
async def test_conditions_are_asked_in_their_order(open_gateway: OpenGateway, hosts: Hosts, way: Way) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        for more, fields, place, model in CONDITIONS:
            answer = await way(gateway, asking("dynamic/support", **more), *fields)

            heard = hosts.provider.heard[-1]
            assert (answer.status, heard.sni) == (200, place), (more, fields)
            assert json.loads(heard.body) == asking(model or "dynamic/support", **more)
            assert carries(heard, OWN_KEY[place])
            assert not carries(heard, "of-the-app")
    assert len(hosts.provider.heard) == len(CONDITIONS)


@pytest.mark.parametrize(("way", "stream"), [(by_compat, True), (by_universal, False), (by_proxy, True)])
async def test_a_place_that_fails_leads_on_to_the_next_of_its_branch(
    open_gateway: OpenGateway, hosts: Hosts, way: Way, stream: bool
) -> None:
    hosts.on(ZA, AT_ZA, is_down)
    gold = 'cf-aig-metadata: {"plan": "gold"}'
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answer = await way(gateway, asking("dynamic/support", **({"stream": True} if stream else {})), gold)

        row = await gateway.row()
        [event] = await gateway.rows(1, "select rule, action, detail from policy_events")
    first, second = hosts.provider.heard
    assert (first.sni, second.sni, second.path) == (ZA, CLAUDE, CHAT)
    assert (first.header("api-key"), second.header("authorization")) == ("key-of-za", "Bearer key-of-claude")
    assert json.loads(second.body)["model"] == "claude-haiku-4-5"
    assert answer.body == (b"".join(WITH_USAGE) if stream else ANSWER)
    assert (answer.header("cf-aig-step"), row["target"], row["provider_name"]) == ("1", "claude", "anthropic")
    assert event == {"rule": "support", "action": "fallback", "detail": "za: 503; on to claude"}


async def test_the_model_that_was_asked_of_the_place_is_what_the_client_hears(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answer = await by_compat(gateway, asking("dynamic/support", stream=True))

    assert answer.header("cf-aig-model") == "llama-3.3-70b"  # its head left before the stream could say more


async def test_an_answer_that_names_no_model_is_priced_as_the_one_that_was_asked_of_the_place(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    nameless = {name: value for name, value in json.loads(ANSWER).items() if name != "model"}
    hosts.says(OPENAI, CHAT, json.dumps(nameless).encode())
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        await by_compat(gateway, asking("dynamic/support"), "x-beta: 1")

        row = await gateway.row()
    assert (row["request_model"], row["response_model"]) == ("dynamic/support", None)
    assert row["cost_nanousd"] > 0


async def test_a_stream_is_asked_for_usage_where_it_goes(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(POLICY.replace("leave", "ask"), hosts=DIALLED, env=KEYS) as gateway:
        answer = await by_compat(gateway, asking("dynamic/support", stream=True))

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert json.loads(heard.body)["stream_options"] == {"include_usage": True}
    assert (answer.body, row["input_tokens"]) == (b"".join(STREAM), 9)


async def test_a_split_gives_each_user_one_place(open_gateway: OpenGateway, hosts: Hosts) -> None:
    users = [f'cf-aig-metadata: {{"userId": "u{n}"}}' for n in range(24)]
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        first = await asyncio.gather(*(by_compat(gateway, asking("dynamic/halves"), user) for user in users))
        again = await asyncio.gather(*(by_proxy(gateway, asking("dynamic/halves"), user) for user in users))

    places = [answer.header("cf-aig-provider") for answer in first]
    assert places == [answer.header("cf-aig-provider") for answer in again]
    assert min(Counter(places).values()) >= 4
    asked = {(heard.sni, json.loads(heard.body)["model"]) for heard in hosts.provider.heard}
    assert asked == {(OPENAI, "gpt-4o"), (GROQ, "llama-3.3-70b")}


# -- so many in so much time


@pytest.mark.parametrize("way", WAYS)
async def test_when_every_branch_is_full_the_caller_hears_when_one_opens(
    open_gateway: OpenGateway, hosts: Hosts, way: Way
) -> None:
    one, two = ('cf-aig-metadata: {"userId": "one"}', 'cf-aig-metadata: {"userId": "two"}')
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answered = [await way(gateway, asking("dynamic/metered"), user) for user in (one, one, one, two)]

        full = await way(gateway, asking("dynamic/metered"), one)

        row = (await gateway.rows(5))[-1]
    assert [answer.header("cf-aig-provider") for answer in answered] == ["za", "groq", "groq", "za"]
    assert (full.status, full.header("cf-aig-source"), full.header("cf-aig-attempts")) == (429, "rate-limit", "0")
    assert 50 <= int(full.header("retry-after") or 0) <= 60
    message = json.loads(full.body)["error"]["message"]
    assert "Every branch that would take this request is full" in message
    assert "(rule metered, policy.yaml:" in message
    assert (row["error_type"], row["terminal"], row["source"]) == ("rate_limit", "refused", "rate-limit")
    assert len(hosts.provider.heard) == 4


# -- names that lead nowhere


@pytest.mark.parametrize("way", WAYS)
async def test_a_name_that_no_rule_has_is_a_404_with_those_there_are(
    open_gateway: OpenGateway, hosts: Hosts, way: Way
) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answer = await way(gateway, asking("dynamic/suport"))

        row = await gateway.row()
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["param"], answer.header("x-should-retry")) == (404, "model", "false")
    assert "No route rule matches model 'dynamic/suport'; there are rules for dynamic/support, " in error["message"]
    assert (row["status_code"], row["terminal"], row["request_model"]) == (404, "refused", "dynamic/suport")
    assert hosts.provider.heard == []


NONE_HOLDS = "none of its branches holds (rule gold, policy.yaml:"
NO_MODEL = "claude is left out: nothing says which model dynamic/nameless is there"


@pytest.mark.parametrize("way", WAYS)
async def test_a_name_that_no_place_can_answer_is_a_404_that_says_why(
    open_gateway: OpenGateway, hosts: Hosts, way: Way
) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        closed = await way(gateway, asking("dynamic/gold"))
        nameless = await way(gateway, asking("dynamic/nameless"))

    assert (closed.status, nameless.status) == (404, 404)
    assert "none of its branches holds (rule gold, policy.yaml:" in json.loads(closed.body)["error"]["message"]
    assert "claude is left out: nothing says which model dynamic/nameless is there" in nameless.body.decode()
    assert hosts.provider.heard == []


async def test_without_any_rule_a_dynamic_name_is_refused_with_how_to_make_one(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    async with open_gateway(hosts=DIALLED) as gateway:
        answer = await by_compat(gateway, asking("dynamic/support"))

    assert answer.status == 404
    assert "the policy has no such rule" in json.loads(answer.body)["error"]["message"]


# -- at a provider's own host


async def test_another_model_of_the_own_host_may_be_meant(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answer = await by_proxy(gateway, asking("dynamic/own", temperature=0.5))
        alias = await by_proxy(gateway, asking("fastest"))

    first, second = hosts.provider.heard
    assert (answer.status, alias.status) == (200, 200)
    assert json.loads(first.body) == asking("gpt-4o-mini", temperature=0.5)
    assert json.loads(second.body) == asking("gpt-4o-mini")
    assert {(heard.sni, heard.header("authorization")) for heard in (first, second)} == {(OPENAI, "Bearer of-the-app")}


async def test_a_place_that_no_model_is_named_for_is_left_out(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answer = await by_proxy(gateway, asking("dynamic/half-named"))

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert (answer.status, heard.sni, json.loads(heard.body)["model"]) == (200, OPENAI, "gpt-4o-mini")
    assert json.loads(row["notes"]) == [
        "route: claude is left out: nothing says which model dynamic/half-named is there"
    ]


async def test_anthropics_own_api_may_ask_for_a_dynamic_name(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(CLAUDE, MESSAGES, CLAUDE_ANSWER)
    dynamic = """
route:
  - {name: draft, match: {model: dynamic/draft, provider: anthropic}, try: {model: claude-haiku-4-5}}
"""
    body = {"model": "dynamic/draft", "max_tokens": 9, "messages": HI}
    async with open_gateway(dynamic, hosts=DIALLED) as gateway:
        client = await gateway.http1(CLAUDE)

        answer = await client.post(MESSAGES, json.dumps(body).encode(), "x-api-key: of-the-app")

    [heard] = hosts.provider.heard
    assert (answer.body, heard.header("x-api-key")) == (CLAUDE_ANSWER, "of-the-app")
    assert json.loads(heard.body) == {**body, "model": "claude-haiku-4-5"}


# -- other names


async def test_any_name_may_be_an_alias(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        answered = [await way(gateway, asking("fast")) for way in (by_compat, by_proxy)]

        rows = await gateway.rows(2)
    assert [answer.status for answer in answered] == [200, 200]
    for heard, row in zip(hosts.provider.heard, rows, strict=True):
        assert (heard.sni, json.loads(heard.body)["model"]) == (GROQ, "llama-3.1-8b")
        assert not carries(heard, "of-the-app")
        assert (row["request_model"], row["target"]) == ("fast", "groq")


async def test_a_header_may_name_the_place_of_a_dynamic_name(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(POLICY, hosts=DIALLED, env=KEYS) as gateway:
        known = await by_compat(gateway, asking("dynamic/halves"), "cf-aig-fallback: groq")
        unknown = await by_compat(gateway, asking("dynamic/support"), "cf-aig-fallback: groq")

    assert (known.status, hosts.asked) == (200, {GROQ: 1})
    assert unknown.status == 400
    assert "nothing says which model dynamic/support is there" in json.loads(unknown.body)["error"]["message"]
