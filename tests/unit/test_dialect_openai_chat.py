"""Chat Completions: each habit of each host is booked right."""

import json
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Reading
from support.readings import counts, read, stream


def chunk(
    delta: dict[str, Any] | None = None, index: int = 0, finish: str | None = None, **more: Any
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "model": "gpt-5-2025-08-07", "choices": [choice], **more}


def usage(prompt: int | None, completion: int | None, total: int | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}


def answer(used: Any, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "chatcmpl-1", "model": "gpt-5", "choices": choices, "usage": used, **more}


def chat(*chunks: dict[str, Any], done: bool = True) -> Reading:
    return read(dialects.CHAT, stream(*chunks, done=done))


def test_a_plain_answer() -> None:
    details = {
        "cached_tokens": 800,
        "cache_write_tokens": 100,
        "audio_tokens": 3,
        "cached_tokens_details": {"audio_tokens": 2},
    }
    made = {"reasoning_tokens": 40, "audio_tokens": 7, "rejected_prediction_tokens": 5}
    used = usage(1000, 50, 1050, prompt_tokens_details=details, completion_tokens_details=made)
    reading = read(dialects.CHAT, answer(used, service_tier="flex"))
    assert counts(reading) == {
        "input_tokens": 1000,
        "output_tokens": 50,
        "cache_read_input_tokens": 800,
        "cache_creation_input_tokens": 100,
        "reasoning_output_tokens": 40,
        "input_audio_tokens": 3,
        "cache_read_audio_tokens": 2,
        "output_audio_tokens": 7,
        "service_tier": "flex",
    }
    assert (reading.response_id, reading.response_model) == ("chatcmpl-1", "gpt-5")
    assert (reading.finish_reasons, reading.usage_source) == (["stop"], "reported")
    assert (reading.text_chars, reading.first_content, reading.ended) == (2, True, True)


def test_a_stream_with_usage_at_its_end() -> None:
    reading = chat(
        chunk({"role": "assistant", "content": ""}, usage=None),
        chunk({"content": "Hel"}, usage=None),
        chunk({"content": "lo €"}, usage=None),
        chunk(finish="stop", usage=None),
        {"id": "chatcmpl-1", "model": "gpt-5", "choices": [], "usage": usage(9, 3, 12)},
    )
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 3}
    assert reading.response_model == "gpt-5-2025-08-07"
    assert reading.text_chars == len("Hello €".encode())
    assert (reading.finished, reading.ended, reading.usage_source) == (True, True, "reported")


def test_a_stream_without_usage_has_none() -> None:
    reading = chat(chunk({"content": "Hi"}), chunk(finish="stop"))
    assert (counts(reading), reading.usage_source, reading.ended) == ({}, "none", True)


def test_reasoning_that_is_told_under_two_names_is_measured_once() -> None:
    assert chat(chunk({"reasoning_content": "hmm", "reasoning": "hmm"})).text_chars == 3
    assert chat(chunk({"reasoning": "hmm", "content": "a"})).text_chars == 4


@pytest.mark.parametrize(
    ("delta", "is_content"),
    [
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"content": None}, False),
        ({"content": "x"}, True),
        ({"reasoning_content": "x"}, True),
        ({"reasoning": "x"}, True),
        ({"refusal": "x"}, True),
        ({"audio": {"id": "a", "data": "UklGR"}}, True),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}, True),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}, True),
    ],
)
def test_the_first_content_is_what_a_person_would_see(delta: dict[str, Any], is_content: bool) -> None:
    assert chat(chunk(delta), done=False).first_content is is_content


def test_azures_first_chunk_names_nothing_and_is_no_content() -> None:
    reading = chat(
        {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"id": "", "model": "", "choices": [{"index": 0, "content_filter_offsets": {}, "finish_reason": None}]},
        done=False,
    )
    assert (reading.response_id, reading.response_model, reading.first_content) == (None, None, False)


RUNNING = [chunk({"content": "a"}, usage=usage(9, n, 9 + n)) for n in (1, 2, 3)]


def test_usage_in_every_chunk_is_not_summed() -> None:
    reading = chat(*RUNNING, chunk(finish="stop", usage=usage(9, 4, 13)))
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 4}


