"""``mitmgate show`` tells all there is about one exchange, and what a stranger wrote in it cannot act."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli import conversation
from mitmgate.cli.show import GROUPS, Phase, answering, phases, show, since, waterfall
from mitmgate.store.rows import Row, Rows
from support.sample_traces import START, at, attempt, call, database, event, feedback, id_of, insert, rows_of

PROMPT = {
    "model": "gpt-4o",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}],
}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
}


def payload(kind: str, body: object, of: int = 1, **columns: Any) -> Row:
    text = body if isinstance(body, str) else json.dumps(body)
    row: Row = {"exchange_id": id_of(of), "kind": kind, "content_type": "application/json", "encoding": "identity"}
    return {**row, "bytes": len(text.encode()), "body": text, **columns}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Call 1 was retried after a busy provider; call 2 is an ordinary one."""
    tries = [
        attempt(1, 1, status_code=503, error_type="overloaded", first_byte_ms=300.0, duration_ms=310.0,
                cost_nanousd=None, connect_ms=20.0, reused_connection=0, error_detail="the provider is [busy]"),
        attempt(2, 1, wait_ms=500.0, first_byte_ms=100.0, duration_ms=190.0, started_at=at(1 + 0.81 / 60)),
        attempt(1, 2),
    ]  # fmt: skip
    calls = [call(1, attempts=2, duration_ms=1000.0, stream=1, streamed=1, metadata='{"feature": "chat"}'), call(2)]
    path = database(tmp_path / "traces.db", rows_of(*calls, attempts=tries))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "policy_events", [event(1, detail="waited 500 ms after 503")])
        insert(conn, "feedback", [feedback(1, value=-1, at=at(2))])
        insert(conn, "payloads", [payload("request", PROMPT), payload("response", ANSWER)])
    return path


def run(path: Path, *args: str, columns: int = 100) -> Result:
    home = str(path.parent / "home")
    return CliRunner().invoke(show, ["--home", home, "--db", str(path), *args], env={"COLUMNS": str(columns)})


def shown(path: Path, *args: str, columns: int = 100) -> str:
    result = run(path, *args, columns=columns)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_column_is_there_with_its_value_or_among_the_nulls(path: Path) -> None:
    text = shown(path, id_of(1))
    with closing(sqlite3.connect(path)) as conn:
        names = [column[1] for column in conn.execute("PRAGMA table_info(exchanges)")]
    words = set(text.replace(",", " ").split())
    assert [name for name in names if name not in words and name != "id"] == []
    assert "  cost_nanousd                    $0.00100  (1,000,000 nano-dollars)\n" in text
    assert "  duration_ms                     1,000 ms\n" in text


