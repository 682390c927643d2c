"""Caches: what a statement is known to change, others' commits, interrupts, forks."""

import importlib
import itertools
import os
import pkgutil
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crew
import pytest
import stale
from sqlalchemy import Delete, Executable, Insert, MetaData, Select, Table, Update, delete, insert, select, text, update

import ruv_swarm_store
from ruv_swarm_store import Agent, Store
from ruv_swarm_store.engines import Executor
from ruv_swarm_store.engines.changes import ANYTHING, Changes, effects, key_of, noting, rough_effects
from ruv_swarm_store.engines.sqlite.connections import Writer
from ruv_swarm_store.errors import Closed
from ruv_swarm_store.repository import Statements
from ruv_swarm_store.schema import agents, metadata, swarm_config

NEVER = 1e6


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as store:
        store.agents.register("worker", id="a")
        yield store


# What statements change


def constants() -> Iterator[tuple[str, Any]]:
    """The statements that the library keeps."""
    for module in pkgutil.walk_packages(ruv_swarm_store.__path__, "ruv_swarm_store."):
        if re.search(r"\.(__main__|demo|cli|aio|engines)\b", module.name):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError:
            continue  # an extra that is not installed
        for name, value in names.items():
            for part in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(part, (Insert, Update, Delete, Select)):
                    yield f"{module.name}.{name}", part
            plain = getattr(value, "statements", None)
            if isinstance(plain, Statements):
                verbs = ["find", "find_many", "find_all", "count", "delete", "delete_many"]
                for verb in [*verbs, "replace", "update", "upsert"] if "version" in plain.mapping.fields else verbs:
                    yield f"{module.name}.{name}.{verb}", getattr(plain, verb)


def test_of_every_statement_it_is_known_what_it_changes() -> None:
    found = dict(constants())
    assert len(found) > 100
    assert [name for name, statement in found.items() if ANYTHING in effects(statement)] == []
    assert [name for name, statement in found.items() if isinstance(statement, Select) == bool(effects(statement))] == []


def test_of_rows_that_are_returned_it_is_known_which_they_are() -> None:
    """However their columns are called."""
    found = [
        (name, effect) for name, statement in constants() if name.endswith((".upsert", "config._SET")) for effect in effects(statement)
    ]
    assert len(found) > 3
    assert [name for name, effect in found if effect.returned is None] == []


def test_no_statement_gives_a_row_another_key() -> None:
    for name, statement in constants():
        sql = str(statement)
        if isinstance(statement, (Insert, Update)) and (key := key_of(statement.table)) is not None and " SET " in sql:
            assert not re.search(rf"( SET|,) {key.name}\s*=", sql), name


def test_whatever_an_executor_can_do_is_thought_of() -> None:
    """A new way to run statements has to note what they change, too, unless it changes nothing."""
    writing = {"one", "all", "run", "insert", "insert_many", "execute"}
    assert Executor.__abstractmethods__ == writing | {"dialect", "hold", "lock", "settle", "after_commit"}
    assert writing <= vars(noting(Writer)).keys()


def told(*statements: Executable) -> Changes:
    changes = Changes(lambda _: None)
    for statement in statements:
        for effect in rough_effects(statement):
            changes.add(effect, None)
    return changes


def test_what_cannot_be_told_is_anything() -> None:
    elsewhere = Table("elsewhere", MetaData(), agents.c.id._copy())
    for statement in (
        text("SELECT 1"),
        text("SELECT id FROM agents").columns(agents.c.id),
        update(elsewhere).values(id="a"),
        delete(agents).where(text("true")),
        select(insert(elsewhere).values(id="a").returning(elsewhere.c.id).cte()),
    ):
        assert told(statement).everything
    assert not told(select(agents)).everything


def test_deleting_changes_what_refers_to_it() -> None:
    changes = told(delete(agents))
    assert changes.tables == {
        "agents", "tasks", "task_dependencies", "task_failures", "agent_group_members", "messages", "message_deliveries",
        "message_cursors", "metrics",
    }  # fmt: skip
    assert changes.added == {"events"}  # the journal's
    referring = {
        table.name for table in metadata.tables.values() for key in table.foreign_keys if key.ondelete and key.column.table is agents
    }
    assert referring < changes.tables
    hidden = told(select(delete(swarm_config).returning(swarm_config.c.key).cte()))
    assert hidden.tables == {"swarm_config"}


# Others


