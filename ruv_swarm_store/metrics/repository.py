"""The metrics of a store: recorded, rolled up, aggregated, pruned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, duration, milliseconds
from ruv_swarm_store.engines import Engine, Executor, json_has
from ruv_swarm_store.entities import Agent, Metric, Watermark
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound
from ruv_swarm_store.metrics import rollup
from ruv_swarm_store.metrics.aggregation import FOREVER, Aggregate, Request, aggregate
from ruv_swarm_store.metrics.buffer import Buffer
from ruv_swarm_store.metrics.resolutions import RAW, RESOLUTIONS, state
from ruv_swarm_store.metrics.samples import METRICS, UNTIMED, Row, Sample, metric_of, seal
from ruv_swarm_store.query import Query
from ruv_swarm_store.repository import Repository

_c = schema.metrics.c


class Metrics(Repository[Metric]):
    """What is measured about agents and the swarm.

    `record`, `record_many` and `buffer` write samples, `aggregate` sums them up, `rollup` sums them up ahead of time, and `prune`
    removes what is old.
    """

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
        sealed = seal(Sample(name, value, agent, type, unit, tags, at))

        def add(run: Executor) -> Metric:
            row = _timed(sealed, run)
            return metric_of(row, run.insert(METRICS.insertion, row))

        try:
            return self._scope.write(add)
        except Conflict as error:
            raise _no_agent() from error

    def record_many(self, samples: Iterable[Sample]) -> list[Metric]:
        """Stores values in order, all or none. Raises `NotFound` for an unknown agent."""
        given = list(codec.listed(samples, "samples"))
        if others := [sample for sample in given if not isinstance(sample, Sample)]:
            raise InvalidValue(f"{others[0]!r} is no sample", hint="Give Sample(name, value, …)")
        rows = [seal(sample) for sample in given]
        if not rows:
            return []
        try:
            with self._scope.transaction() as run:
                rows = [_timed(row, run) for row in rows]
                numbers = run.insert_many(METRICS.insertion, rows)
        except Conflict as error:
            raise _no_agent() from error
        return [metric_of(row, number) for row, number in zip(rows, numbers, strict=True)]

    def buffer(self, *, size: int = 500, seconds: float | None = 1.0, limit: int | None = None) -> Buffer:
        """Gathers samples and writes them together: `size` at a time, after `seconds` at the latest, and when its block ends.

            with store.metrics.buffer() as buffer:
                buffer.record("latency", 12.5, unit="ms")

        While nothing can be written it holds up to `limit` samples, ten times `size` if left out, and then refuses more. When the
        process dies, what it holds is lost: at most what was recorded in the last `seconds`.
        """
        return Buffer(self._scope, size, seconds, limit, own=isinstance(self._scope, Engine))

    def samples(
        self,
        name: str,
        *,
        since: Moment = 0,
        until: Moment | None = None,
        agent: Agent | str | None = None,
        type: str | None = None,
        unit: str | None = None,
        tags: dict[str, str | int | float | bool] | None = None,
    ) -> Query[Metric]:
        """The samples of a metric from `since` up to before `until`, oldest first, as a query to narrow down."""
        criteria = [_c.metric_name == codec.text(name, "metric name"), _c.timestamp >= milliseconds(since, "since")]
        if until is not None:
            criteria.append(_c.timestamp < milliseconds(until, "until"))
        given = {"agent_id": _id(agent), "metric_type": _text(type, "type"), "unit": _text(unit, "unit")}
        criteria += [_c[column] == value for column, value in given.items() if value is not None]
        criteria += [json_has(_c.tags, tag, value) for tag, value in _tags(tags)]
        return self.where(*criteria).order_by(_c.timestamp.asc(), _c.id.asc())

    def aggregate(
        self,
        name: str,
        *,
        since: Moment = 0,
        until: Moment | None = None,
        bucket: int | None = None,
        agent: Agent | str | None = None,
        type: str | None = None,
        unit: str | None = None,
        tags: dict[str, str | int | float | bool] | None = None,
        by_agent: bool = False,
        by_tag: str | None = None,
        resolution: int | None = None,
        fill: bool = False,
    ) -> list[Aggregate]:
        """What the values from `since` up to before `until` add up to, in spans of `bucket` milliseconds.

        Spans are aligned to the epoch; without `bucket` the whole range is one. Units are never mixed: there is one `Aggregate`
        for each unit and span that has values, and with `by_agent` or `by_tag` for each agent or value of that tag. `tags` must
        all be there and equal. With `fill` there is one for spans without values, too.

        Rollups answer for what they cover: the coarsest whose buckets lie inside the range and each inside one span. The samples
        answer for the rest: the edges of the range, and what is not rolled up yet. So count, sum, min and max are those of the
        samples, whatever answers; percentiles are exact when only samples do, otherwise within 1 % (`Aggregate.exact`).
        `resolution` names the one to use, in milliseconds, beside the samples; 0 leaves all to the samples.
        """
        if resolution is not None and resolution not in (RAW, *RESOLUTIONS):
            raise InvalidValue(
                f"resolution is {resolution!r}", hint=f"Use one of {', '.join(map(str, RESOLUTIONS))} milliseconds, or 0 for the samples"
            )
        if by_agent and by_tag is not None:
            raise InvalidValue("by_agent and by_tag are both given", hint="Group by one of them")
        request = Request(
            name=codec.text(name, "metric name"),
            since=milliseconds(since, "since"),
            until=FOREVER if until is None else milliseconds(until, "until"),
            bucket=None if bucket is None else codec.integer(bucket, "bucket", 1),
            agent=_id(agent),
            type=_text(type, "type"),
            unit=_text(unit, "unit"),
            tags=_tags(tags),
            by_agent=by_agent,
            by_tag=_text(by_tag, "by_tag"),
            resolution=resolution,
        )
        if resolution and request.bucket is not None and request.bucket % resolution:
            raise InvalidValue(
                f"spans of {bucket} ms cannot be put together from rollups of {resolution} ms",
                hint="Take a multiple, or leave resolution out",
            )
        if fill and bucket is None:
            raise InvalidValue("there are no spans to fill in", hint="Give bucket=, in milliseconds, or leave fill out")
        with self._scope.read() as run:
            return aggregate(run, request, fill=fill)

    def rollup(self, *, batch: int = 10_000) -> int:
        """Adds the samples that came since the last time to the rollups by minute, hour and day; how many were added here.

        Each sample counts exactly once, late and back-dated ones too, however many processes do this at once; `batch` samples
        make one transaction. Call it now and then, every minute say. In a unit of work nobody else records until that ends.
        """
        return rollup.rollup(self._scope, codec.integer(batch, "batch", 1))

    def prune(self, older_than: float, *, resolution: int = RAW, only_rolled_up: bool = True, batch: int = 5_000) -> int:
        """Removes samples measured more than `older_than` seconds ago, to the millisecond, in transactions of `batch`; how many.

        Samples that are not rolled up yet stay, unless `only_rolled_up` is False. With a `resolution` it is that one's rollups that
        go, those whose whole bucket is older. Where detail is gone, aggregates come from coarser rollups; what cannot be told
        without it is missing from them, which `Aggregate.complete` says.
        """
        if resolution not in (RAW, *RESOLUTIONS):
            raise InvalidValue(
                f"resolution is {resolution!r}", hint=f"Use one of {', '.join(map(str, RESOLUTIONS))} milliseconds, or 0 for the samples"
            )
        span = duration(older_than, "older_than")
        return rollup.prune(self._scope, span, resolution, rolled_up=only_rolled_up, size=codec.integer(batch, "batch", 1))

    def watermarks(self) -> list[Watermark]:
        """How far rollups and pruning have come, finest resolution first; resolution 0 stands for the samples."""
        with self._scope.read() as run:
            marks = state(run).watermarks
        return [marks[resolution] for resolution in sorted(marks)]

    def _find(self, id: Any) -> Sequence[Any] | None:
        return super()._find(METRICS.identity(id))  # the one noun whose key is no text

    # What a rollup counts is not changed behind its back.

    def _update(self, run: Executor, entity: Metric) -> Metric:
        _refuse_rolled_up(run, entity)
        return super()._update(run, entity)

    def replace(self, entity: Metric) -> Metric:
        """Stores a copy over a sample whatever its version. Raises `Conflict` when it is rolled up, `NotFound` when it is gone."""
        with self._scope.transaction() as run:
            _refuse_rolled_up(run, entity)
            return super().replace(entity)

    def upsert(self, entity: Metric) -> Metric:
        """Adds a sample, or stores the copy over the one with the same number. Raises `Conflict` when that is rolled up."""
        with self._scope.transaction() as run:
            _refuse_rolled_up(run, entity)
            return super().upsert(entity)


def _timed(row: Row, run: Executor) -> Row:
    return row if row[2] != UNTIMED else (*row[:2], run.now, *row[3:])


def _no_agent() -> NotFound:
    return NotFound("the agent of a metric does not exist", hint="Register it first, or leave it out")


def _refuse_rolled_up(run: Executor, metric: Metric) -> None:
    run.lock(rollup.LOCK)
    id: Any = METRICS.identity(metric)
    if isinstance(id, int) and 0 < id <= state(run).rolled_up and run.one(Metrics.statements.find, {"key": id}) is not None:
        raise Conflict(
            f"metrics {id} is rolled up", hint="A rollup counts it as it is: record a correction as another sample", kind="rolled_up"
        )


def _id(agent: Agent | str | None) -> str | None:
    return _text(agent.id if isinstance(agent, Agent) else agent, "agent")


def _text(value: str | None, what: str) -> str | None:
    return None if value is None else codec.text(value, what)


def _tags(tags: dict[str, str | int | float | bool] | None) -> list[tuple[str, str | float | bool]]:
    if tags is not None and not isinstance(tags, dict):
        raise InvalidValue(f"tags is {tags!r}", hint="Give a dict")
    checked = []
    for tag, value in (tags or {}).items():
        if not isinstance(value, (str, int, float, bool)):
            raise InvalidValue(f"tag {tag!r} is {value!r}", hint="Compare tags with strings, numbers or booleans")
        checked.append((codec.text(tag, "tag"), codec.seal(value, f"tag {tag!r}")[0]))
    return checked
