"""What is special to a store for coroutines: nothing is missing, threads and event loops, cancelling, and letting go."""

import ast
import asyncio
import contextvars
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import cached_property
from typing import Any

import aio_stub
import pytest

import ruv_swarm_store
from ruv_swarm_store import Conflict, InvalidValue, NewEvent, Store, StoreError, TaskStatus
from ruv_swarm_store.aio import AsyncStore, crew, nouns, tools
from ruv_swarm_store.aio import store as aio_store
from ruv_swarm_store.aio.carrying import MOST, SLICE, Feed
from ruv_swarm_store.aio.crew import Inline
from ruv_swarm_store.aio.deriving import Derived
from ruv_swarm_store.errors import Closed
from ruv_swarm_store.schema import tasks
from ruv_swarm_store.tasks import Tasks

DERIVED = {
    name: kind
    for module in (nouns, tools, aio_store)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Derived) and kind is not Derived
}


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that has to end soon."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main, 30)

    return asyncio.run(bounded())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("store-")]


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test with a store leaves a thread behind."""
    yield
    if "path" not in request.fixturenames:
        return
    deadline = time.monotonic() + 5
    while (left := [name for name in threads() if name != "store-sentinel"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


class Gate:
    """Keeps a thread until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, *_: Any) -> None:
        self.entered.set()
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        """Until a thread has come."""
        while not self.entered.is_set():
            await asyncio.sleep(0.001)


# Nothing is missing


@pytest.mark.parametrize("name", sorted(DERIVED))
def test_every_public_member_has_its_counterpart(name: str) -> None:
    kind = DERIVED[name]
    of = kind.recipe.of
    left_out = {"mapping", "managed", "there", "statements"} | set(kind.recipe.without) - {"open", "close"}
    public = {
        attribute
        for attribute in dir(of)
        if not attribute.startswith("_") and not (attribute.endswith("_async") and hasattr(of, attribute.removesuffix("_async")))
    }
    assert sorted(public - left_out - set(dir(kind if kind is not DERIVED.get("_Verbs") else AsyncStore))) == []


@pytest.mark.parametrize("name", sorted(DERIVED))
def test_recipes_speak_of_what_there_is(name: str) -> None:
    recipe = DERIVED[name].recipe
    named = [*recipe.reads, *recipe.errands, *recipe.plain, *recipe.asks, *recipe.without, *recipe.undo, *recipe.keeps]
    assert [attribute for attribute in named if not hasattr(recipe.of, attribute)] == []
    assert [attribute for attribute in recipe.asks if not isinstance(vars(recipe.of)[attribute], (property, cached_property))] == []


@pytest.mark.parametrize("name", sorted(DERIVED))
def test_what_is_said_to_read_does_not_write(name: str) -> None:
    recipe = DERIVED[name].recipe
    for attribute in recipe.reads:
        if inspect.isfunction(verb := inspect.unwrap(inspect.getattr_static(recipe.of, attribute))):
            assert "_scope.write" not in inspect.getsource(verb), attribute
            assert "_scope.transaction" not in inspect.getsource(verb), attribute


def test_the_stub_says_what_there_is() -> None:
    def parts(text: str) -> tuple[set[tuple[str | None, str, str | None]], list[str]]:
        imports, rest = set(), []
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom):
                imports |= {(node.module, alias.name, alias.asname) for alias in node.names}
            else:
                rest.append(ast.dump(node))
        return imports, rest

    stored, made = parts(aio_stub.STUB.read_text(encoding="utf-8")), parts(aio_stub.Stub().text())
    assert stored == made, "run: python tests/programs/aio_stub.py"


def test_verbs_look_like_those_they_are_made_of() -> None:
    claim = nouns.AsyncTasks.claim
    assert inspect.iscoroutinefunction(claim)
    assert list(inspect.signature(claim).parameters) == ["self", "agent", "types", "lease"]
    assert (claim.__qualname__, claim.__doc__) == ("AsyncTasks.claim", Tasks.claim.__doc__)
    opening = inspect.signature(AsyncStore.open)
    assert list(opening.parameters.values()) == list(inspect.signature(Store.open).parameters.values())
    assert (opening.parameters["durability"].default, opening.return_annotation) == ("normal", "Opening")
    assert nouns.AsyncQuery[Any] is not None
    assert ruv_swarm_store.AsyncStore is AsyncStore


