"""``upstream``: how connections to providers are made, and what becomes of an answer that nobody waits for any more."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mitmgate.policy import secret
from mitmgate.policy.document import Node
from mitmgate.policy.forms import (
    Context,
    Form,
    Key,
    entries,
    file,
    gather,
    named,
    not_one_of,
    one_of,
    read_secret,
    record,
    show_text,
    text,
    whole,
)
from mitmgate.policy.values import Upstream

HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")

_leaves = named(one_of("cancel", "drain"), "providers (or default) to cancel or drain")


def _read_after_client_leaves(node: Node, context: Context) -> dict[str, Any]:
    """Return the entries over the defaults: who names one provider keeps what holds for the others."""
    written = _leaves.read(node, context)
    known = ("default", *sorted(context.providers))
    gather(entries(node, "").items(), lambda name, one: _check_slug(one, name, known))
    return {**Upstream().after_client_leaves, **written}


def _check_slug(node: Node, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise node.wrong(not_one_of(name, known))


def _read_proxy(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    url_text = read_secret(node, context) if secret.is_reference(raw) else raw
    try:
        url = urlsplit(url_text)
        usable = url.scheme == "http" and url.hostname and url.port and url.path in ("", "/") and not url.query
    except ValueError:
        usable = False
    shown = f"what {raw} holds" if secret.is_reference(raw) else repr(raw)
    if "@" in raw:
        raise node.wrong("a user name or password may not stand in the file; put the URL into a variable: env:NAME")
    if not usable:
        raise node.wrong(f"{shown} is not the URL of a proxy, such as http://proxy.example.com:3128")
    return url_text


def _host_port(node: Node, host_port: str) -> tuple[str, int]:
    found = HOST_PORT.fullmatch(host_port)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise node.wrong(f"{host_port!r} is not host:port, such as api.openai.com:443")
    return found[1].lower(), int(found[2])


def _read_connect_to(node: Node, context: Context) -> dict[str, tuple[str, int]]:
    def read(name: str, one: Node) -> tuple[str, int]:
        _host_port(one, name)
        host, port = _host_port(one, text.read(one, context))
        return host.strip("[]"), port

    pairs = gather(entries(node, "host:port to host:port").items(), read)
    return {name.lower(): pair for name, pair in pairs.items()}


def _show_connect_to(pairs: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    return {name: f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for name, (host, port) in pairs.items()}


form: Form[Upstream] = record(
    Upstream,
    {
        "connections_per_host": Key(whole(1, 10_000)),
        "proxy": Key(Form(_read_proxy, show_text)),
        "ca": Key(file),
        "after_client_leaves": Key(Form(_read_after_client_leaves, dict)),
        "websocket": Key(one_of("pass", "refuse")),
        "connect_to": Key(Form(_read_connect_to, _show_connect_to)),
    },
)
