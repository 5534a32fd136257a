"""What failed for a moment is asked again: how often, when, and when not."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mitmgate.clock import ManualClock
from support.apis import APIS, OPENAI, Api
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.scripts import answers, closes, in_turn, is_silent, resets, streams
from support.speech import ANSWER, ASK, CHAT, GEMINI

DOWN = b'{"error":{"message":"no capacity","type":"server_error","param":null,"code":null}}'
BUSY = OPENAI.busy
SOON = "retry: {attempts: 3, delay: 1 ms}"


def busy(*more: str) -> Script:
    return answers(BUSY, "429 Too Many Requests", *more)


def fails(status: int, body: bytes = DOWN, *more: str) -> Script:
    return answers(body, f"{status} Failed", *more)


async def tries(gateway: Gateway, answer: Answer, columns: str) -> list[tuple[Any, ...]]:
    """Return *columns* of the attempts that *answer* took."""
    call = answer.header("cf-aig-log-id")
    rows = await gateway.rows(1, f"select {columns} from attempts where exchange_id = '{call}' order by n")
    return [tuple(row.values()) for row in rows]


async def waits(gateway: Gateway, answer: Answer) -> list[float]:
    """Return the milliseconds that were waited before each attempt."""
    return [wait for (wait,) in await tries(gateway, answer, "wait_ms")]


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    """Return (room, rule, action, shadow) of what the rules did, in order."""
    rows = await gateway.rows(
        1, "select room, rule, action, shadow from policy_events where room != 'usage' order by at"
    )
    return [tuple(row.values()) for row in rows]


# -- by header, by policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_a_call_is_tried_again_as_its_headers_say(gateway: Gateway, provider: Provider, api: Api) -> None:
    provider.on(api.path, in_turn(answers(api.busy, "429 Too Many Requests"), streams(api.stream)))
    client = await gateway.client("h2" if api is OPENAI else "h1", api.host)

    answer = await client.post(api.path, api.ask, "cf-aig-max-attempts: 2", "cf-aig-retry-delay: 20")

    row = await gateway.row()
    assert (answer.status, answer.body, answer.complete) == (200, api.stream, True)
    assert (answer.header("cf-aig-attempts"), answer.header("cf-aig-step")) == ("2", "0")
    assert (answer.header("cf-aig-provider"), answer.header("cf-aig-source")) == (api.slug, "provider")
    assert answer.header("x-should-retry") is None
    assert (row["attempts"], row["step"], row["status_code"], row["error_type"]) == (2, 0, 200, None)
    assert await tries(gateway, answer, "n, target, status_code, error_type, wait_ms") == [
        (1, api.slug, 429, "rate_limit", 0),
        (2, api.slug, 200, None, 20),
    ]
    assert await events(gateway) == [("retry", "retry", "retry", 0)]
    assert provider.heard[0].body == provider.heard[1].body
    assert not any(name.lower().startswith(b"cf-aig") for heard in provider.heard for name, _ in heard.fields)


GROWTH = {
    "constant": [0, 10, 10, 10],
    "linear": [0, 10, 20, 30],
    "exponential": [0, 10, 20, 40],
}


async def test_waits_grow_as_the_header_says(gateway: Gateway, provider: Provider) -> None:
    client = await gateway.http1()
    grown = {}
    for backoff in GROWTH:
        provider.on(CHAT, in_turn(fails(503), fails(503), fails(503), answers(ANSWER)))

        answer = await client.post(
            CHAT, ASK, "cf-aig-max-attempts: 4", "cf-aig-retry-delay: 10", f"cf-aig-backoff: {backoff}"
        )

        grown[backoff] = await waits(gateway, answer)
    assert grown == GROWTH
    for row, waited in zip(await gateway.rows(3), GROWTH.values(), strict=True):
        assert row["attempts"] == 4
        assert row["duration_ms"] >= sum(waited)
        assert row["gateway_ms"] <= row["duration_ms"] - sum(waited)


RULES = """\
retry:
  - {name: three, match: {header.x-rule: three}, attempts: 3, delay: 1 ms, ratio: 100 %}
  - {name: no-5xx, match: {header.x-rule: no-5xx}, attempts: 3, delay: 1 ms, retry_on: [429, reset]}
  - {name: shadow, match: {header.x-rule: shadow}, attempts: 3, delay: 1 ms, shadow: true}
  - {name: others, match: {header.x-rule: present}, attempts: 2, delay: 1 ms, ratio: 100 %}
