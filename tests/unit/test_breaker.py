"""A target that keeps failing rests, and is asked again with one call at a time."""

from dataclasses import replace

import pytest

from mitmgate.breaker import PROBE_S, Breakers, Permit, Resting, State, is_failure, soonest
from mitmgate.clock import ManualClock
from mitmgate.policy.values import Breaker

RULE = Breaker(window_s=30, min_requests=4, failures=0.5, rest_s=15)


class Scene:
    """A breaker of one target, moved by words.

    ``good bad left``: a call that ends so at once. ``ask``: one that is under way, ended by ``ends-good ends-bad
    ends-left``, the eldest first. ``rests``: a call that may not go. A number: so many seconds pass.
    """

    def __init__(self, rule: Breaker = RULE) -> None:
        self.clock = ManualClock()
        self.breakers = Breakers(self.clock)
        self.rule = rule
        self.under_way: list[Permit] = []

    def play(self, words: str) -> State:
        for word in words.split():
            if word.isdigit():
                self.clock.advance(int(word))
            elif word == "rests":
                assert isinstance(self.breakers.ask("sa", self.rule), Resting), f"a call went in {words!r}"
            elif word == "ask":
                self.under_way.append(self.permit())
            elif word.startswith("ends-"):
                self.end(self.under_way.pop(0), word.removeprefix("ends-"))
            else:
                self.end(self.permit(), word)
        return self.breakers.states()["sa"]

    def permit(self) -> Permit:
        permit = self.breakers.ask("sa", self.rule)
        assert isinstance(permit, Permit), "the call should have gone"
        return permit

    def end(self, permit: Permit, how: str) -> None:
        {"good": permit.succeeded, "bad": permit.failed, "left": permit.released}[how]()


OPENED = "bad bad bad bad"
PROBING = f"{OPENED} 15 ask"


@pytest.mark.parametrize(
    ("words", "state"),
    [
        # closed
        ("good", "closed"),
        ("bad bad bad", "closed"),
        (OPENED, "open"),
        ("good good bad bad", "open"),
        ("good good good bad bad", "closed"),
        ("good good good bad bad bad", "open"),
        ("left left bad bad", "closed"),
        ("bad bad bad 30 bad", "closed"),
        ("bad bad 20 bad bad", "open"),
        ("good good good good 30 bad bad bad bad", "open"),
        # open
        (f"{OPENED} rests 14 rests", "open"),
        (f"{OPENED} 15", "half_open"),
        (f"ask {OPENED} ends-good rests", "open"),
        (f"ask {OPENED} 10 ends-bad 5", "half_open"),
        # half open
        (f"{PROBING} rests rests 100 rests", "half_open"),
        (f"{PROBING} ends-good good good", "closed"),
        (f"{PROBING} ends-bad rests 14 rests", "open"),
        (f"{PROBING} ends-bad 15 good", "closed"),
        (f"{PROBING} ends-left ask rests", "half_open"),
        (f"{PROBING} ends-left ask ends-good", "closed"),
        (f"ask {PROBING} ends-good rests", "half_open"),
        # closed again
        (f"{PROBING} ends-good bad bad bad", "closed"),
        (f"{PROBING} ends-good {OPENED}", "open"),
        (f"ask {PROBING} 0 rests ends-good ends-good bad bad bad", "closed"),
    ],
)
def test_the_states_of_a_breaker(words: str, state: State) -> None:
    assert Scene().play(words) == state


def test_the_failure_that_opens_it_says_so() -> None:
    scene = Scene()
    assert [scene.permit().failed() for _ in range(4)] == [False, False, False, True]
    scene.clock.advance(15)
    assert scene.permit().failed() is True


def test_a_failed_probe_lets_it_rest_again_though_the_window_is_empty() -> None:
    scene = Scene(replace(RULE, window_s=5))
    assert scene.play(f"{PROBING} ends-bad rests") == "open"


def test_only_the_first_word_on_an_attempt_counts() -> None:
    scene = Scene()
    for end in (Permit.succeeded, Permit.failed, Permit.released):
        permit = scene.permit()
        end(permit)
        for _ in range(10):
            assert permit.failed() is False
        permit.released()
    assert scene.play("") == "closed"


def test_who_may_not_go_is_told_when_the_next_probe_could() -> None:
    scene = Scene()
    scene.play(f"{OPENED} 5")
    assert scene.breakers.ask("sa", RULE) == Resting("sa", 10.0)
    scene.play("10 ask")
    assert scene.breakers.ask("sa", RULE) == Resting("sa", PROBE_S)


def test_the_soonest_of_several_targets_counts() -> None:
    assert soonest([Resting("sa", 9.5), Resting("eu", 3.0)]) == 3.0
    assert soonest([]) == 0.0


def test_targets_rest_apart() -> None:
    scene = Scene()
    scene.play(OPENED)
    assert isinstance(scene.breakers.ask("eu", RULE), Permit)
    assert scene.breakers.states() == {"sa": "open", "eu": "closed"}


def test_two_rules_on_one_target_judge_apart_and_the_worst_is_shown() -> None:
    scene = Scene()
    scene.play(OPENED)
    patient = replace(RULE, name="patient", min_requests=1000)
    assert isinstance(scene.breakers.ask("sa", patient), Permit)
    assert scene.breakers.states() == {"sa": "open"}


def test_without_a_rule_nothing_ever_rests() -> None:
    breakers = Breakers(ManualClock())
    for _ in range(100):
        permit = breakers.ask("sa", None)
        assert isinstance(permit, Permit)
        assert permit.failed() is False
    assert breakers.states() == {}


def test_a_shadow_permits_and_says_what_it_would_have_done() -> None:
    scene = Scene(replace(RULE, shadow=True))
    opened = [scene.permit().failed() for _ in range(4)]
    assert opened == [False, False, False, True]
    assert scene.permit().would_rest == 15.0
    scene.clock.advance(15)
    assert scene.permit().would_rest is None
    assert scene.permit().would_rest == PROBE_S
    assert scene.breakers.states() == {}


@pytest.mark.parametrize(
    ("cause", "failure"),
    [
        (500, True),
        (503, True),
        (529, True),
        ("connect", True),
        ("timeout", True),
        ("reset", True),
        ("error_event", True),
        (429, False),
        (400, False),
        (401, False),
        ("cancelled", False),
    ],
)
def test_only_what_speaks_against_the_target_is_a_failure(cause: int | str, failure: bool) -> None:
    assert is_failure(cause) is failure
