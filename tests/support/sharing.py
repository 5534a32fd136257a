"""A provider that takes its time, and a look at who waits for its answer."""

import asyncio

from mitmgate.tape import Tape
from support.gateway import Gateway
from support.provider import Heard, Wire
from support.speech import USAGE

PRICE = 9 * 2_500 + 3 * 10_000
"""Nano-dollars of ``STREAM`` with ``USAGE``, and of ``ANSWER``."""


class Slow:
    """A provider that says a stream in parts, each when it may; before the first there is not even a head."""

    def __init__(self, *parts: list[bytes]) -> None:
        self.parts = parts
        self.gates = [asyncio.Event() for _ in parts]
        self.gates[0].set()

    @classmethod
    def silent(cls, *parts: list[bytes]) -> "Slow":
        """Return one that says nothing at first."""
        slow = cls(*parts)
        slow.gates[0].clear()
        return slow

    @property
    def whole(self) -> bytes:
        """What a client gets in the end: what the gateway alone asked for is no part of it."""
        return b"".join(piece for part in self.parts for piece in part if piece is not USAGE)

    def go_on(self) -> None:
        """Let it say the next part."""
        next(gate for gate in self.gates if not gate.is_set()).set()

    async def script(self, _heard: Heard, wire: Wire) -> None:
        for n, part in enumerate(self.parts):
            await self.gates[n].wait()
            if n == 0:
                await wire.stream_head()
            for piece in part:
                await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")


def tape_of(gateway: Gateway) -> Tape:
    """Return the only answer that is on its way to more than one."""
    [under_way] = gateway.chain.cache.tapes.values()
    return under_way


async def heard_by(gateway: Gateway, count: int) -> None:
    """Return once *count* clients wait for one answer."""
    await gateway.until(lambda: sum(len(one.listeners) for one in gateway.chain.cache.tapes.values()) == count)
