"""Where we lean on mitmproxy's inside: provider exchanges run below its HTTP layer, in tasks of ours.

Only ``shortcuts`` does so beside it.

Where mitmproxy would open a connection to a provider, ``GatewayLayer`` hands out a virtual one. What it is sent
becomes one non-blocking hook, ``gateway_request``; whoever serves that hook writes the answer into a ``Downstream``,
whose events run through mitmproxy's HTTP state machine as if they had come from a socket. So ``responseheaders``,
``response``, ``error``, mitmweb, intercept and kill work as for any flow. Flows that nobody owns go mitmproxy's own
way, untouched.

Promises: one answer per exchange; the client's pace is the provider's pace, in both directions; a client that leaves
cancels its task at once. Tried with real sockets on mitmproxy 12.2 and 12.3; ``check`` refuses to start on anything
else that has moved.
"""

import asyncio
import contextlib
import copy
import inspect
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import h2.events
from mitmproxy import flow as mflow
from mitmproxy import http, version
from mitmproxy.addons import clientplayback
from mitmproxy.connection import Server
from mitmproxy.net.http import http1
from mitmproxy.net.http.status_codes import RESPONSES
from mitmproxy.proxy import commands, events, layer, server
from mitmproxy.proxy import context as mcontext
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import _http1, _http2
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO

from mitmgate.answers import plain_error
from mitmgate.errors import StartError
from mitmgate.exchange import Fields
from mitmgate.shortcuts import RunNow, Straight, Stream, all_of, enter, joined, never, run_now_of

type Generator = layer.CommandGenerator[None]
type Owns = Callable[[http.HTTPFlow], bool]

WAITING_BYTES = 1 << 18
"""This much may wait in memory per direction and exchange before the sender is slowed down."""

HEARD_S = 10.0
"""A client that does not read gets this long to take what is left of an answer that is over."""


class Gone(Exception):
    """Nobody is left to hear this answer."""


# -- events and the hook


class Arrived(events.MessageInjected):  # type: ignore[type-arg]
    """Answer events for one layer; ``MessageInjected`` is the one kind that every outer layer passes inwards."""

    def __init__(self, flow: http.HTTPFlow, owner: "GatewayLayer", *batch: HttpEvent) -> None:
        self.flow, self.message, self.owner, self.batch = flow, None, owner, batch


@dataclass
class Consumed(HttpEvent):
    """*size* bytes of a streamed HTTP/2 upload have gone to the provider: its window may open again."""

    size: int


@dataclass
class GatewayRequestHook(commands.StartHook):
    """A request for a provider is complete (or its streamed body begins): perform it."""

    downstream: "Downstream"


GatewayRequestHook.blocking = False  # not in the class body: it would become a dataclass field


# -- the layer


class VirtualConnection(HttpConnection):
    """Stands where mitmproxy's HTTP client would; one for all streams of a client connection."""

    def __init__(self, context: mcontext.Context, connection: Server, owner: "GatewayLayer") -> None:
        super().__init__(context, connection)
        self.owner = owner
        self.downstreams: dict[int, Downstream] = {}

    def _handle_event(self, event: events.Event) -> Generator:
        downstream = self.downstreams.get(getattr(event, "stream_id", -1))
        if isinstance(event, RequestHeaders):
            downstream = Downstream(self.owner, self.owner.streams[event.stream_id].flow, event.stream_id)
            self.downstreams[event.stream_id] = downstream
            if event.request.stream and not event.end_stream:
                downstream.upload = Upload(downstream)
                yield GatewayRequestHook(downstream)
        elif downstream is None:
            return  # it is over
        elif isinstance(event, RequestProtocolError):
            downstream.client_left()
            downstream.forget_if_over()
        elif downstream.upload and isinstance(event, RequestData | RequestEndOfMessage):
            downstream.upload.put(getattr(event, "data", None))
            downstream.forget_if_over()
        elif isinstance(event, RequestEndOfMessage):
            yield GatewayRequestHook(downstream)


