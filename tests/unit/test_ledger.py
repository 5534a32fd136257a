"""What was counted is exact: among charges, among workers, over restarts and kills, and on a disk that fails."""

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import mitmgate
from mitmgate.charges import Charge, Standing, Unit
from mitmgate.clock import ManualClock, SystemClock
from mitmgate.store import folding, ledger_books, ledger_file
from mitmgate.store.ledger import Ledger, nothing, soon
from support.ledgers import BOOT, Later, Moments, charge, counts, fits, kill, opened

DAY = 24 * 3600.0
MIDNIGHT = 1_700_006_400.0
"""Of the day after the clock's: 2023-11-15."""

REQUEST = charge("burst", most=3)
SLOT = charge("parallel", "concurrent", most=2)
TOKENS = charge("tokens", "tokens", most=100, every="day", amount=40)
COST = charge("spend", "cost", most=1000, every="month", amount=300)
ALL = [REQUEST, SLOT, TOKENS, COST]

type Open = Callable[..., Ledger]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spend.db"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def start(path: Path, clock: ManualClock) -> Iterator[Open]:
    """Open ledgers of one file, each as another worker would; they are closed at the end."""
    made: list[Ledger] = []

    def ledger(timezone: str = "UTC", boot: str = BOOT, later: Later = soon) -> Ledger:
        made.append(opened(path, clock, timezone, boot, later))
        return made[-1]

    yield ledger
    for one in made:
        one.close()


@pytest.fixture
def ledger(start: Open) -> Ledger:
    return start()


def one(standings: list[Standing]) -> Standing:
    (standing,) = standings
    return standing


# -- reserve and settle -----------------------------------------------------------------------------------------------


def test_what_a_call_takes_stands_in_every_counter_until_it_is_settled(ledger: Ledger) -> None:
    assert counts(ledger.reserve("x", ALL)) == [(1, 0), (0, 1), (0, 40), (0, 300)]
    settled = ledger.settle("x", {"requests": 1, "tokens": 25, "cost": 210})
    assert [(one.charge, one.before) for one in settled] == [(REQUEST, 1), (SLOT, 0), (TOKENS, 0), (COST, 0)]
    assert counts([one.standing for one in settled]) == [(1, 0), (0, 0), (25, 0), (210, 0)]
    assert counts(ledger.standing(ALL)) == [(1, 0), (0, 0), (25, 0), (210, 0)]


def test_five_calls_of_100_tokens_against_100_let_in_one(ledger: Ledger) -> None:
    tokens = replace(TOKENS, amount=100)
    assert [fits(ledger.reserve(str(n), [tokens])) for n in range(5)] == [True, False, False, False, False]
    ledger.settle("0", {"tokens": 100})
    assert counts(ledger.standing([tokens])) == [(100, 0)]


def test_exactly_so_many_requests_pass_in_any_minute(ledger: Ledger, clock: ManualClock) -> None:
    request = replace(REQUEST, most=60)
    assert sum(fits(ledger.reserve(str(n), [request])) for n in range(200)) == 60
    clock.advance(59.9)
    assert not fits(ledger.reserve("early", [request]))
    clock.advance(0.1)
    assert sum(fits(ledger.reserve(f"again {n}", [request])) for n in range(200)) == 60


@pytest.mark.parametrize("full", [SLOT, replace(TOKENS, most=39), replace(COST, most=299)])
def test_a_call_that_one_counter_refuses_is_counted_by_none(ledger: Ledger, full: Charge) -> None:
    charges = [full if one.rule == full.rule else one for one in ALL]
    for n in range(2 if full is SLOT else 0):
        ledger.reserve(f"before {n}", [SLOT])
    before = counts(ledger.standing(charges))
    shadow = replace(charge("shadow"), refuses=False)
    standings = ledger.reserve("x", [shadow, *charges])
    assert [standing.charge for standing in standings if standing.full] == [full]
    assert counts(ledger.standing(charges)) == before
    assert counts(ledger.standing([shadow])) == [(0, 0)]
    assert ledger.settle("x", {"requests": 1}) == []


def test_a_shadow_is_counted_and_never_says_no(ledger: Ledger) -> None:
    shadow = replace(REQUEST, most=1, refuses=False)
    standings = [one(ledger.reserve(str(n), [shadow])) for n in range(3)]
    assert [(standing.used, standing.full) for standing in standings] == [(1, False), (2, True), (3, True)]


def test_a_call_adds_to_what_it_holds(ledger: Ledger) -> None:
    ledger.reserve("x", [REQUEST, SLOT])
    ledger.reserve("x", [TOKENS, COST])
    assert [one.charge for one in ledger.settle("x", {"requests": 1})] == ALL
    assert counts(ledger.standing(ALL)) == [(1, 0), (0, 0), (0, 0), (0, 0)]


def test_a_second_reservation_that_is_refused_leaves_the_first(ledger: Ledger) -> None:
    ledger.reserve("x", [REQUEST, SLOT])
    assert not fits(ledger.reserve("x", [replace(TOKENS, most=1)]))
    assert counts(ledger.standing([REQUEST, SLOT])) == [(1, 0), (0, 1)]
    ledger.release("x")
    assert counts(ledger.standing(ALL)) == [(0, 0)] * 4


@pytest.mark.parametrize(("used", "left"), [(10, 90), (40, 60), (75, 25), (250, 0)])
def test_more_than_was_reserved_is_recorded_and_less_is_given_back(ledger: Ledger, used: int, left: int) -> None:
    ledger.reserve("x", [TOKENS])
    settled = ledger.settle("x", {"tokens": used})
    assert [(one.standing.used, one.standing.left) for one in settled] == [(used, left)]


