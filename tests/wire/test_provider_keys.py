"""Keys that the gateway holds: who gets one, which one, and what becomes of it; the client never sees any."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate.clock import ManualClock
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.scripts import answers
from support.speech import ANSWER, ASK, CHAT

ENV = {"KEY_A": "sk-aaaa-held", "KEY_B": "sk-bbbb-held", "KEY_C": "sk-cccc-held", "GROQ_KEY": "gsk-held-key"}
ONE = """
targets:
  held: {provider: openai, base_url: "https://api.openai.com", headers: {authorization: "Bearer env:KEY_A"}}
"""
POOL = """
targets:
  pooled: {provider: openai, base_url: "https://api.openai.com", keys: {a: env:KEY_A, b: env:KEY_B, c: env:KEY_C}}
"""
OWN_KEY = "authorization: Bearer sk-own"
REVOKED = b'{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}'
BUSY = b'{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}'
NO_CREDIT = b'{"error":{"message":"no credit","type":"insufficient_quota","code":"insufficient_quota"}}'


def by_key(scripts: dict[str, Script]) -> Script:
    """Return a script that answers a call by the key that it came with; others get an answer."""

    async def script(heard: Heard, wire: Wire) -> None:
        await scripts.get(key_of(heard), answers(ANSWER))(heard, wire)

    return script


def key_of(heard: Heard) -> str:
    """Return the letter of the key that arrived, or all of what stood in its place."""
    came = (heard.header("authorization") or "").removeprefix("Bearer ")
    return next((name[-1].lower() for name, key in ENV.items() if key == came), came)


def went(provider: Provider) -> list[str]:
    """Return the keys that arrived, in order."""
    return [key_of(heard) for heard in provider.heard]


async def ask(gateway: Gateway, *fields: str, times: int = 1) -> Answer:
    """Return the answer to the last of *times* calls."""
    client = await gateway.http1()
    for _ in range(times):
        answer = await client.post(CHAT, ASK, *fields)
    return answer


async def column(gateway: Gateway, sql: str) -> list[Any]:
    return [next(iter(row.values())) for row in await gateway.rows(1, sql)]


async def notes(gateway: Gateway) -> list[str]:
    """Return the notes of the latest row."""
    said = await column(gateway, "select notes from exchanges order by rowid desc limit 1")
    found: list[str] = json.loads(said[0] or "[]")
    return found


# -- whose key goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["proxy", "base-url"])
async def test_a_request_without_a_key_gets_that_of_the_target_at_its_host(
    open_gateway: OpenGateway, provider: Provider, door: str
) -> None:
    provider.on(CHAT, answers(ANSWER))
    async with open_gateway(ONE, env=ENV) as gateway:
        client = await (gateway.http1() if door == "proxy" else gateway.plain())

        answer = await client.post(CHAT if door == "proxy" else "/openai/chat/completions", ASK)

        row = await gateway.row()
    assert (answer.status, answer.header("cf-aig-provider"), row["target"]) == (200, "held", "held")
    assert went(provider) == ["a"]
    assert provider.heard[0].body == ASK


async def test_a_request_with_a_key_of_its_own_is_forwarded_with_it(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, answers(ANSWER))
    async with open_gateway(POOL, env=ENV) as gateway:
        answer = await ask(gateway, OWN_KEY, "cf-aig-byok-alias: b")

    assert (answer.status, answer.header("cf-aig-provider")) == (200, "openai")
    assert went(provider) == ["sk-own"]
    assert provider.heard[0].header("cf-aig-byok-alias") is None


async def test_each_element_of_a_universal_request_without_a_key_gets_the_targets(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, by_key({"sk-own": answers(BUSY, "503 Busy")}))
    own, none = ({"authorization": "Bearer sk-own"}, {})
    elements = [
        {"provider": "openai", "endpoint": "chat/completions", "headers": headers, "query": json.loads(ASK)}
        for headers in (own, none)
    ]
    async with open_gateway(POOL, env=ENV) as gateway:
        client = await gateway.plain()

        answer = await client.post("/", json.dumps(elements).encode())

    assert (answer.status, answer.header("cf-aig-provider")) == (200, "pooled")
    assert went(provider) == ["sk-own", "a"]


AUTH = "auth: {keys: [{name: app, key: env:APP_KEY, tenant: acme}]}\n"
APP = {"APP_KEY": "the-apps-own-gateway-key"}


async def test_with_the_gateways_key_in_its_place_a_request_gets_the_targets(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, answers(ANSWER))
    async with open_gateway(AUTH + POOL, env=ENV | APP) as gateway:
        answer = await ask(gateway, f"authorization: Bearer {APP['APP_KEY']}")

    assert answer.status == 200
    assert went(provider) == ["a"]


async def test_where_nobody_has_a_key_the_request_stays_here(open_gateway: OpenGateway, provider: Provider) -> None:
    async with open_gateway(AUTH, env=APP) as gateway:
        answer = await ask(gateway, f"authorization: Bearer {APP['APP_KEY']}")

    error = json.loads(answer.body)["error"]
    assert (answer.status, error["type"], answer.header("cf-aig-source")) == (401, "authentication_error", "gateway")
    assert "no target at api.openai.com" in error["message"]
    assert answer.header("x-should-retry") == "false"
    assert provider.heard == []


# -- a pool -----------------------------------------------------------------------------------------------------------


async def test_calls_spread_over_the_pool(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, answers(ANSWER))
    async with open_gateway(POOL, env=ENV) as gateway:
        await ask(gateway, times=6)

        assert went(provider) == ["a", "b", "c"] * 2
        assert await notes(gateway) == ["target pooled: key c"]


REFUSALS: dict[str, tuple[Script, str]] = {
    "401": (answers(REVOKED, "401 Unauthorized"), "rests for 600 s (401)"),
    "403": (answers(REVOKED, "403 Forbidden"), "rests for 600 s (403)"),
    "429": (answers(BUSY, "429 Too Many Requests"), "cools for 30 s (429)"),
    "429 with a time": (answers(BUSY, "429 Too Many Requests", "retry-after: 7"), "cools for 7 s (429)"),
    "429 without an end": (answers(NO_CREDIT, "429 Too Many Requests"), "rests for 600 s (429)"),
}


@pytest.mark.parametrize("how", REFUSALS)
async def test_where_one_key_is_refused_the_same_request_goes_on_with_the_next_at_once(
    open_gateway: OpenGateway, provider: Provider, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    script, becomes = REFUSALS[how]
    provider.on(CHAT, by_key({"a": script}))
    async with open_gateway(POOL + "retry: {attempts: 1}", env=ENV) as gateway:
        with caplog.at_level(logging.WARNING, "mitmgate.provider_keys"):
            answer = await ask(gateway)
        said = await notes(gateway)
        events = await gateway.rows(1, "select room, rule, action, detail from policy_events where room = 'targets'")
        tried = await gateway.rows(1, "select n, status_code, wait_ms from attempts order by n")
        await ask(gateway, times=4)

    assert (answer.status, answer.body, answer.header("cf-aig-attempts")) == (200, ANSWER, "2")
    assert answer.header("x-should-retry") is None
    assert went(provider) == ["a", "b", "c", "b", "c", "b"]
    assert said == ["target pooled: key a", "target pooled: key b"]
    assert [tuple(event.values()) for event in events] == [("targets", "pooled", "rest", f"pooled: key a {becomes}")]
    assert [tuple(row.values()) for row in tried] == [(1, int(how[:3]), 0), (2, 200, 0)]
    assert [record.getMessage() for record in caplog.records] == [f"provider_keys: target pooled: key a {becomes}"]


async def test_a_key_comes_back_after_its_time_and_its_success_clears_it(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    clock = ManualClock()
    refuses = {"a": answers(BUSY, "429 Too Many Requests"), "b": answers(REVOKED, "401 Unauthorized")}
    provider.on(CHAT, by_key(refuses))
    async with open_gateway(POOL, env=ENV, clock=clock) as gateway:
        await ask(gateway)  # a, b and c
        refuses["c"] = answers(BUSY, "429 Too Many Requests")
        del refuses["a"]
        clock.advance(31)
        await ask(gateway, times=2)  # c, on to a; then a alone

        assert went(provider) == ["a", "b", "c", "c", "a", "a"]


async def test_where_all_keys_are_refused_the_last_answer_is_passed_on_and_the_soonest_key_tried_again(
    open_gateway: OpenGateway, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(name: str, seconds: int) -> Script:
        return answers(BUSY, "429 Too Many Requests", f"retry-after: {seconds}", f"x-request-id: r-{name}")

    provider.on(CHAT, by_key({"a": busy("a", 30), "b": busy("b", 10), "c": busy("c", 20)}))
    async with open_gateway(POOL, env=ENV) as gateway:
        with caplog.at_level(logging.WARNING, "mitmgate.provider_keys"):
            first = await ask(gateway)
            again = await ask(gateway)

    assert len(caplog.records) == 3  # a key that is refused anew is no news
    assert (first.status, first.body, first.header("x-request-id")) == (429, BUSY, "r-c")
    assert (first.header("retry-after"), first.header("cf-aig-attempts")) == ("20", "3")
    assert (again.status, again.header("x-request-id"), again.header("cf-aig-attempts")) == (429, "r-b", "1")
    assert went(provider) == ["a", "b", "c", "b"]


async def test_keys_are_no_retries_and_a_retry_may_use_each_of_them_again(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, by_key({key: answers(BUSY, "429 Too Many Requests", "retry-after-ms: 5") for key in "abc"}))
    async with open_gateway(POOL + "retry: {attempts: 2, delay: 1 ms}", env=ENV) as gateway:
        answer = await ask(gateway)

        waits = await column(gateway, "select wait_ms > 0 from attempts order by n")
    assert (answer.status, answer.header("x-should-retry")) == (429, "false")
    assert went(provider)[:3] == ["a", "b", "c"]
    assert waits.count(1) == 1 and 4 <= len(waits) <= 6
    assert waits[:4] == [0, 0, 0, 1]


async def test_a_pool_that_is_used_up_is_left_for_the_next_target_with_its_own_key(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, by_key({key: answers(REVOKED, "401 Unauthorized") for key in "abc"}))
    provider.on("/openai/v1/chat/completions", answers(ANSWER))
    more = """
  groq: {provider: groq, base_url: "https://api.groq.com", headers: {authorization: "Bearer env:GROQ_KEY"}}
