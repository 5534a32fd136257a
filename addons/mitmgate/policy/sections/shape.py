"""``shape``: a list of rules; the first that matches makes a request shorter or cheaper before it leaves."""

from collections.abc import Callable, Mapping
from typing import Any

from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    did_you_mean,
    listed,
    listing,
    optional,
    record,
    scalar,
    text,
    whole,
)
from mitmgate.policy.sections.places import target
from mitmgate.policy.sections.rules import matches_all, reachable, rule, unique_names
from mitmgate.policy.values import Change, KeepLast, MaxOutput, Shape, Summarize

CHANGES: Mapping[str, Callable[[Any], Change]] = {
    "keep_last": KeepLast,
    "max_output_tokens": MaxOutput,
    "summarize": lambda summarize: summarize,
}
"""Those that have a value of their own; the form below reads it."""

TAKES = listing(("mark_cacheable", "dedupe", *(f"{{{name}: …}}" for name in CHANGES)))

_tokens = whole(1, 100_000_000)
"""More than any model takes."""

_summarize = record(
    Summarize,
    {
        "keep_last": Key(_tokens, required=True),
        "with": Key(target, "target", required=True),
        "model": Key(optional(text)),
    },
)

_changes: Form[dict[str, Any]] = record(
    dict,
    {
        "keep_last": Key(_tokens),
        "max_output_tokens": Key(_tokens),
        "summarize": Key(_summarize),
    },
)


def _read_then(node: Node, context: Context) -> Any:
    if isinstance(node.value, dict):
        return _read_change(node, context)
    word = scalar(node, TAKES)
    if word == "mark_cacheable" or word == "dedupe":
        return word
    if word in CHANGES:
        raise node.wrong(f"{word} needs a value: {{{word}: …}}")
    hint = did_you_mean(word, ("mark_cacheable", "dedupe", *CHANGES)) or f"; it takes {TAKES}"
    raise node.wrong(f"{word!r} is not known{hint}")


def _read_change(node: Node, context: Context) -> Change:
    said = _changes.read(node, context)
    if len(said) != 1:
        has = listing(said, "and") if said else "none"
        raise node.wrong(f"a rule makes one change: {TAKES}; this one has {has}")
    [(name, value)] = said.items()
    return CHANGES[name](value)


def _show_then(then: Change) -> Any:
    match then:
        case KeepLast(tokens):
            return {"keep_last": tokens}
        case MaxOutput(tokens):
            return {"max_output_tokens": tokens}
        case Summarize():
            return {"summarize": _summarize.show(then)}
        case word:
            return word


_rule = rule(Shape, {"then": Key(Form(_read_then, _show_then), required=True)})

form: Form[tuple[Shape, ...]] = unique_names(reachable(listed(_rule), matches_all))
