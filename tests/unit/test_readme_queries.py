"""The queries of the README's incident review run as they stand, and name the culprit of an incident staged here.

The incident: for the last half hour the target ``azure-eu`` answers 503 after nine seconds, a fallback to ``openai``
answers instead, and two calls of ``acme`` find neither. A day before, and since, both were well.

Two hours ago ``umbrella`` ran through its budget: a soft step, three calls of the small model, two refusals.
"""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mitmgate.store.rows import Row
from support.sample_traces import at, attempt, call, database, id_of, insert, rows_of

README = Path(__file__).parents[2] / "README.md"


def queries(title: str) -> dict[str, str]:
    """Return heading -> SQL of a section."""
    _, _, rest = README.read_text().partition(f"\n## {title}\n")
    section = re.split(r"\n## ", rest)[0]
    return dict(re.findall(r"\*\*([^*]+)\*\*.*?```sql\n(.*?)```", section, flags=re.DOTALL))


TEN = queries("Ten queries of an incident review")
MORE = queries("Retries, cache and rests in SQL")
GOVERNED = queries("Refusals and budgets in SQL")
QUERIES = TEN | MORE | GOVERNED

NOW = datetime.fromtimestamp(time.time(), UTC)
"""The queries count back from the database's own clock, so the incident has to be staged before the real present."""

DAY = 24 * 60
AZURE: dict[str, Any] = {"provider_name": "azure.ai.openai", "target": "azure-eu", "host": "eu.openai.azure.com"}
WELL: dict[str, Any] = {"policy_sha256": "aaaaaaaaaaaa", "prompt_version": "v1"}
FELL_BACK: dict[str, Any] = {
    **WELL,
    "target": "openai",
    "attempts": 2,
    "time_to_first_token_ms": 9400.0,
    "duration_ms": 9900.0,
}
LOST: dict[str, Any] = {
    **WELL, **AZURE, "attempts": 2, "status_code": 503, "error_type": "overloaded", "cost_nanousd": None,
    "input_tokens": None, "output_tokens": None, "time_to_first_token_ms": None, "duration_ms": 18_000.0,
}  # fmt: skip


REFUSED: dict[str, Any] = {
    **WELL, "tenant": "umbrella", "user": "u1", "attempts": 0, "status_code": 429, "terminal": "refused",
    "source": "budget", "error_type": "insufficient_quota", "cost_nanousd": None,
    "input_tokens": None, "output_tokens": None, "time_to_first_token_ms": None, "duration_ms": 1.0,
}  # fmt: skip


def then(n: int, minutes: float, **columns: Any) -> Row:
    return call(n, minutes=minutes, start=NOW, **columns)


def staged() -> tuple[list[Row], list[Row]]:
    """Return the calls of the staged day and their attempts."""
    well = [then(n, -DAY - 10 - n, **WELL, **AZURE) for n in range(20)]
    since = [then(n, -DAY + n, **WELL, tenant="globex") for n in range(20, 40)]
    fell_back = [then(n, -30 + n - 40, **FELL_BACK) for n in range(40, 48)]
    lost = [then(n, -20 + n - 48, **LOST) for n in (48, 49)]
    changed = then(50, -25, **{**WELL, "policy_sha256": "bbbbbbbbbbbb"}, tenant="globex", cost_nanousd=None)
    cut = then(51, -5, **WELL, tenant="globex", stream=1, terminal="truncated", output_tokens=7)
    asked = then(52, -100, **WELL, tenant="initech", route="faq", cache_status="MISS", duration_ms=900.0)
    hits = [then(n, -90, **WELL, tenant="initech", route="faq", cache_status="HIT", source="cache", attempts=0,
                 cost_nanousd=0, saved_nanousd=1_000_000, duration_ms=1.5) for n in (53, 54, 55)]  # fmt: skip

    spent = [then(n, -180 + n, **WELL, tenant="umbrella", cost_nanousd=0) for n in range(56, 60)]
    refused = [then(n, -180 + n, **REFUSED) for n in (60, 61)]

    slow: dict[str, Any] = {
        **AZURE,
        "status_code": 503,
        "error_type": "overloaded",
        "first_byte_ms": 9000.0,
        "cost_nanousd": 0,
    }
    tries = [attempt(1, n, **AZURE, first_byte_ms=300.0) for n in range(20)]
    tries += [attempt(1, n) for n in (*range(20, 40), 50, 51, 52)]
    tries += [attempt(1, n, **slow) for n in range(40, 50)]
    tries += [attempt(2, n, target="openai", wait_ms=500.0) for n in range(40, 48)]
    tries += [attempt(2, n, **slow, wait_ms=500.0) for n in (48, 49)]
    return [*well, *since, *fell_back, *lost, changed, cut, *spent, *refused, asked, *hits], tries


