"""Mask secrets in what is kept: request headers, URLs, bodies. What a person wrote or a model answered stays readable.

Runs when a row or payload is made, in the writer's thread, before anything reaches the disk. Each secret becomes
``[secret]``. Works on bytes of any kind: JSON with escapes, JSON inside of JSON strings, SSE, text that is not UTF-8.

Promises: a key of a known form is found wherever it stands, a secret behind a telling name wherever that name is a
member, a variable, a header or a query parameter. Where a form could be an everyday word it must look like a key: long
enough, with a digit. Better a harmless word too many than one key on the disk. Time grows with the length of the text
and with nothing else: each rule begins with a literal and consumes a whole run of characters, so that it looks at none
twice. Measured: 0.3 ms per 10 kB.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_plus

type Fields = list[tuple[bytes, bytes]]

type Span = tuple[int, int]
"""Where a secret stands: from, up to."""

MASK = b"[secret]"

# -- keys that tell by their first characters --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """What the keys of one issuer look like."""

    pattern: re.Pattern[bytes]
    """A literal and the whole run of key characters behind it."""
    least: int
    """Characters, prefix included."""
    digit: bool = False
    """A digit is among them: the prefix alone is too common."""
    apart: bool = False
    """It begins a word: the prefix is also the end of everyday words."""


FORMS: dict[bytes, Form] = {
    b"AIza": Form(re.compile(rb"AIza[A-Za-z0-9_-]*"), 24),
    b"AKIA": Form(re.compile(rb"AKIA[A-Z0-9]*"), 20),
    b"ASIA": Form(re.compile(rb"ASIA[A-Z0-9]*"), 20),
    b"gh": Form(re.compile(rb"gh[oprsu]_[A-Za-z0-9_]*"), 24),
    b"github_pat_": Form(re.compile(rb"github_pat_[A-Za-z0-9_]*"), 31),
    b"glpat-": Form(re.compile(rb"glpat-[A-Za-z0-9_-]*"), 22),
    b"xox": Form(re.compile(rb"xox[abeprs]-[A-Za-z0-9-]*"), 15),
    b"xapp-": Form(re.compile(rb"xapp-[A-Za-z0-9-]*"), 15, digit=True),
    b"hf_": Form(re.compile(rb"hf_[A-Za-z0-9]*"), 33),
    b"gsk_": Form(re.compile(rb"gsk_[A-Za-z0-9]*"), 24),
    b"xai-": Form(re.compile(rb"xai-[A-Za-z0-9]*"), 24),
    b"pplx-": Form(re.compile(rb"pplx-[A-Za-z0-9]*"), 25),
    b"r8_": Form(re.compile(rb"r8_[A-Za-z0-9]*"), 33),
    b"nvapi-": Form(re.compile(rb"nvapi-[A-Za-z0-9_-]*"), 26),
    b"ya29.": Form(re.compile(rb"ya29\.[A-Za-z0-9_-]*"), 25),
    b"whsec_": Form(re.compile(rb"whsec_[A-Za-z0-9]*"), 22),
    b"k_live_": Form(re.compile(rb"[prs]k_live_[A-Za-z0-9]*"), 17),
    b"k_test_": Form(re.compile(rb"[prs]k_test_[A-Za-z0-9]*"), 17),
    b"mg-": Form(re.compile(rb"mg-[A-Za-z0-9_-]*"), 19, digit=True, apart=True),
}
"""Literal -> form of providers' and neighbours' keys; ``mg-`` are the gateway's own. For ``sk-`` see ``_is_sk``."""

SK = re.compile(rb"sk-[A-Za-z0-9_-]*")
SURE_SK = re.compile(rb"sk-(?:ant|proj|or|svcacct|admin)-[A-Za-z0-9_-]{8}|sk-[A-Za-z0-9]{20}")
"""Known also in the middle of a word; the last one, because no word has 20 letters without a hyphen behind ``sk-``."""

JWT = re.compile(rb"eyJ[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")

