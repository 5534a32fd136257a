"""Ask OpenAI-style streams for the usage that they do not report by themselves (policy: ``usage: ask``).

Runs last before a request leaves for a place that has not been tried: the body gets ``stream_options: {include_usage:
true}``, and ``stream`` takes the extra chunk out of what the client sees. A host that refuses the field gets the
request as it was, and is not asked again for an hour.
"""

import json
from urllib.parse import parse_qs, urlsplit

from mitmgate.clock import Clock
from mitmgate.dialects.base import Json
from mitmgate.exchange import Event, Exchange, Fields, Leg
from mitmgate.policy import Policy

REMEMBERED_S = 3600.0


class Usage:
    name = "mitmgate.usage"

    def __init__(self, policy: Policy, clock: Clock, refused: dict[tuple[str, str], float] | None = None) -> None:
        self.asks = policy.usage == "ask"
        self.clock = clock
        self.refused = {} if refused is None else refused
        """(host, api-version) -> when it said no, monotonic seconds."""

    def ask(self, x: Exchange, leg: Leg) -> None:
        """Make *leg* ask for its usage, where that is wanted and not already there."""
        body = x.body if leg.body is None else leg.body
        if not self._may_ask(x, leg) or leg.dialect is None or body is None:
            return
        changed = leg.dialect.ask_usage(body, x.json if leg.body is None else _json(body))
        if changed is None:
            return
        leg.asked_usage = True
        leg.unasked_body, leg.body = leg.body, changed
        if not any(event.room == "usage" for event in x.events):
            x.events.append(Event("usage", "usage", "usage", detail="asked for stream_options.include_usage"))

    def _may_ask(self, x: Exchange, leg: Leg) -> bool:
        if not self.asks or not leg.request.stream or leg.provider is None or not leg.provider.asks_usage:
            return False
        if x.is_coded or is_signed(x):
            return False
        said_no = self.refused.get(_place(leg))
        return said_no is None or self.clock.now() - said_no > REMEMBERED_S

    def was_refused(self, x: Exchange, leg: Leg, status: int, body: bytes) -> bool:
        """True where the provider refused the field and not the request; then it is asked no more for an hour."""
        if not leg.asked_usage or status not in (400, 422) or b"stream_options" not in body:
            return False
        if len(self.refused) > 1000:
            self.refused.clear()
        self.refused[_place(leg)] = self.clock.now()
        leg.asked_usage = False
        leg.body = leg.unasked_body
        x.events[:] = [event for event in x.events if event.room != "usage"]
        return True


def _json(body: bytes) -> Json:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _place(leg: Leg) -> tuple[str, str]:
    version = parse_qs(urlsplit(leg.path).query).get("api-version", [""])[0] if "api-version" in leg.path else ""
    return leg.host, version


def is_signed(x: Exchange) -> bool:
    """True where a change of the body would break a signature (AWS SigV4)."""
    return x.headers.get("authorization", "").startswith("AWS4-")


def with_length(fields: Fields, length: int) -> Fields:
    """Return *fields* with ``content-length`` set in its place, or added at the end."""
    value = b"%d" % length
    if not any(name.lower() == b"content-length" for name, _ in fields):
        return [*fields, (b"content-length", value)]
    return [(name, value if name.lower() == b"content-length" else old) for name, old in fields]
