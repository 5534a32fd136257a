"""What an answer cost, in integer nano-dollars: genai-prices' table, or the prices that the request itself named.

Runs in the writer's thread (and wherever a budget settles): loading the table takes 0.3 s, an unusual answer 0.1 ms.
The table lies inside the installed package; nothing is fetched.

An unknown price is ``None``, never 0: an unknown model, an entry without rates, a kind of unit that was used and has no
rate, a broken table. It is said once in the log, never raised. Source of rates, tiers and dates: pydantic/genai-prices.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mitmgate.dialects.base import Usage

if TYPE_CHECKING:
    from genai_prices import types

log = logging.getLogger("mitmgate.pricing")

NANO = 10**9

SAID_AT_MOST = 1000
"""Unknown models that are said by name; names come from clients, so the memory of them has an end."""

TOOLS = {
    "web_search": "web_searches",
    "google_search": "web_searches",
    "x_search": "social_searches",
    "file_search": "storage_searches",
    "code_execution": "code_executions",
    "code_interpreter": "code_executions",
}
"""Tools that providers run and bill apart: our name -> genai-prices' unit."""

TIERS: Mapping[str, dict[str, str]] = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
    "batch": {"processing": "batch"},
}
"""The provider's word for the tier that served -> genai-prices' context. Any other word is the standard price."""


@dataclass(frozen=True, slots=True)
class Priced:
    """The price of one answer."""

    cost_nanousd: int | None
    """None = unknown."""
    version: str | None = None
    """Of the table, or ``custom``; None where there is no price."""
    detail: str | None = None
    """The entry that was used, ``openai/gpt-4o``, or why there is no price."""


UNUSED = Priced(None, None, None)
"""Nothing was reported that could be priced."""


class Prices:
    """A price table, loaded when first asked. Safe to use from any thread."""

    def __init__(self) -> None:
        self._said: set[object] = set()
        self._of_rates: dict[int, tuple[types.ModelPrice, Rated]] = {}
        """By the address of the table's own rates, which stay where they are."""
        self._provider = lru_cache(256)(self._find_provider)
        self._model = lru_cache(1024)(self._find_model)

    def warm(self) -> None:
        """Load the table; call it in a thread before traffic comes."""
        self.price("openai", "", ("gpt-4o",), Usage(input_tokens=1, output_tokens=1), datetime.now(UTC))

    def price(
        self,
        provider_id: str,
        host: str,
        models: Iterable[str | None],
        usage: Usage,
        at: datetime,
        custom: Mapping[str, Any] | None = None,
    ) -> Priced:
        """Return what *usage* cost at the time *at*; never raises.

        *provider_id* is genai-prices' (empty: looked up by *host*). *models* are the names to try, best first: the
        response's, then the request's. An Azure deployment is just a name that is tried. *custom* is
        ``cf-aig-custom-cost`` (see ``custom_cost``) and goes before any table.
        """
        if usage.input_tokens is None and usage.output_tokens is None:
            return UNUSED
        try:
            if custom:
                return Priced(int(custom_cost(custom, usage) * NANO), "custom", "cf-aig-custom-cost")
            return self._from_table(provider_id, host, [name for name in models if name], usage, at)
        except Exception as e:
            self._say(type(e), "pricing: the price of an answer stays unknown, the table failed: %r (said once)", e)
            return Priced(None, None, f"the price table failed: {type(e).__name__}")

    def knows(self, provider_id: str, host: str, model: str) -> bool:
        """Return whether the provider has a *model* of that name, as far as the table can tell; never raises."""
        try:
            return self._model(provider_id, host, model.lower()) is not None
        except Exception as e:
            self._say(type(e), "pricing: the table failed: %r (said once)", e)
            return False

    def _from_table(self, provider_id: str, host: str, names: list[str], usage: Usage, at: datetime) -> Priced:
        provider = self._provider(provider_id, host)
        if provider is None:
            where = provider_id or host
            self._say(("provider", where), "pricing: no prices are known for %s", where or "an unnamed host")
            return Priced(None, None, f"no prices known for {where}")
        model = self._first_known(provider_id, host, names)
        if model is None:
            named = ", ".join(names) or "an unnamed model"
            self._say((provider.id, named), "pricing: %s has no known price for %s", provider.id, named)
            return Priced(None, None, f"{provider.id} has no known price for {named[:200]}")
        return self._calculated(provider, model, usage, at)

    def _calculated(self, provider: "types.Provider", model: "types.ModelInfo", usage: Usage, at: datetime) -> Priced:
        entry = f"{provider.id}/{model.id}"
        context = TIERS.get((usage.service_tier or "").lower())
        rates = model.get_prices(at, context)
        rated = self._rated(rates) if context is None else Rated.of(vars(rates))
        missing = _missing_rate(rated, model, usage)
        if missing:
            self._say((entry, missing), "pricing: %s has no rate for %s", entry, missing)
            return Priced(None, None, f"{entry} has no rate for {missing}")
        total = plain_cost(vars(rates), usage, rated)
        if total is None:
            found = model.calc_price(_units(usage), provider, genai_request_timestamp=at, price_context=context)
            total = found.total_price
        return Priced(int(total * NANO), table_version(), entry)

    def _rated(self, rates: "types.ModelPrice") -> "Rated":
        found = self._of_rates.get(id(rates))
        if found is None:
            found = self._of_rates[id(rates)] = rates, Rated.of(vars(rates))
        return found[1]

    def _first_known(self, provider_id: str, host: str, names: list[str]) -> "types.ModelInfo | None":
        for name in names:
            model = self._model(provider_id, host, name.lower())
            if model is not None:
                return model
        return None

    def _find_provider(self, provider_id: str, host: str) -> "types.Provider | None":
        # The package's own look-up remembers every miss and every model name for ever; ours forgets.
        from genai_prices import data_snapshot

        providers = data_snapshot.get_snapshot().providers
        if provider_id:
            found = data_snapshot.find_provider_by_id(providers, provider_id)
            if found is not None:
                return found
        address = f"https://{host}"
        return next((provider for provider in providers if re.match(provider.api_pattern, address)), None)

    def _find_model(self, provider_id: str, host: str, name: str) -> "types.ModelInfo | None":
        from genai_prices import data_snapshot

        provider = self._provider(provider_id, host)
        if provider is None:
            return None
        return provider.find_model(name, all_providers=data_snapshot.get_snapshot().providers)

    def _say(self, key: object, message: str, *args: object) -> None:
        """Log *message* the first time that *key* comes up."""
        if key not in self._said and len(self._said) < SAID_AT_MOST:
            self._said.add(key)
            log.warning(message, *args)


