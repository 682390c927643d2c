"""The plain verbs, the same on every noun: insert, update with a version check, replace, upsert, delete, find, count, pages."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
from msgspec import Struct, structs
from sqlalchemy import false, select, update

from ruv_swarm_store import Agent, ConfigEntry, Conflict, Group, InvalidValue, Message, Metric, NewEvent, NotFound, Store, Task, schema
from ruv_swarm_store.entities import AgentStatus, Audience, TaskStatus
from ruv_swarm_store.errors import StoreError, Unavailable
from ruv_swarm_store.events import Upcasters
from ruv_swarm_store.groups import Groups
from ruv_swarm_store.repository import repeatable


class Noun(Struct):
    """How to make rows of one noun, and what may be changed on one."""

    table: str
    make: Callable[[int], Any]
    """A new entity; for metrics the number is the store's."""
    change: Callable[[Any, int], Any]
    managed: dict[str, Any]
    """Columns of which the plain verbs accept no other value."""
    generated: str | None = None
    key: str = "id"

    def repository(self, store: Any) -> Any:
        return getattr(store, {"swarm_config": "config", "agent_groups": "groups"}.get(self.table, self.table))

    def identity(self, entity: Any) -> Any:
        return getattr(entity, self.key)


NOUNS = [
    Noun(
        "agents",
        lambda n: Agent(f"id-{n:04}", f"type-{n}", n, n, name=f"name-{n}", capabilities=[n, 1.0], configuration={"n": n}),
        lambda agent, n: structs.replace(agent, type=f"changed-{n}", name=f"other-{n}", configuration={"n": [n]}),
        {"status": AgentStatus.BUSY, "created_at": 1_000, "terminated_at": 5},
    ),
    Noun(
        "tasks",
        lambda n: Task(f"id-{n:04}", f"type-{n}", {"n": n}, n, priority=n % 101, unique_key=f"key-{n}"),
        lambda task, n: structs.replace(task, payload=[n], priority=n % 101, max_retries=n),
        {
            "status": TaskStatus.CANCELLED, "agent_id": "somebody", "parent_task_id": "other", "result": 1, "error_message": "x",
            "run_at": 1, "assigned_at": 1, "started_at": 1, "completed_at": 1, "fence": 7, "retry_count": 7, "created_at": 1_000,
        },
        "position",
    ),
    Noun(
        "messages",
        lambda n: Message(f"id-{n:04}", f"topic-{n}", {"n": n}, n, correlation_id=f"c-{n}"),
        lambda message, n: structs.replace(message, content=[n], topic=f"changed-{n}"),
        {"audience": Audience.DIRECT, "timestamp": 1_000, "from_agent": "somebody", "to_agent": "somebody", "to_group": "something"},
        "position",
    ),
    Noun(
        "metrics",
        lambda n: Metric(f"name-{n}", n / 7, n, "gauge", "ms", None, {"n": n}),
        lambda metric, n: structs.replace(metric, value=n / 3, tags={"n": [n]}),
        {},
        "id",
    ),
    Noun(
        "agent_groups",
        lambda n: Group(f"id-{n:04}", f"name-{n}", "type", n, {"n": n}),
        lambda group, n: structs.replace(group, name=f"changed-{n}", configuration={"n": [n]}),
        {"created_at": 1_000},
    ),
    Noun(
        "swarm_config",
        lambda n: ConfigEntry(f"id-{n:04}", {"n": n}, n, "me"),
        lambda entry, n: structs.replace(entry, value=[n], updated_by="you", updated_at=n),
        {},
        key="key",
    ),
]  # fmt: skip


@pytest.fixture(params=NOUNS, ids=lambda noun: noun.table)
def noun(request: pytest.FixtureRequest) -> Noun:
    return request.param


@pytest.fixture
def rows(store: Store, noun: Noun):
    return noun.repository(store)


def stored(store: Store, noun: Noun) -> list[Any]:
    return list(noun.repository(store).find_all())


# Writing


def test_insert_stores_the_entity_as_it_is(store: Store, noun: Noun, rows):
    entity = noun.make(1)
    inserted = rows.insert(entity)
    expected = entity if noun.generated is None else structs.replace(entity, **{noun.generated: getattr(inserted, noun.generated)})
    assert inserted == expected
    assert rows.find_by_id(noun.identity(inserted)) == rows.find_by_id(inserted) == inserted
    assert rows.find_all() == [inserted]


