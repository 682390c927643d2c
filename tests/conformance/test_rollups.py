"""Rollups: whatever was recorded when, rolled up how often and pruned, an aggregate is what a plain recount of the samples gives."""

import math
import random
import sys
import threading
from typing import Any, NamedTuple

import crew
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec import structs
from sqlalchemy import func, select

from ruv_swarm_store import Conflict, InvalidValue, Metric, NotFound, Sample, Store, schema
from ruv_swarm_store.errors import CorruptRow
from ruv_swarm_store.metrics import DAY, HOUR, MINUTE, Aggregate

T0 = 1_800_000_000_000 // DAY * DAY
ACCURACY = 0.01 * (1 + 1e-9)


@pytest.fixture
def start(clock) -> int:
    """A midnight not long ago."""
    clock.now = T0 + 3 * DAY
    return T0


def figures(parts: list[Aggregate]) -> list[tuple[Any, ...]]:
    return [(part.bucket, part.unit, part.group, part.count, part.sum, part.min, part.max) for part in parts]


def recount(metrics: list[Metric], start: int, unit: str) -> Aggregate:
    """What samples add up to, in plain Python."""
    values = sorted(metric.value for metric in metrics)
    ranks = [values[math.ceil(len(values) * p / 100) - 1] for p in (50, 95, 99)]
    return Aggregate(start, unit, len(values), math.fsum(values), values[0], values[-1], *ranks)


def agree(found: Aggregate, expected: Aggregate) -> None:
    assert (found.bucket, found.unit, found.count, found.min, found.max) == (
        expected.bucket, expected.unit, expected.count, expected.min, expected.max,
    )  # fmt: skip
    # Floats were added in another order.
    assert math.isclose(found.sum, expected.sum, rel_tol=1e-12, abs_tol=1e-9)
    for one, other in ((found.p50, expected.p50), (found.p95, expected.p95), (found.p99, expected.p99)):
        # A sketch takes what is smaller than every normal number for zero.
        assert one == other if found.exact else abs(one - other) <= max(ACCURACY * abs(other), sys.float_info.min)


class Query(NamedTuple):
    since: int
    until: int
    bucket: int
    resolution: int | None
    filters: dict[str, Any]
    group: dict[str, Any]


EDGES = [T0 + offset for offset in (0, MINUTE, HOUR - MINUTE, HOUR, 5 * HOUR, DAY - HOUR, DAY - MINUTE, DAY, DAY + HOUR, 2 * DAY)]
moments = st.builds(
    lambda edge, offset: edge + offset, st.sampled_from(EDGES), st.sampled_from([-1, 0, 1, 17_000, -42_000]) | st.integers(-HOUR, HOUR)
)
TAGS: list[dict[str, Any]] = [
    {},
    {"host": "a"},
    {"host": "b", "hot": True},
    {"hot": 1, "host": "a"},
    {"host": [1]},
    {"hot": False, "n": 1.5},
]
queries = st.builds(
    Query,
    moments,
    moments,
    st.sampled_from([0, 30_000, MINUTE, 7 * MINUTE, HOUR, 6 * HOUR, DAY]),
    st.sampled_from([None, None, None, 0, MINUTE, HOUR, DAY]),
    st.sampled_from([{}, {}, {"agent": "a-1"}, {"type": "counter"}, {"unit": "ms"}, {"tags": {"host": "a"}}, {"tags": {"hot": True}}]),
    st.sampled_from([{}, {}, {"by_agent": True}, {"by_tag": "host"}, {"by_tag": "hot"}]),
)
samples = st.builds(
    Sample,
    name=st.sampled_from(["m", "m", "m", "n"]),
    value=st.integers(-50, 50).map(float) | st.floats(-1e6, 1e6),
    agent=st.sampled_from([None, "a-1", "a-2"]),
    type=st.sampled_from(["gauge", "counter"]),
    unit=st.sampled_from(["", "ms"]),
    tags=st.sampled_from(TAGS),
    at=moments,
)


