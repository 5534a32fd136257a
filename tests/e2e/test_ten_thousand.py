"""Ten thousand calls at full speed: every one has its row, and the sums are the provider's own, to the token."""

import asyncio
import json
import ssl
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from support import serving
from support.client import Http1
from support.provider import Heard, Provider, Wire
from support.serving import Serving
from support.speakers import PATHS, act, is_streamed
from support.voices import APIS, HOSTS, MODELS, Api, Said, error, stream, whole

CALLS = 10_000
LANES = 20
"""Kept connections that work side by side."""
ERROR_EVERY, STREAM_EVERY = 25, 3
"""One call in so many fails; one in so many is a stream."""


@dataclass
class Books:
    """What the provider itself has counted."""

    calls: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(host, status) -> how many."""
    tokens: dict[str, list[int]] = field(default_factory=lambda: {host: [0, 0, 0] for host in HOSTS.values()})
    """Host -> input, cached input, output."""


def said_in(api: Api, number: int) -> Said:
    """Return the answer to call *number*: no two neighbours cost the same."""
    return Said(api, f"Answer {number}.", 100 + number % 89, number % 53, 60 + number % 97, number % 7)


def keep_books(provider: Provider, books: Books) -> None:
    for api in APIS:
        act(provider, api, _speaker(api, books))


def _speaker(api: Api, books: Books):  # type: ignore[no-untyped-def]
    host = HOSTS[api]

    async def script(heard: Heard, wire: Wire) -> None:
        number = int(heard.header("x-number") or 0)
        if number % ERROR_EVERY == 0:
            books.calls[host, 429] += 1
            await wire.answer(error(api, "slow down", 429), "429 Slow Down")
            return
        said = said_in(api, number)
        books.calls[host, 200] += 1
        for place, tokens in enumerate((said.input_tokens, said.cached_tokens, said.output_tokens)):
            books.tokens[host][place] += tokens
        if is_streamed(heard):
            await wire.send(
                _STREAM_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in stream(said, heard.body)) + _END
            )
        else:
            await wire.answer(whole(said))

    return script


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


async def lane(gateway: Serving, trust: ssl.SSLContext, number: int) -> None:
    """Make every call of one connection, one after the other."""
    api = APIS[number % len(APIS)]
    host = HOSTS[api]
    client = await Http1.tunnel(gateway.port, host, trust)
    for call in range(number, CALLS, LANES):
        answer = await client.ask("POST", _path(api, call), host, _body(api, call), f"X-Number: {call}")
        assert answer.complete
        assert answer.status == (429 if call % ERROR_EVERY == 0 else 200)
        assert call % ERROR_EVERY == 0 or f"{call}.".encode() in answer.body
    await client.close()


def _path(api: Api, call: int) -> str:
    if api == "gemini" and call % STREAM_EVERY == 0:
        return f"/v1beta/models/{MODELS[api]}:streamGenerateContent?alt=sse"
    return PATHS[api][0]


def _body(api: Api, call: int) -> bytes:
    if api == "gemini":
        return json.dumps({"contents": [{"role": "user", "parts": [{"text": f"Question {call}?"}]}]}).encode()
    prompt = [{"role": "user", "content": f"Question {call}?"}]
    body: dict[str, object] = {"model": MODELS[api], "input" if api == "responses" else "messages": prompt}
    if call % STREAM_EVERY == 0:
        body["stream"] = True
    return json.dumps(body).encode()


async def test_ten_thousand_calls_are_ten_thousand_rows_and_every_token(
    served_home: Path, policy: str, beside: Provider
) -> None:
    books = Books()
    keep_books(beside, books)
    with serving.serve(served_home, policy) as gateway:
        trust = ssl.create_default_context(cafile=str(gateway.running.ca_bundle))
        await asyncio.gather(*(lane(gateway, trust, number) for number in range(LANES)))
        assert await asyncio.to_thread(gateway.stop) == 0

        calls = gateway.query("select host, status_code, count(*) as n from exchanges group by 1, 2")
        sums = gateway.query(
            """select host, sum(input_tokens) as input, sum(cache_read_input_tokens) as cached, sum(output_tokens) as
            output
               from exchanges where status_code = 200 group by host"""
        )
        odd = gateway.query(
            """select * from exchanges where terminal <> 'complete' or attempts <> 1
               or (status_code = 200 and (usage_source <> 'reported' or cost_nanousd is null))
               or (status_code = 429 and (error_type <> 'rate_limit' or input_tokens is not null))"""
        )
        attempts = gateway.query("select count(*) as n from attempts")

    assert books.calls.total() == CALLS
    assert {(row["host"], row["status_code"]): row["n"] for row in calls} == dict(books.calls)
    assert {row["host"]: [row["input"], row["cached"], row["output"]] for row in sums} == books.tokens
    assert odd == []
    assert attempts == [{"n": CALLS}]
