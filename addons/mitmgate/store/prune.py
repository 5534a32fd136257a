"""What becomes of old rows: bodies go first, rows later, and both go early where the file would grow too large.

Runs in the writer's thread, a small step at a time: each step is one short transaction, so that other processes never
wait long for the lock, followed by handing freed pages back to the file system. Ages come from the policy's ``trace``
section; ``max`` holds for the pages in use, bodies included.
"""

import sqlite3
from dataclasses import dataclass

from mitmgate.clock import Clock, iso
from mitmgate.policy.values import Trace

CHUNK = 500
"""Rows per step: 50 ms of lock at worst. One DELETE for all would hold it for seconds."""

VACUUM_PAGES = 200
"""Handed back after each step."""

EVERY_S = 300.0

ROOM = 0.95
"""Where the file is too large it is brought below this share of its maximum, so that not every round has work."""

BELONGING = ("attempts", "policy_events", "payloads", "spans_stored", "feedback")
"""Tables whose rows go with their exchange."""


@dataclass(slots=True)
class Pruned:
    """What one round took away."""

    rows: int = 0
    bodies: int = 0

    def __str__(self) -> str:
        return f"{self.rows} rows and {self.bodies} bodies"


class Pruner:
    """Decides when there is something to do and does it step by step."""

    def __init__(self, trace: Trace, clock: Clock) -> None:
        self.trace = trace
        """May be exchanged while running: a policy file that was edited."""
        self.clock = clock
        self.total = Pruned()
        self._due = clock.now()
        self._shrinking = False

    def step(self, conn: sqlite3.Connection) -> bool:
        """Do one chunk of work if it is time; return True where more waits. *conn* is outside of a transaction."""
        now = self.clock.now()
        if now < self._due:
            return False
        if self._chunk(conn):
            conn.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            return True
        self._due = now + EVERY_S
        return False

    def _chunk(self, conn: sqlite3.Connection) -> bool:
        """Delete up to ``CHUNK`` rows of the first kind that has any to give; False where none has."""
        wall = self.clock.wall()
        bodies = delete_bodies(conn, before=wall - self.trace.keep_s)
        if bodies:
            self.total.bodies += bodies
            return True
        rows = delete_rows(conn, before=wall - self.trace.keep_rows_s)
        if rows:
            self.total.rows += rows
            return True
        return self._shrink(conn)

    def _shrink(self, conn: sqlite3.Connection) -> bool:
        most = self.trace.max_bytes * (ROOM if self._shrinking else 1.0)
        self._shrinking = used_bytes(conn) > most
        if not self._shrinking:
            return False
        bodies = delete_bodies(conn, before=None)
        self.total.bodies += bodies
        if bodies:
            return True
        rows = delete_rows(conn, before=None)
        self.total.rows += rows
        return bool(rows)


def delete_bodies(conn: sqlite3.Connection, before: float | None) -> int:
    """Delete the oldest ``CHUNK`` bodies *before* a time (seconds since 1970; None = any); return how many."""
    where, args = ("", ()) if before is None else ("WHERE exchange_id < ?", (first_id(before),))
    chunk = f"SELECT rowid FROM payloads {where} ORDER BY exchange_id LIMIT {CHUNK}"
    return conn.execute(f"DELETE FROM payloads WHERE rowid IN ({chunk})", args).rowcount


def delete_rows(conn: sqlite3.Connection, before: float | None) -> int:
    """Delete the oldest ``CHUNK`` exchanges *before* a time with all that belongs to them, and what never had one."""
    time = "9" if before is None else iso(before)
    chunk = f"SELECT id FROM exchanges WHERE started_at < ? ORDER BY started_at LIMIT {CHUNK}"
    ids = [(row[0],) for row in conn.execute(chunk, (time,))]
    conn.execute("BEGIN IMMEDIATE")
    try:
        for table in BELONGING:
            conn.executemany(f"DELETE FROM {table} WHERE exchange_id = ?", ids)
        deleted = conn.executemany("DELETE FROM exchanges WHERE id = ?", ids).rowcount if ids else 0
        deleted += _delete_unowned(conn, "spans_stored", "started_at", time)
        deleted += _delete_unowned(conn, "policy_events", "at", time)
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
    return deleted


def _delete_unowned(conn: sqlite3.Connection, table: str, at: str, time: str) -> int:
    """Delete old rows of *table* that belong to no exchange: observed calls never joined, events of unlogged calls."""
    owned = f"EXISTS (SELECT 1 FROM exchanges WHERE id = {table}.exchange_id)"
    chunk = f"SELECT rowid FROM {table} WHERE {at} < ? AND NOT {owned} ORDER BY {at} LIMIT {CHUNK}"
    return conn.execute(f"DELETE FROM {table} WHERE rowid IN ({chunk})", (time,)).rowcount


def used_bytes(conn: sqlite3.Connection) -> int:
    """Return the bytes of all pages in use; free ones are not counted, they are on their way back."""
    size, pages, free = (
        conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return int(size * (pages - free))


def first_id(wall: float) -> str:
    """Return the smallest row id (UUIDv7) of the millisecond at *wall*, seconds since 1970."""
    digits = f"{max(0, int(wall * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:12]}-7000-8000-000000000000"
