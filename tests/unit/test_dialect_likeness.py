"""An event like the one before is measured without parsing; anything else is not taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate import dialects
from mitmgate.dialects import framing
from mitmgate.dialects.likeness import Likeness
from support.readings import read

MODEL = b'{"id":"a","choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}],"usage":null}'


def learned() -> Likeness:
    likeness = Likeness()
    likeness.learn(b"", MODEL, "hello", b'"content":')
    return likeness


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (MODEL, 5),
        (MODEL.replace(b"hello", b"x"), 1),
        (MODEL.replace(b"hello", "€".encode()), 3),
        (MODEL + b"    ", 5),
        (MODEL.replace(b"hello", b""), 0),
        (MODEL.replace(b"hello", b'a\\"b'), 0),
        (MODEL.replace(b"hello", b"a\\nb"), 0),
        (MODEL.replace(b"hello", b"a\nb"), 0),
        (MODEL.replace(b"hello", b'","role":"assistant'), 0),
        (MODEL.replace(b":null}]", b':"stop"}]'), 0),
        (MODEL.replace(b'"index":0', b'"index":1'), 0),
        (MODEL.replace(b'"usage":null', b'"usage":{}'), 0),
        (MODEL[:-1] + b',"obfuscation":"x9"}', 0),
        (b"", 0),
    ],
)
def test_only_the_text_may_differ(data: bytes, size: int) -> None:
    assert learned().size_of(b"", data) == size


def test_padding_that_hides_the_length_is_passed_over() -> None:
    likeness = Likeness()
    likeness.learn(b"", MODEL[:-1] + b',"obfuscation":"Ab3"}', "hello", b'"content":')
    assert likeness.size_of(b"", MODEL[:-1].replace(b"hello", b"hi") + b',"obfuscation":"zz9zzzz"}') == 2
    assert likeness.size_of(b"", MODEL[:-1] + b',"obfuscation":"a","usage":"b"}') == 0


def test_an_event_of_another_name_is_another_event() -> None:
    assert learned().size_of(b"error", MODEL) == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"id":"hello","delta":{"content":"hello"}}', "hello"),  # the first one is another member
        (b'{"id":"hello","delta":{"content":"h\\u0065llo"}}', "hello"),
        (b'{"delta":{"content":"a\\"b"}}', 'a"b'),
        (b'{"delta":{"content":""}}', "x"),
    ],
)
def test_an_event_whose_text_cannot_be_found_is_no_model(data: bytes, text: str) -> None:
    likeness = Likeness()
    likeness.learn(b"", data, text, b'"content":')
    assert likeness.size_of(b"", data) == 0


def test_nothing_learned_nothing_known() -> None:
    assert Likeness().size_of(b"", MODEL) == 0


WORDS = st.lists(st.text(max_size=6) | st.sampled_from(['"', "\\", "finish_reason", " and", "€"]), max_size=8)


@pytest.mark.parametrize("kind", ["chat", "messages"])
@given(words=WORDS, ascii_only=st.booleans())
def test_a_stream_reads_the_same_with_and_without(kind: str, words: list[str], ascii_only: bool) -> None:
    wrap = chat_event if kind == "chat" else messages_event
    body = b"".join(b"data: " + json.dumps(wrap(word), ensure_ascii=ascii_only).encode() + b"\n\n" for word in words)
    dialect = dialects.CHAT if kind == "chat" else dialects.MESSAGES
    quick = read(dialect, body)
    before, framing.LIKE_BYTES = framing.LIKE_BYTES, 0  # nothing is learned
    try:
        assert read(dialect, body) == quick
    finally:
        framing.LIKE_BYTES = before


def chat_event(word: str) -> object:
    return {"id": "a", "model": "m", "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}


def messages_event(word: str) -> object:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
