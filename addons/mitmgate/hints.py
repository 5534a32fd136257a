"""What a provider says about trying again: how long to wait, or that no wait will help.

Pure; ``upstream`` asks after each failed attempt. Whatever stands in a header or body, nothing here raises, and a wait
is a number of seconds above 0 and at most ``LONGEST_S``, or there is none.

The surest word stands, in this order: ``retry-after-ms``, ``x-ms-retry-after-ms``, ``retry-after`` (seconds or
HTTP-date), Google's ``RetryInfo`` in the body, and at a 429 the reset of the limit that is used up. Dates are read
against the answer's own ``date``, so that it does not matter how wrong either clock goes.

Sources: RFC 9110, section 10.2.3; https://cloud.google.com/apis/design/errors; the reference pages on rate limits of
OpenAI, Azure, Anthropic, Groq, Cerebras and OpenRouter (2026-11).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import mktime_tz, parsedate_tz

LONGEST_S = 31 * 86400.0
"""A month's quota; a wait beyond it is a mistake (or a date in the wrong unit)."""
LASTING_S = 3600.0
"""A wait beyond it is a quota to be used up, not a moment too busy."""
MOST_CHARS = 64
"""Of a header's value: no time takes more."""
MOST_BODY_BYTES = 64 * 1024

NEVER: frozenset[int] = frozenset({400, 401, 402, 403, 404, 413, 422})
"""Statuses that the same request with the same key gets again."""

LASTING_WORDS: frozenset[str] = frozenset({"insufficient_quota"})
"""Words of ``dialects.vocabulary`` that no wait cures, whatever the status says."""
LASTING_EVENTS: frozenset[str] = LASTING_WORDS | {
    "authentication",
    "content_filter",
    "context_length",
    "invalid_request",
    "not_found",
    "permission",
    "too_large",
}
"""The same for an error inside of a 200, where no status says it: what ``NEVER`` is elsewhere."""

NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{0,15})?", re.ASCII)
GO_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?(?:h|ms|m|s|us|µs|ns))+", re.ASCII)
GO_PART = re.compile(r"([0-9.]+)(h|ms|m|s|us|µs|ns)", re.ASCII)
GO_UNITS: Mapping[str, float] = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
RETRY_INFO = re.compile(rb'"retryDelay"\s*:\s*"([0-9]{1,9}(?:\.[0-9]{1,9})?)s"')
"""In plain JSON, in a list, in an event alike; inside of a text its quotes would be escaped."""
RESET = re.compile(r"(?:x-)?ratelimit-reset(?:-[a-z0-9-]+)?|anthropic-ratelimit-[a-z-]+-reset", re.ASCII)
"""``x-ratelimit-reset-tokens``, ``ratelimit-reset``, ``anthropic-ratelimit-requests-reset``: each has a partner with
``remaining`` in the place of ``reset``.
"""

EPOCH = 1e9
"""A plain number from here on is a moment, in seconds since 1970 …"""
EPOCH_MS = 1e11
"""… and from here on in milliseconds."""


# -- how long ---------------------------------------------------------------------------------------------------------


def named_wait(headers: Mapping[str, str], body: bytes, wall_s: float, status: int = 429) -> float | None:
    """Return the seconds that the provider wants to be left alone, None where it does not say.

    *headers* are the answer's, names in lower case; *body* is without content coding. *wall_s*, seconds since 1970,
    stands in for a missing ``date``.
    """
    now = _date(headers.get("date", ""))
    at_s = wall_s if now is None else now
    for name, read in _HEADERS.items():
        if name in headers and (wait_s := _sane(read(headers[name].strip(), at_s))):
            return wait_s
    return _retry_info(body) or (_reset(headers, at_s) if status == 429 else None)


def _milliseconds(text: str, at_s: float) -> float | None:
    number = _number(text)
    return None if number is None else number / 1000


def _seconds_or_date(text: str, at_s: float) -> float | None:
    number = _number(text)
    if number is not None:
        return number
    date = _date(text)
    return None if date is None else date - at_s


