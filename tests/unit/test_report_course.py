"""A report draws time in parts that suit its window, and an incident stands out."""

from datetime import timedelta

import pytest

from mitmgate.cli import course
from support.sample_traces import START


@pytest.mark.parametrize(
    ("hours", "unit", "n"), [(1, "minute", 60), (2, "ten_minutes", 12), (24, "hour", 24), (24 * 30, "day", 30)]
)
def test_a_window_is_drawn_in_parts_that_suit_it(hours: int, unit: str, n: int) -> None:
    end = START + timedelta(hours=hours)
    if unit == "day":
        end -= timedelta(hours=START.hour)
    name, width = course.unit_for(START, end)
    assert name == unit
    assert len(course.buckets(START, end, width)) == n


def test_parts_are_named_as_the_report_names_them() -> None:
    hour = timedelta(hours=1)
    start = START + timedelta(minutes=20)
    assert course.buckets(start, start + hour, hour) == ["2026-11-24T09:00Z", "2026-11-24T10:00Z"]


def test_an_hour_without_calls_is_zero_calls_and_no_latency() -> None:
    rows = [{"hour": "b", "provider_name": "openai", "calls": 3, "errors": 1, "ttft_p50_ms": 40.0}]
    calls, errors, first = course.series(rows, "hour", ["a", "b"])
    assert (calls.values, errors.values, first.values) == ([0.0, 3.0], [0.0, 1.0], [None, 40.0])


def test_the_line_of_an_incident_stands_out() -> None:
    assert course.stands_out([400.0, 410.0, 390.0, 9500.0, 420.0])
    assert not course.stands_out([400.0, 410.0, 390.0, 900.0, 420.0])
    assert not course.stands_out([1.0, 100.0])
