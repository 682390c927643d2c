"""Leases: a task has one owner, every attempt ends once, and what is final stays so."""

import pytest
from msgspec import structs

from ruv_swarm_store import Conflict, InvalidTransition, InvalidValue, LeaseLost, NotFound, Store, Task, TaskStatus
from ruv_swarm_store.entities import TaskFailure
from ruv_swarm_store.tasks import Backoff

EXACT = Backoff(jitter=0)


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def bring(store: Store, status: TaskStatus) -> Task:
    """A task in that status, the way a swarm brings it there."""
    agent = store.agents.register("worker")
    if status is TaskStatus.BLOCKED:
        return store.tasks.enqueue("t", depends_on=[store.tasks.enqueue("other", delay=1_000)])
    if status is TaskStatus.SCHEDULED:
        return store.tasks.enqueue("t", delay=1_000)
    task = store.tasks.enqueue("t")
    match status:
        case TaskStatus.PENDING:
            return task
        case TaskStatus.CANCELLED:
            return store.tasks.cancel(task)[0]
    task = store.tasks.claim(agent)
    match status:
        case TaskStatus.RUNNING:
            return store.tasks.start(task)
        case TaskStatus.COMPLETED:
            return store.tasks.complete(task, {"r": 1})
        case TaskStatus.FAILED:
            return store.tasks.fail(task, "no", retry=False)
    return task


VERBS = {
    "start": lambda store, task: store.tasks.start(task),
    "heartbeat": lambda store, task: store.tasks.heartbeat(task),
    "complete": lambda store, task: store.tasks.complete(task, 1),
    "complete_many": lambda store, task: store.tasks.complete_many([(task, 1)]),
    "fail": lambda store, task: store.tasks.fail(task, "no"),
    "fail for good": lambda store, task: store.tasks.fail(task, "no", retry=False),
    "release": lambda store, task: store.tasks.release(task),
    "cancel": lambda store, task: store.tasks.cancel(task),
}
HELD = {TaskStatus.ASSIGNED, TaskStatus.RUNNING}
FINAL = {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}
ALLOWED = dict.fromkeys(VERBS, HELD) | {"start": {TaskStatus.ASSIGNED}, "cancel": set(TaskStatus) - FINAL}
RESULT = {
    "start": TaskStatus.RUNNING,
    "complete": TaskStatus.COMPLETED,
    "complete_many": TaskStatus.COMPLETED,
    "fail": TaskStatus.SCHEDULED,
    "fail for good": TaskStatus.FAILED,
    "release": TaskStatus.PENDING,
    "cancel": TaskStatus.CANCELLED,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("status", TaskStatus)
def test_every_state_allows_its_verbs_and_refuses_the_rest(store: Store, verb, status):
    task = bring(store, status)
    assert task.status is status
    if status in ALLOWED[verb]:
        VERBS[verb](store, task.id)
        assert store.tasks.get(task).status is RESULT.get(verb, status)
    else:
        with pytest.raises(InvalidTransition) as caught:
            VERBS[verb](store, task.id)
        assert caught.value.data["id"] == task.id
        assert caught.value.data["actual"] == status
        assert set(caught.value.data["allowed"]) == ALLOWED[verb]
        assert task.id in str(caught.value)
        assert status in str(caught.value)
        assert not caught.value.retryable
        assert store.tasks.get(task) == task


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("status", HELD)
def test_the_holder_may_do_all_its_lease_allows(store: Store, verb, status):
    task = bring(store, status)
    if status in ALLOWED[verb]:
        VERBS[verb](store, task)
        assert store.tasks.get(task).status is RESULT.get(verb, status)
    else:
        with pytest.raises(InvalidTransition):
            VERBS[verb](store, task)


@pytest.mark.parametrize("verb", VERBS)
def test_a_task_nobody_knows_is_not_found(store: Store, verb):
    for task in ("nobody", Task("nobody", "t", None, 0, fence=1)):
        with pytest.raises(NotFound):
            VERBS[verb](store, task)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "cancel"])
def test_a_task_that_was_never_claimed_has_no_lease_to_lose(store: Store, verb):
    task = store.tasks.enqueue("t")
    with pytest.raises(InvalidTransition):
        VERBS[verb](store, task)


