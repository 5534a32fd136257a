"""What mitmweb says of a call in one line, which flows it lets go, and what it hides."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.http import Headers
from mitmproxy.net import encoding
from mitmproxy.test import tflow, tutils
from mitmproxy.utils.emoji import emoji

from mitmgate.clock import ManualClock
from mitmgate.exchange import Terminal
from mitmgate.web import coded
from mitmgate.web_masks import Masks
from mitmgate.web_rules import ERROR, MARKS, STREAM, Finished, Limits, Told, comment, mark, size_of, surplus, usd

# -- comment and mark


@pytest.mark.parametrize(
    ("call", "cost", "text"),
    [
        (Told("f", "gpt-4o", 12, 34, "0193"), 1_200_000, "gpt-4o · 12+34 tokens · $0.0012 · 0193"),
        (Told("f", "gpt-4o", 12, 34, "0193"), None, "gpt-4o · 12+34 tokens · 0193"),
        (Told("f", "gpt-4o", 12, None, "0193"), None, "gpt-4o · 12+? tokens · 0193"),
        (Told("f", "gpt-4o", 0, 0, "0193"), 0, "gpt-4o · 0+0 tokens · $0 · 0193"),
        (Told("f", "gpt-4o", row_id="0193"), None, "gpt-4o · 0193"),
        (Told("f", None, row_id="0193"), None, "no model named · 0193"),
        (Told("f", "gpt-4o", 1, 2), None, "gpt-4o · 1+2 tokens"),
        (Told("f", "m" * 5000), None, "m" * 80),
        (Told("f", "a\nb\u202ec\ud800"), None, r"a␊b\u202ec\ud800"),
    ],
)
def test_a_comment_says_what_is_known(call: Told, cost: int | None, text: str) -> None:
    assert comment(call, cost) == text


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (0, "$0"),
        (1, "$0.0000000010"),
        (1_500, "$0.0000015"),
        (1_234_567, "$0.0012"),
        (9_990_000, "$0.0100"),
        (250_000_000, "$0.25"),
        (1_200_000_000, "$1.20"),
        (123_456_000_000_000, "$123456.00"),
    ],
)
def test_an_amount_has_two_digits_that_tell(nanousd: int, text: str) -> None:
    assert usd(nanousd) == text


@pytest.mark.parametrize(
    ("terminal", "status", "streaming", "name"),
    [
        ("complete", 200, False, ""),
        ("complete", 200, True, ":zap:"),
        ("complete", 429, False, ":x:"),
        ("complete", 500, True, ":x:"),
        ("error_event", 200, True, ":x:"),
        ("failed", 502, False, ":x:"),
        ("timeout", 504, False, ":hourglass:"),
        ("refused", 403, False, ":no_entry:"),
        ("truncated", 200, True, ":warning:"),
        ("client_abort", None, True, ":warning:"),
    ],
)
def test_the_mark_tells_how_a_call_ended(terminal: Terminal, status: int | None, streaming: bool, name: str) -> None:
    assert mark(terminal, status, streaming) == name


def test_every_end_has_a_mark_that_mitmproxy_knows() -> None:
    assert set(MARKS) == set(get_args(Terminal.__value__))
    assert {name for name in (*MARKS.values(), STREAM, ERROR) if name} <= emoji.keys()


# -- how much is kept

LIMITS = Limits(count=3, age_s=60, bytes=100)


def finished(*sizes: int) -> list[Finished]:
    """Return flows a, b, … of these sizes, one second apart; the oldest ended at 0."""
    return [Finished("abcdefgh"[n], float(n), size) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("flows", "now", "removed"),
    [
        ([], 0, []),
        (finished(1, 1, 1), 3, []),
        (finished(1, 1, 1, 1), 4, ["a"]),
        (finished(1, 1, 1, 1, 1, 1), 6, ["a", "b", "c"]),
        (finished(60, 40), 2, []),
        (finished(60, 41), 2, ["a"]),
        (finished(1, 1, 101), 3, ["a", "b", "c"]),
        (finished(1, 1), 60, []),
        (finished(1, 1), 61, ["a"]),
        (finished(1, 1), 62, ["a", "b"]),
        (finished(1, 101, 1), 3, ["a", "b"]),
    ],
)
def test_the_oldest_go_first_by_count_age_and_bytes(flows: list[Finished], now: float, removed: list[str]) -> None:
    assert surplus(flows, now, LIMITS) == removed


@given(st.lists(st.integers(0, 120), max_size=8), st.floats(0, 200))
def test_what_stays_is_within_every_limit(sizes: list[int], now: float) -> None:
    flows = finished(*sizes)

    gone = surplus(flows, now, LIMITS)

    assert gone == [flow.id for flow in flows[: len(gone)]]
    kept = flows[len(gone) :]
    assert len(kept) <= LIMITS.count
    assert sum(flow.bytes for flow in kept) <= LIMITS.bytes
    assert all(now - flow.ended <= LIMITS.age_s for flow in kept)


def test_with_time_every_finished_flow_goes() -> None:
    clock = ManualClock()
    flows = [replace(flow, ended=clock.now()) for flow in finished(1, 1, 1)]

    clock.advance(LIMITS.age_s)
    assert surplus(flows, clock.now(), LIMITS) == []
    clock.advance(0.5)
    assert surplus(flows, clock.now(), LIMITS) == ["a", "b", "c"]


def test_a_flow_weighs_its_bodies_and_messages() -> None:
    empty = tflow.tflow(req=tutils.treq(content=b""))
    plain = tflow.tflow(req=tutils.treq(content=b"q" * 100), resp=tutils.tresp(content=b"a" * 1000))
    talk, silence = tflow.twebsocketflow(), tflow.twebsocketflow()
    silence.websocket.messages = []  # type: ignore[union-attr]

    assert size_of(plain) - size_of(empty) == 1100
    assert size_of(talk) - size_of(silence) == len(b"hello binary" + b"hello text" + b"it's me")


# -- the answer beside its flow


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity"])
def test_mitmproxy_undoes_the_coding_it_finds(coding: str) -> None:
    assert encoding.decode(coded(b"data: {}\n\n", coding), coding) == b"data: {}\n\n"


@pytest.mark.parametrize("coding", [None, "", "gzip, br", "utf-8", "invented"])
def test_a_coding_that_mitmproxy_does_not_know_is_left_off(coding: str | None) -> None:
    assert coded(b"data: {}\n\n", coding) == b"data: {}\n\n"


# -- credentials


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        (b"Authorization", b"Bearer sk-1234567890", b"Bearer [secret-"),
        (b"authorization", b"Basic dXNlcjpwYXNz", b"Basic [secret-"),
        (b"authorization", b"AWS4-HMAC-SHA256 Credential=AKIA/x, Signature=0", b"[secret-"),
        (b"Proxy-Authorization", b"Basic dXNlcjpwYXNz", b"Basic [secret-"),
        (b"x-api-key", b"sk-ant-1234567890", b"[secret-"),
        (b"api-key", b"0123456789abcdef", b"[secret-"),
        (b"x-goog-api-key", b"AIza1234567890", b"[secret-"),
        (b"x-amz-security-token", b"FwoGZXIvYXdz", b"[secret-"),
        (b"cf-aig-authorization", b"Bearer mg-1234", b"Bearer [secret-"),
        (b"Cookie", b"session=1; theme=dark", b"[secret-"),
    ],
)
def test_a_credential_is_masked_and_comes_back(name: bytes, value: bytes, shown: bytes) -> None:
    masks = Masks()

    [(kept_name, masked)] = masks.fields(((name, value),))

    assert kept_name == name
    assert masked.startswith(shown)
    assert value.rpartition(b" ")[2] not in masked
    assert masks.fields(((name, masked),)) == ((name, masked),)
    assert masks.unmask(masked) == value


def test_other_headers_keep_order_case_and_duplicates() -> None:
    fields = ((b"Host", b"api.openai.com"), (b"X-Odd-CASE", b"1"), (b"x-odd-case", b"2"), (b"accept", b"*/*"))

    assert Masks().fields(fields) == fields


def test_one_key_has_one_handle_and_two_keys_have_two() -> None:
    masks = Masks()

    first, again, other = (masks.mask(key) for key in (b"sk-1", b"sk-1", b"sk-2"))

    assert first == again
    assert first != other
    assert Masks().mask(b"sk-1") != first


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (b"/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse&key=AIza123", b"?alt=sse&key=[secret-"),
        (b"/v1/x?api-version=2024-10-21", b"?api-version=2024-10-21"),
        (b"/v1/chat/completions", b"/v1/chat/completions"),
    ],
)
def test_a_secret_in_the_query_is_masked_and_comes_back(path: bytes, kept: bytes) -> None:
    masks = Masks()

    masked = masks.path(path)

    assert kept in masked
    assert b"AIza123" not in masked
    assert masks.unmask(masked) == path


def test_a_handle_that_is_not_known_stays_a_handle() -> None:
    assert Masks().unmask(b"Bearer [secret-0123456789ab]") == b"Bearer [secret-0123456789ab]"


def test_what_revert_goes_back_to_is_masked_too() -> None:
    flow = tflow.tflow(req=tutils.treq(headers=Headers([(b"authorization", b"Bearer sk-1234567890")])))
    flow.backup()
    flow.request.headers["x-edited"] = "yes"

    assert Masks().hide(flow)

    flow.revert()
    assert flow.request.headers["authorization"].startswith("Bearer [secret-")
    assert "x-edited" not in flow.request.headers
