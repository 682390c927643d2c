"""What a monitor has to tell, as plain data."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ruv_swarm_store.engines import Footprint
from ruv_swarm_store.timings import Distribution


class Timing(Struct, frozen=True, kw_only=True):
    """How often something was done, and how long it took. Spans are seconds; percentiles are within 1.6 %."""

    name: str
    """An operation such as `tasks.claim`, a statement's SQL, or what was waited for."""
    count: int
    errors: int
    """How many of them failed."""
    per_second: float
    """How many there were in each second that the monitor was on."""
    p50: float
    p95: float
    p99: float
    max: float
    total: float
    rows: int = 0
    """How many rows a statement gave or changed, in all."""


class SlowStatement(Struct, frozen=True, kw_only=True):
    """A statement that took long."""

    at: int
    """When it ended, in milliseconds since the epoch."""
    sql: str
    seconds: float
    rows: int
    error: str = ""
    """The class of what it raised, if it failed."""
    plan: str = ""
    """How the database goes about it now, whatever the parameters; empty where it does not say, or was not asked."""


class CacheFigures(Struct, frozen=True, kw_only=True):
    """What a cache has done."""

    name: str
    hits: int
    misses: int
    evictions: int
    invalidations: int
    size: int

    @property
    def ratio(self) -> float:
        """The share of reads that it answered."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a monitor has counted until one moment; `msgspec.json.encode` takes it as it is."""

    address: str
    at: int
    """When it was taken, in milliseconds since the epoch."""
    seconds: float
    """How long the monitor was on."""
    operations: Sequence[Timing]
    """Verbs, whole units of work (`transaction`), and what was given to `track`, the longest in total first."""
    statements: Sequence[Timing]
    """Statements by their SQL, the longest in total first. All beyond a bounded number of texts are counted together."""
    waits: Sequence[Timing]
    """What had to be waited for: others' locks, connections."""
    slow: Sequence[SlowStatement]
    """The last statements over the threshold, the newest first."""
    footprint: Footprint | None
    """What the database takes up; None once the store is closed."""
    caches: Sequence[CacheFigures]


def timing(of: Distribution, seconds: float) -> Timing:
    """What was counted in so many seconds."""
    p50, p95, p99 = of.percentiles((50, 95, 99))
    return Timing(
        name=of.name,
        count=of.count,
        errors=of.errors,
        per_second=of.count / seconds if seconds else 0.0,
        p50=p50,
        p95=p95,
        p99=p99,
        max=of.longest,
        total=of.seconds,
        rows=of.rows,
    )
