"""Every recorded answer passes through the real gateway byte for byte, however its bytes are cut."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from support.gateway import OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import ASK_STREAM, CHAT

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "cases"

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="the recordings are not here")

POLICY = """
usage: {usage}
providers: {{anybody: {{hosts: ["llm.corp.example"], dialect: openai}}}}
trace: {{payloads: none}}
"""
MOST_AT_CUT_1 = 1024
"""A longer body is cut into this many pieces: one byte a time proves no more and costs a minute."""


@dataclass(frozen=True)
class Case:
    name: str
    path: str
    request: bytes
    status: int
    kind: str
    body: bytes

    def pieces(self, whole: bool) -> list[bytes]:
        size = max(1, len(self.body) if whole else -(-len(self.body) // MOST_AT_CUT_1))
        return [self.body[at : at + size] for at in range(0, len(self.body), size)]


@cache
def cases() -> tuple[Case, ...]:
    return tuple(_read(path) for path in sorted(CORPUS.glob("*/*/case.json")))


def _read(path: Path) -> Case:
    case = json.loads(path.read_bytes())
    headers = {name.lower(): value for name, value in case["response_headers"].items()}
    return Case(
        case["id"],
        case["path"],
        json.dumps(case["request_body"]).encode(),
        case["response_status"],
        headers.get("content-type", "application/json"),
        (path.parent / "body.bin").read_bytes(),
    )


class Recorded:
    """A provider that answers with the recording that the request names."""

    def __init__(self, provider: Provider, whole: bool) -> None:
        self.provider, self.whole = provider, whole
        self.case = cases()[0]

    def play(self, case: Case, path: str) -> None:
        self.case = case
        self.provider.on(path.partition("?")[0], self.script)

    async def script(self, _heard: Heard, wire: Wire) -> None:
        case = self.case
        head = f"HTTP/1.1 {case.status} X\r\ncontent-type: {case.kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in case.pieces(self.whole)]
        await wire.send(head.encode() + chunks[0] if chunks else head.encode())
        for chunk in chunks[1:]:
            await wire.send(chunk)
        await wire.send(b"0\r\n\r\n")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
async def test_the_client_gets_the_providers_bytes(
    open_gateway: OpenGateway, provider: Provider, version: str, whole: bool
) -> None:
    recorded = Recorded(provider, whole)
    async with open_gateway(POLICY.format(usage="leave")) as gateway:
        client = await gateway.client(version, "llm.corp.example")
        for case in cases():
            recorded.play(case, case.path)

            answer = await client.post(case.path, case.request)

            assert (answer.status, answer.complete) == (case.status, True), case.name
            assert answer.body == case.body, case.name


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
async def test_of_openais_streams_only_the_usage_chunk_is_missing_where_the_gateway_asked_for_it(
    open_gateway: OpenGateway, provider: Provider, whole: bool
) -> None:
    recorded = Recorded(provider, whole)
    changed = 0
    async with open_gateway(POLICY.format(usage="ask")) as gateway:
        client = await gateway.http1("llm.corp.example")
        for case in cases():
            if ".openai-chat.stream." not in case.name:
                continue
            recorded.play(case, CHAT)

            answer = await client.post(CHAT, ASK_STREAM)

            assert answer.body == _without_usage_chunk(case.body), case.name
            changed += answer.body != case.body
    assert changed > 0


def _without_usage_chunk(body: bytes) -> bytes:
    """Return *body* without the events that carry usage and no choice; events end with a blank line."""
    events = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", body)
    return b"".join(event for event in events if not _is_usage_chunk(event))


def _is_usage_chunk(event: bytes) -> bool:
    data = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        chunk = json.loads(data)
    except ValueError:
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)
