"""A finished exchange becomes rows that say what happened, what it used and what it cost."""

import gzip
import json
import sqlite3
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from mitmgate.clock import ManualClock
from mitmgate.dialects.base import Reading, Request, Usage
from mitmgate.errors import Refusal
from mitmgate.exchange import Answer, Attempt, Event, Exchange
from mitmgate.policy.values import Policy, Trace
from mitmgate.pricing import Prices, table_version
from mitmgate.providers import Hosts
from mitmgate.store import schema
from mitmgate.store.reader import open_reader
from mitmgate.store.rows import TABLES, Row, Rows
from mitmgate.store.sink import Sink
from mitmgate.trace_rows import Record, gateway_ms, snapshot, weakest

ID = "019ab697-e87b-7000-8000-0123456789ab"
BODY = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi, my key is sk-ant-api03-Zy8xWv7uTs6r"}]}'
ANSWER = b'{"choices": [{"message": {"content": "hello"}}]}'
KEY = b"sk-ant-api03-Zy8xWv7uTs6r"
PRICES = Prices()
POLICY = Policy(sha256="0123456789abcdef")
GPT4O = Usage(1000, 500, 200)
GPT4O_NANOUSD = 7_250_000
"""800 fresh at 2.50, 200 cached at 1.25, 500 out at 10 USD per million tokens."""


def reading(usage: Usage, model: str | None = "gpt-4o-2024-08-06", **more: object) -> Reading:
    known = Reading(usage=usage, usage_seen=True, usage_final=True, response_model=model, response_id="chatcmpl-1")
    known.finish_reasons = ["stop"]
    for name, value in more.items():
        setattr(known, name, value)
    return known


def attempt(n: int, read: Reading | None = None, **more: object) -> Attempt:
    one = Attempt(n, "openai", "openai", "api.openai.com", started=100.0 + n)
    one.answer = Answer(read or Reading())
    for name, value in more.items():
        setattr(one, name, value)
    return one


def exchange(**changes: object) -> Exchange:
    """Return a finished chat completion; *changes* are fields."""
    x = Exchange(
        "POST", "https", "api.openai.com", 443, "/v1/chat/completions", [],
        {"user-agent": "OpenAI/Python 2.0", "content-type": "application/json"}, 100.0, 1_764_000_000.123,
    )  # fmt: skip
    x.id = ID
    x.body = BODY
    x.provider = Hosts().find("api.openai.com", 443)
    x.operation = "chat"
    x.request = Request(model="gpt-4o")
    first = attempt(1, reading(GPT4O), status=200, first_byte=101.4, ended=102.0, connect_s=0.05)
    first.headers = {"x-request-id": "req_1"}
    x.attempts = [first]
    x.answer = first.answer
    x.status = 200
    x.answer_headers = {"content-type": "application/json"}
    x.answer.kept, x.answer.size, x.answer.first_content = bytearray(ANSWER), len(ANSWER), 101.5
    x.first_content = 101.5
    x.waited_s = 0.9
    x.ended = 102.0
    x.terminal = "complete"
    x.how = "end"
    if "reading" in changes:
        x.answer.reading = changes.pop("reading")  # type: ignore[assignment]
    for name, value in changes.items():
        setattr(x, name, value)
    return x


def rendered(x: Exchange, policy: Policy = POLICY) -> Rows:
    return snapshot(x, policy, PRICES).render()


def row(x: Exchange) -> Row:
    (one,) = rendered(x).exchanges
    return one


