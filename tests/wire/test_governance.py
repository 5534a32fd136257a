"""The rooms that govern, together: what one of them promises holds whatever the others do to the same call."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate import door, guard_body
from mitmgate.clock import ManualClock
from mitmgate.dialects.openai_chat import Chat
from support import talks
from support.apis import ANTHROPIC
from support.client import Answer
from support.counts import COUNTERS, NOTHING, ONE_REQUEST, Count, counts
from support.gateway import Gateway, OpenGateway, policy_for
from support.provider import HOSTS, Heard, Provider, Script, Wire
from support.scripts import answers, begins, in_turn, is_silent, streams
from support.selling import Sells, asks, used
from support.speech import ANSWER, CHAT, DONE, ROLE, STOP, USAGE, chunk

SHARED = "\ncache: [{match: {header.x-keep: present}, ttl: 1 h, scope: [provider]}]\n"
"""Answers are shared by whoever asks the same."""
KEEP = "x-keep: 1"
JSON = "content-type: application/json"
STATUS, ROUTED = "cf-aig-cache-status", "cf-aig-route"

NANO = 10**9


def of(tenant: str, **tags: str) -> str:
    return f"cf-aig-metadata: {json.dumps({'tenantId': tenant} | tags)}"


ACME, GLOBEX = of("acme"), of("globex")


async def post(gateway: Gateway, *fields: str, body: bytes = asks("gpt-4o", max_tokens=10)) -> Answer:
    return await (await gateway.http1()).post(CHAT, body, JSON, *fields)


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    sql = "select room, rule, action, shadow from policy_events where room != 'usage' order by at, rowid"
    return [tuple(row.values()) for row in await gateway.rows(1, sql)]


def text_of(answer: Answer) -> str:
    """Return what a client reads in a plain answer."""
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])


class Waits:
    """A script that answers *body* when it may."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked = 0
        self.goes_on = asyncio.Event()

    async def __call__(self, _heard: Heard, wire: Wire) -> None:
        self.asked += 1
        await self.goes_on.wait()
        await wire.answer(self.body)


# -- hits and followers -----------------------------------------------------------------------------------------------


