"""Waiting for others without blocking: the event loop goes on, a commit wakes, and whoever is cancelled has taken nothing."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ruv_swarm_store import Agent, NewTask, Store, inboxes, listening
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

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*args, **options)

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


def test_a_request_is_answered_by_another_coroutine(database, monkeypatch):
    for module, name in ((listening, "LOOK_AROUND"), (waiting, "_LINGER")):
        monkeypatch.setattr(module, name, 60.0)
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


@pytest.mark.needs("threads")
def test_who_listens_is_looked_for_together(database, monkeypatch):
    """A message costs one look, however many coroutines wait each for an inbox of its own."""
    monkeypatch.setattr(listening, "LOOK_AROUND", 60.0)
    store: Store = database.open()
    scouts = [store.agents.register("scout") for _ in range(200)]
    other = store.agents.register("other")
    looks, look = 0, inboxes.look

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*args, **options)

    monkeypatch.setattr(inboxes, "look", counted)

    async def play() -> None:
        nonlocal looks
        waiting = [asyncio.create_task(store.messages.wait_async(scout, timeout=60)) for scout in scouts]
        await asyncio.sleep(0.5)
        looks = 0
        for number in range(50):
            await soon(lambda number=number: store.messages.publish("news", number, sender=other, to=other), 0.002)
        await asyncio.sleep(0.1)
        assert looks < 50, "each looked for itself"
        store.messages.publish("news", "for one", sender=other, to=scouts[7])
        assert [message.content for message in await waiting[7]] == ["for one"]
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in waiting) == 1
        store.messages.publish("news", "for all", sender=other)
        received = await asyncio.gather(*waiting)
        assert [message.content for messages in received for message in messages].count("for all") == 199

    asyncio.run(play())


@pytest.mark.parametrize("way", ["direct", "group", "broadcast", "pattern", "released", "again", "joined", "joined late", "others"])
def test_whatever_reaches_who_listens_wakes(database, monkeypatch, way):
    """Without looking around: what is missed would come after a minute."""
    for module, name in ((listening, "LOOK_AROUND"), (waiting, "_LINGER")):
        monkeypatch.setattr(module, name, 60.0)
    store: Store = database.open()
    scout, sender, beside = (store.agents.register("worker") for _ in range(3))
    group = store.groups.create("scouts")
    if way in ("group", "others"):
        store.groups.join(group, scout)
    topic = {"pattern": "news.*", "again": "old", "released": "old"}.get(way)
    store.messages.publish("old", "old", sender=sender, to=scout)
    (old,) = store.messages.receive(scout, visibility=0.5 if way == "again" else 60)

    def publish() -> None:
        if way == "direct":
            store.messages.publish("news", 1, sender=sender, to=scout)
        elif way in ("broadcast", "others"):
            store.messages.publish("news", 1, sender=sender)
        elif way == "pattern":
            store.messages.publish("other", 0, sender=sender, to=scout)
            store.messages.publish("news.today", 1, sender=sender, to=scout)
        elif way == "released":
            store.messages.release(old, scout)
        elif way == "joined":
            store.groups.join(group, scout)
            store.messages.publish("news", 1, sender=sender, to_group=group)
        elif way == "joined late":
            store.messages.publish("news", 0, sender=sender, to_group=group)
            store.groups.join(group, scout)
            store.messages.publish("news", 1, sender=sender, to_group=group)
        elif way == "group":
            store.messages.publish("news", 1, sender=sender, to_group=group)

    async def play() -> None:
        first = asyncio.create_task(store.messages.wait_async(beside, "nothing", timeout=90))  # looked for with the other
        await asyncio.sleep(0.05)
        listener = asyncio.create_task(store.messages.wait_async(scout, topic, timeout=90))
        await asyncio.sleep(0.1)
        for number in range(5):
            store.messages.publish("others", number, sender=sender, to=beside)
            await asyncio.sleep(0.01)
        assert not listener.done()
        publish()
        (message,) = await asyncio.wait_for(listener, 20)
        assert message.content == ("old" if topic == "old" else 1)
        first.cancel()

    asyncio.run(play())


@pytest.mark.needs("threads")
def test_none_of_a_thousand_messages_is_missed(database, monkeypatch):
    monkeypatch.setattr(listening, "LOOK_AROUND", 60.0)
    store: Store = database.open()
    agents = [store.agents.register("worker") for _ in range(20)]
    chance = random.Random(5)

    async def read(agent: Agent, expected: int) -> int:
        count = 0
        while count < expected:
            messages = await store.messages.wait_async(agent, timeout=90)
            assert messages, f"{count} of {expected}"
            await asyncio.sleep(chance.random() / 200)
            count += store.messages.acknowledge_many(messages, agent)
        return count

    def publish() -> None:
        for _ in range(1_000):
            if (to := next(addressed)) is None:
                store.messages.publish("t", 1, sender=agents[0])
            else:
                store.messages.publish("t", 1, sender=agents[0], to=to)

    plan = [chance.choice([None, *agents]) for _ in range(1_000)]
    addressed = iter(plan)
    expected = [sum(to in (None, agent) for to in plan) for agent in agents]

    async def play() -> None:
        reading = [asyncio.create_task(read(agent, count)) for agent, count in zip(agents, expected, strict=True)]
        await asyncio.to_thread(publish)
        assert await asyncio.wait_for(asyncio.gather(*reading), 60) == expected

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
