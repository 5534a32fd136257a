"""Kept answers for tests: one good stream, to be changed field by field."""

from dataclasses import replace
from random import Random
from typing import Any

from mitmgate.dialects.base import Reading, Usage
from mitmgate.store.entry import Entry

WALL = 1_700_000_000.0
"""When they are kept; ``ManualClock`` begins here."""

PIECES = (
    (0, b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'),
    (40, b'data: {"choices":[{"index":0,"delta":{"content":"H\xc3\xa9llo"}}]}\n\n'),
    (90, b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'),
)

READING = Reading(
    usage=Usage(input_tokens=12, output_tokens=3, cache_read_input_tokens=0, server_tools={"web_search": 1}),
    usage_seen=True,
    usage_final=True,
    response_model="gpt-4o-2024-08-06",
    response_id="chatcmpl-1",
    finish_reasons=["stop"],
    first_content=True,
    ended=True,
    finished=True,
    text_chars=6,
    streamed=True,
)

ENTRY = Entry(
    key="0" * 64,
    fields=[
        (b"Content-Type", b"text/event-stream"),
        (b"x-request-id", b"req_1"),
        (b"X-Twice", b"a"),
        (b"x-twice", b"b"),
    ],
    reason=b"OK",
    pieces=PIECES,
    reading=READING,
    content_index=1,
    stored_at=WALL,
    ttl_s=60.0,
    stale_s=0.0,
    rule="faq",
    tenant="acme",
    route="chat",
    model="gpt-4o",
    provider_name="openai",
    target="openai",
    host="api.openai.com",
    step=0,
    path="/v1/chat/completions",
)


def key(n: int) -> str:
    """Return the *n*-th key: 64 hex digits, the number in front."""
    return f"{n:04x}".ljust(64, "0")


def entry(n: int = 1, **changes: Any) -> Entry:
    """Return the *n*-th entry."""
    return replace(ENTRY, key=key(n), **changes)


def of_size(n: int, size: int, **changes: Any) -> Entry:
    """Return the *n*-th entry with a body of *size* bytes that compress badly."""
    return entry(n, pieces=((0, Random(n).randbytes(size)),), **changes)
