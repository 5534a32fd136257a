"""Policies as a platform team with many tenants has them, to weigh what rules cost.

``many``: 200 rules, all of which each request meets; they belong to other tenants, models and routes, so none acts.
``acting``: eight that do. They reserve and settle requests, slots, tokens and money, and look for secrets, personal
data and a topic in a prompt of 1 kB.
"""

from collections.abc import Iterable, Iterator

TENANTS = 36


def _many() -> Iterator[tuple[str, str]]:
    """Yield (section, rule)."""
    for n in range(TENANTS):
        match = f"match: {{tenant: tenant-{n}, model: ['gpt-5*', 'claude-*']}}"
        yield "limit", f"{{name: burst-{n}, {match}, requests: 60, every: 1 m}}"
        yield "limit", f"{{name: tokens-{n}, {match}, tokens: 2_000_000, every: day}}"
        yield "budget", f"{{name: day-{n}, {match}, cost: 20 USD, every: day, soft: 80 %}}"
        yield "shape", f"{{name: short-{n}, {match}, then: {{keep_last: 20000}}}}"
        yield "route", f"{{name: route-{n}, {match}, try: [{{model: gpt-5-mini}}]}}"
    for n in range(10):
        yield "guard", f'{{name: topic-{n}, match: {{route: r-{n}}}, find: ["project falcon {n}"], then: flag}}'
        yield "cache", f"{{match: {{route: faq-{n}}}, ttl: 1 h}}"


def _acting() -> Iterator[tuple[str, str]]:
    """Yield (section, rule)."""
    for name, more in (("burst", "requests: 100000, every: 1 m"), ("day", "requests: 90000000, every: day")):
        yield "limit", f"{{name: {name}, per: tenant, {more}}}"
    yield "limit", "{name: tokens, per: [tenant, model], tokens: 90_000_000_000, every: day}"
    yield "limit", "{name: parallel, per: tenant, concurrent: 1000}"
    yield "budget", "{name: all, per: tenant, cost: 90000 USD, every: month, soft: 80 %}"
    yield "guard", "{name: secrets, find: [secret, credit_card], then: block}"
    yield "guard", "{name: people, find: [email, phone], then: redact}"
    yield "guard", '{name: topic, find: ["(?i)project kestrel"], then: flag}'


def _yaml(rules: Iterable[tuple[str, str]]) -> str:
    sections: dict[str, list[str]] = {}
    for section, rule in rules:
        sections.setdefault(section, []).append(f"  - {rule}")
    return "".join(f"{section}:\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


MANY, ACTING = _yaml(_many()), _yaml(_acting())
COUNT, ACTING_COUNT = len(list(_many())), len(list(_acting()))
