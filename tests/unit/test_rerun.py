"""Recorded calls go through a new policy in their own time, and what nobody can know is counted, not guessed."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mitmgate.clock import ManualClock
from mitmgate.dialects.base import Usage
from mitmgate.policy import Policy, loads
from mitmgate.pricing import PRICES
from mitmgate.rehearsal import rehearsal
from mitmgate.rerun import Rerun
from mitmgate.rerun_outcome import Outcome
from mitmgate.rerun_tally import Tally
from mitmgate.store import recordings
from mitmgate.store.reader import open_reader
from mitmgate.store.rows import Row, Rows
from mitmgate.store.selection import EVERYTHING, Window
from support.sample_traces import at, attempt, call, database, event, id_of

PRICED = {
    "price_detail": "openai/gpt-4o",
    "price_version": "genai-prices",
    "how": "end",
    "answer_bytes": 500,
    "target": "openai",
}
SENT = 2_500 * 100 + 10_000 * 20
"""Nano-dollars of 100 tokens in and 20 out of gpt-4o."""


def sent(n: int, minutes: float | None = None, **columns: Any) -> Row:
    """Return an ordinary call that gpt-4o has answered."""
    plain = {
        "cache_read_input_tokens": 0,
        "cost_nanousd": SENT,
        "request_sha256": hashlib.sha256(b"%d" % n).hexdigest(),
    }
    return call(n, minutes, **{**PRICED, **plain, **columns})


def same(n: int, minutes: float | None = None, **columns: Any) -> Row:
    """Return the same call as any other of this kind: its body was always the same."""
    return sent(n, minutes, **{"request_sha256": "5a" * 32, **columns})


def hit(n: int, minutes: float | None = None, age_s: int = 60, **columns: Any) -> Row:
    """Return one that came out of the cache."""
    notes = json.dumps([f"cache: answer 0123456789ab, {age_s} s old"])
    cached = {"source": "cache", "cache_status": "HIT", "attempts": 0, "cost_nanousd": 0, "saved_nanousd": SENT}
    return same(n, minutes, **{**cached, "notes": notes, **columns})


def refused(n: int, minutes: float | None = None, source: str = "rate-limit", **columns: Any) -> Row:
    nothing = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens", "response_model"))
    ended = {"source": source, "status_code": 429, "terminal": "refused", "attempts": 0, "cost_nanousd": 0}
    return sent(n, minutes, **{**nothing, **ended, "usage_source": "none", "price_detail": None, **columns})


def payload(of: int, kind: str, body: object) -> Row:
    text = body if isinstance(body, str) else json.dumps(body)
    return {"exchange_id": id_of(of), "kind": kind, "content_type": "application/json", "encoding": "identity",
            "bytes": len(text), "body": text}  # fmt: skip


class Run:
    """The outcomes of a rerun, and what was not known."""

    def __init__(self, outcomes: list[Outcome], rerun: Rerun, tally: Tally) -> None:
        self.outcomes, self.rerun, self.tally = outcomes, rerun, tally
        self.unknown = dict(rerun.unknown)

    @property
    def now(self) -> list[str]:
        return [outcome.now for outcome in self.outcomes]

    def by(self) -> list[tuple[str, str] | None]:
        return [outcome.refused_by for outcome in self.outcomes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "traces.db"


async def rerun(path: Path, policy: str, rows: Rows, policies: dict[str, Policy] | None = None) -> Run:
    """Run what is in *rows* through *policy*."""
    database(path, rows)
    made = loads(policy, "new.yaml", {"KEY": "sk-1"})
    with closing(open_reader(path)) as conn:
        tally = Tally(recordings.acted(conn, Window(), EVERYTHING))
        calls = list(recordings.calls(conn, Window(), EVERYTHING, frozenset({"request", "response"})))
    clock = ManualClock(started_wall=datetime.fromisoformat(calls[0]["started_at"]).timestamp())
    with rehearsal(made, clock, bytes(32)) as rooms:
        running = Rerun(made, rooms, clock, policies)
        outcomes = []
        for one in calls:
            outcomes.append(await running.take(one))
            tally.add(outcomes[-1])
        running.end()
    return Run(outcomes, running, tally)


def rows(*calls: Row, **more: list[Row]) -> Rows:
    return Rows(exchanges=list(calls), **more)


# -- limits and budgets, in the calls' own time -----------------------------------------------------------------------


async def test_windows_slide_by_the_times_at_which_calls_came(path: Path) -> None:
    limit = "limit: [{name: burst, per: tenant, requests: 2, every: 10 m}]"

    run = await rerun(path, limit, rows(*(sent(n, minutes) for n, minutes in enumerate((0, 1, 2, 10.5, 11, 11.5)))))

    assert run.now == ["sent", "sent", "refused", "sent", "sent", "refused"]
    assert run.by()[2] == ("limit", "burst")


async def test_calls_under_way_hold_their_slots_as_long_as_they_took(path: Path) -> None:
    limit = "limit: [{name: parallel, concurrent: 1}]"
    long = {"duration_ms": 90_000.0}

    run = await rerun(path, limit, rows(sent(0, 0, **long), sent(1, 1, **long), sent(2, 1.6, **long)))

    assert run.now == ["sent", "refused", "sent"]


async def test_a_calendar_turns_in_the_policys_timezone_and_cost_is_what_it_was(path: Path) -> None:
    """The first two calls come right before midnight in Zürich, the others an hour later."""
    policy = f"timezone: Europe/Zurich\nbudget: [{{name: day, cost: {2 * SENT / 1e9:.6f} USD, every: day}}]"
    calls = [sent(n, 13 * 60 + 58 + minutes, input_tokens=100) for n, minutes in enumerate((0, 1, 61, 62, 63))]

    run = await rerun(path, policy, rows(*calls))

    assert run.now == ["refused"] * 5, "each is estimated with 1,000 tokens out, which does not fit"

    generous = policy.replace("every: day", "every: day, hard: record, soft: 90 %")
    told = await rerun(path.with_name("more.db"), generous, rows(*calls))
    actions = [[event.action for event in outcome.events if event.room == "budget"] for outcome in told.outcomes]
    assert actions == [["hard"], ["hard", "soft"], ["hard"], ["hard", "soft"], ["hard"]]


async def test_a_downgrade_is_priced_at_the_cheaper_model_and_settles_at_that_price(path: Path) -> None:
    step = "downgrade: {at: 80 %, to: {model: gpt-4o-mini}}"
    policy = f"budget: [{{name: day, cost: 0.001 USD, every: day, hard: record, {step}}}]"

    run = await rerun(path, policy, rows(*(sent(n) for n in range(4))))

    cheap = 150 * 100 + 600 * 20
    assert [outcome.cost_now for outcome in run.outcomes] == [SENT, SENT, cheap, cheap]
    assert [outcome.downgraded for outcome in run.outcomes] == [False, False, True, True]
    total = run.tally.total
    assert (total.downgraded, total.moved, total.saved_by_models_nanousd) == (2, 2, 2 * (SENT - cheap))


# -- places -----------------------------------------------------------------------------------------------------------

ROUTED = """
route: [{name: eu, match: {tenant: acme}, try: [eu]}]
targets: {eu: {provider: openai, base_url: "https://eu.example/v1", headers: {authorization: env:KEY}}}
"""


async def test_another_first_place_is_a_move_and_the_same_one_is_none(path: Path) -> None:
    calls = rows(sent(0), sent(1, tenant="globex"), sent(2), attempts=[attempt(1, 2, target="eu")])

    run = await rerun(path, ROUTED, calls)

    assert [outcome.moved for outcome in run.outcomes] == [True, False, False]
    assert run.tally.rules["route", "eu", "move", False].now == 1
    assert (run.tally.total.cost_then_nanousd, run.tally.total.cost_now_nanousd) == (3 * SENT, 3 * SENT)


async def test_a_model_is_the_same_by_whichever_name(path: Path) -> None:
    calls = rows(sent(0, request_model="gpt-4o-latest"), sent(1, response_model="gpt-4o-mini-2024-07-18",
                 price_detail="openai/gpt-4o-mini"))  # fmt: skip

    run = await rerun(path, "version: 1", calls)

    assert [outcome.moved for outcome in run.outcomes] == [False, True], "a rule of then had sent the second elsewhere"


async def test_a_host_that_the_policy_does_not_know_is_unseen(path: Path) -> None:
    run = await rerun(path, "version: 1", rows(sent(0, host="old.example")))

    assert run.now == ["unseen"]
    assert (run.tally.total.unseen, run.tally.total.cost_now_nanousd) == (1, SENT)
    assert list(run.unknown) == ["its host is no provider's in this policy: it would be tunnelled"]


# -- the cache --------------------------------------------------------------------------------------------------------

CACHE = "cache: [{name: all, ttl: 10 m, scope: [tenant]}]"


async def test_a_call_is_a_hit_while_an_answer_to_the_same_is_kept(path: Path) -> None:
    calls = rows(same(0, 0), same(1, 5), same(2, 10.5), same(3, 11, tenant="globex"), same(4, 12), sent(5, 13))

    run = await rerun(path, CACHE, calls)

    assert run.now == ["sent", "hit", "sent", "sent", "hit", "sent"]
    total = run.tally.total
    assert (total.hits, total.saved_by_hits_nanousd) == (2, 2 * SENT)
    assert run.tally.rules["cache", "all", "hit", False].now == 2


async def test_a_call_that_comes_while_the_same_is_under_way_shares_its_answer(path: Path) -> None:
    run = await rerun(path, CACHE, rows(same(0, 0, duration_ms=60_000.0), same(1, 0.5)))

    assert run.now == ["sent", "hit"]


BAD = [
    {"status_code": 500},
    {"terminal": "truncated", "how": "cut"},
    {"finish_reasons": '["length"]'},
    {"error_type": "error_event:overloaded"},
]


@pytest.mark.parametrize("columns", BAD, ids=lambda columns: next(iter(columns)))
async def test_what_was_no_good_answer_is_not_kept(path: Path, columns: dict[str, Any]) -> None:
    run = await rerun(path, CACHE, rows(same(0, 0, **columns), same(1, 1)))

    assert run.now == ["sent", "sent"]


async def test_a_hit_of_then_without_a_rule_is_lost(path: Path) -> None:
    policies = {"old": loads("cache: [{name: all, ttl: 1 h}]", "old.yaml", {})}
    calls = rows(same(0, 0, cache_status="MISS", policy_sha256="old"), hit(1, 1, policy_sha256="old"))

    run = await rerun(path, "version: 1", calls, policies)

    total = run.tally.total
    assert (run.now, total.lost, total.hits) == (["sent", "sent"], 1, 0)
    assert (total.cost_now_nanousd, total.saved_by_hits_nanousd) == (2 * SENT, -SENT)


async def test_a_hit_by_a_header_stays_one_whatever_the_rules(path: Path) -> None:
    """No rule of then had the cache look, so a header did, and it comes again."""
    policies = {"old": loads("version: 1", "old.yaml", {})}
    miss, bypass = ({"cache_status": status, "policy_sha256": "old"} for status in ("MISS", "BYPASS"))
    calls = rows(same(0, 0, **miss), hit(1, 1, policy_sha256="old"), same(2, 30, **miss), same(3, 31, **bypass))

    run = await rerun(path, "limit: [{name: few, requests: 2, every: 1 h}]", calls, policies)

    assert run.now == ["sent", "hit", "refused", "refused"], "a hit counts as a request"


async def test_an_answer_that_was_kept_before_the_first_call_is_there(path: Path) -> None:
    run = await rerun(path, CACHE, rows(hit(0, 0, age_s=300), hit(1, 4), hit(2, 6)))

    assert run.now == ["hit", "hit", "sent"], "ten minutes after it was kept it is gone"


async def test_bodies_that_were_masked_are_told_apart_by_what_they_had_been(path: Path) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "[secret]"}]}
    calls = rows(sent(0), sent(1), same(2), same(3), payloads=[payload(n, "request", body) for n in range(4)])

    run = await rerun(path, CACHE, calls)

    assert run.now == ["sent", "sent", "sent", "hit"]


# -- doors ------------------------------------------------------------------------------------------------------------


async def test_a_call_that_was_refused_may_be_let_in_and_counts_what_it_would_reserve(path: Path) -> None:
    limit = "limit: [{name: tokens, tokens: 1500, every: 1 h}]"

    run = await rerun(path, limit, rows(refused(0), refused(1)))

    assert run.now == ["sent", "refused"]
    assert [outcome.let_in for outcome in run.outcomes] == [True, False]
    assert run.unknown["it was refused then: it counts what would be reserved for it"] == 1


async def test_a_tag_that_is_required_and_missing_refuses(path: Path) -> None:
    run = await rerun(path, "identify: {require: [metadata.team]}", rows(sent(0), sent(1, metadata='{"team": "a"}')))

    assert (run.now, run.by()[0]) == (["refused", "sent"], ("identify", "require"))


async def test_a_key_is_known_by_its_name_and_permits_the_models_of_the_new_policy(path: Path) -> None:
    auth = "auth: {keys: [{name: app, key: env:KEY, models: [gpt-4o-mini]}]}"

    run = await rerun(path, auth, rows(sent(0, key_name="app"), sent(1)))

    assert (run.now, run.by()[0]) == (["refused", "sent"], ("auth", "app"))
    assert run.unknown["it came without a key of the gateway's, which auth asks for: taken for one that has one"] == 1


async def test_shadows_are_told_and_touch_nothing(path: Path) -> None:
    limit = "limit: [{name: tried, requests: 1, every: 1 m, shadow: true}]"

    run = await rerun(path, limit, rows(sent(0, 0), sent(1, 0.5)))

    assert (run.now, run.tally.total.changed) == (["sent", "sent"], 0)
    assert run.tally.rules["limit", "tried", "refuse", True].now == 1


# -- bodies -----------------------------------------------------------------------------------------------------------

GUARD = "guard: [{name: pii, find: [email], in: [request, response], then: %s}]"


def asks(text: str) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}


def says(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"model": "gpt-4o", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def kept(n: int, question: str, answer: str = "hello") -> Iterator[Row]:
    yield payload(n, "request", asks(question))
    yield payload(n, "response", says(answer))


def whole(n: int, question: str, **columns: Any) -> Row:
    return sent(n, request_sha256=hashlib.sha256(json.dumps(asks(question)).encode()).hexdigest(), **columns)


async def test_guards_look_at_bodies_of_both_sides(path: Path) -> None:
    bodies = [*kept(0, "hi"), *kept(1, "I am joe@corp.example.com"), *kept(2, "who?", "ask joe@corp.example.com")]
    calls = rows(whole(0, "hi"), whole(1, "I am joe@corp.example.com"), whole(2, "who?"), payloads=bodies)

    flagged = await rerun(path, GUARD % "flag", calls)
    blocked = await rerun(path.with_name("more.db"), GUARD % "block", calls)

    assert [outcome.guarded for outcome in flagged.outcomes] == [False, True, True]
    assert (blocked.now, blocked.by()[1:]) == (["sent", "refused", "refused"], [("guard", "pii")] * 2)
    assert [outcome.cost_now for outcome in blocked.outcomes] == [SENT, 0, SENT], "an answer is paid, seen or not"
    assert flagged.unknown == blocked.unknown == {}


async def test_what_a_guard_found_then_is_found_again_though_nobody_can_see_it_any_more(path: Path) -> None:
    then = [event(0, room="guard", rule="pii", action="block", detail="request: 1 email")]
    calls = rows(refused(0, source="guard"), policy_events=then, payloads=list(kept(0, "I am [email]")))

    same_rule = await rerun(path, GUARD % "block", calls)
    no_rule = await rerun(path.with_name("more.db"), "version: 1", calls)

    assert (same_rule.now, same_rule.by()) == (["refused"], [("guard", "pii")])
    assert same_rule.tally.total.changed == 0
    assert (no_rule.now, no_rule.outcomes[0].let_in) == (["sent"], True)


async def test_shape_counts_where_it_changes_a_body_and_not_where_there_is_none(path: Path) -> None:
    shape = "shape: [{name: long, then: {keep_last: 100}}]"
    said = [{"role": role, "content": "word " * 200} for role in ("user", "assistant", "user", "assistant", "user")]
    body = payload(0, "request", {"model": "gpt-4o", "messages": said})

    run = await rerun(path, shape, rows(sent(0), sent(1, input_tokens=1000), payloads=[body]))

    assert [outcome.shaped for outcome in run.outcomes] == [True, False]
    assert run.unknown["its request was not kept: guard, shape and the like had nothing to look at"] == 1


async def test_bodies_that_are_not_there_are_counted_where_a_rule_would_look(path: Path) -> None:
    calls = rows(sent(0), whole(1, "hi"), payloads=list(kept(1, "hi")))

    with_guard = await rerun(path, GUARD % "flag", calls)
    without = await rerun(path.with_name("more.db"), "version: 1", calls)

    assert with_guard.unknown == {
        "its request was not kept: guard, shape and the like had nothing to look at": 1,
        "its answer was not kept: guards on answers had nothing to look at": 1,
    }
    assert without.unknown == {}


async def test_a_rule_that_asks_for_a_header_is_counted_where_only_that_decides(path: Path) -> None:
    limit = "limit: [{name: one, match: {tenant: acme, header.x-team: a}, requests: 1, every: 1 h}]"

    run = await rerun(path, limit, rows(sent(0), sent(1), sent(2, tenant="globex")))

    assert run.now == ["sent", "sent", "sent"]
    assert run.unknown == {"limit one asks for header.x-team, which rows do not have: taken for absent": 2}


async def test_a_target_that_a_rule_asks_is_named_and_the_call_goes_on(path: Path) -> None:
    policy = """
