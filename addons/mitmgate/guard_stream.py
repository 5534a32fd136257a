"""Guards on answers: streams and whole bodies on their way to whoever wants them.

Runs between ``upstream`` and the tape or the client, and between a tape or a kept answer and the client, where a rule
with ``in: response`` fits the request. ``guard_filter`` is how it stands between, ``guard_texts`` what it looks at.

Promises: what a rule blocks or redacts goes nowhere behind here: not to the client, nor into a tape, the cache, the
row. An answer that cannot be looked at, for its coding, for its size or for a fault in here, does not go on under such
rules. Under rules that only flag every byte goes on as it came, whatever happens to the look.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mitmgate import guard_body, guard_texts
from mitmgate.answers import Head
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, How
from mitmgate.guard_filter import Filter, Stopped
from mitmgate.guard_find import Channel, Finders, Found, placeholder
from mitmgate.guard_frames import Framing, Unreadable
from mitmgate.guard_lines import BEGIN, END
from mitmgate.guard_restore import Restore
from mitmgate.guard_texts import Stream, Texts, repeats
from mitmgate.sink import Sink
from mitmgate.stream import KEPT_BYTES

log = logging.getLogger("mitmgate.guard")


class Room(Protocol):
    """What the room ``guard`` knows and decides; *rule* is an index into the policy's rules."""

    finders: Finders

    def hides(self, rule: int) -> bool:
        """True where nobody may see what *rule* finds: it blocks or redacts."""

    def blocks(self, rule: int) -> bool:
        """True where *rule* ends an answer in which it finds something."""

    def forbids(self, rule: int, tool: str) -> bool:
        """True where *rule* has a list of tools, and *tool* is not on it."""

    def refusal(self, x: Exchange, rule: int, kinds: Sequence[str]) -> Refusal:
        """Return the 403 for an answer in which *rule* found *kinds*."""

    def unreadable(self, x: Exchange, rule: int, why: str) -> Refusal:
        """Return the 403 for an answer that *rule* has to look at and cannot: *why* says "its coding is unknown"."""

    def note(self, x: Exchange, found: Mapping[int, Mapping[str, int]]) -> None:
        """Let row and header say what was found in the answer so far: rule -> kind -> how often."""


def watch(x: Exchange, sink: Sink, room: Room, active: Sequence[int]) -> Sink:
    """Return where the answer of *x* is to be written so that *sink* gets of it what the rules *active* let through."""
    if not active:
        return sink
    return Watch(x, sink, room, active) if any(map(room.hides, active)) else Glance(x, sink, room, active)


def restored(x: Exchange, client: Sink) -> Sink:
    """Return where to write an answer so that *client* gets it with the values that placeholders stand for."""
    return Restore(x, client) if x.placeholders else client


class Findings:
    """What was found in one answer, counted once however often an API says it."""

    def __init__(self) -> None:
        self.by_source: dict[str, Counter[tuple[int, str]]] = {}
        self.are_new = False
        """Something was found since ``counted`` was asked."""

    def add(self, source: str, rule: int, kind: str) -> None:
        self.by_source.setdefault(source, Counter())[rule, kind] += 1
        self.are_new = True

    def counted(self) -> dict[int, dict[str, int]]:
        """Return rule -> kind -> how often: what several sources tell is the same."""
        self.are_new = False
        counted: dict[int, dict[str, int]] = {}
        for counter in self.by_source.values():
            for (rule, kind), count in counter.items():
                kinds = counted.setdefault(rule, {})
                kinds[kind] = max(kinds.get(kind, 0), count)
        return counted


class Blocked(Stopped):
    """A rule ends this answer."""

    def __init__(self, rule: int) -> None:
        super().__init__(f"rule {rule}")
        self.rule = rule


