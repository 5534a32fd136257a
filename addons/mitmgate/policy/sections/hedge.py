"""``hedge``: a list of rules; the first that matches says when a second attempt starts beside a slow one, and where."""

import re
from typing import Any

from mitmgate.policy import units
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, listed, percent, positive, scalar
from mitmgate.policy.sections.places import target
from mitmgate.policy.sections.rules import rule, unique_names
from mitmgate.policy.values import Hedge

PERCENTILE = re.compile(r"p([5-9][0-9])")


def _read_after(node: Node, _: Context) -> float | int:
    """Return seconds as a float, a percentile as a whole number."""
    raw = scalar(node, "a time, or p50 to p99")
    if found := PERCENTILE.fullmatch(raw):
        return int(found[1])
    if raw.startswith("p"):
        raise node.wrong(f"{raw!r} is not a percentile; it takes p50 to p99, or a time such as 800 ms")
    try:
        return float(units.time(raw))
    except ValueError as e:
        raise node.wrong(str(e)) from e


def _show_after(after: float | int) -> str:
    return f"p{after}" if isinstance(after, int) else units.show_time(after)


def _hedge(after: float | int, **more: Any) -> Hedge:
    is_percentile = isinstance(after, int)
    return Hedge(after_s=None if is_percentile else after, percentile=int(after) if is_percentile else 95, **more)


_rule = rule(
    _hedge,
    {
        "after": Key(Form(_read_after, _show_after), required=True),
        "to": Key(target, required=True),
        "ratio": Key(positive(percent)),
    },
)

form: Form[tuple[Hedge, ...]] = unique_names(listed(_rule))
