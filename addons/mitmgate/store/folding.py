"""The thread that folds a database's write-ahead log into its file now and then, since that waits for the disk.

For a writer that may not wait, with ``wal_autocheckpoint`` off. Trouble is not said here: the writer comes upon the
same.
"""

import contextlib
import sqlite3
import threading
from pathlib import Path
from urllib.parse import quote

FOLD_AFTER = 4000
"""Transactions after which the log is folded: some 10 MiB of the ledger's."""

LOG_BYTES = 32 * 2**20
"""A log that is larger even so is folded in by force, at which others wait."""


class Folding:
    """Counts transactions, and has the thread do its work; ``committed`` and ``close`` are the writer's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._due = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.transactions = 0

    def committed(self) -> None:
        """The log has grown by a transaction."""
        self.transactions += 1
        if self.transactions % FOLD_AFTER == 0:
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"mitmgate-{self.path.name}", daemon=True)
            self._thread.start()
        self._due.set()

    def close(self) -> None:
        if self._thread is not None:
            self._stopping = True
            self._due.set()
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while self._due.wait() and not self._stopping:
            self._due.clear()
            with contextlib.suppress(sqlite3.Error, OSError):
                self._fold()

    def _fold(self) -> None:
        address = f"file:{quote(str(self.path.resolve()))}?mode=rw"  # one that was deleted is not made here
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=0, isolation_level=None)) as conn:
            conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if Path(f"{self.path}-wal").stat().st_size > LOG_BYTES:
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
