"""The view ``spans``: what happened when inside an exchange, and in the app's other calls of the same trace.

Only calls that nothing else tells of are stored (``spans_stored``: retrieval, tools, MCP, phases that a room timed
itself). The rest is read out of the exchange and attempt rows, which saves a third of the file:

    policy                 the gateway's own time, whenever it was spent; drawn from the start of the exchange
    wait                   between two attempts
    connect                DNS, TCP and TLS; none on a kept connection
    provider.first_token   from the connection to the first content, or to the first byte where no content came
    provider.stream        from there to the end, of answers that came as a stream

The exchange's own span id is the random half of its UUIDv7, parent of all phases. A phase's id is that one with its
last three digits replaced by the attempt's number and the phase's. Plain SQLite 3.40.
"""

ROOT = "substr(replace(x.id, '-', ''), 17)"
FIRST = "coalesce(a.first_token_ms, a.first_byte_ms)"
CONNECT = "coalesce(a.connect_ms, 0)"


def _span_id(n: str, phase: int) -> str:
    return f"substr({ROOT}, 1, 13) || printf('%02x{phase}', {n})"


def _later(ms: str) -> str:
    """Return SQL for the time *ms* milliseconds after the attempt's start."""
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', a.started_at, printf('%+.3f seconds', ({ms}) / 1000.0))"


SPANS = f"""
SELECT exchange_id, trace_id, span_id, parent_span_id, name, kind, started_at, duration_ms, host, status_code
FROM spans_stored
UNION ALL
SELECT x.id, x.trace_id, {_span_id("0", 0)}, {ROOT}, 'policy', 'internal', x.started_at, x.gateway_ms, NULL, NULL
FROM exchanges AS x WHERE x.gateway_ms IS NOT NULL
UNION ALL
SELECT x.id, x.trace_id, {_span_id("a.n", 1)}, {ROOT}, 'wait', 'internal', {_later("-a.wait_ms")}, a.wait_ms, a.host,
NULL FROM attempts AS a JOIN exchanges AS x ON x.id = a.exchange_id WHERE a.wait_ms > 0 UNION ALL SELECT x.id,
x.trace_id, {_span_id("a.n", 2)}, {ROOT}, 'connect', 'client', a.started_at, a.connect_ms, a.host, NULL FROM attempts
AS a JOIN exchanges AS x ON x.id = a.exchange_id WHERE a.connect_ms IS NOT NULL UNION ALL SELECT x.id, x.trace_id,
{_span_id("a.n", 3)}, {ROOT}, 'provider.first_token', 'client', {_later(CONNECT)}, {FIRST} - {CONNECT}, a.host,
a.status_code FROM attempts AS a JOIN exchanges AS x ON x.id = a.exchange_id WHERE {FIRST} IS NOT NULL UNION ALL SELECT
x.id, x.trace_id, {_span_id("a.n", 4)}, {ROOT}, 'provider.stream', 'client', {_later(FIRST)}, a.duration_ms - {FIRST},
a.host, a.status_code FROM attempts AS a JOIN exchanges AS x ON x.id = a.exchange_id WHERE x.streamed = 1 AND {FIRST}
IS NOT NULL AND a.duration_ms IS NOT NULL """.strip()