def wanted(metric: Metric, filters: dict[str, Any]) -> bool:
    tags = filters.get("tags", {})
    return (
        filters.get("agent") in (None, metric.agent_id)
        and filters.get("type") in (None, metric.metric_type)
        and filters.get("unit") in (None, metric.unit)
        and all(metric.tags.get(tag) == value and type(metric.tags[tag]) is type(value) for tag, value in tags.items())
    )


def group_of(metric: Metric, group: dict[str, Any]) -> tuple[str, Any]:
    found = metric.agent_id if group.get("by_agent") else metric.tags.get(group.get("by_tag"))
    found = None if isinstance(found, list) else found
    return type(found).__name__, found


class MetricsMachine(RuleBasedStateMachine):
    def __init__(self, database) -> None:
        super().__init__()
        self.database = database

    @initialize()
    def open(self) -> None:
        self.now = T0 + 2 * DAY + 2 * HOUR
        self.store: Store = self.database.open(clock=lambda: self.now)
        for id in ("a-1", "a-2"):
            self.store.agents.register("a", id=id)
        self.recorded: list[Metric] = []
        self.kept: dict[int, Metric] = {}
        self.rolled_up = 0

    @rule(batch=st.lists(samples, min_size=1, max_size=12))
    def record(self, batch: list[Sample]) -> None:
        stored = self.store.metrics.record_many(batch)
        self.recorded += stored
        self.kept |= {metric.id: metric for metric in stored}

    @rule(batch=st.integers(1, 20))
    def rollup(self, batch: int) -> None:
        assert self.store.metrics.rollup(batch=batch) == len([metric for metric in self.recorded if metric.id > self.rolled_up])
        self.rolled_up = max((metric.id for metric in self.recorded), default=0)
        assert self.store.metrics.rollup() == 0

    @rule(cutoff=moments, batch=st.integers(1, 10))
    def prune(self, cutoff: int, batch: int) -> None:
        gone = [metric.id for metric in self.kept.values() if metric.timestamp < cutoff and metric.id <= self.rolled_up]
        assert self.store.metrics.prune((self.now - cutoff) / 1000, batch=batch) == len(gone)
        for id in gone:
            del self.kept[id]
        assert self.store.metrics.find_all() == list(self.kept.values())

    @rule(cutoff=moments, resolution=st.sampled_from([MINUTE, MINUTE, HOUR]), batch=st.integers(1, 10))
    def prune_rollups(self, cutoff: int, resolution: int, batch: int) -> None:
        c = schema.metric_rollups.c
        old = (c.resolution == resolution, c.bucket + c.resolution <= cutoff)
        [[count]] = self.store.execute(select(func.count()).where(*old))
        assert self.store.metrics.prune((self.now - cutoff) / 1000, resolution=resolution, batch=batch) == count
        assert self.store.execute(select(c.bucket).where(*old)) == []

    @rule(query=queries)
    def ask(self, query: Query) -> None:
        since, until = sorted(query[:2])
        bucket = query.bucket if query.bucket == 0 or (until - since) // query.bucket < 300 else DAY
        resolution = None if query.resolution and bucket and bucket % query.resolution else query.resolution
        options = {"since": since, "until": until, "bucket": bucket or None, "resolution": resolution, "fill": bucket > 0}
        found = self.store.metrics.aggregate("m", **options, **query.filters, **query.group)
        expected: dict[tuple[Any, ...], list[Metric]] = {}
        for metric in self.recorded:
            if metric.metric_name == "m" and since <= metric.timestamp < until and wanted(metric, query.filters):
                span = metric.timestamp // bucket * bucket if bucket else since
                expected.setdefault((span, metric.unit, group_of(metric, query.group)), []).append(metric)
        for part in found:
            mine = expected.pop((part.bucket, part.unit, (type(part.group).__name__, part.group)), [])
            assert len(mine) >= part.count
            if not part.complete:
                continue
            if mine:
                agree(part, recount(mine, part.bucket, part.unit))
            else:
                assert (part.count, part.sum, math.isnan(part.max)) == (0, 0, True)
        if not self.store.metrics.watermarks() or all(mark.pruned_before is None for mark in self.store.metrics.watermarks()):
            assert expected == {}
            assert all(part.complete for part in found)
        elif bucket:  # only of units and groups that have nothing left is there nothing said
            assert not {key[1:] for key in expected} & {(part.unit, (type(part.group).__name__, part.group)) for part in found}

    def teardown(self) -> None:
        [[late]] = self.store.execute(select(func.count()).where(schema.metric_rollups.c.resolution == DAY))
        assert late <= len(self.recorded)
        self.store.metrics.rollup()
        whole = self.store.metrics.aggregate("m", since=T0 - DAY, until=T0 + 3 * DAY)
        units = sorted({metric.unit for metric in self.recorded if metric.metric_name == "m"})
        assert [part.unit for part in whole] == units
        for part in whole:
            agree(part, recount([m for m in self.recorded if m.metric_name == "m" and m.unit == part.unit], T0 - DAY, part.unit))
            assert part.resolution == DAY
            assert part.complete
        self.store.close()


