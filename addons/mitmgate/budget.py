"""Hold what is spent within what may be spent, and send calls to a cheaper model before the end (policy: ``budget``).

Runs behind ``cache``, so that a hit costs nobody anything, and before ``route``, which obeys a downgrade. What a call
may cost is reserved before it goes, from an estimate; ``spend`` settles it. What ``limit`` counts behind the cache is
reserved in the same breath: all of it, or none.

    soft        an event when it is passed; ``spend`` sees it
    downgrade   from this share of what is settled on, calls go to another model or target
    hard        what is settled, reserved and estimated must fit, or the call is refused, or recorded

A price that nobody knows is never 0 without a word: ``unpriced`` says whether such a call is refused, counts nothing
and is flagged, or counts what the policy assumes. A client's own ``cf-aig-custom-cost`` can only make a call dearer.

A call that is bound to its model (``budget_downgrade``) is not downgraded, nor one that would cost no less there, nor
one whose provider has no such model; its row says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from mitmgate.budget_downgrade import bound
from mitmgate.charges import Charge, Standing, tightest
from mitmgate.counters import Counter, again, is_counted, left, longest, mark, named
from mitmgate.dialects.base import Usage
from mitmgate.errors import Refusal
from mitmgate.exchange import Event, Exchange
from mitmgate.fields import Get, fields_of
from mitmgate.limit_lengths import Lengths, Need
from mitmgate.policy import Policy, values
from mitmgate.policy.match import Rules, acts
from mitmgate.policy.units import show_money
from mitmgate.policy.values import Choice
from mitmgate.pricing import PRICES, UNUSED, Priced, Prices
from mitmgate.providers import TABLE, Hosts
from mitmgate.rewrite import ANYWHERE, is_alias
from mitmgate.store.ledger import Ledger

type Rule = Counter[values.Budget]

NEVER = "So dear a call never fits: send less, or ask for a shorter answer"
"""Where waiting does not help."""


class Limited(Protocol):
    """What ``limit`` counts together with the money."""

    def rest(self, x: Exchange, get: Get) -> tuple[list[Counter[values.Limit]], list[Counter[values.Limit]]]: ...

    def hear(self, x: Exchange, standings: Sequence[Standing]) -> None: ...


@dataclass(slots=True)
class Estimate:
    """What a call may use and cost."""

    tokens: int
    table: Priced
    """By the price table."""
    custom_nanousd: int
    """By the request's own prices; 0 where it brings none."""

    def claim(self, unpriced: int) -> int:
        """Return the nano-dollars to reserve, *unpriced* where the table knows no price."""
        priced = unpriced if self.table.cost_nanousd is None else self.table.cost_nanousd
        return max(priced, self.custom_nanousd)


@dataclass(slots=True)
class Place:
    """Where a call may be answered, as far as its price goes."""

    prices_id: str
    host: str
    model: str | None
    names: tuple[str, ...]
    """By which the model's price may be known, best first."""


