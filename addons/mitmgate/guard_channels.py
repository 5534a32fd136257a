"""Where text stands in what a stream says: one table of names for all APIs, those with a module here and any other.

``read`` takes the JSON of one frame and returns its strings, each with the way it is said:

    grows    a piece of a text that goes on in later frames; pieces of one text have the same ``key``
    repeats  all of a text as far as it has come, again in every frame (Perplexity's ``message``, DashScope)
    whole    said once and complete

It also says which texts are over with this frame (a finish reason, the stop of a block, a ``.done``), and which tools
are called. Told apart are texts by their place (choice, block, output) and by the names on the way to them, so that an
API that nobody knows is read as well: there a string under one of ``TEXTS`` grows, any other is whole.

Not text are ids, names of the wire, signatures and the bytes of pictures (``NOT_TEXT``), except within the arguments of
a tool, where a model may write whatever it likes under any name.
"""

import json
import re
from collections.abc import Container
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

type How = Literal["grows", "repeats", "whole"]

type Place = tuple[int | str, ...]
"""Choice, block, call …, from the outside in."""

type Key = tuple[Place, str]
"""A text of a stream: its place, and the names that lead to it."""


@dataclass(slots=True)
class Text:
    """A string of a frame."""

    n: int
    """It is the n-th string of the frame's JSON, names of members and long numbers counted."""
    value: str
    how: How
    key: Key
    is_json: bool = False
    """JSON inside of a string: the arguments of a tool."""
    before: str = ""
    """What the text is called, as it may stand before it: the name that a model gave it tells what it is."""


@dataclass(slots=True)
class Said:
    """What one frame says."""

    texts: list[Text] = field(default_factory=list)
    over: list[Place] = field(default_factory=list)
    """Texts at these places, and within them, are over; ``()`` is everywhere."""
    tools: list[str] = field(default_factory=list)
    """Names of the tools that are called."""
    calls: list[tuple[Place, str]] = field(default_factory=list)
    """Ids of calls whose arguments come in pieces: a place may be used for another call later."""
    repeated: str = ""
    """The kind of an event that says again, or may say again, what others have said; else empty."""
    odds: bool = False
    """Probabilities of single tokens stand in it, which repeat the text bit by bit."""


TEXTS = frozenset(
    {
        "content", "text", "delta", "arguments", "partial_json", "thinking", "reasoning", "reasoning_content",
        "reasoning_text", "refusal", "input", "transcript", "tool_plan", "response", "completion", "outputText",
        "generation", "generated_text", "answer", "output_text", "stringValue", "summary",
    }
)  # fmt: skip
"""Members whose strings grow from frame to frame."""

THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_content", "reasoning_text"})
"""Those that come before the answer itself."""

ONCE = frozenset(
    {
        "item", "part", "error", "errors", "citation", "citations", "annotation", "annotations", "usage",
        "logprobs", "search_results", "groundingMetadata", "chat_history", "documents", "details", "output_items",
    }
)  # fmt: skip
"""Members below which nothing grows: what they hold is complete."""

ARGUMENTS = frozenset({"args", "arguments", "input", "parameters"})
"""Objects that a model fills in as it likes: every string in them is text, and so is every name."""

NOT_TEXT = frozenset(
    {
        "id", "object", "type", "role", "model", "status", "index", "item_id", "response_id", "message_id", "call_id",
        "tool_call_id", "tool_use_id", "toolUseId", "generation_id", "event_id", "event_type", "request_id",
        "responseId", "modelVersion", "system_fingerprint", "service_tier", "trafficType", "finish_reason",
        "native_finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason", "created_at", "createTime",
        "signature", "thoughtSignature", "thought_signature", "encrypted_content", "encrypted_index", "data",
        "b64_json", "partial_image_b64", "image_url", "audio", "redactedContent", "obfuscation", "p", "mimeType",
        "mime_type", "media_type", "format", "log_id",
    }
)  # fmt: skip

