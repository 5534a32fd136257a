"""Requests, tokens and calls at once: how many go through, who is told what, and what comes back."""

import json

import pytest

from mitmgate.answers import our_fields
from mitmgate.counters import counted, is_counted, is_secret, time_said
from mitmgate.dialects.base import Usage
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from support.spending import Till, attempt, call, event, events

BURST = "limit: [{name: burst, per: tenant, requests: 2, every: 1 m}]"
PARALLEL = "limit: [{name: parallel, per: [tenant, model], concurrent: 1}]"
TOKENS = "limit: [{name: tokens, per: tenant, tokens: 100, every: 1 m}]"
ASKING = call().request.input_tokens_estimate
"""Tokens that a call is estimated to send."""


def remaining(x: Exchange) -> str | None:
    return next((value.decode() for name, value in our_fields(x) if name == b"cf-aig-limit-remaining"), None)


def refused(x: Exchange) -> Refusal:
    assert x.refusal is not None
    return x.refusal


# -- who is let through -----------------------------------------------------------------------------------------------


def test_so_many_requests_go_through_and_the_next_one_when_the_first_has_left_the_window() -> None:
    till = Till(BURST)
    first, second = till.admit(call()), till.admit(call())
    till.clock.advance(20)
    third = till.admit(call())
    till.clock.advance(40)
    fourth = till.admit(call())

    assert [x.refusal is None for x in (first, second, third, fourth)] == [True, True, False, True]


def test_what_is_refused_does_not_count() -> None:
    till = Till(BURST)
    for _ in range(2):
        till.spent(call())
    for _ in range(50):
        till.settle(till.admit(call()))
        till.clock.advance(1.1)

    assert till.admit(call()).refusal, "55 s after the burst"
    till.clock.advance(5)
    assert till.admit(call()).refusal is None


def test_each_value_of_per_is_counted_apart_and_a_missing_one_is_a_value_too() -> None:
    till = Till(BURST)
    tenants = ["acme", "acme", "globex", None, None, "acme", None, "globex"]
    through = [till.admit(call(tenant=tenant)).refusal is None for tenant in tenants]

    assert through == [True, True, True, True, True, False, False, True]


def test_a_rule_without_per_counts_all_callers_together() -> None:
    till = Till("limit: [{name: all, requests: 2, every: 1 m}]")

    assert [till.admit(call(tenant=tenant)).refusal is None for tenant in "abc"] == [True, True, False]


def test_a_rule_counts_what_it_matches_alone() -> None:
    till = Till("limit: [{name: big, match: {model: gpt-4o}, unless: {tenant: vip}, requests: 1, every: 1 m}]")
    till.admit(call())

    assert till.admit(call()).refusal
    assert till.admit(call("gpt-4o-mini")).refusal is None
    assert till.admit(call(tenant="vip")).refusal is None


def test_one_refused_by_a_rule_spends_nothing_of_another() -> None:
    till = Till("limit: [{name: wide, requests: 3, every: 1 m}, {name: narrow, per: tenant, requests: 1, every: 1 m}]")
    for _ in range(5):
        till.settle(till.admit(call(tenant="acme")))

    assert till.admit(call(tenant="b")).refusal is None
    assert till.admit(call(tenant="c")).refusal is None
    assert refused(till.admit(call(tenant="d"))).rule == "wide"


def test_a_call_that_the_tokens_refuse_gives_its_request_back() -> None:
    till = Till("limit: [{name: burst, requests: 1, every: 1 m}, {name: tokens, tokens: 100, every: 1 m}]")
    large = till.settle(till.admit(call(max_tokens=500)))
    small = till.admit(call(max_tokens=10))

    assert refused(large).rule == "tokens"
    assert small.refusal is None


