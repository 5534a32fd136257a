"""Embeddings of the OpenAI family: text in, vectors out. Input is all there is to count; ``output_tokens`` stays
unknown unless a host says 0. Who counts no prompt (Voyage) counts a total, which is the same here.
"""

from typing import Any

from mitmgate.dialects import prompt
from mitmgate.dialects.base import Call, Json, Reader, Turn
from mitmgate.dialects.counts import count, items, obj, objs
from mitmgate.dialects.framing import values_of
from mitmgate.dialects.openai_chat import Chat, ChatReader


class EmbeddingsReader(ChatReader):
    def on_whole(self, value: Json) -> None:
        super().on_whole(value)
        usage = self.reading.usage
        if usage.input_tokens is None and self.reading.usage_seen:
            usage.input_tokens = count(obj(obj(value).get("usage")).get("total_tokens"))


class Embeddings(Chat):
    """``POST …/embeddings``."""

    name = "openai.embeddings"
    operation = "embeddings"
    mutable = frozenset({"model", "user"})

    def _prompt(self, request: dict[str, Any]) -> Json:
        return request.get("input")

    def reader(self, call: Call) -> Reader:
        return EmbeddingsReader(call)

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        return None

    def conversation(self, body: Json) -> list[Turn]:
        given = obj(body).get("input")
        texts = given if isinstance(given, list) else [given] if given else []
        return [Turn("user", prompt.shown(item)) for item in texts]

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        vectors = [vector for _, value in values_of(content_type, body) for vector in objs(obj(value).get("data"))]
        sizes = sorted({len(items(vector.get("embedding"))) for vector in vectors})
        return [Turn("assistant", f"[{len(vectors)} embeddings of {sizes[0]} numbers]")] if vectors else []
