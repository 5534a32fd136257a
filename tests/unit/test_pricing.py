"""Prices are exact where they are known, and unknown where they are not: never a wrong zero."""

import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import data_snapshot, types

from mitmgate import pricing
from mitmgate.dialects.base import Usage
from mitmgate.pricing import Prices, custom_cost, plain_cost, reported_cost

AT = datetime(2026, 11, 24, 16, 42, tzinfo=UTC)
USD = 10**9


@pytest.fixture
def prices() -> Prices:
    return Prices()


BY_HAND: list[tuple[str, str, Usage, str]] = [
    # gpt-4o: 2.50 in, 1.25 cached, 10 out. 800 fresh, 200 cached, 500 out: 0.002 + 0.00025 + 0.005
    ("openai", "gpt-4o", Usage(1000, 500, 200), "0.00725"),
    # gpt-5: 1.25 in, 0.125 cached, 10 out; reasoning is part of the output and costs the same
    ("openai", "gpt-5", Usage(1000, 500, 200, reasoning_output_tokens=400), "0.006025"),
    # the flex tier halves it, the standard tier's name changes nothing
    ("openai", "gpt-5", Usage(1000, 500, 200, service_tier="flex"), "0.0030125"),
    ("openai", "gpt-5", Usage(1000, 500, 200, service_tier="default"), "0.006025"),
    # claude-sonnet-4-5: 3 in, 0.30 read, 3.75 five-minute write, 6 one-hour write, 15 out
    # 100 fresh, 500 read, 400 written of which 300 for an hour, 50 out
    (
        "anthropic",
        "claude-sonnet-4-5-20250929",
        Usage(1000, 50, 500, 400, cache_creation_1h_input_tokens=300),
        "0.003375",  # 0.0003 + 0.00015 + 0.000375 + 0.0018 + 0.00075
    ),
    # the same, all written for five minutes: 0.0003 + 0.00015 + 0.0015 + 0.00075
    ("anthropic", "claude-sonnet-4-5", Usage(1000, 50, 500, 400), "0.0027"),
    # beyond 200,000 tokens of input every token costs the higher price: 6 in, 22.50 out
    ("anthropic", "claude-sonnet-4-5", Usage(200_001, 100), "1.202256"),
    # two web searches at 10 per thousand on top of 0.0018
    ("anthropic", "claude-sonnet-4-5", Usage(100, 100, server_tools={"web_search": 2}), "0.0218"),
    # gemini-2.5-flash: 0.30 in, 2.50 out, thinking included in the output: 0.0003 + 0.00125
    ("google", "gemini-2.5-flash", Usage(1000, 500, reasoning_output_tokens=300), "0.00155"),
    # audio in at 1.00: 600 text, 400 audio, 100 out: 0.00018 + 0.0004 + 0.00025
    ("google", "gemini-2.5-flash", Usage(1000, 100, input_audio_tokens=400), "0.00083"),
    # Bedrock's regional profiles cost 10 % more: 3.30 in, 16.50 out
    ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", Usage(1000, 100), "0.00495"),
    # embeddings have no output
    ("openai", "text-embedding-3-small", Usage(1000), "0.00002"),
    ("openai", "gpt-4o", Usage(0, 0), "0"),
    # a part larger than its whole says nothing: the input has its usual price
    ("openai", "gpt-4o", Usage(10, 0, 161), "0.000025"),
    ("openrouter", "meta-llama/llama-3.3-70b-instruct:free", Usage(1000, 1000), "0"),
]


@pytest.mark.parametrize(("provider", "model", "usage", "usd"), BY_HAND)
def test_prices_agree_with_those_computed_by_hand(
    prices: Prices, provider: str, model: str, usage: Usage, usd: str
) -> None:
    priced = prices.price(provider, "", [model], usage, AT)
    assert priced.cost_nanousd == int(Decimal(usd) * USD)
    assert priced.version == pricing.table_version()


def test_the_entry_that_was_used_is_named(prices: Prices) -> None:
    assert prices.price("openai", "", ["gpt-4o-2024-08-06"], Usage(1, 1), AT).detail == "openai/gpt-4o"


