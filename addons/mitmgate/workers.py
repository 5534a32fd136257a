"""Several processes behind the same doors: the parent binds and forks, the workers accept from what they inherit.

Runs for ``--workers N``. Promises: SIGTERM or SIGINT to the parent drains every worker, and the parent's exit code is
0 if all of theirs are; a worker that dies is replaced, and said, but one that never got ready ends the gateway, since
the next would do no better; workers do not outlive their parent, however it ends.

The parent stays without event loop and threads, since neither survives a fork.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from mitmgate.errors import StartError

log = logging.getLogger("mitmgate.workers")

type Work = Callable[[Callable[[], None]], int]
"""What a worker does: calls its argument once it is ready, and returns an exit code."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Workers:
    """*count* processes that do *work*."""

    def __init__(self, count: int, work: Work) -> None:
        self.count, self.work = count, work
        self.born: dict[int, int] = {}
        """Process id -> where it says that it is ready."""
        self.stopping = False
        self.parent_lives, self._alive = os.pipe()
        """Nobody ever writes here; a worker that reads its end has lost its parent."""

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call *ready* once all are, and return the worst exit code when all have ended."""
        for number in _SIGNALS:
            signal.signal(number, lambda number, _frame: self.stop(number))
        for _ in range(self.count):
            self._fork()
        waited_for = [self._is_ready(pid) for pid in self.born]
        if all(waited_for):
            ready()
        else:
            self.stop()
        worst = 0
        while self.born:
            pid, status = os.wait()
            worst = max(worst, self._ended(pid, os.waitstatus_to_exitcode(status)))
        return worst

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Pass a signal on; at the second one workers end without waiting for streams."""
        self.stopping = True
        for pid in self.born:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _fork(self) -> int:
        listening, saying = os.pipe()
        # A signal between the fork and the note of the pid would miss the newest worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if (pid := os.fork()) == 0:
            self._begin(saying)
        self.born[pid] = listening
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(saying)
        return pid

    def _begin(self, saying: int) -> NoReturn:
        """Be a worker."""
        code = 1
        try:
            os.close(self._alive)
            os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on: once, not twice
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            threading.Thread(target=self._end_with_parent, daemon=True).start()
            code = self.work(lambda: _say(saying))
        except StartError as error:
            log.error("workers: %s", error)
        except BaseException:
            log.exception("workers: process %d broke", os.getpid())
        finally:
            os._exit(code)

    def _end_with_parent(self) -> None:
        os.read(self.parent_lives, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _is_ready(self, pid: int) -> bool:
        """Wait until worker *pid* is ready; False where it ended first."""
        return os.read(self.born[pid], 1) == b"+"

    def _ended(self, pid: int, code: int) -> int:
        """Take note of a worker's end; return what it means for the exit code of all."""
        os.close(self.born.pop(pid))
        if self.stopping:
            return 0 if code == -signal.SIGTERM else abs(code)  # it was not ready yet, so it had nobody to drain
        log.error("workers: process %d ended with %d; another takes its place", pid, code)
        if self._is_ready(self._fork()):
            return 0
        log.error("workers: the new process did not get ready; the gateway stops")
        self.stop()
        return abs(code) or 1


def _say(saying: int) -> None:
    os.write(saying, b"+")
    os.close(saying)
