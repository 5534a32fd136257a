"""Requests that apps have really made are shaped, or left alone; none is broken.

The recordings lie beside the checkout and are not part of it; without them these tests are skipped.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mitmgate import dialects
from mitmgate.exchange import Exchange
from mitmgate.policy import loads
from mitmgate.providers import Hosts
from mitmgate.shape import GENERATES, Shape
from mitmgate.shape_summary import Summaries
from mitmgate.shape_turns import kind_of, talk_of

CASES = Path(__file__).parents[3] / "shared" / "corpus" / "cases"
HOSTS = Hosts()

THEN = ("{keep_last: 1}", "{max_output_tokens: 1}", "mark_cacheable", "dedupe")


@cache
def recorded(file: Path) -> Exchange | None:
    """Return the request in *file* as it stands before the room; None where it has no prompt."""
    case = json.loads(file.read_bytes())
    body, provider = case["request_body"], HOSTS.find(case["host"], 443)
    dialect = dialects.find(provider, case["method"], case["path"])
    if dialect is None or dialect.operation not in GENERATES or not isinstance(body, dict):
        return None
    x = Exchange("POST", "https", case["host"], 443, case["path"], [], {}, 0.0, 1_700_000_000.0)
    x.provider, x.dialect, x.operation, x.json = provider, dialect, dialect.operation, body
    x.body = json.dumps(body).encode()
    x.request = dialect.read_request(x.path, body)
    return x


def rounds_in(file: Path) -> int:
    x = recorded(file)
    talk = talk_of(x.dialect.name, x.path, x.json) if x and x.dialect else None
    return len(talk.rounds) if talk else 0


FILES = [file for file in sorted(CASES.glob("*/*/case.json")) if recorded(file)]

pytestmark = pytest.mark.skipif(not FILES, reason="the recorded requests are not here")


async def no_target(*_: Any) -> tuple[int, bytes]:
    raise AssertionError("no rule here asks anybody")


def shaped(file: Path, then: str) -> Exchange:
    recorded.cache_clear()
    x = recorded(file)
    assert x is not None
    policy = loads(f"shape: [{{name: try, then: {then}}}]", "policy.yaml", {})
    assert Shape(policy, no_target, Summaries(None)).admit(x) is None  # type: ignore[arg-type]
    return x


@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("file", [pytest.param(file, id=file.parent.name) for file in FILES])
def test_a_recorded_request_is_changed_as_its_event_says_or_not_at_all(file: Path, then: str) -> None:
    x = shaped(file, then)

    assert x.refusal is None
    if not x.events:
        assert x.native_body is None
        return
    assert json.loads(x.native_body or b"") == x.json != json.loads(x.body or b"")
    assert [f"shaped; rule={event.rule}" for event in x.events] == x.route_notes


@pytest.mark.parametrize("file", [pytest.param(file, id=file.parent.name) for file in FILES if rounds_in(file) > 1])
def test_of_a_recorded_conversation_the_last_round_is_left(file: Path) -> None:
    x = shaped(file, "{keep_last: 1}")
    before, after = (talk_of(x.dialect.name, x.path, body) for body in (json.loads(x.body or b""), x.json) if x.dialect)
    assert before is not None
    assert after is not None

    assert [after.turns[at] for indices in after.rounds for at in indices] == [
        before.turns[at] for at in before.rounds[-1]
    ]
    systems = [[turn for turn in talk.turns if kind_of(turn) == "system"] for talk in (before, after)]
    assert systems[0] == systems[1]
