"""Recurring tasks: one occurrence for each time, whoever looks."""

import importlib.util
import sys
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import crew
import pytest

from ruv_swarm_store import InvalidValue, NotFound, Store, Task, TaskStatus
from ruv_swarm_store.entities import Schedule
from ruv_swarm_store.errors import Unsupported
from ruv_swarm_store.schema import tasks
from ruv_swarm_store.tasks import schedules

MINUTE = 60_000
PENDING, SCHEDULED, CANCELLED = TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.CANCELLED


@pytest.fixture
def agent(store: Store):
    return store.agents.register("worker")


def at(*parts: int, zone: str = "UTC") -> int:
    return round(datetime(*parts, tzinfo=UTC if zone == "UTC" else ZoneInfo(zone)).timestamp() * 1000)


def waiting(store: Store, name: str = "s") -> list[Task]:
    return store.tasks.where(tasks.c.schedule == name, tasks.c.status == SCHEDULED).order_by(tasks.c.position.asc()).all()


def test_the_next_occurrence_stands_among_the_scheduled_tasks(store: Store, clock):
    clock.now = at(2027, 1, 15, 8, 0, 30)
    schedule = store.tasks.schedule("s", "*/5 * * * *", "sync", {"n": 1}, priority=9, max_retries=1, concurrency_key="k")
    assert schedule == Schedule(
        "s", "sync", {"n": 1}, "*/5 * * * *", "UTC", clock.now, 9, 1, "k", next_run_at=at(2027, 1, 15, 8, 5), version=1
    )
    assert store.tasks.schedules() == [schedule]
    [task] = store.tasks.find_all()
    assert task == Task(
        task.id, "sync", {"n": 1}, clock.now, 9, 1, SCHEDULED, run_at=schedule.next_run_at, position=task.position, concurrency_key="k",
        schedule="s",
    )  # fmt: skip