def test_the_groups_name_only_columns_that_there_are(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        names = {column[1] for column in conn.execute("PRAGMA table_info(exchanges)")}
    assert [name for group in GROUPS.values() for name in group if name not in names] == []


def test_the_first_lines_say_what_became_of_it(path: Path) -> None:
    first, second = shown(path, id_of(1)).splitlines()[:2]
    assert first == id_of(1)
    assert second == (
        "200 complete · openai/gpt-4o-2024-08-06 · tenant acme · 1,000 ms · 2 attempts"
        " · 100 → 20 tokens · cost $0.00100"
    )


def test_a_hit_says_that_it_is_one_what_it_saved_and_which_answer_it_was(tmp_path: Path) -> None:
    note = '["cache: answer 3fa9c1d2e3f4, 12 s old"]'
    row = call(1, attempts=0, source="cache", cache_status="HIT", cost_nanousd=0, saved_nanousd=1_000_000, notes=note)
    text = shown(database(tmp_path / "t.db", rows_of(row)), "last")
    assert text.splitlines()[1].endswith("100 ms · HIT · 100 → 20 tokens · cost $0, saved $0.00100")
    assert "answer 3fa9c1d2e3f4, 12 s old" in text


def test_attempts_events_and_feedback_are_tables(path: Path) -> None:
    text = shown(path, id_of(1), columns=140)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 openai api.openai.com 503 overloaded 0 20 300 310 0 100 20 –" in rows
    assert "2* openai api.openai.com 200 – 500 – 100 190 1 100 20 0.00100" in rows
    assert "* gave the answer" in rows
    assert "  1: the provider is [busy]" in text
    assert "09:01:00.000 retry default retry 0 waited 500 ms after 503" in rows
    assert "09:02:00.000 thumbs -1 app" in rows


WELL: Row = {"n": 1, "error_type": None}
BUSY: Row = {"n": 2, "error_type": "rate_limit"}
BROKEN: Row = {"n": 2, "error_type": "reset"}
ENDED: Row = {"n": 3, "error_type": "cancelled"}


@pytest.mark.parametrize(
    ("source", "attempts", "answered"),
    [
        ("provider", [BUSY, WELL], WELL),
        ("provider", [WELL, ENDED], WELL),
        ("provider", [ENDED, WELL], WELL),
        ("provider", [BROKEN, BUSY], BUSY),
        ("provider", [BROKEN, ENDED], BROKEN),
        ("gateway", [BROKEN, BROKEN], None),
        ("cache", [BUSY, BUSY], None),
        ("provider", [], None),
    ],
    ids=[
        "after a retry",
        "the first of two at once",
        "the second of two at once",
        "the provider's last word",
        "a stream that was cut",
        "an error of ours",
        "an old answer instead",
        "none",
    ],
)
def test_the_attempt_that_answered_is_told_apart(source: str, attempts: list[Row], answered: Row | None) -> None:
    assert answering({"source": source}, attempts) is answered


@pytest.mark.parametrize("columns", [70, 80, 200])
def test_it_fits_the_terminal(path: Path, columns: int) -> None:
    lines = shown(path, id_of(1), "--no-prompt", columns=columns).splitlines()
    assert max(len(line) for line in lines[2:]) <= columns


def test_a_narrow_terminal_gives_up_the_least_of_the_attempts_columns(path: Path) -> None:
    headings = [line.split() for line in shown(path, id_of(1), columns=70).splitlines() if line.startswith(" n ")]
    assert headings == [["n", "provider", "status", "error", "wait", "ms", "first", "byte", "all", "cost", "$"]]


def test_the_waterfall_has_each_phase_where_it_was(path: Path) -> None:
    lines = shown(path, id_of(1)).splitlines()
    start = lines.index("where 1,000 ms went") + 1
    names = [line.split("  ")[1].strip() for line in lines[start : start + 7]]
    assert names == [
        "policy",
        "connect",
        "provider.first_token api.openai.com",
        "provider.stream api.openai.com",
        "wait",
        "provider.first_token api.openai.com",
        "provider.stream api.openai.com",
    ]


def test_a_bar_begins_and_ends_where_its_phase_does() -> None:
    found = [Phase("a", 0.0, 500.0), Phase("b", 500.0, 500.0), Phase("c", 990.0, 1.0), Phase("d", 250.0, 0.0)]
    assert [line.removeprefix("  ") for line in waterfall(found, 1000.0, 8, ascii_only=False)] == [
        "a  ████      500 ms",
        "b      ████  500 ms",
        "c         ▏  1.0 ms",
        "d    .       0 ms",
    ]


def test_phases_longer_than_the_row_says_stretch_the_line_instead_of_leaving_it() -> None:
    (row,) = waterfall([Phase("tool", 0.0, 4000.0)], 1000.0, 8, ascii_only=False)
    assert row == "  tool  ████████  4,000 ms"


def test_a_span_without_a_duration_still_has_its_place() -> None:
    row = call(1, minutes=0)
    spans = [{"name": "tool", "host": None, "started_at": at(0.001), "duration_ms": None}]
    assert phases(dict(row), spans) == [Phase("tool", 60.0, 0.0)]


def test_prompt_and_answer_are_a_conversation(path: Path) -> None:
    text = shown(path, id_of(1))
    assert "[system]\nBe brief.\n[user]\nHi?\n" in text
    assert "[assistant]\nHello.\n" in text


def test_the_prompt_can_be_left_out(path: Path) -> None:
    assert "Be brief." not in shown(path, id_of(1), "--no-prompt")
    assert json.loads(shown(path, id_of(1), "--no-prompt", "--json"))["payloads"] == []


def test_where_no_body_was_kept_it_says_so(path: Path) -> None:
    assert "not kept (policy: trace.payloads" in shown(path, id_of(2))


@pytest.mark.parametrize(
    ("body", "columns", "says"),
    [
        ("not JSON at all", {}, "not JSON at all"),
        ('{"model": "gpt-4o", "messages": [{"ro', {"whole": 0}, "only the first part was kept"),
        ("x" * 70_000, {}, "4,464 more characters; --json has them all"),
    ],
)
def test_a_body_that_is_no_conversation_is_shown_as_it_lies_there(
    path: Path, body: str, columns: dict[str, Any], says: str
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "payloads", [payload("request", body, of=2, **columns)])
    assert says in shown(path, id_of(2))


@pytest.mark.parametrize(
    ("columns", "role"),
    [
        ({"host": "eu.llm.internal", "path": "/v1/chat/completions", "provider_name": "house"}, "system"),
        ({"host": "proxy.internal", "path": "/v1/messages", "provider_name": "anthropic"}, "user"),
        ({"host": "10.0.0.7:8000", "path": "/v1/chat/completions", "provider_name": None}, "system"),
    ],
)
def test_a_host_of_the_policys_own_is_read_by_its_name_or_its_path(
    tmp_path: Path, columns: dict[str, Any], role: str
) -> None:
    path = database(tmp_path / "t.db", rows_of(call(1, **columns)))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "payloads", [payload("request", PROMPT)])
    assert f"[{role}]\n" in shown(path, "last")


