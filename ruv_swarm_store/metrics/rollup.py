"""Rolls samples up to minutes, hours and days, each exactly once, and removes what is older than it is to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, structs
from sqlalchemy import Text, delete, func, literal_column, or_, select, tuple_

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, Scope, insert_into, json_text, parameter, records, upsert
from ruv_swarm_store.errors import CorruptRow
from ruv_swarm_store.metrics import sketch
from ruv_swarm_store.metrics.aggregation import load_sketch
from ruv_swarm_store.metrics.resolutions import RAW, RESOLUTIONS, floor, state
from ruv_swarm_store.metrics.sketch import Sketch
from ruv_swarm_store.metrics.sums import total

LOCK = schema.metric_rollups.name
"""Whoever changes rollups, or a sample they count, holds the lock of this name."""

_m = schema.metrics.c
_r = schema.metric_rollups.c
_w = schema.metric_watermarks.c
_after: Any = parameter("after", schema.Int64)
_upto: Any = parameter("upto", schema.Int64)
_cutoff: Any = parameter("cutoff", schema.Int64)
_batch: Any = parameter("batch", schema.Int64)
_resolution: Any = parameter("resolution_", schema.Int64)
_name: Any = parameter("name", Text)
_between = (_m.id > _after, _m.id <= _upto)

_NEWEST = select(func.max(_m.id))
_SAMPLES = (
    select(_m.id, _m.version, _m.metric_name, _m.timestamp, _m.metric_type, _m.unit, _m.agent_id, json_text(_m.tags), _m.value)
    .where(*_between)
    .order_by(_m.id)
    .limit(_batch)
)
_UNCHANGED = select(func.count(), func.sum(_m.version)).where(*_between)
_KEY = (_r.metric_name, _r.resolution, _r.bucket, _r.series)
_TAKE = (
    delete(schema.metric_rollups)
    .where(tuple_(*_KEY).in_(select(*records("keys", metric_name=Text, resolution=schema.Int64, bucket=schema.Int64, series=Text).c)))
    .returning(*_KEY, _r.count, _r.sum, _r.minimum, _r.maximum, json_text(_r.sketch))
)
_ADD = insert_into(schema.metric_rollups)
_ADVANCE = upsert(
    schema.metric_watermarks,
    {"resolution": _resolution, "metric_id": _upto, "rolled_up_at": parameter("now", schema.Int64)},
    on=["resolution"],
    update={"metric_id": _upto, "rolled_up_at": parameter("now", schema.Int64)},
    returning=[_w.resolution],
)
# A batch is what comes up to a row by time and number: along the index, however many are to go.
_time: Any = parameter("time", schema.Int64)
_id: Any = parameter("last", schema.Int64)
_too_old = (_m.timestamp < _cutoff, _m.id <= _upto)
_LAST_SAMPLE = (
    select(_m.timestamp, _m.id)
    .where(*_too_old)
    .order_by(_m.timestamp, _m.id)
    .limit(literal_column("1"))
    .offset(parameter("skip", schema.Int64))
)
_PRUNE = delete(schema.metrics).where(*_too_old)
_PRUNE_BATCH = delete(schema.metrics).where(_m.timestamp <= _time, or_(_m.timestamp < _time, _m.id <= _id), _m.id <= _upto)
_NEXT_NAME = select(func.min(_r.metric_name)).where(_r.metric_name > _name)
_FIRST_NAME = select(func.min(_r.metric_name))
_old = (_r.metric_name == _name, _r.resolution == _resolution, _r.bucket < _cutoff)
_LAST_BUCKET = select(_r.bucket).where(*_old).order_by(_r.bucket).limit(literal_column("1")).offset(parameter("skip", schema.Int64))
_PRUNE_ROLLUPS = delete(schema.metric_rollups).where(*_old)
_LOSE = upsert(
    schema.metric_watermarks,
    {"resolution": _resolution, "metric_id": parameter("zero", schema.Int64), "rolled_up_at": parameter("zero", schema.Int64),
     "pruned_before": _cutoff},
    on=["resolution"],
    update={"pruned_before": _cutoff},
    where=_w.pruned_before.is_(None) | (_w.pruned_before < _cutoff),
    returning=[_w.resolution],
)  # fmt: skip

Key = tuple[str, int, int, str]
"""Metric, resolution, start of the bucket, series."""


class Series(NamedTuple):
    """What a metric's samples have in common; the agent is '' for none, tags are canonical JSON text."""

    type: str
    unit: str
    agent: str
    tags: str

    def digest(self) -> str:
        """A name of 32 characters."""
        return blake2b(codec.encode(self).encode(), digest_size=16).hexdigest()


