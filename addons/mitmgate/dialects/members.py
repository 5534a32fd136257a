"""Where the members of a JSON object stand in its text: only what has to change is changed there. Pure."""

import json
import re

BLANKS = re.compile(r"[ \t\r\n]*")
decode = json.JSONDecoder().raw_decode
"""(text, at) -> (the value that begins there, where it ends)."""


def spans_of(text: str, at: int, wanted: str) -> list[tuple[int, int]]:
    """Return where each value of the member *wanted* begins and ends; *at* is past the object's brace.

    Raises ``ValueError`` or ``IndexError`` where *text* is no JSON object.
    """
    spans: list[tuple[int, int]] = []
    at = blank(text, at)
    while text[at] != "}":
        name, at = decode(text, at)
        begin = blank(text, past(text, blank(text, at), ":"))
        _, end = decode(text, begin)
        if name == wanted:
            spans.append((begin, end))
        at = blank(text, end)
        if text[at] != "}":
            at = blank(text, past(text, at, ","))
    return spans


def past(text: str, at: int, mark: str) -> int:
    """Return the place behind *mark*, which has to stand at *at*."""
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark!r} at {at}")
    return at + 1


def blank(text: str, at: int) -> int:
    """Return where the white space at *at* ends."""
    found = BLANKS.match(text, at)
    return found.end() if found else at