def test_what_is_in_memory_is_asked_for_by_the_names_that_the_stub_has(path):
    async def main():
        async with AsyncStore.open(path) as store:
            await store.agents.register("scout", id="k")
            await store.config.set("k", 1)
            for cached in (store.agents.cached(probe=5.0), store.config.cached(probe=5.0)):
                for verb in nouns.AsyncCachedRepository.recipe.keeps | type(cached).recipe.keeps:
                    ask = getattr(cached, verb)
                    first, *_ = inspect.signature(ask).parameters
                    cached.clear()
                    assert [await ask(**{first: "k"}) for _ in range(2)] == [await ask("k")] * 2, verb
                    with pytest.raises(TypeError, match=first):
                        await ask()
                    with pytest.raises(TypeError):
                        await ask("k", nonsense=1)
            assert await store.config.cached().get(id="absent", default=7) == 7

    run(main())


# Threads


def test_writes_have_one_thread_and_reads_others(path):
    async def main():
        async with AsyncStore.open(path) as store:
            names = set()
            await asyncio.gather(*(store.transaction(lambda work: names.add(threading.current_thread().name)) for _ in range(50)))
            assert names == {"store-writer-1"}
            await asyncio.gather(*(store.tasks.find_by_id("x") for _ in range(50)))
            assert threads().count("store-reader-1") == 1

    run(main())


def test_what_is_done_comes_back_many_at_a_time(path):
    async def main():
        loop, rings = asyncio.get_running_loop(), 0
        ring = loop.call_soon_threadsafe

        def count(*args: Any) -> Any:
            nonlocal rings
            rings += 1
            return ring(*args)

        async with AsyncStore.open(path) as store:
            loop.call_soon_threadsafe = count  # type: ignore[method-assign]
            began = time.monotonic()
            await asyncio.gather(*(store._crew.writing.do(lambda: time.sleep(0.00005)) for _ in range(300)))
            took = time.monotonic() - began
            del loop.call_soon_threadsafe
        assert 0 < rings <= took / crew.LINGER + 2

    run(main())


def test_what_takes_long_holds_nobody_up(path):
    """A read that takes long keeps neither writes nor other reads; what was done before it comes back while it runs."""

    async def main():
        async with AsyncStore.open(path) as store:
            gate, slow = Gate(), Gate()
            await store.events.append("s", [NewEvent("e")], type="t")
            held = asyncio.gather(
                store.config.get("first"), store.events.fold("s", 0, lambda state, event: slow() or 1, type="t"), store.config.get("later")
            )
            await asyncio.wait_for(slow.wait(), 5)
            assert await asyncio.wait_for(store.config.get("k"), 5) is None
            assert await asyncio.wait_for(store.config.set("k", 1), 5)
            early = asyncio.create_task(store.config.set("k", 2))
            busy = asyncio.create_task(store.transaction(gate))
            assert (await asyncio.wait_for(early, 5)).value == 2
            assert await asyncio.wait_for(store.config.get("k"), 5) == 2
            assert await asyncio.wait_for(store.check(), 5) == []  # an errand
            slow.open()
            gate.open()
            await held
            await busy

    run(main())


def test_a_thread_that_was_kept_leaves_what_is_short_to_the_one_that_came_for_it(path):
    running, together, count = 0, 0, threading.Lock()

    def short() -> None:
        nonlocal running, together
        with count:
            running += 1
            together += running > 1
        time.sleep(0.0002)
        with count:
            running -= 1

    async def main():
        async with AsyncStore.open(path) as store:
            gate, reading = Gate(), store._crew.reading
            held = asyncio.ensure_future(reading.do(gate))
            await gate.wait()
            behind = [reading.do(short) for _ in range(400)]
            await behind[0]
            gate.open()
            await asyncio.gather(held, *behind)
            assert together < 100  # the one that was kept does one, or a few where it cannot tell for itself

    run(main())


def test_what_is_called_sees_its_caller_s_context(path):
    who = contextvars.ContextVar("who", default="nobody")

    async def main():
        async with AsyncStore.open(path) as store:
            who.set("me")
            assert await store.transaction(lambda work: who.get()) == "me"

    run(main())


def test_an_error_is_the_caller_s_whatever_it_is(path):
    async def main():
        async with AsyncStore.open(path) as store:
            for error in (ValueError("no"), KeyboardInterrupt(), StoreError("no")):

                def fail(work: Any, error: BaseException = error) -> None:
                    raise error

                with pytest.raises(type(error)):
                    await store.transaction(fail)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await store.transaction(lambda work: next(iter(())))
            with pytest.raises(TypeError):
                await store.tasks.enqueue()
            await store.config.set("k", 1)  # the thread goes on

    run(main())


