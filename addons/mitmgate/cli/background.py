"""A gateway for as long as programs need it: started where none runs, stopped by the last who used it.

``run`` and ``demo`` come here. The gateway is a child in a session of its own, so that Ctrl-C in the terminal reaches
the program and not the gateway under it. Several ``run``s of one home share one gateway: each holds a shared lock on
``HOME/run.users`` (the kernel lets go of it, however a process ends), whose content is the pid of the gateway that a
``run`` started. Whoever leaves and finds nobody else there stops that gateway; one that ``serve`` started is never
stopped.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mitmgate.cli.common import Running, is_alive, read_run, warn
from mitmgate.errors import StartError

LOG = "serve.log"
TURN = "run.lock"
"""Held by the one who starts or stops."""
USERS = "run.users"

START_WITHIN_S = 30.0
STOP_WITHIN_S = 40.0
"""Live streams get 30 s to finish, rows a moment more."""
LOOK_EVERY_S = 0.03
LAST_LINES = 20


@contextmanager
def gateway(home: Path, options: Sequence[str]) -> Iterator[Running]:
    """Give the gateway of *home*, started as ``serve OPTIONS`` where none runs; stop it afterwards if nobody needs it.

    Raises StartError, with what the gateway said, where it does not come up.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    child = None
    with (home / USERS).open("a+b") as users:
        with turn(home):
            fcntl.flock(users, fcntl.LOCK_SH)
            running = read_run(home)
            if running is None:
                child = start(home, options)
                running = wait_until_up(home, child)
                note(users, running.pid)
        try:
            yield running
        finally:
            with turn(home):
                if started_by_run(users, running.pid) and nobody_else(users):
                    stop(home, running.pid, child)


@contextmanager
def turn(home: Path) -> Iterator[None]:
    """Wait until nobody else starts or stops a gateway in *home*."""
    with (home / TURN).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def note(users: IO[bytes], pid: int) -> None:
    users.truncate(0)
    users.write(str(pid).encode())
    users.flush()


def started_by_run(users: IO[bytes], pid: int) -> bool:
    users.seek(0)
    return users.read() == str(pid).encode()


def nobody_else(users: IO[bytes]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- one process ------------------------------------------------------------------------------------------------------


def start(home: Path, options: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start ``serve OPTIONS`` in the background; its output goes to ``HOME/serve.log``."""
    command = [sys.executable, "-P", "-m", "mitmgate", "serve", "--home", str(home), *options]
    log = os.open(home / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    finally:
        os.close(log)


def wait_until_up(home: Path, child: "subprocess.Popen[bytes]") -> Running:
    """Return the gateway once both its doors accept; end *child* where that does not come about."""
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            running = read_run(home)
            if running is not None:
                return running
            if child.poll() is not None:
                raise StartError(f"the gateway did not start; it said:\n{last_words(home / LOG)}")
            time.sleep(LOOK_EVERY_S)
        raise StartError(f"the gateway was not up after {START_WITHIN_S:.0f} s; see {home / LOG}")
    except BaseException:  # Ctrl-C included: nobody else knows of this child yet
        child.terminate()
        child.wait(STOP_WITHIN_S)
        raise


def last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-LAST_LINES:]) or f"nothing (its log {log} is empty)"


def stop(home: Path, pid: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
    """Ask gateway *pid* to end and wait until it has drained; *child* is it, where we started it ourselves.

    Ctrl-C ends the wait, not the drain.
    """
    try:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S
        while child.poll() is None if child else is_alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                warn(f"mitmgate: gateway {pid} did not end within {STOP_WITHIN_S:.0f} s: killed; see {home / LOG}")
                return
            time.sleep(LOOK_EVERY_S)
    except (ProcessLookupError, KeyboardInterrupt):
        return
