"""What the cache may do with a request, and which answers it may keep."""

from dataclasses import replace
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.cache_rules import Decision, decide, replayable, why_not_kept
from mitmgate.dialects.base import Call, Reading
from mitmgate.policy.match import compile_match
from mitmgate.policy.values import Cache
from support.kept_answers import READING

RULE = Cache(60.0, "faq", compile_match({"route": "faq"}), None, False, ("tenant",), 3600.0, "live", ("user",))
BY_RULE = Decision(60.0, True, True, "faq", ("tenant",), 3600.0, "live", ("user",))
BY_HEADER = Decision(30.0, True, True, "header", ("auth",))


def decided(
    controls: dict[str, Any], client: str | None = None, rules: tuple[Cache, ...] = (RULE,), route: str | None = "faq"
) -> Decision | None:
    headers = {} if client is None else {"cache-control": client}
    return decide(rules, controls, headers, {"route": route}.get)


@pytest.mark.parametrize(
    ("controls", "client", "decision"),
    [
        ({}, None, BY_RULE),
        ({"cache-ttl": 30}, None, replace(BY_RULE, ttl_s=30.0)),
        ({"cache-ttl": 0}, None, replace(BY_RULE, ttl_s=0.0, look_up=False, keep=False)),
        ({"cache-key": "k"}, None, BY_RULE),
        ({"skip-cache": True}, None, replace(BY_RULE, look_up=False)),
        ({"skip-cache": False}, None, BY_RULE),
        ({}, "no-cache", replace(BY_RULE, look_up=False)),
        ({}, "no-store", replace(BY_RULE, look_up=False, keep=False)),
        ({}, 'max-age=0, No-Store="x"', replace(BY_RULE, look_up=False, keep=False)),
        ({"cache-ttl": 30}, "no-cache, no-transform", replace(BY_RULE, ttl_s=30.0, look_up=False)),
        ({}, "no-storage, nocache", BY_RULE),
    ],
)
def test_a_header_goes_before_the_rule(controls: dict[str, Any], client: str | None, decision: Decision) -> None:
    assert decided(controls, client) == decision


@pytest.mark.parametrize(
    ("controls", "client", "decision"),
    [
        ({}, None, None),
        ({}, "no-store", None),
        ({"skip-cache": False}, None, None),
        ({"cache-ttl": 30}, None, BY_HEADER),
        ({"cache-ttl": 30, "cache-key": "k"}, None, BY_HEADER),
        ({"cache-ttl": 0}, None, replace(BY_HEADER, ttl_s=0.0, look_up=False, keep=False)),
        ({"cache-key": "k"}, None, replace(BY_HEADER, ttl_s=300.0)),
        ({"cache-ttl": 30, "skip-cache": True}, None, replace(BY_HEADER, look_up=False)),
        ({"skip-cache": True}, None, replace(BY_HEADER, ttl_s=0.0, look_up=False, keep=False)),
        ({"cache-ttl": 30}, "no-cache", replace(BY_HEADER, look_up=False)),
    ],
)
def test_without_a_rule_the_headers_decide(
    controls: dict[str, Any], client: str | None, decision: Decision | None
) -> None:
    assert decided(controls, client, route="chat") == decision


def test_the_first_rule_that_matches_acts_and_a_shadow_does_not() -> None:
    rules = (
        replace(RULE, shadow=True, ttl_s=1.0),
        Cache(2.0, "never", compile_match({"route": "x"})),
        Cache(3.0, "any"),
    )
    assert decided({}, rules=rules) == Decision(3.0, True, True, "any")


def test_a_rule_of_no_time_takes_requests_out_of_the_cache() -> None:
    assert decided({}, rules=(replace(RULE, ttl_s=0.0), Cache(60.0))) == replace(
        BY_RULE, ttl_s=0.0, look_up=False, keep=False
    )


# -- which answers are kept -------------------------------------------------------------------------------------------


def test_a_whole_good_answer_is_kept() -> None:
    assert why_not_kept(200, READING, "end", True) is None
    assert why_not_kept(200, replace(READING, streamed=False), "end", False) is None


@pytest.mark.parametrize(
    ("status", "how", "streamed", "changes", "reason"),
    [
        (500, "end", False, {}, "its status is 500"),
        (201, "end", False, {}, "its status is 201"),
        (None, "end", False, {}, "its status is None"),
        (200, "cut", True, {}, "the answer broke off"),
        (200, "client_left", True, {}, "the client left before its end"),
        (200, "timeout", True, {}, "its time was up before its end"),
        (200, "refused", False, {}, "the gateway refused it"),
        (200, "failed", False, {}, "no answer could be had"),
        (200, None, True, {}, "it has no end yet"),
        (200, "end", True, {"error_event": True}, "it tells of a failure (error_event)"),
        (200, "end", True, {"error_type": "content_filter"}, "it tells of a failure (content_filter)"),
        (200, "end", False, {"parse_errors": 1}, "its body is not of this API"),
        (200, "end", True, {"ended": False}, "the stream has no regular end"),
        (200, "end", False, {"ended": False, "streamed": False}, "its body is not whole"),
        (200, "end", True, {"finish_reasons": ["stop", "length"]}, "it ended with 'length'"),
    ],
)
def test_what_is_not_whole_or_not_good_is_not(
    status: int | None, how: Any, streamed: bool, changes: dict[str, Any], reason: str
) -> None:
    assert why_not_kept(status, replace(READING, **changes), how, streamed) == reason


