"""Over real sockets: what a rule hides or stops in a request reaches neither provider nor row, log or screen."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trustme

from support import gateway as gateways
from support.client import Answer
from support.gateway import Gateway, OpenGateway
from support.provider import HOSTS, Provider
from support.speech import ANSWER, CHAT, CLAUDE_ANSWER
from support.web import web_gateway

SECRET = "sk-ant-api03-Ab12Cd34Ef56Gh78"
CARD = "4111 1111 1111 1111"
MAIL = "john.doe@example.com"

RULES = """
guard:
  - {name: no-secrets, find: [secret, credit_card], then: block}
  - {name: pii, find: [email, phone], then: redact, unless: {header.x-restore: present}}
  - {name: hidden, find: [email, phone], then: redact, restore: true, match: {header.x-restore: present}}
  - {name: topics, find: ["(?i)project kestrel"], then: flag}
  - {name: trial, find: [ip_address], then: block, shadow: true}
trace: {payloads: full}
"""


def ask(text: Any, **more: Any) -> bytes:
    return json.dumps({"model": "gpt-5", "messages": [{"role": "user", "content": text}], **more}).encode()


async def post(gateway: Gateway, body: bytes, *fields: str, path: str = CHAT, host: str = "api.openai.com") -> Answer:
    client = await gateway.http1(host)
    return await client.post(path, body, "content-type: application/json", *fields)


async def kept(gateway: Gateway) -> str:
    """Return everything that the database holds of the calls, as text."""
    rows = await gateway.rows(1)
    events = await gateway.rows(1, "select * from policy_events")
    payloads = await gateway.rows(1, "select kind, text from v_payloads")
    return json.dumps([rows, events, payloads], ensure_ascii=False, default=str)


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    rows = await gateway.rows(
        1, "select rule, action, shadow, detail from policy_events where room = 'guard' order by rowid"
    )
    return [tuple(row.values()) for row in rows]


# -- block ------------------------------------------------------------------------------------------------------------


async def test_a_blocked_request_never_leaves_and_is_shown_nowhere(
    open_gateway: OpenGateway, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_gateway(RULES) as gateway:
        answer = await post(gateway, ask(f"My key is {SECRET}, and my card {CARD}."))

        assert answer.status == 403
        error = json.loads(answer.body)["error"]
        assert error["type"] == "permission_error"
        assert "guard rule 'no-secrets' (policy.yaml:" in error["message"]
        assert "it holds a secret and a credit card number" in error["message"]
        assert answer.header("cf-aig-log-id") in error["message"]
        assert (answer.header("cf-aig-source"), answer.header("x-should-retry")) == ("guard", "false")
        assert json.loads(answer.header("cf-aig-dlp") or "") == {
            "findings": [
                {
                    "profile": {"context": {}, "entry_ids": ["secret", "credit_card"], "profile_id": "no-secrets"},
                    "policy_ids": ["no-secrets"],
                    "check": "REQUEST",
                }
            ],
            "action": "BLOCK",
        }
        assert provider.heard == []
        row = await gateway.row()
        assert (row["status_code"], row["terminal"], row["source"], row["error_type"]) == (
            403,
            "refused",
            "guard",
            "guard",
        )
        assert await events(gateway) == [("no-secrets", "block", 0, "request: 1 secret, 1 credit_card")]
        everything = await kept(gateway) + answer.body.decode() + caplog.text
        assert SECRET not in everything
        assert CARD not in everything
        assert "My key is [secret], and my card [credit_card]." in everything


# -- redact -----------------------------------------------------------------------------------------------------------


async def test_a_redacted_request_differs_from_the_clients_in_nothing_but_what_was_found(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    sent = (
        b'{ "model":"gpt-5", "temperature": 0.70, "messages":[{"role":"user","content":"Write to %s, \\u00e9\\/\\n"}]}'
    )
    async with open_gateway(RULES) as gateway:
        answer = await post(gateway, sent % MAIL.encode(), "content-md5: x")

        assert answer.status == 200
        [heard] = provider.heard
        assert heard.header("content-md5") is None
        assert heard.body == sent % b"[email]"
        assert heard.header("content-length") == str(len(heard.body))
        assert answer.header("cf-aig-dlp") is None
        assert await events(gateway) == [("pii", "redact", 0, "request: 1 email")]
        row = await gateway.row()
        assert row["sent_sha256"] != row["request_sha256"]
        assert MAIL not in await kept(gateway)


@pytest.mark.parametrize(
    "body",
    [
        ask(MAIL),
        ask(MAIL).replace(b"@", b"\\u0040"),
        ask([{"type": "text", "text": MAIL}]),
        ask("hi", user=MAIL),
        ask("hi", metadata={"owner": MAIL}),
        ask("hi", metadata={MAIL: "owner"}),
        ask("hi", tools=[{"type": "function", "function": {"name": "f", "description": f"Writes to {MAIL}"}}]),
        json.dumps(
            {
                "model": "gpt-5",
                "messages": [
                    {"role": "system", "content": f"You answer for {MAIL}."},
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"arguments": json.dumps({"to": MAIL})}}],
                    },
                    {
                        "role": "tool",
                        "tool_call_id": "c",
                        "content": json.dumps({"from": MAIL}).replace("@", "\\u0040"),
                    },
                ],
            }
        ).encode(),
    ],
    ids=["text", "escaped", "part", "user", "metadata", "name", "tool", "tool-calls"],
)
async def test_what_is_redacted_is_found_wherever_text_stands(
    open_gateway: OpenGateway, provider: Provider, body: bytes
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(RULES) as gateway:
        answer = await post(gateway, body)

        assert answer.status == 200
        heard = provider.heard[0].body
        assert json.loads(heard)
        assert b"[email]" in heard
        assert b"john.doe" not in heard
        assert "john.doe" not in await kept(gateway)


async def test_a_compressed_request_goes_on_plain_once_it_was_changed(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(RULES) as gateway:
        await post(gateway, gzip.compress(ask(MAIL)), "content-encoding: gzip")

        [heard] = provider.heard
        assert heard.header("content-encoding") is None
        assert heard.body == ask("[email]")
        assert MAIL not in await kept(gateway)


async def test_a_compressed_request_in_which_nothing_is_found_goes_on_as_it_came(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    body = gzip.compress(ask("Nothing here."))
    async with open_gateway(RULES) as gateway:
        await post(gateway, body, "content-encoding: gzip")

        assert provider.heard[0].body == body


async def test_every_place_that_is_tried_gets_the_redacted_request(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, b"{}", "503 Busy")
    provider.says("/other/chat/completions", ANSWER)
    targets = """
