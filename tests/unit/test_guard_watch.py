"""Between a provider's answer and whoever gets it: what is blocked ends there, what is redacted leaves no trace."""

import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from mitmgate import dialects, guard_filter
from mitmgate.answers import Head
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, How
from mitmgate.guard_find import Finders, hides
from mitmgate.guard_stream import restored, watch
from mitmgate.layer import Gone, Upload
from mitmgate.policy.values import Guard
from mitmgate.sink import Sink
from support.speech import ANSWER, CHAT, DONE, ROLE, STOP, chunk, sse

SECRET = "sk-ant-Ab12Cd34Ef56"
OWN = r"sk-ant-[A-Za-z0-9]{12}"

type Then = Literal["block", "redact", "flag"]


@dataclass
class Heard(Sink):
    """A sink that keeps what it is told."""

    upload: Upload | None = None
    drain: bool = False
    gone: bool = False
    top: Head | None = None
    pieces: list[bytes] = field(default_factory=list)
    how: How | None = None
    refusal: Refusal | None = None

    @property
    def started(self) -> bool:
        return self.top is not None or self.how is not None

    async def head(self, head: Head) -> None:
        assert self.top is None
        self.top = head

    async def data(self, piece: bytes, plain: bytes) -> None:
        assert self.top is not None
        assert self.how is None
        self.pieces.append(piece)

    async def end(self) -> None:
        assert self.top is not None
        self.how = "end"

    async def whole(self, head: Head, body: bytes, plain: bytes) -> None:
        await self.head(head)
        await self.data(body, plain)
        await self.end()

    async def refuse(self, refusal: Refusal, how: How) -> None:
        assert not self.started
        self.refusal, self.how = refusal, how

    async def cut(self, message: str, how: How, last: Refusal | None = None) -> None:
        self.refusal, self.how = last, how

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Rules:
    """A room with one rule after the other."""

    def __init__(self, *rules: Guard) -> None:
        self.rules = rules
        self.finders = Finders(rules)
        self.found: dict[int, Mapping[str, int]] = {}

    def hides(self, rule: int) -> bool:
        return hides(self.rules[rule])

    def blocks(self, rule: int) -> bool:
        return self.rules[rule].then == "block" and not self.rules[rule].shadow

    def forbids(self, rule: int, tool: str) -> bool:
        return bool(self.rules[rule].tools) and tool not in self.rules[rule].tools

    def refusal(self, x: Exchange, rule: int, kinds: Sequence[str]) -> Refusal:
        return Refusal(403, "permission", f"{self.rules[rule].name}: {', '.join(kinds)}", source="guard")

    def unreadable(self, x: Exchange, rule: int, why: str) -> Refusal:
        return Refusal(403, "permission", f"{self.rules[rule].name}: {why}", source="guard")

    def note(self, x: Exchange, found: Mapping[int, Mapping[str, int]]) -> None:
        self.found.update(found)


def rule(then: Then, **more: Any) -> Guard:
    return Guard(then, **{"find": (OWN,), "sides": frozenset({"response"}), "then": then, **more})


def exchange(stream: bool = True) -> Exchange:
    x = Exchange("POST", "https", "api.openai.com", 443, CHAT, [], {}, 0.0, 0.0)
    x.dialect, x.guarded = dialects.CHAT, True
    x.request = replace(x.request, stream=stream)
    return x


def head(content_type: str = "text/event-stream", status: int = 200, **headers: str) -> Head:
    headers = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Head(status, b"OK", [(name.encode(), value.encode()) for name, value in headers.items()], headers)


def watched(*rules: Guard, stream: bool = True) -> tuple[Sink, Heard, Rules, Exchange]:
    x, heard, room = exchange(stream), Heard(), Rules(*rules)
    return watch(x, heard, room, range(len(rules))), heard, room, x


async def write(sink: Sink, *frames: bytes, top: Head | None = None) -> None:
    await sink.head(top or head())
    for frame in frames:
        await sink.data(frame, frame)
    await sink.end()


HALVES = SECRET[:9], SECRET[9:]
LEAKS = [ROLE, chunk("My key: "), *map(chunk, HALVES), chunk("."), STOP, DONE]
PLAIN = [ROLE, chunk("hel"), chunk("lo"), STOP, DONE]


async def test_without_a_rule_nobody_stands_between() -> None:
    sink, heard, _, _ = watched()
    assert sink is heard


# -- redact ------------------------------------------------------------------------------------------------------------


