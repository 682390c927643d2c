"""The things a swarm is made of, as immutable values. Fields stand in the order of their table's columns.

Times are milliseconds since the epoch (UTC). `version` counts the changes of a row and guards `update`.
`position`, where there is one, is the store's own number for the row: creation order, exact and unique.

Entities hold text, numbers and JSON trees, so no reference cycle can run through one: the garbage collector skips them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import Struct


class AgentStatus(StrEnum):
    """What an agent is doing; a terminated agent is history."""

    IDLE = "idle"
    BUSY = "busy"
    FAILED = "failed"
    TERMINATED = "terminated"


class TaskStatus(StrEnum):
    """Where a task stands. `completed`, `failed` and `cancelled` are final."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DependencyPolicy(StrEnum):
    """What becomes of a blocked task when something it waits for fails or is cancelled."""

    FAIL = "fail"
    CANCEL = "cancel"


class Audience(StrEnum):
    """Who a message is for."""

    DIRECT = "direct"
    GROUP = "group"
    BROADCAST = "broadcast"


class ConsumerKind(StrEnum):
    """How a consumer reads the events: each in turn, shared out among a group's members, or into a projection."""

    SUBSCRIPTION = "subscription"
    GROUP = "group"
    PROJECTION = "projection"


class BuildState(StrEnum):
    """What a slot of a projection is good for: being filled, being read, or being cleared."""

    BUILDING = "building"
    LIVE = "live"
    RETIRED = "retired"


class Row(Struct, frozen=True, gc=False):
    """A stored row: equal where all of it is, and hashed by its first field, for the rest may hold lists and dicts."""

    def __hash__(self) -> int:
        return hash(getattr(self, self.__struct_fields__[0]))


class Agent(Row, frozen=True, gc=False):
    """A worker known to the swarm."""

    id: str
    type: str
    created_at: int
    last_heartbeat: int
    name: str | None = None
    status: AgentStatus = AgentStatus.IDLE
    capabilities: Any = []
    configuration: Any = {}
    terminated_at: int | None = None
    version: int = 1


class Task(Row, frozen=True, gc=False):
    """A unit of work. `fence` grows with every claim: it tells a lease from any later one on the same task.

    `awaited` is 1 once another task depends on it, `unmet` counts the tasks a blocked one still waits for, and `schedule` names
    the schedule it is an occurrence of.
    """

    id: str
    type: str
    payload: Any
    created_at: int
    priority: int = 5
    max_retries: int = 3
    status: TaskStatus = TaskStatus.PENDING
    parent_task_id: str | None = None
    run_at: int | None = None
    unique_key: str | None = None
    on_dependency_failure: DependencyPolicy = DependencyPolicy.CANCEL
    agent_id: str | None = None
    result: Any = None
    error_message: str | None = None
    assigned_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    lease_expires_at: int | None = None
    fence: int = 0
    retry_count: int = 0
    version: int = 1
    position: int = 0
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    schedule: str | None = None
    cancel_requested_at: int | None = None
    awaited: int = 0
    unmet: int = 0


class NewTask(Struct, frozen=True, gc=False):
    """A task to enqueue. `run_at` is an instant, `delay` seconds from now; `parent` and `depends_on` are tasks or their ids."""

    type: str
    payload: Any = None
    priority: int = 5
    parent: Task | str | None = None
    depends_on: Iterable[Task | str] = ()
    run_at: int | datetime | None = None
    delay: float | None = None
    unique_key: str | None = None
    max_retries: int = 3
    on_dependency_failure: DependencyPolicy | str = DependencyPolicy.CANCEL
    id: str | None = None
    idempotency_key: str | None = None
    concurrency_key: str | None = None


class TaskStats(Struct, frozen=True, gc=False):
    """The queue at one moment."""

    counts: dict[str, dict[TaskStatus, int]]
    """How many tasks there are, by type and status."""
    oldest_ready: int | None
    """When the longest waiting ready task was created, in milliseconds since the epoch: the earliest of those that stand first at
    their priority."""
    completed_per_second: float
    """Tasks completed a second, over the last minute."""

    def total(self, *statuses: TaskStatus) -> int:
        """How many tasks are in these statuses; in any when none is named."""
        wanted = statuses or tuple(TaskStatus)
        return sum(count for by_status in self.counts.values() for status, count in by_status.items() if status in wanted)


class TaskFailure(Struct, frozen=True, gc=False):
    """Why one attempt at a task failed."""

    task_id: str
    fence: int
    agent_id: str | None
    error_message: str
    failed_at: int


