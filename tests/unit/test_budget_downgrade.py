"""A call that is bound to its model is never sent to another one."""

import pytest

from mitmgate.budget_downgrade import bound
from mitmgate.dialects.base import Json
from mitmgate.exchange import Leg
from mitmgate.seals import MOST_NODES
from support.spending import call

CLAUDE = "api.anthropic.com"
RESPONSES = "/v1/responses"
THINKING = "it carries signed thinking of its model"


def said(*parts: Json) -> Json:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": list(parts)}]


FREE = {
    "a plain question": call(),
    "a function of the app's": call(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
    "a custom tool of the app's": call(tools=[{"type": "custom", "name": "f"}]),
    "a tool in Claude's words": call(host=CLAUDE, tools=[{"name": "f", "description": "d", "input_schema": {}}]),
    "a tool in Gemini's words": call(tools=[{"functionDeclarations": [{"name": "f"}]}]),
    "a tool in Bedrock's words": call(tools=[{"toolSpec": {"name": "f"}}]),
    "a call with its result": call(
        host=CLAUDE,
        messages=said(
            {
                "type": "tool_use",
                "id": "1",
                "name": "f",
                "input": {"type": "thinking", "signature": "a customer's own"},
            },
            {"type": "tool_result", "tool_use_id": "1", "content": "signature: none"},
        ),
    ),
    "arguments that look signed": call(messages=[{"tool_calls": [{"function": {"arguments": {"signature": "x"}}}]}]),
    "no thread": call(path=RESPONSES, previous_response_id=None, input=[{"role": "user", "content": "hi"}]),
    "no tools": call(tools=None),
}


@pytest.mark.parametrize("x", FREE.values(), ids=FREE)
def test_another_model_may_answer(x: object) -> None:
    assert bound(x, to_other_model=True) is None  # type: ignore[arg-type]


BOUND = {
    "signed thinking": (
        call(host=CLAUDE, messages=said({"type": "thinking", "thinking": "hm", "signature": "EqQB"})),
        THINKING,
    ),
    "sealed thinking": (call(host=CLAUDE, messages=said({"type": "redacted_thinking", "data": "EmwK"})), THINKING),
    "Bedrock's thinking": (
        call(messages=said({"reasoningContent": {"reasoningText": {"text": "hm", "signature": "EqQB"}}})),
        THINKING,
    ),
    "Gemini's thinking": (
        call(contents=[{"role": "model", "parts": [{"functionCall": {"name": "f"}, "thoughtSignature": "CuQB"}]}]),
        THINKING,
    ),
    "Gemini's thinking as OpenAI": (
        call(messages=[{"tool_calls": [{"extra_content": {"google": {"thought_signature": "CuQB"}}}]}]),
        THINKING,
    ),
    "OpenRouter's thinking": (
        call(messages=[{"reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}]}]),
        THINKING,
    ),
    "encrypted reasoning": (
        call(path=RESPONSES, input=[{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA"}]),
        THINKING,
    ),
    "an item at the provider": (call(path=RESPONSES, input=[{"type": "item_reference", "id": "rs_1"}]), THINKING),
    "a thread": (call(path=RESPONSES, previous_response_id="resp_1"), "its previous_response_id lies at its provider"),
    "a conversation": (call(path=RESPONSES, conversation={"id": "c"}), "its conversation lies at its provider"),
    "a tool of one version": (
        call(host=CLAUDE, tools=[{"type": "computer_20250124", "name": "computer"}]),
        "its tool computer_20250124 is the provider's own",
    ),
    "a tool that the provider runs": (
        call(path=RESPONSES, tools=[{"type": "function", "name": "f"}, {"type": "web_search"}]),
        "its tool web_search is the provider's own",
    ),
    "Gemini's search": (call(tools=[{"googleSearch": {}}]), "its tool googleSearch is the provider's own"),
    "a tool with a model": (
        call(tools=[{"type": "function", "name": "f", "model": "gpt-image-1"}]),
        "one of its tools names a model",
    ),
    "an embedding": (call(path="/v1/embeddings"), "no other model can do its embeddings"),
}


@pytest.mark.parametrize(("x", "why"), BOUND.values(), ids=BOUND)
def test_no_other_model_may_answer(x: object, why: str) -> None:
    assert bound(x, to_other_model=True) == why  # type: ignore[arg-type]
    assert bound(x, to_other_model=False) is None  # type: ignore[arg-type]


def test_a_signed_body_stays_where_it_is_whatever_it_is_to_become() -> None:
    x = call()
    x.headers["authorization"] = "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/bedrock/aws4_request"

    assert [bound(x, to_other_model=other) for other in (True, False)] == ["its body is signed"] * 2


def test_an_upload_that_is_still_running_stays_where_it_is() -> None:
    x = call()
    x.streamed_upload = True

    assert bound(x, to_other_model=False) == "its body is still on its way"


def test_a_universal_request_goes_where_it_says() -> None:
    x = call()
    x.legs = [Leg("openai", x.provider, "https", x.host, 443, x.path, [])]

    assert bound(x, to_other_model=False) == "it brings its own list of places"


@pytest.mark.parametrize("body", [None, [], "text", 7])
def test_a_body_that_cannot_be_read_is_not_changed(body: Json) -> None:
    x = call()
    x.json = body

    assert bound(x, to_other_model=True) == "its body cannot be read"


def test_a_body_too_large_to_be_searched_counts_as_bound() -> None:
    x = call(messages=[[]] * (MOST_NODES + 1))

    assert bound(x, to_other_model=True) == "it is too large to be searched for signatures"


def test_a_body_of_any_depth_is_searched() -> None:
    deep: Json = {"type": "thinking"}
    for _ in range(50_000):
        deep = [deep]

    assert bound(call(messages=deep), to_other_model=True) == THINKING
