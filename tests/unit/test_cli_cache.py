"""``mitmgate cache`` lists, shows and purges what is kept, beside running gateways and without one."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli.cache import cache, size, span
from mitmgate.clock import SystemClock, iso
from mitmgate.store.answers import AnswerStore
from support.kept_answers import entry, key

HOUR = 3600.0


@pytest.fixture
def now() -> float:
    return SystemClock().wall()


@pytest.fixture
def home(tmp_path: Path, now: float) -> Path:
    """A home with three answers: a fresh one, a day old one that is stale, one to a stranger's model."""
    store = AnswerStore(tmp_path / "cache.db", 2**30, SystemClock())
    store.open()
    store.put(entry(1, stored_at=now - 90, ttl_s=2 * HOUR))
    store.put(entry(2, stored_at=now - 24 * HOUR, ttl_s=HOUR, stale_s=72 * HOUR, tenant="globex", route=None))
    store.put(entry(3, stored_at=now - 60, ttl_s=HOUR, model="evil\x1b[31m[bold]", rule="header"))
    store.peek(key(1))
    store.close()
    return tmp_path


def run(home: Path, *args: str, columns: int = 120) -> Result:
    return CliRunner().invoke(cache, [*args, "--home", str(home)], env={"COLUMNS": str(columns)})


def done(home: Path, *args: str) -> str:
    result = run(home, *args)
    assert result.exit_code == 0, result.output
    return result.output


def said(home: Path, *args: str) -> Any:
    return json.loads(done(home, *args, "--json"))


def keys(home: Path) -> list[str]:
    with closing(sqlite3.connect(home / "cache.db")) as conn:
        return [row[0] for row in conn.execute("SELECT key FROM entries ORDER BY key")]


# -- ls ---------------------------------------------------------------------------------------------------------------


def test_a_list_says_what_is_kept_for_whom_and_how_long(home: Path) -> None:
    lines = [line.split() for line in done(home, "ls").splitlines()]
    assert lines[0] == ["key", "age", "expires", "size", "hits", "model", "tenant", "route", "rule"]
    assert lines[1][:2] + lines[1][-4:] == ["000300000000", "1m", "evil␛[31m[bold]", "acme", "chat", "header"]
    assert lines[2][:3] + lines[2][5:] == ["000100000000", "1.5m", "2h", "1", "gpt-4o", "acme", "chat", "faq"]
    assert lines[3][:3] + lines[3][5:] == ["000200000000", "1d", "stale", "0", "gpt-4o", "globex", "–", "faq"]
    assert lines[-1][:2] == ["3", "answers,"]


def test_a_list_that_is_cut_says_so(home: Path) -> None:
    lines = done(home, "ls", "--rows", "2").splitlines()
    assert len([line for line in lines if line.startswith("000")]) == 2
    assert lines[-2].startswith("3 answers, ")
    assert lines[-1] == "1 more; --rows 0 prints all"


def test_a_list_for_machines_has_every_column(home: Path, now: float) -> None:
    listed = said(home, "ls", "--tenant", "globex")
    (found,) = listed["answers"]
    assert listed["entries"] == 1
    assert listed["bytes"] == found["bytes"] > 0
    assert found["stored_at"] == iso(now - 24 * HOUR)
    assert found["expires_at"] == iso(now - 23 * HOUR)
    assert (found["key"], found["tenant"], found["route"], found["hits"]) == (key(2), "globex", None, 0)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--tenant", "acme"], [1, 3]),
        (["--tenant", "acme", "--model", "gpt-*"], [1]),
        (["--tenant", "acme", "--tenant", "globex"], [1, 2, 3]),
        (["--route", "chat"], [1, 3]),
        (["--key", "0002"], [2]),
        (["--key", key(3).upper()], [3]),
        (["--older-than", "1h"], [2]),
        (["--older-than", "75s"], [1, 2]),
        (["--older-than", "2000-01-01"], []),
    ],
)
def test_options_choose_answers(home: Path, options: list[str], found: list[int]) -> None:
    assert sorted(one["key"] for one in said(home, "ls", *options)["answers"]) == [key(n) for n in found]


def test_an_empty_list_says_so(home: Path) -> None:
    assert done(home, "ls", "--tenant", "nobody") == "No kept answer matches; loosen an option.\n"
    done(home, "purge", "--all")
    assert done(home, "ls") == "No answer is kept.\n"


