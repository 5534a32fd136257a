"""Inside mitmweb: what its page says of a call, while it runs and afterwards; read by its own HTTP API."""

import asyncio
import contextlib
import gzip
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from mitmproxy.options import Options

from mitmgate.chain import Chain
from mitmgate.errors import StartError
from mitmgate.policy import default
from mitmgate.stream import KEPT_BYTES
from mitmgate.web_master import page_url, web_master
from mitmgate.web_rules import Limits
from support import gateway as gateways
from support import provider as providers
from support.client import Http1
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, DONE, HEL, LO, ROLE, STOP, USAGE, chunk
from support.web import OpenWeb, WebGateway, web_gateway

KEY = "Authorization: Bearer sk-live-1234567890"


@pytest.fixture
def open_web(authority: trustme.CA, ca_file: Path, provider: Provider, home_path: Path) -> OpenWeb:
    @contextlib.asynccontextmanager
    async def opened(text: str = "") -> AsyncIterator[WebGateway]:
        policy = gateways.policy_for(provider.port, ca_file, providers.HOSTS[:8], text)
        async with web_gateway(home_path, policy, authority) as running:
            yield running

    return opened


@pytest.fixture
async def inside(open_web: OpenWeb) -> AsyncIterator[WebGateway]:
    async with open_web() as running:
        yield running


class Halting:
    """A script that streams its first pieces, and the others when it may."""

    def __init__(self, first: list[bytes], then: list[bytes]) -> None:
        self.first, self.then = first, then
        self.may_go_on = asyncio.Event()

    async def __call__(self, _heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in self.first:
            await wire.chunk(piece)
        await self.may_go_on.wait()
        for piece in self.then:
            await wire.chunk(piece)
        await wire.send(b"0\r\n\r\n")


async def priced(inside: WebGateway) -> None:
    """Return once every row is written and its cost is in the comment."""
    await inside.gateway.rows(1)
    await inside.gateway.until(lambda: not inside.web.unpriced)


# -- comment and mark


async def test_a_flow_says_model_tokens_cost_and_row(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()

    answer = await client.post(CHAT, ASK)

    row_id = answer.header("cf-aig-log-id")
    assert (await inside.page.flow())["comment"].startswith("gpt-4o-2024-08-06 · 9+3 tokens · ")
    await priced(inside)
    row = await inside.gateway.row()
    comment = (await inside.page.flow())["comment"].split(" · ")
    assert comment[:2] == ["gpt-4o-2024-08-06", "9+3 tokens"]
    assert float(comment[2].removeprefix("$")) == pytest.approx(row["cost_nanousd"] / 1e9, rel=0.05)
    assert comment[3:] == [row_id]


@pytest.mark.parametrize(
    ("body", "status", "kind", "mark"),
    [
        (ANSWER, "200 OK", "application/json", ""),
        (b"".join((ROLE, HEL, LO, STOP, DONE)), "200 OK", "text/event-stream", "⚡"),
        (b"".join((ROLE, HEL)), "200 OK", "text/event-stream", "⚠"),
        (b'{"error":{"message":"slow down"}}', "429 Too Many Requests", "application/json", "❌"),
    ],
)
async def test_a_flow_is_marked_by_how_it_ended(
    inside: WebGateway, provider: Provider, body: bytes, status: str, kind: str, mark: str
) -> None:
    provider.says(CHAT, body, status, kind)
    client = await inside.gateway.http1()

    await client.post(CHAT, ASK_STREAM)

    await inside.gateway.rows(1)
    assert (await inside.page.flow())["marked"] == mark


async def test_what_a_person_wrote_stays(inside: WebGateway, provider: Provider) -> None:
    halting = Halting([ROLE, HEL], [LO, STOP, DONE])
    provider.on(CHAT, halting)
    client = await inside.gateway.http1()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE + HEL))
    flow = inside.stored()
    flow.comment, flow.marked = "look at this one", ":eyes:"

    halting.may_go_on.set()
    await call.end()

    await priced(inside)
    shown = await inside.page.flow()
    assert (shown["comment"], shown["marked"]) == ("look at this one", "👀")


