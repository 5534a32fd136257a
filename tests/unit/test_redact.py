"""Secrets never reach the disk, whatever stands around them; prompts and answers stay readable."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mitmgate import redact

# Made up for these tests; put together so that scanners of repositories do not take them for real ones.
KEYS = [
    "sk-" + "proj-Ab3dEf6hIj9kLmN0pQr",
    "sk-" + "ant-api03-Zy8xWv7uTs6rQp5oNm4l",
    "sk-" + "or-v1-0123456789abcdef0123456789abcdef",
    "sk-" + "abcdefghijklmnopqrstT3BlbkFJabcdefghijklmnopqrst",
    "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_" + "11ABCDEFG0aBcDeFgHiJkL_mNoPqRsTuVwXyZ",
    "xoxb-" + "123456789012-abcdefGHIJKL",
    "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "gsk_" + "abcdefghij0123456789KLMNOP",
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
]
"""Keys that are known by their form alone."""


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "my key is {}, keep it",
        '{{"content": "line\\n{}\\nline"}}',
        "key={}&x=1",
        "x{}",
        "<{}>",
        "日本語{}日本語",
        "%20{}%20",
    ],
)
def test_a_key_of_a_known_form_is_masked_and_nothing_else(key: str, around: str) -> None:
    before, after = around.format("\0").split("\0")
    kept = redact.text(around.format(key))
    assert kept == f"{before}[secret]{after}" or kept == f"{before.removesuffix('x')}[secret]{after}"


@given(key=st.sampled_from(KEYS), before=st.binary(max_size=60), after=st.binary(max_size=60))
@example(key=KEYS[11], before=b"eyJ.", after=b"")
@example(key=KEYS[0], before=b"risk-adjusted-sk-", after=b"")
@example(key=KEYS[5], before=b"AKI", after=b"A")
@settings(max_examples=400)
def test_a_planted_key_never_survives_at_any_position(key: str, before: bytes, after: bytes) -> None:
    assert key.encode() not in redact.body(before + key.encode() + after)


@given(key=st.sampled_from(KEYS), before=st.text(max_size=60), after=st.text(max_size=60), depth=st.integers(1, 3))
@settings(max_examples=200)
def test_a_key_inside_json_inside_json_never_survives(key: str, before: str, after: str, depth: int) -> None:
    body = before + key + after
    for _ in range(depth):
        body = json.dumps({"arguments": body})
    assert key not in redact.text(body)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_taken_and_a_second_pass_finds_nothing_new(data: bytes) -> None:
    once = redact.body(data)
    assert redact.body(once) == once


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        # members and variables that tell by their names
        ('{"api_key": "x", "model": "m"}', '{"api_key": "[secret]", "model": "m"}'),
        ('{"apiKey":"x y z"}', '{"apiKey":"[secret]"}'),
        ('{"client_secret" : "a\\"b"}', '{"client_secret" : "[secret]"}'),
        ('{"a": "{\\"password\\": \\"hunter2\\", \\"n\\":1}"}', '{"a": "{\\"password\\": \\"[secret]\\", \\"n\\":1}"}'),
        ("{'x-api-key': 'abc'}", "{'x-api-key': '[secret]'}"),
        ("export OPENAI_API_KEY=abcdef0123456789\n", "export OPENAI_API_KEY=[secret]\n"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "aws_secret_access_key = [secret]"),
        ('{"access_token": "abc", "token_type": "x"}', '{"access_token": "[secret]", "token_type": "x"}'),
        ('{"password": "cut off he', '{"password": "[secret]'),
        # headers inside of bodies
        ("Authorization: Bearer abc123def456", "Authorization: Bearer [secret]"),
        ("authorization: Basic dXNlcjpwYXNzd29yZDE=", "authorization: Basic [secret]"),
        ('["Bearer abc123def456"]', '["Bearer [secret]"]'),
        ("Cookie: session=abc; theme=dark\nnext", "Cookie: [secret]\nnext"),
        ('{"set-cookie": "sid=abc; Path=/"}', '{"set-cookie": "[secret]"}'),
        # addresses
        ("see https://user:pass@host/x", "see https://[secret]@host/x"),
        ("GET /v1?alt=sse&key=abc HTTP/1.1", "GET /v1?alt=sse&key=[secret] HTTP/1.1"),
        ("https://b.s3.amazonaws.com/o?X-Amz-Signature=aa&X-Amz-Date=1", "https://b.s3.amazonaws.com/o?X-Amz-Signature=[secret]&X-Amz-Date=1"),
        ("https://x.blob.core.windows.net/c?sv=1&sig=aa%3D", "https://x.blob.core.windows.net/c?sv=1&sig=[secret]"),
        ("a?x=1\\u0026key=abc", "a?x=1&key=[secret]"),
        # private keys, whole and cut, with escaped and with real line ends
        ("-----BEGIN PRIVATE KEY-----\\nMIIE\\n-----END PRIVATE KEY-----\\nrest", "[secret]\\nrest"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nrest", "[secret]\nrest"),
        ("a -----BEGIN EC PRIVATE KEY-----\nMIIEabc", "a [secret]"),
        # written with escapes that JSON does not need
        ('"\\u0073k-ant-api03-Zy8xWv7uTs6r"', '"[secret]"'),
        # a short key is one at the start of a word, and an escape is no part of the word
        ('"line\\nsk-a1b2c3d4e5"', '"line\\n[secret]"'),
        ("a%20sk-a1b2c3d4e5", "a%20[secret]"),
        # the gateway's own keys
        ("mg-4f9d8c7b6a5e4d3c2b1a0f", "[secret]"),
    ],
)  # fmt: skip
def test_a_secret_that_tells_by_its_surroundings_is_masked(text: str, kept: str) -> None:
    assert redact.text(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "a task-oriented dialogue about risk-adjusted-returns-of-2024, sk-learn and 500 mg-doses",
        "disk-a1b2c3d4e5 and a task-0123456789abcdef-queue",
        "the bearer of bad news; Bearer authentication; Basic understanding; the secret of success",
        "password: must be long. api key: ask me. token: a word. A secret: love.",
        '{"logprobs": {"content": [{"token": "Hello", "logprob": -0.1}]}, "max_tokens": 5}',
        '{"required": ["api_key", "password"], "properties": {"api_key": {"type": "string"}}}',
        '{"primary_key": "id", "next_token": "abc", "cache_key": "k", "key": "value"}',
        '{"id": "chatcmpl-9aBcDeFgHiJkLmNoPqRsTuVw", "tool_call_id": "call_0123456789abcdefghij"}',
        '{"usage": {"prompt_tokens": 12, "total_tokens": 20}, "prompt_cache_key": ["a"]}',
        "https://example.com/a:b@c/x?page=2&q=key",
        "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
        "The code is x = keys[0]; y == token; cookie: a recipe with butter",
        "caf\\u00e9 \\u0022quoted\\u0022 \\\\u0041",
    ],
)
def test_everyday_text_stays_as_it_was(text: str) -> None:
    assert redact.text(text) == text


def test_a_body_without_secrets_is_not_copied() -> None:
    body = b'{"content": "hello"}'
    assert redact.body(body) is body


def test_credentials_in_headers_are_masked_and_cookies_left_out() -> None:
    fields = [
        (b"Host", b"api.openai.com"),
        (b"Authorization", b"Bearer x"),
        (b"X-Api-Key", b"x"),
        (b"api-key", b"x"),
        (b"x-goog-api-key", b"x"),
        (b"X-Amz-Security-Token", b"x"),
        (b"cf-aig-authorization", b"Bearer x"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"Cookie", b"a=b"),
        (b"Set-Cookie", b"a=b"),
        (b"x-ratelimit-remaining-tokens", b"149984"),
        (b"referer", b"https://h/?key=abc"),
    ]
    assert redact.headers(fields) == [
        (b"Host", b"api.openai.com"),
        (b"Authorization", b"[secret]"),
        (b"X-Api-Key", b"[secret]"),
        (b"api-key", b"[secret]"),
        (b"x-goog-api-key", b"[secret]"),
        (b"X-Amz-Security-Token", b"[secret]"),
        (b"cf-aig-authorization", b"[secret]"),
        (b"Proxy-Authorization", b"[secret]"),
        (b"x-ratelimit-remaining-tokens", b"149984"),
        (b"referer", b"https://h/?key=[secret]"),
    ]


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1beta/models/g:generateContent?alt=sse&key=abc", "/v1beta/models/g:generateContent?alt=sse&key=[secret]"),
        ("/x?api-version=2024-10-21&API-KEY=abc", "/x?api-version=2024-10-21&API-KEY=[secret]"),
        ("/x?%6Bey=abc&X-Amz-Security-Token=t", "/x?%6Bey=[secret]&X-Amz-Security-Token=[secret]"),
        ("/x?key=&sig", "/x?key=&sig"),
        ("https://u:p@h/x?q=1", "https://[secret]@h/x?q=1"),
        ("/files/" + KEYS[0], "/files/[secret]"),
    ],
)  # fmt: skip
def test_urls_lose_their_secrets_and_nothing_else(url: str, kept: str) -> None:
    assert redact.url(url) == kept


@pytest.mark.parametrize(
    "piece",
    [
        "sk-", "eyJ", "eyJ.", "AKIA", "ghp_", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", 'api_key:"', "api_key:'",
        "api_key=", 'password:"\\"', '\\"password\\":\\"', "secret", "bearer ", "cookie:a=", "://a:", "?key=", "&sig=a",
        "\\u0073", "\\\\", "a" * 8000,
    ],
)  # fmt: skip
def test_time_grows_with_the_length_and_nothing_else(piece: str) -> None:
    small, large = (piece.encode() * (size // len(piece) + 1) for size in (50_000, 400_000))
    redact.body(small)
    small_s = min(_seconds(small) for _ in range(3))
    large_s = min(_seconds(large) for _ in range(3))
    assert large_s < 30 * max(small_s, 0.0005)  # 8 would be linear, 64 quadratic


def _seconds(body: bytes) -> float:
    started = time.perf_counter()
    redact.body(body)
    return time.perf_counter() - started
