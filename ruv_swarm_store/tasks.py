"""Tasks: a durable queue with leases, fencing, retries, dependencies and trees."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from msgspec import Struct, structs
from sqlalchemy import ColumnElement, Executable, Text, and_, case, exists, func, literal_column, not_, null, or_, select, union_all, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, duration, milliseconds, new_id, new_ids
from ruv_swarm_store.engines import Executor, constant, insert_into, number_items, parameter, text_items
from ruv_swarm_store.entities import Agent, AgentStatus, DependencyPolicy, NewTask, Task, TaskFailure, TaskStats, TaskStatus
from ruv_swarm_store.errors import Conflict, InvalidTransition, InvalidValue, LeaseLost, NotFound
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import Repository
from ruv_swarm_store.schema import FINAL, LEASED, OPEN

log = logging.getLogger(__name__)

TASKS = Mapping(schema.tasks, Task)
FAILURES = Mapping(schema.task_failures, TaskFailure, key="task_id")

PROMOTION_BATCH = 500
"""Most due tasks moved into the queue in one transaction."""

LONGEST_PAUSE = 1.0
"""Seconds after which whoever waits looks around anyway: for expired leases, and for a clock that was set."""

_t = schema.tasks
_c = schema.tasks.c
_dependencies = schema.task_dependencies.c


class Backoff(Struct, frozen=True):
    """How long a failed task waits: `initial` seconds, times `factor` for each retry, at most `maximum`.

    `jitter` spreads each wait by up to that share of it either way, so that tasks that failed together do not come back
    together (exponential back-off with jitter).
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.1

    def seconds(self, retries: int) -> float:
        """The wait before retry number `retries + 1`."""
        wait = min(self.initial * self.factor ** min(retries, 64), self.maximum)
        return wait * random.uniform(1 - self.jitter, 1 + self.jitter)


DEFAULT_BACKOFF = Backoff()


_pending = _c.status == TaskStatus.PENDING
_leased = _c.status.in_(LEASED)
_id = _c.id == parameter("id")
_fence = or_(parameter("fence", schema.Int64).is_(None), _c.fence == parameter("fence", schema.Int64))
_now: Any = parameter("now", schema.Int64)
_ready_order = (_c.priority.desc(), _c.position)
_due = and_(_c.status == TaskStatus.SCHEDULED, _c.run_at <= _now)
_agent_lives = exists().where(schema.agents.c.id == parameter("agent"), schema.agents.c.status != AgentStatus.TERMINATED)


# Most tasks are plain: ready at once, related to nothing. Binding less makes adding them cheaper.
_PLAIN = (_c.id, _c.type, _c.payload, _c.created_at, _c.priority, _c.max_retries)
_SPECIAL = (_c.status, _c.parent_task_id, _c.run_at, _c.unique_key, _c.on_dependency_failure)
_NEW: dict[str, Any] = {"fence": 0, "retry_count": 0, "version": 1}
_ADD_PLAIN = insert_into(_t, *_PLAIN, **_NEW, status=TaskStatus.PENDING, on_dependency_failure=DependencyPolicy.CANCEL)
_ADD = insert_into(_t, *_PLAIN, *_SPECIAL, **_NEW)


def _changed(*where: ColumnElement[bool], **values: Any) -> Executable:
    return update(_t).where(*where).values(version=_c.version + 1, **values).returning(*TASKS.columns)


_CLAIM = {
    "status": constant(_c.status, TaskStatus.ASSIGNED),
    "agent_id": parameter("agent"),
    "assigned_at": _now,
    "started_at": null(),
    "lease_expires_at": parameter("expires"),
    "fence": _c.fence + 1,
}
_FREE = {"agent_id": null(), "lease_expires_at": null()}


def _claim(ready: ColumnElement[bool], *guards: ColumnElement[bool]) -> Executable:
    first = select(_c.position).where(ready).order_by(*_ready_order).limit(1).scalar_subquery()
    return _changed(_c.position == first, _agent_lives, *guards, **_CLAIM)