def test_insert_many_keeps_the_order(store: Store, noun: Noun, rows):
    inserted = rows.insert_many(noun.make(n) for n in range(1, 30))
    assert rows.find_all() == inserted
    assert rows.insert_many([]) == []
    if noun.generated is not None:
        numbers = [getattr(entity, noun.generated) for entity in inserted]
        assert numbers == list(range(numbers[0], numbers[0] + 29))


def test_insert_many_is_all_or_none(store: Store, noun: Noun, rows):
    first = rows.insert(noun.make(1))
    entities = [noun.make(n) for n in range(2, 6)]
    wrong: list[Any] = [..., NewEvent("t"), structs.replace(noun.make(9), version=0), structs.replace(noun.make(9), version="1")]
    if noun.table != "metrics":
        wrong += [noun.make(1), noun.make(3), structs.replace(noun.make(9), **{noun.key: None})]
    for bad in wrong:
        with pytest.raises(StoreError):
            rows.insert_many([*entities[:3], bad, *entities[3:]])
        assert rows.find_all() == [first]


@pytest.mark.parametrize("noun", [noun for noun in NOUNS if noun.table != "metrics"], indirect=True, ids=lambda noun: noun.table)
def test_an_id_is_taken_only_once(store: Store, noun: Noun, rows):
    first = rows.insert(noun.make(1))
    with pytest.raises(Conflict) as caught:
        rows.insert(structs.replace(noun.make(2), **{noun.key: noun.identity(first)}))
    assert caught.value.data["kind"] == "unique"
    assert rows.find_all() == [first]


def test_update_stores_the_copy_under_a_new_version(store: Store, noun: Noun, rows):
    first, other = rows.insert_many([noun.make(1), noun.make(2)])
    updated = rows.update(noun.change(first, 9))
    assert updated == structs.replace(noun.change(first, 9), version=2)
    assert rows.find_by_id(noun.identity(first)) == updated
    assert rows.find_by_id(noun.identity(other)) == other
    again = rows.update(noun.change(updated, 10))
    assert again.version == 3


def test_update_refuses_a_copy_that_is_stale(store: Store, noun: Noun, rows):
    first = rows.insert(noun.make(1))
    current = rows.update(noun.change(first, 2))
    with pytest.raises(Conflict) as caught:
        rows.update(noun.change(first, 3))
    assert (caught.value.data["expected"], caught.value.data["actual"]) == (1, 2)
    assert rows.find_by_id(noun.identity(first)) == current


def test_update_of_nothing_is_not_found(store: Store, noun: Noun, rows):
    for change in (rows.update, rows.replace):
        with pytest.raises(NotFound):
            change(noun.make(1))
    assert rows.find_all() == []


def test_update_many_is_all_or_none(store: Store, noun: Noun, rows):
    entities = rows.insert_many(noun.make(n) for n in range(1, 5))
    rows.update(noun.change(entities[2], 50))
    before = rows.find_all()
    with pytest.raises(Conflict):
        rows.update_many(noun.change(entity, 60 + n) for n, entity in enumerate(entities))
    assert rows.find_all() == before
    updated = rows.update_many(noun.change(entity, 60 + n) for n, entity in enumerate(before))
    assert rows.find_all() == updated
    assert [entity.version for entity in updated] == [2, 2, 3, 2]


def test_update_refuses_what_only_the_noun_s_own_verbs_change(store: Store, noun: Noun, rows):
    first = rows.insert(noun.make(1))
    for column, value in noun.managed.items():
        with pytest.raises(InvalidValue, match=column):
            rows.update(structs.replace(noun.change(first, 2), **{column: value}))
        assert rows.find_by_id(noun.identity(first)) == first


def test_replace_is_the_last_write_whatever_the_version(store: Store, noun: Noun, rows):
    first = rows.insert(noun.make(1))
    rows.update(noun.change(first, 2))
    replaced = rows.replace(structs.replace(noun.change(first, 3), **noun.managed))
    assert replaced == structs.replace(noun.change(first, 3), version=3)
    assert rows.find_by_id(noun.identity(first)) == replaced


def test_upsert_inserts_and_then_replaces(store: Store, noun: Noun, rows):
    first = rows.upsert(noun.make(1))
    assert first == rows.find_all()[0]
    second = rows.upsert(structs.replace(noun.change(first, 2), version=1))
    assert second == structs.replace(noun.change(first, 2), version=2)
    assert rows.find_all() == [second]
    assert rows.upsert(noun.make(3)).version == 1
    assert rows.count() == 2


def test_delete_says_whether_there_was_anything(store: Store, noun: Noun, rows):
    a, b, c, d = rows.insert_many(noun.make(n) for n in range(1, 5))
    assert rows.delete(a)
    assert not rows.delete(a)
    assert rows.delete(noun.identity(b))
    assert rows.find_by_id(noun.identity(b)) is None
    assert rows.delete_many([c, noun.identity(c), noun.identity(a), d]) == 2
    assert rows.delete_many([]) == 0
    assert rows.count() == 0


