"""The state of one request on its way through the rooms. Rooms meet here; each field says which room writes it.

An ``Exchange`` lives from the request's head to its row. A ``Leg`` is a place that may answer it, an ``Attempt`` one
try at a provider.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from mitmgate.dialects.base import Dialect, Json, Reading, Request
from mitmgate.errors import Refusal, Source
from mitmgate.ids import uuid7
from mitmgate.policy.values import Timeout

if TYPE_CHECKING:
    from mitmgate.auth import Proof
    from mitmgate.charges import Standing
    from mitmgate.policy.values import Choice
    from mitmgate.policy.values import Hedge as HedgeRule
    from mitmgate.providers import Provider
    from mitmgate.sink import Replay
    from mitmgate.tape import Tape

type Fields = list[tuple[bytes, bytes]]
"""Header fields as on the wire: order, case and duplicates kept."""


def joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return header fields by name in lower case; repeated ones are joined by ``, ``."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = _name(raw_name), raw_value.decode("utf-8", "replace")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


@lru_cache(1024)  # names are few
def _name(raw_name: bytes) -> str:
    return raw_name.decode("latin-1").lower()


type Terminal = Literal["complete", "error_event", "truncated", "client_abort", "timeout", "refused", "failed"]

type How = Literal["end", "cut", "client_left", "timeout", "refused", "failed"]
"""How the answer's transport ended: whole, broken off, left by the client, by a clock of ours, never begun."""


@dataclass(slots=True)
class Leg:
    """A place that may answer, and the request as that place gets it. Written by ``route`` and ``entry``."""

    target: str
    """Name of the policy's target; where there is none, the provider's slug, else the host."""
    provider: "Provider | None"
    scheme: str
    host: str
    port: int
    path: str
    """Origin form, query included."""
    fields: Fields
    """Without what belongs to the gateway or to the client's connection."""
    body: bytes | None = None
    """None = as the client sent it."""
    model: str | None = None
    """Asked of this place."""
    is_target: bool = False
    """``target`` is one of the policy's."""
    ca: str | None = None
    zone: str | None = None
    dialect: Dialect | None = None
    """What it answers in."""
    request: Request = field(default_factory=Request)
    attempts: int | None = None
    """Most tries here; None = as the retry rule says."""
    first_byte_s: float | None = None
    """None = as ``Exchange.timeouts`` says."""
    key_alias: str | None = None
    """The key of the target's pool that goes with the attempt; None = it has no pool. Written by ``provider_keys``."""
    delay_s: float | None = None
    """First wait here; None = as the retry rule says."""
    backoff: str | None = None
    asked_usage: bool = False
    """``usage`` asked the stream to report its counts; the chunk that carries them is not for the client."""
    unasked_body: bytes | None = None
    """``body`` before that."""

    @property
    def key(self) -> str:
        """By which retries, rests and paces are counted: the target's name, the host where there is no target."""
        return self.target if self.is_target else self.host


@dataclass(slots=True)
class Answer:
    """What is known of an answer beside the bytes on their way. Written by ``stream``."""

    reading: Reading = field(default_factory=Reading)
    kept: bytearray = field(default_factory=bytearray)
    """Its bytes, content coding undone, up to ``trace``'s cap per body."""
    kept_whole: bool = True
    size: int = 0
    """Bytes as the provider sent them."""
    first_content: float | None = None
    """Monotonic seconds at which the first content arrived."""
    spoilt: str | None = None
    """Why its content coding could not be undone to the end."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The place that gave an answer."""

    target: str
    provider_name: str
    host: str
    model: str | None = None
    """Asked of it; None where nobody knows."""


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
    answer: Answer = field(default_factory=Answer)
    model: str | None = None
    """Asked of that place."""

    @property
    def reading(self) -> Reading:
        return self.answer.reading

    @property
    def origin(self) -> Origin:
        return Origin(self.target, self.provider_name, self.host, self.model)


