"""Buffered samples: written together, in time, and never lost without a word."""

import asyncio
import gc
import threading
import time
from typing import Any

import crew
import pytest

from ruv_swarm_store import InvalidValue, NewEvent, NotFound, Store
from ruv_swarm_store.errors import Closed, StoreError, Unavailable
from ruv_swarm_store.metrics import Buffer


class Away:
    """A scope whose database can be away."""

    def __init__(self, store: Store) -> None:
        self._scope: Any = store._engine
        self.error: StoreError | None = None
        self.attempts = 0

    def transaction(self) -> Any:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        return self._scope.transaction()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scope, name)


def test_samples_are_written_when_there_are_enough_and_at_the_end(store: Store, clock):
    agent = store.agents.register("a")
    with store.metrics.buffer(size=3, seconds=None) as buffer:
        buffer.record("m", 1, agent=agent, type="t", unit="ms", tags={"a": 1})
        began = clock.now
        clock.advance(seconds=5)
        buffer.record("m", 2, at=7)
        assert (buffer.pending, store.metrics.count()) == (2, 0)
        buffer.record("m", 3)
        assert (buffer.pending, store.metrics.count()) == (0, 3)
        buffer.record("m", 4)
        assert store.metrics.count() == 3
    found = store.metrics.find_all()
    assert [metric.value for metric in found] == [1, 2, 3, 4]
    assert [metric.timestamp for metric in found] == [began, 7, clock.now, clock.now]  # when measured, not when written
    assert (found[0].agent_id, found[0].metric_type, found[0].unit, found[0].tags) == (agent.id, "t", "ms", {"a": 1})


def test_a_batch_is_one_transaction(database):
    statements: list[str] = []
    store = database.open(trace=lambda sql, seconds: statements.append(sql))
    with store.metrics.buffer(size=100, seconds=None) as buffer:
        statements.clear()
        for n in range(99):
            buffer.record("m", n)
        assert statements == []
        buffer.record("m", 99)
    assert len([sql for sql in statements if "metrics" in sql and ("INSERT" in sql or "COPY" in sql)]) == 1
    assert [metric.value for metric in store.metrics.find_all()] == list(range(100))


@pytest.mark.needs("threads")
def test_samples_are_written_when_they_are_old_though_nobody_records(store: Store):
    with store.metrics.buffer(size=100, seconds=0.02) as buffer:
        for count in (1, 2, 3):
            buffer.record("m", 1)
            deadline = time.monotonic() + 5
            while store.metrics.count() < count and time.monotonic() < deadline:
                time.sleep(0.005)
            assert store.metrics.count() == count


