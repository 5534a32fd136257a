"""Keys that the gateway holds: which one goes, which one rests, and how it travels; and none of them is ever told."""

import json
import logging
from collections import Counter
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from mitmgate import dialects
from mitmgate.clock import ManualClock
from mitmgate.errors import StartError
from mitmgate.exchange import Exchange, Leg
from mitmgate.policy import Policy
from mitmgate.policy.values import Aws, Google, Target
from mitmgate.provider_keys import Keys, key_field
from mitmgate.provider_pool import COOL_S, FORGOTTEN_S, REST_S, Key, KeyStates, choose, rest_for
from mitmgate.providers import Hosts
from mitmgate.route_keys import refusal_of
from mitmgate.store import provider_keys as store

HOSTS = Hosts()
POOL = {"first": "sk-first-secret", "second": "sk-second-secret", "third": "sk-third-secret"}
OPENAI = Target("pooled", "openai", "https://api.openai.com", keys=POOL)


# -- which key goes ---------------------------------------------------------------------------------------------------

NEVER = Key()


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ({"a": NEVER, "b": NEVER}, "a"),
        ({"a": Key(turn=2), "b": Key(turn=1)}, "b"),
        ({"a": Key(turn=1, refused=900.0), "b": Key(turn=2)}, "b"),
        ({"a": Key(turn=9, refused=800.0), "b": Key(turn=1, refused=900.0)}, "a"),
        ({"a": Key(turn=9, refused=1000.0 - FORGOTTEN_S), "b": Key(turn=10)}, "a"),
        ({"a": Key("cooling", 1001.0), "b": Key(turn=9, refused=999.0)}, "b"),
        ({"a": Key("cooling", 1000.0), "b": Key(turn=9)}, "a"),
        ({"a": Key("resting", 1600.0), "b": Key("cooling", 1030.0)}, "b"),
        ({}, None),
    ],
    ids=[
        "all alike: the first",
        "the one used the longest ago",
        "one that nobody refused before one that was",
        "the one refused the longest ago, however often it was used",
        "a refusal of an hour ago says nothing",
        "one that cools is not used while another is ready",
        "its time is over",
        "where none is ready the one that is soonest",
        "no pool",
    ],
)
def test_the_key_that_goes(keys: dict[str, Key], chosen: str | None) -> None:
    assert choose(keys, now=1000.0) == chosen


def test_a_key_that_was_tried_is_not_chosen_again() -> None:
    keys = {"a": Key(), "b": Key("resting", inf)}

    assert [choose(keys, 0.0, tried) for tried in ({"a"}, {"b"}, {"a", "b"})] == ["b", "a", None]


@pytest.mark.parametrize(
    ("status", "named_s", "final", "rest"),
    [
        (401, None, False, ("resting", REST_S)),
        (402, None, False, ("resting", REST_S)),
        (403, 5.0, False, ("resting", REST_S)),
        (403, 7200.0, False, ("resting", 7200.0)),
        (429, None, False, ("cooling", COOL_S)),
        (429, 7.5, False, ("cooling", 7.5)),
        (429, None, True, ("resting", REST_S)),
        (400, None, False, None),
        (404, None, False, None),
        (500, 9.0, False, None),
        (200, None, False, None),
    ],
)
def test_what_an_answer_says_of_the_key(
    status: int, named_s: float | None, final: bool, rest: tuple[str, float] | None
) -> None:
    assert rest_for(status, named_s, final) == rest


def known(clock: ManualClock, path: Path | None = None, target: Target = OPENAI) -> KeyStates:
    states = KeyStates(clock, path)
    states.know([target])
    return states


def used(states: KeyStates, times: int) -> list[str]:
    """Return the aliases that so many calls in a row go with."""
    went = []
    for _ in range(times):
        alias = states.choose("pooled", frozenset())
        assert alias is not None
        states.used("pooled", alias)
        went.append(alias)
    return went


def test_calls_spread_over_the_pool() -> None:
    assert Counter(used(known(ManualClock()), 300)) == {"first": 100, "second": 100, "third": 100}


def test_a_key_that_was_refused_stays_away_and_comes_back_with_its_success() -> None:
    clock = ManualClock()
    states = known(clock)
    states.refused("pooled", "first", 429, "cooling", 30.0)

    assert set(used(states, 10)) == {"second", "third"}

    clock.advance(31)
    assert set(used(states, 10)) == {"second", "third"}  # refused lately: the others go first

    states.succeeded("pooled", "first")
    assert set(used(states, 3)) == {"first", "second", "third"}


