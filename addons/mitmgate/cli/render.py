"""How values look on a terminal: numbers with their units, bars and sparklines, and text of strangers made harmless.

Tenants, models, prompts and tags come out of requests, so whoever sends one could try to speak to the operator's
terminal. ``inert`` is the one gate: what has passed it holds no control character, no escape sequence and nothing that
turns the direction of writing; rich gets it as ``Text``, so that its markup means nothing either.
"""

import io
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmgate.cli.common import console as plain_console
from mitmgate.errors import StartError
from mitmgate.inert import inert as inert_text
from mitmgate.store.queries import NotOne
from mitmgate.store.reader import open_reader
from mitmgate.store.selection import BadQuery, Filters, moment

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NULL = "–"
"""Unknown, or not there. Never 0."""

PIPE_COLUMNS = 200
"""Width of a table that no terminal shows: whoever greps wants whole names."""

# -- text -------------------------------------------------------------------------------------------------------------


def inert(value: object) -> str:
    """Return *value* as one line that can only be looked at; ``–`` for None."""
    return NULL if value is None else inert_text(str(value))


# -- numbers ----------------------------------------------------------------------------------------------------------


def count(n: float | None) -> str:
    """Return ``12,551``; from a million on three digits: ``1.26M``."""
    if n is None:
        return NULL
    for unit, one in (("G", 1e9), ("M", 1e6)):
        if abs(n) >= one:
            return f"{three_digits(n / one)}{unit}"
    return f"{n:,.0f}"


def three_digits(value: float) -> str:
    """Return ``1.23``, ``12.3``, ``1,234``."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def counted(n: int | None, noun: str) -> str:
    """Return ``1 call``, ``2 calls``."""
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def ms(value: float | None) -> str:
    """Return milliseconds without their unit: ``2.1``, ``585``, ``9,513``."""
    if value is None:
        return NULL
    if value == 0:
        return "0"
    return f"{value:.1f}" if abs(value) < 9.95 else f"{value:,.0f}"


def ms_unit(value: float | None) -> str:
    """Return ``585 ms``."""
    return NULL if value is None else f"{ms(value)} ms"


def usd(nanousd: int | None) -> str:
    """Return US dollars without their sign: cents from a dollar on, below that three digits that mean something."""
    if nanousd is None:
        return NULL
    dollars = nanousd / 1e9
    if nanousd == 0:
        return "0"
    if abs(dollars) >= 1:
        return f"{dollars:,.2f}"
    places = 2
    while places < 9 and abs(dollars) < 10.0 ** (2 - places):
        places += 1
    return f"{dollars:.{places}f}"


def usd_narrow(nanousd: int | None) -> str:
    """Return what ``usd`` does, below $0.00001 with fewer digits: nine characters, as a number cut off misleads."""
    if nanousd is None or nanousd == 0 or nanousd >= 10_000:
        return usd(nanousd)
    return f"{nanousd / 1e9:.7f}" if nanousd >= 100 else "<1e-7"


def dollars(nanousd: int | None) -> str:
    """Return ``$36.46``, or ``unknown``."""
    return "unknown" if nanousd is None else f"${usd(nanousd)}"


def share(value: float | None) -> str:
    """Return a share in 0…1 as percent without its sign: ``2.18``."""
    if value is None:
        return NULL
    return f"{value * 100:.2f}" if value else "0"


def times(value: float | None) -> str:
    """Return a small factor: ``1.04``."""
    return NULL if value is None else f"{value:.2f}"


# -- pictures ---------------------------------------------------------------------------------------------------------

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.:-=+*#"


def bar(part: float, width: int, *, ascii_only: bool = False) -> str:
    """Return a bar over the *part* (0…1) of *width* columns; something that is more than nothing shows."""
    eighths = max(round(min(max(part, 0.0), 1.0) * width * 8), 1 if part > 0 else 0)
    if ascii_only:
        return "#" * -(-eighths // 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """Return one character per value, scaled from 0 to the largest; a space where there is none.

    Scaled from 0, because a scale from the smallest value makes a flat line look like an alarm.
    """
    levels = ASCII_LEVELS if ascii_only else LEVELS
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else levels[level(value, top)] for value in values)


def level(value: float, top: float) -> int:
    return min(int(value / top * 8), 7) if top > 0 and value > 0 else 0


def folded(values: Sequence[float | None], width: int, fold: Callable[[list[float]], float]) -> list[float | None]:
    """Return *values* in at most *width* parts, each *fold* of the known values that fall together."""
    if len(values) <= width:
        return list(values)
    parts: list[list[float]] = [[] for _ in range(width)]
    for n, value in enumerate(values):
        if value is not None:
            parts[n * width // len(values)].append(value)
    return [fold(part) if part else None for part in parts]


# -- where it goes ----------------------------------------------------------------------------------------------------


def console() -> "Console":
    """Return a console on stdout: as wide as the terminal, or wide enough for whole names where there is none."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a name outside the terminal's alphabet must not end the report
    made = plain_console()
    if not made.is_terminal and "COLUMNS" not in made._environ:
        made.width = PIPE_COLUMNS
    return made


