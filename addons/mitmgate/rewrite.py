"""The request as each place gets it: path, query, fields, and the model in the body. Pure; ``route`` asks.

A place is the request's own host (``own_leg``, ``own_leg_as``) or a target of the policy (``leg_for``). Promise: what
no rule asked to change goes out byte for byte, and a key never leaves for another provider. A client's credentials
travel on only where the target brings none of its own, is of the provider that the request was meant for, and stands at
the request's own host or at a public one of that provider; a downgrade to plain HTTP loses them, too. At its own host a
request with a key of its provider's is forwarded with it; one without gets what the target brings that stands there.

The answer comes back in the wire that was asked for, so a target that does not speak it is no place for the request:
``leg_for`` then says why, in words that end the sentence "target NAME is left out: …".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote_plus, urlsplit

from mitmgate import dialects, identity
from mitmgate.dialects.base import Dialect
from mitmgate.exchange import Exchange, Fields, Leg, joined
from mitmgate.policy.values import Choice, Target
from mitmgate.providers import TABLE, Hosts, Provider
from mitmgate.rewrite_body import with_model
from mitmgate.rewrite_path import Ask, Move, plan, read, with_named, with_version

ANYWHERE = Choice()
"""A place as it is: the model that was asked for, the policy's own times."""
DYNAMIC = "dynamic/"
"""How a model begins that is a name of this gateway's: no provider has one like that."""

ACCOUNT = frozenset(
    {"openai-organization", "openai-project", "chatgpt-account-id", "anthropic-organization-id", "x-goog-user-project"}
)
"""No keys, but they name the account that a key opens: both go or stay together."""
SECRET = re.compile(
    r"authoriz|authent|(?:^|[-_])auth(?:$|[-_])|token(?!s)|secret|cookie|passw|credential|signature"
    r"|api[-_]?key|(?:^|[-_])key$"
)
HARMLESS = frozenset({"idempotency-key", "x-idempotency-key"})
LITERAL: Mapping[str, frozenset[str]] = {
    row.slug: frozenset(host for host in row.hosts if not set(host) & set("*?[")) for row in TABLE
}
"""Provider -> its public hosts, those that the table knows by their whole name. A policy adds none to them."""
PUBLIC = Hosts()
"""The public hosts of all known providers: without a key nothing is had there."""
PORTS = {"http": 80, "https": 443}


@lru_cache(1024)  # names are few, and each request asks for all of its own
def is_credential(name: str) -> bool:
    """True where a header or a parameter of this name opens an account, or says which one."""
    name = name.lower()
    return name in ACCOUNT or (SECRET.search(name) is not None and name not in HARMLESS)


# -- the request's own host -------------------------------------------------------------------------------------------


def own_leg(x: Exchange, home: Target | None = None) -> Leg:
    """Return the leg to where the request would go anyway, as the client wrote it.

    *home* is the target whose host that is: its zone holds there. Where the client named the target
    (``/target/NAME/…``), or has no key of its own, the leg is the target's: its headers, keys and CA hold, too.
    """
    leg = Leg(
        x.target or (x.provider.slug if x.provider else x.host),
        x.provider,
        x.scheme,
        x.host,
        x.port,
        x.path,
        x.sent_fields,
        x.native_body,
        x.request.model,
        is_target=x.target is not None,
        dialect=x.dialect,
        request=x.request,
    )
    if x.entry:
        leg.fields = _hosted(leg.fields, _authority(x.scheme, x.host, x.port))
    if home:
        leg.zone = home.zone
        if x.target or not has_key(leg, home):
            supply(leg, home, keep=not brings_key(home))
    return leg


def has_key(leg: Leg, home: Target | None = None) -> bool:
    """Return whether the client sent a key of its own for *leg*: where providers read theirs, or in a header in which
    *home* has one. A cookie or the name of an account is none, though both are kept from strangers.
    """
    headers = joined(leg.fields)
    if identity.credential_of(headers, leg.path):
        return True
    return home is not None and any(is_credential(name) and name.lower() in headers for name in home.headers)


def supply(leg: Leg, home: Target, *, keep: bool = False) -> None:
    """Make *leg*, which leads to the host of *home*, the target's own; *keep* the client's credentials, or not."""
    leg.target, leg.is_target, leg.zone, leg.ca = home.name, True, home.zone, home.ca
    leg.fields, leg.path = _fields(leg.fields, home, keep), _path(leg.path, keep)


