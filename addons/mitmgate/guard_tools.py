"""Which tools a request offers to a model, in the words of each API, and whether a rule's list has them. Pure."""

import re
from collections.abc import Iterator, Sequence
from fnmatch import translate
from typing import Any

from mitmgate.dialects.base import Json

LISTS = ("tools", "functions")
"""Members of a body that offer tools; Bedrock's list is within ``toolConfig``."""
DECLARED = ("functionDeclarations", "function_declarations")
"""Gemini has several tools in one."""
WRAPPERS = ("function", "toolSpec", "custom")
"""What a tool may be wrapped in."""


def offered(body: Json) -> list[str]:
    """Return the names of the tools that *body*, parsed, offers; of one that the provider runs itself, its type."""
    if not isinstance(body, dict):
        return []
    config = body.get("toolConfig")
    places: list[Any] = [body.get(name) for name in LISTS]
    if isinstance(config, dict):
        places.append(config.get("tools"))
    return [name for place in places if isinstance(place, list) for tool in place for name in _names(tool)]


def _names(tool: Json) -> Iterator[str]:
    if not isinstance(tool, dict):
        return
    for one in (tool, *(tool.get(key) for key in WRAPPERS)):
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            yield one["name"]
            return
    kind = tool.get("type")
    if isinstance(kind, str):
        yield kind
        return
    for key, value in tool.items():
        if key in DECLARED and isinstance(value, list):
            yield from (one["name"] for one in value if isinstance(one, dict) and isinstance(one.get("name"), str))
        else:
            yield key  # Gemini's own: {"googleSearch": {}}


class Allowed:
    """A rule's list of tools: globs, case-insensitive."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._fits = re.compile("|".join(translate(glob.lower()) for glob in globs)).match

    def has(self, tool: str) -> bool:
        return self._fits(tool.lower()) is not None
