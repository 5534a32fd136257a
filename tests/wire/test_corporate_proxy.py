"""Behind a corporate proxy everything goes through it: provider calls, tunnels, WebSockets, observed hosts."""

import json
import ssl

import pytest
import trustme

from support.client import Http1, connect
from support.corporate import Corporate, corporate
from support.gateway import OpenGateway
from support.provider import Provider
from support.speech import ANSWER, ASK, CHAT, STREAM
from support.websocket import TEXT, UPGRADE, echo, say

BEHIND = {"upstream": "proxy: env:CORP_PROXY", "hosts": ()}
LOGIN = "gate:s3cret"


@pytest.fixture(params=[None, LOGIN], ids=["open", "with a login"])
def login(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


def _leads_to(proxy: Corporate, provider: Provider, *hosts: str) -> dict[str, str]:
    """Let *proxy* lead to *provider* for *hosts*; return the environment of the policy."""
    proxy.places |= {f"{host}:443": provider.port for host in hosts}
    return {"CORP_PROXY": proxy.url}


async def test_provider_calls_go_through_it(open_gateway: OpenGateway, provider: Provider, login: str | None) -> None:
    provider.says(CHAT, ANSWER)
    provider.streams("/v1/responses", STREAM)
    async with corporate(login) as proxy:
        env = _leads_to(proxy, provider, "api.openai.com")
        async with open_gateway(**BEHIND, env=env) as gateway:
            client = await gateway.http1()

            answer = await client.post(CHAT, ASK)
            stream = await client.post("/v1/responses", ASK)

    assert (answer.status, answer.body) == (200, ANSWER)
    assert stream.body == b"".join(STREAM)
    assert proxy.asked == ["CONNECT api.openai.com:443 HTTP/1.1"]
    assert provider.heard[0].header("proxy-authorization") is None
    assert provider.heard[0].sni == "api.openai.com"


async def test_tunnels_go_through_it(
    open_gateway: OpenGateway, provider: Provider, authority: trustme.CA, login: str | None
) -> None:
    provider.says("/x", b"hello")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with corporate(login) as proxy:
        env = _leads_to(proxy, provider, "other.example")
        async with open_gateway(**BEHIND, env=env) as gateway:
            client = await Http1.tunnel(gateway.port, "other.example", trust)
            gateway.clients.append(client)

            answer = await client.post("/x", method="GET")

    assert answer.body == b"hello"
    assert proxy.asked == ["CONNECT other.example:443 HTTP/1.1"]


async def test_websockets_go_through_it(open_gateway: OpenGateway, provider: Provider, login: str | None) -> None:
    provider.on("/v1/responses", echo)
    async with corporate(login) as proxy:
        env = _leads_to(proxy, provider, "api.openai.com")
        async with open_gateway(**BEHIND, env=env) as gateway:
            client = await gateway.http1()
            await client.send("GET", "/v1/responses", client.host, b"", *UPGRADE)
            status, _ = await client.head()

            said = await say(client, b"hello")

    assert (status, said) == (101, (TEXT, b"HELLO"))
    assert proxy.asked == ["CONNECT api.openai.com:443 HTTP/1.1"]


async def test_observed_hosts_go_through_it(open_gateway: OpenGateway, provider: Provider, login: str | None) -> None:
    provider.says("/query", b"[1]")
    async with corporate(login) as proxy:
        env = _leads_to(proxy, provider, "search.corp.example")
        observe = 'observe: [{hosts: ["search.corp.example"], kind: retrieval}]'
        async with open_gateway(observe, **BEHIND, env=env) as gateway:
            client = await gateway.http1("search.corp.example")

            answer = await client.post("/query", b"{}")

    assert answer.body == b"[1]"
    assert proxy.asked == ["CONNECT search.corp.example:443 HTTP/1.1"]


async def test_a_host_of_connect_to_does_not(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with corporate() as proxy:
        env = {"CORP_PROXY": proxy.url}
        async with open_gateway(upstream="proxy: env:CORP_PROXY", env=env) as gateway:
            client = await gateway.http1()

            answer = await client.post(CHAT, ASK)

    assert answer.body == ANSWER
    assert proxy.asked == []


async def test_a_wrong_login_is_a_502_that_says_so(open_gateway: OpenGateway) -> None:
    async with corporate(LOGIN) as proxy:
        env = {"CORP_PROXY": f"http://gate:wrong@127.0.0.1:{proxy.port}"}
        async with open_gateway(**BEHIND, env=env) as gateway:
            client = await gateway.http1()

            answer = await client.post(CHAT, ASK)

            row = await gateway.row()
    message = json.loads(answer.body)["error"]["message"]
    assert answer.status == 502
    assert "407" in message
    assert "wrong" not in message
    assert (row["error_type"], row["terminal"]) == ("connect", "failed")


async def test_a_proxy_that_is_down_is_a_502(open_gateway: OpenGateway) -> None:
    async with corporate() as proxy:
        env = {"CORP_PROXY": proxy.url}
    async with open_gateway(**BEHIND, env=env) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert answer.status == 502
    assert row["error_type"] == "connect"


async def test_metadata_addresses_are_closed_behind_a_proxy_too(open_gateway: OpenGateway) -> None:
    async with corporate() as proxy:
        env = {"CORP_PROXY": proxy.url}
        async with open_gateway(**BEHIND, env=env) as gateway:
            with pytest.raises(ConnectionError, match="metadata"):
                await connect(gateway.port, "169.254.169.254", gateway.trust(), 80)
    assert proxy.asked == []
