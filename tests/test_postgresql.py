"""PostgreSQL: servers that go and come back, transactions side by side, schemas beside each other, and the database's own guards."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import crew
import pytest
from sqlalchemy import literal, select, text

from ruv_swarm_store import Conflict, InvalidValue, NewEvent, Store, StoreError, TaskStatus, engines, migrations, schema
from ruv_swarm_store.engines import Engine, Options
from ruv_swarm_store.errors import Unavailable, Unsupported

psycopg = pytest.importorskip("psycopg")
if TYPE_CHECKING:
    from pg_server import Databases, Server

from ruv_swarm_store.engines.postgresql.connections import PostgreSQLExecutor  # noqa: E402
from ruv_swarm_store.engines.postgresql.others import TellingExecutor  # noqa: E402

HEAD = schema.REVISION


@pytest.fixture
def address(postgresql: Databases) -> Iterator[str]:
    """A store's address, its schema in place."""
    address = postgresql.new(absent=False)
    Store.open(address).close()
    yield address
    postgresql.drop(address)


@pytest.fixture
def new_address(postgresql: Databases) -> Iterator[Callable[[], str]]:
    """Makes addresses where nothing is yet."""
    made: list[str] = []

    def new() -> str:
        made.append(postgresql.new(absent=True))
        return made[-1]

    yield new
    for address in made:
        postgresql.drop(address)


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with Store.open(address) as store:
        yield store


