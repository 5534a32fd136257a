"""What national ids look like, country by country.

Where a country's form is firm (letters, dashes, a date and check digits) it is found wherever it stands. Where it is
nothing but a number, every tenth order number would pass its check: such a number is found behind a word that says what
it is (``SSN``, ``Steuer-ID``, ``BSN`` …), as in a form, in JSON, in a sentence. python-stdnum knows the check digits.
"""

import re
from collections.abc import Callable
from datetime import date
from importlib import import_module

from mitmgate.guard_kinds import Form, digits_of, longest, number, whole

ID = "national_id"


def stdnum(*modules: str) -> Callable[[str], bool]:
    """Return whether one of python-stdnum's *modules* takes a text; each is loaded when it is first asked."""

    def is_valid(text: str) -> bool:
        return any(import_module(f"stdnum.{module}").is_valid(text) for module in modules)

    return is_valid


def is_swedish(text: str) -> bool:
    return _is_day(digits_of(text)[-10:-4]) and stdnum("se.personnummer")(text)


def _is_day(text: str) -> bool:
    """Return whether *text* is a YYMMDD; 60 may be added to the day (a Swedish coordination number)."""
    try:
        date(2000 + int(text[:2]), int(text[2:4]), int(text[4:6]) % 60)
    except ValueError:
        return False
    return True


_TABLE: tuple[tuple[str, tuple[str, ...], Callable[[str], bool] | None], ...] = (
    # the United States: SSN
    (r"[0-9]{3}-[0-9]{2}-[0-9]{4}", ("000-00-0000",), stdnum("us.ssn")),
    # South Africa: date of birth, sex, citizenship, Luhn
    (r"[0-9]{10}[012][89][0-9]", ("0" * 13,), stdnum("za.idnr")),
    # France: sex, year, month, place of birth (2A and 2B are Corsica), order, key
    (r"[12][0-9]{4}(?:[0-9]{2}|2[AB])[0-9]{8}", ("0" * 15, "000000A00000000"), stdnum("fr.nir")),
    (
        r"[12] [0-9]{2} [0-9]{2} (?:[0-9]{2}|2[AB]) [0-9]{3} [0-9]{3} [0-9]{2}",
        ("0 00 00 00 000 000 00", "0 00 00 0A 000 000 00"),
        stdnum("fr.nir"),
    ),
    # Brazil: CPF
    (r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", ("000.000.000-00",), stdnum("br.cpf")),
    # India: Aadhaar
    (r"[2-9][0-9]{3} [0-9]{4} [0-9]{4}(?! [0-9])", ("0000 0000 0000",), stdnum("in_.aadhaar")),
    # Italy: codice fiscale
    (r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", ("AAAAAA00A00A000A",), stdnum("it.codicefiscale")),
    # Spain: DNI, NIE
    (
        r"(?:[0-9]{8}|[XYZ][0-9]{7})-?[A-HJ-NP-TV-Z]",
        ("00000000A", "00000000-A", "A0000000A", "A0000000-A"),
        stdnum("es.dni", "es.nie"),
    ),
    # Sweden: personnummer
    (r"(?:19|20)?[0-9]{6}[\-+][0-9]{4}", ("000000-0000", "000000+0000"), is_swedish),
    # Finland: henkilötunnus
    (
        r"[0-9]{6}[\-+A][0-9]{3}[0-9A-FHJ-NPR-Y]",
        ("000000-000", "000000+000", "000000A000"),
        stdnum("fi.hetu"),
    ),
    # China: resident identity card
    (r"[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9X]", ("0" * 17,), stdnum("cn.ric")),
    # South Korea: resident registration number
    (r"[0-9]{6}-[0-9]{7}", ("000000-0000000",), stdnum("kr.rrn")),
    # Mexico: CURP
    (r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]", ("AAAA000000AAAAAA",), stdnum("mx.curp")),
    # Belgium: rijksregisternummer
    (r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", ("00.00.00-000.00",), stdnum("be.nn")),
    # Switzerland: AHV number
    (r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}", ("000.0000.0000.00",), stdnum("ch.ssn")),
    # Britain: National Insurance number; it has no check digit
    (
        r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: [0-9]{2} [0-9]{2} [0-9]{2} [A-D]|[0-9]{6} ?[A-D])",
        ("AA 00 00 00 A", "AA000000A", "AA000000 A"),
        None,
    ),
)
"""Firm forms: pattern, shapes (see ``guard_seek``) of which one stands in each match, check."""

WORDS = (
    "ssn", "social security", "social insurance", "national id", "national_id", "national insurance", "identity no",
    "identity number", "id number", "id_number", "id no", "tax id", "tax_id", "taxpayer", "tax file", "tfn",
    "steuer-id", "steueridentifikationsnummer", "steuer_id", "idnr", "bsn", "burgerservicenummer", "pesel", "cpf",
    "aadhaar", "nhs", "personnummer", "personnr", "cpr", "dni", "nif", "sécurité sociale", "tckn", "kimlik",
    "fødselsnummer", "fodselsnummer", "rodné číslo", "egn", "oib", "cnp",
)  # fmt: skip
"""What says, in lower case, that a national id follows."""
TO_NUMBER = re.compile(
    r"""(?i)[a-z]{0,3}(?:[ _\-]?(?:id|number|nummer|num|no|nr|card|#)\.?){0,2}[\\"'\s:=#]{0,6}(?:is |was )?"""
)
"""From such a word to its number."""

BARE = (
    "us.ssn", "ca.sin", "gb.nhs", "de.idnr", "nl.bsn", "pl.pesel", "br.cpf", "in_.aadhaar", "au.tfn", "tr.tckimlik",
    "il.idnr", "dk.cpr", "fr.nir", "za.idnr", "ro.cnp", "hr.oib", "bg.egn", "cz.rc", "no.fodselsnummer",
)  # fmt: skip
"""Checks of numbers that need such a word."""


def is_bare(text: str) -> bool:
    """Return whether *text* is such a number, however it is parted."""
    return stdnum(*BARE)("".join(filter(str.isalnum, text)))


FORMS: tuple[Form, ...] = (
    *(number(ID, pattern, near, whole(check) if check else None, back=4) for pattern, near, check in _TABLE),
    Form(
        ID,
        r"[0-9]{1,4}(?:[ .\-/]?[0-9]{1,6}){1,6}-?[A-Z]?(?!\w)",
        near=WORDS,
        view="folded",
        lead=TO_NUMBER,
        apart=True,
        measure=longest(is_bare),
        made_of="number",
        long=True,
    ),
)
