"""What is stored: every table, check and index, once.

Migrations, queries and repositories all start from this `metadata`. Nothing here names a dialect: what an engine
needs said differently (strict tables, JSON guards, append-only triggers) it adds in `engines.ddl`.

In a table whose rows have an order, `position` (for metrics, `id`) is the engine's own ascending number. Columns that came with
a later revision stand after the first ones, as `ALTER TABLE` puts them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from datetime import date, time, timedelta
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    MetaData,
    Named,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypedColumns,
    UniqueConstraint,
    and_,
    bindparam,
    literal_column,
    not_,
)
from sqlalchemy.sql import operators
from sqlalchemy.types import TypeDecorator, TypeEngine

from ruv_swarm_store.clock import milliseconds
from ruv_swarm_store.entities import AgentStatus, Audience, BuildState, ConsumerKind, DependencyPolicy, TaskStatus
from ruv_swarm_store.errors import InvalidValue

REVISION = "0003"
"""The Alembic revision whose result this module describes."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Int64(BigInteger):
    """A 64-bit integer in every engine; an aware datetime is bound as the milliseconds that would stand for it.

    SQLite would bind a datetime as text, and to it every number is less than every text.
    """

    def bind_processor(self, dialect: Any) -> Any:
        return _whole_number

    def coerce_compared_value(self, op: operators.OperatorType | None, value: Any) -> TypeEngine[Any]:
        if isinstance(value, str) and op in _COMPARISONS:
            raise InvalidValue(f"a number is compared with {value!r}", hint="Give a whole number; for a time, an aware datetime will do")
        return self if isinstance(value, _TEMPORAL) else super().coerce_compared_value(op, value)


_TEMPORAL = (date, time, timedelta)
_COMPARISONS = frozenset(
    {operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge}
    | {operators.between_op, operators.in_op, operators.not_in_op}
)


def _whole_number(value: Any) -> Any:
    return milliseconds(cast("Any", value)) if isinstance(value, _TEMPORAL) else value


class Real(Double[float]):
    """A 64-bit floating point number in every engine."""


class Json(JSON):
    """A JSON value. None is the JSON null where the column must not be null, and SQL NULL where it may."""


class Choice(TypeDecorator[Any]):
    """One of a `StrEnum`'s values, as text.

    Comparisons render the value as a literal: with a bound parameter SQLite cannot use a partial index.
    """

    impl = Text
    cache_ok = True

    def __init__(self, members: type[StrEnum]) -> None:
        super().__init__()
        self.members = members
        self._member = {member.value: member for member in members}.get

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        if value is None:
            return None
        try:
            return self.members(value).value
        except ValueError:
            raise InvalidValue(f"{value!r} is not a {self.members.__name__}", hint=f"Use one of {', '.join(self.members)}") from None

    def process_literal_param(self, value: Any, dialect: Any) -> str:
        return self.process_bind_param(value, dialect) or ""

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return self._member(value, value)

    class Comparator(TypeDecorator.Comparator[Any]):
        def operate(self, op: operators.OperatorType, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
            kind = cast("Choice", self.type)
            if other and op in (operator.eq, operator.ne) and isinstance(other[0], str):
                kind.process_bind_param(other[0], None)  # rendered as a literal, it would be refused in words about that
                other = (bindparam(None, other[0], type_=self.type, unique=True, literal_execute=True),)
            elif other and op in (operators.in_op, operators.not_in_op) and isinstance(other[0], (list, tuple, set, frozenset)):
                values = sorted(other[0])
                for value in values:
                    kind.process_bind_param(value, None)
                other = (bindparam(None, values, type_=self.type, unique=True, literal_execute=True, expanding=True),)
            return super().operate(op, *other, **kwargs)

    comparator_factory: Any = Comparator


def _one_of(column: str, members: type[StrEnum]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(member.value) for member in members)})", name=column)


def _at_least(column: str, low: int) -> CheckConstraint:
    return CheckConstraint(f"{column} >= {low}", name=column, info={"range": (column, low, 2**63 - 1)})


