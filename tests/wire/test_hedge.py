"""A second attempt beside a slow one: the first content wins, the other attempt is ended, and both are booked."""

import asyncio
from typing import Any

import pytest

from mitmgate import attempts
from support.apis import ANTHROPIC, APIS, OPENAI, Api
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.hosts import DOWN, Hosts, carries, is_down
from support.provider import Heard, Provider, Script, Wire
from support.scripts import answers, begins, closes, in_turn, is_silent, streams
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, ROLE, STOP

OTHER = "other.example"
OPENAIS = "api.openai.com"


def hedged(more: str = "", slug: str = "openai", after: str = "40 ms", ratio: str = "100 %") -> str:
    """Return a policy whose calls are asked of another place, too, when they are slow."""
    return f"""
targets:
  other: {{provider: {slug}, base_url: "https://{OTHER}", headers: {{x-other-key: env:OTHER_KEY}}}}
hedge: [{{name: tail, after: {after}, to: other, ratio: {ratio}}}]
{more}"""


KEYS = {"OTHER_KEY": "other-secret"}


@pytest.fixture
def hosts(provider: Provider) -> Hosts:
    return Hosts(provider)


async def tries(gateway: Gateway, columns: str = "target, error_type") -> list[tuple[Any, ...]]:
    rows = await gateway.rows(1, f"select {columns} from attempts order by exchange_id, n")
    return [tuple(row.values()) for row in rows]


def where(answer: Answer) -> tuple[str | None, ...]:
    """Return what the head says of the answer's way: attempts, step, place."""
    return tuple(answer.header(f"cf-aig-{name}") for name in ("attempts", "step", "provider"))


class Cue:
    """Scripts that wait for the test."""

    def __init__(self) -> None:
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()

    def before(self, script: Script) -> Script:
        """Return *script*, to be run when it ``goes_on``."""

        async def waits(heard: Heard, wire: Wire) -> None:
            self.reached.set()
            await self.goes_on.wait()
            await script(heard, wire)

        return waits


def rest_of(*pieces: bytes) -> Script:
    """Return a script that goes on with a stream to its end."""

    async def script(_heard: Heard, wire: Wire) -> None:
        for piece in pieces:
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")

    return script


# -- who wins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_where_the_first_is_slow_the_second_answers_and_the_first_is_ended(
    open_gateway: OpenGateway, hosts: Hosts, api: Api
) -> None:
    hosts.on(api.host, api.path, is_silent)
    hosts.on(OTHER, api.path, streams(api.stream))
    async with open_gateway(hedged(slug=api.slug), env=KEYS) as gateway:
        client = await gateway.client("h2" if api is OPENAI else "h1", api.host)

        answer = await client.post(api.path, api.ask, "authorization: Bearer app-secret")

        await asyncio.wait_for(hosts.provider.left.wait(), 5)
        row = await gateway.row()
        [(_, first_ms, _), (started, _, wait_ms)] = await tries(gateway, "started_at, duration_ms, wait_ms")
        did = await gateway.rows(1, "select room, rule, action, detail from policy_events where room = 'hedge'")
        assert await tries(gateway, "target, error_type, error_detail") == [
            (api.slug, "cancelled", "another attempt had its content first"),
            ("other", None, None),
        ]
    assert (answer.status, answer.body, answer.complete) == (200, api.stream, True)
    assert where(answer) == ("2", "1", "other")
    assert (row["step"], row["target"], row["attempts"], row["terminal"]) == (1, "other", 2, "complete")
    assert row["error_type"] is None
    assert (first_ms >= 40, wait_ms) == (True, 0)
    assert started >= row["started_at"]
    detail = f"{api.slug} had no content; asked other, too"
    assert did == [{"room": "hedge", "rule": "tail", "action": "hedge", "detail": detail}]
    [there] = hosts.heard(OTHER)
    assert not carries(there, "app-secret")
    assert there.header("x-other-key") == "other-secret"