async def test_what_is_redacted_goes_nowhere() -> None:
    sink, heard, room, x = watched(rule("redact"))

    await write(sink, *LEAKS)

    assert heard.how == "end"
    assert b"[pattern]" in heard.body
    assert not [half for half in HALVES if half.encode() in heard.body]
    assert (x.answer.kept, x.answer.kept_whole) == (heard.body, True)
    assert room.found == {0: {"pattern": 1}}


async def test_each_frame_goes_on_before_the_next_comes() -> None:
    sink, heard, _, _ = watched(rule("redact"))
    await sink.head(head())
    for count, frame in enumerate(PLAIN, 1):
        await sink.data(frame, frame)
        assert heard.pieces == PLAIN[:count]


async def test_a_head_tells_nothing_that_is_not_true_any_more() -> None:
    sink, heard, _, _ = watched(rule("redact"))
    top = head(content_encoding="gzip", content_length="99", etag="x", x_request_id="r")

    await write(sink, *PLAIN, top=top)

    assert heard.top is not None
    assert heard.top.fields == [(b"content-type", b"text/event-stream"), (b"x-request-id", b"r")]
    assert heard.top.headers == {"content-type": "text/event-stream", "x-request-id": "r"}


@pytest.mark.parametrize("in_one", [True, False])
async def test_a_plain_answer_is_looked_at_in_whole(in_one: bool) -> None:
    sink, heard, _, _ = watched(rule("redact"), stream=False)
    body = ANSWER.replace(b"hello", SECRET.encode())
    top = head("application/json", content_length=str(len(body)), content_encoding="gzip")

    if in_one:
        await sink.whole(top, gzip.compress(body), body)
    else:
        await write(sink, body[:100], body[100:], top=top)

    assert heard.body == body.replace(SECRET.encode(), b"[pattern]")
    assert heard.top is not None
    length = {"content-length": str(len(heard.body))} if in_one else {}
    assert heard.top.headers == {"content-type": "application/json", **length}


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_a_finding_goes_on_as_it_came(stream: bool) -> None:
    sink, heard, _, x = watched(rule("redact"), stream=stream)
    body = b"".join(PLAIN) if stream else ANSWER
    top = head("text/event-stream" if stream else "application/json", content_encoding="gzip")

    await sink.whole(top, gzip.compress(body), body)

    assert (heard.top, heard.body) == (top, gzip.compress(body))
    assert x.answer.kept == body


async def test_errors_of_a_provider_are_looked_at_as_well() -> None:
    sink, heard, _, _ = watched(rule("redact"))
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}."}}).encode()

    await sink.whole(head("application/json", 401), body, body)

    assert heard.top is not None
    assert heard.top.status == 401
    assert heard.body == body.replace(SECRET.encode(), b"[pattern]")


async def test_findings_are_counted_once_however_often_they_are_said() -> None:
    sink, _, room, _ = watched(rule("redact"))
    said = f"{SECRET} and {SECRET}"
    done = {"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": said}
    delta = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": said}
    item = {"type": "message", "content": [{"type": "output_text", "text": said}]}

    await write(sink, sse(delta), sse(done), sse({"type": "response.completed", "response": {"output": [item]}}))

    assert room.found == {0: {"pattern": 2}}


async def test_sound_and_pictures_pass() -> None:
    sink, heard, _, _ = watched(rule("redact"), stream=False)
    await write(sink, b"\xff\xfb", SECRET.encode(), top=head("audio/mpeg"))
    assert heard.pieces == [b"\xff\xfb", SECRET.encode()]


async def test_a_stream_that_breaks_off_ends_with_what_is_certain() -> None:
    sink, heard, _, _ = watched(rule("redact"))
    await sink.head(head())
    await sink.data(chunk("My key: s"), chunk("My key: s"))
    await sink.data(b'data: {"choices":[{"del', b'data: {"choices":[{"del')

    await sink.cut("the provider broke off", "cut")

    assert (heard.body, heard.how) == (chunk("My key: "), "cut")


async def test_a_stream_that_breaks_off_at_once_has_a_head() -> None:
    sink, heard, _, _ = watched(rule("redact"))
    await sink.head(head())
    await sink.cut("the provider broke off", "cut")
    assert heard.top is not None
    assert (heard.pieces, heard.how) == ([], "cut")


# -- block -------------------------------------------------------------------------------------------------------------


async def test_what_is_blocked_ends_the_stream_in_the_words_of_the_api() -> None:
    sink, heard, _, x = watched(rule("block"))
    with pytest.raises(Gone):
        await write(sink, *LEAKS)

    assert heard.body.startswith(ROLE)
    assert content_of(heard.body) == "My key: "
    assert (heard.how, heard.refusal) == ("refused", x.refusal)
    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.message, x.source) == (403, "block: pattern", "guard")
    assert sink.gone