@pytest.mark.parametrize(
    ("door", "path", "counted"),
    [
        ("proxy", "/v1/chat/completions", True),
        ("base-url", "/v1/embeddings", True),
        ("replay", "/v1/chat/completions", False),
        ("gateway", "/v1/chat/completions", False),
        ("proxy", "/v1/models", False),
    ],
)
def test_only_calls_of_a_model_from_outside_are_counted(door: str, path: str, counted: bool) -> None:
    x = call(path=path)
    x.door = door  # type: ignore[assignment]

    assert is_counted(x) is counted
    till = Till("limit: [{name: one, requests: 1, every: 1 m}]")
    till.admit(call())
    assert (till.admit(x).refusal is not None) is counted


# -- together with tokens and money -----------------------------------------------------------------------------------

ALL_THREE = """
limit: [{name: burst, requests: 1, every: 1 m}, {name: tokens, tokens: 10000, every: 1 m}]
budget: [{name: day, cost: 1 USD, every: day}]
"""


def used(till: Till, rule: str) -> int:
    [standing] = till.ledger.standing([till.limit.counters[rule].charge(lambda _: None, 0)])
    return standing.used


@pytest.mark.parametrize(
    ("rules", "controls", "before"),
    [
        ("", {}, 0),
        ("", {"metadata": {"a": 1}}, 0),
        ("cache: [{match: {model: other}, ttl: 1 h}]", {}, 0),
        ("cache: [{match: {model: gpt-4o}, ttl: 1 h}]", {}, 1),
        ("", {"cache-ttl": 60}, 1),
        ("", {"skip-cache": True}, 1),
    ],
)
def test_a_request_is_counted_before_the_cache_only_where_the_cache_has_a_say(
    rules: str, controls: dict[str, object], before: int
) -> None:
    till = Till(ALL_THREE + rules)
    x = call()
    x.controls = controls
    till.limit.admit(x)
    assert used(till, "burst") == before

    till.budget.admit(x)
    assert used(till, "burst") == 1
    assert x.refusal is None


def test_where_nothing_else_is_counted_a_request_is_at_once() -> None:
    till = Till(BURST)
    x = call()
    till.limit.admit(x)
    assert x.limit_standing
    assert x.limit_standing.used == 1


def test_of_a_full_limit_and_a_spent_budget_the_limit_is_named_and_both_are_recorded() -> None:
    till = Till(ALL_THREE.replace("1 USD", "0.000001 USD"))
    till.ledger.reserve("before", [till.limit.counters["burst"].charge(lambda _: None, 1)])
    x = till.admit(call())
    assert refused(x).rule == "burst"
    assert [rule for _, rule, _, _ in events(x)] == ["burst", "day"]


# -- calls at once ----------------------------------------------------------------------------------------------------


def ends_refused_by_another_room(x: Exchange) -> None:
    x.refuse(Refusal(403, "permission", "no"))


def ends_before_anything_was_sent(x: Exchange) -> None:
    x.how = "client_left"


def ends_by_a_clock(x: Exchange) -> None:
    attempt(x)
    x.how = "timeout"


def ends_with_an_error(x: Exchange) -> None:
    attempt(x, status=500)
    x.how, x.status = "end", 500


def ends_in_the_middle(x: Exchange) -> None:
    attempt(x, Usage(10, 5))
    x.how, x.status = "client_left", 200


@pytest.mark.parametrize(
    "ends",
    [
        ends_refused_by_another_room,
        ends_before_anything_was_sent,
        ends_by_a_clock,
        ends_with_an_error,
        ends_in_the_middle,
    ],
)
def test_a_slot_comes_back_on_every_way_out(ends: object) -> None:
    till = Till(PARALLEL)
    x = till.admit(call())
    assert till.admit(call()).refusal

    ends(x)  # type: ignore[operator]
    till.settle(x)

    assert till.admit(call()).refusal is None
    assert till.admit(call()).refusal


def test_a_full_slot_is_refused_at_once_and_may_be_asked_for_in_a_second() -> None:
    till = Till(PARALLEL)
    till.admit(call())
    refusal = refused(till.admit(call()))

    assert (refusal.status, refusal.retry_after_s, refusal.should_retry) == (429, 1, True)
    assert refusal.message == (
        "Limit parallel is full: 1 call at once for tenant acme and model gpt-4o, 0 left. "
        "It works again when one of them has ended; try in 1 s (rule parallel, policy.yaml:1)."
    )
    assert till.admit(call("gpt-4o-mini")).refusal is None


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_five_calls_of_a_hundred_tokens_against_a_hundred_admit_exactly_one() -> None:
    till = Till(TOKENS)
    calls = [till.admit(call(max_tokens=100 - ASKING)) for _ in range(5)]

    assert [x.refusal is None for x in calls] == [True, False, False, False, False]