INDEXES = ("output_index", "content_index", "summary_index", "index", "contentBlockIndex")
"""Where an event with a kind of its own says what it belongs to."""

WRAPPERS = frozenset({"delta", "content_block", "start", "contentBlockDelta", "contentBlockStart", "message"})
"""Names on the way to a text that differ between its first piece and the others."""

WHOLE_KINDS = re.compile(
    r"[._-](?:done|completed?|incomplete|failed|cancelled|created|queued|in_progress|added|stop|end|start)$"
    r"|Stop$|(?<!text)-generation$|^(?:error|ping|metadata)$|exception$",
    re.IGNORECASE,
)
"""Kinds of events in which nothing grows."""
BEGINNINGS = frozenset({"content_block_start", "content-start", "tool-call-start", "contentBlockStart"})
"""Kinds in which a text may begin."""
FAMILY = re.compile(r"(?:[._-](?:delta|start)|Delta|Start)$")
"""What is cut off a kind to know its first event and the others as one."""
BLOCK_STOPS = frozenset(
    {"content_block_stop", "contentBlockStop", "content-end", "tool-call-end", "content.stop", "step.stop"}
)
STREAM_STOPS = re.compile(
    r"^(?:message_stop|messageStop|message-end|stream-end|interaction\.complete|error"
    r"|response\.(?:completed|incomplete|failed|cancelled|done))$"
)

REASONS = frozenset({"finish_reason", "finishReason", "stop_reason", "stopReason", "completionReason", "done_reason"})
UNFINISHED = frozenset({"", "null", "not_finished", "in_progress", "queued", "FINISH_REASON_UNSPECIFIED"})
"""What stands in the place of a reason until there is one."""

JSON_NAMES = frozenset({"arguments", "partial_json"})
"""Members whose strings are JSON themselves."""

CALLED = frozenset({"function", "functionCall", "function_call", "toolUse", "custom", "tool_calls"})
"""Members whose ``name`` is a tool's."""
CALL_TYPES = frozenset({"tool_use", "server_tool_use", "function_call", "custom_tool_call", "mcp_call"})

BASE64_CHARS = 4096
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
"""So long a word is a file."""

STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"|(?<![\w.+-])[0-9]{9,20}(?![\w.+-])', re.DOTALL)
"""A string of JSON, or a number so long that it may be a card's: in the arguments of a tool that is a text, too."""
LONG_NUMBERS = range(10**8, 10**20)


