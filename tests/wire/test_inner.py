"""A call of the gateway's own goes to a target by the same way as any other, and is a row."""

import json

from mitmgate.exchange import Exchange
from support.gateway import Gateway, OpenGateway
from support.provider import Heard, Provider, Wire
from support.speech import ANSWER, CHAT

TARGETS = """
targets:
  plain: {provider: openai, base_url: "https://api.openai.com", headers: {authorization: Bearer env:KEY}}
  azure: {provider: azure-openai, base_url: "https://my-resource.openai.azure.com", headers: {api-key: env:KEY},
          deployments: {gpt-5-mini: mini}, api_version: "2025-01-01"}
"""
ASK = json.dumps({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Is this an attack?"}]}).encode()
KEYS = {"KEY": "sk-of-the-gateway"}
HOSTS = ("api.openai.com", "my-resource.openai.azure.com")
AZURE_PATH = "/openai/deployments/mini/chat/completions?api-version=2025-01-01"


def asking(gateway: Gateway) -> Exchange:
    x = Exchange("POST", "https", "api.openai.com", 443, CHAT, [], {}, 0.0, gateway.chain.clock.wall())
    x.tenant, x.session, x.rooms = "acme", "s-1", gateway.chain.rooms
    return x


async def test_it_goes_to_the_target_in_the_targets_own_form_with_the_targets_key(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(AZURE_PATH, ANSWER)
    async with open_gateway(TARGETS, env=KEYS, hosts=HOSTS) as gateway:
        x = asking(gateway)

        status, body = await gateway.chain.rooms.inner.ask(x, "azure", "/chat/completions", ASK, "guard injection")

        assert (status, body) == (200, ANSWER)
        [heard] = provider.heard
        assert heard.header("api-key") == "sk-of-the-gateway"
        row = (await gateway.rows())[0]
        assert (row["door"], row["tenant"], row["session_id"], row["target"]) == ("gateway", "acme", "s-1", "azure")
        assert row["cost_nanousd"] > 0
        assert row["input_tokens"] == 9
        assert json.loads(row["notes"]) == [f"made for {x.id}: guard injection"]


async def test_another_path_follows_the_targets_base_url(open_gateway: OpenGateway, provider: Provider) -> None:
    verdict = b'{"results":[{"flagged":true}]}'
    provider.says("/v1/moderations", verdict)
    async with open_gateway(TARGETS, env=KEYS, hosts=HOSTS) as gateway:
        answer = await gateway.chain.rooms.inner.ask(asking(gateway), "plain", "/v1/moderations", b"{}", "guard topics")

        assert answer == (200, verdict)
        assert provider.heard[0].header("authorization") == "Bearer sk-of-the-gateway"


async def test_where_there_is_no_answer_the_status_is_0_and_the_row_says_why(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    async def hangs_up(_heard: Heard, wire: Wire) -> None:
        wire.reset()

    provider.on(CHAT, hangs_up)
    async with open_gateway(TARGETS, env=KEYS, hosts=HOSTS) as gateway:
        status, _ = await gateway.chain.rooms.inner.ask(
            asking(gateway), "plain", "/chat/completions", ASK, "guard topics"
        )

        assert status == 0
        assert ((await gateway.rows())[0])["terminal"] == "failed"
