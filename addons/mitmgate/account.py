"""Close the books of an exchange: how it ended, and what is missing is estimated.

Runs once per exchange, when nothing more can happen to it. Prices are looked up later, in the writer's thread.
"""

from mitmgate.clock import Clock
from mitmgate.dialects.estimate import fill_estimates
from mitmgate.exchange import Exchange, How, Terminal
from mitmgate.terminal import terminal

BROKEN: dict[How | None, str] = {"cut": "reset", "timeout": "timeout"}
"""What to call it where an answer broke off that somebody else's attempt brought."""


class Account:
    name = "mitmgate.account"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def settle(self, x: Exchange) -> None:
        x.ended = self.clock.now()
        x.terminal = _terminal(x)
        x.error_type = error_type(x)
        if x.first_content is None and x.reading.first_content:
            x.first_content = (x.answer.first_content if x.attempts else None) or x.ended
        answered = x.status is not None and x.status < 400 and (x.source == "provider" or _is_replayed(x))
        if (answered or _is_stopped(x)) and x.reading.first_content:
            fill_estimates(x.reading, x.request)


def _terminal(x: Exchange) -> Terminal:
    if x.left_early:
        return "timeout" if x.how == "timeout" else "client_abort"
    return terminal(x.reading, x.how or "failed", x.streaming)


def _is_replayed(x: Exchange) -> bool:
    """True where its answer is somebody else's and whole: one that is still being read must not be estimated."""
    return x.source == "cache" and x.reading.ended


def _is_stopped(x: Exchange) -> bool:
    """True where a guard has ended an answer that the provider had begun: what it had said is billed."""
    return x.source == "guard" and bool(x.attempts)


def error_type(x: Exchange) -> str | None:
    """Return the row's ``error_type``: our own reason, else the provider's, else what broke the last attempt."""
    if x.refusal:
        return x.refusal.error_type or str(x.refusal.status)
    if x.reading.error_type:
        return x.reading.error_type
    if x.how in ("cut", "timeout", "failed") and x.answering:
        return x.answering.error_type
    if x.how in BROKEN:
        return BROKEN[x.how]
    if x.status is not None and x.status >= 400:
        return str(x.status)
    return None