KEPT_REASONS = [
    *("stop", "tool_calls", "function_call"),  # OpenAI
    *("end_turn", "stop_sequence", "tool_use"),  # Anthropic, Bedrock
    *("STOP",),  # Gemini
    *("completed",),  # Responses
    *("COMPLETE", "STOP_SEQUENCE", "TOOL_CALL"),  # Cohere
    *("FINISH", "STOP_CRITERIA_MET"),  # Titan
    *("eos_token", "eos", "tool-calls", "requires_action"),
]

OTHER_REASONS = [
    *("length", "content_filter", "model_length", "error", "insufficient_system_resource", "sensitive", "abort"),
    *("max_tokens", "refusal", "pause_turn", "model_context_window_exceeded"),
    *("MAX_TOKENS", "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "OTHER"),
    *("IMAGE_SAFETY", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "FINISH_REASON_UNSPECIFIED"),
    *("incomplete", "failed", "cancelled", "queued", "in_progress"),
    *("ERROR", "ERROR_TOXIC", "ERROR_LIMIT", "USER_CANCEL", "TIMEOUT"),
    *("LENGTH", "CONTENT_FILTERED", "content_filtered", "guardrail_intervened"),
    "a reason that nobody has heard of",
]  # fmt: skip


@pytest.mark.parametrize("reason", KEPT_REASONS)
def test_answers_that_said_all_they_had_to_say_are_kept(reason: str) -> None:
    assert why_not_kept(200, replace(READING, finish_reasons=[reason]), "end", True) is None


@pytest.mark.parametrize("reason", OTHER_REASONS)
def test_answers_that_were_ended_by_something_else_are_not(reason: str) -> None:
    assert why_not_kept(200, replace(READING, finish_reasons=[reason]), "end", True) == f"it ended with {reason!r}"


def test_an_answer_whose_api_knows_no_finish_reason_is_kept() -> None:
    assert why_not_kept(200, Reading(ended=True), "end", False) is None


CHAT = "/v1/chat/completions"
WHOLE = b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
EVENTS = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":%b}]}\n\n'
BLOCKED = b'{"promptFeedback":{"blockReason":"SAFETY"}}'
MESSAGE = b'{"type":"message","content":[{"type":"text","text":"Hi"}],"stop_reason":"%b"}'


@pytest.mark.parametrize(
    ("path", "content_type", "body", "kept"),
    [
        (CHAT, "application/json", WHOLE, True),
        (CHAT, "application/json", WHOLE[:-9], False),
        (CHAT, "application/json", b"", False),
        (CHAT, "text/html", b"<html>log in</html>", False),
        (CHAT, "application/json", b'{"error":{"message":"overloaded"}}', False),
        (CHAT, "text/event-stream", EVENTS % b'"stop"' + b"data: [DONE]\n\n", True),
        (CHAT, "text/event-stream", EVENTS % b'"length"' + b"data: [DONE]\n\n", False),
        (CHAT, "text/event-stream", EVENTS % b"null", False),
        (CHAT, "text/event-stream", EVENTS % b"null" + b'data: {"error":{"message":"x"}}\n\n', False),
        ("/v1/messages", "application/json", MESSAGE % b"tool_use", True),
        ("/v1/messages", "application/json", MESSAGE % b"refusal", False),
        ("/v1beta/models/g:generateContent", "application/json", BLOCKED, False),
        ("/v1/responses", "application/json", b'{"object":"response","status":"queued","output":[]}', False),
        ("/v1/responses", "application/json", b'{"object":"response","status":"completed","output":[]}', True),
        ("/v1/embeddings", "application/json", b'{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":1}}', True),
    ],
)
def test_bodies_as_providers_send_them(path: str, content_type: str, body: bytes, kept: bool) -> None:
    dialect = dialects.find(None, "POST", path)
    assert dialect is not None
    streamed = "event-stream" in content_type
    reading = dialects.reading_of(dialect, Call(200, {"content-type": content_type}, streamed, path), [body])
    assert (why_not_kept(200, reading, "end", streamed) is None) is kept


# -- the head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("Set-Cookie", "Date", "Age", "ETag", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Connection"),
        *("x-ratelimit-remaining-requests", "anthropic-ratelimit-tokens-reset", "RateLimit-Policy"),
        *("x-rate-limit-limit", "retry-after", "x-ms-retry-after-ms", "x-ms-ratelimit-remaining-tokens"),
        "azure-openai-remaining-tokens",
        *("cf-aig-log-id", "cf-aig-cache-status", "CF-Ray", "openai-organization", "x-should-retry", "alt-svc"),
    ],
)  # fmt: skip
def test_what_was_true_of_one_answer_is_not_replayed(name: str) -> None:
    assert replayable([(b"a", b"1"), (name.encode(), b"v"), (b"b", b"2")]) == [(b"a", b"1"), (b"b", b"2")]


def test_the_rest_of_the_head_is_replayed_as_it_came() -> None:
    head = [
        (b"Content-Type", b"text/event-stream"),
        (b"x-request-id", b"req_1"),
        (b"X-Twice", b"a"),
        (b"openai-version", b"2020-10-01"),
        (b"x-twice", b"b"),
        (b"cache-control", b"no-store"),
        (b"x-amzn-bedrock-input-token-count", b"12"),
    ]
    assert replayable(head) == head


def test_a_field_that_the_connection_names_is_not_replayed() -> None:
    assert replayable([(b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"x-stays", b"1")]) == [(b"x-stays", b"1")]
