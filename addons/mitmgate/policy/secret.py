"""A text that came from the environment and must not be seen: usable as ``str``, shown as ``env:NAME``."""

import re
from collections.abc import Mapping
from typing import override

REFERENCE = re.compile(r"((?:Bearer|Basic) )?env:(.*)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class Secret(str):
    """The value itself is the ``str``; ``repr`` and ``source`` tell only where it came from."""

    source: str
    """As the policy says: ``env:NAME`` or ``Bearer env:NAME``."""

    def __new__(cls, value: str, source: str = "env:?") -> "Secret":
        secret = super().__new__(cls, value)
        secret.source = source
        return secret

    @override
    def __repr__(self) -> str:
        return self.source


def is_reference(text: str) -> bool:
    """Return whether *text* is ``env:…``, alone or after ``Bearer`` or ``Basic``."""
    return REFERENCE.fullmatch(text) is not None


def resolve(text: str, env: Mapping[str, str], one_line: bool = True) -> Secret:
    """Return what the reference *text* stands for in *env*.

    Raises ``ValueError`` with a sentence that names the variable and never its value; *one_line* is for what goes into
    a header, where a line break would end it.
    """
    found = REFERENCE.fullmatch(text)
    if found is None:
        raise ValueError("a secret may not stand in the file; put it into an environment variable and write env:NAME")
    scheme, name = found.groups()
    if not NAME.fullmatch(name):
        raise ValueError(f"{text!r} names no environment variable; write env:NAME")
    value = env.get(name)
    if value is None:
        raise ValueError(f"the environment variable {name} is not set")
    if not value.strip():
        raise ValueError(f"the environment variable {name} is empty")
    if one_line and UNPRINTABLE.search(value):
        raise ValueError(f"the environment variable {name} holds a line break or another control character")
    return Secret((scheme or "") + value, text)
