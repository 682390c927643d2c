"""Recording samples beside the plain driver, and an hour of 360 000 samples added up from rollups beside from the samples."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from floor import AGENT, NOW, Floor, PostgreSQLFloor
from places import Place

from ruv_swarm_store import Agent, Sample, Store
from ruv_swarm_store.metrics import DAY, HOUR, Aggregate

Compare = Callable[..., float]
COLUMNS = "metric_name, value, timestamp, metric_type, unit, agent_id, tags, version"
INSERT = f"INSERT INTO metrics ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
ROW = ("latency", 12.5, NOW, "gauge", "ms", AGENT, '{"host":"a"}', 1)
TAGS = {"host": "a"}
BATCH = 500


def insert_many(floor: Floor, rows: Sequence[tuple[Any, ...]]) -> None:
    """In one transaction, the fastest way there is."""
    if isinstance(floor, PostgreSQLFloor):
        with floor.cursor.copy(f"COPY metrics ({COLUMNS}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    else:
        raw: Any = floor
        floor.within(lambda: raw.raw.executemany(INSERT, rows))


@pytest.mark.durable
def bench_record(store: Store, worker: Agent, floor: Floor, compare: Compare, place: Place) -> None:
    def ours() -> None:
        record = store.metrics.record
        for _ in range(place.round):
            record("latency", 12.5, agent=worker, unit="ms", tags=TAGS)

    compare(ours, lambda: floor.record(place.round), operations=place.round, floor_is="INSERT in autocommit, JSON made before")


def bench_record_10k_at_once(store: Store, worker: Agent, floor: Floor, compare: Compare) -> None:
    samples = [Sample("latency", 12.5, worker, unit="ms", tags=TAGS, at=NOW)] * 10_000
    rows = [ROW] * 10_000
    compare(
        lambda: store.metrics.record_many(samples),
        lambda: insert_many(floor, rows),
        operations=10_000,
        floor_is="executemany in one transaction, or COPY; JSON made before",
    )


@pytest.mark.durable
def bench_record_buffered(store: Store, worker: Agent, floor: Floor, compare: Compare) -> None:
    batch = [ROW] * BATCH

    def ours() -> None:
        with store.metrics.buffer(size=BATCH) as buffer:
            for _ in range(10_000):
                buffer.record("latency", 12.5, agent=worker, unit="ms", tags=TAGS)

    def below() -> None:
        for _ in range(10_000 // BATCH):
            insert_many(floor, batch)

    compare(ours, below, operations=10_000, floor_is=f"the same by {BATCH} in a transaction, gathered before")


@pytest.fixture
def an_hour(store: Store) -> int:
    """A hundred agents that measure every second for an hour; the hour's start."""
    start = NOW // DAY * DAY
    agents = [store.agents.register("bench") for _ in range(100)]
    values = random.Random(1)
    for minute in range(60):
        store.metrics.record_many(
            Sample("latency", float(round(values.lognormvariate(8, 1))), agent, unit="ms", at=start + (minute * 60 + second) * 1_000)
            for second in range(60)
            for agent in agents
        )
    return start


def bench_hour_of_360k_samples_from_rollups(
    store: Store, an_hour: int, compare: Compare, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.perf_counter()
    assert store.metrics.rollup() == 360_000
    rolled_up = 360_000 / (time.perf_counter() - began)
    place.settle()
    found: dict[int | None, Aggregate] = {}
    seconds: list[float] = []

    def aggregate(resolution: int | None) -> None:
        began = time.perf_counter()
        [found[resolution]] = store.metrics.aggregate("latency", since=an_hour, until=an_hour + HOUR, bucket=HOUR, resolution=resolution)
        if resolution is None:
            seconds.append(time.perf_counter() - began)

    compare(lambda: aggregate(None), lambda: aggregate(0), operations=1, floor_is="our own aggregate from the samples")
    quick, exact = found[None], found[0]
    with capsys.disabled():
        print(f"\n{place.id}: rolled up {rolled_up:,.0f} samples/s; the hour in {statistics.median(seconds) * 1_000:.1f} ms (median)")
        print(f"  from rollups {quick}\n  from samples {exact}")
    # Values are whole, so that sums are the same however they are added.
    assert (quick.count, quick.sum, quick.min, quick.max) == (exact.count, exact.sum, exact.min, exact.max)
    assert quick.resolution == HOUR
    assert exact.exact
    for one, other in ((quick.p50, exact.p50), (quick.p95, exact.p95), (quick.p99, exact.p99)):
        assert math.isclose(one, other, rel_tol=0.0101)
