"""A provider that sells tokens: it answers as the model that was asked for, and reports what it was told to."""

import json
from typing import Any

from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, CHAT, DONE, sse


def asks(model: str, text: str = "hi", **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}]} | more).encode()


def used(model: str, input_tokens: int, output_tokens: int) -> bytes:
    """Return an answer of *model* that used these tokens."""
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return json.dumps({**json.loads(ANSWER), "model": model, "usage": usage}).encode()


def streamed(model: str, input_tokens: int, output_tokens: int) -> list[bytes]:
    head = {"id": "chatcmpl-1", "model": model}
    choices = [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return [sse({**head, "choices": choices}), sse({**head, "choices": [], "usage": usage}), DONE]


class Sells:
    """Answers at each of *paths*, whole or streamed, for so many tokens a call."""

    def __init__(self, provider: Provider, input_tokens: int = 10, output_tokens: int = 5, *paths: str) -> None:
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        for path in paths or (CHAT,):
            provider.on(path, self.script)

    async def script(self, heard: Heard, wire: Wire) -> None:
        asked = json.loads(heard.body)
        if asked.get("stream"):
            await wire.stream(streamed(asked["model"], self.input_tokens, self.output_tokens))
        else:
            await wire.answer(used(asked["model"], self.input_tokens, self.output_tokens))
