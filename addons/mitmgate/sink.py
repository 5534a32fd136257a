"""Where an answer is written to: one client, or a tape that many clients read.

``upstream`` knows no clients, only a ``Sink``. An answer is a head, pieces and an end, or all of it at once; or a
refusal of our own; or it breaks off. Once ``started``, nothing can be taken back.
"""

import asyncio
from contextlib import suppress
from typing import Protocol

from mitmgate import dialects
from mitmgate.answers import Head, provider_fields, reason, refusal_fields
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Fields, How
from mitmgate.guard_frames import framing_named, last_words
from mitmgate.layer import HEARD_S, Downstream, Upload

EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Sink(Protocol):
    """Every method may raise ``Gone``: nobody is left to hear this answer."""

    upload: Upload | None
    """The request's body, where it is still arriving."""
    drain: bool
    """Read on when nobody listens any more: the provider bills the whole answer anyway."""

    @property
    def started(self) -> bool:
        """Some part of an answer is out."""

    @property
    def gone(self) -> bool:
        """Nobody listens any more."""

    async def head(self, head: Head) -> None: ...

    async def data(self, piece: bytes, plain: bytes) -> None:
        """Send a piece of the body; *plain* is what it says without its content coding."""

    async def end(self) -> None: ...

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        """Send a complete answer in one pass."""

    async def refuse(self, refusal: Refusal, how: How) -> None:
        """Send an answer of our own; *how* it came to it goes to ``Exchange.how``."""

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        """Break off; where the answer is a plain stream, *last* is said first, as an event in the API's own words.

        It is not said into the middle of another event, which nobody could read then, nor after the end, which it would
        make wrong.
        """


class Onward:
    """A ``Sink`` that hands the answer of *x* on to another one: who watches or changes it overrides what it must."""

    def __init__(self, x: Exchange, sink: Sink) -> None:
        self.x, self.sink = x, sink
        self.upload = sink.upload

    @property
    def started(self) -> bool:
        return self.sink.started

    @property
    def gone(self) -> bool:
        return self.sink.gone

    @property
    def drain(self) -> bool:
        return self.sink.drain

    @drain.setter
    def drain(self, drain: bool) -> None:
        self.sink.drain = drain

    async def head(self, head: Head) -> None:
        await self.sink.head(head)

    async def data(self, piece: bytes, plain: bytes) -> None:
        await self.sink.data(piece, plain)

    async def end(self) -> None:
        await self.sink.end()

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        await self.sink.whole(head, body, plain)

    async def refuse(self, refusal: Refusal, how: How) -> None:
        await self.sink.refuse(refusal, how)

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        await self.sink.cut(message, how, last)


FAILED = Refusal(500, "internal", "mitmgate failed; the gateway's log says how")


async def give_up(sink: Sink, refusal: Refusal) -> None:
    """Refuse what has not begun, break off what has."""
    if sink.started:
        await sink.cut(refusal.message, "cut")
    else:
        await sink.refuse(refusal, "failed")


class Replay(Protocol):
    """An answer that comes from nowhere but here."""

    async def play(self, x: Exchange, client: Sink) -> None:
        """Write it for *x*; raises ``Gone`` when the client leaves."""

    def close(self) -> None:
        """Let go of it, played or not."""


class Client:
    """One client, waiting for the answer to its own exchange: every head and every refusal is written for it."""

    def __init__(self, x: Exchange, down: Downstream) -> None:
        self.x, self.down = x, down
        self.upload = down.upload
        self.between_events = True
        """No event of a stream is half out, as far as the latest piece can tell."""

    @property
    def started(self) -> bool:
        return self.down.started

    @property
    def gone(self) -> bool:
        return self.down.gone

    @property
    def drain(self) -> bool:
        return self.down.drain

    @drain.setter
    def drain(self, drain: bool) -> None:
        self.down.drain = drain

    async def head(self, head: Head) -> None:
        await self.down.head(head.status, self._fields(head), head.reason)

    async def data(self, piece: bytes, plain: bytes) -> None:
        self.between_events = piece.endswith(EVENT_ENDS)
        await self.down.data(piece)

    async def end(self) -> None:
        self.x.how = "end"
        await self.down.end()

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        self.x.how = "end"
        await self.down.whole(head.status, self._fields(head), head.reason, body)

    async def refuse(self, refusal: Refusal, how: How) -> None:
        x = self.x
        voice = x.dialect or dialects.voice(x.provider)
        body = voice.error_body(refusal, x.id if x.dialect and x.keep_row else None)
        x.refusal, x.source, x.how = refusal, refusal.source, how
        x.status = refusal.status
        x.answer_headers = {"content-type": "application/json"}
        await self.down.whole(refusal.status, refusal_fields(x, refusal, len(body)), reason(refusal.status), body)

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        x = self.x
        x.how = how
        if last and how == "refused":
            x.refusal, x.source = last, last.source
        words = self._last_words(last) if last and self._can_hear(how) else None
        if words:
            self.between_events = False  # another clock may end this very wait, and it is said once
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARD_S):
                    await self.down.data(words)
                    await self.down.end()
                    return
        await self.down.cut(message)

    def _can_hear(self, how: How) -> bool:
        """True where an event of ours would be understood: between two others, in the open, and not after the last.

        Whoever refuses the rest of an answer has looked at it, and lets whole frames through and no end.
        """
        x = self.x
        if x.answer_headers.get("content-encoding"):
            return False
        return how == "refused" or (x.streaming and self.between_events and not x.reading.ended)

    def _last_words(self, last: Refusal) -> bytes | None:
        x = self.x
        if x.dialect is None:
            return None
        framing = framing_named(x.answer_headers.get("content-type", ""), x.dialect)
        return last_words(framing, x.dialect, last, x.id if x.keep_row else None)

    def _fields(self, head: Head) -> Fields:
        self.x.status = head.status
        self.x.answer_headers = head.headers
        return provider_fields(self.x, head)
