"""Counters as Prometheus text."""

from dataclasses import replace

from mitmgate.exchange import Attempt, Exchange
from mitmgate.metrics import HELP, Metrics
from mitmgate.providers import Hosts

OPENAI = Hosts().providers["openai"]


def call(**more: object) -> Exchange:
    x = Exchange("POST", "https", "api.openai.com", 443, "/v1/chat/completions", [], {}, 0.0, 0.0)
    x.provider, x.status, x.terminal = OPENAI, 200, "complete"
    x.attempts = [Attempt(1, "openai", "openai", "api.openai.com", 0.0)]
    x.reading.usage.input_tokens, x.reading.usage.output_tokens = 9, 3
    return replace(x, **more)  # type: ignore[arg-type]


def lines(metrics: Metrics) -> list[str]:
    return metrics.text().decode().splitlines()


def test_every_metric_has_its_help_and_type_once_even_before_anything_happened() -> None:
    text = lines(Metrics())

    assert [line for line in text if line.startswith("# HELP ")] == [f"# HELP {name} {HELP[name][1]}" for name in HELP]
    assert [line for line in text if line.startswith("# TYPE ")] == [f"# TYPE {name} {HELP[name][0]}" for name in HELP]
    assert all(line.startswith("#") for line in text)


def test_a_call_is_counted_by_provider_status_and_source() -> None:
    metrics = Metrics()

    metrics.settle(call())
    metrics.settle(call())
    metrics.settle(call(status=429, source="rate-limit", terminal="refused", attempts=[]))

    text = lines(metrics)
    assert 'mitmgate_requests_total{provider="openai",status="200",source="provider"} 2' in text
    assert 'mitmgate_requests_total{provider="openai",status="429",source="rate-limit"} 1' in text
    assert 'mitmgate_terminals_total{provider="openai",terminal="refused"} 1' in text
    assert 'mitmgate_attempts_total{provider="openai"} 2' in text
    assert 'mitmgate_tokens_total{provider="openai",kind="input"} 27' in text


def test_a_call_that_nobody_waited_for_has_no_status() -> None:
    metrics = Metrics()

    metrics.settle(call(status=None, terminal="client_abort"))

    assert 'mitmgate_requests_total{provider="openai",status="none",source="provider"} 1' in lines(metrics)


def test_a_replay_is_not_counted() -> None:
    metrics = Metrics()

    metrics.settle(call(door="replay"))

    assert metrics.counts == {}


def test_gauges_are_read_when_asked() -> None:
    metrics = Metrics()
    live = [1, 2]
    metrics.gauges["mitmgate_live_exchanges"] = lambda: len(live)
    before = "mitmgate_live_exchanges 2" in lines(metrics)
    live.clear()

    assert before
    assert "mitmgate_live_exchanges 0" in lines(metrics)


def test_a_count_of_millions_is_written_out() -> None:
    """A counter is written in full, not as 1.23457e+07."""
    metrics = Metrics()
    metrics.gauges["mitmgate_rows_written_total"] = lambda: 12_345_678

    assert "mitmgate_rows_written_total 12345678" in lines(metrics)


def test_label_values_are_escaped() -> None:
    metrics = Metrics()

    metrics.count("mitmgate_observed_total", kind='a"b\\c\nd')

    assert 'mitmgate_observed_total{kind="a\\"b\\\\c\\nd"} 1' in lines(metrics)
