"""A request moved to another place is the same request there: path, query, fields and model; and no key goes astray."""

import json
from dataclasses import replace
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate import dialects
from mitmgate.exchange import Exchange, Fields, Leg, joined
from mitmgate.policy.values import Choice, Target
from mitmgate.providers import Hosts, Provider
from mitmgate.rewrite import is_credential, leg_for, own_leg, own_leg_as
from mitmgate.rewrite_body import with_model
from mitmgate.rewrite_path import joined as joined_path

HOSTS = Hosts()
COMPAT = {
    "anthropic": "https://api.anthropic.com/v1",
    "google-ai-studio": "https://generativelanguage.googleapis.com/v1beta/openai",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "perplexity-ai": "https://api.perplexity.ai",
}
KEYS = {"api-key": "the-targets-own"}


def provider(slug: str) -> Provider:
    row = HOSTS.providers[slug]
    return replace(row, compat=COMPAT.get(slug, row.compat))


def target(slug: str, base_url: str, **more: object) -> Target:
    return Target("there", slug, base_url, **more)  # type: ignore[arg-type]


def exchange(url: str, body: bytes = b'{"model": "gpt-5", "messages": []}', *fields: tuple[bytes, bytes]) -> Exchange:
    """Return the exchange as ``route`` meets it."""
    place = urlsplit(url)
    host, port = place.hostname or "", place.port or 443
    path = f"{place.path}?{place.query}" if place.query else place.path
    sent: Fields = [(b"Host", place.netloc.encode()), (b"content-type", b"application/json"), *fields]
    x = Exchange("POST", "https", host, port, path, sent, joined(sent), 0.0, 0.0, provider=HOSTS.find(host, port))
    x.sent_fields, x.body = sent, body
    x.dialect = dialects.find(x.provider, "POST", path)
    try:
        x.json = json.loads(body)
    except ValueError:
        x.json = None
    if x.dialect:
        x.request = x.dialect.read_request(path, x.json)
    return x


def moved(x: Exchange, to: Target, choice: Choice | None = None, source: Target | None = None) -> Leg:
    leg = leg_for(x, to, provider(to.provider), choice or Choice(), source)
    if isinstance(leg, str):
        pytest.fail(leg)
    return leg


def url_of(leg: Leg) -> str:
    port = "" if leg.port == {"https": 443, "http": 80}[leg.scheme] else f":{leg.port}"
    return f"{leg.scheme}://{leg.host}{port}{leg.path}"


# -- paths ------------------------------------------------------------------------------------------------------------

OPENAI = "https://api.openai.com/v1"
AZURE = "https://za.openai.azure.com/openai"
INFERENCE = "https://r.services.ai.azure.com"
EU = "https://eu.openai.azure.com"
STUDIO = "https://generativelanguage.googleapis.com/v1beta"
VERTEX_ZA = "https://za-aiplatform.googleapis.com/v1/projects/p/locations/za/publishers/google"
VERTEX_EU = "https://eu-aiplatform.googleapis.com/v1/projects/p/locations/eu/publishers/google"
BEDROCK = "https://bedrock-runtime.us-east-1.amazonaws.com"
DATED = {"api_version": "2024-10-21"}
NAMED = {"deployments": {"gpt-5": "gpt-5-eu"}}
AT_OPENAI = target("openai", "https://api.openai.com")


@pytest.mark.parametrize(
    ("asked", "base_url", "url"),
    [
        (f"{OPENAI}/chat/completions", "https://eu.api.openai.com", "https://eu.api.openai.com/v1/chat/completions"),
        (f"{OPENAI}/embeddings?a=1", "https://eu.api.openai.com/v1", "https://eu.api.openai.com/v1/embeddings?a=1"),
        (f"{OPENAI}/embeddings", "http://10.0.0.7:8000/base/v1", "http://10.0.0.7:8000/base/v1/embeddings"),
        (f"{OPENAI}/responses", "https://llm.example/openai", "https://llm.example/openai/responses"),
        (f"{OPENAI}/moderations", "https://llm.example/proxy", "https://llm.example/proxy/moderations"),
        ("https://api.deepseek.com/chat/completions", "https://ds.example", "https://ds.example/chat/completions"),
        ("https://api.mistral.ai/v1/fim/completions", "https://m.example", "https://m.example/v1/fim/completions"),
        ("https://api.cohere.com/v2/chat", "https://cohere.example/x", "https://cohere.example/x/v2/chat"),
        ("https://api.anthropic.com/v1/messages?b=1", "https://c.example", "https://c.example/v1/messages?b=1"),
        (f"{STUDIO}/models/g:embedContent", "https://g.example/a", "https://g.example/a/v1beta/models/g:embedContent"),
        (f"{STUDIO[:-4]}/models/g:embedContent", "https://g.example", "https://g.example/v1/models/g:embedContent"),
        (f"{BEDROCK}/model/m%3A0/converse", "https://b.example", "https://b.example/model/m%3A0/converse"),
    ],
)
def test_at_another_host_of_the_same_provider_the_path_stays(asked: str, base_url: str, url: str) -> None:
    x = exchange(asked)

    leg = moved(x, target(x.provider.slug if x.provider else "", base_url))

    assert url_of(leg) == url


