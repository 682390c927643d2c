"""History: correlated events, seals, snapshots, consumers, projections and the journal

Revision: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from ruv_swarm_store import schema

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EVENT_COLUMNS = ("schema_version", "correlation_id", "causation_id")
TABLES = ("event_journal", "event_projections", "event_handouts", "event_consumers", "event_snapshots", "event_seals")


def upgrade() -> None:
    op.add_column("events", sa.Column("schema_version", schema.Int64(), server_default="1", nullable=False))
    op.add_column("events", sa.Column("correlation_id", sa.Text()))
    op.add_column("events", sa.Column("causation_id", sa.Text()))
    op.create_index(op.f("ix_events_timestamp"), "events", ["timestamp"])
    _partial_index("ix_events_correlation", "events", ["correlation_id", "position"], "correlation_id IS NOT NULL")
    _partial_index("ix_events_causation", "events", ["causation_id", "position"], "causation_id IS NOT NULL")

    op.create_table(
        "event_seals",
        sa.Column("position", schema.Int64(), autoincrement=False, nullable=False),
        sa.Column("after", schema.Int64(), nullable=False),
        sa.Column("count", schema.Int64(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("sealed_at", schema.Int64(), nullable=False),
        sa.CheckConstraint("count >= 1", name=op.f("ck_event_seals_count")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_event_seals")),
        sqlite_strict=True,
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"""\
CREATE TRIGGER event_seals_no_{verb.lower()} BEFORE {verb} ON event_seals
BEGIN SELECT RAISE(ABORT, 'event_seals is append-only'); END"""
            )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            """\
CREATE FUNCTION event_seals_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'event_seals is append-only' USING ERRCODE = 'feature_not_supported'; END $$"""
        )
        op.execute(
            "CREATE TRIGGER event_seals_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event_seals "
            "EXECUTE FUNCTION event_seals_refuse()"
        )
    op.create_table(
        "event_snapshots",
        sa.Column("aggregate_id", sa.Text(), nullable=False),
        sa.Column("aggregate_type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sequence_number", schema.Int64(), autoincrement=False, nullable=False),
        sa.Column("schema_version", schema.Int64(), nullable=False),
        sa.Column("state", schema.Json(), nullable=False),
        sa.Column("created_at", schema.Int64(), nullable=False),
        sa.CheckConstraint("sequence_number >= 1", name=op.f("ck_event_snapshots_sequence_number")),
        sa.CheckConstraint("json_valid(state)", name=op.f("ck_event_snapshots_state")).ddl_if(dialect="sqlite"),
        sa.PrimaryKeyConstraint("aggregate_id", "aggregate_type", "name", "sequence_number", name=op.f("pk_event_snapshots")),
        sqlite_strict=True,
    )
    op.create_table(
        "event_consumers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("position", schema.Int64(), nullable=False),
        sa.Column("created_at", schema.Int64(), nullable=False),
        sa.Column("updated_at", schema.Int64(), nullable=False),
        sa.Column("failures", schema.Int64(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.CheckConstraint("kind IN ('subscription', 'group', 'projection')", name=op.f("ck_event_consumers_kind")),
        sa.CheckConstraint("position >= 0", name=op.f("ck_event_consumers_position")),
        sa.CheckConstraint("failures >= 0", name=op.f("ck_event_consumers_failures")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_event_consumers_version")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_event_consumers")),
        sqlite_strict=True,
    )
    op.create_table(
        "event_handouts",
        sa.Column("consumer", sa.Text(), nullable=False),
        sa.Column("position", schema.Int64(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("fence", schema.Int64(), nullable=False),
        sa.Column("attempts", schema.Int64(), nullable=False),
        sa.Column("visible_at", schema.Int64(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("parked_at", schema.Int64(), nullable=True),
        sa.CheckConstraint("fence >= 0", name=op.f("ck_event_handouts_fence")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_event_handouts_attempts")),
        sa.ForeignKeyConstraint(["consumer"], ["event_consumers.name"], name=op.f("fk_event_handouts_consumer"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("consumer", "position", name=op.f("pk_event_handouts")),
        sqlite_strict=True,
    )
    _partial_index("ix_event_handouts_visible", "event_handouts", ["consumer", "visible_at", "position"], "parked_at IS NULL")
    _partial_index("ix_event_handouts_parked", "event_handouts", ["consumer", "position"], "parked_at IS NOT NULL")
    op.create_table(
        "event_projections",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", schema.Int64(), nullable=False),
        sa.Column("changed_at", schema.Int64(), nullable=False),
        sa.CheckConstraint("state IN ('building', 'live', 'retired')", name=op.f("ck_event_projections_state")),
        sa.PrimaryKeyConstraint("name", "slot", name=op.f("pk_event_projections")),
        sqlite_strict=True,
    )
    _partial_index("uq_event_projections_live", "event_projections", ["name"], "state = 'live'", unique=True)
    op.create_table(
        "event_journal",
        sa.Column("id", schema.Int64(), autoincrement=False, nullable=False),
        sa.Column("started_at", schema.Int64(), nullable=False),
        sa.Column("after", schema.Int64(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_event_journal_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_journal")),
        sqlite_strict=True,
    )


def _partial_index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION event_seals_refuse()")
    op.drop_index("ix_events_causation", "events")
    op.drop_index("ix_events_correlation", "events")
    op.drop_index(op.f("ix_events_timestamp"), "events")
    for column in EVENT_COLUMNS:
        op.drop_column("events", column)
