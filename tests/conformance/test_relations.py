"""Tasks among tasks: dependencies, trees and unique keys."""

import pytest
from msgspec import structs

from ruv_swarm_store import InvalidTransition, InvalidValue, NewTask, NotFound, Store, TaskStatus
from ruv_swarm_store.errors import StoreError

PENDING, SCHEDULED, BLOCKED = TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.BLOCKED
COMPLETED, FAILED, CANCELLED = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def status(store: Store, *tasks):
    found = [store.tasks.get(task).status for task in tasks]
    return found[0] if len(found) == 1 else found


def finish(store: Store, agent, task, how: TaskStatus = COMPLETED):
    if how is CANCELLED:
        return store.tasks.cancel(task)
    claimed = next(one for one in store.tasks.claim_many(agent, 1_000) if one.id == task.id)
    return store.tasks.complete(claimed) if how is COMPLETED else store.tasks.fail(claimed, "no", retry=False)


# Dependencies


def test_a_task_waits_for_all_it_depends_on(store: Store, agent):
    a, b, c = (store.tasks.enqueue("t", n) for n in range(3))
    task = store.tasks.enqueue("after", depends_on=[a, b.id, c, a])
    assert task.status is BLOCKED
    assert store.tasks.get(task) == task
    held = store.tasks.claim_many(agent, 10)
    assert [one.id for one in held] == [a.id, b.id, c.id]
    for one, expected in zip(held, [BLOCKED, BLOCKED, PENDING], strict=True):
        store.tasks.complete(one)
        assert status(store, task) is expected
    assert store.tasks.claim(agent).id == task.id


def test_a_chain_goes_one_by_one(store: Store, agent):
    chain = [store.tasks.enqueue("t")]
    for _ in range(9):
        chain.append(store.tasks.enqueue("t", depends_on=chain[-1:]))
    done = []
    while (task := store.tasks.claim(agent)) is not None:
        assert store.tasks.claim(agent) is None
        done.append(store.tasks.complete(task).id)
    assert done == [task.id for task in chain]


def test_a_diamond_closes_when_both_sides_are_done(store: Store, agent):
    top = store.tasks.enqueue("t")
    left, right = store.tasks.enqueue("t", depends_on=[top]), store.tasks.enqueue("t", depends_on=[top])
    bottom = store.tasks.enqueue("t", depends_on=[left, right])
    store.tasks.complete(store.tasks.claim(agent))
    assert status(store, left, right, bottom) == [PENDING, PENDING, BLOCKED]
    store.tasks.complete_many((task, None) for task in store.tasks.claim_many(agent, 2))
    assert status(store, bottom) is PENDING


def test_what_is_done_already_holds_nothing_up(store: Store, agent):
    done = store.tasks.enqueue("t")
    store.tasks.complete(store.tasks.claim(agent))
    assert store.tasks.enqueue("t", depends_on=[done]).status is PENDING
    open_ = store.tasks.enqueue("t")
    assert store.tasks.enqueue("t", depends_on=[done, open_]).status is BLOCKED


def test_a_blocked_task_with_a_time_is_scheduled_when_it_is_free(store: Store, agent, clock):
    first = store.tasks.enqueue("t")
    soon = store.tasks.enqueue("after", depends_on=[first], delay=10)
    late = store.tasks.enqueue("after", depends_on=[first], delay=20)
    assert (soon.status, late.status) == (BLOCKED, BLOCKED)
    clock.advance(10)
    store.tasks.complete(store.tasks.claim(agent))
    assert status(store, soon, late) == [PENDING, SCHEDULED]
    clock.advance(10)
    assert [task.id for task in store.tasks.claim_many(agent, 5)] == [soon.id, late.id]


@pytest.mark.parametrize("policy", ["fail", "cancel"])
@pytest.mark.parametrize("end", [FAILED, CANCELLED])
def test_a_dead_dependency_ends_what_waits_for_it(store: Store, agent, clock, policy, end):
    first, other = store.tasks.enqueue("t"), store.tasks.enqueue("t", delay=1_000)
    task = store.tasks.enqueue("after", depends_on=[first, other], on_dependency_failure=policy)
    clock.advance(1)
    finish(store, agent, first, end)
    ended = store.tasks.get(task)
    assert ended.status is (FAILED if policy == "fail" else CANCELLED)
    assert ended.completed_at == clock.now
    assert first.id in ended.error_message
    assert status(store, other) is SCHEDULED


