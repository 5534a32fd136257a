"""A provider that speaks real TLS and real bytes, and misbehaves on request.

``Provider.on(path, script)`` says what happens at a path. A script is an async function of what was heard and of the
``Wire`` to answer on; it decides every byte, and when to fall silent, cut or reset.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trustme

HOSTS = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "example-resource.openai.azure.com",
    "llm.corp.example",
    "search.corp.example",
    "api.groq.com",
    "other.example",
    "us-central1-aiplatform.googleapis.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
    "localhost",
    "127.0.0.1",
    "*.openai.azure.com",
)

type Script = Callable[["Heard", "Wire"], Awaitable[None]]


@dataclass
class Heard:
    """One request as it arrived."""

    method: str
    path: str
    fields: list[tuple[bytes, bytes]]
    body: bytes
    connection: int
    """Which connection it came on, from 0."""
    sni: str | None = None

    def header(self, name: str) -> str | None:
        for key, value in self.fields:
            if key.lower() == name.lower().encode():
                return value.decode("latin-1")
        return None


class Ears(asyncio.StreamReader):
    """A reader that says at once when the other side has gone, whatever is still unread."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


class Wire:
    """The way back to whoever asked."""

    def __init__(self, writer: asyncio.StreamWriter, reader: Ears) -> None:
        self.writer, self.reader = writer, reader

    async def silence(self) -> None:
        """Say nothing until the other side goes."""
        await self.reader.gone.wait()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> None:
        """Send a whole answer with a length."""
        head = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more, "", ""]
        await self.send("\r\n".join(head).encode() + body)

    async def stream(self, pieces: list[bytes], kind: str = "text/event-stream", *more: str) -> None:
        """Send pieces as one chunk each, and the end."""
        await self.stream_head(kind, *more)
        for piece in pieces:
            await self.chunk(piece)
        await self.send(b"0\r\n\r\n")

    async def stream_head(self, kind: str = "text/event-stream", *more: str) -> None:
        head = ["HTTP/1.1 200 OK", f"content-type: {kind}", "transfer-encoding: chunked", *more, "", ""]
        await self.send("\r\n".join(head).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def cut(self) -> None:
        """Close in the middle of whatever was said."""
        self.writer.close()

    def reset(self) -> None:
        """Drop the connection as a crashed server does."""
        self.writer.transport.abort()


@dataclass
class Provider:
    authority: trustme.CA
    scripts: dict[str, Script] = field(default_factory=dict)
    raw: set[str] = field(default_factory=set)
    """Paths whose script gets the body unread and takes it from ``Wire.reader`` at its own pace."""
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection was closed from the other side while a script ran."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request has arrived."""
    port: int = 0
    faults: list[Exception] = field(default_factory=list)
    """What scripts raised; the fixture raises it again at the end of the test."""

    def on(self, path: str, script: Script, *, raw: bool = False) -> None:
        self.scripts[path] = script
        if raw:
            self.raw.add(path)

    def says(self, path: str, body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> None:
        """Answer *path* with a whole body."""

        async def script(_heard: Heard, wire: Wire) -> None:
            await wire.answer(body, status, kind, *more)

        self.on(path, script)

    def streams(self, path: str, pieces: list[bytes], kind: str = "text/event-stream", *more: str) -> None:
        """Answer *path* with a stream, one chunk a piece."""

        async def script(_heard: Heard, wire: Wire) -> None:
            await wire.stream(pieces, kind, *more)

        self.on(path, script)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(reader, Ears):
            await self._serve_to(reader, writer)

    async def _serve_to(self, reader: Ears, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        self.open_connections += 1
        tls: Any = writer.get_extra_info("ssl_object")
        try:
            while heard := await self._read(reader, number, getattr(tls, "server_name", None)):
                self.heard.append(heard)
                self.asked.set()
                script = self.scripts.get(heard.path) or self.scripts.get(heard.path.partition("?")[0])
                if script is None:
                    await Wire(writer, reader).answer(b'{"error":{"message":"no script"}}', "404 Not Found")
                    continue
                if not await self._run(script, heard, reader, writer):
                    return
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _run(self, script: Script, heard: Heard, reader: Ears, writer: asyncio.StreamWriter) -> bool:
        """Run *script*, but stop it when the other side goes; True where the connection may serve on."""
        task = asyncio.ensure_future(script(heard, Wire(writer, reader)))
        gone = asyncio.ensure_future(reader.gone.wait())
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if reader.gone.is_set():
            self.left.set()
        task.cancel()
        gone.cancel()
        outcome, _ = await asyncio.gather(task, gone, return_exceptions=True)
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError | EOFError):
            self.faults.append(outcome)
        return not (reader.gone.is_set() or writer.is_closing())

    async def _read(self, reader: Ears, number: int, sni: str | None) -> Heard | None:
        """Return the next request of a connection, None at its end."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None
        first, *lines = head[:-4].split(b"\r\n")
        method, path, _ = first.split(b" ", 2)
        fields = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        heard = Heard(method.decode(), path.decode(), fields, b"", number, sni)
        if heard.path not in self.raw:
            heard.body = await read_body(heard, reader)
        return heard


async def read_body(heard: Heard, reader: asyncio.StreamReader) -> bytes:
    """Return the body of the request whose head is *heard*."""
    if heard.header("transfer-encoding") != "chunked":
        return await reader.readexactly(int(heard.header("content-length") or 0))
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def provider(authority: trustme.CA, bound: socket.socket | None = None) -> AsyncIterator[Provider]:
    """Run a provider on a free port of this machine, or on *bound*, with a certificate for ``HOSTS``."""
    told = Provider(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    context.set_alpn_protocols(["http/1.1"])
    context.sni_callback = lambda ssl_object, name, _context: setattr(ssl_object, "server_name", name)
    limit = 1 << 20
    bound = bound or socket.create_server(("127.0.0.1", 0))
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio only does so for sockets that it makes
    server = await asyncio.get_running_loop().create_server(
        lambda: asyncio.StreamReaderProtocol(Ears(limit), told._serve), sock=bound, ssl=context
    )
    told.port = server.sockets[0].getsockname()[1]
    try:
        yield told
    finally:
        server.close()
    if told.faults:
        raise ExceptionGroup("scripts of the provider failed", told.faults)
