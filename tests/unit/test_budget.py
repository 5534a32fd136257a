"""Money: what a call may cost before it goes, what it did cost, and who is sent to a cheaper model."""

from dataclasses import replace
from decimal import Decimal

import pytest

from mitmgate.answers import our_fields
from mitmgate.dialects.base import Usage
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange
from mitmgate.policy.values import Choice
from support.spending import Till, attempt, call, event, events

DAY = "budget: [{name: day, per: tenant, cost: 1 USD, every: day}]"
STEPS = """
budget:
  - {name: day, per: tenant, cost: 1 USD, every: day, soft: 80 %, downgrade: {at: 90 %, to: {model: gpt-4o-mini}}}
"""
PER_MILLION = 1_000_000
"""Tokens: gpt-4o has 2.50 USD for so many of them in, and 10 USD out; gpt-4o-mini 0.15 and 0.60."""


def remaining(x: Exchange) -> str | None:
    return next((value.decode() for name, value in our_fields(x) if name == b"cf-aig-budget-remaining"), None)


def refused(x: Exchange) -> Refusal:
    assert x.refusal is not None
    return x.refusal


def left_usd(till: Till, **how: object) -> Decimal:
    """Return what a small call would leave."""
    x = till.admit(call(max_tokens=0, **how))  # type: ignore[arg-type]
    said = (remaining(x) or "").partition(";")[0]
    till.settle(x)
    return Decimal(said)


ASKING_USD = Decimal("0.00003")
"""What the input of ``call`` is estimated to cost: 12 tokens."""


# -- reserve and settle -----------------------------------------------------------------------------------------------


def test_what_a_call_may_cost_is_reserved_and_what_it_did_cost_is_settled() -> None:
    till = Till(DAY)
    x = till.admit(call(max_tokens=40_000))
    assert remaining(x) == "0.59997; rule=day; unit=USD; reset=6400"
    till.answer(x, 20_000, 5_000)

    assert left_usd(till) == Decimal("0.9") - ASKING_USD


def test_calls_at_once_never_reserve_more_than_there_is() -> None:
    till = Till(DAY)
    calls = [till.admit(call(max_tokens=30_000)) for _ in range(10)]

    assert [x.refusal is None for x in calls] == [True, True, True] + [False] * 7


def test_an_answer_that_was_dearer_than_expected_is_recorded_in_full() -> None:
    till = Till(DAY)
    till.spent(call(max_tokens=10), 400_000, 10_000)
    x = till.admit(call(max_tokens=10))

    assert refused(x).retry_after_s == 6400
    assert remaining(x) == "0; rule=day; unit=USD; reset=6400"


def test_the_day_turns_and_there_is_money_again() -> None:
    till = Till(DAY)
    till.spent(call(max_tokens=10), 400_000, 0)
    assert till.admit(call()).refusal
    till.clock.advance(6400)

    assert till.admit(call()).refusal is None


def test_a_provider_that_fails_gives_the_money_back() -> None:
    till = Till(DAY)
    x = till.admit(call(max_tokens=90_000))
    attempt(x, status=500)
    x.how, x.status = "end", 500
    till.settle(x)

    assert left_usd(till) == 1 - ASKING_USD


def test_a_call_that_went_to_another_provider_costs_what_it_costs_there() -> None:
    till = Till(DAY)
    x = till.admit(call())
    one = attempt(x, Usage(100_000, 0), model="claude-haiku-4-5")
    one.provider_name, one.host = "anthropic", "api.anthropic.com"
    x.status, x.how = 200, "end"
    till.settle(x)

    assert left_usd(till) == Decimal("0.9") - ASKING_USD


def test_all_attempts_cost_money() -> None:
    till = Till(DAY)
    x = till.admit(call())
    attempt(x, Usage(20_000, 0), model="gpt-4o")
    till.answer(x, 20_000, 0)

    assert left_usd(till) == Decimal("0.9") - ASKING_USD


def test_what_came_out_of_the_cache_costs_nothing() -> None:
    till = Till(DAY)
    x = call()
    x.replay = object()  # type: ignore[assignment]
    till.admit(x)
    x.answer = attempt(call(), Usage(200_000, 50_000)).answer
    x.source, x.status, x.how = "cache", 200, "end"
    till.settle(x)

    assert remaining(x) is None
    assert left_usd(till) == 1 - ASKING_USD


