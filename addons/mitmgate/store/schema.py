"""The tables of the trace database, as append-only migrations: a column once published is never renamed nor removed.

Runs when a writer opens the file. Names are OpenTelemetry GenAI's where it has one. The first columns of each table
are the published contract; those under "beside the contract" explain a row to people and may grow. Null is unknown, 0
is zero. Times are ISO 8601 text in UTC with milliseconds and ``Z``, ``*_ms`` are real milliseconds, money is integer
nano-dollars, flags are 0/1, lists and objects JSON text, hashes lower hex.

Views are code, not data: they are made anew whenever their text has changed, so they need no migration.
"""

import logging
import sqlite3
from pathlib import Path

from sqlite_utils import Database, Migrations

from mitmgate.store import files
from mitmgate.store.phases import SPANS
from mitmgate.store.views import VIEWS

log = logging.getLogger("mitmgate.store")

migrations = Migrations("mitmgate")


@migrations()
def traces(db: Database) -> None:
    """The six tables of version 1."""
    for statement in (EXCHANGES, ATTEMPTS, SPANS_STORED, POLICY_EVENTS, PAYLOADS, FEEDBACK, *INDEXES):
        db.execute(statement)


@migrations()
def governance(db: Database) -> None:
    """Which policy held from when on, by which key a call came, what a rule cut from its prompt."""
    db.execute(POLICY_VERSIONS)
    for column in ("key_name TEXT", "prompt_tokens_before INTEGER", "prompt_tokens_after INTEGER"):
        db.execute(f"ALTER TABLE exchanges ADD COLUMN {column}")


EXCHANGES = """
CREATE TABLE exchanges (
    id TEXT PRIMARY KEY NOT NULL,       -- UUIDv7: sorts by time
    started_at TEXT NOT NULL,
    trace_id TEXT,
    parent_span_id TEXT,
    session_id TEXT,
    event_id TEXT,
    prompt_version TEXT,
    route TEXT,
    tenant TEXT,
    user TEXT,
    auth TEXT,                          -- keyed hash of the caller's credential
    region TEXT,
    colo TEXT,
    sla TEXT,
    tier TEXT,
    provider_name TEXT,                 -- who answered; blame goes by attempts
    operation_name TEXT,
    request_model TEXT,
    response_model TEXT,
    response_id TEXT,
    host TEXT,                          -- as the client asked
    path TEXT,                          -- secrets in the query masked
    stream INTEGER,                     -- the client asked for a stream
    status_code INTEGER,                -- as the client got it; null: none went out
    terminal TEXT,
    error_type TEXT,
    source TEXT,                        -- who wrote the answer
    cache_status TEXT,
    attempts INTEGER,
    step INTEGER,
    target TEXT,
    input_tokens INTEGER,               -- all input, cached included
    cache_read_input_tokens INTEGER,
    cache_creation_input_tokens INTEGER,
    output_tokens INTEGER,              -- all output, reasoning included
    reasoning_output_tokens INTEGER,
    usage_source TEXT,
    cost_nanousd INTEGER,               -- null: unknown
    saved_nanousd INTEGER,
    price_version TEXT,
    finish_reasons TEXT,
    tool_calls INTEGER,
    time_to_first_token_ms REAL,
    duration_ms REAL,
    gateway_ms REAL,
    request_sha256 TEXT,
    sent_sha256 TEXT,                   -- null: equal to request_sha256
    policy_sha256 TEXT,                 -- first 12 hex digits
    user_agent TEXT,
    metadata TEXT,
    -- beside the contract
    method TEXT,
    door TEXT,
    how TEXT,                           -- how the answer's transport ended
    streamed INTEGER,                   -- the answer came as a stream
    answer_bytes INTEGER,
    waited_ms REAL,                     -- for the provider
    cache_creation_1h_input_tokens INTEGER,
    input_audio_tokens INTEGER,
    output_audio_tokens INTEGER,
    service_tier TEXT,
    server_tools TEXT,
    cost_reported_nanousd INTEGER,      -- the provider's own figure
    price_detail TEXT,                  -- the table's entry that was used, or why there is no price
    error_detail TEXT,
    parse_errors INTEGER,
    notes TEXT
)
"""

ATTEMPTS = """
CREATE TABLE attempts (
    exchange_id TEXT NOT NULL,
    n INTEGER NOT NULL,                 -- 1 for the first
    target TEXT,
    provider_name TEXT,
    host TEXT,
    status_code INTEGER,
    error_type TEXT,
    wait_ms REAL,                       -- before it
    connect_ms REAL,                    -- null: a kept connection
    first_byte_ms REAL,                 -- from its start, connecting included
    duration_ms REAL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_nanousd INTEGER,
    reused_connection INTEGER,
    -- beside the contract
    started_at TEXT,
    first_token_ms REAL,                -- from its start; only of the attempt that answered
    response_model TEXT,
    usage_source TEXT,
    cache_read_input_tokens INTEGER,
    cache_creation_input_tokens INTEGER,
    reasoning_output_tokens INTEGER,
    request_id TEXT,                    -- the provider's, for its support
    error_detail TEXT,
    PRIMARY KEY (exchange_id, n)
) WITHOUT ROWID
"""

SPANS_STORED = """
CREATE TABLE spans_stored (
    exchange_id TEXT,                   -- null until joined
    trace_id TEXT,
    span_id TEXT,
    parent_span_id TEXT,
    name TEXT NOT NULL,
    kind TEXT,
    started_at TEXT NOT NULL,
    duration_ms REAL,
    host TEXT,
    status_code INTEGER
)
"""

