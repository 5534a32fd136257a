"""The provider side: one shared pool of connections for all clients (aiohttp, HTTP/1.1).

Promises: bytes pass as they are (no decompression, no re-quoting, header names, order, case and duplicates kept,
nothing added); certificates are always checked, against certifi's roots plus the policy's ``ca``; ``connect_to``
changes where is dialled and nothing else. Failures come as ``Failed``, with the words of ``error_type``.
"""

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from mitmgate import reach
from mitmgate.errors import StartError
from mitmgate.exchange import Attempt, Fields
from mitmgate.policy import Policy

type Cause = Literal["connect", "timeout", "reset"]

KEPT_ALIVE_S = 50.0
"""An idle provider connection lives this long; OpenAI's and Anthropic's edges close theirs after 60 s or more."""
HEAD_BYTES = 64 * 1024
"""Longest header line of an answer that is accepted; some providers send content-security-policies of 10 kB."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_sending: ContextVar["Sending"] = ContextVar("sending")


class Failed(Exception):
    """No answer, or no whole one."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause, self.detail = cause, detail


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, ready to go."""

    method: str
    url: str
    """Absolute, exactly as the path was sent."""
    fields: Fields
    body: bytes | AsyncIterator[bytes] | None
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """What the connector and the request must know of the attempt that they work for."""

    out: Outgoing
    attempt: Attempt
    connect_s: float | None
    fresh: bool
    """On a new connection, whatever is kept."""


class Pool:
    """Create inside a running loop; ``close`` at the end."""

    def __init__(self, policy: Policy) -> None:
        upstream = policy.upstream
        self.made_for = self.needs(policy)
        self.proxy, self.proxy_fields = proxy_of(upstream.proxy)
        self.redirects = upstream.connect_to
        self._default_ca = upstream.ca
        self._contexts: dict[str | None, ssl.SSLContext] = {}
        for target in policy.targets.values():
            self._context(target.ca)  # a file that is no certificate is found at start
        connector = Connector(
            limit=0,
            limit_per_host=upstream.connections_per_host,
            resolver=Resolver(self.redirects),
            ssl=self._context(None),
            keepalive_timeout=KEPT_ALIVE_S,
            enable_cleanup_closed=False,
            ttl_dns_cache=30,
        )
        self.session = aiohttp.ClientSession(
            connector=connector,
            request_class=PlainRequest,
            timeout=_NO_TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEAD_BYTES,
            max_field_size=HEAD_BYTES,
        )
        self.session._retry_connection = False  # a dead kept connection is replayed once, by upstream, for every method

    @staticmethod
    def needs(policy: Policy) -> tuple[object, ...]:
        """Return what a pool for *policy* has to be made with; two that need the same may share one."""
        upstream = policy.upstream
        cas = frozenset(target.ca for target in policy.targets.values())
        return upstream.connections_per_host, upstream.proxy, upstream.ca, dict(upstream.connect_to), cas

    async def send(
        self, out: Outgoing, attempt: Attempt, connect_s: float | None, *, fresh: bool = False
    ) -> aiohttp.ClientResponse:
        """Return the answer once its head is here; note connection facts in *attempt*; raise ``Failed``."""
        attempt.reused_connection = True  # until a connection has to be made
        token = _sending.set(Sending(out, attempt, connect_s, fresh))
        url = URL(out.url, encoded=True)
        try:
            return await self.session.request(
                out.method,
                url,
                data=out.body,
                allow_redirects=False,
                ssl=self._context(out.ca) if out.ca else True,
                proxy=self.proxy if self.proxy and f"{url.host}:{url.port}" not in self.redirects else None,
                proxy_headers=self.proxy_fields,
            )
        except aiohttp.ClientError as error:
            raise _failed(error) from error
        except OSError as error:
            raise _failed(error) from error
        finally:
            _sending.reset(token)

    async def close(self) -> None:
        await self.session.close()

    def _context(self, ca: str | None) -> ssl.SSLContext:
        """Return the TLS settings for a target's own ``ca``; made once per file."""
        if ca not in self._contexts:
            context = ssl.create_default_context(cafile=certifi.where())
            for path in filter(None, (self._default_ca, ca)):
                try:
                    context.load_verify_locations(path)
                except (OSError, ssl.SSLError) as error:
                    raise StartError(f"{path} cannot be used as `ca`: {error}; it must be a PEM file") from error
            context.set_alpn_protocols(["http/1.1"])
            self._contexts[ca] = context
        return self._contexts[ca]


