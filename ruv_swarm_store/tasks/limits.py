"""Concurrency limits: how many tasks of one key may be ready or held at once.

A task with a key counts while it is pending or held: it is admitted then. What finds no room stands blocked, outside the
index a claim reads, and is let in when another leaves; so a claim never counts. The key's row in `task_limits` is the lock:
whoever changes how many are admitted holds it first, then the tasks.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, func, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, parameter, text_items, upsert
from ruv_swarm_store.entities import TaskStatus
from ruv_swarm_store.schema import LEASED
from ruv_swarm_store.tasks.rows import among, best_first, c, number, pending, picked, status, throttled

_l = schema.task_limits.c
_mine = c.concurrency_key == parameter("key_")
_LIMITED = select(_l.key).where(_l.key.in_(text_items("keys"))).order_by(_l.key).with_for_update(key_share=True)
_AT_ONCE = select(_l.at_once).where(_l.key == parameter("key_")).with_for_update(key_share=True)
_ALL = select(_l.key, _l.at_once).order_by(_l.key)
_SET = upsert(
    schema.task_limits,
    {"key": parameter("key_"), "at_once": parameter("at_once_")},
    on=["key"],
    update={"at_once": parameter("at_once_")},
    returning=[_l.key],
)
_LIFT = delete(schema.task_limits).where(_l.key == parameter("key_"))
_ADMITTED = select(func.count()).where(_mine, c.concurrency_key.is_not(None), c.status.in_((TaskStatus.PENDING, *LEASED)))
_next = picked(
    select(c.position).where(_mine, throttled).order_by(*best_first).limit(parameter("free", schema.Int64)).with_for_update(key_share=True)
)
_ADMIT = update(schema.tasks).where(among(_next), throttled).values(status=status(TaskStatus.PENDING), version=c.version + number("1"))
_ADMIT_ALL = update(schema.tasks).where(_mine, throttled).values(status=status(TaskStatus.PENDING), version=c.version + number("1"))
_surplus = picked(
    select(c.position)
    .where(_mine, pending)
    .order_by(c.priority, c.position.desc())
    .limit(parameter("free", schema.Int64))
    .with_for_update(key_share=True)
)
_KEEP_BACK = update(schema.tasks).where(among(_surplus), pending).values(status=status(TaskStatus.BLOCKED), version=c.version + number("1"))


def hold(run: Executor, keys: Iterable[str | None]) -> set[str]:
    """Which of these keys are limited. Nobody else changes how many are admitted under those until the transaction ends."""
    wanted = sorted({key for key in keys if key is not None})
    return {key for (key,) in run.all(_LIMITED, {"keys": codec.encode(wanted)})} if wanted else set()


def balance(run: Executor, keys: Iterable[str | None]) -> None:
    """Lets in what there is room for under these keys, best first, or sends back what is too much and not held yet."""
    for key in sorted({key for key in keys if key is not None}):
        limit = run.one(_AT_ONCE, {"key_": key})
        if limit is None:
            run.run(_ADMIT_ALL, {"key_": key})
            continue
        admitted = run.one(_ADMITTED, {"key_": key}) or (0,)
        room = limit[0] - admitted[0]
        if room:
            run.run(_ADMIT if room > 0 else _KEEP_BACK, {"key_": key, "free": abs(room)})


def set_limit(run: Executor, key: str, at_once: int | None) -> None:
    """Limits a key, or lifts its limit."""
    run.lock("task_limits")  # two who settle the tasks would wait for each other
    known = hold(run, [key])
    if at_once is None:
        run.run(_LIFT, {"key_": key})
    else:
        run.run(_SET, {"key_": key, "at_once_": at_once})
        if not known:
            # Who is adding a task of this key may have found no limit: see `Adding`. From here on everybody finds one.
            run.settle(schema.tasks)
    balance(run, [key])


def all_limits(run: Executor) -> dict[str, int]:
    """Every limit, by key."""
    return {row[0]: row[1] for row in run.all(_ALL)}
