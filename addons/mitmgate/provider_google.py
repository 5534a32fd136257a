"""Tokens for Vertex AI, minted from a service account that the gateway holds (policy: ``targets``: ``google``).

A token is asked for where the account's JSON says (``token_uri``), with an assertion signed by its private key;
google-auth (extra ``google``) signs, our own pool asks, so that roots, proxy and ``connect_to`` of the policy hold. One
token serves all calls of its target until shortly before its end.

Source: https://developers.google.com/identity/protocols/oauth2/service-account#httprest (2026-10).
"""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp

from mitmgate.clock import Clock
from mitmgate.errors import StartError
from mitmgate.exchange import Attempt, Fields
from mitmgate.extras import needed
from mitmgate.fresh import Fresh, Made
from mitmgate.policy.values import Google
from mitmgate.pool import Failed, Outgoing, Pool

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LASTS_S = 3600
"""Of an assertion, and of a token whose answer does not say."""
PATIENCE_S = 30.0
"""So long a token may take."""
CONNECT_S = 10.0
MOST_BYTES = 64 * 1024
"""A longer answer is no token."""
WORD = re.compile(r"[a-z_]{1,64}")
"""Of OAuth's errors: ``invalid_grant``."""


class Minter:
    """Mints for one target. Raises ``StartError`` where google-auth is not there, or the account is none."""

    def __init__(
        self, target: str, google: Google, clock: Clock, pool: Callable[[], Pool | None], ca: str | None
    ) -> None:
        key = f"targets.{target}.google.service_account"
        self.target, self.clock, self.pool, self.ca = target, clock, pool, ca
        self._jwt = needed("google.auth.jwt", "google", key)
        account = _account(key, google.service_account)
        self.email, self.uri = account["client_email"], account["token_uri"]
        try:
            self._signer = needed("google.auth.crypt", "google", key).RSASigner.from_service_account_info(account)
        except Exception as error:  # whatever cannot be read must not be quoted
            raise StartError(f"{key}: its private_key cannot be read") from error
        self.tokens: Fresh[str] = Fresh(f"the token of {target}", self._mint, clock)

    async def sign(self, fields: Fields) -> Fields:
        """Return *fields* with a token. Raises ``Failed`` where none can be had."""
        token = await self.tokens.get()
        kept = [field for field in fields if field[0].lower() != b"authorization"]
        return [*kept, (b"authorization", b"Bearer " + token.encode())]

    def refused(self) -> None:
        """The provider would not take the token: the next call gets another."""
        self.tokens.forget()

    # -- minting

    async def _mint(self) -> Made[str]:
        host = urlsplit(self.uri).hostname or ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, body = await self._ask(await asyncio.to_thread(self._assertion))
        except TimeoutError:
            raise Failed("connect", f"no token for {self.target}: {host} gave none within {PATIENCE_S:g} s") from None
        except (Failed, aiohttp.ClientError, ConnectionError) as error:
            raise Failed("connect", f"no token for {self.target}: {error}") from error
        said = _parsed(body)
        token, lasts_s = said.get("access_token"), said.get("expires_in", LASTS_S)
        if status != 200 or not isinstance(token, str) or not isinstance(lasts_s, int | float):
            raise Failed("connect", f"no token for {self.target}: {host} answered {status} {_word(said)}".rstrip())
        return Made(token, float(lasts_s))

    def _assertion(self) -> bytes:
        now = int(self.clock.wall())
        claims = {"iss": self.email, "scope": SCOPE, "aud": self.uri, "iat": now, "exp": now + LASTS_S}
        assertion: bytes = self._jwt.encode(self._signer, claims)
        return assertion

    async def _ask(self, assertion: bytes) -> tuple[int, bytes]:
        pool = self.pool()
        if pool is None:
            raise Failed("connect", "the gateway is not running")
        url = urlsplit(self.uri)
        body = urlencode({"grant_type": GRANT, "assertion": assertion.decode()}).encode()
        fields = [
            (b"host", url.netloc.encode()),
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"accept", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        out = Outgoing("POST", self.uri, fields, body, self.ca)
        asking = Attempt(1, self.target, "", url.hostname or "", self.clock.now())
        response = await pool.send(out, asking, CONNECT_S)
        try:
            return response.status, await _read(response.content)
        finally:
            response.close()


async def _read(content: aiohttp.StreamReader) -> bytes:
    """Return what *content* says; of an answer that is too long only so much that it cannot be read."""
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > MOST_BYTES:
            break
    return bytes(body)


def _account(key: str, text: str) -> dict[str, Any]:
    """Return the service account that *text* is. Raises ``StartError``, which quotes none of it."""
    account = _parsed(text.encode())
    if account.get("type") != "service_account":
        raise StartError(f"{key}: it is no service account's JSON (its type has to be service_account)")
    missing = [name for name in ("client_email", "private_key", "token_uri") if not isinstance(account.get(name), str)]
    if missing:
        raise StartError(f"{key}: {missing[0]} is missing")
    if urlsplit(account["token_uri"]).scheme != "https":
        raise StartError(f"{key}: its token_uri has to be https")
    return account


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _word(said: dict[str, Any]) -> str:
    """Return OAuth's word for what is wrong; anything else that was said stays out of rows and logs."""
    word = said.get("error")
    return word if isinstance(word, str) and WORD.fullmatch(word) else ""
