"""What mitmweb shows of a call: the prompt as a conversation, the answer assembled from its events.

Two content views, first choice wherever a dialect knows the path: ``LLM prompt`` for requests, ``LLM answer`` for
answers, whole or half, also while they stream. They work on the bytes that mitmproxy keeps, so they also read flows out
of a file.

Promises: a view never raises; what it cannot read it shows as it is. Whatever a stranger wrote stands indented below a
heading of ours, so that it cannot pass for one, and holds no character that acts instead of showing.
"""

import ipaddress
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mitmproxy import contentviews, http
from mitmproxy.contentviews import Metadata

from mitmgate import dialects
from mitmgate.dialects.base import Call, Dialect, Json, Reading, Turn
from mitmgate.inert import inert, inert_lines
from mitmgate.providers import Hosts

log = logging.getLogger("mitmgate.web")

type Find = Callable[[http.HTTPFlow], Dialect | None]

PRIORITY = 2.0
"""mitmproxy's own views claim at most 1."""
CUT = "mitmgate.cut"
"""Key of a flow's metadata: of the answer only the beginning was kept."""

NOT_SETTINGS = frozenset(
    {"model", "stream", "messages", "input", "prompt", "contents", "system", "instructions", "systemInstruction",
     "system_instruction", "tools", "functions"}
)  # fmt: skip
"""Members of a request body that are shown in a place of their own."""
SETTING_CHARS = 200
"""A longer setting, e.g. a JSON schema for the answer, is cut."""
READ_BYTES = 8 << 20
"""A larger body is left to mitmproxy's views: reading it would hold up every stream."""
READABLE = ("json", "stream", "text")
"""Parts of the content types that a dialect can read; audio and images are for other views."""


# -- text of strangers ------------------------------------------------------------------------------------------------


def indented(text: str) -> str:
    """Return *text*, its lines indented, so that nobody can forge a heading."""
    return "\n".join(f"    {line}" if line else "" for line in inert_lines(text).split("\n"))


# -- the prompt -------------------------------------------------------------------------------------------------------


def prompt(dialect: Dialect, path: str, body: bytes) -> str:
    """Return a request as text; raises where *body* is no JSON that the dialect understands."""
    parsed: Json = json.loads(body) if body.strip() else None
    request = dialect.read_request(path, parsed)
    head = [request.model or "no model named", dialect.name]
    if request.stream:
        head.append("stream")
    lines = [inert(" · ".join(head))]
    if found := settings(parsed):
        lines.append("settings  " + inert(", ".join(found)))
    if offered := tools(parsed):
        lines.append("tools     " + inert(", ".join(offered)))
    return "\n".join([*lines, "", conversation(dialect.conversation(parsed))])


def settings(body: Json) -> list[str]:
    """Return what else a request asks for: ``["temperature 0.2", "seed 7"]``."""
    if not isinstance(body, dict):
        return []
    return [f"{name} {_short(value)}" for name, value in body.items() if name not in NOT_SETTINGS and value is not None]


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SETTING_CHARS else text[: SETTING_CHARS - 1] + "…"


def tools(body: Json) -> list[str]:
    """Return the tools offered to the model, with their parameters: ``["get_weather(city, unit)", "web_search"]``."""
    if not isinstance(body, dict):
        return []
    config = body.get("toolConfig")
    of_bedrock = config.get("tools") if isinstance(config, dict) else None
    offered = [*_list(body.get("tools")), *_list(body.get("functions")), *_list(of_bedrock)]
    return [_signature(tool) for entry in offered for tool in _declared(entry)]


