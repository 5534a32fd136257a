"""Wherever a call is when it ends, and however that comes, limits and budgets get back all that it had reserved."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from mitmgate import master
from support.client import Call
from support.counts import COUNTERS, Count, counts
from support.gateway import Gateway, OpenGateway
from support.provider import Provider, Script
from support.scripts import answers, begins, is_silent
from support.selling import asks
from support.speech import CHAT, HEL, ROLE, chunk
from support.talks import chat, rounds

POLICY = """
guard:
  - {name: judge, match: {metadata.phase: judged}, then: {ask: judge}}
  - {name: keys, find: ["sk-ant-[A-Za-z0-9]{12}"], in: response, match: {metadata.phase: held}, then: redact}
cache: [{match: {metadata.phase: shared}, ttl: 1 h}]
shape:
  - {name: sum, match: {metadata.phase: summed}, then: {summarize: {keep_last: 100, with: judge, model: small}}}
retry: [{match: {metadata.phase: waits}, attempts: 2, delay: 5 s, jitter: none}]
timeout: [{match: {metadata.ends: clock}, total: 150 ms}]
targets:
  judge: {provider: openai, base_url: "https://api.groq.com/judge", headers: {authorization: env:KEY}}
"""
JUDGE = ("/judge/chat/completions", "/judge/moderations")
STREAM, PLAIN = asks("gpt-4o", stream=True), asks("gpt-4o")
LONG = json.dumps(chat(rounds(9))).encode()


@dataclass(frozen=True)
class Phase:
    """Where a call is when it ends."""

    script: Script
    """What the provider does; whoever is asked to judge or to sum up is silent."""
    heard: int = 1
    """Requests that have come to either of them by then."""
    body: bytes = PLAIN
    said: bytes = b""
    """What the client has by then."""
    calls: int = 1
    free: frozenset[str] = frozenset()
    """Ends after which it has spent no request either: it was not let in yet, or is turned away before it was sent."""


PHASES: dict[str, Phase] = {
    "judged": Phase(is_silent, free=frozenset({"client", "gateway", "clock"})),
    "summed": Phase(is_silent, body=LONG, free=frozenset({"gateway"})),
    "asked": Phase(is_silent),
    "waits": Phase(answers(b'{"error":{"message":"no"}}', "503 Busy")),
    "held": Phase(begins(ROLE, chunk("It is sk-ant-Ab12"), then=is_silent), body=STREAM, said=ROLE),
    "streams": Phase(begins(ROLE, HEL, then=is_silent), body=STREAM, said=ROLE + HEL),
    "shared": Phase(begins(ROLE, HEL, then=is_silent), body=STREAM, said=ROLE + HEL, calls=2),
}


async def client_leaves(_gateway: Gateway, calls: list[Call]) -> None:
    for call in calls:
        call.leave()


async def gateway_stops(gateway: Gateway, calls: list[Call]) -> None:
    await asyncio.wait_for(master.drain(gateway.engine, gateway.chain.door, 0.02), 10)
    for call in calls:
        await call.end()


async def clock_strikes(_gateway: Gateway, calls: list[Call]) -> None:
    for call in calls:
        await call.end()


type End = Callable[[Gateway, list[Call]], Awaitable[None]]
ENDS: dict[str, End] = {"client": client_leaves, "gateway": gateway_stops, "clock": clock_strikes}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("phase", PHASES)
async def test_all_that_was_reserved_comes_back(
    open_gateway: OpenGateway, provider: Provider, phase: str, ends: str
) -> None:
    one = PHASES[phase]
    provider.on(CHAT, one.script)
    for path in JUDGE:
        provider.on(path, is_silent)
    async with open_gateway(COUNTERS + POLICY, env={"KEY": "Bearer sk-judge"}) as gateway:
        tags = json.dumps({"tenantId": "acme", "phase": phase, "ends": ends})
        fields = ("content-type: application/json", f"cf-aig-metadata: {tags}")
        calls = [await (await gateway.http1()).begin(CHAT, one.body, *fields) for _ in range(one.calls)]
        await gateway.until(lambda: len(provider.heard) >= one.heard)
        for call in calls:
            await call.body(len(one.said))
        await ENDS[ends](gateway, calls)
        rows = [row for row in await gateway.rows(one.calls) if row["door"] != "gateway"]
        after = counts(gateway, tenant="acme")

    paid = [row for row in rows if row["attempts"]]
    assert len(rows) == one.calls
    assert after == {
        "burst": Count(0 if ends in one.free else one.calls, 0),
        "parallel": Count(0, 0),
        "tokens": Count(sum((row["input_tokens"] or 0) + (row["output_tokens"] or 0) for row in paid), 0),
        "money": Count(sum(row["cost_nanousd"] or 0 for row in paid), 0),
    }
    assert (after["tokens"].used > 0) is bool(one.said)
