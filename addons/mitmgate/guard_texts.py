"""What an answer says, looked at and changed on its way: frame by frame, whatever its API and framing.

    guard_frames    cuts the bytes into frames, and makes the bytes of a frame again
    guard_channels  tells where text stands in a frame, and which text goes on in which later one
    guard_lines     one text, through the finders
    here            all texts of an answer, in the order in which they came

A frame goes on at once. What its text may be the beginning of a match with is held back, no more than 256 characters of
each text: it goes out with the next frame of that text, or before the text is over in a frame of its own, a copy of the
text's latest. Only strings are changed, and where they stand: every other byte is the provider's, and a frame whose
strings stay as they are goes on byte for byte.

Whatever breaks in here is told to whoever asked: an answer that cannot be looked at does not go on.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mitmgate import guard_channels
from mitmgate.dialects.likeness import PADDING, PADDING_BYTES
from mitmgate.guard_channels import Key, Place, Said, Text, Twice, quoted
from mitmgate.guard_frames import CUTTERS, Cutter, Event, Frame, Framing, Unreadable, one_more
from mitmgate.guard_lines import Channels, Line

MOST_LINES = 4096
"""Texts of one answer at the same time; more are an attack or a fault."""

CLEAN_CHARS = 128
MOST_CLEAN = 4096
"""Short strings that were looked at once are remembered: names and ids stand in every frame."""

DONE = b"[DONE]"

REPEATED = "repeated"
"""The source of a text that is said from its start again and again."""

CODES = "utf-8", "surrogateescape"
"""A byte that is no UTF-8 passes as it is."""


@dataclass(slots=True)
class Model:
    """The latest frame with one piece of one text in it: most frames of a stream differ from it in that piece alone."""

    name: str
    before: bytes
    """Of its payload, up to the text, its quote included."""
    after: bytes
    key: Key

    def piece_of(self, name: str, payload: bytes) -> str | None:
        """Return the piece in a frame that is like this one; None where it is not like it."""
        size = len(payload) - len(self.after)
        if size < len(self.before) or not payload.startswith(self.before) or not payload.endswith(self.after):
            return None
        piece = payload[len(self.before) : size]
        if name != self.name or not PLAIN.fullmatch(piece):
            return None
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return None


PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
"""A text that stands between quotes as it is."""


@dataclass(slots=True)
class Sample:
    """A frame that carried a text, as it went out: what is held of that text goes out in one like it."""

    frame: Frame
    payload: str
    n: int
    """The text is its n-th string."""
    calls: bool
    """A tool is called in it, so it cannot be repeated as it is."""


class Texts:
    """What all answers have in common, in frames or whole: strings through channels."""

    def __init__(self, channels: Channels, on_tool: Callable[[str], None] | None = None) -> None:
        self.channels = channels
        self.on_tool = on_tool
        """Is told each tool that is called."""
        self.clean: set[str] = set()

    def whole(self, text: Text, source: str = "") -> str:
        """Return *text*, which is complete, as it may be seen."""
        before = text.before
        if before:
            new = self.plain(before + text.value, source)
            if new.startswith(before):
                return new[len(before) :]
        return self.plain(text.value, source, text.is_json)

    def plain(self, value: str, source: str = "", is_json: bool = False) -> str:
        """Return the whole text *value* as it may be seen."""
        if value in self.clean:
            return value
        line = Line(self.channels(is_json, source), is_json)
        new = line.feed(value)
        rest, _ = line.end()
        new = new + rest if rest else new
        if new == value and len(value) <= CLEAN_CHARS and len(self.clean) < MOST_CLEAN:
            self.clean.add(value)
        return new

    def body(self, data: bytes) -> bytes:
        """Return *data*, a whole answer, JSON or a text, as it may be seen."""
        text = data.decode(*CODES)
        try:
            text, doc = parsed(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            new = self.plain(text)
            return data if new == text else new.encode(*CODES)
        said = guard_channels.read_whole(doc, self.clean)
        self.tell(said.tools)
        changes = {one.n: new for one in said.texts if (new := self.whole(one)) != one.value}
        return rewritten(text, changes, said.odds).encode(*CODES) if changes else data

    def tell(self, tools: Iterable[str]) -> None:
        if self.on_tool:
            for tool in tools:
                self.on_tool(tool)


class Stream(Texts):
    """One answer that comes in frames. ``feed`` and ``end`` may raise what a channel raises, and ``Unreadable``."""

    def __init__(
        self,
        framing: Framing,
        channels: Channels,
        on_tool: Callable[[str], None] | None = None,
        repeats: bool = False,
    ) -> None:
        super().__init__(channels, on_tool)
        self.framing = framing
        self.repeats = repeats
        """The API says its output from the start again in every frame."""
        self.cutter: Cutter = CUTTERS[framing]()
        self.lines: dict[Key, Line] = {}
        self.samples: dict[Key, Sample] = {}
        self.gone: dict[Key, str] = {}
        """The end of what went out of a text that was over, in case it goes on."""
        self.calls: dict[Place, str] = {}
        """Ids of the calls under way."""
        self.model: Model | None = None
        self.latest = b""
        """The last bytes that went on."""
        self.out: list[bytes] = []
        """What may go on; where a channel raises, it is what came before."""

    def feed(self, data: bytes) -> bytes:
        """Return what may go on now that *data* has come."""
        for frame in self.cutter.feed(data):
            self._take(frame, last=False)
        return self.taken()

    def end(self) -> bytes:
        """The answer is over: return all that is left of it."""
        frames = self.cutter.end()
        for frame in frames:
            self._take(frame, last=frame is frames[-1])
        self._end_texts(lambda key: True)
        return self.taken()

    def taken(self) -> bytes:
        """Return what may go on, once."""
        out = b"".join(self.out)
        self.out.clear()
        self.latest = out[-2:] or self.latest
        return out

    # -- frames

    def _take(self, frame: Frame, last: bool) -> None:
        if isinstance(frame, Event) and frame.asides:
            frame = self._with_asides(frame)
        payload = frame.payload
        if last:
            self.model = None
        if payload is None or payload.strip() == DONE:
            if payload is not None or (self.framing == "list" and b"]" in frame.raw):
                self._end_texts(lambda key: True, frame.raw)
            self.out.append(frame.raw)
            return
        if self.model and self._is_like(self.model, frame, payload):
            return
        self.model = None
        text = payload.decode(*CODES)
        try:
            plain, doc = parsed(text)
            said = guard_channels.read(doc, frame.name, self.clean, self.repeats)
        except (ValueError, RecursionError):
            new = self.plain(text)
            self.out.append(frame.raw if new == text else frame.saying(new.encode(*CODES)))
            return
        if last:
            said.over.append(())
        self._say(frame, text, plain, said)

    def _with_asides(self, event: Event) -> Event:
        """Return *event*, without its comments where they say what may not be seen."""
        aside = event.aside().decode(*CODES)
        return event if self.plain(aside) == aside else event.without_asides()

    def _is_like(self, model: Model, frame: Frame, payload: bytes) -> bool:
        """True where *frame* is like *model* but for its text, and has gone on without another look."""
        core, padding = unpadded(payload)
        piece, line = model.piece_of(frame.name, core), self.lines.get(model.key)
        if piece is None or line is None:
            return False
        new = line.feed(piece)
        if new == piece:
            self.out.append(frame.raw)
        else:
            self.out.append(frame.saying(model.before + quoted(new)[1:-1].encode() + model.after + padding))
        return True

    def _say(self, frame: Frame, text: str, plain: str, said: Said) -> None:
        """Let *frame* go on, with the texts in it as they may be seen."""
        self.tell(said.tools)
        if said.calls:
            self._end_calls(said, frame)
        if self.lines:
            self._end_before(frame, said)
        changes: dict[int, str] = {}
        pieces: list[Text] = []
        for one in said.texts:
            if one.how == "grows":
                new = self._grown(one, _is_over(one.key[0], said.over))
                pieces.append(one)
            elif one.how == "repeats":
                new = self._so_far(one, _is_over(one.key[0], said.over))
            else:
                new = self.whole(one, said.repeated)
            if new != one.value:
                changes[one.n] = new
        if changes:
            plain = rewritten(plain, changes, said.odds)
        if plain == text:
            self.out.append(frame.raw)
        else:
            self.out.append(frame.saying(plain.encode(*CODES)))
        self._keep_samples(frame, plain, pieces, said)
        if len(said.texts) == len(pieces) == 1 and not (said.over or said.tools or said.calls or said.odds):
            self._learn(frame, text, pieces[0])

    def _learn(self, frame: Frame, text: str, piece: Text) -> None:
        start, end = guard_channels.span_of(text, piece.n)
        before, value, after = text[: start + 1], text[start + 1 : end - 1], text[end - 1 :]
        if value == piece.value and piece.key in self.lines:
            after_core, _ = unpadded(after.encode(*CODES))
            self.model = Model(frame.name, before.encode(*CODES), after_core, piece.key)

    def _grown(self, piece: Text, over: bool) -> str:
        line = self.lines.get(piece.key)
        if line is None:
            if not piece.value:
                return ""
            if len(self.lines) >= MOST_LINES:
                raise Unreadable("more texts at the same time than anybody could follow")
            line = Line(self.channels(piece.is_json, ""), piece.is_json, self.gone.pop(piece.key, ""))
            self.lines[piece.key] = line
        new = line.feed(piece.value)
        return new + self._ended(piece.key) if over else new

    def _so_far(self, piece: Text, over: bool) -> str:
        """Return a text that is said from its start again: a match that may still grow waits for the next time."""
        line = Line(self.channels(piece.is_json, REPEATED), piece.is_json)
        new = line.feed(piece.value)
        return new + line.end()[0] if over else new

    def _keep_samples(self, frame: Frame, payload: str, pieces: list[Text], said: Said) -> None:
        for piece in pieces:
            if piece.key in self.lines and (not said.tools or piece.key not in self.samples):
                self.samples[piece.key] = Sample(frame, payload, piece.n, bool(said.tools))

    # -- ends

    def _end_before(self, frame: Frame, said: Said) -> None:
        """Let out what is held of texts that are over with *frame*, and have no place in it."""
        here = {one.key for one in said.texts if one.how == "grows"}
        speaks = {one.key[0][:1] for one in said.texts if one.how == "grows" and one.value and not _is_thought(one.key)}
        if not (said.over or said.tools or speaks):
            return

        def ends(key: Key) -> bool:
            if key in here:
                return False
            if _is_over(key[0], said.over):
                return True
            line = self.lines[key]
            if _is_thought(key):
                return key[0][:1] in speaks
            return bool(said.tools) and line.escapes is None

        self._end_texts(ends, frame.raw)

    def _end_calls(self, said: Said, frame: Frame) -> None:
        """A new call at the place of an old one: what follows does not belong to that any more."""
        for place, given in said.calls:
            if self.calls.setdefault(place, given) != given:
                self.calls[place] = given
                self._end_texts(lambda key, place=place: _is_over(key[0], [place]), frame.raw)  # type: ignore[misc]
                for key in [key for key in self.gone if _is_over(key[0], [place])]:
                    del self.gone[key]

    def _end_texts(self, ends: Callable[[Key], bool], before: bytes = b"") -> None:
        """Let out what is held of each text that *ends*, before the bytes *before*."""
        for key in [key for key in self.lines if ends(key)]:
            sample = self.samples.get(key)
            held = self._ended(key)
            if held and sample:
                self.out.append(self._extra(sample, key, held, before))

    def _ended(self, key: Key) -> str:
        """Return what is held of a text, and forget it, but for its end."""
        self.samples.pop(key, None)
        held, self.gone[key] = self.lines.pop(key).end()
        if len(self.gone) > MOST_LINES:
            self.gone.pop(next(iter(self.gone)))
        return held

    def _extra(self, sample: Sample, key: Key, held: str, before: bytes) -> bytes:
        """Return a frame that says *held* and nothing else, to stand before the bytes *before*."""
        behind = self.out[-1] if self.out else self.latest
        payload = only(sample, key, held).encode(*CODES)
        if sample.frame.name == BEGINNING and isinstance(sample.frame, Event):
            return b"event: content_block_delta\ndata: " + payload + b"\n\n"
        return one_more(self.framing, sample.frame, payload, behind, before)


BEGINNING = "content_block_start"
"""Anthropic's event that may bring the first words of a text, and that cannot be said twice."""
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}


