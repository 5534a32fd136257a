"""A place that keeps failing is left alone for a while; one call looks whether it is well again."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable

import pytest

from mitmgate.clock import ManualClock
from support.apis import ANTHROPIC, APIS, GEMINI, OPENAI, Api
from support.client import Answer, Client
from support.gateway import Gateway, OpenGateway
from support.hosts import DOWN, Hosts, is_down
from support.provider import Heard, Provider, Script, Wire
from support.scripts import answers, begins, closes, in_turn, is_silent, resets, streams
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, HEL, ROLE

BREAKER = "breaker: {window: 30 s, min_requests: 4, failures: 50 %, rest: 15 s}"
REST_S = 15.0
CLOSED, HALF_OPEN, OPEN = 0, 1, 2


async def state_of(gateway: Gateway, target: str = "api.openai.com") -> int | None:
    """Return what /metrics says of *target*."""
    client = await gateway.plain()
    page = (await client.ask("GET", "/metrics", "127.0.0.1")).body.decode()
    begin = f'mitmgate_breaker_state{{target="{target}"}} '
    return next((int(line.removeprefix(begin)) for line in page.splitlines() if line.startswith(begin)), None)


async def statuses(client: Client, count: int) -> list[int]:
    """Return the statuses of *count* calls, one after the other."""
    return [(await client.post(CHAT, ASK)).status for _ in range(count)]


# -- open -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_who_asks_a_resting_place_hears_in_its_own_words_when_to_come_back(
    open_gateway: OpenGateway, provider: Provider, api: Api
) -> None:
    clock = ManualClock()
    provider.on(api.path, is_down)
    async with open_gateway(BREAKER, clock=clock) as gateway:
        client = await gateway.client("h2" if api is OPENAI else "h1", api.host)
        for _ in range(4):
            assert (await client.post(api.path, api.ask)).body == DOWN
        clock.advance(2.5)

        answer = await client.post(api.path, api.ask)

        row = (await gateway.rows(5))[-1]
        rests = await gateway.rows(
            5, "select room, rule, detail from policy_events where action = 'rest' order by exchange_id"
        )
        assert await state_of(gateway, api.host) == OPEN
    error = json.loads(answer.body)["error"]
    words = {"openai": ("code", "overloaded"), "anthropic": ("type", "overloaded_error"), "gemini": ("status", "UNAVAILABLE")}  # fmt: skip # noqa: E501
    name, word = words[api.name]
    assert (answer.status, error[name]) == (503, word)
    assert row["id"] in error["message"]
    assert "rule breaker, policy.yaml:" in error["message"]
    assert (answer.header("retry-after"), answer.header("retry-after-ms")) == ("13", "12500")
    assert (answer.header("cf-aig-source"), answer.header("cf-aig-attempts")) == ("gateway", "0")
    assert answer.header("x-should-retry") == "true"
    assert (row["status_code"], row["terminal"], row["attempts"], row["source"]) == (503, "refused", 0, "gateway")
    assert rests == [
        {"room": "breaker", "rule": "breaker", "detail": f"{api.host} rests for 15 s"},
        {"room": "breaker", "rule": "breaker", "detail": f"{api.host} rests: 12.5 s left"},
    ]
    assert len(provider.heard) == 4


COUNTS: dict[str, tuple[Script, bool]] = {
    "500": (answers(DOWN, "500 Internal Server Error"), True),
    "529": (answers(DOWN, "529 Overloaded"), True),
    "reset": (resets, True),
    "no first byte": (is_silent, True),
    "cut before content": (begins(then=closes), True),
    "error event": (streams(ROLE, OPENAI.error), True),
    "429": (answers(OPENAI.busy, "429 Too Many Requests"), False),
    "400": (answers(DOWN, "400 Bad Request"), False),
    "401": (answers(DOWN, "401 Unauthorized"), False),
    "cut behind content": (begins(ROLE, HEL, then=closes), False),
    "error event behind content": (streams(ROLE, HEL, OPENAI.error), False),
}
"""What happens, and whether it counts against the place: a caller's own mistakes and limits do not, nor does what
broke off behind its first content."""


def by_case(cases: Iterable[str], rule: str) -> str:
    """Return a policy in which each case has a breaker of its own."""
    return "breaker:\n" + "".join(
        f'  - {{name: "{case}", match: {{header.x-case: "{case}"}}, rest: 15 s, {rule}}}\n' for case in cases
    )


async def test_what_counts_against_a_place(open_gateway: OpenGateway, provider: Provider) -> None:
    rules = by_case(COUNTS, "min_requests: 2, failures: 100 %")
    rests = {}
    async with open_gateway(f"{rules}timeout: {{first_byte: 150 ms}}") as gateway:
        client = await gateway.http2()
        for case, (script, _) in COUNTS.items():
            provider.on(CHAT, script)
            for _ in range(2):
                await client.post(CHAT, ASK_STREAM, f"x-case: {case}")

            answer = await client.post(CHAT, ASK_STREAM, f"x-case: {case}")

            rests[case] = answer.header("cf-aig-attempts") == "0"
    assert rests == {case: counts for case, (_, counts) in COUNTS.items()}


ENOUGH = {
    "too few to tell": (0, 3, False),
    "enough": (0, 4, True),
    "less than half": (5, 4, False),
    "half": (4, 4, True),
}
"""(calls that go well, calls that fail behind them, whether the place rests then)"""


async def test_it_takes_enough_calls_and_enough_failures(open_gateway: OpenGateway, provider: Provider) -> None:
    rests = {}
    rules = by_case(ENOUGH, "window: 30 s, min_requests: 4, failures: 50 %")
    async with open_gateway(rules, clock=ManualClock()) as gateway:
        client = await gateway.http1()
        for case, (good, bad, _) in ENOUGH.items():
            provider.on(CHAT, in_turn(*[answers(ANSWER)] * good, is_down))
            for _ in range(good + bad):
                await client.post(CHAT, ASK, f"x-case: {case}")

            answer = await client.post(CHAT, ASK, f"x-case: {case}")

            rests[case] = answer.header("cf-aig-attempts") == "0"
    assert rests == {case: does for case, (_, _, does) in ENOUGH.items()}


async def test_what_is_older_than_the_window_is_forgotten(open_gateway: OpenGateway, provider: Provider) -> None:
    clock = ManualClock()
    provider.on(CHAT, is_down)
    async with open_gateway(BREAKER, clock=clock) as gateway:
        client = await gateway.http1()
        for _ in range(6):
            await client.post(CHAT, ASK)
            clock.advance(10.0)

        assert await state_of(gateway) == CLOSED


async def test_a_retry_does_not_wait_for_a_place_that_went_to_rest(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """The call that has had an answer gets it; it is better than a sentence of ours."""
    provider.on(CHAT, is_down)
    rules = "retry: {attempts: 3, delay: 1 ms}\nbreaker: {min_requests: 2, failures: 50 %, rest: 15 s}"
    async with open_gateway(rules) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

    assert (answer.status, answer.body, answer.header("x-should-retry")) == (503, DOWN, "false")
    assert (answer.header("cf-aig-attempts"), len(provider.heard)) == ("2", 2)


async def test_without_a_rule_nothing_rests(gateway: Gateway, provider: Provider) -> None:
    provider.on(CHAT, is_down)
    client = await gateway.http2()

    answered = await asyncio.gather(*(client.post(CHAT, ASK) for _ in range(30)))

    assert {answer.body for answer in answered} == {DOWN}
    assert len(provider.heard) == 30
    assert await state_of(gateway) is None


async def test_a_rule_in_shadow_lets_every_call_through_and_says_what_it_would_have_done(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, is_down)
    rules = "breaker: {name: trial, min_requests: 2, failures: 50 %, rest: 15 s, shadow: true}"
    async with open_gateway(rules, clock=ManualClock()) as gateway:
        client = await gateway.http1()

        assert await statuses(client, 4) == [503] * 4

        rests = await gateway.rows(4, "select rule, action, shadow, detail from policy_events order by exchange_id")
        assert await state_of(gateway) is None
    assert (
        rests
        == [{"rule": "trial", "action": "rest", "shadow": 1, "detail": "api.openai.com would rest: 15.0 s left"}] * 2
    )
    assert len(provider.heard) == 4


# -- several places ---------------------------------------------------------------------------------------------------

TWO = f"""
targets:
  first: {{provider: openai, base_url: "https://api.openai.com"}}
  second: {{provider: openai, base_url: "https://other.example"}}
