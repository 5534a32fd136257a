"""``/compat``: one wire for every provider, over real sockets: the model's name says who is asked.

Each provider is asked at its own OpenAI-compatible endpoint, in the client's own bytes but for the model's name.
"""

import gzip
import json
from dataclasses import dataclass
from hashlib import sha256

import openai
import pytest

from support.gateway import Gateway, OpenGateway
from support.hosts import DOWN, Hosts, carries, is_down
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, CHAT, DONE, HEL, LO, ROLE, STOP, STREAM, USAGE

OPENAI, CLAUDE, GOOGLE, GROQ, CORP, ZA = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "api.groq.com",
    "llm.corp.example",
    "za.openai.azure.com",
)
DIALLED = (OPENAI, CLAUDE, GOOGLE, GROQ, CORP, ZA)
AT_GROQ = "/openai/v1/chat/completions"
GEMINIS_CHAT = "/v1beta/openai/chat/completions"
BEARER = "authorization: Bearer of-the-app"
JSON = "content-type: application/json"
WITH_USAGE = [ROLE, HEL, LO, STOP, USAGE, DONE]
VECTORS = json.dumps(
    {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
).encode()


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


async def answers(heard: Heard, wire: Wire) -> None:
    """Answer in OpenAI's wire: a stream where one was asked for."""
    if json.loads(heard.body).get("stream"):
        await wire.stream(WITH_USAGE)
    else:
        await wire.answer(ANSWER)


def odd(model: str, stream: bool = False) -> bytes:
    """Return a request that a parser would write otherwise."""
    rest = '"temperature":0.10,  "messages":[{"role":"user","content":"h\\u00e9"}],"seed":1,"seed":2'
    return f'{{ "model" : "{model}",{rest}{', "stream": true' if stream else ""}\n}}'.encode()


def digest(body: bytes) -> str:
    return sha256(body).hexdigest()


# -- who is asked


@dataclass(frozen=True)
class Way:
    """What the client asks for, and where that leads."""

    model: str
    host: str
    path: str
    name: str
    """Of the model there."""
    provider_name: str

    @property
    def slug(self) -> str:
        return self.model.partition("/")[0]


WAYS = [
    Way("openai/gpt-4o", OPENAI, CHAT, "gpt-4o", "openai"),
    Way("anthropic/claude-haiku-4-5", CLAUDE, CHAT, "claude-haiku-4-5", "anthropic"),
    Way("google-ai-studio/gemini-2.5-flash", GOOGLE, GEMINIS_CHAT, "gemini-2.5-flash", "gcp.gemini"),
    Way("groq/openai/gpt-oss-20b", GROQ, AT_GROQ, "openai/gpt-oss-20b", "groq"),
    Way("corp-llm/best", CORP, CHAT, "best", "corp-llm"),
]


@pytest.mark.parametrize(
    ("path", "stream"), [("/compat/chat/completions", False), ("/v1/acct/gw/compat/chat/completions", True)]
)
async def test_the_models_name_leads_to_the_providers_own_endpoint(
    open_gateway: OpenGateway, hosts: Hosts, path: str, stream: bool
) -> None:
    for way in WAYS:
        hosts.on(way.host, way.path, answers)
    policy = "usage: leave\nproviders: {corp-llm: {hosts: [llm.corp.example], dialect: openai}}"
    async with open_gateway(policy, hosts=DIALLED) as gateway:
        client = await gateway.plain()

        answered = [await client.post(path, odd(way.model, stream), BEARER, JSON) for way in WAYS]

        rows = await gateway.rows(len(WAYS))
    for way, heard, answer, row in zip(WAYS, hosts.provider.heard, answered, rows, strict=True):
        asked, sent = odd(way.model, stream), odd(way.name, stream)
        assert (heard.sni, heard.header("host"), heard.path) == (way.host, way.host, way.path)
        assert (heard.body, heard.header("content-length")) == (sent, str(len(sent)))
        assert heard.header("authorization") == "Bearer of-the-app"
        assert answer.body == (b"".join(WITH_USAGE) if stream else ANSWER)
        assert (answer.header("cf-aig-provider"), answer.header("cf-aig-attempts")) == (way.slug, "1")
        assert answer.header("cf-aig-log-id") == row["id"]
        assert (row["provider_name"], row["target"], row["request_model"]) == (way.provider_name, way.slug, way.name)
        assert (row["host"], row["path"], row["operation_name"]) == (way.host, way.path, "chat")
        assert (row["request_sha256"], row["sent_sha256"]) == (digest(asked), digest(sent))
        assert (row["input_tokens"], row["output_tokens"], row["stream"]) == (9, 3, stream)
        assert row["door"] == "base-url"


async def test_embeddings_have_an_entry_too(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.says(OPENAI, "/v1/embeddings", VECTORS)
    asked = b'{"input": "hi", "model": "openai/text-embedding-3-small"}'
    async with open_gateway(hosts=DIALLED) as gateway:
        client = await gateway.plain()

        answer = await client.post("/compat/embeddings", asked, BEARER, JSON)

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert (answer.status, answer.body) == (200, VECTORS)
    assert heard.body == asked.replace(b"openai/", b"")
    assert (row["operation_name"], row["request_model"], row["input_tokens"]) == (
        "embeddings",
        "text-embedding-3-small",
        5,
    )


async def test_a_compressed_body_is_sent_on_plain(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, answers)
    async with open_gateway(hosts=DIALLED) as gateway:
        client = await gateway.plain()
        body = gzip.compress(odd("openai/gpt-4o"))

        answer = await client.post("/compat/chat/completions", body, BEARER, JSON, "content-encoding: gzip")

    [heard] = hosts.provider.heard
    assert (answer.body, heard.body, heard.header("content-encoding")) == (ANSWER, odd("gpt-4o"), None)


async def test_a_stream_is_asked_for_usage_which_is_not_for_the_client(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(OPENAI, CHAT, answers)
    async with open_gateway(hosts=DIALLED) as gateway:
        client = await gateway.plain()

        answer = await client.post("/compat/chat/completions", odd("openai/gpt-4o", stream=True), BEARER, JSON)

        row = await gateway.row()
    [heard] = hosts.provider.heard
    assert json.loads(heard.body)["stream_options"] == {"include_usage": True}
    assert answer.body == b"".join(STREAM)
    assert (row["input_tokens"], row["usage_source"], row["sent_sha256"]) == (9, "reported", digest(heard.body))


async def test_what_the_provider_refuses_comes_as_it_came(open_gateway: OpenGateway, hosts: Hosts) -> None:
    refused = b'{"error":{"message":"bad key","type":"authentication_error","code":null}}'
    hosts.says(CLAUDE, CHAT, refused, "401 Unauthorized", "request-id: req_1")
    async with open_gateway(hosts=DIALLED) as gateway:
        client = await gateway.plain()

        answer = await client.post("/compat/chat/completions", odd("anthropic/claude-haiku-4-5"), BEARER, JSON)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.header("request-id")) == (401, refused, "req_1")
    assert (row["status_code"], row["source"], row["provider_name"]) == (401, "provider", "anthropic")


# -- the rooms behind it

RULES = """
usage: leave
route:
  - {name: claude-else-azure, match: {model: "claude-*", path: "*/chat/completions"},
     try: [claude, {target: za, model: gpt-4o}]}
  - {name: in-za, match: {metadata.residency: za}, zone: za}
retry: {attempts: 2, delay: 1 ms}
cache: [{match: {model: gpt-4o}, ttl: 1 h}]
targets:
  claude: {provider: anthropic, base_url: "https://api.anthropic.com"}
  za: {provider: azure-openai, base_url: "https://za.openai.azure.com", headers: {api-key: env:ZA}, zone: za,
       deployments: {gpt-4o: gpt-4o-za}, api_version: 2024-10-21}
"""
AT_ZA = "/openai/deployments/gpt-4o-za/chat/completions?api-version=2024-10-21"


async def test_rules_see_the_provider_and_its_model_and_lead_on_to_targets(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    hosts.on(CLAUDE, CHAT, is_down)
    hosts.on(ZA, AT_ZA, answers)
    async with open_gateway(RULES, hosts=DIALLED, env={"ZA": "key-of-za"}) as gateway:
        client = await gateway.plain()
        body = odd("anthropic/claude-haiku-4-5", stream=True)

        answer = await client.post("/compat/chat/completions", body, BEARER, JSON)

        row = await gateway.row()
    first, second, third = hosts.provider.heard
    assert [heard.sni for heard in hosts.provider.heard] == [CLAUDE, CLAUDE, ZA]
    assert first.body == second.body == odd("claude-haiku-4-5", stream=True)
    assert first.header("authorization") == "Bearer of-the-app"
    assert (third.header("api-key"), carries(third, "of-the-app")) == ("key-of-za", False)
    assert answer.body == b"".join(WITH_USAGE)
    assert (row["target"], row["step"], row["attempts"]) == ("za", 1, 3)
    assert (row["provider_name"], row["request_model"]) == ("azure.ai.openai", "claude-haiku-4-5")


async def test_an_answer_is_kept_for_whoever_asked_and_for_that_provider(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    for host in (OPENAI, CLAUDE):
        hosts.on(host, CHAT, answers)
    async with open_gateway(RULES, hosts=DIALLED, env={"ZA": "key-of-za"}) as gateway:
        client = await gateway.plain()
        asked = await client.post("/compat/chat/completions", odd("openai/gpt-4o"), BEARER, JSON)
        await gateway.rows(1)

        again = await client.post("/v1/acct/gw/compat/chat/completions", odd("openai/gpt-4o"), BEARER, JSON)
        stranger = await client.post("/compat/chat/completions", odd("openai/gpt-4o"), "authorization: Bearer x", JSON)
        elsewhere = await client.post("/compat/chat/completions", odd("anthropic/gpt-4o"), BEARER, JSON)

        rows = await gateway.rows(4)
    answered = (asked, again, stranger, elsewhere)
    assert [answer.header("cf-aig-cache-status") for answer in answered] == ["MISS", "HIT", "MISS", "MISS"]
    assert [answer.body for answer in answered] == [ANSWER] * 4
    assert hosts.asked == {OPENAI: 2, CLAUDE: 1}
    assert [(row["source"], row["provider_name"]) for row in rows][:2] == [("provider", "openai"), ("cache", "openai")]


async def test_a_zone_closes_a_provider_that_the_body_names(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(RULES, hosts=DIALLED, env={"ZA": "key-of-za"}) as gateway:
        client = await gateway.plain()
        stays = 'cf-aig-metadata: {"residency": "za"}'

        answer = await client.post("/compat/chat/completions", odd("openai/gpt-4.1"), BEARER, JSON, stays)

    assert answer.status == 403
    assert "openai is in no zone (rule in-za, policy.yaml:" in json.loads(answer.body)["error"]["message"]
    assert hosts.provider.heard == []


async def test_retries_of_the_header_hold_here_too(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(GROQ, AT_GROQ, is_down)
    async with open_gateway(hosts=DIALLED) as gateway:
        client = await gateway.plain()
        headers = ("cf-aig-max-attempts: 3", "cf-aig-retry-delay: 1")

        answer = await client.post("/compat/chat/completions", odd("groq/x"), BEARER, JSON, *headers)

    assert (answer.status, answer.body, answer.header("cf-aig-attempts")) == (503, DOWN, "3")
    assert hosts.asked == {GROQ: 3}


# -- what leads nowhere

HAVE_ONE = ("openai", "anthropic", "google-ai-studio", "groq", "mistral", "corp-llm")
NOWHERE = [
    (b'{"model": "azure-openai/gpt-4o"}', 404, "azure-openai has no OpenAI-compatible endpoint", HAVE_ONE),
    (b'{"model": "aws-bedrock/claude"}', 404, "aws-bedrock has no OpenAI-compatible endpoint", HAVE_ONE),
    (b'{"model": "open-ai/gpt-4o"}', 404, "'open-ai/gpt-4o' names no provider that is known", HAVE_ONE),
    (b'{"model": "gpt-4o"}', 400, "model is 'gpt-4o'", ('it takes "provider/model"',)),
    (b'{"model": "openai/"}', 400, "model is 'openai/'", ('it takes "provider/model"',)),
    (b'{"model": 4}', 400, "model is no text", ('it takes "provider/model"',)),
    (b'{"messages": []}', 400, "model is missing", ('it takes "provider/model"',)),
    (b"[]", 400, "/compat takes a JSON object", ()),
    (b'{"model": "openai/gpt', 400, "/compat takes a JSON object", ()),
    (b"", 400, "/compat takes a JSON object", ()),
]


async def test_a_model_that_leads_nowhere_is_refused_with_what_would(open_gateway: OpenGateway, hosts: Hosts) -> None:
    policy = "providers: {corp-llm: {hosts: [llm.corp.example], dialect: openai}}"
    async with open_gateway(policy, hosts=DIALLED) as gateway:
        client = await gateway.plain()

        answers = [await client.post("/compat/chat/completions", body, BEARER, JSON) for body, *_ in NOWHERE]

        rows = await gateway.rows(len(NOWHERE))
    for (body, status, says, more), answer, row in zip(NOWHERE, answers, rows, strict=True):
        error = json.loads(answer.body)["error"]
        kind = "not_found_error" if status == 404 else "invalid_request_error"
        assert (answer.status, error["type"]) == (status, kind), body
        assert all(part in error["message"] for part in (says, *more)), error["message"]
        assert row["id"] in answer.body.decode()
        assert (answer.header("cf-aig-source"), answer.header("cf-aig-attempts")) == ("gateway", "0")
        assert answer.header("x-should-retry") == "false"
        assert (row["status_code"], row["terminal"], row["source"], row["attempts"]) == (
            status,
            "refused",
            "gateway",
            0,
        )
    assert hosts.provider.heard == []


async def test_the_entry_has_two_paths_and_no_more(gateway: Gateway, hosts: Hosts) -> None:
    client = await gateway.plain()

    answered = [
        await client.post("/compat/chat/completions", method="GET"),
        await client.post("/compat/responses", odd("openai/gpt-4o")),
        await client.post("/v1/acct/gw/compat/models", odd("openai/gpt-4o")),
    ]

    for answer in answered:
        message = json.loads(answer.body)["error"]["message"]
        assert answer.status == 404
        assert "/compat has POST /compat/chat/completions and POST /compat/embeddings" in message
    assert hosts.provider.heard == []


# -- OpenAI's own SDK


def sdk(gateway: Gateway, path: str = "/compat") -> openai.AsyncOpenAI:
    """Return OpenAI's client, led here by nothing but its base URL."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    return openai.AsyncOpenAI(base_url=gateway.base_url + path, api_key="of-the-app", max_retries=0, http_client=http)


async def test_openais_sdk_asks_anthropic_whole_and_piece_by_piece(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(CLAUDE, CHAT, answers)
    async with open_gateway(hosts=DIALLED) as gateway, sdk(gateway, "/v1/acct/gw/compat") as client:
        whole = await client.chat.completions.create(
            model="anthropic/claude-haiku-4-5", messages=[{"role": "user", "content": "hi"}]
        )
        pieces = await client.chat.completions.create(
            model="anthropic/claude-haiku-4-5", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        texts = [piece.choices[0].delta.content async for piece in pieces if piece.choices]

        rows = await gateway.rows(2)
    assert whole.choices[0].message.content == "hello"
    assert "".join(text or "" for text in texts) == "hello"
    assert [json.loads(heard.body)["model"] for heard in hosts.provider.heard] == ["claude-haiku-4-5"] * 2
    assert {heard.header("authorization") for heard in hosts.provider.heard} == {"Bearer of-the-app"}
    assert [(row["provider_name"], row["stream"], row["input_tokens"]) for row in rows] == [
        ("anthropic", 0, 9),
        ("anthropic", 1, 9),
    ]


async def test_openais_sdk_understands_a_refusal(open_gateway: OpenGateway, hosts: Hosts) -> None:
    async with open_gateway(hosts=DIALLED) as gateway, sdk(gateway) as client:
        with pytest.raises(openai.NotFoundError, match="azure-openai has no OpenAI-compatible endpoint") as refused:
            await client.chat.completions.create(model="azure-openai/gpt-4o", messages=[])

        row = await gateway.row()
    assert refused.value.param == "model"
    assert refused.value.response.headers["cf-aig-log-id"] == row["id"]