@pytest.mark.long
def test_aggregates_agree_with_a_recount_however_rolled_up_and_pruned(new_database):
    scale = settings().max_examples / 60  # more of them in the deep profile
    run_state_machine_as_test(
        lambda: MetricsMachine(new_database()), settings=settings(max_examples=round(30 * scale), stateful_step_count=30)
    )


def test_an_aggregate_says_where_it_comes_from(store: Store, start):
    store.metrics.record_many(Sample("m", n, at=start + n * 1_000) for n in range(7_200))
    [before] = store.metrics.aggregate("m")
    assert (before.resolution, before.exact, before.complete) == (0, True, True)
    assert store.metrics.rollup() == 7_200
    for options, resolution in [
        ({}, DAY),
        ({"since": start, "until": start + 2 * HOUR}, HOUR),
        ({"since": start + MINUTE, "until": start + HOUR}, MINUTE),
        ({"since": start + 1, "until": start + 2 * HOUR}, HOUR),
        ({"since": start + 1, "until": start + MINUTE}, 0),
        ({"bucket": HOUR}, HOUR),
        ({"bucket": 90 * MINUTE}, MINUTE),
        ({"bucket": 1_000, "until": start + 5_000}, 0),
        ({"resolution": MINUTE}, MINUTE),
        ({"resolution": 0}, 0),
    ]:
        parts = store.metrics.aggregate("m", **options)
        assert {part.resolution for part in parts} == {resolution}
        assert {part.exact for part in parts} == {resolution == 0}
        assert figures(parts) == figures(store.metrics.aggregate("m", **{**options, "resolution": 0}))
    [after] = store.metrics.aggregate("m")
    agree(after, before)


def test_percentiles_are_exact_where_only_samples_answer(store: Store, start):
    store.metrics.record("m", 1.0, at=start)
    store.metrics.rollup()
    store.metrics.record_many(Sample("m", value, at=start + HOUR) for value in (3.0, 7.0, 11.0))
    old, new = store.metrics.aggregate("m", bucket=HOUR)
    assert (old.exact, old.resolution) == (False, HOUR)
    assert (new.exact, new.resolution, new.p50, new.p99) == (True, 0, 7.0, 11.0)


def test_late_and_back_dated_samples_count(store: Store, start):
    store.metrics.record("m", 1, at=start + DAY)
    store.metrics.rollup()
    store.metrics.record_many([Sample("m", 2, at=start), Sample("m", 4, at=start + DAY)])
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [2, 5]
    assert store.metrics.rollup() == 2
    assert store.metrics.rollup() == 0
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [2, 5]
    assert [part.resolution for part in store.metrics.aggregate("m", bucket=DAY)] == [DAY, DAY]


