"""Long conversations with tool calls, as each API writes them: what rules that shorten prompts are tried on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mitmgate import dialects
from mitmgate.dialects.base import Dialect
from mitmgate.providers import Hosts
from mitmgate.shape_turns import Talk, talk_of

type Body = dict[str, Any]

SYSTEM = "You help with travel. Be brief."
PROSE = "the road goes ever on and on down from the door where it began "
"""Counted by its bytes, not by its digits."""


def prose(tokens: int, beginning: str = "") -> str:
    """Return a text of about *tokens* tokens."""
    return (beginning + " " + PROSE * (tokens * 4 // len(PROSE) + 1))[: max(tokens * 4, len(beginning))]


@dataclass(frozen=True)
class Round:
    """A question of the user's and its answer, with the tool calls between them."""

    n: int
    tokens: int = 100
    """Of the question."""
    tools: int = 0
    """Calls, one after the other."""
    answered: bool = True
    says: str = ""
    """The question, where it is not one made up."""

    @property
    def question(self) -> str:
        return self.says or prose(self.tokens, f"Question {self.n}:")

    @property
    def answer(self) -> str:
        return f"Answer {self.n}."

    @property
    def calls(self) -> list[str]:
        """Ids, each used by a call and by its result."""
        return [f"call_{self.n}_{at}" for at in range(self.tools)]


def rounds(count: int, tokens: int = 100, tools: int = 0) -> list[Round]:
    """Return *count* rounds, of which the last has no answer yet."""
    return [Round(n, tokens, tools, answered=n < count) for n in range(1, count + 1)]


ARGUMENTS = {"city": "Oslo", "limit": 1.0}


def chat(said: Sequence[Round], **more: Any) -> Body:
    turns: list[Any] = [{"role": "system", "content": SYSTEM}]
    for one in said:
        turns.append({"role": "user", "content": one.question})
        for call in one.calls:
            function = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
            turns.append({"role": "assistant", "content": None, "tool_calls": [_call(call, function)]})
            turns.append({"role": "tool", "tool_call_id": call, "content": f"sunny in round {one.n}"})
        turns += [{"role": "assistant", "content": one.answer}] if one.answered else []
    return {"model": "gpt-4o", "messages": turns, **more}


def _call(call: str, function: Body) -> Body:
    return {"id": call, "type": "function", "function": function}


def responses(said: Sequence[Round], **more: Any) -> Body:
    turns: list[Any] = []
    for one in said:
        turns.append({"role": "user", "content": [{"type": "input_text", "text": one.question}]})
        for call in one.calls:
            made = {"type": "function_call", "call_id": call, "name": "weather", "arguments": json.dumps(ARGUMENTS)}
            turns += [made, {"type": "function_call_output", "call_id": call, "output": f"sunny in round {one.n}"}]
        turns += [{"role": "assistant", "content": one.answer}] if one.answered else []
    return {"model": "gpt-4o", "instructions": SYSTEM, "input": turns, **more}


def messages(said: Sequence[Round], **more: Any) -> Body:
    turns: list[Any] = []
    for one in said:
        turns.append({"role": "user", "content": one.question})
        for call in one.calls:
            made = {"type": "tool_use", "id": call, "name": "weather", "input": ARGUMENTS}
            result = {"type": "tool_result", "tool_use_id": call, "content": f"sunny in round {one.n}"}
            turns += [{"role": "assistant", "content": [made]}, {"role": "user", "content": [result]}]
        turns += [{"role": "assistant", "content": [{"type": "text", "text": one.answer}]}] if one.answered else []
    return {"model": "claude-haiku-4-5", "max_tokens": 1000, "system": SYSTEM, "messages": turns, **more}


