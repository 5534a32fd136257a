"""Windows count exactly: what slides leaves to the microsecond, days begin at midnight, and neither grows for ever."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmgate.charges import counter_name
from mitmgate.counting import (
    LOOK_BACK_US,
    MOST,
    NEVER,
    PARTS,
    SLACK,
    US,
    Booked,
    Calendars,
    Moment,
    Sliding,
    Slots,
    Turning,
    Window,
    merge,
    turn_of,
    used_alone,
    wait_s,
    window_of,
)
from mitmgate.policy.units import Calendar

CALENDARS = Calendars("UTC")
NOON = round(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp())
"""A Tuesday."""


def at(seconds: float, calendars: Calendars = CALENDARS) -> Moment:
    """Return the moment *seconds* after noon, by both clocks."""
    return Moment(round((NOON + seconds) * US), round((NOON + seconds) * US), calendars)


def wall(text: str, zone: str = "UTC") -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * US)


def on(text: str, calendars: Calendars = CALENDARS) -> Moment:
    """Return the moment at which the calendar's clocks show *text*."""
    shown = wall(text, calendars.timezone)
    return Moment(shown, shown, calendars)


def come(window: Window, now: Moment, used: int = 1, reserved: int = 0) -> int:
    """Book something now; return the time that it is booked under."""
    booked_at = window.roll(now)
    window.add(booked_at, used, reserved)
    return booked_at


def used_at(window: Window, now: Moment) -> int:
    window.roll(now)
    return window.used


# -- what slides ------------------------------------------------------------------------------------------------------


def test_a_count_leaves_exactly_when_its_time_is_over() -> None:
    window = Sliding(60)
    come(window, at(0))
    assert used_at(window, at(59.999999)) == 1
    assert used_at(window, at(60)) == 0


def test_no_minute_has_more_than_its_limit_whatever_the_border() -> None:
    window = Sliding(60)
    let_in: list[float] = []
    for second in range(300):
        for _ in range(3):
            window.roll(at(second))
            if window.used < 60:
                come(window, at(second))
                let_in.append(second)
    fullest = max(sum(second - 60 < one <= second for one in let_in) for second in range(300))
    assert fullest == 60
    assert len(let_in) == 300, "60 in each minute: nothing is lost either"


def test_a_correction_is_booked_at_the_time_of_what_it_corrects() -> None:
    window = Sliding(60)
    first = come(window, at(0), used=0, reserved=500)
    come(window, at(30), used=7)
    window.add(first, 120, -500)
    assert (window.used, window.reserved) == (127, 0)
    assert used_at(window, at(60)) == 7, "it left with its reservation's time, not a minute after the correction"


def test_a_correction_of_what_has_left_is_nobodys() -> None:
    window = Sliding(60)
    first = come(window, at(0), used=0, reserved=500)
    come(window, at(59), used=0, reserved=40)
    window.roll(at(60))
    window.add(first, 120, -500)
    assert (window.used, window.reserved) == (0, 40)


def test_what_was_given_back_leaves_no_trace() -> None:
    window = Sliding(60)
    window.add(come(window, at(0), used=1), -1, 0)
    assert list(window.booked()) == []
    assert window.reset_s(at(1)) == 0


def test_a_call_that_reserved_nothing_can_still_use_something() -> None:
    window = Sliding(60)
    booked_at = come(window, at(0), used=0)
    come(window, at(5))
    window.add(booked_at, 90, 0)
    assert used_at(window, at(59)) == 91
    assert used_at(window, at(60)) == 1


def test_a_longer_window_does_not_bring_back_what_has_left() -> None:
    window = Sliding(60)
    first = come(window, at(0), used=0, reserved=10)
    window.roll(at(61))
    longer = Sliding(3600, window.pack())
    longer.roll(at(62))
    longer.add(first, 0, -10)
    assert list(longer.booked()) == []


def test_a_window_goes_on_by_an_edited_length() -> None:
    window = Sliding(60)
    for second in (0, 20, 40):
        come(window, at(second))
    assert used_at(Sliding(30, window.pack()), at(45)) == 2
    assert used_at(Sliding(3600, window.pack()), at(300)) == 3


def test_the_time_of_a_reset_is_when_the_oldest_leaves() -> None:
    window = Sliding(60)
    assert window.reset_s(at(0)) == 0
    come(window, at(0))
    come(window, at(10))
    assert window.reset_s(at(45)) == 15


# -- many counts ------------------------------------------------------------------------------------------------------


