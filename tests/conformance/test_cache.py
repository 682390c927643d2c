"""Caches: reads by key from memory, that never show what is not true any more."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import stale
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text, update

from ruv_swarm_store import NewEvent, NotFound, Sample, Store
from ruv_swarm_store.agents import Agents
from ruv_swarm_store.entities import Agent
from ruv_swarm_store.errors import Closed, Conflict, InvalidValue, Unsupported
from ruv_swarm_store.schema import FINAL, agents, tasks

NEVER = 1e6
"""Seconds after which a test is over."""


class Boom(Exception):
    pass


def steady(noun: Any, **options: Any) -> Any:
    """A cache that neither ends by itself nor looks at others' commits: only what this store tells it makes it let go."""
    return noun.cached(**{"ttl": NEVER, "probe": NEVER, **options})


@pytest.fixture
def watched(database) -> Iterator[tuple[Store, list[str]]]:
    """A store, and the statements it has run."""
    ran: list[str] = []
    return database.open(trace=lambda sql, _: ran.append(sql)), ran


def test_a_row_is_read_once(watched):
    store, ran = watched
    agent = store.agents.register("worker", id="a")
    cache = steady(store.agents)
    assert [cache.get("a"), cache.find_by_id("a"), cache.get(agent), cache.peek("a")] == [agent] * 4
    assert cache.exists("a")
    assert cache.find_many(["a", agent]) == [agent]
    before = len(ran)
    assert cache.get("a") is cache.get("a")
    assert len(ran) == before
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.size) == (7, 1, 1)


def test_an_absent_row_is_looked_for_once(watched):
    store, ran = watched
    cache = steady(store.agents)
    assert cache.find_by_id("a") is None
    before = len(ran)
    assert not cache.exists("a")
    assert cache.find_many(["a"]) == []
    assert cache.peek("a", default=1) is None
    with pytest.raises(NotFound):
        cache.get("a")
    assert len(ran) == before
    agent = store.agents.register("worker", id="a")
    assert cache.get("a") == agent