def only(sample: Sample, key: Key, held: str) -> str:
    """Return JSON like that of *sample* that says *held* as the text *key*, and nothing else."""
    doc = guard_channels.loads(sample.payload)
    if guard_channels.kind_of(doc, "")[0] == BEGINNING:
        name = key[1].rpartition(".")[2]
        delta = {"type": DELTAS.get(name, f"{name}_delta"), name: held}
        return json.dumps({"type": "content_block_delta", "index": doc.get("index"), "delta": delta})
    payload = sample.payload
    if sample.calls:
        doc = guard_channels.without_calls(doc)
        payload = json.dumps(doc, ensure_ascii=False)
    said = guard_channels.read(doc, sample.frame.name, frozenset())
    changes = {one.n: "" for one in said.texts if one.how == "grows"}
    first = next((one.n for one in said.texts if one.key == key and one.how == "grows"), None)
    if first is None:
        raise Unreadable("a text in it is in no frame that it was in before")
    changes[first] = held
    return rewritten(payload, changes, said.odds)


def parsed(text: str) -> tuple[str, Any]:
    """Return JSON and its value. Where a name stands twice in it, the JSON is written anew: readers differ there.

    Raises ``ValueError`` and ``RecursionError``.
    """
    try:
        return text, guard_channels.loads(text)
    except Twice:
        doc = json.loads(text)
        return json.dumps(doc, ensure_ascii=False), doc


