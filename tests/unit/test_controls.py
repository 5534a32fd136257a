"""The ``cf-aig-*`` request headers: parsed, or refused by name; and none of them travels on."""

import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.controls import TABLE, Fields, is_ours, read, strip
from mitmgate.errors import Refusal


def one(name: str, value: str) -> Fields:
    return [(b"host", b"api.openai.com"), (name.encode(), value.encode())]


@pytest.mark.parametrize(
    ("header", "value", "parsed"),
    [
        ("cf-aig-cache-ttl", "0", 0),
        ("cf-aig-cache-ttl", "2592000", 2_592_000),
        ("cf-aig-cache-ttl", " 60\t", 60),
        ("cf-aig-cache-key", "ümlaut 1", "ümlaut 1"),
        ("cf-aig-cache-key", "k" * 1024, "k" * 1024),
        ("cf-aig-skip-cache", "true", True),
        ("cf-aig-skip-cache", "false", False),
        ("cf-aig-max-attempts", "1", 1),
        ("cf-aig-max-attempts", "5", 5),
        ("cf-aig-retry-delay", "0", 0),
        ("cf-aig-retry-delay", "5000", 5000),
        ("cf-aig-backoff", "constant", "constant"),
        ("cf-aig-backoff", "linear", "linear"),
        ("cf-aig-backoff", "exponential", "exponential"),
        ("cf-aig-request-timeout", "1", 1),
        ("cf-aig-request-timeout", "3600000", 3_600_000),
        ("cf-aig-fallback", "azure-eu", ("azure-eu",)),
        ("cf-aig-fallback", "azure-eu, azure-sa,x", ("azure-eu", "azure-sa", "x")),
        ("cf-aig-fallback", "none", ()),
        (
            "cf-aig-metadata",
            '{"tenantId": "acme", "n": 1, "f": 0.5, "b": true, "z": null}',
            {"tenantId": "acme", "n": 1, "f": 0.5, "b": True, "z": None},
        ),
        ("cf-aig-metadata", "{}", {}),
        ("cf-aig-metadata", '{"emoji": "\\ud83d\\ude00"}', {"emoji": "😀"}),
        ("cf-aig-session-id", "run 7", "run 7"),
        ("cf-aig-event-id", "e" * 256, "e" * 256),
        ("cf-aig-otel-trace-id", "4BF92F3577B34DA6A3CE929D0E0E4736", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("cf-aig-otel-parent-span-id", "00f067aa0ba902b7", "00f067aa0ba902b7"),
        ("cf-aig-collect-log", "false", False),
        ("cf-aig-collect-log-payload", "true", True),
        (
            "cf-aig-custom-cost",
            '{"per_token_in": 0.000001, "per_token_out": 0, "per_cache_read_token": 1e-7, "per_cache_write_token": 2}',
            {
                "per_token_in": Decimal("0.000001"),
                "per_token_out": Decimal(0),
                "per_cache_read_token": Decimal("1E-7"),
                "per_cache_write_token": Decimal(2),
            },
        ),
        ("cf-aig-authorization", "Bearer k 1", "k 1"),
        ("cf-aig-authorization", "bearer k", "k"),
    ],
)
def test_a_value_is_parsed(header: str, value: str, parsed: object) -> None:
    key = header.removeprefix("cf-aig-")
    found = read(one(header, value))
    assert found == {key: parsed}
    assert isinstance(found, dict)
    assert type(found[key]) is type(parsed)


@pytest.mark.parametrize(
    ("header", "value", "takes"),
    [
        ("cf-aig-cache-ttl", "2592001", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "-1", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "1h", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "1.0", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "1_000", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "٣", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "9" * 5000, "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-ttl", "", "whole seconds from 0 to 2592000"),
        ("cf-aig-cache-key", "", "printable text of 1 to 1024 characters, as UTF-8"),
        ("cf-aig-cache-key", "k" * 1025, "printable text of 1 to 1024 characters, as UTF-8"),
        ("cf-aig-cache-key", "a\x00b", "printable text of 1 to 1024 characters, as UTF-8"),
        ("cf-aig-skip-cache", "1", "true or false"),
        ("cf-aig-skip-cache", "True", "true or false"),
        ("cf-aig-collect-log", "yes", "true or false"),
        ("cf-aig-collect-log-payload", "", "true or false"),
        ("cf-aig-max-attempts", "0", "a whole number from 1 to 5"),
        ("cf-aig-max-attempts", "6", "a whole number from 1 to 5"),
        ("cf-aig-retry-delay", "5001", "whole milliseconds from 0 to 5000"),
        ("cf-aig-backoff", "Linear", "constant, linear or exponential"),
        ("cf-aig-request-timeout", "0", "whole milliseconds from 1 to 3600000"),
        ("cf-aig-request-timeout", "3600001", "whole milliseconds from 1 to 3600000"),
        ("cf-aig-fallback", "", "names of targets, separated by commas, or none"),
        ("cf-aig-fallback", "a,,b", "names of targets, separated by commas, or none"),
        ("cf-aig-fallback", "a, none", "names of targets, separated by commas, or none"),
        ("cf-aig-fallback", "A B", "names of targets, separated by commas, or none"),
        ("cf-aig-metadata", "tenant=acme", "a flat JSON object"),
        ("cf-aig-metadata", "[]", "a flat JSON object"),
        ("cf-aig-metadata", '"acme"', "a flat JSON object"),
        ("cf-aig-metadata", '{"a": {}}', "a flat JSON object"),
        ("cf-aig-metadata", '{"a": []}', "a flat JSON object"),
        ("cf-aig-metadata", '{"a": NaN}', "a flat JSON object"),
        ("cf-aig-metadata", '{"a": 1e999}', "a flat JSON object"),
        ("cf-aig-metadata", '{"a": "\\ud800"}', "a flat JSON object"),
        ("cf-aig-metadata", '{"\\udc00": 1}', "a flat JSON object"),
        (
            "cf-aig-metadata",
            "{" + ",".join(f'"k{n}": {n}' for n in range(17)) + "}",
            "a flat JSON object of at most 16",
        ),
        ("cf-aig-metadata", '{"a": "' + "x" * 4096 + '"}', "a flat JSON object of at most 16 entries and 4096 bytes"),
        ("cf-aig-metadata", '{"a": "' + "ü" * 2045 + '"}', "a flat JSON object of at most 16 entries and 4096 bytes"),
        ("cf-aig-metadata", "[" * 4000, "a flat JSON object"),
        ("cf-aig-session-id", "s" * 257, "printable text of 1 to 256 characters, as UTF-8"),
        ("cf-aig-otel-trace-id", "4bf92f3577b34da6", "32 hex digits, not all of them 0"),
        ("cf-aig-otel-trace-id", "0" * 32, "32 hex digits, not all of them 0"),
        ("cf-aig-otel-trace-id", "g" * 32, "32 hex digits, not all of them 0"),
        ("cf-aig-otel-parent-span-id", "0" * 16, "16 hex digits, not all of them 0"),
        ("cf-aig-custom-cost", "0.01", "a JSON object of USD per token"),
        ("cf-aig-custom-cost", "{}", "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"per_token_in": -1}', "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"per_token_in": "1"}', "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"per_token_in": true}', "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"per_token_in": 1e9}', "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"per_token_in": 1e99999999999999999999}', "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"total_cost": 1}', "a JSON object of USD per token"),
        ("cf-aig-custom-cost", '{"per_token_in": ' + "1" * 2000 + "}", "a JSON object of USD per token"),
    ],
)
def test_a_value_that_does_not_parse_is_refused_by_name(header: str, value: str, takes: str) -> None:
    refused = read(one(header, value))
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.kind, refused.source, refused.param) == (400, "bad_request", "gateway", header)
    assert refused.should_retry is False
    assert refused.message.startswith(f"The request header {header} is '")
    assert f"; it takes {takes}" in refused.message


