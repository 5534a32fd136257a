"""What secrets look like: keys of known issuers, private keys, passwords behind their names.

Three sources: the forms that ``redact`` masks on the disk (the one place where they are written down), the detectors of
the library ``detect-secrets`` for further issuers, and what tells by its surroundings: PEM blocks, passwords in URLs,
values that are assigned to a telling name. Stricter than ``redact``, which may mask a harmless word too many: here a
request may be refused for it, so a value behind a name has to look like one that nobody could guess, and code that
only names a secret (``password = os.environ["DB"]``) is none.

Not used of the library: its detectors by name and by entropy, which are made for people who look at each finding.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

from mitmgate import redact
from mitmgate.guard_kinds import ESCAPED, Form, Measure, whole

DETECTORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "azure_storage_key.AzureStorageKeyDetector": (("AccountKey=",),),
    "discord.DiscordBotTokenDetector": ((".",),),
    "gitlab_token.GitLabTokenDetector": (
        ("glpat-", "gldt-", "glft-", "glsoat-", "glrt-"),
        ("GR1348941",),
        ("glcbt-",),
        ("glimt-",),
        ("glptt-",),
        ("glagent-",),
        ("gloas-",),
    ),
    "mailchimp.MailchimpDetector": (("-us",),),
    "pypi_token.PypiTokenDetector": (("pypi-AgEI",), ("pypi-AgEN",)),
    "sendgrid.SendGridDetector": (("SG.",),),
    "square_oauth.SquareOAuthDetector": (("sq0csp-",),),
    "telegram_token.TelegramBotTokenDetector": ((":AA",),),
    "twilio.TwilioKeyDetector": (("AC",), ("SK",)),
}
"""Detector of ``detect_secrets.plugins`` -> for each of its patterns, literals of which one stands in every match.

The others find what ``redact.FORMS`` finds, or catch more than the secret. A Telegram token's second half begins with
``AA``.
"""

CHAR = r"[A-Za-z0-9_\-]"
VALUE = rf"""[^\s"'`\\,;&<>(){{}}\[\]|{ESCAPED}]"""
QUOTES = rf"""[\\"'`{ESCAPED}]{{0,4}}"""
PEM_KIND = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
PEM_LINES = rf"(?:(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset): ?[^\r\n]{{0,80}}|[A-Za-z0-9+/=\s\\{ESCAPED}])*+"

NAMES = (
    "password", "passwd", "passphrase", "secret", "api_key", "api-key", "apikey", "api key", "access_key", "access-key",
    "accesskey", "secret_key", "private_key", "account_key", "accountkey", "auth_token", "authtoken", "access_token",
    "accesstoken", "refresh_token", "id_token",
)  # fmt: skip
"""Ends of the names of members, variables and headers, in lower case."""
ASSIGNED = re.compile(rf"{QUOTES}\]?\s{{0,3}}(?::=|=>?|:|\bis\b)\s{{0,3}}{QUOTES}")
"""From a name to its value."""
SCHEME = re.compile(r"\s{1,3}")
USER = re.compile(r"""[^\s/@"'\\<>:]{0,40}:""")

GUESSES = re.compile(r"(?i)x{3,}|\*{3,}|\.{3}|example|changeme|placeholder|your[_-]|<.*>|\$\{|\{\{|redacted|^env:")
"""What stands where a secret belongs, and is none."""
CODE = re.compile(
    r"[A-Za-z_][A-Za-z_0-9]*(?:(?:\.|::|->)[A-Za-z_][A-Za-z_0-9]*)+|[a-z]+(?:_[a-z0-9]+)+|0x[0-9a-f]{1,8}"
)


DIGIT = re.compile("[0-9]")
LETTER = re.compile("[A-Za-z]")


def looks_chosen(text: str) -> bool:
    """Return whether *text* could be a password: letters and digits, many of them different, and no piece of code."""
    if GUESSES.search(text) or CODE.fullmatch(text):
        return False
    letters, digits = len(LETTER.findall(text)), len(DIGIT.findall(text))
    return letters >= 2 and digits >= 1 and letters + digits >= len(text) * 0.6 and len(set(text)) >= 6


def at_least(length: int, digit: bool) -> Measure:
    """Return the measure of a run that begins like a key. One that is too long to be kept back counts as one."""
    return whole(lambda text: len(text) >= length and (not digit or len(text) > 256 or DIGIT.search(text) is not None))


@cache
def forms() -> tuple[Form, ...]:
    """Return all forms. The first call loads the library: 0.15 s."""
    return (*_known(), *_more(), *_detected(), *_led(), _pem())


def _known() -> Iterator[Form]:
    """Yield the forms of ``redact``."""
    for literal, form in redact.FORMS.items():
        apart = "(?<![A-Za-z0-9])" if form.apart else ""
        yield Form(
            "secret",
            apart + form.pattern.pattern.decode(),
            near=(literal.decode(),),
            measure=at_least(form.least, form.digit),
            endless=True,
        )
    sure, unsure = redact.SURE_SK.pattern.decode(), redact.SK.pattern.decode()
    yield Form("secret", rf"(?:{sure}){CHAR}*", near=("sk-",), endless=True)
    yield Form("secret", rf"(?<![A-Za-z0-9]){unsure}", near=("sk-",), measure=at_least(11, digit=True), endless=True)


def _more() -> Iterator[Form]:
    """Yield what neither ``redact`` nor the library has in this form."""
    yield Form("secret", rf"eyJ{CHAR}{{9,240}}\.eyJ{CHAR}{{5,}}(?:\.{CHAR}+)?", near=("eyJ",), endless=True)
    yield Form("secret", r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])", near=("npm_",))


def _detected() -> Iterator[Form]:
    """Yield the forms of the library's detectors."""
    for path, literals in DETECTORS.items():
        module, name = path.split(".")
        patterns = getattr(import_module(f"detect_secrets.plugins.{module}"), name).denylist
        for pattern, near in zip(patterns, literals, strict=True):
            yield Form("secret", f"(?<![A-Za-z0-9]){pattern.pattern}", near=near, endless="," in pattern.pattern)


def _led() -> Iterator[Form]:
    """Yield the forms of what tells by what stands before it."""
    yield Form(
        "secret",
        rf"{VALUE}{{8,180}}(?!{VALUE})(?!\()",
        near=NAMES,
        view="folded",
        lead=ASSIGNED,
        measure=whole(looks_chosen),
    )
    yield Form(
        "secret",
        r"[A-Za-z0-9._~+/=\-]{20,}",
        near=("bearer",),
        view="folded",
        lead=SCHEME,
        measure=at_least(20, digit=True),
        endless=True,
    )
    yield Form(
        "secret",
        rf"(?:(?!/){VALUE}){{1,128}}?(?=@)",
        near=("://",),
        lead=USER,
        measure=whole(lambda text: not GUESSES.search(text)),
    )
    yield Form("secret", r"T\w{6,15}/B\w{6,15}/\w{16,40}", near=("hooks.slack.com/services/",), lead=re.compile(""))


def _pem() -> Form:
    pattern = rf"-----BEGIN {PEM_KIND}{PEM_LINES}(?:-----END {PEM_KIND})?"
    return Form("secret", pattern, near=("PRIVATE KEY",), made_of="lines")