def test_one_refused_by_money_gives_its_tokens_and_its_request_back() -> None:
    till = Till(
        "limit: [{name: burst, requests: 1, every: 1 m}, {name: tokens, tokens: 100000, every: 1 m}]\n"
        "budget: [{name: day, cost: 0.01 USD, every: day}]"
    )
    dear = till.settle(till.admit(call(max_tokens=90_000)))
    cheap = till.admit(call("gpt-4o-mini", max_tokens=10))

    assert refused(dear).rule == "day"
    assert cheap.refusal is None


def test_money_that_is_there_reserves_nothing_where_the_tokens_refuse() -> None:
    till = Till("limit: [{name: tokens, tokens: 100, every: 1 m}]\n" + DAY)
    x = till.admit(call(max_tokens=1000))

    assert (refused(x).rule, x.source) == ("tokens", "rate-limit")
    assert events(x) == [("limit", "tokens", "refuse", False)]
    assert left_usd(till) == 1 - ASKING_USD


def test_where_neither_has_room_the_money_is_named_and_both_are_recorded() -> None:
    till = Till("limit: [{name: tokens, tokens: 100, every: 1 m}]\nbudget: [{name: day, cost: 0.001 USD, every: day}]")
    x = till.admit(call(max_tokens=1000))

    assert refused(x).rule == "day"
    assert events(x) == [("budget", "day", "refuse", False), ("limit", "tokens", "refuse", False)]


# -- soft and hard ----------------------------------------------------------------------------------------------------


def test_a_refusal_names_rule_line_caller_and_time() -> None:
    till = Till(DAY)
    till.spent(call(max_tokens=10), 0, 99_000)
    x = till.admit(call(max_tokens=10_000))

    assert refused(x) == Refusal(
        429,
        "insufficient_quota",
        "Budget day has no room for this call, which may cost 0.10003 USD: 1 USD a day for tenant acme, 0.01 USD left. "
        "It works again in 1 h 47 m (rule day, policy.yaml:1).",
        source="budget",
        error_type="insufficient_quota",
        rule="day",
        where="policy.yaml:1",
        retry_after_s=6400,
        should_retry=False,
    )
    assert (x.source, event(x).detail) == ("budget", "1 USD a day for tenant acme, 0.01 USD left")
    assert remaining(x) == "0.01; rule=day; unit=USD; reset=6400"


def test_a_call_dearer_than_the_whole_budget_is_told_that_it_never_fits() -> None:
    refusal = refused(Till(DAY).admit(call(max_tokens=PER_MILLION)))

    assert (refusal.retry_after_s, refusal.should_retry) == (None, False)
    assert "1 USD left. So dear a call never fits" in refusal.message


@pytest.mark.parametrize(
    ("spent", "acts"),
    [
        ([(0, 79_000)], [[]]),
        ([(0, 80_000)], [["soft"]]),
        ([(0, 79_000), (0, 1_000), (0, 1_000)], [[], ["soft"], []]),
    ],
)
def test_soft_is_an_event_of_the_call_that_passes_it(spent: list[tuple[int, int]], acts: list[list[str]]) -> None:
    till = Till("budget: [{name: day, per: tenant, cost: 1 USD, every: day, soft: 80 %}]")
    calls = [till.spent(call(max_tokens=10), *usage) for usage in spent]

    assert [[one.action for one in x.events] for x in calls] == acts
    assert all(x.refusal is None for x in calls)


def test_hard_record_lets_pass_and_says_so_on_every_call_beyond() -> None:
    till = Till("budget: [{name: day, per: tenant, cost: 1 USD, every: day, hard: record}]")
    over = till.spent(call(max_tokens=10), 0, 150_000)
    beyond = till.spent(call(max_tokens=10), 0, 1)

    assert (events(over), events(beyond)) == ([("budget", "day", "hard", False)],) * 2
    assert (over.refusal, beyond.refusal) == (None, None)
    assert remaining(beyond) == "0; rule=day; unit=USD; reset=6400"


@pytest.mark.parametrize(("hard", "action"), [("refuse", "refuse"), ("record", "hard")])
def test_a_shadow_counts_and_says_and_lets_pass(hard: str, action: str) -> None:
    till = Till(f"budget: [{{name: day, shadow: true, cost: 0.001 USD, every: day, hard: {hard}}}]")
    x = till.admit(call(max_tokens=1000))

    assert (x.refusal, events(x), remaining(x)) == (None, [("budget", "day", action, True)], None)


def test_a_shadow_that_is_full_keeps_nothing_else_from_being_counted() -> None:
    till = Till(
        "budget: [{name: tight, shadow: true, cost: 0.001 USD, every: day}, {name: day, cost: 1 USD, every: day}]"
    )
    till.spent(call(max_tokens=10_000), 0, 10_000)

    assert left_usd(till) == Decimal("0.9") - ASKING_USD


