"""The table of contents: the rooms, in the order a request meets them, and the way of one exchange through them.

    door        where requests come in: by the proxy, or by a base URL
      tunnels   before that: which connections are intercepted, tunnelled, refused
    identify    provider, operation, model; tenant, user, session, tags; the cf-aig-* headers
    usage       ask OpenAI-style streams for their token counts
    upstream    the attempts at the provider, and the answer on its way to the client
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
from typing import TYPE_CHECKING, Any

from mitmgate.account import Account
from mitmgate.clock import Clock, SystemClock
from mitmgate.door import Door
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.home import secret_of
from mitmgate.identify import Identify
from mitmgate.layer import Downstream, Gone
from mitmgate.metrics import Metrics
from mitmgate.observe import Observed
from mitmgate.policy import Policy, default, load
from mitmgate.pricing import PRICES
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
        usage = Usage(policy, clock)
        self.identify = Identify(policy, secret)
        self.upstream = Upstream(policy, clock, usage)
        self.rooms: list[object] = [
            self.identify,
            usage,
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
            "mitmgate_rows_written_total": lambda: self.writer.stats.rows_written,
            "mitmgate_rows_dropped_total": lambda: self.writer.stats.rows_dropped,
            "mitmgate_payloads_dropped_total": lambda: self.writer.stats.payloads_dropped,
        }

    def open(self) -> None:
        """Start what needs a running loop or a thread, once; raise ``StartError``."""
        if self.is_open:
            return
        self.is_open = True
        self.writer.start()
        self.upstream.open()
        asyncio.get_running_loop().run_in_executor(None, PRICES.warm)  # or the first rows would wait for the imports

    async def close(self) -> None:
        await self.upstream.close()
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
        try:
            await self._admit(x)
            await self.upstream.answer(x, down)
        except Gone:
            x.how = x.how or "client_left"
        except asyncio.CancelledError:
            if not down.gone and not down.killed:
                await self._stop(x, down)
            x.how = x.how or "client_left"
        except Exception:
            log.exception("chain: %s: the gateway failed", x.id)
            await self._apologise(x, down)
        finally:
            self.live.discard(down)
            down.finish()
            self.settle(x)

    async def _admit(self, x: Exchange) -> None:
        for step in self.admits:
            if x.refusal:
                return
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

    async def _apologise(self, x: Exchange, down: Downstream) -> None:
        await self._end(x, down, Refusal(500, "internal", "mitmgate failed; the gateway's log says how"))

    async def _stop(self, x: Exchange, down: Downstream) -> None:
        """The gateway stops, and this exchange has had its grace."""
        await self._end(x, down, Refusal(503, "overloaded", "mitmgate is stopping; try again", retry_after_s=1))

    async def _end(self, x: Exchange, down: Downstream, refusal: Refusal) -> None:
        """Refuse what has not begun, break off what has."""
        try:
            if down.started:
                x.how = "cut"
                await down.cut(refusal.message)
            else:
                x.how = "failed"
                x.refuse(refusal)
                await self.upstream.refuse(x, down, refusal, "failed")
        except Exception:
            log.debug("chain: %s: nobody could be told", x.id, exc_info=True)


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