def own_leg_as(x: Exchange, choice: Choice, home: Target | None = None) -> Leg | str:
    """Return the same with *choice*'s model and times, or why the request cannot ask for that model."""
    leg = own_leg(x, home)
    leg.attempts, leg.first_byte_s = _patience(x, choice)
    if choice.model is None and is_alias(x):
        return _nameless(x)
    if choice.model is None or choice.model == x.request.model:
        return leg
    return _with_other_model(x, leg, choice.model, home)


def _with_other_model(x: Exchange, leg: Leg, model: str, home: Target | None) -> Leg | str:
    name = home.deployments.get(model, model) if home else model
    ask = read(leg.path, x.provider, x.dialect.name if x.dialect else None)
    leg.model, leg.request = model, replace(x.request, model=model)
    if ask.model is not None:
        path = with_named(ask.path, name)
        leg.path = f"{path}?{ask.query}" if ask.query else path
        return leg
    body = body_with(x, name)
    if isinstance(body, str):
        return body
    leg.body = body
    return leg


# -- a target ---------------------------------------------------------------------------------------------------------


def leg_for(
    x: Exchange, target: Target, provider: Provider, choice: Choice = ANYWHERE, source: Target | None = None
) -> Leg | str:
    """Return the leg to *target*, whose provider is *provider*, or why it cannot take the request.

    *source* is the target whose host the request names: its ``deployments``, read backwards, tell which model a
    deployment is. *choice* may ask for another model and set times of its own.
    """
    ask = read(x.path, x.provider, x.dialect.name if x.dialect else None)
    model = choice.model or _asked(x, ask, source)
    name = _named_there(ask, source, target, provider, model, choice.model is not None)
    if is_alias(x):
        if name is None or name == x.request.model:
            return _nameless(x)
        model = choice.model or name
    planned = plan(Move(ask, x.provider, source, target, provider), name)
    if isinstance(planned, str):
        return planned
    body = body_with(x, name) if planned.in_body and name else x.native_body
    if isinstance(body, str):
        return body

    place = Place.of(target)
    keep = _may_keep(x, target, provider, place)
    query = with_version(ask.query, planned.api_version)
    path = _path(f"{planned.path}?{query}" if query else planned.path, keep)
    attempts, first_byte_s = _patience(x, choice)
    return Leg(
        target.name,
        provider,
        place.scheme,
        place.host,
        place.port,
        path,
        _hosted(_fields(x.sent_fields, target, keep), place.authority),
        body,
        model,
        is_target=True,
        ca=target.ca,
        zone=target.zone,
        dialect=_dialect(x, provider, path),
        request=x.request if model == x.request.model else replace(x.request, model=model),
        attempts=attempts,
        first_byte_s=first_byte_s,
    )


def _patience(x: Exchange, choice: Choice) -> tuple[int | None, float | None]:
    """Return (most attempts, seconds to the first byte) of *choice*; the request's own headers go before it."""
    attempts = None if "max-attempts" in x.controls else choice.attempts
    return attempts, None if "request-timeout" in x.controls else choice.timeout_s


def is_alias(x: Exchange) -> bool:
    """True where the model is a name that only this gateway's rules know."""
    return not x.host or (x.request.model or "").startswith(DYNAMIC)


def _nameless(x: Exchange) -> str:
    return f"nothing says which model {x.request.model} is there"


def _asked(x: Exchange, ask: Ask, source: Target | None) -> str | None:
    """Return the model that is asked for, by the name that its maker gave it."""
    models = {deployment: model for model, deployment in source.deployments.items()} if source else {}
    in_body = x.json.get("model") if isinstance(x.json, dict) else None
    if ask.model is None:
        named = in_body if isinstance(in_body, str) else x.request.model
        return models.get(named, named) if named else None
    if ask.model in models:
        return models[ask.model]
    if ask.form == "deployment" and isinstance(in_body, str) and in_body:
        return models.get(in_body, in_body)  # Azure goes by the path; its SDKs repeat the deployment or name the model
    return ask.model


