"""Raw clients: they go through the doors as real ones do, and show every byte that came back.

``Http1`` and ``Http2`` share one way to speak, so that a fact is told once for both: ``begin`` gives a ``Call`` that is
under way, ``post`` its whole answer. A ``Call`` can be waited for piece by piece, and left in the middle.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions

PATIENCE_S = 20.0
"""Longer than any fact needs; whoever waits in vain fails by then."""


@dataclass
class Answer:
    status: int
    fields: list[tuple[str, str]]
    complete: bool
    """False where the connection ended, or the stream was reset, before the answer did."""
    pieces: list[bytes] = field(default_factory=list)
    """Of the body: as the chunks or frames had them."""
    size: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def keep(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size += len(piece)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key.lower() == name.lower()), None)


class Call:
    """One request under way."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self.leave = leave
        """Go away without waiting for the rest: HTTP/1.1 drops its connection, HTTP/2 resets this one stream."""
        self.answer = Answer(0, [], False)
        self.over = False
        self.sending: asyncio.Future[None] | None = None
        """Of an upload: done once all of it is out."""
        self.heard = asyncio.Condition()

    async def until(self, holds: Callable[[Answer], bool]) -> Answer:
        """Return the answer once *holds* says so; fail where it ends before."""
        async with asyncio.timeout(PATIENCE_S), self.heard:
            await self.heard.wait_for(lambda: self.over or holds(self.answer))
        if not holds(self.answer):
            raise AssertionError(f"the answer ended before: {self.answer}")
        return self.answer

    async def head(self) -> Answer:
        return await self.until(lambda answer: answer.status != 0)

    async def body(self, size: int) -> bytes:
        """Return what came of the body, at least *size* bytes of it."""
        return (await self.until(lambda answer: answer.size >= size)).body

    async def end(self) -> Answer:
        """Return the answer, whole or as far as it came."""
        async with asyncio.timeout(PATIENCE_S), self.heard:
            await self.heard.wait_for(lambda: self.over)
        return self.answer

    async def tell(self, over: bool = False) -> None:
        self.over = self.over or over
        async with self.heard:
            self.heard.notify_all()


