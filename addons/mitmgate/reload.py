"""Take an edited policy file at once, and keep the old policy where the new one is wrong.

Looks at the file ten times a second, in a thread. A file is read when it has stayed the same for one look: an editor
that empties a file before it writes it must not open the gates in between. A faulty one is said with file and line,
once, and changes nothing. Every version that held is written down with its text: ``mitmgate policy log`` shows them.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mitmgate.clock import Clock, iso
from mitmgate.errors import PolicyError, StartError
from mitmgate.guard import warm
from mitmgate.metrics import Metrics
from mitmgate.policy import Policy, load
from mitmgate.store.writer import Rows, Writer

log = logging.getLogger("mitmgate.reload")

EVERY_S = 0.1

type Stamp = tuple[int, int, int] | None
"""(inode, size, time of change in ns) of the file; None where it is not there."""


class Reload:
    def __init__(
        self, policy: Policy, take: Callable[[Policy], None], writer: Writer, metrics: Metrics, clock: Clock
    ) -> None:
        self.policy = policy
        self.take = take
        self.writer, self.metrics, self.clock = writer, metrics, clock
        self.path: Path | None = None
        self.shown = ""
        """The path as the user wrote it."""
        self.env: Mapping[str, str] = os.environ
        self._read: Stamp = None
        """Of the file as it was read last, right or wrong."""
        self._seen: Stamp = None
        """At the last look."""
        self._task: asyncio.Task[None] | None = None

    def watch(self, shown: str | None) -> None:
        """Look at the file *shown* from ``start`` on; what it says now is what holds."""
        if shown is not None:
            self.path, self.shown = Path(shown).absolute(), shown
            self._read = self._seen = stamp_of(self.path)

    def start(self) -> None:
        """Begin to look, and write down what holds. Needs the running loop."""
        self._note(self.policy)
        if self.path is not None:
            self._task = asyncio.get_running_loop().create_task(self._look_for_ever())

    def stop(self) -> None:
        if self._task:
            self._task.cancel()

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except Exception:
                log.exception("reload: a look at the policy failed; the next one comes")

    async def look(self) -> None:
        """Take the file, if it has changed and has stayed the same since the last look."""
        found = await asyncio.to_thread(self._changed)
        if found is None:
            return
        if isinstance(found, Policy):
            try:
                self.take(found)
            except StartError as error:
                self._refuse(str(error))
                return
            self.policy = found
            self._note(found)
            self.metrics.count("mitmgate_policy_reloads_total", result="taken")
            log.warning("reload: %s has changed: its version %s holds from now on", self.shown, found.sha256)
        else:
            self._refuse(str(found))

    def _changed(self) -> Policy | PolicyError | None:
        """Return what the file says now, None where that is nothing new, or where it is still being written."""
        if self.path is None:
            return None
        stamp = stamp_of(self.path)
        settled, self._seen = stamp == self._seen, stamp
        if not settled or stamp is None or stamp == self._read:
            return None
        self._read = stamp
        try:
            policy = load(self.path, self.env, self.shown)
        except PolicyError as error:
            return error
        if policy.sha256 == self.policy.sha256:
            return None
        warm(policy)
        return policy

    def _refuse(self, why: str) -> None:
        self.metrics.count("mitmgate_policy_reloads_total", result="refused")
        log.error("reload: %s is not taken, version %s still holds:\n%s", self.shown, self.policy.sha256, why)

    def _note(self, policy: Policy) -> None:
        """Have the version written down."""
        row = {
            "at": iso(self.clock.wall()),
            "sha256": policy.sha256,
            "path": policy.path,
            "text": policy.text,
        }
        self.writer.put(Rows(policies=[dict(row)]), len(policy.text) + 256)


def stamp_of(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
