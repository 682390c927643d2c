"""Coordination: keys, limits, pauses and schedules of tasks; rollups with sketches; PostgreSQL's own guards

Revision: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from ruv_swarm_store import schema

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_tasks_throttled": (
        ["concurrency_key", sa.literal_column("priority DESC"), "position"],
        "concurrency_key IS NOT NULL AND status = 'blocked' AND unmet = 0",
    ),
    "ix_tasks_admitted": (["concurrency_key"], "concurrency_key IS NOT NULL AND status IN ('assigned', 'pending', 'running')"),
    "ix_tasks_schedule": (["schedule", "position"], "schedule IS NOT NULL"),
    "ix_tasks_failed": (["completed_at", "position"], "status = 'failed'"),
    "uq_tasks_idempotency_key": (["idempotency_key"], "idempotency_key IS NOT NULL"),
}
COLUMNS = ("idempotency_key", "concurrency_key", "schedule", "cancel_requested_at", "awaited", "unmet")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("idempotency_key", sa.Text()))
    op.add_column("tasks", sa.Column("concurrency_key", sa.Text()))
    op.add_column("tasks", sa.Column("schedule", sa.Text()))
    op.add_column("tasks", sa.Column("cancel_requested_at", schema.Int64()))
    op.add_column("tasks", sa.Column("awaited", schema.Int64(), server_default="0", nullable=False))
    op.add_column("tasks", sa.Column("unmet", schema.Int64(), server_default="0", nullable=False))
    op.execute("UPDATE tasks SET awaited = 1 WHERE id IN (SELECT depends_on_id FROM task_dependencies)")
    op.execute(
        """\
UPDATE tasks SET unmet = (
    SELECT count(*) FROM task_dependencies JOIN tasks AS other ON other.id = task_dependencies.depends_on_id
    WHERE task_dependencies.task_id = tasks.id AND other.status <> 'completed'
) WHERE status = 'blocked'"""
    )
    for name, (columns, where) in INDEXES.items():
        op.create_index(name, "tasks", columns, unique=name.startswith("uq"), sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.add_column("agent_group_members", sa.Column("joined_position", schema.Int64(), server_default="0", nullable=False))
    op.create_index(op.f("ix_messages_timestamp"), "messages", ["timestamp"])
    where = sa.text("expires_at IS NOT NULL")
    for table in ("messages", "swarm_config"):
        op.create_index(f"ix_{table}_expires_at", table, ["expires_at"], sqlite_where=where, postgresql_where=where)

    op.create_table(
        "task_schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", schema.Json(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("created_at", schema.Int64(), nullable=False),
        sa.Column("priority", schema.Int64(), nullable=False),
        sa.Column("max_retries", schema.Int64(), nullable=False),
        sa.Column("concurrency_key", sa.Text(), nullable=True),
        sa.Column("paused_at", schema.Int64(), nullable=True),
        sa.Column("next_run_at", schema.Int64(), nullable=True),
        sa.Column("last_run_at", schema.Int64(), nullable=True),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.CheckConstraint("priority BETWEEN 0 AND 100", name=op.f("ck_task_schedules_priority")),
        sa.CheckConstraint("max_retries >= 0", name=op.f("ck_task_schedules_max_retries")),
        sa.CheckConstraint("json_valid(payload)", name=op.f("ck_task_schedules_payload")).ddl_if(dialect="sqlite"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_task_schedules_version")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_task_schedules")),
        sqlite_strict=True,
    )
    op.create_table(
        "task_pauses",
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("paused_at", schema.Int64(), nullable=False),
        sa.Column("paused_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("type", name=op.f("pk_task_pauses")),
        sqlite_strict=True,
    )
    op.create_table(
        "task_limits",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("at_once", schema.Int64(), nullable=False),
        sa.CheckConstraint("at_once >= 1", name=op.f("ck_task_limits_at_once")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_task_limits")),
        sqlite_strict=True,
    )
    op.drop_table("metric_rollups")  # nothing wrote to it yet
    _create_rollups(with_sketch=True)
    op.create_table(
        "metric_watermarks",
        sa.Column("resolution", schema.Int64(), autoincrement=False, nullable=False),
        sa.Column("metric_id", schema.Int64(), nullable=False),
        sa.Column("rolled_up_at", schema.Int64(), nullable=False),
        sa.Column("pruned_before", schema.Int64(), nullable=True),
        sa.PrimaryKeyConstraint("resolution", name=op.f("pk_metric_watermarks")),
        sqlite_strict=True,
    )
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_metrics(autoincrement=True)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            """\
CREATE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'events is append-only' USING ERRCODE = 'feature_not_supported'; END $$"""
        )
        op.execute("CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events EXECUTE FUNCTION events_refuse()")
        for table in ("events", "messages"):
            op.execute(
                f"""\
