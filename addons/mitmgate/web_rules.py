"""What mitmweb's page says of a call in one line, and which finished flows have to go. Pure.

A comment is ``gpt-4o · 12+34 tokens · $0.0012 · row id``; a mark is an emoji that tells streams and troubles apart from
plain answers. Flows go oldest first, by count, age and size, so that memory stays flat.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor, log10

from mitmproxy import flow as mflow
from mitmproxy import http

from mitmgate import views
from mitmgate.exchange import Exchange, Terminal
from mitmgate.inert import inert

FLOW_BYTES = 4600
"""What a flow takes beside its bodies (measured on mitmproxy 12.2)."""
MODEL_CHARS = 80
"""A longer model name is cut: strangers choose it."""

# -- comment and mark -------------------------------------------------------------------------------------------------

MARKS: Mapping[Terminal, str] = {
    "complete": "",
    "error_event": ":x:",
    "failed": ":x:",
    "timeout": ":hourglass:",
    "refused": ":no_entry:",
    "truncated": ":warning:",
    "client_abort": ":warning:",
}
"""How a call ended -> its emoji on the page, by mitmproxy's names."""
STREAM, ERROR = ":zap:", ":x:"


def mark(terminal: Terminal, status: int | None, streaming: bool) -> str:
    """Return the mark of a finished call; empty for a plain answer that nobody has to look at."""
    if terminal != "complete":
        return MARKS[terminal]
    if status is not None and status >= 400:
        return ERROR
    return STREAM if streaming else ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a comment says of a call."""

    flow_id: str
    model: str | None
    input_tokens: int | None = None
    output_tokens: int | None = None
    row_id: str | None = None
    """None where there will be no row."""


def told(x: Exchange) -> Told:
    """Return what is to be said of *x* at its end."""
    usage = x.reading.usage
    model = x.reading.response_model or x.request.model
    return Told(
        x.flow.id, model and x.shown(model), usage.input_tokens, usage.output_tokens, x.id if x.keep_row else None
    )


def comment(call: Told, cost_nanousd: int | None = None) -> str:
    """Return ``gpt-4o · 12+34 tokens · $0.0012 · 019a…``, leaving out what is not known."""
    parts = [inert(call.model or "no model named")[:MODEL_CHARS]]
    if call.input_tokens is not None or call.output_tokens is not None:
        parts.append(views.tokens(call.input_tokens, call.output_tokens))
    if cost_nanousd is not None:
        parts.append(usd(cost_nanousd))
    if call.row_id:
        parts.append(call.row_id)
    return " · ".join(parts)


def usd(nanousd: int) -> str:
    """Return an amount with two digits that tell: ``$0.0012``, ``$1.20``, ``$0``."""
    if not nanousd:
        return "$0"
    amount = nanousd / 1e9
    return f"${amount:.{max(2, 1 - floor(log10(abs(amount))))}f}"


# -- how much is kept -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Most of what finished flows may be: their number, seconds since they ended, bytes of all together."""

    count: int = 1000
    age_s: float = 3600.0
    bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Finished:
    """A flow that is over."""

    id: str
    ended: float
    """Monotonic seconds."""
    bytes: int


def surplus(finished: Iterable[Finished], now: float, limits: Limits) -> list[str]:
    """Return the ids of the flows to remove, given all finished ones, oldest first."""
    kept = list(finished)
    total = sum(one.bytes for one in kept)
    removed: list[str] = []
    for one in kept:
        too_many = len(kept) - len(removed) > limits.count or total > limits.bytes
        if not too_many and now - one.ended <= limits.age_s:
            break
        removed.append(one.id)
        total -= one.bytes
    return removed


def size_of(flow: mflow.Flow) -> int:
    """Return about how many bytes of memory *flow* takes."""
    size = FLOW_BYTES
    if isinstance(flow, http.HTTPFlow):
        for message in (flow.request, flow.response):
            size += len(message.raw_content or b"") if message else 0
        if flow.websocket:
            size += sum(len(message.content) for message in flow.websocket.messages)
    return size
