"""Every recorded answer that may be kept is given again byte for byte, and every other one is asked for again."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cache_rules import WHOLE
from support.cached import HIT, KEEP, MISS, USAGE_COLUMNS, shown
from support.client import Client
from support.gateway import OpenGateway
from support.provider import Provider

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "cases"

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="the recordings are not here")

HOSTS = (
    ("h1", "api.openai.com"),
    ("h2", "api.anthropic.com"),
    ("h1", "generativelanguage.googleapis.com"),
    ("h2", "api.groq.com"),
)
"""A host of each great dialect, by which version it is asked."""

PIECES = 16
"""Of a stream, so that it comes in more than one."""


@cache
def recordings() -> list[tuple[dict[str, Any], Path]]:
    """Return all that was recorded: (what ``case.json`` says, where the body is)."""
    paths = sorted(CORPUS.glob("*/*/case.json"))
    return [(json.loads(path.read_bytes()), path.with_name("body.bin")) for path in paths]


def cases(host: str) -> list[tuple[dict[str, Any], bytes]]:
    """Return the good answers of *host*."""
    return [
        (case, body.read_bytes())
        for case, body in recordings()
        if (case["host"], case["response_status"]) == (host, 200) and case["wire"] != "none"
    ]


def is_kept(case: dict[str, Any]) -> bool:
    """Return whether the answer says all that it had to say, as those who recorded it read it."""
    expected = case["expected"]
    reasons = expected.get("finish_reasons") or []
    letters = ["".join(filter(str.isalpha, str(reason).lower())) for reason in reasons]
    failed = expected.get("stream_error") or expected.get("prompt_block_reason")
    return not failed and set(letters) <= WHOLE


@pytest.mark.parametrize(("version", "host"), HOSTS)
async def test_a_recorded_answer_is_replayed_byte_for_byte_and_booked_alike(
    open_gateway: OpenGateway, provider: Provider, version: str, host: str
) -> None:
    recorded = cases(host)
    async with open_gateway("trace: {payloads: none}") as gateway:
        client = await gateway.client(version, host)
        for case, body in recorded:
            await ask_twice(provider, client, case, body)

        rows = await gateway.rows(2 * len(recorded))
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert [second[column] for column in USAGE_COLUMNS] == [first[column] for column in USAGE_COLUMNS]
        if second["source"] == "cache":
            assert (second["cost_nanousd"], second["saved_nanousd"]) == (0, first["cost_nanousd"])


async def ask_twice(provider: Provider, client: Client, case: dict[str, Any], body: bytes) -> None:
    kind = case["response_headers"].get("content-type", "application/json")
    path, name = case["path"], case["id"]
    size = max(1, len(body) // PIECES if case["stream"] else len(body))
    provider.streams(path.partition("?")[0], [body[at : at + size] for at in range(0, len(body), size)], kind)
    asked = json.dumps(case["request_body"]).encode()

    answers = [
        await client.post(path, asked, KEEP, f"cf-aig-cache-key: {name}", method=case["method"]) for _ in range(2)
    ]

    assert answers[0].body == answers[1].body, name
    assert [shown(answer) for answer in answers] == [MISS, HIT if is_kept(case) else MISS], name
