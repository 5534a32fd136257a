"""``/compat/…``: OpenAI's wire for everybody, with ``model: "provider/model"``. Pure; ``entry`` asks.

The part before the first slash says who is meant: a slug of the provider table or a name under the policy's
``providers``. The request goes to that provider's own OpenAI-compatible endpoint (``Provider.compat``), as the client
wrote it but for the value of ``model``, which keeps what stands behind that slash. ``dynamic/NAME`` names no provider:
a rule of ``route`` says where it goes.

Source: https://developers.cloudflare.com/ai-gateway/usage/chat-completion/ (2026-10).
"""

from collections.abc import Iterable

from mitmgate.dialects.base import Json
from mitmgate.door_paths import Nowhere, Place, compat_place
from mitmgate.errors import Kind, Refusal
from mitmgate.providers import Hosts, Provider
from mitmgate.rewrite_body import with_model

DYNAMIC = "dynamic/"
ALIASES = {"perplexity": "perplexity-ai"}
"""Providers that Cloudflare calls otherwise in a model's name than in a path."""

KINDS: dict[int, Kind] = {400: "bad_request", 404: "not_found", 413: "too_large"}


class Wrong(Exception):
    """The body of an entry does not say where to go. The message is what the client is told."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status
        """``status`` is one of ``KINDS``."""

    @property
    def refusal(self) -> Refusal:
        return Refusal(self.status, KINDS[self.status], str(self), param=self.param, should_retry=False)


def model_of(body: Json) -> str:
    """Return what *body*, parsed, has as its ``model``. Raises ``Wrong``."""
    if not isinstance(body, dict):
        raise Wrong('/compat takes a JSON object in UTF-8, as OpenAI\'s API does: {"model": "openai/gpt-5", …}')
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Wrong(f'model is {"missing" if model is None else "no text"}; it takes "provider/model"', "model")
    return model


def named(model: str, hosts: Hosts) -> tuple[Provider, str]:
    """Return the provider that *model* begins with, and the model as that provider calls it. Raises ``Wrong``."""
    slug, _, rest = model.partition("/")
    if not slug or not rest:
        raise Wrong(f'model is {model[:80]!r}; it takes "provider/model", such as "openai/gpt-5"', "model")
    provider = hosts.providers.get(ALIASES.get(slug, slug))
    have_one = _listing(row.slug for row in hosts.providers.values() if row.compat)
    if provider is None:
        raise Wrong(f"model {model[:80]!r} names no provider that is known; /compat has {have_one}", "model", 404)
    if not provider.compat:
        raise Wrong(
            f"{provider.slug} has no OpenAI-compatible endpoint that a name alone leads to; /compat has {have_one}."
            f" Use /{provider.slug}/…, or a route for {DYNAMIC}NAME",
            "model",
            404,
        )
    return provider, rest


def unwrapped(body: bytes, model: str, asked: str, query: str, hosts: Hosts) -> tuple[Place, bytes]:
    """Return where *asked* (``chat/completions``) of *model* is to be had, and *body* as it is sent there.

    Raises ``Wrong``.
    """
    provider, name = named(model, hosts)
    place = compat_place(provider, asked, query)
    if isinstance(place, Nowhere):
        raise Wrong(place.message, "model", 404)
    native = with_model(body, name)
    if native is None:
        raise Wrong("the body is not JSON in UTF-8")
    return place, native


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
