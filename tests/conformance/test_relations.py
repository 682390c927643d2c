"""Tasks among tasks: dependencies, trees and unique keys."""

import time

import crew
import pytest
from msgspec import structs
from sqlalchemy import select

from ruv_swarm_store import Conflict, InvalidTransition, InvalidValue, NewEvent, NewTask, NotFound, Store, TaskStatus
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.schema import task_dependencies

threads = pytest.mark.needs("threads")
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


def test_what_others_wait_for_is_counted_in_the_row(store: Store, agent):
    a, b = store.tasks.enqueue("t"), store.tasks.enqueue("t")
    task = store.tasks.enqueue("after", depends_on=[a, b])
    assert (task.unmet, [store.tasks.get(one).awaited for one in (a, b, task)]) == (2, [1, 1, 0])
    stale = store.tasks.get(task)
    store.tasks.complete(store.tasks.claim(agent))
    assert store.tasks.get(task).unmet == 1
    assert store.tasks.update(structs.replace(stale, priority=9)).priority == 9  # what a row counts by itself makes no copy stale


def test_a_hundred_dependencies_end_one_by_one_or_together(store: Store, agent):
    needs = store.tasks.enqueue_many([("t", n) for n in range(100)])
    task = store.tasks.enqueue("after", depends_on=needs)
    assert task.unmet == 100
    held = store.tasks.claim_many(agent, 100)
    for one in held[:10]:
        store.tasks.complete(one)
    assert (store.tasks.get(task).unmet, status(store, task)) == (90, BLOCKED)
    store.tasks.complete_many((one, None) for one in held[10:])
    assert (store.tasks.get(task).unmet, status(store, task)) == (0, PENDING)


@threads
@pytest.mark.parametrize("verb", ["complete", "complete_many"])
def test_dependencies_completed_at_once_leave_nobody_waiting(store: Store, agent, verb):
    for _ in range(3):
        needs = store.tasks.enqueue_many([("t", n) for n in range(24)])
        after = [store.tasks.enqueue("after", depends_on=needs[::step]) for step in (1, 2, 3, 5)]
        held = {task.id: task for task in store.tasks.claim_many(agent, 24)}

        def complete(number: int, barrier, held=held, needs=needs) -> None:
            barrier.wait()
            mine = [held[need.id] for need in needs[number::8]]
            if verb == "complete":
                for task in mine:
                    store.tasks.complete(task)
            else:
                store.tasks.complete_many((task, None) for task in reversed(mine))

        crew.in_threads(8, complete)
        assert status(store, *after) == [PENDING] * 4
        store.tasks.complete_many((task, None) for task in store.tasks.claim_many(agent, 4))


@threads
@pytest.mark.parametrize("end", [COMPLETED, FAILED, CANCELLED])
def test_a_dependency_that_ends_while_it_is_being_depended_on_is_seen(store: Store, agent, end):
    for _ in range(5):
        first = store.tasks.enqueue("t")
        held = store.tasks.claim(agent, types=["t"])

        def depend_or_end(number: int, barrier, first=first, held=held) -> list[str]:
            barrier.wait()
            if number == 0:
                if end is COMPLETED:
                    store.tasks.complete(held)
                elif end is FAILED:
                    store.tasks.fail(held, "no", retry=False)
                else:
                    store.tasks.cancel(held)
                return []
            new = [NewTask("after", depends_on=[first], on_dependency_failure="fail") for _ in range(2)]
            return [store.tasks.enqueue("after", depends_on=[first]).id, *(task.id for task in store.tasks.enqueue_many(new))]

        made = [id for part in crew.in_threads(5, depend_or_end) for id in part]
        expected = [PENDING] * 3 if end is COMPLETED else [CANCELLED, FAILED, FAILED]
        assert status(store, *made) == expected * 4


