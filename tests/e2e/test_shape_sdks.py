"""The vendors' own SDKs send long conversations with tool calls: the provider hears the shaped ones, and all is read.

What they say is what an app has at hand after some rounds: texts, calls of a tool with their ids, and its results.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import serving
from support.apps import SCHEMA
from support.provider import Heard, Provider
from support.serving import Serving
from support.speakers import speak
from support.talks import Round, chat, messages, responses, rounds
from support.voices import MODELS, Api, Said

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai

KEY = "key-of-theirs-0123456789"
POLICY = """
shape:
  - {name: short, match: {header.x-try: short}, then: {keep_last: 600}}
  - {name: brief, match: {header.x-try: brief}, then: {max_output_tokens: 50}}
  - {name: mark, match: {header.x-try: mark}, then: mark_cacheable}
  - {name: sum, match: {header.x-try: sum}, then: {summarize: {keep_last: 600, with: small, model: gpt-5-mini}}}
targets:
  small: {provider: openai, base_url: "https://api.openai.com", headers: {authorization: Bearer env:REAL_KEY}}
"""
LONG = rounds(8, tokens=100, tools=1)


@pytest.fixture(scope="module")
def shaping(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("shaping") / "home"))
    with serving.serve(home, serving.policy_text(provider_thread.port, ca_file, POLICY), REAL_KEY=KEY) as running:
        yield running


@pytest.fixture
def gate(shaping: Serving, beside: Provider, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return the gateway, with this process set up as its app."""
    assert beside.heard == []
    serving.set_up(monkeypatch, shaping, KEY)
    return shaping


# -- apps: each says LONG with its SDK, and returns the answer's text and the header that tells of rules ---------------

type Told = tuple[str, str | None]


def by_chat(rule: str) -> Told:
    from openai import OpenAI

    body = chat(LONG, model=MODELS["chat"])
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    with OpenAI(max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], tools=[tool], extra_headers={"x-try": rule}
        )
        return str(raw.parse().choices[0].message.content), raw.headers.get("cf-aig-route")


def by_responses(rule: str) -> Told:
    from openai import OpenAI

    body = responses(LONG, model=MODELS["responses"])
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    with OpenAI(max_retries=0) as client:
        raw = client.responses.with_raw_response.create(
            model=body["model"],
            instructions=body["instructions"],
            input=body["input"],
            tools=[tool],
            extra_headers={"x-try": rule},
        )
        return raw.parse().output_text, raw.headers.get("cf-aig-route")


def by_messages(rule: str) -> Told:
    from anthropic import Anthropic

    body = messages(LONG)
    with Anthropic(max_retries=0) as client:
        raw = client.messages.with_raw_response.create(
            model=body["model"],
            max_tokens=body["max_tokens"],
            system=body["system"],
            messages=body["messages"],
            tools=[{"name": "weather", "input_schema": SCHEMA}],
            extra_headers={"x-try": rule},
        )
        block = raw.parse().content[0]
        return (block.text if block.type == "text" else ""), raw.headers.get("cf-aig-route")


def by_gemini(rule: str) -> Told:
    from google import genai
    from google.genai import types

    contents: list[Any] = []
    for one in LONG:
        contents.append(types.UserContent(one.question))
        for call in one.calls:
            made = types.FunctionCall(id=call, name="weather", args={"city": "Oslo"})
            result = types.FunctionResponse(id=call, name="weather", response={"result": "sunny"})
            contents.append(types.ModelContent([types.Part(function_call=made)]))
            contents.append(types.UserContent([types.Part(function_response=result)]))
        contents += [types.ModelContent(one.answer)] if one.answered else []
    config = types.GenerateContentConfig(
        system_instruction="You help with travel. Be brief.",
        tools=[types.Tool(function_declarations=[types.FunctionDeclaration(name="weather")])],
    )
    options = types.HttpOptions(headers={"x-try": rule})
    with genai.Client(http_options=options) as client:
        answer = client.models.generate_content(model=MODELS["gemini"], contents=contents, config=config)
    head = answer.sdk_http_response
    headers = {name.lower(): value for name, value in ((head.headers if head else None) or {}).items()}
    return str(answer.text), headers.get("cf-aig-route")