@pytest.mark.parametrize(
    ("slug", "base", "below", "path"),
    [
        ("openai", "/base/v1", "/chat/completions", "/v1/chat/completions"),
        ("openai", "/base/v1", "/moderations", "/v1/moderations"),
        ("anthropic", "/claude", "/v1/messages", "/v1/messages"),
        ("google-ai-studio", "/gem", "/v1/models/g:generateContent", "/v1beta/models/g:generateContent"),
        ("cohere", "/x", "/v2/chat", "/v2/chat"),
    ],
)
def test_the_prefix_of_one_target_does_not_travel_to_another(slug: str, base: str, below: str, path: str) -> None:
    x = exchange(f"https://lab.example{base}{below}")
    x.provider = provider(slug)
    x.dialect = dialects.find(x.provider, "POST", x.path)

    leg = moved(x, target(slug, "https://there.example"), source=target(slug, f"https://lab.example{base}"))

    assert leg.path == path


@pytest.mark.parametrize(
    ("slug", "base_url", "url"),
    [
        ("groq", "https://api.groq.com", "https://api.groq.com/openai/v1/chat/completions"),
        ("groq", "https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1/chat/completions"),
        ("mistral", "https://api.mistral.ai", "https://api.mistral.ai/v1/chat/completions"),
        ("perplexity-ai", "https://api.perplexity.ai", "https://api.perplexity.ai/chat/completions"),
        ("ollama", "http://127.0.0.1:11434", "http://127.0.0.1:11434/v1/chat/completions"),
        ("anthropic", "https://api.anthropic.com", "https://api.anthropic.com/v1/chat/completions"),
        ("anthropic", "https://c.example/claude", "https://c.example/claude/v1/chat/completions"),
        ("google-ai-studio", "https://g.example", "https://g.example/v1beta/openai/chat/completions"),
        ("google-ai-studio", f"{STUDIO}/openai", f"{STUDIO}/openai/chat/completions"),
        ("google-vertex-ai", "https://v.example/e/openapi", "https://v.example/e/openapi/chat/completions"),
        ("azure-openai", EU, f"{EU}/openai/v1/chat/completions"),
        ("azure-openai", f"{EU}/openai/v1", f"{EU}/openai/v1/chat/completions"),
    ],
)
def test_openais_chat_goes_wherever_it_is_spoken(slug: str, base_url: str, url: str) -> None:
    leg = moved(exchange(f"{OPENAI}/chat/completions"), target(slug, base_url))

    assert url_of(leg) == url
    assert (leg.target, leg.provider) == ("there", provider(slug))


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("https://api.groq.com/openai/v1/chat/completions", "/v1/chat/completions"),
        ("https://api.perplexity.ai/chat/completions", "/v1/chat/completions"),
        (f"{AZURE}/deployments/d/chat/completions?api-version=2024-06-01&x=1", "/v1/chat/completions?x=1"),
        (f"{AZURE}/v1/responses?api-version=preview", "/v1/responses"),
        (f"{AZURE}/responses?api-version=2025-04-01-preview", "/v1/responses"),
        (f"{INFERENCE}/models/chat/completions?api-version=2024-05-01-preview", "/v1/chat/completions"),
    ],
)
def test_what_others_write_for_openais_wire_becomes_openais_own(asked: str, path: str) -> None:
    assert moved(exchange(asked), AT_OPENAI).path == path


