"""The gateway's rooms in a world that a seed decides: policy, clients, a misbehaving provider, and time.

``Schedule.of(seed)`` draws it, ``World(schedule).run()`` lets it happen. The rooms are the real ones, wired by
``Chain``; only the sockets at both ends are ours: the provider is ``faults.Wire``, a client is an ``Ear``, time is
``virtual_time``. After the last client has its answer all providers get well, and each place that was ill is called
once more. The same seed is the same run, to the byte.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

from mitmgate.breaker import Resting
from mitmgate.chain import Chain
from mitmgate.exchange import Exchange, Fields, joined
from mitmgate.layer import Downstream, Gone
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.policy.values import CAUSES, Choice, Target
from mitmgate.pool import Pool
from mitmgate.providers import TABLE
from support.faults import DOWN, GZIP, ILL, MOODS, WELL, Call, Mood, Wire
from support.virtual_time import STARTED_WALL, VirtualLoop

OPENAI = next(provider for provider in TABLE if provider.slug == "openai")
OWN = "api.openai.com"
TARGETS = {
    name: Target(name, "openai", f"https://{name}.api.openai.com", {"authorization": f"Bearer key-of-{name}"})
    for name in ("one", "two", "three")
}
PLACES = {"openai": OWN, **{name: f"{name}.api.openai.com" for name in TARGETS}}
"""Name of the place, as rules and breakers know it -> its host."""
KEYS = {PLACES[name]: target.headers["authorization"].encode() for name, target in TARGETS.items()}
"""Host -> the key that must be sent there; to the clients' own host goes their own."""
EVER = float("inf")
WELL_AGAIN_S = 60.0
"""Longer than any place rests."""
LATE_PROMPT = 10
"""And the numbers after it: asked by nobody before."""


# -- what a seed decides ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Visit:
    """One client: what it asks, and how long it stays. Times are seconds."""

    at_s: float
    prompt: int
    """Clients of one prompt and one key ask the same."""
    stream: bool
    key: int
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """``cf-aig-*`` and other headers of its own."""
    leaves_s: float | None = None
    """After it came, unless it has its answer by then; None = it stays."""
    slow_s: float = 0.0
    """It takes this long over each piece."""

    @property
    def asks(self) -> tuple[int, bool, int]:
        """What makes two clients ask the same."""
        return self.prompt, self.stream, self.key

    @property
    def credential(self) -> bytes:
        return b"Bearer key-%d" % self.key


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    policy: Policy
    visits: tuple[Visit, ...]
    moods: Mapping[str, Sequence[tuple[float, Mood]]]
    """Host -> (until when, mood)."""
    stops_s: float = EVER
    """When the gateway stops and ends every exchange."""

    @classmethod
    def of(cls, seed: int) -> "Schedule":
        rng = Random(seed)
        policy = _policy(rng)
        moods = {host: _moods(rng) for host in PLACES.values()}
        streams, within_s = rng.choice((0.0, 0.9, 1.0)), rng.choice((0.1, 1.0, 4.0, 20.0))
        visits = tuple(_visit(rng, streams, within_s) for _ in range(rng.choice((1, 2, 2, 3, 5))))
        return cls(seed, policy, visits, moods, rng.uniform(0, 5) if rng.random() < 0.04 else EVER)


def _moods(rng: Random) -> list[tuple[float, Mood]]:
    return [(rng.uniform(0.5, 5), rng.choice(MOODS)), (EVER, rng.choice((WELL, ILL, DOWN)))]


def _visit(rng: Random, streams: float, within_s: float) -> Visit:
    """*streams*: the share of those who ask for one; *within_s*: the time in which all come."""
    return Visit(
        at_s=rng.choice((0.0, rng.uniform(0, within_s), rng.uniform(0, within_s))),
        prompt=rng.choice((0, 0, 0, 0, 1)),
        stream=rng.random() < streams,
        key=rng.choice((0, 0, 0, 0, 1)),
        fields=tuple(header for header in HEADERS if rng.random() < 0.04),
        leaves_s=rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 6))) if rng.random() < 0.3 else None,
        slow_s=rng.choice((0.05, 0.5, 2.0)) if rng.random() < 0.3 else 0.0,
    )


HEADERS = (
    GZIP,
    (b"cf-aig-cache-ttl", b"60"),
    (b"cf-aig-skip-cache", b"true"),
    (b"cf-aig-max-attempts", b"4"),
    (b"cf-aig-retry-delay", b"300"),
    (b"cf-aig-backoff", b"constant"),
    (b"cf-aig-request-timeout", b"400"),
    (b"cf-aig-fallback", b"three, one"),
    (b"x-stainless-retry-count", b"1"),
    (b"cache-control", b"no-store"),
)