def test_who_speaks_to_the_file_directly_is_seen(store: Store, path: Path) -> None:
    cache = store.agents.cached(ttl=NEVER, probe=0.01)
    stranger = sqlite3.connect(path, isolation_level=None)
    for number in range(5):
        cache.get("a")
        stranger.execute("UPDATE agents SET version = version + 1 WHERE id = 'a'")
        time.sleep(0.01)
        assert cache.get("a").version == number + 2
    stranger.close()


def test_while_another_thread_has_the_writer(store: Store, path: Path) -> None:
    """Who commits cannot be told then, but that somebody did."""
    cache = store.agents.cached(ttl=NEVER, probe=0)
    cache.get("a")
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._engine._lock:  # type: ignore[attr-defined]
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    try:
        with Store.open(path) as other:
            cache.get("a")
            for status in ("busy", "idle"):
                before = cache.stats().misses
                assert cache.get("a") is cache.get("a")
                assert cache.stats().misses == before  # nobody has committed
                changed = other.agents.set_status("a", status)
                assert cache.get("a") == changed
    finally:
        leave.set()
        holder.join()
    changed = store.agents.set_status("a", "busy")
    assert cache.get("a") == changed


def test_a_writer_looks_for_those_who_only_read(store: Store, path: Path) -> None:
    cache = store.agents.cached(ttl=NEVER, probe=0.0001)
    cache.get("a")
    with Store.open(path) as other:
        other.agents.set_status("a", "busy")
    time.sleep(0.001)
    looked = store._engine.caches.looked
    store.config.set("k", 1)
    assert store._engine.caches.looked > looked
    assert cache.stats().size == 0


def test_nobody_looks_on_behalf_of_a_cache_that_is_gone(store: Store) -> None:
    store.agents.cached(probe=0.0001).close()
    cache = store.agents.cached(ttl=NEVER, probe=NEVER)
    cache.get("a")
    time.sleep(0.001)
    looked = store._engine.caches.looked
    store.config.set("k", 1)
    assert store._engine.caches.looked == looked


def test_a_lost_connection_is_made_anew(postgresql: Any) -> None:
    import psycopg

    address = postgresql.new(absent=False)
    with Store.open(address) as store, psycopg.connect(address, autocommit=True) as stranger:
        store.agents.register("worker", id="a")
        cache = store.agents.cached(ttl=NEVER, probe=0)
        for version in range(2, 5):
            cache.get("a")
            stranger.execute("UPDATE agents SET version = version + 1")
            stranger.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            time.sleep(0.05)
            assert cache.get("a").version == version
            assert any(cache.get("a") is cache.get("a") for _ in range(50))  # it can tell again that nobody has committed


@pytest.fixture
def standby(postgresql: Any) -> Iterator[tuple[str, str]]:
    """The addresses of a store and of its copy, which a second server keeps up to date."""
    import pg_server

    if not isinstance(postgresql, pg_server.Own):
        pytest.skip(f"the server in {pg_server.YOURS} has no standby of ours")
    primary = pg_server.Server(quick=False)
    try:
        data, control = str(primary.directory / "standby"), pg_server.program("pg_ctl")
        Store.open(primary.url()).close()
        primary._call(pg_server.program("pg_basebackup"), "-D", data, "-d", primary.url(), "-R", "-X", "stream", "-c", "fast", "--no-sync")
        primary._call(control, "start", "-D", data, "-l", f"{data}.log", "-o", "-p 5433", "-w", "-s")
        try:
            yield primary.url(), primary.url(port="5433")
        finally:
            primary._call(control, "stop", "-D", data, "-m", "immediate", "-w", "-s")
    finally:
        primary.close()


def test_on_a_standby_what_was_replayed_is_seen(standby: tuple[str, str]) -> None:
    """Its snapshots do not list what runs on the primary: that the middle one of three has ended does not show in them."""
    import psycopg

    address, copy = standby
    replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
    with Store.open(address) as primary, Store.open(copy, migrate=False, read_only=True) as store:
        for id in "abc":
            primary.agents.register("worker", id=id)
        cache = store.agents.cached(ttl=NEVER, probe=0)
        with psycopg.connect(address) as a, psycopg.connect(address) as b, psycopg.connect(address) as c, psycopg.connect(copy) as look:
            look.autocommit = True
            for id, writer in (("a", a), ("b", b), ("c", c)):
                writer.execute("UPDATE agents SET version = 2 WHERE id = %s", [id])
            for id, writer in (("c", c), ("b", b), ("a", a)):
                writer.commit()
                end = writer.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
                writer.commit()
                while look.execute(replayed, end).fetchone() != (True,):
                    time.sleep(0.001)
                assert cache.get(id).version == 2
                for other in "ab":
                    cache.get(other)


