"""The schema: one description, with its constraints named, its texts checked and its statuses spelled out."""

import pytest
from sqlalchemy import CheckConstraint, ForeignKeyConstraint, UniqueConstraint, insert, select

from ruv_swarm_store import InvalidValue, TaskStatus, schema
from ruv_swarm_store.entities import AgentStatus, Audience, BuildState, ConsumerKind, DependencyPolicy


def test_every_constraint_has_a_name() -> None:
    for table in schema.metadata.tables.values():
        for constraint in table.constraints:
            assert constraint.name, f"{table.name}: {constraint!r}"
        for index in table.indexes:
            assert index.name


@pytest.mark.parametrize(
    ("table", "column", "members"),
    [
        ("agents", "status", AgentStatus),
        ("tasks", "status", TaskStatus),
        ("tasks", "on_dependency_failure", DependencyPolicy),
        ("messages", "audience", Audience),
        ("event_consumers", "kind", ConsumerKind),
        ("event_projections", "state", BuildState),
    ],
)
def test_a_choice_is_checked_against_its_members(table: str, column: str, members: type) -> None:
    [check] = [
        c for c in schema.metadata.tables[table].constraints if isinstance(c, CheckConstraint) and str(c.name).endswith(f"_{column}")
    ]
    assert str(check.sqltext) == f"{column} IN ({', '.join(repr(member.value) for member in members)})"


def test_the_states_of_a_task_are_either_open_or_final() -> None:
    assert {*schema.OPEN, *schema.FINAL} == set(TaskStatus)
    assert not set(schema.OPEN) & set(schema.FINAL)
    assert set(schema.LEASED) < set(schema.OPEN)


def test_statuses_stand_in_the_statement_s_text() -> None:
    statement = select(schema.tasks.c.id).where(schema.tasks.c.status == TaskStatus.PENDING, schema.tasks.c.status.not_in(schema.FINAL))
    sql = str(statement.compile(compile_kwargs={"render_postcompile": True}))
    assert "status = 'pending'" in sql
    assert "('cancelled', 'completed', 'failed')" in sql


def test_what_is_no_status_is_refused() -> None:
    with pytest.raises(InvalidValue, match="sleeping"):
        schema.tasks.c.status.type.process_bind_param("sleeping", None)
    assert str(insert(schema.tasks)).startswith("INSERT INTO tasks")


def test_history_hangs_on_nothing_that_is_deleted() -> None:
    """What happened outlives the agent and the group it happened to."""
    for name in ("tasks", "task_failures", "messages", "metrics", "events"):
        for constraint in schema.metadata.tables[name].constraints:
            if isinstance(constraint, ForeignKeyConstraint) and constraint.referred_table.name in ("agents", "agent_groups"):
                assert constraint.ondelete == "SET NULL", constraint.name


def test_a_stream_numbers_its_events_once() -> None:
    unique = [{column.name for column in c.columns} for c in schema.events.constraints if isinstance(c, UniqueConstraint)]
    assert {"aggregate_id", "sequence_number", "aggregate_type"} in unique


def test_indexes_are_made_in_one_order() -> None:
    """Of two indexes that serve alike SQLite takes the later: a random order would be a random plan."""
    for table in schema.metadata.tables.values():
        names = [index.name for index in table.indexes]
        assert names == sorted(names)
