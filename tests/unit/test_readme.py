"""The README's tables say what the program says."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitmgate import cli, controls, metrics
from mitmgate.alert import LOCK
from mitmgate.answers import our_fields
from mitmgate.budget import Budget
from mitmgate.cli import budget
from mitmgate.cli.common import DATABASE, RUN_FILE
from mitmgate.cli.environment import TABLE_OF_VARIABLES
from mitmgate.cli.policy_file import Environment
from mitmgate.clock import ManualClock
from mitmgate.dialects.vocabulary import WORDS
from mitmgate.door_paths import hosts_of
from mitmgate.exchange import Exchange
from mitmgate.guard import Guard
from mitmgate.limit import Limit
from mitmgate.limit_lengths import Lengths
from mitmgate.policy import loads
from mitmgate.policy.kinds import KINDS
from mitmgate.policy.match import FAMILIES, FIELDS
from mitmgate.policy.values import CAUSES
from mitmgate.store import alert_file, key_file, ledger_file, provider_keys
from mitmgate.store.ledger import Ledger
from mitmgate.store.schema import ALL_VIEWS
from support.spending import call

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """Return the text between a heading and the next of its level."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str, header: str) -> list[list[str]]:
    """Return the cells of the table of section *title* that begins with *header*."""
    lines = section(title).partition(f"| {header}")[2].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def plain(cell: str) -> str:
    return cell.replace("`", "")


def test_the_commands_are_those_of_the_program_in_its_order() -> None:
    listed = dict.fromkeys(plain(row[0]).split()[0].rstrip(",") for row in rows("Commands", "command"))

    assert list(listed) == list(cli.COMMANDS)


def test_the_metrics_are_those_of_the_program() -> None:
    shown = {plain(name): (kind, says) for name, kind, says in rows("Metrics", "metric")}

    assert shown == metrics.HELP


def test_the_error_types_are_those_of_the_program_of_the_connection_and_of_guards() -> None:
    shown = {plain(word): means for word, means in rows("Error types", "word")}

    assert shown.items() >= dict(WORDS).items()
    assert shown.keys() - WORDS.keys() == {"connect", "reset", "guard"}


def test_the_variables_are_those_that_run_sets() -> None:
    shown = [(tuple(plain(names).split()), why) for names, why in rows("Two doors", "variables")]

    assert shown == [(row.names, row.why) for row in TABLE_OF_VARIABLES]


def test_every_control_header_is_listed_as_working_or_as_without_effect() -> None:
    listed = set(re.findall(r"`cf-aig-([a-z-]+)`", section("Headers") + section("What is not built yet")))

    assert set(controls.TABLE) <= listed


def test_the_views_are_those_of_the_database() -> None:
    listed = set(re.findall(r"`(v_[a-z_]+)`", section("What is recorded")))

    assert listed == {name for name in ALL_VIEWS if name.startswith("v_")}


def test_the_policies_are_those_that_come_with_it() -> None:
    listed = {plain(file) for file, _ in rows("Policy", "file")}

    assert listed | {"policies/default.yaml"} == {f"policies/{path.name}" for path in (ROOT / "policies").iterdir()}


def test_the_fields_of_a_match_are_those_of_the_program() -> None:
    listed = " ".join(section("Policy").split()).partition("Fields are `")[2]
    words, _, families = listed.partition("`, and ")

    assert tuple(words.split()) == FIELDS
    assert tuple(re.findall(r"`([a-z]+)\.NAME`", families)) == FAMILIES


def test_the_causes_are_those_that_hold_by_default() -> None:
    said = section("Retries, timeouts, breaker, hedge").partition("By default")[2].partition("\n\n")[0]

    assert set(re.findall(r"\b(\d{3}|[45]xx|connect|timeout|reset|error_event)\b", said)) == set(map(str, CAUSES))


TARGETS = """
targets:
  groq: {provider: groq, base_url: "https://api.groq.com"}
  openai: {provider: openai, base_url: "https://api.openai.com/v1"}
  azure: {provider: azure-openai, base_url: "https://x.openai.azure.com"}
"""


