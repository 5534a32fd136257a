"""The gateway's folder: certificates, the key that hashes credentials, and ``run.json`` while it runs.

``HOME`` has mode 0700; ``ca/mitmproxy-ca.pem`` is our CA with its key, ``ca/mitmproxy-ca-cert.pem`` its certificate,
and ``ca/bundle.pem`` certifi's roots plus ours: the file that every CA variable of a client points to.
"""

import json
import os
import secrets
import sqlite3
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import certifi

from mitmgate.errors import StartError
from mitmgate.store import files

CA_NAME = "mitmproxy"
"""The base name of the CA's files; mitmproxy looks for this one."""


@dataclass(frozen=True, slots=True)
class RunFile:
    """What ``run.json`` says of a running gateway. Paths are absolute."""

    pid: int
    listen: str
    base_url_listen: str | None
    db: str
    policy: str | None
    ca_cert: str
    ca_bundle: str
    started_at: str
    version: str


class Home:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = path / "ca"
        self.run_file = path / "run.json"

    @property
    def ca_cert(self) -> Path:
        return self.ca / f"{CA_NAME}-ca-cert.pem"

    @property
    def bundle(self) -> Path:
        return self.ca / "bundle.pem"

    def prepare(self) -> bytes:
        """Make what is missing and return the key for hashing credentials; raise ``StartError``."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.ca.mkdir(mode=0o700, exist_ok=True)
            self._make_ca()
            return secret_of(self.path)
        except OSError as error:
            raise StartError(
                f"{self.path} cannot be used as home: {error.strerror or error}; give another with --home DIR"
            ) from error

    def _make_ca(self) -> None:
        from mitmproxy.certs import CertStore

        try:
            CertStore.from_store(self.ca, CA_NAME, 2048)
        except ValueError as error:
            raise StartError(f"{self.ca}/{CA_NAME}-ca.pem is no CA: {error}; move it away to get a new one") from error
        roots = Path(certifi.where()).read_bytes() + b"\n# mitmgate\n" + self.ca_cert.read_bytes()
        if not self.bundle.exists() or not self.bundle.read_bytes().startswith(roots.rstrip()):
            _write(self.bundle, roots)  # else it may hold roots that `env` and `run` have added behind these

    def announce(self, run: RunFile) -> None:
        """Write ``run.json``: both doors accept now."""
        _write(self.run_file, json.dumps(asdict(run), indent=1).encode())

    def withdraw(self) -> None:
        """Remove ``run.json``, if it is still ours."""
        with suppress(OSError, ValueError):
            if json.loads(self.run_file.read_bytes()).get("pid") == os.getpid():
                self.run_file.unlink()


def secret_of(home: Path) -> bytes:
    """Return the key that credentials are hashed with; made at first use, never changed."""
    path = home / "secret"
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    """Write *path* in one step, so that nobody reads half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_bytes(data)
    draft.replace(path)


def check_database(path: Path) -> None:
    """Raise ``StartError`` where *path* can never be our database: no folder, no right to write, a newer mitmgate's."""
    if not path.parent.is_dir():
        raise StartError(f"{path.parent} is no folder; give another database with --db FILE")
    try:
        with closing(files.connect(path)) as connection:
            files.refuse_newer(connection, path)
    except sqlite3.Error as error:
        if path.exists():
            return  # locked or damaged: the writer knows what to do
        raise StartError(f"{path} cannot be made: {error}; give another database with --db FILE") from error
