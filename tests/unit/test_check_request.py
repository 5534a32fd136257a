"""``mitmgate check --request`` and ``--row`` say what becomes of a request, send nothing and write nothing."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli.check import check
from mitmgate.clock import SystemClock
from mitmgate.dialects.base import Reading
from mitmgate.store.answers import AnswerStore
from mitmgate.store.entry import Entry
from mitmgate.store.ledger import Ledger
from support.ledgers import charge
from support.sample_traces import call, database, id_of, insert, rows_of

URL = "https://api.openai.com/v1/chat/completions"
POLICY = """\
identify:
  route: {faq: {metadata.feature: faq}}
  tier: {large: {model: [gpt-5, gpt-4o]}}
guard:
  - {name: pii, find: [email], then: redact}
  - {name: topics, find: ["(?i)kestrel"], then: block}
  - {name: tried, find: [phone], then: block, shadow: true}
  - {name: later, find: [email], in: response, then: flag}
limit:
  - {name: burst, per: tenant, requests: 60, every: 1 h}
  - {name: tokens, per: tenant, tokens: 5000, every: day}
budget:
  - {name: day, per: tenant, match: {tier: large}, cost: 20 USD, every: day}
cache:
  - {name: faq, match: {route: faq}, ttl: 1 h, scope: [tenant]}
shape:
  - {name: bound, match: {tier: large}, then: {max_output_tokens: 4000}}
route:
  - {name: eu, match: {model: gpt-5}, try: [eu, us]}
retry: {attempts: 3}
hedge: [{name: slow, after: 2 s, to: us}]
breaker: {failures: 20 %}
targets:
  eu: {provider: openai, base_url: "https://eu.example/v1", headers: {authorization: "Bearer env:EU_KEY"}}
  us: {provider: openai, base_url: "https://us.example/v1", headers: {authorization: "Bearer env:US_KEY"}}
observe: [{hosts: ["*.pinecone.io"], kind: retrieval}]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    (path / "policy.yaml").write_text(POLICY)
    return path


def http(text: str = "hello", model: str = "gpt-4o", *headers: str, url: str = URL, tenant: str = "acme") -> str:
    tags = json.dumps({"tenantId": tenant, "feature": "faq"})
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]})
    lines = [f"POST {url}", "authorization: Bearer sk-123456", f"cf-aig-metadata: {tags}", *headers]
    return "\n".join([*lines, "content-type: application/json", "", body])


def run(home: Path, request: str | None, *options: str, policy: str = "policy.yaml", **env: str) -> Result:
    args = [str(home / policy), "--home", str(home), *options]
    if request is not None:
        (home / "call.http").write_text(request)
        args += ["--request", str(home / "call.http")]
    result = CliRunner().invoke(check, args, env=env)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def found(home: Path, request: str | None, *options: str, **env: str) -> dict[str, Any]:
    """Return what ``--json`` says."""
    result = run(home, request, "--json", *options, **env)
    assert result.stdout, result.stderr
    said: dict[str, Any] = json.loads(result.stdout)
    return said


def section(said: dict[str, Any], name: str) -> dict[str, Any]:
    one: dict[str, Any] = next(one for one in said["sections"] if one["name"] == name)
    return one


def states(said: dict[str, Any], name: str) -> dict[str, str]:
    return {rule["rule"]: rule["state"] for rule in section(said, name)["rules"]}


# -- a request that goes out ------------------------------------------------------------------------------------------


