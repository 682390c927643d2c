"""Tasks in the queue: what goes in comes out in order, once."""

import threading
import time
from datetime import UTC, datetime, timedelta, timezone

import crew
import pytest
from msgspec import structs

from ruv_swarm_store import InvalidTransition, InvalidValue, NewTask, NotFound, Store, Task, TaskStatus
from ruv_swarm_store.errors import Closed, Conflict, StoreError
from ruv_swarm_store.schema import tasks
from ruv_swarm_store.tasks import PROMOTION_BATCH


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def drain(store: Store, agent, **options) -> list[Task]:
    taken = []
    while (task := store.tasks.claim(agent, **options)) is not None:
        taken.append(task)
    return taken


# Into the queue


def test_enqueue_gives_the_task_as_it_is_stored(store: Store, clock):
    parent = store.tasks.enqueue("parent")
    task = store.tasks.enqueue("crawl", {"url": "u", "n": [1, 2.0, None]}, priority=9, parent=parent, unique_key="k", max_retries=7)
    assert task == Task(
        id=task.id,
        type="crawl",
        payload={"url": "u", "n": [1, 2.0, None]},
        created_at=clock.now,
        priority=9,
        status=TaskStatus.PENDING,
        parent_task_id=parent.id,
        max_retries=7,
        unique_key="k",
        position=task.position,
    )
    assert store.tasks.get(task.id) == task
    assert task.position > parent.position


def test_the_defaults_are_priority_5_and_three_retries(store: Store):
    task = store.tasks.enqueue("t")
    assert (task.priority, task.max_retries, task.payload, task.fence, task.version) == (5, 3, None, 0, 1)


def test_the_payload_is_sealed_when_it_is_given(store: Store):
    payload = {"list": [1]}
    task = store.tasks.enqueue("t", payload)
    payload["list"].append(2)
    assert task.payload == store.tasks.get(task).payload == {"list": [1]}


def test_enqueue_many_keeps_the_order_and_matches_what_is_stored(store: Store, clock):
    tasks = store.tasks.enqueue_many([("a", 1), NewTask("b", 2, priority=7, delay=1.0), ("a", None), NewTask("c", run_at=clock.now)])
    assert [(task.type, task.payload, task.status) for task in tasks] == [
        ("a", 1, TaskStatus.PENDING),
        ("b", 2, TaskStatus.SCHEDULED),
        ("a", None, TaskStatus.PENDING),
        ("c", None, TaskStatus.PENDING),
    ]
    assert store.tasks.find_all() == tasks
    assert len({task.id for task in tasks}) == 4
    assert store.tasks.enqueue_many([]) == []


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 71, 72, 73, 137, 1_000])
def test_a_batch_of_any_size_is_stored_as_it_was_given(store: Store, count: int):
    store.tasks.enqueue("before")
    given = store.tasks.enqueue_many(NewTask(f"type {number}", {"n": number}, number % 10) for number in range(count))
    assert store.tasks.query().order_by(tasks.c.position).all()[1:] == given
    assert [task.position for task in given] == list(range(given[0].position, given[0].position + count))
    assert [task.payload["n"] for task in given] == list(range(count))


@pytest.mark.parametrize(
    "wrong",
    [
        NewTask("t", float("nan")),
        NewTask("t", priority=101),
        NewTask("t", parent="nobody"),
        NewTask("t", depends_on=["nobody"]),
        NewTask("t", id="taken"),
        NewTask("t", run_at=1, delay=1),
    ],
    ids=["payload", "priority", "parent", "dependency", "id", "times"],
)
def test_enqueue_many_adds_all_or_none(store: Store, wrong):
    taken = store.tasks.enqueue("t", id="taken")
    with pytest.raises(StoreError):
        store.tasks.enqueue_many([("t", 1), ("t", 2), ("t", 3), wrong, ("t", 5)])
    with pytest.raises(StoreError):
        store.tasks.enqueue_many([("t", 1), NewTask("t", unique_key="k"), wrong, ("t", 5)])
    assert store.tasks.find_all() == [taken]


