"""Metrics: values go in as measured and add up as a plain recount says."""

import math
import random
import sys
from collections import defaultdict
from datetime import UTC, datetime

import pytest

from ruv_swarm_store import InvalidValue, Metric, NotFound, Sample, Store
from ruv_swarm_store.metrics import Aggregate

MINUTE = 60_000


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def recount(metrics: list[Metric], *, since: int = 0, until: int | None = None, bucket: int | None = None) -> list[Aggregate]:
    """The same in plain Python."""
    groups = defaultdict(list)
    for metric in metrics:
        if metric.timestamp >= since and (until is None or metric.timestamp < until):
            start = since if bucket is None else metric.timestamp // bucket * bucket
            groups[start, metric.unit].append(metric.value)

    def rank(values: list[float], p: int) -> float:
        return sorted(values)[math.ceil(len(values) * p / 100) - 1]

    return [
        Aggregate(
            start,
            unit,
            len(values),
            pytest.approx(math.fsum(values)),
            min(values),
            max(values),
            rank(values, 50),
            rank(values, 95),
            rank(values, 99),
        )
        for (start, unit), values in sorted(groups.items())
    ]


def test_record_gives_the_metric_as_it_is_stored(store: Store, agent, clock):
    metric = store.metrics.record("latency", 12.5, agent=agent, type="performance", unit="ms", tags={"host": "a", "n": 1})
    assert metric == Metric("latency", 12.5, clock.now, "performance", "ms", agent.id, {"host": "a", "n": 1}, 1, metric.id)
    assert store.metrics.get(metric.id) == metric
    assert store.metrics.record("load", 1).agent_id is None


def test_a_whole_number_becomes_a_float(store: Store):
    assert type(store.metrics.get(store.metrics.record("m", 7).id).value) is float


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, -1e-300, 2**53 + 2, 1e3])
def test_a_value_comes_back_to_the_last_bit(store: Store, value):
    recorded = store.metrics.record("m", value)
    assert recorded.value == float(value)
    assert repr(store.metrics.get(recorded.id).value) == repr(recorded.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1", True, 10**400, 1j], ids=repr)
def test_what_would_poison_an_aggregate_is_refused(store: Store, value):
    with pytest.raises(InvalidValue):
        store.metrics.record("m", value)
    with pytest.raises(InvalidValue):
        store.metrics.record_many([Sample("m", 1), Sample("m", value)])
    with pytest.raises(InvalidValue):
        store.metrics.insert(Metric("m", value, 0))
    assert store.metrics.count() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"name": None},
        {"name": 5},
        {"unit": 5},
        {"unit": None},
        {"type": 5},
        {"tags": {1: 2}},
        {"tags": {"a": math.nan}},
        {"at": "now"},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"at": -1},
        {"agent": 5},
    ],
    ids=repr,
)
def test_record_refuses_what_cannot_be_stored(store: Store, options):
    with pytest.raises(InvalidValue):
        store.metrics.record(**{"name": "m", "value": 1, **options})
    assert store.metrics.count() == 0


def test_record_many_is_all_or_none_and_in_order(store: Store, agent, clock):
    stored = store.metrics.record_many(
        [
            Sample("m", 1, agent),
            Sample("m", 2, at=5),
            Sample("n", 3, unit="s", tags={"a": []}, at=datetime(2026, 1, 1, tzinfo=UTC)),
        ]
    )
    assert [(metric.value, metric.timestamp) for metric in stored] == [(1, clock.now), (2, 5), (3, 1_767_225_600_000)]
    assert store.metrics.find_all() == stored
    with pytest.raises(NotFound):
        store.metrics.record_many([Sample("m", 4), Sample("m", 5, "nobody")])
    assert store.metrics.count() == 3
    assert store.metrics.record_many([]) == []


def test_aggregates_equal_a_recount(store: Store, agent, clock):
    rng = random.Random(7)
    other = store.agents.register("worker")
    samples = [
        Sample(
            "m",
            rng.choice([rng.uniform(-100, 100), float(rng.randrange(5))]),
            rng.choice([agent, other, None]),
            at=clock.now + rng.randrange(10 * MINUTE),
            unit=rng.choice(["ms", "s"]),
        )
        for _ in range(700)
    ]
    noise = [Sample("other", 1e9, at=clock.now) for _ in range(10)]
    metrics = [metric for metric in store.metrics.record_many([*samples, *noise]) if metric.metric_name == "m"]
    for options in (
        {},
        {"bucket": MINUTE},
        {"bucket": 7_001},
        {"since": clock.now + 90_000, "until": clock.now + 400_001},
        {"since": clock.now + 90_000, "until": clock.now + 400_001, "bucket": MINUTE},
    ):
        assert store.metrics.aggregate("m", **options) == recount(metrics, **options)
        mine = [metric for metric in metrics if metric.agent_id == agent.id]
        assert store.metrics.aggregate("m", agent=agent, **options) == recount(mine, **options)
    assert store.metrics.aggregate("nothing") == []
    [one, _] = store.metrics.aggregate("m")
    assert one.avg == pytest.approx(one.sum / one.count)


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 99, 100, 101, 200])
def test_percentiles_are_by_nearest_rank(store: Store, count):
    store.metrics.record_many(Sample("m", value) for value in random.Random(count).sample(range(1, count + 1), count))
    [all_] = store.metrics.aggregate("m")
    assert (all_.p50, all_.p95, all_.p99) == tuple(math.ceil(count * p / 100) for p in (50, 95, 99))