def test_every_section_says_which_rules_act_and_what_comes_of_it(home: Path) -> None:
    result = run(home, http("mail joe@corp.example.com or call +41 44 668 18 00", "gpt-5"))

    assert result.exit_code == 0, result.stderr
    where = home / "policy.yaml"
    for line in (
        f"POST {URL}",
        "  tenant           acme",
        "    nobody is asked for a key",
        f"  route faq   acts       metadata.feature is 'faq'  {where}:2",
        f"  pii     acts       it is for every request  {where}:5",
        f"  tried   would act  it is for every request  {where}:7",
        "    pii: redact: request: 1 email",
        "    tried: would block: request: 1 phone",
        "    topics: nothing found in the request",
        "    burst: 1 request counted; 60 requests every 1 h for tenant acme, 59 left",
        "    later: will look at the answer",
        f"  faq  acts       route is 'faq'  {where}:15",
        "    bound: max_output_tokens: max_completion_tokens set to 4,000",
        "    1. eu as gpt-5: https://eu.example/v1/chat/completions, the key the target's, the body changed",
        "    2. us as gpt-5: https://us.example/v1/chat/completions, the key the target's, the body changed",
        "    slow: a second attempt at us, after 2 s without content",
        "    3 attempts at each place; the first wait 500 ms, exponential, none longer than 30 s or later than 2 m",
        "    breaker: a place rests for 15 s where 20 % of 10 calls or more fail within 30 s",
        "It would be sent to eu as gpt-5, then us as gpt-5.",
    ):
        assert line in result.stdout.splitlines(), line
    assert "joe@corp" not in result.stdout
    assert "668 18 00" not in result.stdout
    assert "123456" not in result.stdout


def test_the_same_facts_are_there_for_machines(home: Path) -> None:
    said = found(home, http())

    assert (said["verdict"], said["refusal"]) == ("sent", None)
    assert said["who"] | {"auth": "", "input_tokens": 0} == {
        "provider": "openai",
        "operation": "chat",
        "model": "gpt-4o",
        "stream": False,
        "input_tokens": 0,
        "host": "api.openai.com",
        "path": "/v1/chat/completions",
        "tenant": "acme",
        "route": "faq",
        "tier": "large",
        "auth": "",
    }
    assert states(said, "route") == {"eu": "no"}
    [place] = section(said, "route")["facts"]["places"]
    assert (place["target"], place["key"], place["body_changed"]) == ("openai", "as sent", True)
    [day] = section(said, "budget")["facts"]["counters"]
    assert (day["rule"], day["unit"], day["most"], day["used"]) == ("day", "nanousd", 20 * 10**9, 0)
    assert day["reserved"] == day["amount"] > 0
    cached = section(said, "cache")["facts"]
    assert (cached["status"], cached["ttl_s"], cached["scope"], cached["rule"]) == ("MISS", 3600.0, ["tenant"], "faq")
    assert len(cached["key"]) == 64


def test_a_header_goes_before_the_rules_of_its_section(home: Path) -> None:
    said = found(home, http("hi", "gpt-5", "cf-aig-cache-ttl: 60", "cf-aig-fallback: us", "cf-aig-max-attempts: 1"))

    assert section(said, "cache")["facts"]["ttl_s"] == 60.0
    assert [place["target"] for place in section(said, "route")["facts"]["places"]] == ["us"]
    assert section(said, "retry")["says"] == [
        "the header cf-aig-max-attempts goes before what rules say",
        "one attempt at each place",
    ]
    assert said["headers"] == {
        "cf-aig-metadata": {"tenantId": "acme", "feature": "faq"},
        "cf-aig-cache-ttl": 60,
        "cf-aig-fallback": ["us"],
        "cf-aig-max-attempts": 1,
    }


def test_a_request_comes_from_stdin_too(home: Path) -> None:
    args = [str(home / "policy.yaml"), "--home", str(home), "--request", "-"]
    result = CliRunner().invoke(check, args, input=f'curl {URL} --json \'{{"model": "gpt-4o", "messages": []}}\'')

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "It would be sent to openai as gpt-4o."


def test_a_body_alone_is_taken_for_a_chat_and_said_to_be(home: Path) -> None:
    said = found(home, '{"model": "gpt-4o", "messages": []}')

    assert said["notices"] == [f"the file is a body alone: a POST to {URL} is assumed"]
    assert said["who"]["operation"] == "chat"


