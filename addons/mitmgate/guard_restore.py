"""Put back into an answer what placeholders stand for that a guard put into its request (policy: ``restore: true``).

Stands at the client itself, behind tape, cache and row, which keep the placeholders. Holds no more than the longest
placeholder, and only what may be the beginning of one.
"""

import re
from collections.abc import Mapping

from mitmgate.answers import Head
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.guard_filter import Filter
from mitmgate.guard_frames import Framing
from mitmgate.guard_lines import inside
from mitmgate.guard_texts import Stream, Texts, repeats
from mitmgate.sink import FAILED, Sink


class Restore(Filter):
    """Puts back into the answer of *x* what placeholders stand for that a guard put into its request."""

    def __init__(self, x: Exchange, sink: Sink) -> None:
        super().__init__(x, sink)
        self.values = {name: x.placeholders[name] for name in sorted(x.placeholders, key=len, reverse=True)}
        self.pattern = re.compile("|".join(map(re.escape, self.values)))
        self.passes = False
        """Nobody here can read it."""

    def body(self, data: bytes) -> bytes:
        return Texts(self._channel).body(data)

    def streamed(self, framing: Framing) -> Stream:
        return Stream(framing, self._channel, repeats=repeats(self.x.path, self.x.json))

    def _channel(self, is_json: bool, _source: str) -> "Putback":
        return Putback(self.values, self.pattern, is_json)

    def refusal(self, fault: Exception) -> Refusal:
        return FAILED

    async def head(self, head: Head) -> None:
        if head.readable:
            await super().head(head)
            return
        self.passes = True
        await self.sink.head(head)

    async def give(self, head: Head, out: bytes) -> None:
        """Send it as a stream: what goes out in one pass mitmproxy keeps, and its page would show."""
        await self.sink.head(head)
        await self.sink.data(out, out)
        await self.sink.end()

    async def data(self, piece: bytes, plain: bytes) -> None:
        if self.passes:
            await self.sink.data(piece, plain)
            return
        await super().data(piece, plain)

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        if head.readable:
            await super().whole(head, body, plain)
            return
        await self.sink.whole(head, body, plain)


class Putback:
    """A channel that puts *values* in the place of their placeholders, also where these come in pieces."""

    __slots__ = ("held", "is_json", "pattern", "values")

    def __init__(self, values: Mapping[str, str], pattern: re.Pattern[str], is_json: bool) -> None:
        self.values, self.pattern, self.is_json = values, pattern, is_json
        self.held = ""
        """The beginning of a placeholder."""

    def feed(self, text: str) -> str:
        if self.held:
            text, self.held = self.held + text, ""
        if "[" not in text:
            return text
        parts: list[str] = []
        done = 0
        for name in self.pattern.finditer(text):
            parts += (text[done : name.start()], self._value(name))
            done = name.end()
        begins = text.rfind("[", done)
        if begins >= 0 and any(name.startswith(text[begins:]) for name in self.values):
            self.held = text[begins:]
        return "".join((*parts, text[done : len(text) - len(self.held)]))

    def end(self) -> str:
        held, self.held = self.held, ""
        return held

    def _value(self, name: re.Match[str]) -> str:
        value = self.values[name[0]]
        return inside(value) if self.is_json else value