@pytest.mark.parametrize("door", ["gateway", "replay"])
def test_nobody_pays_for_what_nobody_outside_has_asked_for(door: str) -> None:
    till = Till(DAY)
    x = call(max_tokens=10_000)
    x.door = door  # type: ignore[assignment]
    till.spent(x, 0, 10_000)

    assert remaining(x) is None
    assert left_usd(till) == 1 - ASKING_USD


def test_tenants_have_their_own_money_and_others_are_not_counted() -> None:
    till = Till("budget: [{name: day, match: {model: gpt-4o}, per: tenant, cost: 1 USD, every: day}]")
    till.spent(call(max_tokens=10), 400_000, 0)

    assert till.admit(call()).refusal
    assert till.admit(call(tenant="globex")).refusal is None
    assert till.admit(call("gpt-4o-mini")).refusal is None


# -- a cheaper model --------------------------------------------------------------------------------------------------


def spent_up(policy: str = STEPS, usd: str = "0.95", **how: object) -> Till:
    """Return a till of which so much is spent."""
    till = Till(policy)
    till.spent(call(max_tokens=10, **how), 0, int(Decimal(usd) * 100_000))  # type: ignore[arg-type]
    return till


def test_from_its_share_on_a_call_goes_to_the_cheaper_model_and_costs_what_that_costs() -> None:
    till = spent_up()
    x = till.admit(call(max_tokens=50_000))

    assert x.refusal is None, "0.5 USD would not fit, 0.03 USD do"
    assert x.downgrade == Choice(model="gpt-4o-mini")
    assert x.route_notes == ["downgraded; rule=day"]
    assert events(x) == [("budget", "day", "downgrade", False)]
    assert event(x).detail == "gpt-4o to gpt-4o-mini: 1 USD a day for tenant acme, 0.05 USD left"
    till.answer(x, 0, 50_000)
    assert remaining(till.admit(call(max_tokens=0))) == "0.0199982; rule=day; unit=USD; reset=6400"


def test_calls_go_on_to_the_cheaper_model_however_many_of_its_answers_were_short() -> None:
    """What mini's answers teach must not make it look dearer than the model whose place it takes."""
    till = Till(STEPS)
    for _ in range(30):
        till.spent(call(), 10, 20)
    till.spent(call(max_tokens=10), 0, 94_000)
    calls = [till.spent(call(), 10, 20) for _ in range(60)]

    assert {x.downgrade for x in calls} == {Choice(model="gpt-4o-mini")}


@pytest.mark.parametrize(("usd", "goes"), [("0.89999", None), ("0.90", Choice(model="gpt-4o-mini"))])
def test_what_is_reserved_does_not_downgrade_only_what_is_settled(usd: str, goes: Choice | None) -> None:
    till = spent_up(usd=usd)
    till.admit(call(max_tokens=9_000))

    assert till.admit(call(max_tokens=10)).downgrade == goes


def test_what_is_granted_moves_the_steps() -> None:
    till = spent_up()
    [counter] = till.budget.counters.values()
    till.ledger.grant(counter.charge(lambda _: "acme", 0).counter, "day", 1_000_000_000)
    x = till.admit(call(max_tokens=10))

    assert x.downgrade is None
    assert remaining(x) == "1.04987; rule=day; unit=USD; reset=6400"


def test_a_downgraded_call_is_refused_where_even_that_does_not_fit() -> None:
    till = spent_up()
    x = till.admit(call(max_tokens=200_000))

    assert x.downgrade
    assert refused(x).rule == "day"
    assert "may cost 0.1200018 USD" in refused(x).message


def test_a_call_of_the_cheap_model_stays_as_it_is() -> None:
    x = spent_up().admit(call("GPT-4o-mini"))

    assert (x.downgrade, x.notes, x.events, x.route_notes) == (None, [], [], [])


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (call("gpt-4.1-nano"), "gpt-4o-mini would cost no less"),
        (call("gpt-4o-mini-2024-07-18"), "gpt-4o-mini would cost no less"),
        (call("claude-haiku-4-5", "api.anthropic.com"), "anthropic has no model gpt-4o-mini"),
        (call("text-embedding-3-small", path="/v1/embeddings"), "no other model can do its embeddings"),
        (call(previous_response_id="resp_1", path="/v1/responses"), "its previous_response_id lies at its provider"),
    ],
)
def test_a_call_that_another_model_cannot_take_over_stays_and_its_row_says_why(x: Exchange, why: str) -> None:
    spent_up().admit(x)

    assert (x.downgrade, x.route_notes, x.events) == (None, [], [])
    assert x.notes == [f"budget: day does not downgrade this call: {why}"]


