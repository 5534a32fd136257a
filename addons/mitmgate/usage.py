"""Ask OpenAI-style streams for the usage that they do not report by themselves (policy: ``usage: ask``).

Runs last before a request leaves: the body gets ``stream_options: {include_usage: true}``, and ``stream`` takes the
extra chunk out of what the client sees. A host that refuses the field gets the request as it was, and is not asked
again for an hour.
"""

from urllib.parse import parse_qs, urlsplit

from mitmgate.clock import Clock
from mitmgate.exchange import Event, Exchange, Fields
from mitmgate.policy import Policy

REMEMBERED_S = 3600.0


class Usage:
    name = "mitmgate.usage"

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self.asks = policy.usage == "ask"
        self.clock = clock
        self.refused: dict[tuple[str, str], float] = {}
        """(host, api-version) -> when it said no, monotonic seconds."""

    def admit(self, x: Exchange) -> None:
        if not self._may_ask(x) or x.dialect is None or x.body is None:
            return
        changed = x.dialect.ask_usage(x.body, x.json)
        if changed is None:
            return
        x.asked_usage = True
        x.sent_body = changed
        x.events.append(Event("usage", "usage", "usage", detail="asked for stream_options.include_usage"))

    def _may_ask(self, x: Exchange) -> bool:
        if not self.asks or not x.request.stream or x.provider is None or not x.provider.asks_usage:
            return False
        if "content-encoding" in x.headers or is_signed(x):
            return False
        said_no = self.refused.get(self._place(x))
        return said_no is None or self.clock.now() - said_no > REMEMBERED_S

    def was_refused(self, x: Exchange, status: int, body: bytes) -> bool:
        """True where the provider refused the field and not the request; then it is asked no more for an hour."""
        if not x.asked_usage or status not in (400, 422) or b"stream_options" not in body:
            return False
        if len(self.refused) > 1000:
            self.refused.clear()
        self.refused[self._place(x)] = self.clock.now()
        x.asked_usage = False
        x.sent_body = None
        x.events[:] = [event for event in x.events if event.room != "usage"]
        return True

    def _place(self, x: Exchange) -> tuple[str, str]:
        version = parse_qs(urlsplit(x.path).query).get("api-version", [""])[0] if "api-version" in x.path else ""
        return x.host, version


def is_signed(x: Exchange) -> bool:
    """True where a change of the body would break a signature (AWS SigV4)."""
    return x.headers.get("authorization", "").startswith("AWS4-")


def with_length(fields: Fields, length: int) -> Fields:
    """Return *fields* with ``content-length`` set in its place, or added at the end."""
    value = b"%d" % length
    if not any(name.lower() == b"content-length" for name, _ in fields):
        return [*fields, (b"content-length", value)]
    return [(name, value if name.lower() == b"content-length" else old) for name, old in fields]