@threads
def test_webs_of_dependencies_that_many_end_and_extend_at_once_settle(store: Store):
    agents = [store.agents.register("worker").id for _ in range(6)]
    layer = store.tasks.enqueue_many([("t", n) for n in range(6)])
    for _ in range(4):
        layer = store.tasks.enqueue_many(NewTask("t", n, depends_on=[layer[n], layer[(n + 1) % 6]], parent=layer[n]) for n in range(6))

    def work(number: int, barrier) -> None:
        barrier.wait()
        for step in range(40):
            task = store.tasks.claim(agents[number])
            if task is None:
                continue
            if (number + step) % 7 == 0:
                store.tasks.fail(task, "no", retry=False)
            elif (number + step) % 11 == 0:
                store.tasks.cancel(task, tree=True)
            else:
                if step < 5:
                    store.tasks.enqueue("t", depends_on=[task, layer[number]])
                store.tasks.complete(task)

    crew.in_threads(6, work)
    found = {task.id: task for task in store.tasks.find_all()}
    waits = store.execute(select(task_dependencies.c.task_id, task_dependencies.c.depends_on_id))
    assert waits
    for task_id, need in waits:
        if found[task_id].status is BLOCKED:
            assert found[need].status in (PENDING, BLOCKED, COMPLETED)
        elif found[task_id].status is COMPLETED:
            assert found[need].status is COMPLETED
        elif found[need].status in (FAILED, CANCELLED):
            assert found[task_id].status in (FAILED, CANCELLED)
    for task in found.values():
        open_needs = [need for id, need in waits if id == task.id and found[need].status is not COMPLETED]
        assert task.status not in (PENDING, BLOCKED) or (task.unmet == len(open_needs) and (task.status is BLOCKED) == bool(open_needs))


def test_requeue_waits_again_for_what_is_open(store: Store, agent):
    first = store.tasks.enqueue("t")
    second = store.tasks.enqueue("t", delay=1_000)
    after = store.tasks.enqueue("after", depends_on=[first, second])
    finish(store, agent, first, FAILED)
    assert status(store, after) is CANCELLED
    with pytest.raises(Conflict, match=first.id) as caught:
        store.tasks.requeue(after)
    assert caught.value.data["depends_on"] == first.id
    back = store.tasks.requeue_many([after, first])
    assert [(task.id, task.status, task.unmet) for task in back] == [(after.id, BLOCKED, 2), (first.id, PENDING, 0)]
    store.tasks.complete(store.tasks.claim(agent))
    assert (status(store, after), store.tasks.get(after).unmet) == (BLOCKED, 1)
    store.tasks.cancel(second)
    assert status(store, after) is CANCELLED
    store.tasks.requeue(second)
    store.tasks.requeue(after)
    store.tasks.complete(store.tasks.claim(agent))
    assert status(store, after) is PENDING


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


@threads
@pytest.mark.parametrize("key", ["unique_key", "idempotency_key"])
def test_a_key_makes_one_task_however_many_ask(store: Store, agent, key):
    def enqueue(number: int, barrier, name: str) -> list[str]:
        barrier.wait()
        if number % 2:
            return [store.tasks.enqueue("t", number, **{key: name}).id]
        return [task.id for task in store.tasks.enqueue_many([NewTask("t", number, **{key: name}), NewTask("t", **{key: name})])]

    for name in ("a", "b", "c"):
        ids = {id for part in crew.in_threads(10, enqueue, name) for id in part}
        assert len(ids) == 1
    assert store.tasks.count() == 3


@threads
def test_a_unique_key_passes_on_while_its_tasks_come_and_go(store: Store):
    agents = [store.agents.register("worker").id for _ in range(6)]

    def work(number: int, barrier) -> int:
        barrier.wait()
        done = 0
        deadline = time.monotonic() + 60
        while done < 5:
            assert time.monotonic() < deadline
            store.tasks.enqueue("t", unique_key="k")
            if (task := store.tasks.claim(agents[number])) is not None:
                store.tasks.complete(task)
                done += 1
        return done

    assert sum(crew.in_threads(6, work)) == store.tasks.stats().total(COMPLETED) == 30
    assert store.tasks.count() - store.tasks.stats().total(COMPLETED) <= 1


