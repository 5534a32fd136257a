"""The path tells the wire; what generates nothing has none."""

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Dialect
from mitmgate.providers import TABLE, Hosts, Provider

HOSTS = Hosts()
STUDIO = "generativelanguage.googleapis.com"
VERTEX = "us-central1-aiplatform.googleapis.com"
PROJECT = "/v1/projects/p/locations/us-central1/publishers"
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"

GENERATING = [
    ("api.openai.com", "/v1/chat/completions", "openai.chat"),
    ("api.openai.com", "/v1/chat/completions/", "openai.chat"),
    ("api.openai.com", "/v1/completions", "openai.completions"),
    ("api.openai.com", "/v1/embeddings", "openai.embeddings"),
    ("api.openai.com", "/v1/responses", "openai.responses"),
    ("chatgpt.com", "/backend-api/codex/responses", "openai.responses"),
    ("r.openai.azure.com", "/openai/deployments/d/chat/completions?api-version=2024-02-01", "openai.chat"),
    ("r.openai.azure.com", "/openai/v1/chat/completions", "openai.chat"),
    ("r.openai.azure.com", "/openai/deployments/d/embeddings?api-version=2024-02-01", "openai.embeddings"),
    ("r.cognitiveservices.azure.com", "/openai/responses?api-version=2025-03-01-preview", "openai.responses"),
    ("r.services.ai.azure.com", "/models/chat/completions?api-version=2024-05-01-preview", "openai.chat"),
    ("r.services.ai.azure.com", "/anthropic/v1/messages", "anthropic.messages"),
    ("api.anthropic.com", "/v1/messages?beta=true", "anthropic.messages"),
    ("api.anthropic.com", "/v1/chat/completions", "openai.chat"),
    ("api.anthropic.com", "/v1/complete", "generic"),
    (STUDIO, "/v1beta/models/gemini-x:generateContent", "gemini.generate"),
    (STUDIO, "/v1beta/tunedModels/t:streamGenerateContent?alt=sse", "gemini.generate"),
    (STUDIO, "/v1beta/openai/chat/completions", "openai.chat"),
    (STUDIO, "/v1beta/models/e:batchEmbedContents", "generic"),
    (STUDIO, "/v1beta/interactions", "generic"),
    (VERTEX, f"{PROJECT}/google/models/gemini-x:streamGenerateContent?alt=sse", "gemini.generate"),
    (VERTEX, f"{PROJECT}/anthropic/models/claude-x@2025:rawPredict", "anthropic.messages"),
    (VERTEX, f"{PROJECT}/anthropic/models/claude-x@2025:streamRawPredict", "anthropic.messages"),
    (VERTEX, f"{PROJECT}/mistralai/models/m:rawPredict", "openai.chat"),
    (VERTEX, "/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "openai.chat"),
    (VERTEX, f"{PROJECT}/google/models/text-embedding:predict", "generic"),
    (BEDROCK, "/model/anthropic.claude-x/converse-stream", "generic"),
    ("bedrock-mantle.us-east-1.api.aws", "/openai/v1/responses", "openai.responses"),
    ("openrouter.ai", "/api/v1/chat/completions", "openai.chat"),
    ("openrouter.ai", "/api/v1/messages", "anthropic.messages"),
    ("api.mistral.ai", "/v1/fim/completions", "openai.chat"),
    ("api.mistral.ai", "/v1/agents/completions", "openai.chat"),
    ("api.writer.com", "/v1/chat", "openai.chat"),
    ("api.cohere.com", "/v2/chat", "generic"),
    ("api.cohere.com", "/v1/chat", "generic"),
    ("api.cohere.com", "/compatibility/v1/chat/completions", "openai.chat"),
    ("w.cloud.databricks.com", "/serving-endpoints/my-model/invocations", "openai.chat"),
    ("a.snowflakecomputing.com", "/api/v2/cortex/inference:complete", "openai.chat"),
    ("ollama.com", "/api/chat", "generic"),
    ("ollama.com", "/v1/chat/completions", "openai.chat"),
    ("api.openai.com", "/v1/audio/transcriptions", "generic"),
    ("api.openai.com", "/v1/images/generations", "generic"),
    ("api.perplexity.ai", "/v1/sonar", "openai.chat"),
    ("us-south.ml.cloud.ibm.com", "/ml/v1/text/chat_stream?version=2024-05-31", "openai.chat"),
    ("us-south.ml.cloud.ibm.com", "/ml/v1/deployments/d/text/generation?version=2024-05-31", "generic"),
    ("us-south.ml.cloud.ibm.com", "/ml/v1/text/embeddings?version=2024-05-31", "generic"),
    ("api.cloudflare.com", "/client/v4/accounts/a/ai/run/@cf/meta/llama-x", "generic"),
    ("nobody.example", "/v1/chat/completions", "openai.chat"),
    ("nobody.example", "/some/proxy/v1/messages", "anthropic.messages"),
    ("nobody.example", "/v1beta/models/gemini-x:generateContent", "gemini.generate"),
]


@pytest.mark.parametrize(("host", "path", "name"), GENERATING)
def test_a_call_that_generates_has_a_dialect(host: str, path: str, name: str) -> None:
    dialect = dialects.find(HOSTS.find(host, 443), "POST", path)
    assert dialect is not None
    assert dialect.name == name


@pytest.mark.parametrize(
    ("host", "method", "path"),
    [
        ("api.openai.com", "GET", "/v1/models"),
        ("api.openai.com", "GET", "/v1/responses/resp_1?stream=false"),
        ("api.openai.com", "GET", "/v1/chat/completions"),
        ("api.openai.com", "OPTIONS", "/v1/chat/completions"),
        ("api.openai.com", "DELETE", "/v1/responses/resp_1"),
        ("api.openai.com", "POST", "/v1/responses/resp_1/cancel"),
        ("api.openai.com", "POST", "/v1/responses/input_tokens"),
        ("api.openai.com", "POST", "/v1/files"),
        ("api.openai.com", "POST", "/v1/batches"),
        ("api.openai.com", "POST", "/v1/threads/t/messages"),
        ("chatgpt.com", "POST", "/backend-api/telemetry"),
        ("chatgpt.com", "POST", "/oauth/token"),
        ("api.anthropic.com", "POST", "/v1/messages/count_tokens"),
        ("api.anthropic.com", "POST", "/v1/messages/batches"),
        ("api.anthropic.com", "POST", "/api/event_logging/batch"),
        (STUDIO, "POST", "/v1beta/models/gemini-x:countTokens"),
        (VERTEX, "POST", f"{PROJECT}/anthropic/models/count-tokens:rawPredict"),
        ("ollama.com", "POST", "/api/show"),
        ("nobody.example", "POST", "/login"),
    ],
)
def test_a_call_that_generates_nothing_has_none(host: str, method: str, path: str) -> None:
    assert dialects.find(HOSTS.find(host, 443), method, path) is None


@pytest.mark.parametrize(
    ("host", "path", "asks"),
    [
        ("api.openai.com", "/v1/chat/completions", True),
        ("nobody.example", "/v1/chat/completions", True),
        ("api.mistral.ai", "/v1/chat/completions", False),
        ("api.perplexity.ai", "/chat/completions", False),
        ("ai-gateway.vercel.sh", "/v1/chat/completions", True),
        ("w.cloud.databricks.com", "/serving-endpoints/m/invocations", False),
        ("api.openai.com", "/v1/completions", True),
        ("codestral.mistral.ai", "/v1/completions", False),
        ("api.openai.com", "/v1/responses", False),
        ("api.openai.com", "/v1/embeddings", False),
        ("api.anthropic.com", "/v1/messages", False),
        (STUDIO, "/v1beta/models/g:streamGenerateContent?alt=sse", False),
    ],
)
def test_usage_is_asked_for_where_a_host_takes_the_question(host: str, path: str, asks: bool) -> None:
    dialect = dialects.find(HOSTS.find(host, 443), "POST", path)
    assert dialect is not None
    assert (dialect.ask_usage(b'{"stream":true}', {"stream": True}) is not None) is asks


@pytest.mark.parametrize(
    ("query", "is_list"), [("", True), ("?key=k", True), ("?alt=sse", False), ("?key=k&alt=sse", False)]
)
def test_without_alt_sse_gemini_streams_a_list(query: str, is_list: bool) -> None:
    dialect = dialects.find(HOSTS.find(STUDIO, 443), "POST", f"/v1beta/models/g:streamGenerateContent{query}")
    assert (dialect is dialects.GENERATE_LIST) is is_list


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/responses", "chat"),
        ("/v1beta/models/g:generateContent", "generate_content"),
        ("/v1beta/models/e:embedContent", "embeddings"),
        ("/v1/audio/transcriptions", "transcription"),
        ("/v1/rerank", "rerank"),
        ("/v1/moderations", "moderation"),
        ("/model/m/converse", "chat"),
    ],
)
def test_the_operation_is_opentelemetrys(path: str, operation: str) -> None:
    dialect = dialects.find(None, "POST", path)
    assert dialect is not None
    assert dialect.operation == operation


