"""``identify``: where the columns of a row come from, and which of them a request has to have.

Route, tier and sla are told in this order, each by the first label whose match holds; a match may ask for what was told
before it and for nothing later.
"""

import re

from mitmgate.policy import match
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, closest, did_you_mean, listed, named, record, text
from mitmgate.policy.values import Identify

SOURCE = re.compile(r"metadata\.(?P<metadata>.+)|header\.(?P<header>[!#$%&'*+.^_`|~0-9A-Za-z-]+)")

COLUMNS = ("tenant", "user", "session", "prompt_version", "route", "tier", "sla", "region", "colo")
"""What ``require`` can name; ``tenant`` and its like come from tags and headers as the lists above say."""


def _source(*words: str) -> Form[str]:
    """``metadata.NAME``, ``header.NAME`` or one of *words*; header names come out in lower case."""
    takes = ", ".join((*words, "metadata.NAME", "header.NAME"))

    def read(node: Node, context: Context) -> str:
        source = text.read(node, context)
        if source in words:
            return source
        found = SOURCE.fullmatch(source)
        if found is None:
            raise node.wrong(f"{source!r} is not known{_hint(source, words) or f'; it takes {takes}'}")
        return source.lower() if found["header"] else source

    return Form(read, lambda source: source)


def _hint(source: str, words: tuple[str, ...]) -> str:
    family, dot, name = source.partition(".")
    if not name:
        return did_you_mean(source, words)
    meant = closest(family, ("metadata", "header"))
    return f"; did you mean '{meant}{dot}{name}'?" if meant else ""


form: Form[Identify] = record(
    Identify,
    {
        "tenant": Key(listed(_source("key"))),
        "user": Key(listed(_source("key"))),
        "session": Key(listed(_source())),
        "prompt_version": Key(listed(_source())),
        "route": Key(named(match.form("route", "tier", "sla"), "labels to matches")),
        "tier": Key(named(match.form("tier", "sla"), "labels to matches")),
        "region": Key(text),
        "colo": Key(text),
        "sla": Key(named(match.form("sla"), "labels to matches")),
        "require": Key(listed(_source(*COLUMNS))),
    },
)