def test_a_sample_recorded_after_everything_was_pruned_counts(store: Store, start):
    """Its number is a new one, though the table was empty."""
    store.metrics.record_many([Sample("m", 1, at=start)] * 3)
    store.metrics.rollup()
    assert store.metrics.prune(0) == 3
    late = store.metrics.record("m", 8, at=start)
    assert late.id > 3
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [11]
    assert store.metrics.rollup() == 1
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [11]


def test_retention_is_exact_to_the_millisecond(store: Store, start, clock):
    clock.now = start + HOUR
    store.metrics.record_many(Sample("m", 1, at=start + offset) for offset in (0, 999, 1_000, 1_001, MINUTE - 1, MINUTE, HOUR - 1))
    assert store.metrics.prune(0) == 0  # nothing is rolled up
    store.metrics.rollup()
    assert store.metrics.prune(3_599) == 2
    assert [metric.timestamp - start for metric in store.metrics.find_all()] == [1_000, 1_001, MINUTE - 1, MINUTE, HOUR - 1]
    # The bucket of a minute is old when its last millisecond is.
    assert store.metrics.prune(3_540.001, resolution=MINUTE) == 0
    assert store.metrics.prune(3_540, resolution=MINUTE) == 1
    assert store.metrics.prune(0, resolution=HOUR) == 1
    clock.advance(ms=-1)
    assert store.metrics.prune(0, resolution=DAY) == 0


def test_samples_that_are_not_rolled_up_stay_unless_they_are_meant(store: Store, start):
    store.metrics.record("m", 1, at=start)
    store.metrics.rollup()
    store.metrics.record("m", 2, at=start)
    assert store.metrics.prune(0) == 1
    assert [metric.value for metric in store.metrics.find_all()] == [2]
    assert store.metrics.prune(0, only_rolled_up=False) == 1
    assert store.metrics.count() == 0
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [1]


def test_what_retention_has_removed_is_missed_and_said_to_be(store: Store, start, clock):
    store.metrics.record_many(Sample("m", 1, at=start + n * 30_000) for n in range(2 * 60 * 3))
    store.metrics.rollup()
    clock.now = start + 3 * HOUR
    store.metrics.prune(3_600)  # samples of the last hour are left
    [part] = store.metrics.aggregate("m", since=start, until=start + 3 * HOUR)
    assert (part.count, part.complete) == (360, True)
    [part] = store.metrics.aggregate("m", since=start + 30_000, until=start + 3 * HOUR)
    assert (part.count, part.complete) == (358, False)  # of the first minute nobody knows which half a sample was in
    [part] = store.metrics.aggregate("m", since=start + 2 * HOUR + 30_000, until=start + 3 * HOUR)
    assert (part.count, part.complete) == (119, True)
    spans = store.metrics.aggregate("m", bucket=30_000, since=start + 119 * MINUTE, until=start + 121 * MINUTE, fill=True)
    assert [(span.count, span.complete) for span in spans] == [(0, False), (0, False), (1, True), (1, True)]
    store.metrics.prune(3_600, resolution=MINUTE)
    hours = store.metrics.aggregate("m", bucket=HOUR, since=start + MINUTE, until=start + 3 * HOUR)
    assert [(hour.count, hour.complete, hour.resolution) for hour in hours] == [(120, True, HOUR), (120, True, HOUR)]
    hours = store.metrics.aggregate("m", bucket=HOUR, since=start + MINUTE, until=start + 3 * HOUR, fill=True)
    assert [(hour.count, hour.complete) for hour in hours] == [(0, False), (120, True), (120, True)]
    marks = store.metrics.watermarks()
    assert [(mark.resolution, mark.pruned_before) for mark in marks] == [
        (0, start + 2 * HOUR), (MINUTE, start + 2 * HOUR), (HOUR, None), (DAY, None),
    ]  # fmt: skip
    assert {mark.metric_id for mark in marks if mark.resolution} == {360}


