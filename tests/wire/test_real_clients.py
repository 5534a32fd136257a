"""What 41 real clients were seen to do as they ran through a proxy (2026-11-24); the numbers are those of the notes."""

import asyncio
import ssl

import pytest
import trustme

from support.client import Http1, connect
from support.gateway import Gateway
from support.provider import Heard, Provider, Wire
from support.speech import (
    ANSWER,
    ASK,
    ASK_CLAUDE,
    CHAT,
    CLAUDE_DELTA,
    CLAUDE_START,
    CLAUDE_STOP,
    CLAUDE_TEXT,
    MESSAGES,
    STREAM,
)

CLAUDE_STREAM = [CLAUDE_START, CLAUDE_TEXT, CLAUDE_DELTA, CLAUDE_STOP]


async def test_3_of_claude_codes_requests_only_the_one_that_generates_gets_a_row(
    gateway: Gateway, provider: Provider
) -> None:
    client = await gateway.http1("api.anthropic.com")
    beside = [
        ("GET", "/api/hello"),
        ("GET", "/api/claude_code/settings"),
        ("GET", "/api/organization/claude_code_first_token_date"),
        ("GET", "/v1/mcp_servers?limit=1000"),
        ("POST", "/api/event_logging/batch"),
        ("POST", "/api/claude_code/metrics"),
        ("POST", "/v1/oauth/token"),
        ("POST", f"{MESSAGES}/count_tokens?beta=true"),
    ]
    for method, path in beside:
        provider.says(path, b"{}")
        answer = await client.post(path, b"{}" if method == "POST" else b"", method=method)
        assert (answer.status, answer.header("cf-aig-log-id")) == (200, None), path
    provider.streams(f"{MESSAGES}?beta=true", CLAUDE_STREAM)

    answer = await client.post(f"{MESSAGES}?beta=true", ASK_CLAUDE, "x-api-key: sk-ant-1")

    row = await gateway.row()
    assert answer.body == b"".join(CLAUDE_STREAM)
    assert answer.header("cf-aig-log-id") == row["id"]
    assert (row["input_tokens"], row["output_tokens"]) == (25, 15)


@pytest.mark.parametrize(
    ("key", "version"),
    [("Authorization: Bearer sk-ant-1", "2026-10-21"), ("x-api-key: sk-ant-1", "2023-06-01")],
    ids=["the SDKs of today", "Claude Code"],
)
async def test_4_anthropics_clients_send_their_key_in_either_header(
    gateway: Gateway, provider: Provider, key: str, version: str
) -> None:
    provider.streams(MESSAGES, CLAUDE_STREAM)
    client = await gateway.http1("api.anthropic.com")

    await client.post(MESSAGES, ASK_CLAUDE, key, f"anthropic-version: {version}", "anthropic-beta: a-2026-01-01,b")

    [heard] = provider.heard
    name, _, value = key.partition(": ")
    assert (heard.header(name), heard.header("anthropic-version")) == (value, version)
    assert heard.header("anthropic-beta") == "a-2026-01-01,b"
    assert (await gateway.row())["auth"]


async def test_4_the_same_key_is_the_same_caller_in_either_header(gateway: Gateway, provider: Provider) -> None:
    provider.streams(MESSAGES, CLAUDE_STREAM)
    client = await gateway.http1("api.anthropic.com")

    await client.post(MESSAGES, ASK_CLAUDE, "Authorization: Bearer sk-ant-1")
    await client.post(MESSAGES, ASK_CLAUDE, "x-api-key: sk-ant-1")
    await client.post(MESSAGES, ASK_CLAUDE, "x-api-key: sk-ant-2")

    first, second, other = [row["auth"] for row in await gateway.rows(3)]
    assert first == second != other
    assert "sk-ant" not in first + other


@pytest.mark.parametrize("prefix", ["/v1", "/v1beta"])
async def test_5_google_genai_uses_v1_or_v1beta(gateway: Gateway, provider: Provider, prefix: str) -> None:
    path = f"{prefix}/models/gemini-2.5-flash:generateContent"
    body = (
        b'{"candidates":[{"content":{"parts":[{"text":"hello"}],"role":"model"},"finishReason":"STOP","index":0}],'
        b'"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":2,"totalTokenCount":6},'
        b'"modelVersion":"gemini-2.5-flash"}'
    )
    provider.says(path, body)
    client = await gateway.http1("generativelanguage.googleapis.com")

    answer = await client.post(path, b'{"contents":[{"parts":[{"text":"hi"}]}]}', "x-goog-api-key: AIza1")

    row = await gateway.row()
    assert answer.body == body
    assert (row["input_tokens"], row["output_tokens"], row["request_model"]) == (4, 2, "gemini-2.5-flash")
    assert (row["provider_name"], row["operation_name"]) == ("gcp.gemini", "generate_content")


