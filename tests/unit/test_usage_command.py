"""``mitmgate usage``: recorded answers in, rows out."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli.usage import Case, cell, load, pieces, usage
from support.readings import stream

KEYS = [
    "id",
    "response_model",
    "response_id",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "reasoning_output_tokens",
    "finish_reasons",
    "tool_calls",
    "usage_source",
    "terminal",
    "error_type",
]
USAGE = {"prompt_tokens": 1234, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}}
ANSWER = stream(
    {"id": "c1", "model": "gpt-x", "choices": [{"index": 0, "delta": {"content": "hé"}, "finish_reason": "stop"}]},
    {"id": "c1", "model": "gpt-x", "choices": [], "usage": USAGE},
    done=True,
)


def write(folder: Path, body: bytes = ANSWER, **changes: Any) -> Path:
    """Write a case; *changes* stand over its members."""
    case = {
        "id": folder.name,
        "host": "api.openai.com",
        "method": "POST",
        "path": "/v1/chat/completions",
        "request_body": {"model": "gpt-x", "stream": True},
        "response_status": 200,
        "response_headers": {"Content-Type": "text/event-stream"},
        "stream": True,
        "expected": {"input_tokens": 999_999},
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "body.bin").write_bytes(body)
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(usage, [str(arg) for arg in args])


def rows(*args: object) -> list[dict[str, Any]]:
    result = run("--json", *args)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


@pytest.mark.parametrize("cut", [[], ["--cut", 1], ["--cut", 7]])
def test_a_case_is_one_line_with_every_key(tmp_path: Path, cut: list[object]) -> None:
    (row,) = rows(*cut, write(tmp_path / "one"))
    assert list(row) == KEYS
    assert row == {
        "id": "one",
        "response_model": "gpt-x",
        "response_id": "c1",
        "input_tokens": 1234,
        "output_tokens": 3,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": None,
        "reasoning_output_tokens": None,
        "finish_reasons": ["stop"],
        "tool_calls": 0,
        "usage_source": "reported",
        "terminal": "complete",
        "error_type": None,
    }


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/3", "a/1"):
        write(tmp_path / name)
    assert [row["id"] for row in rows(tmp_path)] == ["1", "3", "2"]
    assert [row["id"] for row in rows(tmp_path / "b", tmp_path / "a" / "3")] == ["2", "3"]


def test_missing_counts_stay_null_rather_than_estimated(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "one", stream({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]})))
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (None, None, "none")


@pytest.mark.parametrize(
    ("changes", "terminal", "error_type"),
    [
        ({"body": ANSWER[:60]}, "truncated", None),
        ({"body": b'data: {"error":{"code":"slow_down"}}\n\n'}, "error_event", "error_event:rate_limit"),
        ({"body": b'{"error":{"code":"invalid_api_key"}}', "response_status": 401}, "complete", "authentication"),
        ({"method": "GET", "path": "/v1/models", "body": b"{}"}, "complete", None),
        ({"host": "localhost:8080"}, "complete", None),
        ({"host": "localhost:11434", "path": "/api/chat", "body": b'{"done":true}'}, "complete", None),
        ({"response_headers": {}, "request_body": None}, "complete", None),
    ],
)
def test_terminal_and_error_type(
    tmp_path: Path, changes: dict[str, Any], terminal: str, error_type: str | None
) -> None:
    (row,) = rows(write(tmp_path / "one", **changes))
    assert (row["terminal"], row["error_type"]) == (terminal, error_type)


def test_without_json_a_table(tmp_path: Path) -> None:
    write(tmp_path / "one")
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "terminal" in result.output
    assert "1,234" in result.output


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "·"), (0, "0"), (1234567, "1,234,567"), (["a", "b"], "a b"), ("x", "x")]
)
def test_unknown_and_zero_look_different(value: Any, shown: str) -> None:
    assert cell(value) == shown


def test_a_folder_without_cases_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "give a folder that has case.json and body.bin, or one above such folders" in result.output


@pytest.mark.parametrize(
    "content", ["", "[]", '{"host": "x"}', '{"host": "x:y", "path": "/"}', '{"path": "/", "host": 1}']
)
def test_a_case_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "case.json").write_text(content)
    result = run(tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path}: no readable case" in result.output


def test_what_somebody_expects_of_a_case_is_not_even_loaded(tmp_path: Path) -> None:
    assert isinstance(load(write(tmp_path / "one")), Case)
    assert not hasattr(Case, "expected")


def test_help_has_examples() -> None:
    assert "mitmgate usage --json --cut 1 cases/" in run("--help").output


@pytest.mark.parametrize(
    ("body", "cut", "expected"), [(b"", None, []), (b"abc", None, [b"abc"]), (b"abc", 2, [b"ab", b"c"])]
)
def test_pieces(body: bytes, cut: int | None, expected: list[bytes]) -> None:
    assert list(pieces(body, cut)) == expected
