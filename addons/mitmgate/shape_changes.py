"""What each rule of ``shape`` does to a request. Pure: a conversation in; edits of the body's text, or why not, out.

    keep_last           the oldest rounds go, until about so many tokens are left
    max_output_tokens   the answer is bounded, by the member that the model takes
    mark_cacheable      Anthropic's prompt cache is told where stable prefixes end
    dedupe              a long text that stood before is named, not said again
    summarize           a summary stands in place of the oldest rounds

Each gives a long conversation with one more turn the beginning that it had before, wherever that can be: a provider
knows it again then, and takes a tenth for it. So rounds go in blocks, not one by one as the conversation grows, and
what is done to a turn depends on what stands before it, as far as that can be.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mitmgate.dialects.base import Json
from mitmgate.dialects.counts import count, items, obj, objs, text
from mitmgate.shape_text import Edit, Path, gone, preceded_by, put, written
from mitmgate.shape_turns import (
    CHAT,
    CONVERSE,
    MAX_COMPLETION_TOKENS,
    MESSAGES,
    Talk,
    Turn,
    kind_of,
    system_texts,
    texts_of,
)

type Measure = Callable[[Sequence[Turn]], int]
"""Turns -> about how many tokens the request is with them in place of its own."""


@dataclass(frozen=True, slots=True)
class Change:
    edits: list[tuple[Path, Edit]]
    detail: str
    """For the event: ``14 turns dropped``."""


@dataclass(frozen=True, slots=True)
class Left:
    """The request stays as it is."""

    why: str
    """Ends the sentence "left alone: …"."""


# -- keep_last --------------------------------------------------------------------------------------------------------

BLOCKS = 8
"""Rounds go in blocks of an eighth of what is kept: between two cuts the conversation grows and keeps its beginning."""


def keep_last(talk: Talk, most: int, measure: Measure) -> Change | Left:
    """Drop the oldest rounds of a request that is longer than *most* tokens; its last round always stays."""
    cut = cut_of(talk, most, measure)
    if isinstance(cut, Left):
        return cut
    dropped = talk.dropped(cut)
    detail = f"{_counted(len(dropped), 'turn')} dropped"
    if cut == len(talk.rounds) - 1 and measure(_without(talk, dropped)) > most:
        detail += f"; what has to stay is more than {most:,}"
    return Change([((*talk.at, index), gone) for index in sorted(dropped)], detail)


def cut_of(talk: Talk, most: int, measure: Measure) -> int | Left:
    """Return how many of the oldest rounds have to go, at least one."""
    last = len(talk.rounds) - 1
    if last < 0:
        return Left("it has no turns that could go")
    if last == 0:
        return Left(f"it has one round, which has to stay, and is more than {most:,} tokens")

    def fits(cut: int) -> bool:
        return measure(_without(talk, talk.dropped(cut))) <= most

    cut = bisect_left(range(1, last), True, key=fits) + 1
    cut = _end_of_block(cut, [talk.size_of(indices) for indices in talk.rounds], max(most // BLOCKS, 1))
    while cut < last and not fits(cut):  # where prose goes and digits stay, an estimate may grow for a moment
        cut += 1
    return cut


def _end_of_block(cut: int, sizes: Sequence[int], block: int) -> int:
    """Return the end of the block that *cut* lies in, where that is no more than a block away.

    Blocks are counted from the beginning of the conversation, so that their ends stay where they are as it grows.
    """
    ends = [0, *accumulate(sizes)]
    for at in range(cut, len(sizes)):
        if ends[at] - ends[cut] > block:
            break
        if ends[at] // block > ends[at - 1] // block:
            return at
    return cut


def _without(talk: Talk, dropped: set[int]) -> list[Turn]:
    return [turn for index, turn in enumerate(talk.turns) if index not in dropped]


# -- summarize --------------------------------------------------------------------------------------------------------

SUMMARY = "Summary of the conversation so far:"
GO_ON = "Understood. I go on from there."


def summarize(talk: Talk, cut: int, summary: str) -> Change:
    """Put *summary* in place of the *cut* oldest rounds: told by the user, and taken by the model.

    Two turns, because some hosts want user and model to take turns; the user's, because what users and tools have said
    must not come back in the system's name.
    """
    dropped = talk.dropped(cut)
    said = [talk.wire.turn("user", f"{SUMMARY}\n\n{summary}"), talk.wire.turn("assistant", GO_ON)]
    edits: list[tuple[Path, Edit]] = [((*talk.at, index), gone) for index in sorted(dropped)]
    edits.append(((*talk.at, talk.rounds[cut][0]), preceded_by(*said)))
    return Change(edits, summarized(talk, cut))


def summarized(talk: Talk, cut: int) -> str:
    return f"{_counted(len(talk.dropped(cut)), 'turn')} summarized"


# -- max_output_tokens ------------------------------------------------------------------------------------------------

NEWER = re.compile(r"o\d|gpt-[5-9]|codex", re.IGNORECASE)
"""Models of OpenAI's that reason: they refuse ``max_tokens``."""
OPENAI = frozenset({"openai", "azure-openai", "azure-ai-inference"})
"""Where those are to be had under their own names."""


