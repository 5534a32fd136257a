"""One answer, written once and heard by many: each gets every byte, at its own pace, whoever comes late or leaves."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from mitmgate import dialects, tape
from mitmgate.answers import Head
from mitmgate.clock import ManualClock
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Fields, joined
from mitmgate.layer import Downstream, Gone
from mitmgate.sink import Client
from mitmgate.tape import PILE_BYTES, Follow, Listener, Tape

PIECES = [b"data: one\n\n", b"data: two\n\n", b"data: three\n\n"]
BODY = b"".join(PIECES)
BUSY = Refusal(503, "overloaded", "all targets rest", retry_after_s=7)


@dataclass
class Ear:
    """A client at the end of its connection, in place of a ``Downstream``: it keeps what it is told, write by write."""

    writes: list[bytes] = field(default_factory=list)
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    ended: str | None = None
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, a write waits."""
    gone: bool = False
    upload: Any = None

    def __post_init__(self) -> None:
        self.reads.set()

    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    async def head(self, status: int, fields: Fields, reason: bytes) -> None:
        self._listen()
        self.status, self.fields = status, joined(fields)

    async def data(self, piece: bytes) -> None:
        self._listen()
        self.writes.append(piece)
        await self.reads.wait()
        self._listen()

    async def end(self) -> None:
        self._listen()
        self.ended = "end"

    async def whole(self, status: int, fields: Fields, reason: bytes, body: bytes) -> None:
        await self.head(status, fields, reason)
        self.writes.append(body)
        self.ended = "end"

    async def cut(self, message: str) -> None:
        self.ended = "cut"

    def _listen(self) -> None:
        if self.gone:
            raise Gone


def exchange(accepts: str = "identity") -> Exchange:
    headers = {"accept-encoding": accepts}
    x = Exchange("POST", "https", "api.openai.com", 443, "/v1/chat/completions", [], headers, 0.0, 0.0)
    x.dialect = dialects.CHAT
    return x


def head(status: int = 200, coding: str = "") -> Head:
    fields = [(b"content-type", b"text/event-stream")]
    if coding:
        fields.append((b"content-encoding", coding.encode()))
    return Head(status, b"OK", fields, joined(fields))


@dataclass
class Seat:
    """A listener and its place at the tape."""

    x: Exchange
    ear: Ear
    listener: Listener
    task: asyncio.Task[None]

    async def heard(self) -> str | None:
        """Return how it ended, once it has."""
        await asyncio.wait_for(self.task, 5)
        return self.ear.ended

    async def leave(self, told: Tape) -> None:
        """Go as a client does whose connection is closed."""
        self.ear.gone = True
        self.task.cancel()
        await asyncio.wait({self.task})
        told.leave(self.listener)


def sit(told: Tape, x: Exchange | None = None) -> Seat:
    x, ear, listener = x or exchange(), Ear(), told.join()
    playing = told.play(x, Client(x, cast(Downstream, ear)), listener)
    return Seat(x, ear, listener, asyncio.ensure_future(playing))