"""


@pytest.mark.parametrize(
    "table",
    [
        {
            (): 1,
            ("x-rule: three",): 3,
            ("x-rule: three", "cf-aig-max-attempts: 1"): 1,
            ("x-rule: three", "cf-aig-max-attempts: 4"): 4,
            ("x-rule: no-5xx",): 1,
            ("x-rule: shadow",): 2,
            ("x-rule: another",): 2,
            ("cf-aig-max-attempts: 2", "cf-aig-retry-delay: 0"): 2,
        },
        {
            ("x-rule: three", "x-stainless-retry-count: 0"): 3,
            ("x-rule: three", "x-stainless-retry-count: 1"): 2,
            ("x-rule: three", "x-stainless-retry-count: 2"): 1,
            ("x-rule: three", "x-stainless-retry-count: 9"): 1,
            ("x-rule: three", "x-stainless-retry-count: many"): 3,
            ("cf-aig-max-attempts: 3", "cf-aig-retry-delay: 0", "x-stainless-retry-count: 1"): 2,
        },
    ],
    ids=["header before the first rule that matches", "what the SDK has tried counts"],
)
async def test_how_often_a_call_is_tried(
    open_gateway: OpenGateway, provider: Provider, table: dict[tuple[str, ...], int]
) -> None:
    provider.on(CHAT, fails(503))
    async with open_gateway(RULES) as gateway:
        client = await gateway.http1()

        answered = {fields: await client.post(CHAT, ASK, *fields) for fields in table}

        rows = await gateway.rows(len(table))
    assert {fields: int(answer.header("cf-aig-attempts") or 0) for fields, answer in answered.items()} == table
    assert [row["attempts"] for row in rows] == [*table.values()]
    assert len(provider.heard) == sum(table.values())
    assert {answer.status for answer in answered.values()} == {503}


async def test_a_rule_in_shadow_says_what_it_would_have_done_and_does_nothing(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, fails(503))
    async with open_gateway("retry: {name: trial, attempts: 3, shadow: true}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

        assert (answer.status, answer.header("cf-aig-attempts")) == (503, "1")
        assert await events(gateway) == [("retry", "trial", "retry", 1)]


# -- what is tried again, and what is not -----------------------------------------------------------------------------


async def sends_half_an_answer(_heard: Heard, wire: Wire) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
    await wire.send(head.encode() + ANSWER[:50])
    wire.cut()


MOMENTS: list[tuple[Script, int | None, str]] = [
    *((answers(b"busy", f"{status} Failed"), status, str(status)) for status in (408, 409, 425, 500, 502, 503)),
    (answers(b"busy", "529 Overloaded"), 529, "overloaded"),
    (answers(DOWN, "503 Service Unavailable"), 503, "server_error"),
    (busy(), 429, "rate_limit"),
    (resets, None, "reset"),
    (closes, None, "reset"),
    (sends_half_an_answer, 200, "reset"),
    (is_silent, None, "timeout"),
]
"""(what happens, the status that its attempt has, its ``error_type``)"""


async def test_a_failure_of_the_moment_is_tried_again(open_gateway: OpenGateway, provider: Provider) -> None:
    good = answers(ANSWER, "200 OK", "connection: close")  # a kept one would be replayed for nothing after a reset
    answered = []
    async with open_gateway(
        "retry: {attempts: 2, delay: 1 ms, ratio: 100 %}\ntimeout: {first_byte: 200 ms}"
    ) as gateway:
        client = await gateway.http1()
        for script, _, _ in MOMENTS:
            provider.on(CHAT, in_turn(script, good))

            answered.append(await client.post(CHAT, ASK))

        failed = await gateway.rows(len(MOMENTS), "select * from attempts where n = 1 order by exchange_id")
        second = await gateway.rows(1, "select * from attempts where n = 2 order by exchange_id")
        rows = await gateway.rows()
    assert [(answer.status, answer.body) for answer in answered] == [(200, ANSWER)] * len(MOMENTS)
    assert [(row["status_code"], row["error_type"]) for row in failed] == [moment[1:] for moment in MOMENTS]
    assert {(row["status_code"], row["error_type"], row["input_tokens"]) for row in second} == {(200, None, 9)}
    assert {(row["attempts"], row["terminal"], row["error_type"]) for row in rows} == {(2, "complete", None)}
    assert {(row["input_tokens"], row["output_tokens"]) for row in rows} == {(9, 3)}


async def test_what_would_be_the_same_again_is_not_tried_again(open_gateway: OpenGateway, provider: Provider) -> None:
    statuses = [400, 401, 402, 403, 404, 413, 422]
    answered = []
    async with open_gateway("retry: {attempts: 3, delay: 1 ms, retry_on: [4xx, 5xx]}") as gateway:
        client = await gateway.http2()
        for status in statuses:
            provider.on(CHAT, fails(status, DOWN, f"x-request-id: r{status}"))

            answered.append(await client.post(CHAT, ASK))

    assert [answer.status for answer in answered] == statuses
    assert {answer.body for answer in answered} == {DOWN}
    assert [answer.header("x-request-id") for answer in answered] == [f"r{status}" for status in statuses]
    assert len(provider.heard) == len(statuses)


NO_CREDIT = b'{"error":{"message":"no credit","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}'


@pytest.mark.parametrize(
    ("body", "more"),
    [(NO_CREDIT, ()), (BUSY, ("retry-after: 7200",)), (BUSY, ("x-should-retry: false",))],
    ids=["a quota that is used up", "a wait of hours", "the provider says so"],
)
async def test_a_429_that_no_wait_cures_is_not_tried_again(
    open_gateway: OpenGateway, provider: Provider, body: bytes, more: tuple[str, ...]
) -> None:
    provider.on(CHAT, answers(body, "429 Too Many Requests", *more))
    async with open_gateway(SOON) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

    assert (answer.status, answer.body) == (429, body)
    assert all_of(answer, "x-should-retry") == ["false"]
    assert len(provider.heard) == 1


def all_of(answer: Answer, name: str) -> list[str]:
    return [value for key, value in answer.fields if key.lower() == name]


async def test_an_upload_that_is_passed_on_while_it_arrives_is_sent_once(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    """All of it has gone out by the time an answer is there."""
    size = 2 << 20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    provider.on("/v1/files", fails(503))
    async with open_gateway(SOON) as gateway:
        client = await gateway.client(version)

        answer = await client.upload("/v1/files", pieces(), size).end()

    assert (answer.status, answer.body) == (503, DOWN)
    assert [len(heard.body) for heard in provider.heard] == [size]


# -- the wait that the provider named ---------------------------------------------------------------------------------

NAMED = [
    ("retry-after-ms: 30",),
    ("x-ms-retry-after-ms: 30",),
    ("retry-after: 0.03",),
    ("retry-after-ms: 30", "x-ms-retry-after-ms: 9000", "retry-after: 60"),
    ("retry-after-ms: soon", "retry-after: 0.03"),
    ("x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 30ms"),
    ("x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-tokens: 30ms", "x-ratelimit-reset-requests: 6m0s"),
]
"""Each says 30 ms."""

NONE = ["-1", "nan", "1e9", "", "soon", "0", "9" * 400, "Wed, 99 Oct 2026 07:28:00 GMT"]
"""No wait at all."""


async def test_a_wait_that_the_provider_named_is_waited(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway("retry: {attempts: 2, delay: 5 s, within: 6 s}") as gateway:
        client = await gateway.http1()
        waited = {}
        for more in NAMED:
            provider.on(CHAT, in_turn(busy(*more), answers(ANSWER)))

            waited[more] = await waits(gateway, await client.post(CHAT, ASK))

        rows = await gateway.rows(len(NAMED))
    assert waited == {more: [0, 30] for more in NAMED}
    assert {row["status_code"] for row in rows} == {200}
    assert min(row["duration_ms"] for row in rows) >= 30


async def test_a_wait_that_is_none_leaves_the_rules_own(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway("retry: {attempts: 2, delay: 2 ms, jitter: none}") as gateway:
        client = await gateway.http1()
        waited = {}
        for word in NONE:
            provider.on(CHAT, in_turn(busy(f"retry-after: {word}"), answers(ANSWER)))

            waited[word] = await waits(gateway, await client.post(CHAT, ASK))

    assert waited == {word: [0, 2] for word in NONE}


async def test_googles_retry_info_is_a_named_wait(open_gateway: OpenGateway, provider: Provider) -> None:
    info = b'{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"0.03s"}'
    body = b'{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"slow down","details":[%b]}}' % info
    ok = b'{"candidates":[{"content":{"parts":[{"text":"hello"}]},"finishReason":"STOP","index":0}]}'
    provider.on(GEMINI, in_turn(answers(body, "429 Too Many Requests"), answers(ok)))
    async with open_gateway("retry: {attempts: 2, delay: 5 s}") as gateway:
        client = await gateway.http1("generativelanguage.googleapis.com")

        answer = await client.post(GEMINI, b'{"contents":[{"parts":[{"text":"hi"}]}]}')

        assert (answer.body, await waits(gateway, answer)) == (ok, [0, 30])


TOO_LONG = [
    {"retry-after": "30"},
    {"retry-after-ms": "30000", "retry-after": "30"},
    {"date": "Wed, 21 Oct 2026 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"},
    {"date": "Sat, 21 Oct 2006 07:28:00 GMT", "retry-after": "Sat, 21 Oct 2006 07:28:30 GMT"},
]
"""Each says 30 s, dates by the provider's own clock: the last one lies years back by ours."""