# Reading


def test_reading_what_is_not_there(store: Store, noun: Noun, rows):
    missing = 987_654 if noun.table == "metrics" else "missing"
    assert rows.find_by_id(missing) is None
    assert rows.find_many([missing] if noun.table != "metrics" else []) == []
    assert rows.find_all() == []
    assert rows.count() == 0
    assert not rows.exists(missing)
    assert list(rows.pages()) == []
    if noun.table != "swarm_config":  # there `get` has a default
        with pytest.raises(NotFound, match=str(missing)) as caught:
            rows.get(missing)
        assert caught.value.data["id"] == missing


def test_reading_what_is_there(store: Store, noun: Noun, rows):
    entities = rows.insert_many(noun.make(n) for n in range(1, 8))
    assert rows.count() == 7
    assert rows.exists(noun.identity(entities[3]))
    assert rows.exists(entities[3])
    assert rows.find_by_id(noun.identity(entities[3])) == entities[3]
    assert rows.get(noun.identity(entities[3])) == (entities[3].value if noun.table == "swarm_config" else entities[3])
    wanted = [noun.identity(entities[n]) for n in (5, 1, 5)] + ([] if noun.table == "metrics" else ["missing"])
    assert sorted(rows.find_many(wanted), key=noun.identity) == [entities[1], entities[5]]
    assert list(rows.query()) == rows.query().all()
    assert sorted(rows.query(), key=noun.identity) == entities


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_pages_hold_every_row_once(store: Store, noun: Noun, rows, size):
    entities = rows.insert_many(noun.make(n) for n in range(1, 8))
    pages = list(rows.pages(size))
    assert [entity for page in pages for entity in page] == entities
    assert all(len(page) == size for page in pages[:-1])
    assert 1 <= len(pages[-1]) <= size


def test_pages_are_undisturbed_by_writes_between_them(store: Store, noun: Noun, rows):
    entities = rows.insert_many(noun.make(n) for n in range(10, 30))
    seen = []
    for number, page in enumerate(rows.pages(4)):
        seen += page
        rows.delete(page[0])
        if number == 1:
            rows.insert(noun.make(1))
            rows.delete(entities[9])
            later = rows.insert(noun.make(99))
    ids = [noun.identity(entity) for entity in seen]
    assert len(ids) == len(set(ids))
    gone = noun.identity(entities[9])
    assert [noun.identity(e) for e in entities if noun.identity(e) != gone] == [i for i in ids if i in {noun.identity(e) for e in entities}]
    assert noun.identity(later) in ids


@pytest.mark.parametrize("size", [0, -1, None, 1.5])
def test_a_page_has_a_size(store: Store, noun: Noun, rows, size):
    with pytest.raises(InvalidValue):
        list(rows.pages(size))


def test_core_statements_see_the_same_values(store: Store, noun: Noun, rows):
    entity = rows.insert(noun.make(1))
    table = schema.metadata.tables[noun.table]
    [row] = store.execute(select(table))
    assert tuple(row) == structs.astuple(entity)
    assert [type(value) for value in row] == [type(value) for value in structs.astuple(entity)]


# Rows damaged from outside


JSON_COLUMNS = [
    ("agents", "capabilities"), ("agents", "configuration"), ("tasks", "payload"), ("tasks", "result"), ("messages", "content"),
    ("metrics", "tags"), ("agent_groups", "configuration"), ("swarm_config", "value"),
]  # fmt: skip
CHOICES = [("agents", "status"), ("tasks", "status"), ("tasks", "on_dependency_failure"), ("messages", "audience")]