def test_an_exchange_in_full() -> None:
    x = exchange(
        trace_id="0af7651916cd43dd8448eb211c80319c", parent_span_id="b7ad6b7169203331", session="s1", event_id="ev1",
        prompt_version="v7", route="faq", tenant="acme", user="u1", auth="ab12", region="jnb", colo="c1", sla="gold",
        tier="large", cache_status="MISS", metadata={"feature": "faq", "n": 3, "on": True},
    )  # fmt: skip
    assert row(x) == {
        "id": ID,
        "started_at": "2025-11-24T16:00:00.123Z",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "parent_span_id": "b7ad6b7169203331",
        "session_id": "s1",
        "event_id": "ev1",
        "prompt_version": "v7",
        "route": "faq",
        "tenant": "acme",
        "user": "u1",
        "auth": "ab12",
        "region": "jnb",
        "colo": "c1",
        "sla": "gold",
        "tier": "large",
        "provider_name": "openai",
        "operation_name": "chat",
        "request_model": "gpt-4o",
        "response_model": "gpt-4o-2024-08-06",
        "response_id": "chatcmpl-1",
        "host": "api.openai.com",
        "path": "/v1/chat/completions",
        "stream": 0,
        "status_code": 200,
        "terminal": "complete",
        "error_type": None,
        "source": "provider",
        "cache_status": "MISS",
        "attempts": 1,
        "step": 0,
        "target": "openai",
        "input_tokens": 1000,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": None,
        "output_tokens": 500,
        "reasoning_output_tokens": None,
        "usage_source": "reported",
        "cost_nanousd": GPT4O_NANOUSD,
        "saved_nanousd": None,
        "price_version": table_version(),
        "finish_reasons": '["stop"]',
        "tool_calls": 0,
        "time_to_first_token_ms": 1500.0,
        "duration_ms": 2000.0,
        "gateway_ms": 1100.0,
        "request_sha256": sha256(BODY).hexdigest(),
        "sent_sha256": None,
        "policy_sha256": "0123456789ab",
        "user_agent": "OpenAI/Python 2.0",
        "metadata": '{"feature":"faq","n":3,"on":true}',
        "method": "POST",
        "door": "proxy",
        "how": "end",
        "streamed": 0,
        "answer_bytes": len(ANSWER),
        "waited_ms": 900.0,
        "cache_creation_1h_input_tokens": None,
        "input_audio_tokens": None,
        "output_audio_tokens": None,
        "service_tier": None,
        "server_tools": None,
        "cost_reported_nanousd": None,
        "price_detail": "openai/gpt-4o",
        "error_detail": None,
        "parse_errors": 0,
        "notes": None,
        "key_name": None,
    }


def test_an_attempt_in_full() -> None:
    (one,) = rendered(exchange()).attempts
    assert one == {
        "exchange_id": ID,
        "n": 1,
        "target": "openai",
        "provider_name": "openai",
        "host": "api.openai.com",
        "status_code": 200,
        "error_type": None,
        "wait_ms": 0.0,
        "connect_ms": 50.0,
        "first_byte_ms": 400.0,
        "duration_ms": 1000.0,
        "input_tokens": 1000,
        "output_tokens": 500,
        "cost_nanousd": GPT4O_NANOUSD,
        "reused_connection": 0,
        "started_at": "2025-11-24T16:00:01.123Z",
        "first_token_ms": 500.0,
        "response_model": "gpt-4o-2024-08-06",
        "usage_source": "reported",
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": None,
        "reasoning_output_tokens": None,
        "request_id": "req_1",
        "error_detail": None,
    }


def test_every_column_that_is_filled_exists(tmp_path: Path) -> None:
    x = exchange(events=[Event("limit", "burst", "refuse")], request=Request(model="gpt-4o", stream=True))
    x.terminal = "truncated"
    rows = rendered(x)
    conn = schema.open_store(tmp_path / "traces.db", 0)
    for field, table in TABLES.items():
        names = {name for one in getattr(rows, field) for name in one}
        assert names <= set(schema.columns(conn, table)), table
        assert names or field in ("spans", "policies")


def test_all_of_it_can_be_written_and_read_back(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "traces.db", ManualClock())
    sink.write([rendered(exchange())])
    sink.close()
    assert sink.refused == 0
    conn = open_reader(tmp_path / "traces.db")
    kept = {one["kind"]: one["text"] for one in conn.execute("SELECT kind, text FROM v_payloads")}
    assert kept == {"request": BODY.replace(KEY, b"[secret]").decode(), "response": ANSWER.decode()}
    assert [one["name"] for one in conn.execute("SELECT name FROM spans ORDER BY started_at, name")] == [
        "policy", "connect", "provider.first_token",
    ]  # fmt: skip
    conn.close()


# -- money and usage


def test_a_retried_call_costs_what_all_its_attempts_cost() -> None:
    x = exchange()
    broken = reading(Usage(1000, 20), usage_final=False)
    x.attempts = [attempt(1, broken, status=200, error_type="reset"), attempt(2, x.reading, status=200, wait_s=0.25)]
    rows = rendered(x)
    assert [one["cost_nanousd"] for one in rows.attempts] == [2_700_000, GPT4O_NANOUSD]
    (one,) = rows.exchanges
    assert (one["attempts"], one["cost_nanousd"], one["input_tokens"], one["output_tokens"]) == (
        2,
        9_950_000,
        2000,
        520,
    )
    assert one["usage_source"] == "reported_partial"
    assert one["gateway_ms"] == 850.0


