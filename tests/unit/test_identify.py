"""Each request carries who asks, for what, and of whom; what does not parse or is missing is refused with a reason."""

import gzip
import json

import pytest

from mitmgate.exchange import Exchange, joined
from mitmgate.identify import Identify, unsendable
from mitmgate.policy import loads
from mitmgate.providers import Hosts

ASK = {"model": "gpt-4o-mini", "user": "u-7", "messages": [{"role": "user", "content": "hi"}]}
POLICY = """
identify:
  tenant: [key, metadata.tenantId, header.x-tenant]
  prompt_version: [metadata.promptVersion]
  route: {faq: {metadata.feature: faq}, chat: {path: "*/chat/completions"}}
  tier: {small: {model: "*-mini"}}
  sla: {gold: {tenant: [acme]}}
  region: jnb
"""


def exchange(body: bytes, *fields: tuple[bytes, bytes], path: str = "/v1/chat/completions") -> Exchange:
    all_fields = [(b"content-type", b"application/json"), *fields]
    provider = Hosts().find("api.openai.com", 443)
    x = Exchange(
        "POST", "https", "api.openai.com", 443, path, all_fields, joined(all_fields), 0.0, 0.0, provider=provider
    )
    x.body = body
    return x


def identified(x: Exchange, policy: str = POLICY) -> Exchange:
    room = Identify(loads(policy, "policy.yaml", {}), b"secret")
    room.head(x)
    if not x.refusal:
        room.admit(x)
    return x


def test_a_row_says_who_asks_what_for_what() -> None:
    tags = json.dumps({"tenantId": "acme", "feature": "faq", "promptVersion": 3}).encode()

    x = identified(exchange(json.dumps(ASK).encode(), (b"cf-aig-metadata", tags), (b"authorization", b"Bearer sk-1")))

    assert (x.tenant, x.user, x.prompt_version) == ("acme", "u-7", "3")
    assert (x.route, x.tier, x.sla, x.region) == ("faq", "small", "gold", "jnb")
    assert (x.operation, x.request.model) == ("chat", "gpt-4o-mini")
    assert x.sent_fields == [(b"content-type", b"application/json"), (b"authorization", b"Bearer sk-1")]


SOURCES = """
identify:
  tenant: [header.x-tenant, metadata.tenantId]
  user: [header.x-user, metadata.userId]
  session: [header.x-run, metadata.run]
  prompt_version: [header.x-prompt, metadata.promptVersion]
"""


@pytest.mark.parametrize("field", ["tenant", "user", "session", "prompt_version"])
def test_the_first_source_that_is_present_counts(field: str) -> None:
    header = {"tenant": b"x-tenant", "user": b"x-user", "session": b"x-run", "prompt_version": b"x-prompt"}[field]
    said = b'{"tenantId": "tagged", "userId": "tagged", "run": "tagged", "promptVersion": "tagged"}'
    tags = (b"cf-aig-metadata", said)

    both = identified(exchange(b"{}", (header, b"named"), tags), SOURCES)
    tagged = identified(exchange(b"{}", (header, b""), tags), SOURCES)

    assert (getattr(both, field), getattr(tagged, field)) == ("named", "tagged")


@pytest.mark.parametrize("policy", ["", SOURCES])
def test_what_nobody_says_is_unknown_and_labels_that_nothing_fits_stay_out(policy: str) -> None:
    x = identified(exchange(b"{}"), policy)

    assert (x.tenant, x.user, x.session, x.prompt_version) == (None, None, None, None)
    assert (x.route, x.tier, x.sla, x.region, x.colo) == (None, None, None, None, None)


def test_the_first_label_that_fits_counts_and_places_are_as_the_policy_says() -> None:
    policy = """
identify:
  route: {any: {model: "*"}, small: {model: "*-mini"}}
  region: jnb
  colo: jnb-1
"""

    x = identified(exchange(json.dumps(ASK).encode()), policy)

    assert (x.route, x.region, x.colo) == ("any", "jnb", "jnb-1")


