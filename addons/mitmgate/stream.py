"""Beside the answer: read it, keep it, hand it on.

A ``Tap`` is fed what the provider sent and returns what the client gets: the same bytes, less the usage chunk that only
the gateway asked for. Whatever goes wrong while reading stays here: bytes are handed on first, understood second.
"""

import logging
from collections.abc import Callable

from mitmgate.dialects.base import Call, Reader
from mitmgate.dialects.inflate import inflater
from mitmgate.dialects.usage_filter import UsageFilter
from mitmgate.exchange import Attempt, Exchange

log = logging.getLogger("mitmgate.stream")

KEPT_BYTES = 1 << 20
"""Of each answer this much is kept for the payload row and the screens."""


class Tap:
    """One answer on its way through. ``feed`` and ``end`` never raise."""

    def __init__(self, x: Exchange, attempt: Attempt, now: Callable[[], float]) -> None:
        self.x = x
        self.now = now
        encoding = attempt.headers.get("content-encoding", "")
        self.inflater = inflater(encoding) if encoding else None
        self.filter = UsageFilter() if x.asked_usage and attempt.status == 200 else None
        self.readable = not encoding or self.inflater is not None
        self.reader: Reader | None = None
        if self.readable:
            self._open(attempt)
        self.recodes = bool(self.filter and self.inflater)
        """The client gets the bytes with their coding undone."""

    def _open(self, attempt: Attempt) -> None:
        x = self.x
        if x.dialect is None:
            return
        call = Call(attempt.status or 0, attempt.headers, x.request.stream, x.path, x.request.model)
        try:
            self.reader = x.dialect.reader(call)
            attempt.reading = x.reading = self.reader.reading
        except Exception:
            self._broken()

    @property
    def lost(self) -> str | None:
        """Why the rest of a recoded answer cannot be handed on; to break it off is better than to swallow it."""
        return self.inflater.dead if self.recodes and self.inflater else None

    def feed(self, chunk: bytes) -> bytes:
        """Take what the provider sent; return what the client gets now."""
        self.x.answer_bytes += len(chunk)
        plain = chunk
        if self.inflater:
            plain = self.inflater.feed(chunk)
        if self.reader:
            self._read(plain)
        if self.filter is None:
            return chunk
        return self.filter.feed(plain)

    def end(self) -> bytes:
        """The provider's answer is whole; return what was still held back."""
        rest = self.inflater.end() if self.inflater else b""
        if self.reader:
            if rest:
                self._read(rest)
            try:
                self.reader.end()
            except Exception:
                self._broken()
        return self.release(rest)

    def release(self, rest: bytes = b"") -> bytes:
        """Return what was held back, also of an answer that broke off."""
        if self.filter is None:
            return b""
        return self.filter.feed(rest) + self.filter.end()

    def _read(self, plain: bytes) -> None:
        x = self.x
        try:
            if x.keep_payload and (room := KEPT_BYTES - len(x.kept)) > 0:
                x.kept += plain[:room]
                x.kept_whole = x.kept_whole and len(plain) <= room
            elif plain:
                x.kept_whole = False
            if self.reader:
                self.reader.feed(plain)
                if x.first_content is None and self.reader.reading.first_content:
                    x.first_content = self.now()
        except Exception:
            self._broken()

    def _broken(self) -> None:
        log.exception("stream: %s: reading the answer failed; its bytes go on untouched", self.x.id)
        self.reader = None
        self.x.reading.parse_errors += 1