def test_what_was_not_used_is_given_back_and_what_was_used_is_exact() -> None:
    till = Till(TOKENS)
    till.spent(call(max_tokens=80), 30, 20)
    second = till.admit(call(max_tokens=50 - ASKING))
    assert second.refusal is None
    assert remaining(second) == "0; rule=tokens; unit=tokens; reset=60"
    till.answer(second, 20, 29)

    assert till.admit(call(max_tokens=1)).refusal
    till.clock.advance(60)
    assert till.admit(call(max_tokens=80)).refusal is None


def test_more_than_was_reserved_is_counted_and_nobody_is_cut_off() -> None:
    till = Till(TOKENS)
    till.spent(call(max_tokens=10), 400, 100)
    late = till.admit(call(max_tokens=10))

    assert refused(late).retry_after_s == 60
    assert remaining(late) == "0; rule=tokens; unit=tokens; reset=60"


def test_a_provider_that_fails_takes_no_tokens_but_the_request() -> None:
    till = Till("limit: [{name: tokens, tokens: 100, every: 1 m}, {name: burst, requests: 2, every: 1 m}]")
    x = till.admit(call(max_tokens=80))
    attempt(x, status=500)
    x.how, x.status = "end", 500
    till.settle(x)
    second = till.admit(call(max_tokens=80))

    assert second.refusal is None
    assert remaining(second) == "0; rule=burst; unit=requests; reset=60"


def test_every_attempt_counts_that_used_something() -> None:
    till = Till("limit: [{name: tokens, tokens: 100, every: 1 m}]")
    x = till.admit(call(max_tokens=10))
    attempt(x, Usage(20, 10))
    till.answer(x, 20, 10)

    assert remaining(till.admit(call(max_tokens=40 - ASKING))) == "0; rule=tokens; unit=tokens; reset=60"
    assert till.admit(call(max_tokens=1)).refusal


def test_a_call_that_never_fits_is_told_so_and_not_to_come_again() -> None:
    refusal = refused(Till(TOKENS).admit(call(max_tokens=2000)))

    assert (refusal.retry_after_s, refusal.should_retry) == (None, False)
    assert refusal.message == (
        f"Limit tokens has no room for this call, which may use {2000 + ASKING:,} tokens: 100 tokens every 1 m for "
        "tenant acme, 100 left. So large a call never fits: send less, or ask for a shorter answer "
        "(rule tokens, policy.yaml:1)."
    )


# -- what a client is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "should_retry"),
    [("1 m", True), ("59 s", True), ("61 s", None), ("1 h", None), ("3601 s", False), ("30 d", False)],
)
def test_whether_to_retry_depends_on_how_long_it_takes(every: str, should_retry: bool | None) -> None:
    till = Till(f"limit: [{{name: one, requests: 1, every: {every}}}]")
    till.admit(call())

    assert refused(till.admit(call())).should_retry is should_retry


def test_a_refusal_names_rule_line_caller_and_time() -> None:
    till = Till("# a comment\nlimit:\n  - {name: burst, per: tenant, requests: 1, every: 1 m}")
    till.admit(call())
    till.clock.advance(22.6)
    x = till.admit(call())
    refusal = refused(x)

    assert refusal == Refusal(
        429,
        "rate_limit",
        "Limit burst is full: 1 request every 1 m for tenant acme, 0 left. It works again in 38 s "
        "(rule burst, policy.yaml:3).",
        source="rate-limit",
        error_type="rate_limit",
        rule="burst",
        where="policy.yaml:3",
        retry_after_s=37.4,
        should_retry=True,
    )
    assert x.source == "rate-limit"
    assert remaining(x) == "0; rule=burst; unit=requests; reset=38"
    assert events(x) == [("limit", "burst", "refuse", False)]
    assert event(x).detail == "1 request every 1 m for tenant acme, 0 left"


