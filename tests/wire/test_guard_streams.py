"""Over real sockets: what a rule hides or stops in an answer reaches neither client nor row, cache, log or screen."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate import dialects
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import (
    ANSWER,
    ASK,
    ASK_CLAUDE,
    ASK_GEMINI,
    ASK_STREAM,
    CHAT,
    DONE,
    GEMINI_STREAM_PATH,
    MESSAGES,
    ROLE,
    STOP,
    STREAM,
    chunk,
)
from support.tellings import TELLINGS, Telling

SECRET = "sk-ant-Ab12Cd34Ef56"
TEXT = f"My key is {SECRET}, keep it."
HIDDEN = "My key is [pattern], keep it."
HALVES = SECRET[:9], SECRET[9:]

RULES = r"""
guard:
  - {name: redacts, find: ["sk-ant-[A-Za-z0-9]{12}"], in: response, then: redact, unless: {header.x-then: present}}
  - {name: blocks, find: ["sk-ant-[A-Za-z0-9]{12}"], in: response, then: block, match: {header.x-then: block}}
  - {name: flags, find: ["sk-ant-[A-Za-z0-9]{12}"], in: response, then: flag, match: {header.x-then: flag}}
  - {name: tools, tools: [f], in: response, then: block}
trace: {payloads: full}
"""
BLOCK, FLAG = "x-then: block", "x-then: flag"
KEEP = "cf-aig-cache-ttl: 60"

BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"
ASK_BEDROCK = json.dumps({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}).encode()
LIST_PATH = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
PLACES: dict[str, tuple[str, str, bytes]] = {
    "chat": ("api.openai.com", CHAT, ASK_STREAM),
    "chat tool": ("api.openai.com", CHAT, ASK_STREAM),
    "responses": ("api.openai.com", "/v1/responses", b'{"model": "gpt-5", "input": "hi", "stream": true}'),
    "responses tool": ("api.openai.com", "/v1/responses", b'{"model": "gpt-5", "input": "hi", "stream": true}'),
    "messages": ("api.anthropic.com", MESSAGES, ASK_CLAUDE),
    "messages tool": ("api.anthropic.com", MESSAGES, ASK_CLAUDE),
    "gemini": ("generativelanguage.googleapis.com", GEMINI_STREAM_PATH, ASK_GEMINI),
    "gemini as a list": ("generativelanguage.googleapis.com", LIST_PATH, ASK_GEMINI),
    "converse": (BEDROCK, "/model/amazon.nova-micro-v1%3A0/converse-stream", ASK_BEDROCK),
    "nova": (BEDROCK, "/model/amazon.nova-micro-v1%3A0/invoke-with-response-stream", ASK_BEDROCK),
    "cohere": ("llm.corp.example", "/v2/chat", b'{"model": "command-a", "messages": [], "stream": true}'),
    "ollama": ("other.example", "/api/chat", b'{"model": "llama3", "messages": [], "stream": true}'),
}
"""Where each API is asked: host, path, request."""
SPOKEN = [one for one in TELLINGS if one.name in PLACES]
EACH = pytest.mark.parametrize("telling", SPOKEN, ids=str)

PROVIDERS = """
providers:
  corp-cohere: {hosts: ["llm.corp.example"], dialect: cohere}
  corp-ollama: {hosts: ["other.example"], dialect: ollama}
