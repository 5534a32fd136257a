"""A provider that costs next to nothing: canned bytes over TLS, streams paced by the event loop's clock.

Runs in a process of its own: ``provider.py CERTIFICATE``; prints its port.
"""

import asyncio
import ssl
import sys

import wire

GAP_S = 0.02
"""Between two events of a stream."""


class Conversation(asyncio.Protocol):
    """One connection: reads requests whole, answers each with what it asks for."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.heard = b""

    def data_received(self, data: bytes) -> None:
        self.heard += data
        while (head_end := self.heard.find(b"\r\n\r\n") + 4) > 3:
            head = self.heard[:head_end].lower()
            length = int(_value(head, b"content-length: ") or 0)
            if len(self.heard) < head_end + length:
                return
            body = self.heard[head_end : head_end + length]
            self.heard = self.heard[head_end + length :]
            self.reply(head, body)

    def reply(self, head: bytes, body: bytes) -> None:
        events = _value(head, wire.EVENTS_HEADER)
        if events is None:
            self.answer(int(_value(head, wire.WAIT_HEADER) or 0))
            return
        end = wire.LAST + (wire.USAGE if b"include_usage" in body else b"") + wire.DONE
        if events == b"0":
            self.transport.write(STREAM_HEAD + wire.FIRST + end)
            return
        self.transport.write(STREAM_HEAD + wire.FIRST)
        loop = asyncio.get_running_loop()
        self.go_on(loop, loop.time() + GAP_S, int(events) - 1, end)

    def answer(self, wait_ms: int) -> None:
        if wait_ms:
            asyncio.get_running_loop().call_later(wait_ms / 1000, self.transport.write, ANSWER)
        else:
            self.transport.write(ANSWER)

    def go_on(self, loop: asyncio.AbstractEventLoop, due: float, left: int, end: bytes) -> None:
        """Send the next event at *due*, and so on; the pace does not drift."""
        if self.transport.is_closing():
            return
        if left == 0:
            self.transport.write(end)
            return
        loop.call_at(due, self.send_event, loop, due, left, end)

    def send_event(self, loop: asyncio.AbstractEventLoop, due: float, left: int, end: bytes) -> None:
        self.transport.write(wire.MIDDLE)
        self.go_on(loop, due + GAP_S, left - 1, end)


def _value(head: bytes, name: bytes) -> bytes | None:
    """Return a header's value; *name* is in lower case and ends in ``: ``."""
    start = head.find(b"\r\n" + name)
    if start < 0:
        return None
    start += 2 + len(name)
    return head[start : head.index(b"\r\n", start)]


async def serve(certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(Conversation, "127.0.0.1", 0, ssl=context, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


ANSWER = wire.answer()
STREAM_HEAD = wire.stream_head()

if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
