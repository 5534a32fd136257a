"""Row ids are UUIDv7s that sort by time."""

import time
import uuid

from mitmgate.ids import uuid7


def test_an_id_is_a_version_7_uuid_of_now() -> None:
    before = time.time_ns() // 1_000_000
    text = uuid7()
    after = time.time_ns() // 1_000_000

    parsed = uuid.UUID(text)
    assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= after


def test_ids_differ_also_within_a_millisecond() -> None:
    assert len({uuid7() for _ in range(10_000)}) == 10_000


def test_ids_sort_by_the_time_of_the_request() -> None:
    stamps = [uuid7()[:13] for _ in range(1000)]

    assert stamps == sorted(stamps)


def test_the_random_bits_are_all_used() -> None:
    bits = [uuid.UUID(uuid7()).int & ((1 << 80) - 1) for _ in range(2000)]
    fixed = (0xF << 76) | (0x3 << 62)
    for bit in range(80):
        if not fixed >> bit & 1:
            assert len({number >> bit & 1 for number in bits}) == 2, bit
