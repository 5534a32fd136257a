"""``timeout``: one mapping, or a list of them with a ``match`` each; the first that matches acts.

The value always ends with a rule that matches everything (the defaults, where the file has none), so that every request
finds one.
"""

from typing import Any

from mitmgate.errors import PolicyError
from mitmgate.policy import match
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, listed, or_none, positive, record, time
from mitmgate.policy.values import Timeout

_phase = or_none(positive(time))

_rule = record(
    Timeout,
    {
        "match": Key(match.form()),
        "unless": Key(match.form()),
        "connect": Key(_phase, "connect_s"),
        "first_byte": Key(_phase, "first_byte_s"),
        "idle": Key(_phase, "idle_s"),
        "total": Key(_phase, "total_s"),
    },
)
_rules = listed(_rule)


def _matches_all(rule: Timeout) -> bool:
    return not (rule.match and rule.match.says) and rule.unless is None


def _read(node: Node, context: Context) -> tuple[Timeout, ...]:
    rules = _rules.read(node, context)
    if not rules or not any(map(_matches_all, rules)):
        return (*rules, Timeout())
    last = next(n for n, rule in enumerate(rules) if _matches_all(rule))
    if isinstance(node.value, list) and last < len(rules) - 1:
        never, all_of = node.value[last + 1], node.value[last]
        text = f"this rule never acts: the one on line {all_of.line} matches every request; move it to the end"
        raise PolicyError([never.fault(text)])
    return rules


def _show(rules: tuple[Timeout, ...]) -> Any:
    return _rule.show(rules[0]) if len(rules) == 1 else _rules.show(rules)


form: Form[tuple[Timeout, ...]] = Form(_read, _show)
