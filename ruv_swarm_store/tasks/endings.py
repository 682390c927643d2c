"""How an attempt, or a task, ends: completed, failed, given back, cancelled, taken back, put back into the queue."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Executable, Text, and_, cast, func, literal_column, not_, null, or_, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, parameter, text_items, text_rows
from ruv_swarm_store.entities import Task, TaskStatus
from ruv_swarm_store.errors import Conflict, NotFound
from ruv_swarm_store.schema import LEASED
from ruv_swarm_store.tasks import limits, relations, schedules
from ruv_swarm_store.tasks.rows import (
    FAILURES,
    TASKS,
    by_id,
    c,
    changed,
    dependencies,
    fenced,
    leased,
    now,
    number,
    status,
    unfinished,
    why_not,
)

log = logging.getLogger(__name__)

BATCH = 100
"""Most expired leases taken back in one transaction."""

_these = c.id.in_(text_items("ids"))
_THESE = select(*TASKS.columns).where(_these)
_STATE = select(*TASKS.columns).where(by_id)

START = changed(by_id, fenced, c.status == TaskStatus.ASSIGNED, status=status(TaskStatus.RUNNING), started_at=now)
_COMPLETED = {
    "status": status(TaskStatus.COMPLETED),
    "result": parameter("result", schema.Json()),
    "completed_at": now,
    "lease_expires_at": null(),
}
COMPLETE_ALONE = changed(by_id, fenced, leased, c.awaited == number("0"), c.concurrency_key.is_(None), **_COMPLETED)
"""Completes a task that concerns no other."""
_COMPLETE = changed(by_id, fenced, leased, **_COMPLETED)
_item = cast(text_rows("items").c.value, schema.Json())
_item_id = _item.op("->>")(literal_column("'id'"))
_item_fence = cast(_item.op("->>")(literal_column("'fence'")), schema.Int64)
_COMPLETE_THESE = changed(
    c.id == _item_id,
    or_(_item_fence.is_(None), c.fence == _item_fence),
    leased,
    **{**_COMPLETED, "result": _item.op("->")(literal_column("'result'"))},
)
_RETRY = changed(
    by_id,
    fenced,
    leased,
    status=parameter("status", Text),
    run_at=parameter("run_at", schema.Int64),
    retry_count=c.retry_count + parameter("retries", schema.Int64),
    error_message=parameter("error"),
    agent_id=null(),
    lease_expires_at=null(),
)
_END = changed(
    by_id,
    fenced,
    leased,
    status=parameter("status", Text),
    completed_at=now,
    lease_expires_at=null(),
    error_message=parameter("error"),
)
_CANCELLED = {"status": status(TaskStatus.CANCELLED), "completed_at": now, "lease_expires_at": null()}
_asked = {"cancel_requested_at": func.coalesce(c.cancel_requested_at, now)}
_roots = select(c.id).where(_these).cte("tree", recursive=True)
_tree = _roots.union(select(c.id).join(_roots, c.parent_task_id == _roots.c.id))
_in_tree = c.id.in_(select(_tree.c.id))
_TREE = select(_tree.c.id)
_CANCEL = {tree: changed(where, unfinished, **_CANCELLED) for tree, where in ((False, _these), (True, _in_tree))}
_CANCEL_FREE = {tree: changed(where, unfinished, not_(leased), **_CANCELLED) for tree, where in ((False, _these), (True, _in_tree))}
_ASK = {tree: changed(where, leased, **_asked) for tree, where in ((False, _these), (True, _in_tree))}

_expired = and_(leased, c.lease_expires_at <= now)
_alone = and_(c.awaited == number("0"), c.concurrency_key.is_(None))
EXPIRED = select(c.id).where(_expired).limit(number("1"))
_EXPIRED_ALONE = (
    select(*TASKS.columns)
    .where(_expired, _alone, c.position > parameter("after", schema.Int64))
    .order_by(c.position)
    .limit(number(str(BATCH)))
    .with_for_update(skip_locked=True, key_share=True)
)
_EXPIRED_RELATED = (
    select(c.id, c.position)
    .where(_expired, not_(_alone), c.position > parameter("after", schema.Int64))
    .order_by(c.position)
    .limit(number(str(BATCH)))
)
_HELD_AND_EXPIRED = select(*TASKS.columns).where(_these, _expired).order_by(c.position)
_AGENTS = select(schema.agents.c.id).where(schema.agents.c.id.in_(text_items("agents"))).order_by(schema.agents.c.id)
_of_agents = and_(leased, c.agent_id.in_(text_items("agents")))
_IDS_OF_AGENTS = select(c.id).where(_of_agents)
_HELD_BY_AGENTS = select(*TASKS.columns).where(_of_agents)

_other = schema.tasks.alias("other")
_OPEN_NEEDS = (
    select(_other.c.id, _other.c.status)
    .select_from(schema.task_dependencies.join(_other, _other.c.id == dependencies.depends_on_id))
    .where(dependencies.task_id == parameter("id"), _other.c.status != TaskStatus.COMPLETED)
    .order_by(_other.c.position)
)
_needs = select(c.id).where(_these).union(select(dependencies.depends_on_id).where(dependencies.task_id.in_(text_items("ids"))))
_WITH_NEEDS = select(c.position).where(c.id.in_(_needs)).order_by(c.position)
_REQUEUE = changed(
    by_id,
    c.status.in_((TaskStatus.FAILED, TaskStatus.CANCELLED)),
    status=parameter("status", Text),
    run_at=parameter("run_at", schema.Int64),
    unmet=parameter("unmet", schema.Int64),
    retry_count=number("0"),
    completed_at=null(),
    agent_id=null(),
    result=null(),
    error_message=null(),
    assigned_at=null(),
    started_at=null(),
    cancel_requested_at=null(),
)


class Ending:
    """Tasks that end in one transaction, and what follows for others; `settle` it before the transaction ends."""

    def __init__(self, run: Executor) -> None:
        self.run = run
        self._ended: list[Task] = []
        self._moved: set[str] = set()

    def fail(self, task: Task, reason: str, *, delay: int | None) -> None:
        """Ends an attempt: the task comes back after `delay` milliseconds, or with None is failed for good."""
        if task.cancel_requested_at is not None:
            self._end(task, TaskStatus.CANCELLED, reason)
        elif delay is None:
            self._end(task, TaskStatus.FAILED, reason)
        else:
            self._give_back(task, reason, retries=1, delay=delay)
        self.run.insert(FAILURES.insertion, (task.id, task.fence, task.agent_id, reason, self.run.now))

    def lose(self, task: Task, reason: str) -> None:
        """Ends the attempt of whoever lost its lease; it counts as a retry."""
        self.fail(task, reason, delay=0 if task.retry_count < task.max_retries else None)

    def release(self, task: Task, delay: int) -> None:
        """Gives a held task back unharmed, for `delay` milliseconds later."""
        if task.cancel_requested_at is not None:
            self._end(task, TaskStatus.CANCELLED, task.error_message)
        else:
            self._give_back(task, task.error_message, retries=0, delay=delay)

    def add(self, tasks: Iterable[Task]) -> None:
        """Takes in tasks that have just been completed or cancelled."""
        self._ended.extend(tasks)

    def _give_back(self, task: Task, reason: str | None, *, retries: int, delay: int) -> None:
        state = TaskStatus.SCHEDULED if delay else TaskStatus.PENDING
        if task.concurrency_key is not None:
            self._moved.add(task.id)
            state = TaskStatus.SCHEDULED if delay else TaskStatus.BLOCKED  # until its limit lets it in
        params = {"status": state.value, "run_at": self.run.now + delay if delay else task.run_at, "retries": retries, "error": reason}
        self._change(_RETRY, {"id": task.id, "fence": task.fence}, "given back", params)

    def _end(self, task: Task, state: TaskStatus, reason: str | None) -> None:
        self._change(_END, {"id": task.id, "fence": task.fence}, "ended", {"status": state.value, "error": reason, "now": self.run.now})

    def _change(self, statement: Executable, key: dict[str, Any], verb: str, params: dict[str, Any]) -> None:
        row = self.run.one(statement, {**key, **params})
        if row is None:
            raise _refusal(self.run, key, verb)
        self._ended.append(TASKS.load(row))

    def settle(self) -> list[Task]:
        """Lets go on, or ends, what waited for these tasks; returns them in the order in which they ended."""
        awaited = [task for task in self._ended if task.awaited]
        keys: set[str | None] = {task.concurrency_key for task in self._ended}
        keys |= relations.free(self.run, [task.id for task in awaited if task.status is TaskStatus.COMPLETED])
        relations.give_up(self.run, [task.id for task in awaited if task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED)])
        schedules.follow(self.run, [(task.schedule, task.fence, task.run_at) for task in self._ended], ran=False)
        limits.balance(self.run, keys)
        if self._moved:
            rows = self.run.all(_THESE, {"ids": codec.encode(sorted(self._moved))})
            moved = {task.id: task for task in TASKS.load_all(rows)}
            return [moved.get(task.id, task) for task in self._ended]
        return self._ended


def _refusal(run: Executor, key: dict[str, Any], verb: str) -> Exception:
    found = run.one(_STATE, {"id": key["id"]})
    return missing(key["id"]) if found is None else why_not(TASKS.load(found), key["fence"], verb, LEASED)


def held(run: Executor, keys: Sequence[dict[str, Any]], verb: str) -> list[Task]:
    """These tasks, which must be under their leases; nobody else ends them until the transaction does."""
    ids = [key["id"] for key in keys]
    relations.hold(run, ids, deep=True)
    rows = run.all(_STATE, {"id": ids[0]}) if len(ids) == 1 else run.all(_THESE, {"ids": codec.encode(ids)})
    found = {row[0]: row for row in rows}
    tasks = []
    for key in keys:
        if key["id"] not in found:
            raise missing(key["id"])
        task = TASKS.load(found[key["id"]])
        if task.status not in LEASED or (key["fence"] is not None and task.fence != key["fence"]):
            raise why_not(task, key["fence"], verb, LEASED)
        tasks.append(task)
    return tasks


def complete(run: Executor, results: Sequence[tuple[dict[str, Any], str | None]]) -> list[Task]:
    """Completes held tasks, given by their leases, with their results."""
    relations.hold(run, [key["id"] for key, _ in results], deep=False)
    if len(results) == 1:
        [(key, result)] = results
        row = run.one(_COMPLETE, {**key, "result": result, "now": run.now})
        if row is None:
            raise _refusal(run, key, "completed")
        return _settled(run, [TASKS.load(row)])
    items = [{**key, "result": msgspec.Raw(result.encode())} if result is not None else key for key, result in results]
    done = {task.id: task for task in TASKS.load_all(run.all(_COMPLETE_THESE, {"items": codec.encode(items), "now": run.now}))}
    tasks = []
    for key, _ in results:
        if (task := done.pop(key["id"], None)) is None:
            raise _refusal(run, key, "completed")
        tasks.append(task)
    return _settled(run, tasks)


def _settled(run: Executor, tasks: Iterable[Task]) -> list[Task]:
    ending = Ending(run)
    ending.add(tasks)
    return ending.settle()


def cancel(run: Executor, ids: Sequence[str], *, tree: bool, cooperative: bool) -> list[Task]:
    """Cancels tasks, with what is below them if `tree`; `cooperative` only asks for it where an agent holds one."""
    if run.holding:
        whole = [id for (id,) in run.all(_TREE, {"ids": codec.encode(list(ids))})] if tree else ids
        relations.hold(run, whole, deep=True)
    params = {"ids": codec.encode(list(ids)), "now": run.now}
    asked = TASKS.load_all(run.all(_ASK[tree], params)) if cooperative else []
    cancelled = TASKS.load_all(run.all((_CANCEL_FREE if cooperative else _CANCEL)[tree], params))
    ending = Ending(run)
    ending.add(sorted(cancelled, key=lambda task: task.position))
    return sorted([*asked, *ending.settle()], key=lambda task: task.position)


def rescue(run: Executor, after: int) -> tuple[list[Task], int | None]:
    """Takes back a batch of tasks whose lease has expired, those beyond a position; and where to go on from, if there may be more."""
    rows = run.all(_EXPIRED_ALONE, {"now": run.now, "after": after})
    return _take_back(run, rows, "the lease expired"), rows[-1][_POSITION] if len(rows) == BATCH else None


def rescue_related(run: Executor, after: int) -> tuple[list[Task], int | None]:
    """`rescue`, for tasks others wait for or are limited with."""
    found = run.all(_EXPIRED_RELATED, {"now": run.now, "after": after})
    if not found:
        return [], None
    ids = [id for id, _ in found]
    relations.hold(run, ids, deep=True)
    rows = run.all(_HELD_AND_EXPIRED, {"ids": codec.encode(ids), "now": run.now})
    return _take_back(run, rows, "the lease expired"), found[-1][1] if len(found) == BATCH else None


_POSITION = list(TASKS.fields).index("position")


def take_from(run: Executor, agents: Sequence[str], reason: str) -> list[Task]:
    """Takes back every task these agents hold: each goes back to the queue, or fails when its retries are spent."""
    params = {"agents": codec.seal(list(agents), "agent ids")[1]}
    run.hold(_AGENTS, params)  # nobody claims as one of them meanwhile
    if run.holding and (ids := [id for (id,) in run.all(_IDS_OF_AGENTS, params)]):
        relations.hold(run, ids, deep=True)
    return _take_back(run, run.all(_HELD_BY_AGENTS, params), reason)


def _take_back(run: Executor, rows: Sequence[Sequence[Any]], reason: str) -> list[Task]:
    ending = Ending(run)
    # A row damaged from outside stays where it is: it must not keep the others from being taken back.
    tasks = TASKS.load_all(rows, lambda error: log.error("%s", error))
    for task in sorted(tasks, key=lambda task: task.position):
        ending.lose(task, reason)
    return ending.settle()


def requeue(run: Executor, ids: Sequence[str], delay: int) -> list[Task]:
    """Puts failed and cancelled tasks back into the queue, older ones first."""
    encoded = codec.encode(list(ids))
    found = {task.id: task for task in TASKS.load_all(run.all(_THESE, {"ids": encoded}))}
    for id in ids:
        if id not in found:
            raise missing(id)
    limited = limits.hold(run, [task.concurrency_key for task in found.values()])
    run.hold(_WITH_NEEDS, {"ids": encoded})
    run_at = run.now + delay if delay else None
    for task in sorted(found.values(), key=lambda task: task.position):
        needs = run.all(_OPEN_NEEDS, {"id": task.id})
        if dead := [(id, state) for id, state in needs if state in (TaskStatus.FAILED, TaskStatus.CANCELLED)]:
            raise Conflict(
                f"task {task.id!r} depends on {dead[0][0]!r}, which is {dead[0][1]}",
                hint="Requeue that one first, or both together with requeue_many",
                id=task.id,
                depends_on=dead[0][0],
            )
        state = TaskStatus.SCHEDULED if delay else TaskStatus.PENDING
        if needs or (task.concurrency_key is not None and not delay):
            state = TaskStatus.BLOCKED
        try:
            row = run.one(_REQUEUE, {"id": task.id, "status": state.value, "run_at": run_at, "unmet": len(needs)})
        except Conflict as error:
            raise Conflict(
                f"task {task.id!r} cannot be requeued: another one that is not finished has its unique key {task.unique_key!r}",
                hint="Wait for that one's end, or cancel it",
                kind="unique",
                id=task.id,
            ) from error
        if row is None:
            now_ = run.one(_STATE, {"id": task.id})
            raise (
                missing(task.id) if now_ is None else why_not(TASKS.load(now_), None, "requeued", (TaskStatus.FAILED, TaskStatus.CANCELLED))
            )
    limits.balance(run, {task.concurrency_key for task in found.values()} | limited)
    back = {task.id: task for task in TASKS.load_all(run.all(_THESE, {"ids": encoded}))}
    return [back[id] for id in ids]


def missing(id: str) -> NotFound:
    """What to raise for a task that is not there."""
    return NotFound(f"no row {id!r} in tasks", id=id)