class Twice(ValueError):
    """An object has two members of one name: readers differ in which they take."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Twice(f"{len(pairs) - len(made)} names stand twice")
    return made


loads = json.JSONDecoder(object_pairs_hook=_object).decode
"""(text) -> its value. Raises ``ValueError`` or ``RecursionError`` where it is no JSON, ``Twice`` where it is two."""


def read(doc: Any, name: str, clean: Container[str], repeats: bool = False) -> Said:
    """Return what the frame with the JSON *doc* says; *name* is its event's.

    *clean*: short strings that need no look, so that what stands in every frame costs next to nothing. *repeats*: the
    API is asked to say its output from the start again in every frame.
    """
    kind, told = kind_of(doc, name)
    walk = _Walk(kind, clean, repeats)
    place: Place = ()
    if isinstance(doc, dict):
        if told or "contentBlockIndex" in doc:
            place = tuple(doc[key] for key in INDEXES if type(doc.get(key)) is int)
        if _ends_all(doc, kind):
            walk.said.over.append(())
        elif kind in BLOCK_STOPS or kind.endswith(".done"):
            walk.said.over.append(place)
    if is_whole := _is_whole(kind):
        walk.said.repeated = kind
    walk.value(doc, place, "", "", "whole" if is_whole else "grows", False)
    return walk.said


def read_whole(doc: Any, clean: Container[str]) -> Said:
    """Return what an answer with the JSON *doc* says that comes in one piece."""
    walk = _Walk("", clean, False)
    walk.value(doc, (), "", "", "whole", False)
    return walk.said


def kind_of(doc: Any, name: str) -> tuple[str, bool]:
    """Return what kind of event *doc* is, and whether it says so itself."""
    if isinstance(doc, dict):
        kind = doc.get("type") or doc.get("event_type")
        if isinstance(kind, str):
            return kind, True
    return name, False


def _ends_all(doc: dict[str, Any], kind: str) -> bool:
    if STREAM_STOPS.match(kind) or doc.get("error"):
        return True
    return doc.get("done") is True or doc.get("is_finished") is True


@lru_cache(1024)
def _is_whole(kind: str) -> bool:
    return kind not in BEGINNINGS and WHOLE_KINDS.search(kind) is not None


@lru_cache(1024)
def _family(kind: str) -> str:
    return FAMILY.sub("", kind)


class _Walk:
    """One way through the JSON of a frame, in the order of its text.

    Handed down: *place*; *path*, the names so far, and *name*, the last one; *how*; *free*: a model fills it in.
    """

    __slots__ = ("clean", "family", "is_sound", "n", "repeats", "said")

    def __init__(self, kind: str, clean: Container[str], repeats: bool) -> None:
        self.clean, self.repeats = clean, repeats
        self.family = _family(kind)
        self.is_sound = kind.endswith("audio.delta")
        self.n = 0
        self.said = Said()

    def value(self, value: Any, place: Place, path: str, name: str, how: How, free: bool) -> None:
        if isinstance(value, str):
            self.n += 1
            self._string(value, place, path, name, how, free)
        elif isinstance(value, dict):
            self._members(value, place, path if name in WRAPPERS else f"{path}.{name}", name, how, free)
        elif isinstance(value, list):
            for at, element in enumerate(value):
                self.value(element, (*place, _part(element, at, name)), path, name, how, free)
        elif value.__class__ is int and value in LONG_NUMBERS:
            self._number(value, place, name, free)

    def _members(self, value: dict[str, Any], place: Place, path: str, name: str, how: How, free: bool) -> None:
        if not free:
            place = self._look_at(value, place, name)
        for key, one in value.items():
            self.n += 1
            if key not in self.clean:
                self.said.texts.append(Text(self.n - 1, key, "whole", (place, "")))
            if isinstance(one, str):
                self.n += 1
                self._string(one, place, path, key, how, free)
            elif one.__class__ in CONTAINERS and one:
                if key == "logprobs":
                    self.said.odds = True
                inner = how if how == "whole" else self._how(key, value, how)
                self.value(one, place, path, key, inner, free or key in ARGUMENTS)
            elif one.__class__ is int and one in LONG_NUMBERS:
                self._number(one, place, key, free)

    def _look_at(self, value: dict[str, Any], place: Place, name: str) -> Place:
        """Note what the object *value* itself tells: a call, an end; return its place."""
        if not place and type(block := value.get("contentBlockIndex")) is int:
            place = (block,)
        if name == "contentBlockStop" or (
            not REASONS.isdisjoint(value) and any(map(_is_reason, map(value.get, REASONS)))
        ):
            self.said.over.append(place)
        if name == "tool_calls" and isinstance(given := value.get("id"), str) and given:
            self.said.calls.append((place, given))
        if name in CALLED or value.get("type") in CALL_TYPES:
            tool = value.get("name")
            if isinstance(tool, str) and tool:
                self.said.tools.append(tool)
        return place

    def _how(self, key: str, within: dict[str, Any], how: How) -> How:
        if key in ONCE:
            return "whole"
        said_twice = (key == "message" and within.get("delta")) or (key == "output" and self.repeats)
        return "repeats" if said_twice else how

    def _string(self, value: str, place: Place, path: str, name: str, how: How, free: bool) -> None:
        if free:
            self._free(value, place, name)
            return
        if name in NOT_TEXT or (self.is_sound and name == "delta"):
            return
        if how != "whole" and name in TEXTS:
            self._piece(value, place, f"{path}.{name}", name, how)
            return
        if value and value not in self.clean and not _is_file(value):
            self.said.texts.append(Text(self.n - 1, value, "whole", (place, name), name in JSON_NAMES))

    def _free(self, value: str, place: Place, name: str) -> None:
        """Take what a model has written under a *name* of its own."""
        before = f"{name}: " if name else ""
        if value and before + value not in self.clean and not _is_file(value):
            self.said.texts.append(Text(self.n - 1, value, "whole", (place, name), before=before))

    def _number(self, value: int, place: Place, name: str, free: bool) -> None:
        self.n += 1
        if free:
            self._free(str(value), place, name)

    def _piece(self, value: str, place: Place, path: str, name: str, how: How) -> None:
        is_json = (
            name in JSON_NAMES
            or path.endswith("toolUse.input")
            or (name == "delta" and self.family.endswith("arguments"))
        )
        self.said.texts.append(Text(self.n - 1, value, how, (place, self.family + path), is_json))


CONTAINERS = frozenset({dict, list})


def _part(element: Any, at: int, name: str) -> int | str:
    """Return what tells the element *at* of the list *name* from its neighbours, also in later frames."""
    if not isinstance(element, dict):
        return at
    if type(index := element.get("index")) is int:
        return index
    if name == "parts":  # of Gemini: a text goes on in the next frame's first part, be that a thought or not
        return "thought" if element.get("thought") else "said"
    for key in PART_NAMES.get(name, ()):
        if isinstance(given := element.get(key), str) and given:
            return given
    return at


PART_NAMES = {"content": ("type",), "thinking": ("type",), "tool_calls": ("id",), "partialArgs": ("jsonPath",)}
"""List -> member by which its elements are told apart where they are not numbered."""


def _is_reason(value: Any) -> bool:
    """True where *value* tells why a text ended; Google's may be a number."""
    return (isinstance(value, str) and value not in UNFINISHED) or (type(value) is int and value > 0)


