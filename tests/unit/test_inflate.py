"""Each content coding is undone in any cut; what is broken or a bomb ends the reading and never raises."""

import gzip
import random
import sys
import zlib

import brotli  # type: ignore[import-untyped,unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.dialects.inflate import FREE_BYTES, Inflater, inflater, unknown_coding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN = random.Random(1).randbytes(3000) + b"data: hello\n\n" * 20_000


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def sync_flushed(pieces: list[bytes]) -> list[bytes]:
    """Return each piece as a provider sends it that flushes after every event."""
    compressor = zlib.compressobj(wbits=31)
    return [compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]


def opened(coding: str) -> Inflater:
    found = inflater(coding)
    if found is None:
        pytest.fail(f"{coding} is unknown")
    return found


def inflated(coding: str, data: bytes, size: int) -> bytes:
    decoder = opened(coding)
    plain = b"".join(decoder.feed(data[at : at + size]) for at in range(0, len(data), size))
    return plain + decoder.end()


CASES = {
    "gzip": ("gzip", gzip.compress(PLAIN)),
    "two gzip members": ("gzip", gzip.compress(PLAIN[:5000]) + gzip.compress(PLAIN[5000:])),
    "gzip and padding": ("gzip", gzip.compress(PLAIN) + b"\0" * 20),
    "gzip and rubbish": ("gzip", gzip.compress(PLAIN) + b"rubbish"),
    "gzip without its trailer": ("gzip", gzip.compress(PLAIN)[:-8]),
    "x-gzip": ("x-gzip", gzip.compress(PLAIN)),
    "deflate in zlib's frame": ("deflate", zlib.compress(PLAIN)),
    "raw deflate": ("Deflate", raw_deflate(PLAIN)),
    "br": ("br", brotli.compress(PLAIN)),
    "zstd": ("zstd", zstd.compress(PLAIN)),
    "two zstd frames": ("zstd", zstd.compress(PLAIN[:5000]) + zstd.compress(PLAIN[5000:])),
    "gzip, then br": ("gzip, br", brotli.compress(gzip.compress(PLAIN))),
    "gzip twice": ("gzip,gzip", gzip.compress(gzip.compress(PLAIN))),
    "identity": ("identity", PLAIN),
    "nothing": ("", PLAIN),
}


@pytest.mark.parametrize("size", [1, 7, 1460, 10**9])
@pytest.mark.parametrize("case", CASES)
def test_coding_is_undone(case: str, size: int) -> None:
    coding, data = CASES[case]
    if size == 1 and coding in ("", "identity"):
        data = data[:1000]
    assert inflated(coding, data, size) == PLAIN[: len(data)] if coding in ("", "identity") else PLAIN


def test_brotlis_last_block_comes_out_whole_though_it_says_it_could_take_more() -> None:
    plain = random.Random(1).randbytes(3000) + b"hello " * 20_000
    assert inflated("br", brotli.compress(plain), 1) == plain


def test_an_event_comes_out_as_soon_as_it_was_flushed() -> None:
    decoder = opened("gzip")
    events = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert [decoder.feed(piece) for piece in sync_flushed(events)] == events


def test_of_a_body_that_breaks_in_the_middle_the_beginning_comes_out() -> None:
    pieces = sync_flushed([b"data: 1\n\n", b"data: 2\n\n"])
    decoder = opened("gzip")
    assert decoder.feed(pieces[0]) == b"data: 1\n\n"
    assert decoder.feed(b"\xff" * 100) == b""
    assert decoder.dead == "its content coding is broken: Error -3 while decompressing data: invalid block type"
    assert decoder.feed(pieces[1]) == b""


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_rubbish_turns_the_decoder_dead(coding: str) -> None:
    decoder = opened(coding)
    assert decoder.feed(b"\x1f this is no compressed data at all" * 50) == b""
    assert decoder.dead is not None
    assert decoder.feed(b"more") == b""
    assert decoder.end() == b""


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(b"\0" * 50_000_000)),
        ("br", brotli.compress(b"\0" * 50_000_000)),
        ("zstd", zstd.compress(b"\0" * 50_000_000)),
    ],
)
def test_a_bomb_ends_the_reading_after_its_first_megabytes(coding: str, data: bytes) -> None:
    decoder = opened(coding)
    assert decoder.feed(data) == b""
    assert decoder.dead is not None
    assert "grew to more than" in decoder.dead
    assert decoder._out < max(FREE_BYTES, 200 * len(data)) + 2**20


def test_a_large_body_of_ordinary_density_is_no_bomb() -> None:
    body = b"".join(b'{"n":%d,"text":"hello"}' % n for n in range(500_000))
    assert inflated("gzip", gzip.compress(body), 65536) == body


@pytest.mark.parametrize(
    ("coding", "unknown"),
    [
        ("compress", "compress"),
        ("gzip, exi", "exi"),
        ("gzip", None),
        ("", None),
        ("identity", None),
        ("GZIP , br", None),
    ],
)
def test_an_unknown_coding_is_named(coding: str, unknown: str | None) -> None:
    assert unknown_coding(coding) == unknown
    assert (inflater(coding) is None) == (unknown is not None)


def test_a_tower_of_codings_is_not_climbed() -> None:
    assert inflater(", ".join(["gzip"] * 5)) is None


@given(st.sampled_from(["gzip", "deflate", "br", "zstd"]), st.lists(st.binary(max_size=50), max_size=5))
def test_no_bytes_raise(coding: str, pieces: list[bytes]) -> None:
    decoder = opened(coding)
    for piece in pieces:
        decoder.feed(piece)
    assert decoder.end() == b""
