"""``mitmgate budget`` says who stands where, and gives somebody more, beside running gateways and without one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.charges import Charge
from mitmgate.cli.budget import budget, rules
from mitmgate.cli.policy_file import policy_of
from mitmgate.clock import SystemClock, iso
from mitmgate.policy.values import Span
from mitmgate.store.ledger import Ledger
from support.ledgers import charge

POLICY = """
version: 1
auth:
  keys:
    - {name: app, key: env:A_KEY_THAT_IS_NOT_SET_HERE, tenant: acme}
    - {name: web, key: env:ANOTHER_THAT_IS_NOT_SET_HERE, tenant: globex}
limit:
  - {name: burst, per: tenant, requests: 60, every: 1 h}
  - {name: daily-tokens, per: tenant, tokens: 2_000_000, every: day}
  - {name: parallel, per: [tenant, model], concurrent: 8}
  - {name: everybody, requests: 1_000, every: day}
budget:
  - name: per-tenant
    per: tenant
    cost: 20 USD
    every: month
    soft: 50 %
    downgrade: {at: 80 %, to: {model: gpt-5-mini}}
"""
USD = 10**9
HOUR = 3600.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The gateway's, with nothing counted."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    one = Ledger(tmp_path / "spend.db", SystemClock())
    one.open()
    yield one
    one.close()


def spend(ledger: Ledger, tenant: str, cost: int, reserved: int = 0) -> None:
    charges = [money(tenant)]
    ledger.reserve("x", charges)
    ledger.settle("x", {"cost": cost})
    if reserved:
        ledger.reserve("under way", [money(tenant, reserved)])


def money(tenant: str, amount: int = 1) -> Charge:
    return charge("per-tenant", "cost", 20 * USD, "month", amount, tenant=tenant)


def left(ledger: Ledger, rule: str, unit: Any, most: int, every: Span, tenant: str) -> int:
    (standing,) = ledger.standing([charge(rule, unit, most, every, tenant=tenant)])
    return standing.left


def run(home: Path, *args: str, columns: int = 120) -> Result:
    given = [*args, "--home", str(home), "--policy", str(home / "policy.yaml")]
    return CliRunner().invoke(budget, given, env={"COLUMNS": str(columns)})


def done(home: Path, *args: str) -> str:
    result = run(home, *args)
    assert result.exit_code == 0, result.output
    return result.output


def counted(home: Path, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done(home, "--json", *args))["counters"]
    return found


# -- who stands where -------------------------------------------------------------------------------------------------


def test_each_rule_says_what_it_allows_and_who_has_used_it(tmp_path: Path, ledger: Ledger) -> None:
    spend(ledger, "acme", 16 * USD, reserved=2 * USD)
    spend(ledger, "globex", USD // 10)
    spend(ledger, "initech", 25 * USD)
    lines = [line.rstrip() for line in done(tmp_path).splitlines()]
    assert "burst  limit: 60 requests every 1 h per tenant" in lines
    assert "parallel  limit: 8 at once per tenant and model" in lines
    assert "everybody  limit: 1,000 requests every day" in lines
    start = lines.index("per-tenant  budget: 20 USD every month per tenant")
    rows = [line.split() for line in lines[start + 2 : start + 5]]
    assert [row[0] for row in rows] == ["initech", "acme", "globex"]
    assert rows[1][2:7] == ["90%", "16.00", "2.00", "20.00", "–"]
    assert rows[1][1] == "█" * 18
    assert lines.count("  nothing is counted yet") == 4


@pytest.mark.parametrize(
    ("cost", "reserved", "state"),
    [
        (9, 0, "ok"),
        (10, 0, "soft"),
        (9, 10, "ok"),
        (16, 0, "downgrade"),
        (9, 11, "full"),
        (20, 0, "full"),
        (25, 0, "full"),
    ],
)
def test_a_counter_says_which_step_it_has_reached(
    tmp_path: Path, ledger: Ledger, cost: int, reserved: int, state: str
) -> None:
    spend(ledger, "acme", cost * USD, reserved * USD)
    assert [one["state"] for one in counted(tmp_path)] == [state]


def test_machines_get_every_counter_in_whole_numbers(tmp_path: Path, ledger: Ledger) -> None:
    spend(ledger, "acme", 5 * USD, reserved=USD)
    (one,) = counted(tmp_path)
    resets_at = one.pop("resets_at")
    assert resets_at.endswith("-01T00:00:00.000Z")
    assert one == {
        "room": "budget",
        "rule": "per-tenant",
        "for": {"tenant": "acme"},
        "unit": "nanousd",
        "every": "month",
        "used": 5 * USD,
        "reserved": USD,
        "most": 20 * USD,
        "granted": 0,
        "left": 14 * USD,
        "share": 0.3,
        "state": "ok",
    }


def test_a_long_list_is_cut_and_says_so(tmp_path: Path, ledger: Ledger) -> None:
    for n in range(5):
        spend(ledger, f"tenant {n}", USD)
    assert done(tmp_path, "--rows", "3").splitlines()[-1] == "2 more; --rows 0 prints all"
    assert "more" not in done(tmp_path, "--rows", "0")
    assert len(counted(tmp_path)) == 5


def test_names_that_clients_made_up_cannot_speak_to_the_terminal(tmp_path: Path, ledger: Ledger) -> None:
    spend(ledger, "evil\x1b[31m[bold]\n" + "x" * 500, USD)
    text = done(tmp_path)
    assert "\x1b" not in text
    assert "evil␛[31m[bold]␊xxx" in text
    assert len(counted(tmp_path)[0]["for"]["tenant"]) == 81


def test_the_colour_says_how_it_stands(tmp_path: Path, ledger: Ledger) -> None:
    spend(ledger, "acme", 11 * USD)
    given = ["--home", str(tmp_path), "--policy", str(tmp_path / "policy.yaml")]
    shown = CliRunner().invoke(budget, given, env={"FORCE_COLOR": "1", "COLUMNS": "120", "TERM": "xterm"}, color=True)
    assert "\x1b[33m" in shown.output


def test_before_anything_is_counted_the_rules_are_shown(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    text = done(tmp_path)
    assert text.startswith(f"Nothing is counted at {tmp_path / 'spend.db'} yet; this is what ")
    assert "per-tenant  budget: 20 USD every month per tenant" in text
    assert counted(tmp_path) == []


def test_a_policy_without_limits_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    assert "has no limit and no budget: add one" in done(tmp_path)


def test_without_a_gateway_and_a_policy_the_one_is_asked_for(tmp_path: Path) -> None:
    result = CliRunner().invoke(budget, ["--home", str(tmp_path)])
    assert result.output.strip() == ("the built-in policy has no limit and no budget: name another with --policy FILE")


def test_a_file_that_is_no_ledger_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "spend.db").write_bytes(b"no database " * 1000)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "spend.db is no usable database" in result.output


def test_secrets_of_the_policy_need_not_be_set_here(tmp_path: Path, ledger: Ledger) -> None:
    policy = policy_of(tmp_path, str(tmp_path / "policy.yaml"))
    assert [(rule.room, rule.name, rule.unit) for rule in rules(policy)] == [
        ("limit", "burst", "requests"),
        ("limit", "daily-tokens", "tokens"),
        ("limit", "parallel", "concurrent"),
        ("limit", "everybody", "requests"),
        ("budget", "per-tenant", "cost"),
    ]


# -- granting more ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [["5", "USD"], ["5 USD"], ["5.0 USD"]])
def test_a_grant_of_money_holds_at_once_in_the_running_gateway(
    tmp_path: Path, ledger: Ledger, amount: list[str]
) -> None:
    spend(ledger, "acme", 20 * USD)
    assert ledger.reserve("before", [money("acme")])[0].full
    text = done(tmp_path, "grant", "per-tenant", *amount, "--for", "tenant=acme")
    assert re.fullmatch(
        r"per-tenant of acme: 5 USD more until 20\d\d-\d\d-01 00:00 UTC; 20.00 of 25.00 are used", text.strip()
    )
    assert "is that who you mean" not in text
    assert not ledger.reserve("after", [money("acme", 5 * USD)])[0].full
    assert left(ledger, "per-tenant", "cost", 20 * USD, "month", "globex") == 20 * USD


def test_a_grant_of_tokens_and_requests(tmp_path: Path, ledger: Ledger) -> None:
    done(tmp_path, "grant", "daily-tokens", "500_000", "--for", "tenant=acme")
    done(tmp_path, "grant", "daily-tokens", "1,000", "tokens", "--for", "tenant=acme")
    soon = iso(SystemClock().wall() + HOUR)[:13].replace("T", " ")
    assert f"40 requests more until {soon}" in done(tmp_path, "grant", "burst", "40", "--for", "tenant=acme")
    assert left(ledger, "daily-tokens", "tokens", 2_000_000, "day", "acme") == 2_501_000
    assert left(ledger, "burst", "requests", 60, HOUR, "acme") == 100


def test_a_grant_to_somebody_new_is_made_and_asked_about(tmp_path: Path, ledger: Ledger) -> None:
    text = done(tmp_path, "grant", "per-tenant", "5 USD", "--for", "tenant=acmee")
    assert "nothing was counted there before: is that who you mean?" in text


def test_a_grant_tells_machines_how_it_stands_then(tmp_path: Path, ledger: Ledger) -> None:
    spend(ledger, "acme", USD)
    said = json.loads(done(tmp_path, "grant", "per-tenant", "5 USD", "--for", "tenant=acme", "--json"))
    assert (said["granted"], said["most"], said["left"], said["used"]) == (5 * USD, 25 * USD, 24 * USD, USD)


def test_a_rule_without_per_needs_no_name(tmp_path: Path, ledger: Ledger) -> None:
    text = done(tmp_path, "grant", "everybody", "10")
    assert text.startswith("everybody: 10 requests more until 20")
    assert text.endswith(" 00:00 UTC; 0 of 1,010 are used\nnothing was counted there before: is that who you mean?\n")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["tenant-dya", "5 USD"], "no limit or budget 'tenant-dya'; did you mean 'per-tenant'?"),
        (["zzz", "5 USD"], "there are 'burst', 'daily-tokens', 'parallel', 'everybody' and 'per-tenant'"),
        (["per-tenant", "5 USD"], "counts per tenant: say whose, with --for tenant=VALUE"),
        (["per-tenant", "5 USD", "--for", "acme"], "write FIELD=VALUE"),
        (["per-tenant", "5 USD", "--for", "user=a"], "per-tenant counts per tenant"),
        (["everybody", "5", "--for", "user=a"], "everybody is one counter for all"),
        (["per-tenant", "5", "--for", "tenant=acme"], "5 has no unit; write 5 USD"),
        (["per-tenant", "0 USD", "--for", "tenant=acme"], "is nothing that could be granted"),
        (["burst", "-5", "--for", "tenant=acme"], "No such option"),
        (["burst", "many", "--for", "tenant=acme"], "'many' is no number of requests"),
        (["burst", str(10**19), "--for", "tenant=acme"], "is nothing that could be granted"),
        (["parallel", "5", "--for", "tenant=acme", "--for", "model=x"], "edit its `concurrent`"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, ledger: Ledger, args: list[str], word: str) -> None:
    result = run(tmp_path, "grant", *args)
    assert result.exit_code == 2
    assert word in " ".join(result.output.replace("│", " ").split())


def test_nothing_is_granted_where_no_gateway_ever_counted(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    result = run(tmp_path, "grant", "everybody", "5")
    assert result.exit_code == 1
    assert "nothing is counted" in result.output
    assert not (tmp_path / "spend.db").exists()
