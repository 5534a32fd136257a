"""The forms that values of a policy take: each reads a node of the file, and shows a value as the file would say it.

A section is a table of keys and forms, nothing more, so unknown keys, wrong types and missing entries are found here,
once for all sections, and ``mitmgate check`` can write out any policy in the words of the file. A form that cannot use
a node raises ``PolicyError``; the forms that hold others collect the errors of all of them, so one run names everything
that is wrong.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import secret, units
from mitmgate.policy.document import Node, dotted
from mitmgate.policy.secret import Secret
from mitmgate.providers import RESERVED

type CheckName = Callable[[Node, str], None]
"""Raises ``PolicyError`` where the name of the entry at the node cannot be used."""

type Plain = bool | int | float | str | list[Plain] | dict[str, Plain] | None
"""What JSON and YAML can say."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""Of a provider or target: it is a path segment of the base-URL door and an entry of ``cf-aig-fallback``."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a form needs to know beside its node."""

    folder: Path = field(default_factory=Path)
    """Of the policy file: paths in it are relative to this."""
    env: Mapping[str, str] = field(default_factory=dict)
    providers: frozenset[str] = frozenset()
    """Slugs of the table and names under ``providers``."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Name of a provider -> the API that is spoken there, as far as the file says it."""
    targets: Mapping[str, "Place"] = field(default_factory=dict)
    """Names under ``targets``, whether or not the rest of the file is right."""
    budgets: Mapping[str, Node] = field(default_factory=dict)
    """Names of the rules under ``budget``, whether or not the rest of the file is right -> the rule."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a rule that names a target has to know of it."""

    provider: str | None
    zone: str | None
    base_url: str | None


@dataclass(frozen=True, slots=True)
class Form[T]:
    """A kind of value, both ways."""

    read: Callable[[Node, Context], T]
    """Raises ``PolicyError``."""
    show: Callable[[T], Any]
    """Returns ``Plain``, never a secret; None where the file would leave the key out."""


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a record."""

    form: Form[Any]
    into: str = ""
    """The field of the value; empty = named like the key."""
    required: bool = False


# -- words ------------------------------------------------------------------------------------------------------------


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` where one of *known* is close to *word*, else nothing."""
    meant = closest(word, known)
    return f"; did you mean {meant!r}?" if meant else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of *known* that *word* was probably meant to be: spelled alike, or begun with it."""
    by_lower = {each.lower(): each for each in known}
    lower = word.lower()
    close = get_close_matches(lower, by_lower, n=1, cutoff=0.6)
    if not close and len(lower) > 2:
        close = [each for each in by_lower if each.startswith(lower)][:1]
    return by_lower[close[0]] if close else None


def listing(words: Iterable[str], last: str = "or") -> str:
    """Return ``a, b or c``."""
    *head, tail = words
    return f"{', '.join(head)} {last} {tail}" if head else tail


def not_one_of(word: str, known: Iterable[str]) -> str:
    """Return the sentence for a *word* outside a closed set."""
    known = list(known)
    return f"{word!r} is not known{did_you_mean(word, known) or f'; it takes {listing(known)}'}"


# -- single values ----------------------------------------------------------------------------------------------------


def _same[T](value: T) -> T:
    return value


def scalar(node: Node, what: str) -> str:
    """Return the scalar at *node* as it was written; *what* completes "it takes"."""
    if isinstance(node.value, dict | list):
        raise node.wrong(f"it takes {what}, not {node.what}")
    if node.value is None:
        raise node.wrong(f"it has no value; it takes {what}")
    return node.raw


def _read_text(node: Node, _: Context) -> str:
    raw = scalar(node, "text")
    if not isinstance(node.value, str):
        raise node.wrong(f'{raw} is {node.what} here; for text put quotes around it: "{raw}"')
    if not raw.strip():
        raise node.wrong("it is empty; it takes text")
    return raw


text: Form[str] = Form(_read_text, _same)


def one_of(*words: str) -> Form[Any]:
    """A closed set of words. ``Any``, because the caller's ``Literal`` says which."""

    def read(node: Node, _: Context) -> str:
        raw = scalar(node, listing(words))
        if raw not in words:
            raise node.wrong(not_one_of(raw, words))
        return raw

    return Form(read, _same)


def _read_boolean(node: Node, _: Context) -> bool:
    raw = scalar(node, "true or false")
    if not isinstance(node.value, bool):
        raise node.wrong(f"{raw!r} is not true or false")
    return node.value


boolean: Form[bool] = Form(_read_boolean, _same)