# -- one that does not ------------------------------------------------------------------------------------------------


def test_a_refusal_names_rule_and_line_and_the_rooms_behind_are_not_reached(home: Path) -> None:
    result = run(home, http("about Project Kestrel"))

    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert last.startswith("It would be refused with 403: The request was blocked by guard rule 'topics'")
    assert f"{home}/policy.yaml:6" in last
    assert "limit (not reached)" in result.stdout
    said = found(home, http("about Project Kestrel"))
    assert (said["verdict"], said["refusal"]["rule"], said["refusal"]["source"]) == ("refused", "topics", "guard")
    assert [one["name"] for one in said["sections"] if one["reached"]] == ["auth", "identify", "guard"]
    assert states(said, "limit") == {"burst": "acts", "tokens": "acts"}


def test_a_call_that_never_fits_is_refused_by_tokens_and_says_so(home: Path) -> None:
    said = found(home, http("word " * 20_000, "gpt-4o-mini"))

    assert (said["verdict"], said["refusal"]["rule"]) == ("refused", "tokens")
    counters = {one["rule"]: one for one in section(said, "limit")["facts"]["counters"]}
    assert (counters["burst"]["full"], counters["tokens"]["full"]) == (False, True)


def test_a_header_that_does_not_parse_is_refused_and_the_rules_are_asked_all_the_same(home: Path) -> None:
    said = found(home, http("hi", "gpt-4o", "cf-aig-cache-ttl: soon"))

    assert (said["verdict"], said["refusal"]["status"]) == ("refused", 400)
    assert states(said, "identify")["tier large"] == "acts"


KEYED = "auth: {keys: [{name: app, key: env:APP_KEY, tenant: globex}]}\n"


def test_without_a_key_of_the_gateways_nobody_comes_in_and_with_one_its_tenant_stands(home: Path) -> None:
    (home / "policy.yaml").write_text(KEYED + POLICY)

    without = found(home, http())
    with_key = found(home, http("hi", "gpt-4o", "cf-aig-authorization: Bearer app-key"), APP_KEY="app-key")

    assert (without["verdict"], without["refusal"]["status"], without["who"]["model"]) == ("refused", 401, "gpt-4o")
    assert section(without, "auth")["says"] == ["no key of the gateway's came that opens the door"]
    assert (with_key["verdict"], with_key["who"]["tenant"], with_key["who"]["key"]) == ("sent", "globex", "app")
    assert "app-key" not in json.dumps(with_key)


PASSES = {
    "https://example.com/x": "example.com is no provider's host: it is tunnelled, and no rule is asked.",
    "https://a.pinecone.io/query": "a.pinecone.io is observed (retrieval): one span per call, and no rule is asked.",
    "http://127.0.0.1:8081/healthz": "/healthz is the gateway's own page.",
}


@pytest.mark.parametrize("url", PASSES)
def test_what_no_rule_is_asked_about_passes(home: Path, url: str) -> None:
    said = found(home, http(url=url))

    assert (said["verdict"], said["ends"], said["sections"]) == ("passed", PASSES[url], [])


def test_a_call_that_generates_nothing_is_passed_on(home: Path) -> None:
    said = found(home, "GET https://api.openai.com/v1/models\nauthorization: Bearer sk-1")

    assert said["verdict"] == "passed"
    assert states(said, "limit") == {"burst": "acts", "tokens": "acts"}


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8081/openai/chat/completions", "openai"),
        ("/v1/account/gateway/openai/chat/completions", "openai"),
        ("/target/us/chat/completions", "us"),
    ],
)
def test_a_path_of_the_base_url_door_leads_where_it_does_there(home: Path, url: str, target: str) -> None:
    said = found(home, http(url=url))

    assert said["verdict"] == "sent"
    assert section(said, "route")["facts"]["places"][0]["target"] == target