# -- show -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_shown_with_its_facts_its_head_and_what_it_says(home: Path) -> None:
    text = done(home, "show", "0001")
    assert text.startswith(key(1))
    assert "  asked by     tenant acme, route chat\n" in text
    assert "  answered by  openai (api.openai.com), gpt-4o-2024-08-06\n" in text
    assert "  tokens       12 in, 3 out\n" in text
    assert "  finish       stop\n" in text
    assert "3 pieces over 90 ms\n" in text
    assert "  x-request-id: req_1\n" in text
    assert "[assistant]\nHéllo\n" in text


def test_what_a_stranger_wrote_cannot_act(home: Path) -> None:
    assert "\x1b" not in done(home, "show", "0003") + done(home, "ls")


def test_an_answer_for_machines_has_its_body_and_its_usage(home: Path) -> None:
    found = said(home, "show", key(1))
    assert found["key"] == key(1)
    assert found["body"] == entry(1).body.decode()
    assert found["pieces"] == [[at_ms, len(piece)] for at_ms, piece in entry(1).pieces]
    assert found["reading"]["usage"]["input_tokens"] == 12
    assert ["x-request-id", "req_1"] in found["headers"]


# -- purge ------------------------------------------------------------------------------------------------------------


def test_a_purge_says_how_much_went(home: Path) -> None:
    listed = said(home, "ls", "--tenant", "acme")
    assert done(home, "purge", "--tenant", "acme") == f"purged 2 answers, {size(listed['bytes'])}\n"
    assert keys(home) == [key(2)]
    assert said(home, "purge", "--all")["entries"] == 1
    assert keys(home) == []
    assert said(home, "purge", "--all") == {"entries": 0, "bytes": 0}


def test_a_purge_is_heard_by_a_running_gateway(home: Path) -> None:
    store = AnswerStore(home / "cache.db", 2**30, SystemClock())
    store.open()
    store.put(entry(7, stored_at=SystemClock().wall()))
    assert store.flush(10)
    done(home, "purge", "--key", "0007")
    assert store.peek(key(7)) is None
    store.close()


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["purge"], 2, "say which answers: --tenant, --model, --route, --key, --older-than, or --all"),
        (["purge", "--all", "--tenant", "acme"], 2, "--all leaves nothing to choose"),
        (["purge", "--key", "xyz"], 2, "'xyz' is no key: up to 64 hex digits"),
        (["purge", "--older-than", "soon"], 2, "--older-than: 'soon' is no time"),
        (["show", "../etc"], 2, "'../etc' is no key"),
        (["show", "ffff"], 1, "no answer is kept whose key begins with ffff"),
        (["show", "000"], 1, "several keys begin with 000; give more digits"),
    ],
)
def test_mistakes_are_sentences_that_say_what_to_do(home: Path, args: list[str], code: int, sentence: str) -> None:
    result = run(home, *args)
    assert result.exit_code == code
    assert sentence in " ".join(result.output.split())
    assert len(keys(home)) == 3


def test_without_a_cache_it_says_what_makes_one(tmp_path: Path) -> None:
    result = run(tmp_path, "ls")
    assert result.exit_code == 1
    assert "there is no answer cache at" in result.output
    assert "cf-aig-cache-ttl" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["ls"], ["purge", "--all"]])
def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "cache.db").write_bytes(b"no database" * 100)
    result = run(tmp_path, *args)
    assert result.exit_code == 1
    assert "is no usable database" in result.output
    (tmp_path / "cache.db").unlink()
    with closing(sqlite3.connect(tmp_path / "cache.db")) as conn:
        conn.execute("CREATE TABLE entries (theirs)")
    result = run(tmp_path, *args)
    assert result.exit_code == 1
    assert "is a database of another program" in result.output


def test_the_cache_lies_beside_the_database_that_is_named(home: Path, tmp_path: Path) -> None:
    other = CliRunner().invoke(cache, ["ls", "--home", str(tmp_path / "x"), "--db", str(home / "traces.db"), "--json"])
    assert json.loads(other.output)["entries"] == 3


# -- how things look --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (60, "1m"),
        (90, "1.5m"),
        (720, "12m"),
        (3600, "1h"),
        (12600, "3.5h"),
        (86400 * 29, "29d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4200, "4.1 KiB"), (2**31, "2.0 GiB")]
)
def test_sizes(n: int, text: str) -> None:
    assert size(n) == text
