"""Prompts are made shorter on their way: the provider hears the shaped one, the client and the row are told."""

import asyncio
import gzip
import json
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest

from mitmgate.dialects.openai_chat import Chat
from mitmgate.shape_changes import AS_ABOVE, GO_ON, SUMMARY
from support.client import Answer
from support.gateway import Gateway, OpenGateway, policy_for
from support.provider import HOSTS, Heard, Provider, Wire
from support.scripts import answers, in_turn, is_silent, streams
from support.speech import ANSWER, CHAT, DONE, HEL, LO, MESSAGES, ROLE, STOP
from support.talks import Body, Round, chat, messages, prose, rounds

KEEP = "shape: [{name: short, match: {input_tokens: '> 500'}, then: {keep_last: 500}}]"
AZURE = "my-resource.openai.azure.com"
AZURE_PATH = "/openai/deployments/mini/chat/completions?api-version=2025-01-01"
SUM = """
shape:
  - {name: sum, match: {input_tokens: "> 500"}, then: {summarize: {keep_last: 500, with: azure, model: gpt-5-mini}}}
targets:
  azure: {provider: azure-openai, base_url: "https://my-resource.openai.azure.com", headers: {api-key: env:KEY},
          deployments: {gpt-5-mini: mini}, api_version: "2025-01-01"}
"""
SUMMED: dict[str, Any] = {"env": {"KEY": "sk-of-the-gateway"}, "hosts": ("api.openai.com", AZURE)}
CLAUDE = "api.anthropic.com"
CLAUDE_ANSWER = b'{"id":"msg_1","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[]}'


def encoded(body: Body) -> bytes:
    return json.dumps(body).encode()


def estimate(body: Body) -> int:
    return Chat().read_request(CHAT, body).input_tokens_estimate


def heard_body(heard: Heard) -> Body:
    body: Body = json.loads(heard.body)
    return body


async def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    sql = "select rule, action, shadow, detail from policy_events where room = 'shape' order by at"
    return [tuple(row.values()) for row in await gateway.rows(1, sql)]


async def rows_of(gateway: Gateway, count: int, *, own: bool) -> list[dict[str, Any]]:
    """Return the rows of clients' calls when *count* of them are over, or of the gateway's *own*."""
    return [row for row in await gateway.rows(count) if (row["door"] == "gateway") is own]


def summarizes(provider: Provider, *summaries: str) -> list[Heard]:
    """Let the target answer with *summaries* in turn, the last for ever; return what it hears."""
    asked: list[Heard] = []
    left = list(summaries)

    async def script(heard: Heard, wire: Wire) -> None:
        asked.append(heard)
        said = left.pop(0) if len(left) > 1 else left[0]
        await wire.answer(ANSWER.replace(b'"hello"', json.dumps(said).encode()))

    provider.on(AZURE_PATH, script)
    return asked


# -- keep_last --------------------------------------------------------------------------------------------------------


