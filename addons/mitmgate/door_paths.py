"""Where a path of the base-URL door leads. Pure.

``/{provider}/{native path}`` with Cloudflare's provider names and path forms, with or without Cloudflare's leading
``/v1/{account}/{gateway}``, and ``/target/{name}/…`` for the policy's own targets. Two paths name no provider, because
the body does: ``/compat/…`` and the universal endpoint, which is a POST to nothing but that leading part, or to ``/``.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from mitmgate import dialects
from mitmgate.policy import Policy
from mitmgate.policy.values import ProviderHosts
from mitmgate.providers import Hosts, Provider


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes."""

    scheme: str
    host: str
    port: int
    path: str
    """Query included."""
    provider: Provider
    target: str | None = None

    @property
    def authority(self) -> bytes:
        """What its ``host`` header says."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = (self.scheme, self.port) in (("https", 443), ("http", 80))
        return (name if is_usual else f"{name}:{self.port}").encode()


@dataclass(frozen=True, slots=True)
class Local:
    """One of the door's own pages: ``healthz``, ``metrics``."""

    page: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One of Cloudflare's entries: where the request goes stands in its body, which ``entry`` reads."""

    kind: Literal["compat", "universal"]
    path: str
    """The entry in its shortest form, query included: ``/compat/chat/completions``, ``/compat/embeddings``, ``/``."""


@dataclass(frozen=True, slots=True)
class Nowhere:
    """The path leads nowhere; the message says which ones do."""

    message: str


PAGES = ("healthz", "metrics")
COMPAT = ("chat/completions", "embeddings")
"""What ``/compat`` has, and every OpenAI-compatible endpoint below its base."""
AUTHORITY = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
"""A name or an address, and a port. Parts of it may come from the path, so from a stranger."""
WILDCARDS = frozenset("*?[")
SPEAKS_OPENAI = frozenset({"openai", "ollama"})
"""Families of a policy's ``providers`` whose hosts have an OpenAI-compatible endpoint at ``/v1``."""


def resolve(method: str, path: str, hosts: Hosts, policy: Policy) -> Place | Local | Entry | Nowhere:
    """Return where *path* (query included) leads."""
    if "#" in path:
        return Nowhere("a request has no fragment: encode # as %23")
    route, mark, query = path.partition("?")
    segments = route.lstrip("/").split("/")
    if segments[0] in PAGES and len(segments) == 1:
        return Local(segments[0])
    query = mark + query
    if method == "POST" and _is_bare(segments):
        return Entry("universal", f"/{query}")
    if segments[0] == "v1" and len(segments) > 3:
        segments = segments[3:]
    name, rest = segments[0], segments[1:]
    if name == "compat":
        return _compat(method, rest, query)
    if name == "target" and rest:
        return _target(rest[0], rest[1:], query, hosts, policy)
    provider = hosts.providers.get(name)
    if provider is None:
        return Nowhere(_unknown(name, hosts))
    place = _provider(provider, rest, query)
    if isinstance(place, Place) and hosts.find(place.host, place.port) is not provider:
        return Nowhere(f"{place.host[:120]!r} is no host of {name}")
    return place


def _is_bare(segments: list[str]) -> bool:
    """True for ``/`` and ``/v1/{account}/{gateway}``, but not for ``/v1/chat/completions``: who sends that has lost the
    provider's name, and should hear so.
    """
    if segments[-1] == "":
        segments = segments[:-1]
    if not segments:
        return True
    is_gateway = len(segments) == 3 and segments[0] == "v1" and all(segments)
    return is_gateway and dialects.find(None, "POST", f"/{'/'.join(segments)}") is None


def _compat(method: str, rest: list[str], query: str) -> Entry | Nowhere:
    asked = "/".join(rest).removeprefix("v1/").rstrip("/")
    if method == "POST" and asked in COMPAT:
        return Entry("compat", f"/compat/{asked}{query}")
    return Nowhere(f"/compat has {' and '.join(f'POST /compat/{name}' for name in COMPAT)}, nothing else")


