"""The sections of governance: who may come in, what may leave, how much may be used, and who hears of it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mitmgate.errors import PolicyError
from mitmgate.policy import Policy, default_path, load, loads, notices, show
from mitmgate.policy.kinds import KINDS, MEANT
from mitmgate.policy.match import compile_match
from mitmgate.policy.values import (
    Alert,
    Ask,
    Auth,
    Aws,
    Budget,
    Downgrade,
    Export,
    Guard,
    KeepLast,
    Key,
    Latency,
    Limit,
    MaxOutput,
    Shape,
    Summarize,
    Target,
    When,
)

ACCOUNT = {"client_email": "a@b.example", "private_key": "-----BEGIN\nvery-hidden\n", "token_uri": "https://t.example"}
ENV = {
    "KEY": "mg-hidden",
    "KEY_2": "mg-hidden-2",
    "SAME": "mg-hidden",
    "HOOK": "https://hooks.example/hidden",
    "PAGER": "pagerduty://hidden",
    "ACCOUNT": json.dumps(ACCOUNT, indent=2),
    "BROKEN": '{"private_key": "very-hidden',
}
BESIDE = """
targets:
  azure-eu: {provider: azure-openai, base_url: "https://eu.example"}
  corp: {provider: openai, base_url: "https://corp.example/v1"}