class GatewayLayer(mhttp.HttpLayer):
    """mitmproxy's HTTP layer, but for flows that *owns* says are ours."""

    def __init__(self, context: mcontext.Context, mode: mhttp.HTTPMode, owns: Owns, run_now: RunNow = never) -> None:
        super().__init__(context, mode)
        self.owns = owns
        self.run_now = run_now
        self.virtual: Server | None = None
        self.room = asyncio.Event()
        """Set whenever an HTTP/2 client may have opened a window."""
        if context.client.alpn == b"h2":  # set here, it is what super() starts with
            self.connections[context.client] = WindowedServer(context.fork(), self)

    def _handle_event(self, event: events.Event) -> Generator:
        if isinstance(event, Arrived) and event.owner is self:
            yield from joined(self._take(event))
            return
        yield from super()._handle_event(event)
        if isinstance(event, events.DataReceived):  # may have been a WINDOW_UPDATE
            self.room.set()

    def _take(self, event: Arrived) -> Generator:
        for one in event.batch:
            if isinstance(one, Consumed):
                yield from self.event_to_child(self.connections[self.context.client], one)
            elif stream := self.streams.get(one.stream_id):  # else its client has left
                yield from self.event_to_child(stream, one)

    def make_stream(self, stream_id: int) -> Generator:
        context = copy.copy(self.context)  # fork() does the same, and makes a Server only to throw it away
        context.layers = context.layers.copy()
        self.streams[stream_id] = Stream(context, stream_id, self.run_now)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def get_connection(self, event: mhttp.GetHttpConnection, *, reuse: bool = True) -> Generator:
        stream: Any = self.command_sources[event]
        if not self.owns(stream.flow):
            yield from super().get_connection(event, reuse=reuse)
            return
        if self.virtual is None:
            # Left CLOSED on purpose: super()'s look for a connection to reuse skips it, so an upgrade that follows on
            # the same client connection is not sent into the pool; and an open Server would refuse a new address.
            self.virtual = Server(address=event.address, tls=event.tls)
            self.connections[self.virtual] = VirtualConnection(self.context.fork(), self.virtual, self)
        del self.command_sources[event]
        yield from self.event_to_child(stream, mhttp.GetHttpConnectionCompleted(event, (self.virtual, None)))

    def forget(self, stream_id: int) -> None:
        """Drop an exchange that has been answered."""
        if self.virtual and isinstance(pool := self.connections[self.virtual], VirtualConnection):
            pool.downstreams.pop(stream_id, None)


class WindowedServer(_http2.Http2Server):
    """mitmproxy's HTTP/2 server, but a streamed upload is acknowledged as the provider takes it, not as it arrives."""

    def __init__(self, context: mcontext.Context, owner: GatewayLayer) -> None:
        super().__init__(context)
        self.owner = owner
        self.h2_conn.local_settings.initial_window_size = WAITING_BYTES
        self.h2_conn.local_settings.acknowledge()

    def _handle_event(self, event: events.Event) -> Generator:
        if not isinstance(event, Consumed):
            yield from super()._handle_event(event)
        elif not self.is_closed(event.stream_id):
            self.h2_conn.acknowledge_received_data(event.size, event.stream_id)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())

    def handle_h2_event(self, event: h2.events.Event) -> Any:
        stream = self.owner.streams.get(getattr(event, "stream_id", None) or -1)
        if isinstance(event, h2.events.DataReceived) and stream and stream.flow.request.stream:
            event.flow_controlled_length -= len(event.data)  # super() then acknowledges only the padding
        return (yield from super().handle_h2_event(event))


# -- one exchange, as its task sees it


class Upload:
    """A request body that is still arriving: iterate it to send it; its ``drain`` slows an HTTP/1 client down."""

    def __init__(self, downstream: "Downstream") -> None:
        self.downstream = downstream
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.waiting = 0
        self.sent = 0
        self.whole = False
        """All of it has arrived."""
        self.abandoned = False
        self.room = asyncio.Event()
        self.room.set()

    async def drain(self) -> None:
        await self.room.wait()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """mitmproxy closes every "writer" of a connection at its end."""

    async def wait_closed(self) -> None:
        """Nothing to wait for."""

    def put(self, data: bytes | None) -> None:
        self.whole = data is None
        if self.abandoned:
            if data:
                self._acknowledge(len(data))
            return
        self.queue.put_nowait(data)
        self.waiting += len(data or b"")
        if self.waiting > WAITING_BYTES:
            self.room.clear()

    def abandon(self) -> None:
        """Let the rest run off: a client stuck in its own write would never read the answer that is already here."""
        if self.abandoned:
            return
        self.abandoned = True
        self.room.set()
        if self.waiting:
            self._acknowledge(self.waiting)

    def _acknowledge(self, size: int) -> None:
        if self.downstream.is_http2 and not self.downstream.gone:
            self.downstream.soon(Consumed(self.downstream.stream_id, size))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (data := await self.queue.get()) is not None:
            self.waiting -= len(data)
            self.sent += len(data)
            if self.waiting < WAITING_BYTES // 2:
                self.room.set()
            yield data
            self._acknowledge(len(data))