def takes_newer(provider: str, model: str | None) -> bool:
    """Return whether the chat API of *provider* wants ``max_completion_tokens`` for *model*."""
    return provider in OPENAI and model is not None and NEWER.match(model) is not None


def max_output(talk: Talk, most: int, newer: bool) -> Change | Left | None:
    """Bound the answer to *most* tokens; *newer* is what ``takes_newer`` says. None: it is bounded already."""
    thinking = _thinking(talk)
    if thinking >= most:
        return Left(f"its thinking alone may take {thinking:,} tokens")
    said = [path for path in talk.wire.output if _value(talk.body, path) is not None]
    if not said:
        path = _unsaid(talk, newer)
        return Change([((*talk.root, *path), put(most))], f"{path[-1]} set to {most:,}")
    higher = [path for path in said if not _is_within(_value(talk.body, path), most)]
    if not higher:
        return None
    old = _value(talk.body, higher[0])
    was = f"{old:,} -> " if isinstance(old, int | float) else ""
    return Change([((*talk.root, *path), put(most)) for path in higher], f"{higher[0][-1]} {was}{most:,}")


def _unsaid(talk: Talk, newer: bool) -> Path:
    """Return where a request that bounds nothing gets its bound."""
    if talk.wire is CHAT and newer:
        return MAX_COMPLETION_TOKENS
    begun = (path for path in talk.wire.output if len(path) > 1 and isinstance(talk.body.get(str(path[0])), dict))
    return next(begun, talk.wire.output[0])


def _value(body: Json, path: Path) -> Json:
    for name in path:
        body = obj(body).get(str(name))
    return body


def _is_within(value: Json, most: int) -> bool:
    said = count(value)  # Ollama's -1 means no bound
    return said is not None and said <= most


def _thinking(talk: Talk) -> int:
    """Return the tokens that Claude may think for; its answer's bound has to be higher."""
    body = talk.body
    if talk.wire is CONVERSE:
        body = obj(body.get("additionalModelRequestFields"))
    elif talk.wire is not MESSAGES:
        return 0
    return max(count(obj(body.get(name)).get("budget_tokens")) or 0 for name in ("thinking", "reasoning_config"))


# -- mark_cacheable ---------------------------------------------------------------------------------------------------

MARK = {"type": "ephemeral"}
UNMARKABLE = frozenset({"thinking", "redacted_thinking"})


def mark_cacheable(talk: Talk) -> Change | Left:
    """Mark the last tool, the system's last block and the last turn before the user's newest: ends of stable prefixes.

    A conversation may have four marks; a client that sets any itself knows better.
    """
    if talk.wire is not MESSAGES:
        return Left("marks are for Anthropic's API alone")
    if any(_marks(talk.body)):
        return Left("its client has set cache_control itself")
    found = [mark for mark in (_tool_mark(talk), _system_mark(talk), _turn_mark(talk)) if mark]
    if not found:
        return Left("it has nothing before the user's newest turn that could be marked")
    return Change([(path, edit) for path, edit, _ in found], f"marked {', '.join(what for _, _, what in found)}")


type Mark = tuple[Path, Edit, str]
"""Where, how, and what it is in words."""


def _marks(body: dict[str, Any]) -> Iterator[bool]:
    """Yield whether there is a mark in each place that may have one; tool arguments are none."""
    yield bool(body.get("cache_control"))
    blocks = [*objs(body.get("tools")), *objs(body.get("system"))]
    for turn in objs(body.get("messages")):
        blocks += objs(turn.get("content"))
    for block in blocks:
        yield bool(block.get("cache_control"))
        yield any(inner.get("cache_control") for inner in objs(block.get("content")))


