"""A wire that has no module of its own: read what is common, so that the call still gets a row.

Cohere, Ollama, Amazon Bedrock, watsonx and Gemini's interactions are read here. Usage is recognised by the names of
its counters, wherever it stands near the top of a value, and of several in one answer the later lies over the earlier;
model, id and finish reason by the handful of names that providers use for them, tool calls by ``called``. What stays
unread is unknown, never wrong: a dialect of its own can follow at any time, and takes the path over in
``dialects/__init__.py``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mitmgate.dialects import anthropic_messages, eventstream, gemini_generate, openai_usage, prompt, refusals
from mitmgate.dialects.base import Call, Json, Reader, Request, Turn, Usage
from mitmgate.dialects.called import calls_of
from mitmgate.dialects.counts import best, count, items, named, obj, objs, overlay, size, text, total
from mitmgate.dialects.framing import Framed, values_of
from mitmgate.errors import Refusal

CONTAINERS = ("response", "message", "interaction", "delta", "result", "output", "meta", "metadata", "usage",
              "usageMetadata", "metrics", "messageStop", "contentBlockStart", "contentBlockDelta",
              "amazon-bedrock-invocationMetrics")  # fmt: skip
"""Members in which usage, ids and reasons stand."""

LISTS = ("results", "outputs", "choices", "generations")
"""The same, one object per text: watsonx, and Titan, Mistral, AI21 and Cohere on Bedrock."""

DEPTH = 3
CALLS = 4096

IDS = ("generation_id", "id", "response_id", "responseId", "conversation_id", "request_id")
"""Cohere's first version has two in one answer; the first to come in its streams is ``generation_id``."""
MODELS = ("model", "modelVersion", "model_version", "model_id")
REASONS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason", "completionReason")
UNFINISHED = frozenset({"not_finished", "in_progress", "queued", "null"})
"""What stands in the place of a reason until there is one (watsonx, Gemini's interactions, Alibaba)."""
TEXTS = ("text", "response", "completion", "content", "outputText", "generation", "generated_text", "transcript")
OPERATIONS = {
    "embed": "embeddings",
    "rerank": "rerank",
    "moderations": "moderation",
    "transcriptions": "transcription",
    "translations": "transcription",
    "speech": "speech",
    "images": "image_generation",
    "converse": "chat",
    "chat": "chat",
    "generate": "text_completion",
    "complete": "text_completion",
}
"""Part of a path -> ``gen_ai.operation.name``; OpenTelemetry has no words for the later ones yet."""

UNREADABLE = ("audio/", "image/", "video/", "octet-stream")


def _cohere(usage: Usage, raw: dict[str, Any]) -> None:
    billed = obj(raw.get("billed_units"))
    usage.input_tokens, usage.output_tokens = count(billed.get("input_tokens")), count(billed.get("output_tokens"))
    usage.cache_read_input_tokens = count(raw.get("cached_tokens"))


def _bedrock(usage: Usage, raw: dict[str, Any]) -> None:
    read = best(raw.get("cacheReadInputTokens"), raw.get("cacheReadInputTokenCount"))
    written = best(raw.get("cacheWriteInputTokens"), raw.get("cacheWriteInputTokenCount"))
    given = best(raw.get("inputTokens"), raw.get("inputTokenCount"), raw.get("inputTextTokenCount"))
    usage.input_tokens = total(given, read, written)
    texts = total(*(count(result.get("tokenCount")) for result in objs(raw.get("results"))))  # Titan
    made = best(raw.get("outputTokens"), raw.get("outputTokenCount"), raw.get("totalOutputTextTokenCount"))
    usage.output_tokens = texts if made is None else made
    usage.cache_read_input_tokens, usage.cache_creation_input_tokens = read, written


def _interactions(usage: Usage, raw: dict[str, Any]) -> None:
    usage.input_tokens = total(count(raw.get("total_input_tokens")), count(raw.get("total_tool_use_tokens")))
    usage.reasoning_output_tokens = count(raw.get("total_thought_tokens"))
    usage.output_tokens = total(count(raw.get("total_output_tokens")), usage.reasoning_output_tokens)
    usage.cache_read_input_tokens = count(raw.get("total_cached_tokens"))


