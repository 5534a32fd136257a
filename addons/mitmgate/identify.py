"""Who asks what of whom: provider and operation from host and path, model from the body, tenant and tags from headers.

Runs first. Promise: nothing that a client claims overrides what a key proves, a header that does not parse is refused
with the values it takes, and credentials become a keyed hash before anything is written down.
"""

import json
from dataclasses import replace

from mitmgate import controls, dialects, identity
from mitmgate.dialects.inflate import inflater
from mitmgate.errors import Refusal
from mitmgate.exchange import Event, Exchange, Fields, joined
from mitmgate.fields import Get, fields_of
from mitmgate.policy import Policy
from mitmgate.policy.match import acts
from mitmgate.policy.values import Timeout

BODY_BYTES = 32 << 20
"""A larger body is not parsed: it passes, and its model comes from the answer."""


REQUIRE = "identify.require"


class Identify:
    name = "mitmgate.identify"

    def __init__(self, policy: Policy, secret: bytes) -> None:
        self.policy = policy
        self.rules = policy.identify
        self.secret = secret
        """Keys the hash of credentials; made once per home."""

    def head(self, x: Exchange) -> None:
        """Read what the request's head says: the operation and the control headers."""
        if x.provider:
            x.dialect = dialects.find(x.provider, x.method, x.path)
            x.operation = x.dialect.operation if x.dialect else None
        if name := unsendable(x.fields):
            x.refuse(
                Refusal(400, "bad_request", f"the header {name} is not UTF-8, so it cannot be passed on", param=name)
            )
        found = controls.read(x.fields)
        if isinstance(found, Refusal):
            x.refuse(found)
        else:
            x.controls = found
        # mitmproxy has answered an `expect: 100-continue` by itself before anything is sent on.
        x.sent_fields = [field for field in controls.strip(x.fields) if field[0].lower() != b"expect"]

    def admit(self, x: Exchange) -> None:
        """Read the rest, once the body is here."""
        self._body(x)
        if x.dialect:
            x.request = x.dialect.read_request(x.path, x.json)
        get = fields_of(x)
        if x.door == "gateway":  # made in the name of whoever it is made for: nothing about itself is asked
            x.timeouts = self._timeout(x, get)
            return
        self._caller(x)
        self._labels(x, get)
        self._controls(x)
        x.timeouts = self._timeout(x, get)
        self._require(x, get)

    def _body(self, x: Exchange) -> None:
        if x.streamed_upload:
            x.notes.append("streamed upload: no rule read the body")
            return
        body = x.body if x.native_body is None else x.native_body
        if not x.dialect or not body:
            return
        encoding = x.headers.get("content-encoding")
        if encoding and x.native_body is None:
            coding = inflater(encoding)
            body = coding.feed(body) + coding.end() if coding else b""
        if len(body) > BODY_BYTES:
            x.notes.append(f"body of {len(body)} bytes: not parsed")
            return
        try:
            x.json = json.loads(body)
        except (ValueError, RecursionError):
            if x.headers.get("content-type", "").startswith("application/json"):
                x.notes.append("the body is not JSON")

    def _caller(self, x: Exchange) -> None:
        x.metadata = x.controls.get("metadata", {})
        proof, credential = x.proof, credential_of(x)
        x.keyless = credential is None
        if credential is not None:
            x.auth = identity.key_hash(self.secret, credential)
        elif proof:
            x.auth = proof.digest.hex()
        tenant, user = (proof.tenant, proof.user) if proof else (None, None)
        x.tenant = identity.first_of(self.rules.tenant, tenant, x.metadata, x.headers)
        x.user = identity.first_of(self.rules.user, user, x.metadata, x.headers) or x.request.end_user
        x.prompt_version = identity.first_of(self.rules.prompt_version, None, x.metadata, x.headers)
        x.session = identity.session_of(x.headers, x.controls, self.rules.session)
        x.trace_id, x.parent_span_id = identity.trace_of(x.headers, x.controls)
        x.event_id = x.controls.get("event-id")

    def _labels(self, x: Exchange, get: Get) -> None:
        x.route = identity.label(self.rules.route, get)
        x.tier = identity.label(self.rules.tier, get)
        x.sla = identity.label(self.rules.sla, get)
        x.region, x.colo = self.rules.region, self.rules.colo

    def _controls(self, x: Exchange) -> None:
        if self.policy.trace.header == "obey":
            x.keep_row = x.controls.get("collect-log", True)
            x.keep_payload = x.keep_row and x.controls.get("collect-log-payload", True)
        if self.policy.trace.payloads == "none":
            x.keep_payload = False

    def _timeout(self, x: Exchange, get: Get) -> Timeout:
        rule = acts(self.policy.timeout, get) or Timeout()
        asked_ms = x.controls.get("request-timeout")
        return rule if asked_ms is None else replace(rule, first_byte_s=asked_ms / 1000)

    def _require(self, x: Exchange, get: Get) -> None:
        if not x.dialect:
            return
        for field in self.rules.require:
            if get(field) in (None, ""):
                x.events.append(Event("identify", "require", "refuse", detail=f"{field} is missing"))
                x.refuse(self._missing(field))
                return

    def _missing(self, field: str) -> Refusal:
        sources = getattr(self.rules, field, None)
        places = " or ".join(sources) if isinstance(sources, tuple) and sources else field
        where = self.policy.where(REQUIRE)
        return Refusal(
            400,
            "bad_request",
            f"this gateway takes no request without {field}; it is read from {places}"
            f" (rule {REQUIRE}{f', {where}' if where else ''})",
            param=field,
            rule=REQUIRE,
            where=where,
            should_retry=False,
        )


def credential_of(x: Exchange) -> bytes | None:
    """Return the key that *x* came with; at the universal endpoint its first element may be the one that has it."""
    own = identity.credential_of(x.headers, x.path)
    if own or x.entry != "universal":
        return own
    return identity.credential_of(joined(x.legs[0].fields if x.legs else x.sent_fields), x.path)


def unsendable(fields: Fields) -> str | None:
    """Return the name of a header whose bytes the pool would lose: it sends text, encoded as UTF-8."""
    for name, value in fields:
        if name.isascii() and value.isascii():
            continue
        try:
            value.decode()
            name.decode()
        except UnicodeDecodeError:
            return name.decode("ascii", "replace")
    return None