def gemini(said: Sequence[Round], **more: Any) -> Body:
    turns: list[Any] = []
    for one in said:
        turns.append({"role": "user", "parts": [{"text": one.question}]})
        for call in one.calls:
            made = {"id": call, "name": "weather", "args": ARGUMENTS}
            result = {"id": call, "name": "weather", "response": {"result": f"sunny in round {one.n}"}}
            turns.append({"role": "model", "parts": [{"functionCall": made}]})
            turns.append({"role": "user", "parts": [{"functionResponse": result}]})
        turns += [{"role": "model", "parts": [{"text": one.answer}]}] if one.answered else []
    return {"systemInstruction": {"parts": [{"text": SYSTEM}]}, "contents": turns, **more}


def converse(said: Sequence[Round], **more: Any) -> Body:
    turns: list[Any] = []
    for one in said:
        turns.append({"role": "user", "content": [{"text": one.question}]})
        for call in one.calls:
            made = {"toolUseId": call, "name": "weather", "input": ARGUMENTS}
            result = {"toolUseId": call, "content": [{"text": f"sunny in round {one.n}"}]}
            turns.append({"role": "assistant", "content": [{"toolUse": made}]})
            turns.append({"role": "user", "content": [{"toolResult": result}]})
        turns += [{"role": "assistant", "content": [{"text": one.answer}]}] if one.answered else []
    return {"system": [{"text": SYSTEM}], "messages": turns, **more}


def ollama(said: Sequence[Round], **more: Any) -> Body:
    turns: list[Any] = [{"role": "system", "content": SYSTEM}]
    for one in said:
        turns.append({"role": "user", "content": one.question})
        for call in one.calls:  # its calls have no ids: a name of the tool's own tells them apart here
            function = {"name": call, "arguments": ARGUMENTS}
            turns.append({"role": "assistant", "content": "", "tool_calls": [{"function": function}]})
            turns.append({"role": "tool", "tool_name": call, "content": f"sunny in round {one.n}"})
        turns += [{"role": "assistant", "content": one.answer}] if one.answered else []
    return {"model": "llama3.2", "messages": turns, **more}


@dataclass(frozen=True)
class Api:
    """An API that has conversations."""

    name: str
    host: str
    path: str
    write: Callable[..., Body]
    turns: str = "messages"
    """Member that has the list of turns."""

    def __str__(self) -> str:
        return self.name

    @property
    def dialect(self) -> Dialect:
        host, _, port = self.host.partition(":")
        found = dialects.find(Hosts().find(host, int(port or 443)), "POST", self.path)
        if found is None:
            raise LookupError(f"{self.name} generates nothing")
        return found

    def talk(self, body: Body) -> Talk:
        """Return the conversation in *body*."""
        found = talk_of(self.dialect.name, self.path, body)
        if found is None:
            raise LookupError(f"the turns of {self.name} are not known")
        return found


CHAT = Api("chat", "api.openai.com", "/v1/chat/completions", chat)
RESPONSES = Api("responses", "api.openai.com", "/v1/responses", responses, "input")
MESSAGES = Api("messages", "api.anthropic.com", "/v1/messages", messages)
GEMINI = Api(
    "gemini",
    "generativelanguage.googleapis.com",
    "/v1beta/models/gemini-2.5-flash:generateContent",
    gemini,
    "contents",
)
VERTEX = Api(
    "vertex",
    "us-central1-aiplatform.googleapis.com",
    "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-flash:streamGenerateContent",
    gemini,
    "contents",
)
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"
CONVERSE = Api("converse", BEDROCK, "/model/amazon.nova-lite-v1%3A0/converse", converse)
INVOKE = Api(
    "invoke",
    BEDROCK,
    "/model/anthropic.claude-haiku-4-5/invoke",
    lambda said, **more: messages(said, anthropic_version="bedrock-2023-05-31", **more),
)
COHERE = Api("cohere", "api.cohere.com", "/v2/chat", chat)
OLLAMA = Api("ollama", "localhost:11434", "/api/chat", ollama)

NOVA = Api("nova", BEDROCK, "/model/us.amazon.nova-micro-v1%3A0/invoke-with-response-stream", converse)

APIS = (CHAT, RESPONSES, MESSAGES, GEMINI, VERTEX, CONVERSE, INVOKE, NOVA, COHERE, OLLAMA)
