"""What a provider says about trying again: how long to wait, or that no wait will help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.hints import LONGEST_S, is_final, named_wait

WALL_S = 1_792_567_660.0
"""Wed, 21 Oct 2026 07:27:40 GMT."""
DATE = "Wed, 21 Oct 2026 07:27:40 GMT"


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("7.5", 7.5),
        ("287441", 287441.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 20.0),
        ("Wednesday, 21-Oct-26 07:28:00 GMT", 20.0),
        ("Wed Oct 21 07:28:00 2026", 20.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", None),
        ("Wed, 21 Oct 2099 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("0", None),
        ("-1", None),
        ("+7", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("1000000000", None),
        ("9" * 5000, None),
        ("7, 7", None),
        ("٧", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else(text: str, wait_s: float | None) -> None:
    assert named_wait({"retry-after": text}, b"", WALL_S) == wait_s


def test_a_date_is_read_against_the_answers_own_clock() -> None:
    slow_by_an_hour = {"retry-after": "Wed, 21 Oct 2026 06:28:00 GMT", "date": "Wed, 21 Oct 2026 06:27:40 GMT"}
    assert named_wait(slow_by_an_hour, b"", WALL_S) == 20.0
    assert named_wait({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "today"}, b"", WALL_S) == 20.0


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "x-ms-retry-after-ms": "2500", "retry-after": "7"}, 1.5),
        ({"x-ms-retry-after-ms": "2500", "retry-after": "7"}, 2.5),
        ({"retry-after-ms": "junk", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "0", "retry-after": "7"}, 7.0),
        ({"retry-after": "7", "x-ratelimit-reset-requests": "6m0s"}, 7.0),
        ({"retry-after": "junk", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({}, None),
    ],
)
def test_the_surest_word_that_can_be_read_stands(headers: dict[str, str], wait_s: float | None) -> None:
    assert named_wait(headers, b"", WALL_S) == wait_s


GEMINI = """{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [
  {"@type": "type.googleapis.com/google.rpc.Help"},
  {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "%s"}]}}"""


@pytest.mark.parametrize(
    ("body", "wait_s"),
    [
        (GEMINI % "17s", 17.0),
        (GEMINI % "1.5s", 1.5),
        (GEMINI % "0.847655010s", 0.84765501),
        (f"[{GEMINI % '17s'}]", 17.0),
        ("data: " + (GEMINI % "17s").replace("\n", "") + "\n\n", 17.0),
        (GEMINI % "0s", None),
        (GEMINI % "-1s", None),
        (GEMINI % "17", None),
        (GEMINI % "99999999s", None),
        (r'{"error": {"message": "in your prompt: \"retryDelay\": \"17s\""}}', None),
        ("", None),
    ],
)
def test_googles_retry_info_is_found_in_the_body(body: str, wait_s: float | None) -> None:
    assert named_wait({}, body.encode(), WALL_S, status=503) == wait_s


def test_a_header_goes_before_the_body() -> None:
    assert named_wait({"retry-after": "7"}, (GEMINI % "17s").encode(), WALL_S) == 7.0


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("6m0s", 360.0),
        ("8.64s", 8.64),
        ("20ms", 0.02),
        ("1h2m", 3720.0),
        ("1h2m3.5s", 3723.5),
        ("500µs", 0.0005),
        ("34", 34.0),
        ("11.38", 11.38),
        ("1792567700", 40.0),
        ("1792567700000", 40.0),
        ("2026-10-21T07:28:10Z", 30.0),
        ("2026-10-21T09:28:10+02:00", 30.0),
        ("2026-10-21T07:27:00Z", None),
        ("2026-10-21T07:28:10", None),
        ("0s", None),
        ("-5s", None),
        ("6m 0s", None),
        ("s", None),
        ("1.2.3s", None),
        ("9" * 40 + "h", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("", None),
    ],
)
def test_a_reset_is_a_duration_or_a_moment(text: str, wait_s: float | None) -> None:
    found = named_wait({"x-ratelimit-reset-tokens": text, "date": DATE}, b"", 0.0)
    assert found == (None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (
            {
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            360.0,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-10-21T07:28:10Z",
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-10-21T07:28:20Z",
                "anthropic-ratelimit-output-tokens-remaining": "8000",
                "anthropic-ratelimit-output-tokens-reset": "2026-10-21T07:58:20Z",
            },
            40.0,
        ),
        ({"x-ratelimit-reset-requests-day": "33011.38", "x-ratelimit-remaining-requests-day": "0"}, 33011.38),
        ({"ratelimit-reset": "30", "ratelimit-remaining": "0"}, 30.0),
        ({"x-ratelimit-reset": "30", "x-ratelimit-remaining": "5"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 1.0),
    ],
)
def test_of_several_limits_the_one_that_is_used_up_counts(headers: dict[str, str], wait_s: float | None) -> None:
    assert named_wait(headers, b"", WALL_S) == wait_s


def test_the_reset_of_a_limit_says_nothing_about_another_failure() -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    assert named_wait(headers, b"", WALL_S, status=503) is None


TIMES = st.one_of(
    st.text(st.characters(), max_size=80),
    st.from_regex(r"[0-9hms.µ:, GMTZ+-]{0,70}", fullmatch=True),
    st.builds("{}, {} {} {} {}:{}:{} GMT".format, *[st.integers(-9, 99999) | st.sampled_from(["Wed", "Oct"])] * 7),
    st.datetimes().map(str),
)


@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                "date",
                "retry-after",
                "retry-after-ms",
                "x-ratelimit-reset-tokens",
                "x-ratelimit-remaining-tokens",
                "anthropic-ratelimit-requests-reset",
            ]
        ),
        TIMES,
    ),
    body=st.binary(max_size=50) | TIMES.map(lambda text: (GEMINI % text).encode("utf-8", "replace")),
    wall_s=st.floats(0, 4e9),
)
def test_whatever_a_stranger_sends_a_wait_is_a_sane_number(headers: dict[str, str], body: bytes, wall_s: float) -> None:
    wait_s = named_wait(headers, body, wall_s)
    assert wait_s is None or 0 < wait_s <= LONGEST_S


@pytest.mark.parametrize(
    ("status", "headers", "error_type", "final"),
    [
        (429, {}, "insufficient_quota", True),
        (403, {}, "insufficient_quota", True),
        (402, {}, None, True),
        (429, {}, "rate_limit", False),
        (429, {}, None, False),
        (503, {}, "overloaded", False),
        (500, {}, "invalid_request", False),
        (200, {}, "error_event:insufficient_quota", True),
        (200, {}, "error_event:invalid_request", True),
        (200, {}, "error_event:context_length", True),
        (200, {}, "content_filter", True),
        (200, {}, "error_event:overloaded", False),
        (200, {}, "error_event:rate_limit", False),
        (429, {"x-should-retry": "false"}, "rate_limit", True),
        (429, {"x-should-retry": "true"}, "rate_limit", False),
        (429, {"anthropic-ratelimit-unified-status": "rejected", "retry-after": "287441"}, "rate_limit", True),
        (429, {"anthropic-ratelimit-unified-status": "rejected"}, "rate_limit", True),
        (429, {"anthropic-ratelimit-unified-status": "rejected", "retry-after": "12"}, "rate_limit", False),
        (429, {"anthropic-ratelimit-unified-status": "allowed"}, "rate_limit", False),
    ],
)
def test_a_quota_that_will_not_return_is_told_from_a_busy_moment(
    status: int, headers: dict[str, str], error_type: str | None, final: bool
) -> None:
    assert is_final(status, headers, error_type) is final
