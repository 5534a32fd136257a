"""A stream is held until its first content as long as another attempt could take its place, and no moment longer."""

import asyncio
import gzip

import pytest

from support.apis import ANTHROPIC, APIS, OPENAI, Api
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.scripts import answers, begins, closes, in_turn, is_silent, resets, streams
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, ROLE, STOP, sse

TWICE = "retry: {attempts: 2, delay: 1 ms}"
PING = b": ping\n\n"
SOON_S = 0.9
"""Sooner than a hold ends by itself."""
VERSIONS = {"openai": "h2", "anthropic": "h1", "gemini": "h2"}
"""What the client of each API speaks here."""


async def error_types(gateway: Gateway) -> list[str | None]:
    """Return the error type of each attempt."""
    rows = await gateway.rows(1, "select error_type from attempts order by exchange_id, n")
    return [row["error_type"] for row in rows]


# -- what is no answer is dropped for a better one --------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_what_fails_before_its_first_content_is_tried_again_and_leaves_no_trace(
    open_gateway: OpenGateway, provider: Provider, api: Api
) -> None:
    failures = [
        streams(api.error),
        begins(api.before, api.error, then=is_silent),
        begins(then=closes),
        begins(api.before, then=closes),
        begins(api.before, PING, then=resets),
        streams(api.before),
    ]
    rules = "retry: {attempts: 2, delay: 1 ms, ratio: 100 %}"
    async with open_gateway(rules) as gateway:
        client = await gateway.client(VERSIONS[api.name], api.host)
        for failure in failures:
            provider.on(api.path, in_turn(failure, streams(api.stream)))

            answer = await client.post(api.path, api.ask)

            assert (answer.status, answer.body, answer.complete) == (200, api.stream, True)
            assert answer.header("cf-aig-attempts") == "2"
        rows = await gateway.rows(len(failures))
        told = await error_types(gateway)
    assert [error_type and error_type.partition(":")[0] for error_type in told[::2]] == [
        *["error_event"] * 2,
        *["reset"] * 4,
    ]
    assert told[1::2] == [None] * len(failures)
    assert {(row["attempts"], row["terminal"], row["error_type"]) for row in rows} == {(2, "complete", None)}


async def test_a_plain_answer_that_is_an_error_is_tried_again(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, in_turn(answers(b'{"error":{"message":"no capacity","type":"server_error"}}'), answers(ANSWER)))
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

    assert (answer.body, answer.header("cf-aig-attempts")) == (ANSWER, "2")


