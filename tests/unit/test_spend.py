"""When a call is over its limits are settled by what it used: whatever became of it, once, and exactly."""

import pytest

from mitmgate.dialects.base import Usage
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.limit_lengths import FIRST_TOKENS
from support.spending import Till, attempt, call, events

POLICY = """
limit:
  - {name: burst, requests: 10, every: 1 m}
  - {name: tokens, tokens: 10000, every: 1 m}
  - {name: parallel, concurrent: 4}
budget:
  - {name: day, cost: 1 USD, every: day}
"""


def was_answered(x: Exchange) -> None:
    attempt(x, Usage(100, 50), model="gpt-4o")
    x.status, x.how = 200, "end"


def was_refused_by_a_guard(x: Exchange) -> None:
    x.refuse(Refusal(403, "permission", "no", source="guard", rule="secrets"))
    x.status, x.how = 403, "refused"


def met_a_room_that_broke(x: Exchange) -> None:
    x.refuse(Refusal(500, "internal", "broke"))
    x.status, x.how = 500, "refused"


def found_every_target_resting(x: Exchange) -> None:
    x.refuse(Refusal(503, "overloaded", "all rest"))
    x.status, x.how = 503, "refused"


def got_an_error(x: Exchange) -> None:
    attempt(x, status=429)
    x.status, x.how = 429, "end"


def could_not_be_answered(x: Exchange) -> None:
    attempt(x, status=502)
    x.refuse(Refusal(502, "connection", "reset"))
    x.status, x.how = 502, "failed"


def was_left_before_anything_was_sent(x: Exchange) -> None:
    x.how = "client_left"


def was_left_in_the_middle(x: Exchange) -> None:
    one = attempt(x, Usage(100, None), model="gpt-4o")
    one.reading.text_chars, one.reading.ended, one.reading.usage_final = 160, False, False
    x.status, x.how = 200, "client_left"


def was_stopped_by_a_guard_on_its_answer(x: Exchange) -> None:
    attempt(x, Usage(100, 20), model="gpt-4o")
    x.refuse(Refusal(403, "permission", "no", source="guard", rule="secrets"))
    x.status, x.how = 403, "refused"


def hit_the_cache(x: Exchange) -> None:
    x.replay = object()  # type: ignore[assignment]
    x.answer = attempt(call(), Usage(100, 50), model="gpt-4o").answer
    x.source, x.status, x.how = "cache", 200, "end"


def followed_one_that_failed(x: Exchange) -> None:
    x.replay = object()  # type: ignore[assignment]
    x.refuse(Refusal(502, "connection", "reset"))
    x.status, x.how = 502, "failed"


@pytest.mark.parametrize(
    ("becomes", "requests", "tokens", "nanousd"),
    [
        (was_answered, 1, 150, 750_000),
        (was_refused_by_a_guard, 0, 0, 0),
        (met_a_room_that_broke, 0, 0, 0),
        (found_every_target_resting, 0, 0, 0),
        (got_an_error, 1, 0, 0),
        (could_not_be_answered, 1, 0, 0),
        (was_left_before_anything_was_sent, 1, 0, 0),
        (was_left_in_the_middle, 1, 140, 650_000),
        (was_stopped_by_a_guard_on_its_answer, 1, 120, 450_000),
        (hit_the_cache, 1, 0, 0),
        (followed_one_that_failed, 1, 0, 0),
    ],
)
def test_what_is_counted_of_a_call_that(becomes: object, requests: int, tokens: int, nanousd: int) -> None:
    till = Till(POLICY)
    x = till.admit(call())
    becomes(x)  # type: ignore[operator]
    till.account.settle(x)
    till.spend.settle(x)
    till.spend.settle(x)

    charges = [counter.charge(lambda _: None, 0) for counter in till.limit.counters.values()]
    charges += [counter.charge(lambda _: None, 0) for counter in till.budget.counters.values()]
    counts = [(standing.used, standing.reserved) for standing in till.ledger.standing(charges)]
    assert counts == [(requests, 0), (tokens, 0), (0, 0), (nanousd, 0)]


def test_a_count_beyond_all_reason_leaves_the_estimate() -> None:
    till = Till(POLICY)
    x = till.admit(call(max_tokens=500))
    till.answer(x, 10**30, 10**30)
    [standing] = till.ledger.standing([till.limit.counters["tokens"].charge(lambda _: None, 0)])

    assert standing.used == 500 + x.request.input_tokens_estimate


def test_a_negative_count_gives_nothing_back() -> None:
    till = Till(POLICY)
    till.spent(call(max_tokens=500), -5000, 10)
    [standing] = till.ledger.standing([till.limit.counters["tokens"].charge(lambda _: None, 0)])

    assert standing.used == 0


def test_the_lengths_of_answers_are_learned() -> None:
    till = Till("limit: [{name: tokens, tokens: 1000000, every: 1 m}]")
    for _ in range(20):
        till.spent(call(), 100, 40)

    assert till.lengths.need(call(), "gpt-4o").output == 40


def test_nothing_is_learned_from_what_the_gateway_itself_has_asked() -> None:
    till = Till("limit: [{name: tokens, tokens: 1000000, every: 1 m}]")
    for _ in range(20):
        x = call()
        x.door = "gateway"
        till.spent(x, 100, 40)

    assert till.lengths.need(call(), "gpt-4o").output == FIRST_TOKENS


def test_an_event_of_the_settlement_is_written_once_and_says_when() -> None:
    till = Till("budget: [{name: day, cost: 1 USD, every: day, hard: record, soft: 50 %}]")
    till.clock.advance(7)
    x = till.admit(call(max_tokens=200_000))
    assert events(x) == [("budget", "day", "hard", False)]
    till.clock.advance(5)
    till.answer(x, 0, 200_000)

    assert events(x) == [("budget", "day", "hard", False), ("budget", "day", "soft", False)]
    assert [event.at for event in x.events] == [None, 12.0]


def test_a_policy_without_limits_and_budgets_asks_nobody() -> None:
    till = Till("usage: ask")
    till.spend.ledger = None  # type: ignore[assignment]

    till.spent(call(), 100, 40)
