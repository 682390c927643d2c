"""Leases: a task has one owner, every attempt ends once, and what is final stays so."""

import crew
import pytest
from msgspec import structs

from ruv_swarm_store import Conflict, InvalidTransition, InvalidValue, LeaseLost, NewEvent, NewTask, NotFound, Store, Task, TaskStatus
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
    "snooze": lambda store, task: store.tasks.snooze(task, 60),
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
    "snooze": TaskStatus.SCHEDULED,
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
@pytest.mark.parametrize("status", sorted(HELD))
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


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Backoff.constant(3, jitter=0), [3, 3, 3, 3]),
        (Backoff.linear(2, maximum=7, jitter=0), [2, 4, 6, 7]),
        (Backoff.exponential(0.5, factor=3, maximum=10, jitter=0), [0.5, 1.5, 4.5, 10]),
        (Backoff(jitter=0), [1, 2, 4, 8]),
        (Backoff.constant(0), [0, 0, 0, 0]),
    ],
    ids=["constant", "linear", "exponential", "default", "at once"],
)
def test_backoffs_have_names(store: Store, agent, clock, backoff, expected):
    store.tasks.enqueue("t", max_retries=4)
    waits = []
    for _ in expected:
        failed = store.tasks.fail(store.tasks.claim(agent), "no", backoff=backoff)
        waits.append((failed.run_at - clock.now) / 1000 if failed.status is TaskStatus.SCHEDULED else 0)
        clock.advance(10)
    assert waits == expected


@pytest.mark.parametrize("wrong", [{"initial": -1}, {"factor": "2"}, {"jitter": 1.5}, {"maximum": float("inf")}, {"step": None}], ids=repr)
def test_a_backoff_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InvalidValue):
        Backoff(**wrong)


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


# Several at once


def test_a_snoozed_task_comes_back_later_and_unharmed(store: Store, agent, clock):
    store.tasks.enqueue("t")
    task = store.tasks.start(store.tasks.claim(agent))
    snoozed = store.tasks.snooze(task, 2.5)
    assert (snoozed.status, snoozed.run_at, snoozed.retry_count, snoozed.agent_id) == (TaskStatus.SCHEDULED, clock.now + 2_500, 0, None)
    assert store.tasks.failures(task) == []
    clock.advance(2.5)
    assert store.tasks.claim(agent).fence == 2


def test_failing_and_releasing_many_is_all_or_none(store: Store, agent):
    store.tasks.enqueue_many([("t", n) for n in range(4)])
    tasks = store.tasks.claim_many(agent, 4)
    store.tasks.cancel(tasks[2])
    for verb in (
        lambda: store.tasks.fail_many([(task, f"no {task.payload}") for task in tasks], delay=0),
        lambda: store.tasks.release_many(tasks),
        lambda: store.tasks.fail_many([(tasks[0], "no"), (tasks[0], "again")], delay=0),
        lambda: store.tasks.release_many([tasks[0], tasks[0]]),
        lambda: store.tasks.cancel_many([tasks[0], tasks[2]]),
    ):
        with pytest.raises(Conflict):
            verb()
        assert [store.tasks.get(task).status for task in tasks[:2]] == [TaskStatus.ASSIGNED] * 2
    assert store.tasks.failures(tasks[0]) == []
    failed = store.tasks.fail_many(((task, f"no {task.payload}") for task in tasks[:2]), delay=0)
    assert [(task.payload, task.status, task.retry_count, task.error_message) for task in failed] == [
        (0, TaskStatus.PENDING, 1, "no 0"),
        (1, TaskStatus.PENDING, 1, "no 1"),
    ]
    [released] = store.tasks.release_many(iter([tasks[3]]), delay=1)
    assert released.status is TaskStatus.SCHEDULED
    assert [task.payload for task in store.tasks.cancel_many([tasks[3], tasks[0]])] == [0, 3]
    assert store.tasks.fail_many([]) == store.tasks.release_many([]) == store.tasks.cancel_many([]) == []
    with pytest.raises(NotFound):
        store.tasks.cancel_many([tasks[1], "nobody"])
    assert store.tasks.get(tasks[1]).status is TaskStatus.PENDING


# Asking the holder to stop


def test_what_nobody_holds_is_cancelled_at_once(store: Store, agent, clock):
    root = store.tasks.enqueue("root", priority=9)
    child = store.tasks.enqueue("child", parent=root)
    held = store.tasks.claim(agent)
    clock.advance(1)
    asked, cancelled = store.tasks.cancel(root, tree=True, cooperative=True)
    assert (asked.id, asked.status, asked.cancel_requested_at, asked.version) == (root.id, TaskStatus.ASSIGNED, clock.now, 3)
    assert (cancelled.id, cancelled.status) == (child.id, TaskStatus.CANCELLED)
    assert store.tasks.get(held) == asked
    clock.advance(1)
    assert store.tasks.cancel(root, cooperative=True)[0].cancel_requested_at == asked.cancel_requested_at


