"""Tokens from text, where nobody reports them: an abort before the usage chunk, a host that has none.

In o200k: English 4.9 bytes a token, German 5.2, Chinese 4.3, code 3.3, JSON 2.0. So four bytes are a token, and two
and a half where more than a tenth of the text is digits and punctuation. Within 25 % for prose.
"""

from mitmgate.dialects.base import Reading, Request

BYTES_PER_TOKEN = 4.0
DENSE_BYTES_PER_TOKEN = 2.5
DENSE_SHARE = 0.1

_DENSE = bytes(byte for byte in range(33, 127) if not chr(byte).isalpha())


def tokens_of(text: str) -> int:
    """Return about how many tokens *text* is; 0 only for none."""
    data = text.encode("utf-8", "replace")
    if not data:
        return 0
    dense = len(data) - len(data.translate(None, _DENSE))
    per_token = DENSE_BYTES_PER_TOKEN if dense > DENSE_SHARE * len(data) else BYTES_PER_TOKEN
    return max(round(len(data) / per_token), 1)


def tokens_of_size(size: int) -> int:
    """Return the same for a text of which only the bytes were counted."""
    return max(round(size / BYTES_PER_TOKEN), 1) if size else 0


def fill_estimates(reading: Reading, request: Request) -> None:
    """Fill in the counters that an answer should have had: those missing, and an output reported as 0 beside text.

    A running count stays a lower bound: what was reported is never made less. ``usage_source`` becomes ``estimated``.
    """
    usage = reading.usage
    output = tokens_of_size(reading.text_chars)
    nothing_counted = not usage.input_tokens and not usage.output_tokens and output > 0
    if usage.input_tokens is None or nothing_counted:
        usage.input_tokens = request.input_tokens_estimate or tokens_of_size(request.input_chars)
        reading.estimated = True
    if usage.output_tokens is None or nothing_counted or (not reading.usage_final and usage.output_tokens < output):
        usage.output_tokens = output
        reading.estimated = True