@pytest.fixture
def raw(postgresql: Databases, address: str) -> Iterator[Callable[[], Any]]:
    """Opens connections that know nothing of this library."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(postgresql.connect(address)))


@pytest.fixture(scope="module")
def server(postgresql: Databases) -> Iterator[Server]:
    """A server that may be stopped: not the one that other tests are using."""
    import pg_server

    try:
        server = pg_server.Server()
    except pg_server.NoServer as error:
        pytest.skip(f"{error}; the one in {pg_server.YOURS} is not for stopping")
    yield server
    server.close()


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


# The server goes away


def test_workers_outlive_restarts_of_the_server_and_no_task_is_lost_or_doubled(server: Server, environment: dict[str, str]) -> None:
    tasks, workers = 1_200, 4
    url = server.url()
    program = Path(crew.__file__).with_name("survivor.py")
    with Store.open(url) as store:
        wanted = {task.id for task in store.tasks.enqueue_many([("t", n) for n in range(tasks)])}

        def completed() -> int:
            while True:
                try:
                    return store.tasks.stats().total(TaskStatus.COMPLETED)
                except Unavailable:
                    time.sleep(0.05)

        running = [
            subprocess.Popen(
                [sys.executable, str(program), url, str(number)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for number in range(workers)
        ]
        try:
            for worker in running:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
            eventually(lambda: completed() > tasks * 0.1)
            server.restart("fast")
            halfway = completed()
            eventually(lambda: completed() > halfway + tasks * 0.1)
            server.restart("immediate")
            last = store.events.last_position()
            ends = [worker.communicate(timeout=60) for worker in running]
        finally:
            for worker in running:
                worker.kill()
                worker.wait()
        for worker, (_, errors) in zip(running, ends, strict=True):
            assert worker.returncode == 0, errors
        said = [line for output, _ in ends for line in output.splitlines() if not line.startswith("away")]
        away = [int(line.split()[1]) for output, _ in ends for line in output.splitlines() if line.startswith("away")]
        assert any(away), "nobody noticed anything"

        stored = store.tasks.find_all()
        assert {task.id for task in stored} == wanted
        assert {task.status for task in stored} == {TaskStatus.COMPLETED}
        events = list(store.events.walk())
        assert sorted(event.aggregate_id for event in events) == sorted(wanted)  # each completed once, and only once
        assert {task.id: task.result for task in stored} == {event.aggregate_id: event.event_data for event in events}
        assert len(said) == len(set(said))
        assert set(said) <= wanted
        assert len(said) > tasks * 0.9
        assert {event.event_data for event in events if event.position > last} == {str(number) for number in range(workers)}
        assert store.check() == []


def test_a_store_says_that_its_server_is_away_and_works_on_when_it_is_back(server: Server) -> None:
    with Store.open(f"{server.url()}&schema=away", timeout=1) as store:
        store.config.set("k", 1)
        server.stop()
        try:
            for attempt in (
                lambda: store.config.get("k"),
                lambda: store.config.set("k", 2),
                lambda: store.tasks.enqueue_many([("t", 1)]),
                lambda: store.config.query().all(),
                lambda: store.transaction().__enter__().config.get("k"),
                lambda: Store.open(f"{server.url()}&schema=away"),
            ):
                with pytest.raises(Unavailable) as caught:
                    attempt()
                assert caught.value.retryable
        finally:
            server.start()
        eventually(lambda: _get(store, "k") == 1)
        assert store.config.set("k", 3).value == 3


def _get(store: Store, key: str) -> Any:
    try:
        return store.config.get(key)
    except Unavailable:
        return None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_transaction_cut_off_by_a_restart_leaves_nothing(server: Server, mode: str) -> None:
    with Store.open(f"{server.url()}&schema=cut_{mode}") as store:
        with pytest.raises(StoreError), store.transaction() as work:
            work.config.set("k", 1)
            server.restart(mode)
            work.config.set("l", 1)
        eventually(lambda: _get(store, "none") is None and store.check() == [])
        assert store.config.prefix("") == {}
        with store.transaction() as work:
            work.config.set("k", 2)
        assert store.config.get("k") == 2


def test_who_waits_is_woken_after_a_restart_too(server: Server) -> None:
    with Store.open(f"{server.url()}&schema=woken") as store, Store.open(f"{server.url()}&schema=woken") as other:
        agent = store.agents.register("worker")
        assert store.tasks.wait(agent, timeout=0.01) is None
        server.restart("fast")

        def job(number: int, barrier: Any) -> Any:
            barrier.wait()
            if number:
                time.sleep(1)  # while it waits it must have begun to listen again
                eventually(lambda: _enqueued(other))
                return time.monotonic()
            while True:
                try:
                    return None if store.tasks.wait(agent, timeout=20) is None else time.monotonic()
                except Unavailable:
                    time.sleep(0.01)

        woken, made = crew.in_threads(2, job)
        assert woken - made < 1.2


def _enqueued(store: Store) -> bool:
    try:
        store.tasks.enqueue("t")
        return True
    except Unavailable:
        return False


def test_an_address_that_leads_nowhere_is_told_without_its_password(server: Server) -> None:
    for url in (
        f"postgresql://postgres:hush@/nowhere?host={server.directory}",
        f"postgresql://nobody-here:hush@/postgres?host={server.directory}",
        "postgresql://postgres:hush@127.0.0.1:1/postgres",
        "postgresql://postgres@127.0.0.1:1/postgres?password=hush&sslpassword=hush",
    ):
        with pytest.raises(Unavailable) as caught:
            Store.open(url)
        assert "hush" not in str(caught.value)
        assert caught.value.hint


def test_what_the_driver_says_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(conninfo: str, **_: Any) -> None:
        raise psycopg.OperationalError(f"no user somebody in {conninfo}")

    monkeypatch.setattr(psycopg, "connect", fail)
    with pytest.raises(Unavailable, match=r"no user somebody in .*\*\*\*") as caught:
        Store.open("postgresql://me:hush%2B1@localhost/db")
    assert "hush" not in str(caught.value)
    with pytest.raises(Unavailable, match="no user somebody in"):  # two stars would tell that the user's name is the password
        Store.open("postgresql://somebody:somebody@localhost/db")


@pytest.mark.parametrize("password", ["pa ss", "pa+ss", "p%a's\\s", "pä@ss/?#", " "])
def test_a_url_s_parts_reach_the_client_library_as_they_are(server: Server, password: str) -> None:
    url = server.url(schema="parts").replace("postgres@", f"postgres:{quote(password, safe='')}@")
    with Store.open(f"{url}&options=-c%20statement_timeout%3D5000%20-c%20work_mem%3D5MB&connect_timeout=7") as store:
        given = psycopg.conninfo.conninfo_to_dict(cast("Any", store._engine)._conninfo)
        assert (given["password"], given["connect_timeout"]) == (password, "7")
        assert store.execute(text("SELECT current_setting('statement_timeout'), current_setting('work_mem')")) == [("5s", "5MB")]


def test_a_connection_has_the_name_that_its_url_gives_it(address: str) -> None:
    for given, name in (("", "ruv_swarm_store"), ("&application_name=my+own", "my own")):
        with Store.open(f"{address}{given}") as store, store.transaction() as work:
            assert store.execute(text("SHOW application_name")) == work.execute(text("SHOW application_name")) == [(name,)]


@pytest.mark.parametrize(
    "wrong",
    ["me:hu%00sh@h/db", "me:hush\ud800@h/db", "me:hush@h/db?colour=red", "me:hush@h/db?conninfo=red", "me@h/db?password=hush&colour=red"],
)
def test_a_url_that_the_client_library_does_not_understand_is_told_without_its_password(wrong: str) -> None:
    with pytest.raises(InvalidValue, match="cannot be understood") as caught:
        Store.open(f"postgresql://{wrong}")
    assert not re.search("hu.?sh", "".join(traceback.format_exception(caught.value)))


# Events in order


INSERT = """
INSERT INTO events (id, aggregate_id, aggregate_type, event_type, event_data, timestamp, sequence_number)
VALUES (%s, %s, 'x', 't', '1', 0, 1)"""


def overlapping(raw: Callable[[], Any], store: Store) -> tuple[list[str], list[str]]:
    """What a reader saw who read all along while the first of two writers committed last; and what there was in the end."""
    first, second = raw(), raw()
    seen: list[str] = []
    after = 0

    def read() -> None:
        nonlocal after
        for event in store.events.read_all(after=after):
            seen.append(event.id)
            after = event.position

    first.execute("BEGIN")
    first.execute(INSERT, ("early", "a"))
    began = threading.Event()

    def write() -> None:
        began.set()
        second.execute(INSERT, ("late", "b"))

    writer = threading.Thread(target=write)
    writer.start()
    began.wait()
    for _ in range(20):
        read()
        time.sleep(0.01)
    first.execute("COMMIT")
    writer.join()
    read()
    return seen, [event.id for event in store.events.walk()]


def test_an_event_that_is_committed_late_is_not_skipped(store: Store, raw: Callable[[], Any]) -> None:
    seen, there = overlapping(raw, store)
    assert seen == there == ["early", "late"]


def test_without_its_guard_a_late_event_would_be_skipped(store: Store, raw: Callable[[], Any]) -> None:
    """The danger is real: the test above would notice."""
    raw().execute("DROP TRIGGER events_in_order ON events")
    seen, there = overlapping(raw, store)
    assert there == ["early", "late"]
    assert seen == ["late"]


def test_an_event_of_a_long_unit_of_work_is_not_skipped(store: Store, address: str) -> None:
    """The same through the verbs: eight writers keep their transactions open for a while, two readers tail the log."""
    done = threading.Event()
    writers = 8

    def job(number: int, barrier: Any) -> list[int]:
        barrier.wait()
        if number < writers:
            try:
                for n in range(12):
                    with store.transaction() as work:
                        work.config.get("k")
                        if n % 2:
                            work.events.append(f"s-{number}", [NewEvent("t", [number, n])] * 2, type="x")
                        else:
                            work.events.append(f"s-{number}", [NewEvent("t", [number, n])], type="x")
                        time.sleep(0.002 * (number % 3))
                return []
            finally:
                barrier_left.release()
        seen: list[int] = []
        with Store.open(address) as reader:
            last = False
            while not last:
                last = done.is_set()
                while page := reader.events.read_all(after=seen[-1] if seen else 0, limit=7):
                    seen += [event.position for event in page]
        return seen

    barrier_left = threading.Semaphore(0)

    def watch() -> None:
        for _ in range(writers):
            barrier_left.acquire()
        done.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    results = crew.in_threads(writers + 2, job)
    watcher.join()
    everything = [event.position for event in store.events.walk()]
    assert len(everything) == writers * 18
    assert results[writers] == results[writers + 1] == everything


@pytest.mark.parametrize("change", ["UPDATE events SET timestamp = 1", "DELETE FROM events", "TRUNCATE events", "TRUNCATE events CASCADE"])
def test_the_database_itself_refuses_to_change_events(store: Store, raw: Callable[[], Any], change: str) -> None:
    store.events.append("a", [NewEvent("t", 1)], type="x")
    before = store.events.find_all()
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="append-only"):
        raw().execute(change)
    with pytest.raises(Unsupported, match="append-only"):
        store.execute(text(change))
    assert store.events.find_all() == before


# Transactions side by side


def test_writers_of_different_rows_do_not_wait_for_each_other(store: Store) -> None:
    with store.transaction() as work:
        work.config.set("mine", 1)
        thread = threading.Thread(target=lambda: store.config.set("theirs", 2))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert store.config.prefix("") == {"mine": 1, "theirs": 2}  # on this thread the store is in the unit of work
    assert store.config.prefix("") == {"mine": 1, "theirs": 2}


def test_a_connection_given_back_goes_to_who_waits_for_it(address: str) -> None:
    """However giving back and beginning to wait fall together; a hand-over that is missed would last until somebody else's, or for ever."""
    late: list[float] = []

    def work(store: Store, number: int) -> None:
        for _ in range(150):
            began = time.monotonic()
            store.config.get(str(number))
            late.append(time.monotonic() - began)

    with Store.open(f"{address}&pool_size=1", timeout=10) as store:
        threads = [threading.Thread(target=work, args=(store, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(late) == 8 * 150  # nobody was told that none was free
    assert max(late) < 5


def test_a_lock_not_had_in_time_is_unavailable(address: str, raw: Callable[[], Any]) -> None:
    with Store.open(address, timeout=0.2) as store:
        store.config.set("k", 1)
        holder = raw()
        holder.execute("BEGIN")
        holder.execute("SELECT * FROM swarm_config FOR UPDATE")
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"locked.*0\.2 s") as caught:
            store.config.set("k", 2)
        assert 0.15 < time.monotonic() - began < 5
        assert caught.value.retryable
        with pytest.raises(Unavailable), store.transaction() as work:
            work.config.set("l", 1)
            work.config.set("k", 3)
        assert store.config.prefix("") == {"k": 1}  # readers wait for nobody
        holder.execute("ROLLBACK")
        assert store.config.set("k", 4).version == 2


def test_a_lock_not_had_in_time_leaves_nothing_open(address: str, store: Store) -> None:
    """It is asked for together with BEGIN."""
    batch = [NewEvent("t"), NewEvent("t")]
    with Store.open(address, timeout=0.2) as late:
        with store.transaction() as work:
            work.events.append("a", batch, type="t")
            with pytest.raises(Unavailable):
                late.events.append("a", batch, type="t")
            with late.transaction() as waiting:
                with pytest.raises(Unavailable), waiting.transaction() as part:
                    part.events.append("a", batch, type="t")
                waiting.config.set("k", 1)
        assert late.config.get("k") == 1
        assert late.events.append("a", batch, type="t") == 4
    assert [event.sequence_number for event in store.events.read("a")] == [1, 2, 3, 4]


def test_a_unit_of_work_that_lost_a_deadlock_may_be_repeated(store: Store, raw: Callable[[], Any]) -> None:
    store.config.set("a", 0)
    store.config.set("b", 0)
    other = raw()
    other.execute("BEGIN")
    other.execute("UPDATE swarm_config SET version = version WHERE key = 'b'")
    # The store waits first, so it is the store that finds the deadlock, and gives up.
    crossing = threading.Timer(0.3, lambda: other.execute("UPDATE swarm_config SET version = version WHERE key = 'a'"))
    with pytest.raises(Unavailable) as caught, store.transaction() as work:
        work.config.set("a", 1)
        crossing.start()
        work.config.set("b", 1)
    assert caught.value.retryable
    assert caught.value.data["kind"] == "deadlock"
    crossing.join()
    other.execute("COMMIT")
    assert store.config.prefix("") == {"a": 0, "b": 0}
    with store.transaction() as work:
        work.config.set("a", 1)
        work.config.set("b", 1)
    assert store.config.prefix("") == {"a": 1, "b": 1}


@pytest.mark.parametrize(("durability", "setting"), [("normal", "off"), ("full", "on")])
def test_durability_is_whether_a_commit_waits_for_the_disk(address: str, durability: Any, setting: str) -> None:
    with Store.open(address, durability=durability) as store:
        show = text("SHOW synchronous_commit")
        assert store.execute(show) == [(setting,)]
        with store.transaction() as work:
            assert work.execute(show) == [(setting,)]
        assert crew.in_threads(3, lambda number, barrier: [barrier.wait(), store.execute(show)][1]) == [[(setting,)]] * 3


def test_a_store_opened_read_only_writes_nothing(address: str, store: Store) -> None:
    store.config.set("k", 1)
    with Store.open(address, read_only=True) as reader:
        assert reader.config.get("k") == 1
        with pytest.raises(Unsupported):
            reader.config.set("k", 2)
        with pytest.raises(Unsupported):
            reader.execute(text("DELETE FROM swarm_config"))
    assert store.config.get("k") == 1


def test_a_batch_locks_no_more_than_it_takes(store: Store) -> None:
    agent = store.agents.register("worker")
    store.tasks.enqueue_many([("t", None)] * 100)
    with store.transaction() as work:
        assert len(work.tasks.claim_many(agent, 33)) == 33
        [beside] = crew.in_threads(1, lambda number, barrier: len(store.tasks.claim_many(agent, 100)))
    assert beside == 67


@pytest.mark.parametrize("analysed", [True, False])
def test_a_few_of_some_thousand_rows_are_looked_up_one_by_one(address: str, raw: Callable[[], Any], analysed: bool) -> None:
    """Where the planner takes the items of a list for a hundred, it reads the whole table."""
    heard: list[str] = []
    with Store.open(address, trace=lambda sql, seconds: heard.append(sql)) as store:
        me, other = store.agents.register("worker"), store.agents.register("worker")
        store.tasks.enqueue_many([("t", number) for number in range(3_000)])
        with store.transaction() as work:
            for number in range(3_000):
                work.messages.publish("t", number, to=(me, other)[number % 2])
        plain = raw()
        if analysed:
            plain.execute("ANALYZE")
        heard.clear()
        received = store.messages.receive(me, limit=10)
        assert len(received) == store.messages.acknowledge_many(received, me) == 10
        store.tasks.complete_many((task, None) for task in store.tasks.claim_many(me, 10))
    plain.execute("SET plan_cache_mode = force_generic_plan")
    lists = [sql for sql in heard if "jsonb_array_elements" in sql]
    assert len(lists) >= 5
    for number, sql in enumerate(lists):
        counter = itertools.count(1)
        statement, count = re.sub("%s", lambda _: f"${next(counter)}", sql), sql.count("%s")
        plain.execute(f"PREPARE p{number} AS {statement}")
        plan = "\n".join(line for (line,) in plain.execute(f"EXPLAIN EXECUTE p{number} ({', '.join(['NULL'] * count)})"))
        assert "Index" in plan, plan
        assert not re.search("Seq Scan on (messages|tasks)", plan), plan


# Wake-ups


def test_a_commit_of_another_process_wakes_who_waits_by_notification(address: str) -> None:
    count = 40
    made, woken = crew.in_processes(2, crew.wait_or_enqueue_many, address, count)
    at = dict(woken)
    delays = sorted((at[id] - time) * 1000 for id, time in made)
    assert delays[count // 2] < 100  # whoever only looks now and then needs half a second on average


# Several swarms in one database


NAMES = ["one", "Two", 'three "3"', "vier 🐝", "with.dot", "select"]


def test_swarms_share_a_database_each_in_a_schema_of_its_own(server: Server) -> None:
    from urllib.parse import quote

    with ExitStack() as opened:
        swarms = {name: opened.enter_context(Store.open(f"{server.url()}&schema={quote(name)}")) for name in NAMES}
        for number, (name, swarm) in enumerate(swarms.items()):
            agent = swarm.agents.register("worker", id="agent", name="the same")
            swarm.tasks.enqueue_many([(name, n) for n in range(number + 1)])
            swarm.tasks.enqueue("t", id="task", unique_key="k")
            swarm.events.append("a", [NewEvent(name)], type="x", expected_version=0)
            swarm.messages.publish("t", name, sender=agent)
        for number, (name, swarm) in enumerate(swarms.items()):
            assert swarm.tasks.count() == number + 2
            assert [event.event_type for event in swarm.events.walk()] == [name]
            assert [message.content for message in swarm.messages.receive("agent")] == [name]
            assert swarm.check() == []
            with psycopg.connect(server.url()) as raw:
                tables = raw.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (name,)).fetchall()
            assert {table for (table,) in tables} == {*schema.metadata.tables, "alembic_version"}
        with Store.open(f"{server.url()}&schema={quote(NAMES[3])}", migrate=False) as again:
            assert again.tasks.count() == 5


def test_appending_in_one_swarm_does_not_hold_up_another(server: Server) -> None:
    with Store.open(f"{server.url()}&schema=left") as left, Store.open(f"{server.url()}&schema=right", timeout=2) as right:
        with left.transaction() as work:
            work.events.append("a", [NewEvent("t")], type="x")
            work.messages.publish("t")
            right.events.append("a", [NewEvent("t")], type="x")
            right.messages.publish("t")
        assert left.events.count() == right.events.count() == 1


# Forks


def backends(raw: Any) -> set[int]:
    """The server processes that serve this library in a database."""
    mine = "SELECT pid FROM pg_stat_activity WHERE application_name = 'ruv_swarm_store' AND datname = current_database()"
    return {pid for (pid,) in raw.execute(mine).fetchall()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_connects_anew_and_leaves_its_parent_s_connections_alone(address: str, raw: Callable[[], Any]) -> None:
    pid = text("SELECT pg_backend_pid()")
    with Store.open(address) as store:
        agent = store.agents.register("worker")
        assert store.tasks.wait(agent, timeout=0.01) is None  # so that it listens, too
        served_by = store.execute(pid)[0][0]
        before = backends(raw())
        assert served_by in before

        def job() -> Any:
            store.config.set("child", 1)
            with store.transaction() as work:
                work.tasks.enqueue_many([("t", n) for n in range(10)])
            waited = store.tasks.wait(agent, timeout=5)
            connected = store.execute(pid)[0][0] not in before
            store.close()
            return connected, waited is not None, store.config is not None

        for _ in range(2):
            assert crew.fork(job)() == "(True, True, True)"
        assert before <= backends(raw())  # none of them was closed, nor used by the child
        assert store.execute(pid)[0][0] in before
        assert store.config.get("child") == 1
        assert store.tasks.count() == 20
        assert store.tasks.claim(agent) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_inside_its_parent_s_transaction_is_refused(address: str) -> None:
    with Store.open(address) as store:
        with store.transaction() as work:
            work.config.set("before", 1)

            def job() -> Any:
                refused = []
                for attempt in (
                    lambda: work.config.set("child", 1),
                    lambda: work.tasks.find_all(),
                    lambda: work.tasks.query().all(),
                    lambda: work.transaction().__enter__(),
                ):
                    try:
                        attempt()
                        refused.append("nothing")
                    except StoreError as error:
                        refused.append("parent" if "parent" in str(error) else str(error))
                return refused

            assert crew.fork(job)() == repr(["parent"] * 4)
            work.config.set("after", 1)
        assert store.config.prefix("") == {"before": 1, "after": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_workers_share_the_queue(address: str) -> None:
    with Store.open(address) as store:
        agents = [store.agents.register("worker").id for _ in range(4)]
        wanted = [task.id for task in store.tasks.enqueue_many([("a", n) for n in range(120)])]

        def work(agent: str) -> int:
            done = 0
            while (task := store.tasks.claim(agent)) is not None:
                store.tasks.complete(task)
                done += 1
            return done

        joins = [crew.fork(lambda agent=agent: work(agent)) for agent in agents]  # type: ignore[misc]
        assert sum(int(join()) for join in joins) == len(wanted)
        assert {(task.status, task.fence) for task in store.tasks.find_all()} == {(TaskStatus.COMPLETED, 1)}


# The schema


CATALOG = {
    "columns": """
        SELECT relname, row_number() OVER (PARTITION BY relname ORDER BY attnum), attname, format_type(atttypid, atttypmod), attnotnull,
            attidentity, attgenerated, collname, pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            LEFT JOIN pg_collation ON pg_collation.oid = attcollation
        WHERE relnamespace = current_schema::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped""",
    "constraints": """
        SELECT conrelid::regclass, conname, contype, convalidated, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = current_schema::regnamespace AND contype <> 'n'""",  # from version 18 on NOT NULL is one, too
    "indexes": "SELECT indexrelid::regclass, pg_get_indexdef(indexrelid), indisvalid FROM pg_index JOIN pg_class"
    " ON pg_class.oid = indexrelid WHERE relnamespace = current_schema::regnamespace",
    "triggers": "SELECT tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(pg_trigger.oid) FROM pg_trigger JOIN pg_class"
    " ON pg_class.oid = tgrelid WHERE relnamespace = current_schema::regnamespace AND NOT tgisinternal",
    "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema::regnamespace",
    "sequences": "SELECT sequencename, data_type, start_value, min_value, max_value, increment_by, cycle FROM pg_sequences"
    " WHERE schemaname = current_schema",
}


@pytest.fixture
def catalog(postgresql: Databases) -> Callable[[str], dict[str, list[str]]]:
    """All the server knows of the schema behind an address; Alembic's own table is none of ours."""

    def read(address: str) -> dict[str, list[str]]:
        with closing(postgresql.connect(address)) as raw:
            (name,) = raw.execute("SELECT current_schema").fetchone()
            found = {}
            for kind, query in CATALOG.items():
                rows = [[str(value) for value in row] for row in raw.execute(query).fetchall()]
                found[kind] = sorted(
                    " | ".join(row).replace(f"{name}.", "") for row in rows if not row[0].startswith(("alembic_version", "uq_alembic"))
                )
            return found

    return read


def opened(address: str) -> Engine:
    return engines.connect(address, Options())


@pytest.fixture
def described(new_address: Callable[[], str]) -> str:
    """A schema made by `create_all`."""
    address = new_address()
    engine = opened(address)
    with engine.migration() as connection:
        schema.metadata.create_all(connection)
    engine.close()
    return address


def test_fresh_upgraded_and_described_schemas_are_the_same(new_address: Any, described: str, catalog: Any) -> None:
    wanted = catalog(described)
    assert {kind for kind, found in wanted.items() if found} == set(CATALOG)
    fresh = new_address()
    Store.open(fresh).close()
    assert catalog(fresh) == wanted
    upgraded = new_address()
    engine = opened(upgraded)
    for known in migrations.available():
        migrations.upgrade(engine, known.id)
    assert catalog(upgraded) == wanted
    migrations.downgrade(engine, "-1")
    assert catalog(upgraded) != wanted
    migrations.upgrade(engine)
    assert catalog(upgraded) == wanted
    migrations.downgrade(engine, "base")
    assert not any(catalog(upgraded).values())
    assert engine.tables() == {"alembic_version"}
    migrations.upgrade(engine)
    engine.close()
    assert catalog(upgraded) == wanted


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX ix_tasks_ready; CREATE INDEX ix_tasks_ready ON tasks (priority, position) WHERE status = 'pending'",
        "DROP TRIGGER events_in_order ON events",
        "ALTER TABLE events DISABLE TRIGGER events_append_only",
        "ALTER TABLE agents ADD COLUMN more TEXT",
        'ALTER TABLE swarm_config ALTER COLUMN key TYPE TEXT COLLATE "POSIX"',
        "ALTER TABLE tasks ALTER COLUMN awaited DROP DEFAULT",
        "ALTER TABLE tasks DROP CONSTRAINT ck_tasks_lease",
        "ALTER TABLE tasks ALTER COLUMN error_message SET NOT NULL",
        "ALTER TABLE metrics ALTER COLUMN value TYPE REAL",
        "DROP TABLE message_cursors",
    ],
)
def test_the_comparison_notices(address: str, described: str, raw: Any, catalog: Any, change: str) -> None:
    raw().execute(change)
    assert catalog(address) != catalog(described)


def test_every_text_column_compares_by_code_points(store: Store, raw: Callable[[], Any]) -> None:
    other = "SELECT attrelid::regclass, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relkind = 'r'"
    other += " AND relnamespace = current_schema::regnamespace AND attcollation NOT IN (0, '\"C\"'::regcollation)"
    columns = raw().execute(f"{other} AND relname <> 'alembic_version'").fetchall()
    assert columns == []
    keys = ["a", "B", "ä", "z", "Z", "a.b", "a b", "\uffff", "\U0001f41d", "_"]
    for key in keys:
        store.config.set(key, 1)
    assert list(store.config.prefix("")) == [entry.key for entry in store.config.find_all()] == sorted(keys)


def test_opening_at_once_makes_one_schema(new_address: Callable[[], str], catalog: Any, described: str) -> None:
    address = new_address()
    assert crew.in_processes(4, crew.open_new, address) == [[]] * 4
    assert catalog(address) == catalog(described)
    with Store.open(address, migrate=False) as store:
        assert store.agents.count() == 4
        assert [applied.version for applied in migrations.history(store._engine)] == [known.version for known in migrations.available()]


def test_a_revision_that_fails_leaves_nothing_behind(
    new_address: Callable[[], str], catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    address = new_address()
    Store.open(address).close()
    before = catalog(address)
    copy = tmp_path / "alembic"
    shutil.copytree(migrations.scripts(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    after = f"{int(HEAD) + 1:04}"
    (copy / "versions" / f"{after}_broken.py").write_text(
        f"""
from alembic import op
import sqlalchemy as sa
revision, down_revision = "{after}", "{HEAD}"
def upgrade():
    op.create_table("half", sa.Column("x", sa.Text()))
    op.execute("SELECT nonsense FROM nowhere")
def downgrade(): pass
"""
    )
    monkeypatch.setattr(migrations, "_PACKAGED", copy)
    engine = opened(address)
    with pytest.raises(Exception, match="nowhere"):
        migrations.upgrade(engine)
    assert migrations.current(engine) == HEAD
    engine.close()
    assert catalog(address) == before


def test_the_alembic_command_finds_nothing_to_change(address: str, new_address: Any, checkout: Path, environment: dict[str, str]) -> None:
    def alembic(url: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "alembic", "-x", f"url={url}", *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "No new upgrade operations detected" in alembic(address, "check")
    assert f"{HEAD} (head)" in alembic(address, "current")
    fresh = new_address()
    alembic(fresh, "upgrade", "head")
    with Store.open(fresh, migrate=False) as store:
        store.agents.register("worker")


def test_what_fails_inside_a_unit_of_work_never_passes_for_committed(store: Store) -> None:
    """After an error the server takes no more statements of a transaction. A verb that is refused undoes only itself all the same."""
    store.tasks.enqueue("t", id="taken")
    with store.transaction() as work:
        work.config.set("k", 1)
        with pytest.raises(Conflict):
            work.tasks.enqueue("t", id="taken")
        work.config.set("l", 1)
    assert store.config.prefix("") == {"k": 1, "l": 1}
    with store.transaction() as work:
        work.config.set("k", 2)
        with pytest.raises(StoreError, match="zero"):
            work.execute(select(literal(1) / literal(0)))
        assert work.config.get("k") == 2
    failing = schema.tasks.c.priority // literal(0) > 1
    with pytest.raises(StoreError, match="rolled back"), store.transaction() as work:
        work.config.set("k", 3)
        with pytest.raises(StoreError, match="zero"):
            work.tasks.where(failing).all()
        with pytest.raises(StoreError, match="rolled back"):
            work.config.get("k")
    with pytest.raises(StoreError, match="rolled back"), store.transaction() as work:
        work.config.set("k", 4)
        with pytest.raises(StoreError, match="zero"):
            work.tasks.where(failing).all()
    assert store.config.get("k") == 2
    with store.transaction() as work:
        with pytest.raises(StoreError, match="zero"), work.transaction() as inner:
            inner.config.set("l", 5)
            inner.tasks.where(failing).all()
        work.config.set("k", 5)
    assert store.config.prefix("") == {"k": 5, "l": 1}


def test_an_executor_may_lose_its_class_in_the_middle_of_a_call(store: Store) -> None:
    """The last cache is closed, and another thread's statement is on its way."""
    with store._engine.transaction() as run:
        assert type(run) is PostgreSQLExecutor
        assert TellingExecutor.all(run, select(literal(1))) == [(1,)]
        assert TellingExecutor.run(run, select(literal(1))) == 1