def test_the_states_are_what_metrics_shows() -> None:
    clock = ManualClock()
    states = known(clock)
    states.refused("pooled", "first", 429, "cooling", 30.0)
    states.refused("pooled", "second", 401, "resting", 600.0)

    def shown() -> dict[str, int]:
        return {dict(labels)["alias"]: value for (_, labels), value in states.states().items()}

    assert shown() == {"first": 1, "second": 2, "third": 0}
    assert all(name == "mitmgate_provider_key_state" for name, _ in states.states())

    clock.advance(600)
    assert shown() == {"first": 0, "second": 0, "third": 0}


def test_an_edit_of_the_policy_keeps_what_rests_and_forgets_who_is_gone() -> None:
    clock = ManualClock()
    states = known(clock)
    for alias in ("first", "second"):
        states.refused("pooled", alias, 401, "resting", 600.0)

    states.know([replace(OPENAI, keys={"second": "sk-x", "fourth": "sk-y"})])

    assert states.choose("pooled", frozenset()) == "fourth"
    assert {dict(labels)["alias"]: value for (_, labels), value in states.states().items()} == {
        "second": 2,
        "fourth": 0,
    }
    states.used("pooled", "first")  # a call that began before the edit
    states.refused("pooled", "first", 401, "resting", 600.0)
    assert "first" not in states.pools["pooled"]


# -- what is written --------------------------------------------------------------------------------------------------


async def test_what_rests_outlives_a_restart_and_is_told_to_the_other_workers(tmp_path: Path) -> None:
    path = tmp_path / store.FILE
    clock, others_clock = ManualClock(50.0), ManualClock(9000.0, started_wall=1_700_000_000.0 - 8950)
    ours, other = known(clock, path), known(others_clock, path)

    ours.refused("pooled", "second", 401, "resting", 600.0)
    ours.used("pooled", "third")
    await ours.close()
    other.used("pooled", "first")
    await other.close()
    again = known(ManualClock(1.0, started_wall=1_700_000_050.0 + 60), path)

    for states in (other, again):
        key = states.pools["pooled"]["second"]
        assert (key.state, key.status) == ("resting", 401)
        assert key.state_at(states.clock.now()) == "resting"
    assert again.pools["pooled"]["second"].until == pytest.approx(1.0 + 600 - 61)


async def test_the_later_word_counts(tmp_path: Path) -> None:
    path = tmp_path / store.FILE
    clock = ManualClock()
    ours, other = known(clock, path), known(clock, path)

    ours.refused("pooled", "first", 429, "cooling", 3000.0)
    await ours.close()
    other.used("pooled", "first")
    await other.close()
    assert other.pools["pooled"]["first"].state == "cooling"

    clock.advance(1.0)
    other.succeeded("pooled", "first")
    await other.close()
    ours.used("pooled", "first")
    await ours.close()
    assert ours.pools["pooled"]["first"].state == "ready"


async def test_what_keys_shows_is_each_key_of_the_policy_and_never_the_key(tmp_path: Path) -> None:
    path = tmp_path / store.FILE
    clock = ManualClock()
    states = known(clock, path)
    states.used("pooled", "second")
    clock.advance(10)
    states.refused("pooled", "second", 429, "cooling", 30.0)
    await states.close()

    rows = store.pool_rows(path, clock.wall(), {"pooled": OPENAI})

    unused = {"until": None, "status": None, "refused_at": None, "used_at": None}
    assert rows == [
        {"target": "pooled", "alias": "first", "state": "ready", **unused},
        {
            "target": "pooled",
            "alias": "second",
            "state": "cooling",
            "until": clock.wall() + 30,
            "status": 429,
            "refused_at": clock.wall(),
            "used_at": clock.wall() - 10,
        },
        {"target": "pooled", "alias": "third", "state": "ready", **unused},
    ]
    assert [row["state"] for row in store.pool_rows(path, clock.wall() + 31)] == ["ready"]
    assert b"secret" not in path.read_bytes()


async def test_a_file_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / store.FILE).mkdir()
    states = known(ManualClock(), tmp_path / store.FILE)

    for alias in ("first", "second"):
        states.used("pooled", alias)
        await states.close()

    assert len(caplog.records) == 1
    assert states.choose("pooled", frozenset()) == "third"


