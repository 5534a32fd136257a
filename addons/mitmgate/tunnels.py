"""What happens to connections before there is a request: intercepted, tunnelled, or refused.

Provider hosts and observed hosts are intercepted; every other host is tunnelled unseen, through the corporate proxy
where there is one. What mitmproxy itself dials (tunnels, observed hosts, WebSockets) obeys ``connect_to``, and never
leads to what may not be reached (``reach``), by whichever name.
"""

import asyncio
import base64
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from mitmproxy import connection, ctx, http, tls
from mitmproxy.addons import next_layer as builtin
from mitmproxy.net import server_spec
from mitmproxy.proxy import layer as mlayer
from mitmproxy.proxy import layers, mode_specs, server_hooks, tunnel
from mitmproxy.proxy.layers.http import _upstream_proxy

from mitmgate import layer, reach
from mitmgate.answers import REALM, plain_error
from mitmgate.door_keys import DoorKeys
from mitmgate.errors import Refusal
from mitmgate.exchange import joined
from mitmgate.metrics import Metrics
from mitmgate.policy import Policy

BASE_URL_HOST = "base-url.invalid"
"""Target of the reverse-mode listener behind the base-URL door; a name that is never dialled."""


class Tunnels:
    """mitmproxy's hooks of connections, below those of the door."""

    name = "mitmgate.tunnels"

    def __init__(
        self,
        policy: Policy,
        metrics: Metrics,
        keys: DoorKeys,
        knows: Callable[[str, int], bool],
        owns: layer.Owns,
    ) -> None:
        self.policy, self.metrics, self.keys, self.owns = policy, metrics, keys, owns
        self.knows = knows
        """Whether (host, port) is intercepted."""
        self.own_ports: set[int] = set()
        """Ports that the gateway itself listens on; known once it runs."""
        self.via = via_of(policy.upstream.proxy)

    def take(self, policy: Policy) -> None:
        """Go by *policy* from now on."""
        self.policy, self.via = policy, via_of(policy.upstream.proxy)

    def next_layer(self, nextlayer: mlayer.NextLayer) -> None:
        context = nextlayer.context
        if nextlayer.layer is None and context.server.address and not is_base_url(context.client):
            try:
                if not self._intercepts(nextlayer):
                    self.metrics.count("mitmgate_tunnels_total")
                    nextlayer.layer = self._tunnel(context)
                    return
            except builtin.NeedsMoreData:
                return
        ctx.master.addons.get("nextlayer").next_layer(nextlayer)
        if nextlayer.layer is not None:
            handler = ctx.master.addons.get("proxyserver").connections.get(context.client.id)
            layer.replace(nextlayer, self.owns, handler)

    def _intercepts(self, nextlayer: mlayer.NextLayer) -> bool:
        context = nextlayer.context
        host, port = (context.server.address or ("", 0))[:2]
        if self.knows(host, port):
            return True
        if not reach.is_ip(host):
            return False
        sni = context.client.sni
        if sni is None:
            hello = builtin.NextLayer._get_client_hello(context, nextlayer.data_client())
            sni = hello.sni if hello else None
        return bool(sni and self.knows(sni, port))

    def _tunnel(self, context: Any) -> mlayer.Layer:
        """Return a blind tunnel, through the corporate proxy where there is one."""
        if self.via is None:
            return layers.TCPLayer(context, ignore=True)
        context.server.via = self.via
        stack = tunnel.LayerStack()
        stack /= _upstream_proxy.HttpUpstreamProxy.make(context, True)
        stack /= layers.TCPLayer(context, ignore=True)
        return stack[0]

    def http_connect(self, flow: http.HTTPFlow) -> None:
        request = flow.request
        if message := self.refused(request.host, request.port):
            refusal: Refusal | None = Refusal(403, "permission", message)
        else:
            headers = joined(request.headers.fields)
            refusal = self.keys.at_connect(flow.client_conn.id, headers, request.host, request.port)
        if refusal:
            self.metrics.count("mitmgate_refused_tunnels_total")
            flow.response = answer_to_connect(refusal)

    def client_disconnected(self, client: connection.Client) -> None:
        self.keys.forget(client.id)

    def http_connect_upstream(self, flow: http.HTTPFlow) -> None:
        """Log in at the corporate proxy."""
        url = urlsplit(self.policy.upstream.proxy or "")
        if url.username:
            login = base64.b64encode(f"{url.username}:{url.password or ''}".encode()).decode()
            flow.request.headers["proxy-authorization"] = f"Basic {login}"

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Look at what mitmproxy itself is about to dial: tunnels, observed hosts, WebSockets."""
        if data.server.address is None:
            return
        host, port = data.server.address[:2]
        if host == BASE_URL_HOST:
            data.server.error = "the base-URL door takes plain http:// only, as /PROVIDER/PATH"
        elif (place := self.policy.upstream.connect_to.get(f"{host}:{port}")) and self.knows(host, port):
            data.server.address = place
        elif data.server.via is None and (
            message := self.refused(host, port) or await self._resolves_badly(host, port)
        ):
            self.metrics.count("mitmgate_refused_tunnels_total")
            data.server.error = message

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Give a redirected connection its name back, or mitmproxy would never use it again."""
        for name, place in self.policy.upstream.connect_to.items():
            if data.server.address and data.server.address[:2] == place and data.server.sni == name.rpartition(":")[0]:
                host, _, port = name.rpartition(":")
                vars(data.server)["address"] = (host, int(port))

    async def _resolves_badly(self, host: str, port: int) -> str | None:
        """Return why *host* may not be dialled: a name that leads to an address which may not."""
        if reach.is_ip(host):
            return None
        with suppress(OSError):  # mitmproxy will meet the same error, and say so
            for info in await asyncio.get_running_loop().getaddrinfo(host, port):
                if reach.is_closed(str(info[4][0])):
                    return f"mitmgate forwards nothing to {host}: it resolves to {info[4][0]}"
        return None

    def refused(self, host: str, port: int) -> str | None:
        """Return why nobody gets to *host*:*port*."""
        return reach.refused(host, port, self.own_ports)

    def tls_failed_client(self, data: tls.TlsData) -> None:
        """Some clients open two connections and drop one in mid-handshake: counted, no alarm."""
        self.metrics.count("mitmgate_tls_failures_total")


def answer_to_connect(refusal: Refusal) -> http.Response:
    """Return *refusal* as a proxy says it; after a 407 the client may try again on the same connection."""
    headers = {"content-type": "application/json"}
    if refusal.status == 407:
        headers["proxy-authenticate"] = REALM
    else:
        headers["connection"] = "close"
    return http.Response.make(refusal.status, plain_error(refusal.status, refusal.message), headers)


def is_base_url(client: connection.Client) -> bool:
    """True for connections to the base-URL door."""
    mode = client.proxy_mode
    return isinstance(mode, mode_specs.ReverseMode) and mode.address[0] == BASE_URL_HOST


def via_of(proxy: str | None) -> server_spec.ServerSpec | None:
    """Return the corporate proxy as mitmproxy names it."""
    if not proxy:
        return None
    url = urlsplit(proxy)
    scheme: Any = url.scheme
    return scheme, (url.hostname or "", url.port or (443 if scheme == "https" else 80))