"""


@pytest.fixture
async def gateway(open_gateway: OpenGateway, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Gateway]:
    caplog.set_level(logging.DEBUG)
    hosts = tuple(dict.fromkeys(host for host, _, _ in PLACES.values()))
    async with open_gateway(
        RULES + PROVIDERS, hosts=hosts, upstream="after_client_leaves: {aws-bedrock: cancel}"
    ) as running:
        yield running


async def ask(gateway: Gateway, telling: Telling, version: str, *fields: str) -> Answer:
    host, path, body = PLACES[telling.name]
    client = await gateway.client(version, host)
    return await client.post(path, body, *fields)


def says(provider: Provider, telling: Telling, *pieces: str) -> None:
    provider.streams(PLACES[telling.name][1], telling.frames(*pieces), telling.content_type)


def leaks(text: bytes | str) -> list[str]:
    """Return what of the secret stands in *text*."""
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    return [part for part in (SECRET, *HALVES) if part in text]


async def told_anywhere(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return where the secret stands in what the gateway keeps and says: rows, payloads, cache, log."""
    tables = [row["name"] for row in await gateway.rows(1, "select name from sqlite_master where type = 'table'")]
    found = [table for table in tables if any(map(leaks, map(str, await gateway.rows(1, f'select * from "{table}"'))))]
    found += [row["body"] for row in await gateway.rows(1, "select body from v_payloads") if leaks(str(row["body"]))]
    gateway.chain.state.answers.close()
    found += [path.name for path in Path(gateway.home.path).glob("*.db*") if leaks(path.read_bytes())]
    return found + [record.getMessage() for record in caplog.records if leaks(record.getMessage())]


# -- redact ------------------------------------------------------------------------------------------------------------


@EACH
async def test_a_secret_is_hidden_wherever_it_is_cut(
    gateway: Gateway, provider: Provider, telling: Telling, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    for at in range(1, len(TEXT), 1 if telling.name == "chat" else 5):
        says(provider, telling, TEXT[:at], TEXT[at:])

        answer = await ask(gateway, telling, version, KEEP, f"cf-aig-cache-key: {at}")

        assert (answer.status, answer.complete) == (200, True)
        assert telling.heard(answer.body) == HIDDEN
        assert all(whole == HIDDEN for whole in telling.repeated(answer.body))
    assert await told_anywhere(gateway, caplog) == []


@EACH
async def test_a_stream_without_a_finding_is_the_providers(
    gateway: Gateway, provider: Provider, telling: Telling, version: str
) -> None:
    says(provider, telling, "Nothing to ", "be hidden ", "here.")

    answer = await ask(gateway, telling, version)

    assert answer.body == b"".join(telling.frames("Nothing to ", "be hidden ", "here."))
    assert (await gateway.row())["terminal"] == "complete"
    assert await gateway.rows(1, "select * from policy_events where room = 'guard'") == []


async def test_a_coding_is_undone_for_the_look(gateway: Gateway, provider: Provider, version: str) -> None:
    frames = [ROLE, *map(chunk, (TEXT[:13], TEXT[13:])), STOP, DONE]
    provider.streams(CHAT, [gzip.compress(frame) for frame in frames], "text/event-stream", "content-encoding: gzip")
    [telling] = [one for one in SPOKEN if one.name == "chat"]

    answer = await ask(gateway, telling, version, "accept-encoding: gzip")

    assert telling.heard(answer.body) == HIDDEN
    assert (answer.header("content-encoding"), answer.header("content-length")) == (None, None)


async def test_a_plain_answer_is_looked_at_in_whole(gateway: Gateway, provider: Provider, version: str) -> None:
    body = gzip.compress(ANSWER.replace(b"hello", TEXT.encode()))
    provider.says(CHAT, body, "200 OK", "application/json", "content-encoding: gzip")
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK, "accept-encoding: gzip")

    assert answer.body == ANSWER.replace(b"hello", HIDDEN.encode())
    assert answer.header("content-length") == str(len(answer.body))
    [event] = await gateway.rows(1, "select rule, action, shadow, detail from policy_events where room = 'guard'")
    assert (event["rule"], event["action"], event["shadow"]) == ("redacts", "redact", 0)
    assert "1 pattern" in event["detail"]