# -- how it travels ---------------------------------------------------------------------------------------------------

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("slug", "path", "secret", "field"),
    [
        ("openai", CHAT, "sk-1", (b"authorization", b"Bearer sk-1")),
        ("groq", "/openai/v1/chat/completions", "gsk_1", (b"authorization", b"Bearer gsk_1")),
        ("openai", CHAT, "Bearer sk-1", (b"authorization", b"Bearer sk-1")),
        ("azure-openai", "/openai/deployments/d/chat/completions", "az-1", (b"api-key", b"az-1")),
        ("azure-openai", "/openai/v1/chat/completions", "az-1", (b"api-key", b"az-1")),
        ("anthropic", "/v1/messages", "sk-ant-1", (b"x-api-key", b"sk-ant-1")),
        ("anthropic", CHAT, "sk-ant-1", (b"authorization", b"Bearer sk-ant-1")),
        ("google-ai-studio", "/v1beta/models/g:generateContent", "AIza1", (b"x-goog-api-key", b"AIza1")),
        ("google-ai-studio", "/v1beta/openai/chat/completions", "AIza1", (b"authorization", b"Bearer AIza1")),
        ("aws-bedrock", "/model/m/converse", "ABSK1", (b"authorization", b"Bearer ABSK1")),
        ("cohere", "/v2/chat", "co-1", (b"authorization", b"Bearer co-1")),
    ],
)
def test_the_key_goes_where_its_provider_reads_it(
    slug: str, path: str, secret: str, field: tuple[bytes, bytes]
) -> None:
    provider = HOSTS.providers[slug]
    leg = Leg("there", provider, "https", "h.example", 443, path, [], dialect=dialects.find(provider, "POST", path))

    assert key_field(leg, secret) == field


async def test_only_the_attempt_carries_the_key() -> None:
    keys = Keys(Policy(targets={"pooled": OPENAI}), KeyStates(ManualClock()), ManualClock())
    x, leg = exchange(), pooled_leg([(b"Host", b"api.openai.com"), (b"Authorization", b"Bearer old")])

    keys.arm(leg, x, set())
    fields = await keys.sign(leg, "POST", "https://api.openai.com/v1/chat/completions", leg.fields, b"{}")

    assert fields == [(b"Host", b"api.openai.com"), (b"authorization", b"Bearer sk-first-secret")]
    assert (leg.key_alias, x.notes) == ("first", ["target pooled: key first"])
    assert "secret" not in repr(leg) + repr(x) + repr(keys.states.pools)


def test_a_named_key_is_the_one_that_goes_also_where_it_rests() -> None:
    keys = Keys(Policy(targets={"pooled": OPENAI}), KeyStates(ManualClock()), ManualClock())
    keys.states.refused("pooled", "third", 401, "resting", 600.0)
    x, leg = exchange(), pooled_leg()
    x.controls = {"byok-alias": "third"}

    keys.arm(leg, x, set())

    assert leg.key_alias == "third"


def test_a_policy_without_held_keys_arms_nothing() -> None:
    plain = Target("plain", "openai", "https://api.openai.com", {"authorization": "Bearer sk-1"})

    assert not Keys(Policy(targets={"plain": plain}), KeyStates(ManualClock()), ManualClock()).held


# -- whether there is one at all --------------------------------------------------------------------------------------


def exchange(*fields: tuple[bytes, bytes], path: str = CHAT) -> Exchange:
    x = Exchange("POST", "https", "api.openai.com", 443, path, list(fields), {}, 0.0, 0.0)
    x.provider = HOSTS.providers["openai"]
    x.dialect = dialects.find(x.provider, "POST", path)
    return x


def pooled_leg(fields: list[tuple[bytes, bytes]] | None = None, target: Target = OPENAI) -> Leg:
    provider = HOSTS.providers[target.provider]
    place = target.base_url.removeprefix("https://")
    return Leg(target.name, provider, "https", place, 443, CHAT, fields or [], is_target=True)


def own_leg(*fields: tuple[bytes, bytes], host: str = "api.openai.com") -> Leg:
    return Leg("openai", HOSTS.providers["openai"], "https", host, 443, CHAT, list(fields))


TARGETS = {
    "pooled": OPENAI,
    "one": Target("one", "openai", "https://api.openai.com", {"authorization": "Bearer sk-1"}),
    "none": Target("none", "openai", "https://api.openai.com"),
    "lab": Target("lab", "openai", "https://lab.example"),
    "signed": Target("signed", "aws-bedrock", "https://bedrock-runtime.us-east-1.amazonaws.com", aws=Aws("us-east-1")),
}
KEY = (b"Authorization", b"Bearer sk-own")
MARK = (b"OpenAI-Organization", b"org-1"), (b"Cookie", b"__cf_bm=1")


