"""A breach is told once, and once when it is over; a restart, a second worker and a dead receiver change nothing."""

import json
import logging
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from click.testing import CliRunner

from mitmgate import alert_watch, notify
from mitmgate.alert import Alerts, Turn
from mitmgate.alert_look import step
from mitmgate.charges import Charge, counter_name
from mitmgate.cli import group
from mitmgate.clock import ManualClock, iso
from mitmgate.metrics import Metrics
from mitmgate.notify import Notifier
from mitmgate.policy import loads
from mitmgate.store import alert_file, schema
from mitmgate.store.ledger import Ledger
from mitmgate.store.rows import Row, Rows
from mitmgate.store.writer import Writer
from support.receiver import Receiver, receiver
from support.sample_traces import START, attempt, call, event, write

WALL = START.timestamp()
CHILD_ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "addons")}


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as told:
        yield told


@dataclass
class Scene:
    """A database that calls are written to, and gateways that watch it. Time stands still until ``look``."""

    folder: Path
    hook: Receiver
    text: str
    clock: ManualClock = field(default_factory=lambda: ManualClock(started_wall=WALL))
    calls: int = 0
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.db = self.folder / "traces.db"
        self.conn = schema.open_store(self.db, WALL)
        self.env.setdefault("HOOK", self.hook.url)
        self.alerts = self.gateway()

    def gateway(self) -> Alerts:
        """Return what watches in one worker."""
        self.writer = Writer(self.db, self.clock)
        self.writer.start()
        self.metrics = Metrics()
        policy = loads(self.text, "policy.yaml", self.env)
        notifier = Notifier(policy.upstream, waits_s=(0.0, 0.0))
        return Alerts(policy, self.db, self.clock, self.writer, self.metrics, notifier=notifier)

    def restart(self) -> None:
        self.alerts.close(5.0)
        self.writer.close(5.0)
        self.alerts = self.gateway()

    def end(self) -> None:
        self.alerts.close(5.0)
        self.writer.close(5.0)
        self.conn.close()

    def have(self, count: int, **columns: Any) -> list[str]:
        """Write *count* calls that end now; return their ids."""
        ids = []
        for _ in range(count):
            self.calls += 1
            row = call(self.calls, **{"duration_ms": 100.0, **columns})
            row["started_at"] = iso(self.clock.wall() - row["duration_ms"] / 1000)
            self.put(Rows(exchanges=[row]))
            ids.append(str(row["id"]))
        return ids

    def put(self, rows: Rows) -> None:
        write(self.conn, rows)

    def look(self, after_s: float = 5.0) -> list[tuple[str, str]]:
        """Return (rule, state) of what the next look has to tell."""
        self.clock.advance(after_s)
        return [(state.rule, state.state) for state in self.alerts.look()]

    def told(self) -> list[tuple[str, str]]:
        """Return (rule, state) of all that has arrived, once nothing is on its way any more."""
        assert self.alerts.notifier.wait(10.0)
        return self.hook.told()

    def message(self) -> dict[str, Any]:
        """Return the message that arrived last."""
        self.told()
        return self.hook.messages[-1]

    def events(self) -> list[Row]:
        self.writer.flush(5.0)
        with closing(sqlite3.connect(self.db)) as conn:
            conn.row_factory = sqlite3.Row
            return [dict(row) for row in conn.execute("select * from policy_events where room = 'alert' order by at")]


@contextmanager
def scene(folder: Path, hook: Receiver, rules: str, more: str = "", **env: str) -> Iterator[Scene]:
    """*rules* are lines of the section ``alert`` without ``to``; *more* are further sections."""
    lines = [f"  - {{{line}, to: env:HOOK}}" for line in rules.strip().splitlines()]
    made = Scene(folder, hook, "\n".join(["alert:", *lines, more]), env=env)
    try:
        yield made
    finally:
        made.end()


ERRORS = 'name: errors, when: {error_rate: "> 5 %", over: 5 m, min_requests: 10}'
PER_PROVIDER = 'name: errors, when: {error_rate: "> 5 %", over: 5 m, per: provider, min_requests: 10}'
FAILED = {"status_code": 503, "terminal": "complete", "error_type": "503"}


# -- once, and once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "is_breached", "was_below", "follows"),
    [
        (None, False, False, None),
        (None, True, False, "breach"),
        ("clear", True, False, "breach"),
        ("breach", True, False, None),
        ("breach", True, True, None),
        ("breach", False, False, "below"),
        ("breach", False, True, "clear"),
        ("clear", False, False, None),
    ],
)
def test_what_follows_from_a_look(held: Any, is_breached: bool, was_below: bool, follows: str | None) -> None:
    assert step(held, is_breached, was_below) == follows


