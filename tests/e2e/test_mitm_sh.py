"""``mitm.sh`` finds a Python, installs once, and then becomes mitmgate.

The script under test is the real one, and so are venv and pip; only what they install is small: a project of the same
name with a build backend of its own, which needs no network and keeps count of its builds.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "mitm.sh"
TOOLS = ("sh", "cat", "cksum", "cut", "date", "dirname", "mkdir", "readlink", "rm", "sleep", "tail")
"""What the script may count on; no Python among them."""

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

BACKEND = """
import pathlib, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if pathlib.Path("broken").exists():
        raise SystemExit("this project is broken today")
    with open("builds", "a") as builds:
        builds.write("built\\n")
    name = "mitmgate-0.1.0-py3-none-any.whl"
    info = "mitmgate-0.1.0.dist-info"
    files = {
        "mitmgate.py": pathlib.Path("program.py").read_text(),
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: mitmgate\\nVersion: 0.1.0\\nProvides-Extra: demo\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: backend\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[console_scripts]\\nmitmgate = mitmgate:main\\n",
    }
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"]))
    return name
"""

PROGRAM = """
import json, os, signal, sys

def main():
    print(json.dumps({"args": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd()}), flush=True)
    if sys.argv[1:] == ["wait"]:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("ready", flush=True)
        signal.pause()
    sys.exit(3 if sys.argv[1:] == ["fail"] else 0)
"""


@dataclass
class Checkout:
    path: Path

    def call(
        self, *args: str, script: Path | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [script or self.script, *args], cwd=cwd, env=environment(), capture_output=True, text=True
        )

    @property
    def script(self) -> Path:
        return self.path / "mitm.sh"

    @property
    def python(self) -> Path:
        return self.path / ".venv/bin/python"

    @property
    def builds(self) -> int:
        """How often the project was installed."""
        return len((self.path / "builds").read_text().splitlines())


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "MITMGATE_PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, **more}


def make_checkout(path: Path) -> Checkout:
    path.mkdir(parents=True)
    shutil.copy(SCRIPT, path)
    for name, text in {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "program.py": PROGRAM}.items():
        (path / name).write_text(text)
    return Checkout(path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with a blank in its path, installed."""
    made = make_checkout(tmp_path_factory.mktemp("home") / "a checkout")
    assert made.call("setup").returncode == 0
    return made


