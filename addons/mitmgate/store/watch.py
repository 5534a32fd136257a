"""What the ``alert`` room asks of the trace database: how many calls there were, how many of them speak for an alarm,
and which.

Every row is read once, by its rowid: that is the order in which rows are written, so that in which calls ended. SQL
groups them by the fields that a rule names, so a busy minute costs a few groups, not thousands of rows in Python.

What the figures count:
- A *call* is one that was not refused by the policy: neither a full limit nor an empty budget is an error, and neither
  makes the share of errors look smaller. A refusal from 500 on (every target rests, a room broke) is an error like any.
- An *error* is what reports call one (``views.FAILED``), without those who left before the end.
- A stream is *interrupted* as reports say it (``views.INTERRUPTED``), whoever broke it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mitmgate.clock import iso
from mitmgate.providers import TABLE, Hosts
from mitmgate.store.queries import METADATA
from mitmgate.store.selection import Values as Bound
from mitmgate.store.views import FAILED, INTERRUPTED

type Fields = dict[str, object]
"""Fields of rules, by name, as one row or group of rows has them; None = it has none."""

type Values = tuple[str, ...]
"""What the fields of ``per`` were: each is counted apart. "" = the call had none."""

EVIDENCE = 3
"""Ids of calls that a message names."""

CANDIDATES = 2000
"""Rows looked through for them."""


class Span(NamedTuple):
    """Rows by rowid: behind *after*, up to *upto*."""

    after: int
    upto: int


# -- figures ----------------------------------------------------------------------------------------------------------

REFUSED = "(terminal = 'refused' AND coalesce(status_code, 0) < 500)"
ERROR = f"({FAILED} AND terminal <> 'client_abort' AND NOT {REFUSED})"


@dataclass(frozen=True, slots=True)
class Figure:
    """A share of calls, or a sum over them, as SQL."""

    whole: str
    """Condition: the calls that it is about."""
    part: str
    """Condition: those of them that speak for an alarm. ``?`` is the rule's limit."""
    sum: str = "1"
    """What each of them counts for."""
    worst: str = "rowid DESC"
    """The order in which they make the best evidence."""


FIGURES: Mapping[str, Figure] = {
    "error_rate": Figure(f"NOT {REFUSED}", ERROR),
    "interrupted": Figure(f"stream = 1 AND NOT {REFUSED}", INTERRUPTED),
    "p95_ms": Figure(f"duration_ms IS NOT NULL AND NOT {REFUSED}", "duration_ms > ?", worst="duration_ms DESC"),
    "spend": Figure("cost_nanousd IS NOT NULL", "cost_nanousd > 0", sum="cost_nanousd", worst="cost_nanousd DESC"),
}
"""By ``When.watch``. A 95th percentile is above its limit where more than a twentieth of the calls are, so it is
counted like a share; what it is exactly is asked only for a message (``samples``)."""

ENDED_S = "((julianday(started_at) - 2440587.5) * 86400 + coalesce(duration_ms, 0) / 1000)"
"""When a call ended, seconds since 1970."""


class Counted(NamedTuple):
    """Calls that ended in one slice of time and have the same fields."""

    slice: int
    fields: Fields
    whole: int
    part: int


# -- fields -----------------------------------------------------------------------------------------------------------

RENAMED = {
    "operation": "operation_name",
    "model": "request_model",
    "session": "session_id",
    "path": "substr(path, 1, instr(path || '?', '?') - 1)",
    "provider": "json_array(provider_name, host)",
}
SAME = (
    *("host", "method", "tier", "stream", "tenant", "user", "route", "auth", "region", "colo", "sla", "user_agent"),
    *("input_tokens", "prompt_version"),
)
COLUMNS: Mapping[str, str] = {**{name: name for name in SAME}, **RENAMED}
"""A field of a rule -> SQL over ``exchanges``. ``metadata.NAME`` comes on top; headers and bodies are in no row."""


