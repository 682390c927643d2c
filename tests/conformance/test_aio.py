"""The store for coroutines keeps the promises of the store it is made of, on every engine."""

import asyncio
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from ruv_swarm_store import Agent, Conflict, InvalidValue, NewEvent, NewTask, NotFound, Sample, Store, StoreError, TaskStatus
from ruv_swarm_store.aio import AsyncStore
from ruv_swarm_store.aio.crew import _Job
from ruv_swarm_store.errors import Closed
from ruv_swarm_store.schema import tasks

Scenario = Callable[[AsyncStore], Awaitable[object]]


@pytest.fixture
def play(database: Any) -> Callable[..., None]:
    """Lets a scenario play on a store for coroutines."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            async with AsyncStore.open(database.address, **options) as store:
                await asyncio.wait_for(scenario(store), 20)

        asyncio.run(main())

    return run


def test_a_task_s_life(play):
    async def scenario(store):
        scout = await store.agents.register("scout", name="s")
        with pytest.raises(Conflict):
            await store.agents.register("scout", name="s")
        first = await store.tasks.enqueue("crawl", {"n": 1}, priority=9)
        await store.tasks.enqueue_many([NewTask("crawl", {"n": 2}), ("index", None)])
        task = await store.tasks.claim(scout, types=["crawl"])
        assert task.id == first.id
        assert await store.tasks.heartbeat(task) is True
        await store.tasks.complete(task, {"ok": True})
        assert (await store.tasks.get(task.id)).status is TaskStatus.COMPLETED
        assert len(await store.tasks.claim_many(scout, 5)) == 2
        assert await store.tasks.claim(scout) is None
        assert (await store.tasks.stats()).counts is not None
        with pytest.raises(NotFound):
            await store.tasks.get("nobody")

    play(scenario)


def test_many_at_once(play):
    async def scenario(store):
        scout = await store.agents.register("scout")
        added = await asyncio.gather(*(store.tasks.enqueue("t", number) for number in range(200)))
        assert [task.payload for task in added] == list(range(200))
        claimed = await asyncio.gather(*(store.tasks.claim(scout) for _ in range(210)))
        assert sorted(task.payload for task in claimed if task is not None) == list(range(200))
        found = await asyncio.gather(*(store.tasks.get(task.id) for task in added))
        assert [task.id for task in found] == [task.id for task in added]

    play(scenario)


def test_every_noun(play, clock):
    async def scenario(store):
        a, b = await store.agents.register("a"), await store.agents.register("b")
        message = await store.messages.publish("t", {"n": 1}, sender=a, to=b)
        assert [got.id for got in await store.messages.receive(b)] == [message.id]
        await store.messages.acknowledge(message, b)
        assert await store.messages.unread(b) == 0
        assert [said.id async for said in store.messages.conversation(a, b)] == [message.id]
        await store.config.set("k", {"v": 1})
        assert await store.config.get("k") == {"v": 1}
        assert await store.config.get("absent", 7) == 7
        assert await store.config.query().count() == 1
        group = await store.groups.create("g")
        await store.groups.join(group, a, role="lead")
        assert [member.agent_id for member in await store.groups.members(group)] == [a.id]
        await store.metrics.record_many([Sample("latency", 1.0), Sample("latency", 3.0)])
        [total] = await store.metrics.aggregate("latency")
        assert (total.count, total.avg) == (2, 2.0)
        async with store.metrics.buffer(seconds=None) as buffer:
            await buffer.record("latency", 5.0)
            assert buffer.pending == 1
        assert await store.metrics.samples("latency").count() == 3
        assert await store.agents.update(replace(a, configuration={"x": 1})) != a
        with pytest.raises(Conflict):
            await store.agents.update(replace(a, configuration={"x": 2}))
        assert await store.execute(select(tasks.c.id)) == []
        assert await store.check() == []

    play(scenario, clock=clock)


def test_what_is_kept_in_memory(play):
    async def scenario(store):
        scout = await store.agents.register("scout", id="s")
        kept = store.agents.cached(probe=5.0)
        for _ in range(2):
            assert await kept.get("s") == await kept.find_by_id("s") == scout
            assert await kept.find_by_id("nobody") is None
            assert await kept.exists("s")
            assert not await kept.exists("nobody")
            with pytest.raises(NotFound):
                await kept.get("nobody")
        assert kept.stats().hits > 5
        changed = await store.agents.set_status("s", "busy")
        assert await kept.get("s") == changed
        settings = store.config.cached(probe=5.0)
        for _ in range(2):
            assert await settings.get("k", 7) == 7
        await store.config.set("k", 1)
        for _ in range(2):
            assert await settings.get("k", 7) == 1
            assert (await settings.entry("k")).value == 1

    play(scenario)


def test_queries_and_pages(play):
    async def scenario(store):
        await store.tasks.enqueue_many([("t", number) for number in range(25)])
        some = store.tasks.where(tasks.c.type == "t").order_by(tasks.c.position.desc()).limit(10)
        assert "ORDER BY" in str(some)
        assert [task.payload async for task in some] == list(range(24, 14, -1))
        assert [task.payload for task in await some.all()] == list(range(24, 14, -1))
        assert (await some.first()).payload == 24
        assert await some.exists()
        assert [len(page) async for page in store.tasks.pages(10)] == [10, 10, 5]
        with pytest.raises(InvalidValue):
            store.tasks.where("priority > 1")
        async for page in store.tasks.where(tasks.c.type == "t").pages(5):
            assert len(page) == 5
            break

    play(scenario)


def test_a_unit_of_work_is_a_function(play):
    async def scenario(store):
        def both(work):
            task = work.tasks.enqueue("t")
            with work.transaction() as part:
                part.config.set("k", 1)
            work.events.append(task.id, [NewEvent("enqueued")], type="task")
            return task

        task = await store.transaction(both)
        assert await store.events.version(task.id, type="task") == 1
        assert await store.config.get("k") == 1

        def fails(work):
            work.config.set("k", 2)
            raise RuntimeError("undo")

        with pytest.raises(RuntimeError, match="undo"):
            await store.transaction(fails)
        assert await store.config.get("k") == 1

    play(scenario)


def test_what_is_called_in_a_transaction_cannot_be_a_coroutine_function(play):
    async def scenario(store):
        async def function(work):
            pass

        async def handler(work, event):
            pass

        class Handler:
            async def __call__(self, work, event):
                pass

        def sly(work):
            work.config.set("k", 1)
            return function(work)

        with pytest.raises(InvalidValue, match="coroutine"):
            await store.transaction(function)
        with pytest.raises(InvalidValue, match="coroutine"):
            await store.transaction(sly)
        assert await store.config.get("k") is None  # it was undone
        subscription = await store.events.subscribe("s")
        for wrong in (handler, Handler()):
            with pytest.raises(InvalidValue, match="coroutine"):
                await subscription.handle(wrong)
            with pytest.raises(InvalidValue, match="coroutine"):
                await subscription.follow(wrong, timeout=0)

    play(scenario)


def test_events(play):
    async def scenario(store):
        for start in range(0, 1_200, 400):
            await store.events.append("s", [NewEvent("e", number) for number in range(start, start + 400)], type="t")
        assert [event.event_data async for event in store.events.walk()] == list(range(1_200))
        assert [event.event_data async for event in store.events.walk_stream("s", type="t", after=1_190)] == list(range(1_190, 1_200))
        assert await store.events.fold("s", 0, lambda total, event: total + event.event_data, type="t") == sum(range(1_200))
        seen = []

        async def follow():
            async for event in store.events.follow(after=1_100):
                seen.append(event.event_data)
                if len(seen) == 101:
                    return

        following = asyncio.create_task(follow())
        while len(seen) < 100:
            await asyncio.sleep(0.01)
        await store.events.append("s", [NewEvent("e", 1_200)], type="t")
        await following
        assert seen == list(range(1_100, 1_201))
        assert [event async for event in store.events.follow(after=2_000, timeout=0.01)] == []

    play(scenario)


def test_consumers(play):
    async def scenario(store):
        await store.events.append("s", [NewEvent("e", number) for number in range(5)], type="t")
        subscription = await store.events.subscribe("sub")
        assert (subscription.name, await subscription.position(), await subscription.lag()) == ("sub", 0, 5)
        handled = []
        assert await subscription.handle(lambda work, event: handled.append(event.event_data), limit=2) == 2
        assert await subscription.batch(lambda work, events: [event.event_data for event in events], limit=2) == [2, 3]
        following = asyncio.create_task(
            subscription.follow(lambda work, event: handled.append(event.event_data), stop=lambda: 5 in handled)
        )
        await asyncio.sleep(0.05)
        await store.events.append("s", [NewEvent("e", 5)], type="t")
        assert await following == 2
        assert handled == [0, 1, 4, 5]
        group = await store.events.group("grp")
        claims = await group.claim("m", 3)
        await group.acknowledge(claims)
        assert [claim.event.event_data for claim in await group.wait("m", 10, timeout=1)] == [3, 4, 5]
        assert await group.lag() == 3

    play(scenario)


class Sum:
    """A projection that keeps one number in the configuration."""

    name = "sum"
    version = 1

    def apply(self, work: Any, event: Any, slot: str) -> None:
        work.config.set(f"sum-{slot}", work.config.get(f"sum-{slot}", 0) + event.event_data)

    def clear(self, work: Any, slot: str) -> None:
        work.config.set(f"sum-{slot}", 0)


def test_projections_and_the_journal(play):
    async def scenario(store):
        await store.events.append("s", [NewEvent("e", number) for number in range(5)], type="t")
        projector = store.events.project(Sum())
        assert await projector.due()
        assert await projector.rebuild()
        assert await store.config.get(f"sum-{await projector.live()}") == 10
        await store.events.append("s", [NewEvent("e", 5)], type="t")
        assert await projector.run(timeout=0.01) == 1
        assert projector.name == "sum"
        assert await store.events.seal() is not None
        assert (await store.events.verify()).intact

        class Wrong(Sum):
            async def apply(self, work: Any, event: Any, slot: str) -> None:  # type: ignore[override]
                pass

        with pytest.raises(InvalidValue, match="coroutine"):
            store.events.project(Wrong())
        await store.journal.start()
        assert await store.journal.status() is not None
        await store.config.set("journaled", 1)
        assert (await store.journal.rebuild()).agrees

    play(scenario)


def test_waiting(play):
    async def scenario(store):
        scouts = [await store.agents.register("scout") for _ in range(20)]
        waiting = [asyncio.create_task(store.tasks.wait(scout, timeout=15)) for scout in scouts]
        for number in range(20):
            await asyncio.sleep(0.002)
            await store.tasks.enqueue("t", number)
        taken = await asyncio.gather(*waiting)
        assert sorted(task.payload for task in taken) == list(range(20))
        assert await store.tasks.wait(scouts[0], timeout=0.02) is None

        async def answer():
            [question] = await store.messages.wait(scouts[1], timeout=15)
            await store.messages.reply(question, sum(question.content), sender=scouts[1])

        answering = asyncio.create_task(answer())
        reply = await store.messages.request("sum", [1, 2, 3], sender=scouts[0], to=scouts[1], timeout=15)
        assert reply.content == 6
        await answering

    play(scenario)


def test_who_is_cancelled_while_waiting_has_taken_nothing(play):
    async def scenario(store):
        scout = await store.agents.register("scout")
        waiting = asyncio.create_task(store.tasks.wait(scout))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.tasks.enqueue("t")
        assert await store.tasks.wait(scout, timeout=5) is not None  # a look that was under way may yet give it back

    play(scenario)


def test_who_is_cancelled_as_it_is_woken_does_not_go_on(play):
    async def scenario(store):
        scout = await store.agents.register("scout")
        for number in range(10):
            waiting = asyncio.create_task(store.tasks.wait(scout, types=["never"]))
            await asyncio.sleep(0.01)
            await store.config.set("k", number)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    play(scenario)


def test_who_follows_a_backlog_lets_others_go_on_and_may_be_cancelled(play):
    async def scenario(store):
        await store.events.append("s", [NewEvent("t", number) for number in range(60)], type="thing")
        handled = []

        def handle(work, event):
            handled.append(event.event_data)
            time.sleep(0.005)

        subscription = await store.events.subscribe("s")
        following = asyncio.create_task(subscription.follow(handle, limit=1))
        while len(handled) < 3:
            await asyncio.sleep(0.002)
        await store.config.set("k", 1)
        assert len(handled) < 50
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await store.config.set("k", 2)
        count = len(handled)
        await asyncio.sleep(0.03)
        assert count <= len(handled) <= count + 1 < 55  # where transactions run side by side, what had begun may end after that

    play(scenario)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208


@pytest.mark.needs("threads")
def test_half_of_a_thousand_are_cancelled_and_nothing_is_lost_or_left(play):
    """Each at the moment when his turn has just come, or is about to."""
    chance, everybody = random.Random(13), range(1_000)

    async def scenario(store):
        scout, other = await store.agents.register("scout"), await store.agents.register("other")
        await store.tasks.enqueue_many([("t", number) for number in range(400)])
        await store.transaction(lambda work: [work.messages.publish("m", to=scout) for _ in range(400)])
        taken, received, there = {}, set(), {"config": set(), "tasks": set(), "messages": set(), "streams": set()}
        measured = finished = 0

        async def take(number):
            if (task := await store.tasks.claim(scout, types=["t"])) is not None:
                taken[task.id] = task

        async def wait(number):
            if (task := await store.tasks.wait(scout, types=["t"], timeout=0.2)) is not None:
                taken[task.id] = task

        async def finish(number):
            if (task := await store.tasks.claim(scout, types=["t"])) is not None:
                taken[task.id] = task
                await store.tasks.complete(task)

        async def receive(number):
            received.update(message.id for message in await store.messages.receive(scout, limit=1))

        async def enqueue(number):
            there["tasks"].add((await store.tasks.enqueue("u")).id)

        async def publish(number):
            there["messages"].add((await store.messages.publish("m", to=other)).id)

        async def append(number):
            await store.events.append(f"s{number}", [NewEvent("e")], type="t")
            there["streams"].add(f"s{number}")

        async def measure(number):
            nonlocal measured
            await store.metrics.record("n", 1.0)
            measured += 1

        async def set_one(number):
            there["config"].add((await store.config.set(f"k{number}", 1)).key)

        async def set_both(number):
            await store.transaction(lambda work: [work.config.set(f"{half}{number}", 1) for half in "ab"])

        def note(_):
            nonlocal finished
            finished += 1

        verbs = [take, take, wait, finish, receive, enqueue, publish, append, measure, set_one, set_both]
        jobs = [asyncio.create_task(chance.choice(verbs)(number)) for number in everybody]
        for job in jobs:
            job.add_done_callback(note)
        for number in sorted(chance.sample(everybody, 500)):
            while finished < number - chance.randrange(40):
                await asyncio.sleep(0)
            jobs[number].cancel()
        came = await asyncio.gather(*jobs, return_exceptions=True)
        assert [error for error in came if error is not None and not isinstance(error, asyncio.CancelledError)] == []
        desk, lanes = store._crew._desk(), list(store._crew._lanes())
        while desk.under_way:  # what is given back is, too
            await asyncio.sleep(0.001)
        assert ([len(lane._jobs) for lane in lanes], len(desk.done)) == ([0] * len(lanes), 0)

        found = await store.tasks.find_all()
        assert {task.id for task in found if task.status is TaskStatus.ASSIGNED} <= taken.keys()
        assert {task.id for task in found if task.status is TaskStatus.PENDING}.isdisjoint(taken)
        assert sum(task.type == "t" for task in found) == 400
        assert {task.retry_count for task in found} == {0}
        again = {message.id for message in await store.messages.receive(scout, limit=1_000)}
        assert again.isdisjoint(received)
        assert len(again | received) == 400
        assert there["tasks"] <= {task.id for task in found}
        assert there["messages"] <= {message.id for message in await store.messages.find_all()}
        assert there["streams"] <= {event.aggregate_id async for event in store.events.walk()}
        assert there["config"] <= (await store.config.prefix("k")).keys()
        halves = [{key[1:] for key in await store.config.prefix(half)} for half in "ab"]
        assert halves[0] == halves[1]
        assert measured <= await store.metrics.count() <= len(everybody)
        assert await store.check() == []
        del came, jobs, job
        gc.collect()
        assert [left for left in gc.get_objects() if type(left) is _Job] == []

    before = threading.active_count(), _open_files()
    play(scenario)
    assert (threading.active_count(), _open_files()) <= before


def test_closing_ends_the_waiting_and_refuses_what_comes_later(database):
    async def main():
        store = await AsyncStore.open(database.address)
        scout = await store.agents.register("scout")
        waiting = asyncio.create_task(store.tasks.wait(scout, timeout=15))
        following = asyncio.create_task(anext(aiter(store.events.follow())))
        await asyncio.sleep(0.05)
        await store.close()
        for task in (waiting, following):
            with pytest.raises(StoreError, match="closed"):
                await task
        with pytest.raises(Closed):
            await store.tasks.enqueue("t")
        with pytest.raises(Closed):
            await store.transaction(lambda work: None)
        with pytest.raises(Closed):
            await store.flush()
        await store.close()  # harmless when repeated

    asyncio.run(main())


def test_a_query_made_of_a_closed_store_is_refused(database):
    async def main():
        async with AsyncStore.open(database.address) as store:
            query, walk = store.tasks.query(), store.events.walk()
        with pytest.raises(Closed):
            await query.all()
        with pytest.raises(Closed):
            await anext(walk)

    asyncio.run(main())


@pytest.mark.needs("persistent")
def test_who_blocks_and_who_awaits_share_a_database(database):
    async def main():
        async with AsyncStore.open(database.address) as store:
            await store.config.set("k", 1)
            blocking: Store = database.open()
            assert blocking.config.get("k") == 1
            scout: Agent = blocking.agents.register("scout")
            waiting = asyncio.create_task(store.tasks.wait(scout, timeout=15))
            await asyncio.sleep(0.05)
            blocking.tasks.enqueue("t")
            assert await waiting is not None

    asyncio.run(main())


def test_what_fails_to_open_says_so_and_leaves_nothing(database):
    async def main():
        with pytest.raises(InvalidValue):
            await AsyncStore.open(database.address, durability="half")
        with pytest.raises(InvalidValue):
            async with AsyncStore.open(""):
                pass

    asyncio.run(main())


@pytest.mark.needs("persistent")
def test_it_is_all_there_when_it_is_opened_again(play):
    async def write(store):
        await asyncio.gather(*(store.config.set(f"k{number}", number) for number in range(50)))

    async def read(store):
        assert await store.config.prefix("k") == {f"k{number}": number for number in range(50)}

    play(write, durability="full")
    play(read)


@pytest.mark.needs("threads")
def test_backups(play, tmp_path):
    async def scenario(store):
        await store.config.set("k", 1)
        backups = store.backup_to(tmp_path / "backups")
        backup = await backups.create()
        assert [found.id for found in await backups.list()] == [backup.id]
        assert (await backups.verify()).problems == ()
        async with backups.schedule(3_600) as schedule:
            assert schedule.failure is None
        with pytest.raises(InvalidValue):
            await backups.create(kind="half")

    play(scenario)
