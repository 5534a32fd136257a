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
    timeout: tuple[Timeout, ...] = (Timeout(),)
    targets: Mapping[str, Target] = field(default_factory=dict)
    upstream: Upstream = field(default_factory=Upstream)
    trace: Trace = field(default_factory=Trace)
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Dotted key of the file (``identify.require``, ``timeout[0]``) -> its line."""

    def where(self, key: str) -> str | None:
        """Return ``policy.yaml:12`` of *key*, as errors and refusals name it; None where the file does not have it."""
        line = self.lines.get(key)
        return f"{self.path}:{line}" if line and self.path else None
