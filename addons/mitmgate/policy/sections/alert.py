"""``alert``: a list of rules; every one that is breached tells somebody, once, and once more when it is over."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import match, units
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    did_you_mean,
    listed,
    listing,
    not_empty,
    one_of,
    positive,
    record,
    reference,
    scalar,
    text,
    time,
    whole,
)
from mitmgate.policy.sections.rules import rule, unique_names
from mitmgate.policy.values import Alert, When

ABOVE = re.compile(r">\s*([^\s>=<].*)")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
ANY_BREAKER = "open"


# -- figures ----------------------------------------------------------------------------------------------------------


def _figure(read: Callable[[str], float], show: Callable[[float], str], example: str) -> Form[float]:
    """A figure that is too much from somewhere on: ``> 5 %``."""

    def read_above(node: Node, _: Context) -> float:
        raw = scalar(node, f'a comparison such as "> {example}"')
        found = ABOVE.fullmatch(raw)
        if found is None:
            raise node.wrong(f'{raw!r} is not a comparison; write it like "> {example}"')
        try:
            return read(found[1])
        except ValueError as e:
            raise node.wrong(str(e)) from e

    return Form(read_above, lambda above: f"> {show(above)}")


def _reachable_percent(said: str) -> float:
    share = units.percent(said)
    if share == 1:
        raise ValueError("no share is more than 100 %, so nobody would ever be told")
    return share


_share = _figure(_reachable_percent, units.show_percent, "5 %")
_milliseconds = _figure(lambda said: units.time(said) * 1000, lambda ms: units.show_time(ms / 1000), "3 s")
_nanousd = _figure(units.money, lambda nanousd: units.show_money(round(nanousd)), "10 USD")


# -- subjects ---------------------------------------------------------------------------------------------------------


def _read_budget(node: Node, context: Context) -> str:
    name = text.read(node, context)
    if name not in context.budgets:
        known = f"; budgets are {listing(context.budgets, 'and')}" if context.budgets else "; the file has no budget"
        raise node.wrong(f"no budget {name!r}{did_you_mean(name, context.budgets) or known}")
    return name


def _read_breaker(node: Node, context: Context) -> str | None:
    """Return the target whose breaker it is, None for any."""
    name = text.read(node, context)
    if name == ANY_BREAKER:
        return None
    if name not in context.targets:
        known = (ANY_BREAKER, *context.targets)
        hint = did_you_mean(name, known) or f"; it takes {listing(known)}"
        raise node.wrong(f"no target {name!r}{hint}")
    return name


# -- when -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watched:
    """A condition: what it watches, and what may stand beside it."""

    watch: str
    form: Form[Any]
    into: str
    """The field of ``When``."""
    beside: tuple[str, ...]


CONDITIONS: Mapping[str, Watched] = {
    "budget": Watched("budget", Form(_read_budget, lambda name: name), "subject", ("at",)),
    "breaker": Watched("breaker", Form(_read_breaker, lambda name: name or ANY_BREAKER), "subject", ()),
    "error_rate": Watched("error_rate", _share, "above", ("over", "per", "min_requests")),
    "interrupted": Watched("interrupted", _share, "above", ("over", "per", "min_requests")),
    "p95": Watched("p95_ms", _milliseconds, "above", ("over", "per", "min_requests")),
    "spend": Watched("spend", _nanousd, "above", ("over", "per")),
}

BESIDE: Mapping[str, Key] = {
    "at": Key(one_of("soft", "downgrade", "hard")),
    "over": Key(positive(time), "over_s"),
    "per": Key(listed(match.field_name)),
    "min_requests": Key(whole(1, 1_000_000)),
}

_said: Form[dict[str, Any]] = record(dict, {**{name: Key(one.form) for name, one in CONDITIONS.items()}, **BESIDE})


def _read_when(node: Node, context: Context) -> When:
    said = _said.read(node, context)
    conditions = [name for name in CONDITIONS if name in said]
    if len(conditions) != 1:
        has = listing(conditions, "and") if conditions else "none"
        raise node.wrong(f"it takes one of {listing(CONDITIONS, 'and')}; this one has {has}")
    [name] = conditions
    faults = [*_out_of_place(node, name), *_never_reached(node, said, context)]
    if faults:
        raise PolicyError(faults)
    watched = CONDITIONS[name]
    beside = {key: value for key, value in said.items() if key not in CONDITIONS}
    fields = {"watch": watched.watch, watched.into: said[name], **beside}
    return When(**fields)


def _out_of_place(node: Node, name: str) -> Iterator[Fault]:
    for key, one in node.under.items():
        if key != name and key not in CONDITIONS[name].beside:
            yield one.fault(f"it does not go with {name}")


def _never_reached(node: Node, said: Mapping[str, Any], context: Context) -> Iterator[Fault]:
    """Yield a fault for a step that the budget does not have."""
    if "budget" not in said:
        return
    at = said.get("at")
    if at is None:
        yield Fault(node.path, node.line, f"{node.key}.at", "it is missing; it takes soft, downgrade or hard")
    elif at != "hard" and at not in context.budgets[said["budget"]].under:
        yield node.under["at"].fault(f"the budget {said['budget']!r} has no {at}")


def _show_when(when: When) -> dict[str, Any]:
    name, watched = next((name, one) for name, one in CONDITIONS.items() if one.watch == when.watch)
    beside = {key: BESIDE[key].form.show(getattr(when, BESIDE[key].into or key)) for key in watched.beside}
    return {name: watched.form.show(getattr(when, watched.into)), **beside}


# -- a rule -----------------------------------------------------------------------------------------------------------


def _read_address(node: Node, context: Context) -> str:
    address = reference.read(node, context)
    if not ADDRESS.fullmatch(address):
        raise node.wrong(f"what {node.raw} holds is not an address, such as https://hooks.example.com/…")
    return address


_rule = rule(
    Alert,
    {
        "when": Key(Form(_read_when, _show_when), required=True),
        "to": Key(not_empty(Form(_read_address, reference.show), "env:NAME of at least one address"), required=True),
    },
)


def _read_rule(node: Node, context: Context) -> Alert:
    alert = _rule.read(node, context)
    faults = list(_unseen(node, alert.when, context))
    if faults:
        raise PolicyError(faults)
    return alert


def _unseen(node: Node, when: When, context: Context) -> Iterator[Fault]:
    """Yield a fault for each field that is in no row, or that the budget is not counted apart by."""
    per = node.under["when"].get("per")
    fields = {one.key: (one.raw, one) for one in (per.items if per is not None else ())}
    for side in ("match", "unless"):
        below = node.get(side)
        fields |= {one.key: (name, one) for name, one in (below.under if below is not None else {}).items()}
    for name, one in fields.values():
        if name.startswith(("header.", "body.")):
            yield one.fault(f"{name} is in no row, and an alert looks at rows; tag the calls and write metadata.NAME")
        elif when.watch == "budget" and name not in _counted_apart(context.budgets[str(when.subject)]):
            yield one.fault(f"the budget {when.subject!r} is not counted apart by {name}; add it to its per")


def _counted_apart(budget: Node) -> list[str]:
    per = budget.get("per")
    return [one.raw for one in per.items] if per is not None else []


form: Form[tuple[Alert, ...]] = unique_names(listed(Form(_read_rule, _rule.show)))