def test_running_usage_of_a_stream_that_breaks_off_is_partial() -> None:
    reading = chat(*RUNNING, done=False)
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 3}
    assert (reading.usage_source, reading.ended) == ("reported_partial", False)


@pytest.mark.parametrize("nothing", [None, {}, usage(None, None)])
def test_nothing_takes_no_usage_back(nothing: Any) -> None:
    reading = chat(
        chunk({"content": "a"}, usage=nothing), chunk(finish="stop", usage=usage(9, 4)), chunk(usage=nothing)
    )
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 4}


def test_a_zero_takes_no_count_back() -> None:
    reading = chat(chunk({"content": "a"}, usage=usage(9, 0)), chunk(finish="stop", usage=usage(0, 4)))
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 4}


def test_a_reported_zero_is_a_zero() -> None:
    assert counts(read(dialects.CHAT, answer(usage(0, 0, 0)))) == {"input_tokens": 0, "output_tokens": 0}


def test_counts_that_come_piece_by_piece_are_put_together() -> None:
    """Databricks: completion_tokens is null until the last chunk."""
    reading = chat(chunk({"content": "a"}, usage=usage(402, None)), chunk(finish="stop", usage=usage(402, 54, 456)))
    assert counts(reading) == {"input_tokens": 402, "output_tokens": 54}


def test_groqs_usage_counts_once() -> None:
    used = usage(339, 58, 397, completion_tokens_details={"reasoning_tokens": 38})
    breakdown = {"models": [{"model": "a", "usage": used}, {"model": "b", "usage": used}]}
    last = chunk(finish="stop", x_groq={"id": "r", "usage": used, "usage_breakdown": breakdown}, usage=used)
    expected = {"input_tokens": 339, "output_tokens": 58, "reasoning_output_tokens": 38}
    assert counts(chat(last)) == expected
    assert counts(chat({**last, "usage": None})) == expected


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        # xAI: the total says that reasoning stands outside of the completion
        (usage(213, 2, 471, completion_tokens_details={"reasoning_tokens": 256}), (213, 258)),
        # DeepSeek, OpenAI: the total says that it lies inside
        (usage(976, 61, 1037, completion_tokens_details={"reasoning_tokens": 25}), (976, 61)),
        # OpenRouter: more reasoning than completion, and yet the total says inside
        (usage(20, 10, 30, completion_tokens_details={"reasoning_tokens": 11}), (20, 10)),
        # no total, no doubt
        (usage(20, 10, completion_tokens_details={"reasoning_tokens": 5}), (20, 10)),
        # Mistral's audio stands outside of the prompt
        (usage(9, 248, 632, prompt_tokens_details={"audio_tokens": 375}), (384, 248)),
        (
            usage(
                9, 2, 21, prompt_tokens_details={"audio_tokens": 4}, completion_tokens_details={"reasoning_tokens": 6}
            ),
            (13, 8),
        ),
        # a relay that leaves the cache out of the prompt, as Anthropic does
        (usage(10, 5, 115, cache_read_input_tokens=60, cache_creation_input_tokens=40), (110, 5)),
        # a difference that nothing explains is nobody's
        (usage(35, 12, 109), (35, 12)),
        # Azure's Grok has cached more than it was sent
        (usage(10, 5, 15, prompt_tokens_details={"cached_tokens": 161}), (10, 5)),
    ],
)
def test_what_a_host_leaves_out_of_a_count_is_found_by_the_total(used: Any, expected: tuple[int, int]) -> None:
    reading = read(dialects.CHAT, answer(used))
    assert (reading.usage.input_tokens, reading.usage.output_tokens) == expected


