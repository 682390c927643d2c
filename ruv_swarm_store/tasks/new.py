"""Tasks to be added: their parts checked before any lock is taken, and the rows they become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct, structs

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, duration, milliseconds
from ruv_swarm_store.engines import insert_into
from ruv_swarm_store.entities import DependencyPolicy, NewTask, Task, TaskStatus
from ruv_swarm_store.errors import InvalidValue
from ruv_swarm_store.tasks.rows import TASKS, c

# Most tasks are plain: ready at once, related to nothing. Binding less makes adding them cheaper.
_PLAIN = (c.id, c.type, c.payload, c.created_at, c.priority, c.max_retries)
_SPECIAL = (c.status, c.parent_task_id, c.run_at, c.unique_key, c.on_dependency_failure)
_RELATED = (c.idempotency_key, c.concurrency_key, c.schedule, c.awaited, c.unmet)
_NEW: dict[str, Any] = {"fence": 0, "retry_count": 0, "version": 1}
ADD_PLAIN = insert_into(schema.tasks, *_PLAIN, **_NEW, status=TaskStatus.PENDING, on_dependency_failure=DependencyPolicy.CANCEL)
ADD_SPECIAL = insert_into(schema.tasks, *_PLAIN, *_SPECIAL, **_NEW)
ADD_RELATED = insert_into(schema.tasks, *_PLAIN, *_SPECIAL, *_RELATED, **_NEW)

PLAIN = (None, (), None, None, None, DependencyPolicy.CANCEL, None, None)
"""Of such a task the arguments of `check` from `parent` on."""

_STATUSES: dict[str, TaskStatus] = {status.value: status for status in TaskStatus}
_POLICIES: dict[str, DependencyPolicy] = {policy.value: policy for policy in DependencyPolicy}


class Checked(Struct, frozen=True, gc=False):
    """A task to add whose every part can be stored: ids as text, times in milliseconds."""

    type: str
    payload: Any
    text: str
    priority: int = 5
    max_retries: int = 3
    id: str | None = None
    plain: bool = True
    related: bool = False
    """Whether it may stand for a task there is, or wait for others."""
    parent: str | None = None
    depends_on: Sequence[str] = ()
    run_at: int | None = None
    delay: int | None = None
    unique_key: str | None = None
    policy: str = "cancel"
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    schedule: str | None = None

    def row(self, now: int, id: str, *, plain: bool = True) -> tuple[Any, ...]:
        """What `ADD_PLAIN` or `ADD_SPECIAL` inserts; `id` is used where none was given."""
        row = (self.id or id, self.type, self.text, now, self.priority, self.max_retries)
        if plain and self.plain:
            return row
        run_at = self.run_at if self.delay is None else now + self.delay
        status = "pending" if run_at is None or run_at <= now else "scheduled"
        return (*row, status, self.parent, run_at, self.unique_key, self.policy)

    def related_row(self, now: int, id: str, *, unmet: int = 0, throttled: bool = False, awaited: bool = False) -> tuple[Any, ...]:
        """What `ADD_RELATED` inserts: `unmet` tasks to wait for, and then, if `throttled`, its concurrency limit."""
        row = list(self.row(now, id, plain=False))
        if unmet or (throttled and row[6] == "pending"):
            row[6] = "blocked"
        return (*row, self.idempotency_key, self.concurrency_key, self.schedule, int(awaited), unmet)

    def stored(self, row: Sequence[Any], position: int) -> Task:
        """The task that this row became."""
        if len(row) == 6:
            id, _, _, now, _, _ = row
            return Task(id, self.type, self.payload, now, self.priority, self.max_retries, position=position)
        status, parent, run_at, unique_key, policy = row[6:11]
        idempotency_key, concurrency_key, schedule_, awaited, unmet = row[11:] or (None, None, None, 0, 0)
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
            idempotency_key=idempotency_key,
            concurrency_key=concurrency_key,
            schedule=schedule_,
            awaited=awaited,
            unmet=unmet,
        )


def check_many(tasks: Sequence[NewTask | tuple[str, Any]]) -> list[Checked]:
    """Checks tasks given as `NewTask`s or pairs of type and payload."""
    for new in tasks:
        if not isinstance(new, NewTask) and not (isinstance(new, tuple) and len(new) == 2):
            raise InvalidValue(f"{new!r} is no task to enqueue", hint="Give NewTask(type, payload, …) or a pair of type and payload")
    payloads, texts = codec.seal_many([new.payload if isinstance(new, NewTask) else new[1] for new in tasks], "payload")
    return [
        _check_new(new, payload, text) if isinstance(new, NewTask) else Checked(codec.text(new[0], "task type"), payload, text)
        for new, payload, text in zip(tasks, payloads, texts, strict=True)
    ]


def _check_new(new: NewTask, payload: Any, text: str) -> Checked:
    return check(
        new.type, payload, text, new.priority, new.max_retries, new.id, new.parent, new.depends_on, new.run_at, new.delay, new.unique_key,
        new.on_dependency_failure, new.idempotency_key, new.concurrency_key,
    )  # fmt: skip


def check(
    type: str,
    payload: Any,
    text: str,
    priority: int,
    max_retries: int,
    id: str | None,
    parent: Task | str | None,
    depends_on: Iterable[Task | str],
    run_at: Moment | None,
    delay: float | None,
    unique_key: str | None,
    on_dependency_failure: DependencyPolicy | str,
    idempotency_key: str | None,
    concurrency_key: str | None,
) -> Checked:
    """Checks everything but the payload, which `codec.seal` has seen."""
    checked = Checked(
        codec.text(type, "task type"),
        payload,
        text,
        codec.integer(priority, "priority", 0, 100),
        codec.integer(max_retries, "max_retries", 0),
        None if id is None else codec.name(id, "task id"),
    )
    if (parent, depends_on, run_at, delay, unique_key, on_dependency_failure, idempotency_key, concurrency_key) == PLAIN:
        return checked
    if delay is not None and run_at is not None:
        raise InvalidValue("both run_at and delay are given", hint="Give one of them")
    if isinstance(depends_on, (str, Task)):
        raise InvalidValue("depends_on is a single task", hint="Give a list")
    if on_dependency_failure not in _POLICIES:
        raise InvalidValue(f"on_dependency_failure is {on_dependency_failure!r}", hint="Use 'cancel' or 'fail'")
    needs = list(dict.fromkeys(TASKS.identity(other) for other in depends_on))
    above = None if parent is None else TASKS.identity(parent)
    if id is not None and above == id:
        raise InvalidValue(f"task {id!r} is given as its own parent", hint="Give another task, or none")
    return structs.replace(
        checked,
        plain=False,
        related=bool(needs) or not (unique_key is None and idempotency_key is None and concurrency_key is None),
        parent=above,
        depends_on=needs,
        run_at=None if run_at is None else milliseconds(run_at, "run_at"),
        delay=None if delay is None else duration(delay, "delay"),
        unique_key=None if unique_key is None else codec.text(unique_key, "unique_key"),
        policy=_POLICIES[on_dependency_failure].value,
        idempotency_key=None if idempotency_key is None else codec.text(idempotency_key, "idempotency_key"),
        concurrency_key=None if concurrency_key is None else codec.text(concurrency_key, "concurrency_key"),
    )
