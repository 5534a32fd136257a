"""What an answer says is looked at in every API's own words, however it is cut; all other bytes go on as they came."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli.usage import folders_of
from mitmgate.guard_find import Channel, Finders, placeholder
from mitmgate.guard_frames import Framing, Unreadable, framing_of
from mitmgate.guard_lines import BEGIN, END
from mitmgate.guard_texts import Stream, Texts, repeats
from mitmgate.policy.values import Guard
from support.speech import DONE, sse
from support.tellings import TELLINGS, Telling, strings

SECRET = "sk-ant-Ab12Cd34Ef56"
OWN = r"sk-ant-[A-Za-z0-9]{12}"
TEXT = f"My key is {SECRET}, keep it."
HIDDEN = "My key is [pattern], keep it."

KINDS = ("secret", "credit_card", "email", "phone", "national_id", "iban", "ip_address")


@cache
def finders(*find: str) -> Finders:
    return Finders([Guard("hide", find=find, sides=frozenset({"response"}), then="redact")])


def stream(framing: Framing = "events", *find: str) -> Stream:
    found = finders(*(find or (OWN,)))

    def channel(is_json: bool, _source: str) -> Channel:
        return Channel(found, (0,), lambda one, text: BEGIN + placeholder(one) + END if is_json else placeholder(one))

    return Stream(framing, channel)


def through(one: Stream, frames: Iterable[bytes], cut: int | None = None) -> bytes:
    """Return what *one* makes of a stream, fed frame by frame or in pieces of *cut* bytes."""
    if cut:
        whole = b"".join(frames)
        frames = [whole[at : at + cut] for at in range(0, len(whole), cut)]
    return b"".join([*map(one.feed, frames), one.end()])


def said_in(telling: Telling, body: bytes) -> list[str]:
    """Return every string that stands in *body*, with those within the arguments of tools."""
    found = [one for value in telling.values(body) for one in strings(value)]
    return [*found, body.decode("utf-8", "replace")]


def telling(name: str) -> Telling:
    [found] = [one for one in TELLINGS if one.name == name]
    return found


ALL = pytest.mark.parametrize("telling", TELLINGS, ids=str)


@ALL
def test_a_secret_is_hidden_wherever_it_is_cut(telling: Telling) -> None:
    for at in range(1, len(TEXT)):
        body = through(stream(telling.framing), telling.frames(TEXT[:at], TEXT[at:]))

        assert telling.heard(body) == HIDDEN, at
        assert all(whole == HIDDEN for whole in telling.repeated(body))
        assert not [one for one in said_in(telling, body) if SECRET in one]


@ALL
@pytest.mark.parametrize("cut", [None, 1, 7, 64])
def test_a_secret_is_hidden_that_comes_letter_by_letter(telling: Telling, cut: int | None) -> None:
    frames = telling.frames(*TEXT)

    body = through(stream(telling.framing), frames, cut)

    assert telling.heard(body) == HIDDEN
    assert not [one for one in said_in(telling, body) if SECRET in one]


@ALL
@pytest.mark.parametrize("cut", [None, 1, 7, 64])
def test_a_stream_without_a_finding_goes_on_byte_for_byte(telling: Telling, cut: int | None) -> None:
    frames = telling.frames("Grüße, ", 'a "word"', "\n and 😀 more.")

    assert through(stream(telling.framing), frames, cut) == b"".join(frames)


@ALL
def test_what_is_held_at_the_end_is_said_after_all(telling: Telling) -> None:
    frames = telling.frames("It begins with ", "sk-", "ant-")

    body = through(stream(telling.framing), frames)

    assert telling.heard(body) == "It begins with sk-ant-"
    assert all(whole == "It begins with sk-ant-" for whole in telling.repeated(body))


@ALL
def test_a_frame_goes_on_before_the_next_one_comes(telling: Telling) -> None:
    one = stream(telling.framing)
    frames = telling.frames("The first words, ", "and others.")
    late = 1 if telling.framing == "list" else 0  # a list's bracket waits for its element

    sent = [one.feed(frame) for frame in frames]

    assert b"".join(sent[: 1 + late]) == b"".join(frames[: 1 + late])
    assert all(sent[late:-1])


# -- which text goes on where -----------------------------------------------------------------------------------------


def chat(index: int = 0, finish: str | None = None, **delta: Any) -> bytes:
    return sse({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})


def call(arguments: str, index: int = 0, **more: str) -> bytes:
    named = {"name": more.pop("name")} if "name" in more else {}
    return chat(tool_calls=[{"index": index, **more, "function": {**named, "arguments": arguments}}])


def deltas(body: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Return (choice, delta) of each chunk."""
    chunks = [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]
    return [(choice["index"], choice["delta"]) for one in chunks for choice in one["choices"]]


