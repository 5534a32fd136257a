"""One text of an answer on its way, piece by piece, through whatever looks at it and changes it.

A ``Line`` feeds the pieces to a ``Channel`` (the guard's finders, or whoever puts placeholders back) and returns what
may go on. Three things are its own:

- Arguments of a tool are JSON inside of a string. Their escapes are undone for the look (``\\u0040`` is an @, and a key
  behind ``\\n`` begins a word), and done again behind it; a placeholder in place of a number gets quotes.
- A text that was said to be over, and goes on after all: what has gone out already is looked at again together with
  the rest, so that a match which began there still swallows what follows.
- Where nothing was found and nothing is held, a piece goes on as the very string it was.
"""

import re
from collections.abc import Callable
from typing import Protocol

MOST_AGAIN = 256
"""Characters that are looked at again."""


class Channel(Protocol):
    """Takes a text in pieces; returns what may go on, changed or not."""

    def feed(self, text: str) -> str: ...

    def end(self) -> str:
        """The text is over; return what was held."""


type Channels = Callable[[bool, str], Channel]
"""(the text is JSON, escapes undone; its source) -> a channel for it.

The source is empty for what is said once, else the kind of event in which an API says again what it has said before:
what is found there is no second finding.
"""


class Line:
    """One text."""

    __slots__ = ("channel", "clear", "escapes", "gone")

    def __init__(self, channel: Channel, is_json: bool = False, gone: str = "") -> None:
        self.channel = channel
        self.escapes = Escapes() if is_json else None
        self.gone = ""
        """Of what the channel gets, this much has gone out before; escapes undone."""
        self.clear = True
        """Nothing is held."""
        if gone:
            self.gone, self.clear = gone[-MOST_AGAIN:], False
            self._leave(channel.feed(self.gone))

    def feed(self, piece: str) -> str:
        """Return what may go on now."""
        escapes = self.escapes
        plain = escapes.undone(piece) if escapes else piece
        out = self.channel.feed(plain)
        if self.clear and out == plain and not (escapes and escapes.rest):
            if escapes:
                escapes.passed(plain)
            return piece
        self.clear = False
        out = self._leave(out)
        return escapes.done(out) if escapes else out

    def end(self) -> tuple[str, str]:
        """Return what was held, and the same with its escapes undone: the next line's ``gone``."""
        out = self._leave(self.channel.end())
        if self.escapes is None:
            return out, out
        return self.escapes.done(out) + self.escapes.rest, out

    def _leave(self, out: str) -> str:
        """Return *out* without what has gone before; where the two part, a match began in what has gone."""
        if not self.gone:
            return out
        same = 0
        while same < len(out) and same < len(self.gone) and out[same] == self.gone[same]:
            same += 1
        self.gone = self.gone[same:] if same == len(out) else ""
        return out[same:]


# -- JSON inside of a string -------------------------------------------------------------------------------------------

AREA = 0x10F000
"""Of Unicode's last private area: stands for an escaped character while the text is looked at."""
BEGIN, END = "\U0010fff0", "\U0010fff1"
"""Around a placeholder."""

SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
"""Escape -> character."""
ESCAPE = re.compile(r'\\(?:u([0-9A-Fa-f]{4})|(["\\/bfnrt]))|\\(?:u[0-9A-Fa-f]{0,3})?\Z')
"""An escape, or the beginning of one at the end of a piece."""
ESCAPED = re.compile(f"[{chr(AREA)}-{chr(AREA + 0x7F)}\ud800-\udfff]")
MARKED = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)


class Escapes:
    """Undoes the escapes of JSON that comes in pieces, and does them again."""

    __slots__ = ("in_string", "rest")

    def __init__(self) -> None:
        self.rest = ""
        """The beginning of an escape."""
        self.in_string = False
        """The JSON that went out ends within a string."""

    def undone(self, piece: str) -> str:
        """Return *piece* with an escaped character for each escape, as far as they are whole."""
        if not self.rest and "\\" not in piece:
            return piece
        piece, self.rest = self.rest + piece, ""
        return ESCAPE.sub(self._character, piece)

    def _character(self, escape: re.Match[str]) -> str:
        code, short = escape.groups()
        if short:
            return chr(AREA + ord(SHORT[short]))
        if not code:
            self.rest = escape[0]
            return ""
        character = chr(int(code, 16))
        return chr(AREA + ord(character)) if character < " " or character in '"\\' else character

    def passed(self, text: str) -> None:
        """*text* goes out as it came."""
        if text.count('"') % 2:
            self.in_string = not self.in_string

    def done(self, text: str) -> str:
        """Return *text* as JSON again."""
        if BEGIN in text:
            text = MARKED.sub(self._quoted_outside(text), text)
        self.passed(text)
        return ESCAPED.sub(_escape, text)

    def _quoted_outside(self, text: str) -> Callable[[re.Match[str]], str]:
        def placeholder(mark: re.Match[str]) -> str:
            outside = self.in_string == (text.count('"', 0, mark.start()) % 2 == 1)
            return f'"{mark[1]}"' if outside else mark[1]

        return placeholder


LONG = {character: short for short, character in SHORT.items()}


def _escape(escaped: re.Match[str]) -> str:
    code = ord(escaped[0])
    if code < AREA:  # half a surrogate pair
        return f"\\u{code:04x}"
    short = LONG.get(chr(code - AREA))
    return f"\\{short}" if short else f"\\u{code - AREA:04x}"


def inside(value: str) -> str:
    """Return *value* as it stands in JSON whose escapes are undone."""
    return "".join(chr(AREA + ord(one)) if one < " " or one in '"\\' else one for one in value)