class _Rollup(Struct, frozen=True, gc=False):
    """What samples of one key add up to."""

    series: Series
    count: int
    sum: float
    minimum: float
    maximum: float
    sketch: Sketch


class Batch(Struct, frozen=True):
    """Samples read, and what they add up to."""

    after: int
    upto: int
    count: int
    versions: int
    rollups: dict[Key, _Rollup]


def rollup(scope: Scope, size: int) -> int:
    """Rolls up what is there by now, `size` samples in each transaction; how many samples were rolled up here."""
    with scope.transaction() as run:
        # Numbers do not ascend in order of commit: nobody who is adding may still hold one below the newest.
        run.settle(schema.metrics)
        newest = run.one(_NEWEST)
    upto = int(newest[0] or 0) if newest else 0
    rolled_up = 0
    while True:
        with scope.read() as run:
            batch = _read(run, upto, size)
        if batch is None:
            return rolled_up
        with scope.transaction() as run:
            rolled_up += _write(run, batch)


def _read(run: Executor, upto: int, size: int) -> Batch | None:
    """The next samples up to a number, added up; None when there are none. Nobody is kept waiting for it."""
    after = state(run).rolled_up
    if after >= upto:
        return None
    rows = run.all(_SAMPLES, {"after": after, "upto": upto, "batch": size})
    last = rows[-1][0] if len(rows) == size else upto
    return Batch(after, last, len(rows), sum(row[1] for row in rows), _add_up(rows))


def _add_up(rows: Sequence[Sequence[Any]]) -> dict[Key, _Rollup]:
    finest, coarser = RESOLUTIONS[-1], RESOLUTIONS[-2::-1]
    digests: dict[tuple[Any, ...], tuple[Series, str]] = {}
    values: dict[Key, tuple[Series, list[float]]] = {}
    for id, _, name, timestamp, *given, value in rows:
        known = digests.get(as_stored := tuple(given))
        if known is None:
            type_, unit, agent, tags = given
            series = Series(type_, unit, agent or "", _canonical(tags, id))
            known = digests[as_stored] = (series, series.digest())
        key = (name, finest, floor(timestamp, finest), known[1])
        found = values.get(key)
        if found is None:
            values[key] = (known[0], [value])
        else:
            found[1].append(value)
    level = {}
    for key, (series, numbers) in values.items():
        counts = Sketch()
        counts.add(numbers)
        level[key] = _Rollup(series, len(numbers), total(numbers), min(numbers), max(numbers), counts)
    rollups = dict(level)
    for resolution in coarser:  # each from the next finer one
        next_: dict[Key, _Rollup] = {}
        for (name, _, bucket, digest), part in level.items():
            above = (name, resolution, floor(bucket, resolution), digest)
            next_[above] = _merged(next_.get(above), part)
        rollups |= next_
        level = next_
    return rollups


def _canonical(tags: str, id: int) -> str:
    try:
        return _encode(codec.decode(tags)).decode()
    except (ValueError, RecursionError) as error:
        raise CorruptRow(
            f"metrics {id} cannot be rolled up: tags does not hold what it should",
            hint="The row was changed from outside: repair or delete it",
            table=schema.metrics.name,
            id=id,
            column="tags",
        ) from error


