"""A provider that misbehaves by lot, at the seam where the gateway's pool would be.

``Wire`` has the pool's ``send``; what each call meets is drawn from the mood that its host is in just then. Bodies are
read through aiohttp's own ``StreamReader``, so what a cut or a close does to a read is what it does in earnest. Each
answer carries the number of its call, in its head and in its body: whatever a client hears can be traced to one call.
"""

import asyncio
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from aiohttp.base_protocol import BaseProtocol

from mitmgate.exchange import Attempt, Fields
from mitmgate.pool import Failed, Outgoing
from support.speech import DONE, ROLE, STOP, USAGE, chunk, sse
from support.virtual_time import VirtualLoop

MARK = b"@"
"""In the templates: where the number of the call goes. One byte, so no cut can part it."""
CALL = b"x-call"
"""The header that carries it."""
GZIP = (b"accept-encoding", b"gzip")
"""Whoever sends this gets its answers in it."""

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"call @"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}'
)
CONTENT = [chunk("call @"), chunk(", hel"), chunk("lo")]
LENGTH = chunk(finish="length")
PING = b": ping\n\n"
ERROR_EVENT = sse({"error": {"message": "call @ failed", "type": "server_error", "code": "server_error"}})

type Ending = Literal["end", "cut", "hang"]


@dataclass(slots=True)
class Script:
    """What one call meets. Times are seconds; infinity = never."""

    name: str = ""
    connect_s: float = 0.02
    head_s: float = 0.05
    """After the request is sent."""
    kept: bool = False
    """There is a kept connection; no time goes into making one."""
    fails: Literal["connect", "reset", None] = None
    """In place of a head."""
    status: int = 200
    fields: Fields = field(default_factory=list)
    pieces: Sequence[bytes] = ()
    gap_s: float = 0.0
    """Before each piece."""
    ending: Ending = "end"
    is_good: bool = False
    """It brings a whole answer that may be kept."""


# -- what can happen --------------------------------------------------------------------------------------------------


def good(rng: Random, stream: bool) -> Script:
    pieces = cut_anywhere(rng, [ROLE, *CONTENT, STOP, USAGE, DONE]) if stream else [ANSWER]
    return Script(
        connect_s=rng.choice((0.01, 0.2)),
        head_s=rng.choice((0.01, 0.1, 0.6)),
        kept=rng.random() < 0.5,
        pieces=pieces,
        gap_s=rng.choice((0.0, 0.0, 0.03, 0.3)),
        is_good=True,
    )


def trickling(rng: Random, stream: bool) -> Script:
    """Slow, with signs of life: each byte counts as one."""
    events = [PING, ROLE, PING, *CONTENT, PING, STOP, USAGE, DONE]
    pieces = cut_anywhere(rng, events) if stream else [ANSWER[:40], ANSWER[40:]]
    return Script(pieces=pieces, gap_s=rng.choice((0.2, 0.7)), is_good=True)


def thinking(rng: Random, stream: bool) -> Script:
    """A long time without content, and signs of life meanwhile."""
    pieces = [PING, PING, PING, PING, ROLE, *CONTENT, STOP, DONE] if stream else [ANSWER]
    return Script(pieces=pieces, gap_s=0.4, is_good=True)


def cut_short_by_length(rng: Random, stream: bool) -> Script:
    """Whole as a transport, but not to be kept."""
    body = ANSWER.replace(b'"stop"', b'"length"')
    return Script(pieces=[ROLE, *CONTENT, LENGTH, DONE] if stream else [body])


def without_end(rng: Random, stream: bool) -> Script:
    """The connection ends well, the answer does not."""
    return Script(pieces=[ROLE, *CONTENT] if stream else [ANSWER[:60]])


def refused(rng: Random, stream: bool) -> Script:
    return Script(fails="connect")


def unreachable(rng: Random, stream: bool) -> Script:
    return Script(connect_s=math.inf)