class Http1:
    """One HTTP/1.1 connection: through CONNECT and TLS, or straight to the base-URL door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str = "127.0.0.1") -> None:
        self.reader, self.writer, self.host = reader, writer, host
        self.reads = True
        """False: what comes stays in the socket."""
        self.task: asyncio.Task[None] | None = None

    @classmethod
    async def tunnel(cls, proxy_port: int, host: str, trust: ssl.SSLContext, port: int = 443) -> "Http1":
        reader, writer = await connect(proxy_port, host, trust, port)
        return cls(reader, writer, host)

    @classmethod
    async def plain(cls, port: int) -> "Http1":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, method: str, path: str, host: str, body: bytes = b"", *fields: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(first.split(" ")[1]), [(name, value.strip()) for name, _, value in pairs]

    async def receive(self, method: str = "GET") -> Answer:
        """Return the next answer, whole or as far as it came; *method* is what was asked (a HEAD has no body)."""
        call = Call(self.abort)
        await self._hear(call, method)
        return call.answer

    async def ask(self, method: str, path: str, host: str, body: bytes = b"", *fields: str) -> Answer:
        await self.send(method, path, host, body, *fields)
        async with asyncio.timeout(PATIENCE_S):
            return await self.receive(method)

    async def begin(self, path: str, body: bytes = b"", *fields: str, method: str = "POST") -> Call:
        await self.send(method, path, self.host, body, *fields)
        return self.listen(method)

    def upload(self, path: str, body: AsyncIterable[bytes], size: int, *fields: str) -> Call:
        """Begin to send *body* of *size* bytes piece by piece, as fast as it is taken."""
        head = [f"POST {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {size}", *fields, "", ""]
        self.writer.write("\r\n".join(head).encode())
        call = self.listen()
        call.sending = asyncio.ensure_future(self._send_all(body))
        return call

    async def _send_all(self, body: AsyncIterable[bytes]) -> None:
        with contextlib.suppress(ConnectionError):
            async for piece in body:
                self.writer.write(piece)
                await self.writer.drain()

    def listen(self, method: str = "POST") -> Call:
        """Return the call whose request was written to ``writer`` by hand."""
        call = Call(self.abort)
        if self.reads:
            self.task = asyncio.ensure_future(self._hear(call, method))
        return call

    async def post(self, path: str, body: bytes = b"", *fields: str, method: str = "POST") -> Answer:
        return await (await self.begin(path, body, *fields, method=method)).end()

    async def _hear(self, call: Call, method: str) -> None:
        answer = call.answer
        try:
            status, answer.fields = await self.head()
            while 100 <= status < 200 and status != 101:
                status, answer.fields = await self.head()
            answer.status = status
            await call.tell()
            await self._body(call, method)
            answer.complete = True
        except asyncio.IncompleteReadError as error:
            if answer.status:
                answer.keep(error.partial)
        except (OSError, ValueError):
            pass
        finally:
            await call.tell(over=True)

    async def _body(self, call: Call, method: str) -> None:
        answer = call.answer
        if method == "HEAD" or answer.status in (101, 204, 304):
            return
        if (answer.header("transfer-encoding") or "").lower() == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                await self._piece(call, size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        elif (length := answer.header("content-length")) is not None:
            await self._piece(call, int(length))
        else:
            while piece := await self.reader.read(65536):
                await self._keep(call, piece)

    async def _piece(self, call: Call, size: int) -> None:
        while size:
            piece = await self.reader.read(min(size, 65536))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            await self._keep(call, piece)

    async def _keep(self, call: Call, piece: bytes) -> None:
        call.answer.keep(piece)
        await call.tell()

    def abort(self) -> None:
        if self.task:
            self.task.cancel()
        self.writer.transport.abort()

    async def close(self) -> None:
        if self.task:
            self.task.cancel()
        self.writer.close()


class Http2:
    """One HTTP/2 connection through CONNECT and TLS; streams run side by side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader, self.writer, self.host = reader, writer, host
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.calls: dict[int, Call] = {}
        self.reads = True
        """False: the streams that begin now get one window of data, and no more."""
        self.shut: set[int] = set()
        self.room = asyncio.Event()
        """Set whenever the gateway may have opened a window."""
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(1 << 24)
        self._flush()
        self.task = asyncio.ensure_future(self._listen())

    @classmethod
    async def tunnel(cls, proxy_port: int, host: str, trust: ssl.SSLContext, port: int = 443) -> "Http2":
        reader, writer = await connect(proxy_port, host, trust, port)
        return cls(reader, writer, host)

    def _flush(self) -> None:
        self.writer.write(self.connection.data_to_send())

    def open(self, method: str, path: str, *fields: str, end: bool = False) -> int:
        """Send a request's head; return its stream id."""
        stream = self.connection.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", self.host)]
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in fields)]
        self.calls[stream] = Call(lambda: self.reset(stream))
        if not self.reads:
            self.shut.add(stream)
        self.connection.send_headers(stream, [*head, *pairs], end_stream=end)
        self._flush()
        return stream

    def start(self, method: str, path: str, body: bytes = b"", *fields: tuple[str, str]) -> int:
        """Send a request (*body* within one window); return its stream id."""
        stream = self.open(method, path, *(f"{name}: {value}" for name, value in fields), end=not body)
        while body:
            size = min(len(body), self.connection.max_outbound_frame_size)
            self.connection.send_data(stream, body[:size], end_stream=size == len(body))
            body = body[size:]
        self._flush()
        return stream

    def reset(self, stream: int) -> None:
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.connection.reset_stream(stream, 8)
            self._flush()

    async def answer(self, stream: int) -> Answer:
        return await self.calls[stream].end()

    async def ask(self, method: str, path: str, body: bytes = b"", *fields: tuple[str, str]) -> Answer:
        return await self.answer(self.start(method, path, body, *fields))

    async def begin(self, path: str, body: bytes = b"", *fields: str, method: str = "POST") -> Call:
        if body:
            fields = (*fields, f"content-length: {len(body)}")
        stream = self.open(method, path, *fields, end=not body)
        if body:
            await self._send(stream, body, end=True)
        return self.calls[stream]

    async def post(self, path: str, body: bytes = b"", *fields: str, method: str = "POST") -> Answer:
        return await (await self.begin(path, body, *fields, method=method)).end()

    def upload(self, path: str, body: AsyncIterable[bytes], size: int, *fields: str) -> Call:
        """Begin to send *body* of *size* bytes piece by piece, as far as the windows let it."""
        stream = self.open("POST", path, f"content-length: {size}", *fields)
        call = self.calls[stream]
        call.sending = asyncio.ensure_future(self._send_all(stream, body))
        return call

    async def _send_all(self, stream: int, body: AsyncIterable[bytes]) -> None:
        async for piece in body:
            await self._send(stream, piece)
        await self._send(stream, b"", end=True)

    async def _send(self, stream: int, data: bytes, end: bool = False) -> None:
        """Send *data* within the windows; give up where the stream is over."""
        connection, call = self.connection, self.calls[stream]
        while not call.over:
            size = min(len(data), connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
            if size == 0 and data:
                self.room.clear()
                async with asyncio.timeout(PATIENCE_S):
                    await self.room.wait()
                continue
            connection.send_data(stream, data[:size], end_stream=end and size == len(data))
            data = data[size:]
            self._flush()
            await self.writer.drain()
            if not data:
                return

    def open_window(self, stream: int) -> None:
        """Let a stream that was ``shut`` go on."""
        self.shut.discard(stream)
        self.connection.increment_flow_control_window(self.calls[stream].answer.size, stream)
        self._flush()

    async def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self.reader.read(65536):
                for event in self.connection.receive_data(data):
                    await self._hear(event)
                self._flush()
                self.room.set()
        self.room.set()
        for call in self.calls.values():
            await call.tell(over=True)

    async def _hear(self, event: h2.events.Event) -> None:
        call = self.calls.get(getattr(event, "stream_id", None) or -1)
        if call is None:
            return
        answer = call.answer
        if isinstance(event, h2.events.ResponseReceived):
            answer.fields = [(str(name), str(value)) for name, value in event.headers or ()]
            answer.status = int(dict(answer.fields)[":status"])
            await call.tell()
        elif isinstance(event, h2.events.DataReceived):
            answer.keep(event.data or b"")
            self._acknowledge(event.stream_id or 0, event.flow_controlled_length or 0)
            await call.tell()
        elif isinstance(event, h2.events.StreamEnded):
            answer.complete = True
            await call.tell(over=True)
        elif isinstance(event, h2.events.StreamReset):
            self.room.set()
            await call.tell(over=True)

    def _acknowledge(self, stream: int, size: int) -> None:
        if stream in self.shut:
            self.connection.increment_flow_control_window(size)  # the connection's window is for all streams
            return
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.connection.acknowledge_received_data(size, stream)

    def abort(self) -> None:
        self.task.cancel()
        self.writer.transport.abort()

    async def close(self) -> None:
        self.task.cancel()
        self.writer.close()


type Client = Http1 | Http2


async def connect(
    proxy_port: int, host: str, trust: ssl.SSLContext, port: int = 443
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """CONNECT to *host* through the proxy door, then TLS; raise ``ConnectionError`` where the door says no."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy_port)
    writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        said = head + await reader.read()
        writer.close()
        raise ConnectionError(said.decode("latin-1"))
    await writer.start_tls(trust, server_hostname=host)
    return reader, writer
