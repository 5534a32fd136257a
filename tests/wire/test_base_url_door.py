"""The base-URL door: a path names the provider, the rest is the provider's own; it serves its own pages, too."""

import json

import pytest

from support.client import Http1
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.speech import ANSWER, ASK, CHAT, MESSAGES

HOSTS = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "example-resource.openai.azure.com",
    "us-central1-aiplatform.googleapis.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
    "api.groq.com",
)
VERTEX = "/v1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash:generateContent"
AZURE = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"

PATHS = [
    ("/openai/chat/completions", "api.openai.com", CHAT),
    ("/openai/v1/chat/completions", "api.openai.com", CHAT),
    ("/v1/account/gateway/openai/chat/completions", "api.openai.com", CHAT),
    ("/anthropic/v1/messages", "api.anthropic.com", MESSAGES),
    ("/v1/account/gateway/anthropic/v1/messages?beta=true", "api.anthropic.com", f"{MESSAGES}?beta=true"),
    (
        "/google-ai-studio/v1beta/models/gemini-2.5-flash:generateContent?key=AIza",
        "generativelanguage.googleapis.com",
        "/v1beta/models/gemini-2.5-flash:generateContent?key=AIza",
    ),
    (
        "/azure-openai/example-resource/gpt-4o/chat/completions?api-version=2024-10-21",
        "example-resource.openai.azure.com",
        AZURE,
    ),
    (
        "/azure-openai/example-resource/openai/v1/chat/completions",
        "example-resource.openai.azure.com",
        "/openai/v1/chat/completions",
    ),
    (f"/google-vertex-ai{VERTEX}", "us-central1-aiplatform.googleapis.com", VERTEX),
    (
        "/aws-bedrock/bedrock-runtime/us-east-1/model/anthropic.claude-3%3A0/invoke",
        "bedrock-runtime.us-east-1.amazonaws.com",
        "/model/anthropic.claude-3%3A0/invoke",
    ),
    ("/groq/chat/completions", "api.groq.com", "/openai/v1/chat/completions"),
]


async def test_a_path_leads_to_its_provider(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway(hosts=HOSTS) as gateway:
        for path, host, native in PATHS:
            provider.heard.clear()
            client = await gateway.plain()

            await client.post(path, ASK, "Authorization: Bearer sk-1")

            [heard] = provider.heard
            assert (heard.header("host"), heard.sni, heard.path) == (host, host, native), path
            assert heard.header("authorization") == "Bearer sk-1"


async def test_a_target_has_its_own_place_and_key(open_gateway: OpenGateway, provider: Provider) -> None:
    targets = """
targets:
  corp: {provider: openai, base_url: "https://llm.corp.example/base/v1", headers: {Authorization: "env:KEY"}}
"""
    provider.says("/base/v1/chat/completions", ANSWER)
    async with open_gateway(targets, env={"KEY": "Bearer corp-key"}) as gateway:
        client = await gateway.plain()

        answer = await client.post("/target/corp/chat/completions", ASK, "authorization: Bearer mine", "x-b: 1")

        row = await gateway.row()
    [heard] = provider.heard
    assert (answer.status, answer.body) == (200, ANSWER)
    assert (heard.header("host"), heard.path) == ("llm.corp.example", "/base/v1/chat/completions")
    assert [value for name, value in heard.fields if name.lower() == b"authorization"] == [b"Bearer corp-key"]
    assert answer.header("cf-aig-provider") == "corp"
    assert (row["target"], row["host"]) == ("corp", "llm.corp.example")


@pytest.mark.parametrize("path", ["/nobody/v1/chat/completions", "/target/nobody/v1", "/openai", "/feedback/x"])
async def test_a_path_that_leads_nowhere_is_a_404_in_openais_form(
    gateway: Gateway, provider: Provider, path: str
) -> None:
    client = await gateway.plain()

    answer = await client.post(path, ASK)

    error = json.loads(answer.body)["error"]
    assert answer.status == 404
    assert error["message"]
    assert provider.heard == []
    assert await gateway.rows() == []


async def test_the_404_of_an_unknown_provider_lists_the_known_ones(gateway: Gateway) -> None:
    client = await gateway.plain()

    answer = await client.post("/open-ai/v1/chat/completions", ASK)

    message = json.loads(answer.body)["error"]["message"]
    assert "open-ai" in message
    assert all(name in message for name in ("openai", "azure-openai", "anthropic", "google-ai-studio", "aws-bedrock"))


async def test_healthz_is_200_while_the_doors_accept_and_503_when_they_close(gateway: Gateway) -> None:
    client = await gateway.plain()
    open_ = await client.post("/healthz", method="GET")
    gateway.chain.door.closing = True

    closing = await client.post("/healthz", method="GET")

    assert (open_.status, json.loads(open_.body)) == (200, {"status": "ok"})
    assert (closing.status, json.loads(closing.body)) == (503, {"status": "closing"})


async def test_metrics_count_what_passed(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.plain()
    await client.post(f"/openai{CHAT}", ASK)
    await gateway.rows(1)

    answer = await client.post("/metrics", method="GET")

    lines = answer.body.decode().splitlines()
    assert (answer.header("content-type") or "").startswith("text/plain; version=0.0.4")
    assert 'mitmgate_requests_total{provider="openai",status="200",source="provider"} 1' in lines
    assert "mitmgate_live_exchanges 0" in lines
    assert "mitmgate_rows_written_total 1" in lines


async def test_a_stream_through_the_base_url_door_is_cut_where_the_provider_cut_it(
    gateway: Gateway, provider: Provider
) -> None:
    provider.streams(CHAT, [b"data: 1\n\n", b"data: 2\n\n"])
    client = await gateway.plain()

    answer = await client.post(f"/openai{CHAT}", ASK)

    assert (answer.body, answer.complete) == (b"data: 1\n\ndata: 2\n\n", True)


async def test_two_requests_of_one_connection_may_go_to_two_providers(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    provider.says(MESSAGES, b"{}")
    client = await Http1.plain(gateway.base_url_port)
    gateway.clients.append(client)

    await client.post(f"/openai{CHAT}", ASK)
    await client.post(f"/anthropic{MESSAGES}", ASK)

    assert [heard.header("host") for heard in provider.heard] == ["api.openai.com", "api.anthropic.com"]
