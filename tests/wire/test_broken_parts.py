"""What breaks inside the gateway costs its own part and nothing else: no byte of a client, no other request."""

import json
from pathlib import Path

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Call, Reader, Reading
from mitmgate.exchange import Exchange
from support.gateway import Gateway, OpenGateway
from support.provider import Provider
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, STREAM


class BreaksWhenFed:
    """A reader with a bug."""

    def __init__(self) -> None:
        self.reading = Reading()

    def feed(self, data: bytes) -> None:
        raise ZeroDivisionError(f"{len(data)} bytes")

    def end(self) -> None:
        raise ZeroDivisionError("the end")


class BreaksAtTheEnd(BreaksWhenFed):
    def feed(self, data: bytes) -> None:
        """Take it."""


def _broken(_call: Call) -> Reader:
    raise ZeroDivisionError("no reader at all")


@pytest.mark.parametrize("reader", [lambda _call: BreaksWhenFed(), lambda _call: BreaksAtTheEnd(), _broken])
async def test_a_parser_that_raises_changes_no_byte_and_stops_no_stream(
    gateway: Gateway, provider: Provider, version: str, monkeypatch: pytest.MonkeyPatch, reader: object
) -> None:
    provider.streams(CHAT, STREAM)
    provider.says("/v1/responses", ANSWER)
    found = [
        dialects.find(gateway.chain.door.hosts.providers["openai"], "POST", path) for path in (CHAT, "/v1/responses")
    ]
    for dialect in found:
        monkeypatch.setattr(dialect, "reader", reader)
    client = await gateway.client(version)

    stream = await client.post(CHAT, ASK_STREAM)
    answer = await client.post("/v1/responses", ASK)

    assert (stream.body, stream.complete) == (b"".join(STREAM), True)
    assert (answer.status, answer.body) == (200, ANSWER)
    rows = await gateway.rows(2)
    assert [(row["status_code"], row["input_tokens"]) for row in rows] == [(200, None)] * 2


@pytest.mark.parametrize("step", ["head", "admit"])
async def test_a_room_that_raises_refuses_and_nothing_reaches_the_provider(
    gateway: Gateway, provider: Provider, version: str, step: str
) -> None:
    def breaks(_x: Exchange) -> None:
        raise ZeroDivisionError("a room with a bug")

    getattr(gateway.chain.rooms, f"{step}s").append(breaks)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK)

    assert answer.status == 500
    assert "broke" in json.loads(answer.body)["error"]["message"]
    assert provider.heard == []
    row = await gateway.row()
    assert (row["status_code"], row["terminal"], row["attempts"]) == (500, "refused", 0)


async def test_a_room_that_raises_when_the_books_are_closed_costs_only_its_own_part(
    gateway: Gateway, provider: Provider
) -> None:
    def breaks(_x: Exchange) -> None:
        raise ZeroDivisionError("a room with a bug")

    gateway.chain.rooms.settles.insert(0, breaks)
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK)

    assert answer.body == ANSWER
    assert (await gateway.row())["input_tokens"] == 9


async def test_a_bug_in_the_middle_of_an_exchange_is_a_500(
    gateway: Gateway, provider: Provider, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_arguments: object) -> None:
        raise ZeroDivisionError("upstream has a bug")

    monkeypatch.setattr(gateway.chain.upstream, "_deliver", breaks)
    provider.says(CHAT, ANSWER)
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK)

    assert answer.status == 500
    assert json.loads(answer.body)["error"]["message"]
    assert (await gateway.row())["terminal"] == "failed"


async def test_a_head_that_cannot_be_read_is_a_500_and_reaches_nobody(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_arguments: object) -> None:
        raise ZeroDivisionError("the door has a bug")

    monkeypatch.setattr(gateway.chain.door, "_arrive_at", breaks)
    client = await gateway.http1()

    answer = await client.post(CHAT, ASK)

    assert answer.status == 500
    assert json.loads(answer.body)["error"]["message"]
    assert provider.heard == []


async def test_a_database_that_cannot_be_written_changes_no_byte(
    open_gateway: OpenGateway, provider: Provider, home_path: Path, version: str
) -> None:
    (home_path / "traces.db").mkdir()
    provider.streams(CHAT, STREAM)
    provider.says("/v1/responses", ANSWER)
    async with open_gateway() as gateway:
        client = await gateway.client(version)

        stream = await client.post(CHAT, ASK_STREAM)
        answer = await client.post("/v1/responses", ASK)

        assert (stream.body, answer.body) == (b"".join(STREAM), ANSWER)
        await gateway.until(lambda: len(gateway.settled) == 2)
        assert gateway.chain.state.writer.stats.outage
        gateway.db.rmdir()
        assert len(await gateway.rows(2)) == 2  # they waited


async def test_a_header_of_ours_that_does_not_parse_is_a_400_that_names_it(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    client = await gateway.client(version)

    answer = await client.post(CHAT, ASK, "cf-aig-request-timeout: soon")

    error = json.loads(answer.body)["error"]
    assert answer.status == 400
    assert "cf-aig-request-timeout" in error["message"]
    assert "1 to 3600000" in error["message"]
    assert error["param"] == "cf-aig-request-timeout"
    assert (answer.header("cf-aig-attempts"), answer.header("x-should-retry")) == ("0", "false")
    assert provider.heard == []
    assert (await gateway.row())["terminal"] == "refused"
