"""Places as rules name them: a target, another model, or both, in a ``try`` or a ``split``."""

from collections.abc import Iterator
from typing import Any

from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    any_name,
    did_you_mean,
    entries,
    gather,
    listing,
    not_empty,
    number,
    optional,
    positive,
    record,
    text,
    time,
    whole,
)
from mitmgate.policy.values import Choice

MOST_ATTEMPTS = 10
"""At one place, whoever asks for them."""


def _read_target(node: Node, context: Context) -> str:
    name = text.read(node, context)
    if name not in context.targets:
        known = f"; targets are {listing(context.targets, 'and')}" if context.targets else "; the file has no targets"
        raise node.wrong(f"no target {name!r}{did_you_mean(name, context.targets) or known}")
    return name


target: Form[str] = Form(_read_target, lambda name: name)
"""The name of a target of the same file."""

_choice = record(
    Choice,
    {
        "target": Key(target),
        "model": Key(text),
        "timeout": Key(optional(positive(time)), "timeout_s"),
        "attempts": Key(whole(1, MOST_ATTEMPTS)),
    },
)


def _read_choice(node: Node, context: Context) -> Choice:
    if not isinstance(node.value, dict):
        return Choice(target=_read_target(node, context))
    choice = _choice.read(node, context)
    if choice.target is None and choice.model is None:
        raise node.wrong("it names no place: give it a target, a model, or both")
    return choice


def _show_choice(choice: Choice) -> Any:
    shown = _choice.show(choice)
    return choice.target if shown == {"target": choice.target} else shown


tries: Form[tuple[Choice, ...]] = not_empty(Form(_read_choice, _show_choice), "places")
"""Places in order."""


def _read_split(node: Node, context: Context) -> tuple[tuple[Choice, float], ...]:
    def read(name: str, one: Node) -> tuple[Choice, float]:
        any_name(one, name)
        weight = positive(number).read(one, context)
        return (Choice(target=name) if name in context.targets else Choice(model=name)), weight

    below = entries(node, "targets or models to weights")
    if not below:
        raise node.wrong("it is empty; it takes targets or models, each with its weight")
    return tuple(gather(below.items(), read).values())


def _show_split(split: tuple[tuple[Choice, float], ...]) -> dict[str, float]:
    return {str(choice.target or choice.model): weight for choice, weight in split}


split: Form[tuple[tuple[Choice, float], ...]] = Form(_read_split, _show_split)
"""Places with weights: a name is a target where the file has one of that name, else a model."""


def targets_in(way: Node, context: Context) -> Iterator[tuple[str, Node]]:
    """Yield the targets that ``try`` and ``split`` of *way* name, each with the node that names it.

    *way* is a rule or a branch that has been read without a fault.
    """
    below = entries(way, "ways")
    if "try" in below:
        for item in below["try"].items:
            said = item.value.get("target") if isinstance(item.value, dict) else item
            if said is not None:
                yield said.raw, said
    if "split" in below:
        weights = entries(below["split"], "weights")
        yield from ((name, node) for name, node in weights.items() if name in context.targets)
