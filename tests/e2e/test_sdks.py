"""The vendors' own SDKs through the gateway: they get what the provider said, and the row says what it cost.

They are set up as ``mitmgate env`` says, or by ``base_url``; nothing else about them is changed.
"""

import json
import threading
from collections.abc import Iterator

import pytest

from support.apps import PIECES, PIECES_ASYNC, WHOLE, WHOLE_ASYNC, Ask
from support.provider import Provider
from support.serving import Serving
from support.speakers import hesitate, speak
from support.voices import APIS, FINISHES, HOSTS, Api, Said

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)  # google-genai

TOOL = '{"city": "Cape Town"}'
USER_AGENTS: dict[Api, str] = {
    "chat": "OpenAI/Python",
    "responses": "OpenAI/Python",
    "messages": "Anthropic/Python",
    "gemini": "google-genai-sdk/",
}


def expected(said: Said, *, streamed: bool) -> dict[str, object]:
    """Return what the row of *said* must hold."""
    reasons = ["tool_calls" if said.api == "chat" else "tool_use" if said.api == "messages" else FINISHES[said.api]]
    return {
        "host": HOSTS[said.api],
        "status_code": 200,
        "terminal": "complete",
        "error_type": None,
        "source": "provider",
        "stream": int(streamed),
        "request_model": said.model,
        "response_model": said.model,
        "input_tokens": said.input_tokens,
        "cache_read_input_tokens": said.cached_tokens,
        "output_tokens": said.output_tokens,
        "usage_source": "reported",
        "finish_reasons": reasons if said.tool else [FINISHES[said.api]],
        "tool_calls": int(said.tool),
        "attempts": 1,
    }


def check(row: dict[str, object], said: Said, *, streamed: bool) -> None:
    wanted = expected(said, streamed=streamed)
    found = {name: row[name] for name in wanted} | {"finish_reasons": json.loads(str(row["finish_reasons"]))}
    assert found == wanted
    assert row["cost_nanousd"], f"{said.model} has a known price"
    assert USER_AGENTS[said.api] in str(row["user_agent"])
    if said.api != "messages":  # Anthropic does not count reasoning apart
        assert row["reasoning_output_tokens"] == said.reasoning_tokens


@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
@pytest.mark.parametrize("api", APIS)
def test_a_plain_call_gets_the_providers_answer_and_a_row(app: Serving, beside: Provider, api: Api, tool: bool) -> None:
    said = Said(api, TOOL, tool=True) if tool else Said(api)
    speak(beside, said)

    answer = WHOLE[api](Ask(tool=tool))

    assert answer == said.text
    check(app.new_row(), said, streamed=False)


@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
@pytest.mark.parametrize("api", APIS)
def test_a_stream_gets_the_providers_answer_and_a_row(app: Serving, beside: Provider, api: Api, tool: bool) -> None:
    said = Said(api, TOOL, tool=True) if tool else Said(api)
    speak(beside, said)

    answer = "".join(PIECES[api](Ask(tool=tool)))

    assert answer == said.text
    check(app.new_row(), said, streamed=True)


@pytest.mark.parametrize("api", APIS)
async def test_async_clients_get_the_same(app: Serving, beside: Provider, api: Api) -> None:
    said = Said(api)
    speak(beside, said)

    answer = await WHOLE_ASYNC[api](Ask())
    streamed = [piece async for piece in PIECES_ASYNC[api](Ask())]

    assert (answer, "".join(streamed)) == (said.text, said.text)
    plain_row, stream_row = app.new_rows(2)
    check(plain_row, said, streamed=False)
    check(stream_row, said, streamed=True)


# -- a stream arrives as it is spoken


@pytest.mark.parametrize("api", APIS)
def test_the_first_word_is_read_before_the_last_one_is_sent(app: Serving, beside: Provider, api: Api) -> None:
    said, go_on = Said(api), threading.Event()
    in_time = hesitate(beside, said, go_on)

    pieces = PIECES[api](Ask())
    first = first_word(pieces)
    go_on.set()
    rest = "".join(pieces)

    assert in_time == [True]
    assert first + rest == said.text
    check(app.new_row(), said, streamed=True)


def first_word(pieces: Iterator[str]) -> str:
    return next(piece for piece in pieces if piece)


@pytest.mark.parametrize("api", APIS)
async def test_async_clients_read_the_first_word_before_the_last_one_is_sent(
    app: Serving, beside: Provider, api: Api
) -> None:
    said, go_on = Said(api), threading.Event()
    in_time = hesitate(beside, said, go_on)

    words = []
    async for piece in PIECES_ASYNC[api](Ask()):
        words.append(piece)
        if piece:
            go_on.set()

    assert in_time == [True]
    assert "".join(words) == said.text
    check(app.new_row(), said, streamed=True)


@pytest.mark.parametrize("api", APIS)
def test_a_client_that_closes_a_stream_is_an_abort_and_the_provider_is_told(
    app: Serving, beside: Provider, api: Api
) -> None:
    said, go_on = Said(api), threading.Event()
    hesitate(beside, said, go_on)

    pieces = PIECES[api](Ask())
    first_word(pieces)
    pieces.close()  # type: ignore[attr-defined]  # a generator: its client is closed

    row = app.new_row()
    go_on.set()
    assert (row["terminal"], row["status_code"], row["request_model"]) == ("client_abort", 200, said.model)
    assert beside.left.is_set()


# -- the other door


BASE_URLS: dict[Api, str] = {
    "chat": "/openai",
    "responses": "/openai",
    "messages": "/anthropic",
    "gemini": "/google-ai-studio",
}


@pytest.mark.parametrize("api", APIS)
def test_an_app_that_swaps_its_base_url_gets_the_same(
    gate: Serving, beside: Provider, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "SSL_CERT_FILE", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    said = Said(api)
    speak(beside, said)
    ask = Ask(base_url=gate.base_url + BASE_URLS[api], key="sk-test")

    answer = WHOLE[api](ask)
    streamed = "".join(PIECES[api](ask))

    assert (answer, streamed) == (said.text, said.text)
    plain_row, stream_row = gate.new_rows(2)
    check(plain_row, said, streamed=False)
    check(stream_row, said, streamed=True)
    assert plain_row["door"] == "base-url"
    assert [heard.sni for heard in beside.heard] == [HOSTS[api]] * 2


# -- tags


@pytest.mark.parametrize("api", APIS)
def test_tags_name_tenant_and_user(app: Serving, beside: Provider, api: Api) -> None:
    speak(beside, Said(api))
    tags = {"tenantId": "acme", "userId": "u-7", "feature": "faq", "beta": True}

    WHOLE[api](Ask(headers={"cf-aig-metadata": json.dumps(tags), "cf-aig-session-id": "s-1", "cf-aig-event-id": "e-1"}))

    row = app.new_row()
    assert (row["tenant"], row["user"], row["session_id"], row["event_id"]) == ("acme", "u-7", "s-1", "e-1")
    assert json.loads(row["metadata"]) == tags
    assert not [name for name, _ in beside.heard[0].fields if name.lower().startswith(b"cf-aig-")]
