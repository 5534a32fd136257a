"""The clients: raw connections through a proxy door, or straight to the provider.

Runs in a process of its own. A line on stdin is a task as JSON, ``[name, {arguments}]``; the answer is a line of JSON.
A *place* is ``{"door": port or null, "host": name, "port": port, "ca": file}``; without a door the provider is dialled.
"""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import wire

LANES = 20
"""Connections that work side by side."""


class Line:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader, self.writer, self.host = reader, writer, host

    @classmethod
    async def open(cls, door: int | None, host: str, port: int, ca: str) -> Self:
        if door is None:
            return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=_trust(ca), server_hostname=host), host)
        reader, writer = await asyncio.open_connection("127.0.0.1", door)
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        said = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in said.partition(b"\r\n")[0] + b" ":
            raise ConnectionError(f"no tunnel to {host}: {said!r}")
        await writer.start_tls(_trust(ca), server_hostname=host)
        return cls(reader, writer, host)

    async def ask(self, *, wait_ms: int = 0, kept: bool = False) -> bytes:
        """Make a plain call and read its answer, return its head; *kept*: one that the gateway's cache may answer."""
        self.writer.write(wire.request(self.host, wait_ms=wait_ms, kept=kept))
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200") or b"chatcmpl" not in body:
            raise ConnectionError(f"not the provider's answer: {head!r} {body!r}")
        return head

    async def hit(self) -> None:
        """Make a plain call that needs no provider."""
        head = await self.ask(kept=True)
        if b"cf-aig-cache-status: MISS" in head:
            raise ConnectionError("the cache does not have the answer that it was told to keep")

    async def stream(self, events: int) -> float:
        """Ask for a stream, read it to its end; return the seconds to its first event."""
        started = time.perf_counter()
        self.writer.write(wire.request(self.host, events))
        heard = await self.reader.readuntil(b"data: ")
        first_s = time.perf_counter() - started
        if events > 10 and first_s > 0.02 * (events - 1):
            raise ConnectionError("the first event came when the last one was sent: this proxy does not stream")
        while not heard.endswith(wire.END):
            more = await self.reader.read(65536)
            if not more:
                raise ConnectionError(f"the stream broke off after {heard!r}")
            heard = heard[-8:] + more
        return first_s

    def close(self) -> None:
        self.writer.close()


_contexts: dict[str, ssl.SSLContext] = {}


def _trust(ca: str) -> ssl.SSLContext:
    if ca not in _contexts:
        _contexts[ca] = ssl.create_default_context(cafile=ca)
    return _contexts[ca]


class Tasks:
    """What the bench may ask for; each returns what is printed."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    async def open(self, place: dict[str, Any]) -> None:
        """Open the connections that ``requests`` and ``events`` use, one call on each."""
        self.lines = [await Line.open(**place) for _ in range(LANES)]
        await asyncio.gather(*(line.ask() for line in self.lines))

    async def close(self) -> None:
        for line in self.lines:
            line.close()

    async def keep(self, place: dict[str, Any]) -> None:
        """Make the call whose answer ``hits`` and ``hit_times`` get out of the cache."""
        line = await Line.open(**place)
        await line.ask(kept=True)
        line.close()

    async def requests(self, count: int, wait_ms: int = 0) -> float:
        """Make *count* plain calls in all, each connection one after the other; return calls per second.

        *wait_ms*: the provider thinks so long about each.
        """
        return await self._rate(lambda line: line.ask(wait_ms=wait_ms), count)

    async def hits(self, count: int) -> float:
        """Make *count* calls that are cache hits; return hits per second."""
        return await self._rate(Line.hit, count)

    async def _rate(self, call: Callable[[Line], Awaitable[object]], count: int) -> float:
        async def lane(line: Line) -> None:
            for _ in range(count // LANES):
                await call(line)

        started = time.perf_counter()
        await asyncio.gather(*(lane(line) for line in self.lines))
        return count // LANES * LANES / (time.perf_counter() - started)

    async def events(self, count: int) -> None:
        """Read one stream of *count* events on each connection, begun at different moments of the pace."""

        async def lane(line: Line, number: int) -> None:
            await asyncio.sleep(number * 0.02 / LANES)
            await line.stream(count)

        await asyncio.gather(*(lane(line, number) for number, line in enumerate(self.lines)))

    async def connections(self, place: dict[str, Any], count: int) -> None:
        """Open *count* connections, one call on each."""

        async def lane() -> None:
            for _ in range(count // LANES):
                line = await Line.open(**place)
                await line.ask()
                line.close()

        await asyncio.gather(*(lane() for _ in range(LANES)))

    async def latency(self, places: dict[str, dict[str, Any]], count: int) -> dict[str, dict[str, list[float]]]:
        """Return milliseconds per place, of whole calls and to the first event of streams; places take turns."""
        lines = {name: await Line.open(**place) for name, place in places.items()}
        taken: dict[str, dict[str, list[float]]] = {name: {"call": [], "first_event": []} for name in places}
        for turn in range(-10, count):
            for name, line in lines.items():
                started = time.perf_counter()
                await line.ask()
                call_s = time.perf_counter() - started
                first_s = await line.stream(0)
                if turn >= 0:  # the rounds before are to warm up
                    taken[name]["call"].append(call_s * 1000)
                    taken[name]["first_event"].append(first_s * 1000)
        for line in lines.values():
            line.close()
        return taken

    async def hit_times(self, places: dict[str, dict[str, Any]], count: int) -> dict[str, list[float]]:
        """Return milliseconds per place of single hits, one after the other; places take turns."""
        lines = {name: await Line.open(**place) for name, place in places.items()}
        taken: dict[str, list[float]] = {name: [] for name in places}
        for turn in range(-10, count):
            for name, line in lines.items():
                started = time.perf_counter()
                await line.hit()
                if turn >= 0:
                    taken[name].append((time.perf_counter() - started) * 1000)
        for line in lines.values():
            line.close()
        return taken


async def obey() -> None:
    tasks = Tasks()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, arguments = json.loads(line)
        print(json.dumps(await getattr(tasks, name)(**arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(obey())
