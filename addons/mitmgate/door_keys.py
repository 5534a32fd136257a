"""What the doors ask of a key where no room does: at CONNECT, of what mitmproxy itself carries, of the door's pages.

A CONNECT to a host that would be tunnelled, or is observed, needs ``Proxy-Authorization``; one to a provider's host may
do without, since the key may come inside. What a connection has shown at its CONNECT is remembered until it closes, as
a digest that is proved again with each request: a key that is revoked opens nothing more on it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from mitmgate import identity, reach
from mitmgate.auth import HEADER, PROXY_HEADER, Auth, bearer, taken_out
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, joined

if TYPE_CHECKING:
    from mitmgate.chain import Rooms

SUBPROTOCOLS = "sec-websocket-protocol"
"""In a browser a WebSocket has no other place for a key."""


class DoorKeys:
    def __init__(self, rooms: Callable[[], "Rooms"]) -> None:
        self.rooms = rooms
        """Those of the policy that holds now."""
        self.shown: dict[str, bytes] = {}
        """Client connection -> digest of the key that its CONNECT came with."""

    @property
    def asked(self) -> Auth | None:
        """The room that knows keys; None where the policy asks for none."""
        rooms = self.rooms()
        return rooms.auth if rooms.policy.auth else None

    def at_connect(self, client_id: str, headers: dict[str, str], host: str, port: int) -> Refusal | None:
        """Return why there is no CONNECT to *host*:*port*; remember the key where there is one."""
        auth, shown = self.asked, self.rooms().auth.shown_in(headers) if _shows(headers) else None
        if shown is None:
            is_tunnelled = self.rooms().hosts.find(host, port) is None
            return _needed(auth, f"CONNECT to {host}") if auth and is_tunnelled else None
        if auth and (refusal := _refusal(auth, shown)):
            return refusal
        self.shown[client_id] = shown  # also where nobody asks for it yet: the policy may be edited
        return None

    def forget(self, client_id: str) -> None:
        self.shown.pop(client_id, None)

    def passing(self, client_id: str, fields: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
        """Return why mitmproxy may not carry a request by itself."""
        auth = self.asked
        if auth is None:
            return None
        shown = auth.shown_in(joined(fields)) or self.shown.get(client_id)
        return _refusal(auth, shown) if shown else _needed(auth, "a request to a host that is no provider's")

    def upgrade(self, x: Exchange) -> Refusal | None:
        """Return why mitmproxy may not carry the WebSocket *x*, which has shown its key."""
        proof, auth = x.proof, self.asked
        if auth is None or proof is None:
            return None
        if proof.models:
            return auth.forbid(proof, "the models of a WebSocket stand where no rule reads them")
        took_out = x.path != x.flow.request.path or bool(taken_out(x))
        ours = any(auth.is_ours(part.strip().rpartition(".")[2]) for part in x.headers.get(SUBPROTOCOLS, "").split(","))
        if ours or (took_out and identity.credential_of(x.headers, x.path) is None):
            return auth.wrong(
                "a WebSocket goes to its provider as it came, so the provider's own key has to come, too; the gateway's"
                f" belongs into {HEADER} or Proxy-Authorization (or let the policy say upstream.websocket: refuse)"
            )
        return None

    def page(self, client_host: str, headers: dict[str, str]) -> Refusal | None:
        """Return why *client_host* may not see what the gateway counts: this machine always may."""
        auth = self.asked
        if auth is None or reach.is_local(client_host):
            return None
        shown = auth.shown_in(headers)
        if shown is None and (value := headers.get("authorization")):
            shown = auth.digest_of(bearer(value))
        found = auth.prove(shown) if shown else auth.wrong(f"this page needs a key of the gateway's, as {HEADER}")
        return found if isinstance(found, Refusal) else None


def _shows(headers: dict[str, str]) -> bool:
    return PROXY_HEADER in headers or HEADER in headers


def _refusal(auth: Auth, shown: bytes) -> Refusal | None:
    """Return the answer of a proxy to the key that *shown* is the digest of; None where it is good."""
    found = auth.prove(shown)
    if isinstance(found, Refusal):
        return replace(found, status=407, param=PROXY_HEADER) if found.status == 401 else found
    auth.keys.used(found.digest)
    return None


def _needed(auth: Auth, what: str) -> Refusal:
    needed = auth.wrong(
        f"{what} needs a key of this gateway's as Proxy-Authorization: HTTPS_PROXY=http://user:KEY@HOST:PORT"
    )
    return replace(needed, status=407, param=PROXY_HEADER)