class Resolver(AbstractResolver):
    """The system's resolver, but ``connect_to`` is obeyed: another address and port, the same name for TLS."""

    def __init__(self, redirects: Mapping[str, tuple[str, int]]) -> None:
        self.redirects = redirects

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        place = self.redirects.get(f"{host}:{port}")
        dial_host, dial_port = place or (host, port)
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(dial_host, dial_port, type=socket.SOCK_STREAM, family=family)
        closed = [str(info[4][0]) for info in infos if reach.is_closed(str(info[4][0]))]
        if closed and place is None:
            raise OSError(errno.EACCES, f"{host} resolves to {closed[0]}, where mitmgate forwards nothing")
        return [
            ResolveResult(hostname=host, host=info[4][0], port=int(info[4][1]), family=info[0], proto=info[2], flags=0)
            for info in infos
            if isinstance(info[4][0], str)
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Connector(aiohttp.TCPConnector):
    """Times the making of a connection (DNS, TCP and TLS together) for the attempt that asked for it."""

    async def _get(self, key: Any, traces: Any) -> Any:
        """Return a kept connection, None where there is none."""
        return None if _sending.get().fresh else await super()._get(key, traces)

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        sending = _sending.get()
        attempt, limit_s = sending.attempt, sending.connect_s
        attempt.reused_connection = False
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                return await super()._create_connection(req, traces, timeout)
        except TimeoutError as error:
            raise ConnectTimeout(f"no connection to {req.url.host}:{req.url.port} within {limit_s:g} s") from error
        finally:
            attempt.connect_s = time.monotonic() - started


class ConnectTimeout(aiohttp.ClientError):
    """``timeout.connect`` has passed."""


class PlainRequest(aiohttp.ClientRequest):
    """A request whose head is exactly what it was given: aiohttp would put Host first and add fields of its own.

    The fields do not come the usual way: the session would merge those whose names differ in case only.
    """

    def update_headers(self, headers: Any) -> None:
        self.headers = CIMultiDict((_text(name), _text(value)) for name, value in _sending.get().out.fields)
        if "Host" not in self.headers:
            host = self.url.host_port_subcomponent
            self.headers = CIMultiDict([("Host", host or ""), *self.headers.items()])

    def update_auto_headers(self, skip_auto_headers: Any) -> None:
        self._skip_auto_headers = CIMultiDict([("Content-Type", None)])

    def update_cookies(self, cookies: Any) -> None:
        """Cookies are the client's business."""


def write_roots(ca: str, folder: Path) -> Path:
    """Return a file in *folder* that holds certifi's roots plus *ca*; raise ``StartError``."""
    path = folder / "upstream-roots.pem"
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # workers write it at the same time
    try:
        draft.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + Path(ca).read_bytes())
        draft.replace(path)
    except OSError as error:
        raise StartError(f"{ca} cannot be used as `ca`: {error}") from error
    return path


def proxy_of(text: str | None) -> tuple[URL | None, dict[str, str]]:
    """Return a proxy's URL, and its login apart from it: aiohttp's errors quote the URL, and clients read them."""
    if text is None:
        return None, {}
    url = URL(text)
    if not url.user:
        return url, {}
    # aiohttp passes it on as Proxy-Authorization, in a CONNECT or in the request itself.
    return url.with_user(None), {"Authorization": aiohttp.encode_basic_auth(url.user, url.password or "")}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _failed(error: Exception) -> Failed:
    """Return what *error* means in the words of ``error_type``."""
    if isinstance(error, ConnectTimeout):
        return Failed("timeout", str(error))
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientSSLError | aiohttp.ClientHttpProxyError):
        return Failed("connect", str(error))
    return Failed("reset", str(error) or type(error).__name__)
