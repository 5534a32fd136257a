"""Who gets whose answer: only who asks the same, in the same scope, and wants it from the cache."""

import json
from dataclasses import dataclass

import pytest

from mitmgate.clock import ManualClock
from support.cached import BYPASS, HIT, KEEP, KEY, MISS, Parrot, says, shown, told
from support.client import Answer, Client
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# -- who shares an answer with whom -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request: its path, body and headers."""

    path: str = CHAT
    body: bytes = ASK
    fields: tuple[str, ...] = (KEY, KEEP)

    async def by(self, client: Client) -> Answer:
        return await client.post(self.path, self.body, *self.fields)


REORDERED = b'{ "messages":[{"content":"h\\u0069","role":"user"}],\n "model":"gpt-4o" }'
UNASKED = ASK.replace(b"}]", b'}], "temperature": 0')

SHARED = {
    "order, white space and escapes of the body": Asked(body=REORDERED),
    "another user agent": Asked(fields=(KEY, KEEP, "user-agent: other")),
    "an SDK's own count": Asked(fields=(KEY, KEEP, "x-stainless-retry-count: 1")),
    "another event": Asked(fields=(KEY, KEEP, "cf-aig-event-id: e-2")),
    "another trace": Asked(fields=(KEY, KEEP, f"traceparent: 00-{'a' * 32}-{'b' * 16}-01")),
    "another time to live": Asked(fields=(KEY, "cf-aig-cache-ttl: 90")),
}
"""What does not part a request from ``Asked()``."""

APART = {
    "another key": Asked(fields=("authorization: Bearer sk-2", KEEP)),
    "no key at all": Asked(fields=(KEEP,)),
    "a cache key": Asked(fields=(KEY, KEEP, "cf-aig-cache-key: v2")),
    "another organisation": Asked(fields=(KEY, KEEP, "openai-organization: o-2")),
    "a beta of the API": Asked(fields=(KEY, KEEP, "anthropic-beta: b-1")),
    "another api-version": Asked(path=f"{CHAT}?api-version=2"),
    "a stream": Asked(body=ASK_STREAM),
    "temperature 0 where none was said": Asked(body=UNASKED),
    "1.0 where 1 was said": Asked(body=ASK.replace(b"}]", b'}], "n": 1.0')),
    "1 where none was said": Asked(body=ASK.replace(b"}]", b'}], "n": 1')),
    "a name twice": Asked(body=ASK.replace(b'"model"', b'"model": 1, "model"')),
}
"""What does; each of them from all others, too."""


