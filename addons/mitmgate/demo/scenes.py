"""The scenes of the demo, in order: the table that the app plays from and the provider answers by.

A scene that a later room adds is a row here, an answer in ``speech`` where it needs one of its own, and nothing else.
A scene with the prompt of an earlier one asks the same again.
"""

from dataclasses import dataclass
from typing import Literal

type Api = Literal["chat", "responses", "messages", "gemini"]
type Ending = Literal["whole", "cut", "client leaves", "refused"]
"""``refused``: by a limit of the demo's policy; the provider is not asked."""
type Trouble = Literal["busy", "down"]
"""``busy``: turned away with 429 the first time; ``down``: 503 from OpenAI, while Azure answers."""


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    """Shown, and sent as the tag ``scene``."""
    api: Api
    prompt: str
    """The provider knows a scene by it."""
    answer: str
    """As the app gets it."""
    model: str
    """As the app asks for it."""
    input_tokens: int
    """All input, cached included."""
    output_tokens: int
    cached_tokens: int = 0
    """Of the input, read from the provider's prompt cache."""
    stream: bool = False
    ending: Ending = "whole"
    trouble: Trouble | None = None
    tool: bool = False
    """The answer is a call of the tool ``weather``."""
    heard: str | None = None
    """The prompt as the provider gets it, where a guard changes it; the provider then knows the scene by this alone."""
    said: str | None = None
    """The answer as the provider gives it, where that is not how the app gets it."""
    answers_as: str | None = None
    """The model that answers, where a budget has the call asked of another one."""
    tenant: str = "acme"
    feature: str = "faq"


SCENES: tuple[Scene, ...] = (
    Scene(
        "OpenAI chat, one answer", "chat", "What is a gateway?",
        "A door that keeps books.", "gpt-5-mini", 21, 9,
    ),
    Scene(
        "OpenAI chat, streamed", "chat", "Why would I stream an answer?",
        "So that the first word is there before the last one is thought of.", "gpt-5-mini", 23, 16, stream=True,
    ),
    Scene(
        "OpenAI chat, a tool call", "chat", "What is the weather in Cape Town?",
        '{"city":"Cape Town"}', "gpt-5-mini", 64, 18, tool=True, feature="agent",
    ),
    Scene(
        "OpenAI Responses, streamed", "responses", "Name a color of the sea.",
        "Green, where it is shallow.", "gpt-5", 25, 11, stream=True, tenant="globex",
    ),
    Scene(
        "Anthropic, a cached prompt", "messages", "Sum up the handbook.",
        "Be kind, and write it down.", "claude-haiku-4-5", 2_148, 12, cached_tokens=2_048,
    ),
    Scene(
        "Anthropic, streamed", "messages", "What does a proxy see?",
        "What it is shown, and nothing it is not.", "claude-haiku-4-5", 27, 14, stream=True, tenant="globex",
    ),
    Scene(
        "Gemini, one answer", "gemini", "How many bits are in a byte?",
        "Eight, since about 1964.", "gemini-2.5-flash", 8, 9,
    ),
    Scene(
        "Gemini, streamed", "gemini", "Say something about rivers.",
        "They are never in a hurry, and always there.", "gemini-2.5-flash", 6, 13, stream=True, tenant="globex",
    ),
    Scene(
        "OpenAI chat, streamed, asked again", "chat", "Why would I stream an answer?",
        "So that the first word is there before the last one is thought of.", "gpt-5-mini", 23, 16, stream=True,
    ),
    Scene(
        "OpenAI chat, while it is busy", "chat", "What is patience?",
        "To come back when one was told to.", "gpt-5-mini", 10, 10, trouble="busy", feature="agent",
    ),
    Scene(
        "OpenAI chat, while it is down", "chat", "Is anybody there?",
        "Yes, in another house.", "gpt-5-mini", 11, 8, stream=True, trouble="down", feature="agent",
    ),
    Scene(
        "OpenAI chat, an address in it", "chat", "Ask ada@example.org to tea.",
        "Dear ada@example.org: tea!", "gpt-5-mini", 12, 10, stream=True, tenant="initech", feature="agent",
        heard="Ask [email_1] to tea.", said="Dear [email_1]: tea!",
    ),
    Scene(
        "OpenAI chat, over a limit", "chat", "And a second cup?",
        "", "gpt-5-mini", 0, 0, ending="refused", tenant="initech", feature="agent",
    ),
    Scene(
        "OpenAI chat, near a budget's end", "chat", "What is enough?",
        "Less than one thinks.", "gpt-5", 10, 7, tenant="globex", feature="agent", answers_as="gpt-5-mini",
    ),
    Scene(
        "OpenAI chat, cut by the provider", "chat", "Tell me a story.",
        "Once upon a time there was a connection that", "gpt-5-mini", 12, 0, stream=True, ending="cut", feature="agent",
    ),
    Scene(
        "Anthropic, the client leaves", "messages", "Count as far as you can.",
        " ".join(map(str, range(1, 400))), "claude-haiku-4-5", 15, 0,
        stream=True, ending="client leaves", feature="agent",
    ),
)  # fmt: skip

LEAVES_AFTER = 3
"""Words that the client which leaves waits for."""


def scene_of(body: bytes) -> Scene | None:
    """Return the scene whose prompt, as the provider gets it, stands in a request's *body*."""
    return next((scene for scene in SCENES if (scene.heard or scene.prompt).encode() in body), None)
