"""A JSON body is cut and changed by its text, so that nothing else in it moves."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.rewrite_body import items_of, member_of, with_model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"model":"old"}', b'{"model":"new"}'),
        (b' {\n  "n" : 1.0,\r\n\t"model" : "old" , "s": "\\u00e9"}\n', None),
        (b'{"mod\\u0065l": null, "model": "x"}', b'{"mod\\u0065l": "new", "model": "new"}'),
        (b'{"a": {"model": "inner"}, "model": ["x"]}', b'{"a": {"model": "inner"}, "model": "new"}'),
        (b"{}", b'{"model":"new"}'),
        (b'{ "a": 1}', b'{"model":"new", "a": 1}'),
        (b'\xef\xbb\xbf{"model":"old"}', b'\xef\xbb\xbf{"model":"new"}'),
    ],
)
def test_only_the_models_value_changes(body: bytes, changed: bytes | None) -> None:
    assert with_model(body, "new") == (changed or body.replace(b'"old"', b'"new"'))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"model":"x"',
        b'{"model";"x"}',
        b'{"a" 1}',
        b"\xff{}",
        b'{"a":1 "model":"x"}',
        b'{"a"',
    ],
)
def test_what_is_no_object_has_no_model_to_change(body: bytes) -> None:
    assert with_model(body, "new") is None


def test_an_object_of_hostile_depth_is_left_alone() -> None:
    assert with_model(b'{"a":' + b"[" * 200_000, "new") is None


@given(st.lists(JSON), st.sampled_from([None, 0, 3]), st.booleans())
def test_the_items_of_a_list_are_what_a_parser_sees_and_stand_there(
    items: list[object], indent: int, ascii_: bool
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_)

    found = items_of(text.encode("utf-8", "surrogatepass"))

    assert [value for value, _ in found] == items
    assert all(json.loads(piece) == value and piece in text for value, piece in found)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[", b"[1", b"[1,]", b"[,1]", b"[1 2]", b"[1]]", b"[1] x", b"[01]", b"\xff"]
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        items_of(body)


def test_a_list_in_another_unicode_is_read() -> None:
    assert items_of('["é"]'.encode("utf-16")) == [("é", '"é"')]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ('{"query": {"a" : 1.0} }', '{"a" : 1.0}'),
        ('{"query": 1, "other": {"query": 2}, "query": [3]}', "[3]"),
        ('{"other": 1}', None),
        ("{}", None),
    ],
)
def test_a_member_is_found_as_it_stands(text: str, query: str | None) -> None:
    assert member_of(text, "query") == query
