"""The client gets the provider's bytes, over HTTP/1.1 and HTTP/2, plain and streamed."""

import json

from support.client import Http1, Http2
from support.gateway import Gateway
from support.provider import Provider

ASK = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode()
CHAT = "/v1/chat/completions"
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}'  # noqa: E501


async def test_a_plain_answer_arrives_as_it_was_sent(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER, "200 OK", "application/json", "X-Request-ID: req_1", "x-request-id: twice")
    client = await Http1.tunnel(gateway.port, "api.openai.com", gateway.trust())

    answer = await client.ask("POST", CHAT, "api.openai.com", ASK, "Authorization: Bearer sk-1", "X-Odd-CASE: 1")

    assert (answer.status, answer.body, answer.complete) == (200, ANSWER, True)
    assert [field for field in answer.fields if field[0].lower() == "x-request-id"] == [
        ("X-Request-ID", "req_1"),
        ("x-request-id", "twice"),
    ]
    assert provider.heard[0].fields == [
        (b"Host", b"api.openai.com"),
        (b"Authorization", b"Bearer sk-1"),
        (b"X-Odd-CASE", b"1"),
        (b"Content-Length", b"%d" % len(ASK)),
    ]
    assert provider.heard[0].body == ASK
    assert (await gateway.row())["status_code"] == 200
    await client.close()


async def test_an_http2_client_gets_the_same(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await Http2.tunnel(gateway.port, "api.openai.com", gateway.trust("h2"))

    answer = await client.ask("POST", CHAT, ASK, ("content-type", "application/json"))

    assert (answer.status, answer.body, answer.complete) == (200, ANSWER, True)
    await client.close()
