"""Who asks, for what, in whose trace: read from headers and tags, made fit for a column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate import identity
from mitmgate.policy.match import compile_match

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OTHER = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("traceparent", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN)),
        (f" 00-{TRACE}-{SPAN}-00 ", (TRACE, SPAN)),
        (f"01-{TRACE}-{SPAN}-01-more", (TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-01-more", (None, None)),
        (f"ff-{TRACE}-{SPAN}-01", (None, None)),
        (f"00-{TRACE.upper()}-{SPAN}-01", (None, None)),
        (f"00-{'0' * 32}-{SPAN}-01", (None, None)),
        (f"00-{TRACE}-{'0' * 16}-01", (None, None)),
        (f"00-{TRACE}-{SPAN}", (None, None)),
        (f"00-{TRACE}-{SPAN}-01, 00-{OTHER}-{SPAN}-01", (None, None)),
        (f"00-{TRACE}-{SPAN}-01\n", (TRACE, SPAN)),
        ("", (None, None)),
    ],
)
def test_traceparent_is_read_strictly(traceparent: str, found: tuple[str | None, str | None]) -> None:
    assert identity.trace_of({"traceparent": traceparent}, {}) == found


@pytest.mark.parametrize(
    ("controls", "found"),
    [
        ({"otel-trace-id": OTHER, "otel-parent-span-id": "1" * 16}, (OTHER, "1" * 16)),
        ({"otel-trace-id": OTHER}, (OTHER, None)),
        ({"otel-trace-id": TRACE}, (TRACE, SPAN)),
        ({"otel-parent-span-id": "1" * 16}, (TRACE, "1" * 16)),
        ({}, (TRACE, SPAN)),
    ],
)
def test_the_gateways_own_headers_go_before_traceparent(
    controls: dict[str, str], found: tuple[str | None, str | None]
) -> None:
    assert identity.trace_of({"traceparent": f"00-{TRACE}-{SPAN}-01"}, controls) == found


@pytest.mark.parametrize(
    ("headers", "controls", "session"),
    [
        ({"x-session-id": "s1", "x-own": "s2"}, {"session-id": "s0"}, "s0"),
        ({"x-session-id": "s1", "x-own": "s2"}, {}, "s2"),
        ({"x-session-id": "s1", "x-own": " "}, {}, "s1"),
        ({"x-session-id": "s1"}, {"metadata": {"run": 7}}, "7"),
        ({"x-claude-code-session-id": "claude"}, {}, "claude"),
        ({"session-id": "codex"}, {}, "codex"),
        ({"session_id": "codex-old"}, {}, "codex-old"),
        ({"conversation_id": "codex-older"}, {}, "codex-older"),
        ({"x-claude-code-session-id": "", "session-id": "codex"}, {}, "codex"),
        ({"traceparent": f"00-{TRACE}-{SPAN}-01"}, {}, TRACE),
        ({"traceparent": f"00-{TRACE}-{SPAN}-01", "session-id": "codex"}, {}, "codex"),
        ({}, {}, None),
    ],
)
def test_a_session_comes_from_the_surest_source(
    headers: dict[str, str], controls: dict[str, object], session: str | None
) -> None:
    assert identity.session_of(headers, controls, ("header.x-own", "metadata.run")) == session


@pytest.mark.parametrize(
    ("key", "metadata", "headers", "tenant"),
    [
        ("acme", {"tenantId": "globex"}, {"x-tenant": "initech"}, "acme"),
        (None, {"tenantId": "globex"}, {"x-tenant": "initech"}, "globex"),
        (None, {"tenantId": None}, {"x-tenant": "initech"}, "initech"),
        (None, {"tenantId": ""}, {"x-tenant": "initech"}, "initech"),
        (None, {"tenantid": "globex"}, {}, None),
        (None, {"tenantId": 42}, {}, "42"),
        (None, {"tenantId": True}, {}, "true"),
        (None, {"tenantId": 0}, {}, "0"),
        (None, {}, {"x-tenant": "\x00"}, None),
        (None, {}, {}, None),
    ],
)
def test_the_first_source_that_is_present_stands(
    key: str | None, metadata: dict[str, object], headers: dict[str, str], tenant: str | None
) -> None:
    assert identity.first_of(("key", "metadata.tenantId", "header.x-tenant"), key, metadata, headers) == tenant


def test_what_a_key_proves_goes_before_all_that_a_client_says() -> None:
    assert identity.first_of(("metadata.tenantId", "key"), "acme", {"tenantId": "globex"}, {}) == "acme"
    assert identity.first_of(("metadata.tenantId",), "acme", {"tenantId": "globex"}, {}) == "acme"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("acme", "acme"),
        (" acme ", "acme"),
        ("a\x1b[31mb\r\n", "a[31mb"),
        ("caf\udce9", "caf�"),
        ("x" * 300, "x" * 256),
        ("\x00\x7f\x9f", None),
        ("", None),
    ],
)
def test_text_of_a_client_is_made_fit_for_a_column(text: str, cleaned: str | None) -> None:
    assert identity.clean(text) == cleaned


@given(st.text(st.characters()))
def test_whatever_a_client_sends_can_be_stored(text: str) -> None:
    cleaned = identity.clean(text)
    if cleaned is not None:
        assert 0 < len(cleaned) <= 256
        cleaned.encode("utf-8")
        assert not identity.CONTROL.search(cleaned)


SIGV4 = (
    "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature="
)


@pytest.mark.parametrize(
    ("headers", "path", "credential"),
    [
        ({"authorization": "Bearer sk-1"}, "/", b"sk-1"),
        ({"authorization": "bearer  sk-1"}, "/", b"sk-1"),
        ({"authorization": "Basic dTpw"}, "/", b"Basic dTpw"),
        ({"authorization": SIGV4 + "ab12"}, "/", b"AKIAEXAMPLE"),
        ({"authorization": "Bearer "}, "/", b"Bearer"),
        ({"authorization": "", "x-api-key": "sk-2"}, "/", b"sk-2"),
        ({"api-key": "azure"}, "/", b"azure"),
        ({"x-goog-api-key": "goog"}, "/?key=other", b"goog"),
        ({}, "/v1beta/models/x:generateContent?alt=sse&key=AIza%2D1", b"AIza-1"),
        ({}, "/?key=", None),
        ({}, "/?monkey=1", None),
        ({"cf-aig-authorization": "Bearer ours"}, "/", None),
        ({"x-api-key": "caf\udce9"}, "/", "caf\udce9".encode("utf-8", "surrogatepass")),
    ],
)
def test_a_caller_is_told_by_the_key_however_it_travels(
    headers: dict[str, str], path: str, credential: bytes | None
) -> None:
    assert identity.credential_of(headers, path) == credential


def test_two_signatures_of_one_aws_caller_are_one_caller() -> None:
    first = identity.credential_of({"authorization": SIGV4 + "ab12"}, "/")
    assert first == identity.credential_of({"authorization": SIGV4 + "cd34"}, "/")


def test_the_hash_of_a_key_is_a_whole_hmac_sha256() -> None:
    # RFC 4231, test case 2
    assert identity.key_hash(b"Jefe", b"what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_the_first_label_whose_match_holds_stands() -> None:
    rules = {
        "faq": compile_match({"metadata.feature": "faq"}),
        "chat": compile_match({"path": "*/chat/*"}),
        "any": compile_match({}),
    }
    assert identity.label(rules, {"metadata.feature": "faq", "path": "/v1/chat/completions"}.get) == "faq"
    assert identity.label(rules, {"path": "/v1/chat/completions"}.get) == "chat"
    assert identity.label(rules, {"path": "/v1/embeddings"}.get) == "any"
    assert identity.label({}, {"path": "/v1/embeddings"}.get) is None