@pytest.fixture(scope="module")
def conn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    calls, tries = staged()
    path = database(tmp_path_factory.mktemp("traces") / "traces.db", rows_of(*calls, attempts=tries))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        events = [
            {"exchange_id": row["id"], "at": row["started_at"], "room": "route", "action": "fallback", "shadow": 0}
            for row in calls
            if row.get("target") == "openai"
        ]
        rests = ["azure-eu rests for 15 s", *(f"azure-eu rests: {left}.0 s left" for left in (9, 4))]
        events += [
            {"exchange_id": row["id"], "at": at(-120, NOW), "room": "breaker", "rule": "regions", "action": "rest",
             "shadow": 0, "detail": detail}
            for row, detail in zip(calls[-3:], rests, strict=True)
        ]  # fmt: skip
        budget = [(56, "soft", 0), (57, "downgrade", 0), (58, "downgrade", 0), (59, "downgrade", 0),
                  (60, "refuse", 0), (61, "refuse", 0), (61, "refuse", 1)]  # fmt: skip
        events += [
            {"exchange_id": id_of(n), "at": at(-180 + n, NOW), "room": "budget",
             "rule": "stricter" if shadow else "tenant-day", "action": action, "shadow": shadow, "detail": "0 USD left"}
            for n, action, shadow in budget
        ]  # fmt: skip
        insert(conn, "policy_events", events)
        conn.row_factory = sqlite3.Row
        yield conn


def first(conn: sqlite3.Connection, heading: str) -> dict[str, object]:
    """Return the first row of the query whose heading begins so."""
    (sql,) = [sql for name, sql in QUERIES.items() if name.startswith(heading)]
    return dict(conn.execute(sql).fetchone())


def test_there_are_ten() -> None:
    assert [heading.split(".")[0] for heading in TEN] == [str(n) for n in range(1, 11)]
    assert (len(MORE), len(GOVERNED)) == (3, 3)


@pytest.mark.parametrize(
    ("heading", "says"),
    [
        ("1.", {"failure": "overloaded", "target": "azure-eu", "status_code": 503, "calls": 2}),
        ("2.", {"minute": at(-30, NOW)[:16] + "Z", "calls": 1, "errors": 0, "slowest_first_token_ms": 9400.0}),
        ("3.", {"target": "azure-eu", "attempts_before": 20, "attempts_now": 12, "failed_before": 0, "failed_now": 12,
                "p95_before_ms": 300.0, "p95_now_ms": 9000.0}),
        ("4.", {"tenant": "acme", "route": "chat", "calls": 10, "errors": 2, "error_share": 0.2}),
        ("5.", {"target": "azure-eu", "calls": 2, "total_ms": 18_000.0, "gateway_ms": 2.0,
                "waiting_between_attempts_ms": 500.0, "provider_first_byte_ms": 18_000.0}),
        ("6.", {"sent": 12, "attempts_per_sent_call": 1.83, "retried": 10, "recovered": 8, "waited_s": 5.0}),
        ("7.", {"room": "route", "action": "fallback", "shadow": 0, "times": 8, "tenants": 1}),
        ("8.", {"terminal": "truncated", "streams": 1, "before_the_first_token": 0, "output_tokens": 7.0}),
        ("9.", {"what": "policy", "value": "bbbbbbbbbbbb", "calls": 1}),
        ("10.", {"tenant": "acme", "cost_usd": 0.008, "calls": 10, "unpriced": 0}),
        ("What did retries cost", {"first_target": "azure-eu", "first_error": "overloaded", "retried": 10,
                                   "recovered": 8, "waited_ms": 500.0, "wasted_usd": 0.0}),
        ("What does the cache save", {"tenant": "initech", "route": "faq", "hits": 3, "misses": 1, "hit_percent": 75.0,
                                      "saved_usd": 0.003, "hit_ms": 1.5, "miss_ms": 900.0}),
        ("Which target rested", {"target": "azure-eu", "rule": "regions", "rests": 1, "passed_by": 2,
                                 "last_at": at(-120, NOW)}),
        ("Whom did limits", {"tenant": "umbrella", "room": "budget", "rule": "tenant-day", "refused": 2, "users": 1,
                             "first_at": at(-120, NOW), "last_at": at(-119, NOW)}),
        ("How far did each budget", {"rule": "tenant-day", "tenant": "umbrella", "soft_at": at(-124, NOW),
                                     "downgraded_at": at(-123, NOW), "downgraded": 3, "ended_at": at(-120, NOW),
                                     "refused": 2}),
        ("What would a rule in shadow", {"room": "budget", "rule": "stricter", "action": "refuse", "times": 1,
                                         "tenants": 1}),
    ],
)  # fmt: skip
def test_the_query_names_the_culprit(conn: sqlite3.Connection, heading: str, says: dict[str, object]) -> None:
    row = first(conn, heading)
    assert {name: row[name] for name in says} == says


def test_the_fallback_that_answered_slowly_is_not_blamed(conn: sqlite3.Connection) -> None:
    (sql,) = [sql for name, sql in QUERIES.items() if name.startswith("3.")]
    failed = {row["target"]: row["failed_now"] for row in conn.execute(sql)}
    assert failed["openai"] == 0


def test_every_view_that_the_readme_lists_is_there(conn: sqlite3.Connection) -> None:
    listed = set(re.findall(r"^\| `(v_\w+)` \|", README.read_text(), flags=re.MULTILINE))
    there = {row["name"] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'view'")}
    assert listed <= there
    assert len(listed) >= 12
