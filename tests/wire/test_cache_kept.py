"""What is kept: whole good answers, and of their heads what is still true; an old one stands in for an error."""

import gzip
import json
import socket

import pytest

from mitmgate.clock import ManualClock
from support.cached import ERROR, HIT, KEEP, MISS, Parrot, says, shown, streams, told
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.speech import (
    ANSWER,
    ASK,
    ASK_CLAUDE,
    ASK_STREAM,
    CHAT,
    CLAUDE_START,
    CLAUDE_STOP,
    CLAUDE_TEXT,
    DONE,
    HEL,
    MESSAGES,
    ROLE,
    STOP,
    STREAM,
    USAGE,
    chunk,
    sse,
)
from support.voices import HOSTS, Api, Said, stream, whole


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# -- what is kept -----------------------------------------------------------------------------------------------------


def finished(reason: str) -> bytes:
    return ANSWER.replace(b'"stop"', json.dumps(reason).encode())


ERROR_EVENT = b"data: " + ERROR + b"\n\n"
CLAUDE_FULL = sse(
    {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 15}}, "message_delta"
)
CLAUDE_ERROR = sse({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "error")

NEVER_KEPT: dict[str, Script] = {
    "500": says(ERROR, "500 Oops"),
    "429": says(ERROR, "429 Busy", "application/json", "retry-after: 1"),
    "400": says(ERROR, "400 Bad Request"),
    "404": says(ERROR, "404 Not Found"),
    "201": says(ANSWER, "201 Created"),
    "an error under 200": says(ERROR),
    "HTML": says(b"<html>Sign in to the airport</html>", "200 OK", "text/html"),
    "no JSON": says(b'{"id": "chatcmpl-1", '),
    "JSON of something else": says(b'{"detail": "ok"}'),
    "nothing": says(b""),
    "length": says(finished("length")),
    "content_filter": says(finished("content_filter")),
    "an unknown finish": says(finished("model_retired")),
    "a stream of length": streams(ROLE, HEL, chunk(finish="length"), DONE),
    "a stream of content_filter": streams(ROLE, chunk(finish="content_filter"), DONE),
    "a stream with an error event first": streams(ERROR_EVENT, DONE),
    "a stream with an error event last": streams(ROLE, HEL, ERROR_EVENT),
    "a stream that is cut": streams(ROLE, HEL, ends=False),
    "a stream that is cut behind its finish": streams(ROLE, HEL, STOP, ends=False),
    "a stream without its end": streams(ROLE, HEL),
    "an empty stream": streams(),
}


async def test_what_is_no_whole_good_answer_is_never_kept(gateway: Gateway, provider: Provider) -> None:
    parrot = Parrot(provider)
    for name, script in NEVER_KEPT.items():
        parrot.script = script
        ask = ASK_STREAM if "stream" in name else ASK
        fields = (KEEP, f"cf-aig-cache-key: {name}")

        answers = [await (await gateway.http1()).post(CHAT, ask, *fields) for _ in range(2)]

        assert [answer.header("cf-aig-cache-status") for answer in answers] == ["MISS", "MISS"], name
        assert answers[0].body == answers[1].body, name
    assert len(provider.heard) == 2 * len(NEVER_KEPT)
    assert gateway.chain.state.answers.stats.entries == 0


@pytest.mark.parametrize("last", [CLAUDE_FULL + CLAUDE_STOP, CLAUDE_ERROR], ids=["max_tokens", "error event"])
async def test_neither_is_it_of_another_api(gateway: Gateway, provider: Provider, last: bytes) -> None:
    provider.on(MESSAGES, streams(CLAUDE_START, CLAUDE_TEXT, last))
    client = await gateway.http1("api.anthropic.com")

    answers = [await client.post(MESSAGES, ASK_CLAUDE, KEEP) for _ in range(2)]

    assert [shown(answer) for answer in answers] == [MISS, MISS]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("api", ["chat", "messages"])
async def test_tool_calls_are_kept(gateway: Gateway, provider: Provider, api: Api, streamed: bool) -> None:
    said = Said(api, '{"city": "Cape Town"}', tool=True)
    path = CHAT if api == "chat" else MESSAGES
    ask = json.dumps({"model": said.model, "max_tokens": 9, "messages": [], "stream": streamed}).encode()
    provider.on(path, streams(*stream(said)) if streamed else says(whole(said)))
    client = await gateway.http1(HOSTS[api])

    first = await client.post(path, ask, KEEP)
    second = await client.post(path, ask, KEEP)

    assert (shown(second), second.body) == (HIT, first.body)
    assert [row["tool_calls"] for row in await gateway.rows(2)] == [1, 1]


async def test_of_the_head_only_what_is_still_true_is_replayed(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    lasting = ["openai-version: 2020-10-01", "x-request-id: req_1", "X-Twice: a", "x-twice: b"]
    passing = [
        "set-cookie: __cf_bm=1; path=/",
        "date: Tue, 24 Nov 2026 10:00:00 GMT",
        "x-ratelimit-remaining-requests: 99",
        "x-ratelimit-reset-tokens: 6ms",
        "anthropic-ratelimit-tokens-remaining: 7",
        "retry-after: 3",
        "cf-ray: 8e7",
        "connection: keep-alive",
    ]
    provider.says(CHAT, ANSWER, "200 OK", "application/json", *lasting, *passing)
    client = await gateway.client(version)

    first = await client.post(CHAT, ASK, KEEP)
    second = await client.post(CHAT, ASK, KEEP)

    names = {line.partition(":")[0].lower() for line in passing}
    assert first.header("set-cookie")
    assert not [name for name, _ in second.fields if name.lower() in names]
    kept = [f"{name}: {value}" for name, value in second.fields if not name.startswith(("cf-", ":", "content-"))]
    assert kept == (lasting if version == "h1" else [line.lower() for line in lasting])


@pytest.mark.parametrize("accepts", ["identity", "br;q=1, *;q=0", None])
async def test_whatever_coding_the_first_client_took_the_second_can_read_it(
    gateway: Gateway, provider: Provider, accepts: str | None
) -> None:
    provider.says(CHAT, gzip.compress(ANSWER), "200 OK", "application/json", "content-encoding: gzip", "etag: W/1")
    client = await gateway.http1()
    first = await client.post(CHAT, ASK, KEEP, "accept-encoding: gzip")

    second = await client.post(CHAT, ASK, KEEP, *([f"accept-encoding: {accepts}"] if accepts else []))

    assert gzip.decompress(first.body) == ANSWER
    assert (shown(second), second.body) == (HIT, ANSWER)
    assert (second.header("content-encoding"), second.header("etag")) == (None, None)
    assert second.header("content-length") == str(len(ANSWER))


async def test_a_coding_that_cannot_be_undone_is_passed_on_and_not_kept(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, b"\x00secret", "200 OK", "application/json", "content-encoding: x-own")
    client = await gateway.http1()

    answers = [await client.post(CHAT, ASK, KEEP) for _ in range(2)]

    assert [(shown(answer), answer.body) for answer in answers] == [(MISS, b"\x00secret")] * 2


async def test_calls_that_generate_nothing_have_no_cache(gateway: Gateway, provider: Provider) -> None:
    provider.says("/v1/models", b'{"data": []}')
    client = await gateway.http1()

    answers = [await client.post("/v1/models", b"", KEEP, method="GET") for _ in range(2)]

    assert [answer.header("cf-aig-cache-status") for answer in answers] == [None, None]
    assert len(provider.heard) == 2


async def test_a_hits_payload_is_kept_as_that_of_any_answer(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.streams(CHAT, STREAM)
    async with open_gateway("trace: {payloads: full}") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK_STREAM, KEEP)
        await client.post(CHAT, ASK_STREAM, KEEP)

        texts = await gateway.rows(2, "select text from v_payloads where kind = 'response' order by exchange_id")

    assert [row["text"] for row in texts] == [b"".join(STREAM).decode()] * 2


async def test_a_hit_without_a_row_leaves_none(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    await client.post(CHAT, ASK, KEEP)

    hit = await client.post(CHAT, ASK, KEEP, "cf-aig-collect-log: false")

    assert (shown(hit), hit.header("cf-aig-log-id")) == (HIT, None)
    assert [row["cache_status"] for row in await gateway.rows(2)] == ["MISS"]


# -- when no new answer can be had ------------------------------------------------------------------------------------


STALE = "cache: [{name: patient, ttl: 1 m, stale_if_error: 1 h}]"


async def resets(_heard: Heard, wire: Wire) -> None:
    wire.reset()


async def hangs(_heard: Heard, wire: Wire) -> None:
    await wire.silence()


FAILURES: dict[str, Script] = {
    "503": says(ERROR, "503 Down"),
    "429": says(ERROR, "429 Busy"),
    "reset": resets,
    "timeout": hangs,
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_an_old_answer_stands_in_for_an_error(
    open_gateway: OpenGateway, provider: Provider, clock: ManualClock, failure: Script
) -> None:
    parrot = Parrot(provider)
    async with open_gateway(STALE, clock=clock) as gateway:
        client = await gateway.http1()
        parrot.script = streams(*STREAM[:-1], USAGE, DONE)
        await client.post(CHAT, ASK_STREAM)
        clock.advance(100)
        parrot.script = failure

        answer = await client.post(CHAT, ASK_STREAM, "cf-aig-request-timeout: 50")

        first, row = await gateway.rows(2)
    assert (answer.status, answer.body, answer.complete) == (200, b"".join(STREAM), True)
    assert shown(answer) == ("HIT", "100", "cache", "1")
    assert (row["source"], row["cache_status"], row["status_code"]) == ("cache", "HIT", 200)
    assert (row["terminal"], row["error_type"], row["attempts"]) == ("complete", None, 1)
    assert (row["cost_nanousd"], row["saved_nanousd"]) == (0, first["cost_nanousd"])


async def test_an_old_answer_stands_in_for_a_provider_that_refuses(
    open_gateway: OpenGateway, provider: Provider, clock: ManualClock
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(STALE, clock=clock) as gateway:
        await (await gateway.http1()).post(CHAT, ASK)
    clock.advance(100)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    async with open_gateway(STALE, clock=clock, port=port) as gateway:
        answer = await (await gateway.http1()).post(CHAT, ASK)

    assert (answer.status, answer.body) == (200, ANSWER)
    assert shown(answer) == ("HIT", "100", "cache", "1")


async def test_an_old_answer_is_no_fresh_one(open_gateway: OpenGateway, provider: Provider, clock: ManualClock) -> None:
    parrot = Parrot(provider)
    async with open_gateway(STALE, clock=clock) as gateway:
        client = await gateway.http1()
        parrot.script = says(told("old"))
        await client.post(CHAT, ASK)
        clock.advance(100)
        parrot.script = FAILURES["503"]
        await client.post(CHAT, ASK)

        again = await client.post(CHAT, ASK)
        parrot.script = says(told("new"))
        answers = [await client.post(CHAT, ASK) for _ in range(2)]

    assert (shown(again), again.body) == (("HIT", "100", "cache", "1"), told("old"))
    assert [shown(answer) for answer in answers] == [MISS, HIT]
    assert [answer.body for answer in answers] == [told("new")] * 2


@pytest.mark.parametrize(("status", "at_s"), [("400 Bad Request", 100), ("401 Unauthorized", 100), ("503 Down", 3700)])
async def test_it_stands_in_for_no_fault_of_the_callers_and_not_for_ever(
    open_gateway: OpenGateway, provider: Provider, clock: ManualClock, status: str, at_s: float
) -> None:
    parrot = Parrot(provider)
    async with open_gateway(STALE, clock=clock) as gateway:
        client = await gateway.http1()
        parrot.script = says(ANSWER)
        await client.post(CHAT, ASK)
        clock.advance(at_s)
        parrot.script = says(ERROR, status)

        answer = await client.post(CHAT, ASK)

    assert (answer.status, answer.body) == (int(status[:3]), ERROR)
    assert shown(answer) == MISS
