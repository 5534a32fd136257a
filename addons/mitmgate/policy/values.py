"""What a policy says, as frozen values: one class per section, in the order a request meets them.

The defaults below are what runs when nobody writes a policy; ``policies/default.yaml`` says the same in YAML, and a
test holds the two together. Times are seconds, sizes bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mitmgate.policy.match import Match
from mitmgate.policy.units import Calendar

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
class Key:
    """A row of ``auth.keys``: a key of the gateway's own, and what it proves and permits."""

    name: str
    key: str
    """A resolved secret; never printed."""
    tenant: str | None = None
    user: str | None = None
    models: Strings = ()
    """Globs of the models that it may ask for; empty = all."""
    expires: float | None = None
    """Seconds since 1970; None = never."""


@dataclass(frozen=True, slots=True)
class Auth:
    """Whoever comes through a door has to show a key: one of these, or one made by ``mitmgate keys new``."""

    keys: tuple[Key, ...] = ()


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
class Ask:
    """``then: {ask: TARGET}``: an LLM or a moderation endpoint says whether a text may pass."""

    target: str
    model: str | None = None
    """None = the endpoint's own default."""
    on_error: Literal["block", "pass"] = "block"
    """What holds where the target gives no verdict."""
    about: str | None = None
    """What a chat model is asked to look for, in plain words; None = prompt injection and abuse."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One rule of ``guard``; every one that matches acts. Without ``find`` and ``tools`` the match itself is the
    finding.
    """

    name: str
    find: Strings = ()
    """Kinds (``kinds.KINDS``) and patterns of the policy's own, as in the file."""
    sides: frozenset[Literal["request", "response"]] = frozenset({"request"})
    """``in`` in the file."""
    then: Literal["block", "redact", "flag"] | Ask = "block"
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False
    tools: Strings = ()
    """Globs: a tool that is offered or called and fits none of them is a finding."""
    allow: Strings = ()
    """Patterns: what one of them matches as a whole is no finding (the company's own addresses)."""
    restore: bool = False
    """What was redacted in the request is put back into the answer that its client gets."""


type Span = float | Calendar
"""Seconds, which slide, or a unit of the calendar in the policy's timezone."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One rule of ``limit``: it has one of ``requests``, ``tokens`` and ``concurrent``; every one that matches acts."""

    name: str
    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None
    every: Span | None = None
    """None for ``concurrent`` alone."""
    per: Strings = ()
    """Fields: each value of theirs is counted apart."""
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Downgrade:
    """From a share of a budget on, calls go to a cheaper model or to another target."""

    at: float
    """A share: 0.9 is 90 %."""
    model: str | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """One rule of ``budget``; every one that matches acts."""

    name: str
    cost_nanousd: int
    every: Span
    per: Strings = ()
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False
    soft: float | None = None
    """A share of the cost: an event, and traffic goes on."""
    downgrade: Downgrade | None = None
    hard: Literal["refuse", "record"] = "refuse"
    unpriced: Literal["refuse", "allow"] | int = "allow"
    """What to do with a model without a known price; a number is nano-dollars that each of its calls counts for."""


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Drop the oldest turns until about so many tokens are left."""

    tokens: int


@dataclass(frozen=True, slots=True)
class MaxOutput:
    """Let no answer be longer than this; a smaller number of the client's own stays."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Summarize:
    """Put a summary in place of the oldest turns; the newest *keep_last* tokens stay as they are."""

    keep_last: int
    target: str
    """``with`` in the file."""
    model: str | None = None


type Change = KeepLast | MaxOutput | Summarize | Literal["mark_cacheable", "dedupe"]
"""What ``then`` of a ``shape`` rule may be."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One rule of ``shape``; the first that matches acts."""

    name: str
    then: Change
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False


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
    keys: Mapping[str, str] = field(default_factory=dict)
    """Alias -> resolved secret: a pool. Each goes into the header that the provider reads; ``cf-aig-byok-alias`` names
    one, else the one that was refused longest ago is used.
    """
    aws: "Aws | None" = None
    google: "Google | None" = None