def test_each_time_brings_one_task_and_the_following_one(store: Store, agent, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    for hour in (9, 10, 11):
        clock.now = at(2027, 1, 15, hour) - 1
        assert store.tasks.claim(agent) is None
        clock.advance(ms=1)
        task = store.tasks.claim(agent)
        assert (task.type, task.run_at, task.schedule) == ("sync", clock.now, "s")
        assert store.tasks.claim(agent) is None
        assert [one.run_at for one in waiting(store)] == [at(2027, 1, 15, hour + 1)]
        [schedule] = store.tasks.schedules()
        assert (schedule.last_run_at, schedule.next_run_at) == (clock.now, at(2027, 1, 15, hour + 1))
        store.tasks.complete(task)
    assert store.tasks.count() == 4


def test_missed_occurrences_come_once_and_are_not_made_up_for(store: Store, agent, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "* * * * *", "sync")
    clock.now = at(2027, 1, 15, 12, 0, 30)
    assert [task.run_at for task in store.tasks.claim_many(agent, 9)] == [at(2027, 1, 15, 8, 1)]
    assert [task.run_at for task in waiting(store)] == [at(2027, 1, 15, 12, 1)]


def test_a_retry_of_an_occurrence_is_no_further_one(store: Store, agent, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    clock.now = at(2027, 1, 15, 9, 0)
    store.tasks.fail(store.tasks.claim(agent), "no", delay=3_600)
    assert len(waiting(store)) == 2
    clock.now = at(2027, 1, 15, 10, 0)
    assert len(store.tasks.claim_many(agent, 9)) == 2
    assert [task.run_at for task in waiting(store)] == [at(2027, 1, 15, 11)]


def test_a_time_is_one_of_its_zone_also_when_clocks_change(store: Store, agent, clock):
    zone = "Europe/Berlin"
    clock.now = at(2027, 3, 27, 12, zone=zone)
    schedule = store.tasks.schedule("s", "30 2 * * *", "sync", timezone=zone)
    # On the 28th there is no 2:30: it comes when there is a time again.
    times = []
    for _ in range(3):
        clock.now = store.tasks.schedules()[0].next_run_at
        times.append(clock.now)
        store.tasks.complete(store.tasks.claim(agent))
    assert times == [at(2027, 3, 28, 3, 0, zone=zone), at(2027, 3, 29, 2, 30, zone=zone), at(2027, 3, 30, 2, 30, zone=zone)]
    assert schedule.timezone == zone


def test_an_hour_that_comes_twice_brings_one_occurrence(store: Store, agent, clock):
    zone = "Europe/Berlin"
    clock.now = at(2027, 10, 30, 12, zone=zone)
    store.tasks.schedule("s", "30 2 * * *", "sync", timezone=zone)
    clock.now = store.tasks.schedules()[0].next_run_at + 40 * MINUTE  # in the second turn of that hour
    store.tasks.complete(store.tasks.claim(agent))
    assert store.tasks.schedules()[0].next_run_at == at(2027, 11, 1, 2, 30, zone=zone)


def test_the_same_schedule_again_changes_nothing(store: Store, clock):
    first = store.tasks.schedule("s", "0 * * * *", "sync", [1])
    [task] = waiting(store)
    clock.advance(10)
    assert store.tasks.schedule("s", "0 * * * *", "sync", [1]) == first
    assert store.tasks.find_all() == [task]


def test_a_changed_schedule_changes_its_waiting_occurrence(store: Store, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    first = store.tasks.schedule("s", "0 * * * *", "sync", [1])
    [before] = waiting(store)
    clock.advance(1)
    changed = store.tasks.schedule("s", "30 * * * *", "other", {"n": 2}, priority=7, max_retries=0, concurrency_key="k")
    assert (changed.created_at, changed.version, changed.next_run_at) == (first.created_at, 2, at(2027, 1, 15, 8, 30))
    [after] = store.tasks.find_all()
    assert (after.id, after.type, after.payload, after.priority, after.max_retries) == (before.id, "other", {"n": 2}, 7, 0)
    assert (after.run_at, after.concurrency_key, after.status) == (changed.next_run_at, "k", SCHEDULED)


def test_unscheduling_cancels_the_waiting_occurrence_and_leaves_the_others(store: Store, agent, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    clock.now = at(2027, 1, 15, 9, 0)
    held = store.tasks.claim(agent)
    [next_one] = waiting(store)
    assert store.tasks.unschedule("s")
    assert not store.tasks.unschedule("s")
    assert store.tasks.schedules() == []
    assert store.tasks.get(next_one).status is CANCELLED
    assert store.tasks.complete(held).status is TaskStatus.COMPLETED
    clock.now = at(2027, 1, 15, 12, 0)
    assert store.tasks.claim(agent) is None
    assert store.tasks.count() == 2


def test_a_paused_schedule_rests_and_goes_on_from_the_present(store: Store, agent, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    paused = store.tasks.pause_schedule("s")
    assert (paused.paused_at, paused.next_run_at) == (clock.now, None)
    assert store.tasks.pause_schedule("s") == paused
    assert waiting(store) == []
    clock.now = at(2027, 1, 15, 10, 30)
    assert store.tasks.claim(agent) is None
    assert store.tasks.schedule("s", "15 * * * *", "sync").paused_at == paused.paused_at
    assert waiting(store) == []
    resumed = store.tasks.resume_schedule("s")
    assert (resumed.paused_at, resumed.next_run_at) == (None, at(2027, 1, 15, 11, 15))
    assert store.tasks.resume_schedule("s") == resumed
    assert [task.run_at for task in waiting(store)] == [resumed.next_run_at]
    for verb in (store.tasks.pause_schedule, store.tasks.resume_schedule):
        with pytest.raises(NotFound):
            verb("nobody")


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_skipping_the_waiting_occurrence_leaves_the_schedule_alive(store: Store, clock, end):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    getattr(store.tasks, end)(waiting(store)[0])
    assert [task.run_at for task in waiting(store)] == [at(2027, 1, 15, 10)]
    [schedule] = store.tasks.schedules()
    assert (schedule.next_run_at, schedule.last_run_at) == (at(2027, 1, 15, 10), None)


def test_an_occurrence_obeys_its_concurrency_limit(store: Store, agent, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.limit("k", 1)
    store.tasks.schedule("s", "0 * * * *", "sync", concurrency_key="k")
    clock.now = at(2027, 1, 15, 9, 0)
    held = store.tasks.claim(agent)
    clock.now = at(2027, 1, 15, 10, 0)
    assert store.tasks.claim(agent) is None
    store.tasks.complete(held)
    assert store.tasks.claim(agent).run_at == clock.now
    assert [task.run_at for task in waiting(store)] == [at(2027, 1, 15, 11)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"cron": "often"},
        {"cron": "61 * * * *"},
        {"cron": "0 0 30 2 *"},
        {"cron": "0 0 31 4,6 *"},
        {"cron": ""},
        {"cron": 5},
        {"timezone": "Moon/Crater"},
        {"timezone": "../etc/passwd"},
        {"timezone": ""},
        {"priority": 101},
        {"max_retries": -1},
        {"payload": {1, 2}},
        {"name": None},
        {"type": 5},
        {"concurrency_key": 5},
    ],
    ids=repr,
)
def test_a_schedule_that_cannot_be_kept_is_refused(store: Store, wrong):
    with pytest.raises(InvalidValue) as caught:
        store.tasks.schedule(**{"name": "s", "cron": "* * * * *", "type": "t", **wrong})
    assert caught.value.hint
    assert store.tasks.schedules() == store.tasks.find_all() == []


def test_seconds_stand_first_when_there_are_six_fields(store: Store, clock):
    clock.now = at(2027, 1, 15, 8, 0, 1)
    assert store.tasks.schedule("s", "*/10 * * * * *", "t").next_run_at == at(2027, 1, 15, 8, 0, 10)


def test_a_schedule_belongs_to_the_unit_of_work_it_was_made_in(store: Store):
    with pytest.raises(ZeroDivisionError), store.transaction() as work:
        work.tasks.schedule("s", "* * * * *", "t")
        assert len(work.tasks.schedules()) == work.tasks.count() == 1
        raise ZeroDivisionError
    assert store.tasks.schedules() == store.tasks.find_all() == []


def test_without_cronsim_occurrences_are_left_to_others_and_the_rest_goes_on(store: Store, agent, clock, monkeypatch):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    with monkeypatch.context() as without:
        schedules.available.cache_clear()
        without.setitem(sys.modules, "cronsim", None)
        without.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Unsupported, match=r"ruv-swarm-store\[cron\]"):
            store.tasks.schedule("other", "0 * * * *", "sync")
        clock.now = at(2027, 1, 15, 9, 0)
        other = store.tasks.enqueue("t", priority=0)
        due = store.tasks.enqueue("t", priority=1, run_at=clock.now + 1, concurrency_key="k")
        clock.advance(ms=1)
        assert [task.id for task in store.tasks.claim_many(agent, 9)] == [due.id, other.id]
        started = time.monotonic()
        assert store.tasks.wait(agent, timeout=0.05) is None
        assert time.monotonic() - started < 1
    schedules.available.cache_clear()
    retry = store.tasks.claim(agent)
    assert retry.schedule == "s"
    store.tasks.fail(retry, "no", delay=1)
    clock.advance(1)
    with monkeypatch.context() as without:
        schedules.available.cache_clear()
        without.setattr(importlib.util, "find_spec", lambda name: None)
        assert store.tasks.claim(agent).id == retry.id
    schedules.available.cache_clear()


@pytest.mark.needs("threads")
def test_many_who_look_at_once_get_one_occurrence_each_time(store: Store, clock):
    clock.now = at(2027, 1, 15, 8, 0)
    store.tasks.schedule("s", "0 * * * *", "sync")
    agents = [store.agents.register("worker").id for _ in range(8)]
    for hour in (9, 10, 11):
        clock.now = at(2027, 1, 15, hour)
        answers = crew.in_threads(8, crew.claim, store, agents)
        assert len(answers) - answers.count(None) == 1
        assert [task.run_at for task in waiting(store)] == [at(2027, 1, 15, hour + 1)]
    assert store.tasks.count() == 4


@pytest.mark.needs("threads")
def test_many_who_declare_a_schedule_at_once_make_one(store: Store, clock):
    def declare(number: int, barrier) -> int:
        barrier.wait()
        return store.tasks.schedule("s", "0 * * * *", "sync", number % 2).version

    crew.in_threads(8, declare)
    assert len(waiting(store)) == len(store.tasks.schedules()) == 1
    assert waiting(store)[0].payload == store.tasks.schedules()[0].payload
