"""Read JSON that is too long to keep: a reduced, still valid document comes out, in one pass, whatever the cut.

Runs where a payload passes ``WHOLE_BYTES``: a ``response.completed`` that repeats megabytes of output, an image in
base64, a page of embeddings. What is kept are the beginnings: of each long string a prefix, of each long list its
first elements, and, once the document itself has grown to ``SOFT_BYTES``, only members that somebody will ask for
(``usage`` and its kin, which providers like to put last). No byte is looked at twice and strings are crossed by
``re`` alone, so 100 MB of base64 cost a fraction of a second.

The input is trusted to be JSON; of anything else comes something that a JSON parser will refuse.
"""

import re

WHOLE_BYTES = 64 * 1024
"""Up to here a payload is kept and parsed as it is."""

SOFT_BYTES = 64 * 1024
HARD_BYTES = 96 * 1024
"""Of the reduced document. Past the first only ``GUARDED`` members are added, past the second nothing."""

STRING_BYTES = 4096
LATE_STRING_BYTES = 256
"""Kept of one string: while the document is small, and once it is half full."""

ELEMENTS = 64
"""Kept of a list of numbers or strings."""

DEPTH = 64
"""Deeper values become ``null``."""

SCALAR_BYTES = 64
KEY_BYTES = 128

GUARDED = frozenset(
    b'"%s"' % name
    for name in (
        b"usage", b"usageMetadata", b"x_groq", b"error", b"id", b"model", b"modelVersion", b"responseId", b"type",
        b"status", b"finish_reason", b"finishReason", b"stop_reason", b"incomplete_details", b"promptFeedback",
        b"service_tier",
    )
)  # fmt: skip

_STRUCTURE = re.compile(rb'[\[\]{}",:]')
_BRACKETS = re.compile(rb'[\[\]{}"]')
_RUNS = re.compile(rb'[\[{]++|[\]}]++|"')
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_PIECE = rb'[^\[\]{}"]++|"(?:[^"\\]|\\.)*+"'
_FLAT = re.compile(rb"(?:%s|\{(?:%s)*+\}|\[(?:%s)*+\])*+" % (_PIECE, _PIECE, _PIECE), re.DOTALL)
"""Whatever needs no counting of brackets: scalars, whole strings, lists and objects without inner ones."""
_ESCAPE_AT_END = re.compile(rb"\\+[^\\\"]{0,4}\Z")

QUOTE, COMMA, COLON, OPEN_LIST, OPEN_OBJECT, CLOSE_LIST, CLOSE_OBJECT = b'",:[{]}'


class _Frame:
    """An object or list that is open and kept."""

    __slots__ = ("close", "count", "guarded", "kept", "key", "skips")

    def __init__(self, close: int, guarded: bool) -> None:
        self.close = close
        self.guarded = guarded
        """It is, or lies in, a member that somebody will ask for."""
        self.count = 0
        """Elements or members that are over."""
        self.kept = 0
        """Elements or members written."""
        self.skips = False
        """The element or member under way is not kept."""
        self.key: bytes | None = None
        """Of the member under way, with its quotes; None while it is still to come."""

    @property
    def is_object(self) -> bool:
        return self.close == CLOSE_OBJECT