def test_a_busy_window_stays_small_and_errs_on_the_strict_side_by_less_than_a_part() -> None:
    window = Sliding(60)
    came: list[float] = []
    for n in range(20_000):
        second = n * 0.0131
        came.append(second)
        come(window, at(second))
        if n % 97 == 0:
            counted = used_at(window, at(second))
            exact = sum(second - 60 < one <= second for one in came)
            longest = sum(second - 60 - 60 / PARTS < one <= second for one in came)
            assert exact <= counted <= longest
            assert len(list(window.booked())) <= PARTS + SLACK
    assert len(window.pack()) <= 24 * (PARTS + SLACK) + 8


def test_counts_that_were_merged_are_corrected_all_the_same() -> None:
    window = Sliding(60)
    reserved = [come(window, at(n * 0.1), used=0, reserved=100) for n in range(500)]
    assert len(list(window.booked())) <= PARTS + SLACK
    for booked_at in reserved:
        window.add(booked_at, 3, -100)
    assert (window.used, window.reserved) == (1500, 0)


def test_merged_counts_have_the_latest_time_of_their_part() -> None:
    window = Sliding(64)
    for n in range(PARTS):
        come(window, at(n * 0.25))
    for n in range(SLACK + 1):
        come(window, at(16 + n))
    counts = list(window.booked())
    assert sum(count.used for count in counts) == PARTS + SLACK + 1
    assert [count.at - at(0).steady for count in counts[:2]] == [round(0.75 * US), round(1.75 * US)]