BY_NAME = "/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("op", "base", "more", "path"),
    [
        ("chat/completions", "", DATED, BY_NAME),
        ("chat/completions", "", DATED | NAMED, BY_NAME.replace("gpt-5", "gpt-5-eu")),
        ("chat/completions", "/openai", DATED, BY_NAME),
        ("chat/completions", "/apim", DATED, f"/apim{BY_NAME}"),
        ("chat/completions", "/openai/deployments/one", DATED, BY_NAME.replace("gpt-5", "one")),
        ("chat/completions", "/openai/v1", DATED, "/openai/v1/chat/completions"),
        ("chat/completions", "", NAMED, "/openai/v1/chat/completions"),
        ("chat/completions", "", {"api_version": "preview"}, "/openai/v1/chat/completions?api-version=preview"),
        ("embeddings", "", DATED, BY_NAME.replace("chat/completions", "embeddings")),
        ("images/generations", "", DATED, BY_NAME.replace("chat/completions", "images/generations")),
        ("responses", "", DATED, "/openai/v1/responses"),
    ],
)
def test_azure_is_asked_by_deployment_where_the_target_has_a_version(
    op: str, base: str, more: dict[str, object], path: str
) -> None:
    assert moved(exchange(f"{OPENAI}/{op}"), target("azure-openai", EU + base, **more)).path == path


@pytest.mark.parametrize(
    ("asked", "base", "more", "path"),
    [
        ("/deployments/gpt-5/embeddings?api-version=1", "", {}, "/deployments/gpt-5/embeddings?api-version=1"),
        ("/deployments/gpt%2D5/completions?api-version=1", "", {}, "/deployments/gpt%2D5/completions?api-version=1"),
        ("/deployments/gpt-5/x/y?api-version=1", "", {}, "/deployments/gpt-5/x/y?api-version=1"),
        ("/deployments/gpt-5/x?api-version=1&a=1", "", DATED, "/deployments/gpt-5/x?api-version=2024-10-21&a=1"),
        ("/deployments/gpt-5/x?a=1", "", DATED, "/deployments/gpt-5/x?a=1&api-version=2024-10-21"),
        ("/deployments/gpt-5/x?api-version=1", "", NAMED, "/deployments/gpt-5-eu/x?api-version=1"),
        ("/deployments/gpt-5/completions?api-version=1", "/openai/v1", {}, "/v1/completions"),
        (
            "/deployments/gpt-5/completions?api-version=1",
            "",
            {"api_version": "preview"},
            "/v1/completions?api-version=preview",
        ),
        ("/v1/chat/completions", "", DATED, "/v1/chat/completions"),
        ("/v1/chat/completions?api-version=preview", "", {}, "/v1/chat/completions?api-version=preview"),
        ("/responses?api-version=1", "", DATED, "/responses?api-version=2024-10-21"),
    ],
)
def test_from_azure_to_azure_the_form_stays(asked: str, base: str, more: dict[str, object], path: str) -> None:
    leg = moved(exchange(AZURE + asked), target("azure-openai", EU + base, **more))

    assert leg.path == f"/openai{path}"


@pytest.mark.parametrize(
    ("slug", "base_url", "more", "path"),
    [
        ("azure-openai", EU, DATED, BY_NAME),
        ("azure-openai", EU, {}, "/openai/v1/chat/completions"),
        ("azure-ai-inference", "https://s.example", DATED, "/models/chat/completions?api-version=2024-10-21"),
        ("azure-ai-inference", "https://s.example", {}, "/models/chat/completions?api-version=1"),
    ],
)
def test_azure_ais_models_stand_where_they_are_known(
    slug: str, base_url: str, more: dict[str, object], path: str
) -> None:
    x = exchange(f"{INFERENCE}/models/chat/completions?api-version=1")

    assert moved(x, target(slug, base_url, **more)).path == path


def test_openais_chat_goes_to_azure_ais_models() -> None:
    leg = moved(exchange(f"{OPENAI}/chat/completions"), target("azure-ai-inference", INFERENCE, **DATED))

    assert leg.path == "/models/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("asked", "slug", "base_url", "url"),
    [
        ("https://api.x.ai/v1/messages", "anthropic", "https://c.example", "https://c.example/v1/messages"),
        ("https://api.x.ai/v1/messages", "anthropic", "https://c.example/a/v1", "https://c.example/a/v1/messages"),
        (
            "https://api.x.ai/v1/messages",
            "zai",
            "https://z.example/anthropic",
            "https://z.example/anthropic/v1/messages",
        ),
    ],
)
def test_anthropics_messages_go_where_they_are_spoken(asked: str, slug: str, base_url: str, url: str) -> None:
    assert url_of(moved(exchange(asked), target(slug, base_url))) == url


