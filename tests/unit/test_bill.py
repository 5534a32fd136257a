"""What limits and budgets are told is what the row says."""

from decimal import Decimal

import pytest

from mitmgate.bill import INT_MAX, Bill, bill_of, storable, sum_all, sum_known
from mitmgate.dialects.base import Reading, Usage
from mitmgate.exchange import Answer, Exchange
from mitmgate.policy.values import Policy
from mitmgate.trace_rows import snapshot
from support.spending import attempt, call


def ended(x: Exchange, status: int = 200) -> Exchange:
    x.status, x.how, x.terminal, x.ended = status, "end", "complete", 1.0
    return x


def answered() -> Exchange:
    x = call()
    attempt(x, Usage(1000, 500, cache_read_input_tokens=200), model="gpt-4o")
    return ended(x)


def answered_after_a_failure() -> Exchange:
    x = call()
    attempt(x, status=500)
    attempt(x, Usage(1000, 500), model="gpt-4o")
    return ended(x)


def answered_after_a_failure_that_had_used_something() -> Exchange:
    x = call()
    attempt(x, Usage(1000), model="gpt-4o")
    attempt(x, Usage(1000, 500), model="gpt-4o")
    return ended(x)


def answered_by_another_provider() -> Exchange:
    x = call()
    one = attempt(x, Usage(1000, 500), model="claude-haiku-4-5")
    one.provider_name, one.host = "anthropic", "api.anthropic.com"
    x.origin = one.origin
    return ended(x)


def answered_at_a_price_of_its_own() -> Exchange:
    x = answered()
    x.controls["custom-cost"] = {"per_token_out": Decimal("0.001")}
    return x


def answered_without_a_price() -> Exchange:
    x = call("our-own-model")
    attempt(x, Usage(1000, 500), model="our-own-model")
    return ended(x)


def answered_in_part_without_a_price() -> Exchange:
    x = answered()
    attempt(x, Usage(1000, 500), model="our-own-model")
    return ended(x)


def failed() -> Exchange:
    x = call()
    attempt(x, status=500)
    return ended(x, 500)


def never_asked() -> Exchange:
    x = call()
    x.terminal, x.how, x.ended = "refused", "refused", 1.0
    return x


def beyond_all_reason() -> Exchange:
    x = call()
    attempt(x, Usage(10**30, 10**30), model="gpt-4o")
    return ended(x)


BILLS = {
    answered: (1500, 7_250_000),
    answered_after_a_failure: (1500, 7_500_000),
    answered_after_a_failure_that_had_used_something: (2500, 10_000_000),
    answered_by_another_provider: (1500, 3_500_000),
    answered_at_a_price_of_its_own: (1500, 500_000_000),
    answered_without_a_price: (1500, None),
    answered_in_part_without_a_price: (3000, None),
    failed: (0, 0),
    never_asked: (0, 0),
    beyond_all_reason: (None, None),
}


@pytest.mark.parametrize(("make", "bill"), BILLS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_bill_is_what_the_row_says(make: object, bill: tuple[int | None, int | None]) -> None:
    x: Exchange = make()  # type: ignore[operator]
    [row] = snapshot(x, Policy()).render().exchanges
    told = bill_of(x)

    assert (told.tokens, told.cost_nanousd) == bill
    if make is not beyond_all_reason:
        assert told.tokens == (row["input_tokens"] or 0) + (row["output_tokens"] or 0)
    assert told.cost_nanousd == ((row["cost_nanousd"] or 0) if told.tokens == 0 else row["cost_nanousd"])


def test_a_hit_costs_what_was_spent_beside_it() -> None:
    x = answered()
    x.source, x.answer = "cache", Answer(Reading(usage=Usage(9000, 9000)))
    [row] = snapshot(x, Policy()).render().exchanges

    assert bill_of(x) == Bill(1500, 7_250_000, 7_250_000)
    assert row["cost_nanousd"] == 7_250_000


def test_an_old_answer_that_stood_in_for_one_without_a_price_costs_what_is_known() -> None:
    x = answered_without_a_price()
    x.source = "cache"
    [row] = snapshot(x, Policy()).render().exchanges

    assert bill_of(x).cost_nanousd == row["cost_nanousd"] == 0


def test_the_tables_price_stands_beside_the_requests_own() -> None:
    assert bill_of(answered_at_a_price_of_its_own()) == Bill(1500, 500_000_000, 7_250_000)


def test_tokens_alone_are_summed_without_a_look_at_the_table() -> None:
    assert bill_of(answered(), None, priced=False) == Bill(1500, 0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numbers", "known", "every"),
    [([], None, None), ([None], None, None), ([1, None, 2], 3, None), ([1, 2], 3, 3), ([INT_MAX, 1], None, None)],
)
def test_sums_of_what_may_be_unknown(numbers: list[int | None], known: int | None, every: int | None) -> None:
    assert (sum_known(numbers), sum_all(numbers)) == (known, every)


@pytest.mark.parametrize(("number", "kept"), [(None, None), (0, 0), (INT_MAX, INT_MAX), (INT_MAX + 1, None)])
def test_a_count_that_no_column_holds_is_none(number: int | None, kept: int | None) -> None:
    assert storable(number) == kept
