"""A request shows a key of the gateway's own, and no provider ever sees it."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate.auth import HEADER, Auth, Proof, bearer, parameters, proxy_key, without
from mitmgate.clock import ManualClock
from mitmgate.errors import Refusal
from mitmgate.exchange import Exchange, Leg, joined
from mitmgate.identify import Identify
from mitmgate.policy import loads
from mitmgate.providers import Hosts
from mitmgate.store import key_file
from mitmgate.store.gateway_keys import GatewayKeys
from mitmgate.store.key_file import Made

SECRET = b"s" * 32
OURS = "team-key-0123456789"
"""The policy's."""
MADE = "mg-0123456789abcdef"
"""Made by ``mitmgate keys new``."""
POLICY = """
auth:
  keys:
    - {name: team, key: env:TEAM, tenant: acme, user: ann}
    - {name: small, key: env:SMALL, models: ["*-mini", "claude-*"]}
    - {name: old, key: env:OLD, expires: 2020-01-31}
identify: {tenant: [metadata.tenantId, key], user: [metadata.userId]}
"""
ENV = {"TEAM": OURS, "SMALL": "small-key-0123456789", "OLD": "old-key-0123456789"}
FIELDS = [(b"Host", b"api.openai.com"), (b"Content-Type", b"application/json")]
ASK = b'{"model": "gpt-5", "messages": []}'

type Field = tuple[bytes, bytes]


@pytest.fixture
def keys(tmp_path: Path) -> GatewayKeys:
    return GatewayKeys(tmp_path / "keys.db", SECRET, ManualClock())


def make(keys: GatewayKeys, key: str = MADE, name: str = "made", **more: float | None) -> None:
    made = Made(keys.digest_of(key), name, "globex", None, (), 0.0)
    conn = key_file.open_file(keys.path)
    key_file.add(conn, replace(made, expires_at=more.get("expires_at")))
    if (at := more.get("revoked_at")) is not None:
        key_file.revoke(conn, name, at)
    conn.close()


def exchange(*fields: Field, path: str = "/v1/chat/completions", body: bytes = ASK) -> Exchange:
    sent = [*FIELDS, *fields]
    provider = Hosts().find("api.openai.com", 443)
    return Exchange(
        "POST", "https", "api.openai.com", 443, path, sent, joined(sent), 0.0, 0.0, provider=provider, body=body
    )


def passed(keys: GatewayKeys, x: Exchange, policy: str = POLICY) -> Exchange:
    """Take *x* through ``identify`` and ``auth``, as far as it gets."""
    said = loads(policy, "policy.yaml", ENV)
    identify, auth = Identify(said, SECRET), Auth(said, keys, SECRET, keys.clock)
    identify.head(x)
    auth.head(x)
    for step in (identify.admit, auth.admit):
        if x.refusal is None:
            step(x)
    return x


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


def refused(x: Exchange) -> Refusal:
    assert x.refusal is not None
    return x.refusal


# -- where a key may stand --------------------------------------------------------------------------------------------

PLACES: dict[str, Field] = {
    "cf-aig-authorization": (b"cf-aig-authorization", b"Bearer %b"),
    "proxy-authorization, basic": (b"Proxy-Authorization", b"basic"),
    "proxy-authorization, bearer": (b"Proxy-Authorization", b"Bearer %b"),
    "authorization": (b"Authorization", b"Bearer %b"),
    "x-api-key": (b"X-Api-Key", b"%b"),
    "api-key": (b"api-key", b"%b"),
    "x-goog-api-key": (b"x-goog-api-key", b"%b"),
}


def shown(place: str, key: str) -> Field:
    name, form = PLACES[place]
    return name, basic(f"anyone:{key}") if form == b"basic" else form % key.encode()


@pytest.mark.parametrize("key", [OURS, MADE])
@pytest.mark.parametrize("place", PLACES)
def test_a_key_opens_the_door_from_each_place_and_goes_no_further(keys: GatewayKeys, place: str, key: str) -> None:
    make(keys)

    x = passed(keys, exchange(shown(place, key)))

    assert x.refusal is None
    assert x.proof is not None
    assert (x.proof.name, x.tenant) == (("team", "acme") if key == OURS else ("made", "globex"))
    assert x.sent_fields == FIELDS
    assert key not in str((x.sent_fields, x.headers, x.controls, x.path, x.events, x.notes, x.proof))
    assert x.keyless
    assert x.auth == keys.digest_of(key).hex()