@pytest.mark.parametrize(
    ("asked", "to", "url"),
    [
        (STUDIO, target("google-ai-studio", "https://g.example"), "https://g.example/v1beta/models/gem"),
        (STUDIO, target("google-ai-studio", "https://g.example/g/v1beta"), "https://g.example/g/v1beta/models/gem"),
        (STUDIO, target("google-vertex-ai", VERTEX_EU), f"{VERTEX_EU}/models/gem"),
        (STUDIO, target("google-vertex-ai", VERTEX_EU, deployments={"gem": "g@1"}), f"{VERTEX_EU}/models/g@1"),
        (VERTEX_ZA, target("google-vertex-ai", VERTEX_EU), f"{VERTEX_EU}/models/gem"),
        (VERTEX_ZA, target("google-ai-studio", "https://g.example"), "https://g.example/v1beta/models/gem"),
        (VERTEX_EU, target("google-vertex-ai", "https://eu-aiplatform.googleapis.com"), f"{VERTEX_EU}/models/gem"),
    ],
)
def test_geminis_models_are_found_at_both_of_googles_doors(asked: str, to: Target, url: str) -> None:
    x = exchange(f"{asked}/models/gem:streamGenerateContent?alt=sse")

    assert url_of(moved(x, to)) == f"{url}:streamGenerateContent?alt=sse"


AT_VERTEX = target("google-vertex-ai", VERTEX_EU)
AT_ANTHROPIC = target("anthropic", "https://c.example")
NO_PROJECT = target("google-vertex-ai", "https://v.example")
NEEDS_PROJECT = "its base_url has to carry /v1/projects/PROJECT/locations/LOCATION/publishers/google"


@pytest.mark.parametrize(
    ("asked", "to", "why"),
    [
        ("https://api.anthropic.com/v1/messages", AT_OPENAI, "openai does not take Anthropic's messages"),
        (f"{STUDIO}/models/g:generateContent", AT_OPENAI, "openai does not take Gemini's generateContent"),
        (f"{STUDIO}/models/g:embedContent", AT_VERTEX, "google-vertex-ai has no embedContent"),
        (f"{STUDIO}/models/g:generateContent", NO_PROJECT, NEEDS_PROJECT),
        (f"{OPENAI}/chat/completions", AT_VERTEX, "google-vertex-ai does not take OpenAI's chat/completions"),
        (f"{OPENAI}/images/edits", AT_ANTHROPIC, "anthropic does not take OpenAI's images/edits"),
        (f"{OPENAI}/moderations", target("groq", "https://g.example"), "groq does not take this /v1/moderations"),
        ("https://api.mistral.ai/v1/fim/completions", AT_OPENAI, "openai does not take this /v1/fim/completions"),
        (f"{AZURE}/deployments/d/x/chat/completions", AT_OPENAI, "x/chat/completions is only to be had at Azure"),
        ("https://api.cohere.com/v2/chat", AT_OPENAI, "openai does not take this /v2/chat"),
    ],
)
def test_a_target_that_speaks_another_wire_says_why_it_is_none(asked: str, to: Target, why: str) -> None:
    assert leg_for(exchange(asked), to, provider(to.provider)) == why


@pytest.mark.parametrize(
    ("base", "path", "whole"),
    [
        ("", "/v1/messages", "/v1/messages"),
        ("/a/v1", "/v1/messages", "/a/v1/messages"),
        ("/openai/v1", "/openai/v1/responses", "/openai/v1/responses"),
        ("/v1beta", "/v1beta/openai/embeddings", "/v1beta/openai/embeddings"),
        ("/v1/a", "/v1/messages", "/v1/a/v1/messages"),
        ("/messages", "/messages", "/messages/messages"),
    ],
)
def test_what_two_paths_share_stands_once(base: str, path: str, whole: str) -> None:
    assert joined_path(base, path) == whole


# -- model and body ---------------------------------------------------------------------------------------------------

SPACED = b'{ "messages":[{"role":"user","content":"\\u00e9 {\\"model\\": 1}"}],\n "model" : "gpt-5" , "n":1.0 }'
ZA = target("azure-openai", "https://za.openai.azure.com", deployments={"gpt-5": "prod-za"})


