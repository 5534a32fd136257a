"""YAML text as a tree in which every value knows its line and its dotted key.

Scalars are read as in YAML 1.2 core (https://yaml.org/spec/1.2.2/#103-core-schema): only ``true`` and ``false`` are
booleans, ``no`` and ``12:30`` are text, a date is text. One thing more than core: ``2_000_000`` is a number. Stricter
than YAML: a key that stands twice is a fault, keys are text, and tags of one's own mean nothing here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import yaml

from mitmgate.errors import Fault, PolicyError

type Scalar = str | int | float | bool | None
type Value = Scalar | list[Node] | dict[str, Node]

MOST_NODES = 100_000
"""Aliases of aliases can unfold a small file into more than any memory holds."""

MOST_DEPTH = 50

TAG = "tag:yaml.org,2002:"

NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


SURROGATE = re.compile(r"[\ud800-\udfff]")
HALF = "no valid Unicode: an escape in it is half of a character"
"""Written ``"\\ud800"``, such text could be neither printed nor stored."""


class Hint(NamedTuple):
    """What a person can do about what the scanner says."""

    said: str
    """A part of its words."""
    text: str
    where_it_began: bool = False
    """The line to look at is the one where the value began, not the one where the scanner gave up."""


HINTS: tuple[Hint, ...] = (
    Hint("found character '\\t'", "a tab stands where YAML wants spaces"),
    Hint(
        "mapping values are not allowed", "a ':' stands where no key can be; check the indentation, or quote the value"
    ),
    Hint("expected a single document", "the file holds more than one document ('---')"),
    Hint("found undefined alias", "an alias (*name) has no anchor (&name) before it"),
    Hint("while scanning a simple key", "this line is neither 'key: value' nor the rest of the line before", True),
    Hint("found unexpected end of stream", "the quote that opens here is never closed", True),
    Hint("expected ',' or '", "the bracket that opens here is not closed, or a comma is missing in it", True),
    Hint("but found '<stream end>'", "a bracket is opened and never closed"),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the file and where it stands."""

    path: str
    """Of the file, as given on the command line."""
    line: int
    """Of the key that leads here; of the value itself in a list."""
    key: str
    """Dotted: ``observe[0].hosts``; empty for the whole file."""
    value: Value
    raw: str = ""
    """A scalar as it was written, quotes taken away."""

    def fault(self, text: str) -> Fault:
        return Fault(self.path, self.line, self.key, text)

    def wrong(self, text: str) -> PolicyError:
        """Return the error to raise where this value cannot be used."""
        return PolicyError([self.fault(text)])

    @property
    def items(self) -> tuple["Node", ...]:
        """The entries of a list; of any other value itself, which is as good as a list of one."""
        return tuple(self.value) if isinstance(self.value, list) else (self,)

    @property
    def under(self) -> Mapping[str, "Node"]:
        """The entries of a mapping; of any other value none."""
        return self.value if isinstance(self.value, dict) else {}

    def get(self, *names: str) -> "Node | None":
        """Return what is found by going in by *names*, None where there is nothing."""
        node: Node | None = self
        for name in names:
            node = node.under.get(name) if node is not None else None
        return node

    @property
    def text(self) -> str | None:
        """The value where it is text, else None."""
        return self.value if isinstance(self.value, str) else None

    @property
    def what(self) -> str:
        """What the value is, for sentences: ``a list``."""
        return _WHAT[type(self.value)]

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all nodes below it."""
        yield self
        if isinstance(self.value, list):
            for node in self.value:
                yield from node.walk()
        if isinstance(self.value, dict):
            for node in self.value.values():
                yield from node.walk()


_WHAT: Mapping[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "nothing",
}


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner with the core schema in place of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own attribute)


for _tag, _pattern in (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT)):
    # PyYAML matches from the start only; the file's scalar has to fit whole.
    _Loader.add_implicit_resolver(TAG + _tag, re.compile(f"(?:{_pattern.pattern})\\Z"), None)


def parse(text: str, path: str) -> tuple[Node, list[Fault]]:
    """Return the tree of *text* and what is wrong inside it (keys twice, tags).

    Raises ``PolicyError`` where there is no tree at all.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        raise PolicyError([Fault(path, line, "", f"the character {chr(e.character)!r} may not stand in YAML")]) from e
    except yaml.MarkedYAMLError as e:
        raise PolicyError([_unreadable(e, path)]) from e
    except RecursionError as e:
        raise PolicyError([Fault(path, 1, "", "the file is nested too deep to be read")]) from e
    builder = _Builder(path)
    if root is None:
        return Node(path, 1, "", {}), []
    return builder.build(root, "", root.start_mark.line + 1), builder.faults


