"""The monitor: whatever the engine, it counts each verb once, each statement, what failed and what was slow, and only while it is on."""

import asyncio
import gc
import json
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, text

from ruv_swarm_store import Conflict, Group, NewEvent, NewTask, NotFound, Store, StoreError, UnitOfWork
from ruv_swarm_store.config import _SET
from ruv_swarm_store.engines import metering
from ruv_swarm_store.monitor import Timing
from ruv_swarm_store.schema import tasks


def operations(store: Store) -> dict[str, Timing]:
    return {row.name: row for row in store.monitor.snapshot(plans=False).operations}


def statements(store: Store, start: str) -> list[Timing]:
    return [row for row in store.monitor.snapshot(plans=False).statements if row.name.startswith(start)]


@pytest.fixture
def monitored(store: Store) -> Store:
    store.agents.register("worker", id="worker")
    store.monitor.start()
    return store


def test_verbs_are_counted_under_their_names(monitored):
    for n in range(5):
        monitored.tasks.enqueue("t", n)
    monitored.tasks.enqueue_many([("t", 1), ("t", 2)])
    while (task := monitored.tasks.claim("worker")) is not None:
        monitored.tasks.complete(task)
    assert {name: row.count for name, row in operations(monitored).items()} == {
        "tasks.enqueue": 5, "tasks.enqueue_many": 1, "tasks.claim": 8, "tasks.complete": 7,
    }  # fmt: skip
    for row in operations(monitored).values():
        assert 0 < row.p50 <= row.p95 <= row.p99 <= row.max <= row.total < 60
        assert row.errors == 0
        assert row.per_second > 0


def test_what_verbs_call_of_each_other_is_part_of_the_one_that_was_called(monitored):
    task = monitored.tasks.enqueue("t")
    monitored.tasks.delete(task)
    assert monitored.tasks.wait("worker", timeout=0) is None
    assert {name: row.count for name, row in operations(monitored).items()} == {"tasks.enqueue": 1, "tasks.delete": 1, "tasks.wait": 1}


def test_failures_are_counted_and_raised_as_ever(monitored):
    monitored.groups.create("g")
    with pytest.raises(Conflict):
        monitored.groups.create("g")
    with pytest.raises(NotFound):
        monitored.tasks.get("nowhere")
    found = operations(monitored)
    assert (found["groups.create"].count, found["groups.create"].errors) == (2, 1)
    assert (found["tasks.get"].count, found["tasks.get"].errors) == (1, 1)
    [inserted] = statements(monitored, "INSERT INTO agent_groups")
    assert (inserted.count, inserted.errors, inserted.rows) == (2, 1, 1)


def test_statements_are_counted_by_their_text_with_their_rows(monitored):
    monitored.tasks.enqueue_many([("t", n) for n in range(7)])
    for _ in range(3):
        monitored.tasks.find_all()
    assert monitored.tasks.claim("worker") is not None
    read = [row for row in statements(monitored, "SELECT") if row.count == 3 and row.rows == 21]
    assert len(read) == 1
    [claimed] = [
        row for row in monitored.monitor.snapshot().statements if row.name.startswith(("UPDATE tasks", "WITH")) and "RETURNING" in row.name
    ]
    assert (claimed.count, claimed.rows) == (1, 1)
    assert [row.rows for row in statements(monitored, "INSERT INTO tasks")] == [7]
    monitored.monitor.reset()
    assert monitored.agents.find_by_id("worker") is not None
    assert monitored.agents.find_by_id("nowhere") is None
    assert [(row.count, row.rows) for row in statements(monitored, "SELECT")] == [(2, 1)]


def test_a_write_of_one_statement_is_one(monitored):
    monitored.config.set("k", 1)
    [row] = monitored.monitor.snapshot().statements
    assert row.count == 1
    monitored.tasks.enqueue_many([("t", 1)])
    assert [(row.count, row.rows) for row in statements(monitored, "INSERT INTO tasks")] == [(1, 1)]