def test_the_holder_learns_from_its_heartbeat_that_it_should_stop(store: Store, agent, clock):
    store.tasks.enqueue("t")
    task = store.tasks.start(store.tasks.claim(agent))
    assert store.tasks.heartbeat(task) is True
    store.tasks.cancel(task.id, cooperative=True)
    clock.advance(1)
    assert store.tasks.heartbeat(task, lease=20) is False
    assert store.tasks.get(task).lease_expires_at == clock.now + 20_000
    [cancelled] = store.tasks.cancel(task)
    assert cancelled.status is TaskStatus.CANCELLED


def test_the_holder_may_complete_all_the_same(store: Store, agent):
    store.tasks.enqueue("t")
    task = store.tasks.claim(agent)
    store.tasks.cancel(task.id, cooperative=True)
    assert store.tasks.complete(task, 1).status is TaskStatus.COMPLETED


STOPS = {
    "fail": lambda store, task, clock: store.tasks.fail(task, "no"),
    "release": lambda store, task, clock: store.tasks.release(task),
    "snooze": lambda store, task, clock: store.tasks.snooze(task, 5),
    "lost lease": lambda store, task, clock: clock.advance(60) and store.tasks.rescue()[0],
    "terminated": lambda store, task, clock: store.agents.terminate(task.agent_id) and store.tasks.get(task),
}


@pytest.mark.parametrize("end", STOPS)
def test_an_attempt_that_ends_otherwise_is_cancelled_not_retried(store: Store, agent, clock, end):
    first = store.tasks.enqueue("t", max_retries=3)
    after = store.tasks.enqueue("after", depends_on=[first], on_dependency_failure="fail")
    task = store.tasks.claim(agent)
    store.tasks.cancel(task.id, cooperative=True)
    ended = STOPS[end](store, task, clock)
    assert ended == store.tasks.get(task)
    assert (ended.status, ended.retry_count, ended.completed_at) == (TaskStatus.CANCELLED, 0, clock.now)
    assert store.tasks.get(after).status is TaskStatus.FAILED
    assert len(store.tasks.failures(task)) == (end not in ("release", "snooze"))


# The dead, and back


def test_requeue_brings_a_failed_task_back_with_all_its_retries(store: Store, agent, clock):
    made = store.tasks.enqueue("t", 1, max_retries=1, priority=7)
    for _ in range(2):
        store.tasks.fail(store.tasks.claim(agent), "no", delay=0)
    [dead] = store.tasks.dead()
    back = store.tasks.requeue(dead)
    assert back == structs.replace(made, retry_count=0, fence=2, version=dead.version + 1)
    assert store.tasks.get(made) == back
    assert store.tasks.dead() == []
    assert [failure.fence for failure in store.tasks.failures(made)] == [1, 2]
    store.tasks.fail(store.tasks.claim(agent), "again", delay=0)
    assert store.tasks.complete(store.tasks.claim(agent), "done").result == "done"
    assert [failure.error_message for failure in store.tasks.failures(made)] == ["no", "no", "again"]


def test_requeue_takes_cancelled_tasks_and_may_wait(store: Store, agent, clock):
    task = store.tasks.enqueue("t")
    held = store.tasks.claim(agent)
    store.tasks.cancel(task, cooperative=True)
    store.tasks.release(held)
    back = store.tasks.requeue(task, delay=2)
    assert (back.status, back.run_at, back.cancel_requested_at, back.agent_id) == (TaskStatus.SCHEDULED, clock.now + 2_000, None, None)
    assert store.tasks.claim(agent) is None
    clock.advance(2)
    assert store.tasks.heartbeat(store.tasks.claim(agent)) is True


@pytest.mark.parametrize("status", [s for s in TaskStatus if s not in (TaskStatus.FAILED, TaskStatus.CANCELLED)])
def test_requeue_is_for_the_dead_only(store: Store, status):
    task, dead = bring(store, status), bring(store, TaskStatus.CANCELLED)
    before = store.tasks.find_all()
    with pytest.raises(InvalidTransition) as caught:
        store.tasks.requeue_many([dead, task])
    assert caught.value.data["id"] == task.id
    with pytest.raises(NotFound):
        store.tasks.requeue("nobody")
    assert store.tasks.find_all() == before


def test_a_key_that_is_taken_meanwhile_keeps_its_first_owner_dead(store: Store, agent):
    first = store.tasks.enqueue("t", unique_key="k")
    store.tasks.cancel(first)
    second = store.tasks.enqueue("t", unique_key="k")
    with pytest.raises(Conflict, match="unique key") as caught:
        store.tasks.requeue(first)
    assert caught.value.data["kind"] == "unique"
    store.tasks.cancel(second)
    assert store.tasks.requeue(first).status is TaskStatus.PENDING


