"""Find out how an answer is framed, and hand its JSON values to the dialect one by one.

Content types lie: an event stream comes as ``application/json`` or as nothing, a refusal comes as JSON under
``text/event-stream``, Gemini streams one list of objects, others one object a line. So the first byte that is not blank
decides, with the content type as a hint.

``Framed`` is the base of every reader. A dialect says what an event and what a whole answer mean; order, errors,
limits and the promise never to raise are kept here.
"""

from collections.abc import Iterator

from mitmgate.dialects import eventstream
from mitmgate.dialects.base import Call, Json, Reading
from mitmgate.dialects.counts import parse
from mitmgate.dialects.likeness import Likeness
from mitmgate.dialects.skim import WHOLE_BYTES, Skimmer
from mitmgate.dialects.sse import BOM, Event, Parser
from mitmgate.dialects.vocabulary import classify, event_type

BLANKS = b" \t\r\n"
LINE_TYPES = ("ndjson", "jsonl", "stream+json", "json-seq")
"""Parts of the content types under which one JSON value a line is streamed."""

DONE = b"[DONE]"

LIKE_BYTES = 4096
"""Longer events are no words of a sentence."""


class Framed:
    """Reads one answer; see ``base.Reader``. Subclasses write ``on_event`` and ``on_whole``."""

    text_key = b'"text":'
    """Whose value the text is that ``on_event`` returns."""

    expects_json = True
    """A 200 that is no JSON, in no framing, is worth an error (a login page); False where audio may come."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.reading = Reading()
        self._type = call.headers.get("content-type", "").lower()
        self._head = bytearray()
        """Bytes before the first that is not blank: at most part of a byte order mark."""
        self._events: Parser | eventstream.Parser | None = None
        self._pieces: Skimmer | None = None
        """Of values that follow each other: elements of one list, or objects line by line."""
        self._body: bytearray | None = None
        """Of a plain answer, up to ``WHOLE_BYTES``."""
        self._values = 0
        """JSON values seen."""
        self._likeness = Likeness()
        self._over = False
        if call.status >= 400:
            self.reading.error_type = classify(call.status, None)

    # -- what a dialect says -------------------------------------------------------------------------------------------

    def on_event(self, name: bytes, value: Json) -> str | None:
        """Take one value of a stream; *name* is that of its event, mostly empty.

        Return the text of an event that brought one text, already counted, and nothing else; None for any other.
        """
        raise NotImplementedError

    def on_whole(self, value: Json) -> None:
        """Take the one value that is the answer."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The stream has ended; decide what only its end decides."""

    # -- base.Reader ---------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        try:
            self._feed(data)
        except Exception:  # an answer that cannot be read must still reach its client
            self.reading.parse_errors += 1

    def end(self) -> None:
        if self._over:
            return
        self._over = True
        try:
            self._end()
        except Exception:  # as above
            self.reading.parse_errors += 1

    # -- framing -------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        if self._events:
            for event in self._events.feed(data):
                self._event(event)
        elif self._pieces:
            for document in self._pieces.feed(data):
                self._piece(document)
        elif self._body is not None:
            self._body += data
            if len(self._body) > WHOLE_BYTES:
                self._to_pieces(unwrap=False)
        else:
            self._begin(data)

    def _begin(self, data: bytes) -> None:
        if eventstream.TYPE in self._type:
            self.reading.streamed = True
            self._events = eventstream.Parser()
            self._feed(data)
            return
        data = bytes(self._head) + data
        self._head.clear()
        if BOM.startswith(data):
            self._head += data
            return
        start = data.removeprefix(BOM).lstrip(BLANKS)
        if not start:
            return
        first = start[:1]
        if first == b"[" or (first == b"{" and any(word in self._type for word in LINE_TYPES)):
            self.reading.streamed = self.call.stream
            self._body = bytearray(start)
            self._to_pieces(unwrap=first == b"[")
        elif first == b"{" or not (first in b"deri:" or "event-stream" in self._type):
            self._body = bytearray()
            self._feed(start)
        else:
            self.reading.streamed = True
            self._events = Parser()
            self._feed(start)

    def _to_pieces(self, unwrap: bool) -> None:
        """Read on in pieces: a list, lines, or a plain answer that has become too long to keep."""
        self._pieces = Skimmer(unwrap)
        body, self._body = bytes(self._body or b""), None
        self._feed(body)

    def _end(self) -> None:
        if self._events:
            for event in self._events.end():
                self._event(event)
            if isinstance(self._events, eventstream.Parser) and self._events.broken:
                self.reading.parse_errors += 1
        elif self._pieces:
            if not self._values and (rest := self._pieces.end()):
                self._value(parse(rest), whole=True)
                self.reading.parse_errors += 1
            elif not self.reading.streamed and self._values:
                self._close_whole()
        elif self._body is not None:
            self._end_of_body(bytes(self._body))
        self.on_end()
        if self.call.status >= 400:
            self.reading.ended = True
        elif self.expects_json and not self._values and not self.reading.ended and "event-stream" not in self._type:
            self.reading.error_type = self.reading.error_type or "unreadable"
            self.reading.streamed = False

    def _end_of_body(self, body: bytes) -> None:
        try:
            value = parse(body)
        except (ValueError, RecursionError):
            self._salvage(body)
            return
        self._value(value, whole=True)
        self._close_whole()

    def _close_whole(self) -> None:
        reading = self.reading
        reading.ended = reading.finished = True
        reading.usage_final = reading.usage_seen

    def _salvage(self, body: bytes) -> None:
        """Read what is no single JSON value: several of them, or one that broke off."""
        skimmer = Skimmer()
        documents = skimmer.feed(body)
        self.reading.streamed = len(documents) > 1
        for document in documents:
            self._piece(document)
        if rest := skimmer.end():
            self.reading.parse_errors += 1
            self._value(parse(rest), whole=not documents)

    # -- values --------------------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        data = event.data
        if data[:1] == b"[" and data.strip() == DONE:
            self.reading.ended = True
            return
        if size := self._likeness.size_of(event.name, data):
            self._values += 1
            self.reading.text_chars += size
            return
        try:
            said = self._value(parse(data), event.name)
            if said and len(data) < LIKE_BYTES:
                self._likeness.learn(event.name, data, said, self.text_key)
        except Exception:  # one event that cannot be read says nothing about the next
            self.reading.parse_errors += 1

    def _piece(self, document: bytes) -> None:
        try:
            self._value(parse(document), whole=not self.reading.streamed and not self._values)
        except Exception:  # as above
            self.reading.parse_errors += 1

    def _value(self, value: Json, name: bytes = b"", whole: bool = False) -> str | None:
        self._values += 1
        if self.call.status >= 400:
            amazon = self.call.headers.get("x-amzn-errortype", "").partition(":")[0]
            self.reading.error_type = classify(self.call.status, [value, {"__type": amazon}])
        elif whole and isinstance(value, list):
            for element in value:
                self.on_whole(element)
        elif whole:
            self.on_whole(value)
        else:
            return self.on_event(name, value)
        return None

    # -- for dialects --------------------------------------------------------------------------------------------------

    def failed(self, value: Json) -> None:
        """Note a failure that *value* tells inside of a 200."""
        reading = self.reading
        word = event_type(value)
        filtered = word == "error_event:content_filter"
        reading.error_type = "content_filter" if filtered and not reading.first_content else word
        reading.error_event = reading.streamed

    def saw(self, size: int) -> None:
        """Note *size* bytes of output that a person would see, or a tool call of no bytes."""
        self.reading.first_content = True
        self.reading.text_chars += size


class _Collector(Framed):
    """Keeps all values; for people who look at one answer, not for traffic."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.values: list[tuple[bytes, Json]] = []

    def on_event(self, name: bytes, value: Json) -> str | None:
        self.values.append((name, value))
        return None

    def on_whole(self, value: Json) -> None:
        self.values.append((b"", value))


def values_of(content_type: str, body: bytes) -> Iterator[tuple[bytes, Json]]:
    """Yield each JSON value of an answer with its event's name, also of an unfinished one."""
    collector = _Collector(Call(200, {"content-type": content_type}, stream=True))
    collector.feed(body)
    collector.end()
    yield from collector.values