def test_an_attempt_without_usage_costs_nothing_that_anybody_knows() -> None:
    x = exchange()
    x.attempts = [attempt(1, status=429, error_type="429", detail="slow down"), attempt(2, x.reading, status=200)]
    rows = rendered(x)
    assert [one["cost_nanousd"] for one in rows.attempts] == [None, GPT4O_NANOUSD]
    assert [one["usage_source"] for one in rows.attempts] == ["none", "reported"]
    assert rows.attempts[0]["error_detail"] == "slow down"
    assert rows.exchanges[0]["cost_nanousd"] == GPT4O_NANOUSD


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    x = exchange()
    x.attempts = [attempt(1, reading(Usage(10, 10), "no-such-model")), attempt(2, x.reading)]
    x.request = Request(model="no-such-model")
    assert row(x)["cost_nanousd"] is None


def test_an_unknown_model_has_no_cost_and_says_why() -> None:
    x = exchange(reading=reading(Usage(10, 10), "no-such-model"), request=Request(model="no-such-model"))
    x.attempts = [attempt(1, x.reading)]
    one = row(x)
    assert (one["cost_nanousd"], one["price_version"]) == (None, None)
    assert one["price_detail"] == "openai has no known price for no-such-model, no-such-model"


def test_a_cache_hit_costs_nothing_and_saves_what_it_would_have_cost() -> None:
    one = row(exchange(source="cache", cache_status="HIT", attempts=[]))
    assert (one["cost_nanousd"], one["saved_nanousd"], one["attempts"]) == (0, GPT4O_NANOUSD, 0)
    assert (one["input_tokens"], one["output_tokens"], one["provider_name"]) == (1000, 500, "openai")


def test_a_refused_request_cost_nothing_and_knows_no_tokens() -> None:
    refusal = Refusal(429, "rate_limit", "Limit burst reached.", source="rate-limit", error_type="rate_limit")
    x = exchange(attempts=[], reading=Reading(), status=429, terminal="refused", error_type="rate_limit")
    x.refuse(refusal)
    one = row(x)
    assert (one["cost_nanousd"], one["saved_nanousd"], one["price_version"]) == (0, None, None)
    assert (one["input_tokens"], one["usage_source"], one["source"]) == (None, "none", "rate-limit")
    assert one["error_detail"] == "Limit burst reached."


def test_a_failed_request_has_no_status_and_no_cost() -> None:
    x = exchange(status=None, reading=Reading(), terminal="failed", error_type="connect")
    x.attempts = [attempt(1, error_type="connect", detail="connection refused")]
    one = row(x)
    assert (one["status_code"], one["cost_nanousd"], one["error_detail"]) == (None, None, "connection refused")


def test_custom_cost_prices_the_row() -> None:
    one = row(exchange(controls={"custom-cost": {"per_token_in": 0.001, "per_token_out": 0.002}}))
    assert (one["cost_nanousd"], one["price_version"]) == (2_000_000_000, "custom")


def test_the_providers_own_figure_stands_beside_ours() -> None:
    x = exchange(reading=reading(replace(GPT4O, cost_reported_usd=0.0071)))
    x.attempts = [attempt(1, x.reading)]
    assert (row(x)["cost_reported_nanousd"], row(x)["cost_nanousd"]) == (7_100_000, GPT4O_NANOUSD)


def test_a_fallback_is_priced_where_it_was_answered() -> None:
    x = exchange(reading=reading(Usage(1000, 0), "claude-sonnet-4-5"))
    x.attempts = [attempt(1, status=503), attempt(2, x.reading, provider_name="anthropic", host="api.anthropic.com")]
    one = row(x)
    assert (one["provider_name"], one["cost_nanousd"]) == ("anthropic", 3_000_000)


def test_counts_that_nobody_reported_are_estimates() -> None:
    x = exchange(reading=Reading(usage=GPT4O, estimated=True, response_model="gpt-4o"))
    x.attempts = [attempt(1, x.reading)]
    one = row(x)
    assert (one["usage_source"], one["input_tokens"], one["cost_nanousd"]) == ("estimated", 1000, GPT4O_NANOUSD)


@pytest.mark.parametrize(
    ("sources", "source"),
    [
        ([], "none"),
        (["reported", "reported"], "reported"),
        (["reported", "reported_partial"], "reported_partial"),
        (["estimated", "reported_partial"], "estimated"),
    ],
)
def test_a_sum_is_as_sure_as_its_least_sure_part(sources: list[str], source: str) -> None:
    assert weakest(sources) == source