@pytest.mark.parametrize(
    "options",
    [
        {"priority": -1},
        {"priority": 101},
        {"priority": 5.0},
        {"priority": True},
        {"priority": None},
        {"max_retries": -1},
        {"max_retries": 2**63},
        {"max_retries": "3"},
        {"run_at": "tomorrow"},
        {"run_at": 2**63},
        {"run_at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"run_at": 1, "delay": 1},
        {"delay": -0.001},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": "1"},
        {"depends_on": "one"},
        {"depends_on": [5]},
        {"parent": 5},
        {"unique_key": 5},
        {"on_dependency_failure": "ignore"},
        {"id": 5},
        {"payload": {1: 2}},
        {"payload": b"bytes"},
        {"payload": {"x": {1, 2}}},
        {"payload": float("-inf")},
        {"payload": datetime(2026, 1, 1, tzinfo=UTC)},
        {"type": None},
        {"type": b"t"},
    ],
    ids=repr,
)
def test_enqueue_refuses_what_cannot_be_stored(store: Store, options):
    with pytest.raises(InvalidValue) as caught:
        store.tasks.enqueue(**{"type": "t", **options})
    assert caught.value.hint
    assert store.tasks.count() == 0


def test_an_id_is_taken_only_once(store: Store):
    store.tasks.enqueue("t", 1, id="x")
    with pytest.raises(Conflict, match="'x'") as caught:
        store.tasks.enqueue("t", 2, id="x")
    assert caught.value.data["kind"] == "unique"
    assert store.tasks.get("x").payload == 1


# Order


def test_higher_priority_comes_first_then_creation_order_within_one_millisecond(store: Store, agent):
    priorities = [5, 0, 100, 7, 7, 100, 5, 0, 99, 5]
    for number, priority in enumerate(priorities):
        store.tasks.enqueue("t", number, priority=priority)
    expected = sorted(range(len(priorities)), key=lambda number: (-priorities[number], number))
    assert [task.payload for task in drain(store, agent)] == expected


def test_creation_order_holds_when_the_clock_goes_back(store: Store, agent, clock):
    for number in range(5):
        clock.advance(-1)
        store.tasks.enqueue("t", number)
    assert [task.payload for task in drain(store, agent)] == [0, 1, 2, 3, 4]


def test_a_retried_task_takes_its_old_place(store: Store, agent):
    first, _ = store.tasks.enqueue("t"), store.tasks.enqueue("t")
    store.tasks.fail(store.tasks.claim(agent), "no", delay=0)
    assert store.tasks.claim(agent).id == first.id


# Out of the queue


def test_claim_assigns_the_task_for_a_time(store: Store, agent, clock):
    task = store.tasks.enqueue("t", {"n": 1})
    clock.advance(1)
    claimed = store.tasks.claim(agent, lease=12.5)
    assert claimed == structs.replace(
        task, status=TaskStatus.ASSIGNED, agent_id=agent.id, assigned_at=clock.now, lease_expires_at=clock.now + 12_500, fence=1, version=2
    )
    assert store.tasks.get(task) == claimed
    assert store.tasks.claim(agent) is None


def test_claiming_from_an_empty_queue_gives_nothing(store: Store, agent):
    assert store.tasks.claim(agent) is None
    assert store.tasks.claim_many(agent, 5) == []
    assert store.tasks.claim(agent, types=["t"]) is None
    assert store.tasks.claim(agent, types=["t", "u"]) is None


def test_claim_takes_one_type(store: Store, agent):
    store.tasks.enqueue("a", priority=9)
    b = store.tasks.enqueue("b")
    assert store.tasks.claim(agent, types=["b"]).id == b.id
    assert store.tasks.claim(agent, types=["b"]) is None
    assert store.tasks.count() == 2


def test_claim_takes_several_types_in_the_queue_s_order(store: Store, agent):
    for number, (type_, priority) in enumerate([("a", 5), ("b", 5), ("c", 100), ("b", 9), ("a", 9), ("a", 5)]):
        store.tasks.enqueue(type_, number, priority=priority)
    assert [task.payload for task in drain(store, agent, types=["b", "a", "b"])] == [3, 4, 0, 1, 5]


@pytest.mark.parametrize("types", [[], "a", [5], [None]], ids=repr)
def test_types_are_a_list_of_names(store: Store, agent, types):
    with pytest.raises(InvalidValue):
        store.tasks.claim(agent, types=types)
    with pytest.raises(InvalidValue):
        store.tasks.claim_many(agent, 2, types=types)


@pytest.mark.parametrize("queued", [True, False])
def test_only_a_registered_living_agent_can_claim(store: Store, agent, queued):
    if queued:
        store.tasks.enqueue("t")
    store.agents.terminate(agent)
    for claim in (
        lambda who: store.tasks.claim(who),
        lambda who: store.tasks.claim(who, types=["t"]),
        lambda who: store.tasks.claim_many(who, 2),
    ):
        with pytest.raises(NotFound):
            claim("nobody")
        with pytest.raises(InvalidTransition):
            claim(agent)
    assert store.tasks.stats().total(TaskStatus.PENDING) == queued


def test_claim_many_takes_the_best_first(store: Store, agent, clock):
    for number, priority in enumerate([1, 9, 5, 9]):
        store.tasks.enqueue("t", number, priority=priority)
    batch = store.tasks.claim_many(agent, 3, lease=5)
    assert [task.payload for task in batch] == [1, 3, 2]
    assert {(task.agent_id, task.status, task.fence, task.lease_expires_at) for task in batch} == {
        (agent.id, TaskStatus.ASSIGNED, 1, clock.now + 5_000)
    }
    assert sorted(store.tasks.find_many(batch), key=lambda t: t.id) == sorted(batch, key=lambda t: t.id)
    assert [task.payload for task in store.tasks.claim_many(agent, 3)] == [0]


def test_claim_many_over_types_takes_the_best_of_all(store: Store, agent):
    for number, (type_, priority) in enumerate([("a", 1), ("b", 9), ("c", 100), ("a", 9), ("b", 1)]):
        store.tasks.enqueue(type_, number, priority=priority)
    assert [task.payload for task in store.tasks.claim_many(agent, 3, types=["a", "b"])] == [1, 3, 0]


@pytest.mark.parametrize("limit", [0, -1, 1.5, None, True])
def test_claim_many_takes_a_number(store: Store, agent, limit):
    with pytest.raises(InvalidValue):
        store.tasks.claim_many(agent, limit)


@pytest.mark.parametrize("lease", [-1, float("nan"), "30", None])
def test_a_lease_is_a_number_of_seconds(store: Store, agent, lease):
    store.tasks.enqueue("t")
    for claim in (store.tasks.claim, lambda who, lease: store.tasks.claim_many(who, 1, lease=lease), store.tasks.wait):
        with pytest.raises(InvalidValue):
            claim(agent, lease=lease)


# Later


def test_a_scheduled_task_is_due_at_its_millisecond(store: Store, agent, clock):
    task = store.tasks.enqueue("t", run_at=clock.now + 1_000)
    assert (task.status, task.run_at) == (TaskStatus.SCHEDULED, clock.now + 1_000)
    clock.advance(ms=999)
    assert store.tasks.claim(agent) is None
    assert store.tasks.claim_many(agent, 5) == []
    clock.advance(ms=1)
    assert store.tasks.claim(agent).id == task.id


@pytest.mark.parametrize("types", [None, ["t"], ["t", "u"]])
def test_every_way_of_claiming_sees_what_is_due(store: Store, agent, clock, types):
    store.tasks.enqueue("t", delay=0.001)
    clock.advance(ms=1)
    assert store.tasks.claim(agent, types=types) is not None


def test_delay_and_datetimes_say_the_same(store: Store, clock):
    when = datetime.fromtimestamp(clock.now / 1000, timezone(timedelta(hours=5, minutes=30))) + timedelta(milliseconds=1_500)
    assert store.tasks.enqueue("t", run_at=when).run_at == clock.now + 1_500
    assert store.tasks.enqueue("t", delay=1.5).run_at == clock.now + 1_500
    for past in (clock.now, clock.now - 1, 0, datetime(1960, 1, 1, tzinfo=UTC)):
        assert store.tasks.enqueue("t", run_at=past).status is TaskStatus.PENDING
    assert store.tasks.enqueue("t", delay=0).status is TaskStatus.PENDING


def test_a_due_task_is_not_passed_over(store: Store, agent, clock):
    store.tasks.enqueue("t", "waiting", priority=5)
    store.tasks.enqueue("t", "due", priority=9, delay=1)
    clock.advance(1)
    assert [task.payload for task in drain(store, agent)] == ["due", "waiting"]


def test_a_due_task_of_another_type_does_not_stop_a_claim(store: Store, agent, clock):
    store.tasks.enqueue("a", 1)
    store.tasks.enqueue("b", 2, delay=1)
    clock.advance(1)
    assert store.tasks.claim(agent, types=["a"]).payload == 1
    assert store.tasks.claim(agent, types=["b"]).payload == 2


def test_more_tasks_than_one_batch_come_due(store: Store, agent, clock):
    store.tasks.enqueue_many(NewTask("t", n, delay=1) for n in range(PROMOTION_BATCH + 10))
    clock.advance(1)
    taken = []
    while batch := store.tasks.claim_many(agent, 200):
        taken += [task.payload for task in batch]
    assert sorted(taken) == list(range(PROMOTION_BATCH + 10))


# Waiting for a task


def test_wait_takes_what_is_ready_at_once(store: Store, agent):
    task = store.tasks.enqueue("t")
    assert store.tasks.wait(agent, timeout=0).id == task.id


def test_wait_gives_up_after_its_timeout(store: Store, agent):
    store.tasks.enqueue("other")
    started = time.monotonic()
    assert store.tasks.wait(agent, types=["t"], timeout=0.15) is None
    assert 0.14 <= time.monotonic() - started < 2
    assert store.tasks.wait(agent, types=["t"], timeout=0) is None


@pytest.mark.needs("threads")
def test_a_commit_of_another_thread_wakes_who_waits(store: Store, agent):
    others = [store.agents.register("worker") for _ in range(3)]
    woken: list[tuple[float, Task]] = []
    waiters = [
        threading.Thread(target=lambda who=who: woken.append((store.tasks.wait(who, timeout=20), time.monotonic()))) for who in others
    ]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.2)
    assert woken == []
    started = time.monotonic()
    store.tasks.enqueue_many([("t", n) for n in range(3)])
    for waiter in waiters:
        waiter.join()
    assert sorted(task.payload for task, _ in woken) == [0, 1, 2]
    assert max(at for _, at in woken) - started < 0.8  # well under the second after which everybody looks anyway