def test_one_counter_may_count_something_else_than_the_others_of_its_unit(ledger: Ledger) -> None:
    other = charge("other", "cost", most=1000, every="day", amount=300)
    ledger.reserve("x", [COST, other])
    ledger.settle("x", {"cost": 50}, {other.counter: 70})
    assert counts(ledger.standing([COST, other])) == [(50, 0), (70, 0)]


def test_a_released_call_has_never_been(ledger: Ledger, clock: ManualClock) -> None:
    ledger.reserve("x", ALL)
    clock.advance(5)
    ledger.release("x")
    assert counts(ledger.standing(ALL)) == [(0, 0)] * 4
    assert fits(ledger.reserve("y", [replace(REQUEST, amount=3)]))


def test_a_call_is_settled_once(ledger: Ledger) -> None:
    ledger.reserve("x", ALL)
    used = {"requests": 1, "tokens": 25, "cost": 210}
    ledger.settle("x", used)
    assert ledger.settle("x", used) == []
    assert ledger.release("nobody") == []
    assert counts(ledger.standing(ALL)) == [(1, 0), (0, 0), (25, 0), (210, 0)]


def test_no_charges_are_no_transaction(ledger: Ledger) -> None:
    before = ledger._file.transactions
    assert ledger.reserve("x", []) == ledger.standing([]) == ledger.settle("x", {}) == []
    assert ledger._file.transactions == before


def test_looking_counts_nothing_and_says_what_would_fit(ledger: Ledger) -> None:
    ledger.reserve("x", [TOKENS])
    small, large = ledger.standing([replace(TOKENS, amount=60), replace(TOKENS, amount=61)])
    assert (small.full, large.full) == (False, True)
    assert large.wait_s == MIDNIGHT - ledger.clock.wall()
    assert counts(ledger.standing([TOKENS])) == [(0, 40)]


def test_a_refusal_says_how_long_until_it_would_fit(ledger: Ledger, clock: ManualClock) -> None:
    for n in range(3):
        ledger.reserve(str(n), [REQUEST])
        clock.advance(10)
    refused = one(ledger.reserve("x", [REQUEST]))
    assert (refused.full, refused.wait_s, refused.reset_s, refused.left) == (True, 30.0, 30.0, 0)
    clock.advance(30)
    assert fits(ledger.reserve("x", [REQUEST]))


def test_refused_calls_neither_lengthen_nor_fill_the_window(ledger: Ledger, clock: ManualClock) -> None:
    for n in range(3):
        ledger.reserve(str(n), [REQUEST])
    for n in range(50):
        clock.advance(1)
        assert not fits(ledger.reserve(f"refused {n}", [REQUEST]))
    clock.advance(10)
    assert sum(fits(ledger.reserve(f"later {n}", [REQUEST])) for n in range(5)) == 3


def test_a_claim_beyond_all_bounds_is_refused_or_bounded(ledger: Ledger) -> None:
    absurd = replace(TOKENS, amount=10**30)
    assert not fits(ledger.reserve("x", [absurd]))
    shadow = replace(absurd, refuses=False)
    assert one(ledger.reserve("y", [shadow])).full
    ledger.settle("y", {"tokens": 10**30})
    assert one(ledger.standing([TOKENS])).left == 0


def test_an_edited_limit_keeps_its_count(ledger: Ledger) -> None:
    ledger.reserve("x", [TOKENS])
    ledger.settle("x", {"tokens": 40})
    assert not fits(ledger.reserve("y", [replace(TOKENS, most=79)]))
    assert one(ledger.reserve("y", [replace(TOKENS, most=80)])).used == 40


def test_a_call_over_midnight_is_counted_on_the_day_of_its_row(ledger: Ledger, clock: ManualClock) -> None:
    clock.advance(MIDNIGHT - clock.wall() - 1)
    ledger.reserve("x", [TOKENS])
    clock.advance(2)
    assert counts(ledger.standing([TOKENS])) == [(0, 0)]
    ledger.settle("x", {"tokens": 35})
    assert counts(ledger.standing([TOKENS])) == [(0, 0)]


def test_a_day_is_that_of_the_timezone_and_an_edited_one_holds_at_once(ledger: Ledger, clock: ManualClock) -> None:
    ledger.timezone = "Asia/Tokyo"
    assert ledger.timezone == "Asia/Tokyo"
    assert one(ledger.standing([TOKENS])).reset_s == MIDNIGHT - 9 * 3600 + DAY - clock.wall()
    ledger.reserve("x", [TOKENS])
    ledger.timezone = "UTC"
    clock.advance(MIDNIGHT - clock.wall() - 1)
    assert counts(ledger.standing([TOKENS])) == [(0, 40)]
    clock.advance(1)
    assert counts(ledger.standing([TOKENS])) == [(0, 0)]


# -- grants -----------------------------------------------------------------------------------------------------------


def test_a_grant_holds_until_the_window_turns(ledger: Ledger, clock: ManualClock) -> None:
    tokens = replace(TOKENS, amount=150)
    assert not fits(ledger.reserve("x", [tokens]))
    ledger.grant(tokens.counter, "day", 30)
    ledger.grant(tokens.counter, "day", 20)
    standing = one(ledger.reserve("x", [tokens]))
    assert (standing.granted, standing.full, standing.left) == (50, False, 0)
    clock.advance(DAY)
    assert one(ledger.standing([tokens])).granted == 0


