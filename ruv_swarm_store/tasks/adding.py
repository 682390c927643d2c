"""Adding tasks that may stand for one there is, wait for others, or count against a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import not_, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import new_ids
from ruv_swarm_store.engines import Executor, constant, insert_into, parameter, text_items, upsert
from ruv_swarm_store.entities import Task, TaskStatus
from ruv_swarm_store.errors import Conflict, NotFound
from ruv_swarm_store.tasks import limits, relations
from ruv_swarm_store.tasks.new import ADD_RELATED, Checked
from ruv_swarm_store.tasks.rows import TASKS, by_id, c, final, number

ATTEMPTS = 50
"""How often a task whose key is taken is tried again when the one that had the key is gone a moment later."""

_STATES = select(c.id, c.status, c.awaited).where(c.id.in_(text_items("ids"))).order_by(c.position).with_for_update(key_share=True)
_AWAIT = update(schema.tasks).where(c.id.in_(text_items("ids"))).values(awaited=number("1"))
_DEPEND = insert_into(schema.task_dependencies)
_OF_UNIQUE_KEY = select(*TASKS.columns).where(c.unique_key == parameter("key_"), c.unique_key.is_not(None), not_(final))
_OF_IDEMPOTENCY_KEY = select(*TASKS.columns).where(c.idempotency_key == parameter("key_"), c.idempotency_key.is_not(None))
_KNOWN = select(c.id).where(by_id)
_NAMES = [f"{column.name}_" for column in ADD_RELATED.columns]
_ADD_UNLESS_TAKEN = upsert(
    schema.tasks,
    {column.name: parameter(f"{column.name}_", column.type) for column in ADD_RELATED.columns}
    | {name: constant(c[name], value) for name, value in ADD_RELATED.constants.items()},
    returning=[c.position],
)
_THESE = select(*TASKS.columns).where(c.id.in_(text_items("ids")))


class _Rows:
    """The rows of tasks to add, the dependencies between them and others, and which of those can never complete."""

    def __init__(self, run: Executor, tasks: Sequence[Checked], limited: set[str]) -> None:
        ids = [new.id or id for new, id in zip(tasks, new_ids(run.now, len(tasks)), strict=True)]
        earlier: set[str] = set()
        others: dict[str, None] = {}
        for new, id in zip(tasks, ids, strict=True):
            others.update((need, None) for need in new.depends_on if need not in earlier)
            earlier.add(id)
        states = _await(run, list(others))
        awaited = {need for new in tasks for need in new.depends_on}
        self.rows = [
            new.related_row(
                run.now,
                id,
                unmet=sum(states.get(need) != TaskStatus.COMPLETED for need in new.depends_on),
                throttled=new.concurrency_key in limited,
                awaited=id in awaited,
            )
            for new, id in zip(tasks, ids, strict=True)
        ]
        self.edges = [(id, need) for new, id in zip(tasks, ids, strict=True) for need in new.depends_on]
        self.dead = [id for id, status in states.items() if status in (TaskStatus.FAILED, TaskStatus.CANCELLED)]

    def relate(self, run: Executor) -> None:
        """Stores the dependencies of the rows, which were inserted, and ends what depends on the dead."""
        if self.edges:
            run.insert_many(_DEPEND, self.edges)
        relations.give_up(run, self.dead)


def add(run: Executor, tasks: Sequence[Checked]) -> list[Task]:
    """Adds tasks in order, all or none; one whose key is taken is the task that has it."""
    keys = {new.concurrency_key for new in tasks if new.concurrency_key is not None}
    limited = limits.hold(run, keys)
    if any(new.unique_key is not None or new.idempotency_key is not None for new in tasks):
        added, moved = _add_unless_taken(run, tasks, limited)
    else:
        added, moved = _add_all(run, tasks, limited)
    if run.holding and keys - limited:
        # Who begins to limit one of these keys waits for whoever has added by then; whoever adds later sees the limit here.
        limited |= limits.hold(run, keys - limited)
    limits.balance(run, limited)
    moved |= {task.id for task in added if task.concurrency_key in limited}
    if moved:
        found = {task.id: task for task in TASKS.load_all(run.all(_THESE, {"ids": codec.encode(sorted(moved))}))}
        added = [found.get(task.id, task) for task in added]
    return added


def _add_all(run: Executor, tasks: Sequence[Checked], limited: set[str]) -> tuple[list[Task], set[str]]:
    new = _Rows(run, tasks, limited)
    try:
        positions = run.insert_many(ADD_RELATED, new.rows)
    except Conflict as error:
        raise (refused(error, tasks[0].id, tasks[0].parent) if len(tasks) == 1 else refused(error)) from error
    new.relate(run)
    added = [one.stored(row, position) for one, row, position in zip(tasks, new.rows, positions, strict=True)]
    return added, {task.id for task in added if task.unmet} if new.dead else set()


def _add_unless_taken(run: Executor, tasks: Sequence[Checked], limited: set[str]) -> tuple[list[Task], set[str]]:
    added, moved = [], set()
    for one in tasks:
        task = _holder(run, one)
        if task is None:
            new = _Rows(run, [one], limited)
            [row] = new.rows
            for _ in range(ATTEMPTS):
                position = _insert(run, one, row)
                if position is not None:
                    new.relate(run)
                    task = one.stored(row, position)
                    moved |= {task.id} if new.dead else set()
                    break
                if (task := _holder(run, one)) is not None:
                    break
        if task is None:
            raise Conflict(f"the keys of a task were taken and free in turn, {ATTEMPTS} times", hint="Try again", kind="unique")
        added.append(task)
    return added, moved


def _insert(run: Executor, new: Checked, row: Sequence[Any]) -> int | None:
    """The position of a task added; None when a key is taken."""
    try:
        done = run.one(_ADD_UNLESS_TAKEN, dict(zip(_NAMES, row, strict=True)))
    except Conflict as error:
        raise refused(error, new.id, new.parent) from error
    if done is None and new.id is not None and run.one(_KNOWN, {"id": new.id}) is not None:
        raise refused(Conflict("", kind="unique"), new.id)
    return None if done is None else int(done[0])


def _holder(run: Executor, new: Checked) -> Task | None:
    """The task that has one of a new one's keys."""
    found = None
    if new.idempotency_key is not None:
        found = run.one(_OF_IDEMPOTENCY_KEY, {"key_": new.idempotency_key})
    if found is None and new.unique_key is not None:
        found = run.one(_OF_UNIQUE_KEY, {"key_": new.unique_key})
    return None if found is None else TASKS.load(found)


def _await(run: Executor, ids: Sequence[str]) -> dict[str, str]:
    """The states of tasks to depend on; they are marked, so that whoever completes one looks for what waits for it."""
    if not ids:
        return {}
    rows = run.all(_STATES, {"ids": codec.encode(list(ids))})
    states: dict[str, str] = {id: status for id, status, _ in rows}
    if missing := [id for id in ids if id not in states]:
        raise NotFound(f"no task {missing[0]!r} to depend on", hint="Enqueue it first", id=missing[0])
    if fresh := [id for id, status, awaited in rows if not awaited and status != TaskStatus.COMPLETED]:
        run.run(_AWAIT, {"ids": codec.encode(fresh)})
    return states


def refused(error: Conflict, id: str | None = None, parent: str | None = None) -> Conflict | NotFound:
    """What a refused insert means, of one task with what was given of these, or of many."""
    if error.data.get("kind") == "reference":
        return NotFound("a parent does not exist" if parent is None else f"no task {parent!r} to be the parent", hint="Enqueue it first")
    which = "one of these ids" if id is None else repr(id)
    return Conflict(f"a task with {which} exists already", hint="Leave the id out, or use unique_key", kind="unique")