# What is mistaken


@pytest.mark.parametrize("form", ["async with", "with"])
def test_a_block_where_a_function_is_to_be_given_is_told(path, form):
    async def main():
        async with AsyncStore.open(path) as store:
            with pytest.raises(InvalidValue, match=r"await ….transaction\(lambda work: "):
                if form == "with":
                    with store.transaction():  # type: ignore[attr-defined,call-arg]
                        pass
                async with store.transaction():  # type: ignore[attr-defined,call-arg]
                    pass
            subscription = await store.events.subscribe("s")
            with pytest.raises(InvalidValue, match=r"await ….batch\(lambda work, events: "):
                async with subscription.batch(limit=3):
                    pass
            assert await store.transaction(function=lambda work: 7) == 7

    run(main())


def test_a_store_that_was_not_awaited_says_how_to_open_it(path):
    opening = AsyncStore.open(path)
    with pytest.raises(AttributeError, match=r"await AsyncStore\.open"):
        opening.tasks  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(opening, "close")


def test_what_would_have_to_be_awaited_is_refused_where_it_comes_back(path):
    async def main():
        async def add(state: int, event: Any) -> int:
            return state + 1

        async with AsyncStore.open(path) as store:
            await store.events.append("s", [NewEvent("e")], type="t")
            for wrong in (add, lambda state, event: add(state, event)):
                with pytest.raises(InvalidValue, match=r"coroutine|awaited"):
                    await store.events.fold("s", 0, wrong, type="t")
            with pytest.raises(InvalidValue, match="returned what has to be awaited"):
                await store.transaction(lambda work: store.config.set("k", 1))

    run(main())


def test_a_verb_that_is_awaited_in_the_thread_that_writes_is_refused(path):
    """It would wait for itself."""

    async def main():
        async with AsyncStore.open(path) as store:

            def nested(work: Any) -> None:
                asyncio.run(store.config.set("k", 1))

            with pytest.raises(StoreError, match="unit of work"):
                await asyncio.wait_for(store.transaction(nested), 5)

    run(main())


# Cancelling


def test_who_is_cancelled_before_his_turn_has_done_nothing(path):
    async def main():
        async with AsyncStore.open(path) as store:
            gate = Gate()
            holding = asyncio.create_task(store.transaction(gate))
            await gate.wait()
            behind = [asyncio.create_task(store.config.set(f"k{number}", number)) for number in range(10)]
            await asyncio.sleep(0)
            for task in behind[::2]:
                task.cancel()
            gate.open()
            await asyncio.gather(holding, *behind, return_exceptions=True)
            assert sorted((await store.config.prefix("k")).values()) == [1, 3, 5, 7, 9]

    run(main())


def test_who_is_cancelled_before_he_waits_leaves_nothing_behind(path):
    async def main():
        async with AsyncStore.open(path) as store:
            gate = Gate()
            holding = asyncio.create_task(store.transaction(gate))
            await gate.wait()
            waiting = asyncio.create_task(store.tasks.wait("nobody"))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gc.collect()  # a coroutine that was not begun would warn
            gate.open()
            await holding

    run(main())


def test_who_is_cancelled_leaving_a_buffer_leaves_it_written(path):
    async def main():
        async with AsyncStore.open(path) as store:
            gate, leaving = Gate(), asyncio.Event()

            async def measure() -> None:
                async with store.metrics.buffer(seconds=None) as buffer:
                    await buffer.record("n", 1.0)
                    jobs.append(asyncio.create_task(store.transaction(gate)))
                    await gate.wait()
                    leaving.set()  # and does so in the same turn

            jobs: list[asyncio.Task[None]] = []
            measuring = asyncio.create_task(measure())
            await leaving.wait()
            measuring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await measuring
            gate.open()
            await jobs[0]
            await store.config.set("k", 1)  # comes after it
            assert await store.metrics.count() == 1

    run(main())


def test_what_has_begun_is_done_to_its_end(path):
    async def main():
        async with AsyncStore.open(path) as store:
            gate = Gate()

            def slowly(work: Any) -> None:
                work.config.set("a", 1)
                gate()
                work.config.set("b", 2)

            job = asyncio.create_task(store.transaction(slowly))
            await gate.wait()
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert await store.config.get("a") is None
            gate.open()
            await store.config.set("c", 3)  # comes after it
            assert (await store.config.get("a"), await store.config.get("b")) == (1, 2)

    run(main())


