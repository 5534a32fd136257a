"""OpenAI Chat Completions, and the many hosts that speak it, each with habits of its own.

Source: https://platform.openai.com/docs/api-reference/chat, and recorded answers of 24 providers. An unknown host
works from the shape of what it sends. Habits that are met here, by who has them:

- usage: only at the end and only when asked for (OpenAI); in every chunk, running (Perplexity, Databricks, vLLM); in
  the last content chunk (DeepSeek); in ``x_groq``, and then again (Groq); inside of the last choice (Moonshot); null or
  ``{}`` until it is known (many).
- tool calls: in pieces by ``index`` (OpenAI); whole and without index (Mistral); the same id again and again (some
  behind OpenRouter); index 0 for each of several (Gemini's OpenAI endpoint); numbered anew in each choice (all).
- content: a string; null; a list of parts (Mistral's reasoning); ``message`` beside ``delta`` (Perplexity, Writer).
- a failure inside of a 200: ``{"error": …}`` as an event or as the body, ``x_groq.error``, ``event: error``,
  ``"object": "error"``.
- a first chunk with empty id, model and choices (Azure); id and finish reason empty throughout (Snowflake); no
  ``[DONE]``.
"""

from typing import Any

from mitmgate.dialects import ask, openai_usage, prompt, refusals
from mitmgate.dialects.base import Call, Json, Reader, Request, Turn
from mitmgate.dialects.counts import count, items, named, obj, objs, overlay, size, text
from mitmgate.dialects.framing import Framed, values_of
from mitmgate.errors import Refusal

CHOICES = 1024
"""Choices and tool calls told apart; beyond, an answer is an attack or a fault."""

OTHER_OUTPUT = frozenset({"text", "error", "usage"})

ID_CHARS = 128

PLAIN = frozenset({"content", "role"})
"""Members of a delta that is text and nothing else."""

type ToolCall = tuple[int, Json, str]
"""Choice, index within it, id."""


