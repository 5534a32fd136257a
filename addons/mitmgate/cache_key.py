"""The name under which an answer is kept: a SHA-256 over all of a request that may change its answer.

Pure. Promise: two requests that a provider could answer differently never have the same key. Where a request is odd,
its bytes are hashed as they came, so that it shares with fewer others; never with more.

What counts: method, provider, host, path and query, the target named in the base-URL path, the targets that
``cf-aig-fallback`` allows, the values of the rule's ``scope``, the rules of ``guard`` that may change the answer, where
``budget`` sends it instead, the headers in ``COUNTS``, and the whole body. What does not: trace ids, user agents,
``x-stainless-*``, ``accept-encoding`` (answers are kept without their coding). A header that only one provider knows
can be named in the rule: ``scope: [auth, header.x-my-flag]``.

The body counts by its meaning: order of members, white space and escapes do not matter, every member does. ``1`` and
``1.0`` are apart. Duplicate members, NaN, what is not UTF-8, not JSON, compressed or huge counts byte by byte.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Literal

from mitmgate.dialects.base import Json
from mitmgate.exchange import Exchange
from mitmgate.providers import CREDENTIAL_HEADERS

type Scope = Sequence[tuple[str, object | None]]
"""(field, its value in this request), as in a ``match``: text, number, boolean, None where the request has none."""

HUGE_BYTES = 128 * 1024
"""A larger body costs the event loop more than a millisecond to put in order. Its bytes count."""

# -- headers ----------------------------------------------------------------------------------------------------------

COUNTS = frozenset(
    {
        "accept",
        "accept-language",
        "content-encoding",
        "content-type",
        "prefer",  # Replicate: wait for the answer or not
        # whose account, which part of it
        "openai-organization",
        "openai-project",
        "chatgpt-account-id",
        "x-goog-user-project",
        "x-hf-bill-to",
        # which version and features of the API
        "openai-beta",
        "x-goog-fieldmask",
        "x-goog-request-params",
        "x-ms-enable-preview",
        "extra-parameters",  # Azure AI inference: what becomes of fields that the model does not know
        # which machine or copy of the model
        "azureml-model-deployment",
        "x-amz-target",
        "x-compute-type",
        "x-use-cache",
        "x-wait-for-model",
    }
)
"""Request headers that change an answer, or who may see it."""

FAMILIES = (
    "anthropic-",  # version, beta
    "copilot-",  # vision, integration
    "groq-",  # model version
    "x-amzn-bedrock-",  # guardrail, performance, service tier
    "x-dashscope-",  # events or not, workspace
    "x-fireworks-",
    "x-openrouter-",
    "x-vertex-ai-",
)
"""Beginnings of names, where all that a vendor sends under them counts."""

CREDENTIAL = re.compile(r"authorization|api-?key|subscription-key|access-?key|token|secret|cookie|credential")
"""Names that may say who asks, beside those that ``auth`` is made of."""

QUERY_KEY = re.compile(r"(?<=[?&])key=[^&#]*&?")
"""Google's credential in a query."""


@lru_cache(4096)  # names are few
def _counts_as(name: str) -> Literal["answer", "credential"] | None:
    """Return what a request header, its name in lower case, tells a key; None where it has no part in it."""
    if name in COUNTS or name.startswith(FAMILIES):
        return "answer"
    if name.startswith("x-stainless-"):
        return None
    return "credential" if CREDENTIAL.search(name) else None


