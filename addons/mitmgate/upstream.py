"""Perform an exchange: send the request, bring the answer to the client, and know at each moment how it stands.

Runs when every room before it has let the request through. Promise: the client gets the provider's bytes, or an error
in its own API's words; once it has a byte, nothing is sent again; each phase has its own clock; a client that leaves
ends the attempt at once, except where the provider would bill the whole answer anyway (``after_client_leaves:
drain``).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import aiohttp

from mitmgate import dialects
from mitmgate.answers import provider_fields, reason, refusal_fields
from mitmgate.clock import Clock
from mitmgate.errors import Refusal
from mitmgate.exchange import Attempt, Exchange, Fields, joined
from mitmgate.layer import HEARD_S, Downstream, Gone
from mitmgate.policy import Policy
from mitmgate.pool import Failed, Outgoing, Pool
from mitmgate.stream import Tap
from mitmgate.usage import Usage, with_length

log = logging.getLogger("mitmgate.upstream")

HELD_BYTES = 1 << 20
"""Answers up to this size that are no stream are held until they are whole: cut in the middle, they are of no use."""
DRAIN_S = 600.0
"""Longest time to read on after the client has left."""


class Upstream:
    name = "mitmgate.upstream"

    def __init__(self, policy: Policy, clock: Clock, usage: Usage) -> None:
        self.policy = policy
        self.clock = clock
        self.usage = usage
        self.pool: Pool | None = None
        self.drains = policy.upstream.after_client_leaves

    def open(self) -> None:
        """Make the pool; needs the running loop."""
        self.pool = Pool(self.policy)

    async def close(self) -> None:
        if self.pool:
            await self.pool.close()

    # -- the answer

    async def answer(self, x: Exchange, down: Downstream) -> None:
        """Answer the client; sets ``x.how`` and ``x.status``. Raises ``Gone`` or ``CancelledError`` when it has
        left."""
        if x.refusal:
            await self.refuse(x, down, x.refusal, "refused")
            return
        slug = x.provider.slug if x.provider else "default"
        down.drain = x.dialect is not None and self.drains.get(slug, self.drains.get("default")) == "drain"
        try:
            async with asyncio.timeout(x.timeouts.total_s):
                await self._attempt_until_answered(x, down)
        except TimeoutError:
            await self._give_up(x, down, Failed("timeout", f"no complete answer within {x.timeouts.total_s:g} s"))

    async def _attempt_until_answered(self, x: Exchange, down: Downstream) -> None:
        attempt = self._begin(x)
        for replays_left in (1, 0):
            try:
                response = await self._send(x, attempt, down, fresh=not replays_left)
                break
            except Failed as failed:
                # A kept connection that died before any byte of an answer: the provider never read the request.
                if not (replays_left and failed.cause == "reset" and attempt.reused_connection and down.upload is None):
                    return await self._give_up(x, down, failed)
        async with response:
            if response.status in (400, 422) and x.asked_usage:
                try:
                    body = await response.read()
                except (aiohttp.ClientError, ConnectionError) as error:
                    return await self._give_up(x, down, Failed("reset", f"the provider broke off: {error}"))
                if self.usage.was_refused(x, response.status, body):
                    return await self._attempt_again(x, attempt, down)
                return await self._whole(x, attempt, response, down, body)
            return await self._bring(x, attempt, response, down)

    async def _attempt_again(self, x: Exchange, attempt: Attempt, down: Downstream) -> None:
        """Repeat the request as the client sent it; not an attempt of its own, since the fault was ours."""
        try:
            response = await self._send(x, attempt, down)
        except Failed as failed:
            return await self._give_up(x, down, failed)
        async with response:
            return await self._bring(x, attempt, response, down)

    # -- one attempt

    def _begin(self, x: Exchange) -> Attempt:
        provider = x.provider.provider_name if x.provider else x.host
        target = x.target or (x.provider.slug if x.provider else x.host)
        attempt = Attempt(len(x.attempts) + 1, target, provider, x.host, self.clock.now())
        x.attempts.append(attempt)
        return attempt

    async def _send(
        self, x: Exchange, attempt: Attempt, down: Downstream, *, fresh: bool = False
    ) -> aiohttp.ClientResponse:
        """Return the provider's answer once its head is here; raise ``Failed``. *fresh*: on a new connection."""
        if self.pool is None:
            raise Failed("connect", "the gateway is not running")
        body = down.upload.__aiter__() if down.upload else x.body if x.sent_body is None else x.sent_body
        fields = x.sent_fields if x.sent_body is None else with_length(x.sent_fields, len(x.sent_body))
        ca = self.policy.targets[x.target].ca if x.target else None
        out = Outgoing(x.method, url_of(x), fields, body or None, ca)
        sent = self.clock.now()
        try:
            # The clock of a streamed upload would count the client's own time.
            async with asyncio.timeout(None if down.upload else x.timeouts.first_byte_s) as first_byte:
                response = await self.pool.send(out, attempt, x.timeouts.connect_s, fresh=fresh)
        except TimeoutError:
            if not first_byte.expired():
                raise
            raise Failed("timeout", f"no first byte within {x.timeouts.first_byte_s:g} s") from None
        finally:
            now = self.clock.now()
            x.waited_s += now - sent
        attempt.first_byte = now
        attempt.status = response.status
        attempt.headers = joined(response.raw_headers)
        return response

    async def _bring(self, x: Exchange, attempt: Attempt, response: aiohttp.ClientResponse, down: Downstream) -> None:
        """Bring an answer to the client: whole where a part is of no use, else piece by piece."""
        held = _is_held(x, attempt)
        tap = Tap(x, attempt, self.clock.now)
        watch = Silence(response.content, x.timeouts.idle_s, self.clock.now)
        body: list[bytes] = []
        size = 0
        try:
            if not held:
                await self._head(x, attempt, response, down, tap)
            while chunk := await self._read(x, response, watch):
                piece = tap.feed(chunk)
                if tap.lost:
                    raise Failed("reset", f"the provider's content coding cannot be undone: {tap.lost}")
                if not held:
                    await self._pass_on(piece, down)
                    continue
                body.append(piece)
                size += len(piece)
                if size > HELD_BYTES:
                    held = False
                    await self._head(x, attempt, response, down, tap)
                    await self._pass_on(b"".join(body), down)
            body.append(tap.end())
            self._ended(x, attempt, "end")
            if held:
                fields = self._fields(x, attempt, response, tap)
                await down.whole(x.status or 0, fields, (response.reason or "").encode(), b"".join(body))
            else:
                await self._pass_on(body[-1], down)
                if not down.gone:
                    await down.end()
        except Failed as failed:
            if not held:
                with suppress(Gone):
                    await self._pass_on(tap.release(), down)
            await self._give_up(x, down, failed)
        finally:
            watch.stop()

    async def _read(self, x: Exchange, response: aiohttp.ClientResponse, watch: "Silence") -> bytes:
        """Return what has arrived, ``b""`` at the end; raise ``Failed`` where the provider breaks off or falls
        silent."""
        content = response.content
        watch.since = before = self.clock.now()
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

    async def _pass_on(self, piece: bytes, down: Downstream) -> None:
        if not piece or (down.gone and down.drain):
            return
        try:
            await down.data(piece)
        except Gone:
            if not down.drain:
                raise

    async def _head(
        self, x: Exchange, attempt: Attempt, response: aiohttp.ClientResponse, down: Downstream, tap: Tap
    ) -> None:
        await down.head(response.status, self._fields(x, attempt, response, tap), (response.reason or "").encode())

    def _fields(self, x: Exchange, attempt: Attempt, response: aiohttp.ClientResponse, tap: Tap) -> Fields:
        x.status = attempt.status
        x.answer_headers = attempt.headers
        return provider_fields(
            x, list(response.raw_headers), recoded=tap.recodes, length_changed=tap.filter is not None
        )

    async def _whole(
        self, x: Exchange, attempt: Attempt, response: aiohttp.ClientResponse, down: Downstream, body: bytes
    ) -> None:
        tap = Tap(x, attempt, self.clock.now)
        piece = tap.feed(body) + tap.end()
        self._ended(x, attempt, "end")
        fields = self._fields(x, attempt, response, tap)
        await down.whole(response.status, fields, (response.reason or "").encode(), piece)

    # -- when it does not work

    async def _give_up(self, x: Exchange, down: Downstream, failed: Failed) -> None:
        """Tell the client that no answer, or no more of it, will come."""
        attempt = x.attempts[-1]
        attempt.error_type, attempt.detail = failed.cause, failed.detail
        if not down.started:
            status = 504 if failed.cause == "timeout" else 502
            refusal = Refusal(
                status,
                "timeout" if failed.cause == "timeout" else "connection",
                f"mitmgate could not get an answer from {attempt.host}: {failed.detail}",
                error_type=failed.cause,
            )
            x.refusal = refusal
            x.source = "gateway"
            await self.refuse(x, down, refusal, "timeout" if failed.cause == "timeout" else "failed")
            return
        how = "timeout" if failed.cause == "timeout" else "cut"
        self._ended(x, attempt, how)
        if how == "timeout" and x.streaming and not attempt.headers.get("content-encoding") and x.dialect:
            refusal = Refusal(504, "timeout", f"mitmgate ended this stream: {failed.detail}", error_type="timeout")
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARD_S):
                    await down.data(x.dialect.error_event(refusal, x.id if x.keep_row else None))
                    await down.end()
                    return
        await down.cut(failed.detail)

    async def refuse(self, x: Exchange, down: Downstream, refusal: Refusal, how: str) -> None:
        """Send an answer of our own in the words of the client's API."""
        voice = x.dialect or dialects.voice(x.provider)
        body = voice.error_body(refusal, x.id if x.dialect and x.keep_row else None)
        x.status = refusal.status
        x.answer_headers = {"content-type": "application/json"}
        self._ended(x, x.attempts[-1] if x.attempts else None, how)
        await down.whole(refusal.status, refusal_fields(x, refusal, len(body)), reason(refusal.status), body)

    def _ended(self, x: Exchange, attempt: Attempt | None, how: str) -> None:
        x.how = how  # type: ignore[assignment]
        if attempt:
            attempt.ended = self.clock.now()


class Silence:
    """Breaks a read that has waited too long. Costs two assignments a chunk; the timer looks up only now and then.

    It watches the read alone: a slow client is not a silent provider.
    """

    def __init__(self, content: aiohttp.StreamReader, idle_s: float | None, now: Callable[[], float]) -> None:
        self.content, self.idle_s, self.now = content, idle_s, now
        self.since: float | None = None
        """When the read that is under way began."""
        self.timer = asyncio.get_running_loop().call_later(idle_s, self._look) if idle_s else None

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


def url_of(x: Exchange) -> str:
    """Return the absolute URL of *x*, its path exactly as it was sent."""
    host = f"[{x.host}]" if ":" in x.host else x.host
    if (x.scheme, x.port) in (("https", 443), ("http", 80)):
        return f"{x.scheme}://{host}{x.path}"
    return f"{x.scheme}://{host}:{x.port}{x.path}"


def _is_held(x: Exchange, attempt: Attempt) -> bool:
    """True where the answer is small, no stream, and so of no use in part."""
    headers = attempt.headers
    if "event-stream" in headers.get("content-type", ""):
        return False
    length = headers.get("content-length", "")
    if length.isdigit():
        return int(length) <= HELD_BYTES
    return x.dialect is not None and not x.request.stream
