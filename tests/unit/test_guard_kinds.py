"""What each kind finds, and what only looks so."""

import pytest

from mitmgate import redact
from mitmgate.guard_find import Finders, redacted
from mitmgate.policy.kinds import KINDS
from mitmgate.policy.values import Guard

FINDERS = {kind: Finders([Guard(kind, find=(kind,), then="redact")]) for kind in KINDS}
ALL = Finders([Guard("all", find=KINDS, then="redact")])


def found(kind: str, text: str) -> list[str]:
    return [text[one.start : one.end] for one in FINDERS[kind].find(text, (0,))]


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc/def+12==\n-----END RSA PRIVATE KEY-----"
ENCRYPTED = PEM.replace("KEY-----\nM", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\nM")

FOUND: dict[str, list[str]] = {
    "credit_card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011111111111117",
        "3530111333300000",
        "6200000000000005",
    ],
    "email": [
        "john@example.com",
        "john.o+tag%x_1@mail.example.co.uk",
        "müller@bücher.example",
        "1@2.io",
    ],
    "phone": [
        "+27 82 123 4567",
        "+27821234567",
        "+1 (212) 555-0123",
        "+44 20 7946 0958",
        "(212) 555-0123",
        "212-555-0123",
        "212.555.0123",
        "020 7946 0958",
        "082 123 4567",
        "06 12 34 56 78",
        "0151 23456789",
        "(020) 7946 0958",
    ],
    "iban": ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32", "NO9386011117947"],
    "ip_address": ["8.8.8.8", "196.25.1.1", "2001:4860:4860::8888", "2a00:1450:4009:80b::200e"],
    "national_id": [
        "078-05-1121",  # the United States
        "8001015009087",  # South Africa
        "184127645108946",  # France
        "1 84 12 76 451 089 46",
        "390.533.447-05",  # Brazil
        "2341 2341 2346",  # India
        "RCCMNL83S18D969H",  # Italy
        "12345678Z",  # Spain
        "X2482300W",
        "880320-0016",  # Sweden
        "131052-308T",  # Finland
        "11010519491231002X",  # China
        "971013-9019902",  # South Korea
        "BOXW310820HNERXN09",  # Mexico
        "85.07.30-033.28",  # Belgium
        "756.9217.0769.85",  # Switzerland
        "AB 12 34 56 C",  # Britain
        "AB123456C",
    ],
    "secret": [
        "sk-proj-abcdefghijklmnopqrstuv1234",
        "sk-ant-api03-Ab12Cd34Ef56Gh78",
        "sk-Ab12Cd34Ef56Gh78",
        "ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "xoxb-123456789012-abcdefABCDEF",
        "hf_abcdefghijABCDEFGHIJabcdefghijABCD",
        "npm_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
        "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",
        "pypi-AgEIcHlwaS5vcmcCJ" + "a1B2" * 20,
        "123456789:AAExampleOfATelegramTokenaBcDeFgHiJ",
        "mg-Ab12Cd34Ef56Gh78Ij90",
        JWT,
        PEM,
        ENCRYPTED,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_a_kind_is_found_whole_and_nothing_around_it(kind: str, text: str) -> None:
    assert found(kind, f"It is {text}, they say.") == [text]
    assert found(kind, text) == [text]
    assert found(kind, f'{{"a":"{text}"}}') == [text]


@pytest.mark.parametrize("literal", [literal.decode() for literal in redact.FORMS])
def test_every_form_that_is_masked_on_the_disk_is_found(literal: str) -> None:
    key = {"gh": "ghp_", "k_live_": "sk_live_", "k_test_": "rk_test_", "xox": "xoxb-"}.get(literal, literal)
    upper = literal in ("AKIA", "ASIA")
    key += "A1B2C3D4E5F6G7H8" if upper else "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"

    assert found("secret", f"key {key} end") == [key]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("password: hunter2xyz9", "hunter2xyz9"),
        ('"password": "hunter2xyz9"', "hunter2xyz9"),
        ("DB_PASSWORD=hunter2xyz9", "hunter2xyz9"),
        ("the password is hunter2xyz9", "hunter2xyz9"),
        ("api_key = 'a8f5f167f44f4964e6c998dee827110c'", "a8f5f167f44f4964e6c998dee827110c"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzKEY1",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzKEY1",
        ),
        ("Authorization: Bearer a8f5f167f44f4964e6c998dee827110c", "a8f5f167f44f4964e6c998dee827110c"),
        ("postgres://app:s3cr3t@db:5432/x", "s3cr3t"),
        (
            "https://hooks.slack.com/services/T00000000/B00000000/abcdefghijklmnopqrstuvwx",
            "T00000000/B00000000/abcdefghijklmnopqrstuvwx",
        ),
    ],
)
def test_a_secret_tells_by_what_stands_before_it(text: str, value: str) -> None:
    assert found("secret", f"x {text} y") == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("SSN: 219099998", "219099998"),
        ('"ssn": "219099998"', "219099998"),
        ("her social security number is 219 09 9998", "219 09 9998"),
        ("BSN 111222333", "111222333"),
        ("Steuer-ID: 36 574 261 809", "36 574 261 809"),
        ("NHS number 943 476 5919", "943 476 5919"),
        ("PESEL 44051401359", "44051401359"),
        ("CPF 39053344705", "39053344705"),
        ("TFN: 123 456 782", "123 456 782"),
    ],
)
def test_an_id_that_is_a_bare_number_is_found_behind_a_word_for_it(text: str, value: str) -> None:
    assert found("national_id", f"x {text}, y") == [value]
    assert found("national_id", f"order {value}, y") == []