def test_a_row_that_was_absent_is_seen_however_it_was_added(store: Store):
    cache = steady(store.tasks)
    there = store.tasks.enqueue("t", id="there")
    for number, options in enumerate([{}, {"idempotency_key": "i"}, {"unique_key": "u"}, {"depends_on": ["there"]}]):
        id = f"t-{number}"
        assert cache.find_by_id(id) is None
        assert cache.get("there") == there
        assert store.tasks.enqueue("t", id=id, **options).id == id
        assert cache.get(id) == store.tasks.get(id)
        there = store.tasks.get("there")
    metrics = steady(store.metrics)
    assert metrics.find_many([1, 2, 3]) == []
    store.metrics.record("m", 1.0)
    store.metrics.record_many([Sample("m", 2.0), Sample("m", 3.0)])
    assert [metrics.get(id).value for id in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_what_is_missing_of_many_is_read_together(watched):
    store, ran = watched
    for id in "abc":
        store.agents.register("worker", id=id)
    cache = steady(store.agents)
    cache.get("a")
    before = len(ran)
    assert {agent.id for agent in cache.find_many(list("abcd"))} == {"a", "b", "c"}
    assert len(ran) == before + 1
    assert {agent.id for agent in cache.find_many(iter("abcd"))} == {"a", "b", "c"}
    assert not cache.exists("d")
    assert len(ran) == before + 1


def test_it_keeps_what_was_used_last(store: Store):
    for id in "abc":
        store.agents.register("worker", id=id)
    for use in ("get", "peek", "exists", "find_many"):
        cache = steady(store.agents, size=2)
        cache.get("a"), cache.get("b"), getattr(cache, use)(["a"] if use == "find_many" else "a"), cache.get("c")
        assert (cache.stats().size, cache.stats().evictions) == (2, 1)
        assert [cache.peek(id) is not None for id in "abc"] == [True, False, True], use


def test_rows_end_with_their_time(store: Store):
    store.agents.register("worker", id="a")
    cache = steady(store.agents, ttl=0.03)
    cache.get("a")
    time.sleep(0.04)
    assert cache.peek("a") is None
    assert cache.get("a").id == "a"
    assert cache.stats().misses == 2


def test_a_commit_is_seen_at_once_and_touches_nothing_else(store: Store):
    for id in "ab":
        store.agents.register("worker", id=id)
    cache = steady(store.agents)
    before = [cache.get(id) for id in "ab"]
    changed = store.agents.set_status("a", "busy")
    assert cache.peek("b") == before[1]
    assert cache.get("a") == changed
    assert cache.stats().invalidations == 1
    store.config.set("k", 1)
    assert cache.peek("a") == changed


def test_a_transaction_reads_past_the_cache(store: Store):
    before = store.agents.register("worker", id="a")
    cache = steady(store.agents)
    assert cache.get("a") == before
    with pytest.raises(Boom), store.transaction() as work:
        changed = work.agents.set_status("a", "busy")
        work.agents.register("worker", id="b")
        assert cache.get("a") == changed
        assert cache.exists("b")
        assert {agent.id for agent in cache.find_many(["a", "b"])} == {"a", "b"}
        assert cache.peek("a") is None
        with store.transaction() as inner:
            assert cache.get("a") == changed
            inner.agents.delete("a")
            assert not cache.exists("a")
        raise Boom
    assert cache.peek("a") == before
    assert cache.find_by_id("b") is None
    store.config.set("k", 1)
    assert cache.peek("a") == before
    assert cache.stats().invalidations == 0


def test_nobody_sees_what_is_not_committed(store: Store):
    before = store.agents.register("worker", id="a")
    cache = steady(store.agents)
    seen: list[Any] = []

    def read() -> None:
        seen.append(cache.get("a"))

    with store.transaction() as work:
        cache.invalidate("a")
        changed = work.agents.set_status("a", "busy")
        if store.capabilities.threads and store.capabilities.persistent:  # in memory readers wait for the transaction
            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
            assert seen == [before]
            assert cache.stats().size == 1
    assert cache.get("a") == changed


def test_a_part_that_failed_leaves_it_right(store: Store):
    store.agents.register("worker", id="a")
    cache = steady(store.agents)
    cache.get("a")
    with store.transaction() as work:
        with pytest.raises(Boom), work.transaction() as inner:
            inner.agents.set_status("a", "failed")
            raise Boom
        work.agents.register("worker", id="b")
        cache.find_by_id("b")
    assert cache.get("a") == store.agents.get("a")
    assert cache.get("b").id == "b"


def test_hooks_after_a_commit_see_it(store: Store):
    store.agents.register("worker", id="a")
    cache = steady(store.agents)
    cache.get("a")
    seen: list[str] = []
    with store.transaction() as work:
        work.after_commit(lambda: seen.append(cache.get("a").status))
        work.agents.set_status("a", "busy")
    assert seen == ["busy"]


def test_a_slow_reader_puts_nothing_old_back(store: Store):
    class Slow(Agents):
        meanwhile: Callable[[], object] = staticmethod(lambda: None)

        def find_by_id(self, id: Any) -> Agent | None:
            found = super().find_by_id(id)
            self.meanwhile()
            return found

        def find_many(self, ids: Any) -> list[Agent]:
            found = super().find_many(ids)
            self.meanwhile()
            return found

    slow = Slow(store._scope)
    cache = steady(slow)
    unknown = object()
    for read in (cache.find_by_id, cache.exists, lambda id: cache.find_many([id])):
        store.agents.delete("a")
        cache.clear()
        for change in (
            lambda: store.agents.register("worker", id="a"),
            lambda: store.agents.set_status("a", "busy"),
            lambda: store.agents.delete("a"),
            lambda: store.execute(text("INSERT INTO agents SELECT 'a', '', 1, 1, NULL, 'idle', '[]', '{}', NULL, 1")),
            cache.clear,
            lambda: cache.invalidate("a"),
        ):
            cache.clear()
            slow.meanwhile = change
            read("a")
            slow.meanwhile = lambda: None
            assert cache.peek("a", default=unknown) is unknown
            assert cache.find_by_id("a") == store.agents.find_by_id("a")


def test_of_two_readers_the_first_is_kept(store: Store):
    """The second may have read before the first did."""
    old = store.agents.register("worker", id="a")

    class Slow(Agents):
        results: Iterator[Callable[[], Agent]]

        def find_by_id(self, id: Any) -> Agent | None:
            return next(self.results)()

    slow = Slow(store._scope)
    cache = steady(slow)
    new = store.agents.set_status("a", "busy")
    slow.results = iter([lambda: cache.find_by_id("a") and old, lambda: new])
    assert cache.find_by_id("a") == old
    assert cache.peek("a") == new


def test_a_read_that_fails_leaves_nothing(store: Store, database):
    store.agents.register("worker", id="a")
    database.damage(store, agents, "id", "a", "status", "nonsense")
    cache = steady(store.agents)
    for _ in range(2):
        with pytest.raises(Exception, match="status"):
            cache.get("a")
        assert cache.exists("a")
    assert cache.stats().size == 0


def test_configuration_ends_when_it_expires(store: Store, clock):
    store.config.set("k", 1, ttl=10)
    store.config.set("none", None)
    cache = steady(store.config)
    assert (cache.get("k"), cache.get("none", 5), cache.get("missing", 5), cache.get("missing")) == (1, None, 5, None)
    entry = cache.entry("k")
    assert entry is not None
    clock.advance(9.9)
    assert cache.peek("k") == entry
    clock.advance(0.1)
    assert (cache.peek("k"), cache.get("k"), cache.entry("k")) == (None, None, None)
    store.config.set("k", 2)
    assert cache.get("k") == 2
    store.config.delete("k")
    assert cache.get("k", "gone") == "gone"


def test_keys_of_another_type_are_the_store_s(store: Store):
    store.agents.register("worker", id="1")
    cache = steady(store.agents)
    for odd in (1, 1.0, None, True):
        try:
            expected: Any = store.agents.find_by_id(odd)
        except Exception as error:
            with pytest.raises(type(error)):
                cache.find_by_id(odd)
        else:
            assert cache.find_by_id(odd) == expected
    assert cache.stats() == type(cache.stats())(0, 0, 0, 0, 0)


def test_what_it_cannot_do_it_says(store: Store):
    with store.transaction() as work, pytest.raises(Unsupported, match="unit of work"):
        work.agents.cached()
    for options in ({"ttl": 0}, {"ttl": -1}, {"ttl": "1"}, {"size": 0}, {"size": 1.5}, {"probe": -1}):
        with pytest.raises(InvalidValue):
            store.agents.cached(**options)


def test_a_closed_cache_keeps_nothing(store: Store):
    store.agents.register("worker", id="a")
    with steady(store.agents) as cache:
        cache.get("a")
    assert cache.stats().size == 0
    assert cache.get("a").id == "a"
    assert cache.stats().size == 0
    assert cache not in list(store._engine.caches)
    cache.close()


def test_it_ends_with_its_store(store: Store):
    store.agents.register("worker", id="a")
    cache = steady(store.agents)
    cache.get("a")
    store.close()
    with pytest.raises(Closed):
        cache.get("a")


def test_nothing_is_noted_when_the_last_is_gone(store: Store):
    plain = type(store._engine._writer) if hasattr(store._engine, "_writer") else None
    cache = steady(store.agents)
    assert store._engine.caches.noting
    del cache
    store.agents.register("worker", id="a")
    assert not store._engine.caches.noting
    if plain is not None:
        assert type(store._engine._writer) is plain
    cache = steady(store.agents)
    cache.get("a")
    store.agents.set_status("a", "busy")
    assert cache.get("a").status == "busy"


def test_one_made_inside_a_transaction_learns_of_all_of_it(store: Store):
    store.agents.register("worker", id="a")
    with store.transaction() as work:
        work.agents.set_status("a", "busy")
        cache = steady(store.agents)
        if store.capabilities.threads and store.capabilities.persistent:
            thread = threading.Thread(target=cache.get, args=("a",))
            thread.start()
            thread.join()
            assert cache.stats().size == 1
    assert cache.get("a").status == "busy"


# Every verb, and whatever it changes beside what it names

IDS = ("a", "b", "c")


def _enqueue(store: Any, id: str, other: str) -> None:
    store.tasks.enqueue("t", id=id, depends_on=[other], unique_key=f"u-{id}", concurrency_key="k", max_retries=0)


def _complete(store: Any, id: str, other: str) -> None:
    for task in store.tasks.claim_many(id, 2):
        store.tasks.complete(task, other)


def _fail(store: Any, id: str, other: str) -> None:
    if (task := store.tasks.claim(id)) is not None:
        store.tasks.start(task)
        store.tasks.heartbeat(task)
        store.tasks.fail(task, "no", delay=0)


def _again(noun: str) -> Callable[[Any, str, str], object]:
    def change(store: Any, id: str, other: str) -> None:
        repository = getattr(store, noun)
        entity = repository.find_by_id(id)
        if entity is not None:
            repository.update(entity)
            repository.upsert(repository.replace(entity))

    return change


CHANGES: dict[str, Callable[[Any, str, str], object]] = {
    "register": lambda store, id, _: store.agents.register("worker", id=id),
    "insert agents": lambda store, id, other: store.agents.insert_many([Agent(x, "w", 1, 1) for x in (id, other)]),
    "heartbeat": lambda store, id, other: store.agents.heartbeat_many([id, other]),
    "one heartbeat": lambda store, id, _: store.agents.heartbeat(id),
    "set_status": lambda store, id, _: store.agents.set_status(id, "busy"),
    "terminate": lambda store, id, _: store.agents.terminate(id),
    "reap": lambda store, *_: store.agents.reap(0),
    "delete agent": lambda store, id, _: store.agents.delete(id),
    "change agent": _again("agents"),
    "plain task": lambda store, id, _: store.tasks.enqueue("t", id=id),
    "enqueue": _enqueue,
    "complete": _complete,
    "fail": _fail,
    "cancel": lambda store, id, _: store.tasks.cancel(id, tree=True),
    "requeue": lambda store, id, _: store.tasks.requeue(id),
    "limit": lambda store, *_: store.tasks.limit("k", 1),
    "no limit": lambda store, *_: store.tasks.limit("k", None),
    "delete task": lambda store, id, _: store.tasks.delete(id),
    "prune tasks": lambda store, *_: store.tasks.prune(0),
    "change task": _again("tasks"),
    "create group": lambda store, id, other: store.groups.create(other, id=id),
    "join": lambda store, id, other: store.groups.join(id, other),
    "delete group": lambda store, id, _: store.groups.delete(id),
    "change group": _again("groups"),
    "set": lambda store, id, other: store.config.set(id, other),
    "swap": lambda store, id, other: store.config.compare_and_set(id, other, expected=1),
    "unset": lambda store, id, other: store.config.delete_many([id, other]),
    "expire": lambda store, *_: store.config.expire(kept=0),
    "change config": _again("config"),
    "publish": lambda store, id, other: store.messages.publish("t", 1, sender=id, to=other),
    "prune messages": lambda store, *_: store.messages.prune(0),
    "record": lambda store, id, _: store.metrics.record_many([Sample("m", 1.0, agent=id)]),
    "append": lambda store, id, other: store.events.append(id, [NewEvent("e", other, id=f"e-{other}")], type="t"),
    "statement": lambda store, id, _: store.execute(update(agents).where(agents.c.id == id).values(name=None)),
    "other statement": lambda store, id, _: store.execute(delete(tasks).where(tasks.c.id == id)),
    "text": lambda store, id, _: store.execute(text("UPDATE swarm_config SET version = version + 1 WHERE key = :id"), {"id": id}),
    "a read": lambda store, *_: store.execute(select(agents)),
}
STEPS = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(IDS), st.sampled_from(IDS)), min_size=1, max_size=8)
NOUNS = ("agents", "tasks", "groups", "config", "messages", "metrics", "events")