route: [{name: all, try: [pooled, groq], fall_back_on: [401]}]
breaker: {window: 30 s, min_requests: 1, failures: 1 %, rest: 1 h}
"""
    async with open_gateway(POOL.rstrip() + more, env=ENV) as gateway:
        answer = await ask(gateway, OWN_KEY)

        rests = await column(gateway, "select count(*) from policy_events where room = 'breaker'")
    assert (answer.status, answer.header("cf-aig-provider"), answer.header("cf-aig-attempts")) == (200, "groq", "4")
    assert went(provider) == ["a", "b", "c", "y"]
    assert rests == [0]  # a key that is refused says nothing of the place


async def test_a_provider_that_fails_says_nothing_of_the_key(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, answers(b"{}", "503 Service Unavailable"))
    async with open_gateway(POOL, env=ENV) as gateway:
        answer = await ask(gateway)

        events = await column(gateway, "select count(*) from policy_events where room = 'targets'")
    assert (answer.status, answer.header("cf-aig-attempts"), went(provider), events) == (503, "1", ["a"], [0])


async def test_an_upload_that_is_passed_on_while_it_arrives_goes_once_with_one_key(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    size = 2 << 20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    provider.on("/v1/files", answers(REVOKED, "401 Unauthorized"))
    async with open_gateway(POOL, env=ENV) as gateway:
        client = await gateway.http1()

        answer = await client.upload("/v1/files", pieces(), size).end()

    assert (answer.status, answer.body) == (401, REVOKED)
    assert went(provider) == ["a"]


# -- by its alias -----------------------------------------------------------------------------------------------------


async def test_a_key_that_is_named_goes_and_no_other(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, by_key({"b": answers(REVOKED, "401 Unauthorized")}))
    async with open_gateway(POOL, env=ENV) as gateway:
        answer = await ask(gateway, "cf-aig-byok-alias: b", times=2)

    assert (answer.status, answer.body, answer.header("cf-aig-attempts")) == (401, REVOKED, "1")
    assert went(provider) == ["b", "b"]
    assert provider.heard[0].header("cf-aig-byok-alias") is None


async def test_an_alias_that_is_not_there_is_refused_with_those_that_are(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with open_gateway(POOL, env=ENV) as gateway:
        answer = await ask(gateway, "cf-aig-byok-alias: fourth")

    error = json.loads(answer.body)["error"]
    assert (answer.status, error["param"]) == (400, "cf-aig-byok-alias")
    assert "it has a, b, c" in error["message"]
    assert provider.heard == []


# -- what is told -----------------------------------------------------------------------------------------------------


async def test_a_held_key_stands_in_no_row_log_line_answer_or_file(
    open_gateway: OpenGateway, provider: Provider, home_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider.on(CHAT, by_key({"a": answers(REVOKED, "401 Unauthorized")}))
    async with open_gateway(POOL + "trace: {payloads: full}", env=ENV) as gateway:
        with caplog.at_level(logging.DEBUG):
            answer = await ask(gateway, times=3)
        shown = await (await gateway.plain()).post("/metrics", method="GET")
        await gateway.rows(3)

    said = [answer.body, str(answer.fields).encode(), shown.body, caplog.text.encode()]
    written = [path.read_bytes() for path in home_path.iterdir() if path.is_file()]
    assert went(provider)[:3] == ["a", "b", "c"]
    assert not [text for text in said + written if b"-held" in text]


async def test_metrics_show_how_each_key_fares(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, by_key({"a": answers(REVOKED, "401 Unauthorized"), "b": answers(BUSY, "429 Too Many Requests")}))
    async with open_gateway(POOL, env=ENV) as gateway:
        await ask(gateway)

        shown = await (await gateway.plain()).post("/metrics", method="GET")

    lines = [line for line in shown.body.decode().splitlines() if line.startswith("mitmgate_provider_key_state")]
    assert lines == [
        f'mitmgate_provider_key_state{{target="pooled",alias="{alias}"}} {state}'
        for alias, state in (("a", 2), ("b", 1), ("c", 0))
    ]
