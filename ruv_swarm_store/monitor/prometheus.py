"""What a monitor has counted, for Prometheus: its own library writes the text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ruv_swarm_store.errors import Unsupported
from ruv_swarm_store.timings import Distribution

if TYPE_CHECKING:
    from ruv_swarm_store.monitor.performance import PerformanceMonitor

POWERS = tuple(range(-16, 5, 2))
"""The bounds of the histograms' buckets are these powers of two, in seconds: 15 µs to 16 s. There the counts are exact."""
WIDTH = 80
"""Characters of a statement in its label; a digest of all of it follows."""


def text(monitor: PerformanceMonitor) -> str:
    """What was counted, in the text format."""
    _load()
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector(monitor))
    return generate_latest(registry).decode()


def collector(monitor: PerformanceMonitor) -> Any:
    """What a registry asks for metrics each time it is scraped."""
    _load()
    from prometheus_client.registry import Collector

    class MonitorCollector(Collector):
        def collect(self) -> Iterator[Any]:
            return _families(monitor)

        def describe(self) -> Iterator[Any]:
            return iter(())  # registering asks the database nothing

    return MonitorCollector()


def _load() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise Unsupported("prometheus-client is not installed", hint="pip install 'ruv-swarm-store[telemetry]'") from error


def _families(monitor: PerformanceMonitor) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    store = monitor._engine.name  # without it, series of several stores in one registry would be the same
    helps = {"operation": "Seconds that verbs took.", "statement": "Seconds that statements took.", "wait": "Seconds of waiting."}
    for kind, found in monitor._distributions().items():
        seconds = HistogramMetricFamily(f"ruv_swarm_store_{kind}_seconds", helps[kind], labels=["store", kind])
        errors = CounterMetricFamily(f"ruv_swarm_store_{kind}_errors", "How many of them failed.", labels=["store", kind])
        for distribution in found:
            label = [store, _label(distribution.name)]
            seconds.add_metric(label, _buckets(distribution), distribution.seconds)
            errors.add_metric(label, distribution.errors)
        yield seconds
        if kind != "wait":
            yield errors
    snapshot = monitor.snapshot(plans=False)
    if (footprint := snapshot.footprint) is not None:
        for name, what, value in (
            ("database_bytes", "Size of the database.", footprint.size),
            ("log_bytes", "Size of the write-ahead log.", footprint.log),
            ("page_hit_ratio", "Share of pages found in memory.", footprint.cache_hits),
            ("connections", "Connections this store has open.", footprint.connections),
        ):
            if value is not None:
                gauge = GaugeMetricFamily(f"ruv_swarm_store_{name}", what, labels=["store"])
                gauge.add_metric([store], value)
                yield gauge
    for name in ("hits", "misses", "evictions", "invalidations"):
        counter = CounterMetricFamily(f"ruv_swarm_store_cache_{name}", f"Caches' {name}.", labels=["store", "cache"])
        totals: dict[str, int] = {}
        for cache in snapshot.caches:
            totals[cache.name] = totals.get(cache.name, 0) + getattr(cache, name)
        for cached, total in totals.items():
            counter.add_metric([store, cached], total)
        if totals:
            yield counter


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    below = zip(POWERS, distribution.below(POWERS), strict=True)
    return [*((repr(2.0**power), float(count)) for power, count in below), ("+Inf", float(distribution.count))]


def _label(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= WIDTH else f"{line[:WIDTH]}… {hashlib.sha256(name.encode()).hexdigest()[:8]}"
