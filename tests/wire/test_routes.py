"""Routes over real sockets: a request reaches another place in that place's form, with that place's key, and no other.

Clients' keys say ``of-the-app``, those of the targets name their target: what leaked shows by its name.
"""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.hosts import DOWN, Hosts, carries, is_down, is_silent, resets
from support.provider import Heard, Provider, Wire
from support.speech import (
    ANSWER,
    ASK,
    ASK_GEMINI,
    CHAT,
    CLAUDE_ANSWER,
    CLAUDE_STREAM,
    DONE,
    GEMINI,
    GEMINI_ANSWER,
    GEMINI_STREAM,
    GEMINI_STREAM_PATH,
    HEL,
    LO,
    MESSAGES,
    ROLE,
    STOP,
    STREAM,
    USAGE,
    sse,
)

OPENAI, CLAUDE, GOOGLE, GROQ = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "api.groq.com",
)
APP, ZA, EU = (f"{name}.openai.azure.com" for name in ("app", "za", "eu"))
CORP, OTHER, VERTEX = "llm.corp.example", "other.example", "us-central1-aiplatform.googleapis.com"
DIALLED = (OPENAI, CLAUDE, GOOGLE, GROQ, APP, ZA, EU, CORP, OTHER, VERTEX)

TARGETS = """
usage: leave
providers:
  corp-claude: {hosts: [llm.corp.example], dialect: anthropic}
targets:
  app:    {provider: azure-openai, base_url: "https://app.openai.azure.com", deployments: {gpt-4o: chat}}
  za:     {provider: azure-openai, base_url: "https://za.openai.azure.com", headers: {api-key: env:ZA},
           deployments: {gpt-4o: gpt-4o-za}, api_version: 2024-10-21, zone: za}
  eu:     {provider: azure-openai, base_url: "https://eu.openai.azure.com", headers: {api-key: env:EU},
           deployments: {gpt-4o: gpt-4o-eu}, zone: eu}
  own:    {provider: openai, base_url: "https://other.example/llm/v1", headers: {Authorization: "Bearer env:OWN"}}
  openai: {provider: openai, base_url: "https://api.openai.com/v1"}
  groq:   {provider: groq, base_url: "https://api.groq.com/openai/v1", headers: {Authorization: "Bearer env:GROQ"}}
  corp:   {provider: corp-claude, base_url: "https://llm.corp.example/anthropic", headers: {x-api-key: env:CORP}}
  vertex: {provider: google-vertex-ai, headers: {Authorization: "Bearer env:VERTEX"},
           base_url: "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1/publishers/google"}
"""
KEYS = {name: f"key-of-{name.lower()}" for name in ("ZA", "EU", "OWN", "GROQ", "CORP", "VERTEX")}

AT_APP = "/openai/deployments/chat/chat/completions?api-version=2024-06-01"
AT_ZA = "/openai/deployments/gpt-4o-za/chat/completions?api-version=2024-10-21"
AT_EU = "/openai/v1/chat/completions"
AT_EU_AS_ASKED = "/openai/deployments/gpt-4o-eu/chat/completions?api-version=2024-06-01"
AT_GROQ = "/openai/v1/chat/completions"
AT_OWN = "/llm/v1/chat/completions"
AT_CORP = "/anthropic/v1/messages"
AT_VERTEX = "/v1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash"

BEARER, API_KEY, X_API_KEY = ("authorization: Bearer of-the-app", "api-key: of-the-app", "x-api-key: of-the-app")


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


def odd(model: str | None, stream: bool = False) -> bytes:
    """Return a request that a parser would write otherwise: blanks, a number, an escape, a member that stands twice."""
    begin = f'{{ "model" : "{model}",' if model else "{"
    rest = '"temperature":0.10,  "messages":[{"role":"user","content":"h\\u00e9"}],"seed":1,"seed":2'
    return f"{begin}{rest}{', "stream": true' if stream else ''}\n}}".encode()


def digest(body: bytes) -> str:
    return sha256(body).hexdigest()


WITH_USAGE = [ROLE, HEL, LO, STOP, USAGE, DONE]


async def answers(heard: Heard, wire: Wire) -> None:
    """Answer in OpenAI's wire: a stream where one was asked for."""
    if json.loads(heard.body).get("stream"):
        await wire.stream(WITH_USAGE)
    else:
        await wire.answer(ANSWER)


# -- one place instead of another


@dataclass(frozen=True)
class Move:
    """From where to where, and what stays of the request."""

    name: str
    asked: tuple[str, str]
    key: str
    """What the client sends."""
    to: str
    there: tuple[str, str]
    sends: str
    """The key that the target gets."""
    provider_name: str
    model: str | None = "gpt-4o"
    """In the client's body."""
    sent: str | None = "gpt-4o"
    """In the target's."""
    row: str = "gpt-4o"
    """The row's ``request_model``."""


