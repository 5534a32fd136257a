"""The gateway's own key: who may come in, in whose name, and for which models (policy: ``auth``).

With that section each request of a provider's host has to show a key, also one that generates nothing. It is looked for
in this order, and the first place that has one decides:

1. ``cf-aig-authorization: Bearer KEY``,
2. ``Proxy-Authorization`` of the request, or of the CONNECT that its connection came by,
3. the place of the provider's own key: ``authorization``, ``x-api-key``, ``api-key``, ``x-goog-api-key``, ``?key=``.

What a key proves, tenant and user, goes before all that a client claims. Which models it permits is asked when the body
is here.

Promises: a key of ours never reaches a provider, wherever it stands and with or without the section; nobody learns by
the time that an answer takes how much of a key was right; a key that was revoked a moment ago opens nothing any more,
also not on a connection that it has opened before.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from urllib.parse import unquote_plus

from mitmgate import identity
from mitmgate.clock import Clock, iso
from mitmgate.counters import named
from mitmgate.errors import Refusal
from mitmgate.exchange import Event, Exchange, Fields, joined
from mitmgate.policy import Policy
from mitmgate.policy.values import Key
from mitmgate.providers import CREDENTIAL_HEADERS
from mitmgate.store.gateway_keys import GatewayKeys, Unreadable
from mitmgate.store.key_file import PREFIX, Made

HEADER = "cf-aig-authorization"
PROXY_HEADER = "proxy-authorization"
PLACES = frozenset(name.encode() for name in CREDENTIAL_HEADERS)
"""Headers in which a provider's key travels, so where ours may stand instead."""
PARAMETERS = frozenset({"key", "api-key"})
"""Query parameters in which it does."""

HOW = f"send it as `{HEADER}: Bearer KEY`, as Proxy-Authorization, or in place of the provider's key"

LATER = re.compile(r"/batches$|/batchPredictionJobs$|:\w*[bB]atch\w*$|/model-invocation-jobs?$|/fine_tuning/jobs$")
"""Paths of calls that have models work later, which are named where no rule reads them."""


# -- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proof:
    """What a key proves and permits."""

    name: str
    """Of the key."""
    tenant: str | None
    user: str | None
    models: tuple[str, ...]
    """Globs; empty = all."""
    digest: bytes = field(repr=False)
    """Stands for the key; in rows as ``auth``, where no provider's key came."""

    def permits(self, model: str | None) -> bool:
        """Return whether *model* may be asked for; one that nobody knows only where all may."""
        return not self.models or (model is not None and _globs(self.models).match(model.lower()) is not None)


# -- pure: where keys stand -------------------------------------------------------------------------------------------


def bearer(value: str) -> str:
    """Return the key in a header's value, with or without ``Bearer`` before it."""
    scheme, _, rest = value.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def proxy_key(value: str) -> str | None:
    """Return the key in a ``Proxy-Authorization``: the password of Basic (its user where that is all), or what Bearer
    has; None where the value is neither.
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return password or user or None


def parameters(path: str) -> list[tuple[str, str]]:
    """Return the parts of *path*'s query that may be a key, each with the key in it: ``("key=mg-…", "mg-…")``."""
    parts = (part.partition("=") for part in path.partition("?")[2].split("&"))
    return [(f"{name}={value}", unquote_plus(value)) for name, equals, value in parts if equals and name in PARAMETERS]


def without(path: str, parts: Iterable[str]) -> str:
    """Return *path* without *parts* of its query; the others stay byte for byte."""
    head, _, query = path.partition("?")
    kept = [part for part in query.split("&") if part not in parts]
    return f"{head}?{'&'.join(kept)}" if kept else head


def taken_out(x: Exchange) -> Fields:
    """Return the header fields of *x* in which a key of ours stood in the place of the provider's."""
    return [field for field in x.fields if field[0].lower() in PLACES and field not in x.sent_fields]


@lru_cache(1024)
def _globs(models: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob.lower()) for glob in models))


def may_hold_ours(x: Exchange) -> bool:
    """Return whether a key that ``mitmgate keys new`` made may stand where the provider's should: a glance."""
    headers = x.headers
    return (
        PREFIX in headers.get("authorization", "")
        or PREFIX in headers.get("x-api-key", "")
        or PREFIX in headers.get("api-key", "")
        or PREFIX in headers.get("x-goog-api-key", "")
        or PREFIX in x.path
    )