class Columns:
    """The fields of one rule, as SQL and back."""

    def __init__(self, fields: Iterable[str]) -> None:
        self.names = tuple(name for name in dict.fromkeys(fields) if name in COLUMNS or name.startswith("metadata."))
        self.sql = [COLUMNS.get(name, METADATA) for name in self.names]
        self.bound: Bound = [name.removeprefix("metadata.") for name in self.names if name not in COLUMNS]

    def selected(self, *more: str) -> str:
        return ", ".join([*self.sql, *more])

    @property
    def grouped(self) -> str:
        """Return what follows ``GROUP BY``, where the fields are selected first and nothing else is grouped by."""
        return ", ".join(str(n) for n in range(1, len(self.names) + 1))

    def read(self, cells: Sequence[object]) -> Fields:
        return {name: self._read(name, cell) for name, cell in zip(self.names, cells, strict=False)}

    def _read(self, name: str, cell: object) -> object:
        if name == "stream":
            return None if cell is None else bool(cell)
        return slug_of(*json.loads(str(cell))) if name == "provider" else cell


PUBLIC = Hosts()


def _slugs() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for provider in TABLE:
        found[provider.provider_name] = (*found.get(provider.provider_name, ()), provider.slug)
    return found


SLUGS: Mapping[str, tuple[str, ...]] = _slugs()
"""The name that rows carry -> those that rules go by."""


def slug_of(provider_name: str | None, host: str | None) -> str | None:
    """Return what rules call the provider of a row; where two have one name, its host tells."""
    slugs = SLUGS.get(provider_name or "", ())
    if len(slugs) > 1 and host and (found := PUBLIC.find(host, 443)) and found.slug in slugs:
        return found.slug
    return slugs[0] if slugs else provider_name


def values_of(fields: Fields, per: Iterable[str]) -> Values:
    """Return the values that *per* parts by."""
    return tuple(_text(fields.get(name)) for name in per)


def _text(value: object) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else str(value)


# -- where to begin ---------------------------------------------------------------------------------------------------


def newest(conn: sqlite3.Connection) -> int:
    """Return the rowid of the row written last, 0 where there is none."""
    return int(conn.execute("SELECT max(rowid) FROM exchanges").fetchone()[0] or 0)


LONGEST_S = 3600.0
"""A call that ended just now may have begun so long ago: ``timeout.total`` where nobody says otherwise."""


def before(conn: sqlite3.Connection, wall: float) -> int:
    """Return the rowid behind which every row stands whose call ended at *wall* (seconds since 1970) or later."""
    began = iso(max(0.0, wall - LONGEST_S))
    first = conn.execute("SELECT min(rowid) FROM exchanges WHERE started_at >= ?", [began]).fetchone()[0]
    return newest(conn) if first is None else int(first) - 1


# -- figures of calls -------------------------------------------------------------------------------------------------


def counted(
    conn: sqlite3.Connection, figure: Figure, limit: float, columns: Columns, span: Span, slice_s: float
) -> Iterator[Counted]:
    """Yield what the calls of *span* add up to, per slice of *slice_s* seconds and combination of fields."""
    picked = f"count(*), coalesce(sum({figure.sum}) FILTER (WHERE {figure.part}), 0)"
    sql = f"""
        SELECT CAST({ENDED_S} / ? AS INTEGER), {columns.selected(picked)}
        FROM exchanges WHERE rowid > ? AND rowid <= ? AND {figure.whole}
        GROUP BY {", ".join(str(n) for n in range(1, len(columns.names) + 2))}"""
    bound: Bound = [slice_s, *columns.bound, *_limit(figure, limit), *span]
    for slice_, *cells, whole, part in conn.execute(sql, bound).fetchall():
        if slice_ is not None:
            yield Counted(slice_, columns.read(cells), whole, part)


def samples(
    conn: sqlite3.Connection, columns: Columns, after: int, since: float
) -> Iterator[tuple[Fields, list[float]]]:
    """Yield the milliseconds of the calls that ended since *since*, per combination of fields."""
    sql = f"""
        SELECT {columns.selected("json_group_array(duration_ms)")}
        FROM exchanges WHERE rowid > ? AND {ENDED_S} >= ? AND {FIGURES["p95_ms"].whole}
        {f"GROUP BY {columns.grouped}" if columns.names else ""}"""
    for *cells, array in conn.execute(sql, [*columns.bound, after, since]).fetchall():
        yield columns.read(cells), json.loads(array)


