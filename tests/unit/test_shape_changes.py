"""What rules do to a request: which turns go, what is bounded, marked, and said once only."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.shape_changes import (
    AS_ABOVE,
    GO_ON,
    SUMMARY,
    Change,
    Left,
    Measure,
    cut_of,
    dedupe,
    keep_last,
    mark_cacheable,
    max_output,
    summarize,
    takes_newer,
)
from mitmgate.shape_text import edited, placed
from mitmgate.shape_turns import kind_of
from support.talks import (
    APIS,
    CHAT,
    COHERE,
    CONVERSE,
    GEMINI,
    INVOKE,
    MESSAGES,
    OLLAMA,
    PROSE,
    RESPONSES,
    SYSTEM,
    Api,
    Body,
    Round,
    prose,
    rounds,
)


def tokens(api: Api, body: Body) -> int:
    return api.dialect.read_request(api.path, body).input_tokens_estimate


def measure(api: Api, body: Body) -> Measure:
    return lambda turns: tokens(api, {**body, api.turns: turns})


def made(body: Body, change: Change | Left | None, indent: int | None = None) -> str:
    assert isinstance(change, Change)
    return edited(json.dumps(body, indent=indent), placed(change.edits))


def kept(api: Api, body: Body, most: int) -> str:
    return made(body, keep_last(api.talk(body), most, measure(api, body)))


def why(change: Change | Left | None) -> str:
    assert isinstance(change, Left)
    return change.why


# -- keep_last --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
def test_the_oldest_rounds_go_until_about_so_many_tokens_are_left(api: Api) -> None:
    body = api.write(rounds(20, tokens=100, tools=1))

    after = json.loads(kept(api, body, 1500))

    assert 1500 * 0.8 <= tokens(api, after) <= 1500 < tokens(api, body)
    assert {**after, api.turns: None} == {**body, api.turns: None}
    turns = [turn for turn in body[api.turns] if kind_of(turn) != "system"]
    left = [turn for turn in after[api.turns] if kind_of(turn) != "system"]
    assert left == turns[-len(left) :]
    assert kind_of(left[0]) == "user"
    assert SYSTEM in json.dumps(after)


def test_turns_that_stay_keep_their_bytes() -> None:
    body = CHAT.write(rounds(9))
    text = json.dumps(body, indent=1).replace('"Answer 9."', '"\\u0041nswer 9."')
    change = keep_last(CHAT.talk(body), 300, measure(CHAT, body))
    assert isinstance(change, Change)

    after = edited(text, placed(change.edits))

    begins = after.index('"Question')
    assert text.endswith(after[begins:])
    assert after.startswith(text[: text.index("{", text.index(SYSTEM))].rstrip())


@pytest.mark.parametrize("api", APIS, ids=str)
def test_the_last_round_stays_however_long_it_is(api: Api) -> None:
    body = api.write([*rounds(4)[:3], Round(4, tokens=2000, tools=2, answered=False)])
    change = keep_last(api.talk(body), 500, measure(api, body))

    assert isinstance(change, Change)
    assert change.detail == "6 turns dropped; what has to stay is more than 500"
    assert prose(2000, "Question 4:") in made(body, change)


def test_where_there_is_one_round_nothing_goes() -> None:
    body = CHAT.write(rounds(1, tokens=2000))

    assert why(keep_last(CHAT.talk(body), 500, measure(CHAT, body))) == (
        "it has one round, which has to stay, and is more than 500 tokens"
    )


def test_where_there_are_no_turns_nothing_goes() -> None:
    body = RESPONSES.write([], input=prose(2000))

    assert why(keep_last(RESPONSES.talk(body), 500, measure(RESPONSES, body))) == "it has no turns that could go"


def test_the_systems_turns_stay_wherever_they_stand() -> None:
    body = CHAT.write(rounds(9))
    body["messages"].insert(5, {"role": "developer", "content": "From here on in French."})

    after = json.loads(kept(CHAT, body, 400))["messages"]

    assert [turn["role"] for turn in after[:3]] == ["system", "developer", "user"]


def test_one_more_turn_finds_the_beginning_as_it_was() -> None:
    """Without blocks each of these would begin anew."""
    texts = [kept(CHAT, CHAT.write(rounds(count, tokens=50)), 2000) for count in range(60, 100)]

    def begin(text: str) -> str:
        return text[text.index("Question") :][:12]

    beginnings = Counter(map(begin, texts))
    assert len(beginnings) == 11
    same = [(one, two) for one, two in pairwise(texts) if begin(one) == begin(two)]
    assert all(two.startswith(one.removesuffix("]}")) for one, two in same)


def test_a_great_round_does_not_go_for_the_sake_of_a_block() -> None:
    said = [*rounds(10, tokens=10), Round(11, tokens=1500), Round(12, answered=False)]
    body = CHAT.write(said)

    after = kept(CHAT, body, tokens(CHAT, body) - 10)

    assert "Question 11:" in after
    assert "Question 1:" not in after


def test_where_digits_are_left_of_prose_and_digits_more_has_to_go() -> None:
    """Digits are more tokens than as many letters: without the prose beside them the request may seem to have grown."""
    digits = [Round(n, says=f"Question {n}: {'12345 ' * 10}", answered=n < 63) for n in range(61, 64)]
    body = CHAT.write([*rounds(61, tokens=20)[:60], *digits])

    for most in range(1400, 1600, 10):
        assert tokens(CHAT, json.loads(kept(CHAT, body, most))) <= most


@st.composite
def conversations(draw: st.DrawFn) -> list[Round]:
    drawn = st.tuples(st.integers(1, 300), st.integers(0, 3), st.booleans())
    said = [
        Round(n, size, tools, answered)
        for n, (size, tools, answered) in enumerate(draw(st.lists(drawn, min_size=1, max_size=12)), start=1)
    ]
    return [*said[:-1], replace(said[-1], answered=draw(st.booleans()))]


@pytest.mark.parametrize("api", APIS, ids=str)
@given(said=conversations(), most=st.integers(1, 3000))
def test_whatever_the_conversation_it_stays_valid(api: Api, said: list[Round], most: int) -> None:
    body = api.write(said)
    change = keep_last(api.talk(body), most, measure(api, body))
    if isinstance(change, Left):
        assert len(said) == 1
        return

    text = made(body, change)
    after = json.loads(text)
    turns, before = after[api.turns], body[api.turns]

    for one in said:
        for call in one.calls:
            assert text.count(f'"{call}"') in (0, 2), "a call without its result, or the reverse"
    assert said[-1].question in text
    assert SYSTEM in text
    left = [turn for turn in turns if kind_of(turn) != "system"]
    assert left == before[-len(left) :]
    assert kind_of(left[0]) == "user"
    if tokens(api, after) > most:
        assert [kind_of(turn) for turn in left].count("user") == 1, "too long, and more than the last round"


# -- summarize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
def test_a_summary_stands_in_place_of_the_oldest_rounds(api: Api) -> None:
    body = api.write(rounds(9, tools=1))
    found = api.talk(body)
    cut = cut_of(found, 500, measure(api, body))
    assert isinstance(cut, int)

    text = made(body, summarize(found, cut, "They talked."))

    turns = [turn for turn in json.loads(text)[api.turns] if kind_of(turn) != "system"]
    said = [json.dumps(turn) for turn in turns[:2]]
    assert (f"{SUMMARY}\\n\\nThey talked." in said[0], GO_ON in said[1]) == (True, True)
    assert turns[2:] == [found.turns[at] for indices in found.rounds[cut:] for at in indices]
    kinds = [kind_of(turn) for turn in turns]
    assert all(one != two for one, two in pairwise(kinds)), "roles take turns as they did"
    assert tokens(api, json.loads(text)) <= 500 + 30


# -- max_output_tokens ------------------------------------------------------------------------------------------------

BOUNDS: dict[str, tuple[Api, Body, Body]] = {
    "chat": (CHAT, {}, {"max_tokens": 4000}),
    "chat, a higher one": (CHAT, {"max_tokens": 9000}, {"max_tokens": 4000}),
    "chat, its newer name": (CHAT, {"max_completion_tokens": 9000}, {"max_completion_tokens": 4000}),
    "chat, null": (CHAT, {"max_tokens": None}, {"max_tokens": 4000}),
    "Responses": (RESPONSES, {}, {"max_output_tokens": 4000}),
    "Anthropic": (MESSAGES, {"max_tokens": 9000}, {"max_tokens": 4000}),
    "Claude on Bedrock": (INVOKE, {"max_tokens": 9000}, {"max_tokens": 4000}),
    "Gemini": (GEMINI, {}, {"generationConfig": {"maxOutputTokens": 4000}}),
    "Gemini with settings": (
        GEMINI,
        {"generationConfig": {"temperature": 0, "maxOutputTokens": 9000}},
        {"generationConfig": {"temperature": 0, "maxOutputTokens": 4000}},
    ),
    "Gemini in snake case": (
        GEMINI,
        {"generation_config": {"top_k": 3}},
        {"generation_config": {"top_k": 3, "maxOutputTokens": 4000}},
    ),
    "Converse": (CONVERSE, {}, {"inferenceConfig": {"maxTokens": 4000}}),
    "Nova's older name": (
        CONVERSE,
        {"inferenceConfig": {"max_new_tokens": 9000}},
        {"inferenceConfig": {"max_new_tokens": 4000}},
    ),
    "Cohere": (COHERE, {}, {"max_tokens": 4000}),
    "Ollama": (OLLAMA, {"options": {"seed": 1}}, {"options": {"seed": 1, "num_predict": 4000}}),
    "Ollama without bound": (OLLAMA, {"options": {"num_predict": -1}}, {"options": {"num_predict": 4000}}),
}


@pytest.mark.parametrize(("api", "asked", "bounded"), BOUNDS.values(), ids=BOUNDS)
def test_an_answer_is_bounded_by_the_member_that_the_api_takes(api: Api, asked: Body, bounded: Body) -> None:
    body = api.write(rounds(1), **asked)

    assert json.loads(made(body, max_output(api.talk(body), 4000, newer=False))) == {**body, **bounded}


def test_a_model_that_reasons_gets_the_newer_member_where_the_client_set_none() -> None:
    body = CHAT.write(rounds(1))

    assert made(body, max_output(CHAT.talk(body), 4000, newer=True)).endswith('],"max_completion_tokens":4000}')


@pytest.mark.parametrize(
    ("api", "asked"),
    [
        (CHAT, {"max_tokens": 4000}),
        (CHAT, {"max_completion_tokens": 16}),
        (MESSAGES, {}),
        (GEMINI, {"generationConfig": {"max_output_tokens": 100}}),
        (OLLAMA, {"options": {"num_predict": 1}}),
    ],
)
def test_a_lower_bound_of_the_clients_stays(api: Api, asked: Body) -> None:
    assert max_output(api.talk(api.write(rounds(1), **asked)), 4000, newer=True) is None


@pytest.mark.parametrize(
    ("api", "asked"),
    [
        (MESSAGES, {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 4000}}),
        (CONVERSE, {"additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 4000}}}),
    ],
)
def test_a_bound_that_leaves_no_room_beside_the_thinking_is_not_set(api: Api, asked: Body) -> None:
    body = api.write(rounds(1), **asked)

    assert why(max_output(api.talk(body), 4000, newer=False)) == "its thinking alone may take 4,000 tokens"
    assert isinstance(max_output(api.talk(body), 4001, newer=False), Change)


def test_the_detail_tells_both_numbers() -> None:
    body = CHAT.write(rounds(1), max_tokens=16000)
    change, fresh = (max_output(CHAT.talk(one), 4000, newer=False) for one in (body, CHAT.write(rounds(1))))

    assert isinstance(change, Change)
    assert isinstance(fresh, Change)
    assert (change.detail, fresh.detail) == ("max_tokens 16,000 -> 4,000", "max_tokens set to 4,000")


@pytest.mark.parametrize(
    ("provider", "model", "newer"),
    [
        ("openai", "o3-mini", True),
        ("openai", "gpt-5.1-chat-latest", True),
        ("azure-openai", "gpt-5-mini", True),
        ("openai", "gpt-4o", False),
        ("azure-openai", "gpt-35-turbo", False),
        ("openrouter", "openai/gpt-5", False),
        ("groq", "o3-of-our-own", False),
        ("openai", None, False),
    ],
)
def test_which_models_take_the_newer_member(provider: str, model: str | None, newer: bool) -> None:
    assert takes_newer(provider, model) is newer


# -- mark_cacheable ---------------------------------------------------------------------------------------------------

TOOLS = [{"name": "a", "input_schema": {}}, {"name": "b", "input_schema": {}}]
MARK = {"type": "ephemeral"}


@pytest.mark.parametrize("api", [MESSAGES, INVOKE], ids=str)
def test_the_ends_of_stable_prefixes_are_marked(api: Api) -> None:
    body = api.write(rounds(3), tools=TOOLS)
    change = mark_cacheable(api.talk(body))

    after = json.loads(made(body, change))

    assert isinstance(change, Change)
    assert change.detail == "marked the tools, the system prompt, turn 4"
    assert after["tools"] == [TOOLS[0], {**TOOLS[1], "cache_control": MARK}]
    assert after["system"] == [{"type": "text", "text": SYSTEM, "cache_control": MARK}]
    assert after["messages"][3]["content"] == [{"type": "text", "text": "Answer 2.", "cache_control": MARK}]
    assert json.dumps(after).count("cache_control") == 3
    assert [after["messages"][at] for at in (0, 1, 2, 4)] == [body["messages"][at] for at in (0, 1, 2, 4)]


def test_a_text_keeps_its_bytes_in_its_block() -> None:
    body = MESSAGES.write(rounds(1))
    change = mark_cacheable(MESSAGES.talk(body))
    assert isinstance(change, Change)

    after = edited(json.dumps(body).replace("travel", "tr\\u0061vel"), placed(change.edits))

    said = SYSTEM.replace("travel", "tr\\u0061vel")
    assert f'"system": [{{"type":"text","text":"{said}","cache_control":{{"type":"ephemeral"}}}}]' in after


def test_before_a_tools_result_the_call_is_marked() -> None:
    body = MESSAGES.write([Round(1, tools=1, answered=False)], system=[])

    after = json.loads(made(body, mark_cacheable(MESSAGES.talk(body))))

    assert after["messages"][1]["content"][0]["cache_control"] == MARK
    assert after["messages"][2] == body["messages"][2]


UNMARKABLE: dict[str, Body] = {
    "an empty text": {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]},
    "a tool that is loaded later": {"tools": [TOOLS[0], {**TOOLS[1], "defer_loading": True}]},
}


@pytest.mark.parametrize("more", UNMARKABLE.values(), ids=UNMARKABLE)
def test_what_the_api_takes_no_mark_on_is_passed_over(more: Body) -> None:
    [name] = more
    body = MESSAGES.write(rounds(1), **more)

    after = json.loads(made(body, mark_cacheable(MESSAGES.talk(body))))

    assert after[name] == [{**more[name][0], "cache_control": MARK}, more[name][1]]


MARKED: dict[str, Body] = {
    "at the top": {"cache_control": MARK},
    "on a tool": {"tools": [{**TOOLS[0], "cache_control": MARK}]},
    "on the system prompt": {"system": [{"type": "text", "text": "a", "cache_control": MARK}]},
    "on a turn": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": MARK}]}]},
    "in a tool's result": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "tool_result", "content": [{"type": "text", "text": "a", "cache_control": MARK}]}],
            }
        ]
    },
}


@pytest.mark.parametrize("more", MARKED.values(), ids=MARKED)
def test_a_client_that_marks_anything_itself_is_left_alone(more: Body) -> None:
    change = mark_cacheable(MESSAGES.talk(MESSAGES.write(rounds(3)) | more))

    assert why(change) == "its client has set cache_control itself"


def test_arguments_that_look_like_a_mark_are_none() -> None:
    body = MESSAGES.write(rounds(2, tools=1))
    body["messages"][1]["content"][0]["input"] = {"cache_control": MARK}

    assert isinstance(mark_cacheable(MESSAGES.talk(body)), Change)


def test_other_apis_take_no_marks() -> None:
    assert why(mark_cacheable(CHAT.talk(CHAT.write(rounds(3))))) == "marks are for Anthropic's API alone"


def test_where_nothing_stands_before_the_newest_turn_nothing_is_marked() -> None:
    body = MESSAGES.write(rounds(1), system="")

    assert why(mark_cacheable(MESSAGES.talk(body))).startswith("it has nothing before")


# -- dedupe -----------------------------------------------------------------------------------------------------------

CONTEXT = (PROSE * 7).strip()
OTHER = CONTEXT.replace("road", "river")


@pytest.mark.parametrize("api", APIS, ids=str)
def test_a_paragraph_that_stood_before_is_named(api: Api) -> None:
    said = [Round(n, says=f"Use this:\n\n{CONTEXT}\n\nQuestion {n}?", answered=n < 4) for n in range(1, 5)]
    body = api.write(said)

    text = made(body, dedupe(api.talk(body)))

    short = [*said]
    short[1:3] = [replace(one, says=one.says.replace(CONTEXT, AS_ABOVE)) for one in said[1:3]]
    assert json.loads(text) == api.write(short), "the first and the last keep it"


def test_a_whole_text_that_stood_before_is_named() -> None:
    text = "\n\n".join(["short lines"] * 60)
    said = [Round(1, says=text), Round(2, says=f"\n{text} "), Round(3, says="And now?", answered=False)]
    body = CHAT.write(said)

    after = json.loads(made(body, dedupe(CHAT.talk(body))))

    assert [turn["content"] for turn in after["messages"] if turn["role"] == "user"] == [text, AS_ABOVE, "And now?"]


def test_what_the_system_says_stays_and_counts_as_said_before() -> None:
    body = MESSAGES.write([Round(1, says=CONTEXT), Round(2, answered=False)], system=CONTEXT)

    after = json.loads(made(body, dedupe(MESSAGES.talk(body))))

    assert (after["system"], after["messages"][0]["content"]) == (CONTEXT, AS_ABOVE)


def results(*found: str) -> list[Body]:
    """Return turns in which a tool found each of these, one after the other; the last is not answered yet."""
    turns: list[Body] = [{"role": "user", "content": "Look."}]
    for at, one in enumerate(found):
        turns.append({"role": "assistant", "content": [{"type": "tool_use", "id": f"t{at}", "name": "read"}]})
        turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"t{at}", "content": one}]})
    return turns


def test_a_result_that_a_tool_gave_before_is_named_unless_the_model_has_yet_to_see_it() -> None:
    body = MESSAGES.write([], messages=results(CONTEXT, OTHER, CONTEXT, CONTEXT))

    after = json.loads(made(body, dedupe(MESSAGES.talk(body))))

    assert after["messages"] == results(CONTEXT, OTHER, AS_ABOVE, CONTEXT)


def test_the_models_own_words_and_short_ones_stay() -> None:
    turns = [("user", "hi"), ("assistant", CONTEXT), ("user", "hi"), ("assistant", CONTEXT), ("user", "hi")]
    body = CHAT.write([], messages=[{"role": role, "content": said} for role, said in turns])

    assert dedupe(CHAT.talk(body)) is None


def test_repeats_are_counted() -> None:
    said = [Round(n, says=f"{CONTEXT}\r\n\r\n{OTHER}\n \n{CONTEXT}", answered=n < 3) for n in range(1, 4)]
    change = dedupe(CHAT.talk(CHAT.write(said)))

    assert isinstance(change, Change)
    assert change.detail == "2 repeated blocks"


def test_one_more_turn_changes_nothing_of_what_stands_before_the_last() -> None:
    said = [Round(n, says=f"{CONTEXT}\n\nQuestion {n}?") for n in range(1, 7)]
    texts = [made(body, dedupe(CHAT.talk(body))) for body in (CHAT.write(said[:count]) for count in range(3, 7))]

    for one, two in pairwise(texts):
        at = one.rindex(CONTEXT)
        assert two.startswith(one[:at])


# -- whatever comes ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "role",
        "content",
        "parts",
        "text",
        "type",
        "tool_calls",
        "id",
        "call_id",
        "system",
        "tools",
        "thinking",
        "toolUse",
    ]
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "assistant", "text", CONTEXT, "_output"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("api", APIS, ids=str)
@given(body=st.dictionaries(NAMES, ANYTHING, max_size=4), turns=ANYTHING)
def test_no_shape_of_body_breaks_a_change(api: Api, body: Body, turns: Any) -> None:
    found = api.talk({**api.write([]), **body, api.turns: turns})
    for change in (
        keep_last(found, 1, lambda turns: len(turns)),
        max_output(found, 1, newer=True),
        mark_cacheable(found),
        dedupe(found),
    ):
        if isinstance(change, Change):
            json.loads(made(found.whole, change))
