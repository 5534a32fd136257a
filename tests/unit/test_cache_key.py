"""The cache key: what a provider could answer differently never shares one; what it could not, shares."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.cache_key import HUGE_BYTES, canonical, key_of
from mitmgate.exchange import Exchange, joined
from mitmgate.providers import TABLE

OPENAI = next(provider for provider in TABLE if provider.slug == "openai")
BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}],"stream":true}'
FIELDS = {"accept": "application/json", "content-type": "application/json", "authorization": "Bearer sk-1"}
AUTH = [("auth", "hash-1")]


def parsed(body: bytes) -> Any:
    """Return what ``identify`` makes of a body."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def request(body: bytes = BODY, headers: dict[str, str] | None = None, **changes: Any) -> Exchange:
    fields = [(name.encode(), value.encode()) for name, value in {**FIELDS, **(headers or {})}.items()]
    given = {"method": "POST", "scheme": "https", "host": "api.openai.com", "port": 443, "path": "/v1/chat/completions"}
    x = Exchange(
        **{**given, "provider": OPENAI, **changes}, fields=fields, headers=joined(fields), started=0, started_wall=0
    )
    x.body, x.json = body, parsed(body)
    return x


def key(body: bytes = BODY, headers: dict[str, str] | None = None, **changes: Any) -> str:
    return key_of(request(body, headers, **changes), AUTH)


def test_a_key_is_a_sha256_in_hex_and_stays_the_same_between_processes() -> None:
    assert key() == key() == "c31fabc82f503eaf8bd27cb95bf6e8acc85600e0af7feeedcfc07aeb9dd56c03"


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a":1,"b":[true,null]}', b'{ "b" : [ true , null ] ,\n "a" : 1 }'),
        (b'{"a":"\\u00e9\\/\\n"}', '{"a":"é/\\u000a"}'.encode()),
        (b'{"a":{"x":1,"y":2}}', b'{"a":{"y":2,"x":1}}'),
        (b'{"a":"a\\"b\\\\","b":1}', b'{"b":1,"a":"a\\u0022b\\u005c"}'),
        (b'{"a":1.50}', b'{"a":1.5}'),
    ],
)
def test_the_same_meaning_is_the_same_key(one: bytes, other: bytes) -> None:
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a":1}', b'{"a":1.0}'),
        (b'{"a":1}', b'{"a":"1"}'),
        (b'{"a":1}', b'{"a":true}'),
        (b'{"a":null}', b"{}"),
        (b'{"a":0}', b"{}"),
        (b'{"a":[1,2]}', b'{"a":[2,1]}'),
        (b'{"a":"x"}', b'{"a":"X"}'),
        (b'{"stream":true}', b'{"stream":false}'),
        (b'{"user":"u1"}', b'{"user":"u2"}'),
        # duplicate members: who reads them may take the first or the last
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (b'{"a":1,"a":2}', b'{"a":2,"a":1}'),
        (b'{"x":{"a":1,"a":2}}', b'{"x":{"a":2}}'),
        (b'{"a":"\\\\","a":"\\\\"}', b'{"a":"\\\\"}'),
        (b'{"a\\"":1,"a\\u0022":1}', b'{"a\\"":1}'),
        # what is no JSON, or only Python's
        (b'{"a":NaN}', b'{"a":null}'),
        (b'{"a":1e999}', b'{"a":Infinity}'),
        (b'{"a":1e999}', b'{"a":2e999}'),
        (b'{"a":"\\ud800"}', b'{"a":"\\ud801"}'),
        (b'{"a":"\xff"}', b'{"a":"\xfe"}'),
        (b'{"a":1}', '{"a":1}'.encode("utf-16")),
        (b'{"a":1}', b'\xef\xbb\xbf{"a":1}'),
        (b'{"a":1}', b'{"a":1'),
        (b"", b"null"),
        (b"a=1", b"a=2"),
    ],
)
def test_another_meaning_is_another_key(one: bytes, other: bytes) -> None:
    assert key(one) != key(other)


ODD = {
    "duplicates": b'{"a":1,"a":1}',
    "NaN": b'{"a":NaN}',
    "infinity": b'{"a":1e999}',
    "a lone surrogate": b'{"a":"\\ud800"}',
    "no UTF-8": b'{"a":"\xed\xa0\x80"}',
    "UTF-16": '{"a":"\u2222"}'.encode("utf-16-le"),
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "no JSON": b'{"a":',
    "hostile depth": b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}",
    "huge": b'{"a":"' + b"x" * HUGE_BYTES + b'"}',
}


