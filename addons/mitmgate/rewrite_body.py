"""JSON bodies, cut apart or changed at one place: every other byte stays as the client wrote it. Pure.

A body that is parsed and written again says the same in other bytes: numbers, escapes, the order of members and white
space may differ, and whoever signs, hashes or caches it would see another request. So values are found by their place
in the text, and only the text that has to change does.
"""

import json

from mitmgate.dialects.base import Json
from mitmgate.dialects.members import blank, decode, past, spans_of


def with_model(body: bytes, model: str) -> bytes | None:
    """Return *body*, a JSON object in UTF-8, asking for *model*; None where it is no such thing.

    A ``model`` that stands twice changes twice, since hosts differ in which they read; where there is none it goes in
    as the first member.
    """
    try:
        text = body.decode("utf-8", "surrogatepass")
        start = text.index("{") + 1
        spans = spans_of(text, start, "model")
    except (ValueError, IndexError, RecursionError):
        return None
    value = json.dumps(model)
    for begin, end in reversed(spans):
        text = text[:begin] + value + text[end:]
    if not spans:
        more = "" if text[blank(text, start)] == "}" else ","
        text = f'{text[:start]}"model":{value}{more}{text[start:]}'
    return text.encode("utf-8", "surrogatepass")


def items_of(body: bytes) -> list[tuple[Json, str]]:
    """Return the items of *body*, a JSON list: each parsed, and as it stands there.

    Raises ``ValueError`` or ``RecursionError`` where *body* is no such thing.
    """
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    items: list[tuple[Json, str]] = []
    at = blank(text, 0)
    if not text.startswith("[", at):
        raise ValueError("no list")
    at = blank(text, at + 1)
    while not text.startswith("]", at):
        if items:
            at = blank(text, past(text, at, ","))
        value, end = decode(text, at)
        items.append((value, text[at:end]))
        at = blank(text, end)
    if blank(text, at + 1) != len(text):
        raise ValueError("more than a list")
    return items


def member_of(text: str, name: str) -> str | None:
    """Return the value of the member *name* of *text*, a JSON object, as it stands there; None where it has none.

    Of several it is the last: a parser keeps that one, too.
    """
    spans = spans_of(text, text.index("{") + 1, name)
    return text[slice(*spans[-1])] if spans else None
