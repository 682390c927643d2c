"""The journal tells of every change to a swarm's state, and of nothing else; added up, it is what is in the tables."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from chorus import Chorus
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import delete, insert, null, select, text, update
from unruly import AWKWARD, JSON, Undo, Unruly

from ruv_swarm_store import Conflict, InvalidValue, NewEvent, NewTask, NotFound, Store, StoreError, codec, schema
from ruv_swarm_store.engines import IN_BROWSER
from ruv_swarm_store.engines import journal as triggers
from ruv_swarm_store.errors import CorruptRow, SchemaMismatch
from ruv_swarm_store.journal import LISTED, Rebuilt


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@pytest.fixture
def store(database, clock) -> Store:
    """A journaled store."""
    return database.open(clock=clock, journal=True)


def told(store: Store, table: str | None = None) -> list[tuple[str, str, Any]]:
    """What the journal says, of one table or of all: each event's aggregate id, type and data."""
    types = [f"journal.{table}"] if table else [triggers.stream_type(table) for table in triggers.TABLES]
    return [
        (event.aggregate_id, event.event_type.partition(".")[2], event.event_data)
        for event in store.events.read_all(limit=10**6)
        if event.aggregate_type in types
    ]


def rebuilt(store: Store, **options: Any) -> Rebuilt:
    """The journal's sum, which must be what is in the tables."""
    found = store.journal.rebuild(**options)
    assert found.agrees, found.differences
    assert found.rows == {table.name: len(store.execute(select(*table.primary_key))) for table in triggers.TABLES}
    return found


# What is told


def test_each_change_is_an_event(store: Store, clock):
    agent = store.agents.register("w", id="a", name=AWKWARD, configuration={"x": [1.0]})
    whole = {
        "id": "a", "type": "w", "created_at": clock.now, "last_heartbeat": clock.now, "name": AWKWARD, "status": "idle", "capabilities": [],
        "configuration": {"x": [1.0]}, "terminated_at": None, "version": 1,
    }  # fmt: skip
    clock.advance(1)
    store.agents.heartbeat(agent)
    store.agents.set_status(agent, "busy")
    store.agents.set_status(agent, "busy")
    store.agents.delete(agent)
    events = store.events.read("a", type="journal.agents")
    assert [(event.event_type, event.event_data) for event in events][:3] == [
        ("agents.inserted", whole),
        ("agents.updated", {"last_heartbeat": clock.now}),
        ("agents.updated", {"status": "busy", "version": 2}),
    ]
    assert (events[-1].event_type, events[-1].event_data) == ("agents.deleted", {"id": "a"})
    assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
    assert [(event.metadata, event.schema_version, event.correlation_id) for event in events] == [(None, 1, None)] * len(events)
    assert len({event.id for event in events}) == len(events)
    assert len(store.events.read_all()) == len(events) + 1  # the mark that it was started


def test_it_has_the_database_s_own_time(database):
    wrong = database.open(clock=lambda: 5, journal=True)
    assert wrong.journal.status().started_at == 5
    wrong.config.set("k", 1)
    right = Store.open()
    now = right.config.set("k", 1).updated_at
    right.close()
    assert all(abs(event.timestamp - now) < 60_000 for event in wrong.events.read_all())


def test_what_changes_nothing_is_no_event(store: Store):
    store.config.set("k", [1])
    store.agents.register("w", id="a")
    before = store.events.last_position()
    store.execute(update(schema.swarm_config).values(value=[1]))
    store.execute(update(schema.agents).values(type="w", name=None))
    store.execute(delete(schema.tasks))
    store.messages.publish("t", 1)
    store.metrics.record("m", 1)
    assert store.events.last_position() == before


def test_keys_of_several_columns_are_json(store: Store):
    store.agents.register("w", id=AWKWARD)
    store.groups.create("g", id='"[1]')
    store.groups.join('"[1]', AWKWARD)
    ((key, what, data),) = told(store, "agent_group_members")
    assert (what, data["agent_id"], data["group_id"]) == ("inserted", AWKWARD, '"[1]')
    assert key == codec.encode(['"[1]', AWKWARD])
    store.groups.leave('"[1]', AWKWARD)
    assert told(store, "agent_group_members")[-1] == (key, "deleted", {"agent_id": AWKWARD, "group_id": '"[1]'})