def test_units_are_never_mixed(store: Store):
    store.metrics.record_many([Sample("m", 1, unit="s"), Sample("m", 1_000, unit="ms"), Sample("m", 3, unit="s"), Sample("m", 7)])
    assert [(part.unit, part.count, part.sum) for part in store.metrics.aggregate("m")] == [("", 1, 7), ("ms", 1, 1_000), ("s", 2, 4)]


def test_a_span_has_its_start_and_not_its_end(store: Store):
    store.metrics.record_many(Sample("m", at, at=at) for at in (999, 1_000, 1_001, 1_999, 2_000))
    [span] = store.metrics.aggregate("m", since=1_000, until=2_000)
    assert (span.bucket, span.count, span.min, span.max) == (1_000, 3, 1_000, 1_999)
    assert [(part.bucket, part.count) for part in store.metrics.aggregate("m", bucket=1_000)] == [(0, 1), (1_000, 3), (2_000, 1)]


def test_types_can_be_told_apart(store: Store):
    store.metrics.record("m", 1, type="gauge")
    store.metrics.record("m", 2, type="counter")
    assert [part.sum for part in store.metrics.aggregate("m", type="counter")] == [2]
    assert [part.sum for part in store.metrics.aggregate("m")] == [3]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"host": "a"}, 1 + 2 + 8),
        ({"host": "a", "zone": 1}, 1),
        ({"zone": 2}, 2),
        ({"hot": True}, 4),
        ({"hot": False}, 8),
        ({"load": 1.5}, 8),
        ({"host": "z"}, None),
        ({"absent": "a"}, None),
        ({}, 15),
    ],
    ids=repr,
)
def test_tags_must_all_be_there_and_equal(store: Store, tags, expected):
    store.metrics.record("m", 1, tags={"host": "a", "zone": 1})
    store.metrics.record("m", 2, tags={"host": "a", "zone": 2})
    store.metrics.record("m", 4, tags={"host": "b", "hot": True})
    store.metrics.record("m", 8, tags={"host": "a", "hot": False, "load": 1.5})
    assert [part.sum for part in store.metrics.aggregate("m", tags=tags)] == ([] if expected is None else [expected])


@pytest.mark.parametrize("tag", ['a"b', "a.b", "a[0]", "$", "a'b", "", " ", "ünï", "🐝", "a\\b", "0", "%s", ":tag"], ids=repr)
def test_tags_may_have_any_name_and_value(store: Store, tag):
    store.metrics.record("m", 1, tags={tag: tag})
    store.metrics.record("m", 2, tags={"x" + tag: tag})
    assert [part.sum for part in store.metrics.aggregate("m", tags={tag: tag})] == [1]


@pytest.mark.parametrize("tags", [{"a": None}, {"a": []}, {5: "a"}], ids=repr)
def test_tags_are_compared_with_plain_values(store: Store, tags):
    with pytest.raises(InvalidValue):
        store.metrics.aggregate("m", tags=tags)


@pytest.mark.parametrize("options", [{"bucket": 0}, {"bucket": -1}, {"bucket": 1.5}, {"since": "x"}, {"until": 2**63}], ids=repr)
def test_aggregate_refuses_what_makes_no_sense(store: Store, options):
    with pytest.raises(InvalidValue):
        store.metrics.aggregate("m", **options)


@pytest.mark.parametrize("group", [{}, {"by_agent": True}, {"tags": {"a": 1}}], ids=str)
def test_a_sum_beyond_every_float_is_the_largest(store: Store, group):
    def total(name, *values):
        store.metrics.record_many(Sample(name, value, tags={"a": 1}) for value in values)
        [found] = store.metrics.aggregate(name, **group)
        return found.sum

    largest = sys.float_info.max
    assert total("up", 1e308, 1e308) == largest
    assert total("down", -1e308, -largest, -5.0) == -largest
    assert total("there and back", 1e308, 1e308, -1e308, 1.0) == 1e308
    assert total("none left", largest, 1.5, largest, -largest, -largest) == 1.5
    assert total("just within", largest / 2, largest / 2) == largest
    assert total("small", 5e-324, 5e-324, 1e290) == 1e290
    store.metrics.rollup()
    assert store.metrics.aggregate("up", **group)[0].sum == largest
