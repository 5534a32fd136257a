"""Tokens for Vertex AI are minted from a service account that the gateway holds: once for all, and in time."""

import asyncio
import json
import logging
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

from mitmgate.clock import ManualClock, SystemClock
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Script, Wire
from support.scripts import answers, in_turn, resets

VERTEX, TOKENS = "us-central1-aiplatform.googleapis.com", "other.example"
GENERATE = "/v1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash:generateContent"
HI = json.dumps({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}).encode()
SAID = json.dumps(
    {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3, "totalTokenCount": 12},
    }
).encode()
TARGET = """
targets:
  vertex: {provider: google-vertex-ai, base_url: "https://us-central1-aiplatform.googleapis.com",
           google: {service_account: env:ACCOUNT}}
"""
KIND = "content-type: application/json"


@lru_cache(1)
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def account() -> str:
    """Return the JSON of a service account, its key made for this run."""
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "app@p.iam.gserviceaccount.com",
            "private_key_id": "k1",
            "private_key": private_key().private_bytes(*encoding).decode(),
            "token_uri": f"https://{TOKENS}/token",
        }
    )


class Mint:
    """A token endpoint: gives ``ya29.held-1``, ``ya29.held-2``, … that last an hour each."""

    def __init__(self, provider: Provider) -> None:
        self.minted: list[str] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.fails: Script | None = None
        provider.on("/token", self._script)
        provider.on(GENERATE, answers(SAID))
        self.provider = provider

    async def _script(self, heard: Heard, wire: Wire) -> None:
        await self.may_go.wait()
        if self.fails:
            await self.fails(heard, wire)
            return
        token = f"ya29.held-{len(self.minted) + 1}"
        self.minted.append(token)
        said = {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
        await wire.answer(json.dumps(said).encode())

    @property
    def asked(self) -> list[Heard]:
        return [heard for heard in self.provider.heard if heard.path == "/token"]

    @property
    def went(self) -> list[str | None]:
        """Return what calls of the model came with."""
        return [heard.header("authorization") for heard in self.provider.heard if heard.path != "/token"]


@pytest.fixture
def mint(provider: Provider) -> Mint:
    return Mint(provider)


@pytest.fixture
def open_vertex(open_gateway: OpenGateway) -> OpenGateway:
    def opened(more: str = "", clock: Any = None) -> AbstractAsyncContextManager[Gateway]:
        return open_gateway(TARGET + more, hosts=(VERTEX, TOKENS), env={"ACCOUNT": account()}, clock=clock)

    return opened


async def ask(gateway: Gateway, *fields: str) -> Answer:
    return await (await gateway.http1(VERTEX)).post(GENERATE, HI, KIND, *fields)


async def test_a_call_without_a_token_gets_one_that_is_minted_for_its_target(
    open_vertex: OpenGateway, mint: Mint
) -> None:
    async with open_vertex() as gateway:
        answer = await ask(gateway)

        row = await gateway.row()
    assert (answer.status, answer.body, answer.header("cf-aig-provider")) == (200, SAID, "vertex")
    assert mint.went == ["Bearer ya29.held-1"]
    assert (row["attempts"], row["input_tokens"]) == (1, 9)


async def test_the_assertion_is_what_google_asks_for(open_vertex: OpenGateway, mint: Mint) -> None:
    async with open_vertex(clock=SystemClock()) as gateway:
        await ask(gateway)

    [asked] = mint.asked
    form = parse_qs(asked.body.decode())
    public = private_key().public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    claims = jwt.decode(form["assertion"][0], certs=pem.decode(), audience=f"https://{TOKENS}/token")
    assert (asked.method, asked.header("content-type")) == ("POST", "application/x-www-form-urlencoded")
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    assert claims["iss"] == "app@p.iam.gserviceaccount.com"
    assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
    assert claims["exp"] - claims["iat"] == 3600


async def test_a_token_of_the_clients_own_is_forwarded(open_vertex: OpenGateway, mint: Mint) -> None:
    async with open_vertex() as gateway:
        answer = await ask(gateway, "authorization: Bearer ya29.own")

    assert (answer.status, mint.went, mint.asked) == (200, ["Bearer ya29.own"], [])


async def test_calls_that_come_at_once_wait_for_one_token(open_vertex: OpenGateway, mint: Mint) -> None:
    mint.may_go.clear()
    async with open_vertex() as gateway:
        client = await gateway.http2(VERTEX)
        calls = [asyncio.ensure_future(client.post(GENERATE, HI, KIND)) for _ in range(20)]
        await gateway.until(lambda: len(gateway.chain.live) == 20 and len(mint.asked) == 1)
        mint.may_go.set()

        answered = await asyncio.gather(*calls)

    assert {answer.status for answer in answered} == {200}
    assert mint.went == ["Bearer ya29.held-1"] * 20


async def test_a_token_is_renewed_before_its_end_and_nobody_waits_for_that(
    open_vertex: OpenGateway, mint: Mint
) -> None:
    clock = ManualClock()
    async with open_vertex(clock=clock) as gateway:
        await ask(gateway)
        clock.advance(3200)
        await ask(gateway)
        clock.advance(200)
        mint.may_go.clear()
        await ask(gateway)  # answered while the new one is still being made
        mint.may_go.set()
        await gateway.until(lambda: len(mint.minted) == 2)
        async with asyncio.timeout(5):
            while mint.went[-1] != "Bearer ya29.held-2":
                await ask(gateway)

    assert mint.went[:3] == ["Bearer ya29.held-1"] * 3
    assert len(mint.asked) == 2


async def test_a_token_that_the_provider_would_not_take_is_used_no_more(
    open_vertex: OpenGateway, mint: Mint, provider: Provider
) -> None:
    clock = ManualClock()
    provider.on(GENERATE, in_turn(answers(SAID), answers(b"{}", "401 Unauthorized"), answers(SAID)))
    async with open_vertex(clock=clock) as gateway:
        await ask(gateway)
        clock.advance(60)
        refused = await ask(gateway)
        good = await ask(gateway)

    assert (refused.status, good.status) == (401, 200)
    assert mint.went == ["Bearer ya29.held-1", "Bearer ya29.held-1", "Bearer ya29.held-2"]


FAILURES: dict[str, tuple[Script, str]] = {
    "refused": (
        answers(b'{"error":"invalid_grant","error_description":"Invalid JWT: eyJ"}', "400 Bad Request"),
        "other.example answered 400 invalid_grant",
    ),
    "no token": (answers(b'{"token":"ya29.x"}'), "other.example answered 200"),
    "no JSON": (answers(b"<html>", "502 Bad Gateway"), "other.example answered 502"),
    "resets": (resets, ""),
}


@pytest.mark.parametrize("how", FAILURES)
async def test_where_no_token_can_be_had_the_attempt_fails_to_connect_and_says_why(
    open_vertex: OpenGateway, mint: Mint, how: str
) -> None:
    mint.fails, says = FAILURES[how]
    async with open_vertex() as gateway:
        answer = await ask(gateway)

        [tried] = await gateway.rows(1, "select error_type, error_detail from attempts")
        mint.fails = None
        again = await ask(gateway)
    assert (answer.status, tried["error_type"]) == (502, "connect")
    assert tried["error_detail"].startswith("no token for vertex: ")
    assert tried["error_detail"].endswith(says)
    assert "eyJ" not in tried["error_detail"]
    assert (again.status, mint.went) == (200, ["Bearer ya29.held-1"])


async def test_a_token_and_its_account_stand_in_no_row_log_line_or_file(
    open_vertex: OpenGateway, mint: Mint, home_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_vertex("trace: {payloads: full}") as gateway:
        with caplog.at_level(logging.DEBUG):
            await ask(gateway)
        await gateway.rows(1)

    written = [path.read_bytes() for path in home_path.iterdir() if path.is_file()] + [caplog.text.encode()]
    assert mint.went == ["Bearer ya29.held-1"]
    assert not [text for text in written if b"ya29.held" in text or b"PRIVATE KEY" in text]