def test_what_was_taken_for_who_is_cancelled_is_given_back(path, monkeypatch):
    async def cancelled(job: Coroutine[Any, Any, Any], gate: Gate) -> None:
        task = asyncio.create_task(job)
        await gate.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()

    async def main():
        async with AsyncStore.open(path) as store:
            scout = await store.agents.register("scout")
            await store.tasks.enqueue_many([("t", 1), ("t", 2)])
            await store.messages.publish("t", 1)
            await store.events.append("s", [NewEvent("e")], type="t")
            group = await store.events.group("g")
            taking: list[tuple[Any, str, Callable[[], Coroutine[Any, Any, Any]]]] = [
                (store.tasks, "claim", lambda: store.tasks.claim(scout)),
                (store.tasks, "claim_many", lambda: store.tasks.claim_many(scout, 2)),
                (store.tasks, "claim", lambda: store.tasks.wait(scout)),
                (store.messages, "receive", lambda: store.messages.receive(scout)),
                (store.messages, "receive", lambda: store.messages.wait(agent=scout)),
                (group, "claim", lambda: group.claim("m")),
                (group, "_claim", lambda: group.wait("m")),
            ]
            for noun, verb, job in taking:
                gate, take = Gate(), getattr(noun._of, verb)

                def and_wait(*args: Any, gate: Gate = gate, take: Callable[..., Any] = take, **kwargs: Any) -> Any:
                    taken = take(*args, **kwargs)
                    assert taken
                    gate()
                    return taken

                monkeypatch.setattr(noun._of, verb, and_wait)
                await cancelled(job(), gate)
                monkeypatch.undo()
            pending = await store.tasks.where(tasks.c.status == TaskStatus.PENDING).all()
            assert len(pending) == 2
            assert {task.retry_count for task in pending} == {0}
            assert len(await store.messages.receive(scout)) == 1
            assert len(await group.claim("m")) == 1

    run(main())


@pytest.mark.parametrize("begun", [True, False], ids=["while it is acknowledged", "on its way to the loop"])
def test_a_reply_to_who_is_cancelled_comes_to_who_receives_for_him(path, begun):
    async def main():
        async with AsyncStore.open(path) as store:
            asker, other = await store.agents.register("a"), await store.agents.register("b")
            gate, acknowledge = Gate(), store._of.messages.acknowledge
            store._of.messages.acknowledge = lambda *args: (acknowledge(*args), gate())  # type: ignore[func-returns-value,method-assign]
            asking = asyncio.create_task(store.messages.request("q", sender=asker, to=other))
            [question] = await store.messages.wait(other)
            await store.messages.reply(question, 7, sender=other)
            await gate.wait()
            if not begun:
                gate.open()
                while not store._crew._desk().done:
                    time.sleep(0.001)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            gate.open()
            [answer] = await store.messages.wait(asker, timeout=5)
            assert answer.content == 7
            del store._of.messages.acknowledge
            await store.messages.acknowledge(answer, asker)
            assert await store.messages.unread(asker) == 0

    run(main())


@pytest.mark.parametrize("fetched", [True, False], ids=["on its way to him", "on its way to the loop"])
@pytest.mark.parametrize("verb", ["claim", "wait"])
def test_what_has_come_for_who_is_cancelled_before_he_has_it_is_given_back(path, verb, fetched):
    async def main():
        async with AsyncStore.open(path) as store:
            scout = await store.agents.register("scout")
            await store.tasks.enqueue("t")
            desk = store._crew._desk()
            task = asyncio.create_task(getattr(store.tasks, verb)(scout))
            await asyncio.sleep(0)
            while not desk.done:
                time.sleep(0.001)
            if fetched:
                desk.fetch()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while [task.status for task in await store.tasks.find_all()] != [TaskStatus.PENDING]:
                await asyncio.sleep(0.001)

    run(main())


@pytest.mark.parametrize("finished", [True, False], ids=["when it is done", "while it runs"])
def test_what_was_taken_for_a_loop_that_is_closed_is_given_back(path, finished):
    gate = Gate()

    async def begin() -> tuple[AsyncStore, str]:
        store = await AsyncStore.open(path)
        scout = await store.agents.register("scout")
        await store.tasks.enqueue("t")
        claim = store._of.tasks.claim
        store._of.tasks.claim = lambda agent: (claim(agent), gate())[0]  # type: ignore[method-assign]
        return store, scout.id

    async def given_back(store: AsyncStore) -> None:
        while [task.status for task in await store.tasks.find_all()] != [TaskStatus.PENDING]:
            await asyncio.sleep(0.001)
        await store.close()

    loop = asyncio.new_event_loop()
    store, scout = loop.run_until_complete(begin())
    claiming = loop.create_task(store.tasks.claim(scout))
    loop.run_until_complete(asyncio.sleep(0))
    assert gate.entered.wait(5)
    desk = store._crew._desks[loop]
    if finished:
        gate.open()
        while not desk._rung:
            time.sleep(0.001)
    loop.close()
    gate.open()
    run(given_back(store))
    claiming._log_destroy_pending = False  # or else asyncio says of it that it was


