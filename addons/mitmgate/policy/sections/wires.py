"""Which wires a target speaks, so that a rule is refused whose targets could never answer the same request.

A wire is the form of a request and its answer. Every provider has its own; many have an endpoint for OpenAI's beside
it, and some offer Anthropic's below a path that says so. What a target does with one request shows when that request is
there (``rewrite_path``); a fault here is only what can never be.
"""

from collections.abc import Iterable, Mapping

from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Place
from mitmgate.policy.match import Match, Rule
from mitmgate.providers import TABLE

PROVIDERS = {provider.slug: provider for provider in TABLE}

BY_FAMILY: Mapping[str, str] = {"azure": "openai", "ollama": "openai", "vertex": "gemini"}
"""Families that speak another one's wire beside what is only theirs."""

BY_PATH: Mapping[str, str] = {"/openai": "openai", "/openapi": "openai", "/anthropic": "anthropic"}
"""How a ``base_url`` ends that offers a wire, whoever's host it is."""


def check_together(named: Iterable[tuple[str, Node]], family: str | None, context: Context) -> None:
    """Raise where no request could be answered by all targets of *named*: (name, the node that names it).

    *family* is that of the calls which the rule is about, as ``family_of`` tells.
    """
    common: frozenset[str] | None = None
    for name, node in named:
        spoken = wires(context.targets[name], family)
        if spoken is None:
            continue
        common = spoken if common is None else common & spoken
        if not common:
            raise node.wrong(f"{name!r} and the targets before it speak different APIs{_advice(name, family, context)}")


def wires(place: Place, family: str | None = None) -> frozenset[str] | None:
    """Return the wires of a target; None of a provider of the policy's own, whose hosts may speak anything.

    Calls of its own *family* do not come in OpenAI's, so an endpoint for that is no help to them.
    """
    provider = PROVIDERS.get(place.provider or "")
    if provider is None:
        return None
    spoken = {provider.family, BY_FAMILY.get(provider.family, provider.family)}
    if provider.compat and provider.family != family:
        spoken.add("openai")
    spoken |= {wire for end, wire in BY_PATH.items() if (place.base_url or "").rstrip("/").endswith(end)}
    return frozenset(spoken)


def family_of(*rules: Rule) -> str | None:
    """Return the one family whose calls pass all of *rules*; None where there may be more, or where a rule looks at
    the path: then it is about those calls that came in OpenAI's wire, or may be.
    """
    matches = [match for rule in rules for match in (rule.match, rule.unless) if match]
    if any("path" in match.fields for match in matches):
        return None
    slugs = [slug for rule in rules if rule.match for slug in _providers(rule.match)]
    families = {PROVIDERS[slug].family if slug in PROVIDERS else None for slug in slugs}
    return families.pop() if len(families) == 1 else None


def _providers(match: Match) -> list[str]:
    said = match.says.get("provider", [])
    return [str(one).lower() for one in (said if isinstance(said, list) else [said])]


def _advice(name: str, family: str | None, context: Context) -> str:
    spoken = wires(context.targets[name])
    if family is None or spoken is None or "openai" not in spoken:
        return ", so no request can go to all of them"
    return (
        f", so no {family} request can go to all of them; if you mean those in OpenAI's form, say so in match:"
        ' {path: "*/chat/completions"}'
    )
