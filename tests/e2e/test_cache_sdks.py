"""The vendors' own SDKs read a hit as they read the first answer: whole, piece by piece, and many at once."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from support.apps import PIECES, PIECES_ASYNC, WHOLE, WHOLE_ASYNC, Ask
from support.cached import USAGE_COLUMNS
from support.provider import Provider
from support.serving import Serving
from support.speakers import hesitate, speak
from support.voices import APIS, Api, Said

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai

TOOL = '{"city": "Cape Town"}'


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Callable[..., Ask]:
    """Return how to ask for an answer that this test alone shares: the gateway is the session's."""

    def made(**more: Any) -> Ask:
        return Ask(headers={"cf-aig-cache-ttl": "60", "cf-aig-cache-key": request.node.name}, **more)

    return made


def check(rows: list[dict[str, Any]], said: Said) -> None:
    """One row has paid, the others are hits of the same answer."""
    [paid] = [row for row in rows if row["source"] == "provider"]
    hits = [row for row in rows if row is not paid]
    assert (paid["cache_status"], paid["attempts"], paid["terminal"]) == ("MISS", 1, "complete")
    assert paid["cost_nanousd"] > 0
    assert (paid["input_tokens"], paid["output_tokens"]) == (said.input_tokens, said.output_tokens)
    for hit in hits:
        assert (hit["source"], hit["cache_status"], hit["attempts"]) == ("cache", "HIT", 0)
        assert (hit["cost_nanousd"], hit["saved_nanousd"]) == (0, paid["cost_nanousd"])
        assert [hit[name] for name in USAGE_COLUMNS] == [paid[name] for name in USAGE_COLUMNS]


@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
@pytest.mark.parametrize("api", APIS)
def test_a_hit_parses_like_the_first(
    app: Serving, beside: Provider, ask: Callable[..., Ask], api: Api, tool: bool
) -> None:
    said = Said(api, TOOL, tool=True) if tool else Said(api)
    speak(beside, said)

    answers = [WHOLE[api](ask(tool=tool)) for _ in range(2)]

    assert answers == [said.text] * 2
    assert len(beside.heard) == 1
    check(app.new_rows(2), said)


@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
@pytest.mark.parametrize("api", APIS)
def test_a_streamed_hit_parses_piece_by_piece_like_the_first(
    app: Serving, beside: Provider, ask: Callable[..., Ask], api: Api, tool: bool
) -> None:
    said = Said(api, TOOL, tool=True) if tool else Said(api)
    speak(beside, said)

    first, second = (list(PIECES[api](ask(tool=tool))) for _ in range(2))

    assert second == first
    assert "".join(first) == said.text
    assert len(beside.heard) == 1
    check(app.new_rows(2), said)


@pytest.mark.parametrize("api", APIS)
async def test_async_clients_read_hits_as_well(
    app: Serving, beside: Provider, ask: Callable[..., Ask], api: Api
) -> None:
    said = Said(api)
    speak(beside, said)

    answers = [await WHOLE_ASYNC[api](ask()) for _ in range(2)]
    streams = [[piece async for piece in PIECES_ASYNC[api](ask())] for _ in range(2)]

    assert answers == [said.text] * 2
    assert streams[0] == streams[1]
    assert len(beside.heard) == 2
    rows = app.new_rows(4)
    check(rows[:2], said)
    check(rows[2:], said)


@pytest.mark.parametrize("api", APIS)
async def test_identical_streams_at_once_are_one_call_and_each_reads_all_of_it(
    app: Serving, beside: Provider, ask: Callable[..., Ask], api: Api
) -> None:
    said, go_on = Said(api), threading.Event()
    hesitate(beside, said, go_on)

    async def read() -> list[str]:
        words = []
        async for word in PIECES_ASYNC[api](ask()):
            words.append(word)
            if word:
                reading.add(asyncio.current_task())
            if len(reading) == 3:
                go_on.set()  # the last of them has its first word
        return words

    reading: set[Any] = set()
    answers = await asyncio.gather(*(read() for _ in range(3)))

    assert ["".join(words) for words in answers] == [said.text] * 3
    assert len(beside.heard) == 1
    check(app.new_rows(3), said)
