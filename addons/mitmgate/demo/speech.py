"""What the scripted provider says, byte by byte as the real ones do: OpenAI chat and Responses, Anthropic, Gemini.

An answer is a list of pieces; a whole answer has one. Field names and event order follow the providers' API references
of 2026-11.
"""

import json
from collections.abc import Callable
from typing import Any

from mitmgate.demo.scenes import Api, Scene

CREATED = 1_795_000_000


def say(scene: Scene, request: bytes) -> list[bytes]:
    """Return the pieces of the answer to *request*."""
    if scene.stream:
        return STREAMS[scene.api](scene, request)
    return [json.dumps(WHOLE[scene.api](scene)).encode()]


def words(scene: Scene) -> list[str]:
    """Return the answer cut into words, each but the first with the blank before it."""
    first, *rest = (scene.said or scene.answer).split(" ")
    return [first, *(f" {word}" for word in rest)]


def data(event: dict[str, Any]) -> bytes:
    """Return a server-sent event without a name."""
    return f"data: {json.dumps(event)}\n\n".encode()


def named(event: dict[str, Any]) -> bytes:
    """Return a server-sent event that bears the name of its ``type``."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


# -- OpenAI chat completions ------------------------------------------------------------------------------------------


def chat_usage(scene: Scene) -> dict[str, Any]:
    return {
        "prompt_tokens": scene.input_tokens,
        "completion_tokens": scene.output_tokens,
        "total_tokens": scene.input_tokens + scene.output_tokens,
        "prompt_tokens_details": {"cached_tokens": scene.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def chat_whole(scene: Scene) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": scene.answer}
    if scene.tool:
        call = {"id": "call_demo", "type": "function", "function": {"name": "weather", "arguments": scene.answer}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    finish = "tool_calls" if scene.tool else "stop"
    return {
        "id": "chatcmpl-demo",
        "object": "chat.completion",
        "created": CREATED,
        "model": scene.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": chat_usage(scene),
    }


def chat_stream(scene: Scene, request: bytes) -> list[bytes]:
    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": CREATED, "model": scene.model}
        return data({**head, "choices": choices, **more})

    def delta(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return chunk([{"index": 0, "delta": delta, "finish_reason": finish}])

    said = [delta({"role": "assistant", "content": ""}), *(delta({"content": word}) for word in words(scene))]
    # Like the real one, it counts only for those who ask; the gateway does.
    asked = b'"include_usage":true' in request.replace(b" ", b"")
    return [*said, delta({}, "stop"), *([chunk([], usage=chat_usage(scene))] if asked else []), b"data: [DONE]\n\n"]


# -- OpenAI Responses -------------------------------------------------------------------------------------------------


def response(scene: Scene, status: str) -> dict[str, Any]:
    done = status == "completed"
    usage = {
        "input_tokens": scene.input_tokens,
        "input_tokens_details": {"cached_tokens": scene.cached_tokens},
        "output_tokens": scene.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": scene.input_tokens + scene.output_tokens,
    }
    return {
        "id": "resp_demo",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "model": scene.model,
        "output": [item(scene, "completed", scene.answer)] if done else [],
        "usage": usage if done else None,
    }


def item(scene: Scene, status: str, text: str = "") -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}] if text else []
    return {"id": "msg_demo", "type": "message", "status": status, "role": "assistant", "content": content}


def responses_stream(scene: Scene, _request: bytes) -> list[bytes]:
    at = {"item_id": "msg_demo", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(scene, "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": item(scene, "in_progress")},
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word} for word in words(scene)),
        {"type": "response.output_text.done", **at, "text": scene.answer},
        {"type": "response.content_part.done", **at, "part": {**part, "text": scene.answer}},
        {"type": "response.output_item.done", "output_index": 0, "item": item(scene, "completed", scene.answer)},
        {"type": "response.completed", "response": response(scene, "completed")},
    ]
    return [named({**event, "sequence_number": n}) for n, event in enumerate(events)]


# -- Anthropic messages -----------------------------------------------------------------------------------------------


def message(scene: Scene, output_tokens: int, content: list[dict[str, Any]], stop: str | None) -> dict[str, Any]:
    return {
        "id": "msg_demo",
        "type": "message",
        "role": "assistant",
        "model": scene.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": scene.input_tokens - scene.cached_tokens,  # here the cached ones are not among them
            "cache_read_input_tokens": scene.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": output_tokens,
        },
    }


def messages_whole(scene: Scene) -> dict[str, Any]:
    return message(scene, scene.output_tokens, [{"type": "text", "text": scene.answer}], "end_turn")


def messages_stream(scene: Scene, _request: bytes) -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message(scene, 1, [], None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in words(scene)
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": scene.output_tokens},
        },
        {"type": "message_stop"},
    ]
    return [named(event) for event in events]


# -- Gemini -----------------------------------------------------------------------------------------------------------


def gemini(scene: Scene, text: str, done: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    usage = {"promptTokenCount": scene.input_tokens, "totalTokenCount": scene.input_tokens}
    if done:
        candidate["finishReason"] = "STOP"
        usage["candidatesTokenCount"] = scene.output_tokens
        usage["totalTokenCount"] += scene.output_tokens
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": scene.model, "responseId": "demo"}


def gemini_whole(scene: Scene) -> dict[str, Any]:
    return gemini(scene, scene.answer, done=True)


def gemini_stream(scene: Scene, _request: bytes) -> list[bytes]:
    *most, last = words(scene)
    pieces = [*(gemini(scene, word, done=False) for word in most), gemini(scene, last, done=True)]
    return [f"data: {json.dumps(piece)}\r\n\r\n".encode() for piece in pieces]


WHOLE: dict[Api, Callable[[Scene], dict[str, Any]]] = {
    "chat": chat_whole,
    "messages": messages_whole,
    "gemini": gemini_whole,
}
STREAMS: dict[Api, Callable[[Scene, bytes], list[bytes]]] = {
    "chat": chat_stream,
    "responses": responses_stream,
    "messages": messages_stream,
    "gemini": gemini_stream,
}
