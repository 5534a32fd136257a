"""Scripts that tests of a failing provider are put together from: what it says, where it breaks off, in which turn."""

from support.provider import Heard, Script, Wire


def answers(body: bytes, status: str = "200 OK", *more: str) -> Script:
    """Return a script that gives a whole answer; *more* are header lines."""

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.answer(body, status, "application/json", *more)

    return script


def streams(*pieces: bytes) -> Script:
    """Return a script that gives a whole stream, one chunk a piece."""

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream(list(pieces))

    return script


def begins(*pieces: bytes, then: Script) -> Script:
    """Return a script that begins a stream with *pieces*, and goes on as *then* does."""

    async def script(heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in pieces:
            await wire.chunk(piece)
        await then(heard, wire)

    return script


def in_turn(*scripts: Script) -> Script:
    """Return a script that runs the first of *scripts* for the first request, and so on; the last of them for ever."""
    left = list(scripts)

    async def script(heard: Heard, wire: Wire) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(heard, wire)

    return script


async def is_silent(_heard: Heard, wire: Wire) -> None:
    await wire.silence()


async def resets(_heard: Heard, wire: Wire) -> None:
    wire.reset()


async def closes(_heard: Heard, wire: Wire) -> None:
    wire.cut()
