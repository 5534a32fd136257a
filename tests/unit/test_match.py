"""One language for all rules: fields that must all hold, values as globs, lists, comparisons, present or absent."""

import time
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.errors import PolicyError
from mitmgate.policy import document, match
from mitmgate.policy.forms import Plain
from mitmgate.policy.match import Rules, compile_match, fits
from mitmgate.policy.values import Cache, Timeout

REQUEST = {
    "provider": "azure-openai",
    "host": "aoai-eu.openai.azure.com",
    "path": "/openai/deployments/gpt-5/chat/completions",
    "method": "POST",
    "model": "GPT-5-mini",
    "stream": True,
    "tenant": "acme",
    "route": None,
    "input_tokens": 20_000,
    "metadata.feature": "FAQ",
    "metadata.n": 3,
    "metadata.half": 0.5,
    "metadata.beta": True,
    "metadata.count": "12",
    "metadata.empty": "",
    "header.x-team": "Search",
    "header.x-depth": " 7 ",
    "body.response_format.type": "json_schema",
    "body.N": 2,
    "body.temperature": 0.2,
    "body.store": False,
}


@pytest.mark.parametrize(
    ("field", "value", "holds"),
    [
        # globs, without regard to case
        ("model", "gpt-5*", True),
        ("model", "gpt-5", False),
        ("model", "GPT-5-MINI", True),
        ("model", "*-mini", True),
        ("model", "gpt-?-mini", True),
        ("model", "gpt-[45]-mini", True),
        ("model", "gpt-[!5]-mini", False),
        ("model", "*", True),
        ("path", "*/chat/completions", True),
        ("path", "*chat", False),
        ("metadata.feature", "faq", True),
        ("header.x-team", "search", True),
        ("header.X-Team", "search", True),
        # a list: any of them
        ("model", ["o1", "gpt-5*"], True),
        ("model", ["o1", "*-mini", "claude-*"], True),
        ("model", ["o1", "*-nano", "claude-*"], False),
        ("provider", ["openai", "azure-openai"], True),
        ("tenant", ["absent", "acme"], True),
        ("route", ["absent", "faq"], True),
        # numbers and booleans compare as JSON text
        ("metadata.n", 3, True),
        ("metadata.n", "3", True),
        ("metadata.n", 3.0, False),
        ("metadata.half", 0.5, True),
        ("metadata.beta", True, True),
        ("metadata.beta", "true", True),
        ("metadata.beta", False, False),
        ("metadata.count", 12, True),
        # comparisons
        ("input_tokens", "> 20000", False),
        ("input_tokens", ">= 20_000", True),
        ("input_tokens", "<20001", True),
        ("input_tokens", "<= 19999", False),
        ("input_tokens", 20_000, True),
        ("input_tokens", ["< 10", "> 19999"], True),
        ("metadata.n", "> 2.5", True),
        ("metadata.n", "> -1", True),
        ("metadata.count", "> 11", True),
        ("header.x-depth", "< 8", True),
        ("metadata.beta", "> 0", False),
        ("metadata.feature", "> 0", False),
        # present, absent, and the words themselves
        ("tenant", "present", True),
        ("tenant", "absent", False),
        ("route", "present", False),
        ("route", "absent", True),
        ("header.x-none", "absent", True),
        ("metadata.empty", "present", True),
        ("tenant", "[p]resent", False),
        # what a request does not have fits nothing else
        ("route", "*", False),
        ("metadata.none", "null", False),
        ("user", "> 0", False),
        ("session", ["*", "> 0"], False),
        # fields of the body, by their dotted names, in which case counts
        ("body.response_format.type", "json_*", True),
        ("body.response_format", "present", False),
        ("body.N", 2, True),
        ("body.n", "absent", True),
        ("body.temperature", "< 0.3", True),
        ("body.store", False, True),
        ("body.store", "present", True),
        # stream
        ("stream", True, True),
        ("stream", False, False),
        ("stream", [True, False], True),
    ],
)
def test_a_field_holds(field: str, value: Plain, holds: bool) -> None:
    assert match.compile_match({field: value}).holds(REQUEST.get) is holds


def test_the_word_present_itself_can_be_asked_for() -> None:
    assert match.compile_match({"tenant": "[p]resent"}).holds({"tenant": "present"}.get)


def test_all_fields_must_hold() -> None:
    both = match.compile_match({"provider": "azure-openai", "stream": True})
    assert both.holds(REQUEST.get)
    assert not both.holds((REQUEST | {"stream": False}).get)
    assert not both.holds((REQUEST | {"provider": "openai"}).get)


