"""A policy that is right becomes frozen values; what it leaves out keeps the default; ``show`` says it all again."""

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate.policy import Policy, default, default_path, load, loads, show
from mitmgate.policy.match import compile_match
from mitmgate.policy.secret import Secret
from mitmgate.policy.values import Identify, Observe, ProviderHosts, Target, Timeout, Trace, Upstream

ENV = {"SA_KEY": "sa-secret", "CORP_PROXY": "http://me:proxy-secret@proxy.corp.example:3128"}

TEAM = """\
version: 1
timezone: Africa/Johannesburg
usage: leave
providers:
  corp-llm: {hosts: ["llm.corp.example", "*.LLM.corp.example", "localhost:8000"], dialect: openai}
observe:
  - {hosts: ["*.pinecone.io"], kind: retrieval}
  - {hosts: mcp.corp.example, kind: mcp}
identify:
  tenant: [key, metadata.tenantId, header.X-Tenant-Id]
  user: metadata.userId
  session: [header.x-session-id]
  prompt_version: [metadata.promptVersion]
  route:
    faq: {metadata.feature: faq}
    chat: {path: "*/chat/completions"}
  tier:
    large: {model: ["gpt-5", "claude-opus-*"], route: chat}
  region: jnb
  sla: {gold: {tenant: [acme, globex]}}
  require: [tenant]
timeout:
  - {match: {model: "o1*"}, unless: {stream: true}, first_byte: 10 m, total: none}
  - {connect: 500 ms}
targets:
  azure-sa:
    provider: azure-openai
    base_url: https://aoai-sa.openai.azure.com/
    headers: {api-key: env:SA_KEY, Authorization: "Bearer env:SA_KEY", x-team: search, x-max-tokens: "5"}
    deployments: {gpt-5: gpt-5-sa}
    api_version: 2024-10-21
    zone: sa
    ca: corp.pem
  own: {provider: corp-llm, base_url: "http://10.0.0.7:8000/v1"}
upstream:
  connections_per_host: 2_0
  proxy: env:CORP_PROXY
  ca: corp.pem
  after_client_leaves: {corp-llm: drain}
  websocket: refuse
  connect_to: {"API.openai.com:443": "LocalHost:9443", "[::1]:443": "[::2]:8443"}
trace: {payloads: full, keep: 1 d, max: 1 GiB, keep_rows: 90 d, header: ignore}
"""


@pytest.fixture
def team(tmp_path: Path) -> Policy:
    (tmp_path / "corp.pem").write_text("a certificate")
    (tmp_path / "team.yaml").write_text(TEAM)
    return load(tmp_path / "team.yaml", ENV, "team.yaml")


def test_every_section_becomes_its_value(team: Policy, tmp_path: Path) -> None:
    ca = str(tmp_path / "corp.pem")
    assert team == Policy(
        path="team.yaml",
        sha256=hashlib.sha256(TEAM.encode()).hexdigest()[:12],
        version=1,
        timezone="Africa/Johannesburg",
        usage="leave",
        providers=(ProviderHosts("corp-llm", ("llm.corp.example", "*.llm.corp.example", "localhost:8000"), "openai"),),
        observe=(Observe(("*.pinecone.io",), "retrieval"), Observe(("mcp.corp.example",), "mcp")),
        identify=Identify(
            tenant=("key", "metadata.tenantId", "header.x-tenant-id"),
            user=("metadata.userId",),
            session=("header.x-session-id",),
            prompt_version=("metadata.promptVersion",),
            route={
                "faq": compile_match({"metadata.feature": "faq"}),
                "chat": compile_match({"path": "*/chat/completions"}),
            },
            tier={"large": compile_match({"model": ["gpt-5", "claude-opus-*"], "route": "chat"})},
            sla={"gold": compile_match({"tenant": ["acme", "globex"]})},
            region="jnb",
            require=("tenant",),
        ),
        timeout=(
            Timeout(
                match=compile_match({"model": "o1*"}),
                unless=compile_match({"stream": True}),
                first_byte_s=600.0,
                total_s=None,
            ),
            Timeout(connect_s=0.5),
        ),
        targets={
            "azure-sa": Target(
                name="azure-sa",
                provider="azure-openai",
                base_url="https://aoai-sa.openai.azure.com",
                headers={
                    "api-key": "sa-secret",
                    "Authorization": "Bearer sa-secret",
                    "x-team": "search",
                    "x-max-tokens": "5",
                },
                deployments={"gpt-5": "gpt-5-sa"},
                api_version="2024-10-21",
                zone="sa",
                ca=ca,
            ),
            "own": Target(name="own", provider="corp-llm", base_url="http://10.0.0.7:8000/v1"),
        },
        upstream=Upstream(
            connections_per_host=20,
            proxy=ENV["CORP_PROXY"],
            ca=ca,
            after_client_leaves={"default": "cancel", "aws-bedrock": "drain", "corp-llm": "drain"},
            websocket="refuse",
            connect_to={"api.openai.com:443": ("localhost", 9443), "[::1]:443": ("::2", 8443)},
        ),
        trace=Trace(payloads="full", keep_s=86400.0, max_bytes=2**30, keep_rows_s=90 * 86400.0, header="ignore"),
    )