def test_json_is_told_exactly(store: Store):
    for value in JSON:
        store.config.set("k", value)
        assert repr(told(store)[-1][2].get("value", value)) == repr(store.config.get("k"))
        rebuilt(store)


def test_the_smallest_change_is_one(store: Store):
    for one, other in [(1, 1.0), (0, False), (1, True), (None, "null"), ({"a": 1}, {"a": 1.0}), ("", None), ([], {})]:
        store.config.set("k", one)
        store.execute(update(schema.swarm_config).values(value=other))
        assert repr(told(store)[-1]) == repr(("k", "updated", {"value": other}))
        rebuilt(store)


def test_no_value_is_not_the_value_null(store: Store):
    store.tasks.enqueue_many([NewTask("t", id="a"), NewTask("t", id="b")])
    in_json = update(schema.tasks).where(schema.tasks.c.id == "a")
    for result in (text("'null'"), null(), text("'null'"), text("'[null]'"), null(), text("'null'")):
        store.execute(in_json.values(result=result))
        rebuilt(store)
    metadata = [event.metadata for event in store.events.read("a", type="journal.tasks")]
    assert metadata == [None, {"result": "json"}, None, {"result": "json"}, None, None, {"result": "json"}]


def test_any_character_is_told(store: Store):
    for character in map(chr, [*range(1, 32), 34, 47, 92, 127, 0x2028, 0xFFFD, 0x1F41D]):
        store.agents.register(character, id=character, configuration={character: character})
        store.groups.create(character, id=character)
        store.groups.join(character, character, role=character)
    rebuilt(store)
    with behind_its_back(store):
        store.execute(delete(schema.agent_group_members))
    assert {difference.what for difference in store.journal.rebuild().differences} == {"missing"}
    assert store.journal.rebuild().differing == 38


def test_text_that_came_out_of_json_is_text(store: Store):
    store.agents.register("w", id="a")
    store.execute(text("""UPDATE agents SET name = '{"a": 1}'"""))
    assert told(store)[-1][2] == {"name": '{"a": 1}'}
    rebuilt(store)


def test_a_row_under_another_key_is_another_row(store: Store):
    store.config.set("k", 1)
    before = told(store)[0][2]
    store.execute(update(schema.swarm_config).values(key="l", version=9))
    assert told(store)[1:] == [("k", "deleted", {"key": "k"}), ("l", "inserted", {**before, "key": "l", "version": 9})]
    rebuilt(store)


def test_what_the_database_does_by_itself_is_told(store: Store):
    agents = [store.agents.register("w", id=f"a-{n}") for n in range(3)]
    group = store.groups.create("g")
    for agent in agents:
        store.groups.join(group, agent)
    task = store.tasks.enqueue("t", id="t", max_retries=0)
    store.tasks.enqueue("u", id="u", depends_on=[task], on_dependency_failure="fail")
    store.tasks.fail(store.tasks.claim(agents[0]), "why")
    before = len(told(store))
    store.execute(delete(schema.agents))  # memberships go with them; what they did loses them
    assert sorted(told(store)[before:], key=repr) == sorted(
        [("t", "updated", {"agent_id": None}), ('["t",1]', "updated", {"agent_id": None})]
        + [(agent.id, "deleted", {"id": agent.id}) for agent in agents]
        + [(f'["{group.id}","{agent.id}"]', "deleted", {"agent_id": agent.id, "group_id": group.id}) for agent in agents],
        key=repr,
    )
    store.tasks.delete("u")
    store.tasks.delete("t")
    assert [one[:2] for one in told(store)[-4:]].count(('["t",1]', "deleted")) == 1
    rebuilt(store)


# Together or not at all


