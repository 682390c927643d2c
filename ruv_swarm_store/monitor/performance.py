"""`PerformanceMonitor`: switches the timing of a store on and off, and hands out what was counted."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from ruv_swarm_store import codec
from ruv_swarm_store.clock import duration
from ruv_swarm_store.engines import Engine, Footprint, Meter
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.monitor.figures import CacheFigures, SlowStatement, Snapshot, Timing, timing
from ruv_swarm_store.monitor.report import Report
from ruv_swarm_store.monitor.verbs import Verbs, note
from ruv_swarm_store.timings import Distribution, Timings

if TYPE_CHECKING:
    from ruv_swarm_store.monitor.opentelemetry import Spans

PLANNED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "VALUES")
"""The first words of statements that have a plan."""
SLOW = 0.1
"""Seconds from which on a statement is slow, unless said otherwise."""
KEPT = 20
"""How many slow statements are kept, unless said otherwise."""


class Timeable(Protocol):
    """What has verbs to be timed."""

    def _time(self, verbs: Verbs | None) -> None: ...


class PerformanceMonitor:
    """What the verbs and statements of a store take, counted while it is on. `report()` prints it.

    It sees this process's use of this store. Memory stays the same however much is counted. Off, it costs nothing.
    """

    def __init__(self, engine: Engine, store: Timeable) -> None:
        self._engine = engine
        self._store = weakref.ref(store)  # whoever drops a store open is to be warned at once
        self._meter = Meter(engine.clock)
        self._spans: Spans | None = None
        self._switching = threading.RLock()
        self._slow, self._keep = SLOW, KEPT
        self._plans: dict[str, str] = {}

    @property
    def on(self) -> bool:
        """Whether it counts just now."""
        return self._engine.meter is self._meter

    def start(self, *, slow: float = SLOW, keep: int = KEPT) -> None:
        """Counts from now on, adding to what was counted before.

        Of the statements that take `slow` seconds or longer the last `keep` are kept, with their SQL, never with values. Started again,
        it goes on with these. Units of work that are open are not timed.
        """
        duration(slow, "slow")
        codec.integer(keep, "keep", 0)
        with self._switching:
            self._slow, self._keep = slow, keep
            self._put()

    def stop(self) -> None:
        """Counts no longer; what was counted stays, until `reset`."""
        with self._switching:
            if self.on:
                self._meter.pause()
                self._engine.measure(None)
                self._spans = None
                self._time(None)

    def reset(self) -> None:
        """Forgets everything counted."""
        self._meter.reset()
        self._plans.clear()

    def opentelemetry(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        """Also has every operation be a span, every statement one inside it, and both recorded in histograms, until `stop`.

        The providers are OpenTelemetry's, its global ones unless given; the monitor is started if it is not on. Raises `Unsupported`
        where opentelemetry-api is not installed.
        """
        from ruv_swarm_store.monitor.opentelemetry import Spans

        spans = Spans(self._engine.name, tracer_provider, meter_provider)
        with self._switching:
            self._spans = spans
            self._put()

    @contextmanager
    def track(self, name: str) -> Iterator[None]:
        """Times a block of the caller's own as an operation of that name; not at all while the monitor is off."""
        codec.text(name, "name")
        if not self.on:
            yield
            return
        spans, timings = self._spans, self._meter.operations(name)
        with _timed(timings):
            if spans is None:
                yield
            else:
                with spans.operation(name):
                    yield

    def _put(self) -> None:
        spans, meter = self._spans, self._meter
        meter.set(slow=self._slow, keep=self._keep, told=None if spans is None else spans.statement)
        meter.resume()
        self._engine.measure(meter)
        self._time(Verbs(meter.operations.keep, None if spans is None else spans.operation))

    def _time(self, verbs: Verbs | None) -> None:
        store = self._store()
        if store is not None:
            store._time(verbs)

    # What was counted

    def snapshot(self, *, plans: bool = True) -> Snapshot:
        """What was counted until now, as plain data. With `plans` the database is asked for those of the slow statements."""
        seconds = self._meter.seconds
        footprint: Footprint | None = None
        with suppress(StoreError):
            footprint = self._engine.footprint()
        return Snapshot(
            address=self._engine.name,
            at=self._engine.clock(),
            seconds=seconds,
            operations=_ranked(self._meter.operations.all(), seconds),
            statements=_ranked(self._meter.statements.all(), seconds),
            waits=_ranked(self._meter.waits.all(), seconds),
            slow=[
                SlowStatement(
                    at=slow.at,
                    sql=slow.sql,
                    seconds=slow.seconds,
                    rows=slow.rows,
                    error=slow.error,
                    plan=self._plan(slow.sql) if plans else "",
                )
                for slow in reversed(self._meter.slow.copy())
            ],
            footprint=footprint,
            caches=list(self._caches()),
        )

    def report(self) -> Report:
        """What was counted until now, as a table: text to print, and HTML in a notebook."""
        return Report(self.snapshot())

    def prometheus(self) -> str:
        """What was counted until now in Prometheus's text format. Raises `Unsupported` where prometheus-client is not installed."""
        from ruv_swarm_store.monitor.prometheus import text

        return text(self)

    def collector(self) -> Any:
        """A collector to register: `prometheus_client.REGISTRY.register(store.monitor.collector())`. Raises as `prometheus`."""
        from ruv_swarm_store.monitor.prometheus import collector

        return collector(self)

    def _distributions(self) -> dict[str, list[Distribution]]:
        """What was counted by kind, for exporters that have percentiles of their own."""
        meter = self._meter
        groups = {"operation": meter.operations, "statement": meter.statements, "wait": meter.waits}
        return {kind: [found for timings in group.all() if (found := timings.read()).count] for kind, group in groups.items()}

    def _caches(self) -> Iterator[CacheFigures]:
        for cache in list(getattr(self._engine, "caches", ())):
            stats = cache.stats()
            yield CacheFigures(
                name=cache.name,
                hits=stats.hits,
                misses=stats.misses,
                evictions=stats.evictions,
                invalidations=stats.invalidations,
                size=stats.size,
            )

    def _plan(self, sql: str) -> str:
        if not sql.lstrip().upper().startswith(PLANNED) or " -- " in sql:
            return ""
        if sql not in self._plans:
            try:
                self._plans[sql] = self._engine.explain(sql)
            except StoreError as error:
                return f"(no plan: {error.message})"
        return self._plans[sql]

    def __repr__(self) -> str:
        return f"<PerformanceMonitor of {self._engine.name}, {'on' if self.on else 'off'}>"


@contextmanager
def _timed(timings: Timings) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        timings.fail(time.perf_counter() - started)
        raise
    note(timings, time.perf_counter() - started)


def _ranked(found: list[Timings], seconds: float) -> list[Timing]:
    """Those that occurred, the longest in total first."""
    timed = [timing(distribution, seconds) for timings in found if (distribution := timings.read()).count]
    return sorted(timed, key=lambda timing: -timing.total)
