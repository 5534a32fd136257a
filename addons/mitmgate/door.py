"""Where flows come in: two doors, and who goes through them.

Behind the proxy door ``tunnels`` has decided which connections are intercepted; what they carry arrives here. The
base-URL door turns ``/{provider}/{native path}`` into a request for the provider, and serves ``/healthz`` and
``/metrics`` itself. Whatever is ours becomes an ``Exchange`` here; everything else (WebSockets, observed hosts, plain
HTTP to others) goes mitmproxy's way.

Promise: nobody reaches the gateway's own ports, link-local addresses or a cloud's metadata service through it.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx, http

from mitmgate import controls, layer, reach
from mitmgate.auth import taken_out
from mitmgate.clock import Clock
from mitmgate.door_keys import DoorKeys
from mitmgate.door_paths import Entry, Local, Nowhere, resolve
from mitmgate.errors import Refusal, StartError
from mitmgate.exchange import Exchange, joined
from mitmgate.layer import Downstream
from mitmgate.policy import Policy
from mitmgate.pool import write_roots
from mitmgate.providers import Provider
from mitmgate.tunnels import Tunnels, is_base_url

if TYPE_CHECKING:
    from mitmgate.chain import Chain

log = logging.getLogger("mitmgate.door")

STREAMED_BYTES = 16 << 20
"""A request body above this goes to the provider while it arrives: no rule reads it."""
STREAMED_PLAIN_BYTES = 1 << 20
"""The same for calls that generate nothing (files, batches), which no rule reads anyway."""

DEFEATS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "connection_strategy",
        lambda value: value != "lazy",
        "connection_strategy=eager dials providers before any rule is asked; add --set connection_strategy=lazy",
    ),
    ("stream_large_bodies", bool, "stream_large_bodies stalls small events; remove it, mitmgate streams by itself"),
    (
        "store_streamed_bodies",
        bool,
        "store_streamed_bodies holds every streamed answer in memory; remove it, mitmgate keeps what rows need",
    ),
    (
        "ssl_insecure",
        bool,
        "ssl_insecure does not hold for provider connections: their certificates are always checked",
    ),
    (
        "mode",
        lambda modes: any(mode.startswith("upstream:") for mode in modes),
        "mode upstream: leaves provider calls to mitmproxy, without rules or rows; use upstream.proxy of the policy",
    ),
)
"""Options of mitmproxy that defeat the gateway: name, when, and what to say. Only ``-s`` can meet them."""

CONNECT_KEY = "mitmgate.connect-key"
"""Key of a flow's metadata, for its replay: the digest of what its connection had shown."""
LEFT = ("disconnected", "closed connection", "reset by client", "killed")
"""Parts of what mitmproxy says of a client that is gone."""
EVERYWHERE = ("", "0.0.0.0", "::")
"""What a socket that listens on every address of the machine is bound to: mitmproxy's default."""