def test_a_count_beyond_all_reason_is_unknown() -> None:
    x = exchange(reading=reading(Usage(10**30, 5)))
    x.attempts = [attempt(1, x.reading)]
    rows = rendered(x)
    assert (rows.exchanges[0]["input_tokens"], rows.exchanges[0]["cost_nanousd"]) == (None, None)
    assert (rows.attempts[0]["input_tokens"], rows.attempts[0]["cost_nanousd"]) == (None, None)


# -- times


def test_the_gateways_own_time_leaves_out_provider_and_waits() -> None:
    x = exchange(started=100.0, ended=110.0, waited_s=6.0)
    x.attempts = [attempt(1), attempt(2, wait_s=1.5), attempt(3, wait_s=2.0)]
    assert gateway_ms(x) == 500.0
    assert gateway_ms(exchange(ended=None)) is None
    assert gateway_ms(exchange(waited_s=99.0)) == 0.0


# -- bodies


@pytest.mark.parametrize(
    ("payloads", "kept"),
    [
        ("full", {"request": BODY, "response": ANSWER}),
        ("redacted", {"request": BODY.replace(KEY, b"[secret]"), "response": ANSWER}),
        ("none", {}),
    ],
)
def test_bodies_are_kept_as_the_policy_says(payloads: str, kept: dict[str, bytes]) -> None:
    policy = Policy(trace=Trace(payloads=payloads))  # type: ignore[arg-type]
    rows = rendered(exchange(), policy)
    assert {one["kind"]: str(one["body"]).encode() for one in rows.payloads} == kept
    assert rows.exchanges[0]["request_sha256"] == sha256(BODY).hexdigest()


def test_the_bodies_of_a_cache_hit_are_masked_each_time() -> None:
    policy = Policy(trace=Trace(payloads="redacted"))
    for _ in range(2):
        rows = rendered(exchange(source="cache", attempts=[]), policy)
        kept = {one["kind"]: str(one["body"]).encode() for one in rows.payloads}
        assert kept == {"request": BODY.replace(KEY, b"[secret]"), "response": ANSWER}


def test_a_request_may_ask_to_keep_no_bodies() -> None:
    rows = rendered(exchange(keep_payload=False))
    assert rows.payloads == []
    assert rows.exchanges[0]["request_sha256"] == sha256(BODY).hexdigest()


def test_a_changed_request_is_kept_both_ways() -> None:
    sent = BODY.replace(b"{", b'{"stream_options": {}, ', 1)
    rows = rendered(exchange(sent_body=sent))
    assert [one["kind"] for one in rows.payloads] == ["request", "sent", "response"]
    assert rows.exchanges[0]["sent_sha256"] == sha256(sent).hexdigest()


def test_a_request_sent_as_it_came_is_kept_once() -> None:
    rows = rendered(exchange(sent_body=bytes(BODY)))
    assert [one["kind"] for one in rows.payloads] == ["request", "response"]
    assert rows.exchanges[0]["sent_sha256"] is None


def test_a_streamed_upload_has_no_hash_and_no_body() -> None:
    rows = rendered(exchange(body=None, streamed_upload=True))
    assert [one["kind"] for one in rows.payloads] == ["response"]
    assert rows.exchanges[0]["request_sha256"] is None


def test_a_payload_says_what_it_is() -> None:
    request, response = rendered(exchange(answer=Answer(kept=bytearray(ANSWER), kept_whole=False))).payloads
    masked = BODY.replace(KEY, b"[secret]")
    assert request == {
        "exchange_id": ID, "kind": "request", "content_type": "application/json", "encoding": "identity",
        "bytes": len(masked), "body": masked.decode(), "whole": 1,
    }  # fmt: skip
    assert (response["bytes"], response["whole"]) == (len(ANSWER), 0)


def test_a_compressed_request_is_kept_plain_and_without_its_secrets() -> None:
    x = exchange(body=gzip.compress(BODY))
    x.headers["content-encoding"] = "gzip"
    request = rendered(x).payloads[0]
    assert str(request["body"]).encode() == BODY.replace(KEY, b"[secret]")


def test_a_request_in_an_unknown_coding_is_not_kept_since_no_secret_could_be_found() -> None:
    x = exchange(body=b"\x01\x02")
    x.headers["content-encoding"] = "secret-coding"
    request = rendered(x).payloads[0]
    assert (request["body"], request["whole"]) == ("", 0)


def test_an_overlong_request_is_cut_and_marked() -> None:
    request = rendered(exchange(body=b"a" * (5 * 2**20))).payloads[0]
    assert (request["bytes"], request["whole"]) == (4 * 2**20, 0)


