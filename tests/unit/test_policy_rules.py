"""The sections of rules: what they say, what they cannot say, and that ``check`` shows them as they were written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mitmgate.errors import PolicyError
from mitmgate.policy import Policy, load, loads, show
from mitmgate.policy.match import compile_match
from mitmgate.policy.values import CAUSES, Breaker, Cache, CacheStore, Causes, Choice, Hedge, Retry, Route, Timeout

TARGETS = """
targets:
  azure-eu: {provider: azure-openai, base_url: "https://eu.example"}
  corp: {provider: openai, base_url: "https://corp.example/v1"}
"""


def policy(text: str) -> Policy:
    return loads(text + TARGETS, "p", {})


# -- what they say ----------------------------------------------------------------------------------------------------


def test_a_cache_rule_needs_a_time_and_parts_its_entries_by_the_callers_key() -> None:
    [rule] = policy("cache: [{ttl: 1 h}]").cache

    assert rule == Cache(ttl_s=3600.0)
    assert (rule.scope, rule.stale_if_error_s, rule.replay) == (("auth",), 0.0, "at once")


def test_a_cache_rule_says_all_it_can() -> None:
    text = "cache: [{ttl: 5 m, scope: [tenant, header.X-A], stale_if_error: 1 h, replay: live, ignore: [user, a.b]}]"

    [rule] = policy(text).cache

    assert rule == Cache(300.0, "cache", None, None, False, ("tenant", "header.x-a"), 3600.0, "live", ("user", "a.b"))


def test_the_store_of_answers_has_a_size() -> None:
    text = "cache_store: {max: 1 MiB, key_header: replace, coalesce: false}"

    assert policy(text).cache_store == CacheStore(2**20, "replace", False)


def test_retry_is_one_mapping_or_a_list_that_ends_with_one_attempt() -> None:
    several = policy("retry: [{match: {route: faq}, attempts: 5}]").retry

    assert policy("retry: {attempts: 3, delay: 1 s, ratio: 10 %}").retry == (Retry(attempts=3, delay_s=1.0, ratio=0.1),)
    assert [rule.attempts for rule in several] == [5, 1]


def test_a_retry_says_all_it_can() -> None:
    text = (
        "retry: {name: r, attempts: 10, delay: 0 s, backoff: linear, max_delay: 4 s, jitter: none,"
        " retry_on: [503, 4xx, error_event], within: 30 s, ratio: 0 %}"
    )

    [rule] = policy(text).retry

    causes: Causes = frozenset({503, "4xx", "error_event"})
    assert rule == Retry(None, None, "r", False, 10, 0.0, "linear", 4.0, "none", causes, 30.0, 0.0)


def test_a_rule_in_the_shadow_is_not_the_one_that_every_request_finds() -> None:
    rules = policy("retry: [{shadow: true, attempts: 5}, {match: {route: faq}, attempts: 3}]").retry

    assert [(rule.attempts, rule.shadow) for rule in rules] == [(5, True), (3, False), (1, False)]


def test_nothing_rests_unless_a_breaker_is_written() -> None:
    assert policy("").breaker == policy("breaker: []").breaker == ()
    assert policy("breaker: {}").breaker == (Breaker(),)
    assert policy("breaker: {window: 10 s, min_requests: 5, failures: 20 %, rest: 1 m}").breaker == (
        Breaker(window_s=10.0, min_requests=5, failures=0.2, rest_s=60.0),
    )


@pytest.mark.parametrize(
    ("after", "rule", "value"),
    [
        ("p50", (None, 50), 50),
        ("p99", (None, 99), 99),
        ("800 ms", (0.8, 95), 0.8),
        ("50 s", (50.0, 95), 50.0),
    ],
)
def test_a_hedge_waits_for_a_percentile_or_a_time(after: str, rule: tuple[float | None, int], value: float) -> None:
    [hedge] = policy(f"hedge: [{{name: tail, after: {after}, to: azure-eu, ratio: 5 %}}]").hedge

    assert hedge == Hedge("tail", *rule, "azure-eu", ratio=0.05)
    assert (hedge.after, type(hedge.after)) == (value, type(value))


# -- what they cannot say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # cache
        ("cache: [{scope: [tenant]}]", "p:1: cache[0].ttl: it is missing"),
        ("cache: [{tll: 1 h}]", "p:1: cache[0].tll: unknown key; did you mean 'ttl'?"),
        ("cache: [{ttl: 0 s}]", "p:1: cache[0].ttl: 0 s is too little; it has to be more than zero"),
        ("cache: [{ttl: 60}]", "p:1: cache[0].ttl: 60 has no unit; write 60 s"),
        (
            "cache: [{ttl: 1 h, scope: [tennant]}]",
            "p:1: cache[0].scope[0]: 'tennant': unknown field; did you mean 'tenant'?",
        ),
        (
            "cache: [{ttl: 1 h, scope: [headers.x]}]",
            "p:1: cache[0].scope[0]: 'headers.x': unknown field; did you mean 'header.x'?",
        ),
        ("cache: [{ttl: 1 h, match: {modl: x}}]", "p:1: cache[0].match.modl: unknown field; did you mean 'model'?"),
        ("cache: [{ttl: 1 h, replay: slow}]", "p:1: cache[0].replay: 'slow' is not known; it takes at once or live"),
        ("cache: [{ttl: 1 h, ignore: [a..b]}]", "p:1: cache[0].ignore[0]: 'a..b' is no field of a body"),
        ('cache: [{ttl: 1 h, name: ""}]', "p:1: cache[0].name: it is empty; it takes text"),
        ('cache: [{ttl: 1 h, name: "a\\nb"}]', "p:1: cache[0].name: it holds a line break or another character"),
        (
            "cache:\n- {name: a, ttl: 1 h}\n- name: b\n  ttl: 1 h\n- ttl: 1 h\n  name: a",
            "p:6: cache[2].name: the name 'a' stands twice; the other is on line 2",
        ),
        # cache_store
        ("cache_store: {coalesce: 1}", "p:1: cache_store.coalesce: '1' is not true or false"),
        ("cache_store: {max: 0 B}", "p:1: cache_store.max: 0 B is too little"),
        (
            "cache_store: {max: 2 GB, key_header: replaces}",
            "p:1: cache_store.key_header: 'replaces' is not known; did you mean",
        ),
        # retry
        (
            "retry: {retry_on: [429, timeouts]}",
            "p:1: retry.retry_on[1]: 'timeouts' is not known; did you mean 'timeout'?",
        ),
        ("retry: {retry_on: 5XX}", "p:1: retry.retry_on: '5XX' is not known; did you mean '5xx'?"),
        (
            "retry: {retry_on: [gone]}",
            "p:1: retry.retry_on[0]: 'gone' is not known; it takes a status (400…599), 4xx, 5xx, connect,",
        ),
        ("retry: {retry_on: [302]}", "p:1: retry.retry_on[0]: 302 is no status of an error; statuses are 400…599"),
        ("retry: {retry_on: [600]}", "p:1: retry.retry_on[0]: 600 is no status of an error"),
        ("retry: {attempts: 0}", "p:1: retry.attempts: 0 is outside 1…10"),
        ("retry: {attempts: 11}", "p:1: retry.attempts: 11 is outside 1…10"),
        ("retry: {attempts: 2.5}", "p:1: retry.attempts: '2.5' is not a whole number"),
        ("retry: {backof: linear}", "p:1: retry.backof: unknown key; did you mean 'backoff'?"),
        ("retry: {backoff: exponental}", "p:1: retry.backoff: 'exponental' is not known; did you mean 'exponential'?"),
        ("retry: {jitter: half}", "p:1: retry.jitter: 'half' is not known; it takes full or none"),
        ("retry: {ratio: 0.2}", "p:1: retry.ratio: 0.2 has no unit; write 0.2 %"),
        ("retry: {ratio: 120 %}", "p:1: retry.ratio: '120 %' is more than 100 %"),
        ("retry: {within: 0 s}", "p:1: retry.within: 0 s is too little"),
        (
            "retry:\n- {attempts: 2}\n- {match: {route: a}, attempts: 3}",
            "p:3: retry[1]: this rule never acts: the one on line 2 matches every request; move it to the end",
        ),
        (
            "retry: [{name: r, match: {route: a}}, {name: r, match: {route: b}}]",
            "p:1: retry[1].name: the name 'r' stands twice; the other is on line 1",
        ),
        # breaker
        ("breaker: {failures: 0 %}", "p:1: breaker.failures: 0 % is too little"),
        ("breaker: {failures: 101 %}", "p:1: breaker.failures: '101 %' is more than 100 %"),
        ("breaker: {min_requests: 0}", "p:1: breaker.min_requests: 0 is outside 1…"),
        ("breaker: {rest: 0 s}", "p:1: breaker.rest: 0 s is too little"),
        ("breaker: [{rest: 1 s}, {match: {provider: x}}]", "p:1: breaker[1]: this rule never acts: the one on line 1"),
        # hedge
        ("hedge: [{after: p95, to: corp}]", "p:1: hedge[0].name: it is missing"),
        ("hedge: [{name: a, to: corp}]", "p:1: hedge[0].after: it is missing"),
        ("hedge: [{name: a, after: p95}]", "p:1: hedge[0].to: it is missing"),
        (
            "hedge: [{name: a, after: p30, to: corp}]",
            "p:1: hedge[0].after: 'p30' is not a percentile; it takes p50 to p99,",
        ),
        ("hedge: [{name: a, after: p100, to: corp}]", "p:1: hedge[0].after: 'p100' is not a percentile"),
        ("hedge: [{name: a, after: soon, to: corp}]", "p:1: hedge[0].after: 'soon' is not a time"),
        ("hedge: [{name: a, after: 95, to: corp}]", "p:1: hedge[0].after: 95 has no unit; write 95 s"),
        (
            "hedge: [{name: a, after: 1 s, to: nowhere}]",
            "p:1: hedge[0].to: no target 'nowhere'; targets are azure-eu and corp",
        ),
        ("hedge: [{name: a, after: 1 s, to: korp}]", "p:1: hedge[0].to: no target 'korp'; did you mean 'corp'?"),
        (
            "hedge: [{name: a, after: 1 s, to: corp}, {name: a, after: 1 s, to: corp}]",
            "p:1: hedge[1].name: the name 'a' stands twice",
        ),
        # route
        ("route: [{name: a, try: corp}, {name: a, try: corp}]", "p:1: route[1].name: the name 'a' stands twice"),
    ],
)
def test_what_a_rule_cannot_say(text: str, fault: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(text)

    [said] = map(str, refused.value.faults)
    assert said.startswith(fault)


def test_rules_that_nobody_named_may_stand_beside_each_other() -> None:
    assert [rule.name for rule in policy("cache: [{ttl: 1 h}, {ttl: 2 h}]").cache] == ["cache", "cache"]


# -- both ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "written", "filled_in"),
    [
        (
            "cache",
            [{"name": "faq", "match": {"route": "faq"}, "ttl": "1 h", "scope": ["tenant"], "shadow": True}],
            {"stale_if_error": "0 s", "replay": "at once", "ignore": []},
        ),
        (
            "cache",
            [{"ttl": "5 m", "stale_if_error": "1 h", "replay": "live", "ignore": ["user"]}],
            {"scope": ["auth"]},
        ),
        ("cache_store", {"max": "1 GiB", "coalesce": False}, {"key_header": "scope"}),
        (
            "retry",
            {"attempts": 3, "backoff": "linear", "jitter": "none", "within": "30 s"},
            {
                "delay": "500 ms",
                "max_delay": "30 s",
                "retry_on": [408, 409, 425, 429, "5xx", "connect", "reset", "timeout"],
                "ratio": "20 %",
            },
        ),
        (
            "breaker",
            {"window": "10 s", "failures": "12.5 %"},
            {"min_requests": 10, "rest": "15 s"},
        ),
        ("hedge", [{"name": "tail", "after": "p95", "to": "azure-eu"}], {"ratio": "10 %"}),
        ("hedge", [{"name": "tail", "after": "1500 ms", "to": "azure-eu", "ratio": "5 %"}], {}),
    ],
)
def test_check_shows_a_rule_in_the_words_of_the_file(
    section: str, written: dict[str, object] | list[dict[str, object]], filled_in: dict[str, object]
) -> None:
    read = policy(yaml.safe_dump({section: written}))

    shown = show(read)[section]

    rule = written[0] if isinstance(written, list) else written
    assert shown == ([rule | filled_in] if isinstance(written, list) else rule | filled_in)
    assert getattr(policy(yaml.safe_dump({section: shown})), section) == getattr(read, section)


@pytest.mark.parametrize(
    "text",
    [
        "retry: [{name: r, match: {route: faq}, attempts: 5}, {attempts: 2}]",
        "retry: {match: {route: faq}, attempts: 5}",
        "breaker: [{match: {provider: openai}, rest: 1 s}, {shadow: true}]",
    ],
)
def test_a_list_of_rules_is_shown_so_that_it_reads_back_as_itself(text: str) -> None:
    read = policy(text)

    again = loads(json.dumps(show(read)), "p", {})

    assert replace(again, sha256=read.sha256) == read


# -- where they stand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "where"),
    [
        ("route:\n- {name: a, try: corp}\n- {name: b, try: corp}\n", "route[1]", "p:3"),
        ("\nroute: {name: a, try: corp}\n", "route[0]", "p:2"),
        ("\n\nretry: {attempts: 3}\n", "retry[0]", "p:3"),
        ("retry:\n- {attempts: 3}\n", "retry[0]", "p:2"),
        ("retry: {attempts: 3}\n", "retry[1]", None),
        ("", "cache[0]", None),
    ],
)
def test_a_rule_is_found_by_its_place_in_the_file(text: str, key: str, where: str | None) -> None:
    assert policy(text).where(key) == where


# -- the example of the contract --------------------------------------------------------------------------------------

EXAMPLE = """\
cache:
  - {match: {route: faq}, ttl: 1 h, scope: [tenant]}
  - {match: {header.x-cacheable: present}, ttl: 5 m, stale_if_error: 1 h}
