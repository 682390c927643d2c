"""Waiting for others without blocking: the event loop goes on, a commit wakes, and whoever is cancelled has taken nothing."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ruv_swarm_store import NewTask, Store
from ruv_swarm_store.engines import waiting
from ruv_swarm_store.errors import InvalidTransition, StoreError
from ruv_swarm_store.tasks import claims, queue


async def soon(act: Callable[[], object], after: float = 0.05) -> None:
    """Does something in a while, as another coroutine."""
    await asyncio.sleep(after)
    act()


def test_a_commit_wakes_who_awaits_a_task(database):
    store: Store = database.open()
    agent = store.agents.register("worker")

    async def play() -> None:
        adding = asyncio.create_task(soon(lambda: store.tasks.enqueue("t", 1)))
        began = time.monotonic()
        task = await store.tasks.wait_async(agent, timeout=20)
        assert task is not None
        assert (task.payload, task.agent_id) == (1, agent.id)
        assert time.monotonic() - began < 10
        await adding

    asyncio.run(play())


@pytest.mark.needs("persistent")
def test_a_commit_through_another_store_wakes_too(database):
    store = database.open()
    other = database.open()
    agent = store.agents.register("worker")

    async def play() -> None:
        adding = asyncio.create_task(soon(lambda: other.tasks.enqueue("t")))
        assert await store.tasks.wait_async(agent, timeout=20) is not None
        await adding

    asyncio.run(play())


@pytest.mark.needs("threads")
def test_a_commit_is_not_missed_by_a_sentinel_that_begins_late(database, monkeypatch):
    """One thread waits for all coroutines that do. What is committed after one has looked, and before that thread does, wakes him, too."""
    store: Store = database.open()
    look, committed = store._engine.changes, threading.Event()

    def slowly() -> int:
        if threading.current_thread().name == "store-sentinel":
            assert committed.wait(20)
        return look()

    monkeypatch.setattr(waiting, "_LINGER", 10.0)  # or else it looks again before long
    monkeypatch.setattr(store._engine, "changes", slowly)

    async def play() -> None:
        sleeping = asyncio.create_task(store._engine.wait_async(look(), 20))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        store.config.set("k", 1)
        committed.set()
        assert await sleeping
        assert time.monotonic() - began < 5

    asyncio.run(play())


def test_many_await_and_each_task_goes_to_one(database):
    store: Store = database.open()
    agents = [store.agents.register("worker") for _ in range(20)]

    async def play() -> None:
        waiting = [asyncio.create_task(store.tasks.wait_async(agent, timeout=20)) for agent in agents]
        for number in range(20):
            await soon(lambda number=number: store.tasks.enqueue("t", number), 0.005)
        taken = await asyncio.gather(*waiting)
        assert sorted(task.payload for task in taken) == list(range(20))
        assert len({task.agent_id for task in taken}) == 20

    asyncio.run(play())


@pytest.mark.needs("threads")
def test_who_waits_for_the_same_is_looked_for_together(database, monkeypatch):
    """A commit costs one look, however many coroutines wait for what it might have brought."""
    store: Store = database.open()
    agent = store.agents.register("worker")
    looks, look = 0, claims.look

    def counted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*args)

    monkeypatch.setattr(claims, "look", counted)

    async def play() -> None:
        nonlocal looks
        waiting = [asyncio.create_task(store.tasks.wait_async(agent, types=["rare"], timeout=60)) for _ in range(200)]
        await asyncio.sleep(0.3)
        looks = 0
        for number in range(50):
            await soon(lambda number=number: store.tasks.enqueue("common", number), 0.002)
        assert looks < 500, "each looked for itself"
        store.tasks.enqueue_many([("rare", number) for number in range(200)])
        taken = await asyncio.gather(*waiting)
        assert sorted(task.payload for task in taken) == list(range(200))

    asyncio.run(play())


def test_who_waits_learns_that_its_agent_was_terminated(database):
    store: Store = database.open()
    one, other = store.agents.register("worker"), store.agents.register("worker")

    async def play() -> None:
        waiting = asyncio.create_task(store.tasks.wait_async(one, timeout=30))
        beside = asyncio.create_task(store.tasks.wait_async(other, timeout=30))
        await soon(lambda: store.agents.terminate(one))
        with pytest.raises(InvalidTransition, match="terminated"):
            await asyncio.wait_for(waiting, 10)
        assert not beside.done()
        await soon(lambda: store.tasks.enqueue("t", 1))
        assert (await beside).payload == 1

    asyncio.run(play())


def test_what_was_to_come_due_soon_is_not_late(database, monkeypatch):
    monkeypatch.setattr(queue, "LONGEST_PAUSE", 20.0)
    monkeypatch.setattr(waiting, "_LINGER", 20.0)
    store: Store = database.open()
    agent = store.agents.register("worker")

    async def play() -> None:
        store.tasks.enqueue_many([NewTask("t", number, delay=0.4) for number in range(3)])
        first = asyncio.create_task(store.tasks.wait_async(agent, timeout=60))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(store.tasks.wait_async(agent, timeout=60)) for _ in range(2)]
        began = time.monotonic()
        assert {task.payload for task in await asyncio.gather(first, *others)} == {0, 1, 2}
        assert time.monotonic() - began < 15

    asyncio.run(play())


@pytest.mark.needs("threads")
def test_a_loop_that_is_gone_keeps_no_sentinel(database):
    store: Store = database.open()
    agent = store.agents.register("worker")
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(store.tasks.wait_async(agent, timeout=60))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    ended = time.monotonic() + 20
    while (sentinel := store._engine._sentinel)._thread is not None and time.monotonic() < ended:
        time.sleep(0.05)
    assert sentinel._thread is None
    waiting._log_destroy_pending = False


def test_nothing_comes_within_the_timeout(database):
    store: Store = database.open()
    agent = store.agents.register("worker")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async def play() -> None:
        counting = asyncio.create_task(count())
        assert await store.tasks.wait_async(agent, timeout=0) is None
        began = time.monotonic()
        assert await store.tasks.wait_async(agent, timeout=0.4) is None
        assert time.monotonic() - began > 0.35
        assert await store.messages.wait_async(agent, timeout=0.1) == []
        assert turns > 5  # the event loop went on
        counting.cancel()

    asyncio.run(play())


def test_a_task_that_comes_due_is_awaited(database):
    store: Store = database.open()
    agent = store.agents.register("worker")
    store.tasks.enqueue("t", delay=0.2)

    async def play() -> None:
        began = time.monotonic()
        assert await store.tasks.wait_async(agent, timeout=20) is not None
        assert time.monotonic() - began < 10

    asyncio.run(play())


def test_who_is_cancelled_has_claimed_nothing(database):
    store: Store = database.open()
    agent = store.agents.register("worker")

    async def play() -> None:
        waiting = asyncio.create_task(store.tasks.wait_async(agent))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        store.tasks.enqueue("t")
        await asyncio.sleep(0.05)

    asyncio.run(play())
    assert store.tasks.claim(agent) is not None


def test_a_request_is_answered_by_another_coroutine(database):
    store: Store = database.open()
    asks, answers = store.agents.register("worker"), store.agents.register("worker")

    async def answer() -> None:
        (question,) = await store.messages.wait_async(answers, "sum", timeout=20)
        store.messages.reply(question, sum(question.content), sender=answers)

    async def play() -> None:
        answering = asyncio.create_task(answer())
        reply = await store.messages.request_async("sum", [1, 2, 3], sender=asks, to=answers, timeout=20)
        assert reply is not None
        assert reply.content == 6
        await answering

    asyncio.run(play())


def test_awaiting_inside_a_transaction_is_refused(database):
    store: Store = database.open()
    agent = store.agents.register("worker")

    async def play() -> None:
        with store.transaction() as work:
            with pytest.raises(StoreError, match="transaction"):
                await store.tasks.wait_async(agent, timeout=1)
            with pytest.raises(StoreError, match="transaction"):
                await work.tasks.wait_async(agent, timeout=1)

    asyncio.run(play())


def test_closing_ends_the_waiting(database):
    store: Store = database.open()
    agent = store.agents.register("worker")

    async def play() -> None:
        waiting = asyncio.create_task(store.tasks.wait_async(agent, timeout=20))
        await asyncio.sleep(0.05)
        store.close()
        with pytest.raises(StoreError, match="closed"):
            await waiting

    asyncio.run(play())


def test_a_store_is_opened_flushed_and_closed_in_a_coroutine(new_database):
    database = new_database(absent=True)

    async def play() -> None:
        async with await Store.open_async(database.address) as store:
            store.config.set("k", 1)
            await store.flush()
            assert store.config.get("k") == 1
            kept = store.capabilities.persistent
        with pytest.raises(StoreError, match="closed"):
            store.config.get("k")
        await store.close_async()  # harmless when repeated
        if kept:
            async with await Store.open_async(database.address, migrate=False) as again:
                assert again.config.get("k") == 1

    asyncio.run(play())