@pytest.mark.parametrize("what", ODD)
def test_the_bytes_of_an_odd_body_count_as_they_are(what: str) -> None:
    body = ODD[what]
    assert canonical(body, parsed(body)) is None
    assert key(body) == key(body)
    assert key(body) != key(
        body.replace(b'{"a"', b'{ "a"').replace('{"a'.encode("utf-16-le"), '{ "a'.encode("utf-16-le"))
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_however_a_value_is_written_its_form_is_one_and_says_the_same(
    value: Any, ascii_: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_, indent=indent).encode()
    form = canonical(body, value)
    assert value is None or (form is not None and json.loads(form) == value)
    assert form == canonical(json.dumps(value, ensure_ascii=not ascii_).encode(), value)


@given(st.text(max_size=8), VALUES, VALUES)
def test_a_duplicate_member_is_found_however_its_name_is_escaped(name: str, first: Any, second: Any) -> None:
    escaped = '"' + "".join(f"\\u{ord(char):04x}" for char in name if ord(char) < 0x10000) + '"'
    plain = json.dumps("".join(char for char in name if ord(char) < 0x10000))
    body = f"{{{plain}:{json.dumps(first)},{escaped}:{json.dumps(second)}}}".encode()
    assert canonical(body, json.loads(body)) is None


# -- ignored fields ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ignore", "one", "other"),
    [
        (["user"], {"a": 1, "user": "u1"}, {"a": 1, "user": "u2"}),
        (["user"], {"a": 1, "user": "u1"}, {"a": 1}),
        (["metadata.user_id"], {"metadata": {"user_id": 1, "x": 1}}, {"metadata": {"user_id": 2, "x": 1}}),
        (["a.b.c"], {"a": {"b": {"c": 1}}}, {"a": {"b": {}}}),
        (["m.t.c"], {"m": [{"t": [{"c": 1, "d": 2}]}, "x"]}, {"m": [{"t": [{"d": 2}]}, "x"]}),
        (["system.0"], {"system": [{"text": "id 1"}, 2]}, {"system": [{"text": "id 2"}, 2]}),
        (["system.0.text"], {"system": [{"text": "1"}, {"text": "x"}]}, {"system": [{"text": "2"}, {"text": "x"}]}),
        (["user", "seed"], {"user": 1, "seed": 1}, {"user": 2, "seed": 2}),
    ],
)
def test_what_differs_only_in_ignored_fields_is_the_same(ignore: list[str], one: Any, other: Any) -> None:
    assert form(one, ignore) == form(other, ignore)
    assert form(one) != form(other)


@pytest.mark.parametrize(
    ("ignore", "one", "other"),
    [
        (["user"], {"x": {"user": 1}}, {"x": {"user": 2}}),
        (["metadata.user_id"], {"metadata": "a"}, {"metadata": "b"}),
        (["metadata.user_id"], {"user_id": 1}, {"user_id": 2}),
        (["system.0"], {"system": [1, 2]}, {"system": [1, 3]}),
        (["system.0"], {"system": [1, 2]}, {"system": [2]}),
        (["system.0.text"], {"system": [{"text": "1"}, {"text": "x"}]}, {"system": [{"text": "1"}, {"text": "y"}]}),
    ],
)
def test_what_differs_elsewhere_stays_apart(ignore: list[str], one: Any, other: Any) -> None:
    assert form(one, ignore) != form(other, ignore)


def form(value: Any, ignore: list[str] | None = None) -> bytes | None:
    return canonical(json.dumps(value).encode(), value, ignore or [])


def test_fields_are_ignored_in_a_huge_body_too() -> None:
    bodies = [json.dumps({"user": user, "text": "x" * HUGE_BYTES}).encode() for user in ("u1", "u2")]
    one, other = (key_of(request(body), AUTH, ["user"]) for body in bodies)
    assert one == other


def test_ignoring_leaves_the_request_as_it_is() -> None:
    x = request(b'{"metadata":{"user_id":"u1"},"system":[1]}')
    key_of(x, AUTH, ["metadata.user_id", "system.0"])
    assert x.json == {"metadata": {"user_id": "u1"}, "system": [1]}


# -- where it goes, who asks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "/v1/responses"},
        {"path": "/v1/chat/completions?api-version=2"},
        {"host": "eu.api.openai.com"},
        {"port": 8443},
        {"provider": None},
        {"target": "azure-eu"},
        {"entry": "compat"},
        {"controls": {"fallback": ("azure-eu",)}},
        {"controls": {"fallback": ()}},
    ],
)
def test_another_place_is_another_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_the_case_of_a_host_does_not_matter() -> None:
    assert key(host="API.OpenAI.com") == key()


@pytest.mark.parametrize(
    "headers",
    [
        {"anthropic-version": "2023-06-01"},
        {"anthropic-beta": "context-1m-2025-08-07"},
        {"openai-beta": "assistants=v2"},
        {"openai-organization": "org-1"},
        {"openai-project": "proj-1"},
        {"x-goog-user-project": "p"},
        {"x-amzn-bedrock-guardrailidentifier": "g"},
        {"extra-parameters": "drop"},
        {"accept": "text/event-stream"},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-encoding": "gzip"},
    ],
)
def test_a_header_that_changes_the_answer_is_in_the_key(headers: dict[str, str]) -> None:
    assert key(headers=headers) != key()


