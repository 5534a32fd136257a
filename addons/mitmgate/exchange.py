"""The state of one request on its way through the rooms. Rooms meet here; each field says which room writes it.

An ``Exchange`` lives from the request's head to its row. An ``Attempt`` is one try at a provider.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mitmgate.dialects.base import Dialect, Json, Reader, Reading, Request
from mitmgate.errors import Refusal, Source
from mitmgate.ids import uuid7

if TYPE_CHECKING:
    from mitmgate.providers import Provider

type Fields = list[tuple[bytes, bytes]]
"""Header fields as on the wire: order, case and duplicates kept."""


def joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return header fields by name in lower case; repeated ones are joined by ``, ``."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "replace")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


type Terminal = Literal["complete", "error_event", "truncated", "client_abort", "timeout", "refused", "failed"]

type How = Literal["end", "cut", "client_left", "timeout", "refused", "failed"]
"""How the answer's transport ended: whole, broken off, left by the client, by a clock of ours, never begun."""


@dataclass(slots=True)
class Attempt:
    """One try at a provider. Times in seconds of the monotonic clock; written by ``upstream``, usage by ``stream``."""

    n: int
    """1 for the first."""
    target: str
    provider_name: str
    host: str
    started: float
    wait_s: float = 0.0
    """Waited before it."""
    connect_s: float | None = None
    """DNS, TCP and TLS; None where a kept connection was used."""
    reused_connection: bool = False
    first_byte: float | None = None
    ended: float | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer, names in lower case."""
    error_type: str | None = None
    detail: str | None = None
    """What went wrong, for people."""
    reading: Reading = field(default_factory=Reading)


@dataclass(slots=True)
class Event:
    """A rule that acted, or would have. ``room`` is the policy section's name."""

    room: str
    rule: str
    action: str
    shadow: bool = False
    detail: str | None = None


@dataclass(slots=True)
class Timeouts:
    """Seconds; None = no limit. Written by ``identify`` from the policy and ``cf-aig-request-timeout``."""

    connect_s: float | None = 5.0
    first_byte_s: float | None = 120.0
    idle_s: float | None = 300.0
    total_s: float | None = 3600.0


@dataclass(slots=True, eq=False)
class Exchange:
    """One client request and all that became of it."""

    # -- door: the request as it came -----------------------------------------------------------------------------
    method: str
    scheme: str
    host: str
    port: int
    path: str
    """Origin form, query included, as the provider will see it."""
    fields: Fields
    """All request header fields as the client sent them; ``sent_fields`` are what a provider gets."""
    headers: dict[str, str]
    """The same, names in lower case; repeated ones joined by ``, ``."""
    started: float
    """Monotonic seconds at the request's head."""
    started_wall: float
    door: Literal["proxy", "base-url", "replay"] = "proxy"
    client_host: str = ""
    http_version: str = "HTTP/1.1"
    target: str | None = None
    """A target of the policy named in the base-URL path."""
    id: str = field(default_factory=uuid7)
    body: bytes | None = None
    """The request body as sent by the client; None while (and if) it is streamed."""
    streamed_upload: bool = False
    """The body goes to the provider while it arrives: no rule can read it, no second attempt can be made."""

    # -- identify: who asks what of whom ----------------------------------------------------------------------------
    provider: "Provider | None" = None
    dialect: Dialect | None = None
    """None where the call generates nothing: it passes, and gets no row."""
    operation: str | None = None
    json: Json = None
    """The parsed request body, None where it is not JSON."""
    request: Request = field(default_factory=Request)
    tenant: str | None = None
    user: str | None = None
    session: str | None = None
    trace_id: str | None = None
    parent_span_id: str | None = None
    event_id: str | None = None
    prompt_version: str | None = None
    route: str | None = None
    region: str | None = None
    colo: str | None = None
    sla: str | None = None
    tier: str | None = None
    auth: str | None = None
    """A keyed hash of the caller's credential, never the credential."""
    metadata: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    controls: dict[str, Any] = field(default_factory=dict)
    """The ``cf-aig-*`` request headers, parsed; keys without the prefix: ``{"request-timeout": 1500}``."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    keep_row: bool = True
    keep_payload: bool = True

    # -- guard, limit, budget, cache: a room that says no, or answers, writes this
    # --------------------------------------
    refusal: Refusal | None = None
    source: Source = "provider"
    cache_status: str | None = None
    route_notes: list[str] = field(default_factory=list)
    """Parts of ``cf-aig-route``."""
    events: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the row should know, e.g. that no rule could read a streamed upload."""

    # -- shape, route: what the provider gets ------------------------------------------------------------------------
    sent_fields: Fields = field(default_factory=list)
    sent_body: bytes | None = None
    """None = ``body`` unchanged."""
    asked_usage: bool = False
    """``usage`` asked the stream to report its counts; the chunk that carries them is not for the client."""

    # -- upstream, stream: what came back -----------------------------------------------------------------------------
    attempts: list[Attempt] = field(default_factory=list)
    step: int = 0
    status: int | None = None
    """As the client got it."""
    answer_headers: dict[str, str] = field(default_factory=dict)
    reader: Reader | None = None
    reading: Reading = field(default_factory=Reading)
    how: How | None = None
    first_content: float | None = None
    """Monotonic seconds at which the first content arrived."""
    waited_s: float = 0.0
    """Waiting for the provider (connect, first byte, between bytes); ``gateway_ms`` is the rest."""
    answer_bytes: int = 0
    kept: bytearray = field(default_factory=bytearray)
    """The answer's bytes, content coding undone, up to ``trace``'s cap per body."""
    kept_whole: bool = True

    # -- account ----------------------------------------------------------------------------------------------------
    ended: float | None = None
    terminal: Terminal | None = None
    error_type: str | None = None

    # -- whoever carries it ------------------------------------------------------------------------------------------
    flow: Any = None
    """mitmproxy's flow, for the screens; no rule reads it."""

    @property
    def stream(self) -> bool:
        return self.request.stream

    @property
    def streaming(self) -> bool:
        """The answer came as a stream, whatever was asked."""
        return "event-stream" in self.answer_headers.get("content-type", "")

    def refuse(self, refusal: Refusal) -> None:
        """Answer with *refusal*; the first room to say no is the one that counts."""
        if self.refusal is None:
            self.refusal = refusal
            self.source = refusal.source
