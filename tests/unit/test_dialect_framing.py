"""The framing of an answer is found from its bytes; whatever they are, reading never raises and little is kept."""

import json
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitmgate import dialects
from mitmgate.dialects.base import Call, Dialect
from mitmgate.dialects.framing import values_of
from support.readings import ALL, JSON, SSE, counts, read, stream

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
ANSWER = {"id": "a", "model": "m", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}
CHUNK = {"id": "a", "model": "m", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
EVENTS = stream(CHUNK, {"choices": [], "usage": USAGE}, done=True)
PLAIN = json.dumps(ANSWER).encode()


@pytest.mark.parametrize(
    ("body", "content_type", "streamed"),
    [
        (EVENTS, "text/event-stream; charset=utf-8", True),
        (EVENTS, "application/json", True),
        (EVENTS, "", True),
        (b"\xef\xbb\xbf" + EVENTS, "text/plain", True),
        (b": ping\n\n" + EVENTS, "", True),
        (b"\n\n" + EVENTS, "text/event-stream", True),
        (PLAIN, "application/json", False),
        (PLAIN, "text/event-stream", False),
        (b" \r\n\t" * 900 + PLAIN, "application/json", False),
        (b"\xef\xbb\xbf" + PLAIN + b"\n", "", False),
        (json.dumps(CHUNK).encode() + b"\n" + json.dumps({"usage": USAGE}).encode(), "application/x-ndjson", True),
        (json.dumps(CHUNK).encode() + b"\n" + json.dumps({"usage": USAGE}).encode(), "application/json", True),
    ],
)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_framing_is_found(body: bytes, content_type: str, streamed: bool, size: int | None) -> None:
    reading = read(dialects.CHAT, body, headers={"content-type": content_type}, asked_stream=True, size=size)
    assert counts(reading) == {"input_tokens": 5, "output_tokens": 7}
    assert reading.finish_reasons == ["stop"]
    assert reading.streamed is streamed
    assert reading.ended
    assert reading.usage_source == "reported"
    assert reading.parse_errors == 0


def test_one_broken_event_says_nothing_about_the_next() -> None:
    body = EVENTS.replace(b"data: ", b'data: {"id": tru\n\ndata: ', 1)
    reading = read(dialects.CHAT, body)
    assert reading.parse_errors == 1
    assert counts(reading) == {"input_tokens": 5, "output_tokens": 7}


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]  \n\n", b"data: [DONE]\n\ndata: [DONE]\n\n", b""])
def test_the_end_of_an_openai_stream_takes_many_forms(end: bytes) -> None:
    reading = read(dialects.CHAT, stream(CHUNK) + end)
    assert reading.ended
    assert reading.parse_errors == 0


@pytest.mark.parametrize("size", [None, 1, 1000])
def test_a_long_plain_answer_is_read_to_its_end(size: int | None) -> None:
    body = json.dumps({**ANSWER, "padding": ["x" * 5000] * 40, "usage": USAGE}).encode()
    reading = read(dialects.CHAT, body, headers=JSON, asked_stream=False, size=size)
    assert counts(reading) == {"input_tokens": 5, "output_tokens": 7}
    assert reading.ended
    assert reading.parse_errors == 0
    assert not reading.streamed


@pytest.mark.parametrize("dialect", [d for d in ALL if d is not dialects.GENERIC], ids=lambda d: d.name)
@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"", b"502 Bad gateway", b"error code: 1015"])
def test_a_200_that_is_no_json_is_told(dialect: Dialect, body: bytes) -> None:
    reading = read(dialect, body, headers={"content-type": "text/html"})
    assert reading.error_type == "unreadable"
    assert not reading.streamed


def test_an_empty_event_stream_is_cut_short_rather_than_unreadable() -> None:
    reading = read(dialects.CHAT, b"", headers=SSE)
    assert (reading.error_type, reading.ended) == (None, False)


@pytest.mark.parametrize("length", [20, 60, 100])
def test_a_plain_answer_that_breaks_off_gives_what_it_has_and_has_not_ended(length: int) -> None:
    reading = read(dialects.CHAT, PLAIN[:length], headers=JSON, asked_stream=False)
    assert reading.response_id == "a"
    assert reading.parse_errors == 1
    assert not reading.ended


def test_with_an_error_status_nothing_is_counted() -> None:
    reading = read(dialects.CHAT, ANSWER, status=500)
    assert (counts(reading), reading.response_id, reading.finish_reasons) == ({}, None, [])
    assert reading.error_type == "500"
    assert reading.ended