def _rescued(store, late, clock):
    store.tasks.rescue()


def _taken_over(store, late, clock):
    store.tasks.rescue()
    assert store.tasks.claim(store.agents.register("worker")).id == late.id


def _running_elsewhere(store, late, clock):
    store.tasks.rescue()
    store.tasks.start(store.tasks.claim(store.agents.register("worker")))


def _completed_elsewhere(store, late, clock):
    store.tasks.rescue()
    store.tasks.complete(store.tasks.claim(store.agents.register("worker")), "theirs")


def _released_and_claimed_again(store, late, clock):
    store.tasks.release(late)
    store.tasks.claim(late.agent_id)


def _agent_terminated(store, late, clock):
    store.agents.terminate(late.agent_id)


def _scheduled_again(store, late, clock):
    store.tasks.fail(late, "no", delay=60)


@pytest.mark.parametrize(
    "meanwhile",
    [_rescued, _taken_over, _running_elsewhere, _completed_elsewhere, _released_and_claimed_again, _agent_terminated, _scheduled_again],
    ids=lambda f: f.__name__.strip("_"),
)
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "cancel"])
def test_who_comes_late_has_lost_the_lease(store: Store, agent, clock, verb, meanwhile):
    store.tasks.enqueue("t")
    late = store.tasks.claim(agent, lease=30)
    clock.advance(30)
    meanwhile(store, late, clock)
    before = store.tasks.get(late)
    with pytest.raises(LeaseLost) as caught:
        VERBS[verb](store, late)
    assert caught.value.data == {"id": late.id, "fence": 1, "actual": before.fence}
    assert store.tasks.get(late) == before


def test_an_expired_lease_holds_until_somebody_takes_it(store: Store, agent, clock):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent, lease=1)
    clock.advance(3_600)
    assert store.tasks.complete(task).status is TaskStatus.COMPLETED


def test_a_second_completion_is_refused(store: Store, agent):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    store.tasks.complete(task, 1)
    with pytest.raises(InvalidTransition):
        store.tasks.complete(task, 2)
    assert store.tasks.get(task).result == 1


def test_the_holder_of_a_cancelled_task_is_told_so(store: Store, agent):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    store.tasks.cancel(task.id)
    with pytest.raises(InvalidTransition, match="cancelled"):
        store.tasks.heartbeat(task)


# What each verb does


def test_start_notes_when(store: Store, agent, clock):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    clock.advance(2)
    started = store.tasks.start(task)
    assert started == structs.replace(task, status=TaskStatus.RUNNING, started_at=clock.now, version=3)
    assert store.tasks.get(task) == started


def test_a_heartbeat_extends_the_lease_and_changes_nothing_else(store: Store, agent, clock):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent, lease=10)
    clock.advance(9)
    store.tasks.heartbeat(task, lease=20)
    assert store.tasks.get(task) == structs.replace(task, lease_expires_at=clock.now + 20_000)
    clock.advance(ms=19_999)
    assert store.tasks.rescue() == []
    clock.advance(ms=1)
    assert len(store.tasks.rescue()) == 1


@pytest.mark.parametrize("result", [None, 0, "", [], {}, {"links": [1.0, 2]}, False], ids=repr)
def test_complete_keeps_the_result(store: Store, agent, clock, result):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    clock.advance(1)
    done = store.tasks.complete(task, result)
    expected = structs.replace(
        task, status=TaskStatus.COMPLETED, result=result, completed_at=clock.now, lease_expires_at=None, version=task.version + 1
    )
    assert done == store.tasks.get(task) == expected
    assert type(done.result) is type(result)


def test_a_result_that_cannot_be_stored_leaves_the_task_held(store: Store, agent):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    for complete in (lambda: store.tasks.complete(task, {1, 2}), lambda: store.tasks.complete_many([(task, float("nan"))])):
        with pytest.raises(InvalidValue):
            complete()
    assert store.tasks.get(task) == task


