"""Close the books of an exchange: how it ended, and what is missing is estimated.

Runs once per exchange, when nothing more can happen to it. Prices are looked up later, in the writer's thread.
"""

from mitmgate.clock import Clock
from mitmgate.dialects.estimate import fill_estimates
from mitmgate.exchange import Exchange
from mitmgate.terminal import terminal


class Account:
    name = "mitmgate.account"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def settle(self, x: Exchange) -> None:
        x.ended = self.clock.now()
        x.terminal = terminal(x.reading, x.how or "failed", x.streaming)
        x.error_type = error_type(x)
        if x.first_content is None and x.reading.first_content:
            x.first_content = x.ended
        answered = x.status is not None and x.status < 400 and x.source == "provider"
        if answered and x.reading.first_content:
            fill_estimates(x.reading, x.request)


def error_type(x: Exchange) -> str | None:
    """Return the row's ``error_type``: our own reason, else the provider's, else what broke the last attempt."""
    if x.refusal:
        return x.refusal.error_type or str(x.refusal.status)
    if x.reading.error_type:
        return x.reading.error_type
    if x.how in ("cut", "timeout", "failed") and x.attempts:
        return x.attempts[-1].error_type
    if x.status is not None and x.status >= 400:
        return str(x.status)
    return None
