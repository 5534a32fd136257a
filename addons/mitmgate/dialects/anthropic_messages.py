"""Anthropic Messages, at Anthropic, on Vertex and wherever else it is spoken.

Source: https://docs.anthropic.com/en/api/messages-streaming. What matters for the books:

- ``input_tokens`` leaves cache reads and writes out (the opposite of OpenAI); the row's input is the sum of the three.
- Usage in ``message_delta`` is cumulative and stands over that of ``message_start``, field by field. A zero takes
  nothing back: relays send zeros for what they do not know.
- ``iterations`` (compaction, advisor, fallback) repeat and exceed the top-level counters; the top level is what is
  booked.
- A failure in the stream is ``event: error`` with no ``message_stop`` behind it; what ``message_start`` reported is
  billed.
- Tools that run at Anthropic (``server_tool_use``, ``mcp_tool_use``) are no calls for the client.
"""

from typing import Any

from mitmgate.dialects import prompt, refusals
from mitmgate.dialects.base import Call, Json, Reader, Request, Turn, Usage
from mitmgate.dialects.counts import count, items, named, obj, objs, overlay, size, text, total
from mitmgate.dialects.framing import Framed, values_of
from mitmgate.errors import Refusal

COUNTERS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
DELTAS = ("text", "thinking", "partial_json")
"""Members of a delta that are output; the others are signatures and citations."""
TEXT_DELTA = {"type", "text"}

BLOCKS = 4096


def fill(usage: Usage, raw: dict[str, Any]) -> None:
    """Write into *usage* what Anthropic's usage object *raw* says."""
    read, written = count(raw.get("cache_read_input_tokens")), count(raw.get("cache_creation_input_tokens"))
    lives = obj(raw.get("cache_creation"))
    short, long = count(lives.get("ephemeral_5m_input_tokens")), count(lives.get("ephemeral_1h_input_tokens"))
    written = total(short, long) if written is None else written
    usage.input_tokens = total(count(raw.get("input_tokens")), read, written)
    usage.output_tokens = count(raw.get("output_tokens"))
    usage.cache_read_input_tokens = read
    usage.cache_creation_input_tokens = written
    usage.cache_creation_1h_input_tokens = long
    usage.reasoning_output_tokens = count(obj(raw.get("output_tokens_details")).get("thinking_tokens"))
    usage.service_tier = named(raw.get("service_tier")) or usage.service_tier
    for key, value in obj(raw.get("server_tool_use")).items():  # {"web_search_requests": 3}
        if calls := count(value):
            usage.server_tools[str(key)[:64].removesuffix("_requests")] = calls


class MessagesReader(Framed):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._usage: dict[str, Any] = {}
        self._calls: set[Json] = set()
        """Indexes of the content blocks that are the client's tool calls."""

    def on_whole(self, value: Json) -> None:
        doc = obj(value)
        if doc.get("type") == "message" or "content" in doc:
            self._message(doc)
            for index, block in enumerate(objs(doc.get("content"))):
                self._block(index, block)
            self._stopped(doc)
        else:
            self.on_event(b"", doc)

    def on_event(self, name: bytes, value: Json) -> str | None:
        doc = obj(value)
        kind = doc.get("type")
        if not isinstance(kind, str):
            kind = name.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return self._delta(obj(doc.get("delta")))
        if kind == "message_start":
            self._message(obj(doc.get("message")))
        elif kind == "content_block_start":
            self._block(doc.get("index"), obj(doc.get("content_block")))
        elif kind == "message_delta":
            self._count(doc.get("usage"))
            self._stopped(obj(doc.get("delta")))
        elif kind == "message_stop":
            self.reading.ended = self.reading.finished = True
            self.reading.usage_final = self.reading.usage_seen
        elif kind == "error" or doc.get("error"):
            self.failed(doc)
        elif kind == "message" or "content" in doc:  # a plain answer in an event's clothes
            self.on_whole(doc)
        return None

    def _message(self, message: dict[str, Any]) -> None:
        reading = self.reading
        reading.response_id = reading.response_id or named(message.get("id"))
        reading.response_model = reading.response_model or named(message.get("model"))
        self._count(message.get("usage"))

    def _count(self, usage: Json) -> None:
        if not isinstance(usage, dict):
            return
        overlay(self._usage, usage)
        self.reading.usage_seen = any(count(self._usage.get(key)) is not None for key in COUNTERS)
        fill(self.reading.usage, self._usage)

    def _block(self, index: Json, block: dict[str, Any]) -> None:
        if block.get("type") == "tool_use":
            index = index if isinstance(index, int) else text(block.get("id"))
            if index not in self._calls and len(self._calls) < BLOCKS:
                self._calls.add(index)
                self.reading.tool_calls += 1
            self.saw(size(text(block.get("name"))) + (size(prompt.shown(block["input"])) if block.get("input") else 0))
            return
        for key in ("text", "thinking"):
            if shown := text(block.get(key)):
                self.saw(size(shown))

    def _delta(self, delta: dict[str, Any]) -> str | None:
        for key in DELTAS:
            if shown := text(delta.get(key)):
                self.saw(size(shown))
        return text(delta.get("text")) if delta.keys() == TEXT_DELTA else None

    def _stopped(self, message: dict[str, Any]) -> None:
        if reason := named(message.get("stop_reason")):
            self.reading.finish_reasons[:] = [reason]
            self.reading.finished = True
            self.reading.usage_final = self.reading.usage_seen


