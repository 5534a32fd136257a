"""curl and Node through the gateway, as their users run them, and what was seen with real clients (2026-11).

The numbers in the names are those of that list: 4 and 5 which headers and paths SDKs use, 9 which CA variable serves
whom, 10 which codings they ask for. Points 8 and 14 are in ``test_sdks_errors``.
"""

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest

from support.apps import PIECES, WHOLE, Ask
from support.client import Http1
from support.provider import Heard, Provider, Wire
from support.serving import Serving, clean_environment, command
from support.speakers import act, hesitate, speak
from support.voices import APIS, Api, Said, whole

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node here")
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

CHAT_URL = "https://api.openai.com/v1/chat/completions"
BODY = json.dumps({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hi"}]})
STREAMED = json.dumps({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hi"}], "stream": True})


def curl(*arguments: str, body: str = BODY) -> list[str]:
    head = ["-H", "content-type: application/json", "-H", "authorization: Bearer sk-curl-0123456789"]
    return ["curl", "-sS", *head, "--data-binary", body, *arguments]


def ran(program: list[str], environment: dict[str, str]) -> str:
    """Run *program* with nothing but *environment* beside the usual; return what it printed."""
    done = subprocess.run(program, env=clean_environment(**environment), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- curl


@needs_curl
def test_a_shell_that_takes_the_lines_of_env_goes_through_the_gateway(gate: Serving, beside: Provider) -> None:
    speak(beside, Said("chat"))
    env = " ".join(command("env", "--home", str(gate.home)))
    shell = ["sh", "-c", f'eval "$({env})" && exec "$@"', "sh", *curl(CHAT_URL)]

    said = json.loads(ran(shell, {}))

    row = gate.new_row()
    assert said["choices"][0]["message"]["content"] == Said("chat").text
    assert (row["status_code"], row["terminal"], row["input_tokens"]) == (200, "complete", 120)
    assert row["user_agent"].startswith("curl/")


@needs_curl
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_shows_a_stream_as_it_comes(gate: Serving, beside: Provider, version: str) -> None:
    go_on = threading.Event()
    in_time = hesitate(beside, Said("chat"), go_on)
    asked = curl("-N", version, CHAT_URL, body=STREAMED)
    process = subprocess.Popen(
        asked, env=clean_environment(**gate.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None

    first = process.stdout.readline()
    go_on.set()
    rest, complaint = process.communicate(timeout=20)

    assert complaint == ""
    assert in_time == [True]
    assert first.startswith("data: ")
    assert rest.endswith("data: [DONE]\n\n")
    row = gate.new_row()
    assert (row["terminal"], row["streamed"], row["output_tokens"], row["usage_source"]) == (
        "complete",
        1,
        50,
        "reported",
    )


@needs_curl
def test_curl_by_the_base_url_door_needs_no_variable(gate: Serving, beside: Provider) -> None:
    speak(beside, Said("chat"))

    said = json.loads(ran(curl(f"{gate.base_url}/openai/chat/completions"), {}))

    assert said["usage"]["total_tokens"] == 170
    assert gate.new_row()["door"] == "base-url"


@needs_curl
def test_a_host_that_is_no_provider_keeps_its_own_certificate(gate: Serving, ca_file: Path, beside: Provider) -> None:
    beside.says("/", b"hello")
    direct = ["curl", "-sS", "--cacert", str(ca_file), f"https://localhost:{beside.port}/"]
    through = {name: gate.environment[name] for name in ("HTTPS_PROXY", "https_proxy")}

    assert ran(direct, through) == "hello"


# -- Node


NODE = """
const http = require("http"), https = require("https"), tls = require("tls"), zlib = require("zlib");
const proxy = new URL(process.env.HTTPS_PROXY), body = process.argv[1], coding = process.argv[2];
const connect = http.request({host: proxy.hostname, port: proxy.port, method: "CONNECT", path: "api.openai.com:443"});
connect.on("connect", (_answer, socket) => {
  const secure = tls.connect({socket, servername: "api.openai.com"}, () => {
    const headers = {"content-type": "application/json", "accept-encoding": coding, "user-agent": "node"};
    const asked = https.request("https://api.openai.com/v1/chat/completions",
      {method: "POST", headers, createConnection: () => secure}, (answer) => {
        const plain = answer.headers["content-encoding"] === "br" ? answer.pipe(zlib.createBrotliDecompress()) : answer;
        plain.on("data", (chunk) => process.stdout.write(chunk));
        plain.on("end", () => secure.destroy());
      });
    asked.end(body);
  });
});
connect.end();
"""
"""Node 20 reads no proxy variable by itself: this is what proxy agents do. The CA comes from NODE_EXTRA_CA_CERTS."""


@needs_node
def test_clients_9_node_needs_its_own_variable_and_no_other(gate: Serving, beside: Provider) -> None:
    speak(beside, Said("chat"))
    alone = {name: gate.environment[name] for name in ("HTTPS_PROXY", "NODE_EXTRA_CA_CERTS")}

    said = json.loads(ran(["node", "-e", NODE, BODY, "identity"], alone))

    assert said["usage"]["total_tokens"] == 170
    assert gate.new_row()["user_agent"] == "node"


@needs_node
def test_clients_10_node_gets_brotli_and_the_row_its_tokens(gate: Serving, beside: Provider) -> None:
    answer_coded(beside, "br")

    said = json.loads(ran(["node", "-e", NODE, BODY, "br"], gate.environment))

    assert said["usage"]["total_tokens"] == 170
    assert gate.new_row()["input_tokens"] == 120


# -- 4 and 5: what SDKs of today send


def test_clients_4_anthropics_key_comes_as_bearer_and_is_nowhere_in_the_row(app: Serving, beside: Provider) -> None:
    speak(beside, Said("messages"))

    WHOLE["messages"](Ask())
    WHOLE["messages"](Ask(key="sk-ant-api03-another0123456789abcdefghij"))
    WHOLE["messages"](Ask())

    first, other, again = app.new_rows(3)
    sent = [heard.header("authorization") or heard.header("x-api-key") or "" for heard in beside.heard]
    assert sent[0].endswith("sk-ant-api03-e2e0AbCdEfGhIjKlMnOpQrStUvWxYz012345")
    assert beside.heard[0].header("anthropic-version")
    assert first["auth"] == again["auth"] != other["auth"]
    assert "sk-ant" not in json.dumps(first)


@needs_curl
def test_clients_4_claude_codes_older_headers_work_as_well(gate: Serving, beside: Provider) -> None:
    said = Said("messages")
    speak(beside, said)
    old = ["-H", "x-api-key: sk-ant-old-0123456789", "-H", "anthropic-version: 2023-06-01"]
    body = json.dumps({"model": said.model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]})
    asked = ["curl", "-sS", *old, "--data-binary", body, "https://api.anthropic.com/v1/messages?beta=true"]

    ran(asked, gate.environment)

    row = gate.new_row()
    assert (row["input_tokens"], row["output_tokens"]) == (said.input_tokens, said.output_tokens)
    assert row["auth"]


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_clients_5_gemini_is_read_under_both_versions(app: Serving, beside: Provider, version: str) -> None:
    from google import genai
    from google.genai import types

    said = Said("gemini")
    speak(beside, said)
    with genai.Client(http_options=types.HttpOptions(api_version=version)) as client:
        answer = client.models.generate_content(model=said.model, contents="hi")

    row = app.new_row()
    assert answer.text == said.text
    assert row["path"].startswith(f"/{version}/models/")
    assert (row["request_model"], row["input_tokens"], row["output_tokens"]) == (said.model, 120, 50)


# -- 9: one CA variable alone


@pytest.mark.parametrize("api", APIS)
def test_clients_9_ssl_cert_file_alone_serves_python(
    gate: Serving, beside: Provider, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in gate.environment:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", gate.environment["HTTPS_PROXY"])
    monkeypatch.setenv("SSL_CERT_FILE", gate.environment["SSL_CERT_FILE"])
    speak(beside, Said(api))

    assert "".join(PIECES[api](Ask(key="sk-test"))) == Said(api).text
    assert gate.new_row()["terminal"] == "complete"


@needs_curl
@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_clients_9_either_variable_alone_serves_curl(gate: Serving, beside: Provider, name: str) -> None:
    speak(beside, Said("chat"))

    ran(curl(CHAT_URL), {each: gate.environment[each] for each in ("HTTPS_PROXY", name)})

    assert gate.new_row()["status_code"] == 200


@needs_curl
def test_clients_9_without_the_ca_curl_refuses_the_gateway(gate: Serving, beside: Provider) -> None:
    environment = clean_environment(HTTPS_PROXY=gate.environment["HTTPS_PROXY"])

    done = subprocess.run(curl(CHAT_URL), env=environment, capture_output=True, text=True, timeout=20)

    assert done.returncode == 60  # curl's word for a certificate that nobody vouches for
    assert beside.heard == []


# -- 10: codings


def deflated(data: bytes) -> bytes:
    return zlib.compress(data)


def zstandard(data: bytes) -> bytes:
    from backports import zstd

    return zstd.compress(data)


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": deflated,
    "br": brotli.compress,
    "zstd": zstandard,
}


def answer_coded(provider: Provider, coding: str) -> bytes:
    """Let *provider* answer in a content coding; return its bytes."""
    body = CODINGS[coding](whole(Said("chat")))

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.answer(body, "200 OK", "application/json", f"content-encoding: {coding}")

    act(provider, "chat", script)
    return body


@pytest.mark.parametrize("coding", CODINGS)
async def test_clients_10_each_coding_passes_untouched_and_is_read(
    gate: Serving, beside: Provider, coding: str
) -> None:
    sent = answer_coded(beside, coding)
    trust = ssl.create_default_context(cafile=str(gate.running.ca_bundle))
    client = await Http1.tunnel(gate.port, "api.openai.com", trust)

    answer = await client.ask(
        "POST", "/v1/chat/completions", "api.openai.com", BODY.encode(), f"Accept-Encoding: {coding}"
    )
    await client.close()

    row: dict[str, Any] = await asyncio.to_thread(gate.new_row)
    assert answer.body == sent
    assert answer.header("content-encoding") == coding
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (120, 50, "reported")
