"""Numbers keep their meaning on a terminal, and text of strangers cannot act there."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.cli import render
from mitmgate.inert import inert_lines


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (None, "–"),
        ("acme", "acme"),
        (429, "429"),
        ("\x1b[2J\x1b]0;pwned\x07", "␛[2J␛]0;pwned␇"),
        ("a\nb\tc\r", "a␊b␉c␍"),
        ("\x7f", "␡"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202egpj", "abc\\u202egpj"),
        ("\u2066x\ufeff", "\\u2066x\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\udcff"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("日本 é 👩‍💻", "日本 é 👩‍💻"),
    ],
)
def test_text_of_a_stranger_is_only_looked_at(said: object, seen: str) -> None:
    assert render.inert(said) == seen


@given(st.text(st.characters(codec=None)))
def test_no_text_leaves_a_control_character_behind(text: str) -> None:
    shown = inert_lines(text)
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in shown.replace("\n", ""))
    shown.encode()  # nor a surrogate that no terminal can be sent


def test_lines_and_indents_of_a_prompt_stay() -> None:
    assert inert_lines("if x:\r\n\treturn\n\x1b[31mred") == "if x:\n    return\n␛[31mred"


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (0, "0"), (12_551, "12,551"), (999_999, "999,999"), (1_234_567, "1.23M"), (66_500_000, "66.5M"),
     (999_999_999, "1,000M"), (700_000_000, "700M"), (2_500_000_000, "2.50G")],
)  # fmt: skip
def test_counts(number: int | None, text: str) -> None:
    assert render.count(number) == text


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [(None, "–"), (0, "0"), (36_460_000_000, "36.46"), (1_234_567_000_000_000, "1,234,567.00"), (68_200_000, "0.0682"),
     (500_000_000, "0.500"), (1_234_567, "0.00123"), (1, "0.000000001")],
)  # fmt: skip
def test_money_keeps_three_digits_that_mean_something(nanousd: int | None, text: str) -> None:
    assert render.usd(nanousd) == text


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [(None, "–"), (0, "0"), (20, "<1e-7"), (100, "0.0000001"), (5_250, "0.0000052"),
     (10_000, "0.0000100"), (1_234_567, "0.00123")],
)  # fmt: skip
def test_money_of_a_narrow_column_is_never_cut_off(nanousd: int | None, text: str) -> None:
    assert render.usd_narrow(nanousd) == text
    assert len(text) <= 9


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.04, "0.0"), (2.13, "2.1"), (9.96, "10"), (9512.6, "9,513")]
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert render.ms(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0, "0"), (0.0218, "2.18"), (1.0, "100.00")])
def test_shares_are_percent(value: float | None, text: str) -> None:
    assert render.share(value) == text


@pytest.mark.parametrize(
    ("part", "drawn"), [(0.0, ""), (0.001, "▏"), (0.5, "████"), (0.55, "████▍"), (1.0, "████████"), (7.0, "████████")]
)
def test_a_bar_shows_its_part_and_never_hides_a_small_one(part: float, drawn: str) -> None:
    assert render.bar(part, 8) == drawn


def test_a_sparkline_is_scaled_from_zero_and_leaves_gaps_where_nothing_is_known() -> None:
    assert render.sparkline([0, None, 50, 100, 99]) == "▁ ▅██"
    assert render.sparkline([7, 7, 7]) == "███"
    assert render.sparkline([0, 0]) == "▁▁"
    assert render.sparkline([0, None, 50, 100], ascii_only=True) == "_ =#"


def test_many_values_fold_into_few_columns() -> None:
    assert render.folded([1, 2, 3, 4], 2, sum) == [3, 7]
    assert render.folded([1, None, None, None], 2, max) == [1, None]
    assert render.folded([1, 2], 5, sum) == [1, 2]


def test_a_terminal_that_lacks_a_letter_shows_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    out = render.console()
    out.out("tenant é")
    out.file.flush()
    assert raw.getvalue() == b"tenant \\xe9\n"
    assert render.is_ascii(out)