async def test_a_wait_that_is_too_long_is_told_to_the_client_at_once(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with open_gateway("retry: {attempts: 3, delay: 1 ms, within: 20 s}") as gateway:
        client = await gateway.http1()
        for fields in TOO_LONG:
            provider.on(CHAT, busy(*(f"{name}: {value}" for name, value in fields.items())))

            answer = await client.post(CHAT, ASK)

            assert (answer.status, answer.body, answer.header("cf-aig-attempts")) == (429, BUSY, "1")
            assert {name: answer.header(name) for name in fields} == fields
            assert answer.header("x-should-retry") is None


# -- when it was of no use --------------------------------------------------------------------------------------------


async def test_the_last_answer_reaches_the_client_byte_for_byte_and_its_sdk_need_not_try_again(
    open_gateway: OpenGateway, provider: Provider, version: str
) -> None:
    bodies = [b'{"error": {"message" :"no %d",\n "type":"server_error"} }\n' % n for n in range(3)]
    said = ("X-Odd: a", "X-Odd: b", "x-should-retry: true")
    provider.on(CHAT, in_turn(*(fails(500 + n, body, f"x-request-id: r{n}", *said) for n, body in enumerate(bodies))))
    async with open_gateway(SOON) as gateway:
        client = await gateway.client(version)

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
        kept = await tries(gateway, answer, "status_code, request_id")
    assert (answer.status, answer.body) == (502, bodies[2])
    assert answer.header("x-request-id") == "r2"
    assert (all_of(answer, "x-odd"), all_of(answer, "x-should-retry")) == (["a", "b"], ["false"])
    assert (answer.header("cf-aig-attempts"), answer.header("cf-aig-source")) == ("3", "provider")
    assert (row["status_code"], row["source"], row["terminal"]) == (502, "provider", "complete")
    assert kept == [(500, "r0"), (501, "r1"), (502, "r2")]


async def test_where_no_attempt_brought_an_answer_the_client_gets_ours_in_its_own_words(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, resets)
    async with open_gateway(SOON) as gateway:
        client = await gateway.http2()

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
        kept = await tries(gateway, answer, "status_code, error_type")
    assert (answer.status, answer.header("x-should-retry"), answer.header("cf-aig-attempts")) == (502, "false", "3")
    assert json.loads(answer.body)["error"]["code"] == "connection_error"
    assert (row["error_type"], row["terminal"], row["source"]) == ("reset", "failed", "gateway")
    assert kept == [(None, "reset")] * 3


async def test_an_answer_is_better_than_none_also_where_it_came_before(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, in_turn(fails(503), resets))
    async with open_gateway("retry: {attempts: 2, delay: 1 ms}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.header("x-should-retry")) == (503, DOWN, "false")
    assert (row["status_code"], row["attempts"], row["source"]) == (503, 2, "provider")


# -- time -------------------------------------------------------------------------------------------------------------


async def test_the_total_limit_counts_over_all_attempts(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, fails(503))
    rules = "retry: {attempts: 10, delay: 40 ms, jitter: none, backoff: constant}\ntimeout: {total: 150 ms}"
    async with open_gateway(rules) as gateway:
        client = await gateway.http2()

        answer = await client.post(CHAT, ASK)

        row = await gateway.row()
    assert answer.status == 504
    assert "0.15 s" in json.loads(answer.body)["error"]["message"]
    assert (row["terminal"], row["error_type"]) == ("timeout", "timeout")
    assert 150 <= row["duration_ms"] < 1000
    assert 2 <= row["attempts"] < 6


@pytest.mark.parametrize("steering", [(), ("cf-aig-request-timeout: 60",)], ids=["policy", "header"])
async def test_each_attempt_has_the_whole_time_to_its_first_byte_also_the_last(
    open_gateway: OpenGateway, provider: Provider, steering: tuple[str, ...]
) -> None:
    provider.on(CHAT, is_silent)
    rule = "timeout: {first_byte: 60 ms}" if not steering else ""
    async with open_gateway(f"{SOON}\n{rule}") as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK, *steering)

        row = await gateway.row()
        kept = await tries(gateway, answer, "error_type, duration_ms")
    assert (answer.status, answer.header("x-should-retry")) == (504, "false")
    assert (row["attempts"], row["error_type"]) == (3, "timeout")
    assert [error_type for error_type, _ in kept] == ["timeout"] * 3
    assert all(60 <= duration_ms < 600 for _, duration_ms in kept)


# -- crowds and outages -----------------------------------------------------------------------------------------------


class Window:
    """A provider that admits 100 requests in each second, and tells the others when the next second begins."""

    def __init__(self) -> None:
        self.came: dict[str, list[float]] = {}
        """Call -> when each of its attempts came; seconds of the loop."""
        self.admitted: Counter[int] = Counter()
        self.began = 0.0

    async def script(self, heard: Heard, wire: Wire) -> None:
        now = asyncio.get_running_loop().time()
        self.began = self.began or now
        self.came.setdefault(heard.header("x-call") or "", []).append(now)
        second, passed_s = divmod(now - self.began, 1.0)
        self.admitted[int(second)] += 1
        if self.admitted[int(second)] <= 100:
            await wire.answer(ANSWER)
        else:
            await busy(f"retry-after-ms: {(1 - passed_s) * 1000:.0f}")(heard, wire)

    @property
    def fullest_slot(self) -> int:
        """Most attempts behind a call's first that came within any 50 ms."""
        later = sorted(at for attempts in self.came.values() for at in attempts[1:])
        return max(sum(at <= other < at + 0.05 for other in later) for at in later)


async def test_200_calls_at_once_all_succeed_where_100_a_second_are_admitted(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    window = Window()
    provider.on(CHAT, window.script)
    async with open_gateway("retry: {attempts: 4}") as gateway:
        clients = [await gateway.http2() for _ in range(4)]
        begun = asyncio.get_running_loop().time()

        calls = [clients[n % 4].post(CHAT, ASK, f"x-call: {n}") for n in range(200)]
        answered = await asyncio.gather(*calls)

        took_s = asyncio.get_running_loop().time() - begun
    assert Counter(answer.status for answer in answered) == {200: 200}
    assert took_s < 6
    assert len(window.came) == 200
    assert 200 < len(provider.heard) <= 2 * 200
    assert window.fullest_slot <= 200 / 5


async def test_an_outage_of_a_minute_is_not_amplified(open_gateway: OpenGateway, provider: Provider) -> None:
    """50 calls a second; the rooms' clock is turned, so the minute takes as long as its calls."""
    clock = ManualClock()
    answered: list[Answer] = []

    async def second() -> set[int]:
        latest = await asyncio.gather(*(client.post(CHAT, ASK) for _ in range(50)))
        answered.extend(latest)
        clock.advance(1.0)
        return {answer.status for answer in latest}

    async with open_gateway("retry: {attempts: 3, delay: 1 ms, ratio: 20 %}", clock=clock) as gateway:
        client = await gateway.http2()
        provider.says(CHAT, ANSWER)
        for _ in range(10):
            assert await second() == {200}
        provider.on(CHAT, fails(503))
        for _ in range(60):
            assert await second() == {503}
            assert len(provider.heard) <= 1.2 * len(answered)
        assert len(provider.heard) - 500 > 1.18 * 3000

        provider.says(CHAT, ANSWER)
        assert await second() == {200}
