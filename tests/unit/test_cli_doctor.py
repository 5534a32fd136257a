"""``doctor`` names each fault and what mends it."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mitmgate.cli import doctor
from mitmgate.cli.common import Running
from mitmgate.cli.doctor import Facts, Finding
from mitmgate.store import answer_file
from support.kept_answers import ENTRY, WALL

CA = Path("/nowhere/ca")


def facts(home: Path, running: Running | None = None, **env: str) -> Facts:
    return Facts(home, home / "traces.db", running, env)


def running(home: Path, listen: str = "127.0.0.1:8080", **changes: Any) -> Running:
    said: dict[str, Any] = {
        "pid": 1, "listen": listen, "base_url_listen": None, "db": home / "traces.db", "policy": None,
        "ca_cert": home / "ca/mitmproxy-ca-cert.pem", "ca_bundle": home / "ca/bundle.pem",
        "started_at": "2026-11-24T16:42:00.000Z", "version": "0.1.0",
    }  # fmt: skip
    return Running(**{**said, **changes})


def levels(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in found]


def test_a_home_that_others_can_read_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    [finding] = doctor.home(facts(tmp_path))

    assert (finding.level, finding.do) == ("fail", f"chmod 700 {tmp_path}")


def test_a_home_of_mode_700_is_fine(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    assert [finding.level for finding in doctor.home(facts(tmp_path))] == ["ok"]


def test_a_file_that_is_no_certificate_fails(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/mitmproxy-ca-cert.pem").write_text("nonsense")

    [finding] = doctor.certificate(facts(tmp_path))

    assert (finding.level, "holds no certificate" in finding.text) == ("fail", True)


def test_a_ca_key_that_others_can_read_fails(tmp_path: Path) -> None:
    key = tmp_path / "mitmproxy-ca.pem"
    key.touch(0o644)

    assert [finding.do for finding in doctor.key_file(key)] == [f"chmod 600 {key}"]


@pytest.mark.parametrize(
    ("version", "switch", "level"),
    [
        ("v20.20.2", "1", "warn"),
        ("v22.20.0", "1", "warn"),
        ("v22.21.0", "1", "ok"),
        ("v22.21.0", None, "warn"),
        ("v23.11.0", "1", "warn"),
        ("v24.0.0", "1", "ok"),
        ("v24.0.0", "0", "warn"),
        ("", "1", "warn"),
    ],
)
def test_node_reads_proxy_variables_from_22_21_and_24_on_when_told_to(
    version: str, switch: str | None, level: str
) -> None:
    assert doctor.node_finding(version, switch).level == level


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({}, "HTTPS_PROXY is not set here: programs go past the gateway"),
        ({"HTTPS_PROXY": "http://corp:3128"}, "HTTPS_PROXY does not name this gateway"),
        (
            {"HTTPS_PROXY": "http://127.0.0.1:8080", "SSL_CERT_FILE": "/etc/x.pem"},
            "SSL_CERT_FILE does not name our bundle: clients refuse the gateway",
        ),
    ],
)
def test_a_shell_that_misses_the_gateway_is_warned(tmp_path: Path, env: dict[str, str], text: str) -> None:
    [finding] = doctor.shell(facts(tmp_path, running(tmp_path), **env))

    assert (finding.level, finding.text) == ("warn", text)
    assert "mitmgate env" in finding.do


def test_a_shell_that_leads_to_the_gateway_is_fine_but_for_hidden_hosts(tmp_path: Path) -> None:
    env = {
        "HTTPS_PROXY": "http://127.0.0.1:8080",
        "SSL_CERT_FILE": str(tmp_path / "ca/bundle.pem"),
        "NO_PROXY": "api.openai.com",
    }

    assert levels(doctor.shell(facts(tmp_path, running(tmp_path), **env))) == [
        ("ok", "HTTPS_PROXY and SSL_CERT_FILE lead to http://127.0.0.1:8080"),
        ("warn", "NO_PROXY sends calls past the gateway, unseen: openai"),
    ]


@contextmanager
def listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_default_port_that_another_program_has_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listener() as door:
        monkeypatch.setattr(doctor, "DEFAULT_DOORS", (door,))
        found = levels(doctor.gateway(facts(tmp_path)))

    assert found == [("warn", f"none runs in {tmp_path}"), ("warn", f"another program listens on {door}")]


def test_a_database_that_is_none_fails_and_one_set_aside_is_said(tmp_path: Path) -> None:
    (tmp_path / "traces.db").write_bytes(b"this is no database, not at all. " * 100)
    (tmp_path / "traces.db.broken-20261124").touch()

    assert [finding.level for finding in doctor.database(facts(tmp_path))] == ["warn", "fail"]


def test_the_answer_cache_is_told_of_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    missing = levels(doctor.cached_answers(facts(tmp_path)))
    with closing(answer_file.open_file(path, WALL)) as conn:
        answer_file.write(conn, answer_file.pack(ENTRY))
    there = levels(doctor.cached_answers(facts(tmp_path)))
    path.write_bytes(b"this is no database, not at all. " * 100)
    path.with_name("cache.db.broken-20261124").touch()
    broken = [level for level, _ in levels(doctor.cached_answers(facts(tmp_path)))]

    assert (missing, there) == ([], [("ok", f"{path}, 1 answers, 0.0 MiB")])
    assert broken == ["warn", "warn"]


def test_targets_that_rest_are_named() -> None:
    exposition = (
        "# TYPE mitmgate_breaker_state gauge\n"
        'mitmgate_breaker_state{target="azure-eu"} 2\n'
        'mitmgate_breaker_state{target="azure-za"} 1\n'
        'mitmgate_breaker_state{target="openai"} 0\n'
    )

    assert levels(doctor.resting(exposition)) == [
        ("warn", "azure-eu rests: it failed too often"),
        ("warn", "azure-za has rested; the next call shows"),
    ]


def test_a_policy_with_a_fault_fails_and_names_it(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("usage: maybe\n")

    [finding] = doctor.policy(facts(tmp_path, MITMGATE_POLICY=str(policy)))

    assert finding.level == "fail"
    assert finding.text.startswith(f"{policy}:1: usage:")


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("", 0.0),
        ("# HELP lost x\nlost 3\nlost_other 9\n", 3.0),
        ('lost{worker="1"} 2\nlost{worker="2"} 4\n', 6.0),
    ],
)
def test_losses_are_summed_over_the_series_of_a_metric(text: str, total: float) -> None:
    assert doctor.summed(text, "lost") == total


def test_a_proxy_door_that_is_none_fails_the_handshake(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/mitmproxy-ca-cert.pem").write_text("")

    assert [finding.level for finding in doctor.interception(facts(tmp_path, running(tmp_path, closed)))] == ["fail"]


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_facts: Facts) -> Iterator[Finding]:
        raise RuntimeError("oh")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))

    assert levels(iter(doctor.examine(facts(tmp_path)))) == [("fail", "the check itself failed: RuntimeError('oh')")]


def test_json_says_whether_all_is_well_and_the_exit_code_says_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    args = ["--home", str(tmp_path), "--json"]
    well = CliRunner().invoke(doctor.doctor, args, env={"MITMGATE_POLICY": None})
    tmp_path.chmod(0o755)
    ill = CliRunner().invoke(doctor.doctor, args, env={"MITMGATE_POLICY": None})

    assert (well.exit_code, json.loads(well.output)["ok"]) == (0, True)
    assert (ill.exit_code, json.loads(ill.output)["ok"]) == (1, False)
    assert {"check", "level", "text", "do"} == set(json.loads(ill.output)["findings"][0])