class Schedule(Row, frozen=True, gc=False):
    """A recurring task: what is enqueued, and when. `next_run_at` is None while it is paused, or when it is over."""

    name: str
    type: str
    payload: Any
    cron: str
    timezone: str
    created_at: int
    priority: int = 5
    max_retries: int = 3
    concurrency_key: str | None = None
    paused_at: int | None = None
    next_run_at: int | None = None
    last_run_at: int | None = None
    version: int = 1


class Pause(Struct, frozen=True, gc=False):
    """A type of tasks that nobody may claim."""

    type: str
    paused_at: int
    paused_by: str | None = None


class Message(Row, frozen=True, gc=False):
    """Something one agent told another, a group, or everyone."""

    id: str
    topic: str
    content: Any
    timestamp: int
    audience: Audience = Audience.BROADCAST
    from_agent: str | None = None
    to_agent: str | None = None
    to_group: str | None = None
    correlation_id: str | None = None
    expires_at: int | None = None
    version: int = 1
    position: int = 0


class Delivery(Struct, frozen=True, gc=False):
    """How a message stands with one of its recipients: how often it was delivered, last when, and when it comes again.

    `deliveries` is 0 while it lies ready for an agent that has left the group it was sent to, or was revived.
    """

    agent_id: str
    message_position: int
    delivered_at: int
    deliveries: int
    visible_at: int
    acknowledged_at: int | None = None


class Metric(Row, frozen=True, gc=False):
    """One measured value."""

    metric_name: str
    value: float
    timestamp: int
    metric_type: str = "gauge"
    unit: str = ""
    agent_id: str | None = None
    tags: Any = {}
    version: int = 1
    id: int = 0

    def __hash__(self) -> int:
        return hash((self.id, self.timestamp))  # many share a name


class Watermark(Struct, frozen=True, gc=False):
    """How far the rollups of one resolution, in milliseconds, have come; resolution 0 stands for the samples themselves."""

    resolution: int
    metric_id: int
    """Every sample up to this number is rolled up."""
    rolled_up_at: int
    pruned_before: int | None = None
    """What lies before this instant may have been pruned."""


class ConfigEntry(Row, frozen=True, gc=False):
    """One configuration value, and who set it when."""

    key: str
    value: Any
    updated_at: int
    updated_by: str | None = None
    expires_at: int | None = None
    version: int = 1


class Group(Row, frozen=True, gc=False):
    """A named set of agents."""

    id: str
    name: str
    type: str
    created_at: int
    configuration: Any = {}
    version: int = 1


class Member(Struct, frozen=True, gc=False):
    """An agent's place in a group. `joined_position` is that of the newest message when it joined."""

    group_id: str
    agent_id: str
    role: str | None
    joined_at: int
    joined_position: int = 0


class Event(Row, frozen=True, gc=False):
    """A fact that happened to an aggregate: the `sequence_number`-th of its stream, from 1.

    `correlation_id` names what the event belongs to, `causation_id` what it came from; `schema_version` is the form of its data.
    """

    id: str
    aggregate_id: str
    aggregate_type: str
    event_type: str
    event_data: Any
    metadata: Any
    timestamp: int
    sequence_number: int
    position: int = 0
    schema_version: int = 1
    correlation_id: str | None = None
    causation_id: str | None = None


class NewEvent(Struct, frozen=True, gc=False):
    """An event to append. An explicit `id` makes appending it again harmless.

    `schema_version` is the form of its data: without one the newest that the store's upcasters know, or 1.
    """

    type: str
    data: Any = None
    metadata: Any = None
    id: str | None = None
    schema_version: int | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


class Seal(Struct, frozen=True, gc=False):
    """A link of the hash chain: `hash` covers the link before and the `count` events above position `after` up to `position`."""

    position: int
    after: int
    count: int
    hash: str
    sealed_at: int


class Snapshot(Row, frozen=True, gc=False):
    """What a stream added up to at one of its events, so that a fold can go on from there."""

    aggregate_id: str
    aggregate_type: str
    name: str
    sequence_number: int
    schema_version: int
    state: Any
    created_at: int


class Consumer(Struct, frozen=True, gc=False):
    """A named reader of all events, and the position up to which it has come.

    `failures` counts how often it has failed at the events that follow, with which `error_message` at last.
    """

    name: str
    kind: ConsumerKind
    position: int
    created_at: int
    updated_at: int
    failures: int = 0
    error_message: str | None = None
    version: int = 1


class Handout(Struct, frozen=True, gc=False):
    """An event handed to a member of a consumer group: held until `visible_at`, then anybody's again, unless it is parked."""

    consumer: str
    position: int
    holder: str | None
    fence: int
    attempts: int
    visible_at: int
    error_message: str | None = None
    parked_at: int | None = None


class Build(Struct, frozen=True, gc=False):
    """What a projection's slot holds: what this `version` of the projection made of the events, and whether readers may look."""

    name: str
    slot: str
    state: BuildState
    version: int
    changed_at: int
