"""Limits and budgets as apps meet them: each SDK raises its own exception, waits or gives up, and never hammers; and
the counts of a gateway with several workers, or of one that was killed, are still exact."""

import asyncio
import importlib
import json
import shutil
import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from support import serving
from support.apps import PIECES, WHOLE, Ask
from support.client import Answer, Http1
from support.provider import Heard, Provider, Wire
from support.serving import Serving
from support.speakers import speak
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, HEL, ROLE
from support.voices import APIS, Api, Said

POLICY = """
limit:
  - {name: minute, match: {metadata.rule: minute}, per: metadata.test, requests: 1, every: 1 m}
  - {name: second, match: {metadata.rule: second}, per: metadata.test, requests: 1, every: 1 s}
  - {name: hours, match: {metadata.rule: hours}, per: metadata.test, requests: 1, every: 2 h}
budget:
  - {name: money, match: {metadata.rule: money}, cost: 0.000001 USD, every: day}
"""

RAISED: dict[Api, tuple[str, str]] = {
    "chat": ("openai", "RateLimitError"),
    "responses": ("openai", "RateLimitError"),
    "messages": ("anthropic", "RateLimitError"),
    "gemini": ("google.genai.errors", "ClientError"),
}
"""What each SDK raises for a 429."""

RETRYING: tuple[Api, ...] = ("chat", "responses", "messages")
"""SDKs that try again by themselves."""

KINDS: dict[Api, tuple[object, object]] = {
    "chat": ("rate_limit_error", "insufficient_quota"),
    "responses": ("rate_limit_error", "insufficient_quota"),
    "messages": ("rate_limit_error", "billing_error"),
    "gemini": ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
}
"""How each API calls a limit, and a budget."""

tests = count()


@pytest.fixture(scope="module")
def limited(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("limits") / "home"))
    with serving.serve(home, serving.policy_text(provider_thread.port, ca_file, POLICY)) as running:
        yield running


@pytest.fixture
def shop(limited: Serving, beside: Provider, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return the gateway, with this process set up as ``mitmgate env`` says."""
    serving.set_up(monkeypatch, limited, "sk-made-up-0123456789")
    return limited


def under(rule: str, retries: int = 0) -> Ask:
    """Return how an app asks under *rule*, with a count of its own."""
    tags = {"rule": rule, "test": next(tests)}
    return Ask(headers={"cf-aig-metadata": json.dumps(tags)}, retries=retries)


def raised(api: Api) -> type[Exception]:
    module, name = RAISED[api]
    found: type[Exception] = getattr(importlib.import_module(module), name)
    return found


def kind_of(api: Api, error: Any) -> object:
    """Return what the API's own word for *error* is, as its SDK tells it."""
    if api == "gemini":
        return error.status
    body = error.body["error"] if api == "messages" else error.body
    return body["type"]


def waits_s(api: Api, error: Any) -> float:
    """Return the seconds that *error* asks an app to wait."""
    if api == "gemini":
        [retry] = [one for one in error.details["error"]["details"] if one["@type"].endswith("RetryInfo")]
        return float(retry["retryDelay"].removesuffix("s"))
    return float(error.response.headers["retry-after"])


def line_of(gateway: Serving, rule: str) -> str:
    """Return ``policy.yaml:12`` of *rule*."""
    text = (gateway.home / "policy.yaml").read_text()
    [line] = [number for number, line in enumerate(text.splitlines(), 1) if f"name: {rule}," in line]
    return f"policy.yaml:{line}"


# -- what an app sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("api", APIS)
def test_a_full_limit_is_the_sdks_own_rate_limit_error(
    shop: Serving, beside: Provider, api: Api, streamed: bool
) -> None:
    speak(beside, Said(api))
    ask = under("minute")
    WHOLE[api](ask)

    with pytest.raises(raised(api)) as caught:
        list(PIECES[api](ask)) if streamed else WHOLE[api](ask)

    row = shop.new_rows(2)[1]
    said = str(caught.value)
    assert "Limit minute is full: 1 request every 1 m for metadata.test" in said
    assert line_of(shop, "minute") in said
    assert row["id"] in said
    assert kind_of(api, caught.value) == KINDS[api][0]
    assert 0 < waits_s(api, caught.value) <= 60
    assert (row["status_code"], row["source"], row["error_type"]) == (429, "rate-limit", "rate_limit")
    assert len(beside.heard) == 1


@pytest.mark.parametrize("api", APIS)
def test_a_spent_budget_is_the_sdks_own_error_and_is_asked_once(shop: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))

    with pytest.raises(raised(api)) as caught:
        WHOLE[api](under("money", retries=5))

    row = shop.new_row()
    said = str(caught.value)
    assert "Budget money has no room for this call, which may cost 0.0" in said
    assert line_of(shop, "money") in said
    assert row["id"] in said
    assert kind_of(api, caught.value) == KINDS[api][1]
    assert (row["status_code"], row["source"], row["error_type"]) == (429, "budget", "insufficient_quota")
    assert beside.heard == []


