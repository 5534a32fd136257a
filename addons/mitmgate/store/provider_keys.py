"""How the provider keys of a policy fare, kept beside the traces: so that ``mitmgate keys`` can say, so that another
worker knows which key rests, and so that a start does not forget.

No key is in it, only its alias. Of two processes that tell of one key the later word counts. Every function opens the
file and closes it again; they are called once in a few seconds, off the event loop.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mitmgate.policy.values import Target
from mitmgate.store import files

FILE = "provider-keys.db"
"""Beside the trace database."""

type State = Literal["ready", "cooling", "resting"]

TABLE = """
CREATE TABLE IF NOT EXISTS provider_keys (
    target TEXT NOT NULL,
    alias TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ready', 'cooling', 'resting')),
    until REAL NOT NULL,                -- it cools or rests so long; this and all times: seconds since 1970
    status INTEGER,                     -- of the answer that refused it
    refused_at REAL,
    used_at REAL,
    changed_at REAL NOT NULL,           -- of state, until, status and refused_at
    PRIMARY KEY (target, alias)
)
"""

UPSERT = """
INSERT INTO provider_keys (target, alias, state, until, status, refused_at, used_at, changed_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (target, alias) DO UPDATE SET
    state = iif(excluded.changed_at >= changed_at, excluded.state, state),
    until = iif(excluded.changed_at >= changed_at, excluded.until, until),
    status = iif(excluded.changed_at >= changed_at, excluded.status, status),
    refused_at = iif(excluded.changed_at >= changed_at, excluded.refused_at, refused_at),
    used_at = max(coalesce(excluded.used_at, 0), coalesce(used_at, 0)),
    changed_at = max(excluded.changed_at, changed_at)
"""

SELECT = "SELECT target, alias, state, until, status, refused_at, used_at, changed_at FROM provider_keys"


@dataclass(frozen=True, slots=True)
class Row:
    """One key. Times are seconds since 1970."""

    target: str
    alias: str
    state: State
    until: float
    status: int | None
    refused_at: float | None
    used_at: float | None
    changed_at: float

    def values(self) -> tuple[object, ...]:
        return (
            self.target,
            self.alias,
            self.state,
            self.until,
            self.status,
            self.refused_at,
            self.used_at,
            self.changed_at,
        )


def exchange(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Write *rows* and return what all processes say. Raises ``sqlite3.Error`` or ``OSError``."""
    with closing(files.connect(path)) as connection:
        connection.execute(TABLE)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(UPSERT, [row.values() for row in rows])
        connection.execute("COMMIT")
        return [Row(*found) for found in connection.execute(SELECT)]


def read(path: Path) -> list[Row]:
    """Return what is written in *path*; nothing where it is not there, or not to be read."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=files.BUSY_S)) as reading:
            return [Row(*found) for found in reading.execute(SELECT)]
    except sqlite3.Error:
        return []


def pool_rows(path: Path, wall: float, pools: Mapping[str, Target] | None = None) -> list[dict[str, object]]:
    """Return one row for each provider key, for ``mitmgate keys``; never the key.

    *path* is ``provider-keys.db``; *pools*, the policy's targets, adds keys that nobody used yet and leaves out those
    that are gone. Members: ``target, alias, state, until, status, refused_at, used_at``; times in seconds since 1970.
    """
    found = {(row.target, row.alias): row for row in read(path)}
    names = (
        list(found) if pools is None else [(target.name, alias) for target in pools.values() for alias in target.keys]
    )
    return [_shown(found.get(name) or Row(*name, "ready", 0.0, None, None, None, 0.0), wall) for name in sorted(names)]


def _shown(row: Row, wall: float) -> dict[str, object]:
    rests = row.until > wall
    return {
        "target": row.target,
        "alias": row.alias,
        "state": row.state if rests else "ready",
        "until": row.until if rests else None,
        "status": row.status,
        "refused_at": row.refused_at,
        "used_at": row.used_at,
    }
