"""The proxy door: provider hosts are intercepted, other hosts tunnelled unseen, and some may not be reached at all."""

import asyncio
import json
import socket
import ssl

import pytest
import trustme

from support.client import Http1, connect
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.speech import ANSWER, ASK, CHAT


def _trusts(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# -- who is intercepted


async def test_a_provider_host_shows_the_gateways_certificate(gateway: Gateway) -> None:
    client = await gateway.http1()

    issuer = client.writer.get_extra_info("peercert")["issuer"]

    assert (("organizationName", "mitmproxy"),) in issuer


async def test_the_bundle_that_clients_are_pointed_to_trusts_it(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    trust = ssl.create_default_context(cafile=str(gateway.home.bundle))
    client = await Http1.tunnel(gateway.port, "api.openai.com", trust)
    gateway.clients.append(client)

    assert (await client.post(CHAT, ASK)).body == ANSWER


async def test_another_host_keeps_its_own_certificate_and_gets_no_row(
    gateway: Gateway, provider: Provider, authority: trustme.CA
) -> None:
    provider.says("/x", b"hello")
    client = await Http1.tunnel(gateway.port, "localhost", _trusts(authority), provider.port)

    answer = await client.post("/x", ASK, "cf-aig-event-id: 1")

    assert answer.body == b"hello"
    assert provider.heard[0].header("cf-aig-event-id") == "1"  # unseen means untouched
    assert await gateway.rows() == []
    assert "mitmgate_tunnels_total 1" in gateway.chain.state.metrics.text().decode()
    await client.close()


async def test_hosts_of_the_policy_are_intercepted(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway('providers: {corp-llm: {hosts: ["*.corp.example"], dialect: openai}}') as gateway:
        client = await gateway.http1("llm.corp.example")

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert answer.header("cf-aig-provider") == "corp-llm"
    assert (row["provider_name"], row["host"]) == ("corp-llm", "llm.corp.example")


async def test_connect_by_address_is_known_by_its_server_name(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await writer.start_tls(gateway.trust(), server_hostname="api.openai.com")
    client = Http1(reader, writer, "api.openai.com")

    answer = await client.post(CHAT, ASK)

    row = await gateway.row()
    assert (answer.status, answer.body) == (200, ANSWER)
    assert (provider.heard[0].sni, row["host"]) == ("api.openai.com", "api.openai.com")
    await client.close()


async def test_plain_http_in_absolute_form_passes_in_origin_form(gateway: Gateway) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    heard: list[bytes] = []
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await Http1.plain(gateway.port)

        answer = await client.post(f"http://127.0.0.1:{port}/a?b", method="GET")

        await client.close()
    assert (answer.status, answer.body) == (200, b"ok")
    assert heard[0].startswith(b"GET /a?b HTTP/1.1\r\n")
    assert await gateway.rows() == []


async def test_a_provider_host_in_absolute_form_is_a_call_like_any_other(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with open_gateway('providers: {corp: {hosts: ["127.0.0.1:9"], dialect: openai}}') as gateway:
        client = await Http1.plain(gateway.port)

        answer = await client.post(f"http://127.0.0.1:9{CHAT}", ASK)

        row = await gateway.row()
        await client.close()
    assert answer.status == 502
    assert (row["provider_name"], row["error_type"]) == ("corp", "connect")


# -- who may not be reached

FORBIDDEN = [
    "169.254.169.254",
    "[fe80::1]",
    "[::ffff:169.254.169.254]",
    "metadata.google.internal",
    "100.100.100.200",
]


@pytest.mark.parametrize("host", FORBIDDEN)
async def test_metadata_and_link_local_addresses_are_closed_to_connect(gateway: Gateway, host: str) -> None:
    with pytest.raises(ConnectionError, match="403"):
        await connect(gateway.port, host, gateway.trust(), 80)


@pytest.mark.parametrize("host", FORBIDDEN)
async def test_metadata_and_link_local_addresses_are_closed_to_plain_http(gateway: Gateway, host: str) -> None:
    client = await Http1.plain(gateway.port)

    answer = await client.post(f"http://{host}/latest/meta-data/", method="GET")

    assert answer.status == 403
    assert host.strip("[]") in json.loads(answer.body)["error"]["message"]
    await client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
async def test_the_gateways_own_ports_are_closed(gateway: Gateway, host: str) -> None:
    for port in (gateway.port, gateway.base_url_port):
        with pytest.raises(ConnectionError, match="own port"):
            await connect(gateway.port, host, gateway.trust(), port)
        client = await Http1.plain(gateway.port)
        answer = await client.post(f"http://{host}:{port}/metrics", method="GET")
        assert answer.status == 403
        await client.close()


@pytest.mark.parametrize("places", [["169.254.169.254"], ["203.0.113.9", "169.254.169.254"]])
async def test_a_name_that_leads_to_a_link_local_address_is_not_dialled(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, places: list[str]
) -> None:
    """DNS rebinding: the name is harmless, the address is not."""

    async def getaddrinfo(host: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in places]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    client = await Http1.plain(gateway.port)

    answer = await client.post("http://rebind.example/latest/meta-data/", method="GET")

    assert answer.status == 502
    assert "169.254.169.254" in json.loads(answer.body)["error"]["message"]
    await client.close()


async def test_a_tunnel_to_a_name_that_leads_to_a_link_local_address_is_not_dialled(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(host: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    with pytest.raises((ConnectionError, ssl.SSLError)):
        await connect(gateway.port, "rebind.example", gateway.trust())

    assert "mitmgate_refused_tunnels_total 1" in gateway.chain.state.metrics.text().decode()


async def test_a_provider_name_that_leads_to_a_link_local_address_is_not_dialled(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(host: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    async with open_gateway(hosts=()) as gateway:
        client = await gateway.http1()
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert answer.status == 502
    assert "169.254.169.254" in json.loads(answer.body)["error"]["message"]
    assert row["error_type"] == "connect"


# -- nonsense

GARBAGE = [
    b"\0\1\2\3\4\5\6\7\r\n\r\n",
    b"HELO mail.example\r\n\r\n",
    b"GET\r\n\r\n",
    b"POST /openai/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
    b"CONNECT nowhere HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("door", ["proxy", "base-url"])
async def test_garbage_gets_one_clear_400_and_stops_nobody_else(
    gateway: Gateway, provider: Provider, door: str, garbage: bytes
) -> None:
    provider.says(CHAT, ANSWER)
    client = await Http1.plain(gateway.port if door == "proxy" else gateway.base_url_port)
    client.writer.write(garbage)

    answer = await client.listen("GET").end()

    assert answer.status == 400
    assert answer.header("content-type") == "application/json"
    assert json.loads(answer.body)["error"]["message"]
    await client.close()
    other = await gateway.http1()
    assert (await other.post(CHAT, ASK)).body == ANSWER


async def test_garbage_inside_an_intercepted_connection_gets_one_clear_400(gateway: Gateway) -> None:
    client = await gateway.http1()
    client.writer.write(b"\0\1\2 nonsense\r\n\r\n")

    answer = await client.listen("GET").end()

    assert answer.status == 400
    assert json.loads(answer.body)["error"]["message"]


async def test_a_client_that_does_not_trust_the_ca_is_counted_and_alarms_nobody(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, authority: trustme.CA
) -> None:
    """clients.md point 7: openai-js on Node 24 opens two connections and drops one in mid-handshake."""
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(gateway.port, "api.openai.com", _trusts(authority))

    await gateway.until(lambda: "mitmgate_tls_failures_total 1" in gateway.chain.state.metrics.text().decode())
    assert [record for record in caplog.records if record.name.startswith("mitmgate")] == []


async def test_an_unreachable_host_in_absolute_form_is_a_502_in_json(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    client = await Http1.plain(gateway.port)

    answer = await client.post(f"http://127.0.0.1:{port}/", method="GET")

    assert answer.status == 502
    assert json.loads(answer.body)["error"]["message"]
    await client.close()


async def test_a_malformed_request_is_booked_as_refused(gateway: Gateway, provider: Provider) -> None:
    client = await gateway.client("h1")
    client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n")
    client.writer.write(b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}")

    answer = await client.receive()

    assert answer.status == 400
    for row in await gateway.rows():
        assert (row["terminal"], row["status_code"], row["source"]) == ("refused", 400, "gateway")
    assert provider.heard == []


async def test_a_body_of_unknown_length_is_held_up_to_a_limit(gateway: Gateway, provider: Provider) -> None:
    client = await gateway.client("h1")
    client.writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    megabyte = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    try:
        for _ in range(70):
            client.writer.write(megabyte)
            await client.writer.drain()
    except ConnectionError:
        pass
    answer = await client.receive()

    assert answer.status == 413
    assert json.loads(answer.body)["error"]["message"].startswith("mitmgate: ")
    row = await gateway.row()
    assert (row["terminal"], row["status_code"]) == ("refused", 413)
    assert provider.heard == []