"""


def policy(text: str) -> Policy:
    return loads(text + BESIDE, "p", ENV)


def faults_of(text: str) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        loads(text, "p", ENV)
    return [str(fault) for fault in refused.value.faults]


def target(line: str) -> str:
    """Return a policy whose only target is whole but for *line*, the 2nd."""
    return f"targets: {{t: {{base_url: 'https://a.b',\n {line}}}}}\n"


def with_budget(when: str) -> str:
    return (
        f"alert: [{{name: a, to: env:HOOK, when: {when}}}]\n"
        "budget: [{name: day, cost: 1 USD, every: day, soft: 80 %}]\n"
    )


# -- what they say ----------------------------------------------------------------------------------------------------


def test_nobody_is_asked_for_a_key_unless_the_section_stands_there() -> None:
    assert policy("").auth is policy("auth:").auth is None
    assert policy("auth: {}").auth == Auth()


def test_a_key_says_who_bears_it_and_what_for() -> None:
    text = "auth: {keys: [{name: app, key: env:KEY, tenant: acme, user: bot, models: [gpt-5*], expires: 2027-01-31}]}"

    assert policy(text).auth == Auth((Key("app", "mg-hidden", "acme", "bot", ("gpt-5*",), 1_801_440_000.0),))
    assert policy("auth: {keys: {name: app, key: env:KEY}}").auth == Auth((Key("app", "mg-hidden"),))


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("find: secret, then: block", Guard("g", ("secret",))),
        (
            "find: [email, '(?i)project x'], in: [response, request], then: redact, restore: true, allow: ['.+@corp']",
            Guard(
                "g",
                ("email", "(?i)project x"),
                frozenset({"request", "response"}),
                "redact",
                allow=(".+@corp",),
                restore=True,
            ),
        ),
        ("find: phone, in: response, then: flag", Guard("g", ("phone",), frozenset({"response"}), "flag")),
        ("unless: {model: gpt-5*}, then: block", Guard("g", unless=compile_match({"model": "gpt-5*"}))),
        ("match: {tenant: absent}, then: flag", Guard("g", then="flag", match=compile_match({"tenant": "absent"}))),
        ("tools: [search, 'get_*'], then: block", Guard("g", tools=("search", "get_*"))),
        ("then: {ask: corp}", Guard("g", then=Ask("corp"))),
        (
            "match: {route: docs}, then: {ask: corp, model: small, on_error: pass, about: hidden orders}, shadow: true",
            Guard(
                "g",
                then=Ask("corp", "small", "pass", "hidden orders"),
                match=compile_match({"route": "docs"}),
                shadow=True,
            ),
        ),
        ("find: '[s]ecrets', then: block", Guard("g", ("[s]ecrets",))),
        ("find: ['kestrel', 'project kestrel'], then: flag", Guard("g", ("kestrel", "project kestrel"), then="flag")),
    ],
)
def test_a_guard(text: str, guard: Guard) -> None:
    assert policy(f"guard: [{{name: g, {text}}}]").guard == (guard,)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("requests: 60, every: 1 m, per: tenant", Limit("l", requests=60, every=60.0, per=("tenant",))),
        ("tokens: 2_000_000, every: day", Limit("l", tokens=2_000_000, every="day")),
        ("concurrent: 8, per: [tenant, header.X-Team]", Limit("l", concurrent=8, per=("tenant", "header.x-team"))),
    ],
)
def test_a_limit(text: str, limit: Limit) -> None:
    assert policy(f"limit: [{{name: l, {text}}}]").limit == (limit,)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("cost: 20 USD, every: month", Budget("b", 20 * 10**9, "month")),
        (
            "cost: 0.000000001 USD, every: 1 h, per: tenant, soft: 80 %, hard: record, unpriced: assume 0.01 USD,"
            " downgrade: {at: 80 %, to: {model: small}}",
            Budget(
                "b",
                1,
                3600.0,
                ("tenant",),
                soft=0.8,
                downgrade=Downgrade(0.8, model="small"),
                hard="record",
                unpriced=10**7,
            ),
        ),
        (
            "cost: 1 USD, every: day, unpriced: refuse, downgrade: {at: 100 %, to: {target: corp}}",
            Budget("b", 10**9, "day", downgrade=Downgrade(1.0, target="corp"), unpriced="refuse"),
        ),
    ],
)
def test_a_budget(text: str, budget: Budget) -> None:
    assert policy(f"budget: [{{name: b, {text}}}]").budget == (budget,)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("mark_cacheable", "mark_cacheable"),
        ("dedupe", "dedupe"),
        ("{keep_last: 20000}", KeepLast(20_000)),
        ("{max_output_tokens: 4000}", MaxOutput(4000)),
        ("{summarize: {keep_last: 20000, with: azure-eu}}", Summarize(20_000, "azure-eu")),
        ("{summarize: {keep_last: 1, with: corp, model: small}}", Summarize(1, "corp", "small")),
    ],
)
def test_a_shape(text: str, change: Any) -> None:
    assert policy(f"shape: [{{name: s, then: {text}}}]").shape == (Shape("s", change),)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("{budget: day, at: soft}", When("budget", "day", "soft")),
        ("{budget: day, at: hard}", When("budget", "day", "hard")),
        ("{breaker: open}", When("breaker")),
        ("{breaker: corp}", When("breaker", "corp")),
        (
            '{error_rate: "> 5 %", over: 15 m, per: provider, min_requests: 50}',
            When("error_rate", above=0.05, over_s=900.0, per=("provider",), min_requests=50),
        ),
        ('{interrupted: ">0.5%"}', When("interrupted", above=0.005)),
        ('{p95: "> 3 s", over: 1 h}', When("p95_ms", above=3000.0, over_s=3600.0)),
        ('{spend: "> 10 USD", per: [tenant, route]}', When("spend", above=10 * 10**9, per=("tenant", "route"))),
    ],
)
def test_an_alert_watches_one_thing(text: str, when: When) -> None:
    assert policy(with_budget(text)).alert == (Alert("a", when, ("https://hooks.example/hidden",)),)


def test_an_alert_goes_to_as_many_as_are_named() -> None:
    [alert] = policy("alert: [{name: a, when: {breaker: open}, to: [env:HOOK, env:PAGER]}]").alert

    assert alert.to == ("https://hooks.example/hidden", "pagerduty://hidden")


def test_an_alert_asks_for_what_rows_have_and_of_a_budget_for_what_it_is_counted_apart_by() -> None:
    text = (
        "alert:\n"
        "- {name: a, to: env:HOOK, match: {tenant: acme}, when: {budget: day, at: hard}}\n"
        "- {name: b, to: env:HOOK, unless: {metadata.team: x}, when: {spend: '> 1 USD', per: [model, metadata.plan]}}\n"
        "budget: [{name: day, cost: 1 USD, every: day, per: [tenant, model]}]\n"
    )

    matches = [(alert.match, alert.unless) for alert in policy(text).alert]

    assert matches == [(compile_match({"tenant": "acme"}), None), (None, compile_match({"metadata.team": "x"}))]


def test_phases_have_budgets_of_their_own() -> None:
    assert policy("latency: {policy: 80 ms, first_token: 1200 ms}").latency == Latency(0.08, None, 1.2)


def test_exports_are_read() -> None:
    text = "export: {audit: {to: 's3://b/x/', keep: 400 d}, otlp: {to: 'http://127.0.0.1:4318/', content: true}}"

    assert policy(text).export == Export("s3://b/x/", 400 * 86400.0, "http://127.0.0.1:4318", True)
    assert policy("export: {audit: {to: audit}}").export == Export("audit")


def test_a_target_has_a_pool_of_keys() -> None:
    [found] = loads(target("provider: openai, keys: {main: env:KEY, Spare.2: env:KEY_2}"), "p", ENV).targets.values()

    assert found == Target("t", "openai", "https://a.b", keys={"main": "mg-hidden", "Spare.2": "mg-hidden-2"})


@pytest.mark.parametrize(
    ("text", "aws"),
    [
        ("{region: eu-central-1}", Aws("eu-central-1")),
        ("{region: us-gov-west-1, profile: prod}", Aws("us-gov-west-1", profile="prod")),
        (
            "{region: eu-west-2, access_key_id: env:KEY, secret_access_key: env:KEY_2, session_token: env:HOOK,"
            " service: bedrock-mantle}",
            Aws(
                "eu-west-2",
                "mg-hidden",
                "mg-hidden-2",
                "https://hooks.example/hidden",
                service="bedrock-mantle",
            ),
        ),
    ],
)
def test_requests_to_bedrock_are_signed(text: str, aws: Aws) -> None:
    assert loads(target(f"provider: aws-bedrock, aws: {text}"), "p", ENV).targets["t"].aws == aws


def test_a_provider_of_ones_own_that_speaks_bedrocks_api_is_signed_too() -> None:
    own = "providers: {corp: {hosts: [a.b], dialect: bedrock}}\n"

    assert loads(own + target("provider: corp, aws: {region: eu-west-2}"), "p", ENV).targets["t"].aws


def test_a_service_account_stands_in_a_variable_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "account.json").write_text(ENV["ACCOUNT"])

    for written in ("env:ACCOUNT", "account.json"):
        text = target(f"provider: google-vertex-ai, google: {{service_account: {written}}}")
        read = loads(text, "p", ENV, tmp_path)
        google = read.targets["t"].google
        assert google
        assert json.loads(google.service_account) == ACCOUNT
        assert show(read)["targets"]["t"]["google"] == {"service_account": written}


# -- what they cannot say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # auth
        ("auth: []", "p:1: auth: it takes a mapping of keys, not a list"),
        ("auth: {key: env:KEY}", "p:1: auth.key: unknown key; did you mean 'keys'?"),
        ("auth: {keys: [{name: a}]}", "p:1: auth.keys[0].key: it is missing"),
        ("auth: {keys: [{key: env:KEY}]}", "p:1: auth.keys[0].name: it is missing"),
        ("auth: {keys: [{name: a, key: hidden}]}", "p:1: auth.keys[0].key: a secret may not stand in the file; put it"),
        ("auth: {keys: [{name: a, key: env:NOPE}]}", "p:1: auth.keys[0].key: the environment variable NOPE is not set"),
        (
            "auth: {keys: [{name: a, key: Bearer env:KEY}]}",
            "p:1: auth.keys[0].key: 'Bearer env:KEY': only a header has a scheme; write env:NAME alone",
        ),
        (
            "auth: {keys: [{name: a, key: env:KEY, models: []}]}",
            "p:1: auth.keys[0].models: the list is empty; it takes globs of models (leave it out to allow all)",
        ),
        (
            "auth: {keys: [{name: a, key: env:KEY, expires: soon}]}",
            "p:1: auth.keys[0].expires: 'soon' is no date or time; write it like 2027-01-31 or 2027-01-31T18:00Z",
        ),
        ("auth: {keys: [{name: a, key: env:KEY, expires: 2027}]}", "p:1: auth.keys[0].expires: '2027' is no date or"),
        (
            "auth:\n  keys:\n  - {name: a, key: env:KEY}\n  - {name: a, key: env:KEY_2}",
            "p:4: auth.keys[1].name: the name 'a' stands twice; the other is on line 3",
        ),
        (
            "auth:\n  keys:\n  - {name: a, key: env:KEY}\n  - {name: b, key: env:SAME}",
            "p:4: auth.keys[1].key: it is the key of 'a', too; each has to have its own",
        ),
        # guard
        ("guard: [{find: secret, then: block}]", "p:1: guard[0].name: it is missing"),
        ("guard: [{name: g, find: secret}]", "p:1: guard[0].then: it is missing"),
        ("guard: [{name: g, find: [], then: block}]", "p:1: guard[0].find: the list is empty; it takes kinds (secret,"),
        (
            "guard: [{name: g, find: [emial], then: block}]",
            "p:1: guard[0].find[0]: 'emial' is no kind of finding; did you mean 'email'? (As a pattern, write",
        ),
        (
            "guard: [{name: g, find: Credit card, then: block}]",
            "p:1: guard[0].find: 'Credit card' is no kind of finding; did you mean 'credit_card'? (As a pattern, write"
            " '[C]redit card')",
        ),
        ("guard: [{name: g, find: ssn, then: block}]", "p:1: guard[0].find: 'ssn' is no kind of finding; did you mean"),
        (
            "guard: [{name: g, find: passwords, then: block}]",
            "p:1: guard[0].find: 'passwords' is no kind of finding; did you mean 'secret'?",
        ),
        (
            "guard: [{name: g, find: 'a(b', then: block}]",
            "p:1: guard[0].find: 'a(b' is not a regular expression: missing )",
        ),
        (
            f"guard: [{{name: g, find: '{'(?:' * 3000}a{')' * 3000}', then: block}}]",
            "p:1: guard[0].find: '(?:(?:(?:",
        ),
        ("guard: [{name: g, find: 'a*', then: block}]", "p:1: guard[0].find: 'a*' matches the empty text, so it would"),
        ("guard: [{name: g, find: '\\b', then: block}]", "p:1: guard[0].find: '\\\\b' matches the empty text, so it"),
        ("guard: [{name: g, find: 4111, then: block}]", "p:1: guard[0].find: 4111 is a number here; for text put"),
        (
            "guard: [{name: g, find: email, allow: [phone], then: block}]",
            "p:1: guard[0].allow[0]: 'phone' is a kind of finding; allow takes patterns of what is no finding",
        ),
        (
            "guard: [{name: g, find: email, allow: '[', then: block}]",
            "p:1: guard[0].allow: '[' is not a regular expression: ",
        ),
        (
            "guard: [{name: g, match: {model: x}, allow: x@y, then: block}]",
            "p:1: guard[0].allow: allow makes exceptions from find, and the rule has none",
        ),
        ("guard: [{name: g, then: block}]", "p:1: guard[0]: the rule looks for nothing; give it find, tools, match or"),
        (
            "guard: [{name: g, find: email, then: blok}]",
            "p:1: guard[0].then: 'blok' is not known; did you mean 'block'?",
        ),
        (
            "guard: [{name: g, find: email, then: [block]}]",
            "p:1: guard[0].then: it takes block, redact, flag or {ask: TARGET}, not a list",
        ),
        (
            "guard: [{name: g, then: {ask: korp}}]",
            "p:1: guard[0].then.ask: no target 'korp'; did you mean 'corp'?",
        ),
        ("guard: [{name: g, then: {model: x}}]", "p:1: guard[0].then.ask: it is missing"),
        (
            "guard: [{name: g, then: {ask: corp, on_error: blok}}]",
            "p:1: guard[0].then.on_error: 'blok' is not known; did you mean 'block'?",
        ),
        (
            "guard: [{name: g, match: {model: x}, then: redact}]",
            "p:1: guard[0].then: nothing to redact; a rule with redact needs find",
        ),
        (
            "guard: [{name: g, find: email, tools: [a], then: redact}]",
            "p:1: guard[0].tools: a tool cannot be redacted; it goes with block or flag",
        ),
        (
            "guard: [{name: g, find: email, then: block, restore: true}]",
            "p:1: guard[0].restore: restore goes with then: redact alone",
        ),
        (
            "guard: [{name: g, find: email, in: response, then: redact, restore: true}]",
            "p:1: guard[0].restore: restore puts back what was redacted in the request; add it to in",
        ),
        (
            "guard: [{name: g, find: email, in: respons, then: block}]",
            "p:1: guard[0].in: 'respons' is not known; did you mean 'response'?",
        ),
        (
            "guard: [{name: g, find: email, in: [], then: flag}]",
            "p:1: guard[0].in: the list is empty; it takes request,",
        ),
        (
            "guard: [{name: g, unless: {model: x}, in: response, then: block}]",
            "p:1: guard[0].in: a rule without find and tools is about the request; it takes request",
        ),
        (
            "guard: [{name: g, match: {hosts: x}, then: block}]",
            "p:1: guard[0].match.hosts: unknown field; did you mean",
        ),
        (
            "guard: [{name: g, find: email, then: block}, {name: g, find: phone, then: block}]",
            "p:1: guard[1].name: the name 'g' stands twice",
        ),
        # limit
        ("limit: [{requests: 1, every: 1 m}]", "p:1: limit[0].name: it is missing"),
        (
            "limit: [{name: l, every: 1 m}]",
            "p:1: limit[0]: a rule counts one of requests, tokens and concurrent; this one has none",
        ),
        (
            "limit: [{name: l, requests: 1, tokens: 1, every: 1 m}]",
            "p:1: limit[0]: a rule counts one of requests, tokens and concurrent; this one has requests and tokens",
        ),
        ("limit: [{name: l, requests: 1}]", "p:1: limit[0]: requests need a time: every: 1 m, or day, week or month"),
        ("limit: [{name: l, tokens: 1}]", "p:1: limit[0]: tokens need a time"),
        (
            "limit: [{name: l, concurrent: 1, every: 1 m}]",
            "p:1: limit[0].every: calls at once have no time; remove every, or count requests",
        ),
        ("limit: [{name: l, requests: 0, every: 1 m}]", "p:1: limit[0].requests: 0 is outside 1…"),
        ("limit: [{name: l, requests: 1.5, every: 1 m}]", "p:1: limit[0].requests: '1.5' is not a whole number"),
        ("limit: [{name: l, requests: 1, every: daily}]", "p:1: limit[0].every: 'daily' is not known; did you mean"),
        (
            "limit: [{name: l, requests: 1, every: hour}]",
            "p:1: limit[0].every: 'hour' is not known; it takes day, week or month",
        ),
        ("limit: [{name: l, requests: 1, every: 60}]", "p:1: limit[0].every: 60 has no unit; write 60 s"),
        ("limit: [{name: l, requests: 1, every: 0 s}]", "p:1: limit[0].every: 0 s is too little; it has to be more"),
        (
            "limit: [{name: l, requests: 1, every: 1 m, per: tennant}]",
            "p:1: limit[0].per: 'tennant': unknown field; did you mean 'tenant'?",
        ),
        (
            "limit: [{name: l, concurrent: 1}, {name: l, concurrent: 2}]",
            "p:1: limit[1].name: the name 'l' stands twice",
        ),
        # budget
        ("budget: [{cost: 1 USD, every: day}]", "p:1: budget[0].name: it is missing"),
        ("budget: [{name: b, cost: 1 USD}]", "p:1: budget[0].every: it is missing"),
        ("budget: [{name: b, every: day}]", "p:1: budget[0].cost: it is missing"),
        ("budget: [{name: b, cost: 0 USD, every: day}]", "p:1: budget[0].cost: 0 USD is too little"),
        ("budget: [{name: b, cost: 20, every: day}]", "p:1: budget[0].cost: 20 has no unit; write 20 USD"),
        (
            "budget: [{name: b, cost: 20 EUR, every: day}]",
            "p:1: budget[0].cost: 'EUR' is no unit of an amount of money",
        ),
        ("budget: [{name: b, cost: 1 USD, every: day, soft: 0 %}]", "p:1: budget[0].soft: 0 % is too little"),
        (
            "budget: [{name: b, cost: 1 USD, every: day, soft: 80 %, downgrade: {at: 79 %, to: {model: m}}}]",
            "p:1: budget[0].downgrade.at: calls would be downgraded at 79 %, before soft says anything at 80 %",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, downgrade: {to: {model: m}}}]",
            "p:1: budget[0].downgrade.at: it is missing",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, downgrade: {at: 90 %, to: {modle: m}}}]",
            "p:1: budget[0].downgrade.to.modle: unknown key; did you mean 'model'?",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, downgrade: {at: 90 %, to: {model: m, target: corp}}}]",
            "p:1: budget[0].downgrade.to: it takes either {model: NAME} or {target: NAME}; this one has both",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, downgrade: {at: 90 %, to: {}}}]",
            "p:1: budget[0].downgrade.to: it takes either {model: NAME} or {target: NAME}; this one has neither",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, downgrade: {at: 90 %, to: {target: azure-us}}}]",
            "p:1: budget[0].downgrade.to.target: no target 'azure-us'; did you mean 'azure-eu'?",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, hard: record_only}]",
            "p:1: budget[0].hard: 'record_only' is not known; did you mean 'record'?",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, unpriced: deny}]",
            "p:1: budget[0].unpriced: 'deny' is not known; it takes refuse, allow or assume 0.01 USD",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, unpriced: assume 1}]",
            "p:1: budget[0].unpriced: 1 has no unit; write 1 USD",
        ),
        (
            "budget: [{name: b, cost: 1 USD, every: day, unpriced: assume 0 USD}]",
            "p:1: budget[0].unpriced: assume 0 USD would be the same as allow; write that",
        ),
        # shape
        ("shape: [{then: dedupe}]", "p:1: shape[0].name: it is missing"),
        ("shape: [{name: s}]", "p:1: shape[0].then: it is missing"),
        ("shape: [{name: s, then: dedup}]", "p:1: shape[0].then: 'dedup' is not known; did you mean 'dedupe'?"),
        (
            "shape: [{name: s, then: xyzzy}]",
            "p:1: shape[0].then: 'xyzzy' is not known; it takes mark_cacheable, dedupe, {keep_last: …},",
        ),
        ("shape: [{name: s, then: keep_last}]", "p:1: shape[0].then: keep_last needs a value: {keep_last: …}"),
        ("shape: [{name: s, then: [dedupe]}]", "p:1: shape[0].then: it takes mark_cacheable, dedupe, {keep_last: …},"),
        (
            "shape: [{name: s, then: {keep_last: 5, max_output_tokens: 5}}]",
            "p:1: shape[0].then: a rule makes one change: mark_cacheable, dedupe, {keep_last: …},"
            " {max_output_tokens: …} or {summarize: …}; this one has keep_last and max_output_tokens",
        ),
        ("shape: [{name: s, then: {}}]", "p:1: shape[0].then: a rule makes one change: mark_cacheable,"),
        ("shape: [{name: s, then: {keep_last: 0}}]", "p:1: shape[0].then.keep_last: 0 is outside 1…"),
        (
            "shape: [{name: s, then: {summarize: {with: corp}}}]",
            "p:1: shape[0].then.summarize.keep_last: it is missing",
        ),
        (
            "shape: [{name: s, then: {summarize: {keep_last: 5, with: korp}}}]",
            "p:1: shape[0].then.summarize.with: no target 'korp'; did you mean 'corp'?",
        ),
        (
            "shape:\n- {name: a, then: dedupe}\n- {name: b, match: {model: x}, then: dedupe}",
            "p:3: shape[1]: this rule never acts: the one on line 2 matches every request; move it to the end",
        ),
        # alert
        ("alert: [{name: a, to: env:HOOK}]", "p:1: alert[0].when: it is missing"),
        ("alert: [{name: a, when: {breaker: open}}]", "p:1: alert[0].to: it is missing"),
        (
            "alert: [{name: a, to: 'https://hooks.example/hidden', when: {breaker: open}}]",
            "p:1: alert[0].to: a secret may not stand in the file; put it into an environment variable and write",
        ),
        (
            "alert: [{name: a, to: [env:HOOK, env:KEY], when: {breaker: open}}]",
            "p:1: alert[0].to[1]: what env:KEY holds is not an address, such as https://",
        ),
        ("alert: [{name: a, to: [], when: {breaker: open}}]", "p:1: alert[0].to: the list is empty; it takes env:NAME"),
        (
            with_budget("{}"),
            "p:1: alert[0].when: it takes one of budget, breaker, error_rate, interrupted, p95 and spend; this one has"
            " none",
        ),
        (
            with_budget("{error_rate: '> 5 %', p95: '> 3 s'}"),
            "p:1: alert[0].when: it takes one of budget, breaker, error_rate, interrupted, p95 and spend; this one has"
            " error_rate and p95",
        ),
        (with_budget("{errorrate: '> 5 %'}"), "p:1: alert[0].when.errorrate: unknown key; did you mean 'error_rate'?"),
        (with_budget("{budget: days, at: soft}"), "p:1: alert[0].when.budget: no budget 'days'; did you mean 'day'?"),
        (with_budget("{budget: year, at: soft}"), "p:1: alert[0].when.budget: no budget 'year'; budgets are day"),
        (
            "alert: [{name: a, to: env:HOOK, when: {budget: day, at: soft}}]",
            "p:1: alert[0].when.budget: no budget 'day'; the file has no budget",
        ),
        (with_budget("{budget: day}"), "p:1: alert[0].when.at: it is missing; it takes soft, downgrade or hard"),
        (with_budget("{budget: day, at: sft}"), "p:1: alert[0].when.at: 'sft' is not known; did you mean 'soft'?"),
        (with_budget("{budget: day, at: downgrade}"), "p:1: alert[0].when.at: the budget 'day' has no downgrade"),
        (with_budget("{budget: day, at: soft, over: 5 m}"), "p:1: alert[0].when.over: it does not go with budget"),
        (
            "alert: [{name: a, to: env:HOOK, when: {spend: '> 1 USD', per: [tenant, header.x-team]}}]",
            "p:1: alert[0].when.per[1]: header.x-team is in no row, and an alert looks at rows; tag the calls",
        ),
        (
            "alert: [{name: a, to: env:HOOK, match: {body.user: x}, when: {breaker: open}}]",
            "p:1: alert[0].match.body.user: body.user is in no row",
        ),
        (
            with_budget("{budget: day, at: soft}, unless: {tenant: acme}"),
            "p:1: alert[0].unless.tenant: the budget 'day' is not counted apart by tenant; add it to its per",
        ),
        (with_budget("{breaker: open, per: model}"), "p:1: alert[0].when.per: it does not go with breaker"),
        (with_budget("{breaker: korp}"), "p:1: alert[0].when.breaker: no target 'korp'; did you mean 'corp'?"),
        (with_budget("{error_rate: 5 %}"), "p:1: alert[0].when.error_rate: '5 %' is not a comparison; write it like"),
        (with_budget("{error_rate: '< 5 %'}"), "p:1: alert[0].when.error_rate: '< 5 %' is not a comparison; write it"),
        (with_budget("{error_rate: '>= 5 %'}"), "p:1: alert[0].when.error_rate: '>= 5 %' is not a comparison; write"),
        (with_budget("{error_rate: '> 5'}"), "p:1: alert[0].when.error_rate: 5 has no unit; write 5 %"),
        (
            with_budget("{interrupted: '> 100 %'}"),
            "p:1: alert[0].when.interrupted: no share is more than 100 %, so nobody would ever be told",
        ),
        (with_budget("{p95: '> 3 %'}"), "p:1: alert[0].when.p95: '%' is no unit of a time; units are d, h, m, s, ms"),
        (with_budget("{spend: '> 3 s'}"), "p:1: alert[0].when.spend: 's' is no unit of an amount of money; units are"),
        (
            with_budget("{spend: '> 3 USD', min_requests: 5}"),
            "p:1: alert[0].when.min_requests: it does not go with spend",
        ),
        (with_budget("{spend: '> 3 USD', over: 0 s}"), "p:1: alert[0].when.over: 0 s is too little"),
        # latency, export, state
        ("latency: {policy: 80}", "p:1: latency.policy: 80 has no unit; write 80 s"),
        ("latency: {first_tokn: 1 s}", "p:1: latency.first_tokn: unknown key; did you mean 'first_token'?"),
        ("export: {audit: {keep: 1 d}}", "p:1: export.audit.to: it is missing"),
        (
            "export: {audit: {to: 's3://me:hidden@bucket/x'}}",
            "p:1: export.audit.to: a user name or password may not stand in the file; credentials come from the",
        ),
        (
            "export: {otlp: {to: 'localhost:4318'}}",
            "p:1: export.otlp.to: 'localhost:4318' is not the URL of a collector,",
        ),
        (
            "export: {otlp: {to: 'http://h:99999'}}",
            "p:1: export.otlp.to: 'http://h:99999' is not the URL of a collector",
        ),
        ("export: {parquet: {}}", "p:1: export.parquet: unknown key; it takes audit and otlp"),
        (
            "state: redis://host:6379/0",
            "p:1: state: this version shares nothing between machines; write memory, and run one gateway",
        ),
        ("state: memroy", "p:1: state: 'memroy' is not known; did you mean 'memory'?"),
    ],
)
def test_what_governance_cannot_say(text: str, fault: str) -> None:
    beside = "" if "targets:" in text else BESIDE

    [said] = faults_of(f"{text.rstrip()}{beside}")

    assert said.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "provider: openai, keys: {a b: env:KEY}",
            "p:2: targets.t.keys.a b: 'a b' cannot be an alias; use letters, digits, '-', '_' and '.'",
        ),
        ("provider: openai, keys: {a: sk-hidden}", "p:2: targets.t.keys.a: a secret may not stand in the file; put it"),
        ("provider: openai, keys: [env:KEY]", "p:2: targets.t.keys: it takes a mapping of aliases to env:NAME, not a"),
        (
            "provider: openai, keys: {a: env:KEY}, headers: {Authorization: Bearer env:KEY}",
            "p:2: targets.t.keys: a target has one kind of credential; this one has the header 'Authorization', too",
        ),
        (
            "provider: aws-bedrock, keys: {a: env:KEY}, aws: {region: eu-west-2}",
            "p:2: targets.t.keys: a target has one kind of credential; this one has aws, too",
        ),
        (
            "provider: google-vertex-ai, keys: {a: env:KEY}, google: {service_account: env:ACCOUNT}",
            "p:2: targets.t.keys: a target has one kind of credential; this one has google, too",
        ),
        (
            "provider: aws-bedrock, aws: {region: eu-west-2}, headers: {authorization: Bearer env:KEY}",
            "p:2: targets.t.aws: a target has one kind of credential; this one has the header 'authorization', too",
        ),
        (
            "provider: openai, aws: {region: eu-west-2}",
            "p:2: targets.t.aws: it is for aws-bedrock; the provider 'openai' knows nothing of it",
        ),
        (
            "provider: google-ai-studio, google: {service_account: env:ACCOUNT}",
            "p:2: targets.t.google: it is for google-vertex-ai; the provider 'google-ai-studio' knows nothing of it",
        ),
        ("provider: aws-bedrock, aws: {}", "p:2: targets.t.aws.region: it is missing"),
        (
            "provider: aws-bedrock, aws: {region: Frankfurt}",
            "p:2: targets.t.aws.region: 'Frankfurt' is not a region, such as eu-central-1",
        ),
        (
            "provider: aws-bedrock, aws: {region: eu-west-2, access_key_id: env:KEY}",
            "p:2: targets.t.aws: access_key_id and secret_access_key go together",
        ),
        (
            "provider: aws-bedrock, aws: {region: eu-west-2, access_key_id: AKIA, secret_access_key: env:KEY}",
            "p:2: targets.t.aws.access_key_id: a secret may not stand in the file;",
        ),
        (
            "provider: aws-bedrock, aws: {region: eu-west-2, session_token: env:KEY}",
            "p:2: targets.t.aws.session_token: a session token goes with access_key_id and secret_access_key",
        ),
        (
            "provider: aws-bedrock,"
            " aws: {region: eu-west-2, profile: x, access_key_id: env:KEY, secret_access_key: env:KEY_2}",
            "p:2: targets.t.aws.profile: it takes either a profile or keys of its own, not both",
        ),
        (
            "provider: google-vertex-ai, google: {service_account: env:BROKEN}",
            "p:2: targets.t.google.service_account: what env:BROKEN holds is not the JSON key of a service account; it"
            " has no client_email, private_key or token_uri",
        ),
        (
            "provider: google-vertex-ai, google: {service_account: nowhere.json}",
            "p:2: targets.t.google.service_account: 'nowhere.json' cannot be read (no such file or directory);",
        ),
    ],
)
def test_what_a_targets_credentials_cannot_be(text: str, fault: str) -> None:
    [said] = faults_of(target(text))

    assert said.startswith(fault)


def test_a_file_that_is_no_service_account_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "account.json").write_text('{"client_email": "x", "secret": "very-hidden"}')
    text = target("provider: google-vertex-ai, google: {service_account: account.json}")

    with pytest.raises(PolicyError) as refused:
        loads(text, "p", ENV, tmp_path)

    assert str(refused.value) == (
        "p:2: targets.t.google.service_account: what stands in 'account.json' is not the JSON key of a service account;"
        " it has no private_key or token_uri"
    )


def test_every_word_that_is_meant_means_a_kind() -> None:
    assert set(MEANT.values()) <= set(KINDS)
    assert not set(MEANT) & set(KINDS)


# -- both ways --------------------------------------------------------------------------------------------------------

ROUND = [
    ("auth", {"keys": [{"name": "a", "key": "env:KEY"}]}, {}),
    ("auth", {}, {"keys": []}),
    (
        "auth",
        {"keys": [{"name": "a", "key": "env:KEY", "models": ["gpt-5*"], "expires": "2027-01-31T18:00:00Z"}]},
        {},
    ),
    ("guard", [{"name": "g", "find": ["secret"], "then": "block"}], {"in": ["request"]}),
    ("guard", [{"name": "g", "in": ["request", "response"], "tools": ["get_*"], "then": "flag"}], {}),
    ("guard", [{"name": "g", "find": ["email"], "in": ["request"], "then": "redact", "restore": True}], {}),
    (
        "guard",
        [{"name": "g", "in": ["request"], "then": {"ask": "corp", "model": "m", "on_error": "pass", "about": "x"}}],
        {},
    ),
    ("limit", [{"name": "l", "requests": 60, "every": "1 m", "per": ["tenant"], "shadow": True}], {}),
    ("limit", [{"name": "l", "tokens": 60, "every": "month"}], {"per": []}),
    ("limit", [{"name": "l", "concurrent": 60}], {"per": []}),
    (
        "budget",
        [{"name": "b", "cost": "1.5 USD", "every": "week"}],
        {"per": [], "hard": "refuse", "unpriced": "allow"},
    ),
    (
        "budget",
        [
            {
                "name": "b",
                "per": ["tenant"],
                "cost": "1 USD",
                "every": "2 h",
                "soft": "12.5 %",
                "downgrade": {"at": "90 %", "to": {"target": "corp"}},
                "hard": "record",
                "unpriced": "assume 0.01 USD",
            }
        ],
        {},
    ),
    ("shape", [{"name": "s", "match": {"model": "x"}, "then": "dedupe"}], {}),
    ("shape", [{"name": "s", "then": {"summarize": {"keep_last": 5, "with": "corp", "model": "m"}}}], {}),
    ("shape", [{"name": "s", "then": {"max_output_tokens": 5}}], {}),
    ("alert", [{"name": "a", "when": {"breaker": "open"}, "to": ["env:HOOK"]}], {}),
    (
        "alert",
        [
            {
                "name": "a",
                "when": {"p95": "> 1500 ms", "over": "15 m", "per": ["model"], "min_requests": 20},
                "to": ["env:HOOK", "env:PAGER"],
            }
        ],
        {},
    ),
    ("alert", [{"name": "a", "when": {"spend": "> 0.5 USD", "over": "2 h", "per": []}, "to": ["env:HOOK"]}], {}),
    ("latency", {"retrieval": "300 ms"}, {}),
    ("export", {"audit": {"to": "audit"}, "otlp": {"to": "http://h:4318", "content": False}}, {}),
    ("state", "memory", None),
]


@pytest.mark.parametrize(("section", "written", "filled_in"), ROUND)
def test_check_shows_what_was_written_and_what_was_left_out(section: str, written: Any, filled_in: Any) -> None:
    read = policy(yaml.safe_dump({section: written}))

    shown = show(read)[section]

    expected = written
    if isinstance(written, list):
        expected = [written[0] | filled_in]
    elif isinstance(written, dict):
        expected = written | filled_in
    assert shown == expected
    assert getattr(policy(yaml.safe_dump({section: shown})), section) == getattr(read, section)


def test_nobody_sees_a_secret_of_governance() -> None:
    text = (
        "auth: {keys: [{name: a, key: env:KEY}]}\n"
        "alert: [{name: a, when: {breaker: open}, to: [env:HOOK, env:PAGER]}]\n"
        "targets:\n"
        "  a: {provider: openai, base_url: 'https://a.b', keys: {main: env:KEY}}\n"
        "  b: {provider: aws-bedrock, base_url: 'https://a.b',"
        " aws: {region: eu-west-2, access_key_id: env:KEY, secret_access_key: env:KEY_2, session_token: env:KEY}}\n"
        "  c: {provider: google-vertex-ai, base_url: 'https://a.b', google: {service_account: env:ACCOUNT}}\n"
    )

    read = loads(text, "p", ENV)

    seen = repr(read) + json.dumps(show(read))
    assert "hidden" not in seen
    assert {"env:KEY", "env:KEY_2", "env:HOOK", "env:PAGER", "env:ACCOUNT"} <= set(re.findall(r"env:[A-Z_0-9]+", seen))
    again = loads(json.dumps(show(read)), "p", ENV)
    assert replace(again, sha256=read.sha256) == read


# -- what has no effect -----------------------------------------------------------------------------------------------


def test_what_is_read_and_has_no_effect_is_said() -> None:
    text = (
        "latency: {policy: 80 ms}\n"
        "alert: [{name: rests, when: {breaker: open}, to: env:HOOK}]\n"
        "export: {audit: {to: audit}}\n"
    )

    assert notices(policy(text)) == [
        "p:1: latency: no report compares phases with it yet",
        "p:2: alert: 'rests' waits for a breaker, and the policy has none",
        "p:3: export: this version does not export yet; rows stay in the database alone",
    ]
    assert notices(policy(text.replace("export:", "breaker: {}\nexport:").replace("80 ms", "1 s")))[1].startswith("p:4")
    assert notices(policy("")) == []


# -- what comes with the gateway --------------------------------------------------------------------------------------


def examples(text: str) -> Iterator[tuple[str, str]]:
    """Yield (section, rule) for each rule that stands in the comments of the default policy."""
    section = ""
    lines = iter(text.splitlines())
    for line in lines:
        section = line.partition(":")[0] if line[:1].isalpha() else section
        found = re.search(r"#\s{3,5}- (\{.*)", line)
        if not found:
            continue
        rule = _without_comment(found[1])
        while rule.count("{") > rule.count("}"):
            rule += "\n " + _without_comment(next(lines).partition("#")[2].strip())
        yield section, rule


def _without_comment(line: str) -> str:
    return re.sub(r"\s#.*", "", line)


DEFAULT_EXAMPLES = list(examples(default_path().read_text()))
DEFAULT_ENV = {"SUPPORT_KEY": "mg-1", "SLACK_WEBHOOK": "https://a.b", "PAGER_URL": "https://a.c"}
DEFAULT_BESIDE = {
    "budget": "budget: [{name: tenant-day, cost: 1 USD, every: day, soft: 80 %}]",
    "targets": """\