APPS: dict[Api, Callable[[str], Told]] = {
    "chat": by_chat,
    "responses": by_responses,
    "messages": by_messages,
    "gemini": by_gemini,
}
TURNS: dict[Api, str] = {"chat": "messages", "responses": "input", "messages": "messages", "gemini": "contents"}


def body_of(heard: Heard) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(heard.body)
    return body


def is_whole(one: Round, text: str) -> bool:
    """Return whether *one* stands in *text* with its question and both halves of its call, or not at all."""
    halves = [text.count(json.dumps(call)) for call in one.calls]
    return halves == [2 if one.question in text else 0]


@pytest.mark.parametrize("api", APPS)
def test_the_oldest_rounds_of_an_sdks_conversation_go_whole(gate: Serving, beside: Provider, api: Api) -> None:
    said = Said(api)
    speak(beside, said)

    text, told = APPS[api]("short")

    assert (text, told) == (said.text, "shaped; rule=short")
    [heard] = beside.heard
    body = heard.body.decode()
    assert [is_whole(one, body) for one in LONG] == [True] * len(LONG)
    assert (LONG[0].question in body, LONG[-1].question in body, "You help with travel" in body) == (False, True, True)
    row = gate.new_row()
    assert row["prompt_tokens_after"] <= 600 < row["prompt_tokens_before"]
    [event] = gate.query("select room, rule, action from policy_events where exchange_id = ?", row["id"])
    assert tuple(event.values()) == ("shape", "short", "keep_last")


BOUNDS: dict[Api, tuple[str, ...]] = {
    "chat": ("max_completion_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "gemini": ("generationConfig", "maxOutputTokens"),
}


@pytest.mark.parametrize("api", APPS)
def test_an_sdks_answer_is_bounded(gate: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))

    _, told = APPS[api]("brief")

    bound: Any = body_of(beside.heard[0])
    for name in BOUNDS[api]:
        bound = bound[name]
    assert (bound, told) == (50, "shaped; rule=brief")
    assert gate.new_row()["prompt_tokens_before"] is None


def test_claudes_sdk_has_its_prefixes_marked(gate: Serving, beside: Provider) -> None:
    speak(beside, Said("messages"))

    _, told = by_messages("mark")

    body = body_of(beside.heard[0])
    marked = [body["tools"][-1], body["system"][-1], body["messages"][-2]["content"][-1]]
    assert [block["cache_control"] for block in marked] == [{"type": "ephemeral"}] * 3
    assert (told, gate.new_row()["status_code"]) == ("shaped; rule=mark", 200)


@pytest.mark.parametrize("api", ["responses", "messages", "gemini"])
def test_an_sdks_conversation_is_summarized_by_another_model(gate: Serving, beside: Provider, api: Api) -> None:
    said = Said(api)
    speak(beside, said)
    speak(beside, Said("chat", "They talked about the weather in Oslo."))

    text, told = APPS[api]("sum")

    assert (text, told) == (said.text, "shaped; rule=sum")
    asked, heard = beside.heard
    assert (asked.path, asked.header("authorization")) == ("/v1/chat/completions", f"Bearer {KEY}")
    first, second, third = body_of(heard)[TURNS[api]][:3]
    assert "They talked about the weather in Oslo." in json.dumps(first)
    assert "Understood" in json.dumps(second)
    assert "Question" in json.dumps(third)
    rows = {row["door"]: row for row in gate.new_rows(2)}
    assert (rows["gateway"]["input_tokens"], rows["proxy"]["status_code"]) == (Said("chat").input_tokens, 200)
    assert rows["gateway"]["cost_nanousd"] > 0