def test_the_refusal_shows_the_value_cut_and_printable() -> None:
    refused = read([(b"cf-aig-cache-ttl", b"\x1b[31m" + b"9" * 200)])
    assert isinstance(refused, Refusal)
    assert refused.message == (
        f"The request header cf-aig-cache-ttl is '�[31m{'9' * 74}…'; it takes whole seconds from 0 to 2592000."
    )


@pytest.mark.parametrize("value", ["sk-hidden", "Basic hidden", "Bearer ", "Bearer"])
def test_the_refusal_of_a_key_does_not_repeat_it(value: str) -> None:
    refused = read(one("cf-aig-authorization", value))
    assert isinstance(refused, Refusal)
    assert refused.message == (
        "The request header cf-aig-authorization cannot be read; it takes Bearer and the gateway's key."
    )


def test_bytes_that_are_no_text_are_refused() -> None:
    refused = read([(b"cf-aig-cache-key", b"caf\xe9")])
    assert isinstance(refused, Refusal)
    assert refused.message.startswith("The request header cf-aig-cache-key is 'caf�'; it takes printable text")


def test_a_header_that_stands_twice_is_refused() -> None:
    refused = read([(b"cf-aig-max-attempts", b"3"), (b"CF-AIG-Max-Attempts", b"3")])
    assert isinstance(refused, Refusal)
    assert refused.message == "The request header cf-aig-max-attempts stands twice; send it once."
    assert refused.param == "cf-aig-max-attempts"


@pytest.mark.parametrize("name", [b"CF-AIG-Cache-TTL", b"Cf-Aig-Cache-Ttl", b"cF-aIG-cAcHe-tTl"])
def test_case_of_the_name_does_not_matter(name: bytes) -> None:
    assert read([(name, b"60")]) == {"cache-ttl": 60}
    assert strip([(name, b"60")]) == []


