"""Find the tool calls that a client has to run in a value of a wire that has no module of its own.

Three ways to tell of a call are in use: a list ``tool_calls`` (Cohere, Ollama), parts of ``content`` (Claude's and
Nova's on Bedrock, ``tool_use`` or ``toolUse``), and ``steps`` or ``outputs`` (Gemini's interactions, Mistral's
conversations). Tools that the provider runs itself have other types.
"""

from collections.abc import Iterator
from typing import Any

from mitmgate.dialects import prompt
from mitmgate.dialects.base import Json
from mitmgate.dialects.counts import named, obj, text

LISTS = ("tool_calls",)
PARTS = ("content", "content_block", "start", "steps", "step", "outputs")
"""Members that hold calls among other things; a stream has one part at a time in place of the list."""

PART_TYPES = frozenset({"tool_use", "function_call", "function.call"})


def calls_of(place: dict[str, Any]) -> Iterator[str]:
    """Yield what each call in *place* is known by: its id, or all of it where it has none.

    A piece of a call, which names no tool, yields nothing.
    """
    for key in LISTS:
        for call in _objects(place.get(key)):
            if named(call.get("name")) or named(obj(call.get("function")).get("name")):
                yield _known_by(call)
    for key in PARTS:
        for part in _objects(place.get(key)):
            if isinstance(part.get("toolUse"), dict):
                yield _known_by(part["toolUse"])
            elif text(part.get("type")) in PART_TYPES and named(part.get("name")):
                yield _known_by(part)


def _objects(value: Json) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _known_by(call: dict[str, Any]) -> str:
    for key in ("id", "tool_call_id", "toolUseId"):
        if name := named(call.get(key)):
            return name
    return prompt.shown(call)[:1024]
