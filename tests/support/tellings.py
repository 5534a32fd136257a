"""One text in pieces, as each API streams it; and what its client makes of the stream.

Shapes follow the providers' API references of 2026-11. ``Telling.frames`` writes the text, ``heard`` puts together
again what a client shows, ``repeated`` what the API says a second time in whole.
"""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mitmgate import dialects
from mitmgate.dialects.base import Dialect
from mitmgate.dialects.framing import values_of
from mitmgate.guard_frames import Framing
from support import amazon
from support.speech import sse

type Json = Any

TYPES: dict[Framing, str] = {
    "events": "text/event-stream",
    "list": "application/json",
    "lines": "application/x-ndjson",
    "messages": "application/vnd.amazon.eventstream",
}


@dataclass(frozen=True)
class Telling:
    """How one API streams one kind of text."""

    name: str
    pieces: Callable[[Sequence[str]], list[Json]]
    """The texts of the pieces -> all values of the stream, the first and the last ones, too."""
    pick: Callable[[Json], Iterator[str]]
    """A value of the stream -> the pieces in it."""
    again: Callable[[Json], Iterator[str]] = lambda value: iter(())
    """A value of the stream -> the whole texts in it, which repeat the pieces."""
    framing: Framing = "events"
    dialect: Dialect = dialects.CHAT
    named: bool = False
    """Events have their type for a name."""
    done: bool = False
    """``[DONE]`` stands at the end."""
    is_json: bool = False
    """The text is a string within the arguments of a tool."""
    in_chunks: bool = False
    """Amazon wraps each value in base64."""

    @property
    def content_type(self) -> str:
        return TYPES[self.framing]

    def frames(self, *pieces: str) -> list[bytes]:
        """Return the stream that says *pieces*, frame by frame."""
        said = [json.dumps(piece)[1:-1] for piece in pieces] if self.is_json else list(pieces)
        if self.is_json:
            said = ['{"q": "', *said, '"}']
        values = self.pieces(said)
        match self.framing:
            case "events":
                frames = [sse(value, value["type"] if self.named else None) for value in values]
                return [*frames, b"data: [DONE]\n\n"] if self.done else frames
            case "lines":
                return [json.dumps(value).encode() + b"\n" for value in values]
            case "list":
                first, *rest = (json.dumps(value).encode() for value in values)
                return [b"[" + first, *(b",\r\n" + one for one in rest), b"]"]
            case _:
                if self.in_chunks:
                    return [amazon.chunk(value) for value in values]
                return [amazon.event(*next(iter(value.items()))) for value in values]

    def values(self, body: bytes) -> list[Json]:
        """Return the values of a stream, as a reader of its own finds them."""
        found = values_of(self.content_type, body)
        if self.framing == "messages" and not self.in_chunks:
            return [{name.decode(): value} for name, value in found]
        return [value for _, value in found]

    def heard(self, body: bytes) -> str:
        """Return the text that a client has put together."""
        said = self.heard_so_far(body)
        return str(json.loads(said)["q"]) if self.is_json else said

    def heard_so_far(self, body: bytes) -> str:
        """Return what a client has of a text that does not go on."""
        return "".join(piece for value in self.values(body) for piece in self.pick(value))

    def repeated(self, body: bytes) -> list[str]:
        """Return what the stream says again in whole."""
        wholes = [whole for value in self.values(body) for whole in self.again(value)]
        return [str(json.loads(whole)["q"]) for whole in wholes] if self.is_json else wholes

    def __str__(self) -> str:
        return self.name


def strings(value: Json) -> Iterator[str]:
    """Yield every string in *value*, names of members as well, and what base64 hides."""
    if isinstance(value, str):
        yield value
        if len(value) % 4 == 0 and value.isascii():
            with contextlib.suppress(ValueError):
                yield base64.b64decode(value, validate=True).decode("utf-8", "replace")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


def _at(*path: str | int) -> Callable[[Json], Iterator[str]]:
    """Return a pick of the one text at *path*, where there is one."""

    def pick(value: Json) -> Iterator[str]:
        for step in path:
            if isinstance(step, int):
                value = value[step] if isinstance(value, list) and len(value) > step else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, str):
            yield value

    return pick