class Downstream:
    """The client's side of one exchange: whatever is written here, the client gets.

    Every method may raise ``Gone``. ``started`` says whether any part of an answer is out: then nothing can be taken
    back.
    """

    def __init__(self, owner: GatewayLayer, flow: http.HTTPFlow, stream_id: int) -> None:
        self.owner, self.flow, self.stream_id = owner, flow, stream_id
        self.handler: ConnectionHandler | None = None
        self.task: asyncio.Task[None] | None = None
        self.upload: Upload | None = None
        self.gone = False
        self.drain = False
        """Keep the task when the client leaves: the provider bills the whole answer anyway."""
        self.started = False
        self.finished = False
        self.straight: Straight | None = None
        self._later: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> Any:
        return self.owner.context.client

    @property
    def is_http2(self) -> bool:
        return bool(self.client.alpn == b"h2")

    def begin(self, handler: ConnectionHandler) -> None:
        """Bind to the running task; *handler* is mitmproxy's of this client connection."""
        self.handler, self.task = handler, asyncio.current_task()
        if self.upload and self.owner.virtual and not self.is_http2:
            # mitmproxy waits for the drain of every transport before it reads on from the client.
            handler.transports[self.owner.virtual] = ConnectionIO(handler=self.task, writer=self.upload)  # type: ignore[arg-type]

    def finish(self) -> None:
        """The answer is over, whichever way."""
        if self.upload:
            self.upload.abandon()
            if self.handler and self.owner.virtual:
                self.handler.transports.pop(self.owner.virtual, None)
        self.finished = True
        self.forget_if_over()

    def forget_if_over(self) -> None:
        """Drop what is answered; but an upload that is still running off has to be acknowledged until its end."""
        if self.finished and (self.upload is None or self.upload.whole or self.gone):
            self.owner.forget(self.stream_id)

    async def head(self, status: int, fields: Fields, reason: bytes, *more: HttpEvent) -> None:
        """Send the head of an answer."""
        response = http.Response(b"HTTP/1.1", status, reason, http.Headers(fields), None, None, time.time(), None)
        response.stream = not more  # else mitmproxy would collect the body before it sends the head
        self.started = True
        await self._push(ResponseHeaders(self.stream_id, response, False), *more)
        if not more:
            self.straight = Straight(self, any(name.lower() == b"transfer-encoding" for name, _ in fields))

    async def whole(self, status: int, fields: Fields, reason: bytes, body: bytes) -> None:
        """Send a complete answer in one pass."""
        data = [ResponseData(self.stream_id, body)] if body else []
        await self.head(status, fields, reason, *data, ResponseEndOfMessage(self.stream_id))

    async def data(self, chunk: bytes) -> None:
        """Send a piece of the body; returns when the client keeps up."""
        io = self.handler and self.handler.transports.get(self.client)
        writer: Any = io and io.writer
        if not (writer and self.straight and not self.gone and not self.killed and self.straight.take(chunk, writer)):
            await self._push(ResponseData(self.stream_id, chunk))
        if writer and writer.transport.get_write_buffer_size():
            await writer.drain()  # not handler.drain_writers(): its lock is held while an upload waits for this answer
        if self.is_http2:
            await self._window(WAITING_BYTES)

    async def _window(self, most: int) -> None:
        """Return once at most *most* bytes wait for the client's window, or it has gone."""
        connection = self.owner.connections[self.client]
        h2_conn: Any = getattr(connection, "h2_conn", None)
        if h2_conn is None:
            return
        while not self.gone and _buffered(h2_conn, self.stream_id) > most:
            self.owner.room.clear()
            await self.owner.room.wait()

    async def end(self) -> None:
        await self._push(ResponseEndOfMessage(self.stream_id))

    async def cut(self, message: str) -> None:
        """Break an answer that has begun, as the provider broke it; the client gets all that came before."""
        if self.is_http2:  # a reset drops what waits for the window
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARD_S):
                    await self._window(0)
        await self._push(ResponseProtocolError(self.stream_id, message, ErrorCode.GENERIC_SERVER_ERROR))

    async def _push(self, *batch: HttpEvent) -> None:
        if self.killed and not self.gone:
            self.gone = True
            error = ResponseProtocolError(self.stream_id, mflow.Error.KILLED_MESSAGE, ErrorCode.KILL)
            await self._event(error)
        if self.gone or self.handler is None:
            raise Gone
        await self._event(*batch)

    async def _event(self, *batch: HttpEvent) -> None:
        if self.handler:
            await self.handler.server_event(Arrived(self.flow, self.owner, *batch))

    def soon(self, event: HttpEvent) -> None:
        """Send *event* from code that cannot wait."""
        task = asyncio.get_running_loop().create_task(self._event(event))
        if not task.done():
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    @property
    def killed(self) -> bool:
        """Somebody pressed kill in mitmweb."""
        return bool(self.flow.error and self.flow.error.msg == mflow.Error.KILLED_MESSAGE)

    async def kill(self) -> None:
        """Tell the client of a kill while the provider is silent, and stop asking the provider."""
        with contextlib.suppress(Gone):
            await self._push()
        if self.task:
            self.task.cancel("killed")

    def client_left(self) -> None:
        self.gone = True
        self.owner.room.set()
        if self.task and not (self.drain and self.started):
            self.task.cancel("client left")


