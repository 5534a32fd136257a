"""What a request asks for, and what people see of prompts and answers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate import dialects
from mitmgate.dialects.base import Dialect, Request, Turn
from support.readings import ALL, stream

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PICTURE = "data:image/png;base64," + "A" * 5000


def asked(dialect: Dialect, body: Any, path: str = "") -> dict[str, Any]:
    """Return what is known of the request, its sizes apart."""
    request = dialect.read_request(path, body)
    known = {name: getattr(request, name) for name in ("model", "stream", "max_output_tokens", "end_user", "tools")}
    return {name: value for name, value in known.items() if value not in (None, False, 0)}


@pytest.mark.parametrize(
    ("dialect", "path", "body", "expected"),
    [
        (
            dialects.CHAT,
            "",
            {"model": "m", "stream": True, "max_completion_tokens": 5, "max_tokens": 9, "user": "u", "tools": [TOOL]},
            {"model": "m", "stream": True, "max_output_tokens": 5, "end_user": "u", "tools": 1},
        ),
        (
            dialects.CHAT,
            "",
            {"model": "m", "max_tokens": 9, "safety_identifier": "s", "user": "u", "functions": [{}, {}]},
            {"model": "m", "max_output_tokens": 9, "end_user": "s", "tools": 2},
        ),
        (dialects.CHAT, "/openai/deployments/gpt-5/chat/completions?api-version=1", {}, {"model": "gpt-5"}),
        (dialects.CHAT, "/serving-endpoints/dbrx/invocations", {"stream": "yes"}, {"model": "dbrx"}),
        (
            dialects.RESPONSES,
            "",
            {"model": "m", "stream": True, "max_output_tokens": 7, "tools": [{}]},
            {"model": "m", "stream": True, "max_output_tokens": 7, "tools": 1},
        ),
        (
            dialects.MESSAGES,
            "",
            {"model": "m", "max_tokens": 7, "metadata": {"user_id": "u"}, "tools": [{}]},
            {"model": "m", "max_output_tokens": 7, "end_user": "u", "tools": 1},
        ),
        (
            dialects.MESSAGES,
            "/v1/projects/p/publishers/anthropic/models/claude-x@2025:streamRawPredict",
            {},
            {"model": "claude-x@2025", "stream": True},
        ),
        (
            dialects.GENERATE,
            "/v1beta/models/gemini-x:streamGenerateContent?alt=sse",
            {
                "generationConfig": {"maxOutputTokens": 7},
                "tools": [{"functionDeclarations": [{}, {}]}, {"googleSearch": {}}],
            },
            {"model": "gemini-x", "stream": True, "max_output_tokens": 7, "tools": 3},
        ),
        (dialects.GENERATE, "/v1beta/models/gemini-x%2Fy:generateContent", {}, {"model": "gemini-x/y"}),
        (
            dialects.GENERATE,
            "/v1internal:generateContent",
            {"model": "m", "request": {"contents": []}},
            {"model": "v1internal"},
        ),
        (
            dialects.COMPLETIONS,
            "",
            {"model": "m", "prompt": "x", "max_tokens": 3},
            {"model": "m", "max_output_tokens": 3},
        ),
        (dialects.EMBEDDINGS, "", {"model": "m", "input": ["x"], "user": "u"}, {"model": "m", "end_user": "u"}),
    ],
)
def test_a_request_is_read(dialect: Dialect, path: str, body: Any, expected: dict[str, Any]) -> None:
    assert asked(dialect, body, path) == expected


PROSE = "The quick brown fox jumps over the lazy dog and runs away " * 20


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (dialects.CHAT, {"messages": [{"role": "user", "content": PROSE}]}),
        (
            dialects.CHAT,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": PROSE},
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                        ],
                    }
                ]
            },
        ),
        (dialects.COMPLETIONS, {"prompt": PROSE}),
        (dialects.EMBEDDINGS, {"input": [PROSE]}),
        (dialects.RESPONSES, {"input": PROSE}),
        (
            dialects.RESPONSES,
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_image", "image_url": PICTURE},
                            {"type": "input_text", "text": PROSE},
                        ],
                    }
                ]
            },
        ),
        (
            dialects.MESSAGES,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
                            {"type": "text", "text": PROSE},
                        ],
                    }
                ]
            },
        ),
        (
            dialects.GENERATE,
            {"contents": [{"parts": [{"text": PROSE}, {"inlineData": {"mimeType": "image/png", "data": PICTURE}}]}]},
        ),
    ],
)
def test_prompt_text_is_measured_and_pictures_are_not(dialect: Dialect, body: Any) -> None:
    request = dialect.read_request("", body)
    assert request.input_chars == pytest.approx(len(PROSE), abs=4)
    assert request.input_tokens_estimate == pytest.approx(len(PROSE) / 4, abs=10)


def test_the_system_prompt_and_the_tools_are_input() -> None:
    plain = dialects.MESSAGES.read_request("", {"messages": [{"role": "user", "content": "hi"}]})
    with_system = dialects.MESSAGES.read_request("", {"system": PROSE, "messages": [{"role": "user", "content": "hi"}]})
    with_tools = dialects.MESSAGES.read_request("", {"tools": [TOOL], "messages": [{"role": "user", "content": "hi"}]})
    assert with_system.input_chars == plain.input_chars + len(PROSE) + 1
    assert with_tools.input_chars == plain.input_chars + len(json.dumps([TOOL], separators=(",", ":")))


def test_a_request_without_text_is_nothing() -> None:
    for dialect in ALL:
        assert dialect.read_request("", None) == Request()


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "content",
                    "role",
                    "text",
                    "type",
                    "source",
                    "tools",
                    "input",
                    "contents",
                    "parts",
                    "system",
                    "tool_calls",
                    "function",
                    "generationConfig",
                    "metadata",
                    "image_url",
                    "summary",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(st.sampled_from(ALL), SHAPES)
def test_no_request_raises(dialect: Dialect, body: Any) -> None:
    assert isinstance(dialect.read_request("/x", body), Request)
    assert all(isinstance(turn, Turn) for turn in dialect.conversation(body))


@given(st.sampled_from(ALL), SHAPES)
def test_no_answer_raises_when_shown(dialect: Dialect, body: Any) -> None:
    for raw in (json.dumps(body).encode(), stream(body, body)):
        assert all(isinstance(turn, Turn) for turn in dialect.answer("application/json", raw))


def test_a_conversation_nested_without_end_is_shown_to_a_depth() -> None:
    content: Any = "deep"
    for _ in range(200):
        content = [{"type": "tool_result", "content": content}]
    (turn,) = dialects.MESSAGES.conversation({"messages": [{"role": "user", "content": content}]})
    assert "[…]" in turn.text


CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]


@pytest.mark.parametrize(
    ("dialect", "body", "turns"),
    [
        (
            dialects.CHAT,
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "Look"},
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                            {"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}},
                        ],
                    },
                    {"role": "assistant", "content": None, "tool_calls": CALLS},
                    {"role": "tool", "tool_call_id": "a", "content": "42"},
                ]
            },
            [
                Turn("system", "Be brief."),
                Turn("user", "Look\n[image/png]\n[audio/wav]"),
                Turn("assistant", '[tool_use f {"a":1}]'),
                Turn("tool", "[tool_result 42]"),
            ],
        ),
        (dialects.COMPLETIONS, {"prompt": ["a", "b"]}, [Turn("user", "a"), Turn("user", "b")]),
        (dialects.COMPLETIONS, {"prompt": [1, 2, 3]}, [Turn("user", "[3 tokens]")]),
        (dialects.EMBEDDINGS, {"input": "a"}, [Turn("user", "a")]),
        (
            dialects.RESPONSES,
            {
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                    {"type": "function_call", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "42"},
                ],
            },
            [
                Turn("system", "Be brief."),
                Turn("user", "Hi"),
                Turn("assistant", "[tool_use f {}]"),
                Turn("tool", "[tool_result 42]"),
            ],
        ),
        (dialects.RESPONSES, {"input": "Hi"}, [Turn("user", "Hi")]),
        (
            dialects.MESSAGES,
            {
                "system": [{"type": "text", "text": "Be brief."}],
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hm"},
                            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]}
                        ],
                    },
                ],
            },
            [
                Turn("system", "Be brief."),
                Turn("user", "Hi"),
                Turn("assistant", '[thinking hm]\n[tool_use f {"a":1}]'),
                Turn("user", "[tool_result 42]"),
            ],
        ),
        (
            dialects.GENERATE,
            {
                "systemInstruction": {"parts": [{"text": "Be brief."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}, {"inlineData": {"mimeType": "image/png", "data": "A"}}]},
                    {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}]},
                    {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"b": 2}}}]},
                ],
            },
            [
                Turn("system", "Be brief."),
                Turn("user", "Hi\n[image/png]"),
                Turn("model", '[tool_use f {"a":1}]'),
                Turn("user", '[tool_result {"b":2}]'),
            ],
        ),
        (
            dialects.GENERIC,
            {"messages": [{"role": "user", "content": "Hi"}], "prompt": "x"},
            [Turn("user", "Hi"), Turn("user", "x")],
        ),
    ],
)
def test_a_prompt_is_shown_as_turns(dialect: Dialect, body: Any, turns: list[Turn]) -> None:
    assert dialect.conversation(body) == turns


def chunk(delta: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta}]}


CHAT_STREAM = stream(
    chunk({"role": "assistant", "content": "Hel"}),
    chunk({"reasoning_content": "hm"}),
    chunk({"content": "lo"}),
    chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"a"'}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
    chunk({"content": "Second"}, index=1),
)
RESPONSES_STREAM = stream(
    {"type": "response.created", "response": {"status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "output_index": 0, "delta": "Hel"},
    {"type": "response.output_text.delta", "output_index": 0, "delta": "lo"},
    {
        "type": "response.output_item.added",
        "output_index": 1,
        "item": {"type": "function_call", "name": "f", "arguments": ""},
    },
    {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
)
MESSAGES_STREAM = stream(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "error", "error": {"type": "overloaded_error"}},
)
ITEMS = [
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]},
    {"type": "web_search_call", "action": "x"},
]


@pytest.mark.parametrize(
    ("dialect", "body", "turns"),
    [
        (
            dialects.CHAT,
            CHAT_STREAM,
            [Turn("assistant", '[thinking hm]\nHello\n[tool_use f {"a":1}]'), Turn("assistant", "Second")],
        ),
        (
            dialects.CHAT,
            b'{"choices":[{"message":{"role":"assistant","content":"Hello"}}]}',
            [Turn("assistant", "Hello")],
        ),
        (dialects.CHAT, b'{"error":{"message":"no"}}', [Turn("error", '{"message":"no"}')]),
        (
            dialects.COMPLETIONS,
            stream({"choices": [{"text": "Hel"}]}, {"choices": [{"text": "lo"}]}),
            [Turn("assistant", "Hello")],
        ),
        (
            dialects.EMBEDDINGS,
            b'{"data":[{"embedding":[1,2]},{"embedding":[1,2]}]}',
            [Turn("assistant", "[2 embeddings of 2 numbers]")],
        ),
        (dialects.RESPONSES, RESPONSES_STREAM, [Turn("assistant", "Hello"), Turn("assistant", "[tool_use f {}]")]),
        (
            dialects.RESPONSES,
            json.dumps({"output": ITEMS}).encode(),
            [Turn("assistant", "Hello"), Turn("assistant", '[web_search_call {"action":"x"}]')],
        ),
        (
            dialects.MESSAGES,
            MESSAGES_STREAM,
            [Turn("assistant", "Hello\n[tool_use f {}]"), Turn("error", '{"type":"overloaded_error"}')],
        ),
        (
            dialects.GENERATE,
            stream(
                {"candidates": [{"content": {"parts": [{"text": "Hel"}]}}]},
                {"candidates": [{"content": {"parts": [{"text": "lo"}, {"text": "hm", "thought": True}]}}]},
            ),
            [Turn("model", "Hello\n[thinking hm]")],
        ),
        (
            dialects.GENERATE,
            b'{"promptFeedback":{"blockReason":"SAFETY"}}',
            [Turn("error", "[prompt blocked: SAFETY]")],
        ),
        (dialects.GENERIC, b'{"response":"Hel"}\n{"response":"lo"}', [Turn("assistant", "Hello")]),
    ],
)
def test_an_answer_is_shown_as_turns(dialect: Dialect, body: bytes, turns: list[Turn]) -> None:
    assert dialect.answer("", body) == turns


@pytest.mark.parametrize(
    ("dialect", "body"),
    [(dialects.CHAT, CHAT_STREAM), (dialects.RESPONSES, RESPONSES_STREAM), (dialects.MESSAGES, MESSAGES_STREAM)],
)
def test_an_unfinished_answer_is_shown_as_far_as_it_got(dialect: Dialect, body: bytes) -> None:
    part = body[: body.index(b'"lo"') - 20]
    assert [turn.text for turn in dialect.answer("text/event-stream", part)] in (["Hel"], ["[thinking hm]\nHel"])
