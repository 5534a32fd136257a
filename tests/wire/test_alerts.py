"""A gateway tells what goes wrong with the calls that pass through it: once, and never at their cost."""

import asyncio
from collections.abc import Iterator

import pytest

from mitmgate.clock import ManualClock
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.receiver import Receiver, receiver
from support.scripts import answers, in_turn
from support.speech import ANSWER, ASK, CHAT

DOWN = b'{"error":{"message":"no capacity","type":"server_error","param":null,"code":null}}'
DEAR = 'cf-aig-custom-cost: {"per_token_in": 0.1, "per_token_out": 0}'
"""A call has nine tokens in: 0.9 USD."""

POLICY = """
budget:
  - {name: tenant-day, per: tenant, cost: 2 USD, every: day, soft: 80 %}
breaker: {window: 30 s, min_requests: 6, failures: 50 %, rest: 15 s}
alert:
  - {name: spend, when: {budget: tenant-day, at: soft}, to: env:HOOK}
  - {name: errors, when: {error_rate: "> 5 %", over: 5 m, per: provider, min_requests: 5}, to: env:HOOK}
  - {name: rests, when: {breaker: open}, to: env:HOOK}
"""


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


async def look(gateway: Gateway, calls: int) -> list[tuple[str, str]]:
    """Return (rule, state) of what the gateway has to tell once *calls* are in the database."""
    await gateway.rows(calls)
    gateway.chain.state.ledger.sweep()  # what the last of them cost is in the file as well
    found = await asyncio.to_thread(gateway.chain.state.alerts.look)
    return sorted((state.rule, state.state) for state in found)


async def told(gateway: Gateway, hook: Receiver) -> list[tuple[str, str]]:
    """Return (rule, state) of what has arrived, once nothing is on its way any more."""
    assert await asyncio.to_thread(gateway.chain.state.alerts.notifier.wait, 10.0)
    return sorted(hook.told())


async def test_a_burst_of_errors_and_a_soft_budget_are_told_once_each(
    open_gateway: OpenGateway, provider: Provider, hook: Receiver
) -> None:
    clock = ManualClock()
    provider.on(CHAT, in_turn(*[answers(DOWN, "503 Service Unavailable")] * 5, answers(ANSWER)))
    async with open_gateway(POLICY, env={"HOOK": hook.url}, clock=clock) as gateway:
        client = await gateway.http1()
        acme = 'cf-aig-metadata: {"tenantId": "acme"}'
        for _ in range(5):
            assert (await client.post(CHAT, ASK, acme)).body == DOWN
        assert await look(gateway, 5) == [("errors", "breach")]

        for _ in range(2):
            assert (await client.post(CHAT, ASK, acme, DEAR)).body == ANSWER

        clock.advance(5)
        assert await look(gateway, 7) == [("spend", "breach")]
        clock.advance(5)
        assert await look(gateway, 7) == []
        assert await told(gateway, hook) == [("errors", "breach"), ("spend", "breach")]
        events = await gateway.rows(7, "select rule, action, exchange_id from policy_events where room = 'alert'")
        page = (await (await gateway.plain()).ask("GET", "/metrics", "127.0.0.1")).body.decode()
    messages = {message["alert"]: message for message in hook.messages}
    assert messages["errors"]["per"] == {"provider": "openai"}
    assert messages["spend"]["per"] == {"tenant": "acme"}
    assert "1.80 USD of 2.00 USD are used (90 %)" in messages["spend"]["text"]
    assert [tuple(event.values()) for event in events] == [("errors", "flag", None), ("spend", "flag", None)]
    assert 'mitmgate_alerts_sent_total{state="breach"} 2' in page


async def test_a_breaker_that_opens_is_told_until_its_place_answers(
    open_gateway: OpenGateway, provider: Provider, hook: Receiver
) -> None:
    clock = ManualClock()
    provider.on(CHAT, in_turn(*[answers(DOWN, "503 Service Unavailable")] * 6, answers(ANSWER)))
    async with open_gateway(POLICY.replace("> 5 %", "> 99.9 %"), env={"HOOK": hook.url}, clock=clock) as gateway:
        client = await gateway.http1()
        for _ in range(7):
            await client.post(CHAT, ASK)
        assert ("rests", "breach") in await look(gateway, 7)
        clock.advance(16)
        assert (await client.post(CHAT, ASK)).body == ANSWER
        await look(gateway, 8)
        clock.advance(5)
        assert ("rests", "clear") in await look(gateway, 8)
        await told(gateway, hook)
    rests = [message for message in hook.messages if message["alert"] == "rests"]
    assert [message["state"] for message in rests] == ["breach", "clear"]
    assert rests[0]["per"] == {"target": "api.openai.com"}
    assert len(rests[0]["evidence"]) == 3


async def test_a_dead_receiver_slows_nothing_down(
    open_gateway: OpenGateway, provider: Provider, hook: Receiver
) -> None:
    provider.on(CHAT, answers(DOWN, "503 Service Unavailable"))
    hook.silent.clear()
    async with open_gateway(POLICY, env={"HOOK": hook.url}) as gateway:
        client = await gateway.http1()
        for _ in range(5):
            await client.post(CHAT, ASK)
        assert await look(gateway, 5) == [("errors", "breach")]
        await asyncio.to_thread(hook.wait_for, 1)

        for _ in range(5):
            await client.post(CHAT, ASK)

        assert len(await gateway.rows(10)) == 10
        assert len(hook.messages) == 1
        hook.silent.set()


async def test_without_an_alert_rule_there_is_no_thread(gateway: Gateway) -> None:
    assert gateway.chain.state.alerts._thread is None
    assert not (gateway.home.path / "alerts.db").exists()
