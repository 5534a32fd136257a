"""Recorded calls in the order in which they came, a page at a time: what ``rerun`` runs through a new policy.

A page is read whole and its statement closed, so a long rerun holds neither the log of the database nor much memory.
"""

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from mitmgate.store import bodies
from mitmgate.store.selection import Filters, Values, Window, asking, clause

type Call = dict[str, Any]
"""The columns of ``COLUMNS``, and ``first_target``: of its first attempt; ``acted``: [room, rule, action] of the rules
that acted then; ``request`` and ``response``: bodies, where they were kept and asked for, else None; ``response_type``.
"""

PAGE = 1000

COLUMNS = (
    *("id", "started_at", "trace_id", "parent_span_id", "session_id", "event_id", "prompt_version", "route", "tenant"),
    *("user", "auth", "provider_name", "request_model", "response_model", "host", "path", "stream", "status_code"),
    *("terminal", "error_type", "source", "cache_status", "attempts", "target", "usage_source", "cost_nanousd"),
    *("saved_nanousd", "finish_reasons", "duration_ms", "request_sha256", "user_agent", "metadata", "method", "door"),
    *(
        "how",
        "streamed",
        "answer_bytes",
        "service_tier",
        "price_detail",
        "parse_errors",
        "notes",
        "key_name",
        "sla",
        "tier",
    ),
    "policy_sha256",
    *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    *("cache_creation_1h_input_tokens", "reasoning_output_tokens", "input_audio_tokens", "output_audio_tokens"),
)

OURS = "door IS NOT 'gateway'"
"""Calls that the gateway made itself are made by it again, or not."""

PAGE_SQL = """
WITH page AS (
    SELECT rowid AS place, {columns} FROM exchanges
    WHERE {where} AND {ours} AND (started_at, rowid) > (?, ?) ORDER BY started_at, rowid LIMIT ?
)
SELECT page.*,
    (SELECT target FROM attempts WHERE exchange_id = page.id AND n = 1) AS first_target,
    (SELECT json_group_array(json_array(room, rule, action)) FROM policy_events
     WHERE exchange_id = page.id AND shadow = 0) AS acted
FROM page ORDER BY started_at, place
"""

NO_BODIES: Call = {"request": None, "response": None, "response_type": None}

BODIES_SQL = "SELECT kind, content_type, encoding, body, whole FROM payloads WHERE exchange_id = ?"


def count(conn: sqlite3.Connection, window: Window, filters: Filters) -> int:
    """Return how many calls there are."""
    where, values = clause(window, filters)
    with asking(conn, filters):
        found = conn.execute(f"SELECT count(*) FROM exchanges WHERE {where} AND {OURS}", values).fetchone()
    return int(found[0])


def calls(
    conn: sqlite3.Connection, window: Window, filters: Filters, kinds: frozenset[str] = frozenset()
) -> Iterator[Call]:
    """Yield the calls, oldest first, with the bodies of these *kinds*: ``request``, ``response``."""
    where, values = clause(window, filters)
    sql = PAGE_SQL.format(columns=", ".join(COLUMNS), where=where, ours=OURS)
    after: Values = ["", 0]
    while page := _page(conn, sql, [*values, *after, PAGE], filters):
        for call in page:
            call |= _bodies(conn, call["id"], kinds) if kinds else NO_BODIES
            call["acted"] = json.loads(call["acted"])
        after = [page[-1]["started_at"], page[-1]["place"]]
        yield from page


def _page(conn: sqlite3.Connection, sql: str, values: Values, filters: Filters) -> list[Call]:
    with asking(conn, filters):
        return [dict(row) for row in conn.execute(sql, values).fetchall()]


def _bodies(conn: sqlite3.Connection, id: str, kinds: frozenset[str]) -> Call:
    """Return the bodies that were kept as a whole."""
    found = dict(NO_BODIES)
    for kind, content_type, encoding, body, whole in conn.execute(BODIES_SQL, [id]).fetchall():
        if kind not in kinds or not whole:
            continue
        try:
            found[kind] = bodies.unpack(encoding, body)
        except bodies.Unreadable:
            continue
        if kind == "response":
            found["response_type"] = content_type
    return found


ACTED_SQL = """
SELECT room, rule, action, shadow, count(DISTINCT exchange_id) FROM policy_events
WHERE exchange_id IN (SELECT id FROM exchanges WHERE {where} AND {ours}) GROUP BY 1, 2, 3, 4
"""

type Act = tuple[str, str, str, bool]
"""(room, rule, action, shadow)."""


def acted(conn: sqlite3.Connection, window: Window, filters: Filters) -> dict[Act, int]:
    """Return on how many calls each rule acted then, or would have."""
    where, values = clause(window, filters)
    with asking(conn, filters):
        found = conn.execute(ACTED_SQL.format(where=where, ours=OURS), values).fetchall()
    return {(room, rule, action, bool(shadow)): calls for room, rule, action, shadow, calls in found}
