"""Where nobody reports tokens they are estimated; what was reported is never made less."""

import pytest

from mitmgate.dialects.base import Reading, Request, Usage
from mitmgate.dialects.estimate import fill_estimates, tokens_of, tokens_of_size

PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), (PROSE, 27), ('{"a":1,"b":[2,3]}' * 10, 68), ("你好世界" * 10, 30), ("1234567890", 4)],
)
def test_tokens_of_a_text(text: str, tokens: int) -> None:
    assert tokens_of(text) == tokens


@pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (400, 100)])
def test_tokens_of_a_size(size: int, tokens: int) -> None:
    assert tokens_of_size(size) == tokens


ASKED = Request(input_chars=400, input_tokens_estimate=120)


def reading(input_tokens: int | None, output_tokens: int | None, *, final: bool = True, text: int = 400) -> Reading:
    seen = input_tokens is not None or output_tokens is not None
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return Reading(usage=usage, usage_seen=seen, usage_final=final and seen, text_chars=text)


@pytest.mark.parametrize(
    ("given", "filled", "source"),
    [
        (reading(None, None), (120, 100), "estimated"),
        (reading(80, None), (80, 100), "estimated"),
        (reading(80, 4, final=False), (80, 100), "estimated"),  # Anthropic's message_start, then an abort
        (reading(80, 300, final=False), (80, 300), "reported_partial"),
        (reading(80, 30), (80, 30), "reported"),
        (reading(0, 0), (120, 100), "estimated"),  # zeros beside a text are no counts
        (reading(0, 0, text=0), (0, 0), "reported"),
        (reading(None, None, text=0), (120, 0), "estimated"),
    ],
)
def test_what_is_missing_is_filled_in(given: Reading, filled: tuple[int, int], source: str) -> None:
    fill_estimates(given, ASKED)
    assert (given.usage.input_tokens, given.usage.output_tokens) == filled
    assert given.usage_source == source


def test_without_an_estimate_of_the_prompt_its_length_serves() -> None:
    given = reading(None, None)
    fill_estimates(given, Request(input_chars=400))
    assert given.usage.input_tokens == 100