DAY, MINUTE = "{name: day, requests: 1, every: day}", "{name: minute, requests: 1, every: 1 m}"


@pytest.mark.parametrize("rules", [(DAY, MINUTE), (MINUTE, DAY)])
def test_of_several_full_rules_the_one_that_takes_longest_is_named(rules: tuple[str, str]) -> None:
    till = Till(f"limit: [{', '.join(rules)}]")
    till.admit(call())
    x = till.admit(call())

    assert refused(x).rule == "day"
    assert sorted(events(x)) == [("limit", "day", "refuse", False), ("limit", "minute", "refuse", False)]


@pytest.mark.parametrize("every", ["1 m", "month"])
def test_one_that_never_has_room_takes_longest(every: str) -> None:
    till = Till(f"limit: [{{name: used, tokens: 3000, every: {every}}}, {{name: tiny, tokens: 1000, every: 1 m}}]")
    till.spent(call(max_tokens=100), 2000, 500)
    x = till.admit(call(max_tokens=2000))

    assert events(x) == [("limit", "used", "refuse", False), ("limit", "tiny", "refuse", False)]
    assert (refused(x).rule, refused(x).retry_after_s) == ("tiny", None)


def test_the_header_names_the_rule_with_the_smallest_share_left() -> None:
    till = Till(
        "limit: [{name: a, requests: 10, every: 1 m}, {name: b, concurrent: 4}, {name: c, tokens: 3000, every: day}]"
    )
    first = till.admit(call(max_tokens=1000 - ASKING))
    second = till.admit(call(max_tokens=1000 - ASKING))

    assert remaining(first) == "2000; rule=c; unit=tokens; reset=6400"
    assert remaining(second) == "1000; rule=c; unit=tokens; reset=6400"


def test_a_policy_without_limits_tells_nothing() -> None:
    assert remaining(Till("usage: ask").admit(call())) is None


# -- shadow -----------------------------------------------------------------------------------------------------------


def test_a_shadow_counts_and_says_and_lets_pass() -> None:
    till = Till("limit: [{name: tight, shadow: true, requests: 1, every: 1 m}]")
    first, second = till.admit(call()), till.admit(call())

    assert (first.refusal, second.refusal) == (None, None)
    assert (events(first), events(second)) == ([], [("limit", "tight", "refuse", True)])
    assert remaining(second) is None


# -- what is counted under --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tenant", None, ""),
        ("tenant", "acme", "acme"),
        ("metadata.seats", 3, "3"),
        ("metadata.beta", True, "true"),
        ("stream", False, "false"),
        ("header.x-team", "blue", "blue"),
    ],
)
def test_a_value_is_counted_under_its_text(field: str, value: object, said: str) -> None:
    assert counted(value, is_secret(field)) == said


@pytest.mark.parametrize("field", ["header.authorization", "header.x-api-key", "header.cookie"])
def test_a_key_is_never_part_of_a_counters_name(field: str) -> None:
    till = Till(f"limit: [{{name: keys, per: {field}, requests: 1, every: 1 m}}]")
    one, other, again = call(), call(), call()
    for x, key in ((one, "sk-secret-1"), (other, "sk-secret-2"), (again, "sk-secret-1")):
        x.headers[field.removeprefix("header.")] = key
        till.admit(x)

    assert [x.refusal is None for x in (one, other, again)] == [True, True, False]
    assert "sk-secret" not in refused(again).message
    assert all("sk-secret" not in json.dumps(repr(x.limit_standing)) for x in (one, other, again))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.2, "1 s"), (37, "37 s"), (60, "1 m"), (124.1, "2 m 5 s"), (6390, "1 h 47 m"), (270_000, "3 d 3 h")],
)
def test_times_are_said_in_two_units_and_never_too_short(seconds: float, text: str) -> None:
    assert time_said(seconds) == text
