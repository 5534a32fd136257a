"""What a rule's ``match`` may ask of an exchange, field by field; the one place that knows where each is kept."""

import json
from collections.abc import Callable

from mitmgate.dialects.base import Json
from mitmgate.exchange import Exchange

type Get = Callable[[str], object | None]
"""How a field is looked up."""


class Hidden(str):
    """A value that a guard hides: rules go by it as by any other, and nobody writes it down as it is."""

    __slots__ = ()


def fields_of(x: Exchange) -> Get:
    """Return how a rule's ``match`` looks a field up in *x*."""

    def get(field: str) -> object | None:
        if (read := _FIELDS.get(field)) is not None:
            return read(x)
        kind, _, name = field.partition(".")
        if kind == "metadata":
            return _of_person(x, x.metadata.get(name))
        if kind == "header":
            return x.headers.get(name.lower())
        if kind == "body":
            return _of_body(x.json, name)
        raise KeyError(field)

    return get


def text_of(value: object | None) -> str:
    """Return a field's value as text; empty where there is none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _of_person(x: Exchange, value: object | None) -> object | None:
    """Return *value*, by which an app may have named somebody; marked where a guard hides it."""
    if x.shows is None or not isinstance(value, str) or x.shows(value) == value:
        return value
    return Hidden(value)


def _of_body(body: Json, name: str) -> object | None:
    """Return the member *name* of a JSON body, dots going inwards; None where there is none, or no single value."""
    for part in name.split("."):
        body = body.get(part) if isinstance(body, dict) else None
    return body if isinstance(body, str | int | float | bool) else None


_FIELDS: dict[str, Callable[[Exchange], object | None]] = {
    "provider": lambda x: x.provider.slug if x.provider else None,
    "host": lambda x: x.host,
    "path": lambda x: x.path.partition("?")[0],
    "method": lambda x: x.method,
    "operation": lambda x: x.operation,
    "model": lambda x: x.request.model,
    "tier": lambda x: x.tier,
    "stream": lambda x: x.request.stream,
    "tenant": lambda x: x.tenant,
    "user": lambda x: _of_person(x, x.user),
    "prompt_version": lambda x: x.prompt_version,
    "route": lambda x: x.route,
    "session": lambda x: x.session,
    "auth": lambda x: x.auth,
    "region": lambda x: x.region,
    "colo": lambda x: x.colo,
    "sla": lambda x: x.sla,
    "user_agent": lambda x: x.headers.get("user-agent"),
    "input_tokens": lambda x: x.request.input_tokens_estimate,
}
