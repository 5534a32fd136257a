"""``alerts.db`` beside the trace database: which rule is breached for whom, and what has not been told yet.

It is what makes a restart neither repeat an alert nor forget one. Whoever holds ``alerts.lock`` writes it; the
``alert`` command reads it. Where it cannot be used the gateway goes on from memory: an alert may then come twice.
"""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from mitmgate.errors import StartError
from mitmgate.store import files
from mitmgate.store.watch import Values

log = logging.getLogger("mitmgate.alert")

NAME = "alerts.db"

APPLICATION = 0x6D67_616C
"""``PRAGMA application_id``: the folder may be an app's own, and ``alerts.db`` that app's."""

VERSION = 1
"""``PRAGMA user_version``."""

MOST_CLEARED = 1000
"""States of what is over that are kept, to be looked at; the oldest go first."""

SCHEMA = """
CREATE TABLE rules (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    watches TEXT NOT NULL,
    names TEXT NOT NULL,
    receivers TEXT NOT NULL,
    shadow INTEGER NOT NULL,
    place TEXT
);
CREATE TABLE states (
    rule TEXT NOT NULL,
    subject TEXT NOT NULL,
    state TEXT NOT NULL,
    since REAL NOT NULL,
    changed_at REAL NOT NULL,
    notice TEXT NOT NULL,
    told INTEGER NOT NULL,
    PRIMARY KEY (rule, subject)
)"""


@dataclass(frozen=True, slots=True)
class Watched:
    """A rule, as the gateway that watches it has it; for the command."""

    name: str
    watches: str
    """The condition, as in the file."""
    names: tuple[str, ...]
    """What the values of its states are called."""
    receivers: tuple[str, ...]
    """``env:NAME`` of each."""
    shadow: bool
    where: str | None
    """``policy.yaml:31``."""


@dataclass(frozen=True, slots=True)
class State:
    """How a rule stands for one value of ``per``, and what was last told of it. Times are seconds since 1970."""

    rule: str
    values: Values
    state: Literal["breach", "clear"]
    since: float
    """When the breach began."""
    changed_at: float
    notice: Mapping[str, Any]
    """The fields of the latest ``Notice``."""
    told: bool
    """Every receiver has it, or was tried often enough."""

    @property
    def key(self) -> tuple[str, Values]:
        return self.rule, self.values


class AlertFile:
    """The writer's side. Nothing here raises for reasons of the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._complained = False

    def load(self, wall: float) -> list[State]:
        """Return the states as they were left; none of a damaged file, which is set aside."""
        try:
            with self._transaction() as conn:
                return states(conn)
        except TROUBLE as e:
            self._complain(e)
            if files.is_broken(e):
                with contextlib.suppress(OSError):
                    files.set_aside(self.path, wall)
        return []

    def save(self, changed: Iterable[State]) -> None:
        """Put *changed* in the place of what the file has of them."""
        with self._trying() as conn:
            conn.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, changed))
            conn.execute(TRIM, [MOST_CLEARED])

    def keep(self, rules: Iterable[Watched]) -> None:
        """Note which *rules* are watched from now on, and forget the states of all others."""
        rows = [
            (rule.name, n, rule.watches, _json(rule.names), _json(rule.receivers), rule.shadow, rule.where)
            for n, rule in enumerate(rules)
        ]
        with self._trying() as conn:
            conn.execute("DELETE FROM rules")
            conn.executemany("INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            conn.execute("DELETE FROM states WHERE rule NOT IN (SELECT name FROM rules)")

    @contextlib.contextmanager
    def _trying(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._transaction() as conn:
                yield conn
        except TROUBLE as e:
            self._complain(e)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(files.connect(self.path)) as conn:
            conn.execute("BEGIN IMMEDIATE")
            if not is_current(conn, self.path):
                for statement in SCHEMA.split(";\n"):
                    conn.execute(statement)
                conn.execute(f"PRAGMA application_id = {APPLICATION}")
                conn.execute(f"PRAGMA user_version = {VERSION}")
            yield conn
            conn.execute("COMMIT")  # where something raises before, closing rolls back

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.error("alert: %s cannot be used (%s): after a restart an alert may come twice", self.path, error)


TROUBLE = (sqlite3.Error, OSError, StartError)

TRIM = """
DELETE FROM states WHERE rowid IN (
    SELECT rowid FROM states WHERE state = 'clear' AND told ORDER BY changed_at DESC LIMIT -1 OFFSET ?
)"""


def is_current(conn: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables are there; raises ``StartError`` where they are not those of this version."""
    return files.is_version(conn, path, APPLICATION, VERSION)


# -- rows -------------------------------------------------------------------------------------------------------------


def states(conn: sqlite3.Connection) -> list[State]:
    """Return all states, the latest change first."""
    rows = conn.execute(
        "SELECT rule, subject, state, since, changed_at, notice, told FROM states ORDER BY changed_at DESC, rowid"
    ).fetchall()
    return [
        State(rule, tuple(json.loads(subject)), state, since, changed_at, json.loads(notice), bool(told))
        for rule, subject, state, since, changed_at, notice, told in rows
    ]


def rules(conn: sqlite3.Connection) -> list[Watched]:
    """Return the rules that are watched, or were last, in the order of the policy."""
    rows = conn.execute("SELECT name, watches, names, receivers, shadow, place FROM rules ORDER BY position").fetchall()
    return [
        Watched(name, watches, tuple(json.loads(names)), tuple(json.loads(receivers)), bool(shadow), where)
        for name, watches, names, receivers, shadow, where in rows
    ]


def _row(state: State) -> tuple[object, ...]:
    return (
        state.rule,
        _json(state.values),
        state.state,
        state.since,
        state.changed_at,
        _json(dict(state.notice)),
        state.told,
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def looking(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file at *path* to look at it, and close it. Raises StartError, in a sentence, where that cannot be."""
    if not path.exists():
        raise StartError("no alert rule has been watched here yet: a gateway whose policy has an alert section does")
    try:
        conn = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, timeout=5.0)
        with contextlib.closing(conn):
            if not is_current(conn, path):
                raise StartError(f"{path} is empty: a gateway makes it ready")
            yield conn
    except (sqlite3.Error, OSError) as e:
        raise StartError(f"{path} cannot be read: {e}") from e
