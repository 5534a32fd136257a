"""The closed list of ``error_type``: one word per cause, whatever a provider calls it.

A row's ``error_type`` is one of ``WORDS`` below where the answer says enough, else its status code as text (``502``). A
failure told inside of a 200 is ``error_event:WORD``, ``error_event:other`` where the word is unknown; a prompt that the
provider's filter stopped is ``content_filter`` in either case. What the gateway itself adds (``timeout``, ``connect``,
``reset`` …) stands in the rooms that say it.

The list is short on purpose (OpenTelemetry asks for low cardinality): one may group by it.
"""

import re
from collections.abc import Iterator, Mapping

from mitmgate.dialects.base import Json

WORDS: Mapping[str, str] = {
    "insufficient_quota": "money or a quota is used up; waiting does not help",
    "context_length": "the prompt is longer than the model takes",
    "content_filter": "the provider's filter stopped prompt or answer",
    "rate_limit": "too many requests or tokens; waiting helps",
    "overloaded": "the provider has no capacity just now",
    "authentication": "the key is missing, wrong or expired",
    "permission": "the key may not do this",
    "not_found": "no such model, deployment or path",
    "too_large": "the body is larger than the provider takes",
    "timeout": "the provider, or a clock of ours, gave up waiting",
    "cancelled": "ended before its answer: by the provider, or by us, since another was first or the client had left",
    "invalid_request": "the provider refuses the request as it stands",
    "server_error": "the provider failed",
    "unreadable": "a 200 whose body is not of this API: a login page, an empty body",
}
"""Word -> meaning, the most telling first: where an answer speaks for several, the first one stands."""

OTHER = "other"

_RANK = {word: rank for rank, word in enumerate(WORDS)}

CODES: Mapping[str, str] = {
    # OpenAI and all who speak like it; Azure
    "insufficient_quota": "insufficient_quota",
    "billing_hard_limit_reached": "insufficient_quota",
    "billing_not_active": "insufficient_quota",
    "exceeded_current_quota_error": "insufficient_quota",
    "insufficient_balance": "insufficient_quota",
    "quota_exceeded": "insufficient_quota",
    "usage_limit_reached": "insufficient_quota",
    "context_length_exceeded": "context_length",
    "context_window_exceeded": "context_length",
    "exceed_context_size_error": "context_length",
    "string_above_max_length": "context_length",
    "model_max_prompt_tokens_exceeded": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "responsibleaipolicyviolation": "content_filter",
    "data_inspection_failed": "content_filter",
    "sensitive_words_detected": "content_filter",
    "prompt_blocked": "content_filter",
    "rate_limit_exceeded": "rate_limit",
    "rate_limit_error": "rate_limit",
    "rate_limit_reached_error": "rate_limit",
    "rate_limited": "rate_limit",
    "too_many_requests": "rate_limit",
    "toomanyrequests": "rate_limit",
    "throttled": "rate_limit",
    "throttling": "rate_limit",
    "requests": "rate_limit",
    "tokens": "rate_limit",
    "slow_down": "rate_limit",
    "server_overloaded": "overloaded",
    "engine_overloaded_error": "overloaded",
    "service_unavailable": "overloaded",
    "serviceunavailable": "overloaded",
    "capacity_exceeded": "overloaded",
    "invalid_api_key": "authentication",
    "incorrect_api_key": "authentication",
    "invalid_authentication_error": "authentication",
    "unauthorized": "authentication",
    "account_deactivated": "authentication",
    "permission_denied": "permission",
    "access_denied": "permission",
    "forbidden": "permission",
    "unsupported_country_region_territory": "permission",
    "model_not_found": "not_found",
    "deploymentnotfound": "not_found",
    "resource_not_found_error": "not_found",
    "not_found": "not_found",
    "unknown_model": "not_found",
    "request_too_large": "too_large",
    "server_error": "server_error",
    "internal_server_error": "server_error",
    "internalservererror": "server_error",
    "internal_error": "server_error",
    "upstream_error": "server_error",
    "api_error": "server_error",
    "invalid_request_error": "invalid_request",
    "invalid_request": "invalid_request",
    "bad_request": "invalid_request",
    "badrequest": "invalid_request",
    "badrequesterror": "invalid_request",
    "validation_error": "invalid_request",
    "invalid_value": "invalid_request",
    "invalid_prompt": "invalid_request",
    "unsupported_parameter": "invalid_request",
    "unsupported_value": "invalid_request",
    "invalidparameter": "invalid_request",
    "tool_use_failed": "invalid_request",
    "json_validate_failed": "invalid_request",
    # Anthropic
    "authentication_error": "authentication",
    "billing_error": "insufficient_quota",
    "permission_error": "permission",
    "not_found_error": "not_found",
    "overloaded_error": "overloaded",
    "timeout_error": "timeout",
    # Google (https://cloud.google.com/apis/design/errors)
    "invalid_argument": "invalid_request",
    "failed_precondition": "invalid_request",
    "out_of_range": "invalid_request",
    "unauthenticated": "authentication",
    "api_key_invalid": "authentication",
    "api_key_service_blocked": "permission",
    "resource_exhausted": "rate_limit",
    "unavailable": "overloaded",
    "deadline_exceeded": "timeout",
    "cancelled": "cancelled",
    "internal": "server_error",
    "unknown": "server_error",
    # AWS
    "throttlingexception": "rate_limit",
    "servicequotaexceededexception": "insufficient_quota",
    "accessdeniedexception": "permission",
    "unrecognizedclientexception": "authentication",
    "expiredtokenexception": "authentication",
    "validationexception": "invalid_request",
    "resourcenotfoundexception": "not_found",
    "modelnotreadyexception": "overloaded",
    "serviceunavailableexception": "overloaded",
    "modeltimeoutexception": "timeout",
    "modelerrorexception": "server_error",
    "modelstreamerrorexception": "server_error",
    "internalserverexception": "server_error",
}
"""What providers say in ``code``, ``type``, ``status`` or ``reason``, lower case, to our word."""