def _answering(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers that may change the answer, in order of their names."""
    counted = [(name, value) for name, value in headers.items() if _counts_as(name) == "answer"]
    return sorted((name, _type(value) if name == "content-type" else value) for name, value in counted)


def _telling(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers that may tell callers apart beside the one that ``Exchange.auth`` stands for."""
    told = _told_by_auth(headers)
    return sorted((name, value) for name, value in headers.items() if name != told and _counts_as(name) == "credential")


def _told_by_auth(headers: Mapping[str, str]) -> str | None:
    """Return the header that ``Exchange.auth`` is the hash of. An AWS signature in it differs with every request, so
    the header itself must not count.
    """
    return next((name for name in CREDENTIAL_HEADERS if headers.get(name, "").strip()), None)


def _type(value: str) -> str:
    """Return a content type without what every JSON body is anyway."""
    return value.lower().replace(" ", "").replace(";charset=utf-8", "")


def _path(x: Exchange) -> str:
    """Return path and query; without Google's credential where ``auth`` is its hash, so that the scope decides."""
    if "key=" not in x.path or _told_by_auth(x.headers):
        return x.path
    return QUERY_KEY.sub("", x.path, count=1).rstrip("?&")


# -- body -------------------------------------------------------------------------------------------------------------

_in_order = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode


def canonical(body: bytes, parsed: Json, ignore: Sequence[str] = ()) -> bytes | None:
    """Return the JSON *body* in its one form, without the fields under *ignore*; None where its bytes must count.

    *parsed* is what *body* says. A path under *ignore* goes inwards by dots, through every item of a list:
    ``metadata.user_id``, ``messages.content.cache_control``; a number picks one item: ``system.0``.
    """
    if parsed is None or (len(body) > HUGE_BYTES and not ignore):
        return None
    if b"\0" in body or body.startswith(b"\xef\xbb\xbf"):
        return None  # UTF-16, UTF-32 or a byte order mark: Python reads them, not every provider does
    try:
        form = _in_order(parsed).encode()
        if _strings(form) != _strings(body):
            return None
        return _in_order(_without(parsed, ignore)).encode() if ignore else form
    except (ValueError, RecursionError):  # NaN and infinity; lone surrogates; too deep
        return None


def _strings(text: bytes) -> int:
    """Return twice the number of strings in *text*, which is JSON: its quotes less the escaped ones.

    A parsed object has lost all but the last of its duplicate members, and their names with them. So a body has no
    duplicates if, and only if, it has as many strings as its parsed form: a count in C instead of a hook in Python.
    """
    if b"\\" not in text:
        return text.count(b'"')
    text = text.replace(b"\\\\", b"")  # else the second half of a backslash looks as if it escaped the closing quote
    return text.count(b'"') - text.count(b'\\"')


def _without(parsed: Json, ignore: Sequence[str]) -> Json:
    """Return *parsed* without the fields at the dotted paths *ignore*; itself unchanged."""
    for path in ignore:
        parsed = _dropped(parsed, path.split("."))
    return parsed


def _dropped(value: Json, path: Sequence[str]) -> Json:
    name, inner = path[0], path[1:]
    if isinstance(value, dict) and name in value:
        kept = {key: item for key, item in value.items() if key != name}
        return {**kept, name: _dropped(value[name], inner)} if inner else kept
    if isinstance(value, list):
        if not name.isdecimal():
            return [_dropped(item, path) for item in value]
        return [_picked(item, inner) if n == int(name) else item for n, item in enumerate(value)]
    return value


def _picked(item: Json, path: Sequence[str]) -> Json:
    """Return one item of a list; null where it is ignored as a whole, so that the others keep their places."""
    return _dropped(item, path) if path else None


# -- the key ----------------------------------------------------------------------------------------------------------

_head = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
"""Its output reads back one way only, so no two lists of parts look alike, and a body may follow it."""


def key_of(x: Exchange, scope: Scope, ignore: Sequence[str] = (), replace_with: str | None = None) -> str:
    """Return the key of *x*: 64 hex digits.

    *ignore* are fields of the body that do not change the answer. *replace_with* stands for everything but the scope
    (``cf-aig-cache-key`` under ``key_header: replace``); otherwise that header is one more item of *scope*.
    """
    asker = _telling(x.headers) if any(field == "auth" for field, _ in scope) else []
    if replace_with is not None:
        return _digest(["replaced", scope, asker, replace_with], b"")
    body, kind = _body(x, ignore)
    parts = [
        kind,
        scope,
        asker,
        x.controls.get("fallback"),
        x.method,
        x.provider.slug if x.provider else None,
        x.scheme,
        x.host.lower(),
        x.port,
        _path(x),
        x.target,
        x.entry,
        _answering(x.headers),
    ]
    return _digest(parts, body)


def _body(x: Exchange, ignore: Sequence[str]) -> tuple[bytes, str]:
    """Return what of the body is hashed, and what that is."""
    if x.entry == "universal":  # it names all who may answer; the native body is one element's
        return x.body or b"", "bytes"
    body = x.body if x.native_body is None else x.native_body
    if not body or x.is_coded:
        return body or b"", "bytes"
    form = canonical(body, x.json if x.native_body is None else _parsed(body), ignore)
    return (body, "bytes") if form is None else (form, "json")


def _parsed(body: bytes) -> Json:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _digest(parts: Sequence[object], body: bytes) -> str:
    return sha256(_head(parts).encode() + body).hexdigest()