def reset(rng: Random, stream: bool) -> Script:
    return Script(fails="reset")


def dead_kept(rng: Random, stream: bool) -> Script:
    return Script(fails="reset", kept=True)


def busy(rng: Random, stream: bool) -> Script:
    return _error(429, "rate_limit_exceeded", [(b"retry-after-ms", b"%d" % rng.choice((50, 400, 1500, 90_000)))])


def busy_without_a_word(rng: Random, stream: bool) -> Script:
    return _error(429, "rate_limit_exceeded")


def out_of_quota(rng: Random, stream: bool) -> Script:
    return _error(429, "insufficient_quota")


def broken(rng: Random, stream: bool) -> Script:
    return _error(rng.choice((500, 502, 503, 529)), "server_error")


def disliked(rng: Random, stream: bool) -> Script:
    return _error(rng.choice((400, 401, 404)), "invalid_request_error")


def silent(rng: Random, stream: bool) -> Script:
    return Script(head_s=math.inf)


def stalled(rng: Random, stream: bool) -> Script:
    """Silence in the middle, before or after the first content."""
    pieces = cut_anywhere(rng, [ROLE, *CONTENT])[: rng.randint(0, 3)] if stream else [ANSWER[:60]]
    return Script(pieces=pieces, gap_s=0.05, ending="hang")


def cut_early(rng: Random, stream: bool) -> Script:
    return Script(pieces=[ROLE][: rng.randint(0, 1)] if stream else [ANSWER[:60]], ending="cut")


def cut_late(rng: Random, stream: bool) -> Script:
    pieces = cut_anywhere(rng, [ROLE, *CONTENT]) if stream else [ANSWER[:60]]
    return Script(pieces=pieces, gap_s=rng.choice((0.0, 0.1)), ending="cut")


def cut_behind_the_end(rng: Random, stream: bool) -> Script:
    """All is said, but the connection does not end well: nothing proves that this was all."""
    return Script(pieces=[ROLE, *CONTENT, STOP, DONE] if stream else [ANSWER], ending="cut")


def lingering(rng: Random, stream: bool) -> Script:
    """All is said, and the connection stays open."""
    return Script(pieces=[ROLE, *CONTENT, STOP, DONE] if stream else [ANSWER], ending="hang")


def error_first(rng: Random, stream: bool) -> Script:
    """A stream whose first event is an error, after which it may end or hang."""
    if not stream:
        return broken(rng, stream)
    return Script(pieces=[ERROR_EVENT], ending=rng.choice(("end", "hang", "cut")))


def error_late(rng: Random, stream: bool) -> Script:
    return Script(pieces=[ROLE, *CONTENT, ERROR_EVENT]) if stream else broken(rng, stream)


def _error(status: int, code: str, fields: Sequence[tuple[bytes, bytes]] = ()) -> Script:
    body = f'{{"error":{{"message":"call @ failed","type":"{code}","code":"{code}"}}}}'
    return Script(status=status, fields=list(fields), pieces=[body.encode()])


def unasked(rng: Random) -> Script:
    """The host takes no ``stream_options``; only a call that asks for usage meets this."""
    return replace(_error(400, "unknown parameter: stream_options"), name="unasked")


def cut_anywhere(rng: Random, events: list[bytes]) -> list[bytes]:
    """Return *events* as a network may bring them: whole, all at once, or cut without regard to their ends."""
    how = rng.randrange(3)
    if how == 0:
        return events
    whole = b"".join(events)
    if how == 1:
        return [whole]
    size = rng.randint(40, 400)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


type Fault = Callable[[Random, bool], Script]
"""What one call of a provider in some mood meets; takes chance, and whether a stream is asked for."""


@dataclass(frozen=True, slots=True)
class Mood:
    """How often each fault comes, against the others."""

    weights: Mapping[Fault, int]

    def draw(self, rng: Random) -> Fault:
        (fault,) = rng.choices(list(self.weights), list(self.weights.values()))
        return fault