def test_a_grant_in_a_window_that_slides_holds_for_its_length(ledger: Ledger, clock: ManualClock) -> None:
    ledger.grant(REQUEST.counter, 60.0, 2)
    clock.advance(59)
    assert sum(fits(ledger.reserve(str(n), [REQUEST])) for n in range(9)) == 5
    clock.advance(1)
    assert one(ledger.reserve("x", [REQUEST])).wait_s == 59.0


def test_a_grant_of_another_process_holds_at_once(start: Open) -> None:
    gateway, command = start(), start()
    assert not fits(gateway.reserve("x", [replace(TOKENS, amount=101)]))
    command.grant(TOKENS.counter, "day", 1)
    assert fits(gateway.reserve("x", [replace(TOKENS, amount=101)]))


# -- restart, kill, reboot --------------------------------------------------------------------------------------------


def test_counts_survive_a_restart(start: Open) -> None:
    first = start()
    first.reserve("x", ALL)
    first.settle("x", {"requests": 1, "tokens": 25, "cost": 210})
    first.close()
    assert counts(start().standing(ALL)) == [(1, 0), (0, 0), (25, 0), (210, 0)]


def test_what_a_killed_process_held_is_back_at_once_and_what_it_spent_stays_spent(start: Open) -> None:
    killed = start()
    killed.reserve("done", ALL)
    killed.settle("done", {"requests": 1, "tokens": 25, "cost": 210})
    killed.reserve("under way", ALL)
    kill(killed)
    again = start()
    assert counts(again.standing(ALL)) == [(2, 0), (0, 0), (25, 0), (210, 0)]
    assert again.stats.taken_back == 3


def test_what_a_living_worker_holds_never_expires(start: Open, clock: ManualClock) -> None:
    worker = start()
    worker.reserve("long", [SLOT, COST])
    other = start()
    for _ in range(5):
        clock.advance(3 * DAY)
        other.sweep()
    assert counts(other.standing([SLOT])) == [(0, 1)]
    worker.settle("long", {})
    assert counts(other.standing([SLOT])) == [(0, 0)]


def test_a_sweep_takes_back_what_a_killed_worker_held(start: Open) -> None:
    worker, other = start(), start()
    worker.reserve("x", ALL)
    other.reserve("y", [SLOT])
    kill(worker)
    assert counts(other.standing([SLOT])) == [(0, 2)]
    other.sweep()
    assert counts(other.standing(ALL)) == [(1, 0), (0, 1), (0, 0), (0, 0)]
    assert not list(other._file.owner.folder.glob(worker._file.owner.name))


def test_a_counter_that_a_sweep_emptied_counts_on_for_all(start: Open) -> None:
    worker, other = start(), start()
    worker.reserve("x", [SLOT])
    kill(worker)
    other.sweep()
    other.reserve("y", [SLOT])
    assert counts(start().standing([SLOT])) == [(0, 1)]


def test_a_process_that_was_given_up_by_mistake_takes_nothing_twice(start: Open) -> None:
    worker, other = start(), start()
    worker.reserve("x", [SLOT, TOKENS])
    for file in worker._file.owner.folder.iterdir():
        file.unlink()
    other.reserve("y", [SLOT])
    other.sweep()
    assert counts(other.standing([SLOT, TOKENS])) == [(0, 1), (0, 0)]
    worker.settle("x", {"tokens": 30})
    assert counts(other.standing([SLOT, TOKENS])) == [(0, 1), (30, 0)]
    worker.sweep()
    worker.reserve("z", [SLOT])
    other.sweep()
    assert counts(other.standing([SLOT])) == [(0, 2)], "it is seen as alive again"


def test_a_reservation_that_its_process_forgot_is_given_back(ledger: Ledger) -> None:
    ledger.reserve("lost", [SLOT, TOKENS])
    ledger.reserve("kept", [SLOT])
    del ledger._holds["lost"]
    ledger.sweep()
    assert counts(ledger.standing([SLOT, TOKENS])) == [(0, 1), (0, 0)]


def test_a_clock_that_is_set_changes_nothing_for_windows_that_slide(ledger: Ledger, clock: ManualClock) -> None:
    ledger.reserve("x", [replace(REQUEST, amount=3)])
    clock.started_wall -= 10
    clock.advance(59)
    assert not fits(ledger.reserve("y", [REQUEST]))
    clock.started_wall += 3600
    assert not fits(ledger.reserve("y", [REQUEST]))
    clock.advance(1)
    assert fits(ledger.reserve("y", [REQUEST]))


def test_workers_agree_on_the_time_although_the_clock_was_set_between_their_starts(
    start: Open, clock: ManualClock
) -> None:
    early = start()
    clock.started_wall -= 3600
    late = start()
    early.reserve("x", [replace(REQUEST, amount=3)])
    assert one(late.reserve("y", [REQUEST])).wait_s == 60.0
    clock.advance(60)
    assert fits(late.reserve("y", [REQUEST]))


def test_a_reboot_goes_on_by_the_wall_clock(path: Path, clock: ManualClock) -> None:
    before = opened(path, clock)
    before.reserve("x", [replace(REQUEST, amount=3)])
    before.close()
    rebooted = ManualClock(seconds=5.0, started_wall=clock.wall() + 35)
    after = opened(path, rebooted, boot="second boot")
    assert one(after.reserve("y", [REQUEST])).wait_s == pytest.approx(20.0)
    after.close()


