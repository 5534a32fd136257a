"""``targets``: places that a provider's API can be had from, each with its own key.

A key stands in the environment and never in the file. A header counts as a key by its name (``api-key``,
``x-session-token``) or by its value (``Bearer …``); either way ``env:NAME`` is the only form it may have. Instead of
one key in a header a target has a pool of them (``keys``), or a credential by which each request is signed (``aws``)
or gets a token (``google``).
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mitmgate.errors import Fault, PolicyError
from mitmgate.policy import secret
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    Place,
    file,
    listing,
    named,
    not_one_of,
    optional,
    read_secret,
    record,
    reference,
    rows,
    show_text,
    text,
    usable_name,
)
from mitmgate.policy.secret import Secret
from mitmgate.policy.values import Aws, Google, Target
from mitmgate.providers import CREDENTIAL_HEADERS

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SECRET_NAME = re.compile(r"auth|key|token(?!s)|secret|cookie|password|credential", re.IGNORECASE)
SECRET_VALUE = re.compile(r"(?:bearer|basic)\s|sk-|gsk_|AIza|hf_|xai-", re.IGNORECASE)
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REGION = re.compile(r"[a-z]+(?:-[a-z]+)+-[0-9]+")
SERVICE_ACCOUNT = ("client_email", "private_key", "token_uri")

FAMILY_OF: Mapping[str, tuple[str, str]] = {
    "aws": ("bedrock", "aws-bedrock"),
    "google": ("vertex", "google-vertex-ai"),
}
"""Credential -> (the API that it is for, the provider of the table that speaks it)."""

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


# -- credentials ------------------------------------------------------------------------------------------------------


def _check_alias(node: Node, alias: str) -> None:
    if not ALIAS.fullmatch(alias):
        raise node.wrong(f"{alias!r} cannot be an alias; use letters, digits, '-', '_' and '.'")


_aliases = named(reference, "aliases to env:NAME", _check_alias)
_keys: Form[dict[str, str]] = Form(_aliases.read, lambda keys: _aliases.show(keys) or None)


def _read_region(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    if not REGION.fullmatch(raw):
        raise node.wrong(f"{raw!r} is not a region, such as eu-central-1")
    return raw


_aws = record(
    Aws,
    {
        "region": Key(Form(_read_region, show_text), required=True),
        "access_key_id": Key(reference),
        "secret_access_key": Key(reference),
        "session_token": Key(reference),
        "profile": Key(text),
        "service": Key(text),
    },
)


def _read_aws(node: Node, context: Context) -> Aws:
    aws = _aws.read(node, context)
    if (aws.access_key_id is None) != (aws.secret_access_key is None):
        raise node.wrong("access_key_id and secret_access_key go together")
    if aws.session_token is not None and aws.access_key_id is None:
        raise node.under["session_token"].wrong("a session token goes with access_key_id and secret_access_key")
    if aws.profile is not None and aws.access_key_id is not None:
        raise node.under["profile"].wrong("it takes either a profile or keys of its own, not both")
    return aws


def _read_service_account(node: Node, context: Context) -> Secret:
    """Return the JSON, one line, of a service account's key; it is shown as it was written: ``env:NAME`` or a path."""
    raw = text.read(node, context)
    if secret.is_reference(raw):
        said = read_secret(node, context, one_line=False)
    else:
        said = Secret(Path(file.read(node, context)).read_text("utf-8", "replace"), raw)
    try:
        account = json.loads(said)
    except (ValueError, RecursionError):
        account = None  # and no cause: it would quote the key
    entries = account if isinstance(account, dict) else {}
    missing = [name for name in SERVICE_ACCOUNT if not isinstance(entries.get(name), str)]
    if missing:
        where = f"what {raw} holds" if secret.is_reference(raw) else f"what stands in {raw!r}"
        raise node.wrong(f"{where} is not the JSON key of a service account; it has no {listing(missing)}")
    return Secret(json.dumps(entries), raw)


_google = record(Google, {"service_account": Key(Form(_read_service_account, show_text), required=True)})


# -- a target ---------------------------------------------------------------------------------------------------------

_rows = rows(
    Target,
    {
        "provider": Key(Form(_read_provider, show_text), required=True),
        "base_url": Key(Form(_read_base_url, show_text), required=True),
        "headers": Key(named(Form(_read_header, show_text), "header names to values", _check_header)),
        "keys": Key(_keys),
        "aws": Key(optional(Form(_read_aws, _aws.show))),
        "google": Key(optional(_google)),
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
    faults = [fault for name, target in targets.items() for fault in _impossible(node.under[name], target, context)]
    if faults:
        raise PolicyError(faults)
    return targets


def _impossible(node: Node, target: Target, context: Context) -> Iterator[Fault]:
    """Yield a fault for headers of one name, for two kinds of credential, and for one that means nothing there."""
    for header in _twice(target.headers):
        yield node.fault(f"the header {header!r} stands twice; names of headers know no case")
    ways = [name for name in ("keys", *FAMILY_OF) if getattr(target, name)]
    others = [*ways[1:], *(f"the header {name!r}" for name in target.headers if name.lower() in CREDENTIAL_HEADERS)]
    if ways and others:
        said = node.under[ways[0]]
        yield said.fault(f"a target has one kind of credential; this one has {listing(others, 'and')}, too")
    for name, (family, slug) in FAMILY_OF.items():
        if name in ways and context.families.get(target.provider) != family:
            yield node.under[name].fault(f"it is for {slug}; the provider {target.provider!r} knows nothing of it")


def _twice(headers: object) -> list[str]:
    """Return the header names that differ from an earlier one in case only."""
    names = list(headers) if isinstance(headers, dict) else []
    lower = [name.lower() for name in names]
    return [name for n, name in enumerate(names) if name.lower() in lower[:n]]


form: Form[dict[str, Target]] = Form(_read, _rows.show)


def places(root: Node) -> dict[str, Place]:
    """Return what rules have to know of the targets of the file, as far as it can be read."""
    section = root.get("targets")
    rows = section.under if section is not None else {}
    return {name: Place(*(_said(row, key) for key in ("provider", "zone", "base_url"))) for name, row in rows.items()}


def _said(row: Node, key: str) -> str | None:
    value = row.get(key)
    return value.text if value is not None else None
