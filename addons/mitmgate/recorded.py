"""A recorded call as a request again: its row, and its body where that was kept. Pure.

Rows have no headers, so what a client steered by ``cf-aig-*``, or a rule asks of ``header.NAME``, is not known. A body
that was not kept is stood in for by one of a few members: the model, and the hash of what the client had sent, so that
two calls have the same cache key if, and only if, they were the same. Keys are not recorded: the row says whom the key
had proved.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any, cast

from mitmgate import dialects
from mitmgate.auth import Proof
from mitmgate.dialects.base import Dialect, Json, Request
from mitmgate.exchange import Exchange
from mitmgate.policy import Policy
from mitmgate.policy.match import Match
from mitmgate.providers import Hosts, Provider

type Row = Mapping[str, Any]
"""Of ``exchanges``."""

STREAMED = "streamed upload"
"""How the note begins of a call whose body no rule has read."""

STAND_IN = "mitmgate_request_sha256"
"""The member of a body that stands in for one that was not kept."""


def wall_of(row: Row) -> float:
    """Return when the call came, seconds since 1970."""
    return datetime.fromisoformat(row["started_at"]).timestamp()


def exchange_of(row: Row, body: bytes | None, hosts: Hosts, policy: Policy, now: float) -> Exchange | None:
    """Return the call of *row* as it came; None where nobody would look at its host. *body* None: it was not kept."""
    host, path = row["host"] or "", row["path"] or "/"
    provider = provider_at(hosts, host)
    if host and provider is None:
        return None
    agent = row["user_agent"]
    headers = {"host": host, "content-type": "application/json", **({"user-agent": agent} if agent else {})}
    headers |= _said_in_headers(row, policy)
    fields = [(name.encode(), value.encode("utf-8", "replace")) for name, value in headers.items()]
    x = Exchange(row["method"] or "POST", "https", host, 443, path, fields, headers, now, wall_of(row))
    x.id, x.provider, x.door = row["id"], provider, "base-url" if row["door"] == "base-url" else "proxy"
    x.body = stand_in(row) if body is None else _told_apart(row, body)
    x.streamed_upload = STREAMED in (row["notes"] or "")
    x.proof = _proof(row, policy)
    x.keep_row = False
    return x


def provider_at(hosts: Hosts, host: str) -> Provider | None:
    """Return whose *host* it is, whatever the port: rows have none."""
    if found := hosts.find(host, 443):
        return found
    rows = ((provider, glob.rpartition(":")) for provider in hosts.providers.values() for glob in provider.hosts)
    return next((provider for provider, (name, colon, _) in rows if colon and name == host.lower()), None)


def stand_in(row: Row) -> bytes:
    """Return a body in place of the one that was not kept."""
    said = {"model": row["request_model"], "stream": bool(row["stream"]), STAND_IN: row["request_sha256"] or row["id"]}
    return json.dumps({name: value for name, value in said.items() if value is not None}).encode()


def _told_apart(row: Row, body: bytes) -> bytes:
    """Return *body*; where it was masked, with the hash of what it was before, so that two that differ stay apart."""
    start = len(body) - len(body.lstrip())
    if not is_altered(row, body) or body[start : start + 1] != b"{":
        return body
    comma = b"" if body[start + 1 :].lstrip().startswith(b"}") else b","
    mark = json.dumps({STAND_IN: row["request_sha256"]}).encode()[1:-1]
    return b"".join((body[: start + 1], mark, comma, body[start + 1 :]))


def is_altered(row: Row, body: bytes) -> bool:
    """True where *body*, as it was kept, is not what the client sent: it was masked, or its coding undone."""
    return row["request_sha256"] is not None and sha256(body).hexdigest() != row["request_sha256"]


def _said_in_headers(row: Row, policy: Policy) -> dict[str, str]:
    """Return the headers from which *policy* reads what the row has in a column."""
    sources = {"prompt_version": policy.identify.prompt_version, "session_id": policy.identify.session}
    return {
        source.partition(".")[2]: row[column]
        for column, names in sources.items()
        for source in names
        if source.startswith("header.") and row[column]
    }


def _proof(row: Row, policy: Policy) -> Proof:
    """Return what the row says its caller had proved; the models that the key is for are those of *policy*."""
    name = row["key_name"]
    keys = policy.auth.keys if policy.auth else ()
    models = next((key.models for key in keys if key.name == name), ())
    return Proof(name or "", row["tenant"], row["user"], models, b"")


# -- what the rooms read ----------------------------------------------------------------------------------------------


def begin(x: Exchange, row: Row, is_kept: bool) -> None:
    """Let ``identify``, which has seen the head of *x*, find in it what the row says."""
    if not x.host:  # a name of the gateway's own: only its rules know whose host that is
        x.dialect = dialects.find(None, "POST", x.path) or dialects.CHAT
        x.operation = x.dialect.operation
    if x.dialect:
        x.dialect = cast(Dialect, AsRecorded(x.dialect, row, is_kept))
    said = {"metadata": _metadata(row), "session-id": row["session_id"], "event-id": row["event_id"]}
    x.controls |= {name: value for name, value in said.items() if value}


def identified(x: Exchange, row: Row) -> None:
    """Put right what ``identify`` could not know."""
    x.auth, x.keyless = row["auth"], False
    if not row["key_name"]:
        x.proof = None
    x.trace_id, x.parent_span_id = row["trace_id"], row["parent_span_id"]
    x.prompt_version = x.prompt_version or row["prompt_version"]


def _metadata(row: Row) -> dict[str, Any]:
    try:
        found = json.loads(row["metadata"] or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class AsRecorded:
    """A dialect that takes from a row what cannot be read in a body: it was not kept, or wrapped in another."""

    def __init__(self, dialect: Dialect, row: Row, is_kept: bool) -> None:
        self.dialect, self.row, self.is_kept = dialect, row, is_kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dialect, name)

    def read_request(self, path: str, body: Json) -> Request:
        row, said = self.row, self.dialect.read_request(path, body)
        model = row["request_model"] or said.model
        if self.is_kept:
            return replace(said, model=model)
        return Request(model, bool(row["stream"]), input_tokens_estimate=row["input_tokens"] or 0)


# -- what cannot be known ---------------------------------------------------------------------------------------------


def unknown_to(match: Match | None) -> frozenset[str]:
    """Return the fields of *match* that no row can tell."""
    fields = match.fields if match else frozenset()
    return frozenset(field for field in fields if field.startswith("header.") and field != "header.user-agent")
