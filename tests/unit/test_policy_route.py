"""``route``: which places a rule may name, what could never come true, and that ``check`` shows it as written."""

import pytest
import yaml

from mitmgate.errors import PolicyError
from mitmgate.policy import Policy, loads, show
from mitmgate.policy.match import compile_match
from mitmgate.policy.values import CAUSES, Branch, Choice, Route, Within

TARGETS = """
targets:
  azure-za: {provider: azure-openai, base_url: "https://za.example", zone: za}
  azure-eu: {provider: azure-openai, base_url: "https://eu.example", zone: eu}
  claude: {provider: anthropic, base_url: "https://claude.example"}
  gemini: {provider: google-ai-studio, base_url: "https://gemini.example"}
  vertex: {provider: google-vertex-ai, base_url: "https://vertex.example"}
  vertex-openai: {provider: google-vertex-ai, base_url: "https://vertex.example/v1/endpoints/openapi/"}
  bedrock: {provider: aws-bedrock, base_url: "https://bedrock.example"}
  bedrock-eu: {provider: aws-bedrock, base_url: "https://bedrock-eu.example"}
  deepseek-claude: {provider: deepseek, base_url: "https://deepseek.example/anthropic"}
  corp: {provider: openai, base_url: "https://corp.example/v1"}
  own: {provider: corp-llm, base_url: "https://own.example"}
providers:
  corp-llm: {hosts: [own.example], dialect: openai}
"""


def policy(rule: str) -> Policy:
    """Return the policy with *rule*, called ``a``, as its only one."""
    return loads("route:\n- name: a\n" + "".join(f"  {line}\n" for line in rule.splitlines()) + TARGETS, "p", {})


def route(rule: str) -> Route:
    [read] = policy(rule).route
    return read


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_try_names_targets_and_models_in_order() -> None:
    read = route("try: [azure-za, {target: azure-eu, model: m, timeout: 3 s, attempts: 2}, {model: n}]")

    assert read.tries == (Choice("azure-za"), Choice("azure-eu", "m", 3.0, 2), Choice(None, "n"))


def test_a_single_place_needs_no_list() -> None:
    assert route("try: corp").tries == (Choice("corp"),)


def test_a_name_in_a_split_is_a_target_if_there_is_one_and_else_a_model() -> None:
    read = route("split: {azure-eu: 1, gpt-5-next: 9.5}\nby: session")

    assert read.split == ((Choice("azure-eu"), 1), (Choice(model="gpt-5-next"), 9.5))
    assert read.by == "session"


def test_a_choose_has_branches_with_conditions() -> None:
    read = route(
        "match: {model: dynamic/support}\n"
        "choose:\n"
        "- {match: {metadata.plan: free}, unless: {stream: true}, split: {x: 1}, by: user}\n"
        "- {within: {requests: 9, every: 1 m, per: tenant}, try: corp}\n"
        "- try: [azure-za, azure-eu]\n"
    )

    assert read.match == compile_match({"model": "dynamic/support"})
    assert read.choose == (
        Branch(
            match=compile_match({"metadata.plan": "free"}),
            unless=compile_match({"stream": True}),
            split=((Choice(model="x"), 1),),
            by="user",
        ),
        Branch(within=Within(9, 60.0, ("tenant",)), tries=(Choice("corp"),)),
        Branch(tries=(Choice("azure-za"), Choice("azure-eu"))),
    )


def test_a_rule_may_be_nothing_but_a_zone() -> None:
    assert route("zone: za") == Route("a", zone="za")


def test_causes_are_statuses_classes_and_words() -> None:
    assert route("try: corp").fall_back_on == CAUSES
    assert route("try: corp\nfall_back_on: [429, 4xx, error_event]").fall_back_on == {429, "4xx", "error_event"}