_HEADERS: Mapping[str, Callable[[str, float], float | None]] = {
    "retry-after-ms": _milliseconds,
    "x-ms-retry-after-ms": _milliseconds,
    "retry-after": _seconds_or_date,
}
"""Header -> reads its text, given the answer's own time."""


def _retry_info(body: bytes) -> float | None:
    found = RETRY_INFO.search(body, 0, MOST_BODY_BYTES)
    return _sane(float(found[1])) if found else None


def _reset(headers: Mapping[str, str], at_s: float) -> float | None:
    """Return when the limit that is used up is open again: of several the last, as all of them stand in the way.

    Where nothing says which one is used up, the soonest: an attempt too early costs less than a wait too long.
    """
    resets = list(_resets(headers, at_s))
    used_up = [wait_s for wait_s, left in resets if left == 0]
    if used_up:
        return max(used_up)
    if any(left is not None for _, left in resets):
        return None
    return min((wait_s for wait_s, _ in resets), default=None)


def _resets(headers: Mapping[str, str], at_s: float) -> Iterator[tuple[float, float | None]]:
    """Yield (seconds until the reset, what remains until then; None where that is not said)."""
    for name, text in headers.items():
        if "ratelimit" in name and RESET.fullmatch(name) and (wait_s := _sane(_until(text.strip(), at_s))):
            yield wait_s, _number(headers.get(name.replace("reset", "remaining"), "").strip())


def _until(text: str, at_s: float) -> float | None:
    """Read a reset: seconds (``34``), a Go duration (``6m0s``), a moment (RFC 3339, or since 1970)."""
    number = _number(text)
    if number is None:
        return _go_duration(text) or _rfc3339(text, at_s)
    if number < EPOCH:
        return number
    return (number if number < EPOCH_MS else number / 1000) - at_s


def _go_duration(text: str) -> float | None:
    if len(text) > MOST_CHARS or not GO_DURATION.fullmatch(text):
        return None
    return sum(float(number) * GO_UNITS[unit] for number, unit in GO_PART.findall(text))


def _rfc3339(text: str, at_s: float) -> float | None:
    if len(text) > MOST_CHARS:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() - at_s if moment.tzinfo else None  # local time, but of whom?


def _number(text: str) -> float | None:
    return float(text) if NUMBER.fullmatch(text) else None


def _date(text: str) -> float | None:
    """Read an HTTP-date in any of its three forms, as seconds since 1970."""
    if len(text) > MOST_CHARS:
        return None
    try:
        parts = parsedate_tz(text)
        return None if parts is None else float(mktime_tz(parts))
    except (ValueError, OverflowError):  # a date by its form that no calendar has
        return None


def _sane(wait_s: float | None) -> float | None:
    """Return *wait_s* if it is a wait at all: 0 and what is past name no time."""
    return wait_s if wait_s is not None and 0 < wait_s <= LONGEST_S else None


# -- whether at all ---------------------------------------------------------------------------------------------------


def is_final(status: int, headers: Mapping[str, str], error_type: str | None) -> bool:
    """Return whether waiting cannot cure this failure: a quota that will not return, a request that cannot work.

    *error_type* is the reading's: a word of ``dialects.vocabulary``, after ``error_event:`` where a 200 told it. A
    provider's ``x-should-retry: false`` says the same by itself.
    """
    if status == 402 or headers.get("x-should-retry", "").strip().lower() == "false":
        return True
    word = (error_type or "").removeprefix("error_event:")
    if word in (LASTING_EVENTS if status < 400 else LASTING_WORDS):
        return True
    return _plan_is_used_up(headers)


def _plan_is_used_up(headers: Mapping[str, str]) -> bool:
    """True where the hours or the week of a Claude plan are used up, and are not about to begin anew."""
    if headers.get("anthropic-ratelimit-unified-status", "").strip().lower() != "rejected":
        return False
    wait_s = _sane(_number(headers.get("retry-after", "").strip()))
    return wait_s is None or wait_s > LASTING_S
