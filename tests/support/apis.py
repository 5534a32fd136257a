"""Three APIs side by side: how each asks for a stream, how that stream goes, and how it fails after a 200."""

import json
from dataclasses import dataclass

from support import speech
from support.speech import sse


@dataclass(frozen=True)
class Api:
    name: str
    slug: str
    """As ``match: {provider}`` and ``cf-aig-provider`` say it."""
    host: str
    path: str
    ask: bytes
    """A request for a stream."""
    before: bytes
    """Events that stand before the first content."""
    rest: bytes
    """The first content and all behind it, to a regular end."""
    error: bytes
    """An error told inside of a 200: the provider has too much to do."""
    busy: bytes
    """The body of its 429."""

    @property
    def stream(self) -> bytes:
        return self.before + self.rest

    def __str__(self) -> str:
        return self.name


OPENAI = Api(
    "openai",
    "openai",
    "api.openai.com",
    speech.CHAT,
    speech.ASK_STREAM,
    speech.ROLE,
    b"".join([speech.HEL, speech.LO, speech.STOP, speech.DONE]),
    sse(
        {
            "error": {
                "message": "The server had an error while it answered",
                "type": "server_error",
                "param": None,
                "code": None,
            }
        }
    ),
    b'{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}',
)

ANTHROPIC = Api(
    "anthropic",
    "anthropic",
    "api.anthropic.com",
    speech.MESSAGES,
    speech.ASK_CLAUDE,
    speech.CLAUDE_START + sse({"type": "ping"}, "ping"),
    speech.CLAUDE_TEXT + speech.CLAUDE_DELTA + speech.CLAUDE_STOP,
    sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error"),
    b'{"type":"error","error":{"type":"rate_limit_error","message":"slow down"},"request_id":"req_1"}',
)


def _gemini(**more: object) -> bytes:
    return sse({"modelVersion": "gemini-2.5-flash", "responseId": "gem_1", **more})


def _candidate(text: str, **more: object) -> list[dict[str, object]]:
    return [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}]


GEMINI = Api(
    "gemini",
    "google-ai-studio",
    "generativelanguage.googleapis.com",
    "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
    json.dumps({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}).encode(),
    _gemini(usageMetadata={"promptTokenCount": 9, "totalTokenCount": 9}),
    _gemini(candidates=_candidate("hel"))
    + _gemini(
        candidates=_candidate("lo", finishReason="STOP"),
        usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 3, "totalTokenCount": 12},
    ),
    sse({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
    b'{"error":{"code":429,"message":"slow down","status":"RESOURCE_EXHAUSTED"}}',
)

APIS = (OPENAI, ANTHROPIC, GEMINI)