route: [{{name: two, try: [first, second]}}]
{BREAKER}
"""


async def test_where_every_place_rests_the_soonest_says_when_to_come_back(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    clock, hosts = ManualClock(), Hosts(provider)
    hosts.on("api.openai.com", CHAT, is_down)
    hosts.says("other.example", CHAT, ANSWER)
    async with open_gateway(TWO, clock=clock) as gateway:
        client = await gateway.http1()
        assert await statuses(client, 4) == [200] * 4
        clock.advance(5.0)
        hosts.on("other.example", CHAT, is_down)
        assert await statuses(client, 4) == [503] * 4
        states = [await state_of(gateway, target) for target in ("first", "second")]

        answer = await client.post(CHAT, ASK)

        asked = hosts.asked.copy()
        clock.advance(10.0)
        hosts.says("api.openai.com", CHAT, ANSWER)
        back = await client.post(CHAT, ASK)
    assert states == [OPEN, OPEN]
    assert (answer.status, answer.header("cf-aig-attempts"), answer.header("retry-after")) == (503, "0", "10")
    assert "first and second" in json.loads(answer.body)["error"]["message"]
    assert asked == {"api.openai.com": 4, "other.example": 8}
    assert (back.status, back.header("cf-aig-provider"), back.header("cf-aig-step")) == (200, "first", "0")


async def test_while_one_rests_calls_go_to_the_next_without_trying(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    hosts = Hosts(provider)
    hosts.on("api.openai.com", CHAT, is_down)
    hosts.says("other.example", CHAT, ANSWER)
    async with open_gateway(TWO) as gateway:
        client = await gateway.http1()
        await statuses(client, 4)

        answer = await client.post(CHAT, ASK)

        row = (await gateway.rows(5))[-1]
    assert (answer.status, answer.header("cf-aig-attempts"), answer.header("cf-aig-step")) == (200, "1", "1")
    assert (row["step"], row["target"], row["attempts"]) == (1, "second", 1)
    assert hosts.asked == {"api.openai.com": 4, "other.example": 5}


# -- half open --------------------------------------------------------------------------------------------------------


class Look:
    """A place that is down, and whose probe takes as long as the test wants."""

    def __init__(self) -> None:
        self.decided = asyncio.Event()
        self.is_well = False

    async def script(self, heard: Heard, wire: Wire) -> None:
        await self.decided.wait()
        await (answers(ANSWER) if self.is_well else is_down)(heard, wire)


async def rested(gateway: Gateway, provider: Provider, clock: ManualClock) -> Look:
    """Let the place go to rest, and the rest go by; return how its probe will go."""
    provider.on(CHAT, is_down)
    assert await statuses(await gateway.http1(), 4) == [503] * 4
    clock.advance(REST_S - 0.1)
    assert await state_of(gateway) == OPEN
    clock.advance(0.1)
    assert await state_of(gateway) == HALF_OPEN
    provider.heard.clear()
    provider.asked.clear()
    look = Look()
    provider.on(CHAT, look.script)
    return look


async def twenty_at_once(gateway: Gateway, provider: Provider, look: Look) -> list[Answer]:
    """Return the answers to twenty calls, the probe's last."""
    client = await gateway.http2()
    probe = await client.begin(CHAT, ASK)
    await provider.asked.wait()
    others = await asyncio.gather(*(client.post(CHAT, ASK) for _ in range(19)))
    look.decided.set()
    return [*others, await probe.end()]