@pytest.mark.needs("threads")
def test_what_is_rolled_back_wakes_nobody_for_long(store: Store, agent):
    def enqueue_and_think_better():
        with pytest.raises(ZeroDivisionError), store.transaction() as work:
            work.tasks.enqueue("t")
            raise ZeroDivisionError

    other = threading.Timer(0.1, enqueue_and_think_better)
    other.start()
    assert store.tasks.wait(agent, timeout=0.4) is None
    other.join()


def test_a_task_coming_due_ends_the_wait(database):
    store = database.open()
    agent = store.agents.register("worker")
    task = store.tasks.enqueue("t", delay=0.2)
    started = time.monotonic()
    assert store.tasks.wait(agent, timeout=10).id == task.id
    assert 0.15 <= time.monotonic() - started < 0.9


def test_an_expired_lease_ends_the_wait(database):
    store = database.open()
    one, other = store.agents.register("worker"), store.agents.register("worker")
    task = store.tasks.enqueue("t")
    store.tasks.claim(one, lease=0.2)
    taken = store.tasks.wait(other, timeout=10)
    assert (taken.id, taken.agent_id, taken.retry_count, taken.fence) == (task.id, other.id, 1, 2)


@pytest.mark.needs("threads")
def test_closing_the_store_ends_the_wait(store: Store, agent):
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            store.tasks.wait(agent, timeout=20)
        except BaseException as error:
            ended.append(error)

    waiters = [threading.Thread(target=wait) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.1)
    store.close()
    for waiter in waiters:
        waiter.join(5)
    assert [type(error) for error in ended] == [Closed] * 3