POLICY_EVENTS = """
CREATE TABLE policy_events (
    exchange_id TEXT,
    at TEXT NOT NULL,
    room TEXT NOT NULL,
    rule TEXT,
    action TEXT NOT NULL,
    shadow INTEGER NOT NULL DEFAULT 0,
    detail TEXT
)
"""

PAYLOADS = """
CREATE TABLE payloads (
    exchange_id TEXT NOT NULL,
    kind TEXT NOT NULL,                 -- request | sent | response
    content_type TEXT,
    encoding TEXT NOT NULL,             -- of body: identity | zstd
    bytes INTEGER NOT NULL,             -- of the body before encoding
    body BLOB,
    -- beside the contract
    whole INTEGER NOT NULL DEFAULT 1    -- 0: only the first bytes were kept
)
"""

FEEDBACK = """
CREATE TABLE feedback (
    exchange_id TEXT NOT NULL,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    value,                              -- a number or a word
    source TEXT,
    comment TEXT
)
"""

POLICY_VERSIONS = """
CREATE TABLE policy_versions (
    at TEXT NOT NULL,                   -- it holds from now on; said again at every start, by every worker
    sha256 TEXT,                        -- first 12 hex digits, as in exchanges.policy_sha256
    path TEXT,                          -- null: the built-in default
    text TEXT NOT NULL                  -- the file; secrets stand in the environment
)
"""

INDEXES = (
    "CREATE INDEX exchanges_started_at ON exchanges (started_at)",
    "CREATE INDEX exchanges_tenant ON exchanges (tenant, started_at)",
    "CREATE INDEX exchanges_session_id ON exchanges (session_id) WHERE session_id IS NOT NULL",
    "CREATE INDEX exchanges_trace_id ON exchanges (trace_id) WHERE trace_id IS NOT NULL",
    # Makes an incident instant; a query must repeat this WHERE to use it.
    "CREATE INDEX exchanges_failed ON exchanges (started_at) WHERE status_code >= 400 OR terminal <> 'complete'",
    "CREATE INDEX spans_exchange_id ON spans_stored (exchange_id) WHERE exchange_id IS NOT NULL",
    "CREATE INDEX spans_trace_id ON spans_stored (trace_id) WHERE trace_id IS NOT NULL",
    "CREATE INDEX spans_started_at ON spans_stored (started_at)",
    "CREATE INDEX policy_events_at ON policy_events (at)",
    "CREATE INDEX policy_events_exchange_id ON policy_events (exchange_id)",
    "CREATE UNIQUE INDEX payloads_exchange_id ON payloads (exchange_id, kind)",
    "CREATE INDEX feedback_at ON feedback (at)",
    "CREATE INDEX feedback_exchange_id ON feedback (exchange_id)",
)
"""Provider, model and route have none: a time range selects, and each index costs every insert."""

V_PAYLOADS = """
SELECT exchange_id, kind, content_type, encoding, bytes, whole, body,
       CASE encoding WHEN 'identity' THEN CAST(body AS TEXT)
            ELSE '[' || bytes || ' bytes as ' || encoding || '; to read them: mitmgate show ' || exchange_id || ']'
       END AS text
FROM payloads
""".strip()

ALL_VIEWS = {"spans": SPANS, "v_payloads": V_PAYLOADS, **dict(VIEWS)}


def open_store(path: Path, wall: float) -> sqlite3.Connection:
    """Return a connection for writing to the database at *path*, brought up to this version; made if missing.

    A file that is no database, or a damaged one, is set aside and said; *wall* (seconds since 1970) goes into its new
    name. Raises StartError where a newer mitmgate wrote it, sqlite3.Error or OSError where it cannot be opened or
    written.
    """
    found = files.identity(path)
    try:
        return _opened(path)
    except sqlite3.DatabaseError as e:
        if not files.is_broken(e):
            raise
        if files.identity(path) != found:  # another process has replaced it already
            return _opened(path)
        aside = files.set_aside(path, wall)
        log.warning("store: %s is no usable database (%s): set aside as %s, a new one begun", path, e, aside.name)
        return _opened(path)


def _opened(path: Path) -> sqlite3.Connection:
    conn = files.connect(path)
    try:
        files.refuse_newer(conn, path)
        prepare(conn)
    except BaseException:
        files.abandon(conn)
        raise
    return conn


def prepare(conn: sqlite3.Connection) -> None:
    """Bring the tables and views up to this version. Of several processes at once one works, the others wait."""
    if not _has_tables(conn):
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only counts before the first table
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("BEGIN IMMEDIATE")
    try:
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        if version < files.VERSION:
            migrations.apply(Database(conn, execute_plugins=False))
            conn.execute(f"PRAGMA user_version = {files.VERSION}")
        _refresh_views(conn)
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _has_tables(conn: sqlite3.Connection) -> bool:
    (tables,) = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(tables)


def _refresh_views(conn: sqlite3.Connection) -> None:
    stored = dict(conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    for name, select in ALL_VIEWS.items():
        statement = f"CREATE VIEW {name} AS\n{select}"
        if stored.get(name) != statement:
            conn.execute(f"DROP VIEW IF EXISTS {name}")
            conn.execute(statement)


def columns(conn: sqlite3.Connection, table: str) -> list[str]:
    """Return the column names of *table*, in order."""
    return [row[1] for row in conn.execute(f"PRAGMA table_info({table})")]