@lru_cache(1)
def table_version() -> str:
    """Return the version of the installed table, ``genai-prices 0.2.3``."""
    return f"genai-prices {metadata.version('genai-prices')}"


@dataclass(frozen=True, slots=True)
class Rated:
    """What a model has rates for."""

    anything: bool
    input: bool
    output: bool
    plain: bool
    """``plain_cost`` finds its way among them."""

    @classmethod
    def of(cls, rates: Mapping[str, Any]) -> "Rated":
        known = {name for name, rate in rates.items() if rate is not None}
        per_token = [name for name in known if name.endswith("_mtok")]
        return cls(
            bool(known),
            any(name.startswith("input_") for name in per_token),
            any(name.startswith("output_") for name in per_token),
            known <= PLAIN_RATES,
        )


def plain_cost(rates: Mapping[str, Any], usage: Usage, rated: Rated | None = None) -> Decimal | None:
    """Return the US dollars of a *usage* of text and cache tokens alone, None where the table itself must be asked.

    Nine answers of ten are of this kind, and this is ten times as fast as the table's general rule; a test holds the
    two together over every model. *rates* are a model's, per million tokens, absent or None where it has none.
    """
    if usage.server_tools or usage.input_audio_tokens or usage.output_audio_tokens:
        return None
    if not (rated or Rated.of(rates)).plain:
        return None
    total_in = usage.input_tokens or 0
    per_in = _at(rates.get("input_mtok"), total_in)
    per_out = _at(rates.get("output_mtok"), total_in)
    if not usage.cache_read_input_tokens and not usage.cache_creation_input_tokens:
        return (total_in * per_in + (usage.output_tokens or 0) * per_out) / 1_000_000
    per_read = _at(rates.get("cache_read_mtok"), total_in, per_in)
    per_write = _at(rates.get("cache_write_mtok"), total_in, per_in)
    per_write_1h = _at(rates.get("cache_write_1h_mtok"), total_in, per_write)
    read, write = _cache_parts(usage)
    write_1h = min(usage.cache_creation_1h_input_tokens or 0, write)
    total = (total_in - read - write) * per_in + read * per_read
    total += (write - write_1h) * per_write + write_1h * per_write_1h
    return (total + (usage.output_tokens or 0) * per_out) / 1_000_000


PLAIN_RATES = frozenset({
    "input_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok", "output_mtok",
    # Of units that a plain usage has none of:
    "web_searches_kcount", "social_searches_kcount", "storage_searches_kcount", "code_executions_kcount",
    "input_audio_mtok", "cache_audio_read_mtok", "output_audio_mtok",
    "input_image_mtok", "cache_image_read_mtok", "output_image_mtok", "input_video_mtok", "output_video_mtok",
})  # fmt: skip
"""Rates among which ``plain_cost`` finds its way."""


