"""What the tests let other threads and processes do at the same time, and how they start them.

A job is called with its number, a barrier at which all jobs wait for each other, and the rest of the arguments. What it
returns is handed back; what it raises fails the test.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from ruv_swarm_store import NewEvent, Store

Job = Callable[..., Any]


def in_threads(count: int, job: Job, *arguments: Any) -> list[Any]:
    """What `count` threads returned that did a job at the same time."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[str] = []

    def run(number: int) -> None:
        try:
            results[number] = job(number, barrier, *arguments)
        except BaseException:
            errors.append(traceback.format_exc())
            barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    return results


def in_processes(count: int, job: Job, *arguments: Any, method: str = "spawn") -> list[Any]:
    """What `count` processes returned that did a job at the same time."""
    context: Any = multiprocessing.get_context(method)
    barrier, answers = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_run, args=(answers, job, number, barrier, arguments)) for number in range(count)]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < count:
            number, error, result = answers.get(timeout=120)
            assert error is None, error
            results[number] = result
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        answers.close()
        answers.join_thread()
        for process in processes:
            process.close()
    return [results[number] for number in range(count)]


def _run(answers: Any, job: Job, number: int, barrier: Any, arguments: tuple[Any, ...]) -> None:
    try:
        answers.put((number, None, job(number, barrier, *arguments)))
    except BaseException:
        barrier.abort()
        answers.put((number, traceback.format_exc(), None))


def fork(job: Callable[[], Any]) -> Callable[[], str]:
    """Runs a job in a forked child; the function returned waits for it and tells what it returned or raised."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, for a process with threads
        child = os.fork()
    if child == 0:
        answer = "killed"
        try:
            signal.alarm(60)
            answer = repr(job())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)

    def join() -> str:
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read().decode()
        os.waitpid(child, 0)
        return answer

    return join


# Jobs on a store that threads share


def register(number: int, barrier: Any, store: Store) -> str:
    barrier.wait()
    return store.agents.register("worker", name=f"worker-{number}").id


def claim(number: int, barrier: Any, store: Store, agents: list[str]) -> str | None:
    barrier.wait()
    task = store.tasks.claim(agents[number])
    return None if task is None else task.id


def claim_in_many_ways(number: int, barrier: Any, store: Store, agents: list[str]) -> list[str]:
    """Claims until nothing is left, by a verb that depends on who asks."""
    barrier.wait()
    who, taken = agents[number], []
    while True:
        match number % 4:
            case 0:
                task = store.tasks.claim(who)
                batch = [] if task is None else [task]
            case 1:
                task = store.tasks.claim(who, types=["a", "b"])
                batch = [] if task is None else [task]
            case 2:
                batch = store.tasks.claim_many(who, 3)
            case _:
                with store.transaction() as work:
                    task = work.tasks.claim(who)
                    batch = [] if task is None else [task]
        if not batch:
            return taken
        taken += [task.id for task in batch]


def increment(number: int, barrier: Any, store: Store) -> None:
    barrier.wait()
    with store.transaction() as work:
        work.config.set("n", work.config.get("n") + 1)


def increment_by_version(number: int, barrier: Any, store: Store) -> int:
    from ruv_swarm_store import Conflict

    barrier.wait()
    refused = 0
    while True:
        entry = store.config.entry("n")
        assert entry is not None
        try:
            store.config.compare_and_set("n", entry.value + 1, expected=entry.version)
            return refused
        except Conflict:
            refused += 1


def swap(number: int, barrier: Any, store: Store, version: int) -> Any:
    from ruv_swarm_store import Conflict

    barrier.wait()
    try:
        return store.config.compare_and_set("n", number, expected=version)
    except Conflict as error:
        assert error.data["actual"] == version + 1
        return None


def begin_key(number: int, barrier: Any, store: Store) -> bool:
    from ruv_swarm_store import Conflict

    barrier.wait()
    try:
        store.config.compare_and_set("new", number, expected=0)
        return True
    except Conflict:
        return False


def enqueue_one_key(number: int, barrier: Any, store: Store) -> str:
    barrier.wait()
    return store.tasks.enqueue("t", unique_key="only").id


def append(number: int, barrier: Any, store: Store, batches: int, size: int) -> None:
    """Appends batches to a stream of its own, to one for all, and reads along."""
    barrier.wait()
    after = 0
    for batch in range(batches):
        stream = "all" if batch % 2 else f"stream-{number}"
        store.events.append(stream, [NewEvent("t", [number, batch, n]) for n in range(size)], type="x")
        for event in store.events.read_all(after=after):
            assert event.position > after
            after = event.position


def append_expecting(number: int, barrier: Any, store: Store) -> bool:
    from ruv_swarm_store import Conflict

    barrier.wait()
    try:
        store.events.append("one", [NewEvent("first", number)], type="x", expected_version=0)
        return True
    except Conflict as error:
        assert error.data["actual"] == 1
        return False


def receive(number: int, barrier: Any, store: Store, agent: str) -> list[int]:
    barrier.wait()
    return [message.content for message in store.messages.receive(agent, limit=10)]


# The same in processes, each with a store of its own


def with_own_store(number: int, barrier: Any, address: str, job: Job, *arguments: Any) -> Any:
    with Store.open(address) as store:
        return job(number, barrier, store, *arguments)


def with_own_threads(number: int, barrier: Any, address: str, threads: int, job: Job, *arguments: Any) -> list[Any]:
    """The job in several threads of this process, numbered on over all processes."""
    with Store.open(address) as store:
        barrier.wait()
        return in_threads(threads, lambda thread, local: job(number * threads + thread, local, store, *arguments))


def open_new(number: int, barrier: Any, address: str) -> list[str]:
    """Opens a store that does not exist yet."""
    barrier.wait()
    with Store.open(address) as store:
        store.agents.register("worker", id=f"agent-{number}")
        return store.check()


def wait_for_many(number: int, barrier: Any, address: str, count: int) -> list[tuple[str, float]]:
    """Waits for `count` tasks one after the other; each one's id and the wall-clock time of waking."""
    import time

    with Store.open(address) as store:
        agent = store.agents.register("worker")
        store.tasks.wait(agent, timeout=0)
        barrier.wait()
        woken = []
        while len(woken) < count:
            task = store.tasks.wait(agent, timeout=20)
            assert task is not None
            woken.append((task.id, time.time()))
        return woken


def enqueue_now_and_then(number: int, barrier: Any, address: str, count: int, pause: float) -> list[tuple[str, float]]:
    """Enqueues `count` tasks with a pause before each; each one's id and the wall-clock time of its commit."""
    import time

    with Store.open(address) as store:
        barrier.wait()
        made = []
        for _ in range(count):
            time.sleep(pause)
            made.append((store.tasks.enqueue("t").id, time.time()))
        return made


def wait_or_enqueue(number: int, barrier: Any, address: str, waiters: int) -> Any:
    if number == 0:
        return enqueue_now_and_then(number, barrier, address, waiters, 0.15)
    return wait_for_many(number, barrier, address, 1)[0]


def wait_or_enqueue_many(number: int, barrier: Any, address: str, count: int) -> list[tuple[str, float]]:
    if number == 0:
        return enqueue_now_and_then(number, barrier, address, count, 0.03)
    return wait_for_many(number, barrier, address, count)
