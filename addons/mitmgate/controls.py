"""The ``cf-aig-*`` request headers: how an app steers one request, in Cloudflare AI Gateway's words.

``read`` runs once per request, at its head, and gives parsed values, or a refusal that names the header and the values
it takes; ``strip`` gives what may travel on, so that a provider never sees one of them. Neither ever raises, whatever
bytes stand in a header. A header of this family that nobody knows is taken away and otherwise ignored; one that stands
twice is refused, because the two might differ.

Source: https://developers.cloudflare.com/ai-gateway/ (headers as of 2026-11), with the bounds of our own contract.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any

from mitmgate.errors import Refusal

type Fields = list[tuple[bytes, bytes]]
"""Header fields as on the wire: order, case and duplicates kept."""

MOST_METADATA_BYTES = 4096
MOST_METADATA_ENTRIES = 16
MOST_COST_BYTES = 1024
MOST_USD_PER_TOKEN = 1000
"""Ten thousand times the dearest price; beyond it sums would leave what a database column holds."""

BACKOFFS = frozenset({"constant", "linear", "exponential"})
COSTS = frozenset({"per_token_in", "per_token_out", "per_cache_read_token", "per_cache_write_token"})

DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
TARGET = re.compile(r"[a-z0-9][a-z0-9._-]*")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Control:
    """One header of the table."""

    read: Callable[[str], Any]
    """Gives the value; raises ``ValueError`` or ``ArithmeticError`` where the text does not parse."""
    takes: str
    """Completes "it takes …"."""
    secret: bool = False
    """The refusal must not repeat the value."""


# -- how values are read ----------------------------------------------------------------------------------------------


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not DIGITS.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return read


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _text(most: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not 1 <= len(text) <= most or not text.isprintable():
            raise ValueError(text)
        return text

    return read


def _backoff(text: str) -> str:
    if text not in BACKOFFS:
        raise ValueError(text)
    return text


def _hex(digits: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", text) or not text.strip("0"):
            raise ValueError(text)
        return text.lower()

    return read


def _targets(text: str) -> tuple[str, ...]:
    """Return the names in order; ``none`` gives none of them: the request keeps the target it has."""
    if text == "none":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if "none" in names or not all(TARGET.fullmatch(name) for name in names):
        raise ValueError(text)
    return names


def _bearer(text: str) -> str:
    scheme, _, token = text.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ValueError("no bearer token")
    return token.strip()


def _metadata(text: str) -> dict[str, str | int | float | bool | None]:
    if len(text.encode()) > MOST_METADATA_BYTES:
        raise ValueError("too long")
    entries = json.loads(text)
    if not isinstance(entries, dict) or len(entries) > MOST_METADATA_ENTRIES:
        raise ValueError(text)
    if not all(_is_flat(value) for value in entries.values()) or SURROGATE.search("".join(_texts(entries))):
        raise ValueError(text)
    return entries


def _is_flat(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)  # Python reads NaN, Infinity and 1e999; no column holds them
    return value is None or isinstance(value, str | int)


def _texts(entries: dict[str, Any]) -> list[str]:
    return [*entries, *(value for value in entries.values() if isinstance(value, str))]


def _cost(text: str) -> dict[str, Decimal]:
    """Return USD per token, exact."""
    if len(text) > MOST_COST_BYTES:
        raise ValueError("too long")
    prices = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    if not isinstance(prices, dict) or not prices or not prices.keys() <= COSTS:
        raise ValueError(text)
    if not all(isinstance(price, Decimal) and 0 <= price <= MOST_USD_PER_TOKEN for price in prices.values()):
        raise ValueError(text)
    return prices


# -- the table --------------------------------------------------------------------------------------------------------

_BOOLEAN = "true or false"
_LINE = "printable text of 1 to {} characters, as UTF-8"

TABLE: Mapping[str, Control] = {
    "cache-ttl": Control(_whole(0, 2_592_000), "whole seconds from 0 to 2592000"),
    "cache-key": Control(_text(1024), _LINE.format(1024)),
    "skip-cache": Control(_boolean, _BOOLEAN),
    "max-attempts": Control(_whole(1, 5), "a whole number from 1 to 5"),
    "retry-delay": Control(_whole(0, 5000), "whole milliseconds from 0 to 5000"),
    "backoff": Control(_backoff, "constant, linear or exponential"),
    "request-timeout": Control(_whole(1, 3_600_000), "whole milliseconds from 1 to 3600000"),
    "fallback": Control(_targets, "names of targets, separated by commas, or none"),
    "metadata": Control(
        _metadata,
        f"a flat JSON object of at most {MOST_METADATA_ENTRIES} entries and {MOST_METADATA_BYTES} bytes,"
        " whose values are text, numbers, true, false or null",
    ),
    "session-id": Control(_text(256), _LINE.format(256)),
    "event-id": Control(_text(256), _LINE.format(256)),
    "otel-trace-id": Control(_hex(32), "32 hex digits, not all of them 0"),
    "otel-parent-span-id": Control(_hex(16), "16 hex digits, not all of them 0"),
    "collect-log": Control(_boolean, _BOOLEAN),
    "collect-log-payload": Control(_boolean, _BOOLEAN),
    "custom-cost": Control(
        _cost,
        "a JSON object of USD per token, 0 or more, under any of per_token_in, per_token_out, per_cache_read_token,"
        " per_cache_write_token",
    ),
    "byok-alias": Control(_text(256), _LINE.format(256)),
    "authorization": Control(_bearer, "Bearer and the gateway's key", secret=True),
}
"""Name without ``cf-aig-`` -> what it takes. The values that ``read`` returns have these keys."""

PREFIX = b"cf-aig-"

ALIASES: Mapping[bytes, str] = {b"cf-cache-ttl": "cache-ttl", b"cf-skip-cache": "skip-cache"}
"""Cloudflare's older names, still taken; the newer one wins where a request has both."""