async def test_a_compressed_stream_is_understood_while_it_is_held(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    def zipped(body: bytes) -> Script:
        async def script(_heard: Heard, wire: Wire) -> None:
            await wire.stream([gzip.compress(body)], "text/event-stream", "content-encoding: gzip")

        return script

    provider.on(CHAT, in_turn(zipped(OPENAI.error), zipped(OPENAI.stream)))
    async with open_gateway(f"usage: leave\n{TWICE}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM, "accept-encoding: gzip")

    assert (answer.header("content-encoding"), gzip.decompress(answer.body)) == ("gzip", OPENAI.stream)
    assert answer.header("cf-aig-attempts") == "2"


async def test_where_it_fails_every_time_the_client_gets_the_last_stream_as_it_came(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    first, last = (sse({"error": {"message": f"no {n}", "type": "server_error"}}) for n in range(2))
    provider.on(CHAT, in_turn(streams(ROLE, first), streams(ROLE, last)))
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http2()

        answer = await client.post(CHAT, ASK_STREAM)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.complete) == (200, ROLE + last, True)
    assert (row["attempts"], row["status_code"], row["terminal"]) == (2, 200, "error_event")


async def test_an_error_that_would_come_again_is_not_tried_again(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http1()
        for code in ("context_length_exceeded", "insufficient_quota", "invalid_api_key"):
            told = sse({"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": code}})
            provider.streams(CHAT, [told])

            answer = await client.post(CHAT, ASK_STREAM)

            assert (answer.body, answer.header("cf-aig-attempts")) == (told, "1")


async def test_what_a_dropped_stream_used_is_booked_with_its_attempt(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """Anthropic counts the input at the start; a stream that fails behind it has been paid for."""
    provider.on(
        ANTHROPIC.path, in_turn(begins(ANTHROPIC.before, ANTHROPIC.error, then=closes), streams(ANTHROPIC.stream))
    )
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http1(ANTHROPIC.host)

        await client.post(ANTHROPIC.path, ANTHROPIC.ask)

        row = await gateway.row()
        first, second = await gateway.rows(1, "select * from attempts order by n")
    assert (first["input_tokens"], first["output_tokens"], first["error_type"]) == (25, 1, "error_event:overloaded")
    assert (second["input_tokens"], second["output_tokens"], second["error_type"]) == (25, 15, None)
    assert 0 < first["cost_nanousd"] < second["cost_nanousd"]
    assert row["cost_nanousd"] == first["cost_nanousd"] + second["cost_nanousd"]
    assert (row["input_tokens"], row["output_tokens"]) == (50, 16)


async def test_a_stream_that_ends_well_without_a_word_is_an_answer(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.streams(CHAT, [ROLE, STOP, DONE])
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

    assert (answer.body, len(provider.heard)) == (ROLE + STOP + DONE, 1)


# -- from the first content on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_the_first_content_reaches_the_client_before_the_provider_says_more(
    open_gateway: OpenGateway, provider: Provider, api: Api
) -> None:
    first, *rest = (event + b"\n\n" for event in api.rest.split(b"\n\n") if event)
    head = api.before + first

    async def waits_for_the_client(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(api.before)
        await wire.chunk(first)
        said = len(head)
        for event in rest:
            await call.body(said)
            await wire.chunk(event)
            said += len(event)
        await wire.send(b"0\r\n\r\n")

    provider.on(api.path, waits_for_the_client)
    async with open_gateway(TWICE) as gateway:
        client = await gateway.client(VERSIONS[api.name], api.host)

        call = await client.begin(api.path, api.ask)

        answer = await call.end()
    assert (answer.body, answer.complete, len(provider.heard)) == (api.stream, True, 1)


@pytest.mark.parametrize("then", [closes, resets, is_silent], ids=["closed", "reset", "silent"])
async def test_nothing_is_sent_again_once_the_client_has_content(
    open_gateway: OpenGateway, provider: Provider, version: str, then: Script
) -> None:
    heard_by_client = asyncio.Event()

    async def breaks_off(heard: Heard, wire: Wire) -> None:
        await heard_by_client.wait()  # a reset would overtake what is still under way
        await then(heard, wire)

    provider.on(CHAT, begins(ROLE, HEL, then=breaks_off))
    async with open_gateway(f"{TWICE}\ntimeout: {{idle: 150 ms}}") as gateway:
        client = await gateway.client(version)
        call = await client.begin(CHAT, ASK_STREAM)
        await call.body(len(ROLE + HEL))
        heard_by_client.set()

        answer = await call.end()

        row = await gateway.row()
    assert answer.body.startswith(ROLE + HEL)
    assert answer.complete == (then is is_silent)  # then we say an event of our own, and end
    assert (row["attempts"], row["terminal"]) == (1, "timeout" if then is is_silent else "truncated")
    assert len(provider.heard) == 1


async def test_an_error_event_behind_content_is_the_clients_to_hear(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.streams(CHAT, [ROLE, HEL, OPENAI.error])
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

        row = await gateway.row()
        assert await error_types(gateway) == [row["error_type"]] == ["error_event:server_error"]
    assert (answer.body, len(provider.heard)) == (ROLE + HEL + OPENAI.error, 1)
    assert (row["attempts"], row["terminal"]) == (1, "error_event")


@pytest.mark.parametrize(("rules", "failures"), [("", []), (TWICE, [resets])], ids=["no retry", "the last attempt"])
async def test_nothing_is_held_where_nothing_could_take_its_place(
    open_gateway: OpenGateway, provider: Provider, rules: str, failures: list[Script]
) -> None:
    async def waits_for_the_client(_heard: Heard, wire: Wire) -> None:
        await call.body(len(ROLE))
        await wire.chunk(HEL)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, in_turn(*failures, begins(ROLE, then=waits_for_the_client)))
    async with open_gateway(rules) as gateway:
        client = await gateway.http1()

        call = await client.begin(CHAT, ASK_STREAM)

        assert (await asyncio.wait_for(call.end(), SOON_S)).body == ROLE + HEL


# -- the limits of a hold ---------------------------------------------------------------------------------------------

MUCH = b": " + b"x" * 65534 + b"\n\n"


LIMITS: list[tuple[list[bytes], bool]] = [
    ([PING] * 63, False),
    ([PING] * 64, True),
    ([PING * 63], False),
    ([PING * 64], True),
    ([b": ping\r\n\r\n"] * 64, True),
    ([MUCH] * 3, False),
    ([MUCH] * 4, True),
]
"""What stands before an error, and whether it has gone out by then."""


def fails_after(goes_on: asyncio.Event) -> Script:
    """Return a script that ends a stream with an error when it *goes_on*."""

    async def script(_heard: Heard, wire: Wire) -> None:
        await goes_on.wait()
        await wire.chunk(OPENAI.error)
        await wire.send(b"0\r\n\r\n")

    return script


async def test_a_hold_lets_go_after_64_events_or_256_kib(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http1()
        for held, is_let_go in LIMITS:
            said, goes_on = b"".join(held), asyncio.Event()
            provider.heard.clear()
            provider.on(CHAT, in_turn(begins(*held, then=fails_after(goes_on)), streams(OPENAI.stream)))
            call = await client.begin(CHAT, ASK_STREAM)
            if is_let_go:
                await asyncio.wait_for(call.body(len(said)), SOON_S)
                goes_on.set()
            else:
                asyncio.get_running_loop().call_later(0.05, goes_on.set)  # as long as anything could have gone out

            answer = await call.end()

            assert answer.body == (said + OPENAI.error if is_let_go else OPENAI.stream)
            assert len(provider.heard) == (1 if is_let_go else 2)


async def test_a_hold_lets_go_after_a_second(open_gateway: OpenGateway, provider: Provider) -> None:
    async def goes_on_when_the_client_has_heard(_heard: Heard, wire: Wire) -> None:
        await call.body(len(ROLE))
        for piece in (HEL, LO, STOP, DONE):
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, begins(ROLE, then=goes_on_when_the_client_has_heard))
    async with open_gateway(TWICE) as gateway:
        client = await gateway.http2()
        begun = asyncio.get_running_loop().time()

        call = await client.begin(CHAT, ASK_STREAM)
        await call.body(len(ROLE))

        assert SOON_S < asyncio.get_running_loop().time() - begun < 1.9
        assert (await call.end()).body == OPENAI.stream
    assert len(provider.heard) == 1


# -- time -------------------------------------------------------------------------------------------------------------


async def pings(_heard: Heard, wire: Wire) -> None:
    for _ in range(6):
        await wire.chunk(PING)
        await asyncio.sleep(0.05)  # the gap is what is tested: each below the limit, all together above it
    for piece in (ROLE, HEL, STOP, DONE):
        await wire.chunk(piece)
    await wire.send(b"0\r\n\r\n")


async def test_a_ping_is_life_while_a_stream_is_held(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, begins(then=pings))
    async with open_gateway(f"{TWICE}\ntimeout: {{idle: 200 ms}}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

    assert (answer.body, len(provider.heard)) == (PING * 6 + ROLE + HEL + STOP + DONE, 1)


async def test_a_stream_that_falls_silent_before_its_content_is_tried_again(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, in_turn(begins(ROLE, then=is_silent), streams(OPENAI.stream)))
    async with open_gateway(f"{TWICE}\ntimeout: {{idle: 80 ms}}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

        assert (answer.status, answer.body) == (200, OPENAI.stream)
        assert await error_types(gateway) == ["timeout", None]
    await asyncio.wait_for(provider.left.wait(), 5)