def test_arguments_folder_and_exit_code_are_the_programs(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.call("fail", cwd=tmp_path)
    plain = checkout.call("report", "--where", "a b", cwd=tmp_path)

    assert done.returncode == 3
    assert json.loads(plain.stdout)["args"] == ["report", "--where", "a b"]
    assert Path(json.loads(plain.stdout)["cwd"]) == tmp_path.resolve()


def test_a_chain_of_links_leads_to_the_checkout(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "first").symlink_to(checkout.script)
    (tmp_path / "bin/mitm").symlink_to("../first")  # relative to where the link lies, not to where one stands

    done = checkout.call("env", script=tmp_path / "bin/mitm", cwd=Path("/"))

    assert json.loads(done.stdout)["args"] == ["env"]
    assert not (tmp_path / ".venv").exists()


def test_once_installed_nothing_is_said_or_installed(checkout: Checkout) -> None:
    before = checkout.builds

    done = checkout.call()

    assert (done.stderr, json.loads(done.stdout)["args"]) == ("", [])
    assert checkout.builds == before


def test_setup_prints_the_programs_folder_and_starts_nothing(checkout: Checkout) -> None:
    assert checkout.call("setup").stdout == f"{checkout.path}/.venv/bin\n"


def test_a_changed_pyproject_is_installed_once(checkout: Checkout) -> None:
    before = checkout.builds
    with (checkout.path / "pyproject.toml").open("a") as file:
        file.write("# changed\n")

    first, second = checkout.call("env"), checkout.call("env")

    assert "installing" in first.stderr
    assert second.stderr == ""
    assert checkout.builds == before + 1


def test_the_demo_extra_is_installed_when_the_demo_is_first_asked_for(checkout: Checkout) -> None:
    checkout.call("env")
    before = checkout.builds

    first, second, other = checkout.call("demo"), checkout.call("demo"), checkout.call("env")

    assert 'with the extra "demo"' in first.stderr
    assert json.loads(first.stdout)["args"] == ["demo"]
    assert (second.stderr, other.stderr) == ("", "")
    assert checkout.builds == before + 1


def test_an_environment_whose_interpreter_vanished_is_made_anew(checkout: Checkout) -> None:
    for python in checkout.python.parent.glob("python*"):
        python.unlink()
    checkout.python.symlink_to("/no/such/python3.12")

    done = checkout.call("env")

    assert done.returncode == 0
    assert "making" in done.stderr


def test_an_interrupted_installation_is_repeated(checkout: Checkout) -> None:
    for stamp in checkout.path.glob(".venv/installed*"):
        stamp.unlink()
    for pip in checkout.path.glob(".venv/lib/python*/site-packages/pip"):
        shutil.rmtree(pip)

    done = checkout.call("env")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["args"] == ["env"]


def test_of_two_at_once_one_installs_and_both_run(checkout: Checkout) -> None:
    before = checkout.builds
    for stamp in checkout.path.glob(".venv/installed*"):
        stamp.unlink()

    both = [
        subprocess.Popen([checkout.script, "env"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]

    assert [json.loads(text)["args"] for text in said] == [["env"], ["env"]]
    assert checkout.builds == before + 1


def test_a_failed_installation_says_why_and_is_tried_again(checkout: Checkout) -> None:
    (checkout.path / "broken").touch()
    for stamp in checkout.path.glob(".venv/installed*"):
        stamp.unlink()

    failed = checkout.call("env")
    (checkout.path / "broken").unlink()
    mended = checkout.call("env")

    assert (failed.returncode, failed.stdout) == (1, "")
    assert "this project is broken today" in failed.stderr
    assert f"the whole log is {checkout.path}/.venv.log" in failed.stderr
    assert mended.returncode == 0


def test_a_moved_checkout_is_installed_where_it_is_now(tmp_path: Path) -> None:
    old = make_checkout(tmp_path / "old")
    old.call("setup")
    new = Checkout(old.path.rename(tmp_path / "new"))

    done = new.call("env")

    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/new/" in (new.path / ".venv/bin/pip").read_text()


def test_sigterm_reaches_the_program_itself(checkout: Checkout) -> None:
    checkout.call("setup")
    process = subprocess.Popen([checkout.script, "wait"], env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process:
        said = json.loads(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"

        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == 7
    assert said["pid"] == process.pid


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_checkout_that_cannot_be_written_to_is_installed_in_the_users_cache(tmp_path: Path) -> None:
    made = make_checkout(tmp_path / "checkout")
    (made.path / "builds").touch()
    made.path.chmod(0o555)

    done = subprocess.run(
        [made.script, "setup"], env=environment(XDG_CACHE_HOME=str(tmp_path / "cache")), capture_output=True, text=True
    )

    assert done.stdout.startswith(f"{tmp_path}/cache/mitmgate/")


# -- finding Python ---------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A machine with the tools that the script needs, and the Pythons that a test puts on it."""

    checkout: Checkout
    bin: Path
    home: Path
    asked: Path
    """Which Python was asked to make the environment."""

    def add(self, python: Path, version: tuple[int, int] | None) -> None:
        """Put a Python of *version* at *python*; None = a shim that only fails.

        It answers the script's question about itself and notes when it is asked for a venv, which it then refuses.
        """
        usable = version is not None and version >= (3, 12)
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(
            f"#!{shutil.which('sh')}\n"
            f'case "$*" in *venv*--clear*) echo {python} >{self.asked}; exit 1 ;; *fcntl*) exit 0 ;; esac\n'
            f"exit {0 if usable else 1}\n"
        )
        python.chmod(0o755)

    def choice(self, **env: str) -> str:
        """Return the Python that the script took, relative to the machine."""
        self.asked.unlink(missing_ok=True)
        self.run(**env)
        return str(Path(self.asked.read_text().strip()).relative_to(self.home.parent))

    def run(self, **env: str) -> "subprocess.CompletedProcess[str]":
        base = {"PATH": str(self.bin), "HOME": str(self.home)}
        return subprocess.run([self.checkout.script, "env"], env={**base, **env}, capture_output=True, text=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (tools / tool).symlink_to(found)
    (tmp_path / "home").mkdir()
    return Machine(make_checkout(tmp_path / "checkout"), tools, tmp_path / "home", tmp_path / "asked")


def test_a_newer_python_is_found_where_python3_is_old(machine: Machine) -> None:
    machine.add(machine.bin / "python3", (3, 11))
    machine.add(machine.bin / "python3.12", (3, 12))
    assert machine.choice() == "bin/python3.12"

    machine.add(machine.bin / "python3.13", (3, 13))
    assert machine.choice() == "bin/python3.13"


def test_a_shim_that_does_not_run_is_passed_over(machine: Machine) -> None:
    machine.add(machine.bin / "python3.14", None)
    machine.add(machine.bin / "python3", (3, 12))
    assert machine.choice() == "bin/python3"


def test_pyenvs_versions_are_looked_through_newest_first(machine: Machine) -> None:
    machine.add(machine.bin / "python3.13", None)
    machine.add(machine.home / ".pyenv/versions/3.12.1/bin/python3", (3, 12))
    machine.add(machine.home / ".pyenv/versions/3.9.18/bin/python3", (3, 9))
    assert machine.choice() == "home/.pyenv/versions/3.12.1/bin/python3"

    machine.add(machine.home / ".pyenv/versions/3.13.0/bin/python3", (3, 13))
    assert machine.choice() == "home/.pyenv/versions/3.13.0/bin/python3"


def test_pyenv_is_found_by_its_root_and_a_python_of_uvs_last(machine: Machine) -> None:
    machine.add(machine.home / "uv/python", (3, 13))
    uv = machine.bin / "uv"
    uv.write_text(f"#!{shutil.which('sh')}\n[ \"$1 $2\" = 'python find' ] && echo {machine.home}/uv/python\n")
    uv.chmod(0o755)
    assert machine.choice() == "home/uv/python"

    machine.add(machine.home / "elsewhere/versions/3.12.9/bin/python3", (3, 12))
    assert machine.choice(PYENV_ROOT=f"{machine.home}/elsewhere") == "home/elsewhere/versions/3.12.9/bin/python3"


def test_the_python_that_a_user_names_is_taken_or_refused(machine: Machine) -> None:
    machine.add(machine.bin / "python3.13", (3, 13))
    machine.add(machine.home / "mine", (3, 12))
    machine.add(machine.home / "old", (3, 11))
    assert machine.choice(MITMGATE_PYTHON=f"{machine.home}/mine") == "home/mine"

    refused = machine.run(MITMGATE_PYTHON=f"{machine.home}/old")

    assert refused.returncode == 1
    assert refused.stderr == (
        f"mitm.sh: MITMGATE_PYTHON={machine.home}/old is no Python 3.12 or newer with venv, ssl and sqlite3.\n"
    )


def test_without_any_python_one_line_says_what_to_install(machine: Machine) -> None:
    machine.add(machine.bin / "python3", (3, 11))

    done = machine.run()

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "mitm.sh: no Python 3.12 or newer found. "
        "Install one (with its venv module), or set MITMGATE_PYTHON=/path/to/python3.\n"
    )
