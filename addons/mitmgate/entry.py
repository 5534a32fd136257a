"""Cloudflare's entries of the base-URL door, which name the provider in the body: ``/compat`` and the universal one.

Runs first. The body is unwrapped, and the exchange becomes what it would be if the client had asked the provider
itself: rules see its provider, host, path, model and body, and nothing of the wrapping. Promise: apart from the model's
name the provider gets the client's own bytes, and what cannot be unwrapped never leaves.

- ``/compat/chat/completions``, ``/compat/embeddings``: ``entry_compat`` finds the one provider. A model that no
  provider's name begins, ``dynamic/NAME`` or one that a rule of ``route`` asks for, is left to ``route``.
- The universal endpoint: ``entry_elements`` makes a leg of each element. They are tried in order, each on its own
  terms, and any failure leads on to the next: that is what the client asked for by sending them.
"""

import json

from mitmgate import dialects
from mitmgate.dialects.base import Dialect, Json
from mitmgate.dialects.inflate import inflater
from mitmgate.door_paths import Place
from mitmgate.entry_compat import DYNAMIC, Wrong, model_of, named, unwrapped
from mitmgate.entry_elements import FOR_ALL, elements_of
from mitmgate.exchange import Exchange, Leg
from mitmgate.policy import Policy
from mitmgate.policy.match import compile_match
from mitmgate.policy.values import Causes
from mitmgate.providers import Hosts

MOST_BYTES = 32 << 20
"""A larger body is refused: it cannot be sent on before it has been read."""
STEP_BYTES = 64 * 1024
"""Inflated at a time, so that a bomb is noticed early."""

EVERY_FAILURE: Causes = frozenset({"4xx", "5xx", "connect", "timeout", "reset", "error_event"})

SPOKEN: dict[str, Dialect] = {
    "/compat/chat/completions": dialects.CHAT,
    "/compat/embeddings": dialects.EMBEDDINGS,
    "/": dialects.CHAT,
}
"""Path of an entry -> what its refusals are written in. The universal one has no wire of its own; when its body has
been read, it has the first element's.
"""


class Entry:
    name = "mitmgate.entry"

    def __init__(self, policy: Policy, hosts: Hosts) -> None:
        self.policy, self.hosts = policy, hosts
        self.aliases = [
            compile_match({"model": rule.match.says["model"]})
            for rule in policy.route
            if rule.match and "model" in rule.match.says and (rule.tries or rule.split or rule.choose)
        ]
        """What rules of ``route`` that choose places ask of the model's name."""

    def head(self, x: Exchange) -> None:
        """Give an entry its dialect, so that it counts as a call and can be refused in words of its API."""
        if x.entry:
            _speak(x)

    def admit(self, x: Exchange) -> None:
        """Unwrap the body, or refuse it."""
        if not x.entry:
            return
        try:
            body = plain_body(x)
            if x.entry == "compat":
                self._compat(x, body)
            else:
                self._universal(x, body)
        except Wrong as wrong:
            x.refuse(wrong.refusal)

    def _compat(self, x: Exchange, body: bytes) -> None:
        model = model_of(_parsed(body))
        if self._is_routed(model):
            return
        path, mark, query = x.path.partition("?")
        place, native = unwrapped(body, model, path.removeprefix("/compat/"), mark + query, self.hosts)
        x.sent_fields = [field for field in x.sent_fields if field[0].lower() != b"content-encoding"]
        _turn_to(x, place, native)

    def _is_routed(self, model: str) -> bool:
        """True where no provider is named, and a rule of ``route`` may know what is meant."""
        if model.startswith(DYNAMIC):
            return True
        try:
            named(model, self.hosts)
        except Wrong:
            return any(alias.holds(lambda _: model) for alias in self.aliases)
        return False

    def _universal(self, x: Exchange, body: bytes) -> None:
        elements = elements_of(body, x.fields, self.hosts, self.policy)
        first = elements[0]
        x.controls |= {name: value for name, value in first.settings.items() if len(elements) == 1 or name in FOR_ALL}
        if first.place is None:
            x.path, x.native_body, x.sent_fields = first.path, first.body, first.fields
            _speak(x)
            return
        x.legs = _open_to(x, [element.leg for element in elements])
        x.fall_back_on, x.route_rule = EVERY_FAILURE, "universal"
        x.dialect = x.legs[0].dialect
        _turn_to(x, first.place, first.body)


# -- pure -------------------------------------------------------------------------------------------------------------


def plain_body(x: Exchange) -> bytes:
    """Return the body of *x*, its content coding undone. Raises ``Wrong``."""
    body = x.body or b""
    if coding := x.headers.get("content-encoding"):
        body = _inflated(body, coding)
    if len(body) > MOST_BYTES:
        raise Wrong(f"the body is larger than the {MOST_BYTES >> 20} MiB that can be read here", status=413)
    return body


def _inflated(body: bytes, coding: str) -> bytes:
    """Return *body* without its *coding*; of a body that is too large only so much that this shows."""
    undo = inflater(coding)
    if undo is None:
        raise Wrong(f"the body's content-encoding {coding[:80]!r} is not known here", "content-encoding")
    plain = bytearray()
    for at in range(0, len(body), STEP_BYTES):
        plain += undo.feed(body[at : at + STEP_BYTES])
        if undo.dead:
            raise Wrong(f"the body could not be read because {undo.dead}", "content-encoding")
        if len(plain) > MOST_BYTES:
            break
    return bytes(plain)


def _parsed(body: bytes) -> Json:
    """Return what *body* says; None where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _open_to(x: Exchange, legs: list[Leg]) -> list[Leg]:
    """Return those of *legs* that ``cf-aig-fallback`` leaves: ``none`` leaves the first."""
    names: tuple[str, ...] | None = x.controls.get("fallback")
    if names:
        message = "cf-aig-fallback has no say at the universal endpoint: the elements of the body are the order"
        raise Wrong(message, "cf-aig-fallback")
    return legs if names is None else legs[:1]


def _speak(x: Exchange) -> None:
    """Give *x*, which names no provider yet, the dialect of its entry."""
    x.dialect = SPOKEN.get(x.path.partition("?")[0], dialects.CHAT)  # a person may have edited the path in mitmweb
    x.operation = x.dialect.operation


def _turn_to(x: Exchange, place: Place, body: bytes) -> None:
    """Make *x* what it would be if its client had sent *body* to *place*."""
    x.provider = place.provider
    x.scheme, x.host, x.port, x.path = place.scheme, place.host, place.port, place.path
    x.dialect = dialects.find(place.provider, "POST", place.path) or x.dialect
    x.operation = x.dialect.operation if x.dialect else None
    x.native_body = body
