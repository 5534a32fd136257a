"""What the limits and budgets of a running gateway have counted, as its own ledger tells it."""

from typing import NamedTuple

from mitmgate.counters import Counter
from mitmgate.limit import Limit
from support.gateway import Gateway

COUNTERS = """
limit:
  - {name: burst, per: tenant, requests: 100, every: 1 h}
  - {name: parallel, per: tenant, concurrent: 10}
  - {name: tokens, per: tenant, tokens: 1_000_000, every: 1 h}
budget:
  - {name: money, per: tenant, cost: 10 USD, every: 1 h}
"""
"""A policy with one rule of each unit."""


class Count(NamedTuple):
    used: int
    reserved: int
    """Of calls under way."""


def counts(gateway: Gateway, **fields: str) -> dict[str, Count]:
    """Return rule -> how its counter stands for the call that *fields* are of: ``tenant="acme"``."""
    policy, ledger = gateway.chain.policy, gateway.chain.state.ledger
    limits = Limit(policy, ledger).counters.values()
    budgets = [Counter(policy, "budget", rule, "cost", rule.cost_nanousd, True) for rule in policy.budget]
    charges = [counter.charge(fields.get, 0) for counter in (*limits, *budgets)]
    standings = ledger.standing(charges)
    return {standing.charge.rule: Count(standing.used, standing.reserved) for standing in standings}


NOTHING = {rule: Count(0, 0) for rule in ("burst", "parallel", "tokens", "money")}
ONE_REQUEST = NOTHING | {"burst": Count(1, 0)}