async def test_after_the_rest_one_call_looks_and_the_others_do_not_wait_for_it(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    clock = ManualClock()
    async with open_gateway(BREAKER, clock=clock) as gateway:
        look = await rested(gateway, provider, clock)
        look.is_well = True

        *others, probe = await twenty_at_once(gateway, provider, look)

        assert (probe.status, probe.body) == (200, ANSWER)
        assert Counter((answer.status, answer.header("retry-after")) for answer in others) == {(503, "1"): 19}
        assert len(provider.heard) == 1
        assert await state_of(gateway) == CLOSED
        assert await statuses(await gateway.http1(), 5) == [200] * 5


async def test_a_probe_that_fails_begins_another_rest(open_gateway: OpenGateway, provider: Provider) -> None:
    clock = ManualClock()
    async with open_gateway(BREAKER, clock=clock) as gateway:
        look = await rested(gateway, provider, clock)

        *_, probe = await twenty_at_once(gateway, provider, look)

        assert (probe.status, probe.body) == (503, DOWN)
        assert await state_of(gateway) == OPEN
        clock.advance(REST_S - 0.1)
        later = await (await gateway.http1()).post(CHAT, ASK)
        assert (later.status, later.header("cf-aig-attempts")) == (503, "0")
        assert len(provider.heard) == 1
        clock.advance(0.1)
        look.is_well = True
        assert await statuses(await gateway.http1(), 3) == [200] * 3


async def test_a_probe_that_is_a_stream_is_decided_by_its_first_content(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """Its head alone says nothing; to wait for its end would keep everybody away for minutes."""
    clock = ManualClock()
    has_content, goes_on = asyncio.Event(), asyncio.Event()

    async def talks_slowly(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await has_content.wait()
        await wire.chunk(HEL)
        await goes_on.wait()
        await wire.send(b"0\r\n\r\n")

    async with open_gateway(BREAKER, clock=clock) as gateway:
        await rested(gateway, provider, clock)
        provider.on(CHAT, talks_slowly)
        client = await gateway.http1()
        probe = await client.begin(CHAT, ASK_STREAM)
        await probe.body(len(ROLE))
        assert await state_of(gateway) == HALF_OPEN
        assert await statuses(await gateway.http1(), 1) == [503]

        has_content.set()
        await probe.body(len(ROLE + HEL))

        assert await state_of(gateway) == CLOSED
        goes_on.set()
        assert (await probe.end()).complete


async def test_each_host_rests_for_itself(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.on(CHAT, is_down)
    async with open_gateway(BREAKER) as gateway:
        assert await statuses(await gateway.http1(), 5) == [503] * 5
        for api in (ANTHROPIC, GEMINI):
            provider.on(api.path, streams(api.stream))
            client = await gateway.http1(api.host)

            answer = await client.post(api.path, api.ask)

            assert (answer.status, answer.body) == (200, api.stream)
            assert [await state_of(gateway, host) for host in ("api.openai.com", api.host)] == [OPEN, CLOSED]
