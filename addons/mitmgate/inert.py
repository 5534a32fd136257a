"""Text of strangers, made so that it can only be looked at: on a terminal and on mitmweb's page.

What has passed ``inert`` holds no control character, no escape sequence and nothing that reorders or hides its
neighbours.
"""

import unicodedata

ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that act instead of showing: controls, direction marks, lone surrogates, line separators."""
JOINERS = frozenset("\u200c\u200d")
"""Needed by scripts and emoji; they do nothing else."""


def inert(text: str) -> str:
    """Return *text* as one line that can only be looked at."""
    return text if text.isprintable() else "".join(map(shown, text))


def inert_lines(text: str) -> str:
    """Return *text* with its lines kept, tabs spread, and everything else as harmless as ``inert`` makes it."""
    return "\n".join(inert(line.expandtabs(4)) for line in text.replace("\r\n", "\n").split("\n"))


def shown(char: str) -> str:
    """Return the visible form of a character: itself, ``␛`` for a control, ``\\u202e`` for what acts unseen."""
    if char.isprintable() or char in JOINERS or unicodedata.category(char) not in ACTING:
        return char
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))  # Unicode's control pictures are in the order of the controls
    return "␡" if char == "\x7f" else char.encode("unicode_escape", "surrogatepass").decode("ascii")
