"""Weigh the gateway: its CPU beside bare ``mitmdump -q`` in the same run, and the time it adds to a call.

Both stand between the same clients and the same provider, which are processes of their own; the gateway traces into a
database, as it does for anyone. Rounds are taken in turns, so that a busy machine is busy for both; medians are told.
Trust ratios to about 0.05, milliseconds to about 20 %.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from load import LANES
from subjects import Load, Subject, certificate, running, start_bare, start_gateway, start_provider

SETTLE_S = 1.2
"""After each load: rows are written in batches, and the writer's work belongs to the request."""


@dataclass(frozen=True)
class Size:
    """How much is sent in each round."""

    rounds: int
    requests: int
    events: int
    """Per stream."""
    connections: int
    calls: int
    """To take the time of, in all."""


FULL = Size(rounds=5, requests=1500, events=100, connections=200, calls=300)
QUICK = Size(rounds=3, requests=500, events=50, connections=100, calls=100)


@dataclass(frozen=True)
class Line:
    """One line of the report. ``result`` is the ratio of CPU, or the milliseconds added."""

    what: str
    unit: str
    bare: float
    gateway: float
    result: float
    bar: float

    @property
    def holds(self) -> bool:
        return self.result <= self.bar


CPU = {
    "request": ("CPU per request", "ms", 0.8),
    "event": ("CPU per 1,000 SSE events", "ms", 1.0),
    "connection": ("CPU per new connection", "ms", 0.8),
}
"""What is weighed -> (title, unit, bar for the ratio)."""


def weigh(load: Load, subject: Subject, size: Size) -> dict[str, float]:
    """Return CPU milliseconds per request, per 1,000 events and per connection, of one round."""

    def spent(task: str, **arguments: object) -> float:
        before = subject.cpu_ms()
        load.do(task, **arguments)
        time.sleep(SETTLE_S)
        return subject.cpu_ms() - before

    load.do("open", place=subject.place)
    time.sleep(SETTLE_S)
    request = spent("requests", count=size.requests) / size.requests
    event = spent("events", count=size.events) / size.events / LANES * 1000
    load.do("close")
    connection = spent("connections", place=subject.place, count=size.connections) / size.connections
    return {"request": request, "event": event, "connection": connection}


def compare(load: Load, subjects: dict[str, Subject], size: Size) -> list[Line]:
    """Return the CPU lines: medians over rounds that were taken in turns."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for number in range(size.rounds):
        for name, subject in subjects.items():
            say(f"round {number + 1} of {size.rounds}: {name}")
            rounds[name].append(weigh(load, subject, size))
    lines = []
    for key, (what, unit, bar) in CPU.items():
        bare, gateway = (median(taken[key] for taken in rounds[name]) for name in ("bare", "gateway"))
        lines.append(Line(what, unit, bare, gateway, gateway / bare, bar))
    return lines


def delay(load: Load, subjects: dict[str, Subject], direct: Mapping[str, object], size: Size) -> list[Line]:
    """Return the latency lines: what is added to the same call made directly, on connections that are open."""
    say("latency")
    places: dict[str, object] = {"direct": direct} | {name: subject.place for name, subject in subjects.items()}
    taken = load.do("latency", places=places, count=size.calls)
    lines = []
    for key, what in (("call", "added to a plain call"), ("first_event", "added to a stream's first event")):
        straight, bare, gateway = (median(taken[name][key]) for name in ("direct", "bare", "gateway"))
        lines.append(Line(what, "ms", bare - straight, gateway - straight, gateway - straight, 3.0))
    return lines


def say(text: str) -> None:
    """Tell progress on stderr, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[Kbench: {text}", end="", file=sys.stderr, flush=True)


def table(lines: list[Line]) -> str:
    rows = [("", "bare", "gateway", "result", "bar", "")]
    for line in lines:
        result = f"{line.result:.2f}" if line.what.startswith("CPU") else f"{line.result:.2f} ms"
        said = "holds" if line.holds else "MISSED"
        rows.append((line.what, f"{line.bare:.2f} ms", f"{line.gateway:.2f} ms", result, f"<= {line.bar}", said))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_row(row, widths) for row in rows)


def _row(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join([cells[0].ljust(len(first)), *others]).rstrip()


def rows_of(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("select count(*) from exchanges").fetchone()[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, epilog="Exit code 1: a bar is missed.")
    parser.add_argument("--quick", action="store_true", help="in half a minute, not two; ratios to about 0.1")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--rounds", type=int, help="how often each is weighed")
    told = parser.parse_args()
    size = QUICK if told.quick else FULL
    if told.rounds:
        size = Size(told.rounds, size.requests, size.events, size.connections, size.calls)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mitmgate-bench-")))
        ca, pem = certificate(folder)
        provider, port = start_provider(pem)
        stack.enter_context(running(provider))
        subjects = {
            "bare": start_bare(folder / "bare", ca, port),
            "gateway": start_gateway(folder / "gateway", ca, port, workers=1),
        }
        for subject in subjects.values():
            stack.enter_context(running(subject.process))
        load = Load()
        stack.enter_context(running(load.process))
        lines = compare(load, subjects, size)
        direct = {"door": None, "host": "localhost", "port": port, "ca": str(ca)}
        lines += delay(load, subjects, direct, size)
        memory = {name: subject.rss_mb() for name, subject in subjects.items()}
        time.sleep(SETTLE_S)
        rows = rows_of(folder / "gateway" / "home" / "traces.db")
    say("\r\033[K")
    if told.json:
        print(json.dumps({"lines": [asdict(line) for line in lines], "rss_mb": memory, "rows": rows}, indent=1))
    else:
        print(table(lines))
        print(f"memory: bare {memory['bare']:.0f} MB, gateway {memory['gateway']:.0f} MB; rows written: {rows:,}")
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
