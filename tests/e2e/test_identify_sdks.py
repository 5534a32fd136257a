"""A request without a tag that the policy requires is the vendors' own SDKs' bad request, and is sent once."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import serving
from support.apps import WHOLE, Ask
from support.provider import Provider
from support.serving import Serving
from support.speakers import speak
from support.voices import APIS, Api, Said

RULES = "identify: {tenant: [header.x-tenant-id], require: [tenant]}\n"
ERRORS: dict[Api, tuple[str, str]] = {
    "chat": ("openai", "BadRequestError"),
    "responses": ("openai", "BadRequestError"),
    "messages": ("anthropic", "BadRequestError"),
    "gemini": ("google.genai.errors", "ClientError"),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai


@pytest.fixture(scope="module")
def strict_gateway(
    provider_thread: Provider, ca_file: Path, made_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    home = Path(shutil.copytree(made_home, tmp_path_factory.mktemp("strict") / "home"))
    with serving.serve(home, serving.policy_text(provider_thread.port, ca_file, RULES)) as running:
        yield running


@pytest.fixture
def strict(strict_gateway: Serving, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Return that gateway, with this process set up to go through it."""
    serving.set_up(monkeypatch, strict_gateway, "key-of-the-app")
    return strict_gateway


@pytest.mark.parametrize("api", APIS)
def test_a_missing_tag_is_the_sdks_own_bad_request_with_rule_line_and_row(
    strict: Serving, beside: Provider, api: Api
) -> None:
    speak(beside, Said(api))
    module, name = ERRORS[api]
    raised: type[Exception] = getattr(importlib.import_module(module), name)

    with pytest.raises(raised) as caught:
        WHOLE[api](Ask(retries=2))

    row = strict.new_row()  # one: nothing was tried again
    said = str(caught.value)
    assert int(getattr(caught.value, "status_code", None) or caught.value.code) == 400  # type: ignore[attr-defined]
    assert "without tenant; it is read from header.x-tenant-id (rule identify.require, " in said
    assert "policy.yaml:" in said
    assert row["id"] in said
    assert (row["status_code"], row["terminal"], row["source"]) == (400, "refused", "gateway")
    assert beside.heard == []


@pytest.mark.parametrize("api", APIS)
def test_with_the_tag_it_is_an_ordinary_call(strict: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api, "Hello."))

    assert WHOLE[api](Ask(headers={"x-tenant-id": "acme"})) == "Hello."
    assert strict.new_row()["tenant"] == "acme"
