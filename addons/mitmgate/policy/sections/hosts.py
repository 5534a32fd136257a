"""Hosts as a policy names them: globs such as ``*.corp.example`` or ``localhost:11434``.

What is named here is intercepted, so a glob that would catch every host is a fault, and so is a host that two entries
claim.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mitmgate.errors import Fault
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, text
from mitmgate.policy.values import Observe, ProviderHosts
from mitmgate.providers import Hosts

GLOB = re.compile(r"[a-z0-9*?\[\]!._-]+(?::[0-9*]+)?")
WILDCARDS = frozenset("*?[")


def _read(node: Node, context: Context) -> str:
    glob = text.read(node, context).lower().rstrip(".")
    if "/" in glob:
        bare = re.sub(r"^[a-z0-9+]*://|/.*$", "", glob)
        raise node.wrong(f"{node.raw!r} is a URL; a host stands alone: {bare!r}")
    if not GLOB.fullmatch(glob):
        raise node.wrong(f"{node.raw!r} is not a host")
    if not re.search("[a-z0-9]", re.sub(r"\[[^]]*\]|:.*", "", glob)):
        raise node.wrong(f"{node.raw!r} would intercept every host; name a domain: '*.example.com'")
    return glob


host: Form[str] = Form(_read, lambda glob: glob)


def claimed_twice(values: Mapping[str, Any], nodes: Mapping[str, Node]) -> list[Fault]:
    """Return a fault for each host that an earlier entry, or the built-in table, has already.

    *values* are the sections read, *nodes* the file by dotted key.
    """
    faults: list[Fault] = []
    first: dict[str, str] = {}
    table = Hosts()
    for owner, n, glob in _claims(values, nodes):
        node = nodes.get(f"{owner}.hosts[{n}]") or nodes[f"{owner}.hosts"]
        built_in = None if WILDCARDS & set(glob) else table.find(*_split(glob))
        if glob in first:
            faults.append(node.fault(f"the host {glob!r} belongs to {first[glob]} already"))
        elif built_in is not None:
            slug = built_in.slug
            faults.append(node.fault(f"the host {glob!r} belongs to the built-in provider {slug!r} already; remove it"))
        first.setdefault(glob, owner)
    return faults


def _claims(values: Mapping[str, Any], nodes: Mapping[str, Node]) -> Iterator[tuple[str, int, str]]:
    """Yield (dotted key of the entry, index of the host, host)."""
    providers: tuple[ProviderHosts, ...] = values.get("providers", ())
    for row in providers:
        yield from ((f"providers.{row.name}", n, glob) for n, glob in enumerate(row.hosts))
    observe: tuple[Observe, ...] = values.get("observe", ())
    for n_entry, entry in enumerate(observe):
        owner = f"observe[{n_entry}]" if f"observe[{n_entry}]" in nodes else "observe"
        yield from ((owner, n, glob) for n, glob in enumerate(entry.hosts))


def _split(glob: str) -> tuple[str, int]:
    name, _, port = glob.partition(":")
    return name, int(port or 443)