async def test_an_error_of_the_provider_is_looked_at_as_well(
    gateway: Gateway, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    error = {"error": {"message": f"Incorrect key: {SECRET}", "type": "invalid_request_error"}}
    provider.says(CHAT, json.dumps(error).encode(), "401 Unauthorized")

    answer = await (await gateway.http1()).post(CHAT, ASK)

    assert (answer.status, json.loads(answer.body)["error"]["message"]) == (
        401,
        "Incorrect key: [pattern]",
    )
    assert await told_anywhere(gateway, caplog) == []


async def test_each_event_is_out_before_the_provider_says_the_next(gateway: Gateway, provider: Provider) -> None:
    go_on = asyncio.Event()

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for event in STREAM:
            await wire.chunk(event)
            await go_on.wait()
            go_on.clear()
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, script)
    call = await (await gateway.http1()).begin(CHAT, ASK_STREAM)
    size = 0
    for event in STREAM:
        size += len(event)
        assert await call.body(size) == b"".join(STREAM)[:size]
        go_on.set()
    assert (await call.end()).complete


async def test_a_hit_and_a_follower_get_what_the_rules_left(
    gateway: Gateway, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for event in (ROLE, *map(chunk, HALVES), STOP, DONE):
            await wire.chunk(event)
            await go_on.wait()
        await wire.send(b"0\r\n\r\n")

    provider.on(CHAT, script)
    first = await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEEP)
    await first.head()
    second = await (await gateway.http1()).begin(CHAT, ASK_STREAM, KEEP)
    await second.head()
    go_on.set()
    answers = [await first.end(), await second.end()]
    answers.append(await (await gateway.http1()).post(CHAT, ASK_STREAM, KEEP))

    assert len(provider.heard) == 1
    assert [answer.header("cf-aig-cache-status") for answer in answers] == ["MISS", "HIT", "HIT"]
    assert len({answer.body for answer in answers}) == 1
    assert b"[pattern]" in answers[0].body
    assert await told_anywhere(gateway, caplog) == []


# -- block -------------------------------------------------------------------------------------------------------------


@EACH
async def test_a_stream_that_is_blocked_ends_in_the_words_of_its_api(
    gateway: Gateway, provider: Provider, telling: Telling, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = telling.frames("First of all: ", *HALVES, "!", " And then?")
    first = next(n for n, frame in enumerate(frames) if b"First" in frame or (telling.in_chunks and n == 1)) + 1
    heard = asyncio.Event()

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head(telling.content_type)
        for n, frame in enumerate(frames):
            if n == first:
                await heard.wait()
            await wire.chunk(frame)
        await wire.silence()

    _, path, _ = PLACES[telling.name]
    provider.on(path, script)
    host, path, body = PLACES[telling.name]
    call = await (await gateway.client(version, host)).begin(path, body, BLOCK, KEEP)
    await call.body(1)
    heard.set()
    answer = await call.end()

    assert (answer.status, answer.complete) == (200, True)
    assert not leaks(telling.heard_so_far(answer.body))
    assert "'blocks'" in str(telling.values(answer.body)[-1]["error"])
    row = await gateway.row()
    assert (row["terminal"], row["source"], row["error_type"], row["status_code"]) == ("refused", "guard", "guard", 200)
    assert row["id"] in answer.body.decode("utf-8", "replace")
    if telling.dialect is not dialects.GENERIC:  # whose reader may pass over a text
        assert row["output_tokens"] is not None  # the provider bills what it has said
    async with asyncio.timeout(10):
        await provider.left.wait()
    provider.left.clear()
    assert gateway.chain.state.answers.stats.entries == 0
    assert await told_anywhere(gateway, caplog) == []


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("keep", [KEEP, "x-keep: no"])
async def test_an_answer_that_is_blocked_before_anything_is_out_is_a_403(
    gateway: Gateway, provider: Provider, version: str, streamed: bool, keep: str, caplog: pytest.LogCaptureFixture
) -> None:
    if streamed:
        provider.streams(CHAT, [b"".join([ROLE, *map(chunk, HALVES), STOP, DONE])])
    else:
        provider.says(CHAT, ANSWER.replace(b"hello", SECRET.encode()))
    client = await gateway.client(version)

    for count in (1, 2):
        answer = await client.post(CHAT, ASK_STREAM if streamed else ASK, BLOCK, keep)

        error = json.loads(answer.body)["error"]
        assert (answer.status, answer.header("cf-aig-source"), answer.header("x-should-retry")) == (
            403,
            "guard",
            "false",
        )
        assert (error["type"], "'blocks' (policy.yaml:" in error["message"]) == ("permission_error", True)
        assert len(provider.heard) == count  # it was not kept
    dlp = json.loads(answer.header("cf-aig-dlp") or "{}")
    assert (dlp["action"], [finding["policy_ids"] for finding in dlp["findings"]]) == ("BLOCK", [["blocks"]])
    assert [row["terminal"] for row in await gateway.rows(2)] == ["refused", "refused"]
    assert await told_anywhere(gateway, caplog) == []


async def test_a_tool_that_is_not_on_the_list_is_not_called(gateway: Gateway, provider: Provider) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "shell", "arguments": "{}"}}
    body = json.loads(ANSWER)
    body["choices"][0]["message"]["tool_calls"] = [call]
    provider.says(CHAT, json.dumps(body).encode())

    answer = await (await gateway.http1()).post(CHAT, ASK)

    assert answer.status == 403
    assert "'tools'" in json.loads(answer.body)["error"]["message"]