def test_the_dead_can_be_narrowed_down_and_requeued_together(store: Store, agent, clock):
    store.tasks.enqueue_many([("ab"[n % 2], n) for n in range(6)])
    for task in store.tasks.claim_many(agent, 6):
        store.tasks.fail(task, "no", retry=False)
        clock.advance(1)
    assert [task.payload for task in store.tasks.dead(types=["b"])] == [1, 3, 5]
    assert [task.payload for task in store.tasks.dead(limit=2)] == [0, 1]
    back = store.tasks.requeue_many(store.tasks.dead(types=["a"]))
    assert [(task.payload, task.status) for task in back] == [(n, TaskStatus.PENDING) for n in (0, 2, 4)]
    assert [task.payload for task in store.tasks.dead()] == [1, 3, 5]
    assert store.tasks.requeue_many([]) == []
    with pytest.raises(InvalidValue):
        store.tasks.dead(types="a")


# Many who end things at once


@pytest.mark.needs("threads")
def test_a_task_ends_once_however_many_try(store: Store, agent):
    verbs = [
        lambda task: store.tasks.complete(task),
        lambda task: store.tasks.complete_many([(task, 1)]),
        lambda task: store.tasks.fail(task, "no", retry=False),
        lambda task: store.tasks.fail(task, "no", delay=0),
        lambda task: store.tasks.release(task),
        lambda task: store.tasks.cancel(task.id),
        lambda task: store.tasks.rescue(),
        lambda task: store.agents.terminate(agent),
    ]

    def end(number: int, barrier, tasks: list[Task]) -> int:
        barrier.wait()
        ended = 0
        for task in tasks:
            try:
                verbs[number](task)
                ended += number < 6
            except Conflict:
                pass
        return ended

    tasks = store.tasks.enqueue_many([("t", n) for n in range(10)])
    held = store.tasks.claim_many(agent, 10)
    crew.in_threads(8, end, held)
    for task in store.tasks.find_all():
        # Cancelling an attempt that was given back is no second end of it; but no attempt has two ends.
        assert task.status in (*FINAL, TaskStatus.PENDING), task
        assert len(store.tasks.failures(task)) <= 1
        assert task.fence == 1
        assert task.version <= 4
    assert len(store.tasks.find_all()) == len(tasks)


@pytest.mark.needs("threads")
def test_an_expired_lease_is_taken_back_once(store: Store, agent, clock):
    gate = store.tasks.enqueue("t", "gate")
    store.tasks.enqueue("after", depends_on=[gate])
    store.tasks.limit("k", 5)
    store.tasks.enqueue_many(NewTask("t", n, concurrency_key="k" if n % 2 else None) for n in range(250))
    held = store.tasks.claim_many(agent, 500, lease=1)
    clock.advance(1)

    def rescue(number: int, barrier) -> list[str]:
        barrier.wait()
        return [task.id for task in store.tasks.rescue()]

    rescued = [id for part in crew.in_threads(6, rescue) for id in part]
    assert sorted(rescued) == sorted(task.id for task in held)
    assert {store.tasks.get(id).retry_count for id in rescued} == {1}


@pytest.mark.needs("threads")
def test_a_claim_and_the_end_of_its_agent_leave_nothing_behind(store: Store):
    store.tasks.enqueue_many([("t", n) for n in range(60)])
    for round_ in range(6):
        agents = [store.agents.register("worker").id for _ in range(4)]

        def work(number: int, barrier, agents=agents, round_=round_) -> None:
            barrier.wait()
            if number == 0:
                for agent in agents:
                    store.agents.terminate(agent) if round_ % 2 else store.agents.delete(agent)
                return
            try:
                for _ in range(5):
                    store.tasks.claim(agents[number])
                    store.tasks.claim_many(agents[number], 2)
            except (NotFound, InvalidTransition):
                pass

        crew.in_threads(4, work)
        assert [task for task in store.tasks.find_all() if task.status in HELD] == []


def test_failing_does_not_fail_for_an_error_that_cannot_be_told(store: Store, agent):
    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    store.tasks.enqueue("t", max_retries=0)
    task = store.tasks.fail(store.tasks.claim(agent), Speechless())
    assert (task.status, task.error_message) == (TaskStatus.FAILED, "Speechless")
    store.events.append("a", [NewEvent("e")], type="t")
    subscription = store.events.subscribe("s")

    def handle(work, event):
        raise Speechless

    with pytest.raises(Speechless):
        subscription.handle(handle)
    assert (subscription.consumer().failures, subscription.consumer().error_message) == (1, "Speechless")
