"""What a policy says, as frozen values: one class per section, in the order a request meets them.

The defaults below are what runs when nobody writes a policy; ``policies/default.yaml`` says the same in YAML, and a
test holds the two together. Times are seconds, sizes bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mitmgate.policy.match import Match

type Strings = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProviderHosts:
    """A row of ``providers``: hosts beside the built-in table."""

    name: str
    hosts: Strings
    """Globs, lower case, with or without ``:port``."""
    dialect: str
    """A family: ``openai``, ``anthropic``, ``gemini`` …"""


@dataclass(frozen=True, slots=True)
class Observe:
    """An entry of ``observe``: other hosts of the same runs; one span per call, bodies never kept."""

    hosts: Strings
    kind: Literal["retrieval", "tool", "mcp", "other"]


@dataclass(frozen=True, slots=True)
class Identify:
    """Where a row's columns come from: ``key``, ``metadata.NAME`` or ``header.NAME``; the first that is present."""

    tenant: Strings = ("key", "metadata.tenantId")
    user: Strings = ("key", "metadata.userId")
    session: Strings = ()
    """Beside the well-known ones."""
    prompt_version: Strings = ()
    route: Mapping[str, Match] = field(default_factory=dict)
    tier: Mapping[str, Match] = field(default_factory=dict)
    sla: Mapping[str, Match] = field(default_factory=dict)
    region: str | None = None
    colo: str | None = None
    require: Strings = ()


@dataclass(frozen=True, slots=True)
class Timeout:
    """One rule of ``timeout``; the first whose ``match`` holds acts."""

    match: Match | None = None
    unless: Match | None = None
    connect_s: float | None = 5.0
    first_byte_s: float | None = 120.0
    idle_s: float | None = 300.0
    total_s: float | None = 3600.0


@dataclass(frozen=True, slots=True)
class Cache:
    """One rule of ``cache``; the first that matches acts."""

    ttl_s: float
    name: str = "cache"
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False
    scope: Strings = ("auth",)
    """Fields, as in a ``match``, that part the entries."""
    stale_if_error_s: float = 0.0
    """So long after ``ttl`` an answer still stands in for one that could not be had."""
    replay: Literal["at once", "live"] = "at once"
    """``live``: a stream is replayed at the pace at which it came."""
    ignore: Strings = ()
    """Body fields (dotted) that do not change the answer, so are left out of the key: ``user``."""


@dataclass(frozen=True, slots=True)
class CacheStore:
    max_bytes: int = 2 * 2**30
    key_header: Literal["scope", "replace"] = "scope"
    """What ``cf-aig-cache-key`` is: one more scope, or the whole key."""
    coalesce: bool = True
    """Identical calls in flight share one provider call."""


type Causes = frozenset[int | str]
"""Statuses, ``4xx``, ``5xx``, ``connect``, ``timeout``, ``reset``, ``error_event``: how an attempt may fail."""

CAUSES: Causes = frozenset({408, 409, 425, 429, "5xx", "connect", "timeout", "reset"})


@dataclass(frozen=True, slots=True)
class Choice:
    """One place in a ``try`` or ``split``: a target, another model, or both."""

    target: str | None = None
    """None = where the request would go anyway."""
    model: str | None = None
    """None = the one asked for."""
    timeout_s: float | None = None
    """To the first byte; None = as ``timeout`` says."""
    attempts: int | None = None
    """None = as ``retry`` says."""


