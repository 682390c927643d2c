"""Units of work: together or not at all, at one time."""

import asyncio
import gc
import threading
import warnings
from contextlib import ExitStack, nullcontext, suppress

import pytest
from sqlalchemy import text

from ruv_swarm_store import Conflict, InvalidValue, NewEvent, Store, TaskStatus, UnitOfWork
from ruv_swarm_store.entities import Agent
from ruv_swarm_store.errors import Closed, StoreError


class Boom(Exception):
    pass


def names(store) -> set[str]:
    return {agent.id for agent in store.agents.find_all()}


def test_leaving_the_block_commits(store: Store):
    with store.transaction() as work:
        assert isinstance(work, UnitOfWork)
        work.agents.register("worker", id="a")
        work.tasks.enqueue("t", id="t")
        work.events.append("a", [NewEvent("x")], type="agent")
    assert (names(store), store.tasks.count(), store.events.count()) == ({"a"}, 1, 1)


@pytest.mark.parametrize("command", ["COMMIT", "ROLLBACK", "END"])
@pytest.mark.parametrize("inside", [False, True], ids=["outermost", "savepoint"])
def test_a_unit_of_work_that_sql_has_ended_does_nothing_more(store: Store, command, inside):
    for swallow in (False, True):
        with pytest.raises(StoreError, match="ended the transaction"), store.transaction() as work:
            work.config.set("before", 1)
            with ExitStack() as until:
                part = until.enter_context(work.transaction()) if inside else work
                with suppress(StoreError) if swallow else nullcontext():
                    part.execute(text(command))
                for act in (
                    lambda: part.config.set("after", 1),
                    lambda: work.config.get("before"),
                    lambda: store.config.set("after", 1),
                    lambda: part.execute(text("SELECT 1")),
                ):
                    with pytest.raises(StoreError, match="ended the transaction"):
                        act()
        assert store.config.get("after") is None
        assert store.config.get("before") == (None if command == "ROLLBACK" else 1)  # it was told to
    with store.transaction() as work:
        assert work.execute(text("SELECT 1")) == [(1,)]
        work.config.set("after", 2)
    assert store.config.get("after") == 2


def test_a_transaction_is_entered_once(store: Store):
    moving = store.transaction()
    with pytest.raises(Boom), moving as work:
        work.agents.register("worker", id="a")
        with pytest.raises(Closed, match="again"), moving:
            pass
        assert work.agents.exists("a")
        raise Boom
    with pytest.raises(Closed, match="again"), moving:
        pass
    assert names(store) == set()


def test_an_exception_undoes_everything(store: Store):
    store.agents.register("worker", id="before")
    with pytest.raises(Boom), store.transaction() as work:
        work.agents.register("worker", id="a")
        work.tasks.claim_many("a", 1)
        work.config.set("k", 1)
        work.messages.publish("t", 1)
        work.metrics.record("m", 1)
        work.groups.create("g")
        work.events.append("a", [NewEvent("x")], type="agent")
        work.agents.delete("before")
        raise Boom
    assert names(store) == {"before"}
    assert [noun.count() for noun in (store.config, store.messages, store.metrics, store.groups, store.events)] == [0] * 5


def test_five_agents_that_fail_at_the_fourth_leave_none(store: Store):
    with pytest.raises(Conflict), store.transaction() as work:
        for name in ("a", "b", "c", "a", "e"):
            work.agents.register("worker", name=name)
    assert store.agents.count() == 0


def test_an_error_caught_inside_undoes_only_its_statement(store: Store):
    with store.transaction() as work:
        work.agents.register("worker", name="a")
        with pytest.raises(Conflict):
            work.agents.register("worker", name="a")
        with pytest.raises(InvalidValue):
            work.tasks.enqueue_many([("t", 1), ("t", object())])
        work.agents.register("worker", name="b")
    assert {agent.name for agent in store.agents.find_all()} == {"a", "b"}


