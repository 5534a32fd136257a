"""An answer is cut into frames without losing a byte, and a frame is put together again around another payload."""

import json
from zlib import crc32

import pytest

from mitmgate import dialects
from mitmgate.dialects import eventstream
from mitmgate.dialects.base import Dialect
from mitmgate.dialects.framing import values_of
from mitmgate.errors import Refusal
from mitmgate.guard_frames import (
    CUTTERS,
    Events,
    Frame,
    Framing,
    Unreadable,
    framing_named,
    framing_of,
    last_words,
    one_more,
)
from support import amazon

SSE, LINES, AMAZON = "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream"
JSON = "application/json"


@pytest.mark.parametrize(
    ("content_type", "data", "stream", "framing"),
    [
        (SSE, b"", True, None),
        (SSE, b"\xef\xbb", True, None),
        (JSON, b" \r\n", True, None),
        (SSE, b"data: {", True, "events"),
        (SSE, b"\xef\xbb\xbfevent: x", True, "events"),
        ("", b": ping", True, "events"),
        (JSON, b"data: {", True, "events"),
        ("", b"event: x", False, "events"),
        (JSON, b'{"a"', False, "body"),
        (JSON, b'{"a"', True, "lines"),
        (LINES, b'{"a"', False, "lines"),
        ("application/stream+json", b'{"a"', False, "lines"),
        (JSON, b"[{", True, "list"),
        (JSON, b"[{", False, "body"),
        ("text/html", b"<html>", True, "body"),
        (AMAZON, b"", False, "messages"),
        (AMAZON.upper(), b"\0", False, "messages"),
        ("audio/mpeg", b"ID3", False, "binary"),
        ("application/octet-stream", b"{", False, "binary"),
    ],
)
def test_framing_is_found_from_the_first_byte(
    content_type: str, data: bytes, stream: bool, framing: Framing | None
) -> None:
    assert framing_of(content_type, data, stream) == framing


def cut(framing: Framing, data: bytes, size: int | None = None) -> list[Frame]:
    cutter = CUTTERS[framing]()
    pieces = [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    return [*(frame for piece in pieces for frame in cutter.feed(piece)), *cutter.end()]


MESSAGE = amazon.event("contentBlockDelta", {"delta": {"text": "a"}}) + amazon.chunk({"type": "b"})

CASES: list[tuple[Framing, bytes, list[bytes]]] = [
    ("events", b"data: a\n\ndata:b\n\ndata:  c\n\n", [b"a", b"b", b" c"]),
    ("events", b"data: a\r\n\r\ndata: b\r\rdata: c\n\r\ndata: d\r\n\n", [b"a", b"b", b"c", b"d"]),
    ("events", b"event: x\r\ndata: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    ("events", b"\n\r\n: ping\n\n:\n\ndata: a\n\n\n\n", [b" ping", b"", b"a"]),
    ("events", b": ping\ndata: a\n\n", [b" ping", b"a"]),
    ("events", b"\xef\xbb\xbfdata: a\n\ndata: b", [b"a", b"b"]),
    ("events", b'{\n "error": 1\n}\n\ndata: a\n\n', [b'{\n "error": 1\n}', b"a"]),
    ("events", b"id: 7\nevent: x\nretry: 9\n\n", []),
    ("list", b'[{"a":"]}\\""},\r\n{"b":[{}]}]\n', [b'{"a":"]}\\""}', b'{"b":[{}]}']),
    ("list", b"[]", []),
    ("list", b'[ "a", {"b":1}]', [b'[ "a", {"b":1}']),
    ("lines", b'{"a":1}\n{"b":"}{"}\r\n\n{"c":\n{}}', [b'{"a":1}', b'{"b":"}{"}', b'{"c":\n{}}']),
    ("lines", b'\x1e{"a":1}\n\x1e{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
    ("lines", b'{"a":1} oops {"b":2}', [b'{"a":1}', b'oops {"b":2}']),
    ("messages", MESSAGE, [b'{"delta": {"text": "a"}}', b'{"type": "b"}']),
]


@pytest.mark.parametrize(("framing", "data", "payloads"), CASES)
@pytest.mark.parametrize("size", [None, 1, 2, 3, 5])
def test_frames_are_the_same_whatever_the_cut(
    framing: Framing, data: bytes, payloads: list[bytes], size: int | None
) -> None:
    frames = cut(framing, data, size)

    assert [frame.payload for frame in frames if frame.payload is not None] == payloads
    assert b"".join(frame.raw for frame in frames) == data


@pytest.mark.parametrize(("framing", "data", "payloads"), CASES)
def test_a_frame_that_says_its_own_payload_is_the_same(framing: Framing, data: bytes, payloads: list[bytes]) -> None:
    for frame in cut(framing, data):
        if frame.payload is not None:
            assert frame.saying(frame.payload) == frame.raw


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"event: x\r\nid: 7\r\ndata: a\r\n: c\r\n\r\n", b"event: x\r\nid: 7\r\ndata: NEW\r\n: c\r\n\r\n"),
        (b"data:a", b"data:NEW"),
        (b"data: a\ndata: b\n\n", b"data: NEW\ndata: \n\n"),
        (b"error: {}\n\n", b"error:NEW\n\n"),
    ],
)
def test_an_event_keeps_everything_but_its_data(data: bytes, said: bytes) -> None:
    [frame] = cut("events", data)
    assert frame.saying(b"NEW") == said