def test_an_api_that_nobody_knows_is_shown_as_json(tmp_path: Path) -> None:
    row = call(1, host="llm.internal", path="/invoke", provider_name="house")
    path = database(tmp_path / "t.db", rows_of(row))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "payloads", [payload("request", {"text": "hi"})])
    assert '{\n  "text": "hi"\n}' in shown(path, "last")


def test_json_has_the_row_and_all_that_belongs_to_it(path: Path) -> None:
    found = json.loads(shown(path, id_of(1), "--json"))
    assert list(found) == ["exchange", "attempts", "spans", "events", "feedback", "payloads"]
    assert found["exchange"]["metadata"] == {"feature": "chat"}
    assert [row["error_type"] for row in found["attempts"]] == ["overloaded", None]
    assert json.loads(found["payloads"][0]["text"]) == PROMPT
    assert found["payloads"][0].keys() >= {"kind", "content_type", "bytes", "text"}


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("019e", f"beginning of several ids:\n  {id_of(1)}"),
        ("ffff", f"the newest are:\n  {id_of(2)}"),
        ("\x1b[31m", "no exchange begins with '\\x1b[31m'"),
    ],
)
def test_an_id_that_is_not_one_ends_with_a_sentence_and_code_1(path: Path, said: str, says: str) -> None:
    result = run(path, said)
    assert result.exit_code == 1
    assert says in result.stderr
    assert "\x1b" not in result.stderr


def test_an_empty_database_says_that_there_is_nothing_yet(tmp_path: Path) -> None:
    result = run(database(tmp_path / "t.db", Rows()), "last")
    assert result.exit_code == 1
    assert "no exchange yet" in result.stderr


def test_hostile_text_is_inert_wherever_it_stands(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07[bold]x[/bold]\u202e"
    names = (
        "tenant",
        "user",
        "route",
        "request_model",
        "response_model",
        "user_agent",
        "error_type",
        "session_id",
        "metadata",
    )
    columns: dict[str, Any] = dict.fromkeys(names, evil)
    row = call(1, **columns)
    tries = [attempt(1, 1, error_type=evil, error_detail=evil, target=evil, host=evil)]
    path = database(tmp_path / "t.db", rows_of(row, attempts=tries))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        insert(conn, "policy_events", [event(1, room=evil, rule=evil, action=evil, detail=evil)])
        insert(conn, "feedback", [feedback(1, kind=evil, comment=evil)])
        span: Row = {"exchange_id": id_of(1), "name": "tool", "started_at": at(1), "duration_ms": 5.0, "host": evil}
        insert(conn, "spans_stored", [span, span])
        messages = {"model": evil, "messages": [{"role": evil, "content": evil}]}
        insert(conn, "payloads", [
            payload("request", messages, content_type=evil), payload("response", evil, content_type=evil),
        ])  # fmt: skip
    text = shown(path, "last", columns=400)
    assert not any(c in text for c in "\x1b\x07\u202e")
    assert text.count("␛]0;owned␇[bold]x[/bold]\\u202e") >= 15
    assert "\x1b" not in shown(path, "last", "--json")


def test_long_turns_are_cut_for_the_screen() -> None:
    assert conversation.shortened("a" * conversation.MOST_CHARS) == "a" * conversation.MOST_CHARS
    assert conversation.shortened("a" * (conversation.MOST_CHARS + 1)).endswith(
        "a\n… 1 more characters; --json has them all"
    )


def test_times_count_from_the_start_of_the_exchange() -> None:
    assert since(at(0), at(0.5)) == 30_000.0
    assert since(START.isoformat(), None) == 0.0
