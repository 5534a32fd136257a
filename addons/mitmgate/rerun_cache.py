"""The cache of a rerun: which answers would be kept, not what they say; and the headers that calls must have come with.

Rows have no headers, but they say how the cache went about a call. Where no rule of then had it look, a header did.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, override

from mitmgate.cache_rules import Decision
from mitmgate.clock import Clock
from mitmgate.dialects.base import Reading
from mitmgate.exchange import Exchange
from mitmgate.rerun_outcome import Call
from mitmgate.store.answers import AnswerStore
from mitmgate.store.entry import Entry

MOST_KEPT = 100_000
"""Answers that are remembered; of more, those that were not asked for longest are forgotten."""

LONGEST_S = 30 * 86400
"""As long as a header may ask for an answer to be kept."""

STEERED: Mapping[str, dict[str, Any]] = {
    "HIT": {"cache-ttl": LONGEST_S},
    "MISS": {"cache-ttl": LONGEST_S, "skip-cache": True},
    "BYPASS": {"cache-ttl": 0},
}
"""How the cache went about a call -> controls by which it does so again. How long its answer was to be kept is not
known: what was found then is found again, what was not is not.
"""

AGE = re.compile(r"cache: answer \w+, (\d+) s old")
"""In the notes of a hit."""


class KeptKeys(AnswerStore):
    """Stands for the answers of a gateway."""

    def __init__(self, clock: Clock, max_bytes: int) -> None:
        super().__init__(Path("cache.db"), max_bytes, clock)
        self.bytes = 0
        self._kept: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        """Key -> entry without a body, and the bytes of its answer; the one unused the longest stands first."""

    @override
    def peek(self, key: str) -> Entry | None:
        entry, size = self._kept.get(key, (None, 0))
        if entry is None:
            return None
        if not entry.usable_if_error(self.clock.wall()):
            del self._kept[key]
            self.bytes -= size
            return None
        self._kept.move_to_end(key)
        return entry

    @override
    async def get(self, key: str) -> Entry | None:
        return self.peek(key)

    def keep(self, entry: Entry, size: int) -> None:
        """Remember *entry*, whose answer has *size* bytes, in the place of an older one."""
        _, before = self._kept.pop(entry.key, (None, 0))
        self._kept[entry.key] = entry, size
        self.bytes += size - before
        while self.bytes > self.max_bytes or len(self._kept) > MOST_KEPT:
            _, (_, freed) = self._kept.popitem(last=False)
            self.bytes -= freed

    def __len__(self) -> int:
        return len(self._kept)


def entry_of(x: Exchange, key: str, decision: Decision, stored_at: float, reading: Reading) -> Entry:
    """Return the answer of *x* as the cache knows it, without what it says."""
    return Entry(
        key=key,
        fields=[],
        reason=b"",
        pieces=(),
        reading=reading,
        content_index=None,
        stored_at=stored_at,
        ttl_s=decision.ttl_s,
        stale_s=0.0,
        rule=decision.rule,
        tenant=x.tenant,
        route=x.route,
        model=x.request.model,
        provider_name="",
        target="",
        host=x.host,
        step=0,
    )


def age_of(call: Call) -> int | None:
    """Return how old the answer was, in seconds, that *call* had out of the cache; None where that is not known."""
    found = AGE.search(call["notes"] or "")
    return int(found[1]) if found else None
