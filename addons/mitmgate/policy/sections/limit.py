"""``limit``: a list of rules, each over one count: requests or tokens in a time, or calls at once.

Every rule that matches has to have room, else the request is refused and spends nothing of any of them.
"""

from collections.abc import Iterator

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import match
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, listed, listing, optional, whole
from mitmgate.policy.sections.rules import every, rule, unique_names
from mitmgate.policy.values import Limit

COUNTS = ("requests", "tokens", "concurrent")

MOST = 10**15
"""Of a count: beyond it a counter could overflow its column."""

_count = optional(whole(1, MOST))

_rule = rule(
    Limit,
    {
        "per": Key(listed(match.field_name)),
        "requests": Key(_count),
        "tokens": Key(_count),
        "concurrent": Key(_count),
        "every": Key(every),
    },
)


def _read_rule(node: Node, context: Context) -> Limit:
    limit = _rule.read(node, context)
    faults = list(_impossible(node))
    if faults:
        raise PolicyError(faults)
    return limit


def _impossible(node: Node) -> Iterator[Fault]:
    counts = [name for name in COUNTS if name in node.under]
    if len(counts) != 1:
        said = listing(counts, "and") if counts else "none"
        yield node.fault(f"a rule counts one of {listing(COUNTS, 'and')}; this one has {said}")
    elif counts == ["concurrent"] and "every" in node.under:
        yield node.under["every"].fault("calls at once have no time; remove every, or count requests")
    elif counts != ["concurrent"] and "every" not in node.under:
        yield node.fault(f"{counts[0]} need a time: every: 1 m, or day, week or month")


form: Form[tuple[Limit, ...]] = unique_names(listed(Form(_read_rule, _rule.show)))