CF = frozenset({b"cf-", b"Cf-", b"CF-", b"cF-"})
"""First bytes of every name that could be ours: one lookup tells for most headers that they are not."""


# -- reading ----------------------------------------------------------------------------------------------------------


def read(fields: Fields) -> dict[str, Any] | Refusal:
    """Return the parsed controls of a request: ``{"request-timeout": 1500, "collect-log": False}``.

    Values: ``metadata`` a dict, ``custom-cost`` a dict of ``Decimal`` USD per token, ``fallback`` a tuple of names
    (empty for ``none``), ``authorization`` the bare key; the others int, bool or text. A ``Refusal`` names the first
    header at fault.
    """
    ours = [field for field in fields if field[0][:3] in CF]
    if not ours:
        return {}
    values: dict[str, Any] = {}
    seen: set[bytes] = set()
    aliased: dict[str, Any] = {}
    for raw_name, raw_value in ours:
        name = raw_name.lower()
        key = ALIASES.get(name) or (name[len(PREFIX) :].decode("latin-1") if name.startswith(PREFIX) else "")
        if key not in TABLE:
            continue
        if name in seen:
            return _refusal(name, "stands twice; send it once")
        seen.add(name)
        value = _parse(name, TABLE[key], raw_value)
        if isinstance(value, Refusal):
            return value
        (aliased if name in ALIASES else values)[key] = value
    return aliased | values


def _parse(name: bytes, control: Control, raw: bytes) -> Any:
    try:
        return control.read(raw.decode().strip(" \t"))
    except (ValueError, ArithmeticError, RecursionError):  # the last two: JSON of hostile numbers, of hostile depth
        said = "cannot be read" if control.secret else f"is {_shown(raw)}"
        return _refusal(name, f"{said}; it takes {control.takes}")


def _shown(raw: bytes) -> str:
    """Return the value as a person may see it: quoted, printable, 80 characters at most."""
    text = raw.decode("utf-8", "replace").strip()
    cut = text if len(text) <= 80 else text[:79] + "…"
    return "'" + "".join(char if char.isprintable() else "�" for char in cut) + "'"


def _refusal(name: bytes, what: str) -> Refusal:
    header = name.decode("latin-1")
    return Refusal(400, "bad_request", f"The request header {header} {what}.", param=header, should_retry=False)


def is_ours(raw_name: bytes) -> bool:
    """Return whether a header is one of the gateway's own, known or not: no provider gets it."""
    name = raw_name.lower()
    return name.startswith(PREFIX) or name in ALIASES


# -- what travels on --------------------------------------------------------------------------------------------------

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"proxy-authorization",
        b"keep-alive",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers of one connection, not of the request (RFC 9110, section 7.6.1)."""

KEPT = frozenset({b"host", b"content-length", b"content-type"})
"""``connection: content-length`` would take away what tells where the body ends: these stay, whoever names them."""


def strip(fields: Fields) -> Fields:
    """Return *fields* without ours and without those of the connection; the others keep order, case and duplicates."""
    kept: Fields = []
    gone: Fields = []
    for field in fields:
        (kept if _travels(field[0]) else gone).append(field)
    named = _named_by_connection(gone)
    return [field for field in kept if field[0].lower() not in named] if named else kept


@lru_cache(1024)  # names are few, and a lookup costs a third of the decision
def _travels(raw_name: bytes) -> bool:
    return raw_name.lower() not in HOP_BY_HOP and not is_ours(raw_name)


def _named_by_connection(gone: Fields) -> set[bytes]:
    """Return the names, in lower case, that ``connection`` among *gone* declares to be of this connection only."""
    named: set[bytes] = set()
    for name, value in gone:
        if value != b"keep-alive" and name.lower() == b"connection":
            named.update(word.strip() for word in value.lower().split(b","))
    return named - HOP_BY_HOP - KEPT
