"""Whoever only looks gets a connection that cannot write and shows every body as text."""

import sqlite3
from pathlib import Path

import pytest

from mitmgate.errors import StartError
from mitmgate.store import bodies, files, schema
from mitmgate.store.reader import open_reader

WALL = 1_764_000_000.0
LONG = "word " * 20_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "100% traces?.db"
    conn = schema.open_store(path, WALL)
    conn.execute("INSERT INTO exchanges (id, started_at) VALUES ('e1', '2026')")
    for kind, body in (("request", b"hello"), ("response", LONG.encode())):
        encoding, stored = bodies.pack(body)
        conn.execute(
            "INSERT INTO payloads (exchange_id, kind, encoding, bytes, body) VALUES ('e1', ?, ?, ?, ?)",
            (kind, encoding, len(body), stored),
        )
    conn.close()
    return path


def test_rows_are_read_by_name(path: Path) -> None:
    conn = open_reader(path)
    assert conn.execute("SELECT * FROM exchanges").fetchone()["id"] == "e1"
    conn.close()


def test_large_bodies_are_readable_in_v_payloads(path: Path) -> None:
    conn = open_reader(path)
    texts = [row["text"] for row in conn.execute("SELECT text FROM v_payloads ORDER BY kind")]
    assert texts == ["hello", LONG]
    assert conn.execute("SELECT unzstd(body) FROM payloads WHERE encoding = 'zstd'").fetchone()[0] == LONG.encode()
    conn.close()


def test_the_plain_shell_reads_small_bodies_and_is_told_how_to_read_large_ones(path: Path) -> None:
    plain = sqlite3.connect(path)
    texts = [row[0] for row in plain.execute("SELECT text FROM v_payloads ORDER BY kind")]
    assert texts == ["hello", "[100000 bytes as zstd; to read them: mitmgate show e1]"]
    plain.close()


@pytest.mark.parametrize("statement", ["DELETE FROM exchanges", "CREATE TABLE t (a)", "CREATE TEMP TABLE t (a)"])
def test_nothing_can_be_written(path: Path, statement: str) -> None:
    conn = open_reader(path)
    with pytest.raises(sqlite3.OperationalError):
        conn.execute(statement)
    conn.close()


def test_rows_of_a_running_writer_are_seen(path: Path) -> None:
    writer = schema.open_store(path, WALL)
    conn = open_reader(path)
    writer.execute("INSERT INTO exchanges (id, started_at) VALUES ('e2', '2026')")
    assert conn.execute("SELECT count(*) FROM exchanges").fetchone()[0] == 2
    conn.close()
    writer.close()


def test_a_missing_database_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with pytest.raises(StartError) as refused:
        open_reader(path)
    assert str(refused.value) == (
        f"there is no trace database at {path} yet: start the gateway and send a request through it"
    )
    assert not path.exists()


def test_a_database_without_traces_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(StartError, match="holds no traces: name the trace database with --db"):
        open_reader(path)


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(StartError, match="is no usable database"):
        open_reader(path)


def test_a_newer_version_is_refused(path: Path) -> None:
    writer = schema.open_store(path, WALL)
    writer.execute(f"PRAGMA user_version = {files.VERSION + 1}")
    writer.close()
    with pytest.raises(StartError, match="upgrade mitmgate"):
        open_reader(path)
