"""A JSON text, changed at some of its places: every other byte stays as its writer wrote it. Pure; ``shape`` asks.

A provider knows a prompt again by how it begins, and what it knows costs a tenth. A body that is parsed and written
anew says the same in other bytes, so values are changed where they stand: numbers, escapes, white space and the order
of members around them stay.
"""

import json
from collections.abc import Callable, Iterable, Mapping

from mitmgate.dialects.base import Json
from mitmgate.dialects.members import blank, decode, past

type Edit = Callable[[str], str | None]
"""The text of a value -> the text that stands for it; None takes an item out of its list. A member that is not there
yet is edited as ``""`` and comes last in its object.
"""

type Edits = Mapping[str | int, Edits | Edit]
"""Name of a member, or index of an item -> what to do there, or further in."""

type Path = tuple[str | int, ...]

EMPTY_OBJECT = "{}"


def put(value: Json) -> Edit:
    """Let *value* stand there, whatever stood there before."""
    return lambda _: written(value)


def gone(_: str) -> None:
    """Take an item out of its list."""


def preceded_by(*values: Json) -> Edit:
    """Let new items stand before an item."""
    return lambda item: ",".join([*map(written, values), item])


def placed(edits: Iterable[tuple[Path, Edit]]) -> Edits:
    """Return *edits*, each given with the way to its place, as one. No place lies within another."""
    tree: dict[str | int, Edits | Edit] = {}
    for path, edit in edits:
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})  # type: ignore[assignment]
        node[path[-1]] = edit
    return tree


def edited(text: str, edits: Edits) -> str:
    """Return *text*, one JSON value, with *edits* made.

    Raises ``ValueError``, ``IndexError`` or ``RecursionError`` where a place is not there, or stands twice.
    """
    start = blank(text, 0)
    value, end = _edited(text, start, edits)
    return f"{text[:start]}{value}{text[end:]}"


def written(value: Json) -> str:
    """Return *value* as compact JSON that can be encoded, whatever half of a character stands in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if _is_encodable(text) else json.dumps(value, separators=(",", ":"))


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _edited(text: str, at: int, edits: Edits | Edit) -> tuple[str | None, int]:
    """Return the value that begins at *at*, edited, and where it ended."""
    if not isinstance(edits, Mapping):
        end = decode(text, at)[1]
        return edits(text[at:end]), end
    if text[at] == "{":
        return _object(text, at, edits)
    if text[at] == "[":
        return _list(text, at, edits)
    if text.startswith("null", at):
        return _object(EMPTY_OBJECT, 0, edits)[0], at + len("null")
    raise ValueError(f"neither object nor list at {at}")


def _object(text: str, at: int, edits: Edits) -> tuple[str, int]:
    pieces: list[str] = []
    copied, last_end = at, at + 1
    found: set[str] = set()
    at = blank(text, at + 1)
    comma = "" if text[at] == "}" else ","
    while text[at] != "}":
        name, at = decode(text, at)
        begin = blank(text, past(text, blank(text, at), ":"))
        if name in edits:
            value, last_end = _member(text, begin, edits[name], is_new=name not in found)
            pieces += [text[copied:begin], value]
            copied = last_end
            found.add(name)
        else:
            last_end = decode(text, begin)[1]
        at = _next(text, last_end, "}")
    added = ",".join(f"{written(name)}:{_added(edit)}" for name, edit in edits.items() if name not in found)
    pieces += [text[copied:last_end], comma + added if added else "", text[last_end : at + 1]]
    return "".join(pieces), at + 1


def _member(text: str, begin: int, edits: Edits | Edit, is_new: bool) -> tuple[str, int]:
    if not is_new and isinstance(edits, Mapping):
        raise ValueError("an object or list that has to change stands twice; hosts differ in which they read")
    value, end = _edited(text, begin, edits)
    if value is None:
        raise ValueError("a member cannot be taken out")
    return value, end


def _added(edits: Edits | Edit) -> str:
    value = _object(EMPTY_OBJECT, 0, edits)[0] if isinstance(edits, Mapping) else edits("")
    if value is None:
        raise ValueError("a member cannot be taken out")
    return value


def _list(text: str, at: int, edits: Edits) -> tuple[str, int]:
    begin = at
    at = blank(text, at + 1)
    lead, gap_begin = text[begin:at], begin
    pieces: list[str] = []
    index = 0
    while text[at] != "]":
        gap, edit = text[gap_begin:at], edits.get(index)
        value, end = _edited(text, at, edit) if edit is not None else _as_it_is(text, at)
        if value is not None:
            pieces += [gap if pieces else lead, value]
        gap_begin, index = end, index + 1
        at = _next(text, end, "]")
    if any(not isinstance(place, int) or place >= index for place in edits):
        raise ValueError(f"the list has {index} items")
    pieces += [text[gap_begin : at + 1] if pieces else "[]"]
    return "".join(pieces), at + 1


def _as_it_is(text: str, at: int) -> tuple[str, int]:
    end = decode(text, at)[1]
    return text[at:end], end


def _next(text: str, at: int, closing: str) -> int:
    """Return where the next member or item begins behind *at*, or the bracket that ends them stands."""
    at = blank(text, at)
    return at if text[at] == closing else blank(text, past(text, at, ","))