def test_nothing_pruned_is_nothing_missed(store: Store, start):
    store.metrics.record("m", 1, at=start + HOUR + 1)
    store.metrics.rollup()
    assert store.metrics.prune(3 * 86_400 - 3_600) == 0
    [part] = store.metrics.aggregate("m", since=start + 7, until=start + HOUR + 2)
    assert (part.count, part.complete) == (1, True)


def test_gaps_are_filled_for_each_unit_and_group(store: Store, start):
    store.metrics.record_many([Sample("m", 1, unit="s", at=start), Sample("m", 2, unit="ms", at=start + 3 * HOUR)])
    assert [(part.bucket, part.unit) for part in store.metrics.aggregate("m", bucket=HOUR)] == [(start, "s"), (start + 3 * HOUR, "ms")]
    for _ in range(2):
        parts = store.metrics.aggregate("m", bucket=HOUR, fill=True)
        assert [(part.bucket, part.unit, part.count) for part in parts] == [
            (start + hour * HOUR, unit, int((hour, unit) in [(0, "s"), (3, "ms")])) for hour in range(4) for unit in ("ms", "s")
        ]
        empty = parts[0]
        assert (empty.sum, empty.exact, empty.complete) == (0, True, True)
        assert all(math.isnan(figure) for figure in (empty.min, empty.max, empty.avg, empty.p50, empty.p95, empty.p99))
        store.metrics.rollup()
    span = {"since": start - HOUR, "until": start + HOUR + 1, "bucket": HOUR, "fill": True}
    assert [part.count for part in store.metrics.aggregate("m", unit="s", **span)] == [0, 1, 0]
    assert [(part.unit, part.count) for part in store.metrics.aggregate("m", unit="h", **span)] == [("h", 0)] * 3
    assert store.metrics.aggregate("nothing", **span) == []
    with pytest.raises(InvalidValue, match="bucket"):
        store.metrics.aggregate("m", fill=True)
    with pytest.raises(InvalidValue, match="spans"):
        store.metrics.aggregate("m", since=1, until=start, bucket=1, fill=True)


def test_groups_are_told_apart(store: Store, start):
    agent = store.agents.register("a")
    tags = [{"on": True}, {"on": 1}, {"on": 1.0}, {"on": "1"}, {"on": None}, {"on": [1]}, {"on": {}}, {}]
    store.metrics.record_many(Sample("m", 2**n, agent if n % 2 else None, tags=each, at=start) for n, each in enumerate(tags))
    for _ in range(2):
        parts = store.metrics.aggregate("m", by_tag="on")
        assert {(type(part.group), part.group): part.sum for part in parts} == {
            (bool, True): 1, (int, 1): 2, (float, 1.0): 4, (str, "1"): 8, (type(None), None): 240,
        }  # fmt: skip
        assert {part.group: part.sum for part in store.metrics.aggregate("m", by_agent=True)} == {None: 85, agent.id: 170}
        assert {part.group: part.count for part in store.metrics.aggregate("m", by_tag="absent")} == {None: 8}
        store.metrics.rollup()
    with pytest.raises(InvalidValue):
        store.metrics.aggregate("m", by_agent=True, by_tag="on")


def test_a_sample_in_a_rollup_is_not_changed_any_more(store: Store, start):
    one = store.metrics.record("m", 1, at=start)
    two = store.metrics.update(structs.replace(one, value=2.0))
    store.metrics.rollup()
    for change in (store.metrics.update, store.metrics.replace, store.metrics.upsert):
        with pytest.raises(Conflict, match="rolled up"):
            change(structs.replace(two, value=3.0))
    assert store.metrics.get(one.id) == two
    new = store.metrics.record("m", 4, at=start)
    assert store.metrics.replace(structs.replace(new, value=5.0)).value == 5
    with pytest.raises(NotFound):
        store.metrics.replace(structs.replace(new, id=new.id + 100))
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [7]
    store.metrics.rollup()
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [7]


