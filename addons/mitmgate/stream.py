"""Beside the answer: read it, keep it, hand it on.

A ``Tap`` is fed what the provider sent and returns what the client gets: the same bytes, less the usage chunk that only
the gateway asked for. Whatever goes wrong while reading stays here: bytes are handed on first, understood second.
"""

import logging
from collections.abc import Callable

from mitmgate.dialects.base import Call, Reader
from mitmgate.dialects.inflate import inflater
from mitmgate.dialects.usage_filter import UsageFilter
from mitmgate.exchange import Attempt, Exchange, Leg

log = logging.getLogger("mitmgate.stream")

KEPT_BYTES = 1 << 20
"""Of each answer this much is kept for the payload row and the screens."""


class Tap:
    """One answer on its way through. ``feed`` and ``end`` never raise."""

    def __init__(self, x: Exchange, leg: Leg, attempt: Attempt, now: Callable[[], float]) -> None:
        self.id = x.id
        self.keeps, self.guarded = x.keep_payload, x.guarded
        self.answer = attempt.answer
        self.now = now
        encoding = attempt.headers.get("content-encoding", "")
        self.inflater = inflater(encoding) if encoding else None
        self.filter = UsageFilter() if leg.asked_usage and attempt.status == 200 else None
        self.readable = not encoding or self.inflater is not None
        self.reader: Reader | None = None
        if self.readable:
            self._open(leg, attempt)
        self.recodes = bool(self.filter and self.inflater)
        """The client gets the bytes with their coding undone."""
        self.plain = b""
        """What the piece that was returned last says without its content coding."""

    def _open(self, leg: Leg, attempt: Attempt) -> None:
        if leg.dialect is None:
            return
        call = Call(attempt.status or 0, attempt.headers, leg.request.stream, leg.path, leg.request.model)
        try:
            self.reader = leg.dialect.reader(call)
            self.answer.reading = self.reader.reading
        except Exception:
            self._broken()

    @property
    def lost(self) -> str | None:
        """Why the rest of a recoded answer cannot be handed on; to break it off is better than to swallow it."""
        return self.inflater.dead if self.recodes and self.inflater else None

    def feed(self, chunk: bytes) -> bytes:
        """Take what the provider sent; return what the client gets now."""
        self.answer.size += len(chunk)
        plain = chunk
        if self.inflater:
            plain = self.inflater.feed(chunk)
        if self.reader:
            self._read(plain)
        if self.filter is None:
            self.plain = plain
            return chunk
        self.plain = self.filter.feed(plain)
        return self.plain

    def end(self) -> bytes:
        """The provider's answer is whole; return what was still held back."""
        rest = self.inflater.end() if self.inflater else b""
        if self.inflater:
            self.answer.spoilt = self.inflater.dead
        if self.reader:
            if rest:
                self._read(rest)
            try:
                self.reader.end()
            except Exception:
                self._broken()
            self._note_content()
        return self.release(rest)

    def release(self, rest: bytes = b"") -> bytes:
        """Return what was held back, also of an answer that broke off."""
        if self.filter is None:
            self.plain = rest
            return b""
        self.plain = self.filter.feed(rest) + self.filter.end()
        return self.plain

    def _read(self, plain: bytes) -> None:
        answer = self.answer
        try:
            if self.guarded:  # kept is what the guards let through
                pass
            elif self.keeps and (room := KEPT_BYTES - len(answer.kept)) > 0:
                answer.kept += plain[:room]
                answer.kept_whole = answer.kept_whole and len(plain) <= room
            elif plain:
                answer.kept_whole = False
            if self.reader:
                self.reader.feed(plain)
                self._note_content()
        except Exception:
            self._broken()

    def _note_content(self) -> None:
        """Note when the first content came; a plain answer shows it at its end."""
        if self.answer.first_content is None and self.answer.reading.first_content:
            self.answer.first_content = self.now()

    def _broken(self) -> None:
        log.exception("stream: %s: reading the answer failed; its bytes go on untouched", self.id)
        self.reader = None
        self.answer.reading.parse_errors += 1
