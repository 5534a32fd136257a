"""The vendors' own SDKs under a guard: a refusal is their own exception, and a redacted prompt an ordinary call."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import serving
from support.apps import PIECES, WHOLE, Ask
from support.provider import Provider
from support.serving import Serving
from support.speakers import speak
from support.voices import APIS, Api, Said

RULES = """
guard:
  - {name: no-gateways, find: ["a gateway see"], then: block, match: {header.x-then: block}}
  - {name: no-names, find: ["a gateway"], then: redact, restore: true, match: {header.x-then: redact}}
  - {name: models, match: {header.x-then: models}, unless: {model: "other-*"}, then: block}
  - {name: tools, match: {header.x-then: tools}, tools: ["search"], then: block}
"""
ERRORS: dict[Api, tuple[str, str]] = {
    "chat": ("openai", "PermissionDeniedError"),
    "responses": ("openai", "PermissionDeniedError"),
    "messages": ("anthropic", "PermissionDeniedError"),
    "gemini": ("google.genai.errors", "ClientError"),
}
SAYS = {
    "block": "'no-gateways'",
    "models": "does not allow model",
    "tools": "does not allow the tool 'weather'",
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai


@pytest.fixture(scope="module")
def guarded_gateway(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("guard") / "home"))
    with serving.serve(home, serving.policy_text(provider_thread.port, ca_file, RULES)) as running:
        yield running


@pytest.fixture
def guarded(guarded_gateway: Serving, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return the gateway with guards, with this process set up to go through it."""
    serving.set_up(monkeypatch, guarded_gateway, "key-of-the-app")
    return guarded_gateway


def ask(then: str, **more: object) -> Ask:
    return Ask(headers={"x-then": then}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("then", SAYS)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("api", APIS)
def test_a_refusal_is_the_sdks_own_exception_and_it_does_not_try_again(
    guarded: Serving, beside: Provider, api: Api, streamed: bool, then: str
) -> None:
    speak(beside, Said(api))
    module, name = ERRORS[api]
    raised: type[Exception] = getattr(importlib.import_module(module), name)
    asked = ask(then, tool=True, retries=2)

    with pytest.raises(raised) as caught:
        list(PIECES[api](asked)) if streamed else WHOLE[api](asked)

    row = guarded.new_row()  # one: nothing was tried again
    said = str(caught.value)
    assert int(getattr(caught.value, "status_code", None) or caught.value.code) == 403  # type: ignore[attr-defined]
    assert SAYS[then] in said
    assert "policy.yaml:" in said
    assert row["id"] in said
    assert (row["status_code"], row["terminal"], row["source"], row["error_type"]) == (403, "refused", "guard", "guard")
    assert beside.heard == []


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("api", APIS)
def test_a_redacted_prompt_is_an_ordinary_call_and_the_answer_has_the_values_again(
    guarded: Serving, beside: Provider, api: Api, streamed: bool
) -> None:
    speak(beside, Said(api, "It is what [pattern_1] sees."))

    asked = ask("redact")
    answer = "".join(PIECES[api](asked)) if streamed else WHOLE[api](asked)

    assert answer == "It is what a gateway sees."
    [heard] = beside.heard
    assert b"What does [pattern_1] see?" in heard.body
    assert b"a gateway" not in heard.body
    assert guarded.new_row()["terminal"] == "complete"