@pytest.mark.parametrize(
    ("leg", "alias", "status"),
    [
        (own_leg(KEY), None, None),
        (own_leg(), None, 401),
        (own_leg(*MARK), None, 401),
        (own_leg(host="llm.corp.example"), None, 401),
        (own_leg((b"x-team-key", b"k"), host="llm.corp.example"), None, None),
        (pooled_leg(), None, None),
        (pooled_leg(), "second", None),
        (pooled_leg(), "fifth", 400),
        (pooled_leg(), "default", 400),
        (pooled_leg(target=TARGETS["one"]), "default", None),
        (pooled_leg(target=TARGETS["one"]), "second", 400),
        (pooled_leg(target=TARGETS["none"]), None, 401),
        (pooled_leg([KEY], TARGETS["none"]), None, None),
        (pooled_leg(target=TARGETS["lab"]), None, None),
        (own_leg(KEY), "second", None),
    ],
)
def test_a_place_without_a_key_is_no_place_where_keys_are_asked_for(leg: Leg, alias: str | None, status: int) -> None:
    x = exchange()
    x.keyless, x.controls = True, {"byok-alias": alias} if alias else {}

    refusal = refusal_of(x, leg, TARGETS, asks_keys=True)

    assert (refusal.status if refusal else None) == status


def test_without_auth_a_request_without_a_key_passes_as_it_came() -> None:
    assert refusal_of(exchange(), own_leg(), TARGETS, asks_keys=False) is None


def test_a_call_that_generates_nothing_needs_a_key_only_where_it_came_with_ours() -> None:
    telemetry, listing = exchange(path="/v1/events"), exchange(KEY, path="/v1/models")

    assert refusal_of(telemetry, own_leg(), TARGETS, asks_keys=True) is None
    assert refusal_of(listing, own_leg(), TARGETS, asks_keys=True) is not None


def test_the_refusals_say_what_there_is_and_what_to_do() -> None:
    x = exchange()
    x.controls = {"byok-alias": "fifth"}

    unknown, missing = (refusal_of(x, leg, TARGETS, True) for leg in (pooled_leg(), own_leg()))

    assert unknown is not None and missing is not None
    assert unknown.message == (
        "The request header cf-aig-byok-alias names 'fifth', which is no key of target pooled;"
        " it has first, second, third."
    )
    assert missing.message == (
        "This request brings no key of its provider's, and the policy has no target at api.openai.com."
        " Give the policy a target there, or send the provider's key, and the gateway's as cf-aig-authorization."
    )
    assert (missing.kind, missing.should_retry) == ("authentication", False)


def test_an_upload_that_is_gone_before_it_is_known_cannot_be_signed() -> None:
    x = exchange()
    x.streamed_upload = True

    refusal = refusal_of(x, pooled_leg(target=TARGETS["signed"]), TARGETS, asks_keys=False)

    assert refusal is not None
    assert (refusal.status, refusal.kind) == (413, "too_large")


# -- accounts ---------------------------------------------------------------------------------------------------------

ACCOUNT = {"type": "service_account", "client_email": "a@b.example", "token_uri": "https://t.example/token"}


@pytest.mark.parametrize(
    ("account", "says"),
    [
        ("no json", "type has to be service_account"),
        (json.dumps({**ACCOUNT, "type": "authorized_user", "private_key": "s3cret"}), "type has to be service_account"),
        (json.dumps(ACCOUNT), "private_key is missing"),
        (json.dumps({**ACCOUNT, "private_key": "s3cret"}), "private_key cannot be read"),
        (json.dumps({**ACCOUNT, "private_key": "s3cret", "token_uri": "http://t.example"}), "has to be https"),
    ],
)
def test_an_account_that_is_none_is_found_at_start_and_not_quoted(account: str, says: str) -> None:
    target = Target("vertex", "google-vertex-ai", "https://aiplatform.googleapis.com", google=Google(account))

    with pytest.raises(StartError, match=says) as raised:
        Keys(Policy(targets={"vertex": target}), KeyStates(ManualClock()), ManualClock())

    assert str(raised.value).startswith("targets.vertex.google.service_account")
    assert "s3cret" not in str(raised.value)


def test_a_missing_profile_is_found_at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    target = replace(TARGETS["signed"], aws=Aws("us-east-1", profile="nobody"))

    with pytest.raises(StartError, match=r"targets\.signed\.aws: .*nobody"):
        Keys(Policy(targets={"signed": target}), KeyStates(ManualClock()), ManualClock())


def test_a_library_that_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "botocore.auth", None)

    with pytest.raises(StartError, match=r"pip install 'mitmgate\[aws\]'"):
        Keys(Policy(targets={"signed": TARGETS["signed"]}), KeyStates(ManualClock()), ManualClock())


def test_botocore_never_logs_what_it_signs() -> None:
    Keys(Policy(targets={"signed": TARGETS["signed"]}), KeyStates(ManualClock()), ManualClock())

    assert not logging.getLogger("botocore.auth").isEnabledFor(logging.DEBUG)
