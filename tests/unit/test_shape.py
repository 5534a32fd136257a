"""The room changes what it understands and may change; all else goes on as it came, and the row says why."""

import gzip
import json
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.clock import ManualClock
from mitmgate.exchange import Event, Exchange, Leg
from mitmgate.policy import loads
from mitmgate.policy.values import Choice
from mitmgate.providers import Hosts
from mitmgate.shape import Shape
from mitmgate.shape_summary import Summaries
from support.talks import APIS, CHAT, COHERE, GEMINI, INVOKE, MESSAGES, RESPONSES, Api, Body, Round, prose, rounds

TARGETS = """
targets:
  small: {provider: openai, base_url: "https://api.openai.com"}
  azure: {provider: azure-openai, base_url: "https://my.openai.azure.com", deployments: {gpt-5-mini: mini, o3: deep}}
"""


class Target:
    """What answers the calls that the gateway makes itself."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.asked: list[tuple[str, str, Any, str]] = []

    async def __call__(self, _x: Exchange, target: str, path: str, body: bytes, why: str) -> tuple[int, bytes]:
        self.asked.append((target, path, json.loads(body), why))
        said = {"role": "assistant", "content": "They talked."}
        return self.status, json.dumps({"choices": [{"message": said}]}).encode()


async def shaped(x: Exchange, policy: str, target: Target | None = None) -> Exchange:
    """Return *x* as the room leaves it. *policy* is the section, of one line."""
    loaded = loads(f"shape: {policy}\n{TARGETS}", "policy.yaml", {})
    room = Shape(loaded, target or Target(), Summaries(ManualClock()))
    if (more := room.admit(x)) is not None:
        await more
    return x


def call(api: Api, body: Body, path: str = "", coding: str = "", **headers: str) -> Exchange:
    """Return a request as it stands before the room."""
    host, _, port = api.host.partition(":")
    path = path or api.path
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if coding:
        named["content-encoding"] = coding
    fields = [(name.encode(), value.encode()) for name, value in named.items()]
    x = Exchange("POST", "https", host, int(port or 443), path, fields, named, 0.0, 1_700_000_000.0)
    x.provider = Hosts().find(host, x.port)
    x.dialect = dialects.find(x.provider, "POST", path)
    assert x.dialect is not None
    x.operation, x.json, x.sent_fields = x.dialect.operation, body, fields
    plain = json.dumps(body).encode()
    x.body = gzip.compress(plain) if coding == "gzip" else plain
    x.request = x.dialect.read_request(path, body)
    return x


def sent(x: Exchange) -> Body:
    body: Body = json.loads(x.asked_body or b"")
    return body


KEEP = "[{name: short, then: {keep_last: 500}}]"
BOUND = "[{name: brief, then: {max_output_tokens: 100}}]"
MARK = "[{name: mark, then: mark_cacheable}]"
DEDUPE = "[{name: once, then: dedupe}]"
SUM = "[{name: sum, then: {summarize: {keep_last: 500, with: small, model: gpt-4o-mini}}}]"

LONG = rounds(9)
REPEATED = [Round(n, says=prose(200), answered=n < 3) for n in range(1, 4)]


# -- what is changed, and who is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS, ids=str)
async def test_a_long_prompt_is_cut_and_the_row_and_the_client_are_told(api: Api) -> None:
    before = call(api, api.write(LONG)).request.input_tokens_estimate

    x = await shaped(call(api, api.write(LONG)), KEEP)

    after = x.request.input_tokens_estimate
    assert x.prompt_tokens == (before, after)
    assert after <= 500 < before
    dropped = len(api.write(LONG)[api.turns]) - len(sent(x)[api.turns])
    [event] = x.events
    assert (event.room, event.rule, event.action, event.shadow) == ("shape", "short", "keep_last", False)
    assert event.detail == f"{before:,} -> {after:,} tokens, {dropped} turns dropped"
    assert x.route_notes == ["shaped; rule=short"]
    assert (x.notes, x.json) == ([], sent(x))


CHANGES: dict[str, tuple[str, Body, str, str, bool]] = {
    "bounded": (BOUND, MESSAGES.write(LONG), "max_output_tokens", "max_tokens 1,000 -> 100", False),
    "marked": (MARK, MESSAGES.write(LONG), "mark_cacheable", "marked the system prompt, turn 16", False),
    "said once": (DEDUPE, MESSAGES.write(REPEATED), "dedupe", "1 repeated block", True),
    "summarized": (SUM, MESSAGES.write(LONG), "summarize", "10 turns summarized", True),
}


@pytest.mark.parametrize(("policy", "body", "action", "detail", "shorter"), CHANGES.values(), ids=CHANGES)
async def test_each_change_has_its_event(policy: str, body: Body, action: str, detail: str, shorter: bool) -> None:
    x = await shaped(call(MESSAGES, body), policy)

    [event] = x.events
    assert (event.action, (event.detail or "").endswith(detail)) == (action, True), event.detail
    assert (x.prompt_tokens is not None) is shorter
    assert x.native_body is not None
    assert x.json == sent(x) != body


async def test_the_first_rule_that_matches_acts_and_no_other() -> None:
    none = "{name: none, match: {model: x}, then: dedupe}"
    a = "{name: a, match: {stream: false}, then: {max_output_tokens: 9}}"
    policy = f"[{none}, {a}, {{name: b, then: dedupe}}]"

    x = await shaped(call(CHAT, CHAT.write(REPEATED)), policy)

    assert [event.rule for event in x.events] == ["a"]


UNTOUCHED: dict[str, tuple[str, Body]] = {
    "short already": (KEEP, CHAT.write(rounds(2))),
    "bounded already": (BOUND, CHAT.write(LONG, max_tokens=100)),
    "nothing stands twice": (DEDUPE, CHAT.write(LONG)),
    "short enough for its rounds": (SUM, CHAT.write(rounds(2))),
    "no rule matches": ("[{name: a, match: {model: x}, then: dedupe}]", CHAT.write(REPEATED)),
    "no rules": ("[]", CHAT.write(REPEATED)),
}


@pytest.mark.parametrize(("policy", "body"), UNTOUCHED.values(), ids=UNTOUCHED)
async def test_where_there_is_nothing_to_do_nothing_is_said(policy: str, body: Body) -> None:
    x = await shaped(call(CHAT, body), policy)

    assert (x.native_body, x.events, x.notes, x.route_notes, x.prompt_tokens) == (None, [], [], [], None)


async def test_what_guards_changed_before_is_what_is_changed_on() -> None:
    x = call(CHAT, CHAT.write(LONG))
    masked = (x.body or b"").replace(b"Question 9", b"[secret]")
    x.rewrite(masked, json.loads(masked))

    await shaped(x, KEEP)

    assert "[secret]" in sent(x)["messages"][-1]["content"]


async def test_a_compressed_body_goes_on_plain_once_it_is_changed() -> None:
    x = await shaped(call(CHAT, CHAT.write(LONG), coding="gzip", content_type="application/json"), KEEP)

    assert len(sent(x)["messages"]) < len(CHAT.write(LONG)["messages"])
    assert [name for name, _ in x.sent_fields] == [b"content-type"]


async def test_a_body_in_another_encoding_is_changed_all_the_same() -> None:
    x = call(CHAT, CHAT.write(LONG))
    x.body = (x.body or b"").decode().encode("utf-16")

    assert len(sent(await shaped(x, KEEP))["messages"]) < len(CHAT.write(LONG)["messages"])


NEWER = {
    "a model that reasons": ("gpt-5", None, "max_completion_tokens"),
    "one that does not": ("gpt-4o", None, "max_tokens"),
    "a deployment of one that does": ("deep", None, "max_completion_tokens"),
    "one that a budget sends to another": ("gpt-4o", Choice(model="o3-mini"), "max_completion_tokens"),
}


@pytest.mark.parametrize(("model", "downgrade", "member"), NEWER.values(), ids=NEWER)
async def test_the_bound_is_written_as_the_model_takes_it(model: str, downgrade: Choice | None, member: str) -> None:
    x = call(CHAT, CHAT.write(LONG, model=model))
    x.downgrade = downgrade

    assert sent(await shaped(x, BOUND))[member] == 100


# -- what is left alone -----------------------------------------------------------------------------------------------

SIGNED = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261124/us-east-1/bedrock/aws4_request, Signature=0"
THINKING = {"type": "thinking", "thinking": "hm", "signature": "EqQB"}
SEALED = "it carries signed thinking of its model"


def thinking(api: Api, *parts: Body) -> Body:
    """Return a long conversation in which the model thought."""
    body = api.write(LONG)
    turns = body[api.turns]
    if api is RESPONSES:
        turns[1:1] = parts
    else:
        name = "parts" if api is GEMINI else "content"
        turns[1][name] = [*parts, *turns[1][name]]
    return body


ALONE: dict[str, tuple[Api, Body, str]] = {
    "Claude's thinking": (MESSAGES, thinking(MESSAGES, THINKING), SEALED),
    "Claude's sealed thinking": (MESSAGES, thinking(MESSAGES, {"type": "redacted_thinking", "data": "Em"}), SEALED),
    "Gemini's thinking": (GEMINI, thinking(GEMINI, {"text": "", "thoughtSignature": "CuQB"}), SEALED),
    "Gemini's, in an envelope": (
        GEMINI,
        {"request": thinking(GEMINI, {"text": "", "thoughtSignature": "CuQB"})},
        SEALED,
    ),
    "encrypted reasoning": (
        RESPONSES,
        thinking(RESPONSES, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}),
        SEALED,
    ),
    "a thread at the provider": (
        RESPONSES,
        RESPONSES.write(LONG, previous_response_id="resp_1"),
        "its previous_response_id lies at its provider",
    ),
}


@pytest.mark.parametrize("policy", [KEEP, DEDUPE, MARK, SUM])
@pytest.mark.parametrize(("api", "body", "why"), ALONE.values(), ids=ALONE)
async def test_what_only_its_own_model_can_read_is_left_alone(policy: str, api: Api, body: Body, why: str) -> None:
    x = await shaped(call(api, body), policy)

    assert x.native_body is None
    assert [note.partition(": left alone: ")[2] for note in x.notes] == [why]


@pytest.mark.parametrize(("api", "body", "why"), ALONE.values(), ids=ALONE)
async def test_its_answer_can_be_bounded_all_the_same(api: Api, body: Body, why: str) -> None:
    x = await shaped(call(api, body), BOUND)

    assert sent(x).get("request", sent(x))[api.turns] == body.get("request", body)[api.turns], why
    assert [event.action for event in x.events] == ["max_output_tokens"]


@pytest.mark.parametrize("policy", [KEEP, BOUND, DEDUPE, MARK, SUM])
async def test_a_signed_body_is_left_alone_by_every_rule(policy: str) -> None:
    x = await shaped(call(INVOKE, INVOKE.write(LONG), authorization=SIGNED), policy)

    assert (x.native_body, x.events) == (None, [])
    assert [note.partition(": left alone: ")[2] for note in x.notes] == ["its body is signed"]


async def test_an_upload_that_still_arrives_is_left_alone() -> None:
    x = call(CHAT, CHAT.write(LONG))
    x.body, x.json, x.streamed_upload = None, None, True

    assert (await shaped(x, KEEP)).notes == ["shape short: left alone: its body is still on its way"]


async def test_a_request_with_its_own_list_of_places_is_left_alone() -> None:
    x = call(CHAT, CHAT.write(LONG))
    x.legs = [Leg("openai", x.provider, "https", x.host, 443, x.path, [])]

    assert (await shaped(x, KEEP)).notes == ["shape short: left alone: it brings its own list of places"]


UNREAD: dict[str, tuple[Api, str, Any, str]] = {
    "no JSON": (CHAT, "", None, "its body is no JSON object that was read"),
    "a list": (CHAT, "", [1], "its body is no JSON object that was read"),
    "an API that nobody knows": (COHERE, "/v1/chat", {"message": "hi"}, "its API is not one whose turns are known"),
}


@pytest.mark.parametrize(("api", "path", "body", "why"), UNREAD.values(), ids=UNREAD)
async def test_what_is_not_understood_is_left_alone(api: Api, path: str, body: Any, why: str) -> None:
    x = await shaped(call(api, body, path), BOUND)

    assert (x.refusal, x.native_body, x.notes) == (None, None, [f"shape brief: left alone: {why}"])


async def test_a_body_that_says_its_turns_twice_is_left_alone() -> None:
    x = call(CHAT, CHAT.write(LONG))
    x.body = (
        (x.body or b"").removesuffix(b"}")
        + b', "messages": '
        + json.dumps(CHAT.write(LONG)["messages"]).encode()
        + b"}"
    )

    await shaped(x, KEEP)

    assert (x.native_body, x.events, x.prompt_tokens) == (None, [], None)
    assert "stands twice" in x.notes[0]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/images/generations"])
async def test_what_has_no_conversation_is_not_even_looked_at(path: str) -> None:
    x = await shaped(call(CHAT, {"model": "m", "input": "hi"}, path), KEEP)

    assert (x.native_body, x.notes) == (None, [])


# -- summaries --------------------------------------------------------------------------------------------------------

MODELS: dict[str, tuple[str, str, str]] = {
    "the rule's own": ("with: small, model: gpt-4o-mini", "gpt-4o", "gpt-4o-mini"),
    "the request's": ("with: small", "gpt-4o", "gpt-4o"),
    "the request's, which the target has": ("with: azure", "o3", "o3"),
    "the model of the request's deployment": ("with: azure", "deep", "o3"),
    "else the first that the target has": ("with: azure", "claude-opus-4", "gpt-5-mini"),
}


@pytest.mark.parametrize(("said", "asked", "model"), MODELS.values(), ids=MODELS)
async def test_a_summary_is_made_by_a_model_that_its_target_has(said: str, asked: str, model: str) -> None:
    target = Target()
    policy = f"[{{name: sum, then: {{summarize: {{keep_last: 500, {said}}}}}}}]"

    await shaped(call(CHAT, CHAT.write(LONG, model=asked)), policy, target)

    [(_, path, body, why)] = target.asked
    assert (path, body["model"], why) == ("/chat/completions", model, "shape sum")
    assert ("max_tokens" in body) is model.startswith("gpt-4o")


@pytest.mark.parametrize("status", [0, 429, 500])
async def test_where_there_is_no_summary_the_request_goes_on_as_it_came(status: int) -> None:
    x = await shaped(call(CHAT, CHAT.write(LONG)), SUM, Target(status))

    assert (x.refusal, x.native_body, x.events) == (None, None, [])
    assert x.notes == ["shape sum: left alone: small gave no summary"]


# -- shadows ----------------------------------------------------------------------------------------------------------

SHADOWS: dict[str, tuple[str, str]] = {
    "keep_last": ("{keep_last: 500}", "would be: 10 turns dropped"),
    "max_output_tokens": ("{max_output_tokens: 100}", "would be: max_tokens set to 100"),
    "summarize": ("{summarize: {keep_last: 500, with: small}}", "would be: 10 turns summarized"),
}


@pytest.mark.parametrize(("action", "change"), SHADOWS.items(), ids=SHADOWS)
async def test_a_shadow_says_what_it_would_do_and_does_nothing(action: str, change: tuple[str, str]) -> None:
    then, detail = change
    target = Target()

    x = await shaped(call(CHAT, CHAT.write(LONG)), f"[{{name: try, shadow: true, then: {then}}}]", target)

    assert (x.native_body, x.route_notes, target.asked) == (None, [], [])
    assert x.events == [Event("shape", "try", action, shadow=True, detail=detail)]


async def test_a_shadow_says_why_it_would_leave_a_request_alone() -> None:
    x = await shaped(call(CHAT, CHAT.write(LONG)), "[{name: try, shadow: true, then: mark_cacheable}]")

    assert x.notes == ["shape try: would be left alone: marks are for Anthropic's API alone"]


async def test_behind_a_shadow_the_next_rule_acts() -> None:
    policy = "[{name: try, shadow: true, then: {keep_last: 500}}, {name: act, then: {max_output_tokens: 9}}]"

    x = await shaped(call(CHAT, CHAT.write(LONG)), policy)

    assert [(event.rule, event.shadow) for event in x.events] == [("try", True), ("act", False)]