@pytest.mark.parametrize(("table", "column"), JSON_COLUMNS + CHOICES)
def test_a_damaged_row_is_named_and_hides_no_other(database, store: Store, table, column):
    noun = next(noun for noun in NOUNS if noun.table == table)
    rows = noun.repository(store)
    a, b, c = rows.insert_many(noun.make(n) for n in (1, 2, 3))
    broken = noun.identity(b)
    database.damage(
        store, schema.metadata.tables[table], noun.key, broken, column, "{not" if (table, column) in JSON_COLUMNS else "nonsense"
    )
    for read in (
        lambda: rows.get(broken),
        lambda: rows.get(b),
        lambda: rows.find_by_id(broken),
        lambda: rows.find_many([broken]),
        lambda: rows.find_all(),
        lambda: rows.query().all(),
        lambda: list(rows.pages()),
    ):
        with pytest.raises(StoreError) as caught:
            read()
        assert type(caught.value).__name__ == "CorruptRow"
        assert (caught.value.data["table"], caught.value.data["id"], caught.value.data["column"]) == (table, broken, column)
        assert table in str(caught.value)
        assert repr(broken) in str(caught.value)
    assert rows.find_by_id(noun.identity(a)) == a
    assert rows.count() == 3
    assert rows.exists(broken)
    assert rows.find_all(on_corrupt="skip") == [a, c]
    assert sorted(rows.query().all(on_corrupt="skip"), key=noun.identity) == [a, c]
    collected: list[Any] = []
    assert rows.find_all(on_corrupt=collected.append) == [a, c]
    for look in (rows.find_all, rows.query().all, rows.where(false()).all):  # whether there is a damaged row or not
        with pytest.raises(InvalidValue, match="skp"):
            look(on_corrupt="skp")
    assert [error.data["id"] for error in collected] == [broken]
    assert rows.delete(broken)
    assert rows.find_all() == [a, c]


# Statements of one's own


def test_execute_runs_any_statement(store: Store):
    store.tasks.enqueue_many([("a", 1), ("b", 2), ("a", 3)])
    t = schema.tasks.c
    assert store.execute(select(t.type, t.payload).where(t.type == "a").order_by(t.position)) == [("a", 1), ("a", 3)]
    assert store.execute(select(t.payload).where(t.type == "b").union_all(select(t.payload).where(t.type == "c"))) == [(2,)]
    assert store.execute(update(schema.tasks).where(t.type == "b").values(payload={"changed": 1.0}).returning(t.payload)) == [
        ({"changed": 1.0},)
    ]
    assert store.execute(schema.tasks.delete().where(t.type == "a")) == []
    assert [task.payload for task in store.tasks.find_all()] == [{"changed": 1.0}]


@pytest.mark.parametrize("statement", ["SELECT 1", None, 5, ...], ids=repr)
def test_execute_takes_statements_not_text(store: Store, statement):
    with pytest.raises(InvalidValue):
        store.execute(statement)


def test_execute_checks_the_values_of_typed_columns(store: Store):
    store.tasks.enqueue("t")
    with pytest.raises(InvalidValue, match="TaskStatus"):
        store.execute(update(schema.tasks).values(status="sleeping"))
    with pytest.raises(StoreError):
        store.execute(update(schema.tasks).values(priority=1_000))
    assert store.tasks.find_all()[0].version == 1


# Deadlocks and serialisation failures


class Trying(Groups):
    """A noun one of whose verbs fails when told to."""

    failures: ClassVar[list[StoreError]] = []
    asked: ClassVar[list[Any]] = []

    @repeatable
    def rename(self, names: Iterable[str], *, more: Iterable[str] = ()) -> int:
        self.asked.append([*names, *more])
        with self._scope.transaction():
            self.create(f"name-{len(self.asked)}")
            if self.failures:
                raise self.failures.pop()
        return len(self.asked)


@pytest.fixture
def trying(store: Store):
    Trying.failures, Trying.asked = [], []
    return lambda scope: Trying(scope._scope)


def given_up(kind: str) -> Unavailable:
    return Unavailable("one of several had to give way", kind=kind)


def test_a_verb_that_had_to_give_way_is_run_again_from_nothing(store: Store, trying):
    Trying.failures = [given_up("deadlock"), given_up("serialization"), given_up("deadlock")]
    assert trying(store).rename(iter("ab"), more=(name for name in "c")) == 4
    assert Trying.asked == [["a", "b", "c"]] * 4
    assert [group.name for group in store.groups.find_all()] == ["name-4"]


def test_it_is_given_up_after_some_repetitions(store: Store, trying):
    Trying.failures = [given_up("deadlock") for _ in range(20)]
    with pytest.raises(Unavailable):
        trying(store).rename(["a"])
    assert len(Trying.asked) == 6
    assert store.groups.count() == 0


@pytest.mark.parametrize("error", [given_up("connection"), Unavailable("no kind"), Conflict("no"), InvalidValue("no")], ids=repr)
def test_other_failures_are_not_repeated(store: Store, trying, error):
    Trying.failures = [error]
    with pytest.raises(type(error)):
        trying(store).rename(["a"])
    assert len(Trying.asked) == 1


def test_inside_a_unit_of_work_the_whole_is_for_its_owner_to_repeat(store: Store, trying):
    for scope in ("unit", "store"):
        Trying.failures, Trying.asked = [given_up("deadlock")], []
        with store.transaction() as work, pytest.raises(Unavailable):
            trying(work if scope == "unit" else store).rename(["a"])
        assert len(Trying.asked) == 1
    assert store.groups.count() == 0


