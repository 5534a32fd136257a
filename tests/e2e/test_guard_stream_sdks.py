"""Guarded answers as the vendors' own SDKs read them: redacted ones whole and streamed, blocked ones as exceptions."""

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import serving
from support.apps import PIECES, WHOLE, Ask
from support.provider import Provider
from support.serving import Serving
from support.speakers import fail, speak
from support.voices import APIS, Api, Said

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai

POLICY = r"""
guard:
  - {name: people, find: email, in: [request, response], then: redact, restore: true}
  - {name: topics, find: ["(?i)project kestrel"], in: response, then: block}
trace: {payloads: full}
"""

BLOCKED: dict[Api, tuple[str, str, str]] = {
    "chat": ("openai", "PermissionDeniedError", "APIError"),
    "responses": ("openai", "PermissionDeniedError", "APIError"),
    "messages": ("anthropic", "PermissionDeniedError", "APIStatusError"),
    "gemini": ("google.genai.errors", "ClientError", "APIError"),
}
"""What each SDK raises for a 403, and for a stream that ends in one."""


class Spelled(Said):
    """Said letter by letter."""

    @property
    def words(self) -> list[str]:
        return list(self.text)


@pytest.fixture(scope="module")
def guarded(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("guarded") / "home"))
    with serving.serve(home, serving.policy_text(provider_thread.port, ca_file, POLICY)) as running:
        yield running


@pytest.fixture
def app(guarded: Serving, beside: Provider, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return the gateway, with this process set up as ``mitmgate env`` says."""
    serving.set_up(monkeypatch, guarded, "sk-made-up-0123456789")
    return guarded


def raised(api: Api, streamed: bool) -> type[Exception]:
    module, plain, in_stream = BLOCKED[api]
    found: type[Exception] = getattr(importlib.import_module(module), in_stream if streamed else plain)
    return found


MAIL = "Write to jane.roe@corp.example, she knows."
REDACTED = "Write to [email], she knows."


@pytest.mark.parametrize("api", APIS)
def test_a_redacted_answer_parses(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api, MAIL))

    assert WHOLE[api](Ask()) == REDACTED
    assert app.new_row()["terminal"] == "complete"


@pytest.mark.parametrize("api", APIS)
def test_a_redacted_stream_parses_though_it_comes_letter_by_letter(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Spelled(api, MAIL))

    assert "".join(PIECES[api](Ask())) == REDACTED
    row = app.new_row()
    assert (row["terminal"], row["finish_reasons"] != "[]") == ("complete", True)
    assert not [kept for kept in app.query("select * from v_payloads") if "jane.roe" in str(kept)]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("api", APIS)
def test_redacted_arguments_of_a_tool_parse(app: Serving, beside: Provider, api: Api, streamed: bool) -> None:
    speak(beside, Said(api, '{"city": "jane.roe@corp.example"}', tool=True))
    ask = Ask(tool=True)

    arguments = "".join(PIECES[api](ask)) if streamed else WHOLE[api](ask)

    assert json.loads(arguments) == {"city": "[email]"}
    assert app.new_row()["tool_calls"] == 1


@pytest.mark.parametrize("api", APIS)
def test_a_blocked_answer_is_the_sdks_own_refusal(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api, "It is Project Kestrel."))

    with pytest.raises(raised(api, streamed=False), match="topics") as caught:
        WHOLE[api](Ask(retries=2))

    row = app.new_row()
    assert row["id"] in str(caught.value)
    assert (row["status_code"], row["terminal"], row["source"]) == (403, "refused", "guard")
    assert len(beside.heard) == 1  # the SDK does not hammer


@pytest.mark.parametrize("api", APIS)
def test_a_stream_that_is_blocked_midway_is_an_exception(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Spelled(api, "Long ago, when it began, it was called Project Kestrel, and nobody knew."))

    said: list[str] = []
    with pytest.raises(raised(api, streamed=True), match="topics") as caught:
        said.extend(PIECES[api](Ask()))

    row = app.new_row()
    assert row["id"] in str(caught.value)
    assert row["terminal"] == "refused"
    assert "estrel" not in "".join(said)


@pytest.mark.parametrize("api", APIS)
def test_a_providers_error_is_redacted_and_still_the_sdks_own(app: Serving, beside: Provider, api: Api) -> None:
    fail(beside, api, 400, "jane.roe@corp.example is not allowed")

    with pytest.raises(Exception, match=r"\[email\] is not allowed"):
        WHOLE[api](Ask())

    assert app.new_row()["status_code"] == 400
