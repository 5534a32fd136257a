"""``mitmgate alert`` says how rules stand, without policy or secrets; ``alert test`` says who can be reached."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.alert_message import Notice, as_fields
from mitmgate.cli import group
from mitmgate.clock import SystemClock, iso
from mitmgate.store.alert_file import AlertFile, State, Watched
from support.receiver import Receiver, receiver

DAY_S = 86400.0
WALL = SystemClock.wall()
NOTICE: dict[str, Any] = {"says": "12 % of calls failed", "value": 0.12, "evidence": ["019e"]}
RULES = [
    Watched("errors", "error_rate > 5 % over 5 m per provider", ("provider",), ("env:HOOK",), False, "team.yaml:3"),
    Watched("slow", "p95 > 3 s over 5 m", (), ("env:HOOK", "env:PAGER"), True, "team.yaml:4"),
]
STATES = [
    State(
        "errors",
        ("anthropic",),
        "clear",
        WALL - 21 * DAY_S,
        WALL - 20 * DAY_S,
        {**NOTICE, "says": "1 % of calls failed"},
        True,
    ),
    State("errors", ("evil\x1b[31m",), "breach", WALL - 12 * DAY_S, WALL - 12 * DAY_S, NOTICE, False),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    file = AlertFile(tmp_path / "alerts.db")
    file.keep(RULES)
    file.save(STATES)
    return tmp_path


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


def run(home: Path, *args: str, **env: str) -> Result:
    return CliRunner().invoke(group, ["alert", *args, "--home", str(home)], env={"COLUMNS": "140", **env})


def test_the_list_shows_what_is_breached_first_and_what_was_never_breached(home: Path) -> None:
    lines = [" ".join(line.split()) for line in run(home).output.splitlines()]
    assert lines == [
        "rule state changed who what",
        "errors breach 12d ago provider evil␛[31m 12 % of calls failed (not delivered yet)",
        "errors clear 20d ago provider anthropic 1 % of calls failed",
        "slow (shadow) quiet – p95 > 3 s over 5 m",
    ]


def test_the_list_for_machines(home: Path) -> None:
    errors, slow = json.loads(run(home, "--json").output)
    assert (errors["name"], errors["to"], errors["where"], errors["shadow"]) == (
        "errors",
        ["env:HOOK"],
        "team.yaml:3",
        False,
    )
    assert errors["states"][0] == {
        "state": "breach",
        "per": {"provider": "evil\x1b[31m"},
        "since": iso(WALL - 12 * DAY_S),
        "changed_at": iso(WALL - 12 * DAY_S),
        "says": "12 % of calls failed",
        "value": 0.12,
        "evidence": ["019e"],
        "told": False,
    }
    assert [state["state"] for state in errors["states"]] == ["breach", "clear"]
    assert (slow["watches"], slow["states"]) == ("p95 > 3 s over 5 m", [])


def test_a_policy_without_rules_says_so(home: Path) -> None:
    AlertFile(home / "alerts.db").keep([])
    assert run(home).output == "The policy has no alert rule.\n"


def test_where_nothing_was_watched_it_says_what_would(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "no alert rule has been watched here yet" in result.output


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "alerts.db").write_bytes(b"somebody else's" * 100)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "alerts.db cannot be read" in result.output


# -- test -------------------------------------------------------------------------------------------------------------

POLICY = """\
alert:
  - {name: errors, when: {error_rate: "> 5 %"}, to: [env:HOOK, env:PAGER]}
  - {name: spend, when: {spend: "> 10 USD", over: 1 h, per: tenant}, to: env:HOOK}
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "team.yaml"
    path.write_text(POLICY)
    return str(path)


def tried(home: Path, policy: str, *args: str, **env: str) -> Result:
    return run(home, "test", *args, "--policy", policy, **env)


def test_each_receiver_gets_a_test_and_says_what_it_answered(home: Path, policy: str, hook: Receiver) -> None:
    result = tried(home, policy, HOOK=hook.url, PAGER=f"{hook.url}/pager")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "errors: env:HOOK: 200 ok",
        "errors: env:PAGER: 200 ok",
        "spend: env:HOOK: 200 ok",
    ]
    assert hook.told() == [("errors", "test"), ("errors", "test"), ("spend", "test")]
    assert hook.messages[2]["text"].splitlines()[0] == (
        "[test] spend: this is only a test; the rule watches spend > 10 USD over 1 h per tenant"
    )
    assert hook.messages[2]["where"] == f"{policy}:3"


def test_one_that_cannot_be_reached_is_an_error(home: Path, policy: str, hook: Receiver) -> None:
    hook.answers = [(200, "ok"), (404, "no_service")]
    result = tried(home, policy, "errors", HOOK=hook.url, PAGER=f"{hook.url}/pager-secret")
    assert result.exit_code == 1
    assert result.output.splitlines() == ["errors: env:HOOK: 200 ok", "errors: env:PAGER: FAILED: 404 no_service"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["error"], "has no alert rule 'error'; did you mean 'errors'?"),
        (["zzz"], "has no alert rule 'zzz'; there are errors and spend"),
    ],
)
def test_a_rule_that_is_not_there(home: Path, policy: str, args: list[str], says: str) -> None:
    result = tried(home, policy, *args, HOOK="https://h.example/", PAGER="https://h.example/")
    assert says in str(result.exception)


def test_without_a_policy_it_says_how_to_name_one(tmp_path: Path) -> None:
    assert "name the policy with --policy FILE" in str(run(tmp_path, "test").exception)


def test_a_notice_has_a_field_for_everything_it_says() -> None:
    notice = Notice("errors", "test", "spend", "hello", WALL, WALL, {})
    assert as_fields(notice)["lasted_s"] is None
    assert as_fields(notice)["at"] == iso(WALL)
