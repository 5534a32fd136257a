"""One answer on its way, written once and heard by any number of clients, each from its first byte.

Made by ``cache`` where an answer is to be kept, or shared by identical calls in flight. The exchange that asked first
leads: its attempts are the only ones, and it pays. Whoever asks the same meanwhile follows, also late. Promises: every
listener gets the same bytes at its own pace; one that leaves takes nothing from the others; when the last one leaves,
the provider is asked no further; an error goes to all and is not kept. No more than ``MOST_BYTES`` are held: a longer
answer takes no more followers, is not kept, and goes on at the pace of its slowest listener.
"""

import asyncio
from copy import deepcopy
from dataclasses import dataclass, replace

from mitmgate.answers import Head
from mitmgate.clock import Clock
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, How
from mitmgate.layer import Gone, Upload
from mitmgate.sink import Replay, Sink

MOST_BYTES = 16 << 20
"""Of one answer; also the largest that is kept."""

PILE_BYTES = 1 << 18
"""So much of what a listener has not heard yet goes out in one write."""

END_S = 1.0
"""So long an answer that has said all, and that nobody hears any more, may take to end."""


@dataclass(frozen=True, slots=True)
class Piece:
    at: float
    """Monotonic seconds of its arrival."""
    coded: bytes
    """As the provider sent it."""
    plain: bytes
    """The same without its content coding."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.coded) + (0 if self.coded is self.plain else len(self.plain))


@dataclass(frozen=True, slots=True)
class End:
    """How the tape ends: regularly, refused, or broken off."""

    how: How
    message: str = ""
    refusal: Refusal | None = None


@dataclass(eq=False)
class Listener:
    heard: int = 0
    """Index of the next piece."""


class Tape:
    """A ``Sink`` that is played to clients."""

    upload: Upload | None = None

    def __init__(self, leader: Exchange, clock: Clock, stale: Replay | None = None) -> None:
        self.leader = leader
        self.downgrade = leader.downgrade
        """Of whose answer it is made, where that is not what the leader asked for."""
        self.clock = clock
        self.stale = stale
        """An older answer that stands in for an error."""
        self.task: asyncio.Task[None] | None = None
        """Writes the tape."""
        self.drain = False
        self.top: Head | None = None
        self.pieces: list[Piece] = []
        self.dropped = 0
        """Pieces that all listeners have heard, and that are held no more."""
        self.size = 0
        self.content_at: int | None = None
        """Index of the piece with the first content."""
        self.finished_at: int | None = None
        """Index of the piece with the finish reason."""
        self.over: End | None = None
        self.instead = False
        """``stale`` is played."""
        self.listeners: set[Listener] = set()
        self.ending: asyncio.TimerHandle | None = None
        """Nobody listens any more, but all is said: until then it may end regularly, and be kept."""
        self._more = asyncio.Event()
        self._heard = asyncio.Event()

    # -- written by upstream

    @property
    def started(self) -> bool:
        return self.top is not None or self.over is not None

    @property
    def gone(self) -> bool:
        return not self.listeners and self.ending is None and not self.draining

    @property
    def draining(self) -> bool:
        """It is written to its end whoever listens: what is paid may as well be kept."""
        return self.drain and self.top is not None

    @property
    def joinable(self) -> bool:
        """A new listener would hear it from its first byte."""
        return self.over is None and self.dropped == 0 and self.size <= MOST_BYTES

    @property
    def is_whole(self) -> bool:
        """All of it is here, from the first byte to a regular end."""
        return self.over is not None and self.over.how == "end" and self.dropped == 0 and not self.instead

    async def head(self, head: Head) -> None:
        if self._is_error(head.status):
            self._play_stale()
            return
        self.top = head
        self._wake()

    async def data(self, piece: bytes, plain: bytes) -> None:
        if self.instead:
            return
        answer, index = self.leader.answer, self.dropped + len(self.pieces)
        if self.content_at is None and answer.first_content is not None:
            self.content_at = index
        if self.finished_at is None and (answer.reading.finished or answer.reading.ended):
            self.finished_at = index
        self.pieces.append(Piece(self.clock.now(), piece, plain))
        self.size += self.pieces[-1].size
        self._wake()
        if self.size > MOST_BYTES:
            await self._until_heard()
        if self.gone:
            raise Gone

    async def end(self) -> None:
        self._end(End("end"))

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        await self.head(head)
        if body:
            await self.data(body, plain)
        await self.end()

    async def refuse(self, refusal: Refusal, how: How) -> None:
        if self.stale and how in ("failed", "timeout"):
            self._play_stale()
        else:
            self._end(End(how, refusal.message, refusal))

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        self._end(End(how, message, last))

    def _end(self, end: End) -> None:
        if self.over is None:
            self.over = end
            if self.ending:
                self.ending.cancel()
            self._wake()

    def _is_error(self, status: int) -> bool:
        return self.stale is not None and (
            status == 429 or status >= 500 or (status == 200 and self.leader.reading.error_event)
        )

    def _play_stale(self) -> None:
        self.instead = True
        self._end(End("end"))

    def _wake(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()

    async def _until_heard(self) -> None:
        """Return once few enough bytes are held: what everybody has heard is let go."""
        while True:
            behind = min((listener.heard for listener in self.listeners), default=self.dropped + len(self.pieces))
            self.size -= sum(piece.size for piece in self.pieces[: behind - self.dropped])
            del self.pieces[: behind - self.dropped]
            self.dropped = behind
            if self.size <= MOST_BYTES:
                return
            self._heard.clear()
            await self._heard.wait()

    # -- heard by clients

    def join(self) -> Listener:
        """Return a new listener; it must ``leave``."""
        listener = Listener()
        self.listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Go; the last one turns the writing off, unless the provider bills the whole answer anyway.

        OpenAI's SDKs go as soon as they have read ``[DONE]``, a moment before the stream ends.
        """
        self.listeners.discard(listener)
        self._heard.set()
        if self.listeners or self.over is not None or self.draining:
            return
        if self.ending:
            return
        if self.leader.reading.ended:
            self.ending = asyncio.get_running_loop().call_later(END_S, self._give_up)
        else:
            self.abandon()

    def _give_up(self) -> None:
        self.ending = None
        if not self.listeners:
            self.abandon()

    def abandon(self) -> None:
        """End it before its end: nobody listens any more, or it will never be written."""
        message = "the call that this one shares its answer with was given up; try again"
        self._end(End("failed", message, Refusal(503, "overloaded", message, retry_after_s=1, should_retry=True)))
        if self.task:
            self.task.cancel("nobody listens any more")

    async def play(self, x: Exchange, client: Sink, listener: Listener) -> None:
        """Play it for *x* from the first byte on; raises ``Gone`` when its client leaves."""
        try:
            await self._play_to(x, client, listener)
        except (Gone, asyncio.CancelledError):
            if client.gone:
                self._left(x, listener)
            raise

    def _left(self, x: Exchange, listener: Listener) -> None:
        """Note how much *x* had got when its client left; the answer may go on without it."""
        x.left_early = self.finished_at is None or listener.heard <= self.finished_at
        if x is not self.leader:
            x.answer = deepcopy(x.answer)

    async def _play_to(self, x: Exchange, client: Sink, listener: Listener) -> None:
        while self.top is None and self.over is None:
            await self._more.wait()
        if self.instead and self.stale:
            await self.stale.play(x, client)
        elif self.top:
            await self._play(x, client, listener, self.top)
        elif self.over and self.over.refusal:
            await client.refuse(self.over.refusal, self.over.how)

    async def _play(self, x: Exchange, client: Sink, listener: Listener, top: Head) -> None:
        if x is not self.leader:
            self._credit(x, top.status)
        coded = not top.readable or _accepts(x) == _accepts(self.leader)
        head = top if coded else replace(top, recoded=True)
        if self._ends_well(coded) and self.size <= PILE_BYTES:
            x.first_content = x.first_content or self._content(len(self.pieces))
            await client.whole(head, *self._pile(listener, coded))
            return
        await client.head(head)
        while self.over is None or listener.heard < self.dropped + len(self.pieces):
            if listener.heard == self.dropped + len(self.pieces):
                await self._more.wait()
                continue
            pile = self._pile(listener, coded)
            if x.first_content is None:
                x.first_content = self._content(listener.heard)
            if pile[0]:  # half a word of a coding says nothing yet; sent as a chunk, it would be the end
                await client.data(*pile)
            self._heard.set()
        if self._ends_well(coded):
            await client.end()
        elif self.over.how == "end":
            await client.cut(f"the provider's content coding cannot be undone: {self.leader.answer.spoilt}", "cut")
        else:
            await client.cut(self.over.message, self.over.how, self.over.refusal)

    def _ends_well(self, coded: bool) -> bool:
        """True where the end is here and regular, also for who hears it without its coding."""
        return self.over is not None and self.over.how == "end" and (coded or self.leader.answer.spoilt is None)

    def _pile(self, listener: Listener, coded: bool) -> tuple[bytes, bytes]:
        """Return what *listener* has not heard yet: what piled up goes out in one write, but not megabytes."""
        start = listener.heard - self.dropped
        stop, size = start, 0
        while stop < len(self.pieces) and size < PILE_BYTES:
            size += len(self.pieces[stop].plain)
            stop += 1
        pieces = self.pieces[start:stop]
        listener.heard += len(pieces)
        plain = b"".join(piece.plain for piece in pieces)
        return (b"".join(piece.coded for piece in pieces) if coded else plain), plain

    def _content(self, heard: int) -> float | None:
        """Return the present where the first content is among the first *heard* pieces."""
        has_content = self.content_at is not None and self.content_at < heard
        return self.clock.now() if has_content else None

    def _credit(self, x: Exchange, status: int) -> None:
        """Note on a follower whose answer it gets, and that nothing was asked for it."""
        leader = self.leader
        x.answer, x.origin, x.step = leader.answer, leader.origin, leader.step
        if x.guarded:  # what its own guards let through is kept apart
            x.answer = replace(leader.answer, kept=bytearray(), kept_whole=True)
        if status == 200:
            x.source, x.cache_status, x.cache_age_s = "cache", "HIT", 0
            x.notes.append(f"cache: shares the answer of {leader.id}")


def _accepts(x: Exchange) -> str:
    return x.headers.get("accept-encoding", "")


@dataclass(eq=False)
class Follow:
    """A ``Replay``: the answer to somebody else's identical request, which is on its way."""

    tape: Tape
    listener: Listener

    async def play(self, x: Exchange, client: Sink) -> None:
        await self.tape.play(x, client, self.listener)

    def close(self) -> None:
        self.tape.leave(self.listener)