class Budget:
    name = "mitmgate.budget"

    def __init__(
        self,
        policy: Policy,
        hosts: Hosts,
        ledger: Ledger,
        limit: Limited,
        lengths: Lengths,
        prices: Prices = PRICES,
    ) -> None:
        self.policy, self.hosts, self.ledger = policy, hosts, ledger
        self.limit, self.lengths, self.prices = limit, lengths, prices
        self.counters = {rule.name: _counter(policy, rule) for rule in policy.budget}
        """Rule -> its counter."""
        self.rules = Rules(self.counters.values())
        self.idle = not policy.budget and all(rule.tokens is None for rule in policy.limit)
        self.deployed = {
            (_host(target), deployment): model
            for target in policy.targets.values()
            for model, deployment in target.deployments.items()
        }
        """(host, deployment) -> the model that it is."""

    def admit(self, x: Exchange) -> None:
        """Reserve what *x* may use and cost, perhaps of a cheaper model, or refuse it."""
        if self.idle or not is_counted(x):
            return
        get = fields_of(x)
        calls, tokens = self.limit.rest(x, get)
        counters = self.rules.fitting(get)
        charges = [counter.charge(get, 1) for counter in calls]
        if tokens or counters:
            self._downgrade(x, get, counters)
            estimate = self._estimate(x, priced=bool(counters))
            if self._refuses_unpriced(x, counters, estimate):
                return
            charges += [counter.charge(get, estimate.tokens) for counter in tokens]
            charges += [self._charge(x, get, counter, estimate) for counter in counters]
        if charges:
            self._reserve(x, charges, len(calls), len(tokens))

    def _reserve(self, x: Exchange, charges: list[Charge], calls: int, tokens: int) -> None:
        """Reserve *charges*: first *calls* of them, then *tokens*, and the rest is money; or refuse *x*."""
        standings = self.ledger.reserve(x.id, charges)
        self.limit.hear(x, standings[:calls])
        self._hear(x, standings[calls + tokens :])
        self.limit.hear(x, standings[calls : calls + tokens])

    def _charge(self, x: Exchange, get: Get, counter: Rule, estimate: Estimate) -> Charge:
        unpriced = counter.rule.unpriced
        assumed = unpriced if isinstance(unpriced, int) else 0
        charge = counter.charge(get, estimate.claim(assumed))
        # A rule that refuses what has no price keeps the estimate where the answer turns out to have none.
        x.assumed[charge.counter] = charge.amount if unpriced == "refuse" else assumed
        if estimate.table.cost_nanousd is None and unpriced == "allow":
            x.events.append(unknown(counter.rule, estimate.table))
        return charge

    # -- how much

    def _estimate(self, x: Exchange, *, priced: bool) -> Estimate:
        """Return what *x* may use and cost: of several places that may answer, at the dearest."""
        places = self._places(x)
        needs = [(place, self.lengths.need(x, place.model)) for place in places]
        tokens = max(need.total for _, need in needs)
        if not priced:
            return Estimate(tokens, UNUSED, 0)
        tables = [self._price(x, place, need) for place, need in needs]
        custom = x.controls.get("custom-cost")
        customs = [self._price(x, place, need, custom) for place, need in needs] if custom else []
        return Estimate(tokens, _dearest(tables), max((price.cost_nanousd or 0 for price in customs), default=0))

    def _price(self, x: Exchange, place: Place, need: Need, custom: Mapping[str, Any] | None = None) -> Priced:
        usage = Usage(input_tokens=need.input, output_tokens=need.output)
        at = datetime.fromtimestamp(x.started_wall, UTC)
        return self.prices.price(place.prices_id, place.host, place.names, usage, at, custom)

    def _places(self, x: Exchange) -> list[Place]:
        if x.downgrade:
            return [self._place(x, x.downgrade)]
        if is_alias(x):
            rule = acts(self.policy.route, fields_of(x))
            choices = choices_of(rule) if rule else []
            return [self._place(x, choice) for choice in choices] or [self._place(x, ANYWHERE)]
        return [self._place(x, ANYWHERE)]

    def _place(self, x: Exchange, choice: Choice) -> Place:
        target = self.policy.targets.get(choice.target or x.target or "")
        provider = self.hosts.providers.get(target.provider) if target else x.provider
        host = _host(target) if target else x.host.lower()
        model = choice.model or x.request.model
        in_body = None if choice.model or not isinstance(x.json, dict) else x.json.get("model")
        known = [self.deployed.get((host, model or "")), model, in_body if in_body != model else None]
        names = tuple([name for name in known if isinstance(name, str) and name])
        return Place(provider.prices if provider else "", host, model, names)

    # -- a cheaper place

    def _downgrade(self, x: Exchange, get: Get, counters: list[Rule]) -> None:
        steps = [(counter, counter.rule.downgrade) for counter in counters if counter.rule.downgrade]
        if not steps:
            return
        standings = self.ledger.standing([counter.charge(get, 0) for counter, _ in steps])
        for (counter, step), standing in zip(steps, standings, strict=True):
            if standing.used >= mark(standing, step.at) and x.downgrade is None:
                self._step_down(x, counter.rule, Choice(step.target, step.model), standing)

    def _step_down(self, x: Exchange, rule: values.Budget, choice: Choice, standing: Standing) -> None:
        """Send *x* to *choice*, unless it goes there already or has to stay as it is."""
        if _is_there(x, choice):
            return
        why = bound(x, to_other_model=choice.model is not None) or self._unwise(x, choice)
        if why:
            x.notes.append(f"budget: {rule.name} does not downgrade this call: {why}")
            return
        detail = f"{x.request.model} to {choice.model or choice.target}: {left(standing)}"
        x.events.append(Event("budget", rule.name, "downgrade", rule.shadow, detail))
        if not rule.shadow:
            x.downgrade = choice
            x.route_notes.append(f"downgraded; rule={rule.name}")

    def _unwise(self, x: Exchange, choice: Choice) -> str | None:
        """Return why *x* is better not asked of *choice*'s model."""
        if choice.model is None:
            return None
        asked, cheap = self._place(x, ANYWHERE), self._place(x, choice)
        if not self.prices.knows(cheap.prices_id, cheap.host, choice.model) and self._is_elsewhere(choice.model):
            return f"{x.provider.slug if x.provider else x.host} has no model {choice.model}"
        need = self.lengths.need(x, asked.model)  # the same words for both: what is compared are prices, not manners
        now, then = (self._price(x, place, need).cost_nanousd for place in (asked, cheap))
        if now is not None and then is not None and then >= now:
            return f"{choice.model} would cost no less"
        return None

    def _is_elsewhere(self, model: str) -> bool:
        """True where another provider is known to have *model*; of a name that nobody knows the policy knows best."""
        return any(self.prices.knows(row.prices, "", model) for row in TABLE if row.prices)

    # -- what the ledger said

    def _hear(self, x: Exchange, standings: Sequence[Standing]) -> None:
        if not standings:
            return
        acting = [standing for standing in standings if not self._rule(standing).shadow]
        x.budget_standing = tightest(acting)
        for standing in standings:
            if standing.full:
                rule = self._rule(standing)
                action = "refuse" if rule.hard == "refuse" else "hard"
                x.events.append(Event("budget", rule.name, action, rule.shadow, left(standing)))
        full = [standing for standing in acting if standing.full and standing.charge.refuses]
        if full:
            standing = longest(full)
            x.refuse(self._refusal(self._rule(standing), self._no_room(standing), standing.wait_s))

    def _rule(self, standing: Standing) -> values.Budget:
        counter: Rule = self.counters[standing.charge.rule]
        return counter.rule

    def _no_room(self, standing: Standing) -> str:
        charge, wait_s = standing.charge, standing.wait_s
        needed = f"has no room for this call, which may cost {show_money(charge.amount)}"
        full = f"Budget {charge.rule} {needed if standing.left else 'is spent'}: {left(standing)}."
        return f"{full} {NEVER if wait_s is None else again('cost', wait_s)}"

    def _refuses_unpriced(self, x: Exchange, counters: list[Rule], estimate: Estimate) -> bool:
        """Refuse a call without a price where a rule says so."""
        strict = [counter.rule for counter in counters if counter.rule.unpriced == "refuse"]
        if not strict or estimate.table.cost_nanousd is not None:
            return False
        why = estimate.table.detail or f"no price is known for {x.request.model}"
        for rule in strict:
            x.events.append(Event("budget", rule.name, "refuse", rule.shadow, why))
        acting = next((rule for rule in strict if not rule.shadow), None)
        if acting is None:
            return False
        message = f"Budget {acting.name} refuses what has no known price: {why}. Ask for another model"
        x.refuse(self._refusal(acting, message, None))
        return True

    def _refusal(self, rule: values.Budget, message: str, wait_s: float | None) -> Refusal:
        where = self.counters[rule.name].where
        return Refusal(
            429,
            "insufficient_quota",
            f"{message} ({named(rule.name, where)}).",
            source="budget",
            error_type="insufficient_quota",
            rule=rule.name,
            where=where,
            retry_after_s=wait_s,
            should_retry=False,
        )