# Idempotency keys


@pytest.mark.parametrize("end", [None, COMPLETED, FAILED, CANCELLED])
def test_an_idempotency_key_stands_for_its_first_task_for_good(store: Store, agent, end):
    first = store.tasks.enqueue("t", 1, idempotency_key="k", delay=None)
    if end is not None:
        finish(store, agent, first, end)
    again = store.tasks.enqueue("u", 2, idempotency_key="k", unique_key="other", priority=9)
    assert again == store.tasks.get(first)
    assert (again.id, again.payload, again.idempotency_key) == (first.id, 1, "k")
    assert store.tasks.enqueue_many([NewTask("t", 3, idempotency_key="k"), ("t", 4)])[0].id == first.id
    store.tasks.delete(first) if end is not None else store.tasks.cancel(first)
    assert (store.tasks.enqueue("t", idempotency_key="k").id == first.id) == (end is None)


def test_a_task_has_both_keys_or_none(store: Store):
    first = store.tasks.enqueue("t", unique_key="u", idempotency_key="i")
    assert store.tasks.enqueue("t", unique_key="u", idempotency_key="other") == first
    assert store.tasks.enqueue("t", unique_key="other", idempotency_key="i") == first
    assert store.tasks.count() == 1
    with pytest.raises(Conflict, match="'x'"):
        store.tasks.enqueue_many([NewTask("t", id="x"), NewTask("t", id="x", unique_key="y")])
    with pytest.raises(InvalidValue):
        store.tasks.enqueue("t", idempotency_key=5)
    with pytest.raises(InvalidValue):
        store.tasks.enqueue("t", concurrency_key=b"k")
    with pytest.raises(NotFound):
        store.tasks.enqueue("t", idempotency_key="z", depends_on=["nobody"])
    with pytest.raises(NotFound):
        store.tasks.enqueue("t", idempotency_key="z", parent="nobody")
    assert store.tasks.count() == 1


# Pruning


def finished(store: Store, agent, *names: str, **options) -> list:
    made = store.tasks.enqueue_many(NewTask("t", name, id=name, **options) for name in names)
    store.tasks.complete_many((task, None) for task in store.tasks.claim_many(agent, len(names), types=["t"]))
    return made


def names(store: Store) -> set[str]:
    return {task.id for task in store.tasks.find_all()}


def test_prune_is_exact_to_the_millisecond(store: Store, agent, clock):
    finished(store, agent, "old")
    clock.advance(ms=1)
    finished(store, agent, "young")
    clock.advance(ms=4_999)
    assert store.tasks.prune(5) == 1
    assert names(store) == {"young"}
    assert store.tasks.prune(5) == 0


def test_prune_takes_whole_trees_and_what_belongs_to_them(store: Store, agent, clock):
    finished(store, agent, "root")
    finished(store, agent, "child", "other child", parent="root")
    finished(store, agent, "grandchild", parent="child", depends_on=["other child"])
    store.tasks.enqueue("t", id="dead", parent="grandchild", max_retries=0)
    store.tasks.fail(store.tasks.claim(agent), "no")
    store.events.append("root", [NewEvent("seen")], type="task")
    message = store.messages.publish("about", "root")
    clock.advance(60)
    assert store.tasks.prune(60) == 5
    assert store.tasks.count() == 0
    assert store.tasks.failures("dead") == []
    assert store.events.version("root", type="task") == 1
    assert store.messages.get(message.id) == message
    assert store.check() == []


