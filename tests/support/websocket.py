"""As much of RFC 6455 as a message each way needs; both ends of it."""

import asyncio
import base64
import hashlib

from support.client import PATIENCE_S, Http1
from support.provider import Heard, Wire

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = base64.b64encode(b"sixteen bytes ok").decode()
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
"""Fields of a client's request."""

TEXT, CLOSE = 1, 8
MASK = b"mask"


def frame(payload: bytes, opcode: int = TEXT, *, masked: bool) -> bytes:
    """Return one frame of up to 65535 bytes; a client's frames are masked."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
    first = bytes([length[0] | (0x80 if masked else 0)]) + length[1:]
    if masked:
        payload = MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([0x80 | opcode]) + first + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return (opcode, payload) of the next frame."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
    payload = await reader.readexactly(size)
    return first & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


async def say(client: Http1, payload: bytes, opcode: int = TEXT) -> tuple[int, bytes]:
    """Send a client's message; return (opcode, payload) of the answer."""
    client.writer.write(frame(payload, opcode, masked=True))
    async with asyncio.timeout(PATIENCE_S):
        return await read_frame(client.reader)


async def echo(heard: Heard, wire: Wire) -> None:
    """A provider's script: accept, then send every message back in capitals, until the close."""
    digest = hashlib.sha1(f"{heard.header('sec-websocket-key')}{GUID}".encode()).digest()
    accept = base64.b64encode(digest).decode()
    head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    await wire.send("\r\n".join([*head, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode())
    while True:
        opcode, payload = await read_frame(wire.reader)
        await wire.send(frame(payload.upper() if opcode == TEXT else payload, opcode, masked=False))
        if opcode == CLOSE:
            return
