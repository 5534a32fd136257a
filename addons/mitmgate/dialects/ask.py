"""Ask an OpenAI-style stream for its usage, with as few changed bytes as can be.

``"stream_options":{"include_usage":true}`` goes in before the body's last brace; where the member is there already
only its value changes. What a client asked for itself stays as it is.
"""

import json
import re

from mitmgate.dialects.base import Json

_BLANKS = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


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
        span = _span_of(text, "stream_options")
    except (ValueError, IndexError):
        return None
    if span is None:
        return None
    value = json.dumps(options, ensure_ascii=False, separators=(",", ":"))
    return (text[: span[0]] + value + text[span[1] :]).encode("utf-8")


def _span_of(text: str, wanted: str) -> tuple[int, int] | None:
    """Return where the value of the outermost object's member *wanted* begins and ends."""
    at = _skip(text, 0) + 1
    span = None
    while text[_skip(text, at)] != "}":
        key, at = _decode(text, _skip(text, at))
        start = _skip(text, _skip(text, at) + 1)  # past the colon
        _, at = _decode(text, start)
        if key == wanted:
            span = (start, at)
        at = _skip(text, at)
        if text[at] == ",":
            at += 1
    return span


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at
