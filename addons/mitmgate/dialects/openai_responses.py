"""OpenAI Responses: one response object, or a stream of typed events that ends by repeating it whole.

Source: https://platform.openai.com/docs/api-reference/responses-streaming (60 event types in 2026, and new ones come:
what is not known here is passed over). Events are told apart by ``type`` in the data, the ``event`` field where it is
missing.

- Usage stands in the terminal event alone: ``completed``, ``incomplete``, ``failed``, ``cancelled`` and ``done`` all
  bill it.
- The finish reason is the response's ``status``; there is no ``[DONE]``, though some hosts send one.
- An ``error`` event may come alone or before ``response.failed``.
- Ids of response and items are made anew in every event by GitHub Copilot: calls are told apart by their place.
"""

from typing import Any

from mitmgate.dialects import openai_usage, prompt, refusals
from mitmgate.dialects.base import Call, Json, Reader, Request, Turn
from mitmgate.dialects.counts import count, items, named, obj, objs, size, text
from mitmgate.dialects.framing import Framed, values_of
from mitmgate.errors import Refusal

TERMINAL = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done"}
)
SETTLED = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""Statuses of a response that is over; ``queued`` and ``in_progress`` come of background calls."""

CLIENT_CALLS = frozenset({"function_call", "custom_tool_call"})
SERVER_TOOLS = {
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "image_generation_call": "image_generation",
    "mcp_call": "mcp",
}
PLACES = 4096


class ResponsesReader(Framed):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._calls: set[Json] = set()
        """Places of the client's tool calls in the output."""
        self._servers: set[Json] = set()

    def on_whole(self, value: Json) -> None:
        doc = obj(value)
        if "type" in doc and "output" not in doc:
            self.on_event(b"", doc)
            return
        self._response(doc)
        status = named(doc.get("status"))
        self.reading.finish_reasons[:] = [status] if status else []
        if doc.get("error") or doc.get("detail"):
            self.failed(doc)

    def on_event(self, name: bytes, value: Json) -> str | None:
        doc = obj(value)
        kind = doc.get("type")
        if not isinstance(kind, str):
            kind = name.decode("utf-8", "replace")
        if kind.endswith(".delta"):
            if isinstance(delta := doc.get("delta"), str) and delta:
                self.saw(size(delta))
        elif kind in TERMINAL:
            self._terminal(kind, obj(doc.get("response")))
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._item(doc.get("output_index"), obj(doc.get("item")))
        elif kind == "error" or doc.get("error"):
            self.failed(doc)
        elif "response" in doc:
            self._head_of(obj(doc["response"]))
        return None

    def on_end(self) -> None:
        self.reading.ended = self.reading.ended and (self.reading.finished or not self.reading.streamed)

    def _terminal(self, kind: str, response: dict[str, Any]) -> None:
        reading = self.reading
        self._response(response)
        status = named(response.get("status")) or kind.removeprefix("response.")
        reading.finish_reasons[:] = [status]
        reading.ended = reading.finished = True
        reading.usage_final = reading.usage_seen
        if status == "failed" or response.get("error"):
            self.failed(response)

    def _response(self, response: dict[str, Any]) -> None:
        """Take a response object that is whole, as far as it got."""
        self._head_of(response)
        output = list(objs(response.get("output")))
        if output:  # it repeats what the events have told
            self._calls.clear()
            self._servers.clear()
            self.reading.tool_calls = 0
            self.reading.usage.server_tools.clear()
        for place, item in enumerate(output):
            self._item(place, item)
            if not self.reading.streamed:
                self._output(item)
        usage = obj(response.get("usage"))
        if openai_usage.says_something(usage):
            self.reading.usage_seen = True
            openai_usage.fill(self.reading.usage, usage, self.reading.response_model)

    def _head_of(self, response: dict[str, Any]) -> None:
        reading = self.reading
        reading.response_id = named(response.get("id")) or reading.response_id
        reading.response_model = named(response.get("model")) or reading.response_model
        tier = named(response.get("service_tier"))
        if tier and tier != "auto":  # the request's wish, until the answer tells what became of it
            reading.usage.service_tier = tier

    def _item(self, place: Json, item: dict[str, Any]) -> None:
        kind = item.get("type")
        place = place if isinstance(place, int) else named(item.get("id")) or named(item.get("call_id"))
        if kind in CLIENT_CALLS and place not in self._calls and len(self._calls) < PLACES:
            self._calls.add(place)
            self.reading.tool_calls += 1
            self.saw(size(text(item.get("name"))))
        elif kind in SERVER_TOOLS and place not in self._servers and len(self._servers) < PLACES:
            self._servers.add(place)
            tools = self.reading.usage.server_tools
            tools[SERVER_TOOLS[kind]] = tools.get(SERVER_TOOLS[kind], 0) + 1

    def _output(self, item: dict[str, Any]) -> None:
        """Note the text of an item of a plain answer."""
        for part in (*objs(item.get("content")), *objs(item.get("summary"))):
            if shown := text(part.get("text")) or text(part.get("refusal")):
                self.saw(size(shown))
        if text(item.get("type")) in CLIENT_CALLS:
            self.saw(size(text(item.get("arguments")) or text(item.get("input"))))