async def test_6_twenty_requests_of_one_client_connection_share_one_provider_connection(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()

    for _ in range(20):
        assert (await client.post(CHAT, ASK)).body == ANSWER

    assert provider.connections == 1


async def test_7_a_connection_dropped_in_mid_handshake_does_not_disturb_the_one_beside_it(
    gateway: Gateway, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """openai-js 7 on Node 24 opens two."""
    provider.says(CHAT, ANSWER)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    hello = ssl.MemoryBIO()
    talk = gateway.trust().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="api.openai.com")
    with pytest.raises(ssl.SSLWantReadError):
        talk.do_handshake()
    writer.write(hello.read())
    await reader.read(1)

    writer.transport.abort()
    client = await gateway.http1()

    assert (await client.post(CHAT, ASK)).body == ANSWER
    assert [record for record in caplog.records if record.name.startswith("mitmgate")] == []


async def test_11_the_cookies_that_openai_python_sends_back_pass_and_are_not_kept(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER, "200 OK", "application/json", "Set-Cookie: __cf_bm=secret-1; path=/")
    client = await gateway.http1()

    first = await client.post(CHAT, ASK)
    await client.post(CHAT, ASK, "Cookie: __cf_bm=secret-1")

    assert first.header("set-cookie") == "__cf_bm=secret-1; path=/"
    assert provider.heard[1].header("cookie") == "__cf_bm=secret-1"
    assert provider.heard[0].header("cookie") is None
    await gateway.rows(2)
    assert b"secret-1" not in gateway.db.read_bytes() + gateway.db.with_name("traces.db-wal").read_bytes()


async def test_12_a_client_that_offers_no_alpn_speaks_http_1(gateway: Gateway, provider: Provider) -> None:
    """aiohttp, dspy, axios inside Claude Code."""
    provider.says(CHAT, ANSWER)
    trust = gateway.trust()
    client = await Http1.tunnel(gateway.port, "api.openai.com", trust)
    gateway.clients.append(client)

    assert (await client.post(CHAT, ASK)).body == ANSWER
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None


async def test_12_a_client_that_offers_both_speaks_http_2(gateway: Gateway) -> None:
    _, writer = await connect(gateway.port, "api.openai.com", gateway.trust("h2", "http/1.1"))

    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.transport.abort()


async def test_13_openai_agents_traces_are_no_call(gateway: Gateway, provider: Provider) -> None:
    provider.says("/v1/traces/ingest", b"", "204 No Content")
    client = await gateway.http1()

    answer = await client.post("/v1/traces/ingest", b'{"data":[]}', "content-type: application/json")

    assert answer.status == 204
    assert await gateway.rows() == []


async def test_13_what_a_client_fetches_elsewhere_is_tunnelled_unseen(
    gateway: Gateway, provider: Provider, authority: trustme.CA
) -> None:
    """litellm, dspy and aider fetch a price list from a code host."""
    provider.says("/prices.json", b"{}")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    client = await Http1.tunnel(gateway.port, "127.0.0.1", trust, provider.port)
    gateway.clients.append(client)

    answer = await client.post("/prices.json", method="GET")

    assert answer.body == b"{}"
    assert await gateway.rows() == []


async def test_14_a_stream_that_fails_inside_shows_in_its_row(gateway: Gateway, provider: Provider) -> None:
    """The AI SDK and cohere hide it from the application."""
    error = b'data: {"error":{"message":"boom","type":"server_error","code":null}}\n\n'
    provider.streams(CHAT, [*STREAM[:2], error])
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK_CLAUDE)

    row = await gateway.row()
    assert answer.body.endswith(error)
    assert (row["status_code"], row["terminal"]) == (200, "error_event")
    assert row["error_type"].startswith("error_event:")


async def test_8_a_refusal_of_ours_never_looks_like_a_web_page(gateway: Gateway, provider: Provider) -> None:
    """HTML breaks the SDKs' error parsing."""

    async def resets(_heard: Heard, wire: Wire) -> None:
        wire.reset()

    provider.on(CHAT, resets)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK)

    assert (answer.status, answer.header("content-type")) == (502, "application/json")
