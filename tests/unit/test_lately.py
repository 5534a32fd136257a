"""Counts over the last seconds, for a bounded number of targets."""

import pytest

from mitmgate.lately import MOST_TARGETS, PerTarget, Window


@pytest.mark.parametrize(
    ("now", "total", "most"),
    [
        (1002.0, 5, 3),
        (1009.9, 5, 3),
        (1010.0, 2, 1),
        (1011.0, 1, 1),
        (1012.0, 0, 0),
        (9e9, 0, 0),
    ],
)
def test_a_window_counts_what_is_younger_than_its_span(now: float, total: int, most: int) -> None:
    window = Window(10.0)
    for at in (1000.0, 1000.4, 1000.9, 1001.0, 1002.0):
        window.add(at)
    assert (window.total(now), window.most(now)) == (total, most)


def test_a_window_holds_no_more_than_its_slices() -> None:
    window = Window(10.0)
    for n in range(100_000):
        window.add(n / 100)
    assert window.total(999.99) == 1000
    assert len(window._slices) == 10


def test_a_target_keeps_what_it_was_given() -> None:
    windows = PerTarget(lambda: Window(10.0))
    windows["a"].add(0.0)
    assert (windows["a"].total(0.0), windows["b"].total(0.0)) == (1, 0)


def test_of_too_many_targets_the_one_unused_the_longest_is_forgotten() -> None:
    windows = PerTarget(lambda: Window(10.0))
    windows["used"].add(0.0)
    windows["unused"].add(0.0)
    for n in range(MOST_TARGETS - 1):
        assert windows["used"].total(0.0) == 1
        windows[f"host-{n}.example"].add(0.0)
    assert len(windows) == MOST_TARGETS
    assert {"used", "unused"} & {name for name, _ in windows.items()} == {"used"}
