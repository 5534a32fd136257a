"""Whatever a body is made of, what is found in it is found by its place, and nothing else changes."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.guard_body import Look, Place, Unreadable, look, plain
from mitmgate.guard_find import Finders
from mitmgate.policy.values import Guard

FINDERS = Finders([Guard("a", find=("email", "credit_card", "national_id", "secret"), then="redact")])
MAIL = "joe@example.com"
JSON = "application/json"


def looked(body: bytes | str, content_type: str = JSON) -> Look:
    return look(body.encode() if isinstance(body, str) else body, content_type, FINDERS, (0,))


def word(place: Place) -> str:
    return f"[{place.found.kind}]"


def without(body: bytes | str, content_type: str = JSON) -> str:
    return looked(body, content_type).without(lambda _: True, word).decode("utf-8", "surrogateescape")


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "new"),
    [
        ('{"a":"to joe@example.com"}', '{"a":"to [email]"}'),
        ('{ "a" :\t"joe\\u0040example.com\\n\\u00e9\\/" , "b":1.50}', '{ "a" :\t"[email]\\n\\u00e9\\/" , "b":1.50}'),
        ('{"a":"\\ud83d\\ude00 joe@example.com \\ud83d"}', '{"a":"\\ud83d\\ude00 [email] \\ud83d"}'),
        ('{"a":"joe@example.com","a":"x"}', '{"a":"[email]","a":"x"}'),
        ('["joe@example.com", {"b": ["joe@example.com"]}]', '["[email]", {"b": ["[email]"]}]'),
        ('"joe@example.com"', '"[email]"'),
        ('{"id":"joe@example.com","role":"joe@example.com"}', '{"id":"[email]","role":"[email]"}'),
    ],
)
def test_a_text_is_changed_where_it_stands(body: str, new: str) -> None:
    assert without(body) == new


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        ({"to": MAIL}, {"to": "[email]"}),
        ({"to": 'a"b', "cc": [MAIL]}, {"to": 'a"b', "cc": ["[email]"]}),
        ({"card": 4111111111111111}, {"card": "[credit_card]"}),
        ({"ssn": "219099998"}, {"ssn": "[national_id]"}),
        ({"password": "hunter2xyz9"}, {"password": "[secret]"}),
        ({"body": json.dumps({"to": MAIL, "é": "\n"})}, {"body": json.dumps({"to": "[email]", "é": "\n"})}),
        ({MAIL: 1}, {"[email]": 1}),
    ],
)
def test_the_arguments_of_a_tool_are_read_as_an_object_and_as_json_in_a_string(
    arguments: dict[str, object], new: dict[str, object]
) -> None:
    for spelled in (json.dumps(arguments), json.dumps(arguments).replace("@", "\\u0040")):
        assert json.loads(json.loads(without(json.dumps({"arguments": spelled})))["arguments"]) == new
        assert json.loads(without(f'{{"input":{spelled}}}'))["input"] == new


@pytest.mark.parametrize(
    "body",
    [
        {"source": {"type": "base64", "data": "a1B2" * 100 + MAIL[:3] + "AKIAIOSFODNN7EXAMPLE"}},
        {"image_url": {"url": f"https://cdn.example/x.png?to={MAIL}"}},
        {"image_url": f"data:image/png;base64,{'a1B2' * 99}"},
        {"signature": MAIL},
        {"card": 4111111111111111},
    ],
)
def test_what_is_no_text_or_not_ours_is_left_alone(body: object) -> None:
    assert list(looked(json.dumps(body)).places) == []


def test_text_in_the_place_of_a_file_is_read() -> None:
    assert without(json.dumps({"source": {"type": "text", "data": f"To {MAIL}"}})).count("[email]") == 1


def test_a_thought_that_is_signed_is_known_as_such() -> None:
    places = list(looked(json.dumps({"content": [{"thinking": MAIL, "signature": "c"}, {"text": MAIL}]})).places)

    assert [place.signed for place in places] == [True, False]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_encoding_stays(encoding: str) -> None:
    body = json.dumps({"é": f"é {MAIL} é"}, ensure_ascii=False).encode(encoding)

    new = looked(body).without(lambda _: True, word)

    assert json.loads(new.decode(encoding)) == {"é": "é [email] é"}


def test_a_body_in_which_nothing_is_found_is_the_same_object() -> None:
    body = b'{"a":"nothing"}'

    assert looked(body).without(lambda _: True, word) is body


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([MAIL, f"é {MAIL}", f'"{MAIL}"']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(values, st.booleans())
def test_what_is_left_is_json_with_every_address_replaced(value: object, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only)

    assert MAIL not in without(body.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass"))
    assert json.loads(without(body)) == json.loads(body.replace(MAIL, "[email]"))


# -- other bodies -----------------------------------------------------------------------------------------------------


def test_plain_text_is_read_as_it_stands_whatever_its_bytes() -> None:
    assert without(b"to joe@example.com \xff!", "text/plain").encode("utf-8", "surrogateescape") == b"to [email] \xff!"


def test_a_file_of_json_lines_is_read_line_by_line() -> None:
    body = '{"a":"joe\\u0040example.com"}\n\n{"b":"x"}\n{"b":"joe@example.com"}'

    assert without(body, "application/x-ndjson") == '{"a":"[email]"}\n\n{"b":"x"}\n{"b":"[email]"}'
    assert without(body, "") == without(body, "application/x-ndjson")


FORM = "multipart/form-data; boundary=B"


def part(content: str, *head: str) -> str:
    return "\r\n".join(["--B", 'Content-Disposition: form-data; name="x"' + "".join(head), "", content, ""])


def test_of_a_form_the_text_is_read_and_the_files_are_not() -> None:
    picture = part(MAIL, '; filename="a.png"', "\r\nContent-Type: image/png")
    batch = part(json.dumps({"a": MAIL}) + "\n", '; filename="a.jsonl"', "\r\nContent-Type: application/octet-stream")
    notes = part(MAIL, '; filename="a.txt"', "\r\nContent-Type: text/plain")
    body = part(f"to {MAIL}") + picture + batch + notes + "--B--\r\n"

    assert (
        without(body, FORM)
        == part("to [email]") + picture + batch.replace(MAIL, "[email]") + notes.replace(MAIL, "[email]") + "--B--\r\n"
    )


@pytest.mark.parametrize("content_type", ["image/png", "audio/mpeg", "application/octet-stream", "application/pdf"])
def test_bytes_of_another_kind_are_not_read(content_type: str) -> None:
    assert list(looked(f"\x00 {MAIL}", content_type).places) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b'{"a":', JSON), (b'{"a":"\xff"}', JSON), (b"x", "multipart/form-data"), (b"nothing", FORM)],
)
def test_what_says_it_is_something_and_is_not_cannot_be_read(body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable):
        looked(body, content_type)


# -- codings ----------------------------------------------------------------------------------------------------------


def test_a_coding_is_undone() -> None:
    assert plain(gzip.compress(b"text"), "gzip") == b"text"
    assert plain(b"text", None) == b"text"


@pytest.mark.parametrize(
    ("body", "coding"),
    [(b"x", "rot13"), (b"x", "gzip"), (gzip.compress(b"x" * 100)[:20] + b"??????", "gzip")],
    ids=["unknown", "no gzip", "half a gzip"],  # bytes of a gzip hold the time, and every process would name it anew
)
def test_a_coding_that_is_unknown_or_broken_cannot_be_read(body: bytes, coding: str) -> None:
    with pytest.raises(Unreadable):
        plain(body, coding)


def test_a_bomb_cannot_be_read() -> None:
    with pytest.raises(Unreadable):
        plain(gzip.compress(b"\0" * (64 << 20)), "gzip")