def _between(column: str, low: int, high: int) -> CheckConstraint:
    return CheckConstraint(f"{column} BETWEEN {low} AND {high}", name=column, info={"range": (column, low, high)})


def _partial(name: str, *columns: Column[Any] | ColumnElement[Any], where: ColumnElement[bool], unique: bool = False) -> Index:
    """An index over the rows that satisfy `where`; the engines put the condition into their own words."""
    return Index(name, *columns, unique=unique, info={"where": where})


OPEN: Sequence[TaskStatus] = (TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.ASSIGNED, TaskStatus.RUNNING)
"""Statuses from which a task can still go on."""
LEASED: Sequence[TaskStatus] = (TaskStatus.ASSIGNED, TaskStatus.RUNNING)
"""Statuses in which an agent holds a task."""
FINAL: Sequence[TaskStatus] = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
"""Statuses nothing leads out of."""


class AgentColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    type: Named[str] = Column(Text, nullable=False)
    created_at: Named[int] = Column(Int64, nullable=False)
    last_heartbeat: Named[int] = Column(Int64, nullable=False)
    name: Named[str | None] = Column(Text)
    status: Named[AgentStatus] = Column(Choice(AgentStatus), nullable=False)
    capabilities: Named[Any] = Column(Json, nullable=False)
    configuration: Named[Any] = Column(Json, nullable=False)
    terminated_at: Named[int | None] = Column(Int64)
    version: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, str, int, int, str | None, AgentStatus, Any, Any, int | None, int]


agents = Table("agents", metadata, AgentColumns, _one_of("status", AgentStatus), _at_least("version", 1))
# No index on last_heartbeat: it would halve the heartbeat rate, and silent agents are found among the few live ones.
Index(None, agents.c.status)
_partial("uq_agents_live_name", agents.c.name, where=agents.c.status != AgentStatus.TERMINATED, unique=True)


class TaskColumns(TypedColumns):
    id: Named[str] = Column(Text, nullable=False)
    type: Named[str] = Column(Text, nullable=False)
    payload: Named[Any] = Column(Json, nullable=False)
    created_at: Named[int] = Column(Int64, nullable=False)
    priority: Named[int] = Column(Int64, nullable=False)
    max_retries: Named[int] = Column(Int64, nullable=False)
    status: Named[TaskStatus] = Column(Choice(TaskStatus), nullable=False)
    parent_task_id: Named[str | None] = Column(Text, ForeignKey("tasks.id"))
    run_at: Named[int | None] = Column(Int64)
    unique_key: Named[str | None] = Column(Text)
    on_dependency_failure: Named[DependencyPolicy] = Column(Choice(DependencyPolicy), nullable=False)
    agent_id: Named[str | None] = Column(Text, ForeignKey("agents.id", ondelete="SET NULL"))
    result: Named[Any] = Column(Json(none_as_null=True), nullable=True)
    error_message: Named[str | None] = Column(Text)
    assigned_at: Named[int | None] = Column(Int64)
    started_at: Named[int | None] = Column(Int64)
    completed_at: Named[int | None] = Column(Int64)
    lease_expires_at: Named[int | None] = Column(Int64)
    fence: Named[int] = Column(Int64, nullable=False)
    retry_count: Named[int] = Column(Int64, nullable=False)
    version: Named[int] = Column(Int64, nullable=False)
    position: Named[int] = Column(Int64, primary_key=True)
    idempotency_key: Named[str | None] = Column(Text)
    concurrency_key: Named[str | None] = Column(Text)
    schedule: Named[str | None] = Column(Text)
    cancel_requested_at: Named[int | None] = Column(Int64)
    awaited: Named[int] = Column(Int64, nullable=False, server_default="0")
    unmet: Named[int] = Column(Int64, nullable=False, server_default="0")
    __row_pos__: tuple[
        str, str, Any, int, int, int, TaskStatus, str | None, int | None, str | None, DependencyPolicy, str | None, Any, str | None,
        int | None, int | None, int | None, int | None, int, int, int, int, str | None, str | None, str | None, int | None, int, int,
    ]  # fmt: skip