def test_what_is_rolled_back_is_not_told(store: Store):
    store.config.set("before", 1)
    before = store.events.last_position()
    with pytest.raises(Undo), store.transaction() as work:
        work.agents.register("w", id="a")
        work.tasks.enqueue_many([("t", n) for n in range(3)])
        work.config.delete("before")
        raise Undo
    assert store.events.last_position() == before
    with store.transaction() as work:
        work.config.set("one", 1)
        with pytest.raises(Undo), work.transaction() as inner:
            inner.config.set("two", 2)
            raise Undo
        with pytest.raises(Conflict):
            work.config.compare_and_set("one", 3, expected=7)
        work.config.set("three", 3)
    assert [key for key, *_ in told(store)] == ["before", "one", "three"]
    rebuilt(store)


def test_a_row_changed_again_and_again_in_one_transaction(store: Store):
    with store.transaction() as work:
        for n in range(5):
            work.config.set("k", n)
        work.agents.register("w", id="a")
        work.agents.delete("a")
        work.agents.register("w", id="a", name="again")
    assert [data.get("value") for key, _, data in told(store, "swarm_config")] == list(range(5))
    assert [what for _, what, _ in told(store, "agents")] == ["inserted", "deleted", "inserted"]
    rebuilt(store)


# On and off


def test_a_store_is_not_journaled_unless_asked(database):
    store = database.open()
    store.config.set("k", 1)
    assert store.journal.status() is None
    assert store.events.count() == 0
    assert store.journal.stop() is False
    with pytest.raises(NotFound, match="no journal was kept"):
        store.journal.rebuild()


def test_it_begins_with_what_is_there(database, clock):
    store = database.open(clock=clock)
    store.events.append("mine", [NewEvent("t")], type="mine")
    random_one = Unruly(store, clock, random.Random(3))
    for _ in range(300):
        random_one.step()
    before = {table.name: len(store.execute(select(*table.primary_key))) for table in triggers.TABLES}
    assert sum(map(bool, before.values())) >= 8
    since = store.journal.start()
    assert (since.started_at, since.after) == (clock.now, 1)
    assert store.journal.start() == store.journal.status() == since
    assert {what for _, what, _ in told(store)} == {"inserted"}
    assert rebuilt(store).rows == before
    for _ in range(50):
        random_one.step()
    rebuilt(store)


def test_stopped_it_tells_nothing_and_started_again_it_begins_anew(store: Store):
    store.config.set("k", 1)
    store.config.set("gone", 1)
    assert store.journal.stop() is True
    store.config.set("k", 2)
    store.config.set("l", 2)
    store.execute(delete(schema.swarm_config).where(schema.swarm_config.c.key == "gone"))
    assert store.journal.status() is None
    assert len(told(store)) == 2
    with pytest.raises(NotFound, match="no journal was kept"):
        store.journal.rebuild()
    store.journal.start()
    assert [event.event_type for event in store.events.read("journal")] == ["journal.started", "journal.stopped", "journal.started"]
    assert [event.sequence_number for event in store.events.read("k", type="journal.swarm_config")] == [1, 2]
    rebuilt(store)
    assert store.journal.stop()
    assert store.journal.stop() is False


@pytest.mark.needs("persistent")
def test_it_is_a_property_of_the_database(database):
    with database.open(journal=True) as store:
        since = store.journal.status()
    with database.open() as store:
        store.config.set("k", 1)
        assert store.journal.status() == since
        rebuilt(store)
    with database.open(journal=True, read_only=True) as store:
        assert store.journal.status() == since
        assert len(told(store)) == 1
        rebuilt(store)


@pytest.mark.needs("persistent")
def test_who_may_only_read_does_not_start_it(database):
    database.open().close()
    with pytest.raises(StoreError):
        database.open(journal=True, read_only=True)