def content_of(body: bytes, index: int = 0, name: str = "content") -> str:
    return "".join(delta.get(name) or "" for choice, delta in deltas(body) if choice == index)


HALVES = SECRET[:9], SECRET[9:]


def test_texts_of_several_choices_are_told_apart() -> None:
    frames = [chat(n, content=half) for half in HALVES for n in (0, 1)]

    body = through(stream(), [*frames, chat(0, "stop"), chat(1, "stop"), DONE])

    assert (content_of(body, 0), content_of(body, 1)) == ("[pattern]", "[pattern]")


def test_arguments_of_several_calls_are_told_apart() -> None:
    frames = [call('{"a": "', 0, name="f"), call('{"a": "', 1, name="g")]
    frames += [call(half, n) for half in HALVES for n in (0, 1)]
    frames += [call('"}', 0), call('"}', 1), chat(finish="tool_calls"), DONE]

    body = through(stream(), frames)

    calls = ["", ""]
    for _, delta in deltas(body):
        for one in delta.get("tool_calls", []):
            calls[one["index"]] += one["function"]["arguments"]
    assert calls == ['{"a": "[pattern]"}'] * 2


def test_a_new_call_in_the_place_of_an_old_one_begins_a_new_text() -> None:
    frames = [call('{"a": "sk-', id="call_1", name="f"), call(f"ant-{SECRET[7:]}", id="call_2", name="f"), DONE]

    body = through(stream(), frames)

    calls = [delta["tool_calls"][0] for _, delta in deltas(body)]
    assert [(one.get("id"), one["function"]["arguments"]) for one in calls] == [
        ("call_1", '{"a": "'),
        (None, "sk-"),
        ("call_2", f"ant-{SECRET[7:]}"),
    ]


def test_a_thought_is_whole_before_the_answer_begins() -> None:
    frames = [chat(reasoning_content="so it is s"), chat(content="It is"), chat(finish="stop"), DONE]

    body = through(stream(), frames)

    assert deltas(body)[:2] == [(0, {"reasoning_content": "so it is "}), (0, {"reasoning_content": "s"})]
    assert content_of(body) == "It is"


def test_words_are_whole_before_a_call_begins() -> None:
    frames = [chat(content="I call s"), call("{}", name="f", id="call_1"), chat(finish="tool_calls"), DONE]

    body = through(stream(), frames)

    assert [next(iter(delta), None) for _, delta in deltas(body)] == ["content", "content", "tool_calls", None]
    assert content_of(body) == "I call s"


def test_what_is_held_takes_the_place_that_the_last_frame_has_for_it() -> None:
    frames = [chat(content="hello s"), chat(content="", finish="stop"), DONE]

    assert deltas(through(stream(), frames)) == [(0, {"content": "hello "}), (0, {"content": "s"})]


def test_what_is_held_has_a_frame_of_its_own_where_the_last_one_has_no_place_for_it() -> None:
    frames = [chat(content="hello s"), chat(finish="stop"), DONE]

    body = through(stream(), frames)

    assert body == b"".join([chat(content="hello "), chat(content="s"), *frames[1:]])