def test_complete_many_is_all_or_none(store: Store, agent):
    store.tasks.enqueue_many([("t", n) for n in range(4)])
    tasks = store.tasks.claim_many(agent, 4)
    store.tasks.cancel(tasks[2].id)
    with pytest.raises(InvalidTransition, match=tasks[2].id):
        store.tasks.complete_many((task, task.payload) for task in tasks)
    assert store.tasks.stats().total(TaskStatus.COMPLETED) == 0
    done = store.tasks.complete_many((task, task.payload) for task in tasks if task != tasks[2])
    assert [(task.result, task.status) for task in done] == [
        (0, TaskStatus.COMPLETED),
        (1, TaskStatus.COMPLETED),
        (3, TaskStatus.COMPLETED),
    ]
    assert store.tasks.complete_many([]) == []


def test_release_returns_the_task_unharmed(store: Store, agent, clock):
    queued = store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    released = store.tasks.release(task)
    assert (released.status, released.agent_id, released.lease_expires_at) == (TaskStatus.PENDING, None, None)
    assert (released.retry_count, released.error_message, released.position) == (0, None, queued.position)
    assert store.tasks.failures(task) == []
    again = store.tasks.claim(agent)
    assert (again.id, again.fence) == (task.id, 2)
    later = store.tasks.release(again, delay=2.5)
    assert (later.status, later.run_at) == (TaskStatus.SCHEDULED, clock.now + 2_500)


# Failing


def test_max_retries_is_one_first_try_and_that_many_more(store: Store, agent, clock):
    task = store.tasks.enqueue("t", max_retries=3)
    for attempt in range(1, 4):
        failed = store.tasks.fail(store.tasks.claim(agent), f"attempt {attempt}", delay=0)
        assert (failed.status, failed.retry_count, failed.error_message) == (TaskStatus.PENDING, attempt, f"attempt {attempt}")
        assert (failed.agent_id, failed.lease_expires_at, failed.completed_at) == (None, None, None)
        clock.advance(1)
    last = store.tasks.fail(store.tasks.claim(agent), "attempt 4", delay=0)
    assert (last.status, last.retry_count, last.completed_at, last.agent_id) == (TaskStatus.FAILED, 3, clock.now, agent.id)
    assert store.tasks.claim(agent) is None
    assert store.tasks.failures(task) == [
        TaskFailure(task.id, attempt, agent.id, f"attempt {attempt}", clock.now + (attempt - 4) * 1_000) for attempt in range(1, 5)
    ]
    assert [task.id for task in store.tasks.dead()] == [task.id]


def test_without_retries_the_first_failure_is_the_last(store: Store, agent):
    store.tasks.enqueue("t", max_retries=0)
    assert store.tasks.fail(store.tasks.claim(agent), "no").status is TaskStatus.FAILED


def test_fail_without_retry_ends_it_whatever_is_left(store: Store, agent):
    store.tasks.enqueue("t", max_retries=3)
    failed = store.tasks.fail(store.tasks.claim(agent), "no", retry=False)
    assert (failed.status, failed.retry_count) == (TaskStatus.FAILED, 0)


def test_fail_takes_an_exception(store: Store, agent):
    task = store.tasks.enqueue("t")
    store.tasks.fail(store.tasks.claim(agent), KeyError("missing"))
    assert store.tasks.failures(task)[0].error_message == "KeyError: 'missing'"


def test_waits_double_from_a_second_to_the_maximum(store: Store, agent, clock):
    store.tasks.enqueue("t", max_retries=12)
    waits = []
    for _ in range(12):
        failed = store.tasks.fail(store.tasks.claim(agent), "no", backoff=EXACT)
        assert failed.status is TaskStatus.SCHEDULED
        waits.append(failed.run_at - clock.now)
        clock.advance(ms=failed.run_at - clock.now - 1)
        assert store.tasks.claim(agent) is None
        clock.advance(ms=1)
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000, 300_000, 300_000]


def test_jitter_spreads_the_waits(store: Store, agent, clock):
    store.tasks.enqueue_many([("t", n) for n in range(200)])
    waits = {store.tasks.fail(task, "no").run_at - clock.now for task in store.tasks.claim_many(agent, 200)}
    assert len(waits) > 50
    assert min(waits) >= 900
    assert max(waits) <= 1_100


def test_the_backoff_is_the_caller_s_to_choose(store: Store, agent, clock):
    store.tasks.enqueue("t")
    steep = Backoff(initial=0.5, factor=10, maximum=7, jitter=0)
    waits = []
    for _ in range(3):
        failed = store.tasks.fail(store.tasks.claim(agent), "no", backoff=steep)
        waits.append(failed.run_at - clock.now)
        clock.advance(10)
    assert waits == [500, 5_000, 7_000]