# -- what it cannot say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("match: {model: x}", "p:2: route[0]: the rule chooses nothing; give it try, split, choose, or a zone"),
        (
            "try: corp\nsplit: {x: 1}",
            "p:2: route[0]: a rule has one of try, split and choose; this one has try and split",
        ),
        # places
        ("try:\n- azure-za\n- azure-sa", "p:5: route[0].try[1]: no target 'azure-sa'; did you mean 'azure-za'?"),
        ("try: [{target: korp}]", "p:3: route[0].try[0].target: no target 'korp'; did you mean 'corp'?"),
        ("try: []", "p:3: route[0].try: the list is empty; it takes places"),
        ("try: [{timeout: 3 s}]", "p:3: route[0].try[0]: it names no place: give it a target, a model, or both"),
        ("try: [{target: corp, attempts: 11}]", "p:3: route[0].try[0].attempts: 11 is outside 1…10"),
        ("try: [{target: corp, timeout: 0 s}]", "p:3: route[0].try[0].timeout: 0 s is too little"),
        ("try: [{target: corp, modle: m}]", "p:3: route[0].try[0].modle: unknown key; did you mean 'model'?"),
        # weights
        ("split: {x: 0}", "p:3: route[0].split.x: 0 is too little; it has to be more than zero"),
        ("split: {x: -1}", "p:3: route[0].split.x: -1 is too little"),
        ("split: {x: many}", "p:3: route[0].split.x: 'many' is not a number"),
        ("split: {x: .inf}", "p:3: route[0].split.x: '.inf' is not a number"),
        ("split: {x: true}", "p:3: route[0].split.x: 'true' is not a number"),
        ("split: {}", "p:3: route[0].split: it is empty; it takes targets or models, each with its weight"),
        ('split: {"": 1}', "p:3: route[0].split.: the name is empty"),
        ("split: [corp]", "p:3: route[0].split: it takes a mapping of targets or models to weights, not a list"),
        # branches
        ("choose: []", "p:3: route[0].choose: the list is empty; it takes branches"),
        ("choose:\n- by: user", "p:4: route[0].choose[0]: a branch has either try or split; this one has neither"),
        (
            "choose:\n- {try: corp, split: {x: 1}}",
            "p:4: route[0].choose[0]: a branch has either try or split; this one has try and split",
        ),
        ("choose:\n- {zone: za, try: corp}", "p:4: route[0].choose[0].zone: unknown key; it takes match, unless,"),
        (
            "choose:\n- {match: {}, try: corp}\n- {try: corp}\n- {try: corp}",
            "p:5: route[0].choose[1]: this branch is never taken: the one on line 4 takes every request",
        ),
        ("choose:\n- {within: {requests: 9}, try: corp}", "p:4: route[0].choose[0].within.every: it is missing"),
        ("choose:\n- {within: {every: 1 m}, try: corp}", "p:4: route[0].choose[0].within.requests: it is missing"),
        (
            "choose:\n- {within: {requests: 9, every: 1 m, per: tenat}, try: corp}",
            "p:4: route[0].choose[0].within.per: 'tenat': unknown field; did you mean 'tenant'?",
        ),
        # zones
        ("zone: zaa", "p:3: route[0].zone: no target is in zone 'zaa'; did you mean 'za'?"),
        ("zone: moon", "p:3: route[0].zone: no target is in zone 'moon'; zones are eu and za"),
        (
            "zone: za\ntry:\n- azure-za\n- azure-eu",
            "p:6: route[0].try[1]: the target 'azure-eu' is in zone 'eu', so a rule of zone 'za' never uses it",
        ),
        (
            "zone: za\nsplit:\n  azure-za: 1\n  corp: 1",
            "p:6: route[0].split.corp: the target 'corp' is in no zone, so a rule of zone 'za' never uses it",
        ),
        (
            "zone: za\nchoose:\n- try: {target: azure-eu}",
            "p:5: route[0].choose[0].try.target: the target 'azure-eu' is in zone 'eu'",
        ),
        # the rest
        ("try: corp\nby: sesion", "p:4: route[0].by: 'sesion': unknown field; did you mean 'session'?"),
        ("try: corp\nfall_back_on: [200]", "p:4: route[0].fall_back_on[0]: 200 is no status of an error"),
        ("try: corp\nshadow: maybe", "p:4: route[0].shadow: 'maybe' is not true or false"),
    ],
)
def test_what_a_rule_cannot_say(rule: str, fault: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(rule)

    [said] = map(str, refused.value.faults)
    assert said.startswith(fault)


def test_each_target_outside_of_the_zone_is_told() -> None:
    with pytest.raises(PolicyError) as refused:
        policy("zone: za\ntry: [azure-eu, azure-za, corp]")

    assert [fault.key for fault in refused.value.faults] == ["route[0].try[0]", "route[0].try[2]"]


def test_a_rule_has_a_name() -> None:
    with pytest.raises(PolicyError, match=r"p:1: route\[0\].name: it is missing"):
        loads("route: [{try: corp}]" + TARGETS, "p", {})


def test_a_file_without_targets_says_so() -> None:
    with pytest.raises(PolicyError, match="no target 'corp'; the file has no targets"):
        loads("route: [{name: a, try: corp}]", "p", {})
    with pytest.raises(PolicyError, match="no target is in zone 'za'; no target has a zone"):
        loads("route: [{name: a, zone: za}]", "p", {})


# -- targets that may stand together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        # OpenAI's wire: Azure has it, and Anthropic and Google have an endpoint for it
        "try: [corp, azure-eu, claude, gemini]",
        "match: {provider: openai}\ntry: [corp, claude]",
        "try: [azure-eu, vertex-openai]",
        # one provider's own
        "try: [bedrock, bedrock-eu]",
        "try: [claude, deepseek-claude]",
        "match: {provider: anthropic}\ntry: [claude, deepseek-claude]",
        "try: [gemini, vertex]",
        # OpenAI-style calls that are meant for Anthropic
        'match: {provider: anthropic, path: "*/chat/completions"}\ntry: [claude, corp]',
        'match: {provider: anthropic}\nunless: {path: "*/messages"}\ntry: [claude, corp]',
        "match: {provider: [anthropic, google-ai-studio, openai]}\ntry: [claude, gemini, corp]",
        'match: {provider: "anth*"}\ntry: [claude, corp]',
        "choose:\n- {match: {path: '*/messages'}, try: claude}\n- {try: bedrock}",
        # hosts of one's own may speak anything, and a model names no host
        "try: [bedrock, own]",
        "try: [bedrock, {model: x}]",
        "split: {bedrock: 1, x: 1}",
    ],
)
def test_targets_may_stand_together_if_one_request_can_go_to_all(rule: str) -> None:
    assert route(rule).name == "a"


