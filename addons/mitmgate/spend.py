"""Settle limits and budgets: what was reserved from an estimate becomes what was used.

Runs once for each exchange, behind ``account``, before its row is written, on every way out: an answer, an error, an
abort, a clock, a crash of another room. It counts what the row will say (``bill``):

    refused by a rule            nothing, not even the request
    out of the cache             the request
    an error of the provider     the request, and what the provider reported
    an answer, whole or not      the request, and the tokens and money of all attempts; estimated where unreported

A budget counts the larger of the table's price and the one that the request itself named; where the table has none,
what ``unpriced`` says. Whatever was reserved beyond that is given back, slots always.
"""

from mitmgate.bill import Bill, bill_of
from mitmgate.charges import Charge, Settled, Unit
from mitmgate.counters import is_counted, left, mark
from mitmgate.exchange import Event, Exchange
from mitmgate.limit_lengths import Lengths
from mitmgate.policy import Policy, values
from mitmgate.pricing import PRICES, Prices
from mitmgate.store.ledger import Ledger, nothing


class Spend:
    name = "mitmgate.spend"

    def __init__(self, policy: Policy, ledger: Ledger, lengths: Lengths, prices: Prices = PRICES) -> None:
        self.ledger, self.lengths, self.prices = ledger, lengths, prices
        self.budgets = {rule.name: rule for rule in policy.budget}
        self.idle = not policy.limit and not policy.budget
        self.counts_use = bool(policy.budget) or any(rule.tokens is not None for rule in policy.limit)

    def settle(self, x: Exchange) -> None:
        """Settle all that *x* had reserved, and record what it has passed."""
        if self.idle or not is_counted(x):
            return
        self.lengths.note(x)
        if was_refused(x):
            self.ledger.release(x.id, nothing)
        elif not self.counts_use:
            self.ledger.settle(x.id, ONE_REQUEST, hears=nothing)
        else:
            self._settle(x, bill_of(x, self.prices, priced=bool(x.assumed)))

    def _settle(self, x: Exchange, bill: Bill) -> None:
        hears = self._has_marks if bill.table_nanousd is not None else _is_money
        for settled in self.ledger.settle(x.id, self._used(x, bill), _apart(x, bill), hears):
            self._tell(x, self.budgets[settled.charge.rule], settled, bill)

    def _has_marks(self, charge: Charge) -> bool:
        """Return whether it is to be said when the counter of *charge* passes a mark."""
        if charge.room != "budget":
            return False
        rule = self.budgets[charge.rule]
        return rule.soft is not None or rule.hard == "record"

    def _used(self, x: Exchange, bill: Bill) -> dict[Unit, int]:
        """Return what *x* used, by unit."""
        tokens = self.lengths.need(x, x.request.model).total if bill.tokens is None else bill.tokens
        return {"requests": 1, "tokens": max(tokens, 0), "cost": cost_of(bill, 0)}

    def _tell(self, x: Exchange, rule: values.Budget, settled: Settled, bill: Bill) -> None:
        """Record what the call has done to a budget."""
        standing = settled.standing
        for action, share in (("soft", rule.soft), ("hard", 1.0 if rule.hard == "record" else None)):
            if share is not None and settled.before < mark(standing, share) <= standing.used:
                self._record(x, rule, action, left(standing))
        if bill.table_nanousd is None and rule.unpriced == "allow":
            self._record(x, rule, "flag", "no price is known for its answer: it counts as 0 USD")

    def _record(self, x: Exchange, rule: values.Budget, action: str, detail: str) -> None:
        """Record *action*, unless the row says it already."""
        if not any((event.room, event.rule, event.action) == ("budget", rule.name, action) for event in x.events):
            x.events.append(Event("budget", rule.name, action, rule.shadow, detail, x.ended))


ONE_REQUEST: dict[Unit, int] = {"requests": 1}


def _is_money(charge: Charge) -> bool:
    return charge.room == "budget"


def was_refused(x: Exchange) -> bool:
    """True where a rule said no: nothing was asked of a provider for it, nor of whoever asked the same."""
    return x.refusal is not None and not x.attempts and x.replay is None


def _apart(x: Exchange, bill: Bill) -> dict[str, int]:
    """Return what *x* used of each budget where nobody knows its price, by counter: their rules say what it counts."""
    if bill.table_nanousd is not None:
        return {}
    return {counter: cost_of(bill, assumed) for counter, assumed in x.assumed.items()}


def cost_of(bill: Bill, assumed: int) -> int:
    """Return what a budget counts, in nano-dollars; *assumed* where the table has no price."""
    table = assumed if bill.table_nanousd is None else bill.table_nanousd
    return max(table, bill.cost_nanousd or 0, 0)