def test_a_migration_takes_everything(store: Store) -> None:
    with Store.open() as memory:
        for one in (store, memory):
            cache = one.config.cached(ttl=NEVER, probe=NEVER)
            one.config.set("k", 1)
            cache.get("k")
            with one._engine.migration() as connection:
                connection.execute(text("UPDATE swarm_config SET value = '2'"))
            assert cache.get("k") == 2


# Interrupts


@pytest.mark.parametrize("at", ["UPDATE agents", "COMMIT"])
def test_what_was_committed_when_an_interrupt_struck_is_seen(path: Path, at: str) -> None:
    strike = False

    def trace(sql: str, _: float) -> None:
        nonlocal strike
        if strike and sql.startswith(at):
            strike = False
            raise KeyboardInterrupt

    with Store.open(path, trace=trace) as store:
        store.agents.register("worker", id="a")
        cache = store.agents.cached(ttl=NEVER, probe=NEVER)
        cache.get("a")
        strike = True
        with pytest.raises(KeyboardInterrupt):
            if at == "COMMIT":
                store.agents.register("worker", id="a", name="new")
            else:
                store.agents.set_status("a", "busy")
        assert not strike
        assert cache.get("a") == store.agents.get("a")
        assert cache.get("a").version == 2
        # What comes after is not mistaken for a part of it.
        assert cache.get("a") is cache.get("a")
        store.agents.set_status("a", "failed")
        assert cache.get("a").status == "failed"


@pytest.mark.parametrize("lost", ["others_committed", "tell"])
def test_an_interrupt_loses_nothing_that_is_told_only_once(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    cache = store.agents.cached(ttl=NEVER, probe=0 if lost == "others_committed" else NEVER)
    cache.get("a")
    where: Any = store._engine if lost == "others_committed" else store._engine.caches.__class__
    plain, times = getattr(where, lost), itertools.count()

    def interrupted(*arguments: Any) -> Any:
        if next(times) and lost == "tell":
            return plain(*arguments)
        if lost == "others_committed":
            plain(*arguments)
        raise KeyboardInterrupt

    with Store.open(path) as other:
        changed = (other if lost == "others_committed" else store).agents.set_status("a", "failed")
        cache.get("a")
        monkeypatch.setattr(where, lost, interrupted)
        with pytest.raises(KeyboardInterrupt):
            if lost == "tell":
                store.agents.set_status("a", "busy")
            else:
                other.agents.set_status("a", "busy")
                cache.get("a")
        monkeypatch.setattr(where, lost, plain)
        assert cache.get("a") == store.agents.get("a") != changed


def at_each_step(do: Callable[[], object], strike: Callable[[], object]) -> Iterator[bool]:
    """Does it again and again, with a strike just as the first function of what notes and tells is called or returns, then the second...

    Those are the points at which Python lets signal handlers and finalisers run. Yields whether what was done has ended well.
    """
    do()  # once for all that is done only once
    for step in itertools.count():
        left = step

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if event != "line" and Path(frame.f_code.co_filename).name in {"cache.py", "caches.py", "changes.py", "connections.py"}:
                left -= 1
                if left == -1:
                    strike()
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            do()
            ended = True
        except KeyboardInterrupt:
            ended = False
        finally:
            sys.settrace(before)
        if left >= 0:
            assert step > 10
            return
        yield ended


@pytest.mark.parametrize("write", ["alone", "returning", "deleting", "in a transaction"])
def test_whenever_an_interrupt_strikes_what_was_committed_is_seen(store: Store, write: str) -> None:
    cache = store.agents.cached(ttl=NEVER, probe=NEVER)
    status = itertools.cycle(["busy", "idle"])

    def change() -> None:
        if write == "alone":
            store.agents.heartbeat("a")
        elif write == "returning":
            store.agents.set_status("a", next(status))
        elif write == "deleting":
            store.agents.delete("a")
        else:
            with store.transaction() as work:
                work.agents.set_status("a", next(status))

    def interrupt() -> None:
        raise KeyboardInterrupt

    for _ in at_each_step(change, interrupt):
        assert cache.find_by_id("a") == store.agents.find_by_id("a")
        if write == "deleting":
            store.agents.upsert(Agent("a", "worker", 1, 1))
            cache.get("a")


def test_who_reads_in_the_middle_of_a_look_sees_what_it_finds(store: Store, path: Path) -> None:
    """As a signal handler does."""
    cache = store.agents.cached(ttl=NEVER, probe=0)
    status = itertools.cycle(["busy", "idle"])
    with Store.open(path) as other:
        changed = other.agents.get("a")

        def read() -> None:
            nonlocal changed
            changed = other.agents.set_status("a", next(status))
            cache.get("a")

        def handle() -> None:
            found = store.agents.get("a")
            if cache.get("a") != found:
                late.append(found)

        late: list[Agent] = []
        for ended in at_each_step(read, handle):
            assert ended
            assert late == []
            assert cache.get("a") == changed


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_a_fork_both_have_caches_of_their_own(store: Store) -> None:
    cache = store.agents.cached(ttl=NEVER, probe=0.01)
    cache.get("a")
    locked, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock, store._engine.caches._looking:
            locked.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)  # whose locks nobody lets go in the child
    holder.start()
    locked.wait()

    def job() -> Any:
        assert cache.stats().size == 0
        assert cache.get("a").status == "idle"
        assert cache.get("a") is cache.get("a")
        store.agents.set_status("a", "busy")
        assert cache.get("a").status == "busy"
        return "done"

    join = crew.fork(job)
    leave.set()
    holder.join()
    assert join() == "'done'"
    time.sleep(0.01)
    assert cache.get("a").status == "busy"
    store.agents.set_status("a", "failed")
    assert cache.get("a").status == "failed"