EXAMPLES = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_a_policy_loads(example: str) -> None:
    whole = example if "\ntargets:" in example else example + TARGETS

    assert loads(whole, "readme.yaml", Environment()).route


SHOP = loads(next(example for example in EXAMPLES if "\nauth:" in example), "shop.yaml", Environment())
"""The policy that the sections about tenants, keys and money speak of."""


def test_the_lines_that_samples_name_are_those_of_their_rules() -> None:
    named = re.findall(r"rule '?([\w-]+)'?(?:, | \()(shop\.yaml:\d+)", README)
    places = {
        rule.name: SHOP.where(f"{section}[{n}]")
        for section in ("guard", "limit", "alert")
        for n, rule in enumerate(getattr(SHOP, section))
    }

    assert {rule for rule, _ in named} == {"burst", "secrets", "near-its-end"}
    assert [place for _, place in named] == [places[rule] for rule, _ in named]


def test_a_sample_of_who_stands_where_is_of_the_rules_shown() -> None:
    shown = re.findall(r"^(\S+)  (limit|budget): (.*) per tenant$", README, re.MULTILINE)

    assert shown == [(rule.name, rule.room, rule.limit) for rule in budget.rules(SHOP)]


def test_a_sample_of_a_limit_that_is_full_is_what_the_limit_says() -> None:
    clock = ManualClock()
    ledger = Ledger(Path("never-opened"), clock)
    limit = Limit(SHOP, ledger)
    counting = (limit, Budget(SHOP, hosts_of(SHOP), ledger, limit, Lengths()))

    def admitted() -> Exchange:
        x = call()
        for room in counting:
            room.admit(x)
        return x

    for _ in range(SHOP.limit[0].requests or 0):
        admitted()
    clock.advance(1)
    x = admitted()

    assert x.refusal is not None
    assert x.refusal.message in README


def test_a_sample_of_a_guard_that_blocks_is_what_the_guard_says() -> None:
    guard = Guard(SHOP, nobody, ManualClock())
    x = call()
    guard.event(x, 0, "request: 1 secret")
    guard.tell(x, 0, ["secret"], "request")
    x.refuse(guard.refusal(x, 0, ["secret"], "request"))

    assert x.refusal is not None
    assert x.refusal.message in README
    assert f"cf-aig-dlp: {dict(our_fields(x))[b'cf-aig-dlp'].decode()}\n" in README


async def nobody(x: Exchange, target: str, path: str, body: bytes, why: str) -> tuple[int, bytes]:
    raise AssertionError(f"{target} is asked")


def test_the_kinds_of_finding_are_those_of_the_program() -> None:
    listed = re.findall(r"`(\w+)`", " ".join(first for first, _ in rows("Guards", "`find:`")))

    assert sorted(listed) == sorted(KINDS)


def test_the_extras_are_those_of_the_package() -> None:
    there = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set(re.findall(r"mitmgate\[(\w+)\]", README))

    assert named == there - {"demo", "test"}


def test_the_files_of_a_home_are_those_of_the_program() -> None:
    listed = set(re.findall(r"`([\w.-]+)/?`", " ".join(first for first, _ in rows("Commands", "file"))))
    ours = {DATABASE, RUN_FILE, alert_file.NAME, LOCK, ledger_file.NAME, key_file.NAME, provider_keys.FILE}

    assert ours <= listed


def test_commands_in_the_readme_exist() -> None:
    called = set(re.findall(r"^(?:eval \"\$\()?\./mitm\.sh ([a-z]+)", README, re.MULTILINE))

    assert called <= set(cli.COMMANDS) | {"setup"}
    assert {"demo", "run", "env"} <= called


def test_a_sample_of_what_a_policy_does_with_a_request_is_what_check_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = re.search(r"\$ cat call\.http\n(.*?)\$ mitmgate (check .*?)\n(.*?)```", README, re.DOTALL)
    assert block is not None
    asked, command, shown = block.groups()
    (tmp_path / "call.http").write_text(asked)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    args = command.replace("call.http", str(tmp_path / "call.http")).split()

    done = CliRunner().invoke(cli.group, [*args, "--home", str(tmp_path)])

    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert (done.exit_code, printed) == (0, shown.splitlines())