def test_rollups_know_an_agent_that_was_deleted(store: Store, start):
    agent = store.agents.register("a")
    store.metrics.record("m", 1, agent=agent, at=start)
    store.metrics.rollup()
    store.agents.delete(agent)
    assert [part.sum for part in store.metrics.aggregate("m", agent=agent)] == [1]
    assert [part.sum for part in store.metrics.aggregate("m")] == [1]


def test_a_rollup_in_a_unit_of_work_is_undone_with_it(store: Store, start):
    store.metrics.record("m", 1, at=start)
    with pytest.raises(RuntimeError), store.transaction() as work:
        work.metrics.record("m", 2, at=start)
        assert work.metrics.rollup() == 2
        assert [part.resolution for part in work.metrics.aggregate("m")] == [DAY]
        raise RuntimeError
    assert store.metrics.watermarks() == []
    assert store.metrics.rollup() == 1
    assert [part.sum for part in store.metrics.aggregate("m")] == [1]


@pytest.mark.parametrize("value", [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 0.0, -1e-300], ids=repr)
def test_extreme_values_are_rolled_up(store: Store, start, value):
    store.metrics.record_many([Sample("m", value, at=start + n) for n in range(3)])
    store.metrics.rollup()
    store.metrics.record_many([Sample("m", -value, at=start + n) for n in range(2)])
    store.metrics.rollup()
    [part] = store.metrics.aggregate("m")
    assert (part.count, part.min, part.max) == (5, min(value, -value), max(value, -value))
    assert math.isfinite(part.sum)


@pytest.mark.parametrize("length", [3_000, 100_000])
def test_series_with_long_tags_are_rolled_up(store: Store, start, length):
    text = "".join(random.Random(length).choices("abcdefghijklmnopqrstuvwxyzäöü🐝\"'\\", k=length))
    for n in range(2):
        store.metrics.record("m", 1 + n, tags={"trace": text, "n": n}, unit=text, type=text, at=start)
    store.metrics.rollup()
    assert [part.sum for part in store.metrics.aggregate("m", bucket=DAY)] == [3]
    [part] = store.metrics.aggregate("m", bucket=DAY, tags={"trace": text, "n": 1}, unit=text, type=text)
    assert (part.sum, part.resolution) == (2, DAY)


def test_the_order_of_tags_does_not_matter(store: Store, start):
    store.metrics.record("m", 1, tags={"a": 1, "b": {"x": 1, "y": 2}}, at=start)
    store.metrics.record("m", 2, tags={"b": {"y": 2, "x": 1}, "a": 1}, at=start)
    store.metrics.rollup()
    assert store.execute(select(func.count()).where(schema.metric_rollups.c.resolution == MINUTE))[0][0] == 1


def test_a_damaged_rollup_is_named(database, store: Store, start):
    store.metrics.record("m", 1, at=start)
    store.metrics.rollup()
    database.damage(store, schema.metric_rollups, "metric_name", "m", "sketch", "no json")
    with pytest.raises(CorruptRow, match="sketch"):
        store.metrics.aggregate("m")
    assert [part.sum for part in store.metrics.aggregate("m", resolution=0)] == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 5},
        {"resolution": HOUR, "bucket": MINUTE},
        {"resolution": "hour"},
        {"unit": 5},
        {"type": 5},
        {"by_tag": 5},
        {"agent": 5},
    ],
    ids=repr,
)
def test_aggregate_refuses_what_cannot_be_answered(store: Store, options):
    with pytest.raises(InvalidValue):
        store.metrics.aggregate("m", **options)


@pytest.mark.parametrize("options", [{"older_than": -1}, {"older_than": 1, "resolution": 5}, {"older_than": 1, "batch": 0}], ids=repr)
def test_prune_refuses_what_makes_no_sense(store: Store, options):
    with pytest.raises(InvalidValue):
        store.metrics.prune(**options)
    with pytest.raises(InvalidValue):
        store.metrics.rollup(batch=0)


