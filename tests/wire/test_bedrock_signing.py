"""Requests to Bedrock are signed with credentials that the gateway holds, over what really goes out."""

import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.scripts import answers, in_turn
from support.sigv4 import checks, holds, signed

EAST, WEST = "bedrock-runtime.us-east-1.amazonaws.com", "llm.corp.example"
CONVERSE = "/model/anthropic.claude-haiku-4-5-v1%3A0/converse"
HI = json.dumps({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}).encode()
SAID = json.dumps(
    {
        "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12},
    }
).encode()

ENV = {"ID": "AKIAHELDBYTHEGATEWAY", "SECRET": "held/by+the/gateway", "TOKEN": "session-held-by-the-gateway"}
TARGET = """
targets:
  east: {provider: aws-bedrock, base_url: "https://bedrock-runtime.us-east-1.amazonaws.com",
         aws: {region: us-east-1, access_key_id: env:ID, secret_access_key: env:SECRET}}
"""
KIND = "content-type: application/json"


@pytest.fixture
def open_bedrock(open_gateway: OpenGateway) -> OpenGateway:
    def opened(policy: str = TARGET, **more: Any) -> AbstractAsyncContextManager[Gateway]:
        return open_gateway(policy, **{"hosts": (EAST, "api.openai.com"), "env": ENV} | more)

    return opened


async def ask(gateway: Gateway, *fields: str, path: str = CONVERSE, body: bytes = HI) -> Answer:
    return await (await gateway.http1(EAST)).post(path, body, KIND, *fields)


async def test_a_request_without_a_signature_is_signed_for_the_target_at_its_host(
    open_bedrock: OpenGateway, provider: Provider
) -> None:
    provider.on(CONVERSE, checks(ENV["SECRET"], SAID))
    async with open_bedrock() as gateway:
        answer = await ask(gateway, "user-agent: test")

        row = await gateway.row()
    [heard] = provider.heard
    assert (answer.status, answer.body, answer.header("cf-aig-provider")) == (200, SAID, "east")
    assert (heard.body, heard.header("user-agent")) == (HI, "test")
    assert heard.header("x-amz-content-sha256") == hashlib.sha256(HI).hexdigest()
    said = signed(heard)
    assert said is not None
    assert (said.access_key, said.region, said.service) == (ENV["ID"], "us-east-1", "bedrock")
    assert set(said.names) == {"host", "content-type", "x-amz-date", "x-amz-content-sha256"}
    assert (row["input_tokens"], row["output_tokens"], row["target"]) == (9, 3, "east")


PATHS = [
    "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fp/converse",
    "/model/plain:0/invoke",
    "/model/m%20n~_.-/converse",
    f"{CONVERSE}?b=2&a=1&a=0&flag",
    f"{CONVERSE}?q=%2F%20x",
]


@pytest.mark.parametrize("path", PATHS)
async def test_the_signature_is_that_of_the_path_and_the_query_as_they_go_out(
    open_bedrock: OpenGateway, provider: Provider, path: str
) -> None:
    provider.on(path, checks(ENV["SECRET"], SAID))
    async with open_bedrock() as gateway:
        answer = await ask(gateway, path=path)

    assert (answer.status, provider.heard[0].path) == (200, path)


async def test_a_session_token_is_sent_and_signed(open_bedrock: OpenGateway, provider: Provider) -> None:
    provider.on(CONVERSE, checks(ENV["SECRET"], SAID))
    policy = TARGET.replace("secret_access_key: env:SECRET", "secret_access_key: env:SECRET, session_token: env:TOKEN")
    async with open_bedrock(policy) as gateway:
        answer = await ask(gateway)

    [heard] = provider.heard
    said = signed(heard)
    assert answer.status == 200
    assert heard.header("x-amz-security-token") == ENV["TOKEN"]
    assert said is not None and "x-amz-security-token" in said.names


