"""Limits on what runs at once: by concurrency key, and by pausing types."""

import threading
import time
from collections import Counter

import crew
import pytest

from ruv_swarm_store import InvalidValue, NewTask, Store, Task, TaskStatus
from ruv_swarm_store.errors import Conflict
from ruv_swarm_store.schema import tasks

PENDING, SCHEDULED, BLOCKED = TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.BLOCKED
ASSIGNED, RUNNING = TaskStatus.ASSIGNED, TaskStatus.RUNNING
ADMITTED = (PENDING, ASSIGNED, RUNNING)
threads = pytest.mark.needs("threads")


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def fill(store: Store, count: int, key: str = "k", **options) -> list[Task]:
    return [store.tasks.enqueue("t", n, concurrency_key=key, **options) for n in range(count)]


def statuses(store: Store) -> list[TaskStatus]:
    return [task.status for task in store.tasks.find_all()]


def admitted(store: Store, key: str = "k") -> int:
    return store.tasks.where(tasks.c.concurrency_key == key, tasks.c.status.in_(ADMITTED)).count()


# Limits


def test_a_key_without_a_limit_limits_nothing(store: Store):
    assert [task.status for task in fill(store, 3)] == [PENDING] * 3
    assert store.tasks.limits() == {}


def test_what_finds_no_room_stands_blocked(store: Store, agent):
    store.tasks.limit("k", 2)
    made = fill(store, 4)
    assert [task.status for task in made] == [PENDING, PENDING, BLOCKED, BLOCKED]
    assert store.tasks.find_all() == made
    assert fill(store, 1, "other")[0].status is PENDING
    assert store.tasks.enqueue("t").status is PENDING
    assert [task.payload for task in store.tasks.claim_many(agent, 9)] == [0, 1, 0, None]
    assert store.tasks.claim(agent) is None


@pytest.mark.parametrize("batch", ["pairs", "with a unique key"])
def test_a_batch_is_limited_too(store: Store, batch):
    store.tasks.limit("k", 2)
    new = [NewTask("t", n, concurrency_key="k", priority=n) for n in range(4)]
    if batch == "with a unique key":
        new.append(NewTask("t", unique_key="u"))
    made = store.tasks.enqueue_many(new)
    assert [task.status for task in made[:4]] == [BLOCKED, BLOCKED, PENDING, PENDING]
    assert store.tasks.find_all() == made