async def test_what_comes_behind_the_end_is_for_nobody() -> None:
    sink, heard, _, _ = watched(rule("block"))
    sink.drain = True
    await sink.head(head())
    with pytest.raises(Gone):
        for frame in LEAKS:
            await sink.data(frame, frame)
    before = heard.body

    with pytest.raises(Gone):
        await sink.data(STOP, STOP)
    await sink.cut("the provider broke off", "cut")

    assert (heard.body, heard.how) == (before, "refused")


@pytest.mark.parametrize("in_one", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_blocked_before_anything_is_out_is_a_plain_403(stream: bool, in_one: bool) -> None:
    sink, heard, _, x = watched(rule("block"), stream=stream)
    body = b"".join(LEAKS) if stream else ANSWER.replace(b"hello", SECRET.encode())
    top = head("text/event-stream" if stream else "application/json")

    if in_one:
        await sink.whole(top, body, body)
    else:
        with pytest.raises(Gone):
            await write(sink, body, top=top)

    assert (heard.top, heard.how, heard.refusal) == (None, "refused", x.refusal)
    assert x.refusal is not None
    assert x.refusal.status == 403
    assert bytes(x.answer.kept) == b""


TOOLS = Guard("tools", tools=("weather",), sides=frozenset({"response"}), then="block")


@pytest.mark.parametrize(
    ("said", "blocked"),
    [
        ({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "weather"}}]}}]}, False),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "shell"}}]}}]}, True),
        ({"choices": [{"delta": {"function_call": {"name": "shell"}}}]}, True),
        ({"type": "response.output_item.added", "item": {"type": "function_call", "name": "shell"}}, True),
        ({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "shell"}}, True),
        ({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "weather"}}, False),
        ({"candidates": [{"content": {"parts": [{"functionCall": {"name": "shell"}}]}}]}, True),
        ({"contentBlockIndex": 0, "start": {"toolUse": {"name": "shell"}}}, True),
        ({"event_type": "tool-calls-generation", "tool_calls": [{"name": "shell", "parameters": {}}]}, True),
        ({"message": {"tool_calls": [{"function": {"name": "shell", "arguments": {}}}]}}, True),
        ({"message": {"name": "shell"}}, False),
    ],
)
async def test_a_tool_that_is_not_on_the_list_is_not_called(said: dict[str, Any], blocked: bool) -> None:
    sink, heard, room, _ = watched(TOOLS)
    await sink.whole(head(), sse(said), sse(said))
    assert (heard.how == "refused") == blocked
    assert room.found == ({0: {"tool": 1}} if blocked else {})


# -- flag --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "then", [{"then": "flag"}, {"then": "block", "shadow": True}, {"then": "redact", "shadow": True}]
)
async def test_under_rules_that_only_tell_every_byte_goes_on_as_it_came(then: dict[str, Any]) -> None:
    sink, heard, room, _ = watched(replace(rule("flag"), **then))
    top = head(content_encoding="gzip")

    await sink.head(top)
    for frame in LEAKS:
        await sink.data(gzip.compress(frame), frame)
    await sink.end()

    assert (heard.top, heard.pieces, heard.how) == (top, [gzip.compress(frame) for frame in LEAKS], "end")
    assert room.found == {0: {"pattern": 1}}


async def test_a_flag_beside_a_redaction_is_told_as_well() -> None:
    sink, heard, room, _ = watched(rule("redact"), rule("flag", find=("My key",)))
    await write(sink, *LEAKS)
    assert room.found == {0: {"pattern": 1}, 1: {"pattern": 1}}
    assert b"My key" in heard.body


# -- what cannot be looked at ------------------------------------------------------------------------------------------

UNREADABLE = replace(head(content_encoding="x-odd"), readable=False)


@pytest.mark.parametrize("then", ["block", "redact"])
@pytest.mark.parametrize("in_one", [True, False])
async def test_a_coding_that_nobody_can_undo_does_not_pass(then: Then, in_one: bool) -> None:
    sink, heard, _, x = watched(rule("flag"), rule(then))

    if in_one:
        await sink.whole(UNREADABLE, b"\x01\x02", b"\x01\x02")
    else:
        with pytest.raises(Gone):
            await sink.head(UNREADABLE)

    assert (heard.top, heard.how) == (None, "refused")
    assert x.refusal is not None
    assert x.refusal.message.startswith(f"{then}: its content coding")


async def test_a_coding_that_nobody_can_undo_passes_where_rules_only_tell() -> None:
    sink, heard, _, _ = watched(rule("flag"))
    await sink.head(UNREADABLE)
    await sink.data(b"\x01", b"\x01")
    await sink.end()
    assert (heard.top, heard.body, heard.how) == (UNREADABLE, b"\x01", "end")


