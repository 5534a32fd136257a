"""``mitmgate usage``: read recorded answers and say what the gateway would book for them.

A case is a folder with ``case.json`` (what was asked, and the head of the answer) and ``body.bin`` (the answer, content
coding undone). Its body is fed to the reader that a live answer would get, in pieces of any size, and nothing else of
the folder is looked at: what somebody expects of the case plays no part.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mitmgate import dialects
from mitmgate.cli.common import console
from mitmgate.dialects.base import Call, Dialect, Reading
from mitmgate.providers import Hosts
from mitmgate.terminal import terminal

CASE, BODY = "case.json", "body.bin"
HTTPS_PORT = 443

COLUMNS = {
    "response_model": "model",
    "input_tokens": "input",
    "cache_read_input_tokens": "cached",
    "cache_creation_input_tokens": "written",
    "output_tokens": "output",
    "reasoning_output_tokens": "reasoning",
    "tool_calls": "calls",
    "finish_reasons": "finish",
    "usage_source": "usage",
    "terminal": "terminal",
    "error_type": "error",
}
"""Of the table: key of a row -> heading."""

PIPED_WIDTH = 240
"""Columns of a table that no terminal bounds."""

EXAMPLES = """\b
Examples:
  mitmgate usage cases/openai/             every case below that folder, as a table
  mitmgate usage --json --cut 1 cases/     one JSON line per case, bodies fed byte by byte
"""


class BadCase(Exception):
    """A case that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    host: str
    port: int
    method: str
    path: str
    """Query included."""
    request: Any
    """The request's JSON body, None where it had none or it was not kept."""
    stream: bool
    """The recording says that the answer came as a stream; counts only where the request does not tell."""
    status: int
    headers: Mapping[str, str]
    """Of the answer, names in lower case."""
    body: bytes


def folders_of(path: Path) -> list[Path]:
    """Return the case folders at or below *path*, in order of their names."""
    return sorted(file.parent for file in path.rglob(CASE))


def load(folder: Path) -> Case:
    """Return the case in *folder*; raise ``BadCase`` where it is none."""
    try:
        said = json.loads((folder / CASE).read_bytes())
        host, _, port = str(said["host"]).partition(":")
        headers = said.get("response_headers") or {}
        return Case(
            id=str(said.get("id") or folder.name),
            host=host,
            port=int(port) if port else HTTPS_PORT,
            method=str(said.get("method") or "POST"),
            path=str(said["path"]),
            request=said.get("request_body"),
            stream=said.get("stream") is True,
            status=int(said.get("response_status") or 200),
            headers={str(name).lower(): str(value) for name, value in headers.items()},
            body=(folder / BODY).read_bytes(),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise BadCase(f"{folder}: no readable case: {type(e).__name__}: {e}") from e


def pieces(body: bytes, cut: int | None) -> Iterator[bytes]:
    """Yield *body* in pieces of *cut* bytes; whole where *cut* is None."""
    size = cut or max(len(body), 1)
    for at in range(0, len(body), size):
        yield body[at : at + size]


def read(dialect: Dialect | None, case: Case, cut: int | None) -> Reading:
    """Return what a live answer with these bytes would have been read as."""
    if dialect is None:
        return Reading(ended=True)
    request = dialect.read_request(case.path, case.request)
    stream = request.stream or (case.request is None and case.stream)
    call = Call(case.status, case.headers, stream, case.path, request.model)
    return dialects.reading_of(dialect, call, pieces(case.body, cut))


def row_of(case: Case, cut: int | None, hosts: Hosts) -> dict[str, Any]:
    """Return the row that the gateway would write, as far as the answer decides it."""
    dialect = dialects.find(hosts.find(case.host, case.port), case.method, case.path)
    reading = read(dialect, case, cut)
    usage = reading.usage
    streaming = "event-stream" in case.headers.get("content-type", "")
    return {
        "id": case.id,
        "response_model": reading.response_model,
        "response_id": reading.response_id,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "reasoning_output_tokens": usage.reasoning_output_tokens,
        "finish_reasons": reading.finish_reasons,
        "tool_calls": reading.tool_calls,
        "usage_source": reading.usage_source,
        "terminal": terminal(reading, "end", streaming),
        "error_type": reading.error_type,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    for heading in COLUMNS.values():
        counts = heading in ("input", "cached", "written", "output", "reasoning", "calls")
        table.add_column(heading, justify="right" if counts else "left", overflow="fold")
    for row in rows:
        table.add_row(row["id"], *(cell(row[key]) for key in COLUMNS))
    out = console()
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(table)


def cell(value: Any) -> str:
    """Return a value of a row as a table shows it; unknown is a dot, zero is 0."""
    if value is None:
        return "·"
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--cut", type=click.IntRange(1), metavar="N", help="Feed bodies in pieces of N bytes.  [default: whole]")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def usage(paths: tuple[Path, ...], as_json: bool, cut: int | None) -> None:
    """Print what the gateway would book for the recorded answers under PATHS.

    A case is a folder with case.json (host, path, request_body, response_status, response_headers) and body.bin (the
    answer as on the wire, uncompressed).
    """
    folders: list[Path] = []
    for path in paths:
        found = folders_of(path)
        if not found:
            raise click.UsageError(
                f"no case in {path}: give a folder that has {CASE} and {BODY}, or one above such folders"
            )
        folders += found
    hosts = Hosts()
    rows = []
    for folder in folders:
        try:
            row = row_of(load(folder), cut, hosts)
        except BadCase as e:
            raise click.UsageError(str(e)) from e
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
        rows.append(row)
    if not as_json:
        print_table(rows)
