"""What a guard looks for is found wherever a text is cut, and nothing of it gets past before it is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmgate.guard_find import HELD, Channel, Finders, Found, redacted
from mitmgate.policy.kinds import KINDS
from mitmgate.policy.values import Guard

ALL = Guard("all", find=KINDS, then="redact")
OWN = Guard("own", find=(r"(?i)project kestrel\b", "x{3,20}y"), then="redact")
FINDERS = Finders([ALL, OWN])

SECRETS = (
    "4111 1111 1111 1111",
    "5555555555554444",
    "john.doe+tag@mail.example.com",
    "+27 82 123 4567",
    "(212) 555-0123",
    "020 7946 0958",
    "DE89 3704 0044 0532 0130 00",
    "GB82WEST12345698765432",
    "8001015009087",
    "078-05-1121",
    "AB 12 34 56 C",
    "1 84 12 76 451 089 46",
    "8.8.8.8",
    "2001:4860:4860::8888",
    "sk-proj-abcdefghijklmnopqrstuv1234",
    "ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
)
ENDLESS = (
    f"sk-ant-{'a1' * 150}",
    f"-----BEGIN PRIVATE KEY-----\n{'MIIEvQIBADANBgkqhkiG9w0B\n' * 12}-----END PRIVATE KEY-----",
)
PROSE = (
    "", " ", "hello ", "the order of 2024-05-06, ", "(", "+", "AB ", "no. 12 ", "v1.2.3 ", "\n", '{"a":"', '","', "a@",
    "sk-", "4111 ", "user_", "é", "password: ", "my ssn is ", "IN ALL CAPITALS ", "-----", "://", "xxx", "Project ",
    "KESTREL ", "Project Kestrel", "s", "3.14", "x" * 30, "d41d8cd98f00b204e9800998ecf8427e ",
    "12345678901234567890 ", "İ",
)  # fmt: skip

pieces = st.lists(st.sampled_from([*SECRETS, *ENDLESS, *PROSE]) | st.text(max_size=6), max_size=12).map("".join)


def whole(text: str, active: tuple[int, ...] = (0, 1)) -> str:
    return redacted(text, FINDERS.find(text, active))


def cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def streamed(parts: list[str], finders: Finders = FINDERS, active: tuple[int, ...] = (0, 1)) -> str:
    channel = Channel(finders, active)
    return "".join(map(channel.feed, parts)) + channel.end()


@settings(deadline=None, max_examples=300)
@given(pieces, st.lists(st.integers(0, 10_000), max_size=30))
def test_a_stream_says_what_the_whole_text_says_wherever_it_is_cut(text: str, places: list[int]) -> None:
    assert streamed(cut(text, places)) == whole(text)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_whatever_the_place_of_one_cut(secret: str) -> None:
    text = f"It says {secret}, and so on."
    for at in range(len(text) + 1):
        assert streamed([text[:at], text[at:]]) == whole(text)
    assert secret not in whole(text)


@pytest.mark.parametrize(
    "text",
    [
        "Project Kestrels, project kestrel and PROJECT KESTRELS",  # what follows decides
        "a key sk-proj-abcdefghijklmnopqrstuv1234ABCD 12 and 4111 1111 1111 1111 12/28",  # one begins where one ends
        "my password: hunter2xyz9, my SSN: 219099998; Bearer a8f5f167f44f4964e6c998dee827110c",  # a name decides
        "postgres://app:s3cr3t@db.example.com and john@example.com.",
        "1234567890 4111 1111 1111 1111 4111 1111 1111 1111",
        '{"to":"john@example.com","cc":["jane@example.org"],"card":4111111111111111}',
    ],
)
def test_a_text_is_the_same_whatever_the_place_of_two_cuts(text: str) -> None:
    for at in range(len(text)):
        for more in (1, 2, 7, 20):
            assert streamed([text[:at], text[at : at + more], text[at + more :]]) == whole(text)


@pytest.mark.parametrize(
    "pattern", [r"cats?\b", r"cat(?!s)", r"cat(?=s)", r"(?<!s)cat$", r"(?m)^cat", r"cat(?:.{0,9}s)?"]
)
def test_an_own_pattern_may_look_around_itself(pattern: str) -> None:
    finders = Finders([Guard("own", find=(pattern,), then="redact")])
    text = "cat cats scat\ncat, a cat and cats"
    for at in range(len(text)):
        assert streamed([text[:at], text[at:]], finders, (0,)) == redacted(text, finders.find(text, (0,)))


@pytest.mark.parametrize("secret", SECRETS)
def test_not_one_character_of_a_secret_goes_on_before_it_is_whole(secret: str) -> None:
    channel = Channel(FINDERS, (0,))
    given = "".join(map(channel.feed, f"It says {secret}"))
    assert "It says ".startswith(given)


@settings(deadline=None, max_examples=100)
@given(pieces, st.integers(1, 40))
def test_a_stream_is_held_back_by_no_more_than_256_characters(text: str, size: int) -> None:
    channel = Channel(FINDERS, (0, 1))
    for at in range(0, len(text), size):
        channel.feed(text[at : at + size])
        assert channel.held <= HELD


# -- what is long -----------------------------------------------------------------------------------------------------


def fed(channel: Channel, text: str, size: int = 7) -> list[str]:
    return [channel.feed(text[at : at + size]) for at in range(0, len(text), size)]


def test_a_key_that_runs_on_is_hidden_from_its_start_and_what_follows_is_not() -> None:
    text = f"A key: sk-proj-{'a1b2' * 500} and on."
    channel = Channel(FINDERS, (0,))

    given = "".join(fed(channel, text)) + channel.end()

    assert given == "A key: [secret] and on."


def test_its_placeholder_goes_out_long_before_it_has_ended() -> None:
    channel = Channel(FINDERS, (0,))

    given = "".join(fed(channel, f"A key: sk-proj-{'a1b2' * 200}"))

    assert given == "A key: [secret]"


def test_what_could_match_and_is_not_decided_within_256_characters_counts_as_found() -> None:
    finders = Finders([Guard("own", find=("BEGIN.{0,999}END",), then="redact")])
    channel = Channel(finders, (0,))

    given = "".join(fed(channel, "a BEGIN" + "x" * 300)) + channel.end()

    assert given == "a [pattern]"


def test_what_is_swallowed_ends_where_the_match_does() -> None:
    finders = Finders([Guard("own", find=("BEGIN.{0,999}?END",), then="redact")])
    channel = Channel(finders, (0,))

    given = "".join(fed(channel, f"a BEGIN{'x' * 600}END and on")) + channel.end()

    assert given == "a [pattern] and on"


def test_what_never_ends_is_swallowed_without_being_kept() -> None:
    finders = Finders([Guard("own", find=("(?s)BEGIN.*END",), then="redact")])
    channel = Channel(finders, (0,))

    given = "".join(fed(channel, "a BEGIN" + "x" * 40_000, 500)) + channel.feed("END more") + channel.end()

    assert given == "a [pattern]"
    assert channel.held == 0


# -- who is told ------------------------------------------------------------------------------------------------------


def test_each_finding_is_told_once_by_its_place_in_the_whole_text() -> None:
    told: list[Found] = []
    text = "x" * 500 + " john@example.com, " + "y " * 200 + f"sk-proj-{'a1b2' * 100} 8.8.8.8"
    channel = Channel(FINDERS, (0,), on_found=told.append)

    fed(channel, text)
    channel.end()

    assert [(text[one.start : one.end][:8], one.kind) for one in told] == [
        ("john@exa", "email"),
        ("sk-proj-", "secret"),
        ("8.8.8.8", "ip_address"),
    ]


def test_a_rule_that_only_flags_holds_nothing_back() -> None:
    told: list[str] = []
    finders = Finders(
        [Guard("a", find=("email",), then="flag"), Guard("b", find=("phone",), then="block", shadow=True)]
    )
    channel = Channel(finders, (0, 1), on_found=lambda found: told.append(found.kind))
    text = "john@example.com or 020 7946 0958"

    assert fed(channel, text, 1) == list(text)
    channel.end()
    assert told == ["email", "phone"]


def test_a_rule_that_flags_beside_one_that_redacts_is_told_of_all_it_finds() -> None:
    told: list[tuple[str, int]] = []
    finders = Finders([Guard("a", find=("email",), then="flag"), Guard("b", find=("email",), then="redact")])
    channel = Channel(finders, (0, 1), on_found=lambda found: told.append((found.kind, found.rule)))

    given = "".join(fed(channel, "To john@example.com.", 3)) + channel.end()

    assert given == "To [email]."
    assert sorted(told) == [("email", 0), ("email", 1)]


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    finders = Finders([Guard("own", find=("(?:a|aa)+$",), then="block")])

    with pytest.raises(TimeoutError):
        finders.find("a" * 5000 + "!", (0,))


def test_many_texts_are_looked_at_as_each_would_be() -> None:
    texts = [f"{secret}" for secret in SECRETS] + list(PROSE)

    each = FINDERS.find_each([("", text) for text in texts], (0, 1))

    assert each == [FINDERS.find(text, (0, 1)) for text in texts]
