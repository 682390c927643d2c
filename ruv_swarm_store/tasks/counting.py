"""How the queue stands: counts, age and throughput."""

from __future__ import annotations

from sqlalchemy import func, select, union_all

from ruv_swarm_store.engines import Executor, parameter
from ruv_swarm_store.entities import TaskStats, TaskStatus
from ruv_swarm_store.schema import FINAL, LEASED
from ruv_swarm_store.tasks.rows import c, final, number, pending, status

WINDOW = 60_000
"""Milliseconds over which throughput is counted."""

# One SELECT for each partial index, so that a long history costs no more than its entries in one of them.
_OPEN = [
    select(c.type, status(state).label("status"), func.count().label("count")).where(c.status == state).group_by(c.type)
    for state in (TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.BLOCKED)
]
_held, _finished = (
    select(c.type, c.status, func.count().label("count")).where(c.status.in_(states)).group_by(c.type, c.status)
    for states in (LEASED, FINAL)
)
_COUNTS = union_all(*_OPEN, _held, _finished)
_COUNTS_OF_OPEN = union_all(*_OPEN, _held)

# Tasks of one priority stand in order of creation: the first of each is enough, and there are at most 101.
_priorities = (
    select(select(c.priority).where(pending).order_by(c.priority.desc()).limit(number("1")).scalar_subquery().label("priority"))
    .cte("priorities", recursive=True)
)  # fmt: skip
_priorities = _priorities.union_all(
    select(
        select(c.priority)
        .where(pending, c.priority < _priorities.c.priority)
        .order_by(c.priority.desc())
        .limit(number("1"))
        .correlate(_priorities)
        .scalar_subquery()
    ).where(_priorities.c.priority.is_not(None))
)
_first = (
    select(c.created_at)
    .where(pending, c.priority == _priorities.c.priority)
    .order_by(c.position)
    .limit(number("1"))
    .correlate(_priorities)
    .scalar_subquery()
)
_OLDEST = select(func.min(_first)).where(_priorities.c.priority.is_not(None))
_COMPLETED = select(func.count()).where(final, c.status == TaskStatus.COMPLETED, c.completed_at > parameter("since"))


def stats(run: Executor, *, finished: bool) -> TaskStats:
    """The queue at one moment."""
    counts: dict[str, dict[TaskStatus, int]] = {}
    for type, state, count in run.all(_COUNTS if finished else _COUNTS_OF_OPEN):
        counts.setdefault(type, {})[TaskStatus(state)] = count
    oldest = run.one(_OLDEST) or (None,)
    completed = run.one(_COMPLETED, {"since": run.now - WINDOW}) or (0,)
    return TaskStats(counts, oldest[0], completed[0] / (WINDOW / 1000))
