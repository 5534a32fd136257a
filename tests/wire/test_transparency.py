"""What no rule changes passes byte for byte: paths, header fields, bodies, in both directions."""

import gzip
import json
import zlib

import brotli  # type: ignore[import-untyped]
import pytest

from support.client import Http1
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, MESSAGES, ROLE, STREAM

ODD = "/a%2Fb%3Ac/%7Ed//../x?q=%20+x&y=%C3%A4;z"
"""What a client library that re-quotes, decodes or tidies paths would break (Bedrock's ``%3A``, SigV4)."""


# -- the request


async def test_an_odd_path_arrives_as_it_was_sent(gateway: Gateway, provider: Provider, version: str) -> None:
    client = await gateway.client(version)

    await client.post(ODD, b"", method="GET")

    assert provider.heard[0].path == ODD


async def test_an_odd_path_arrives_through_the_base_url_door(gateway: Gateway, provider: Provider) -> None:
    client = await gateway.plain()

    await client.post(f"/anthropic{ODD}", b"", method="GET")

    assert provider.heard[0].path == ODD


async def test_request_fields_keep_order_case_and_duplicates_and_nothing_is_added(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    fields = ["X-Odd-CASE: 1", "Authorization: Bearer sk-1", "x-twice: b", "X-Twice: a", "accept: */*"]

    await client.post(CHAT, ASK, *fields)

    pairs = [tuple(field.split(": ")) for field in fields]
    sent = [("Host", "api.openai.com"), *pairs, ("Content-Length", str(len(ASK)))]
    assert [(name.decode(), value.decode()) for name, value in provider.heard[0].fields] == sent


async def test_an_http2_request_gets_a_host_and_nothing_else(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http2()

    await client.post(CHAT, ASK, "x-b: 1", "x-a: 2", "x-b: 3")

    names = [(name.lower(), value) for name, value in provider.heard[0].fields]
    assert names == [
        (b"host", b"api.openai.com"),
        (b"x-b", b"1"),
        (b"x-a", b"2"),
        (b"x-b", b"3"),
        (b"content-length", b"%d" % len(ASK)),
    ]


async def test_what_is_between_client_and_gateway_stays_there(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.client(version)
    ours = ['cf-aig-metadata: {"tenantId":"acme"}', "CF-AIG-Event-ID: e1", "cf-aig-unheard-of: x"]
    hops = ["Connection: keep-alive, x-hop", "Keep-Alive: 5", "X-Hop: 1", "Proxy-Authorization: Basic eDp5", "TE: gzip"]

    await client.post(CHAT, ASK, *ours, *(hops if version == "h1" else []), "x-stays: 1")

    names = [name.lower().decode() for name, _ in provider.heard[0].fields]
    assert sorted(names) == ["content-length", "host", "x-stays"]


async def test_a_body_that_is_not_json_passes_as_it_is(gateway: Gateway, provider: Provider, version: str) -> None:
    body = bytes(range(256)) * 3
    provider.says(CHAT, ANSWER)
    client = await gateway.client(version)

    await client.post(CHAT, body, "content-type: application/json")

    assert provider.heard[0].body == body


@pytest.mark.parametrize(("kind", "length"), [("application/json", True), ("application/octet-stream", False)])
async def test_a_chunked_request_arrives_whole(gateway: Gateway, provider: Provider, kind: str, length: bool) -> None:
    """JSON is collected, since rules read it, and gets a length; what no rule reads goes on as it comes."""
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: api.openai.com\r\nTransfer-Encoding: chunked\r\nContent-Type: {kind}\r\n\r\n"
    client.writer.write(
        head.encode() + b"5\r\n" + ASK[:5] + b"\r\n%x\r\n" % (len(ASK) - 5) + ASK[5:] + b"\r\n0\r\n\r\n"
    )

    answer = await client.listen().end()

    [heard] = provider.heard
    assert answer.body == ANSWER
    assert heard.body == ASK
    assert (heard.header("content-length") is not None, heard.header("transfer-encoding") is None) == (length, length)


async def test_a_client_that_expects_a_100_gets_it(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: {len(ASK)}\r\nExpect: 100-continue\r\n\r\n"
    client.writer.write(head.encode())

    first, _ = await client.head()
    client.writer.write(ASK)
    answer = await client.listen().end()

    assert (first, answer.status, answer.body) == (100, 200, ANSWER)
    assert (provider.heard[0].body, provider.heard[0].header("expect")) == (ASK, None)


async def test_length_and_chunks_together_are_refused(gateway: Gateway, provider: Provider) -> None:
    client = await gateway.http1()
    fields = "Content-Length: 5\r\nTransfer-Encoding: chunked"
    client.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: api.openai.com\r\n{fields}\r\n\r\n0\r\n\r\n".encode())

    answer = await client.listen().end()

    assert answer.status == 400
    assert json.loads(answer.body)["error"]["message"]
    assert provider.heard == []


# -- the answer


async def test_answer_fields_keep_order_case_and_duplicates_and_ours_follow(
    gateway: Gateway, provider: Provider
) -> None:
    fields = [
        "X-Request-ID: req_1",
        "set-cookie: a=1; Path=/",
        "Set-Cookie: b=2",
        "x-request-id: again",
        "Server: edge",
    ]
    provider.says(
        CHAT, ANSWER, "200 OK", "application/json", *fields, "Connection: keep-alive", "Keep-Alive: timeout=5"
    )
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK)

    theirs = ["content-type: application/json", f"content-length: {len(ANSWER)}", *fields]
    assert [f"{name}: {value}" for name, value in answer.fields[: len(theirs)]] == theirs
    assert all(name.startswith("cf-aig-") for name, _ in answer.fields[len(theirs) :])


async def test_answer_fields_of_an_http2_client_keep_order_and_duplicates(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER, "200 OK", "application/json", "Set-Cookie: a=1", "X-B: 1", "set-cookie: b=2")
    client = await gateway.http2()

    answer = await client.post(CHAT, ASK)

    theirs = [(name, value) for name, value in answer.fields if name in ("set-cookie", "x-b")]
    assert theirs == [("set-cookie", "a=1"), ("x-b", "1"), ("set-cookie", "b=2")]


async def test_an_answer_says_who_gave_it(gateway: Gateway, provider: Provider, version: str) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK, "cf-aig-event-id: e1")

    row = await gateway.row()
    ours = {name: value for name, value in answer.fields if name.startswith("cf-aig-")}
    assert ours == {
        "cf-aig-log-id": row["id"],
        "cf-aig-attempts": "1",
        "cf-aig-step": "0",
        "cf-aig-provider": "openai",
        "cf-aig-model": "gpt-4o-2024-08-06",
        "cf-aig-source": "provider",
        "cf-aig-event-id": "e1",
    }


async def test_a_stream_says_the_model_that_was_asked_for(gateway: Gateway, provider: Provider) -> None:
    """When a stream's headers leave, the model that answers is not known yet."""
    provider.streams(CHAT, STREAM)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK_STREAM)

    assert answer.header("cf-aig-model") == "gpt-4o"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", f"{MESSAGES}/count_tokens"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/files"),
    ],
)
async def test_a_call_that_generates_nothing_gets_no_row_and_no_headers_of_ours(
    gateway: Gateway, provider: Provider, version: str, method: str, path: str
) -> None:
    provider.says(path, b'{"data":[]}')
    host = "api.anthropic.com" if path.startswith(MESSAGES) else "api.openai.com"
    client = await gateway.client(version, host)

    answer = await client.post(path, ASK if method == "POST" else b"", "cf-aig-event-id: e1", method=method)

    assert (answer.status, answer.body) == (200, b'{"data":[]}')
    assert [name for name, _ in answer.fields if name.startswith("cf-aig-")] == []
    assert provider.heard[0].header("cf-aig-event-id") is None
    assert await gateway.rows() == []
    assert "mitmgate_passed_total" in gateway.chain.state.metrics.text().decode()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "200 OK"])
