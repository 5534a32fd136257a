"""The heads of answers, and the errors that come before any API is known."""

import json
from dataclasses import replace

import pytest

from mitmgate.answers import Head, our_fields, plain_error, provider_fields, refusal_fields
from mitmgate.charges import Charge, Standing, Unit
from mitmgate.dialects import find
from mitmgate.errors import Refusal
from mitmgate.exchange import Attempt, Exchange, Fields
from mitmgate.providers import Hosts

OPENAI = Hosts().providers["openai"]
LENGTH = (b"Content-Length", b"5")


def call(**more: object) -> Exchange:
    x = Exchange("POST", "https", "api.openai.com", 443, "/v1/chat/completions", [], {}, 0.0, 0.0, id="row-1")
    x.provider, x.status, x.dialect = OPENAI, 200, find(OPENAI, "POST", "/v1/chat/completions")
    x.attempts = [Attempt(1, "openai", "openai", "api.openai.com", 0.0)]
    return replace(x, **more)  # type: ignore[arg-type]


def theirs(x: Exchange, raw: Fields, *, recoded: bool = False, length_changed: bool = False) -> Fields:
    fields = provider_fields(x, Head(x.status or 0, b"", raw, {}, recoded=recoded, length_changed=length_changed))
    return [field for field in fields if not field[0].startswith(b"cf-aig-")]


def test_order_case_and_duplicates_stay_and_hop_by_hop_fields_go() -> None:
    raw = [(b"X-B", b"1"), (b"Connection", b"close"), LENGTH, (b"x-b", b"2"), (b"Keep-Alive", b"x"), (b"Trailer", b"x")]

    assert theirs(call(), raw) == [(b"X-B", b"1"), LENGTH, (b"x-b", b"2")]


@pytest.mark.parametrize(
    ("more", "chunked"),
    [
        ({}, True),
        ({"http_version": "HTTP/2.0"}, False),
        ({"method": "HEAD"}, False),
        ({"status": 204}, False),
        ({"status": 304}, False),
    ],
)
def test_an_answer_without_a_length_is_chunked_where_that_means_something(
    more: dict[str, object], chunked: bool
) -> None:
    fields = theirs(call(**more), [(b"transfer-encoding", b"chunked")])

    assert fields == ([(b"Transfer-Encoding", b"chunked")] if chunked else [])


def test_an_opened_coding_takes_its_header_and_the_length_with_it() -> None:
    fields = theirs(call(), [LENGTH, (b"Content-Encoding", b"gzip")], recoded=True, length_changed=True)

    assert fields == [(b"Transfer-Encoding", b"chunked")]


def test_our_fields_say_who_answered() -> None:
    x = call(step=1, target="azure-eu", event_id="e1", cache_status="MISS", route_notes=["a", "b"])
    x.reading.response_model = "gpt-4o-2024-08-06"

    assert our_fields(x) == [
        (b"cf-aig-log-id", b"row-1"),
        (b"cf-aig-cache-status", b"MISS"),
        (b"cf-aig-attempts", b"1"),
        (b"cf-aig-step", b"1"),
        (b"cf-aig-provider", b"azure-eu"),
        (b"cf-aig-model", b"gpt-4o-2024-08-06"),
        (b"cf-aig-source", b"provider"),
        (b"cf-aig-event-id", b"e1"),
        (b"cf-aig-route", b"a, b"),
    ]


def test_a_call_without_a_row_has_no_id() -> None:
    assert b"cf-aig-log-id" not in dict(our_fields(call(keep_row=False)))


def test_a_call_that_generates_nothing_has_none_of_our_fields_unless_we_refused_it() -> None:
    x = call(dialect=None)
    before = our_fields(x)
    x.refuse(Refusal(404, "not_found", "no"))

    assert (before, our_fields(x)) == ([], [(b"cf-aig-source", b"gateway")])


