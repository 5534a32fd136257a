"""The universal endpoint over real sockets: elements are tried in order, each on its own terms, with its own key."""

import json
from hashlib import sha256
from typing import Any

import pytest

from support.client import Answer, Http1
from support.gateway import Gateway, OpenGateway
from support.hosts import DOWN, Hosts, carries, is_down, is_silent, resets
from support.provider import Heard, Provider, Script, Wire
from support.speech import (
    ANSWER,
    ASK_GEMINI,
    CHAT,
    CLAUDE_ANSWER,
    CLAUDE_STREAM,
    DONE,
    GEMINI_ANSWER,
    HEL,
    LO,
    MESSAGES,
    ROLE,
    STOP,
    STREAM,
    USAGE,
)

OPENAI, CLAUDE, GOOGLE, AZURE, GROQ = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "example-resource.openai.azure.com",
    "api.groq.com",
)
AT_GROQ = "/openai/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"
HI = [{"role": "user", "content": "hi"}]
ENTRIES = ["/", "/v1/acct/gw", "/v1/acct/gw/"]


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


def element(provider: str, endpoint: str, key: str, query: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "provider": provider,
        "endpoint": endpoint,
        "headers": {"Authorization": f"Bearer {key}"},
        "query": query,
    } | more


def gpt(**more: Any) -> dict[str, Any]:
    return element("openai", "chat/completions", "key-of-openai", {"model": "gpt-4o", "messages": HI}, **more)


def claude(stream: bool = False, **more: Any) -> dict[str, Any]:
    query = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": HI} | ({"stream": True} if stream else {})
    headers = {"x-api-key": "key-of-claude", "anthropic-version": "2023-06-01"}
    return element("anthropic", "v1/messages", "", query, **({"headers": headers} | more))


def groq(**more: Any) -> dict[str, Any]:
    return element("groq", "chat/completions", "key-of-groq", {"model": "llama", "messages": HI}, **more)


async def send(client: Http1, elements: Any, *fields: str, path: str = "/") -> Answer:
    body = elements if isinstance(elements, bytes) else json.dumps(elements).encode()
    return await client.post(path, body, "content-type: application/json", *fields)


def query_of(one: dict[str, Any]) -> bytes:
    """Return the body that the place of *one* gets: the client's own bytes."""
    return json.dumps(one["query"]).encode()


# -- one after the other


