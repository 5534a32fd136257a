"""How four APIs say the same answer, whole and streamed, as their SDKs expect it: the provider's own counts are known.

Shapes follow the providers' API references of 2026-11. ``Said`` is what was said; ``whole`` and ``stream`` write it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

type Api = Literal["chat", "responses", "messages", "gemini"]

APIS: tuple[Api, ...] = ("chat", "responses", "messages", "gemini")

HOSTS: dict[Api, str] = {
    "chat": "api.openai.com",
    "responses": "api.openai.com",
    "messages": "api.anthropic.com",
    "gemini": "generativelanguage.googleapis.com",
}


@dataclass(frozen=True)
class Said:
    """An answer and what it cost, as the provider counts."""

    api: Api
    text: str = "Hello, dear reader."
    input_tokens: int = 120
    """All input, cached included."""
    cached_tokens: int = 40
    output_tokens: int = 50
    """All output, reasoning included."""
    reasoning_tokens: int = 20
    tool: bool = False
    """A call of ``weather`` with the arguments ``text``."""

    @property
    def model(self) -> str:
        return MODELS[self.api]

    @property
    def words(self) -> list[str]:
        first, *rest = self.text.split(" ")
        return [first, *(f" {word}" for word in rest)]


MODELS: dict[Api, str] = {
    "chat": "gpt-5-mini",
    "responses": "gpt-5",
    "messages": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
}
"""Models with a known price, and a finish reason of their own for each API."""

FINISHES: dict[Api, str] = {"chat": "stop", "responses": "completed", "messages": "end_turn", "gemini": "STOP"}


def whole(said: Said) -> bytes:
    """Return the body of a plain answer."""
    return json.dumps(_WHOLE[said.api](said)).encode()


def stream(said: Said, asked: bytes = b"") -> list[bytes]:
    """Return the events of a streamed answer to the request body *asked*, one piece an event."""
    return _STREAMS[said.api](said, asked)


def _sse(data: dict[str, Any], name: str | None = None, ending: str = "\n\n") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}{ending}".encode()


# -- OpenAI chat completions


def _chat_usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
        "prompt_tokens_details": {"cached_tokens": said.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": said.reasoning_tokens, "audio_tokens": 0},
    }


def _chat_call(said: Said) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": said.text}}


def _chat(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.tool:
        message |= {"content": None, "tool_calls": [_chat_call(said)]}
    return {
        "id": "chatcmpl-e2e",
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": said.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if said.tool else "stop"}],
        "usage": _chat_usage(said),
    }


def _chat_stream(said: Said, asked: bytes) -> list[bytes]:
    head = {"id": "chatcmpl-e2e", "object": "chat.completion.chunk", "created": 1_795_000_000, "model": said.model}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    events = [chunk({"role": "assistant", "content": ""})]
    if said.tool:
        events.append(chunk({"tool_calls": [{"index": 0, **_chat_call(said)}]}))
    else:
        events += [chunk({"content": word}) for word in said.words]
    events.append(chunk({}, "tool_calls" if said.tool else "stop"))
    if b'"include_usage":true' in asked.replace(b" ", b""):
        events.append(_sse({**head, "choices": [], "usage": _chat_usage(said)}))
    return [*events, b"data: [DONE]\n\n"]


# -- OpenAI Responses


def _responses(said: Said, status: str = "completed") -> dict[str, Any]:
    done = status == "completed"
    usage = {
        "input_tokens": said.input_tokens,
        "input_tokens_details": {"cached_tokens": said.cached_tokens},
        "output_tokens": said.output_tokens,
        "output_tokens_details": {"reasoning_tokens": said.reasoning_tokens},
        "total_tokens": said.input_tokens + said.output_tokens,
    }
    return {
        "id": "resp_e2e",
        "object": "response",
        "created_at": 1_795_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": said.model,
        "output": [_item(said, "completed")] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if done else None,
    }


def _item(said: Said, status: str) -> dict[str, Any]:
    done = status == "completed"
    if said.tool:
        call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "weather", "status": status}
        return call | {"arguments": said.text if done else ""}
    content = [{"type": "output_text", "text": said.text, "annotations": []}] if done else []
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content}


def _responses_stream(said: Said, _asked: bytes) -> list[bytes]:
    at: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text = [
        {"type": "response.content_part.added", **at, "part": {"type": "output_text", "text": "", "annotations": []}},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in said.words),
        {"type": "response.output_text.done", **at, "text": said.text, "logprobs": []},
    ]
    call = [
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 0, "delta": said.text},
        {"type": "response.function_call_arguments.done", "item_id": "fc_1", "output_index": 0, "arguments": said.text},
    ]
    events = [
        {"type": "response.created", "response": _responses(said, "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": _item(said, "in_progress")},
        *(call if said.tool else text),
        {"type": "response.output_item.done", "output_index": 0, "item": _item(said, "completed")},
        {"type": "response.completed", "response": _responses(said)},
    ]
    return [_sse({**event, "sequence_number": n}, str(event["type"])) for n, event in enumerate(events)]


# -- Anthropic messages; reasoning is not counted apart here


def _messages(said: Said, done: bool = True) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "text", "text": said.text}
    if said.tool:
        content = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": json.loads(said.text)}
    return {
        "id": "msg_e2e",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": [content] if done else [],
        "stop_reason": ("tool_use" if said.tool else "end_turn") if done else None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": said.input_tokens - said.cached_tokens,  # cached ones are counted apart
            "cache_read_input_tokens": said.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": said.output_tokens if done else 1,
        },
    }


def _messages_stream(said: Said, _asked: bytes) -> list[bytes]:
    block: dict[str, Any] = {"type": "text", "text": ""}
    deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": word} for word in said.words]
    if said.tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", said.text[:4], said.text[4:])]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": _messages(said, done=False)},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use" if said.tool else "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": said.output_tokens},
        },
        {"type": "message_stop"},
    ]
    return [_sse(event, str(event["type"])) for event in events]


# -- Gemini; thoughts are counted beside the candidates


def _gemini(said: Said, text: str | None = None, done: bool = True) -> dict[str, Any]:
    part: dict[str, Any] = {"text": said.text if text is None else text}
    if said.tool:
        part = {"functionCall": {"name": "weather", "args": json.loads(said.text)}}
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": 0}
    usage = {
        "promptTokenCount": said.input_tokens,
        "cachedContentTokenCount": said.cached_tokens,
        "thoughtsTokenCount": said.reasoning_tokens,
        "totalTokenCount": said.input_tokens + said.reasoning_tokens,
    }
    if done:
        candidate["finishReason"] = "STOP"
        usage["candidatesTokenCount"] = said.output_tokens - said.reasoning_tokens
        usage["totalTokenCount"] = said.input_tokens + said.output_tokens
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": said.model, "responseId": "gem_e2e"}


def _gemini_stream(said: Said, _asked: bytes) -> list[bytes]:
    *most, last = [said.text] if said.tool else said.words
    pieces = [*(_gemini(said, word, done=False) for word in most), _gemini(said, last)]
    return [_sse(piece, ending="\r\n\r\n") for piece in pieces]


_WHOLE: dict[Api, Callable[[Said], dict[str, Any]]] = {
    "chat": _chat,
    "responses": _responses,
    "messages": _messages,
    "gemini": _gemini,
}
_STREAMS: dict[Api, Callable[[Said, bytes], list[bytes]]] = {
    "chat": _chat_stream,
    "responses": _responses_stream,
    "messages": _messages_stream,
    "gemini": _gemini_stream,
}


# -- errors, as each API words them


def error(api: Api, message: str, status: int) -> bytes:
    """Return the body of a provider's own error."""
    if api == "messages":
        kind = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}.get(status, "api_error")
        said: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_e2e"}
    elif api == "gemini":
        kind = {400: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}.get(status, "INTERNAL")
        said = {"error": {"code": status, "message": message, "status": kind}}
    else:
        kind = {400: "invalid_request_error", 429: "rate_limit_exceeded"}.get(status, "server_error")
        said = {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    return json.dumps(said).encode()
