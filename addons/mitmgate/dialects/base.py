"""The seam between the gateway and what an LLM API looks like on the wire.

Sans-io: a dialect sees bytes and gives values, never a socket, a clock or mitmproxy. To add one: read its requests,
open a reader for its answers, write its errors, and enter it in ``dialects/__init__.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mitmgate.errors import Refusal

type Json = Any
"""Parsed JSON of a stranger: nothing about it is known until it was looked at."""

type Source = Literal["reported", "reported_partial", "estimated", "none"]


@dataclass(slots=True)
class Usage:
    """What one answer used. ``None`` = the provider did not say, 0 = it said zero.

    ``input_tokens`` is all input (cache reads and writes included), ``output_tokens`` all output (reasoning
    included); the other counters are parts of these two.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    """All cache writes, whatever they live."""
    cache_creation_1h_input_tokens: int | None = None
    """The part of the cache writes that lives an hour (Anthropic; dearer than five minutes)."""
    reasoning_output_tokens: int | None = None
    input_audio_tokens: int | None = None
    cache_read_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    server_tools: dict[str, int] = field(default_factory=dict)
    """Calls of tools that the provider ran and bills apart: ``{"web_search": 2}``."""
    service_tier: str | None = None
    """As the provider says: ``default``, ``flex``, ``priority``, ``batch`` …"""
    cost_reported_usd: float | None = None
    """The provider's own figure (OpenRouter, xAI)."""


@dataclass(slots=True)
class Reading:
    """All that is known of an answer so far; a reader fills it in place, anybody may look at any moment."""

    usage: Usage = field(default_factory=Usage)
    usage_seen: bool = False
    """A usage object with at least one counter was reported."""
    usage_final: bool = False
    """It was the last word, not a running count."""
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: list[str] = field(default_factory=list)
    """As on the wire, one per choice in index order."""
    tool_calls: int = 0
    """Calls that the client has to run."""
    first_content: bool = False
    """Something a person would see has arrived: text, reasoning, a tool call; not the role chunk."""
    ended: bool = False
    """The dialect's regular end was seen (``[DONE]``, ``message_stop``, a finish reason …), or the whole JSON."""
    finished: bool = False
    """A finish reason has passed: whoever leaves now has got the whole answer."""
    error_type: str | None = None
    """Of an error body or of an error event: a word of the closed list in the README."""
    error_event: bool = False
    """The error came inside a stream that had begun with 200."""
    text_chars: int = 0
    """Characters of output seen (text, reasoning, tool arguments), one outside of ASCII counted as its bytes in UTF-8:
    what an estimate stands on.
    """
    parse_errors: int = 0
    streamed: bool = False
    """The body came as events or a list of pieces, whatever its content type says."""
    estimated: bool = False
    """Counters that nobody reported were filled in from the length of the text (``estimate``)."""

    @property
    def usage_source(self) -> Source:
        if self.estimated:
            return "estimated"
        if not self.usage_seen:
            return "none"
        return "reported" if self.usage_final else "reported_partial"


@dataclass(frozen=True, slots=True)
class Call:
    """What a reader must know of the request and the head of its answer."""

    status: int
    headers: Mapping[str, str]
    """Of the answer, names in lower case, repeated ones joined by ``, ``."""
    stream: bool
    """The request asked for a stream."""
    path: str = ""
    """Of the request, query included."""
    request_model: str | None = None


class Reader(Protocol):
    """Reads one answer's body, fed in pieces of any size; never raises, never keeps more than 2 MiB."""

    reading: Reading

    def feed(self, data: bytes) -> None:
        """Take the next bytes, content coding already undone."""

    def end(self) -> None:
        """The body has ended; as far as the transport knows it is whole."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the gateway knows of a request body."""

    model: str | None = None
    stream: bool = False
    input_chars: int = 0
    """Characters of prompt text: messages, system prompt and tools; no images."""
    input_tokens_estimate: int = 0
    """What this text is in tokens, about (``estimate``)."""
    max_output_tokens: int | None = None
    end_user: str | None = None
    """The provider's own field for it: ``user``, ``metadata.user_id``, ``safety_identifier``."""
    tools: int = 0
    """Tools offered to the model."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation, for people to read."""

    role: str
    text: str
    """Text parts joined; other parts as ``[image/png]``, ``[tool_use get_weather {…}]``, ``[tool_result …]``."""


class Dialect(Protocol):
    """One wire format of one operation, e.g. ``openai.chat``."""

    name: str
    operation: str
    """OpenTelemetry's ``gen_ai.operation.name``: ``chat``, ``text_completion``, ``embeddings``,
    ``generate_content``.
    """
    mutable: frozenset[str]
    """Fields of a request that a rule may change without changing its meaning to this API."""

    def read_request(self, path: str, body: Json) -> Request:
        """Return what *body* (parsed JSON of any shape, None if there is none) and the path say; never raise."""

    def reader(self, call: Call) -> Reader:
        """Return a reader for the answer whose head is *call*."""

    def error_body(self, refusal: Refusal, log_id: str | None) -> bytes:
        """Return the JSON body by which this API's SDKs raise their own exception; carries *log_id*."""

    def error_event(self, refusal: Refusal, log_id: str | None) -> bytes:
        """Return the same as the last event of a stream that has begun."""

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        """Return *body* changed so that a stream reports its usage; None where nothing is to be asked."""

    def conversation(self, body: Json) -> list[Turn]:
        """Return the prompt as turns."""

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        """Return the answer as turns: of JSON, or assembled from the events of a stream, also an unfinished one."""
