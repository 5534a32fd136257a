"""Other hosts of the same runs (retrieval, tools, MCP): one span per call, bodies never kept.

They go mitmproxy's own way, streamed in both directions, so that gRPC and long polls work as if nobody looked.
"""

import os
import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

from mitmgate import identity
from mitmgate.clock import Clock, iso
from mitmgate.metrics import Metrics
from mitmgate.policy import Policy
from mitmgate.store.writer import Rows, Writer


class Observed:
    name = "mitmgate.observe"

    def __init__(self, policy: Policy, metrics: Metrics, writer: Writer, clock: Clock) -> None:
        self.metrics, self.writer, self.clock = metrics, writer, clock
        self.under_way: dict[str, tuple[str, float, float]] = {}
        """flow id -> (kind, monotonic start, wall start)."""
        self.take(policy)

    def take(self, policy: Policy) -> None:
        """Go by *policy* from now on."""
        self.kinds = [(re.compile(translate(glob)), rule.kind) for rule in policy.observe for glob in rule.hosts]
        self.sessions = policy.identify.session

    def kind_of(self, host: str, port: int) -> str | None:
        """Return the kind of call that *host* is observed for, None where it is not."""
        host = host.lower()
        for pattern, kind in self.kinds:
            if pattern.match(host) or pattern.match(f"{host}:{port}"):
                return kind
        return None

    def begin(self, flow_id: str, kind: str) -> None:
        self.under_way[flow_id] = (kind, self.clock.now(), self.clock.wall())

    def end(self, flow_id: str, host: str, headers: Mapping[str, str], status: int | None) -> None:
        """Write the span of a finished call; *headers* are the request's, names in lower case."""
        begun = self.under_way.pop(flow_id, None)
        if begun is None:
            return
        kind, started, started_wall = begun
        trace_id, parent = identity.trace_of(headers, {})
        span: dict[str, Any] = {
            "exchange_id": None,
            "trace_id": trace_id or identity.session_of(headers, {}, self.sessions),
            "span_id": os.urandom(8).hex(),
            "parent_span_id": parent,
            "name": kind,
            "kind": "client",
            "started_at": iso(started_wall),
            "duration_ms": round((self.clock.now() - started) * 1000, 3),
            "host": host,
            "status_code": status,
        }
        self.metrics.count("mitmgate_observed_total", kind=kind)
        self.writer.put(Rows(spans=[span]), 256)