async def test_an_empty_answer_stays_empty(gateway: Gateway, provider: Provider, version: str, status: str) -> None:
    async def says_nothing(_heard: Heard, wire: Wire) -> None:
        length = "content-length: 0\r\n" if status.startswith("200") else ""
        await wire.send(f"HTTP/1.1 {status}\r\netag: x\r\n{length}\r\n".encode())

    provider.on("/v1/models", says_nothing)
    client = await gateway.client(version)

    for _ in range(2):  # the second answer is found only where the first one ended
        answer = await client.post("/v1/models", method="GET")
        assert (answer.status, answer.body, answer.complete) == (int(status[:3]), b"", True)
        assert answer.header("etag") == "x"
        assert answer.header("transfer-encoding") is None


async def test_a_head_has_the_length_and_no_body(gateway: Gateway, provider: Provider, version: str) -> None:
    async def says_how_long(heard: Heard, wire: Wire) -> None:
        body = b"" if heard.method == "HEAD" else ANSWER
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
        await wire.send(head.encode() + body)

    provider.on("/v1/models", says_how_long)
    client = await gateway.client(version)

    answer = await client.post("/v1/models", method="HEAD")

    assert (answer.status, answer.header("content-length"), answer.body) == (200, str(len(ANSWER)), b"")
    assert (await client.post("/v1/models", method="GET")).body == ANSWER