WELL = Mood({good: 8, trickling: 1})
ILL = Mood(
    {
        good: 20,
        trickling: 3,
        thinking: 2,
        cut_short_by_length: 2,
        without_end: 2,
        refused: 2,
        unreachable: 1,
        reset: 2,
        dead_kept: 3,
        busy: 4,
        busy_without_a_word: 2,
        out_of_quota: 1,
        broken: 4,
        disliked: 2,
        silent: 2,
        stalled: 2,
        cut_early: 3,
        cut_late: 3,
        cut_behind_the_end: 2,
        lingering: 2,
        error_first: 3,
        error_late: 1,
    }
)
DOWN = Mood({refused: 3, broken: 4, silent: 2, cut_early: 2, error_first: 2, reset: 1})
BUSY = Mood({busy: 6, good: 4})
SLOW = Mood({thinking: 4, trickling: 2, stalled: 1})
MOODS = (WELL, WELL, ILL, ILL, ILL, DOWN, BUSY, SLOW)


# -- the wire ---------------------------------------------------------------------------------------------------------


CONNECTED = asyncio.Transport()
"""aiohttp's reader asks whether there is one, and nothing of it."""


class Response:
    """What the gateway uses of aiohttp's response, and what became of it."""

    def __init__(self, call: "Call", script: Script, loop: VirtualLoop) -> None:
        self.call, self.script, self.loop = call, script, loop
        self.status, self.reason = script.status, "OK" if script.status == 200 else "Error"
        self.raw_headers = tuple(script.fields)
        protocol = BaseProtocol(loop)
        protocol.transport = CONNECTED
        self.content = aiohttp.StreamReader(protocol, 1 << 20, loop=loop)
        self.timer: asyncio.TimerHandle | None = None
        self._go_on()

    def _go_on(self) -> None:
        call, script = self.call, self.script
        while call.fed < len(script.pieces):
            if script.gap_s and self.timer is None:
                self.timer = self.loop.call_later(script.gap_s, self._go_on)
                return
            self.timer = None
            self.content.feed_data(script.pieces[call.fed])
            call.fed += 1
        if script.ending == "cut":
            self.content.set_exception(aiohttp.ClientPayloadError("cut by the script"))
        elif script.ending == "end":
            self.content.feed_eof()
            self.call.let_go("released")  # as aiohttp does at the end of a body, unasked

    async def read(self) -> bytes:
        try:
            return await self.content.read()
        except BaseException:
            self.close()
            raise

    def release(self) -> None:
        self.close()  # aiohttp closes a connection whose answer is not whole

    def close(self) -> None:
        if self.call.over_s is not None:
            return
        self.call.let_go("closed")
        if self.timer:
            self.timer.cancel()
        self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))


@dataclass(slots=True, eq=False)
class Call:
    """One request that reached the wire."""

    n: int
    tick: int
    """Its place among all that happened."""
    at_s: float
    out: Outgoing
    attempt: Attempt
    fresh: bool
    script: Script
    loop: VirtualLoop
    host: str
    asked_usage: bool
    plain: Sequence[bytes] = ()
    """The script's pieces without their content coding."""
    response: Response | None = None
    fed: int = 0
    """Pieces that have arrived."""
    over_s: float | None = None
    """When the wire was free of it."""
    over_how: str = ""

    def __str__(self) -> str:
        over = "open" if self.over_s is None else f"{self.over_how} at {self.over_s:g} s"
        said = f"{self.script.name}, {self.fed} of {len(self.script.pieces)} pieces, then {self.script.ending}"
        return f"call {self.n} (at {self.at_s:g} s to {self.host}: {said}; {over})"

    def let_go(self, how: str) -> None:
        if self.over_s is None:
            self.over_s, self.over_how = self.loop.time(), how

    def whole(self, coded: bool) -> bytes:
        """What a client may get of it at most: all but the usage that only the gateway asked for."""
        return self._heard(len(self.plain), coded)

    def arrived(self, coded: bool) -> bytes:
        """The same of what has arrived."""
        return self._heard(self.fed, coded)

    def _heard(self, pieces: int, coded: bool) -> bytes:
        if coded:
            return b"".join(self.script.pieces[:pieces])
        body = b"".join(self.plain[:pieces])
        return body.replace(USAGE, b"") if self.asked_usage else body