def test_what_is_on_its_way_to_who_is_cancelled_is_given_back_before_the_store_closes(path, monkeypatch):
    async def main():
        store = await AsyncStore.open(path)
        scout = await store.agents.register("scout")
        await store.tasks.enqueue("t")
        with monkeypatch.context() as slow:
            slow.setattr(crew.Desk, "fetch", lambda desk: None)
            claiming = asyncio.create_task(store.tasks.claim(scout))
            await asyncio.sleep(0)
            while not store._crew._desk().done:
                time.sleep(0.001)
            claiming.cancel()
            closing = asyncio.create_task(store.close())
            while not store._of._closed:
                await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await claiming
        await closing
        with Store.open(path) as again:
            assert [task.status for task in again.tasks.find_all()] == [TaskStatus.PENDING]

    run(main())


def test_giving_back_may_fail_in_any_way(path, monkeypatch):
    async def main():
        async with AsyncStore.open(path) as store:
            scout = await store.agents.register("scout")
            for error in (ValueError("no"), KeyboardInterrupt(), asyncio.CancelledError()):
                gate = Gate()

                def claim(agent: Any, gate: Gate = gate) -> list[Any]:
                    gate()
                    return []

                def release(taken: Any, error: BaseException = error) -> None:
                    raise error

                monkeypatch.setattr(store._of.tasks, "claim", claim)
                monkeypatch.setattr(store._of.tasks, "release_many", release)
                claiming = asyncio.create_task(store.tasks.claim(scout))
                await gate.wait()
                claiming.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await claiming
                gate.open()
                assert await asyncio.wait_for(store.tasks.count(), 5) == 0
                await asyncio.wait_for(store.config.set("k", 1), 5)  # the thread goes on

    run(main())


@pytest.mark.parametrize("moment", ["before its turn", "while it begins", "when it has begun"])
def test_what_was_begun_for_who_is_cancelled_is_ended(path, monkeypatch, moment):
    """A schedule of backups has a thread of its own."""

    async def main():
        async with AsyncStore.open(path) as store:
            schedule = store.backups.schedule(3600)
            gate = Gate()
            begin = type(schedule._of).__enter__

            def slowly(of: Any) -> Any:
                begun = begin(of)
                gate()
                return begun

            monkeypatch.setattr(type(schedule._of), "__enter__", slowly)
            entering = asyncio.create_task(schedule.__aenter__())
            if moment != "before its turn":
                await gate.wait()
            if moment == "when it has begun":
                gate.open()
                while not store._crew._desk().done:
                    time.sleep(0.001)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            gate.open()
            assert await store.check() == []
            while any(thread.name == "ruv-swarm-backups" for thread in threading.enumerate()):
                await asyncio.sleep(0.001)

    run(main())


def test_what_was_begun_ends_before_the_store_does(path):
    async def main():
        async with AsyncStore.open(path) as store:
            late = store.backups.schedule(3600)
            async with store.backups.schedule(3600), store.metrics.buffer(seconds=None) as buffer:
                await buffer.record("n", 1.0)
                await store.close()
                assert not any(thread.name == "ruv-swarm-backups" for thread in threading.enumerate())
            with pytest.raises(Closed):
                await late.__aenter__()
        with Store.open(path) as again:
            assert again.metrics.count() == 1

    run(main())


@pytest.mark.parametrize("moment", ["while it opens", "on its way to the loop", "on its way to him"])
def test_what_is_opened_for_who_is_cancelled_is_closed(path, monkeypatch, moment):
    opened: list[Store] = []
    gate, really = Gate(), Store.open.__func__  # type: ignore[attr-defined]

    def slowly(*args: Any, **kwargs: Any) -> Store:
        opened.append(really(Store, *args, **kwargs))
        gate()
        return opened[0]

    async def main():
        loop = asyncio.get_running_loop()
        came = threading.Event()

        opening = asyncio.ensure_future(AsyncStore.open(path)._open())
        await gate.wait()
        if moment != "while it opens":
            ring = loop.call_soon_threadsafe
            held: list[Callable[[], object]] = []
            monkeypatch.setattr(loop, "call_soon_threadsafe", lambda function: (held.append(function), came.set()))
            gate.open()
            assert came.wait(5)
            monkeypatch.setattr(loop, "call_soon_threadsafe", ring)
            if moment == "on its way to him":
                held[0]()
            else:
                ring(held[0])
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        gate.open()
        while not opened[0]._closed:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(Store, "open", slowly)
    run(main())


