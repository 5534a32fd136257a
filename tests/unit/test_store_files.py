"""A file beside the traces is ours, nobody's yet, or a stranger's; who makes it at the same moment is no stranger."""

import sqlite3
from pathlib import Path

import pytest

from mitmgate.store import files
from mitmgate.store.files import NotOurs

APPLICATION = 0x6D67_0001
ELSEWHERE = Path("an-apps-own.db")


def made(application: int, version: int, *, tables: bool = True) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    if tables:
        conn.execute("CREATE TABLE things (name TEXT)")
    conn.execute(f"PRAGMA application_id = {application}")
    conn.execute(f"PRAGMA user_version = {version}")
    return conn


def test_a_file_without_tables_is_nobodys_yet() -> None:
    conn = made(0, 0, tables=False)

    assert files.version_of(conn, ELSEWHERE, APPLICATION) is None
    assert not files.is_version(conn, ELSEWHERE, APPLICATION, 3)


def test_of_ours_the_version_is_told() -> None:
    assert files.version_of(made(APPLICATION, 3), ELSEWHERE, APPLICATION) == 3
    assert files.is_version(made(APPLICATION, 3), ELSEWHERE, APPLICATION, 3)


@pytest.mark.parametrize(
    ("application", "version", "says"),
    [
        (0, 0, "an-apps-own.db is a database of another program: name a trace database in another folder with --db"),
        (APPLICATION, 4, "an-apps-own.db has version 4 and this mitmgate knows version 3: upgrade mitmgate"),
    ],
)
def test_a_strangers_and_another_versions_is_refused_in_a_sentence(application: int, version: int, says: str) -> None:
    with pytest.raises(NotOurs) as caught:
        files.is_version(made(application, version), ELSEWHERE, APPLICATION, 3)

    assert str(caught.value) == says


def test_a_file_that_another_process_makes_meanwhile_is_no_strangers(tmp_path: Path) -> None:
    """The makers commit tables and numbers at once; whoever asks for the numbers first would see the old ones."""
    path = tmp_path / "new.db"
    looking = sqlite3.connect(path, isolation_level=None)
    maker = sqlite3.connect(path, isolation_level=None)

    seen: list[str] = []

    def make(statement: str) -> None:
        """Play the other process: it makes the file between our first look and the second."""
        seen.append(statement)
        if len(seen) == 2:
            maker.executescript(
                f"BEGIN; CREATE TABLE things (name TEXT); PRAGMA application_id = {APPLICATION};"
                " PRAGMA user_version = 3; COMMIT"
            )

    looking.set_trace_callback(make)

    assert files.version_of(looking, path, APPLICATION) is None
    assert files.version_of(looking, path, APPLICATION) == 3