def test_a_record_that_sheds_its_bodies_keeps_its_hashes() -> None:
    record = snapshot(exchange(sent_body=b"{}"), POLICY, PRICES)
    before = record.size
    freed = record.shed()
    assert freed == len(BODY) + len(ANSWER) + 2
    assert record.size == before - freed
    rows = record.render()
    assert rows.payloads == []
    assert rows.exchanges[0]["request_sha256"] == sha256(BODY).hexdigest()
    assert rows.exchanges[0]["sent_sha256"] == sha256(b"{}").hexdigest()


def test_a_snapshot_holds_neither_the_exchange_nor_its_flow() -> None:
    x = exchange(flow=object())
    record = snapshot(x, POLICY, PRICES)
    seen = [getattr(record, name) for name in Record.__slots__]
    assert not any(value is x or value is x.flow for value in seen)
    x.tenant, x.status = "changed", 500
    x.attempts.clear()
    x.events.append(Event("late", "late", "flag"))
    rows = record.render()
    assert (rows.exchanges[0]["tenant"], rows.exchanges[0]["status_code"]) == (None, 200)
    assert (len(rows.attempts), rows.policy_events) == (1, [])


# -- what strangers write


def test_secrets_in_paths_details_and_tags_are_masked() -> None:
    x = exchange(path="/v1beta/models/g:generateContent?key=abc", metadata={"note": KEY.decode()})
    x.attempts = [attempt(1, x.reading, detail=f"Incorrect API key provided: {KEY.decode()}")]
    x.events = [Event("guard", "no-secrets", "flag", detail=f"found {KEY.decode()}")]
    rows = rendered(x)
    assert rows.exchanges[0]["path"] == "/v1beta/models/g:generateContent?key=[secret]"
    assert KEY.decode() not in repr(rows)


@pytest.mark.parametrize("field", ["tenant", "user", "session", "route"])
def test_texts_are_cut_and_made_storable(field: str) -> None:
    column = "session_id" if field == "session" else field
    assert row(exchange(**{field: "a" * 5000}))[column] == "a" * 256
    assert row(exchange(**{field: "caf\udce9"}))[column] == "caf?"


def test_an_endless_user_agent_is_cut() -> None:
    x = exchange()
    x.headers["user-agent"] = "a" * 5000
    assert row(x)["user_agent"] == "a" * 256


def test_hostile_values_are_data_and_nothing_else(tmp_path: Path) -> None:
    hostile = "'); DROP TABLE exchanges; --\n<script>"
    sink = Sink(tmp_path / "traces.db", ManualClock())
    sink.write([rendered(exchange(tenant=hostile, request=Request(model=hostile)))])
    sink.close()
    conn = sqlite3.connect(tmp_path / "traces.db")
    assert conn.execute("SELECT tenant, request_model FROM exchanges").fetchall() == [(hostile, hostile)]
    conn.close()


# -- events and feedback


def test_each_rule_that_acted_is_an_event() -> None:
    events = [Event("limit", "burst", "refuse", detail="60 of 60"), Event("guard", "pii", "redact", shadow=True)]
    assert rendered(exchange(events=events)).policy_events == [
        {
            "exchange_id": ID, "at": "2025-11-24T16:00:00.123Z", "room": "limit", "rule": "burst", "action": "refuse",
            "shadow": 0, "detail": "60 of 60",
        },
        {
            "exchange_id": ID, "at": "2025-11-24T16:00:00.123Z", "room": "guard", "rule": "pii", "action": "redact",
            "shadow": 1, "detail": None,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "status", "terminal", "interrupted"),
    [
        (True, 200, "truncated", True),
        (True, 200, "client_abort", True),
        (True, 200, "timeout", True),
        (True, 200, "error_event", True),
        (True, 200, "complete", False),
        (True, None, "client_abort", False),
        (False, 200, "truncated", False),
    ],
)
def test_a_stream_that_broke_off_is_told_as_feedback(
    stream: bool, status: int | None, terminal: str, interrupted: bool
) -> None:
    feedback = rendered(exchange(request=Request("gpt-4o", stream), status=status, terminal=terminal)).feedback
    assert [(one["kind"], one["value"], one["source"]) for one in feedback] == (
        [("stream_interrupted", terminal, "gateway")] if interrupted else []
    )


def test_lists_are_json_also_where_they_are_empty() -> None:
    x = exchange(reading=reading(GPT4O, finish_reasons=[]), notes=["no rule could read it"])
    x.attempts = [attempt(1, x.reading)]
    one = row(x)
    assert (one["finish_reasons"], one["metadata"]) == ("[]", "{}")
    assert json.loads(str(one["notes"])) == ["no rule could read it"]