@pytest.mark.parametrize("name", ["key", "api-key"])
def test_a_key_in_the_query_opens_the_door_and_the_rest_of_the_query_stays(keys: GatewayKeys, name: str) -> None:
    make(keys)

    x = passed(keys, exchange(path=f"/v1/chat/completions?alt=sse&{name}={MADE}&a=%41"))

    assert x.proof is not None
    assert x.path == "/v1/chat/completions?alt=sse&a=%41"
    assert x.keyless


def test_a_key_that_the_connect_came_with_counts(keys: GatewayKeys) -> None:
    x = exchange((b"Authorization", b"Bearer sk-theirs"))
    x.connect_key = keys.digest_of(OURS)

    passed(keys, x)

    assert x.proof is not None
    assert x.proof.name == "team"


def test_the_providers_own_key_travels_on_beside_ours(keys: GatewayKeys) -> None:
    theirs = (b"Authorization", b"Bearer sk-theirs")

    x = passed(keys, exchange(shown("cf-aig-authorization", OURS), theirs))

    assert x.proof is not None
    assert x.sent_fields == [*FIELDS, theirs]
    assert not x.keyless
    assert x.auth == keys.digest_of("sk-theirs").hex()  # what parts the cache is the provider's account


def test_a_key_of_ours_never_leaves_whoever_has_opened_the_door(keys: GatewayKeys) -> None:
    make(keys)
    fields = shown("cf-aig-authorization", OURS), shown("authorization", MADE), (b"x-api-key", b"sk-ant-theirs")

    x = passed(keys, exchange(*fields, path=f"/v1/chat/completions?key={MADE}"))

    assert x.proof is not None
    assert x.proof.name == "team"
    assert x.sent_fields == [*FIELDS, (b"x-api-key", b"sk-ant-theirs")]
    assert x.headers.get("x-api-key") == "sk-ant-theirs"
    assert MADE not in str((x.headers, x.path))
    assert x.auth == keys.digest_of("sk-ant-theirs").hex()


@pytest.mark.parametrize(
    "fields",
    [
        (shown("cf-aig-authorization", "wrong"), shown("authorization", OURS)),
        (shown("cf-aig-authorization", "wrong"), shown("proxy-authorization, basic", OURS)),
        (shown("proxy-authorization, basic", "wrong"), shown("x-api-key", OURS)),
        ((b"Proxy-Authorization", b"Digest username=ann"), shown("x-api-key", OURS)),
    ],
)
def test_the_first_place_that_has_a_key_decides(keys: GatewayKeys, fields: tuple[Field, ...]) -> None:
    assert refused(passed(keys, exchange(*fields))).status == 401


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (basic("user:secret").decode(), "secret"),
        (basic("user:a:b").decode(), "a:b"),
        (basic("secret:").decode(), "secret"),
        (basic("secret").decode(), "secret"),
        ("bearer secret", "secret"),
        ("Basic !!!", None),
        ("Basic " + base64.b64encode(b"\xff\xfe").decode(), None),
        (basic(":").decode(), None),
        ("Bearer ", None),
        ("Negotiate abc", None),
        ("", None),
    ],
)
def test_proxy_authorization_is_read(value: str, key: str | None) -> None:
    assert proxy_key(value) == key


def test_parts_of_a_query_that_may_be_keys_are_found_and_taken_out() -> None:
    path = "/p?a=1&key=k%2B1&monkey=2&api-key=b&key="

    assert parameters(path) == [("key=k%2B1", "k+1"), ("api-key=b", "b"), ("key=", "")]
    assert without(path, ["key=k%2B1", "api-key=b"]) == "/p?a=1&monkey=2&key="
    assert without("/p?key=k", ["key=k"]) == "/p"
    assert (bearer("Bearer  x "), bearer(" x"), bearer("bearer")) == ("x", "x", "")


# -- who stays outside ------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Field, ...]] = {
    "nothing": (),
    "a provider's key": ((b"Authorization", b"Bearer sk-theirs"),),
    "a basic login": ((b"Authorization", basic(f"user:{OURS}")),),
    "a signature": ((b"Authorization", b"AWS4-HMAC-SHA256 Credential=AKIA1/2026/us-east-1/bedrock/aws4_request"),),
}


@pytest.mark.parametrize("others", OTHERS)
def test_a_request_without_a_key_of_ours_is_refused_and_told_how_to_send_one(keys: GatewayKeys, others: str) -> None:
    refusal = refused(passed(keys, exchange(*OTHERS[others])))

    assert (refusal.status, refusal.kind, refusal.source) == (401, "authentication", "gateway")
    assert (refusal.param, refusal.where, refusal.should_retry) == (HEADER, "policy.yaml:2", False)
    assert f"`{HEADER}: Bearer KEY`" in refusal.message
    assert ("AWS signature" in refusal.message) == (others == "a signature")


