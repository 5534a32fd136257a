"""Time as rules see it."""

import pytest

from mitmgate.clock import ManualClock, SystemClock, iso


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.5, "2023-11-14T22:13:20.500Z"),
        (1_700_000_000.0, "2023-11-14T22:13:20.000Z"),
        (1_709_164_800.9999, "2024-02-29T00:00:00.999Z"),
    ],
)
def test_iso_has_milliseconds_always_and_sorts_as_text(wall: float, text: str) -> None:
    assert iso(wall) == text


def test_a_manual_clock_stands_still_until_it_is_turned() -> None:
    clock = ManualClock(5.0)
    before = clock.now(), clock.wall()

    clock.advance(2.5)

    assert before == (5.0, 1_700_000_005.0)
    assert (clock.now(), clock.wall()) == (7.5, 1_700_000_007.5)


def test_the_systems_clock_never_goes_back() -> None:
    clock = SystemClock()
    readings = [clock.now() for _ in range(100)]

    assert readings == sorted(readings)
    assert clock.wall() > 1_700_000_000