ENDS = {
    "complete": lambda store, task: store.tasks.complete(task),
    "complete_many": lambda store, task: store.tasks.complete_many([(task, None)]),
    "fail": lambda store, task: store.tasks.fail(task, "no"),
    "fail for good": lambda store, task: store.tasks.fail(task, "no", retry=False),
    "release for later": lambda store, task: store.tasks.release(task, delay=60),
    "snooze": lambda store, task: store.tasks.snooze(task, 60),
    "cancel": lambda store, task: store.tasks.cancel(task),
    "cancel what is above": lambda store, task: store.tasks.cancel(task.parent_task_id, tree=True),
    "limit raised": lambda store, task: store.tasks.limit("k", 2),
    "limit lifted": lambda store, task: store.tasks.limit("k", None),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_next_is_let_in_when_one_leaves(store: Store, agent, end):
    store.tasks.limit("k", 1)
    first, second = fill(store, 2, parent=store.tasks.enqueue("parent", delay=1_000))
    held = store.tasks.claim(agent)
    assert (held.id, store.tasks.get(second).status) == (first.id, BLOCKED)
    ENDS[end](store, held)
    assert store.tasks.get(second).status is (TaskStatus.CANCELLED if end == "cancel what is above" else PENDING)
    if end == "cancel what is above":
        assert fill(store, 1)[0].status is PENDING


def test_deleting_a_ready_task_makes_room(store: Store):
    store.tasks.limit("k", 1)
    first, second = fill(store, 2)
    assert store.tasks.delete(first)
    assert store.tasks.get(second).status is PENDING


def test_a_lost_lease_makes_room_only_when_the_task_is_over(store: Store, agent, clock):
    store.tasks.limit("k", 1)
    first, second = fill(store, 2, max_retries=1)
    for status in (PENDING, TaskStatus.FAILED):
        assert store.tasks.claim(agent, lease=1).id == first.id
        clock.advance(1)
        [rescued] = store.tasks.rescue()
        assert (rescued.id, rescued.status) == (first.id, status)
        assert store.tasks.get(first) == rescued
    assert store.tasks.get(second).status is PENDING


def test_the_best_is_let_in_first(store: Store, agent):
    store.tasks.limit("k", 1)
    for n, priority in enumerate([5, 1, 9, 9, 100]):
        store.tasks.enqueue("t", n, priority=priority, concurrency_key="k")
    order = []
    while (task := store.tasks.claim(agent)) is not None:
        order.append(task.payload)
        store.tasks.complete(task)
    assert order == [0, 4, 2, 3, 1]


def test_what_is_given_back_competes_with_those_who_wait(store: Store, agent):
    store.tasks.limit("k", 1)
    first = store.tasks.enqueue("t", concurrency_key="k")
    held = store.tasks.claim(agent)
    better = store.tasks.enqueue("t", concurrency_key="k", priority=9)
    released = store.tasks.release(held)
    assert (released.id, released.status) == (first.id, BLOCKED)
    assert store.tasks.get(better).status is PENDING
    assert store.tasks.get(first) == released


def test_a_lower_limit_sends_back_what_nobody_holds_the_least_first(store: Store, agent):
    made = fill(store, 4)
    store.tasks.claim(agent)
    store.tasks.limit("k", 2)
    assert statuses(store) == [ASSIGNED, PENDING, BLOCKED, BLOCKED]
    store.tasks.limit("k", 1)
    assert statuses(store) == [ASSIGNED, BLOCKED, BLOCKED, BLOCKED]
    store.tasks.limit("k", 3)
    assert statuses(store) == [ASSIGNED, PENDING, PENDING, BLOCKED]
    store.tasks.claim_many(agent, 2)
    store.tasks.limit("k", 1)
    assert statuses(store) == [ASSIGNED, ASSIGNED, ASSIGNED, BLOCKED]
    store.tasks.complete(store.tasks.get(made[0]))
    store.tasks.complete(store.tasks.get(made[1]))
    assert statuses(store)[3] is BLOCKED
    store.tasks.complete(store.tasks.get(made[2]))
    assert statuses(store)[3] is PENDING


def test_limits_are_listed_changed_and_lifted(store: Store):
    store.tasks.limit("b", 1)
    store.tasks.limit("a", 5)
    store.tasks.limit("b", 2)
    assert store.tasks.limits() == {"a": 5, "b": 2}
    store.tasks.limit("a", None)
    store.tasks.limit("never", None)
    assert store.tasks.limits() == {"b": 2}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", 2**63], ids=repr)
def test_a_limit_is_a_positive_number(store: Store, wrong):
    with pytest.raises(InvalidValue):
        store.tasks.limit("k", wrong)
    with pytest.raises(InvalidValue):
        store.tasks.limit(5, 1)
    assert store.tasks.limits() == {}


def test_a_due_task_waits_for_room_and_a_blocked_one_too(store: Store, agent, clock):
    store.tasks.limit("k", 1)
    gate = store.tasks.enqueue("gate", priority=100)
    fill(store, 1)
    later = store.tasks.enqueue("t", "later", delay=1, concurrency_key="k")
    after = store.tasks.enqueue("t", "after", depends_on=[gate], concurrency_key="k", priority=9)
    assert (later.status, after.status, after.unmet) == (SCHEDULED, BLOCKED, 1)
    clock.advance(1)
    store.tasks.complete(store.tasks.claim(agent, types=["gate"]))
    assert (store.tasks.get(after).status, store.tasks.get(after).unmet) == (BLOCKED, 0)
    order = []
    while (task := store.tasks.claim(agent)) is not None:
        assert admitted(store) == 1
        order.append(task.payload)
        store.tasks.complete(task)
    assert order == [0, "after", "later"]


def test_many_blocked_by_others_are_in_nobody_s_way(store: Store, agent):
    store.tasks.limit("k", 1)
    gate = store.tasks.enqueue("gate", delay=1_000)
    store.tasks.enqueue_many(NewTask("t", "never", depends_on=[gate], concurrency_key="k", priority=100) for _ in range(50))
    fill(store, 2)
    for n in range(2):
        task = store.tasks.claim(agent)
        assert task.payload == n
        store.tasks.complete(task)
    assert store.tasks.claim(agent) is None


def test_the_key_is_for_good(store: Store):
    from msgspec import structs

    [task] = fill(store, 1)
    with pytest.raises(InvalidValue, match="concurrency_key"):
        store.tasks.update(structs.replace(task, concurrency_key="other"))


@threads
def test_no_more_than_the_limit_are_ever_held(database):
    store = database.open()
    store.tasks.limit("k", 2)
    store.tasks.enqueue_many(NewTask("t", n, concurrency_key="k", max_retries=9) for n in range(40))
    agents = [store.agents.register("worker").id for _ in range(8)]
    guard = threading.Lock()
    holding: Counter[str] = Counter()
    most: list[int] = []

    def work(number: int, barrier) -> int:
        barrier.wait()
        done = 0
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and store.tasks.stats().total(TaskStatus.COMPLETED) < 40:
            task = store.tasks.wait(agents[number], timeout=0.05)
            if task is None:
                continue
            with guard:
                holding["k"] += 1
                most.append(holding["k"])
            most.append(admitted(store))
            with guard:
                holding["k"] -= 1
            match (task.payload + task.fence) % 4:
                case 0 if task.fence < 4:
                    store.tasks.fail(task, "no", delay=0)
                case 1 if task.fence < 4:
                    store.tasks.fail(task, "no", delay=0.002)
                case 2 if task.fence < 4:
                    store.tasks.release(task)
                case _:
                    store.tasks.complete(task)
                    done += 1
        return done

    assert sum(crew.in_threads(8, work)) == 40
    assert max(most) <= 2
    assert admitted(store) == 0


@threads
def test_limiting_a_key_while_many_add_to_it_lets_no_more_in(store: Store):
    def add_or_limit(number: int, barrier) -> None:
        barrier.wait()
        if number == 4:
            store.tasks.limit("k", 3)
            return
        for n in range(8):
            store.tasks.enqueue("t", n, concurrency_key="k")

    crew.in_threads(8, add_or_limit)
    assert admitted(store) == 3
    assert store.tasks.count() == 56


# Pausing types


def test_a_paused_type_is_passed_over_by_every_claim(store: Store, agent, clock):
    store.tasks.enqueue("a", 1, priority=9)
    store.tasks.enqueue("b", 2)
    assert store.tasks.pause("a", by=agent)
    assert not store.tasks.pause("a")
    [pause] = store.tasks.paused()
    assert (pause.type, pause.paused_at, pause.paused_by) == ("a", clock.now, agent.id)
    assert store.tasks.claim(agent, types=["a"]) is None
    assert store.tasks.claim_many(agent, 5, types=["a"]) == []
    assert store.tasks.claim(agent, types=["a", "c"]) is None
    store.tasks.release(store.tasks.claim(agent, types=["a", "b"]))
    store.tasks.release(store.tasks.claim_many(agent, 5, types=["a", "b"])[0])
    store.tasks.release(store.tasks.claim_many(agent, 5, types=["b"])[0])
    assert [task.payload for task in store.tasks.claim_many(agent, 5)] == [2]
    assert store.tasks.claim(agent) is None
    assert store.tasks.wait(agent, timeout=0.01) is None
    assert store.tasks.resume("a")
    assert not store.tasks.resume("a")
    assert store.tasks.paused() == []
    assert store.tasks.claim(agent).payload == 1


def test_what_is_held_when_its_type_is_paused_goes_on(store: Store, agent):
    store.tasks.enqueue("a")
    held = store.tasks.claim(agent)
    store.tasks.pause("a")
    store.tasks.heartbeat(held)
    store.tasks.fail(held, "no", delay=0)
    assert store.tasks.claim(agent) is None
    store.tasks.resume("a")
    assert store.tasks.complete(store.tasks.claim(agent)).status is TaskStatus.COMPLETED


def test_claims_find_what_is_not_paused_among_many_types_and_due_tasks(store: Store, agent, clock):
    for n in range(20):
        store.tasks.enqueue(f"type {n}", n, priority=n)
        store.tasks.enqueue(f"type {n}", 100 + n, delay=1)
    for n in range(20):
        if n not in (3, 7):
            store.tasks.pause(f"type {n}")
    clock.advance(1)
    assert [task.payload for task in store.tasks.claim_many(agent, 3)] == [7, 103, 107]
    assert store.tasks.claim(agent).payload == 3
    assert store.tasks.claim(agent) is None
    assert [pause.type for pause in store.tasks.paused()] == sorted(f"type {n}" for n in range(20) if n not in (3, 7))


@threads
def test_resuming_wakes_who_waits(store: Store, agent):
    task = store.tasks.enqueue("a")
    store.tasks.pause("a")
    other = threading.Timer(0.15, lambda: store.tasks.resume("a"))
    other.start()
    started = time.monotonic()
    assert store.tasks.wait(agent, timeout=10).id == task.id
    assert 0.1 < time.monotonic() - started < 0.9
    other.join()


def test_a_type_that_is_no_text_is_refused(store: Store):
    for verb in (store.tasks.pause, store.tasks.resume):
        with pytest.raises(InvalidValue):
            verb(5)
    assert store.tasks.paused() == []


def test_a_held_task_of_a_limited_key_cannot_be_deleted(store: Store, agent):
    store.tasks.limit("k", 1)
    fill(store, 1)
    held = store.tasks.claim(agent)
    with pytest.raises(Conflict):
        store.tasks.delete(held)