class Looking(Filter):
    """A filter that looks for what the rules *active*, which fit, find in an answer."""

    def __init__(self, x: Exchange, sink: Sink, room: Room, active: Sequence[int]) -> None:
        super().__init__(x, sink)
        self.room, self.active = room, tuple(active)
        self.findings = Findings()

    def body(self, data: bytes) -> bytes:
        texts = Texts(self._channel, self._tool)
        try:
            look = guard_body.look(data, self.content_type, self.room.finders, self.active)
        except guard_body.Unreadable:  # a login page under the name of JSON is a text as any other
            return texts.body(data)
        for place in look.places:
            self._found("", place.found)
        texts.tell(guard_texts.tools_in(data))
        made = look.without(self._hides, _word)
        return data if made is look.body else guard_texts.without_odds(made)

    def _hides(self, found: Found) -> bool:
        return self.room.hides(found.rule)

    def streamed(self, framing: Framing) -> Stream:
        return Stream(framing, self._channel, self._tool, repeats=repeats(self.x.path, self.x.json))

    def _channel(self, is_json: bool, source: str) -> Channel:
        replaced = _marked if is_json else placeholder
        return Channel(self.room.finders, self.active, replaced, lambda found: self._found(source, found))

    def _found(self, source: str, found: Found) -> None:
        self.findings.add(source, found.rule, found.kind)
        if self.room.blocks(found.rule):
            raise Blocked(found.rule)

    def _tool(self, tool: str) -> None:
        for rule in self.active:
            if self.room.forbids(rule, tool):
                self.findings.add("", rule, TOOL)
                if self.room.blocks(rule):
                    raise Blocked(rule)

    def note(self, out: bytes) -> None:
        if self.findings.are_new:
            self.room.note(self.x, self.findings.counted())
        answer = self.x.answer
        if self.x.guarded and self.x.keep_payload and out:
            space = KEPT_BYTES - len(answer.kept)
            answer.kept += out[:space]
            answer.kept_whole = answer.kept_whole and len(out) <= space


TOOL = "tool"
"""The kind of a finding that is a tool's name."""


class Watch(Looking):
    """Lets through what may be seen: some of the rules that fit block or redact."""

    def refusal(self, fault: Exception) -> Refusal:
        counted = self.findings.counted()
        if counted:
            self.room.note(self.x, counted)
        if isinstance(fault, Blocked):
            return self.room.refusal(self.x, fault.rule, tuple(counted.get(fault.rule, ())))
        rule = next((rule for rule in self.active if self.room.hides(rule)), self.active[0])
        return self.room.unreadable(self.x, rule, _why(fault))


def _why(fault: Exception) -> str:
    if isinstance(fault, Unreadable):
        return str(fault)
    if isinstance(fault, TimeoutError):
        return "a pattern takes too long for it"
    return "mitmgate failed at it; the gateway's log says how"


class Glance(Looking):
    """Lets everything through as it came: the rules that fit only tell. A fault costs no more than what they tell."""

    blind = False
    """It cannot be looked at, or no further."""

    async def head(self, head: Head) -> None:
        self.content_type = head.headers.get("content-type", "")
        self.blind = not head.readable
        await self.sink.head(head)

    async def data(self, piece: bytes, plain: bytes) -> None:
        self._look(plain, self._take)
        self.note(plain)
        await self.sink.data(piece, plain)

    async def end(self) -> None:
        self._look(b"", lambda _: self._rest())
        self.note(b"")
        await self.sink.end()

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        self.content_type = head.headers.get("content-type", "")
        self.blind = not head.readable
        self._look(plain, lambda plain: self._take(plain) + self._rest())
        self.note(plain)
        await self.sink.whole(head, body, plain)

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        await self.sink.cut(message, how, last)

    def _look(self, plain: bytes, look: Callable[[bytes], bytes]) -> None:
        if self.blind:
            return
        try:
            look(plain)
        except Exception as fault:
            self.blind = True
            level = logging.INFO if isinstance(fault, Unreadable) else logging.ERROR
            log.log(level, "guard: %s: no further look at its answer: %s", self.x.id, _why(fault), exc_info=fault)


def _word(place: guard_body.Place) -> str:
    return placeholder(place.found)


def _marked(found: Found, text: str) -> str:
    return BEGIN + placeholder(found, text) + END