async def test_the_first_element_answers_and_no_other_is_asked(gateway: Gateway, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    client = await gateway.plain()

    answered = [await send(client, [gpt(), claude()], path=path) for path in ENTRIES]

    rows = await gateway.rows(len(ENTRIES))
    for heard, answer, row in zip(hosts.provider.heard, answered, rows, strict=True):
        assert (heard.sni, heard.header("host"), heard.path, heard.body) == (OPENAI, OPENAI, CHAT, query_of(gpt()))
        assert (answer.status, answer.body, answer.header("cf-aig-step")) == (200, ANSWER, "0")
        assert (answer.header("cf-aig-provider"), answer.header("cf-aig-log-id")) == ("openai", row["id"])
        assert (row["provider_name"], row["target"], row["step"]) == ("openai", "openai", 0)
        assert (row["request_model"], row["path"], row["host"]) == ("gpt-4o", CHAT, OPENAI)
        assert row["sent_sha256"] == sha256(heard.body).hexdigest() != row["request_sha256"]
        assert (row["input_tokens"], row["door"]) == (9, "base-url")


async def refuses_the_key(_heard: Heard, wire: Wire) -> None:
    await wire.answer(b'{"error":{"message":"bad key","code":"invalid_api_key"}}', "401 Unauthorized")


@pytest.mark.parametrize(("fails", "stream"), [(is_down, True), (resets, False), (refuses_the_key, True)])
async def test_whatever_fails_the_next_element_answers_in_its_own_words(
    gateway: Gateway, hosts: Hosts, fails: Script, stream: bool
) -> None:
    hosts.on(OPENAI, CHAT, fails)
    if stream:
        hosts.streams(CLAUDE, MESSAGES, CLAUDE_STREAM)
    else:
        hosts.says(CLAUDE, MESSAGES, CLAUDE_ANSWER)
    client = await gateway.plain()

    answer = await send(client, [gpt(), claude(stream)])

    row = await gateway.row()
    attempts = await gateway.rows(1, "select target, provider_name, host, input_tokens from attempts order by n")
    [event] = await gateway.rows(1, "select room, rule, action from policy_events")
    first, second = hosts.provider.heard
    assert (first.sni, second.sni, second.path) == (OPENAI, CLAUDE, MESSAGES)
    assert (first.body, second.body) == (query_of(gpt()), query_of(claude(stream)))
    assert (answer.status, answer.body) == (200, b"".join(CLAUDE_STREAM) if stream else CLAUDE_ANSWER)
    assert (answer.header("cf-aig-step"), answer.header("cf-aig-attempts")) == ("1", "2")
    assert (answer.header("cf-aig-provider"), answer.header("cf-aig-model")) == ("anthropic", "claude-haiku-4-5")
    assert (row["provider_name"], row["target"], row["step"], row["attempts"]) == ("anthropic", "anthropic", 1, 2)
    assert (row["response_model"], row["terminal"]) == ("claude-haiku-4-5", "complete")
    assert (row["input_tokens"], row["output_tokens"]) == (25, 15)
    assert [tuple(one.values()) for one in attempts] == [
        ("openai", "openai", OPENAI, None),
        ("anthropic", "anthropic", CLAUDE, 25),
    ]
    assert event == {"room": "route", "rule": "universal", "action": "fallback"}


async def test_elements_of_every_wire_and_form_stand_side_by_side(gateway: Gateway, hosts: Hosts) -> None:
    azure = "/openai/deployments/chat/chat/completions?api-version=2024-10-21"
    compat = element("compat", "chat/completions", "key-of-groq", {"model": "groq/llama", "messages": HI})
    deployed = element("azure-openai", azure.replace("/openai/deployments", "example-resource"), "", {"messages": HI})
    deployed["headers"] = {"api-key": "key-of-azure"}
    gemini = element("google-ai-studio", f"{GEMINI[1:]}?key=key-of-google", "", json.loads(ASK_GEMINI), headers={})
    for host, path in ((GROQ, AT_GROQ), (AZURE, azure)):
        hosts.on(host, path, is_down)
    hosts.says(GOOGLE, GEMINI, GEMINI_ANSWER)
    client = await gateway.plain()

    answer = await send(client, [compat, deployed, gemini])

    row = await gateway.row()
    first, second, third = hosts.provider.heard
    assert (first.sni, first.path, json.loads(first.body)["model"]) == (GROQ, AT_GROQ, "llama")
    assert (second.sni, second.path, second.header("api-key")) == (AZURE, azure, "key-of-azure")
    assert (third.sni, third.path) == (GOOGLE, f"{GEMINI}?key=key-of-google")
    assert (answer.status, answer.body, answer.header("cf-aig-step")) == (200, GEMINI_ANSWER, "2")
    assert (row["provider_name"], row["input_tokens"], row["request_model"]) == ("gcp.gemini", 4, "llama")


async def test_a_stream_that_dies_before_its_content_leads_on_and_leaves_no_trace(
    gateway: Gateway, hosts: Hosts
) -> None:
    async def cut_before_its_content(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        wire.cut()

    hosts.on(OPENAI, CHAT, cut_before_its_content)
    hosts.streams(CLAUDE, MESSAGES, CLAUDE_STREAM)
    client = await gateway.plain()
    streamed = gpt()
    streamed["query"]["stream"] = True

    answer = await send(client, [streamed, claude(stream=True)])

    assert (answer.status, answer.body, answer.complete) == (200, b"".join(CLAUDE_STREAM), True)


async def test_a_later_element_is_asked_for_its_usage_too(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(CLAUDE, MESSAGES, is_down)
    hosts.streams(OPENAI, CHAT, [ROLE, HEL, LO, STOP, USAGE, DONE])
    client = await gateway.plain()
    streamed = gpt()
    streamed["query"]["stream"] = True

    answer = await send(client, [claude(), streamed])

    row = await gateway.row()
    [heard] = hosts.heard(OPENAI)
    assert json.loads(heard.body) == streamed["query"] | {"stream_options": {"include_usage": True}}
    assert answer.body == b"".join(STREAM)
    assert (row["input_tokens"], row["usage_source"]) == (9, "reported")


# -- each on its own terms


async def test_each_element_has_its_own_tries(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, is_down)
    hosts.on(GROQ, AT_GROQ, is_down)
    hosts.says(CLAUDE, MESSAGES, CLAUDE_ANSWER)
    client = await gateway.plain()
    by_config = gpt(config={"maxAttempts": 3, "retryDelay": 1, "backoff": "constant"})
    by_header = groq(headers={"Authorization": "Bearer k", "cf-aig-max-attempts": "2", "cf-aig-retry-delay": "1"})

    answer = await send(client, [by_config, by_header, claude()])

    tried = await gateway.rows(1, "select target from attempts order by n")
    assert (answer.status, answer.header("cf-aig-attempts"), answer.header("cf-aig-step")) == (200, "6", "2")
    assert [one["target"] for one in tried] == ["openai"] * 3 + ["groq"] * 2 + ["anthropic"]
    assert [heard.header("cf-aig-max-attempts") for heard in hosts.provider.heard] == [None] * 6


async def test_what_an_element_does_not_say_the_request_says_for_it(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, is_down)
    hosts.on(GROQ, AT_GROQ, is_down)
    client = await gateway.plain()

    answer = await send(
        client, [gpt(config={"maxAttempts": 1}), groq()], "cf-aig-max-attempts: 2", "cf-aig-retry-delay: 1"
    )

    assert (answer.status, answer.body, hosts.asked) == (503, DOWN, {OPENAI: 1, GROQ: 2})
    assert answer.header("x-should-retry") == "false"


async def test_each_element_has_its_own_clock(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, is_silent)
    hosts.on(GROQ, AT_GROQ, is_silent)
    hosts.says(CLAUDE, MESSAGES, CLAUDE_ANSWER)
    client = await gateway.plain()
    by_header = groq(headers={"Authorization": "Bearer k", "cf-aig-request-timeout": "60"})

    answer = await send(
        client, [gpt(config={"requestTimeout": 50}), by_header, claude()], "cf-aig-request-timeout: 20000"
    )

    tried = await gateway.rows(1, "select target, error_type, error_detail from attempts order by n")
    assert (answer.status, answer.body) == (200, CLAUDE_ANSWER)
    assert [tuple(one.values()) for one in tried] == [
        ("openai", "timeout", "no first byte within 0.05 s"),
        ("groq", "timeout", "no first byte within 0.06 s"),
        ("anthropic", None, None),
    ]


async def test_where_all_fail_the_last_ones_answer_comes_as_it_came(gateway: Gateway, hosts: Hosts) -> None:
    overloaded = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    hosts.on(OPENAI, CHAT, is_down)
    hosts.says(CLAUDE, MESSAGES, overloaded, "529 Overloaded", "request-id: req_9")
    client = await gateway.plain()

    answer = await send(client, [gpt(), claude()])

    row = await gateway.row()
    assert (answer.status, answer.body, answer.header("request-id")) == (529, overloaded, "req_9")
    assert (answer.header("x-should-retry"), answer.header("cf-aig-source")) == ("false", "provider")
    assert (row["status_code"], row["target"], row["step"], row["attempts"]) == (529, "anthropic", 1, 2)


async def test_where_none_can_be_had_the_refusal_is_in_the_first_ones_words(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(CLAUDE, MESSAGES, resets)
    hosts.on(OPENAI, CHAT, resets)
    client = await gateway.plain()

    answer = await send(client, [claude(), gpt()])

    said = json.loads(answer.body)
    assert (answer.status, said["type"], answer.header("cf-aig-attempts")) == (502, "error", "2")
    assert OPENAI in said["error"]["message"]


# -- keys


async def test_no_element_gets_the_key_of_another_or_of_the_request(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, is_down)
    hosts.on(CLAUDE, MESSAGES, is_down)
    hosts.says(GROQ, AT_GROQ, ANSWER)
    client = await gateway.plain()
    outer = ("authorization: Bearer of-the-request", "x-api-key: of-the-request", "cookie: of-the-request")
    told = gpt(headers={"Authorization": "Bearer key-of-openai", "OpenAI-Organization": "org-1", "x-mine": 7})

    await send(client, [told, claude(), groq()], *outer, "user-agent: app/1", "x-secret: of-the-request")

    places = {OPENAI: "key-of-openai", CLAUDE: "key-of-claude", GROQ: "key-of-groq"}
    for host, own in places.items():
        [heard] = hosts.heard(host)
        others = [key for key in (*places.values(), "of-the-request") if key != own]
        assert carries(heard, own)
        assert [key for key in others if carries(heard, key)] == []
        assert (heard.header("user-agent"), heard.header("content-type")) == ("app/1", "application/json")
    [first] = hosts.heard(OPENAI)
    assert (first.header("openai-organization"), first.header("x-mine")) == ("org-1", "7")
    assert hosts.heard(CLAUDE)[0].header("openai-organization") is None


@pytest.mark.parametrize("payloads", ["redacted", "full"])
async def test_keys_in_the_body_are_not_written_down(open_gateway: OpenGateway, hosts: Hosts, payloads: str) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    async with open_gateway(f"trace: {{payloads: {payloads}}}") as gateway:
        client = await gateway.plain()

        await send(client, [gpt(), claude()])

        bodies = await gateway.rows(1, "select kind, body from payloads order by kind")
        written = gateway.db.read_bytes() + gateway.db.with_name("traces.db-wal").read_bytes()
    assert [body["kind"] for body in bodies] == ["request", "response", "sent"]
    assert '"endpoint": "v1/messages"' in bodies[0]["body"]
    assert b"key-of-" not in written


# -- rules and cache

RULES = """
usage: leave
route:
  - {name: in-za, match: {metadata.residency: za}, zone: za}
cache: [{match: {model: gpt-4o}, ttl: 1 h}]
targets:
  za: {provider: azure-openai, base_url: "https://za.openai.azure.com", zone: za}
"""


async def test_an_answer_is_kept_for_the_same_elements_and_no_others(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    async with open_gateway(RULES) as gateway:
        client = await gateway.plain()
        await send(client, [gpt(), claude()])
        await gateway.rows(1)

        again = await send(client, [gpt(), claude()])
        other = await send(client, [gpt(), groq()])

    assert (again.body, again.header("cf-aig-cache-status"), again.header("cf-aig-step")) == (ANSWER, "HIT", "0")
    assert (other.body, other.header("cf-aig-cache-status")) == (ANSWER, "MISS")
    assert hosts.asked == {OPENAI: 2}


async def test_a_zone_closes_elements_outside_of_it(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(RULES) as gateway:
        client = await gateway.plain()

        answer = await send(client, [gpt(), claude()], 'cf-aig-metadata: {"residency": "za"}')

    message = json.loads(answer.body)["error"]["message"]
    assert answer.status == 403
    assert "openai is in no zone, anthropic is in no zone (rule in-za, policy.yaml:" in message
    assert hosts.provider.heard == []


# -- what cannot be


WRONG: list[tuple[Any, int, str]] = [
    (b"{}", 400, 'the universal endpoint takes a JSON array of {"provider", "endpoint", "headers", "query"}'),
    (b'[{"provider": "openai"', 400, "the universal endpoint takes a JSON array"),
    (b"", 400, "the universal endpoint takes a JSON array"),
    ([], 400, "the universal endpoint takes 1 to 20 elements, not 0"),
    ([gpt()] * 21, 400, "the universal endpoint takes 1 to 20 elements, not 21"),
    ([gpt(), "openai"], 400, "element 2 of 2: it takes an object with provider, endpoint, headers and query"),
    ([gpt(), gpt() | {"provider": "open-ai"}], 404, "element 2 of 2: no provider 'open-ai'; there are "),
    ([gpt(), claude(), gpt() | {"endpoint": None}], 400, "element 3 of 3: endpoint is missing; it takes text"),
    ([{"provider": "openai", "endpoint": "chat/completions"}], 400, "element 1 of 1: query is missing"),
    ([gpt(), gpt(headers=["a"])], 400, 'element 2 of 2: headers is ["a"]; it takes an object'),
    ([gpt(headers={"x-a": "b\r\nx-evil: 1"})], 400, "element 1 of 1: the header x-a holds a character that no header"),
    ([gpt(), gpt(config={"maxAttempts": 9})], 400, "element 2 of 2: config.maxAttempts is 9; it takes"),
    ([gpt(headers={"cf-aig-backoff": "wild"})], 400, "element 1 of 1: "),
    (
        [element("compat", "chat/completions", "k", {"model": "azure-openai/x"}), gpt()],
        404,
        "element 1 of 2: azure-openai has no",
    ),
    (
        [gpt(), element("compat", "chat/completions", "k", {"model": "dynamic/x"})],
        400,
        "element 2 of 2: dynamic/NAME has an order",
    ),
]


async def test_an_element_that_is_wrong_is_named_and_nothing_leaves(gateway: Gateway, hosts: Hosts) -> None:
    client = await gateway.plain()

    answers = [await send(client, elements) for elements, *_ in WRONG]

    rows = await gateway.rows(len(WRONG))
    for (elements, status, says), answer, row in zip(WRONG, answers, rows, strict=True):
        error = json.loads(answer.body)["error"]
        assert (answer.status, says in error["message"]) == (status, True), (elements, error["message"])
        assert (answer.header("cf-aig-attempts"), answer.header("x-should-retry")) == ("0", "false")
        assert row["id"] in answer.body.decode()
        assert (row["status_code"], row["terminal"], row["source"]) == (status, "refused", "gateway")
    assert hosts.provider.heard == []


async def test_the_order_is_the_bodys_own(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, is_down)
    client = await gateway.plain()

    named = await send(client, [gpt(), claude()], "cf-aig-fallback: za")
    none = await send(client, [gpt(), claude()], "cf-aig-fallback: none")

    assert (named.status, "the elements of the body are the order" in named.body.decode()) == (400, True)
    assert (none.status, none.body, hosts.asked) == (503, DOWN, {OPENAI: 1})