async def test_a_model_name_that_is_no_text_does_not_stop_the_page(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER.replace(b"gpt-4o-2024-08-06", rb"\ud800\u202eevil\u001b[31m"))
    client = await inside.gateway.http1()

    await client.post(CHAT, ASK)

    comment = (await inside.page.flow())["comment"]
    assert comment.startswith(r"\ud800\u202eevil␛[31m · 9+3 tokens")
    comment.encode()


# -- content


async def test_the_prompt_is_shown_as_a_conversation(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()

    await client.post(CHAT, ASK)

    shown = await inside.page.content("request")
    assert shown["view_name"] == "LLM prompt"
    assert shown["text"] == "gpt-4o · openai.chat\n\nuser\n    hi"


async def test_a_plain_answer_is_shown_as_a_turn(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()

    await client.post(CHAT, ASK)

    shown = await inside.page.content("response")
    assert shown["view_name"] == "LLM answer"
    assert shown["text"] == "gpt-4o-2024-08-06 · 200\n9+3 tokens · finish stop\n\nassistant\n    hello"


@pytest.mark.parametrize("version", ["h1", "h2"])
async def test_a_stream_is_shown_while_it_runs_and_afterwards(
    inside: WebGateway, provider: Provider, version: str
) -> None:
    halting = Halting([ROLE, HEL], [LO, STOP, USAGE, DONE])
    provider.on(CHAT, halting)
    client = await inside.gateway.client(version)
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE + HEL))

    await inside.web.look()

    shown = await inside.page.content("response")
    assert shown["view_name"] == "LLM answer"
    assert shown["text"] == "gpt-4o-2024-08-06 · 200 · still running\n\nassistant\n    hel"
    assert (await inside.page.flow())["marked"] == "⚡"

    halting.may_go_on.set()
    answer = await call.end()
    await inside.gateway.rows(1)
    shown = await inside.page.content("response", "LLM answer")
    assert shown["text"] == "gpt-4o-2024-08-06 · 200\n9+3 tokens · finish stop\n\nassistant\n    hello"
    assert (answer.complete, answer.body) == (True, b"".join((ROLE, HEL, LO, STOP, DONE)))


async def test_a_stream_of_which_nothing_came_yet_says_so(inside: WebGateway, provider: Provider) -> None:
    halting = Halting([], [DONE])
    provider.on(CHAT, halting)
    client = await inside.gateway.http1()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.head()

    await inside.web.look()

    assert (await inside.page.content("response"))["text"] == "gpt-4o · 200 · still running\n\nnothing yet"
    halting.may_go_on.set()
    assert (await call.end()).body == DONE


async def test_a_compressed_stream_is_shown_and_passed_on_as_it_came(open_web: OpenWeb, provider: Provider) -> None:
    sent = gzip.compress(b"".join((ROLE, HEL, LO, STOP, DONE)))
    provider.streams(CHAT, [sent[:40], sent[40:]], "text/event-stream", "content-encoding: gzip")
    async with open_web("usage: leave") as inside:
        client = await inside.gateway.http1()

        answer = await client.post(CHAT, ASK_STREAM)

        await inside.gateway.rows(1)
        assert (answer.body, answer.header("content-encoding")) == (sent, "gzip")
        shown = await inside.page.content("response")
        assert shown["description"] == "[decoded gzip]"
        assert shown["text"].endswith("assistant\n    hello")


async def test_of_a_stream_that_broke_off_its_half_is_shown(inside: WebGateway, provider: Provider) -> None:
    async def breaks(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE + HEL)
        wire.cut()

    provider.on(CHAT, breaks)
    client = await inside.gateway.http1()

    await client.post(CHAT, ASK_STREAM)

    await inside.gateway.rows(1)
    assert (await inside.page.flow())["marked"] == "⚠"
    assert (await inside.page.content("response"))["text"].endswith("assistant\n    hel")