def dotted(key: str, name: str) -> str:
    """Return the key of the entry *name* below *key*."""
    return f"{key}.{name}" if key else name


def _unreadable(error: yaml.MarkedYAMLError, path: str) -> Fault:
    said = f"{error.context or ''} {error.problem or ''}".strip()
    hint = next((hint for hint in HINTS if hint.said in said), Hint("", said))
    marks = (
        (error.context_mark, error.problem_mark) if hint.where_it_began else (error.problem_mark, error.context_mark)
    )
    mark = next(filter(None, marks), None)
    return Fault(path, mark.line + 1 if mark else 1, "", f"not readable as YAML: {hint.text}")


class _Builder:
    """Turns PyYAML's nodes into ours; collects faults on the way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self.count = 0
        self.open: set[int] = set()
        """Containers that are being built: an alias to one of them would never end."""

    def build(self, node: yaml.Node, key: str, line: int) -> Node:
        self.count += 1
        if self.count > MOST_NODES:
            raise PolicyError([Fault(self.path, line, key, f"the file unfolds to more than {MOST_NODES:,} values")])
        if isinstance(node, yaml.ScalarNode):
            return Node(self.path, line, key, self.scalar(node, key, line), node.value)
        if id(node) in self.open:
            raise PolicyError([Fault(self.path, line, key, "an alias (*name) stands inside its own anchor")])
        if len(self.open) >= MOST_DEPTH:
            raise PolicyError([Fault(self.path, line, key, f"it is nested deeper than {MOST_DEPTH} levels")])
        self.open.add(id(node))
        try:
            return Node(self.path, line, key, self.container(node, key, line))
        finally:
            self.open.discard(id(node))

    def container(self, node: yaml.Node, key: str, line: int) -> Value:
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.build(item, f"{key}[{n}]", item.start_mark.line + 1) for n, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.mapping(node, key)
        self.faults.append(Fault(self.path, line, key, f"the tag {_short(node.tag)} means nothing here; remove it"))
        return None

    def mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for name_node, value in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                self.faults.append(Fault(self.path, line, key, "a key has to be text, not a list or mapping"))
                continue
            name = name_node.value
            below = dotted(key, name)
            if SURROGATE.search(name):
                self.faults.append(Fault(self.path, line, key, f"the key {name!r} is {HALF}"))
            elif name == "<<" and name_node.style is None:
                text = "merge keys are not part of YAML 1.2; write the keys out, or alias the whole value"
                self.faults.append(Fault(self.path, line, below, text))
            elif name in entries:
                text = f"stands twice; the first is on line {entries[name].line}"
                self.faults.append(Fault(self.path, line, below, text))
            else:
                entries[name] = self.build(value, below, line)
        return entries

    def scalar(self, node: yaml.ScalarNode, key: str, line: int) -> Scalar:
        kind = node.tag.removeprefix(TAG)
        text: str = node.value
        if SURROGATE.search(text):
            self.faults.append(Fault(self.path, line, key, f"{text!r} is {HALF}"))
            return None
        if kind == "str":
            return text
        try:
            return _SCALARS[kind](text)
        except (KeyError, ValueError):
            self.faults.append(Fault(self.path, line, key, f"{text!r} cannot be read as {_short(node.tag)}"))
            return None


def _null(text: str) -> None:
    if not NULL.fullmatch(text):
        raise ValueError(text)


def _bool(text: str) -> bool:
    if not BOOL.fullmatch(text):
        raise ValueError(text)
    return text.lower() == "true"


def _int(text: str) -> int:
    if not INT.fullmatch(text):
        raise ValueError(text)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text.replace("_", ""), base)


def _float(text: str) -> float:
    if not FLOAT.fullmatch(text):
        raise ValueError(text)
    plain = text.lower().replace("_", "")
    return float(plain.replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS = {"null": _null, "bool": _bool, "int": _int, "float": _float}


def _short(tag: str) -> str:
    return tag.replace(TAG, "!!")
