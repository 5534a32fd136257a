"""What the cache shows of itself to a client, and providers that give it something to keep."""

import json

from support.client import Answer
from support.provider import Heard, Provider, Script, Wire
from support.speech import ANSWER, CHAT

KEEP = "cf-aig-cache-ttl: 60"
KEY = "authorization: Bearer sk-1"

Shown = tuple[str | None, ...]
"""Status, age, source, attempts."""

MISS: Shown = ("MISS", None, "provider", "1")
HIT: Shown = ("HIT", "0", "cache", "0")
BYPASS: Shown = ("BYPASS", None, "provider", "1")

ERROR = b'{"error": {"message": "no", "type": "server_error", "code": null}}'

USAGE_COLUMNS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "usage_source",
    "response_model",
    "response_id",
    "finish_reasons",
    "tool_calls",
    "terminal",
    "stream",
    "status_code",
    "provider_name",
    "host",
    "target",
    "price_version",
)
"""What a hit's row says as that of the first answer."""


def shown(answer: Answer) -> Shown:
    """Return what an answer's head says of the cache."""
    names = ("cf-aig-cache-status", "cf-aig-cache-age", "cf-aig-source", "cf-aig-attempts")
    return tuple(answer.header(name) for name in names)


def told(text: str) -> bytes:
    """Return a plain answer that says *text*."""
    answer = json.loads(ANSWER)
    answer["choices"][0]["message"]["content"] = text
    return json.dumps(answer).encode()


class Parrot:
    """A provider that answers with what it was told last."""

    def __init__(self, provider: Provider, path: str = CHAT) -> None:
        self.script = says(ANSWER)
        provider.on(path, self._say)

    async def _say(self, heard: Heard, wire: Wire) -> None:
        await self.script(heard, wire)


def says(body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> Script:
    """Return a script that gives a whole answer."""

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.answer(body, status, kind, *more)

    return script


def streams(*pieces: bytes, ends: bool = True) -> Script:
    """Return a script that sends *pieces* as a stream; without its end where it is cut."""

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.stream_head()
        for piece in pieces:
            await wire.chunk(piece)
        if ends:
            await wire.send(b"0\r\n\r\n")
        else:
            wire.cut()

    return script
