"""The conversation in a request body: its turns and rounds, whatever the API. Pure; ``shape`` asks.

A round begins with a turn of the user's that brings no tool's result, and goes on to the next such turn. Whoever drops
whole rounds from the oldest on never parts a tool's call from its result, and the roles go on in an order that the API
takes. Where a user's turn stands between a call and its result, both rounds are one. Turns of the system, and of the
developer, belong to no round: they stay wherever they stand.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mitmgate.dialects import prompt
from mitmgate.dialects.base import Json
from mitmgate.dialects.counts import obj, objs, text
from mitmgate.shape_text import Path

type Turn = dict[str, Any]
type Kind = Literal["system", "user", "result", "other"]
"""Whose turn it is: ``other`` is the model's."""


# -- how each API writes a conversation -------------------------------------------------------------------------------


def _plain(role: str, said: str) -> Turn:
    return {"role": role, "content": said}


def _in_parts(role: str, said: str) -> Turn:
    return {"role": "model" if role == "assistant" else role, "parts": [{"text": said}]}


def _in_blocks(role: str, said: str) -> Turn:
    return {"role": role, "content": [{"text": said}]}


@dataclass(frozen=True, slots=True)
class Wire:
    """How one API writes a conversation."""

    name: str
    turns: str | None
    """Member that has the list of turns; None where there is no conversation."""
    output: tuple[Path, ...]
    """Where the most tokens of an answer may be set; the first is where a request that has none gets it."""
    system: tuple[str, ...] = ()
    """Members that have the system's words, where these are no turns."""
    turn: Callable[[str, str], Turn] = _plain
    """Writes a turn: role (``user`` or ``assistant``) and text."""


MAX_TOKENS: Path = ("max_tokens",)
MAX_COMPLETION_TOKENS: Path = ("max_completion_tokens",)
GEMINI_OUTPUT: tuple[Path, ...] = tuple(
    (config, name)
    for config in ("generationConfig", "generation_config")
    for name in ("maxOutputTokens", "max_output_tokens")
)
CONVERSE_OUTPUT: tuple[Path, ...] = (("inferenceConfig", "maxTokens"), ("inferenceConfig", "max_new_tokens"))

CHAT = Wire("chat", "messages", (MAX_TOKENS, MAX_COMPLETION_TOKENS))
COMPLETIONS = Wire("completions", None, (MAX_TOKENS,))
RESPONSES = Wire("responses", "input", (("max_output_tokens",),), ("instructions",))
MESSAGES = Wire("messages", "messages", (MAX_TOKENS,), ("system",))
GEMINI = Wire("gemini", "contents", GEMINI_OUTPUT, ("systemInstruction", "system_instruction"), _in_parts)
CONVERSE = Wire("converse", "messages", CONVERSE_OUTPUT, ("system",), _in_blocks)
COHERE = Wire("cohere", "messages", (MAX_TOKENS,))
OLLAMA = Wire("ollama", "messages", (("options", "num_predict"),))
OLLAMA_GENERATE = Wire("ollama generate", None, (("options", "num_predict"),))

BY_DIALECT: Mapping[str, Wire] = {
    "openai.chat": CHAT,
    "openai.completions": COMPLETIONS,
    "openai.responses": RESPONSES,
    "anthropic.messages": MESSAGES,
    "gemini.generate": GEMINI,
}
BY_PATH: tuple[tuple[re.Pattern[str], Wire], ...] = (
    (re.compile(r"/model/[^/]+/converse(?:-stream)?$|/model/[^/]*amazon\.nova[^/]*/invoke"), CONVERSE),
    (re.compile(r"/v2/chat$"), COHERE),
    (re.compile(r"/api/chat$"), OLLAMA),
    (re.compile(r"/api/generate$"), OLLAMA_GENERATE),
)
"""Of APIs that the dialect does not tell apart. Nova's own API on Bedrock is like Converse."""
INVOKE = re.compile(r"/model/[^/]+/invoke(?:-with-response-stream)?$")
"""Bedrock's path for a model's own API, which the body tells."""


def wire_of(dialect: str, path: str, body: dict[str, Any]) -> Wire | None:
    """Return the wire of a request; None where nobody here knows its turns."""
    if wire := BY_DIALECT.get(dialect):
        return wire
    path = path.partition("?")[0].rstrip("/")
    if INVOKE.search(path) and text(body.get("anthropic_version")).startswith("bedrock"):
        return MESSAGES
    return next((wire for pattern, wire in BY_PATH if pattern.search(path)), None)


# -- one conversation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Talk:
    """The conversation in one request."""

    wire: Wire
    whole: dict[str, Any]
    """The request's body."""
    root: tuple[str, ...]
    """Way to the object in it that has the wire's members: one step, or none."""
    body: dict[str, Any]
    """That object."""
    turns: list[Turn]
    """Empty where there is no list of them."""
    rounds: list[list[int]]
    """Indices of turns, the oldest round first; the system's turns are in none."""

    @property
    def at(self) -> Path:
        """The way to the list of turns."""
        return (*self.root, self.wire.turns) if self.wire.turns else self.root

    def saying(self, turns: Sequence[Turn]) -> Json:
        """Return the whole body as it would be with *turns* in place of its own."""
        body = {**self.body, self.wire.turns: turns} if self.wire.turns else self.body
        return {**self.whole, self.root[0]: body} if self.root else body

    def only(self, indices: Iterable[int]) -> Json:
        """Return a body that has the turns at *indices*, and nothing else."""
        return {self.wire.turns: [self.turns[index] for index in indices]}

    def dropped(self, count: int) -> set[int]:
        """Return the indices of the turns in the *count* oldest rounds."""
        return {index for indices in self.rounds[:count] for index in indices}

    def size_of(self, indices: Iterable[int]) -> int:
        """Return about how many tokens the turns at *indices* are."""
        return prompt.measure([self.turns[index] for index in indices])[1]


