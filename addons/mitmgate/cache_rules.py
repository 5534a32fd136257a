"""What the cache may do with a request, and which answers it may keep.

Pure; the ``cache`` room asks. Promises: nothing is kept or served that no rule and no header asked for; a header goes
before the rule, the rule before the default; never kept is what is not a whole, good answer.

An answer's own ``cache-control`` plays no part: providers send ``no-store`` with everything, so to obey it would be to
keep nothing. Whoever wrote the rule, or sent the header, has decided. The client's is obeyed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from mitmgate.dialects.base import Reading
from mitmgate.exchange import Fields, How
from mitmgate.fields import Get
from mitmgate.policy.match import acts
from mitmgate.policy.values import Cache

KEY_ALONE_TTL_S = 300.0
"""For a request with ``cf-aig-cache-key`` and no time to live of its own or of a rule: Cloudflare's five minutes."""

BY_HEADER = "header"
"""In place of a rule's name where none acts."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What may be done. Times are seconds."""

    ttl_s: float
    look_up: bool
    """Answer out of the cache; False is the status ``BYPASS``."""
    keep: bool
    """Keep a fresh answer, in place of an older one."""
    rule: str = BY_HEADER
    """Its name."""
    scope: tuple[str, ...] = ("auth",)
    stale_if_error_s: float = 0.0
    replay: Literal["at once", "live"] = "at once"
    ignore: tuple[str, ...] = ()


# -- may it be looked up, may it be kept ------------------------------------------------------------------------------


def decide(
    rules: Sequence[Cache], controls: Mapping[str, Any], headers: Mapping[str, str], get: Get
) -> Decision | None:
    """Return what the cache may do with a request; None where no rule and no header wants it, so it has no status.

    *controls* are the request's ``cf-aig-*`` headers as ``Exchange.controls`` has them, *headers* all of them, names in
    lower case.
    """
    rule = acts(rules, get)
    ttl_s = _ttl_s(controls, rule)
    skip = controls.get("skip-cache", False)
    if ttl_s is None and not skip:
        return None
    ttl_s = ttl_s or 0.0
    client = _directives(headers.get("cache-control", ""))
    keep = ttl_s > 0 and "no-store" not in client
    look_up = keep and not skip and "no-cache" not in client
    if rule is None:
        return Decision(ttl_s, look_up, keep)
    return Decision(ttl_s, look_up, keep, rule.name, rule.scope, rule.stale_if_error_s, rule.replay, rule.ignore)


def _ttl_s(controls: Mapping[str, Any], rule: Cache | None) -> float | None:
    """Return how long an answer lives, the header's word first; None where nobody asks for the cache."""
    if (ttl_s := controls.get("cache-ttl")) is not None:
        return float(ttl_s)
    if rule is not None:
        return rule.ttl_s
    return KEY_ALONE_TTL_S if "cache-key" in controls else None


def _directives(cache_control: str) -> frozenset[str]:
    """Return the names in a ``cache-control``, lower case: ``no-cache="x-field"`` is ``no-cache``."""
    if not cache_control:
        return frozenset()
    return frozenset(part.partition("=")[0].strip().lower() for part in cache_control.split(","))


# -- which answers are kept -------------------------------------------------------------------------------------------

WHOLE = frozenset(
    {
        "stop",
        "stopsequence",
        "stopcriteriamet",
        "stoptoken",
        "eos",
        "eostoken",
        "endofturn",
        "endoftext",
        "endturn",
        "end",
        "complete",
        "completed",
        "finish",
        "finished",
        "done",
        "tooluse",
        "toolcall",
        "toolcalls",
        "functioncall",
        "requiresaction",  # Gemini's interactions: the client has a tool to run
    }
)
"""Finish reasons of an answer that said all it had to say, in every dialect: lower case, letters only.

A list of what is good, not of what is bad: limits and filters have dozens of names, and new ones come. An unknown
reason costs a call to the provider; an unknown filter that was kept would be served for hours.
"""

NOT_WHOLE: dict[How, str] = {
    "cut": "the answer broke off",
    "client_left": "the client left before its end",
    "timeout": "its time was up before its end",
    "refused": "the gateway refused it",
    "failed": "no answer could be had",
}

NOT_A_LETTER = re.compile(r"[^a-z]+")


def why_not_kept(status: int | None, reading: Reading, how: How | None, streamed: bool) -> str | None:
    """Return why an answer may not be kept, to end the sentence "not kept: …"; None where it may.

    *how* is how its transport ended, *streamed* whether it came as a stream, whatever its content type says.
    """
    if status != 200:
        return f"its status is {status}"
    if how != "end":
        return NOT_WHOLE.get(how, "it has no end yet") if how else "it has no end yet"
    if reading.error_event or reading.error_type:
        return f"it tells of a failure ({reading.error_type or 'error_event'})"
    if reading.parse_errors:
        return "its body is not of this API"
    if not reading.ended:
        return "the stream has no regular end" if streamed or reading.streamed else "its body is not whole"
    for reason in reading.finish_reasons:
        if not _is_whole(reason):
            return f"it ended with {reason[:60]!r}"
    return None


@lru_cache(1024)
def _is_whole(reason: str) -> bool:
    return NOT_A_LETTER.sub("", reason.lower()) in WHOLE


# -- which of its head is kept ----------------------------------------------------------------------------------------

NOT_REPLAYED = frozenset(
    {
        # of the connection
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"alt-svc",
        b"nel",
        b"report-to",
        b"server-timing",
        b"via",
        # of the bytes as they were coded, which is undone
        b"content-encoding",
        b"content-length",
        b"content-md5",
        b"content-digest",
        b"repr-digest",
        b"digest",
        b"etag",
        # of the moment
        b"age",
        b"date",
        b"expires",
        b"last-modified",
        b"x-cache",
        b"x-should-retry",
        # of the caller who paid: a wider scope shows it to others
        b"set-cookie",
        b"set-cookie2",
        b"openai-organization",
        b"openai-project",
        b"anthropic-organization-id",
    }
)
"""Response headers, lower case, that were true of one answer to one caller."""

OF_THE_MOMENT = re.compile(rb"rate-?limit|retry-after|^cf-|-remaining-(?:requests|tokens)$")
"""What is left and when to come back, in all their spellings; ``cf-aig-*`` is ours, ``cf-*`` of Cloudflare's edge."""


def replayable(fields: Fields) -> Fields:
    """Return those fields of an answer's head that are as true of a later one; order, case and duplicates kept."""
    named = {
        word.strip().lower() for name, value in fields if name.lower() == b"connection" for word in value.split(b",")
    }
    return [field for field in fields if _is_replayed(field[0]) and field[0].lower() not in named]


@lru_cache(1024)
def _is_replayed(raw_name: bytes) -> bool:
    name = raw_name.lower()
    return name not in NOT_REPLAYED and OF_THE_MOMENT.search(name) is None
