"""A finished exchange as rows: what the event loop must note down at once, and what the writer's thread makes of it
later.

``snapshot`` runs on the event loop when the books are closed (about 25 µs): it copies facts and keeps the bodies by
reference, never the flow. ``Record.render`` runs in the writer's thread: hashes, prices, redaction, compression, JSON.

Rules of the numbers: those of ``bill``; beside them, a cache hit costs 0 and saves what it would have cost, and where
nothing was sent, nothing was spent. Null is unknown.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

from mitmgate import redact
from mitmgate.bill import Answer, answer_of, storable, sum_all, sum_known
from mitmgate.clock import iso
from mitmgate.dialects.base import Reading
from mitmgate.dialects.inflate import inflater
from mitmgate.exchange import Attempt, Event, Exchange
from mitmgate.policy.values import Policy
from mitmgate.pricing import PRICES, Priced, Prices, reported_cost
from mitmgate.store import bodies
from mitmgate.store.rows import Row, Rows

TEXT_CHARS = 256
"""Of a name, tag or header that a client chose; models and tags are shorter, and columns are indexed."""

DETAIL_CHARS = 1000

REQUEST_BYTES = 4 * 2**20
"""Of a request body so much is kept; a longer one is marked as cut. Answers were cut while they streamed."""

HIT_BYTES = 16 * 1024
"""Bodies of cache hits up to this size are remembered with their secrets masked: at most 256 of them."""

LONG = {
    "path": 2048,
    "metadata": 8192,
    "notes": 8192,
    "finish_reasons": 8192,
    "server_tools": 8192,
    "error_detail": DETAIL_CHARS,
    "detail": DETAIL_CHARS,
    "price_detail": DETAIL_CHARS,
}
"""Columns that may be longer than a name."""

REQUEST_IDS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid", "x-goog-request-id", "cf-ray")
"""Answer headers by which a provider's support finds a request, best first."""

BROKEN_OFF = frozenset({"truncated", "client_abort", "timeout", "error_event"})
"""Terminals of a stream that had begun and did not reach its end."""

ATTEMPT_COUNTERS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "reasoning_output_tokens",
)
"""Counters that each attempt has columns for."""

SUMMED = (*ATTEMPT_COUNTERS, "cache_creation_1h_input_tokens", "input_audio_tokens", "output_audio_tokens")
"""Counters of which the exchange's is the sum over its attempts."""

type Payloads = Literal["full", "redacted", "none"]


@dataclass(slots=True)
class Bodies:
    """The bodies of one exchange, by reference; ``shed`` lets go of them."""

    request: bytes | None
    masked: bytes | None
    """What is shown of the request, where a guard found what must not be; None = ``request``."""
    sent: bytes | None
    """None where the request left as it came."""
    response: bytes | bytearray
    response_whole: bool
    request_type: str | None
    request_coding: str
    sent_coding: str
    response_type: str | None