@pytest.mark.parametrize(
    "headers",
    [
        {"user-agent": "OpenAI/Python 2.0"},
        {"x-stainless-retry-count": "1"},
        {"x-stainless-helper-token": "1"},
        {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
        {"x-request-id": "1"},
        {"idempotency-key": "1"},
        {"accept-encoding": "br"},
        {"content-length": "77"},
        {"content-type": "application/json; charset=UTF-8"},
        {"cf-aig-metadata": '{"a":1}'},
        {"x-session-id": "s"},
    ],
)
def test_other_headers_are_not(headers: dict[str, str]) -> None:
    assert key(headers=headers) == key()


def test_the_scope_parts_the_entries() -> None:
    scopes: list[list[tuple[str, object | None]]] = [
        [],
        [("auth", "a")],
        [("auth", "b")],
        [("auth", None)],
        [("auth", "")],
        [("tenant", "a")],
        [("tenant", None), ("user", "a")],
        [("tenant", "a"), ("user", None)],
        [("metadata.n", 1)],
        [("metadata.n", 1.5)],
        [("metadata.n", "1")],
        [("metadata.n", True)],
    ]
    assert len({key_of(request(), scope) for scope in scopes}) == len(scopes)


def test_the_key_by_which_a_provider_is_called_counts_through_the_scope_alone() -> None:
    one, other = request(), request(headers={"authorization": "Bearer sk-2"})
    assert key_of(one, [("tenant", "t")]) == key_of(other, [("tenant", "t")])


@pytest.mark.parametrize("name", ["x-api-key", "cookie", "x-corp-token", "cf-aig-authorization", "proxy-authorization"])
def test_a_second_credential_parts_callers_where_the_scope_is_who_asks(name: str) -> None:
    one, other = request(headers={name: "a"}), request(headers={name: "b"})
    assert key_of(one, AUTH) != key_of(other, AUTH)
    assert key_of(one, AUTH, (), "k") != key_of(other, AUTH, (), "k")
    assert key_of(one, [("tenant", "t")]) == key_of(other, [("tenant", "t")])


def test_an_aws_signature_which_differs_each_time_is_not_in_the_key() -> None:
    signed = [{"authorization": f"AWS4-HMAC-SHA256 Credential=AK/2026/x, Signature={n}"} for n in range(2)]
    assert key(headers=signed[0]) == key(headers=signed[1])


def test_googles_key_in_a_query_counts_through_the_scope_alone() -> None:
    def asked(query: str, auth: str) -> str:
        x = request(headers={"authorization": ""}, path=f"/v1beta/models/g:generateContent{query}")
        return key_of(x, [("auth", auth)])

    assert asked("?key=A&alt=sse", "a") == asked("?alt=sse&key=A", "a") == asked("?alt=sse&key=B", "a")
    assert asked("?key=A", "a") != asked("?key=A", "b")
    assert asked("?key=A", "a") != asked("?key=A&alt=sse", "a")


def test_a_key_in_a_query_beside_one_in_a_header_counts() -> None:
    assert key(path="/v1/x?key=A") != key(path="/v1/x?key=B")


# -- cf-aig-cache-key, entries ----------------------------------------------------------------------------------------


def test_a_key_of_the_clients_own_stands_for_everything_but_the_scope() -> None:
    one, other = request(b'{"a":1}'), request(b'{"a":2}', host="api.anthropic.com")
    assert key_of(one, AUTH, (), "faq") == key_of(other, AUTH, (), "faq")
    assert key_of(one, AUTH, (), "faq") != key_of(one, AUTH, (), "faq2")
    assert key_of(one, AUTH, (), "faq") != key_of(one, [("auth", "hash-2")], (), "faq")
    assert key_of(one, AUTH, (), "faq") != key_of(one, [*AUTH, ("cf-aig-cache-key", "faq")])


def test_a_wrapped_request_counts_as_the_provider_gets_it() -> None:
    wrapped = request(b'{"model":"openai/gpt-4o","stream":true}', entry="compat")
    wrapped.native_body = b'{"stream":true,"model":"gpt-4o"}'
    again = request(b'{"model":"openai/gpt-4o", "stream":true}', entry="compat")
    again.native_body = b'{"model":"gpt-4o","stream":true}'
    assert key_of(wrapped, AUTH) == key_of(again, AUTH)
    again.native_body = b'{"model":"gpt-5","stream":true}'
    assert key_of(wrapped, AUTH) != key_of(again, AUTH)


def test_all_elements_of_a_universal_request_count() -> None:
    one, other = (
        request(b'[{"provider":"openai"},{"provider":"%b"}]' % name, entry="universal") for name in (b"a", b"b")
    )
    one.native_body = other.native_body = b'{"model":"gpt-4o"}'
    assert key_of(one, AUTH) != key_of(other, AUTH)


def test_a_compressed_body_counts_byte_by_byte() -> None:
    coded = {"content-encoding": "gzip"}
    assert key(b'{"a":1}', coded) != key(b'{ "a":1}', coded)