async def test_a_flag_is_told_and_changes_nothing(gateway: Gateway, provider: Provider, version: str) -> None:
    frames = [ROLE, *map(chunk, HALVES), STOP, DONE]
    provider.streams(CHAT, frames)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK_STREAM, FLAG)

    assert answer.body == b"".join(frames)
    [event] = await gateway.rows(1, "select rule, action from policy_events where room = 'guard'")
    assert (event["rule"], event["action"]) == ("flags", "flag")


async def test_a_coding_that_nobody_can_undo_does_not_pass(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, b"\x01\x02", "200 OK", "application/json", "content-encoding: x-odd")

    answer = await (await gateway.http1()).post(CHAT, ASK)

    assert answer.status == 403
    assert "'redacts'" in json.loads(answer.body)["error"]["message"]


async def test_a_stream_that_breaks_off_is_truncated_as_without_a_rule(gateway: Gateway, provider: Provider) -> None:
    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE + chunk("hello s"))
        wire.cut()

    provider.on(CHAT, script)

    answer = await (await gateway.http1()).post(CHAT, ASK_STREAM)

    assert (answer.complete, answer.body) == (False, ROLE + chunk("hello "))
    assert (await gateway.row())["terminal"] == "truncated"


# -- putting back ------------------------------------------------------------------------------------------------------

RESTORES = r"""
guard:
  - {name: people, find: email, in: [request, response], then: redact, restore: true}
trace: {payloads: full}
"""


@pytest.mark.parametrize("keep", [KEEP, "x-keep: no"])
async def test_only_the_client_gets_back_what_was_taken_from_its_request(
    open_gateway: OpenGateway, provider: Provider, version: str, keep: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asked: dict[str, Any] = json.loads(ASK_STREAM)
    asked["messages"][0]["content"] = "Write to jane.roe@corp.example, please"

    async def script(heard: Heard, wire: Wire) -> None:
        word = json.loads(heard.body)["messages"][0]["content"].split()[2].rstrip(",")
        said = f"Dear {word}!"
        await wire.stream([ROLE, *map(chunk, (said[:9], said[9:])), STOP, DONE])

    provider.on(CHAT, script)
    async with open_gateway(RESTORES) as gateway:
        client = await gateway.client(version)
        answers = [await client.post(CHAT, json.dumps(asked).encode(), keep) for _ in range(2)]

        [telling] = [one for one in SPOKEN if one.name == "chat"]
        assert [telling.heard(answer.body) for answer in answers] == ["Dear jane.roe@corp.example!"] * 2
        assert not [heard for heard in provider.heard if b"jane.roe" in heard.body]
        tables = await gateway.rows(2, "select * from v_payloads")
        assert tables
        assert not [row for row in tables if "jane.roe" in str(row)]
        assert b"jane.roe" not in gateway.db.read_bytes()
