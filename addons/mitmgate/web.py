"""The same gateway inside mitmweb: calls to look at while they stream.

The room ``Web`` is there only where mitmproxy has a view (``mitmgate web``, ``mitmweb -s``). It runs beside the others,
first when a request is complete and last when its books are closed, and looks around twice a second in between:

- Each call gets a comment and a mark (``web_rules``). The cost follows when the row is written. Both are left alone
  once a person has changed them.
- mitmproxy keeps no body of a streamed answer, so what has come so far is put beside its flow for the views
  (``views``): all that the provider sent, also the usage chunk that the gateway alone asked for. Bodies that no row may
  keep are kept here no longer than the call lasts.
- Finished flows go by count, age and size, oldest first: memory stays flat. That holds for flows loaded from a file as
  well. A live flow is never removed, since that would kill it.
- What mitmweb's kill button cannot do by itself is done: end a call whose provider is silent, wake a flow that was
  killed while it was intercepted.
- Credentials are masked (``web_masks``) as soon as the gateway has taken the request over, so neither the page nor a
  saved file shows them; those of calls that mitmproxy carries itself (observed hosts, WebSockets) when they are over. A
  replay sends the real ones. An intercepted request still has them: it is there to be edited.

Promise: nothing here changes what a client or a provider gets, or holds it up: the answer's bytes went past mitmproxy
before they are put beside the flow.
"""

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from mitmproxy import flow as mflow
from mitmproxy import http
from mitmproxy.addons.view import View
from mitmproxy.net import encoding

from mitmgate import views
from mitmgate.clock import Clock
from mitmgate.exchange import Exchange
from mitmgate.web_masks import Masks
from mitmgate.web_rules import MARKS, STREAM, Finished, Limits, Told, comment, mark, size_of, surplus, told

if TYPE_CHECKING:
    from mitmgate.chain import Chain
    from mitmgate.store.rows import Row

log = logging.getLogger("mitmgate.web")

EVERY_S = 0.5
"""Between two looks around: how old a running stream may be on the page."""
TAGS = "cf-aig-metadata"
"""The header in which an app may name people."""
COMMENT = "mitmgate.comment"
"""Key of a flow's metadata: the comment as we wrote it last."""