def _of_type(kind: str, *path: str | int) -> Callable[[Json], Iterator[str]]:
    """Return a pick of the text at *path* in events of the type *kind*."""
    inner = _at(*path)
    return lambda value: inner(value) if value.get("type", value.get("event_type")) == kind else iter(())


def _both(*picks: Callable[[Json], Iterator[str]]) -> Callable[[Json], Iterator[str]]:
    def pick(value: Json) -> Iterator[str]:
        for one in picks:
            yield from one(value)

    return pick


# -- OpenAI's chat, and who speaks like it ----------------------------------------------------------------------------


def _choice(finish: str | None = None, **choice: Json) -> Json:
    return {"id": "c", "model": "m", "choices": [{"index": 0, **choice, "finish_reason": finish}]}


def _chat(delta: Callable[[str], Json]) -> Callable[[Sequence[str]], list[Json]]:
    return lambda pieces: [
        _choice(delta={"role": "assistant"}),
        *(_choice(delta=delta(piece)) for piece in pieces),
        _choice("stop", delta={}),
    ]


def _call(arguments: str) -> Json:
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}


def _chat_call(pieces: Sequence[str]) -> list[Json]:
    begin = {
        "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]
    }
    return [_choice(delta=begin), *(_choice(delta=_call(piece)) for piece in pieces), _choice("tool_calls", delta={})]


def _perplexity(pieces: Sequence[str]) -> list[Json]:
    said, values = "", []
    for at, piece in enumerate(pieces):
        said += piece
        finish = "stop" if at == len(pieces) - 1 else None
        values.append(_choice(finish, delta={"content": piece}, message={"role": "assistant", "content": said}))
    return values


def _last_message(value: Json) -> Iterator[str]:
    choice = value["choices"][0]
    if choice["finish_reason"]:
        yield choice["message"]["content"]


CHOICE = ("choices", 0)
CHAT = [
    Telling("chat", _chat(lambda piece: {"content": piece}), _at(*CHOICE, "delta", "content"), done=True),
    Telling(
        "chat reasoning",
        _chat(lambda piece: {"reasoning_content": piece, "content": None}),
        _at(*CHOICE, "delta", "reasoning_content"),
        done=True,
    ),
    Telling("chat refusal", _chat(lambda piece: {"refusal": piece}), _at(*CHOICE, "delta", "refusal"), done=True),
    Telling(
        "chat tool",
        _chat_call,
        _at(*CHOICE, "delta", "tool_calls", 0, "function", "arguments"),
        done=True,
        is_json=True,
    ),
    Telling(
        "chat function",
        _chat(lambda piece: {"function_call": {"arguments": piece}}),
        _at(*CHOICE, "delta", "function_call", "arguments"),
        is_json=True,
    ),
    Telling(
        "completions",
        lambda pieces: [*(_choice(text=piece) for piece in pieces), _choice("stop", text="")],
        _at(*CHOICE, "text"),
        dialect=dialects.COMPLETIONS,
        done=True,
    ),
    Telling(
        "mistral parts",
        _chat(lambda piece: {"content": [{"type": "text", "text": piece}]}),
        _at(*CHOICE, "delta", "content", 0, "text"),
        done=True,
    ),
    Telling(
        "mistral thinking",
        _chat(lambda piece: {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}]}),
        _at(*CHOICE, "delta", "content", 0, "thinking", 0, "text"),
        done=True,
    ),
    Telling("perplexity", _perplexity, _at(*CHOICE, "delta", "content"), _last_message),
]


# -- OpenAI's responses ------------------------------------------------------------------------------------------------