@pytest.mark.needs("threads")
def test_started_by_several_at_once_it_begins_once(database):
    stores = [database.open() for _ in range(3)] if database.open().capabilities.processes else [database.open()] * 3
    stores[0].tasks.enqueue_many([("t", n) for n in range(50)])
    at_once = threading.Barrier(len(stores))
    begun = []

    def start(store: Store) -> None:
        at_once.wait()
        begun.append(store.journal.start())

    crowd = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(begun) == 3
    assert len(set(map(repr, begun))) == 1
    assert len(told(stores[0])) == 50
    rebuilt(stores[0])


@pytest.mark.needs("threads")
def test_it_is_started_and_stopped_while_others_write(database):
    store = database.open()
    over = threading.Event()
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            n = 0
            while not over.is_set():
                n += 1
                store.config.set(f"k-{number}-{n % 5}", n)
                with store.transaction() as work:
                    work.agents.register("w", id=f"a-{number}")
                    work.agents.delete(f"a-{number}")
                    work.config.set(f"both-{number}", n)
        except BaseException as error:
            failed.append(error)

    crowd = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in crowd:
        thread.start()
    try:
        for _ in range(3):
            store.journal.start()
            store.journal.rebuild()
            store.journal.stop()
        store.journal.start()
    finally:
        over.set()
        for thread in crowd:
            thread.join()
    assert failed == []
    rebuilt(store)


@pytest.mark.needs("threads")
def test_a_crowd_that_writes_the_same_rows_makes_one_story(database):
    """Many writers of few rows: none is given up for a deadlock, and each row's events add up."""
    store = database.open(journal=True)
    agents = [store.agents.register("w").id for _ in range(4)]
    store.tasks.enqueue_many([("t", n) for n in range(60)])
    failed: list[BaseException] = []
    at_once = threading.Barrier(4)

    def work(number: int) -> None:
        at_once.wait()
        try:
            for n in range(15):
                store.config.set(f"k-{n % 3}", number)
                task = store.tasks.claim(agents[number])
                with store.transaction() as together:
                    if task is not None:
                        together.tasks.complete(task)
                    together.agents.heartbeat(agents[number])
                    together.config.set(f"l-{number}", n)
                    together.events.append(f"s-{n % 2}", [NewEvent("t")], type="mine")
        except BaseException as error:
            failed.append(error)

    crowd = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert failed == []
    rebuilt(store)
    events = store.events.read_all(limit=10_000)
    by_stream: dict[tuple[str, str], list[int]] = {}
    for event in events:
        by_stream.setdefault((event.aggregate_type, event.aggregate_id), []).append(event.sequence_number)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_stream.values())


def test_it_is_not_switched_inside_a_transaction(store: Store):
    with store.transaction() as work:
        with pytest.raises(StoreError, match="inside a transaction"):
            store.journal.stop()
        assert store.journal.start() == store.journal.status()
        work.config.set("k", 1)
    rebuilt(store)


# Anything at all


@settings(max_examples=5, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), steps=st.integers(50, 150))
def test_random_verbs_answer_alike_and_add_up(new_database: Callable[[], Any], seed, steps):
    """A journaled store answers as one that is not, whatever is done; and its journal agrees with its tables."""
    clock = Clock()
    plain, journaled = new_database().open(clock=clock), new_database().open(clock=clock, journal=True)
    one = Unruly(Chorus({"a plain store": plain, "a journaled one": journaled}), clock, random.Random(seed))
    for _ in range(steps):
        one.step()
    rebuilt(journaled)
    plain.close()
    journaled.close()


@pytest.mark.long
def test_ten_thousand_random_operations_add_up(store: Store, clock):
    operations = 2_000 if IN_BROWSER else 10_000  # where everything takes several times as long
    one = Unruly(store, clock, random.Random(5))
    while one.done < operations / 2:
        one.step()
    half = rebuilt(store)
    while one.done < operations:
        one.step()
    whole = rebuilt(store)
    assert whole.events > half.events > operations / 4
    kinds = {kind for (kind,) in store.execute(select(schema.events.c.event_type).distinct())}
    changeable = [table.name for table in triggers.TABLES if table not in (schema.task_dependencies, schema.task_pauses)]
    assert kinds >= {f"{table.name}.{what}" for table in triggers.TABLES for what in ("inserted", "deleted")}
    assert kinds >= {f"{name}.updated" for name in changeable}
    # What it was half way can still be told.
    earlier = store.journal.rebuild(until_position=half.position)
    assert (earlier.rows, earlier.events, earlier.compared) == (half.rows, half.events, False)


