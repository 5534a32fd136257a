"""Gemini's generateContent, on AI Studio and on Vertex: plain, as events (``alt=sse``), or as one list in pieces.

Source: https://ai.google.dev/api/generate-content. What matters for the books:

- Usage comes in every chunk and is cumulative: the last ``usageMetadata`` with a counter stands, as a whole. It may
  lose a counter that an earlier one had (built-in tools), and Vertex's first ones say no more than ``trafficType``.
- ``candidatesTokenCount`` leaves thoughts out, ``promptTokenCount`` leaves out what tools put into the prompt; cached
  content is inside of the prompt.
- A blocked prompt is a 200 with ``promptFeedback.blockReason`` and no candidate.
- A failure in mid-stream is ``{"error": …}`` as an event, as an element of the list, or as bare lines between the
  events.
- With ``enum-encoding=int`` enums are numbers, and AI Studio and Vertex number them differently.
"""

from typing import Any
from urllib.parse import unquote

from mitmgate.dialects import prompt, refusals
from mitmgate.dialects.base import Call, Json, Reader, Request, Turn, Usage
from mitmgate.dialects.counts import count, items, named, obj, objs, size, text, total
from mitmgate.dialects.framing import Framed, values_of
from mitmgate.errors import Refusal

FINISH = ("FINISH_REASON_UNSPECIFIED", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER")
STUDIO_FINISH = (*FINISH, "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MALFORMED_FUNCTION_CALL",
                 "IMAGE_SAFETY", "UNEXPECTED_TOOL_CALL")  # fmt: skip
VERTEX_FINISH = (*FINISH, "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MALFORMED_FUNCTION_CALL", "MODEL_ARMOR",
                 "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER", "UNEXPECTED_TOOL_CALL",
                 "NO_IMAGE")  # fmt: skip
"""Names by number, of google/ai/generativelanguage/v1beta and google/cloud/aiplatform/v1beta1."""

AUDIO = ("AUDIO", 4)
COUNTERS = frozenset(
    {
        "promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount", "totalTokenCount",
        "cachedContentTokenCount",
    }
)  # fmt: skip
CANDIDATES = 1024


def fill(usage: Usage, raw: dict[str, Any]) -> None:
    """Write into *usage* what *raw*, a ``usageMetadata``, says."""
    usage.input_tokens = total(count(raw.get("promptTokenCount")), count(raw.get("toolUsePromptTokenCount")))
    usage.reasoning_output_tokens = count(raw.get("thoughtsTokenCount"))
    usage.output_tokens = total(count(raw.get("candidatesTokenCount")), usage.reasoning_output_tokens)
    usage.cache_read_input_tokens = count(raw.get("cachedContentTokenCount"))
    usage.input_audio_tokens = _audio(raw.get("promptTokensDetails"))
    usage.cache_read_audio_tokens = _audio(raw.get("cacheTokensDetails"))
    usage.output_audio_tokens = _audio(raw.get("candidatesTokensDetails"))
    usage.service_tier = named(raw.get("serviceTier")) or named(raw.get("trafficType")) or usage.service_tier


def _audio(details: Json) -> int | None:
    if not details:
        return None
    return total(*(count(part.get("tokenCount")) for part in objs(details) if part.get("modality") in AUDIO))


class GenerateReader(Framed):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        vertex = "/publishers/" in call.path or "/endpoints/" in call.path
        self._reasons = VERTEX_FINISH if vertex else STUDIO_FINISH
        self._finish: dict[int, str] = {}
        self._candidates: set[int] = set()
        self._searches: set[str] = set()

    def on_whole(self, value: Json) -> None:
        self._chunk(obj(value))

    def on_event(self, name: bytes, value: Json) -> str | None:
        self._chunk(obj(value))
        self.reading.usage_final = self.reading.usage_seen and self.reading.finished
        self.reading.ended = self.reading.finished
        return None

    def _chunk(self, doc: dict[str, Any]) -> None:
        doc = obj(doc.get("response")) or doc  # Code Assist wraps each chunk
        reading = self.reading
        reading.response_id = reading.response_id or named(doc.get("responseId"))
        reading.response_model = reading.response_model or named(doc.get("modelVersion"))
        for place, candidate in enumerate(objs(doc.get("candidates"))):
            self._candidate(place, candidate)
        usage = obj(doc.get("usageMetadata"))
        if not COUNTERS.isdisjoint(usage):
            reading.usage_seen = True
            fill(reading.usage, usage)
        if obj(doc.get("promptFeedback")).get("blockReason") and not doc.get("candidates"):
            reading.error_type = "content_filter"
            reading.finished = True
        if doc.get("error"):
            self.failed(doc)

    def _candidate(self, place: int, candidate: dict[str, Any]) -> None:
        index = count(candidate.get("index"))
        index = place if index is None else index
        if len(self._candidates) < CANDIDATES:
            self._candidates.add(index)
        for part in objs(obj(candidate.get("content")).get("parts")):
            self._part(part)
        reason = self._reason(candidate.get("finishReason"))
        if reason and index in self._candidates:
            self._finish[index] = reason
            self.reading.finish_reasons[:] = [self._finish[key] for key in sorted(self._finish)]
            self.reading.finished = len(self._finish) == len(self._candidates)
        self._count_searches(obj(candidate.get("groundingMetadata")))

    def _part(self, part: dict[str, Any]) -> None:
        if shown := text(part.get("text")):
            self.saw(size(shown))
        call = obj(part.get("functionCall"))
        if named(call.get("name")):
            self.reading.tool_calls += 1
            self.saw(size(prompt.shown(call)))
        elif call or part.get("inlineData") or part.get("executableCode") or part.get("codeExecutionResult"):
            self.saw(size(text(obj(part.get("executableCode")).get("code"))))

    def _reason(self, value: Json) -> str | None:
        number = count(value)
        if number is None:
            return named(value)
        return self._reasons[number] if 0 < number < len(self._reasons) else str(number) if number else None

    def _count_searches(self, grounding: dict[str, Any]) -> None:
        """Count the web searches: repeated in later chunks, billed each."""
        for query in items(grounding.get("webSearchQueries")):
            if isinstance(query, str) and len(self._searches) < CANDIDATES:
                self._searches.add(query[:200])
        if self._searches:
            self.reading.usage.server_tools["web_search"] = len(self._searches)


class Generate:
    """``POST …/models/NAME:generateContent`` and ``:streamGenerateContent``."""

    name = "gemini.generate"
    operation = "generate_content"
    mutable = frozenset(
        {"contents", "systemInstruction", "system_instruction", "generationConfig", "generation_config"}
    )

    def __init__(self, as_list: bool = False) -> None:
        self._as_list = as_list
        """The stream is one JSON list; False: events."""

    def read_request(self, path: str, body: Json) -> Request:
        request = obj(obj(body).get("request")) or obj(body)
        config = obj(request.get("generationConfig") or request.get("generation_config"))
        system = request.get("systemInstruction") or request.get("system_instruction")
        tools = request.get("tools")
        chars, tokens = prompt.measure([*([system] if system else []), *items(request.get("contents"))], tools)
        return Request(
            model=_model_in(path) or named(obj(body).get("model")),
            stream=":streamGenerateContent" in path,
            input_chars=chars,
            input_tokens_estimate=tokens,
            max_output_tokens=count(config.get("maxOutputTokens")) or count(config.get("max_output_tokens")),
            tools=sum(_declared(tool) for tool in objs(tools)),
        )

    def reader(self, call: Call) -> Reader:
        return GenerateReader(call)

    def error_body(self, refusal: Refusal, log_id: str | None) -> bytes:
        return refusals.body(refusals.google(refusal, log_id))

    def error_event(self, refusal: Refusal, log_id: str | None) -> bytes:
        value = refusals.google(refusal, log_id)
        return b",\r\n" + refusals.body(value) + b"]" if self._as_list else refusals.event(value)

    def ask_usage(self, body: bytes, parsed: Json) -> bytes | None:
        return None  # every chunk has it

    def conversation(self, body: Json) -> list[Turn]:
        request = obj(obj(body).get("request")) or obj(body)
        system = obj(request.get("systemInstruction") or request.get("system_instruction"))
        turns = [Turn("system", _shown(system))] if system else []
        return turns + [Turn(text(turn.get("role")) or "user", _shown(turn)) for turn in objs(request.get("contents"))]

    def answer(self, content_type: str, body: bytes) -> list[Turn]:
        parts: dict[int, list[Any]] = {}
        notes: list[Turn] = []
        for _, value in values_of(content_type, body):
            doc = obj(obj(value).get("response")) or obj(value)
            for place, candidate in enumerate(objs(doc.get("candidates"))):
                index = count(candidate.get("index"))
                found = parts.setdefault(place if index is None else index, [])
                found.extend(objs(obj(candidate.get("content")).get("parts")))
            if reason := obj(doc.get("promptFeedback")).get("blockReason"):
                notes.append(Turn("error", f"[prompt blocked: {prompt.shown(reason)}]"))
            if doc.get("error"):
                notes.append(Turn("error", prompt.shown(doc["error"])))
        return [Turn("model", _shown({"parts": parts[index]})) for index in sorted(parts)] + notes


def _declared(tool: dict[str, Any]) -> int:
    """Return how many functions *tool* declares; a built-in tool is one."""
    return len(items(tool.get("functionDeclarations") or tool.get("function_declarations"))) or 1


def _model_in(path: str) -> str | None:
    """Return NAME of ``…/models/NAME:method``; also of tuned models and endpoints."""
    last = path.partition("?")[0].rpartition("/")[2]
    found, colon, _ = unquote(last).rpartition(":")
    return named(found) if colon else None


def _shown(turn: dict[str, Any]) -> str:
    """Return the parts of a turn for people: runs of text joined, thoughts and others in brackets."""
    lines: list[str] = []
    said = ""
    for part in objs(turn.get("parts")):
        if isinstance(part.get("text"), str) and not part.get("thought"):
            said += part["text"]
            continue
        if said:
            lines.append(said)
        said = ""
        lines.append(_other(part))
    return "\n".join(line for line in (*lines, said) if line)


def _other(part: dict[str, Any]) -> str:
    if part.get("thought"):
        return f"[thinking {text(part.get('text'))}]"
    if call := obj(part.get("functionCall")):
        return prompt.tool_call(call.get("name"), call.get("args"))
    if answer := obj(part.get("functionResponse")):
        return prompt.tool_result(prompt.shown(answer.get("response")))
    if data := obj(part.get("inlineData") or part.get("inline_data") or part.get("fileData")):
        return f"[{text(data.get('mimeType')) or text(data.get('mime_type')) or 'file'}]"
    return f"[{prompt.shown(part)}]" if part else ""