async def test_an_answer_that_ends_with_its_connection_arrives_whole(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def closes_at_the_end(_heard: Heard, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + ANSWER)
        wire.cut()

    provider.on(CHAT, closes_at_the_end)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK)

    assert (answer.status, answer.body, answer.complete) == (200, ANSWER, True)
    assert (await gateway.row())["terminal"] == "complete"


def _gzip_by_event(pieces: list[bytes]) -> list[bytes]:
    """Return *pieces* compressed so that each can be read when it arrives."""
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*packed[:-1], packed[-1] + packer.flush()]


def _zstd(body: bytes) -> bytes:
    from backports import zstd

    return zstd.compress(body)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [("gzip", gzip.compress(ANSWER)), ("br", brotli.compress(ANSWER)), ("zstd", _zstd(ANSWER)), ("x-odd", b"\0\1\2")],
)
async def test_a_compressed_answer_passes_untouched(
    gateway: Gateway, provider: Provider, version: str, coding: str, packed: bytes
) -> None:
    provider.says(CHAT, packed, "200 OK", "application/json", f"content-encoding: {coding}")
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK, f"accept-encoding: {coding}")

    assert (answer.body, answer.header("content-encoding")) == (packed, coding)
    assert provider.heard[0].header("accept-encoding") == coding
    row = await gateway.row()
    assert row["input_tokens"] == (9 if coding != "x-odd" else None)


async def test_a_compressed_stream_passes_untouched_and_is_read_all_the_same(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
    packed = _gzip_by_event([ROLE, HEL, usage, DONE])
    provider.streams(CHAT, packed, "text/event-stream", "content-encoding: gzip")
    async with open_gateway("usage: leave") as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK_STREAM)

        row = await gateway.row()
    assert (answer.body, answer.header("content-encoding")) == (b"".join(packed), "gzip")
    assert (row["input_tokens"], row["output_tokens"]) == (9, 3)


async def test_each_event_leaves_before_the_next_is_there(gateway: Gateway, provider: Provider, version: str) -> None:
    """The provider sends an event only after the client has got the one before."""
    seen: list[int] = []

    async def waits_for_the_client(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        size = 0
        for piece in STREAM:
            await wire.chunk(piece)
            size += len(piece)
            await call.body(size)
            seen.append(size)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, waits_for_the_client)
    client = await gateway.client(version)

    call = await client.begin(CHAT, ASK_STREAM)
    answer = await call.end()

    assert len(seen) == len(STREAM)
    assert answer.body == b"".join(STREAM)


async def test_long_header_lines_pass(gateway: Gateway, provider: Provider, version: str) -> None:
    """Some providers send content-security-policies of 10 kB; some keys are JWTs as long."""
    long = "x" * 12_000
    provider.says(CHAT, ANSWER, "200 OK", "application/json", f"content-security-policy: {long}")
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK, f"authorization: Bearer {long}")

    assert answer.header("content-security-policy") == long
    assert provider.heard[0].header("authorization") == f"Bearer {long}"


async def test_header_values_beyond_ascii_pass(gateway: Gateway, provider: Provider) -> None:
    async def answers(_heard: Heard, wire: Wire) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(ANSWER)}\r\n".encode()
        await wire.send(head + b"x-name: caf\xe9\r\n\r\n" + ANSWER)

    provider.on(CHAT, answers)
    client = await gateway.http1()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: {len(ASK)}\r\n".encode()
    client.writer.write(head + b"X-Name: caf\xc3\xa9 \xf0\x9f\x98\x80\r\n\r\n" + ASK)

    answer = await client.listen().end()

    assert answer.header("x-name") == "caf\xe9"
    assert (b"X-Name", b"caf\xc3\xa9 \xf0\x9f\x98\x80") in provider.heard[0].fields


async def test_a_header_that_cannot_be_passed_on_is_refused_and_named(gateway: Gateway, provider: Provider) -> None:
    client = await Http1.tunnel(gateway.port, "api.openai.com", gateway.trust())
    client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nX-Name: caf\xe9\r\n")
    client.writer.write(b"Content-Length: 2\r\n\r\n{}")

    answer = await client.receive()

    assert answer.status == 400
    assert "X-Name" in json.loads(answer.body)["error"]["message"]
    assert provider.heard == []
    await client.close()