def test_a_body_whose_model_stays_goes_out_as_it_came() -> None:
    assert moved(exchange(f"{OPENAI}/chat/completions", SPACED), target("groq", "https://api.groq.com")).body is None


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' {\n "model" :\t"a" }\n', b' {\n "model" :\t"new" }\n'),
        (b'{"n":1.0,"x":{"model":"a"},"model":"a","y":[]}', b'{"n":1.0,"x":{"model":"a"},"model":"new","y":[]}'),
        (b'{"model":"a","n":1,"model":"b"}', b'{"model":"new","n":1,"model":"new"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"new"}'),
        (b'{"model":null}', b'{"model":"new"}'),
        (b'{"n":1}', b'{"model":"new","n":1}'),
        (b"{ }", b'{"model":"new" }'),
        (b'\xef\xbb\xbf{"a":"\xed\xa0\x80"}', b'\xef\xbb\xbf{"model":"new","a":"\xed\xa0\x80"}'),
        (b"[1]", None),
        (b'{"model": "a"', None),
        (b'{"a": \xff}', None),
        (b"", None),
    ],
)
def test_a_body_gets_its_model_and_keeps_every_other_byte(body: bytes, changed: bytes | None) -> None:
    assert with_model(body, "new") == changed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", "é"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    body=st.dictionaries(st.sampled_from(["model", "a", "b", '"']), JSON),
    model=st.text(),
    indent=st.none() | st.just(1),
)
def test_whatever_a_body_says_beside_its_model_it_still_says(
    body: dict[str, object], model: str, indent: int | None
) -> None:
    changed = with_model(json.dumps(body, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass"), model)

    assert changed is not None
    assert json.loads(changed) == body | {"model": model}


def test_only_the_model_of_a_body_changes() -> None:
    leg = moved(
        exchange(f"{OPENAI}/chat/completions", SPACED), target("groq", "https://g.example"), Choice(model="llama")
    )

    assert leg.body == SPACED.replace(b'"gpt-5"', b'"llama"')
    assert (leg.model, leg.request.model) == ("llama", "llama")


AT_EU = target("azure-openai", EU, **NAMED)
SAME_NAMES = target("azure-openai", EU)
ALIASED = target("groq", "https://g.example", deployments={"gpt-5": "llama"})


@pytest.mark.parametrize(
    ("asked", "said", "to", "source", "model", "in_path", "in_body"),
    [
        # a deployment is a model again, and then the other region's deployment
        (f"{AZURE}/deployments/prod-za/chat/completions", None, AT_EU, ZA, "gpt-5", "gpt-5-eu", None),
        (f"{AZURE}/deployments/prod-za/chat/completions", None, AT_OPENAI, ZA, "gpt-5", None, "gpt-5"),
        (f"{AZURE}/v1/chat/completions", "prod-za", AT_EU, ZA, "gpt-5", None, "gpt-5-eu"),
        (f"{AZURE}/deployments/prod-za/chat/completions", None, SAME_NAMES, ZA, "gpt-5", "gpt-5", None),
        # without a table the body may know better than the path
        (f"{AZURE}/deployments/prod/chat/completions", "gpt-5", AT_OPENAI, None, "gpt-5", None, "gpt-5"),
        (f"{AZURE}/deployments/prod/chat/completions", "prod", AT_OPENAI, None, "prod", None, "prod"),
        (f"{AZURE}/deployments/prod/chat/completions", None, AT_OPENAI, None, "prod", None, "prod"),
        # two regions with the same names need no table, whatever model the body claims
        (f"{AZURE}/deployments/prod/chat/completions", "gpt-5", SAME_NAMES, None, "gpt-5", "prod", "gpt-5"),
        (f"{AZURE}/deployments/prod/chat/completions", "gpt-5", AT_EU, None, "gpt-5", "gpt-5-eu", "gpt-5"),
        # the newer form has the deployment in the body
        (f"{OPENAI}/responses", "gpt-5", AT_EU, None, "gpt-5", None, "gpt-5-eu"),
        # a target may have names of its own at any provider
        (f"{OPENAI}/chat/completions", "gpt-5", ALIASED, None, "gpt-5", None, "llama"),
    ],
)
def test_a_model_has_the_targets_name(
    asked: str,
    said: str | None,
    to: Target,
    source: Target | None,
    model: str,
    in_path: str | None,
    in_body: str | None,
) -> None:
    body = {"model": said} if said else {}
    x = exchange(f"{asked}?api-version=2024-06-01", json.dumps(body).encode())

    leg = moved(x, to, source=source)

    assert leg.model == model
    assert leg.path.partition("/deployments/")[2].partition("/")[0] == (in_path or "")
    assert json.loads(leg.body or x.body or b"").get("model") == in_body


def test_a_rules_model_is_looked_up_in_the_targets_deployments() -> None:
    x = exchange(f"{AZURE}/deployments/prod/chat/completions?api-version=1")

    mini = Choice(model="gpt-5-mini")

    leg = moved(x, target("azure-openai", EU, deployments={"gpt-5-mini": "mini-eu"}), mini)
    untold = moved(x, SAME_NAMES, mini)

    assert leg.path == "/openai/deployments/mini-eu/chat/completions?api-version=1"
    assert untold.path == "/openai/deployments/gpt-5-mini/chat/completions?api-version=1"
    assert (leg.model, leg.body) == ("gpt-5-mini", None)


def test_azure_by_deployment_needs_a_model() -> None:
    x = exchange(f"{OPENAI}/audio/transcriptions", b"--form--")

    why = leg_for(x, target("azure-openai", EU, **DATED), provider("azure-openai"))

    assert why == "the request names no model, so no deployment can be chosen"


@pytest.mark.parametrize(
    ("body", "fields", "why"),
    [
        (b"--form--", (), "the model stands in a body that is no JSON object, so it cannot be changed"),
        (
            b'{"model": "gpt-5"}',
            ((b"content-encoding", b"gzip"),),
            "the body is compressed, so the model in it cannot be changed",
        ),
    ],
)
def test_a_body_that_cannot_be_changed_says_why(body: bytes, fields: Fields, why: str) -> None:
    x = exchange(f"{OPENAI}/chat/completions", body, *fields)

    assert leg_for(x, target("groq", "https://g.example"), provider("groq"), Choice(model="llama")) == why
    assert own_leg_as(x, Choice(model="llama")) == why


def test_a_place_has_the_times_of_its_choice() -> None:
    leg = moved(
        exchange(f"{OPENAI}/chat/completions"), target("groq", "https://g.example"), Choice(attempts=2, timeout_s=3.0)
    )

    assert (leg.attempts, leg.first_byte_s) == (2, 3.0)


def test_the_requests_own_headers_go_before_the_patience_of_a_choice() -> None:
    x = exchange(f"{OPENAI}/chat/completions")
    x.controls = {"max-attempts": 1, "request-timeout": 500}

    leg = moved(x, target("groq", "https://g.example"), Choice(attempts=2, timeout_s=3.0))

    assert (leg.attempts, leg.first_byte_s) == (None, None)


def test_the_answer_is_read_with_the_habits_of_the_host_that_gives_it() -> None:
    from_mistral = exchange("https://api.mistral.ai/v1/chat/completions")
    to_mistral = exchange(f"{OPENAI}/chat/completions")

    assert moved(from_mistral, target("openai", "https://api.openai.com")).dialect is dialects.CHAT
    assert moved(to_mistral, target("mistral", "https://api.mistral.ai")).dialect is dialects.CHAT_UNASKED


# -- the own host -----------------------------------------------------------------------------------------------------


def test_the_own_leg_is_the_request_as_it_came() -> None:
    x = exchange(f"{OPENAI}/chat/completions?a=1", SPACED, (b"Authorization", b"Bearer sk-1"))

    leg = own_leg(x)

    assert url_of(leg) == f"{OPENAI}/chat/completions?a=1"
    assert (leg.target, leg.model, leg.body, leg.fields) == ("openai", "gpt-5", None, x.sent_fields)


def test_a_named_target_puts_its_key_in_place_of_the_clients_and_leaves_the_path_alone() -> None:
    x = exchange(
        f"{AZURE}/deployments/d/chat/completions?key=k1&api-version=1", SPACED, (b"authorization", b"Bearer c")
    )
    x.target = "there"
    home = target("azure-openai", "https://za.openai.azure.com", headers=KEYS, ca="/corp.pem", zone="za", **DATED)

    leg = own_leg(x, home)

    assert leg.path == "/openai/deployments/d/chat/completions?api-version=1"
    assert (leg.target, leg.ca, leg.zone) == ("there", "/corp.pem", "za")
    assert leg.fields[1:] == [(b"content-type", b"application/json"), (b"api-key", b"the-targets-own")]


def test_a_named_target_without_a_key_gets_the_clients() -> None:
    x = exchange(f"{AZURE}/v1/responses", SPACED, (b"api-key", b"c"), (b"x-team", b"old"))
    x.target = "there"

    leg = own_leg(x, target("azure-openai", "https://za.openai.azure.com", headers={"X-Team": "new"}))

    assert leg.fields[2:] == [(b"api-key", b"c"), (b"X-Team", b"new")]


def test_the_host_of_a_target_that_is_not_named_gives_a_zone_and_nothing_else() -> None:
    x = exchange(f"{AZURE}/v1/responses", SPACED, (b"api-key", b"c"))

    leg = own_leg(x, target("azure-openai", "https://za.openai.azure.com", headers=KEYS, zone="za", ca="/corp.pem"))

    assert (leg.target, leg.zone, leg.ca, leg.fields) == ("azure-openai", "za", None, x.sent_fields)


def test_what_an_entry_unwrapped_goes_to_the_host_it_named() -> None:
    x = exchange("http://127.0.0.1:8081/v1/chat/completions")
    x.entry, x.host, x.port, x.native_body = "compat", "api.openai.com", 443, b'{"model": "gpt-5"}'

    leg = own_leg(x)

    assert leg.fields[0] == (b"Host", b"api.openai.com")
    assert leg.body == b'{"model": "gpt-5"}'


@pytest.mark.parametrize(
    ("asked", "path", "in_body"),
    [
        (f"{OPENAI}/chat/completions?a=1", "/v1/chat/completions?a=1", "gpt-5-next"),
        (f"{AZURE}/deployments/d/chat/completions?a=1", "/openai/deployments/gpt-5-next/chat/completions?a=1", "gpt-5"),
        (f"{STUDIO}/models/gemini:generateContent?a=1", "/v1beta/models/gpt-5-next:generateContent?a=1", "gpt-5"),
        (
            "https://bedrock-runtime.us-east-1.amazonaws.com/model/m%3A0/converse",
            "/model/gpt-5-next/converse",
            "gpt-5",
        ),
    ],
)
def test_another_model_at_the_own_host_stands_where_the_api_has_it(asked: str, path: str, in_body: str) -> None:
    x = exchange(asked)

    leg = own_leg_as(x, Choice(model="gpt-5-next"))

    if isinstance(leg, str):
        pytest.fail(leg)
    assert (leg.path, leg.model, leg.request.model) == (path, "gpt-5-next", "gpt-5-next")
    assert json.loads(leg.body or x.body or b"")["model"] == in_body


def test_a_dynamic_model_goes_only_where_it_has_a_name() -> None:
    x = exchange("https://api.openai.com/compat/chat/completions", b'{"model": "dynamic/faq"}')
    x.entry, x.provider, x.host = "compat", None, ""
    groq = target("groq", "https://g.example")

    assert leg_for(x, groq, provider("groq")) == "nothing says which model dynamic/faq is there"
    assert moved(x, groq, Choice(model="llama")).body == b'{"model": "llama"}'
    assert moved(x, replace(groq, deployments={"dynamic/faq": "llama"})).body == b'{"model": "llama"}'


# -- keys -------------------------------------------------------------------------------------------------------------

CREDENTIALS = (
    "authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie", "openai-organization",
    "openai-project", "x-goog-user-project", "x-corp-token", "x-amz-security-token", "ocp-apim-subscription-key",
    "helicone-auth", "chatgpt-account-id", "x-auth",
)  # fmt: skip


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_credential_is_known_by_its_name(name: str) -> None:
    assert is_credential(name)
    assert is_credential(name.title())


@pytest.mark.parametrize(
    "name",
    ["content-type", "anthropic-beta", "openai-beta", "idempotency-key", "x-max-tokens", "x-author", "x-stainless-os"],
)
def test_other_headers_travel(name: str) -> None:
    assert not is_credential(name)


STAYS = [(b"authorization", b"Bearer c")]


@pytest.mark.parametrize(
    ("to", "fields"),
    [
        # the request's own host, and the provider's public ones
        (target("openai", "https://api.openai.com"), STAYS),
        (target("openai", "https://api.openai.com/v1", headers={"x-team": "a"}), [*STAYS, (b"x-team", b"a")]),
        # a key of the target's own takes its place, under whatever name
        (target("openai", "https://api.openai.com", headers=KEYS), [(b"api-key", b"the-targets-own")]),
        (target("openai", "https://api.openai.com", headers={"Authorization": "t"}), [(b"Authorization", b"t")]),
        # anywhere else it stays behind: another provider, a host that only looks like one, another port, plain HTTP
        (target("groq", "https://api.groq.com"), []),
        (target("groq", "https://api.openai.com"), []),
        (target("openai", "https://eu.api.openai.com"), []),
        (target("openai", "https://llm.corp.example"), []),
        (target("openai", "https://api.openai.com:8443"), []),
        (target("openai", "http://api.openai.com"), []),
        (target("openai", "http://api.openai.com:443"), []),
    ],
)
def test_a_clients_key_goes_only_where_it_belongs(to: Target, fields: Fields) -> None:
    leg = moved(exchange(f"{OPENAI}/chat/completions", SPACED, *STAYS), to)

    assert leg.fields[2:] == fields


def test_a_key_may_go_to_another_public_host_of_its_provider() -> None:
    x = exchange("https://api.mistral.ai/v1/chat/completions", SPACED, *STAYS)

    assert moved(x, target("mistral", "https://codestral.mistral.ai")).fields[2:] == STAYS


def test_a_policy_cannot_make_a_host_public() -> None:
    x = exchange(f"{OPENAI}/chat/completions", SPACED, *STAYS)
    wider = replace(provider("openai"), hosts=("api.openai.com", "evil.example"))

    leg = leg_for(x, target("openai", "https://evil.example"), wider)

    assert isinstance(leg, Leg)
    assert leg.fields[2:] == []


@pytest.mark.parametrize("name", ["key", "api_key", "api%5Fkey", "access_token"])
def test_a_key_in_the_query_stays_behind_like_one_in_a_header(name: str) -> None:
    x = exchange(f"{STUDIO}/models/g:generateContent?alt=sse&{name}=AIza&x=1")

    assert moved(x, target("google-ai-studio", "https://g.corp.example")).path.endswith("?alt=sse&x=1")


def test_the_host_header_is_the_targets() -> None:
    leg = moved(exchange(f"{OPENAI}/embeddings"), target("openai", "http://[fd00::7]:8000/v1"))

    assert leg.fields[0] == (b"Host", b"[fd00::7]:8000")
    assert (leg.scheme, leg.host, leg.port) == ("http", "fd00::7", 8000)


FAR = [
    target("groq", "https://api.groq.com"),
    target("azure-openai", EU, **DATED, headers=KEYS),
    target("mistral", "https://api.openai.com/v1"),
    target("anthropic", "https://api.anthropic.com"),
    target("google-ai-studio", "https://generativelanguage.googleapis.com", headers={"x-team": "a"}),
    target("ollama", "http://127.0.0.1:11434"),
]
SECRETS = st.text("ABCDEFGHJKMNPQ", min_size=12, max_size=40)
NAMES = st.sampled_from(CREDENTIALS).flatmap(lambda name: st.sampled_from([name, name.title(), name.upper()]))
OTHERS = st.lists(
    st.tuples(st.sampled_from([b"accept", b"x-a", b"user-agent"]), st.sampled_from([b"1", b"b"])), max_size=4
)


@given(
    headers=st.lists(st.tuples(NAMES, SECRETS), max_size=3),
    query=st.lists(st.tuples(st.sampled_from(["key", "KEY", "api_key", "k%65y", "token"]), SECRETS), max_size=2),
    others=OTHERS,
    to=st.sampled_from(FAR),
    model=st.sampled_from([None, "other"]),
)
def test_no_byte_of_a_credential_reaches_another_provider(
    headers: list[tuple[str, str]],
    query: list[tuple[str, str]],
    others: Fields,
    to: Target,
    model: str | None,
) -> None:
    said = "&".join(["a=1", *(f"{name}={quote(value)}" for name, value in query)])
    fields = [(name.encode(), f"Bearer {value}".encode()) for name, value in headers]
    x = exchange(f"{OPENAI}/chat/completions?{said}", SPACED, *others, *fields, *others)

    leg = moved(x, to, Choice(model=model))

    everything = repr(leg)
    assert not any(value in everything for _, value in headers + query)
    assert [field for field in leg.fields if field in others] == [*others, *others]