@pytest.mark.parametrize(
    "field", ["tenant", "user", "session", "prompt_version", "route", "tier", "sla", "metadata.team"]
)
def test_every_tag_may_be_required(field: str) -> None:
    refused = identified(exchange(b"{}"), f"identify: {{require: [{field}]}}").refusal

    assert refused is not None
    assert (refused.status, refused.param, refused.should_retry) == (400, field, False)
    assert f"takes no request without {field}" in refused.message


def test_an_empty_tag_is_a_missing_one() -> None:
    x = identified(exchange(b"{}", (b"cf-aig-metadata", b'{"team": ""}')), "identify: {require: [metadata.team]}")

    assert x.refusal is not None


def test_a_credential_becomes_a_keyed_hash() -> None:
    x = identified(exchange(b"{}", (b"authorization", b"Bearer sk-secret-key")))

    assert x.auth is not None
    assert len(x.auth) == 64
    assert "sk-secret-key" not in x.auth


def test_a_compressed_request_is_read_and_sent_as_it_came() -> None:
    packed = gzip.compress(json.dumps(ASK).encode())

    x = identified(exchange(packed, (b"content-encoding", b"gzip")))

    assert x.request.model == "gpt-4o-mini"
    assert (x.body, x.sent_body) == (packed, None)


@pytest.mark.parametrize("body", [b"not json", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_body_that_is_no_json_passes_and_the_row_says_so(body: bytes) -> None:
    x = identified(exchange(body))

    assert x.refusal is None
    assert x.json is None
    assert x.notes == (["the body is not JSON"] if body else [])


def test_a_header_names_the_time_to_the_first_byte() -> None:
    x = identified(exchange(b"{}", (b"cf-aig-request-timeout", b"1500")), "timeout: {idle: 7 s}")

    assert (x.timeouts.first_byte_s, x.timeouts.idle_s) == (1.5, 7.0)


def test_the_first_timeout_rule_that_matches_holds() -> None:
    rules = "timeout:\n  - {match: {model: '*-mini'}, first_byte: 1 s}\n  - {first_byte: 9 s}"

    assert identified(exchange(json.dumps(ASK).encode()), rules).timeouts.first_byte_s == 1
    assert identified(exchange(b'{"model": "gpt-5"}'), rules).timeouts.first_byte_s == 9


@pytest.mark.parametrize(
    ("required", "named"),
    [("tenant", "key or metadata.tenantId or header.x-tenant"), ("metadata.feature", "metadata.feature")],
)
def test_a_missing_tag_is_refused_with_its_name_and_the_line(required: str, named: str) -> None:
    x = identified(exchange(b"{}"), POLICY + f"  require: [{required}]\n")

    assert x.refusal is not None
    assert (x.refusal.status, x.refusal.param, x.refusal.where) == (400, required, "policy.yaml:9")
    assert named in x.refusal.message


def test_a_call_that_generates_nothing_needs_no_tag() -> None:
    x = exchange(b"", path="/v1/models")
    x.method = "GET"

    assert identified(x, POLICY + "  require: [tenant]\n").refusal is None


@pytest.mark.parametrize(
    ("value", "collects", "payload"),
    [((b"cf-aig-collect-log", b"false"), False, False), ((b"cf-aig-collect-log-payload", b"false"), True, False)],
)
def test_a_client_may_ask_not_to_be_kept(value: tuple[bytes, bytes], collects: bool, payload: bool) -> None:
    x = identified(exchange(b"{}", value))
    ignored = identified(exchange(b"{}", value), "trace: {header: ignore}")

    assert (x.keep_row, x.keep_payload) == (collects, payload)
    assert (ignored.keep_row, ignored.keep_payload) == (True, True)


@pytest.mark.parametrize(
    ("field", "name"),
    [((b"x-ok", "café".encode()), None), ((b"X-Bad", b"caf\xe9"), "X-Bad"), ((b"x-plain", b"a"), None)],
)
def test_bytes_that_the_pool_would_lose_are_found(field: tuple[bytes, bytes], name: str | None) -> None:
    assert unsendable([(b"host", b"h"), field]) == name
