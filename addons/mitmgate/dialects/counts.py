"""Small readers for the JSON of strangers: a count, a text, an object, each or nothing. Every wire uses them."""

import json
from collections.abc import Iterable
from typing import Any

from mitmgate.dialects.base import Json

MOST = 2**53
"""A larger count is a fault (and would not fit the database)."""

_decode = json.JSONDecoder().raw_decode

EMPTY: dict[str, Any] = {}


def parse(data: bytes) -> Json:
    """Return the one JSON value in *data*, blanks around it allowed; ValueError or RecursionError where it is none.

    Half the time of ``json.loads``. A byte that is no UTF-8 becomes a replacement character: it stands in some text,
    and the counts beside it are good.
    """
    text = data.decode("utf-8", "replace").strip()
    value, end = _decode(text)
    if end != len(text):
        raise ValueError(f"{len(text) - end} characters follow the JSON value")
    return value


def obj(value: Json) -> dict[str, Any]:
    """Return *value* if it is an object, else an empty one."""
    return value if isinstance(value, dict) else EMPTY


def items(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []


def objs(value: Json) -> Iterable[dict[str, Any]]:
    """Return the objects in the list *value*."""
    return (item for item in items(value) if isinstance(item, dict))


def text(value: Json) -> str:
    """Return *value* if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def named(value: Json) -> str | None:
    """Return *value* if it is a string that says something."""
    return value if isinstance(value, str) and value else None


def count(value: Json) -> int | None:
    """Return *value* if it counts something: 0 … ``MOST``, also as 12.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST else None  # a boolean is an ``int``, too


def amount(value: Json) -> float | None:
    """Return *value* if it is a sum of money: a finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < float(MOST) else None


def total(*counts: int | None) -> int | None:
    """Return the sum of what is known; None where nothing is."""
    known = [value for value in counts if value is not None]
    return sum(known) if known else None


def best(*values: Json) -> int | None:
    """Return the first positive count, else the first one: providers say one thing under two names, once as 0."""
    first: int | None = None
    for value in values:
        if value is None:  # nearly always
            continue
        counted = count(value)
        if counted:
            return counted
        if first is None:
            first = counted
    return first


def size(value: str) -> int:
    """Return what *value* adds to ``Reading.text_chars``."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))


def overlay(into: dict[str, Any], news: dict[str, Any]) -> None:
    """Write running counts over older ones, field by field: null says nothing, and zero takes nothing back."""
    for key, value in news.items():
        if isinstance(value, dict):
            inner = into.get(key)
            if not isinstance(inner, dict):
                inner = into[key] = {}
            overlay(inner, value)
        elif value is not None and not (value == 0 and into.get(key)):
            into[key] = value
