"""What a policy cannot say: each mistake is one sentence with file, line and key, and all of them come at once."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.errors import PolicyError
from mitmgate.policy import Policy, load, loads
from mitmgate.policy.sections import FLOW

ENV = {"KEY": "sk-real", "EMPTY": " ", "BROKEN": "a\nb", "PROXY": "socks5://u:secret@proxy:1080"}


def faults_of(text: str | bytes) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        loads(text, "p.yaml", ENV)
    return [str(fault) for fault in refused.value.faults]


def target(line: str) -> str:
    """Return a policy whose target ``t`` is whole but for *line*, the 5th."""
    return f"targets:\n  t:\n    provider: openai\n    base_url: https://llm.example.com\n    {line}\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # the file as a whole
        ("- version: 1", "p.yaml:1: a policy is a mapping of sections, not a list"),
        ("version 1", "p.yaml:1: a policy is a mapping of sections, not text"),
        (b"usage: ask\n# \xe9\n", "p.yaml:2: not UTF-8: byte 0xe9; save the file as UTF-8"),
        (b"#" * (4 * 2**20 + 1), "p.yaml: the file is larger than 4 MiB; is it a policy?"),
        # sections
        ("usge: ask", "p.yaml:1: usge: unknown section; did you mean 'usage'?"),
        ("timeouts: {}", "p.yaml:1: timeouts: unknown section; did you mean 'timeout'?"),
        ("upstraem: {}", "p.yaml:1: upstraem: unknown section; did you mean 'upstream'?"),
        (
            "xyzzy: 1",
            "p.yaml:1: xyzzy: unknown section; sections are version, timezone, usage, providers, observe, auth,"
            " identify, guard, limit, budget, cache, cache_store, shape, route, retry, timeout, breaker, hedge,"
            " targets, upstream, latency, trace, alert, export and state",
        ),
        ("usage: ask\nusage: leave", "p.yaml:2: usage: stands twice; the first is on line 1"),
        # version, timezone, usage
        ("version: 2", "p.yaml:1: version: 2 is not known; this mitmgate reads version 1"),
        ("version: true", "p.yaml:1: version: true is not known; this mitmgate reads version 1"),
        ('version: "1"', "p.yaml:1: version: 1 is not known; this mitmgate reads version 1"),
        ("version: {}", "p.yaml:1: version: it takes a number, not a mapping"),
        (
            "timezone: Joburg",
            "p.yaml:1: timezone: 'Joburg' is no time zone; write it like Africa/Johannesburg",
        ),
        (
            "timezone: Africa/Johanesburg",
            "p.yaml:1: timezone: 'Africa/Johanesburg' is no time zone; did you mean 'Africa/Johannesburg'?",
        ),
        ("timezone: ../etc", "p.yaml:1: timezone: '../etc' is no time zone; write it like Africa/Johannesburg"),
        ("timezone: 2", 'p.yaml:1: timezone: 2 is a number here; for text put quotes around it: "2"'),
        ("usage: aks", "p.yaml:1: usage: 'aks' is not known; did you mean 'ask'?"),
        ("usage: true", "p.yaml:1: usage: 'true' is not known; it takes ask or leave"),
        ("usage: [ask]", "p.yaml:1: usage: it takes ask or leave, not a list"),
        # providers
        ("providers: []", "p.yaml:1: providers: it takes a mapping of names to hosts and dialect, not a list"),
        ("providers: {p: x}", "p.yaml:1: providers.p: it takes a mapping of hosts and dialect, not text"),
        ("providers:\n  p: {hosts: [a.b]}", "p.yaml:2: providers.p.dialect: it is missing"),
        (
            "providers:\n  p: {hosts: [a.b], dialct: openai}",
            "p.yaml:2: providers.p.dialct: unknown key; did you mean 'dialect'?",
        ),
        (
            "providers:\n  p: {hosts: [a.b], dialect: openai, zone: eu}",
            "p.yaml:2: providers.p.zone: unknown key; it takes hosts and dialect",
        ),
        (
            "providers:\n  p: {hosts: [a.b], dialect: opnai}",
            "p.yaml:2: providers.p.dialect: 'opnai' is not known; did you mean 'openai'?",
        ),
        (
            "providers:\n  p: {hosts: [a.b], dialect: xml}",
            "p.yaml:2: providers.p.dialect: 'xml' is not known; it takes openai, azure, anthropic, gemini, vertex,"
            " bedrock, cohere or ollama",
        ),
        (
            "providers:\n  openai: {hosts: [a.b], dialect: openai}",
            "p.yaml:2: providers.openai: 'openai' is a built-in provider; choose another name for your own hosts",
        ),
        (
            "providers:\n  metrics: {hosts: [a.b], dialect: openai}",
            "p.yaml:2: providers.metrics: 'metrics' is reserved: the base-URL door answers there itself; choose",
        ),
        (
            "providers:\n  Corp LLM: {hosts: [a.b], dialect: openai}",
            "p.yaml:2: providers.Corp LLM: 'Corp LLM' cannot be a name; use lower-case letters, digits, '-', '_' and",
        ),
        (
            'providers:\n  p: {hosts: ["https://llm.corp/v1"], dialect: openai}',
            "p.yaml:2: providers.p.hosts[0]: 'https://llm.corp/v1' is a URL; a host stands alone: 'llm.corp'",
        ),
        (
            "providers:\n  p:\n    dialect: openai\n    hosts:\n      - a.b\n      - api.openai.com\n",
            "p.yaml:6: providers.p.hosts[1]: the host 'api.openai.com' belongs to the built-in provider 'openai'"
            " already; remove it",
        ),
        (
            "providers:\n  p: {hosts: a.b, dialect: openai}\nobserve:\n  - {hosts: [c.d, A.B], kind: mcp}",
            "p.yaml:4: observe[0].hosts[1]: the host 'a.b' belongs to providers.p already",
        ),
        # observe
        ('observe:\n  - {hosts: ["*"], kind: tool}', "p.yaml:2: observe[0].hosts[0]: '*' would intercept every host;"),
        ('observe:\n  - {hosts: "*.*", kind: tool}', "p.yaml:2: observe[0].hosts: '*.*' would intercept every host;"),
        (
            'observe:\n  - {hosts: "[!x]:443", kind: tool}',
            "p.yaml:2: observe[0].hosts: '[!x]:443' would intercept every",
        ),
        ("observe:\n  - {hosts: a b, kind: tool}", "p.yaml:2: observe[0].hosts: 'a b' is not a host"),
        ("observe:\n  - {hosts: a.b}", "p.yaml:2: observe[0].kind: it is missing"),
        (
            "observe:\n  - {hosts: a.b, kind: vector}",
            "p.yaml:2: observe[0].kind: 'vector' is not known; it takes retrieval, tool, mcp or other",
        ),
        ("observe:\n  - a.b", "p.yaml:2: observe[0]: it takes a mapping of hosts and kind, not text"),
        # identify
        ("identify: {tenant: [kee]}", "p.yaml:1: identify.tenant[0]: 'kee' is not known; did you mean 'key'?"),
        (
            "identify: {user: metdata.userId}",
            "p.yaml:1: identify.user: 'metdata.userId' is not known; did you mean 'metadata.userId'?",
        ),
        (
            "identify: {session: [key]}",
            "p.yaml:1: identify.session[0]: 'key' is not known; it takes metadata.NAME, header.NAME",
        ),
        ("identify: {session: header.}", "p.yaml:1: identify.session: 'header.' is not known; it takes metadata.NAME,"),
        ("identify: {session: header.a b}", "p.yaml:1: identify.session: 'header.a b' is not known"),
        ("identify: {require: [tenat]}", "p.yaml:1: identify.require[0]: 'tenat' is not known; did you mean 'tenant'?"),
        ("identify: {region: 5}", 'p.yaml:1: identify.region: 5 is a number here; for text put quotes around it: "5"'),
        ("identify: {region: no}\nusage: x", "p.yaml:2: usage: 'x' is not known; it takes ask or leave"),
        ('identify: {region: ""}', "p.yaml:1: identify.region: it is empty; it takes text"),
        ("identify: {region: }", "p.yaml:1: identify.region: it has no value; it takes text"),
        ("identify: {route: [faq]}", "p.yaml:1: identify.route: it takes a mapping of labels to matches, not a list"),
        ('identify: {route: {"": {}}}', "p.yaml:1: identify.route.: the name is empty"),
        (
            "identify:\n  route:\n    faq: {modl: x}",
            "p.yaml:3: identify.route.faq.modl: unknown field; did you mean 'model'?",
        ),
        (
            "identify: {route: {faq: {tier: x}}}",
            "p.yaml:1: identify.route.faq.tier: tier is not known yet when this is asked",
        ),
        (
            "identify: {tier: {big: {sla: x}}}",
            "p.yaml:1: identify.tier.big.sla: sla is not known yet when this is asked",
        ),
        # timeout
        ("timeout: {connect: 5}", "p.yaml:1: timeout.connect: 5 has no unit; write 5 s (units: d, h, m, s, ms)"),
        ("timeout: {conect: 5 s}", "p.yaml:1: timeout.conect: unknown key; did you mean 'connect'?"),
        ("timeout: {idle: 0 s}", "p.yaml:1: timeout.idle: 0 s is too little; it has to be more than zero"),
        ("timeout: {idle: [5 s]}", "p.yaml:1: timeout.idle: it takes a value such as 30 s, not a list"),
        (
            "timeout: 30 s",
            "p.yaml:1: timeout: it takes a mapping of match, unless, connect, first_byte, idle and total,",
        ),
        (
            "timeout:\n  - {connect: 1 s}\n  - {match: {model: x}, connect: 2 s}",
            "p.yaml:3: timeout[1]: this rule never acts: the one on line 2 matches every request; move it to the end",
        ),
        # targets
        ("targets: {t: {provider: openai}}", "p.yaml:1: targets.t.base_url: it is missing"),
        (
            "targets: {t: {provider: azure-opnai, base_url: https://a.b}}",
            "p.yaml:1: targets.t.provider: 'azure-opnai' is not known; did you mean 'azure-openai'?",
        ),
        (
            "targets: {t: {provider: xyzzy, base_url: https://a.b}}",
            "p.yaml:1: targets.t.provider: 'xyzzy' is neither a built-in provider nor an entry of 'providers'",
        ),
        (
            "targets: {v1: {provider: openai, base_url: https://a.b}}",
            "p.yaml:1: targets.v1: 'v1' is reserved: the base-URL door answers there itself; choose another name",
        ),
        (
            "targets: {none: {provider: openai, base_url: https://a.b}}",
            "p.yaml:1: targets.none: 'none' is reserved: cf-aig-fallback: none means no other target; choose another",
        ),
        (
            "targets: {t: {provider: openai, base_url: a.b/v1}}",
            "p.yaml:1: targets.t.base_url: 'a.b/v1' is not an absolute http(s) URL, such as https://llm.example.com/v1",
        ),
        (
            "targets: {t: {provider: openai, base_url: ftp://a.b}}",
            "p.yaml:1: targets.t.base_url: 'ftp://a.b' is not an absolute http(s) URL, such as https://llm.example.com/v1",
        ),
        (
            'targets: {t: {provider: openai, base_url: "https://a.b/v1?key=hidden"}}',
            "p.yaml:1: targets.t.base_url: a query or fragment may not stand here; keep 'https://a.b/v1' (api_version"
            " has its own key)",
        ),
        (
            'targets: {t: {provider: openai, base_url: "https://me:hidden@a.b"}}',
            "p.yaml:1: targets.t.base_url: a user name or password may not stand in a URL; send it as a header from",
        ),
        (
            'targets: {t: {provider: openai, base_url: "https://a.b:99999"}}',
            "p.yaml:1: targets.t.base_url: 'https://a.b:99999' is not a URL: Port out of range 0-65535",
        ),
        (
            target("headers: {api-key: sk-hidden}"),
            'p.yaml:5: targets.t.headers.api-key: a secret may not stand in the file; write env:NAME, or "Bearer',
        ),
        (
            target("headers: {x-goog-api-key: hidden}"),
            "p.yaml:5: targets.t.headers.x-goog-api-key: a secret may not stand in the file; write env:NAME,",
        ),
        (
            target("headers: {Authorization: Bearer hidden}"),
            "p.yaml:5: targets.t.headers.Authorization: a secret may not stand in the file; write env:NAME,",
        ),
        (
            target("headers: {x-team: Bearer hidden}"),
            "p.yaml:5: targets.t.headers.x-team: a secret may not stand in the file; write env:NAME,",
        ),
        (
            target("headers: {api-key: env:NOPE}"),
            "p.yaml:5: targets.t.headers.api-key: the environment variable NOPE is not set",
        ),
        (
            target("headers: {api-key: env:EMPTY}"),
            "p.yaml:5: targets.t.headers.api-key: the environment variable EMPTY is empty",
        ),
        (
            target("headers: {api-key: env:BROKEN}"),
            "p.yaml:5: targets.t.headers.api-key: the environment variable BROKEN holds a line break or another",
        ),
        (
            target('headers: {api-key: "env:"}'),
            "p.yaml:5: targets.t.headers.api-key: 'env:' names no environment variable; write env:NAME",
        ),
        (
            target("headers: {content-length: 5}"),
            "p.yaml:5: targets.t.headers.content-length: 'content-length' belongs to each single message; a policy",
        ),
        (
            target("headers: {x-session-token: hidden}"),
            "p.yaml:5: targets.t.headers.x-session-token: a secret may not stand in the file; write env:NAME,",
        ),
        (target("zone: !foo x"), "p.yaml:5: targets.t.zone: 'x' cannot be read as !foo"),
        (target("headers: {x a: b}"), "p.yaml:5: targets.t.headers.x a: 'x a' cannot be the name of a header"),
        (
            target('headers: {x-a: "b\\nc: d"}'),
            "p.yaml:5: targets.t.headers.x-a: it holds a line break or another control character",
        ),
        (
            target("headers: {x-a: b, X-A: c}"),
            "p.yaml:2: targets.t: the header 'X-A' stands twice; names of headers know no case",
        ),
        (
            target("deployments: [a]"),
            "p.yaml:5: targets.t.deployments: it takes a mapping of models to deployments, not a",
        ),
        (
            target("ca: nowhere.pem"),
            "p.yaml:5: targets.t.ca: 'nowhere.pem' cannot be read (no such file or directory);",
        ),
        (target("ca: ."), "p.yaml:5: targets.t.ca: '.' is not a file"),
        (target("ca: ~nobody-at-all/x.pem"), "p.yaml:5: targets.t.ca: '~nobody-at-all/x.pem' is not a path: "),
        (target('ca: "a\\0b"'), "p.yaml:5: targets.t.ca: 'a\\x00b' is not a path: "),
        (target("basse_url: x"), "p.yaml:5: targets.t.basse_url: unknown key; did you mean 'base_url'?"),
        # upstream
        ("upstream: {connections_per_host: 0}", "p.yaml:1: upstream.connections_per_host: 0 is outside 1…10000"),
        (
            "upstream: {connections_per_host: many}",
            "p.yaml:1: upstream.connections_per_host: 'many' is not a whole number",
        ),
        (
            "upstream: {connections_per_host: true}",
            "p.yaml:1: upstream.connections_per_host: 'true' is not a whole number",
        ),
        (
            "upstream: {connections_per_host: 1.5}",
            "p.yaml:1: upstream.connections_per_host: '1.5' is not a whole number",
        ),
        ("upstream: {websocket: deny}", "p.yaml:1: upstream.websocket: 'deny' is not known; it takes pass or refuse"),
        (
            "upstream: {proxy: proxy.corp:3128}",
            "p.yaml:1: upstream.proxy: 'proxy.corp:3128' is not the URL of a proxy, such as http://proxy.example.com:3128",
        ),
        (
            "upstream: {proxy: env:PROXY}",
            "p.yaml:1: upstream.proxy: what env:PROXY holds is not the URL of a proxy, such as http://proxy.example.com:3128",
        ),
        (
            'upstream: {proxy: "http://me:hidden@proxy:3128"}',
            "p.yaml:1: upstream.proxy: a user name or password may not stand in the file; put the URL into a variable:",
        ),
        (
            "upstream: {after_client_leaves: {aws: drain}}",
            "p.yaml:1: upstream.after_client_leaves.aws: 'aws' is not known; did you mean 'aws-bedrock'?",
        ),
        (
            "upstream: {after_client_leaves: {openai: close}}",
            "p.yaml:1: upstream.after_client_leaves.openai: 'close' is not known; it takes cancel or drain",
        ),
        (
            'upstream: {connect_to: {api.openai.com: "127.0.0.1:9443"}}',
            "p.yaml:1: upstream.connect_to.api.openai.com: 'api.openai.com' is not host:port, such as api.openai.com",
        ),
        (
            'upstream: {connect_to: {"a.b:443": "127.0.0.1:70000"}}',
            "p.yaml:1: upstream.connect_to.a.b:443: '127.0.0.1:70000' is not host:port, such as api.openai.com:443",
        ),
        # trace
        ("trace: {keep: 30}", "p.yaml:1: trace.keep: 30 has no unit; write 30 s (units: d, h, m, s, ms)"),
        ("trace: {max: 10 gb}", "p.yaml:1: trace.max: 'gb' is no unit of a size; did you mean 'GiB'?"),
        ("trace: {payloads: yes}", "p.yaml:1: trace.payloads: 'yes' is not known; it takes full, redacted or none"),
        ("trace: {payloads: redact}", "p.yaml:1: trace.payloads: 'redact' is not known; did you mean 'redacted'?"),
        ("trace: !foo {}", "p.yaml:1: trace: the tag !foo means nothing here; remove it"),
    ],
)
def test_a_mistake_is_one_sentence(text: str | bytes, fault: str) -> None:
    found = faults_of(text)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_all_mistakes_come_at_once_in_file_order() -> None:
    text = "trace: {keep: 5}\nusage: x\nlimit: {}\nusage: y\ntargets:\n  T: {}\nfoo: 1\nprovders: {}\n"
    assert [fault.split(": ")[0] for fault in faults_of(text)] == [f"p.yaml:{line}" for line in (1, 2, 3, 4, 6, 7, 8)]


def test_a_broken_provider_does_not_make_its_targets_wrong() -> None:
    text = "providers:\n  corp: {hosts: [a.b]}\ntargets:\n  t: {provider: corp, base_url: https://a.b}\n"
    assert faults_of(text) == ["p.yaml:2: providers.corp.dialect: it is missing"]


def test_no_fault_repeats_a_secret() -> None:
    text = (
        "targets:\n"
        "  t: {provider: openai, base_url: 'https://me:hidden@a.b', headers: {api-key: hidden, x-a: sk-hidden}}\n"
        "  u: {provider: openai, base_url: 'https://a.b?key=hidden'}\n"
        "upstream: {proxy: 'http://me:hidden@proxy:3128'}\n"
    )
    faults = faults_of(text) + faults_of("upstream: {proxy: env:PROXY}")
    assert len(faults) == 6
    assert "hidden" not in "".join(faults)
    assert "secret@" not in "".join(faults)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        load(tmp_path / "team.yaml", {}, "conf/team.yaml")
    assert str(refused.value) == "conf/team.yaml: the policy cannot be read: no such file or directory"


def test_a_folder_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        load(tmp_path, {}, "conf")
    assert str(refused.value) == "conf: the policy cannot be read: is a directory"


WORDS = st.sampled_from(
    [
        "version",
        "timeout",
        "targets",
        "match",
        "model",
        "identify",
        "route",
        "hosts",
        "x",
        "trace",
        "none",
        "name",
        "find",
        "then",
        "ask",
        "block",
        "redact",
        "per",
        "every",
        "day",
        "requests",
        "cost",
        "soft",
        "downgrade",
        "at",
        "to",
        "keys",
        "key",
        "when",
        "budget",
        "error_rate",
        "over",
        "keep_last",
        "summarize",
        "aws",
        "google",
        "5 s",
        "env:KEY",
        "> 5 %",
        "20 USD",
    ]
)
TREES = st.recursive(
    st.one_of(WORDS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(WORDS, below, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(list(FLOW)), TREES, max_size=4))
def test_any_tree_gives_a_policy_or_faults(tree: dict[str, object]) -> None:
    try:
        policy = loads(json.dumps(tree), "p.yaml", ENV)
    except PolicyError as e:
        assert all(fault.path == "p.yaml" and fault.line == 1 and fault.text for fault in e.faults)
    else:
        assert isinstance(policy, Policy)