def _is_file(value: str) -> bool:
    return len(value) > BASE64_CHARS and BASE64.fullmatch(value) is not None


# -- changing strings in their place ----


def edited(text: str, changes: dict[int, str]) -> str:
    """Return the JSON *text* with its n-th strings replaced; everything else stays as it is, character by character."""
    parts: list[str] = []
    done = 0
    for n, string in enumerate(STRING.finditer(text)):
        if n in changes:
            parts += (text[done : string.start()], quoted(changes[n]))
            done = string.end()
    return "".join((*parts, text[done:]))


def span_of(text: str, n: int) -> tuple[int, int]:
    """Return where the n-th string of the JSON *text* begins and ends, quotes included."""
    return next(islice(STRING.finditer(text), n, None)).span()


def quoted(value: str) -> str:
    """Return *value* as JSON; half a surrogate pair, which came in two frames, stays an escape."""
    made = json.dumps(value, ensure_ascii=False)
    return made if made.isascii() or not SURROGATE.search(made) else json.dumps(value)


SURROGATE = re.compile("[\ud800-\udfff]")


def without_odds(doc: Any) -> Any:
    """Return *doc* without the probabilities of single tokens."""
    if isinstance(doc, dict):
        return {
            key: ([] if isinstance(value, list) else None) if key == "logprobs" else without_odds(value)
            for key, value in doc.items()
        }
    if isinstance(doc, list):
        return [without_odds(value) for value in doc]
    return doc


def without_calls(doc: Any) -> Any:
    """Return *doc* as a piece of the calls in it that are under way: without their ids and names."""
    if isinstance(doc, dict):
        return {key: _under_way(value) if key in CALL_LISTS else without_calls(value) for key, value in doc.items()}
    if isinstance(doc, list):
        return [without_calls(value) for value in doc]
    return doc


CALL_LISTS = frozenset({"tool_calls", "function_call"})


def _under_way(calls: Any) -> Any:
    if isinstance(calls, list):
        return [_under_way(call) for call in calls]
    if not isinstance(calls, dict):
        return calls
    return {key: _under_way(value) for key, value in calls.items() if key not in ("id", "name")}