# Differences


def test_what_differs_is_named(store: Store):
    for n in range(300):
        store.config.set(f"k-{n}", n)
    store.agents.register("w", id="a")
    store.groups.create("g", id="g")
    store.groups.join("g", "a")
    with behind_its_back(store):
        store.execute(delete(schema.swarm_config).where(schema.swarm_config.c.key == "k-7"))
        store.execute(update(schema.swarm_config).where(schema.swarm_config.c.key == "k-8").values(value=8.0, version=5))
        store.agents.insert(structs.replace(store.agents.get("a"), id="b"))
        store.execute(update(schema.agent_group_members).values(role="lead"))
    found = store.journal.rebuild()
    assert not found.agrees
    assert found.compared
    assert {(one.table, str(one.key), one.what, tuple(one.columns)) for one in found.differences} == {
        ("swarm_config", "k-7", "missing", ()),
        ("swarm_config", "k-8", "changed", ("value", "version")),
        ("agents", "b", "unknown", ()),
        ("agent_group_members", "['g', 'a']", "changed", ("role",)),
    }
    assert found.differing == 4
    with behind_its_back(store):
        store.execute(delete(schema.swarm_config))
    found = store.journal.rebuild()
    assert (found.differing, len(found.differences)) == (302, LISTED)
    with behind_its_back(store):
        store.execute(delete(schema.agents))
    assert store.journal.rebuild().differing == 300 + 1 + 1  # agent, membership; b was never told of


def test_rows_the_journal_has_seen_go_are_unknown_when_they_are_back(store: Store):
    store.config.set("k", 1)
    store.execute(delete(schema.swarm_config))
    with behind_its_back(store):
        store.config.set("k", 1)
    (difference,) = store.journal.rebuild().differences
    assert (difference.key, difference.what) == ("k", "unknown")


class behind_its_back:  # noqa: N801 - used like a function
    """Lets the tables be changed without the journal noticing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        with self._store._engine.transaction() as run:
            triggers.remove(run)

    def __exit__(self, *_: object) -> None:
        with self._store._engine.transaction() as run:
            triggers.install(run)


def test_triggers_that_were_tampered_with_are_no_journal(store: Store):
    store.config.set("k", 1)
    with store._engine.transaction() as run:
        triggers.remove(run)
    assert store.journal.status() is None
    store.config.set("k", 2)
    store.journal.start()
    rebuilt(store)
    with store._engine.transaction() as run:
        triggers.remove(run)
        run.execute(text(triggers._WORDS[run.dialect.name].create(schema.agents)[0]), {})
    assert store.journal.stop() is True
    store.agents.register("w")
    assert told(store, "agents") == []


def run_all(store: Store, *statements: str) -> None:
    with store.transaction() as work:
        for statement in statements:
            work.execute(text(statement))


def test_a_trigger_of_one_s_own_is_none_of_the_journal_s_whatever_its_name(store: Store):
    since = store.journal.status()
    run_all(store, "CREATE TABLE entries (x BIGINT)", "CREATE TABLE journal_of_entries (x BIGINT)")
    if database_is_sqlite(store):
        run_all(
            store,
            "CREATE TRIGGER journal_entries AFTER INSERT ON entries BEGIN INSERT INTO journal_of_entries VALUES (new.x); END",
            "CREATE TRIGGER journal_too AFTER INSERT ON swarm_config BEGIN INSERT INTO entries VALUES (2); END",
        )
    else:
        run_all(
            store,
            """CREATE FUNCTION journal_entries() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO journal_of_entries VALUES (new.x); RETURN NULL; END'""",
            "CREATE TRIGGER journal_changed AFTER INSERT ON entries FOR EACH ROW EXECUTE FUNCTION journal_entries()",
            "CREATE FUNCTION too() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO entries VALUES (2); RETURN NULL; END'",
            "CREATE TRIGGER journal_too AFTER INSERT ON swarm_config FOR EACH ROW EXECUTE FUNCTION too()",
        )
    assert store.journal.status() == since
    assert store.journal.start() == since
    assert [event.event_type for event in store.events.read("journal")] == ["journal.started"]
    store.config.set("k", 1)
    rebuilt(store)
    assert store.journal.stop()
    run_all(store, "INSERT INTO entries VALUES (1)")
    assert sorted(x for (x,) in store.execute(text("SELECT x FROM journal_of_entries"))) == [1, 2]
    # And does not stand in for one of the journal's.
    store.journal.start()
    with store._engine.transaction() as run:
        run.execute(text(triggers._WORDS[run.dialect.name].drop(schema.task_pauses)[0]), {})
    assert store.journal.status() is None


