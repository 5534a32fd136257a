"""Many calls and one target: retries neither come as one wave nor make an outage worse. Time is simulated."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Protocol

import pytest

from mitmgate.clock import ManualClock
from mitmgate.policy.values import CAUSES, Retry
from mitmgate.retry import Failure, Retries, Wait

RULE = Retry(attempts=3)
REFUSAL_S = 0.004
"""How long a 429 takes to arrive."""


class Target(Protocol):
    """Seconds since the first call -> whether a call is taken, and if not, when one would be."""

    def takes(self, now: float) -> bool: ...
    def opens_s(self, now: float) -> float: ...


@dataclass
class FixedWindow:
    """Takes 100 calls in each second of its own clock."""

    phase_s: float = 0.0
    """How far its second is when the first call comes."""
    taken: Counter[int] = field(default_factory=Counter)

    def takes(self, now: float) -> bool:
        second = int(now + self.phase_s)
        self.taken[second] += 1
        return self.taken[second] <= 100

    def opens_s(self, now: float) -> float:
        return 1.0 - (now + self.phase_s) % 1.0


@dataclass
class TokenBucket:
    """Holds 100 calls, and one more every 10 ms."""

    left: float = 100.0
    at: float = 0.0

    def takes(self, now: float) -> bool:
        self.left, self.at = min(100.0, self.left + (now - self.at) * 100), now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def opens_s(self, now: float) -> float:
        return (1 - self.left) / 100


class Dead:
    def takes(self, now: float) -> bool:
        return False

    def opens_s(self, now: float) -> float:
        return 0.0


@dataclass
class Crowd:
    """What becomes of calls that come at the given times. *named_s*: the wait that each refusal names."""

    target: Target
    arrivals: list[float]
    cause: int | str = 429
    named_s: float | None = None
    names_opening: bool = False
    answer_s: float = 0.05
    seed: int = 1
    attempts: list[tuple[float, int]] = field(default_factory=list)
    """(when, which attempt of its call)"""
    answered: list[float] = field(default_factory=list)
    lost: int = 0

    def run(self) -> "Crowd":
        clock, random = ManualClock(), Random(self.seed)
        retries = Retries(clock, random.random)
        turn = count()
        agenda = [(at, next(turn), "ask", 1, at) for at in self.arrivals]
        heapq.heapify(agenda)
        while agenda:
            now, _, what, n, came = heapq.heappop(agenda)
            clock.seconds = now
            for later, then, n_then in self._happens(retries, random, now, what, n, came):
                heapq.heappush(agenda, (later, next(turn), then, n_then, came))
        return self

    def _happens(
        self, retries: Retries, random: Random, now: float, what: str, n: int, came: float
    ) -> Iterator[tuple[float, str, int]]:
        """Let *what* happen to attempt *n* of a call; yield (when, what, attempt) follows."""
        if what == "ask":
            if n == 1:
                retries.called("target")
            self.attempts.append((now, n))
            taken = self.target.takes(now)
            takes_s = (self.answer_s if taken else REFUSAL_S) * random.uniform(0.5, 1.5)
            yield now + takes_s, "answer" if taken else "refusal", n
        elif what == "answer":
            retries.admitted("target")
            self.answered.append(now)
        else:
            named_s = self.target.opens_s(now) if self.names_opening else self.named_s
            failure = Failure(self.cause, n, now - came, 0, named_s)
            step = retries.decide(RULE, CAUSES, failure, "target")
            if isinstance(step, Wait):
                yield now + step.seconds, "ask", n + 1
            else:
                self.lost += 1

    @property
    def fullest_slot(self) -> int:
        """Most attempts, after the first wave, in any 50 ms."""
        return max(Counter(int(at / 0.05) for at, n in self.attempts if n > 1).values())


NAMED = {"50ms": 0.05, "200ms": 0.2, "1s": 1.0, "as-it-is": None}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("answer_s", [0.001, 0.05, 0.5], ids=lambda answer_s: f"answers-in-{answer_s}")
@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("kind", ["window", "window-half-over", "window-nearly-over", "bucket"])
def test_200_calls_at_once_to_a_target_of_100_a_second(kind: str, named: str, answer_s: float, seed: int) -> None:
    phases = {"window": 0.0, "window-half-over": 0.5, "window-nearly-over": 0.9}
    target: Target = FixedWindow(phases[kind]) if kind in phases else TokenBucket()
    named_s = NAMED[named]
    arrivals = [Random(seed).uniform(0, 0.02) for _ in range(200)]
    crowd = Crowd(target, arrivals, 429, named_s, names_opening=named_s is None, answer_s=answer_s, seed=seed).run()
    assert crowd.lost == 0
    assert len(crowd.answered) == 200
    assert max(crowd.answered) < 6.0
    assert len(crowd.attempts) <= 2 * 200
    assert crowd.fullest_slot <= 200 / 5


@pytest.mark.parametrize("cause", ["connect", 503])
def test_an_outage_of_a_minute_is_not_amplified(cause: int | str) -> None:
    arrivals = [n / 50 for n in range(50 * 60)]
    crowd = Crowd(Dead(), arrivals, cause).run()
    assert crowd.lost == len(arrivals)
    assert 1.15 * len(arrivals) < len(crowd.attempts) <= 1.2 * len(arrivals) + 10


class Recovering:
    """Dead for 20 s, then well."""

    def takes(self, now: float) -> bool:
        return now >= 20

    def opens_s(self, now: float) -> float:
        return 20 - now


def test_a_target_that_is_well_again_is_asked_once_per_call() -> None:
    crowd = Crowd(Recovering(), [n / 50 for n in range(50 * 40)], "connect").run()
    longest_wait_s = 1.0
    later = [n for at, n in crowd.attempts if at > 20 + longest_wait_s + 2 * REFUSAL_S]
    assert set(later) == {1}
    assert len(crowd.answered) >= 50 * 20
