"""What each kind of finding looks like: a pattern, and a check that tells it from what only looks so.

Card numbers have to satisfy Luhn and an issuer's range, IBANs and national ids their check digits (python-stdnum),
phone numbers a numbering plan (phonenumbers), addresses the public part of the internet. A pattern names the
candidates; the libraries decide, and are loaded when a policy first asks for their kind. ``secret`` is in
``guard_secrets``, ``national_id`` in ``guard_ids``.

Each pattern begins and ends at a border that it looks for itself, one character back and two ahead at most: where a
stream may be cut hangs on that, and on ``Form.made_of``.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mitmgate.guard_lines import AREA

type Measure = Callable[[str], int]
"""Text of a candidate -> how many of its characters are the finding, counted from its first; 0 = it is none."""

ESCAPED = f"{chr(AREA)}-{chr(AREA + 0x7F)}"
"""In a character class: what stands for an escaped character in JSON that comes in pieces."""

LEAD_LENGTH = 64
"""A literal and what leads from it to its value are no longer."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a kind is written."""

    kind: str
    pattern: str
    near: tuple[str, ...] = ()
    """Literals, of which one stands in every match; empty = nothing is known of it."""
    view: Literal["text", "folded", "shape"] = "text"
    """Where the literals stand: in the text, in lower case, or in its shape, where digits are 0 and capitals A."""
    back: int = 0
    """In a shape: so many characters of a match stand before its literal at most."""
    lead: re.Pattern[str] | None = None
    """The literal is the name of a value; this leads from it to there, where the pattern has to match."""
    apart: bool = False
    """The literal begins a word."""
    measure: Measure | None = None
    """None: whatever matches is a finding."""
    made_of: Literal["word", "number", "lines", "anything"] = "word"
    """A word holds no blank, quote, bracket, comma or backslash, and is no longer than ``guard_seek.WORD_LENGTH``; a
    number is made of ``NUMBER_CHARS``, up to ``NUMBER_LENGTH``.
    """
    endless: bool = False
    """A word that may be longer than that."""
    long: bool = False
    """A number of nine digits or more: in most texts there is none."""


def whole(is_valid: Callable[[str], bool]) -> Measure:
    """Return the measure of what is a finding as a whole or not at all."""
    return lambda text: len(text) if is_valid(text) else 0


def longest(is_valid: Callable[[str], bool]) -> Measure:
    """Return the measure of a candidate that may have caught words behind it: cut at blanks until it is valid."""

    def measure(text: str) -> int:
        while text and not is_valid(text):
            text = text[: max(text.rfind(" "), 0)]
        return len(text)

    return measure


def digits_of(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def number(kind: str, pattern: str, near: tuple[str, ...], measure: Measure | None, back: int = 0) -> Form:
    """Return the form of a number that no other number touches."""
    return Form(
        kind,
        rf"(?<![\w.\-+,/])(?<!\d ){pattern}(?!\w)(?![.,\-/]\d)",
        near=near,
        view="shape",
        back=back,
        measure=measure,
        made_of="number",
        long=all("A" not in shape and shape.count("0") >= 9 for shape in near),
    )


# -- card numbers -----------------------------------------------------------------------------------------------------

ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[68]\d)\d{11}"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
    r"|(?:50|5[6-9]|6[39])\d{14}"  # Maestro
    r"|220[0-4]\d{12}"  # Mir
    r"|(?:60|81|82)\d{14}"  # RuPay
)
"""Lengths and first digits that are given out. A time in milli- or nanoseconds begins with 1, and no card does."""


def is_card(text: str) -> bool:
    from stdnum import luhn

    digits = digits_of(text)
    return ISSUERS.fullmatch(digits) is not None and len(set(digits)) > 1 and luhn.is_valid(digits)


# -- e-mail -----------------------------------------------------------------------------------------------------------

FILE_ENDINGS = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "bmp", "css", "scss", "js", "mjs", "ts", "tsx", "jsx", "json",
     "py", "rb", "rs", "go", "java", "html", "xml", "yaml", "yml", "toml", "lock", "txt", "pdf"}
)  # fmt: skip
"""``logo@2x.png`` is a picture. Some of these are top-level domains, too, with hardly a mailbox in them."""


