"""Short cuts through mitmproxy's layers: the same bytes, less walking.

Inside CONNECT and TLS every event passes nine nested generators, down and up again. Each cut is made only where nobody
could tell the difference; everywhere else mitmproxy's own way is gone:

- ``enter``: once a client speaks HTTP inside TLS, its events enter at that TLS layer. The layers of the CONNECT outside
  it have done their work; all they would do is hand everything on.
- ``Straight``: a piece of a stream that no callable looks at goes into the client's TLS at once, past all layers.
- ``Stream``: hooks whose listeners never wait run at once instead of in a task each, and the size of a body is looked
  at while it is collected, not at every step of its exchange.
- ``joined``: what is sent in one go is encrypted and written in one go.
- ``all_of``: thirteen times an exchange mitmproxy looks a header up, among a score of fields that it lowers one by one.

``scripts/bench`` weighs the gateway with them; ``enter`` and ``Straight`` save most: a third of an SSE event's CPU.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy import context as mcontext
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import modes, tls
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.tunnel import TunnelState

if TYPE_CHECKING:
    from mitmgate.layer import Downstream

type Generator[Reply] = layer.CommandGenerator[Reply]
type RunNow = Callable[[commands.StartHook, http.HTTPFlow], bool]
"""Run the listeners of a flow's hook here and now; False, and none has run, where one of them may have to wait."""

COLLECTED_BYTES = 64 << 20
"""Most of a body that is held in memory; what is larger and says so is never collected (``door``)."""


def enter(handler: ConnectionHandler, chosen: layer.Layer) -> None:
    """Let the events of *handler* enter at the TLS layer around *chosen*, the HTTP layer of this client."""
    if outer := client_tls(chosen):
        handler.layer = outer


def client_tls(chosen: layer.Layer) -> tls.ClientTLSLayer | None:
    """Return the TLS layer around *chosen* if it is the only one: of TLS inside TLS, both are needed."""
    around = [outer for outer in chosen.context.layers if isinstance(outer, tls.ClientTLSLayer)]
    return around[0] if around and around == chosen.context.layers[-2:-1] else None


def all_of(headers: http.Headers, name: str | bytes) -> list[str]:
    """Stands for ``http.Headers.get_all``, with the same answers in a fifth of the time: most names are not there."""
    wanted = (name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name).lower()
    length = len(wanted)
    return [
        value.decode("utf-8", "surrogateescape")
        for key, value in headers.fields
        if len(key) == length and key.lower() == wanted
    ]


class Straight:
    """The way past all layers, for the pieces of one HTTP/1 stream."""

    def __init__(self, down: "Downstream", chunked: bool) -> None:
        self.chunked = chunked
        self.stream = down.owner.streams.get(down.stream_id)
        self.tls = client_tls(down.owner)
        plain = isinstance(down.owner.context.layers[-2], modes.ReverseProxy)
        http1 = type(down.owner.connections.get(down.client)) is _http1.Http1Server
        self.leads_through = http1 and (plain or self.tls is not None) and _is_unseen(down)

    def take(self, chunk: bytes, writer: Any) -> bool:
        """Write *chunk* to the client; False where it has to go through the layers."""
        stream = self.stream
        if not self.leads_through or stream is None or stream._paused is not None:
            return False
        if stream.server_state != stream.state_stream_response_body or writer.is_closing():
            return False  # not yet: a hook is being awaited
        if self.chunked:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        if self.tls is None:
            writer.write(chunk)
            return True
        if self.tls.tunnel_state is not TunnelState.OPEN:
            return False
        for command in self.tls.send_data(chunk):
            writer.write(command.data)  # type: ignore[attr-defined]
        return True


def _is_unseen(down: "Downstream") -> bool:
    """True where no addon reads or keeps the stream."""
    response = down.flow.response
    return response is not None and response.stream is True and not down.owner.context.options.store_streamed_bodies


def never(_hook: commands.StartHook, _flow: http.HTTPFlow) -> bool:
    """Every hook is a task, as mitmproxy has it: where people may intercept, any listener may wait."""
    return False


def run_now_of(handler: ConnectionHandler | None) -> RunNow:
    """Return how the master of *handler* runs hooks at once; only our own does (``master.GatewayMaster``)."""
    found: RunNow = getattr(getattr(handler, "master", None), "run_now", never)
    return found


class Stream(mhttp.HttpStream):
    """mitmproxy's exchange, but hooks need no task, and the limit on bodies is ours and costs one comparison."""

    def __init__(self, context: mcontext.Context, stream_id: int, run_now: RunNow) -> None:
        super().__init__(context, stream_id)
        self.run_now = run_now

    def _handle_event(self, event: events.Event) -> Generator[None]:
        """Go through mitmproxy's steps, past the hooks that could be run at once: they need no pause, and have no
        reply."""
        steps = super()._handle_event(event)
        reply: Any = None
        while True:
            try:
                command = steps.send(reply)
            except StopIteration:
                return
            reply = None
            # A hook of a layer inside (a WebSocket) is that layer's to complete: it has put itself into ``blocking``.
            own = isinstance(command, commands.StartHook) and command.blocking is True
            if not (own and self.run_now(command, self.flow)):
                reply = yield command

    def check_body_size(self, request: bool) -> Generator[bool]:
        """mitmproxy's looks up four options and two headers, four times an exchange, copying each."""
        if len(self.request_body_buf if request else self.response_body_buf) <= COLLECTED_BYTES:
            return False
        return (yield from super().check_body_size(request))


def joined(sent: Generator[None]) -> Generator[None]:
    """Pass commands on, but make one of neighbours that send to the same connection."""
    held: commands.SendData | None = None
    for command in sent:
        if held and type(command) is commands.SendData and command.connection is held.connection:
            held.data += command.data
            continue
        if held:
            yield held
            held = None
        if type(command) is commands.SendData:
            held = command
        else:
            yield command
    if held:
        yield held
