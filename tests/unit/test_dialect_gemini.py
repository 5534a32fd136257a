"""Gemini: the last usage stands, thoughts are added, and a blocked prompt is no success."""

import json
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Reading
from support.readings import JSON, counts, read, stream

VERTEX = "/v1/projects/p/locations/l/publishers/google/models/gemini:streamGenerateContent?alt=sse"


def chunk(*parts: dict[str, Any], finish: Any = None, usage: Any = None, index: int | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    doc: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "r1"}
    return {**doc, "usageMetadata": usage} if usage is not None else doc


def used(prompt: int, candidates: int | None = None, thoughts: int | None = None, **more: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": candidates, "thoughtsTokenCount": thoughts, **more}
    return {key: value for key, value in usage.items() if value is not None}


TEXT = {"text": "hello"}


def generate(*chunks: dict[str, Any], path: str = "") -> Reading:
    return read(dialects.GENERATE, stream(*chunks), path=path)


def test_a_stream_counts_its_last_usage() -> None:
    reading = generate(chunk(TEXT, usage=used(165)), chunk(TEXT, finish="STOP", usage=used(163, 13)))
    assert counts(reading) == {"input_tokens": 163, "output_tokens": 13}
    assert (reading.response_id, reading.response_model) == ("r1", "gemini-x")
    assert (reading.finish_reasons, reading.ended, reading.usage_source) == (["STOP"], True, "reported")
    assert reading.text_chars == 10


def test_a_stream_that_breaks_off_has_running_counts() -> None:
    reading = generate(chunk(TEXT, usage=used(165, 4)))
    assert (reading.ended, reading.usage_source) == (False, "reported_partial")


def test_thoughts_are_output_and_tools_are_input_and_the_cache_lies_within() -> None:
    usage = used(568, 305, 1027, toolUsePromptTokenCount=100, cachedContentTokenCount=217, serviceTier="flex")
    assert counts(generate(chunk(TEXT, finish="STOP", usage=usage))) == {
        "input_tokens": 668,
        "output_tokens": 1332,
        "cache_read_input_tokens": 217,
        "reasoning_output_tokens": 1027,
        "service_tier": "flex",
    }


def test_a_counter_that_the_last_chunk_leaves_out_is_not_carried_over() -> None:
    """Built-in tools: prompt 9, then 87, and the candidates are gone."""
    reading = generate(chunk(TEXT, usage=used(9, 21)), chunk(finish="STOP", usage=used(87, None, 78)))
    assert counts(reading) == {"input_tokens": 87, "output_tokens": 78, "reasoning_output_tokens": 78}


def test_usage_that_counts_nothing_is_none() -> None:
    reading = generate(chunk(TEXT, usage={"trafficType": "ON_DEMAND"}))
    assert (reading.usage_source, counts(reading)) == ("none", {})
    reading = generate(chunk(TEXT, usage=used(9, 21)), chunk(finish="STOP", usage={"trafficType": "ON_DEMAND"}))
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 21}


@pytest.mark.parametrize("audio", ["AUDIO", 4])
def test_audio_is_told_apart(audio: Any) -> None:
    details = [{"modality": "TEXT", "tokenCount": 5}, {"modality": audio, "tokenCount": 4}]
    usage = used(9, 9, promptTokensDetails=details, candidatesTokensDetails=details, cacheTokensDetails=details)
    reading = generate(chunk(TEXT, finish="STOP", usage=usage))
    assert reading.usage.input_audio_tokens == 4
    assert reading.usage.output_audio_tokens == 4
    assert reading.usage.cache_read_audio_tokens == 4


def test_an_answer_without_output_count_leaves_it_unknown() -> None:
    assert counts(read(dialects.GENERATE, chunk(TEXT, finish="STOP", usage=used(8, totalTokenCount=8)))) == {
        "input_tokens": 8
    }


def test_tool_calls_are_parts_with_a_name() -> None:
    call = {"functionCall": {"name": "f", "args": {"a": 1}}}
    more = {"functionCall": {"partialArgs": [{"jsonPath": "$.a"}], "willContinue": True}}
    server = {"toolCall": {"toolType": "GOOGLE_SEARCH_WEB", "args": {}}}
    reading = generate(chunk(call, call), chunk(more), chunk(server), chunk(call, finish="STOP"))
    assert reading.tool_calls == 3