def test_waiting_inside_a_transaction_is_refused(store: Store, agent):
    store.tasks.enqueue("ready")
    with store.transaction() as work:
        with pytest.raises(StoreError, match="transaction"):
            work.tasks.wait(agent, timeout=5)
        with pytest.raises(StoreError, match="transaction"):
            store.tasks.wait(agent, timeout=5)
    assert store.tasks.find_all()[0].status == "pending"


def test_only_a_living_agent_can_wait(store: Store, agent):
    with pytest.raises(NotFound):
        store.tasks.wait("nobody", timeout=1)
    store.agents.terminate(agent)
    with pytest.raises(InvalidTransition):
        store.tasks.wait(agent, timeout=1)


@pytest.mark.needs("threads")
def test_who_waits_for_one_type_writes_nothing_for_another(database):
    heard: list[str] = []
    store = database.open(trace=lambda sql, seconds: heard.append(sql))
    agent = store.agents.register("worker")
    taken: list[Task | None] = []
    waiter = threading.Thread(target=lambda: taken.append(store.tasks.wait(agent, types=["b"], timeout=10)))
    heard.clear()
    waiter.start()
    for n in range(20):
        store.tasks.enqueue("a", n)
        time.sleep(0.005)
    tried = [sql for sql in heard if sql.startswith(("UPDATE", "WITH", "BEGIN"))]
    task = store.tasks.enqueue("b")
    waiter.join()
    assert taken[0].id == task.id
    assert tried == []