def test_a_delay_replaces_the_backoff(store: Store, agent, clock):
    store.tasks.enqueue("t")
    assert store.tasks.fail(store.tasks.claim(agent), "no", delay=42).run_at == clock.now + 42_000


@pytest.mark.parametrize("error", [None, 5, b"bytes"], ids=repr)
def test_an_error_is_text_or_an_exception(store: Store, agent, error):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    with pytest.raises(InvalidValue):
        store.tasks.fail(task, error)
    assert store.tasks.get(task) == task


# Rescue


def test_rescue_is_exact_to_the_millisecond(store: Store, agent, clock):
    task = store.tasks.enqueue("t")
    held = store.tasks.claim(agent, lease=30)
    clock.advance(ms=29_999)
    assert store.tasks.rescue() == []
    clock.advance(ms=1)
    rescued = store.tasks.rescue()
    assert rescued == [
        structs.replace(
            held,
            status=TaskStatus.PENDING,
            agent_id=None,
            lease_expires_at=None,
            retry_count=1,
            error_message="the lease expired",
            version=held.version + 1,
        )
    ]
    assert store.tasks.get(task) == rescued[0]
    assert store.tasks.rescue() == []
    assert store.tasks.failures(task) == [TaskFailure(task.id, 1, agent.id, "the lease expired", clock.now)]


def test_a_lost_lease_counts_as_a_retry_until_there_are_none(store: Store, agent, clock):
    task = store.tasks.enqueue("t", max_retries=2)
    for _ in range(2):
        store.tasks.claim(agent, lease=1)
        clock.advance(1)
        assert [rescued.status for rescued in store.tasks.rescue()] == [TaskStatus.PENDING]
    store.tasks.start(store.tasks.claim(agent, lease=1))
    clock.advance(1)
    assert [rescued.status for rescued in store.tasks.rescue()] == [TaskStatus.FAILED]
    assert [(failure.fence, failure.error_message) for failure in store.tasks.failures(task)] == [
        (fence, "the lease expired") for fence in (1, 2, 3)
    ]


def test_rescue_leaves_the_living_alone(store: Store, agent, clock):
    store.tasks.enqueue_many([("t", n) for n in range(3)])
    short, long = store.tasks.claim(agent, lease=1), store.tasks.claim(agent, lease=60)
    clock.advance(2)
    assert [task.id for task in store.tasks.rescue()] == [short.id]
    assert store.tasks.get(long) == long


def test_a_lease_of_nothing_is_over_at_once(store: Store, agent):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent, lease=0)
    assert [rescued.id for rescued in store.tasks.rescue()] == [task.id]


def test_the_fence_grows_with_every_claim(store: Store, agent, clock):
    store.tasks.enqueue("t", max_retries=9)
    fences = []
    for end in (
        lambda task: store.tasks.release(task),
        lambda task: store.tasks.fail(task, "no", delay=0),
        lambda task: clock.advance(60) and store.tasks.rescue(),
        lambda task: store.tasks.complete(task),
    ):
        task = store.tasks.claim(agent)
        fences.append(task.fence)
        end(task)
    assert fences == [1, 2, 3, 4]


def test_a_held_task_cannot_be_deleted(store: Store):
    agent = store.agents.register("a")
    store.tasks.enqueue("t", id="held")
    held = store.tasks.claim(agent)
    with pytest.raises(Conflict, match="assigned"):
        store.tasks.delete("held")
    store.tasks.cancel(held)
    assert store.tasks.delete("held")


def test_an_exception_s_text_is_kept_whatever_it_holds(store: Store):
    agent = store.agents.register("a")
    store.tasks.enqueue("t")
    failed = store.tasks.fail(store.tasks.claim(agent), ValueError("a\0b \udcff"), retry=False)
    assert failed.error_message == "ValueError: a\\0b \\udcff"


def test_a_terminated_agent_gets_nothing_in_bulk_either(store: Store):
    agent = store.agents.register("a")
    store.tasks.enqueue("t")
    store.agents.terminate(agent)
    with pytest.raises(InvalidTransition):
        store.tasks.claim_many(agent, 5)