tasks = Table(
    "tasks",
    metadata,
    TaskColumns,
    UniqueConstraint("id"),
    _one_of("status", TaskStatus),
    _one_of("on_dependency_failure", DependencyPolicy),
    _between("priority", 0, 100),
    CheckConstraint("parent_task_id <> id", name="parent"),
    CheckConstraint("(status IN ('assigned', 'running')) = (lease_expires_at IS NOT NULL)", name="lease"),
    CheckConstraint("(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name="completed_at"),
    CheckConstraint("status <> 'scheduled' OR run_at IS NOT NULL", name="scheduled"),
    _at_least("fence", 0),
    _at_least("retry_count", 0),
    _at_least("max_retries", 0),
    _at_least("version", 1),
)
_pending = tasks.c.status == TaskStatus.PENDING
# The claim's own order, so that it reads one entry however long the queue is.
_partial("ix_tasks_ready", tasks.c.priority.desc(), tasks.c.position, where=_pending)
_partial("ix_tasks_ready_by_type", tasks.c.type, tasks.c.priority.desc(), tasks.c.position, where=_pending)
_partial("ix_tasks_due", tasks.c.run_at, tasks.c.type, where=tasks.c.status == TaskStatus.SCHEDULED)
_partial("ix_tasks_blocked", tasks.c.type, where=tasks.c.status == TaskStatus.BLOCKED)
# Few tasks are leased at once: expired leases are found by reading them all, and a heartbeat touches no index.
_partial("ix_tasks_leased", tasks.c.agent_id, where=tasks.c.status.in_(LEASED))
_partial("ix_tasks_agent", tasks.c.agent_id, where=tasks.c.agent_id.is_not(None))
_partial("ix_tasks_parent", tasks.c.parent_task_id, where=tasks.c.parent_task_id.is_not(None))
_partial("ix_tasks_finished", tasks.c.completed_at, tasks.c.type, tasks.c.status, where=tasks.c.status.in_(FINAL))
# Tasks kept back by a concurrency limit, in the order they are let in; and those that count against it.
_partial(
    "ix_tasks_throttled",
    tasks.c.concurrency_key,
    tasks.c.priority.desc(),
    tasks.c.position,
    where=and_(tasks.c.concurrency_key.is_not(None), tasks.c.status == TaskStatus.BLOCKED, tasks.c.unmet == literal_column("0")),
)
_partial(
    "ix_tasks_admitted",
    tasks.c.concurrency_key,
    where=and_(tasks.c.concurrency_key.is_not(None), tasks.c.status.in_((TaskStatus.PENDING, *LEASED))),
)
_partial("ix_tasks_schedule", tasks.c.schedule, tasks.c.position, where=tasks.c.schedule.is_not(None))
_partial("ix_tasks_failed", tasks.c.completed_at, tasks.c.position, where=tasks.c.status == TaskStatus.FAILED)
_partial("uq_tasks_idempotency_key", tasks.c.idempotency_key, where=tasks.c.idempotency_key.is_not(None), unique=True)
_partial("uq_tasks_live_key", tasks.c.unique_key, where=and_(tasks.c.unique_key.is_not(None), not_(tasks.c.status.in_(FINAL))), unique=True)


class DependencyColumns(TypedColumns):
    task_id: Named[str] = Column(Text, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    depends_on_id: Named[str] = Column(Text, ForeignKey("tasks.id"), primary_key=True)
    __row_pos__: tuple[str, str]


task_dependencies = Table("task_dependencies", metadata, DependencyColumns, CheckConstraint("task_id <> depends_on_id", name="self"))
Index(None, task_dependencies.c.depends_on_id)


class FailureColumns(TypedColumns):
    task_id: Named[str] = Column(Text, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    fence: Named[int] = Column(Int64, primary_key=True)
    agent_id: Named[str | None] = Column(Text, ForeignKey("agents.id", ondelete="SET NULL"))
    error_message: Named[str] = Column(Text, nullable=False)
    failed_at: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, int, str | None, str, int]


task_failures = Table("task_failures", metadata, FailureColumns)
_partial("ix_task_failures_agent", task_failures.c.agent_id, where=task_failures.c.agent_id.is_not(None))


class ScheduleColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    type: Named[str] = Column(Text, nullable=False)
    payload: Named[Any] = Column(Json, nullable=False)
    cron: Named[str] = Column(Text, nullable=False)
    timezone: Named[str] = Column(Text, nullable=False)
    created_at: Named[int] = Column(Int64, nullable=False)
    priority: Named[int] = Column(Int64, nullable=False)
    max_retries: Named[int] = Column(Int64, nullable=False)
    concurrency_key: Named[str | None] = Column(Text)
    paused_at: Named[int | None] = Column(Int64)
    next_run_at: Named[int | None] = Column(Int64)
    last_run_at: Named[int | None] = Column(Int64)
    version: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, str, Any, str, str, int, int, int, str | None, int | None, int | None, int | None, int]


task_schedules = Table(
    "task_schedules",
    metadata,
    ScheduleColumns,
    _between("priority", 0, 100),
    _at_least("max_retries", 0),
    _at_least("version", 1),
)


class PauseColumns(TypedColumns):
    type: Named[str] = Column(Text, primary_key=True)
    paused_at: Named[int] = Column(Int64, nullable=False)
    paused_by: Named[str | None] = Column(Text)
    __row_pos__: tuple[str, int, str | None]


task_pauses = Table("task_pauses", metadata, PauseColumns)


class LimitColumns(TypedColumns):
    key: Named[str] = Column(Text, primary_key=True)
    at_once: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, int]


