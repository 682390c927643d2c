"""The resolutions samples are rolled up to, how far that has come, and which of them can answer for which time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import func, literal_column, select

from ruv_swarm_store import schema
from ruv_swarm_store.engines import Executor
from ruv_swarm_store.entities import Watermark
from ruv_swarm_store.query import Mapping as TableMapping

RAW = 0
"""The samples themselves."""
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
RESOLUTIONS = (DAY, HOUR, MINUTE)
"""What samples are rolled up to, in milliseconds, coarsest first. Each is a multiple of the next."""
WATERMARKS = TableMapping(schema.metric_watermarks, Watermark, key="resolution")

_w = schema.metric_watermarks.c
_STATE = select(*WATERMARKS.columns, select(func.max(schema.metrics.c.id)).scalar_subquery()).where(_w.resolution >= literal_column("0"))


class Segment(NamedTuple):
    """A span of time, `low` to before `high`, and the resolution that answers for it."""

    resolution: int
    low: int
    high: int


class State(NamedTuple):
    """How far rollups and retention have come."""

    watermarks: dict[int, Watermark]
    waiting: int
    """How many samples are not rolled up yet, at most: none when it is 0."""

    @property
    def rolled_up(self) -> int:
        """The number up to which every sample is rolled up."""
        return min((self.watermarks[each].metric_id if each in self.watermarks else 0 for each in RESOLUTIONS), default=0)

    @property
    def horizons(self) -> dict[int, int]:
        """Before which instant each resolution is no longer whole."""
        return {each: mark.pruned_before for each, mark in self.watermarks.items() if mark.pruned_before is not None}


def state(run: Executor) -> State:
    """How far rollups and retention have come."""
    rows = run.all(_STATE)
    marks = {row[0]: Watermark(*row[:4]) for row in rows}
    found = State(marks, 0)
    return found._replace(waiting=max(0, (rows[0][4] or 0) - found.rolled_up)) if rows else found


def floor(moment: int, resolution: int) -> int:
    """The start of the bucket an instant lies in."""
    return moment // resolution * resolution


def ceiling(moment: int, resolution: int) -> int:
    """The first start of a bucket that is not before an instant."""
    return -(-moment // resolution) * resolution


def cover(since: int, until: int, resolutions: Iterable[int], horizons: Mapping[int, int]) -> list[Segment]:
    """Who answers for which part of a span: the coarsest of `resolutions` whose buckets lie inside it and are whole, else the samples."""
    found: list[Segment] = []
    open_: Collection[tuple[int, int]] = [(since, until)]
    for resolution in resolutions:
        left: list[tuple[int, int]] = []
        for low, high in open_:
            first, last = ceiling(max(low, horizons.get(resolution, low)), resolution), floor(high, resolution)
            if first < last:
                found.append(Segment(resolution, first, last))
                left += [(low, first), (last, high)]
            else:
                left.append((low, high))
        open_ = [(low, high) for low, high in left if low < high]
    return found + [Segment(RAW, low, high) for low, high in open_]
