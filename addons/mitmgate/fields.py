"""What a rule's ``match`` may ask of an exchange, field by field; the one place that knows where each is kept."""

from collections.abc import Callable

from mitmgate.dialects.base import Json
from mitmgate.exchange import Exchange

type Get = Callable[[str], object | None]
"""How a field is looked up."""


def fields_of(x: Exchange) -> Get:
    """Return how a rule's ``match`` looks a field up in *x*."""

    def get(field: str) -> object | None:
        kind, _, name = field.partition(".")
        if kind == "metadata":
            return x.metadata.get(name)
        if kind == "header":
            return x.headers.get(name.lower())
        if kind == "body":
            return _of_body(x.json, name)
        return _FIELDS[field](x)

    return get


def _of_body(json: Json, name: str) -> object | None:
    """Return the member *name* of a JSON body, dots going inwards; None where there is none, or no single value."""
    for part in name.split("."):
        json = json.get(part) if isinstance(json, dict) else None
    return json if isinstance(json, str | int | float | bool) else None


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
    "user": lambda x: x.user,
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
