"""What somebody should know of a policy that is right all the same: what it says and nothing acts on."""

from collections.abc import Iterator

from mitmgate.policy.values import Export, Latency, Policy


def notices(policy: Policy) -> list[str]:
    """Return a sentence for each such thing, with file and line; for ``mitmgate check`` and the start of ``serve``."""
    return [f"{policy.where(section) or policy.path}: {section}: {said}" for section, said in _said(policy)]


def _said(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield (section, sentence)."""
    if policy.latency != Latency():
        yield "latency", "no report compares phases with it yet"
    waiting = [rule.name for rule in policy.alert if rule.when.watch == "breaker"]
    if waiting and not policy.breaker:
        yield "alert", f"{waiting[0]!r} waits for a breaker, and the policy has none"
    if policy.export != Export():
        yield "export", "this version does not export yet; rows stay in the database alone"
