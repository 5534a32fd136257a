"""Values with units read both ways, and a number without one is refused with the unit it probably lacks."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.policy import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500 ms", 0.5),
        ("30 s", 30.0),
        ("30s", 30.0),
        ("1.5 s", 1.5),
        ("5 m", 300.0),
        ("1 h", 3600.0),
        ("30 d", 2_592_000.0),
        ("1_000 s", 1000.0),
        ("0 s", 0.0),
        ("0.25 ms", None),
    ],
)
def test_time(text: str, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(ValueError, match="finer than a millisecond"):
            units.time(text)
    else:
        assert units.time(text) == seconds


@pytest.mark.parametrize(
    ("text", "value"), [("day", "day"), ("week", "week"), ("month", "month"), ("1 d", 86400.0), ("1 m", 60.0)]
)
def test_a_span_is_a_time_or_a_calendar_unit(text: str, value: object) -> None:
    assert units.span(text) == value
    assert units.span(units.show_span(units.span(text))) == value


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0 B", 0),
        ("1 B", 1),
        ("2 MiB", 2 * 2**20),
        ("2MB", 2_000_000),
        ("1.5 KiB", 1536),
        ("10 GiB", 10 * 2**30),
        ("3 TiB", 3 * 2**40),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert units.size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [("20 USD", 20 * 10**9), ("0.01 USD", 10**7), ("0.000000001 USD", 1), ("1_000.50 USD", 1_000_500_000_000)],
)
def test_money_is_exact_to_nine_decimals(text: str, nanousd: int) -> None:
    assert units.money(text) == nanousd


@pytest.mark.parametrize(("text", "share"), [("0 %", 0.0), ("20 %", 0.2), ("12.5%", 0.125), ("100 %", 1.0)])
def test_percent(text: str, share: float) -> None:
    assert units.percent(text) == share


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        (units.time, "30", "30 has no unit; write 30 s (units: d, h, m, s, ms)"),
        (units.time, "5 min", "'min' is no unit of a time; did you mean 'm'?"),
        (units.time, "5 H", "'H' is no unit of a time; did you mean 'h'?"),
        (units.time, "5 USD", "'USD' is no unit of a time; units are d, h, m, s, ms"),
        (units.time, "-5 s", "'-5 s' is negative; a time cannot be"),
        (units.time, "soon", "'soon' is not a time; write a number and a unit: 5 s"),
        (units.time, "1 h 30 m", "'1 h 30 m' is not a time; write a number and a unit: 5 s"),
        (units.time, "1e3 s", "'1e3 s' is not a time; write a number and a unit: 5 s"),
        (units.time, "٣ s", "'٣ s' is not a time; write a number and a unit: 5 s"),
        (units.time, "9999999999999999 d", "'9999999999999999 d' is too large"),
        (units.span, "year", "'year' is not a time; write a number and a unit: 5 s"),
        (units.size, "10", "10 has no unit; write 10 MiB (units: TiB, GiB, MiB, KiB, TB, GB, MB, kB, B)"),
        (units.size, "10 gb", "'gb' is no unit of a size; did you mean 'GiB'?"),
        (units.size, "0.3 B", "'0.3 B' is no whole number of bytes"),
        (units.money, "20", "20 has no unit; write 20 USD (units: USD)"),
        (units.money, "20 $", "'$' is no unit of an amount of money; did you mean 'USD'?"),
        (units.money, "20 EUR", "'EUR' is no unit of an amount of money; units are USD"),
        (
            units.money,
            "0.0000000001 USD",
            "'0.0000000001 USD' has more than 9 decimals; money is counted in billionths of a dollar",
        ),
        (units.money, "0.0000000000001 USD", "'0.0000000000001 USD' has more than 12 decimals"),
        (units.percent, "0.2", "0.2 has no unit; write 0.2 % (units: %)"),
        (units.percent, "101 %", "'101 %' is more than 100 %"),
    ],
)
def test_what_is_refused_says_what_to_write(read: Callable[[str], object], text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        read(text)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2027-01-31T18:00Z", "2027-01-31T18:00:00Z"),
        ("2027-01-31T18:00", "2027-01-31T18:00:00Z"),
        (" 2027-01-31 18:00:30 ", "2027-01-31T18:00:30Z"),
        ("2027-01-31T18:00+02:00", "2027-01-31T16:00:00Z"),
        ("2027-01-31", "2027-02-01T00:00:00Z"),
        ("2028-02-28", "2028-02-29T00:00:00Z"),
    ],
)
def test_a_moment_is_in_utc_unless_it_says_its_zone_and_a_date_lasts_to_its_end(text: str, shown: str) -> None:
    assert units.show_moment(units.moment(text)) == shown
    assert units.show_moment(units.moment(shown)) == shown


@pytest.mark.parametrize(
    "text", ["", "soon", "2027", "2027-02-29", "31.1.2027", "9999-12-31", "0001-01-01T00:00+09:00"]
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no date or time; write it like 2027-01-31 or 2027-01-31T18:00Z$"):
        units.moment(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.5, "500 ms"), (90, "90 s"), (120, "2 m"), (86400, "1 d"), (1.5, "1500 ms"), (3600, "1 h")],
)
def test_a_time_is_shown_in_the_largest_unit_that_divides_it(seconds: float, text: str) -> None:
    assert units.show_time(seconds) == text


@given(st.integers(0, 10**13))
def test_every_time_reads_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.time(units.show_time(seconds)) == seconds


@given(st.integers(0, 10**15))
def test_every_size_and_every_amount_reads_back(amount: int) -> None:
    assert units.size(units.show_size(amount)) == amount
    assert units.money(units.show_money(amount)) == amount


@given(st.decimals(0, 100, places=3))
def test_every_percentage_reads_back(percentage: object) -> None:
    share = units.percent(f"{percentage} %")
    assert units.percent(units.show_percent(share)) == pytest.approx(share)