class Record:
    """An exchange on its way to the database: an item of the writer's backlog."""

    __slots__ = ("answer", "attempts", "bodies", "custom", "events", "exchange", "hashes", "payloads", "prices", "wall")

    def __init__(
        self,
        exchange: Row,
        answer: Answer,
        attempts: list[tuple[Row, Answer]],
        events: list[Event],
        bodies: Bodies,
        payloads: Payloads,
        custom: Mapping[str, Any] | None,
        wall: float,
        prices: Prices,
    ) -> None:
        self.exchange = exchange
        """All columns but those that ``render`` adds; texts as they came."""
        self.answer = answer
        self.attempts = attempts
        self.events = events
        self.bodies = bodies
        self.payloads: Payloads = payloads
        self.custom = custom
        self.wall = wall
        """When the request came, seconds since 1970."""
        self.prices = prices
        self.hashes: tuple[str | None, str | None] | None = None

    @property
    def size(self) -> int:
        """Bytes of memory that the record holds, roughly."""
        held = self.bodies
        return 2048 + len(held.request or b"") + len(held.sent or b"") + len(held.response)

    def shed(self) -> int:
        """Let go of the bodies; their hashes stay."""
        before = self.size
        self.hashes = self._hashed()
        self.bodies.request = self.bodies.masked = self.bodies.sent = None
        self.bodies.response = b""
        self.payloads = "none"
        return before - self.size

    def render(self) -> Rows:
        """Return the rows of this exchange."""
        tried = [(row, answer, answer.price(self.prices, self.wall, self.custom)) for row, answer in self.attempts]
        attempts = [_tried(*each) for each in tried]
        priced = [(answer, price) for _, answer, price in tried]
        if not priced or self.exchange["source"] == "cache":
            priced = [(self.answer, self.answer.price(self.prices, self.wall, self.custom))]
        used = [(answer, price) for answer, price in priced if answer.used]
        exchange = self._exchange(used, sum_known([price.cost_nanousd for *_, price in tried]))
        return Rows(
            exchanges=[exchange],
            attempts=attempts,
            policy_events=[_event(event, str(exchange["id"]), self.wall) for event in self.events],
            payloads=list(self._payloads()),
            feedback=list(_feedback(exchange)),
        )

    def _exchange(self, used: list[tuple[Answer, Priced]], spent: int | None) -> Row:
        """Return the exchange's row; *used* are the answers that reported usage, with their prices."""
        row = self.exchange
        usages = [answer.reading.usage for answer, _ in used]
        row |= _reading(self.answer.reading)
        row |= {name: sum_known([getattr(usage, name) for usage in usages]) for name in SUMMED}
        row |= self._money([price for _, price in used], spent)
        row["usage_source"] = weakest([answer.reading.usage_source for answer, _ in used])
        row["cost_reported_nanousd"] = sum_known([reported_cost(usage) for usage in usages])
        row["request_sha256"], row["sent_sha256"] = self.hashes or self._hashed()
        row["path"] = _url(str(row["path"]))
        row["user_agent"] = _header(row["user_agent"])
        if row["metadata"] != "{}":
            row["metadata"] = redact.text(str(row["metadata"]))
        row["error_detail"] = _detail(row["error_detail"])
        return _clean(row)

    def _money(self, prices: list[Priced], spent: int | None) -> Row:
        """Return the columns that speak of money; *spent*: on attempts."""
        total = sum_all([price.cost_nanousd for price in prices])
        row: Row = {
            "cost_nanousd": total,
            "saved_nanousd": None,
            "price_version": next((price.version for price in prices if price.version), None),
            "price_detail": next((price.detail for price in prices if price.detail), None),
        }
        if self.exchange["source"] == "cache":  # where an old answer stood in for an error, attempts may have cost, too
            row |= {"cost_nanousd": spent or 0, "saved_nanousd": total}
        elif not self.attempts:
            row["cost_nanousd"] = 0
        return row

    def _hashed(self) -> tuple[str | None, str | None]:
        """Return the hashes of (what the client sent, what the provider got where that differs)."""
        request, sent = self.bodies.request, self.bodies.sent
        return (
            None if request is None else sha256(request).hexdigest(),
            None if sent is None else sha256(sent).hexdigest(),
        )

    def _payloads(self) -> Iterable[Row]:
        held = self.bodies
        if self.payloads == "none":
            return
        shown = held.request if held.masked is None else held.masked
        shown_coding = held.request_coding if held.masked is None else ""
        for kind, body, coding in (("request", shown, shown_coding), ("sent", held.sent, held.sent_coding)):
            if body:
                plain, whole = _plain(body, coding)
                whole = whole and len(plain) <= REQUEST_BYTES
                yield self._payload(kind, held.request_type, plain[:REQUEST_BYTES], whole)
        if held.response:
            yield self._payload("response", held.response_type, bytes(held.response), held.response_whole)

    def _payload(self, kind: str, content_type: str | None, body: bytes, whole: bool) -> Row:
        kept = self._redacted(body) if self.payloads == "redacted" else body
        encoding, stored = bodies.pack(kept)
        return {
            "exchange_id": self.exchange["id"],
            "kind": kind,
            "content_type": _header(content_type),
            "encoding": encoding,
            "bytes": len(kept),
            "body": stored,
            "whole": int(whole),
        }

    def _redacted(self, body: bytes) -> bytes:
        """Return *body* without secrets; those of a cache hit are mostly the same as the last time."""
        if self.exchange["source"] == "cache" and len(body) <= HIT_BYTES:
            return _redacted_hit(body)
        return redact.body(body)


_redacted_hit = lru_cache(256)(redact.body)


