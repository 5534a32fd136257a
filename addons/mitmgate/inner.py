"""A call of the gateway's own, made for the sake of another one: a guard that asks, a prompt that is summarized.

It goes to a target of the policy by the same way as any call: retries, breakers and clocks hold, and it has a row of
its own (``door`` is ``gateway``) with its cost, in the name of whoever it is made for. No guard, limit or budget is
asked.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from mitmgate.answers import Head
from mitmgate.clock import Clock
from mitmgate.door_paths import Place, resolve
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, How, joined
from mitmgate.layer import Upload
from mitmgate.policy import Policy
from mitmgate.providers import Hosts

CHAT = "/chat/completions"
"""The one path that goes to whatever a target's provider calls it; others follow its ``base_url`` as they are."""

ANSWER_BYTES = 1 << 20
"""A longer answer is no answer to what is asked here."""


class Ask(Protocol):
    async def __call__(self, x: Exchange, target: str, path: str, body: bytes, why: str) -> tuple[int, bytes]:
        """Return status and body of *target*'s answer to *body*, JSON posted to *path*; status 0: there was none.

        *why* is for the row: ``guard injection``. Never raises but ``CancelledError``.
        """


class Inner:
    def __init__(
        self,
        policy: Policy,
        hosts: Hosts,
        clock: Clock,
        carry: Callable[[Exchange, "Collected"], Awaitable[None]],
    ) -> None:
        self.policy, self.hosts, self.clock = policy, hosts, clock
        self.carry = carry
        """Admits the call, has it answered and closes its books."""

    async def ask(self, x: Exchange, target: str, path: str, body: bytes, why: str) -> tuple[int, bytes]:
        """See ``Ask``."""
        inner = self._exchange(x, target, path, body, why)
        collected = Collected(inner)
        await self.carry(inner, collected)
        return collected.status, bytes(collected.body)

    def _exchange(self, x: Exchange, target: str, path: str, body: bytes, why: str) -> Exchange:
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        inner = Exchange(
            "POST",
            "https",
            "",
            443,
            path,
            fields,
            joined(fields),
            self.clock.now(),
            self.clock.wall(),
            "gateway",
            x.client_host,
            x.http_version,
            body=body,
        )
        inner.keep_row, inner.keep_payload, inner.rooms = x.keep_row, x.keep_payload, x.rooms
        inner.tenant, inner.user, inner.session = x.tenant, x.user, x.session
        inner.shows = x.shows
        inner.trace_id, inner.parent_span_id = x.trace_id, x.parent_span_id
        inner.route, inner.tier, inner.sla, inner.metadata = x.route, x.tier, x.sla, x.metadata
        inner.region, inner.colo, inner.auth = x.region, x.colo, x.auth
        inner.notes.append(f"made for {x.id}: {why}")
        if path == CHAT:
            self._route_to(inner, target)
        else:
            self._send_to(inner, target, path)
        return inner

    def _route_to(self, inner: Exchange, target: str) -> None:
        """Write it as for OpenAI itself; ``route`` then has it as the target takes it, deployment, version and all."""
        inner.provider = self.hosts.providers["openai"]
        inner.host, inner.path = "api.openai.com", f"/v1{CHAT}"
        inner.fields = [(b"host", b"api.openai.com"), *inner.fields]
        inner.headers["cf-aig-fallback"] = target
        inner.fields.append((b"cf-aig-fallback", target.encode()))

    def _send_to(self, inner: Exchange, target: str, path: str) -> None:
        place = resolve("POST", f"/target/{target}{path}", self.hosts, self.policy)
        if not isinstance(place, Place):
            raise ValueError(f"{target} is no target")  # the policy's reader has seen to that
        inner.scheme, inner.host, inner.port, inner.path = place.scheme, place.host, place.port, place.path
        inner.provider, inner.target = place.provider, target
        inner.fields = [(b"host", place.authority), *inner.fields]


class Collected:
    """A ``Sink`` that keeps a short answer in memory, and the books of the call as ``Client`` keeps them."""

    upload: Upload | None = None
    drain = False
    gone = False

    def __init__(self, x: Exchange) -> None:
        self.x = x
        self.status = 0
        """0 until an answer is whole."""
        self.body = bytearray()
        self.started = False

    async def head(self, head: Head) -> None:
        self.started = True
        self.x.status, self.x.answer_headers = head.status, head.headers

    async def data(self, piece: bytes, plain: bytes) -> None:
        if len(self.body) <= ANSWER_BYTES:
            self.body += plain

    async def end(self) -> None:
        self.x.how = "end"
        if len(self.body) <= ANSWER_BYTES:
            self.status = self.x.status or 0

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        await self.head(head)
        await self.data(body, plain)
        await self.end()

    async def refuse(self, refusal: Refusal, how: How) -> None:
        x = self.x
        self.started = True
        x.refusal, x.source, x.how, x.status = refusal, refusal.source, how, refusal.status

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        self.x.how = how
