"""``guard``: a list of rules; every one that matches looks at what leaves and at what comes back.

A word in ``find`` is a kind that mitmgate knows, or a regular expression of the policy's own (those of the library
``regex``). A rule without ``find``, ``tools`` and ``ask`` looks for nothing in them: it acts on each that it matches.
"""

import re
from collections.abc import Iterator
from typing import Any

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    boolean,
    closest,
    listed,
    listing,
    not_empty,
    one_of,
    optional,
    record,
    text,
    written,
)
from mitmgate.policy.kinds import KINDS, MEANT
from mitmgate.policy.sections.places import target
from mitmgate.policy.sections.rules import rule, unique_names
from mitmgate.policy.values import Ask, Guard

SIDES = ("request", "response")

WORD = re.compile(r"[A-Za-z][A-Za-z0-9 _-]*")
"""It is a pattern as any other, but more likely a kind that is misspelled, where it looks like one."""

PROBES = ("", "a 1")
"""A pattern that finds an empty piece in one of these would find one in every text."""

# -- what is looked for -----------------------------------------------------------------------------------------------


def _read_find(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    if raw in KINDS:
        return raw
    if meant := _kind_meant(raw):
        itself = f"[{raw[0]}]{raw[1:]}"
        raise node.wrong(f"{raw!r} is no kind of finding; did you mean {meant!r}? (As a pattern, write {itself!r})")
    return _pattern(node, raw)


def _kind_meant(raw: str) -> str | None:
    """Return the kind that a word was probably meant to be."""
    if not WORD.fullmatch(raw):
        return None
    word = re.sub("[ -]", "_", raw.lower())
    if known := MEANT.get(word) or MEANT.get(word.removesuffix("s")):
        return known
    meant = closest(word, KINDS)
    # "secret plan" is a phrase to look for, "credit cards" a kind with one letter too many.
    return meant if meant and word.count("_") <= meant.count("_") else None


def _read_allow(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    if raw in KINDS:
        raise node.wrong(f"{raw!r} is a kind of finding; allow takes patterns of what is no finding")
    return _pattern(node, raw)


def _pattern(node: Node, raw: str) -> str:
    import regex  # here, because most policies have no pattern of their own

    try:
        pattern = regex.compile(raw)
    except (regex.error, RecursionError, MemoryError) as e:
        raise node.wrong(f"{raw!r} is not a regular expression: {e}") from e
    if any(found.start() == found.end() for probe in PROBES for found in pattern.finditer(probe)):
        raise node.wrong(f"{raw!r} matches the empty text, so it would be found everywhere")
    return raw


_find: Form[str] = Form(_read_find, lambda find: find)
_allow: Form[str] = Form(_read_allow, lambda pattern: pattern)

_several_sides = not_empty(one_of(*SIDES), "request, response or both")
_sides: Form[frozenset[str]] = Form(
    lambda node, context: frozenset(_several_sides.read(node, context)),
    lambda sides: [side for side in SIDES if side in sides],
)

# -- what follows -----------------------------------------------------------------------------------------------------

_ask = record(
    Ask,
    {
        "ask": Key(target, "target", required=True),
        "model": Key(optional(text)),
        "on_error": Key(one_of("block", "pass")),
        "about": Key(optional(text)),
    },
)
_word = one_of("block", "redact", "flag")


def _read_then(node: Node, context: Context) -> Any:
    if isinstance(node.value, list):
        raise node.wrong("it takes block, redact, flag or {ask: TARGET}, not a list")
    return _ask.read(node, context) if isinstance(node.value, dict) else _word.read(node, context)


_then: Form[Any] = Form(_read_then, lambda then: _ask.show(then) if isinstance(then, Ask) else then)

# -- a rule -----------------------------------------------------------------------------------------------------------

_rule = rule(
    Guard,
    {
        "find": Key(written(not_empty(_find, f"kinds ({listing(KINDS)}) and patterns"))),
        "in": Key(_sides, "sides"),
        "then": Key(_then, required=True),
        "tools": Key(written(not_empty(text, "globs of the tools that are allowed"))),
        "allow": Key(written(not_empty(_allow, "patterns of what is no finding"))),
        "restore": Key(boolean),
    },
)


def _read_rule(node: Node, context: Context) -> Guard:
    guard = _rule.read(node, context)
    faults = list(_impossible(node, guard))
    if faults:
        raise PolicyError(faults)
    return guard


def _impossible(node: Node, guard: Guard) -> Iterator[Fault]:
    """Yield a fault for what this rule could never do."""
    asks = isinstance(guard.then, Ask)
    looks = bool(guard.find or guard.tools or asks)
    if not looks and guard.match is None and guard.unless is None:
        yield node.fault("the rule looks for nothing; give it find, tools, match or unless")
    if not looks and "request" not in guard.sides:
        yield node.under["in"].fault("a rule without find and tools is about the request; it takes request")
    if guard.then == "redact" and not guard.find:
        yield node.under["then"].fault("nothing to redact; a rule with redact needs find")
    if guard.then == "redact" and guard.tools:
        yield node.under["tools"].fault("a tool cannot be redacted; it goes with block or flag")
    if guard.restore and guard.then != "redact":
        yield node.under["restore"].fault("restore goes with then: redact alone")
    elif guard.restore and "request" not in guard.sides:
        yield node.under["restore"].fault("restore puts back what was redacted in the request; add it to in")
    if guard.allow and not guard.find:
        yield node.under["allow"].fault("allow makes exceptions from find, and the rule has none")


form: Form[tuple[Guard, ...]] = unique_names(listed(Form(_read_rule, _rule.show)))
