"""Why a rule acts on a request, or does not: which field of it holds, which does not, in words. Pure.

Asks the same matches that the rooms ask, and says what they found. A value that may be a key is never repeated; every
other one is cut, since it comes out of a request.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mitmgate.fields import Get
from mitmgate.policy import Policy
from mitmgate.policy import values as rules
from mitmgate.policy.forms import Plain
from mitmgate.policy.match import COMPARISON, Match, Rule
from mitmgate.rewrite import is_credential

type State = Literal["acts", "shadow", "behind", "no"]
"""It acts; it would, were it not for its ``shadow``; it would, but one before it does; it is for other requests."""

FIRST = frozenset({"cache", "shape", "route", "hedge", "retry", "timeout", "breaker"})
"""Sections of which the first rule that matches acts; of all others every one does."""

LABELS = ("route", "tier", "sla")
"""What ``identify`` puts on a request, in the order in which it does."""

SHOWN_CHARS = 60
"""Of a value out of a request."""

FOR_ALL = "it is for every request"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule does with one request."""

    section: str
    rule: str
    where: str | None
    """``policy.yaml:12``; None where no file says it."""
    state: State
    why: str
    """A sentence without its full stop."""


# -- rules ------------------------------------------------------------------------------------------------------------


def explain(policy: Policy, section: str, get: Get) -> list[Verdict]:
    """Return what each rule of *section* does with the request behind *get*, in the order of the file."""
    found: list[Verdict] = []
    acting: str | None = None
    """The rule that acts, of those that take turns."""
    rows: Sequence[Rule] = getattr(policy, section)
    for n, rule in enumerate(rows):
        name, where = str(getattr(rule, "name", section)), policy.where(f"{section}[{n}]")
        takes_turns = _takes_turns(section, rule)
        state, why = judged(rule, get, acting if takes_turns else None)
        if state == "acts" and takes_turns:
            acting = name
        found.append(Verdict(section, name, where, state, why))
    return found


def judged(rule: Rule, get: Get, acting: str | None = None) -> tuple[State, str]:
    """Return what *rule* does and why; *acting* is the name of the one before it that has taken its turn."""
    if why := why_not(rule, get):
        return "no", why
    why = "; ".join(holding(rule.match, get)) or FOR_ALL
    if acting is not None:
        return "behind", f"{why}, but {acting} before it acts{_its_zone(rule)}"
    return ("shadow" if getattr(rule, "shadow", False) else "acts"), why


def _takes_turns(section: str, rule: Rule) -> bool:
    """True where *rule* acts only if none before it does; a route with nothing but a zone stands beside the others."""
    if isinstance(rule, rules.Route):
        return bool(rule.tries or rule.split or rule.choose)
    return section in FIRST


def _its_zone(rule: Rule) -> str:
    return f"; its zone {rule.zone} holds all the same" if isinstance(rule, rules.Route) and rule.zone else ""


@dataclass(frozen=True, slots=True)
class Label:
    """What ``identify`` puts on a request where a match holds: ``route faq``, ``tier large`` … It reads as a rule."""

    kind: str
    label: str
    match: Match | None
    unless: Match | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.label}"


def labelled(policy: Policy) -> list[Label]:
    """Return the labels of *policy*, in the order in which they are asked."""
    return [Label(kind, *row) for kind in LABELS for row in getattr(policy.identify, kind).items()]


def labels(policy: Policy, get: Get) -> list[Verdict]:
    """Return the same as ``explain`` for labels, of which the first of each kind that matches acts."""
    found: list[Verdict] = []
    acting: dict[str, str] = {}
    for label in labelled(policy):
        state, why = judged(label, get, acting.get(label.kind))
        if state == "acts":
            acting[label.kind] = label.name
        where = policy.where(f"identify.{label.kind}.{label.label}")
        found.append(Verdict("identify", label.name, where, state, why))
    return found


# -- words ------------------------------------------------------------------------------------------------------------


def why_not(rule: Rule, get: Get) -> str | None:
    """Return what keeps *rule* from acting, ``tenant is 'globex', not acme``; None where nothing does."""
    if rule.match is not None and (failing := rule.match.failing(get)):
        return f"{is_said(failing.field, failing.found)}{_but_wanted(failing.wanted, failing.found)}"
    if rule.unless is not None and rule.unless.holds(get):
        return f"not where {' and '.join(holding(rule.unless, get)) or 'nothing is asked'}"
    return None


def holding(match: Match | None, get: Get) -> Iterator[str]:
    """Yield what the request says to each field of *match*, which holds."""
    for field in match.says if match else ():
        yield is_said(field, get(field))


def is_said(field: str, found: object | None) -> str:
    """Return ``tenant is 'globex'``, ``input_tokens is 512``, ``header.x-flag is missing``."""
    if found is None:
        return f"{field} is missing"
    family, _, name = field.partition(".")
    if family != "body" and is_credential(name or family):
        return f"{field} is there"
    return f"{field} is {shown(found)}"


def shown(found: object) -> str:
    """Return a request's value as a person may see it: text in quotes, and no more than its beginning."""
    if not isinstance(found, str):
        return json.dumps(found)
    return f"'{found}'" if len(found) <= SHOWN_CHARS else f"'{found[: SHOWN_CHARS - 1]}…'"


def _but_wanted(wanted: Plain, found: object | None) -> str:
    """Return what a match asks for, to be said after what the request has; empty where that has said it."""
    if wanted == "present":
        return ""
    if wanted == "absent":
        return ", and has to be absent"
    words = [_wanted(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
    return f", not {' or '.join((', '.join(words[:-1]), words[-1]) if len(words) > 1 else words)}"


def _wanted(value: Plain) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return value if value and (COMPARISON.fullmatch(value) or " " not in value) else f"'{value}'"
