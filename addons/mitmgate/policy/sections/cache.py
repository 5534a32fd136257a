"""``cache``: a list of rules; the first that matches says how long an answer is kept and who shares it."""

import re

from mitmgate.policy import match
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, listed, one_of, positive, text, time
from mitmgate.policy.sections.rules import rule, unique_names
from mitmgate.policy.values import Cache

BODY_FIELD = re.compile(r"[^.\s]+(?:\.[^.\s]+)*")


def _read_body_field(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    if not BODY_FIELD.fullmatch(raw):
        raise node.wrong(f"{raw!r} is no field of a body, such as user or metadata.user_id")
    return raw


_rule = rule(
    Cache,
    {
        "ttl": Key(positive(time), "ttl_s", required=True),
        "scope": Key(listed(match.field_name)),
        "stale_if_error": Key(time, "stale_if_error_s"),
        "replay": Key(one_of("at once", "live")),
        "ignore": Key(listed(Form(_read_body_field, lambda name: name))),
    },
    Cache(ttl_s=1.0).name,
)

form: Form[tuple[Cache, ...]] = unique_names(listed(_rule))
