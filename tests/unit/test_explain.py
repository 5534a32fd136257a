"""Why a rule acts, or does not, is said in words that name the field, what the request has, and what the rule wants."""

from typing import Any

import pytest

from mitmgate import explain
from mitmgate.explain import FOR_ALL, State, Verdict
from mitmgate.fields import Get
from mitmgate.policy import loads
from mitmgate.policy.match import Failing, compile_match

REQUEST: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-5",
    "tenant": "globex",
    "stream": True,
    "input_tokens": 512,
    "path": "/v1/chat/completions",
    "metadata.feature": "faq",
    "metadata.beta": True,
    "metadata.note": "x" * 100,
    "header.authorization": "Bearer sk-secret",
    "header.x-flag": "on",
}


def get(name: str) -> object | None:
    return REQUEST.get(name)


def verdicts(section: str, text: str, get: Get = get) -> list[tuple[str, State, str]]:
    """Return (rule, state, why) of *section*, whose rules are *text*."""
    policy = loads(f"{section}:\n{text}", "policy.yaml", {})
    return [(one.rule, one.state, one.why) for one in explain.explain(policy, section, get)]


# -- one match --------------------------------------------------------------------------------------------------------

WHY_NOT = [
    ("match: {tenant: acme}", "tenant is 'globex', not acme"),
    ("match: {tenant: [acme, initech]}", "tenant is 'globex', not acme or initech"),
    ("match: {model: [a, 'b*', c]}", "model is 'gpt-5', not a, b* or c"),
    ("match: {model: 'claude-*'}", "model is 'gpt-5', not claude-*"),
    ("match: {input_tokens: '> 20000'}", "input_tokens is 512, not > 20000"),
    ("match: {stream: false}", "stream is true, not false"),
    ("match: {user: joe}", "user is missing, not joe"),
    ("match: {user: present}", "user is missing"),
    ("match: {tenant: absent}", "tenant is 'globex', and has to be absent"),
    ("match: {metadata.beta: false}", "metadata.beta is true, not false"),
    ("match: {metadata.feature: 'two words'}", "metadata.feature is 'faq', not 'two words'"),
    ("match: {metadata.note: short}", f"metadata.note is '{'x' * 59}…', not short"),
    ("match: {header.x-flag: 'off'}", "header.x-flag is 'on', not off"),
    ("match: {header.authorization: absent}", "header.authorization is there, and has to be absent"),
    ("match: {provider: openai, tenant: acme}", "tenant is 'globex', not acme"),
    ("unless: {model: 'gpt-5*'}", "not where model is 'gpt-5'"),
    ("match: {provider: openai}, unless: {tenant: globex, stream: true}",
     "not where tenant is 'globex' and stream is true"),
]  # fmt: skip


@pytest.mark.parametrize(("asks", "why"), WHY_NOT, ids=[asks for asks, _ in WHY_NOT])
def test_the_first_field_that_does_not_hold_is_named(asks: str, why: str) -> None:
    assert verdicts("limit", f"  - {{name: one, {asks}, requests: 1, every: 1 s}}") == [("one", "no", why)]


ACTS = [
    ("", FOR_ALL),
    ("match: {tenant: 'glob*'},", "tenant is 'globex'"),
    ("match: {tenant: [acme, globex], input_tokens: '< 1000'},", "tenant is 'globex'; input_tokens is 512"),
    ("match: {user: absent},", "user is missing"),
    ("match: {header.authorization: present},", "header.authorization is there"),
    ("unless: {tenant: acme},", FOR_ALL),
]


@pytest.mark.parametrize(("asks", "why"), ACTS, ids=[why for _, why in ACTS])
def test_a_rule_that_acts_says_what_holds(asks: str, why: str) -> None:
    assert verdicts("limit", f"  - {{name: one, {asks} requests: 1, every: 1 s}}") == [("one", "acts", why)]


def test_failing_agrees_with_holds() -> None:
    match = compile_match({"tenant": "globex", "model": "gpt-4*", "user": "present"})

    assert match.failing(get) == Failing("model", "gpt-5", "gpt-4*")
    assert not match.holds(get)
    assert compile_match({"tenant": "globex", "stream": True}).failing(get) is None


# -- lists of rules ---------------------------------------------------------------------------------------------------


def test_where_every_rule_acts_none_stands_behind_another() -> None:
    rules = """
  - {name: one, requests: 1, every: 1 s}
  - {name: two, requests: 1, every: 1 s, shadow: true}
  - {name: three, match: {tenant: acme}, requests: 1, every: 1 s}
"""
    assert [(rule, state) for rule, state, _ in verdicts("limit", rules)] == [
        ("one", "acts"),
        ("two", "shadow"),
        ("three", "no"),
    ]


def test_where_the_first_rule_acts_those_behind_it_come_too_late_shadows_too() -> None:
    rules = """
  - {name: shadowed, ttl: 1 h, shadow: true}
  - {name: others, match: {tenant: acme}, ttl: 1 h}
  - {name: first, match: {tenant: globex}, ttl: 1 h}
  - {name: second, ttl: 1 h}
  - {name: late shadow, ttl: 1 h, shadow: true}
"""
    assert verdicts("cache", rules) == [
        ("shadowed", "shadow", FOR_ALL),
        ("others", "no", "tenant is 'globex', not acme"),
        ("first", "acts", "tenant is 'globex'"),
        ("second", "behind", f"{FOR_ALL}, but first before it acts"),
        ("late shadow", "behind", f"{FOR_ALL}, but first before it acts"),
    ]


def test_a_route_with_nothing_but_a_zone_stands_beside_the_one_that_chooses() -> None:
    rules = """
  - {name: stays, zone: eu}
  - {name: places, try: [eu]}
  - {name: later, try: [eu], zone: eu}
  - {name: holds, zone: eu}
targets: {eu: {provider: openai, base_url: "https://eu.example", zone: eu}}
"""
    assert verdicts("route", rules) == [
        ("stays", "acts", FOR_ALL),
        ("places", "acts", FOR_ALL),
        ("later", "behind", f"{FOR_ALL}, but places before it acts; its zone eu holds all the same"),
        ("holds", "acts", FOR_ALL),
    ]


def test_rules_without_a_name_have_that_of_their_section_and_their_line() -> None:
    policy = loads("timeout:\n  - {match: {stream: false}, idle: 1 s}\n  - {idle: 2 s}\n", "policy.yaml", {})

    assert explain.explain(policy, "timeout", get) == [
        Verdict("timeout", "timeout", "policy.yaml:2", "no", "stream is true, not false"),
        Verdict("timeout", "timeout", "policy.yaml:3", "acts", FOR_ALL),
    ]


def test_labels_take_turns_within_their_kind() -> None:
    text = """\
identify:
  route:
    faq: {metadata.feature: faq}
    chat: {path: "*/chat/completions"}
  tier: {large: {model: gpt-5}}
  sla:
    gold: {tenant: acme}
"""
    found = explain.labels(loads(text, "policy.yaml", {}), get)

    assert [(one.rule, one.where, one.state, one.why) for one in found] == [
        ("route faq", "policy.yaml:3", "acts", "metadata.feature is 'faq'"),
        ("route chat", "policy.yaml:4", "behind", "path is '/v1/chat/completions', but route faq before it acts"),
        ("tier large", "policy.yaml:5", "acts", "model is 'gpt-5'"),
        ("sla gold", "policy.yaml:7", "no", "tenant is 'globex', not acme"),
    ]
