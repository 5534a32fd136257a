"""Columns of numbers in a report's tables: which stay together, how wide they are, and which of them fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmgate.store.queries import Row

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2
"""Between two columns."""


@dataclass(frozen=True, slots=True)
class Column:
    heading: str
    text: Callable[[Row], str]
    is_share: bool = False


type Block = tuple[Column, ...]
"""Columns that stay together."""


def number_width(column: Column, rows: Sequence[Row]) -> int:
    """Return the width of a column of numbers, with the gap before it."""
    return GAP + max(len(column.heading), *(len(column.text(row)) for row in rows))


def block_widths(blocks: Sequence[Block], rows: Sequence[Row]) -> dict[Block, int]:
    return {block: sum(number_width(column, rows) for column in block) for block in blocks}


def packed(widths: Mapping[Block, int], room: int) -> list[list[Block]]:
    """Return the blocks in order, in as few runs as fit into *room* each."""
    runs: list[list[Block]] = [[]]
    left = room
    for block, width in widths.items():
        if width > left and runs[-1]:
            runs.append([])
            left = room
        runs[-1].append(block)
        left -= width
    return runs


def add_names(made: "Table", headings: Sequence[str], most: int, footers: Sequence[str] = ()) -> None:
    """Add a column per heading for names, which are cut at *most* columns."""
    from rich.text import Text

    for n, heading in enumerate(headings):
        footer = Text(footers[n] if n < len(footers) else "")
        made.add_column(Text(heading), footer=footer, overflow="ellipsis", max_width=most, min_width=5)
