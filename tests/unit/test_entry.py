"""A request that names its provider in the body reaches that provider as if it had been sent there."""

import gzip
import json
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.door_paths import hosts_of
from mitmgate.entry import EVERY_FAILURE, MOST_BYTES, Entry
from mitmgate.exchange import Exchange, Fields, Leg, joined
from mitmgate.identify import Identify
from mitmgate.policy import Policy
from mitmgate.policy.match import compile_match
from mitmgate.policy.values import Choice, ProviderHosts, Route, Target

POLICY = Policy(
    providers=(
        ProviderHosts("corp-llm", ("llm.corp.example",), "openai"),
        ProviderHosts("lab", ("*.lab.example",), "openai"),
    ),
    targets={"eu": Target("eu", "azure-openai", "https://eu.openai.azure.com")},
    route=(
        Route("zone", compile_match({"model": "*"}), zone="eu"),
        Route("all", tries=(Choice("eu"),)),
        Route(
            "faq",
            compile_match({"model": ["dynamic/faq", "fast*", "azure-openai/gpt-5"], "tenant": "acme"}),
            tries=(Choice("eu", "gpt-5"),),
        ),
    ),
)
HOSTS = hosts_of(POLICY)
OUTER: Fields = [
    (b"Host", b"127.0.0.1:8081"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"app/1"),
    (b"authorization", b"Bearer outer-key"),
    (b"cf-aig-max-attempts", b"3"),
]


def entered(kind: str, path: str, body: bytes, *fields: tuple[bytes, bytes], outer: Fields = OUTER) -> Exchange:
    """Return the exchange as it is after ``entry`` and ``identify``."""
    sent = [*outer, *fields]
    x = Exchange("POST", "http", "", 80, path, sent, joined(sent), 0.0, 0.0, door="base-url", entry=kind)  # type: ignore[arg-type]
    x.body = body
    entry, identify = Entry(POLICY, HOSTS), Identify(POLICY, b"secret")
    entry.head(x)
    identify.head(x)
    entry.admit(x)
    if not x.refusal:
        identify.admit(x)
    return x


def compat(
    body: bytes | dict[str, Any], *fields: tuple[bytes, bytes], path: str = "/compat/chat/completions"
) -> Exchange:
    return entered("compat", path, body if isinstance(body, bytes) else json.dumps(body).encode(), *fields)


def universal(elements: Any, *fields: tuple[bytes, bytes], outer: Fields = OUTER) -> Exchange:
    body = elements if isinstance(elements, bytes) else json.dumps(elements).encode()
    return entered("universal", "/", body, *fields, outer=outer)


def url(x: Exchange | Leg) -> str:
    return f"{x.scheme}://{x.host}:{x.port}{x.path}"


def element(**more: Any) -> dict[str, Any]:
    """Return an element that OpenAI could answer, with other members as *more* says; None = without that member."""
    whole = {
        "provider": "openai",
        "endpoint": "chat/completions",
        "headers": {"Authorization": "Bearer sk-1"},
        "query": {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]},
    }
    return {name: value for name, value in (whole | more).items() if value is not None}


def refused(x: Exchange) -> tuple[int, str]:
    """Return status and message of the refusal of *x*, which has to be one."""
    if x.refusal is None:
        pytest.fail(f"it was let through to {url(x)}")
    return x.refusal.status, x.refusal.message


# -- /compat ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path", "leads_to", "asks_for"),
    [
        ("openai/gpt-5", "chat/completions", "https://api.openai.com:443/v1/chat/completions", "gpt-5"),
        ("openai/text-embedding-3-small", "embeddings", "https://api.openai.com:443/v1/embeddings", None),
        ("anthropic/claude-opus-4-5", "chat/completions", "https://api.anthropic.com:443/v1/chat/completions", None),
        (
            "google-ai-studio/gemini-3-pro",
            "chat/completions",
            "https://generativelanguage.googleapis.com:443/v1beta/openai/chat/completions",
            None,
        ),
        (
            "openrouter/meta-llama/llama-4:free",
            "chat/completions",
            "https://openrouter.ai:443/api/v1/chat/completions",
            "meta-llama/llama-4:free",
        ),
        ("perplexity/sonar", "chat/completions", "https://api.perplexity.ai:443/chat/completions", None),
        ("cohere/embed-v4.0", "embeddings", "https://api.cohere.ai:443/compatibility/v1/embeddings", None),
        ("ollama/qwen3", "chat/completions", "http://127.0.0.1:11434/v1/chat/completions", None),
        ("corp-llm/house", "chat/completions?x=1", "https://llm.corp.example:443/v1/chat/completions?x=1", None),
    ],
)
def test_the_model_names_the_provider(model: str, path: str, leads_to: str, asks_for: str | None) -> None:
    x = compat({"model": model, "messages": [], "input": "hi"}, path=f"/compat/{path}")

    name = asks_for or model.partition("/")[2]
    assert x.refusal is None
    assert url(x) == leads_to
    assert x.provider is not None
    assert x.host in x.provider.compat
    assert x.request.model == name
    assert json.loads(x.native_body or b"")["model"] == name
    assert x.operation == ("embeddings" if "embeddings" in path else "chat")