def test_a_path_that_leads_nowhere_is_refused(home: Path) -> None:
    result = run(home, http(url="/opnai/chat/completions"))

    assert result.exit_code == 1
    assert "It would be refused with 404: no provider 'opnai' at this door" in result.stdout


# -- beside a gateway -------------------------------------------------------------------------------------------------


def files_of(home: Path) -> dict[str, bytes]:
    """Return what is in *home*; a reader may leave an empty log beside a database."""
    files = [path for path in home.iterdir() if path.is_file() and path.suffix not in (".http", ".db-wal", ".db-shm")]
    return {path.name: path.read_bytes() for path in files}


def spent(home: Path, used: int) -> None:
    """Let a gateway have counted *used* requests of acme's."""
    ledger = Ledger(home / "spend.db", SystemClock())
    ledger.open()
    for n in range(used):
        ledger.reserve(f"call {n}", [charge("burst", every=3600.0)])
        ledger.settle(f"call {n}", {"requests": 1})
    ledger.reserve("call under way", [charge("burst", every=3600.0)])
    ledger.close()


def test_counters_go_on_from_what_a_gateway_has_counted_and_the_file_stays_as_it_is(home: Path) -> None:
    spent(home, 57)
    before = files_of(home)

    said = found(home, http())
    again = found(home, http())

    for one in (said, again):
        burst = section(one, "limit")["facts"]["counters"][0]
        assert (burst["used"], burst["left"], burst["full"]) == (59, 1, False)
    assert files_of(home) == before


def test_a_full_counter_refuses(home: Path) -> None:
    spent(home, 59)

    said = found(home, http())

    assert (said["verdict"], said["refusal"]["rule"]) == ("refused", "burst")
    assert 0 < said["refusal"]["retry_after_s"] <= 3600


def keep(home: Path, key: str) -> None:
    """Let a gateway have kept an answer under *key*."""
    wall = SystemClock().wall()
    entry = Entry(key, [(b"content-type", b"application/json")], b"OK", ((0, b"{}"),), Reading(ended=True), None, wall,
                  3600.0, 0.0, "faq", "acme", "faq", "gpt-4o", "openai", "openai", "api.openai.com", 0)  # fmt: skip
    store = AnswerStore(home / "cache.db", 1 << 20, SystemClock())
    store.open()
    store.put(entry)
    store.put(replace(entry, key="0" * 64))
    store.close()


def test_an_answer_that_is_kept_is_the_answer_and_nothing_behind_the_cache_is_reached(home: Path) -> None:
    key = section(found(home, http()), "cache")["facts"]["key"]
    keep(home, key)
    before = (home / "cache.db").read_bytes()

    said = found(home, http())
    other = found(home, http(tenant="globex"))

    assert (said["verdict"], said["ends"]) == ("answered", "It would be answered out of the cache.")
    facts = section(said, "cache")["facts"]
    assert (facts["status"], facts["key"], facts["rule"]) == ("HIT", key, "faq")
    assert (section(said, "budget")["reached"], other["verdict"]) == (False, "sent")
    assert (home / "cache.db").read_bytes() == before


# -- what would be asked of somebody else -----------------------------------------------------------------------------

ASKING = """\
guard: [{name: injection, then: {ask: judge}}]
shape: [{name: condense, match: {input_tokens: "> 100"}, then: {summarize: {keep_last: 100, with: judge}}}]
targets: {judge: {provider: openai, base_url: "https://judge.example/v1", headers: {authorization: env:JUDGE}}}
"""


def test_a_target_that_a_rule_would_ask_is_named_and_not_asked(home: Path) -> None:
    (home / "policy.yaml").write_text(ASKING)
    said_before = [{"role": role, "content": "word " * 200} for role in ("user", "assistant", "user", "assistant")]
    body = json.dumps({"model": "gpt-4o", "messages": [*said_before, {"role": "user", "content": "and now?"}]})

    said = found(home, body)

    assert said["verdict"] == "sent"
    assert "guard injection: asks judge, which is not done here" in section(said, "guard")["says"]
    assert "shape condense: asks judge, which is not done here" in section(said, "shape")["says"]


