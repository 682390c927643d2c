"""What the tasks' statements have in common: their mappings, conditions and parameters, and what a refusal means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Executable, Select, and_, literal_column, or_, select, update
from sqlalchemy.sql.selectable import CTE

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import constant, parameter
from ruv_swarm_store.entities import Pause, Schedule, Task, TaskFailure, TaskStatus
from ruv_swarm_store.errors import Conflict, InvalidTransition, LeaseLost
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.schema import FINAL, LEASED, OPEN

TASKS = Mapping(schema.tasks, Task)
FAILURES = Mapping(schema.task_failures, TaskFailure, key="task_id")
SCHEDULES = Mapping(schema.task_schedules, Schedule, key="name")
PAUSES = Mapping(schema.task_pauses, Pause, key="type")

c = schema.tasks.c
dependencies = schema.task_dependencies.c
number: Any = literal_column
"""A number that stands in the statement's text."""

now: Any = parameter("now", schema.Int64)
by_id = c.id == parameter("id")
fenced = or_(parameter("fence", schema.Int64).is_(None), c.fence == parameter("fence", schema.Int64))
pending = c.status == TaskStatus.PENDING
leased = c.status.in_(LEASED)
unfinished = c.status.in_(OPEN)
final = c.status.in_(FINAL)
due = and_(c.status == TaskStatus.SCHEDULED, c.run_at <= now)
throttled = and_(c.concurrency_key.is_not(None), c.status == TaskStatus.BLOCKED, c.unmet == number("0"))
"""Kept back by a concurrency limit and nothing else."""
best_first = (c.priority.desc(), c.position)


def status(value: TaskStatus) -> Any:
    """A status that stands in the statement's text."""
    return constant(c.status, value)


def changed(*where: ColumnElement[bool], **values: Any) -> Executable:
    """UPDATE of tasks to their next version; returns the rows."""
    return update(schema.tasks).where(*where).values(version=c.version + number("1"), **values).returning(*TASKS.columns)


def picked(rows: Select[*tuple[Any, ...]], name: str = "picked") -> CTE:
    """What a SELECT finds, looked up once however often it is asked for."""
    return rows.cte(name).prefix_with("MATERIALIZED")


def among(rows: CTE) -> ColumnElement[bool]:
    """Whether a task is one of those picked by their positions."""
    return c.position.in_(select(rows.c.position))


def lease(task: Task | str) -> dict[str, Any]:
    """The parameters of `by_id` and `fenced`."""
    return {"id": task.id, "fence": task.fence} if isinstance(task, Task) else {"id": codec.text(task, "task id"), "fence": None}


_EDGES: dict[TaskStatus, str] = {
    TaskStatus.PENDING: "claim, cancel",
    TaskStatus.SCHEDULED: "cancel; it can be claimed once it is due",
    TaskStatus.BLOCKED: "cancel; it can be claimed once its dependencies have completed and its concurrency limit lets it in",
    TaskStatus.ASSIGNED: "start, heartbeat, complete, fail, release, snooze, cancel",
    TaskStatus.RUNNING: "heartbeat, complete, fail, release, snooze, cancel",
    TaskStatus.COMPLETED: "nothing: this state is final",
    TaskStatus.FAILED: "requeue",
    TaskStatus.CANCELLED: "requeue",
}


def why_not(task: Task, fence: int | None, verb: str, allowed: Sequence[TaskStatus]) -> Conflict:
    """What to raise when a task, as it is now, did not let a verb be done."""
    # Fence 0 is a task before its first claim: it has no lease to lose.
    if fence is not None and (fence != task.fence or (fence > 0 and task.status not in (*LEASED, *FINAL))):
        return LeaseLost(
            f"the lease on task {task.id!r} was lost: it is {task.status} now",
            hint="Drop what was done under it; heartbeat more often, or claim with a longer lease",
            id=task.id,
            fence=fence,
            actual=task.fence,
        )
    return InvalidTransition(
        f"task {task.id!r} is {task.status} and cannot be {verb}",
        hint=f"Only a task that is {' or '.join(allowed)} can; from {task.status} it allows {_EDGES[task.status]}",
        id=task.id,
        actual=task.status,
        allowed=list(allowed),
    )
