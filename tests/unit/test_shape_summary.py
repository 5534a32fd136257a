"""Summaries are made once for all who need them, grow with their conversation, and keep no request waiting for long."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.clock import ManualClock
from mitmgate.shape_summary import (
    INSTRUCTION,
    MOST_SUMMARIES,
    PORTION_CHARS,
    REST_S,
    SUMMARY_CHARS,
    TURN_CHARS,
    WAIT_S,
    By,
    Summaries,
    request,
    summary_in,
    transcripts,
)
from mitmgate.shape_turns import talk_of
from support.talks import CHAT, MESSAGES, Api, rounds
from support.virtual_time import VirtualLoop

BY: By = ("small", "gpt-5-mini")


class Writer:
    """A model that summarizes: it numbers its summaries, or has none."""

    def __init__(self, *says: str | None) -> None:
        self.says = list(says)
        self.asked: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.ended = 0
        """Calls that were ended from outside."""

    async def __call__(self, question: str) -> str | None:
        self.asked.append(question)
        number = len(self.asked)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended += 1
            raise
        return self.says.pop(0) if self.says else f"summary {number}"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def summaries(clock: ManualClock) -> Summaries:
    return Summaries(clock)


async def test_the_same_rounds_have_one_summary(summaries: Summaries) -> None:
    writer = Writer()

    first, second = [await summaries.of(BY, ["one", "two"], writer) for _ in range(2)]

    assert (first, second, len(writer.asked)) == ("summary 1", "summary 1", 1)


async def test_more_rounds_are_added_to_the_summary_that_there_is(summaries: Summaries) -> None:
    writer = Writer()
    await summaries.of(BY, ["one", "two"], writer)

    grown = await summaries.of(BY, ["one", "two", "three"], writer)

    assert grown == "summary 2"
    assert "<summary>\nsummary 1\n</summary>" in writer.asked[1]
    assert "<conversation>\nthree\n</conversation>" in writer.asked[1]
    assert "one" not in writer.asked[1].replace("Write one", "")


OTHERS: dict[str, tuple[By, list[str]]] = {
    "another target": (("large", "gpt-5-mini"), ["one", "two"]),
    "another model": (("small", None), ["one", "two"]),
    "another round": (BY, ["one", "TWO"]),
    "rounds cut elsewhere": (BY, ["onetwo"]),
    "the same words in one round": (BY, ["one", "t", "wo"]),
}


@pytest.mark.parametrize(("by", "said"), OTHERS.values(), ids=OTHERS)
async def test_a_summary_stands_for_nothing_else(summaries: Summaries, by: By, said: list[str]) -> None:
    writer = Writer()
    await summaries.of(BY, ["one", "two"], writer)

    assert await summaries.of(by, said, writer) == "summary 2"
    assert "summary 1" not in writer.asked[1]


async def test_many_who_need_the_same_at_once_share_one_call(summaries: Summaries) -> None:
    writer = Writer()

    found = await asyncio.gather(*(summaries.of(BY, ["one"], writer) for _ in range(50)))

    assert (set(found), len(writer.asked)) == ({"summary 1"}, 1)


async def begun(writer: Writer, calls: int = 1) -> None:
    while len(writer.asked) < calls:
        await asyncio.sleep(0)


async def test_who_asked_first_may_leave_without_taking_it_from_the_others(summaries: Summaries) -> None:
    writer = Writer()
    writer.go_on.clear()
    first, second = (asyncio.ensure_future(summaries.of(BY, ["one"], writer)) for _ in range(2))
    await begun(writer)

    first.cancel()
    await asyncio.wait([first])
    writer.go_on.set()

    assert await second == "summary 1"
    assert (writer.ended, first.cancelled()) == (0, True)


async def test_when_the_last_one_leaves_the_call_is_ended_and_the_next_makes_its_own(summaries: Summaries) -> None:
    writer = Writer()
    writer.go_on.clear()
    waiting = [asyncio.ensure_future(summaries.of(BY, ["one"], writer)) for _ in range(2)]
    await begun(writer)

    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    again = asyncio.ensure_future(summaries.of(BY, ["one"], writer))
    await begun(writer, 2)
    writer.go_on.set()

    assert await again == "summary 2"
    assert writer.ended == 1


async def test_who_comes_while_a_call_is_being_ended_does_not_share_its_end(summaries: Summaries) -> None:
    writer = Writer()
    writer.go_on.clear()
    left = asyncio.ensure_future(summaries.of(BY, ["one"], writer))
    await begun(writer)

    left.cancel()
    first = asyncio.ensure_future(summaries.of(BY, ["one"], writer))
    await begun(writer, 2)
    second = asyncio.ensure_future(summaries.of(BY, ["one"], writer))
    await asyncio.wait([left])
    writer.go_on.set()

    assert await asyncio.gather(first, second) == ["summary 2", "summary 2"]
    assert len(writer.asked) == 2


async def test_a_model_that_gave_none_rests_and_is_asked_again(summaries: Summaries, clock: ManualClock) -> None:
    writer = Writer(None, "at last")
    found = [await summaries.of(BY, ["one"], writer) for _ in range(3)]
    other = await summaries.of(("other", None), ["one"], Writer("of another"))
    clock.advance(REST_S)

    later = await summaries.of(BY, ["one"], writer)

    assert (found, other, later) == ([None, None, None], "of another", "at last")
    assert len(writer.asked) == 2


async def test_what_was_made_before_is_there_while_its_model_rests(summaries: Summaries) -> None:
    writer = Writer("kept", None)
    await summaries.of(BY, ["one"], writer)
    failed = await summaries.of(BY, ["one", "two"], writer)

    assert (failed, await summaries.of(BY, ["one"], writer)) == (None, "kept")


def test_nobody_waits_longer_than_half_a_minute() -> None:
    async def ask(loop: VirtualLoop) -> tuple[str | None, int, float]:
        writer = Writer()
        writer.go_on.clear()
        summaries = Summaries(loop)
        found = await summaries.of(BY, ["one"], writer)
        await summaries.of(BY, ["one"], writer)  # it rests
        await asyncio.sleep(0)
        return found, writer.ended, loop.now()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        found, ended, seconds = runner.run(ask(loop))

    assert (found, ended) == (None, 1)
    assert seconds == pytest.approx(WAIT_S)


async def test_a_long_past_is_read_in_portions(summaries: Summaries) -> None:
    half = "x" * (PORTION_CHARS // 2)
    writer = Writer()

    found = await summaries.of(BY, [half, half, half, half, "end"], writer)

    assert found == "summary 3"
    assert [question.count(half) for question in writer.asked] == [2, 2, 0]
    assert "summary 2" in writer.asked[2]


async def test_a_portion_that_was_made_is_not_made_again_when_a_later_one_failed(
    summaries: Summaries, clock: ManualClock
) -> None:
    half = "x" * (PORTION_CHARS // 2 + 1)
    writer = Writer("of the first", None, "of both")
    await summaries.of(BY, [half, half], writer)
    clock.advance(REST_S)

    assert await summaries.of(BY, [half, half], writer) == "of both"
    assert "of the first" in writer.asked[2]


async def test_the_memory_is_bounded_and_forgets_what_nobody_asks_for(summaries: Summaries) -> None:
    writer = Writer()
    for number in range(MOST_SUMMARIES):
        await summaries.of(BY, [str(number)], writer)
    await summaries.of(BY, ["0"], writer)
    await summaries.of(BY, ["one more"], writer)
    asked = len(writer.asked)

    await summaries.of(BY, ["0"], writer)
    await summaries.of(BY, ["1"], writer)

    assert (asked, len(writer.asked)) == (MOST_SUMMARIES + 1, MOST_SUMMARIES + 2)


# -- what is said and heard -------------------------------------------------------------------------------------------


def test_a_request_is_bounded_by_the_member_that_its_model_takes() -> None:
    plain, newer = (json.loads(request("m", newer, "What?")) for newer in (False, True))

    said = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": "What?"}]
    assert plain == {"model": "m", "messages": said, "max_tokens": 1500}
    assert newer == {"model": "m", "messages": said, "max_completion_tokens": 8000}
    assert "model" not in json.loads(request(None, False, "What?"))


def test_half_a_character_in_a_conversation_can_be_sent() -> None:
    assert json.loads(request("m", False, "\ud83d"))["messages"][1]["content"] == "\ud83d"


def answer(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


HEARD: dict[str, tuple[int, bytes, str | None]] = {
    "a text": (200, answer(" They talked.\n"), "They talked."),
    "parts": (200, answer([{"type": "text", "text": "They"}, {"type": "text", "text": "talked."}]), "They\ntalked."),
    "far too long a text": (200, answer("x" * (SUMMARY_CHARS + 1)), "x" * SUMMARY_CHARS),
    "an empty text": (200, answer(" "), None),
    "null": (200, answer(None), None),
    "no choice": (200, b'{"choices": []}', None),
    "no object": (200, b"[]", None),
    "no JSON": (200, b"<html>", None),
    "an error": (500, answer("They talked."), None),
    "no answer": (0, b"", None),
}


@pytest.mark.parametrize(("status", "body", "summary"), HEARD.values(), ids=HEARD)
def test_what_an_answer_gives(status: int, body: bytes, summary: str | None) -> None:
    assert summary_in(status, body) == summary


def told(api: Api, change: Callable[[Any], None] = lambda body: None) -> list[str]:
    body = api.write(rounds(4, tokens=5, tools=1))
    change(body)
    dialect = {"chat": dialects.CHAT, "messages": dialects.MESSAGES}[api.name]
    talk = talk_of(dialect.name, api.path, body)
    assert talk is not None
    return transcripts(dialect, talk, 2)


@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=str)
def test_rounds_are_told_with_who_said_what(api: Api) -> None:
    first, second = told(api)

    assert first.startswith("user: Question 1:")
    assert "weather" in first
    assert "sunny in round 1" in first
    assert first.endswith("assistant: Answer 1.")
    assert "Question 2:" in second


def test_a_mark_that_moves_on_changes_nothing_of_what_is_told() -> None:
    def mark(body: Any) -> None:
        body["messages"][3]["content"][0]["cache_control"] = {"type": "ephemeral"}

    assert told(MESSAGES, mark) == told(MESSAGES)


def test_of_a_very_long_turn_the_middle_is_left_out() -> None:
    def lengthen(body: Any) -> None:
        body["messages"][1]["content"] = "a" * TURN_CHARS + "b" * TURN_CHARS

    first = told(CHAT, lengthen)[0]

    assert len(first) < TURN_CHARS + 400
    assert f"aaa\n[… {TURN_CHARS:,} characters …]\nbbb" in first