@pytest.mark.parametrize("state", [PENDING, SCHEDULED, BLOCKED, TaskStatus.ASSIGNED, "young"])
def test_prune_leaves_a_tree_with_one_that_is_not_done(store: Store, agent, clock, state):
    finished(store, agent, "root", "gone")
    finished(store, agent, "child", parent="root")
    options = {SCHEDULED: {"delay": 1_000}, BLOCKED: {"depends_on": [store.tasks.enqueue("gate", delay=1_000)]}}.get(state, {})
    last = store.tasks.enqueue("last", id="last", parent="child", **options)
    clock.advance(100)
    if state in (TaskStatus.ASSIGNED, "young"):
        held = store.tasks.claim(agent)
        if state == "young":
            store.tasks.complete(held)
    before = names(store)
    assert store.tasks.prune(50) == 1
    assert names(store) == before - {"gone"}
    if state == "young":
        clock.advance(100)
    else:
        store.tasks.cancel(last)
    assert store.tasks.prune(0) == 3


def test_prune_leaves_what_something_unfinished_depends_on(store: Store, agent, clock):
    finished(store, agent, "root", "free")
    finished(store, agent, "child", parent="root")
    waiting = store.tasks.enqueue("after", depends_on=["child", store.tasks.enqueue("gate", delay=1_000)])
    done = store.tasks.enqueue("t", depends_on=["free"])
    store.tasks.complete(store.tasks.claim(agent))
    clock.advance(1)
    young = store.tasks.enqueue("t", depends_on=[done, "root"])
    store.tasks.complete(store.tasks.claim(agent))
    assert store.tasks.prune(0.5) == 2
    assert names(store) >= {"root", "child", waiting.id, young.id}
    store.tasks.cancel(waiting)
    assert store.tasks.prune(0.5) == 2
    assert young.id in names(store)


def test_prune_takes_many_trees_larger_than_a_batch(store: Store, agent, clock, monkeypatch):
    from ruv_swarm_store.tasks import pruning

    monkeypatch.setattr(pruning, "BATCH", 7)
    finished(store, agent, "root")
    finished(store, agent, *(f"child-{n}" for n in range(30)), parent="root")
    finished(store, agent, *(f"single-{n}" for n in range(pruning.PAGE + 5)))
    kept = store.tasks.enqueue("last", parent=finished(store, agent, "kept")[0])
    clock.advance(1)
    assert store.tasks.prune(0.5) == 31 + pruning.PAGE + 5
    assert names(store) == {"kept", kept.id}


@threads
def test_prune_beside_those_who_build_on_the_old_breaks_nothing(database):
    store = database.open()
    agent = store.agents.register("worker").id
    finished(store, agent, *(f"t-{n}" for n in range(60)))

    def work(number: int, barrier) -> list[str]:
        barrier.wait()
        made = []
        if number == 0:
            for _ in range(5):
                store.tasks.prune(0)
            return []
        for n in range(number, 60, 3):
            try:
                made.append(store.tasks.enqueue("after", parent=f"t-{n}").id if n % 2 else store.tasks.requeue(f"t-{n}").id)
            except (NotFound, InvalidTransition):
                try:
                    made.append(store.tasks.enqueue("after", depends_on=[f"t-{n}"]).id)
                except NotFound:
                    pass
        return made

    made = [id for part in crew.in_threads(4, work) for id in part]
    assert set(made) <= names(store)
    assert store.check() == []


@pytest.mark.parametrize("wrong", [-1, None, "1", float("nan")], ids=repr)
def test_prune_takes_a_number_of_seconds(store: Store, wrong):
    with pytest.raises(InvalidValue):
        store.tasks.prune(wrong)


def test_a_task_is_not_its_own_parent(store: Store):
    for act in (
        lambda: store.tasks.enqueue("t", id="a", parent="a"),
        lambda: store.tasks.enqueue_many([NewTask("t", id="a", parent="a")]),
        lambda: store.tasks.enqueue("t", id="a", parent="a", unique_key="k"),
    ):
        with pytest.raises(InvalidValue, match="own parent"):
            act()
    assert store.tasks.count() == 0
