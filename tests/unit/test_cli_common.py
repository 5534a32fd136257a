"""A running gateway is found by its ``run.json``, and one that is gone is not."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mitmgate.cli import common


@pytest.fixture
def door() -> Iterator[str]:
    """Something that takes connections: ``127.0.0.1:PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def announce(home: Path, **changes: Any) -> None:
    said = {
        "pid": os.getpid(), "listen": "127.0.0.1:1", "base_url_listen": None, "policy": None,
        "db": str(home / "other.db"), "ca_cert": str(home / "ca/cert.pem"), "ca_bundle": str(home / "ca/bundle.pem"),
        "started_at": "2026-11-24T16:42:00.000Z", "version": "0.1.0",
    }  # fmt: skip
    (home / "run.json").write_text(json.dumps({**said, **changes}))


def dead_pid() -> int:
    """Return the pid of a process that has ended and was waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_gateway_that_lives_and_accepts_is_running(tmp_path: Path, door: str) -> None:
    announce(tmp_path, listen=door, base_url_listen="127.0.0.1:8081")

    running = common.read_run(tmp_path)

    assert running is not None
    assert (running.pid, running.proxy_url, running.base_url) == (
        os.getpid(),
        f"http://{door}",
        "http://127.0.0.1:8081",
    )


def test_a_run_json_that_outlived_its_gateway_counts_for_nothing(tmp_path: Path, door: str) -> None:
    announce(tmp_path, listen=door, pid=dead_pid())

    assert common.read_run(tmp_path) is None


def test_a_pid_that_belongs_to_another_program_by_now_is_no_gateway(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    announce(tmp_path, listen=closed)

    assert common.read_run(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x"}', '{"pid": null}', "\xff"])
def test_a_file_that_is_no_run_json_is_no_gateway(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")

    assert common.read_run(tmp_path) is None


def test_no_file_is_no_gateway(tmp_path: Path) -> None:
    assert common.read_run(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("gateway.corp.example:80", "http://gateway.corp.example:80"),
    ],
)
def test_the_proxy_url_is_one_that_this_machine_reaches(tmp_path: Path, listen: str, url: str) -> None:
    announce(tmp_path, listen=listen)

    running = common.load_run(tmp_path)

    assert running is not None
    assert running.proxy_url == url


def test_the_database_is_the_one_named_else_the_running_gateways_else_the_homes(tmp_path: Path, door: str) -> None:
    assert common.db_path(tmp_path, None) == tmp_path / "traces.db"

    announce(tmp_path, listen=door)
    assert common.db_path(tmp_path, None) == tmp_path / "other.db"
    assert common.db_path(tmp_path, tmp_path / "mine.db") == tmp_path / "mine.db"


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        ([], {"HOME": "/home/a"}, ("/home/a/.mitmgate", "None")),
        ([], {"MITMGATE_HOME": "/srv/g", "MITMGATE_DB": "/data/t.db"}, ("/srv/g", "/data/t.db")),
        (["--home", "/opt/g", "--db", "/opt/t.db"], {"MITMGATE_HOME": "/srv/g"}, ("/opt/g", "/opt/t.db")),
        (["--home", "~/g"], {"HOME": "/home/a"}, ("/home/a/g", "None")),
    ],
)
def test_home_and_db_come_from_the_option_else_the_variable(
    args: list[str], env: dict[str, str], expected: tuple[str, str]
) -> None:
    @click.command()
    @common.home_option
    @common.db_option
    def command(home: Path, db: Path | None) -> None:
        click.echo(f"{home} {db}")

    clean = {"MITMGATE_HOME": None, "MITMGATE_DB": None}
    done = CliRunner().invoke(command, args, env={**clean, **env})

    assert tuple(done.output.split()) == expected