def test_every_family_of_the_provider_table_is_known() -> None:
    assert {provider.family for provider in TABLE} <= set(dialects.FAMILIES)


@pytest.mark.parametrize(
    ("slug", "voice"),
    [("openai", dialects.CHAT), ("azure-openai", dialects.CHAT), ("anthropic", dialects.MESSAGES),
     ("google-vertex-ai", dialects.GENERATE), ("cohere", dialects.GENERIC), (None, dialects.CHAT)],
)  # fmt: skip
def test_an_error_without_a_call_sounds_like_its_provider(slug: str | None, voice: Dialect) -> None:
    provider = HOSTS.providers[slug] if slug else None
    assert dialects.voice(provider) is voice


def test_a_host_of_the_generic_family_gets_a_row_for_every_post() -> None:
    own = Provider("corp", ("llm.corp.example",), "generic")
    assert dialects.find(own, "POST", "/anything") is dialects.GENERIC
    assert dialects.find(own, "POST", "/v1/files") is None
    assert dialects.find(own, "POST", "/count_tokens") is None


def test_an_unknown_family_is_read_by_its_paths() -> None:
    own = Provider("corp", ("llm.corp.example",), "something-new")
    assert dialects.find(own, "POST", "/v1/chat/completions") is dialects.CHAT
    assert dialects.voice(own) is dialects.CHAT


def test_the_same_question_is_answered_once() -> None:
    before = dialects._find.cache_info().hits
    for query in "abc":
        dialects.find(None, "POST", f"/v1/once/messages?{query}")
    assert dialects._find.cache_info().hits == before + 2