def test_apart_from_the_models_name_the_provider_gets_the_clients_bytes() -> None:
    body = b'{ "temperature":1.0,\n  "model" : "openai/gpt-5", "messages":[{"content":"caf\\u00e9 \xc3\xa9"}]}'

    x = compat(body)

    assert x.native_body == body.replace(b"openai/gpt-5", b"gpt-5")
    assert x.body == body
    assert (b"authorization", b"Bearer outer-key") in x.sent_fields


def test_a_row_counts_the_call_before_its_body_is_here() -> None:
    room = Entry(POLICY, HOSTS)
    found = []
    for kind, path in (
        ("compat", "/compat/chat/completions"),
        ("compat", "/compat/embeddings?x=1"),
        ("universal", "/"),
    ):
        x = Exchange("POST", "http", "", 80, path, [], {}, 0.0, 0.0, entry=kind)  # type: ignore[arg-type]
        room.head(x)
        found.append((x.dialect and x.dialect.name, x.operation))

    assert found == [("openai.chat", "chat"), ("openai.embeddings", "embeddings"), ("openai.chat", "chat")]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"not json", 400, "takes a JSON object"),
        (b"", 400, "takes a JSON object"),
        (b"[" * 200_000, 400, "takes a JSON object"),
        (b'["openai/gpt-5"]', 400, "takes a JSON object"),
        ('{"model": "openai/gpt-5"}'.encode("utf-16"), 400, "not JSON in UTF-8"),
        (b'{"messages": []}', 400, "model is missing"),
        (b'{"model": 5}', 400, "model is no text"),
        (b'{"model": ""}', 400, "model is no text"),
        (b'{"model": "gpt-5"}', 400, """model is 'gpt-5'; it takes "provider/model", such as "openai/gpt-5\""""),
        (b'{"model": "openai/"}', 400, "it takes"),
        (b'{"model": "/gpt-5"}', 400, "it takes"),
        (b'{"model": "nobody/gpt-5"}', 404, "names no provider that is known; /compat has alibaba, anthropic, "),
        (b'{"model": "lab/house"}', 404, "lab has no OpenAI-compatible endpoint"),
        (b'{"model": "aws-bedrock/nova"}', 404, "/compat has alibaba, anthropic, cerebras, cohere, corp-llm, "),
        (b'{"model": "target/eu/gpt-5"}', 404, "names no provider"),
    ],
)
def test_a_body_that_names_no_provider_is_refused_with_the_form_it_takes(body: bytes, status: int, says: str) -> None:
    x = compat(body)

    assert refused(x)[0] == status
    assert says in refused(x)[1]
    assert (x.provider, x.host, x.native_body) == (None, "", None)
    assert x.dialect is dialects.CHAT


def test_a_hostile_model_is_cut_in_the_answer() -> None:
    assert len(refused(compat({"model": "x" * 9000 + "/y"}))[1]) < 1000


@pytest.mark.parametrize("model", ["dynamic/faq", "dynamic/unknown", "fast", "fast/er", "azure-openai/gpt-5"])
def test_a_model_that_a_route_may_know_is_left_to_it(model: str) -> None:
    x = compat({"model": model, "messages": []})

    assert x.refusal is None
    assert (x.provider, x.host, x.native_body, x.legs) == (None, "", None, [])
    assert x.request.model == model
    assert x.operation == "chat"


def test_a_compressed_body_is_read_and_sent_on_plain() -> None:
    packed = gzip.compress(b'{"model": "openai/gpt-5"}')

    x = compat(packed, (b"content-encoding", b"gzip"))

    assert x.native_body == b'{"model": "gpt-5"}'
    assert x.request.model == "gpt-5"
    assert not any(name == b"content-encoding" for name, _ in x.sent_fields)


