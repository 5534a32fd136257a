"""The doors ask for a key of the gateway's own, over real sockets: in each place, at each door, on each protocol."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from mitmgate.clock import ManualClock
from mitmgate.errors import StartError
from mitmgate.policy import loads
from mitmgate.store import key_file
from mitmgate.store.key_file import Made
from support.apis import ANTHROPIC, APIS, GEMINI, OPENAI, Api
from support.client import Answer, Client, Http1, Http2
from support.gateway import Gateway, OpenGateway, policy_for
from support.provider import HOSTS, Provider
from support.speech import ANSWER, ASK, CHAT
from support.web import web_gateway
from support.websocket import TEXT, UPGRADE, echo, say

TEAM = "team-key-0123456789"
SMALL = "small-key-0123456789"
POLICY = """
auth:
  keys:
    - {name: team, key: env:TEAM, tenant: acme, user: ann}
    - {name: small, key: env:SMALL, models: ["*-mini"]}
"""
HOMES = """
targets:
  openai: {provider: openai, base_url: "https://api.openai.com", headers: {authorization: Bearer env:REAL}}
  anthropic: {provider: anthropic, base_url: "https://api.anthropic.com", headers: {x-api-key: env:REAL}}
  gemini:
    provider: google-ai-studio
    base_url: "https://generativelanguage.googleapis.com"
    headers: {x-goog-api-key: env:REAL}
"""
"""The targets that supply the providers' keys."""
ENV = {"TEAM": TEAM, "SMALL": SMALL, "REAL": "sk-real-0123456789"}
KEY = f"cf-aig-authorization: Bearer {TEAM}"
THEIRS = "Authorization: Bearer sk-theirs-0123456789"


def basic(key: str) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(f'user:{key}'.encode()).decode()}"


def make(gateway: Gateway, name: str = "made", **more: Any) -> str:
    """Make a key as ``mitmgate keys new`` does, beside the running gateway, and return it."""
    key = key_file.new_key()
    digest = key_file.digest_of(gateway.chain.state.secret, key)
    made = Made(digest, name, more.get("tenant"), None, more.get("models", ()), 0.0, more.get("expires_at"))
    with closing(key_file.open_file(key_file.beside(gateway.db))) as conn:
        key_file.add(conn, made)
    return key


def revoke(gateway: Gateway, name: str) -> None:
    with closing(key_file.open_file(key_file.beside(gateway.db))) as conn:
        key_file.revoke(conn, name, 0.0)


def message(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["message"])


def heard_text(provider: Provider) -> str:
    """Return all that the provider ever heard."""
    return "\n".join(f"{heard.path} {heard.fields} {heard.body!r}" for heard in provider.heard)


async def connect_says(gateway: Gateway, target: str, *fields: str) -> tuple[int, Http1]:
    """Return the status of a CONNECT to *target*, and the connection."""
    client = await Http1.plain(gateway.port)
    gateway.clients.append(client)
    await client.send("CONNECT", target, target, b"", *fields)
    status, _ = await client.head()
    return status, client


# -- who comes in


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_without_a_key_the_answer_is_a_401_in_the_clients_own_words(
    open_gateway: OpenGateway, provider: Provider, api: Api, version: str
) -> None:
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.client(version, api.host)

        answer = await client.post(api.path, api.ask, THEIRS)

        row = await gateway.row()
    assert (answer.status, answer.header("cf-aig-source")) == (401, "gateway")
    assert answer.header("x-should-retry") == "false"
    error = json.loads(answer.body)["error"]
    assert "cf-aig-authorization" in error["message"]
    assert error.get("type", error.get("status")) in ("authentication_error", "UNAUTHENTICATED")
    assert provider.heard == []
    assert (row["status_code"], row["terminal"], row["error_type"]) == (401, "refused", "401")
    assert row["id"] in error["message"]


