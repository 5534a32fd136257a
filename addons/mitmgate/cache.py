"""Answer what was answered before, and let identical calls in flight share one.

Runs once it is known who asks, before anything is asked of a provider, and only where a ``cache`` rule or a
``cf-aig-cache-*`` header says so. Promises: the same answer, byte for byte, streamed as it was streamed; never across
``scope``, which by default is the caller's own key; never an error, a cut or a refused answer. A thousand identical
calls at once make one provider call, and whoever asked first may leave without taking it from the others.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from mitmgate import cache_rules
from mitmgate.answers import Head
from mitmgate.cache_key import key_of
from mitmgate.cache_rules import Decision
from mitmgate.clock import Clock
from mitmgate.dialects.base import Call
from mitmgate.errors import Refusal
from mitmgate.exchange import Answer, Event, Exchange, Origin, joined
from mitmgate.fields import fields_of
from mitmgate.layer import HEARD_S, Gone
from mitmgate.policy import Policy
from mitmgate.policy.match import Rules, shadows
from mitmgate.sink import FAILED, Replay, Sink, give_up
from mitmgate.store.answers import AnswerStore, Entry
from mitmgate.stream import KEPT_BYTES
from mitmgate.tape import Follow, Tape

log = logging.getLogger("mitmgate.cache")

PIECE_BYTES = 1 << 18
"""A large answer is replayed in pieces of this size, at its client's pace."""

KEY_DIGITS = 12
"""Of a key in a row's notes: enough for ``mitmgate cache show``."""


class Cheaper:
    """The second look: behind ``budget``, for a call that was not found and goes to a cheaper model or place.

    What a tenant may spend parts callers by no field, so no ``scope`` could keep their answers apart: what the cheaper
    model says is kept, and shared, as its own alone. What the one that was asked for had said before is found first.
    """

    name = "mitmgate.cache_cheaper"

    def __init__(self, cache: "Cache") -> None:
        self.cache = cache

    def admit(self, x: Exchange) -> Awaitable[None] | None:
        if x.tape is None or x.downgrade is None:
            return None
        return self.cache.look_again(x, x.tape)


