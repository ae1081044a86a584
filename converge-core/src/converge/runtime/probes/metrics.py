"""The figures of a node for Prometheus, made when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from converge.env import this_process
from converge.model.envelope import ACCEPTED, FULL, HANDLED, REFUSED
from converge.net.throttle import snake
from converge.runtime.probes.answer import Health
from converge.runtime.probes.tally import BOUNDS_SEC, Histogram, PoolTally, Tally

_SENT = {ACCEPTED: 0, HANDLED: 0, "delivery_timeout": 0, "undeliverable": 0}
_RECEIVED = {ACCEPTED: 0, FULL: 0, REFUSED: 0}
"""Outcomes that are shown from the start, so that a rate of them is one."""

_BOUNDS = [*(f"{bound:g}" for bound in BOUNDS_SEC), "+Inf"]


class Gauges:
    """What is read of a node at the moment at which somebody asks: any thread may."""

    def __init__(self) -> None:
        self.running: Callable[[], int] = int
        self.agents: Callable[[], Mapping[str, int]] = dict
        self.pools: Callable[[], Iterable[str]] = tuple
        self.lease_sec: Callable[[], float] = float
        self.oldest_ready_sec: Mapping[str, float] = {}
        self.sent: Callable[[], Mapping[str, int]] = dict
        self.received: Callable[[], Mapping[str, int]] = dict
        self.refusals: Callable[[], Mapping[str, int]] = dict
        self.connections: Callable[[], int] = int


class NodeCollector(Collector):
    """Makes the metrics of a node. Their names, and what they mean, stand in `docs/reference/metrics.md`."""

    def __init__(self, tally: Tally, gauges: Gauges, health: Callable[[], Health]) -> None:
        self._tally, self._gauges, self._health = tally, gauges, health

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""
        yield self._ages()
        yield from self._of_health()
        yield from self._of_tasks()
        yield _labelled(
            GaugeMetricFamily("converge_agents", "Agents of this process.", labels=["state"]), self._gauges.agents()
        )
        yield from self._of_messages()
        yield InfoMetricFamily(
            "converge_build", "The release that runs.", {"release": this_process().release or "source"}
        )

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect at registration."""
        return ()

    def _ages(self) -> Metric:
        text = "How long the oldest ready task of the pool has waited."
        family = GaugeMetricFamily("converge_oldest_ready_seconds", text, labels=["pool"])
        return _labelled(family, self._gauges.oldest_ready_sec)

    def _of_health(self) -> Iterator[Metric]:
        health = self._health()
        yield GaugeMetricFamily("converge_live", "0: only a restart helps.", value=health.is_live)
        yield GaugeMetricFamily("converge_ready", "1: it claims tasks and takes messages.", value=health.is_ready)
        reasons = GaugeMetricFamily("converge_unready_reason", "1: why it is not ready.", labels=["code"])
        yield _labelled(reasons, {reason.code: 1 for reason in health.reasons})
        text = "How long the lease lasts if it is not renewed."
        yield GaugeMetricFamily("converge_lease_remaining_seconds", text, value=self._gauges.lease_sec())

    def _of_tasks(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("converge_tasks_running", "Attempts under way.", value=self._gauges.running())
        attempts = CounterMetricFamily(
            "converge_task_attempts", "Attempts that ended, by what followed.", labels=["pool", "outcome"]
        )
        latency = HistogramMetricFamily(
            "converge_claim_latency_seconds", "From when a task was due to its first claim.", labels=["pool"]
        )
        duration = HistogramMetricFamily("converge_task_seconds", "How long attempts took.", labels=["pool"])
        # Those of the agents from the start: Prometheus counts no increase to the first value that it sees.
        known = dict.fromkeys(self._gauges.pools(), PoolTally()) | self._tally.pools
        for pool_id, pool in known.items():
            for outcome, count in pool.outcomes.items():
                attempts.add_metric([pool_id, outcome], count)
            _add(latency, pool_id, pool.latencies)
            _add(duration, pool_id, pool.durations)
        yield from (attempts, latency, duration)

    def _of_messages(self) -> Iterator[Metric]:
        gauges = self._gauges
        sent = CounterMetricFamily("converge_messages_sent", "Messages sent, by what came of them.", labels=["outcome"])
        yield _labelled(sent, _SENT | {snake(name): count for name, count in gauges.sent().items()})
        text = "Messages from other processes, by the receipt that they got."
        received = CounterMetricFamily("converge_messages_received", text, labels=["outcome"])
        yield _labelled(received, _RECEIVED | dict(gauges.received()))
        text = "What others sent and this process refused, by reason."
        refusals = CounterMetricFamily("converge_refusals", text, labels=["reason"])
        yield _labelled(refusals, gauges.refusals())
        text = "Connections with other processes."
        yield GaugeMetricFamily("converge_connections", text, value=gauges.connections())


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _add(family: HistogramMetricFamily, pool_id: str, histogram: Histogram) -> None:
    below = list(zip(_BOUNDS, accumulate(histogram.counts), strict=True))
    family.add_metric([pool_id], below, histogram.sum_sec)


def registry_of(collector: Collector) -> CollectorRegistry:
    """Return the registry of one node, with the figures of its process."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