def test_a_key_is_one_that_there_could_be(store: Store):
    """Whatever else is given for one is refused before any engine sees it, and in the same words."""
    task, agent, metric = store.tasks.enqueue("t", id="same"), store.agents.register("t", id="same"), store.metrics.record("m", 1)
    store.config.set("same", 1)
    group = store.groups.create("g")
    for bad in (["x"], {"x": 1}, 1.5, 5, True, b"x", None, "a\0b", "\ud800", metric):
        for verb in (
            store.agents.get, store.agents.find_by_id, store.agents.exists, store.agents.delete, store.agents.heartbeat,
            store.agents.terminate, store.tasks.get, store.tasks.delete, store.tasks.children, store.tasks.failures, store.tasks.complete,
            store.tasks.cancel, store.tasks.requeue, store.messages.get, store.messages.delete, store.messages.deliveries, store.events.get,
            store.groups.get, store.groups.delete, store.groups.members, store.groups.groups_of, store.config.get, store.config.entry,
            store.config.delete, store.events.read, lambda bad: store.events.version(bad, type="t"),
            lambda bad: store.events.version("a", type=bad), lambda bad: store.events.fold(bad, 0, max, type="t"),
            lambda bad: list(store.events.walk_stream(bad)), lambda bad: store.agents.set_status(bad, "idle"),
            lambda bad: store.groups.join(bad, agent), lambda bad: store.groups.join(group, bad),
            lambda bad: store.groups.leave(bad, agent), lambda bad: store.groups.leave(group, bad),
            lambda bad: store.agents.find_many([bad]), lambda bad: store.tasks.delete_many([bad]),
            lambda bad: store.agents.heartbeat_many([bad]), lambda bad: store.agents.cached().get(bad),
        ):  # fmt: skip
            with pytest.raises(InvalidValue):
                verb(bad)
    for bad in ("1", 1.0, None, True, [1], 2**63, agent):
        for verb in (store.metrics.get, store.metrics.delete, store.metrics.exists, lambda bad: store.metrics.find_many([bad])):
            with pytest.raises(InvalidValue):
                verb(bad)
    for verb in (store.agents.get, store.agents.delete, store.agents.heartbeat, store.agents.terminate, store.groups.groups_of):
        with pytest.raises(InvalidValue, match="Task"):
            verb(task)
    with store.transaction() as work:
        for bad in (["x"], "a\0b", "\ud800", task):
            with pytest.raises(InvalidValue):
                work.agents.get(bad)
        work.agents.heartbeat(agent)  # and the transaction goes on
    assert (store.agents.get(agent).id, store.tasks.get(task).id, store.config.get("same")) == ("same", "same", 1)


def test_a_list_is_no_single_text(store: Store):
    agent = store.agents.register("t", id="a")
    for act in (
        lambda: store.agents.find_many("abc"),
        lambda: store.agents.delete_many("abc"),
        lambda: store.agents.heartbeat_many("abc"),
        lambda: store.tasks.delete_many("abc"),
        lambda: store.tasks.cancel_many("abc"),
        lambda: store.tasks.requeue_many("abc"),
        lambda: store.tasks.release_many("abc"),
        lambda: store.groups.delete_many("abc"),
        lambda: store.config.delete_many("abc"),
        lambda: store.messages.acknowledge_many("abc", agent),
        lambda: store.agents.cached().find_many("abc"),
        lambda: store.agents.find_many(5),
        lambda: store.agents.find_many(agent),
    ):
        with pytest.raises(InvalidValue, match="list"):
            act()
    assert store.agents.count() == 1


def test_a_number_out_of_range_is_named_with_its_range(store: Store):
    task = store.tasks.enqueue("t")
    for act in (store.tasks.insert, store.tasks.update, store.tasks.replace, store.tasks.upsert):
        for bad, said in (({"priority": 101}, r"tasks\.priority is 101.* 0 to 100"), ({"max_retries": -1}, r"max_retries is -1.* 0 to ")):
            with pytest.raises(InvalidValue, match=said):
                act(structs.replace(task, **bad))
    assert store.tasks.get(task) == task


def test_what_there_is_says_where_it_is(store: Store):
    for thing in (store, store.tasks, store.events, store.journal):
        assert store.address in repr(thing)
        assert " object at " not in repr(thing)
    upcasters = Upcasters()
    upcasters.register("e", 1)(lambda data: data)
    assert repr(upcasters) == "<Upcasters e to 2>"
