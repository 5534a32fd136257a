"""``state``: where counters, budgets, the cache and breakers are kept: in this machine, whatever its workers."""

from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, not_one_of, scalar


def _read(node: Node, _: Context) -> str:
    raw = scalar(node, "memory")
    if "://" in raw:
        raise node.wrong("this version shares nothing between machines; write memory, and run one gateway")
    if raw != "memory":
        raise node.wrong(not_one_of(raw, ("memory",)))
    return raw


form: Form[str] = Form(_read, lambda state: state)
