"""The demo shows the whole product offline, and the README shows the demo."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mitmgate
from mitmgate.demo.scenes import SCENES

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the demo prints into a pipe, run where nothing else is; no folder of it is left behind."""
    folder = tmp_path_factory.mktemp("demo")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "COLUMNS": "120",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(mitmgate.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mitmgate", "demo"], env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(folder.glob("mitmgate-demo-*")) == []
    return done.stdout


def test_every_scene_is_shown_with_what_the_app_got(shown: str) -> None:
    at = [shown.index(f"{scene.name}: ") for scene in SCENES]

    assert at == sorted(at)


@pytest.mark.parametrize(
    ("scene", "facts"),
    [
        ("OpenAI chat, one answer", ["acme", "gpt-5-mini", "200", "complete", "21 → 9"]),
        ("OpenAI chat, streamed", ["gpt-5-mini", "200", "complete", "23 → 16"]),
        ("OpenAI Responses, streamed", ["globex", "openai/gpt-5", "200", "complete", "25 → 11"]),
        ("Anthropic, a cached prompt", ["haiku-4-5", "200", "complete", "2,148 → 12"]),
        ("Anthropic, streamed", ["globex", "haiku-4-5", "200", "complete", "27 → 14"]),
        ("Gemini, streamed", ["globex", "2.5-flash", "200", "complete", "6 → 13"]),
        ("OpenAI chat, streamed, asked again", ["200", "complete", "HIT", "23 → 16"]),
        ("OpenAI chat, while it is busy", ["200", "complete", "×2", "10 → 10"]),
        ("OpenAI chat, while it is down", ["200", "complete", "×3→", "11 → 8"]),
        ("OpenAI chat, an address in it", ["initech", "200", "complete", "12 → 10"]),
        ("OpenAI chat, over a limit", ["initech", "429", "refused"]),
        ("OpenAI chat, near a budget's end", ["globex", "gpt-5-mini", "200", "complete", "10 → 7"]),
        ("OpenAI chat, cut by the provider", ["200", "truncated"]),
        ("Anthropic, the client leaves", ["200", "client_a"]),
    ],
)
def test_the_row_below_a_scene_holds_the_providers_numbers(shown: str, scene: str, facts: list[str]) -> None:
    row = shown.partition(f"\n{scene}: ")[2].splitlines()[1]

    assert [fact for fact in facts if fact not in row] == []


@pytest.mark.parametrize(
    ("scene", "saw"),
    [
        (
            "OpenAI chat, an address in it",
            r"Dear ada@example\.org: tea! \(the provider read: Ask \[email_1\] to tea\.\)",
        ),
        ("OpenAI chat, over a limit", r"RateLimitError, to be tried again in (60|5\d) s"),
        ("OpenAI chat, near a budget's end", r".*\(asked of gpt-5, answered by gpt-5-mini\)"),
    ],
)
def test_what_rules_do_shows_in_what_the_app_sees(shown: str, scene: str, saw: str) -> None:
    assert re.fullmatch(saw, shown.partition(f"\n{scene}: ")[2].splitlines()[0])


def test_the_report_counts_every_call(shown: str) -> None:
    assert f"{len(SCENES)} calls · 3 errors" in shown


def test_the_report_says_what_the_cache_and_the_retries_did(shown: str) -> None:
    assert re.search(r"cost \$0\.000\d+, saved \$0\.0000378\n", shown)
    assert "1.21 tries per sent call · 2 tried again, 2 of them with success · 1 answered elsewhere" in shown
    assert "1 of 8 looked up were in the cache" in shown
    [openai] = [line.split() for line in shown.splitlines() if line.startswith("openai  ")]
    [azure] = [line.split() for line in shown.splitlines() if line.startswith("azure  ")]
    assert (openai[1:4], azure[1:4]) == (["11", "2", "36.36"], ["1", "0", "0"])


def test_the_readme_shows_what_the_demo_prints(shown: str) -> None:
    sample = re.search(r"```console\n\$ \./mitm\.sh demo\n(.*?)```", README.read_text(), re.DOTALL)

    assert sample is not None
    assert story(sample[1]) == story(shown)
    assert tables(sample[1]) == tables(shown)


def story(text: str) -> list[str]:
    """Return the words before the report's tables, in order."""
    return normalised(text.partition(TABLES)[0])


def tables(text: str) -> set[str]:
    """Return the words of the tables. Where a table breaks into two depends on how many digits its numbers have."""
    return set(normalised(text.partition(TABLES)[2]))


TABLES = "\ntenant  provider "


def normalised(text: str) -> list[str]:
    """Return the words of *text* with what differs from run to run made the same: digits, ids, times, bars."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]*", "ID", text)
    text = re.sub(r"[▁▂▃▄▅▆▇█▏▎▍▌▋▊▉]+", "BAR", text)
    text = re.sub(r"[\d.,:]*\d", "0", text)
    return text.replace("–", "0").split()
