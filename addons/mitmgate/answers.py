"""The heads of answers: what ours look like, and what is appended to a provider's.

A provider's fields keep their order, case and duplicates; only hop-by-hop ones go, and ours follow at the end.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

from mitmgate.charges import Standing
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Fields
from mitmgate.policy.units import show_money

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"trailer"}
)

REALM = 'Basic realm="mitmgate"'
"""What ``proxy-authenticate`` says."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a provider's answer, before ours is added for the client that gets it."""

    status: int
    reason: bytes
    fields: Fields
    """As on the wire."""
    headers: dict[str, str]
    """The same, names in lower case."""
    recoded: bool = False
    """The pieces have their content coding undone."""
    length_changed: bool = False
    """They may be fewer bytes than the provider said."""
    readable: bool = True
    """The content coding is one that we can undo."""
    should_retry: bool | None = None
    """Ours, in place of the provider's ``x-should-retry``: False where we have tried already."""


def provider_fields(x: Exchange, head: Head) -> Fields:
    """Return the head of a provider's answer as the client gets it."""
    dropped = set(HOP_BY_HOP)
    if head.recoded:
        dropped.add(b"content-encoding")
    if head.recoded or head.length_changed:
        dropped.add(b"content-length")
    if head.should_retry is not None:
        dropped.add(b"x-should-retry")
    fields = [field for field in head.fields if field[0].lower() not in dropped]
    has_length = any(name.lower() == b"content-length" for name, _ in fields)
    if not has_length and x.http_version.startswith("HTTP/1") and _has_body(x):
        fields.append((b"Transfer-Encoding", b"chunked"))
    if head.should_retry is not None:
        fields.append((b"x-should-retry", b"true" if head.should_retry else b"false"))
    return fields + our_fields(x)


def _has_body(x: Exchange) -> bool:
    return x.method != "HEAD" and x.status not in (204, 304)


def our_fields(x: Exchange) -> Fields:
    """Return the ``cf-aig-*`` fields of an answer; none for calls that get no row."""
    if x.dialect is None:
        return [(b"cf-aig-source", x.source.encode()), *_dlp(x)] if x.refusal else _dlp(x)
    fields: list[tuple[bytes, str]] = []
    if x.keep_row:
        fields.append((b"cf-aig-log-id", x.id))
    if x.cache_status:
        fields.append((b"cf-aig-cache-status", x.cache_status))
    if x.cache_age_s is not None:
        fields.append((b"cf-aig-cache-age", str(x.cache_age_s)))
    fields.append((b"cf-aig-attempts", str(len(x.attempts))))
    fields.append((b"cf-aig-step", str(x.step)))
    if provider := (x.origin and x.origin.target) or x.target or (x.provider and x.provider.slug):
        fields.append((b"cf-aig-provider", provider))
    if model := x.reading.response_model or (x.origin and x.origin.model) or x.request.model:
        fields.append((b"cf-aig-model", x.shown(model)))
    fields.append((b"cf-aig-source", x.source))
    if x.event_id:
        fields.append((b"cf-aig-event-id", x.event_id))
    if x.limit_standing:
        fields.append((b"cf-aig-limit-remaining", remaining(x.limit_standing)))
    if x.budget_standing:
        fields.append((b"cf-aig-budget-remaining", remaining(x.budget_standing)))
    if x.route_notes:
        fields.append((b"cf-aig-route", ", ".join(x.route_notes)))
    said = [(name, _one_line(value)) for name, value in fields]
    return said + _dlp(x) if x.findings else said


def _dlp(x: Exchange) -> Fields:
    """Return what guards flagged or blocked, in Cloudflare's words; JSON escapes what a header cannot carry."""
    if not x.findings:
        return []
    action = "BLOCK" if x.refusal and x.refusal.source == "guard" else "FLAG"
    return [(b"cf-aig-dlp", json.dumps({"findings": x.findings, "action": action}).encode())]


def remaining(standing: Standing) -> str:
    """Return ``4; rule=burst; unit=requests; reset=37``: what a rule leaves, and after how many seconds it resets."""
    charge = standing.charge
    if charge.unit == "cost":
        left, _, unit = show_money(standing.left).partition(" ")
    else:
        left, unit = str(standing.left), charge.unit
    return f"{left}; rule={charge.rule}; unit={unit}; reset={ceil(standing.reset_s)}"


def refusal_fields(x: Exchange, refusal: Refusal, length: int) -> Fields:
    """Return the head of an answer of our own, body of *length* bytes of JSON."""
    fields: Fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    if refusal.retry_after_s is not None:
        fields.append((b"retry-after", b"%d" % ceil(refusal.retry_after_s)))
        fields.append((b"retry-after-ms", b"%d" % ceil(refusal.retry_after_s * 1000)))
    if refusal.should_retry is not None:
        fields.append((b"x-should-retry", b"true" if refusal.should_retry else b"false"))
    if refusal.status == 407:
        fields.append((b"proxy-authenticate", REALM.encode()))
    return fields + our_fields(x)


def reason(status: int) -> bytes:
    """Return the phrase that HTTP/1 sends after *status*."""
    return HTTPStatus(status).phrase.encode() if status in HTTPStatus else b""


CONNECT_AT_A_DOOR = "mitmproxy received an HTTP CONNECT request"
"""How mitmproxy begins its answer to a CONNECT at a port that is no proxy; what follows speaks of its own modes."""


def plain_error(status_code: int, message: str) -> bytes:
    """Return a body for refusals that come before any API is known (bad requests, tunnels): JSON every SDK can parse.

    Its parameters are those of mitmproxy's ``format_error``, which it replaces.
    """
    if message.startswith(CONNECT_AT_A_DOOR):
        message = "this is the base-URL door, which takes no CONNECT; HTTPS_PROXY must name the proxy door"
    sentence = message if message.startswith("mitmgate ") else f"mitmgate: {message}"
    error = {"type": "gateway_error", "message": sentence, "code": status_code}
    return json.dumps({"type": "error", "error": error}).encode()


def _one_line(value: str) -> bytes:
    """Return *value* as a header can carry it: a stranger's model name must not start a new header."""
    if value.isprintable():  # nearly always: no need to look at each character
        return value[:256].encode("utf-8", "replace")
    return "".join(char if " " <= char != "\x7f" else " " for char in value)[:256].encode("utf-8", "replace")