STATUSES: Mapping[int, str] = {
    401: "authentication",
    402: "insufficient_quota",
    403: "permission",
    404: "not_found",
    413: "too_large",
    429: "rate_limit",
    529: "overloaded",
}
"""Statuses that have one meaning everywhere; the others stand for themselves."""

CODE_NUMBERS: Mapping[int, str] = {
    **STATUSES,
    400: "invalid_request",
    422: "invalid_request",
    408: "timeout",
    499: "cancelled",
    500: "server_error",
    502: "server_error",
    503: "overloaded",
    504: "timeout",
}
"""The same for a number inside of a body, where no status says it."""

_SAID: tuple[tuple[str, str], ...] = (
    (r"credit balance is too low|exceeded your monthly|requires more credits|out of credits", "insufficient_quota"),
    (r"insufficient (?:balance|credits?|funds)|spend(?:ing)? limit", "insufficient_quota"),
    (r"max(?:imum)? (?:context|prompt length)|context (?:window|length|size)", "context_length"),
    (r"(?:prompt|input) (?:is )?too long|too many (?:input )?tokens|input length and `?max_tokens", "context_length"),
    (r"input token count .*exceeds|exceeds the (?:maximum|available) (?:number of tokens|context)", "context_length"),
    (r"content (?:management policy|filter|policy)|safety (?:system|filter)", "content_filter"),
    (r"flagged as potentially violating", "content_filter"),
    (r"api key not valid|(?:invalid|incorrect) api key|invalid subscription key", "authentication"),
    (r"security token .*expired", "authentication"),
    (r"overloaded|at capacity|over capacity", "overloaded"),
)
_SENTENCES = tuple((re.compile(pattern, re.IGNORECASE), word) for pattern, word in _SAID)
"""What only the sentence tells: Anthropic says "credit balance" in an ``invalid_request_error``, Google has one code
for all.
"""


def classify(status: int | None, body: Json) -> str:
    """Return the word for an error *body* (parsed JSON of any shape), the most telling of all that it says.

    *status* is the answer's own; without a telling word it becomes the result as text. ``other`` where there is none.
    """
    said: set[str] = set()
    for fact in _facts(body):
        if isinstance(fact, int):
            said.add(CODE_NUMBERS.get(fact, "") if fact != status else "")
        elif word := CODES.get(fact.lower()):
            said.add(word)
        elif fact.isdigit():
            said.add(CODE_NUMBERS.get(int(fact), "") if int(fact[:9]) != status else "")
        elif "perday" in fact.lower():  # Google's quotaId, e.g. GenerateRequestsPerDayPerProjectPerModel-FreeTier
            said.add("insufficient_quota")
    for sentence in _sentences(body):
        said.update(word for pattern, word in _SENTENCES if pattern.search(sentence))
    if status is not None:
        said.add(STATUSES.get(status, ""))
    said.discard("")
    if said:
        return min(said, key=_RANK.__getitem__)
    return str(status) if status is not None else OTHER


def event_type(body: Json) -> str:
    """Return the ``error_type`` of a failure told inside of a 200."""
    return f"error_event:{classify(None, body)}"


_CODE_KEYS = ("code", "type", "status", "reason", "quotaId", "object", "__type")
_NESTED_KEYS = ("error", "errors", "innererror", "details", "violations", "detail", "metadata")
_SENTENCE_KEYS = ("message", "detail", "msg", "error", "title")
_DEPTH = 5


def _errors(body: Json, depth: int = _DEPTH) -> Iterator[dict[str, Json]]:
    """Yield *body* and the objects in it that describe the error; never the rest of an answer."""
    if isinstance(body, list):
        for item in body[:8]:
            yield from _errors(item, depth - 1)
    if not isinstance(body, dict) or depth < 0:
        return
    yield body
    for key in _NESTED_KEYS:
        if isinstance(inner := body.get(key), dict | list):
            yield from _errors(inner, depth - 1)


def _facts(body: Json) -> Iterator[str | int]:
    for error in _errors(body):
        for key in _CODE_KEYS:
            value = error.get(key)
            if isinstance(value, str | int) and not isinstance(value, bool):
                yield value


def _sentences(body: Json) -> Iterator[str]:
    if isinstance(body, str):
        yield body[:2000]
    for error in _errors(body):
        for key in _SENTENCE_KEYS:
            if isinstance(value := error.get(key), str):
                yield value[:2000]
