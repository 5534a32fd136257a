"""The universal endpoint's body, element by element: each is a request of its own. Pure; ``entry`` asks.

An element is ``{"provider", "endpoint", "headers", "query", "config"}``. It goes where ``/{provider}/{endpoint}`` of
this door leads, its body is ``query`` in the client's own bytes. Of the outer request it gets what describes the client
(``OF_THE_CLIENT``) and nothing else: the outer credentials are somebody else's. An older form, ``"authorization"``
beside ``"headers"``, is taken where those have none.

Settings of an element are the ``cf-aig-*`` among its headers, else their like in ``config``; both go before the outer
request's headers, as at Cloudflare. Tries, waits and times hold for the element; ``FOR_ALL`` can only hold for the
whole request, so they are heard from the first element and no other. An only element is the whole request.

Source: https://developers.cloudflare.com/ai-gateway/usage/universal/ (2026-10).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mitmgate import controls, dialects
from mitmgate.dialects.base import Json
from mitmgate.door_paths import Entry, Nowhere, Place, resolve
from mitmgate.entry_compat import DYNAMIC, Wrong, model_of, unwrapped
from mitmgate.errors import Refusal
from mitmgate.exchange import Fields, Leg
from mitmgate.policy import Policy
from mitmgate.providers import Hosts
from mitmgate.rewrite_body import items_of, member_of

MOST = 20
"""Elements of one request."""

OF_THE_CLIENT = frozenset({b"accept", b"accept-encoding", b"accept-language", b"user-agent"})
OF_THE_MESSAGE = frozenset({b"host", b"content-length", b"content-encoding", b"expect", b"trailer"})
"""Headers that only who sends the message can know."""

CONFIG = {
    "requestTimeout": "request-timeout",
    "maxAttempts": "max-attempts",
    "retryDelay": "retry-delay",
    "backoff": "backoff",
    "cacheTtl": "cache-ttl",
    "skipCache": "skip-cache",
}
"""Key of ``config`` -> the ``cf-aig-*`` header that says the same, without that prefix."""

FOR_ALL = frozenset(
    {
        "cache-ttl",
        "cache-key",
        "skip-cache",
        "metadata",
        "session-id",
        "event-id",
        "otel-trace-id",
        "otel-parent-span-id",
        "collect-log",
        "collect-log-payload",
    }
)
"""Settings of the request, not of one place. The others of an element hold for it alone, or, like a price, for all only
where it is the only one.
"""

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
ENDPOINT = re.compile(r"[\x21-\x7e]*")
"""What may stand in a path: no blank, no line break, nothing that has to be percent-encoded."""


@dataclass(frozen=True, slots=True)
class Element:
    """One request of several, any of which may answer."""

    place: Place | None
    """None: a rule of ``route`` says where ``dynamic/NAME`` goes."""
    path: str
    """At the place; where there is none, at this door."""
    fields: Fields
    body: bytes
    json: Json
    """``body``, parsed."""
    settings: Mapping[str, Any]
    """As ``controls.read`` gives them."""

    @property
    def leg(self) -> Leg:
        """The leg to its place. Raises ``ValueError`` where it has none."""
        place, settings = self.place, self.settings
        if place is None:
            raise ValueError(f"{self.path} has no place of its own")
        dialect = dialects.find(place.provider, "POST", place.path) or dialects.GENERIC
        request = dialect.read_request(place.path, self.json)
        return Leg(
            place.provider.slug,
            place.provider,
            place.scheme,
            place.host,
            place.port,
            place.path,
            self.fields,
            self.body,
            request.model,
            dialect=dialect,
            request=request,
            attempts=settings.get("max-attempts"),
            first_byte_s=_seconds(settings.get("request-timeout")),
            delay_s=_seconds(settings.get("retry-delay")),
            backoff=settings.get("backoff"),
        )


def elements_of(body: bytes, outer: Fields, hosts: Hosts, policy: Policy) -> list[Element]:
    """Return the elements of *body*, in order; *outer* are the request's own headers.

    Raises ``Wrong``, which names the first element that is, counted from 1.
    """
    try:
        items = items_of(body)
    except (ValueError, RecursionError):
        message = 'the universal endpoint takes a JSON array of {"provider", "endpoint", "headers", "query"}'
        raise Wrong(f"{message}; for one provider use /PROVIDER/…, or /compat/chat/completions") from None
    if not 1 <= len(items) <= MOST:
        raise Wrong(f"the universal endpoint takes 1 to {MOST} elements, not {len(items)}")
    elements: list[Element] = []
    for n, (value, text) in enumerate(items, 1):
        try:
            elements.append(_element(value, text, outer, hosts, policy))
            if elements[-1].place is None and len(items) > 1:
                raise Wrong(f"{DYNAMIC}NAME has an order of its own; send it as the only element", "model")
        except Wrong as wrong:
            raise Wrong(f"element {n} of {len(items)}: {wrong}", wrong.param, wrong.status) from None
    return elements


def _element(value: Json, text: str, outer: Fields, hosts: Hosts, policy: Policy) -> Element:
    if not isinstance(value, dict):
        raise Wrong("it takes an object with provider, endpoint, headers and query")
    given = _headers(value)
    settings = _configured(value.get("config")) | _steered(given)
    query = member_of(text, "query")
    if query is None:
        raise Wrong("query is missing; it takes the request body that the provider's own API has", "query")
    body, parsed = query.encode("utf-8", "surrogatepass"), value["query"]

    found = _place(value, hosts, policy)
    if isinstance(found, Place):
        return Element(found, found.path, _fields(found, given, outer), body, parsed, settings)
    model = model_of(parsed)
    if model.startswith(DYNAMIC):
        return Element(None, found.path, _fields(None, given, outer), body, parsed, settings)
    path, mark, parameters = found.path.partition("?")
    place, native = unwrapped(body, model, path.removeprefix("/compat/"), mark + parameters, hosts)
    return Element(place, place.path, _fields(place, given, outer), native, _renamed(parsed, model), settings)


def _place(value: dict[str, Json], hosts: Hosts, policy: Policy) -> Place | Entry:
    slug, endpoint = _text(value, "provider"), _text(value, "endpoint")
    if slug != "compat" and slug not in hosts.providers:
        known = ", ".join(sorted(hosts.providers))
        raise Wrong(f"no provider {slug[:80]!r}; there are {known}, and compat", "provider", 404)
    if not ENDPOINT.fullmatch(endpoint):
        raise Wrong(f"endpoint is {endpoint[:80]!r}; it takes a path as a URL has it, percent-encoded", "endpoint")
    found = resolve("POST", f"/{slug}/{endpoint.lstrip('/')}", hosts, policy)
    if isinstance(found, Place | Entry):
        return found
    raise Wrong(found.message if isinstance(found, Nowhere) else found.page, "endpoint", 404)


def _renamed(parsed: Json, model: str) -> Json:
    return {**parsed, "model": model.partition("/")[2]}


def _text(value: dict[str, Json], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise Wrong(f"{name} is {'missing' if text is None else _shown(text)}; it takes text", name)
    return text


# -- headers ----------------------------------------------------------------------------------------------------------


def _headers(value: dict[str, Json]) -> Fields:
    """Return the headers that an element brings, as it wrote them."""
    given = value.get("headers")
    if given is not None and not isinstance(given, dict):
        raise Wrong(f"headers is {_shown(given)}; it takes an object of names and values", "headers")
    fields = [_header(name, text) for name, text in (given or {}).items() if text is not None]
    older = value.get("authorization")
    if older is not None and not any(name.lower() == b"authorization" for name, _ in fields):
        fields.append(_header("authorization", older))
    return fields


def _header(name: str, value: Json) -> tuple[bytes, bytes]:
    """Return a field; its value may be a number, a boolean or an object, which go as JSON."""
    if not NAME.fullmatch(name):
        raise Wrong(f"{name[:80]!r} cannot be the name of a header", "headers")
    text = _as_text(value)
    try:
        if CONTROL.search(text):
            raise ValueError(text)
        return name.encode(), text.strip().encode()
    except ValueError:
        raise Wrong(f"the header {name} holds a character that no header can carry", "headers") from None


def _fields(place: Place | None, given: Fields, outer: Fields) -> Fields:
    """Return what the place gets: *given*, what describes the client, and what a JSON body needs."""
    own = [field for field in controls.strip(given) if field[0].lower() not in OF_THE_MESSAGE]
    names = {name.lower() for name, _ in own}
    client = [(name, value) for name, value in outer if name.lower() in OF_THE_CLIENT and name.lower() not in names]
    host = [(b"host", place.authority if place else b"")]
    kind = [] if b"content-type" in names else [(b"content-type", b"application/json")]
    return [*host, *client, *kind, *own]


# -- settings ---------------------------------------------------------------------------------------------------------


def _steered(given: Fields) -> dict[str, Any]:
    """Return what the ``cf-aig-*`` among an element's headers say. The gateway's own key does not belong there."""
    found = controls.read(given)
    if isinstance(found, Refusal):
        raise Wrong(found.message, found.param)
    found.pop("authorization", None)
    return found


def _configured(config: Json) -> dict[str, Any]:
    """Return what an element's ``config`` says, by the names of the headers."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise Wrong(f'config is {_shown(config)}; it takes an object such as {{"maxAttempts": 2}}', "config")
    settings: dict[str, Any] = {}
    for key, name in CONFIG.items():
        if config.get(key) is None:
            continue
        control = controls.TABLE[name]
        try:
            settings[name] = control.read(_as_text(config[key]))
        except ValueError:
            message = f"config.{key} is {_shown(config[key])}; it takes {control.takes}"
            raise Wrong(message, f"config.{key}") from None
    return settings


def _as_text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _shown(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