def is_email(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    ending = domain.rpartition(".")[2].lower()
    return local != "git" and ending not in FILE_ENDINGS and ".." not in text


# -- phone numbers ----------------------------------------------------------------------------------------------------

TRUNK_REGIONS = ("GB", "DE", "FR", "ZA", "NL", "AU", "CH", "BE", "AT", "IT", "JP", "NG", "KE", "NZ", "SE")
"""Where national numbers begin with 0: a number that is written so has to be one of theirs."""


def is_phone(region: str | None = None) -> Callable[[str], bool]:
    """Return whether a text is a number of *region*; None = it begins with a country's code."""

    def is_valid(text: str) -> bool:
        import phonenumbers

        try:
            return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
        except phonenumbers.NumberParseException:
            return False

    return is_valid


def is_trunk_phone(text: str) -> bool:
    return any(is_phone(region)(text) for region in TRUNK_REGIONS)


# -- accounts and addresses -------------------------------------------------------------------------------------------


def is_iban(text: str) -> bool:
    from stdnum import iban

    return iban.is_valid(text)


def is_public_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address) and text.endswith(".0"):
        return False  # a network, or the version of a browser
    return address.is_global and not address.is_multicast


OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"

TRUNK_SHAPES = (
    "00 00 00 00 00", "000 000 0000", "000 0000 0000", "00 0000 0000", "0000 000 000", "0000 000000", "0000 0000000",
    "0000 00000000", "000 00000000", "000-000-0000", "000-0000-0000", "00-0000-0000",
)  # fmt: skip
BRACKETED_SHAPES = ("00) 0000 0000", "000) 0000 0000", "000) 000 0000", "0000) 000000", "0000) 000 000")

_FORMS: dict[str, tuple[Form, ...]] = {
    "credit_card": (
        number("credit_card", r"[0-9]{13,19}", ("0" * 13,), whole(is_card)),
        number(
            "credit_card",
            r"[0-9]{4}(?P<gap>[ \-])(?:[0-9]{4}(?P=gap)[0-9]{4}(?P=gap)[0-9]{4}(?:(?P=gap)[0-9]{3})?"
            r"|[0-9]{6}(?P=gap)[0-9]{4,5})",
            ("0000 0000 0000 0000", "0000-0000-0000-0000", "0000 000000 0000", "0000-000000-0000"),
            whole(is_card),
        ),
    ),
    "email": (
        Form(
            "email",
            r"(?<![\w.%+\-])\w[\w.%+\-]{0,63}@(?:\w(?:[\w\-]{0,28}\w)?\.){1,3}[A-Za-z]{2,24}(?![\w\-])",
            near=("@",),
            measure=whole(is_email),
        ),
    ),
    "phone": (
        Form(
            "phone",
            r"(?<![\w+/=.\-])\+[1-9][0-9]{0,2}(?:[ .\-/]?(?:\([0-9]{1,5}\)|[0-9]{1,12})){1,5}(?!\w)",
            near=("+0",),
            view="shape",
            measure=longest(is_phone()),
            made_of="number",
        ),
        number(
            "phone",
            r"(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}(?P<gap>[ .\-]))[2-9][0-9]{2}(?(gap)(?P=gap)|[ .\-])[0-9]{4}",
            ("000-000-0000", "000.000.0000", "000 000 0000", "000) 000-0000", "000)000-0000", "000) 000 0000"),
            whole(is_phone("US")),
            back=1,
        ),
        number(
            "phone",
            r"0[1-9][0-9]{0,3}(?P<gap>[ \-])[0-9]{2,8}(?:(?P=gap)[0-9]{2,4}){0,3}",
            TRUNK_SHAPES,
            whole(is_trunk_phone),
            back=1,
        ),
        number(
            "phone", r"\(0[1-9][0-9]{0,3}\) [0-9]{3,6}(?: [0-9]{3,4})?", BRACKETED_SHAPES, whole(is_trunk_phone), back=3
        ),
    ),
    "iban": (
        Form(
            "iban",
            r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])",
            near=("AA00",),
            view="shape",
            measure=longest(is_iban),
            made_of="number",
        ),
    ),
    "ip_address": (
        Form(
            "ip_address",
            rf"(?<![\w.\-])(?<![A-Za-z]/)(?<!(?:[Vv]ersion|\bv) )(?:{OCTET}\.){{3}}{OCTET}(?![\w\-])(?!\.\w)",
            near=(".0.0", ".00.0", ".000.0"),
            view="shape",
            back=7,
            measure=whole(is_public_ip),
            made_of="number",
        ),
        Form(
            "ip_address",
            r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])",
            near=(":",),
            measure=whole(is_public_ip),
        ),
    ),
}


def forms_of(kind: str) -> tuple[Form, ...]:
    """Return the forms of *kind*, one of ``policy.kinds.KINDS``."""
    if kind == "secret":
        from mitmgate import guard_secrets

        return guard_secrets.forms()
    if kind == "national_id":
        from mitmgate import guard_ids

        return guard_ids.FORMS
    return _FORMS[kind]