def test_the_empty_match_holds_for_every_request() -> None:
    assert match.compile_match({}).holds(lambda field: None)


def test_a_match_asks_no_further_than_the_first_field_that_fails() -> None:
    asked: list[str] = []

    def get(field: str) -> object | None:
        asked.append(field)
        return None

    match.compile_match({"tenant": "acme", "model": "gpt-5"}).holds(get)
    assert asked == ["tenant"]


def test_matches_are_equal_where_they_are_written_alike() -> None:
    assert match.compile_match({"tenant": "acme"}) == match.compile_match({"tenant": "acme"})
    assert match.compile_match({"tenant": "acme"}) != match.compile_match({"tenant": "globex"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("modl: x", "p:1: modl: unknown field; did you mean 'model'?"),
        ("headers.x-team: x", "p:1: headers.x-team: unknown field; did you mean 'header.x-team'?"),
        ("metadata: x", "p:1: metadata: write metadata.NAME"),
        ("header.: x", "p:1: header.: write header.NAME"),
        ("body: x", "p:1: body: write body.NAME"),
        ("bdy.user: x", "p:1: bdy.user: unknown field; did you mean 'body.user'?"),
        (
            "weather: x",
            "p:1: weather: unknown field; fields are provider, host, path, method, operation, model, tier, stream,"
            " tenant, user, route, session, auth, region, colo, sla, user_agent, input_tokens,"
            " metadata.NAME, header.NAME and body.NAME",
        ),
        ("stream: yes", 'p:1: stream: stream is true or false, not "yes"'),
        ("stream: 1", "p:1: stream: stream is true or false, not 1"),
        ("input_tokens: many", "p:1: input_tokens: 'many' is not a comparison; write it like \"> 20000\""),
        (
            "input_tokens: true",
            'p:1: input_tokens: true is not a number; write a comparison like "> 20000"',
        ),
        ('input_tokens: "> many"', "p:1: input_tokens: '> many' compares with no number; write it like \"> 20000\""),
        ('metadata.n: "> 1e3"', "p:1: metadata.n: '> 1e3' compares with no number; write it like \"> 20000\""),
        ("tenant: []", "p:1: tenant: the list is empty, so it could never hold"),
        ("tenant: [[a]]", "p:1: tenant: a list in a match holds single values only"),
        ("tenant: {a: b}", "p:1: tenant: it takes a value or a list of values, not a mapping"),
        ("tenant:", "p:1: tenant: it has no value; to ask for a missing field write absent"),
        ("metadata.n: .nan", "p:1: metadata.n: .nan is no number that a field could have"),
        (
            "header.X-A: a\nheader.x-a: b",
            "p:2: header.x-a: stands twice; names of headers know no case",
        ),
        ("[model]", "p:1: it takes a mapping of fields to values, not a list"),
        ("a: 1\nb: 2", "p:1: a: unknown field; fields are"),
    ],
)
def test_what_a_match_cannot_be(text: str, fault: str) -> None:
    root, _ = document.parse(text, "p")
    with pytest.raises(PolicyError) as refused:
        match.parse(root)
    assert str(refused.value.faults[0]).startswith(fault)


def test_every_fault_of_a_match_is_told() -> None:
    root, _ = document.parse("modl: x\nstream: yes\ntenant: ok\n", "p")
    with pytest.raises(PolicyError) as refused:
        match.parse(root)
    assert [(fault.line, fault.key) for fault in refused.value.faults] == [(1, "modl"), (2, "stream")]


def test_a_match_may_not_ask_for_what_is_told_after_it() -> None:
    root, _ = document.parse("{tier: large}", "p")
    with pytest.raises(PolicyError, match="p:1: tier: tier is not known yet when this is asked"):
        match.parse(root, frozenset({"tier"}))


# -- lists of rules ---------------------------------------------------------------------------------------------------


ACME = match.compile_match({"tenant": "acme"})
GLOBEX = match.compile_match({"tenant": "globex"})
STREAM = match.compile_match({"stream": True})


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (Timeout(), True),
        (Timeout(match=ACME), True),
        (Timeout(match=GLOBEX), False),
        (Timeout(unless=STREAM), False),
        (Timeout(unless=GLOBEX), True),
        (Timeout(match=ACME, unless=GLOBEX), True),
        (Timeout(match=ACME, unless=STREAM), False),
        (Timeout(match=GLOBEX, unless=STREAM), False),
    ],
)
def test_a_rule_fits_where_its_match_holds_and_its_unless_does_not(rule: Timeout, holds: bool) -> None:
    assert match.fits(rule, REQUEST.get) is holds