def _ollama(usage: Usage, raw: dict[str, Any]) -> None:
    usage.input_tokens, usage.output_tokens = count(raw.get("prompt_eval_count")), count(raw.get("eval_count"))


def _watsonx(usage: Usage, raw: dict[str, Any]) -> None:
    usage.input_tokens, usage.output_tokens = (
        count(raw.get("input_token_count")),
        count(raw.get("generated_token_count")),
    )


def _llama(usage: Usage, raw: dict[str, Any]) -> None:
    usage.input_tokens, usage.output_tokens = (
        count(raw.get("prompt_token_count")),
        count(raw.get("generation_token_count")),
    )


SHAPES: Mapping[str, Callable[[Usage, dict[str, Any]], None]] = {
    "billed_units": _cohere,
    "promptTokenCount": gemini_generate.fill,
    "inputTokens": _bedrock,
    "inputTokenCount": _bedrock,
    "inputTextTokenCount": _bedrock,
    "totalOutputTextTokenCount": _bedrock,
    "total_input_tokens": _interactions,
    "eval_count": _ollama,
    "prompt_eval_count": _ollama,
    "input_token_count": _watsonx,
    "cache_creation_input_tokens": anthropic_messages.fill,
    "prompt_tokens": lambda usage, raw: openai_usage.fill(usage, raw, None),
    "input_tokens": lambda usage, raw: openai_usage.fill(usage, raw, None),
    "output_tokens": lambda usage, raw: openai_usage.fill(usage, raw, None),
    "generation_token_count": _llama,
}
"""The counter by which a usage object is known -> who reads it; the first that fits stands."""

CLOSING = re.compile(r"/v[12]/chat$|/api/(?:chat|generate)$|/interactions$|/text/generation_stream$")
"""Paths whose streams end with a reason; one that has none broke off."""

METRICS = "inputTokenCount"
"""Of Amazon's own measure of a model, which stands where the model itself counts nothing."""

MEMBERS = 256


class GenericReader(Framed):
    expects_json = False

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._calls: set[str] = set()
        self._counted: dict[str, Any] = {}
        """All usage objects so far, one over the other."""
        self._unread = any(part in self._type for part in UNREADABLE)
        self._count_head(call)

    def feed(self, data: bytes) -> None:
        if not self._unread:
            super().feed(data)

    def on_whole(self, value: Json) -> None:
        self._take(obj(value))

    def on_event(self, name: bytes, value: Json) -> str | None:
        self._take(obj(value))
        self.reading.usage_final = self.reading.usage_seen and self.reading.finished
        return None

    def on_end(self) -> None:
        # where nothing is known of how a wire ends, it is whole as far as the transport can tell
        closes = eventstream.TYPE in self._type or CLOSING.search(self.call.path.partition("?")[0])
        broken_off = self.reading.streamed and self._values > 0 and closes and not self.reading.finished
        self.reading.ended = not self.reading.parse_errors and not broken_off
        self.reading.usage_final = self.reading.usage_seen

    def _count_head(self, call: Call) -> None:
        """Take the counts that Bedrock puts into the answer's head."""
        given = call.headers.get("x-amzn-bedrock-input-token-count", "")
        made = call.headers.get("x-amzn-bedrock-output-token-count", "")
        if call.status < 400 and given.isdigit():
            self.reading.usage.input_tokens = count(int(given[:16]))
            self.reading.usage.output_tokens = count(int(made[:16])) if made.isdigit() else None
            self.reading.usage_seen = True

    def _take(self, doc: dict[str, Any]) -> None:
        reading = self.reading
        for place in _places(doc, DEPTH):
            reading.response_id = reading.response_id or _first(place, IDS)
            reading.response_model = reading.response_model or _first(place, MODELS)
            if (reason := _reason(place)) and reason not in UNFINISHED:
                reading.finish_reasons[:] = [reason]
                reading.finished = True
            self._call(place)
            for key in TEXTS:
                if shown := text(place.get(key)):
                    self.saw(size(shown))
            self._usage(place)
        self._predictions(doc)
        reading.finished = reading.finished or doc.get("done") is True or doc.get("is_finished") is True
        delta = obj(doc.get("delta"))
        if doc.get("error") or doc.get("type") == "error" or delta.get("error"):  # the last is Cohere's
            self.failed(delta if delta.get("error") else doc)

    def _usage(self, place: dict[str, Any]) -> None:
        if SHAPES.keys().isdisjoint(place) or len(self._counted) > MEMBERS:
            return
        if METRICS in place and self._counted and self.reading.usage.output_tokens is not None:
            return
        overlay(self._counted, place)
        fill = next((fill for counter, fill in SHAPES.items() if counter in self._counted), None)
        if fill is None:
            return  # all counters that it names are null
        seen = Usage(service_tier=self.reading.usage.service_tier)
        fill(seen, self._counted)
        if seen.input_tokens is not None or seen.output_tokens is not None:
            self.reading.usage = seen
            self.reading.usage_seen = True

    def _call(self, place: dict[str, Any]) -> None:
        for known_by in calls_of(place):
            if known_by not in self._calls and len(self._calls) < CALLS:
                self._calls.add(known_by)
                self.reading.tool_calls += 1
                self.saw(0)

    def _predictions(self, doc: dict[str, Any]) -> None:
        """Take the counts that Vertex's ``:predict`` gives per text."""
        counts = [
            count(obj(obj(prediction.get("embeddings")).get("statistics")).get("token_count"))
            for prediction in objs(doc.get("predictions"))
        ]
        if (tokens := total(*counts)) is not None:
            self.reading.usage.input_tokens = tokens
            self.reading.usage_seen = True


