"""Which API a request speaks, by its path: one table from the ends of paths to the modules that read them.

To teach the gateway a wire, write its module (``base.Dialect`` says what it has to do) and enter its path here. A
provider that speaks a known wire needs nothing here, only its row in ``providers.py``; a host that nobody knows is
read by the shape of its path, too.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mitmgate.dialects.anthropic_messages import Messages
from mitmgate.dialects.base import Call, Dialect, Reading
from mitmgate.dialects.gemini_generate import Generate
from mitmgate.dialects.generic import OPERATIONS, Generic
from mitmgate.dialects.openai_chat import Chat
from mitmgate.dialects.openai_completions import Completions
from mitmgate.dialects.openai_embeddings import Embeddings
from mitmgate.dialects.openai_responses import Responses

if TYPE_CHECKING:
    from mitmgate.providers import Provider

CHAT, CHAT_UNASKED, CHAT_VERCEL = Chat(), Chat(asks_usage=False), Chat(vercel=True)
COMPLETIONS, COMPLETIONS_UNASKED = Completions(), Completions(asks_usage=False)
EMBEDDINGS = Embeddings()
RESPONSES = Responses()
MESSAGES = Messages()
GENERATE, GENERATE_LIST = Generate(), Generate(as_list=True)
GENERIC = Generic()

type Route = tuple[re.Pattern[str], Dialect | None]


def _routes(*table: tuple[str, Dialect | None]) -> tuple[Route, ...]:
    return tuple((re.compile(pattern), dialect) for pattern, dialect in table)


ROUTES = _routes(
    (r"/threads/[^/]+/messages$|/count-tokens:\w+$", None),
    (r"/(?:fim|agents)/completions$|/invocations$|/cortex/inference:complete$", CHAT_UNASKED),
    (r"/ml/v1/(?:deployments/[^/]+/)?text/chat(?:_stream)?$|/v1/sonar$", CHAT_UNASKED),
    (r"/ml/v1/(?:deployments/[^/]+/)?text/generation(?:_stream)?$", Generic("text_completion")),
    (r"/ml/v1/text/embeddings$", Generic("embeddings")),
    (r"/chat/completions$", CHAT),
    (r"/completions$", COMPLETIONS),
    (r"(?<!multimodal)/embeddings$", EMBEDDINGS),
    (r"/responses$", RESPONSES),
    (r"/messages$", MESSAGES),
    (r"/publishers/anthropic/models/[^/]+:(?:raw|streamRaw)Predict$", MESSAGES),
    (r"/publishers/[^/]+/models/[^/]+:(?:raw|streamRaw)Predict$", CHAT_UNASKED),
    (r":(?:generate|streamGenerate)Content$", GENERATE),
    (r"/v1/chat$", CHAT_UNASKED),
)
"""By the end of a path, at every provider; the first that fits stands. None: it generates nothing."""

LATER = re.compile(
    r"/audio/(?:transcriptions|translations|speech)$|/images/(?:generations|edits|variations)$|/moderations$|/videos$"
    r"|/(?:re)?rank$|/embed$|/complete$|/ocr$|/conversations(?:/[^/]+)?$|/responses/compact$|/threads(?:/[^/]+)?/runs$"
    r"|:predict$|:embedContent$|:batchEmbedContents$|/interactions$|/services/aigc/.+"
    r"|/accounts/[^/]+/ai/run/.+|/model/[^/]+/(?:converse|converse-stream|invoke|invoke-with-response-stream)$"
)
"""What generates, at any provider, and is read by ``generic`` until it has a module."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a provider row's ``family`` stands for: how it sounds, and what it has beside the common paths."""

    voice: Dialect
    """Writes our refusals where a call has no dialect of its own."""
    routes: tuple[Route, ...] = ()
    """Looked at before the common ones."""


FAMILIES = {
    "openai": Family(CHAT),
    "azure": Family(CHAT),
    "anthropic": Family(MESSAGES),
    "gemini": Family(GENERATE),
    "vertex": Family(GENERATE),
    "bedrock": Family(GENERIC),
    "cohere": Family(GENERIC, _routes((r"/v[12]/chat$", GENERIC), (r"/v1/generate$", Generic("text_completion")))),
    "ollama": Family(
        CHAT,
        _routes(
            (r"/api/chat$", GENERIC),
            (r"/api/generate$", Generic("text_completion")),
            (r"/api/embed(?:dings)?$", Generic("embeddings")),
        ),
    ),
    "generic": Family(GENERIC, _routes((r"^(?!.*(?:/files|/batches|tokens|tokenize)\b).*$", GENERIC))),
}
"""The values of ``family`` in the provider table and of ``dialect`` in a policy's ``providers``."""


def find(provider: "Provider | None", method: str, path: str) -> Dialect | None:
    """Return the dialect of a call, None where it generates nothing: model lists, count_tokens, files, telemetry …

    *path* may carry its query. *provider* is None for a host that nobody knows. Asked once per request, and cached.
    """
    if method != "POST":
        return None
    path, _, query = path.partition("?")
    family = provider.family if provider else ""
    vercel = provider is not None and provider.slug == "vercel-gateway"
    dialect = _find(family, path.rstrip("/"), provider is None or provider.asks_usage, vercel)
    if dialect is GENERATE and ":stream" in path and "alt=sse" not in query:
        return GENERATE_LIST
    return dialect


def voice(provider: "Provider | None") -> Dialect:
    """Return the dialect in which a provider's callers expect an error that belongs to no call they know."""
    family = FAMILIES.get(provider.family) if provider else None
    return family.voice if family else CHAT


def reading_of(dialect: Dialect, call: Call, pieces: Iterable[bytes]) -> Reading:
    """Return what *dialect* reads out of a whole answer that came in *pieces*."""
    reader = dialect.reader(call)
    for piece in pieces:
        reader.feed(piece)
    reader.end()
    return reader.reading


@lru_cache(4096)
def _find(family: str, path: str, asks_usage: bool, vercel: bool) -> Dialect | None:
    own = FAMILIES[family].routes if family in FAMILIES else ()
    for pattern, dialect in (*own, *ROUTES):
        if pattern.search(path):
            return _fitted(dialect, asks_usage, vercel)
    if LATER.search(path):
        return Generic(_operation(path))
    return None


def _fitted(dialect: Dialect | None, asks_usage: bool, vercel: bool) -> Dialect | None:
    """Return *dialect* with the habits of the provider."""
    if dialect is CHAT and vercel:
        return CHAT_VERCEL
    if dialect is CHAT and not asks_usage:
        return CHAT_UNASKED
    if dialect is COMPLETIONS and not asks_usage:
        return COMPLETIONS_UNASKED
    return dialect


def _operation(path: str) -> str:
    return next((operation for part, operation in OPERATIONS.items() if part in path.lower()), "chat")
