"""What a verb decides while another transaction is about to change what it looked at."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ruv_swarm_store import InvalidTransition, NewTask, Store, TaskStatus, UnitOfWork
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.schema import tasks

pytestmark = pytest.mark.needs("threads")

PENDING, BLOCKED, CANCELLED = TaskStatus.PENDING, TaskStatus.BLOCKED, TaskStatus.CANCELLED
ADMITTED = (PENDING, TaskStatus.ASSIGNED, TaskStatus.RUNNING)


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def beside(store: Store, first: Callable[[UnitOfWork], object], second: Callable[[], object]) -> Any:
    """What `second` returned or raised, begun when `first` was done and not committed yet."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(second())
        except StoreError as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    with store.transaction() as work:
        first(work)
        thread.start()
        thread.join(0.15)
    thread.join(20)
    return answers[0]


def admitted(store: Store) -> int:
    return store.tasks.where(tasks.c.concurrency_key == "k", tasks.c.status.in_(ADMITTED)).count()


def limited() -> NewTask:
    return NewTask("t", concurrency_key="k")


def test_two_who_add_at_once_do_not_both_find_room(store: Store):
    store.tasks.limit("k", 1)
    beside(store, lambda work: work.tasks.enqueue_many([limited()]), lambda: store.tasks.enqueue_many([limited()]))
    assert (admitted(store), store.tasks.count()) == (1, 2)


def test_two_who_make_room_at_once_fill_it(store: Store, agent):
    store.tasks.limit("k", 2)
    store.tasks.enqueue_many([limited() for _ in range(4)])
    one, two = store.tasks.claim_many(agent, 2)
    beside(store, lambda work: work.tasks.complete(one), lambda: store.tasks.complete(two))
    assert admitted(store) == 2


def test_a_first_limit_counts_what_is_being_added(store: Store):
    beside(store, lambda work: work.tasks.enqueue_many([limited(), limited(), limited()]), lambda: store.tasks.limit("k", 1))
    assert admitted(store) == 1


def test_what_is_added_while_a_first_limit_is_set_obeys_it(database):
    store = database.open()
    threads: list[threading.Thread] = []

    def limit_now(sql: str, seconds: float) -> None:
        # It has looked for a limit and added nothing yet.
        if "task_limits" in sql and sql.startswith("SELECT") and not threads:
            threads.append(threading.Thread(target=lambda: store.tasks.limit("k", 1)))
            threads[0].start()
            threads[0].join(0.3)

    other = database.open(trace=limit_now) if store.capabilities.processes else store
    other.tasks.enqueue_many([limited(), limited()])
    if other is store:
        store.tasks.limit("k", 1)
    for thread in threads:
        thread.join(20)
    assert (admitted(store), store.tasks.limits()) == (1, {"k": 1})


def test_lifting_a_limit_frees_what_is_being_kept_back(store: Store):
    store.tasks.limit("k", 1)
    beside(store, lambda work: work.tasks.enqueue_many([limited(), limited()]), lambda: store.tasks.limit("k", None))
    assert admitted(store) == 2
    store.tasks.limit("k", 1)
    beside(store, lambda work: work.tasks.limit("k", None), lambda: store.tasks.enqueue_many([limited()]))
    assert admitted(store) == 3


@pytest.mark.parametrize("awaited", [False, True])
def test_who_fails_a_task_sees_that_its_cancellation_was_asked_for_just_now(store: Store, agent, awaited):
    for end in (
        lambda task: store.tasks.fail(task, "no", delay=0),
        lambda task: store.tasks.release(task),
        lambda task: store.agents.terminate(agent) and store.tasks.get(task),
    ):
        task = store.tasks.enqueue("t")
        if awaited:
            store.tasks.enqueue("after", depends_on=[task])
        held = store.tasks.claim(agent)
        ended = beside(store, lambda work, task=task: work.tasks.cancel(task, cooperative=True), lambda held=held, end=end: end(held))
        assert ended.status is CANCELLED
        assert store.tasks.get(task).status is CANCELLED


def test_a_claim_beside_a_cancellation_gets_nothing_or_what_is_asked_to_stop(store: Store, agent):
    task = store.tasks.enqueue("t")
    assert beside(store, lambda work: work.tasks.cancel(task, cooperative=True), lambda: store.tasks.claim(agent)) is None
    task = store.tasks.enqueue("t")
    [asked] = beside(store, lambda work: work.tasks.claim(agent), lambda: store.tasks.cancel(task, cooperative=True))
    assert (asked.status, asked.cancel_requested_at is None) == (TaskStatus.ASSIGNED, False)


