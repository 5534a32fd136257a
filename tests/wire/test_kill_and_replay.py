"""What a person does in mitmproxy's screens works for pooled flows: kill, intercept, replay."""

import asyncio

from mitmproxy.http import HTTPFlow

from support.gateway import Gateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, ASK, ASK_STREAM, CHAT, LO, ROLE


def flow_under_way(gateway: Gateway) -> HTTPFlow:
    [down] = gateway.chain.live
    return down.flow


async def kill(gateway: Gateway) -> None:
    """Press kill, and let it be carried out as the watcher in mitmweb does."""
    [down] = gateway.chain.live
    down.flow.kill()
    await down.kill()


async def test_a_kill_while_the_provider_is_silent_ends_both_sides(
    gateway: Gateway, provider: Provider, version: str
) -> None:
    async def stops(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await wire.silence()

    provider.on(CHAT, stops)
    client = await gateway.client(version)
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE))

    await kill(gateway)

    answer = await call.end()
    await asyncio.wait_for(provider.left.wait(), 5)
    assert (answer.body, answer.complete) == (ROLE, False)
    assert len(await gateway.rows(1)) == 1


async def test_a_kill_before_the_answer_ends_both_sides(gateway: Gateway, provider: Provider, version: str) -> None:
    async def is_silent(_heard: Heard, wire: Wire) -> None:
        await wire.silence()

    provider.on(CHAT, is_silent)
    client = await gateway.client(version)
    call = await client.begin(CHAT, ASK)
    await asyncio.wait_for(provider.asked.wait(), 5)

    await kill(gateway)

    answer = await call.end()
    await asyncio.wait_for(provider.left.wait(), 5)
    assert not answer.complete
    assert len(await gateway.rows(1)) == 1


async def test_a_killed_stream_that_goes_on_sends_nothing_more(gateway: Gateway, provider: Provider) -> None:
    goes_on = asyncio.Event()

    async def waits(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await goes_on.wait()
        await wire.chunk(LO)
        await wire.silence()

    provider.on(CHAT, waits)
    client = await gateway.http1()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE))

    flow_under_way(gateway).kill()
    goes_on.set()

    answer = await call.end()
    await asyncio.wait_for(provider.left.wait(), 5)
    assert (answer.body, answer.complete) == (ROLE, False)


async def test_a_killed_stream_of_an_http2_connection_leaves_the_others_alone(
    gateway: Gateway, provider: Provider
) -> None:
    async def stops(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        await wire.chunk(ROLE)
        await wire.silence()

    provider.on(CHAT, stops)
    provider.says("/v1/responses", ANSWER)
    client = await gateway.http2()
    call = await client.begin(CHAT, ASK_STREAM)
    await call.body(len(ROLE))

    await kill(gateway)
    await call.end()

    assert (await client.post("/v1/responses", ASK)).body == ANSWER


async def test_a_replay_goes_through_the_pool_and_makes_no_row(gateway: Gateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    client = await gateway.http1()
    await client.post(CHAT, ASK, "Authorization: Bearer sk-1")
    before = _requests(gateway)
    copy = gateway.settled[0].flow.copy()

    gateway.engine.commands.call("replay.client", [copy])
    await gateway.until(lambda: len(provider.heard) == 2)
    await gateway.rows(2)

    first, second = provider.heard
    assert (second.fields, second.body, second.connection) == (first.fields, first.body, 0)
    assert len(await gateway.rows()) == 1
    assert _requests(gateway) == before
    await gateway.until(lambda: copy.response is not None)
    assert copy.response.raw_content == ANSWER
    assert "cf-aig-log-id" not in copy.response.headers


def _requests(gateway: Gateway) -> list[str]:
    lines = gateway.chain.state.metrics.text().decode().splitlines()
    return [line for line in lines if line.startswith("mitmgate_requests_total{")]


async def test_a_paused_request_reaches_the_provider_as_it_was_edited(gateway: Gateway, provider: Provider) -> None:
    class Pauses:
        """A screen: it watches flows, so their hooks may wait."""

        def update(self, _flows: list[HTTPFlow]) -> None:
            pass

        def request(self, flow: HTTPFlow) -> None:
            flow.intercept()
            flows.append(flow)

    flows: list[HTTPFlow] = []
    gateway.engine.addons.add(Pauses())
    provider.says("/v1/responses", ANSWER)
    client = await gateway.http1()
    call = await client.begin(CHAT, ASK)
    await gateway.until(lambda: bool(flows))
    assert provider.heard == []

    flows[0].request.path = "/v1/responses"
    flows[0].request.headers["x-edited"] = "1"
    flows[0].request.content = b'{"model":"gpt-4o-mini"}'
    flows[0].resume()

    answer = await call.end()
    [heard] = provider.heard
    row = await gateway.row()
    assert (answer.status, answer.body) == (200, ANSWER)
    assert (heard.path, heard.body, heard.header("x-edited")) == ("/v1/responses", b'{"model":"gpt-4o-mini"}', "1")
    assert heard.header("content-length") == str(len(heard.body))
    assert (row["path"], row["request_model"]) == ("/v1/responses", "gpt-4o-mini")
