"""Answers are kept in memory and in a file; whatever happens to the file, traffic does not notice."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mitmgate
from mitmgate.clock import ManualClock
from mitmgate.store import answer_file, files
from mitmgate.store.answer_file import Marker, Which
from mitmgate.store.answers import AnswerStore, Limits
from mitmgate.store.entry import COLUMNS, Entry, entry_of, facts_of
from support.kept_answers import ENTRY, READING, WALL, entry, key, of_size

QUICK = Limits(every_s=0.01)

type Make = Callable[..., AnswerStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make(path: Path, clock: ManualClock) -> Iterator[Make]:
    """Make open stores that are closed at the end."""
    made: list[AnswerStore] = []

    def store(limits: Limits = QUICK, max_bytes: int = 2**30) -> AnswerStore:
        made.append(AnswerStore(path, max_bytes, clock, limits))
        made[-1].open()
        return made[-1]

    yield store
    for one in made:
        one.close()


def keys(path: Path) -> list[str]:
    """Return the keys in the file, in order."""
    with closing(sqlite3.connect(path)) as conn:
        return [row[0] for row in conn.execute("SELECT key FROM entries ORDER BY key")]


def bodies(path: Path) -> int:
    with closing(sqlite3.connect(path)) as conn:
        return int(conn.execute("SELECT count(*) FROM bodies").fetchone()[0])


def purge(path: Path, which: Which) -> answer_file.Amount:
    with answer_file.opened(path, "rw") as conn:
        return answer_file.purge(conn, path, which)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "mitmgate.cache"]


# -- an entry ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_fresh_then_usable_then_gone() -> None:
    kept = replace(ENTRY, ttl_s=60.0, stale_s=30.0)
    moments = [0.0, 59.9, 60.0, 89.9, 90.0]
    assert [kept.fresh(WALL + s) for s in moments] == [True, True, False, False, False]
    assert [kept.usable_if_error(WALL + s) for s in moments] == [True, True, True, True, False]
    assert [kept.age_s(WALL + s) for s in (-5.0, 0.0, 59.0)] == [0.0, 0.0, 59.0]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=20)), max_size=8),
    st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4),
    st.text(max_size=8),
)
def test_an_entry_comes_back_as_it_was(
    pieces: list[tuple[int, bytes]], fields: list[tuple[bytes, bytes]], model: str
) -> None:
    one = replace(ENTRY, pieces=tuple(pieces), fields=fields, reading=replace(READING, response_model=model))
    columns = {name: getattr(one, name) for name in COLUMNS}
    assert entry_of(columns, facts_of(one), one.body) == one


def test_an_entry_whose_body_is_cut_is_none() -> None:
    columns = {name: getattr(ENTRY, name) for name in COLUMNS}
    with pytest.raises(ValueError, match="3 pieces"):
        entry_of(columns, facts_of(ENTRY), ENTRY.body[:-1])


# -- keeping and looking up -------------------------------------------------------------------------------------------


async def test_an_answer_is_there_at_once_and_after_a_restart(path: Path, make: Make) -> None:
    store = make()
    store.put(entry(1))
    assert store.peek(key(1)) == entry(1)
    store.close()
    again = make()
    assert again.peek(key(1)) is None
    assert await again.get(key(1)) == entry(1)
    assert again.peek(key(1)) == entry(1)


async def test_no_file_is_made_before_an_answer_is_kept(path: Path, make: Make) -> None:
    store = make()
    assert store.peek(key(1)) is None
    assert await store.get(key(1)) is None
    assert store.flush(10)
    assert list(path.parent.iterdir()) == []


def test_the_file_is_its_owners_only(path: Path, make: Make) -> None:
    store = make()
    store.put(entry(1))
    assert store.flush(10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_was_kept_last_stands(make: Make, clock: ManualClock) -> None:
    store = make()
    store.put(entry(1, model="old"))
    assert store.flush(10)
    store.put(entry(1, model="new", stored_at=WALL + 1))
    found = store.peek(key(1))
    assert found is not None
    assert found.model == "new"
    assert store.flush(10)
    again = await make().get(key(1))
    assert again is not None
    assert again.model == "new"


async def test_a_kept_reading_does_not_change_with_the_exchange_that_made_it(make: Make) -> None:
    store = make()
    reading = replace(READING, finish_reasons=["stop"], usage=replace(READING.usage, server_tools={}))
    store.put(entry(1, reading=reading))
    reading.finish_reasons.append("length")
    reading.usage.output_tokens = 99
    reading.usage.server_tools["x"] = 1
    found = store.peek(key(1))
    assert found is not None
    assert (found.reading.finish_reasons, found.reading.usage.output_tokens) == (["stop"], 3)
    assert found.reading.usage.server_tools == {}


async def test_many_look_ups_at_once_find_theirs(make: Make) -> None:
    store = make()
    for n in range(50):
        store.put(entry(n))
    store.close()
    again = make()
    found = await asyncio.gather(*(again.get(key(n)) for n in range(60)))
    assert [one and one.key for one in found] == [key(n) if n < 50 else None for n in range(60)]


async def test_identical_look_ups_at_once_share_one_and_whoever_leaves_takes_it_from_nobody(make: Make) -> None:
    first = make()
    first.put(entry(1))
    first.close()
    store = make()
    asked = [asyncio.create_task(store.get(key(1))) for _ in range(100)]
    await asyncio.sleep(0)
    asked[0].cancel()
    assert len({id(found) for found in await asyncio.gather(*asked[1:])}) == 1
    assert await asked[1] == entry(1)


# -- time -------------------------------------------------------------------------------------------------------------


async def test_what_has_expired_is_served_no_more_and_leaves_the_file(
    path: Path, make: Make, clock: ManualClock
) -> None:
    store = make()
    store.put(entry(1, ttl_s=60.0, stale_s=30.0))
    store.put(entry(2, ttl_s=300.0))
    assert store.flush(10)
    clock.advance(89)
    assert store.peek(key(1)) is not None
    clock.advance(1)
    assert store.peek(key(1)) is None
    assert await store.get(key(1)) is None
    assert store.flush(10)
    assert keys(path) == [key(2)]
    assert bodies(path) == 1
    assert store.stats.evictions == 0


async def test_what_expired_while_no_gateway_ran_is_not_served(make: Make, clock: ManualClock) -> None:
    store = make()
    store.put(entry(1))
    store.close()
    clock.advance(60)
    assert await make().get(key(1)) is None


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_memory_holds_what_was_used_last_and_the_file_the_rest(make: Make) -> None:
    store = make(replace(QUICK, memory=3 * entry(1).size))
    for n in (1, 2, 3):
        store.put(entry(n))
    assert store.flush(10)
    store.peek(key(1))
    store.put(entry(4))
    assert store.flush(10)
    assert [store.peek(key(n)) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]
    assert await store.get(key(2)) == entry(2)
    assert store.peek(key(1)) is None


async def test_a_large_answer_is_kept_in_the_file_alone(make: Make) -> None:
    large = of_size(1, 50_000)
    store = make(replace(QUICK, entry_in_memory=40_000))
    store.put(large)
    assert await store.get(key(1)) == large  # also while it waits
    assert store.flush(10)
    assert store.peek(key(1)) is None
    assert await store.get(key(1)) == large


async def test_an_answer_beyond_all_bounds_is_not_kept_but_counted(path: Path, make: Make) -> None:
    store = make(replace(QUICK, entry=40_000))
    store.put(entry(1))
    assert store.flush(10)
    store.put(of_size(1, 50_000))
    assert await store.get(key(1)) is None  # nor is the one that it was to replace
    assert store.flush(10)
    assert keys(path) == []
    assert store.stats.dropped == 1


def test_the_file_stays_below_its_bound_and_keeps_what_was_used_last(
    path: Path, make: Make, clock: ManualClock
) -> None:
    store = make(max_bytes=2**20)
    for n in range(8):
        store.put(of_size(n, 100_000))
        clock.advance(1)
    store.peek(key(0))
    assert store.flush(10)
    for n in range(8, 13):
        store.put(of_size(n, 100_000, stored_at=clock.wall()))
        clock.advance(1)
    assert store.flush(10)
    assert key(0) in keys(path)
    assert keys(path)[-5:] == [key(n) for n in range(8, 13)]
    assert key(1) not in keys(path)
    assert bodies(path) == len(keys(path))
    assert store.stats.bytes <= 2**20
    assert store.stats.evictions == 13 - store.stats.entries > 0


def test_a_full_backlog_drops_answers_and_counts_them(path: Path, make: Make) -> None:
    store = make(replace(QUICK, backlog=3 * entry(1).size))
    store.put(entry(0))
    assert store.flush(10)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for n in (1, 2, 3, 4, 5):
            store.put(entry(n))
        assert not store.flush(0.01)
        assert store.peek(key(5)) == entry(5)  # memory has room
        other.execute("ROLLBACK")
    assert store.flush(10)
    assert len(keys(path)) == 4
    assert store.stats.dropped == 2


def test_uses_are_noted(path: Path, make: Make, clock: ManualClock) -> None:
    store = make()
    store.put(entry(1, stale_s=100.0))
    for _ in range(3):
        clock.advance(10)
        store.peek(key(1))
    clock.advance(40)
    store.peek(key(1))  # stale: whether it is of any use is not known here
    assert store.flush(10)
    with answer_file.opened(path) as conn:
        (kept,) = answer_file.listed(conn, Which())
    assert (kept.hits, kept.used_at) == (3, WALL + 30)


# -- purges -----------------------------------------------------------------------------------------------------------


async def test_a_purge_by_another_process_is_seen_at_once(path: Path, make: Make) -> None:
    store = make()
    for n in (1, 2):
        store.put(entry(n, tenant=f"t{n}"))
    assert store.flush(10)
    assert purge(path, Which(tenants=("t1",))).entries == 1
    assert store.peek(key(1)) is None
    assert await store.get(key(1)) is None
    assert await store.get(key(2)) == entry(2, tenant="t2")


async def test_a_purge_is_meant_for_answers_that_still_wait_too(path: Path, make: Make) -> None:
    store = make()
    store.put(entry(0))
    assert store.flush(10)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.put(entry(1))
        assert not store.flush(0.1)  # it is at hand now
        store.put(entry(2))
        Marker(path).purged()
        other.execute("DELETE FROM entries")
        other.execute("COMMIT")
    assert store.peek(key(1)) is None
    assert store.peek(key(2)) is None
    assert store.flush(10)
    assert keys(path) == []
    assert await store.get(key(1)) is None


async def test_what_is_kept_after_a_purge_stays(path: Path, make: Make) -> None:
    store = make()
    store.put(entry(1))
    assert store.flush(10)
    purge(path, Which())
    store.put(entry(1))
    assert store.peek(key(1)) == entry(1)
    assert store.flush(10)
    assert keys(path) == [key(1)]


async def test_an_answer_that_another_process_refreshed_is_read_again(make: Make) -> None:
    one, other = make(), make()
    one.put(entry(1, model="old"))
    assert one.flush(10)
    assert one.peek(key(1)) is not None
    other.put(entry(1, model="new", stored_at=WALL + 1))
    assert other.flush(10)
    found = await one.get(key(1))
    assert found is not None
    assert found.model == "new"


WHICH: list[tuple[Which, list[int]]] = [
    (Which(), [1, 2, 3, 4]),
    (Which(tenants=("acme",)), [1, 2]),
    (Which(tenants=("ACME",)), []),
    (Which(tenants=("a*", "none")), [1, 2]),
    (Which(models=("gpt-5",)), [2, 4]),
    (Which(models=("gpt-?",)), [2, 4]),
    (Which(tenants=("acme",), models=("gpt-5",)), [2]),
    (Which(routes=("faq",)), [3]),
    (Which(keys=("0001", "0003")), [1, 3]),
    (Which(keys=(key(2),)), [2]),
    (Which(keys=("000",)), [1, 2, 3, 4]),
    (Which(before=WALL + 2), [1, 2]),
    (Which(since=WALL + 2), [3, 4]),
    (Which(since=WALL + 1, before=WALL + 3), [2, 3]),
]


@pytest.fixture
def four(path: Path, make: Make) -> Path:
    """Four answers that differ in what one can ask for."""
    store = make()
    store.put(entry(1, tenant="acme", model="gpt-4o", route=None, stored_at=WALL))
    store.put(entry(2, tenant="acme", model="gpt-5", route=None, stored_at=WALL + 1))
    store.put(entry(3, tenant=None, model=None, route="faq", stored_at=WALL + 2))
    store.put(entry(4, tenant="globex", model="gpt-5", route="chat", stored_at=WALL + 3))
    store.close()
    return path


@pytest.mark.parametrize(("which", "found"), WHICH)
def test_entries_are_listed_by_what_they_are(four: Path, which: Which, found: list[int]) -> None:
    with answer_file.opened(four) as conn:
        listed = answer_file.listed(conn, which)
        total = answer_file.total(conn, which)
    assert [kept.key for kept in listed] == [key(n) for n in reversed(found)]
    assert total == answer_file.Amount(len(found), sum(kept.bytes for kept in listed))


@pytest.mark.parametrize(("which", "found"), WHICH)
def test_a_purge_deletes_what_a_list_shows_and_nothing_else(four: Path, which: Which, found: list[int]) -> None:
    with answer_file.opened(four) as conn:
        total = answer_file.total(conn, which)
    assert purge(four, which) == total
    assert keys(four) == [key(n) for n in (1, 2, 3, 4) if n not in found]
    assert bodies(four) == 4 - len(found)


def test_what_is_purged_is_nowhere_on_the_disk_and_the_disk_is_given_back(path: Path, make: Make) -> None:
    store = make()
    for n in range(60):
        store.put(entry(n, tenant=f"t{n % 2}", pieces=((0, b"the secret of t%d " % (n % 2) * 20),)))
    store.close()
    before = path.stat().st_size
    purge(path, Which(tenants=("t1",)))
    assert b"the secret of t0" in path.read_bytes()
    assert b"the secret of t1" not in path.read_bytes()
    assert path.stat().st_size < before


def test_the_mark_is_set_before_anything_is_deleted_and_after_all_of_it(four: Path) -> None:
    marks = [Marker(four).read()]
    with answer_file.opened(four, "rw") as conn:
        conn.set_trace_callback(
            lambda text: marks.append(Marker(four).read()) if text in ("BEGIN IMMEDIATE", "COMMIT") else None
        )
        answer_file.purge(conn, four, Which())
        conn.set_trace_callback(None)
    before, begin, commit, after = [mark.purged for mark in [*marks, Marker(four).read()]]
    assert before != begin == commit != after


def test_an_answer_read_while_it_is_purged_is_not_served_afterwards(path: Path, make: Make) -> None:
    store = make()
    store.put(entry(1))
    assert store.flush(10)

    def look_up(statement: str) -> None:
        if statement == "COMMIT":
            seen.append(asyncio.run(store.get(key(1))))

    seen: list[Entry | None] = []
    with answer_file.opened(path, "rw") as conn:
        conn.set_trace_callback(look_up)
        answer_file.purge(conn, path, Which())
        conn.set_trace_callback(None)
    assert seen == [entry(1)]
    assert store.peek(key(1)) is None
    assert asyncio.run(store.get(key(1))) is None


# -- what may become of a file ----------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_set_aside_and_said_once(
    path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(b"this is no database, however long it may be" * 100)
    store = make()
    assert await store.get(key(1)) is None
    store.put(entry(1))
    assert store.flush(10)
    assert keys(path) == [key(1)]
    assert len(list(path.parent.glob("cache.db.broken-*"))) == 1
    assert len(said(caplog)) == 1
    assert "set aside as cache.db.broken-" in said(caplog)[0]


async def test_a_file_damaged_while_in_use_costs_what_it_held(path: Path, make: Make) -> None:
    first = make()
    for n in range(200):
        first.put(of_size(n, 4000))
    first.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    store = make(replace(QUICK, memory=0))
    assert [await store.get(key(n)) for n in range(0, 200, 20)] == [None] * 10
    store.put(entry(1))
    assert store.flush(10)
    store.put(entry(2))
    assert store.flush(10)
    assert key(2) in keys(path)
    assert await store.get(key(2)) == entry(2)


async def test_a_damaged_entry_is_none_and_the_others_are_well(path: Path, make: Make) -> None:
    store = make(replace(QUICK, memory=0))
    for n in (1, 2, 3):
        store.put(entry(n))
    assert store.flush(10)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE bodies SET facts = '{' WHERE id = (SELECT id FROM entries WHERE key = ?)", (key(1),))
        conn.execute(
            "UPDATE bodies SET body_encoding = 'zstd' WHERE id = (SELECT id FROM entries WHERE key = ?)", (key(2),)
        )
    assert await store.get(key(1)) is None
    assert await store.get(key(2)) is None
    assert await store.get(key(3)) == entry(3)


async def test_an_outage_is_said_once_costs_the_file_alone_and_is_over_by_itself(
    path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()  # nothing can be written to a directory
    store = make()
    for n in (1, 2, 3):
        store.put(entry(n))
        assert store.flush(10)
        assert store.peek(key(n)) == entry(n)
        assert await store.get(key(99)) is None
    assert (store.stats.outage, store.stats.dropped) == ("unable to open database file", 3)
    path.rmdir()
    store.put(entry(4))
    assert store.flush(10)
    assert keys(path) == [key(4)]
    assert store.stats.outage is None
    assert ["cannot be kept in" in line for line in said(caplog)] == [True, False]
    assert "are kept in" in said(caplog)[1]


def test_another_programs_database_is_left_alone(path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE entries (theirs)")
    before = path.read_bytes()
    store = make()
    store.put(entry(1))
    store.close()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["cache.db"]
    assert "is a database of another program" in said(caplog)[0]


async def test_a_file_of_another_version_is_emptied(path: Path, make: Make) -> None:
    store = make()
    store.put(entry(1))
    store.close()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 99")
    again = make()
    assert await again.get(key(1)) is None
    again.put(entry(2))
    assert again.flush(10)
    assert keys(path) == [key(2)]


async def test_a_file_deleted_while_in_use_is_begun_anew(path: Path, make: Make) -> None:
    store = make(replace(QUICK, memory=0))
    store.put(entry(1))
    assert store.flush(10)
    path.unlink()
    assert await store.get(key(1)) is None
    store.put(entry(2))
    assert store.flush(10)
    store.put(entry(3))
    assert store.flush(10)
    assert keys(path) == [key(2), key(3)]
    assert await store.get(key(2)) == entry(2)


def test_a_lock_loses_nothing_and_is_not_spoken_of(path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    store = make()
    store.put(entry(0))
    assert store.flush(10)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for n in range(1, 20):
            store.put(entry(n))
        assert not store.flush(files.BUSY_S + 0.2)  # the first try has failed by then
        assert store.stats.outage == "database is locked"
        other.execute("COMMIT")
    assert store.flush(10)
    assert len(keys(path)) == 20
    assert store.stats.outage is None
    assert (store.stats.dropped, said(caplog)) == (0, [])


async def test_several_processes_share_a_file(path: Path, make: Make) -> None:
    stores = [make(), make(), make()]
    for n in range(60):
        stores[n % 3].put(entry(n))
    assert all(store.flush(20) for store in stores)
    assert len(keys(path)) == 60
    assert [(await store.get(key(n))) is not None for store in stores for n in (0, 1, 2)] == [True] * 9


def test_a_name_that_no_column_takes_costs_no_answer(path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    store = make()
    store.put(entry(1, model="a \ud800 model"))
    store.put(entry(2))
    assert store.flush(10)
    assert keys(path) == [key(1), key(2)]
    assert caplog.records == []


def test_closing_leaves_the_file_in_good_order_and_may_come_twice(path: Path, make: Make) -> None:
    store = make()
    for n in range(300):
        store.put(entry(n))
    store.close()
    store.close()
    assert len(keys(path)) == 300
    assert sorted(file.name for file in path.parent.iterdir()) == ["cache.db"]


async def test_after_closing_nothing_is_found_and_nothing_is_raised(make: Make) -> None:
    store = make()
    store.put(entry(1))
    store.close()
    store.put(entry(2))
    assert await store.get(key(3)) is None


KILLED = """
import sys
from pathlib import Path
from mitmgate.clock import ManualClock
from mitmgate.store.answers import AnswerStore, Limits
from support.kept_answers import of_size

store = AnswerStore(Path(sys.argv[1]), 2**30, ManualClock(), Limits(every_s=0.01))
store.open()
for n in range(100_000):
    store.put(of_size(n, 2000))
    if n % 20 == 0:
        store.flush(10)
        print(n, flush=True)
"""


def test_kill_9_corrupts_nothing_and_what_was_written_is_there(path: Path) -> None:
    code, tests = Path(mitmgate.__file__).parent.parent, Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{tests}"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=env
    )  # fmt: skip
    if process.stdout is None:
        raise RuntimeError("the program has no output")
    for line in process.stdout:
        if int(line) >= 200:
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    with closing(answer_file.open_file(path, WALL)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        found = [answer_file.read(conn, key(n)) for n in range(0, 201, 50)]
    assert found == [of_size(n, 2000) for n in range(0, 201, 50)]
