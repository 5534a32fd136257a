"""Trace databases with known rows, made through the real schema.

A test says what matters about a call and leaves the rest: ``call(n, tenant="acme", duration_ms=120.0)`` is a whole
answer of one attempt, *n* minutes after ``START``.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mitmgate.clock import iso
from mitmgate.store import schema
from mitmgate.store.rows import Row, Rows

START = datetime(2026, 11, 24, 9, tzinfo=UTC)


def at(minutes: float, start: datetime = START) -> str:
    """Return the time *minutes* after *start*, as the database writes it."""
    return iso((start + timedelta(minutes=minutes)).timestamp())


def id_of(n: int) -> str:
    """Return the id of call *n*: ids sort as their numbers."""
    return f"019e0000-{n:04x}-7000-8000-{n:012x}"


def call(n: int, minutes: float | None = None, start: datetime = START, **columns: Any) -> Row:
    """Return a row of ``exchanges``; *columns* overrule the ordinary call."""
    row: Row = {
        "id": id_of(n),
        "started_at": at(n if minutes is None else minutes, start),
        "tenant": "acme",
        "route": "chat",
        "provider_name": "openai",
        "operation_name": "chat",
        "request_model": "gpt-4o",
        "response_model": "gpt-4o-2024-08-06",
        "host": "api.openai.com",
        "path": "/v1/chat/completions",
        "method": "POST",
        "stream": 0,
        "streamed": 0,
        "status_code": 200,
        "terminal": "complete",
        "source": "provider",
        "attempts": 1,
        "step": 0,
        "input_tokens": 100,
        "cache_read_input_tokens": 40,
        "output_tokens": 20,
        "reasoning_output_tokens": 5,
        "usage_source": "reported",
        "cost_nanousd": 1_000_000,
        "saved_nanousd": 0,
        "finish_reasons": '["stop"]',
        "tool_calls": 0,
        "time_to_first_token_ms": 50.0,
        "duration_ms": 100.0,
        "gateway_ms": 2.0,
        "metadata": "{}",
    }
    return {**row, **columns}


def attempt(n: int, of: int, **columns: Any) -> Row:
    """Return a row of ``attempts``: try *n* of call *of*."""
    row: Row = {
        "exchange_id": id_of(of),
        "n": n,
        "provider_name": "openai",
        "host": "api.openai.com",
        "status_code": 200,
        "wait_ms": 0.0,
        "first_byte_ms": 40.0,
        "duration_ms": 98.0,
        "input_tokens": 100,
        "output_tokens": 20,
        "cost_nanousd": 1_000_000,
        "reused_connection": 1,
        "started_at": at(of),
    }
    return {**row, **columns}


def event(of: int, **columns: Any) -> Row:
    """Return a row of ``policy_events``: a rule that acted on call *of*."""
    row: Row = {
        "exchange_id": id_of(of),
        "at": at(of),
        "room": "retry",
        "rule": "default",
        "action": "retry",
        "shadow": 0,
    }
    return {**row, **columns}


def feedback(of: int, **columns: Any) -> Row:
    """Return a row of ``feedback``: what somebody thought of call *of*."""
    row: Row = {"exchange_id": id_of(of), "at": at(of), "kind": "thumbs", "value": 1, "source": "app"}
    return {**row, **columns}


def database(path: Path, rows: Rows) -> Path:
    """Make the database at *path* hold *rows*; return *path*."""
    with closing(schema.open_store(path, START.timestamp())) as conn:
        write(conn, rows)
    return path


def write(conn: sqlite3.Connection, rows: Rows) -> None:
    for table, some in rows.tables():
        insert(conn, table, some)


def insert(conn: sqlite3.Connection, table: str, rows: Iterable[Row]) -> None:
    for row in rows:
        marks = ", ".join("?" for _ in row)
        conn.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))


def rows_of(*calls: Row, attempts: Iterable[Row] = ()) -> Rows:
    return Rows(exchanges=list(calls), attempts=list(attempts))
