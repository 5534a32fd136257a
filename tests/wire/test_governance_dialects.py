"""One policy governs every API: each is refused in its own words, and each answer says what is left."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.parsers import create_parser

from support import voices
from support.client import Answer
from support.gateway import OpenGateway
from support.provider import Provider
from support.speech import ANSWER
from support.talks import Round, chat, converse, gemini, messages, responses

POLICY = """
auth:
  keys:
    - {name: of-acme, key: env:ACME_KEY, tenant: acme}
    - {name: of-globex, key: env:GLOBEX_KEY, tenant: globex}
guard: [{name: secrets, find: secret, then: block}]
limit: [{name: burst, match: {tenant: acme}, requests: 1, every: 1 m}]
budget:
  - {name: month, match: {tenant: acme}, cost: 10 USD, every: month}
  - {name: nothing, match: {tenant: globex}, cost: 0.000000001 USD, every: month}
"""
ENV = {"ACME_KEY": "of-acme-0123456789", "GLOBEX_KEY": "of-globex-0123456789"}
ACME, GLOBEX = (f"cf-aig-authorization: Bearer {key}" for key in ENV.values())
SECRET = "sk-ant-api03-Ab12Cd34Ef56Gh78Ij90"
CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12},
}


def openais(body: bytes) -> str:
    return str(json.loads(body)["error"]["type"])


def googles(body: bytes) -> str:
    return str(json.loads(body)["error"]["status"])


def amazons(body: bytes) -> str:
    """Return the exception that Amazon's SDK raises."""
    parsed = create_parser("rest-json").parse({"status_code": 400, "headers": {}, "body": body}, None)
    return str(parsed["Error"]["Code"])


@dataclass(frozen=True)
class Api:
    name: str
    host: str
    path: str
    write: Callable[..., dict[str, Any]]
    answer: bytes
    own_key: str
    kind: Callable[[bytes], str]
    """Returns what a refusal is called."""
    kinds: tuple[str, str, str, str]
    """What refusals by auth, guard, limit and budget are called."""

    def ask(self, text: str = "hi") -> bytes:
        return json.dumps(self.write([Round(1, says=text, answered=False)])).encode()

    def __str__(self) -> str:
        return self.name


OPENAIS = ("authentication_error", "permission_error", "rate_limit_error", "insufficient_quota")
APIS = (
    Api(
        "chat", "api.openai.com", "/v1/chat/completions", chat, ANSWER, "authorization: Bearer sk-own", openais, OPENAIS
    ),
    Api(
        "responses",
        "api.openai.com",
        "/v1/responses",
        responses,
        voices.whole(voices.Said("responses")),
        "authorization: Bearer sk-own",
        openais,
        OPENAIS,
    ),
    Api(
        "azure",
        "example-resource.openai.azure.com",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        chat,
        ANSWER,
        "api-key: own",
        openais,
        OPENAIS,
    ),
    Api(
        "messages",
        "api.anthropic.com",
        "/v1/messages",
        messages,
        voices.whole(voices.Said("messages")),
        "x-api-key: own",
        openais,
        ("authentication_error", "permission_error", "rate_limit_error", "billing_error"),
    ),
    Api(
        "gemini",
        "generativelanguage.googleapis.com",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        gemini,
        voices.whole(voices.Said("gemini")),
        "x-goog-api-key: own",
        googles,
        ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
    ),
    Api(
        "bedrock",
        "bedrock-runtime.us-east-1.amazonaws.com",
        "/model/amazon.nova-lite-v1%3A0/converse",
        converse,
        json.dumps(CONVERSED).encode(),
        "authorization: Bearer bedrock-api-key-own",
        amazons,
        ("AccessDeniedException", "AccessDeniedException", "ThrottlingException", "ServiceQuotaExceededException"),
    ),
)


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_each_api_is_governed_and_told_so_in_its_own_words(
    open_gateway: OpenGateway, provider: Provider, version: str, api: Api
) -> None:
    provider.says(api.path, api.answer)
    async with open_gateway(POLICY, env=ENV, hosts=tuple({one.host for one in APIS})) as gateway:
        client = await gateway.client(version, api.host)

        async def ask(*fields: str, text: str = "hi") -> Answer:
            return await client.post(api.path, api.ask(text), "content-type: application/json", api.own_key, *fields)

        keyless, secret = await ask(), await ask(ACME, text=f"It is {SECRET}")
        answered = await ask(ACME)
        refused = [keyless, secret, await ask(ACME), await ask(GLOBEX)]
        rows = await gateway.rows(5)

    assert [answer.status for answer in refused] == [401, 403, 429, 429]
    assert tuple(api.kind(answer.body) for answer in refused) == api.kinds
    assert [answer.header("cf-aig-source") for answer in refused] == ["gateway", "guard", "rate-limit", "budget"]
    assert [answer.header("x-should-retry") for answer in refused] == ["false", "false", "true", "false"]
    assert all(row["id"].encode() in answer.body for row, answer in zip(rows[:2] + rows[3:], refused, strict=True))
    assert (answered.status, answered.body) == (200, api.answer)
    assert answered.header("cf-aig-limit-remaining") == "0; rule=burst; unit=requests; reset=60"
    assert (
        (answered.header("cf-aig-budget-remaining") or "").partition("; ")[2].startswith("rule=month; unit=USD; reset=")
    )
    [heard] = provider.heard
    assert heard.body == api.ask()
    assert heard.header("cf-aig-authorization") is None
    assert [(row["key_name"], row["tenant"]) for row in rows] == [
        (None, None),
        *[("of-acme", "acme")] * 3,
        ("of-globex", "globex"),
    ]
    assert rows[2]["cost_nanousd"] > 0