class Messages:
    """``POST /v1/messages``, and ``:rawPredict`` on Vertex, where the path names the model."""

    name = "anthropic.messages"
    operation = "chat"
    mutable = frozenset({"model", "messages", "system", "max_tokens", "temperature", "metadata"})

    def read_request(self, path: str, body: Json) -> Request:
        request = obj(body)
        tools = items(request.get("tools"))
        system = request.get("system")
        chars, tokens = prompt.measure([*([system] if system else []), *items(request.get("messages"))], tools)
        return Request(
            model=named(request.get("model")) or _model_in(path),
            stream=request.get("stream") is True or ":streamRawPredict" in path,
            input_chars=chars,
            input_tokens_estimate=tokens,
            max_output_tokens=count(request.get("max_tokens")),
            end_user=named(obj(request.get("metadata")).get("user_id")),
            tools=len(tools),
        )

    def reader(self, call: Call) -> Reader:
        return MessagesReader(call)

    def error_body(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.body(refusals.anthropic(refusal, log_id))

    def error_event(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.event(refusals.anthropic(refusal, log_id), name="error")

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        return None  # every stream has it

    def conversation(self, body: Json) -> list[Turn]:
        request = obj(body)
        turns = [Turn("system", prompt.content(request["system"]))] if request.get("system") else []
        return turns + [
            Turn(text(message.get("role")), prompt.content(message.get("content")))
            for message in objs(request.get("messages"))
        ]

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        blocks: dict[Json, dict[str, Any]] = {}
        turns: list[Turn] = []
        for event, value in values_of(content_type, body):
            doc = obj(value)
            for index, block in enumerate(objs(doc.get("content"))):
                blocks[index] = block
            if isinstance(doc.get("content_block"), dict):
                blocks[count(doc.get("index"))] = dict(doc["content_block"])
            if doc.get("type") == "content_block_delta":
                _grow(blocks.setdefault(count(doc.get("index")), {}), obj(doc.get("delta")))
            if doc.get("error") or event == b"error":
                turns.append(Turn("error", prompt.shown(doc.get("error") or doc)))
        said = prompt.content(list(blocks.values()))
        return [Turn("assistant", said), *turns] if said else turns


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for key in ("text", "thinking"):
        if piece := text(delta.get(key)):
            block[key] = text(block.get(key)) + piece
    if piece := text(delta.get("partial_json")):
        block["input"] = (block["input"] if isinstance(block.get("input"), str) else "") + piece


def _model_in(path: str) -> str | None:
    """Return the model of ``…/publishers/anthropic/models/NAME:rawPredict``."""
    _, found, rest = path.partition("/models/")
    return named(rest.partition(":")[0]) if found else None
