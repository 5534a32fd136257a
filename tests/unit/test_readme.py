"""The README's tables say what the program says."""

import re
from pathlib import Path

import pytest

from mitmgate import cli, controls, metrics
from mitmgate.cli.environment import TABLE_OF_VARIABLES
from mitmgate.dialects.vocabulary import WORDS
from mitmgate.policy import loads
from mitmgate.policy.match import FAMILIES, FIELDS
from mitmgate.policy.sections import FLOW, Later
from mitmgate.policy.values import CAUSES
from mitmgate.store.schema import ALL_VIEWS

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
    assert [plain(row[0]).split()[0] for row in rows("Commands", "command")] == list(cli.COMMANDS)


def test_the_metrics_are_those_of_the_program() -> None:
    shown = {plain(name): (kind, says) for name, kind, says in rows("Metrics", "metric")}

    assert shown == metrics.HELP


def test_the_error_types_are_those_of_the_program_and_those_of_the_connection() -> None:
    shown = {plain(word): means for word, means in rows("Error types", "word")}

    assert shown.items() >= dict(WORDS).items()
    assert shown.keys() - WORDS.keys() == {"connect", "reset"}


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


def test_what_is_not_built_is_what_a_policy_is_refused_for() -> None:
    listed = section("What is not built yet").partition("refused:")[2].partition(". ")[0]

    assert re.findall(r"`([a-z_]+)`", listed) == [name for name, form in FLOW.items() if isinstance(form, Later)]


TARGETS = """
targets:
  groq: {provider: groq, base_url: "https://api.groq.com"}
  openai: {provider: openai, base_url: "https://api.openai.com/v1"}
  azure: {provider: azure-openai, base_url: "https://x.openai.azure.com"}
"""


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_an_example_of_a_policy_loads(example: str) -> None:
    assert loads(example + TARGETS, "readme.yaml", {}).route


def test_commands_in_the_readme_exist() -> None:
    called = set(re.findall(r"^(?:eval \"\$\()?\./mitm\.sh ([a-z]+)", README, re.MULTILINE))

    assert called <= set(cli.COMMANDS) | {"setup"}
    assert {"demo", "run", "env"} <= called