@dataclass(slots=True)
class Event:
    """A rule that acted, or would have. ``room`` is the policy section's name."""

    room: str
    rule: str
    action: str
    shadow: bool = False
    detail: str | None = None
    at: float | None = None
    """Monotonic seconds; None = when the request came."""


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
    """The same by names in lower case, repeated ones joined by ``, ``; past ``auth`` without the gateway's own key."""
    started: float
    """Monotonic seconds at the request's head."""
    started_wall: float
    door: Literal["proxy", "base-url", "replay", "gateway"] = "proxy"
    """``gateway``: a call of the gateway's own, made for the sake of another one."""
    client_host: str = ""
    http_version: str = "HTTP/1.1"
    target: str | None = None
    """A target of the policy named in the base-URL path."""
    entry: Literal["compat", "universal"] | None = None
    """One of Cloudflare's entries that name their provider in the body, not in the path."""
    id: str = field(default_factory=uuid7)
    body: bytes | None = None
    """The request body as sent by the client; None while (and if) it is streamed."""
    streamed_upload: bool = False
    """The body goes to the provider while it arrives: no rule can read it, no second attempt can be made."""
    connect_key: bytes | None = None
    """Digest of the gateway's key that its CONNECT came with; None where there was no CONNECT, or it had none."""

    # -- entry: a request that names its provider in the body -------------------------------------------------------
    native_body: bytes | None = None
    """What the provider's own path takes, where an entry of Cloudflare's had wrapped it or a rule changed it
    (``rewrite``); None = ``body``.
    """

    # -- auth: the gateway's own key ---------------------------------------------------------------------------------
    proof: "Proof | None" = None
    """What the key proves that came with the request; None where none is asked for."""
    keyless: bool = False
    """It has no key of its provider's: none came, or the gateway's stood in its place. A target has to supply one."""

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
    timeouts: Timeout = field(default_factory=Timeout)
    """The rule of ``timeout`` that acts, with ``cf-aig-request-timeout`` in its place."""
    keep_row: bool = True
    keep_payload: bool = True

    # -- guard, limit, budget, cache: a room that says no, or answers, writes this -----------------------------------
    refusal: Refusal | None = None
    source: Source = "provider"
    cache_status: Literal["HIT", "MISS", "BYPASS"] | None = None
    cache_age_s: int | None = None
    """Of a hit."""
    replay: "Replay | None" = None
    """An answer that is already here, or on its way to somebody else: nothing is asked of a provider."""
    tape: "Tape | None" = None
    """Where the answer is written so that others can have it, too; None = straight to the client."""
    left_early: bool = False
    """Its client did not take all of an answer that was read to its end for others, or long ago."""
    route_notes: list[str] = field(default_factory=list)
    """Parts of ``cf-aig-route``."""
    limit_standing: "Standing | None" = None
    """Of all limits that it was counted by, the one with the smallest share left."""
    budget_standing: "Standing | None" = None
    assumed: dict[str, int] = field(default_factory=dict)
    """Counter of a budget -> nano-dollars that the call counts there, should its price stay unknown."""
    downgrade: "Choice | None" = None
    """Where a budget sends it, and for which model, instead of where it would go. ``route`` obeys."""
    masked: bytes | None = None
    """The client's body as rows and screens may show it, where a guard found what they must not; None = ``body``."""
    shows: Callable[[str], str] | None = None
    """Makes of a text about the call what others than rules may see: without what guards hide. None = as it is."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """Of guards, as ``cf-aig-dlp`` tells them: which rule, which kinds, which side; never the text."""
    guarded: bool = False
    """Guards look at its answer: what is kept of that is what they let through, not what the provider said."""
    guards: tuple[str, ...] = ()
    """Names of the rules that may change its answer, or keep it back: it is shared with whoever has the same."""
    placeholders: dict[str, str] = field(default_factory=dict)
    """Placeholder in the request -> what it stands for; put back into the answer that the client gets."""
    events: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the row should know, e.g. that no rule could read a streamed upload."""

    # -- shape, route: what the provider gets ------------------------------------------------------------------------
    prompt_tokens: tuple[int, int] | None = None
    """Estimated before and after a rule of ``shape`` changed it; None = none did."""
    sent_fields: Fields = field(default_factory=list)
    """The client's, less ours and those of its connection; each leg makes its own of them."""
    sent_body: bytes | None = None
    """What the place that was tried last got; None = ``body`` unchanged."""
    legs: list[Leg] = field(default_factory=list)
    """The places that may answer, in order; the first is the request's own host where no rule says otherwise."""
    fall_back_on: frozenset[int | str] = frozenset()
    """Causes that lead on to the next leg."""
    route_rule: str = "route"
    """Name of the rule that made the legs."""
    hedge: "HedgeRule | None" = None
    spare: Leg | None = None
    """Where ``hedge`` makes its second attempt."""

    # -- upstream, stream: what came back -----------------------------------------------------------------------------
    attempts: list[Attempt] = field(default_factory=list)
    step: int = 0
    origin: Origin | None = None
    """Where the answer came from, at first hand or, out of the cache, long ago."""
    status: int | None = None
    """As the client got it."""
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    """Of the attempt that answered, or of the stored answer."""
    how: How | None = None
    first_content: float | None = None
    """Monotonic seconds at which the first content arrived."""
    waited_s: float = 0.0
    """Waiting for the provider (connect, first byte, between bytes); ``gateway_ms`` is the rest."""

    # -- account ----------------------------------------------------------------------------------------------------
    ended: float | None = None
    terminal: Terminal | None = None
    error_type: str | None = None

    # -- chain ------------------------------------------------------------------------------------------------------
    rooms: Any = None
    """The rooms that it goes through, whatever policy comes meanwhile. Written by ``door``."""

    # -- whoever carries it ------------------------------------------------------------------------------------------
    flow: Any = None
    """mitmproxy's flow, for the screens; no rule reads it."""

    @property
    def reading(self) -> Reading:
        return self.answer.reading

    @property
    def answering(self) -> Attempt | None:
        """The attempt whose answer this is; the last one where none was good, None where none was made."""
        last = self.attempts[-1] if self.attempts else None
        return next((attempt for attempt in self.attempts if attempt.answer is self.answer), last)

    @property
    def stream(self) -> bool:
        return self.request.stream

    @property
    def streaming(self) -> bool:
        """The answer came as a stream, whatever was asked."""
        return "event-stream" in self.answer_headers.get("content-type", "")

    def rewrite(self, body: bytes, parsed: Json) -> None:
        """Let every place get *body*, which says *parsed*, in place of what the client sent."""
        self.native_body, self.json = body, parsed
        if "content-encoding" in self.headers:
            self.sent_fields = [field for field in self.sent_fields if field[0].lower() != b"content-encoding"]

    @property
    def is_coded(self) -> bool:
        """The body still has a content coding: the client's own, which nobody had to undo."""
        return self.native_body is None and "content-encoding" in self.headers

    @property
    def asked_body(self) -> bytes | None:
        """The body as it stands: the client's, unwrapped and changed so far; if unchanged, in its content coding."""
        return self.body if self.native_body is None else self.native_body

    def shown(self, text: str) -> str:
        """Return *text*, which the client has chosen, as rows and screens have it."""
        return self.shows(text) if self.shows else text

    def refuse(self, refusal: Refusal) -> None:
        """Answer with *refusal*; the first room to say no is the one that counts."""
        if self.refusal is None:
            self.refusal = refusal
            self.source = refusal.source