MOVES = [
    Move(
        "OpenAI to Azure by deployment",
        (OPENAI, CHAT),
        BEARER,
        "za",
        (ZA, AT_ZA),
        "api-key: key-of-za",
        "azure.ai.openai",
    ),
    Move(
        "OpenAI to Azure's v1",
        (OPENAI, CHAT),
        BEARER,
        "eu",
        (EU, AT_EU),
        "api-key: key-of-eu",
        "azure.ai.openai",
        sent="gpt-4o-eu",
    ),
    Move(
        "Azure to OpenAI",
        (APP, AT_APP),
        API_KEY,
        "own",
        (OTHER, AT_OWN),
        "authorization: Bearer key-of-own",
        "openai",
        model="chat",
        row="chat",
    ),
    Move(
        "Azure to Azure, each with its own deployment",
        (APP, AT_APP),
        API_KEY,
        "eu",
        (EU, AT_EU_AS_ASKED),
        "api-key: key-of-eu",
        "azure.ai.openai",
        model="chat",
        sent="chat",
        row="chat",
    ),
    Move(
        "Azure to Azure of another version",
        (APP, AT_APP),
        API_KEY,
        "za",
        (ZA, AT_ZA),
        "api-key: key-of-za",
        "azure.ai.openai",
        model="chat",
        sent="chat",
        row="chat",
    ),
    Move(
        "OpenAI to Groq",
        (OPENAI, CHAT),
        BEARER,
        "groq",
        (GROQ, AT_GROQ),
        "authorization: Bearer key-of-groq",
        "groq",
    ),
    Move(
        "OpenAI to a host of its own wire",
        (OPENAI, CHAT),
        BEARER,
        "own",
        (OTHER, AT_OWN),
        "authorization: Bearer key-of-own",
        "openai",
    ),
]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.name)
async def test_openais_wire_reaches_a_target_in_the_targets_form(
    open_gateway: OpenGateway, hosts: Hosts, move: Move
) -> None:
    hosts.on(*move.there, answers)
    name, _, key = move.sends.partition(": ")
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http2(move.asked[0])
        fields = (move.key, "x-mine: 1", f"cf-aig-fallback: {move.to}")

        plain = await client.post(move.asked[1], odd(move.model), *fields)
        stream = await client.post(move.asked[1], odd(move.model, stream=True), *fields)

        rows = await gateway.rows(2)
    assert (plain.body, stream.body) == (ANSWER, b"".join(WITH_USAGE))
    for streamed, heard, answer, row in zip((False, True), hosts.provider.heard, (plain, stream), rows, strict=True):
        asked, sent = odd(move.model, streamed), odd(move.sent, streamed)
        assert (heard.sni, heard.header("host"), heard.path) == (move.there[0], *move.there)
        assert [value for field, value in heard.fields if field.lower() == name.encode()] == [key.encode()]
        assert not carries(heard, "of-the-app")
        assert (heard.header("x-mine"), heard.header("cf-aig-fallback")) == ("1", None)
        assert (heard.body, heard.header("content-length")) == (sent, str(len(sent)))
        assert (answer.header("cf-aig-provider"), answer.header("cf-aig-step")) == (move.to, "0")
        assert (row["provider_name"], row["target"], row["step"]) == (move.provider_name, move.to, 0)
        assert (row["host"], row["path"], row["request_model"]) == (*move.asked, move.row)
        assert (row["request_sha256"], row["sent_sha256"]) == (digest(asked), None if sent == asked else digest(sent))
        assert (row["input_tokens"], row["output_tokens"], row["stream"]) == (9, 3, streamed)