def test_unknown_headers_of_the_family_are_ignored_and_taken_away() -> None:
    fields = [(b"cf-aig-zdr", b"true"), (b"cf-aig-zdr", b"x"), (b"cf-aig-", b""), (b"cf-aig-\xff", b"\xff")]
    assert read(fields) == {}
    assert strip(fields) == []


@pytest.mark.parametrize(("alias", "key"), [("cf-cache-ttl", "cache-ttl"), ("cf-skip-cache", "skip-cache")])
def test_the_older_names_still_work_and_the_newer_one_wins(alias: str, key: str) -> None:
    value, other = ("60", "90") if key == "cache-ttl" else ("true", "false")
    parsed: dict[str, Any] = {"60": 60, "90": 90, "true": True, "false": False}
    older, newer = (alias.encode(), value.encode()), (f"cf-aig-{key}".encode(), other.encode())
    assert read([older]) == {key: parsed[value]}
    assert read([older, newer]) == read([newer, older]) == {key: parsed[other]}
    assert strip([older, newer]) == []


def test_several_headers_are_read_together() -> None:
    fields = [
        (b"cf-aig-request-timeout", b"1500"),
        (b"authorization", b"Bearer x"),
        (b"cf-aig-metadata", b'{"tenantId": "acme"}'),
        (b"cf-aig-collect-log", b"false"),
    ]
    assert read(fields) == {"request-timeout": 1500, "metadata": {"tenantId": "acme"}, "collect-log": False}


def test_a_request_without_controls_has_none() -> None:
    assert read([(b"host", b"api.openai.com"), (b"cf-ray", b"x"), (b"cf-connecting-ip", b"1.2.3.4")]) == {}


# -- what travels on --------------------------------------------------------------------------------------------------


def test_all_else_keeps_order_case_and_duplicates() -> None:
    fields = [
        (b"Host", b"api.openai.com"),
        (b"X-A", b"1"),
        (b"x-a", b"2"),
        (b"Content-Length", b"22"),
        (b"CF-Ray", b"7"),
        (b"Cookie", b"\xff"),
        (b"", b""),
    ]
    assert strip(fields) == fields


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "proxy-connection",
        "Proxy-Authorization",
        "Keep-Alive",
        "TE",
        "transfer-encoding",
        "Upgrade",
        "cf-aig-authorization",
        "Cf-Skip-Cache",
        "cf-cache-ttl",
        *(f"cf-aig-{key}" for key in TABLE),
    ],
)
def test_what_belongs_to_the_connection_or_to_us_does_not_travel(name: str) -> None:
    assert strip([(b"a", b"1"), (name.encode(), b"x"), (b"b", b"2")]) == [(b"a", b"1"), (b"b", b"2")]


def test_what_the_connection_header_names_does_not_travel() -> None:
    fields = [(b"X-Hop", b"1"), (b"Connection", b"close, x-hop ,X-Other"), (b"x-other", b"2"), (b"X-End", b"3")]
    assert strip(fields) == [(b"X-End", b"3")]


def test_the_connection_header_cannot_take_away_where_the_body_ends() -> None:
    fields = [(b"Content-Length", b"5"), (b"Host", b"h"), (b"connection", b"content-length, host")]
    assert strip(fields) == fields[:2]


@pytest.mark.parametrize(
    ("name", "ours"),
    [(b"cf-aig-x", True), (b"CF-AIG-", True), (b"cf-skip-cache", True), (b"cf-ray", False), (b"x-cf-aig-a", False)],
)
def test_ours_are_told_from_cloudflares_own(name: bytes, ours: bool) -> None:
    assert is_ours(name) is ours


NAMES = st.one_of(
    st.sampled_from([f"cf-aig-{key}".encode() for key in TABLE]), st.binary(max_size=12), st.just(b"connection")
)
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"true", b"1", b'{"a": 1}', b"none", b"Bearer k"]))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_no_bytes_make_it_raise_and_none_of_ours_travels(fields: Fields) -> None:
    found = read(fields)
    assert isinstance(found, dict | Refusal)
    if isinstance(found, Refusal):
        assert str(found.param) in found.message
        assert found.message.isprintable()
    assert not any(is_ours(name) for name, _ in strip(fields))


def test_a_request_without_controls_costs_microseconds() -> None:
    fields = [(b"x-stainless-%d" % n, b"value") for n in range(18)]
    fields += [(b"Connection", b"keep-alive"), (b"Content-Length", b"22")]
    best_s = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        read(fields)
        strip(fields)
        best_s = min(best_s, time.perf_counter() - started)
    assert best_s < 50e-6  # 5 µs together where it was written; the rest is room for a busy machine
