"""Whether there is a key for a place: the client's own, the target's, or none, and then it is no place. Pure.

``route`` asks when it has the legs. A leg that is a target's goes out with what the target brings, any other one with
what the client sent; which is which was settled when the leg was made (``rewrite``). Left to say is

- that ``cf-aig-byok-alias`` names a key of the target's pool that is there;
- that an upload, which is gone before anybody knows its hash, is not to be signed;
- under ``auth``, that a request without a key of its provider's has no business at a place that asks for one.
"""

from collections.abc import Mapping

from mitmgate import identity
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Leg, joined
from mitmgate.policy.values import Target
from mitmgate.rewrite import brings_key, has_key, is_credential, needs_key

HEADER = "cf-aig-byok-alias"
ALIAS = "byok-alias"
"""The same, as ``controls`` has it."""
DEFAULT = "default"
"""Cloudflare's alias of a key that nobody gave one: at a target without a pool, whatever key it has."""


def refusal_of(x: Exchange, leg: Leg, targets: Mapping[str, Target], asks_keys: bool) -> Refusal | None:
    """Return why *leg* has no key, as the client would be told; None where it has one, or needs none.

    *asks_keys*: the policy has ``auth``, so a key that came may have been the gateway's own, and been taken out.
    """
    target = targets[leg.target] if leg.is_target else None
    if target is not None and brings_key(target):
        return _alias(x, target) or _upload(x, target)
    if not asks_keys or has_key(leg) or not _wants_key(x, leg, target):
        return None
    return _none(leg, target)


def _alias(x: Exchange, target: Target) -> Refusal | None:
    alias = x.controls.get(ALIAS)
    if alias is None or alias in target.keys or (alias == DEFAULT and not target.keys):
        return None
    known = f"has {', '.join(sorted(target.keys))}" if target.keys else "has one key, without an alias"
    message = f"The request header {HEADER} names {alias!r}, which is no key of target {target.name}; it {known}."
    return Refusal(400, "bad_request", message, param=HEADER, should_retry=False)


def _upload(x: Exchange, target: Target) -> Refusal | None:
    if target.aws is None or not x.streamed_upload:
        return None
    message = f"This upload is passed on while it arrives, so it cannot be signed for target {target.name}."
    return Refusal(413, "too_large", message, should_retry=False)


def _wants_key(x: Exchange, leg: Leg, target: Target | None) -> bool:
    """Return whether *leg* is of use only with a key.

    A target of one's own that has none may well need none, and a host of one's own may read it in a header of its own.
    A call that generates nothing (telemetry, OAuth) may never have had one.
    """
    if target is not None:
        return needs_key(leg)
    if not needs_key(leg) and any(is_credential(name.decode("latin-1")) for name, _ in leg.fields):
        return False
    return x.dialect is not None or identity.credential_of(joined(x.fields), "") is not None


def _none(leg: Leg, target: Target | None) -> Refusal:
    if target is not None:
        message = f"Target {target.name} has no key, and this request brings none of its provider's."
    else:
        message = f"This request brings no key of its provider's, and the policy has no target at {leg.host}."
    todo = "Give the target headers, keys, aws or google" if target else "Give the policy a target there"
    message = f"{message} {todo}, or send the provider's key, and the gateway's as cf-aig-authorization."
    return Refusal(401, "authentication", message, should_retry=False)
