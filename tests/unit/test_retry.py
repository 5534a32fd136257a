"""After a failed attempt the gateway waits, changes target, or gives up."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from mitmgate.clock import ManualClock
from mitmgate.exchange import Leg
from mitmgate.policy.values import CAUSES, Causes, Retry
from mitmgate.retry import (
    FREE_RETRIES,
    RATIO_S,
    SPREAD_S,
    Failure,
    GiveUp,
    NextTarget,
    Retries,
    Wait,
    holds,
    next_step,
    own_wait,
    rule_for,
    wait_for,
)

RULE = Retry(attempts=3, within_s=45)
ONCE = Retry()
BUSY = Failure(429, attempt_on_target=1, elapsed_s=0.2, targets_left=0)
LAST = replace(BUSY, attempt_on_target=3)
LEG = Leg("sa", None, "https", "aoai-sa.example", 443, "/", [])


@pytest.mark.parametrize(
    ("failure", "step"),
    [
        (BUSY, Wait(0.25)),
        (replace(BUSY, attempt_on_target=2), Wait(0.5)),
        (replace(BUSY, named_s=20), Wait(20, named=True)),
        (replace(BUSY, named_s=20, targets_left=1), Wait(20, named=True)),
        (replace(BUSY, cause="reset"), Wait(0.25)),
        (replace(BUSY, cause="error_event"), Wait(0.25)),
        (replace(BUSY, elapsed_s=44.75), Wait(0.25)),
        (replace(BUSY, elapsed_s=44.76), GiveUp("waiting 0.2 s would pass the limit of 45 s")),
        (replace(BUSY, named_s=60), GiveUp("waiting 60.0 s would pass the limit of 45 s")),
        (replace(BUSY, named_s=60, targets_left=1), NextTarget()),
        (replace(BUSY, named_s=60, attempt_on_target=2), GiveUp("waiting 60.0 s would pass the limit of 45 s", False)),
        (LAST, GiveUp("all 3 attempts failed", False)),
        (replace(LAST, targets_left=1), NextTarget()),
        (replace(BUSY, final=True), GiveUp("no wait cures this failure", False)),
        (replace(BUSY, final=True, targets_left=1), NextTarget()),
        (replace(BUSY, named_s=3601), GiveUp("no wait cures this failure", False)),
        (replace(BUSY, cause=400), GiveUp("the same request would get 400 again")),
        (replace(BUSY, cause=400, targets_left=1), GiveUp("the same request would get 400 again")),
        (replace(BUSY, cause=400, attempt_on_target=2), GiveUp("the same request would get 400 again", False)),
        (replace(BUSY, cause=418), GiveUp("the policy does not retry 418")),
        (replace(BUSY, cause=418, fell_back=True), GiveUp("the policy does not retry 418", False)),
    ],
)
def test_next_step(failure: Failure, step: object) -> None:
    assert next_step(RULE, CAUSES, failure, random=0.5, may_retry=True) == step


@pytest.mark.parametrize(
    ("failure", "step"),
    [
        (BUSY, GiveUp("the only attempt failed")),
        (replace(BUSY, final=True), GiveUp("no wait cures this failure")),
        (replace(BUSY, targets_left=1), NextTarget()),
        (replace(BUSY, fell_back=True), GiveUp("the only attempt failed", False)),
    ],
)
def test_where_no_rule_retries_the_answer_stays_as_it_came(failure: Failure, step: object) -> None:
    assert next_step(ONCE, CAUSES, failure, random=0.5, may_retry=True) == step


@pytest.mark.parametrize("cause", [400, 401, 402, 403, 404, 413, 422])
def test_what_would_fail_again_is_never_retried_whatever_the_policy_says(cause: int) -> None:
    rule = replace(RULE, retry_on=frozenset({cause, "4xx"}))
    assert next_step(rule, frozenset({"4xx"}), replace(BUSY, cause=cause, targets_left=1), 0.5, True) == NextTarget()
    assert isinstance(next_step(rule, frozenset(), replace(BUSY, cause=cause, targets_left=1), 0.5, True), GiveUp)


@pytest.mark.parametrize(
    ("failure", "fall_back_on", "step"),
    [
        (BUSY, CAUSES, GiveUp("the target has had its 20% of retries for now", False)),
        (replace(BUSY, targets_left=1), CAUSES, NextTarget()),
        (
            replace(BUSY, targets_left=1),
            frozenset({503}),
            GiveUp("the target has had its 20% of retries for now", False),
        ),
        (replace(BUSY, cause=418), CAUSES, GiveUp("the policy does not retry 418")),
    ],
)
def test_without_room_in_the_ratio_nobody_is_to_retry(failure: Failure, fall_back_on: Causes, step: object) -> None:
    assert next_step(RULE, fall_back_on, failure, random=0.5, may_retry=False) == step


def test_the_ratio_says_nothing_of_what_would_not_be_retried_anyway() -> None:
    rule = replace(RULE, retry_on=frozenset({"4xx"}))
    step = next_step(rule, CAUSES, replace(BUSY, cause=400), random=0.5, may_retry=False)
    assert step == GiveUp("the same request would get 400 again")


@pytest.mark.parametrize(
    ("causes", "cause", "held"),
    [
        (CAUSES, 429, True),
        (CAUSES, 500, True),
        (CAUSES, 529, True),
        (CAUSES, "connect", True),
        (CAUSES, "error_event", True),
        (CAUSES, 404, False),
        (CAUSES, 0, False),
        (frozenset({"4xx"}), 404, True),
        (frozenset({"4xx"}), 500, False),
        (frozenset({"4xx"}), "error_event", False),
        (frozenset({500}), "error_event", False),
        (frozenset({"error_event"}), "error_event", True),
        (frozenset({"error_event"}), 500, False),
        (frozenset(), "reset", False),
    ],
)
def test_a_cause_is_held_by_itself_or_by_its_class(causes: Causes, cause: int | str, held: bool) -> None:
    assert holds(causes, cause) is held


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        ("constant", [0.5, 0.5, 0.5, 0.5, 0.5]),
        ("linear", [0.5, 1.0, 1.5, 4.5, 30.0]),
        ("exponential", [0.5, 1.0, 2.0, 30.0, 30.0]),
    ],
)
def test_waits_grow_up_to_the_most(backoff: Any, waits: list[float]) -> None:
    rule = replace(RULE, backoff=backoff)
    assert [own_wait(rule, n) for n in (1, 2, 3, 9, 5000)] == waits


@pytest.mark.parametrize(
    ("jitter", "random", "wait_s"),
    [("full", 0.0, 0.0), ("full", 0.5, 0.25), ("full", 0.999, 0.4995), ("none", 0.0, 0.5), ("none", 0.999, 0.5)],
)
def test_full_jitter_draws_from_zero_to_the_wait(jitter: Any, random: float, wait_s: float) -> None:
    assert wait_for(replace(RULE, jitter=jitter), BUSY, random) == pytest.approx(wait_s)


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_jitter_does_not_touch_a_wait_that_the_provider_named(random: float) -> None:
    assert wait_for(RULE, replace(BUSY, named_s=7.0), random) == 7.0


# -- the rule of one call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "controls", "leg", "headers", "changed"),
    [
        (RULE, {}, {}, {}, {}),
        (ONCE, {"max-attempts": 4}, {}, {}, {"attempts": 4}),
        (RULE, {"max-attempts": 1}, {}, {}, {"attempts": 1}),
        (RULE, {"backoff": "linear"}, {}, {}, {"backoff": "linear"}),
        (RULE, {"retry-delay": 1500}, {}, {}, {"delay_s": 1.5, "jitter": "none"}),
        (RULE, {"retry-delay": 0}, {}, {}, {"delay_s": 0.0, "jitter": "none"}),
        (
            replace(RULE, max_delay_s=1.0),
            {"retry-delay": 5000},
            {},
            {},
            {"delay_s": 5.0, "max_delay_s": 5.0, "jitter": "none"},
        ),
        (RULE, {"max-attempts": 5, "backoff": "linear"}, {"attempts": 2}, {}, {"attempts": 2, "backoff": "linear"}),
        (
            RULE,
            {"retry-delay": 1500, "backoff": "linear"},
            {"delay_s": 0.1, "backoff": "constant"},
            {},
            {"delay_s": 0.1, "backoff": "constant", "jitter": "none"},
        ),
        (RULE, {}, {}, {"x-stainless-retry-count": "0"}, {}),
        (RULE, {}, {}, {"x-stainless-retry-count": "1"}, {"attempts": 2}),
        (RULE, {}, {}, {"x-stainless-retry-count": "7"}, {"attempts": 1}),
        (RULE, {"max-attempts": 5}, {}, {"x-stainless-retry-count": "1"}, {"attempts": 4}),
        (RULE, {}, {"attempts": 2}, {"x-stainless-retry-count": "1"}, {"attempts": 1}),
        (RULE, {}, {}, {"x-stainless-retry-count": "-1"}, {}),
        (RULE, {}, {}, {"x-stainless-retry-count": "1, 1"}, {}),
        (RULE, {}, {}, {"x-stainless-retry-count": "²"}, {}),
        (RULE, {}, {}, {"x-stainless-retry-count": "9" * 5000}, {}),
    ],
)
def test_a_calls_own_words_go_before_the_policys(
    policy: Retry, controls: dict[str, Any], leg: dict[str, Any], headers: dict[str, str], changed: dict[str, Any]
) -> None:
    assert rule_for(policy, controls, replace(LEG, **leg), headers) == replace(policy, **changed)


# -- the memory -------------------------------------------------------------------------------------------------------


def retries(clock: ManualClock | None = None, random: float = 0.5) -> Retries:
    return Retries(clock or ManualClock(), lambda: random)


def waits(some: Retries, failure: Failure, times: int, rule: Retry = RULE, target: str = "sa") -> list[float]:
    """Return the waits of so many calls that fail at once; those that may not wait give none."""
    steps = [some.decide(rule, CAUSES, failure, target) for _ in range(times)]
    return [step.seconds for step in steps if isinstance(step, Wait)]


@pytest.mark.parametrize(
    ("calls", "ratio", "allowed"), [(0, 0.2, FREE_RETRIES), (50, 0.2, 10), (100, 0.2, 20), (100, 0.0, FREE_RETRIES)]
)
def test_retries_stay_within_their_ratio(calls: int, ratio: float, allowed: int) -> None:
    some = retries()
    for _ in range(calls):
        some.called("sa")
    assert len(waits(some, BUSY, 100, replace(RULE, ratio=ratio))) == allowed
    assert len(waits(some, BUSY, 100, target="eu")) == FREE_RETRIES


def test_the_ratio_forgets_after_ten_seconds() -> None:
    clock = ManualClock()
    some = retries(clock)
    assert len(waits(some, BUSY, 100)) == FREE_RETRIES
    clock.advance(RATIO_S - 1)
    assert waits(some, BUSY, 100) == []
    clock.advance(1)
    assert len(waits(some, BUSY, 100)) == FREE_RETRIES


def test_waits_that_the_provider_named_are_not_counted() -> None:
    some = retries()
    assert len(waits(some, replace(BUSY, named_s=1.0), 100)) == 100
    assert len(waits(some, BUSY, 100)) == FREE_RETRIES
    assert len(waits(some, replace(BUSY, named_s=1.0), 100)) == 100


def test_who_waits_alone_comes_at_the_moment_that_was_named() -> None:
    clock = ManualClock(seconds=12345.678)
    some = retries(clock)
    for named_s in (0.05, 1.0, 7.3):
        assert waits(some, replace(BUSY, named_s=named_s), 1) == [named_s]
        clock.advance(60)


def test_those_who_wait_come_one_by_one_as_fast_as_calls_were_taken() -> None:
    some = retries()
    for _ in range(100):
        some.admitted("sa")
    found = waits(some, replace(BUSY, named_s=0.2), 50)
    assert found == pytest.approx([0.2 + n / 90 for n in range(50)])


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_a_queue_that_would_grow_too_long_is_spread_by_chance(random: float) -> None:
    some = retries(random=random)
    found = waits(some, replace(BUSY, named_s=0.2), 1000)
    assert found[200:] == pytest.approx([0.2 + random * SPREAD_S] * 800)
    assert max(found) <= 0.2 + SPREAD_S


def test_a_long_wait_may_be_spread_over_its_own_length() -> None:
    assert max(waits(retries(), replace(BUSY, named_s=10.0), 400)) == pytest.approx(10 + 399 / 50)


@pytest.mark.parametrize(("attempt", "named_s"), [(1, 4.0), (2, 4.0), (2, 0.1)])
def test_no_place_in_the_queue_is_before_the_moment_or_after_the_limit(attempt: int, named_s: float) -> None:
    left_s = named_s + 0.5
    failure = replace(BUSY, attempt_on_target=attempt, named_s=named_s, elapsed_s=RULE.within_s - left_s)
    found = waits(Retries(ManualClock(), Random(1).random), failure, 300)
    assert len(found) == len(set(found)) == 300
    assert min(found) >= named_s
    assert max(found) <= left_s + 1e-9


def test_who_is_turned_away_again_among_others_goes_behind_them() -> None:
    some = retries()
    some.decide(RULE, CAUSES, replace(BUSY, named_s=0.5), "sa")
    again = replace(BUSY, named_s=0.05, attempt_on_target=2)
    assert some.decide(RULE, CAUSES, again, "sa") == Wait(own_wait(RULE, 2), named=True)
    assert some.decide(RULE, CAUSES, again, "eu") == Wait(0.05, named=True)