class ChatReader(Framed):
    text_key = b'"content":'

    def __init__(self, call: Call, vercel: bool = False) -> None:
        super().__init__(call)
        self._vercel = vercel
        self._usage: dict[str, Any] = {}
        """All usage objects so far, one over the other."""
        self._usages = 0
        self._last_usage = 0
        """The latest value with usage: its place among the values."""
        self._finish: dict[int, str] = {}
        self._choices: set[int] = set()
        self._calls: set[ToolCall] = set()

    def on_whole(self, value: Json) -> None:
        self._take(value, whole=True)

    def on_event(self, name: bytes, value: Json) -> str | None:
        if name == b"error" and isinstance(value, dict) and "error" not in value:
            self.failed(value)
            return None
        self._take(value, whole=False)
        reading = self.reading
        reading.usage_final = reading.usage_seen and (reading.finished or reading.ended)
        return self._plain_text(value)

    def _plain_text(self, value: Json) -> str | None:
        """Return the content of a chunk that has content and nothing else to tell."""
        doc = obj(value)
        choices = doc.get("choices")
        if doc.get("usage") or "x_groq" in doc or "error" in doc or not isinstance(choices, list) or len(choices) != 1:
            return None
        choice = obj(choices[0])
        delta = obj(choice.get("delta"))
        if choice.get("finish_reason") or choice.keys() & OTHER_OUTPUT or not delta.keys() <= PLAIN:
            return None
        content = delta.get("content")
        return content if isinstance(content, str) else None

    def on_end(self) -> None:
        reading = self.reading
        if not reading.streamed:
            return
        # who gives no finish reason and no [DONE] (Snowflake) still closes with the one usage object
        ends_in_usage = self._usages == 1 and self._last_usage == self._values and not reading.error_event
        reading.ended = reading.ended or reading.finished or ends_in_usage
        reading.usage_final = reading.usage_seen and reading.ended

    def _take(self, value: Json, whole: bool) -> None:
        doc = obj(value)
        reading = self.reading
        if reading.response_id is None:
            reading.response_id = named(doc.get("id"))
        if reading.response_model is None:
            reading.response_model = named(doc.get("model")) or named(doc.get("model_id"))
        for place, choice in enumerate(items(doc.get("choices"))):
            if isinstance(choice, dict):
                self._choice(place, choice, whole)
        if tier := named(doc.get("service_tier")):
            reading.usage.service_tier = tier
        groq = obj(doc.get("x_groq"))
        in_choices = [choice.get("usage") for choice in objs(doc.get("choices"))]
        for usage in (groq.get("usage"), *in_choices, doc.get("usage")):
            if isinstance(usage, dict) and openai_usage.says_something(usage):
                self._count(usage)
        error = doc.get("error") or groq.get("error")
        if error or doc.get("object") == "error" or (whole and self._is_bare_error(doc)):
            self.failed(doc if doc.get("error") or not error else error)

    def _is_bare_error(self, doc: dict[str, Any]) -> bool:
        """True for ``{"detail": …}`` (Mistral) and ``{"code": …, "message": …}`` (Alibaba) in place of an answer."""
        return (
            bool(doc)
            and not doc.keys() & {"choices", "usage", "data", "model"}
            and bool(doc.keys() & {"detail", "message"})
        )

    def _count(self, usage: dict[str, Any]) -> None:
        self._usages += 1
        self._last_usage = self._values
        overlay(self._usage, usage)
        self.reading.usage_seen = True
        openai_usage.fill(self.reading.usage, self._usage, self.reading.response_model, self._vercel)

    def _choice(self, place: int, choice: dict[str, Any], whole: bool) -> None:
        index = count(choice.get("index"))
        index = place if index is None else index
        if len(self._choices) < CHOICES:
            self._choices.add(index)
        first, second = ("message", "delta") if whole else ("delta", "message")
        message = choice.get(first)
        message = message if isinstance(message, dict) else obj(choice.get(second))
        if message:
            self._message(index, message)
        if isinstance(choice.get("text"), str):  # legacy completions
            self._output(choice["text"])
        if isinstance(choice.get("error"), dict):  # OpenRouter, with the finish reason "error"
            self.failed(choice)
        if (reason := named(choice.get("finish_reason"))) and index in self._choices:
            self._finish[index] = reason
            self.reading.finish_reasons[:] = [self._finish[key] for key in sorted(self._finish)]
            self.reading.finished = len(self._finish) == len(self._choices)

    def _message(self, index: int, message: dict[str, Any]) -> None:
        content = message.get("content")
        if isinstance(content, str):
            self._output(content)
        elif content:
            self._output(prompt.content(content))
        for key in ("reasoning_content", "reasoning", "thinking", "refusal"):
            if key in message and isinstance(message[key], str):
                self._output(message[key])
                if key == "reasoning_content":  # who has both says the same twice
                    break
        if audio := obj(message.get("audio")):
            self._output(text(audio.get("transcript")))
            if audio.get("data"):
                self.saw(0)
        if message.get("tool_calls"):
            for place, call in enumerate(items(message["tool_calls"])):
                if isinstance(call, dict):  # in a plain answer each stands for itself, whatever index and id it gives
                    self._tool_call(index, place, call if self.reading.streamed else {**call, "index": place})
        if legacy := obj(message.get("function_call")):
            self._tool_call(index, -1, {"index": "function_call", "function": legacy})

    def _tool_call(self, choice: int, place: int, call: dict[str, Any]) -> None:
        function = obj(call.get("function")) or obj(call.get("custom"))
        title, given = text(function.get("name")), text(call.get("id"))[:ID_CHARS]
        at = call.get("index")
        if at != "function_call" and not isinstance(at, int):
            at = given or f"{len(self._calls)}:{place}"  # without an index a delta is a whole call
        known = (choice, at, "") in self._calls
        if (not known or (title and given and (choice, at, given) not in self._calls)) and len(
            self._calls
        ) < 2 * CHOICES:
            self._calls.add((choice, at, ""))
            self._calls.add((choice, at, given))
            self.reading.tool_calls += 1
        arguments = function.get("arguments") or function.get("input")
        self.saw(size(title) + size(arguments if isinstance(arguments, str) else prompt.shown(arguments or "")))

    def _output(self, output: str) -> None:
        if output:
            self.saw(size(output))


