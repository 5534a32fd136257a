"""Undo a content coding while the body passes, for reading only: clients get the bytes as they came.

``gzip`` and ``x-gzip`` (several members, with or without the trailer), ``deflate`` (with zlib's frame, or raw as some
servers send it), ``br``, ``zstd``, and stacks of them as RFC 9110 8.4 has it (``gzip, br``: br is undone first).

Promise: never raises. What cannot be read, or grows like a bomb, turns the inflater dead: ``dead`` says why, and from
then on nothing comes out. What came out before stays true.
"""

import zlib
from collections.abc import Callable
from typing import Any, Protocol

STEP_BYTES = 64 * 1024
"""Taken out of a decoder at a time, so that a bomb is noticed after the first of its megabytes."""

FREE_BYTES = 4 * 2**20
RATIO = 200
"""A body may grow to ``FREE_BYTES`` whatever its size, and beyond that to so many times what came in."""

LAYERS = 4
"""Codings stacked; more is an attack or a fault."""


class _Decoder(Protocol):
    def feed(self, data: bytes, most: int) -> bytes:
        """Take *data*; return at most about *most* bytes, the rest on further calls with ``b""``."""

    def waits(self) -> bool:
        """True where nothing more comes out without more input."""


class Inflater:
    """A stack of decoders; with none of them the bytes pass as they are."""

    def __init__(self, decoders: list[_Decoder]) -> None:
        self._decoders = decoders
        self._in = 0
        self._out = 0
        self.dead: str | None = None
        """Why nothing comes out any more; ends the sentence "The body could not be read because …"."""

    def feed(self, data: bytes) -> bytes:
        """Return the plain bytes that *data* makes readable."""
        if self.dead or not data:
            return b""
        if not self._decoders:
            return data
        self._in += len(data)
        for decoder in self._decoders:
            data = self._through(decoder, data)
        return data

    def end(self) -> bytes:
        """Return what is still inside. A missing trailer is no fault: the counts before it are good."""
        return b""

    def _through(self, decoder: _Decoder, data: bytes) -> bytes:
        """Return what *decoder* makes of *data*; of data that breaks in the middle, what stands before the break."""
        pieces: list[bytes] = []
        try:
            pieces.append(decoder.feed(data, STEP_BYTES))
            while not decoder.waits():
                self._out += len(pieces[-1])
                if self._out > max(FREE_BYTES, RATIO * self._in):
                    self.dead = f"{self._in} bytes grew to more than {self._out}"
                    return b""
                pieces.append(decoder.feed(b"", STEP_BYTES))
        except Exception as error:  # each library has errors of its own, and none of them may reach the stream
            self.dead = f"its content coding is broken: {error}"
        self._out += len(pieces[-1]) if pieces else 0
        return b"".join(pieces)


def inflater(content_encoding: str) -> Inflater | None:
    """Return what undoes *content_encoding*, a header's value; None where a coding is unknown (``unknown_coding``
    says which).
    """
    codings = _codings(content_encoding)
    if unknown_coding(content_encoding) or len(codings) > LAYERS:
        return None
    return Inflater([DECODERS[coding]() for coding in reversed(codings) if coding != "identity"])


def unknown_coding(content_encoding: str) -> str | None:
    """Return the first coding of *content_encoding* that cannot be undone here."""
    for coding in _codings(content_encoding):
        if coding != "identity" and coding not in DECODERS:
            return coding
    return None


def _codings(content_encoding: str) -> list[str]:
    return [coding for part in content_encoding.split(",") if (coding := part.strip().lower())]


class _Zlib:
    """gzip, zlib and raw deflate; *wbits* picks among them as in ``zlib.decompressobj``."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._z = zlib.decompressobj(wbits)
        self._rest = b""

    def feed(self, data: bytes, most: int) -> bytes:
        if self._z.eof:
            self._next_member(self._rest + data)
            if self._z.eof:
                return b""
            data, self._rest = self._rest, b""
        else:
            data, self._rest = self._rest + data, b""
        plain = self._z.decompress(data, most)
        self._rest = self._z.unused_data if self._z.eof else self._z.unconsumed_tail
        return plain

    def waits(self) -> bool:
        if self._z.eof:
            return not self._begins_member(self._rest)
        return not self._rest

    def _next_member(self, data: bytes) -> None:
        """Begin the next gzip member if *data* is one; padding and anything else behind a member is nobody's."""
        self._rest = data.lstrip(b"\0")
        if self._begins_member(self._rest):
            self._z = zlib.decompressobj(self._wbits)

    def _begins_member(self, data: bytes) -> bool:
        return self._wbits > 15 and data.lstrip(b"\0")[:2] == b"\x1f\x8b"


class _Deflate:
    """``deflate`` means zlib's frame (RFC 9110 8.4.1.2), yet raw deflate is sent under that name, too."""

    def __init__(self) -> None:
        self._head = b""
        self._zlib: _Zlib | None = None

    def feed(self, data: bytes, most: int) -> bytes:
        if self._zlib:
            return self._zlib.feed(data, most)
        self._head += data
        if len(self._head) < 2:
            return b""
        framed = self._head[0] & 0x0F == 8 and int.from_bytes(self._head[:2]) % 31 == 0
        self._zlib = _Zlib(15 if framed else -15)
        return self._zlib.feed(self._head, most)

    def waits(self) -> bool:
        return self._zlib is None or self._zlib.waits()


class _Brotli:
    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped,unused-ignore]  # 3 ms that few answers need

        self._brotli: Any = brotli.Decompressor()
        self._more = False

    def feed(self, data: bytes, most: int) -> bytes:
        if data and self._brotli.is_finished():  # something behind the last block
            return b""
        plain: bytes = self._brotli.process(data, output_buffer_limit=most)
        # brotli 1.2.1 says it can accept more while a last block is still inside: ask until nothing comes
        self._more = bool(plain) or not self._brotli.can_accept_more_data()
        return plain

    def waits(self) -> bool:
        return not self._more


class _Zstd:
    def __init__(self) -> None:
        self._new: Callable[[], Any] = _zstd_decompressor()
        self._zstd = self._new()

    def feed(self, data: bytes, most: int) -> bytes:
        if self._zstd.eof:
            data = self._zstd.unused_data + data
            if not data:
                return b""
            self._zstd = self._new()
        plain: bytes = self._zstd.decompress(data, most)
        return plain

    def waits(self) -> bool:
        if self._zstd.eof:
            return not self._zstd.unused_data
        return bool(self._zstd.needs_input)


def _zstd_decompressor() -> Callable[[], Any]:
    """Return the class that reads one frame: of the standard library from 3.14 on, else its backport."""
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports.zstd import ZstdDecompressor
    return ZstdDecompressor  # type: ignore[no-any-return,unused-ignore]


DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Zlib(31),
    "x-gzip": lambda: _Zlib(31),
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