async def test_a_body_without_a_model_gets_the_one_that_azure_had_in_its_path(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.says(OTHER, AT_OWN, ANSWER)
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1(APP)

        await client.post(AT_APP, odd(None), API_KEY, "cf-aig-fallback: own")

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert heard.body == odd(None).replace(b"{", b'{"model":"gpt-4o",', 1)
    assert (row["request_model"], row["sent_sha256"]) == ("chat", digest(heard.body))


async def answers_as_claude(heard: Heard, wire: Wire) -> None:
    if json.loads(heard.body).get("stream"):
        await wire.stream(CLAUDE_STREAM)
    else:
        await wire.answer(CLAUDE_ANSWER)


async def test_anthropics_wire_reaches_an_own_host_below_a_path(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(CORP, AT_CORP, answers_as_claude)
    fields = (X_API_KEY, "anthropic-version: 2023-06-01", "anthropic-beta: context-1m", "cf-aig-fallback: corp")
    bodies = [odd("claude-haiku-4-5", stream) for stream in (False, True)]
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1(CLAUDE)

        answered = [await client.post(f"{MESSAGES}?beta=true", body, *fields) for body in bodies]

        rows = await gateway.rows(2)
    for heard in hosts.provider.heard:
        assert (heard.sni, heard.header("host"), heard.path) == (CORP, CORP, f"{AT_CORP}?beta=true")
        assert (heard.header("x-api-key"), heard.header("anthropic-version")) == ("key-of-corp", "2023-06-01")
        assert heard.header("anthropic-beta") == "context-1m"
        assert not carries(heard, "of-the-app")
    assert [heard.body for heard in hosts.provider.heard] == bodies
    assert [answer.body for answer in answered] == [CLAUDE_ANSWER, b"".join(CLAUDE_STREAM)]
    for row in rows:
        assert (row["provider_name"], row["target"], row["sent_sha256"]) == ("corp-claude", "corp", None)
        assert (row["input_tokens"], row["output_tokens"]) == (25, 15)


async def test_geminis_wire_reaches_vertex(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(VERTEX, f"{AT_VERTEX}:generateContent", GEMINI_ANSWER)
    hosts.streams(VERTEX, f"{AT_VERTEX}:streamGenerateContent?alt=sse", GEMINI_STREAM)
    asked = [f"{GEMINI}?key=of-the-app", f"{GEMINI_STREAM_PATH}&key=of-the-app"]
    fields = ("x-goog-api-key: of-the-app", "cf-aig-fallback: vertex")
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1(GOOGLE)

        answered = [await client.post(path, ASK_GEMINI, *fields) for path in asked]

        rows = await gateway.rows(2)
    plain, stream = hosts.provider.heard
    assert (plain.path, stream.path) == (f"{AT_VERTEX}:generateContent", f"{AT_VERTEX}:streamGenerateContent?alt=sse")
    for heard in (plain, stream):
        assert (heard.sni, heard.body, heard.header("authorization")) == (VERTEX, ASK_GEMINI, "Bearer key-of-vertex")
        assert not carries(heard, "of-the-app")
    assert [answer.body for answer in answered] == [GEMINI_ANSWER, b"".join(GEMINI_STREAM)]
    for row in rows:
        assert (row["provider_name"], row["target"]) == ("gcp.vertex_ai", "vertex")
        assert (row["request_model"], row["input_tokens"], row["output_tokens"]) == ("gemini-2.5-flash", 4, 2)
        assert "of-the-app" not in row["path"]


async def test_a_target_is_asked_for_usage_as_its_own_host_would_be(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.streams(ZA, AT_ZA, WITH_USAGE)
    async with open_gateway(TARGETS.replace("leave", "ask"), hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, odd("gpt-4o", stream=True), BEARER, "cf-aig-fallback: za")

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert json.loads(heard.body)["stream_options"] == {"include_usage": True}
    assert answer.body == b"".join(STREAM)
    assert (row["input_tokens"], row["usage_source"], row["sent_sha256"]) == (9, "reported", digest(heard.body))


# -- a place that the client names itself


async def test_a_named_target_with_a_key_gets_that_key_and_never_the_clients(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.on(CORP, AT_CORP, answers_as_claude)
    calls = [
        ("/target/corp/v1/messages", odd("claude-haiku-4-5")),
        ("/v1/acct/gw/target/corp/v1/messages", odd("claude-haiku-4-5", stream=True)),
    ]
    secret = (X_API_KEY, BEARER, "cookie: of-the-app")
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.plain()

        answered = [await client.post(f"{path}?key=of-the-app&beta=true", body, *secret) for path, body in calls]

        rows = await gateway.rows(2)
    for (_, body), heard, row in zip(calls, hosts.provider.heard, rows, strict=True):
        assert (heard.sni, heard.header("host"), heard.path) == (CORP, CORP, f"{AT_CORP}?beta=true")
        assert (heard.body, heard.header("x-api-key")) == (body, "key-of-corp")
        assert not carries(heard, "of-the-app")
        assert (row["target"], row["provider_name"]) == ("corp", "corp-claude")
        assert (row["sent_sha256"], row["input_tokens"]) == (None, 25)
    assert [answer.body for answer in answered] == [CLAUDE_ANSWER, b"".join(CLAUDE_STREAM)]
    assert {answer.header("cf-aig-provider") for answer in answered} == {"corp"}


async def test_a_named_target_without_a_key_gets_the_clients(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.plain()

        answer = await client.post("/target/openai/chat/completions", ASK, BEARER)

    [heard] = hosts.provider.heard
    assert (answer.status, heard.sni, heard.header("authorization")) == (200, OPENAI, "Bearer of-the-app")


# -- one place after another


def rule(text: str, **more: str) -> str:
    """Return the targets and one rule of ``route``; *more* are other sections."""
    return "\n".join([TARGETS, f"route:\n  - {text}", *(f"{name}: {value}" for name, value in more.items())])


@pytest.mark.parametrize(("door", "stream"), [("proxy", True), ("base-url", False)])
async def test_each_place_gets_the_request_in_its_own_form_and_its_own_key_alone(
    open_gateway: OpenGateway, hosts: Hosts, door: str, stream: bool
) -> None:
    hosts.on(OPENAI, CHAT, resets)
    hosts.on(GROQ, AT_GROQ, is_down)
    hosts.on(EU, AT_EU, answers)
    tries = rule("{name: far, match: {provider: openai}, try: [openai, {target: groq, model: llama-3.3-70b}, eu]}")
    async with open_gateway(tries, hosts=DIALLED, env=KEYS) as gateway:
        client = await (gateway.http1() if door == "proxy" else gateway.plain())
        path = CHAT if door == "proxy" else "/openai/chat/completions"

        answer = await client.post(path, odd("gpt-4o", stream), BEARER)

        row = await gateway.row()
        attempts = await gateway.rows(1, "select target, host, provider_name, error_type from attempts order by n")
        events = await gateway.rows(1, "select rule, action, detail from policy_events order by rowid")
    first, second, third = hosts.provider.heard
    assert [heard.sni for heard in hosts.provider.heard] == [OPENAI, GROQ, EU]
    assert [heard.header("host") for heard in hosts.provider.heard] == [OPENAI, GROQ, EU]
    assert [heard.path for heard in hosts.provider.heard] == [CHAT, AT_GROQ, AT_EU]
    assert (first.header("authorization"), first.body) == ("Bearer of-the-app", odd("gpt-4o", stream))
    assert (second.header("authorization"), second.body) == ("Bearer key-of-groq", odd("llama-3.3-70b", stream))
    assert (third.header("api-key"), third.header("authorization")) == ("key-of-eu", None)
    assert third.body == odd("gpt-4o-eu", stream)
    assert answer.body == (b"".join(WITH_USAGE) if stream else ANSWER)
    assert (answer.header("cf-aig-step"), answer.header("cf-aig-attempts")) == ("2", "3")
    assert (row["target"], row["step"], row["attempts"], row["provider_name"]) == ("eu", 2, 3, "azure.ai.openai")
    assert (row["host"], row["request_model"], row["sent_sha256"]) == (OPENAI, "gpt-4o", digest(third.body))
    assert [tuple(one.values()) for one in attempts] == [
        ("openai", OPENAI, "openai", "reset"),
        ("groq", GROQ, "groq", "server_error"),
        ("eu", EU, "azure.ai.openai", None),
    ]
    assert events == [
        {"rule": "far", "action": "fallback", "detail": "openai: reset; on to groq"},
        {"rule": "far", "action": "fallback", "detail": "groq: 503; on to eu"},
    ]


async def cut_before_its_content(_heard: Heard, wire: Wire) -> None:
    await wire.stream_head()
    await wire.chunk(ROLE)
    wire.cut()


async def error_event_first(_heard: Heard, wire: Wire) -> None:
    await wire.stream([sse({"error": {"message": "overloaded", "type": "server_error", "code": None}})])


@pytest.mark.parametrize("fails", [cut_before_its_content, error_event_first])
async def test_of_a_stream_that_fails_before_its_content_the_client_sees_nothing(
    open_gateway: OpenGateway, hosts: Hosts, fails: Any
) -> None:
    hosts.on(OPENAI, CHAT, fails)
    hosts.streams(ZA, AT_ZA, STREAM)
    tries = rule("{name: far, match: {model: gpt-4o}, try: [openai, za], fall_back_on: [reset, error_event]}")
    async with open_gateway(tries, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http2()

        answer = await client.post(CHAT, odd("gpt-4o", stream=True), BEARER)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.complete) == (200, b"".join(STREAM), True)
    assert (row["target"], row["step"], row["terminal"], row["attempts"]) == ("za", 1, "complete", 2)


async def test_what_no_rule_names_as_a_cause_is_handed_on_as_it_came(open_gateway: OpenGateway, hosts: Hosts) -> None:
    wrong = b'{"error":{"message":"no such model","type":"invalid_request_error","code":"model_not_found"}}'
    hosts.says(GROQ, AT_GROQ, wrong, "404 Not Found", "x-request-id: req_1")
    tries = rule("{name: far, match: {provider: openai}, try: [groq, za]}")
    async with open_gateway(tries, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK, BEARER)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.header("x-request-id")) == (404, wrong, "req_1")
    assert (hosts.asked, row["target"], row["attempts"]) == ({GROQ: 1}, "groq", 1)


async def test_a_place_may_have_its_own_clock_and_number_of_tries(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(GROQ, AT_GROQ, is_silent)
    hosts.on(ZA, AT_ZA, is_down)
    hosts.says(EU, AT_EU, ANSWER)
    tries = rule(
        "{name: far, match: {provider: openai}, try: [{target: groq, timeout: 60 ms}, {target: za, attempts: 3}, eu]}",
        retry="{attempts: 1, delay: 1 ms}",
    )
    async with open_gateway(tries, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK, BEARER)

        tried = await gateway.rows(1, "select target, error_type from attempts order by n")
    assert answer.body == ANSWER
    assert [tuple(one.values()) for one in tried] == [("groq", "timeout"), *[("za", "server_error")] * 3, ("eu", None)]


# -- what a client says with cf-aig-fallback

CHAIN = "{name: far, match: {provider: openai}, try: [groq, za]}"


ORDERS: list[tuple[str | None, list[str], int]] = [
    (None, [GROQ, ZA], 200),
    ("none", [GROQ], 503),
    ("za", [ZA], 200),
    ("groq, eu", [GROQ, EU], 503),
    ("openai,za", [OPENAI, ZA], 200),
]
"""What the header says, who is asked, and how it ends."""


async def test_the_header_is_the_whole_order(open_gateway: OpenGateway, hosts: Hosts) -> None:
    for host, path in ((OPENAI, CHAT), (GROQ, AT_GROQ), (EU, AT_EU)):
        hosts.on(host, path, is_down)
    hosts.says(ZA, AT_ZA, ANSWER)
    async with open_gateway(rule(CHAIN), hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()
        for says, asked, status in ORDERS:
            hosts.provider.heard.clear()

            answer = await client.post(CHAT, ASK, BEARER, *([f"cf-aig-fallback: {says}"] if says else []))

            assert [heard.sni for heard in hosts.provider.heard] == asked, says
            assert (answer.status, answer.body) == (status, ANSWER if status == 200 else DOWN), says
            told = [heard.sni for heard in hosts.provider.heard if carries(heard, "of-the-app")]
            assert told == [host for host in asked if host == OPENAI], says


IMPOSSIBLE = [
    (OPENAI, CHAT, "za, ue", "names 'ue', which is no target; there are app, corp, eu, "),
    (OPENAI, CHAT, "corp", "corp is left out: corp-claude does not take OpenAI's chat/completions"),
    (CLAUDE, MESSAGES, "za", "za is left out: azure-openai does not take Anthropic's messages"),
]


async def test_an_order_that_cannot_be_is_a_400_in_the_clients_words(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(TARGETS, hosts=DIALLED, env=KEYS) as gateway:
        for host, path, says, part in IMPOSSIBLE:
            client = await gateway.http1(host)

            answer = await client.post(path, ASK, BEARER, f"cf-aig-fallback: {says}")

            said = json.loads(answer.body)
            assert part in said["error"]["message"]
            assert ("type" in said) == (host == CLAUDE), says
            assert (answer.status, answer.header("x-should-retry"), answer.header("cf-aig-attempts")) == (
                400,
                "false",
                "0",
            )

        rows = await gateway.rows(len(IMPOSSIBLE))
    assert {(row["terminal"], row["source"], row["attempts"]) for row in rows} == {("refused", "gateway", 0)}
    assert hosts.provider.heard == []


# -- split


def in_session(name: object) -> str:
    return f"cf-aig-session-id: {name}"


async def ask_all(gateway: Gateway, headers: list[list[str]], model: str = "gpt-4o") -> list[Answer]:
    """Ask once with each of *headers*, all at the same time."""
    client = await gateway.http2()
    return await asyncio.gather(*(client.post(CHAT, odd(model), BEARER, *some) for some in headers))


async def test_a_canary_of_models_takes_its_share_of_the_sessions_and_keeps_them(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    canary = rule("{name: canary, match: {model: gpt-4o}, split: {gpt-4o: 75, gpt-4o-next: 25}, by: session}")
    sessions = [f"s{n}" for n in range(40)]
    async with open_gateway(canary, hosts=DIALLED, env=KEYS) as gateway:
        await ask_all(gateway, [[in_session(name), f"x-session: {name}"] for name in sessions * 2])

        rows = await gateway.rows(80)
        events = await gateway.rows(80, "select rule, action, detail from policy_events")
    models: dict[str | None, set[str]] = {name: set() for name in sessions}
    for heard in hosts.provider.heard:
        model = json.loads(heard.body)["model"]
        models[heard.header("x-session")].add(model)
        assert (heard.body, heard.header("authorization")) == (odd(model), "Bearer of-the-app")
    shares = Counter(model for [model] in models.values())
    assert 4 <= shares["gpt-4o-next"] <= 16  # of 40, 10 expected; the draw is a hash, so this never changes
    assert shares.total() == 40
    assert {(row["request_model"], row["target"], row["step"]) for row in rows} == {("gpt-4o", "openai", 0)}
    assert Counter(row["sent_sha256"] for row in rows) == {
        None: 2 * shares["gpt-4o"],
        digest(odd("gpt-4o-next")): 2 * shares["gpt-4o-next"],
    }
    assert Counter(event["detail"] for event in events) == {
        "model gpt-4o": 2 * shares["gpt-4o"],
        "model gpt-4o-next": 2 * shares["gpt-4o-next"],
    }
    assert {(event["rule"], event["action"]) for event in events} == {("canary", "split")}


async def test_a_split_of_targets_keeps_users_apart_and_keys_too(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(ZA, AT_ZA, ANSWER)
    hosts.says(GROQ, AT_GROQ, ANSWER)
    split = rule("{name: half, match: {provider: openai}, split: {za: 1, groq: 1}, by: user}")
    users = [f'cf-aig-metadata: {{"userId": "u{n}"}}' for n in range(24)]
    async with open_gateway(split, hosts=DIALLED, env=KEYS) as gateway:
        first = await ask_all(gateway, [[user] for user in users])
        second = await ask_all(gateway, [[user] for user in users])

    places = [answer.header("cf-aig-provider") for answer in first]
    assert places == [answer.header("cf-aig-provider") for answer in second]
    assert hosts.asked == {ZA: 2 * places.count("za"), GROQ: 2 * places.count("groq")}
    assert min(hosts.asked.values()) >= 10  # of 48
    assert {heard.header("api-key") for heard in hosts.heard(ZA)} == {"key-of-za"}
    assert {heard.header("authorization") for heard in hosts.heard(GROQ)} == {"Bearer key-of-groq"}


async def test_without_the_field_each_request_is_drawn_anew(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    canary = rule("{name: canary, match: {model: gpt-4o}, split: {gpt-4o: 50, gpt-4o-next: 50}, by: session}")
    async with open_gateway(canary, hosts=DIALLED, env=KEYS) as gateway:
        await ask_all(gateway, [[] for _ in range(60)])

    shares = Counter(json.loads(heard.body)["model"] for heard in hosts.provider.heard)
    assert shares.total() == 60
    assert min(shares["gpt-4o"], shares["gpt-4o-next"]) >= 8  # fewer: once in 10 ** 9 runs


async def test_nothing_stands_in_for_a_canary_that_fails(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(GROQ, AT_GROQ, is_down)
    canary = rule("{name: canary, match: {model: gpt-4o}, split: {groq: 1}, by: session}")
    async with open_gateway(canary, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK, BEARER)

    assert (answer.status, answer.body, hosts.asked) == (503, DOWN, {GROQ: 1})


async def test_a_stream_may_be_drawn_too(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.streams(ZA, AT_ZA, [ROLE, HEL, LO, STOP, DONE])
    canary = rule("{name: canary, match: {stream: true}, split: {za: 1}}")
    async with open_gateway(canary, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http2()

        answer = await client.post(CHAT, odd("gpt-4o", stream=True), BEARER)

    assert (answer.body, answer.header("cf-aig-provider")) == (b"".join(STREAM), "za")


# -- choose

CHOOSE = """
route:
  - name: by-need
    match: {provider: openai}
    choose:
      - {match: {metadata.plan: free}, try: [{target: groq, model: llama-3.3-70b}]}
      - {match: {header.x-region: za}, try: za}
      - {match: {body.response_format.type: json_schema}, try: {model: gpt-4.1}}
      - {match: {body.seed: "> 100"}, unless: {stream: true}, try: own}
      - {within: {requests: 2, every: 1 m, per: metadata.team}, try: eu}
"""


BRANCHES: list[tuple[list[str], dict[str, Any], str, str]] = [
    (['cf-aig-metadata: {"plan": "free"}'], {}, GROQ, "llama-3.3-70b"),
    (["x-region: ZA", 'cf-aig-metadata: {"plan": "paid"}'], {}, ZA, "gpt-4o"),
    ([], {"response_format": {"type": "json_schema"}}, OPENAI, "gpt-4.1"),
    ([], {"seed": 101}, OTHER, "gpt-4o"),
    ([], {"seed": 101, "stream": True}, EU, "gpt-4o-eu"),
    ([], {"seed": 100}, EU, "gpt-4o-eu"),
]
"""Headers and members of the body, and the place and model that they lead to."""


async def test_the_first_branch_whose_conditions_hold_is_taken(open_gateway: OpenGateway, hosts: Hosts) -> None:
    for host, path in ((GROQ, AT_GROQ), (ZA, AT_ZA), (OPENAI, CHAT), (OTHER, AT_OWN), (EU, AT_EU)):
        hosts.on(host, path, answers)
    async with open_gateway(TARGETS + CHOOSE, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()
        for headers, more, place, model in BRANCHES:
            asked = {"model": "gpt-4o", "messages": [], **more}

            answer = await client.post(CHAT, json.dumps(asked).encode(), BEARER, *headers)

            heard = hosts.provider.heard[-1]
            assert (answer.status, heard.sni) == (200, place), (headers, more)
            assert json.loads(heard.body) == {**asked, "model": model}
    assert len(hosts.provider.heard) == len(BRANCHES)


async def test_when_the_only_branch_is_full_the_request_is_turned_away(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(EU, AT_EU, ANSWER)
    blue, red = ('cf-aig-metadata: {"team": "blue"}', 'cf-aig-metadata: {"team": "red"}')
    async with open_gateway(TARGETS + CHOOSE, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        *_, full, other = [await client.post(CHAT, ASK, BEARER, team) for team in (blue, blue, blue, red)]

    assert (full.status, full.header("cf-aig-source"), other.header("cf-aig-provider")) == (429, "rate-limit", "eu")
    assert 0 < int(full.header("retry-after") or 0) <= 60
    assert hosts.heard(OPENAI) == []


# -- zone

ZONE = """
route:
  - {name: stays, match: {metadata.residency: za}, zone: za}
  - {name: near, match: {provider: [openai, azure-openai]}, try: [za, eu]}
hedge:
  - {name: tail, after: 1 ms, to: eu}
"""
STAYS = 'cf-aig-metadata: {"residency": "za"}'


async def test_a_zone_holds_for_falling_back_and_for_hedging(open_gateway: OpenGateway, hosts: Hosts) -> None:
    asked = asyncio.Event()

    async def is_slow_and_down(heard: Heard, wire: Wire) -> None:
        asked.set()
        await asyncio.sleep(0.05)  # past the hedge's moment
        await is_down(heard, wire)

    hosts.on(ZA, AT_ZA, is_slow_and_down)
    hosts.says(EU, AT_EU, ANSWER)
    async with open_gateway(TARGETS + ZONE, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        kept = await client.post(CHAT, ASK, BEARER, STAYS)
        free = await client.post(CHAT, ASK, BEARER)

    assert (kept.status, kept.body, kept.header("cf-aig-attempts")) == (503, DOWN, "1")
    assert (free.status, free.header("cf-aig-provider")) == (200, "eu")
    assert hosts.asked == {ZA: 2, EU: 1}


OUTSIDE = [
    (OPENAI, CHAT, ["cf-aig-fallback: eu"], "eu is in zone eu"),
    (OPENAI, CHAT, ["cf-aig-fallback: openai, groq"], "openai is in no zone, groq is in no zone"),
    (CLAUDE, MESSAGES, [], "anthropic is in no zone"),
    (EU, AT_EU_AS_ASKED, ["cf-aig-fallback: eu"], "eu is in zone eu"),
]
"""Requests that only places outside of the zone could answer."""


async def test_what_leads_out_of_a_zone_is_a_403_that_names_the_rule(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(TARGETS + ZONE, hosts=DIALLED, env=KEYS) as gateway:
        for host, path, headers, outside in OUTSIDE:
            client = await gateway.http1(host)

            answer = await client.post(path, ASK, BEARER, STAYS, *headers)

            message = json.loads(answer.body)["error"]["message"]
            assert f"No place in zone za may answer this request: {outside} (rule stays, policy.yaml:" in message
            assert str(answer.header("cf-aig-log-id")) in message
            assert (answer.status, answer.header("x-should-retry"), answer.header("cf-aig-attempts")) == (
                403,
                "false",
                "0",
            )

        rows = await gateway.rows(len(OUTSIDE))
        events = await gateway.rows(len(OUTSIDE), "select room, rule, action, shadow from policy_events")
    assert {(row["status_code"], row["terminal"], row["source"]) for row in rows} == {(403, "refused", "gateway")}
    assert events == [{"room": "route", "rule": "stays", "action": "refuse", "shadow": 0}] * len(OUTSIDE)
    assert hosts.provider.heard == []


async def test_a_zone_holds_at_the_base_url_door_too(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(ZA, AT_ZA, ANSWER)
    async with open_gateway(TARGETS + ZONE, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.plain()

        out = await client.post("/target/eu/openai/v1/chat/completions", ASK, STAYS, "cf-aig-fallback: eu")
        inside = await client.post("/openai/chat/completions", ASK, BEARER, STAYS)

    assert (out.status, inside.status) == (403, 200)
    assert hosts.asked == {ZA: 1}


# -- who has a place keeps it


async def test_a_session_goes_on_where_it_was_answered(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(ZA, AT_ZA, is_down)
    hosts.says(EU, AT_EU, ANSWER)
    near = rule("{name: near, match: {provider: openai}, try: [za, eu], by: session}")
    async with open_gateway(near, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()
        moved = await client.post(CHAT, ASK, BEARER, in_session("one"))
        hosts.says(ZA, AT_ZA, ANSWER)

        stayed = await client.post(CHAT, ASK, BEARER, in_session("one"))
        other = await client.post(CHAT, ASK, BEARER, in_session("two"))
        nobody = await client.post(CHAT, ASK, BEARER)
        hosts.on(EU, AT_EU, is_down)
        back = await client.post(CHAT, ASK, BEARER, in_session("one"))

        rows = await gateway.rows(5)
    answers = (moved, stayed, other, nobody, back)
    assert [answer.status for answer in answers] == [200] * 5
    assert [answer.header("cf-aig-provider") for answer in answers] == ["eu", "eu", "za", "za", "za"]
    assert [row["attempts"] for row in rows] == [2, 1, 1, 1, 2]


# -- what stays where it is


async def test_a_call_that_generates_nothing_stays_at_its_own_host_with_its_key(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.says(OPENAI, "/v1/models", b'{"data":[]}')
    async with open_gateway(rule("{name: all, try: groq}"), hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post("/v1/models", b"", BEARER, method="GET")

        rows = await gateway.rows()
    [heard] = hosts.provider.heard
    assert (answer.body, heard.sni, heard.header("authorization")) == (b'{"data":[]}', OPENAI, "Bearer of-the-app")
    assert rows == []


async def test_where_no_target_of_a_rule_speaks_the_wire_the_own_host_stands(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.says(CLAUDE, MESSAGES, CLAUDE_ANSWER)
    async with open_gateway(rule("{name: all, try: [za, groq]}"), hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1(CLAUDE)

        answer = await client.post(MESSAGES, ASK, X_API_KEY)

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert (answer.body, heard.sni, heard.header("x-api-key")) == (CLAUDE_ANSWER, CLAUDE, "of-the-app")
    assert json.loads(row["notes"]) == [
        "route: za is left out: azure-openai does not take Anthropic's messages",
        "route: groq is left out: groq does not take Anthropic's messages",
    ]


async def test_a_shadow_changes_nothing_and_says_what_it_would_have_done(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.says(OPENAI, CHAT, ANSWER)
    trial = rule("{name: trial, shadow: true, match: {model: gpt-4o}, split: {groq: 1}}")
    async with open_gateway(trial, hosts=DIALLED, env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK, BEARER)

        [event] = await gateway.rows(1, "select rule, action, shadow, detail from policy_events")
    assert (answer.status, hosts.asked) == (200, {OPENAI: 1})
    assert event == {"rule": "trial", "action": "split", "shadow": 1, "detail": "would draw groq"}


# -- the contract's own example

EXAMPLE = """
identify:
  tenant: [metadata.tenantId, header.x-tenant-id]
  session: [header.x-session-id]
  route:
    faq: {metadata.feature: faq}
    chat: {path: "*/chat/completions"}
cache:
  - {match: {route: faq}, ttl: 1 h, scope: [tenant]}
  - {match: {header.x-cacheable: present}, ttl: 5 m, stale_if_error: 1 h}
cache_store: {max: 2 GiB, key_header: scope, coalesce: true}
route:
  - name: azure
    match: {provider: azure-openai}
    try: [azure-openai-sa, azure-openai-eu]
    fall_back_on: [429, 5xx, connect, timeout, reset, error_event]
  - {name: canary, match: {model: gpt-5}, split: {gpt-5: 90, gpt-5-next: 10}, by: session}
retry: {attempts: 3, delay: 500 ms, backoff: exponential, max_delay: 30 s, jitter: full,
        retry_on: [408, 409, 425, 429, 5xx, connect, timeout, reset], within: 2 m, ratio: 20 %}
timeout: {connect: 5 s, first_byte: 2 m, idle: 5 m, total: 1 h}
breaker: {window: 30 s, min_requests: 10, failures: 50 %, rest: 15 s}
hedge:
  - {name: faq-tail, match: {route: faq}, after: p95, to: azure-openai-eu}
targets:
  azure-openai-sa: {provider: azure-openai, base_url: "https://aoai-sa.openai.azure.com",
                    headers: {api-key: env:AOAI_SA_KEY}}
  azure-openai-eu: {provider: azure-openai, base_url: "https://aoai-eu.openai.azure.com",
                    headers: {api-key: env:AOAI_EU_KEY}, deployments: {gpt-5: gpt-5-eu}, zone: eu}
"""
SA_HOST, EU_HOST = "aoai-sa.openai.azure.com", "aoai-eu.openai.azure.com"
AT_SA = "/openai/deployments/gpt-5/chat/completions?api-version=2025-04-01-preview"


async def test_the_sections_of_the_contracts_example_work_together(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(SA_HOST, AT_SA, DOWN, "503 Service Unavailable", "retry-after-ms: 1")
    hosts.says(EU_HOST, AT_SA.replace("gpt-5", "gpt-5-eu"), ANSWER)
    hosts.says(OPENAI, CHAT, ANSWER)
    env = {"AOAI_SA_KEY": "key-of-sa", "AOAI_EU_KEY": "key-of-eu"}
    faq = 'cf-aig-metadata: {"tenantId": "acme", "feature": "faq"}'
    body = odd("gpt-5")
    async with open_gateway(EXAMPLE, hosts=(OPENAI, APP, SA_HOST, EU_HOST), env=env) as gateway:
        azure, openai = await gateway.http1(APP), await gateway.http1()

        first = await azure.post(AT_SA, body, API_KEY, faq)
        again = await azure.post(AT_SA, body, API_KEY, faq)
        canary = await openai.post(CHAT, body, BEARER, "x-session-id: s1", "x-cacheable: 1")
        same = await openai.post(CHAT, body, BEARER, "x-session-id: s1", "x-cacheable: 1")

        rows = await gateway.rows(4)
        events = await gateway.rows(4, "select room, rule, action from policy_events order by rowid")
    answers = (first, again, canary, same)
    assert [(answer.status, answer.body) for answer in answers] == [(200, ANSWER)] * 4
    assert [answer.header("cf-aig-cache-status") for answer in answers] == ["MISS", "HIT", "MISS", "HIT"]
    assert hosts.asked == {SA_HOST: 3, EU_HOST: 1, OPENAI: 1}
    assert [row["attempts"] for row in rows] == [4, 0, 1, 0]
    assert (rows[0]["target"], rows[0]["step"], rows[0]["tenant"], rows[0]["route"]) == (
        "azure-openai-eu",
        1,
        "acme",
        "faq",
    )
    assert {heard.header("api-key") for heard in hosts.heard(SA_HOST)} == {"key-of-sa"}
    assert {heard.header("api-key") for heard in hosts.heard(EU_HOST)} == {"key-of-eu"}
    assert [tuple(event.values()) for event in events] == [
        ("retry", "retry", "retry"),
        ("retry", "retry", "retry"),
        ("route", "azure", "fallback"),
        ("route", "canary", "split"),
    ]