@pytest.mark.parametrize("key", ["mg-unknown-0123456789", "team-key-012345678", OURS + "0", OURS.upper()])
def test_a_key_that_is_not_known_is_refused_and_not_repeated(keys: GatewayKeys, key: str) -> None:
    refusal = refused(passed(keys, exchange(shown("cf-aig-authorization", key))))

    assert refusal.status == 401
    assert "not known here" in refusal.message
    assert key not in str(refusal)


def test_a_key_that_is_over_says_so_to_whoever_has_it(keys: GatewayKeys) -> None:
    make(keys, "mg-expired-1", "lapsed", expires_at=1_600_000_000.0)
    make(keys, "mg-revoked-1", "gone", revoked_at=1_600_000_000.0)
    said = {
        key: refused(passed(keys, exchange(shown("authorization", key)))).message
        for key in ("mg-expired-1", "mg-revoked-1")
    }
    of_policy = refused(passed(keys, exchange(shown("x-api-key", ENV["OLD"]))))

    assert "'lapsed' expired at 2020-09-13T12:26:40.000Z" in said["mg-expired-1"]
    assert "'gone' was revoked at 2020-09-13T12:26:40.000Z" in said["mg-revoked-1"]
    assert "'old' expired at 2020-02-01T00:00:00.000Z" in of_policy.message


def test_a_key_expires_by_the_clock_and_a_revocation_counts_at_once(keys: GatewayKeys) -> None:
    clock = keys.clock
    assert isinstance(clock, ManualClock)
    make(keys, expires_at=clock.wall() + 60)
    asked = exchange(shown("authorization", MADE))
    assert passed(keys, asked).refusal is None

    clock.advance(60)

    assert "expired" in refused(passed(keys, exchange(shown("authorization", MADE)))).message


def test_while_keys_cannot_be_read_an_unknown_one_is_told_to_try_again(keys: GatewayKeys) -> None:
    keys.path.write_bytes(b"no database at all" * 100)

    refusal = refused(passed(keys, exchange(shown("authorization", MADE))))

    assert (refusal.status, refusal.retry_after_s) == (503, 1)
    assert passed(keys, exchange(shown("authorization", OURS))).refusal is None  # the policy's need no file


def test_a_refused_request_leaves_an_event(keys: GatewayKeys) -> None:
    [event] = passed(keys, exchange()).events

    assert (event.room, event.rule, event.action) == ("auth", "auth", "refuse")


# -- what a key proves ------------------------------------------------------------------------------------------------


def test_what_a_key_names_goes_before_what_a_client_claims(keys: GatewayKeys) -> None:
    claims = b'{"tenantId": "globex", "userId": "bob"}'

    x = passed(keys, exchange(shown("cf-aig-authorization", OURS), (b"cf-aig-metadata", claims)))

    assert (x.tenant, x.user) == ("acme", "ann")


def test_what_a_key_does_not_name_the_client_may_say(keys: GatewayKeys) -> None:
    make(keys)

    x = passed(keys, exchange(shown("cf-aig-authorization", MADE), (b"cf-aig-metadata", b'{"userId": "bob"}')))

    assert (x.tenant, x.user) == ("globex", "bob")


# -- for which models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "permitted"),
    [("gpt-5-mini", True), ("GPT-5-Mini", True), ("claude-opus-4-5", True), ("gpt-5", False), ("mini", False)],
)
def test_a_key_is_for_its_models(keys: GatewayKeys, model: str, permitted: bool) -> None:
    x = passed(keys, exchange(shown("authorization", ENV["SMALL"]), body=b'{"model": "%b"}' % model.encode()))

    assert (x.refusal is None) == permitted
    if not permitted:
        refusal = refused(x)
        assert (refusal.status, refusal.kind, refusal.source) == (403, "permission", "gateway")
        assert all(part in refusal.message for part in ("*-mini, claude-*", repr(model), "rule small, policy.yaml:5"))
        assert refusal.where == "policy.yaml:5"


@pytest.mark.parametrize("body", [b"{}", b"no JSON", b""])
def test_a_call_that_names_no_model_is_not_for_a_key_with_models(keys: GatewayKeys, body: bytes) -> None:
    refusal = refused(passed(keys, exchange(shown("authorization", ENV["SMALL"]), body=body)))

    assert (refusal.status, "this call names no model" in refusal.message) == (403, True)