@pytest.mark.parametrize(
    ("part", "is_content"),
    [
        ({"text": ""}, False),
        ({"thoughtSignature": "abc"}, False),
        (TEXT, True),
        ({"text": "hm", "thought": True}, True),
        ({"functionCall": {"name": "f"}}, True),
        ({"inlineData": {"mimeType": "image/png", "data": "A"}}, True),
        ({"executableCode": {"code": "1+1"}}, True),
    ],
)
def test_the_first_content_is_what_a_person_would_see(part: dict[str, Any], is_content: bool) -> None:
    assert generate(chunk(part)).first_content is is_content


@pytest.mark.parametrize(
    ("number", "studio", "vertex"),
    [(1, ["STOP"], ["STOP"]), (2, ["MAX_TOKENS"], ["MAX_TOKENS"]), (6, ["LANGUAGE"], ["BLOCKLIST"]), (0, [], []),
     (9, ["SPII"], ["MALFORMED_FUNCTION_CALL"]), (99, ["99"], ["99"])],
)  # fmt: skip
def test_reasons_that_come_as_numbers_get_their_names(number: int, studio: list[str], vertex: list[str]) -> None:
    assert generate(chunk(TEXT, finish=number)).finish_reasons == studio
    assert generate(chunk(TEXT, finish=number), path=VERTEX).finish_reasons == vertex


def test_candidates_are_told_apart() -> None:
    reading = generate(chunk(TEXT, index=1), chunk(TEXT, finish="SAFETY", index=0))
    assert (reading.finish_reasons, reading.ended) == (["SAFETY"], False)
    reading = generate(chunk(TEXT, index=1), chunk(TEXT, finish="SAFETY", index=0), chunk(TEXT, finish="STOP", index=1))
    assert (reading.finish_reasons, reading.ended) == (["SAFETY", "STOP"], True)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("reason", ["SAFETY", 1])
def test_a_blocked_prompt_is_no_empty_success(streamed: bool, reason: Any) -> None:
    blocked = {"promptFeedback": {"blockReason": reason}}
    reading = generate(blocked) if streamed else read(dialects.GENERATE, blocked)
    assert (reading.error_type, reading.error_event, reading.ended) == ("content_filter", False, True)
    assert (reading.finish_reasons, reading.usage_source) == ([], "none")


LIST = b",\r\n".join(json.dumps(part, indent=2).encode() for part in (chunk(TEXT, usage=used(20)),
                     chunk(TEXT, finish="STOP", usage=used(17, 6))))  # fmt: skip


@pytest.mark.parametrize("size", [None, 1, 10])
def test_a_stream_that_is_one_list(size: int | None) -> None:
    reading = read(dialects.GENERATE_LIST, b"[" + LIST + b"]", headers=JSON, size=size)
    assert counts(reading) == {"input_tokens": 17, "output_tokens": 6}
    assert (reading.ended, reading.streamed, reading.text_chars) == (True, True, 10)


def test_a_list_is_read_while_it_comes() -> None:
    reader = dialects.GENERATE_LIST.reader(call_of(JSON))
    reader.feed(b"[" + LIST[:-10])
    assert reader.reading.usage.input_tokens == 20
    assert reader.reading.first_content
    reader.end()
    assert not reader.reading.ended


def call_of(headers: dict[str, str]) -> Any:
    from mitmgate.dialects.base import Call

    return Call(200, headers, stream=True)


ERROR = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (stream(chunk(TEXT), ERROR), None),
        (stream(chunk(TEXT)) + json.dumps(ERROR, indent=2).encode() + b"\n", None),
        (b"[" + json.dumps(chunk(TEXT)).encode() + b",\r\n" + json.dumps(ERROR).encode() + b"]", JSON),
    ],
    ids=["as an event", "as bare lines", "in the list"],
)
def test_a_failure_in_mid_stream(body: bytes, headers: dict[str, str] | None) -> None:
    reading = read(dialects.GENERATE, body, headers=headers)
    assert (reading.error_type, reading.error_event, reading.ended) == ("error_event:overloaded", True, False)


def test_searches_are_counted_once_each() -> None:
    first, second = chunk(TEXT), chunk(TEXT, finish="STOP")
    first["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    second["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b", "c"]}
    assert generate(first, second).usage.server_tools == {"web_search": 3}


def test_code_assist_wraps_each_chunk() -> None:
    reading = generate({"response": chunk(TEXT, finish="STOP", usage=used(5, 6))})
    assert counts(reading) == {"input_tokens": 5, "output_tokens": 6}
