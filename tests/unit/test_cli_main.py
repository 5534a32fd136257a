"""The command line imports what it needs and says what went wrong."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import mitmgate
from mitmgate import __version__, cli
from mitmgate.errors import Fault, PolicyError, StartError

ENV = {**os.environ, "PYTHONPATH": str(Path(mitmgate.__file__).parents[1])}
"""Of a process that has this very mitmgate, installed or not."""
DESIGNED = [
    *("serve", "web", "run", "demo", "tail", "report", "show", "budget", "alert", "cache", "keys", "usage", "check"),
    *("policy", "env", "doctor"),
]


def stand_in(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make every command raise *error*."""

    @click.command()
    def command() -> None:
        raise error

    patch.setattr(cli.Commands, "get_command", lambda _self, _ctx, _name: command)


def python(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], env=ENV, capture_output=True, text=True, check=False)


def test_the_overview_lists_the_commands_in_the_order_of_a_first_day(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.carry_out(["--help"])

    listed = [line.split()[0] for line in capsys.readouterr().out.partition("Commands:\n")[2].splitlines()]
    assert (code, listed) == (0, DESIGNED)


@pytest.mark.parametrize("name", DESIGNED)
def test_every_command_of_the_table_is_there(name: str) -> None:
    command = cli.group.get_command(click.Context(cli.group), name)

    assert command is not None
    assert command.name == name


def test_every_command_has_help_that_starts_with_a_sentence() -> None:
    for name in DESIGNED:
        command = cli.group.get_command(click.Context(cli.group), name)
        assert command is not None
        assert (command.help or "").strip().partition("\n")[0], name


@pytest.mark.parametrize(
    "args", [["--help"], ["report", "--help"], ["env", "--help"], ["run", "--help"], ["tail", "--help"]]
)
def test_commands_that_do_not_serve_import_no_mitmproxy(args: list[str]) -> None:
    code = f"import sys; from mitmgate import cli; cli.carry_out({args}); sys.exit('mitmproxy' in sys.modules)"

    assert python("-c", code).returncode == 0


def test_python_m_mitmgate_is_the_same_command() -> None:
    assert python("-m", "mitmgate", "--version").stdout == f"mitmgate {__version__}\n"


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.carry_out(["reprot"]) == 2
    assert "No such command 'reprot'. Did you mean 'report'?" in capsys.readouterr().err


def test_what_a_user_can_mend_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, StartError("127.0.0.1:8080 is taken; give another with --listen"))

    code = cli.carry_out(["serve"])

    said = capsys.readouterr()
    assert (code, said.out, said.err) == (1, "", "mitmgate: 127.0.0.1:8080 is taken; give another with --listen\n")


def test_a_policy_with_faults_shows_each_on_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [Fault("team.yaml", 3, "limit", "is not known"), Fault("team.yaml", 9, "", "is cut off")]
    stand_in(monkeypatch, PolicyError(faults))

    code = cli.carry_out(["serve"])

    assert (code, capsys.readouterr().err) == (2, "team.yaml:3: limit: is not known\nteam.yaml:9: is cut off\n")


def test_ctrl_c_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, KeyboardInterrupt())

    code = cli.carry_out(["tail"])

    assert (code, capsys.readouterr().err.strip()) == (130, "")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ZeroDivisionError("a bug"))

    with pytest.raises(ZeroDivisionError):
        cli.carry_out(["tail"])


def test_a_reader_that_left_is_no_error() -> None:
    """``mitmgate --help | head -0``: Python would complain about the closed pipe at its very end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody_reads:
        done = subprocess.run(
            [sys.executable, "-m", "mitmgate", "--help"],
            env=ENV,
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert (done.returncode, done.stderr) == (141, b"")


def test_no_command_means_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(cli, "carry_out", lambda args: asked.append(args) or 0)

    with pytest.raises(SystemExit):
        cli.main([])

    assert asked == [["serve"]]