# -- the room ---------------------------------------------------------------------------------------------------------


class Auth:
    name = "mitmgate.auth"

    def __init__(self, policy: Policy, keys: GatewayKeys, secret: bytes, clock: Clock) -> None:
        self.policy, self.keys, self.clock = policy, keys, clock
        self.rules = policy.auth
        self.secret = secret
        """Keys the digests; made once per home."""
        self.named: dict[bytes, tuple[bytes, Key]] = {}
        """Beginning of a digest -> digest, and the policy's own key that it stands for."""
        self.places: dict[str, str | None] = {}
        """Name of such a key -> where the policy has it."""
        for n, key in enumerate(policy.auth.keys if policy.auth else ()):
            digest = keys.digest_of(key.key)
            self.named[digest[:8]] = digest, key
            self.places[key.name] = policy.where(f"auth.keys[{n}]")

    def head(self, x: Exchange) -> None:
        """Take our keys out of the request; with the section, ask for one."""
        if self.rules is None:
            if may_hold_ours(x):
                self._take_out(x)
            return
        instead = self._take_out(x)
        shown = self._shown(x, instead)
        found = self.prove(shown) if shown else self._missing(x)
        if isinstance(found, Refusal):
            _refuse(x, found)
        else:
            x.proof = found
            self.keys.used(found.digest)

    def admit(self, x: Exchange) -> None:
        """See that the key permits the models that are asked for."""
        if x.entry == "universal":
            self._take_out_of_elements(x)
        if x.proof is not None and x.proof.models and (refusal := self._forbidden(x, x.proof)):
            _refuse(x, refusal)

    # -- for the doors, too

    def prove(self, shown: bytes) -> Proof | Refusal:
        """Return what the key proves that *shown* is the digest of, or the refusal that its bearer gets."""
        if key := self._of_policy(shown):
            return self._unless_over(Proof(key.name, key.tenant, key.user, key.models, shown), key.expires, None)
        try:
            made = self.keys.find(shown)
        except Unreadable:
            return self._unreadable()
        if made is None:
            return self.wrong(f"the gateway's key that came is not known here; {HOW}")
        return self._unless_over(_proof(made), made.expires_at, made.revoked_at)

    def digest_of(self, key: str) -> bytes:
        return self.keys.digest_of(key)

    def is_ours(self, key: str) -> bool:
        """Return whether *key* is one of the gateway's own, still good or not: no provider gets it."""
        return key.startswith(PREFIX) or (bool(self.named) and self._of_policy(self.digest_of(key)) is not None)

    def shown_in(self, headers: dict[str, str]) -> bytes | None:
        """Return the digest of the key that *headers* show to the gateway; None where they show none."""
        if value := headers.get(HEADER):
            return self.digest_of(bearer(value))
        if value := headers.get(PROXY_HEADER):
            return self.digest_of(proxy_key(value) or "")
        return None

    # -- who comes in

    def _shown(self, x: Exchange, instead: Sequence[str]) -> bytes | None:
        """Return the digest of the key that *x* shows; *instead* are those that stood where a provider's should."""
        shown = self.shown_in(x.headers) or x.connect_key
        for name in (HEADER, PROXY_HEADER):
            x.headers.pop(name, None)
        x.controls.pop("authorization", None)
        return shown or (self.digest_of(instead[0]) if instead else None)

    def _of_policy(self, digest: bytes) -> Key | None:
        known, key = self.named.get(digest[:8], (b"", None))
        return key if hmac.compare_digest(known, digest) else None

    def _unless_over(self, proof: Proof, expires: float | None, revoked: float | None) -> Proof | Refusal:
        """Return *proof*, or why it proves nothing any more: only who has the whole key learns that."""
        if revoked is not None:
            return self.wrong(f"the gateway's key {proof.name!r} was revoked at {iso(revoked)}; ask for a new one")
        if expires is not None and expires <= self.clock.wall():
            return self.wrong(f"the gateway's key {proof.name!r} expired at {iso(expires)}; ask for a new one")
        return proof

    def _missing(self, x: Exchange) -> Refusal:
        signed = x.headers.get("authorization", "").startswith("AWS4-")
        note = "; an AWS signature has no place for it, so an access key id of ours opens nothing" if signed else ""
        return self.wrong(f"this gateway takes no request without a key of its own; {HOW}{note}")

    def wrong(self, message: str) -> Refusal:
        """Return a 401 that says *message*."""
        return Refusal(
            401,
            "authentication",
            message,
            param=HEADER,
            rule="auth",
            where=self.policy.where("auth"),
            should_retry=False,
        )

    def _unreadable(self) -> Refusal:
        return Refusal(
            503,
            "overloaded",
            "mitmgate cannot read its keys just now, so it cannot tell whether this one opens it; try again",
            rule="auth",
            where=self.policy.where("auth"),
            retry_after_s=1,
        )

    # -- what no provider gets

    def _take_out(self, x: Exchange) -> list[str]:
        """Take our keys out of what the provider gets of the head, and out of what rules and rows see; return them."""
        x.sent_fields, found = self._parted(x.sent_fields)
        if found:
            for name in CREDENTIAL_HEADERS:
                x.headers.pop(name, None)
            x.headers |= joined(field for field in x.sent_fields if field[0].lower() in PLACES)
        x.path, more = self._parted_path(x.path)
        return found + more

    def _take_out_of_elements(self, x: Exchange) -> None:
        """The same with what the elements of a universal request bring, each in its own headers."""
        x.sent_fields, found = self._parted(x.sent_fields)
        for leg in x.legs:
            leg.fields, in_fields = self._parted(leg.fields)
            leg.path, in_path = self._parted_path(leg.path)
            found += in_fields + in_path
        if found:
            self._identify_again(x)

    def _identify_again(self, x: Exchange) -> None:
        """Say who asks, now that the first element may have lost what ``identify`` went by."""
        if x.legs:
            x.path = x.legs[0].path
        credential = identity.credential_of(joined(x.legs[0].fields if x.legs else x.sent_fields), x.path)
        x.keyless = credential is None
        if credential is not None:
            x.auth = identity.key_hash(self.secret, credential)
        else:
            x.auth = x.proof.digest.hex() if x.proof else None

    def _parted(self, fields: Fields) -> tuple[Fields, list[str]]:
        """Return *fields* without our keys, and these."""
        kept: Fields = []
        found: list[str] = []
        for field_ in fields:
            if field_[0].lower() in PLACES and self.is_ours(key := bearer(field_[1].decode("utf-8", "replace"))):
                found.append(key)
            else:
                kept.append(field_)
        return (kept, found) if found else (fields, found)

    def _parted_path(self, path: str) -> tuple[str, list[str]]:
        """Return *path* without our keys, and these."""
        if "key=" not in path:
            return path, []
        ours = {part: key for part, key in parameters(path) if self.is_ours(key)}
        return (without(path, ours), list(ours.values())) if ours else (path, [])

    # -- for which models

    def _forbidden(self, x: Exchange, proof: Proof) -> Refusal | None:
        """Return why *proof* does not permit what *x* asks for."""
        if x.dialect is None:
            late = x.method == "POST" and LATER.search(x.path.partition("?")[0])
            return self.forbid(proof, "the models of this call stand where no rule reads them") if late else None
        if x.streamed_upload:
            return self.forbid(proof, "this body is too large for anybody to read its model before it is sent on")
        asked = [leg.request.model for leg in x.legs] if x.legs else [x.request.model]
        beyond = [model for model in asked if not proof.permits(model)]
        if not beyond:
            return None
        return self.forbid(proof, f"{beyond[0][:80]!r} is none of them" if beyond[0] else "this call names no model")

    def forbid(self, proof: Proof, why: str) -> Refusal:
        """Return a 403; *why* ends the sentence "the key is for these models, and …"."""
        where = self.places.get(proof.name) or self.policy.where("auth")
        models = ", ".join(proof.models)
        return Refusal(
            403,
            "permission",
            f"the gateway's key that came is for the models {models}, and {why} ({named(proof.name, where)})",
            param="model",
            rule=proof.name,
            where=where,
            should_retry=False,
        )


def _refuse(x: Exchange, refusal: Refusal) -> None:
    if x.refusal is None:
        x.refuse(refusal)
        x.events.append(Event("auth", refusal.rule or "auth", "refuse", detail=refusal.message))


def _proof(made: Made) -> Proof:
    return Proof(made.name, made.tenant, made.user, made.models, made.digest)
