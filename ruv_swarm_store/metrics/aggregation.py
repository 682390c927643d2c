"""What the samples of a metric add up to, read from rollups where they answer and from the samples where they do not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, structs
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Executable,
    Select,
    Subquery,
    Text,
    and_,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    union_all,
)

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, json_has, json_member, json_text, parameter, records
from ruv_swarm_store.errors import CorruptRow, InvalidValue
from ruv_swarm_store.metrics import sketch
from ruv_swarm_store.metrics.resolutions import RAW, RESOLUTIONS, Segment, State, cover, floor, state
from ruv_swarm_store.metrics.sketch import Sketch
from ruv_swarm_store.metrics.sums import clamped, total

MOST_WAITING = 100_000
"""When more samples than this wait for a rollup, the samples themselves are asked, as long as they are all there."""
MOST_BUCKETS = 1_000_000
"""Most spans that are filled in."""
PERCENTS = (50, 95, 99)
FOREVER = 2**63 - 1


class Aggregate(Struct, frozen=True, gc=False):
    """What the values of one metric, in one unit and one span of time, add up to. Percentiles are by nearest rank.

    A span without values, where `fill` asks for one, has count and sum 0; its other figures are NaN.
    """

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
    resolution: int = RAW
    """Milliseconds of the coarsest rollups the figures come from; 0 when they come from the samples alone."""
    exact: bool = True
    """Whether the percentiles are exact; otherwise they are within 1 %. The other figures are exact either way, but for the
    rounding of sums."""
    complete: bool = True
    """False where samples of the span may be missing, because retention has removed the detail needed to tell."""
    group: Any = None
    """The agent's id or the tag's value when grouped by one; None for samples without."""

    @property
    def avg(self) -> float:
        """The mean value; NaN when there is none."""
        return self.sum / self.count if self.count else math.nan


class Request(NamedTuple):
    """What is to be aggregated, its arguments checked."""

    name: str
    since: int
    until: int
    bucket: int | None
    agent: str | None
    type: str | None
    unit: str | None
    tags: Sequence[tuple[str, str | float | bool]]
    by_agent: bool
    by_tag: str | None
    resolution: int | None

    @property
    def params(self) -> dict[str, Any]:
        """The statements' parameters."""
        return {
            "name": self.name,
            "since": self.since,
            "until": self.until,
            "bucket": self.bucket or 0,
            "agent": self.agent,
            "type": self.type,
            "unit": self.unit,
        }

    def resolutions(self) -> Sequence[int]:
        """Those that may answer: each of their buckets lies in one span."""
        if self.agent == "":  # stands for no agent in rollups
            return ()
        wanted = RESOLUTIONS if self.resolution is None else [self.resolution] if self.resolution else []
        return [each for each in wanted if self.bucket is None or self.bucket % each == 0]