PLACES: dict[str, tuple[Api, Callable[[str], str]]] = {
    "cf-aig-authorization": (OPENAI, lambda key: f"cf-aig-authorization: Bearer {key}"),
    "proxy-authorization": (OPENAI, basic),
    "authorization": (OPENAI, lambda key: f"Authorization: Bearer {key}"),
    "x-api-key": (ANTHROPIC, lambda key: f"X-Api-Key: {key}"),
    "x-goog-api-key": (GEMINI, lambda key: f"x-goog-api-key: {key}"),
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_key_opens_the_door_from_each_place_and_nobody_ever_sees_it(
    open_gateway: OpenGateway, provider: Provider, caplog: pytest.LogCaptureFixture, version: str, place: str
) -> None:
    caplog.set_level(logging.DEBUG, "mitmgate")
    caplog.set_level(logging.DEBUG, "mitmproxy")
    api, field = PLACES[place]
    provider.streams(api.path, [api.stream])
    async with open_gateway(f"{POLICY}{HOMES}trace: {{payloads: full}}", env=ENV) as gateway:
        key = make(gateway, tenant="globex")
        client = await gateway.client(version, api.host)

        answer = await client.post(api.path, api.ask, field(key), "content-type: application/json")

        row = await gateway.row()
        await asyncio.to_thread(gateway.chain.state.writer.close, 5.0)
        written = b"".join(path.read_bytes() for path in gateway.home.path.rglob("*") if path.is_file())
    assert answer.status == 200, answer.body
    assert (row["tenant"], row["status_code"]) == ("globex", 200)
    assert key not in heard_text(provider)
    assert "cf-aig" not in heard_text(provider)
    assert "proxy-authorization" not in heard_text(provider).lower()
    assert key not in str(answer.fields) + answer.body.decode()
    assert key.encode() not in written  # rows, payloads, keys
    assert [record for record in caplog.records if key in record.getMessage()] == []
    assert ENV["REAL"] in heard_text(provider)


async def test_a_key_in_the_query_opens_the_door_and_is_taken_out(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.streams(GEMINI.path.partition("?")[0], [GEMINI.stream])
    async with open_gateway(POLICY + HOMES, env=ENV) as gateway:
        key = make(gateway)
        client = await gateway.http1(GEMINI.host)

        answer = await client.post(f"{GEMINI.path}&key={key}", GEMINI.ask)

        row = await gateway.row()
    [heard] = provider.heard
    assert (answer.status, heard.path) == (200, GEMINI.path)
    assert heard.header("x-goog-api-key") == ENV["REAL"]
    assert key not in row["path"]


async def test_calls_that_generate_nothing_and_uploads_need_a_key_too(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says("/v1/models", b'{"data":[]}')
    provider.says("/v1/files", b'{"id":"file-1"}')
    large = b"x" * (2 << 20)
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.http1()
        shut = [await client.post("/v1/models", b"", THEIRS, method="GET")]
        other = await gateway.http2()
        shut.append(await other.post("/v1/files", large, THEIRS))
        client = await gateway.http1()
        opened = [
            await client.post("/v1/models", b"", THEIRS, KEY, method="GET"),
            await client.post("/v1/files", large, THEIRS, KEY),
        ]
    assert [answer.status for answer in shut] == [401, 401]
    assert [answer.status for answer in opened] == [200, 200]
    assert [heard.path for heard in provider.heard] == ["/v1/models", "/v1/files"]


async def test_a_revoked_key_opens_nothing_more_on_the_same_connection(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(POLICY, env=ENV) as gateway:
        key = make(gateway)
        client = await gateway.client(version)
        fields = (f"cf-aig-authorization: Bearer {key}", THEIRS)
        before = await client.post(CHAT, ASK, *fields)

        revoke(gateway, "made")

        after = await client.post(CHAT, ASK, *fields)
    assert (before.status, after.status) == (200, 401)
    assert "was revoked" in message(after)


async def test_a_key_ends_by_the_clock(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    clock = ManualClock()
    async with open_gateway(POLICY, env=ENV, clock=clock) as gateway:
        key = make(gateway, expires_at=clock.wall() + 3600)
        client = await gateway.http1()
        fields = (f"cf-aig-authorization: Bearer {key}", THEIRS)
        before = await client.post(CHAT, ASK, *fields)

        clock.advance(3600)

        after = await client.post(CHAT, ASK, *fields)
    assert (before.status, after.status) == (200, 401)


async def test_a_key_is_for_its_models(open_gateway: OpenGateway, provider: Provider, version: str) -> None:
    provider.says(CHAT, ANSWER)
    key = f"cf-aig-authorization: Bearer {SMALL}"
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.client(version)
        forbidden = await client.post(CHAT, ASK, key, THEIRS)
        permitted = await client.post(CHAT, ASK.replace(b"gpt-4o", b"gpt-4o-mini"), key, THEIRS)
        rows = await gateway.rows(2)
        events = await gateway.rows(2, "select room, rule, action from policy_events where room = 'auth'")
    assert (forbidden.status, permitted.status) == (403, 200)
    assert "*-mini" in message(forbidden)
    assert "rule small" in message(forbidden)
    assert [(row["status_code"], row["source"]) for row in rows] == [(403, "gateway"), (200, "provider")]
    assert [tuple(event.values()) for event in events] == [("auth", "small", "refuse")]


async def test_a_row_tells_who_it_was_whatever_the_client_claims(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.http1()

        await client.post(CHAT, ASK, KEY, THEIRS, 'cf-aig-metadata: {"tenantId": "globex", "userId": "bob"}')

        row = await gateway.row()
    assert (row["tenant"], row["user"]) == ("acme", "ann")


# -- the base-URL door


@pytest.mark.parametrize("path", [f"/openai{CHAT}", "/compat/chat/completions", "/nobody/x", "/"])
async def test_the_base_url_door_asks_first(open_gateway: OpenGateway, provider: Provider, path: str) -> None:
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.plain()

        answer = await client.post(path, ASK, THEIRS)

    assert answer.status == 401
    assert "nobody" not in message(answer)
    assert provider.heard == []


async def test_compat_takes_the_key_in_the_providers_place(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(POLICY + HOMES, env=ENV) as gateway:
        client = await gateway.plain()

        answer = await client.post(
            "/compat/chat/completions",
            b'{"model":"openai/gpt-4o","messages":[]}',
            f"Authorization: Bearer {TEAM}",
        )

    assert answer.status == 200, answer.body
    assert provider.heard[0].header("authorization") == f"Bearer {ENV['REAL']}"


async def test_a_universal_request_shows_its_key_outside_and_elements_keep_theirs(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    element = {
        "provider": "openai",
        "endpoint": "chat/completions",
        "headers": {"Authorization": "Bearer sk-theirs", "x-api-key": TEAM},
        "query": {"model": "gpt-4o", "messages": []},
    }
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.plain()
        shut = await client.post("/v1/account/gateway", json.dumps([element]).encode())

        answer = await client.post("/v1/account/gateway", json.dumps([element]).encode(), KEY)

    assert (shut.status, answer.status) == (401, 200)
    [heard] = provider.heard
    assert heard.header("authorization") == "Bearer sk-theirs"
    assert TEAM not in heard_text(provider)


async def test_health_is_free_and_numbers_are_for_this_machine_or_a_key(open_gateway: OpenGateway) -> None:
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.plain()
        health = await client.post("/healthz", method="GET")
        here = await client.post("/metrics", method="GET")
        keys = gateway.chain.door.keys
        elsewhere = keys.page("192.0.2.7", {})
        wrong = keys.page("192.0.2.7", {"authorization": "Bearer wrong"})
        shown = keys.page("192.0.2.7", {"authorization": f"Bearer {TEAM}"})
    assert (health.status, here.status) == (200, 200)
    assert elsewhere is not None
    assert wrong is not None
    assert (elsewhere.status, wrong.status, shown) == (401, 401, None)


# -- CONNECT


async def test_a_tunnel_needs_a_key_and_a_client_may_try_again_on_the_connection(
    open_gateway: OpenGateway, provider: Provider, authority: trustme.CA
) -> None:
    provider.says("/x", b"hello")
    target = f"localhost:{provider.port}"
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await Http1.plain(gateway.port)
        gateway.clients.append(client)
        await client.send("CONNECT", target, target)
        refused = await client.receive()
        await client.send("CONNECT", target, target, b"", basic(TEAM))
        status, _ = await client.head()
        await client.writer.start_tls(_trusts(authority), server_hostname="localhost")
        answer = await client.post("/x", method="GET")

    assert (refused.status, refused.header("proxy-authenticate")) == (407, 'Basic realm="mitmgate"')
    assert "HTTPS_PROXY" in message(refused)
    assert (status, answer.body) == (200, b"hello")
    assert TEAM not in heard_text(provider)


@pytest.mark.parametrize(
    ("target", "fields", "status"),
    [
        ("api.openai.com:443", (), 200),
        ("api.openai.com:443", (basic("wrong"),), 407),
        ("api.openai.com:443", (basic(TEAM),), 200),
        ("api.openai.com:443", (f"Proxy-Authorization: Bearer {TEAM}",), 200),
        ("api.openai.com:443", ("Proxy-Authorization: Negotiate x",), 407),
        ("other.example:443", (), 407),
        ("other.example:443", (basic("wrong"),), 407),
        ("search.corp.example:443", (), 407),
        ("search.corp.example:443", (basic(TEAM),), 200),
        ("192.0.2.7:443", (), 407),
        ("169.254.169.254:80", (basic(TEAM),), 403),
    ],
)
async def test_who_may_connect_to_whom(
    open_gateway: OpenGateway, target: str, fields: tuple[str, ...], status: int
) -> None:
    observe = '\nobserve: [{hosts: ["search.corp.example"], kind: retrieval}]'
    async with open_gateway(POLICY + observe, env=ENV) as gateway:
        found, _ = await connect_says(gateway, target, *fields)

    assert found == status


async def test_what_a_connect_has_shown_opens_the_requests_inside_until_it_is_revoked(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(POLICY, env=ENV) as gateway:
        key = make(gateway, tenant="globex")
        client = await keyed(gateway, version, key)
        first = await client.post(CHAT, ASK, THEIRS)
        second = await client.post(CHAT, ASK, THEIRS)
        rows = await gateway.rows(2)

        revoke(gateway, "made")

        after = await client.post(CHAT, ASK, THEIRS)
        remembered = dict(gateway.chain.door.keys.shown)
        client.abort()
        await gateway.until(lambda: not gateway.chain.door.keys.shown)
    assert (first.status, second.status, after.status) == (200, 200, 401)
    assert [row["tenant"] for row in rows] == ["globex", "globex"]
    assert len(remembered) == 1
    assert key not in heard_text(provider)
    assert "proxy-authorization" not in heard_text(provider).lower()


async def keyed(gateway: Gateway, version: str, key: str, host: str = "api.openai.com") -> Client:
    """Return a connection whose CONNECT has shown *key*."""
    status, client = await connect_says(gateway, f"{host}:443", basic(key))
    if status != 200:
        raise AssertionError(f"CONNECT: {status}")
    alpn = ("h2",) if version == "h2" else ()
    await client.writer.start_tls(gateway.trust(*alpn), server_hostname=host)
    made = Http2(client.reader, client.writer, host) if version == "h2" else Http1(client.reader, client.writer, host)
    gateway.clients.append(made)
    return made


def _trusts(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# -- what mitmproxy carries itself


async def test_plain_http_to_other_hosts_needs_a_key_which_does_not_travel_on(open_gateway: OpenGateway) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with open_gateway(POLICY, env=ENV) as gateway, await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
        client = await Http1.plain(gateway.port)
        gateway.clients.append(client)
        refused = await client.post(url, method="GET")

        answer = await client.post(url, b"", basic(TEAM), "X-Mine: 1", method="GET")

    assert (refused.status, refused.header("proxy-authenticate")) == (407, 'Basic realm="mitmgate"')
    assert (answer.status, answer.body) == (200, b"ok")
    assert len(heard) == 1
    assert b"X-Mine: 1" in heard[0]
    assert b"proxy-" not in heard[0].lower()


async def test_without_the_section_a_proxy_login_does_not_travel_on_either(open_gateway: OpenGateway) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with open_gateway("") as gateway, await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = await Http1.plain(gateway.port)
        gateway.clients.append(client)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"

        answer = await client.post(url, b"", basic("whatever"), "cf-aig-event-id: 1", method="GET")

    assert answer.status == 200
    assert b"proxy-auth" not in heard[0].lower()
    assert b"cf-aig" not in heard[0].lower()


async def test_an_observed_host_is_for_whoever_has_a_key(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says("/query", b"{}")
    observe = '\nobserve: [{hosts: ["search.corp.example"], kind: retrieval}]'
    async with open_gateway(POLICY + observe, env=ENV) as gateway:
        key = make(gateway)
        client = await keyed(gateway, "h1", key, "search.corp.example")
        before = await client.post("/query", b"{}", "cf-aig-event-id: 1")

        revoke(gateway, "made")

        after = await client.post("/query", b"{}")
    assert (before.status, after.status) == (200, 407)
    assert [heard.path for heard in provider.heard] == ["/query"]
    assert provider.heard[0].header("cf-aig-event-id") is None


async def upgrade(client: Http1, path: str, *fields: str) -> int:
    await client.send("GET", path, client.host, b"", *UPGRADE, *fields)
    status, _ = await client.head()
    return status


REALTIME = "/v1/realtime?model=gpt-realtime"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((THEIRS,), 401),
        ((THEIRS, KEY), 101),
        ((f"Authorization: Bearer {TEAM}",), 401),
        ((THEIRS, f"cf-aig-authorization: Bearer {SMALL}"), 403),
        ((KEY, f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{TEAM}"), 401),
        ((KEY, "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-theirs"), 101),
    ],
)
async def test_a_websocket_needs_a_key_of_ours_and_one_of_its_provider(
    open_gateway: OpenGateway, provider: Provider, fields: tuple[str, ...], status: int
) -> None:
    provider.on(REALTIME, echo)
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.http1()

        found = await upgrade(client, REALTIME, *fields)

        if found == 101:
            assert await say(client, b"hello") == (TEXT, b"HELLO")
    assert found == status
    assert TEAM not in heard_text(provider)
    assert "cf-aig" not in heard_text(provider)


async def test_a_key_of_ours_in_a_websockets_query_does_not_travel_on(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(REALTIME, echo)
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.http1()

        status = await upgrade(client, f"{REALTIME}&api-key={TEAM}", THEIRS)

    assert status == 101
    assert [heard.path for heard in provider.heard] == [REALTIME]


# -- mitmweb


async def test_a_replay_goes_by_what_the_connection_had_shown_and_no_screen_has_the_key(
    home_path: Path, authority: trustme.CA, ca_file: Path, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    policy = policy_for(provider.port, ca_file, HOSTS[:1], POLICY, env=ENV)
    async with web_gateway(home_path, policy, authority) as inside:
        gateway = inside.gateway
        key = make(gateway)
        client = await keyed(gateway, "h1", key)
        await client.post(CHAT, ASK, THEIRS)
        other = await gateway.http1()
        await other.post(CHAT, ASK, THEIRS, f"cf-aig-authorization: Bearer {key}")
        await gateway.until(lambda: all(not flow.live for flow in inside.engine.view.resolve("@all")))
        for flow in await inside.page.flows():
            await inside.page.ask("POST", f"/flows/{flow['id']}/replay")
        await gateway.until(lambda: len(gateway.settled) == 4)
        shown = (await inside.page.ask("GET", "/flows/dump")).body + json.dumps(await inside.page.flows()).encode()

    assert [x.status for x in gateway.settled] == [200] * 4
    assert len(provider.heard) == 4
    assert key.encode() not in shown
    assert key not in heard_text(provider)


# -- the policy is edited


async def test_an_edited_policy_asks_for_keys_at_the_next_request(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("") as gateway:
        plain = await gateway.http1()
        client = await keyed(gateway, "h1", TEAM)
        before = await plain.post(CHAT, ASK, THEIRS)

        text = f"{gateway.chain.policy.text}\n{POLICY}"
        gateway.chain.take(loads(text, "policy.yaml", ENV))

        refused = await plain.post(CHAT, ASK, THEIRS)
        shown = await client.post(CHAT, ASK, THEIRS)
    assert (before.status, refused.status, shown.status) == (200, 401, 200)


async def test_a_door_that_others_may_use_cannot_lose_its_lock(open_gateway: OpenGateway) -> None:
    async with open_gateway(POLICY, env=ENV) as gateway:
        open_policy = loads("", "policy.yaml", {})
        gateway.chain.door.check(open_policy)  # on loopback it may

        gateway.chain.door.is_open_to_others = True

        with pytest.raises(StartError, match="cannot do without `auth`"):
            gateway.chain.take(open_policy)
        assert gateway.chain.policy.auth is not None


async def test_the_last_use_of_a_key_is_written_down(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(POLICY, env=ENV) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, KEY, THEIRS)
        keys = gateway.chain.state.keys
        await asyncio.to_thread(keys.flush)

        with closing(key_file.open_file(key_file.beside(gateway.db))) as conn:
            assert set(key_file.uses(conn)) == {keys.digest_of(TEAM)}
