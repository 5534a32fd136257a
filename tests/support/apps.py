"""Small apps: one call with each vendor's own SDK, sync and async, whole and piece by piece.

They know nothing of a gateway: variables or ``base_url`` lead them there. Each answers with the text a user would
see, or with the arguments of the tool call.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from support.voices import MODELS, Api

PROMPT = "What does a gateway see?"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@dataclass(frozen=True)
class Ask:
    """What an app asks for, beside the prompt."""

    base_url: str | None = None
    """None = the SDK's own, by way of the proxy."""
    headers: dict[str, str] = field(default_factory=dict)
    tool: bool = False
    retries: int = 0
    key: str | None = None


def _options(ask: Ask) -> dict[str, Any]:
    told: dict[str, Any] = {"max_retries": ask.retries}
    if ask.base_url:
        told["base_url"] = ask.base_url
    if ask.key:
        told["api_key"] = ask.key
    return told


# -- OpenAI


def _chat_arguments(ask: Ask) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    return {
        "model": MODELS["chat"],
        "messages": [{"role": "user", "content": PROMPT}],
        "extra_headers": ask.headers,
        **({"tools": [tool]} if ask.tool else {}),
    }


def _chat_piece(chunk: Any) -> str:
    if not chunk.choices:
        return ""
    delta = chunk.choices[0].delta
    return (delta.tool_calls[0].function.arguments if delta.tool_calls else delta.content) or ""


def chat(ask: Ask) -> str:
    from openai import OpenAI

    with OpenAI(**_options(ask)) as client:
        message = client.chat.completions.create(**_chat_arguments(ask)).choices[0].message
        return str(message.tool_calls[0].function.arguments if message.tool_calls else message.content)


def chat_pieces(ask: Ask) -> Iterator[str]:
    from openai import OpenAI

    with (
        OpenAI(**_options(ask)) as client,
        client.chat.completions.create(**_chat_arguments(ask), stream=True) as answer,
    ):
        for chunk in answer:
            yield _chat_piece(chunk)


async def chat_async(ask: Ask) -> str:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(**_options(ask)) as client:
        answer = await client.chat.completions.create(**_chat_arguments(ask))
        message = answer.choices[0].message
        return str(message.tool_calls[0].function.arguments if message.tool_calls else message.content)


async def chat_pieces_async(ask: Ask) -> AsyncIterator[str]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(**_options(ask)) as client:
        async for chunk in await client.chat.completions.create(**_chat_arguments(ask), stream=True):
            yield _chat_piece(chunk)


def _responses_arguments(ask: Ask) -> dict[str, Any]:
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    return {
        "model": MODELS["responses"],
        "input": PROMPT,
        "extra_headers": ask.headers,
        **({"tools": [tool]} if ask.tool else {}),
    }


def _responses_piece(event: Any) -> str:
    is_delta = event.type in ("response.output_text.delta", "response.function_call_arguments.delta")
    return str(event.delta) if is_delta else ""


def _responses_text(answer: Any) -> str:
    return str(answer.output_text or answer.output[0].arguments)


def responses(ask: Ask) -> str:
    from openai import OpenAI

    with OpenAI(**_options(ask)) as client:
        return _responses_text(client.responses.create(**_responses_arguments(ask)))


def responses_pieces(ask: Ask) -> Iterator[str]:
    from openai import OpenAI

    with OpenAI(**_options(ask)) as client, client.responses.create(**_responses_arguments(ask), stream=True) as answer:
        for event in answer:
            yield _responses_piece(event)


async def responses_async(ask: Ask) -> str:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(**_options(ask)) as client:
        return _responses_text(await client.responses.create(**_responses_arguments(ask)))


async def responses_pieces_async(ask: Ask) -> AsyncIterator[str]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(**_options(ask)) as client:
        async for event in await client.responses.create(**_responses_arguments(ask), stream=True):
            yield _responses_piece(event)


# -- Anthropic


def _messages_arguments(ask: Ask) -> dict[str, Any]:
    return {
        "model": MODELS["messages"],
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": PROMPT}],
        "extra_headers": ask.headers,
        **({"tools": [{"name": "weather", "input_schema": SCHEMA}]} if ask.tool else {}),
    }


