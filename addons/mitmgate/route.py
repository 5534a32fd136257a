"""Decide which places may answer a request, in which order (policy: ``route``, ``targets``, ``hedge``).

Runs after ``cache``, before ``upstream``, for every exchange. The order of places comes from the first of these that
says something:

1. ``cf-aig-fallback: a, b``: the whole order; the request's own host only if a target stands there. ``none``: of what
   would be there without the header, the first alone.
2. The first rule that matches and chooses places: ``try`` in order; ``split`` draws one by weight, and nothing stands
   in for it, because a canary that fails should be seen; ``choose`` takes the first branch whose conditions hold.
3. The request's own host.

With ``by``, a split gives each value of the field its place for ever (SHA-256 of the rule's name and the value), and a
``try`` begins for ten minutes where that value was last answered. A request without the field is drawn anew.

What cannot be moved stays at its own host: calls that generate nothing, uploads that are still running, requests that
are signed (but to a target by which they are signed anew). A target that does not take the request, or for which there
is no key (``route_keys``), is left out with a note; if a rule has no other, the own host stands.

A budget may send a request to another target, or have it ask for a cheaper model wherever it goes; where that cannot
be, it goes as without.

Promise: a ``zone`` holds whatever else says so. Every matching rule that names one counts, not only the first, and
neither a header, nor another rule, nor a hedge uses a place of another zone or of none; a rule with nothing but a zone
chooses no places, so the rules after it still do. Rules are asked about the request as it came.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from mitmgate.errors import Refusal
from mitmgate.exchange import Event, Exchange, Leg
from mitmgate.fields import Get, fields_of, text_of
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.policy.match import Rules, acts, fits, shadows
from mitmgate.policy.values import CAUSES, Branch, Choice, Target
from mitmgate.providers import Hosts
from mitmgate.rewrite import DYNAMIC, Place, has_key, is_alias, leg_for, own_leg, own_leg_as, supply
from mitmgate.route_keys import ALIAS, refusal_of
from mitmgate.route_memory import Places, Windows
from mitmgate.usage import is_signed

HEADER = "cf-aig-fallback"
SIGNED = "a signed request"

type Way = rules.Route | Branch
"""What has a ``try`` or a ``split``."""


@dataclass(slots=True)
class Search:
    """One exchange on the way to its legs, and what was met."""

    x: Exchange
    get: Get
    home: Target | None
    """The target whose host the request names."""
    zones: list[rules.Route]
    """Rules that keep it in a zone."""
    likely: list[rules.Route]
    """Rules that may match it and choose its places."""
    outside: list[str] = field(default_factory=list)
    """Places that these rules closed."""
    unfit: list[str] = field(default_factory=list)
    """Places that cannot take the request, and why."""
    full_s: list[float] = field(default_factory=list)
    """Seconds until a branch that is full opens again."""
    model: str | None = None
    """To be asked for, wherever it goes: a budget says so."""


# -- pure -------------------------------------------------------------------------------------------------------------


def share_of(rule: str, value: str) -> float:
    """Return a number from 0 up to 1 that *value* has at *rule*: the same in every process and for ever."""
    digest = hashlib.sha256(f"{rule}\0{value}".encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56  # 56 bits: a float would round 64 up to 1.0


def draw(split: Sequence[tuple[Choice, float]], share: float) -> int:
    """Return the index of the place at *share* (0 up to 1) of all weights."""
    left = share * sum(weight for _, weight in split)
    for index, (_, weight) in enumerate(split):
        left -= weight
        if left < 0:
            return index
    return len(split) - 1


def stays(x: Exchange) -> str | None:
    """Return why *x* can go to its own host alone, None where it can be moved."""
    if x.dialect is None:
        return "a call that generates nothing"
    if x.streamed_upload:
        return "a streamed upload"
    return SIGNED if is_signed(x) else None


def said(choice: Choice) -> str:
    """Return *choice* as a person would: ``azure-eu``, ``model gpt-5``, ``azure-eu with model gpt-5``."""
    if choice.model is None:
        return choice.target or "its own host"
    return f"{choice.target} with model {choice.model}" if choice.target else f"model {choice.model}"


# -- the room ---------------------------------------------------------------------------------------------------------


class Route:
    name = "mitmgate.route"

    def __init__(
        self,
        policy: Policy,
        hosts: Hosts,
        places: Places[tuple[str, str | None]],
        windows: Windows,
        random: Callable[[], float],
    ) -> None:
        self.policy, self.hosts, self.random = policy, hosts, random
        self.targets = policy.targets
        self.choosing = Rules(rule for rule in policy.route if rule.tries or rule.split or rule.choose)
        self.zoned = Rules(rule for rule in policy.route if rule.zone)
        self.hedges = Rules(policy.hedge)
        self.sticky = {rule.name: fields for rule in self.choosing.rules if (fields := _fields_kept(rule))}
        """Rule -> the fields by which its ``try`` remembers."""
        self.places = places
        """(rule, field, value) -> (target, model)."""
        self.windows = windows
        self.homes = _homes(policy)
        self.signs = any(target.aws for target in policy.targets.values())
        self.plain = not policy.route and not policy.hedge

    def admit(self, x: Exchange) -> None:
        """Write the legs of *x*, or refuse it."""
        self._find(x)
        if self.homes and x.entry == "universal":
            self._supply(x)
        if x.refusal is None and (x.keyless or self.signs or ALIAS in x.controls or x.entry == "universal"):
            self._keep_keyed(x)

    def _find(self, x: Exchange) -> None:
        names: tuple[str, ...] | None = x.controls.get("fallback")
        get = fields_of(x)
        if names is None and x.host and x.downgrade is None and self._is_nobodys(x, get):
            if not x.legs:
                x.legs.append(own_leg(x, self._home(x)))
                x.fall_back_on = CAUSES
            return
        zones = [rule for rule in self.zoned.fitting(get) if not rule.shadow]
        search = Search(x, get, self._home(x), zones, self.choosing.likely(get))
        self._record_shadows(search)
        if x.legs:
            self._keep_in_zones(search)
            self._give_back(search, "each element of a universal request keeps its model")
        elif refusal := self._unknown(names):
            x.refuse(refusal)
        else:
            self._choose_cheaper(search, names)
            if not x.legs:
                self._choose(search, names)
            self._add_spare(search, names)

    def _is_nobodys(self, x: Exchange, get: Get) -> bool:
        """Return whether no rule says anything of *x*."""
        if self.plain:
            return True
        return not (is_alias(x) or self.choosing.likely(get) or self.zoned.likely(get) or self.hedges.likely(get))

    def settle(self, x: Exchange) -> None:
        """Remember where *x* was answered, for a rule that keeps its callers in their places."""
        fields = self.sticky.get(x.route_rule)
        if not fields or x.source != "provider" or x.status is None or x.status >= 400:
            return
        leg = next((leg for leg in x.legs[x.step :] if x.origin and leg.target == x.origin.target), None)
        if leg is None:
            return
        get = fields_of(x)
        for name in fields:
            if value := text_of(get(name)):
                self.places.put((x.route_rule, name, value), (leg.target, leg.model))

    # -- which places

    def _choose_cheaper(self, search: Search, names: tuple[str, ...] | None) -> None:
        """Write the legs of a request that a budget downgraded; none where it cannot be."""
        x = search.x
        if x.downgrade is None:
            return
        if x.downgrade.target:
            x.legs = self._legs(search, [x.downgrade])
            x.fall_back_on = CAUSES
        else:
            search.model = x.downgrade.model
            self._write(search, names)
            search.model = None
        if not x.legs:
            self._give_back(search, "; ".join(search.unfit + search.outside) or "no place is open")
            search.unfit.clear()
            search.outside.clear()
            search.full_s.clear()

    def _give_back(self, search: Search, why: str) -> None:
        """Let the request go as without its downgrade, and nobody say that it was."""
        x = search.x
        if x.downgrade is None:
            return
        x.downgrade = None
        x.route_notes[:] = [note for note in x.route_notes if not note.startswith("downgraded")]
        x.events[:] = [event for event in x.events if event.action != "downgrade" or event.shadow]
        x.notes.append(f"budget: not downgraded, because {why}")

    def _choose(self, search: Search, names: tuple[str, ...] | None) -> None:
        rule = self._write(search, names)
        search.x.notes += [f"route: {place}" for place in search.unfit]
        if not search.x.legs:
            self._refuse(search, rule)

    def _write(self, search: Search, names: tuple[str, ...] | None) -> rules.Route | None:
        """Write the legs; return the rule that matches, whether or not it had the say."""
        x = search.x
        rule = acts(search.likely, search.get)
        x.fall_back_on = rule.fall_back_on if rule else CAUSES
        if reason := self._stays(x):
            if rule or names:
                x.notes.append(f"route: {reason} stays at its own host")
            self._stay(search)
        elif names:
            x.route_rule = HEADER
            x.legs = self._legs(search, [Choice(name) for name in names])
        elif rule:
            x.route_rule = rule.name
            x.legs = self._by_rule(search, rule)
        else:
            self._stay(search)
        if names == ():
            del x.legs[1:]
        return rule

    def _stays(self, x: Exchange) -> str | None:
        reason = stays(x)
        return None if reason == SIGNED and self.signs else reason

    def _stay(self, search: Search) -> None:
        if search.x.host:
            search.x.legs = self._legs(search, [Choice()])

    def _by_rule(self, search: Search, rule: rules.Route) -> list[Leg]:
        way = self._way(search, rule)
        legs: list[Leg] = []
        if way and way.split:
            legs = self._draw(search, rule, way)
        elif way:
            legs = self._legs(search, way.tries)
            self._last_first(search, rule, way, legs)
        if not (legs or search.outside or search.full_s or is_alias(search.x)):
            legs = self._legs(search, [Choice()])
        return legs

    def _way(self, search: Search, rule: rules.Route) -> Way | None:
        """Return the rule itself, or the first of its branches that is open; None where none is."""
        if not rule.choose:
            return rule
        for index, branch in enumerate(rule.choose):
            if not fits(branch, search.get):
                continue
            if branch.within is None:
                return branch
            values = tuple(text_of(search.get(name)) for name in branch.within.per)
            full_s = self.windows.enter((rule.name, index, values), branch.within)
            if full_s is None:
                return branch
            search.full_s.append(full_s)
        return None

    def _draw(self, search: Search, rule: rules.Route, way: Way) -> list[Leg]:
        """Return the one place that was drawn; among the others, where that one is closed or cannot take it."""
        share = self._share(search, rule, way)
        split = list(way.split)
        while split:
            choice, _ = split.pop(draw(split, share))
            if legs := self._legs(search, [choice]):
                search.x.events.append(Event("route", rule.name, "split", detail=said(choice)))
                return legs
        return []

    def _share(self, search: Search, rule: rules.Route, way: Way) -> float:
        by = way.by or rule.by
        value = text_of(search.get(by)) if by else ""
        return share_of(rule.name, value) if value else self.random()

    def _last_first(self, search: Search, rule: rules.Route, way: Way, legs: list[Leg]) -> None:
        """Put the place where this caller was last answered in front."""
        by = way.by or rule.by
        value = text_of(search.get(by)) if by else ""
        if last := self.places.get((rule.name, by, value)) if value else None:
            legs.sort(key=lambda leg: (leg.target, leg.model) != last)

    # -- places into legs

    def _legs(self, search: Search, choices: Sequence[Choice]) -> list[Leg]:
        """Return the legs of those *choices* that are open to this request and can take it."""
        found = (self._leg(search, choice) for choice in choices)
        return [leg for leg in found if leg is not None]

    def _leg(self, search: Search, choice: Choice) -> Leg | None:
        x, home = search.x, search.home
        target = self.targets[choice.target] if choice.target else None
        if target is None and not x.host:
            search.unfit.append(f"{said(choice)} is left out: {x.request.model} has no host of its own")
            return None
        place = target or home
        name = target.name if target else x.target or (x.provider.slug if x.provider else x.host)
        if not self._is_open(search, name, place.zone if place else None):
            return None
        if search.model:
            choice = replace(choice, model=search.model)
        leg: Leg | str
        if is_signed(x) and _breaks_signature(x, target, choice):
            leg = "the request is signed for its own host"
        elif target is None:
            leg = own_leg_as(x, choice, home)
        else:
            leg = leg_for(x, target, self.hosts.providers[target.provider], choice, home)
        if isinstance(leg, str):
            search.unfit.append(f"{said(choice)} is left out: {leg}")
            return None
        return leg

    def _is_open(self, search: Search, name: str, zone: str | None) -> bool:
        if all(rule.zone == zone for rule in search.zones):
            return True
        search.outside.append(f"{name} is in {f'zone {zone}' if zone else 'no zone'}")
        return False

    def _keep_in_zones(self, search: Search) -> None:
        """Take away the legs of a universal request that its zone rules do not let it use."""
        x = search.x
        if not search.zones:
            return
        for leg in x.legs:
            home = self._at(leg.host, leg.port, leg.path)
            leg.zone = leg.zone or (home.zone if home else None)
        x.legs[:] = [leg for leg in x.legs if self._is_open(search, leg.target, leg.zone)]
        if not x.legs:
            self._refuse(search, None)

    def _add_spare(self, search: Search, names: tuple[str, ...] | None) -> None:
        """Choose where ``hedge`` may make a second attempt: nowhere that the header leaves out."""
        x = search.x
        rule = acts(self.hedges.likely(search.get), search.get)
        if rule is None or not x.legs or stays(x) or (names is not None and rule.to not in names):
            return
        first = x.legs[0]
        if first.target == rule.to:
            return
        model = first.model if first.model != x.request.model else None
        x.hedge = rule
        x.spare = self._leg(search, Choice(rule.to, model))

    # -- which key goes with it

    def _supply(self, x: Exchange) -> None:
        """Let those elements of a universal request that bring no key have that of the target at their host."""
        for leg in x.legs:
            home = None if leg.is_target else self._at(leg.host, leg.port, leg.path)
            if home and not has_key(leg, home):
                supply(leg, home)

    def _keep_keyed(self, x: Exchange) -> None:
        """Leave out the legs for which there is no key; refuse where none is left."""
        asks_keys = self.policy.auth is not None
        refusals = [refusal_of(x, leg, self.targets, asks_keys) for leg in x.legs]
        legs = [leg for leg, refusal in zip(x.legs, refusals, strict=True) if refusal is None]
        first = next((refusal for refusal in refusals if refusal), None)
        if first and not legs:
            x.refuse(first)
            return
        x.notes += [f"route: {refusal.message}" for refusal in refusals if refusal]
        x.legs[:] = legs
        if x.spare and refusal_of(x, x.spare, self.targets, asks_keys):
            x.spare = None

    # -- whose host that is

    def _home(self, x: Exchange) -> Target | None:
        if x.target:
            return self.targets[x.target]
        return self._at(x.host, x.port, x.path) if self.homes else None

    def _at(self, host: str, port: int, path: str) -> Target | None:
        """Return the target that stands there; of several on one host the one whose path leads furthest."""
        for base, target in self.homes.get((host.lower().rstrip("."), port), ()):
            if path.partition("?")[0] == base or path.startswith(f"{base}/"):
                return target
        return None

    # -- when there is none

    def _unknown(self, names: tuple[str, ...] | None) -> Refusal | None:
        """Return the refusal of a header that names what is no target."""
        unknown = next((name for name in names or () if name not in self.targets), None)
        if unknown is None:
            return None
        known = f"there are {', '.join(sorted(self.targets))}" if self.targets else "the policy has no targets"
        message = f"The request header {HEADER} names {unknown!r}, which is no target; {known}."
        return Refusal(400, "bad_request", message, param=HEADER, should_retry=False)

    def _refuse(self, search: Search, rule: rules.Route | None) -> None:
        x = search.x
        if search.outside:
            self._refuse_zone(search)
        elif x.route_rule == HEADER:
            message = f"No target of {HEADER} can take this request: {'; '.join(search.unfit)}."
            x.refuse(Refusal(400, "bad_request", message, param=HEADER, should_retry=False))
        elif rule is None:
            x.refuse(Refusal(404, "not_found", self._no_rule(x), param="model", should_retry=False))
        elif search.full_s:
            self._refuse_full(search, rule)
        else:
            why = "; ".join(search.unfit) or "none of its branches holds"
            message = f"No place can answer model {x.request.model!r}: {why} ({self._named(rule)})."
            self._say_no(search, rule, Refusal(404, "not_found", message, param="model", should_retry=False), why)

    def _refuse_zone(self, search: Search) -> None:
        rule = search.zones[0]
        zones = " and ".join(dict.fromkeys(str(rule.zone) for rule in search.zones))
        why = ", ".join(search.outside)
        message = f"No place in zone {zones} may answer this request: {why} ({self._named(rule)})."
        self._say_no(search, rule, Refusal(403, "permission", message, should_retry=False), why)

    def _refuse_full(self, search: Search, rule: rules.Route) -> None:
        wait_s = min(search.full_s)
        message = f"Every branch that would take this request is full; the next opens in {ceil(wait_s)} s"
        should_retry = True if wait_s <= 60 else None if wait_s <= 3600 else False
        refusal = Refusal(
            429,
            "rate_limit",
            f"{message} ({self._named(rule)}).",
            source="rate-limit",
            error_type="rate_limit",
            retry_after_s=wait_s,
            should_retry=should_retry,
        )
        self._say_no(search, rule, refusal, message)

    def _say_no(self, search: Search, rule: rules.Route, refusal: Refusal, why: str) -> None:
        search.x.events.append(Event("route", rule.name, "refuse", detail=why))
        search.x.refuse(replace(refusal, rule=rule.name, where=self._where(rule)))

    def _no_rule(self, x: Exchange) -> str:
        names = [name for rule in self.choosing.rules for name in _models_of(rule) if name.startswith(DYNAMIC)]
        known = f"there are rules for {', '.join(dict.fromkeys(names))}" if names else "the policy has no such rule"
        return f"No route rule matches model {x.request.model!r}; {known}."

    def _where(self, rule: rules.Route) -> str | None:
        return self.policy.where(f"route[{self.policy.route.index(rule)}]")

    def _named(self, rule: rules.Route) -> str:
        where = self._where(rule)
        return f"rule {rule.name}, {where}" if where else f"rule {rule.name}"

    # -- what would have been

    def _record_shadows(self, search: Search) -> None:
        """Record what rules with ``shadow: true`` would have done."""
        events = search.x.events
        for rule in shadows(search.likely, search.get):
            way = self._way(search, rule)
            search.full_s.clear()  # a shadow turns nobody away
            action: Literal["split", "fallback"] = "split" if way and way.split else "fallback"
            events.append(Event("route", rule.name, action, shadow=True, detail=self._would(search, rule, way)))
        for rule in self.zoned.fitting(search.get):
            home = search.home.zone if search.home else None
            if rule.shadow and home != rule.zone:
                detail = f"would keep the request in zone {rule.zone}"
                events.append(Event("route", rule.name, "refuse", shadow=True, detail=detail))
        for hedge in shadows(self.hedges.likely(search.get), search.get):
            events.append(Event("hedge", hedge.name, "hedge", shadow=True, detail=f"would ask {hedge.to}, too"))

    def _would(self, search: Search, rule: rules.Route, way: Way | None) -> str:
        if way is None:
            return "would find no branch that is open"
        if way.split:
            choice, _ = way.split[draw(way.split, self._share(search, rule, way))]
            return f"would draw {said(choice)}"
        return f"would try {', '.join(said(choice) for choice in way.tries)}"


def _breaks_signature(x: Exchange, target: Target | None, choice: Choice) -> bool:
    """Return whether a signed request could not go there: whoever moves or changes it has to sign it anew."""
    if target is None:
        return choice.model not in (None, x.request.model)
    return target.aws is None


def _fields_kept(rule: rules.Route) -> list[str]:
    """Return the fields by which the ``try`` of *rule*, or of a branch of it, remembers where it was answered."""
    ways: list[Way] = [rule, *rule.choose]
    return sorted({by for way in ways if way.tries and (by := way.by or rule.by)})


def _homes(policy: Policy) -> dict[tuple[str, int], list[tuple[str, Target]]]:
    """Return (host, port) -> (path, target) of the targets that stand there, the longest path first."""
    homes: dict[tuple[str, int], list[tuple[str, Target]]] = {}
    for target in policy.targets.values():
        place = Place.of(target)
        homes.setdefault((place.host, place.port), []).append((place.path, target))
    for rows in homes.values():
        rows.sort(key=lambda row: -len(row[0]))
    return homes


def _models_of(rule: rules.Route) -> list[str]:
    said = rule.match.says.get("model") if rule.match else None
    return [name for name in (said if isinstance(said, (list, tuple)) else [said]) if isinstance(name, str)]