def test_the_response_model_goes_before_the_requested_one(prices: Prices) -> None:
    answered = prices.price("openai", "", ["gpt-4o-mini", "gpt-4o"], Usage(1000, 0), AT)
    assert answered.detail == "openai/gpt-4o-mini"


def test_an_azure_deployment_is_priced_by_the_model_that_answered(prices: Prices) -> None:
    assert prices.price("azure", "", ["gpt-4o-2024-08-06", "prod-chat"], Usage(1000, 0), AT).cost_nanousd == 2_500_000
    assert prices.price("azure", "", [None, "prod-chat"], Usage(1000, 0), AT).cost_nanousd is None


def test_a_provider_without_an_id_is_found_by_its_host(prices: Prices) -> None:
    assert prices.price("", "api.openai.com", ["gpt-4o"], Usage(1000, 0), AT).cost_nanousd == 2_500_000


@pytest.mark.parametrize(
    ("provider", "host", "models", "usage", "why"),
    [
        ("openai", "", ["no-such-model"], Usage(1, 1), "openai has no known price for no-such-model"),
        ("openai", "", [None], Usage(1, 1), "openai has no known price for an unnamed model"),
        ("", "llm.corp.example", ["gpt-4o"], Usage(1, 1), "no prices known for llm.corp.example"),
        # an entry for characters of speech has no rate for tokens
        ("openai", "", ["tts-1"], Usage(10, 0), "openai/tts-1 has no rate for input tokens"),
        # an entry without any rate is no free model
        ("cerebras", "", ["qwen-3-coder-480b"], Usage(10, 0),
         "cerebras/qwen-3-coder-480b has no rate for input tokens"),
        ("openai", "", ["text-embedding-3-small"], Usage(10, 5),
         "openai/text-embedding-3-small has no rate for output tokens"),
        ("openai", "", ["gpt-4o"], Usage(), None),
    ],
)  # fmt: skip
def test_an_unknown_price_is_none_and_says_why(
    prices: Prices, provider: str, host: str, models: list[str | None], usage: Usage, why: str | None
) -> None:
    priced = prices.price(provider, host, models, usage, AT)
    assert (priced.cost_nanousd, priced.version, priced.detail) == (None, None, why)