@pytest.mark.parametrize(
    ("body", "coding", "status", "says"),
    [
        (b"{}", b"lzma", 400, "content-encoding 'lzma' is not known"),
        (b"{}", b"gzip", 400, "could not be read because"),
        (gzip.compress(b" " * (MOST_BYTES + 1), compresslevel=0), b"gzip", 413, "32 MiB"),
    ],
)
def test_a_body_that_cannot_be_inflated_is_refused(body: bytes, coding: bytes, status: int, says: str) -> None:
    found, message = refused(compat(body, (b"content-encoding", coding)))

    assert found == status
    assert says in message


def test_a_body_too_large_to_be_read_is_refused() -> None:
    assert refused(compat(b" " * (MOST_BYTES + 1)))[0] == 413


def test_a_request_that_names_its_provider_in_the_path_is_left_alone() -> None:
    x = Exchange("POST", "https", "api.openai.com", 443, "/v1/chat/completions", [], {}, 0.0, 0.0)
    x.body = b'{"model": "anthropic/claude"}'
    room = Entry(POLICY, HOSTS)

    room.head(x)
    room.admit(x)

    assert (x.host, x.native_body, x.refusal, x.dialect) == ("api.openai.com", None, None, None)


# -- the universal endpoint -------------------------------------------------------------------------------------------

CLAUDE = element(
    provider="anthropic",
    endpoint="v1/messages",
    headers={"x-api-key": "ak-2", "anthropic-version": "2023-06-01"},
    query={"model": "claude-opus-4-5", "max_tokens": 9, "stream": True, "messages": []},
)


def test_each_element_is_a_leg_in_order() -> None:
    azure = element(provider="azure-openai", endpoint="/res/dep/chat/completions?api-version=1")
    gemini = element(
        provider="google-ai-studio", endpoint="v1beta/models/gemini-3:generateContent", query={"contents": []}
    )

    x = universal([element(), CLAUDE, azure, gemini])

    assert [url(leg) for leg in x.legs] == [
        "https://api.openai.com:443/v1/chat/completions",
        "https://api.anthropic.com:443/v1/messages",
        "https://res.openai.azure.com:443/openai/deployments/dep/chat/completions?api-version=1",
        "https://generativelanguage.googleapis.com:443/v1beta/models/gemini-3:generateContent",
    ]
    assert [leg.target for leg in x.legs] == ["openai", "anthropic", "azure-openai", "google-ai-studio"]
    assert [leg.dialect and leg.dialect.name for leg in x.legs] == [
        "openai.chat",
        "anthropic.messages",
        "openai.chat",
        "gemini.generate",
    ]
    assert [leg.model for leg in x.legs] == ["gpt-5", "claude-opus-4-5", "gpt-5", "gemini-3"]
    assert [leg.request.stream for leg in x.legs] == [False, True, False, False]
    assert (x.fall_back_on, x.route_rule) == (EVERY_FAILURE, "universal")


def test_rules_see_the_first_element() -> None:
    x = universal([CLAUDE, element()])

    assert (x.provider and x.provider.slug, url(x)) == ("anthropic", "https://api.anthropic.com:443/v1/messages")
    assert (x.dialect, x.operation) == (dialects.MESSAGES, "chat")
    assert (x.request.model, x.request.stream) == ("claude-opus-4-5", True)
    assert x.json == CLAUDE["query"]


def test_a_body_is_sent_in_the_clients_own_bytes() -> None:
    query = b'{ "model":"gpt-5",\n "temperature" : 1.0, "messages":[{"role":"user","content":"caf\\u00e9 \xc3\xa9"}] }'

    x = universal(b'[ {"provider":"openai","endpoint":"chat/completions", "query" : %b , "headers":{}} ]' % query)

    assert x.legs[0].body == query
    assert x.native_body == query


def test_a_place_gets_its_own_headers_and_no_others_credentials() -> None:
    x = universal([element(), CLAUDE])

    assert x.legs[0].fields == [
        (b"host", b"api.openai.com"),
        (b"user-agent", b"app/1"),
        (b"content-type", b"application/json"),
        (b"Authorization", b"Bearer sk-1"),
    ]
    assert x.legs[1].fields == [
        (b"host", b"api.anthropic.com"),
        (b"user-agent", b"app/1"),
        (b"content-type", b"application/json"),
        (b"x-api-key", b"ak-2"),
        (b"anthropic-version", b"2023-06-01"),
    ]
    assert (b"authorization", b"Bearer outer-key") in x.sent_fields