CREATE FUNCTION {table}_wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(hashtextextended(TG_TABLE_SCHEMA || '.{table}', 0)); RETURN NULL; END $$"""
            )
            op.execute(f"CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} EXECUTE FUNCTION {table}_wait()")


def _create_rollups(*, with_sketch: bool) -> None:
    series: list[sa.Column] = []
    sketch: list[sa.schema.SchemaItem] = []
    key = ["metric_type", "unit", "agent_id", "tags"]
    if with_sketch:
        series = [sa.Column("series", sa.Text(), nullable=False)]
        key = ["series"]
        guard = sa.CheckConstraint("json_valid(sketch)", name=op.f("ck_metric_rollups_sketch")).ddl_if(dialect="sqlite")
        sketch = [sa.Column("sketch", schema.Json(), nullable=False), guard]
    op.create_table(
        "metric_rollups",
        sa.Column("metric_name", sa.Text(), nullable=False),
        sa.Column("resolution", schema.Int64(), nullable=False),
        sa.Column("bucket", schema.Int64(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        *series,
        sa.Column("count", schema.Int64(), nullable=False),
        sa.Column("sum", schema.Real(), nullable=False),
        sa.Column("minimum", schema.Real(), nullable=False),
        sa.Column("maximum", schema.Real(), nullable=False),
        *sketch,
        sa.CheckConstraint("count >= 1", name=op.f("ck_metric_rollups_count")),
        sa.CheckConstraint("resolution > 0 AND bucket % resolution = 0", name=op.f("ck_metric_rollups_bucket")),
        sa.PrimaryKeyConstraint("metric_name", "resolution", "bucket", *key, name=op.f("pk_metric_rollups")),
        sqlite_strict=True,
    )


def _rebuild_metrics(*, autoincrement: bool) -> None:
    """Whether SQLite may give a number again is said where the table is made. Nothing refers to this one."""
    for name in ("ix_metrics_agent", "ix_metrics_metric_name_timestamp", "ix_metrics_timestamp"):
        op.drop_index(name, "metrics")
    op.rename_table("metrics", "metrics_before")
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
        sa.CheckConstraint("json_valid(tags)", name=op.f("ck_metrics_tags")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_metrics_version")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_metrics_agent_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
        sqlite_strict=True,
        sqlite_autoincrement=autoincrement,
    )
    op.execute("INSERT INTO metrics SELECT * FROM metrics_before ORDER BY id")
    op.drop_table("metrics_before")
    op.create_index("ix_metrics_agent", "metrics", ["agent_id", "timestamp"], sqlite_where=sa.text("agent_id IS NOT NULL"))
    op.create_index("ix_metrics_metric_name_timestamp", "metrics", ["metric_name", "timestamp"])
    op.create_index("ix_metrics_timestamp", "metrics", ["timestamp"])


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_metrics(autoincrement=False)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER events_append_only ON events")
        op.execute("DROP FUNCTION events_refuse()")
        for table in ("events", "messages"):
            op.execute(f"DROP TRIGGER {table}_in_order ON {table}")
            op.execute(f"DROP FUNCTION {table}_wait()")
    op.drop_table("metric_watermarks")
    op.drop_table("metric_rollups")
    _create_rollups(with_sketch=False)
    for table in ("task_limits", "task_pauses", "task_schedules"):
        op.drop_table(table)
    op.drop_index("ix_swarm_config_expires_at", "swarm_config")
    op.drop_index("ix_messages_expires_at", "messages")
    op.drop_index(op.f("ix_messages_timestamp"), "messages")
    op.drop_column("agent_group_members", "joined_position")
    for name in INDEXES:
        op.drop_index(name, "tasks")
    for column in COLUMNS:
        op.drop_column("tasks", column)
