"""Metrics: measured values, and what they add up to."""

from ruv_swarm_store.metrics.aggregation import Aggregate
from ruv_swarm_store.metrics.buffer import Buffer
from ruv_swarm_store.metrics.repository import Metrics
from ruv_swarm_store.metrics.resolutions import DAY, HOUR, MINUTE, WATERMARKS
from ruv_swarm_store.metrics.samples import METRICS, Sample

__all__ = ["DAY", "HOUR", "METRICS", "MINUTE", "WATERMARKS", "Aggregate", "Buffer", "Metrics", "Sample"]