APART = "speak different APIs, so no request can go to all of them"


@pytest.mark.parametrize(
    ("rule", "key", "text"),
    [
        ("try: [claude, bedrock]", "try[1]", f"'bedrock' and the targets before it {APART}"),
        ("try: [claude, vertex]", "try[1]", f"'vertex' and the targets before it {APART}"),
        ("try: [corp, claude, vertex]", "try[2]", f"'vertex' and the targets before it {APART}"),
        ("try: [azure-eu, deepseek-claude, bedrock]", "try[2]", f"'bedrock' and the targets before it {APART}"),
        ("split: {claude: 1, bedrock: 1}", "split.bedrock", f"'bedrock' and the targets before it {APART}"),
        ("choose:\n- try: [claude, vertex]", "choose[0].try[1]", f"'vertex' and the targets before it {APART}"),
        (
            "choose:\n- {within: {requests: 9, every: 1 m}, try: claude}\n- {try: vertex}",
            "choose[1].try",
            f"'vertex' and the targets before it {APART}",
        ),
        (
            "match: {provider: anthropic}\ntry: [claude, corp]",
            "try[1]",
            "'corp' and the targets before it speak different APIs, so no anthropic request can go to all of them;"
            ' if you mean those in OpenAI\'s form, say so in match: {path: "*/chat/completions"}',
        ),
        (
            "match: {provider: google-ai-studio}\nchoose:\n- {match: {stream: true}, try: [gemini, azure-eu]}",
            "choose[0].try[1]",
            "'azure-eu' and the targets before it speak different APIs, so no gemini request can go to all of them;",
        ),
        (
            "match: {provider: anthropic}\ntry: [claude, bedrock]",  # another path would not help bedrock
            "try[1]",
            f"'bedrock' and the targets before it {APART}",
        ),
    ],
)
def test_targets_may_not_stand_together_if_no_request_can_go_to_all(rule: str, key: str, text: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(rule)

    [fault] = refused.value.faults
    assert fault.key == f"route[0].{key}"
    assert fault.text.startswith(text)


# -- both ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        {"match": {"model": "dynamic/a"}, "try": ["corp", {"model": "n", "timeout": "3 s", "attempts": 2}]},
        {"split": {"azure-za": 90, "gpt-5-next": 9.5}, "by": "session", "shadow": True},
        {"try": ["azure-za"], "fall_back_on": [429, "5xx", "connect"], "zone": "za"},
        {"zone": "za", "unless": {"tenant": "acme"}},
        {
            "choose": [
                {"within": {"requests": 9, "every": "1 m", "per": ["tenant"]}, "try": ["corp"]},
                {"match": {"metadata.plan": "free"}, "split": {"x": 1}, "by": "user"},
                {"try": [{"target": "azure-eu", "model": "m"}]},
            ]
        },
    ],
)
def test_check_shows_a_rule_in_the_words_of_the_file(written: dict[str, object]) -> None:
    read = policy(yaml.safe_dump(written))

    [shown] = show(read)["route"]

    default = [408, 409, 425, 429, "5xx", "connect", "reset", "timeout"]
    assert shown == {"name": "a", "fall_back_on": default, **written}
    assert loads(yaml.safe_dump({"route": [shown]}) + TARGETS, "p", {}).route == read.route