ACCOUNT = {"type": "service_account", "client_email": "a@b", "private_key": "none", "token_uri": "https://t.example"}


def test_no_account_has_to_be_real_and_no_secret_has_to_be_set(home: Path) -> None:
    target = "{provider: google-vertex-ai, base_url: 'https://v.example', google: {service_account: env:SA}}"
    judge = "{provider: openai, base_url: 'https://j.example', headers: {authorization: env:NOT_SET}}"
    (home / "policy.yaml").write_text(f"targets: {{vertex: {target}, judge: {judge}}}")

    said = found(home, http(url="/target/judge/v1/chat/completions"), SA=json.dumps(ACCOUNT))

    assert section(said, "route")["facts"]["places"][0]["key"] == "the target's"


# -- a recorded call --------------------------------------------------------------------------------------------------


def recorded(home: Path, body: bytes | None, **columns: Any) -> None:
    path = database(home / "traces.db", rows_of(call(1, metadata='{"feature": "faq"}', **columns)))
    if body is not None:
        row = {"exchange_id": id_of(1), "kind": "request", "encoding": "identity", "bytes": len(body), "body": body}
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            insert(conn, "payloads", [row])


def test_a_recorded_call_is_looked_at_with_its_body(home: Path) -> None:
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "joe@corp.example.com"}]}).encode()
    recorded(home, body)

    said = found(home, None, "--row", "last")

    assert said["request"] == f"POST {URL}"
    then, headers = said["notices"]
    assert then.startswith("then: 200 complete · openai/gpt-4o-2024-08-06 · tenant acme")
    assert headers == "rows have no headers: a rule that asks for one takes it for absent, and none goes before a rule"
    assert (said["who"]["tenant"], said["who"]["route"], said["who"]["tier"]) == ("acme", "faq", "large")
    assert "pii: redact: request: 1 email" in section(said, "guard")["says"]
    assert said["verdict"] == "sent"


def test_what_was_not_kept_is_said_and_the_row_tells_the_tokens(home: Path) -> None:
    recorded(home, None, input_tokens=6000, auth="ab" * 32)

    said = found(home, None, "--row", id_of(1)[:13])

    assert "its body was not kept: guard and shape have nothing to look at" in said["notices"][2]
    assert (said["who"]["input_tokens"], said["who"]["auth"]) == (6000, "ab" * 32)
    assert (said["verdict"], said["refusal"]["rule"]) == ("refused", "tokens")


def test_a_recorded_call_of_a_masked_body_says_so(home: Path) -> None:
    recorded(home, b'{"model": "gpt-4o", "messages": []}', request_sha256="00" * 32)

    said = found(home, None, "--row", "last")

    assert "its body was kept with its secrets masked" in said["notices"][2]


def test_a_call_to_a_host_that_is_nobodys_any_more_passes(home: Path) -> None:
    recorded(home, None, host="old.example")

    assert found(home, None, "--row", "last")["ends"].startswith("old.example is no provider's host")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_sentences(home: Path) -> None:
    nothing = run(home, None, "--request", str(home / "none.http"))
    unclear = run(home, "what is this?")
    both = run(home, http(), "--row", "last")
    no_row = run(home, None, "--row", "last")

    assert (nothing.exit_code, unclear.exit_code, both.exit_code, no_row.exit_code) == (2, 2, 2, 1)
    assert "none.http: no such file" in nothing.stderr
    assert "its first line is 'what is this?'" in unclear.stderr
    assert "--request and --row ask for different things" in both.stderr
    assert "there is no trace database at" in no_row.stderr


def test_what_a_stranger_wrote_does_not_act_on_the_terminal(home: Path) -> None:
    result = run(home, http(tenant="\x1b[31mred"))

    assert "\x1b" not in result.stdout
