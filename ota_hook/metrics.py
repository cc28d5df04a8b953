"""What the hook counts. Plain integers where messages pass, made into Prometheus metrics when somebody asks.

Labels are words of a fixed few, never device text: their number is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

Tally = defaultdict[str, int]
"""Counts by the value of the metric's one label."""

_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)

_COUNTERS: Final = {
    "calls": ("method", "ExHook calls taken, by method."),
    "checks": ("result", "Checks by what came of them: offer, no_version, none_newer, or why the hook stayed silent."),
    "reports": ("result", "Attribute reports by what became of them."),
    "bad_messages": ("reason", "Device messages, or single values in them, that could not be used."),
    "chunks": ("result", "Pieces of firmware that were asked for over MQTT, by what came of it."),
    "children": ("result", "What gateways said of children that come and go, by what became of it."),
    "questions": ("result", "Questions for stored attributes by what came of them."),
    "responses": ("result", "Responses to messages, where a device type has them: received, refused."),
    "settled_offers": ("outcome", "Offers that got an outcome."),
    "unanswered": ("reason", "Publishes answered with IGNORE because we could not do better in time."),
}


class HookMetrics:
    """The counters of one process, and gauges that are asked when they are wanted.

    A fresh registry each, so that tests and roles never share one by accident.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.calls: Tally = defaultdict(int)
        self.checks: Tally = defaultdict(int)
        self.reports: Tally = defaultdict(int)
        self.bad_messages: Tally = defaultdict(int)
        self.children: Tally = defaultdict(int)
        self.chunks: Tally = defaultdict(int)
        self.questions: Tally = defaultdict(int)
        self.responses: Tally = defaultdict(int)
        self.settled_offers: Tally = defaultdict(int)
        self.unanswered: Tally = defaultdict(int)
        self._answers = [0] * (len(_BUCKETS_S) + 1)
        self._answers_sum_s = 0.0
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.registry = registry if registry is not None else CollectorRegistry()
        self.registry.register(self)

    def observe_answer(self, seconds: float) -> None:
        """From a publish asking Redis to its answer; what needs no Redis is answered at once."""
        self._answers[bisect_left(_BUCKETS_S, seconds)] += 1
        self._answers_sum_s += seconds

    def add_gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A value that is read when the metrics are; `ota_hook_` comes before `name`."""
        self._gauges[name] = (documentation, read)

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client."""
        for name, (label, documentation) in _COUNTERS.items():
            counter = CounterMetricFamily(f"ota_hook_{name}", documentation, labels=[label])
            tally: Tally = getattr(self, name)
            for value, count in sorted(dict(tally).items()):
                counter.add_metric([value], count)
            yield counter
        yield self._histogram()
        for name, (documentation, read) in dict(self._gauges).items():
            yield GaugeMetricFamily(f"ota_hook_{name}", documentation, value=read())

    def _histogram(self) -> Metric:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), self._answers, strict=True):
            total += count
            buckets.append((bound, total))
        histogram = HistogramMetricFamily("ota_hook_answer_seconds", "Time from a publish asking Redis to its answer.")
        histogram.add_metric([], buckets, self._answers_sum_s)
        return histogram
