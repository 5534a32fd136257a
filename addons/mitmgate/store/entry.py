"""A kept answer: its bytes as they came, what was read out of them, and for whom and how long it is kept.

In the file an entry is two columns beside those that one may filter by: ``facts``, JSON of all the rest, and ``body``,
the pieces one after the other.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mitmgate.dialects.base import Reading, Usage
from mitmgate.exchange import Fields

PIECE_BYTES = 128
"""What a piece costs in memory beside its bytes, about."""

ENTRY_BYTES = 2048
"""What an entry costs beside its pieces."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept answer; its status is always 200. Times are seconds, of the wall clock where they are moments."""

    key: str
    """64 hex digits."""
    fields: Fields
    """Of the answer's head, as far as they hold for a later one."""
    reason: bytes
    """The phrase after the status."""
    pieces: tuple[tuple[int, bytes], ...]
    """(ms after the first piece, bytes without their content coding)."""
    reading: Reading
    content_index: int | None
    """Of the piece with the first content; None where there was none."""
    stored_at: float
    ttl_s: float
    stale_s: float
    """So long after ``ttl_s`` it may still stand in for an answer that could not be had."""
    rule: str
    """The cache rule that keeps it."""
    tenant: str | None
    """Who asked first."""
    route: str | None
    model: str | None
    """As asked for."""
    provider_name: str
    target: str
    """The place that answered, as ``Leg.target``."""
    host: str
    step: int
    """Index of that place in the order of that request."""
    path: str = ""
    """Without its query, which may carry a key."""

    @property
    def expires_at(self) -> float:
        return self.stored_at + self.ttl_s

    @property
    def gone_at(self) -> float:
        """From here on it is of no use to anybody."""
        return self.expires_at + self.stale_s

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, about; walks through the pieces."""
        return ENTRY_BYTES + sum(PIECE_BYTES + len(piece) for _, piece in self.pieces)

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def content_type(self) -> str:
        types = (value for name, value in self.fields if name.lower() == b"content-type")
        return next(types, b"").decode("latin-1")

    def age_s(self, wall: float) -> float:
        return max(0.0, wall - self.stored_at)

    def fresh(self, wall: float) -> bool:
        return wall < self.expires_at

    def usable_if_error(self, wall: float) -> bool:
        """True also where it is fresh."""
        return wall < self.gone_at

    def snapshot(self) -> "Entry":
        """Return the same with a reading of its own: the one it was made with goes on being written."""
        reading = self.reading
        usage = replace(reading.usage, server_tools=dict(reading.usage.server_tools))
        own = replace(reading, usage=usage, finish_reasons=list(reading.finish_reasons))
        return replace(self, reading=own)


# -- as it lies in the file -------------------------------------------------------------------------------------------

COLUMNS = ("key", "stored_at", "ttl_s", "stale_s", "rule", "tenant", "route", "model", "provider_name", "host", "path")
"""Fields that are columns of their own, because somebody filters or looks by them."""


def facts_of(entry: Entry) -> bytes:
    """Return all of *entry* that is neither a column nor its body, as JSON."""
    facts = {
        "fields": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in entry.fields],
        "reason": entry.reason.decode("latin-1"),
        "at_ms": [at_ms for at_ms, _ in entry.pieces],
        "lengths": [len(piece) for _, piece in entry.pieces],
        "reading": asdict(entry.reading),
        "content_index": entry.content_index,
        "target": entry.target,
        "step": entry.step,
    }
    return json.dumps(facts, separators=(",", ":")).encode()


def entry_of(columns: Mapping[str, Any], facts: bytes, body: bytes) -> Entry:
    """Return the entry that was stored; raises ValueError, KeyError or TypeError where it is damaged."""
    said = json.loads(facts)
    return Entry(
        **{name: columns[name] for name in COLUMNS},
        fields=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in said["fields"]],
        reason=said["reason"].encode("latin-1"),
        pieces=_pieces(said["at_ms"], said["lengths"], body),
        reading=_reading(said["reading"]),
        content_index=said["content_index"],
        target=said["target"],
        step=said["step"],
    )


def _pieces(at_ms: list[int], lengths: list[int], body: bytes) -> tuple[tuple[int, bytes], ...]:
    if len(at_ms) != len(lengths) or sum(lengths) != len(body):
        raise ValueError(f"{len(at_ms)} times and {len(lengths)} pieces of {sum(lengths)} bytes, but {len(body)} bytes")
    pieces, start = [], 0
    for at, length in zip(at_ms, lengths, strict=True):
        pieces.append((at, body[start : start + length]))
        start += length
    return tuple(pieces)


def _reading(said: dict[str, Any]) -> Reading:
    return Reading(**{**_known(Reading, said), "usage": Usage(**_known(Usage, said["usage"]))})


def _known(kind: type[Reading] | type[Usage], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return those members that the class has in this version; what it has beside them keeps its default."""
    return {one.name: said[one.name] for one in fields(kind) if one.name in said}
