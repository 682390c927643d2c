"""The monitor: what a store's verbs and statements take, counted while it is on; and the ways to see it."""

from ruv_swarm_store.monitor.figures import CacheFigures, SlowStatement, Snapshot, Timing
from ruv_swarm_store.monitor.performance import PerformanceMonitor
from ruv_swarm_store.monitor.report import Report

__all__ = ["CacheFigures", "PerformanceMonitor", "Report", "SlowStatement", "Snapshot", "Timing"]