def _places(doc: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    yield doc
    if depth:
        for key in CONTAINERS:
            if isinstance(inner := doc.get(key), dict):
                yield from _places(inner, depth - 1)
        for key in LISTS:
            for inner in objs(items(doc.get(key))[:64]):
                yield from _places(inner, min(depth - 1, 1))


def _reason(place: dict[str, Any]) -> str | None:
    """Return why a text ended; of Gemini's interactions, as of responses, the status."""
    if place.get("object") == "interaction":
        return named(place.get("status"))
    return _first(place, REASONS)


def _first(place: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((value for key in keys if (value := named(place.get(key)))), None)


class Generic:
    """Any call that generates something."""

    name = "generic"
    mutable: frozenset[str] = frozenset()

    def __init__(self, operation: str = "chat") -> None:
        self.operation = operation

    def read_request(self, path: str, body: Json) -> Request:
        request = obj(body)
        given = {key: value for key, value in request.items() if key != "tools"}
        chars, tokens = prompt.measure(given, request.get("tools"))
        return Request(
            model=named(request.get("model")) or _model_in(path),
            stream=request.get("stream") is True or "stream" in path.partition("?")[0],
            input_chars=chars,
            input_tokens_estimate=tokens,
            max_output_tokens=count(request.get("max_tokens")),
            tools=len(list(objs(request.get("tools")))),
        )

    def reader(self, call: Call) -> Reader:
        return GenericReader(call)

    def error_body(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.body(refusals.plain(refusal, log_id))

    def error_event(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.event(refusals.openai(refusal, log_id))

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        return None

    def conversation(self, body: Json) -> list[Turn]:
        request = obj(body)
        turns = [
            Turn(text(turn.get("role")) or "user", prompt.content(turn.get("content")))
            for turn in objs(request.get("messages"))
        ]
        for key in ("prompt", "message", "input", "inputText", "query"):
            if shown := text(request.get(key)):
                turns.append(Turn("user", shown))
        return turns

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        if any(part in content_type for part in UNREADABLE):
            return []
        said = ""
        for _, value in values_of(content_type, body):
            for place in _places(obj(value), DEPTH):
                said += "".join(prompt.content(place.get(key)) for key in TEXTS if not isinstance(place.get(key), dict))
        return [Turn("assistant", said)] if said else []


def _model_in(path: str) -> str | None:
    """Return NAME of ``/model/NAME/converse`` (Bedrock) and ``/models/NAME:predict`` (Google)."""
    parts = path.partition("?")[0].split("/")
    for before in ("model", "models"):
        if before in parts[:-1]:
            return named(parts[parts.index(before) + 1].partition(":")[0])
    return None
