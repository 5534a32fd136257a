"""The question for usage changes as few bytes as can be."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.dialects.ask import include_usage

ASKED = b',"stream_options":{"include_usage":true}'


def asked(body: bytes) -> bytes | None:
    return include_usage(body, json.loads(body))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', b'{"stream":true' + ASKED + b"}"),
        (b'{"stream": true, "n": 1}\r\n', b'{"stream": true, "n": 1' + ASKED + b"}\r\n"),
        (b'{\n  "stream": true\n}', b'{\n  "stream": true\n' + ASKED + b"}"),
        ('{"stream":true,"x":"}€"}'.encode(), '{"stream":true,"x":"}€"'.encode() + ASKED + b"}"),
        (b'{"stream_options":{},"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b'{"stream_options": null ,"stream":true}', b'{"stream_options": {"include_usage":true} ,"stream":true}'),
        (
            b'{"a":{"stream_options":1},"stream_options":{"include_usage":false,"b":[1]},"stream":true}',
            b'{"a":{"stream_options":1},"stream_options":{"include_usage":true,"b":[1]},"stream":true}',
        ),
        (
            b'{"stream_options":{"a":1},"stream":true,"stream_options":{"a":2}}',
            b'{"stream_options":{"a":1},"stream":true,"stream_options":{"a":2,"include_usage":true}}',
        ),
    ],
)
def test_the_question_is_put_in(body: bytes, expected: bytes) -> None:
    assert asked(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"messages":[]}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":"usage"}',
        b"[]",
        b"null",
    ],
)
def test_who_streams_nothing_or_asks_already_is_left_alone(body: bytes) -> None:
    assert asked(body) is None


def test_bytes_that_do_not_match_their_parse_are_left_alone() -> None:
    assert include_usage(b"", {"stream": True}) is None
    assert include_usage(b'{"stream":true}]', {"stream": True}) is None
    assert include_usage(b"\xff", {"stream": True, "stream_options": {}}) is None
    assert include_usage(b"{", {"stream": True, "stream_options": {}}) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
OPTIONS = st.none() | st.dictionaries(st.sampled_from(["a", "include_usage"]), st.none() | st.just(False), max_size=2)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), OPTIONS, st.booleans(), st.sampled_from([None, 2]))
def test_nothing_else_changes(rest: dict[str, Any], options: Any, present: bool, indent: int | None) -> None:
    request = {**rest, **({"stream_options": options} if present else {}), "stream": True}
    if not present:
        request.pop("stream_options", None)
    changed = asked(json.dumps(request, indent=indent).encode())
    assert changed is not None
    expected = {**request, "stream_options": {**((present and options) or {}), "include_usage": True}}
    assert json.loads(changed) == expected
