"""Which policy held from when on: a version is written at each start and each edit, by every worker."""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Version:
    at: str
    """ISO time since which it held."""
    sha256: str
    """First 12 hex digits, as in ``exchanges.policy_sha256``."""
    path: str | None
    """None = the built-in default."""
    text: str


def versions(conn: sqlite3.Connection) -> list[Version]:
    """Return the versions in the order in which they held; one that only went on at a restart counts once."""
    found = conn.execute("SELECT name FROM sqlite_master WHERE name = 'policy_versions'").fetchone()
    if found is None:  # written by a mitmgate that kept none
        return []
    rows = conn.execute("SELECT at, sha256, path, text FROM policy_versions ORDER BY at, rowid")
    kept: list[Version] = []
    for row in map(tuple, rows):
        version = Version(*row)
        if not kept or version.sha256 != kept[-1].sha256:
            kept.append(version)
    return kept
