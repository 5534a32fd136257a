"""Anthropic Messages: cumulative counts, cache beside the input, failures in mid-stream."""

from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Reading
from support.readings import counts, read, stream


def start(**usage: Any) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "usage": usage,
    }
    return {"type": "message_start", "message": message}


def block(index: int, **what: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": what}


def delta(index: int, **what: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": what}


def ending(reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


STOP = {"type": "message_stop"}
TEXT = delta(0, type="text_delta", text="hello")


def messages(*events: dict[str, Any]) -> Reading:
    return read(dialects.MESSAGES, stream(*events, named=True))


def test_output_in_the_last_event_is_the_whole_not_the_rest() -> None:
    reading = messages(start(input_tokens=25, output_tokens=1), TEXT, ending(output_tokens=15), STOP)
    assert counts(reading) == {"input_tokens": 25, "output_tokens": 15}
    assert (reading.response_id, reading.response_model) == ("msg_1", "claude-x")
    assert (reading.finish_reasons, reading.usage_source, reading.ended) == (["end_turn"], "reported", True)


def test_input_is_the_sum_of_what_was_read_written_and_neither() -> None:
    lives = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 11}
    used = {
        "input_tokens": 4,
        "cache_read_input_tokens": 30,
        "cache_creation_input_tokens": 111,
        "cache_creation": lives,
    }
    reading = messages(
        start(**used, output_tokens=1), ending(output_tokens=9, output_tokens_details={"thinking_tokens": 6})
    )
    assert counts(reading) == {
        "input_tokens": 145,
        "output_tokens": 9,
        "cache_read_input_tokens": 30,
        "cache_creation_input_tokens": 111,
        "cache_creation_1h_input_tokens": 11,
        "reasoning_output_tokens": 6,
    }


def test_writes_are_summed_where_only_their_lives_are_told() -> None:
    reading = messages(
        start(input_tokens=1, cache_creation={"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 2})
    )
    assert (reading.usage.input_tokens, reading.usage.cache_creation_input_tokens) == (8, 7)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"input_tokens": 61, "output_tokens": 2}, 61),
        ({"input_tokens": 0, "output_tokens": 2}, 43),
        ({"input_tokens": None, "output_tokens": 2}, 43),
        ({"output_tokens": 2}, 43),
    ],
)
def test_the_last_event_raises_the_input_and_never_erases_it(last: dict[str, Any], expected: int) -> None:
    assert messages(start(input_tokens=43, output_tokens=1), ending(**last), STOP).usage.input_tokens == expected


def test_two_starts_are_one_message() -> None:
    begun = start(input_tokens=25, output_tokens=1)
    tool = block(0, type="tool_use", id="t", name="f", input={})
    reading = messages(begun, tool, begun, tool, ending(output_tokens=15), STOP)
    assert counts(reading) == {"input_tokens": 25, "output_tokens": 15}
    assert reading.tool_calls == 1


def test_a_failure_in_mid_stream_bills_what_was_reported() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    reading = messages(start(input_tokens=80, output_tokens=4), TEXT, error)
    assert counts(reading) == {"input_tokens": 80, "output_tokens": 4}
    assert (reading.error_type, reading.error_event, reading.ended) == ("error_event:overloaded", True, False)
    assert reading.usage_source == "reported_partial"


def test_who_leaves_behind_the_stop_reason_has_got_it_all() -> None:
    reading = messages(start(input_tokens=80, output_tokens=4), TEXT, ending(output_tokens=9))
    assert (reading.finished, reading.ended, reading.usage_source) == (True, False, "reported")


@pytest.mark.parametrize(
    ("event", "is_content"),
    [
        (start(input_tokens=1), False),
        ({"type": "ping"}, False),
        (block(0, type="text", text=""), False),
        (block(0, type="thinking", thinking="", signature=""), False),
        (delta(0, type="signature_delta", signature="abc"), False),
        (TEXT, True),
        (delta(0, type="thinking_delta", thinking="hm"), True),
        (delta(0, type="input_json_delta", partial_json='{"a"'), True),
        (block(0, type="tool_use", id="t", name="f", input={}), True),
        ({"type": "something_new", "delta": {"text": "x"}}, False),
    ],
)
def test_the_first_content_is_what_a_person_would_see(event: dict[str, Any], is_content: bool) -> None:
    assert messages(event).first_content is is_content


def test_only_the_clients_tools_are_its_calls() -> None:
    reading = messages(
        start(input_tokens=1),
        block(0, type="server_tool_use", id="s", name="web_search", input={}),
        block(1, type="web_search_tool_result", tool_use_id="s", content=[]),
        block(2, type="mcp_tool_use", id="m", name="x", input={}),
        block(3, type="tool_use", id="a", name="f", input={}),
        block(4, type="tool_use", id="b", name="f", input={}),
        ending("tool_use", output_tokens=5, server_tool_use={"web_search_requests": 3, "web_fetch_requests": 0}),
    )
    assert reading.tool_calls == 2
    assert reading.usage.server_tools == {"web_search": 3}


def test_iterations_are_not_added_to_the_counts_they_repeat() -> None:
    iterations = [{"type": "message", "input_tokens": 1000, "output_tokens": 100}]
    reading = messages(start(input_tokens=10, output_tokens=1), ending(output_tokens=15, iterations=iterations), STOP)
    assert counts(reading) == {"input_tokens": 10, "output_tokens": 15}


def test_the_type_in_the_data_is_enough() -> None:
    body = stream(start(input_tokens=25, output_tokens=1), TEXT, ending(output_tokens=15), STOP)
    assert counts(read(dialects.MESSAGES, body)) == {"input_tokens": 25, "output_tokens": 15}


def test_the_event_field_is_enough() -> None:
    body = b'event: message_delta\ndata: {"delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 5}}\n\n'
    assert read(dialects.MESSAGES, body).finish_reasons == ["max_tokens"]


def test_a_plain_answer() -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hello"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    used = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 7, "service_tier": "priority"}
    body = {
        "id": "msg_1",
        "type": "message",
        "model": "claude-x",
        "content": content,
        "stop_reason": "tool_use",
        "usage": used,
    }
    reading = read(dialects.MESSAGES, body)
    assert counts(reading) == {
        "input_tokens": 15,
        "output_tokens": 7,
        "cache_read_input_tokens": 5,
        "service_tier": "priority",
    }
    assert (reading.finish_reasons, reading.tool_calls, reading.ended) == (["tool_use"], 1, True)
    assert reading.text_chars == len("hm" + "hello" + "f" + '{"a":1}')


def test_a_plain_answer_to_a_stream_request_is_read_too() -> None:
    message = {"id": "msg_1", "type": "message", "content": [], "stop_reason": "end_turn", "usage": {"input_tokens": 3}}
    assert counts(read(dialects.MESSAGES, stream(message))) == {"input_tokens": 3}