class Responses:
    """``POST …/responses``."""

    name = "openai.responses"
    operation = "chat"
    mutable = frozenset({"model", "input", "instructions", "max_output_tokens", "temperature", "user", "metadata"})

    def read_request(self, path: str, body: Json) -> Request:
        request = obj(body)
        given = [request.get("instructions"), request.get("input")]
        chars, tokens = prompt.measure(given, request.get("tools"))
        return Request(
            model=named(request.get("model")),
            stream=request.get("stream") is True,
            input_chars=chars,
            input_tokens_estimate=tokens,
            max_output_tokens=count(request.get("max_output_tokens")),
            end_user=named(request.get("safety_identifier")) or named(request.get("user")),
            tools=len(items(request.get("tools"))),
        )

    def reader(self, call: Call) -> Reader:
        return ResponsesReader(call)

    def error_body(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.body(refusals.openai(refusal, log_id))

    def error_event(self, refusal: Refusal, log_id: str | None) -> bytes:
        """Return an ``error`` event; ``error`` beside the documented members is what makes the Python SDK raise."""
        error = refusals.openai(refusal, log_id)["error"]
        told = {"code": error["code"], "message": error["message"], "param": error["param"]}
        return refusals.event({"type": "error", **told, "error": error}, name="error")

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        return None  # the terminal event always has it

    def conversation(self, body: Json) -> list[Turn]:
        request = obj(body)
        turns = [Turn("system", text(request["instructions"]))] if request.get("instructions") else []
        given = request.get("input")
        if isinstance(given, str):
            return [*turns, Turn("user", given)]
        return turns + [_turn(item) for item in objs(given)]

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        found: dict[Json, dict[str, Any]] = {}
        errors: list[Turn] = []
        for event, value in values_of(content_type, body):
            doc = obj(value)
            response = obj(doc.get("response")) or doc
            if output := list(objs(response.get("output"))):
                found = dict(enumerate(output))
            elif isinstance(doc.get("item"), dict):
                found[_place(doc)] = doc["item"]
            elif isinstance(doc.get("delta"), str):
                _grow(found, doc)
            if response.get("error") or doc.get("type") == "error" or event == b"error":
                errors.append(Turn("error", prompt.shown(response.get("error") or doc)))
        return [_turn(item) for item in found.values()] + errors


def _place(doc: dict[str, Any]) -> Json:
    place = doc.get("output_index")
    return place if isinstance(place, int) else text(doc.get("item_id"))


def _grow(found: dict[Json, dict[str, Any]], doc: dict[str, Any]) -> None:
    """Add a delta to its item, so that an unfinished stream shows what it has."""
    kind = text(doc.get("type"))
    item = found.setdefault(_place(doc), {"type": "message", "role": "assistant"})
    if "arguments" in kind or kind.endswith("input.delta"):
        key = "input" if kind.endswith("input.delta") else "arguments"
        item[key] = text(item.get(key)) + doc["delta"]
        return
    parts = item.get("content")
    if not isinstance(parts, list) or not parts or not isinstance(parts[-1], dict):
        parts = item["content"] = [{"type": "text", "text": ""}]
    parts[-1]["text"] = text(parts[-1].get("text")) + doc["delta"]


def _turn(item: dict[str, Any]) -> Turn:
    """Return one item of input or output for people to read."""
    kind = text(item.get("type"))
    if item.get("role"):
        return Turn(text(item["role"]), prompt.content(item.get("content")))
    role = "tool" if kind.endswith("_output") else "assistant"
    if kind.endswith("_call") and kind not in CLIENT_CALLS:
        told = {key: value for key, value in item.items() if key not in ("id", "type", "status")}
        return Turn(role, f"[{kind} {prompt.shown(told)}]")
    return Turn(role, prompt.content(item))