cache_store: {max: 2 GiB, key_header: scope, coalesce: true}

route:
  - name: azure
    match: {provider: azure-openai}
    try: [azure-openai-sa, azure-openai-eu]
    fall_back_on: [429, 5xx, connect, timeout, reset, error_event]
  - {name: canary, match: {model: gpt-5}, split: {gpt-5: 90, gpt-5-next: 10}, by: session}

retry: {attempts: 3, delay: 500 ms, backoff: exponential, max_delay: 30 s, jitter: full,
        retry_on: [408, 409, 425, 429, 5xx, connect, timeout, reset], within: 2 m, ratio: 20 %}
timeout: {connect: 5 s, first_byte: 2 m, idle: 5 m, total: 1 h}
breaker: {window: 30 s, min_requests: 10, failures: 50 %, rest: 15 s}
hedge:
  - {name: faq-tail, match: {route: faq}, after: p95, to: azure-openai-eu}

targets:
  azure-openai-sa: {provider: azure-openai, base_url: "https://aoai-sa.openai.azure.com", headers: {api-key: env:AOAI_SA_KEY}}
  azure-openai-eu: {provider: azure-openai, base_url: "https://aoai-eu.openai.azure.com", headers: {api-key: env:AOAI_EU_KEY},
                    deployments: {gpt-5: gpt-5-eu}, zone: eu, ca: certs/corp.pem}
