"""The other side of a signature: what Amazon does with a request that arrives, written from its description.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import quote

from support.provider import Heard, Script, Wire

AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=([0-9a-f]{64})")
REFUSED = b'{"message":"The request signature we calculated does not match the signature you provided."}'


@dataclass(frozen=True, slots=True)
class Signed:
    """What the authorization of a request says."""

    access_key: str
    region: str
    service: str
    names: tuple[str, ...]
    """Of the headers that are signed."""


def signed(heard: Heard) -> Signed | None:
    """Return what *heard* says of its signature; None where it has none."""
    found = AUTHORIZATION.fullmatch(heard.header("authorization") or "")
    if found is None:
        return None
    access_key, _date, region, service, _ = found[1].split("/")
    return Signed(access_key, region, service, tuple(found[2].split(";")))


def holds(heard: Heard, secret: str) -> bool:
    """Return whether the signature of *heard* is that of the request that arrived."""
    found = AUTHORIZATION.fullmatch(heard.header("authorization") or "")
    if found is None:
        return False
    scope, names, signature = found[1].partition("/")[2], found[2].split(";"), found[3]
    path, _, query = heard.path.partition("?")
    body_hash = hashlib.sha256(heard.body).hexdigest()
    if heard.header("x-amz-content-sha256") not in (None, body_hash):
        return False
    canonical = "\n".join(
        [
            heard.method,
            quote(path, safe="/~"),
            "&".join(sorted(part if "=" in part else f"{part}=" for part in query.split("&") if part)),
            *(f"{name}:{' '.join((heard.header(name) or '').split())}" for name in names),
            "",
            ";".join(names),
            body_hash,
        ]
    )
    date = heard.header("x-amz-date") or ""
    text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature)


def checks(secret: str, body: bytes) -> Script:
    """Return a script that answers with *body* where the signature holds, and with a 403 where it does not."""

    async def script(heard: Heard, wire: Wire) -> None:
        if holds(heard, secret):
            await wire.answer(body)
        else:
            await wire.answer(REFUSED, "403 Forbidden")

    return script
