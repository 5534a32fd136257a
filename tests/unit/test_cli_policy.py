"""``mitmgate policy``: which version held when, and what each edit changed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli import group
from mitmgate.clock import ManualClock
from mitmgate.store.writer import Rows, Writer

ONE = "version: 1\nusage: ask\n"
TWO = "version: 1\nusage: leave\n"
HELD = (
    ("2026-11-24T10:00:00.000Z", "aaaaaaaaaaaa", "team.yaml", ONE),
    ("2026-11-24T10:00:00.010Z", "aaaaaaaaaaaa", "team.yaml", ONE),  # the second worker
    ("2026-11-24T11:00:00.000Z", "aabbbbbbbbbb", "team.yaml", TWO),
    ("2026-11-24T12:00:00.000Z", "aaaaaaaaaaaa", "team.yaml", ONE),
)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "traces.db"
    writer = Writer(path, ManualClock())
    writer.start()
    for at, sha256, shown, text in HELD:
        writer.put(Rows(policies=[{"at": at, "sha256": sha256, "path": shown, "text": text}]), 100)
    writer.flush(5.0)
    writer.close(5.0)
    return path


def run(db: Path, *args: str) -> Result:
    return CliRunner().invoke(group, ["policy", *args, "--db", str(db)])


def test_the_log_lists_each_version_once_the_newest_first_with_what_it_changed(db: Path) -> None:
    assert run(db, "log").output.splitlines() == [
        "2026-11-24T12:00:00.000Z  aaaaaaaaaaaa  team.yaml, +1 -1",
        "  @@ -1,2 +1,2 @@",
        "   version: 1",
        "  -usage: leave",
        "  +usage: ask",
        "",
        "2026-11-24T11:00:00.000Z  aabbbbbbbbbb  team.yaml, +1 -1",
        "  @@ -1,2 +1,2 @@",
        "   version: 1",
        "  -usage: ask",
        "  +usage: leave",
        "",
        "2026-11-24T10:00:00.000Z  aaaaaaaaaaaa  team.yaml, 2 lines",
    ]


def test_only_the_newest_and_only_a_line_each(db: Path) -> None:
    assert run(db, "log", "--last", "1", "--no-diff").output == (
        "2026-11-24T12:00:00.000Z  aaaaaaaaaaaa  team.yaml, +1 -1\n"
    )


def test_as_json(db: Path) -> None:
    newest, _, oldest = json.loads(run(db, "log", "--json").output)

    assert (newest["sha256"], newest["added"], newest["removed"]) == ("aaaaaaaaaaaa", 1, 1)
    assert newest["diff"] == ["@@ -1,2 +1,2 @@", " version: 1", "-usage: leave", "+usage: ask"]
    assert (oldest["at"], oldest["diff"]) == ("2026-11-24T10:00:00.000Z", [])


def test_a_version_as_it_was(db: Path) -> None:
    assert run(db, "show", "aab").output == TWO


@pytest.mark.parametrize(
    ("sha256", "says"),
    [("aa", "aa begins 2 versions: aaaaaaaaaaaa, aabbbbbbbbbb"), ("ff", "no version begins with ff")],
)
def test_a_hash_that_names_no_version_or_several(db: Path, sha256: str, says: str) -> None:
    assert says in str(run(db, "show", sha256).exception)