def test_statements_of_sqlalchemy_s_are_counted_too(monitored):
    monitored.tasks.enqueue_many([("a", 1), ("b", 2)])
    monitored.monitor.reset()
    for type in "ab":
        assert len(monitored.tasks.where(tasks.c.type == type).all()) == 1
    assert monitored.execute(text("SELECT 1 AS one UNION ALL SELECT 2")) == [(1,), (2,)]
    with pytest.raises(StoreError):
        monitored.execute(text("SELECT nonsense FROM tasks"))
    [both] = [row for row in statements(monitored, "SELECT") if row.count == 2]
    assert both.rows == 2
    assert [(row.rows, row.errors) for row in statements(monitored, "SELECT 1 AS one")] == [(2, 0)]
    assert [(row.rows, row.errors) for row in statements(monitored, "SELECT nonsense")] == [(0, 1)]
    assert (operations(monitored)["execute"].count, operations(monitored)["execute"].errors) == (2, 1)


def test_statements_of_sqlalchemy_s_are_counted_where_it_was_used_before(store):
    store.tasks.query().all()
    with store.transaction() as work:
        work.execute(text("SELECT 1"))
    store.monitor.start()
    store.tasks.query().all()
    with store.transaction() as work:
        work.execute(text("SELECT 1"))
    store.monitor.stop()
    store.tasks.query().all()
    assert [row.count for row in statements(store, "SELECT tasks")] == [row.count for row in statements(store, "SELECT 1")] == [1]


def test_units_of_work_are_timed_whole_and_in_their_parts(monitored):
    with monitored.transaction() as work:
        assert isinstance(work, UnitOfWork)
        task = work.tasks.enqueue("t")
        with suppress(ZeroDivisionError), work.transaction() as inner:
            inner.tasks.enqueue("u")
            inner.events.append("s", [NewEvent("e")], type="t")
            raise ZeroDivisionError
        work.execute(select(tasks.c.id))
    with pytest.raises(ZeroDivisionError), monitored.transaction() as work:
        work.tasks.claim("worker")
        raise ZeroDivisionError
    assert monitored.tasks.find_all() == [task]
    found = operations(monitored)
    assert (found["transaction"].count, found["transaction"].errors) == (2, 1)
    assert {name: row.count for name, row in found.items() if name != "transaction"} == {
        "tasks.enqueue": 2, "tasks.claim": 1, "tasks.find_all": 1, "events.append": 1, "execute": 1,
    }  # fmt: skip
    assert found["transaction"].total >= found["tasks.enqueue"].total
    assert [row.count for row in statements(monitored, "COMMIT")] == [1]
    assert [row.count for row in statements(monitored, "ROLLBACK") if row.name == "ROLLBACK"] == [1]


def test_handlers_of_events_are_given_timed_units_of_work(monitored):
    monitored.events.append("s", [NewEvent("e")], type="t")
    monitored.events.subscribe("copy").handle(lambda work, event: work.config.set("seen", event.position))
    assert operations(monitored)["config.set"].count == 1


def test_consumers_made_while_it_was_on_are_not_timed_after_it(monitored):
    subscription, group = monitored.events.subscribe("s"), monitored.events.group("g")
    monitored.monitor.stop()
    monitored.monitor.reset()
    monitored.events.append("s", [NewEvent("e")], type="t")
    assert subscription.handle(lambda work, event: work.config.set("seen", 1)) == 1
    assert group.handle("worker", lambda work, event: work.config.set("seen", 2)) == 1
    assert operations(monitored) == {}
    monitored.monitor.start()
    monitored.events.append("s", [NewEvent("e")], type="t")
    assert subscription.handle(lambda work, event: work.config.set("seen", 3)) == 1
    assert operations(monitored)["config.set"].count == 1  # those made before are