# A due task must not be passed over: while there is one the claim matches nothing, and the slow way promotes it first.
_nothing_due = not_(exists().where(_due))
_of_type = and_(_pending, _c.type == parameter("type"))
_CLAIM_ANY = _claim(_pending, _nothing_due)
_CLAIM_TYPE = _claim(_of_type, _nothing_due)
_CANDIDATES = select(_c.priority, _c.position).where(_pending).order_by(*_ready_order).limit(parameter("limit"))
_CANDIDATES_OF_TYPE = select(_c.priority, _c.position).where(_of_type).order_by(*_ready_order).limit(parameter("limit"))
_CLAIM_THESE = _changed(_pending, _agent_lives, _c.position.in_(number_items("positions")), **_CLAIM)
_PROMOTE = (
    update(_t)
    .where(_c.position.in_(select(_c.position).where(_due).order_by(_c.run_at).limit(PROMOTION_BATCH)))
    .values(status=constant(_c.status, TaskStatus.PENDING), version=_c.version + 1)
)
_LOOK = select(
    select(schema.agents.c.status).where(schema.agents.c.id == parameter("agent")).scalar_subquery(),
    exists().where(_due),
    exists().where(_pending),
)
_NEXT_DUE = select(func.min(_c.run_at)).where(_c.status == TaskStatus.SCHEDULED)

_START = _changed(_id, _fence, _c.status == TaskStatus.ASSIGNED, status=constant(_c.status, TaskStatus.RUNNING), started_at=_now)
_HEARTBEAT = update(_t).where(_id, _fence, _leased).values(lease_expires_at=parameter("expires"))
_COMPLETE = {
    "status": constant(_c.status, TaskStatus.COMPLETED),
    "result": parameter("result", schema.Json()),
    "completed_at": _now,
    "lease_expires_at": null(),
}
_has_dependents = exists().where(_dependencies.depends_on_id == parameter("id"))
_COMPLETE_ALONE = _changed(_id, _fence, _leased, not_(_has_dependents), **_COMPLETE)
_COMPLETE_AND_SETTLE = _changed(_id, _fence, _leased, **_COMPLETE)
_RETRY = _changed(
    _id,
    _leased,
    status=parameter("status", Text),
    run_at=parameter("run_at"),
    retry_count=_c.retry_count + parameter("retries"),
    error_message=parameter("error"),
    **_FREE,
)
_FAIL = _changed(
    _id,
    _leased,
    status=constant(_c.status, TaskStatus.FAILED),
    completed_at=_now,
    lease_expires_at=null(),
    error_message=parameter("error"),
)
_EXPIRED = select(*TASKS.columns).where(_leased, _c.lease_expires_at <= _now)
_HELD_BY = select(*TASKS.columns).where(_leased, _c.agent_id.in_(text_items("agents")))
_open = _c.status.in_(OPEN)
_CANCEL = {"status": constant(_c.status, TaskStatus.CANCELLED), "completed_at": _now, "lease_expires_at": null()}
_CANCEL_ONE = _changed(_id, _open, **_CANCEL)
_tree = select(_c.id).where(_id).cte("tree", recursive=True)
_tree = _tree.union(select(_c.id).join(_tree, _c.parent_task_id == _tree.c.id))
_CANCEL_TREE = _changed(_c.id.in_(select(_tree.c.id)), _open, **_CANCEL)

_other = schema.tasks.alias("other")
_waiting = and_(
    _c.status == TaskStatus.BLOCKED, _c.id.in_(select(_dependencies.task_id).where(_dependencies.depends_on_id.in_(text_items("ids"))))
)
_unmet = exists(
    select(1)
    .select_from(schema.task_dependencies.join(_other, _other.c.id == _dependencies.depends_on_id))
    .where(_dependencies.task_id == _c.id, _other.c.status != TaskStatus.COMPLETED)
)
_UNBLOCK = (
    update(_t)
    .where(_waiting, not_(_unmet))
    .values(
        status=case((_c.run_at > _now, constant(_c.status, TaskStatus.SCHEDULED)), else_=constant(_c.status, TaskStatus.PENDING)),
        version=_c.version + 1,
    )
)
_culprit = (
    select(func.min(_dependencies.depends_on_id))
    .where(_dependencies.task_id == _c.id, _dependencies.depends_on_id.in_(text_items("ids")))
    .correlate(_t)
    .scalar_subquery()
)
_GIVE_UP = (
    update(_t)
    .where(_waiting)
    .values(
        status=case(
            (_c.on_dependency_failure == DependencyPolicy.FAIL, constant(_c.status, TaskStatus.FAILED)),
            else_=constant(_c.status, TaskStatus.CANCELLED),
        ),
        completed_at=_now,
        error_message=literal_column("'a task it depends on did not complete: '", Text).concat(_culprit),
        version=_c.version + 1,
    )
    .returning(_c.id)
)
_DEPENDENCY_STATES = select(_c.id, _c.status).where(_c.id.in_(text_items("ids")))
_STATUS = select(_c.status).where(_id)
_LIVE_KEY = select(*TASKS.columns).where(_c.unique_key == parameter("unique_key"), _c.unique_key.is_not(None), not_(_c.status.in_(FINAL)))
_DEPEND = insert_into(schema.task_dependencies)
_FAILURES_OF = select(*FAILURES.columns).where(schema.task_failures.c.task_id == parameter("id")).order_by(schema.task_failures.c.fence)


