"""What tasks have to do with each other: who waits for whom, and what must be held while one of them ends.

Locks are taken in one order by everybody: concurrency limits by key, schedules by name, tasks by position. A task depends
only on older ones, so each waits for locks in the same direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Text,
    and_,
    case,
    exists,
    func,
    literal_column,
    not_,
    select,
    update,
)

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, text_items
from ruv_swarm_store.entities import DependencyPolicy, TaskStatus
from ruv_swarm_store.tasks import limits
from ruv_swarm_store.tasks.rows import by_id, c, dependencies, now, number, picked, status

_blocked = c.status == TaskStatus.BLOCKED
_schedules = schema.task_schedules.c


_HELD_SCHEDULES = select(_schedules.name).where(_schedules.name.in_(text_items("names"))).order_by(_schedules.name)


def _alone(task: Any) -> ColumnElement[bool]:
    """Whether a task can end without anything else having to follow."""
    waits = and_(task.schedule.is_not(None), task.status == TaskStatus.SCHEDULED)
    return and_(task.awaited == number("0"), task.concurrency_key.is_(None), not_(waits))


_ALONE = select(c.position).where(by_id, _alone(c)).with_for_update(key_share=True)
_others = schema.tasks.alias("others").c
_ALL_ALONE = (
    select(c.position)
    .where(c.id.in_(text_items("ids")), _alone(c), not_(exists().where(_others.id.in_(text_items("ids")), not_(_alone(_others)))))
    .order_by(c.position)
    .with_for_update(key_share=True)
)
# What has to be held is looked up step by step: a planner without statistics makes too much of one statement for all of it.
_waits = and_(c.schedule.is_not(None), c.status == TaskStatus.SCHEDULED)
_PEEK = select(c.id, c.awaited, c.concurrency_key, case((_waits, c.schedule))).where(c.id.in_(text_items("ids")))
_DEPENDENTS = select(dependencies.task_id).distinct().where(dependencies.depends_on_id.in_(text_items("ids")))
_HOLD = select(c.position).where(c.id.in_(text_items("ids"))).order_by(c.position)

# The number of what a task still waits for stands in its row: several of them can end at once, and each finds it right.
# Looked up before they are counted: else the order of counting may decide which index is read.
_edges = picked(select(dependencies.task_id).where(dependencies.depends_on_id.in_(text_items("ids"))), "edges")
_done = select(_edges.c.task_id, func.count().label("number")).group_by(_edges.c.task_id).subquery("done")
_FREE = (
    update(schema.tasks)
    .where(c.id == _done.c.task_id, _blocked)
    .values(
        unmet=c.unmet - _done.c.number,
        status=case(
            (c.unmet > _done.c.number, status(TaskStatus.BLOCKED)),
            (c.run_at > now, status(TaskStatus.SCHEDULED)),
            (c.concurrency_key.is_not(None), status(TaskStatus.BLOCKED)),
            else_=status(TaskStatus.PENDING),
        ),
        version=c.version + case((c.unmet == _done.c.number, number("1")), else_=number("0")),
    )
    .returning(c.concurrency_key, c.unmet)
)
_culprit = (
    select(func.min(dependencies.depends_on_id))
    .where(dependencies.task_id == c.id, dependencies.depends_on_id.in_(text_items("ids")))
    .correlate(schema.tasks)
    .scalar_subquery()
)
_GIVE_UP = (
    update(schema.tasks)
    .where(_blocked, c.id.in_(select(dependencies.task_id).where(dependencies.depends_on_id.in_(text_items("ids")))))
    .values(
        status=case(
            (c.on_dependency_failure == DependencyPolicy.FAIL, status(TaskStatus.FAILED)),
            else_=status(TaskStatus.CANCELLED),
        ),
        completed_at=now,
        error_message=literal_column("'a task it depends on did not complete: '", Text).concat(_culprit),
        version=c.version + number("1"),
    )
    .returning(c.id)
)


def hold(run: Executor, ids: Sequence[str], *, deep: bool) -> None:
    """Keeps others from changing these tasks and what waits for them, where others could; `deep`, all the way down.

    Limits and schedules that may have to follow are held, too.
    """
    if not run.holding:
        return
    level = list(dict.fromkeys(ids))
    # Most tasks have nothing to do with others. Of those that have, none is held by this: limits and schedules come first.
    if len(level) == 1:
        alone = 1 if run.one(_ALONE, {"id": level[0]}) is not None else 0
    else:
        alone = len(run.all(_ALL_ALONE, {"ids": codec.encode(level)}))
    if alone == len(level):
        return
    held: dict[str, None] = {}
    keys: set[str | None] = set()
    names: set[str | None] = set()
    steps = 0
    while level:
        held.update(dict.fromkeys(level))
        found = run.all(_PEEK, {"ids": codec.encode(level)})
        keys.update(key for _, _, key, _ in found)
        names.update(name for _, _, _, name in found)
        awaited = [id for id, awaited, _, _ in found if awaited] if deep or not steps else []
        level = [id for (id,) in run.all(_DEPENDENTS, {"ids": codec.encode(awaited)}) if id not in held] if awaited else []
        steps += 1
    limits.hold(run, keys)
    hold_schedules(run, names)
    run.hold(_HOLD, {"ids": codec.encode(list(held))})


def hold_schedules(run: Executor, names: Iterable[str | None]) -> None:
    """Keeps others from moving these schedules on."""
    wanted = sorted({name for name in names if name is not None})
    if wanted:
        run.hold(_HELD_SCHEDULES, {"names": codec.encode(wanted)})


def free(run: Executor, done: Sequence[str]) -> set[str]:
    """Lets go on what waited for completed tasks only; the concurrency keys under which there is more to let in now."""
    if not done:
        return set()
    freed = run.all(_FREE, {"ids": codec.encode(list(done)), "now": run.now})
    return {key for key, unmet in freed if key is not None and not unmet}


def give_up(run: Executor, dead: Iterable[str]) -> None:
    """Ends what waited for failed or cancelled tasks, each by its own policy, and so on down."""
    ended = list(dead)
    while ended:
        ended = [id for (id,) in run.all(_GIVE_UP, {"ids": codec.encode(ended), "now": run.now})]
