"""What the rooms hand to the writer: rows by table, or something that turns into rows in the writer's thread.

A ``Row`` names only the columns that it fills; the rest are null. The names are those of ``schema``. Whatever is slow
about a row (prices, redaction, hashes, compression) belongs into ``render``, which never runs on the event loop.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

type Value = str | int | float | bytes | None
type Row = dict[str, Value]


@dataclass(slots=True)
class Rows:
    """Rows of one item, written together or not at all. One field per table, in the order they are written."""

    exchanges: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    spans: list[Row] = field(default_factory=list)
    """Stored spans only; the view ``spans`` adds the phases that the two tables above already tell."""
    policy_events: list[Row] = field(default_factory=list)
    payloads: list[Row] = field(default_factory=list)
    feedback: list[Row] = field(default_factory=list)
    policies: list[Row] = field(default_factory=list)

    def tables(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield (table, its rows) for every table that gets any."""
        for name, table in TABLES.items():
            rows: list[Row] = getattr(self, name)
            if rows:
                yield table, rows

    def render(self) -> "Rows":
        """Rows are their own rendering: hand them to the writer as they are."""
        return self

    def shed(self) -> int:
        """Let go of the bodies; return the bytes freed."""
        freed = sum(len(body) for row in self.payloads if isinstance(body := row.get("body"), str | bytes))
        self.payloads.clear()
        return freed


TABLES = {
    "exchanges": "exchanges",
    "attempts": "attempts",
    "spans": "spans_stored",
    "policy_events": "policy_events",
    "payloads": "payloads",
    "feedback": "feedback",
    "policies": "policy_versions",
}
"""Field of ``Rows`` -> table."""


class Renders(Protocol):
    """An item of the writer's queue."""

    def render(self) -> Rows:
        """Return the rows. Called once, in the writer's thread; an item that raises is counted as dropped."""

    def shed(self) -> int:
        """Let go of the bodies, so that the rows may stay; return the bytes freed. Called while the item waits."""