def test_labels_keep_the_order_of_the_file(team: Policy) -> None:
    assert list(team.identify.route) == ["faq", "chat"]


def test_a_policy_never_shows_its_secrets(team: Policy) -> None:
    seen = repr(team) + json.dumps(show(team))
    assert "secret" not in seen
    assert "env:SA_KEY" in seen
    assert "Bearer env:SA_KEY" in seen
    assert "env:CORP_PROXY" in seen


def test_a_secret_survives_a_copy_unseen() -> None:
    secret = copy.deepcopy(Secret("hidden", "env:KEY"))
    assert secret == "hidden"
    assert repr(secret) == "env:KEY"


def test_what_is_shown_loads_as_the_same_policy(team: Policy) -> None:
    again = loads(json.dumps(show(team)), "again.yaml", ENV)
    assert replace(again, path=team.path, sha256=team.sha256) == team


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("identify", "team.yaml:9"),
        ("identify.require", "team.yaml:21"),
        ("timeout[1]", "team.yaml:24"),
        ("targets.azure-sa", "team.yaml:26"),
        ("trace.keep", "team.yaml:42"),
        ("trace.nothing", None),
    ],
)
def test_a_policy_knows_where_its_rules_stand(team: Policy, key: str, where: str | None) -> None:
    assert team.where(key) == where


def test_the_default_has_no_place_to_name() -> None:
    assert default().where("trace.keep") is None


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "targets:\n", "trace: # keep: 1 d\n", "timeout: []\n"])
def test_what_is_left_out_keeps_the_default(text: str) -> None:
    assert replace(loads(text, "p.yaml", {}), path=None, sha256=None) == Policy()


def test_a_byte_order_mark_is_no_fault() -> None:
    assert loads(b"\xef\xbb\xbfusage: leave\n", "p.yaml", {}).usage == "leave"


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("timeout: {connect: 1 s}", Timeout(connect_s=1.0)),
        ("timeout: [{match: {model: x}, connect: 1 s}]", Timeout()),
        ("timeout: {match: {model: x}, connect: 1 s}", Timeout()),
        ("timeout: {unless: {model: x}, connect: 1 s}", Timeout()),
        ("timeout: [{match: {}, connect: 1 s}]", Timeout(match=compile_match({}), connect_s=1.0)),
    ],
)
def test_every_request_finds_a_timeout(text: str, last: Timeout) -> None:
    assert loads(text, "p.yaml", {}).timeout[-1] == last


def test_paths_are_relative_to_the_policy_file_wherever_the_gateway_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "corp.pem").write_text("a certificate")
    (folder / "p.yaml").write_text("upstream: {ca: corp.pem}")
    monkeypatch.chdir(tmp_path)
    assert load(Path("conf/p.yaml"), {}).upstream.ca == str(folder / "corp.pem")
    assert loads("upstream: {ca: corp.pem}", "conf/p.yaml", {}).upstream.ca == str(folder / "corp.pem")


def test_anchors_save_repeating_a_value() -> None:
    text = "identify:\n  tenant: &who [metadata.a]\n  user: *who\n"
    identify = loads(text, "p.yaml", {}).identify
    assert identify.tenant == identify.user == ("metadata.a",)


# -- policies/default.yaml --------------------------------------------------------------------------------------------


def test_the_default_file_is_exactly_what_runs_without_a_policy() -> None:
    written = default()
    assert written.path is None
    assert written.sha256 == hashlib.sha256(default_path().read_bytes()).hexdigest()[:12]
    assert replace(written, sha256=None) == Policy()


def test_the_default_file_writes_out_every_key() -> None:
    written = default()
    said = show(written)
    keys = {f"{section}.{key}" for section, value in said.items() if isinstance(value, dict) for key in value}
    assert keys | set(said) <= set(written.lines)
