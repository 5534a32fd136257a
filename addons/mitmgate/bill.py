"""What an exchange used and what it cost: one sum for its row, its limits and its budgets, so that they never differ.

An attempt carries its own usage and cost, the exchange is the sum of those that reported any (or were estimated). Null
is unknown: a sum of counts leaves it out, a sum of money with a gap is no sum.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mitmgate.dialects.base import Reading, Usage
from mitmgate.exchange import Attempt, Exchange, Origin
from mitmgate.pricing import PRICES, Priced, Prices
from mitmgate.providers import TABLE, Provider

INT_MAX = 2**63 - 1
"""SQLite's largest integer; no honest count is near it."""

PRICES_OF: Mapping[str, str] = {provider.provider_name: provider.prices for provider in TABLE if provider.prices}
"""OpenTelemetry's provider name -> genai-prices' id, for attempts at another provider than the one asked."""


@dataclass(slots=True)
class Answer:
    """What a price needs to know of one answer."""

    reading: Reading
    prices_id: str
    host: str
    models: tuple[str | None, ...]

    @property
    def used(self) -> bool:
        """It says what it used, or somebody has estimated it."""
        usage = self.reading.usage
        return usage.input_tokens is not None or usage.output_tokens is not None

    def price(self, prices: Prices, wall: float, custom: Mapping[str, Any] | None = None) -> Priced:
        """Return what it cost at *wall*, seconds since 1970: at *custom* prices, else the table's."""
        at = datetime.fromtimestamp(wall, UTC)
        return prices.price(self.prices_id, self.host, self.models, self.reading.usage, at, custom)


@dataclass(slots=True)
class Bill:
    """What an exchange used of limits and budgets. What came out of the cache used nothing."""

    tokens: int | None
    """Input and output of all attempts; 0 where none was used, None where the sum is nothing a column could hold."""
    cost_nanousd: int | None
    """What its row says; None = unknown, 0 where nothing was used."""
    table_nanousd: int | None
    """The same by the table alone, whatever prices the request itself named."""


def bill_of(x: Exchange, prices: Prices = PRICES, *, priced: bool = True) -> Bill:
    """Return the bill of the finished exchange *x*; without money (``0``) where it is not to be *priced*."""
    answers = [answer_of(x, attempt, attempt.reading) for attempt in x.attempts]
    used = [answer for answer in answers if answer.used]
    tokens = total_tokens([answer.reading.usage for answer in used]) if used else 0
    if not used or not priced:
        return Bill(tokens, 0, 0)
    custom = x.controls.get("custom-cost")
    table = _sum(x, [answer.price(prices, x.started_wall).cost_nanousd for answer in used])
    if custom is None:
        return Bill(tokens, table, table)
    return Bill(tokens, _sum(x, [answer.price(prices, x.started_wall, custom).cost_nanousd for answer in used]), table)


def _sum(x: Exchange, costs: list[int | None]) -> int | None:
    """Return the cost of *x*: of what was spent beside an old answer that stood in, what is known of it."""
    return sum_known(costs) or 0 if x.source == "cache" else sum_all(costs)


def total_tokens(usages: Iterable[Usage]) -> int | None:
    """Return ``input_tokens`` + ``output_tokens`` of the row that sums up *usages*, not empty."""
    usages = list(usages)
    total_in = sum_known([usage.input_tokens for usage in usages])
    return sum_known([total_in, sum_known([usage.output_tokens for usage in usages])])


def answer_of(x: Exchange, origin: Origin | Attempt | None, reading: Reading) -> Answer:
    """Return what *reading* says, of the answer that came from *origin*."""
    host = origin.host if origin else x.host
    asked = (origin and origin.model) or x.request.model
    return Answer(reading, prices_id(x.provider, origin), host, (reading.response_model, asked))


def prices_id(asked: Provider | None, origin: Origin | Attempt | None) -> str:
    """Return genai-prices' id of the provider at *origin*; empty where only its host can tell."""
    if asked and (origin is None or origin.provider_name == asked.provider_name):
        return asked.prices
    return PRICES_OF.get(origin.provider_name, "") if origin else ""


def sum_known(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return storable(sum(known)) if known else None


def sum_all(numbers: list[int | None]) -> int | None:
    """Return the sum, None where a part of it is unknown: a bill with a gap is no bill."""
    return None if None in numbers else sum_known(numbers)


def storable(number: int | None) -> int | None:
    """Return *number*, None where it is nothing that a column can hold."""
    return number if number is not None and -INT_MAX <= number <= INT_MAX else None
