"""The README's tables say what the program says."""

import re
from pathlib import Path

from mitmgate import cli, controls, metrics
from mitmgate.cli.environment import TABLE_OF_VARIABLES
from mitmgate.dialects.vocabulary import WORDS
from mitmgate.store.schema import ALL_VIEWS

README = (Path(__file__).parents[2] / "README.md").read_text()


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


def test_commands_in_the_readme_exist() -> None:
    called = set(re.findall(r"^(?:eval \"\$\()?\./mitm\.sh ([a-z]+)", README, re.MULTILINE))

    assert called <= set(cli.COMMANDS) | {"setup"}
    assert {"demo", "run", "env"} <= called