targets:
  azure-za: {provider: azure-openai, base_url: "https://za.example"}
  azure-eu: {provider: azure-openai, base_url: "https://eu.example"}
  moderation: {provider: openai, base_url: "https://moderation.example"}
""",
}


@pytest.mark.parametrize(("section", "rule"), DEFAULT_EXAMPLES)
def test_an_example_in_the_default_policy_loads(section: str, rule: str) -> None:
    written = f"auth: {{keys: [{rule}]}}" if section == "auth" else f"{section}: [{rule}]"
    beside = [text for name, text in DEFAULT_BESIDE.items() if name != section]

    read = loads("\n".join([written, *beside]), "p", DEFAULT_ENV)

    assert getattr(read, section)


def test_every_section_of_rules_has_its_example_in_the_default_policy() -> None:
    sections = {section for section, _ in DEFAULT_EXAMPLES}

    assert {"auth", "guard", "limit", "budget", "cache", "shape", "route", "hedge", "alert"} <= sections


TEAM_ENV = {
    name: f"https://{name.lower().replace('_', '-')}.example"
    for name in ("SUPPORT_APP_KEY", "AOAI_SA_KEY", "AOAI_EU_KEY", "SLACK_WEBHOOK", "PAGER_URL")
} | {"CORP_PROXY": "http://proxy.corp.example:3128"}


def test_the_teams_policy_says_what_the_contracts_example_says() -> None:
    team = load(default_path().with_name("team.yaml"), TEAM_ENV, "team.yaml")

    assert team.auth == Auth((Key("support-app", TEAM_ENV["SUPPORT_APP_KEY"], "acme"),))
    assert [(rule.name, rule.then) for rule in team.guard] == [
        ("no-secrets", "block"),
        ("pii", "redact"),
        ("topics", "flag"),
        ("allowed-models", "block"),
    ]
    assert team.limit == (
        Limit("burst", requests=60, every=60.0, per=("tenant",)),
        Limit("daily-tokens", tokens=2_000_000, every="day", per=("tenant",)),
        Limit("parallel", concurrent=8, per=("tenant", "model")),
    )
    assert team.budget == (
        Budget(
            "tenant-day",
            20 * 10**9,
            "day",
            ("tenant",),
            compile_match({"tier": "large"}),
            soft=0.8,
            downgrade=Downgrade(0.9, model="gpt-5-mini"),
        ),
    )
    assert [(rule.name, rule.then) for rule in team.shape] == [
        ("long-suggestions", KeepLast(20_000)),
        ("claude-context", "mark_cacheable"),
        ("condense-history", Summarize(20_000, "azure-openai-eu")),
        ("cap-output", MaxOutput(4000)),
    ]
    assert team.latency == Latency(0.08, 0.3, 1.2)
    assert team.alert == (
        Alert("spend", When("budget", "tenant-day", "soft"), (TEAM_ENV["SLACK_WEBHOOK"],)),
        Alert(
            "errors",
            When("error_rate", above=0.05, over_s=300.0, per=("provider",)),
            (TEAM_ENV["SLACK_WEBHOOK"], TEAM_ENV["PAGER_URL"]),
        ),
    )
    assert team.export == Export("s3://acme-audit/llm/", 400 * 86400.0, "http://127.0.0.1:4318", False)
    assert team.state == "memory"


@pytest.mark.parametrize("phrase", ["secret plan", "project kestrel", "phone home", "Email Alice"])
def test_a_phrase_is_a_pattern_though_one_of_its_words_is_a_kind(phrase: str) -> None:
    [rule] = loads(f"guard: [{{name: g, find: {phrase}, then: flag}}]", "p", {}).guard

    assert rule.find == (phrase,)
