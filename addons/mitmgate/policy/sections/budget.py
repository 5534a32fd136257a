"""``budget``: a list of rules, each over money in a time; every one that matches has to have room.

Below the whole there may be two steps: ``soft``, which is told and changes nothing, and ``downgrade``, which sends
calls to a cheaper place instead of refusing them.
"""

from typing import Any

from mitmgate.policy import match, units
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    listed,
    money,
    one_of,
    optional,
    percent,
    positive,
    record,
    scalar,
    text,
)
from mitmgate.policy.sections.places import target
from mitmgate.policy.sections.rules import every, rule, unique_names
from mitmgate.policy.values import Budget, Downgrade

# -- downgrade --------------------------------------------------------------------------------------------------------

_place: Form[dict[str, str]] = record(dict, {"model": Key(text), "target": Key(target)})


def _read_place(node: Node, context: Context) -> dict[str, str]:
    place = _place.read(node, context)
    if len(place) != 1:
        said = "both" if place else "neither"
        raise node.wrong(f"it takes either {{model: NAME}} or {{target: NAME}}; this one has {said}")
    return place


_steps: Form[dict[str, Any]] = record(
    dict,
    {
        "at": Key(positive(percent), required=True),
        "to": Key(Form(_read_place, dict), required=True),
    },
)


def _read_downgrade(node: Node, context: Context) -> Downgrade:
    step = _steps.read(node, context)
    return Downgrade(at=step["at"], **step["to"])


def _show_downgrade(downgrade: Downgrade) -> dict[str, Any]:
    to = {"model": downgrade.model} if downgrade.model is not None else {"target": downgrade.target}
    return {"at": percent.show(downgrade.at), "to": to}


# -- unpriced ---------------------------------------------------------------------------------------------------------


def _read_unpriced(node: Node, context: Context) -> str | int:
    raw = scalar(node, "refuse, allow, or assume 0.01 USD")
    word, _, amount = raw.partition(" ")
    if word != "assume":
        return str(one_of("refuse", "allow", "assume 0.01 USD").read(node, context))
    try:
        nanousd = units.money(amount)
    except ValueError as e:
        raise node.wrong(str(e)) from e
    if nanousd == 0:
        raise node.wrong("assume 0 USD would be the same as allow; write that")
    return nanousd


def _show_unpriced(unpriced: str | int) -> str:
    return unpriced if isinstance(unpriced, str) else f"assume {units.show_money(unpriced)}"


# -- a rule -----------------------------------------------------------------------------------------------------------

_rule = rule(
    Budget,
    {
        "per": Key(listed(match.field_name)),
        "cost": Key(positive(money), "cost_nanousd", required=True),
        "every": Key(every, required=True),
        "soft": Key(optional(positive(percent))),
        "downgrade": Key(optional(Form(_read_downgrade, _show_downgrade))),
        "hard": Key(one_of("refuse", "record")),
        "unpriced": Key(Form(_read_unpriced, _show_unpriced)),
    },
)


def _read_rule(node: Node, context: Context) -> Budget:
    budget = _rule.read(node, context)
    if budget.downgrade and budget.soft and budget.downgrade.at < budget.soft:
        at, soft = percent.show(budget.downgrade.at), percent.show(budget.soft)
        said = node.under["downgrade"].under["at"]
        raise said.wrong(f"calls would be downgraded at {at}, before soft says anything at {soft}")
    return budget


form: Form[tuple[Budget, ...]] = unique_names(listed(Form(_read_rule, _rule.show)))


def named(root: Node) -> dict[str, Node]:
    """Return the rules of the file by name, as far as it can be read."""
    section = root.get("budget")
    rules = section.items if section is not None else ()
    return {name.raw: rule for rule in rules if (name := rule.get("name")) is not None}
