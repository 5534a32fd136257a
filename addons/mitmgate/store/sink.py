"""Where rows go: the file that a path leads to now, also after it was deleted, moved, replaced or damaged.

Synchronous and of one thread; ``writer`` decides when, and what to do about an error. A batch is one transaction, one
``executemany`` per table. A row that the database refuses is left out and counted; the rest of its batch is written.
"""

import contextlib
import logging
import sqlite3
from pathlib import Path

from mitmgate.clock import Clock
from mitmgate.store import files, schema
from mitmgate.store.rows import TABLES, Row, Rows, Value

log = logging.getLogger("mitmgate.store")


class Sink:
    """An open trace database, opened again whenever that is needed."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.refused = 0
        """Rows that the database would not take."""
        self.conn: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._log_path = Path(f"{path}-wal")
        self._log: tuple[int, int] | None = None
        self._inserts: dict[str, tuple[str, list[str]]] = {}
        self._complained: set[str] = set()
        self._was_broken = False

    def open(self) -> sqlite3.Connection:
        """Return the connection; raises sqlite3.Error, OSError or StartError where there can be none."""
        if self.conn is not None and files.identity(self.path) != self._file:
            log.warning("store: %s was deleted, moved or replaced while in use: rows go to the new one", self.path)
            self._leave()
        if self.conn is None:
            conn = schema.open_store(self.path, self.clock.wall())
            self._inserts = {table: _insert_text(conn, table) for table in TABLES.values()}
            self._file = files.identity(self.path)
            self._log = files.identity(self._log_path)
            self.conn = conn
        return self.conn

    def write(self, items: list[Rows]) -> None:
        """Write *items*, in one transaction; raises sqlite3.Error or OSError where none of it was written."""
        while True:
            self._insert(self.open(), items)
            # Rows written into a file that was deleted meanwhile are gone: write them into the one that is there now.
            if files.identity(self.path) == self._file:
                self._was_broken = False
                return

    def check(self) -> None:
        """Raise sqlite3.Error where others cannot read the file any more: this connection goes on out of its cache."""
        address = f"{self.path.resolve().as_uri()}?mode=rw"  # never makes the file
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=files.BUSY_S)) as other:
            other.execute("SELECT id FROM exchanges LIMIT 1").fetchall()

    def failed(self, error: Exception) -> None:
        """Make ready for another try after *error*, with a new connection, and a new file where this one is damaged."""
        if files.is_locked(error):
            return
        self.drop()
        if files.is_broken(error):
            self._replace_broken(error)

    def close(self) -> None:
        """Leave the file in good order: statistics fresh, the log folded in."""
        if self.conn is None:
            return
        if files.identity(self.path) != self._file:
            self.drop()
            return
        try:
            self.conn.execute("PRAGMA optimize")
            self.fold_log()
            self.conn.close()
        except sqlite3.Error as e:
            log.info("store: %s could not be closed in good order: %s", self.path, e)
        self.conn = None

    def drop(self) -> None:
        """Let go of the connection, leaving whatever lies at the path alone."""
        if self.conn is not None:
            files.abandon(self.conn)
            self.conn = None

    def _leave(self) -> None:
        """Let go of a file that is no longer at the path. Its log still is, and would be taken for the next one's."""
        with contextlib.suppress(sqlite3.Error):
            self.fold_log()
        if self._log is not None and files.identity(self._log_path) == self._log:
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.drop()

    def fold_log(self) -> bool:
        """Move the write-ahead log into the file; False where a reader is in the way for now."""
        if self.conn is None:
            return False
        self.conn.execute("PRAGMA busy_timeout = 0")
        try:
            (busy, _, _) = self.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self.conn.execute(f"PRAGMA busy_timeout = {int(files.BUSY_S * 1000)}")
        return not busy

    def _replace_broken(self, error: Exception) -> None:
        """Set the damaged file aside at the second failure in a row: the first may be another process's doing."""
        if not self._was_broken:
            self._was_broken = True
            return
        if files.identity(self.path) != self._file:
            return
        aside = files.set_aside(self.path, self.clock.wall())
        log.error("store: %s is damaged (%s): set aside as %s, a new one is begun", self.path, error, aside.name)

    def _insert(self, conn: sqlite3.Connection, items: list[Rows]) -> None:
        batch = [(self._inserts[table], rows) for table, rows in _by_table(items)]
        conn.execute("BEGIN IMMEDIATE")
        try:
            for (statement, columns), rows in batch:
                conn.executemany(statement, [_values(row, columns) for row in rows])
            conn.execute("COMMIT")
        except Exception as e:
            _roll_back(conn)
            if not _is_the_rows_fault(e):
                raise
            self._insert_one_by_one(conn, items)

    def _insert_one_by_one(self, conn: sqlite3.Connection, items: list[Rows]) -> None:
        """Write *items* again, leaving out the rows that the database refuses."""
        conn.execute("BEGIN IMMEDIATE")
        try:
            for table, rows in _by_table(items):
                for row in rows:
                    self._insert_one(conn, table, row)
            conn.execute("COMMIT")
        except BaseException:
            _roll_back(conn)
            raise

    def _insert_one(self, conn: sqlite3.Connection, table: str, row: Row) -> None:
        statement, columns = self._inserts[table]
        try:
            conn.execute(statement, _values(row, columns))
        except Exception as e:
            if not _is_the_rows_fault(e):
                raise
            self.refused += 1
            self._complain(table, e)

    def _complain(self, table: str, error: Exception) -> None:
        """Say once per table what the database refuses; the numbers say how often."""
        if table not in self._complained:
            self._complained.add(table)
            log.error("store: a row of %s was refused and is lost: %s (said once, then counted)", table, error)


def _by_table(items: list[Rows]) -> list[tuple[str, list[Row]]]:
    """Return the rows of all *items*, put together by table, in the order of the tables."""
    together: dict[str, list[Row]] = {table: [] for table in TABLES.values()}
    for item in items:
        for table, rows in item.tables():
            together[table] += rows
    return [(table, rows) for table, rows in together.items() if rows]


def _values(row: Row, columns: list[str]) -> list[Value]:
    return list(map(row.get, columns))


def _insert_text(conn: sqlite3.Connection, table: str) -> tuple[str, list[str]]:
    """Return the INSERT of *table* and the columns that its values stand for."""
    columns = schema.columns(conn, table)
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({marks})", columns


def _is_the_rows_fault(error: Exception) -> bool:
    """True where other rows may well succeed: a constraint, a value that SQLite cannot hold."""
    if isinstance(
        error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError | sqlite3.ProgrammingError
    ):
        return True
    return isinstance(error, ValueError | OverflowError | TypeError)


def _roll_back(conn: sqlite3.Connection) -> None:
    if conn.in_transaction:
        conn.execute("ROLLBACK")