def test_an_upload_that_nobody_reads_is_not_for_a_key_with_models(keys: GatewayKeys) -> None:
    x = exchange(shown("authorization", ENV["SMALL"]))
    x.streamed_upload = True

    assert "too large" in refused(passed(keys, x)).message


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/messages/batches", "/v1/fine_tuning/jobs"])
def test_work_that_is_done_later_by_any_model_is_not_for_a_key_with_models(keys: GatewayKeys, path: str) -> None:
    restricted = passed(keys, exchange(shown("authorization", ENV["SMALL"]), path=path))
    open_to_all = passed(keys, exchange(shown("authorization", OURS), path=path))

    assert refused(restricted).status == 403
    assert open_to_all.refusal is None


def test_a_call_that_generates_nothing_needs_a_key_and_no_model(keys: GatewayKeys) -> None:
    assert passed(keys, exchange(shown("authorization", ENV["SMALL"]), path="/v1/files")).refusal is None
    assert refused(passed(keys, exchange(path="/v1/files"))).status == 401


def test_a_proof_permits_what_its_globs_fit() -> None:
    proof = Proof("n", None, None, ("gpt-5*", "claude-?"), b"")

    assert [proof.permits(model) for model in ("gpt-5", "gpt-5-mini", "claude-x", "claude-xy", None)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert Proof("n", None, None, (), b"").permits(None)


# -- the universal endpoint -------------------------------------------------------------------------------------------


def universal(keys: GatewayKeys, key: str, *legs: Leg) -> Exchange:
    x = exchange(shown("cf-aig-authorization", key))
    x.entry, x.legs = "universal", list(legs)
    x.path = legs[0].path
    said = loads(POLICY, "policy.yaml", ENV)
    identify, auth = Identify(said, SECRET), Auth(said, keys, SECRET, keys.clock)
    identify.head(x)
    auth.head(x)
    identify.admit(x)
    auth.admit(x)
    return x


def leg(model: str, *fields: Field, path: str = "/v1/chat/completions") -> Leg:
    made = Leg("openai", None, "https", "api.openai.com", 443, path, list(fields), model=model)
    made.request = replace(made.request, model=model)
    return made


def test_a_key_of_ours_in_an_element_never_leaves(keys: GatewayKeys) -> None:
    theirs = (b"authorization", b"Bearer sk-theirs")
    first = leg("gpt-5", (b"authorization", b"Bearer " + MADE.encode()), path=f"/v1/chat/completions?key={MADE}")

    x = universal(keys, OURS, first, leg("gpt-5", theirs))

    assert (x.legs[0].fields, x.legs[0].path, x.path) == ([], "/v1/chat/completions", "/v1/chat/completions")
    assert x.legs[1].fields == [theirs]
    assert x.keyless
    assert x.auth == keys.digest_of(OURS).hex()


def test_every_element_asks_for_a_model_that_the_key_is_for(keys: GatewayKeys) -> None:
    good = universal(keys, ENV["SMALL"], leg("gpt-5-mini"), leg("claude-haiku-4-5"))
    bad = universal(keys, ENV["SMALL"], leg("gpt-5-mini"), leg("gpt-5"))

    assert good.refusal is None
    assert "'gpt-5' is none of them" in refused(bad).message


# -- a policy without the section -------------------------------------------------------------------------------------


def test_without_the_section_nothing_is_asked_and_a_key_of_ours_still_stays_here(keys: GatewayKeys) -> None:
    make(keys)

    plain = passed(keys, exchange((b"Authorization", b"Bearer sk-theirs")), "")
    ours = passed(keys, exchange(shown("authorization", MADE)), "")
    bare = passed(keys, exchange(), "")

    assert [x.refusal for x in (plain, ours, bare)] == [None, None, None]
    assert [x.proof for x in (plain, ours, bare)] == [None, None, None]
    assert [x.keyless for x in (plain, ours, bare)] == [False, True, True]
    assert plain.sent_fields == [*FIELDS, (b"Authorization", b"Bearer sk-theirs")]
    assert ours.sent_fields == FIELDS


def test_an_empty_section_asks_for_keys_that_were_made(keys: GatewayKeys) -> None:
    make(keys)

    assert passed(keys, exchange(shown("authorization", MADE)), "auth: {}").refusal is None
    assert refused(passed(keys, exchange(), "auth: {}")).status == 401
