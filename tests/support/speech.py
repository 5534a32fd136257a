"""What the tests say and hear: small requests and answers in the providers' own words."""

import json

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"

_HI = [{"role": "user", "content": "hi"}]
ASK = json.dumps({"model": "gpt-4o", "messages": _HI}).encode()
ASK_STREAM = json.dumps({"model": "gpt-4o", "messages": _HI, "stream": True}).encode()
ASK_CLAUDE = json.dumps({"model": "claude-haiku-4-5", "max_tokens": 100, "messages": _HI, "stream": True}).encode()

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
).encode()


def sse(data: object, event: str | None = None) -> bytes:
    """Return one event of a stream."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def chunk(content: str | None = None, finish: str | None = None, **more: object) -> bytes:
    """Return one chunk of an OpenAI stream."""
    delta = {"role": "assistant", "content": ""} if content is None and finish is None else {"content": content or ""}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return sse({"id": "chatcmpl-1", "model": "gpt-4o-2024-08-06", "choices": choices, **more})


ROLE = chunk()
HEL, LO = chunk("hel"), chunk("lo")
STOP = chunk(finish="stop")
USAGE = sse(
    {
        "id": "chatcmpl-1",
        "model": "gpt-4o-2024-08-06",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
)
DONE = b"data: [DONE]\n\n"
STREAM = [ROLE, HEL, LO, STOP, DONE]
"""A whole stream without usage, one piece an event."""

CLAUDE_START = sse(
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-haiku-4-5",
            "content": [],
            "usage": {"input_tokens": 25, "output_tokens": 1},
        },
    },
    "message_start",
)
CLAUDE_TEXT = sse(
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}}, "content_block_delta"
)
CLAUDE_DELTA = sse(
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}, "message_delta"
)
CLAUDE_STOP = sse({"type": "message_stop"}, "message_stop")

CLAUDE_STREAM = [CLAUDE_START, CLAUDE_TEXT, CLAUDE_DELTA, CLAUDE_STOP]
CLAUDE_ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 25, "output_tokens": 15},
    }
).encode()

GEMINI_STREAM_PATH = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
ASK_GEMINI = json.dumps({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}).encode()


def _gemini(text: str, **more: object) -> dict[str, object]:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
    usage = {"promptTokenCount": 4, "candidatesTokenCount": 2, "totalTokenCount": 6}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"}


GEMINI_ANSWER = json.dumps(_gemini("hello", finishReason="STOP")).encode()
GEMINI_STREAM = [sse(_gemini("hel")), sse(_gemini("lo", finishReason="STOP"))]
