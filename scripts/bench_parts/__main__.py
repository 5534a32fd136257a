"""Weigh the gateway: its CPU beside bare ``mitmdump -q`` in the same run, and the time it adds to a call.

Both stand between the same clients and the same provider, which are processes of their own; the gateway traces into a
database, as it does for anyone. Cache hits stand beside a second mitmdump, whose one addon sets the answer itself.
Rounds are taken in turns, so that a busy machine is busy for all; medians are told. Trust ratios to about 0.05,
milliseconds to about 20 %.

Hits a second are told beside calls to a provider that thinks for 100 ms, which no chat model undercuts, on as many
connections; and without a bar beside calls to one that answers at once, which compares the gateway's own work alone.
"""

import argparse
import json
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import rules
from load import LANES
from subjects import OPEN_S, Load, Subject, certificate, start_gateway, start_mitmdump, start_provider

SETTLE_S = 1.2
"""After each load: rows are written in batches, and the writer's work belongs to the request."""


@dataclass(frozen=True)
class Size:
    """How much is sent in each round."""

    rounds: int
    requests: int
    hits: int
    events: int
    """Per stream."""
    connections: int
    waiting: int
    """Requests to a provider that thinks."""
    calls: int
    """To take the time of, in all."""


FULL = Size(rounds=5, requests=1500, hits=3000, events=100, connections=200, waiting=400, calls=300)
QUICK = Size(rounds=3, requests=500, hits=1000, events=50, connections=100, waiting=200, calls=100)

THINKS_MS = 100
"""The quickest chat models take longer to their first token."""

type Sign = Literal["", " ms", " x"]
"""Of a result: a ratio of CPU, milliseconds, so many times as much."""


@dataclass(frozen=True)
class Line:
    """One line of the report."""

    what: str
    unit: str
    beside: str
    """What the gateway is weighed beside."""
    other: float
    """Of that."""
    gateway: float
    result: float
    sign: Sign
    bar: float | None
    """None = only told."""
    at_least: bool = False
    """The bar is to be passed, not kept below."""

    @property
    def holds(self) -> bool:
        if self.bar is None:
            return True
        return self.result >= self.bar if self.at_least else self.result <= self.bar

    @property
    def cells(self) -> tuple[str, ...]:
        digits = 0 if self.unit.startswith("/") else 2
        numbers = (f"{number:,.{digits}f}{self.unit}" for number in (self.other, self.gateway))
        bar = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar}{self.sign}"
        verdict = "" if self.bar is None else "holds" if self.holds else "MISSED"
        return (self.what, self.beside, *numbers, f"{self.result:.2f}{self.sign}", bar, verdict)


HEAD = ("", "beside", "", "gateway", "result", "bar", "")

CPU = {
    "request": ("CPU per request", 0.8),
    "event": ("CPU per 1,000 SSE events", 1.0),
    "connection": ("CPU per new connection", 0.8),
}
"""What is weighed -> (title, bar for the ratio)."""

type Round = dict[str, float]


# -- CPU, and calls a second


def weigh(load: Load, subject: Subject, size: Size) -> Round:
    """Return CPU milliseconds per request, per 1,000 events and per connection, and calls a second, of one round."""
    spent = _spender(load, subject)
    load.do("open", OPEN_S, place=subject.place)
    time.sleep(SETTLE_S)
    request, calls_a_s = spent("requests", count=size.requests)
    event, _ = spent("events", count=size.events)
    load.do("close")
    connection, _ = spent("connections", place=subject.place, count=size.connections)
    return {
        "request": request / size.requests,
        "calls_a_s": calls_a_s,
        "event": event / size.events / LANES * 1000,
        "connection": connection / size.connections,
    }


def weigh_hits(load: Load, subject: Subject, size: Size) -> Round:
    """Return CPU milliseconds per call that needs no provider, and such calls a second, of one round.

    Beside them, on the same connections: calls a second to a provider that thinks.
    """
    spent = _spender(load, subject)
    load.do("keep", OPEN_S, place=subject.place)
    load.do("open", OPEN_S, place=subject.place)
    time.sleep(SETTLE_S)
    hit, hits_a_s = spent("hits", count=size.hits)
    thought_a_s = load.do("requests", count=size.waiting, wait_ms=THINKS_MS)
    load.do("close")
    return {"hit": hit / size.hits, "hits_a_s": hits_a_s, "thought_a_s": thought_a_s}


def weigh_rules(load: Load, subject: Subject, size: Size) -> Round:
    """Return CPU milliseconds per request of one round."""
    spent = _spender(load, subject)
    load.do("open", OPEN_S, place=subject.place)
    time.sleep(SETTLE_S)
    request, _ = spent("requests", count=size.requests)
    load.do("close")
    return {"request": request / size.requests}


def _spender(load: Load, subject: Subject) -> Callable[..., tuple[float, Any]]:
    def spent(task: str, **arguments: Any) -> tuple[float, Any]:
        """Return the CPU milliseconds that *subject* spent on *task*, and what the task returned."""
        before = subject.cpu_ms()
        returned = load.do(task, **arguments)
        time.sleep(SETTLE_S)
        return subject.cpu_ms() - before, returned

    return spent


