"""What mitmweb shows of a prompt and of an answer, whole or half, friendly or hostile."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.contentviews import Metadata
from mitmproxy.http import Headers, HTTPFlow
from mitmproxy.test import tflow, tutils

from mitmgate.providers import Hosts
from mitmgate.views import CUT, READ_BYTES, AnswerView, Prompt, finder, indented, inert, settings, tokens, tools
from support.speech import ANSWER, ASK, CLAUDE_DELTA, CLAUDE_START, CLAUDE_STOP, CLAUDE_TEXT, HEL, LO, ROLE, STOP, USAGE

FIND = finder(Hosts())
PROMPT, ANSWERED = Prompt(FIND), AnswerView(FIND)


def called(
    body: bytes = ASK,
    answer: bytes | None = None,
    kind: str = "application/json",
    *,
    host: str = "api.openai.com",
    path: str = "/v1/chat/completions",
    status: int = 200,
    running: bool = False,
) -> HTTPFlow:
    """Return a flow as mitmproxy keeps it."""
    request = tutils.treq(
        method=b"POST", scheme=b"https", host=host, port=443, path=path.encode(), content=body, headers=Headers()
    )
    response = None
    if answer is not None:
        headers = Headers([(b"content-type", kind.encode())])
        response = tutils.tresp(status_code=status, content=answer, headers=headers)
        response.timestamp_end = None if running else response.timestamp_start
    flow = tflow.tflow(req=request, resp=response or False)
    flow.live = running
    return flow


def shown_prompt(flow: HTTPFlow) -> str:
    return PROMPT.prettify(flow.request.content or b"", Metadata(flow=flow, http_message=flow.request))


def shown_answer(flow: HTTPFlow) -> str:
    if flow.response is None:
        raise ValueError("no answer")
    return ANSWERED.prettify(flow.response.content or b"", Metadata(flow=flow, http_message=flow.response))


# -- the prompt


def test_a_prompt_is_model_settings_tools_and_turns() -> None:
    body = {
        "model": "gpt-4o",
        "stream": True,
        "temperature": 0.2,
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "parameters": {"properties": {"city": {}, "unit": {}}}},
            }
        ],
        "messages": [{"role": "system", "content": "Be brief.\nBe kind."}, {"role": "user", "content": "hi"}],
    }

    assert shown_prompt(called(json.dumps(body).encode())) == (
        "gpt-4o · openai.chat · stream\n"
        "settings  temperature 0.2\n"
        "tools     weather(city, unit)\n"
        "\n"
        "system\n"
        "    Be brief.\n"
        "    Be kind.\n"
        "\n"
        "user\n"
        "    hi"
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"model": "m", "messages": [], "stream": True}, []),
        ({"temperature": 0, "seed": 7, "user": "ann", "stop": None}, ["temperature 0", "seed 7", "user ann"]),
        ({"generationConfig": {"topK": 3}}, ['generationConfig {"topK": 3}']),
        ({"response_format": {"schema": "x" * 300}}, ['response_format {"schema": "' + "x" * 187 + "…"]),
        (None, []),
        ([1, 2], []),
    ],
)
def test_settings_are_what_else_is_asked_for(body: Any, found: list[str]) -> None:
    assert settings(body) == found


@pytest.mark.parametrize(
    ("tool", "found"),
    [
        ({"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}, ["f(a)"]),
        ({"type": "function", "name": "f", "parameters": {"properties": {"a": {}, "b": {}}}}, ["f(a, b)"]),
        ({"name": "f", "input_schema": {"type": "object", "properties": {}}}, ["f()"]),
        ({"type": "web_search_20250305", "name": "web_search"}, ["web_search"]),
        ({"type": "code_interpreter", "container": {"type": "auto"}}, ["code_interpreter"]),
        ({"functionDeclarations": [{"name": "f"}, {"name": "g"}]}, ["f", "g"]),
        ({"googleSearch": {}}, ["googleSearch"]),
        ({"toolSpec": {"name": "f", "inputSchema": {"json": {"properties": {"a": {}}}}}}, ["f(a)"]),
        ({}, ["{}"]),
        ("f", ["f"]),
        (None, ["null"]),
        ({"name": "f", "parameters": [1]}, ["f"]),
    ],
)
def test_a_tool_is_its_name_and_its_parameters(tool: Any, found: list[str]) -> None:
    assert tools({"tools": [tool]}) == found


def test_tools_may_stand_in_older_and_other_places() -> None:
    body = {"functions": [{"name": "f"}], "toolConfig": {"tools": [{"toolSpec": {"name": "g"}}]}}

    assert tools(body) == ["f", "g"]


@pytest.mark.parametrize("body", [None, [], "x", {"tools": {}}, {"tools": None}, {"toolConfig": []}, {}])
def test_where_no_tools_are_there_are_none(body: Any) -> None:
    assert tools(body) == []


# -- the answer


def test_an_answer_is_model_counts_and_turns() -> None:
    assert shown_answer(called(ASK, ANSWER)) == (
        "gpt-4o-2024-08-06 · 200\n9+3 tokens · finish stop\n\nassistant\n    hello"
    )


@pytest.mark.parametrize(
    ("events", "running", "text"),
    [
        ([], True, "gpt-4o · 200 · still running\n\nnothing yet"),
        ([ROLE, HEL], True, "gpt-4o-2024-08-06 · 200 · still running\n\nassistant\n    hel"),
        ([ROLE, HEL, LO[:-9]], True, "gpt-4o-2024-08-06 · 200 · still running\n\nassistant\n    hel"),
        (
            [ROLE, HEL, LO, STOP, USAGE],
            False,
            "gpt-4o-2024-08-06 · 200\n9+3 tokens · finish stop\n\nassistant\n    hello",
        ),
        ([], False, "gpt-4o · 200\n\nno content"),
    ],
)
def test_a_stream_is_shown_as_far_as_it_has_come(events: list[bytes], running: bool, text: str) -> None:
    assert shown_answer(called(ASK, b"".join(events), "text/event-stream", running=running)) == text


def test_an_anthropic_stream_is_assembled() -> None:
    events = b"".join((CLAUDE_START, CLAUDE_TEXT, CLAUDE_DELTA, CLAUDE_STOP))
    flow = called(ASK, events, "text/event-stream", host="api.anthropic.com", path="/v1/messages")

    assert shown_answer(flow) == ("claude-haiku-4-5 · 200\n25+15 tokens · finish end_turn\n\nassistant\n    hello")


def test_shares_of_the_tokens_are_named() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    answer = json.loads(ANSWER) | {"usage": usage}

    assert "100+50 tokens (80 cached, 40 reasoning) · finish stop" in shown_answer(
        called(ASK, json.dumps(answer).encode())
    )


def test_an_error_is_named_and_shown() -> None:
    body = b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}'

    first, _, rest = shown_answer(called(ASK, body, status=429)).partition("\n")

    assert first == "gpt-4o · 429 · error rate_limit"
    assert "slow down" in rest


def test_an_answer_that_was_not_kept_whole_says_so() -> None:
    flow = called(ASK, ROLE + HEL, "text/event-stream")
    flow.metadata[CUT] = True

    assert "only the beginning of this answer was kept" in shown_answer(flow)


@pytest.mark.parametrize(("read", "written", "text"), [(1, 2, "1+2 tokens"), (None, 0, "?+0 tokens")])
def test_an_unknown_count_is_a_question_mark(read: int | None, written: int | None, text: str) -> None:
    assert tokens(read, written) == text


# -- when they are the first choice


@pytest.mark.parametrize(
    ("flow", "prompt", "answer"),
    [
        (called(ASK, ANSWER), True, True),
        (called(ASK, b"", "text/event-stream", running=True), True, True),
        (called(b"", ANSWER), False, True),
        (called(ASK, b"ID3", "audio/mpeg"), True, False),
        (called(ASK, ANSWER, path="/v1/models"), False, False),
        (called(ASK, ANSWER, host="example.com"), False, False),
        (called(ASK, ANSWER, host="10.0.0.1"), False, False),
        (called(ASK + b" " * READ_BYTES, ANSWER + b" " * READ_BYTES), False, False),
    ],
)
def test_the_views_are_the_default_for_calls_of_a_model(flow: HTTPFlow, prompt: bool, answer: bool) -> None:
    request, response = flow.request, flow.response
    if response is None:
        raise ValueError("no answer")
    kind = response.headers["content-type"]

    at_request = PROMPT.render_priority(request.content or b"", Metadata(flow, http_message=request))
    at_answer = ANSWERED.render_priority(response.content or b"", Metadata(flow, kind, http_message=response))

    assert (at_request > 1, at_answer > 1) == (prompt, answer)
    assert PROMPT.render_priority(b"{}", Metadata(flow, http_message=response)) < 0
    assert ANSWERED.render_priority(b"{}", Metadata(flow, http_message=request)) < 0


def test_behind_a_bare_address_the_name_of_the_handshake_counts() -> None:
    flow = called(ASK, ANSWER, host="104.18.6.192")
    flow.client_conn.sni = "api.openai.com"

    assert FIND(flow) is not None


# -- strangers


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain ✓ 한국어 👩\u200d💻", "plain ✓ 한국어 👩\u200d💻"),
        ("\x1b]0;owned\x07", "␛]0;owned␇"),
        ("\u202eexe.gpj", r"\u202eexe.gpj"),
        ("\u2028line", r"\u2028line"),
        ("\ud83d", r"\ud83d"),
        ("\x85", r"\x85"),
    ],
)
def test_what_acts_instead_of_showing_is_spelled_out(text: str, line: str) -> None:
    assert inert(text) == line
    assert indented(text) == f"    {line}"


def test_nobody_can_forge_a_heading() -> None:
    body = {
        "model": "m\nuser\n    forged",
        "messages": [{"role": "user\n\nsystem", "content": "hi\n\nsystem\r\n    obey\rsystem"}],
    }

    lines = shown_prompt(called(json.dumps(body).encode())).split("\n")

    assert [line for line in lines if line and not line.startswith("    ")] == [
        "m␊user␊    forged · openai.chat",
        lines[2],
    ]
    assert lines[2].startswith("user")
    assert "    obey␍system" in "\n".join(lines)


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"\xff\xfe\x00",
        b'{"messages": 7}',
        b'{"messages": [7, null, {"role": 3, "content": {"a": []}}], "tools": [[], 3, {"name": []}]}',
        b"[" * 100_000,
        b'{"model": ' + b"9" * 5000 + b"}",
        b"null",
        b"",
    ],
)
def test_a_body_that_is_no_prompt_is_shown_and_never_raises(body: bytes) -> None:
    flow = called(body, body)

    assert isinstance(shown_prompt(flow), str)
    assert isinstance(shown_answer(flow), str)
    shown_prompt(flow).encode()
    shown_answer(flow).encode()


def test_what_cannot_be_read_is_shown_as_it_is() -> None:
    assert shown_prompt(called(b"not json \x1b[31m\nat all")) == "not json ␛[31m\nat all"
    assert shown_prompt(called(b"plain", path="/v1/models")) == "plain"
    assert shown_answer(called(ASK, b"plain", path="/v1/models")) == "plain"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["messages", "role", "content", "tools"]), inner),
    max_leaves=20,
)


@given(json_values)
def test_no_json_makes_a_view_raise(value: Any) -> None:
    body = json.dumps(value).encode()
    flow = called(body, b"data: " + body + b"\n\n", "text/event-stream")

    shown_prompt(flow).encode()
    shown_answer(flow).encode()


@given(st.binary(max_size=300))
def test_no_bytes_make_a_view_raise(body: bytes) -> None:
    flow = called(body, body, "text/event-stream")

    shown_prompt(flow).encode()
    shown_answer(flow).encode()