# One SELECT for each partial index, so that a long history costs no more than its entries in one of them.
_COUNTS = union_all(
    *(
        select(_c.type, constant(_c.status, status).label("status"), func.count().label("count"))
        .where(_c.status == status)
        .group_by(_c.type)
        for status in (TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.BLOCKED)
    ),
    *(
        select(_c.type, _c.status, func.count().label("count")).where(_c.status.in_(statuses)).group_by(_c.type, _c.status)
        for statuses in (LEASED, FINAL)
    ),
)
_AGES = select(
    select(func.min(_c.created_at)).where(_pending).scalar_subquery(),
    select(func.count())
    .where(_c.status.in_(FINAL), _c.status == TaskStatus.COMPLETED, _c.completed_at > parameter("since"))
    .scalar_subquery(),
)

_EDGES: dict[TaskStatus, str] = {
    TaskStatus.PENDING: "claim, cancel",
    TaskStatus.SCHEDULED: "cancel; it can be claimed once it is due",
    TaskStatus.BLOCKED: "cancel; it can be claimed once its dependencies have completed",
    TaskStatus.ASSIGNED: "start, heartbeat, complete, fail, release, cancel",
    TaskStatus.RUNNING: "heartbeat, complete, fail, release, cancel",
}


class Tasks(Repository[Task]):
    """The task queue.

    `claim` gives one agent a lease on a task; the verbs that follow take the claimed `Task` and check its fencing token
    in the same statement. They accept a bare id too, and then only the state is checked.
    """

    mapping = TASKS
    managed = (
        "created_at", "status", "agent_id", "parent_task_id", "result", "error_message", "run_at", "assigned_at", "started_at",
        "completed_at", "lease_expires_at", "fence", "retry_count",
    )  # fmt: skip

    def delete(self, id: Task | str | int) -> bool:
        """Removes a task's row; whether there was one. Raises `Conflict` while an agent holds it or others refer to it."""
        return self.delete_many([id]) > 0

    def delete_many(self, ids: Iterable[Task | str | int]) -> int:
        """Removes tasks, all or none; see `delete`."""
        keys = [TASKS.identity(id) for id in ids]
        with self._scope.transaction() as run:
            for key in keys:
                found = run.one(_STATUS, {"id": key})
                if found is not None and found[0] in LEASED:
                    raise Conflict(
                        f"task {key!r} is {found[0]}", hint="Cancel it first: the agent that holds it must learn of its end", id=key
                    )
            return sum(run.run(self.statements.delete, {"key": key}) for key in keys)

    # Into the queue

    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        priority: int = 5,
        parent: Task | str | None = None,
        depends_on: Iterable[Task | str] = (),
        run_at: Moment | None = None,
        delay: float | None = None,
        unique_key: str | None = None,
        max_retries: int = 3,
        on_dependency_failure: DependencyPolicy | str = DependencyPolicy.CANCEL,
        id: str | None = None,
    ) -> Task:
        """Adds a task, ready now, at `run_at`, after `delay` seconds, or once all of `depends_on` have completed.

        `priority` is 0 to 100, higher first; equal ones go in order of creation. With a `unique_key` that an unfinished
        task has, that task is returned and nothing is added. `max_retries=3` means one first try and three more.
        Raises `InvalidValue` for what cannot be stored and `NotFound` for an unknown parent or dependency.
        """
        copy, text = codec.seal(payload, "payload")
        new = _check(type, copy, text, priority, parent, depends_on, run_at, delay, unique_key, max_retries, on_dependency_failure, id)
        if new.depends_on or new.unique_key is not None:
            with self._scope.transaction() as run:
                return self._add_related(run, new)
        with self._scope.write() as run:
            row = new.row(run.now, new_id(run.now))
            try:
                return new.stored(row, run.insert(_ADD_PLAIN if new.plain else _ADD, row))
            except Conflict as error:
                raise _refused(new, error) from error

    def enqueue_many(self, tasks: Iterable[NewTask | tuple[str, Any]]) -> list[Task]:
        """Adds tasks in order, all or none; each is a `NewTask` or a pair of type and payload. See `enqueue`."""
        checked = _check_many(list(tasks))
        if not checked:
            return []
        with self._scope.transaction() as run:
            if any(new.depends_on or new.unique_key is not None for new in checked):
                return [self._add_related(run, new) for new in checked]
            now, ids = run.now, new_ids(run.now, len(checked))
            plain = all(new.plain for new in checked)
            rows = [new.row(now, id, plain=plain) for new, id in zip(checked, ids, strict=True)]
            try:
                numbers = run.insert_many(_ADD_PLAIN if plain else _ADD, rows)
            except Conflict as error:
                raise _refused(None, error) from error
        return [new.stored(row, position) for new, row, position in zip(checked, rows, numbers, strict=True)]

    def _add_related(self, run: Executor, new: _Checked) -> Task:
        """Adds a task that may stand for one there is, or wait for others."""
        if new.unique_key is not None and (found := run.one(_LIVE_KEY, {"unique_key": new.unique_key})) is not None:
            return TASKS.load(found)
        needs = list(dict.fromkeys(new.depends_on))
        states: dict[str, str] = {}
        if needs:
            states.update((id, status) for id, status in run.all(_DEPENDENCY_STATES, {"ids": codec.encode(needs)}))
        if missing := [id for id in needs if id not in states]:
            raise NotFound(f"no task {missing[0]!r} to depend on", hint="Enqueue it first", id=missing[0])
        blocked = any(status != TaskStatus.COMPLETED for status in states.values())
        row = new.row(run.now, new_id(run.now), plain=False, blocked=blocked)
        try:
            task = new.stored(row, run.insert(_ADD, row))
        except Conflict as error:
            raise _refused(new, error) from error
        if needs:
            run.insert_many(_DEPEND, [(task.id, id) for id in needs])
        if dead := [id for id, status in states.items() if status in (TaskStatus.FAILED, TaskStatus.CANCELLED)]:
            _settle(run, dead=dead)
            return self._reload(run, task.id)
        return task

    def _reload(self, run: Executor, id: str) -> Task:
        row = run.one(self.statements.find, {"key": id})
        if row is None:
            raise self._missing(id)
        return TASKS.load(row)

    # Out of the queue

    def claim(self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0) -> Task | None:
        """The best ready task, now assigned to `agent` for `lease` seconds; None when nothing is ready.

        Best is the highest priority, then the earliest created. `types` restricts it. Atomic over threads, processes and
        machines. Raises `NotFound` for an unknown agent and `InvalidTransition` for a terminated one.
        """
        wanted = _types(types)
        if wanted is not None and len(wanted) > 1:
            return next(iter(self.claim_many(agent, 1, types=wanted, lease=lease)), None)
        statement = _CLAIM_ANY if wanted is None else _CLAIM_TYPE
        who = _agent_id(agent)
        span = duration(lease, "lease")
        with self._scope.write() as run:
            row = run.one(statement, {"agent": who, "type": wanted and wanted[0], "now": run.now, "expires": run.now + span})
        if row is not None:
            return TASKS.load(row)
        return next(iter(self.claim_many(who, 1, types=wanted, lease=lease)), None)

    def claim_many(self, agent: Agent | str, limit: int, *, types: Iterable[str] | None = None, lease: float = 30.0) -> list[Task]:
        """Up to `limit` ready tasks in one go, best first; see `claim`."""
        wanted = _types(types)
        who = _agent_id(agent)
        span = duration(lease, "lease")
        codec.integer(limit, "limit", 1)
        with self._scope.read() as run:
            if not self._anything(run, who):
                return []
        with self._scope.transaction() as run:
            run.run(_PROMOTE, {"now": run.now})
            if wanted is None:
                ready = list(run.all(_CANDIDATES, {"limit": limit}))
            else:
                ready = [row for type in wanted for row in run.all(_CANDIDATES_OF_TYPE, {"type": type, "limit": limit})]
                ready = sorted(ready, key=lambda row: (-row[0], row[1]))[:limit]
            if not ready:
                return []
            positions = codec.encode([position for _, position in ready])
            rows = run.all(_CLAIM_THESE, {"positions": positions, "agent": who, "now": run.now, "expires": run.now + span})
        return sorted(TASKS.load_all(rows), key=lambda task: (-task.priority, task.position))

    def _anything(self, run: Executor, agent: str) -> bool:
        status, due, pending = run.one(_LOOK, {"agent": agent, "now": run.now}) or (None, 0, 0)
        if status is None:
            raise NotFound(f"no agent {agent!r}", hint="Register it before it claims", id=agent)
        if status == AgentStatus.TERMINATED:
            raise InvalidTransition(f"agent {agent!r} is terminated and can claim nothing", hint="Register it again first")
        return bool(due or pending)

    def wait(
        self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0, timeout: float | None = None
    ) -> Task | None:
        """Claims, and while nothing is ready blocks until something is; None after `timeout` seconds.

        Woken by commits of this and other processes and by tasks coming due. Whoever waits also returns expired leases to
        the queue, as `rescue` does. Raises `StoreError` inside a transaction.
        """
        who, wanted = _agent_id(agent), _types(types)
        deadline = None if timeout is None else time.monotonic() + duration(timeout, "timeout") / 1000
        rescued = -math.inf
        while True:
            seen = self._scope.changes()
            if time.monotonic() - rescued >= LONGEST_PAUSE:
                self.rescue()
                rescued = time.monotonic()
            # Looking first keeps those who wait in vain away from the write lock.
            with self._scope.read() as run:
                ready, due, now = self._anything(run, who), (run.one(_NEXT_DUE) or [None])[0], run.now
            if ready and (task := self.claim(who, types=wanted, lease=lease)) is not None:
                return task
            pause = LONGEST_PAUSE if deadline is None else min(LONGEST_PAUSE, deadline - time.monotonic())
            if pause <= 0:
                return None
            if due is not None:
                pause = min(pause, max(due - now, 1) / 1000)
            self._scope.wait(seen, pause)

    # Under a lease

    def start(self, task: Task | str) -> Task:
        """Marks a claimed task as running. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
        key = _lease(task)
        with self._scope.write() as run:
            row = run.one(_START, {**key, "now": run.now})
        return TASKS.load(row) if row is not None else self._explain(key, "started", TaskStatus.ASSIGNED)

    def heartbeat(self, task: Task | str, *, lease: float = 30.0) -> None:
        """Extends the lease to `lease` seconds from now. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
        key = _lease(task)
        span = duration(lease, "lease")
        with self._scope.write() as run:
            if run.run(_HEARTBEAT, {**key, "expires": run.now + span}):
                return
        self._explain(key, "extended", *LEASED)

    def complete(self, task: Task | str, result: Any = None) -> Task:
        """Ends a task with its result and frees what waits for it. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
        key = _lease(task)
        params = {**key, "result": _result(result)}
        with self._scope.write() as run:
            row = run.one(_COMPLETE_ALONE, {**params, "now": run.now})
        if row is None:
            with self._scope.transaction() as run:
                row = run.one(_COMPLETE_AND_SETTLE, {**params, "now": run.now})
                if row is not None:
                    _settle(run, done=[key["id"]])
        return TASKS.load(row) if row is not None else self._explain(key, "completed", *LEASED)

    def complete_many(self, tasks: Iterable[tuple[Task | str, Any]]) -> list[Task]:
        """Completes pairs of task and result, all or none; see `complete`."""
        params = [{**_lease(task), "result": _result(result)} for task, result in tasks]
        done: list[Task] = []
        with self._scope.transaction() as run:
            for one in params:
                row = run.one(_COMPLETE_AND_SETTLE, {**one, "now": run.now})
                if row is None:
                    self._explain(one, "completed", *LEASED)
                done.append(TASKS.load(row))
            _settle(run, done=[task.id for task in done])
        return done

    def fail(
        self,
        task: Task | str,
        error: str | BaseException,
        *,
        retry: bool = True,
        delay: float | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> Task:
        """Ends an attempt. While retries are left the task comes back after `backoff`, or `delay` seconds if given.

        With `retry=False`, or no retries left, it is failed for good, and so or cancelled is what depends on it. The error
        of every attempt is kept: see `failures`. Raises `LeaseLost`, `InvalidTransition` or `NotFound`.
        """
        key = _lease(task)
        reason = _reason(error)
        span = None if delay is None else duration(delay, "delay")
        with self._scope.transaction() as run:
            held = self._held(run, key, "failed")
            if retry and held.retry_count < held.max_retries:
                wait = round(backoff.seconds(held.retry_count) * 1000) if span is None else span
                return _give_back(run, held, reason, retries=1, delay=wait)
            return _fail(run, held, reason)

    def release(self, task: Task | str, *, delay: float = 0.0) -> Task:
        """Returns a claimed task to the queue unharmed; no retry is counted. Raises as `fail` does."""
        key = _lease(task)
        span = duration(delay, "delay")
        with self._scope.transaction() as run:
            held = self._held(run, key, "released")
            return _give_back(run, held, None, retries=0, delay=span)

    def _held(self, run: Executor, key: dict[str, Any], verb: str) -> Task:
        found = self._reload(run, key["id"])
        if found.status not in LEASED or (key["fence"] is not None and found.fence != key["fence"]):
            raise _why_not(found, key["fence"], verb, LEASED)
        return found

    def _explain(self, key: dict[str, Any], verb: str, *allowed: TaskStatus) -> NoReturn:
        raise _why_not(self.get(key["id"]), key["fence"], verb, allowed)

    # Around the queue

    def cancel(self, task: Task | str, *, tree: bool = False) -> list[Task]:
        """Ends a task that is not finished; with `tree`, every unfinished one below it too. Returns what was cancelled.

        An agent that holds one learns it from its next call about it. What depends on a cancelled task fails or is cancelled
        with it. Raises `NotFound`, and without `tree` `InvalidTransition` for a finished task.
        """
        id = str(TASKS.identity(task))
        with self._scope.transaction() as run:
            rows = run.all(_CANCEL_TREE if tree else _CANCEL_ONE, {"id": id, "now": run.now})
            cancelled = sorted(TASKS.load_all(rows), key=lambda task: task.position)
            if not cancelled:
                found = self._reload(run, id)
                if not tree:
                    raise _why_not(found, None, "cancelled", OPEN)
            _settle(run, dead=[task.id for task in cancelled])
        return cancelled

    def rescue(self) -> list[Task]:
        """Takes back tasks whose lease has expired: to the queue while retries are left, else failed. Returns them."""
        with self._scope.read() as run:
            if not run.all(_EXPIRED, {"now": run.now}):
                return []
        with self._scope.transaction() as run:
            return take_back(run, run.all(_EXPIRED, {"now": run.now}), "the lease expired")

    def dead(self) -> list[Task]:
        """The tasks that failed for good, oldest first."""
        return self.where(_c.status.in_(FINAL), _c.status == TaskStatus.FAILED).order_by(_c.completed_at.asc(), _c.position.asc()).all()

    def failures(self, task: Task | str) -> list[TaskFailure]:
        """Why each failed attempt at a task failed, in order."""
        with self._scope.read() as run:
            return FAILURES.load_all(run.all(_FAILURES_OF, {"id": TASKS.identity(task)}))

    def children(self, task: Task | str) -> list[Task]:
        """The tasks whose parent this is, in order of creation."""
        return self.where(_c.parent_task_id == TASKS.identity(task)).order_by(_c.position.asc()).all()

    def stats(self) -> TaskStats:
        """Counts by type and status, the age of the queue, and the last minute's throughput."""
        with self._scope.read() as run:
            counts: dict[str, dict[TaskStatus, int]] = {}
            for type, status, count in run.all(_COUNTS):
                counts.setdefault(type, {})[TaskStatus(status)] = count
            oldest, completed = run.one(_AGES, {"since": run.now - 60_000}) or (None, 0)
        return TaskStats(counts, oldest, completed / 60)


