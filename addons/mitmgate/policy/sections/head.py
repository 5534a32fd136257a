"""``version``, ``timezone`` and ``usage``: the three sections that are a single word."""

from zoneinfo import ZoneInfo, available_timezones

from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, did_you_mean, one_of, scalar, text

VERSION = 1
"""Of the file format; a later one is a fault here, not a guess."""


def _read_version(node: Node, _: Context) -> int:
    raw = scalar(node, "a number")
    if node.value is True or node.value != VERSION:
        raise node.wrong(f"{raw} is not known; this mitmgate reads version {VERSION}")
    return VERSION


def _read_timezone(node: Node, context: Context) -> str:
    name = text.read(node, context)
    if name == "UTC":
        return name  # known without the system's table, which a small image may lack
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError) as e:
        hint = did_you_mean(name, available_timezones()) or "; write it like Africa/Johannesburg"
        raise node.wrong(f"{name!r} is no time zone{hint}") from e
    return name


version: Form[int] = Form(_read_version, lambda number: number)
timezone: Form[str] = Form(_read_timezone, lambda name: name)
usage = one_of("ask", "leave")
