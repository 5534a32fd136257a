"""``auth``: whoever comes through a door has to show a key of the gateway's own.

The keys are these, each in the environment, and those that ``mitmgate keys new`` made; ``auth: {}`` means those alone.
"""

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import units
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, listed, not_empty, optional, record, reference, text, unit, written
from mitmgate.policy.forms import Key as Entry
from mitmgate.policy.sections.rules import name, unique_names
from mitmgate.policy.values import Auth, Key

_key = record(
    Key,
    {
        "name": Entry(name, required=True),
        "key": Entry(reference, required=True),
        "tenant": Entry(optional(text)),
        "user": Entry(optional(text)),
        "models": Entry(written(not_empty(text, "globs of models (leave it out to allow all)"))),
        "expires": Entry(optional(unit(units.moment, units.show_moment, "2027-01-31"))),
    },
)

_keys = unique_names(listed(_key))


def _read_keys(node: Node, context: Context) -> tuple[Key, ...]:
    """Return the keys. One secret under two names would leave open who its bearer is."""
    keys = _keys.read(node, context)
    first: dict[str, Key] = {}
    faults: list[Fault] = []
    for key, item in zip(keys, node.items, strict=True):
        other = first.setdefault(key.key, key)
        if other is not key:
            faults.append(item.under["key"].fault(f"it is the key of {other.name!r}, too; each has to have its own"))
    if faults:
        raise PolicyError(faults)
    return keys


_auth = record(Auth, {"keys": Entry(Form(_read_keys, _keys.show))})

form: Form[Auth | None] = optional(_auth)