@pytest.mark.parametrize(
    ("model", "by_provider", "more", "output"),
    [
        ("google/gemini-3-pro-preview", False, {"market_cost": 0.1}, 291),
        ("google/gemini-3-pro-preview", True, {}, 291),
        ("google/gemini-3-pro-preview", False, {}, 25),
        ("openai/gpt-5", True, {"market_cost": 0.1}, 25),
    ],
)
def test_vercels_gateway_leaves_geminis_reasoning_out(model: str, by_provider: bool, more: Any, output: int) -> None:
    used = usage(223, 25, 248, completion_tokens_details={"reasoning_tokens": 266}, **more)
    dialect = dialects.CHAT_VERCEL if by_provider else dialects.CHAT
    assert read(dialect, {**answer(used), "model": model}).usage.output_tokens == output


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_tokens_details": {"cached_tokens": 64}},
        {"prompt_token_details": {"cached_tokens": 64}},
        {"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36},
        {"cached_tokens": 64},
        {"num_cached_tokens": 64, "prompt_tokens_details": {"cached_tokens": 0}},
        {"cache_read_input_tokens": 64},
    ],
)
def test_cached_tokens_have_many_names(more: dict[str, Any]) -> None:
    reading = read(dialects.CHAT, answer(usage(100, 5, 105, **more)))
    assert reading.usage.cache_read_input_tokens == 64
    assert reading.usage.input_tokens == 100


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_tokens_details": {"cache_write_tokens": 64}},
        {"prompt_tokens_details": {"cache_creation_tokens": 64}},
        {"prompt_tokens_details": {"cache_creation_input_tokens": 64}},
        {"cache_creation_input_tokens": 64},
    ],
)
def test_cache_writes_have_many_names(more: dict[str, Any]) -> None:
    assert read(dialects.CHAT, answer(usage(100, 5, 105, **more))).usage.cache_creation_input_tokens == 64


@pytest.mark.parametrize(
    ("more", "usd"),
    [
        ({"cost": 0.00040504, "is_byok": False}, 0.00040504),
        ({"cost": 0}, 0.0),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 0.021),
        ({"cost": {"total_cost": 0.00503, "request_cost": 0.005}}, 0.00503),
        ({"cost_in_usd_ticks": 3_950_400}, 0.00039504),
        ({"cost_in_usd_ticks": 0}, None),
        ({"cost": "0.1"}, None),
        ({"cost": -1}, None),
        ({}, None),
    ],
)
def test_the_providers_own_price(more: dict[str, Any], usd: float | None) -> None:
    reading = read(dialects.CHAT, answer(usage(1, 1, **more)))
    assert reading.usage.cost_reported_usd == (pytest.approx(usd) if usd is not None else None)


@pytest.mark.parametrize(("searches", "tools"), [(3, {"web_search": 3}), (0, {}), (None, {})])
def test_searches_that_the_provider_ran(searches: Any, tools: dict[str, int]) -> None:
    assert read(dialects.CHAT, answer(usage(1, 1, num_search_queries=searches))).usage.server_tools == tools