_m = schema.metrics.c
_r = schema.metric_rollups.c
_w = schema.metric_watermarks.c
_name = parameter("name", Text)
_since: Any = parameter("since", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_bucket: Any = parameter("bucket", schema.Int64)
_agent: Any = parameter("agent", Text)
_type: Any = parameter("type", Text)
_unit: Any = parameter("unit", Text)
_LARGE: Any = literal_column("1e290", schema.Real)
"""More of these than a table can hold add up to no float."""
_SCALE: Any = literal_column("5.421010862427522e-20", schema.Real)
"""2**-64: a power of two keeps every digit."""
_nobody = literal_column("''", Text)


def _span(moment: ColumnElement[int]) -> ColumnElement[int]:
    return case((_bucket > 0, moment // func.nullif(_bucket, 0, type_=schema.Int64) * _bucket), else_=_since)


def _wanted(columns: Any, tags: ColumnElement[Any], request: Request | None) -> Sequence[ColumnElement[bool]]:
    """What tells apart the rows asked for, whether samples or rollups."""
    return (
        or_(_agent.is_(None), columns.agent_id == _agent),
        or_(_type.is_(None), columns.metric_type == _type),
        or_(_unit.is_(None), columns.unit == _unit),
        *(json_has(tags, tag, value) for tag, value in (request.tags if request else ())),
    )


def _samples(request: Request | None) -> Select[*tuple[Any, ...]]:
    """Aggregates from samples alone."""
    group_by: ColumnElement[Any] = null()
    if request is not None and request.by_agent:
        group_by = _m.agent_id
    elif request is not None and request.by_tag is not None:
        group_by = json_member(_m.tags, request.by_tag)
    values = (
        select(_span(_m.timestamp).label("start"), _m.unit, cast(group_by, Text).label("group"), _m.value)
        .where(_m.metric_name == _name, _m.timestamp >= _since, _m.timestamp < _until, *_wanted(_m, _m.tags, request))
        .subquery()
    )
    group = (values.c.start, values.c.unit, values.c.group)
    ranked = select(
        *group,
        values.c.value,
        func.row_number().over(partition_by=group, order_by=values.c.value).label("rank"),
        func.count().over(partition_by=group).label("size"),
    ).subquery()

    def percentile(percent: int) -> ColumnElement[Any]:
        # Nearest rank: the smallest value with at least so many % of the values at or below it.
        return func.min(case((ranked.c.rank >= (ranked.c.size * percent + 99) // 100, ranked.c.value)))

    # A sum beyond every float is infinite on one engine and an error on another: what is largest is added up scaled down.
    large = func.abs(ranked.c.value) > _LARGE
    rest = func.abs(ranked.c.value) <= _LARGE
    return select(
        ranked.c.start,
        ranked.c.unit,
        ranked.c.group,
        func.count(),
        func.sum(case((rest, ranked.c.value))),
        func.sum(case((large, ranked.c.value * _SCALE))),
        func.min(ranked.c.value),
        func.max(ranked.c.value),
        *(percentile(percent) for percent in PERCENTS),
    ).group_by(ranked.c.start, ranked.c.unit, ranked.c.group)


def _segments() -> Subquery:
    # The name stands with the segments so that each is looked up in the index by all its parts, whoever plans the join.
    return records("segments", resolution=schema.Int64, low=schema.Int64, high=schema.Int64, metric_name=Text)


def _pieces(request: Request | None) -> CompoundSelect[*tuple[Any, ...]]:
    """What segments hold: rollups; samples where no rollup answers; samples that are not rolled up yet where one does.

    One statement, and so one snapshot: a sample that is being rolled up meanwhile counts here or there, and never twice.
    """
    by_agent = request is not None and request.by_agent
    tag = None if request is None else request.by_tag

    def group(agent: ColumnElement[Any], tags: ColumnElement[Any]) -> ColumnElement[Any]:
        return agent if by_agent else cast(null(), Text) if tag is None else json_member(tags, tag)

    rollup_tags: ColumnElement[Any] = cast(_r.tags, schema.Json)
    first = _segments()
    rolled_up = (
        select(
            _r.resolution,
            _span(_r.bucket),
            _r.unit,
            group(func.nullif(_r.agent_id, _nobody), rollup_tags),
            _r.count,
            _r.sum,
            _r.minimum,
            _r.maximum,
            json_text(_r.sketch),
        )
        .join_from(
            first,
            schema.metric_rollups,
            and_(
                _r.metric_name == first.c.metric_name,
                _r.resolution == first.c.resolution,
                _r.bucket >= first.c.low,
                _r.bucket < first.c.high,
            ),
        )
        .where(*_wanted(_r, rollup_tags, request))
    )
    sample = (
        literal_column("0", schema.Int64),
        _span(_m.timestamp),
        _m.unit,
        group(_m.agent_id, _m.tags),
        literal_column("1", schema.Int64),
        _m.value,
        _m.value,
        _m.value,
        cast(null(), Text),
    )
    second = _segments()
    edges = (
        select(*sample)
        .join_from(
            second, schema.metrics, and_(_m.metric_name == second.c.metric_name, _m.timestamp >= second.c.low, _m.timestamp < second.c.high)
        )
        .where(second.c.resolution == literal_column("0"), *_wanted(_m, _m.tags, request))
    )
    third = _segments()
    watermark = select(func.min(_w.metric_id)).where(_w.resolution > literal_column("0")).scalar_subquery()
    # The few samples above the watermark are found by their numbers. Name and time are put so that no index serves them: along
    # those all samples of the span would be read.
    time = _m.timestamp + literal_column("0", schema.Int64)
    waiting = (
        select(*sample)
        .join_from(schema.metrics, third, and_(_m.metric_name + _nobody == third.c.metric_name, time >= third.c.low, time < third.c.high))
        .where(
            third.c.resolution > literal_column("0"),
            _m.id > watermark,
            # How things stood a moment ago: a planner knows from it how few they are, or that there are none to look for.
            _m.id > parameter("seen", schema.Int64),
            parameter("waiting", schema.Int64) > literal_column("0"),
            *_wanted(_m, _m.tags, request),
        )
    )
    return union_all(rolled_up, edges, waiting)


_SAMPLES = _samples(None)
_PIECES = _pieces(None)


def _plain(request: Request) -> bool:
    return not request.tags and not request.by_agent and request.by_tag is None


def aggregate(run: Executor, request: Request, *, fill: bool = False) -> list[Aggregate]:
    """The aggregates of a request, by start, unit and group; with `fill`, empty ones for spans without values, too."""
    before = state(run)
    while True:
        resolutions = _resolutions(request, before)
        segments = cover(request.since, request.until, resolutions, before.horizons)
        found = _from_pieces(run, request, segments, before) if any(each.resolution for each in segments) else _from_samples(run, request)
        after = state(run)
        if after.horizons == before.horizons:
            break
        before = after  # something was pruned meanwhile: other resolutions answer now
    if fill:
        found = _filled(found, request)
    horizon = before.horizons.get(RAW, request.since)
    gaps = [(low, min(high, horizon)) for each, low, high in segments if each == RAW and low < horizon]
    if gaps:
        found = [part if _complete(part, request, gaps) else structs.replace(part, complete=False) for part in found]
    return sorted(found, key=lambda part: (part.bucket, part.unit, part.group is not None, codec.encode(part.group)))


def _resolutions(request: Request, known: State) -> Sequence[int]:
    """Those to use, by what is there."""
    samples_are_whole = known.horizons.get(RAW, request.since) <= request.since
    if not known.rolled_up or (samples_are_whole and known.waiting > MOST_WAITING):
        return ()
    return request.resolutions()


def _complete(part: Aggregate, request: Request, gaps: Sequence[tuple[int, int]]) -> bool:
    end = request.until if request.bucket is None else part.bucket + request.bucket
    return not any(low < end and part.bucket < high for low, high in gaps)


def _from_samples(run: Executor, request: Request) -> list[Aggregate]:
    statement: Executable = _SAMPLES if _plain(request) else _samples(request)
    return [
        Aggregate(start, unit, count, _sum(sum_, scaled), low, high, p50, p95, p99, group=_group(request, group))
        for start, unit, group, count, sum_, scaled, low, high, p50, p95, p99 in _rows(run, statement, request.params, request)
    ]


def _sum(rest: float | None, scaled: float | None) -> float:
    """What `_samples` has added up in two parts; the largest float of its sign where it is beyond every float."""
    return rest or 0.0 if scaled is None else clamped(Fraction(rest or 0.0) + Fraction(scaled) * 2**64)


def _from_pieces(run: Executor, request: Request, segments: Sequence[Segment], known: State) -> list[Aggregate]:
    named = [(*segment, request.name) for segment in segments]
    params = {
        **request.params,
        "segments": codec.encode(named) if _plain(request) else named,
        "seen": known.rolled_up,
        "waiting": known.waiting,
    }
    statement = _PIECES if _plain(request) else _pieces(request)
    return [
        part.aggregate(start, unit, _group(request, group))
        for (start, unit, group), part in _gather(_rows(run, statement, params, request)).items()
    ]


def _rows(run: Executor, statement: Executable, params: dict[str, Any], request: Request) -> Sequence[Sequence[Any]]:
    return run.all(statement, params) if _plain(request) else run.execute(statement, params)


def _group(request: Request, group: str | None) -> Any:
    return group if group is None or request.by_tag is None else codec.decode(group)


class _Part:
    """Figures of one span, unit and group, being put together."""

    __slots__ = ("count", "high", "low", "resolution", "sketch", "sums", "values")

    def __init__(self) -> None:
        self.count = 0
        self.low = math.inf
        self.high = -math.inf
        self.sums: list[float] = []
        self.values: list[float] = []
        self.sketch: Sketch | None = None
        self.resolution = RAW

    def aggregate(self, start: int, unit: str, group: Any) -> Aggregate:
        """What has come together."""
        values = self.values
        low, high = min(self.low, *values, math.inf), max(self.high, *values, -math.inf)
        if self.sketch is None:
            values.sort()
            percentiles = [values[(len(values) * percent + 99) // 100 - 1] for percent in PERCENTS]
        else:
            self.sketch.add(values)
            percentiles = [min(max(value, low), high) for value in self.sketch.percentiles(PERCENTS)]
        sum_ = total([*self.sums, *values])
        p50, p95, p99 = percentiles
        count = self.count + len(values)
        return Aggregate(start, unit, count, sum_, low, high, p50, p95, p99, self.resolution, self.sketch is None, group=group)


def _gather(rows: Iterable[Sequence[Any]]) -> dict[tuple[int, str, str | None], _Part]:
    parts: dict[tuple[int, str, str | None], _Part] = {}
    for resolution, start, unit, group, count, sum_, low, high, text in rows:
        key = (start, unit, group)
        part = parts.get(key)
        if part is None:
            part = parts[key] = _Part()
        if resolution == RAW:
            part.values.append(sum_)
            continue
        part.count += count
        part.sums.append(sum_)
        part.low = min(part.low, low)
        part.high = max(part.high, high)
        part.resolution = max(part.resolution, resolution)
        if part.sketch is None:
            part.sketch = load_sketch(text, start)
        else:
            part.sketch.merge(load_sketch(text, start))
    return parts


def load_sketch(text: str, bucket: int) -> Sketch:
    """The sketch of a rollup. Raises `CorruptRow` for what is none."""
    try:
        return sketch.decode(text)
    except msgspec.MsgspecError as error:
        raise CorruptRow(
            f"a rollup of metrics at {bucket} cannot be read: sketch does not hold what it should",
            hint="The row was changed from outside: ask the samples, with resolution=0",
            table=schema.metric_rollups.name,
            id=bucket,
            column="sketch",
        ) from error


def _filled(found: Sequence[Aggregate], request: Request) -> list[Aggregate]:
    """The aggregates and, for each unit and group, an empty one for every span without values.

    Open ends of the range reach as far as there are values at all.
    """
    assert request.bucket is not None
    step = request.bucket
    starts = [part.bucket for part in found]
    first = floor(request.since, step) if request.since > 0 else min(starts, default=0)
    last = floor(request.until - 1, step) if request.until < FOREVER else max(starts, default=first - step)
    if (last - first) // step >= MOST_BUCKETS:
        raise InvalidValue(f"filling in would make {(last - first) // step + 1} spans", hint="Take a wider bucket or a shorter range")
    known = {(part.bucket, part.unit, codec.encode(part.group)): part for part in found}
    series = {(part.unit, codec.encode(part.group)): part.group for part in found}  # 1 and True are one key, but two groups
    if not series and request.unit is not None:
        series = {(request.unit, codec.encode(None)): None}
    nan = math.nan
    return [
        known.get((start, unit, text)) or Aggregate(start, unit, 0, 0.0, nan, nan, nan, nan, nan, group=group)
        for start in range(first, last + 1, step)
        for (unit, text), group in series.items()
    ]
