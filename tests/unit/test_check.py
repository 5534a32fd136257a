"""``mitmgate check``: every fault on stderr and exit 1, or the whole policy as it would run."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitmgate.cli.check import check

GOOD = """\
providers:
  corp-llm: {hosts: [llm.corp.example], dialect: openai}
observe:
  - {hosts: ["*.pinecone.io"], kind: retrieval}
timeout:
  - {match: {model: "o1*"}, first_byte: 10 m, total: none}
targets:
  eu: {provider: azure-openai, base_url: "https://aoai-eu.openai.azure.com:8443/v1", headers: {api-key: env:EU_KEY}}
"""
RULES = """\
cache: [{name: faq, match: {route: faq}, ttl: 90 m, scope: [tenant], stale_if_error: 1 d}]
cache_store: {max: 1 GiB}
route:
  - name: support
    match: {model: dynamic/support}
    choose:
      - {within: {requests: 100, every: 1 m, per: tenant}, try: [eu, {target: us, model: gpt-5-mini, timeout: 3 s}]}
      - {split: {us: 90, gpt-5-next: 10}, by: session}
    zone: europe
retry: [{match: {tier: large}, attempts: 5}, {attempts: 2, delay: 250 ms, retry_on: [429, 5xx, connect]}]
breaker: {failures: 20 %}
hedge: [{name: tail, after: p95, to: us, shadow: true}]
targets:
  eu: {provider: openai, base_url: "https://eu.example/v1", zone: europe}
  us: {provider: openai, base_url: "https://us.example/v1", zone: europe}
"""
RULES_SHOWN = """\
  [0]
    name                  faq
    match
      route               faq
    ttl                   90 m
    scope                 tenant
    stale_if_error        1 d
    replay                at once
    ignore                –
cache_store
  max                     1 GiB
  key_header              scope
  coalesce                true
shape                     –
route
  [0]
    name                  support
    match
      model               dynamic/support
    choose
      [0]
        within
          requests        100
          every           1 m
          per             tenant
        try
          [0]             eu
          [1]
            target        us
            model         gpt-5-mini
            timeout       3 s
      [1]
        split
          us              90
          gpt-5-next      10
        by                session
    fall_back_on          408, 409, 425, 429, 5xx, connect, reset, timeout
    zone                  europe
retry
  [0]
    match
      tier                large
    attempts              5
    delay                 500 ms
    backoff               exponential
    max_delay             30 s
    jitter                full
    retry_on              408, 409, 425, 429, 5xx, connect, reset, timeout
    within                2 m
    ratio                 20 %
  [1]
    attempts              2
    delay                 250 ms
    backoff               exponential
    max_delay             30 s
    jitter                full
    retry_on              429, 5xx, connect
    within                2 m
    ratio                 20 %
"""
RULES_AFTER_TIMEOUT_SHOWN = """\
  window                  30 s
  min_requests            10
  failures                20 %
  rest                    15 s
hedge
  [0]
    name                  tail
    shadow                true
    after                 p95
    to                    us
    ratio                 10 %
"""
BAD = "usage: aks\ntargets:\n  eu: {provider: openai, base_url: https://a.b, headers: {api-key: sk-hidden}}\n"


def run(*args: str, **env: str) -> Result:
    return CliRunner().invoke(check, args, env={"EU_KEY": None, **env})


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "team.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return str(path)


def test_without_a_policy_the_default_is_shown() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stdout.startswith("the built-in default is valid; its sha256 begins ")
    lines = result.stdout.splitlines()
    assert "usage                     ask" in lines
    assert "  first_byte              2 m" in lines
    assert "  max                     10 GiB" in lines
    assert "    aws-bedrock           drain" in lines
    assert "  openai                  api.openai.com, *.api.openai.com" in lines
    assert lines[-1] == "Every other host is tunnelled, untouched and unseen."


def test_a_good_policy_is_shown_as_it_would_run(good: str) -> None:
    result = run(good, EU_KEY="topsecret")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{good} is valid;")
    assert "      api-key             env:EU_KEY" in lines
    assert "    first_byte            10 m" in lines
    assert "    total                 none" in lines
    assert "  corp-llm                llm.corp.example" in lines
    assert "  target eu               aoai-eu.openai.azure.com:8443" in lines
    assert "  retrieval               *.pinecone.io" in lines
    assert "topsecret" not in result.output


def test_rules_are_shown_in_the_words_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    result = run(f"{tmp_path}/rules.yaml")
    assert result.exit_code == 0, result.stderr
    before, from_timeout = result.stdout.split("\ntimeout\n")
    assert before.partition("\ncache\n")[2].splitlines() == RULES_SHOWN.splitlines()
    after_timeout = from_timeout.partition("\ntargets\n")[0]
    assert after_timeout.partition("\nbreaker\n")[2].splitlines() == RULES_AFTER_TIMEOUT_SHOWN.splitlines()


GOVERNED = """\
auth: {keys: [{name: app, key: env:EU_KEY, tenant: acme}]}
guard: [{name: people, find: [email, "(?i)kestrel"], then: redact, restore: true}]
budget: [{name: day, cost: 20 USD, every: day, soft: 80 %, downgrade: {at: 90 %, to: {model: gpt-5-mini}}}]
shape: [{name: long, match: {input_tokens: "> 20000"}, then: {keep_last: 20000}}]
export: {audit: {to: audit}}
"""
GOVERNED_SHOWN = """\
auth
  keys
    [0]
      name                app
      key                 env:EU_KEY
      tenant              acme