def compare(load: Load, subjects: Mapping[str, Subject], size: Size) -> list[Line]:
    """Return the lines of CPU and of calls a second: medians over rounds that were taken in turns."""
    turns = [
        ("bare", weigh),
        ("gateway", weigh),
        ("answering", weigh_hits),
        ("gateway", weigh_hits),
        ("ruled", weigh_rules),
        ("acting", weigh_rules),
    ]
    rounds: dict[str, list[Round]] = {name: [] for name in subjects}
    for number in range(size.rounds):
        for name, weighing in turns:
            say(f"round {number + 1} of {size.rounds}: {name}")
            rounds[name].append(weighing(load, subjects[name], size))

    def found(name: str, key: str) -> float:
        return median(taken[key] for taken in rounds[name] if key in taken)

    lines = []
    for key, (what, bar) in CPU.items():
        bare, gateway = found("bare", key), found("gateway", key)
        lines.append(Line(what, " ms", "bare", bare, gateway, gateway / bare, "", bar))
    other, hit = found("answering", "hit"), found("gateway", "hit")
    lines.append(Line("CPU per cache hit", " ms", "an addon's answer", other, hit, hit - other, " ms", 0.5))
    hits = found("gateway", "hits_a_s")
    kinds: list[tuple[str, str, float | None]] = [
        (f"calls that take {THINKS_MS} ms", "thought_a_s", 3.0),
        ("instant calls", "calls_a_s", None),
    ]
    for beside, key, least in kinds:
        calls = found("gateway", key)
        lines.append(Line("cache hits a second", "/s", beside, calls, hits, hits / calls, " x", least, at_least=True))
    plain = found("gateway", "request")
    laws: list[tuple[str, str, float | None]] = [
        (f"CPU that {rules.COUNT} rules add", "ruled", 0.2),
        (f"CPU that {rules.ACTING_COUNT} rules add that all act", "acting", None),
    ]
    for what, name, most in laws:
        ruled = found(name, "request")
        lines.append(Line(what, " ms", "no rules", plain, ruled, ruled - plain, " ms", most))
    return lines


# -- latency


def delay(load: Load, subjects: Mapping[str, Subject], direct: Mapping[str, object], size: Size) -> list[Line]:
    """Return the latency lines: what is added to the same call made directly, on connections that are open."""
    say("latency")
    places: dict[str, object] = {"direct": direct} | {name: subjects[name].place for name in ("bare", "gateway")}
    taken = load.do("latency", places=places, count=size.calls)
    lines = []
    for key, what in (("call", "added to a plain call"), ("first_event", "added to a stream's first event")):
        straight, bare, gateway = (median(taken[name][key]) for name in ("direct", "bare", "gateway"))
        lines.append(Line(what, " ms", "bare", bare - straight, gateway - straight, gateway - straight, " ms", 3.0))
    return lines


def hit_time(load: Load, subjects: Mapping[str, Subject], size: Size) -> Line:
    """Return the latency of a cache hit, as its client takes it, while nothing else goes on."""
    say("latency of cache hits")
    places = {name: subjects[name].place for name in ("answering", "gateway")}
    taken = load.do("hit_times", places=places, count=size.calls)
    other, gateway = (median(taken[name]) for name in ("answering", "gateway"))
    return Line("time of a cache hit", " ms", "an addon's answer", other, gateway, gateway, " ms", 2.0)


# -- telling


def say(text: str) -> None:
    """Tell progress on stderr, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[Kbench: {text}", end="", file=sys.stderr, flush=True)


def table(lines: list[Line]) -> str:
    rows = [HEAD, *(line.cells for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_row(row, widths) for row in rows)


def _row(cells: tuple[str, ...], widths: list[int]) -> str:
    """Return *cells* as a line: words to the left, numbers to the right."""
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join(words + numbers).rstrip()


def rows_of(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("select count(*) from exchanges").fetchone()[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, epilog="Exit code 1: a bar is missed.")
    parser.add_argument("--quick", action="store_true", help="in a minute, not three; ratios to about 0.1")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--rounds", type=int, help="how often each is weighed")
    told = parser.parse_args()
    size = QUICK if told.quick else FULL
    if told.rounds:
        size = replace(size, rounds=told.rounds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: told to stop"))  # by itself it would leave its processes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mitmgate-bench-")))
        ca, pem = certificate(folder)
        port = start_provider(stack, pem)
        subjects = {
            "bare": start_mitmdump(stack, folder / "bare", "bare.py", ca, port),
            "answering": start_mitmdump(stack, folder / "answering", "answering.py", ca, port),
            "gateway": start_gateway(stack, folder / "gateway", ca, port, workers=1),
            "ruled": start_gateway(stack, folder / "ruled", ca, port, workers=1, rules=rules.MANY),
            "acting": start_gateway(stack, folder / "acting", ca, port, workers=1, rules=rules.ACTING),
        }
        load = Load(stack)
        lines = compare(load, subjects, size)
        direct = {"door": None, "host": "localhost", "port": port, "ca": str(ca)}
        lines += delay(load, subjects, direct, size)
        lines.append(hit_time(load, subjects, size))
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
