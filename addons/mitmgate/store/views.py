"""What people ask first, as SQL views: they answer in the plain ``sqlite3`` shell and in any tool that opens the file.

The migrations create them from ``VIEWS``. They keep to SQLite 3.40: no ``percentile()``, no function of ours. Money is
in nano-dollars, exact, and beside it in US dollars for people. A share is 0…1. Null is unknown, never zero. A view of
single calls passes ``WHERE started_at >= …`` on to the index, so ask for a time range on a large file.
"""

FAILED = "(status_code >= 400 OR terminal <> 'complete')"
"""A call that did not end in a whole answer below 400: what every report means by "error". An index covers it."""

INTERRUPTED = "(stream = 1 AND terminal IN ('truncated', 'client_abort', 'timeout', 'error_event'))"
"""A stream that did not reach its regular end, whoever broke it."""

UNPRICED = "(cost_nanousd IS NULL AND attempts > 0 AND coalesce(status_code, 0) < 400)"
"""A call that a provider answered and whose cost nobody knows: a sum beside it is too low."""

WASTED = """(SELECT sum(cost_nanousd) FROM attempts WHERE exchange_id = exchanges.id
        AND (error_type = 'cancelled' OR (error_type IS NOT NULL AND n < exchanges.attempts)))"""
"""What a call's attempts cost that nobody got an answer from: those that failed, and of two at once the later one."""

DAY = "substr(started_at, 1, 10)"
HOUR = "substr(started_at, 1, 13) || ':00Z'"

COST_BY_TENANT_DAY = f"""
SELECT {DAY} AS day,
       tenant,
       count(*) AS calls,
       count(*) FILTER (WHERE {FAILED}) AS errors,
       sum(input_tokens) AS input_tokens,
       sum(cache_read_input_tokens) AS cache_read_input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cost_nanousd) AS cost_nanousd,
       sum(cost_nanousd) / 1e9 AS cost_usd,
       count(*) FILTER (WHERE {UNPRICED}) AS unpriced,
       sum(saved_nanousd) AS saved_nanousd,
       sum(saved_nanousd) / 1e9 AS saved_usd
FROM exchanges
GROUP BY 1, 2
ORDER BY 1 DESC, sum(cost_nanousd) DESC, tenant
"""

ERRORS = f"""
SELECT started_at, id, tenant, route, source, provider_name, target, request_model, status_code, terminal, error_type,
       attempts, duration_ms, session_id, trace_id
FROM exchanges
WHERE {FAILED}
ORDER BY started_at DESC
"""

SLOW = """
SELECT started_at, id, tenant, route, provider_name, target, request_model, stream, duration_ms, time_to_first_token_ms,
       gateway_ms,
       (SELECT sum(wait_ms) FROM attempts WHERE exchange_id = exchanges.id) AS wait_ms,
       (SELECT sum(first_byte_ms) FROM attempts WHERE exchange_id = exchanges.id) AS first_byte_ms,
       attempts, input_tokens, output_tokens,
       duration_ms / nullif(output_tokens, 0) AS ms_per_output_token
FROM exchanges
WHERE duration_ms IS NOT NULL
ORDER BY duration_ms DESC
"""

RETRIES = f"""
SELECT started_at, id, tenant, route, request_model, attempts,
       (SELECT target FROM attempts WHERE exchange_id = exchanges.id ORDER BY n LIMIT 1) AS first_target,
       (SELECT error_type FROM attempts WHERE exchange_id = exchanges.id ORDER BY n LIMIT 1) AS first_error,
       target AS last_target, status_code, terminal,
       coalesce(NOT {FAILED}, 0) AS recovered,
       (SELECT sum(wait_ms) FROM attempts WHERE exchange_id = exchanges.id) AS wait_ms,
       duration_ms, cost_nanousd, cost_nanousd / 1e9 AS cost_usd,
       {WASTED} AS wasted_nanousd, {WASTED} / 1e9 AS wasted_usd
FROM exchanges
WHERE attempts > 1
ORDER BY started_at DESC
"""

STREAMS_INTERRUPTED = f"""
SELECT started_at, id, tenant, user, route, provider_name, target, request_model, terminal, error_type, status_code,
       time_to_first_token_ms, duration_ms, output_tokens, usage_source, cost_nanousd, cost_nanousd / 1e9 AS cost_usd,
       session_id, user_agent
FROM exchanges
WHERE {INTERRUPTED}
ORDER BY started_at DESC
"""

MODELS = f"""
SELECT provider_name, request_model, response_model,
       count(*) AS calls,
       count(*) FILTER (WHERE {FAILED}) AS errors,
       min(started_at) AS first_seen,
       max(started_at) AS last_seen,
       sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cost_nanousd) AS cost_nanousd,
       sum(cost_nanousd) / 1e9 AS cost_usd,
       count(*) FILTER (WHERE {UNPRICED}) AS unpriced
FROM exchanges
GROUP BY 1, 2, 3
ORDER BY count(*) DESC
"""

POLICY_EVENTS = """
SELECT p.at, p.exchange_id AS id, p.room, p.rule, p.action, p.shadow, p.detail,
       x.tenant, x.user, x.route, x.provider_name, x.request_model, x.status_code, x.source, x.policy_sha256
FROM policy_events AS p LEFT JOIN exchanges AS x ON x.id = p.exchange_id
ORDER BY p.at DESC
"""

