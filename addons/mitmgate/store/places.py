"""What each place was asked and how it did, over the calls of a report: attempts, not calls, because a call's row names
only the place that answered.

A *place* is a target of the policy, or a host where there is none. Its *errors* are attempts that broke off or brought
a status from 400 on; one that was ended because another answer came first, or because nobody was left to hear it, is
``cancelled`` and speaks against nobody. When it rested stands in the sentences of ``breaker``'s events, as
``policy_events`` has no column for places.
"""

import json
import sqlite3
from typing import Any

from mitmgate.store.queries import Row, dicts, percentile, ratio
from mitmgate.store.selection import Filters, Window, asking, clause

PERCENTS = (50, 95)

ATTEMPTS = """
WITH calls AS (SELECT id FROM exchanges WHERE {where})
SELECT a.target, a.provider_name, a.host,
       count(*) AS attempts,
       count(*) FILTER (WHERE a.n > 1 AND EXISTS (
           SELECT 1 FROM attempts AS b WHERE b.exchange_id = a.exchange_id AND b.n = a.n - 1 AND b.target IS a.target
       )) AS retries,
       count(*) FILTER (WHERE a.error_type = 'cancelled') AS cancelled,
       count(*) FILTER (
           WHERE coalesce(a.error_type, '') <> 'cancelled' AND (a.error_type IS NOT NULL OR a.status_code >= 400)
       ) AS errors,
       sum(a.cost_nanousd) AS cost_nanousd,
       json_group_array(a.first_byte_ms) FILTER (WHERE a.first_byte_ms IS NOT NULL) AS first_bytes
FROM calls CROSS JOIN attempts AS a ON a.exchange_id = calls.id
GROUP BY 1, 2, 3
ORDER BY count(*) DESC, 1, 3
"""

RESTS = """
WITH calls AS (SELECT id FROM exchanges WHERE {where})
SELECT substr(p.detail, 1, instr(p.detail, ' rests') - 1) AS place,
       count(*) FILTER (WHERE p.detail LIKE '% rests for %') AS rests,
       count(*) FILTER (WHERE p.detail LIKE '% rests: %') AS passed_by,
       max(p.at) AS last_rest_at
FROM calls CROSS JOIN policy_events AS p ON p.exchange_id = calls.id
WHERE p.room = 'breaker' AND p.action = 'rest' AND p.shadow = 0
GROUP BY 1
"""
"""``azure-eu rests for 15 s``: it began to. ``azure-eu rests: 12.1 s left``: a call went past it."""

NO_REST: Row = {"rests": 0, "passed_by": 0, "last_rest_at": None}


def places(conn: sqlite3.Connection, window: Window, filters: Filters) -> list[Row]:
    """Return a row per place that was asked, or passed by, for a call that matches; the busiest first.

    ``{"target", "provider_name", "host", "attempts", "retries", "errors", "cancelled", "error_share", "cost_nanousd",
    "first_byte_p50_ms", "first_byte_p95_ms", "rests", "passed_by", "last_rest_at"}``. The share of errors is of the
    attempts that were not cancelled.
    """
    where, values = clause(window, filters)
    with asking(conn, filters):
        asked = dicts(conn.execute(ATTEMPTS.format(where=where), values))
        rested = dicts(conn.execute(RESTS.format(where=where), values))
    rests = {str(row.pop("place")): row for row in rested}
    rows = [_row(place, _rest_of(place, rests)) for place in asked]
    return rows + [_row(_unasked(name), rest) for name, rest in rests.items()]


def _rest_of(place: Row, rests: dict[str, Row]) -> Row:
    """Take the rests of *place* out of *rests*: they go by its target's name, or by its host."""
    return rests.pop(str(place["target"]), None) or rests.pop(str(place["host"]), None) or NO_REST


def _unasked(name: str) -> Row:
    counts = dict.fromkeys(("attempts", "retries", "cancelled", "errors"), 0)
    return {"target": name, "provider_name": None, "host": None, **counts, "cost_nanousd": None, "first_bytes": "[]"}


def _row(place: Row, rest: Row) -> Row:
    samples: list[Any] = sorted(json.loads(place["first_bytes"]))
    told = {name: value for name, value in place.items() if name != "first_bytes"}
    times = {f"first_byte_p{percent}_ms": percentile(samples, percent) for percent in PERCENTS}
    return {**told, "error_share": ratio(place["errors"], place["attempts"] - place["cancelled"]), **times, **rest}