def test_a_reboot_with_a_clock_that_is_behind_does_not_go_back(path: Path, clock: ManualClock) -> None:
    before = opened(path, clock)
    before.reserve("x", [replace(REQUEST, amount=3)])
    clock.advance(50)
    before.sweep()
    before.close()
    rebooted = ManualClock(seconds=0.0, started_wall=clock.wall() - DAY)
    after = opened(path, rebooted, boot="second boot")
    assert one(after.reserve("y", [REQUEST])).wait_s == pytest.approx(10.0)
    after.close()


@pytest.mark.parametrize("boot", ["", "an id that did not change"])
def test_a_reboot_that_cannot_be_told_is_seen_by_the_clock(path: Path, clock: ManualClock, boot: str) -> None:
    clock.advance(1000)
    before = opened(path, clock, boot=boot)
    before.reserve("x", [replace(REQUEST, amount=3)])
    before.sweep()
    before.close()
    rebooted = ManualClock(seconds=0.0, started_wall=clock.wall() + 100)
    after = opened(path, rebooted, boot=boot)
    assert fits(after.reserve("y", [REQUEST]))
    after.close()


# -- settled in memory, and written a little later --------------------------------------------------------------------

USED: dict[Unit, int] = {"requests": 1, "tokens": 25, "cost": 210}
SETTLED = [(1, 0), (0, 0), (25, 0), (210, 0)]


@pytest.fixture
def moments() -> Moments:
    return Moments()


def test_a_settlement_is_known_here_at_once_and_to_others_in_a_moment(start: Open, moments: Moments) -> None:
    ledger, other = start(later=moments.later), start()
    ledger.reserve("x", ALL)
    before = ledger._file.transactions
    assert ledger.settle("x", USED, hears=nothing) == []
    assert counts(ledger.standing(ALL)) == SETTLED
    assert (ledger._file.transactions, ledger.waiting) == (before, 1)
    assert counts(other.standing(ALL)) == [(1, 0), (0, 1), (0, 40), (0, 300)]
    moments.pass_()
    assert (ledger._file.transactions, ledger.waiting) == (before + 1, 0)
    assert counts(other.standing(ALL)) == SETTLED


def test_the_next_reservation_takes_it_along(start: Open, moments: Moments) -> None:
    ledger = start(later=moments.later)
    ledger.reserve("x", ALL)
    ledger.settle("x", USED)
    before = ledger._file.transactions
    assert counts(ledger.reserve("y", ALL)) == [(2, 0), (0, 1), (25, 40), (210, 300)]
    assert (ledger._file.transactions, ledger.waiting) == (before + 1, 0)
    assert counts(start().standing(ALL)) == [(2, 0), (0, 1), (25, 40), (210, 300)]


def test_many_that_end_at_once_are_one_transaction(start: Open, moments: Moments) -> None:
    ledger = start(later=moments.later)
    for n in range(20):
        ledger.reserve(str(n), [replace(TOKENS, most=10**6), COUNTED])
    before = ledger._file.transactions
    for n in range(20):
        ledger.settle(str(n), {"requests": 1, "tokens": n})
    assert len(moments.due) == 1
    moments.pass_()
    assert ledger._file.transactions == before + 1
    assert counts(start().standing([TOKENS, COUNTED])) == [(190, 0), (20, 0)]


COUNTED = charge("counted", most=10**6)


def test_one_that_somebody_hears_of_waits_only_where_nobody_else_counts(start: Open, moments: Moments) -> None:
    ledger = start(later=moments.later)
    ledger.reserve("x", [TOKENS])
    (alone,) = ledger.settle("x", {"tokens": 25})
    assert (alone.before, alone.standing.used, ledger.waiting) == (0, 25, 1)
    other = start()
    other.reserve("y", [TOKENS])
    other.settle("y", {"tokens": 10})
    ledger.reserve("z", [TOKENS])
    (shared,) = ledger.settle("z", {"tokens": 25})
    assert (shared.before, shared.standing.used, ledger.waiting) == (35, 60, 0)
    other.close()
    ledger.sweep()
    ledger.reserve("last", [TOKENS])
    ledger.settle("last", {"tokens": 1})
    assert ledger.waiting == 1, "it is alone again"


def test_what_somebody_else_writes_in_between_is_added(start: Open, moments: Moments) -> None:
    ledger, other = start(later=moments.later), start()
    ledger.reserve("x", ALL)
    ledger.settle("x", USED, hears=nothing)
    other.reserve("y", [TOKENS])
    other.settle("y", {"tokens": 7})
    other.grant(TOKENS.counter, "day", 50)
    moments.pass_()
    assert counts(other.standing(ALL)) == [(1, 0), (0, 0), (32, 0), (210, 0)]
    assert one(ledger.standing([TOKENS])).granted == 50


