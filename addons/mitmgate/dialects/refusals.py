"""The gateway's own refusals in the words of each API, so that an SDK raises the exception its caller expects.

What the SDKs look at: OpenAI and Anthropic raise by status and show ``error``; within a stream OpenAI's raises on any
data with an ``error`` member, Anthropic's on ``event: error``, Google's on data that begins with ``{"error":``.
That is how openai 2, anthropic 1 and google-genai 2 do it. Amazon's goes by ``__type`` (botocore 1.44), Cohere's shows
``message``.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mitmgate.errors import Kind, Refusal


class Words(NamedTuple):
    """What one kind of refusal is called."""

    openai_type: str
    openai_code: str | None
    anthropic: str
    google: str


WORDS: Mapping[Kind, Words] = {
    "bad_request": Words("invalid_request_error", None, "invalid_request_error", "INVALID_ARGUMENT"),
    "too_large": Words("invalid_request_error", "request_too_large", "request_too_large", "INVALID_ARGUMENT"),
    "authentication": Words("authentication_error", "invalid_api_key", "authentication_error", "UNAUTHENTICATED"),
    "permission": Words("permission_error", None, "permission_error", "PERMISSION_DENIED"),
    "not_found": Words("not_found_error", None, "not_found_error", "NOT_FOUND"),
    "rate_limit": Words("rate_limit_error", "rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED"),
    "insufficient_quota": Words("insufficient_quota", "insufficient_quota", "billing_error", "RESOURCE_EXHAUSTED"),
    "overloaded": Words("server_error", "overloaded", "overloaded_error", "UNAVAILABLE"),
    "timeout": Words("server_error", "timeout", "timeout_error", "DEADLINE_EXCEEDED"),
    "connection": Words("server_error", "connection_error", "api_error", "UNAVAILABLE"),
    "internal": Words("server_error", "internal_error", "api_error", "INTERNAL"),
}


AMAZON: Mapping[Kind, str] = {
    "bad_request": "ValidationException",
    "too_large": "ValidationException",
    "authentication": "AccessDeniedException",
    "permission": "AccessDeniedException",
    "not_found": "ResourceNotFoundException",
    "rate_limit": "ThrottlingException",
    "insufficient_quota": "ServiceQuotaExceededException",
    "overloaded": "ServiceUnavailableException",
    "timeout": "ModelTimeoutException",
    "connection": "ServiceUnavailableException",
    "internal": "InternalServerException",
}


def message(refusal: Refusal, log_id: str | None) -> str:
    """Return the sentence, with the row's id at its end: logs of apps keep the message and little else."""
    return f"{refusal.message} (mitmgate row {log_id})" if log_id else refusal.message


def openai(refusal: Refusal, log_id: str | None) -> dict[str, Any]:
    """Return ``{"error": …}`` of the OpenAI family."""
    words = WORDS[refusal.kind]
    error: dict[str, Any] = {
        "message": message(refusal, log_id),
        "type": words.openai_type,
        "param": refusal.param,
        "code": words.openai_code,
    }
    if log_id:
        error["log_id"] = log_id
    return {"error": error}


def anthropic(refusal: Refusal, log_id: str | None) -> dict[str, Any]:
    """Return ``{"type": "error", …}``; the SDK shows ``request_id`` with the exception."""
    error = {"type": WORDS[refusal.kind].anthropic, "message": message(refusal, log_id)}
    return {"type": "error", "error": error, "request_id": log_id}


def google(refusal: Refusal, log_id: str | None) -> dict[str, Any]:
    """Return ``{"error": …}`` as of google.rpc.Status; ``error`` has to be the first member."""
    info: dict[str, Any] = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.kind.upper(),
        "domain": "mitmgate",
        "metadata": {"log_id": log_id} if log_id else {},
    }
    details = [info]
    if refusal.retry_after_s is not None:
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{refusal.retry_after_s:g}s"}
        details.append(retry)
    status = WORDS[refusal.kind].google
    error = {"code": refusal.status, "message": message(refusal, log_id), "status": status, "details": details}
    return {"error": error}


def plain(refusal: Refusal, log_id: str | None) -> dict[str, Any]:
    """Return the OpenAI form with what Amazon's and Cohere's SDKs look for at the top."""
    top = {"message": message(refusal, log_id), "__type": AMAZON[refusal.kind]}
    return top | openai(refusal, log_id)


def body(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def event(value: dict[str, Any], name: str = "") -> bytes:
    """Return *value* as one server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + body(value) + b"\n\n"
