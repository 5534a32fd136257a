"""Which calls a cheaper model cannot take over, because they are bound to the one they name. Pure; ``budget`` asks.

A conversation may carry what only its own model can read (``seals``). A tool may be one that the provider runs or has
defined for some of its models, unlike the functions that an app describes itself. Sent to another model, either is an
error at best.
"""

from collections.abc import Callable
from typing import Any

from mitmgate.exchange import Exchange
from mitmgate.seals import seal_of, thread_of
from mitmgate.usage import is_signed

WRITES = frozenset({"chat", "text_completion", "generate_content"})
"""Operations that one model can do as well as another; an embedding of another model is worth nothing."""

OWN_TOOLS = frozenset({"function", "custom"})
"""Types of tools that an app describes itself, where a tool has a type."""

OWN_FORMS = frozenset({"name", "function", "functionDeclarations", "function_declarations", "toolSpec"})
"""How such a tool is written where it has none."""


def bound(x: Exchange, *, to_other_model: bool) -> str | None:
    """Return why *x* has to stay with the model and at the place that it names; None where it need not.

    The words end the sentence "… does not downgrade this call: …".
    """
    if is_signed(x):
        return "its body is signed"
    if x.streamed_upload:
        return "its body is still on its way"
    if x.legs:
        return "it brings its own list of places"
    if not to_other_model:
        return None
    if x.operation not in WRITES:
        return f"no other model can do its {x.operation}"
    if not isinstance(x.json, dict):
        return "its body cannot be read"
    return next((why for says in BINDINGS if (why := says(x.json))), None)


def tool_of(body: dict[str, Any]) -> str | None:
    """Return which tool of *body* not every model has; None where there is none."""
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        kind = tool.get("type") or (None if OWN_FORMS & tool.keys() else next(iter(tool), None))
        if isinstance(kind, str) and kind not in OWN_TOOLS:
            return f"its tool {kind[:64]} is the provider's own"
        if "model" in tool:
            return "one of its tools names a model"
    return None


BINDINGS: tuple[Callable[[dict[str, Any]], str | None], ...] = (thread_of, tool_of, seal_of)
"""Cheapest first."""