def talk_of(dialect: str, path: str, body: Json) -> Talk | None:
    """Return the conversation in *body*, a request to *path*; None where its API is not known well enough."""
    outer = obj(body)
    wire = wire_of(dialect, path, outer)
    if wire is None:
        return None
    # Gemini's clients for code put the whole request into a member of that name.
    root = ("request",) if wire is GEMINI and isinstance(outer.get("request"), dict) else ()
    talk = Talk(wire, outer, root, outer["request"] if root else outer, [], [])
    turns = talk.body.get(wire.turns) if wire.turns else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return talk
    return replace(talk, turns=turns, rounds=rounds_of(turns))


# -- turns and rounds -------------------------------------------------------------------------------------------------


def kind_of(turn: Turn) -> Kind:
    role = turn.get("role")
    if role in ("system", "developer"):
        return "system"
    if _is_result(turn):
        return "result"
    if role == "user" or (role is None and "parts" in turn):  # Gemini takes a turn without a role for the user's
        return "user"
    return "other"


def rounds_of(turns: Sequence[Turn]) -> list[list[int]]:
    """Return the rounds of *turns*, as indices."""
    rounds: list[list[int]] = []
    answered_at = _answered_at(turns)
    open_until = -1
    for index, turn in enumerate(turns):
        kind = kind_of(turn)
        if kind == "system":
            continue
        if not rounds or (kind == "user" and open_until < index):
            rounds.append([])
        rounds[-1].append(index)
        open_until = max(open_until, answered_at[index])
    return rounds


def _answered_at(turns: Sequence[Turn]) -> list[int]:
    """Return for each turn the index at which the last of its calls is answered; its own where it has none."""
    answered_at = list(range(len(turns)))
    asked_at: dict[str, int] = {}
    for index, turn in enumerate(turns):
        for call in _results(turn):
            if call in asked_at:
                answered_at[asked_at[call]] = index
        for call in _calls(turn):
            asked_at[call] = index  # some hosts count their calls anew in each round: the nearest is meant
    return answered_at


RESULT_ROLES = frozenset({"tool", "function"})
RESULT_TYPES = ("_output", "_response")
"""How the types of Responses' items end that answer a call."""
RESULT_PARTS = frozenset({"toolResult", "functionResponse", "function_response"})
"""Members of a part of a turn: Converse, Gemini."""


def _is_result(turn: Turn) -> bool:
    if text(turn.get("role")) in RESULT_ROLES or text(turn.get("type")).endswith(RESULT_TYPES):
        return True
    return any(part.get("type") == "tool_result" or RESULT_PARTS & part.keys() for part in _parts(turn))


def _parts(turn: Turn) -> Iterable[dict[str, Any]]:
    yield from objs(turn.get("content"))
    yield from objs(turn.get("parts"))


def _calls(turn: Turn) -> Iterator[str]:
    """Yield the ids of the tool calls in *turn*."""
    found: list[Json] = [call.get("id") for call in objs(turn.get("tool_calls"))]
    kind = text(turn.get("type"))
    if kind.endswith("_call"):
        found.append(turn.get("call_id"))
    if kind == "mcp_approval_request":
        found.append(turn.get("id"))
    for part in _parts(turn):
        if part.get("type") == "tool_use":
            found.append(part.get("id"))
        found += [obj(part.get(name)).get("id") for name in ("functionCall", "function_call")]
        found.append(obj(part.get("toolUse")).get("toolUseId"))
    return (one for one in found if isinstance(one, str))


def _results(turn: Turn) -> Iterator[str]:
    """Yield the ids of the tool calls that *turn* answers."""
    found: list[Json] = [turn.get("tool_call_id"), turn.get("approval_request_id")]
    if text(turn.get("type")).endswith(RESULT_TYPES):
        found.append(turn.get("call_id"))
    for part in _parts(turn):
        if part.get("type") == "tool_result":
            found.append(part.get("tool_use_id"))
        found += [obj(part.get(name)).get("id") for name in ("functionResponse", "function_response")]
        found.append(obj(part.get("toolResult")).get("toolUseId"))
    return (one for one in found if isinstance(one, str))


# -- texts ------------------------------------------------------------------------------------------------------------

TEXT_PARTS = frozenset({None, "text", "input_text", "output_text", "tool_result"})
"""Types of the parts of a turn that hold text, or more such parts."""
DEPTH = 8


def texts_of(turn: Turn) -> Iterator[tuple[Path, str]]:
    """Yield the texts in *turn*, tool results among them, each with the way to it."""
    for name in ("content", "parts", "output"):
        yield from _texts(turn.get(name), (name,), DEPTH)


def system_texts(talk: Talk) -> Iterator[str]:
    """Yield what the system says outside of the turns."""
    for name in talk.wire.system:
        value = talk.body.get(name)
        if isinstance(value, dict):  # Gemini's is a turn
            yield from (said for _, said in texts_of(value))
        else:
            yield from (said for _, said in _texts(value, (name,), DEPTH))


def _texts(value: Json, at: Path, depth: int) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, list) and depth:
        for index, part in enumerate(value):
            yield from _texts(part, (*at, index), depth - 1)
    elif isinstance(value, dict) and depth and _is_text(value):
        for name in ("text", "content", "toolResult"):
            yield from _texts(value.get(name), (*at, name), depth - 1)


def _is_text(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return (kind is None or (isinstance(kind, str) and kind in TEXT_PARTS)) and not part.get("thought")
