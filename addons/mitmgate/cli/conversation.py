"""Prompt and answer of an exchange, as the conversation they are; as JSON or text where nobody knows how to read them.

How an API writes its turns is the dialects' knowledge; they are imported when a body is shown, not before.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mitmgate.cli import render
from mitmgate.inert import inert_lines
from mitmgate.store.queries import Row

if TYPE_CHECKING:
    from rich.console import Console

    from mitmgate.dialects.base import Dialect, Turn

MOST_CHARS = 64 * 1024
"""Of one turn on the screen; ``--json`` has all of it."""


def dialect_of(row: Row) -> "Dialect | None":
    """Return how the exchange's API is spoken; None where nobody knows.

    A host of the policy's own is not in the built-in table: the name in the row decides, else the shape of the path.
    """
    from mitmgate import dialects
    from mitmgate.providers import TABLE, Hosts

    host, _, port = str(row["host"] or "").partition(":")
    at_host = Hosts().find(host, int(port) if port.isdigit() else 443)
    by_name = (provider for provider in TABLE if provider.provider_name == row["provider_name"])
    return dialects.find(at_host or next(by_name, None), row.get("method") or "POST", row["path"] or "/")


def prompt_turns(dialect: "Dialect | None", payload: Row) -> "list[Turn] | None":
    """Return the request as turns, None where it does not read as one."""
    try:
        return dialect.conversation(json.loads(payload["body"])) if dialect else None
    except ValueError:
        return None  # not JSON, or cut


def answer_turns(dialect: "Dialect | None", payload: Row) -> "list[Turn] | None":
    return dialect.answer(payload["content_type"] or "", payload["body"]) if dialect else None


def pretty(body: bytes) -> str:
    """Return a body that nobody can read as a conversation: JSON indented, the rest as text."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


def shortened(text: str) -> str:
    if len(text) <= MOST_CHARS:
        return text
    return f"{text[:MOST_CHARS]}\n… {len(text) - MOST_CHARS:,} more characters; --json has them all"


def print_said(out: "Console", row: Row, payloads: Sequence[Row]) -> None:
    """Print prompt and answer as a conversation, or as they lie there."""
    if not payloads:
        render.heading(out, "prompt and answer")
        out.out("  not kept (policy: trace.payloads, or past trace.keep)", style="dim")
        return
    by_kind = {payload["kind"]: payload for payload in payloads}
    dialect = dialect_of(row)
    if request := by_kind.get("request"):
        print_body(out, "prompt", request, prompt_turns(dialect, request))
    if sent := by_kind.get("sent"):
        render.heading(out, "what the provider got differs from the prompt")
        out.out(
            f"  {sent['bytes']:,} bytes; see the policy events above, and --json for its text",
            style="dim",
            highlight=False,
        )
    if response := by_kind.get("response"):
        print_body(out, "answer", response, answer_turns(dialect, response))


def print_body(out: "Console", title: str, payload: Row, turns: "Sequence[Turn] | None") -> None:
    cut = "" if payload.get("whole", 1) else ", only the first part was kept"
    render.heading(out, f"{title}  ({payload['bytes']:,} bytes {render.inert(payload['content_type'])}{cut})")
    if not turns:
        out.out(inert_lines(shortened(pretty(payload["body"]))), highlight=False)
        return
    for turn in turns:
        out.out(f"[{render.inert(turn.role)}]", style="bold", highlight=False)
        out.out(inert_lines(shortened(turn.text)), highlight=False)