def test_a_process_that_is_killed_in_these_moments_has_not_settled(start: Open, moments: Moments) -> None:
    killed = start(later=moments.later)
    killed.reserve("x", ALL)
    killed.settle("x", USED)
    kill(killed)
    again = start()
    assert counts(again.standing(ALL)) == [(1, 0), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize("writes", [Ledger.sweep, Ledger.close], ids=["sweep", "close"])
def test_what_waits_is_written_before(start: Open, moments: Moments, writes: Callable[[Ledger], None]) -> None:
    ledger = start(later=moments.later)
    ledger.reserve("x", ALL)
    ledger.settle("x", USED)
    writes(ledger)
    assert ledger.waiting == 0
    assert counts(start().standing(ALL)) == SETTLED


def test_a_bug_in_another_call_takes_nothing_from_what_waits(start: Open, moments: Moments) -> None:
    ledger = start(later=moments.later)
    ledger.reserve("x", ALL)
    ledger.settle("x", USED)
    with pytest.raises(TypeError):
        ledger.reserve("y", [replace(TOKENS, amount=1.5)])  # type: ignore[arg-type]
    moments.pass_()
    assert counts(ledger.standing(ALL)) == SETTLED
    assert counts(start().standing(ALL)) == SETTLED


def test_a_window_that_is_edited_meanwhile_keeps_what_waits(start: Open, clock: ManualClock, moments: Moments) -> None:
    ledger = start(later=moments.later)
    tokens = replace(charge("tokens", "tokens", most=100), amount=40)
    ledger.reserve("x", [tokens])
    ledger.settle("x", {"tokens": 25})
    longer = replace(tokens, every=300.0)
    assert counts(ledger.reserve("y", [longer])) == [(25, 40)]
    clock.advance(299)
    assert counts(ledger.standing([longer])) == counts(start().standing([longer])) == [(25, 40)]


async def test_the_running_loop_does_it_in_a_moment() -> None:
    done = asyncio.Event()
    assert soon(done.set)
    async with asyncio.timeout(10):
        await done.wait()


def test_without_a_loop_nothing_waits(ledger: Ledger) -> None:
    ledger.reserve("x", ALL)
    ledger.settle("x", USED)
    assert ledger.waiting == 0


# -- workers ----------------------------------------------------------------------------------------------------------


def test_workers_share_every_count(start: Open) -> None:
    workers = [start() for _ in range(3)]
    let_in = [n for n in range(9) if fits(workers[n % 3].reserve(str(n), [REQUEST, SLOT]))]
    assert let_in == [0, 1]
    workers[0].release("0")
    assert fits(workers[2].reserve("later", [REQUEST, SLOT]))
    assert {tuple(counts(worker.standing([REQUEST, SLOT]))) for worker in workers} == {((2, 0), (0, 2))}


PROGRAM = """
import sys
from pathlib import Path
from mitmgate.clock import SystemClock
from support.ledgers import charge, fits, opened

ledger = opened(Path(sys.argv[1]), SystemClock())
charges = [charge("burst", most=400, every=3600.0), charge("parallel", "concurrent", most=2),
           charge("spend", "cost", most=10**9, every="month", amount=300)]
print("ready", flush=True)
sys.stdin.readline()
let_in = highest = 0
for n in range(250):
    standings = ledger.reserve(str(n), charges)
    if fits(standings):
        let_in += 1
        highest = max(highest, standings[1].reserved)
        ledger.settle(str(n), {"requests": 1, "cost": 210})
if sys.argv[2] == "hold":
    ledger.reserve("held", charges[1:])
print(let_in, highest, ledger.stats.outages, flush=True)
sys.stdin.readline()
ledger.close()
"""


def process(path: Path, then: str = "end") -> subprocess.Popen[str]:
    """Return a process that waits for a line, then makes calls as fast as it can."""
    folders = [str(Path(mitmgate.__file__).parents[1]), str(Path(__file__).parents[1])]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )


def tell(one: subprocess.Popen[str]) -> None:
    """Let it go on."""
    if one.stdin is None:
        raise RuntimeError("the process takes no line")
    one.stdin.write("\n")
    one.stdin.flush()


def heard(one: subprocess.Popen[str]) -> str:
    """Return what it says next."""
    if one.stdout is None:
        raise RuntimeError("the process says nothing")
    return one.stdout.readline().strip()


def test_processes_that_hammer_one_counter_let_in_exactly_what_it_allows(path: Path) -> None:
    with process(path) as first, process(path) as second, process(path) as third:
        processes = [first, second, third]
        assert [heard(one) for one in processes] == ["ready"] * 3
        for one in processes:
            tell(one)
        said = [tuple(map(int, heard(one).split())) for one in processes]
        for one in processes:
            tell(one)
    assert sum(let_in for let_in, _, _ in said) == 400
    assert max(highest for _, highest, _ in said) <= 2
    assert [outages for _, _, outages in said] == [0, 0, 0]
    after = opened(path, SystemClock())
    charges = [
        charge("burst", most=400, every=3600.0),
        charge("parallel", "concurrent"),
        charge("spend", "cost", most=10**9, every="month"),
    ]
    assert counts(after.standing(charges)) == [(400, 0), (0, 0), (400 * 210, 0)]
    after.close()


def test_a_process_that_is_killed_gives_its_slots_back_and_keeps_its_spending(path: Path) -> None:
    charges = [charge("parallel", "concurrent", most=2), charge("spend", "cost", most=10**9, every="month")]
    with process(path, "hold") as doomed:
        heard(doomed)
        tell(doomed)
        let_in = int(heard(doomed).split()[0])
        living = opened(path, SystemClock())
        assert counts(living.standing(charges)) == [(0, 1), (let_in * 210, 300)]
        doomed.send_signal(signal.SIGKILL)
    living.sweep()
    assert counts(living.standing(charges)) == [(0, 0), (let_in * 210, 0)]
    living.close()


# -- trouble with the file --------------------------------------------------------------------------------------------