def unknown(rule: values.Budget, price: Priced) -> Event:
    """Return the event of a call whose price nobody knows, and which *rule* lets go for nothing."""
    return Event("budget", rule.name, "flag", rule.shadow, f"{price.detail or 'no price is known'}: it counts as 0 USD")


def choices_of(rule: values.Route) -> list[Choice]:
    """Return every place that *rule* may choose."""
    ways: list[values.Route | values.Branch] = [rule, *rule.choose]
    return [choice for way in ways for choice in (*way.tries, *(place for place, _ in way.split))]


def _is_there(x: Exchange, choice: Choice) -> bool:
    if choice.model is not None:
        return choice.model.lower() == (x.request.model or "").lower()
    return choice.target == x.target


def _dearest(prices: Sequence[Priced]) -> Priced:
    """Return the highest of *prices*, one that is unknown only where all are."""
    return max(prices, key=lambda price: -1 if price.cost_nanousd is None else price.cost_nanousd)


def _host(target: values.Target) -> str:
    return (urlsplit(target.base_url).hostname or "").lower()


def _counter(policy: Policy, rule: values.Budget) -> Rule:
    refuses = rule.hard == "refuse" and not rule.shadow
    return Counter(policy, "budget", rule, "cost", rule.cost_nanousd, refuses)