def seen(noun: Any, keys: list[Any]) -> list[Any]:
    return [noun.find_by_id(key) for key in keys]


def attempt(scope: Any, name: str, id: str, other: str) -> None:
    with suppress(Conflict, NotFound, InvalidValue):
        CHANGES[name](scope, id, other)


def populate(store: Store) -> None:
    """There is something to change."""
    for id in IDS:
        if (agent := store.agents.find_by_id(id)) is None or agent.status != "idle":
            store.agents.register("worker", id=id)
        if (task := store.tasks.find_by_id(id)) is None or task.status in FINAL:
            attempt(store, "delete task", id, id)
            attempt(store, "plain task", id, id)
        attempt(store, "create group", id, id)


@pytest.mark.parametrize("journal", [False, True])
def test_after_every_verb_it_shows_what_the_store_does(database, clock, journal):
    store = database.open(clock=clock, journal=journal)
    caches = {noun: steady(getattr(store, noun)) for noun in NOUNS}
    invalidated = dict.fromkeys(NOUNS, 0)

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(STEPS, st.sampled_from(["alone", "together", "undone"])), min_size=1, max_size=4))
    def check(rounds):
        keys: dict[str, list[Any]] = {noun: [*IDS] for noun in NOUNS} | {"metrics": [*range(1, 9)]}
        keys["events"] = [f"e-{id}" for id in IDS]
        populate(store)
        for steps, how in rounds:
            clock.advance(1)
            keys["messages"] = [*IDS, *(message.id for message in store.messages.find_all()[-3:])]
            for noun, cache in caches.items():
                seen(cache, keys[noun])
            before = {noun: cache.stats().invalidations for noun, cache in caches.items()}
            with suppress(Boom):
                if how == "alone":
                    for step in steps:
                        attempt(store, *step)
                else:
                    with store.transaction() as work:
                        for step in steps:
                            attempt(work, *step)
                        if how == "undone":
                            raise Boom
            for noun, cache in caches.items():
                invalidated[noun] += cache.stats().invalidations - before[noun]
                assert seen(cache, keys[noun]) == seen(getattr(store, noun), keys[noun]), (noun, steps, how)

    check()
    assert min(invalidated.values()) > 0, invalidated  # each had something that it had to let go