def test_the_default_is_to_cancel(store: Store, agent):
    first = store.tasks.enqueue("t")
    task = store.tasks.enqueue("t", depends_on=[first])
    finish(store, agent, first, FAILED)
    assert status(store, task) is CANCELLED


def test_death_goes_down_the_chain_each_by_its_own_policy(store: Store, agent):
    first = store.tasks.enqueue("t")
    b = store.tasks.enqueue("t", depends_on=[first], on_dependency_failure="fail")
    c = store.tasks.enqueue("t", depends_on=[b], on_dependency_failure="cancel")
    d = store.tasks.enqueue("t", depends_on=[c], on_dependency_failure="fail")
    finish(store, agent, first, CANCELLED)
    assert status(store, first, b, c, d) == [CANCELLED, FAILED, CANCELLED, FAILED]
    for task, cause in ((b, first), (c, b), (d, c)):
        assert cause.id in store.tasks.get(task).error_message


def test_each_dead_task_is_told_which_dependency_of_its_own_died(store: Store):
    root = store.tasks.enqueue("root")
    children = [store.tasks.enqueue("child", parent=root) for _ in range(3)]
    waiting = [store.tasks.enqueue("after", depends_on=[child]) for child in children]
    store.tasks.cancel(root, tree=True)
    for child, task in zip(children, waiting, strict=True):
        assert child.id in store.tasks.get(task).error_message


def test_what_depends_on_the_dead_is_dead_at_once(store: Store, agent):
    first, open_ = store.tasks.enqueue("t"), store.tasks.enqueue("t")
    store.tasks.cancel(first)
    cancelled = store.tasks.enqueue("t", depends_on=[open_, first])
    failed = store.tasks.enqueue("t", depends_on=[first], on_dependency_failure="fail")
    assert (cancelled.status, failed.status) == (CANCELLED, FAILED)
    assert store.tasks.get(cancelled) == cancelled
    assert store.tasks.get(failed) == failed


def test_a_retry_of_a_dependency_kills_nobody(store: Store, agent, clock):
    store.tasks.enqueue("t", max_retries=1)
    task = store.tasks.enqueue("after", depends_on=[store.tasks.find_all()[0]])
    store.tasks.fail(store.tasks.claim(agent), "no", delay=0)
    assert status(store, task) is BLOCKED
    store.tasks.claim(agent, lease=1)
    clock.advance(1)
    store.tasks.rescue()
    assert status(store, task) is CANCELLED


def test_dependencies_must_exist(store: Store):
    with pytest.raises(NotFound, match="nobody"):
        store.tasks.enqueue("t", depends_on=["nobody"])
    with pytest.raises(NotFound):
        store.tasks.enqueue("t", id="self", depends_on=["self"])
    assert store.tasks.count() == 0


def test_a_batch_can_depend_on_itself_in_order(store: Store, agent):
    a, b = store.tasks.enqueue_many([NewTask("t", id="a"), NewTask("t", id="b", depends_on=["a"], parent="a")])
    assert (a.status, b.status, b.parent_task_id) == (PENDING, BLOCKED, "a")
    with pytest.raises(NotFound):
        store.tasks.enqueue_many([NewTask("t", id="c", depends_on=["d"]), NewTask("t", id="d", depends_on=["c"])])
    assert store.tasks.count() == 2


def test_a_task_others_wait_for_cannot_be_deleted(store: Store):
    first = store.tasks.enqueue("t")
    task = store.tasks.enqueue("t", depends_on=[first])
    with pytest.raises(StoreError) as caught:
        store.tasks.delete(first)
    assert caught.value.data["kind"] == "reference"
    assert store.tasks.delete(task)
    assert store.tasks.delete(first)
    assert store.tasks.count() == 0


# Trees


def test_children_are_listed_in_order(store: Store):
    root = store.tasks.enqueue("root")
    children = [store.tasks.enqueue("child", n, parent=root) for n in range(3)]
    store.tasks.enqueue("grandchild", parent=children[0])
    assert store.tasks.children(root) == children
    assert store.tasks.children("nobody") == []


def test_a_parent_must_exist_and_be_another(store: Store):
    with pytest.raises(NotFound, match="nobody"):
        store.tasks.enqueue("t", parent="nobody")
    with pytest.raises(InvalidValue):
        store.tasks.enqueue("t", parent="self", id="self")
    assert store.tasks.count() == 0