class Cache:
    name = "mitmgate.cache"

    def __init__(self, policy: Policy, store: AnswerStore, clock: Clock, tapes: dict[str, Tape]) -> None:
        self.policy = policy
        self.rules = Rules(policy.cache)
        self.store = store
        self.clock = clock
        self.tapes = tapes
        """Key -> answer on its way that others may follow."""
        self.decisions: dict[str, tuple[str, Decision]] = {}
        """Exchange id -> (key, decision), while its answer is taped."""

    def admit(self, x: Exchange) -> Awaitable[None] | None:
        if not self.policy.cache and not x.controls:
            return None  # nobody asks: nearly always, so it costs no coroutine
        return self._admit(x)

    async def _admit(self, x: Exchange) -> None:
        if x.dialect is None or x.refusal or x.streamed_upload or x.door == "replay":
            return
        get = fields_of(x)
        rules = self.rules.likely(get)
        decision = cache_rules.decide(rules, x.controls, x.headers, get)
        for rule in shadows(rules, get):
            x.events.append(Event("cache", rule.name, "flag", True, f"would be kept for {rule.ttl_s:g} s"))
        if decision is None:
            return
        if not decision.look_up:
            x.cache_status = "BYPASS"
        if decision.look_up or decision.keep:
            await self._look_up(x, decision)

    async def _look_up(self, x: Exchange, decision: Decision, stale: Replay | None = None) -> None:
        """Write into *x* the answer that it need not ask for, or the tape that its own is to be written to.

        *stale*: what stands in for an error where there is nothing better.
        """
        key = self.key(x, decision)
        if decision.look_up:
            entry = self.store.peek(key) or await self.store.get(key)
            if entry and self._is_fresh(entry, decision):
                x.replay = Stored(entry, self.clock, decision.replay == "live")
                return
            if entry and entry.usable_if_error(self.clock.wall()):
                stale = Stored(entry, self.clock, decision.replay == "live")
            x.cache_status = "MISS"
            if (tape := self.tapes.get(key)) and tape.joinable:
                x.replay = Follow(tape, tape.join())
                return
        x.tape = Tape(x, self.clock, stale)
        self.decisions[x.id] = (key, decision)
        if decision.look_up and self.policy.cache_store.coalesce:
            self.tapes[key] = x.tape

    def look_again(self, x: Exchange, tape: Tape) -> Awaitable[None]:
        """Look for what the cheaper model said, in place of having *tape* written."""
        _, decision = self.decisions[x.id]
        self.abandon(x)
        x.tape = None
        return self._look_up(x, decision, tape.stale)

    def key(self, x: Exchange, decision: Decision) -> str:
        """Return the name under which *decision* lets the answer of *x* be kept."""
        get = fields_of(x)
        scope: list[tuple[str, object | None]] = [(name, get(name)) for name in decision.scope]
        if x.downgrade:
            scope.append(("downgrade", [x.downgrade.target, x.downgrade.model]))
        if x.guards:
            scope.append(("guard", x.guards))
        asked = x.controls.get("cache-key")
        if asked is not None and self.policy.cache_store.key_header == "scope":
            scope.append(("cf-aig-cache-key", asked))
            asked = None
        return key_of(x, scope, decision.ignore, asked)

    def _is_fresh(self, entry: Entry, decision: Decision) -> bool:
        wall = self.clock.wall()
        return entry.fresh(wall) and entry.age_s(wall) <= decision.ttl_s

    # -- an answer that somebody else has, or will have

    async def replay(self, x: Exchange, client: Sink) -> None:
        """Play the answer that *x* need not ask for; raises ``Gone`` when its client leaves."""
        if x.replay:
            await self._in_time(x, client, x.replay.play(x, client))

    async def _in_time(self, x: Exchange, client: Sink, playing: Awaitable[None], grace_s: float = 0.0) -> None:
        """Let *playing* take as long as the whole exchange may: a client that does not read is let go."""
        total_s = x.timeouts.total_s
        try:
            async with asyncio.timeout(None if total_s is None else total_s + grace_s) as total:
                await playing
        except TimeoutError:
            if not total.expired():
                raise
            message = f"no complete answer within {total_s:g} s"
            refusal = Refusal(504, "timeout", f"mitmgate ended this answer: {message}", error_type="timeout")
            x.left_early = True
            if client.started:
                await client.cut(message, "timeout", refusal)
            else:
                await client.refuse(refusal, "timeout")

    # -- the answer of whoever leads

    async def lead(self, x: Exchange, client: Sink, answer: Callable[[Exchange, Sink], Awaitable[None]]) -> None:
        """Have *answer* written to the tape of *x*, and play it to *x*'s own client as to any other.

        Returns, or raises what its client's leaving raised, when the tape is written: the books of *x* hold what was
        used for all.
        """
        tape = x.tape
        if tape is None:
            raise ValueError(f"{x.id} has no tape")
        if tape.downgrade != x.downgrade:  # `route` could not obey: it is not the cheaper model's answer after all
            self._let_go(x, tape)
        listener = tape.join()
        tape.task = asyncio.get_running_loop().create_task(self._write(x, tape, answer))
        try:
            await self._in_time(x, client, tape.play(x, client, listener), HEARD_S)  # first the attempts' own clock
        finally:
            tape.leave(listener)
            await self._written(tape.task)

    async def _written(self, task: asyncio.Task[None]) -> None:
        """Return once *task* is over; where the gateway stops meanwhile, it is ended."""
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})

    async def _write(self, x: Exchange, tape: Tape, answer: Callable[[Exchange, Sink], Awaitable[None]]) -> None:
        try:
            if x.refusal:
                await tape.refuse(x.refusal, "refused")
            else:
                await answer(x, tape)
        except Gone:
            pass
        except Exception:
            log.exception("cache: %s: the gateway failed", x.id)
            await give_up(tape, FAILED)
        finally:
            self._close(x, tape)

    def _close(self, x: Exchange, tape: Tape) -> None:
        """Keep what was taped, if it may be kept, and let later calls look it up instead of following."""
        key, decision = self._let_go(x, tape)
        try:
            if decision and decision.keep and tape.is_whole and tape.top:
                self._keep(x, tape, tape.top, key, decision)
        except Exception:
            log.exception("cache: %s: its answer is not kept", x.id)

    def _let_go(self, x: Exchange, tape: Tape) -> tuple[str, Decision | None]:
        """Let nobody follow *tape* any more; return under which name it was to be kept, and how."""
        key, decision = self.decisions.pop(x.id, ("", None))
        if self.tapes.get(key) is tape:
            del self.tapes[key]
        return key, decision

    def _keep(self, x: Exchange, tape: Tape, top: Head, key: str, decision: Decision) -> None:
        if x.origin is None or not top.readable or x.answer.spoilt:
            return
        if cache_rules.why_not_kept(top.status, x.reading, "end", x.streaming):
            return
        first = tape.pieces[0].at if tape.pieces else 0.0
        self.store.put(
            Entry(
                key=key,
                fields=cache_rules.replayable(top.fields),
                reason=top.reason,
                pieces=tuple((round((piece.at - first) * 1000), piece.plain) for piece in tape.pieces),
                reading=x.reading,
                content_index=tape.content_at,
                stored_at=self.clock.wall(),
                ttl_s=decision.ttl_s,
                stale_s=decision.stale_if_error_s,
                rule=decision.rule,
                tenant=x.tenant,
                route=x.route,
                model=(x.downgrade and x.downgrade.model) or x.request.model,
                target=x.origin.target,
                provider_name=x.origin.provider_name,
                host=x.origin.host,
                step=x.step,
                path=x.path.partition("?")[0],
            )
        )

    def abandon(self, x: Exchange) -> None:
        """The exchange is over; let go of a tape that was never written."""
        if x.replay:
            x.replay.close()
        if x.tape and x.tape.task is None:
            x.tape.abandon()
            self._close(x, x.tape)