async def test_a_hit_and_a_follower_are_requests_that_hold_a_slot_while_they_play_and_cost_nothing_else(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    waits = Waits(used("gpt-4o", 1000, 500))
    provider.on(CHAT, waits)
    async with open_gateway(COUNTERS + SHARED) as gateway:
        client = await gateway.http2()
        body = asks("gpt-4o", max_tokens=10)
        leader = await client.begin(CHAT, body, ACME, KEEP)
        await gateway.until(lambda: waits.asked == 1)
        alone = counts(gateway, tenant="acme")
        follower = await client.begin(CHAT, body, ACME, KEEP)
        await gateway.until(lambda: counts(gateway, tenant="acme")["burst"].used == 2)
        both = counts(gateway, tenant="acme")
        waits.goes_on.set()
        given = [await leader.end(), await follower.end(), await client.post(CHAT, body, ACME, KEEP)]
        rows = await gateway.rows(3)
        after = counts(gateway, tenant="acme")

    assert [answer.header(STATUS) for answer in given] == ["MISS", "HIT", "HIT"]
    assert (alone["parallel"], both["parallel"]) == (Count(0, 1), Count(0, 2))
    assert (both["tokens"], both["money"]) == (alone["tokens"], alone["money"])
    assert alone["tokens"].reserved > 0
    assert after == {
        "burst": Count(3, 0),
        "parallel": Count(0, 0),
        "tokens": Count(1500, 0),
        "money": Count(sum(row["cost_nanousd"] for row in rows), 0),
    }
    assert sorted(row["cost_nanousd"] == 0 for row in rows) == [False, True, True]


async def test_an_answer_is_shared_by_those_alone_whom_the_same_rules_guard(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    """A rule for one tenant changed, or kept back, the answer that another one shared with it."""
    policy = """
guard:
  - {name: not-for-globex, find: ["(?i)kestrel"], in: response, match: {tenant: globex}, then: block}
  - {name: hidden-from-hooli, find: ["(?i)kestrel"], in: response, match: {tenant: [hooli, initech]}, then: redact}
  - {name: told, find: ["(?i)kestrel"], in: response, match: {tenant: umbrella}, then: flag}
"""
    waits = Waits(ANSWER.replace(b"hello", b"It is Kestrel."))
    provider.on(CHAT, waits)
    tenants = ("globex", "hooli", "initech", "acme", "umbrella")
    async with open_gateway(policy + SHARED) as gateway:
        client = await gateway.http2()
        body = asks("gpt-4o", max_tokens=10)
        calls = [await client.begin(CHAT, body, JSON, KEEP, of(tenant)) for tenant in tenants]
        await gateway.until(lambda: [len(one.listeners) for one in gateway.chain.cache.tapes.values()] == [1, 2, 2])
        waits.goes_on.set()
        shared = [await call.end() for call in calls]
        kept = [await post(gateway, KEEP, of(tenant)) for tenant in reversed(tenants)]

    told = "It is Kestrel.", "It is [pattern]."
    assert [answer.status for answer in shared] == [403, *[200] * 4]
    assert [text_of(answer) for answer in shared[1:]] == [told[1], told[1], told[0], told[0]]
    assert [answer.status for answer in kept] == [*[200] * 4, 403]
    assert [text_of(answer) for answer in kept[:4]] == [told[0], told[0], told[1], told[1]]
    assert [answer.header(STATUS) for answer in kept[:4]] == ["HIT"] * 4
    assert waits.asked == 4, "three at first, and once more for what is never kept"
    flagged = [answer.header("cf-aig-dlp") is not None for answer in (shared[3], shared[4], kept[0], kept[1])]
    assert flagged == [False, True, True, False]


RESTORES = "guard: [{name: people, find: email, in: [request, response], then: redact, restore: true}]\n"


async def test_two_tenants_share_one_redacted_answer_and_each_finds_its_own_address_in_it(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER.replace(b"hello", b"I wrote to [email_1]."))
    people = {"acme": "ann@acme.example", "globex": "bob@globex.example"}
    async with open_gateway(RESTORES + SHARED + "trace: {payloads: full}") as gateway:
        given = [
            await post(gateway, KEEP, of(tenant), body=asks("gpt-4o", f"Write to {address}"))
            for tenant, address in people.items()
        ]
        payloads = await gateway.rows(2, "select text from v_payloads")
        gateway.chain.state.answers.close()
        kept = b"".join(path.read_bytes() for path in sorted(gateway.home.path.glob("*.db*")))

    assert [answer.header(STATUS) for answer in given] == ["MISS", "HIT"]
    assert [text_of(answer) for answer in given] == [f"I wrote to {address}." for address in people.values()]
    assert [json.loads(heard.body)["messages"][0]["content"] for heard in provider.heard] == ["Write to [email_1]"]
    assert len(payloads) == 5
    assert not any(address in str(payloads) or address.encode() in kept for address in people.values())


async def test_rules_tell_users_apart_whose_names_a_guard_hides(open_gateway: OpenGateway, provider: Provider) -> None:
    """A guard hid the e-mail addresses by which an app told its users apart, and all of them shared one limit."""
    policy = """
guard: [{name: people, find: email, then: redact}]
limit:
  - {name: each, per: user, requests: 2, every: 1 h}
  - {name: not-cyd, match: {user: "cyd@*"}, tokens: 1, every: 1 h}
cache: [{match: {header.x-keep: present}, ttl: 1 h, scope: [user]}]
trace: {payloads: full}
"""
    provider.says(CHAT, ANSWER)
    async with open_gateway(policy) as gateway:
        given = [
            await post(gateway, KEEP, of("acme", userId=f"{name}@corp.example"))
            for name in ("ann", "ann", "bob", "ann", "cyd")
        ]
        rows = await gateway.rows(5)
        acted = await gateway.rows(5, "select detail from policy_events")

    assert [(answer.status, answer.header(STATUS)) for answer in given] == [
        (200, "MISS"),
        (200, "HIT"),
        (200, "MISS"),
        (429, None),
        (429, "MISS"),
    ]
    assert "2 requests every 1 h for user sha256:" in json.loads(given[3].body)["error"]["message"]
    assert {row["user"] for row in rows} == {"[email]"}
    assert "@corp.example" not in str([rows, acted, [answer.body for answer in given]])
    assert all(b"@corp.example" not in path.read_bytes() for path in gateway.home.path.glob("*.db*"))


# -- what a cheaper model says ----------------------------------------------------------------------------------------

STEPS = """
budget:
  - {name: day, match: {tenant: acme}, cost: 1 USD, every: day, downgrade: {at: 50 %, to: {model: gpt-4o-mini}}}
"""


async def spend_half(gateway: Gateway, sells: Sells) -> None:
    """Let acme come to where it is sent to the small model."""
    sells.output_tokens = 60_000
    await post(gateway, ACME, body=asks("gpt-4o", "something else"))
    await gateway.rows(1)
    sells.output_tokens = 5


def model_of(answer: Answer) -> tuple[str, str | None]:
    """Return which model a client is told of, and which says so in the body."""
    return str(json.loads(answer.body)["model"]), answer.header("cf-aig-model")


async def test_what_the_small_model_says_is_kept_and_shared_as_its_own_alone(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    sells, clock = Sells(provider), ManualClock(started_wall=1_795_608_000.0)
    async with open_gateway(STEPS + SHARED, clock=clock) as gateway:
        await spend_half(gateway, sells)
        first, again = [await post(gateway, ACME, KEEP) for _ in range(2)]
        others = [await post(gateway, GLOBEX, KEEP) for _ in range(2)]
        richer = await post(gateway, ACME, KEEP)
        clock.advance(86_400)
        await gateway.rows(6)
        next_day = await post(gateway, ACME, KEEP, body=asks("gpt-4o", "another day"))
        rows = await gateway.rows(7)

    small, large = ("gpt-4o-mini", "gpt-4o-mini"), ("gpt-4o", "gpt-4o")
    told = [(answer.header(STATUS), model_of(answer), answer.header(ROUTED)) for answer in (first, again)]
    assert told == [
        ("MISS", small, "downgraded; rule=day"),
        ("HIT", small, "downgraded; rule=day"),
    ]
    assert [(answer.header(STATUS), model_of(answer)) for answer in others] == [("MISS", large), ("HIT", large)]
    assert (richer.header(STATUS), model_of(richer), richer.header(ROUTED)) == ("HIT", large, None)
    assert (next_day.header(STATUS), model_of(next_day)) == ("MISS", large)
    assert [row["cost_nanousd"] == 0 for row in rows[1:]] == [False, True, False, True, True, False]


async def test_nobody_follows_a_call_that_goes_to_the_small_model_but_those_that_do_so_too(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    sells = Sells(provider)
    async with open_gateway(COUNTERS + STEPS.replace("\nbudget:", "") + SHARED) as gateway:
        await spend_half(gateway, sells)
        goes_on = asyncio.Event()

        async def waits(heard: Heard, wire: Wire) -> None:
            await goes_on.wait()
            await sells.script(heard, wire)

        provider.on(CHAT, waits)
        client = await gateway.http2()
        calls = [
            await client.begin(CHAT, asks("gpt-4o", max_tokens=10), KEEP, who) for who in (ACME, ACME, GLOBEX, GLOBEX)
        ]
        await gateway.until(lambda: [len(one.listeners) for one in gateway.chain.cache.tapes.values()] == [2, 2])
        goes_on.set()
        given = [await call.end() for call in calls]
        rows = await gateway.rows(5)
        after = counts(gateway, tenant="acme")

    assert [json.loads(heard.body)["model"] for heard in provider.heard[1:]] == ["gpt-4o-mini", "gpt-4o"]
    assert [(answer.header(STATUS), model_of(answer)[0]) for answer in given] == [
        ("MISS", "gpt-4o-mini"),
        ("HIT", "gpt-4o-mini"),
        ("MISS", "gpt-4o"),
        ("HIT", "gpt-4o"),
    ]
    mine = [row for row in rows if row["tenant"] == "acme"]
    assert after["money"] == Count(sum(row["cost_nanousd"] for row in mine), 0)
    assert (after["burst"], after["parallel"].reserved) == (Count(3, 0), 0)


async def test_where_a_place_is_closed_to_a_cheaper_call_its_answer_is_not_kept_as_that_places(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    policy = """
budget: [{name: day, match: {tenant: acme}, cost: 1 USD, every: day, downgrade: {at: 50 %, to: {target: cheap}}}]
route: [{name: at-home, match: {metadata.secret: present}, zone: home}]
targets:
  cheap: {provider: openai, base_url: "https://llm.corp.example", headers: {authorization: env:KEY}}
  own: {provider: openai, base_url: "https://api.openai.com", zone: home}
"""
    sells = Sells(provider)
    async with open_gateway(policy + SHARED, env={"KEY": "Bearer sk-cheap"}) as gateway:
        await spend_half(gateway, sells)
        closed = [await post(gateway, KEEP, of("acme", secret="yes")) for _ in range(2)]
        open_, again = [await post(gateway, KEEP, ACME) for _ in range(2)]

    given = (*closed, open_, again)
    assert [(answer.header(STATUS), answer.header("cf-aig-provider"), answer.header(ROUTED)) for answer in given] == [
        ("MISS", "own", None),
        ("MISS", "own", None),
        ("MISS", "cheap", "downgraded; rule=day"),
        ("HIT", "cheap", "downgraded; rule=day"),
    ]


# -- one refuses, and all give back -----------------------------------------------------------------------------------

ROUTES = """
route: [{name: at-home, match: {metadata.secret: present}, zone: home}]
breaker: {min_requests: 1, failures: 1 %, rest: 1 m}
targets:
  own: {provider: openai, base_url: "https://llm.corp.example", zone: home}
guard: [{name: secrets, find: secret, then: block}]
"""

type Told = tuple[str, ...]

REFUSED: dict[str, tuple[Told, bytes, int]] = {
    "by a budget": ((ACME,), asks("gpt-4o", max_tokens=2_000_000), 429),
    "by its tokens": ((ACME,), asks("gpt-4o-mini", max_tokens=1_500_000), 429),
    "by a zone": ((of("acme", secret="yes"),), asks("gpt-4o"), 403),
    "for a place that is none": ((ACME, "cf-aig-fallback: nowhere"), asks("gpt-4o"), 400),
    "for a model that is none": ((ACME,), asks("dynamic/none"), 404),
    "by a guard": ((ACME,), asks("gpt-4o", "sk-ant-api03-Ab12Cd34Ef56Gh78Ij90"), 403),
}
"""Who says no -> header lines, body, status."""


@pytest.mark.parametrize("keep", [KEEP, "x-keep-not: 1"])
async def test_who_is_refused_by_one_room_has_spent_nothing_in_any(
    open_gateway: OpenGateway, provider: Provider, keep: str
) -> None:
    async with open_gateway(COUNTERS + ROUTES + SHARED) as gateway:
        given = {who: await post(gateway, *fields, keep, body=body) for who, (fields, body, _) in REFUSED.items()}
        rows = await gateway.rows(len(REFUSED))
        after = counts(gateway, tenant="acme")

    assert {who: answer.status for who, answer in given.items()} == {who: case[2] for who, case in REFUSED.items()}
    assert {row["terminal"] for row in rows} == {"refused"}
    assert (after, provider.heard) == (NOTHING, [])


@pytest.mark.parametrize("keep", [KEEP, "x-keep-not: 1"])
async def test_who_finds_every_place_resting_has_spent_nothing(
    open_gateway: OpenGateway, provider: Provider, keep: str
) -> None:
    provider.says(CHAT, b"{}", "503 Service Unavailable")
    async with open_gateway(COUNTERS + ROUTES + SHARED) as gateway:
        failed = await post(gateway, ACME, keep)
        await gateway.rows(1)
        before = counts(gateway, tenant="acme")
        resting = [await post(gateway, ACME, keep) for _ in range(3)]
        await gateway.rows(4)
        after = counts(gateway, tenant="acme")

    assert (failed.status, [answer.status for answer in resting]) == (503, [503] * 3)
    assert resting[0].header("cf-aig-attempts") == "0"
    assert before == after == ONE_REQUEST


# -- several attempts -------------------------------------------------------------------------------------------------

WAYS = """
retry: [{match: {metadata.way: retry}, attempts: 2, delay: 1 ms, retry_on: [error_event]}]
route: [{name: two, match: {metadata.way: fallback}, try: [first, second], fall_back_on: [error_event]}]
hedge: [{name: tail, match: {metadata.way: hedge}, after: 20 ms, to: second}]
targets:
  first: {provider: anthropic, base_url: "https://api.anthropic.com"}
  second: {provider: anthropic, base_url: "https://llm.corp.example", headers: {x-api-key: env:KEY}}
"""
FAILS: Script = begins(ANTHROPIC.before, ANTHROPIC.error, then=is_silent)
"""Has counted 25 tokens of input when it fails."""


@pytest.mark.parametrize(
    ("way", "first"),
    [("retry", FAILS), ("fallback", FAILS), ("hedge", begins(ANTHROPIC.before, then=is_silent))],
)
async def test_a_call_of_several_attempts_is_one_request_and_uses_what_all_of_them_did(
    open_gateway: OpenGateway, provider: Provider, way: str, first: Script
) -> None:
    provider.on(ANTHROPIC.path, in_turn(first, streams(ANTHROPIC.stream)))
    async with open_gateway(COUNTERS + WAYS, env={"KEY": "sk-second"}) as gateway:
        client = await gateway.http1(ANTHROPIC.host)
        answer = await client.post(ANTHROPIC.path, ANTHROPIC.ask, "x-api-key: sk-own", of("acme", way=way))
        row = await gateway.row()
        after = counts(gateway, tenant="acme")

    assert (answer.status, answer.complete, answer.header("cf-aig-attempts")) == (200, True, "2")
    assert (row["input_tokens"], row["output_tokens"]) == (25 + 25, 1 + 15)
    assert after == {
        "burst": Count(1, 0),
        "parallel": Count(0, 0),
        "tokens": Count(66, 0),
        "money": Count(row["cost_nanousd"], 0),
    }


# -- Cloudflare's entries ---------------------------------------------------------------------------------------------

ENTRIES = """
auth: {keys: [{name: app, key: env:APP_KEY, tenant: acme, models: ["gpt-*", "*/gpt-*", "claude-*"]}]}
guard:
  - {name: people, find: email, in: [request, response], then: redact, restore: true}
  - {name: secrets, find: secret, then: block}
limit: [{name: burst, per: tenant, requests: 100, every: 1 h}]
budget: [{name: day, cost: 1 USD, every: day, downgrade: {at: 50 %, to: {model: gpt-4o-mini}}}]
shape: [{name: brief, then: {max_output_tokens: 50}}]
targets:
  openai: {provider: openai, base_url: "https://api.openai.com/v1", headers: {authorization: env:OPENAI_KEY}}
  claude: {provider: anthropic, base_url: "https://api.anthropic.com", headers: {x-api-key: env:CLAUDE_KEY}}
"""
ENTRY_KEYS = {"APP_KEY": "of-the-app-0123456789", "OPENAI_KEY": "Bearer sk-of-openai", "CLAUDE_KEY": "sk-of-claude"}
APP_KEY = "of-the-app-0123456789"


async def repeats(heard: Heard, wire: Wire) -> None:
    """Answer with what was asked, for 60,000 tokens of output where that is what was asked for."""
    asked = json.loads(heard.body)
    text = asked["messages"][-1]["content"]
    answer = json.loads(used(asked["model"], 10, 60_000 if "costs" in text else 5))
    answer["choices"][0]["message"]["content"] = text
    await wire.answer(json.dumps(answer).encode())


async def test_all_rooms_govern_a_call_that_names_its_provider_by_the_model(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, repeats)
    own = f"authorization: Bearer {APP_KEY}"
    async with open_gateway(ENTRIES, env=ENTRY_KEYS) as gateway:
        client = await gateway.plain()

        async def ask(model: str, text: str, *fields: str) -> Answer:
            return await client.post("/compat/chat/completions", asks(model, text), JSON, *fields)

        stranger = await ask("openai/gpt-4o", "hi", "authorization: Bearer of-a-stranger")
        blocked = await ask("openai/gpt-4o", "sk-ant-api03-Ab12Cd34Ef56Gh78Ij90", own)
        forbidden = await ask("openai/o3", "hi", own)
        dear = await ask("openai/gpt-4o", "What ann@corp.example costs", own)
        await gateway.rows(4)
        cheap = await ask("openai/gpt-4o", "What bob@corp.example does", own)
        rows = await gateway.rows(5)

    given = (stranger, blocked, forbidden, dear, cheap)
    assert [answer.status for answer in given] == [401, 403, 403, 200, 200]
    assert [text_of(answer) for answer in (dear, cheap)] == [
        "What ann@corp.example costs",
        "What bob@corp.example does",
    ]
    assert [json.loads(heard.body) for heard in provider.heard] == [
        {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 50}
        for model, text in (("gpt-4o", "What [email_1] costs"), ("gpt-4o-mini", "What [email_1] does"))
    ]
    assert {heard.header("authorization") for heard in provider.heard} == {"Bearer sk-of-openai"}
    assert [answer.header(ROUTED) for answer in (dear, cheap)] == [
        "shaped; rule=brief",
        "downgraded; rule=day, shaped; rule=brief",
    ]
    assert cheap.header("cf-aig-limit-remaining") == "98; rule=burst; unit=requests; reset=3600"
    assert [(row["tenant"], row["key_name"]) for row in rows[1:]] == [("acme", "app")] * 4


async def test_all_rooms_govern_a_call_that_names_several_providers_in_its_body(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on("/v1/messages", answers(b'{"type":"error","error":{"type":"api_error","message":"no"}}', "500 Failed"))
    provider.on(CHAT, repeats)

    def elements(text: str, *models: str) -> bytes:
        messages = [{"role": "user", "content": text}]
        return json.dumps(
            [
                {"provider": "anthropic", "endpoint": "v1/messages", "query": {"model": model, "messages": messages}}
                if model.startswith("claude")
                else {"provider": "openai", "endpoint": "chat/completions", "query": json.loads(asks(model, text))}
                for model in models
            ]
        ).encode()

    own = f"cf-aig-authorization: Bearer {APP_KEY}"
    async with open_gateway(ENTRIES, env=ENTRY_KEYS) as gateway:
        client = await gateway.plain()
        stranger = await client.post("/", elements("hi", "gpt-4o"), JSON)
        blocked = await client.post("/", elements("sk-ant-api03-Ab12Cd34Ef56Gh78Ij90", "gpt-4o"), JSON, own)
        forbidden = await client.post("/", elements("hi", "gpt-4o", "o3"), JSON, own)
        dear = await client.post("/", elements("What ann@corp.example costs", "claude-haiku-4-5", "gpt-4o"), JSON, own)
        await gateway.rows(4)
        again = await client.post("/", elements("What bob@corp.example does", "gpt-4o"), JSON, own)
        rows = await gateway.rows(5)

    given = (stranger, blocked, forbidden, dear, again)
    assert [answer.status for answer in given] == [401, 403, 403, 200, 200]
    assert [text_of(answer) for answer in (dear, again)] == [
        "What ann@corp.example costs",
        "What bob@corp.example does",
    ]
    assert [(heard.header("x-api-key"), heard.header("authorization")) for heard in provider.heard] == [
        ("sk-of-claude", None),
        (None, "Bearer sk-of-openai"),
        (None, "Bearer sk-of-openai"),
    ]
    assert [b"corp.example" in heard.body for heard in provider.heard] == [False] * 3
    assert again.header("cf-aig-limit-remaining") == "98; rule=burst; unit=requests; reset=3600"
    assert json.loads(provider.heard[2].body)["model"] == "gpt-4o"
    assert json.loads(rows[4]["notes"]) == [
        "budget: day does not downgrade this call: it brings its own list of places",
        "shape brief: left alone: it brings its own list of places",
    ]


# -- a policy is edited while calls are on their way ------------------------------------------------------------------

HIDES = 'guard: [{name: keys, find: ["sk-ant-[A-Za-z0-9]{12}"], in: response, then: redact}]\n'


async def test_calls_that_guards_hold_and_limits_count_end_as_they_began_whatever_is_edited(
    open_gateway: OpenGateway, provider: Provider, ca_file: Path
) -> None:
    goes_on = asyncio.Event()

    async def halves(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE + chunk("It is sk-ant-Ab12"))
        await goes_on.wait()
        for piece in (chunk("Cd34Ef56."), STOP, USAGE, DONE):
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, halves)
    body = asks("gpt-4o", stream=True)
    async with open_gateway(COUNTERS + HIDES) as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, body, ACME) for _ in range(3)]
        for call in calls:
            await call.body(len(ROLE))
        edited = COUNTERS.replace("concurrent: 10", "concurrent: 3").replace("requests: 100", "requests: 4")
        gateway.chain.take(policy_for(provider.port, ca_file, HOSTS[:10], edited))
        refused = await client.post(CHAT, body, ACME)
        goes_on.set()
        held = [await call.end() for call in calls]
        await gateway.rows(4)
        between = counts(gateway, tenant="acme")
        fourth, fifth = [await client.post(CHAT, body, ACME) for _ in range(2)]
        rows = await gateway.rows(6)
        after = counts(gateway, tenant="acme")

    assert (refused.status, json.loads(refused.body)["error"]["message"][:22]) == (429, "Limit parallel is full")
    assert [(b"[pattern]" in answer.body, b"Ab12" in answer.body) for answer in held] == [(True, False)] * 3
    assert b"sk-ant-Ab12" in fourth.body
    assert (fourth.status, fifth.status) == (200, 429)
    assert (between["burst"], between["parallel"]) == (Count(3, 0), Count(0, 0))
    assert after == {
        "burst": Count(4, 0),
        "parallel": Count(0, 0),
        "tokens": Count(4 * 12, 0),
        "money": Count(sum(row["cost_nanousd"] for row in rows), 0),
    }


# -- a body that nobody keeps -----------------------------------------------------------------------------------------

LARGE = asks("gpt-4o", "word " * 30_000, stream=False)
PASSES = """
auth: {keys: [{name: app, key: env:APP_KEY, tenant: acme}]}
guard: [{name: topics, find: word, then: flag}, {name: host, match: {host: "*.evil.example"}, then: block}]
cache: [{match: {tenant: acme}, ttl: 1 h}]
shape: [{name: short, then: {keep_last: 100}}]
route: [{name: away, match: {tenant: acme}, try: [elsewhere]}]
targets:
  openai: {provider: openai, base_url: "https://api.openai.com/v1", headers: {authorization: env:OPENAI_KEY}}
  elsewhere: {provider: openai, base_url: "https://llm.corp.example/v1"}
"""


async def pieces_of(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 10_000):
        yield body[at : at + 10_000]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bodies be passed on while they arrive that are as small as those of a test."""
    monkeypatch.setattr(door, "STREAMED_BYTES", 50_000)


@pytest.mark.usefixtures("streamed")
async def test_an_upload_passes_every_room_byte_for_byte_and_is_counted_by_what_it_was(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, used("gpt-4o", 40_000, 60_000))
    money = "cost: 10 USD, every: 1 h"
    policy = COUNTERS.replace(money, f"{money}, downgrade: {{at: 5 %, to: {{model: gpt-4o-mini}}}}")
    async with open_gateway(policy + PASSES, env=ENTRY_KEYS) as gateway:
        given = []
        for n in (1, 2):
            client = await gateway.http1()
            upload = client.upload(CHAT, pieces_of(LARGE), len(LARGE), JSON, f"authorization: Bearer {APP_KEY}")
            given.append(await upload.end())
            rows = await gateway.rows(n)
        after = counts(gateway, tenant="acme")

    assert [(answer.status, answer.header(STATUS), answer.header(ROUTED)) for answer in given] == [
        (200, None, None)
    ] * 2
    for heard in provider.heard:
        assert (heard.sni, heard.body == LARGE) == ("api.openai.com", True)
        assert heard.header("authorization") == "Bearer sk-of-openai"
    assert after == {
        "burst": Count(2, 0),
        "parallel": Count(0, 0),
        "tokens": Count(200_000, 0),
        "money": Count(sum(row["cost_nanousd"] for row in rows), 0),
    }
    assert json.loads(rows[1]["notes"]) == [
        "streamed upload: no rule read the body",
        "guard: topics has not looked at the request: its body is larger than 32 MiB",
        "budget: money does not downgrade this call: its body is still on its way",
        "shape short: left alone: its body is still on its way",
        "route: a streamed upload stays at its own host",
    ]


CLOSED: dict[str, str] = {
    "a key for some models": 'auth: {keys: [{name: app, key: env:APP_KEY, models: ["gpt-*"]}]}',
    "a guard that hides": "guard: [{name: secrets, find: secret, then: redact}]",
    "a guard that asks": "guard: [{name: judge, then: {ask: judge}}]",
    "a zone": "route: [{name: at-home, match: {host: '*'}, zone: home}]",
}
JUDGE = """
targets:
  judge: {provider: openai, base_url: "https://api.groq.com", headers: {authorization: env:OPENAI_KEY}, zone: home}
"""


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("policy", CLOSED.values(), ids=CLOSED)
async def test_an_upload_does_not_pass_a_rule_that_would_have_had_to_read_it(
    open_gateway: OpenGateway, provider: Provider, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_body, "MOST_BYTES", 50_000)
    async with open_gateway(COUNTERS + policy + JUDGE, env=ENTRY_KEYS) as gateway:
        client = await gateway.http1()
        upload = client.upload(CHAT, pieces_of(LARGE), len(LARGE), JSON, f"cf-aig-authorization: Bearer {APP_KEY}")
        answer = await upload.end()
        await gateway.rows(1)
        after = counts(gateway, tenant="")

    assert (answer.status, provider.heard, after) == (403, [], NOTHING)


# -- shadows ----------------------------------------------------------------------------------------------------------

SHADOWS = """
guard:
  - {name: secrets, find: secret, in: [request, response], then: block, shadow: true}
  - {name: people, find: email, in: [request, response], then: redact, restore: true, shadow: true}
  - {name: topics, find: kestrel, then: flag, shadow: true}
  - {name: models, unless: {model: "claude-*"}, then: block, shadow: true}
limit:
  - {name: burst, requests: 1, every: 1 h, shadow: true}
  - {name: tokens, tokens: 1, every: 1 h, shadow: true}
  - {name: parallel, concurrent: 1, shadow: true}
budget:
  - {name: day, cost: 0.000001 USD, every: day, downgrade: {at: 20 %, to: {model: gpt-4o-mini}}, shadow: true}
  - {name: known, cost: 1 USD, every: day, unpriced: refuse, shadow: true}
cache: [{name: all, match: {model: "*"}, ttl: 1 h, shadow: true}]
shape: [{name: brief, then: {max_output_tokens: 5}, shadow: true}]
route:
  - {name: home, match: {model: "*"}, zone: home, shadow: true}
  - {name: away, match: {model: "*"}, try: [elsewhere], shadow: true}
retry: [{name: again, attempts: 3, shadow: true}]
breaker: [{name: rests, min_requests: 1, failures: 1 %, rest: 1 m, shadow: true}]
hedge: [{name: tail, match: {model: "*"}, after: 1 ms, to: elsewhere, shadow: true}]
targets:
  elsewhere:
    {provider: openai, base_url: "https://llm.corp.example/v1", headers: {authorization: env:KEY}, zone: home}
usage: leave
"""


@pytest.mark.parametrize("stream", [False, True])
async def test_rules_that_are_all_shadows_change_no_byte_and_say_what_each_would_have_done(
    open_gateway: OpenGateway, provider: Provider, version: str, stream: bool
) -> None:
    secret = "sk-ant-api03-Ab12Cd34Ef56Gh78Ij90"
    body = asks("our-model", f"Kestrel: ann@corp.example has {secret}, ask kestrel", stream=stream, temperature=0.10)
    answer = ANSWER.replace(b"hello", b"ann@corp.example")
    frames = [ROLE, chunk("ann@corp"), chunk(f".example, {secret}"), STOP, DONE]

    async def says(_heard: Heard, wire: Wire) -> None:
        if len(provider.heard) == 1:
            await wire.answer(b'{"error":{"message":"no"}}', "503 Busy")
        elif stream:
            await wire.stream(frames)
        else:
            await wire.answer(answer)

    provider.on(CHAT, says)
    async with open_gateway(SHADOWS, env={"KEY": "Bearer sk-elsewhere"}) as gateway:
        client = await gateway.client(version)
        given = [await client.post(CHAT, body, ACME) for _ in range(3)]
        rows = await gateway.rows(3)
        acted = await events(gateway)

    assert [one.status for one in given] == [503, 200, 200]
    assert [one.body for one in given[1:]] == [b"".join(frames) if stream else answer] * 2
    assert [(heard.sni, heard.body) for heard in provider.heard] == [("api.openai.com", body)] * 3
    ours = {name.lower() for one in given for name, _ in one.fields if name.lower().startswith("cf-aig-")}
    assert ours == {f"cf-aig-{name}" for name in ("log-id", "attempts", "step", "provider", "model", "source")}
    assert {row["sent_sha256"] for row in rows} == {None}
    assert {shadow for *_, shadow in acted} == {1}
    assert {event[:3] for event in acted} == {
        ("guard", "secrets", "block"),
        ("guard", "people", "redact"),
        ("guard", "topics", "flag"),
        ("guard", "models", "block"),
        ("limit", "burst", "refuse"),
        ("limit", "tokens", "refuse"),
        ("budget", "known", "refuse"),
        ("budget", "day", "flag"),
        ("budget", "day", "downgrade"),
        ("budget", "day", "refuse"),
        ("cache", "all", "flag"),
        ("shape", "brief", "max_output_tokens"),
        ("route", "away", "fallback"),
        ("route", "home", "refuse"),
        ("retry", "again", "retry"),
        ("breaker", "rests", "rest"),
        ("hedge", "tail", "hedge"),
    }


# -- what is told of it -----------------------------------------------------------------------------------------------

EVERYTHING = """
auth: {keys: [{name: app, key: env:APP_KEY, tenant: acme}]}
guard:
  - {name: people, find: email, then: redact, restore: true}
  - {name: topics, find: ["(?i)kestrel"], in: [request, response], then: flag}
limit:
  - {name: burst, requests: 100, every: 1 h}
  - {name: tight, requests: 1, every: 1 h, shadow: true}
budget: [{name: day, cost: 1 USD, every: day, soft: 10 %, downgrade: {at: 50 %, to: {model: gpt-4o-mini}}}]
cache: [{match: {tenant: acme}, ttl: 1 h}]
shape: [{name: short, match: {input_tokens: "> 200"}, then: {keep_last: 200}}]
route: [{name: two, match: {tenant: acme}, try: [first, second]}]
retry: {attempts: 2, delay: 1 ms}
targets:
  first: {provider: openai, base_url: "https://api.openai.com/v1", headers: {authorization: env:OPENAI_KEY}}
  second: {provider: openai, base_url: "https://llm.corp.example/v1", headers: {authorization: env:OPENAI_KEY}}
"""


async def test_a_row_tells_what_each_room_did_in_the_order_in_which_the_call_came_to_them(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    body = talks.chat([*talks.rounds(9)[:-1], talks.Round(9, says="Ask ann@corp.example of Kestrel", answered=False)])
    down, dear = answers(b"{}", "503 Busy"), answers(used("gpt-4o", 0, 60_000))
    provider.on(CHAT, in_turn(dear, down, down, answers(ANSWER.replace(b"hello", b"[email_1] knows of Kestrel"))))
    async with open_gateway(EVERYTHING, env=ENTRY_KEYS) as gateway:
        key = f"authorization: Bearer {APP_KEY}"
        await post(gateway, key)
        await gateway.rows(1)
        answer = await post(gateway, key, body=json.dumps(body).encode())
        _, row = await gateway.rows(2)
        sql = (
            f"select room, rule, action, shadow, at from policy_events where exchange_id = '{row['id']}' order by rowid"
        )
        acted = [tuple(event.values()) for event in await gateway.rows(2, sql)]

    assert (answer.status, text_of(answer)) == (200, "ann@corp.example knows of Kestrel")
    assert [event[:4] for event in acted] == [
        ("guard", "people", "redact", 0),
        ("guard", "topics", "flag", 0),
        ("limit", "tight", "refuse", 1),
        ("budget", "day", "downgrade", 0),
        ("shape", "short", "keep_last", 0),
        ("retry", "retry", "retry", 0),
        ("route", "two", "fallback", 0),
        ("guard", "topics", "flag", 0),
    ]
    times = [event[4] for event in acted]
    assert times == sorted(times)
    assert answer.header(ROUTED) == "downgraded; rule=day, shaped; rule=short"
    sent = json.loads(provider.heard[-1].body)
    asked = Chat().read_request(CHAT, body).input_tokens_estimate
    assert row["prompt_tokens_before"] == pytest.approx(asked, abs=5)
    assert row["prompt_tokens_after"] == Chat().read_request(CHAT, sent).input_tokens_estimate <= 200
    assert (row["key_name"], row["tenant"], row["target"], row["step"], row["attempts"]) == (
        "app",
        "acme",
        "second",
        1,
        3,
    )
    assert (row["request_model"], sent["model"], row["cache_status"], row["notes"]) == (
        "gpt-4o",
        "gpt-4o-mini",
        "MISS",
        None,
    )
