"""What a call is likely to use, before anybody knows: its input is estimated, its output bounded or learned.

``limit`` and ``budget`` reserve by it, ``spend`` tells it how long answers really were. The output of a call is the
bound that its own body sets; without one, what 95 of 100 answers of that model stayed below lately; of a model that is
new, 1,000 tokens. What outlives a policy here is learned by each worker for itself: it is a guess, and no count.
"""

from dataclasses import dataclass

from mitmgate.dialects.base import Json
from mitmgate.exchange import Exchange
from mitmgate.lately import PerTarget, Samples

FIRST_TOKENS = 1000
"""Of a model that has not answered often enough."""

PERCENT = 95

WORDLESS = frozenset({"embeddings"})
"""Operations whose answers have no tokens."""

CHOICES = ("n", "best_of", "candidateCount", "candidate_count")
"""How bodies ask for several answers at once; the bound is for each of them."""

CONFIGS = ("generationConfig", "generation_config")
"""Where in a body they may stand, too."""

MULTIPLIERS = frozenset({*CHOICES, *CONFIGS})

MOST_CHOICES = 128
"""No provider makes more of them."""


@dataclass(slots=True)
class Need:
    """What a call may use, in tokens."""

    input: int
    output: int

    @property
    def total(self) -> int:
        return self.input + self.output


class Lengths:
    """How long the answers of each model lately were."""

    def __init__(self) -> None:
        self._outputs = PerTarget(Samples)

    def need(self, x: Exchange, model: str | None) -> Need:
        """Return what *x* may use where *model* answers it."""
        if x.operation in WORDLESS:
            return Need(x.request.input_tokens_estimate, 0)
        output = x.request.max_output_tokens
        if output is None:
            output = self._usual(model)
        return Need(x.request.input_tokens_estimate, output * choices(x.json))

    def note(self, x: Exchange) -> None:
        """Learn from the answer of the finished exchange *x*: a whole one whose tokens were reported.

        An answer that its own body had bounded to what it came to says nothing about one that nothing bounds.
        """
        reading, attempt = x.reading, x.answering
        output = reading.usage.output_tokens
        if attempt is None or x.source != "provider" or x.terminal != "complete":
            return
        if not output or reading.usage_source != "reported" or output >= (x.request.max_output_tokens or output + 1):
            return
        asked = None if x.downgrade else x.request.model  # a cheaper model says nothing of the one asked for
        for model in {name.lower() for name in (attempt.model, asked, reading.response_model) if name}:
            self._outputs[model].add(output / choices(x.json))

    def _usual(self, model: str | None) -> int:
        usual = self._outputs[(model or "").lower()].percentile(PERCENT)
        return FIRST_TOKENS if usual is None else round(usual)


def choices(body: Json) -> int:
    """Return how many answers *body* asks for at once."""
    if not isinstance(body, dict):
        return 1
    if MULTIPLIERS.isdisjoint(body):
        return 1
    config = next((body[name] for name in CONFIGS if body.get(name)), None)
    places = [body, config] if isinstance(config, dict) else [body]
    asked = [place.get(name) for place in places for name in CHOICES]
    return min(max([1, *(one for one in asked if isinstance(one, int) and not isinstance(one, bool))]), MOST_CHOICES)