def test_what_belongs_to_the_message_or_to_the_gateway_does_not_travel_on() -> None:
    headers = {
        "Host": "evil.example",
        "Content-Length": 3,
        "Transfer-Encoding": "chunked",
        "Content-Encoding": "gzip",
        "Connection": "x-mine",
        "x-mine": "1",
        "cf-aig-authorization": "Bearer gateway-key",
        "cf-aig-what": "ever",
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": "element/2",
        "x-absent": None,
        "x-number": 7,
    }

    x = universal([element(headers=headers)])

    assert x.legs[0].fields == [
        (b"host", b"api.openai.com"),
        (b"Content-Type", b"application/json; charset=utf-8"),
        (b"User-Agent", b"element/2"),
        (b"x-number", b"7"),
    ]
    assert "authorization" not in x.controls


@pytest.mark.parametrize(
    ("headers", "sent"),
    [(None, b"Bearer older"), ({}, b"Bearer older"), ({"Authorization": "Bearer new"}, b"Bearer new")],
)
def test_the_older_form_of_the_credential_is_taken_where_there_is_no_newer(headers: Any, sent: bytes) -> None:
    x = universal([element(headers=headers, authorization="Bearer older")])

    assert [value for name, value in x.legs[0].fields if name.lower() == b"authorization"] == [sent]


def test_callers_are_told_apart_by_the_first_elements_key_where_the_request_has_none() -> None:
    bare = [field for field in OUTER if field[0] != b"authorization"]
    one, two = element(), element(headers={"Authorization": "Bearer sk-2"})

    hashes = [universal([who], outer=bare).auth for who in (one, two, one)]

    assert hashes[0] == hashes[2]
    assert len({*hashes, None}) == 3
    assert universal([one]).auth == universal([two]).auth not in hashes


def test_an_element_has_terms_of_its_own() -> None:
    config = {"requestTimeout": 1500, "maxAttempts": 2, "retryDelay": "250", "backoff": "linear"}
    steered = element(headers={"cf-aig-max-attempts": 4, "cf-aig-request-timeout": "20"}, config=config)

    x = universal([element(), element(config=config), steered])

    terms = [(leg.first_byte_s, leg.attempts, leg.delay_s, leg.backoff) for leg in x.legs]
    assert terms == [(None, None, None, None), (1.5, 2, 0.25, "linear"), (0.02, 4, 0.25, "linear")]
    assert x.controls == {"max-attempts": 3}


def test_the_cache_hears_the_first_element_before_the_request_and_no_other() -> None:
    first = element(config={"cacheTtl": 60, "skipCache": True}, headers={"cf-aig-cache-key": "k"})
    other = element(config={"cacheTtl": 0}, headers={"cf-aig-metadata": {"tenantId": "other"}})

    x = universal([first, other], (b"cf-aig-cache-ttl", b"3600"), (b"cf-aig-metadata", b'{"tenantId": "acme"}'))

    assert x.controls == {
        "cache-ttl": 60,
        "skip-cache": True,
        "cache-key": "k",
        "metadata": {"tenantId": "acme"},
        "max-attempts": 3,
    }
    assert x.tenant == "acme"


def test_an_only_element_is_the_whole_request() -> None:
    headers = {"cf-aig-metadata": {"tenantId": "acme"}, "cf-aig-custom-cost": {"per_token_in": 1}}

    alone, first = universal([element(headers=headers)]), universal([element(headers=headers), element()])

    assert alone.tenant == first.tenant == "acme"
    assert "custom-cost" in alone.controls
    assert "custom-cost" not in first.controls


def test_an_element_may_go_by_compat() -> None:
    query = {"model": "groq/llama-4", "messages": []}

    x = universal([element(provider="compat", endpoint="v1/chat/completions?x=1", query=query)])

    assert url(x) == "https://api.groq.com:443/openai/v1/chat/completions?x=1"
    assert x.legs[0].body == x.native_body == b'{"model": "llama-4", "messages": []}'
    assert (x.legs[0].model, x.request.model, x.legs[0].target) == ("llama-4", "llama-4", "groq")


def test_a_dynamic_route_as_the_only_element_is_left_to_route() -> None:
    query = {"model": "dynamic/faq", "messages": []}

    x = universal([element(provider="compat", query=query, config={"maxAttempts": 5})])

    assert x.refusal is None
    assert (x.provider, x.host, x.path, x.legs) == (None, "", "/compat/chat/completions", [])
    assert x.request.model == "dynamic/faq"
    assert x.controls["max-attempts"] == 5
    assert (b"Authorization", b"Bearer sk-1") in x.sent_fields
    assert (b"authorization", b"Bearer outer-key") not in x.sent_fields


def test_a_dynamic_route_for_embeddings_answers_in_their_wire() -> None:
    x = universal([element(provider="compat", endpoint="embeddings", query={"model": "dynamic/faq", "input": "hi"})])

    assert (x.dialect, x.operation, x.path) == (dialects.EMBEDDINGS, "embeddings", "/compat/embeddings")


