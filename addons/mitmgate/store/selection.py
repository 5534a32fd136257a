"""Which rows a question is about: a window of time, a few filters, and an SQL condition of the user's own.

A condition is data until it has been looked at: it must close its own brackets and quotes, and it runs on a connection
whose authorizer allows nothing but reading. What is wrong with it is said in one sentence (``BadQuery``).
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from mitmgate.clock import iso
from mitmgate.providers import TABLE

type Values = list[str | int | float | None]
"""What is bound to the question marks of an SQL text, in order."""


class BadQuery(Exception):
    """A question that cannot be asked as it stands; the message is one sentence for whoever asked."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a row must match. A field with several values matches any of them; ``*`` and ``?`` in one are wildcards."""

    tenants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Requested or answered."""
    routes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    """``provider_name`` of the row, or the slug of the provider table: ``azure-openai`` finds ``azure.ai.openai``."""
    where: str | None = None
    """An SQL condition over the columns of ``exchanges``."""


EVERYTHING = Filters()


@dataclass(frozen=True, slots=True)
class Window:
    """From *since* (included) to *until* (excluded), as ``started_at`` is written; None = open."""

    since: str | None = None
    until: str | None = None


# -- time -------------------------------------------------------------------------------------------------------------

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
AGO = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")


def moment(text: str, wall: float) -> str | None:
    """Return the time that *text* means at *wall* (seconds since 1970), in the form of ``started_at``.

    ``30m``, ``24h``, ``7d``, ``2w`` count back from now; anything else is an ISO 8601 time, in UTC unless it says its
    zone. ``all`` is None: no bound.
    """
    if text.strip() == "all":
        return None
    if ago := AGO.fullmatch(text):
        seconds = wall - float(ago[1]) * UNIT_S[ago[2]]
        return iso(max(0.0, seconds))
    try:
        time = datetime.fromisoformat(text.strip())
        return iso((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise BadQuery(
            f"{text!r} is no time: write 30m, 24h, 7d, 2w (back from now), all, or an ISO time like 2026-11-24T09:30Z"
        ) from None


# -- conditions -------------------------------------------------------------------------------------------------------


def clause(window: Window, filters: Filters) -> tuple[str, Values]:
    """Return what follows ``WHERE`` and the values to bind; ``BadQuery`` where the user's condition is not one."""
    terms: list[str] = []
    values: Values = []
    for column, compare, bound in (("started_at", ">=", window.since), ("started_at", "<", window.until)):
        if bound is not None:
            terms.append(f"{column} {compare} ?")
            values.append(bound)
    for columns, wanted in (
        (("tenant",), filters.tenants),
        (("request_model", "response_model"), filters.models),
        (("route",), filters.routes),
        (("provider_name",), with_slugs(filters.providers)),
    ):
        if wanted:
            pairs = [(column, value) for column in columns for value in wanted]
            terms.append("(" + " OR ".join(matches(column, value) for column, value in pairs) + ")")
            values += [pattern(value) for _, value in pairs]
    if filters.where is not None:
        terms.append(f"(\n{contained(filters.where)}\n)")
    return " AND ".join(terms) or "1", values


def is_wild(value: str) -> bool:
    return "*" in value or "?" in value


def matches(column: str, value: str) -> str:
    """Return the comparison of *column* with *value*: equality, which an index serves, unless there is a wildcard."""
    return f"{column} GLOB ?" if is_wild(value) else f"{column} = ?"


def pattern(value: str) -> str:
    """Return *value* as it is bound: in a GLOB a bracket means a set of characters, in a name it means itself."""
    return value.replace("[", "[[]") if is_wild(value) else value


def with_slugs(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return *names* and, for each that is a slug, OpenTelemetry's name, which is what rows carry."""
    otel = {provider.slug: provider.provider_name for provider in TABLE}
    return tuple(dict.fromkeys(name for given in names for name in (given, otel.get(given, given))))


TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\]   # whole quotes: what is in them does not count
      | -- | /\* | [;()'"`\[?@$:]""",
    re.VERBOSE,
)


def contained(condition: str) -> str:
    """Return *condition* if it stays inside the brackets that we put around it; raise ``BadQuery`` if not."""
    depth = 0
    for token in TOKEN.findall(condition):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0:
            raise BadQuery(f"--where {condition!r} closes a bracket that it did not open")
        if token == ";" or token in ("--", "/*"):
            raise BadQuery(f"--where takes one condition, without {token!r}")
        if token in "?@$:":
            raise BadQuery(
                f"--where {condition!r} has a placeholder ({token}); write the value itself, text in 'quotes'"
            )
        if len(token) == 1 and token in "'\"`[":
            raise BadQuery(f"--where {condition!r} has a quote ({token}) without its end")
    if depth > 0:
        raise BadQuery(f"--where {condition!r} leaves a bracket open")
    if not condition.strip():
        raise BadQuery('--where is empty: write a condition such as "status_code = 429"')
    return condition


READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION})


def reading_only(action: int, name: str | None, detail: str | None, _database: str | None, _trigger: str | None) -> int:
    """Allow an action of the SQL compiler if it only reads."""
    if action not in READING or (action == sqlite3.SQLITE_FUNCTION and detail == "load_extension"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


@contextmanager
def asking(conn: sqlite3.Connection, filters: Filters) -> Iterator[None]:
    """Run queries under the authorizer if *filters* carry a condition; its mistakes come out as ``BadQuery``."""
    if filters.where is None:
        yield
        return
    conn.set_authorizer(reading_only)
    try:
        check(conn, filters.where)
        yield
    except sqlite3.DatabaseError as e:
        raise BadQuery(f"--where {filters.where!r}: {in_words(conn, e)}") from e
    finally:
        conn.set_authorizer(None)


def check(conn: sqlite3.Connection, condition: str) -> None:
    """Compile *condition* alone, so that an error is about it and nothing else."""
    conn.execute(f"SELECT 1 FROM exchanges WHERE (\n{contained(condition)}\n) LIMIT 0").close()


def in_words(conn: sqlite3.Connection, error: sqlite3.Error) -> str:
    text = str(error)
    if "authoriz" in text or "prohibited" in text:
        return "a condition may only read"
    if column := NO_COLUMN.fullmatch(text):
        return f"{text}{nearest(column[1], columns(conn))}"
    return text


NO_COLUMN = re.compile(r"no such column: (?:exchanges\.)?(\w+)")


def columns(conn: sqlite3.Connection) -> list[str]:
    """Return the columns of ``exchanges``."""
    return [column[0] for column in conn.execute("SELECT * FROM exchanges LIMIT 0").description]


def nearest(word: str, known: list[str]) -> str:
    """Return `` (did you mean …?)``, or nothing where no known word is close."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
