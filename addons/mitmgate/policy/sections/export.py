"""``export``: where rows go beside the database: an audit log that only grows, and OpenTelemetry.

Read and checked, so that a file that has it loads; ``notices`` says that nothing is exported yet.
"""

import re
from typing import Any
from urllib.parse import urlsplit

from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, Form, Key, boolean, positive, record, text, time
from mitmgate.policy.values import Export

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


def _read_place(node: Node, context: Context) -> str:
    """Return a folder, or the URL of a place that holds files."""
    raw = text.read(node, context)
    if SCHEME.match(raw) and "@" in raw.partition("://")[2].partition("/")[0]:
        raise node.wrong("a user name or password may not stand in the file; credentials come from the environment")
    return raw


def _read_collector(node: Node, context: Context) -> str:
    raw = text.read(node, context)
    try:
        url = urlsplit(raw)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port or True)
    except ValueError:
        usable = False
    if not usable or "@" in raw:
        raise node.wrong(f"{raw!r} is not the URL of a collector, such as http://127.0.0.1:4318")
    return raw.rstrip("/")


_audit: Form[dict[str, Any]] = record(
    dict,
    {
        "to": Key(Form(_read_place, lambda place: place), "audit_to", required=True),
        "keep": Key(positive(time), "audit_keep_s"),
    },
)
_otlp: Form[dict[str, Any]] = record(
    dict,
    {
        "to": Key(Form(_read_collector, lambda url: url), "otlp_to", required=True),
        "content": Key(boolean, "otlp_content"),
    },
)
_export: Form[dict[str, Any]] = record(dict, {"audit": Key(_audit), "otlp": Key(_otlp)})


def _read(node: Node, context: Context) -> Export:
    said = _export.read(node, context)
    return Export(**said.get("audit", {}), **said.get("otlp", {}))


def _show(export: Export) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if export.audit_to is not None:
        keep = {} if export.audit_keep_s is None else {"keep": time.show(export.audit_keep_s)}
        shown["audit"] = {"to": export.audit_to, **keep}
    if export.otlp_to is not None:
        shown["otlp"] = {"to": export.otlp_to, "content": export.otlp_content}
    return shown


form: Form[Export] = Form(_read, _show)