async def test_only_who_asks_the_same_shares_an_answer(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    assert shown(await Asked().by(client)) == MISS

    shared = {name: shown(await asked.by(client)) for name, asked in SHARED.items()}
    apart = {name: shown(await asked.by(client)) for name, asked in APART.items()}
    again = {name: shown(await asked.by(client)) for name, asked in APART.items()}

    assert shared == dict.fromkeys(SHARED, HIT)
    assert apart == dict.fromkeys(APART, MISS)
    assert again == dict.fromkeys(APART, HIT)
    assert len(provider.heard) == 1 + len(APART)


async def test_both_doors_and_both_versions_share_answers(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    asked = Asked()

    first = await asked.by(await gateway.http1())
    others = [
        await asked.by(await gateway.http2()),
        await Asked("/openai/chat/completions").by(await gateway.plain()),
    ]

    assert shown(first) == MISS
    assert [(shown(answer), answer.body) for answer in others] == [(HIT, ANSWER)] * 2


async def test_a_tenants_callers_share_what_scope_says_and_two_tenants_never_do(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    def asked(key: str, tenant: str) -> Asked:
        tags = json.dumps({"tenantId": tenant})
        return Asked(fields=(f"authorization: Bearer {key}", f"cf-aig-metadata: {tags}"))

    provider.says(CHAT, ANSWER)
    async with open_gateway("cache: [{name: faq, ttl: 1 h, scope: [tenant]}]") as gateway:
        client = await gateway.http1()

        answers = [
            await asked(key, tenant).by(client)
            for key, tenant in (("sk-1", "acme"), ("sk-2", "acme"), ("sk-1", "globex"))
        ]

    assert [shown(answer) for answer in answers] == [MISS, HIT, MISS]


async def test_the_clients_header_may_be_the_whole_key_but_for_the_scope(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    def asked(key: str, name: str, body: bytes) -> Asked:
        return Asked(body=body, fields=(f"authorization: Bearer {key}", f"cf-aig-cache-key: {name}", KEEP))

    provider.says(CHAT, ANSWER)
    async with open_gateway("cache_store: {key_header: replace}") as gateway:
        client = await gateway.http1()

        answers = [
            await asked(key, name, body).by(client)
            for key, name, body in (
                ("sk-1", "greeting", ASK),
                ("sk-1", "greeting", ASK.replace(b"hi", b"good morning")),
                ("sk-1", "farewell", ASK),
                ("sk-2", "greeting", ASK),
            )
        ]

    assert [shown(answer) for answer in answers] == [MISS, HIT, MISS, MISS]


async def test_fields_under_ignore_part_nobody(open_gateway: OpenGateway, provider: Provider) -> None:
    def asked(user: str) -> Asked:
        return Asked(body=json.dumps({**json.loads(ASK), "user": user}).encode())

    provider.says(CHAT, ANSWER)
    async with open_gateway("cache: [{ttl: 1 h, ignore: [user]}]") as gateway:
        client = await gateway.http1()

        answers = [await asked(user).by(client) for user in ("u-1", "u-2")]

    assert [shown(answer) for answer in answers] == [MISS, HIT]


# -- by header and by rule --------------------------------------------------------------------------------------------


async def test_without_a_rule_and_a_header_there_is_no_cache_and_no_word_of_it(
    gateway: Gateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()

    answers = [await client.post(CHAT, ASK) for _ in range(2)]

    assert [shown(answer) for answer in answers] == [(None, None, "provider", "1")] * 2
    assert [row["cache_status"] for row in await gateway.rows(2)] == [None, None]
    assert len(provider.heard) == 2


@pytest.mark.parametrize("bypass", ["cf-aig-cache-ttl: 0", "cache-control: no-store"])
async def test_who_wants_no_cache_gets_none_and_leaves_none(
    open_gateway: OpenGateway, provider: Provider, bypass: str
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("cache: [{ttl: 1 h}]") as gateway:
        client = await gateway.http1()

        answers = [await client.post(CHAT, ASK, *fields) for fields in ((bypass,), (), (bypass,), ())]

        assert [shown(answer) for answer in answers] == [BYPASS, MISS, BYPASS, HIT]
        assert [row["cache_status"] for row in await gateway.rows(4)] == ["BYPASS", "MISS", "BYPASS", "HIT"]


@pytest.mark.parametrize("refresh", ["cf-aig-skip-cache: true", "cache-control: no-cache"])
async def test_who_skips_the_cache_gets_a_fresh_answer_and_leaves_it_for_the_next(
    gateway: Gateway, provider: Provider, refresh: str
) -> None:
    parrot = Parrot(provider)
    client = await gateway.http1()

    parrot.script = says(told("old"))
    await client.post(CHAT, ASK, KEEP)
    parrot.script = says(told("new"))
    answers = [await client.post(CHAT, ASK, KEEP, *fields) for fields in ((), (refresh,), ())]

    assert [shown(answer) for answer in answers] == [HIT, BYPASS, HIT]
    assert [answer.body for answer in answers] == [told("old"), told("new"), told("new")]


async def test_a_failed_refresh_leaves_the_older_answer_where_it_is(gateway: Gateway, provider: Provider) -> None:
    parrot = Parrot(provider)
    client = await gateway.http1()

    parrot.script = says(told("old"))
    await client.post(CHAT, ASK, KEEP)
    parrot.script = says(b"{}", "500 Oops")
    failed = await client.post(CHAT, ASK, KEEP, "cf-aig-skip-cache: true")
    after = await client.post(CHAT, ASK, KEEP)

    assert (failed.status, shown(failed)) == (500, BYPASS)
    assert (after.body, shown(after)) == (told("old"), HIT)


async def test_an_answer_is_asked_for_again_when_its_time_is_up(
    open_gateway: OpenGateway, provider: Provider, clock: ManualClock
) -> None:
    parrot = Parrot(provider)
    async with open_gateway(clock=clock) as gateway:
        client = await gateway.http1()
        parrot.script = says(told("old"))
        await client.post(CHAT, ASK, KEEP)
        parrot.script = says(told("new"))

        clock.advance(59)
        before = await client.post(CHAT, ASK, KEEP)
        clock.advance(1)
        after = await client.post(CHAT, ASK, KEEP)

    assert (shown(before)[0], before.body) == ("HIT", told("old"))
    assert (shown(after), after.body) == (MISS, told("new"))


async def test_who_wants_it_fresher_than_it_was_kept_for_gets_a_new_one(
    open_gateway: OpenGateway, provider: Provider, clock: ManualClock
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(clock=clock) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, "cf-aig-cache-ttl: 3600")
        clock.advance(30)

        fresher = await client.post(CHAT, ASK, "cf-aig-cache-ttl: 10")

    assert shown(fresher) == MISS


@pytest.mark.parametrize("field", ["cf-aig-cache-ttl: soon", "cf-aig-cache-ttl: 2592001", "cf-aig-skip-cache: yes"])
async def test_a_header_that_does_not_parse_is_refused_by_name(
    gateway: Gateway, provider: Provider, field: str
) -> None:
    answer = await (await gateway.http1()).post(CHAT, ASK, field)

    assert answer.status == 400
    assert field.partition(":")[0] in json.loads(answer.body)["error"]["message"]
    assert provider.heard == []


FAQ = """
identify: {route: {faq: {metadata.feature: faq}}}
cache:
  - {name: later, match: {route: faq}, ttl: 1 h, shadow: true}
  - {name: faq, match: {route: faq}, ttl: 5 m}
"""
TAGGED = 'cf-aig-metadata: {"feature": "faq"}'


async def test_a_rule_keeps_what_it_matches_and_nothing_else(
    open_gateway: OpenGateway, provider: Provider, clock: ManualClock
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(FAQ, clock=clock) as gateway:
        client = await gateway.http1()

        answers = [await client.post(CHAT, ASK, *fields) for fields in ((TAGGED,), (TAGGED,), (), ())]
        clock.advance(301)
        late = await client.post(CHAT, ASK, TAGGED)

        rows = await gateway.rows(5)
        events = await gateway.rows(5, "select room, rule, shadow from policy_events")
    assert [answer.header("cf-aig-cache-status") for answer in answers] == ["MISS", "HIT", None, None]
    assert shown(late) == MISS
    assert [row["route"] for row in rows] == ["faq", "faq", None, None, "faq"]
    assert events == [{"room": "cache", "rule": "later", "shadow": 1}] * 3


async def test_a_header_goes_before_the_rule(open_gateway: OpenGateway, provider: Provider, clock: ManualClock) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("cache: [{ttl: 5 m}]", clock=clock) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, ASK, "cf-aig-cache-ttl: 3600")

        clock.advance(301)

        assert shown(await client.post(CHAT, ASK, "cf-aig-cache-ttl: 3600")) == ("HIT", "301", "cache", "0")
        assert shown(await client.post(CHAT, ASK)) == MISS
