"""Whatever order calls, edits, restarts and kills come in, the ledger counts what a list of every single count says.

Ten thousand seeded stories. In each, workers over one file serve a tenant of its own: calls reserve and settle, the
policy is edited, somebody is granted more, workers restart or are killed, time goes on, by seconds and over midnight.
After every step the ledger's standings are those of the ``Model``, which keeps each count in a list and adds up. What a
worker has settled and not yet written is known to that worker alone, and lost when it is killed.

Times lie on a grid of ``every / 32``: there a sliding window never has more counts than it keeps apart, and is exact.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest

from mitmgate.charges import Charge, Standing, Unit
from mitmgate.clock import ManualClock
from mitmgate.store.ledger import Hears, Ledger, all_of_it, nothing
from support.ledgers import Moments, charge, kill, opened

STORIES = 10_000
PARTS = 10
"""So many tests share the stories, each on one file."""

ALONE = (3, 7)
"""Parts with one worker, the others have two."""

STEPS = 7
GRID_S = 60.0 / 32
DAY_S = 86_400.0

ACTS = {"reserve": 10, "settle": 7, "release": 2, "advance": 6, "tomorrow": 0.3, "edit": 1, "grant": 1, "look": 1,
        "moment": 3, "sweep": 0.5, "restart": 0.1, "kill": 0.2}  # fmt: skip
"""What may come next -> how often."""

NAMES, OFTEN = list(ACTS), list(accumulate(ACTS.values()))


# -- the model --------------------------------------------------------------------------------------------------------


@dataclass
class Count:
    """One count, as a call came."""

    counter: str
    holder: str
    worker: int
    unit: Unit
    at: float
    reserved: int
    used: int = 0
    settled: int | None = None
    """What was used, as its worker knows already and has not written yet."""

    def seen_by(self, worker: int) -> tuple[int, int]:
        """Return (used, reserved), as *worker* knows it."""
        if self.settled is not None and worker == self.worker:
            return self.settled, 0
        return self.used, self.reserved


@dataclass
class Model:
    """Every count that there ever was, in a list. Times are wall seconds; the clocks run together."""

    counts: list[Count]
    grants: list[tuple[str, float, int]]
    """(counter, at, amount)."""

    def holds(self, one: Charge, at: float, now: float) -> bool:
        """Return whether what came *at* is in the window of *one*, as it is *now*."""
        if one.every is None:
            return True
        if one.every == "day":
            return at // DAY_S == now // DAY_S
        return at > now - float(one.every)

    def seen(self, worker: int, one: Charge, now: float) -> list[tuple[float, int, int]]:
        """Return (at, used, reserved) of what is in the window of *one*."""
        return [
            (count.at, *count.seen_by(worker))
            for count in self.counts
            if count.counter == one.counter and self.holds(one, count.at, now)
        ]

    def standing(self, worker: int, one: Charge, now: float) -> Standing:
        inside = self.seen(worker, one, now)
        used, reserved = sum(used for _, used, _ in inside), sum(reserved for _, _, reserved in inside)
        granted = self.granted(one, now)
        full = used + reserved + one.amount > one.most + granted
        wait_s = self.wait_s(worker, one, now) if full else None
        return Standing(one, used, reserved, granted, self.reset_s(worker, one, now), wait_s, full)

    def granted(self, one: Charge, now: float) -> int:
        return sum(amount for name, at, amount in self.grants if name == one.counter and self.holds(one, at, now))

    def leaves(self, one: Charge, at: float) -> float:
        return (at // DAY_S + 1) * DAY_S if one.every == "day" else at + float(one.every or 0)

    def reset_s(self, worker: int, one: Charge, now: float) -> float:
        if one.every == "day":
            return (now // DAY_S + 1) * DAY_S - now
        inside = [at for at, used, reserved in self.seen(worker, one, now) if used or reserved]
        return min(inside) + float(one.every) - now if one.every and inside else 0.0

    def wait_s(self, worker: int, one: Charge, now: float) -> float | None:
        """Look at every moment at which something leaves."""
        if one.every is None:
            return 1.0 if one.amount <= one.most else None
        times = {count.at for count in self.counts if count.counter == one.counter}
        times |= {at for name, at, _ in self.grants if name == one.counter}
        for then in sorted({self.leaves(one, at) for at in times if self.holds(one, at, now)}):
            taken = sum(used + reserved for _, used, reserved in self.seen(worker, one, then))
            if taken + one.amount <= one.most + self.granted(one, then):
                return then - now
        return None

    # -- what happens

    def reserve(self, worker: int, holder: str, charges: list[Charge], now: float) -> list[Standing]:
        before = [self.standing(worker, one, now) for one in charges]
        if any(standing.full and standing.charge.refuses for standing in before):
            return before
        waits = []
        for one, standing in zip(charges, before, strict=True):
            count = Count(one.counter, holder, worker, one.unit, now, one.amount)
            if one.unit == "requests":
                count.reserved, count.used = 0, one.amount
            self.counts.append(count)
            waits.append(self.wait_s(worker, one, now) if standing.full else None)
        after = [self.standing(worker, one, now) for one in charges]
        return [
            replace(standing, full=was.full, wait_s=wait_s)
            for standing, was, wait_s in zip(after, before, waits, strict=True)
        ]

    def settle(self, holder: str, used: dict[Unit, int]) -> None:
        for count in self.counts:
            if count.holder == holder:
                count.settled = 0 if count.unit == "concurrent" else used.get(count.unit, 0)

    def write(self, worker: int) -> None:
        """What the worker has settled is known to all."""
        for count in self.counts:
            if count.worker == worker and count.settled is not None:
                count.used, count.reserved, count.settled, count.holder = count.settled, 0, None, ""

    def die(self, worker: int) -> None:
        """What the worker held is given back; what it spent is spent."""
        for count in self.counts:
            if count.worker == worker and count.holder:
                count.reserved, count.settled, count.holder = 0, None, ""


# -- the stories ------------------------------------------------------------------------------------------------------


class Story:
    """One tenant, and workers whose file was there before and will be after."""

    def __init__(self, number: int, workers: list[Ledger], clock: ManualClock, moments: Moments) -> None:
        self.rng = Random(number)
        self.workers, self.clock, self.moments = workers, clock, moments
        self.model = Model([], [])
        self.calls: list[tuple[int, str]] = []
        """(worker, holder) of those under way."""
        tenant = f"tenant {number}"
        self.rules = [
            charge("burst", most=self.rng.randint(1, 4), tenant=tenant),
            charge("parallel", "concurrent", most=self.rng.randint(1, 3), tenant=tenant),
            charge("tokens", "tokens", most=self.rng.randint(50, 200), tenant=tenant),
            charge("spend", "cost", most=self.rng.randint(100, 400), every="day", tenant=tenant),
        ]

    def play(self) -> None:
        for act in self.rng.choices(NAMES, cum_weights=OFTEN, k=STEPS):
            getattr(self, act)()
            self.hear()
        self.look()
        self.moment()

    def hear(self) -> None:
        """Hear from the workers what they have written."""
        for worker, ledger in enumerate(self.workers):
            if not ledger.waiting:
                self.model.write(worker)

    def any_worker(self) -> int:
        return self.rng.randrange(len(self.workers))

    @property
    def now(self) -> float:
        return self.clock.wall()

    def charges(self) -> list[Charge]:
        """Return what one call might take: of some rules, some of which only watch."""
        return [
            replace(rule, amount=self.amount(rule), refuses=self.rng.random() < 0.8)
            for rule in self.rng.sample(self.rules, self.rng.randint(1, len(self.rules)))
        ]

    def amount(self, rule: Charge) -> int:
        return 1 if rule.unit in ("requests", "concurrent") else self.rng.choice((0, 1, 30, 70, 150))

    # -- what may come next

    def reserve(self) -> None:
        if self.calls and self.rng.random() < 0.3:
            worker, holder = self.rng.choice(self.calls)
        else:
            worker, holder = self.any_worker(), f"{self.rules[0].counter} {self.rng.random()}"
        charges = self.charges()
        self.model.write(worker)
        found = self.workers[worker].reserve(holder, charges)
        assert found == self.model.reserve(worker, holder, charges, self.now)
        if (worker, holder) not in self.calls:
            self.calls.append((worker, holder))

    def settle(self) -> None:
        used: dict[Unit, int] = {
            "requests": 1,
            "tokens": self.rng.choice((0, 5, 40, 160)),
            "cost": self.rng.randrange(200),
        }
        self.end(used)

    def release(self) -> None:
        self.end({})

    def end(self, used: dict[Unit, int]) -> None:
        if not self.calls:
            return
        worker, holder = self.calls.pop(self.rng.randrange(len(self.calls)))
        held = {count.counter for count in self.model.counts if count.holder == holder}
        rules = [rule for rule in self.rules if rule.counter in held]
        before = {rule.counter: self.model.standing(worker, rule, self.now).used for rule in rules}
        hears: Hears = self.rng.choice((all_of_it, nothing))
        settled = self.workers[worker].settle(holder, used, hears=hears)
        self.model.settle(holder, used)
        if hears is nothing:
            assert settled == []
            return
        first = {one.charge.counter: one.before for one in reversed(settled)}
        last = {one.charge.counter: one.standing for one in settled}
        assert first == before
        for rule in rules:
            expected, found = self.model.standing(worker, rule, self.now), last[rule.counter]
            assert (found.used, found.reserved, found.granted) == (expected.used, expected.reserved, expected.granted)

    def advance(self) -> None:
        self.clock.advance(self.rng.choice((1, 2, 5, 15, 31, 32, 33)) * GRID_S)

    def tomorrow(self) -> None:
        self.clock.advance(DAY_S)

    def edit(self) -> None:
        """The policy is edited: other amounts."""
        self.rules = [replace(rule, most=max(0, rule.most + self.rng.choice((-50, -1, 1, 50)))) for rule in self.rules]

    def grant(self) -> None:
        rule = self.rng.choice([rule for rule in self.rules if rule.every is not None])
        amount = self.rng.choice((1, 60))
        self.rng.choice(self.workers).grant(rule.counter, rule.every, amount)
        self.model.grants.append((rule.counter, self.now, amount))

    def look(self) -> None:
        charges, worker = [replace(rule, amount=self.amount(rule)) for rule in self.rules], self.any_worker()
        expected = [self.model.standing(worker, one, self.now) for one in charges]
        assert self.workers[worker].standing(charges) == expected

    def moment(self) -> None:
        self.moments.pass_()
        self.hear()
        assert not any(ledger.waiting for ledger in self.workers)

    def sweep(self) -> None:
        self.rng.choice(self.workers).sweep()

    def restart(self) -> None:
        worker = self.any_worker()
        self.workers[worker].close()
        self.model.write(worker)
        self.begin_again(worker)

    def kill(self) -> None:
        worker = self.any_worker()
        kill(self.workers[worker])
        self.begin_again(worker)

    def begin_again(self, worker: int) -> None:
        self.workers[worker] = opened(self.workers[worker].path, self.clock, later=self.moments.later)
        self.model.die(worker)
        self.calls = [call for call in self.calls if call[0] != worker]


@pytest.mark.parametrize("part", range(PARTS))
def test_the_ledger_counts_what_a_list_of_every_count_says(tmp_path: Path, part: int) -> None:
    clock, moments = ManualClock(started_wall=1_700_000_000.0 // DAY_S * DAY_S), Moments()
    count = 1 if part in ALONE else 2
    workers = [opened(tmp_path / "spend.db", clock, later=moments.later) for _ in range(count)]
    workers[0].sweep()  # and sees that it is not alone
    for number in range(part * STORIES // PARTS, (part + 1) * STORIES // PARTS):
        try:
            Story(number, workers, clock, moments).play()
        except AssertionError as e:
            e.add_note(f"story {number}")
            raise
    assert not any(worker.stats.outages for worker in workers)
    for worker in workers:
        worker.close()
