"""The verbs of the task queue. How each is done stands in the modules beside this one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from sqlalchemy import delete, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, duration, new_id, new_ids
from ruv_swarm_store.engines import Executor, Steps, block, cooperate, parameter, text_items, upsert
from ruv_swarm_store.engines import Pause as Nap
from ruv_swarm_store.entities import Agent, DependencyPolicy, NewTask, Pause, Schedule, Task, TaskFailure, TaskStats, TaskStatus
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound, Unsupported
from ruv_swarm_store.repository import Repository, repeatable
from ruv_swarm_store.schema import LEASED, OPEN
from ruv_swarm_store.tasks import adding, claims, counting, endings, limits, pruning, relations, schedules
from ruv_swarm_store.tasks.backoff import DEFAULT_BACKOFF, Backoff
from ruv_swarm_store.tasks.new import ADD_PLAIN, ADD_SPECIAL, PLAIN, Checked, check, check_many
from ruv_swarm_store.tasks.rows import FAILURES, PAUSES, SCHEDULES, TASKS, by_id, c, fenced, leased, why_not
from ruv_swarm_store.tasks.rows import lease as lease_of
from ruv_swarm_store.tasks.waiting import Waiter

LONGEST_PAUSE = 1.0
"""Seconds after which whoever waits looks around anyway: for expired leases, and for a clock that was set."""

_HEARTBEAT = (
    update(schema.tasks).where(by_id, fenced, leased).values(lease_expires_at=parameter("expires")).returning(c.cancel_requested_at)
)
_FAILURES_OF = select(*FAILURES.columns).where(schema.task_failures.c.task_id == parameter("id")).order_by(schema.task_failures.c.fence)
_p = schema.task_pauses.c
_PAUSE = upsert(
    schema.task_pauses,
    {"type": parameter("type_"), "paused_at": parameter("now", schema.Int64), "paused_by": parameter("by")},
    on=["type"],
    returning=[_p.type],
)
_RESUME = delete(schema.task_pauses).where(_p.type == parameter("type_"))
_PAUSES = select(*PAUSES.columns).order_by(_p.type)
_DELETED = select(c.id, c.status, c.concurrency_key, c.schedule, c.fence, c.run_at).where(c.id.in_(text_items("ids")))


class Tasks(Repository[Task]):
    """The task queue.

    `claim` gives one agent a lease on a task; the verbs that follow take the claimed `Task` and check its fencing token
    in the same statement. They accept a bare id too, and then only the state is checked.
    """

    mapping = TASKS
    managed = (
        "created_at", "status", "agent_id", "parent_task_id", "result", "error_message", "run_at", "assigned_at", "started_at",
        "completed_at", "lease_expires_at", "fence", "retry_count", "idempotency_key", "concurrency_key", "schedule",
        "cancel_requested_at", "awaited", "unmet",
    )  # fmt: skip

    def delete(self, id: Task | str | int) -> bool:
        """Removes a task's row; whether there was one. Raises `Conflict` while an agent holds it or others refer to it."""
        return self.delete_many([id]) > 0

    @repeatable
    def delete_many(self, ids: Iterable[Task | str | int]) -> int:
        """Removes tasks, all or none; see `delete`."""
        wanted = [TASKS.identity(id) for id in codec.listed(ids, "ids")]
        keys = codec.encode(wanted)
        with self._scope.transaction() as run:
            relations.hold(run, wanted, deep=False)
            rows = run.all(_DELETED, {"ids": keys})
            for id, status, *_ in rows:
                if status in LEASED:
                    raise Conflict(f"task {id!r} is {status}", hint="Cancel it first: the agent that holds it must learn of its end", id=id)
            count = run.run(self.statements.delete_many, {"keys": keys})
            schedules.follow(run, [(schedule, fence, run_at) for _, _, _, schedule, fence, run_at in rows], ran=False)
            limits.balance(run, [key for _, _, key, *_ in rows])
            return count

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
        idempotency_key: str | None = None,
        concurrency_key: str | None = None,
    ) -> Task:
        """Adds a task, ready now, at `run_at`, after `delay` seconds, or once all of `depends_on` have completed.

        `priority` is 0 to 100, higher first; equal ones go in order of creation. `max_retries=3` means one first try and three
        more. With a `unique_key` that an unfinished task has, that task is returned and nothing is added; with an
        `idempotency_key`, the first task ever added with it, finished or not, while it is there. `concurrency_key` names what
        `limit` limits. Raises `InvalidValue` for what cannot be stored and `NotFound` for an unknown parent or dependency.
        """
        copy, text = codec.seal(payload, "payload")
        special = (parent, depends_on, run_at, delay, unique_key, on_dependency_failure, idempotency_key, concurrency_key)
        if special != PLAIN:
            return self._enqueue(check(type, copy, text, priority, max_retries, id, *special))
        kind = codec.text(type, "task type")
        rank, retries = codec.integer(priority, "priority", 0, 100), codec.integer(max_retries, "max_retries", 0)
        given = None if id is None else codec.name(id, "task id")

        def add(run: Executor) -> Task:
            now = run.now
            key = given or new_id(now)
            position = run.insert(ADD_PLAIN, (key, kind, text, now, rank, retries))
            return Task(key, kind, copy, now, rank, retries, position=position)

        try:
            return self._scope.write(add)
        except Conflict as error:
            raise adding.refused(error, given) from error

    def _enqueue(self, new: Checked) -> Task:
        if new.related:
            return self._add([new])[0]

        def add(run: Executor) -> Task:
            row = new.row(run.now, new_id(run.now))
            return new.stored(row, run.insert(ADD_SPECIAL, row))

        try:
            return self._scope.write(add)
        except Conflict as error:
            raise adding.refused(error, new.id, new.parent) from error

    def enqueue_many(self, tasks: Iterable[NewTask | tuple[str, Any]]) -> list[Task]:
        """Adds tasks in order, all or none; each is a `NewTask` or a pair of type and payload. See `enqueue`."""
        checked = check_many(list(tasks))
        if not checked:
            return []
        if any(new.related for new in checked):
            return self._add(checked)
        with self._scope.transaction() as run:
            now, ids = run.now, new_ids(run.now, len(checked))
            plain = all(new.plain for new in checked)
            rows = [new.row(now, id, plain=plain) for new, id in zip(checked, ids, strict=True)]
            try:
                numbers = run.insert_many(ADD_PLAIN if plain else ADD_SPECIAL, rows)
            except Conflict as error:
                raise adding.refused(error) from error
        return [new.stored(row, position) for new, row, position in zip(checked, rows, numbers, strict=True)]

    @repeatable
    def _add(self, new: Sequence[Checked]) -> list[Task]:
        with self._scope.transaction() as run:
            return adding.add(run, new)

    # Out of the queue

    def claim(self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0) -> Task | None:
        """The best ready task, now assigned to `agent` for `lease` seconds; None when nothing is ready.

        Best is the highest priority, then the earliest created. `types` restricts it; paused types are passed over. Atomic
        over threads, processes and machines. Raises `NotFound` for an unknown agent and `InvalidTransition` for a terminated one.
        """
        wanted = None if types is None else claims.check_types(types)
        who = agent.id if isinstance(agent, Agent) else codec.text(agent, "agent id")
        span = duration(lease, "lease")

        def take(run: Executor) -> Sequence[Any] | None:
            params = {"agent": who, "now": run.now, "expires": run.now + span}
            if wanted is None:
                return run.one(claims.CLAIM_ANY, params)
            if len(wanted) == 1:
                return run.one(claims.CLAIM_TYPE, {**params, "type": wanted[0]})
            return run.one(claims.CLAIM_TYPES, {**params, "types": codec.encode(wanted)})

        row = self._scope.write(take)
        return TASKS.load(row) if row is not None else next(iter(self._take(who, 1, wanted, span)), None)

    def claim_many(self, agent: Agent | str, limit: int, *, types: Iterable[str] | None = None, lease: float = 30.0) -> list[Task]:
        """Up to `limit` ready tasks in one go, best first; see `claim`."""
        wanted = claims.check_types(types)
        who = _agent_id(agent)
        span = duration(lease, "lease")
        codec.integer(limit, "limit", 1)

        def take(run: Executor) -> Sequence[Sequence[Any]]:
            params = {"agent": who, "limit": limit, "now": run.now, "expires": run.now + span}
            if wanted is None:
                return run.all(claims.CLAIM_BATCH[limit], params)
            return run.all(claims.CLAIM_BATCH_OF_TYPE[limit], {**params, "type": wanted[0]})

        if (wanted is None or len(wanted) == 1) and (rows := self._scope.write(take)):
            return claims.in_order(rows)
        return self._take(who, limit, wanted, span)

    def _take(self, agent: str, limit: int, types: Sequence[str] | None, span: int) -> list[Task]:
        for _ in range(claims.ATTEMPTS):
            with self._scope.read() as run:
                found = claims.look(run, agent, types)
            if not (found.due or found.ready):
                return []
            if taken := self._promote_and_take(agent, limit, types, span):
                return taken
        return []

    @repeatable
    def _promote_and_take(self, agent: str, limit: int, types: Sequence[str] | None, span: int) -> list[Task]:
        with self._scope.transaction() as run:
            return claims.take(run, agent, limit, types, run.now + span)

    def wait(
        self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0, timeout: float | None = None
    ) -> Task | None:
        """Claims, and while nothing is ready blocks until something is; None after `timeout` seconds.

        Woken by commits of this and other processes and by tasks coming due. Whoever waits also returns expired leases to
        the queue, as `rescue` does. Raises `Unsupported` inside a transaction, and where nothing can block.
        """
        return block(self._scope, self._waiting(agent, types, lease, timeout))

    async def wait_async(
        self, agent: Agent | str, *, types: Iterable[str] | None = None, lease: float = 30.0, timeout: float | None = None
    ) -> Task | None:
        """`wait`, while the event loop goes on. Cancelled, it has claimed nothing."""
        return await cooperate(self._scope, self._waiting(agent, types, lease, timeout))

    def _waiting(self, agent: Agent | str, types: Iterable[str] | None, lease: float, timeout: float | None) -> Steps[Task | None]:
        if self._scope.within:
            raise Unsupported("waiting for tasks inside a transaction would keep them from coming", hint="Wait outside the with block")
        who, wanted = _agent_id(agent), claims.check_types(types)
        deadline = None if timeout is None else time.monotonic() + duration(timeout, "timeout") / 1000
        waiter = Waiter(self._scope, self.rescue, who, wanted, deadline)
        rescued = -math.inf
        while True:
            seen = self._scope.changes()
            if time.monotonic() - rescued >= LONGEST_PAUSE:
                self.rescue()
                rescued = time.monotonic()
            # Looking first keeps those who wait in vain from writing.
            with self._scope.read() as run:
                found, now = claims.look(run, who, wanted), run.now
            if (found.due or found.ready) and (task := self.claim(who, types=wanted, lease=lease)) is not None:
                return task
            pause = LONGEST_PAUSE if deadline is None else min(LONGEST_PAUSE, deadline - time.monotonic())
            if pause <= 0:
                return None
            if found.next_due is not None and found.next_due > now:
                pause = min(pause, (found.next_due - now) / 1000)
            yield Nap(seen, pause, waiter)

    # Under a lease

    def start(self, task: Task | str) -> Task:
        """Marks a claimed task as running. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
        key = lease_of(task)
        row = self._scope.write(lambda run: run.one(endings.START, {**key, "now": run.now}))
        return TASKS.load(row) if row is not None else self._explain(key, "started", TaskStatus.ASSIGNED)

    def heartbeat(self, task: Task | str, *, lease: float = 30.0) -> bool:
        """Extends the lease to `lease` seconds from now; whether to go on. False: somebody asked for the task's cancellation.

        Who is asked ends with `cancel`, or completes all the same. Raises `LeaseLost`, `InvalidTransition` or `NotFound`.
        """
        key = lease_of(task)
        span = duration(lease, "lease")
        row = self._scope.write(lambda run: run.one(_HEARTBEAT, {**key, "expires": run.now + span}))
        return row[0] is None if row is not None else self._explain(key, "extended", *LEASED)

    def complete(self, task: Task | str, result: Any = None) -> Task:
        """Ends a task with its result and frees what waits for it. Raises `LeaseLost`, `InvalidTransition` or `NotFound`."""
        key = lease_of(task)
        text = _result(result)
        row = self._scope.write(lambda run: run.one(endings.COMPLETE_ALONE, {**key, "result": text, "now": run.now}))
        return TASKS.load(row) if row is not None else self._complete([(key, text)])[0]

    def complete_many(self, tasks: Iterable[tuple[Task | str, Any]]) -> list[Task]:
        """Completes pairs of task and result, all or none; see `complete`."""
        results = [(lease_of(task), _result(result)) for task, result in codec.pairs(tasks, "tasks and results")]
        return self._complete(results) if results else []

    @repeatable
    def _complete(self, results: Sequence[tuple[dict[str, Any], str | None]]) -> list[Task]:
        with self._scope.transaction() as run:
            return endings.complete(run, results)

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

        With `retry=False`, or no retries left, it is failed for good, and so or cancelled is what depends on it; a task whose
        cancellation was asked for is cancelled. The error of every attempt is kept: see `failures`. Raises `LeaseLost`,
        `InvalidTransition` or `NotFound`.
        """
        return self.fail_many([(task, error)], retry=retry, delay=delay, backoff=backoff)[0]

    @repeatable
    def fail_many(
        self,
        tasks: Iterable[tuple[Task | str, str | BaseException]],
        *,
        retry: bool = True,
        delay: float | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> list[Task]:
        """Ends the attempts of pairs of task and error, all or none; see `fail`."""
        if not isinstance(backoff, Backoff):
            raise InvalidValue(f"backoff is {backoff!r}", hint="Give a Backoff, or leave it out")
        pairs = [(lease_of(task), codec.reason(error)) for task, error in codec.pairs(tasks, "tasks and errors")]
        span = None if delay is None else duration(delay, "delay")
        if not pairs:
            return []
        with self._scope.transaction() as run:
            ending = endings.Ending(run)
            for task, (_, reason) in zip(endings.held(run, [key for key, _ in pairs], "failed"), pairs, strict=True):
                wait = round(backoff.seconds(task.retry_count) * 1000) if span is None else span
                ending.fail(task, reason, delay=wait if retry and task.retry_count < task.max_retries else None)
            return ending.settle()

    def release(self, task: Task | str, *, delay: float = 0.0) -> Task:
        """Returns a claimed task to the queue unharmed; no retry is counted. Raises as `fail` does."""
        return self.release_many([task], delay=delay)[0]

    @repeatable
    def release_many(self, tasks: Iterable[Task | str], *, delay: float = 0.0) -> list[Task]:
        """Returns claimed tasks to the queue, all or none; see `release`."""
        keys = [lease_of(task) for task in codec.listed(tasks, "tasks")]
        span = duration(delay, "delay")
        if not keys:
            return []
        with self._scope.transaction() as run:
            ending = endings.Ending(run)
            for task in endings.held(run, keys, "released"):
                ending.release(task, span)
            return ending.settle()

    def snooze(self, task: Task | str, delay: float) -> Task:
        """Puts a claimed task off for `delay` seconds; no retry is counted. Raises as `fail` does."""
        return self.release(task, delay=delay)

    def _explain(self, key: dict[str, Any], verb: str, *allowed: TaskStatus) -> NoReturn:
        raise why_not(self.get(key["id"]), key["fence"], verb, allowed)

    # Around the queue

    def cancel(self, task: Task | str, *, tree: bool = False, cooperative: bool = False) -> list[Task]:
        """Ends a task that is not finished; with `tree`, every unfinished one below it too. Returns the tasks it changed.

        An agent that holds one learns it from its next call about it. With `cooperative` what is held goes on until the holder
        has learned from `heartbeat` that it should stop, and cancels it, or its attempt ends otherwise than by completing.
        What depends on a cancelled task fails or is cancelled with it. Raises `NotFound`, and without `tree`
        `InvalidTransition` for a finished task.
        """
        return self.cancel_many([task], tree=tree, cooperative=cooperative)

    @repeatable
    def cancel_many(self, tasks: Iterable[Task | str], *, tree: bool = False, cooperative: bool = False) -> list[Task]:
        """Ends tasks, all or none; see `cancel`."""
        ids = [TASKS.identity(task) for task in codec.listed(tasks, "tasks")]
        with self._scope.transaction() as run:
            changed = endings.cancel(run, ids, tree=tree, cooperative=cooperative)
            untouched = set(ids) - {task.id for task in changed}
            for id in ids:
                if id in untouched:
                    row = run.one(self.statements.find, {"key": id, "now": run.now})
                    if row is None:
                        raise self._missing(id)
                    if not tree:
                        raise why_not(TASKS.load(row), None, "cancelled", OPEN)
        return changed

    def rescue(self) -> list[Task]:
        """Takes back tasks whose lease has expired: to the queue while retries are left, else failed. Returns them.

        What others are taking back at the same time is left to them.
        """
        with self._scope.read() as run:
            if not run.all(endings.EXPIRED, {"now": run.now}):
                return []
        rescued: list[Task] = []
        for step in (endings.rescue, endings.rescue_related):
            after: int | None = -(2**63)
            while after is not None:
                tasks, after = self._rescue(step, after)
                rescued += tasks
        return sorted(rescued, key=lambda task: task.position)

    @repeatable
    def _rescue(self, step: Callable[[Executor, int], tuple[list[Task], int | None]], after: int) -> tuple[list[Task], int | None]:
        with self._scope.transaction() as run:
            return step(run, after)

    def dead(self, *, types: Iterable[str] | None = None, limit: int | None = None) -> list[Task]:
        """The tasks that failed for good, oldest failure first: of these `types`, at most `limit`. `requeue` brings one back."""
        wanted = claims.check_types(types)
        query = self.where(c.status == TaskStatus.FAILED).order_by(c.completed_at.asc(), c.position.asc())
        if wanted is not None:
            query = query.where(c.type.in_(wanted))
        return (query if limit is None else query.limit(limit)).all()

    def requeue(self, task: Task | str, *, delay: float = 0.0) -> Task:
        """Puts a failed or cancelled task back into the queue, now or in `delay` seconds, with all its retries.

        Its `failures` stay on record. It waits again for what it depends on. Raises `InvalidTransition` for a task in another
        state, `Conflict` when a dependency has failed or another task has its unique key, and `NotFound`.
        """
        return self.requeue_many([task], delay=delay)[0]

    @repeatable
    def requeue_many(self, tasks: Iterable[Task | str], *, delay: float = 0.0) -> list[Task]:
        """Puts tasks back into the queue, all or none, each after those it depends on; see `requeue`."""
        ids = list(dict.fromkeys(TASKS.identity(task) for task in codec.listed(tasks, "tasks")))
        span = duration(delay, "delay")
        if not ids:
            return []
        with self._scope.transaction() as run:
            return endings.requeue(run, ids, span)

    def prune(self, older_than: float) -> int:
        """Removes trees of tasks that were all finished more than `older_than` seconds ago; how many tasks that were.

        Not one on which an unfinished task depends. Their `failures` go with them; events and messages stay. Many small
        transactions, so others get their turn; it can be ended and begun again at any time.
        """
        span = duration(older_than, "older_than")
        with self._scope.read() as run:
            before = run.now - span
        return pruning.prune(self._scope, before)

    # Types and limits

    def pause(self, type: str, *, by: Agent | str | None = None) -> bool:
        """Keeps tasks of a type from being claimed, those already held aside; whether it was not paused before."""
        params = {"type_": codec.text(type, "task type"), "by": None if by is None else _agent_id(by)}
        return self._scope.write(lambda run: run.one(_PAUSE, {**params, "now": run.now})) is not None

    def resume(self, type: str) -> bool:
        """Lets tasks of a paused type be claimed again; whether it was paused."""
        params = {"type_": codec.text(type, "task type")}
        return self._scope.write(lambda run: run.run(_RESUME, params)) > 0

    def paused(self) -> list[Pause]:
        """The paused types, in order, with when and by whom."""
        with self._scope.read() as run:
            return PAUSES.load_all(run.all(_PAUSES))

    @repeatable
    def limit(self, concurrency_key: str, at_once: int | None) -> None:
        """Lets at most `at_once` tasks with this `concurrency_key` be ready or held at a time; None lifts the limit.

        Others stand blocked and are let in, best first, as those end. A lower limit takes effect as they end. Setting the first
        limit of a key waits for every transaction that writes tasks.
        """
        key = codec.text(concurrency_key, "concurrency_key")
        if at_once is not None:
            codec.integer(at_once, "at_once", 1)
        with self._scope.transaction() as run:
            limits.set_limit(run, key, at_once)

    def limits(self) -> dict[str, int]:
        """Every limit, by concurrency key."""
        with self._scope.read() as run:
            return limits.all_limits(run)

    # Recurring tasks

    @repeatable
    def schedule(
        self,
        name: str,
        cron: str,
        type: str,
        payload: Any = None,
        *,
        timezone: str = "UTC",
        priority: int = 5,
        max_retries: int = 3,
        concurrency_key: str | None = None,
    ) -> Schedule:
        """Enqueues such a task at every time of a cron expression (five fields, or six with seconds first) in a time zone.

        The next occurrence stands among the scheduled tasks. Occurrences that are missed while nobody claims or waits come once,
        late, and the others not at all; one may begin before the last has ended, unless a `concurrency_key` forbids it. A
        schedule of that name is changed, and so is its waiting occurrence. Needs the extra `cron`, here and in at least one of
        the processes that claim or wait: `Unsupported` otherwise. Raises `InvalidValue` for an expression or time zone that
        cannot be read.
        """
        wanted = SCHEDULES.seal(
            Schedule(
                name,
                type,
                payload,
                cron,
                timezone,
                0,
                codec.integer(priority, "priority", 0, 100),
                codec.integer(max_retries, "max_retries", 0),
                concurrency_key,
            )
        )
        with self._scope.transaction() as run:
            if schedules.following(cron, timezone, run.now) is None:
                raise InvalidValue(f"cron is {cron!r}, which never comes", hint="Give a date that exists")
            return schedules.declare(run, wanted)

    @repeatable
    def unschedule(self, name: str) -> bool:
        """Removes a schedule and cancels its waiting occurrence; whether there was one."""
        with self._scope.transaction() as run:
            found = schedules.find(run, codec.text(name, "schedule"))
            if found is None:
                return False
            waiting = schedules.waiting(run, found)
            schedules.remove(run, name)
            endings.cancel(run, waiting, tree=False, cooperative=False)
            return True

    def schedules(self) -> list[Schedule]:
        """Every schedule, by name."""
        with self._scope.read() as run:
            return SCHEDULES.load_all(run.all(schedules.ALL))

    @repeatable
    def pause_schedule(self, name: str) -> Schedule:
        """Stops a schedule until `resume_schedule`, and cancels its waiting occurrence. Raises `NotFound`."""
        with self._scope.transaction() as run:
            found = self._schedule(run, name)
            if found.paused_at is not None:
                return found
            waiting = schedules.waiting(run, found)
            paused = schedules.pause(run, found)
            endings.cancel(run, waiting, tree=False, cooperative=False)
            return paused

    @repeatable
    def resume_schedule(self, name: str) -> Schedule:
        """Lets a paused schedule go on with its first time from now. Raises `NotFound`."""
        with self._scope.transaction() as run:
            found = self._schedule(run, name)
            return found if found.paused_at is None else schedules.resume(run, found)

    def _schedule(self, run: Executor, name: str) -> Schedule:
        found = schedules.find(run, codec.text(name, "schedule"))
        if found is None:
            raise NotFound(f"no schedule {name!r}", hint="See schedules()", id=name)
        return found

    # Looking

    def failures(self, task: Task | str) -> list[TaskFailure]:
        """Why each failed attempt at a task failed, in order."""
        id = TASKS.identity(task)
        with self._scope.read() as run:
            return FAILURES.load_all(run.all(_FAILURES_OF, {"id": id}))

    def children(self, task: Task | str) -> list[Task]:
        """The tasks whose parent this is, in order of creation."""
        return self.where(c.parent_task_id == TASKS.identity(task)).order_by(c.position.asc()).all()

    def stats(self, *, finished: bool = True) -> TaskStats:
        """Counts by type and status, the age of the queue, and the last minute's throughput.

        Counting reads an index entry for each task; `finished=False` leaves out those that have ended, for a long history.
        """
        with self._scope.read() as run:
            return counting.stats(run, finished=finished)


def _agent_id(agent: Agent | str) -> str:
    return agent.id if isinstance(agent, Agent) else codec.text(agent, "agent id")


def _result(result: Any) -> str | None:
    return None if result is None else codec.seal(result, "result")[1]
