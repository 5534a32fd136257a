"""``providers``: hosts beside the built-in table, with the API that is spoken there. They are intercepted."""

from collections.abc import Mapping

from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, listed, one_of, rows, usable_name
from mitmgate.policy.sections.hosts import host
from mitmgate.policy.values import ProviderHosts
from mitmgate.providers import TABLE

BUILT_IN = frozenset(provider.slug for provider in TABLE)

DIALECTS = tuple(dict.fromkeys(provider.family for provider in TABLE))
"""The families of the built-in table, in its order."""


def _check_name(node: Node, name: str) -> None:
    usable_name(node, name)
    if name in BUILT_IN:
        raise node.wrong(f"{name!r} is a built-in provider; choose another name for your own hosts")


_rows = rows(
    ProviderHosts,
    {
        "hosts": Key(listed(host), required=True),
        "dialect": Key(one_of(*DIALECTS), required=True),
    },
    "names to hosts and dialect",
    _check_name,
)


def _read(node: Node, context: Context) -> tuple[ProviderHosts, ...]:
    return tuple(_rows.read(node, context).values())


def _show(values: tuple[ProviderHosts, ...]) -> dict[str, object]:
    return dict(_rows.show({row.name: row for row in values}))


form: Form[tuple[ProviderHosts, ...]] = Form(_read, _show)


def names(root: Node) -> frozenset[str]:
    """Return all names that a target may give as its ``provider``, whether or not the rest of the file is right."""
    return BUILT_IN | frozenset(_own(root))


def families(root: Node) -> dict[str, str]:
    """Return the family of every provider of the table, and of the file's own as far as it can be read."""
    said = {name: row.get("dialect") for name, row in _own(root).items()}
    own = {name: dialect.raw for name, dialect in said.items() if dialect is not None}
    return own | {provider.slug: provider.family for provider in TABLE}


def _own(root: Node) -> Mapping[str, Node]:
    section = root.get("providers")
    return section.under if section is not None else {}