async def test_a_long_prompt_is_cut_and_everybody_is_told(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    body = chat(rounds(9, tools=1))
    async with open_gateway(KEEP) as gateway:
        answer = await (await gateway.http1()).post(CHAT, encoded(body))
        row = await gateway.row()
        [(rule, action, shadow, detail)] = await events(gateway)

    [heard] = provider.heard
    after = heard_body(heard)
    dropped = len(body["messages"]) - len(after["messages"])
    before_tokens, after_tokens = estimate(body), estimate(after)
    assert (answer.status, answer.body) == (200, ANSWER)
    assert after["messages"] == [body["messages"][0], *body["messages"][dropped + 1 :]]
    assert after_tokens <= 500 < before_tokens
    assert answer.header("cf-aig-route") == "shaped; rule=short"
    assert (rule, action, shadow) == ("short", "keep_last", 0)
    assert detail == f"{before_tokens:,} -> {after_tokens:,} tokens, {dropped} turns dropped"
    assert (row["prompt_tokens_before"], row["prompt_tokens_after"]) == (before_tokens, after_tokens)
    assert row["request_sha256"] == sha256(encoded(body)).hexdigest()
    assert row["sent_sha256"] == sha256(heard.body).hexdigest()


async def test_a_short_prompt_goes_out_byte_for_byte(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(KEEP) as gateway:
        answer = await (await gateway.http1()).post(CHAT, encoded(chat(rounds(2))))
        row = await gateway.row()

    assert provider.heard[0].body == encoded(chat(rounds(2)))
    assert answer.header("cf-aig-route") is None
    assert (row["prompt_tokens_before"], row["prompt_tokens_after"], row["sent_sha256"]) == (None, None, None)


async def test_a_growing_conversation_keeps_its_beginning_over_several_turns(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(KEEP) as gateway:
        client = await gateway.http1()
        for count in range(40, 60):
            await client.post(CHAT, encoded(chat(rounds(count, tokens=10))))

    texts = [heard.body.decode() for heard in provider.heard]
    kept = [
        two.startswith(one.removesuffix('], "model": "gpt-4o"}').removesuffix("]}")) for one, two in pairwise(texts)
    ]
    assert sum(kept) >= len(kept) / 2, "without blocks it would be none"


async def test_a_stream_is_asked_for_with_the_shaped_prompt_and_for_its_usage(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    stream = [ROLE, HEL, LO, STOP, DONE]
    provider.on(CHAT, streams(*stream))
    async with open_gateway(KEEP) as gateway:
        answer = await (await gateway.http1()).post(CHAT, encoded(chat(rounds(9), stream=True)))

    assert answer.body == b"".join(stream)
    after = heard_body(provider.heard[0])
    assert (after["stream_options"], estimate(after) <= 500) == ({"include_usage": True}, True)


async def test_a_compressed_request_goes_out_plain_and_short(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(KEEP) as gateway:
        body = gzip.compress(encoded(chat(rounds(9))))
        answer = await (await gateway.http1()).post(CHAT, body, "content-encoding: gzip")

    [heard] = provider.heard
    assert (answer.status, heard.header("content-encoding")) == (200, None)
    assert estimate(heard_body(heard)) <= 500


async def test_each_attempt_and_each_target_gets_the_shaped_prompt(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.on(CHAT, answers(b"{}", "503 Busy"))
    provider.says(AZURE_PATH, ANSWER)
    policy = SUM.replace("{summarize: {keep_last: 500, with: azure, model: gpt-5-mini}}", "{keep_last: 500}")
    async with open_gateway(
        f"{policy}\nroute: [{{name: r, try: [{{model: gpt-5-mini}}, azure]}}]", **SUMMED
    ) as gateway:
        body = chat(rounds(9), model="gpt-5-mini")
        answer = await (await gateway.http1()).post(
            CHAT, encoded(body), "cf-aig-max-attempts: 2", "cf-aig-retry-delay: 0"
        )

    assert (answer.status, answer.header("cf-aig-provider")) == (200, "azure")
    assert [estimate(heard_body(heard)) <= 500 for heard in provider.heard] == [True, True, True]


async def test_the_same_long_prompt_is_answered_from_the_cache(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(f"{KEEP}\ncache: [{{ttl: 1 h}}]") as gateway:
        client = await gateway.http1()
        given = [await client.post(CHAT, encoded(chat(rounds(9)))) for _ in range(2)]

    assert [answer.header("cf-aig-cache-status") for answer in given] == ["MISS", "HIT"]
    assert (len(provider.heard), given[1].header("cf-aig-route")) == (1, None)


# -- the other changes ------------------------------------------------------------------------------------------------


async def test_an_answer_is_bounded(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway("shape: [{name: brief, then: {max_output_tokens: 100}}]") as gateway:
        client = await gateway.http1()
        await client.post(CHAT, encoded(chat(rounds(1), model="gpt-5")))
        await client.post(CHAT, encoded(chat(rounds(1), max_tokens=4000)))
        answer = await client.post(CHAT, encoded(chat(rounds(1), max_tokens=50)))
        told = await events(gateway)

    bounds = [
        {name: value for name, value in heard_body(heard).items() if name.startswith("max_")}
        for heard in provider.heard
    ]
    assert bounds == [{"max_completion_tokens": 100}, {"max_tokens": 100}, {"max_tokens": 50}]
    assert [detail for _, _, _, detail in told] == ["max_completion_tokens set to 100", "max_tokens 4,000 -> 100"]
    assert answer.header("cf-aig-route") is None


async def test_claudes_prefixes_are_marked(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(MESSAGES, CLAUDE_ANSWER)
    async with open_gateway("shape: [{name: mark, match: {provider: anthropic}, then: mark_cacheable}]") as gateway:
        answer = await (await gateway.http1(CLAUDE)).post(MESSAGES, encoded(messages(rounds(2))))

    after = heard_body(provider.heard[0])
    assert answer.header("cf-aig-route") == "shaped; rule=mark"
    assert after["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert after["messages"][1]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert after["messages"][2] == messages(rounds(2))["messages"][2]


async def test_a_context_that_is_sent_again_is_named(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    said = [Round(n, says=prose(200), answered=n < 3) for n in range(1, 4)]
    async with open_gateway("shape: [{name: once, then: dedupe}]") as gateway:
        await (await gateway.http1()).post(CHAT, encoded(chat(said)))
        row = await gateway.row()

    contents = [turn["content"] for turn in heard_body(provider.heard[0])["messages"] if turn["role"] == "user"]
    assert contents == [prose(200), AS_ABOVE, prose(200)]
    assert row["prompt_tokens_before"] - row["prompt_tokens_after"] > 190


# -- summaries --------------------------------------------------------------------------------------------------------


async def test_a_summary_stands_for_what_was_said_and_its_call_has_a_row(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    asked = summarizes(provider, "They talked.")
    body = chat(rounds(9))
    async with open_gateway(SUM, **SUMMED) as gateway:
        headers = 'cf-aig-metadata: {"tenantId": "acme"}', "cf-aig-session-id: s-1"
        answer = await (await gateway.http1()).post(CHAT, encoded(body), *headers)
        [made], [row] = [await rows_of(gateway, 1, own=own) for own in (True, False)]
        [(rule, action, _, detail)] = await events(gateway)

    after = heard_body(next(heard for heard in provider.heard if heard.path == CHAT))["messages"]
    assert (answer.status, answer.header("cf-aig-route")) == (200, "shaped; rule=sum")
    assert after[:3] == [
        body["messages"][0],
        {"role": "user", "content": f"{SUMMARY}\n\nThey talked."},
        {"role": "assistant", "content": GO_ON},
    ]
    assert after[3:] == body["messages"][-len(after[3:]) :]
    assert asked[0].header("api-key") == "sk-of-the-gateway"
    assert "Question 1:" in asked[0].body.decode()
    assert (rule, action, detail.endswith("turns summarized")) == ("sum", "summarize", True)
    assert (made["tenant"], made["session_id"], made["target"]) == ("acme", "s-1", "azure")
    assert made["cost_nanousd"] > 0
    assert json.loads(made["notes"]) == [f"made for {row['id']}: shape sum"]
    assert row["prompt_tokens_after"] < row["prompt_tokens_before"]


async def test_as_a_conversation_grows_its_summary_grows_by_small_calls_or_none(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    asked = summarizes(provider, *(f"Summary {n}." for n in range(1, 30)))
    async with open_gateway(SUM, **SUMMED) as gateway:
        client = await gateway.http1()
        for count in range(60, 80):
            await client.post(CHAT, encoded(chat(rounds(count, tokens=5))))

    assert 2 <= len(asked) <= 10
    first, *later = [heard.body.decode() for heard in asked]
    assert "Question 1:" in first
    assert all(f"Summary {n}." in text and "Question 1:" not in text for n, text in enumerate(later, start=1))
    assert all(len(text) < len(first) / 2 for text in later)
    texts = [heard.body.decode() for heard in provider.heard if heard.path == CHAT]
    kept = [two.startswith(one.partition('], "')[0].removesuffix("]}")) for one, two in pairwise(texts)]
    assert sum(kept) == len(texts) - len(asked), "where no call was made, the beginning is as it was"


async def test_twenty_who_need_the_same_summary_at_once_make_one_call(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    asked = summarizes(provider, "They talked.")
    async with open_gateway(SUM, **SUMMED) as gateway:
        client = await gateway.http2()
        calls = [await client.begin(CHAT, encoded(chat(rounds(9)))) for _ in range(20)]
        given: list[Answer] = [await call.end() for call in calls]

    assert ({answer.status for answer in given}, len(asked)) == ({200}, 1)
    assert len({heard.body for heard in provider.heard if heard.path == CHAT}) == 1


async def test_a_summary_outlives_a_reload(open_gateway: OpenGateway, provider: Provider, ca_file: Any) -> None:
    provider.says(CHAT, ANSWER)
    asked = summarizes(provider, "They talked.")
    async with open_gateway(SUM, **SUMMED) as gateway:
        client = await gateway.http1()
        await client.post(CHAT, encoded(chat(rounds(9))))
        edited = SUM.replace("name: sum", "name: other")
        gateway.chain.take(policy_for(provider.port, ca_file, SUMMED["hosts"], edited, env=SUMMED["env"]))
        answer = await client.post(CHAT, encoded(chat(rounds(9))))

    assert (answer.header("cf-aig-route"), len(asked)) == ("shaped; rule=other", 1)


FAULTS = {
    "fails": answers(b'{"error":{"message":"no"}}', "500 No"),
    "has nothing to say": answers(ANSWER.replace(b'"hello"', b'""')),
    "answers no JSON": answers(b"<html>"),
}


@pytest.mark.parametrize("script", FAULTS.values(), ids=FAULTS)
async def test_where_the_target_gives_no_summary_the_request_goes_on_as_it_came(
    open_gateway: OpenGateway, provider: Provider, script: Any
) -> None:
    provider.says(CHAT, ANSWER)
    provider.on(AZURE_PATH, script)
    async with open_gateway(SUM, **SUMMED) as gateway:
        client = await gateway.http1()
        given = [await client.post(CHAT, encoded(chat(rounds(9)))) for _ in range(2)]
        rows = await rows_of(gateway, 2, own=False)

    sent = [heard.body for heard in provider.heard if heard.path == CHAT]
    assert ([answer.status for answer in given], sent) == ([200, 200], [encoded(chat(rounds(9)))] * 2)
    assert len(provider.heard) == 3, "it rests after the first"
    assert [json.loads(row["notes"]) for row in rows] == [["shape sum: left alone: azure gave no summary"]] * 2


async def test_a_client_that_leaves_meanwhile_ends_the_call_that_was_made_for_it(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    provider.on(AZURE_PATH, is_silent)
    async with open_gateway(SUM, **SUMMED) as gateway:
        client = await gateway.http1()
        await client.begin(CHAT, encoded(chat(rounds(9))))
        await asyncio.wait_for(provider.asked.wait(), 10)
        client.abort()
        await asyncio.wait_for(provider.left.wait(), 10)
        rows = await gateway.rows(1)

    assert len(rows) == 2
    assert {row["terminal"] for row in rows} == {"client_abort"}
    assert [heard.path for heard in provider.heard] == [AZURE_PATH]


async def test_the_call_for_a_summary_is_tried_again_as_any_other_is(
    open_gateway: OpenGateway, provider: Provider
) -> None:
    provider.says(CHAT, ANSWER)
    good = answers(ANSWER.replace(b'"hello"', b'"They talked."'))
    provider.on(AZURE_PATH, in_turn(answers(b"{}", "503 Busy"), good))
    async with open_gateway(f"{SUM}\nretry: {{attempts: 2, delay: 1 ms}}", **SUMMED) as gateway:
        answer = await (await gateway.http1()).post(CHAT, encoded(chat(rounds(9))))

    assert answer.header("cf-aig-route") == "shaped; rule=sum"


# -- what is left alone -----------------------------------------------------------------------------------------------


async def test_signed_thinking_goes_out_byte_for_byte(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(MESSAGES, CLAUDE_ANSWER)
    body = messages(rounds(9))
    body["messages"][1]["content"].insert(0, {"type": "thinking", "thinking": "hm", "signature": "EqQB"})
    async with open_gateway(KEEP) as gateway:
        answer = await (await gateway.http1(CLAUDE)).post(MESSAGES, encoded(body))
        row = await gateway.row()

    assert (provider.heard[0].body, answer.header("cf-aig-route")) == (encoded(body), None)
    assert json.loads(row["notes"]) == ["shape short: left alone: it carries signed thinking of its model"]


async def test_a_request_to_the_universal_endpoint_is_left_alone(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    element = {"provider": "openai", "endpoint": "chat/completions", "headers": {}, "query": chat(rounds(9))}
    async with open_gateway(KEEP) as gateway:
        answer = await (await gateway.plain()).post("/v1/account/gateway", encoded([element]))  # type: ignore[arg-type]
        row = await gateway.row()

    assert (answer.status, heard_body(provider.heard[0])) == (200, chat(rounds(9)))
    assert "shape short: left alone: it brings its own list of places" in json.loads(row["notes"])


async def test_a_shadow_changes_nothing_and_is_an_event(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    async with open_gateway(KEEP.replace("name: short", "name: short, shadow: true")) as gateway:
        await (await gateway.http1()).post(CHAT, encoded(chat(rounds(9))))
        told = await events(gateway)

    assert provider.heard[0].body == encoded(chat(rounds(9)))
    assert told == [("short", "keep_last", 1, "would be: 10 turns dropped")]


async def test_hosts_of_the_policys_own_are_shaped_too(open_gateway: OpenGateway, provider: Provider) -> None:
    provider.says(CHAT, ANSWER)
    policy = f'{KEEP}\nproviders: {{corp: {{hosts: ["llm.corp.example"], dialect: openai}}}}'
    async with open_gateway(policy, hosts=HOSTS[:10]) as gateway:
        answer = await (await gateway.http1("llm.corp.example")).post(CHAT, encoded(chat(rounds(9))))

    assert answer.header("cf-aig-route") == "shaped; rule=short"
    assert estimate(heard_body(provider.heard[0])) <= 500
