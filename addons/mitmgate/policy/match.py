"""The one language of all rules: ``match: {provider: azure-openai, input_tokens: "> 20000"}``.

A ``Match`` is compiled when the policy is read, and asked once per rule and request: it pulls the fields it names
through a function, stops at the first that does not hold, and parses nothing. All its fields must hold, so the empty
match holds for every request. A value is

- a glob (``gpt-5*``; ``*`` also runs over ``/``), compared without regard to case;
- a number or boolean, compared as JSON text, so ``metadata.beta: true`` holds for ``{"beta": true}``;
- a comparison (``"> 20000"``, also ``>=``, ``<``, ``<=``), which holds for numbers and for text that is one;
- ``present`` or ``absent`` (to match the word itself, write ``[p]resent``);
- a list of these, any of which may hold.

A field that the request does not have fits ``absent`` and nothing else. ``path`` is without its query.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from types import MappingProxyType
from typing import Any, Protocol

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy.document import Node, dotted
from mitmgate.policy.forms import Context, Form, Plain, closest, listing, text

FIELDS: tuple[str, ...] = (
    "provider",
    "host",
    "path",
    "method",
    "operation",
    "model",
    "tier",
    "stream",
    "tenant",
    "user",
    "route",
    "session",
    "auth",
    "region",
    "colo",
    "sla",
    "user_agent",
    "input_tokens",
)

FAMILIES: tuple[str, ...] = ("metadata", "header", "body")
"""Fields by name: ``metadata.NAME`` (case counts), ``header.NAME`` (case does not), ``body.NAME`` of a JSON body, where
a dot goes inwards (``body.response_format.type``)."""

WILDCARDS = frozenset("*?[")
COMPARISON = re.compile(r"(>=|<=|>|<)\s*(.*)")
NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9]+)?", re.ASCII)
COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

type Get = Callable[[str], object | None]
"""Gives a field's value, None where the request has none: text, number, boolean."""

type Test = Callable[[object | None], bool]