class _Checked(Struct, frozen=True, gc=False):
    """A task to enqueue whose every part can be stored: ids as text, times in milliseconds."""

    type: str
    payload: Any
    text: str
    priority: int = 5
    max_retries: int = 3
    id: str | None = None
    plain: bool = True
    parent: str | None = None
    depends_on: Sequence[str] = ()
    run_at: int | None = None
    delay: int | None = None
    unique_key: str | None = None
    policy: str = "cancel"

    def row(self, now: int, id: str, *, plain: bool = True, blocked: bool = False) -> tuple[Any, ...]:
        """What `_ADD_PLAIN` or `_ADD` inserts; `id` is used where none was given."""
        row = (self.id or id, self.type, self.text, now, self.priority, self.max_retries)
        if plain and self.plain:
            return row
        run_at = self.run_at if self.delay is None else now + self.delay
        status = "blocked" if blocked else "pending" if run_at is None or run_at <= now else "scheduled"
        return (*row, status, self.parent, run_at, self.unique_key, self.policy)

    def stored(self, row: Sequence[Any], position: int) -> Task:
        """The task that this row became."""
        if len(row) == 6:
            id, _, _, now, _, _ = row
            return Task(id, self.type, self.payload, now, self.priority, self.max_retries, position=position)
        status, parent, run_at, unique_key, policy = row[6:]
        return Task(
            row[0],
            self.type,
            self.payload,
            row[3],
            self.priority,
            self.max_retries,
            _STATUSES[status],
            parent,
            run_at,
            unique_key,
            _POLICIES[policy],
            position=position,
        )


