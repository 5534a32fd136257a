"""What a ``usage`` object of the OpenAI family says, under all the names that the family has for it.

One arithmetic for chat, completions, embeddings and Responses (``prompt_tokens`` there is ``input_tokens`` here).
Cached and reasoning tokens lie inside of their totals; who leaves something out is found out by the sum: where
``total_tokens`` is more than prompt and completion, and the difference is just the reasoning (xAI, Vertex), the audio
(Mistral) or the cache, then that stood outside. Vercel's gateway leaves Gemini's reasoning out of the total as well;
nothing but its name tells. ``tests/unit/test_corpus.py`` holds this against recorded answers of two dozen hosts.
"""

from typing import Any

from mitmgate.dialects.base import Usage
from mitmgate.dialects.counts import amount, best, count, named, obj, total

XAI_TICK_USD = 1e-10
"""xAI counts cost in ticks: ten thousand millions are a dollar."""

COUNTERS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")


def says_something(usage: dict[str, Any]) -> bool:
    """True where *usage* has a counter; early chunks carry null, ``{}`` or an object of nulls."""
    return any(count(usage.get(key)) is not None for key in COUNTERS)


def fill(usage: Usage, raw: dict[str, Any], model: str | None, vercel: bool = False) -> None:
    """Write into *usage* what *raw* says; *vercel* where that gateway is known to answer."""
    inputs = obj(raw.get("prompt_tokens_details") or raw.get("input_tokens_details") or raw.get("prompt_token_details")
                 or raw.get("input_token_details"))  # fmt: skip
    outputs = obj(
        raw.get("completion_tokens_details") or raw.get("output_tokens_details") or raw.get("output_token_details")
    )
    prompt = best(raw.get("prompt_tokens"), raw.get("input_tokens"))
    completion = best(raw.get("completion_tokens"), raw.get("output_tokens"))
    cached = best(
        inputs.get("cached_tokens"),
        raw.get("prompt_cache_hit_tokens"),
        raw.get("cached_tokens"),
        raw.get("num_cached_tokens"),
        raw.get("cache_read_input_tokens"),
    )
    written = best(
        inputs.get("cache_write_tokens"),
        inputs.get("cache_creation_tokens"),
        inputs.get("cache_creation_input_tokens"),
        raw.get("cache_creation_input_tokens"),
    )
    reasoning = best(outputs.get("reasoning_tokens"), raw.get("reasoning_tokens"))
    audio = best(inputs.get("audio_tokens"), raw.get("audio_tokens"))

    left_out = _left_out(raw, prompt, completion)
    more_input, more_output = 0, 0
    if left_out and left_out == reasoning:
        more_output = left_out
    elif left_out and left_out in (audio, total(cached, written)):
        more_input = left_out
    elif left_out and audio and reasoning and left_out == audio + reasoning:
        more_input, more_output = audio, reasoning
    elif (vercel or "market_cost" in raw) and reasoning and (model or "").startswith("google/"):
        more_output = reasoning

    usage.input_tokens = prompt + more_input if prompt is not None else None
    usage.output_tokens = completion + more_output if completion is not None else None
    usage.cache_read_input_tokens = cached
    usage.cache_creation_input_tokens = written
    usage.reasoning_output_tokens = reasoning
    usage.input_audio_tokens = audio
    usage.output_audio_tokens = count(outputs.get("audio_tokens"))
    usage.cache_read_audio_tokens = count(obj(inputs.get("cached_tokens_details")).get("audio_tokens"))
    usage.cost_reported_usd = _cost(raw)
    if tier := named(raw.get("service_tier")):
        usage.service_tier = tier
    _fill_tools(usage, raw)


def _left_out(raw: dict[str, Any], prompt: int | None, completion: int | None) -> int:
    """Return how many tokens of the total are in neither count."""
    everything = count(raw.get("total_tokens"))
    if everything is None or prompt is None or completion is None:
        return 0
    return max(everything - prompt - completion, 0)


def _cost(raw: dict[str, Any]) -> float | None:
    """Return the provider's own price: OpenRouter's and Vercel's ``cost``, Perplexity's ``total_cost``, xAI's ticks."""
    cost = raw.get("cost")
    if isinstance(cost, dict):
        return amount(cost.get("total_cost"))
    usd = amount(cost)
    if usd is not None:
        upstream = amount(obj(raw.get("cost_details")).get("upstream_inference_cost"))
        # with the caller's own key OpenRouter's cost is its fee alone, and the provider's bill comes beside it
        return usd + upstream if raw.get("is_byok") is True and upstream else usd
    ticks = count(raw.get("cost_in_usd_ticks"))
    return ticks * XAI_TICK_USD if ticks else None  # a zero is Azure's way of not saying


def _fill_tools(usage: Usage, raw: dict[str, Any]) -> None:
    """Count the tools that a provider says it ran itself."""
    if searches := count(raw.get("num_search_queries")):  # Perplexity
        usage.server_tools["web_search"] = searches
    for key, value in obj(raw.get("server_side_tool_usage_details")).items():  # xAI: {"web_search_calls": 2}
        if calls := count(value):
            usage.server_tools[str(key)[:64].removesuffix("_calls")] = calls
