"""Fixtures: one gateway for the whole session, started as anyone would, and an app's environment pointing to it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from support import serving
from support.provider import Provider
from support.serving import Serving


@pytest.fixture(scope="session")
def provider_thread(authority: trustme.CA) -> Iterator[Provider]:
    with serving.provider_beside(authority) as told:
        yield told


@pytest.fixture
def beside(provider_thread: Provider) -> Provider:
    """Return the provider, with nothing scripted and nothing heard yet."""
    provider_thread.scripts.clear()
    provider_thread.heard.clear()
    provider_thread.left.clear()
    return provider_thread


@pytest.fixture
def served_home(made_home: Path, tmp_path: Path) -> Path:
    """Return a fresh home whose CA is made already."""
    return Path(shutil.copytree(made_home, tmp_path / "home"))


@pytest.fixture
def policy(beside: Provider, ca_file: Path) -> str:
    return serving.policy_text(beside.port, ca_file)


@pytest.fixture(scope="session")
def shared_gateway(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("serve") / "home"))
    fast = "timeout: {first_byte: 20 s, idle: 20 s}\n"
    with serving.serve(home, serving.policy_text(provider_thread.port, ca_file, fast)) as running:
        yield running


@pytest.fixture
def gate(shared_gateway: Serving, beside: Provider) -> Serving:
    """Return the session's gateway; rows of earlier tests are done with."""
    shared_gateway.read |= {row["id"] for row in _all(shared_gateway)}
    return shared_gateway


def _all(gateway: Serving) -> list[dict[str, str]]:
    if not gateway.running.db.exists() or not gateway.query("select 1 from sqlite_master where name = 'exchanges'"):
        return []
    return gateway.query("select id from exchanges")


@pytest.fixture
def app(gate: Serving, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return the gateway, with this process set up as ``mitmgate env`` says: what is called here goes through it."""
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["openai"])
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEYS["anthropic"])
    monkeypatch.setenv("GEMINI_API_KEY", KEYS["gemini"])
    return gate


KEYS = {
    "openai": "sk-proj-e2e0AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "anthropic": "sk-ant-api03-e2e0AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "gemini": "AIzaSyE2e0AbCdEfGhIjKlMnOpQrStUvWxYz01",
}
"""Made up; they look like real ones, so that whatever looks for secrets must find them."""
