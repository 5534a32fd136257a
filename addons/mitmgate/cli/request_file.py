"""A request as people have it in a file: as it goes over the wire, as ``curl``, as a browser's HAR, a body alone. Pure.

Which of them it is shows in its first characters:

    curl …              a command line, as documentation and browsers' "copy as cURL" have it
    {"log": …}          a HAR; of several entries the first POST. Also a single entry, or its ``request``
    {…} or […]          a body alone: a POST to OpenAI's chat completions is assumed
    POST https://…      a request line, header lines, an empty line, the body; lines end as they like
"""

import argparse
import json
import os
import re
import shlex
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, override

ASSUMED_URL = "https://api.openai.com/v1/chat/completions"

REQUEST_LINE = re.compile(r"([A-Za-z]+)[ \t]+(\S+)(?:[ \t]+HTTP/[0-9.]+)?[ \t]*")
ANSI_C = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL)
"""``$'…'`` of bash, where ``\\n`` is a line's end: browsers write bodies so."""


class Unclear(ValueError):
    """The file is no request; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a file says."""

    form: str
    """``HTTP``, ``curl``, ``HAR``, ``JSON``."""
    method: str
    url: str
    """Absolute, or a path where the ``host`` header says the rest."""
    headers: list[tuple[str, str]]
    body: bytes = b""
    assumed: list[str] = field(default_factory=list)
    """What the file leaves open, as sentences."""

    def header(self, name: str) -> str | None:
        """Return the value of the header *name*, which is in lower case; None where there is none."""
        return next((value for one, value in self.headers if one.lower() == name), None)


def read(data: bytes) -> Asked:
    """Return the request that *data* holds. Raises ``Unclear``."""
    text = data.decode("utf-8-sig", "surrogateescape").lstrip()
    if not text:
        raise Unclear("it is empty")
    if text.startswith(("curl ", "$ curl ")):
        return _curl(text.removeprefix("$ "))
    if text[0] in "{[":
        return _json(text)
    return _http(text)


# -- as it goes over the wire -----------------------------------------------------------------------------------------


def _http(text: str) -> Asked:
    head, gap, body = _parted(text)
    first, *lines = head.splitlines()
    line = REQUEST_LINE.fullmatch(first)
    if line is None:
        raise Unclear(f"its first line is {first[:80]!r}; it takes a request line like 'POST {ASSUMED_URL}'")
    headers = [_header(one) for one in lines if one.strip()]
    data = _encoded(body)
    length = next((value for name, value in headers if name.lower() == "content-length"), "")
    # An editor ends the last line of a file; a body that says its length knows better.
    data = data[: int(length)] if length.isdigit() else data.removesuffix(b"\n").removesuffix(b"\r")
    return Asked("HTTP", line[1].upper(), line[2], headers, data if gap else b"")


def _parted(text: str) -> tuple[str, str, str]:
    found = re.search(r"\r?\n\r?\n", text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise Unclear(f"{line[:80]!r} is no header; headers end with an empty line")
    return name.strip(), value.strip()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# -- JSON: a HAR, or a body alone -------------------------------------------------------------------------------------


def _json(text: str) -> Asked:
    try:
        doc = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Unclear(f"it begins like JSON and is none: {e}") from e
    request = _request_in(doc)
    if request is not None:
        return _har(request)
    said = f"the file is a body alone: a POST to {ASSUMED_URL} is assumed"
    return Asked("JSON", "POST", ASSUMED_URL, [("content-type", "application/json")], _encoded(text.strip()), [said])


def _request_in(doc: Any) -> Any:
    """Return the HAR's request in *doc*, None where it is no HAR."""
    if not isinstance(doc, dict):
        return None
    if isinstance(log := doc.get("log"), dict):
        requests = [entry.get("request") for entry in log.get("entries") or [] if isinstance(entry, dict)]
        found = [one for one in requests if isinstance(one, dict)]
        posted = [one for one in found if str(one.get("method")).upper() == "POST"]
        if not found:
            raise Unclear("the HAR has no request")
        return (posted or found)[0]
    if isinstance(request := doc.get("request"), dict) and "url" in request:
        return request
    return doc if "method" in doc and "url" in doc else None


def _har(request: dict[str, Any]) -> Asked:
    headers = [
        (str(one.get("name")), str(one.get("value")))
        for one in request.get("headers") or []
        if isinstance(one, dict) and not str(one.get("name")).startswith(":")  # HTTP/2's own
    ]
    posted = request.get("postData")
    text = posted.get("text") if isinstance(posted, dict) else None
    body = _encoded(str(text)) if text else b""
    if body and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("content-type", str((posted or {}).get("mimeType") or "application/json")))
    return Asked("HAR", str(request.get("method") or "GET").upper(), str(request.get("url")), headers, body)


