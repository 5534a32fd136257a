"""The table of contents: the rooms, in the order a request meets them, and the way of one exchange through them.

    door        where requests come in: by the proxy, or by a base URL
      tunnels   before that: which connections are intercepted, tunnelled, refused
    entry       Cloudflare's entries that name the provider in the body: /compat, the universal endpoint
    identify    provider, operation, model; tenant, user, session, tags; the cf-aig-* headers
    auth        the gateway's own key: who may come in, and what for
    guard       what may leave: blocked, redacted, flagged
    limit       so many requests in so much time, so many at once
    cache       answered before, or being answered right now: nothing is asked of a provider
      tape        one answer, written once and heard by all who asked the same
    budget      tokens and money, reserved from an estimate; near the end of a budget a cheaper model
      cache       once more, for what that one has answered
    shape       long prompts cut, outputs bounded, prefixes marked for the provider's cache
    route       the places that may answer, in order
      rewrite     the request as each of them gets it, and which keys stay behind
    upstream    from place to place, until there is an answer; and that answer on its way to whoever wants it
      retry       wait, go on to the next place, or give up
      attempts    one attempt, or a second beside a slow one
        breaker       which places rest
        hedge         when the second attempt starts
        usage         ask OpenAI-style streams for their token counts
        provider_keys the key that goes with the attempt, where the gateway holds it
        arrival       the attempt itself, up to where its answer can be judged
          stream        beside the answer: usage, finish reasons, first content
      guard       what may come back
    account     how it ended, what it used
    spend       limits and budgets settle
    metrics     counters for /metrics
    trace       rows and payloads, by way of the writer's thread
    web         inside mitmweb alone: comment, mark and readable content of each flow
    alert       beside all this: looks at the rows every few seconds and tells what goes wrong

A room is an object with any of ``head`` (the request's head is here), ``admit`` (the whole request is here; may
refuse or change it) and ``settle`` (it is over; runs exactly once). A room that breaks in ``admit`` refuses the
request: it never lets through what it was meant to stop. A room that breaks in ``settle`` costs its own part of the
books, nothing else.

Rooms are made for one policy. When the file is edited they are made anew, and whoever is on its way goes on through
the old ones; what must not be forgotten lies in ``State``.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import random
from typing import TYPE_CHECKING, Any

from mitmgate.account import Account
from mitmgate.auth import Auth
from mitmgate.budget import Budget
from mitmgate.cache import Cache, Cheaper
from mitmgate.clock import Clock, SystemClock
from mitmgate.door import Door
from mitmgate.door_paths import hosts_of
from mitmgate.entry import Entry
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.guard import Guard
from mitmgate.home import secret_of
from mitmgate.identify import Identify
from mitmgate.inner import Inner
from mitmgate.layer import Downstream, Gone
from mitmgate.limit import Limit
from mitmgate.policy import Policy, default, load
from mitmgate.provider_keys import Keys
from mitmgate.reload import Reload
from mitmgate.route import Route
from mitmgate.shape import Shape
from mitmgate.sink import FAILED, Client, Sink, give_up
from mitmgate.spend import Spend
from mitmgate.state import State
from mitmgate.trace import Trace
from mitmgate.upstream import Upstream
from mitmgate.usage import Usage

if TYPE_CHECKING:
    from mitmproxy.addons.view import View

    from mitmgate.web import Web

log = logging.getLogger("mitmgate.chain")


class Rooms:
    """The rooms of one policy, wired together."""

    def __init__(self, policy: Policy, state: State) -> None:
        clock = state.clock
        self.policy = policy
        self.hosts = hosts_of(policy)
        self.cache = Cache(policy, state.answers, clock, state.tapes)
        self.inner = Inner(policy, self.hosts, clock, self._carry_inner)
        self.auth = Auth(policy, state.keys, state.secret, clock)
        self.guard = Guard(policy, self.inner.ask, clock)
        limit = Limit(policy, state.ledger)
        usage = Usage(policy, clock, state.usage_refused)
        keys = Keys(policy, state.provider_keys, clock)
        self.upstream = Upstream(policy, clock, usage, state.retries, state.breakers, state.hedges, keys)
        rooms: list[object] = [
            Entry(policy, self.hosts),
            identify := Identify(policy, state.secret),
            self.auth,
            self.guard,
            limit,
            self.cache,
            Budget(policy, self.hosts, state.ledger, limit, state.lengths),
            Cheaper(self.cache),
            Shape(policy, self.inner.ask, state.summaries),
            route := Route(policy, self.hosts, state.places, state.windows, random),
            self.upstream,
            Account(clock),
            Spend(policy, state.ledger, state.lengths),
            state.metrics,
            Trace(policy, state.writer),
        ]
        self.heads: list[Callable[[Exchange], None]] = _steps(rooms, "head")
        self.admits: list[Callable[[Exchange], Awaitable[None] | None]] = _steps(rooms, "admit")
        self.settles: list[Callable[[Exchange], None]] = _steps(rooms, "settle")
        self.inner_steps = identify, route
        self.guests = 0
        """Exchanges on their way through."""
        self.left: Callable[[], None] | None = None
        """Called when the last of them is gone, once there are newer rooms."""

    async def answer(self, x: Exchange, sink: Sink) -> None:
        """Have *x* answered; *sink* gets of it what the guards let through."""
        await self.upstream.answer(x, self.guard.watch(x, sink))

    async def _carry_inner(self, x: Exchange, sink: Sink) -> None:
        """Carry a call of the gateway's own; its answer goes to *sink*."""
        identify, route = self.inner_steps
        try:
            identify.head(x)
            identify.admit(x)
            route.admit(x)
            if x.refusal:
                await sink.refuse(x.refusal, "refused")
            else:
                await self.upstream.answer(x, sink)
        except Exception:
            log.exception("chain: %s: the gateway's own call failed", x.id)
            x.how = "failed"
        finally:
            x.how = x.how or "client_left"
            _take_last(self.settles, x)