def _read_number(node: Node, _: Context) -> float:
    raw = scalar(node, "a number")
    if not isinstance(node.value, int | float) or isinstance(node.value, bool) or not math.isfinite(node.value):
        raise node.wrong(f"{raw!r} is not a number")
    return node.value


number: Form[float] = Form(_read_number, _same)


def whole(least: int, most: int) -> Form[int]:
    """A number without decimals, both ends included."""

    def read(node: Node, _: Context) -> int:
        raw = scalar(node, "a whole number")
        if not isinstance(node.value, int) or isinstance(node.value, bool):
            raise node.wrong(f"{raw!r} is not a whole number")
        if not least <= node.value <= most:
            raise node.wrong(f"{raw} is outside {least}…{most}")
        return node.value

    return Form(read, _same)


def unit[T](read_text: Callable[[str], T], show: Callable[[T], str], example: str) -> Form[T]:
    """A number with a unit; *read_text* raises ``ValueError`` with the sentence."""

    def read(node: Node, _: Context) -> T:
        raw = scalar(node, f"a value such as {example}")
        try:
            return read_text(raw)
        except ValueError as e:
            raise node.wrong(str(e)) from e

    return Form(read, show)


time = unit(units.time, units.show_time, "30 s")
span = unit(units.span, units.show_span, "1 h or day")
size = unit(units.size, units.show_size, "2 MiB")
money = unit(units.money, units.show_money, "20 USD")
percent = unit(units.percent, units.show_percent, "20 %")


def positive[T: (int, float)](form: Form[T]) -> Form[T]:
    """The same, but zero is a fault."""

    def read(node: Node, context: Context) -> T:
        value = form.read(node, context)
        if value <= 0:
            raise node.wrong(f"{node.raw} is too little; it has to be more than zero")
        return value

    return Form(read, form.show)


def or_none[T](form: Form[T]) -> Form[T | None]:
    """The same, or the word ``none``."""

    def read(node: Node, context: Context) -> T | None:
        return None if node.value == "none" else form.read(node, context)

    def show(value: T | None) -> Any:
        return "none" if value is None else form.show(value)

    return Form(read, show)


def optional[T](form: Form[T]) -> Form[T | None]:
    """The same for a key that has no default: where it is left out, it is not shown."""
    return Form(form.read, lambda value: None if value is None else form.show(value))


def show_text(value: str | None) -> str | None:
    """Return *value*, or where it came from if it is a secret."""
    return value.source if isinstance(value, Secret) else value


def read_secret(node: Node, context: Context, one_line: bool = True) -> Secret:
    """Return the secret that ``env:NAME`` at *node* stands for."""
    raw = scalar(node, "env:NAME")
    try:
        return secret.resolve(raw, context.env, one_line)
    except ValueError as e:
        raise node.wrong(str(e)) from e


def _read_reference(node: Node, context: Context) -> Secret:
    raw = scalar(node, "env:NAME")
    if secret.is_reference(raw) and not raw.startswith("env:"):
        raise node.wrong(f"{raw!r}: only a header has a scheme; write env:NAME alone")
    return read_secret(node, context)


reference: Form[str] = Form(_read_reference, show_text)
"""A secret, which stands in the environment: ``env:NAME`` and nothing else."""


def _read_file(node: Node, context: Context) -> str:
    raw = _read_text(node, context)
    try:
        path = (context.folder / Path(raw).expanduser()).absolute()
        if path.exists() and not path.is_file():
            raise node.wrong(f"{raw!r} is not a file")  # before opening: a pipe would block for ever
        path.open("rb").close()
    except OSError as e:
        reason = (e.strerror or type(e).__name__).lower()
        raise node.wrong(f"{raw!r} cannot be read ({reason}); paths are relative to the policy file: {path}") from e
    except (ValueError, RuntimeError) as e:  # a NUL in it; a home of nobody (~name)
        raise node.wrong(f"{raw!r} is not a path: {e}") from e
    return str(path)


file: Form[str] = Form(_read_file, _same)
"""A file that can be read now; the value is its absolute path."""


# -- values that hold others ------------------------------------------------------------------------------------------


def entries(node: Node, what: str) -> dict[str, Node]:
    """Return the mapping at *node*; *what* completes "it takes a mapping of"."""
    if not isinstance(node.value, dict):
        raise node.wrong(f"it takes a mapping of {what}, not {node.what}")
    return node.value