DIGIT = re.compile(rb"[0-9]")

ESCAPE = re.compile(rb"\\[nrtbf]|%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}")
"""What may stand right before a word and end in a letter or digit: escapes of JSON and of URLs."""

# -- secrets that tell by their names ----------------------------------------------------------------------------------

FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-", b"abcdefghijklmnopqrstuvwxyz_")
"""Names are looked for in lower case and with ``_`` for ``-``."""

NAMES = (
    b"_key", b"apikey", b"accountkey", b"secret", b"password", b"passwd", b"passphrase", b"authorization", b"_token",
    b"accesstoken", b"authtoken", b"credentials",
)  # fmt: skip
"""Ends of the names of members, variables and headers, folded: ``OPENAI_API_KEY``, ``x-api-key``, ``client_secret``."""

HARMLESS = (
    b"primary_key", b"foreign_key", b"public_key", b"cache_key", b"sort_key", b"partition_key", b"next_token",
    b"page_token", b"continuation_token", b"stop_token", b"eos_token", b"bos_token", b"pad_token", b"unk_token",
)  # fmt: skip
"""Names that end like secrets and are none."""

ASSIGNED = rb"(?:\\{0,15}[\"'])?[ \t]{0,8}(?:=>|[:=])[ \t]{0,8}"
"""Between a name and its value: the name's closing quote (escaped inside of a JSON string) and ``:`` or ``=``."""

OPENERS = b"\\\"' \t=:"
"""What ``ASSIGNED`` can begin with."""

QUOTED = re.compile(ASSIGNED + rb"(?P<quote>\\{0,15}[\"'])(?P<value>.*?)(?:(?<!\\)(?P=quote)|(?=[\r\n])|\Z)")
"""A value's closing quote has as many backslashes as its first; a text that was cut has none."""

UNQUOTED = re.compile(ASSIGNED + rb"(?:(?:[Bb]asic|[Bb]earer|[Tt]oken)[ \t]{1,8})?(?P<value>[^\s\"'\\,;&<>(){}\[\]]+)")
"""As in a shell, a log line, a header."""

BEARER = re.compile(rb"(?:%20|\+|[ \t]){1,4}(?P<value>[A-Za-z0-9._~+/=-]+)")
COOKIE = re.compile(ASSIGNED + rb"(?:\\{0,15}[\"'])?(?P<value>[^\s\"'\\=;,]{1,256}=[^\r\n\"'\\]*)")

QUERY = (b"key=", b"sig=", b"signature=", b"token=", b"code=", b"jwt=", b"credential=")
"""Ends of query parameters that are secrets, folded."""

QUERY_NAMES = ("key", "sig", "signature", "token", "code", "jwt", "credential", "secret", "password", "pwd")
"""The same for a URL that is taken apart."""

QUERY_VALUE = re.compile(rb"[^&;#\"'\\<>\s)]+")
SIGNATURE = re.compile(rb"(?P<value>[A-Za-z0-9+/=_-]{1,512})")
IN_QUERY = re.compile(rb"[?&;][a-z0-9_.%]{0,32}\Z")
"""Between the separator and the end of the parameter's name."""

CREDENTIAL_HEADERS = (
    b"authorization",
    b"_key",
    b"apikey",
    b"token",
    b"secret",
    b"password",
    b"credential",
    b"signature",
)
"""Ends of the names of header fields, folded."""

# -- secrets that tell by what stands around them ----------------------------------------------------------------------