def _responses_text(pieces: Sequence[str]) -> list[Json]:
    place, whole = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}, "".join(pieces)
    part = {"type": "output_text", "text": whole, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    head = {"id": "resp_1", "object": "response", "model": "m", "output": []}
    return [
        {"type": "response.created", "response": {**head, "status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **place, "delta": piece} for piece in pieces),
        {"type": "response.output_text.done", **place, "text": whole},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {**head, "status": "completed", "output": [item]}},
    ]


def _responses_call(pieces: Sequence[str]) -> list[Json]:
    place, whole = {"output_index": 0, "item_id": "fc_1"}, "".join(pieces)
    item = {"id": "fc_1", "type": "function_call", "name": "f", "call_id": "call_1", "arguments": whole}
    head = {"id": "resp_1", "object": "response", "model": "m"}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
        *({"type": "response.function_call_arguments.delta", **place, "delta": piece} for piece in pieces),
        {"type": "response.function_call_arguments.done", **place, "arguments": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {**head, "status": "completed", "output": [item]}},
    ]


RESPONSES = [
    Telling(
        "responses",
        _responses_text,
        _of_type("response.output_text.delta", "delta"),
        _both(
            _of_type("response.output_text.done", "text"),
            _of_type("response.content_part.done", "part", "text"),
            _of_type("response.output_item.done", "item", "content", 0, "text"),
            _of_type("response.completed", "response", "output", 0, "content", 0, "text"),
        ),
        dialect=dialects.RESPONSES,
        named=True,
    ),
    Telling(
        "responses tool",
        _responses_call,
        _of_type("response.function_call_arguments.delta", "delta"),
        _both(
            _of_type("response.function_call_arguments.done", "arguments"),
            _of_type("response.output_item.done", "item", "arguments"),
            _of_type("response.completed", "response", "output", 0, "arguments"),
        ),
        dialect=dialects.RESPONSES,
        named=True,
        is_json=True,
    ),
]


# -- Anthropic, by itself and within Amazon's messages ----------------------------------------------------------------


def _messages(kind: str, name: str, begins: bool = False) -> Callable[[Sequence[str]], list[Json]]:
    """*begins*: the first piece stands in the block's own beginning."""

    def write(pieces: Sequence[str]) -> list[Json]:
        first = pieces[0] if begins else ""
        block: Json = {"type": kind, name: first}
        if kind == "tool_use":
            block = {"type": kind, "id": "toolu_1", "name": "f", "input": {}}
        delta = "input_json_delta" if kind == "tool_use" else f"{kind}_delta"
        return [
            {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "model": "m"}},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": delta, name: piece}}
                for piece in pieces[1 if begins else 0 :]
            ),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ]

    return write


def _claude(name: str, kind: str, text: str, begins: bool = False, **more: Json) -> Telling:
    pick = _both(_of_type("content_block_start", "content_block", text), _of_type("content_block_delta", "delta", text))
    return Telling(name, _messages(kind, text, begins), pick, dialect=dialects.MESSAGES, **{"named": True, **more})


MESSAGES = [
    _claude("messages", "text", "text"),
    _claude("messages begun at once", "text", "text", begins=True),
    _claude("messages thinking", "thinking", "thinking"),
    _claude("messages tool", "tool_use", "partial_json", is_json=True),
    _claude("messages in chunks", "text", "text", framing="messages", in_chunks=True, named=False),
    _claude("messages tool in chunks", "tool_use", "partial_json", framing="messages", in_chunks=True, is_json=True),
]


# -- Google ------------------------------------------------------------------------------------------------------------


def _gemini(text: str | None, finish: str | None = None, **part: Json) -> Json:
    parts = [] if text is None else [{"text": text, **part}]
    candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 4}, "modelVersion": "m"}


def _gemini_pieces(pieces: Sequence[str]) -> list[Json]:
    return [*(_gemini(piece) for piece in pieces[:-1]), _gemini(pieces[-1], "STOP")]


def _gemini_thoughts(pieces: Sequence[str]) -> list[Json]:
    return [*(_gemini(piece, thought=True) for piece in pieces), _gemini("Done.", "STOP")]


def _thought(value: Json) -> Iterator[str]:
    for part in value["candidates"][0]["content"]["parts"]:
        if part.get("thought"):
            yield part["text"]


