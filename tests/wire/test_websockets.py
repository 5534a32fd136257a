"""WebSockets to a provider host pass on mitmproxy's own way, or are refused so that the client falls back to POST."""

import json

import pytest

from support.client import Http1
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.speech import ANSWER, ASK, CHAT
from support.websocket import CLOSE, TEXT, UPGRADE, echo, say

RESPONSES = "/v1/responses"


async def upgrade(client: Http1, path: str = RESPONSES, *fields: str) -> int:
    """Return the status of an upgrade."""
    await client.send("GET", path, client.host, b"", *UPGRADE, *fields)
    status, _ = await client.head()
    return status


async def test_messages_pass_both_ways(gateway: Gateway, provider: Provider) -> None:
    provider.on(RESPONSES, echo)
    client = await gateway.http1()

    status = await upgrade(client, RESPONSES, "cf-aig-metadata: {}", "Authorization: Bearer sk-1")

    assert status == 101
    assert await say(client, b"hello") == (TEXT, b"HELLO")
    assert await say(client, b"again " * 100) == (TEXT, b"AGAIN " * 100)
    assert (await say(client, b"", CLOSE))[0] == CLOSE
    [heard] = provider.heard
    assert heard.header("cf-aig-metadata") is None
    assert heard.header("authorization") == "Bearer sk-1"
    assert heard.sni == "api.openai.com"
    assert 'mitmgate_websockets_total{provider="openai"} 1' in gateway.chain.state.metrics.text().decode()


async def test_an_upgrade_passes_after_a_pooled_request_on_the_same_connection(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    provider.on(RESPONSES, echo)
    client = await gateway.http1()
    first = await client.post(CHAT, ASK)

    status = await upgrade(client)

    assert (first.status, status) == (200, 101)
    assert await say(client, b"hello") == (TEXT, b"HELLO")


async def test_an_upgrade_passes_through_the_base_url_door(gateway: Gateway, provider: Provider) -> None:
    provider.on(RESPONSES, echo)
    client = await gateway.plain()

    status = await upgrade(client, f"/openai{RESPONSES}")

    assert status == 101
    assert await say(client, b"hello") == (TEXT, b"HELLO")
    assert (provider.heard[0].path, provider.heard[0].header("host")) == (RESPONSES, "api.openai.com")


async def test_a_client_that_leaves_closes_the_providers_socket(gateway: Gateway, provider: Provider) -> None:
    provider.on(RESPONSES, echo)
    client = await gateway.http1()
    await upgrade(client)
    await say(client, b"hello")

    client.abort()

    await gateway.until(lambda: provider.open_connections == 0)


async def test_refuse_answers_426_and_the_connection_goes_on_with_post(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """clients.md point 1: Codex, answered with 426, falls back to POST at once."""
    provider.says(CHAT, ANSWER)
    async with open_gateway(upstream="websocket: refuse") as gateway:
        client = await gateway.http1()

        refused = await client.post(RESPONSES, b"", *UPGRADE, method="GET")
        answer = await client.post(CHAT, ASK)

        assert refused.status == 426
        assert "POST" in json.loads(refused.body)["error"]["message"]
        assert (answer.status, answer.body) == (200, ANSWER)
        assert [heard.path for heard in provider.heard] == [CHAT]


@pytest.mark.parametrize("door", ["proxy", "base-url"])
async def test_the_providers_certificate_is_checked_for_websockets_too(
    open_gateway: OpenGateway, provider: Provider, door: str
) -> None:
    provider.on(RESPONSES, echo)
    async with open_gateway(trusted=False) as gateway:
        client = await (gateway.http1() if door == "proxy" else gateway.plain())

        status = await upgrade(client, RESPONSES if door == "proxy" else f"/openai{RESPONSES}")

        assert status == 502
        assert provider.heard == []