async def test_credentials_of_a_profile_are_found_where_aws_keeps_them(
    open_bedrock: OpenGateway, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["[team]", f"aws_access_key_id = {ENV['ID']}", f"aws_secret_access_key = {ENV['SECRET']}"]
    (tmp_path / "credentials").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    provider.on(CONVERSE, checks(ENV["SECRET"], SAID))
    policy = TARGET.replace("access_key_id: env:ID, secret_access_key: env:SECRET", "profile: team")
    async with open_bedrock(policy) as gateway:
        answer = await ask(gateway)

    assert answer.status == 200


async def test_where_no_credentials_are_found_the_attempt_says_so(
    open_bedrock: OpenGateway, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    policy = TARGET.replace(", access_key_id: env:ID, secret_access_key: env:SECRET", "")
    async with open_bedrock(policy) as gateway:
        answer = await ask(gateway)

        tried = await gateway.rows(1, "select error_type, error_detail from attempts")
    assert answer.status == 502
    assert [tuple(row.values()) for row in tried] == [("connect", "no AWS credentials for east: botocore found none")]
    assert provider.heard == []


# -- who has signed already -------------------------------------------------------------------------------------------

OWN_SECRET = "the-clients-own"


def own_signature() -> Iterator[str]:
    """Yield the header lines of a request that its client has signed itself."""
    request = AWSRequest("POST", f"https://{EAST}{CONVERSE}", {"Content-Type": "application/json"}, HI)
    SigV4Auth(Credentials("AKIAOWN", OWN_SECRET), "bedrock", "us-east-1").add_auth(request)
    yield from (f"{name}: {value}" for name, value in request.headers.items() if name != "Content-Type")


async def test_a_signature_of_the_clients_own_stands_at_its_own_host(
    open_bedrock: OpenGateway, provider: Provider
) -> None:
    provider.on(CONVERSE, checks(OWN_SECRET, SAID))
    lines = [*own_signature()]
    async with open_bedrock() as gateway:
        answer = await ask(gateway, *lines)

    [heard] = provider.heard
    assert (answer.status, answer.header("cf-aig-provider")) == (200, "aws-bedrock")
    assert set(lines) <= {f"{name.decode()}: {value.decode()}" for name, value in heard.fields}


TO_WEST = """
  west: {provider: aws-bedrock, base_url: "https://llm.corp.example",
         aws: {region: us-west-2, access_key_id: env:ID, secret_access_key: env:SECRET}}
  lab: {provider: aws-bedrock, base_url: "https://other.example"}
route: [{name: west, try: [lab, west]}]
"""


async def test_a_signed_request_that_goes_to_another_place_is_signed_for_that_one(
    open_bedrock: OpenGateway, provider: Provider
) -> None:
    provider.on(CONVERSE, checks(ENV["SECRET"], SAID))
    async with open_bedrock(TARGET.rstrip() + TO_WEST, hosts=(EAST, WEST, "other.example")) as gateway:
        answer = await ask(gateway, *own_signature())

        row = await gateway.row()
    [heard] = provider.heard
    said = signed(heard)
    assert (answer.status, answer.header("cf-aig-provider")) == (200, "west")
    assert said is not None and said.region == "us-west-2"
    assert heard.header("host") == WEST
    names = [name.lower() for name, _ in heard.fields]
    assert len(set(names)) == len(names)
    assert b"AKIAOWN" not in b"".join(value for _, value in heard.fields)
    assert "route: lab is left out: the request is signed for its own host" in json.loads(row["notes"])


# -- what goes out again is signed again ------------------------------------------------------------------------------


async def test_each_attempt_and_each_repeat_is_signed_for_itself(open_bedrock: OpenGateway, provider: Provider) -> None:
    async def dies(_heard: Heard, wire: Wire) -> None:
        wire.cut()

    well = checks(ENV["SECRET"], SAID)
    provider.on(CONVERSE, in_turn(well, dies, answers(b"{}", "503 Busy"), well))
    async with open_bedrock(TARGET + "retry: {attempts: 2, delay: 1 ms}") as gateway:
        client = await gateway.http1(EAST)
        await client.post(CONVERSE, HI, KIND)

        answer = await client.post(CONVERSE, HI, KIND)

    assert (answer.status, answer.header("cf-aig-attempts")) == (200, "2")
    assert [holds(heard, ENV["SECRET"]) for heard in provider.heard] == [True] * 4


async def test_an_upload_that_is_passed_on_while_it_arrives_is_refused(
    open_bedrock: OpenGateway, provider: Provider
) -> None:
    size = 2 << 20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    async with open_bedrock() as gateway:
        client = await gateway.http1(EAST)

        answer = await client.upload("/files", pieces(), size).end()

    assert answer.status == 413
    assert b"cannot be signed for target east" in answer.body
    assert provider.heard == []


async def test_a_credential_of_aws_stands_in_no_row_log_line_or_file(
    open_bedrock: OpenGateway, provider: Provider, home_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider.on(CONVERSE, checks(ENV["SECRET"], SAID))
    policy = TARGET.replace("secret_access_key: env:SECRET", "secret_access_key: env:SECRET, session_token: env:TOKEN")
    async with open_bedrock(policy + "trace: {payloads: full}") as gateway:
        with caplog.at_level(logging.DEBUG):
            await ask(gateway)
        await gateway.rows(1)

    written = [path.read_bytes() for path in home_path.iterdir() if path.is_file()] + [caplog.text.encode()]
    assert provider.heard
    assert not [text for text in written for name in ("SECRET", "TOKEN") if ENV[name].encode() in text]
