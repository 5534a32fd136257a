"""The bytes of the benchmark: one call as an SDK sends it, and its answers, written once and sent many times."""

import json
from functools import cache

HOST = "api.openai.com"
PATH = "/v1/chat/completions"

_ASKING_HEAD = """\
POST /v1/chat/completions HTTP/1.1
Host: {host}
Accept-Encoding: gzip, deflate
Connection: keep-alive
Accept: application/json
Content-Type: application/json
User-Agent: OpenAI/Python 2.9.0
X-Stainless-Lang: python
X-Stainless-Package-Version: 2.9.0
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: CPython
X-Stainless-Runtime-Version: 3.12.1
Authorization: Bearer sk-bench-0000000000000000000000000000000000000000
X-Stainless-Async: false
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
Content-Length: {length}

"""

_ANSWERING_HEAD = """\
HTTP/1.1 200 OK
Date: Tue, 24 Nov 2026 12:00:00 GMT
Content-Type: {kind}
{framing}
Connection: keep-alive
openai-organization: bench
openai-processing-ms: 12
openai-version: 2020-10-01
x-ratelimit-limit-requests: 10000
x-ratelimit-limit-tokens: 2000000
x-ratelimit-remaining-requests: 9999
x-ratelimit-remaining-tokens: 1999000
x-ratelimit-reset-requests: 6ms
x-request-id: req_00000000000000000000000000000000
cf-cache-status: DYNAMIC
Server: cloudflare

"""

EVENTS_HEADER = b"x-bench-events: "
"""Tells the provider how many events to stream, one each 20 ms; 0 = the first one, then the end at once."""

WAIT_HEADER = b"x-bench-wait-ms: "
"""Tells the provider how long to think before a plain answer."""

KEEP_FIELD = b"cf-aig-cache-ttl: 86400\r\n"
"""Asks the gateway to keep the answer, and to give the one it has."""


def _lines(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


@cache
def request(host: str, events: int | None = None, *, wait_ms: int = 0, kept: bool = False) -> bytes:
    """Return a call with a body of 1 kB; with *events*, one that asks for a stream; *kept*: the cache may answer."""
    body = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You answer in one sentence. " * 16},
            {"role": "user", "content": "What does a gateway do for an application that calls models? " * 6},
        ],
        "temperature": 0.2,
    }
    if events is not None:
        body["stream"] = True
    raw = json.dumps(body).encode()
    head = _lines(_ASKING_HEAD.format(host=host, length=len(raw)))[:-2]
    if events is not None:
        head += EVENTS_HEADER + b"%d\r\n" % events
    if wait_ms:
        head += WAIT_HEADER + b"%d\r\n" % wait_ms
    if kept:
        head += KEEP_FIELD
    return head + b"\r\n" + raw


def answer() -> bytes:
    """Return a whole answer with a body of 1 kB."""
    text = "It sees each call, keeps the books, and hands the bytes on as they came. " * 8
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    body = {
        "id": "chatcmpl-bench0000000000000000000000",
        "object": "chat.completion",
        "created": 1795520000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 182,
            "completion_tokens": 129,
            "total_tokens": 311,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_bench",
    }
    raw = json.dumps(body).encode()
    return _lines(_ANSWERING_HEAD.format(kind="application/json", framing=f"Content-Length: {len(raw)}")) + raw


def stream_head() -> bytes:
    kind = "text/event-stream; charset=utf-8"
    return _lines(_ANSWERING_HEAD.format(kind=kind, framing="Transfer-Encoding: chunked"))


def event(delta: dict[str, str], finish: str | None = None, **more: object) -> bytes:
    """Return one event of about 120 bytes in a chunk of its own, as the provider writes it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    said = {"id": "c1", "object": "chat.completion.chunk", "choices": [choice]} | more
    data = b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


FIRST = event({"role": "assistant", "content": "It"}, model="gpt-4o-mini-2024-07-18")
MIDDLE = event({"content": " sees"})
LAST = event({}, "stop")
USAGE = event({}, choices=[], usage={"prompt_tokens": 182, "completion_tokens": 129, "total_tokens": 311})
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
END = b"0\r\n\r\n"
