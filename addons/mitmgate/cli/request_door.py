"""A request out of a file, as a door of the gateway takes it in. Pure.

A URL on this machine that is no provider's, or a path without a host, is the base-URL door's; any other one comes by
the proxy door.
"""

from urllib.parse import urlsplit

from mitmgate.cli.request_file import Asked
from mitmgate.clock import Clock
from mitmgate.door import STREAMED_BYTES
from mitmgate.door_paths import Entry, Local, Nowhere, resolve
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, joined
from mitmgate.policy import Policy
from mitmgate.reach import is_local
from mitmgate.rehearsal import Rehearsal

PORTS = {"http": 80, "https": 443}


def exchange_of(asked: Asked, policy: Policy, rooms: Rehearsal, clock: Clock) -> Exchange | str | Refusal:
    """Return what *asked* becomes; a sentence where it passes by, a refusal where there is no such path."""
    url = urlsplit(asked.url)
    scheme, path = url.scheme or "https", f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
    authority = url.netloc.rpartition("@")[2] or asked.header("host") or ""
    host, port = _divided(authority, scheme)
    provider = rooms.hosts.find(host, port) if host else None
    if provider:
        x = _exchange(asked, scheme, host, port, path, clock)
        x.provider = provider
        return x
    if not host or is_local(host):
        return _by_path(asked, path, policy, rooms, clock)
    if kind := rooms.state.observed.kind_of(host, port):
        return f"{host} is observed ({kind}): one span per call, and no rule is asked."
    return f"{host} is no provider's host: it is tunnelled, and no rule is asked."


def _by_path(asked: Asked, path: str, policy: Policy, rooms: Rehearsal, clock: Clock) -> Exchange | str | Refusal:
    place = resolve(asked.method, path, rooms.hosts, policy)
    if isinstance(place, Local):
        return f"/{place.page} is the gateway's own page."
    if isinstance(place, Nowhere):
        return Refusal(404, "not_found", place.message, should_retry=False)
    if isinstance(place, Entry):
        x = _exchange(asked, "https", "", 443, place.path, clock)
        x.entry = place.kind
    else:
        x = _exchange(asked, place.scheme, place.host, place.port, place.path, clock)
        x.provider, x.target = place.provider, place.target
    x.door = "base-url"
    return x


def _exchange(asked: Asked, scheme: str, host: str, port: int, path: str, clock: Clock) -> Exchange:
    fields = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in asked.headers]
    if asked.header("host") is None:
        fields.insert(0, (b"host", host.encode()))
    x = Exchange(asked.method, scheme, host, port, path, fields, joined(fields), clock.now(), clock.wall())
    x.body = asked.body
    x.streamed_upload = len(asked.body) > STREAMED_BYTES
    return x


def _divided(authority: str, scheme: str) -> tuple[str, int]:
    name, colon, digits = authority.rpartition(":")
    if colon and digits.isdigit():
        return name.strip("[]"), int(digits)
    return authority.strip("[]"), PORTS.get(scheme, 443)
