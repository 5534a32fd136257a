"""Who is alive: each process that holds reservations keeps a lock on a file of its own, and the lock dies with it.

The kernel lets go of an ``flock`` however its process ends, so a reservation whose owner's file can be locked by
somebody else belongs to nobody. A process id would not do: it comes back after a restart, in a container always as 1.
"""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path


class Owner:
    """This process, in the folder of the living. Raises OSError where it cannot be noted there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._descriptor: int | None = None

    def live(self) -> None:
        """Be seen as alive, from now on or still: somebody may have emptied the folder."""
        if self._descriptor is not None and self._is_seen(self._descriptor):
            return
        self.let_go()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        while True:  # a ``clear`` may come between the making of the file and its lock
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                os.close(descriptor)
                raise
            if self._is_seen(descriptor):
                self._descriptor = descriptor
                return
            os.close(descriptor)

    def leave(self) -> None:
        """Be seen as dead, in good order."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        self.let_go()

    def let_go(self) -> None:
        """Drop the lock and leave the file, as a process does that is killed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_alone(self) -> bool:
        """Return whether nobody else lives here."""
        names = [path.name for path in self.folder.iterdir()]
        return all(name == self.name or is_dead(self.folder, name) for name in names)

    @property
    def _file(self) -> Path:
        return self.folder / self.name

    def _is_seen(self, descriptor: int) -> bool:
        try:
            found = self._file.stat()
        except OSError:
            return False
        ours = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def is_dead(folder: Path, name: str) -> bool:
    """Return whether nobody of this *name* lives any more; then its file is gone, too."""
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def clear(folder: Path) -> None:
    """Remove the files of the dead."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            is_dead(folder, path.name)