def _policy(rng: Random) -> Policy:
    some = rng.random
    return Policy(
        usage=rng.choice(("ask", "leave")),
        targets=TARGETS,
        cache=(_cache(rng),) if some() < 0.6 else (),
        cache_store=rules.CacheStore(coalesce=some() < 0.9),
        route=(_route(rng),) if some() < 0.7 else (),
        retry=(_retry(rng, shadow=True), _retry(rng)) if some() < 0.1 else (_retry(rng),),
        timeout=(_timeout(rng),),
        breaker=(_breaker(rng),) if some() < 0.6 else (),
        hedge=(_hedge(rng),) if some() < 0.5 else (),
        upstream=rules.Upstream(after_client_leaves={"default": rng.choice(("cancel", "cancel", "drain"))}),
    )


def _cache(rng: Random) -> rules.Cache:
    return rules.Cache(
        ttl_s=rng.choice((0.5, 60.0)),
        stale_if_error_s=rng.choice((0.0, 600.0)),
        replay=rng.choice(("at once", "live")),
    )


def _route(rng: Random) -> rules.Route:
    names = rng.sample(["one", "two", "three", None], rng.randint(1, 3))
    tries = tuple(
        Choice(name, timeout_s=rng.choice((None, None, 0.3)), attempts=rng.choice((None, None, 1, 2))) for name in names
    )
    return rules.Route("places", tries=tries, fall_back_on=rng.choice((CAUSES, CAUSES | {"error_event", "4xx"})))


def _retry(rng: Random, *, shadow: bool = False) -> rules.Retry:
    return rules.Retry(
        shadow=shadow,
        attempts=rng.choice((1, 2, 3, 4)),
        delay_s=rng.choice((0.0, 0.1, 1.0)),
        backoff=rng.choice(("constant", "linear", "exponential")),
        max_delay_s=rng.choice((0.5, 30.0)),
        jitter=rng.choice(("full", "none")),
        retry_on=rng.choice((CAUSES, CAUSES | {"error_event"})),
        within_s=rng.choice((1.0, 10.0, 120.0)),
        ratio=rng.choice((0.0, 0.2, 1.0)),
    )


def _timeout(rng: Random) -> rules.Timeout:
    return rules.Timeout(
        connect_s=rng.choice((0.5, 2.0)),
        first_byte_s=rng.choice((0.15, 1.0, 4.0)),
        idle_s=rng.choice((0.5, 3.0)),
        total_s=rng.choice((1.0, 8.0, 60.0)),
    )


def _breaker(rng: Random) -> rules.Breaker:
    return rules.Breaker(
        shadow=rng.random() < 0.1, window_s=10.0, min_requests=rng.choice((1, 2, 4)), rest_s=rng.choice((0.3, 2.0))
    )


def _hedge(rng: Random) -> rules.Hedge:
    after_s = rng.choice((0.0, 0.1, 0.5))
    return rules.Hedge("tail", after_s, 95, rng.choice(("one", "two", "three")), ratio=rng.choice((0.1, 1.0)))


# -- a client ---------------------------------------------------------------------------------------------------------


class Ear:
    """A client at the end of its connection, in place of a ``Downstream``: it keeps all that it is told, and when."""

    upload = None
    killed = False

    def __init__(self, world: "World", slow_s: float) -> None:
        self.world, self.slow_s = world, slow_s
        self.gone = self.started = self.drain = False
        self.task: asyncio.Task[None] | None = None
        self.heads: list[tuple[int, dict[str, str]]] = []
        """(status, headers)"""
        self.body = bytearray()
        self.ends: list[str] = []
        self.tick: int | None = None
        """When it heard its first word, among all that happened."""
        self.left_s: float | None = None
        self.finished = 0

    async def head(self, status: int, fields: Fields, reason: bytes) -> None:
        self.started = True
        self._listen()
        self.heads.append((status, joined(fields)))

    async def data(self, chunk: bytes) -> None:
        self._listen()
        self.body += chunk
        if self.slow_s:
            await asyncio.sleep(self.slow_s)

    async def end(self) -> None:
        self._listen()
        self.ends.append("end")

    async def whole(self, status: int, fields: Fields, reason: bytes, body: bytes) -> None:
        await self.head(status, fields, reason)
        self.body += body
        self.ends.append("end")

    async def cut(self, message: str) -> None:
        self._listen()
        self.ends.append("cut")

    def finish(self) -> None:
        self.finished += 1

    def _listen(self) -> None:
        if self.gone:
            raise Gone
        if self.tick is None:
            self.tick = self.world.tick()

    def leave(self) -> None:
        """Go, as ``Downstream.client_left`` does."""
        self.gone, self.left_s = True, self.world.loop.time()
        if self.task and not (self.drain and self.started):
            self.task.cancel("client left")


