"""Turns and rounds are found in the requests of every API."""

from typing import Any

import pytest

from mitmgate.shape_turns import kind_of, rounds_of, system_texts, talk_of, texts_of
from support.talks import APIS, CHAT, GEMINI, MESSAGES, RESPONSES, SYSTEM, Api, Body, Round

SAID = [Round(1), Round(2, tools=2), Round(3, answered=False)]


@pytest.mark.parametrize("api", APIS, ids=str)
def test_a_round_begins_with_a_question_and_has_its_calls_results_and_answer(api: Api) -> None:
    found = api.talk(api.write(SAID))

    first = 1 if kind_of(found.turns[0]) == "system" else 0
    assert found.at == (api.turns,)
    assert [[at - first for at in indices] for indices in found.rounds] == [[0, 1], [2, 3, 4, 5, 6, 7], [8]]


@pytest.mark.parametrize("api", APIS, ids=str)
def test_the_kinds_of_turns_are_told_apart(api: Api) -> None:
    kinds = [kind_of(turn) for turn in api.talk(api.write(SAID)).turns]

    expected = ["user", "other", "user", "other", "result", "other", "result", "other", "user"]
    assert [kind for kind in kinds if kind != "system"] == expected


@pytest.mark.parametrize("api", APIS, ids=str)
def test_texts_are_found_with_the_way_to_them(api: Api) -> None:
    found = api.talk(api.write(SAID))

    for turn in found.turns:
        for path, said in texts_of(turn):
            value: Any = turn
            for step in path:
                value = value[step]
            assert value == said
    texts = [said for turn in found.turns for _, said in texts_of(turn)]
    results = texts.count("sunny in round 2")
    assert (SAID[0].question in texts, "Answer 2." in texts) == (True, True)
    assert results == (0 if api.turns == "contents" else 2), "Gemini's results are objects"
    assert SYSTEM in [*texts, *system_texts(found)]


def test_turns_of_the_system_belong_to_no_round() -> None:
    turns = [{"role": role} for role in ("system", "user", "developer", "assistant", "user", "system")]

    assert rounds_of(turns) == [[1, 3], [4]]


def test_what_stands_before_the_first_question_is_a_round() -> None:
    assert rounds_of([{"role": "assistant"}, {"role": "user"}, {"role": "assistant"}]) == [[0], [1, 2]]


def call(number: int) -> dict[str, str]:
    return {"type": "function_call", "call_id": f"call_{number}"}


def output(number: int) -> dict[str, str]:
    return {"type": "function_call_output", "call_id": f"call_{number}"}


USER = {"role": "user"}

OPEN: dict[str, tuple[list[dict[str, str]], list[list[int]]]] = {
    "a question between call and result parts nothing": ([USER, call(1), USER, output(1), USER], [[0, 1, 2, 3], [4]]),
    "the later of two results counts": (
        [USER, call(1), call(2), output(1), USER, output(2), USER],
        [[0, 1, 2, 3, 4, 5], [6]],
    ),
    "a result that comes twice counts twice": (
        [USER, call(1), output(1), USER, output(1), USER],
        [[0, 1, 2, 3, 4], [5]],
    ),
    "a call that is never answered keeps nothing open": ([USER, call(1), USER], [[0, 1], [2]]),
    "a result without its call is no question": ([USER, output(1), USER], [[0, 1], [2]]),
    "ids that begin anew in each round part none": (
        [USER, call(1), output(1), USER, call(1), output(1)],
        [[0, 1, 2], [3, 4, 5]],
    ),
}


@pytest.mark.parametrize(("turns", "rounds"), OPEN.values(), ids=OPEN)
def test_a_call_is_never_parted_from_its_result(turns: list[dict[str, str]], rounds: list[list[int]]) -> None:
    assert rounds_of(turns) == rounds


RESULTS: dict[str, dict[str, Any]] = {
    "OpenAI's tools": {"role": "tool"},
    "OpenAI's functions": {"role": "function"},
    "a custom tool's": {"type": "custom_tool_call_output"},
    "an approval": {"type": "mcp_approval_response"},
    "Anthropic's with words beside it": {
        "role": "user",
        "content": [{"type": "text", "text": "well"}, {"type": "tool_result", "tool_use_id": "1"}],
    },
    "Gemini's": {"role": "user", "parts": [{"functionResponse": {}}]},
    "Gemini's in snake case": {"role": "function", "parts": [{"function_response": {}}]},
    "Bedrock's": {"role": "user", "content": [{"toolResult": {}}]},
}


@pytest.mark.parametrize("turn", RESULTS.values(), ids=RESULTS)
def test_a_tools_result_is_no_question(turn: dict[str, Any]) -> None:
    assert kind_of(turn) == "result"


def test_geminis_turn_without_a_role_is_the_users() -> None:
    assert kind_of({"parts": [{"text": "hi"}]}) == "user"


def test_a_gemini_request_in_an_envelope_is_found_in_it() -> None:
    body = {"model": "gemini-2.5-pro", "project": "p", "request": GEMINI.write(SAID)}

    found = GEMINI.talk(body)

    assert found.at == ("request", "contents")
    assert found.saying(found.turns) == body
    assert len(found.rounds) == 3


@pytest.mark.parametrize("text", [text for kind in ({"thought": True}, {"type": "thinking"}) for text in [kind]])
def test_thoughts_are_no_text(text: dict[str, Any]) -> None:
    part = {**text, "text": "hm"}

    assert list(texts_of({"parts": [part], "content": [part]})) == []


def test_arguments_are_no_text() -> None:
    turns = [
        {"content": [{"type": "tool_use", "id": "1", "input": {"text": "x"}, "text": "x"}]},
        {"content": [{"toolUse": {"input": {"text": "x"}}}]},
        {"parts": [{"functionCall": {"args": {"text": "x"}}}]},
        {"tool_calls": [{"function": {"arguments": "x"}}]},
        {"type": "function_call", "arguments": "x"},
    ]

    assert [list(texts_of(turn)) for turn in turns] == [[], [], [], [], []]


UNREADABLE: dict[str, Any] = {
    "no turns": {},
    "a text": {"messages": "hi", "input": "hi", "contents": "hi"},
    "null": {"messages": None, "input": None, "contents": None},
    "turns that are no objects": {"messages": ["hi"], "input": ["hi"], "contents": ["hi"]},
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("api", [CHAT, RESPONSES, MESSAGES, GEMINI], ids=str)
def test_where_there_is_no_list_of_turns_there_are_no_rounds(api: Api, body: Body) -> None:
    assert api.talk(body).rounds == []


UNKNOWN = {
    "an older API of Cohere's": ("/v1/chat", {"message": "hi", "chat_history": []}),
    "a model of Bedrock's with an API of its own": ("/model/meta.llama3/invoke", {"prompt": "hi"}),
    "anything else": ("/v1/rerank", {"query": "hi"}),
}


@pytest.mark.parametrize(("path", "body"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_api_that_nobody_knows_has_no_turns(path: str, body: Body) -> None:
    assert talk_of("generic", path, body) is None