class Door:
    """mitmproxy's hooks; every decision about an exchange is made in the rooms behind."""

    name = "mitmgate.door"

    def __init__(self, chain: "Chain", policy: Policy, clock: Clock) -> None:
        self.chain, self.policy, self.clock = chain, policy, clock
        self.hosts = chain.rooms.hosts
        self.metrics, self.observed = chain.state.metrics, chain.state.observed
        self.arrived: dict[str, Exchange] = {}
        """flow id -> exchange whose request is not complete yet."""
        self.pages: dict[str, str] = {}
        self.passing: set[str] = set()
        """Plain HTTP to hosts that are nobody's: handed on as it comes."""
        self.closing = False
        self.is_open_to_others = False
        """Other machines may use a door; known once it runs."""
        self.keys = DoorKeys(lambda: chain.rooms)
        self.tunnels = Tunnels(policy, self.metrics, self.keys, self._knows, self.owns)
        self.addons = [self.tunnels]
        """mitmproxy finds hooks here, too."""
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life

    def running(self) -> None:
        try:
            self._open()
        except StartError as error:  # mitmproxy would log it as an addon's, and go on without us
            log.error("door: %s", error)
            ctx.master.shutdown()

    def _open(self) -> None:
        layer.check()
        layer.install(self.owns)
        proxyserver = ctx.master.addons.get("proxyserver")
        self.tunnels.own_ports = {address[1] for address in proxyserver.listen_addrs()}
        if "web_port" in ctx.options:
            self.tunnels.own_ports.add(ctx.options.web_port)
        ctx.options.update(rawtcp=False)  # else bytes that hardly look like HTTP would reach a provider past every rule
        self._warn_of_options()
        self._trust(self.policy.upstream.ca)
        self.chain.open()
        view = ctx.master.addons.get("view")
        if view is not None:  # an empty view is false
            self._tasks.add(asyncio.get_running_loop().create_task(self.chain.join_web(view).watch()))

    def take(self, policy: Policy) -> None:
        """Go by *policy* from now on."""
        if policy.upstream.ca != self.policy.upstream.ca:
            self._trust(policy.upstream.ca)
        self.policy, self.hosts = policy, self.chain.rooms.hosts
        self.tunnels.take(policy)

    def _trust(self, ca: str | None) -> None:
        """Let what mitmproxy itself dials (WebSockets, observed hosts) be checked against the policy's roots, too."""
        if ca:
            roots = write_roots(ca, Path(ctx.options.confdir).expanduser())
            ctx.options.update(ssl_verify_upstream_trusted_ca=str(roots))

    def check(self, policy: Policy) -> None:
        """Raise ``StartError`` where *policy* cannot follow: it would open a door to everybody."""
        if self.is_open_to_others and self.policy.auth and policy.auth is None:
            raise StartError(
                "other machines may use this gateway's doors, so it cannot do without `auth`;"
                " put the section back, or start it anew on 127.0.0.1"
            )

    def _warn_of_options(self) -> None:
        proxyserver = ctx.master.addons.get("proxyserver")
        bound = [str(address[0]) for address in proxyserver.listen_addrs()]
        self.is_open_to_others = any(host in EVERYWHERE or not reach.is_local(host) for host in bound)
        if self.is_open_to_others and self.policy.auth is None:
            log.warning(
                "door: other machines may use this door, and no key is asked for; add --listen-host 127.0.0.1,"
                " or an `auth` section to the policy"
            )
        for name, defeats, warning in DEFEATS:
            if defeats(getattr(ctx.options, name)):
                log.warning("door: %s", warning)

    async def done(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.chain.close()

    # -- requests

    def _knows(self, host: str, port: int) -> bool:
        return self.hosts.find(host, port) is not None or self.observed.kind_of(host, port) is not None

    def owns(self, flow: http.HTTPFlow) -> bool:
        return flow.id in self.arrived or flow.id in self.pages

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if not flow.live:
            return  # loaded from a file into mitmweb: looked at, not asked again
        if self.chain.web and flow.is_replay:
            self.chain.web.replayed(flow)
        try:
            self._arrive(flow)
        except Exception:
            log.exception("door: %s: the request's head could not be read; it is refused", flow.id)
            x = self._exchange(flow, None)
            x.refuse(Refusal(500, "internal", "mitmgate could not read the request's head; the gateway's log says how"))

    def _arrive(self, flow: http.HTTPFlow) -> None:
        if is_base_url(flow.client_conn):
            self._arrive_by_path(flow)
            return
        request = flow.request
        host = request.host
        if reach.is_ip(host) and flow.client_conn.sni:
            host = flow.client_conn.sni
        if provider := self.hosts.find(host, request.port):
            self._arrive_at(flow, provider, host)
        elif kind := self.observed.kind_of(host, request.port):
            if self._may_pass(flow):
                self.observed.begin(flow.id, kind)
                flow.request.stream = True
                self._leave_to_mitmproxy(flow)
        elif message := self.tunnels.refused(host, request.port):
            self._exchange(flow, None).refuse(Refusal(403, "permission", message, should_retry=False))
        elif self._may_pass(flow):
            flow.request.stream = True
            self.passing.add(flow.id)
            self._leave_to_mitmproxy(flow)

    def _may_pass(self, flow: http.HTTPFlow) -> bool:
        """Return whether mitmproxy may carry *flow* by itself; where not, it is refused."""
        refusal = self.keys.passing(flow.client_conn.id, flow.request.headers.fields)
        if refusal:
            self._exchange(flow, None).refuse(refusal)
        return refusal is None

    def _arrive_by_path(self, flow: http.HTTPFlow) -> None:
        place = resolve(flow.request.method, flow.request.path, self.hosts, self.policy)
        if isinstance(place, Local):
            self._arrive_at_page(flow, place.page)
        elif isinstance(place, Nowhere):
            x = self._exchange(flow, None)
            if self.policy.auth:  # who has no key learns no names
                self.chain.head(x)
            x.refuse(Refusal(404, "not_found", place.message, should_retry=False))
        elif isinstance(place, Entry):
            flow.request.path = place.path
            x = self._exchange(flow, None, door="base-url")
            x.entry, x.host = place.kind, ""
            self.chain.head(x)
        else:
            request = flow.request
            request.scheme, request.host, request.port = place.scheme, place.host, place.port
            request.path = place.path
            self._arrive_at(flow, place.provider, place.host, "base-url", place.target)

    def _arrive_at_page(self, flow: http.HTTPFlow, page: str) -> None:
        peer = flow.client_conn.peername
        headers = joined(flow.request.headers.fields)
        refusal = None if page == "healthz" else self.keys.page(peer[0] if peer else "", headers)
        if refusal:
            self._exchange(flow, None).refuse(refusal)
        else:
            self.pages[flow.id] = page

    def _arrive_at(
        self, flow: http.HTTPFlow, provider: Provider, host: str, door: str = "proxy", target: str | None = None
    ) -> None:
        upgrade = flow.request.headers.get("upgrade", "").lower()
        if upgrade == "websocket":
            self.metrics.count("mitmgate_websockets_total", provider=provider.slug)
            if self.policy.upstream.websocket == "pass":
                self._upgrade(flow, provider, host, door)
                return
        x = self._exchange(flow, provider, host, door)
        x.target = target
        self.chain.head(x)
        if upgrade == "websocket":
            x.refuse(
                Refusal(
                    426, "bad_request", "this gateway takes no WebSocket here (upstream.websocket: refuse); use POST"
                )
            )
        if not x.refusal and _is_streamed(x) and not self.chain.rooms.guard.wants_body(x):
            x.streamed_upload = flow.request.stream = True

    def _upgrade(self, flow: http.HTTPFlow, provider: Provider, host: str, door: str) -> None:
        """Let mitmproxy carry a WebSocket, once it has shown its key where one is asked for."""
        if self.policy.auth:
            x = self._exchange(flow, provider, host, door)
            self.chain.head(x)
            if refusal := x.refusal or self.keys.upgrade(x):
                x.refuse(refusal)
                return
            del self.arrived[flow.id]
            gone = taken_out(x)
            flow.request.headers.fields = tuple(field for field in flow.request.headers.fields if field not in gone)
            flow.request.path = x.path
        self._leave_to_mitmproxy(flow)

    def _leave_to_mitmproxy(self, flow: http.HTTPFlow) -> None:
        """Let mitmproxy carry *flow* by itself, without our headers and by the corporate proxy."""
        flow.request.headers.fields = tuple(
            field
            for field in flow.request.headers.fields
            if not controls.is_ours(field[0]) and field[0].lower() != b"proxy-authorization"
        )
        if self.tunnels.via:
            flow.server_conn.via = self.tunnels.via

    def _exchange(
        self, flow: http.HTTPFlow, provider: Provider | None, host: str | None = None, door: str = "proxy"
    ) -> Exchange:
        request = flow.request
        x = Exchange(
            method=request.method,
            scheme=request.scheme,
            host=host or request.host,
            port=request.port,
            path=request.path,
            fields=list(request.headers.fields),
            headers=joined(request.headers.fields),
            started=self.clock.now(),
            started_wall=self.clock.wall(),
            door="replay" if flow.is_replay else door,  # type: ignore[arg-type]
            client_host=flow.client_conn.peername[0] if flow.client_conn.peername else "",
            http_version=request.http_version,
            connect_key=self._connect_key(flow),
            provider=provider,
            rooms=self.chain.rooms,
            flow=flow,
        )
        self.arrived[flow.id] = x
        return x

    def _connect_key(self, flow: http.HTTPFlow) -> bytes | None:
        """Return what the connection of *flow* has shown at its CONNECT; a replay has none, and goes by the first."""
        if flow.is_replay:
            return bytes.fromhex(flow.metadata.get(CONNECT_KEY, "")) or None
        shown = self.keys.shown.get(flow.client_conn.id)
        if shown and self.chain.web:
            flow.metadata[CONNECT_KEY] = shown.hex()
        return shown

    async def gateway_request(self, down: Downstream) -> None:
        """A request of ours is complete: carry it through the rooms."""
        flow = down.flow
        down.begin(layer.handler_of(ctx.master.addons.get("proxyserver"), down))
        if page := self.pages.pop(flow.id, None):
            await self._serve(page, down)
            return
        x = self.arrived.pop(flow.id)
        if not x.streamed_upload:
            x.body = flow.request.raw_content or b""
        if flow.request.headers.fields != tuple(x.fields) or flow.request.path != x.path:
            self._take_edits(x, flow)
        await self.chain.carry(x, down)

    def _take_edits(self, x: Exchange, flow: http.HTTPFlow) -> None:
        """Somebody edited the request in mitmweb, or another addon did: what they wrote is what counts."""
        x.path = flow.request.path
        x.fields = [field for field in flow.request.headers.fields if field[0].lower() != b"expect"]
        x.headers = joined(tuple(x.fields))
        self.chain.head(x)

    async def _serve(self, page: str, down: Downstream) -> None:
        if page == "metrics":
            body, kind = self.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8"
            status = 200
        else:
            status = 503 if self.closing else 200
            body, kind = json.dumps({"status": "closing" if self.closing else "ok"}).encode(), b"application/json"
        try:
            await down.whole(status, [(b"content-type", kind), (b"content-length", b"%d" % len(body))], b"", body)
        finally:
            down.finish()

    # -- flows that mitmproxy carries, and those that never got as far as a request

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if flow.response and (flow.id in self.observed.under_way or flow.id in self.passing):
            flow.response.stream = True

    def response(self, flow: http.HTTPFlow) -> None:
        self.arrived.pop(flow.id, None)
        self.passing.discard(flow.id)
        if flow.id in self.observed.under_way:
            status = flow.response.status_code if flow.response else None
            self.observed.end(flow.id, flow.request.pretty_host, joined(flow.request.headers.fields), status)

    def error(self, flow: http.HTTPFlow) -> None:
        self.pages.pop(flow.id, None)
        self.passing.discard(flow.id)
        if x := self.arrived.pop(flow.id, None):
            _never_came(x, flow.error.msg if flow.error else "")
            self.chain.settle(x)
        if flow.id in self.observed.under_way:
            self.observed.end(flow.id, flow.request.pretty_host, joined(flow.request.headers.fields), None)


def _never_came(x: Exchange, reason: str) -> None:
    """Note why no complete request came: its client has left, or mitmproxy found it malformed and has answered."""
    if any(words in reason for words in LEFT):
        x.how = "client_left"
        return
    x.how = "refused"
    x.status = 413 if "body_size_limit" in reason else 400
    x.refuse(Refusal(x.status, "too_large" if x.status == 413 else "bad_request", reason))


def _is_streamed(x: Exchange) -> bool:
    """True where the body is too large to wait for, or where nobody would read it."""
    length = x.headers.get("content-length", "")
    if length.isdigit():
        return int(length) > (STREAMED_BYTES if x.dialect else STREAMED_PLAIN_BYTES)
    chunked = "chunked" in x.headers.get("transfer-encoding", "") or (
        x.http_version == "HTTP/2.0" and x.method == "POST"
    )
    is_json = "json" in x.headers.get("content-type", "")
    return chunked and not (x.dialect and is_json)