def _buffered(h2_conn: Any, stream_id: int) -> int:
    return sum(len(chunk.data) for chunk in h2_conn.stream_buffers.get(stream_id, ()))


# -- putting it in place


def replace(nextlayer: layer.NextLayer, owns: Owns, handler: ConnectionHandler | None) -> None:
    """Put a ``GatewayLayer`` where mitmproxy chose its own HTTP layer (not in ``upstream:`` mode)."""
    chosen = nextlayer.layer
    if type(chosen) is not mhttp.HttpLayer or chosen.mode is mhttp.HTTPMode.upstream:
        return
    nextlayer.context.layers.remove(chosen)
    nextlayer.layer = GatewayLayer(nextlayer.context, chosen.mode, owns, run_now_of(handler))
    if handler:
        enter(handler, nextlayer.layer)


def handler_of(proxyserver: Any, downstream: Downstream) -> ConnectionHandler:
    """Return mitmproxy's handler of the client connection, or of the replay, that *downstream* belongs to."""
    client_id = downstream.client.id
    found: ConnectionHandler = proxyserver.connections.get(client_id) or _replays[client_id]
    return found


_replays: dict[str, ConnectionHandler] = {}


def install(owns: Owns) -> None:
    """Route mitmweb's replay through the pool, write mitmproxy's own error pages as JSON, and look headers up
    faster."""
    stock = getattr(
        clientplayback.ReplayHandler, "stock", clientplayback.ReplayHandler
    )  # of an earlier gateway, in tests

    class PooledReplay(stock):  # type: ignore[misc, valid-type]
        def __init__(self, flow: http.HTTPFlow, options: Any) -> None:
            super().__init__(flow, options)
            old: mhttp.HttpLayer = self.layer  # type: ignore[has-type]
            self.layer = GatewayLayer(old.context, old.mode, owns)
            self.layer.connections = old.connections
            _replays[self.client.id] = self

        async def replay(self) -> None:
            try:
                await super().replay()
            finally:
                _replays.pop(self.client.id, None)

    PooledReplay.stock = stock
    clientplayback.ReplayHandler = PooledReplay  # type: ignore[misc]
    http.Headers.get_all = all_of  # type: ignore[assignment, method-assign]
    _http1.make_error_response = _json_error_response
    _http2.format_error = plain_error  # type: ignore[attr-defined]


def _json_error_response(status_code: int, message: str = "") -> bytes:
    headers = http.Headers(content_type="application/json", connection="close", server="mitmgate")
    reason = RESPONSES.get(status_code, "Unknown").encode()
    body = plain_error(status_code, message)
    response = http.Response(b"HTTP/1.1", status_code, reason, headers, body, None, 0, None)
    response.headers["content-length"] = str(len(body))
    return bytes(http1.assemble_response(response))


def check() -> None:
    """Raise ``StartError`` where mitmproxy's inside is not the one this file was written for."""
    wanted: list[tuple[Any, str, tuple[str, ...]]] = [
        (mhttp.HttpLayer, "get_connection", ("self", "event", "reuse")),
        (mhttp.HttpLayer, "event_to_child", ("self", "child", "event")),
        (mhttp.HttpLayer, "_handle_event", ("self", "event")),
        (mhttp.HttpLayer, "make_stream", ("self", "stream_id")),
        (mhttp.HttpStream, "_handle_event", ("self", "event")),
        (mhttp.HttpStream, "check_body_size", ("self", "request")),
        (tls.TLSLayer, "send_data", ("self", "data")),
        (server.ConnectionHandler, "server_event", ("self", "event")),
        (_http2.Http2Server, "handle_h2_event", ("self", "event")),
        (clientplayback.ReplayHandler, "replay", ("self",)),
        (_http1, "make_error_response", ("status_code", "message")),
        (_http2, "format_error", ("status_code", "message")),
    ]
    for owner, name, parameters in wanted:
        found = getattr(owner, name, None)
        if found is None or tuple(inspect.signature(found).parameters) != parameters:
            raise StartError(
                f"mitmproxy {version.VERSION} has no {owner.__name__}.{name}({', '.join(parameters)}) any more;"
                " install mitmproxy>=12.3,<13"
            )


__all__ = [
    "Downstream",
    "GatewayLayer",
    "GatewayRequestHook",
    "Gone",
    "Upload",
    "check",
    "handler_of",
    "install",
    "replace",
]