def test_off_is_as_if_it_had_never_been_on(store):
    before = type(store), type(store.tasks), store.tasks.claim.__func__
    kept = store.tasks
    store.monitor.start()
    assert store.monitor.on
    kept.enqueue("t")  # whoever has it from before is timed as well
    store.monitor.stop()
    assert not store.monitor.on
    assert (type(store), type(store.tasks), store.tasks.claim.__func__) == before
    assert store.tasks is kept
    kept.enqueue("t")
    store.tasks.where(tasks.c.type == "t").all()
    with store.transaction() as work:
        work.tasks.enqueue("t")
        work.events.append("s", [NewEvent("e")], type="t")
    assert store.events.subscribe("copy").handle(lambda work, event: work.config.set("seen", 1)) == 1
    assert {name: row.count for name, row in operations(store).items()} == {"tasks.enqueue": 1}
    assert sum(row.count for row in store.monitor.snapshot().statements) == 1
    assert isinstance(store.tasks.count(), int)


def test_started_again_it_goes_on_and_reset_begins_anew(monitored):
    monitored.tasks.enqueue("t")
    monitored.monitor.stop()
    seconds = monitored.monitor.snapshot().seconds
    monitored.monitor.stop()
    time.sleep(0.01)
    assert monitored.monitor.snapshot().seconds == seconds > 0
    monitored.monitor.start()
    monitored.monitor.start()
    monitored.tasks.enqueue("t")
    assert operations(monitored)["tasks.enqueue"].count == 2
    assert monitored.monitor.snapshot().seconds > seconds
    monitored.monitor.reset()
    assert operations(monitored) == {}
    assert monitored.monitor.snapshot().statements == []
    monitored.tasks.enqueue("t")
    assert operations(monitored)["tasks.enqueue"].count == 1


def test_a_transaction_open_when_it_starts_or_stops_is_whole(store):
    with store.transaction() as work:
        work.config.set("a", 1)
        store.monitor.start()
        work.config.set("b", 1)
        assert store.tasks.count() == 0
    with store.transaction() as work:
        work.config.set("c", 1)
        store.monitor.stop()
        work.config.set("d", 1)
    assert sorted(store.config.prefix("")) == ["a", "b", "c", "d"]


@pytest.mark.needs("threads")
def test_connections_that_were_open_before_are_timed(store):
    ready, go = threading.Barrier(3), threading.Event()

    def read() -> None:
        store.tasks.count()
        ready.wait(10)
        go.wait(10)
        store.tasks.count()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait(10)
    try:
        store.monitor.start()
    finally:
        go.set()
        for thread in threads:
            thread.join()
    assert [row.count for row in statements(store, "SELECT count")] == [2]


@pytest.mark.needs("threads")
def test_threads_lose_no_count_to_each_other_or_to_who_reports(monitored):
    each = 60

    def work() -> None:
        for n in range(each):
            monitored.tasks.enqueue("t", n)
            monitored.tasks.count()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        monitored.monitor.snapshot()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    found = operations(monitored)
    assert found["tasks.enqueue"].count == found["tasks.count"].count == 4 * each == monitored.tasks.count()
    assert [row.count for row in statements(monitored, "INSERT INTO tasks")] == [4 * each]


@pytest.mark.needs("threads")
def test_it_may_be_switched_while_others_work(store):
    stop, failures = threading.Event(), []

    def work() -> None:
        try:
            while not stop.wait(0.0005):  # who switches needs its turn with the writer
                with store.transaction() as work:
                    work.tasks.enqueue("t")
                store.tasks.where(tasks.c.type == "u").all()
                store.tasks.count()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            store.monitor.start()
            store.monitor.stop()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_slow_statements_are_kept_with_their_plan_and_without_values(monitored):
    monitored.monitor.start(slow=0.0, keep=3)
    monitored.tasks.enqueue("t", "a secret")
    monitored.tasks.where(tasks.c.type == "hidden").all()
    assert monitored.tasks.claim("worker") is not None
    monitored.tasks.get(monitored.tasks.find_all()[0].id)
    snapshot = monitored.monitor.snapshot()
    assert len(snapshot.slow) == 3
    assert snapshot.slow[0].sql.startswith("SELECT")
    claim = snapshot.slow[-1]
    assert "RETURNING" in claim.sql
    assert "ix_tasks_ready" in claim.plan or "tasks" in claim.plan
    assert all(
        slow.plan and "no plan" not in slow.plan and slow.seconds >= 0 and slow.at == monitored._engine.clock() for slow in snapshot.slow
    )
    shown = msgspec.json.encode(snapshot).decode() + monitored.monitor.report() + monitored.monitor.report()._repr_html_()
    assert "secret" not in shown
    assert "hidden" not in shown
    assert monitored.tasks.count() == 1  # nothing was run by asking for plans
    monitored.monitor.start()
    monitored.monitor.reset()
    monitored.tasks.count()
    assert monitored.monitor.snapshot().slow == []