def test_an_unknown_model_is_said_once(prices: Prices, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        prices.price("openai", "", ["no-such-model"], Usage(1, 1), AT)
    assert [record.message for record in caplog.records] == ["pricing: openai has no known price for no-such-model"]


def test_names_made_up_by_clients_are_not_remembered_for_ever(prices: Prices) -> None:
    for number in range(pricing.SAID_AT_MOST + 500):
        prices.price("openai", "", [f"made-up-{number}"], Usage(1, 1), AT)
    assert len(prices._said) == pricing.SAID_AT_MOST


def test_a_broken_table_costs_the_price_and_nothing_else(prices: Prices, caplog: pytest.LogCaptureFixture) -> None:
    broken = types.Provider(id="openai", name="OpenAI", api_pattern="(", models=[])
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot([broken], from_auto_update=False))
    try:
        for _ in range(2):
            priced = prices.price("", "api.openai.com", ["gpt-4o"], Usage(1, 1), AT)
            assert priced.cost_nanousd is None
            assert str(priced.detail).startswith("the price table failed: ")
    finally:
        data_snapshot.set_custom_snapshot(None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


CUSTOM: list[tuple[dict[str, Any], Usage, str]] = [
    ({"per_token_in": 0.001, "per_token_out": 0.002}, Usage(1000, 100), "1.2"),
    # without cache rates the cache counts do not matter
    ({"per_token_in": 0.001, "per_token_out": 0.002}, Usage(1000, 100, 900, 50), "1.2"),
    # with one of them the other defaults to the price of input: 50 fresh, 900 read, 50 written
    ({"per_token_in": 0.001, "per_token_out": 0, "per_cache_read_token": 0.0001}, Usage(1000, 100, 900, 50), "0.19"),
    ({"per_token_in": 0.001, "per_cache_write_token": 0.002}, Usage(1000, 100, 900, 50), "1.05"),
    ({"per_token_out": "0.000000001"}, Usage(1000, 3), "0.000000003"),
]


@pytest.mark.parametrize(("rates", "usage", "usd"), CUSTOM)
def test_custom_cost_follows_cloudflares_rule(prices: Prices, rates: dict[str, Any], usage: Usage, usd: str) -> None:
    assert custom_cost(rates, usage) == Decimal(usd)
    priced = prices.price("openai", "", ["no-such-model"], usage, AT, rates)
    assert (priced.cost_nanousd, priced.version) == (int(Decimal(usd) * USD), "custom")


def test_custom_cost_needs_counts(prices: Prices) -> None:
    assert prices.price("openai", "", ["gpt-4o"], Usage(), AT, {"per_token_in": 1}).cost_nanousd is None


def test_custom_cost_that_is_no_number_never_raises(prices: Prices) -> None:
    assert prices.price("openai", "", ["gpt-4o"], Usage(1, 1), AT, {"per_token_in": "much"}).cost_nanousd is None


@pytest.mark.parametrize(("usd", "nanousd"), [(None, None), (0.0, 0), (0.00014, 140_000), (float("nan"), None)])
def test_the_providers_own_figure_is_kept_exactly(usd: float | None, nanousd: int | None) -> None:
    assert reported_cost(Usage(cost_reported_usd=usd)) == nanousd


USAGES = [Usage(1000, 500, 200, 100, 40, 30), Usage(300_000, 500, 200, 100, 40), Usage(250_000, 0), Usage(10, 3)]


@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("context", [None, *pricing.TIERS.values()])
def test_the_fast_sum_agrees_with_the_table_for_every_model(usage: Usage, context: dict[str, str] | None) -> None:
    checked = 0
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            fast = plain_cost(vars(model.get_prices(AT, context)), usage)
            if fast is None:
                continue
            slow = model.calc_price(
                pricing._units(usage), provider, genai_request_timestamp=AT, price_context=context
            )  # fmt: skip
            assert fast == slow.total_price, f"{provider.id}/{model.id}"
            checked += 1
    assert checked > 2000


@pytest.mark.parametrize(
    "usage",
    [
        Usage(100, 10, 50, input_audio_tokens=60),
        Usage(100, 10, 50, input_audio_tokens=60, cache_read_audio_tokens=20),
        Usage(100, 10, 90, input_audio_tokens=90, cache_read_audio_tokens=0),
        Usage(100, 10, 50, 50, input_audio_tokens=70),
        Usage(100, 10, output_audio_tokens=8, reasoning_output_tokens=9),
        Usage(100, 10, input_audio_tokens=500, output_audio_tokens=500),
    ],
)
def test_audio_counts_that_overlap_or_contradict_still_have_a_price(prices: Prices, usage: Usage) -> None:
    for provider, model in (("openai", "gpt-4o-audio-preview"), ("google", "gemini-2.5-flash")):
        priced = prices.price(provider, "", [model], usage, AT)
        assert priced.cost_nanousd is not None, priced.detail
        assert priced.cost_nanousd > 0


def test_an_old_answer_has_the_price_of_its_day(prices: Prices) -> None:
    old = prices.price("openai", "", ["o3"], Usage(1_000_000, 0), datetime(2025, 5, 1, tzinfo=UTC))
    new = prices.price("openai", "", ["o3"], Usage(1_000_000, 0), AT)
    assert (old.cost_nanousd, new.cost_nanousd) == (10 * USD, 2 * USD)


def test_warming_loads_the_table_without_a_word(prices: Prices, caplog: pytest.LogCaptureFixture) -> None:
    prices.warm()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("provider", "model", "known"),
    [
        ("openai", "gpt-4o-mini", True),
        ("openai", "GPT-4o-mini", True),
        ("azure", "gpt-4o-mini", True),
        ("anthropic", "gpt-4o-mini", False),
        ("anthropic", "claude-haiku-4-5", True),
        ("openai", "our-own-model", False),
        ("nobody", "gpt-4o-mini", False),
    ],
)
def test_whose_models_are_known(prices: Prices, provider: str, model: str, known: bool) -> None:
    assert prices.knows(provider, "", model) is known


def test_a_broken_table_knows_no_model_and_never_raises(prices: Prices, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(prices, "_model", broken)
    assert not prices.knows("openai", "", "gpt-4o-mini")