@pytest.mark.parametrize("what", ["function", "trigger"])
def test_a_trigger_replaced_by_another_of_its_name_is_none_of_the_journal_s(store: Store, what):
    if database_is_sqlite(store):
        run_all(
            store,
            "DROP TRIGGER journal_swarm_config_updated",
            "CREATE TRIGGER journal_swarm_config_updated AFTER UPDATE ON swarm_config BEGIN SELECT 1; END",
        )
    elif what == "function":
        run_all(store, "CREATE OR REPLACE FUNCTION journal_swarm_config() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    else:
        run_all(
            store,
            "DROP TRIGGER journal_updated ON swarm_config",
            "CREATE FUNCTION another() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER journal_updated AFTER UPDATE ON swarm_config FOR EACH ROW EXECUTE FUNCTION another()",
        )
    store.config.set("k", 1)
    store.config.set("k", 2)
    assert not store.journal.rebuild().agrees
    assert store.journal.status() is None
    store.journal.start()
    store.config.set("k", 3)
    rebuilt(store)


def test_an_event_of_somebody_else_s_making_is_named(store: Store):
    store.config.set("k", 1)
    for event_type, data in [
        ("swarm_config.updated", '{"value": 2}'),  # of a row that is not there
        ("swarm_config.inserted", '{"key": "x"}'),
        ("swarm_config.inserted", '{"nonsense": 1}'),
        ("swarm_config.inserted", "[]"),
        ("nonsense", "{}"),
    ]:
        store.execute(
            insert(schema.events).values(
                id=(id := f"forged {event_type} {data}"), aggregate_id="x", aggregate_type="journal.swarm_config", event_type=event_type,
                event_data=codec.decode(data), timestamp=1, sequence_number=len(store.events.read("x")) + 1,
            )
        )  # fmt: skip
        with pytest.raises(CorruptRow, match="cannot be one of the journal's") as caught:
            store.journal.rebuild()
        assert caught.value.data["id"] == id
        store.journal.stop()
        store.journal.start()
        rebuilt(store)


def test_an_earlier_schema_s_journal_is_not_taken_for_this_one_s(store: Store):
    position = store.events.last_position()
    store.config.set("k", 1)
    with store.transaction() as work:
        work.execute(text("DROP TRIGGER events_no_update" if database_is_sqlite(store) else "ALTER TABLE events DISABLE TRIGGER USER"))
        work.execute(
            update(schema.events).where(schema.events.c.event_type == triggers.STARTED).values(event_data={"after": 0, "revision": "0000"})
        )
    with pytest.raises(SchemaMismatch, match="0000"):
        store.journal.rebuild(until_position=position)


def database_is_sqlite(store: Store) -> bool:
    with store._engine.read() as run:
        return run.dialect.name == "sqlite"


@pytest.mark.parametrize("position", [-1, 1.5, "1", True])
def test_a_position_that_is_none_is_refused(store: Store, position):
    with pytest.raises(InvalidValue):
        store.journal.rebuild(until_position=position)