def worst(
    conn: sqlite3.Connection, figure: Figure, limit: float, columns: Columns, after: int, since: float
) -> Iterator[tuple[str, Fields]]:
    """Yield (id, fields) of the calls since *since* that speak for an alarm, the best evidence first."""
    sql = f"""
        SELECT {columns.selected("id")}
        FROM exchanges WHERE rowid > ? AND {ENDED_S} >= ? AND {figure.whole} AND {figure.part}
        ORDER BY {figure.worst} LIMIT {CANDIDATES}"""
    bound: Bound = [*columns.bound, after, since, *_limit(figure, limit)]
    for *cells, id_ in conn.execute(sql, bound).fetchall():
        yield str(id_), columns.read(cells)


def _limit(figure: Figure, limit: float) -> Bound:
    return [limit] * figure.part.count("?")


# -- events of rules --------------------------------------------------------------------------------------------------


class Acted(NamedTuple):
    """A rule acted on a call."""

    id: str
    """Of the call."""
    at: str
    action: str
    detail: str
    fields: Fields


def acted(
    conn: sqlite3.Connection,
    room: Literal["breaker", "budget"],
    actions: Sequence[str],
    columns: Columns,
    span: Span,
    rule: str | None = None,
) -> list[Acted]:
    """Return when a *rule* (None = any) of *room* took one of *actions* on the calls of *span*, in order."""
    events = "p.exchange_id, p.at, p.action, coalesce(p.detail, '')"
    sql = f"""
        SELECT {columns.selected(events)}
        FROM exchanges CROSS JOIN policy_events AS p ON p.exchange_id = exchanges.id
        WHERE exchanges.rowid > ? AND exchanges.rowid <= ? AND p.room = ? AND p.shadow = 0
              AND p.action IN ({", ".join("?" for _ in actions)}) AND (? IS NULL OR p.rule = ?)
        ORDER BY p.at"""
    rows = conn.execute(sql, [*columns.bound, *span, room, *actions, rule, rule]).fetchall()
    return [Acted(id_, at, action, detail, columns.read(cells)) for *cells, id_, at, action, detail in rows]


RESTS = " rests for "
"""In the sentence of the event with which a place begins to rest, behind its name."""

ANSWERED = """
SELECT a.target, a.host, max(a.started_at)
FROM exchanges AS x CROSS JOIN attempts AS a ON a.exchange_id = x.id
WHERE x.rowid > ? AND x.rowid <= ? AND a.started_at IS NOT NULL AND a.status_code < 500
      AND coalesce(a.error_type, '') NOT IN ('cancelled', 'connect', 'timeout', 'reset')
      AND coalesce(a.error_type, '') NOT LIKE 'error_event%'
GROUP BY 1, 2
"""
"""An attempt that did not fail in a way that speaks against its place."""


def answered(conn: sqlite3.Connection, span: Span) -> dict[str, str]:
    """Return when the latest attempt began that a place answered, by the names of the places: target and host."""
    found: dict[str, str] = {}
    for target, host, at in conn.execute(ANSWERED, span).fetchall():
        for name in filter(None, (target, host)):
            found[name] = max(found.get(name, ""), at)
    return found


FAILED_AT = """
SELECT x.id FROM exchanges AS x CROSS JOIN attempts AS a ON a.exchange_id = x.id
WHERE x.rowid > ? AND ? IN (a.target, a.host) AND (a.status_code >= 500 OR a.error_type IS NOT NULL)
      AND coalesce(a.error_type, '') <> 'cancelled'
GROUP BY x.id ORDER BY x.rowid DESC LIMIT ?
"""


def failed_at(conn: sqlite3.Connection, place: str, after: int) -> list[str]:
    """Return the ids of the latest calls that *place* failed."""
    return [row[0] for row in conn.execute(FAILED_AT, [after, place, EVIDENCE]).fetchall()]