def test_every_statement_of_a_life_has_a_plan(monitored):
    monitored.monitor.start(slow=0.0, keep=200)
    live(monitored)
    slow = [slow for slow in monitored.monitor.snapshot().slow if slow.sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")]
    assert len({found.sql for found in slow}) > 20
    assert [found.sql for found in slow if "no plan" in found.plan] == []


@pytest.mark.parametrize("first", ["monitor", "cache"])
def test_it_and_a_cache_are_switched_on_and_off_in_any_order(store, first):
    if first == "monitor":
        store.monitor.start()
        cached = store.groups.cached(ttl=60.0)
    else:
        cached = store.groups.cached(ttl=60.0)
        store.monitor.start()
    for n in range(2):
        store.groups.upsert(Group("g", str(n), "", 0))
        assert [cached.get("g").name for _ in range(3)] == [str(n)] * 3
    store.execute(text("UPDATE agent_groups SET name = 'other'"))
    assert cached.get("g").name == "other"
    [figures] = store.monitor.snapshot().caches
    assert (figures.name, figures.hits, figures.misses) == ("agent_groups", 4, 3)
    assert 0 < figures.ratio < 1
    counted = operations(store)["groups.upsert"].count
    (store.monitor.stop if first == "monitor" else cached.close)()
    store.groups.upsert(Group("g", "last", "", 0))
    if first == "monitor":
        assert cached.get("g").name == "last"
        cached.close()
    else:
        assert operations(store)["groups.upsert"].count == counted + 1
        assert any(row.name.startswith("INSERT INTO agent_groups") and row.count == 3 for row in store.monitor.snapshot().statements)
        store.monitor.stop()
    assert store.groups.get("g").name == "last"


def test_beside_a_cache_a_statement_keeps_its_name_and_is_compiled_for_it_once(monitored):
    """Though it runs in another form there, on some engines."""
    with monitored.config.cached(ttl=60.0):
        for n in range(3):
            monitored.config.set("k", n)
        assert _SET in monitored._engine.meter.statements.known
    gc.collect()
    monitored.config.set("k", 3)
    [found] = statements(monitored, "INSERT INTO swarm_config")
    assert found.count == 4
    assert "txid" not in found.name


def test_slow_statements_keep_their_text_however_many_there_are(monitored):
    """Beyond so many texts they are counted together; what was slow is still told by its own."""
    for length in range(1, metering.MOST + 10):
        monitored.tasks.where(tasks.c.priority.in_(list(range(length)))).count()
    monitored.monitor.start(slow=0.0, keep=4)
    assert statements(monitored, "(other statements)")
    monitored.tasks.where(tasks.c.priority.in_(list(range(500)))).count()
    monitored.agents.stale(60)
    slow = monitored.monitor.snapshot().slow
    assert all(statement.sql.startswith("SELECT") and statement.plan for statement in slow)
    assert any("FROM agents" in statement.sql for statement in slow)


def test_slow_statements_that_fail_say_with_what(monitored):
    monitored.monitor.start(slow=0.0)
    monitored.groups.create("g")
    with pytest.raises(Conflict):
        monitored.groups.create("g")
    assert any(slow.error for slow in monitored.monitor.snapshot().slow)


def test_blocks_of_one_s_own_are_tracked(monitored):
    with monitored.monitor.track("planning"):
        monitored.tasks.count()
    with pytest.raises(ZeroDivisionError), monitored.monitor.track("planning"):
        raise ZeroDivisionError
    found = operations(monitored)
    assert (found["planning"].count, found["planning"].errors) == (2, 1)
    assert found["planning"].total >= found["tasks.count"].total
    monitored.monitor.stop()
    with monitored.monitor.track("planning"):
        pass
    assert operations(monitored)["planning"].count == 2


def test_verbs_that_are_awaited_are_timed_until_they_return(monitored):
    async def wait() -> Any:
        later = asyncio.create_task(monitored.tasks.wait_async("worker", timeout=5))
        await asyncio.sleep(0.05)
        monitored.tasks.enqueue("t")
        return await later

    assert run(wait()) is not None
    row = operations(monitored)["tasks.wait_async"]
    assert row.count == 1
    assert row.max >= 0.04


def run(coroutine: Any) -> Any:
    from ruv_swarm_store.engines import IN_BROWSER

    if IN_BROWSER:
        from pyodide.ffi import run_sync

        return run_sync(coroutine)
    return asyncio.run(coroutine)


def test_a_store_can_be_opened_with_its_monitor_on(database):
    store = database.open(monitor=True)
    store.tasks.enqueue("t")
    assert operations(store)["tasks.enqueue"].count == 1

    async def opened() -> int:
        async with await Store.open_async(database.address, monitor=True) as other:
            other.tasks.count()
            return operations(other)["tasks.count"].count

    if store.capabilities.processes:
        assert run(opened()) == 1


def test_it_tells_what_the_database_takes_up(monitored):
    before = monitored.monitor.snapshot().footprint
    assert before is not None
    monitored.tasks.enqueue_many(NewTask("t", "x" * 1_000) for _ in range(500))
    after = monitored.monitor.snapshot().footprint
    assert after.size > before.size + 400_000
    assert after.connections >= 1


def test_a_snapshot_is_plain_data_and_outlives_the_store(monitored):
    monitored.tasks.enqueue("t")
    assert json.loads(msgspec.json.encode(monitored.monitor.snapshot()))["operations"][0]["name"] == "tasks.enqueue"
    monitored.close()
    snapshot = monitored.monitor.snapshot()
    assert snapshot.footprint is None
    assert snapshot.operations[0].name == "tasks.enqueue"
    assert "tasks.enqueue" in monitored.monitor.report()
    monitored.monitor.stop()


@pytest.mark.parametrize("options", [{"slow": -1}, {"slow": "1"}, {"keep": -1}, {"keep": 1.5}], ids=repr)
def test_starting_refuses_what_makes_no_sense(store, options):
    with pytest.raises(StoreError):
        store.monitor.start(**options)
    assert not store.monitor.on


def test_every_verb_gives_what_it_gives_otherwise(monitored):
    live(monitored)
    assert monitored.check() == []


def live(monitored: Store) -> None:
    """A life in short."""
    scout = monitored.agents.register("scout", name="s-1")
    monitored.agents.heartbeat(scout)
    task = monitored.tasks.enqueue("crawl", {"n": 1}, depends_on=[first := monitored.tasks.enqueue("first")])
    assert monitored.tasks.claim(scout).id == first.id
    monitored.tasks.complete(first.id)
    assert monitored.tasks.get(task.id).status == "pending"
    message = monitored.messages.publish("t", 1, sender=scout)
    [received] = monitored.messages.receive("worker")
    assert received.id == message.id
    monitored.messages.acknowledge(received, "worker")
    monitored.groups.join(monitored.groups.create("g"), scout)
    monitored.metrics.record("m", 1.0)
    assert monitored.metrics.aggregate("m")[0].count == 1
    monitored.config.set("k", 1)
    assert monitored.config.get("k") == 1
    assert monitored.events.append("s", [NewEvent("e"), NewEvent("f")], type="t") == 2
    assert [event.event_type for event in monitored.events.walk()][-2:] == ["e", "f"]
    assert len(list(monitored.tasks.pages(1))) == 2
    assert monitored.tasks.update(msgspec.structs.replace(monitored.tasks.get(task.id), priority=9)).priority == 9
