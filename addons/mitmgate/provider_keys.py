"""The key that goes with an attempt, where the gateway holds it (policy: ``targets``: ``keys``, ``aws``, ``google``).

Runs at each attempt at a target that has more than plain headers: ``arm`` chooses a key of its pool, ``sign`` gives the
fields as they go out, ``tell`` hears how it went. Which requests get a target's key at all is for ``route`` to say.

Promise: where a key of a pool is refused, the same request goes on with another that is ready at once, each key at most
once per try; where ``cf-aig-byok-alias`` names a key, no other is used. A key itself is never noted, logged or stored.
"""

import logging
from collections.abc import Mapping, Set

from mitmgate import hints
from mitmgate.arrival import Arrival
from mitmgate.clock import Clock
from mitmgate.course import Outcome
from mitmgate.exchange import Exchange, Fields, Leg
from mitmgate.policy import Policy
from mitmgate.pool import Failed, Pool
from mitmgate.provider_aws import Signer
from mitmgate.provider_google import Minter
from mitmgate.provider_pool import RESTS, KeyStates, rest_for

log = logging.getLogger("mitmgate.provider_keys")

ALIAS = "byok-alias"
"""``cf-aig-byok-alias``, as ``controls`` has it."""

KEY_HEADERS: Mapping[str, tuple[bytes, str]] = {
    "azure": (b"api-key", ""),
    "anthropic": (b"x-api-key", ""),
    "gemini": (b"x-goog-api-key", ""),
}
"""Family of a provider -> (header that it reads its key in, what stands before it)."""
BEARER = (b"authorization", "Bearer ")
"""The same for all others, and for everybody's OpenAI-compatible endpoint but Azure's."""
SCHEMES = ("bearer ", "basic ")


def key_field(leg: Leg, secret: str) -> tuple[bytes, bytes]:
    """Return the header field in which the provider at *leg* reads its key."""
    family = leg.provider.family if leg.provider else ""
    speaks_openai = leg.dialect is not None and leg.dialect.name.startswith("openai") and family != "azure"
    name, scheme = BEARER if speaks_openai else KEY_HEADERS.get(family, BEARER)
    value = secret if secret.lower().startswith(SCHEMES) else scheme + secret
    return name, value.encode()


class Keys:
    """The keys of one policy. Raises ``StartError`` where a library for them is missing, or an account is none."""

    def __init__(self, policy: Policy, states: KeyStates, clock: Clock) -> None:
        self.states, self.clock = states, clock
        self.pool: Pool | None = None
        """There once the gateway runs: tokens are asked for by it."""
        targets = policy.targets
        self.pools = {name: target.keys for name, target in targets.items() if target.keys}
        self.signers = {name: Signer(name, target.aws, clock) for name, target in targets.items() if target.aws}
        self.minters = {
            name: Minter(name, target.google, clock, lambda: self.pool, target.ca)
            for name, target in targets.items()
            if target.google
        }
        self.held = self.pools.keys() | self.signers.keys() | self.minters.keys()
        """Targets whose attempts have to be armed; empty = there is nothing to do here."""
        states.know(targets.values())

    def holds(self, leg: Leg) -> bool:
        """Return whether a key goes with an attempt at *leg* that only goes in now."""
        return leg.is_target and leg.target in self.held

    def arm(self, leg: Leg, x: Exchange, tried: set[str]) -> None:
        """Choose the key for the next attempt at *leg*, and add it to *tried*."""
        if leg.target not in self.pools:
            return
        leg.key_alias = x.controls.get(ALIAS) or self.states.choose(leg.target, tried)
        if leg.key_alias is None:
            return
        tried.add(leg.key_alias)
        self.states.used(leg.target, leg.key_alias)
        x.notes.append(f"target {leg.target}: key {leg.key_alias}")

    async def sign(self, leg: Leg, method: str, url: str, fields: Fields, body: bytes | None) -> Fields:
        """Return *fields* as they go out, with the key. *body* None = it is still arriving. Raises ``Failed``."""
        if secret := self.pools.get(leg.target, {}).get(leg.key_alias or ""):
            name, value = key_field(leg, secret)
            fields = [*(field for field in fields if field[0].lower() != name), (name, value)]
        if minter := self.minters.get(leg.target):
            fields = await minter.sign(fields)
        if signer := self.signers.get(leg.target):
            if body is None:
                raise Failed("connect", f"a streamed upload cannot be signed for {leg.target}")
            fields = await signer.sign(method, url, fields, body)
        return fields

    def tell(self, leg: Leg, outcome: Outcome) -> str | None:
        """Hear what the attempt at *leg* brought; return what became of its key, as a sentence, where that is news."""
        if isinstance(outcome, Failed):
            return None
        status = outcome.attempt.status or 0
        self._drop_made(leg.target, status)
        if leg.key_alias is None:
            return None
        rest = rest_for(status, *self._hints(outcome))
        if rest is None:
            if status < 400:
                self.states.succeeded(leg.target, leg.key_alias)
            return None
        state, seconds = rest
        is_news = self.states.refused(leg.target, leg.key_alias, status, state, seconds)
        does = "rests" if state == "resting" else "cools"
        said = f"{leg.target}: key {leg.key_alias} {does} for {seconds:g} s ({status})"
        if is_news:  # and not once for each call, where none is left but those that are refused
            log.warning("provider_keys: target %s", said)
        return said

    def may_go_on(self, leg: Leg, x: Exchange, outcome: Outcome, tried: Set[str]) -> bool:
        """Return whether the same request should go on with another key of the pool of *leg* at once."""
        if isinstance(outcome, Failed) or leg.key_alias is None or ALIAS in x.controls:
            return False
        status = outcome.attempt.status or 0
        return (status in RESTS or status == 429) and self.states.has_ready(leg.target, tried)

    def _drop_made(self, target: str, status: int) -> None:
        """Let go of a token, or of credentials, that the provider would not take; Amazon says 403 at their end."""
        if status == 401 and (minter := self.minters.get(target)):
            minter.refused()
        if status in (401, 403) and (signer := self.signers.get(target)):
            signer.refused()

    def _hints(self, arrival: Arrival) -> tuple[float | None, bool]:
        attempt = arrival.attempt
        status = attempt.status or 0
        if status != 429:
            return None, False
        _, body = arrival.body()
        named_s = hints.named_wait(attempt.headers, body, self.clock.wall(), status)
        return named_s, hints.is_final(status, attempt.headers, attempt.reading.error_type)