@dataclass(frozen=True, slots=True)
class Aws:
    """Credentials by which requests are signed (SigV4). Without a key, botocore looks where it always looks."""

    region: str
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    profile: str | None = None
    service: str = "bedrock"


@dataclass(frozen=True, slots=True)
class Google:
    """A service account whose tokens go with requests to Vertex AI."""

    service_account: str
    """The JSON of its key: a resolved secret, or read from a file."""


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
class Latency:
    """Budgets per phase, seconds; None = none. Reports name the phase that is over."""

    policy_s: float | None = None
    retrieval_s: float | None = None
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    payloads: Literal["full", "redacted", "none"] = "redacted"
    keep_s: float = 30 * 86400.0
    """Age of bodies."""
    max_bytes: int = 10 * 2**30
    keep_rows_s: float = 400 * 86400.0
    header: Literal["obey", "ignore"] = "obey"


@dataclass(frozen=True, slots=True)
class When:
    """What an ``alert`` rule watches: a budget's share, an open breaker, or a figure over a time."""

    watch: Literal["budget", "breaker", "error_rate", "interrupted", "p95_ms", "spend"]
    subject: str | None = None
    """Name of the budget; of the target whose breaker it is, None = any."""
    at: Literal["soft", "downgrade", "hard"] | None = None
    """Of a budget."""
    above: float = 0.0
    """Of a figure: a share (``error_rate``, ``interrupted``), milliseconds (``p95_ms``), nano-dollars (``spend``)."""
    over_s: float = 300.0
    """So far back the figure looks."""
    per: Strings = ()
    """Fields: each value of theirs is watched apart."""
    min_requests: int = 10
    """A share of fewer calls says nothing."""


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    when: When
    to: Strings
    """Resolved secrets: addresses of webhooks, or of the notification library."""
    match: Match | None = None
    unless: Match | None = None
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """Where rows go beside the database. Read and checked; nothing is exported yet."""

    audit_to: str | None = None
    audit_keep_s: float | None = None
    otlp_to: str | None = None
    otlp_content: bool = False


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
    auth: Auth | None = None
    """None = nobody is asked for a key, and both doors listen on loopback alone."""
    identify: Identify = field(default_factory=Identify)
    guard: tuple[Guard, ...] = ()
    limit: tuple[Limit, ...] = ()
    budget: tuple[Budget, ...] = ()
    cache: tuple[Cache, ...] = ()
    cache_store: CacheStore = field(default_factory=CacheStore)
    shape: tuple[Shape, ...] = ()
    route: tuple[Route, ...] = ()
    retry: tuple[Retry, ...] = (Retry(),)
    timeout: tuple[Timeout, ...] = (Timeout(),)
    breaker: tuple[Breaker, ...] = ()
    hedge: tuple[Hedge, ...] = ()
    targets: Mapping[str, Target] = field(default_factory=dict)
    upstream: Upstream = field(default_factory=Upstream)
    latency: Latency = field(default_factory=Latency)
    trace: Trace = field(default_factory=Trace)
    alert: tuple[Alert, ...] = ()
    export: Export = field(default_factory=Export)
    state: str = "memory"
    text: str = field(default="", repr=False, compare=False)
    """The file."""
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Dotted key of the file (``identify.require``, ``timeout[0]``) -> its line."""

    def where(self, key: str) -> str | None:
        """Return ``policy.yaml:12`` of *key*, as errors and refusals name it; None where the file does not have it.

        Rule 0 of a section is found where the file writes the one rule without a list, too (``retry: {attempts: 3}``).
        """
        line = self.lines.get(key) or self.lines.get(key.removesuffix("[0]"))
        return f"{self.path}:{line}" if line and self.path else None
