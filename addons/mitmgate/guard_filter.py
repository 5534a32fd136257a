"""A ``Sink`` around another one, for whoever changes an answer on its way (``guard_stream``, ``guard_restore``).

It works on plain bytes and passes plain bytes on, so a head that it lets through names no content coding and no length.
The head waits for the first frame: an answer that is stopped at its beginning is a plain refusal. One that is stopped
later ends with the API's own error and the regular end of the transport, and the provider is asked no further. What
breaks in here stops the answer as well: what could not be looked at does not go on.
"""

import logging
from dataclasses import replace

from mitmgate.answers import Head
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Fields, How
from mitmgate.guard_frames import Framing, Unreadable, framing_of
from mitmgate.guard_texts import Stream
from mitmgate.layer import Gone
from mitmgate.sink import Onward, Sink

log = logging.getLogger("mitmgate.guard")

BODY_BYTES = 32 << 20
"""A longer answer that is no stream cannot be looked at: half of it says nothing."""

OUTDATED = frozenset({b"content-length", b"content-encoding", b"content-md5", b"content-digest", b"digest", b"etag"})
"""Fields of a head that are not true any more of a body that was changed."""


class Stopped(Exception):
    """Whoever looks at an answer says that it ends here."""


class Filter(Onward):
    """A ``Sink`` that passes an answer on to another one, as ``Texts`` leave it."""

    def __init__(self, x: Exchange, sink: Sink) -> None:
        super().__init__(x, sink)
        self.top: Head | None = None
        """The head, while it waits."""
        self.content_type = ""
        self.framing: Framing | None = None
        self.stream: Stream | None = None
        self.begun = b""
        """Of the body, while its framing is not known, or all of it where it is no stream."""
        self.over = False
        """It was ended here; what still comes is not for anybody."""

    # -- what a filter decides

    def body(self, data: bytes) -> bytes:
        """Return *data*, a body that is no stream, as it may go on."""
        raise NotImplementedError

    def streamed(self, framing: Framing) -> Stream:
        """Return what looks at a stream."""
        raise NotImplementedError

    def refusal(self, fault: Exception) -> Refusal:
        """Return what to say where *fault* ends the answer."""
        raise NotImplementedError

    def note(self, out: bytes) -> None:
        """*out* goes on."""

    # -- Sink

    @property
    def gone(self) -> bool:
        return self.over or self.sink.gone

    async def head(self, head: Head) -> None:
        if not head.readable:
            await self._stop(Unreadable("its content coding is none that mitmgate can undo"))
        self.top = head
        self.content_type = head.headers.get("content-type", "")

    async def data(self, piece: bytes, plain: bytes) -> None:
        if self.over:
            raise Gone
        try:
            out = self._take(plain)
        except Exception as fault:
            await self._stop(fault)
            return
        if out:
            await self._send(out)

    async def end(self) -> None:
        try:
            out = self._rest()
        except Exception as fault:
            await self._stop(fault)
            return
        if out:
            await self._send(out)
        await self._open()
        await self.sink.end()

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        self.content_type = head.headers.get("content-type", "")
        try:
            if plain and not head.readable:
                raise Unreadable("its content coding is none that mitmgate can undo")
            out = self._take(plain) + self._rest()
        except Exception as fault:
            await self._refuse(fault)
            return
        self.note(out)
        if out == plain:
            await self.sink.whole(head, body, plain)
        else:
            await self.give(changed(head, len(out)), out)

    async def give(self, head: Head, out: bytes) -> None:
        """Hand on a whole answer that was changed."""
        await self.sink.whole(head, out, out)

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        """What is held is let go: nobody will ever know what it would have become."""
        if not self.over:
            await self._open()
            await self.sink.cut(message, how, last)

    # -- the body

    def _take(self, plain: bytes) -> bytes:
        """Return what may go on now."""
        if self.stream:
            return self.stream.feed(plain)
        if self.framing == "binary":
            return plain
        self.begun += plain
        if self.framing is None:
            self.framing = framing_of(self.content_type, self.begun, self.x.request.stream)
        if self.framing in ("body", None):
            if len(self.begun) > BODY_BYTES:
                raise Unreadable(f"it is longer than {BODY_BYTES >> 20} MiB")
            return b""
        begun, self.begun = self.begun, b""
        if self.framing == "binary":
            return begun
        self.stream = self.streamed(self.framing)
        return self.stream.feed(begun)

    def _rest(self) -> bytes:
        """Return what is left at the end."""
        if self.x.answer.spoilt:
            raise Unreadable(f"its content coding cannot be undone: {self.x.answer.spoilt}")
        if self.stream:
            return self.stream.end()
        return self.body(self.begun) if self.begun else b""

    # -- on its way

    async def _open(self) -> None:
        if self.top:
            top, self.top = self.top, None
            await self.sink.head(changed(top))

    async def _send(self, out: bytes) -> None:
        await self._open()
        self.note(out)
        await self.sink.data(out, out)

    async def _refuse(self, fault: Exception) -> None:
        refusal = self._told(fault)
        self.over = True
        await self.sink.refuse(refusal, "refused" if refusal.source == "guard" else "failed")

    async def _stop(self, fault: Exception) -> None:
        """End the answer here, for good; raises ``Gone``, so that the provider is asked no further."""
        if isinstance(fault, Gone):
            raise fault
        if self.top or not self.sink.started:
            await self._refuse(fault)
            raise Gone
        refusal = self._told(fault)
        before = self.stream.taken() if self.stream else b""
        if before:
            await self._send(before)
        self.over = True
        await self.sink.cut(refusal.message, "refused" if refusal.source == "guard" else "cut", refusal)
        raise Gone

    def _told(self, fault: Exception) -> Refusal:
        if not isinstance(fault, Stopped | Unreadable):
            log.error("guard: %s: its answer could not be looked at", self.x.id, exc_info=fault)
        refusal = self.refusal(fault)
        self.x.refuse(refusal)
        return refusal


def changed(head: Head, length: int | None = None) -> Head:
    """Return *head* for a body whose bytes are not the provider's, and *length* many where that is known."""
    fields: Fields = [field for field in head.fields if field[0].lower() not in OUTDATED]
    headers = {name: value for name, value in head.headers.items() if name.encode() not in OUTDATED}
    if length is not None:
        fields.append((b"content-length", b"%d" % length))
        headers["content-length"] = str(length)
    return replace(head, fields=fields, headers=headers)
