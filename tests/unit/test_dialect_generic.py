"""A wire without a module still gives a row: usage by the names of its counters, the rest by common names."""

from typing import Any

import pytest

from mitmgate import dialects
from support.readings import counts, read, stream


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, (1, 2, None)),
        ({"usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}, (1, 2, None)),
        ({"usage": {"inputTokens": 1, "outputTokens": 2, "cacheReadInputTokens": 30}}, (31, 2, 30)),
        ({"amazon-bedrock-invocationMetrics": {"inputTokenCount": 1, "outputTokenCount": 2}}, (1, 2, None)),
        ({"embedding": [0.1], "inputTextTokenCount": 8}, (8, None, None)),
        ({"usageMetadata": {"promptTokenCount": 4}}, (4, None, None)),
        ({"usage": {"total_input_tokens": 9, "total_output_tokens": 13, "total_thought_tokens": 207}}, (9, 220, None)),
        ({"usage": {"billed_units": {"input_tokens": 10, "output_tokens": 5}, "cached_tokens": 4}}, (10, 5, 4)),
        ({"meta": {"billed_units": {"input_tokens": 10}}}, (10, None, None)),
        ({"prompt_eval_count": 21, "eval_count": 369}, (21, 369, None)),
        ({"usage": {"input_tokens": 4, "cache_read_input_tokens": 6, "cache_creation_input_tokens": 0}}, (10, None, 6)),
        ({"predictions": [{"embeddings": {"statistics": {"token_count": 4}}}] * 3}, (12, None, None)),
        ({"prompt_eval_count": 8, "embeddings": [[0.1]]}, (8, None, None)),
        ({"results": [{"input_token_count": 9, "generated_token_count": 3}]}, (9, 3, None)),
        ({"inputTextTokenCount": 9, "results": [{"tokenCount": 3}, {"tokenCount": 4}]}, (9, 7, None)),
        ({"prompt_token_count": 9, "generation_token_count": 3}, (9, 3, None)),
        ({"result": {"response": "hi", "usage": {"prompt_tokens": 1, "completion_tokens": 2}}}, (1, 2, None)),
        ({"usage": {"type": "duration", "seconds": 4}}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_usage_is_known_by_its_counters(body: dict[str, Any], expected: tuple[Any, Any, Any]) -> None:
    usage = read(dialects.GENERIC, body).usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == expected


def test_counts_that_stand_in_the_head_alone() -> None:
    head = {"x-amzn-bedrock-input-token-count": "5", "x-amzn-bedrock-output-token-count": "10"}
    assert counts(read(dialects.GENERIC, {"outputs": []}, headers=head)) == {"input_tokens": 5, "output_tokens": 10}
    assert counts(read(dialects.GENERIC, {"message": "no"}, headers=head, status=400)) == {}
    assert counts(read(dialects.GENERIC, {}, headers={"x-amzn-bedrock-input-token-count": "x"})) == {}


def test_a_stream_of_events() -> None:
    reading = read(
        dialects.GENERIC,
        stream(
            {"type": "message-start", "id": "a", "delta": {"message": {"role": "assistant"}}},
            {"type": "content-delta", "delta": {"message": {"content": {"text": "hi"}}}},
            {
                "type": "message-end",
                "delta": {"finish_reason": "COMPLETE", "usage": {"billed_units": {"input_tokens": 3}}},
            },
        ),
    )
    assert (reading.response_id, reading.finish_reasons) == ("a", ["COMPLETE"])
    assert (counts(reading), reading.usage_source, reading.ended) == ({"input_tokens": 3}, "reported", True)


def test_a_stream_of_lines() -> None:
    lines = b'{"model":"m","response":"hi"}\n{"model":"m","done":true,"done_reason":"stop","eval_count":2}\n'
    reading = read(dialects.GENERIC, lines, headers={"content-type": "application/x-ndjson"})
    assert (reading.response_model, reading.finish_reasons, reading.text_chars) == ("m", ["stop"], 2)
    assert (counts(reading), reading.ended) == ({"output_tokens": 2}, True)


@pytest.mark.parametrize("content_type", ["audio/mpeg", "image/png", "application/octet-stream"])
def test_what_is_no_text_is_not_read(content_type: str) -> None:
    reading = read(dialects.GENERIC, b'\x00{"usage":{"prompt_tokens":1}}', headers={"content-type": content_type})
    assert (counts(reading), reading.error_type, reading.ended) == ({}, None, True)


def test_a_failure_is_told() -> None:
    assert read(dialects.GENERIC, {"error": {"type": "server_error"}}).error_type == "error_event:server_error"
    assert read(dialects.GENERIC, {"message": "x"}, status=429).error_type == "rate_limit"


def test_a_request_tells_what_it_can() -> None:
    request = dialects.GENERIC.read_request(
        "/model/amazon.nova%3A0/converse-stream", {"messages": [{"content": "hi there"}]}
    )
    assert (request.model, request.stream, request.input_chars) == ("amazon.nova%3A0", True, 8)
    request = dialects.GENERIC.read_request(
        "/api/chat", {"model": "m", "stream": True, "tools": [{}, {}], "max_tokens": 5}
    )
    assert (request.model, request.stream, request.tools, request.max_output_tokens) == ("m", True, 2, 5)


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ({"message": {"tool_calls": [{"id": "a", "function": {"name": "f"}}, {"function": {"name": "g"}}]}}, 2),
        ({"tool_calls": [{"name": "f", "parameters": {"a": 1}}, {"name": "f", "parameters": {"a": 2}}]}, 2),
        ({"output": {"message": {"content": [{"toolUse": {"toolUseId": "t", "name": "f"}}, {"text": "hi"}]}}}, 1),
        ({"content": [{"type": "tool_use", "id": "t", "name": "f"}, {"type": "server_tool_use", "name": "w"}]}, 1),
        ({"steps": [{"type": "function_call", "id": "t", "name": "f"}, {"type": "google_search_call"}]}, 1),
        ({"outputs": [{"type": "function.call", "name": "f"}, {"type": "tool.execution", "name": "w"}]}, 1),
        ({"message": {"tool_calls": [{"function": {"arguments": "{}"}}]}}, 0),
        ({"choices": [{"message": {"tool_calls": [{"id": "a", "function": {"name": "f"}}]}}]}, 1),
        ({"tool_calls": "no list", "content": [None, 1]}, 0),
    ],
)
def test_calls_for_the_client_are_counted(body: dict[str, Any], calls: int) -> None:
    assert read(dialects.GENERIC, body).tool_calls == calls


def test_a_call_that_the_last_event_repeats_counts_once() -> None:
    calls = [{"name": "f", "parameters": {"city": "Oslo"}}]
    reading = read(
        dialects.GENERIC,
        stream(
            {"event_type": "stream-start", "generation_id": "g"},
            {"event_type": "tool-calls-chunk", "tool_call_delta": {"name": "f"}},
            {"event_type": "tool-calls-generation", "tool_calls": calls},
            {"event_type": "stream-end", "response": {"response_id": "r", "generation_id": "g", "tool_calls": calls}},
        ),
    )
    assert (reading.tool_calls, reading.response_id) == (1, "g")


def test_counts_that_stand_in_the_first_event_alone_stay() -> None:
    first = {"input_token_count": 12, "generated_token_count": 0, "stop_reason": "not_finished"}
    last = {"input_token_count": 0, "generated_token_count": 5, "stop_reason": "max_tokens"}
    reading = read(dialects.GENERIC, stream({"model_id": "m", "results": [first]}, {"results": [last]}))
    assert counts(reading) == {"input_tokens": 12, "output_tokens": 5}
    assert (reading.finish_reasons, reading.response_model) == (["max_tokens"], "m")
    assert read(dialects.GENERIC, stream({"results": [first]})).finish_reasons == []


@pytest.mark.parametrize(
    ("path", "last", "ended"),
    [
        ("/v2/chat", {"delta": {"finish_reason": "COMPLETE"}}, True),
        ("/v2/chat", {"delta": {"message": {"content": {"text": "hi"}}}}, False),
        ("/api/chat", {"message": {"content": "hi"}, "done": True}, True),
        ("/api/chat?x=1", {"message": {"content": "hi"}, "done": False}, False),
        ("/v1beta/interactions", {"event_type": "step.stop"}, False),
        ("/v1/audio/transcriptions", {"type": "transcript.text.delta", "delta": "hi"}, True),
    ],
)
def test_where_a_stream_must_end_with_a_reason_it_is_whole_with_one(
    path: str, last: dict[str, Any], ended: bool
) -> None:
    assert read(dialects.GENERIC, stream({"id": "a"}, last), path=path).ended is ended


def test_an_interaction_ends_with_its_status() -> None:
    begun = {"id": "i", "status": "in_progress", "object": "interaction", "model": "m"}
    over = {**begun, "status": "requires_action", "usage": {"total_input_tokens": 4, "total_output_tokens": 2}}
    call = {"index": 0, "step": {"type": "function_call", "id": "t", "name": "f"}}
    reading = read(dialects.GENERIC, stream({"interaction": begun}, call, {"interaction": over}, done=True))
    assert (reading.finish_reasons, reading.tool_calls, reading.response_id) == (["requires_action"], 1, "i")
    assert counts(reading) == {"input_tokens": 4, "output_tokens": 2}
    assert read(dialects.GENERIC, stream({"interaction": begun})).finish_reasons == []


def test_cohere_tells_of_a_failure_in_the_last_delta() -> None:
    reading = read(dialects.GENERIC, stream({"type": "message-end", "delta": {"error": "x", "finish_reason": "ERROR"}}))
    assert (reading.error_event, reading.finish_reasons) == (True, ["ERROR"])


def test_a_call_is_known_by_its_id() -> None:
    begun = {"type": "function_call", "id": "t", "name": "f"}
    grown = {**begun, "arguments": {"city": "Oslo"}}
    assert read(dialects.GENERIC, stream({"step": begun}, {"step": grown})).tool_calls == 1
    assert read(dialects.GENERIC, stream({"step": begun}, {"step": {**begun, "id": "u"}})).tool_calls == 2


def test_a_counter_that_is_null_is_no_usage_and_no_error() -> None:
    reading = read(dialects.GENERIC, stream({"promptTokenCount": None}))

    assert (reading.usage_seen, reading.parse_errors) == (False, 0)