@dataclass(frozen=True, slots=True)
class Stored:
    """A ``Replay``: an answer out of the store."""

    entry: Entry
    clock: Clock
    live: bool

    async def play(self, x: Exchange, client: Sink) -> None:
        entry = self.entry
        x.source, x.cache_status = "cache", "HIT"
        x.cache_age_s = max(0, int(entry.age_s(self.clock.wall())))
        x.origin, x.step = Origin(entry.target, entry.provider_name, entry.host), entry.step
        x.notes.append(f"cache: answer {entry.key[:KEY_DIGITS]}, {x.cache_age_s} s old")
        body = b"".join(piece for _, piece in entry.pieces)
        x.answer = Answer(entry.reading, size=len(body))
        if x.keep_payload and not x.guarded:
            x.answer.kept = bytearray(body[:KEPT_BYTES])
            x.answer.kept_whole = len(body) <= KEPT_BYTES
        if self.live and len(entry.pieces) > 1:
            await self._play_through(x, client, self._head([]), entry.pieces)
            return
        x.first_content = self.clock.now()
        head = self._head([(b"content-length", b"%d" % len(body))])
        if len(body) <= PIECE_BYTES:
            await client.whole(head, body, body)
        else:
            await self._play_through(x, client, head, _at_once(body))

    async def _play_through(self, x: Exchange, client: Sink, head: Head, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Play *pieces*, each so many ms after the first."""
        started, heard = self.clock.now(), bytearray()
        content = self.entry.content_index
        content_ms = None if content is None else self.entry.pieces[content][0]
        try:
            await client.head(head)
            for at_ms, piece in pieces:
                ahead_s = started + at_ms / 1000 - self.clock.now()
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
                if x.first_content is None and content_ms is not None and at_ms >= content_ms:
                    x.first_content = self.clock.now()
                heard += piece
                if piece:
                    await client.data(piece, piece)
            await client.end()
        except (Gone, asyncio.CancelledError):
            x.left_early = client.gone and not _is_finished(x, head, bytes(heard))
            raise

    def _head(self, more: list[tuple[bytes, bytes]]) -> Head:
        fields = [*self.entry.fields, *more]
        return Head(200, self.entry.reason, fields, joined(fields))

    def close(self) -> None:
        """Nothing is held."""


def _at_once(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield *body* in pieces that a client can take one after the other."""
    for start in range(0, len(body), PIECE_BYTES):
        yield 0, body[start : start + PIECE_BYTES]


def _is_finished(x: Exchange, head: Head, heard: bytes) -> bool:
    """Return whether the part of an answer that *x* heard says that it is finished."""
    if x.dialect is None:
        return False
    reader = x.dialect.reader(Call(200, head.headers, x.request.stream, x.path, x.request.model))
    reader.feed(heard)
    return reader.reading.finished or reader.reading.ended
