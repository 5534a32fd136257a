"""Put the answers of ``voices`` into a provider's mouth: at the paths where an SDK asks, whole or streamed as it
asks."""

import asyncio
import threading

from support.provider import Heard, Provider, Script, Wire
from support.voices import MODELS, Api, Said, error, stream, whole

PATHS: dict[Api, tuple[str, ...]] = {
    "chat": ("/v1/chat/completions",),
    "responses": ("/v1/responses",),
    "messages": ("/v1/messages",),
    "gemini": tuple(
        f"/{version}/models/{MODELS['gemini']}:{verb}"
        for version in ("v1", "v1beta")
        for verb in ("generateContent", "streamGenerateContent")
    ),
}
"""Where each SDK asks; google-genai 3 uses ``v1``, 2 uses ``v1beta``."""


def speak(provider: Provider, said: Said) -> None:
    """Let *provider* answer with *said*, whole or streamed, as it is asked."""

    async def script(heard: Heard, wire: Wire) -> None:
        if is_streamed(heard):
            await wire.stream(stream(said, heard.body))
        else:
            await wire.answer(whole(said))

    act(provider, said.api, script)


def act(provider: Provider, api: Api, script: Script) -> None:
    for path in PATHS[api]:
        provider.on(path, script)


def is_streamed(heard: Heard) -> bool:
    return "streamGenerateContent" in heard.path or b'"stream":true' in heard.body.replace(b" ", b"")


def fail(provider: Provider, api: Api, status: int, message: str = "as the provider words it", *more: str) -> None:
    """Let *provider* answer with an error of its own; *more* are header lines."""

    async def script(_heard: Heard, wire: Wire) -> None:
        await wire.answer(error(api, message, status), f"{status} Failed", "application/json", *more)

    act(provider, api, script)


def reset(provider: Provider, api: Api) -> None:
    """Let *provider* drop the connection before any answer."""

    async def script(_heard: Heard, wire: Wire) -> None:
        wire.reset()

    act(provider, api, script)


def hang(provider: Provider, api: Api) -> None:
    """Let *provider* never answer; it waits until whoever asked goes away."""

    async def script(_heard: Heard, _wire: Wire) -> None:
        await asyncio.Event().wait()

    act(provider, api, script)


def hesitate(provider: Provider, said: Said, go_on: threading.Event) -> list[bool]:
    """Let *provider* fall silent in the middle of a stream until *go_on*; return a list that tells whether it was
    set."""
    in_time: list[bool] = []

    async def script(heard: Heard, wire: Wire) -> None:
        events = stream(said, heard.body)
        half = len(events) // 2 + 1
        await wire.stream_head()
        for event in events[:half]:
            await wire.chunk(event)
        in_time.append(await asyncio.to_thread(go_on.wait, 10))
        for event in events[half:]:
            await wire.chunk(event)
        await wire.send(b"0\r\n\r\n")

    act(provider, said.api, script)
    return in_time