def natural_width(made: "Console", table: "Table") -> int:
    """Return how wide *table* is where nothing cuts it; a console measures no further than its own edge."""
    from rich.measure import Measurement

    return Measurement.get(made, made.options.update(max_width=10_000), table).maximum


def is_ascii(made: "Console") -> bool:
    """Return whether *made* cannot show block characters."""
    return not made.encoding.startswith("utf")


def heading(out: "Console", text: str) -> None:
    """Print the line that a part begins with."""
    out.out(f"\n{text}", style="bold", highlight=False)


def as_json(value: object) -> str:
    """Return *value* as JSON on one line: columns that hold JSON text as what they say, control characters escaped."""
    return json.dumps(value, ensure_ascii=False, default=str)


JSON_COLUMNS = ("finish_reasons", "metadata", "server_tools")


def unfolded(row: dict[str, Any]) -> dict[str, Any]:
    """Return *row* with its JSON columns parsed."""
    return {name: parsed(value) if name in JSON_COLUMNS else value for name, value in row.items()}


def parsed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


# -- which rows -------------------------------------------------------------------------------------------------------


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--tenant --model --route --provider --where``; the command gets them as one ``filters``."""

    def with_filters(
        *args: Any,
        tenant: tuple[str, ...],
        model: tuple[str, ...],
        route: tuple[str, ...],
        provider: tuple[str, ...],
        where: str | None,
        **rest: Any,
    ) -> Any:
        return command(*args, filters=Filters(tenant, model, route, provider, where), **rest)

    with_filters.__name__ = command.__name__
    with_filters.__doc__ = command.__doc__
    with_filters.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    options = (
        click.option(
            "--tenant", multiple=True, metavar="NAME", help="Only this tenant; * and ? are wildcards, repeatable."
        ),
        click.option("--model", multiple=True, metavar="NAME", help="Only this model, asked for or answered by."),
        click.option("--route", multiple=True, metavar="NAME", help="Only this route."),
        click.option("--provider", multiple=True, metavar="NAME", help="Only this provider."),
        click.option(
            "--where", metavar="SQL", help="Only rows that this condition over the exchanges columns holds for."
        ),
    )
    decorated: Callable[..., Any] = with_filters
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def time_of(option: str, text: str, wall: float) -> str | None:
    """Return the time that the option's *text* means at *wall*; None = no bound."""
    try:
        return moment(text, wall)
    except BadQuery as e:
        raise click.UsageError(f"{option}: {e}") from e


@contextmanager
def said() -> Iterator[None]:
    """Turn what the user can mend into one sentence: wrong options end with code 2, the rest with 1."""
    try:
        yield
    except NotOne as e:
        raise click.ClickException(str(e)) from e
    except BadQuery as e:
        raise click.UsageError(str(e)) from e
    except StartError as e:
        raise click.ClickException(str(e)) from e
    except sqlite3.DatabaseError as e:
        raise click.ClickException(f"the trace database cannot be read: {e}") from e


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database at *path* for reading, and close it; mistakes are ``said``."""
    with said(), closing(open_reader(path)) as conn:
        yield conn
