"""Metrics: measured values, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct, structs
from sqlalchemy import ColumnElement, Select, Text, case, func, or_, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, milliseconds
from ruv_swarm_store.engines import json_has, parameter
from ruv_swarm_store.entities import Agent, Metric
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import Repository

METRICS = Mapping(schema.metrics, Metric)


class Sample(Struct, frozen=True, gc=False):
    """A value to record; `at` is when it was measured, now if left out."""

    name: str
    value: float
    agent: Agent | str | None = None
    type: str = "gauge"
    unit: str = ""
    tags: dict[str, Any] | None = None
    at: Moment | None = None


class Aggregate(Struct, frozen=True, gc=False):
    """What the values of one metric, in one unit and one span of time, add up to. Percentiles are by nearest rank."""

    bucket: int
    """Start of the span, in milliseconds since the epoch."""
    unit: str
    count: int
    sum: float
    min: float
    max: float
    p50: float
    p95: float
    p99: float

    @property
    def avg(self) -> float:
        """The mean value."""
        return self.sum / self.count


_c = schema.metrics.c
_since: Any = parameter("since", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_bucket: Any = parameter("bucket", schema.Int64)
_agent: Any = parameter("agent", Text)
_type: Any = parameter("type", Text)


def _aggregate(*criteria: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    values = (
        select(case((_bucket > 0, _c.timestamp // func.nullif(_bucket, 0) * _bucket), else_=_since).label("start"), _c.unit, _c.value)
        .where(
            _c.metric_name == parameter("name"),
            _c.timestamp >= _since,
            _c.timestamp < _until,
            or_(_agent.is_(None), _c.agent_id == _agent),
            or_(_type.is_(None), _c.metric_type == _type),
            *criteria,
        )
        .subquery()
    )
    group = (values.c.start, values.c.unit)
    ranked = select(
        *group,
        values.c.value,
        func.row_number().over(partition_by=group, order_by=values.c.value).label("rank"),
        func.count().over(partition_by=group).label("size"),
    ).subquery()

    def percentile(p: int) -> ColumnElement[Any]:
        # Nearest rank: the smallest value with at least p % of the values at or below it.
        return func.min(case((ranked.c.rank >= (ranked.c.size * p + 99) // 100, ranked.c.value)))

    return (
        select(
            ranked.c.start,
            ranked.c.unit,
            func.count(),
            func.sum(ranked.c.value),
            func.min(ranked.c.value),
            func.max(ranked.c.value),
            percentile(50),
            percentile(95),
            percentile(99),
        )
        .group_by(ranked.c.start, ranked.c.unit)
        .order_by(ranked.c.start, ranked.c.unit)
    )


_AGGREGATE = _aggregate()


class Metrics(Repository[Metric]):
    """What is measured about agents and the swarm. `record` and `record_many` write, `aggregate` sums up."""

    mapping = METRICS

    def record(
        self,
        name: str,
        value: float,
        *,
        agent: Agent | str | None = None,
        type: str = "gauge",
        unit: str = "",
        tags: dict[str, Any] | None = None,
        at: Moment | None = None,
    ) -> Metric:
        """Stores one value, measured now or `at` an instant. Raises `InvalidValue` for NaN and infinities."""
        return self.record_many([Sample(name, value, agent, type, unit, tags, at)])[0]

    def record_many(self, samples: Iterable[Sample]) -> list[Metric]:
        """Stores values in order, all or none. Raises `NotFound` for an unknown agent."""
        sealed = [_seal(sample) for sample in samples]
        try:
            with self._scope.transaction() as run:
                return self._insert(
                    run, [metric if metric.timestamp >= 0 else structs.replace(metric, timestamp=run.now) for metric in sealed]
                )
        except Conflict as error:
            raise NotFound("the agent of a metric does not exist", hint="Register it first, or leave it out") from error

    def aggregate(
        self,
        name: str,
        *,
        since: Moment = 0,
        until: Moment | None = None,
        bucket: int | None = None,
        agent: Agent | str | None = None,
        type: str | None = None,
        tags: dict[str, str | int | float | bool] | None = None,
    ) -> list[Aggregate]:
        """What the values from `since` up to before `until` add up to, in spans of `bucket` milliseconds.

        Spans are aligned to the epoch; without `bucket` the whole range is one. Units are never mixed: there is one
        `Aggregate` for each unit and span that has values. `tags` must all be there and equal.
        """
        codec.text(name, "metric name")
        params = {
            "name": name,
            "since": milliseconds(since, "since"),
            "until": 2**63 - 1 if until is None else milliseconds(until, "until"),
            "bucket": 0 if bucket is None else codec.integer(bucket, "bucket", 1),
            "agent": agent.id if isinstance(agent, Agent) else agent,
            "type": type,
        }
        tagged = [_tagged(tag, value) for tag, value in (tags or {}).items()]
        rows: Sequence[Sequence[Any]]
        with self._scope.read() as run:
            rows = run.execute(_aggregate(*tagged), params) if tagged else run.all(_AGGREGATE, params)
        return [Aggregate(*row) for row in rows]


def _seal(sample: Sample) -> Metric:
    agent = sample.agent
    return METRICS.seal(
        Metric(
            sample.name,
            sample.value,
            -1 if sample.at is None else codec.integer(milliseconds(sample.at, "at"), "at", 0),
            sample.type,
            sample.unit,
            agent.id if isinstance(agent, Agent) else agent,
            {} if sample.tags is None else sample.tags,
        )
    )


def _tagged(tag: str, value: str | int | float | bool) -> ColumnElement[bool]:
    if not isinstance(value, (str, int, float, bool)):
        raise InvalidValue(f"tag {tag!r} is {value!r}", hint="Compare tags with strings, numbers or booleans")
    return json_has(_c.tags, codec.text(tag, "tag"), codec.seal(value, f"tag {tag!r}")[0])