def test_no_task_can_be_put_below_its_own_descendant(store: Store):
    root = store.tasks.enqueue("root")
    child = store.tasks.enqueue("child", parent=root)
    with pytest.raises(InvalidValue, match="parent"):
        store.tasks.update(structs.replace(root, parent_task_id=child.id))
    assert store.tasks.replace(structs.replace(root, parent_task_id=child.id)).parent_task_id is None
    assert store.tasks.upsert(structs.replace(root, parent_task_id=child.id)).parent_task_id is None
    assert store.tasks.get(child) == child


def test_cancel_ends_one_task(store: Store, clock):
    root = store.tasks.enqueue("root")
    child = store.tasks.enqueue("child", parent=root)
    clock.advance(1)
    [cancelled] = store.tasks.cancel(root)
    assert (cancelled.id, cancelled.status, cancelled.completed_at) == (root.id, CANCELLED, clock.now)
    assert status(store, child) is PENDING


def test_cancelling_a_tree_takes_every_unfinished_task_below(store: Store, agent, clock):
    root = store.tasks.enqueue("root", priority=100)
    done = store.tasks.enqueue("done", parent=root, priority=99)
    below_done = store.tasks.enqueue("below done", parent=done)
    held = store.tasks.enqueue("held", parent=root, priority=98)
    later = store.tasks.enqueue("later", parent=held, delay=100)
    blocked = store.tasks.enqueue("blocked", parent=later, depends_on=[later])
    stranger = store.tasks.enqueue("stranger", depends_on=[blocked], on_dependency_failure="fail")
    other = store.tasks.enqueue("other")
    store.tasks.complete(store.tasks.claim_many(agent, 2)[1])
    lease = store.tasks.claim(agent, types=["held"])
    cancelled = store.tasks.cancel(root, tree=True)
    assert [task.id for task in cancelled] == [task.id for task in (root, below_done, held, later, blocked)]
    assert status(store, done, stranger, other) == [COMPLETED, FAILED, PENDING]
    with pytest.raises(InvalidTransition, match="cancelled"):
        store.tasks.complete(lease)
    assert store.tasks.cancel(root, tree=True) == []
    with pytest.raises(InvalidTransition):
        store.tasks.cancel(root)
    with pytest.raises(NotFound):
        store.tasks.cancel("nobody", tree=True)


def test_a_tree_of_a_hundred_levels_is_cancelled_whole(store: Store):
    task = root = store.tasks.enqueue("t")
    for _ in range(99):
        task = store.tasks.enqueue("t", parent=task)
    assert len(store.tasks.cancel(root, tree=True)) == 100


# Unique keys


def test_a_key_stands_for_one_live_task(store: Store):
    first = store.tasks.enqueue("t", 1, unique_key="k")
    assert store.tasks.enqueue("t", 2, unique_key="k") == first
    assert store.tasks.enqueue("u", 3, unique_key="other").id != first.id
    assert store.tasks.count() == 2


@pytest.mark.parametrize("live", [PENDING, SCHEDULED, BLOCKED, TaskStatus.ASSIGNED, TaskStatus.RUNNING])
def test_a_task_in_any_live_state_holds_its_key(store: Store, agent, live):
    options = {
        SCHEDULED: {"delay": 100},
        BLOCKED: {"depends_on": [store.tasks.enqueue("other", delay=100)]},
    }.get(live, {})
    first = store.tasks.enqueue("t", unique_key="k", **options)
    if live in (TaskStatus.ASSIGNED, TaskStatus.RUNNING):
        held = store.tasks.claim(agent)
        if live is TaskStatus.RUNNING:
            store.tasks.start(held)
    found = store.tasks.enqueue("t", unique_key="k")
    assert (found.id, found.status) == (first.id, live)


@pytest.mark.parametrize("end", [COMPLETED, FAILED, CANCELLED])
def test_a_finished_task_gives_its_key_up(store: Store, agent, end):
    first = store.tasks.enqueue("t", unique_key="k")
    finish(store, agent, first, end)
    second = store.tasks.enqueue("t", unique_key="k")
    assert second.id != first.id
    assert store.tasks.enqueue("t", unique_key="k").id == second.id


def test_keys_hold_within_a_batch(store: Store):
    a, b, c = store.tasks.enqueue_many([NewTask("t", 1, unique_key="k"), NewTask("t", 2), NewTask("t", 3, unique_key="k")])
    assert (a, c.id) == (c, a.id)
    assert store.tasks.count() == 2
    assert store.tasks.find_all() == [a, b]
