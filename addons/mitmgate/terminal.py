"""How an answer ended, in the word that its row carries."""

from mitmgate.dialects.base import Reading
from mitmgate.exchange import How, Terminal


def terminal(reading: Reading, how: How, stream: bool) -> Terminal:
    """Return the row's ``terminal`` for an answer that was read as *reading* and ended as *how*.

    *stream*: the answer came as a stream, whatever was asked. A plain answer that came whole is ``complete`` at any
    status, unless its JSON breaks off. A client that leaves behind the finish reason has got all there was to get:
    litellm and others always do.
    """
    match how:
        case "refused":
            return "refused"
        case "failed":
            return "failed"
    if reading.error_event:
        return "error_event"
    match how:
        case "timeout":
            return "complete" if reading.ended else "timeout"
        case "client_left":
            return "complete" if reading.finished or reading.ended else "client_abort"
        case "cut":
            return "complete" if reading.ended else "truncated"
    if reading.ended:
        return "complete"
    return "truncated" if stream or reading.streamed or reading.parse_errors else "complete"