@dataclass(frozen=True, slots=True)
class Within:
    """A branch is open to so many requests in so much time; the next one goes on to the next branch."""

    requests: int
    every_s: float
    per: Strings = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """One way through a ``choose``: the first whose conditions hold is taken."""

    match: Match | None = None
    unless: Match | None = None
    within: Within | None = None
    tries: tuple[Choice, ...] = ()
    split: tuple[tuple[Choice, float], ...] = ()
    """(place, weight)."""
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One rule of ``route``; the first that matches acts. It has one of ``tries``, ``split``, ``choose``, or only a
    ``zone``."""

    name: str
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False
    tries: tuple[Choice, ...] = ()
    """``try`` in the file: places in order."""
    split: tuple[tuple[Choice, float], ...] = ()
    """(place, weight)."""
    choose: tuple[Branch, ...] = ()
    by: str | None = None
    """A field: whoever has the same value keeps the same place."""
    fall_back_on: Causes = CAUSES
    zone: str | None = None
    """Places of another zone, and of none, are never used, whatever a header says."""


@dataclass(frozen=True, slots=True)
class Retry:
    """One rule of ``retry``; the first that matches acts."""

    match: Match | None = None
    unless: Match | None = None
    name: str = "retry"
    shadow: bool = False
    attempts: int = 1
    """On each target, the first one included."""
    delay_s: float = 0.5
    backoff: Literal["constant", "linear", "exponential"] = "exponential"
    max_delay_s: float = 30.0
    jitter: Literal["full", "none"] = "full"
    retry_on: Causes = CAUSES
    within_s: float = 120.0
    """No wait may end later than this after the request came."""
    ratio: float = 0.2
    """Retries per call on each target, over the last 10 s."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """One rule of ``breaker``; the first that matches acts. Without any, nothing ever rests."""

    match: Match | None = None
    unless: Match | None = None
    name: str = "breaker"
    shadow: bool = False
    window_s: float = 30.0
    min_requests: int = 10
    failures: float = 0.5
    """A share: 0.5 is 50 %."""
    rest_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Hedge:
    """One rule of ``hedge``; the first that matches acts."""

    name: str
    after_s: float | None
    """A fixed wait; None = ``percentile``."""
    percentile: int
    """50 to 99: of the times to first content that the first place has lately taken."""
    to: str
    """The target of the second attempt."""
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False
    ratio: float = 0.1
    """Second attempts per call, over the last 10 s."""

    @property
    def after(self) -> float | int:
        """Return seconds as a float, or the percentile as a whole number."""
        return self.percentile if self.after_s is None else self.after_s


@dataclass(frozen=True, slots=True)
class Target:
    """A row of ``targets``: a place that a provider's API can be had from."""

    name: str
    provider: str
    """A slug of the provider table, or a name under ``providers``."""
    base_url: str
    """Without a trailing slash; may carry a path."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Resolved secrets; never printed. They replace the caller's of the same name."""
    deployments: Mapping[str, str] = field(default_factory=dict)
    """Model -> deployment (Azure)."""
    api_version: str | None = None
    zone: str | None = None
    ca: str | None = None
    """A PEM file, absolute; added to the usual roots."""


@dataclass(frozen=True, slots=True)
class Upstream:
    connections_per_host: int = 100
    proxy: str | None = None
    """``http://user:password@host:port`` of a corporate proxy."""
    ca: str | None = None
    after_client_leaves: Mapping[str, Literal["cancel", "drain"]] = field(
        default_factory=lambda: {"default": "cancel", "aws-bedrock": "drain"}
    )
    websocket: Literal["pass", "refuse"] = "pass"
    connect_to: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """``api.openai.com:443`` -> (host, port) to dial instead; name and certificate check unchanged."""


@dataclass(frozen=True, slots=True)
class Trace:
    payloads: Literal["full", "redacted", "none"] = "redacted"
    keep_s: float = 30 * 86400.0
    """Age of bodies."""
    max_bytes: int = 10 * 2**30
    keep_rows_s: float = 400 * 86400.0
    header: Literal["obey", "ignore"] = "obey"


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy file. A room that comes later adds its section here, as a value of its own."""

    path: str | None = None
    """As given on the command line; None = the built-in defaults."""
    sha256: str | None = None
    """First 12 hex digits, of the file's bytes."""
    version: int = 1
    timezone: str = "UTC"
    usage: Literal["ask", "leave"] = "ask"
    providers: tuple[ProviderHosts, ...] = ()
    observe: tuple[Observe, ...] = ()
    identify: Identify = field(default_factory=Identify)
    cache: tuple[Cache, ...] = ()
    cache_store: CacheStore = field(default_factory=CacheStore)
    route: tuple[Route, ...] = ()
    retry: tuple[Retry, ...] = (Retry(),)
    timeout: tuple[Timeout, ...] = (Timeout(),)
    breaker: tuple[Breaker, ...] = ()
    hedge: tuple[Hedge, ...] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    upstream: Upstream = field(default_factory=Upstream)
    trace: Trace = field(default_factory=Trace)
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Dotted key of the file (``identify.require``, ``timeout[0]``) -> its line."""

    def where(self, key: str) -> str | None:
        """Return ``policy.yaml:12`` of *key*, as errors and refusals name it; None where the file does not have it.

        Rule 0 of a section is found where the file writes the one rule without a list, too (``retry: {attempts: 3}``).
        """
        line = self.lines.get(key) or self.lines.get(key.removesuffix("[0]"))
        return f"{self.path}:{line}" if line and self.path else None