guard
  [0]
    name                  people
    find                  email, (?i)kestrel
    in                    request
    then                  redact
    restore               true
budget
  [0]
    name                  day
    per                   –
    cost                  20 USD
    every                 day
    soft                  80 %
    downgrade
      at                  90 %
      to
        model             gpt-5-mini
    hard                  refuse
    unpriced              allow
shape
  [0]
    name                  long
    match
      input_tokens        > 20000
    then
      keep_last           20000
export
  audit
    to                    audit
"""


def test_governance_is_shown_in_the_words_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOVERNED)
    result = run(f"{tmp_path}/p.yaml", EU_KEY="topsecret")
    assert result.exit_code == 0, result.stderr
    said = result.stdout.partition("\n\n")[2].partition("\nWhat would apply")[0]
    sections = {part.partition("\n")[0]: part for part in re.split(r"\n(?=\w)", said)}
    shown = [sections[name] for name in ("auth", "guard", "budget", "shape", "export")]
    assert "\n".join(shown) + "\n" == GOVERNED_SHOWN
    assert "topsecret" not in result.output


def test_what_has_no_effect_is_said_below_the_verdict(tmp_path: Path) -> None:
    path = f"{tmp_path}/p.yaml"
    Path(path).write_text(GOVERNED)
    said = f"{path}:5: export: this version does not export yet; rows stay in the database alone"
    assert run(path, EU_KEY="topsecret").stdout.splitlines()[1] == said
    assert json.loads(run("--json", path, EU_KEY="topsecret").stdout)["notices"] == [said]


def test_in_a_pipe_there_is_no_colour_no_cut_and_no_trailing_space(good: str) -> None:
    result = run(good, EU_KEY="topsecret", COLUMNS="40")
    assert "\x1b" not in result.output
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    assert "*.cloud.databricks.com, *.azuredatabricks.net, *.gcp.databricks.com" in result.stdout


def test_each_fault_is_a_line_on_stderr(bad: str) -> None:
    result = run(bad)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{bad}:1: usage: 'aks' is not known; did you mean 'ask'?",
        f"{bad}:3: targets.eu.headers.api-key: a secret may not stand in the file;"
        ' write env:NAME, or "Bearer env:NAME"',
    ]


def test_a_missing_secret_shows_here_first(good: str) -> None:
    result = run(good)
    assert result.exit_code == 1
    assert result.stderr == f"{good}:8: targets.eu.headers.api-key: the environment variable EU_KEY is not set\n"


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    result = run(f"{tmp_path}/none.yaml")
    assert result.exit_code == 1
    assert result.stderr == f"{tmp_path}/none.yaml: the policy cannot be read: no such file or directory\n"


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text('"\\e[31mred": 1\n')
    result = run(str(path))
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "␛[31mred" in result.stderr


def test_json_says_the_policy_and_its_hosts(good: str) -> None:
    result = run("--json", good, EU_KEY="topsecret")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert (said["ok"], said["faults"]) == (True, [])
    assert said["policy"]["targets"]["eu"]["headers"] == {"api-key": "env:EU_KEY"}
    assert said["policy"]["trace"]["keep"] == "30 d"
    assert said["hosts"]["observed"] == {"retrieval": ["*.pinecone.io"]}
    assert said["hosts"]["intercepted"]["corp-llm"] == ["llm.corp.example"]
    assert said["hosts"]["intercepted"]["target eu"] == ["aoai-eu.openai.azure.com:8443"]
    assert len(said["sha256"]) == 12
    assert "topsecret" not in result.output


def test_json_says_the_faults(bad: str) -> None:
    result = run("--json", bad)
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["ok"] is False
    assert said["faults"][0] == {
        "path": bad,
        "line": 1,
        "key": "usage",
        "text": "'aks' is not known; did you mean 'ask'?",
    }
    assert "policy" not in said


def test_help_shows_examples() -> None:
    result = run("--help")
    assert "mitmgate check --json team.yaml" in result.stdout