route: [{name: two, try: [first, second]}]
targets:
  first: {provider: openai, base_url: "https://api.openai.com/v1"}
  second: {provider: openai, base_url: "https://api.groq.com/other"}
"""
    async with open_gateway(RULES + targets) as gateway:
        answer = await post(gateway, ask(MAIL), "authorization: Bearer k")

        assert [heard.body for heard in provider.heard] == [ask("[email]")] * len(provider.heard)
        assert len(provider.heard) == 2, answer


async def test_metadata_and_user_are_masked_in_the_row(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(RULES) as gateway:
        await post(gateway, ask("hi"), f'cf-aig-metadata: {{"userId": "{MAIL}", "n": 1}}')

        row = await gateway.row()
        assert (row["user"], json.loads(row["metadata"])) == ("[email]", {"userId": "[email]", "n": 1})
        assert MAIL not in await kept(gateway)


async def test_a_value_that_is_restored_is_in_the_answer_and_not_in_the_provider(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    said = json.loads(ANSWER)
    said["choices"][0]["message"]["content"] = "I wrote to [email_2], then to [email_1]."
    provider.says(CHAT, json.dumps(said).encode())
    text = f"Write to {MAIL}, to jane@example.org, and to {MAIL} again; [email_3] is a word."
    async with open_gateway(RULES) as gateway:
        answer = await post(gateway, ask(text), "x-restore: 1")

        assert provider.heard[0].body == ask(
            "Write to [email_1], to [email_2], and to [email_1] again; [email_3] is a word."
        )
        content = json.loads(answer.body)["choices"][0]["message"]["content"]
        assert content == f"I wrote to jane@example.org, then to {MAIL}."
        assert MAIL not in await kept(gateway)


# -- flag, shadow -----------------------------------------------------------------------------------------------------


async def test_a_flagged_request_goes_on_and_its_answer_says_so(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    body = ask("Tell me of Project Kestrel and 8.8.8.8")
    async with open_gateway(RULES) as gateway:
        answer = await post(gateway, body)

        assert provider.heard[0].body == body
        told = json.loads(answer.header("cf-aig-dlp") or "")
        assert told["action"] == "FLAG"
        assert [one["profile"]["entry_ids"] for one in told["findings"]] == [["pattern"]]
        assert await events(gateway) == [
            ("topics", "flag", 0, "request: 1 pattern"),
            ("trial", "block", 1, "request: 1 ip_address"),
        ]


# -- lists of what is allowed -----------------------------------------------------------------------------------------

LISTS = """
guard:
  - {name: models, unless: {model: ["gpt-5*", "claude-*"]}, then: block}
  - {name: tools, tools: ["get_*", search], then: block}