def gzipped(pieces: Sequence[bytes], ending: Ending) -> list[bytes]:
    """Return *pieces* in gzip, each readable as soon as it is there."""
    coder = zlib.compressobj(1, wbits=31)
    coded = [coder.compress(piece) + coder.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    if coded and ending == "end":
        coded[-1] += coder.flush()
    return coded


class Wire:
    """All providers. *moods*: host -> (until when, mood), in order; the last one stays."""

    def __init__(
        self,
        loop: VirtualLoop,
        rng: Random,
        moods: Mapping[str, Sequence[tuple[float, Mood]]],
        tick: Callable[[], int],
    ) -> None:
        self.loop, self.rng, self.moods, self.tick = loop, rng, moods, tick
        self.calls: list[Call] = []
        self.is_well = False
        """All troubles are over, for good."""

    async def send(self, out: Outgoing, attempt: Attempt, connect_s: float | None, *, fresh: bool = False) -> Response:
        call = self._begin(out, attempt, fresh)
        script = call.script
        try:
            attempt.reused_connection = script.kept and not fresh
            if not attempt.reused_connection:
                await self._connect(call, connect_s)
            await self._sleep(script.head_s)
            if script.fails:
                raise Failed("reset", "reset by the script")
        except BaseException as error:
            call.let_go(type(error).__name__)
            raise
        call.response = Response(call, script, self.loop)
        return call.response

    async def _connect(self, call: Call, connect_s: float | None) -> None:
        script, limit_s = call.script, math.inf if connect_s is None else connect_s
        await self._sleep(min(script.connect_s, limit_s))
        if script.connect_s > limit_s:
            raise Failed("timeout", f"no connection within {limit_s:g} s")
        call.attempt.connect_s = script.connect_s
        if script.fails == "connect":
            raise Failed("connect", "refused by the script")

    async def _sleep(self, seconds: float) -> None:
        if math.isinf(seconds):
            await self.loop.create_future()
        await asyncio.sleep(seconds)

    def _begin(self, out: Outgoing, attempt: Attempt, fresh: bool) -> Call:
        body = out.body if isinstance(out.body, bytes) else b""
        host = urlsplit(out.url).hostname or ""
        stream, asked_usage = b'"stream":true' in body, b"include_usage" in body
        script = self._draw(host, stream, asked_usage)
        n = len(self.calls) + 1
        call = Call(n, self.tick(), self.loop.time(), out, attempt, fresh, script, self.loop, host, asked_usage)
        self.calls.append(call)
        call.plain = script.pieces = [piece.replace(MARK, b"%d" % n) for piece in script.pieces]
        kind = b"text/event-stream" if script.status == 200 and stream else b"application/json"
        script.fields += [(b"Content-Type", kind), (CALL, b"%d" % n)]
        if GZIP in out.fields:
            script.pieces = gzipped(call.plain, script.ending)
            script.fields.append((b"Content-Encoding", b"gzip"))
        return call

    def _draw(self, host: str, stream: bool, asked_usage: bool) -> Script:
        if self.is_well:
            return Script("well", pieces=[ROLE, *CONTENT, STOP, DONE] if stream else [ANSWER], is_good=True)
        if asked_usage and self.rng.random() < 0.1:
            return unasked(self.rng)
        now = self.loop.time()
        mood = next(mood for until_s, mood in self.moods[host] if now < until_s)
        fault = mood.draw(self.rng)
        script = fault(self.rng, stream)
        script.name = fault.__name__
        return script