_STATUSES: dict[str, TaskStatus] = {status.value: status for status in TaskStatus}
_POLICIES: dict[str, DependencyPolicy] = {policy.value: policy for policy in DependencyPolicy}


def _check_many(tasks: Sequence[NewTask | tuple[str, Any]]) -> list[_Checked]:
    for new in tasks:
        if not isinstance(new, NewTask) and not (isinstance(new, tuple) and len(new) == 2):
            raise InvalidValue(f"{new!r} is no task to enqueue", hint="Give NewTask(type, payload, …) or a pair of type and payload")
    payloads, texts = codec.seal_many([new.payload if isinstance(new, NewTask) else new[1] for new in tasks], "payload")
    return [
        _check(new.type, payload, text, *structs.astuple(new)[2:])
        if isinstance(new, NewTask)
        else _Checked(codec.text(new[0], "task type"), payload, text)
        for new, payload, text in zip(tasks, payloads, texts, strict=True)
    ]


def _check(
    type: str,
    payload: Any,
    text: str,
    priority: int,
    parent: Task | str | None,
    depends_on: Iterable[Task | str],
    run_at: Moment | None,
    delay: float | None,
    unique_key: str | None,
    max_retries: int,
    on_dependency_failure: DependencyPolicy | str,
    id: str | None,
) -> _Checked:
    """Checks everything but the payload, which `codec.seal` has seen."""
    checked = _Checked(
        codec.text(type, "task type"),
        payload,
        text,
        codec.integer(priority, "priority", 0, 100),
        codec.integer(max_retries, "max_retries", 0),
        None if id is None else codec.text(id, "task id"),
    )
    if (
        parent is None
        and run_at is None
        and delay is None
        and unique_key is None
        and depends_on == ()
        and on_dependency_failure is DependencyPolicy.CANCEL
    ):
        return checked
    if delay is not None and run_at is not None:
        raise InvalidValue("both run_at and delay are given", hint="Give one of them")
    if isinstance(depends_on, (str, Task)):
        raise InvalidValue("depends_on is a single task", hint="Give a list")
    if on_dependency_failure not in _POLICIES:
        raise InvalidValue(f"on_dependency_failure is {on_dependency_failure!r}", hint="Use 'cancel' or 'fail'")
    return structs.replace(
        checked,
        plain=False,
        parent=None if parent is None else codec.text(TASKS.identity(parent), "parent"),
        depends_on=[codec.text(TASKS.identity(other), "a task in depends_on") for other in depends_on],
        run_at=None if run_at is None else milliseconds(run_at, "run_at"),
        delay=None if delay is None else duration(delay, "delay"),
        unique_key=None if unique_key is None else codec.text(unique_key, "unique_key"),
        policy=_POLICIES[on_dependency_failure].value,
    )