def unpadded(payload: bytes) -> tuple[bytes, bytes]:
    """Return a payload, and apart from it the random letters at its end by which OpenAI hides its length."""
    at = payload.rfind(PADDING, -PADDING_BYTES)
    if at > 0 and payload.endswith(b'"}') and payload[at + len(PADDING) : -2].isalnum():
        return payload[:at], payload[at:]
    return payload, b""


def rewritten(text: str, changes: dict[int, str], odds: bool) -> str:
    """Return the JSON *text* with its strings changed; *odds*: it has what would tell token by token what was there."""
    text = guard_channels.edited(text, changes)
    if not odds:
        return text
    return json.dumps(guard_channels.without_odds(json.loads(text)), ensure_ascii=False)


def tools_in(data: bytes) -> list[str]:
    """Return the names of the tools that a whole answer calls."""
    if b'"name"' not in data:
        return []
    try:
        return guard_channels.read_whole(json.loads(data), frozenset()).tools
    except (ValueError, RecursionError):
        return []


def without_odds(data: bytes) -> bytes:
    """Return a whole answer without the probabilities of single tokens, which would tell what was there."""
    if b'"logprobs"' not in data:
        return data
    return json.dumps(guard_channels.without_odds(json.loads(data)), ensure_ascii=False).encode(*CODES)


def _is_over(place: Place, over: list[Place]) -> bool:
    return any(place[: len(one)] == one for one in over)


def _is_thought(key: Key) -> bool:
    return "thought" in key[0] or "reasoning" in key[1] or "thinking" in key[1]


def repeats(path: str, asked: Any) -> bool:
    """Return whether the API at *path*, asked with the JSON *asked*, says all its output again in each frame.

    DashScope does, unless it is told not to.
    """
    if "/services/aigc/" not in path:
        return False
    parameters = asked.get("parameters") if isinstance(asked, dict) else None
    return not (isinstance(parameters, dict) and parameters.get("incremental_output") is True)