"""


async def test_a_model_that_is_not_on_the_list_is_refused_by_name(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(LISTS) as gateway:
        refused = await post(gateway, ask("hi").replace(b"gpt-5", b"gpt-4o"))
        passed = await post(gateway, ask("hi"))

        assert (refused.status, passed.status) == (403, 200)
        assert "does not allow model 'gpt-4o'" in json.loads(refused.body)["error"]["message"]
        assert json.loads(refused.header("cf-aig-dlp") or "")["findings"][0]["profile"]["entry_ids"] == ["model"]


async def test_a_list_of_models_says_nothing_of_calls_that_have_none(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says("/v1/models", b'{"data":[]}')
    async with open_gateway(LISTS) as gateway:
        client = await gateway.http1()

        assert (await client.post("/v1/models", method="GET")).status == 200


async def test_a_tool_that_is_not_on_the_list_is_refused_by_name(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(LISTS) as gateway:
        answer = await post(
            gateway,
            ask("hi", tools=[{"type": "function", "function": {"name": name}} for name in ("Get_weather", "rm")]),
        )

        assert answer.status == 403
        assert "the tool 'rm'" in json.loads(answer.body)["error"]["message"]
        assert provider.heard == []


# -- what cannot be read, or not be changed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields", "why"),
    [
        (b'{"model":"gpt-5", oops', (), "is not JSON"),
        (b"xyz", ("content-encoding: rot13",), "'rot13' is not known"),
        (b"xyz", ("content-encoding: gzip",), "could not be inflated"),
        (ask(MAIL), ("authorization: AWS4-HMAC-SHA256 Credential=x",), "it is signed"),
        (json.dumps({"messages": [{"thinking": MAIL, "signature": "c2ln"}]}).encode(), (), "it is signed"),
    ],
)
async def test_a_body_that_a_rule_cannot_read_or_must_not_change_is_refused(
    open_gateway: OpenGateway, provider: Provider, body: bytes, fields: tuple[str, ...], why: str
) -> None:
    async with open_gateway(RULES) as gateway:
        answer = await post(gateway, body, *fields)

        assert answer.status == 403
        message = json.loads(answer.body)["error"]["message"]
        assert why in message
        assert "guard rule '" in message
        assert provider.heard == []


async def test_a_file_that_is_sent_up_is_looked_at_as_well(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says("/v1/files", b"{}")
    line = json.dumps({"custom_id": "1", "body": {"messages": [{"role": "user", "content": f"key {SECRET}"}]}})
    form = (
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n{line}\n{line}\n\r\n--b--\r\n"
    )
    async with open_gateway(RULES) as gateway:
        client = await gateway.http1()
        answer = await client.post("/v1/files", form.encode(), "content-type: multipart/form-data; boundary=b")

        assert (answer.status, answer.header("cf-aig-source")) == (403, "guard")
        assert provider.heard == []


async def test_a_file_is_looked_at_to_its_end_though_nobody_else_would_wait_for_it(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with open_gateway(RULES) as gateway:
        client = await gateway.http1()
        text = "word " * 400_000 + SECRET
        answer = await client.post("/v1/files", text.encode(), "content-type: text/plain")

        assert (answer.status, answer.header("cf-aig-source")) == (403, "guard")
        assert provider.heard == []


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a_body_that_is_too_large_to_be_read_is_refused_before_it_is_here(
    open_gateway: OpenGateway, provider: Provider, path: str
) -> None:
    async with open_gateway(RULES) as gateway:
        client = await gateway.http1()
        await client.send("POST", path, client.host, b"", "content-type: text/plain", "content-length: 99000000")
        client.writer.write(SECRET.encode())
        answer = await client.receive("POST")

        assert answer.status == 403
        assert "larger than 32 MiB" in json.loads(answer.body)["error"]["message"]
        assert provider.heard == []


async def test_a_picture_is_sent_up_unread_however_large(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says("/v1/files", b"{}")
    async with open_gateway(RULES) as gateway:
        client = await gateway.http1()
        answer = await client.post("/v1/files", b"\x89PNG" * 500_000, "content-type: image/png")

        assert (answer.status, provider.heard[0].body) == (200, b"\x89PNG" * 500_000)


# -- several places, several callers ----------------------------------------------------------------------------------


def element(provider: str, model: str, text: str) -> dict[str, Any]:
    query = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    path = {"openai": "chat/completions", "anthropic": "v1/messages"}[provider]
    return {"provider": provider, "endpoint": path, "headers": {"authorization": "Bearer k-of-it"}, "query": query}


async def test_each_element_of_a_universal_request_is_redacted(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, b"{}", "503 Busy")
    provider.says("/v1/messages", CLAUDE_ANSWER)
    body = [element("openai", "gpt-5", f"a {MAIL}"), element("anthropic", "claude-haiku-4-5", f"b {MAIL}")]
    async with open_gateway(RULES) as gateway:
        client = await gateway.plain()
        answer = await client.post("/", json.dumps(body).encode())

        assert answer.status == 200
        said = [json.loads(heard.body)["messages"][0]["content"] for heard in provider.heard]
        assert said == ["a [email]", "b [email]"]
        assert MAIL not in await kept(gateway)


async def test_one_element_that_is_not_allowed_stops_a_universal_request(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    body = [element("openai", "gpt-5", "hi"), element("anthropic", "titan", "hi")]
    async with open_gateway(LISTS) as gateway:
        client = await gateway.plain()
        answer = await client.post("/", json.dumps(body).encode())

        assert answer.status == 403
        assert b"does not allow model 'titan'" in answer.body
        assert provider.heard == []


async def test_callers_whose_requests_are_the_same_once_redacted_share_an_answer_and_each_gets_its_own_values(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    said = json.loads(ANSWER)
    said["choices"][0]["message"]["content"] = "Dear [email_1]"
    provider.says(CHAT, json.dumps(said).encode())
    async with open_gateway(RULES) as gateway:
        answers = [
            await post(gateway, ask(f"Greet {who}"), "x-restore: 1", "cf-aig-cache-ttl: 60")
            for who in (MAIL, "jane@example.org")
        ]

        said = [json.loads(answer.body)["choices"][0]["message"]["content"] for answer in answers]
        assert [answer.header("cf-aig-cache-status") for answer in answers] == ["MISS", "HIT"]
        assert said == [f"Dear {MAIL}", "Dear jane@example.org"]
        assert MAIL not in await kept(gateway)


async def test_a_hit_is_refused_to_whoever_asks_with_a_secret(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    keep = "cf-aig-cache-ttl: 60"
    async with open_gateway(RULES.replace("[secret", "[ip_address, secret")) as gateway:
        await post(gateway, ask("hi"), keep)

        assert (await post(gateway, ask("hi"), keep)).header("cf-aig-cache-status") == "HIT"
        assert (await post(gateway, ask("hi", user="8.8.8.8"), keep)).status == 403


# -- screens, and every byte of a secret ------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["block", "redact"])
async def test_mitmweb_shows_a_request_without_what_was_found(
    authority: trustme.CA, ca_file: Path, provider: Provider, home_path: Path, then: str
) -> None:
    provider.says(CHAT, ANSWER)
    rules = f"guard: [{{name: r, find: [secret], then: {then}}}]"
    policy = gateways.policy_for(provider.port, ca_file, HOSTS[:8], rules)
    async with web_gateway(home_path, policy, authority) as inside:
        await post(inside.gateway, gzip.compress(ask(f"key {SECRET}")), "content-encoding: gzip")
        await inside.gateway.rows(1)

        shown = await inside.page.content("request", "Raw")
        assert SECRET not in json.dumps(shown)
        assert "key [secret]" in shown["text"]


async def test_a_secret_is_stopped_at_whichever_byte_it_is_cut_or_written_otherwise(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async with open_gateway(RULES) as gateway:
        client = await gateway.http1()
        for at in range(len(SECRET)):
            spelled = f"{SECRET[:at]}\\u{ord(SECRET[at]):04x}{SECRET[at + 1 :]}"
            body = ask("My key is KEY.").replace(b"KEY", spelled.encode())
            cut = body.index(b"\\u")
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {client.host}\r\ncontent-length: {len(body)}\r\n\r\n"
            client.writer.write(head.encode() + body[:cut])
            await client.writer.drain()
            client.writer.write(body[cut:])

            assert (await client.receive("POST")).status == 403
        assert provider.heard == []
        everything = await kept(gateway)
        assert SECRET not in everything
        assert everything.count("My key is [secret].") == len(SECRET)