def test_samples_of_a_range_come_in_order_of_time(store: Store, start):
    agent = store.agents.register("a")
    for n, at in enumerate((5, 3, 3, 9, 4)):
        store.metrics.record("m", n, agent=agent if n % 2 else None, unit="ms", tags={"n": n}, at=start + at)
    store.metrics.record("other", 1, at=start + 4)
    assert [metric.value for metric in store.metrics.samples("m")] == [1, 2, 4, 0, 3]
    assert [metric.value for metric in store.metrics.samples("m", since=start + 4, until=start + 9)] == [4, 0]
    assert [metric.value for metric in store.metrics.samples("m", agent=agent, unit="ms", type="gauge", tags={"n": 3})] == [3]
    assert store.metrics.samples("m", unit="s").count() == 0


# Several at once


def recorder(number: int, barrier: Any, store: Store, rounds: int) -> int:
    barrier.wait()
    for round_ in range(rounds):
        store.metrics.record_many([Sample("m", 1, at=T0 + (number * rounds + round_) * 60_007 + n) for n in range(1 + round_ % 3)])
    return sum(1 + round_ % 3 for round_ in range(rounds))


def roller(number: int, barrier: Any, store: Store, rounds: int) -> int:
    barrier.wait()
    return sum(store.metrics.rollup(batch=7) for _ in range(rounds))


def record_or_roll_up(number: int, barrier: Any, store: Store) -> int:
    return -roller(number, barrier, store, 6) if number % 2 else recorder(number, barrier, store, 25)


@pytest.mark.needs("threads")
def test_each_sample_counts_once_whoever_rolls_up(store: Store):
    answers = crew.in_threads(6, record_or_roll_up, store)
    recorded = sum(answer for answer in answers if answer > 0)
    [during] = store.metrics.aggregate("m")
    assert during.count == recorded
    assert store.metrics.rollup() == recorded + sum(answer for answer in answers if answer < 0)
    for resolution in (MINUTE, HOUR, DAY):
        [part] = store.metrics.aggregate("m", resolution=resolution)
        assert (part.count, part.resolution) == (recorded, resolution)
    store.metrics.prune(-0.0)
    [part] = store.metrics.aggregate("m")
    assert part.count == recorded


@pytest.mark.needs("threads")
def test_an_aggregate_during_a_rollup_neither_misses_nor_doubles(store: Store, start):
    store.metrics.record_many(Sample("m", 1, at=start + n * 7_000) for n in range(600))
    done = threading.Event()

    def roll_up() -> None:
        store.metrics.rollup(batch=25)
        store.metrics.prune(0, batch=50)
        done.set()

    thread = threading.Thread(target=roll_up)
    thread.start()
    asked = 0
    while asked < 5 or not done.is_set():
        [part] = store.metrics.aggregate("m")
        assert (part.count, part.complete) == (600, True)
        asked += 1
    thread.join()


@pytest.mark.needs("processes")
def test_samples_on_their_way_are_not_passed_over(database, start):
    """Numbers are given before a commit: a rollup waits for whoever holds one."""
    recording = threading.get_ident()
    hooked = threading.local()
    rollers: list[threading.Thread] = []
    other = database.open()

    def between(sql: str, seconds: float) -> None:
        if threading.get_ident() == recording and getattr(hooked, "on", False):
            other_recorder = threading.Thread(target=lambda: other.metrics.record("n", 1, at=start))
            roll_up = threading.Thread(target=other.metrics.rollup)
            for thread in (other_recorder, roll_up):
                thread.start()
                thread.join(0.05)  # it either passes or has to wait for this transaction
            rollers.extend((other_recorder, roll_up))

    store = database.open(trace=between)
    hooked.on = True
    store.metrics.record_many([Sample("m", 1, at=start)] * 3)
    hooked.on = False
    for thread in rollers:
        thread.join()
    assert len(rollers) >= 2
    other.metrics.rollup()
    [part] = other.metrics.aggregate("m")
    assert (part.count, part.resolution) == (3, DAY)