class Chain:
    """All that one gateway process is made of, and the way of an exchange through it."""

    def __init__(self, policy: Policy, database: Path, secret: bytes, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.state = State(policy, database, secret, self.clock)
        self.rooms = Rooms(policy, self.state)
        self.is_open = False
        self.live: set[Downstream] = set()
        self.door = Door(self, policy, self.clock)
        self.reload = Reload(policy, self.take, self.state.writer, self.state.metrics, self.clock)
        self.before: list[Callable[[Exchange], None]] = []
        self.after: list[Callable[[Exchange], None]] = []
        """First and last steps of every exchange, whatever its policy."""
        self.web: Web | None = None
        """Only inside mitmweb."""
        self.state.metrics.gauges["mitmgate_live_exchanges"] = lambda: len(self.live)

    # -- what belongs to the policy that holds now

    @property
    def policy(self) -> Policy:
        return self.rooms.policy

    @property
    def cache(self) -> Cache:
        return self.rooms.cache

    @property
    def upstream(self) -> Upstream:
        return self.rooms.upstream

    # -- life

    def open(self) -> None:
        """Start what needs a running loop or a thread, once; raise ``StartError``."""
        if self.is_open:
            return
        self.is_open = True
        self.state.open(self.policy)
        self.upstream.open(self.state.pool_for(self.policy))
        self.reload.start()

    async def close(self) -> None:
        self.reload.stop()
        await self.upstream.close()
        await self.state.close()

    def take(self, policy: Policy) -> None:
        """Let *policy* hold for every request that comes from now on. Raises ``StartError`` where it cannot."""
        self.door.check(policy)
        pool = self.state.pool_for(policy)
        self.state.take(policy, pool)
        rooms = Rooms(policy, self.state)
        rooms.upstream.open(pool)
        old, self.rooms = self.rooms, rooms
        self.door.take(policy)
        if old.upstream.caller.pool is not rooms.upstream.caller.pool:
            self._retire(old)

    def _retire(self, old: Rooms) -> None:
        """Close the connections of *old* when nobody uses them any more."""
        loop = asyncio.get_running_loop()

        def close() -> None:
            self.closing = loop.create_task(old.upstream.close())

        if old.guests:
            old.left = close
        else:
            close()

    def join_web(self, view: "View") -> "Web":
        """Add the room that makes calls worth looking at in mitmproxy's *view*, and return it."""
        from mitmgate.web import Web

        self.web = Web(self, view, self.clock)
        self.web.open()
        self.before.append(self.web.admit)
        self.after.append(self.web.settle)
        return self.web

    # -- the way of one exchange

    def head(self, x: Exchange) -> None:
        for step in self._rooms_of(x).heads:
            try:
                step(x)
            except Exception:
                self._broke(x, step)

    def _rooms_of(self, x: Exchange) -> Rooms:
        if x.rooms is None:
            x.rooms = self.rooms
        rooms: Rooms = x.rooms
        return rooms

    async def carry(self, x: Exchange, down: Downstream) -> None:
        """Carry *x* from its complete request to its row."""
        self.live.add(down)
        rooms = self._rooms_of(x)
        rooms.guests += 1
        client = Client(x, down)
        try:
            await self._admit(x, rooms)
            await self._answer(x, rooms, client)
            x.how = x.how or "client_left"  # read to its end for the bill, and heard by nobody
        except Gone:
            x.how = x.how or "client_left"
        except asyncio.CancelledError:
            if not down.gone and not down.killed:
                await self._stop(client)
            x.how = x.how or "client_left"
        except Exception:
            log.exception("chain: %s: the gateway failed", x.id)
            await self._end(client, FAILED)
        finally:
            self.live.discard(down)
            down.finish()
            rooms.cache.abandon(x)
            self.settle(x)
            rooms.guests -= 1
            if rooms.left and not rooms.guests:
                rooms.left()

    async def _answer(self, x: Exchange, rooms: Rooms, client: Client) -> None:
        heard = rooms.guard.restored(x, client)
        if x.tape:
            await rooms.cache.lead(x, heard, rooms.answer)
        elif x.refusal:
            await client.refuse(x.refusal, "refused")
        elif x.replay:
            await rooms.cache.replay(x, rooms.guard.watch(x, heard))
        else:
            await rooms.answer(x, heard)

    async def _admit(self, x: Exchange, rooms: Rooms) -> None:
        for step in (*self.before, *rooms.admits):
            if x.refusal or x.replay:
                break
            try:
                if (more := step(x)) is not None:
                    self._mask(x)
                    await more
            except Exception:
                self._broke(x, step)
        if x.refusal and x.tape:  # nobody may follow where a later room said no
            rooms.cache.abandon(x)
            x.tape = None
        self._mask(x)
        if x.door == "replay":
            x.keep_row = False  # a person looks at a call again: nobody asked for it, and nobody pays for it twice

    def _mask(self, x: Exchange) -> None:
        """Let mitmweb's page show of the request what a guard lets people see: now, and before a room waits."""
        if self.web and x.shows:
            self.web.mask(x)

    def settle(self, x: Exchange) -> None:
        """Close the books of *x*: once, whatever became of it."""
        if x.dialect is None:
            if x.provider:
                self.state.metrics.count("mitmgate_passed_total", provider=x.provider.slug)
            return
        _take_last(self._rooms_of(x).settles, x)
        _take_last(self.after, x)

    def _broke(self, x: Exchange, step: Callable[[Exchange], object]) -> None:
        log.exception("%s: %s: the room broke, so the request is refused", _room(step), x.id)
        x.refuse(Refusal(500, "internal", f"mitmgate's room {_room(step)} broke; the gateway's log says how"))

    async def _stop(self, client: Client) -> None:
        """The gateway stops, and this exchange has had its grace."""
        await self._end(client, Refusal(503, "overloaded", "mitmgate is stopping; try again", retry_after_s=1))

    async def _end(self, client: Client, refusal: Refusal) -> None:
        try:
            await give_up(client, refusal)
        except Exception:
            log.debug("chain: %s: nobody could be told", client.x.id, exc_info=True)


def _take_last(steps: list[Callable[[Exchange], None]], x: Exchange) -> None:
    """Take every one of *steps*; one that breaks costs its own part."""
    for step in steps:
        try:
            step(x)
        except Exception:
            log.exception("%s: %s: its part of the row is lost", _room(step), x.id)


def _steps(rooms: list[object], name: str) -> list[Any]:
    return [getattr(room, name) for room in rooms if hasattr(room, name)]


def _room(step: Callable[[Exchange], object]) -> str:
    return str(getattr(getattr(step, "__self__", None), "name", step))


def from_environment() -> object:
    """Return the gateway as one addon for ``mitmdump -s`` and ``mitmweb -s``.

    It is set up by the variables of ``mitmgate serve``: ``MITMGATE_POLICY``, ``MITMGATE_HOME``, ``MITMGATE_DB``. The
    doors are mitmproxy's: the base-URL door is there with ``--mode regular@8080 --mode reverse:http://base-url.invalid@8081``.
    """
    home = Path(os.environ.get("MITMGATE_HOME") or Path.home() / ".mitmgate").expanduser().absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = os.environ.get("MITMGATE_POLICY")
    policy = load(Path(path), os.environ, path) if path else default()
    chain = Chain(policy, Path(os.environ.get("MITMGATE_DB") or home / "traces.db"), secret_of(home))
    chain.reload.watch(path)
    return chain.door