task_limits = Table("task_limits", metadata, LimitColumns, _at_least("at_once", 1))


class GroupColumns(TypedColumns):
    id: Named[str] = Column(Text, primary_key=True)
    name: Named[str] = Column(Text, nullable=False)
    type: Named[str] = Column(Text, nullable=False)
    created_at: Named[int] = Column(Int64, nullable=False)
    configuration: Named[Any] = Column(Json, nullable=False)
    version: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, str, str, int, Any, int]


agent_groups = Table("agent_groups", metadata, GroupColumns, UniqueConstraint("name"), _at_least("version", 1))


class MemberColumns(TypedColumns):
    group_id: Named[str] = Column(Text, ForeignKey("agent_groups.id", ondelete="CASCADE"), primary_key=True)
    agent_id: Named[str] = Column(Text, ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True)
    role: Named[str | None] = Column(Text)
    joined_at: Named[int] = Column(Int64, nullable=False)
    joined_position: Named[int] = Column(Int64, nullable=False, server_default="0")
    __row_pos__: tuple[str, str, str | None, int, int]


agent_group_members = Table("agent_group_members", metadata, MemberColumns)
Index(None, agent_group_members.c.agent_id)


class MessageColumns(TypedColumns):
    id: Named[str] = Column(Text, nullable=False)
    topic: Named[str] = Column(Text, nullable=False)
    content: Named[Any] = Column(Json, nullable=False)
    timestamp: Named[int] = Column(Int64, nullable=False)
    audience: Named[Audience] = Column(Choice(Audience), nullable=False)
    from_agent: Named[str | None] = Column(Text, ForeignKey("agents.id", ondelete="SET NULL"))
    to_agent: Named[str | None] = Column(Text, ForeignKey("agents.id", ondelete="SET NULL"))
    to_group: Named[str | None] = Column(Text, ForeignKey("agent_groups.id", ondelete="SET NULL"))
    correlation_id: Named[str | None] = Column(Text)
    expires_at: Named[int | None] = Column(Int64)
    version: Named[int] = Column(Int64, nullable=False)
    position: Named[int] = Column(Int64, primary_key=True)
    __row_pos__: tuple[str, str, Any, int, Audience, str | None, str | None, str | None, str | None, int | None, int, int]


