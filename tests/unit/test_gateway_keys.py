"""Keys of the gateway's own: what is kept of them, and that a running gateway goes by the file at every look."""

import logging
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate import redact
from mitmgate.clock import ManualClock
from mitmgate.errors import StartError
from mitmgate.store import key_file
from mitmgate.store.gateway_keys import PATIENCE_S, REST_S, GatewayKeys, Unreadable
from mitmgate.store.key_file import Made, State

SECRET = b"s" * 32
KEY = "mg-0123456789"
DIGEST = key_file.digest_of(SECRET, KEY)
MADE = Made(DIGEST, "app", "acme", "ann", ("gpt-*",), 1000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(path: Path, clock: ManualClock) -> GatewayKeys:
    return GatewayKeys(path, SECRET, clock)


def write(path: Path, *made: Made) -> None:
    with closing(key_file.open_file(path)) as conn:
        for one in made:
            key_file.add(conn, one)


def revoke(path: Path, name: str, wall: float = 2000.0) -> None:
    with closing(key_file.open_file(path)) as conn:
        key_file.revoke(conn, name, wall)


def listed(path: Path) -> list[Made]:
    with closing(key_file.open_file(path)) as conn:
        return key_file.listed(conn)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_new_key_is_random_and_redaction_knows_it_wherever_it_stands() -> None:
    made = {key_file.new_key() for _ in range(3000)}

    assert len(made) == 3000
    assert {len(key) for key in made} == {len("mg-") + 43}  # 256 bits
    assert all(redact.text(f"say {key} to nobody") == "say [secret] to nobody" for key in made)


def test_what_is_kept_of_a_key_is_of_no_use_without_the_homes_secret() -> None:
    assert key_file.digest_of(SECRET, KEY) == DIGEST
    assert key_file.digest_of(b"another", KEY) != DIGEST
    assert len(DIGEST) == 32


@pytest.mark.parametrize(
    ("changed", "wall", "state"),
    [
        ({}, 9e9, "active"),
        ({"expires_at": 2000.0}, 1999.9, "active"),
        ({"expires_at": 2000.0}, 2000.0, "expired"),
        ({"revoked_at": 1500.0}, 1500.0, "revoked"),
        ({"revoked_at": 2500.0, "expires_at": 2000.0}, 3000.0, "revoked"),
    ],
)
def test_a_key_is_active_until_it_expires_or_is_revoked(changed: dict[str, float], wall: float, state: State) -> None:
    assert (
        replace(MADE, expires_at=changed.get("expires_at"), revoked_at=changed.get("revoked_at")).state(wall) == state
    )


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_holds_no_key_and_is_its_owners_alone(path: Path) -> None:
    write(path, MADE)

    everything = b"".join(found.read_bytes() for found in path.parent.iterdir())
    assert DIGEST in everything
    assert KEY.encode() not in everything
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_is_taken_until_its_key_is_revoked_or_has_expired(path: Path) -> None:
    other = replace(MADE, digest=b"other", made_at=3000.0)
    write(path, replace(MADE, expires_at=4000.0))

    with pytest.raises(StartError, match="there is a key 'app' already; take another name"):
        write(path, other)
    revoke(path, "app")
    write(path, replace(other, expires_at=3500.0))
    write(path, replace(MADE, digest=b"third", made_at=5000.0))

    assert [(made.digest, made.revoked_at) for made in listed(path)] == [
        (b"third", None),
        (b"other", 3500.0),
        (DIGEST, 2000.0),
    ]


def test_a_key_is_revoked_once(path: Path) -> None:
    write(path, MADE)
    with closing(key_file.open_file(path)) as conn:
        assert key_file.revoke(conn, "app", 2000.0) == replace(MADE, revoked_at=2000.0)
        assert key_file.revoke(conn, "app", 3000.0) is None
        assert key_file.revoke(conn, "nobody", 3000.0) is None


def test_of_many_that_take_one_name_at_once_one_gets_it(path: Path) -> None:
    taken: list[bytes] = []

    def take(n: int) -> None:
        try:
            write(path, replace(MADE, digest=b"%d" % n))
            taken.append(b"%d" % n)
        except StartError:
            pass

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [made.digest for made in listed(path)] == taken
    assert len(taken) == 1


def test_only_keys_that_open_a_door_are_counted_as_live(path: Path) -> None:
    assert key_file.live(path, 1500.0) == 0
    write(
        path, MADE, replace(MADE, digest=b"2", name="old", expires_at=1200.0), replace(MADE, digest=b"3", name="gone")
    )
    revoke(path, "gone")

    assert key_file.live(path, 1100.0) == 2
    assert key_file.live(path, 1500.0) == 1


def test_a_database_of_somebody_else_is_left_alone(path: Path, keys: GatewayKeys) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE keys (theirs)")

    with pytest.raises(StartError, match="another program"):
        key_file.open_file(path)
    with pytest.raises(Unreadable):
        keys.find(DIGEST)


def test_a_file_of_a_newer_mitmgate_is_not_guessed_at(path: Path) -> None:
    write(path, MADE)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 2")

    with pytest.raises(StartError, match="newer mitmgate"):
        key_file.open_file(path)


# -- the running gateway's view ---------------------------------------------------------------------------------------


def test_a_key_is_known_the_moment_it_is_made_and_not_before(path: Path, keys: GatewayKeys) -> None:
    assert keys.find(DIGEST) is None
    write(path, MADE)
    assert keys.find(DIGEST) == MADE
    second = replace(MADE, digest=b"second", name="second")
    write(path, second)
    assert keys.find(b"second") == second
    assert keys.find(b"third") is None


def test_a_revocation_counts_at_the_next_look(path: Path, keys: GatewayKeys) -> None:
    write(path, MADE)
    assert keys.find(DIGEST) == MADE

    revoke(path, "app")

    assert keys.find(DIGEST) == replace(MADE, revoked_at=2000.0)


def test_a_look_that_nothing_has_changed_since_asks_no_table(path: Path, keys: GatewayKeys) -> None:
    write(path, MADE)
    keys.find(DIGEST)
    asked: list[str] = []
    assert keys._conn is not None
    keys._conn.set_trace_callback(asked.append)

    keys.find(DIGEST)

    assert asked == ["PRAGMA data_version"]


def test_a_file_that_takes_the_place_of_another_counts(path: Path, keys: GatewayKeys, tmp_path: Path) -> None:
    write(path, MADE)
    keys.find(DIGEST)
    other = tmp_path / "other.db"
    write(other, replace(MADE, digest=b"other"))

    for beside in tmp_path.glob("keys.db-*"):
        beside.unlink()
    other.replace(path)

    assert keys.find(DIGEST) is None
    assert keys.find(b"other") == replace(MADE, digest=b"other")


def test_whoever_takes_the_file_away_takes_the_keys_away(path: Path, keys: GatewayKeys) -> None:
    write(path, MADE)
    keys.find(DIGEST)

    for found in path.parent.glob("keys.db*"):
        found.unlink()

    assert keys.find(DIGEST) is None


# -- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(path: Path, keys: GatewayKeys) -> Path:
    """A file that was good when ``DIGEST`` was looked up, and is none any more."""
    write(path, MADE, replace(MADE, digest=b"second", name="second"))
    keys.find(DIGEST)
    for beside in path.parent.glob("keys.db-*"):
        beside.unlink()
    draft = path.with_name("draft")
    draft.write_bytes(b"no database at all " * 100)
    draft.replace(path)
    return path


def test_with_a_broken_file_known_keys_go_on_and_others_are_refused(broken: Path, keys: GatewayKeys) -> None:
    assert keys.find(DIGEST) == MADE
    with pytest.raises(Unreadable):
        keys.find(b"second")


def test_a_broken_file_is_said_once_and_so_is_its_end(
    broken: Path, keys: GatewayKeys, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mitmgate.auth")
    for _ in range(5):
        keys.find(DIGEST)
        clock.advance(REST_S)
    broken.unlink()
    write(broken, MADE)
    keys.find(DIGEST)
    keys.find(DIGEST)

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["ERROR", "WARNING"]
    assert "cannot be read" in said[0][1]
    assert said[1][1].endswith("can be read again")


def test_a_file_that_failed_is_left_alone_for_a_moment(broken: Path, keys: GatewayKeys, clock: ManualClock) -> None:
    keys.find(DIGEST)
    broken.unlink()
    write(broken, replace(MADE, digest=b"new"))

    with pytest.raises(Unreadable):
        keys.find(b"new")
    clock.advance(REST_S)

    assert keys.find(b"new") is not None


def test_a_short_lock_is_not_worth_a_line_and_a_long_one_is(
    path: Path, keys: GatewayKeys, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, MADE)
    keys.find(DIGEST)
    keys._drop()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("UPDATE keys SET tenant = 'held'")

        assert keys.find(DIGEST) == MADE
        assert caplog.records == []
        clock.advance(PATIENCE_S)
        assert keys.find(DIGEST) == MADE

    assert len(caplog.records) == 1
    assert "locked" in caplog.records[0].getMessage()


# -- uses -------------------------------------------------------------------------------------------------------------


def used_at(path: Path) -> dict[bytes, float]:
    with closing(key_file.open_file(path)) as conn:
        return key_file.uses(conn)


def test_the_last_use_is_written_down_also_of_keys_that_the_policy_has(
    path: Path, keys: GatewayKeys, clock: ManualClock
) -> None:
    write(path, MADE)
    keys.used(DIGEST)
    clock.advance(10)
    keys.used(DIGEST)
    keys.used(b"of the policy")

    keys.flush()

    wall = clock.wall()
    assert used_at(path) == {DIGEST: wall, b"of the policy": wall}


def test_an_older_use_that_is_written_later_does_not_count(path: Path, clock: ManualClock) -> None:
    one, other = GatewayKeys(path, SECRET, clock), GatewayKeys(path, SECRET, clock)
    one.used(DIGEST)
    clock.advance(5)
    other.used(DIGEST)

    other.flush()
    one.flush()

    assert used_at(path) == {DIGEST: clock.wall()}


def test_uses_that_wait_are_written_when_the_gateway_ends(path: Path, keys: GatewayKeys, clock: ManualClock) -> None:
    keys.open()
    keys.used(DIGEST)

    keys.close()

    assert used_at(path) == {DIGEST: clock.wall()}


def test_uses_that_cannot_be_written_stop_nobody(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "keys.db").mkdir()
    keys = GatewayKeys(tmp_path / "keys.db", SECRET, clock)
    keys.used(DIGEST)

    keys.flush()
    shutil.rmtree(tmp_path / "keys.db")

    keys.used(DIGEST)
    keys.flush()
    assert used_at(tmp_path / "keys.db") == {DIGEST: clock.wall()}
