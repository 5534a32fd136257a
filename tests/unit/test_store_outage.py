"""An outage is said once when it begins and once when it is over; a short lock is not worth a word."""

from pathlib import Path

import pytest

from mitmgate.store.backlog import Backlog, Limits
from mitmgate.store.outage import PATIENCE_S, Outage
from mitmgate.store.rows import Rows

PATH = Path("traces.db")
BEGINS = (
    "store: rows cannot be written to traces.db: disk I/O error. Traffic goes on; up to 2 rows and 1 MiB wait in memory"
)


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(Limits(items=2, bytes=2**20))


@pytest.fixture
def outage(backlog: Backlog) -> Outage:
    return Outage(PATH, backlog)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


def test_an_outage_is_said_at_its_first_failure_and_not_again(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    for now in (0.0, 0.25, 60.0):
        outage.failed(OSError("disk I/O error"), locked=False, now=now)
    assert said(caplog) == [BEGINS]
    assert outage.reason == "disk I/O error"


def test_a_short_lock_is_everyday_business(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    outage.failed(OSError("database is locked"), locked=True, now=0.0)
    outage.failed(OSError("database is locked"), locked=True, now=PATIENCE_S - 0.1)
    assert outage.reason == "database is locked"
    outage.wrote(now=PATIENCE_S)
    assert outage.reason is None
    assert said(caplog) == []


def test_a_long_lock_is_an_outage(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    outage.failed(OSError("database is locked"), locked=True, now=0.0)
    outage.failed(OSError("database is locked"), locked=True, now=PATIENCE_S)
    assert len(said(caplog)) == 1


def test_its_end_says_how_long_it_was_and_what_it_cost(
    outage: Outage, backlog: Backlog, caplog: pytest.LogCaptureFixture
) -> None:
    outage.failed(OSError("disk I/O error"), locked=False, now=10.0)
    for _ in range(5):
        backlog.put(Rows(), 10)
    outage.wrote(now=52.0)
    outage.caught_up()
    assert said(caplog) == [
        BEGINS,
        "store: rows are written to traces.db again, after 42 s; 3 rows were dropped and 0 lost their bodies",
    ]


def test_the_next_outage_is_said_again(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    for now in (0.0, 100.0):
        outage.failed(OSError("disk I/O error"), locked=False, now=now)
        outage.wrote(now=now + 1)
    assert [message == BEGINS for message in said(caplog)] == [True, False, True, False]


def test_what_was_dropped_for_want_of_time_is_said_once(
    outage: Outage, backlog: Backlog, caplog: pytest.LogCaptureFixture
) -> None:
    outage.caught_up()
    for _ in range(4):
        backlog.put(Rows(), 10)
    outage.caught_up()
    outage.caught_up()
    assert said(caplog) == [
        "store: rows came in faster than traces.db takes them: 2 were dropped and 0 lost their bodies"
    ]