async def test_a_coding_that_breaks_midway_is_no_regular_end() -> None:
    sink, heard, _, x = watched(rule("redact"))
    await sink.head(head(content_encoding="gzip"))
    await sink.data(b"coded", ROLE)
    x.answer.spoilt = "its data is damaged"

    with pytest.raises(Gone):
        await sink.end()

    assert (heard.body, heard.how) == (ROLE, "refused")


async def test_an_answer_that_is_too_long_to_be_looked_at_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_filter, "BODY_BYTES", 100)
    sink, heard, _, _ = watched(rule("redact"), stream=False)
    with pytest.raises(Gone):
        await write(sink, b"{" + b" " * 99, b" ", top=head("application/json"))
    assert (heard.top, heard.how) == (None, "refused")


class Breaks(Finders):
    """Finders that fail at their work."""

    fault: type[Exception] = ZeroDivisionError

    def look(self, *_: Any) -> Any:
        raise self.fault

    def find(self, *_: Any) -> Any:
        raise self.fault


@pytest.mark.parametrize("fault", [ZeroDivisionError, TimeoutError])
async def test_a_fault_ends_the_answer_where_a_rule_would_have_to_act(
    fault: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    sink, heard, room, x = watched(rule("redact"))
    await sink.head(head())
    await sink.data(ROLE, ROLE)
    room.finders = Breaks(room.rules)
    Breaks.fault = fault

    with pytest.raises(Gone):
        await sink.data(LEAKS[1], LEAKS[1])

    assert (heard.body, heard.how) == (ROLE, "refused")
    assert x.refusal is not None
    assert SECRET not in x.refusal.message
    assert x.refusal.message.startswith("redact: ")


async def test_a_fault_costs_only_the_look_where_rules_only_tell(caplog: pytest.LogCaptureFixture) -> None:
    sink, heard, room, _ = watched(rule("flag"))
    room.finders = Breaks(room.rules)
    with caplog.at_level(logging.ERROR):
        await write(sink, *LEAKS)
    assert (heard.pieces, heard.how) == (LEAKS, "end")


# -- putting back ------------------------------------------------------------------------------------------------------


def putting_back(stream: bool = True, **values: str) -> tuple[Sink, Heard]:
    x, heard = exchange(stream), Heard()
    x.placeholders = {f"[{name}]": value for name, value in values.items()}
    return restored(x, heard), heard


def content_of(body: bytes) -> str:
    chunks = [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for one in chunks for choice in one["choices"])


def test_where_nothing_was_taken_nothing_is_put_back() -> None:
    sink, heard = putting_back()
    assert sink is heard


async def test_values_come_back_wherever_their_placeholders_are_cut() -> None:
    text = "Write to [email_1], [email_10] or [email]; [no] [em"
    for at in range(1, len(text)):
        sink, heard = putting_back(email_1="a@x.example", email_10='"b"@x.example', email="[email_1]")

        await write(sink, ROLE, chunk(text[:at]), chunk(text[at:]), STOP, DONE)

        assert content_of(heard.body) == 'Write to a@x.example, "b"@x.example or [email_1]; [no] [em', at


async def test_a_value_within_arguments_leaves_them_readable() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": '{"to": "[email_1]"}'}}
    sink, heard = putting_back(email_1='"\\a\n@x.example')

    await write(sink, sse({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}), DONE)

    [said] = [json.loads(event[6:]) for event in heard.body.split(b"\n\n") if event.startswith(b"data: {")]
    arguments = said["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"to": '"\\a\n@x.example'}


async def test_a_whole_answer_gets_its_values_back() -> None:
    sink, heard = putting_back(stream=False, email_1='"a"@x.example')
    body = ANSWER.replace(b"hello", b"Dear [email_1],")

    await sink.whole(head("application/json", content_length=str(len(body))), body, body)

    assert json.loads(heard.body)["choices"][0]["message"]["content"] == 'Dear "a"@x.example,'
    assert heard.top is not None
    assert heard.top.headers["content-length"] == str(len(heard.body))


async def test_an_answer_that_nobody_can_read_passes_as_it_is() -> None:
    for in_one in (True, False):
        sink, heard = putting_back(email_1="a@x.example")
        if in_one:
            await sink.whole(UNREADABLE, b"\x01", b"\x01")
        else:
            await sink.head(UNREADABLE)
            await sink.data(b"\x01", b"\x01")
            await sink.end()
        assert (heard.top, heard.body, heard.how) == (UNREADABLE, b"\x01", "end")