class Chat:
    """``POST …/chat/completions``."""

    name = "openai.chat"
    operation = "chat"
    mutable = frozenset(
        {
            "model",
            "messages",
            "max_tokens",
            "max_completion_tokens",
            "stream_options",
            "temperature",
            "user",
            "metadata",
        }
    )

    def __init__(self, asks_usage: bool = True, vercel: bool = False) -> None:
        self._asks = asks_usage
        self._vercel = vercel

    def read_request(self, path: str, body: Json) -> Request:
        request = obj(body)
        chars, tokens = prompt.measure(self._prompt(request), request.get("tools") or request.get("functions"))
        return Request(
            model=named(request.get("model")) or model_in(path),
            stream=request.get("stream") is True or path.partition("?")[0].endswith("_stream"),
            input_chars=chars,
            input_tokens_estimate=tokens,
            max_output_tokens=count(request.get("max_completion_tokens")) or count(request.get("max_tokens")),
            end_user=named(request.get("safety_identifier")) or named(request.get("user")),
            tools=len(items(request.get("tools"))) or len(items(request.get("functions"))),
        )

    def _prompt(self, request: dict[str, Any]) -> Json:
        return request.get("messages")

    def reader(self, call: Call) -> Reader:
        return ChatReader(call, self._vercel)

    def error_body(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.body(refusals.openai(refusal, log_id))

    def error_event(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.event(refusals.openai(refusal, log_id))

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        return ask.include_usage(body, parsed) if self._asks else None

    def conversation(self, body: Json) -> list[Turn]:
        return [turn_of(message) for message in objs(obj(body).get("messages"))]

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        return assembled(content_type, body)


def model_in(path: str) -> str | None:
    """Return the deployment that an Azure, Databricks or Hugging Face path names."""
    parts = path.partition("?")[0].split("/")
    for before in ("deployments", "serving-endpoints"):
        if before in parts[:-2]:
            return named(parts[parts.index(before) + 1])
    return None


def turn_of(message: dict[str, Any]) -> Turn:
    """Return one message of a prompt or a plain answer for people to read."""
    role = text(message.get("role")) or "assistant"
    lines = []
    if reasoning := text(message.get("reasoning_content")) or text(message.get("reasoning")):
        lines.append(f"[thinking {reasoning}]")
    shown = prompt.content(message.get("content"))
    lines.append(prompt.tool_result(shown) if role in ("tool", "function") else shown)
    lines.append(text(message.get("refusal")))
    calls = [obj(call.get("function")) or obj(call.get("custom")) for call in objs(message.get("tool_calls"))]
    calls += [obj(message.get("function_call"))] if message.get("function_call") else []
    lines += [prompt.tool_call(call.get("name"), call.get("arguments") or call.get("input")) for call in calls]
    return Turn(role, "\n".join(line for line in lines if line))


def assembled(content_type: str, body: bytes) -> list[Turn]:
    """Return one turn per choice, put together from the chunks where it was a stream."""
    choices: dict[int, dict[str, Any]] = {}
    errors: list[Turn] = []
    for _, value in values_of(content_type, body):
        doc = obj(value)
        for place, choice in enumerate(objs(doc.get("choices"))):
            index = count(choice.get("index"))
            whole = choices.setdefault(place if index is None else index, {"calls": {}})
            _join(whole, obj(choice.get("delta")) or obj(choice.get("message")), text(choice.get("text")))
        if doc.get("error"):
            errors.append(Turn("error", prompt.shown(doc["error"])))
    turns = []
    for index in sorted(choices):
        whole = choices[index]
        turns.append(turn_of({**whole, "tool_calls": [{"function": call} for call in whole.pop("calls").values()]}))
    return turns + errors


def _join(whole: dict[str, Any], piece: dict[str, Any], completion: str) -> None:
    """Add a delta, or a whole message, to what is there of its choice."""
    for key in ("reasoning_content", "reasoning", "refusal"):
        if part := text(piece.get(key)):
            whole[key] = whole.get(key, "") + part
    whole["content"] = whole.get("content", "") + prompt.content(piece.get("content")) + completion
    whole["role"] = text(piece.get("role")) or whole.get("role", "assistant")
    called = list(objs(piece.get("tool_calls")))
    if piece.get("function_call"):
        called.append({"index": "function_call", "function": piece["function_call"]})
    for call in called:
        function = obj(call.get("function")) or obj(call.get("custom"))
        at = call.get("index")
        at = at if isinstance(at, int | str) else f"{len(whole['calls'])}"
        known = whole["calls"].setdefault(at, {"name": "", "arguments": ""})
        known["name"] = text(function.get("name")) or known["name"]
        arguments = function.get("arguments") or function.get("input")
        known["arguments"] += arguments if isinstance(arguments, str) else prompt.shown(arguments or "")
