"""The answers that are kept: a little memory in front of a file that outlives the process.

The ``cache`` room calls it from the event loop. ``peek`` looks into memory only; ``get`` asks the file, in a thread
that does nothing but read, so that a look-up never waits for a write; ``put`` keeps in memory at once and in the file
soon (``answer_writer``).

Promises: nothing here blocks the event loop or raises into it. A full, read-only or damaged disk costs the cache and
nothing else, and is said once. What another process has purged is served no more from that moment on. Kept is what was
used last: memory and file are bounded in bytes, and so is what waits to be written.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mitmgate.clock import Clock
from mitmgate.store import answer_file, files
from mitmgate.store.answer_file import NEVER, AnswerFile, Mark, Marker
from mitmgate.store.answer_writer import TROUBLE, Backlog, Limits, Stats, Waiting, Writer
from mitmgate.store.entry import Entry

__all__ = ["AnswerStore", "Entry", "Limits", "Stats"]


class Memory:
    """The entries that were used last, as many as fit."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, entry: Entry, size: int) -> None:
        """Keep *entry* in place of an older one; where it is too large, neither."""
        self.drop(entry.key)
        if size > self.limits.entry_in_memory:
            return
        self._entries[entry.key] = entry, size
        self.bytes += size
        while self.bytes > self.limits.memory:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed

    def drop(self, key: str) -> None:
        if found := self._entries.pop(key, None):
            self.bytes -= found[1]

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0


class AnswerStore:
    """Every method but ``flush`` and ``close`` is for the event loop's thread."""

    def __init__(self, path: Path, max_bytes: int, clock: Clock, limits: Limits | None = None) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.clock = clock
        self.limits = limits or Limits()
        self._memory = Memory(self.limits)
        self._marker = Marker(path)
        self._mark = NEVER
        """What memory goes by."""
        self._backlog = Backlog(self.limits)
        self._writer = Writer(path, max_bytes, clock, self.limits, self._backlog)
        self._file = AnswerFile(path, clock)
        """The reading thread's."""
        self._reader: ThreadPoolExecutor | None = None
        self._asked: dict[tuple[str, Mark], asyncio.Future[Entry | None]] = {}
        """Look-ups in the file that are under way; one from before a purge is not for who asks after it."""

    @property
    def stats(self) -> Stats:
        return self._writer.stats

    def resize(self, max_bytes: int) -> None:
        """Take over an edited policy's size; what is too much goes with the next answer that is kept."""
        self.max_bytes = self._writer.max_bytes = max_bytes

    def open(self) -> None:
        """Make ready; the file is made when the first answer is kept."""
        self._mark = self._marker.read()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="mitmgate-cache-read")
        self._writer.start()

    def close(self, within_s: float = 5.0) -> None:
        """Write down what waits and let go of the file; blocks, for *within_s* seconds at most."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.submit(self._file.close)
            reader.shutdown()
            self._writer.stop(within_s)

    def flush(self, within_s: float) -> bool:
        """Return whether all that was put is in the file, or given up, after *within_s* seconds at most; blocks."""
        return self._writer.flush(within_s)

    # -- looking up

    def peek(self, key: str) -> Entry | None:
        """Return the entry if memory has it and it is of any use; ``Entry.fresh`` says of which."""
        self._heed_marks()
        entry = self._memory.get(key) or self._backlog.find(key)
        return self._if_usable(entry) if entry else None

    async def get(self, key: str) -> Entry | None:
        """Return the entry out of memory or out of the file; None where there is none, or none that can be had."""
        if entry := self.peek(key):
            return entry
        reader, mark = self._reader, self._mark
        if reader is None or self._backlog.find(key) or files.identity(self.path) is None:
            return None  # what waits, and is of no use, is still newer than what the file has
        try:
            found = await self._read_once(reader, key, mark)
        except RuntimeError:  # the store is being closed
            return None
        if entry := self.peek(key):  # put meanwhile
            return entry
        if found is None or self._mark != mark:  # purged or replaced meanwhile
            return None
        self._memory.put(found, found.size)
        return self._if_usable(found)

    async def _read_once(self, reader: ThreadPoolExecutor, key: str, mark: Mark) -> Entry | None:
        """Return what the file has; a thousand identical calls at once make one look-up."""
        asked = self._asked.get((key, mark))
        if asked is None:
            asked = asyncio.get_running_loop().run_in_executor(reader, self._read, key)
            self._asked[key, mark] = asked
            asked.add_done_callback(lambda _: self._asked.pop((key, mark), None))
        return await asyncio.shield(asked)  # who leaves does not take it from the others

    def _read(self, key: str) -> Entry | None:
        try:
            return answer_file.read(self._file.open(), key)
        except TROUBLE as e:
            self._file.failed(e)  # the writer says so; it comes upon the same file
            return None

    def _if_usable(self, entry: Entry) -> Entry | None:
        wall = self.clock.wall()
        if not entry.usable_if_error(wall):
            self._memory.drop(entry.key)
            return None
        if entry.fresh(wall):
            self._backlog.used(entry.key, wall)
        return entry

    def _heed_marks(self) -> None:
        """Let go of what other processes have purged or replaced."""
        mark = self._marker.read()
        if mark == self._mark:
            return
        if mark.purged != self._mark.purged:
            self._backlog.forget()
        self._memory.clear()
        self._mark = mark

    # -- keeping

    def put(self, entry: Entry) -> None:
        """Keep *entry* in place of an older one of its key; one that is too large is not kept, and counted."""
        self._heed_marks()
        size = entry.size
        if size > min(self.limits.entry, self.max_bytes):
            self._backlog.refuse()
            entry = replace(entry, pieces=(), ttl_s=0.0, stale_s=0.0)  # still, the older one is not served any more
            size = entry.size
        entry = entry.snapshot()
        self._memory.put(entry, size)
        self._backlog.put(Waiting(entry, size, self._mark))