def test_a_call_is_not_made_twice_by_what_is_held_of_it() -> None:
    frames = [call('{"a": "s', id="call_1", name="f"), chat(finish="tool_calls"), DONE]

    body = through(stream(), frames)

    assert [delta.get("tool_calls") for _, delta in deltas(body)] == [
        [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a": "'}}],
        [{"index": 0, "function": {"arguments": "s"}}],
        None,
    ]


@pytest.mark.parametrize(
    "frames",
    [
        [chat(content=HALVES[0], finish="stop"), chat(content=HALVES[1], finish="stop")],
        [chat(content=HALVES[0]), call("{}", name="f"), chat(content=HALVES[1])],
        [chat(reasoning_content=HALVES[0]), chat(content="x"), chat(reasoning_content=HALVES[1])],
    ],
    ids=["a finish reason in every chunk", "a call between", "the answer between"],
)
def test_a_text_that_goes_on_after_its_end_is_still_one(frames: list[bytes]) -> None:
    body = through(stream(), [*frames, DONE])

    for name in ("content", "reasoning_content"):
        assert HALVES[1] not in content_of(body, name=name)


def test_of_a_text_that_is_said_again_and_again_nothing_shows_before_it_is_certain() -> None:
    def so_far(text: str, finish: str = "null") -> bytes:
        return sse({"output": {"text": text, "finish_reason": finish}})

    frames = [so_far(TEXT[:at]) for at in range(1, len(TEXT))]
    one = stream()
    one.repeats = True

    body = through(one, [*frames, so_far(TEXT, "stop")])

    said = [json.loads(event[6:])["output"]["text"] for event in body.split(b"\n\n") if event]
    assert said[-1] == HIDDEN
    assert all(HIDDEN.startswith(text) for text in said)


@pytest.mark.parametrize(
    ("path", "parameters", "again"),
    [
        ("/api/v1/services/aigc/text-generation/generation", {}, True),
        ("/api/v1/services/aigc/text-generation/generation", {"incremental_output": False}, True),
        ("/api/v1/services/aigc/text-generation/generation", {"incremental_output": True}, False),
        ("/v1/chat/completions", {}, False),
    ],
)
def test_only_dashscope_says_its_output_again_and_again(path: str, parameters: dict[str, Any], again: bool) -> None:
    assert repeats(path, {"parameters": parameters}) is again


def test_a_text_that_goes_on_after_its_end_is_said_once() -> None:
    pieces = ["I s", "ay s", "k", "-", "ant no more"]

    body = through(stream(), [chat(content=piece, finish="stop") for piece in pieces])

    assert content_of(body) == "I say sk-ant no more"


def test_probabilities_of_tokens_do_not_tell_what_is_hidden() -> None:
    def probable(content: str) -> bytes:
        odds = {"content": [{"token": content, "logprob": -0.1, "bytes": list(content.encode())}]}
        return sse({"choices": [{"index": 0, "delta": {"content": content}, "logprobs": odds}]})

    frames = [probable("Key: "), *map(probable, HALVES), probable("."), DONE]

    events = through(stream(), frames).split(b"\n\n")

    assert events[0] + b"\n\n" == frames[0]
    assert [json.loads(event[6:])["choices"][0].get("logprobs") for event in events[1:3]] == [None, None]
    assert not any(half.encode() in event for half in HALVES for event in events)


def test_of_two_members_with_one_name_none_is_passed_over() -> None:
    twice = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{SECRET}","content":"x"}}}}]}}\n\n'

    body = through(stream(), [twice.encode()])

    assert SECRET.encode() not in body
    assert content_of(body) == "x"


def test_a_number_that_a_model_writes_is_text_as_well() -> None:
    args = {"card": 4111111111111111, "more": [4111111111111111, 411111111, -4111111111111111, 4111111111111111.5]}
    frame = sse({"created": 4111111111111111, "message": {"tool_calls": [{"function": {"arguments": args}}]}})

    body = through(stream("events", "4111111111111111"), [frame])

    made = json.loads(body[6:])
    assert made["created"] == 4111111111111111
    assert made["message"]["tool_calls"][0]["function"]["arguments"] == {
        "card": "[pattern]",
        "more": ["[pattern]", 411111111, -4111111111111111, 4111111111111111.5],
    }


def test_the_name_that_a_model_gives_a_value_tells_what_it_is() -> None:
    args = {
        "password": "hunter2hunter2",
        "word": "hunter2hunter2",
    }
    frame = sse({"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": args}}]}}]})

    body = through(stream("events", "secret"), [frame])

    made = json.loads(body[6:])["candidates"][0]["content"]["parts"][0]["functionCall"]["args"]
    assert (made["password"], made["word"]) == ("[secret]", "hunter2hunter2")


