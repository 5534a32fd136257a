"""What providers call an error becomes one word; what we call one is said in their words."""

import json
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Dialect
from mitmgate.dialects.refusals import WORDS as REFUSAL_WORDS
from mitmgate.dialects.vocabulary import CODE_NUMBERS, CODES, STATUSES, WORDS, classify, event_type
from mitmgate.errors import Kind, Refusal
from support.readings import read


def openai(message: str = "x", type: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def anthropic(type: str, message: str = "x") -> dict[str, Any]:
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str = "x", **details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": [details]}}


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, openai("Incorrect API key provided", "invalid_request_error", "invalid_api_key"), "authentication"),
        (400, openai("Unsupported parameter", "invalid_request_error", "unsupported_parameter"), "invalid_request"),
        (404, openai("x", "invalid_request_error", "model_not_found"), "not_found"),
        (429, openai("Rate limit reached", "tokens", "rate_limit_exceeded"), "rate_limit"),
        (
            429,
            openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
            "insufficient_quota",
        ),
        (400, openai("x", "invalid_request_error", "context_length_exceeded"), "context_length"),
        (400, openai("prompt too long; exceeded max context length", "invalid_request_error"), "context_length"),
        (400, openai("This endpoint's maximum context length is 200000 tokens.", code=400), "context_length"),
        (500, openai("The server had an error", "server_error"), "server_error"),
        (503, openai("The engine is currently overloaded", "server_error"), "overloaded"),
        (
            400,
            {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            "content_filter",
        ),
        (401, openai("Authentication Fails", "authentication_error", "invalid_request_error"), "authentication"),
        (404, {"error": {"code": "404", "message": "Resource not found"}}, "not_found"),
        (402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), "insufficient_quota"),
        (401, {"detail": "Unauthorized"}, "authentication"),
        (422, {"detail": [{"type": "missing", "msg": "Field required", "loc": ["body"]}]}, "422"),
        (400, {"object": "error", "type": "BadRequestError", "message": "x", "code": 400}, "invalid_request"),
        (404, anthropic("not_found_error"), "not_found"),
        (529, anthropic("overloaded_error"), "overloaded"),
        (529, None, "overloaded"),
        (
            400,
            anthropic("invalid_request_error", "Your credit balance is too low to access the API"),
            "insufficient_quota",
        ),
        (400, anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000"), "context_length"),
        (413, anthropic("request_too_large"), "too_large"),
        (500, anthropic("api_error"), "server_error"),
        (400, google(400, "INVALID_ARGUMENT", reason="API_KEY_INVALID"), "authentication"),
        (400, google(400, "INVALID_ARGUMENT", "The input token count (1250074) exceeds the maximum"), "context_length"),
        (400, google(400, "INVALID_ARGUMENT"), "invalid_request"),
        (403, google(403, "PERMISSION_DENIED"), "permission"),
        (
            429,
            google(
                429,
                "RESOURCE_EXHAUSTED",
                "You exceeded your current quota",
                violations=[{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}],
            ),
            "rate_limit",
        ),
        (
            429,
            google(
                429,
                "RESOURCE_EXHAUSTED",
                "You exceeded your current quota",
                violations=[{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
            ),
            "insufficient_quota",
        ),
        (503, google(503, "UNAVAILABLE"), "overloaded"),
        (429, [google(429, "RESOURCE_EXHAUSTED")], "rate_limit"),
        (400, {"message": "no", "__type": "ValidationException"}, "invalid_request"),
        (502, None, "502"),
        (500, "Internal Server Error", "500"),
        (400, {}, "400"),
        (418, {"error": "teapot"}, "418"),
        (400, {"error": True, "code": [1], "type": {"a": 1}}, "400"),
    ],
)
def test_an_error_body_becomes_one_word(status: int, body: Any, word: str) -> None:
    assert classify(status, body) == word


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (anthropic("overloaded_error"), "error_event:overloaded"),
        (openai("x", None, 502), "error_event:server_error"),
        (openai("x", None, "429"), "error_event:rate_limit"),
        (google(499, "CANCELLED"), "error_event:cancelled"),
        (openai("x", "brand_new_error", "E_17"), "error_event:other"),
        ("text", "error_event:other"),
        (None, "error_event:other"),
    ],
)
def test_an_error_event_becomes_one_word(body: Any, word: str) -> None:
    assert event_type(body) == word


