"""Ask an OpenAI-style stream for its usage, with as few changed bytes as can be.

``"stream_options":{"include_usage":true}`` goes in before the body's last brace; where the member is there already
only its value changes. What a client asked for itself stays as it is.
"""

import json

from mitmgate.dialects.base import Json
from mitmgate.dialects.members import blank, spans_of


def include_usage(body: bytes, parsed: Json) -> bytes | None:
    """Return *body* (*parsed* is its JSON) with the question in it; None where it streams nothing or asks already."""
    if not isinstance(parsed, dict) or parsed.get("stream") is not True:
        return None
    options = parsed.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return None
    if options is not None and not isinstance(options, dict):
        return None  # not ours to mend: the provider will say what is wrong with it
    if "stream_options" not in parsed:
        return _appended(body)
    return _replaced(body, {**(options or {}), "include_usage": True})


def _appended(body: bytes) -> bytes | None:
    end = body.rfind(b"}")
    if end < 0 or body[end + 1 :].strip():
        return None
    return body[:end] + b',"stream_options":{"include_usage":true}' + body[end:]


def _replaced(body: bytes, options: dict[str, Json]) -> bytes | None:
    """Return *body* with *options* in place of the value of its own ``stream_options``, the last one if it has two."""
    try:
        text = body.decode("utf-8")
        spans = spans_of(text, blank(text, 0) + 1, "stream_options")
    except (ValueError, IndexError):
        return None
    if not spans:
        return None
    begin, end = spans[-1]
    value = json.dumps(options, ensure_ascii=False, separators=(",", ":"))
    return (text[:begin] + value + text[end:]).encode("utf-8")
