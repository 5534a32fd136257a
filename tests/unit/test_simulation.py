"""Whatever fails when, the promises hold: ten thousand worlds drawn by lot, each looked over when all is said and done.

A failure names its seed; ``SIMULATION=1234 pytest tests/unit/test_simulation.py`` runs that world alone.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest

from mitmgate import tape
from mitmgate.exchange import Attempt, Exchange
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.tape import Follow
from support.faults import CALL, Call, Mood, refused, thinking
from support.simulation import EVER, KEYS, OWN, PLACES, TARGETS, Guest, Schedule, Visit, World
from support.virtual_time import Stuck, VirtualLoop

WORLDS = 10_000
PART = 500
"""Worlds in one test, so that a run shows how far it is."""
ALONE = os.environ.get("SIMULATION")
PARTS = [range(int(ALONE), int(ALONE) + 1)] if ALONE else [range(n, n + PART) for n in range(0, WORLDS, PART)]

SAME_S = 1e-6
"""Sums of floats differ by less."""

type Broken = Iterator[str]
"""A sentence for each time that a promise was broken."""
type Promise = Callable[[World], Broken]


# -- what belongs together --------------------------------------------------------------------------------------------


def call_heard(world: World, guest: Guest) -> Call | None:
    """Return the call whose answer *guest* was given; None where the gateway wrote it, or nobody did."""
    if not guest.ear.heads:
        return None
    _, headers = guest.ear.heads[0]
    n = headers.get(CALL.decode())
    return world.wire.calls[int(n) - 1] if n else None


def calls_for(guest: Guest, attempt: Attempt) -> list[Call]:
    return [call for call in guest.calls if call.attempt is attempt]


def asker_of(world: World, call: Call) -> Guest:
    return next(guest for guest in world.all_guests if call in guest.calls)


def followed(guest: Guest) -> Exchange | None:
    """Return the exchange whose answer *guest* shares while it is on its way."""
    return guest.x.replay.tape.leader if isinstance(guest.x.replay, Follow) else None


def hearers(world: World, leader: Guest) -> list[Guest]:
    return [leader, *(guest for guest in world.all_guests if followed(guest) is leader.x)]


def before_our_last_word(body: bytes) -> bytes | None:
    """Return what a provider said before the gateway ended its stream with an event; None where it did not."""
    said, event, last = body.rpartition(b'data: {"error": {"message": "mitmgate ended')
    return said if event and last.endswith(b"\n\n") else None


# -- the promises -----------------------------------------------------------------------------------------------------


def nothing_breaks_inside(world: World) -> Broken:
    yield from world.logged


def nothing_is_left(world: World) -> Broken:
    yield from world.left
    yield from (f"{down!r} is still live" for down in world.chain.live)
    cache = world.chain.cache
    yield from (f"the answer {key} is still on its way" for key in cache.tapes)
    yield from (f"what to do with the answer of {x_id} is still known" for x_id in cache.decisions)
    for guest in world.all_guests:
        own = guest.x.tape
        if own and (own.listeners or (own.task and not own.task.done())):
            yield f"{guest}: its tape has {len(own.listeners)} listeners and is written by {own.task!r}"


def each_client_that_stays_gets_one_answer(world: World) -> Broken:
    for guest in world.all_guests:
        ear, task = guest.ear, guest.task
        if len(ear.heads) > 1 or len(ear.ends) > 1 or (guest.stayed and not (ear.heads and ear.ends)):
            yield f"{guest} got the heads {ear.heads} and the ends {ear.ends}"
        if ear.finished != 1:
            yield f"{guest} was finished {ear.finished} times"
        if task.cancelled() or task.exception():
            yield f"{guest}: its task broke: {task!r}"


def an_answer_is_one_call_from_its_first_byte_on(world: World) -> Broken:
    for guest in world.all_guests:
        call, ear = call_heard(world, guest), guest.ear
        if not ear.heads:
            if ear.body:
                yield f"{guest} got a body without a head: {bytes(ear.body)!r}"
        elif call is None:
            yield from _ours(guest)
        else:
            yield from _theirs(guest, call, bytes(ear.body))


def _ours(guest: Guest) -> Broken:
    status, headers = guest.ear.heads[0]
    told = json.loads(guest.ear.body)["error"]["message"]
    if status not in (502, 503, 504) or headers["cf-aig-source"] != "gateway" or guest.x.id not in told:
        yield f"{guest} got an answer of nobody: {status} {headers} {told}"


def _theirs(guest: Guest, call: Call, body: bytes) -> Broken:
    (status, headers), ends = guest.ear.heads[0], guest.ear.ends
    coded = "content-encoding" in headers
    whole = call.whole(coded)
    if status != call.script.status:
        yield f"{guest} got the status {status} of {call}"
    said = before_our_last_word(body)
    if said is not None:
        is_event = said == b"" or said.endswith(b"\n\n")
        if not is_event or not whole.startswith(said) or b"[DONE]" in said:
            yield f"{guest} heard {said!r} before the gateway's last word; {call} said {whole!r}"
    elif ends == ["end"]:
        if body != whole or call.script.ending != "end":
            yield f"{guest} got {body!r} as the whole of {call}, which said {whole!r}"
    elif not whole.startswith(body):
        yield f"{guest} got {body!r}, not the beginning of {call}: {whole!r}"
    elif _hears_a_cut(guest, call) and body != call.arrived(coded):
        yield f"{guest} got {body!r} of {call}, which had said {call.arrived(coded)!r} before it was cut"


def _hears_a_cut(guest: Guest, call: Call) -> bool:
    """It was there until the provider itself cut its answer."""
    return call.script.ending == "cut" and guest.x.how == "cut" and guest.stayed and not guest.stopped


def an_answer_goes_only_to_those_who_asked_the_same(world: World) -> Broken:
    for guest in world.all_guests:
        if (call := call_heard(world, guest)) is None:
            continue
        asker = asker_of(world, call)
        if asker.visit.asks != guest.visit.asks:
            yield f"{guest} asked {guest.visit.asks}, and got what {asker} asked: {asker.visit.asks}"
        if asker is not guest and followed(guest) is not asker.x and not call.script.is_good:
            yield f"{guest} got what should not have been kept: {call}"


def nothing_is_sent_again_once_a_byte_is_out(world: World) -> Broken:
    for guest in world.all_guests:
        ticks = [one.ear.tick for one in hearers(world, guest) if one.ear.tick is not None]
        for call in guest.calls:
            if ticks and call.tick > min(ticks):
                yield f"{guest}: {call} came after somebody had heard of an answer"


def attempts_stay_within_their_bounds(world: World) -> Broken:
    rule = world.schedule.policy.retry[-1]
    for guest in world.all_guests:
        x = guest.x
        most = sum(_most_at(guest, leg.attempts, rule.attempts) for leg in x.legs) + (x.hedge is not None)
        if len(x.attempts) > most:
            yield f"{guest} made {len(x.attempts)} attempts, and {most} are allowed"
        for attempt in x.attempts:
            if attempt.wait_s and attempt.started > x.started + rule.within_s + SAME_S:
                yield f"{guest}: a retry began {attempt.started - x.started:g} s after the request came"
            yield from _repeated_for_a_reason(guest, calls_for(guest, attempt))


def _most_at(guest: Guest, at_leg: int | None, by_rule: int) -> int:
    by_header = guest.x.controls.get("max-attempts")
    asked = max(at_leg or 0, by_header or 0) or by_rule
    return max(1, asked - int(guest.x.headers.get("x-stainless-retry-count", "0")))


def _repeated_for_a_reason(guest: Guest, calls: list[Call]) -> Broken:
    """One attempt is one call, but for a kept connection that was dead and a host that takes no ``stream_options``."""
    if not calls:
        yield f"{guest}: an attempt without a call"
    for first, second in pairwise(calls):
        was_dead = first.script.kept and first.script.fails == "reset" and second.fresh
        was_refused = first.asked_usage and not second.asked_usage and first.script.status == 400
        if not was_dead and not was_refused:
            yield f"{guest}: {second} repeats {first} for no reason"


def a_wait_that_the_provider_named_is_kept(world: World) -> Broken:
    for guest in world.all_guests:
        if guest.x.hedge:
            continue  # two places at once: the one that is asked next has not said it
        for first, second in pairwise(guest.calls):
            named_ms = dict(first.script.fields).get(b"retry-after-ms")
            if named_ms is None or second.attempt.target != first.attempt.target or first.over_s is None:
                continue
            if second.at_s < first.over_s + int(named_ms) / 1000 - SAME_S:
                yield f"{guest}: {second} came {second.at_s - first.over_s:g} s after {first} had said {named_ms!r} ms"


def a_call_ends_no_later_than_its_attempt(world: World) -> Broken:
    for guest in world.all_guests:
        for call in guest.calls:
            ended = call.attempt.ended
            if call.over_s is None:
                yield f"{guest}: {call} still holds its connection"
            elif ended is not None and call.over_s > ended + SAME_S:
                yield f"{guest}: {call} held its connection until {call.over_s:g} s, its attempt ended at {ended:g} s"


def nobody_asks_on_when_nobody_listens(world: World) -> Broken:
    if world.schedule.policy.upstream.after_client_leaves["default"] == "drain":
        return
    for guest in world.all_guests:
        left = [one.ear.left_s for one in hearers(world, guest)]
        if None in left:
            continue
        may_end_s = tape.END_S if guest.x.tape and guest.x.reading.ended else 0.0
        last_s = max(at_s for at_s in left if at_s is not None) + may_end_s
        for call in guest.calls:
            if call.over_s is not None and call.over_s > last_s + SAME_S:
                yield f"{guest}: {call} went on until {call.over_s:g} s, and should have been over at {last_s:g} s"


def identical_calls_share_one(world: World) -> Broken:
    policy = world.schedule.policy
    if not policy.cache or not policy.cache_store.coalesce:
        return
    last: dict[object, Call] = {}
    for guest in world.all_guests:
        calls = guest.calls
        if guest.visit.fields or not calls:
            continue
        before = last.get(guest.visit.asks)
        if before and before.over_s is not None and calls[0].at_s < before.over_s - SAME_S:
            yield f"{guest}: {calls[0]} asks what {before} is just being answered"
        last[guest.visit.asks] = max(calls, key=lambda call: call.over_s or 0.0)


def no_key_goes_astray(world: World) -> Broken:
    for call in world.wire.calls:
        sent = dict(call.out.fields)[b"authorization"]
        wanted = KEYS.get(call.host) or asker_of(world, call).visit.credential
        if sent != wanted:
            yield f"{call} carried {sent!r}"


def the_total_holds(world: World) -> Broken:
    for guest in world.all_guests:
        if guest.x.source == "cache":
            continue  # an old answer takes the time that it took
        lasted_s = (guest.x.ended or 0.0) - guest.x.started
        if not guest.visit.slow_s and lasted_s > (guest.x.timeouts.total_s or 0.0) + SAME_S:
            yield f"{guest} was kept for {lasted_s:g} s, and the total is {guest.x.timeouts.total_s:g} s"


def the_books_are_closed(world: World) -> Broken:
    if (rows := world.chain.state.writer.backlog.entered) != len(world.all_guests):
        yield f"{rows} rows for {len(world.all_guests)} clients"
    for guest in world.all_guests:
        x = guest.x
        if x.how is None or x.terminal is None or x.ended is None:
            yield f"{guest}: how={x.how}, terminal={x.terminal}, ended={x.ended}"
        if guest.stayed and x.terminal == "client_abort":
            yield f"{guest} stayed, and its row says that it left"
        if [attempt.n for attempt in x.attempts] != list(range(1, len(x.attempts) + 1)):
            yield f"{guest}: its attempts are numbered {[attempt.n for attempt in x.attempts]}"
        for attempt in x.attempts:
            if attempt.ended is None or attempt.ended < attempt.started:
                yield f"{guest}: attempt {attempt.n} began at {attempt.started:g} s and ended at {attempt.ended}"
            if attempt.error_type is None and attempt.answer is not x.answer:
                yield f"{guest}: attempt {attempt.n} neither answered nor failed"


def a_place_that_is_well_again_is_called_again(world: World) -> Broken:
    for name, guest in world.late:
        x = guest.x
        target = x.origin and x.origin.target
        if x.status != 200 or target != name or len(x.attempts) != 1:
            yield f"{name} is well, and {guest} got {x.status} from {target} in {len(x.attempts)} attempts"


PROMISES: tuple[Promise, ...] = (
    nothing_breaks_inside,
    nothing_is_left,
    each_client_that_stays_gets_one_answer,
    an_answer_is_one_call_from_its_first_byte_on,
    an_answer_goes_only_to_those_who_asked_the_same,
    nothing_is_sent_again_once_a_byte_is_out,
    attempts_stay_within_their_bounds,
    a_wait_that_the_provider_named_is_kept,
    a_call_ends_no_later_than_its_attempt,
    nobody_asks_on_when_nobody_listens,
    identical_calls_share_one,
    no_key_goes_astray,
    the_total_holds,
    the_books_are_closed,
    a_place_that_is_well_again_is_called_again,
)


def broken_in(schedule: Schedule, promises: Sequence[Promise] = PROMISES) -> str:
    """Return what was broken in the world of *schedule*, a line each; empty where all was kept."""
    try:
        world = World(schedule).run()
    except Stuck as stuck:
        return f"seed {schedule.seed}: {stuck}"
    broken = [f"seed {schedule.seed}: {promise.__name__}: {text}" for promise in promises for text in promise(world)]
    return "\n".join(broken)


# -- worlds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", PARTS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_whatever_fails_the_promises_hold(seeds: range) -> None:
    for seed in seeds:
        assert broken_in(Schedule.of(seed)) == ""


def test_they_hold_for_answers_too_long_to_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "MOST_BYTES", 300)
    promises = [promise for promise in PROMISES if promise is not identical_calls_share_one]
    for seed in range(PART):
        assert broken_in(Schedule.of(seed), promises) == ""


def test_a_place_that_lost_a_hedge_while_it_was_probed_is_probed_again() -> None:
    policy = Policy(
        targets=TARGETS,
        retry=(rules.Retry(attempts=2),),
        breaker=(rules.Breaker(min_requests=1, rest_s=0.3),),
        hedge=(rules.Hedge("tail", 0.0, 95, "two"),),
    )
    makes_it_rest = Visit(0.0, 0, True, 0, ((b"cf-aig-fallback", b"two"), (b"cf-aig-max-attempts", b"1")))
    is_hedged = Visit(1.0, 1, True, 0)
    # Both places think for so long that both are taken as they are, in the same moment; the first one wins.
    down, slow = Mood({refused: 1}), Mood({thinking: 1})
    moods = {OWN: [(EVER, slow)], PLACES["two"]: [(0.5, down), (EVER, slow)]}

    assert broken_in(Schedule(0, policy, (makes_it_rest, is_hedged), moods)) == ""


def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = (World(Schedule.of(17)).run() for _ in range(2))

    assert [str(call) for call in first.wire.calls] == [str(call) for call in second.wire.calls]
    assert [bytes(guest.ear.body) for guest in first.guests if guest.x.source == "provider"]
    assert [guest.ear.ends for guest in first.guests] == [guest.ear.ends for guest in second.guests]


# -- time -------------------------------------------------------------------------------------------------------------


def test_an_hour_passes_at_once() -> None:
    loop = VirtualLoop()
    loop.run_until_complete(asyncio.sleep(3600))
    loop.close()

    assert loop.now() == 3600


def test_who_waits_for_ever_is_found() -> None:
    async def wait_for_ever() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()

    loop = VirtualLoop()
    task = loop.create_task(wait_for_ever())
    with pytest.raises(Stuck):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(task)
    loop.close()