def test_a_signed_request_is_not_downgraded() -> None:
    x = call()
    x.headers["authorization"] = "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/bedrock/aws4_request"
    spent_up().admit(x)

    assert x.downgrade is None
    assert x.notes == ["budget: day does not downgrade this call: its body is signed"]


def test_a_model_that_no_table_knows_is_the_policys_own_business() -> None:
    x = spent_up(STEPS.replace("gpt-4o-mini", "our-own-small-one")).admit(call())

    assert x.downgrade == Choice(model="our-own-small-one")


def test_a_call_may_go_to_another_target_instead() -> None:
    policy = "targets: {local: {provider: ollama, base_url: 'http://127.0.0.1:11434/v1'}}\n" + STEPS.replace(
        "{model: gpt-4o-mini}", "{target: local}"
    )
    x = spent_up(policy).admit(call())
    there = call()
    there.target = "local"

    assert x.downgrade == Choice(target="local")
    assert events(x) == [("budget", "day", "downgrade", False), ("budget", "day", "flag", False)], (
        "it has no price there"
    )
    assert spent_up(policy).admit(there).downgrade is None


def test_a_shadow_says_that_it_would_downgrade() -> None:
    x = spent_up(STEPS.replace("name: day", "name: day, shadow: true")).admit(call(max_tokens=10))

    assert (x.downgrade, x.route_notes, events(x)) == (None, [], [("budget", "day", "downgrade", True)])


def test_of_two_rules_the_first_one_chooses() -> None:
    policy = (
        "budget:\n"
        "  - {name: a, cost: 1 USD, every: day, downgrade: {at: 50 %, to: {model: gpt-4o-mini}}}\n"
        "  - {name: b, cost: 1 USD, every: day, downgrade: {at: 40 %, to: {model: gpt-4.1-nano}}}"
    )
    half, most = spent_up(policy, "0.45").admit(call()), spent_up(policy, "0.6").admit(call())

    assert (half.downgrade, most.downgrade) == (Choice(model="gpt-4.1-nano"), Choice(model="gpt-4o-mini"))


# -- no price ---------------------------------------------------------------------------------------------------------


def unpriced(how: str) -> str:
    return f"budget: [{{name: day, per: tenant, cost: 1 USD, every: day, unpriced: {how}}}]"


def test_a_model_without_a_price_is_refused_where_the_rule_says_so() -> None:
    till = Till(unpriced("refuse"))
    x = till.admit(call("our-own-model"))

    assert (refused(x).status, refused(x).kind, refused(x).should_retry) == (429, "insufficient_quota", False)
    assert refused(x).message == (
        "Budget day refuses what has no known price: openai has no known price for our-own-model. "
        "Ask for another model (rule day, policy.yaml:1)."
    )
    assert events(x) == [("budget", "day", "refuse", False)]
    assert till.admit(call("gpt-4o")).refusal is None


def test_a_model_without_a_price_counts_nothing_and_is_flagged_where_it_is_allowed() -> None:
    till = Till(unpriced("allow"))
    x = till.spent(call("our-own-model"), 1_000_000, 1_000_000)

    assert events(x) == [("budget", "day", "flag", False)]
    assert event(x).detail == "openai has no known price for our-own-model: it counts as 0 USD"
    assert left_usd(till) == 1 - ASKING_USD


def test_a_model_without_a_price_counts_what_the_policy_assumes() -> None:
    till = Till(unpriced("assume 0.4 USD"))
    calls = [till.spent(call("our-own-model"), 1_000_000, 1_000_000) for _ in range(2)]

    assert [events(x) for x in calls] == [[], []]
    assert refused(till.admit(call("our-own-model"))).rule == "day"
    assert left_usd(till) == Decimal("0.2") - ASKING_USD


def test_each_rule_has_its_own_word_on_what_an_unknown_price_counts() -> None:
    till = Till(
        "budget:\n"
        "  - {name: assumes, cost: 1 USD, every: day, unpriced: assume 0.25 USD}\n"
        "  - {name: allows, cost: 1 USD, every: week, unpriced: allow}"
    )
    till.spent(call("our-own-model"), 1_000, 1_000)
    x = till.admit(call(max_tokens=0))

    assert remaining(x) == "0.74997; rule=assumes; unit=USD; reset=6400"
    till.answer(x, 0, 74_000)
    assert (remaining(till.admit(call(max_tokens=0)))) == "0.00997; rule=assumes; unit=USD; reset=6400"


