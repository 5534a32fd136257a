"""``targets``: places that a provider's API can be had from, each with its own key.

A key stands in the environment and never in the file. A header counts as a key by its name (``api-key``,
``x-session-token``) or by its value (``Bearer …``); either way ``env:NAME`` is the only form it may have.
"""

import re
from urllib.parse import urlsplit

from mitmgate.errors import PolicyError
from mitmgate.policy import secret
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    Place,
    file,
    named,
    not_one_of,
    read_secret,
    rows,
    show_text,
    text,
    usable_name,
)
from mitmgate.policy.values import Target

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SECRET_NAME = re.compile(r"auth|key|token(?!s)|secret|cookie|password|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(r"(?:bearer|basic)\s|sk-|gsk_|AIza|hf_|xai-", re.IGNORECASE)
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")

OF_THE_MESSAGE = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "content-encoding"}
)
"""Headers that say how one message is framed; a policy that sets them could only break it."""


def _check_name(node: Node, name: str) -> None:
    usable_name(node, name)
    if name == "none":
        raise node.wrong("'none' is reserved: cf-aig-fallback: none means no other target; choose another name")


def _read_provider(node: Node, context: Context) -> str:
    name = text.read(node, context)
    if name in context.providers:
        return name
    hint = not_one_of(name, sorted(context.providers))
    if "; did you mean" not in hint:
        hint = f"{name!r} is neither a built-in provider nor an entry of 'providers'"
    raise node.wrong(hint)


def _read_base_url(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    try:
        url = urlsplit(raw)
        host, _ = url.hostname, url.port
    except ValueError as e:
        raise node.wrong(f"{raw!r} is not a URL: {e}") from e
    if "@" in url.netloc:
        raise node.wrong("a user name or password may not stand in a URL; send it as a header from env:NAME")
    if url.scheme not in ("http", "https") or not host or re.search(r"\s", raw):
        raise node.wrong(f"{raw!r} is not an absolute http(s) URL, such as https://llm.example.com/v1")
    if url.query or url.fragment or raw.endswith(("?", "#")):
        kept = raw.partition("?")[0].partition("#")[0]
        raise node.wrong(f"a query or fragment may not stand here; keep {kept!r} (api_version has its own key)")
    return raw.rstrip("/")


def _check_header(node: Node, name: str) -> None:
    if not HEADER_NAME.fullmatch(name):
        raise node.wrong(f"{name!r} cannot be the name of a header")
    if name.lower() in OF_THE_MESSAGE:
        raise node.wrong(f"{name!r} belongs to each single message; a policy cannot set it")


def _read_header(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    if secret.is_reference(raw):
        return read_secret(node, context)
    if SECRET_NAME.search(node.key.rpartition("headers.")[2]) or SECRET_VALUE.match(raw):
        raise node.wrong('a secret may not stand in the file; write env:NAME, or "Bearer env:NAME"')
    if UNPRINTABLE.search(raw):
        raise node.wrong("it holds a line break or another control character")
    return raw


_rows = rows(
    Target,
    {
        "provider": Key(Form(_read_provider, show_text), required=True),
        "base_url": Key(Form(_read_base_url, show_text), required=True),
        "headers": Key(named(Form(_read_header, show_text), "header names to values", _check_header)),
        "deployments": Key(named(text, "models to deployments")),
        "api_version": Key(text),
        "zone": Key(text),
        "ca": Key(file),
    },
    "names to targets",
    _check_name,
)


def _read(node: Node, context: Context) -> dict[str, Target]:
    targets = _rows.read(node, context)
    faults = [
        node.value[name].fault(f"the header {header!r} stands twice; names of headers know no case")
        for name, target in targets.items()
        for header in _twice(target.headers)
        if isinstance(node.value, dict)
    ]
    if faults:
        raise PolicyError(faults)
    return targets


def _twice(headers: object) -> list[str]:
    """Return the header names that differ from an earlier one in case only."""
    names = list(headers) if isinstance(headers, dict) else []
    lower = [name.lower() for name in names]
    return [name for n, name in enumerate(names) if name.lower() in lower[:n]]


form: Form[dict[str, Target]] = Form(_read, _rows.show)


def places(root: Node) -> dict[str, Place]:
    """Return what rules have to know of the targets of the file, as far as it can be read."""
    section = root.value.get("targets") if isinstance(root.value, dict) else None
    rows = section.value if section is not None and isinstance(section.value, dict) else {}
    return {name: Place(*(_said(row, key) for key in ("provider", "zone", "base_url"))) for name, row in rows.items()}


def _said(row: Node, key: str) -> str | None:
    value = row.value.get(key) if isinstance(row.value, dict) else None
    return value.value if value is not None and isinstance(value.value, str) else None