def test_everything_happens_at_one_time(store: Store, clock):
    with store.transaction() as work:
        now = work.now
        clock.advance(5)
        agent = work.agents.register("worker")
        clock.advance(5)
        task = work.tasks.enqueue("t", delay=1)
        message = work.messages.publish("t", 1, ttl=1)
        with work.transaction() as inner:
            clock.advance(5)
            entry = inner.config.set("k", 1)
            assert inner.now == now
        assert store.groups.create("g").created_at == now
    assert {agent.created_at, task.created_at, task.run_at - 1_000, message.timestamp, message.expires_at - 1_000, entry.updated_at} == {
        now
    }
    with store.transaction() as work:
        assert work.now == now + 15_000


# Savepoints


def test_a_rolled_back_part_leaves_the_rest(store: Store):
    with store.transaction() as work:
        work.agents.register("worker", id="a")
        with pytest.raises(Boom), work.transaction() as inner:
            inner.agents.register("worker", id="b")
            assert names(work) == names(inner) == {"a", "b"}
            raise Boom
        assert names(work) == {"a"}
        work.agents.register("worker", id="c")
    assert names(store) == {"a", "c"}


def test_parts_nest(store: Store):
    with store.transaction() as one:
        one.agents.register("worker", id="1")
        with one.transaction() as two:
            two.agents.register("worker", id="2")
            with pytest.raises(Boom), two.transaction() as three:
                three.agents.register("worker", id="3")
                with three.transaction() as four:
                    four.agents.register("worker", id="4")
                raise Boom
            with two.transaction() as three:
                three.agents.register("worker", id="5")
        assert names(one) == {"1", "2", "5"}
    assert names(store) == {"1", "2", "5"}


def test_the_whole_takes_its_parts_along(store: Store):
    with pytest.raises(Boom), store.transaction() as work:
        with work.transaction() as inner:
            inner.agents.register("worker", id="a")
        raise Boom
    assert names(store) == set()


def test_the_same_part_may_be_tried_again_and_again(store: Store):
    with store.transaction() as work:
        for attempt in range(20):
            try:
                with work.transaction() as inner:
                    inner.agents.register("worker", id=f"a-{attempt}")
                    if attempt % 2:
                        raise Boom
            except Boom:
                pass
    assert names(store) == {f"a-{attempt}" for attempt in range(0, 20, 2)}


# Who takes part


def test_the_store_s_own_verbs_take_part(store: Store):
    with pytest.raises(Boom), store.transaction() as work:
        store.agents.register("worker", id="a")
        assert names(work) == {"a"}
        work.agents.register("worker", id="b")
        assert names(store) == {"a", "b"}
        assert store.tasks.enqueue_many([("t", 1)])
        with store.transaction() as nested:
            nested.agents.register("worker", id="c")
        with pytest.raises(Boom), store.transaction() as nested:
            nested.agents.register("worker", id="d")
            raise Boom
        assert names(store) == {"a", "b", "c"}
        raise Boom
    assert (names(store), store.tasks.count()) == (set(), 0)


@pytest.mark.needs("processes")
def test_uncommitted_work_is_seen_by_no_other_store(database, store: Store):
    other = database.open()
    with store.transaction() as work:
        work.agents.register("worker", id="a")
        work.agents.register("worker", id="b")
        assert names(other) == set()
    assert names(other) == {"a", "b"}


@pytest.mark.needs("threads")
def test_uncommitted_work_is_seen_by_no_other_thread(store: Store):
    seen = []
    other = threading.Thread(target=lambda: seen.append(names(store)))
    with store.transaction() as work:
        work.agents.register("worker", id="a")
        other.start()
        other.join(0.2)  # where threads take turns the other one waits, and sees all of it
    other.join()
    assert seen[0] in (set(), {"a"})
    if seen[0] == {"a"}:
        assert not store.capabilities.persistent


@pytest.mark.needs("threads")
def test_a_unit_of_work_belongs_to_its_thread(store: Store):
    errors: list[BaseException] = []

    def use(work: UnitOfWork) -> None:
        for attempt in (
            lambda: work.agents.register("worker", id="b"),
            lambda: work.agents.count(),
            lambda: work.tasks.enqueue_many([("t", 1)]),
            lambda: work.now,
            lambda: work.transaction().__enter__(),
            lambda: work.after_commit(print),
            lambda: work.tasks.query().all(),
        ):
            try:
                attempt()
            except StoreError as error:
                errors.append(error)

    with store.transaction() as work:
        other = threading.Thread(target=use, args=(work,))
        other.start()
        other.join()
        work.agents.register("worker", id="a")
    assert len(errors) == 7
    assert all("thread" in str(error) for error in errors)
    assert (names(store), store.tasks.count()) == ({"a"}, 0)