async def breathe() -> None:
    """Let everybody do what can be done now."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def leader() -> Exchange:
    return exchange()


@pytest.fixture
def told(leader: Exchange, clock: ManualClock) -> Tape:
    return Tape(leader, clock)


async def write(told: Tape, *pieces: bytes) -> None:
    for piece in pieces:
        await told.data(piece, piece)


# -- everybody hears all of it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", range(4))
async def test_who_comes_after_so_many_pieces_hears_all_of_them(told: Tape, leader: Exchange, late: int) -> None:
    first = sit(told, leader)
    await told.head(head())
    await write(told, *PIECES[:late])
    await breathe()

    second = sit(told)
    await write(told, *PIECES[late:])
    await told.end()

    assert [await seat.heard() for seat in (first, second)] == ["end", "end"]
    assert first.ear.body == second.ear.body == BODY


async def test_each_piece_leaves_before_the_next_is_written(told: Tape, leader: Exchange) -> None:
    seats = [sit(told, leader), sit(told)]
    await told.head(head())

    for n, piece in enumerate(PIECES):
        await write(told, piece)
        await breathe()
        assert [seat.ear.writes for seat in seats] == [PIECES[: n + 1]] * 2


async def test_what_piled_up_for_a_slow_listener_goes_out_at_once(told: Tape, leader: Exchange) -> None:
    fast, slow = sit(told, leader), sit(told)
    slow.ear.reads.clear()
    await told.head(head())
    for piece in PIECES:
        await write(told, piece)
        await breathe()

    slow.ear.reads.set()
    await told.end()

    assert [await seat.heard() for seat in (fast, slow)] == ["end", "end"]
    assert fast.ear.writes == PIECES
    assert slow.ear.writes == [PIECES[0], b"".join(PIECES[1:])]


async def test_but_no_write_is_larger_than_a_pile_and_a_piece(told: Tape, leader: Exchange) -> None:
    sit(told, leader)
    await told.head(head())
    pieces = [bytes([n]) * (PILE_BYTES // 2 - 1) for n in range(7)]
    await write(told, *pieces)

    late = sit(told)
    await told.end()

    assert await late.heard() == "end"
    assert late.ear.body == b"".join(pieces)
    assert max(map(len, late.ear.writes)) < PILE_BYTES + len(pieces[0])


async def test_an_answer_that_is_here_already_goes_out_in_one_pass(told: Tape, leader: Exchange) -> None:
    seats = [sit(told, leader), sit(told)]
    await told.whole(head(), BODY, BODY)

    assert [await seat.heard() for seat in seats] == ["end", "end"]
    assert [seat.ear.writes for seat in seats] == [[BODY], [BODY]]


async def test_a_follower_gets_the_coding_that_the_leader_accepted_only_if_it_accepts_the_same(
    clock: ManualClock,
) -> None:
    leader = exchange("gzip")
    told = Tape(leader, clock)
    seats = [sit(told, leader), sit(told, exchange("gzip")), sit(told, exchange("br"))]
    await told.head(head(coding="gzip"))
    await told.data(b"\x1f\x8b", b"")
    await told.data(b"CODED", b"plain")
    await told.end()

    assert [await seat.heard() for seat in seats] == ["end"] * 3
    assert [seat.ear.body for seat in seats] == [b"\x1f\x8bCODED", b"\x1f\x8bCODED", b"plain"]
    assert [seat.ear.fields.get("content-encoding") for seat in seats] == ["gzip", "gzip", None]


@pytest.mark.parametrize("late", [False, True])
async def test_a_coding_that_breaks_is_a_cut_for_those_who_hear_it_undone(clock: ManualClock, late: bool) -> None:
    leader = exchange("gzip")
    told = Tape(leader, clock)
    seats = [] if late else [sit(told, exchange("gzip")), sit(told, exchange("br"))]
    kept_open = sit(told, leader)
    await told.head(head(coding="gzip"))
    await told.data(b"\x1f\x8bBROKEN", b"half")
    leader.answer.spoilt = "its content coding is broken"
    await told.end()
    seats = seats or [sit(told, exchange("gzip")), sit(told, exchange("br"))]

    assert await kept_open.heard() == "end"
    assert [await seat.heard() for seat in seats] == ["end", "cut"]


async def test_no_listener_is_sent_an_empty_piece(clock: ManualClock) -> None:
    """As a chunk it would be the end of the answer."""
    leader = exchange("gzip")
    told = Tape(leader, clock)
    sit(told, leader)
    plain = sit(told, exchange("identity"))
    await told.head(head(coding="gzip"))
    await told.data(b"\x1f\x8b", b"")
    await breathe()
    await told.data(b"CODED", b"plain")
    await told.end()

    assert await plain.heard() == "end"
    assert plain.ear.writes == [b"plain"]


async def test_the_first_content_is_when_each_listener_got_it(told: Tape, leader: Exchange, clock: ManualClock) -> None:
    first = sit(told, leader)
    await told.head(head())
    clock.advance(1)
    await write(told, PIECES[0])
    await breathe()
    clock.advance(1)
    leader.answer.first_content = clock.now()
    await write(told, PIECES[1])
    await breathe()
    clock.advance(3)
    late = sit(told)
    await breathe()

    assert (first.x.first_content, late.x.first_content) == (2.0, 5.0)
    assert [piece.at for piece in told.pieces] == [1.0, 2.0]


async def test_a_follower_is_credited_with_a_hit_and_the_leader_is_not(told: Tape, leader: Exchange) -> None:
    first, second = sit(told, leader), sit(told)
    await told.whole(head(), BODY, BODY)
    await first.heard()
    await second.heard()

    assert (first.x.source, first.x.cache_status, first.x.cache_age_s) == ("provider", None, None)
    assert (second.x.source, second.x.cache_status, second.x.cache_age_s) == ("cache", "HIT", 0)
    assert second.x.answer is leader.answer
    assert second.ear.fields["cf-aig-log-id"] == second.x.id


# -- errors -----------------------------------------------------------------------------------------------------------


async def test_a_refusal_goes_to_each_in_a_letter_of_its_own(told: Tape, leader: Exchange) -> None:
    seats = [sit(told, leader), sit(told)]

    await told.refuse(BUSY, "refused")

    assert [await seat.heard() for seat in seats] == ["end", "end"]
    for seat in seats:
        assert (seat.ear.status, seat.ear.fields["retry-after"]) == (503, "7")
        assert seat.x.id in json.loads(seat.ear.body)["error"]["message"]
        assert (seat.x.source, seat.x.how) == ("gateway", "refused")
    assert not told.is_whole


async def test_a_providers_error_goes_to_all_and_is_nobodys_hit(told: Tape, leader: Exchange) -> None:
    seats = [sit(told, leader), sit(told)]
    await told.whole(head(429), b"{}", b"{}")

    assert [await seat.heard() for seat in seats] == ["end", "end"]
    assert [(seat.ear.status, seat.ear.body, seat.x.source) for seat in seats] == [(429, b"{}", "provider")] * 2


async def test_a_cut_comes_behind_all_that_was_said_before_it(told: Tape, leader: Exchange) -> None:
    seats = [sit(told, leader), sit(told)]
    await told.head(head())
    await write(told, *PIECES[:2])
    await told.cut("the provider broke off", "cut")

    assert [await seat.heard() for seat in seats] == ["cut", "cut"]
    assert [seat.ear.body for seat in seats] == [b"".join(PIECES[:2])] * 2
    assert [seat.x.how for seat in seats] == ["cut", "cut"]
    assert not told.is_whole


class Older:
    """An answer of yesterday."""

    async def play(self, x: Exchange, client: Client) -> None:
        await client.whole(head(), b"yesterday", b"yesterday")

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_an_older_answer_is_played_instead_of_an_error(leader: Exchange, clock: ManualClock, status: int) -> None:
    told = Tape(leader, clock, Older())
    seats = [sit(told, leader), sit(told)]

    await told.whole(head(status), b"{}", b"{}")

    assert [await seat.heard() for seat in seats] == ["end", "end"]
    assert [seat.ear.body for seat in seats] == [b"yesterday"] * 2
    assert not told.is_whole


@pytest.mark.parametrize(("how", "body"), [("failed", b"yesterday"), ("timeout", b"yesterday"), ("refused", None)])
async def test_neither_is_no_answer_but_a_refusal_is_meant(
    leader: Exchange, clock: ManualClock, how: Any, body: bytes | None
) -> None:
    told = Tape(leader, clock, Older())
    seat = sit(told, leader)

    await told.refuse(BUSY, how)

    await seat.heard()
    assert (seat.ear.body == b"yesterday") == (body is not None)


@pytest.mark.parametrize("status", [200, 400, 404])
async def test_what_is_no_failure_of_the_providers_is_played_as_it_came(
    leader: Exchange, clock: ManualClock, status: int
) -> None:
    told = Tape(leader, clock, Older())
    seat = sit(told, leader)

    await told.whole(head(status), b"{}", b"{}")

    await seat.heard()
    assert (seat.ear.status, seat.ear.body) == (status, b"{}")


# -- leaving ----------------------------------------------------------------------------------------------------------


async def written(told: Tape) -> asyncio.Task[None]:
    """Return the task that writes *told*; it never comes to an end by itself."""

    async def forever() -> None:
        await asyncio.Event().wait()

    told.task = asyncio.ensure_future(forever())
    await breathe()
    return told.task


async def test_the_last_who_leaves_turns_the_writing_off(told: Tape, leader: Exchange) -> None:
    writing = await written(told)
    first, second = sit(told, leader), sit(told)
    await told.head(head())
    await write(told, PIECES[0])

    await first.leave(told)
    await breathe()
    assert (told.gone, writing.done()) == (False, False)
    await second.leave(told)
    await breathe()

    assert told.gone
    assert writing.cancelled()
    with pytest.raises(Gone):
        await write(told, PIECES[1])


async def test_a_paid_answer_is_written_to_its_end_once_it_has_begun(told: Tape, leader: Exchange) -> None:
    writing = await written(told)
    told.drain = True
    seat = sit(told, leader)
    await told.head(head())
    await write(told, PIECES[0])

    await seat.leave(told)
    await write(told, PIECES[1])
    late = sit(told)
    await write(told, PIECES[2])
    await told.end()

    assert await late.heard() == "end"
    assert late.ear.body == BODY
    assert told.is_whole
    assert not writing.done()
    writing.cancel()


async def test_before_its_head_nothing_is_paid(told: Tape, leader: Exchange) -> None:
    writing = await written(told)
    told.drain = True
    seat = sit(told, leader)

    await seat.leave(told)
    await breathe()

    assert writing.cancelled()


async def test_an_answer_that_has_said_all_may_end_though_nobody_listens(told: Tape, leader: Exchange) -> None:
    writing = await written(told)
    seat = sit(told, leader)
    await told.head(head())
    leader.answer.reading.ended = True
    await write(told, *PIECES)

    await seat.leave(told)
    await breathe()
    assert not writing.done()
    await told.end()

    assert told.is_whole
    writing.cancel()


async def test_but_not_for_long(told: Tape, leader: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "END_S", 0.0)
    writing = await written(told)
    seat = sit(told, leader)
    await told.head(head())
    leader.answer.reading.ended = True
    await write(told, *PIECES)

    await seat.leave(told)
    await asyncio.wait({writing}, timeout=5)

    assert writing.cancelled()
    assert not told.is_whole


@pytest.mark.parametrize(("finished", "left_early"), [(False, True), (True, False)])
async def test_who_leaves_behind_the_finish_reason_has_left_late(
    told: Tape, leader: Exchange, finished: bool, left_early: bool
) -> None:
    seats = [sit(told, leader), sit(told)]
    await told.head(head())
    leader.answer.reading.finished = finished
    await write(told, PIECES[0])
    await breathe()

    for seat in seats:
        await seat.leave(told)

    assert [seat.x.left_early for seat in seats] == [left_early] * 2


async def test_what_counts_is_what_the_listener_had_got_by_then(told: Tape, leader: Exchange) -> None:
    sit(told, leader)
    slow = sit(told)
    slow.ear.reads.clear()
    await told.head(head())
    await write(told, PIECES[0])
    await breathe()
    leader.answer.reading.finished = True
    await write(told, PIECES[1])

    await slow.leave(told)

    assert slow.x.left_early


async def test_what_is_read_after_a_follower_has_left_is_not_in_its_books(told: Tape, leader: Exchange) -> None:
    sit(told, leader)
    follower = sit(told)
    await told.head(head())
    leader.answer.reading.usage.input_tokens = 25
    leader.answer.kept += PIECES[0]
    await write(told, PIECES[0])
    await breathe()

    await follower.leave(told)
    leader.answer.reading.usage.output_tokens = 15
    leader.answer.kept += PIECES[1]

    usage = follower.x.reading.usage
    assert (usage.input_tokens, usage.output_tokens, bytes(follower.x.answer.kept)) == (25, None, PIECES[0])


async def test_an_answer_that_will_never_be_written_is_an_error_that_is_worth_a_retry(told: Tape) -> None:
    follower = sit(told)

    told.abandon()

    assert await follower.heard() == "end"
    assert (follower.ear.status, follower.ear.fields["x-should-retry"]) == (503, "true")


async def test_a_follower_that_was_never_played_gives_its_place_back(told: Tape) -> None:
    writing = await written(told)

    Follow(told, told.join()).close()
    await breathe()

    assert writing.cancelled()


# -- no more than is held ---------------------------------------------------------------------------------------------


@pytest.fixture
def _most_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "MOST_BYTES", 25)


@pytest.mark.usefixtures("_most_bytes")
async def test_a_longer_answer_waits_for_its_slowest_listener(told: Tape, leader: Exchange) -> None:
    fast, slow = sit(told, leader), sit(told)
    slow.ear.reads.clear()
    await told.head(head())

    writing = asyncio.ensure_future(write(told, *(PIECES * 3)))
    await breathe()
    assert not writing.done()
    assert told.size <= 25 + len(PIECES[2])
    assert len(fast.ear.body) > 25

    slow.ear.reads.set()
    await asyncio.wait_for(writing, 5)
    await told.end()
    assert [await seat.heard() for seat in (fast, slow)] == ["end", "end"]
    assert fast.ear.body == slow.ear.body == BODY * 3


@pytest.mark.usefixtures("_most_bytes")
async def test_a_longer_answer_takes_no_more_followers_and_is_not_kept(told: Tape, leader: Exchange) -> None:
    seat = sit(told, leader)
    await told.head(head())
    await write(told, *PIECES[:2])
    assert told.joinable
    writing = asyncio.ensure_future(write(told, PIECES[2]))
    await breathe()

    assert not told.joinable
    await asyncio.wait_for(writing, 5)
    await told.end()
    assert await seat.heard() == "end"
    assert not told.is_whole


@pytest.mark.usefixtures("_most_bytes")
async def test_the_slowest_that_leaves_lets_the_others_go_on(told: Tape, leader: Exchange) -> None:
    fast, slow = sit(told, leader), sit(told)
    slow.ear.reads.clear()
    await told.head(head())
    writing = asyncio.ensure_future(write(told, *(PIECES * 3)))
    await breathe()

    await slow.leave(told)

    await asyncio.wait_for(writing, 5)
    await told.end()
    assert await fast.heard() == "end"
    assert fast.ear.body == BODY * 3


@pytest.mark.usefixtures("_most_bytes")
async def test_a_paid_answer_that_nobody_hears_is_not_held(told: Tape, leader: Exchange) -> None:
    told.drain = True
    seat = sit(told, leader)
    await told.head(head())
    await write(told, PIECES[0])
    await seat.leave(told)

    await asyncio.wait_for(write(told, *(PIECES * 100)), 5)

    assert told.size <= 25
    assert not told.joinable
