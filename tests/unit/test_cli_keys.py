"""``mitmgate keys`` makes keys that are shown once, lists who may come in, and shuts them out again."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mitmgate.cli import carry_out, group
from mitmgate.cli.keys import moment
from mitmgate.clock import SystemClock, iso
from mitmgate.home import secret_of
from mitmgate.store import key_file, provider_keys

DAY = 86400.0
POLICY = """
auth:
  keys:
    - {name: team, key: env:TEAM_KEY, tenant: acme}
    - {name: old, key: env:OLD_KEY, expires: 2020-01-31, models: ["gpt-*"]}
targets:
  azure: {provider: openai, base_url: "https://eu.example", keys: {first: env:FIRST_KEY, second: env:SECOND_KEY}}
"""
ENV = {"COLUMNS": "160", "TEAM_KEY": "team-key-0123456789"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(POLICY)
    return path


def run(home: Path, *args: str) -> Result:
    return CliRunner().invoke(group, ["keys", *args, "--home", str(home)], env=ENV)


def done(home: Path, *args: str) -> str:
    result = run(home, *args)
    assert result.exit_code == 0, result.output
    return result.stdout


def listed(home: Path, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done(home, *args, "--json"))["keys"]
    return found


def said(capsys: pytest.CaptureFixture[str], home: Path, *args: str) -> tuple[int, str]:
    """Return exit code and sentence of a command that says no."""
    code = carry_out(["keys", *args, "--home", str(home)])
    return code, capsys.readouterr().err


# -- new --------------------------------------------------------------------------------------------------------------


def test_a_new_key_stands_alone_on_stdout_and_in_no_file(home: Path) -> None:
    result = run(
        home, "new", "support-app", "--tenant", "acme", "--user", "ann", "--model", "gpt-*", "--expires", "90d"
    )

    key = result.stdout.strip()
    assert key.startswith("mg-")
    assert "\n" not in key
    assert "support-app is made, until" in result.stderr
    assert key not in result.stderr
    everything = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert key_file.digest_of(secret_of(home), key) in everything
    assert key.encode() not in everything
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_new_key_for_machines(home: Path) -> None:
    made = json.loads(done(home, "new", "intern", "--model", "gpt-5-mini*", "--model", "claude-*", "--json"))

    assert made["key"].startswith("mg-")
    assert (made["name"], made["state"], made["models"]) == ("intern", "active", ["gpt-5-mini*", "claude-*"])
    assert made["auth"] == key_file.digest_of(secret_of(home), made["key"]).hex()


def test_a_name_is_given_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(home, "new", "app")

    code, sentence = said(capsys, home, "new", "app")

    assert code == 1
    assert "there is a key 'app' already" in sentence
    assert "mitmgate keys revoke app" in sentence


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90d", 1_700_000_000 + 90 * DAY),
        ("12 h", 1_700_000_000 + DAY / 2),
        ("2027-01-31", 1_801_440_000.0),
        ("2027-01-31T18:00Z", 1_801_418_400.0),
    ],
)
def test_a_key_ends_after_a_time_or_at_one(text: str, at: float) -> None:
    assert moment(text, 1_700_000_000.0) == at


@pytest.mark.parametrize(
    ("text", "what"),
    [("soon", "is not a time"), ("90", "has no unit"), ("2020-01-31", "is over already"), ("2027-13-40", "no date")],
)
def test_an_end_that_cannot_be_is_refused(text: str, what: str) -> None:
    with pytest.raises(click.UsageError, match=what):
        moment(text, 1_700_000_000.0)


@pytest.mark.parametrize(
    "args",
    [["new", ""], ["new", "a\nb"], ["new", "x" * 257], ["new", "a", "--tenant", "\x1b"], ["new", "a", "--model", " "]],
)
def test_names_that_could_not_be_shown_are_refused(home: Path, args: list[str]) -> None:
    assert run(home, *args).exit_code == 2
    assert not home.exists()


# -- list -------------------------------------------------------------------------------------------------------------


def test_a_list_says_who_may_come_in_for_what_and_until_when(home: Path, policy: Path) -> None:
    done(home, "new", "intern", "--tenant", "globex", "--model", "gpt-5-mini*", "--expires", "90d")
    done(home, "new", "gone")
    done(home, "revoke", "gone")
    with closing(key_file.open_file(home / "keys.db")) as conn:
        team = key_file.digest_of(secret_of(home), ENV["TEAM_KEY"])
        key_file.note_uses(conn, {team: SystemClock.wall() - 120})

    lines = [line.split() for line in done(home, "--policy", str(policy)).splitlines() if line]

    today = iso(SystemClock.wall())[:10]
    assert lines[1] == ["name", "state", "tenant", "user", "models", "expires", "made", "last", "used"]
    assert lines[2] == ["team", "active", "acme", "–", "all", "never", f"{policy}:4", "2m", "ago"]
    assert lines[3][:5] == ["old", "expired", "–", "–", "gpt-*"]
    assert lines[3][-2:] == [f"{policy}:5", "–"]  # its secret is not set here, so nobody can tell
    assert lines[4] == ["gone", "revoked", "–", "–", "all", "never", today, "never"]
    assert lines[5] == ["intern", "active", "globex", "–", "gpt-5-mini*", "in", "90d", today, "never"]


def test_a_list_for_machines_has_every_column(home: Path, policy: Path) -> None:
    key = done(home, "new", "app", "--expires", "2099-01-31").strip()

    team, old, app = listed(home, "--policy", str(policy))

    assert (team["name"], team["tenant"], team["where"], team["made_at"]) == ("team", "acme", f"{policy}:4", None)
    assert (old["state"], old["expires_at"]) == ("expired", "2020-02-01T00:00:00.000Z")
    assert (app["expires_at"], app["revoked_at"], app["used_at"]) == ("2099-02-01T00:00:00.000Z", None, None)
    assert app["auth"] == key_file.digest_of(secret_of(home), key).hex()


def test_provider_keys_are_listed_beside(home: Path, policy: Path) -> None:
    home.mkdir()
    wall = SystemClock.wall()
    rests = provider_keys.Row("azure", "second", "resting", wall + 300, 401, wall - 60, wall - 60, wall - 60)
    provider_keys.exchange(home / provider_keys.FILE, [rests])

    text = done(home, "--policy", str(policy))
    pools = json.loads(done(home, "--policy", str(policy), "--json"))["provider_keys"]

    assert [(row["target"], row["alias"], row["state"]) for row in pools] == [
        ("azure", "first", "ready"),
        ("azure", "second", "resting"),
    ]
    last = text.rpartition("keys of providers")[2].splitlines()[-1]
    assert last.split() == ["azure", "second", "resting", "in", "5m", "401", "1m", "ago", "1m", "ago"]


def test_no_keys_is_said_with_what_to_do(home: Path) -> None:
    assert "`mitmgate keys new NAME` makes one" in done(home)


def test_a_stranger_in_a_name_cannot_speak_to_the_terminal(home: Path) -> None:
    with closing(key_file.open_file(home / "keys.db")) as conn:
        key_file.add(conn, key_file.Made(b"x", "a\x1b[31m[bold]", None, None, (), 0.0))

    assert "a␛[31m[bold]" in done(home)


# -- revoke -----------------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_shown_as_such_and_its_name_is_free(home: Path) -> None:
    done(home, "new", "app")

    assert done(home, "revoke", "app") == "app is revoked; running gateways refuse it from now on\n"
    done(home, "new", "app")

    assert [row["state"] for row in listed(home)] == ["active", "revoked"]


def test_nobody_is_revoked_by_mistake(home: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(home, "new", "support-app")

    code, sentence = said(capsys, home, "revoke", "suport-app")
    _, of_policy = said(capsys, home, "revoke", "team", "--policy", str(policy))

    assert code == 1
    assert "did you mean 'support-app'?" in sentence
    assert f"take it out of {policy}:4" in of_policy
    assert [row["state"] for row in listed(home)] == ["active"]


def test_a_file_that_is_no_database_is_one_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "keys.db").write_bytes(b"nothing like it" * 100)

    for args in ([], ["new", "app"], ["revoke", "app"]):
        code, sentence = said(capsys, home, *args)
        assert code == 1
        assert sentence.strip().count("\n") == 0
        assert "keys.db" in sentence
