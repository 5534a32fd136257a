"""What the lists of rules have in common: names, causes, and how one mapping stands for a list of one."""

from collections.abc import Callable, Mapping
from typing import Any

from mitmgate.errors import PolicyError
from mitmgate.policy import match, units
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    boolean,
    did_you_mean,
    listed,
    listing,
    not_one_of,
    optional,
    record,
    scalar,
    text,
)
from mitmgate.policy.values import Causes, Span

WORDS = ("4xx", "5xx", "connect", "timeout", "reset", "error_event")


def _read_name(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    if not raw.isprintable():
        raise node.wrong("it holds a line break or another character that cannot be printed")
    return raw


name: Form[str] = Form(_read_name, lambda name: name)
"""It goes into errors, rows and headers."""


def rule[T](build: Callable[..., T], keys: Mapping[str, Key], default_name: str = "") -> Form[T]:
    """A rule: *keys* beside those that every rule has. One without a *default_name* must be given a name."""
    common = {
        "name": Key(name, required=not default_name),
        "match": Key(match.form()),
        "unless": Key(match.form()),
        "shadow": Key(boolean),
    }
    form = record(build, {**common, **keys})

    def show(value: T) -> dict[str, Any]:
        """Leave out what nobody wrote."""
        shown = form.show(value)
        return {key: one for key, one in shown.items() if one is not False and (key, one) != ("name", default_name)}

    return Form(form.read, show)


def _read_cause(node: Node, _: Context) -> int | str:
    raw = scalar(node, "a status or a cause")
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        if not 400 <= node.value <= 599:
            raise node.wrong(f"{raw} is no status of an error; statuses are 400…599")
        return node.value
    if raw not in WORDS:
        hint = did_you_mean(raw, WORDS) or f"; it takes a status (400…599), {listing(WORDS)}"
        raise node.wrong(f"{raw!r} is not known{hint}")
    return raw


_causes = listed(Form(_read_cause, lambda cause: cause))


def _show_causes(values: Causes) -> list[int | str]:
    return sorted(values, key=lambda cause: (isinstance(cause, str), str(cause)))


causes: Form[Causes] = Form(lambda node, context: frozenset(_causes.read(node, context)), _show_causes)


CALENDAR = ("day", "week", "month")


def _read_every(node: Node, _: Context) -> Span:
    raw = scalar(node, "a time such as 1 h, or day, week or month")
    if raw.isalpha() and raw not in CALENDAR:
        raise node.wrong(not_one_of(raw, CALENDAR))
    try:
        every = units.span(raw)
    except ValueError as e:
        raise node.wrong(str(e)) from e
    if every == 0:
        raise node.wrong(f"{raw} is too little; it has to be more than zero")
    return every


every: Form[Span | None] = optional(Form(_read_every, units.show_span))
"""Of a counter: a time, which slides, or a unit of the calendar."""


def unique_names[T](form: Form[tuple[T, ...]]) -> Form[tuple[T, ...]]:
    """The same list of rules, but a name that stands twice is a fault."""

    def read(node: Node, context: Context) -> tuple[T, ...]:
        rules = form.read(node, context)
        names = [item.value["name"] for item in node.items if isinstance(item.value, dict) and "name" in item.value]
        first: dict[str, Node] = {}
        faults = []
        for name in names:
            other = first.setdefault(name.raw, name)
            if other is not name:
                faults.append(name.fault(f"the name {name.raw!r} stands twice; the other is on line {other.line}"))
        if faults:
            raise PolicyError(faults)
        return rules

    return Form(read, form.show)


def reachable[T](form: Form[tuple[T, ...]], matches_all: Callable[[T], bool]) -> Form[tuple[T, ...]]:
    """The same list of rules of which the first that matches acts, but one that never can is a fault."""

    def read(node: Node, context: Context) -> tuple[T, ...]:
        values = form.read(node, context)
        last = next((n for n, value in enumerate(values) if matches_all(value)), len(values) - 1)
        if last < len(values) - 1:
            never, all_of = node.items[last + 1], node.items[last]
            sentence = f"this rule never acts: the one on line {all_of.line} matches every request; move it to the end"
            raise never.wrong(sentence)
        return values

    return Form(read, form.show)


def first_matches[T](one: Form[T], matches_all: Callable[[T], bool], default: T | None) -> Form[tuple[T, ...]]:
    """One mapping, or a list of them of which the first that matches acts; ends with *default*, where there is one."""
    rules = reachable(listed(one), matches_all)

    def read(node: Node, context: Context) -> tuple[T, ...]:
        values = rules.read(node, context)
        if default is None or (values and matches_all(values[-1])):
            return values
        return (*values, default)

    def show(values: tuple[T, ...]) -> Any:
        return one.show(values[0]) if len(values) == 1 else rules.show(values)

    return Form(read, show)


def matches_all(rule: Any) -> bool:
    """Return whether *rule* acts on every request."""
    return not (rule.match and rule.match.says) and rule.unless is None and not getattr(rule, "shadow", False)
