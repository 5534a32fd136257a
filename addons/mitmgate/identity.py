"""Who asks, for what, in whose trace: read out of a request's headers and tags. Pure; the ``identify`` room asks.

What a client says about itself is only text to us: it is cut to 256 characters and freed of control characters before
it may become a column. Credentials are told apart by a keyed hash and never kept.
"""

import hmac
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from mitmgate.policy.match import Get, Match
from mitmgate.providers import CREDENTIAL_HEADERS

MOST_CHARS = 256

SESSION_HEADERS: tuple[str, ...] = (
    "x-claude-code-session-id",
    "session-id",  # Codex
    "session_id",  # Codex, before 0.50
    "conversation_id",  # Codex, oldest
    "x-session-id",
    "helicone-session-id",
    "x-litellm-session-id",
)
"""What well-known clients send, the surest first."""

TRACEPARENT = re.compile(r"(?P<version>[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?", re.ASCII)
"""https://www.w3.org/TR/trace-context/#traceparent-header; a version after 00 may say more at its end."""

SIGV4_ACCESS_KEY = re.compile(r"AWS4-[A-Z0-9-]+\s+Credential=([^/,\s]+)/", re.ASCII)
QUERY_KEY = re.compile(r"[?&]key=([^&#]+)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]+")


def clean(text: str) -> str | None:
    """Return *text* fit for a column: no control characters, valid Unicode, at most 256 characters; None if empty.

    Bytes that were not UTF-8 (lone surrogates after decoding) become ``�``.
    """
    if not text.isprintable():
        text = SURROGATE.sub("\N{REPLACEMENT CHARACTER}", CONTROL.sub("", text))
    return text.strip()[:MOST_CHARS] or None


def tag(value: object) -> str | None:
    """Return a metadata value as a column has it: text as it is, numbers and booleans as JSON; None for null."""
    if value is None:
        return None
    return clean(value if isinstance(value, str) else json.dumps(value))


def trace_of(headers: Mapping[str, str], controls: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return (trace id, parent span id) of the caller: 32 and 16 hex digits, None where it named none.

    ``cf-aig-otel-*`` goes before ``traceparent``; a parent from the latter stands only in the trace it belongs to.
    """
    trace_id, parent = _traceparent(headers.get("traceparent", ""))
    named = controls.get("otel-trace-id")
    if named is not None and named != trace_id:
        trace_id, parent = named, None
    return trace_id, controls.get("otel-parent-span-id", parent)


def _traceparent(value: str) -> tuple[str | None, str | None]:
    found = TRACEPARENT.fullmatch(value.strip())
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"]):
        return None, None
    trace_id, parent = found[2], found[3]
    if not trace_id.strip("0") or not parent.strip("0"):
        return None, None
    return trace_id, parent


def session_of(headers: Mapping[str, str], controls: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return what groups this request with others of the same conversation or run.

    First ``cf-aig-session-id``, then the policy's *names* (``header.NAME``, ``metadata.NAME``), then the headers of
    well-known clients, at last the caller's trace.
    """
    session = controls.get("session-id") or first_of(names, None, controls.get("metadata", {}), headers)
    if session:
        return clean(session)
    for header in SESSION_HEADERS:
        if header in headers and (session := clean(headers[header])):
            return session
    return trace_of(headers, controls)[0]


def first_of(
    sources: Iterable[str], key_value: str | None, metadata: Mapping[str, object], headers: Mapping[str, str]
) -> str | None:
    """Return *key_value*, else the value of the first of *sources* that is present and not empty.

    *key_value* is what the gateway's own key names: nothing that a client says goes before it, wherever ``key`` stands
    in the list. The other sources are ``metadata.NAME`` and ``header.NAME``, header names in lower case.
    """
    if proven := tag(key_value):
        return proven
    for source in sources:
        family, _, name = source.partition(".")
        said = {"metadata": metadata, "header": headers}.get(family, {})
        if value := tag(said.get(name)):
            return value
    return None


def label(rules: Mapping[str, Match], get: Get) -> str | None:
    """Return the first label of *rules* whose match holds."""
    for name, match in rules.items():
        if match.holds(get):
            return name
    return None


def credential_of(headers: Mapping[str, str], path_query: str) -> bytes | None:
    """Return what tells one caller of a provider from another: the key, whichever way it travels.

    An AWS signature differs with every request, so its access key id stands for it. The value must not be kept: see
    ``key_hash``.
    """
    for header in CREDENTIAL_HEADERS:
        value = headers.get(header, "").strip()
        if value:
            return _key(value).encode("utf-8", "surrogatepass")
    found = QUERY_KEY.search(path_query)
    return unquote_to_bytes(found[1]) if found else None


def _key(value: str) -> str:
    signed = SIGV4_ACCESS_KEY.match(value)
    if signed:
        return signed[1]
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else value


@lru_cache(maxsize=1024)  # callers come again and again
def key_hash(secret: bytes, credential: bytes) -> str:
    """Return the keyed hash that stands for *credential* in rows: 64 hex digits, useless without *secret*."""
    return hmac.digest(secret, credential, "sha256").hex()
