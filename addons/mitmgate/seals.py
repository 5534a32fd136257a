"""What a conversation carries that its own model or its own provider alone can read. Pure.

Thinking that is signed or encrypted, or a thread that lies at the provider: whoever changes such a conversation, or
takes it elsewhere, breaks it. A tool's arguments and results are the app's own and may look like anything.
"""

from typing import Any

from mitmgate.dialects.base import Json

THREADS = ("previous_response_id", "conversation")
"""Of OpenAI's Responses: what came before lies at the provider."""

SIGNED = ("signature", "thoughtSignature", "thought_signature", "encrypted_content", "redactedContent")
"""Members by which a provider seals its thinking: Anthropic, Gemini, Gemini as OpenAI, Responses, Bedrock."""

SEALED_TYPES = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning.encrypted", "item_reference"})
"""Types of what only its own model, or its provider, can read: Anthropic, Responses, OpenRouter."""

OWN_VALUES = frozenset({"arguments", "args", "input", "functionResponse", "toolResult"})
"""Members that hold what an app or its tools have said, whatever it looks like."""

MOST_NODES = 200_000
"""A body with more values is not searched to its end, and counts as sealed."""


def thread_of(body: dict[str, Any]) -> str | None:
    """Return why *body* is but a part of a conversation; None where it is the whole."""
    found = next((name for name in THREADS if body.get(name)), None)
    return f"its {found} lies at its provider" if found else None


def seal_of(body: dict[str, Any]) -> str | None:
    """Return which seal was found in what was said before; None where there is none."""
    rest: list[Json] = [body.get(name) for name in ("messages", "input", "contents")]
    seen = 0
    while rest:
        node = rest.pop()
        seen += 1
        if seen > MOST_NODES:
            return "it is too large to be searched for signatures"
        if isinstance(node, list):
            rest += node
        elif isinstance(node, dict):
            if _is_sealed(node):
                return "it carries signed thinking of its model"
            rest += [value for name, value in node.items() if name not in OWN_VALUES and isinstance(value, dict | list)]
    return None


def _is_sealed(node: dict[str, Any]) -> bool:
    if node.get("type") in SEALED_TYPES:
        return True
    return any(isinstance(node.get(name), str) and node[name] for name in SIGNED)
