"""The public hosts of the known providers, as data: one row per provider.

A provider that speaks a known API needs a row and nothing else. ``slug`` is Cloudflare AI Gateway's name for it (used
in base-URL paths and in ``match: {provider}``), ``otel`` OpenTelemetry's ``gen_ai.provider.name`` (used in rows).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Provider:
    slug: str
    hosts: tuple[str, ...]
    """Globs over ``host`` or ``host:port``, lower case."""
    family: str
    """The dialects spoken there: a key of ``dialects.FAMILIES``."""
    otel: str = ""
    """Empty = the slug."""
    base: str = ""
    """Where ``/{slug}/…`` of the base-URL door leads; ``{name}`` is taken from the front of the path."""
    takes: tuple[str, ...] = ()
    """Names of the leading path segments that ``base`` uses up, in order."""
    prices: str = ""
    """genai-prices' provider id; empty = looked up by host."""
    asks_usage: bool = True
    """An OpenAI-style stream here takes ``stream_options``."""
    compat: str = ""
    """Base URL of its OpenAI-compatible endpoint, without a trailing slash: ``…/chat/completions`` follows. Empty = it
    has none.
    """

    @property
    def provider_name(self) -> str:
        return self.otel or self.slug


TABLE: tuple[Provider, ...] = (
    Provider("openai", ("api.openai.com", "*.api.openai.com"), "openai", base="https://api.openai.com/v1",
             prices="openai", compat="https://api.openai.com/v1"),
    Provider("chatgpt", ("chatgpt.com",), "openai", otel="openai", base="https://chatgpt.com", prices="openai"),
    Provider("azure-openai", ("*.openai.azure.com", "*.cognitiveservices.azure.com"), "azure",
             otel="azure.ai.openai", base="https://{resource}.openai.azure.com/openai/deployments/{deployment}",
             takes=("resource", "deployment"), prices="azure"),
    Provider("azure-ai-inference",
             ("*.services.ai.azure.com", "*.inference.ai.azure.com", "*.models.ai.azure.com"), "azure",
             otel="azure.ai.inference", base="https://{resource}.services.ai.azure.com", takes=("resource",),
             prices="azure"),
    Provider("anthropic", ("api.anthropic.com",), "anthropic", base="https://api.anthropic.com",
             prices="anthropic", compat="https://api.anthropic.com/v1"),
    Provider("google-ai-studio", ("generativelanguage.googleapis.com",), "gemini", otel="gcp.gemini",
             base="https://generativelanguage.googleapis.com", prices="google",
             compat="https://generativelanguage.googleapis.com/v1beta/openai"),
    Provider("google-vertex-ai", ("aiplatform.googleapis.com", "*-aiplatform.googleapis.com"), "vertex",
             otel="gcp.vertex_ai", base="https://aiplatform.googleapis.com", prices="google"),
    Provider("aws-bedrock", ("bedrock-runtime*.amazonaws.com", "bedrock-mantle.*.api.aws"), "bedrock",
             otel="aws.bedrock", base="https://{service}.{region}.amazonaws.com", takes=("service", "region"),
             prices="aws"),
    Provider("groq", ("api.groq.com",), "openai", base="https://api.groq.com/openai/v1", prices="groq",
             compat="https://api.groq.com/openai/v1"),
    Provider("mistral", ("api.mistral.ai", "codestral.mistral.ai"), "openai", otel="mistral_ai",
             base="https://api.mistral.ai", prices="mistral", asks_usage=False, compat="https://api.mistral.ai/v1"),
    Provider("cohere", ("api.cohere.com", "api.cohere.ai"), "cohere", base="https://api.cohere.com",
             prices="cohere", compat="https://api.cohere.ai/compatibility/v1"),
    Provider("perplexity-ai", ("api.perplexity.ai",), "openai", otel="perplexity",
             base="https://api.perplexity.ai", prices="perplexity", asks_usage=False,
             compat="https://api.perplexity.ai"),
    Provider("grok", ("api.x.ai", "*.api.x.ai"), "openai", otel="x_ai", base="https://api.x.ai", prices="x-ai",
             compat="https://api.x.ai/v1"),
    Provider("deepseek", ("api.deepseek.com",), "openai", base="https://api.deepseek.com", prices="deepseek",
             compat="https://api.deepseek.com"),
    Provider("cerebras", ("api.cerebras.ai",), "openai", base="https://api.cerebras.ai/v1", prices="cerebras",
             compat="https://api.cerebras.ai/v1"),
    Provider("openrouter", ("openrouter.ai",), "openai", base="https://openrouter.ai/api", prices="openrouter",
             compat="https://openrouter.ai/api/v1"),
    Provider("fireworks", ("api.fireworks.ai",), "openai", base="https://api.fireworks.ai/inference/v1",
             prices="fireworks", compat="https://api.fireworks.ai/inference/v1"),
    Provider("together", ("api.together.ai", "api.together.xyz"), "openai", base="https://api.together.ai/v1",
             prices="together", compat="https://api.together.ai/v1"),
    Provider("huggingface", ("router.huggingface.co", "api-inference.huggingface.co"), "openai",
             base="https://router.huggingface.co/v1", compat="https://router.huggingface.co/v1"),
    Provider("vercel-gateway", ("ai-gateway.vercel.sh",), "openai", base="https://ai-gateway.vercel.sh",
             compat="https://ai-gateway.vercel.sh/v1"),
    Provider("writer", ("api.writer.com",), "openai", base="https://api.writer.com",
             compat="https://api.writer.com/v1"),
    Provider("zai", ("api.z.ai", "open.bigmodel.cn"), "openai", base="https://api.z.ai/api/paas/v4",
             compat="https://api.z.ai/api/paas/v4"),
    Provider("moonshot", ("api.moonshot.ai", "api.moonshot.cn"), "openai", base="https://api.moonshot.ai/v1",
             compat="https://api.moonshot.ai/v1"),
    Provider("alibaba", ("dashscope*.aliyuncs.com",), "openai",
             base="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
             compat="https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
    Provider("databricks", ("*.cloud.databricks.com", "*.azuredatabricks.net", "*.gcp.databricks.com"), "openai",
             base="https://{workspace}.cloud.databricks.com", takes=("workspace",)),
    Provider("snowflake", ("*.snowflakecomputing.com",), "openai", base="https://{account}.snowflakecomputing.com",
             takes=("account",)),
    Provider("github-copilot", ("api.githubcopilot.com", "api.*.githubcopilot.com", "models.github.ai"), "openai",
             base="https://api.githubcopilot.com", compat="https://api.githubcopilot.com"),
    Provider("ollama", ("ollama.com", "localhost:11434", "127.0.0.1:11434"), "ollama",
             base="http://127.0.0.1:11434", compat="http://127.0.0.1:11434/v1"),
)  # fmt: skip
"""Order matters only where globs overlap; they do not."""

RESERVED = frozenset({"healthz", "metrics", "feedback", "v1", "target", "compat"})
"""First path segments of the base-URL door that no provider may be called."""


CREDENTIAL_HEADERS: tuple[str, ...] = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Where providers read a key, in lower case."""


@lru_cache(4096)  # the table's are asked for again by each gateway of one process
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


class Hosts:
    """Which provider a host belongs to: the policy's own rows first, then the table."""

    def __init__(self, own: Iterable[Provider] = ()) -> None:
        self.providers = {provider.slug: provider for provider in (*TABLE, *own)}
        rows = [(glob, provider) for provider in (*own, *TABLE) for glob in provider.hosts]
        self._patterns = [(_pattern(glob), ":" in glob, provider) for glob, provider in rows]
        self.find = lru_cache(4096)(self._find)

    def _find(self, host: str, port: int) -> Provider | None:
        """Return the provider at *host*:*port*, None where it is nobody's. Cached."""
        host = host.lower().rstrip(".")
        for pattern, with_port, provider in self._patterns:
            if pattern.match(f"{host}:{port}" if with_port else host):
                return provider
        return None