def test_what_a_model_names_is_text_as_well() -> None:
    part = {"functionCall": {"name": "f", "args": {SECRET: 1, "id": SECRET, "deep": [{"data": SECRET}]}}}

    body = through(stream(), [sse({"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]})])

    [args] = [one["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] for one in [json.loads(body[6:])]]
    assert args == {"[pattern]": 1, "id": "[pattern]", "deep": [{"data": "[pattern]"}]}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f": {SECRET}\n\n", ": [pattern]\n\n"),
        (f"data: a\n:{SECRET}\n\n", "data: a\n:\n\n"),
        (f"data: {SECRET}\n\n", "data: [pattern]\n\n"),
        (f"data: a\r\ndata: {SECRET}\r\n\r\n", "data: a\r\ndata: [pattern]\r\n\r\n"),
        (f"{SECRET}\n\n", "[pattern]\n\n"),
        (f'error: {{"message": "{SECRET}"}}\n\n', 'error: {"message": "[pattern]"}\n\n'),
        (f'{{"error": {{\n"message": "{SECRET}"}}}}\n\n', '{"error": {\n"message": "[pattern]"}}\n\n'),
        (f'data: {{"error": "{SECRET}"}}', 'data: {"error": "[pattern]"}'),
        (f'\ufeffdata: {{"content": "{SECRET}"}}', '\ufeffdata: {"content": "[pattern]"}'),
        (f'id: 1\ndata: {{"note":\ndata: "{SECRET}"}}\n\n', 'id: 1\ndata: {"note":\ndata: "[pattern]"}\n\n'),
    ],
    ids=[
        "comment",
        "aside",
        "text",
        "text in lines",
        "no field",
        "error field",
        "bare JSON",
        "no end",
        "mark",
        "JSON in lines",
    ],
)
@pytest.mark.parametrize("cut", [None, 1])
def test_nothing_in_an_event_is_passed_over(before: str, after: str, cut: int | None) -> None:
    assert through(stream(), [before.encode()], cut) == after.encode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f'["{SECRET}", {{"text": "{SECRET}"}}, "{SECRET}"]', '["[pattern]", {"text": "[pattern]"}, "[pattern]"]'),
        (f'[{{"note": "{SECRET}"}}] {SECRET}', '[{"note": "[pattern]"}] [pattern]'),
        (f'[{{"text": "{SECRET}"', '[{"text": "[pattern]"'),
        ("[]", "[]"),
    ],
    ids=["strings", "behind it", "broken off", "empty"],
)
@pytest.mark.parametrize("cut", [None, 1])
def test_nothing_in_a_list_is_passed_over(before: str, after: str, cut: int | None) -> None:
    assert through(stream("list"), [before.encode()], cut) == after.encode()


# -- arguments of tools ------------------------------------------------------------------------------------------------


def arguments_of(*pieces: str, find: str = OWN) -> str:
    body = through(stream("events", find), [*map(call, pieces), chat(finish="tool_calls"), DONE])
    return "".join(one["function"]["arguments"] for _, delta in deltas(body) for one in delta.get("tool_calls", []))


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (f'{{"a": "\\n{SECRET}"}}', {"a": "\n[pattern]"}),
        (f'{{"a": "\\u0073{SECRET[1:]}"}}', {"a": "[pattern]"}),
        (f'{{"a": "\\"{SECRET}\\" \\u00e9 \\ud83d\\ude00 \\\\"}}', {"a": '"[pattern]" é 😀 \\'}),
        ('{"a": "\\u0001\\t", "b": 2}', {"a": "\x01\t", "b": 2}),
    ],
)
def test_escapes_are_undone_for_the_look_wherever_they_are_cut(arguments: str, seen: dict[str, Any]) -> None:
    word = rf"\b{OWN}\b"
    for at in range(1, len(arguments)):
        assert json.loads(arguments_of(arguments[:at], arguments[at:], find=word)) == seen, at