@dataclass(frozen=True, slots=True)
class Match:
    """A compiled ``match`` or ``unless``. Two are equal where they were written alike."""

    says: Mapping[str, Plain]
    """Field -> value, as in the file."""
    _tests: tuple[tuple[str, Test], ...] = field(compare=False, repr=False)

    def holds(self, get: Get) -> bool:
        """Return whether every field of the match holds for the request behind *get*."""
        for name, test in self._tests:  # noqa: SIM110  (``all`` of a generator doubles the cost of a rule)
            if not test(get(name)):
                return False
        return True

    def failing(self, get: Get) -> "Failing | None":
        """Return the first field that does not hold, for people; None where all do."""
        for name, test in self._tests:
            found = get(name)
            if not test(found):
                return Failing(name, found, self.says[name])
        return None

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the match asks for."""
        return frozenset(self.says)


@dataclass(frozen=True, slots=True)
class Failing:
    """A field of a match that does not hold."""

    field: str
    found: object | None
    """In the request; None where it has none."""
    wanted: Plain
    """As in the file."""


class Rule(Protocol):
    """What all rules of a list have in common."""

    @property
    def match(self) -> Match | None: ...
    @property
    def unless(self) -> Match | None: ...


def acts[R: Rule](rules: Iterable[R], get: Get) -> R | None:
    """Return the first of *rules* that holds, of those that a ``shadow`` does not keep from acting."""
    for rule in rules:
        if not getattr(rule, "shadow", False) and fits(rule, get):
            return rule
    return None


def shadows[R: Rule](rules: Iterable[R], get: Get) -> list[R]:
    """Return the rules with ``shadow: true`` that would have acted: they stand before the first that does."""
    found = []
    for rule in rules:
        if fits(rule, get):
            if not getattr(rule, "shadow", False):
                break
            found.append(rule)
    return found


def fits(rule: Rule, get: Get) -> bool:
    """Return whether ``match`` holds and ``unless`` does not."""
    return (rule.match is None or rule.match.holds(get)) and not (rule.unless is not None and rule.unless.holds(get))


class Rules[R: Rule]:
    """A list of rules that every request meets: one look-up per field passes over those that are for others.

    In a file for many tenants most rules say ``tenant: NAME``; asking each of two hundred costs a tenth of what a whole
    request does.
    """

    def __init__(self, rules: Iterable[R]) -> None:
        self.rules = tuple(rules)
        self._for_all: list[int] = []
        """Places of the rules that no single field tells apart."""
        self._by_field: dict[str, dict[str, list[int]]] = {}
        """Field -> value in lower case -> places of the rules that ask for it."""
        for place, rule in enumerate(self.rules):
            field_name, words = _told_by(rule.match)
            if field_name is None:
                self._for_all.append(place)
                continue
            places = self._by_field.setdefault(field_name, {})
            for word in words:
                places.setdefault(word, []).append(place)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def likely(self, get: Get) -> list[R]:
        """Return the rules that may hold, in their order; ``acts``, ``shadows`` and ``fits`` know whether they do."""
        found = self._for_all
        for name, places in self._by_field.items():
            value = get(name)
            if value is not None and (more := places.get(_lower(value))):
                found = [*found, *more]
        if found is not self._for_all:
            found.sort()
        return [self.rules[place] for place in found]

    def fitting(self, get: Get) -> list[R]:
        """Return the rules that hold, in their order, those with ``shadow`` among them."""
        return [rule for rule in self.likely(get) if fits(rule, get)]


def _told_by(match: Match | None) -> tuple[str | None, frozenset[str]]:
    """Return a field of which *match* names the values by whole words, and these; None where it has none."""
    for name, value in match.says.items() if match else ():
        words = value if isinstance(value, list) else [value]
        if name not in ("stream", "input_tokens") and not any(_is_special(one) or _wild(_text(one)) for one in words):
            return name, frozenset(_text(one).lower() for one in words)
    return None, frozenset()


def _lower(value: object) -> str:
    return (value if isinstance(value, str) else _json(value)).lower()


def compile_match(says: Mapping[str, Plain]) -> Match:
    """Return the match that *says* describes; field names and values as in the file.

    Raises ``ValueError`` with a sentence; ``parse`` says the same with file and line.
    """
    fields = {_field(name): value for name, value in says.items()}
    tests = tuple((name, _test(name, value)) for name, value in fields.items())
    return Match(MappingProxyType(fields), tests)


def parse(node: Node, forbidden: frozenset[str] = frozenset()) -> Match:
    """Return the match at *node*; *forbidden* are fields that are not known yet where it is asked.

    Raises ``PolicyError`` with every fault in it.
    """
    if not isinstance(node.value, dict):
        raise node.wrong(f"it takes a mapping of fields to values, not {node.what}")
    says: dict[str, Plain] = {}
    faults: list[Fault] = []
    for name, one in node.value.items():
        try:
            field_name = _field(name)
            if field_name in forbidden:
                raise ValueError(f"{name} is not known yet when this is asked")
            if field_name in says:
                raise ValueError("stands twice; names of headers know no case")
            says[field_name] = _plain(one)
            _test(field_name, says[field_name])
        except ValueError as e:
            faults.append(Fault(node.path, one.line, dotted(node.key, name), str(e)))
    if faults:
        raise PolicyError(faults)
    return compile_match(says)


def form(*forbidden: str) -> Form[Match]:
    """A ``match``; without the *forbidden* fields."""

    def read(node: Node, _: Context) -> Match:
        return parse(node, frozenset(forbidden))

    def show(match: Match | None) -> Any:
        return None if match is None else dict(match.says)

    return Form(read, show)


def _read_field(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    try:
        return _field(raw)
    except ValueError as e:
        raise node.wrong(f"{raw!r}: {e}") from e


field_name: Form[str] = Form(_read_field, lambda name: name)
"""The name of a field, as in a match."""


# -- fields and values ------------------------------------------------------------------------------------------------


def _field(name: str) -> str:
    """Return *name* as ``Get`` is asked for it, or raise."""
    if name in FIELDS:
        return name
    family, dot, rest = name.partition(".")
    if family in FAMILIES:
        if not rest:
            raise ValueError(f"write {family}.NAME")
        return name.lower() if family == "header" else name
    meant = closest(family, FAMILIES) if dot else closest(name, FIELDS)
    if meant:
        raise ValueError(f"unknown field; did you mean '{meant}{dot}{rest}'?")
    raise ValueError(f"unknown field; fields are {', '.join(FIELDS)}, metadata.NAME, header.NAME and body.NAME")


def _plain(node: Node) -> Plain:
    if isinstance(node.value, dict):
        raise ValueError("it takes a value or a list of values, not a mapping")
    if isinstance(node.value, list):
        if not node.value:
            raise ValueError("the list is empty, so it could never hold")
        if any(isinstance(item.value, list | dict) for item in node.value):
            raise ValueError("a list in a match holds single values only")
        return [_plain(item) for item in node.value]
    if node.value is None:
        raise ValueError("it has no value; to ask for a missing field write absent")
    if isinstance(node.value, float) and not math.isfinite(node.value):
        raise ValueError(f"{node.raw} is no number that a field could have")
    return node.value


def _test(name: str, value: Plain) -> Test:
    """Return the test that *value* is for the field *name*, or raise."""
    values = value if isinstance(value, list) else [value]
    if name == "stream":
        return _stream(values)
    if name == "input_tokens":
        return _numeric(values)
    special = [_special(one) for one in values if _is_special(one)]
    texts = [_text(one).lower() for one in values if not _is_special(one)]
    return _any([*special, _texts(texts)] if texts else special)


def _stream(values: list[Any]) -> Test:
    if not all(isinstance(one, bool) for one in values):
        raise ValueError(f"stream is true or false, not {listing(map(_json, values))}")
    wanted = frozenset(values)
    return lambda found: found in wanted


def _numeric(values: list[Any]) -> Test:
    tests = []
    for one in values:
        if isinstance(one, str):
            if not COMPARISON.fullmatch(one):
                raise ValueError(f'{one!r} is not a comparison; write it like "> 20000"')
            tests.append(_comparison(one))
        elif isinstance(one, bool):
            raise ValueError(f'{_json(one)} is not a number; write a comparison like "> 20000"')
        else:
            tests.append(_equal(one))
    return _any(tests)


def _is_special(value: Any) -> bool:
    return value in ("present", "absent") or (isinstance(value, str) and COMPARISON.fullmatch(value) is not None)


def _special(value: Any) -> Test:
    if value == "present":
        return lambda found: found is not None
    if value == "absent":
        return lambda found: found is None
    return _comparison(value)


def _any(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda found: any(test(found) for test in tests)


def _texts(globs: list[str]) -> Test:
    """Return the test for text in lower case: whole words by one lookup, prefixes (``gpt-5*``) without a pattern."""
    words = frozenset(glob for glob in globs if not _wild(glob))
    starts = tuple(glob[:-1] for glob in globs if glob.endswith("*") and not _wild(glob[:-1]))
    rest = [glob for glob in globs if _wild(glob) and not (glob.endswith("*") and not _wild(glob[:-1]))]
    fits = re.compile("|".join(map(translate, rest))).match if rest else None

    def test(found: object | None) -> bool:
        if found is None:
            return False
        text = _lower(found)
        return text in words or text.startswith(starts) or (fits is not None and fits(text) is not None)

    return test


def _wild(glob: str) -> bool:
    return not WILDCARDS.isdisjoint(glob)


def _comparison(text: str) -> Test:
    found = COMPARISON.fullmatch(text)
    sign, digits = found.groups() if found else ("", "")
    if not NUMBER.fullmatch(digits):
        raise ValueError(f'{text!r} compares with no number; write it like "> 20000"')
    compare, limit = COMPARE[sign], float(digits.replace("_", ""))

    def test(value: object | None) -> bool:
        number = _number(value)
        return number is not None and compare(number, limit)

    return test


def _equal(wanted: float) -> Test:
    return lambda found: _number(found) == wanted


def _number(value: object | None) -> float | None:
    """Return *value* as a number: numbers, and text that is one; booleans are none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return value
    text = str(value).strip()
    return float(text) if NUMBER.fullmatch(text) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
