"""OpenAI's legacy Completions: a prompt in, text out. Its answers are chat answers with ``text`` in place of a
message.
"""

from typing import Any

from mitmgate.dialects import prompt
from mitmgate.dialects.base import Json, Turn
from mitmgate.dialects.counts import items, obj
from mitmgate.dialects.openai_chat import Chat


class Completions(Chat):
    """``POST …/completions``."""

    name = "openai.completions"
    operation = "text_completion"
    mutable = frozenset({"model", "max_tokens", "stream_options", "temperature", "user"})

    def _prompt(self, request: dict[str, Any]) -> Json:
        return request.get("prompt")

    def conversation(self, body: Json) -> list[Turn]:
        given = obj(body).get("prompt")
        if isinstance(given, list) and all(isinstance(item, str) for item in given):
            return [Turn("user", item) for item in given]
        if isinstance(given, list):
            return [Turn("user", f"[{len(items(given))} tokens]")]
        return [Turn("user", prompt.shown(given))] if given else []