def gather[K, T](nodes: Iterable[tuple[K, Node]], read: Callable[[K, Node], T]) -> dict[K, T]:
    """Return what *read* makes of each name and node; raise one error with the faults of all."""
    values: dict[K, T] = {}
    faults: list[Fault] = []
    for name, node in nodes:
        try:
            values[name] = read(name, node)
        except PolicyError as e:
            faults += e.faults
    if faults:
        raise PolicyError(faults)
    return values


def listed[T](form: Form[T]) -> Form[tuple[T, ...]]:
    """A list; a single value counts as a list of one."""

    def read(node: Node, context: Context) -> tuple[T, ...]:
        return tuple(gather(enumerate(node.items), lambda _, item: form.read(item, context)).values())

    def show(values: tuple[T, ...]) -> list[Any]:
        return [form.show(value) for value in values]

    return Form(read, show)


def not_empty[T](form: Form[T], what: str) -> Form[tuple[T, ...]]:
    """A list that has to hold something; *what* completes "it takes"."""
    several = listed(form)

    def read(node: Node, context: Context) -> tuple[T, ...]:
        if not node.items:
            raise node.wrong(f"the list is empty; it takes {what}")
        return several.read(node, context)

    return Form(read, several.show)


def written[T](form: Form[tuple[T, ...]]) -> Form[tuple[T, ...]]:
    """The same list; where it is empty, nobody wrote it, so it is not shown."""
    return Form(form.read, lambda values: form.show(values) or None)


def any_name(node: Node, name: str) -> None:
    """Raise where *name* is empty."""
    if not name.strip():
        raise node.wrong("the name is empty")


def named[T](form: Form[T], what: str, check_name: CheckName = any_name) -> Form[dict[str, T]]:
    """A mapping of names to values."""

    def read(node: Node, context: Context) -> dict[str, T]:
        def read_one(name: str, one: Node) -> T:
            check_name(one, name)
            return form.read(one, context)

        return gather(entries(node, what).items(), read_one)

    def show(values: Mapping[str, T]) -> dict[str, Any]:
        return {name: form.show(value) for name, value in values.items()}

    return Form(read, show)


def record[T](build: Callable[..., T], keys: Mapping[str, Key]) -> Form[T]:
    """A mapping with known keys; what is left out keeps the default that *build* gives it."""

    def read(node: Node, context: Context) -> T:
        below = entries(node, listing(keys, "and"))
        faults = [*_unknown_keys(node, below, keys), *_missing_keys(node, below, keys)]
        known = [(name, one) for name, one in below.items() if name in keys]
        try:
            values = gather(known, lambda name, one: keys[name].form.read(one, context))
        except PolicyError as e:
            faults += e.faults
        if faults:
            raise PolicyError(faults)
        return build(**{keys[name].into or name: value for name, value in values.items()})

    def show(value: T) -> dict[str, Any]:
        shown = {name: key.form.show(getattr(value, key.into or name)) for name, key in keys.items()}
        return {name: one for name, one in shown.items() if one is not None}

    return Form(read, show)


def rows[T](build: Callable[..., T], keys: Mapping[str, Key], what: str, check_name: CheckName) -> Form[dict[str, T]]:
    """A mapping of names to records; *build* gets the name as ``name``."""
    fields: Form[Any] = record(dict, keys)
    named_fields = named(fields, what, check_name)

    def read(node: Node, context: Context) -> dict[str, T]:
        return {name: build(name=name, **one) for name, one in named_fields.read(node, context).items()}

    return Form(read, named_fields.show)


def usable_name(node: Node, name: str) -> None:
    """Raise where a provider or target cannot be called *name*."""
    if name in RESERVED:
        raise node.wrong(f"{name!r} is reserved: the base-URL door answers there itself; choose another name")
    if not NAME.fullmatch(name):
        raise node.wrong(f"{name!r} cannot be a name; use lower-case letters, digits, '-', '_' and '.'")


def _unknown_keys(node: Node, below: Mapping[str, Node], keys: Mapping[str, Key]) -> Iterator[Fault]:
    for name, entry in below.items():
        if name not in keys:
            hint = did_you_mean(name, keys) or f"; it takes {listing(keys, 'and')}"
            yield Fault(node.path, entry.line, dotted(node.key, name), f"unknown key{hint}")


def _missing_keys(node: Node, below: Mapping[str, Node], keys: Mapping[str, Key]) -> Iterator[Fault]:
    """Yield a fault for each key that has to be there, unless an unknown one looks like it, only misspelled."""
    meant = {closest(name, keys) for name in below if name not in keys}
    for name, key in keys.items():
        if key.required and name not in below and name not in meant:
            yield Fault(node.path, node.line, dotted(node.key, name), "it is missing")