def _refused(new: _Checked | None, error: Conflict) -> Conflict | NotFound:
    """What a refused insert means; `new` is None for one of many."""
    if error.data.get("kind") == "reference":
        return NotFound("a parent does not exist" if new is None else f"no task {new.parent!r} to be the parent", hint="Enqueue it first")
    id = "one of these ids" if new is None else repr(new.id)
    return Conflict(f"a task with {id} exists already", hint="Leave the id out, or use unique_key", kind="unique")


def _types(types: Iterable[str] | None) -> Sequence[str] | None:
    if types is None:
        return None
    if isinstance(types, str):
        raise InvalidValue(f"types is the string {types!r}", hint="Give a list of task types")
    wanted = list(dict.fromkeys(codec.text(type, "task type") for type in types))
    if not wanted:
        raise InvalidValue("types is empty", hint="Leave it out to claim tasks of any type")
    return wanted


def _agent_id(agent: Agent | str) -> str:
    return agent.id if isinstance(agent, Agent) else codec.text(agent, "agent id")


def _lease(task: Task | str) -> dict[str, Any]:
    return {"id": task.id, "fence": task.fence} if isinstance(task, Task) else {"id": codec.text(task, "task id"), "fence": None}


def _result(result: Any) -> str | None:
    return None if result is None else codec.seal(result, "result")[1]