def words(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mitmgate.ledger"]


class Locked:
    """Somebody else writes and does not come to an end."""

    def __init__(self, ledger: Ledger) -> None:
        self.conn = sqlite3.connect(ledger.path, isolation_level=None)
        self.conn.execute("BEGIN IMMEDIATE")

    def mend(self) -> None:
        self.conn.close()


class Full:
    """No page more."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        conn = ledger._file.reading()
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages}")
        long = [charge(f"rule {n}", most=10**9, every=3600.0, tenant="x" * 80) for n in range(100)]
        ledger.reserve("fills the last page", [replace(one, refuses=False) for one in long])

    def mend(self) -> None:
        self.ledger._file.reading().execute("PRAGMA max_page_count = 1000000")


class ReadOnly:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        ledger._file.reading().execute("PRAGMA query_only = ON")

    def mend(self) -> None:
        self.ledger._file.reading().execute("PRAGMA query_only = OFF")


class Deleted:
    def __init__(self, ledger: Ledger) -> None:
        for name in ("spend.db", "spend.db-wal", "spend.db-shm"):
            ledger.path.with_name(name).unlink(missing_ok=True)

    def mend(self) -> None:
        pass


class Damaged:
    """Another file stands in its place, and it is no database."""

    def __init__(self, ledger: Ledger) -> None:
        Deleted(ledger)
        ledger.path.write_bytes(b"no database " * 1000)

    def mend(self) -> None:
        pass


TROUBLES = [Locked, Full, ReadOnly, Deleted, Damaged]
type Trouble = type[Locked | Full | ReadOnly | Deleted | Damaged]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_counting_goes_on_while_the_file_cannot_be_used_and_is_carried_over(
    start: Open, clock: ManualClock, caplog: pytest.LogCaptureFixture, trouble: Trouble
) -> None:
    ledger = start()
    ledger.reserve("before", ALL)
    ledger.reserve("over it", [SLOT, TOKENS])
    ledger.settle("before", {"requests": 1, "tokens": 25, "cost": 210})
    broken = trouble(ledger)

    assert counts(ledger.reserve("x", [REQUEST, SLOT, COST])) == [(2, 0), (0, 2), (210, 300)]
    assert not fits(ledger.reserve("y", [SLOT])), "what is known is heeded"
    ledger.settle("over it", {"tokens": 30})
    assert ledger.stats.outage == 1
    ledger.grant(TOKENS.counter, "day", 7)
    assert counts(ledger.standing(ALL)) == [(2, 0), (0, 1), (55, 0), (210, 300)]

    broken.mend()
    clock.advance(1)
    assert counts(ledger.reserve("y", [SLOT])) == [(0, 2)]
    assert (ledger.stats.outage, ledger.stats.outages) == (0, 1)
    other = start()
    assert counts(other.standing(ALL)) == [(2, 0), (0, 2), (55, 0), (210, 300)]
    assert one(other.standing([TOKENS])).granted == 7
    ledger.settle("x", {"requests": 1, "cost": 100})
    ledger.settle("y", {})
    ledger.sweep()
    other.sweep()
    assert counts(other.standing(ALL)) == [(2, 0), (0, 0), (55, 0), (310, 0)]
    assert counts(other.reserve("last", [SLOT, TOKENS])) == [(0, 1), (55, 40)], "nothing was given back twice"
    said = [line for line in words(caplog) if "set aside" not in line]
    assert len(said) == 2
    assert "cannot be used" in said[0]
    assert "is used again, after 1 s" in said[1]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_waits_when_the_file_is_lost_is_carried_over(
    start: Open, clock: ManualClock, moments: Moments, trouble: Trouble
) -> None:
    ledger = start(later=moments.later)
    ledger.reserve("x", ALL)
    ledger.reserve("over it", [SLOT, TOKENS])
    ledger.settle("x", USED)
    broken = trouble(ledger)
    moments.pass_()
    assert (ledger.waiting, ledger.stats.outage) == (0, 1)
    assert counts(ledger.standing(ALL)) == [(1, 0), (0, 1), (25, 40), (210, 0)]

    broken.mend()
    clock.advance(1)
    ledger.settle("over it", {"tokens": 30})
    assert ledger.stats.outage == 0
    assert counts(start().standing(ALL)) == [(1, 0), (0, 0), (55, 0), (210, 0)]
    with closing(sqlite3.connect(ledger.path)) as conn:
        assert conn.execute("SELECT * FROM reservations").fetchall() == []


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_process_that_is_killed_after_an_outage_gives_back_what_it_held(
    start: Open, clock: ManualClock, trouble: Trouble
) -> None:
    doomed = start()
    doomed.reserve("before", [SLOT])
    broken = trouble(doomed)
    doomed.reserve("within", [SLOT, TOKENS])
    broken.mend()
    clock.advance(1)
    doomed.sweep()
    assert doomed.stats.outage == 0
    other = start()
    assert counts(other.standing([SLOT, TOKENS])) == [(0, 2), (0, 40)]
    kill(doomed)
    other.sweep()
    assert counts(other.standing([SLOT, TOKENS])) == [(0, 0), (0, 0)]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_call_whose_end_is_the_first_that_the_file_hears_again_gives_back_all_it_held(
    start: Open, clock: ManualClock, trouble: Trouble
) -> None:
    ledger, other = start(), start()
    ledger.reserve("over it", [SLOT])
    broken = trouble(ledger)
    ledger.reserve("over it", [TOKENS])
    broken.mend()
    clock.advance(1)
    ledger.settle("over it", {"tokens": 30})
    other.sweep()
    clock.advance(1)
    for worker in (ledger, other):
        worker.reserve("y", [SLOT])
        worker.sweep()
    assert counts(other.standing([SLOT, TOKENS])) == [(0, 2), (30, 0)]
    assert counts(other.reserve("z", [TOKENS])) == [(30, 40)]


@pytest.mark.parametrize("trouble", [Deleted, Damaged])
def test_workers_that_lose_their_file_begin_one_new_one_together(
    start: Open, clock: ManualClock, trouble: Trouble
) -> None:
    workers = [start(), start()]
    for n, worker in enumerate(workers):
        worker.reserve(f"held {n}", [SLOT])
        worker.reserve("done", [TOKENS])
        worker.settle("done", {"tokens": 20})
    for worker in workers:
        worker.standing([TOKENS, SLOT])
        worker.reserve("learns", [TOKENS])
        worker.release("learns")
    trouble(workers[0])
    for worker in workers:
        worker.reserve("meanwhile", [TOKENS])
        worker.settle("meanwhile", {"tokens": 1})
    clock.advance(1)
    for worker in workers:
        worker.sweep()
    assert [counts(worker.standing([TOKENS, SLOT])) for worker in workers] == [[(42, 0), (0, 2)]] * 2


def test_a_lock_that_outlives_the_ledger_loses_nothing_once_it_is_gone(start: Open, clock: ManualClock) -> None:
    ledger, other = start(), start()
    ledger.reserve("x", [TOKENS])
    lock = Locked(ledger)
    ledger.settle("x", {"tokens": 33})
    lock.mend()
    other.reserve("y", [TOKENS])
    other.settle("y", {"tokens": 5})
    ledger.close()
    assert counts(other.standing([TOKENS])) == [(38, 0)]


def test_an_outage_is_tried_again_once_a_second_and_said_once(
    ledger: Ledger, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    ReadOnly(ledger)
    for n in range(40):
        clock.advance(0.1)
        ledger.reserve(str(n), [TOKENS])
        ledger.release(str(n))
    assert len(words(caplog)) == 1
    assert "mitmgate.ledger" in {record.name for record in caplog.records if record.levelno == logging.ERROR}
    assert ledger.stats.outages == 1


def test_one_outage_after_the_other_counts_each_call_once(ledger: Ledger, clock: ManualClock) -> None:
    for n in range(3):
        trouble = ReadOnly(ledger)
        ledger.reserve(str(n), [TOKENS, SLOT])
        ledger.settle(str(n), {"tokens": 10})
        trouble.mend()
        clock.advance(1)
        ledger.sweep()
    assert counts(ledger.standing([TOKENS, SLOT])) == [(30, 0), (0, 0)]
    assert (ledger.stats.outage, ledger.stats.outages) == (0, 3)


def test_a_counter_that_first_comes_in_an_outage_is_what_the_file_says(start: Open, clock: ManualClock) -> None:
    ledger, other = start(), start()
    other.reserve("x", [TOKENS])
    ReadOnly(ledger)
    assert counts(ledger.reserve("y", [TOKENS])) == [(0, 80)]


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"no database " * 1000, "set aside"), (b"", ""), (None, "")],
    ids=["no database", "empty", "missing"],
)
def test_whatever_stands_there_at_the_start_counting_begins(
    path: Path, start: Open, caplog: pytest.LogCaptureFixture, content: bytes | None, word: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    ledger = start()
    ledger.reserve("x", ALL)
    assert ledger.stats.outage == 0
    assert word in "".join(words(caplog))
    asides = [file.read_bytes() for file in path.parent.glob("spend.db.broken-*")]
    assert asides == ([content] if word else [])


@pytest.mark.parametrize(
    ("pragmas", "word"),
    [
        (["application_id = 7"], "database of another program"),
        ([f"application_id = {ledger_file.APPLICATION}", "user_version = 99"], "upgrade mitmgate"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone_and_said(
    path: Path, start: Open, caplog: pytest.LogCaptureFixture, pragmas: list[str], word: str
) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE theirs (a)")
        for pragma in pragmas:
            conn.execute(f"PRAGMA {pragma}")
    ledger = start()
    assert counts(ledger.reserve("x", ALL)) == [(1, 0), (0, 1), (0, 40), (0, 300)]
    assert word in "".join(words(caplog))
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_file_that_another_worker_is_just_making_is_no_other_programs(path: Path, clock: ManualClock) -> None:
    asked = []

    def make_it(statement: str) -> None:
        asked.append(statement)
        if len(asked) == 2:
            opened(path, clock).close()

    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.set_trace_callback(make_it)
        assert not ledger_file.is_current(conn, path), "it was empty when it was asked"
        assert ledger_file.is_current(conn, path)


def test_one_counter_that_cannot_be_read_begins_anew_and_is_said(
    path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.reserve("x", ALL)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE counters SET window = x'00' WHERE name = ?", (REQUEST.counter,))
    assert counts(ledger.reserve("y", [REQUEST, SLOT])) == [(1, 0), (0, 2)]
    assert REQUEST.counter in words(caplog)[0]


def test_a_bug_is_told_and_nothing_of_its_call_is_counted(ledger: Ledger, clock: ManualClock) -> None:
    ledger.reserve("before", [REQUEST, TOKENS])
    broken = replace(TOKENS, amount=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ledger.reserve("x", [REQUEST, broken])
    assert counts(ledger.standing([REQUEST, TOKENS])) == [(1, 0), (0, 40)]
    Deleted(ledger)
    assert counts(ledger.standing([REQUEST, TOKENS])) == [(1, 0), (0, 40)], "what is remembered is right, too"
    assert counts(ledger.reserve("y", [REQUEST])) == [(2, 0)]


def test_a_ledger_that_was_never_opened_counts_in_memory_and_makes_no_file(path: Path, clock: ManualClock) -> None:
    ledger = Ledger(path, clock)
    ledger.reserve("x", ALL)
    ledger.settle("x", {"requests": 1, "tokens": 25, "cost": 210})
    ledger.sweep()
    assert counts(ledger.standing(ALL)) == [(1, 0), (0, 0), (25, 0), (210, 0)]
    ledger.close()
    assert list(path.parent.iterdir()) == []


def test_a_ledger_that_starts_without_its_file_takes_over_the_others_time(path: Path, clock: ManualClock) -> None:
    first = opened(path, clock)
    first.reserve("x", [REQUEST])
    lock = sqlite3.connect(path, isolation_level=None)
    first.close()
    lock.execute("PRAGMA journal_mode = DELETE")
    lock.execute("BEGIN EXCLUSIVE")
    clock.started_wall -= 1000
    late = Ledger(path, clock, boot=BOOT)
    late._is_open = True
    late._failed(sqlite3.OperationalError("database is locked"))
    assert counts(late.reserve("y", [REQUEST, TOKENS])) == [(1, 0), (0, 40)]
    lock.close()
    clock.advance(1)
    assert counts(late.reserve("z", [REQUEST])) == [(3, 0)]
    assert one(late.reserve("w", [REQUEST])).wait_s == 59.0
    clock.advance(58.9)
    assert counts(late.standing([REQUEST])) == [(3, 0)]
    clock.advance(0.1)
    assert counts(late.standing([REQUEST])) == [(1, 0)], "both of a minute ago have left, by one clock"
    late.close()


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_and_its_owners_are_readable_by_their_owner_only(path: Path, ledger: Ledger) -> None:
    ledger.reserve("x", ALL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_suffix(".owners").stat().st_mode) == 0o700


def test_nothing_is_left_of_a_ledger_that_was_closed(path: Path, start: Open) -> None:
    ledger = start()
    ledger.reserve("x", ALL)
    ledger.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["spend.db", "spend.owners"]
    assert list(path.with_suffix(".owners").iterdir()) == []


def test_people_can_read_what_is_counted(path: Path, ledger: Ledger) -> None:
    ledger.reserve("x", [REQUEST, SLOT])
    with closing(sqlite3.connect(path)) as conn:
        names = [name for (name,) in conn.execute("SELECT name FROM counters ORDER BY name")]
        held = conn.execute("SELECT holder, counter, amount FROM reservations").fetchall()
    assert names == [
        '["limit", "burst", "requests", "sliding", {"tenant": "acme"}]',
        '["limit", "parallel", "concurrent", "at once", {"tenant": "acme"}]',
    ]
    assert held == [("x", SLOT.counter, 1)]


def test_counters_that_say_nothing_any_more_are_forgotten(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "LOOKED_AT", 50)
    for n in range(300):
        ledger.reserve(str(n), [replace(charge("burst", tenant=f"tenant {n}"), refuses=False)])
    ledger.reserve("day", [TOKENS])
    ledger.settle("day", {"tokens": 1})
    ledger.reserve("slot", [SLOT])
    ledger.sweep()
    assert ledger.stats.counters == 302
    clock.advance(61)
    for n in range(10):
        ledger.reserve(f"more {n}", [REQUEST])
        ledger.sweep()
    assert ledger.stats.counters == 3
    assert counts(ledger.standing([TOKENS, SLOT])) == [(1, 0), (0, 1)]
    clock.advance(3 * DAY)
    ledger.release("slot")
    ledger.sweep()
    ledger.release("more 0")
    ledger.sweep()
    assert ledger.stats.counters == 0


def test_forgetting_keeps_up_with_names_that_clients_make_up(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "LOOKED_AT", 10)
    for second in range(20):
        for n in range(40):
            ledger.reserve(f"{second}.{n}", [charge("burst", every=2.0, tenant=f"made up {second * 40 + n}")])
        clock.advance(1)
        ledger.sweep()
    assert ledger.stats.counters <= 40 * 6


def test_memory_remembers_so_many_counters_and_no_more(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_books, "MOST_KNOWN", 50)
    for n in range(200):
        ledger.reserve(f"known {n}", [charge("burst", tenant=f"tenant {n}")])
    assert len(ledger._memory.known) == 50
    ReadOnly(ledger)
    ledger.reserve("slot", [SLOT])
    for n in range(200):
        ledger.reserve(f"here {n}", [charge("burst", tenant=f"tenant {n}")])
    assert len(ledger._memory.here) <= 51
    assert counts(ledger.standing([SLOT])) == [(0, 1)], "what is held is not forgotten"


def test_the_log_is_folded_into_the_file_by_a_thread(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "FOLD_AFTER", 50)
    folded = threading.Event()
    fold = ledger._file._folding._fold

    def fold_and_tell() -> None:
        fold()
        folded.set()

    monkeypatch.setattr(ledger._file._folding, "_fold", fold_and_tell)
    for n in range(60):
        ledger.reserve(str(n), [COST])
        ledger.release(str(n))
    assert folded.wait(10)
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as conn:
        (name,) = conn.execute("SELECT name FROM counters").fetchone()
    assert name == COST.counter, "the file itself has it, without its log"