@dataclass(slots=True, eq=False)
class Guest:
    """A visit, and what came of it."""

    n: int
    visit: Visit
    x: Exchange
    ear: Ear
    task: asyncio.Task[None]
    calls: list[Call] = field(default_factory=list)
    """Made for it, in order."""
    stopped: bool = False
    """The gateway ended it."""

    def __str__(self) -> str:
        return f"client {self.n} ({self.visit})"

    @property
    def stayed(self) -> bool:
        return not self.ear.gone


# -- the world --------------------------------------------------------------------------------------------------------


class World:
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.loop = VirtualLoop()
        self.ticks = 0
        self.wire = Wire(self.loop, Random(schedule.seed), schedule.moods, self.tick)
        self.chain = Chain(schedule.policy, Path("nowhere/traces.db"), b"secret", self.loop)
        self.chain.upstream.caller.pool = cast(Pool, self.wire)
        self.guests: list[Guest] = []
        self.left: list[str] = []
        """What was still there when everybody had gone home."""
        self.late: list[tuple[str, Guest]] = []
        """Came when all was well again, each to a place that had been ill."""
        self.logged: list[str] = []
        """What the gateway, or the loop, logged as an error."""

    @property
    def all_guests(self) -> list[Guest]:
        return self.guests + [guest for _, guest in self.late]

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def run(self) -> "World":
        """Let it all happen; raises ``Stuck`` where somebody would wait for ever."""
        chance = random.getstate()
        random.seed(self.schedule.seed)  # what the rooms draw from
        ear = _Log(self.logged)
        logging.getLogger("mitmgate").addHandler(ear)
        self.loop.set_exception_handler(lambda _, what: self.logged.append(str(what)))
        try:
            self.loop.run_until_complete(self._happen())
        finally:
            logging.getLogger("mitmgate").removeHandler(ear)
            random.setstate(chance)
            self.loop.close()
        self._sort_calls()
        return self

    async def _happen(self) -> None:
        stops_s = self.schedule.stops_s
        for visit in sorted(self.schedule.visits, key=lambda one: one.at_s):
            if visit.at_s > stops_s:
                break
            await self._until(visit.at_s)
            self.guests.append(self._welcome(visit))
        if stops_s < EVER:
            await self._until(stops_s)
            self._stop()
        await self._over(self.guests)
        self._look_around()
        await self._call_again()

    def _sort_calls(self) -> None:
        askers = {id(attempt): guest for guest in self.all_guests for attempt in guest.x.attempts}
        for call in self.wire.calls:
            askers[id(call.attempt)].calls.append(call)

    async def _until(self, at_s: float) -> None:
        if (ahead_s := at_s - self.loop.time()) > 0:
            await asyncio.sleep(ahead_s)

    def _welcome(self, visit: Visit) -> Guest:
        fields: Fields = [
            (b"host", OWN.encode()),
            (b"authorization", visit.credential),
            (b"content-type", b"application/json"),
            *visit.fields,
        ]
        now = self.loop.time()
        path = "/v1/chat/completions"
        x = Exchange("POST", "https", OWN, 443, path, fields, joined(fields), now, STARTED_WALL + now, provider=OPENAI)
        stream = b',"stream":true' if visit.stream else b""
        x.body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"prompt %d"}]%b}' % (visit.prompt, stream)
        ear = Ear(self, visit.slow_s)
        self.chain.head(x)
        ear.task = self.loop.create_task(self.chain.carry(x, cast(Downstream, ear)))
        if visit.leaves_s is not None:
            leaving = self.loop.call_later(visit.leaves_s, ear.leave)
            ear.task.add_done_callback(lambda _: leaving.cancel())
        return Guest(len(self.all_guests), visit, x, ear, ear.task)

    def _stop(self) -> None:
        for guest in self.guests:
            if not guest.task.done():
                guest.stopped = True
                guest.task.cancel("the gateway stops")

    async def _over(self, guests: Sequence[Guest]) -> None:
        if guests:
            await asyncio.wait([guest.task for guest in guests])

    def _look_around(self) -> None:
        """Note what should not be there any more."""
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        self.left += [f"a task is left: {task!r}" for task in tasks]
        self.left += [f"a timer is left: {timer!r}" for timer in self.loop.timers]

    async def _call_again(self) -> None:
        """Let every place rest and get well; then each that was ill takes calls again."""
        ill = [name for name, state in self.chain.state.breakers.states().items() if state != "closed"]
        self.wire.is_well = True
        await asyncio.sleep(WELL_AGAIN_S)
        for name in ill:
            permit = self.chain.state.breakers.ask(name, self.schedule.policy.breaker[0])
            if isinstance(permit, Resting):
                self.left.append(f"{name} still rests")
                continue
            permit.released()
            if name in TARGETS:
                prompt = LATE_PROMPT + len(self.late)
                guest = self._welcome(Visit(0.0, prompt, True, 0, ((b"cf-aig-fallback", name.encode()),)))
                self.late.append((name, guest))
                await self._over([guest])


class _Log(logging.Handler):
    """Keeps what a room logs when it breaks."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.lines = lines
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
