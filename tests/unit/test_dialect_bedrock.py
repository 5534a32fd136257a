"""Bedrock's binary streams are cut right and booked by the model's own counts, else by Amazon's measure."""

from typing import Any
from zlib import crc32

import pytest

from mitmgate import dialects
from mitmgate.dialects.base import Reading
from mitmgate.dialects.eventstream import WHOLE_BYTES, Parser
from mitmgate.dialects.sse import Event
from support.amazon import chunk, event, exception, message
from support.readings import counts
from support.readings import read as read_any

HEAD = {"content-type": "application/vnd.amazon.eventstream"}
USED = {"inputTokens": 5, "outputTokens": 7, "totalTokens": 42, "cacheReadInputTokens": 30, "cacheWriteInputTokens": 0}
METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 11}}
CONVERSE = [
    event("messageStart", {"role": "assistant"}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "grüße"}}),
    event("contentBlockStart", {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "t1", "name": "f"}}}),
    event("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": "{}"}}}),
    event("messageStop", {"stopReason": "tool_use"}),
    event("metadata", {"usage": USED, "metrics": {"latencyMs": 3}}),
]


def read(body: bytes, size: int | None = None) -> Reading:
    return read_any(dialects.GENERIC, body, headers=HEAD, size=size)


@pytest.mark.parametrize("size", [1, 7, None])
def test_converse_reports_behind_the_stop(size: int | None) -> None:
    reading = read(b"".join(CONVERSE), size)
    assert counts(reading) == {
        "input_tokens": 35,
        "output_tokens": 7,
        "cache_read_input_tokens": 30,
        "cache_creation_input_tokens": 0,
    }
    assert (reading.finish_reasons, reading.tool_calls, reading.ended) == (["tool_use"], 1, True)
    assert (reading.usage_source, reading.parse_errors) == ("reported", 0)


def test_a_stream_without_its_stop_is_truncated() -> None:
    reading = read(b"".join(CONVERSE[:4]))
    assert (reading.ended, reading.usage_source) == (False, "none")
    assert not read(b"".join(CONVERSE)[:-3]).ended


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (  # Claude: what message_start said of the cache stays, and Amazon's measure is not asked
            [
                {"type": "message_start", "message": {"id": "a", "model": "m", "usage": {"input_tokens": 3,
                 "cache_read_input_tokens": 4, "cache_creation_input_tokens": 0, "output_tokens": 1}}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 6}},
                {"type": "message_stop", **METRICS},
            ],
            (7, 6, 4, ["end_turn"]),
        ),
        (  # Nova
            [
                {"messageStop": {"stopReason": "end_turn"}},
                {"metadata": {"usage": {"inputTokens": 1, "outputTokens": 2}}, **METRICS},
            ],
            (1, 2, None, ["end_turn"]),
        ),
        (  # Titan
            [
                {"outputText": "a", "inputTextTokenCount": 3},
                {"outputText": "b", "totalOutputTextTokenCount": 4, "completionReason": "FINISH", **METRICS},
            ],
            (3, 4, None, ["FINISH"]),
        ),
        (  # Titan behind a guardrail counts input alone
            [{"outputText": "a", "inputTextTokenCount": 9}, {"completionReason": "FINISH", **METRICS}],
            (9, 11, None, ["FINISH"]),
        ),
        (  # Llama
            [
                {"generation": "a", "prompt_token_count": 3, "generation_token_count": 1, "stop_reason": None},
                {"generation": "", "prompt_token_count": None, "generation_token_count": 2, "stop_reason": "stop"},
            ],
            (3, 2, None, ["stop"]),
        ),
        (  # Mistral counts nothing
            [{"outputs": [{"text": "a", "stop_reason": None}]}, {"outputs": [{"stop_reason": "length"}], **METRICS}],
            (9, 11, None, ["length"]),
        ),
    ],
)  # fmt: skip
def test_each_model_is_booked_by_its_own_counts(chunks: list[dict[str, Any]], expected: tuple[Any, ...]) -> None:
    reading = read(b"".join(map(chunk, chunks)))
    usage = reading.usage
    booked = (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens, reading.finish_reasons)
    assert (booked, reading.ended) == (expected, True)


def test_an_exception_in_the_stream_is_a_failure() -> None:
    reading = read(CONVERSE[0] + exception("throttlingException", {"message": "slow down"}))
    assert (reading.error_type, reading.error_event, reading.ended) == ("error_event:rate_limit", True, False)
    assert read(CONVERSE[0] + exception("odd", b"no json")).error_type == "error_event:other"


def test_behind_a_wrong_checksum_nothing_is_read() -> None:
    broken = bytearray(CONVERSE[1])
    broken[-1] ^= 1
    reading = read(CONVERSE[0] + bytes(broken) + CONVERSE[5])
    assert (reading.parse_errors, counts(reading), reading.ended) == (1, {}, False)
    torn = bytearray(CONVERSE[5])
    torn[9] ^= 1
    assert counts(read(bytes(torn))) == {}


@pytest.mark.parametrize("size", [1000, 65536, 10**9])
def test_a_message_that_is_too_long_to_keep_is_passed_over(size: int) -> None:
    body = message(b"x" * WHOLE_BYTES, event_type="contentBlockDelta") + CONVERSE[5]
    parser = Parser()
    events = [found for at in range(0, len(body), size) for found in parser.feed(body[at : at + size])]
    assert ([found.name for found in events], parser.broken) == ([b"metadata"], False)


def test_headers_of_every_type_are_passed_over() -> None:
    def header(name: bytes, kind: int, value: bytes) -> bytes:
        return bytes([len(name)]) + name + bytes([kind]) + value

    odd = [(0, b""), (1, b""), (2, b"a"), (3, b"ab"), (4, b"abcd"), (5, b"a" * 8), (6, b"\x00\x02hi"), (8, b"a" * 8)]
    odd.append((9, b"a" * 16))
    plain = message(b"{}", event_type="metadata")
    size = int.from_bytes(plain[4:8])
    extra = b"".join(header(b"h", kind, value) for kind, value in odd)
    prelude = (len(plain) + len(extra)).to_bytes(4) + (size + len(extra)).to_bytes(4)
    prelude += crc32(prelude).to_bytes(4)
    whole = prelude + extra + plain[12:-4]
    assert Parser().feed(whole + crc32(whole).to_bytes(4)) == [Event(b"metadata", b"{}")]
