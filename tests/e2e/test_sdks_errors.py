"""When it goes wrong, each SDK raises its own exception, whoever wrote the error; and the row says who did, and why."""

import importlib
import json
from typing import Any

import pytest

from support.apps import PIECES, WHOLE, Ask
from support.provider import Heard, Provider, Wire
from support.serving import Serving
from support.speakers import PATHS, act, fail, hang, reset, speak
from support.voices import APIS, HOSTS, MODELS, Api, Said, error, stream, whole

IMPATIENT = {"cf-aig-request-timeout": "100"}
"""Milliseconds; the gateway's own clock."""

MODULES: dict[Api, str] = {
    "chat": "openai",
    "responses": "openai",
    "messages": "anthropic",
    "gemini": "google.genai.errors",
}
CLASSES: dict[str, dict[int, str]] = {
    "openai": {
        400: "BadRequestError",
        401: "AuthenticationError",
        429: "RateLimitError",
        502: "InternalServerError",
        503: "InternalServerError",
        504: "InternalServerError",
    },
    "anthropic": {
        400: "BadRequestError",
        401: "AuthenticationError",
        429: "RateLimitError",
        502: "InternalServerError",
        503: "ServiceUnavailableError",
        504: "DeadlineExceededError",
    },
    "google.genai.errors": {
        400: "ClientError",
        401: "ClientError",
        429: "ClientError",
        502: "ServerError",
        503: "ServerError",
        504: "ServerError",
    },
}
"""What each SDK raises for a status."""


def raised(api: Api, status: int) -> type[Exception]:
    found: type[Exception] = getattr(importlib.import_module(MODULES[api]), CLASSES[MODULES[api]][status])
    return found


def status_of(error: Exception) -> int:
    return int(getattr(error, "status_code", None) or error.code)  # type: ignore[attr-defined]


# -- errors of the gateway's own


@pytest.mark.parametrize("api", APIS)
def test_no_answer_is_a_502_in_the_sdks_own_words(app: Serving, beside: Provider, api: Api) -> None:
    reset(beside, api)

    with pytest.raises(raised(api, 502)) as caught:
        WHOLE[api](Ask())

    row = app.new_row()
    assert status_of(caught.value) == 502
    assert row["id"] in str(caught.value)
    assert (row["status_code"], row["terminal"], row["error_type"], row["source"]) == (
        502,
        "failed",
        "reset",
        "gateway",
    )


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_silence_is_a_504_in_the_sdks_own_words(app: Serving, beside: Provider, api: Api, streamed: bool) -> None:
    hang(beside, api)
    ask = Ask(headers=IMPATIENT)

    with pytest.raises(raised(api, 504)) as caught:
        list(PIECES[api](ask)) if streamed else WHOLE[api](ask)

    row = app.new_row()
    assert status_of(caught.value) == 504
    assert "no first byte within 0.1 s" in str(caught.value)
    assert (row["status_code"], row["terminal"], row["error_type"]) == (504, "timeout", "timeout")


@pytest.mark.parametrize("api", APIS)
def test_a_header_that_does_not_parse_is_a_400_that_names_it(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))

    with pytest.raises(raised(api, 400)) as caught:
        WHOLE[api](Ask(headers={"cf-aig-cache-ttl": "soon"}))

    row = app.new_row()
    assert "cf-aig-cache-ttl" in str(caught.value)
    assert "soon" in str(caught.value)
    assert (row["status_code"], row["terminal"], row["source"]) == (400, "refused", "gateway")
    assert beside.heard == []


# -- errors of the provider's


@pytest.mark.parametrize("status", [400, 401, 429, 503])
@pytest.mark.parametrize("api", APIS)
def test_a_providers_error_reaches_the_sdk_as_it_came(app: Serving, beside: Provider, api: Api, status: int) -> None:
    fail(beside, api, status, "as the provider words it")

    with pytest.raises(raised(api, status), match="as the provider words it"):
        WHOLE[api](Ask())

    row = app.new_row()
    assert (row["status_code"], row["terminal"], row["source"]) == (status, "complete", "provider")
    assert row["error_type"]


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_an_error_in_a_stream_reaches_the_sdk_and_the_row(app: Serving, beside: Provider, api: Api) -> None:
    break_in_a_stream(beside, api)

    with pytest.raises(importlib.import_module(MODULES[api]).APIError, match="too busy"):
        list(PIECES[api](Ask()))

    row = app.new_row()
    assert (row["status_code"], row["terminal"]) == (200, "error_event")
    assert row["error_type"].startswith("error_event:")


def break_in_a_stream(provider: Provider, api: Api) -> None:
    said = error(api, "too busy", 529)
    event = b"event: error\ndata: " + said + b"\n\n" if api == "messages" else b"data: " + said + b"\n\n"

    async def script(heard: Heard, wire: Wire) -> None:
        await wire.stream([*stream(Said(api), heard.body)[:3], event])

    act(provider, api, script)


# -- what SDKs do by themselves (clients.md 8)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_clients_8_each_retry_of_an_sdk_is_a_row(app: Serving, beside: Provider, api: Api) -> None:
    said = Said(api)

    async def script(_heard: Heard, wire: Wire) -> None:
        if len(beside.heard) < 3:
            await wire.answer(error(api, "busy", 503), "503 Busy", "application/json", "retry-after-ms: 1")
        else:
            await wire.answer(whole(said))

    act(beside, api, script)

    assert WHOLE[api](Ask(retries=2)) == said.text
    assert [(row["status_code"], row["attempts"]) for row in app.new_rows(3)] == [(503, 1), (503, 1), (200, 1)]


def test_clients_8_google_genai_does_not_retry(app: Serving, beside: Provider) -> None:
    fail(beside, "gemini", 503)

    with pytest.raises(raised("gemini", 503)):
        WHOLE["gemini"](Ask())

    assert app.new_row()["status_code"] == 503
    assert len(beside.heard) == 1


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_clients_8_nobody_retries_what_waiting_cannot_cure(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))

    with pytest.raises(raised(api, 400)):
        WHOLE[api](Ask(headers={"cf-aig-cache-ttl": "soon"}, retries=2))

    assert app.new_row()["status_code"] == 400


# -- what some clients do not show (clients.md 14)


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_clients_14_an_error_that_a_client_swallows_is_in_the_trace(app: Serving, beside: Provider, api: Api) -> None:
    break_in_a_stream(beside, api)

    seen = swallow(api)

    row = app.new_row()
    assert "too busy" in seen
    assert (row["status_code"], row["terminal"]) == (200, "error_event")


def swallow(api: Api) -> str:
    """Read a stream as ``streamText`` does: whatever comes, the app is told of no error."""
    from openai import DefaultHttpxClient  # an HTTP client that is set up by the environment

    body: dict[str, Any] = {"model": MODELS[api], "stream": True, "max_tokens": 9, "messages": []}
    with DefaultHttpxClient() as client:
        answer = client.post(f"https://{HOSTS[api]}{PATHS[api][0]}", content=json.dumps(body))
    return str(answer.text)