def _named_there(
    ask: Ask, source: Target | None, target: Target, provider: Provider, model: str | None, chosen: bool
) -> str | None:
    """Return what *target* calls *model*; *chosen*: by a rule, not by the client.

    A deployment that nobody can translate is looked for under its own name: two regions often share their names.
    """
    if model is None or model in target.deployments:
        return target.deployments.get(model) if model else None
    known = source is not None and ask.model in source.deployments.values()
    if ask.form == "deployment" and ask.model and provider.family == "azure" and not chosen and not known:
        return target.deployments.get(ask.model, ask.model)
    return model


def _dialect(x: Exchange, provider: Provider, path: str) -> Dialect | None:
    """Return what the target answers in: the wire that was asked for, with the habits of that host."""
    found = dialects.find(provider, x.method, path)
    return found if found and x.dialect and found.name == x.dialect.name else x.dialect


@dataclass(frozen=True, slots=True)
class Place:
    """Where a target stands."""

    scheme: str
    host: str
    port: int
    path: str
    """Empty where its ``base_url`` has none."""

    @classmethod
    def of(cls, target: Target) -> "Place":
        return _place(target.base_url)

    @property
    def authority(self) -> bytes:
        return _authority(self.scheme, self.host, self.port)


@lru_cache(1024)  # targets are few, and each request asks for theirs
def _place(base_url: str) -> Place:
    url = urlsplit(base_url)
    return Place(url.scheme, url.hostname or "", url.port or PORTS.get(url.scheme, 443), url.path.rstrip("/"))


def _authority(scheme: str, host: str, port: int) -> bytes:
    name = f"[{host}]" if ":" in host else host
    return (name if port == PORTS.get(scheme) else f"{name}:{port}").encode()


# -- body -------------------------------------------------------------------------------------------------------------


def body_with(x: Exchange, model: str) -> bytes | str | None:
    """Return the body asking for *model*; None = as the client sent it; a sentence's end where it cannot be told."""
    if not isinstance(x.json, dict):
        if x.request.model == model:
            return x.native_body
        return "the model stands in a body that is no JSON object, so it cannot be changed"
    if x.json.get("model") == model:
        return x.native_body
    if x.is_coded:
        return "the body is compressed, so the model in it cannot be changed"
    body = x.body if x.native_body is None else x.native_body
    return with_model(body or b"{}", model) or "the place of the model in the body cannot be found"


# -- fields and keys --------------------------------------------------------------------------------------------------


def brings_key(target: Target) -> bool:
    """Return whether *target* has a key of its own, in whichever form."""
    if target.keys or target.aws or target.google:
        return True
    return any(is_credential(name) for name in target.headers)


def needs_key(leg: Leg) -> bool:
    """Return whether nothing is to be had at *leg* without a key: at hosts that are public, so not at one's own."""
    provider = PUBLIC.find(leg.host, leg.port)
    return provider is not None and provider.family != "ollama"


def _may_keep(x: Exchange, target: Target, provider: Provider, place: Place) -> bool:
    """True where the client's own key may go to *target*."""
    if brings_key(target) or x.provider is None or x.provider.slug != provider.slug:
        return False
    if place.scheme != "https" and place.scheme != x.scheme:
        return False
    if (place.host, place.port) == (x.host.lower(), x.port):
        return True
    public = LITERAL.get(provider.slug, frozenset())
    return f"{place.host}:{place.port}" in public or (place.host in public and place.port == 443)


def _fields(fields: Fields, target: Target, keep: bool) -> Fields:
    """Return *fields* with the target's own in place of the caller's; without the caller's credentials, if not
    *keep*.
    """
    names = {name.lower() for name in target.headers}
    kept: Fields = []
    for field in fields:
        name = field[0].decode("latin-1").lower()
        if name not in names and (keep or not is_credential(name)):
            kept.append(field)
    return kept + [(name.encode(), value.encode()) for name, value in target.headers.items()]


def _hosted(fields: Fields, authority: bytes) -> Fields:
    return [(name, authority if name.lower() == b"host" else value) for name, value in fields]


def _path(path: str, keep: bool) -> str:
    """Return *path*, without the credentials in its query if not *keep*."""
    before, mark, query = path.partition("?")
    if keep or not mark:
        return path
    parts = [part for part in query.split("&") if not is_credential(unquote_plus(part.partition("=")[0]))]
    return f"{before}?{'&'.join(parts)}" if parts else before