async def test_of_a_long_stream_the_beginning_is_kept_and_that_is_said(inside: WebGateway, provider: Provider) -> None:
    long = chunk("x" * (KEPT_BYTES // 8))
    provider.streams(CHAT, [ROLE, *[long] * 9, STOP, DONE])
    client = await inside.gateway.http1()

    answer = await client.post(CHAT, ASK_STREAM)

    await inside.gateway.rows(1)
    assert (answer.complete, answer.size) == (True, len(ROLE + long * 9 + STOP + DONE))
    assert inside.stored().response.raw_content == answer.body[:KEPT_BYTES]  # type: ignore[union-attr]
    assert "only the beginning of this answer was kept" in (await inside.page.content("response"))["text"]


async def test_bodies_that_nobody_may_keep_are_gone_when_the_call_is_over(
    inside: WebGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()

    await client.post(CHAT, ASK, "cf-aig-collect-log-payload: false")

    await inside.gateway.until(lambda: not inside.stored().live)
    await inside.web.look()
    for message in ("request", "response"):
        assert (await inside.page.content(message))["text"] == "Content is missing."


# -- credentials


async def test_no_key_is_on_the_page_though_the_provider_got_it(inside: WebGateway, provider: Provider) -> None:
    halting = Halting([ROLE, HEL], [STOP, DONE])
    provider.on(CHAT, halting)
    client = await inside.gateway.http1()
    call = await client.begin(f"{CHAT}?key=AIzaSecret12345", ASK_STREAM, KEY, "Cookie: session=s3cret")
    await call.body(len(ROLE + HEL))

    while_it_runs = (await inside.page.ask("GET", "/flows")).body
    halting.may_go_on.set()
    await call.end()
    await inside.gateway.rows(1)

    saved = (await inside.page.ask("GET", "/flows/dump")).body
    for secret in (b"sk-live-1234567890", b"AIzaSecret12345", b"s3cret"):
        assert secret not in while_it_runs
        assert secret not in saved
    assert b"Bearer [secret-" in while_it_runs
    [heard] = provider.heard
    assert (heard.header("authorization"), heard.header("cookie")) == (KEY.partition(": ")[2], "session=s3cret")
    assert heard.path == f"{CHAT}?key=AIzaSecret12345"


async def test_a_refused_request_leaves_no_key_either(inside: WebGateway) -> None:
    client = await inside.gateway.http1()

    answer = await client.post(CHAT, ASK, KEY, "cf-aig-max-attempts: many")

    assert answer.status == 400
    await inside.gateway.rows(1)
    assert b"sk-live" not in (await inside.page.ask("GET", "/flows")).body
    assert (await inside.page.flow())["marked"] == "⛔"


async def test_a_cookie_of_the_provider_is_masked_when_the_client_has_it(
    inside: WebGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER, "200 OK", "application/json", "set-cookie: __cf_bm=s3cret; path=/")
    client = await inside.gateway.http1()

    answer = await client.post(CHAT, ASK)

    await inside.gateway.until(lambda: not inside.stored().live)
    await inside.web.look()
    assert answer.header("set-cookie") == "__cf_bm=s3cret; path=/"
    assert b"s3cret" not in (await inside.page.ask("GET", "/flows")).body


async def test_a_replay_sends_the_real_key(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()
    await client.post(CHAT, ASK, KEY)
    await inside.gateway.until(lambda: not inside.stored().live)
    flow = await inside.page.flow()

    replayed = await inside.page.ask("POST", f"/flows/{flow['id']}/replay")

    assert replayed.status == 200
    await inside.gateway.rows(2)
    assert [heard.header("authorization") for heard in provider.heard] == [KEY.partition(": ")[2]] * 2
    assert b"sk-live" not in (await inside.page.ask("GET", "/flows/dump")).body


async def test_an_edited_request_leaves_no_key_to_revert_to(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    inside.engine.options.update(intercept="~q")
    client = await inside.gateway.http1()
    call = await client.begin(CHAT, ASK, KEY)
    await inside.gateway.until(lambda: inside.engine.view.get_length() == 1 and inside.stored().intercepted)
    flow = inside.stored()
    flow.backup()
    flow.request.headers["x-edited"] = "yes"

    flow.resume()
    await call.end()

    await inside.gateway.rows(1)
    assert provider.heard[0].header("x-edited") == "yes"
    assert provider.heard[0].header("authorization") == KEY.partition(": ")[2]
    assert b"sk-live" not in (await inside.page.ask("GET", "/flows/dump")).body


# -- memory


async def test_the_oldest_finished_flows_go_and_a_live_one_stays(inside: WebGateway, provider: Provider) -> None:
    halting = Halting([ROLE], [STOP, DONE])
    provider.on(CHAT, halting)
    live = await inside.gateway.http1()
    stream = await live.begin(CHAT, ASK_STREAM)
    await stream.body(len(ROLE))
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()
    ids = [(await client.post(CHAT, ASK)).header("cf-aig-log-id") for _ in range(3)]
    inside.web.limits = Limits(count=1)

    await inside.web.look()

    running, kept = await inside.page.flows()
    assert running["comment"] == ""
    assert kept["comment"].endswith(str(ids[2]))
    halting.may_go_on.set()
    assert (await stream.end()).complete
    await inside.web.look()
    assert (await inside.page.flow())["id"] == running["id"]
    assert list(inside.web.ended) == [running["id"]]


async def test_a_flow_that_was_removed_on_the_page_is_forgotten(inside: WebGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await inside.gateway.http1()
    await client.post(CHAT, ASK)
    await inside.gateway.until(lambda: not inside.stored().live)
    await inside.web.look()
    flow = await inside.page.flow()

    await inside.page.ask("DELETE", f"/flows/{flow['id']}")
    await inside.web.look()

    assert (await inside.page.flows(), inside.web.ended) == ([], {})


# -- kill


async def test_a_flow_killed_while_intercepted_lets_its_client_go(inside: WebGateway, provider: Provider) -> None:
    inside.engine.options.update(intercept="~q")
    client = await inside.gateway.http1()
    call = await client.begin(CHAT, ASK)
    await inside.gateway.until(lambda: inside.engine.view.get_length() == 1 and inside.stored().intercepted)
    flow = await inside.page.flow()

    await inside.page.ask("POST", f"/flows/{flow['id']}/kill")
    await inside.web.look()

    assert (await call.end()).status == 0
    assert provider.heard == []


async def test_a_stream_killed_while_the_provider_is_silent_ends_on_both_sides(
    inside: WebGateway, provider: Provider
) -> None:
    async def falls_silent(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE + HEL)
        await wire.silence()

    provider.on(CHAT, falls_silent)
    client = await inside.gateway.http1()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE + HEL))
    flow = await inside.page.flow()

    await inside.page.ask("POST", f"/flows/{flow['id']}/kill")
    await inside.web.look()

    assert not (await call.end()).complete
    await inside.gateway.until(provider.left.is_set)
    assert (await inside.gateway.row())["terminal"] == "client_abort"


# -- start


async def test_the_page_asks_for_its_token(inside: WebGateway) -> None:
    inside.page.token = "guessed"

    assert (await inside.page.ask("GET", "/flows")).status == 403
    assert page_url(inside.engine).startswith(f"http://127.0.0.1:{inside.page.port}/?token=")


async def test_the_page_is_not_reachable_through_the_gateway(inside: WebGateway) -> None:
    trust = inside.gateway.trust()

    with pytest.raises(ConnectionError, match="403"):
        await Http1.tunnel(inside.gateway.port, "localhost", trust, inside.page.port)


async def test_an_unknown_host_is_tunnelled_unseen(
    inside: WebGateway, provider: Provider, authority: trustme.CA
) -> None:
    provider.says("/", b"{}")
    trusts_the_host_alone = ssl.create_default_context()
    authority.configure_trust(trusts_the_host_alone)

    client = await Http1.tunnel(inside.gateway.port, "localhost", trusts_the_host_alone, provider.port)
    answer = await client.post("/", method="GET")

    await client.close()
    assert (answer.status, answer.body) == (200, b"{}")
    assert await inside.page.flows() == []


async def test_the_page_goes_with_the_gateway(open_web: OpenWeb) -> None:
    async with open_web() as inside:
        assert await inside.page.flows() == []

    with pytest.raises(ConnectionRefusedError):
        await inside.page.flows()


async def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        chain = Chain(default(), tmp_path / "traces.db", b"secret")
        engine = web_master(Options(confdir=str(tmp_path)), chain, port, False)
        engine.options.update(server=False)

        with pytest.raises(StartError, match=f"127.0.0.1:{port}: Address already in use; give another with --web-port"):
            await engine.run()
