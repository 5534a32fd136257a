"""``mitmgate tail``: a line per exchange, as it is written.

The column ``way`` is empty for an answer at first try; it says ``HIT`` for one out of the cache, ``×3`` for three
attempts, ``→azure-eu`` where another place than the first one answered.

Follows by rowid: each look opens the database read-only, asks for what came after the last row seen, and closes it, so
that a tail that somebody forgot never holds back the writer's checkpoints. Waits for a database that does not exist
yet.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from mitmgate.cli import render
from mitmgate.cli.common import db_option, db_path, home_option
from mitmgate.clock import SystemClock
from mitmgate.errors import StartError
from mitmgate.store import queries
from mitmgate.store.reader import open_reader
from mitmgate.store.selection import Filters, Window

LOOK_S = 0.25
"""Between two looks at the database."""

PATIENCE = 20
"""Looks at a file that is there and cannot be read: a gateway that starts makes its tables within these."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the line."""

    width: int
    text: Callable[[queries.Row], str]
    least: int = 0
    """The width it can do with; 0 = it does not shrink."""
    right: bool = False
    give_up: int = 0
    """The higher, the sooner the column goes where the terminal is narrow; 0 = it stays."""


def model_of(row: queries.Row) -> str:
    return f"{render.inert(row['provider_name'])}/{render.inert(row['response_model'] or row['request_model'])}"


def tokens_of(row: queries.Row) -> str:
    return f"{render.count(row['input_tokens'])} → {render.count(row['output_tokens'])}"


def ending_of(row: queries.Row) -> str:
    """Return how it ended, and where neither the provider nor the cache answered, who did."""
    ending = render.inert(row["terminal"])
    return ending if row["source"] in ("provider", "cache", None) else f"{ending} ({render.inert(row['source'])})"


def way_of(row: queries.Row) -> str:
    """Return how the answer was come by, where it was not the first attempt at the first place.

    ``HIT`` out of the cache; ``×3`` three attempts; ``→azure-eu`` another place than the first one answered.
    """
    attempts, step = row["attempts"] or 0, row["step"] or 0
    marks = (
        ("HIT", row["cache_status"] == "HIT"),
        (f"×{render.count(attempts)}", attempts > 1),
        (f"→{render.inert(row['target'])}", step > 0 and attempts > 0),
    )
    return "".join(mark for mark, holds in marks if holds)


SHORT_ID = 18
"""Of a UUIDv7: its milliseconds and twelve random bits, enough for ``mitmgate show``."""

FIELDS: dict[str, Field] = {
    "time": Field(12, lambda row: row["started_at"][11:23], least=8),
    "tenant": Field(12, lambda row: render.inert(row["tenant"]), least=8, give_up=1),
    "provider/model": Field(34, model_of, least=14),
    "code": Field(4, lambda row: render.inert(row["status_code"]), right=True),
    "ended": Field(18, ending_of, least=9),
    "way": Field(16, way_of, least=4, give_up=4),
    "tokens": Field(15, tokens_of, least=11, right=True, give_up=3),
    "cost $": Field(9, lambda row: render.usd_narrow(row["cost_nanousd"]), right=True, give_up=2),
    "first ms": Field(8, lambda row: render.ms(row["time_to_first_token_ms"]), right=True, give_up=5),
    "ms": Field(7, lambda row: render.ms(row["duration_ms"]), right=True),
    "id": Field(36, lambda row: render.inert(row["id"]), least=SHORT_ID),
}
"""One line, left to right."""


def columns(width: int) -> dict[str, int]:
    """Return the columns that fit into *width*, and how wide each is: first columns shrink, then they go."""
    widths = {name: field.width for name, field in FIELDS.items()}
    for name in sorted(FIELDS, key=lambda name: FIELDS[name].least - FIELDS[name].width):
        if line_width(widths) > width and FIELDS[name].least:
            widths[name] = max(FIELDS[name].least, widths[name] - (line_width(widths) - width))
    for name in sorted(FIELDS, key=lambda name: -FIELDS[name].give_up):
        if line_width(widths) > width and FIELDS[name].give_up:
            del widths[name]
    return widths


