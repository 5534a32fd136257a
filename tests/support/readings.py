"""Answers written by hand, and what a dialect reads out of them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from mitmgate import dialects
from mitmgate.dialects.base import Call, Dialect, Reading

SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}
ALL: list[Dialect] = [
    dialects.CHAT,
    dialects.COMPLETIONS,
    dialects.EMBEDDINGS,
    dialects.RESPONSES,
    dialects.MESSAGES,
    dialects.GENERATE,
    dialects.GENERIC,
]


def stream(*events: Any, done: bool = False, named: bool = False) -> bytes:
    """Return *events* as server-sent events; *named* adds each one's ``type`` as its name, *done* ends with [DONE]."""
    lines = []
    for event in events:
        if named:
            lines.append(f"event: {event['type']}\n")
        lines.append(f"data: {json.dumps(event)}\n\n")
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def cut(body: bytes, size: int) -> Iterable[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


def read(
    dialect: Dialect,
    body: bytes | dict[str, Any] | list[Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    asked_stream: bool | None = None,
    path: str = "",
    size: int | None = None,
) -> Reading:
    """Return what *dialect* reads: of bytes as a stream, of anything else as a plain JSON answer."""
    is_stream = isinstance(body, bytes)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = headers if headers is not None else SSE if is_stream else JSON
    call = Call(status, head, is_stream if asked_stream is None else asked_stream, path)
    return dialects.reading_of(dialect, call, cut(data, size or max(len(data), 1)))


def counts(reading: Reading) -> dict[str, Any]:
    """Return the counters that are known."""
    return {key: value for key, value in asdict(reading.usage).items() if value not in (None, {})}