class Web:
    name = "mitmgate.web"

    def __init__(self, chain: "Chain", view: View, clock: Clock, limits: Limits | None = None) -> None:
        self.chain = chain
        self.view = view
        self.clock = clock
        self.limits = limits or Limits()
        self.masks = Masks()
        self.running: dict[str, Exchange] = {}
        """Flow id -> call that is under way."""
        self.shown: dict[str, int] = {}
        """Flow id -> bytes of the answer that the page has."""
        self.unpriced: dict[str, Told] = {}
        """Row id -> comment that waits for its cost; the oldest is given up where rows cannot be written."""
        self.bodiless: set[str] = set()
        """Ids of flows whose bodies nobody wants kept, not even here."""
        self.ended: dict[str, float] = {}
        """Flow id -> monotonic seconds at which it was first seen to be over; oldest first."""
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Begin to listen for written rows, and make the content views known."""
        views.register(self.chain.rooms.hosts)
        self.chain.state.writer.listen(self._written)

    # -- the way of one call

    def replayed(self, flow: http.HTTPFlow) -> None:
        """Somebody replays *flow*: it needs its credentials again."""
        self.masks.give_back(flow)

    def admit(self, x: Exchange) -> None:
        """The gateway has its own copy of the request now."""
        self.masks.hide(x.flow)
        if x.dialect:
            self.running[x.flow.id] = x

    def mask(self, x: Exchange) -> None:
        """Show of its request what a guard lets people see."""
        flow: http.HTTPFlow = x.flow
        kept = flow._backup["request"] if flow._backup else {}  # type: ignore[index]
        if x.masked is not None:
            flow.request.data.content = kept["content"] = coded(x.masked, x.headers.get("content-encoding"))
        if tags := flow.request.headers.get(TAGS):
            flow.request.headers[TAGS] = x.shown(tags)
            kept["headers"] = flow.request.headers.fields

    def settle(self, x: Exchange) -> None:
        """Say how it ended."""
        flow: http.HTTPFlow = x.flow
        self.running.pop(flow.id, None)
        self._put_answer(x)
        self.shown.pop(flow.id, None)
        self.masks.hide(flow)  # a call that was refused at its head has passed no room
        if not x.keep_payload:
            self._do_not_keep(flow)
        self._set_mark(flow, mark(x.terminal or "failed", x.status, x.streaming))
        self._set_comment(flow, comment(call := told(x)))
        if call.row_id:
            self._await_cost(call.row_id, call)
        self.view.update([flow])

    def _do_not_keep(self, flow: http.HTTPFlow) -> None:
        """Drop the bodies of *flow*: now, or once the client has them."""
        if flow.live:
            self.bodiless.add(flow.id)
        else:
            drop_bodies(flow)

    def _set_mark(self, flow: http.HTTPFlow, name: str) -> None:
        if flow.marked in ("", STREAM, *MARKS.values()):
            flow.marked = name

    def _set_comment(self, flow: http.HTTPFlow, text: str) -> None:
        if flow.comment in ("", flow.metadata.get(COMMENT)):
            flow.comment = flow.metadata[COMMENT] = text

    def _await_cost(self, row_id: str, call: Told) -> None:
        self.unpriced[row_id] = call
        if len(self.unpriced) > self.limits.count:
            del self.unpriced[next(iter(self.unpriced))]

    def _written(self, row: "Row") -> None:
        """A row was written; runs in the writer's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody looks any more
            self._loop.call_soon_threadsafe(self._price, row)

    def _price(self, row: "Row") -> None:
        call = self.unpriced.pop(str(row.get("id")), None)
        flow = self.view.get_by_id(call.flow_id) if call else None
        cost = row.get("cost_nanousd")
        if call and isinstance(flow, http.HTTPFlow) and isinstance(cost, int):
            self._set_comment(flow, comment(call, cost))
            self.view.update([flow])

    # -- streamed answers

    def _put_answer(self, x: Exchange) -> bool:
        """Put what came so far beside the flow, if mitmproxy keeps none of it; True where that is news."""
        flow: http.HTTPFlow = x.flow
        response = flow.response
        if response is None or not response.stream or not x.keep_payload:
            return False
        if self.shown.get(flow.id) == len(x.answer.kept):
            return False
        response.data.content = coded(bytes(x.answer.kept), response.headers.get("content-encoding"))
        flow.metadata[views.CUT] = not x.answer.kept_whole
        self.shown[flow.id] = len(x.answer.kept)
        return True

    def _show_running(self) -> None:
        for x in self.running.values():
            if self._put_answer(x):
                self._set_mark(x.flow, STREAM)
                self.view.update([x.flow])

    # -- every half second

    async def watch(self) -> None:
        """Look around for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except Exception:
                log.exception("web: a look at the flows failed; the next one comes")

    async def look(self) -> None:
        """Do what is due."""
        await self._kill_when_asked()
        self._show_running()
        self._close_finished()
        self._prune()

    async def _kill_when_asked(self) -> None:
        """Carry out a kill while the provider is silent; a flow that sends finds out by itself."""
        for down in list(self.chain.live):
            if down.killed and not down.gone:
                await down.kill()

    def _close_finished(self) -> None:
        """See which flows are over, and do what had to wait for that."""
        for flow in self.view.resolve("@all"):
            if flow.live:
                self.ended.pop(flow.id, None)  # it is being replayed
            elif flow.id not in self.ended:
                self.ended[flow.id] = self.clock.now()
                self._close(flow)

    def _close(self, flow: mflow.Flow) -> None:
        wake_if_killed(flow)
        if isinstance(flow, http.HTTPFlow):
            masked = self.masks.hide(flow) | self.masks.hide_cookies(flow)
            if flow.id in self.bodiless:
                drop_bodies(flow)
            if masked or flow.id in self.bodiless:
                self.view.update([flow])

    def _prune(self) -> None:
        flows = {flow.id: flow for flow in self.view.resolve("@all")}
        for gone in [id for id in self.ended if id not in flows]:  # removed on the page
            self._forget(gone)
        finished = [Finished(id, ended, size_of(flows[id])) for id, ended in self.ended.items()]
        for id in surplus(finished, self.clock.now(), self.limits):
            self.view.remove([flows[id]])
            self._forget(id)

    def _forget(self, flow_id: str) -> None:
        self.ended.pop(flow_id, None)
        self.bodiless.discard(flow_id)


def coded(content: bytes, coding: str | None) -> bytes:
    """Return *content* in the coding that its head names: mitmproxy will undo it before it shows it."""
    if not coding or not content:
        return content
    try:
        return encoding.encode(content, coding) or b""
    except (ValueError, TypeError):
        return content  # a coding that mitmproxy does not know: it then shows what it finds


def wake_if_killed(flow: mflow.Flow) -> None:
    """Let a flow go that was killed while it was intercepted.

    mitmproxy's ``kill`` (12.3) forgets to: it clears ``intercepted`` but sets no event, and the client waits for ever.
    """
    killed = flow.error and flow.error.msg == mflow.Error.KILLED_MESSAGE
    if killed and flow._resume_event is not None:
        flow._resume_event.set()


def drop_bodies(flow: http.HTTPFlow) -> None:
    """Keep what happened, not what was said."""
    flow.request.data.content = None
    if flow.response:
        flow.response.data.content = None