@pytest.mark.parametrize("name", ["a\r\nset-cookie: x=1", "a\0b", "gpt\x7f"])
def test_a_strangers_model_name_cannot_start_a_new_header(name: str) -> None:
    x = call()
    x.reading.response_model = name

    value = dict(our_fields(x))[b"cf-aig-model"]

    assert not set(value) & set(b"\r\n\0\x7f")


def test_a_strangers_model_name_is_bounded() -> None:
    x = call()
    x.reading.response_model = "x" * 100_000

    assert len(dict(our_fields(x))[b"cf-aig-model"]) == 256


@pytest.mark.parametrize(
    ("refusal", "fields"),
    [
        (
            Refusal(429, "rate_limit", "", retry_after_s=0.25, should_retry=True),
            [(b"retry-after", b"1"), (b"retry-after-ms", b"250"), (b"x-should-retry", b"true")],
        ),
        (Refusal(429, "insufficient_quota", "", should_retry=False), [(b"x-should-retry", b"false")]),
        (Refusal(502, "connection", ""), []),
        (Refusal(407, "authentication", ""), [(b"proxy-authenticate", b'Basic realm="mitmgate"')]),
    ],
)
def test_a_refusal_says_when_it_may_work(refusal: Refusal, fields: Fields) -> None:
    head = refusal_fields(call(), refusal, 12)

    assert head[:2] == [(b"content-type", b"application/json"), (b"content-length", b"12")]
    assert [field for field in head[2:] if not field[0].startswith(b"cf-aig-")] == fields


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("Bad HTTP request line: b'GET'", "mitmgate: Bad HTTP request line: b'GET'"),
        ("mitmgate forwards nothing to metadata", "mitmgate forwards nothing to metadata"),
        (
            "mitmproxy received an HTTP CONNECT request even though it is not running in regular/upstream mode.",
            "mitmgate: this is the base-URL door, which takes no CONNECT; HTTPS_PROXY must name the proxy door",
        ),
    ],
)
def test_an_error_before_any_api_names_us_once_and_says_what_to_do(message: str, sentence: str) -> None:
    assert json.loads(plain_error(400, message))["error"]["message"] == sentence


def standing(unit: Unit, most: int, used: int, reset_s: float, granted: int = 0) -> Standing:
    charge = Charge("limit", "burst", "[]", unit, most, 60.0, 1)
    return Standing(charge, used, 1, granted, reset_s, None)


@pytest.mark.parametrize(
    ("stands", "said"),
    [
        (standing("requests", 60, 55, 36.2), "4; rule=burst; unit=requests; reset=37"),
        (standing("tokens", 2_000_000, 5, 0.0), "1999994; rule=burst; unit=tokens; reset=0"),
        (standing("concurrent", 8, 0, 0.0), "7; rule=burst; unit=concurrent; reset=0"),
        (standing("requests", 60, 70, 1.0), "0; rule=burst; unit=requests; reset=1"),
        (standing("requests", 60, 70, 1.0, granted=20), "9; rule=burst; unit=requests; reset=1"),
        (standing("cost", 800_000_001, 0, 3600.0), "0.8; rule=burst; unit=USD; reset=3600"),
        (standing("cost", 2, 0, 3600.0), "0.000000001; rule=burst; unit=USD; reset=3600"),
        (standing("cost", 20_000_000_001, 0, 3600.0), "20; rule=burst; unit=USD; reset=3600"),
        (standing("cost", 1, 0, 3600.0), "0; rule=burst; unit=USD; reset=3600"),
    ],
)
def test_what_is_left_of_a_limit_is_said_in_whole_seconds_and_plain_decimals(stands: Standing, said: str) -> None:
    assert (b"cf-aig-limit-remaining", said.encode()) in our_fields(call(limit_standing=stands))
    assert (b"cf-aig-budget-remaining", said.encode()) in our_fields(call(budget_standing=stands))


def test_where_nothing_is_limited_nothing_is_said_of_it() -> None:
    assert not [name for name, _ in our_fields(call()) if name.endswith(b"-remaining")]
