"""The table of contents: the rooms, in the order a request meets them, and the way of one exchange through them.

    door        where requests come in: by the proxy, or by a base URL
      tunnels   before that: which connections are intercepted, tunnelled, refused
    entry       Cloudflare's entries that name the provider in the body: /compat, the universal endpoint
    identify    provider, operation, model; tenant, user, session, tags; the cf-aig-* headers
    cache       answered before, or being answered right now: nothing is asked of a provider
      tape        one answer, written once and heard by all who asked the same
    route       the places that may answer, in order
      rewrite     the request as each of them gets it, and which keys stay behind
    upstream    from place to place, until there is an answer; and that answer on its way to whoever wants it
      retry       wait, go on to the next place, or give up
      attempts    one attempt, or a second beside a slow one
        breaker     which places rest
        hedge       when the second attempt starts
        usage       ask OpenAI-style streams for their token counts
        arrival     the attempt itself, up to where its answer can be judged
          stream      beside the answer: usage, finish reasons, first content
    account     how it ended, what it used
    metrics     counters for /metrics
    trace       rows and payloads, by way of the writer's thread
    web         inside mitmweb alone: comment, mark and readable content of each flow

A room is an object with any of ``head`` (the request's head is here), ``admit`` (the whole request is here; may
refuse or change it) and ``settle`` (it is over; runs exactly once). A room that breaks in ``admit`` refuses the
request: it never lets through what it was meant to stop. A room that breaks in ``settle`` costs its own part of the
books, nothing else.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import random
from typing import TYPE_CHECKING, Any

from mitmgate.account import Account
from mitmgate.breaker import Breakers
from mitmgate.cache import Cache
from mitmgate.clock import Clock, SystemClock
from mitmgate.door import Door
from mitmgate.door_paths import hosts_of
from mitmgate.entry import Entry
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.hedge import Hedges
from mitmgate.home import secret_of
from mitmgate.identify import Identify
from mitmgate.layer import Downstream, Gone
from mitmgate.metrics import Metrics
from mitmgate.observe import Observed
from mitmgate.policy import Policy, default, load
from mitmgate.pricing import PRICES
from mitmgate.retry import Retries
from mitmgate.route import Route
from mitmgate.sink import FAILED, Client, give_up
from mitmgate.store.answers import AnswerStore
from mitmgate.store.writer import Writer
from mitmgate.trace import Trace
from mitmgate.upstream import Upstream
from mitmgate.usage import Usage

if TYPE_CHECKING:
    from mitmproxy.addons.view import View

    from mitmgate.web import Web

log = logging.getLogger("mitmgate.chain")


class Chain:
    """All rooms of one gateway, wired together."""

    def __init__(self, policy: Policy, database: Path, secret: bytes, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        self.policy = policy
        self.clock = clock
        self.metrics = Metrics()
        self.writer = Writer(database, clock, trace=policy.trace)
        hosts = hosts_of(policy)
        self.answers = AnswerStore(database.with_name("cache.db"), policy.cache_store.max_bytes, clock)
        self.cache = Cache(policy, self.answers, clock)
        self.breakers = Breakers(clock)
        self.upstream = Upstream(
            policy, clock, Usage(policy, clock), Retries(clock, random), self.breakers, Hedges(clock)
        )
        self.rooms: list[object] = [
            Entry(policy, hosts),
            Identify(policy, secret),
            self.cache,
            Route(policy, hosts, clock, random),
            self.upstream,
            Account(clock),
            self.metrics,
            Trace(policy, self.writer),
        ]
        self.observed = Observed(policy, self.metrics, self.writer, clock)
        self.heads: list[Callable[[Exchange], None]] = _steps(self.rooms, "head")
        self.admits: list[Callable[[Exchange], Awaitable[None] | None]] = _steps(self.rooms, "admit")
        self.settles: list[Callable[[Exchange], None]] = _steps(self.rooms, "settle")
        self.is_open = False
        self.live: set[Downstream] = set()
        self.door = Door(self, policy, clock)
        self.web: Web | None = None
        """Only inside mitmweb."""
        self.metrics.gauges |= {
            "mitmgate_live_exchanges": lambda: len(self.live),
            "mitmgate_cache_entries": lambda: self.answers.stats.entries,
            "mitmgate_cache_bytes": lambda: self.answers.stats.bytes,
            "mitmgate_cache_dropped_total": lambda: self.answers.stats.dropped,
            "mitmgate_rows_written_total": lambda: self.writer.stats.rows_written,
            "mitmgate_rows_dropped_total": lambda: self.writer.stats.rows_dropped,
            "mitmgate_payloads_dropped_total": lambda: self.writer.stats.payloads_dropped,
        }

        self.metrics.series["mitmgate_breaker_state"] = self._breaker_states

    def _breaker_states(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], int]:
        states = self.breakers.states()
        return {
            ("mitmgate_breaker_state", (("target", target),)): ("closed", "half_open", "open").index(state)
            for target, state in states.items()
        }

    def open(self) -> None:
        """Start what needs a running loop or a thread, once; raise ``StartError``."""
        if self.is_open:
            return
        self.is_open = True
        self.writer.start()
        self.answers.open()
        self.upstream.open()
        asyncio.get_running_loop().run_in_executor(None, PRICES.warm)  # or the first rows would wait for the imports

    async def close(self) -> None:
        await self.upstream.close()
        await asyncio.to_thread(self.answers.close)
        await asyncio.to_thread(self.writer.close, 5.0)

    def join_web(self, view: "View") -> "Web":
        """Add the room that makes calls worth looking at in mitmproxy's *view*, and return it."""
        from mitmgate.web import Web

        self.web = Web(self, view, self.clock)
        self.web.open()
        self.admits.insert(0, self.web.admit)
        self.settles.append(self.web.settle)
        return self.web

    # -- the way of one exchange

    def head(self, x: Exchange) -> None:
        for step in self.heads:
            try:
                step(x)
            except Exception:
                self._broke(x, step)

    async def carry(self, x: Exchange, down: Downstream) -> None:
        """Carry *x* from its complete request to its row."""
        self.live.add(down)
        client = Client(x, down)
        try:
            await self._admit(x)
            await self._answer(x, client)
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
            self.cache.abandon(x)
            self.settle(x)

    async def _answer(self, x: Exchange, client: Client) -> None:
        if x.tape:
            await self.cache.lead(x, client, self.upstream.answer)
        elif x.refusal:
            await client.refuse(x.refusal, "refused")
        elif x.replay:
            await self.cache.replay(x, client)
        else:
            await self.upstream.answer(x, client)

    async def _admit(self, x: Exchange) -> None:
        for step in self.admits:
            if x.refusal or x.replay:
                break
            try:
                if (more := step(x)) is not None:
                    await more
            except Exception:
                self._broke(x, step)
        if x.door == "replay":
            x.keep_row = False  # a person looks at a call again: nobody asked for it, and nobody pays for it twice

    def settle(self, x: Exchange) -> None:
        """Close the books of *x*: once, whatever became of it."""
        if x.dialect is None:
            if x.provider:
                self.metrics.count("mitmgate_passed_total", provider=x.provider.slug)
            return
        for step in self.settles:
            try:
                step(x)
            except Exception:
                log.exception("%s: %s: its part of the row is lost", _room(step), x.id)

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
    return Chain(policy, Path(os.environ.get("MITMGATE_DB") or home / "traces.db"), secret_of(home)).door