class Skimmer:
    """Feed it JSON, take reduced documents; several may follow each other, with anything or nothing between them.

    With *unwrap* the outermost list is no document of its own, its elements are: Gemini streams one list that way.
    """

    def __init__(self, unwrap: bool = False) -> None:
        self._unwrap = unwrap
        self._out = bytearray()
        self._stack: list[_Frame] = []
        self._scalar = bytearray()
        """A number or a literal, with blanks around it, that may go on in the next piece."""
        self._skipped_depth = 0
        """Open brackets of a value that is not kept."""
        self._string = ""
        """What becomes of the string under way: ``key``, ``value``, ``skip``; empty where there is none."""
        self._string_at = 0
        """Where the value under way begins in what was written."""
        self._room = 0
        """Bytes that may still be kept of the string under way."""
        self._escaped = False
        """The last byte was a backslash whose other half is still to come."""
        self._valueless = False
        """A key was written and its value was not."""
        self._key = bytearray()
        self._done: list[bytes] = []
        self.closed = False
        """The outermost list, if one was unwrapped, has ended."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the documents that *data* completes."""
        at, size = 0, len(data)
        while at < size:
            if self._string:
                at = self._in_string(data, at)
            elif self._skipped_depth:
                at = self._in_skipped(data, at)
            else:
                at = self._between(data, at)
        done, self._done = self._done, []
        return done

    def end(self) -> bytes:
        """Return the document that has not ended, closed so that it is valid; empty where there is none."""
        if not self._stack:
            return b""
        if self._string == "value":  # half an id is no id
            del self._out[self._string_at :]
            self._out += b"null"
        if self._valueless:  # nor is half a number one
            self._out += b"null"
        while self._stack:
            self._out.append(self._stack.pop().close)
        document = bytes(self._out)
        self._out.clear()
        return document

    # -- strings -----------------------------------------------------------------------------------------------------

    def _in_string(self, data: bytes, at: int) -> int:
        """Cross the string under way from *at*; return where it, or *data*, ends."""
        if self._escaped:
            self._escaped = False
            self._keep(data[at : at + 1])
            return at + 1
        end = data.find(b'"', at)
        if end < 0:
            end = len(data)
        if data.find(b"\\", at, end) >= 0:
            match = _STRING.match(data, at)
            end = match.end() if match else at
        if end < len(data) and data[end] == QUOTE:
            self._keep(data[at:end])
            self._close_string()
            return end + 1
        if end < len(data):  # a backslash is the last byte
            end += 1
            self._escaped = True
        self._keep(data[at:end])
        return end

    def _keep(self, piece: bytes) -> None:
        if self._string == "skip":
            return
        target = self._key if self._string == "key" else self._out
        if self._room < 0:  # it was cut
            return
        if len(piece) <= self._room:
            target += piece
            self._room -= len(piece)
            return
        target += piece[: self._room]
        self._room = -1
        self._trim(target)

    def _trim(self, text: bytearray) -> None:
        """Drop an escape that may have been cut in two."""
        if match := _ESCAPE_AT_END.search(text, max(len(text) - STRING_BYTES, 0)):
            del text[match.start() :]

    def _close_string(self) -> None:
        frame = self._stack[-1] if self._stack else None
        if self._string == "value":
            self._out.append(QUOTE)
        elif self._string == "key" and frame:
            self._key.append(QUOTE)
            frame.key = bytes(self._key)
        self._string = ""

    # -- everything else -----------------------------------------------------------------------------------------------

    def _in_skipped(self, data: bytes, at: int) -> int:
        """Cross a value that is not kept; return where *data*, or a bracket, or a string in it ends."""
        if flat := _FLAT.match(data, at):
            at = flat.end()
        match = _RUNS.search(data, at)
        if match is None:
            return len(data)
        byte = data[match.start()]
        run = match.end() - match.start()
        if byte == QUOTE:
            self._string = "skip"
        elif byte in b"[{":
            self._skipped_depth += run
        else:
            run = min(run, self._skipped_depth)
            self._skipped_depth -= run
        return match.start() + run

    def _between(self, data: bytes, at: int) -> int:
        """Take one structural byte and what stands before it."""
        frame = self._stack[-1] if self._stack else None
        if frame and not frame.is_object and (frame.count >= ELEMENTS or not self._fits(frame.guarded)):
            return self._late_in_list(frame, data, at)
        match = _STRUCTURE.search(data, at)
        end = match.start() if match else len(data)
        if end > at and len(self._scalar) <= SCALAR_BYTES:
            self._scalar += data[at:end].strip()[: SCALAR_BYTES + 1]
        if match is None:
            return end
        byte = data[end]
        if byte == QUOTE:
            self._open_string()
        elif byte == COMMA:
            self._next()
        elif byte == COLON:
            self._member()
        elif byte in b"[{":
            self._open(byte)
        else:
            self._close()
        return end + 1

    def _late_in_list(self, frame: _Frame, data: bytes, at: int) -> int:
        """Cross a long list's numbers in one leap; only lists and objects in it may be of interest any more."""
        if not self._fits(frame.guarded) and (flat := _FLAT.match(data, at)):
            at = flat.end()
        match = _BRACKETS.search(data, at)
        if match is None:
            return len(data)
        byte = data[match.start()]
        frame.skips = False
        if byte == QUOTE:
            self._string = "skip"
        elif byte in b"[{":
            self._open(byte)
        else:
            self._close()
        return match.end()

    def _open_string(self) -> None:
        frame = self._stack[-1] if self._stack else None
        self._scalar.clear()
        if frame and frame.is_object and frame.key is None:
            self._string, self._room = "key", KEY_BYTES
            self._key = bytearray(b'"')
        elif frame and self._wants(frame):
            self._string = "value"
            self._string_at = len(self._out)
            self._room = STRING_BYTES if len(self._out) < SOFT_BYTES // 2 else LATE_STRING_BYTES
            self._out.append(QUOTE)
        else:
            self._string = "skip"

    def _open(self, byte: int) -> None:
        self._scalar.clear()
        if not self._stack:
            if byte == OPEN_LIST and self._unwrap:
                self._unwrap = False
                return
            self._out.clear()
            self._push(byte, guarded=False)
            return
        frame = self._stack[-1]
        if not self._wants(frame):
            self._skipped_depth = 1
        elif len(self._stack) >= DEPTH:
            self._out += b"null"
            self._skipped_depth = 1
        else:
            self._push(byte, guarded=frame.guarded or frame.key in GUARDED)

    def _push(self, byte: int, guarded: bool) -> None:
        self._out.append(byte)
        self._stack.append(_Frame(byte + 2, guarded))  # in ASCII both closing brackets stand two places behind

    def _close(self) -> None:
        if not self._stack:
            self.closed = True
            self._scalar.clear()
            return
        self._flush()
        if self._valueless:  # not JSON, but what comes out should be
            self._out += b"null"
            self._valueless = False
        self._out.append(self._stack.pop().close)
        if not self._stack:
            self._done.append(bytes(self._out))
            self._out.clear()

    def _next(self) -> None:
        """An element or member is over."""
        self._flush()
        if not self._stack:
            return
        if self._valueless:
            self._out += b"null"
            self._valueless = False
        frame = self._stack[-1]
        frame.count += 1
        frame.skips = False
        frame.key = None

    def _member(self) -> None:
        """A key is known: keep its member or not."""
        frame = self._stack[-1] if self._stack else None
        self._scalar.clear()
        if frame is None or not frame.is_object or frame.key is None or self._valueless:
            return
        if not self._fits(frame.guarded or frame.key in GUARDED):
            frame.skips = True
            return
        if frame.kept:
            self._out.append(COMMA)
        frame.kept += 1
        self._out += frame.key
        self._out.append(COLON)
        self._valueless = True

    def _flush(self) -> None:
        """Write the number or literal that stands before a comma or a closing bracket."""
        scalar = bytes(self._scalar).strip()
        self._scalar.clear()
        if not scalar or not self._stack or not self._wants(self._stack[-1]):
            return
        self._out += scalar if len(scalar) <= SCALAR_BYTES else b"null"

    def _wants(self, frame: _Frame) -> bool:
        """Decide whether a value that begins is kept; write the comma before an element that is."""
        if frame.skips:
            return False
        if frame.is_object:
            wanted = self._valueless
            self._valueless = False
            return wanted
        frame.skips = not self._fits(frame.guarded)
        if frame.skips:
            return False
        if frame.kept:
            self._out.append(COMMA)
        frame.kept += 1
        return True

    def _fits(self, guarded: bool) -> bool:
        size = len(self._out)
        return size < SOFT_BYTES or (guarded and size < HARD_BYTES)
