"""What is said when rows cannot be written: one line when it begins, one when it is over.

Pure but for the log. Times are monotonic seconds; drops are the writer's running counts.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mitmgate.store.backlog import Backlog

log = logging.getLogger("mitmgate.store")

PATIENCE_S = 5.0
"""A lock that is shorter is everyday business between processes: nothing is said."""


@dataclass(frozen=True, slots=True)
class Drops:
    """Running counts of what was lost."""

    rows: int
    payloads: int


class Outage:
    """Whether rows can be written just now, and what was said about it."""

    def __init__(self, path: Path, backlog: Backlog) -> None:
        self.path = path
        self.backlog = backlog
        self.reason: str | None = None
        """Why nothing can be written; None = all is well."""
        self._since = 0.0
        self._said = False
        self._drops_before = Drops(0, 0)
        self._drops_known = Drops(0, 0)

    def failed(self, error: Exception, locked: bool, now: float) -> None:
        """Another try has failed; *locked* where somebody else holds the file."""
        if self.reason is None:
            self._since = now
            self._drops_before = self._drops()
        self.reason = str(error) or type(error).__name__
        if self._said or (locked and now - self._since < PATIENCE_S):
            return
        self._said = True
        limits = self.backlog.limits
        log.error(
            "store: rows cannot be written to %s: %s. Traffic goes on; up to %d rows and %d MiB wait in memory",
            self.path,
            self.reason,
            limits.items,
            limits.bytes >> 20,
        )

    def wrote(self, now: float) -> None:
        """A try has succeeded."""
        if self._said:
            drops = self._drops()
            log.warning(
                "store: rows are written to %s again, after %.0f s; %d rows were dropped and %d lost their bodies",
                self.path,
                now - self._since,
                drops.rows - self._drops_before.rows,
                drops.payloads - self._drops_before.payloads,
            )
            self._drops_known = drops
        self.reason = None
        self._said = False

    def caught_up(self) -> None:
        """Nothing waits any more. What was dropped without an outage was dropped for want of time: say so once."""
        drops = self._drops()
        if drops == self._drops_known:
            return
        log.warning(
            "store: rows came in faster than %s takes them: %d were dropped and %d lost their bodies",
            self.path,
            drops.rows - self._drops_known.rows,
            drops.payloads - self._drops_known.payloads,
        )
        self._drops_known = drops

    def _drops(self) -> Drops:
        return Drops(self.backlog.rows_dropped, self.backlog.payloads_dropped)
