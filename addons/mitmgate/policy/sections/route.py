"""``route``: a list of rules; the first that matches says which places may answer, in which order.

A rule has one of ``try`` (in order), ``split`` (by weight) and ``choose`` (branches with conditions), or only a
``zone`` that its requests may not leave. What could never come true is a fault: a branch behind one that takes
everything, a target outside of the rule's zone, targets that no single request could go to.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import match
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    did_you_mean,
    listed,
    listing,
    not_empty,
    optional,
    positive,
    record,
    text,
    time,
    whole,
)
from mitmgate.policy.sections.places import split, targets_in, tries
from mitmgate.policy.sections.rules import causes, matches_all, rule, unique_names
from mitmgate.policy.sections.wires import check_together, family_of
from mitmgate.policy.values import Branch, Route, Within

WAYS = ("try", "split", "choose")

# -- a branch ---------------------------------------------------------------------------------------------------------

_within = record(
    Within,
    {
        "requests": Key(whole(1, 1_000_000_000), required=True),
        "every": Key(positive(time), "every_s", required=True),
        "per": Key(listed(match.field_name)),
    },
)

_branch = record(
    Branch,
    {
        "match": Key(match.form()),
        "unless": Key(match.form()),
        "within": Key(optional(_within)),
        "try": Key(tries, "tries"),
        "split": Key(split),
        "by": Key(match.field_name),
    },
)


def _read_branch(node: Node, context: Context) -> Branch:
    branch = _branch.read(node, context)
    ways = _ways(node)
    if len(ways) != 1:
        raise node.wrong(
            f"a branch has either try or split; this one has {listing(ways, 'and') if ways else 'neither'}"
        )
    return branch


def _show_branch(branch: Branch) -> dict[str, Any]:
    return _without_empty(_branch.show(branch))


# -- a rule -----------------------------------------------------------------------------------------------------------

_rule = rule(
    Route,
    {
        "try": Key(tries, "tries"),
        "split": Key(split),
        "choose": Key(not_empty(Form(_read_branch, _show_branch), "branches")),
        "by": Key(match.field_name),
        "fall_back_on": Key(causes),
        "zone": Key(text),
    },
)


def _read_rule(node: Node, context: Context) -> Route:
    rule = _rule.read(node, context)
    ways = _ways(node)
    if len(ways) > 1:
        raise node.wrong(f"a rule has one of try, split and choose; this one has {listing(ways, 'and')}")
    if not ways and rule.zone is None:
        raise node.wrong("the rule chooses nothing; give it try, split, choose, or a zone")
    branches = list(zip(_branches(node), rule.choose, strict=True))
    faults = [*_never_taken(branches), *_outside(node, rule, context)]
    if faults:
        raise PolicyError(faults)
    _check_wires(node, rule, branches, context)
    return rule


def _show_rule(rule: Route) -> dict[str, Any]:
    return _without_empty(_rule.show(rule))


form: Form[tuple[Route, ...]] = unique_names(listed(Form(_read_rule, _show_rule)))


# -- parts ------------------------------------------------------------------------------------------------------------


def _ways(node: Node) -> list[str]:
    return [way for way in WAYS if isinstance(node.value, dict) and way in node.value]


def _branches(node: Node) -> tuple[Node, ...]:
    choose = node.value.get("choose") if isinstance(node.value, dict) else None
    return choose.items if choose else ()


def _check_wires(node: Node, rule: Route, branches: list[tuple[Node, Branch]], context: Context) -> None:
    """Raise where targets stand together that no request could go to.

    A branch with a match may choose by what a target can take, so it is looked at alone.
    """
    check_together(targets_in(node, context), family_of(rule), context)
    for below, branch in branches:
        check_together(targets_in(below, context), family_of(rule, branch), context)
    for_all = [below for below, branch in branches if matches_all(branch)]
    check_together([one for below in for_all for one in targets_in(below, context)], family_of(rule), context)


def _never_taken(branches: list[tuple[Node, Branch]]) -> Iterator[Fault]:
    """Yield a fault for the first branch behind one that takes every request."""
    for (before, branch), (behind, _) in pairwise(branches):
        if matches_all(branch) and branch.within is None:
            yield behind.fault(f"this branch is never taken: the one on line {before.line} takes every request")
            return


def _outside(node: Node, rule: Route, context: Context) -> Iterator[Fault]:
    """Yield a fault for a zone that no target is in, and for each target that the zone closes."""
    if rule.zone is None or not isinstance(node.value, dict):
        return
    zones = sorted({place.zone for place in context.targets.values() if place.zone})
    if rule.zone not in zones:
        known = f"; zones are {listing(zones, 'and')}" if zones else "; no target has a zone"
        yield node.value["zone"].fault(f"no target is in zone {rule.zone!r}{did_you_mean(rule.zone, zones) or known}")
        return
    for way in (node, *_branches(node)):
        for name, said in targets_in(way, context):
            zone = context.targets[name].zone
            if zone != rule.zone:
                where = f"in zone {zone!r}" if zone else "in no zone"
                yield said.fault(f"the target {name!r} is {where}, so a rule of zone {rule.zone!r} never uses it")


def _without_empty(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if value not in ([], {})}