def test_every_word_is_explained() -> None:
    said = {*CODES.values(), *STATUSES.values(), *CODE_NUMBERS.values()}
    assert said <= set(WORDS)
    assert all(code == code.lower() for code in CODES)


def test_a_deep_or_huge_error_body_is_looked_at_no_further_than_needed() -> None:
    nested: Any = {"code": "rate_limit_exceeded"}
    for _ in range(500):
        nested = {"error": nested}
    assert classify(None, nested) == "other"
    assert classify(400, {"error": {"message": "x" * 10_000_000}}) == "400"


REFUSAL = Refusal(429, "rate_limit", "Too fast: rule burst (policy.yaml:12).", param="model", retry_after_s=7.5)


@pytest.mark.parametrize("dialect", [dialects.CHAT, dialects.COMPLETIONS, dialects.EMBEDDINGS, dialects.RESPONSES])
def test_a_refusal_in_openais_form(dialect: Dialect) -> None:
    assert json.loads(dialect.error_body(REFUSAL, "0199")) == {
        "error": {
            "message": "Too fast: rule burst (policy.yaml:12). (mitmgate row 0199)",
            "type": "rate_limit_error",
            "param": "model",
            "code": "rate_limit_exceeded",
            "log_id": "0199",
        }
    }


def test_a_refusal_in_anthropics_form() -> None:
    assert json.loads(dialects.MESSAGES.error_body(REFUSAL, "0199")) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "Too fast: rule burst (policy.yaml:12). (mitmgate row 0199)"},
        "request_id": "0199",
    }


def test_a_refusal_in_googles_form() -> None:
    body = dialects.GENERATE.error_body(REFUSAL, "0199")
    assert body.startswith(b'{"error":')  # what google-genai looks for within a stream
    error = json.loads(body)["error"]
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert error["details"][0]["metadata"] == {"log_id": "0199"}
    assert error["details"][1] == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.5s"}


def test_without_a_row_no_id_is_named() -> None:
    for dialect in (dialects.CHAT, dialects.MESSAGES, dialects.GENERATE, dialects.GENERIC):
        assert b"mitmgate row" not in dialect.error_body(REFUSAL, None)


@pytest.mark.parametrize("kind", REFUSAL_WORDS)
@pytest.mark.parametrize(
    "dialect",
    [dialects.CHAT, dialects.RESPONSES, dialects.MESSAGES, dialects.GENERATE, dialects.GENERIC],
    ids=lambda d: d.name,
)
def test_our_last_event_reads_as_an_error_event_and_as_no_end(dialect: Dialect, kind: Kind) -> None:
    event = dialect.error_event(Refusal(504, kind, "The provider was silent."), "0199")
    assert event.endswith(b"\n\n")
    assert b"0199" in event
    reading = read(dialect, event)
    assert reading.error_event
    assert not reading.finished
    assert reading.parse_errors == 0
    if dialect is not dialects.GENERIC:
        assert not reading.ended


def test_responses_say_it_twice_for_typed_readers_and_for_the_sdk() -> None:
    event = dialects.RESPONSES.error_event(REFUSAL, None)
    assert event.startswith(b"event: error\ndata: ")
    data = json.loads(event.partition(b"data: ")[2])
    assert (data["type"], data["code"], data["error"]["code"]) == (
        "error",
        "rate_limit_exceeded",
        "rate_limit_exceeded",
    )


def test_in_geminis_list_the_error_is_the_last_element() -> None:
    body = b'[{"candidates":[]}' + dialects.GENERATE_LIST.error_event(REFUSAL, None)
    assert json.loads(body)[1]["error"]["code"] == 429


def test_a_budget_refusal_is_insufficient_quota_and_its_kin() -> None:
    refusal = Refusal(429, "insufficient_quota", "Spent.")
    assert json.loads(dialects.CHAT.error_body(refusal, None))["error"]["type"] == "insufficient_quota"
    assert json.loads(dialects.MESSAGES.error_body(refusal, None))["error"]["type"] == "billing_error"
