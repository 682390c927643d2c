"""Type-checked, never run: the store for coroutines as editors and type checkers see it."""

from collections.abc import Sequence
from typing import Any, assert_type

from sqlalchemy import select

from ruv_swarm_store import Agent, AsyncStore, ConfigEntry, Event, NewEvent, Store, Task, TaskStatus, UnitOfWork
from ruv_swarm_store.aio import (
    AsyncBackups,
    AsyncCachedRepository,
    AsyncConsumerGroup,
    AsyncQuery,
    AsyncRepository,
    AsyncSubscription,
    AsyncTasks,
)
from ruv_swarm_store.events import Claim
from ruv_swarm_store.schema import agents, tasks


async def opening(path: str) -> None:
    async with AsyncStore.open(path, durability="full", read_only=True) as store:
        assert_type(store, AsyncStore)
    assert_type(await AsyncStore.open(), AsyncStore)
    AsyncStore.open(path, durability="half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncStore.open(path, nonsense=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def verbs(store: AsyncStore, agent: Agent) -> None:
    assert_type(store.tasks, AsyncTasks)
    claimed = await store.tasks.claim(agent, types=["crawl"])
    assert_type(claimed, Task | None)
    await store.tasks.complete(claimed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    if claimed is not None:
        assert_type((await store.tasks.complete(claimed, {"ok": True})).status, TaskStatus)
    assert_type(await store.tasks.wait(agent, timeout=5.0), Task | None)
    assert_type(await store.agents.find_by_id("a"), Agent | None)
    assert_type(await store.agents.get("a"), Agent)
    assert_type(await store.agents.update(agent), Agent)
    await store.agents.update(claimed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await store.config.set("k", 1), ConfigEntry)
    assert_type(await store.config.get("k"), Any)
    await store.tasks.enqueue("t", nonsense=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(len(await store.execute(select(agents.c.id))), int)
    noun: AsyncRepository[Agent] = store.agents
    assert_type(await noun.find_all(), list[Agent])


async def what_is_not_awaited_is_no_task(store: AsyncStore, agent: Agent) -> None:
    store.tasks.claim(agent).id  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


async def queries(store: AsyncStore) -> None:
    urgent = store.tasks.where(tasks.c.priority >= 7).order_by(tasks.c.created_at.desc()).limit(10)
    assert_type(urgent, AsyncQuery[Task])
    assert_type(await urgent.all(), list[Task])
    assert_type(await urgent.first(), Task | None)
    async for task in urgent:
        assert_type(task, Task)
    async for page in store.tasks.pages(10):
        assert_type(page, list[Task])
    store.tasks.where("priority >= 7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kept = store.agents.cached()
    assert_type(kept, AsyncCachedRepository[Agent])
    assert_type(await kept.get("a"), Agent)


async def events(store: AsyncStore) -> None:
    async for event in store.events.follow(after=5):
        assert_type(event, Event)
    subscription = await store.events.subscribe("s")
    assert_type(subscription, AsyncSubscription)
    assert_type(await subscription.position(), int)
    assert_type(await subscription.batch(lambda work, events: len(events), limit=5), int)
    group = await store.events.group("g")
    assert_type(group, AsyncConsumerGroup)
    assert_type(await group.claim("m"), list[Claim])
    assert_type(await store.events.fold("s", 0, lambda total, event: total + 1, type="t"), int)
    assert_type(await store.events.append("s", [NewEvent("e")], type="t"), int)


def moved(work: UnitOfWork) -> Sequence[str]:
    return [work.tasks.enqueue("t").id]


async def transactions(store: AsyncStore) -> None:
    assert_type(await store.transaction(moved), Sequence[str])
    assert_type(await store.transaction(lambda work: work.now), int)
    async with store.transaction() as work:  # type: ignore[attr-defined, call-arg]  # pyright: ignore[reportCallIssue]
        print(work)


async def backups(store: AsyncStore) -> None:
    assert_type(store.backups, AsyncBackups)
    assert_type((await store.backups.create()).id, str)
    async with store.metrics.buffer() as buffer:
        await buffer.record("n", 1.0)


async def timing(store: AsyncStore) -> None:
    with store.monitor.track("mine"):
        assert_type(await store.monitor.prometheus(), str)


def it_is_no_store_that_blocks(store: AsyncStore) -> Store:
    return store  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