# Others

PROBE = 0.01


@pytest.mark.needs("persistent")
def test_what_others_commit_is_seen_after_the_probe_interval(database):
    ours, theirs = database.open(), database.open()
    cache = ours.agents.cached(ttl=NEVER, probe=PROBE)
    assert cache.find_by_id("a") is None
    theirs.agents.register("worker", id="a")
    for number in range(20):
        theirs.config.set("n", number)
        changed = theirs.agents.set_status("a", ("busy", "idle")[number % 2])
        time.sleep(PROBE)
        assert cache.get("a") == changed


@pytest.mark.needs("processes")
def test_who_only_reads_sees_what_others_commit(database):
    theirs = database.open()
    store = database.open(read_only=True)
    cache = store.agents.cached(ttl=NEVER, probe=PROBE)
    assert not cache.exists("a")
    for change in (lambda: theirs.agents.register("worker", id="a"), lambda: theirs.agents.set_status("a", "busy")):
        changed = change()
        time.sleep(PROBE)
        assert cache.get("a") == changed


def test_own_commits_do_not_look_like_others(database):
    store = database.open()
    store.agents.register("worker", id="a")
    cache = store.agents.cached(ttl=NEVER, probe=0)
    other = store.agents.cached(ttl=NEVER, probe=0)
    kept = 0
    for number in range(30):
        before = cache.stats().misses
        cache.get("a"), other.get("a")
        store.config.set("n", number)
        store.tasks.enqueue_many([("t", number)] * 3)
        store.tasks.enqueue("t", id=f"t-{number}")
        store.tasks.delete(f"t-{number}")
        store.config.delete("n")
        store.agents.heartbeat_many(["b"])
        store.tasks.claim("a")
        cache.get("a")
        kept += cache.stats().misses == before
    assert kept > 20  # others may be at work on the same server
    assert cache.stats().invalidations < 10


