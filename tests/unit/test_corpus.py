"""Recorded answers of real providers are booked as an independent reader expects, whatever their cut.

The recordings lie beside the checkout and are not part of it; without them these tests are skipped.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli.usage import folders_of, load, row_of
from mitmgate.dialects import sse
from mitmgate.providers import Hosts

CASES = Path(__file__).parents[3] / "shared" / "corpus" / "cases"
COUNTERS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_input_tokens": "cache_read_input_tokens",
    "cache_write_tokens": "cache_creation_input_tokens",
    "reasoning_tokens": "reasoning_output_tokens",
}
FACTS = ("response_model", "response_id", "finish_reasons", "tool_calls")
CUTS = [None, 7, 1]
HOSTS = Hosts()
FOLDERS = folders_of(CASES) if CASES.is_dir() else []

pytestmark = pytest.mark.skipif(not FOLDERS, reason="the recorded answers are not here")


@cache
def described(folder: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / "case.json").read_bytes())
    return described


@cache
def row(folder: Path, cut: int | None) -> dict[str, Any]:
    return row_of(load(folder), cut, HOSTS)


ALL = [pytest.param(folder, id=folder.name) for folder in FOLDERS]


@pytest.mark.parametrize("folder", ALL)
def test_booked_as_expected(folder: Path) -> None:
    expected = described(folder)["expected"]
    booked = row(folder, None)
    also = expected.get("also_defensible", {})
    for name, key in COUNTERS.items():
        assert booked[key] in (expected[name], *also.get(name, ())), name
    for key in FACTS:
        assert booked[key] == expected[key], key


@pytest.mark.parametrize("folder", ALL)
def test_failures_are_told_and_nothing_else_is(folder: Path) -> None:
    case = described(folder)
    expected, booked = case["expected"], row(folder, None)
    failed = case["mode"] == "err" or "stream_error" in expected or expected.get("prompt_block_reason")
    assert (booked["error_type"] is not None) == bool(failed)
    assert (booked["terminal"] == "error_event") == ("stream_error" in expected)
    counted = any(expected[name] is not None for name in COUNTERS)
    assert (booked["usage_source"] != "none") == counted


@pytest.mark.parametrize("folder", ALL)
def test_the_cut_cannot_matter(folder: Path) -> None:
    first = row(folder, None)
    for cut in CUTS[1:]:
        assert row(folder, cut) == first, cut


@pytest.mark.parametrize("folder", ALL)
def test_events_that_are_reduced_book_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse.Parser.__init__, "__defaults__", (600,))
    assert row_of(load(folder), None, HOSTS) == row(folder, None)


@pytest.mark.parametrize("folder", ALL)
def test_an_answer_that_breaks_off_anywhere_books_no_more_than_the_whole(folder: Path) -> None:
    case, whole = load(folder), row(folder, None)
    for share in (0.3, 0.6, 0.9):
        part = row_of(replace(case, body=case.body[: int(len(case.body) * share)]), None, HOSTS)
        assert part["tool_calls"] <= whole["tool_calls"]
        assert part["response_id"] in (whole["response_id"], None)
        assert part["terminal"] != "failed"