def _tool_mark(talk: Talk) -> Mark | None:
    tools = items(talk.body.get("tools"))
    for index in reversed(range(len(tools))):
        # A tool that is loaded later is no part of the prefix, and the API refuses a mark on it.
        if isinstance(tools[index], dict) and not tools[index].get("defer_loading"):
            return (*talk.root, "tools", index, "cache_control"), put(MARK), "the tools"
    return None


def _system_mark(talk: Talk) -> Mark | None:
    found = _block_mark(talk.body.get("system"), (*talk.root, "system"))
    return (*found, "the system prompt") if found else None


def _turn_mark(talk: Talk) -> Mark | None:
    newest = max((index for index, turn in enumerate(talk.turns) if turn.get("role") == "user"), default=0)
    if newest == 0:
        return None
    found = _block_mark(talk.turns[newest - 1].get("content"), (*talk.at, newest - 1, "content"))
    return (*found, f"turn {newest}") if found else None


def _block_mark(content: Json, at: Path) -> tuple[Path, Edit] | None:
    """Return how the last block of *content* is marked: a text becomes a block, since only those have marks."""
    if isinstance(content, str):
        return (at, _as_marked_block) if content.strip() else None
    blocks = items(content)
    for index in reversed(range(len(blocks))):
        if isinstance(blocks[index], dict) and _is_markable(blocks[index]):
            return (*at, index, "cache_control"), put(MARK)
    return None


def _is_markable(block: dict[str, Any]) -> bool:
    kind = text(block.get("type"))
    return kind not in UNMARKABLE and (kind != "text" or bool(text(block.get("text")).strip()))


def _as_marked_block(said: str) -> str:
    return f'[{{"type":"text","text":{said},"cache_control":{written(MARK)}}}]'


# -- dedupe -----------------------------------------------------------------------------------------------------------

LONG = 400
"""Characters; a shorter text costs less than the doubt what it was."""
AS_ABOVE = "[as above]"
BREAK = re.compile(r"(\n[ \t\r]*\n\s*)")
"""Between paragraphs."""


def dedupe(talk: Talk) -> Change | Left | None:
    """Say ``[as above]`` for each text, or paragraph, that stood before.

    It is done to what users and tools have said; not to what the model has yet to answer, nor to its own words, which
    it would take for the way it talks. None: nothing stands twice.
    """
    if not talk.turns:
        return Left("it has no turns")
    fresh = _fresh(talk.turns)
    seen: set[str] = set()
    for said in system_texts(talk):
        _without_repeats(said, seen)
    edits: list[tuple[Path, Edit]] = []
    repeats = 0
    for index, turn in enumerate(talk.turns):
        may_change = index not in fresh and kind_of(turn) in ("user", "result")
        for path, said in texts_of(turn):
            new, found = _without_repeats(said, seen)
            if found and may_change:
                edits.append(((*talk.at, index, *path), put(new)))
                repeats += found
    return Change(edits, _counted(repeats, "repeated block")) if edits else None


def _fresh(turns: Sequence[Turn]) -> set[int]:
    """Return the indices of the user's last turn, and of the tools' results that the model has not seen yet."""
    kinds = [kind_of(turn) for turn in turns]
    last = {kind: index for index, kind in enumerate(kinds)}
    unseen = range(last.get("other", -1) + 1, len(turns))
    return {last.get("user", -1), *(index for index in unseen if kinds[index] == "result")}


def _without_repeats(said: str, seen: set[str]) -> tuple[str, int]:
    """Return *said* without what is in *seen*, and how many blocks that were; *seen* learns the others."""
    whole = said.strip()
    if len(whole) < LONG:
        return said, 0
    if whole in seen:
        return AS_ABOVE, 1
    pieces = BREAK.split(said)
    repeats = 0
    for at in range(0, len(pieces), 2):
        block = pieces[at].strip()
        if len(block) < LONG:
            continue
        if block in seen:
            pieces[at] = AS_ABOVE
            repeats += 1
        seen.add(block)
    seen.add(whole)
    return "".join(pieces), repeats


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