def _at(rate: Any, total_in: int, otherwise: Decimal = Decimal(0)) -> Decimal:
    """Return what *rate* is for a request of *total_in* tokens: beyond a tier's start all tokens cost its price."""
    if rate is None:
        return otherwise
    if isinstance(rate, Decimal):
        return rate
    price: Decimal = rate.base
    for tier in rate.tiers:
        if total_in > tier.start:
            price = tier.price
    return price


def custom_cost(rates: Mapping[str, Any], usage: Usage) -> Decimal:
    """Return the US dollars of *usage* at the *rates* of ``cf-aig-custom-cost``: per single token, absent = 0.

    Cloudflare's rule (custom costs, 2026-09): with either cache rate given, the other one defaults to ``per_token_in``
    and only the fresh rest of the input costs ``per_token_in``; with neither, all input does.
    """
    per_in, per_out = _rate(rates, "per_token_in"), _rate(rates, "per_token_out")
    read, write = _cache_parts(usage)
    per_read, per_write = _rate(rates, "per_cache_read_token", per_in), _rate(rates, "per_cache_write_token", per_in)
    fresh = (usage.input_tokens or 0) - read - write
    return fresh * per_in + read * per_read + write * per_write + (usage.output_tokens or 0) * per_out


def _rate(rates: Mapping[str, Any], name: str, otherwise: Decimal = Decimal(0)) -> Decimal:
    value = rates.get(name)
    return otherwise if value is None else Decimal(str(value))


def reported_cost(usage: Usage) -> int | None:
    """Return the provider's own figure in nano-dollars, None where it gave none."""
    if usage.cost_reported_usd is None:
        return None
    try:
        return int(Decimal(str(usage.cost_reported_usd)) * NANO)
    except (ArithmeticError, ValueError):
        return None


def _cache_parts(usage: Usage) -> tuple[int, int]:
    """Return the input tokens that were (read from, written to) a cache.

    Parts larger than their whole say nothing (Azure's Grok reports 161 of 10 as cached, Cohere bills 135 of 1,600):
    they count as 0, so that all of the input has its usual price.
    """
    read, write = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return (read, write) if read + write <= (usage.input_tokens or 0) else (0, 0)


def _units(usage: Usage) -> Any:
    """Return *usage* in genai-prices' units. They nest as ours do; parts larger than their whole are left out."""
    from genai_prices import Usage as Units

    whole_in, whole_out = usage.input_tokens or 0, usage.output_tokens or 0
    counts: dict[str, int] = {"input_tokens": whole_in, "output_tokens": whole_out}
    read, write = _cache_parts(usage)
    if read:
        counts["cache_read_tokens"] = read
    if write:
        counts["cache_write_tokens"] = write
        counts["cache_write_1h_tokens"] = min(usage.cache_creation_1h_input_tokens or 0, write)
    audio = usage.input_audio_tokens or 0
    if 0 < audio <= whole_in - write:
        counts["input_audio_tokens"] = audio
        if read:
            # Told or not, the overlap of "cached" and "audio" must be named, or the table refuses the sum.
            counts["cache_audio_read_tokens"] = _cached_audio(usage, audio, read, whole_in - write)
    if 0 < (usage.output_audio_tokens or 0) <= whole_out:
        counts["output_audio_tokens"] = usage.output_audio_tokens or 0
    if 0 < (usage.reasoning_output_tokens or 0) <= whole_out - counts.get("output_audio_tokens", 0):
        counts["output_reasoning_tokens"] = usage.reasoning_output_tokens or 0
    for tool, calls in usage.server_tools.items():
        unit = TOOLS.get(tool)
        if unit:
            counts[unit] = counts.get(unit, 0) + calls
    return Units(**counts)


def _cached_audio(usage: Usage, audio: int, read: int, both: int) -> int:
    """Return how many tokens are audio and cached, within what the other counts allow: both kinds fit into *both*."""
    least = max(0, audio + read - both)
    return min(max(usage.cache_read_audio_tokens or 0, least), audio, read)


def _missing_rate(rated: Rated, model: "types.ModelInfo", usage: Usage) -> str | None:
    """Return what was used and has no rate, None where all has one. An entry named ``…:free`` needs none."""
    if model.id.endswith(":free"):
        return None
    if usage.input_tokens and not rated.input:
        return "input tokens"
    if usage.output_tokens and not rated.output:
        return "output tokens"
    return None if rated.anything else "anything"


PRICES = Prices()
"""The gateway's table."""
