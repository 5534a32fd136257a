"""A document too long to keep comes out short, valid, and with its usage."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.dialects.skim import ELEMENTS, HARD_BYTES, STRING_BYTES, Skimmer


def skimmed(raw: bytes, size: int | None = None, unwrap: bool = False) -> tuple[list[bytes], bytes]:
    """Return the documents of *raw*, and the one that broke off."""
    skimmer = Skimmer(unwrap)
    step = size or max(len(raw), 1)
    documents = [document for at in range(0, len(raw), step) for document in skimmer.feed(raw[at : at + step])]
    return documents, skimmer.end()


def reduced(value: Any, size: int | None = None) -> Any:
    (document,), rest = skimmed(json.dumps(value).encode(), size)
    assert rest == b""
    return json.loads(document)


SMALL = {
    "text": 'quote " backslash \\ slash / euro € newline \n',
    "numbers": [0, -1.5, 2e10, True, False, None],
    "nested": {"empty": {}, "list": [], "deep": [[1, [2]], {"a": {"b": "c"}}]},
    "": "",
}


@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_a_small_document_comes_out_as_it_is(size: int | None) -> None:
    assert reduced(SMALL, size) == SMALL


@pytest.mark.parametrize("size", [None, 1, 7, 1000])
def test_of_a_long_string_the_beginning_stays(size: int | None) -> None:
    value = reduced({"text": "ab" * STRING_BYTES, "usage": {"n": 1}}, size)
    assert value == {"text": "ab" * (STRING_BYTES // 2), "usage": {"n": 1}}


@pytest.mark.parametrize("unit", ['"', "\\", "é", "\\u", "😀", 'a"', "aé\\"])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_string_is_never_cut_within_an_escape(unit: str, size: int | None) -> None:
    value = reduced({"text": unit * STRING_BYTES, "after": 1}, size)
    assert value["after"] == 1
    assert (unit * STRING_BYTES).startswith(value["text"].rstrip("\ud83d"))


@pytest.mark.parametrize("item", [1.25, "text", None])
@pytest.mark.parametrize("size", [None, 1, 50])
def test_of_a_long_list_the_first_elements_stay(item: object, size: int | None) -> None:
    assert reduced({"list": [item] * 1000, "n": 2}, size) == {"list": [item] * ELEMENTS, "n": 2}


@pytest.mark.parametrize("size", [None, 1, 50])
def test_objects_behind_many_numbers_are_still_seen(size: int | None) -> None:
    value = reduced({"list": [1] * 1000 + [{"type": "function_call"}, 2, [3]]}, size)
    assert value["list"] == [1] * ELEMENTS + [{"type": "function_call"}, [3]]


@pytest.mark.parametrize("size", [None, 4096])
def test_usage_behind_more_than_fits_is_still_there(size: int | None) -> None:
    parts = [{"type": "text", "text": "x" * 1000} for _ in range(2000)]
    usage = {"input_tokens": 7, "details": {"cached": 3}}
    value = reduced({"response": {"output": parts, "other": {"a": [1]}, "usage": usage, "status": "completed"}}, size)
    assert value["response"]["usage"] == usage
    assert value["response"]["status"] == "completed"
    assert "other" not in value["response"]
    assert len(json.dumps(value)) < HARD_BYTES


@pytest.mark.parametrize(
    "unit", [b'{"a":1},', b"[[]],", b'"x",', b'{"usage":{"a":"b"}},', b'{"a":{"b":[1,{"c":"]"}]}},'], ids=repr
)
@pytest.mark.parametrize("size", [4096, 65536])
def test_whatever_is_repeated_the_document_stays_small(unit: bytes, size: int) -> None:
    raw = b'{"list":[' + unit * 30_000 + b'0],"usage":{"n":1}}'
    (document,), _ = skimmed(raw, size)
    assert len(document) < HARD_BYTES + STRING_BYTES
    assert json.loads(document)["usage"] == {"n": 1}


def test_usage_of_any_size_is_bounded() -> None:
    (document,), _ = skimmed(b'{"usage":[' + b'{"a":1},' * 30_000 + b'0],"id":"x"}')
    assert len(document) < HARD_BYTES + 100
    assert json.loads(document)["usage"][0] == {"a": 1}


def test_a_value_nested_too_deep_becomes_null() -> None:
    value = reduced(json.loads('{"a":' + "[" * 70 + "]" * 70 + ',"b":1}'))
    assert value["b"] == 1
    assert "[[null]]" in json.dumps(value)


def test_brackets_without_end_are_crossed_without_keeping_them() -> None:
    skimmer = Skimmer()
    for _ in range(50):
        assert skimmer.feed(b"[" * 65536) == []
    assert len(skimmer._stack) <= 64
    assert json.loads(skimmer.end())


@pytest.mark.parametrize("size", [None, 1, 4])
def test_documents_may_follow_each_other(size: int | None) -> None:
    assert skimmed(b'{"a":1}\n{"b":[2]}{"c":"}"}', size) == ([b'{"a":1}', b'{"b":[2]}', b'{"c":"}"}'], b"")


@pytest.mark.parametrize("size", [None, 1, 4])
def test_the_elements_of_an_unwrapped_list_are_documents(size: int | None) -> None:
    assert skimmed(b'[{"a":[1]}\r\n,\r\n{"b":2}]', size, unwrap=True) == ([b'{"a":[1]}', b'{"b":2}'], b"")


@pytest.mark.parametrize(
    ("raw", "document"),
    [
        (b'{"a":1,"b":"tex', b'{"a":1,"b":null}'),
        (b'{"a":1,"b":"t\\', b'{"a":1,"b":null}'),
        (b'{"a":1,"b":["x","y', b'{"a":1,"b":["x",null]}'),
        (b'{"a":1,"b', b'{"a":1}'),
        (b'{"a":1,"b":', b'{"a":1,"b":null}'),
        (b'{"a":1,"b":[1,2', b'{"a":1,"b":[1]}'),
        (b'{"a":{"b":tr', b'{"a":{"b":null}}'),
        (b"", b""),
        (b"nothing", b""),
    ],
)
def test_a_document_that_breaks_off_is_closed_without_its_last_half_value(raw: bytes, document: bytes) -> None:
    assert skimmed(raw) == ([], document)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=5), st.integers(1, 9), st.booleans())
def test_any_small_document_survives_any_cut(value: dict[str, Any], size: int, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")
    (document,), rest = skimmed(raw, size)
    assert rest == b""
    assert json.loads(document.decode("utf-8", "surrogatepass")) == json.loads(raw.decode("utf-8", "surrogatepass"))


@given(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=5), st.integers(1, 9), st.integers(0, 200))
def test_any_beginning_of_a_document_can_be_closed(value: dict[str, Any], size: int, stop: int) -> None:
    documents, rest = skimmed(json.dumps(value).encode()[:stop], size)
    for document in (*documents, rest):
        if document:
            json.loads(document)


@given(st.binary(max_size=200), st.integers(1, 9))
def test_any_bytes_in_any_cut_give_the_same(raw: bytes, size: int) -> None:
    assert skimmed(raw, size) == skimmed(raw)
