"""Forks: a child works on by itself, or is told clearly why it cannot; its parent never notices."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crew
import pytest
from crew import fork

from ruv_swarm_store import Store, StoreError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        yield store


def test_a_forked_child_uses_its_parent_s_store(store: Store) -> None:
    store.config.set("parent", 1)

    def job() -> Any:
        store.config.set("child", store.config.get("parent"))
        with store.transaction() as work:
            work.tasks.enqueue_many([("t", n) for n in range(10)])
        return sorted(store.config.prefix("")), store.tasks.count(), store.check()

    joins = [fork(job) for _ in range(2)]
    store.config.set("meanwhile", 1)
    for join in joins:
        assert join().startswith("(['child',")
    assert store.tasks.count() == 20
    assert set(store.config.prefix("")) == {"parent", "child", "meanwhile"}
    assert store.check() == []


@pytest.mark.parametrize("closes", [True, False])
def test_a_child_that_ends_leaves_its_parent_s_store_working(store: Store, closes: bool) -> None:
    agent = store.agents.register("worker")

    def job() -> Any:
        store.tasks.enqueue("t")
        if closes:
            store.close()
        return closes

    assert fork(job)() == repr(closes)
    assert store.tasks.claim(agent) is not None
    store.tasks.enqueue("t")
    assert store.tasks.count() == 2


def test_a_child_works_on_when_its_parent_has_closed(path: Path) -> None:
    reading, writing = os.pipe()
    with Store.open(path) as store:
        store.config.set("parent", 1)
        assert store.config.get("parent") == 1

        def job() -> Any:
            store.config.set("early", 1)
            os.close(writing)
            os.read(reading, 1)
            for number in range(20):
                store.config.set(f"late-{number:02}", number)
                assert store.config.get(f"late-{number:02}") == number
            store.close()
            return "done"

        join = fork(job)
        while store.config.get("early") is None:
            time.sleep(0.01)
    os.close(reading)
    os.close(writing)
    assert join() == "'done'"
    with Store.open(path) as store:
        assert store.check() == []
        assert set(store.config.prefix("")) == {"parent", "early", *(f"late-{number:02}" for number in range(20))}


def test_a_child_inside_its_parent_s_transaction_is_refused_and_harms_nobody(store: Store) -> None:
    with store.transaction() as work:
        work.config.set("before", 1)

        def job() -> Any:
            errors = []
            for attempt in (
                lambda: work.config.set("child", 1),
                lambda: work.tasks.find_all(),
                lambda: work.tasks.enqueue_many([("t", 1)]),
                lambda: work.tasks.query().all(),
                lambda: work.transaction().__enter__(),
                lambda: store.config.set("child", 1),
                lambda: store.config.get("before"),
                lambda: store.transaction().__enter__(),
            ):
                try:
                    attempt()
                except StoreError as error:
                    errors.append("parent" in str(error))
            return errors

        assert fork(job)() == repr([True] * 8)
        work.config.set("after", 1)
    assert store.config.prefix("") == {"before": 1, "after": 1}
    assert store.check() == []


@pytest.mark.parametrize("fails", [True, False])
def test_a_child_leaving_its_parent_s_block_is_told_that_nothing_was_stored(store: Store, fails: bool) -> None:
    def leave() -> None:
        with store.transaction() as work:
            work.config.set("k", os.getpid())
            join = fork_here()
            if join is None and fails:
                raise KeyError("the child's own")
            if join is not None:
                joins.append(join)

    def fork_here() -> Callable[[], str] | None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            pipes.append(writing)
            return None
        os.close(writing)

        def join() -> str:
            with os.fdopen(reading, "rb") as pipe:
                answer = pipe.read().decode()
            os.waitpid(child, 0)
            return answer

        return join

    joins: list[Callable[[], str]] = []
    pipes: list[int] = []
    parent = os.getpid()
    answer = "nothing"
    try:
        try:
            leave()
        except BaseException as error:
            if os.getpid() == parent:
                raise
            answer = f"{type(error).__name__}: {error}"
    finally:
        if os.getpid() != parent:
            os.write(pipes[0], answer.encode())
            os._exit(0)
    told = joins[0]()
    assert told.startswith("KeyError" if fails else "StoreError")
    assert fails or "parent" in told
    assert store.config.get("k") == parent


def test_a_fork_waits_for_the_transactions_of_other_threads(store: Store) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def work(number: int, barrier: Any) -> str | None:
        if number == 0:
            with store.transaction() as work:
                work.config.set("thread", 1)
                inside.set()
                go_on.wait(0.2)
            return None
        inside.wait()
        return fork(lambda: [store.config.set("child", 1).version, sorted(store.config.prefix(""))])()

    assert crew.in_threads(2, work)[1] == "[1, ['child', 'thread']]"
    assert store.config.prefix("") == {"thread": 1, "child": 1}


def test_readers_and_waiters_survive_a_fork_of_their_process(store: Store) -> None:
    agent = store.agents.register("worker")
    store.config.set("n", 0)
    stop = threading.Event()

    def work(number: int, barrier: Any) -> Any:
        if number == 0:
            return store.tasks.wait(agent, timeout=30).payload
        if number == 1:
            seen = 0
            while not stop.is_set():
                seen = max(seen, store.config.get("n"), store.config.query().all()[0].value)
            return seen
        try:
            for value in range(1, 11):
                assert fork(lambda value=value: store.config.set("n", value).value)() == repr(value)
            store.tasks.enqueue("t", "woken")
            time.sleep(0.05)
        finally:
            stop.set()
        return "forked"

    assert crew.in_threads(3, work) == ["woken", 10, "forked"]


def test_a_store_in_memory_stays_with_its_process() -> None:
    with Store.open() as store:
        store.config.set("k", 1)
        assert fork(lambda: store.config.get("k"))().startswith("Closed")
        assert store.config.get("k") == 1


def test_ids_of_a_forked_child_differ_from_its_parent_s(store: Store) -> None:
    join = fork(lambda: [store.agents.register("worker").id for _ in range(20)])
    mine = [store.agents.register("worker").id for _ in range(20)]
    theirs = join()
    assert not [id for id in mine if id in theirs]
    assert store.agents.count() == 40


def test_forked_workers_share_the_queue(path: Path, store: Store) -> None:
    agents = [store.agents.register("worker").id for _ in range(4)]
    store.tasks.enqueue_many([("a", n) for n in range(200)])

    def work(agent: str) -> list[str]:
        taken = []
        while (task := store.tasks.claim(agent)) is not None:
            taken.append(store.tasks.complete(task).id)
        return taken

    joins = [fork(lambda agent=agent: work(agent)) for agent in agents]
    taken = [id for join in joins for id in re.findall(r"[0-9a-f-]{36}", join())]
    assert len(taken) == len(set(taken)) == 200
    assert {task.fence for task in store.tasks.find_all()} == {1}