def _list(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []


def _declared(entry: Json) -> list[Json]:
    """Return the tools in one entry of ``tools``: Gemini puts many into one, Bedrock wraps each."""
    if not isinstance(entry, dict):
        return [entry]
    for wrapper in ("functionDeclarations", "function_declarations"):
        if isinstance(entry.get(wrapper), list):
            return list(entry[wrapper])
    for wrapper in ("function", "toolSpec"):
        if isinstance(entry.get(wrapper), dict):
            return [entry[wrapper]]
    return [entry]


def _signature(tool: Json) -> str:
    if not isinstance(tool, dict):
        return _short(tool)
    name = tool.get("name") or tool.get("type")
    if not name:
        return _short(next(iter(tool), tool))  # Gemini's own tools are their only member: {"googleSearch": {}}
    schema = tool.get("parameters") or tool.get("input_schema") or tool.get("inputSchema")
    if isinstance(schema, dict) and isinstance(schema.get("json"), dict):
        schema = schema["json"]
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return f"{name}({', '.join(properties)})" if isinstance(properties, dict) else str(name)


def conversation(turns: list[Turn]) -> str:
    """Return turns as text: the role as a heading, the words indented."""
    return "\n\n".join(f"{inert(turn.role)}\n{indented(turn.text)}" for turn in turns)


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer beside its body."""

    call: Call
    running: bool = False
    """More of it may come."""
    cut: bool = False
    """Only its beginning was kept."""


def answer(dialect: Dialect, known: Answer, body: bytes) -> str:
    """Return an answer as text, whole or as far as it has come."""
    reading = _read(dialect, known, body)
    turns = dialect.answer(known.call.headers.get("content-type", ""), body)
    lines = [inert(line) for line in (_head(known, reading), _counts(reading)) if line]
    if known.cut:
        lines.append("only the beginning of this answer was kept; its counts are in the comment")
    if turns:
        return "\n".join([*lines, "", conversation(turns)])
    rest = indented(body.decode("utf-8", "replace")) if body else "nothing yet" if known.running else "no content"
    return "\n".join([*lines, "", rest])


def _read(dialect: Dialect, known: Answer, body: bytes) -> Reading:
    reader = dialect.reader(known.call)
    reader.feed(body)
    if not known.running:
        reader.end()
    return reader.reading


def _head(known: Answer, reading: Reading) -> str:
    model = reading.response_model or known.call.request_model or "no model named"
    parts = [model, str(known.call.status)]
    if known.running:
        parts.append("still running")
    if reading.error_type:
        parts.append(f"error {reading.error_type}")
    return " · ".join(parts)


def _counts(reading: Reading) -> str:
    """Return ``12+34 tokens (8 cached, 20 reasoning) · finish stop · 1 tool call``; empty where nothing is known."""
    usage = reading.usage
    parts = []
    if reading.usage_seen:
        shares = [
            f"{count} {name}"
            for count, name in (
                (usage.cache_read_input_tokens, "cached"),
                (usage.cache_creation_input_tokens, "written to cache"),
                (usage.reasoning_output_tokens, "reasoning"),
            )
            if count
        ]
        parts.append(tokens(usage.input_tokens, usage.output_tokens) + (f" ({', '.join(shares)})" if shares else ""))
    if reading.finish_reasons:
        parts.append("finish " + ", ".join(reading.finish_reasons))
    if reading.tool_calls:
        parts.append(f"{reading.tool_calls} tool call{'s' if reading.tool_calls > 1 else ''}")
    return " · ".join(parts)


def tokens(read: int | None, written: int | None) -> str:
    """Return ``12+34 tokens``; ``?`` for what nobody said."""
    return f"{'?' if read is None else read}+{'?' if written is None else written} tokens"


# -- as mitmproxy wants them ------------------------------------------------------------------------------------------


class Prompt(contentviews.Contentview):
    """``LLM prompt``."""

    name = "LLM prompt"

    def __init__(self, find: Find) -> None:
        self.find = find

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        readable = 0 < len(data) <= READ_BYTES
        return PRIORITY if readable and _is(metadata, http.Request) and _dialect(self.find, metadata) else -1

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        dialect, flow = _dialect(self.find, metadata), metadata.flow
        if dialect is None or not isinstance(flow, http.HTTPFlow):
            return _as_it_is(data)
        return _shown(data, lambda: prompt(dialect, flow.request.path, data))


class AnswerView(contentviews.Contentview):
    """``LLM answer``."""

    name = "LLM answer"

    def __init__(self, find: Find) -> None:
        self.find = find

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        kind = metadata.content_type or ""
        readable = len(data) <= READ_BYTES and (not kind or any(word in kind for word in READABLE))
        return PRIORITY if readable and _is(metadata, http.Response) and _dialect(self.find, metadata) else -1

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        dialect, flow = _dialect(self.find, metadata), metadata.flow
        if dialect is None or not isinstance(flow, http.HTTPFlow) or flow.response is None:
            return _as_it_is(data)
        return _shown(data, lambda: answer(dialect, known_of(dialect, flow), data))


def known_of(dialect: Dialect, flow: http.HTTPFlow) -> Answer:
    """Return what *flow* tells of its answer."""
    response = flow.response
    if response is None:
        raise ValueError("the flow has no answer yet")
    request = dialect.read_request(flow.request.path, _json(flow.request))
    headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
    call = Call(response.status_code, headers, request.stream, flow.request.path, request.model)
    return Answer(call, flow.live and response.timestamp_end is None, bool(flow.metadata.get(CUT)))


def _json(request: http.Request) -> Json:
    try:
        return json.loads(request.get_content(strict=False) or b"null")
    except (ValueError, RecursionError):
        return None


def finder(hosts: Hosts) -> Find:
    """Return a function that knows the dialect of a flow; None where no LLM is called."""

    def find(flow: http.HTTPFlow) -> Dialect | None:
        request = flow.request
        host = flow.client_conn.sni if flow.client_conn.sni and _is_ip(request.host) else request.host
        provider = hosts.find(host, request.port)
        return dialects.find(provider, request.method, request.path) if provider else None

    return find


def register(hosts: Hosts) -> None:
    """Make both views known to mitmproxy, in place of those of an earlier gateway in this process."""
    find = finder(hosts)
    contentviews.add(Prompt(find))
    contentviews.add(AnswerView(find))


def _is(metadata: Metadata, kind: type[http.Message]) -> bool:
    return isinstance(metadata.http_message, kind)


def _dialect(find: Find, metadata: Metadata) -> Dialect | None:
    return find(metadata.flow) if isinstance(metadata.flow, http.HTTPFlow) else None


def _shown(data: bytes, render: Callable[[], str]) -> str:
    try:
        return render()
    except Exception:
        log.debug("web: a body is shown as it is", exc_info=True)
        return _as_it_is(data)


def _as_it_is(data: bytes) -> str:
    return "\n".join(inert(line) for line in data.decode("utf-8", "replace").splitlines())


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