def test_a_call_that_no_dialect_knows_still_counts() -> None:
    x = universal([element(provider="huggingface", endpoint="org/model", query={"inputs": "hi"})])

    assert x.legs[0].dialect is dialects.GENERIC
    assert x.dialect is dialects.GENERIC


@pytest.mark.parametrize(("value", "left"), [(b"none", 1), (None, 2)])
def test_fallback_none_leaves_the_first_element(value: bytes | None, left: int) -> None:
    fields = [(b"cf-aig-fallback", value)] if value else []

    assert len(universal([element(), CLAUDE], *fields).legs) == left


@pytest.mark.parametrize(
    ("elements", "status", "says"),
    [
        (b"not json", 400, "takes a JSON array"),
        (b'{"provider": "openai"}', 400, "takes a JSON array"),
        (b"[" * 200_000, 400, "takes a JSON array"),
        ([], 400, "1 to 20 elements, not 0"),
        ([element()] * 21, 400, "1 to 20 elements, not 21"),
        ([element(), 3], 400, "element 2 of 2: it takes an object"),
        ([element(provider=None)], 400, "element 1 of 1: provider is missing"),
        ([element(provider=["openai"])], 400, 'provider is ["openai"]; it takes text'),
        ([element(), element(provider="nobody")], 404, "element 2 of 2: no provider 'nobody'; there are alibaba, "),
        ([element(provider="target/eu")], 404, "no provider 'target/eu'"),
        ([element(provider="healthz")], 404, "no provider 'healthz'"),
        ([element(endpoint=None)], 400, "endpoint is missing"),
        ([element(endpoint="chat completions")], 400, "percent-encoded"),
        ([element(endpoint="x HTTP/1.1\r\nx-evil: 1")], 400, "percent-encoded"),
        ([element(endpoint="é")], 400, "percent-encoded"),
        ([element(endpoint="x#y")], 404, "%23"),
        ([element(provider="azure-openai", endpoint="res")], 404, "needs {resource}/{deployment}"),
        ([element(provider="azure-openai", endpoint="evil.example:444/d/chat")], 404, "is no address"),
        ([element(provider="aws-bedrock", endpoint="s3/us-east-1/bucket")], 404, "is no host of aws-bedrock"),
        ([element(query=None)], 400, "query is missing"),
        ([element(headers=["x"])], 400, 'headers is ["x"]; it takes an object'),
        ([element(headers={"x y": "1"})], 400, "'x y' cannot be the name of a header"),
        ([element(headers={"x-a": "1\r\nx-evil: 1"})], 400, "header x-a holds a character"),
        ([element(headers={"x-a": "\udcff"})], 400, "header x-a holds a character"),
        (
            [element(), element(headers={"cf-aig-cache-ttl": "soon"})],
            400,
            "element 2 of 2: The request header cf-aig-ca",
        ),
        ([element(config=3)], 400, "config is 3; it takes an object"),
        ([element(config={"maxAttempts": 6})], 400, "config.maxAttempts is 6; it takes a whole number from 1 to 5"),
        ([element(), element(config={"maxAttempts": True})], 400, "element 2 of 2: config.maxAttempts is true"),
        ([element(config={"retryDelay": 5001})], 400, "config.retryDelay is 5001"),
        ([element(config={"requestTimeout": 1.5})], 400, "config.requestTimeout is 1.5"),
        ([element(config={"backoff": "quadratic"})], 400, "constant, linear or exponential"),
        ([element(config={"cacheTtl": -1})], 400, "config.cacheTtl is -1"),
        ([element(config={"skipCache": "yes"})], 400, "true or false"),
        ([element(provider="compat", query={"model": "gpt-5"})], 400, 'it takes "provider/model"'),
        ([element(provider="compat", query=[])], 400, "takes a JSON object"),
        ([element(provider="compat", endpoint="responses")], 404, "nothing else"),
        ([element(provider="compat", query={"model": "dynamic/faq"}), element()], 400, "send it as the only element"),
    ],
)
def test_an_element_that_is_wrong_is_named_with_its_place(elements: Any, status: int, says: str) -> None:
    x = universal(elements)

    assert refused(x)[0] == status
    assert says in refused(x)[1]
    assert (x.legs, x.host) == ([], "")


def test_targets_cannot_be_the_order_where_the_elements_are() -> None:
    status, message = refused(universal([element()], (b"cf-aig-fallback", b"eu")))

    assert status == 400
    assert "cf-aig-fallback" in message