messages = Table(
    "messages",
    metadata,
    MessageColumns,
    UniqueConstraint("id"),
    _one_of("audience", Audience),
    CheckConstraint("to_agent IS NULL OR audience = 'direct'", name="direct"),
    CheckConstraint("to_group IS NULL OR audience = 'group'", name="group"),
    _at_least("version", 1),
    # A position is never given twice, even after the newest messages were pruned: inbox cursors rely on it.
    # It ascends in order of commit, too: a reader that has seen one need not look below it again.
    info={"never_reuse_positions": True, "in_order": True},
)
_partial("ix_messages_inbox", messages.c.to_agent, messages.c.position, where=messages.c.to_agent.is_not(None))
_partial("ix_messages_group", messages.c.to_group, messages.c.position, where=messages.c.to_group.is_not(None))
_partial("ix_messages_broadcast", messages.c.position, where=messages.c.audience == Audience.BROADCAST)
_partial("ix_messages_sent", messages.c.from_agent, messages.c.position, where=messages.c.from_agent.is_not(None))
_partial("ix_messages_correlation", messages.c.correlation_id, messages.c.position, where=messages.c.correlation_id.is_not(None))
Index(None, messages.c.topic, messages.c.position)
# For pruning, and for who asks for what was said since an instant.
Index(None, messages.c.timestamp)
_partial("ix_messages_expires_at", messages.c.expires_at, where=messages.c.expires_at.is_not(None))


class DeliveryColumns(TypedColumns):
    agent_id: Named[str] = Column(Text, ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True)
    message_position: Named[int] = Column(Int64, ForeignKey("messages.position", ondelete="CASCADE"), primary_key=True)
    delivered_at: Named[int] = Column(Int64, nullable=False)
    deliveries: Named[int] = Column(Int64, nullable=False)
    visible_at: Named[int] = Column(Int64, nullable=False)
    acknowledged_at: Named[int | None] = Column(Int64)
    __row_pos__: tuple[str, int, int, int, int, int | None]


message_deliveries = Table("message_deliveries", metadata, DeliveryColumns)
Index(None, message_deliveries.c.message_position)
_partial(
    "ix_message_deliveries_open",
    message_deliveries.c.agent_id,
    message_deliveries.c.message_position,
    where=message_deliveries.c.acknowledged_at.is_(None),
)


class CursorColumns(TypedColumns):
    agent_id: Named[str] = Column(Text, ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True)
    topic: Named[str] = Column(Text, primary_key=True)
    position: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, str, int]


message_cursors = Table("message_cursors", metadata, CursorColumns)


class MetricColumns(TypedColumns):
    metric_name: Named[str] = Column(Text, nullable=False)
    value: Named[float] = Column(Real, nullable=False)
    timestamp: Named[int] = Column(Int64, nullable=False)
    metric_type: Named[str] = Column(Text, nullable=False)
    unit: Named[str] = Column(Text, nullable=False)
    agent_id: Named[str | None] = Column(Text, ForeignKey("agents.id", ondelete="SET NULL"))
    tags: Named[Any] = Column(Json, nullable=False)
    version: Named[int] = Column(Int64, nullable=False)
    id: Named[int] = Column(Int64, primary_key=True)
    __row_pos__: tuple[str, float, int, str, str, str | None, Any, int, int]


metrics = Table(
    "metrics",
    metadata,
    MetricColumns,
    _at_least("version", 1),
    # A number is never given twice, even after the newest samples were pruned: rollups count every number up to a watermark.
    info={"never_reuse_positions": True},
)
Index(None, metrics.c.metric_name, metrics.c.timestamp)
_partial("ix_metrics_agent", metrics.c.agent_id, metrics.c.timestamp, where=metrics.c.agent_id.is_not(None))
Index(None, metrics.c.timestamp)


class RollupColumns(TypedColumns):
    metric_name: Named[str] = Column(Text, nullable=False)
    resolution: Named[int] = Column(Int64, nullable=False)
    bucket: Named[int] = Column(Int64, nullable=False)
    metric_type: Named[str] = Column(Text, nullable=False)
    unit: Named[str] = Column(Text, nullable=False)
    agent_id: Named[str] = Column(Text, nullable=False)
    tags: Named[str] = Column(Text, nullable=False)
    series: Named[str] = Column(Text, nullable=False)
    count: Named[int] = Column(Int64, nullable=False)
    sum: Named[float] = Column(Real, nullable=False)
    minimum: Named[float] = Column(Real, nullable=False)
    maximum: Named[float] = Column(Real, nullable=False)
    sketch: Named[Any] = Column(Json, nullable=False)
    __row_pos__: tuple[str, int, int, str, str, str, str, str, int, float, float, float, Any]