def test_an_answer_that_turns_out_to_have_no_price_is_flagged_when_it_is_settled() -> None:
    till = Till(unpriced("allow"))
    x = till.admit(call(max_tokens=10))
    assert x.events == []

    one = attempt(x, Usage(100, 100), model="x")
    one.provider_name, one.host = "nobody", "llm.corp.example"
    x.status, x.how = 200, "end"
    till.settle(x)

    assert events(x) == [("budget", "day", "flag", False)]


def test_a_rule_that_refuses_unknown_prices_keeps_the_estimate_where_the_answer_has_none() -> None:
    till = Till(unpriced("refuse"))
    x = till.admit(call(max_tokens=40_000))
    one = attempt(x, Usage(100, 100), model="x")
    one.provider_name, one.host = "nobody", "llm.corp.example"
    x.status, x.how = 200, "end"
    till.settle(x)

    assert left_usd(till) == Decimal("0.6") - 2 * ASKING_USD


def test_a_deployment_has_the_price_of_its_model() -> None:
    till = Till(
        "targets: {az: {provider: azure-openai, base_url: 'https://r.openai.azure.com', deployments: {gpt-4o: prod}}}\n"
        + unpriced("refuse")
    )
    x = call(
        "prod", "r.openai.azure.com", "/openai/deployments/prod/chat/completions?api-version=2024-10-21", max_tokens=0
    )

    assert remaining(till.admit(x)) == "0.99997; rule=day; unit=USD; reset=6400"


def test_a_deployment_that_nobody_has_named_has_the_price_of_the_model_in_the_body() -> None:
    x = call("gpt-4o", "r.openai.azure.com", "/openai/deployments/prod/chat/completions", max_tokens=0)
    x.request = replace(x.request, model="prod")

    assert remaining(Till(unpriced("refuse")).admit(x)) == "0.99997; rule=day; unit=USD; reset=6400"


def test_a_shadow_says_that_it_would_refuse_what_has_no_price() -> None:
    x = Till(unpriced("refuse").replace("name: day", "name: day, shadow: true")).admit(call("our-own-model"))

    assert (x.refusal, events(x)) == (None, [("budget", "day", "refuse", True)])


@pytest.mark.parametrize(
    "places",
    [
        "try: [{model: gpt-4o-mini}, {model: gpt-4o}]",
        "split: {gpt-4o-mini: 90, gpt-4o: 10}",
        "choose: [{match: {tenant: vip}, try: [{model: gpt-4o}]}, {try: [{model: gpt-4o-mini}]}]",
    ],
)
def test_a_name_of_the_gateways_own_has_the_price_of_the_dearest_place_behind_it(places: str) -> None:
    policy = f"route: [{{name: r, match: {{model: dynamic/best}}, {places}}}]\n"
    x = Till(policy + unpriced("refuse")).admit(call("dynamic/best", max_tokens=0))

    assert remaining(x) == "0.99997; rule=day; unit=USD; reset=6400"


# -- prices of the request's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_token", "left"),
    [("0.000001", "0.9"), ("0.00001", "0.9"), ("0.00002", "0.8"), ("0", "0.9")],
)
def test_a_budget_counts_the_larger_of_the_tables_price_and_the_requests_own(per_token: str, left: str) -> None:
    till = Till(DAY)
    x = call(max_tokens=10_000)
    x.controls["custom-cost"] = {"per_token_out": Decimal(per_token)}
    till.admit(x)
    reserved = Decimal((remaining(x) or "").partition(";")[0])
    till.answer(x, 0, 10_000)

    assert reserved == (Decimal(left) - ASKING_USD if left == "0.9" else Decimal(left))
    assert left_usd(till) == Decimal(left) - ASKING_USD


@pytest.mark.parametrize(("how", "left"), [("allow", "0.9"), ("assume 0.5 USD", "0.5")])
def test_a_price_of_its_own_makes_an_unknown_model_dearer_never_cheaper(how: str, left: str) -> None:
    till = Till(unpriced(how))
    x = call("our-own-model")
    x.controls["custom-cost"] = {"per_token_out": Decimal("0.00001")}
    till.spent(x, 0, 10_000)

    assert left_usd(till) == Decimal(left) - ASKING_USD


def test_a_price_of_its_own_does_not_open_a_rule_that_refuses_unknown_ones() -> None:
    x = call("our-own-model")
    x.controls["custom-cost"] = {"per_token_out": Decimal("0.00001")}

    assert refused(Till(unpriced("refuse")).admit(x)).rule == "day"
