"""Type-checked, never run: what must be accepted, and what must be refused, by mypy and pyright."""

from typing import assert_type

from sqlalchemy import Column

from ruv_swarm_store import Agent, Event, Query, Store, Task, TaskStatus
from ruv_swarm_store.schema import agents, events, tasks


def queries(store: Store) -> None:
    urgent = store.tasks.where(tasks.c.priority >= 7).order_by(tasks.c.created_at.desc()).limit(10)
    assert_type(urgent, Query[Task])
    assert_type(urgent.all(), list[Task])
    assert_type(urgent.first(), Task | None)
    assert_type(urgent.one(), Task)
    assert_type(urgent.count(), int)
    for agent in store.agents.where(agents.c.status == "idle"):
        assert_type(agent, Agent)
    assert_type(store.events.query().first(), Event | None)
    assert_type(next(store.tasks.pages(10)), list[Task])


def columns_know_their_types() -> None:
    assert_type(tasks.c.priority, Column[int])
    assert_type(events.c.aggregate_id, Column[str])
    assert_type(tasks.c.status, Column[TaskStatus])


def a_where_takes_column_expressions_only(store: Store) -> None:
    store.tasks.where("priority >= 7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    store.tasks.where(True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    store.tasks.query().order_by("priority")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    store.tasks.query().limit("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def verbs(store: Store, agent: Agent) -> None:
    claimed = store.tasks.claim(agent, types=["crawl"])
    assert_type(claimed, Task | None)
    store.tasks.complete(claimed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    if claimed is not None:
        assert_type(store.tasks.complete(claimed, {"ok": True}).status, TaskStatus)
    assert_type(store.agents.find_by_id("a"), Agent | None)
    assert_type(store.agents.get("a"), Agent)
    assert_type(store.agents.update(agent), Agent)
    store.agents.update(claimed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with store.transaction() as work:
        assert_type(work.tasks.claim(agent), Task | None)
        with work.transaction() as inner:
            assert_type(inner.now, int)


def entities_are_immutable(task: Task) -> None:
    task.priority = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