def snapshot(x: Exchange, policy: Policy, prices: Prices = PRICES) -> Record:
    """Return all that the rows of the finished exchange *x* need; *x* may change or go afterwards, its bodies may not.

    Whether *x* is to have a row at all is for the caller to ask: ``x.keep_row``.
    """
    last = x.answering
    origin = x.origin or (last.origin if last else None)
    provider_name = origin.provider_name if origin else x.provider.provider_name if x.provider else None
    exchange: Row = {
        "id": x.id,
        "started_at": iso(x.started_wall),
        "trace_id": x.trace_id,
        "parent_span_id": x.parent_span_id,
        "session_id": x.session,
        "event_id": x.event_id,
        "prompt_version": x.prompt_version,
        "route": x.route,
        "tenant": x.tenant,
        "user": x.user and x.shown(x.user),
        "auth": x.auth,
        "region": x.region,
        "colo": x.colo,
        "sla": x.sla,
        "tier": x.tier,
        "provider_name": provider_name,
        "operation_name": x.operation,
        "request_model": x.request.model and x.shown(x.request.model),
        "host": x.host,
        "path": x.path,
        "stream": int(x.stream),
        "status_code": x.status,
        "terminal": x.terminal,
        "error_type": x.error_type,
        "source": x.source,
        "cache_status": x.cache_status,
        "attempts": len(x.attempts),
        "step": x.step,
        "target": origin.target if origin else x.target,
        "time_to_first_token_ms": _ms(x.started, x.first_content),
        "duration_ms": _ms(x.started, x.ended),
        "gateway_ms": gateway_ms(x),
        "policy_sha256": policy.sha256[:12] if policy.sha256 else None,
        "user_agent": x.headers.get("user-agent"),
        "metadata": _json(_shown(x)) if x.metadata else "{}",
        "method": x.method,
        "door": x.door,
        "how": x.how,
        "streamed": int(x.streaming),
        "answer_bytes": x.answer.size,
        "waited_ms": round(x.waited_s * 1000, 3),
        "error_detail": x.refusal.message if x.refusal else last.detail if last else None,
        "notes": _json(x.notes) if x.notes else None,
        "key_name": x.proof.name if x.proof else None,
    }
    if x.prompt_tokens:
        exchange["prompt_tokens_before"], exchange["prompt_tokens_after"] = x.prompt_tokens
    coding = x.headers.get("content-encoding", "")
    keeps_bodies = policy.trace.payloads if x.keep_payload else "none"
    if keeps_bodies == "full" and x.entry == "universal":
        keeps_bodies = "redacted"  # its elements carry their keys in the body
    return Record(
        exchange,
        answer_of(x, origin, x.reading),
        [(_attempt(x, attempt), answer_of(x, attempt.origin, attempt.reading)) for attempt in x.attempts],
        [replace(event, at=event.at and event.at - x.started) for event in x.events],
        Bodies(
            request=x.body,
            masked=x.masked,
            sent=x.sent_body if x.sent_body != x.body else None,
            response=x.answer.kept,
            response_whole=x.answer.kept_whole,
            request_type=x.headers.get("content-type"),
            request_coding=coding,
            sent_coding=coding if x.native_body is None else "",
            response_type=x.answer_headers.get("content-type"),
        ),
        keeps_bodies,
        x.controls.get("custom-cost"),
        x.started_wall,
        prices,
    )


def _shown(x: Exchange) -> dict[str, Any]:
    """Return the tags of *x* as a row has them."""
    if x.shows is None:
        return x.metadata
    return {name: x.shown(value) if isinstance(value, str) else value for name, value in x.metadata.items()}


def gateway_ms(x: Exchange) -> float | None:
    """Return the gateway's own milliseconds: all but waiting for the provider and between attempts."""
    if x.ended is None:
        return None
    waits_s = sum(attempt.wait_s for attempt in x.attempts)
    return round(max(0.0, x.ended - x.started - x.waited_s - waits_s) * 1000, 3)


def weakest(sources: list[str]) -> str:
    """Return the least sure of *sources*: a sum is as good as its worst part."""
    return max(sources, key=("none", "reported", "reported_partial", "estimated").index, default="none")