def line_width(widths: dict[str, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)


def line(row: queries.Row, widths: dict[str, int]) -> str:
    """Return *row* as one line."""
    return joined({name: FIELDS[name].text(row) for name in widths}, widths)


def heading(widths: dict[str, int]) -> str:
    return joined({name: name for name in widths}, widths)


def joined(texts: dict[str, str], widths: dict[str, int]) -> str:
    """Return *texts* in their columns."""
    return "  ".join(fitted(name, texts[name], width) for name, width in widths.items()).rstrip()


def fitted(name: str, text: str, width: int) -> str:
    """Return the *text* of a column in exactly *width* terminal columns; wide characters count as two.

    A time and an id are cut without a mark, since what is left of them is whole; of provider and model the end stays.
    """
    from rich.cells import cell_len, set_cell_size

    if (length := cell_len(text)) <= width:
        return " " * (width - length) + text if FIELDS[name].right else text + " " * (width - length)
    if name in ("time", "id"):
        return set_cell_size(text, width)
    if name != "provider/model":
        return set_cell_size(text, width - 1) + "…"
    while cell_len(text) > width - 1:
        text = text[1:]
    return set_cell_size("…" + text, width)


def style(row: queries.Row) -> str:
    """Return the colour of a line; it repeats what status and ending already say."""
    if (row["status_code"] or 0) >= 400 or row["terminal"] in ("failed", "timeout", "error_event", "refused"):
        return "red"
    return "yellow" if row["terminal"] != "complete" else ""


class Printer:
    """Writes rows as lines for people, or as one JSON object a line."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = render.console()
        self.widths: dict[str, int] = {}

    def rows(self, rows: list[queries.Row]) -> None:
        if self.as_json:
            for row in rows:
                click.echo(
                    render.as_json({name: value for name, value in render.unfolded(row).items() if name != "rowid"})
                )
            return
        for row in rows:
            self.head()
            self.put(line(row, self.widths), style(row))

    def head(self) -> None:
        """Write the heading, again after the terminal has changed its width."""
        widths = columns(self.console.width)
        if widths != self.widths:
            self.widths = widths
            self.put(heading(widths), "bold")

    def put(self, text: str, style: str) -> None:
        self.console.out(text, style=style or None, highlight=False)


class Follower:
    """Remembers the last row seen, over a database that may come late, or be replaced by a new file."""

    def __init__(self, path: Path, filters: Filters) -> None:
        self.path = path
        self.filters = filters
        self.seen: int | None = None
        """A rowid; None until the database was there."""
        self.misses = 0
        """Looks in a row at a file that could not be read."""

    def first(self, conn: sqlite3.Connection, n: int, window: Window) -> list[queries.Row]:
        """Return the newest *n* rows and remember where the table ends."""
        newest = queries.newest_rowid(conn)
        rows = queries.latest(conn, n, window, self.filters) if n else []
        self.seen = last_of(rows, newest)
        return rows

    def look(self) -> list[queries.Row]:
        """Open the database, return what is new, close it. Nothing while the file is away or just being made.

        Raises StartError where it is there and still cannot be read after five seconds.
        """
        try:
            with closing(open_reader(self.path)) as conn:
                rows = self.more(conn)
        except StartError:
            self.misses += 1
            if self.path.exists() and self.misses > PATIENCE:
                raise
            return []
        self.misses = 0
        return rows

    def more(self, conn: sqlite3.Connection) -> list[queries.Row]:
        """Return what was written since the last look."""
        newest = queries.newest_rowid(conn)
        if self.seen is None or newest < self.seen:
            self.seen = 0  # another file took this one's place, and counts from the start
        rows = queries.tail(conn, self.seen, self.filters)
        self.seen = rows[-1]["rowid"] if len(rows) == queries.TAIL_ROWS else last_of(rows, newest)
        return rows


def last_of(rows: list[queries.Row], newest: int) -> int:
    """Return the last rowid seen; a row may have been written after the question for the newest."""
    return max(newest, rows[-1]["rowid"]) if rows else newest


@click.command(
    epilog="""\b
Examples:
  mitmgate tail                          the last ten rows, then every new one
  mitmgate tail --tenant acme -n 0       only what acme sends from now on
  mitmgate tail --where "status_code = 429 OR attempts > 1"
  mitmgate tail --json | jq .cost_nanousd
"""
)
@click.option(
    "-n", "--rows", default=10, show_default=True, type=click.IntRange(0), help="Rows to show of those there are."
)
@click.option("--follow/--no-follow", default=True, help="Go on with every new row, or stop.  [default: follow]")
@click.option(
    "--since", default="all", metavar="TIME", help="Of the rows there are, only those since: 30m, 24h, 7d, ISO time."
)
@render.filter_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every column.")
@home_option
@db_option
def tail(rows: int, follow: bool, since: str, filters: Filters, as_json: bool, home: Path, db: Path | None) -> None:
    """Show exchanges as they happen, a line each.

    "way" tells how an answer was come by: HIT = out of the cache, ×3 = three attempts, →NAME = another target than the
    first one answered.
    """
    path = db_path(home, db)
    printer = Printer(as_json)
    follower = Follower(path, filters)
    if not (follow and waits(path)):
        window = Window(since=render.time_of("--since", since, SystemClock().wall()))
        with render.reading(path) as conn:
            printer.rows(follower.first(conn, rows, window))
    with suppress(KeyboardInterrupt), render.said():
        while follow:
            time.sleep(LOOK_S)
            printer.rows(follower.look())


def waits(path: Path) -> bool:
    """Return whether there is no database at *path* yet, having said what the wait is for."""
    if path.exists():
        return False
    click.echo(f"waiting for {path}: the gateway makes it when it starts (mitmgate serve)", err=True)
    return True