@pytest.mark.parametrize(
    ("headers", "error_type"),
    [({"x-amzn-errortype": "ThrottlingException:http://internal.amazon.com/"}, "rate_limit"), ({}, "400")],
)
def test_amazon_says_in_the_head_what_went_wrong(headers: dict[str, str], error_type: str) -> None:
    assert read(dialects.GENERIC, {"message": "no"}, status=400, headers=headers).error_type == error_type


def test_ending_twice_changes_nothing() -> None:
    reader = dialects.CHAT.reader(Call(200, SSE, stream=True))
    reader.feed(b"data: {")
    reader.end()
    reader.end()
    assert reader.reading.parse_errors == 1


def test_values_of_an_answer_come_with_the_names_of_their_events() -> None:
    assert list(values_of("text/event-stream", b'event: x\ndata: {"a":1}\n\ndata: [2]')) == [
        (b"x", {"a": 1}),
        (b"", [2]),
    ]
    assert list(values_of("application/json", b'[{"a":1},{"b":2}]')) == [(b"", {"a": 1}), (b"", {"b": 2})]
    assert list(values_of("application/json", b'{"a":1}')) == [(b"", {"a": 1})]


TEXT, PLAIN_BODY, EVENT_STREAM = b"A" * 65536, "application/json", "text/event-stream"


@pytest.mark.parametrize(
    ("start", "content_type", "unit"),
    [
        (b'{"choices":[{"message":{"content":"', PLAIN_BODY, TEXT),
        (b'data: {"a":"', EVENT_STREAM, TEXT),
        (b"data: ", EVENT_STREAM, TEXT),
        (b"<", "text/html", TEXT),
        (b"[", PLAIN_BODY, b"[" * 65536),
        (b'{"a":[', PLAIN_BODY, b"{}," * 22_000),
        (b'data: {"a":[', EVENT_STREAM, b"{}," * 22_000),
        (b"{", PLAIN_BODY, b'"a":1,' * 11_000),
        (b'data: {"usage":{', EVENT_STREAM, b'"a":1,' * 11_000),
    ],
)
def test_of_a_body_without_end_little_is_kept(start: bytes, content_type: str, unit: bytes) -> None:
    reader = dialects.CHAT.reader(Call(200, {"content-type": content_type}, stream=True))
    reader.feed(start)
    tracemalloc.start()
    for _ in range(10):
        reader.feed(unit)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 400 * 1024  # of 640 KiB fed


JUNK = st.sampled_from(
    [
        b"data: ",
        b"event: error\n",
        b"\n",
        b"\n\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"null",
        b"1e9",
        b"-1",
        b'"usage":',
        b'"choices":',
        b'"delta":',
        b'"message":',
        b'"index":',
        b'"tool_calls":',
        b'"type":',
        b'"response":',
        b'"content_block_delta"',
        b'"usageMetadata":',
        b'"candidates":',
        b'"error":',
        b'"prompt_tokens":',
        b"[DONE]",
        b"\xff",
    ]
)


@given(st.sampled_from(ALL), st.lists(JUNK, max_size=40), st.integers(1, 20), st.sampled_from([200, 429]))
def test_no_answer_raises_and_no_cut_matters(dialect: Dialect, junk: list[bytes], size: int, status: int) -> None:
    body = b"".join(junk)
    assert read(dialect, body, status=status, size=size) == read(dialect, body, status=status)


SCALARS = st.sampled_from([None, True, 0, -3, 7, 1.5, 2**70, "", "stop", "x", [], {}, [1], [None], {"a": 1}])
KEYS = st.sampled_from(
    [
        "id",
        "model",
        "choices",
        "delta",
        "message",
        "index",
        "content",
        "tool_calls",
        "function",
        "name",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "x_groq",
        "error",
        "type",
        "response",
        "output",
        "item",
        "candidates",
        "parts",
        "text",
        "functionCall",
        "finishReason",
        "usageMetadata",
        "promptTokenCount",
        "content_block",
        "cache_creation",
        "server_tool_use",
        "message_start",
        "data",
        "input_tokens",
        "audio",
    ]
)
SHAPES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))


@example(dialects.GENERIC, [{"content_block": {"type": []}}], False)
@given(st.sampled_from(ALL), st.lists(st.dictionaries(KEYS, SHAPES, max_size=6), max_size=3), st.booleans())
def test_json_of_any_shape_is_read_without_an_error(dialect: Dialect, values: list[object], whole: bool) -> None:
    reading = read(dialect, values if whole else stream(*values))
    assert reading.parse_errors == 0
    for count in counts(reading).values():
        assert not isinstance(count, int) or 0 <= count <= 2**55