def compat_place(provider: Provider, asked: str, query: str) -> Place | Nowhere:
    """Return where *asked*, one of ``COMPAT``, is to be had of *provider*, whose ``compat`` is not empty."""
    return _place(provider.compat, asked.split("/"), query, provider, None)


def _provider(provider: Provider, rest: list[str], query: str) -> Place | Nowhere:
    if provider.slug == "google-vertex-ai":
        base = vertex_base(rest)
    elif provider.base:
        base, takes = provider.base, provider.takes
        if provider.slug == "azure-openai" and rest[1:2] == ["openai"]:  # the new API: /openai/v1/…, no deployment
            base, takes = "https://{resource}.openai.azure.com", ("resource",)
        if len(rest) <= len(takes):
            wanted = "/".join(f"{{{take}}}" for take in takes)
            return Nowhere(f"/{provider.slug}/ needs {wanted or 'a path'} and then the provider's own path")
        base = base.format(**dict(zip(takes, rest, strict=False)))
        rest = rest[len(takes) :]
    else:
        single = [host for host in provider.hosts if not set(host) & WILDCARDS]
        if not single:
            return Nowhere(f"{provider.slug} has many hosts, so a path cannot name one; give the policy a target")
        base = f"https://{single[0]}"
    return _place(base, rest, query, provider, None)


def vertex_base(rest: list[str]) -> str:
    """Return Vertex's host for the region that the path names (``global`` has none of its own)."""
    region = rest[rest.index("locations") + 1] if "locations" in rest[:-1] else "global"
    return "https://aiplatform.googleapis.com" if region == "global" else f"https://{region}-aiplatform.googleapis.com"


def _target(name: str, rest: list[str], query: str, hosts: Hosts, policy: Policy) -> Place | Nowhere:
    target = policy.targets.get(name)
    if target is None:
        known = ", ".join(sorted(policy.targets)) or "none; the policy has no `targets`"
        return Nowhere(f"no target {name[:80]!r}; known: {known}")
    return _place(target.base_url, rest, query, hosts.providers[target.provider], name)


def _place(base: str, rest: list[str], query: str, provider: Provider, target: str | None) -> Place | Nowhere:
    try:
        url = urlsplit(base)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        return Nowhere(f"{base[:120]!r} is no address")
    if not AUTHORITY.fullmatch(url.netloc):
        return Nowhere(f"{base[:120]!r} is no address")
    prefix = url.path.rstrip("/")
    tail = "/".join(rest)
    version = prefix.rpartition("/")[2]
    if version == "v1" and tail.startswith("v1/"):  # Cloudflare takes /openai/chat/completions and /openai/v1/chat/…
        tail = tail[3:]
    return Place(url.scheme, url.hostname or "", port, f"{prefix}/{tail}{query}", provider, target)


def _unknown(name: str, hosts: Hosts) -> str:
    known = ", ".join(sorted(hosts.providers))
    return (
        f"no provider {name[:80]!r} at this door; the first part of the path is one of: {known}, target/NAME, or compat"
    )


def hosts_of(policy: Policy) -> Hosts:
    """Return all hosts that *policy* intercepts: the table's, those of ``providers``, and those of ``targets``.

    A target's host has its provider's name and dialect.
    """
    own = [Provider(row.name, row.hosts, row.dialect, compat=_compat_of(row)) for row in policy.providers]
    known = Hosts(own)
    for target in policy.targets.values():
        url = urlsplit(target.base_url)
        if url.hostname and known.find(url.hostname, url.port or 443) is None:
            host = f"{url.hostname}:{url.port}" if url.port else url.hostname
            provider = known.providers[target.provider]
            own = [row for row in own if row.slug != provider.slug]  # one row a provider, however many its targets are
            own.append(replace(provider, hosts=(*provider.hosts, host)))
            known = Hosts(own)
    return known


def _compat_of(row: ProviderHosts) -> str:
    """Return the base URL of *row*'s OpenAI-compatible endpoint; empty where no host of it is named in full."""
    single = [host for host in row.hosts if not set(host) & WILDCARDS]
    return f"https://{single[0]}/v1" if single and row.dialect in SPEAKS_OPENAI else ""
