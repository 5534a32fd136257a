"""When a second attempt starts beside a slow one, and whether it may."""

import pytest

from mitmgate.clock import ManualClock
from mitmgate.hedge import Hedges
from mitmgate.lately import SAMPLES_KEPT, SAMPLES_LATE, SAMPLES_NEEDED, percentile
from mitmgate.policy.values import Hedge

P95 = Hedge("tail", after_s=None, percentile=95, to="eu")
FIXED = Hedge("tail", after_s=0.8, percentile=95, to="eu")


def hedges() -> Hedges:
    return Hedges(ManualClock())


@pytest.mark.parametrize(
    ("p", "value"),
    [(50, 50.0), (90, 90.0), (95, 95.0), (99, 99.0), (100, 100.0), (1, 1.0)],
)
def test_a_percentile_is_one_of_the_samples(p: int, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], p) == value
    assert percentile([7.0], p) == 7.0


def test_a_fixed_wait_needs_no_samples() -> None:
    assert hedges().delay(FIXED, "sa") == 0.8


def test_a_percentile_needs_twenty_samples_of_the_target_itself() -> None:
    some = hedges()
    for n in range(1, SAMPLES_NEEDED):
        some.note("sa", float(n))
    assert some.delay(P95, "sa") is None
    some.note("sa", float(SAMPLES_NEEDED))
    assert some.delay(P95, "sa") == 19.0
    assert some.delay(P95, "eu") is None


def test_the_order_in_which_samples_came_does_not_matter() -> None:
    some = hedges()
    for n in (5, 3, 20, 1, 18, 11, 7, 2, 19, 14, 9, 4, 16, 13, 6, 12, 8, 17, 10, 15):
        some.note("sa", float(n))
    assert some.delay(P95, "sa") == 19.0


def test_only_the_latest_samples_count() -> None:
    some = hedges()
    for seconds in [60.0] * SAMPLES_KEPT + [1.0] * SAMPLES_KEPT:
        some.note("sa", seconds)
    assert some.delay(P95, "sa") == 1.0


def test_a_percentile_follows_within_ten_samples() -> None:
    some = hedges()
    for _ in range(SAMPLES_NEEDED):
        some.note("sa", 1.0)
    assert some.delay(P95, "sa") == 1.0
    for _ in range(SAMPLES_LATE - 1):
        some.note("sa", 9.0)
        assert some.delay(P95, "sa") == 1.0
    some.note("sa", 9.0)
    assert some.delay(P95, "sa") == 9.0


@pytest.mark.parametrize(
    ("ratio", "calls", "allowed"),
    [(0.1, 100, 10), (0.1, 19, 1), (0.1, 1, 1), (0.1, 0, 1), (1.0, 30, 30), (0.0, 100, 0)],
)
def test_second_attempts_stay_within_their_ratio(ratio: float, calls: int, allowed: int) -> None:
    some = hedges()
    rule = Hedge("tail", after_s=0.8, percentile=95, to="eu", ratio=ratio)
    for _ in range(calls):
        some.called("sa")
    started = 0
    while some.may(rule, "sa"):
        some.started("sa")
        started += 1
    assert started == allowed


def test_the_ratio_forgets_after_ten_seconds() -> None:
    clock = ManualClock()
    some = Hedges(clock)
    some.called("sa")
    some.started("sa")
    clock.advance(9)
    assert not some.may(FIXED, "sa")
    clock.advance(1)
    assert some.may(FIXED, "sa")


def test_targets_are_counted_apart() -> None:
    some = hedges()
    some.started("sa")
    assert not some.may(FIXED, "sa")
    assert some.may(FIXED, "eu")