metric_rollups = Table(
    "metric_rollups",
    metadata,
    RollupColumns,
    # `series` is a digest of type, unit, agent and tags: together they can be longer than an index takes.
    PrimaryKeyConstraint("metric_name", "resolution", "bucket", "series"),
    CheckConstraint("resolution > 0 AND bucket % resolution = 0", name="bucket"),
    _at_least("count", 1),
)


class WatermarkColumns(TypedColumns):
    resolution: Named[int] = Column(Int64, primary_key=True, autoincrement=False)
    metric_id: Named[int] = Column(Int64, nullable=False)
    rolled_up_at: Named[int] = Column(Int64, nullable=False)
    pruned_before: Named[int | None] = Column(Int64)
    __row_pos__: tuple[int, int, int, int | None]


metric_watermarks = Table("metric_watermarks", metadata, WatermarkColumns)


class ConfigColumns(TypedColumns):
    key: Named[str] = Column(Text, primary_key=True)
    value: Named[Any] = Column(Json, nullable=False)
    updated_at: Named[int] = Column(Int64, nullable=False)
    updated_by: Named[str | None] = Column(Text)
    expires_at: Named[int | None] = Column(Int64)
    version: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, Any, int, str | None, int | None, int]


swarm_config = Table("swarm_config", metadata, ConfigColumns, _at_least("version", 1))
Index(None, swarm_config.c.updated_at)
_partial("ix_swarm_config_expires_at", swarm_config.c.expires_at, where=swarm_config.c.expires_at.is_not(None))


class EventColumns(TypedColumns):
    id: Named[str] = Column(Text, nullable=False)
    aggregate_id: Named[str] = Column(Text, nullable=False)
    aggregate_type: Named[str] = Column(Text, nullable=False)
    event_type: Named[str] = Column(Text, nullable=False)
    event_data: Named[Any] = Column(Json, nullable=False)
    metadata: Named[Any] = Column(Json(none_as_null=True), nullable=True)
    timestamp: Named[int] = Column(Int64, nullable=False)
    sequence_number: Named[int] = Column(Int64, nullable=False)
    position: Named[int] = Column(Int64, primary_key=True)
    schema_version: Named[int] = Column(Int64, nullable=False, server_default="1")
    correlation_id: Named[str | None] = Column(Text)
    causation_id: Named[str | None] = Column(Text)
    __row_pos__: tuple[str, str, str, str, Any, Any, int, int, int, int, str | None, str | None]


events = Table(
    "events",
    metadata,
    EventColumns,
    UniqueConstraint("id"),
    # One stream per aggregate; the sequence stands second so that a read by id alone is a range too.
    UniqueConstraint("aggregate_id", "sequence_number", "aggregate_type", name="uq_events_stream"),
    _at_least("sequence_number", 1),
    info={"append_only": True, "in_order": True},
)
Index(None, events.c.event_type, events.c.position)
Index(None, events.c.timestamp)
_partial("ix_events_correlation", events.c.correlation_id, events.c.position, where=events.c.correlation_id.is_not(None))
_partial("ix_events_causation", events.c.causation_id, events.c.position, where=events.c.causation_id.is_not(None))


class SealColumns(TypedColumns):
    position: Named[int] = Column(Int64, primary_key=True, autoincrement=False)
    after: Named[int] = Column(Int64, nullable=False)
    count: Named[int] = Column(Int64, nullable=False)
    hash: Named[str] = Column(Text, nullable=False)
    sealed_at: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[int, int, int, str, int]


event_seals = Table(
    "event_seals",
    metadata,
    SealColumns,
    _at_least("count", 1),
    info={"append_only": True},
)