HARMLESS = [
    "order 4111111111111112",
    "0.4111111111111111",
    "4111111111111111.5",
    "1700000000000 and 1700000000000000000",
    "2024-05-06T10:00:00.123456+02:00",
    "550e8400-e29b-41d4-a716-446655440000",
    "d41d8cd98f00b204e9800998ecf8427e",
    "v1.2.3.4, version 10.4.12.1",
    "Chrome/120.0.0.0 Safari/537.36",
    "10.0.0.1, 127.0.0.1, 192.168.1.1, 0.0.0.0",
    "::1, fe80::1, 12:34:56, aa:bb:cc:dd:ee:ff, std::vector<int>::iterator",
    "git@github.com:org/repo.git",
    "logo@2x.png and react@18.2.0",
    "@app.route('/x') and a @ b",
    "it costs $1,234.56 or 1.234.567,89",
    "invoice 2024-000123, ISBN 978-3-16-148410-0, EAN 4006381333931",
    "2024-01-02 2024-03-04 1990-2000 12/05/2024",
    "from 100-200 to 300-400-500",
    "sk-learn, risk-averse-investment-strategies, task-1234567890",
    "password: str = Field(...)",
    'password = os.environ["DB_PASSWORD"]',
    "api_key=settings.openai_api_key2",
    "token = tokens[0]; max_tokens: 1024; secret: ${{ secrets.KEY_1 }}",
    "password: ********, secret: <your-secret-1>, api_key: sk-xxxx",
    "https://user:password@example.com".replace("password", "<password>"),
    "THE NUMBER OF ITEMS IN 1234 IS 5678 AND 9012",
    "id: 123456782, ids 046454286",
    "call_4Kd93jd02kd93kd02kd9, msg_01XFDUDYJgAACzvnptvVoYEL",
    "feature/ABC-1234-5678, RFC 2616, HTTP/1.1 404",
    "the bearer of this letter, Bearer token",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_finding_is_none(text: str) -> None:
    assert redacted(text, ALL.find(text, (0,))) == text


def test_what_a_rule_allows_is_no_finding_of_it() -> None:
    finders = Finders([Guard("a", find=("email",), then="redact", allow=(r".*@example\.com",))])
    text = "john@example.com jane@example.org john@example.com.evil.org"

    assert redacted(text, finders.find(text, (0,))) == "john@example.com [email] [email]"


def test_what_overlaps_is_replaced_once() -> None:
    finders = Finders([Guard("a", find=("email",), then="redact"), Guard("b", find=(r"doe@\w+\.com!",), then="block")])
    text = "john.doe@example.com! and on"

    assert [one.rule for one in finders.find(text, (0, 1))] == [0, 1]
    assert redacted(text, finders.find(text, (0, 1))) == "[email] and on"
