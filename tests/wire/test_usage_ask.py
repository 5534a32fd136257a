"""``usage: ask``: an OpenAI-style stream reports its usage to the gateway, and the client sees nothing of it."""

import json
import zlib

import pytest

from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, ROLE, STOP, STREAM, USAGE

WITH_USAGE = [*STREAM[:-1], USAGE, DONE]
ODD_BODY = b'{ "stream" : true,\n "model":"gpt-4o", "messages":[{"role":"user","content":"h\\u00ef \xc3\xa9"}]  }\n'


def asked(heard: Heard) -> bool:
    options = json.loads(heard.body).get("stream_options") or {}
    return options.get("include_usage") is True


async def test_the_request_asks_and_the_extra_chunk_is_taken_out(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    provider.streams(CHAT, WITH_USAGE)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK_STREAM, "content-type: application/json")

    row = await gateway.row()
    assert (answer.body, answer.complete) == (b"".join(STREAM), True)
    assert asked(provider.heard[0])
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (9, 3, "reported")
    assert row["terminal"] == "complete"
    assert row["sent_sha256"] not in (None, row["request_sha256"])
    events = await gateway.rows(1, "select room, rule, action from policy_events")
    assert events == [{"room": "usage", "rule": "usage", "action": "usage"}]


async def test_all_else_of_the_body_stays_as_the_client_wrote_it(gateway: Gateway, provider: Provider) -> None:
    provider.streams(CHAT, WITH_USAGE)
    client = await gateway.http1()

    await client.post(CHAT, ODD_BODY, "content-type: application/json")

    [heard] = provider.heard
    added = heard.body
    for piece in (b'"stream_options"', b'{"include_usage":true}'):
        assert piece in added.replace(b" ", b"")
    assert asked(heard)
    start = ODD_BODY.rindex(b"}")
    assert added.startswith(ODD_BODY[:start].rstrip())
    assert heard.header("content-length") == str(len(added))


@pytest.mark.parametrize("cut", [1, 7, 10_000])
async def test_the_chunk_is_taken_out_however_the_bytes_are_cut(
    gateway: Gateway, provider: Provider, version: str, cut: int
) -> None:
    body = b"".join(WITH_USAGE)
    provider.streams(CHAT, [body[at : at + cut] for at in range(0, len(body), cut)])
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK_STREAM)

    assert answer.body == b"".join(STREAM)


async def test_each_event_still_leaves_before_the_next(gateway: Gateway, provider: Provider, version: str) -> None:
    async def waits_for_the_client(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        size = 0
        for piece in WITH_USAGE:
            await wire.chunk(piece)
            size += 0 if piece is USAGE else len(piece)
            await call.body(size)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, waits_for_the_client)
    client = await gateway.client(version)

    call = await client.begin(CHAT, ASK_STREAM)

    assert (await call.end()).body == b"".join(STREAM)


@pytest.mark.parametrize(
    "body",
    [
        ASK_STREAM.replace(b'"stream": true', b'"stream": true, "stream_options": {"include_usage": true}'),
        ASK,
        b'{"model": "gpt-4o", "stream": true',
    ],
    ids=["asks itself", "no stream", "no JSON"],
)
async def test_a_request_that_needs_no_asking_is_left_alone(
    gateway: Gateway, provider: Provider, version: str, body: bytes
) -> None:
    provider.streams(CHAT, WITH_USAGE)
    client = await gateway.client(version)

    answer = await client.post(CHAT, body)

    assert provider.heard[0].body == body
    assert answer.body == b"".join(WITH_USAGE)
    assert (await gateway.row())["sent_sha256"] is None


