"""The usage chunk is taken out of a stream; everything else passes byte for byte, at once."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.dialects.usage_filter import HELD_BYTES, UsageFilter, is_usage_chunk

WORD = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}'
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
DONE = b"data: [DONE]"


def filtered(body: bytes, size: int | None = None) -> bytes:
    usage_filter = UsageFilter()
    step = size or max(len(body), 1)
    out = b"".join(usage_filter.feed(body[at : at + step]) for at in range(0, len(body), step))
    return out + usage_filter.end()


@pytest.mark.parametrize(
    ("payload", "is_one"),
    [
        ({"choices": [], "usage": {"prompt_tokens": 1}}, True),
        ({"choices": [], "usage": None}, False),
        ({"choices": [], "usage": {}}, False),
        ({"choices": [], "prompt_filter_results": [], "usage": None}, False),
        ({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 1}}, False),
        ({"usage": {"prompt_tokens": 1}}, False),
        ({"choices": [], "usage": {"prompt_tokens": 1}, "error": {"message": "x"}}, False),
        ({"choices": [{"delta": {"content": '"choices":[],"usage":{"a":1}'}}]}, False),
        ([], False),
    ],
)
def test_the_usage_chunk_is_known_by_its_shape(payload: object, is_one: bool) -> None:
    assert is_usage_chunk(json.dumps(payload).encode()) is is_one


@pytest.mark.parametrize("payload", [b"", b"[DONE]", b'{"choices":[],"usage":', b'{"choices":[]' + b"[" * 10_000])
def test_what_is_no_json_is_no_usage_chunk(payload: bytes) -> None:
    assert not is_usage_chunk(payload)


@pytest.mark.parametrize("size", [None, 1, 2, 7, 60])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_the_usage_chunk_is_taken_out(line_end: bytes, size: int | None) -> None:
    blank = line_end * 2
    assert filtered(WORD + blank + USAGE + blank + DONE + blank, size) == WORD + blank + DONE + blank


@pytest.mark.parametrize("size", [None, 1, 5])
def test_a_usage_chunk_at_the_end_without_its_blank_line_is_taken_out(size: int | None) -> None:
    assert filtered(WORD + b"\n\n" + USAGE, size) == WORD + b"\n\n"
    assert filtered(WORD + b"\n\n" + USAGE + b"\n", size) == WORD + b"\n\n"


@pytest.mark.parametrize("size", [None, 1, 5])
def test_the_name_of_the_usage_event_goes_with_it(size: int | None) -> None:
    assert filtered(b"event: x\nid: 1\n" + USAGE + b"\n\n" + DONE + b"\n\n", size) == DONE + b"\n\n"


def test_a_whole_event_leaves_at_once_and_an_unfinished_one_waits() -> None:
    usage_filter = UsageFilter()
    assert usage_filter.feed(WORD + b"\n\n") == WORD + b"\n\n"
    assert usage_filter.feed(WORD[:20]) == b""
    assert usage_filter.feed(WORD[20:] + b"\n") == b""
    assert usage_filter.feed(b"\n" + USAGE[:5]) == WORD + b"\n\n"
    assert usage_filter.feed(USAGE[5:] + b"\n\n") == b""
    assert usage_filter.removed == 1


@pytest.mark.parametrize("comment", [b": OPENROUTER PROCESSING\n", b":\n\n", b": ping\r\n\r\n"])
def test_a_comment_leaves_at_once(comment: bytes) -> None:
    assert UsageFilter().feed(comment) == comment


def test_a_long_event_is_not_held() -> None:
    usage_filter = UsageFilter()
    start = b'data: {"choices":[],"usage":{"x":"'
    assert usage_filter.feed(start + b"A" * HELD_BYTES) == start + b"A" * HELD_BYTES
    assert usage_filter.feed(b'"}}\n\n' + USAGE + b"\n\n" + WORD + b"\n\n") == b'"}}\n\n' + WORD + b"\n\n"


@pytest.mark.parametrize("unit", [b"x", b"data: x\n", b"\r", b"\n", b": c\n"])
def test_whatever_comes_little_is_held(unit: bytes) -> None:
    usage_filter = UsageFilter()
    out = 0
    for _ in range(20):
        out += len(usage_filter.feed(unit * 10_000))
    assert 20 * 10_000 * len(unit) - out <= HELD_BYTES
    assert out + len(usage_filter.end()) == 20 * 10_000 * len(unit)


PIECES = st.sampled_from(
    [WORD, b"\n", b"\r", b"\r\n", b"\n\n", b": c\n", b"data: ", b"event: e\n", b"{", b"}", b"x", DONE]
)


@given(st.lists(PIECES, max_size=15), st.integers(1, 40))
def test_a_stream_without_usage_passes_byte_for_byte(pieces: list[bytes], size: int) -> None:
    body = b"".join(pieces)
    assert filtered(body, size) == body


@given(
    st.lists(st.sampled_from([WORD, USAGE, DONE, b": c"]), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.integers(1, 99),
)
def test_the_cut_cannot_matter(lines: list[bytes], line_end: bytes, size: int) -> None:
    body = b"".join(line + line_end * 2 for line in lines)
    assert filtered(body, size) == b"".join(line + line_end * 2 for line in lines if line != USAGE)