async def test_a_call_that_is_answered_in_time_is_asked_once(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.streams(OPENAIS, CHAT, [OPENAI.stream])
    async with open_gateway(hedged(after="5 s"), env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

        assert await tries(gateway) == [("openai", None)]
    assert (answer.body, where(answer)) == (OPENAI.stream, ("1", "0", "openai"))
    assert hosts.asked == {OPENAIS: 1}


SECONDS: dict[str, Script] = {
    "its head": begins(then=is_silent),
    "the role": begins(ROLE, then=is_silent),
    "an error event": streams(OPENAI.error),
    "a cut": begins(ROLE, then=closes),
    "a 503": is_down,
    "nothing": is_silent,
}


async def test_the_first_content_wins_not_whatever_else_the_second_says(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    ended = {}
    async with open_gateway(hedged(), env=KEYS) as gateway:
        client = await gateway.http1()
        for what, second in SECONDS.items():
            first, said = Cue(), Cue()
            said.goes_on.set()
            hosts.on(OPENAIS, CHAT, begins(ROLE, then=first.before(rest_of(HEL, LO, STOP, DONE))))
            hosts.on(OTHER, CHAT, said.before(second))
            call = await client.begin(CHAT, ASK_STREAM)
            await said.reached.wait()
            asyncio.get_running_loop().call_later(0.05, first.goes_on.set)

            head = await call.head()

            assert first.goes_on.is_set(), f"{what} has reached the client"
            assert where(head) == ("2", "0", "openai")
            assert (await call.end()).body == OPENAI.stream
            ended[what] = (await tries(gateway))[-2:]
    assert {what: [target for target, _ in both] for what, both in ended.items()} == {
        what: ["openai", "other"] for what in SECONDS
    }
    assert {what: both[0][1] for what, both in ended.items()} == dict.fromkeys(SECONDS)
    assert {what: both[1][1] for what, both in ended.items()} == {
        "its head": "cancelled",
        "the role": "cancelled",
        "an error event": "error_event:server_error",
        "a cut": "reset",
        "a 503": "server_error",
        "nothing": "cancelled",
    }


async def test_a_head_that_came_long_ago_wins_nothing(
    open_gateway: OpenGateway, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most providers send the head at once and then think: the hold's clock must not make that an answer."""
    monkeypatch.setattr(attempts, "HOLD_S", 0.01)
    hosts.on(OPENAIS, CHAT, begins(ROLE, then=is_silent))
    hosts.on(OTHER, CHAT, streams(ROLE, HEL, LO, STOP, DONE))
    async with open_gateway(hedged(), env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

        ended = await tries(gateway)
    assert (answer.body, answer.header("cf-aig-provider")) == (OPENAI.stream, "other")
    assert ended == [("openai", "cancelled"), ("other", None)]


async def test_a_first_that_fails_at_last_leaves_the_answer_to_the_second(
    open_gateway: OpenGateway, hosts: Hosts
) -> None:
    async with open_gateway(hedged(), env=KEYS) as gateway:
        client = await gateway.http1()
        for script in (is_down, begins(then=closes), streams(OPENAI.error)):
            first, second = Cue(), Cue()
            hosts.on(OPENAIS, CHAT, first.before(script))
            hosts.on(OTHER, CHAT, second.before(streams(OPENAI.stream)))
            call = await client.begin(CHAT, ASK_STREAM)
            await second.reached.wait()
            first.goes_on.set()
            await gateway.until(lambda: gateway_has_heard(gateway))

            second.goes_on.set()

            answer = await call.end()
            row = (await gateway.rows())[-1]
            assert (answer.status, answer.body, where(answer)) == (200, OPENAI.stream, ("2", "1", "other"))
            assert (row["terminal"], row["error_type"]) == ("complete", None)


def gateway_has_heard(gateway: Gateway) -> bool:
    """True once one of the two connections is free, or gone."""
    pool = gateway.chain.upstream.caller.pool
    return pool is not None and len(pool.session.connector._acquired) < 2  # type: ignore[union-attr]


async def test_where_both_fail_the_client_gets_the_first_ones_answer(open_gateway: OpenGateway, hosts: Hosts) -> None:
    first, second = Cue(), Cue()
    hosts.on(OPENAIS, CHAT, first.before(is_down))
    hosts.on(OTHER, CHAT, second.before(answers(OPENAI.busy, "429 Too Many Requests")))
    async with open_gateway(hedged(), env=KEYS) as gateway:
        client = await gateway.http2()
        call = await client.begin(CHAT, ASK)
        await second.reached.wait()
        second.goes_on.set()
        first.goes_on.set()

        answer = await call.end()
        assert await tries(gateway) == [("openai", "server_error"), ("other", "rate_limit")]
    assert (answer.status, answer.body, where(answer)) == (503, DOWN, ("2", "0", "openai"))
    assert answer.header("x-should-retry") == "false"


async def test_a_plain_answer_is_hedged_as_a_stream_is(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(OPENAIS, CHAT, is_silent)
    hosts.says(OTHER, CHAT, ANSWER)
    async with open_gateway(hedged(), env=KEYS) as gateway:
        client = await gateway.http1()

        answer = await client.post(CHAT, ASK)

    assert (answer.body, where(answer)) == (ANSWER, ("2", "1", "other"))


async def test_what_both_used_is_paid_and_in_the_row(open_gateway: OpenGateway, hosts: Hosts) -> None:
    """Anthropic has counted the input before it fell silent."""
    hosts.on(ANTHROPIC.host, ANTHROPIC.path, begins(ANTHROPIC.before, then=is_silent))
    hosts.on(OTHER, ANTHROPIC.path, streams(ANTHROPIC.stream))
    async with open_gateway(hedged(slug="anthropic"), env=KEYS) as gateway:
        client = await gateway.http1(ANTHROPIC.host)

        await client.post(ANTHROPIC.path, ANTHROPIC.ask)

        row = await gateway.row()
        lost, won = await tries(gateway, "input_tokens, cost_nanousd")
    assert (lost[0], won[0], row["input_tokens"]) == (25, 25, 50)
    assert 0 < lost[1] < won[1]
    assert row["cost_nanousd"] == lost[1] + won[1]


# -- whether, and how often -------------------------------------------------------------------------------------------


async def takes_longer(_heard: Heard, wire: Wire) -> None:
    await asyncio.sleep(0.1)  # the time is what is tested: a second attempt would be due long before
    await wire.answer(ANSWER)


async def test_when_there_is_no_second_attempt(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(OPENAIS, CHAT, takes_longer)
    hosts.on(OTHER, CHAT, is_down)
    trial = "{name: trial, match: {header.x-trial: present}, after: 40 ms, to: other, shadow: true}"
    tail = "{name: tail, match: {header.x-hedge: present}, after: 40 ms, to: other}"
    rules = hedged().partition("hedge:")[0] + f"hedge: [{trial}, {tail}]\nbreaker: {{min_requests: 1}}"
    cases = [(), ("x-trial: 1",), ("x-hedge: 1", "cf-aig-fallback: none"), ("x-hedge: 1",)]
    async with open_gateway(rules, env=KEYS) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, "cf-aig-fallback: other")  # and so it rests

        answered = [await client.post(CHAT, ASK, *fields) for fields in cases]

        did = await gateway.rows(5, "select rule, action, shadow from policy_events where room = 'hedge'")
    assert [(answer.body, answer.header("cf-aig-attempts")) for answer in answered] == [(ANSWER, "1")] * len(cases)
    assert hosts.asked == {OPENAIS: len(cases), OTHER: 1}
    assert did == [{"rule": "trial", "action": "hedge", "shadow": 1}]


async def test_by_default_there_is_none(gateway: Gateway, hosts: Hosts) -> None:
    hosts.on(OPENAIS, CHAT, takes_longer)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK)

    assert (answer.body, answer.header("cf-aig-attempts")) == (ANSWER, "1")


@pytest.mark.parametrize(("ratio", "seconds"), [("10 %", 1), ("50 %", 5)])
async def test_a_place_that_has_become_slow_is_not_asked_twice_for_everything(
    open_gateway: OpenGateway, hosts: Hosts, ratio: str, seconds: int
) -> None:
    slow = Cue()
    hosts.on(OPENAIS, CHAT, slow.before(answers(ANSWER)))
    hosts.says(OTHER, CHAT, ANSWER)
    async with open_gateway(hedged(after="100 ms", ratio=ratio), env=KEYS) as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, ASK) for _ in range(10)]
        await gateway.until(lambda: hosts.asked[OPENAIS] == 10)

        await gateway.until(lambda: len(gateway.settled) == seconds)
        asyncio.get_running_loop().call_later(0.1, slow.goes_on.set)

        answered = [await call.end() for call in calls]
    assert {answer.status for answer in answered} == {200}
    assert hosts.asked == {OPENAIS: 10, OTHER: seconds}


async def test_a_percentile_needs_twenty_answers_to_be_known(open_gateway: OpenGateway, hosts: Hosts) -> None:
    hosts.on(OPENAIS, CHAT, in_turn(*[answers(ANSWER)] * 19, takes_longer, is_silent))
    hosts.says(OTHER, CHAT, ANSWER)
    async with open_gateway(hedged(after="p95"), env=KEYS) as gateway:
        client = await gateway.http1()
        before = [await client.post(CHAT, ASK) for _ in range(20)]

        answer = await client.post(CHAT, ASK)

    assert [where(one) for one in before] == [("1", "0", "openai")] * 20
    assert where(answer) == ("2", "1", "other")


async def test_where_both_fail_the_call_goes_on_as_without_a_hedge(open_gateway: OpenGateway, hosts: Hosts) -> None:
    first = Cue()
    hosts.on(OPENAIS, CHAT, in_turn(first.before(is_down), answers(ANSWER)))
    hosts.on(OTHER, CHAT, is_down)
    async with open_gateway(hedged("retry: {attempts: 2, delay: 1 ms}"), env=KEYS) as gateway:
        client = await gateway.http1()
        call = await client.begin(CHAT, ASK)
        await gateway.until(lambda: hosts.asked[OTHER] == 1)
        first.goes_on.set()

        answer = await call.end()
        kept = [target for target, _ in await tries(gateway)]
    assert (answer.status, where(answer)) == (200, ("3", "0", "openai"))
    assert kept == ["openai", "other", "openai"]