# -- curl -------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        raise Unclear(f"the curl command cannot be read: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="curl", add_help=False, allow_abbrev=False)
    say = parser.add_argument
    say("urls", nargs="*")
    say("--url", action="append", default=[])
    say("-X", "--request")
    say("-H", "--header", action="append", default=[])
    say("-d", "--data", "--data-ascii", "--data-raw", "--data-binary", action="append", dest="data", default=[])
    say("--json", action="append", default=[])
    say("-u", "--user")
    say("-A", "--user-agent")
    say("-b", "--cookie")
    say("-I", "--head", action="store_true")
    for flags in WITHOUT_EFFECT:
        say(*flags, action="store_true")
    for flags in WITHOUT_EFFECT_BUT_A_VALUE:
        say(*flags)
    return parser


WITHOUT_EFFECT = (
    *(("-s", "--silent"), ("-S", "--show-error"), ("-k", "--insecure"), ("-N", "--no-buffer"), ("-i", "--include")),
    *(("-v", "--verbose"), ("-L", "--location"), ("-f", "--fail"), ("-g", "--globoff"), ("-O", "--remote-name")),
    *(("-0", "--http1.0"), ("--http1.1",), ("--http2",), ("--compressed",), ("--fail-with-body",), ("-q",)),
)
WITHOUT_EFFECT_BUT_A_VALUE = (
    *(("-o", "--output"), ("-x", "--proxy"), ("-m", "--max-time"), ("--connect-timeout",), ("-w", "--write-out")),
    *(
        ("--cacert",),
        ("--resolve",),
        ("--retry",),
        ("-D", "--dump-header"),
        ("-c", "--cookie-jar"),
        ("-e", "--referer"),
    ),
)
"""Options of curl that say nothing of the request, or nothing that a rule asks."""


def _curl(text: str) -> Asked:
    said = _parser().parse_args(_words(text)[1:])
    urls = [*said.urls, *said.url]
    if len(urls) != 1:
        raise Unclear(f"the curl command names {len(urls) or 'no'} URLs; it takes one")
    headers = [_header(os.path.expandvars(line)) for line in said.header]  # as the shell would, where it is set
    data, is_json = [*said.data, *said.json], bool(said.json)
    for option, name in ((said.user_agent, "User-Agent"), (said.cookie, "Cookie")):
        if option:
            headers.append((name, option))
    if said.user:
        headers.append(("Authorization", f"Basic {b64encode(_encoded(said.user)).decode()}"))
    if data and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/json" if is_json else "application/x-www-form-urlencoded"))
    method = said.request or ("HEAD" if said.head else "POST" if data else "GET")
    body = (b"" if is_json else b"&").join(map(_data, data))
    return Asked("curl", method.upper(), urls[0], headers, body)


def _words(text: str) -> list[str]:
    """Return the words of a command line as a shell would."""
    joined = re.sub(r"\\\r?\n", " ", text)
    plain = ANSI_C.sub(lambda found: shlex.quote(_unescaped(found[1])), joined)
    try:
        return shlex.split(plain)
    except ValueError as e:
        raise Unclear(f"the curl command cannot be read: {e}") from e


ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) if found[1] else ESCAPED.get(found[2], found[0])

    return re.sub(r"\\(?:[ux]([0-9a-fA-F]{2,4})|(.))", character, text, flags=re.DOTALL)


def _data(value: str) -> bytes:
    if not value.startswith("@"):
        return _encoded(value)
    try:
        return Path(value[1:]).read_bytes()
    except OSError as e:
        raise Unclear(f"the curl command reads its body from {value[1:]}: {(e.strerror or 'no file').lower()}") from e