def test_a_placeholder_in_place_of_a_number_leaves_the_arguments_readable() -> None:
    given = '{"card": 4111111111111111, "text": "4111111111111111, please", "more": [4111111111111111]}'
    for at in range(1, len(given)):
        made = json.loads(arguments_of(given[:at], given[at:], find="4111111111111111"))
        assert made == {"card": "[pattern]", "text": "[pattern], please", "more": ["[pattern]"]}, at


# -- whole answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}]}, [HIDDEN, "stop"]),
        ({"error": {"message": TEXT, "type": "invalid_request_error"}}, [HIDDEN, "invalid_request_error"]),
        ({"content": [{"type": "tool_use", "input": {"id": TEXT}}]}, ["tool_use", HIDDEN]),
        (
            {"output": [{"type": "function_call", "arguments": json.dumps({"a": TEXT})}]},
            ["function_call", json.dumps({"a": HIDDEN})],
        ),
        ({"id": SECRET, "signature": SECRET}, [SECRET, SECRET]),
    ],
    ids=["answer", "error", "arguments", "JSON in JSON", "what a model does not write"],
)
def test_a_whole_answer_is_looked_at(before: Any, after: list[str]) -> None:
    body = Texts(stream().channels).body(json.dumps(before).encode())

    values = [one for one in strings(json.loads(body)) if one in after]
    assert values == after


@pytest.mark.parametrize("body", [f"Sorry: {TEXT}", f"<p>{TEXT}</p>", f'{{"broken": "{TEXT}"'])
def test_a_whole_text_is_looked_at(body: str) -> None:
    assert Texts(stream().channels).body(body.encode()) == body.replace(TEXT, HIDDEN).encode()


def test_a_whole_answer_without_a_finding_is_the_very_same() -> None:
    body = b'{ "a" : "\\u00e9 \xff" , "choices":[{"message":{"content":"hello"}}]}'
    assert Texts(stream().channels).body(body) is body


# -- limits ------------------------------------------------------------------------------------------------------------


def test_more_texts_than_anybody_could_follow_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmgate.guard_texts.MOST_LINES", 10)
    with pytest.raises(Unreadable):
        through(stream(), [chat(n, content="s") for n in range(11)])


# -- recordings --------------------------------------------------------------------------------------------------------

CASES = Path(__file__).parents[3] / "shared" / "corpus" / "cases"
FOLDERS = folders_of(CASES) if CASES.is_dir() else []
recorded = pytest.mark.skipif(not FOLDERS, reason="the recorded answers are not here")
NOWHERE = "☃[0-9]{4}"
"""Stands in no recording, nor does any beginning of it."""
NO_STREAM = frozenset({"body", "binary", None})


def recording(folder: Path) -> tuple[bytes, Framing | None]:
    case = json.loads((folder / "case.json").read_bytes())
    body = (folder / "body.bin").read_bytes()
    return body, framing_of(case["response_headers"].get("content-type", ""), body, case["stream"])


def each(folders: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("folder", [pytest.param(folder, id=folder.name) for folder in folders])


@recorded
@each(FOLDERS)
def test_a_recorded_answer_without_a_finding_goes_on_byte_for_byte(folder: Path) -> None:
    body, framing = recording(folder)
    if framing in NO_STREAM or framing is None:
        assert Texts(stream("events", NOWHERE).channels).body(body) == body
        return
    for cut in (None, 1, 7, 64):
        assert through(stream(framing, NOWHERE), [body], cut) == body, cut


@recorded
@each([folder for folder in FOLDERS if recording(folder)[1] not in NO_STREAM])
def test_of_a_recorded_stream_the_cut_cannot_matter(folder: Path) -> None:
    body, framing = recording(folder)
    assert framing is not None
    whole = through(stream(framing, *KINDS), [body])
    for cut in (7, 64):
        assert through(stream(framing, *KINDS), [body], cut).replace(b"\r", b"") == whole.replace(b"\r", b""), cut