"""  # noqa: E501


def test_the_sections_of_the_contracts_example_load(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/corp.pem").write_text("a certificate")
    (tmp_path / "team.yaml").write_text(EXAMPLE)

    team = load(tmp_path / "team.yaml", {"AOAI_SA_KEY": "sa", "AOAI_EU_KEY": "eu"})

    faq = compile_match({"route": "faq"})
    assert team.cache == (
        Cache(3600.0, match=faq, scope=("tenant",)),
        Cache(300.0, match=compile_match({"header.x-cacheable": "present"}), stale_if_error_s=3600.0),
    )
    assert team.cache_store == CacheStore()
    assert team.route == (
        Route(
            "azure",
            match=compile_match({"provider": "azure-openai"}),
            tries=(Choice("azure-openai-sa"), Choice("azure-openai-eu")),
            fall_back_on=frozenset({429, "5xx", "connect", "timeout", "reset", "error_event"}),
        ),
        Route(
            "canary",
            match=compile_match({"model": "gpt-5"}),
            split=((Choice(model="gpt-5"), 90), (Choice(model="gpt-5-next"), 10)),
            by="session",
        ),
    )
    assert team.retry == (Retry(attempts=3, retry_on=CAUSES),)
    assert team.timeout == (Timeout(),)
    assert team.breaker == (Breaker(),)
    assert team.hedge == (Hedge("faq-tail", None, 95, "azure-openai-eu", match=faq),)
    assert list(team.targets) == ["azure-openai-sa", "azure-openai-eu"]