@pytest.mark.parametrize("api", RETRYING)
def test_a_limit_that_opens_in_hours_is_asked_once(shop: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))
    ask = under("hours", retries=5)
    WHOLE[api](ask)

    with pytest.raises(raised(api)):
        WHOLE[api](ask)

    assert [row["status_code"] for row in shop.new_rows(2)] == [200, 429]


@pytest.mark.parametrize("api", RETRYING)
def test_a_limit_that_opens_soon_is_waited_for_and_asked_once_more(shop: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))
    ask = under("second", retries=5)
    WHOLE[api](ask)

    WHOLE[api](ask)

    assert [row["status_code"] for row in shop.new_rows(3)] == [200, 429, 200]


# -- more than one process --------------------------------------------------------------------------------------------


async def ask(gateway: Serving, body: bytes = ASK) -> Answer:
    """Make one call on a connection of its own."""
    client = await connect(gateway)
    answer = await client.ask("POST", CHAT, "api.openai.com", body)
    await client.close()
    return answer


async def connect(gateway: Serving) -> Http1:
    trust = ssl.create_default_context(cafile=str(gateway.running.ca_bundle))
    return await Http1.tunnel(gateway.port, "api.openai.com", trust)


async def test_two_workers_share_a_count_exactly(served_home: Path, policy: str, beside: Provider) -> None:
    beside.says(CHAT, ANSWER)
    limits = "limit: [{name: burst, requests: 30, every: 1 h}, {name: tokens, tokens: 1000000, every: 1 h}]\n"
    with serving.serve(served_home, policy + limits, "--workers", "2") as gateway:
        given = await asyncio.gather(*(ask(gateway) for _ in range(60)))
        await asyncio.to_thread(gateway.new_rows, 60)

    assert Counter(answer.status for answer in given) == {200: 30, 429: 30}
    assert len(beside.heard) == 30


async def test_what_a_killed_gateway_held_is_free_again_and_what_it_had_counted_is_not(
    served_home: Path, policy: str, beside: Provider
) -> None:
    async def stops(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE + HEL)
        await wire.silence()

    beside.on(CHAT, stops)
    limits = "limit: [{name: parallel, concurrent: 2}, {name: burst, requests: 3, every: 1 h}]\n"
    limits += "budget: [{name: day, cost: 1 USD, every: day}]\n"
    with serving.serve(served_home, policy + limits) as gateway:
        clients = [await connect(gateway) for _ in range(2)]
        for client in clients:
            call = await client.begin(CHAT, ASK_STREAM)
            await call.body(len(ROLE + HEL))
        full = await ask(gateway)
        gateway.signal(signal.SIGKILL)
        gateway.ended()
        for client in clients:
            client.abort()

    beside.says(CHAT, ANSWER)
    with serving.serve(served_home, policy + limits) as gateway:
        given = [await ask(gateway) for _ in range(2)]

    assert json.loads(full.body)["error"]["message"].startswith("Limit parallel is full")
    assert [answer.status for answer in given] == [200, 429]
    assert (given[0].header("cf-aig-budget-remaining") or "").startswith("0.9899875; rule=day"), "a cent, its own"
    assert json.loads(given[1].body)["error"]["message"].startswith("Limit burst is full")