def _reason(error: str | BaseException) -> str:
    """An error's text; an exception's is made storable whatever it holds, for failing must not fail."""
    if not isinstance(error, BaseException):
        return codec.text(error, "error")
    return f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode().replace("\0", "\\0")


def _why_not(task: Task, fence: int | None, verb: str, allowed: Sequence[TaskStatus]) -> Conflict:
    # Fence 0 is a task before its first claim: it has no lease to lose.
    if fence is not None and (fence != task.fence or (fence > 0 and task.status not in (*LEASED, *FINAL))):
        return LeaseLost(
            f"the lease on task {task.id!r} was lost: it is {task.status} now",
            hint="Drop what was done under it; heartbeat more often, or claim with a longer lease",
            id=task.id,
            fence=fence,
            actual=task.fence,
        )
    possible = _EDGES.get(task.status, "nothing: this state is final")
    return InvalidTransition(
        f"task {task.id!r} is {task.status} and cannot be {verb}",
        hint=f"Only a task that is {' or '.join(allowed)} can; from {task.status} it allows {possible}",
        id=task.id,
        actual=task.status,
        allowed=list(allowed),
    )


def _give_back(run: Executor, task: Task, reason: str | None, *, retries: int, delay: int) -> Task:
    """Ends an attempt so that another can follow."""
    status = TaskStatus.SCHEDULED if delay else TaskStatus.PENDING
    row = run.one(
        _RETRY,
        {
            "id": task.id,
            "status": status.value,
            "run_at": run.now + delay if delay else task.run_at,
            "retries": retries,
            "error": task.error_message if reason is None else reason,
        },
    )
    assert row is not None
    if reason is not None:
        _note_failure(run, task, reason)
    return TASKS.load(row)


