"""Small bodies lie in the database as text that any tool can read, large ones as zstd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.store import bodies

LARGE = b'{"content": "the same words again and again"}' * 2000


@pytest.mark.parametrize(
    ("body", "encoding", "stored"),
    [
        (b"", "identity", ""),
        (b'{"a": 1}', "identity", '{"a": 1}'),
        ("für Köln".encode(), "identity", "für Köln"),
        (b"\xff\xfe", "identity", b"\xff\xfe"),
        (b"a\0b", "identity", b"a\0b"),
    ],
)
def test_small_bodies_are_stored_as_they_are(body: bytes, encoding: str, stored: object) -> None:
    assert bodies.pack(body) == (encoding, stored)


def test_large_bodies_shrink() -> None:
    encoding, stored = bodies.pack(LARGE)
    assert encoding == "zstd"
    assert len(stored) < len(LARGE) / 10


@given(st.binary(max_size=200), st.sampled_from([1, bodies.PLAIN_BYTES]))
def test_what_is_packed_comes_back(piece: bytes, times: int) -> None:
    body = piece * times
    encoding, stored = bodies.pack(body)
    assert bodies.unpack(encoding, stored) == body


@pytest.mark.parametrize(
    ("encoding", "stored", "shown"),
    [
        ("identity", "plain", "plain"),
        ("identity", b"caf\xe9", "caf�"),
        ("identity", None, ""),
        ("zstd", bodies.pack(LARGE)[1], LARGE.decode()),
        ("zstd", b"no frame", "[unreadable: "),
    ],
)
def test_text_for_people_never_fails(encoding: str, stored: str | bytes | None, shown: str) -> None:
    assert bodies.text(encoding, stored).startswith(shown)