guard: [{name: injection, then: {ask: judge}}]
targets: {judge: {provider: openai, base_url: "https://judge.example/v1", headers: {authorization: env:KEY}}}
"""
    run = await rerun(path, policy, rows(whole(0, "hi"), payloads=list(kept(0, "hi"))))

    assert run.now == ["sent"]
    assert run.unknown["guard injection: asks judge, and nobody knows what it would have said"] == 1


# -- sums -------------------------------------------------------------------------------------------------------------


async def test_money_is_told_by_where_it_comes_from_and_adds_up(path: Path) -> None:
    policy = """
limit: [{name: burst, per: tenant, requests: 3, every: 1 h}]
cache: [{name: all, ttl: 1 h}]
budget:
  - name: day
    per: tenant
    cost: 0.0006 USD
    every: day
    hard: record
    downgrade: {at: 70 %, to: {model: gpt-4o-mini}}
"""
    calls = [same(0), same(1), sent(2), sent(3), hit(4, tenant="globex", age_s=9000), refused(5, tenant="globex"),
             sent(6, tenant="globex", cost_nanousd=None, price_detail=None, response_model="unknown-1")]  # fmt: skip

    run = await rerun(path, policy, rows(*calls))

    total = run.tally.total
    assert (total.hits, total.refused, total.downgraded, total.lost, total.let_in) == (1, 1, 3, 1, 1)
    told = total.saved_by_hits_nanousd + total.saved_by_models_nanousd + total.refused_nanousd - total.let_in_nanousd
    assert total.cost_then_nanousd - total.cost_now_nanousd == told
    by_tenant = run.tally.tenants
    assert sum(sums.cost_now_nanousd for sums in by_tenant.values()) == total.cost_now_nanousd
    assert {tenant: sums.calls for tenant, sums in by_tenant.items()} == {"acme": 4, "globex": 3}
    assert run.unknown["no price is known for it: its cost is left out"] == 1


async def test_calls_that_the_gateway_made_itself_are_no_part_of_it(path: Path) -> None:
    run = await rerun(path, "version: 1", rows(sent(0, door="gateway"), sent(1, door="proxy")))

    assert [outcome.call["id"] for outcome in run.outcomes] == [id_of(1)]


async def test_what_was_recorded_is_read_in_order_whatever_the_page(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "PAGE", 2)
    times = [3, 1, 2, 2, 2, 0, 5]
    database(path, rows(*(sent(n, minutes) for n, minutes in enumerate(times))))

    with closing(open_reader(path)) as conn:
        calls = list(recordings.calls(conn, Window(since=at(1), until=at(5)), EVERYTHING))
        counted = recordings.count(conn, Window(since=at(1), until=at(5)), EVERYTHING)

    assert [one["id"] for one in calls] == [id_of(n) for n in (1, 2, 3, 4, 0)]
    assert counted == 5


def test_the_sample_calls_cost_what_the_table_says() -> None:
    usage = Usage(input_tokens=100, output_tokens=20)
    assert PRICES.price("openai", "", ("gpt-4o",), usage, datetime(2026, 11, 24, tzinfo=UTC)).cost_nanousd == SENT
