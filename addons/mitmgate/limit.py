"""Let so many requests through in so much time, so many tokens, so many calls at once (policy: ``limit``).

Requests and calls at once are asked about before ``cache``: a hit counts as a request, too. Tokens are asked about
behind it, together with the money of ``budget``, because a hit has none. Of a request that ``cache`` has no say in, all
of it is asked about there, at once. Every rule that matches has to have room, else the request is refused with 429 and
nothing is counted anywhere; ``spend`` settles what was counted.

A rule with ``shadow`` counts what really goes through and says when it would have said no. Exactness is the ledger's:
see ``store/ledger``.
"""

from collections.abc import Sequence

from mitmgate import cache_rules
from mitmgate.charges import Standing, Unit, tightest
from mitmgate.counters import Counter, again, is_counted, left, longest, named, said, should_retry
from mitmgate.errors import Refusal
from mitmgate.exchange import Event, Exchange
from mitmgate.fields import Get, fields_of
from mitmgate.policy import Policy, values
from mitmgate.policy.match import Rules
from mitmgate.store.ledger import Ledger

HOW_FULL: dict[Unit, str] = {
    "requests": "Limit {rule} is full: {left}.",
    "concurrent": "Limit {rule} is full: {left}.",
    "tokens": "Limit {rule} has no room for this call, which may use {needed}: {left}.",
}

NEVER: dict[Unit, str] = {
    "requests": "It lets none through",
    "concurrent": "It lets none through",
    "tokens": "So large a call never fits: send less, or ask for a shorter answer",
}
"""Where waiting does not help."""


type Rule = Counter[values.Limit]


class Limit:
    name = "mitmgate.limit"

    def __init__(self, policy: Policy, ledger: Ledger) -> None:
        self.ledger, self.cache = ledger, Rules(policy.cache)
        counters = {rule.name: _counter(policy, rule) for rule in policy.limit}
        self.counters = counters
        """Rule -> its counter."""
        self.at_once = Rules(counter for counter in counters.values() if counter.unit != "tokens")
        self.behind_cache = Rules(counter for counter in counters.values() if counter.unit == "tokens")
        self.is_alone = not policy.budget and not self.behind_cache
        """Nothing is asked about behind the cache."""

    def admit(self, x: Exchange) -> None:
        """Count *x* as a request and as a call under way, or refuse it."""
        if not self.at_once or not is_counted(x):
            return
        get = fields_of(x)
        if self._waits(x, get):
            return
        charges = [counter.charge(get, 1) for counter in self.at_once.fitting(get)]
        if charges:
            self.hear(x, self.ledger.reserve(x.id, charges))

    def _waits(self, x: Exchange, get: Get) -> bool:
        """Return whether *x* is counted behind the cache: one transaction is cheaper than two."""
        if self.is_alone:
            return False
        if not self.cache and not x.controls:
            return True
        return cache_rules.decide(self.cache.likely(get), x.controls, x.headers, get) is None

    def rest(self, x: Exchange, get: Get) -> tuple[list[Rule], list[Rule]]:
        """Return the counters that *x* has to be counted by behind the cache: as one request, and by its tokens."""
        waiting = self.at_once.fitting(get) if self.at_once and self._waits(x, get) else []
        return waiting, self.behind_cache.fitting(get)

    def hear(self, x: Exchange, standings: Sequence[Standing]) -> None:
        """Hear how the counters of this room stand, now that *x* was counted or refused."""
        if not standings:
            return
        acting = [standing for standing in standings if standing.charge.refuses]
        met = acting if x.limit_standing is None else [x.limit_standing, *acting]
        x.limit_standing = tightest(met)
        for standing in standings:
            if standing.full:
                charge = standing.charge
                x.events.append(Event("limit", charge.rule, "refuse", not charge.refuses, left(standing)))
        full = [standing for standing in acting if standing.full]
        if full:
            x.refuse(self._refusal(longest(full)))

    def _refusal(self, standing: Standing) -> Refusal:
        charge, wait_s = standing.charge, standing.wait_s
        where = self.counters[charge.rule].where
        full = HOW_FULL[charge.unit].format(rule=charge.rule, left=left(standing), needed=said("tokens", charge.amount))
        then = NEVER[charge.unit] if wait_s is None else again(charge.unit, wait_s)
        return Refusal(
            429,
            "rate_limit",
            f"{full} {then} ({named(charge.rule, where)}).",
            source="rate-limit",
            error_type="rate_limit",
            rule=charge.rule,
            where=where,
            retry_after_s=wait_s,
            should_retry=should_retry(wait_s),
        )


def _counter(policy: Policy, rule: values.Limit) -> Counter[values.Limit]:
    """Return the counter of *rule*, which has one of the three counts."""
    counts: dict[Unit, int | None] = {
        "requests": rule.requests,
        "tokens": rule.tokens,
        "concurrent": rule.concurrent,
    }
    unit, most = next((unit, count) for unit, count in counts.items() if count is not None)
    return Counter(policy, "limit", rule, unit, most, not rule.shadow)