def cache(name: str, match: match.Match | None = None, shadow: bool = False) -> Cache:
    return Cache(60.0, name, match, shadow=shadow)


@pytest.mark.parametrize(
    ("rules", "acting", "shadows"),
    [
        ([], None, []),
        ([cache("a", GLOBEX)], None, []),
        ([cache("a", GLOBEX), cache("b", ACME), cache("c")], "b", []),
        # a shadow lets the next rule act
        ([cache("a", ACME, shadow=True), cache("b")], "b", ["a"]),
        ([cache("a", shadow=True), cache("b", GLOBEX), cache("c", shadow=True)], None, ["a", "c"]),
        # one that does not fit casts none, nor does one behind the rule that acts
        ([cache("a", GLOBEX, shadow=True), cache("b")], "b", []),
        ([cache("a"), cache("b", shadow=True)], "a", []),
    ],
)
def test_the_first_rule_that_fits_acts_and_shadows_before_it_are_told(
    rules: list[Cache], acting: str | None, shadows: list[str]
) -> None:
    found = match.acts(rules, REQUEST.get)

    assert (found.name if found else None) == acting
    assert [rule.name for rule in match.shadows(rules, REQUEST.get)] == shadows


def test_rules_that_cannot_be_in_the_shadow_act() -> None:
    rules = [Timeout(match=GLOBEX), Timeout(match=ACME, connect_s=1.0), Timeout()]

    assert match.acts(rules, REQUEST.get) == rules[1]
    assert match.shadows(rules, REQUEST.get) == []


# -- properties -------------------------------------------------------------------------------------------------------


@given(st.text("ab*?[]!-.", max_size=8), st.text("abAB-.", max_size=8))
def test_globs_agree_with_fnmatch(glob: str, value: str) -> None:
    if glob in ("", "present", "absent"):
        return
    expected = fnmatchcase(value.lower(), glob.lower())
    assert match.compile_match({"model": glob}).holds(lambda field: value) is expected
    assert match.compile_match({"model": [glob, "other"]}).holds(lambda field: value) is expected


def test_two_hundred_rules_cost_a_request_well_under_a_millisecond() -> None:
    rules = [
        match.compile_match({"model": ["gpt-5*", "claude-*-x"], "tenant": f"t{n}", "input_tokens": "> 20000"})
        for n in range(200)
    ]
    best_s = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for rule in rules:
            rule.holds(REQUEST.get)
        best_s = min(best_s, time.perf_counter() - started)
    assert best_s < 0.001  # 0.13 ms where it was written; the rest is room for a busy machine


# -- many rules --------------------------------------------------------------------------------------------------------

FEW = (None, "acme", "ACME", "globex", "7", 7, True, "gpt-5", "gpt-5-mini", "gpt-4o")
SAYINGS: tuple[dict[str, Any], ...] = (
    {},
    {"tenant": "acme"},
    {"tenant": ["acme", "globex"]},
    {"tenant": "ac*"},
    {"tenant": "absent"},
    {"tenant": ["acme", "present"]},
    {"metadata.n": 7},
    {"metadata.n": True, "tenant": "acme"},
    {"model": "gpt-5"},
    {"model": ["gpt-5*", "gpt-4o"]},
    {"metadata.n": "> 3"},
)


@given(
    st.lists(st.tuples(st.sampled_from(SAYINGS), st.sampled_from([None, *SAYINGS[1:]])), max_size=12),
    st.fixed_dictionaries({name: st.sampled_from(FEW) for name in ("tenant", "model", "metadata.n")}),
)
def test_a_list_of_rules_finds_the_same_as_asking_each_of_them(
    said: list[tuple[dict[str, Any], dict[str, Any] | None]], values: dict[str, object]
) -> None:
    rules = [
        Cache(60.0, str(n), compile_match(match), compile_match(unless) if unless else None)
        for n, (match, unless) in enumerate(said)
    ]

    assert Rules(rules).fitting(values.get) == [rule for rule in rules if fits(rule, values.get)]


def test_rules_of_other_tenants_are_passed_over_without_a_question() -> None:
    asked: list[str] = []

    def get(name: str) -> object:
        asked.append(name)
        return "acme"

    rules = Rules([Cache(60.0, str(n), compile_match({"tenant": f"t-{n}", "model": "m"})) for n in range(200)])

    assert rules.fitting(get) == []
    assert asked == ["tenant"]