def test_an_element_keeps_what_stands_around_it() -> None:
    frames = cut("list", b'[{"a":1} ,\r\n {"b":2}\n]')
    assert (
        b"".join(frame.raw if frame.payload is None else frame.saying(b"{}") for frame in frames) == b"[{} ,\r\n {}\n]"
    )


@pytest.mark.parametrize("payload", [b"{}", b'{"text": "a longer one than before"}'])
def test_a_message_gets_the_checksums_of_what_it_says(payload: bytes) -> None:
    said = [frame.saying(payload) for frame in cut("messages", MESSAGE)]

    events = eventstream.Parser().feed(b"".join(said))
    assert [(event.name, event.data) for event in events] == [(b"contentBlockDelta", payload), (b"chunk", payload)]


@pytest.mark.parametrize(
    ("framing", "behind", "before", "said"),
    [
        ("list", b"}", b',{"b":2}', b",\r\nNEW"),
        ("list", b"}", b"]", b",\r\nNEW"),
        ("lines", b"}\n", b'{"b":2}', b"NEW\n"),
        ("lines", b"}", b'\n{"b":2}', b"\nNEW"),
        ("lines", b"}", b"", b"\nNEW\n"),
        ("lines", b"", b"", b"NEW\n"),
    ],
)
def test_one_more_value_stands_between_two(framing: Framing, behind: bytes, before: bytes, said: bytes) -> None:
    [frame, *_] = [frame for frame in cut(framing, b'{"a":1}') if frame.payload is not None]
    assert one_more(framing, frame, b"NEW", behind, before) == said


def test_one_more_event_is_whole_though_half_a_line_end_came_later() -> None:
    first, *_ = Events().feed(b"data: a\r\n\r")
    assert one_more("events", first, b"NEW", b"", b"") == b"data: NEW\r\n\r\n"


WRONG_PRELUDE = MESSAGE[:8] + b"\0\0\0\0" + MESSAGE[12:]
SHORT = b"\0\0\0\x05\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [WRONG_PRELUDE, MESSAGE[:-1] + b"\0", SHORT + crc32(SHORT).to_bytes(4), MESSAGE[:-3]],
    ids=["prelude", "message", "too short", "broken off"],
)
def test_messages_that_cannot_be_trusted_are_told(data: bytes) -> None:
    with pytest.raises(Unreadable):
        cut("messages", data)


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        ("events", b"data: " + b"a" * 200),
        ("list", b'[{"a": "' + b"a" * 200),
        ("messages", amazon.event("x", "a" * 200)),
    ],
)
def test_a_frame_that_is_too_long_is_told(framing: Framing, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmgate.guard_frames.MOST_BYTES", 100)
    with pytest.raises(Unreadable):
        cut(framing, data, 10)


def test_long_events_take_linear_time() -> None:
    cutter = Events()
    looked = 0
    for _ in range(1000):
        cutter.feed(b"a" * 100)
        looked += len(cutter.kept) - cutter.looked
    assert looked == 0  # nothing is looked at again


# -- the last words ----------------------------------------------------------------------------------------------------

REFUSAL = Refusal(403, "permission", "stopped by rule x", source="guard")


@pytest.mark.parametrize(
    ("content_type", "dialect", "begun"),
    [
        (SSE, dialects.CHAT, b"data: {}\n\n"),
        (SSE, dialects.MESSAGES, b"data: {}\n\n"),
        (LINES, dialects.GENERIC, b"{}\n"),
        (JSON, dialects.GENERATE_LIST, b"[{}"),
        (AMAZON, dialects.GENERIC, amazon.event("x", {})),
    ],
)
def test_a_refusal_is_the_last_frame_in_every_framing(content_type: str, dialect: Dialect, begun: bytes) -> None:
    words = last_words(framing_named(content_type, dialect), dialect, REFUSAL, "id")

    assert words is not None
    _, last = list(values_of(content_type, begun + words))[-1]
    assert "stopped by rule x" in json.dumps(last["error"])


def test_a_plain_answer_has_no_last_words() -> None:
    assert framing_named(JSON, dialects.CHAT) is None
    assert last_words(None, dialects.CHAT, REFUSAL, None) is None