def test_a_record_looks_at_the_age(store: Store, monkeypatch):
    # neither a thread nor an event loop that could look meanwhile
    monkeypatch.setattr(threading.Timer, "start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: (_ for _ in ()).throw(RuntimeError("no running event loop")))
    with store.metrics.buffer(size=100, seconds=0.02) as buffer:
        buffer.record("m", 1)
        assert store.metrics.count() == 0
        time.sleep(0.03)
        buffer.record("m", 2)
        assert store.metrics.count() == 2


def test_what_cannot_be_stored_is_refused_at_once(store: Store):
    with store.metrics.buffer() as buffer:
        for bad in ({"value": float("nan")}, {"value": 1, "tags": {1: 2}}, {"value": 1, "at": -1}, {"value": "x"}):
            with pytest.raises(InvalidValue):
                buffer.record("m", **bad)
        assert buffer.pending == 0
    assert store.metrics.count() == 0


@pytest.mark.parametrize("options", [{"size": 0}, {"seconds": -1}, {"size": 10, "limit": 9}, {"size": "x"}], ids=repr)
def test_a_buffer_that_makes_no_sense_is_refused(store: Store, options):
    with pytest.raises(InvalidValue):
        store.metrics.buffer(**options)


def test_samples_of_unknown_agents_are_handed_back_and_the_others_stored(store: Store):
    agent = store.agents.register("a")
    buffer = store.metrics.buffer(size=100, seconds=None)
    for n, who in enumerate([agent.id, "nobody", None, "no one", agent.id]):
        buffer.record("m", n, agent=who)
    with pytest.raises(NotFound, match="2 samples") as caught:
        buffer.flush()
    assert [(metric.value, metric.agent_id) for metric in caught.value.data["samples"]] == [(1, "nobody"), (3, "no one")]
    assert [metric.value for metric in store.metrics.find_all()] == [0, 2, 4]
    buffer.close()  # said once
    small = store.metrics.buffer(size=2, seconds=None)
    small.record("n", 1, agent="nobody")
    with pytest.raises(NotFound):
        small.record("n", 2)
    small.close()
    assert [metric.value for metric in store.metrics.samples("n")] == [2]  # the one that was told of it was taken


def test_nothing_is_lost_while_the_database_is_away(store: Store):
    scope = Away(store)
    scope.error = Unavailable("the database is away")
    buffer = Buffer(scope, 2, None, 5)  # type: ignore[arg-type]
    for n in range(5):
        buffer.record("m", n)
    assert buffer.pending == 5
    assert buffer.failure is scope.error
    assert scope.attempts == 1  # not with every record
    for _ in range(3):
        with pytest.raises(Unavailable, match="away"):
            buffer.record("m", 99)  # full: not taken
    with pytest.raises(Unavailable):
        buffer.flush()
    with pytest.raises(Unavailable):
        buffer.close()
    assert buffer.pending == 5
    scope.error = None
    buffer.record("m", 5)  # there is room again
    assert buffer.failure is None
    buffer.close()
    assert [metric.value for metric in store.metrics.find_all()] == [0, 1, 2, 3, 4, 5]


@pytest.mark.needs("threads")
def test_the_clock_tries_again_until_the_database_is_back(store: Store):
    scope = Away(store)
    scope.error = Unavailable("the database is away")
    with Buffer(scope, 100, 0.01, None) as buffer:  # type: ignore[arg-type]
        buffer.record("m", 1)
        deadline = time.monotonic() + 5
        while scope.attempts < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (buffer.pending, buffer.failure) == (1, scope.error)
        scope.error = None
        while buffer.pending and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (store.metrics.count(), buffer.failure) == (1, None)


def test_leaving_by_an_exception_writes_what_there_is(store: Store):
    with pytest.raises(ZeroDivisionError), store.metrics.buffer() as buffer:
        buffer.record("m", 1)
        raise ZeroDivisionError
    assert store.metrics.count() == 1


def test_an_exception_is_not_hidden_by_what_could_not_be_written(store: Store):
    scope = Away(store)
    with pytest.raises(ZeroDivisionError) as caught, Buffer(scope, 10, None, None) as buffer:  # type: ignore[arg-type]
        buffer.record("m", 1)
        scope.error = Unavailable("the database is away")
        raise ZeroDivisionError
    assert "1 samples were not written" in caught.value.__notes__[0]
    scope.error = None
    buffer.close()
    assert store.metrics.count() == 1


def test_a_closed_buffer_takes_nothing(store: Store):
    buffer = store.metrics.buffer()
    buffer.close()
    buffer.close()
    with pytest.raises(Closed):
        buffer.record("m", 1)


def test_a_store_closed_first_is_told(database):
    store = database.open()
    buffer = store.metrics.buffer(size=10, seconds=None)
    buffer.record("m", 1)
    store.close()
    with pytest.raises(Closed):
        buffer.close()
    assert buffer.pending == 1
    with pytest.warns(ResourceWarning, match="never closed"):
        del buffer
        gc.collect()


def test_a_buffer_in_a_unit_of_work_is_part_of_it(store: Store):
    with pytest.raises(RuntimeError), store.transaction() as work:
        with work.metrics.buffer(size=1) as buffer:
            buffer.record("m", 1)
        assert work.metrics.count() == 1
        raise RuntimeError
    assert store.metrics.count() == 0
    with store.transaction() as work, work.metrics.buffer(seconds=0) as buffer:
        buffer.record("m", 1)
        buffer.record("m", 2)
    assert store.metrics.count() == 2


def record_many_times(number: int, barrier: Any, buffer: Buffer) -> None:
    barrier.wait()
    for n in range(200):
        buffer.record("m", number * 1_000 + n)


@pytest.mark.parametrize("made", ["outside", "inside"])
def test_a_transaction_takes_back_nothing_that_was_gathered_outside_of_it(store: Store, made):
    buffer = store.metrics.buffer(size=2, seconds=0.05, limit=4)
    with pytest.raises(RuntimeError), store.transaction():
        if made == "inside":
            buffer = store.metrics.buffer(size=2, seconds=None, limit=4)
        for value in range(4):
            buffer.record("m", value)
        for refused in (buffer.flush, buffer.close, lambda: buffer.record("m", 5)):
            with pytest.raises(StoreError, match="inside a transaction"):
                refused()
        raise RuntimeError
    assert buffer.failure is None
    buffer.close()
    assert sorted(metric.value for metric in store.metrics.find_all()) == [0, 1, 2, 3]


@pytest.mark.needs("threads")
def test_a_handler_that_fails_loses_no_samples_of_others(store: Store):
    store.events.append("s", [NewEvent("e")], type="t")
    with store.metrics.buffer(size=2, seconds=None) as buffer:
        crew.in_threads(1, lambda number, barrier: buffer.record("other", 1))

        def handle(work: Any, event: Any) -> None:
            buffer.record("own", 2)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            store.events.subscribe("s").handle(handle)
    assert sorted(metric.metric_name for metric in store.metrics.find_all()) == ["other", "own"]


@pytest.mark.needs("threads")
@pytest.mark.parametrize("limit", [7, 70])
def test_threads_may_record_at_once(store: Store, limit):
    with store.metrics.buffer(size=7, seconds=0.005, limit=limit) as buffer:
        crew.in_threads(8, record_many_times, buffer)
    found = [metric.value for metric in store.metrics.find_all()]
    assert sorted(found) == [number * 1_000 + n for number in range(8) for n in range(200)]
    for number in range(8):
        mine = [value for value in found if value // 1_000 == number]
        assert mine == sorted(mine)


@pytest.mark.needs("processes")
def test_a_forked_child_does_not_write_its_parent_s_samples(store: Store):
    buffer = store.metrics.buffer(size=100, seconds=None)
    buffer.record("m", 1)

    def child() -> None:
        assert buffer.pending == 0
        buffer.record("m", 2)
        buffer.close()

    assert crew.fork(child)() == "None"
    buffer.close()
    assert [metric.value for metric in store.metrics.find_all()] == [2, 1]
