"""One attempt: send the request, and take in so much of the answer that it can be judged.

An answer is judged where something else may still be done about it. A plain one is taken in whole, since half of it is
of no use; a stream only while there is another try or another place left: up to its first content, but no more than 64
events, 256 KiB or one second (without that clock where a hedge is to go by the first content). What came in nobody has
seen yet, so it can still be dropped for a better one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from mitmgate.answers import Head
from mitmgate.clock import Clock
from mitmgate.exchange import Attempt, Exchange, Fields, Leg, joined
from mitmgate.layer import Upload
from mitmgate.pool import Failed, Outgoing, Pool
from mitmgate.stream import Tap
from mitmgate.usage import Usage, with_length

WHOLE_BYTES = 1 << 20
"""Answers up to this size that are no stream are taken in until they are whole: half of one is of no use."""
HOLD_EVENTS = 64
HOLD_BYTES = 256 * 1024
HOLD_S = 1.0
"""So much of a stream is held at most while another attempt could still take its place."""


@dataclass(slots=True)
class Arrival:
    """An answer that is here: whole, or as far as it was needed to judge it."""

    leg: Leg
    attempt: Attempt
    response: aiohttp.ClientResponse
    tap: Tap
    watch: "Silence"
    pieces: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(as it goes to the client, the same without its content coding)"""
    size: int = 0
    whole: bool = False

    def take(self, piece: bytes) -> None:
        self.pieces.append((piece, self.tap.plain))
        self.size += len(piece)

    def feed(self, chunk: bytes) -> bytes:
        """Read *chunk*; return what the client gets of it."""
        piece = self.tap.feed(chunk)
        if self.tap.lost:
            raise Failed("reset", f"the provider's content coding cannot be undone: {self.tap.lost}")
        return piece

    @property
    def cause(self) -> int | str | None:
        """What makes it no good answer: a status, ``error_event``; None where nothing does.

        A failure told in a 200, as an event or in its place, counts before the first content alone: one behind it is
        for the client to hear, whether or not both came in one piece.
        """
        status, reading = self.attempt.status or 0, self.attempt.reading
        if status >= 400:
            return status
        told = reading.error_event or (reading.error_type or "").startswith("error_event")
        return "error_event" if told and not reading.first_content else None

    def body(self) -> tuple[bytes, bytes]:
        """Return all that is here, as it goes to the client and without its coding."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        return b"".join(piece for piece, _ in self.pieces), b"".join(plain for _, plain in self.pieces)

    def head(self, should_retry: bool | None = None) -> Head:
        response = self.response
        return Head(
            response.status,
            (response.reason or "").encode(),
            list(response.raw_headers),
            self.attempt.headers,
            recoded=self.tap.recodes,
            length_changed=self.tap.filter is not None,
            readable=self.tap.readable,
            should_retry=should_retry,
        )

    def close(self) -> None:
        """Let go of the connection; one whose answer is not whole is closed. Either way the attempt is over."""
        self.watch.stop()
        self.response.close()
        if self.attempt.ended is None:
            self.attempt.ended = self.watch.now()


class Signs(Protocol):
    """Who holds keys (``provider_keys``)."""

    def holds(self, leg: Leg) -> bool:
        """Return whether a key of theirs goes with an attempt at *leg*."""

    async def sign(self, leg: Leg, method: str, url: str, fields: Fields, body: bytes | None) -> Fields:
        """Return *fields* as they go out; *body* None = it is still arriving. Raises ``Failed``."""


class Caller:
    """Makes attempts. Every method raises ``Failed`` where the provider gave no answer, or not all of it."""

    def __init__(self, clock: Clock, usage: Usage, signing: Signs | None = None) -> None:
        self.clock = clock
        self.usage = usage
        self.signing = signing
        """None where no target holds keys that go in at the last moment."""
        self.pool: Pool | None = None
        """There once the gateway runs."""

    async def call(
        self, x: Exchange, leg: Leg, attempt: Attempt, upload: Upload | None, hold_s: float | None
    ) -> Arrival:
        """Return the answer of *leg*, as far as it can be judged.

        *hold_s*: so long a stream may be held, because something could still take its place; 0 = nothing could, None =
        as long as it takes.
        """
        response = await self._send(x, leg, attempt, upload)
        try:
            arrival = await self._asked_in_vain(x, leg, attempt, response) or self._arrival(x, leg, attempt, response)
        except BaseException:
            response.close()
            raise
        try:
            await self._take_in(x, arrival, hold_s)
        except BaseException:
            arrival.close()
            raise
        return arrival

    def _arrival(self, x: Exchange, leg: Leg, attempt: Attempt, response: aiohttp.ClientResponse) -> Arrival:
        tap = Tap(x, leg, attempt, self.clock.now)
        return Arrival(leg, attempt, response, tap, Silence(response.content, x.timeouts.idle_s, self.clock.now))

    # -- the head

    async def _send(self, x: Exchange, leg: Leg, attempt: Attempt, upload: Upload | None) -> aiohttp.ClientResponse:
        """Return the answer once its head is here."""
        try:
            return await self._send_once(x, leg, attempt, upload)
        except Failed as failed:
            # A kept connection that died before any byte of an answer: the provider never read the request.
            if failed.cause != "reset" or not attempt.reused_connection or upload is not None:
                raise
        return await self._send_once(x, leg, attempt, upload, fresh=True)

    async def _send_once(
        self, x: Exchange, leg: Leg, attempt: Attempt, upload: Upload | None, *, fresh: bool = False
    ) -> aiohttp.ClientResponse:
        """*fresh*: on a new connection, whatever is kept."""
        if self.pool is None:
            raise Failed("connect", "the gateway is not running")
        body = upload.__aiter__() if upload else x.body if leg.body is None else leg.body
        fields = leg.fields if leg.body is None else with_length(leg.fields, len(leg.body))
        limit_s = x.timeouts.first_byte_s if leg.first_byte_s is None else leg.first_byte_s
        sent = self.clock.now()
        try:
            if self.signing and self.signing.holds(leg):
                known = None if upload else (x.body if leg.body is None else leg.body) or b""
                fields = await self.signing.sign(leg, x.method, url_of(leg), fields, known)
            # The clock of a streamed upload would count the client's own time.
            async with asyncio.timeout(None if upload else limit_s) as first_byte:
                response = await self.pool.send(
                    Outgoing(x.method, url_of(leg), fields, body or None, leg.ca),
                    attempt,
                    x.timeouts.connect_s,
                    fresh=fresh,
                )
        except TimeoutError:
            if not first_byte.expired():
                raise
            raise Failed("timeout", f"no first byte within {limit_s:g} s") from None
        finally:
            now = self.clock.now()
            x.waited_s += now - sent
        attempt.first_byte = now
        attempt.status = response.status
        attempt.headers = joined(response.raw_headers)
        return response

    async def _asked_in_vain(
        self, x: Exchange, leg: Leg, attempt: Attempt, response: aiohttp.ClientResponse
    ) -> Arrival | None:
        """Where the provider refuses to be asked for usage: repeat the request as the client sent it.

        No attempt of its own, since the fault was ours. Returns what arrived, None where nothing was refused.
        """
        if response.status not in (400, 422) or not leg.asked_usage:
            return None
        try:
            body = await response.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Failed("reset", f"the provider broke off: {error}") from error
        if self.usage.was_refused(x, leg, response.status, body):
            return self._arrival(x, leg, attempt, await self._send_once(x, leg, attempt, None))
        arrival = self._arrival(x, leg, attempt, response)
        arrival.take(arrival.feed(body))
        arrival.take(self.finish(arrival))
        return arrival

    # -- the body

    async def _take_in(self, x: Exchange, arrival: Arrival, hold_s: float | None) -> None:
        if arrival.whole:
            return
        holds = hold_s != 0
        if _is_plain(x, arrival) or (holds and arrival.attempt.status != 200):
            while arrival.size <= WHOLE_BYTES and not arrival.whole:
                await self._read(x, arrival)
        elif holds and arrival.leg.dialect is not None:
            try:
                async with asyncio.timeout(hold_s) as held:
                    await self._hold(x, arrival)
            except TimeoutError:
                if not held.expired():
                    raise

    async def _hold(self, x: Exchange, arrival: Arrival) -> None:
        """Read a stream up to its first content; what ends before it without a regular end was no answer."""
        reading, events = arrival.attempt.reading, 0
        while not (reading.first_content or reading.error_event or arrival.whole):
            await self._read(x, arrival)
            events += arrival.pieces[-1][1].count(b"\n\n") + arrival.pieces[-1][1].count(b"\r\n\r\n")
            if events >= HOLD_EVENTS or arrival.size >= HOLD_BYTES:
                return
        if arrival.whole and not (reading.first_content or reading.error_event or reading.ended):
            raise Failed("reset", "the stream ended before its first content")

    async def _read(self, x: Exchange, arrival: Arrival) -> None:
        """Take in the next piece, or the end."""
        chunk = await self.next(x, arrival)
        arrival.take(arrival.feed(chunk) if chunk else self.finish(arrival))

    def finish(self, arrival: Arrival) -> bytes:
        """The answer is whole; return what was still held back."""
        arrival.whole = True
        arrival.watch.stop()
        arrival.attempt.ended = self.clock.now()
        arrival.response.release()
        return arrival.tap.end()

    async def next(self, x: Exchange, arrival: Arrival) -> bytes:
        """Return what has arrived, ``b""`` at the end."""
        content, watch = arrival.response.content, arrival.watch
        if content.exception() is None:
            if content.at_eof():
                return b""
            if content._buffer:
                return content._read_nowait(-1)
        before = self.clock.now()
        watch.begin(before)
        try:
            return await content.readany()
        except aiohttp.ClientError as error:
            # aiohttp raises as soon as it has seen the cut, and would drop what it holds: often the usage.
            rest = content._read_nowait(-1)
            if rest:
                return rest
            raise Failed("reset", f"the provider broke off: {error}") from error
        except ConnectionError as error:
            raise Failed("reset", f"the provider broke off: {error}") from error
        finally:
            watch.since = None
            x.waited_s += self.clock.now() - before


class Silence:
    """Breaks a read that has waited too long. Costs two assignments a chunk; the timer looks up only now and then.

    It watches the read alone: a slow client is not a silent provider. Where nothing has to be waited for there is no
    timer at all.
    """

    def __init__(self, content: aiohttp.StreamReader, idle_s: float | None, now: Callable[[], float]) -> None:
        self.content, self.idle_s, self.now = content, idle_s, now
        self.since: float | None = None
        """When the read that is under way began."""
        self.timer: asyncio.TimerHandle | None = None

    def begin(self, now: float) -> None:
        """A read begins that has to wait."""
        self.since = now
        if self.timer is None and self.idle_s:
            self.timer = asyncio.get_running_loop().call_later(self.idle_s, self._look)

    def _look(self) -> None:
        if self.idle_s is None:
            return
        silent_s = 0.0 if self.since is None else self.now() - self.since
        if silent_s >= self.idle_s - 0.001:
            self.content.set_exception(Failed("timeout", f"the provider was silent for {self.idle_s:g} s"))
            return
        self.timer = asyncio.get_running_loop().call_later(self.idle_s - silent_s, self._look)

    def stop(self) -> None:
        if self.timer:
            self.timer.cancel()


def url_of(leg: Leg) -> str:
    """Return the absolute URL of *leg*, its path exactly as it was sent."""
    host = f"[{leg.host}]" if ":" in leg.host else leg.host
    if (leg.scheme, leg.port) in (("https", 443), ("http", 80)):
        return f"{leg.scheme}://{host}{leg.path}"
    return f"{leg.scheme}://{host}:{leg.port}{leg.path}"


def _is_plain(x: Exchange, arrival: Arrival) -> bool:
    """True where the answer is small, no stream, and so of no use in part."""
    headers = arrival.attempt.headers
    if "event-stream" in headers.get("content-type", ""):
        return False
    length = headers.get("content-length", "")
    if length.isdigit():
        return int(length) <= WHOLE_BYTES
    return arrival.leg.dialect is not None and not arrival.leg.request.stream