USERINFO = re.compile(rb"://(?P<value>[^\s/@\"'\\<>:]{0,256}:[^\s/@\"'\\<>]{1,256})@")
PEM = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
PEM_END = re.compile(rb"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
PEM_BODY = re.compile(rb"(?:[A-Za-z0-9+/=\s]|\\[nr/])*")
PEM_BYTES = 16 * 1024
"""A longer block is no key."""

HIDDEN = re.compile(rb"\\(?:\\|u00([2-7][0-9A-Fa-f]))")
"""An escaped backslash, or a character below 128 that JSON writes as ``\\u00XX`` without need."""


# -- looking for many literals at once ---------------------------------------------------------------------------------

type Gate = tuple[re.Pattern[bytes], list[bytes]]
"""A pattern that finds any of the literals, which have the same first byte: it skips to that as fast as memory goes."""


def _gates(literals: Iterable[bytes]) -> list[Gate]:
    """Return *literals* as gates: one pass for each first byte costs a third of one for each literal."""
    gates = []
    for first, group in itertools.groupby(sorted(literals), key=lambda literal: literal[:1]):
        members = list(group)
        rest = b"|".join(re.escape(literal[1:]) for literal in members)
        gates.append((re.compile(re.escape(first) + b"(?:" + rest + b")"), members))
    return gates


FORM_GATES = _gates(FORMS)
NAME_GATES = _gates(NAMES)


def body(data: bytes) -> bytes:
    """Return *data* with every secret masked; the same object where there is none."""
    if b"\\u00" in data:
        data = HIDDEN.sub(_plain, data)
    spans = sorted(_spans(data))
    return _masked(data, spans) if spans else data


def text(value: str) -> str:
    """Return *value* with every secret masked."""
    return body(value.encode(errors="surrogatepass")).decode(errors="surrogatepass")


def headers(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return header *fields* with credentials masked; cookies are left out altogether."""
    kept: Fields = []
    for name, value in fields:
        folded = name.translate(FOLD)
        if folded in (b"cookie", b"set_cookie"):
            continue
        kept.append((name, MASK if folded.endswith(CREDENTIAL_HEADERS) else body(value)))
    return kept


def url(address: str) -> str:
    """Return a URL, or a path with its query, without secrets: parameters such as ``key``, user and password."""
    head, mark, query = address.partition("?")
    if mark:
        query = "&".join(_parameter(part) for part in query.split("&"))
    return text(head + mark + query)


def _parameter(part: str) -> str:
    name, _, value = part.partition("=")
    is_secret = unquote_plus(name).lower().endswith(QUERY_NAMES)
    return f"{name}={MASK.decode()}" if value and is_secret else part


def _plain(escape: re.Match[bytes]) -> bytes:
    """Return the character that an escape stands for, unless JSON needs it escaped."""
    if escape[1] is None:
        return escape[0]
    character = bytes.fromhex(escape[1].decode())
    return escape[0] if character in (b'"', b"\\", b"\x7f") else character


def _masked(data: bytes, spans: list[Span]) -> bytes:
    """Return *data* with the *spans* (sorted, may overlap) masked, one mask for spans that overlap or touch."""
    parts: list[bytes] = []
    done = -1
    for start, end in spans:
        if start > done:
            parts += (data[max(done, 0) : start], MASK)
        done = max(done, end)
    return b"".join((*parts, data[done:]))


def _spans(data: bytes) -> Iterator[Span]:
    """Yield where the secrets are, in any order; they may overlap."""
    for form in (FORMS[literal] for literal in _present(FORM_GATES, data)):
        yield from (match.span() for match in form.pattern.finditer(data) if _fits(data, match, form))
    if b"sk-" in data:
        yield from (match.span() for match in SK.finditer(data) if _is_sk(data, match))
    if b"eyJ" in data:
        yield from (match.span() for match in JWT.finditer(data) if _is_jwt(match[0]))
    if b"@" in data:
        yield from (match.span("value") for match in USERINFO.finditer(data))
    if b"PRIVATE KEY" in data:
        yield from _private_keys(data)
    folded = data.translate(FOLD)
    for name in _present(NAME_GATES, folded):
        yield from _behind(folded, name, lambda at: _named(data, folded, at))
    if b"bearer" in folded:
        yield from _behind(folded, b"bearer", lambda at: _judged(BEARER.match(data, at), _is_key))
    if b"cookie" in folded:
        yield from _behind(folded, b"cookie", lambda at: _judged(COOKIE.match(data, at), bool))
    if b"=" in data:
        for name in (name for name in QUERY if name in folded):
            yield from _behind(folded, name, lambda at: _query(data, folded, at))


def _present(gates: list[Gate], data: bytes) -> Iterator[bytes]:
    """Yield the literals of *gates* that stand in *data*."""
    for gate, literals in gates:
        if gate.search(data):
            yield from (literal for literal in literals if literal in data)


def _behind(folded: bytes, name: bytes, find: Callable[[int], Span | None]) -> Iterator[Span]:
    """Yield what *find* says about the place behind each *name*, going on behind what it found."""
    at = folded.find(name)
    while at >= 0:
        at += len(name)
        span = find(at)
        if span:
            yield span
            at = span[1]
        at = folded.find(name, at)


def _fits(data: bytes, match: re.Match[bytes], form: Form) -> bool:
    key = match[0]
    if len(key) < form.least or (form.digit and not DIGIT.search(key)):
        return False
    return not form.apart or _begins_word(data, match.start())


def _is_sk(data: bytes, match: re.Match[bytes]) -> bool:
    key = match[0]
    if SURE_SK.search(key):
        return True
    looks_like_one = len(key) >= 19 or (len(key) >= 11 and DIGIT.search(key) is not None)
    return looks_like_one and _begins_word(data, match.start())


def _begins_word(data: bytes, at: int) -> bool:
    """True where no letter or digit stands before *at*; the end of an escape (``\\n``, ``%20``) is none."""
    if at == 0 or not data[at - 1 : at].isalnum():
        return True
    return any(escape.end() == at for escape in ESCAPE.finditer(data, max(0, at - 6), at))


def _is_jwt(token: bytes) -> bool:
    """True where a part that begins like JSON in base64 is followed by another one."""
    return any(
        b"eyJ" in head and len(head) - head.find(b"eyJ") >= 12 and len(claims) >= 8
        for head, claims in itertools.pairwise(token.split(b"."))
    )


def _is_key(value: bytes) -> bool:
    """True where *value* is rather a key than a word: eight characters with a digit among them, or twenty."""
    return len(value) >= 20 or (len(value) >= 8 and DIGIT.search(value) is not None)


def _judged(match: re.Match[bytes] | None, is_secret: Callable[[bytes], bool]) -> Span | None:
    return match.span("value") if match and is_secret(match["value"]) else None


def _named(data: bytes, folded: bytes, at: int) -> Span | None:
    """Return the value behind a secret's name that ends at *at*."""
    if data[at : at + 1] not in OPENERS:  # nearly always: the word goes on, as in ``prompt_tokens``
        return None
    if folded.endswith(HARMLESS, 0, at):
        return None
    quoted = QUOTED.match(data, at)
    if quoted:
        return _judged(quoted, bool)
    return _judged(UNQUOTED.match(data, at), _is_key)


def _query(data: bytes, folded: bytes, at: int) -> Span | None:
    """Return the value, beginning at *at*, of a query parameter whose name and ``=`` end there."""
    before = folded[max(0, at - 40) : at - 1]
    if IN_QUERY.search(before):
        value = QUERY_VALUE.match(data, at)
        return value.span() if value else None
    if before.endswith(b"signature"):  # stands alone in AWS's authorization header
        return _judged(SIGNATURE.match(data, at), _is_key)
    return None


def _private_keys(data: bytes) -> Iterator[Span]:
    """Yield whole PEM blocks; of one that was cut, all that still looks like its body."""
    ends = [match.end() for match in PEM_END.finditer(data)]
    at = 0
    while begin := PEM.search(data, at):
        following = bisect.bisect_right(ends, begin.end())
        if following < len(ends) and ends[following] - begin.start() <= PEM_BYTES:
            at = ends[following]
        else:
            rest = PEM_BODY.match(data, begin.end())
            at = rest.end() if rest else begin.end()
        yield begin.start(), at