PART = ("candidates", 0, "content", "parts", 0, "text")
GEMINI = [
    Telling("gemini", _gemini_pieces, _at(*PART), dialect=dialects.GENERATE),
    Telling("gemini as a list", _gemini_pieces, _at(*PART), dialect=dialects.GENERATE_LIST, framing="list"),
    Telling(
        "gemini ends without text",
        lambda pieces: [*(_gemini(piece) for piece in pieces), _gemini(None, "STOP")],
        _at(*PART),
        dialect=dialects.GENERATE_LIST,
        framing="list",
    ),
    Telling("gemini thoughts", _gemini_thoughts, _thought, dialect=dialects.GENERATE),
    Telling(
        "code assist",
        lambda pieces: [{"response": value} for value in _gemini_pieces(pieces)],
        _at("response", *PART),
        dialect=dialects.GENERATE,
    ),
]


# -- others ------------------------------------------------------------------------------------------------------------


def _converse(delta: Callable[[str], Json]) -> Callable[[Sequence[str]], list[Json]]:
    return lambda pieces: [
        {"messageStart": {"role": "assistant"}},
        *({"contentBlockDelta": {"contentBlockIndex": 0, "delta": delta(piece), "p": "abcd"}} for piece in pieces),
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": {"inputTokens": 5, "outputTokens": 7}}},
    ]


def _nova(pieces: Sequence[str]) -> list[Json]:
    return [value for value in _converse(lambda piece: {"text": piece})(pieces) if "metadata" not in value]


def _cohere2(pieces: Sequence[str]) -> list[Json]:
    def content(text: str) -> Json:
        return {"message": {"content": {"type": "text", "text": text}}}

    return [
        {"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": content("")},
        *({"type": "content-delta", "index": 0, "delta": content(piece)} for piece in pieces),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
    ]


def _cohere1(pieces: Sequence[str]) -> list[Json]:
    return [
        {"event_type": "stream-start", "is_finished": False, "generation_id": "g"},
        *({"event_type": "text-generation", "is_finished": False, "text": piece} for piece in pieces),
        {"event_type": "stream-end", "is_finished": True, "response": {"text": "".join(pieces)}},
    ]


def _ollama(piece: Callable[[str], Json]) -> Callable[[Sequence[str]], list[Json]]:
    return lambda pieces: [
        *({"model": "m", **piece(text), "done": False} for text in pieces),
        {"model": "m", **piece(""), "done": True, "eval_count": 7},
    ]


OTHERS = [
    Telling(
        "converse",
        _converse(lambda piece: {"text": piece}),
        _at("contentBlockDelta", "delta", "text"),
        framing="messages",
        dialect=dialects.GENERIC,
    ),
    Telling(
        "converse tool",
        _converse(lambda piece: {"toolUse": {"input": piece}}),
        _at("contentBlockDelta", "delta", "toolUse", "input"),
        framing="messages",
        dialect=dialects.GENERIC,
        is_json=True,
    ),
    Telling(
        "nova",
        _nova,
        _at("contentBlockDelta", "delta", "text"),
        framing="messages",
        dialect=dialects.GENERIC,
        in_chunks=True,
    ),
    Telling(
        "cohere",
        _cohere2,
        _of_type("content-delta", "delta", "message", "content", "text"),
        dialect=dialects.GENERIC,
        named=True,
    ),
    Telling(
        "cohere 1",
        _cohere1,
        _of_type("text-generation", "text"),
        _of_type("stream-end", "response", "text"),
        framing="lines",
        dialect=dialects.GENERIC,
    ),
    Telling(
        "ollama",
        _ollama(lambda text: {"message": {"role": "assistant", "content": text}}),
        _at("message", "content"),
        framing="lines",
        dialect=dialects.GENERIC,
    ),
    Telling(
        "ollama generate",
        _ollama(lambda text: {"response": text}),
        _at("response"),
        framing="lines",
        dialect=dialects.GENERIC,
    ),
    Telling(
        "an unknown one",
        lambda pieces: [{"event": "message", "task": "t", "answer": piece} for piece in pieces],
        _at("answer"),
        dialect=dialects.GENERIC,
    ),
    Telling(
        "an unknown one, deep",
        lambda pieces: [{"result": {"output": [{"delta": {"text": piece}}]}} for piece in pieces],
        _at("result", "output", 0, "delta", "text"),
        dialect=dialects.GENERIC,
    ),
]

TELLINGS = [*CHAT, *RESPONSES, *MESSAGES, *GEMINI, *OTHERS]
