"""What tasks have to do with each other: who waits for whom, and what must be held while one of them ends.

Locks are taken in one order by everybody: concurrency limits by key, schedules by name, tasks by position. A task depends
only on older ones, so each waits for locks in the same direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    SelectBase,
    Text,
    and_,
    case,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    update,
)

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, parameter, text_items
from ruv_swarm_store.entities import DependencyPolicy, TaskStatus
from ruv_swarm_store.tasks import limits
from ruv_swarm_store.tasks.rows import by_id, c, dependencies, now, number, status, unfinished

_blocked = c.status == TaskStatus.BLOCKED
_schedules = schema.task_schedules.c


def _affected(*, deep: bool) -> SelectBase:
    """The ids of these tasks and of what waits for them; `deep`, of what waits for that, and so on down."""
    start = select(c.id).where(c.id.in_(text_items("ids")))
    if not deep:
        return start.union(select(dependencies.task_id).where(dependencies.depends_on_id.in_(text_items("ids"))))
    affected = start.cte("affected", recursive=True)
    affected = affected.union(select(dependencies.task_id).join(affected, dependencies.depends_on_id == affected.c.id))
    return select(affected.c.id)


def _touched(*, deep: bool) -> Executable:
    special = or_(c.concurrency_key.is_not(None), and_(c.schedule.is_not(None), c.status == TaskStatus.SCHEDULED))
    return select(c.concurrency_key, c.schedule).distinct().where(c.id.in_(_affected(deep=deep)), unfinished, special)


def _held(*, deep: bool) -> Select[*tuple[Any, ...]]:
    return select(c.position).where(c.id.in_(_affected(deep=deep)), unfinished).order_by(c.position)


_TOUCHED = {deep: _touched(deep=deep) for deep in (False, True)}
_HELD = {deep: _held(deep=deep) for deep in (False, True)}
_HELD_SCHEDULES = select(_schedules.name).where(_schedules.name.in_(text_items("names"))).order_by(_schedules.name)


def _alone(task: Any) -> ColumnElement[bool]:
    """Whether a task can end without anything else having to follow."""
    waits = and_(task.schedule.is_not(None), task.status == TaskStatus.SCHEDULED)
    return and_(task.awaited == number("0"), task.concurrency_key.is_(None), not_(waits))


_ALONE = select(c.position).where(by_id, _alone(c)).with_for_update(key_share=True)
_one = schema.tasks.alias("one")
# All of them or none: those with relations are held in another order.
_ALL_ALONE = (
    select(c.position)
    .where(
        c.id.in_(text_items("ids")),
        _alone(c),
        not_(exists(select(_one.c.id).where(_one.c.id.in_(text_items("ids")), not_(_alone(_one.c))))),
    )
    .order_by(c.position)
    .with_for_update(key_share=True)
)

# The number of what a task still waits for stands in its row: several of them can end at once, and each finds it right.
_last = c.unmet == number("1")
_FREE = (
    update(schema.tasks)
    .where(_blocked, c.id.in_(select(dependencies.task_id).where(dependencies.depends_on_id == parameter("id"))))
    .values(
        unmet=c.unmet - number("1"),
        status=case(
            (c.unmet > number("1"), status(TaskStatus.BLOCKED)),
            (c.run_at > now, status(TaskStatus.SCHEDULED)),
            (c.concurrency_key.is_not(None), status(TaskStatus.BLOCKED)),
            else_=status(TaskStatus.PENDING),
        ),
        version=c.version + case((_last, number("1")), else_=number("0")),
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
    if len(ids) == 1 and run.one(_ALONE, {"id": ids[0]}) is not None:
        return
    params = {"ids": codec.encode(list(ids))}
    if len(ids) > 1 and len(run.all(_ALL_ALONE, params)) == len(set(ids)):
        return
    touched = run.all(_TOUCHED[deep], params)
    if touched:
        limits.hold(run, [key for key, _ in touched])
        hold_schedules(run, [name for _, name in touched])
    run.hold(_HELD[deep], params)


def hold_schedules(run: Executor, names: Iterable[str | None]) -> None:
    """Keeps others from moving these schedules on."""
    wanted = sorted({name for name in names if name is not None})
    if wanted:
        run.hold(_HELD_SCHEDULES, {"names": codec.encode(wanted)})


def free(run: Executor, done: Iterable[str]) -> set[str]:
    """Lets go on what waited for completed tasks only; the concurrency keys under which there is more to let in now."""
    keys: set[str] = set()
    for id in done:
        keys.update(key for key, unmet in run.all(_FREE, {"id": id, "now": run.now}) if key is not None and not unmet)
    return keys


def give_up(run: Executor, dead: Iterable[str]) -> None:
    """Ends what waited for failed or cancelled tasks, each by its own policy, and so on down."""
    ended = list(dead)
    while ended:
        ended = [id for (id,) in run.all(_GIVE_UP, {"ids": codec.encode(ended), "now": run.now})]