SESSIONS = f"""
SELECT session_id,
       min(started_at) AS first_at,
       max(started_at) AS last_at,
       max(tenant) AS tenant,
       max(user) AS user,
       count(*) AS calls,
       count(*) FILTER (WHERE {FAILED}) AS errors,
       sum(tool_calls) AS tool_calls,
       sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cost_nanousd) AS cost_nanousd,
       sum(cost_nanousd) / 1e9 AS cost_usd,
       sum(duration_ms) AS duration_ms
FROM exchanges
WHERE session_id IS NOT NULL
GROUP BY session_id
ORDER BY max(started_at) DESC
"""

TOKENS_BY_MODEL_HOUR = f"""
SELECT {HOUR} AS hour,
       provider_name,
       coalesce(response_model, request_model) AS model,
       count(*) AS calls,
       sum(input_tokens) AS input_tokens,
       sum(cache_read_input_tokens) AS cache_read_input_tokens,
       sum(cache_creation_input_tokens) AS cache_creation_input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(reasoning_output_tokens) AS reasoning_output_tokens,
       count(*) FILTER (WHERE usage_source = 'estimated') AS estimated
FROM exchanges
GROUP BY 1, 2, 3
ORDER BY 1 DESC, count(*) DESC
"""

ATTEMPTS = """
SELECT x.started_at, x.id, a.n, a.provider_name, a.target, a.host, a.status_code, a.error_type,
       a.wait_ms, a.connect_ms, a.first_byte_ms, a.duration_ms, a.reused_connection, a.input_tokens, a.output_tokens,
       a.cost_nanousd, a.cost_nanousd / 1e9 AS cost_usd, x.tenant, x.route, x.request_model
FROM exchanges AS x CROSS JOIN attempts AS a ON a.exchange_id = x.id  -- CROSS: calls first, in the order of their index
ORDER BY x.started_at DESC, a.n
"""

# A row of exchanges names the provider that answered, so a fallback inherits the waiting for the target that failed:
# whose fault it was is only in the attempts. The view covers the day up to the newest row; percentiles over a whole
# file of a million rows take ten seconds.
ATTEMPT_HEALTH = """
WITH recent AS (
    SELECT substr(x.started_at, 1, 13) || ':00Z' AS hour, a.provider_name, a.target, a.host, a.status_code,
           a.error_type, a.error_type IS NOT NULL OR coalesce(a.status_code >= 400, 0) AS failed,
           a.wait_ms, a.connect_ms, a.first_byte_ms, a.reused_connection, a.cost_nanousd
    FROM exchanges AS x CROSS JOIN attempts AS a ON a.exchange_id = x.id
    WHERE x.started_at > (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', max(started_at), '-24 hours') FROM exchanges)
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY hour, provider_name, target, host
                                 ORDER BY first_byte_ms IS NULL, first_byte_ms) AS place,
           count(first_byte_ms) OVER (PARTITION BY hour, provider_name, target, host) AS timed
    FROM recent
)
SELECT hour, provider_name, target, host,
       count(*) AS attempts,
       sum(failed) AS failed,
       avg(failed) AS failed_share,
       count(*) FILTER (WHERE error_type = 'timeout') AS timeouts,
       count(*) FILTER (WHERE status_code = 429) AS rate_limited,
       min(first_byte_ms) FILTER (WHERE place * 100 >= timed * 50) AS first_byte_p50_ms,
       min(first_byte_ms) FILTER (WHERE place * 100 >= timed * 95) AS first_byte_p95_ms,
       avg(connect_ms) AS connect_ms,
       avg(reused_connection) AS reused_share,
       sum(wait_ms) AS wait_ms,
       sum(cost_nanousd) AS cost_nanousd,
       sum(cost_nanousd) / 1e9 AS cost_usd
FROM ranked
GROUP BY hour, provider_name, target, host
ORDER BY hour DESC, count(*) DESC
"""

FEEDBACK = """
SELECT f.at, f.exchange_id AS id, f.kind, f.value, f.source, f.comment,
       x.tenant, x.user, x.route, x.prompt_version, x.provider_name, x.response_model, x.session_id
FROM feedback AS f LEFT JOIN exchanges AS x ON x.id = f.exchange_id
ORDER BY f.at DESC
"""

VIEWS: list[tuple[str, str]] = [
    ("v_cost_by_tenant_day", COST_BY_TENANT_DAY.strip()),
    ("v_errors", ERRORS.strip()),
    ("v_slow", SLOW.strip()),
    ("v_retries", RETRIES.strip()),
    ("v_streams_interrupted", STREAMS_INTERRUPTED.strip()),
    ("v_models", MODELS.strip()),
    ("v_policy_events", POLICY_EVENTS.strip()),
    ("v_sessions", SESSIONS.strip()),
    ("v_tokens_by_model_hour", TOKENS_BY_MODEL_HOUR.strip()),
    ("v_attempts", ATTEMPTS.strip()),
    ("v_attempt_health", ATTEMPT_HEALTH.strip()),
    ("v_feedback", FEEDBACK.strip()),
]
"""Name and SELECT, in the order the README lists them."""