class SnapshotColumns(TypedColumns):
    aggregate_id: Named[str] = Column(Text, primary_key=True)
    aggregate_type: Named[str] = Column(Text, primary_key=True)
    name: Named[str] = Column(Text, primary_key=True)
    sequence_number: Named[int] = Column(Int64, primary_key=True, autoincrement=False)
    schema_version: Named[int] = Column(Int64, nullable=False)
    state: Named[Any] = Column(Json, nullable=False)
    created_at: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, str, str, int, int, Any, int]


event_snapshots = Table("event_snapshots", metadata, SnapshotColumns, _at_least("sequence_number", 1))


class ConsumerColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    kind: Named[ConsumerKind] = Column(Choice(ConsumerKind), nullable=False)
    position: Named[int] = Column(Int64, nullable=False)
    created_at: Named[int] = Column(Int64, nullable=False)
    updated_at: Named[int] = Column(Int64, nullable=False)
    failures: Named[int] = Column(Int64, nullable=False)
    error_message: Named[str | None] = Column(Text)
    version: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, ConsumerKind, int, int, int, int, str | None, int]


event_consumers = Table(
    "event_consumers",
    metadata,
    ConsumerColumns,
    _one_of("kind", ConsumerKind),
    _at_least("position", 0),
    _at_least("failures", 0),
    _at_least("version", 1),
)


class HandoutColumns(TypedColumns):
    consumer: Named[str] = Column(Text, ForeignKey("event_consumers.name", ondelete="CASCADE"), primary_key=True)
    position: Named[int] = Column(Int64, primary_key=True, autoincrement=False)
    holder: Named[str | None] = Column(Text)
    fence: Named[int] = Column(Int64, nullable=False)
    attempts: Named[int] = Column(Int64, nullable=False)
    visible_at: Named[int] = Column(Int64, nullable=False)
    error_message: Named[str | None] = Column(Text)
    parked_at: Named[int | None] = Column(Int64)
    __row_pos__: tuple[str, int, str | None, int, int, int, str | None, int | None]


event_handouts = Table("event_handouts", metadata, HandoutColumns, _at_least("fence", 0), _at_least("attempts", 0))
# What a group's members hold, or may have again, by when; and what was given up.
_partial(
    "ix_event_handouts_visible",
    event_handouts.c.consumer,
    event_handouts.c.visible_at,
    event_handouts.c.position,
    where=event_handouts.c.parked_at.is_(None),
)
_partial("ix_event_handouts_parked", event_handouts.c.consumer, event_handouts.c.position, where=event_handouts.c.parked_at.is_not(None))


class BuildColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    slot: Named[str] = Column(Text, primary_key=True)
    state: Named[BuildState] = Column(Choice(BuildState), nullable=False)
    version: Named[int] = Column(Int64, nullable=False)
    changed_at: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[str, str, BuildState, int, int]


event_projections = Table("event_projections", metadata, BuildColumns, _one_of("state", BuildState))
# Readers look at one of a projection's slots, whatever is being built beside it.
_partial("uq_event_projections_live", event_projections.c.name, where=event_projections.c.state == BuildState.LIVE, unique=True)


class JournalColumns(TypedColumns):
    id: Named[int] = Column(Int64, primary_key=True, autoincrement=False)
    started_at: Named[int] = Column(Int64, nullable=False)
    after: Named[int] = Column(Int64, nullable=False)
    __row_pos__: tuple[int, int, int]


event_journal = Table("event_journal", metadata, JournalColumns, CheckConstraint("id = 1", name="id"))


class MigrationColumns(TypedColumns):
    version: Named[int] = Column(Int64, primary_key=True, autoincrement=False)
    name: Named[str] = Column(Text, nullable=False)
    applied_at: Named[int] = Column(Int64, nullable=False)
    checksum: Named[str] = Column(Text, nullable=False)
    __row_pos__: tuple[int, str, int, str]


schema_migrations = Table("schema_migrations", metadata, MigrationColumns)

HISTORY = frozenset({"alembic_version", schema_migrations.name})
"""The tables that tell a store from another program's database, where each may be on its own: what was applied, and what last."""
