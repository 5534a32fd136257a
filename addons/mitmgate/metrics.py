"""Counters of one gateway, written as Prometheus text for ``GET /metrics``.

Labels come from closed sets (provider slugs, statuses, sources), so a client cannot make series without end.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from mitmgate.exchange import Exchange

HELP: dict[str, tuple[str, str]] = {
    "mitmgate_requests_total": ("counter", "LLM calls answered, by provider, status and who wrote the answer."),
    "mitmgate_terminals_total": ("counter", "LLM calls by how they ended."),
    "mitmgate_tokens_total": ("counter", "Tokens reported by providers, by kind."),
    "mitmgate_attempts_total": ("counter", "Attempts made at providers."),
    "mitmgate_rules_total": (
        "counter",
        "Policy rules that acted, by room, rule and action: retries, fall-backs, rests …",
    ),
    "mitmgate_breaker_state": ("gauge", "Of each target with a breaker: 0 closed, 1 half-open, 2 open."),
    "mitmgate_provider_key_state": ("gauge", "Of each key of a target's pool: 0 ready, 1 cooling, 2 resting."),
    "mitmgate_cache_total": ("counter", "LLM calls that a cache rule or header applied to, by status."),
    "mitmgate_cache_entries": ("gauge", "Answers in the cache."),
    "mitmgate_cache_bytes": ("gauge", "Their bytes on disk."),
    "mitmgate_cache_dropped_total": ("counter", "Answers that could not be kept."),
    "mitmgate_passed_total": ("counter", "Calls on provider hosts that generate nothing: forwarded, no row."),
    "mitmgate_websockets_total": ("counter", "WebSocket upgrades on provider hosts."),
    "mitmgate_observed_total": ("counter", "Calls on observed hosts, by kind."),
    "mitmgate_tunnels_total": ("counter", "Connections to other hosts, tunnelled unseen."),
    "mitmgate_tls_failures_total": ("counter", "Clients that broke off the TLS handshake on an intercepted host."),
    "mitmgate_refused_tunnels_total": ("counter", "Connections refused: own ports, link-local and metadata addresses."),
    "mitmgate_rows_written_total": ("counter", "Rows written to the trace database."),
    "mitmgate_rows_dropped_total": ("counter", "Rows that could not be kept."),
    "mitmgate_payloads_dropped_total": ("counter", "Bodies that could not be kept."),
    "mitmgate_ledger_outage": (
        "gauge",
        "1 while limits and budgets are counted in memory alone: the file cannot be used.",
    ),
    "mitmgate_ledger_counters": ("gauge", "Counters of limits and budgets that say anything."),
    "mitmgate_ledger_taken_back_total": ("counter", "Reservations of processes that died, given back."),
    "mitmgate_alerts_sent_total": ("counter", "Alerts delivered, by state: breach, clear."),
    "mitmgate_alerts_dropped_total": ("counter", "Alerts that reached nobody, by state."),
    "mitmgate_policy_reloads_total": ("counter", "Edits of the policy file, taken or refused because they are wrong."),
    "mitmgate_live_exchanges": ("gauge", "Exchanges under way."),
}
"""Name -> (type, what it says). The README's table is checked against this one."""

type Labels = tuple[tuple[str, str], ...]


class Metrics:
    name = "mitmgate.metrics"

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Labels]] = Counter()
        self.gauges: dict[str, Callable[[], int]] = {}
        """Read when asked for: ``mitmgate_live_exchanges`` and the writer's own counts."""
        self.series: dict[str, Callable[[], Mapping[tuple[str, Labels], int]]] = {}
        """The same for those with labels."""

    def count(self, metric: str, by: int = 1, **labels: str) -> None:
        self.counts[metric, tuple(labels.items())] += by

    def settle(self, x: Exchange) -> None:
        """Count a finished LLM call; a replay is none."""
        if x.door == "replay":
            return
        provider = x.provider.slug if x.provider else "unknown"
        status = str(x.status) if x.status else "none"
        self.count("mitmgate_requests_total", provider=provider, status=status, source=x.source)
        self.count("mitmgate_terminals_total", provider=provider, terminal=x.terminal or "failed")
        self.count("mitmgate_attempts_total", len(x.attempts), provider=provider)
        if x.cache_status:
            self.count("mitmgate_cache_total", status=x.cache_status)
        for event in x.events:
            if not event.shadow:
                self.count("mitmgate_rules_total", room=event.room, rule=event.rule, action=event.action)
        if x.source == "cache":
            return
        usage = x.reading.usage
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens:
                self.count("mitmgate_tokens_total", tokens, provider=provider, kind=kind)

    def text(self) -> bytes:
        """Return the Prometheus exposition (text format 0.0.4)."""
        lines: list[str] = []
        for metric, (kind, says) in HELP.items():
            lines += [f"# HELP {metric} {says}", f"# TYPE {metric} {kind}"]
            if metric in self.gauges:
                lines.append(f"{metric} {self.gauges[metric]()}")
            lines += _series(metric, self.series[metric]() if metric in self.series else self.counts)
        return ("\n".join(lines) + "\n").encode()


def _series(metric: str, counts: Mapping[tuple[str, Labels], int]) -> Iterable[str]:
    for (name, labels), value in sorted(counts.items()):
        if name == metric:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            yield f"{metric}{{{shown}}} {value}" if shown else f"{metric} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