_encode = msgspec.json.Encoder(order="deterministic").encode


def _merged(one: _Rollup | None, other: _Rollup) -> _Rollup:
    """Both together; the sketch of the first is used up, that of the second is not."""
    if one is None:
        counts = Sketch()
        counts.merge(other.sketch)
        return structs.replace(other, sketch=counts)
    one.sketch.merge(other.sketch)
    return _Rollup(
        one.series,
        one.count + other.count,
        total((one.sum, other.sum)),
        min(one.minimum, other.minimum),
        max(one.maximum, other.maximum),
        one.sketch,
    )


def _write(run: Executor, batch: Batch) -> int:
    """Adds a batch to the rollups and moves the watermark; nothing if somebody else has, or its samples have changed since."""
    run.lock(LOCK)
    found = run.one(_UNCHANGED, {"after": batch.after, "upto": batch.upto})
    if state(run).rolled_up != batch.after or found is None or (found[0], found[1] or 0) != (batch.count, batch.versions):
        return 0
    if batch.rollups:
        rollups = dict(batch.rollups)
        for name, resolution, bucket, digest, count, sum_, low, high, text in run.all(_TAKE, {"keys": codec.encode(list(rollups))}):
            added = rollups[name, resolution, bucket, digest]
            before = _Rollup(added.series, count, sum_, low, high, load_sketch(text, bucket))
            rollups[name, resolution, bucket, digest] = _merged(before, added)
        run.insert_many(
            _ADD,
            [
                (*key, *part.series, digest, part.count, part.sum, part.minimum, part.maximum, sketch.encode(part.sketch))
                for (*key, digest), part in rollups.items()
            ],
        )
    for resolution in RESOLUTIONS:
        run.one(_ADVANCE, {"resolution_": resolution, "upto": batch.upto, "now": run.now})
    return batch.count


def prune(scope: Scope, older_than: int, resolution: int, *, rolled_up: bool, size: int) -> int:
    """Removes samples, or rollups of a resolution, that are older than so many milliseconds, `size` at a time; how many.

    Samples that are not rolled up yet stay, unless `rolled_up` is False.
    """
    with scope.read() as run:
        cutoff = run.now - older_than
        upto = state(run).rolled_up if rolled_up else 2**63 - 1
    if resolution == RAW:
        return _prune_samples(scope, cutoff, upto, size)
    return _prune_rollups(scope, floor(cutoff, resolution), resolution, size)


def _prune_samples(scope: Scope, cutoff: int, upto: int, size: int) -> int:
    removed = 0
    params = {"cutoff": cutoff, "upto": upto}
    while True:
        with scope.transaction() as run:
            last = run.one(_LAST_SAMPLE, {**params, "skip": size - 1})
            batch = {} if last is None else {"time": last[0], "last": last[1]}
            count = run.run(_PRUNE_BATCH if batch else _PRUNE, {**params, **batch})
            if count:
                run.one(_LOSE, {"resolution_": RAW, "cutoff": cutoff, "zero": 0})
        removed += count
        if last is None:
            return removed


def _prune_rollups(scope: Scope, cutoff: int, resolution: int, size: int) -> int:
    removed = 0
    with scope.read() as run:
        found = run.one(_FIRST_NAME)
    while found is not None and found[0] is not None:
        params = {"name": found[0], "resolution_": resolution, "cutoff": cutoff}
        while True:
            with scope.transaction() as run:
                run.lock(LOCK)
                last = run.one(_LAST_BUCKET, {**params, "skip": size - 1})
                # All rollups of one bucket go together, so that none is left half.
                count = run.run(_PRUNE_ROLLUPS, params if last is None else {**params, "cutoff": last[0] + resolution})
                if count:
                    run.one(_LOSE, {"resolution_": resolution, "cutoff": cutoff, "zero": 0})
            removed += count
            if last is None:
                break
        with scope.read() as run:
            found = run.one(_NEXT_NAME, {"name": params["name"]})
    return removed
