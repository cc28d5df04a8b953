"""What the hook counts, as Prometheus metrics of one registry. Labels are words of a fixed few, never device text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class HookMetrics:
    """The counters of one process. A fresh registry each, so that tests and roles never share one by accident."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.calls = Counter(
            "ota_hook_calls_total", "ExHook calls answered, by method.", ["method"], registry=self.registry
        )
        self.checks = Counter(
            "ota_hook_checks_total",
            "Answers to checks: offer, no_version, none_newer, or why the hook stayed silent.",
            ["result"],
            registry=self.registry,
        )
        self.reports = Counter(
            "ota_hook_reports_total", "Attribute reports, by what became of them.", ["result"], registry=self.registry
        )
        self.late_reports = Gauge(
            "ota_hook_late_reports", "Reports that wait here until Redis takes them.", registry=self.registry
        )
        self.bad_messages = Counter(
            "ota_hook_bad_messages_total",
            "Device messages, or single values in them, that could not be used, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.settled_offers = Counter(
            "ota_hook_settled_offers_total", "Offers that got an outcome.", ["outcome"], registry=self.registry
        )
        self.unanswered = Counter(
            "ota_hook_unanswered_total",
            "Calls answered with IGNORE because we could not do better in time, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.answer_seconds = Histogram(
            "ota_hook_answer_seconds",
            "Time from a publish reaching the provider to its answer.",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5),
            registry=self.registry,
        )
        self.catalogue_revision = Gauge(
            "ota_hook_catalogue_revision", "The catalogue revision in force in this process.", registry=self.registry
        )
        self.refused_documents = Gauge(
            "ota_hook_refused_documents",
            "Catalogue documents that can't be used now; the last good ones stay in force.",
            ["kind"],
            registry=self.registry,
        )