def test_the_last_two_dependencies_do_not_each_wait_for_the_other(store: Store, agent):
    needs = store.tasks.enqueue_many([("t", 1), ("t", 2)])
    after = store.tasks.enqueue("after", depends_on=needs)
    one, two = store.tasks.claim_many(agent, 2)
    beside(store, lambda work: work.tasks.complete(one), lambda: store.tasks.complete(two))
    assert (store.tasks.get(after).status, store.tasks.get(after).unmet) == (PENDING, 0)


def test_who_completes_a_task_sees_who_has_just_come_to_depend_on_it(store: Store, agent):
    task = store.tasks.enqueue("t")
    held = store.tasks.claim(agent)
    beside(store, lambda work: work.tasks.enqueue("after", id="after", depends_on=[task]), lambda: store.tasks.complete(held))
    assert store.tasks.get("after").status is PENDING
    task = store.tasks.enqueue("t", priority=9)
    held = store.tasks.claim(agent)
    made = beside(store, lambda work: work.tasks.complete(held), lambda: store.tasks.enqueue("t", depends_on=[task]))
    assert made.status is store.tasks.get(made).status is PENDING


def test_who_is_requeued_sees_that_what_it_waits_for_has_just_been_completed(store: Store, agent):
    need = store.tasks.enqueue("t")
    after = store.tasks.enqueue("after", depends_on=[need])
    held = store.tasks.claim(agent)
    store.tasks.cancel(after)
    back = beside(store, lambda work: work.tasks.complete(held), lambda: store.tasks.requeue(after))
    assert (back.status, back.unmet) == (PENDING, 0)


def test_prune_leaves_what_has_just_been_put_back_or_built_on(store: Store):
    def cancelled(id: str) -> None:
        store.tasks.cancel(store.tasks.enqueue("t", id=id))

    cancelled("back")
    assert beside(store, lambda work: work.tasks.requeue("back"), lambda: store.tasks.prune(0)) == 0
    cancelled("parent")
    assert beside(store, lambda work: work.tasks.enqueue("t", id="child", parent="parent"), lambda: store.tasks.prune(0)) == 0
    cancelled("gone")
    refused = beside(store, lambda work: work.tasks.prune(0), lambda: store.tasks.requeue("gone"))
    assert isinstance(refused, StoreError)
    assert {task.id for task in store.tasks.find_all()} == {"back", "parent", "child"}


def test_a_task_claimed_just_now_cannot_be_deleted(store: Store, agent):
    task = store.tasks.enqueue("t")
    refused = beside(store, lambda work: work.tasks.claim(agent), lambda: store.tasks.delete(task))
    assert isinstance(refused, StoreError)
    assert store.tasks.get(task).status is TaskStatus.ASSIGNED


def test_an_agent_that_has_just_ended_claims_nothing_and_one_that_has_just_claimed_keeps_nothing(store: Store, agent):
    task = store.tasks.enqueue("t")
    other = store.agents.register("worker")
    refused = beside(store, lambda work: work.agents.terminate(agent), lambda: store.tasks.claim(agent))
    assert isinstance(refused, InvalidTransition)
    beside(store, lambda work: work.tasks.claim(other), lambda: store.agents.terminate(other))
    assert (store.tasks.get(task).status, store.tasks.get(task).agent_id) == (PENDING, None)


def test_a_key_given_up_or_taken_just_now_is_seen(store: Store, agent):
    first = store.tasks.enqueue("t", unique_key="k")
    held = store.tasks.claim(agent)
    second = beside(store, lambda work: work.tasks.complete(held), lambda: store.tasks.enqueue("t", unique_key="k"))
    # Whether it came before or after the completion: it is the one task of that key.
    assert second.id == first.id or store.tasks.get(second).status is PENDING
    made: list[Any] = []
    third = beside(
        store,
        lambda work: made.append(work.tasks.enqueue("t", unique_key="new", idempotency_key="new")),
        lambda: store.tasks.enqueue("t", unique_key="new"),
    )
    assert third == made[0]
    fourth = beside(
        store,
        lambda work: made.append(work.tasks.enqueue("t", idempotency_key="i")),
        lambda: store.tasks.enqueue("t", idempotency_key="i"),
    )
    assert fourth == made[1]
