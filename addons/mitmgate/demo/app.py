"""The demo's app: calls three SDKs exactly as any program would, and knows nothing of the gateway but its variables.

Run as ``python -m mitmgate.demo.app`` in the environment that ``mitmgate run`` would give it. Writes one JSON object a
scene to stdout: ``{"scene": …, "saw": …}``. Ends with 1, and a traceback, where an SDK did not get what the provider
said.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from mitmgate.demo.scenes import LEAVES_AFTER, SCENES, Api, Scene

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def main() -> None:
    for scene in SCENES:
        print(json.dumps({"scene": scene.name, "saw": play(scene)}), flush=True)


def play(scene: Scene) -> str:
    """Make the call of *scene*; return what the app got, for people. Raises ValueError on anything else."""
    pieces = CALLS[scene.api](scene)
    if scene.ending == "client leaves":
        return leave(scene, pieces)
    if scene.ending == "cut":
        return bear_the_cut(scene, pieces)
    if scene.ending == "refused":
        return bear_the_refusal(scene, pieces)
    said = "".join(pieces)
    if said != scene.answer:
        raise ValueError(f"{scene.name}: the provider said {scene.answer!r}, the app got {said!r}")
    return f"calls weather({said})" if scene.tool else said + aside(scene)


def leave(scene: Scene, pieces: Iterator[str]) -> str:
    said = "".join(next(pieces) for _ in range(LEAVES_AFTER))
    pieces.close()  # type: ignore[attr-defined]  # a generator: it closes the connection
    return f"{said} … and leaves"


def bear_the_cut(scene: Scene, pieces: Iterable[str]) -> str:
    said = ""
    try:
        for piece in pieces:
            said += piece
    except Exception as e:  # each SDK version has its own name for it
        if not scene.answer.startswith(said):
            raise
        return f"{said} … {type(e).__name__}"
    raise ValueError(f"{scene.name}: the stream ended as if nothing were missing, after {said!r}")


def bear_the_refusal(scene: Scene, pieces: Iterable[str]) -> str:
    from openai import RateLimitError

    try:
        said = "".join(pieces)
    except RateLimitError as e:
        return f"{type(e).__name__}, to be tried again in {e.response.headers['retry-after']} s"
    raise ValueError(f"{scene.name}: it was let through, and the app got {said!r}")


def aside(scene: Scene) -> str:
    """Return what there is to know of an answer besides what it says."""
    if scene.heard:
        return f" (the provider read: {scene.heard})"
    return f" (asked of {scene.model}, answered by {scene.answers_as})" if scene.answers_as else ""


def headers(scene: Scene) -> dict[str, str]:
    """Return the tags by which the gateway files a call."""
    tags = {"tenantId": scene.tenant, "feature": scene.feature, "scene": scene.name}
    return {"cf-aig-metadata": json.dumps(tags)}


# -- the SDKs, imported when their first scene comes ------------------------------------------------------------------


@cache
def openai() -> Any:
    from openai import OpenAI

    return OpenAI(max_retries=0)


@cache
def anthropic() -> Any:
    from anthropic import Anthropic

    return Anthropic(max_retries=0)


@cache
def gemini() -> Any:
    from google import genai

    return genai.Client()


def chat(scene: Scene) -> Iterator[str]:
    answer = openai().chat.completions.create(
        model=scene.model,
        messages=[{"role": "user", "content": scene.prompt}],
        extra_headers=headers(scene),
        stream=scene.stream,
        **({"tools": [WEATHER]} if scene.tool else {}),
    )
    if not scene.stream:
        if answer.model != (scene.answers_as or scene.model):
            raise ValueError(f"{scene.name}: {answer.model} answered")
        message = answer.choices[0].message
        yield message.tool_calls[0].function.arguments if scene.tool else message.content
        return
    with answer:
        for chunk in answer:
            yield chunk.choices[0].delta.content or ""


def responses(scene: Scene) -> Iterator[str]:
    with openai().responses.create(
        model=scene.model, input=scene.prompt, extra_headers=headers(scene), stream=True
    ) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                yield event.delta


def messages(scene: Scene) -> Iterator[str]:
    asked = {
        "model": scene.model,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": scene.prompt}],
        "extra_headers": headers(scene),
    }
    if not scene.stream:
        yield anthropic().messages.create(**asked).content[0].text
        return
    with anthropic().messages.stream(**asked) as answer:
        yield from answer.text_stream


def gemini_content(scene: Scene) -> Iterator[str]:
    from google.genai import types

    asked = {
        "model": scene.model,
        "contents": scene.prompt,
        "config": types.GenerateContentConfig(http_options=types.HttpOptions(headers=headers(scene))),
    }
    if not scene.stream:
        yield gemini().models.generate_content(**asked).text
        return
    for piece in gemini().models.generate_content_stream(**asked):
        yield piece.text


CALLS: dict[Api, Callable[[Scene], Iterator[str]]] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "gemini": gemini_content,
}


if __name__ == "__main__":
    main()
