"""A program run through the gateway keeps its terminal, signals and exit code; env and doctor know that gateway.

Gateways are real processes here, each in a home of its own; the provider is the demo's.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

import mitmgate
from mitmgate.cli.common import Running, is_alive, load_run, read_run
from mitmgate.cli.demo import policy_for
from mitmgate.demo.provider import provider
from mitmgate.demo.scenes import SCENES

PRINT_VARIABLES = "import json, os; print(json.dumps(dict(os.environ)))"
WAIT_FOR_INPUT = "print('up', flush=True); input()"
CALL = """
import http.client, json, os, ssl
host, _, port = os.environ["HTTPS_PROXY"].removeprefix("http://").partition(":")
trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
connection = http.client.HTTPSConnection(host, int(port), context=trust)
connection.set_tunnel("api.openai.com", 443)
body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "%s"}]}
connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
print(json.loads(connection.getresponse().read())["choices"][0]["message"]["content"])
"""

type Pipe = "subprocess.Popen[str]"


@dataclass
class Shell:
    """A shell with a home of its own, in which nothing of the gateway's is set."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        return {
            **mine,
            "HOME": str(self.home.parent),
            "MITMGATE_HOME": str(self.home),
            "PYTHONPATH": str(Path(mitmgate.__file__).parents[1]),
        }

    def mitmgate(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command(*args), env=self.env, capture_output=True, text=True, timeout=60)

    def run(self, *program: str) -> "subprocess.CompletedProcess[str]":
        return self.mitmgate("run", "--", *program)

    @contextmanager
    def started(self, *args: str) -> Iterator[Pipe]:
        """Start a command; give it once it has written a line, and see that it ends."""
        with subprocess.Popen(
            command(*args),
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert line_of(process.stdout), process.stderr and process.stderr.read()
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()

    @property
    def gateway(self) -> Running | None:
        return read_run(self.home)


def command(*args: str) -> list[str]:
    return [sys.executable, "-P", "-m", "mitmgate", *args]


def line_of(stream: IO[str] | None) -> str:
    assert stream
    return stream.readline()


def let_go(process: Pipe) -> int:
    """Give a program that waits for input its line; return the exit code."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    return process.wait(30)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "gate")


@pytest.fixture
def served(shell: Shell) -> Iterator[Running]:
    """A gateway that `serve` started."""
    with shell.started("serve", "--listen", "127.0.0.1:0", "--base-url-listen", "127.0.0.1:0"):
        running = shell.gateway
        assert running is not None
        yield running


# -- a gateway for the program's life ---------------------------------------------------------------------------------


def test_without_a_gateway_one_runs_for_the_programs_life_only(shell: Shell) -> None:
    done = shell.run(sys.executable, "-c", PRINT_VARIABLES)

    seen = json.loads(done.stdout)
    assert done.stderr == ""
    assert seen["HTTPS_PROXY"].startswith("http://127.0.0.1:")
    assert seen["SSL_CERT_FILE"] == str(shell.home / "ca/bundle.pem")
    assert shell.gateway is None
    assert load_run(shell.home) is None


def test_of_two_programs_the_last_one_ends_their_gateway(shell: Shell) -> None:
    waiting = ("run", "--", sys.executable, "-c", WAIT_FOR_INPUT)
    with shell.started(*waiting) as first, shell.started(*waiting) as second:
        shared = shell.gateway
        assert shared is not None

        assert let_go(first) == 0
        assert shell.gateway == shared

        assert let_go(second) == 0
        assert shell.gateway is None
        assert not is_alive(shared.pid)


def test_a_running_gateway_is_used_and_left_running(shell: Shell, served: Running) -> None:
    done = shell.run(sys.executable, "-c", PRINT_VARIABLES)

    assert json.loads(done.stdout)["HTTPS_PROXY"] == served.proxy_url
    assert shell.gateway == served


def test_an_option_that_the_running_gateway_does_not_follow_is_refused(shell: Shell, served: Running) -> None:
    done = shell.mitmgate("run", "--policy", "other.yaml", "--", "true")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"mitmgate: gateway {served.pid} already runs in {shell.home}, so --policy would do nothing"
    )


def test_a_gateway_that_does_not_start_says_why_and_the_program_is_not_run(shell: Shell, tmp_path: Path) -> None:
    policy = tmp_path / "team.yaml"
    policy.write_text("usage: maybe\n")

    done = shell.mitmgate("run", "--policy", str(policy), "--", "touch", str(tmp_path / "ran"))

    assert done.returncode == 1
    assert f"{policy}:1: usage:" in done.stderr
    assert not (tmp_path / "ran").exists()


# -- exit codes and signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-program-anywhere"], 127),
        (["./no/such/file"], 127),
        ([__file__], 126),
    ],
)
def test_the_exit_code_is_what_a_shell_would_say(shell: Shell, program: list[str], code: int) -> None:
    assert shell.run(*program).returncode == code


def test_a_program_that_does_not_exist_starts_no_gateway(shell: Shell) -> None:
    done = shell.run("no-such-program-anywhere")

    assert done.stderr == "mitmgate run: no-such-program-anywhere: no such program\n"
    assert not shell.home.exists()


def test_a_signal_reaches_the_program_and_then_the_gateway_ends(shell: Shell) -> None:
    program = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); " + WAIT_FOR_INPUT
    with shell.started("run", "--", sys.executable, "-c", program) as process:
        gateway = shell.gateway
        assert gateway is not None

        process.send_signal(signal.SIGTERM)

        assert process.wait(30) == 9
    assert not is_alive(gateway.pid)


COUNT_INTERRUPTS = """
import os, signal
interrupt = {signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)
print("tty" if os.isatty(0) and os.isatty(1) else "no tty", flush=True)
signal.sigwaitinfo(interrupt)
print("interrupted", flush=True)
print("twice" if signal.sigtimedwait(interrupt, 0.5) else "once", flush=True)
print("heard", input(), flush=True)
"""

TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Does for a process in a session of its own what a terminal's window does: gives it the terminal as its own."""


@dataclass
class Terminal:
    """A program on a terminal of its own, as a person would start it."""

    process: "subprocess.Popen[bytes]"
    screen: int

    def type(self, keys: bytes) -> None:
        os.write(self.screen, keys)

    def until(self, text: bytes) -> bytes:
        """Return what appeared up to *text*."""
        read = b""
        while text not in read:
            read += os.read(self.screen, 4096)
        return read


@contextmanager
def terminal(shell: Shell, *args: str) -> Iterator[Terminal]:
    screen, inside = os.openpty()
    program = [sys.executable, "-c", TAKE_TERMINAL, *command(*args)]
    process = subprocess.Popen(
        program, env=shell.env, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    try:
        yield Terminal(process, screen)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_ctrl_c_on_the_terminal_reaches_the_program_once(shell: Shell) -> None:
    with terminal(shell, "run", "--", sys.executable, "-c", COUNT_INTERRUPTS) as window:
        window.until(b"tty\r\n")
        gateway = shell.gateway
        assert gateway is not None
        assert os.getsid(gateway.pid) == gateway.pid  # the terminal's signals do not reach it
        window.process.send_signal(signal.SIGSTOP)  # so that what it would pass on comes after, and is counted
        window.type(b"\x03")
        said = window.until(b"interrupted")
        window.process.send_signal(signal.SIGCONT)
        window.type(b"hello\n")
        said += window.until(b"heard hello")

    assert b"once" in said
    assert window.process.returncode == 0
    assert shell.gateway is None


def test_a_person_at_a_terminal_is_told_what_was_traced(shell: Shell, tmp_path: Path) -> None:
    scene = SCENES[0]
    policy = tmp_path / "policy.yaml"
    call = ("run", "--policy", str(policy), "--", sys.executable, "-c", CALL % scene.prompt)
    with provider(tmp_path) as place:
        policy.write_text(policy_for(place))
        with terminal(shell, *call) as window:
            said = window.until(b"mitmgate report --since")

    assert scene.answer.encode() in said
    assert b"mitmgate: 1 call, 0 errors \xc2\xb7 21 tokens in, 9 out \xc2\xb7 cost $" in said


# -- env and doctor ---------------------------------------------------------------------------------------------------


def test_env_brings_a_shell_to_the_running_gateway(shell: Shell, served: Running) -> None:
    lines = shell.mitmgate("env")
    script = f'{lines.stdout}\nprintf %s "$HTTPS_PROXY $NODE_EXTRA_CA_CERTS"'

    seen = subprocess.run(["sh", "-c", script], env=shell.env, capture_output=True, text=True).stdout
    assert lines.returncode == 0
    assert seen == f"{served.proxy_url} {served.ca_bundle}"
    assert json.loads(shell.mitmgate("env", "--json").stdout)["HTTPS_PROXY"] == served.proxy_url


def test_env_without_a_gateway_prints_nothing_that_a_shell_would_run(shell: Shell) -> None:
    done = shell.mitmgate("env")

    assert (done.returncode, done.stdout) == (1, "")
    assert f"no gateway runs in {shell.home}" in done.stderr


def test_doctor_finds_nothing_wrong_with_a_gateway_that_works(shell: Shell, served: Running) -> None:
    done = shell.mitmgate("doctor", "--json")

    findings = json.loads(done.stdout)["findings"]
    assert [finding for finding in findings if finding["level"] == "fail"] == []
    assert done.returncode == 0
    assert {"gateway", "base-URL door", "interception", "bundle", "CA", "losses"} <= {
        finding["check"] for finding in findings if finding["level"] == "ok"
    }


def test_doctor_sees_that_the_certificate_is_another_gateways(shell: Shell, served: Running, tmp_path: Path) -> None:
    other = Shell(tmp_path / "other")
    assert other.run("true").returncode == 0  # makes a home with a CA of its own
    said = json.loads((shell.home / "run.json").read_text())
    said["ca_cert"] = str(other.home / "ca/mitmproxy-ca-cert.pem")
    (shell.home / "run.json").write_text(json.dumps(said))

    done = shell.mitmgate("doctor", "--json")

    failed = [finding["check"] for finding in json.loads(done.stdout)["findings"] if finding["level"] == "fail"]
    assert (done.returncode, failed) == (1, ["interception"])