@given(st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 50)), max_size=300))
@settings(max_examples=60, deadline=None)
def test_times_stay_in_order_and_sums_true(steps: list[tuple[int, int]]) -> None:
    window = Sliding(60)
    now = 0
    came: list[tuple[int, int]] = []
    for step, amount in steps:
        now += step
        moment = Moment(now, now, CALENDARS)
        come(window, moment, used=amount)
        came.append((now, amount))
        assert all(one.at < next_one.at for one, next_one in pairwise(window.booked()))
        exact = sum(amount for one, amount in came if one > now - 60 * US)
        longest = sum(amount for one, amount in came if one > now - 60 * US - 60 * US // PARTS)
        assert exact <= window.used <= longest


# -- the calendar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "zone", "moment", "start", "end"),
    [
        ("day", "UTC", "2026-11-24T00:00", "2026-11-24T00:00", "2026-11-25T00:00"),
        ("day", "UTC", "2026-11-24T23:59:59.999999", "2026-11-24T00:00", "2026-11-25T00:00"),
        ("day", "Africa/Johannesburg", "2026-11-24T01:00", "2026-11-24T00:00", "2026-11-25T00:00"),
        ("week", "UTC", "2026-11-22T23:59", "2026-11-16T00:00", "2026-11-23T00:00"),
        ("week", "UTC", "2026-11-23T00:00", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "UTC", "2026-01-31T12:00", "2026-01-01T00:00", "2026-02-01T00:00"),
        ("month", "UTC", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("month", "UTC", "2027-02-28T12:00", "2027-02-01T00:00", "2027-03-01T00:00"),
        ("day", "UTC", "2028-02-29T12:00", "2028-02-29T00:00", "2028-03-01T00:00"),
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-29T00:00", "2026-03-30T00:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25T00:00", "2026-10-26T00:00"),
    ],
)
def test_days_weeks_and_months_begin_at_local_midnight(
    unit: Calendar, zone: str, moment: str, start: str, end: str
) -> None:
    assert turn_of(unit, ZoneInfo(zone), wall(moment, zone)) == (wall(start, zone), wall(end, zone))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_day_on_which_the_clocks_change_is_as_long_as_it_is(day: str, hours: int) -> None:
    turn = turn_of("day", ZoneInfo("Europe/Berlin"), wall(f"{day}T12:00", "Europe/Berlin"))
    assert turn.end - turn.start == hours * 3600 * US


def test_a_day_whose_midnight_is_skipped_begins_with_the_skip() -> None:
    cairo = turn_of("day", ZoneInfo("Africa/Cairo"), wall("2026-04-24T12:00", "Africa/Cairo"))
    assert cairo.start == wall("2026-04-23T22:00")
    assert cairo.end - cairo.start == 23 * 3600 * US


def test_a_date_that_a_country_left_out_has_no_length() -> None:
    samoa = ZoneInfo("Pacific/Apia")
    before = turn_of("day", samoa, wall("2011-12-29T12:00", "Pacific/Apia"))
    assert turn_of("day", samoa, before.end).start == before.end == wall("2011-12-30T10:00")


@given(
    st.sampled_from(sorted(available_timezones())),
    st.sampled_from(["day", "week", "month"]),
    st.integers(0, 2_500_000_000 * US),
)
@settings(max_examples=300, deadline=None)
def test_one_turn_follows_the_other_in_every_timezone(zone: str, unit: Calendar, moment: int) -> None:
    turn = turn_of(unit, ZoneInfo(zone), moment)
    assert turn.start <= moment < turn.end
    assert turn_of(unit, ZoneInfo(zone), turn.start) == turn
    assert turn_of(unit, ZoneInfo(zone), turn.end).start == turn.end


def test_a_day_is_counted_until_midnight_and_begins_at_nothing() -> None:
    window = Turning("day")
    come(window, on("2026-11-24T00:00"), used=5)
    assert used_at(window, on("2026-11-24T23:59:59")) == 5
    assert window.reset_s(on("2026-11-24T23:59:59")) == 1
    assert used_at(window, on("2026-11-25T00:00")) == 0


def test_a_call_over_midnight_is_of_the_day_on_which_it_began() -> None:
    window = Turning("day")
    yesterday = come(window, on("2026-11-24T23:59"), used=0, reserved=100)
    today = come(window, on("2026-11-25T00:01"), used=0, reserved=30)
    assert window.reserved == 30
    window.add(yesterday, 80, -100)
    window.add(today, 20, -30)
    assert (window.used, window.reserved) == (20, 0)


def test_a_clock_that_is_set_back_over_midnight_does_not_open_yesterday_again() -> None:
    window = Turning("day")
    come(window, on("2026-11-24T23:59"), used=100)
    come(window, on("2026-11-25T00:00:01"), used=5)
    back = on("2026-11-24T23:59:50")
    assert used_at(window, back) == 5
    assert window.reset_s(back) == 24 * 3600 + 10
    come(window, back, used=3)
    assert used_at(window, on("2026-11-25T12:00")) == 8


def test_a_clock_that_was_years_ahead_does_not_hold_a_budget_for_ever() -> None:
    window = Turning("day")
    come(window, on("2062-01-01T12:00"), used=5)
    now = on("2026-11-24T12:00")
    assert used_at(window, now) == 5, "nothing is forgotten"
    assert window.reset_s(now) == 12 * 3600
    assert used_at(window, on("2026-11-25T00:00")) == 0


def test_another_timezone_ends_the_window_that_has_begun_at_its_own_midnight() -> None:
    window = Turning("day")
    come(window, on("2026-11-24T12:00"), used=5)
    tokyo = Calendars("Asia/Tokyo")
    assert used_at(window, on("2026-11-24T23:59", tokyo)) == 5
    assert used_at(window, on("2026-11-25T00:00", tokyo)) == 0


def test_a_calendar_without_a_new_question_answers_from_what_it_knows() -> None:
    calendars = Calendars("Europe/Berlin")
    for text in ("2026-03-28T23:59", "2026-03-29T00:00", "2026-03-29T23:59", "2026-03-28T01:00"):
        moment = wall(text, "Europe/Berlin")
        assert calendars.turn("day", moment) == turn_of("day", ZoneInfo("Europe/Berlin"), moment)


# -- at once ----------------------------------------------------------------------------------------------------------


def test_a_slot_is_held_until_it_is_given_back() -> None:
    window = Slots()
    taken_at = come(window, at(0), used=0, reserved=1)
    come(window, at(1), used=0, reserved=1)
    window.roll(at(1e6))
    assert (window.used, window.reserved, window.empty_at(at(1e6))) == (0, 2, NEVER)
    window.add(taken_at, 0, -2)
    assert (window.reserved, window.empty_at(at(1e6))) == (0, 0)


# -- how long to wait -------------------------------------------------------------------------------------------------


def sliding(*counts: tuple[float, int, int]) -> Sliding:
    window = Sliding(60)
    for second, used, reserved in counts:
        come(window, at(second), used, reserved)
    return window


@pytest.mark.parametrize(
    ("amount", "waits"),
    [(10, 20.0), (11, 30.0), (30, 30.0), (31, 50.0), (100, 50.0), (101, None)],
)
def test_a_wait_ends_when_enough_has_left(amount: int, waits: float | None) -> None:
    window = sliding((0, 10, 0), (10, 0, 20), (30, 70, 0))
    assert wait_s(window, None, amount, 100, at(40)) == waits


def test_a_wait_counts_that_a_grant_ends_too() -> None:
    window, grants = sliding((0, 100, 0), (30, 40, 0)), sliding((15, 50, 0))
    assert wait_s(window, grants, 20, 100, at(40)) == 20.0
    assert wait_s(window, grants, 120, 100, at(40)) is None, "without the grant it never fits"
    same = sliding((0, 100, 0))
    assert wait_s(same, sliding((0, 20, 0)), 110, 100, at(1)) is None, "they leave together"


@pytest.mark.parametrize(("amount", "waits"), [(1, 12 * 3600.0), (20, 12 * 3600.0), (21, None)])
def test_the_calendar_makes_wait_until_it_turns(amount: int, waits: float | None) -> None:
    window = Turning("day")
    come(window, at(0), used=20)
    assert wait_s(window, None, amount, 20, at(0)) == waits


@pytest.mark.parametrize(("amount", "most", "waits"), [(1, 8, 1.0), (1, 0, None)])
def test_nobody_knows_when_a_slot_is_free(amount: int, most: int, waits: float | None) -> None:
    assert wait_s(Slots(), None, amount, most, at(0)) == waits


# -- of all kinds -----------------------------------------------------------------------------------------------------

EVERY: list[float | Calendar | None] = [60.0, "day", "week", "month", None]


@pytest.mark.parametrize("every", EVERY)
def test_a_window_is_the_same_after_it_was_packed(every: float | Calendar | None) -> None:
    window = window_of(every)
    for second in (0, 3, 7):
        come(window, at(second), used=second, reserved=2)
    again = window_of(every, window.pack())
    assert again.roll(at(8)) == window.roll(at(8))
    assert list(again.booked()) == list(window.booked())
    assert (again.used, again.reserved, again.pack()) == (window.used, window.reserved, window.pack())


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("packed", [b"x", bytes(16), bytes(8 * 5)])
def test_bytes_that_are_no_window_are_refused(every: float | Calendar | None, packed: bytes) -> None:
    with pytest.raises(ValueError):
        window_of(every, packed)


@pytest.mark.parametrize("every", EVERY)
def test_a_count_stays_within_its_bytes(every: float | Calendar | None) -> None:
    window = window_of(every)
    for _ in range(3):
        come(window, at(0), used=10**30, reserved=10**30)
    window_of(every, window.pack())
    assert window.reserved == MOST


@pytest.mark.parametrize(
    ("every", "after"),
    [(60.0, 60 * US), ("day", 12 * 3600 * US + LOOK_BACK_US), (None, None)],
)
def test_a_window_says_from_when_on_it_says_nothing(every: float | Calendar | None, after: int | None) -> None:
    window = window_of(every)
    window.roll(at(0))
    assert window.empty_at(at(0)) == 0
    come(window, at(0), used=1, reserved=1)
    assert window.empty_at(at(0)) == (NEVER if after is None else at(0).steady + after)


@pytest.mark.parametrize("every", EVERY)
def test_what_was_counted_elsewhere_is_added(every: float | Calendar | None) -> None:
    window, other = window_of(every), window_of(every)
    for one, seconds in ((window, (0, 20)), (other, (10, 20, 25))):
        for second in seconds:
            come(one, at(second), used=1, reserved=2)
    merge(window, other.booked())
    window.roll(at(30))
    assert (window.used, window.reserved) == (0 if every is None else 5, 10)
    merge(window, used_alone(other))
    assert (window.used, window.reserved) == (0 if every is None else 8, 10)


def test_another_anchor_moves_every_time() -> None:
    window = sliding((0, 1, 0), (10, 2, 3))
    window.shift(5 * US)
    assert list(window.booked()) == [Booked(at(5).steady, 1, 0), Booked(at(15).steady, 2, 3)]
    assert used_at(window, at(64.9)) == 3


# -- names ------------------------------------------------------------------------------------------------------------


def names() -> Iterator[str]:
    for room, rule in (("limit", "a"), ("limit", "a:b"), ("budget", "a")):
        for every in (60.0, "day", "month", None):
            yield counter_name(room, rule, "tokens", every, [])
            for value in ("", "b", 'b", "user": "c', "x" * 80, "x" * 81, "x" * 82, "\udc80", "ü"):
                yield counter_name(room, rule, "tokens", every, [("tenant", value)])
                yield counter_name(room, rule, "tokens", every, [("user", value)])
                yield counter_name(room, rule, "tokens", every, [("tenant", value), ("user", "c")])
    yield counter_name("limit", "a", "requests", 60.0, [])


def test_no_two_counters_have_one_name() -> None:
    all_names = list(names())
    assert len(set(all_names)) == len(all_names)


def test_a_name_can_be_read_and_is_short_and_plain() -> None:
    name = counter_name("limit", "burst", "requests", 60.0, [("tenant", "acme")])
    assert name == '["limit", "burst", "requests", "sliding", {"tenant": "acme"}]'
    assert counter_name("limit", "burst", "requests", 300.0, [("tenant", "acme")]) == name, "an edited time counts on"
    assert max(map(len, names())) < 300
    assert all(name.isascii() for name in names())