@pytest.mark.needs("threads")
def test_many_who_wait_share_what_comes(store: Store):
    agents = [store.agents.register("worker").id for _ in range(12)]

    def wait(number: int, barrier) -> list[str]:
        barrier.wait()
        if number == 12:
            time.sleep(0.05)
            store.tasks.enqueue_many(NewTask("ab"[n % 2], n) for n in range(24))
            return []
        types = [None, ["a"], ["b"], ["a", "b"]][number % 4]
        taken = []
        while (task := store.tasks.wait(agents[number], types=types, timeout=0.5)) is not None:
            taken.append(store.tasks.complete(task).id)
        return taken

    taken = [id for part in crew.in_threads(13, wait) for id in part]
    assert len(taken) == len(set(taken)) == 24


# Counting


def test_the_oldest_is_found_at_whatever_priority(store: Store, agent, clock):
    for n, priority in enumerate([50, 0, 100, 0, 50]):
        store.tasks.enqueue("t", n, priority=priority)
        clock.advance(1)
    ages = []
    while (oldest := store.tasks.stats().oldest_ready) is not None:
        ages.append((oldest - clock.now) // 1_000)
        store.tasks.claim(agent)
    assert ages == [-5, -5, -4, -4, -2]


def test_stats_can_leave_out_what_is_over(store: Store, agent):
    store.tasks.enqueue_many([("a", 1), ("a", 2), ("b", 3)])
    store.tasks.complete(store.tasks.claim(agent))
    assert store.tasks.stats(finished=False).counts == {"a": {TaskStatus.PENDING: 1}, "b": {TaskStatus.PENDING: 1}}
    assert store.tasks.stats(finished=False).completed_per_second == store.tasks.stats().completed_per_second > 0


def test_stats_count_by_type_and_status(store: Store, agent, clock):
    first = store.tasks.enqueue("a")
    clock.advance(1)
    store.tasks.enqueue_many([("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 5)])
    store.tasks.enqueue("b", delay=5)
    store.tasks.enqueue("b", depends_on=[first])
    assert store.tasks.stats().oldest_ready == first.created_at
    one, two, three, four = store.tasks.claim_many(agent, 4)
    store.tasks.start(one)
    store.tasks.complete(two)
    store.tasks.fail(three, "no", retry=False)
    store.tasks.cancel(four)
    stats = store.tasks.stats()
    assert stats.counts == {
        "a": {TaskStatus.RUNNING: 1, TaskStatus.COMPLETED: 1, TaskStatus.FAILED: 1},
        "b": {TaskStatus.CANCELLED: 1, TaskStatus.PENDING: 2, TaskStatus.SCHEDULED: 1, TaskStatus.BLOCKED: 1},
    }
    assert stats.oldest_ready == clock.now
    assert stats.total() == store.tasks.count() == 8
    assert stats.total(TaskStatus.PENDING, TaskStatus.RUNNING) == 3


def test_an_empty_queue_has_no_oldest_task(store: Store):
    stats = store.tasks.stats()
    assert (stats.counts, stats.oldest_ready, stats.completed_per_second, stats.total()) == ({}, None, 0, 0)


def test_throughput_is_that_of_the_last_minute_to_the_millisecond(store: Store, agent, clock):
    for _ in range(6):
        store.tasks.enqueue("t")
        store.tasks.complete(store.tasks.claim(agent))
    clock.advance(ms=59_999)
    assert store.tasks.stats().completed_per_second == pytest.approx(0.1)
    clock.advance(ms=1)
    assert store.tasks.stats().completed_per_second == 0


def test_dead_lists_what_failed_for_good_oldest_first(store: Store, agent, clock):
    a, b, c = (store.tasks.enqueue("t", n, max_retries=0) for n in range(3))
    held = store.tasks.claim_many(agent, 3)
    store.tasks.fail(held[2], "no")
    clock.advance(1)
    store.tasks.fail(held[1], "no")
    store.tasks.fail(held[0], "no")
    store.tasks.enqueue("t")
    assert [task.id for task in store.tasks.dead()] == [c.id, a.id, b.id]
