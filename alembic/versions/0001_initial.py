"""Everything a swarm keeps: the first schema

Revision: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from ruv_swarm_store import schema

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent_groups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("created_at", schema.Int64(), nullable=False),
        sa.Column("configuration", schema.Json(), nullable=False),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.CheckConstraint("json_valid(configuration)", name=op.f("ck_agent_groups_configuration")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_agent_groups_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_groups")),
        sa.UniqueConstraint("name", name=op.f("uq_agent_groups_name")),
        sqlite_strict=True,
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("created_at", schema.Int64(), nullable=False),
        sa.Column("last_heartbeat", schema.Int64(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("capabilities", schema.Json(), nullable=False),
        sa.Column("configuration", schema.Json(), nullable=False),
        sa.Column("terminated_at", schema.Int64(), nullable=True),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.CheckConstraint("status IN ('idle', 'busy', 'failed', 'terminated')", name=op.f("ck_agents_status")),
        sa.CheckConstraint("json_valid(capabilities)", name=op.f("ck_agents_capabilities")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("json_valid(configuration)", name=op.f("ck_agents_configuration")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_agents_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_agents_status"), "agents", ["status"])
    op.create_index(
        "uq_agents_live_name",
        "agents",
        ["name"],
        unique=True,
        sqlite_where=sa.text("status != 'terminated'"),
        postgresql_where=sa.text("status != 'terminated'"),
    )

    op.create_table(
        "events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("aggregate_id", sa.Text(), nullable=False),
        sa.Column("aggregate_type", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("event_data", schema.Json(), nullable=False),
        sa.Column("metadata", schema.Json(), nullable=True),
        sa.Column("timestamp", schema.Int64(), nullable=False),
        sa.Column("sequence_number", schema.Int64(), nullable=False),
        sa.Column("position", schema.Int64(), nullable=False),
        sa.CheckConstraint("json_valid(event_data)", name=op.f("ck_events_event_data")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("metadata IS NULL OR json_valid(metadata)", name=op.f("ck_events_metadata")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("sequence_number >= 1", name=op.f("ck_events_sequence_number")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_events")),
        sa.UniqueConstraint("aggregate_id", "sequence_number", "aggregate_type", name="uq_events_stream"),
        sa.UniqueConstraint("id", name=op.f("uq_events_id")),
        info={"append_only": True},
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_events_event_type_position"), "events", ["event_type", "position"])

    op.create_table(
        "metric_rollups",
        sa.Column("metric_name", sa.Text(), nullable=False),
        sa.Column("resolution", schema.Int64(), nullable=False),
        sa.Column("bucket", schema.Int64(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("count", schema.Int64(), nullable=False),
        sa.Column("sum", schema.Real(), nullable=False),
        sa.Column("minimum", schema.Real(), nullable=False),
        sa.Column("maximum", schema.Real(), nullable=False),
        sa.CheckConstraint("count >= 1", name=op.f("ck_metric_rollups_count")),
        sa.CheckConstraint("resolution > 0 AND bucket % resolution = 0", name=op.f("ck_metric_rollups_bucket")),
        sa.PrimaryKeyConstraint(
            "metric_name", "resolution", "bucket", "metric_type", "unit", "agent_id", "tags", name=op.f("pk_metric_rollups")
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "schema_migrations",
        sa.Column("version", schema.Int64(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("applied_at", schema.Int64(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_schema_migrations")),
        sqlite_strict=True,
    )
    op.create_table(
        "swarm_config",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", schema.Json(), nullable=False),
        sa.Column("updated_at", schema.Int64(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=True),
        sa.Column("expires_at", schema.Int64(), nullable=True),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.CheckConstraint("json_valid(value)", name=op.f("ck_swarm_config_value")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_swarm_config_version")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_swarm_config")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_swarm_config_updated_at"), "swarm_config", ["updated_at"])

    op.create_table(
        "agent_group_members",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("joined_at", schema.Int64(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_agent_group_members_agent_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["group_id"], ["agent_groups.id"], name=op.f("fk_agent_group_members_group_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("group_id", "agent_id", name=op.f("pk_agent_group_members")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_agent_group_members_agent_id"), "agent_group_members", ["agent_id"])

    op.create_table(
        "message_cursors",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("position", schema.Int64(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_message_cursors_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("agent_id", "topic", name=op.f("pk_message_cursors")),
        sqlite_strict=True,
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("content", schema.Json(), nullable=False),
        sa.Column("timestamp", schema.Int64(), nullable=False),
        sa.Column("audience", sa.Text(), nullable=False),
        sa.Column("from_agent", sa.Text(), nullable=True),
        sa.Column("to_agent", sa.Text(), nullable=True),
        sa.Column("to_group", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("expires_at", schema.Int64(), nullable=True),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.Column("position", schema.Int64(), nullable=False),
        sa.CheckConstraint("audience IN ('direct', 'group', 'broadcast')", name=op.f("ck_messages_audience")),
        sa.CheckConstraint("to_agent IS NULL OR audience = 'direct'", name=op.f("ck_messages_direct")),
        sa.CheckConstraint("to_group IS NULL OR audience = 'group'", name=op.f("ck_messages_group")),
        sa.CheckConstraint("json_valid(content)", name=op.f("ck_messages_content")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_messages_version")),
        sa.ForeignKeyConstraint(["from_agent"], ["agents.id"], name=op.f("fk_messages_from_agent"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["to_agent"], ["agents.id"], name=op.f("fk_messages_to_agent"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["to_group"], ["agent_groups.id"], name=op.f("fk_messages_to_group"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_messages")),
        sa.UniqueConstraint("id", name=op.f("uq_messages_id")),
        info={"never_reuse_positions": True},
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_index(
        "ix_messages_broadcast",
        "messages",
        ["position"],
        sqlite_where=sa.text("audience = 'broadcast'"),
        postgresql_where=sa.text("audience = 'broadcast'"),
    )
    op.create_index(
        "ix_messages_correlation",
        "messages",
        ["correlation_id", "position"],
        sqlite_where=sa.text("correlation_id IS NOT NULL"),
        postgresql_where=sa.text("correlation_id IS NOT NULL"),
    )
    op.create_index(
        "ix_messages_group",
        "messages",
        ["to_group", "position"],
        sqlite_where=sa.text("to_group IS NOT NULL"),
        postgresql_where=sa.text("to_group IS NOT NULL"),
    )
    op.create_index(
        "ix_messages_inbox",
        "messages",
        ["to_agent", "position"],
        sqlite_where=sa.text("to_agent IS NOT NULL"),
        postgresql_where=sa.text("to_agent IS NOT NULL"),
    )
    op.create_index(
        "ix_messages_sent",
        "messages",
        ["from_agent", "position"],
        sqlite_where=sa.text("from_agent IS NOT NULL"),
        postgresql_where=sa.text("from_agent IS NOT NULL"),
    )
    op.create_index(op.f("ix_messages_topic_position"), "messages", ["topic", "position"])

    op.create_table(
        "metrics",
        sa.Column("metric_name", sa.Text(), nullable=False),
        sa.Column("value", schema.Real(), nullable=False),
        sa.Column("timestamp", schema.Int64(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("tags", schema.Json(), nullable=False),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.Column("id", schema.Int64(), nullable=False),
        sa.CheckConstraint("json_valid(tags)", name=op.f("ck_metrics_tags")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_metrics_version")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_metrics_agent_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_metrics_agent",
        "metrics",
        ["agent_id", "timestamp"],
        sqlite_where=sa.text("agent_id IS NOT NULL"),
        postgresql_where=sa.text("agent_id IS NOT NULL"),
    )
    op.create_index(op.f("ix_metrics_metric_name_timestamp"), "metrics", ["metric_name", "timestamp"])
    op.create_index(op.f("ix_metrics_timestamp"), "metrics", ["timestamp"])

    op.create_table(
        "tasks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", schema.Json(), nullable=False),
        sa.Column("created_at", schema.Int64(), nullable=False),
        sa.Column("priority", schema.Int64(), nullable=False),
        sa.Column("max_retries", schema.Int64(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("parent_task_id", sa.Text(), nullable=True),
        sa.Column("run_at", schema.Int64(), nullable=True),
        sa.Column("unique_key", sa.Text(), nullable=True),
        sa.Column("on_dependency_failure", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("result", schema.Json(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("assigned_at", schema.Int64(), nullable=True),
        sa.Column("started_at", schema.Int64(), nullable=True),
        sa.Column("completed_at", schema.Int64(), nullable=True),
        sa.Column("lease_expires_at", schema.Int64(), nullable=True),
        sa.Column("fence", schema.Int64(), nullable=False),
        sa.Column("retry_count", schema.Int64(), nullable=False),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.Column("position", schema.Int64(), nullable=False),
        sa.CheckConstraint("(status IN ('assigned', 'running')) = (lease_expires_at IS NOT NULL)", name=op.f("ck_tasks_lease")),
        sa.CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name=op.f("ck_tasks_completed_at")
        ),
        sa.CheckConstraint("on_dependency_failure IN ('fail', 'cancel')", name=op.f("ck_tasks_on_dependency_failure")),
        sa.CheckConstraint("status <> 'scheduled' OR run_at IS NOT NULL", name=op.f("ck_tasks_scheduled")),
        sa.CheckConstraint(
            "status IN ('pending', 'scheduled', 'blocked', 'assigned', 'running', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_tasks_status"),
        ),
        sa.CheckConstraint("fence >= 0", name=op.f("ck_tasks_fence")),
        sa.CheckConstraint("json_valid(payload)", name=op.f("ck_tasks_payload")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("max_retries >= 0", name=op.f("ck_tasks_max_retries")),
        sa.CheckConstraint("parent_task_id <> id", name=op.f("ck_tasks_parent")),
        sa.CheckConstraint("priority BETWEEN 0 AND 100", name=op.f("ck_tasks_priority")),
        sa.CheckConstraint("result IS NULL OR json_valid(result)", name=op.f("ck_tasks_result")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("retry_count >= 0", name=op.f("ck_tasks_retry_count")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_tasks_version")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_tasks_agent_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["parent_task_id"], ["tasks.id"], name=op.f("fk_tasks_parent_task_id")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_tasks")),
        sa.UniqueConstraint("id", name=op.f("uq_tasks_id")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_tasks_agent",
        "tasks",
        ["agent_id"],
        sqlite_where=sa.text("agent_id IS NOT NULL"),
        postgresql_where=sa.text("agent_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_blocked", "tasks", ["type"], sqlite_where=sa.text("status = 'blocked'"), postgresql_where=sa.text("status = 'blocked'")
    )
    op.create_index(
        "ix_tasks_due",
        "tasks",
        ["run_at", "type"],
        sqlite_where=sa.text("status = 'scheduled'"),
        postgresql_where=sa.text("status = 'scheduled'"),
    )
    op.create_index(
        "ix_tasks_finished",
        "tasks",
        ["completed_at", "type", "status"],
        sqlite_where=sa.text("status IN ('cancelled', 'completed', 'failed')"),
        postgresql_where=sa.text("status IN ('cancelled', 'completed', 'failed')"),
    )
    op.create_index(
        "ix_tasks_leased",
        "tasks",
        ["agent_id"],
        sqlite_where=sa.text("status IN ('assigned', 'running')"),
        postgresql_where=sa.text("status IN ('assigned', 'running')"),
    )
    op.create_index(
        "ix_tasks_parent",
        "tasks",
        ["parent_task_id"],
        sqlite_where=sa.text("parent_task_id IS NOT NULL"),
        postgresql_where=sa.text("parent_task_id IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_ready",
        "tasks",
        [sa.literal_column("priority DESC"), "position"],
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_tasks_ready_by_type",
        "tasks",
        ["type", sa.literal_column("priority DESC"), "position"],
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "uq_tasks_live_key",
        "tasks",
        ["unique_key"],
        unique=True,
        sqlite_where=sa.text("unique_key IS NOT NULL AND (status NOT IN ('cancelled', 'completed', 'failed'))"),
        postgresql_where=sa.text("unique_key IS NOT NULL AND (status NOT IN ('cancelled', 'completed', 'failed'))"),
    )

    op.create_table(
        "message_deliveries",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("message_position", schema.Int64(), nullable=False),
        sa.Column("delivered_at", schema.Int64(), nullable=False),
        sa.Column("deliveries", schema.Int64(), nullable=False),
        sa.Column("visible_at", schema.Int64(), nullable=False),
        sa.Column("acknowledged_at", schema.Int64(), nullable=True),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_message_deliveries_agent_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["message_position"], ["messages.position"], name=op.f("fk_message_deliveries_message_position"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "message_position", name=op.f("pk_message_deliveries")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_message_deliveries_message_position"), "message_deliveries", ["message_position"])
    op.create_index(
        "ix_message_deliveries_open",
        "message_deliveries",
        ["agent_id", "message_position"],
        sqlite_where=sa.text("acknowledged_at IS NULL"),
        postgresql_where=sa.text("acknowledged_at IS NULL"),
    )

    op.create_table(
        "task_dependencies",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("depends_on_id", sa.Text(), nullable=False),
        sa.CheckConstraint("task_id <> depends_on_id", name=op.f("ck_task_dependencies_self")),
        sa.ForeignKeyConstraint(["depends_on_id"], ["tasks.id"], name=op.f("fk_task_dependencies_depends_on_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_dependencies_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "depends_on_id", name=op.f("pk_task_dependencies")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_task_dependencies_depends_on_id"), "task_dependencies", ["depends_on_id"])

    op.create_table(
        "task_failures",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("fence", schema.Int64(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("failed_at", schema.Int64(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_task_failures_agent_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_failures_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "fence", name=op.f("pk_task_failures")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_task_failures_agent",
        "task_failures",
        ["agent_id"],
        sqlite_where=sa.text("agent_id IS NOT NULL"),
        postgresql_where=sa.text("agent_id IS NOT NULL"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"""\
CREATE TRIGGER events_no_{verb} BEFORE {verb.upper()} ON events
BEGIN SELECT RAISE(ABORT, 'events is append-only'); END"""
            )


def downgrade() -> None:
    for table in (
        "task_failures",
        "task_dependencies",
        "message_deliveries",
        "tasks",
        "metrics",
        "messages",
        "message_cursors",
        "agent_group_members",
        "swarm_config",
        "schema_migrations",
        "metric_rollups",
        "events",
        "agents",
        "agent_groups",
    ):
        op.drop_table(table)
