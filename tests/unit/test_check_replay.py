"""``mitmgate check --replay`` prints what a policy would have changed: in a few lines, per tenant, per rule."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli.check import check
from mitmgate.cli.check_replay import sentences
from mitmgate.rerun_tally import Sums
from mitmgate.store.rows import Row, Rows
from support.sample_traces import START, at, attempt, call, database, event, id_of

COST = 1_000_000
POLICY = """\
identify: {route: {faq: {metadata.feature: faq}}}
limit: [{name: burst, per: tenant, requests: 3, every: 1 h}]
cache:
  - {name: faq, match: {route: faq}, ttl: 1 h, scope: [tenant]}
  - {name: opt-in, match: {header.x-cacheable: present}, ttl: 1 h}
route: [{name: eu, match: {tenant: globex}, try: [eu]}]
targets: {eu: {provider: openai, base_url: "https://eu.example/v1", headers: {authorization: env:EU_KEY}}}
"""


def sent(n: int, tenant: str | None = "acme", body: str = "", **columns: Any) -> Row:
    about = {"target": "openai", "how": "end", "price_detail": "openai/gpt-4o", "request_sha256": body or f"{n:064x}"}
    return call(n, **{**about, "tenant": tenant, "cost_nanousd": COST, **columns})


FAQ = {"body": "5a" * 32, "metadata": '{"feature": "faq"}'}
CALLS = [
    sent(0),
    sent(1, **FAQ),
    sent(2, **FAQ),  # a hit
    sent(3),  # one too many
    sent(4),  # another one
    sent(5, "globex"),  # goes to another place
    sent(6, None),
    sent(7, "globex", status_code=429, source="rate-limit", terminal="refused", attempts=0, cost_nanousd=0),
]
EVENTS = [event(7, room="limit", rule="burst", action="refuse")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "new.yaml").write_text(POLICY)
    tries = [attempt(1, n, target="openai") for n in range(7)]
    database(tmp_path / "traces.db", Rows(exchanges=CALLS, attempts=tries, policy_events=EVENTS))
    return tmp_path


def run(home: Path, *options: str, since: str = "all", **env: str) -> Result:
    args = [str(home / "new.yaml"), "--home", str(home), "--replay", since, *options]
    result = CliRunner().invoke(check, args, env={"COLUMNS": "200", **env})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def found(home: Path, *options: str, since: str = "all") -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run(home, "--json", *options, since=since).stdout)
    return said


def test_the_report_says_what_changes_in_all_per_tenant_and_per_rule(home: Path) -> None:
    result = run(home)

    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[:3] == [
        f"8 calls through {home}/new.yaml",
        "5 calls would have come out differently: 2 refused, 1 let in that had been refused,"
        " 1 sent to another place or model, 1 out of the cache",
        "cost $0.00700, now $0.0143: $0.00100 saved by the cache, $0 saved by other models,"
        " $0.00200 not spent on calls that are refused, $0.0103 spent on calls that are let in",
    ]
    tenants = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("acme", "globex", "–", "total"))}
    assert tenants["acme"][:3] == ["5", "3", "2"]
    assert tenants["globex"][:5] == ["2", "2", "–", "1", "1"]
    assert tenants["–"][:2] == ["1", "0"]
    assert tenants["total"][:2] == ["8", "5"]
    rules = [line.split() for line in lines if line.startswith(("limit ", "cache ", "route "))]
    assert rules == [
        ["limit", "burst", "refuse", "1", "2", "0.00200", id_of(3)],
        ["cache", "faq", "hit", "0", "1", "0.00100", id_of(2)],
        ["route", "eu", "move", "0", "1", id_of(5)],
    ]
    assert lines[lines.index("could not be decided") + 1 :] == [
        "          8  cache opt-in asks for header.x-cacheable, which rows do not have: taken for absent",
        "          1  it was refused then: it counts what would be reserved for it",
    ]


def test_the_same_numbers_are_there_for_machines(home: Path) -> None:
    said = found(home)

    assert (said["since"], said["policy"], len(said["sha256"])) == (None, f"{home}/new.yaml", 12)
    total = said["total"]
    assert (total["calls"], total["changed"], total["refused"], total["hits"]) == (8, 5, 2, 1)
    assert total["cost_then_nanousd"] == 7 * COST
    assert [row["tenant"] for row in said["tenants"]] == ["acme", "globex", None]
    assert said["rules"][0] == {
        "room": "limit",
        "rule": "burst",
        "action": "refuse",
        "shadow": False,
        "then": 1,
        "now": 2,
        "nanousd": 2 * COST,
        "example": id_of(3),
    }
    assert {"what", "calls"} == set(said["undecided"][0])


def test_filters_and_times_choose_the_calls(home: Path) -> None:
    assert found(home, "--tenant", "globex")["total"]["calls"] == 2
    assert found(home, "--where", "status_code = 429")["total"]["calls"] == 1
    assert found(home, since=at(6))["total"]["calls"] == 2
    assert found(home, "--until", at(2))["total"]["calls"] == 2


def test_a_narrow_terminal_gets_several_tables_and_no_line_too_many(home: Path) -> None:
    lines = run(home, "--rows", "1", COLUMNS="60").stdout.splitlines()

    assert sum(line.startswith("tenant") for line in lines) > 1
    assert "and 2 more tenants; --rows 0 prints all" in lines
    assert "and 2 more rules; --rows 0 prints all" in lines


def test_without_calls_it_says_so(home: Path) -> None:
    result = run(home, "--tenant", "nobody")

    assert result.exit_code == 0
    assert result.stdout.startswith("No call is recorded")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--where", "x ="], "--where 'x ='"),
        (["--until", "soon"], "--until: 'soon' is no time"),
        (["--row", "last"], "--row and --replay ask for different things"),
    ],
)
def test_mistakes_are_sentences(home: Path, options: list[str], says: str) -> None:
    result = run(home, *options)

    assert result.exit_code == 2
    assert says in result.stderr


def test_nothing_of_the_home_changes(home: Path) -> None:
    before = {path.name: path.read_bytes() for path in home.iterdir()}

    run(home)

    after = {path.name: path.read_bytes() for path in home.iterdir() if not path.name.endswith(("-wal", "-shm"))}
    assert after == {name: data for name, data in before.items() if not name.endswith(("-wal", "-shm"))}


def test_money_that_would_be_spent_is_not_called_saved() -> None:
    [_, money] = sentences(Sums(calls=1, cost_then_nanousd=COST, cost_now_nanousd=3 * COST, saved_by_hits_nanousd=-COST,
                                saved_by_models_nanousd=-COST))  # fmt: skip

    assert money.startswith("cost $0.00100, now $0.00300: $0.00100 more by the cache, $0.00100 more by other models")


def test_the_sample_begins_where_it_says() -> None:
    assert at(0) == START.isoformat(timespec="milliseconds").replace("+00:00", "Z")