@pytest.mark.needs("persistent")
def test_others_are_seen_between_own_commits(database):
    ours, theirs = database.open(), database.open()
    theirs.agents.register("worker", id="a")
    cache = ours.agents.cached(ttl=NEVER, probe=0)
    for number in range(20):
        cache.get("a")
        ours.config.set("n", number)
        changed = theirs.agents.set_status("a", ("busy", "idle")[number % 2])
        ours.config.set("n", -number)
        with ours.transaction() as work:
            work.config.set("m", number)
        assert cache.get("a") == changed


@pytest.mark.needs("processes")
def test_a_read_is_never_staler_than_the_probe_interval(database):
    """Another process writes as fast as it can, a thread of this one, too; `python tests/programs/stale.py` looks longer."""
    outcome = stale.measure(database.address, 2_500, probe=PROBE, own=True, pause=0.0001)
    assert outcome.stale == 0
    assert outcome.changes > 20
    assert outcome.hits > 100
    assert outcome.own > 10


@pytest.mark.needs("threads")
def test_threads_read_what_was_committed_before(database):
    """Each thread writes one counter and reads all: none is ever behind what its writer had already returned from."""
    store = database.open()
    cache = store.config.cached(ttl=NEVER, probe=0.001, size=3)
    done = dict.fromkeys(range(4), 0)
    errors: list[str] = []

    def work(own: int) -> None:
        try:
            for number in range(1, 60):
                store.config.set(str(own), number)
                done[own] = number
                for other in done:
                    least = done[other]
                    if (found := cache.get(str(other), 0)) < least:
                        errors.append(f"{other}: {found} < {least}")
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(own,)) for own in done]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [cache.get(str(own)) for own in done] == [59] * 4


def test_it_works_while_the_monitor_is_on_and_off(store: Store):
    store.agents.register("worker", id="a")
    cache = None
    for number, switch in enumerate([store.monitor.start, store.monitor.stop, store.monitor.start, lambda: None, store.monitor.stop]):
        switch()
        if number in (0, 3):
            cache = steady(store.agents)
        assert cache is not None
        cache.get("a")
        changed = store.agents.set_status("a", ("busy", "idle")[number % 2])
        assert cache.get("a") == changed
        assert cache.peek("a") == changed
