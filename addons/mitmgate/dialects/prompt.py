"""Walk the text of a prompt: measure it for estimates, show it to people. Every wire's requests are read through
here.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from mitmgate.dialects.base import Json
from mitmgate.dialects.counts import obj, objs, text
from mitmgate.dialects.estimate import tokens_of

UNREAD = frozenset(
    {
        "type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "data", "url", "image_url", "file_data",
        "file_id", "fileUri", "mimeType", "mime_type", "media_type", "format", "signature", "thoughtSignature",
        "encrypted_content", "cache_control", "input_audio", "b64_json", "inlineData", "inline_data", "status",
    }
)  # fmt: skip
"""Members whose strings are no prompt text: names of the wire, ids, and the bytes of pictures."""

PER_TURN = 4
"""Tokens that the frame of one turn costs in every chat format known."""

SHOWN = 2000
"""Characters shown of one tool call or result."""


def strings(*values: Json) -> Iterator[str]:
    """Yield the prompt text in *values*, whatever their shape, names of tools and their schemas included."""
    stack = list(reversed(values))
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, dict):
            for key in reversed(value):
                if key not in UNREAD:
                    stack.append(value[key])


def measure(prompt: Json, tools: Json = None) -> tuple[int, int]:
    """Return the characters of *prompt* and *tools*, and about how many tokens they are."""
    prose = "\n".join(strings(prompt))
    schemas = _dumped(tools)
    turns = len(prompt) if isinstance(prompt, list) else 1
    tokens = tokens_of(prose) + tokens_of(schemas)
    return len(prose) + len(schemas), tokens + PER_TURN * turns if tokens else 0


def _dumped(value: Json) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else ""
    except (ValueError, RecursionError):
        return ""


def shown(value: Json) -> str:
    """Return *value* as a person wants to see it: text as it is, anything else as short JSON."""
    if isinstance(value, str):
        return value
    dumped = _dumped(value)
    return dumped if len(dumped) <= SHOWN else dumped[:SHOWN] + "…"


def content(value: Json, depth: int = 8) -> str:
    """Return the content of a turn: its text parts, one a line, and the others as ``[kind …]``."""
    if isinstance(value, str):
        return value
    if depth == 0:
        return "[…]"
    if isinstance(value, list):
        return "\n".join(line for part in value if (line := content(part, depth - 1)))
    if not isinstance(value, dict):
        return ""
    kind = text(value.get("type"))
    if special := _PARTS.get(kind):
        return special(value, depth - 1)
    for key in ("text", "thinking", "refusal", "transcript"):
        if value.get(key):
            return content(value[key], depth - 1)
    return f"[{kind}]" if kind else shown(value)


def tool_call(name: Json, arguments: Json) -> str:
    return f"[tool_use {text(name)} {shown(arguments)}]"


def tool_result(result: Json, depth: int = 8) -> str:
    return f"[tool_result {content(result, depth) or shown(result)}]"


def _image(part: dict[str, Any], _depth: int) -> str:
    """Return ``[image/png]``, or where the picture lies."""
    source = part.get("source") or part.get("image_url") or part.get("file_url")
    url = text(source) or text(obj(source).get("url"))
    media = text(obj(source).get("media_type"))
    if url.startswith("data:"):
        media = url[5:].partition(";")[0]
    elif url:
        media = f"image {url[:200]}"
    return f"[{media or 'image'}]"


_PARTS: dict[str, Callable[[dict[str, Any], int], str]] = {
    "image": _image,
    "image_url": _image,
    "input_image": _image,
    "document": lambda part, _depth: f"[{text(obj(part.get('source')).get('media_type')) or 'document'}]",
    "input_audio": lambda part, _depth: f"[audio/{text(obj(part.get('input_audio')).get('format')) or 'unknown'}]",
    "tool_use": lambda part, _depth: tool_call(part.get("name"), part.get("input")),
    "server_tool_use": lambda part, _depth: tool_call(part.get("name"), part.get("input")),
    "mcp_tool_use": lambda part, _depth: tool_call(part.get("name"), part.get("input")),
    "tool_result": lambda part, depth: tool_result(part.get("content"), depth),
    "mcp_tool_result": lambda part, depth: tool_result(part.get("content"), depth),
    "web_search_tool_result": lambda part, _depth: tool_result(
        [text(hit.get("url")) for hit in objs(part.get("content"))]
    ),
    "function_call": lambda part, _depth: tool_call(part.get("name"), part.get("arguments")),
    "custom_tool_call": lambda part, _depth: tool_call(part.get("name"), part.get("input")),
    "function_call_output": lambda part, depth: tool_result(part.get("output"), depth),
    "custom_tool_call_output": lambda part, depth: tool_result(part.get("output"), depth),
    "redacted_thinking": lambda _part, _depth: "[thinking]",
    "thinking": lambda part, depth: f"[thinking {content(part.get('thinking'), depth)}]",
    "reasoning": lambda part, depth: f"[thinking {content(part.get('summary') or part.get('content'), depth)}]",
}
"""How parts that are no text are shown, by their ``type``."""