# Iterators


def test_a_feed_gives_what_there_is_before_it_fails_and_soon() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("damaged")

    feed = Feed(numbers().__next__)
    assert feed.pull() == ([1, 2], None)
    with pytest.raises(ValueError, match="damaged"):
        feed.pull()

    def slowly() -> Iterator[int]:
        for number in range(MOST):
            time.sleep(SLICE)
            yield number

    items, _ = Feed(slowly().__next__).pull()
    assert 0 < len(items) < 5
    assert Feed(iter([1, 2, 3]).__next__, 2).pull()[0] == [1, 2]


def test_with_the_monitor_on_every_noun_is_to_be_awaited(path):
    async def main():
        async with AsyncStore.open(path, monitor=True) as store:
            assert await store.tasks.count() == 0
            with store.monitor.track("mine"):
                assert await store.tasks.query().count() == 0
            assert {found.name for found in (await store.monitor.snapshot()).operations} >= {"mine", "tasks.count"}

    run(main())


@pytest.mark.parametrize("moment", ["it waits", "it looks", "what it saw is on its way"])
def test_who_waits_has_one_span_around_all_it_does(path, monkeypatch, caplog, moment):
    """Also who is cancelled: a span that is ended elsewhere than in the context it began in is an error of OpenTelemetry's."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))

    async def main():
        async with AsyncStore.open(path) as store:
            scout = await store.agents.register("scout")
            await store.monitor.opentelemetry(provider)
            waiting = asyncio.create_task(store.tasks.wait(scout, timeout=10))
            await asyncio.sleep(0.05)
            await store.tasks.enqueue("t")
            assert await waiting is not None
            gate, plain = Gate(), store._of.tasks._plain
            if moment == "it looks":
                monkeypatch.setattr(plain, "rescue", gate)
            waiting = asyncio.create_task(store.tasks.wait(scout))
            if moment == "it waits":
                await asyncio.sleep(0.05)
            elif moment == "it looks":
                await gate.wait()
            else:
                await asyncio.sleep(0)
                while not store._crew._desk().done:
                    time.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open()
            await store.config.set("k", 1)  # comes after it

    run(main())
    gc.collect()  # or else what was not ended would be now
    ended = spans.get_finished_spans()
    verbs = {span.context.span_id: span.name for span in ended if "." in span.name}
    assert sorted(verbs.values()) == ["config.set", "tasks.enqueue", "tasks.wait_async", "tasks.wait_async"]
    statements = [span for span in ended if span.name not in verbs.values()]
    within = [(span.name, verbs[span.parent.span_id]) for span in statements if span.parent is not None]
    assert ("UPDATE", "tasks.wait_async") in within
    assert within.count(("SELECT", "tasks.wait_async")) >= 2
    # What looks on behalf of all who wait is nobody's.
    assert {span.name for span in statements if span.parent is None} <= {"SELECT"}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# Event loops


def test_one_store_serves_several_event_loops(path):
    async def opened() -> AsyncStore:
        return await AsyncStore.open(path)

    async def write(store: AsyncStore, first: int) -> None:
        await asyncio.gather(*(store.config.set(f"k{number}", number) for number in range(first, first + 50)))

    store = run(opened())
    loops = [threading.Thread(target=lambda first=first: run(write(store, first))) for first in range(0, 200, 50)]
    for thread in loops:
        thread.start()
    for thread in loops:
        thread.join()

    async def read() -> None:
        assert len(await store.config.prefix("k")) == 200
        assert len(store._crew._desks) == 1  # that of this loop: the others' are closed
        await store.close()

    run(read())


def test_an_event_loop_may_end_while_its_job_runs(path):
    gate = Gate()

    async def leave(store: AsyncStore) -> None:
        asyncio.get_running_loop().call_soon(lambda: None)
        jobs = [asyncio.create_task(store.transaction(gate)), asyncio.create_task(store.config.set("k", 1))]
        await gate.wait()
        assert len(jobs) == 2

    async def opened() -> AsyncStore:
        return await AsyncStore.open(path)

    store = run(opened())
    run(leave(store))
    gate.open()

    async def close() -> None:
        assert await store.config.get("k") is None
        await store.close()

    run(close())


def test_outside_an_event_loop_it_says_so(path):
    async def opened() -> AsyncStore:
        return await AsyncStore.open(path)

    store = run(opened())
    verb = store.tasks.count()
    with pytest.raises(RuntimeError, match="event loop"):
        verb.send(None)
    run(store.close())


# Closing, and being dropped


def test_closing_waits_for_what_was_asked_for_and_refuses_what_comes_later(path):
    async def main():
        store = await AsyncStore.open(path)
        gate = Gate()
        holding = asyncio.create_task(store.transaction(gate))
        behind = asyncio.create_task(store.config.set("k", 1))
        await gate.wait()
        closing = [asyncio.create_task(store.close()) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Closed):
            await store.config.set("k", 2)
        closing[0].cancel()  # who does not wait for it does not end it
        await asyncio.sleep(0)
        gate.open()
        await closing[1]
        await holding
        assert (await behind).value == 1
        assert threads() == []
        with Store.open(path) as again:
            assert again.config.get("k") == 1

    run(main())


def test_each_who_comes_too_late_gets_an_error_of_his_own(path):
    async def main():
        store = await AsyncStore.open(path)
        await store.close()
        refused = []
        for _ in range(3):
            with pytest.raises(Closed) as caught:
                await store.config.get("k")
            refused.append((id(caught.value), len(caught.traceback)))
            kept.append(caught.value)
        assert len({known for known, _ in refused}) == 3
        assert len({depth for _, depth in refused}) == 1

    kept: list[Closed] = []
    run(main())


def test_one_that_is_dropped_open_warns_and_lets_go(path):
    async def main():
        store = await AsyncStore.open(path)
        await store.config.set("k", 1)
        assert threads()
        with pytest.warns(ResourceWarning, match="AsyncStore"):
            del store
            gc.collect()

    run(main())
    Store.open(path).close()


def test_one_that_is_dropped_open_ends_by_itself_when_what_runs_is_done(path):
    """The loop goes on: what runs may need it."""

    async def main():
        loop, gate = asyncio.get_running_loop(), Gate()
        store = await AsyncStore.open(path)
        nouns = store.config

        def needs_the_loop(work: Any) -> None:
            gate.entered.set()
            assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01, 7), loop).result(5) == 7
            work.config.set("k", 1)

        running = asyncio.create_task(store.transaction(needs_the_loop))
        await gate.wait()
        running.cancel()
        await asyncio.wait([running])
        sync = store._of
        with pytest.warns(ResourceWarning, match="AsyncStore"):
            del running, store
            gc.collect()
        with pytest.raises(Closed):
            await nouns.get("k")
        while threads():
            await asyncio.sleep(0.001)
        with pytest.raises(Closed):
            sync.config.get("k")

    run(main())
    with Store.open(path) as again:
        assert again.config.get("k") == 1


EXITS = {
    "while a transaction runs": """
        store = await AsyncStore.open(path)
        asyncio.create_task(store.transaction(lambda work: (work.config.set("k", 1), time.sleep(60))))
        await asyncio.sleep(0.1)
        raise RuntimeError("a bug")
    """,
    "while many write": """
        store = await AsyncStore.open(path)
        async def put():
            while True:
                await store.tasks.enqueue("t")
        asyncio.get_running_loop().call_later(0.1, asyncio.current_task().cancel, "a bug")
        await asyncio.gather(*(put() for _ in range(50)))
    """,
    "while somebody begins to wait": """
        global store
        store = await AsyncStore.open(path)
        await store.config.set("k", 1)
        asyncio.create_task(store.tasks.wait("x"))
        buffer = store.metrics.buffer()
        await buffer.record("n", 1)
        raise RuntimeError("a bug")
    """,
    "where it blocks": """
        store = Store.open(path)
        begun = threading.Event()
        def hold(engine):
            with engine.transaction():
                begun.set()
                time.sleep(60)
        threading.Thread(target=hold, args=[store._engine], daemon=True).start()
        begun.wait()
        raise RuntimeError("a bug")
    """,
}


@pytest.mark.parametrize("moment", EXITS)
def test_a_process_that_leaves_one_open_ends(environment, path, moment):
    """Its threads are gone when the interpreter ends, with what they held."""
    imports = "import asyncio, sys, threading, time\nfrom ruv_swarm_store import AsyncStore, Store\npath = sys.argv[1]"
    program = f"{imports}\nasync def main():{EXITS[moment]}\nasyncio.run(main())"
    plain = {**environment, "PYTHONWARNINGS": "ignore"}  # an error would keep it from being ended
    done = subprocess.run([sys.executable, "-c", program, path], env=plain, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "a bug" in done.stderr) == (1, True), done.stderr
    Store.open(path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_that_the_threads_are_its_parent_s(path):
    async def main():
        async with AsyncStore.open(path) as store:
            await store.config.set("k", 1)
            read, write = os.pipe()
            if not (child := os.fork()):
                try:
                    store.config.get("k").send(None)
                except StoreError as error:
                    os.write(write, str(error).encode())
                finally:
                    os._exit(0)
            os.close(write)
            os.waitpid(child, 0)
            assert b"parent process" in os.read(read, 1_000)
            os.close(read)
            assert await store.config.get("k") == 1  # here it goes on

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("moment", ["while another loop comes", "while it is closed"])
def test_a_forked_child_may_close_it_whatever_its_parent_was_at(path, moment):
    async def main():
        store = await AsyncStore.open(path)
        gate = Gate()
        running = asyncio.ensure_future(store._crew.errands.do(gate))
        await gate.wait()
        closing = asyncio.create_task(store.close())
        if moment == "while it is closed":
            await asyncio.sleep(0.01)
        lock = store._crew._lock
        if moment == "while another loop comes":
            lock.acquire()
        if not (child := os.fork()):
            signal.alarm(10)  # it would hang
            asyncio.run(store.close())
            os._exit(0)
        if moment == "while another loop comes":
            lock.release()
        gate.open()
        await asyncio.gather(running, closing)
        assert os.waitpid(child, 0)[1] == 0

    run(main())


def test_what_a_thread_cannot_be_started_for_is_an_error(path, monkeypatch):
    async def main():
        async with AsyncStore.open(path) as store:

            def refuse(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            with monkeypatch.context() as scarce:
                scarce.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="new thread"):
                    await store.config.get("k")
            assert not store._crew.reading._jobs
            assert await store.config.get("k") is None

    run(main())


# Without threads


def test_without_threads_it_works_inline(path):
    flushed = []

    async def flush() -> None:
        flushed.append(1)

    async def main():
        sync = Store.open(path)
        async with AsyncStore(Inline(flush), sync) as store:
            scout = await store.agents.register("scout")
            await store.tasks.enqueue_many([("t", number) for number in range(10)])
            assert len(flushed) == 2
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            assert [len(page) async for page in store.tasks.pages(4)] == [4, 4, 2]
            assert turns > 1  # others go on
            counting.cancel()
            waiting = asyncio.create_task(store.messages.wait(scout, timeout=10))
            following = asyncio.create_task(anext(aiter(store.events.follow())))
            await asyncio.sleep(0.02)
            await store.messages.publish("t", 1)
            await store.events.append("s", [NewEvent("e")], type="t")
            assert len(await waiting) == 1
            assert (await following).event_type == "e"
            assert (await store.tasks.claim(scout)).payload == 0
            assert (await store.tasks.wait(scout)).payload == 1
            with pytest.raises(Conflict):
                await store.agents.register("scout", name="x") and await store.agents.register("scout", name="x")
            assert await store.transaction(lambda work: work.config.set("k", 1).value) == 1
            subscription = await store.events.subscribe("s")
            assert await subscription.follow(lambda work, event: None, timeout=0.01) == 1
        with pytest.raises(Closed):
            await store.config.get("k")
        assert threads() in ([], ["store-sentinel"])

    run(main())


@pytest.mark.parametrize("verb", ["claim", "wait"])
def test_without_threads_what_is_taken_is_stored_or_given_back(path, verb):
    fails: list[BaseException] = []
    flushed = 0

    async def flush() -> None:
        nonlocal flushed
        await asyncio.sleep(0)
        if fails:
            raise fails.pop()
        flushed += 1

    async def main():
        async with AsyncStore(Inline(flush), Store.open(path)) as store:
            scout = await store.agents.register("scout")
            await store.tasks.enqueue("t")
            take = getattr(store.tasks, verb)
            taking = asyncio.create_task(take(scout))
            await asyncio.sleep(0)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            fails.append(StoreError("the disk is full"))
            with pytest.raises(StoreError, match="full"):
                await take(scout)
            before = flushed
            assert (await take(scout)).retry_count == 0
            assert flushed == before + 1

    run(main())


def test_the_limits_are_sane() -> None:
    assert crew.LINGER < crew.TICK  # or else ticks would hand back what is to be handed back together