# The size of it


def test_it_stays_within_its_size_whoever_reads(store: Store) -> None:
    with store.transaction() as work:
        for key in range(200):
            work.config.set(str(key), key)
    cache = store.config.cached(ttl=NEVER, size=20)

    def read(number: int, barrier: threading.Barrier) -> None:
        barrier.wait()
        for key in itertools.islice(itertools.cycle(range(number, 200, 3)), 300):
            assert cache.get(str(key)) == key
            assert cache.stats().size <= 20
            if key % 50 == 0:
                store.config.set(str(key), key)

    crew.in_threads(4, read)
    stats = cache.stats()
    assert stats.size == 20
    assert stats.evictions > 100
    assert stats.misses + stats.hits <= 1200


def test_a_dropped_store_takes_its_caches_along(path: Path) -> None:
    store = Store.open(path)
    cache = store.config.cached()
    with pytest.warns(ResourceWarning, match="never closed"):
        store.__del__()
    store._closed = True
    with pytest.raises(Closed):
        cache.get("k")


@pytest.mark.parametrize("close", [False, True], ids=["make", "close"])
def test_caches_made_in_and_beside_a_transaction_do_not_wait_for_each_other(store: Store, close: bool) -> None:
    own = store.agents.cached()
    inside, beside = threading.Event(), threading.Event()

    def within() -> None:
        with store.transaction():
            inside.set()
            beside.wait(5)
            time.sleep(0.05)
            own.close() if close else store.agents.cached()

    def outside() -> None:
        inside.wait(5)
        beside.set()
        store.config.cached()

    threads = [threading.Thread(target=target, daemon=True) for target in (within, outside)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


# How old a read may be


def test_a_look_counts_from_when_it_began(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed after it has asked, and before it has ended, is not known yet."""
    with Store.open(path) as others:
        cache = store.agents.cached(ttl=NEVER, probe=0.5)
        assert cache.get("a").status == "idle"
        ask = store._engine.others_committed

        def slowly() -> bool:
            answer = ask()
            others.agents.set_status("a", "busy")
            time.sleep(0.6)
            return answer

        time.sleep(0.6)
        monkeypatch.setattr(store._engine, "others_committed", slowly)
        cache.get("a")
        monkeypatch.undo()
        assert cache.get("a").status == "busy"


@pytest.mark.long
def test_a_hundred_thousand_reads_are_never_staler_than_the_probe_interval(path: Path) -> None:
    """Another process writes as fast as it can, a thread of this one, too."""
    outcome = stale.measure(str(path), 100_000, probe=0.01, own=True, pause=0.00001)
    assert outcome.stale == 0
    assert outcome.changes > 100
    assert outcome.hits > 1_000