def call(index: Any = 0, id: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_CALLS: dict[str, tuple[list[dict[str, Any]], int]] = {
    "in pieces": ([chunk({"tool_calls": [call(0, "a", "f")]}), chunk({"tool_calls": [call(0, None, None, "{}")]}),
                   chunk({"tool_calls": [call(1, "b", "g")]}), chunk({"tool_calls": [call(1, None, None, "{}")]})], 2),
    "index again with an empty id (Alibaba)": ([chunk({"tool_calls": [call(0, "a", "f")]}),
                                                chunk({"tool_calls": [call(0, "", None, "{}")]})], 1),
    "the same id again with its name": ([chunk({"tool_calls": [call(0, "0", "f")]}),
                                         chunk({"tool_calls": [call(0, "0", "f", "{}")]})], 1),
    "a new id in every piece (old vLLM)": ([chunk({"tool_calls": [call(0, "a", "f")]}),
                                            chunk({"tool_calls": [call(0, "b", None, "{}")]})], 1),
    "index 0 for each of two (Gemini)": ([chunk({"tool_calls": [call(0, "a", "f", "{}")]}),
                                          chunk({"tool_calls": [call(0, "b", "g", "{}")]})], 2),
    "whole and without index (Mistral)": ([chunk({"tool_calls": [call(None, "a", "f", "{}"),
                                                                 call(None, "b", "g", "{}")]})], 2),
    "neither index nor id": ([chunk({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}},
                                                    {"function": {"name": "g", "arguments": "{}"}}]})], 2),
    "two choices, each from 0": ([chunk({"tool_calls": [call(0, "a", "f")]}, 0),
                                  chunk({"tool_calls": [call(0, "b", "f")]}, 1)], 2),
    "legacy function_call": ([chunk({"function_call": {"name": "f", "arguments": ""}}),
                              chunk({"function_call": {"arguments": "{}"}})], 1),
    "none": ([chunk({"tool_calls": []}), chunk({"tool_calls": None})], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", TOOL_CALLS)
def test_tool_calls_are_counted_once(case: str) -> None:
    chunks, expected = TOOL_CALLS[case]
    assert chat(*chunks).tool_calls == expected


def test_choices_are_told_apart_whatever_their_order() -> None:
    reading = chat(
        chunk({"content": "b"}, index=1),
        chunk({"content": "a"}, index=0),
        chunk(index=1, finish="length"),
        done=False,
    )
    assert (reading.finish_reasons, reading.finished) == (["length"], False)
    reading = chat(
        chunk({"content": "b"}, index=1),
        chunk({"content": "a"}, index=0),
        chunk(index=1, finish="length"),
        chunk(index=0, finish="stop"),
        done=False,
    )
    assert (reading.finish_reasons, reading.finished, reading.ended) == (["stop", "length"], True, True)


def test_a_message_beside_the_delta_counts_once() -> None:
    """Perplexity sends both, in streams and in plain answers."""
    both = {"delta": {"content": "lo"}, "message": {"content": "hello"}}
    streamed = {"id": "a", "model": "m", "choices": [{"index": 0, "finish_reason": None, **both}]}
    assert chat(streamed).text_chars == 2
    assert read(dialects.CHAT, streamed).text_chars == 5


def test_a_stream_without_finish_reasons_ends_with_its_usage() -> None:
    """Snowflake: id and finish_reason are empty throughout, and there is no [DONE]."""
    words = [chunk({"content": "a"}, finish="", usage={}), chunk({"content": "b"}, finish="", usage=usage(5, 2, 7))]
    reading = chat(*words, done=False)
    assert (reading.ended, reading.usage_source, reading.finish_reasons) == (True, "reported", [])
    assert not chat(words[0], done=False).ended
    assert not chat(*reversed(words), done=False).ended


@pytest.mark.parametrize("event", [{"error": {"message": "x", "code": "rate_limit_exceeded"}}, {"error": "x"},
                                   {"object": "error", "message": "x", "code": 500},
                                   {"id": "a", "choices": [], "x_groq": {"error": "overloaded"}}])  # fmt: skip
def test_a_failure_told_in_a_stream(event: dict[str, Any]) -> None:
    reading = chat(chunk({"content": "a"}), event, done=False)
    assert reading.error_event
    assert reading.error_type
    assert reading.error_type.startswith("error_event:")
    assert not reading.ended


def test_a_failure_told_by_the_name_of_the_event() -> None:
    reading = read(dialects.CHAT, stream(chunk({"content": "a"})) + b'event: error\ndata: {"code": "slow_down"}\n\n')
    assert (reading.error_event, reading.error_type) == (True, "error_event:rate_limit")


def test_openrouters_failure_ends_with_a_finish_reason_and_usage() -> None:
    failed = chunk({"content": ""}, finish="error", error={"code": 502, "message": "Provider returned error"})
    reading = chat(chunk({"content": "a"}), failed, chunk(usage=usage(9, 4)), done=False)
    assert (reading.error_type, reading.finish_reasons) == ("error_event:server_error", ["error"])
    assert counts(reading) == {"input_tokens": 9, "output_tokens": 4}


@pytest.mark.parametrize(
    ("body", "error_type"),
    [
        (
            {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            "content_filter",
        ),
        ({"error": {"code": 429, "message": "x"}}, "error_event:rate_limit"),
        ({"detail": "Unauthorized"}, "error_event:other"),
        ({"code": "DataInspectionFailed", "message": "x"}, "error_event:other"),
        ({"code": "data_inspection_failed", "message": "x"}, "content_filter"),
    ],
)
def test_a_failure_told_in_a_plain_200(body: dict[str, Any], error_type: str) -> None:
    reading = read(dialects.CHAT, body)
    assert (reading.error_type, reading.error_event, reading.ended) == (error_type, False, True)


def test_an_answer_of_any_number_of_choices_and_calls_is_counted_to_a_limit() -> None:
    reader = dialects.CHAT.reader(read_call())
    for index in range(5000):
        reader.feed(stream(chunk({"tool_calls": [call(index, "x" * 1000, "f")]}, index=index)))
    assert reader.reading.tool_calls == 1024


def read_call() -> Any:
    from mitmgate.dialects.base import Call

    return Call(200, {"content-type": "text/event-stream"}, stream=True)


def test_legacy_completions_have_text_in_place_of_a_message() -> None:
    pieces = [
        {"id": "cmpl-1", "model": "d", "choices": [{"index": 0, "text": word, "finish_reason": None}]} for word in "ab"
    ]
    end = {"id": "cmpl-1", "model": "d", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    reading = read(dialects.COMPLETIONS, stream(*pieces, end, done=True))
    assert (reading.text_chars, reading.finish_reasons, reading.usage_source) == (2, ["length"], "none")
    whole = {
        "id": "cmpl-1",
        "model": "d",
        "choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}],
        "usage": usage(2, 12),
    }
    assert counts(read(dialects.COMPLETIONS, whole)) == {"input_tokens": 2, "output_tokens": 12}


def test_embeddings_have_input_alone() -> None:
    vectors = [{"object": "embedding", "embedding": [0.1] * 3000, "index": n} for n in range(40)]
    body = {
        "object": "list",
        "data": vectors,
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert len(json.dumps(body)) > 2**19
    reading = read(dialects.EMBEDDINGS, body)
    assert counts(reading) == {"input_tokens": 4}
    assert (reading.response_model, reading.usage_source, reading.first_content) == (
        "text-embedding-3-small",
        "reported",
        False,
    )


def test_usage_inside_of_the_last_choice() -> None:  # Moonshot
    last = chunk({}, finish="stop")
    last["choices"][0]["usage"] = usage(10, 5, 15, cached_tokens=4)
    reading = chat(chunk({"content": "hi"}), last)
    assert counts(reading) == {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 4}
    assert reading.usage_source == "reported"


def test_audio_tokens_beside_the_prompt_are_input() -> None:  # Mistral
    assert counts(read(dialects.CHAT, answer(usage(10, 5, 115, audio_tokens=100))))["input_tokens"] == 110
    details = {"audio_tokens": 100}
    assert counts(read(dialects.CHAT, answer(usage(10, 5, 115, prompt_tokens_details=details))))["input_tokens"] == 110


def test_a_failure_in_a_field_called_error() -> None:  # older llama.cpp
    reading = read(dialects.CHAT, stream(chunk({"content": "hi"})) + b'error: {"code":500,"type":"server_error"}\n\n')
    assert (reading.error_type, reading.error_event) == ("error_event:server_error", True)


def test_watsonx_names_the_model_in_its_own_way() -> None:
    event = b'id: 1\nevent: message\ndata: {"id":"c","model_id":"m","choices":[{"index":0,"finish_reason":"stop"}]}\n\n'
    reading = read(dialects.CHAT, event)
    assert (reading.response_model, reading.response_id, reading.finish_reasons) == ("m", "c", ["stop"])
    assert dialects.CHAT.read_request("/ml/v1/text/chat_stream?version=1", {}).stream
    assert not dialects.CHAT.read_request("/ml/v1/text/chat?version=1", {}).stream


def test_embeddings_that_count_a_total_alone() -> None:  # Voyage
    assert counts(read(dialects.EMBEDDINGS, {"usage": {"total_tokens": 10}})) == {"input_tokens": 10}
    assert counts(read(dialects.CHAT, answer({"total_tokens": 10}))) == {}


@pytest.mark.parametrize("numbers", [{}, {"id": ""}, {"id": "a"}, {"id": "", "index": 0}])
def test_calls_of_a_plain_answer_count_each(numbers: dict[str, Any]) -> None:
    message = {"tool_calls": [{**numbers, "function": {"name": name, "arguments": "{}"}} for name in "fg"]}
    assert read(dialects.CHAT, {"choices": [{"index": 0, "message": message}]}).tool_calls == 2
