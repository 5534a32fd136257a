"""A corporate proxy: it takes CONNECT, wants a password, and writes down where everybody wanted to go."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Corporate:
    places: dict[str, int] = field(default_factory=dict)
    """``host:port`` -> port of this machine that it leads to."""
    login: str | None = None
    """``user:password``; None lets everybody through."""
    asked: list[str] = field(default_factory=list)
    """Every request line, in order."""
    port: int = 0

    @property
    def url(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"http://{login}127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        self.asked.append(first)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if self.login and fields.get("proxy-authorization") != f"Basic {_encoded(self.login)}":
            await _say(writer, b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            return
        port = self.places.get(first.split(" ")[1])
        if port is None:
            await _say(writer, b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await _say(writer, b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


def _encoded(login: str) -> str:
    return base64.b64encode(login.encode()).decode()


async def _say(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            await _say(writer, data)
    writer.close()


@contextlib.asynccontextmanager
async def corporate(login: str | None = None) -> AsyncIterator[Corporate]:
    """Run a corporate proxy on a free port of this machine."""
    proxy = Corporate(login=login)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