def _messages_text(answer: Any) -> str:
    block = answer.content[0]
    return json.dumps(block.input) if block.type == "tool_use" else str(block.text)


def _messages_piece(event: Any) -> str:
    if event.type != "content_block_delta":
        return ""
    return str(event.delta.text if event.delta.type == "text_delta" else event.delta.partial_json)


def messages(ask: Ask) -> str:
    from anthropic import Anthropic

    with Anthropic(**_options(ask)) as client:
        return _messages_text(client.messages.create(**_messages_arguments(ask)))


def messages_pieces(ask: Ask) -> Iterator[str]:
    from anthropic import Anthropic

    with (
        Anthropic(**_options(ask)) as client,
        client.messages.create(**_messages_arguments(ask), stream=True) as answer,
    ):
        for event in answer:
            yield _messages_piece(event)


async def messages_async(ask: Ask) -> str:
    from anthropic import AsyncAnthropic

    async with AsyncAnthropic(**_options(ask)) as client:
        return _messages_text(await client.messages.create(**_messages_arguments(ask)))


async def messages_pieces_async(ask: Ask) -> AsyncIterator[str]:
    from anthropic import AsyncAnthropic

    async with AsyncAnthropic(**_options(ask)) as client:
        async for event in await client.messages.create(**_messages_arguments(ask), stream=True):
            yield _messages_piece(event)


# -- Gemini


def _gemini_client(ask: Ask) -> Any:
    from google import genai
    from google.genai import types

    options = types.HttpOptions(base_url=ask.base_url) if ask.base_url else None
    return genai.Client(api_key=ask.key, http_options=options)


def _gemini_arguments(ask: Ask) -> dict[str, Any]:
    from google.genai import types

    declared = [types.FunctionDeclaration(name="weather", parameters_json_schema=SCHEMA)]
    config = types.GenerateContentConfig(
        http_options=types.HttpOptions(headers=ask.headers),
        tools=[types.Tool(function_declarations=declared)] if ask.tool else None,
    )
    return {"model": MODELS["gemini"], "contents": PROMPT, "config": config}


def _gemini_text(answer: Any) -> str:
    part = answer.candidates[0].content.parts[0]
    return json.dumps(part.function_call.args) if part.function_call else str(part.text)


def gemini(ask: Ask) -> str:
    client = _gemini_client(ask)
    try:
        return _gemini_text(client.models.generate_content(**_gemini_arguments(ask)))
    finally:
        client.close()


def gemini_pieces(ask: Ask) -> Iterator[str]:
    client = _gemini_client(ask)
    try:
        for answer in client.models.generate_content_stream(**_gemini_arguments(ask)):
            yield _gemini_text(answer)
    finally:
        client.close()


async def gemini_async(ask: Ask) -> str:
    client = _gemini_client(ask).aio
    try:
        return _gemini_text(await client.models.generate_content(**_gemini_arguments(ask)))
    finally:
        await client.aclose()


async def gemini_pieces_async(ask: Ask) -> AsyncIterator[str]:
    client = _gemini_client(ask).aio
    try:
        async for answer in await client.models.generate_content_stream(**_gemini_arguments(ask)):
            yield _gemini_text(answer)
    finally:
        await client.aclose()


WHOLE: dict[Api, Callable[[Ask], str]] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "gemini": gemini,
}
PIECES: dict[Api, Callable[[Ask], Iterator[str]]] = {
    "chat": chat_pieces,
    "responses": responses_pieces,
    "messages": messages_pieces,
    "gemini": gemini_pieces,
}
WHOLE_ASYNC: dict[Api, Callable[[Ask], Awaitable[str]]] = {
    "chat": chat_async,
    "responses": responses_async,
    "messages": messages_async,
    "gemini": gemini_async,
}
PIECES_ASYNC: dict[Api, Callable[[Ask], AsyncIterator[str]]] = {
    "chat": chat_pieces_async,
    "responses": responses_pieces_async,
    "messages": messages_pieces_async,
    "gemini": gemini_pieces_async,
}
