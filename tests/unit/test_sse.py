"""Every way to write and to cut a server-sent event stream gives the same events."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.dialects.skim import HARD_BYTES
from mitmgate.dialects.sse import Event, Parser

type Pair = tuple[bytes, bytes]


def parsed(raw: bytes, size: int | None = None, whole_bytes: int = 65536) -> list[Event]:
    parser = Parser(whole_bytes)
    step = size or max(len(raw), 1)
    events = [event for at in range(0, len(raw), step) for event in parser.feed(raw[at : at + step])]
    return events + parser.end()


CASES: dict[str, tuple[bytes, list[Pair]]] = {
    "LF": (b"data: 1\n\ndata: 2\n\n", [(b"", b"1"), (b"", b"2")]),
    "CR": (b"data: 1\r\rdata: 2\r\r", [(b"", b"1"), (b"", b"2")]),
    "CRLF": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [(b"", b"1"), (b"", b"2")]),
    "mixed line ends": (b"data: 1\r\n\ndata: 2\r\r\ndata: 3\n\r", [(b"", b"1"), (b"", b"2"), (b"", b"3")]),
    "byte order mark": (b"\xef\xbb\xbfdata: 1\n\n", [(b"", b"1")]),
    "half a byte order mark is a line": (b"\xef\xbb\n\ndata: 1\n\n", [(b"", b"1")]),
    "a field called error": (b'error: {"a":1}\n\ndata: 1\n\n', [(b"error", b'{"a":1}'), (b"", b"1")]),
    "error without an object": (b"error: no\ndata: 1\n\n", [(b"", b"1")]),
    "no space": (b"data:1\n\n", [(b"", b"1")]),
    "two spaces": (b"data:  1\n\n", [(b"", b" 1")]),
    "several lines": (b"data: {\ndata:\ndata: }\n\n", [(b"", b"{\n\n}")]),
    "comments": (b": OPENROUTER PROCESSING\n\n:\n: ping\ndata: 1\n: in between\n\n", [(b"", b"1")]),
    "named": (b"event: error\ndata: 1\n\ndata: 2\n\n", [(b"error", b"1"), (b"", b"2")]),
    "a name without data is no event": (b"event: ping\n\ndata: 1\n\n", [(b"", b"1")]),
    "name behind the data": (b"data: 1\nevent: x\n\n", [(b"x", b"1")]),
    "ids and retries": (b"id: 7\nretry: 10\ndata: 1\nid\n\n", [(b"", b"1")]),
    "no blank line at the end": (b"data: 1\n\nevent: x\ndata: 2\n", [(b"", b"1"), (b"x", b"2")]),
    "no line end at the end": (b"data: 1\n\ndata: 2", [(b"", b"1"), (b"", b"2")]),
    "empty": (b"", []),
    "unknown fields": (b"foo: {bar}\ndata: 1\n\n", [(b"", b"1")]),
}


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES)
def test_framing(case: str, size: int | None) -> None:
    raw, events = CASES[case]
    assert [(event.name, event.data) for event in parsed(raw, size)] == events


def test_a_line_feed_in_the_next_read_belongs_to_the_carriage_return_before() -> None:
    parser = Parser()
    assert parser.feed(b"data: 1\r") == []
    assert parser.feed(b"") == []
    assert parser.feed(b"\n") == []
    assert parser.feed(b"\r") == [Event(b"", b"1")]
    assert parser.feed(b"\ndata: 2\n\n") == [Event(b"", b"2")]


def test_a_character_cut_in_two_stays_whole() -> None:
    assert parsed("data: €\n\n".encode(), size=1) == [Event(b"", "€".encode())]


@pytest.mark.parametrize("size", [None, 1, 5])
def test_json_outside_of_the_framing_is_an_event_of_its_own(size: int | None) -> None:
    raw = b'data: 1\n\n{\n  "error": {\n    "code": 499\n  }\n}\ndata: 2\n\n'
    assert parsed(raw, size) == [
        Event(b"", b"1"),
        Event(b"", b'{\n  "error": {\n    "code": 499\n  }\n}', stray=True),
        Event(b"", b"2"),
    ]


@pytest.mark.parametrize("size", [None, 1, 64, 1000])
def test_a_long_payload_comes_out_reduced_and_valid(size: int | None) -> None:
    raw = b'event: x\ndata: {"output":"' + b"A" * 9000 + b'","usage":{"n":1}}\n\ndata: 2\n\n'
    first, second = parsed(raw, size, whole_bytes=256)
    assert first.name == b"x"
    assert first.data.startswith(b'{"output":"AAAA')
    assert first.data.endswith(b'A","usage":{"n":1}}')
    assert len(first.data) < 4200
    assert second == Event(b"", b"2")


@pytest.mark.parametrize("size", [None, 1, 100])
def test_a_long_payload_in_many_lines_is_reduced_too(size: int | None) -> None:
    raw = b'data: {"n":[\n' + b"data: 1,\n" * 500 + b'data: 1],"usage":{}}\n\n'
    (event,) = parsed(raw, size, whole_bytes=256)
    assert event.data.endswith(b',"usage":{}}')
    assert len(event.data) < 300


def test_a_long_payload_that_is_no_json_is_one_event_that_no_parser_takes() -> None:
    assert parsed(b"data: " + b"x" * 1000 + b"\n\n", whole_bytes=256) == [Event(b"", b"too long, and no JSON")]


@pytest.mark.parametrize("start", [b"data: ", b": ", b"", b'{"a":"', b"event: "])
def test_whatever_is_sent_without_an_end_little_is_kept(start: bytes) -> None:
    parser = Parser()
    parser.feed(start)
    for _ in range(100):
        parser.feed(b"y" * 65536)
    kept = sum(len(event.data) for event in parser.end())
    assert kept <= HARD_BYTES
    assert len(parser._tail) <= 2 * 65536


def test_work_grows_with_the_bytes_whatever_the_cut() -> None:
    """Counts the bytes that lines are put together from: twice the stream, twice the bytes."""

    def copied(events: int) -> int:
        parser = Parser()
        total = 0
        for byte in b'data: {"x":1}\n\n' * events:
            parser.feed(bytes([byte]))
            total += len(parser._tail)
        return total

    assert copied(200) == 2 * copied(100)


LINES = st.sampled_from(
    [b"data: a", b"data:", b"data:b", b"event: e", b": c", b"", b"", b'{"x"', b"}", b"id: 1", b"\xc3\xa4"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.integers(1, 9))
def test_the_cut_cannot_matter(lines: list[tuple[bytes, bytes]], size: int) -> None:
    raw = b"".join(itertools.chain.from_iterable(lines))
    assert parsed(raw, size) == parsed(raw)


@given(st.binary(max_size=300), st.integers(1, 9))
def test_any_bytes_in_any_cut_give_the_same_events(raw: bytes, size: int) -> None:
    assert parsed(raw, size, whole_bytes=16) == parsed(raw, whole_bytes=16)
