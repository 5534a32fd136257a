"""How an answer ended, from what was read of it and how its transport ended."""

import pytest

from mitmgate.dialects.base import Reading
from mitmgate.exchange import How, Terminal
from mitmgate.terminal import terminal

ENDED = Reading(ended=True, finished=True, streamed=True)
FINISHED = Reading(finished=True, streamed=True)  # the finish reason has passed, the end has not
BEGUN = Reading(streamed=True)
FAILED = Reading(error_event=True, streamed=True)
PLAIN = Reading(ended=True, finished=True)
UNREAD = Reading()
BROKEN = Reading(parse_errors=1)


@pytest.mark.parametrize(
    ("reading", "how", "stream", "expected"),
    [
        (ENDED, "end", True, "complete"),
        (FINISHED, "end", True, "truncated"),
        (BEGUN, "end", True, "truncated"),
        (BEGUN, "end", False, "truncated"),  # events under a content type of their own
        (FAILED, "end", True, "error_event"),
        (PLAIN, "end", True, "complete"),  # a stream was announced, one JSON object came
        (PLAIN, "end", False, "complete"),
        (UNREAD, "end", False, "complete"),
        (UNREAD, "end", True, "truncated"),
        (BROKEN, "end", False, "truncated"),
        (ENDED, "cut", True, "complete"),
        (FINISHED, "cut", True, "truncated"),
        (UNREAD, "cut", False, "truncated"),
        (FAILED, "cut", True, "error_event"),
        (ENDED, "client_left", True, "complete"),
        (FINISHED, "client_left", True, "complete"),
        (BEGUN, "client_left", True, "client_abort"),
        (UNREAD, "client_left", False, "client_abort"),
        (BEGUN, "timeout", True, "timeout"),
        (FINISHED, "timeout", True, "timeout"),
        (ENDED, "timeout", True, "complete"),
        (FAILED, "timeout", True, "error_event"),
        (BEGUN, "refused", True, "refused"),
        (FAILED, "refused", True, "refused"),
        (UNREAD, "failed", False, "failed"),
    ],
)
def test_terminal(reading: Reading, how: How, stream: bool, expected: Terminal) -> None:
    assert terminal(reading, how, stream) == expected
