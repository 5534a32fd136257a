"""Know an event again that is like the one before but for its text, without parsing it.

Most of a stream is one sentence in a thousand pieces: the same bytes around another word. Where an event differs from
the last parsed one in nothing but an unescaped text, all there is to know of it is the length of that text. This
halves the cost of a stream; whatever looks different in any byte is parsed.
"""

import re

_PLAIN = re.compile(rb'[^"\\\x00-\x1f]+')
"""A text that stands between quotes as it is: no quote, no escape, no byte that JSON does not allow."""

PADDING = b',"obfuscation":"'
"""OpenAI hides the length of its deltas behind a last member of random letters and digits."""

PADDING_BYTES = 64


class Likeness:
    """The bytes before and behind the text of the latest plain event."""

    __slots__ = ("_after", "_before", "_least", "_name")

    def __init__(self) -> None:
        self._name = b""
        self._before = b""
        self._after = b""
        self._least = 0

    def learn(self, name: bytes, data: bytes, text: str, key: bytes) -> None:
        """Take *data* as the new model: an event that brought nothing but *text*, the value of *key*
        (``"content":``).
        """
        data, value = _unpadded(data), b'"%s"' % text.encode("utf-8", "replace")
        at = data.find(value)
        if at < 0 or not data[:at].rstrip().endswith(key) or not _PLAIN.fullmatch(value, 1, len(value) - 1):
            return
        self._name = name
        self._before, self._after = data[: at + 1], data[at + len(value) - 1 :]
        self._least = len(self._before) + len(self._after) + 1

    def size_of(self, name: bytes, data: bytes) -> int:
        """Return the bytes of the text of an event like the model, 0 where it is not like it."""
        if not self._before or not data.startswith(self._before):
            return 0
        data = _unpadded(data)
        if len(data) < self._least or not data.endswith(self._after) or name != self._name:
            return 0
        text = data[len(self._before) : -len(self._after)]
        return len(text) if _PLAIN.fullmatch(text) else 0


def _unpadded(data: bytes) -> bytes:
    """Return *data* without what is there to hide its length."""
    data = data.rstrip()
    at = data.rfind(PADDING, -PADDING_BYTES)
    if at > 0 and data.endswith(b'"}') and data[at + len(PADDING) : -2].isalnum():
        return data[:at]
    return data
