"""How an exchange ended, and what of its usage has to be estimated."""

import pytest

from mitmgate.account import Account, error_type
from mitmgate.clock import ManualClock
from mitmgate.dialects.base import Request
from mitmgate.errors import Refusal
from mitmgate.exchange import Attempt, Exchange


def call(how: str = "end") -> Exchange:
    """Return an answered stream whose text was seen and whose usage was not."""
    x = Exchange("POST", "https", "api.openai.com", 443, "/v1/chat/completions", [], {}, 0.0, 0.0)
    x.attempts = [Attempt(1, "openai", "openai", "api.openai.com", 0.0)]
    x.how, x.status = how, 200  # type: ignore[assignment]
    x.answer_headers = {"content-type": "text/event-stream"}
    x.request = Request("gpt-4o", stream=True, input_chars=400)
    x.reading.first_content, x.reading.text_chars = True, 400
    return x


def settled(x: Exchange, at: float = 7.0) -> Exchange:
    Account(ManualClock(at)).settle(x)
    return x


def test_the_end_is_written_down() -> None:
    assert settled(call(), at=7.5).ended == 7.5


@pytest.mark.parametrize(
    ("how", "ended", "finished", "terminal"),
    [
        ("end", True, True, "complete"),
        ("end", False, False, "truncated"),
        ("cut", False, False, "truncated"),
        ("client_left", False, False, "client_abort"),
        ("client_left", False, True, "complete"),
        ("timeout", False, False, "timeout"),
        ("failed", False, False, "failed"),
        ("refused", False, False, "refused"),
        (None, False, False, "failed"),
    ],
)
def test_terminal(how: str, ended: bool, finished: bool, terminal: str) -> None:
    x = call(how)
    x.reading.ended, x.reading.finished = ended, finished

    assert settled(x).terminal == terminal


def test_missing_usage_is_estimated_and_says_so() -> None:
    x = settled(call("client_left"))

    assert (x.reading.usage.input_tokens, x.reading.usage.output_tokens) == (100, 100)
    assert x.reading.usage_source == "estimated"


@pytest.mark.parametrize("status", [200, 403])
def test_an_answer_that_a_guard_has_stopped_is_billed_all_the_same(status: int) -> None:
    x = call("refused")
    x.status, x.source = status, "guard"

    assert settled(x).reading.usage_source == "estimated"


def test_a_follower_that_a_guard_has_stopped_estimates_nothing() -> None:
    x = call("refused")
    x.source, x.attempts = "guard", []

    assert settled(x).reading.usage_source == "none"


def test_reported_usage_is_left_alone() -> None:
    x = call()
    x.reading.usage_seen = x.reading.usage_final = True
    x.reading.usage.input_tokens, x.reading.usage.output_tokens = 9, 3

    settled(x)

    assert (x.reading.usage.input_tokens, x.reading.usage.output_tokens) == (9, 3)
    assert x.reading.usage_source == "reported"


@pytest.mark.parametrize("field", ["status", "source", "first_content"])
def test_nothing_is_estimated_where_no_model_answered(field: str) -> None:
    x = call()
    if field == "status":
        x.status = 429
    elif field == "source":
        x.source = "gateway"
    else:
        x.reading.first_content = False

    settled(x)

    assert (x.reading.usage.input_tokens, x.reading.usage.output_tokens) == (None, None)


def test_a_plain_answer_has_its_first_content_at_its_end() -> None:
    assert settled(call(), at=3.0).first_content == 3.0


def test_error_type_is_ours_then_the_providers_then_that_of_the_transport_then_the_status() -> None:
    x = call("cut")
    x.status = 500
    x.attempts[0].error_type = "reset"
    x.reading.error_type = "overloaded"
    x.refusal = Refusal(504, "timeout", "late", error_type="timeout")
    seen = [error_type(x)]
    x.refusal = Refusal(403, "permission", "no")
    seen.append(error_type(x))
    x.refusal = None
    seen.append(error_type(x))
    x.reading.error_type = None
    seen.append(error_type(x))
    x.how = "end"
    seen.append(error_type(x))
    x.status = 200
    seen.append(error_type(x))

    assert seen == ["timeout", "403", "overloaded", "reset", "500", None]
