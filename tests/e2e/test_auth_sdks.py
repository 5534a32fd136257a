"""The vendors' own SDKs at doors that ask for a key: each sends it in a place of its own, and gets its answer.

The gateway and ``mitmgate keys`` are processes beside each other, as at anybody's.
"""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli.environment import variables, way_to
from support import serving
from support.apps import PIECES, WHOLE, Ask
from support.provider import Provider
from support.serving import Serving
from support.speakers import speak
from support.voices import APIS, HOSTS, Api, Said

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai

TEAM = "team-key-0123456789"
REAL = "real-key-0123456789"
POLICY = """
auth:
  keys: [{name: team, key: env:TEAM_KEY, tenant: acme}]
targets:
  openai: {provider: openai, base_url: "https://api.openai.com", headers: {authorization: Bearer env:REAL_KEY}}
  anthropic: {provider: anthropic, base_url: "https://api.anthropic.com", headers: {x-api-key: env:REAL_KEY}}
  gemini:
    provider: google-ai-studio
    base_url: "https://generativelanguage.googleapis.com"
    headers: {x-goog-api-key: env:REAL_KEY}
"""
BASES: dict[Api, str] = {
    "chat": "/openai/v1",
    "responses": "/openai/v1",
    "messages": "/anthropic",
    "gemini": "/google-ai-studio",
}
ERRORS: dict[Api, tuple[str, str]] = {
    "chat": ("openai", "AuthenticationError"),
    "responses": ("openai", "AuthenticationError"),
    "messages": ("anthropic", "AuthenticationError"),
    "gemini": ("google.genai.errors", "ClientError"),
}


@pytest.fixture(scope="module")
def locked(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("locked") / "home"))
    text = serving.policy_text(provider_thread.port, ca_file, POLICY)
    with serving.serve(home, text, TEAM_KEY=TEAM, REAL_KEY=REAL) as running:
        yield running


@pytest.fixture
def gate(locked: Serving, beside: Provider, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return the gateway, with this process set up for its proxy door; nobody has a key yet."""
    assert beside.heard == []
    serving.set_up(monkeypatch, locked, "none-of-ours-0123456789")
    rows = locked.query("select 1 from sqlite_master where name = 'exchanges'")
    locked.read |= {row["id"] for row in (locked.query("select id from exchanges") if rows else ())}
    return locked


def mitmgate(gate: Serving, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mitmgate", *args, "--home", str(gate.home)],
        env=serving.clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def check(provider: Provider, gate: Serving, api: Api, key: str) -> dict[str, Any]:
    """The provider was asked with its own key and heard nothing of ours; return the row."""
    [heard] = provider.heard
    said = f"{heard.path} {heard.fields} {heard.body!r}"
    assert REAL in said
    assert key not in said
    row = gate.new_row()
    assert (row["host"], row["status_code"], row["terminal"]) == (HOSTS[api], 200, "complete")
    assert key not in str(row)
    return row


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("door", ["proxy", "base-url"])
def test_a_key_in_the_place_of_the_providers_is_swapped_for_it(
    gate: Serving, beside: Provider, api: Api, door: str
) -> None:
    said = Said(api)
    speak(beside, said)

    answer = WHOLE[api](Ask(key=TEAM, base_url=gate.base_url + BASES[api] if door == "base-url" else None))

    assert answer == said.text
    assert check(beside, gate, api, TEAM)["tenant"] == "acme"


@pytest.mark.parametrize("api", APIS)
def test_a_key_in_its_own_header_opens_a_stream(gate: Serving, beside: Provider, api: Api) -> None:
    said = Said(api)
    speak(beside, said)

    words = list(PIECES[api](Ask(key=REAL, headers={"cf-aig-authorization": f"Bearer {TEAM}"})))

    assert "".join(words) == said.text
    assert check(beside, gate, api, TEAM)["tenant"] == "acme"


@pytest.mark.parametrize("api", APIS)
def test_a_key_in_the_proxys_address_opens_the_door(
    gate: Serving, beside: Provider, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    for name, value in variables(way_to(gate.running, gate.home, key=TEAM), {}).items():
        monkeypatch.setenv(name, value)
    said = Said(api)
    speak(beside, said)

    answer = WHOLE[api](Ask(key=REAL))

    assert answer == said.text
    assert check(beside, gate, api, TEAM)["tenant"] == "acme"


@pytest.mark.parametrize("api", APIS)
def test_without_a_key_each_sdk_raises_its_own_error_and_does_not_hammer(
    gate: Serving, beside: Provider, api: Api
) -> None:
    module, name = ERRORS[api]
    speak(beside, Said(api))

    with pytest.raises(getattr(importlib.import_module(module), name), match="cf-aig-authorization") as caught:
        WHOLE[api](Ask(key="sk-theirs-0123456789", retries=2))

    row = gate.new_row()
    assert (row["status_code"], row["terminal"], row["source"]) == (401, "refused", "gateway")
    assert row["id"] in str(caught.value)
    assert beside.heard == []


def test_a_key_that_is_made_beside_the_running_gateway_opens_it_until_it_is_revoked(
    gate: Serving, beside: Provider
) -> None:
    import openai

    speak(beside, Said("chat"))
    key = mitmgate(gate, "keys", "new", "laptop", "--tenant", "globex", "--model", "gpt-5-mini")
    opened = WHOLE["chat"](Ask(key=key))
    with pytest.raises(openai.PermissionDeniedError, match="is none of them"):
        WHOLE["responses"](Ask(key=key))

    mitmgate(gate, "keys", "revoke", "laptop")

    with pytest.raises(openai.AuthenticationError, match="'laptop' was revoked"):
        WHOLE["chat"](Ask(key=key))
    assert opened == Said("chat").text
    rows = gate.new_rows(3)
    assert [(row["tenant"], row["status_code"]) for row in rows] == [("globex", 200), ("globex", 403), (None, 401)]
    everything = b"".join(path.read_bytes() for path in gate.home.rglob("*") if path.is_file())
    assert key.encode() not in everything


def test_run_brings_a_program_to_the_gateway_with_the_callers_key(gate: Serving, beside: Provider) -> None:
    speak(beside, Said("chat"))
    program = "from support.apps import *; print(WHOLE['chat'](Ask()))"

    done = subprocess.run(
        serving.command("run", "--home", str(gate.home), "--", sys.executable, "-c", program),
        env=serving.clean_environment(MITMGATE_KEY=TEAM, OPENAI_API_KEY=REAL)
        | {"PYTHONPATH": f"{serving.ADDONS}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == Said("chat").text
    assert gate.new_row()["tenant"] == "acme"