def test_a_breach_is_told_once_and_once_when_it_is_over(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(95)
        assert it.look() == []
        it.have(15, **FAILED)
        assert it.look() == [("errors", "breach")]
        it.have(5, **FAILED)
        assert it.look() == []
        assert it.look(290) == []  # the calls have left the window, for the first look
        assert it.look() == [("errors", "clear")]
        assert it.look() == []
        assert it.told() == [("errors", "breach"), ("errors", "clear")]


def test_a_figure_that_is_below_for_a_moment_is_not_over(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        assert it.look() == [("errors", "breach")]
        it.have(300)
        assert it.look() == []
        it.have(100, **FAILED)
        assert it.look() == []
        it.have(5000)
        assert it.look() == []
        assert it.look() == [("errors", "clear")]


def test_each_value_of_per_has_a_breach_of_its_own(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, PER_PROVIDER) as it:
        it.have(20)
        it.have(10, provider_name="azure.ai.openai", **FAILED)
        it.have(10, provider_name="anthropic", **FAILED)
        assert it.look() == [("errors", "breach"), ("errors", "breach")]
        it.have(300, provider_name="anthropic")
        it.look()
        assert it.look() == [("errors", "clear")]
        assert it.message()["per"] == {"provider": "anthropic"}
        assert {message["per"]["provider"] for message in it.hook.messages} == {"azure-openai", "anthropic"}


def test_a_call_without_the_field_is_watched_under_none(tmp_path: Path, hook: Receiver) -> None:
    rule = 'name: errors, when: {error_rate: "> 5 %", per: [metadata.team, user], min_requests: 10}'
    with scene(tmp_path, hook, rule) as it:
        it.have(10, metadata='{"team": "search"}', **FAILED)
        it.look()
        assert it.message()["per"] == {"metadata.team": "search", "user": ""}
        assert "metadata.team `search` · no user" in it.message()["text"]


# -- what counts ------------------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "a provider's 500": (ERRORS, FAILED, True),
    "a provider's 429": (ERRORS, {"status_code": 429}, True),
    "a stream that was cut": (ERRORS, {"stream": 1, "terminal": "truncated"}, True),
    "no answer at all": (ERRORS, {"status_code": 502, "terminal": "failed", "source": "gateway"}, True),
    "every target rests": (ERRORS, {"status_code": 503, "terminal": "refused", "source": "gateway"}, True),
    "a full limit": (ERRORS, {"status_code": 429, "terminal": "refused", "source": "rate-limit"}, False),
    "an empty budget": (ERRORS, {"status_code": 429, "terminal": "refused", "source": "budget"}, False),
    "a guard": (ERRORS, {"status_code": 403, "terminal": "refused", "source": "guard"}, False),
    "a guard in a stream": (ERRORS, {"stream": 1, "terminal": "refused", "source": "guard"}, False),
    "a missing tag": (ERRORS, {"status_code": 400, "terminal": "refused", "source": "gateway"}, False),
    "a client that left": (ERRORS, {"stream": 1, "terminal": "client_abort"}, False),
    "a good call": (ERRORS, {}, False),
    "a stream left by its client": (
        'name: cut, when: {interrupted: "> 5 %"}',
        {"stream": 1, "terminal": "client_abort"},
        True,
    ),
    "a stream that timed out": ('name: cut, when: {interrupted: "> 5 %"}', {"stream": 1, "terminal": "timeout"}, True),
    "a plain answer that was cut": (
        'name: cut, when: {interrupted: "> 5 %"}',
        {"stream": 0, "terminal": "truncated"},
        False,
    ),
    "a whole stream": ('name: cut, when: {interrupted: "> 5 %"}', {"stream": 1}, False),
    "a slow call": ('name: slow, when: {p95: "> 3 s"}', {"duration_ms": 3000.5}, True),
    "a call that is just in time": ('name: slow, when: {p95: "> 3 s"}', {"duration_ms": 3000.0}, False),
    "a slow refusal": (
        'name: slow, when: {p95: "> 3 s"}',
        {"duration_ms": 4000.0, "status_code": 429, "terminal": "refused"},
        False,
    ),
    "an expensive call": ('name: spend, when: {spend: "> 1 USD"}', {"cost_nanousd": 100_000_001}, True),
    "a call within its means": ('name: spend, when: {spend: "> 1 USD"}', {"cost_nanousd": 100_000_000}, False),
    "a call of unknown price": ('name: spend, when: {spend: "> 1 USD"}', {"cost_nanousd": None}, False),
    "a call that does not match": (f"{ERRORS}, match: {{tenant: globex}}", FAILED, False),
    "a call that matches": (f"{ERRORS}, match: {{tenant: ac*, provider: openai, stream: false}}", FAILED, True),
    "a call that is left out": (f"{ERRORS}, unless: {{model: [gpt-4o]}}", FAILED, False),
    "a tagged call": (f"{ERRORS}, match: {{metadata.beta: true}}", {**FAILED, "metadata": '{"beta": true}'}, True),
    "a path with a query": (
        f"{ERRORS}, match: {{path: '*/messages'}}",
        {**FAILED, "path": "/v1/messages?beta=1"},
        True,
    ),
    "a ChatGPT login": (f"{ERRORS}, match: {{provider: chatgpt}}", {**FAILED, "host": "chatgpt.com"}, True),
    "an API key beside it": (f"{ERRORS}, match: {{provider: chatgpt}}", FAILED, False),
}
"""Ten such calls, and whether they are a breach."""


@pytest.mark.parametrize("what", CALLS)
def test_what_a_figure_counts(tmp_path: Path, hook: Receiver, what: str) -> None:
    rule, columns, is_breach = CALLS[what]
    with scene(tmp_path, hook, rule) as it:
        it.have(10, **columns)
        assert [state for _, state in it.look()] == (["breach"] if is_breach else [])


def test_what_the_policy_refused_does_not_water_the_share_down(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(1, **FAILED)
        it.have(9)
        it.have(1000, status_code=429, terminal="refused", source="rate-limit")
        assert it.look() == [("errors", "breach")]


def test_a_share_of_few_calls_says_nothing(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(9, **FAILED)
        assert it.look() == []
        it.have(1)
        assert it.look() == [("errors", "breach")]


@pytest.mark.parametrize(("slow", "state"), [(1, []), (2, ["breach"])])
def test_the_95th_percentile_is_the_nearest_rank(tmp_path: Path, hook: Receiver, slow: int, state: list[str]) -> None:
    with scene(tmp_path, hook, 'name: slow, when: {p95: "> 3 s"}') as it:
        it.have(20 - slow, duration_ms=100.0)
        it.have(slow, duration_ms=3100.0)
        assert [one for _, one in it.look()] == state


def test_a_call_counts_from_its_end(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, 'name: cut, when: {interrupted: "> 5 %", over: 5 m}') as it:
        it.have(10, stream=1, terminal="truncated", duration_ms=3_000_000.0)
        assert it.look() == [("cut", "breach")]


def test_a_spend_slides(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, 'name: spend, when: {spend: "> 1 USD", over: 1 h}') as it:
        it.have(1, cost_nanousd=600_000_000)
        assert it.look() == []
        it.clock.advance(1800)
        it.have(1, cost_nanousd=600_000_000)
        assert it.look() == [("spend", "breach")]
        assert it.look(1800) == []
        assert it.look() == [("spend", "clear")]


# -- what is told -----------------------------------------------------------------------------------------------------


def test_a_message_says_what_whom_since_when_by_which_rule_and_shows_calls(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, PER_PROVIDER) as it:
        it.have(90)
        ids = it.have(10, **FAILED)
        it.look()
        message = it.message()
    assert message["text"].splitlines()[:2] == [
        "[breach] errors: 10 % of calls failed in the last 5 m (limit 5 %): 10 of 100",
        f"provider `openai` · since 2026-11-24 09:00:05 UTC · rule errors, policy.yaml:2 · on {message['host']}",
    ]
    assert message["text"].splitlines()[2:] == [
        "calls: " + ", ".join(f"`mitmgate show {id_}`" for id_ in ids[:-4:-1]),
        "more: `mitmgate report --since 2026-11-24T08:55:05Z --by provider,status,error --provider openai`",
    ]
    fields = {name: message[name] for name in ("alert", "state", "watch", "value", "limit", "unit", "per", "where")}
    assert fields == {
        "alert": "errors",
        "state": "breach",
        "watch": "error_rate",
        "value": 0.1,
        "limit": 0.05,
        "unit": "share",
        "per": {"provider": "openai"},
        "where": "policy.yaml:2",
    }
    assert (message["at"], message["since"], message["lasted_s"]) == (iso(WALL + 5), iso(WALL + 5), None)
    assert message["evidence"] == ids[:-4:-1]


def test_the_end_says_how_long_it_lasted_and_how_things_stand(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        it.look()
        it.have(1990)
        it.look()
        it.look(115)
        assert it.message()["text"].splitlines()[0] == (
            "[clear] errors after 2 m: 0.5 % of calls failed in the last 5 m (limit 5 %): 10 of 2000"
        )
        assert (it.message()["lasted_s"], it.message()["since"]) == (120.0, iso(WALL + 5))


def test_an_end_for_want_of_calls_says_so(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        it.look()
        it.look(400)
        it.look()
        assert "too few calls to tell: 0 in the last 5 m" in it.message()["text"]


def test_a_slow_service_is_told_with_its_percentile_and_its_slowest_calls(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, 'name: slow, when: {p95: "> 3 s", per: model}') as it:
        it.have(10, request_model="small", duration_ms=9000.0)
        it.have(18)
        ids = [it.have(1, duration_ms=ms)[0] for ms in (4000.0, 6000.0)]
        it.look()
        told = {message["per"]["model"]: message for message in it.hook.wait_for(2)}
    assert told["gpt-4o"]["text"].splitlines()[0] == (
        "[breach] slow: the 95th percentile of the last 5 m is 4,000 ms (limit 3,000 ms): 2 of 20 calls took longer"
    )
    assert (told["gpt-4o"]["value"], told["gpt-4o"]["evidence"]) == (4000.0, ids[::-1])


def test_a_spend_is_told_in_dollars_with_its_dearest_calls(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, 'name: spend, when: {spend: "> 1 USD", over: 1 h, per: tenant}') as it:
        ids = [it.have(1, cost_nanousd=cost)[0] for cost in (1_000_000_000, 5_000_000, 250_000_000)]
        it.look()
        assert it.message()["text"].splitlines()[0] == (
            "[breach] spend: 1.26 USD were spent in the last 1 h (limit 1.00 USD)"
        )
        assert it.message()["evidence"] == [ids[0], ids[2], ids[1]]


@pytest.mark.parametrize(
    ("per", "columns"),
    [
        ("provider", {"provider_name": "azure.ai.openai"}),
        ("tenant", {"tenant": "o'neill & sons"}),
        ("tenant", {"tenant": None}),
        ("model", {"request_model": "gpt-5"}),
        ("route", {"route": "faq"}),
        ("session", {"session_id": "s-1"}),
        ("path", {"path": "/v1/embeddings?a=1"}),
        ("stream", {"stream": 1}),
        ("user", {"user": "it's me"}),
        ("metadata.team name", {"metadata": '{"team name": "a.b"}'}),
        ("metadata.beta", {"metadata": '{"beta": true}'}),
        ("[user, metadata.x]", {"user": "u", "metadata": '{"x": 7}'}),
    ],
)
def test_the_command_that_a_message_names_shows_these_calls(
    tmp_path: Path, hook: Receiver, per: str, columns: dict[str, Any]
) -> None:
    rule = f'name: errors, when: {{error_rate: "> 5 %", per: {per}, min_requests: 10}}'
    with scene(tmp_path, hook, rule) as it:
        it.have(20)
        it.have(12, **FAILED, **columns)
        it.look()
        [command] = re.findall("more: `(.*)`", it.message()["text"])
    name, *args = shlex.split(command)
    shown = CliRunner().invoke(group, [*args, "--db", str(it.db), "--json"])
    assert name == "mitmgate"
    assert sum(row["calls"] for row in json.loads(shown.output)["rows"]) == 12


def test_a_name_of_a_client_can_neither_call_nor_act(tmp_path: Path, hook: Receiver) -> None:
    tenant = "`<!channel> @here\x1b[31m\n$(reboot)'"
    with scene(tmp_path, hook, 'name: spend, when: {spend: "> 1 USD", per: tenant}') as it:
        it.have(1, cost_nanousd=2_000_000_000, tenant=tenant)
        it.look()
        lines = it.message()["text"].splitlines()
    assert lines[1].startswith("tenant `'<!channel> @here␛[31m␊$(reboot)'` · ")
    assert lines[3].endswith("""--tenant '`<!channel> @here␛[31m␊$(reboot)'"'"''`""")


# -- breakers ---------------------------------------------------------------------------------------------------------


def rests(it: Scene, place: str, detail: str = "{place} rests for 15 s", shadow: int = 0) -> str:
    """Write a call with which *place* begins to rest; return its id."""
    [id_] = it.have(1, target=place, **FAILED)
    at = iso(it.clock.wall())
    tried = attempt(1, it.calls, target=place, status_code=503, error_type="503", started_at=at)
    said = event(
        it.calls, at=at, room="breaker", rule="breaker", action="rest", shadow=shadow, detail=detail.format(place=place)
    )
    it.put(Rows(attempts=[tried], policy_events=[said]))
    return id_


def answers(it: Scene, place: str, began_s: float = 0.0, **columns: Any) -> None:
    """Write a call that *place* answered, whose attempt began so long ago."""
    it.have(1, target=place)
    at = iso(it.clock.wall() - began_s)
    it.put(Rows(attempts=[attempt(1, it.calls, target=place, started_at=at, **columns)]))


BREAKER = "name: rests, when: {breaker: open}"
TARGETS = """\
targets:
  azure-eu: {provider: azure-openai, base_url: "https://eu.openai.azure.com"}
  azure-us: {provider: azure-openai, base_url: "https://us.openai.azure.com"}
breaker: {min_requests: 4}
"""


def test_a_place_that_rests_is_told_until_it_answers_again(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, BREAKER, TARGETS) as it:
        id_ = rests(it, "azure-eu")
        assert it.look() == [("rests", "breach")]
        assert it.message()["text"].splitlines()[0] == "[breach] rests: `azure-eu` keeps failing and rests"
        assert (it.message()["per"], it.message()["evidence"]) == ({"target": "azure-eu"}, [id_])
        rests(it, "azure-eu")
        assert it.look() == []
        it.clock.advance(20)
        answers(it, "azure-eu")
        assert it.look() == []
        assert it.look() == [("rests", "clear")]
        assert it.told() == [("rests", "breach"), ("rests", "clear")]


def test_who_passes_a_resting_place_by_says_nothing_new(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, BREAKER, TARGETS) as it:
        rests(it, "azure-eu", "{place} rests: 3.5 s left")
        assert it.look() == []


def test_a_breaker_that_only_would_have_opened_is_none(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, BREAKER, TARGETS) as it:
        rests(it, "azure-eu", shadow=1)
        assert it.look() == []


def test_an_attempt_that_began_before_the_rest_or_failed_does_not_end_it(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, BREAKER, TARGETS) as it:
        rests(it, "azure-eu")
        it.look()
        answers(it, "azure-eu", began_s=60)
        answers(it, "azure-eu", status_code=500, error_type="500")
        answers(it, "azure-eu", status_code=None, error_type="connect")
        answers(it, "azure-us")
        it.look()
        assert it.look() == []


def test_only_the_target_that_is_named_is_watched(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, "name: rests, when: {breaker: azure-us}", TARGETS) as it:
        rests(it, "azure-eu")
        assert it.look() == []
        rests(it, "azure-us")
        assert it.look() == [("rests", "breach")]


def test_a_breaker_that_opened_before_a_restart_is_not_told_again(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, BREAKER, TARGETS) as it:
        rests(it, "azure-eu")
        it.look()
        it.clock.advance(7200)
        it.restart()
        assert [it.look(), it.look()] == [[], []]
        answers(it, "azure-eu")
        it.look()
        assert it.look() == [("rests", "clear")]


# -- budgets ----------------------------------------------------------------------------------------------------------

BUDGET = """\
budget:
  - {name: tenant-day, per: tenant, cost: 20 USD, every: day, soft: 80 %,
     downgrade: {at: 90 %, to: {model: gpt-4o-mini}}}
"""
USD = 1_000_000_000


class Purse:
    """The counters of a budget, as ``limit`` and ``budget`` keep them."""

    def __init__(self, it: Scene) -> None:
        self.ledger = Ledger(it.folder / "spend.db", it.clock)
        self.ledger.open()

    def charge(self, tenant: str, nanousd: int) -> Charge:
        name = counter_name("budget", "tenant-day", "cost", "day", [("tenant", tenant)])
        return Charge("budget", "tenant-day", name, "cost", 20 * USD, "day", nanousd)

    def spends(self, tenant: str, usd: float) -> None:
        nanousd = round(usd * USD)
        self.ledger.reserve("x", [self.charge(tenant, 0)])
        self.ledger.settle("x", {"cost": nanousd})

    def is_granted(self, tenant: str, usd: int) -> None:
        self.ledger.grant(self.charge(tenant, 0).counter, "day", usd * USD)


@contextmanager
def purse(it: Scene) -> Iterator[Purse]:
    made = Purse(it)
    try:
        yield made
    finally:
        made.ledger.close()


def test_a_soft_budget_is_told_once_for_each_tenant_until_its_day_is_over(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, "name: spend, when: {budget: tenant-day, at: soft}", BUDGET) as it, purse(it) as money:
        money.spends("acme", 15.9)
        money.spends("globex", 1)
        it.have(1)
        assert it.look() == []
        money.spends("acme", 0.3)
        assert it.look() == [("spend", "breach")]
        assert it.message()["text"].splitlines()[0] == (
            "[breach] spend: budget tenant-day is beyond its soft step of 80 %: 16.20 USD of 20.00 USD are used (81 %)"
        )
        assert (it.message()["per"], it.message()["value"]) == ({"tenant": "acme"}, 0.81)
        money.spends("acme", 1)
        assert it.look() == []
        it.clock.advance(86400)
        it.look()
        assert it.look() == [("spend", "clear")]
        assert it.told() == [("spend", "breach"), ("spend", "clear")]


def test_a_grant_gives_a_budget_room_again(tmp_path: Path, hook: Receiver) -> None:
    rule = "name: spend, when: {budget: tenant-day, at: downgrade}"
    with scene(tmp_path, hook, rule, BUDGET) as it, purse(it) as money:
        money.spends("acme", 17.9)
        assert it.look() == []
        money.spends("acme", 0.1)
        assert it.look() == [("spend", "breach")]
        money.is_granted("acme", 20)
        it.look()
        assert it.look() == [("spend", "clear")]
        assert "budget tenant-day has room again: 18.00 USD of 40.00 USD are used (45 %)" in it.message()["text"]


def refuses(it: Scene, detail: str) -> str:
    """Write a call that the budget refused; return its id."""
    [id_] = it.have(1, status_code=429, terminal="refused", source="budget")
    at = iso(it.clock.wall())
    said = event(it.calls, at=at, room="budget", rule="tenant-day", action="refuse", detail=detail)
    it.put(Rows(policy_events=[said]))
    return id_


HARD = "name: spend, when: {budget: tenant-day, at: hard}"
FULL = "20 USD a day for tenant acme, 1 USD left"


def test_a_budget_that_refuses_is_told_until_it_has_refused_nobody_for_a_while(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, HARD, BUDGET) as it, purse(it) as money:
        money.spends("acme", 19)
        assert it.look() == []
        id_ = refuses(it, FULL)
        assert it.look() == [("spend", "breach")]
        assert it.message()["evidence"] == [id_]
        assert "budget tenant-day has no room for what was asked: 19.00 USD of 20.00 USD" in it.message()["text"]
        assert it.look(200) == []
        refuses(it, FULL)
        assert it.look(200) == []
        assert it.look(200) == []
        assert it.look() == [("spend", "clear")]


def test_a_budget_that_is_used_up_stays_so_however_quiet_it_is(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, HARD, BUDGET) as it, purse(it) as money:
        money.spends("acme", 20)
        it.have(1)
        assert it.look() == [("spend", "breach")]
        assert "budget tenant-day is used up: 20.00 USD of 20.00 USD are used (100 %)" in it.message()["text"]
        assert [it.look(900), it.look(900)] == [[], []]
        it.clock.advance(86400)
        it.look()
        assert it.look() == [("spend", "clear")]


def test_a_budget_that_refuses_a_model_without_a_price_is_not_used_up(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, HARD, BUDGET) as it:
        refuses(it, "no price is known for my-own-model")
        assert it.look() == []


def test_a_ledger_that_cannot_be_read_ends_no_breach(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, "name: spend, when: {budget: tenant-day, at: soft}", BUDGET) as it:
        with purse(it) as money:
            money.spends("acme", 17)
            it.look()
        for path in tmp_path.glob("spend.db*"):
            path.unlink()
        (tmp_path / "spend.db").write_bytes(b"this is no database, however long one looks at it" * 100)
        assert [it.look(), it.look(), it.look()] == [[], [], []]


def test_only_the_tenants_that_match_are_watched(tmp_path: Path, hook: Receiver) -> None:
    rule = "name: spend, when: {budget: tenant-day, at: soft}, match: {tenant: glob*}"
    with scene(tmp_path, hook, rule, BUDGET) as it, purse(it) as money:
        money.spends("acme", 17)
        assert it.look() == []
        money.spends("globex", 17)
        assert it.look() == [("spend", "breach")]


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_values_without_end_are_bounded_and_said(
    tmp_path: Path, hook: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_watch, "MOST_VALUES", 2)
    with scene(tmp_path, hook, PER_PROVIDER.replace("per: provider", "per: tenant")) as it:
        it.have(1, tenant="one")
        it.have(1, tenant="two")
        it.look()
        it.have(10, tenant="three", **FAILED)
        it.have(10, tenant="two", **FAILED)
        assert it.look() == [("errors", "breach")]
        assert it.message()["per"] == {"tenant": "two"}
        it.look(300)  # the others have left the window
        it.have(10, tenant="three", **FAILED)
        assert it.look() == [("errors", "breach"), ("errors", "clear")]
    assert caplog.text.count("errors: more values of tenant than are watched") == 1


# -- restarts, workers, edits -----------------------------------------------------------------------------------------


def test_a_restart_neither_repeats_a_breach_nor_forgets_its_end(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        it.look()
        it.restart()
        assert it.look() == []
        it.restart()
        it.look(400)
        assert it.look() == [("errors", "clear")]
        it.restart()
        assert it.look() == []
        assert it.told() == [("errors", "breach"), ("errors", "clear")]


def ends_undelivered(it: Scene, looks: list[float]) -> None:
    """Look after each of these seconds, and end the gateway before what there is to tell is taken."""
    it.hook.answers = [(500, "busy")]
    it.hook.silent.clear()
    before = len(it.hook.messages)
    for after_s in looks:
        it.look(after_s)
    it.hook.wait_for(before + 1)
    it.alerts.close(0.0)
    it.writer.close(5.0)
    it.hook.silent.set()
    assert it.alerts.notifier.wait(10.0)
    it.alerts = it.gateway()


def test_what_was_not_delivered_before_the_end_is_delivered_after_the_start(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        ends_undelivered(it, [5.0])
        assert it.look() == []
        assert it.told() == [("errors", "breach"), ("errors", "breach")]
        ends_undelivered(it, [400.0, 5.0])
        assert it.look() == []
        assert it.told()[2:] == [("errors", "clear"), ("errors", "clear")]
        it.restart()
        it.look()
        assert len(it.told()) == 4


def test_of_two_workers_one_watches_and_the_other_takes_over(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        first, it.alerts = it.alerts, it.gateway()
        first.look()
        it.have(10, **FAILED)
        assert it.look() == []
        assert [state.state for state in first.look()] == ["breach"]
        assert it.look() == []
        first.close(5.0)
        it.look(400)
        assert it.look() == [("errors", "clear")]
        assert it.told() == [("errors", "breach"), ("errors", "clear")]


def test_a_lock_is_free_again_when_its_holder_is_gone(tmp_path: Path) -> None:
    one, other = Turn(tmp_path / "lock"), Turn(tmp_path / "lock")
    assert (one.take(), one.take(), other.take()) == (True, True, False)
    one.let_go()
    assert (other.take(), one.take()) == (True, False)
    other.let_go()


def test_a_worker_that_was_killed_holds_the_lock_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "from pathlib import Path\n"
        "from mitmgate.alert import Turn\n"
        f"turn = Turn(Path({str(path)!r}))\n"
        "print(turn.take(), flush=True)\n"
        "input()\n"
    )
    turn = Turn(path)
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, env=CHILD_ENV, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "True\n"
        assert not turn.take()
        worker.kill()
        worker.wait()
        assert turn.take()
    turn.let_go()


def test_an_edited_policy_keeps_what_is_breached(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        it.look()
        edited = it.text.replace("> 5 %", "> 50 %") + "  - {name: slow, when: {p95: '> 50 ms'}, to: env:HOOK}\n"
        it.alerts.take(loads(edited, "policy.yaml", it.env))
        assert it.look() == [("slow", "breach")]
        it.have(30)
        it.look()
        assert it.look() == [("errors", "clear")]


def test_a_rule_that_is_gone_is_forgotten(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        it.look()
        it.alerts.take(loads(it.text.replace("errors", "others"), "policy.yaml", it.env))
        assert it.look() == [("others", "breach")]


def test_a_policy_without_rules_ends_the_watch_and_what_comes_back_begins_anew(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        rules = it.alerts.policy
        it.have(10, **FAILED)
        it.look()
        it.told()
        it.alerts.take(loads("", "policy.yaml", {}))
        it.look()
        turn = Turn(tmp_path / "alerts.lock")
        assert turn.take()
        turn.let_go()
        with alert_file.looking(tmp_path / "alerts.db") as conn:
            assert (alert_file.rules(conn), alert_file.states(conn)) == ([], [])
        it.alerts.take(rules)
        assert it.look() == [("errors", "breach")]


def test_a_look_that_broke_midway_counts_nothing_twice(tmp_path: Path, hook: Receiver) -> None:
    rules = "name: spend, when: {spend: '> 1 USD'}\nname: errors, when: {error_rate: '> 5 %', per: region}"
    with scene(tmp_path, hook, rules) as it:
        it.have(1, cost_nanousd=600_000_000)
        it.conn.execute("ALTER TABLE exchanges RENAME COLUMN region TO elsewhere")
        assert it.look() == []
        it.conn.execute("ALTER TABLE exchanges RENAME COLUMN elsewhere TO region")
        assert it.look() == []
        it.have(1, cost_nanousd=600_000_000)
        assert it.look() == [("spend", "breach")]


# -- in nobody's way --------------------------------------------------------------------------------------------------


def test_a_rule_in_shadow_is_logged_and_noted_and_tells_nobody(
    tmp_path: Path, hook: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with scene(tmp_path, hook, f"{ERRORS}, shadow: true") as it:
        it.have(10, **FAILED)
        with caplog.at_level(logging.WARNING, "mitmgate.alert"):
            assert it.look() == [("errors", "breach")]
        [row] = it.events()
        assert it.told() == []
    assert "alert: would tell: [breach] errors: 100 % of calls failed" in caplog.text
    assert (row["rule"], row["action"], row["shadow"]) == ("errors", "flag", 1)


def test_a_breach_and_its_end_are_events_of_no_exchange(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, PER_PROVIDER) as it:
        it.have(10, **FAILED)
        it.look()
        it.look(400)
        it.look()
        rows = it.events()
    assert [(row["exchange_id"], row["rule"], row["action"], row["shadow"]) for row in rows] == [
        (None, "errors", "flag", 0),
        (None, "errors", "flag", 0),
    ]
    details = [str(row["detail"]) for row in rows]
    assert details[0].startswith("[breach] errors: 100 % of calls failed")
    assert details[0].endswith("(provider openai)")
    assert details[1].startswith("[clear] errors after ")


def test_a_dead_receiver_is_given_up_counted_and_holds_up_no_other(
    tmp_path: Path, hook: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver() as dead:
        dead.answers = [(500, "no")] * 3
        with scene(tmp_path, hook, ERRORS, DEAD=dead.url) as it:
            it.alerts.take(loads(it.text.replace("to: env:HOOK", "to: [env:DEAD, env:HOOK]"), "policy.yaml", it.env))
            it.have(10, **FAILED)
            it.look()
            assert it.told() == [("errors", "breach")]
            page = [it.metrics.series[f"mitmgate_alerts_{how}_total"]() for how in ("dropped", "sent")]
        assert len(dead.messages) == 3
    assert page == [
        {("mitmgate_alerts_dropped_total", (("state", "breach"),)): 1},
        {("mitmgate_alerts_sent_total", (("state", "breach"),)): 1},
    ]
    assert "[breach] errors did not reach env:DEAD: 500 no" in caplog.text
    assert dead.url not in caplog.text


def test_a_message_that_nobody_takes_any_more_is_dropped_and_over(
    tmp_path: Path, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "MOST_WAITING", 0)
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        assert it.look() == [("errors", "breach")]
        it.restart()
        assert it.look() == []
        assert it.told() == []


def test_before_there_is_a_database_nothing_is_watched_and_nothing_said(
    tmp_path: Path, hook: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock(started_wall=WALL)
    db = tmp_path / "none" / "traces.db"
    db.parent.mkdir()
    policy = loads(f"alert:\n  - {{{ERRORS}, to: env:HOOK}}", "policy.yaml", {"HOOK": hook.url})
    alerts = Alerts(policy, db, clock, Writer(tmp_path / "traces.db", clock), Metrics())
    assert alerts.look() == []
    alerts.close(1.0)
    assert caplog.text == ""


def test_a_database_that_was_set_aside_is_watched_anew(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(30)
        assert it.look() == []
        it.conn.close()
        it.writer.close(5.0)
        for path in tmp_path.glob("traces.db*"):
            path.rename(path.with_name(f"old-{path.name}"))
        it.conn = schema.open_store(it.db, WALL)
        it.have(10, **FAILED)
        assert it.look() == [("errors", "breach")]


def test_rows_that_are_numbered_anew_are_counted_anew(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(30)
        assert it.look() == []
        it.conn.execute("DELETE FROM exchanges")
        it.conn.execute("VACUUM")
        it.have(10, **FAILED)
        assert it.look() == [("errors", "breach")]


def test_a_state_file_that_is_no_database_is_set_aside(
    tmp_path: Path, hook: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "alerts.db").write_bytes(b"this is no database, however long one looks at it" * 100)
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        assert it.look() == [("errors", "breach")]
        it.restart()
        assert it.look() == []
    assert list(tmp_path.glob("alerts.db.broken-*"))
    assert "alerts.db cannot be used" in caplog.text


def test_the_thread_looks_by_itself_and_only_where_there_is_a_rule(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.alerts.every_s = 0.01
        rules = it.alerts.policy
        it.alerts.policy = loads("", "policy.yaml", {})
        it.alerts.start()
        assert it.alerts._thread is None
        it.have(10, **FAILED)
        it.alerts.take(rules)
        assert hook.wait_for(1)[0]["alert"] == "errors"


def test_the_states_are_kept_as_they_were_told(tmp_path: Path, hook: Receiver) -> None:
    with scene(tmp_path, hook, ERRORS) as it:
        it.have(10, **FAILED)
        it.look()
        it.told()
        it.look()
        with closing(sqlite3.connect(tmp_path / "alerts.db")) as conn:
            [(rule, subject, state, told, notice)] = conn.execute(
                "select rule, subject, state, told, notice from states"
            ).fetchall()
    assert (rule, subject, state, told) == ("errors", "[]", "breach", 1)
    assert json.loads(notice)["says"].startswith("100 % of calls failed")