def _fail(run: Executor, task: Task, reason: str) -> Task:
    row = run.one(_FAIL, {"id": task.id, "now": run.now, "error": reason})
    assert row is not None
    _note_failure(run, task, reason)
    _settle(run, dead=[task.id])
    return TASKS.load(row)


def _note_failure(run: Executor, task: Task, reason: str) -> None:
    run.insert(FAILURES.insertion, (task.id, task.fence, task.agent_id, reason, run.now))


def _settle(run: Executor, *, done: Sequence[str] = (), dead: Sequence[str] = ()) -> None:
    """Lets go on what waited for completed tasks, and ends what waited for dead ones, and so on down."""
    if done:
        run.run(_UNBLOCK, {"ids": codec.encode(list(done)), "now": run.now})
    while dead:
        dead = [id for (id,) in run.all(_GIVE_UP, {"ids": codec.encode(list(dead)), "now": run.now})]


def take_back(run: Executor, rows: Sequence[Sequence[Any]], reason: str) -> list[Task]:
    """Ends the attempts of these leased tasks: each goes back to the queue, or fails when its retries are spent."""
    taken = []
    # A row damaged from outside stays where it is: it must not keep the others from being taken back.
    for task in TASKS.load_all(rows, lambda error: log.error("%s", error)):
        if task.retry_count < task.max_retries:
            taken.append(_give_back(run, task, reason, retries=1, delay=0))
        else:
            taken.append(_fail(run, task, reason))
    return taken


def take_from(run: Executor, agents: Sequence[str], reason: str) -> list[Task]:
    """Takes back every task these agents hold; see `take_back`."""
    return take_back(run, run.all(_HELD_BY, {"agents": codec.seal(list(agents), "agent ids")[1]}), reason)