@pytest.mark.needs("threads")
def test_five_increments_make_five(store: Store):
    store.config.set("n", 0)

    def increment() -> None:
        with store.transaction() as work:
            work.config.set("n", work.config.get("n") + 1)

    threads = [threading.Thread(target=increment) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.config.get("n") == 5


@pytest.mark.needs("threads")
def test_a_failed_read_leaks_no_connection(store: Store):
    for _ in range(30):
        with pytest.raises(InvalidValue):
            store.tasks.where("nonsense")
        with pytest.raises(StoreError):
            store.tasks.get("missing")
        with pytest.raises(StoreError), store.transaction() as work:
            work.tasks.get("missing")
    assert store.tasks.count() == 0


# After the end


def test_an_ended_unit_of_work_does_nothing_more(store: Store):
    ended = []
    with store.transaction() as work:
        with work.transaction() as inner:
            pass
        ended.append(inner)
        with pytest.raises(Closed):
            inner.agents.register("worker", id="inner")
    ended.append(work)
    with pytest.raises(Boom), store.transaction() as work:
        raise Boom
    ended.append(work)
    query = work.tasks.query
    for work in ended:
        for attempt in (
            lambda: work.agents.register("worker"),
            lambda: work.tasks.find_all(),
            lambda: work.tasks.enqueue("t", unique_key="k"),
            lambda: work.now,
            lambda: work.transaction().__enter__(),
            lambda: work.after_commit(print),
            lambda: query().all(),
        ):
            with pytest.raises(Closed, match="ended"):
                attempt()
    assert "ended" in repr(work)
    assert store.agents.count() == 0


def test_a_closed_store_says_so(database, clock):
    store = database.open(clock=clock)
    agent = store.agents.register("worker")
    query = store.tasks.query()
    store.close()
    store.close()
    for attempt in (
        lambda: store.agents.register("worker"),
        lambda: store.agents.get(agent),
        lambda: store.agents.heartbeat(agent),
        lambda: store.tasks.claim(agent),
        lambda: store.tasks.enqueue_many([("t", 1)]),
        lambda: store.tasks.wait(agent, timeout=1),
        lambda: store.transaction().__enter__(),
        lambda: query.all(),
        lambda: store.check(),
    ):
        with pytest.raises(Closed):
            attempt()
    assert "closed" in repr(store)


def test_a_with_block_closes_the_store(database):
    with database.open() as store:
        store.config.set("k", 1)
    with pytest.raises(Closed):
        store.config.get("k")


def test_a_store_is_not_closed_inside_its_own_transaction(store: Store):
    with store.transaction() as work:
        with pytest.raises(StoreError, match="transaction"):
            store.close()
        work.config.set("k", 1)
    assert store.config.get("k") == 1


@pytest.mark.needs("threads")
def test_closing_waits_for_the_transactions_of_others(database):
    store = database.open()
    inside, closed = threading.Event(), threading.Event()
    seen = []

    def work() -> None:
        with store.transaction() as unit:
            unit.config.set("k", 1)
            inside.set()
            seen.append(closed.wait(0.2))
            unit.config.set("k", 2)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    store.close()
    closed.set()
    thread.join()
    assert seen == [False]
    if store.capabilities.persistent:
        assert database.open().config.get("k") == 2


def test_a_store_dropped_open_warns(new_database):
    store = Store.open(new_database().address)
    with pytest.warns(ResourceWarning, match="never closed"):
        del store
        gc.collect()


def test_a_store_closed_does_not_warn(new_database):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = Store.open(new_database().address)
        store.close()
        del store
        gc.collect()


# After-commit hooks


def test_hooks_run_after_the_commit_in_order(store: Store):
    seen = []
    with store.transaction() as work:
        work.after_commit(lambda: seen.append(("first", store.config.get("k"))))
        with work.transaction() as inner:
            inner.after_commit(lambda: seen.append(("second", store.config.get("k"))))
        work.after_commit(lambda: seen.append(("third", store.config.get("k"))))
        work.config.set("k", 1)
        assert seen == []
    assert seen == [("first", 1), ("second", 1), ("third", 1)]
    with store.transaction():
        pass
    assert len(seen) == 3


def test_hooks_of_what_is_undone_never_run(store: Store):
    seen = []
    with store.transaction() as work:
        work.after_commit(lambda: seen.append("kept"))
        with pytest.raises(Boom), work.transaction() as inner:
            inner.after_commit(lambda: seen.append("undone"))
            with inner.transaction() as innermost:
                innermost.after_commit(lambda: seen.append("undone with it"))
            raise Boom
        assert seen == []
    with pytest.raises(Boom), store.transaction() as work:
        work.after_commit(lambda: seen.append("rolled back"))
        raise Boom
    assert seen == ["kept"]


def test_a_failing_hook_is_logged_and_stops_no_other(store: Store, caplog):
    seen = []
    with store.transaction() as work:
        work.config.set("k", 1)
        work.after_commit(lambda: 1 / 0)
        work.after_commit(lambda: seen.append("second"))
    assert store.config.get("k") == 1
    assert seen == ["second"]
    assert "ZeroDivisionError" in caplog.text


def test_a_hook_may_write(store: Store):
    with store.transaction() as work:
        work.after_commit(lambda: store.config.set("k", 1))
    assert store.config.get("k") == 1


# Small print


def test_a_whole_story_in_one_transaction(store: Store, clock):
    scout = store.agents.register("scout")
    store.tasks.enqueue("crawl", {"n": 1})
    with store.transaction() as work:
        task = work.tasks.start(work.tasks.claim(scout))
        work.tasks.complete(task, {"done": True})
        work.metrics.record("n", 1, agent=scout)
        version = work.events.append(task.id, [NewEvent("completed")], type="task", expected_version=0)
        assert work.events.read(task.id)[0].sequence_number == version == 1
    assert store.tasks.get(task).status is TaskStatus.COMPLETED


def test_what_a_unit_of_work_inserted_it_can_find(store: Store):
    with store.transaction() as work:
        agents = work.agents.insert_many(Agent(f"a-{n}", "worker", 0, 0) for n in range(5))
        assert work.agents.find_all() == agents
        assert [len(page) for page in work.agents.pages(2)] == [2, 2, 1]


def test_open_async_gives_the_same_store(new_database):
    async def use() -> int:
        with await Store.open_async(new_database().address) as store:
            store.config.set("k", 1)
            return store.config.get("k")

    assert asyncio.run(use()) == 1


@pytest.mark.needs("persistent")
def test_what_was_stored_is_there_after_reopening(database):
    with database.open() as store:
        agent = store.agents.register("worker", name="n")
        task = store.tasks.enqueue("t", {"x": [1.0]}, id="t")
        held = store.tasks.claim(agent)
        store.events.append("a", [NewEvent("x", {"y": None})], type="z")
        store.config.set("k", {"deep": [[]]})
    with database.open() as store:
        assert store.agents.get(agent) == agent
        assert store.tasks.get(task) == held
        assert store.tasks.complete(held).result is None
        assert store.events.read("a")[0].event_data == {"y": None}
        assert store.config.get("k") == {"deep": [[]]}
        assert store.check() == []


@pytest.mark.parametrize("options", [{"durability": "none"}, {"timeout": -1}, {"timeout": "long"}, {"durability": None}], ids=repr)
def test_open_refuses_options_that_make_no_sense(new_database, options):
    with pytest.raises(InvalidValue):
        Store.open(new_database().address, **options)


def test_a_trace_hears_every_statement_with_its_time(new_database):
    heard = []
    database = new_database()
    store = database.open(trace=lambda sql, seconds: heard.append((sql, seconds)))
    heard.clear()
    store.tasks.enqueue("t")
    store.tasks.find_all()
    store.tasks.query().all()
    with store.transaction() as work:
        work.config.set("k", 1)
    verbs = [sql.split()[0] for sql, _ in heard if not sql.startswith("SAVEPOINT")]  # which some engines need
    assert verbs == ["INSERT", "SELECT", "SELECT", "BEGIN", "INSERT", "COMMIT"]
    assert all(0 <= seconds < 5 for _, seconds in heard)