async def test_leave_never_touches_a_body(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.streams(CHAT, WITH_USAGE)
    async with open_gateway("usage: leave") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

        assert provider.heard[0].body == ASK_STREAM
        assert answer.body == b"".join(WITH_USAGE)


class RefusesTheField:
    """An older server: it does not know ``stream_options``."""

    body = b'{"error":{"message":"Unknown parameter: stream_options","type":"invalid_request_error"}}'

    def __init__(self, status: str) -> None:
        self.status = status

    async def script(self, heard: Heard, wire: Wire) -> None:
        if asked(heard):
            await wire.answer(self.body, self.status)
        else:
            await wire.stream(STREAM)


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity"])
async def test_a_host_that_refuses_the_field_is_asked_once_and_remembered(
    gateway: Gateway, provider: Provider, version: str, status: str
) -> None:
    provider.on(CHAT, RefusesTheField(status).script)
    client = await gateway.client(version)

    first = await client.post(CHAT, ASK_STREAM)
    second = await client.post(CHAT, ASK_STREAM)

    assert [(answer.status, answer.body) for answer in (first, second)] == [(200, b"".join(STREAM))] * 2
    assert [asked(heard) for heard in provider.heard] == [True, False, False]
    assert provider.heard[1].body == ASK_STREAM
    assert first.header("cf-aig-attempts") == "1"
    rows = await gateway.rows(2)
    assert [(row["attempts"], row["status_code"], row["sent_sha256"]) for row in rows] == [(1, 200, None)] * 2
    assert await gateway.rows(2, "select * from policy_events") == []
    attempts = await gateway.rows(2, "select n, status_code from attempts")
    assert attempts == [{"n": 1, "status_code": 200}] * 2


async def test_a_refusal_is_remembered_for_its_api_version_only(gateway: Gateway, provider: Provider) -> None:
    path = "/openai/deployments/gpt-4o/chat/completions"
    provider.on(f"{path}?api-version=old", RefusesTheField("400 Bad Request").script)
    provider.streams(f"{path}?api-version=new", WITH_USAGE)
    client = await gateway.http1("example-resource.openai.azure.com")

    await client.post(f"{path}?api-version=old", ASK_STREAM)
    await client.post(f"{path}?api-version=new", ASK_STREAM)

    assert [asked(heard) for heard in provider.heard] == [True, False, True]


async def test_another_400_is_the_clients_and_passes_as_it_came(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    body = b'{"error":{"message":"temperature is too high","type":"invalid_request_error"}}'
    provider.says(CHAT, body, "400 Bad Request", "application/json", "x-request-id: r1")
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK_STREAM)

    assert (answer.status, answer.body, answer.header("x-request-id")) == (400, body, "r1")
    assert len(provider.heard) == 1
    assert (await gateway.row())["status_code"] == 400


async def test_a_json_answer_to_a_stream_request_is_left_as_it_is(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK_STREAM)

    assert answer.body == ANSWER
    assert (await gateway.row())["input_tokens"] == 9


async def test_a_compressed_stream_is_opened_where_the_chunk_has_to_go(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in WITH_USAGE]
    packed.append(packer.flush())
    provider.streams(CHAT, packed, "text/event-stream", "Content-Encoding: gzip")
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK_STREAM, "accept-encoding: gzip")

    assert (answer.body, answer.header("content-encoding")) == (b"".join(STREAM), None)
    assert (await gateway.row())["input_tokens"] == 9


async def test_a_coding_nobody_can_open_passes_untouched(gateway: Gateway, provider: Provider) -> None:
    provider.streams(CHAT, [b"\0\1", b"\2\3"], "text/event-stream", "content-encoding: x-odd")
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK_STREAM)

    assert (answer.body, answer.header("content-encoding")) == (b"\0\1\2\3", "x-odd")


async def test_a_cut_right_before_the_end_gives_all_that_is_the_clients(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def cuts(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in (ROLE, HEL, LO, STOP, USAGE):
            await wire.chunk(piece)
        await wire.chunk(DONE[:-1])
        wire.cut()

    provider.on(CHAT, cuts)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK_STREAM)

    assert (answer.body, answer.complete) == (b"".join(STREAM)[:-1], False)
    assert (await gateway.row())["input_tokens"] == 9