def _attempt(x: Exchange, attempt: Attempt) -> Row:
    headers = attempt.headers
    return {
        "exchange_id": x.id,
        "n": attempt.n,
        "target": attempt.target,
        "provider_name": attempt.provider_name,
        "host": attempt.host,
        "status_code": attempt.status,
        "error_type": attempt.error_type,
        "wait_ms": round(attempt.wait_s * 1000, 3),
        "connect_ms": None if attempt.connect_s is None else round(attempt.connect_s * 1000, 3),
        "first_byte_ms": _ms(attempt.started, attempt.first_byte),
        "duration_ms": _ms(attempt.started, attempt.ended),
        "reused_connection": int(attempt.reused_connection),
        "started_at": iso(x.started_wall + attempt.started - x.started),
        "first_token_ms": _ms(attempt.started, attempt.answer.first_content),
        "request_id": next((headers[name] for name in REQUEST_IDS if name in headers), None),
        "error_detail": attempt.detail,
    }


def _tried(row: Row, answer: Answer, price: Priced) -> Row:
    """Return the row of an attempt, with what its answer used and cost."""
    usage = answer.reading.usage
    row |= {name: storable(getattr(usage, name)) for name in ATTEMPT_COUNTERS}
    row["usage_source"] = answer.reading.usage_source
    row["response_model"] = answer.reading.response_model
    row["cost_nanousd"] = storable(price.cost_nanousd)
    row["error_detail"] = _detail(row["error_detail"])
    return _clean(row)


def _event(event: Event, exchange_id: str, wall: float) -> Row:
    return _clean({
        "exchange_id": exchange_id,
        "at": iso(wall + (event.at or 0.0)),
        "room": event.room,
        "rule": event.rule,
        "action": event.action,
        "shadow": int(event.shadow),
        "detail": _detail(event.detail),
    })  # fmt: skip


def _feedback(exchange: Row) -> Iterable[Row]:
    """Yield what the gateway itself has to say about the quality of the answer."""
    if exchange["stream"] and exchange["status_code"] and exchange["terminal"] in BROKEN_OFF:
        yield {
            "exchange_id": exchange["id"],
            "at": exchange["started_at"],
            "kind": "stream_interrupted",
            "value": exchange["terminal"],
            "source": "gateway",
        }


def _reading(reading: Reading) -> Row:
    """Return the columns that the answer itself tells."""
    usage = reading.usage
    return {
        "response_model": reading.response_model,
        "response_id": reading.response_id,
        "finish_reasons": _json(reading.finish_reasons) if reading.finish_reasons else "[]",
        "tool_calls": reading.tool_calls,
        "service_tier": usage.service_tier,
        "server_tools": _json(usage.server_tools) if usage.server_tools else None,
        "parse_errors": reading.parse_errors,
    }


def _ms(start: float, end: float | None) -> float | None:
    """Return the milliseconds from *start* to *end*, both monotonic seconds."""
    return None if end is None else round((end - start) * 1000, 3)


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Made once: ``json.dumps`` would make one for each value."""


def _plain(body: bytes, coding: str) -> tuple[bytes, bool]:
    """Return *body* with its content *coding* undone, and whether that is all; what cannot be read is not kept."""
    if not coding:
        return body, True
    decoder = inflater(coding)
    if decoder is None:
        return b"", False
    plain = decoder.feed(body) + decoder.end()
    return plain, decoder.dead is None


def _clean(row: Row) -> Row:
    """Return *row* with texts that SQLite can hold (no lone surrogates) and that nobody made endless."""
    texts = [value for value in row.values() if isinstance(value, str)]
    if len(max(texts, key=len)) <= TEXT_CHARS and "".join(texts).isascii():
        return row
    for name, value in row.items():
        if isinstance(value, str):
            most = LONG.get(name, TEXT_CHARS)
            row[name] = value[:most].encode(errors="replace").decode()
    return row


def _detail(value: object) -> str | None:
    """Return a sentence for people without the secrets that error texts like to quote."""
    return redact.text(str(value)[:DETAIL_CHARS]) if value else None


@lru_cache(4096)
def _header(value: str | None) -> str | None:
    """Return a header's value, cut and without secrets; cached, since the same few come with every request."""
    return redact.text(value[:TEXT_CHARS]) if value else None


@lru_cache(4096)
def _url(path: str) -> str:
    return redact.url(path[:2048])
