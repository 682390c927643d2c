"""What goes in comes out as it was, wherever it is accepted; what cannot is refused before anything is written."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import func, select

from ruv_swarm_store import Agent, ConfigEntry, Conflict, InvalidValue, NewEvent, NewTask, Sample, Store, StoreError, Task, schema
from ruv_swarm_store.engines import IN_BROWSER

AWKWARD = [
    "'; DROP TABLE tasks; --",
    "' OR '1'='1",
    '" OR ""="',
    "'); DELETE FROM agents; --",
    "1; UPDATE tasks SET status='failed'",
    "' UNION SELECT * FROM swarm_config --",
    "admin'--",
    "\\'; SELECT 1; --",
    "%' OR 1=1 --",
    '{"$ne": null}',
    "${jndi:ldap://x}",
    ":name",
    "?",
    "%s %(x)s {} {0}",
    "line\nbreak\r\ntab\tbell\x07escape\x1bdelete\x7f",
    "   leading and trailing   ",
    "null",
    "1",
    "1.0",
    "\u202eright to left\u200b\ufeff",
    "e\u0301 \u00e9 \u1e9b\u0323",
    "\U0001f41d\U0001f469\u200d\U0001f52c",
    "\U0010ffff\ue000\ufffe",
    "\\u0000 \\x00 \\",
    "x" * 10_000,
]


def exact(a: Any, b: Any) -> bool:
    """Equal in value and type, all the way down: 1 is not 1.0. The order of an object's keys is no part of a JSON value."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(exact(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(exact, a, b))
    return a == b


# Options


@pytest.mark.parametrize("now", [1_800_000_000.5, None, "1800000000000", datetime.now(UTC), True, 2**63])
def test_a_clock_that_does_not_count_milliseconds_is_refused(database: Any, now: Any) -> None:
    with pytest.raises(InvalidValue, match=r"clock.*milliseconds since the epoch"):
        database.open(clock=lambda: now)
    with pytest.raises(InvalidValue, match=r"clock.*milliseconds since the epoch"):
        database.open(clock=now)


# Text


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text)[:30])
def test_awkward_text_comes_back_verbatim_from_everywhere(store: Store, text):
    json = {text: [text, {"deep": {text: text}}]}
    agent = store.agents.register(text, name=text, capabilities=[text], configuration=json, id=text)
    assert (agent.id, agent.type, agent.name, agent.capabilities, agent.configuration) == (text, text, text, [text], json)
    assert store.agents.get(text) == agent
    store.agents.heartbeat(text)
    assert store.agents.find_many([text, "other"]) == [agent]

    parent = store.tasks.enqueue("parent", delay=1_000)
    task = store.tasks.enqueue(text, json, id=text, unique_key=text, parent=parent)
    assert store.tasks.enqueue("t", unique_key=text) == task
    assert store.tasks.where(schema.tasks.c.type == text).all() == [task]
    held = store.tasks.claim(text, types=[text])
    assert (held.id, held.agent_id, held.payload) == (text, text, json)
    store.tasks.fail(held, text, delay=0)
    assert (store.tasks.get(text).error_message, store.tasks.failures(text)[0].error_message) == (text, text)
    [held] = store.tasks.claim_many(text, 5, types=["none", text])
    waiting = store.tasks.enqueue("after", depends_on=[text])
    assert store.tasks.complete(held, json) == store.tasks.get(text)
    assert store.tasks.get(text).result == json
    assert store.tasks.get(waiting).status == "pending"
    assert text in store.tasks.stats().counts

    team = store.groups.create(text, type=text, configuration=json, id=text)
    assert store.groups.get(text) == team
    assert store.groups.join(text, text, role=text).role == text
    assert store.groups.members(text)[0].agent_id == text
    assert store.groups.groups_of(text) == [team]

    message = store.messages.publish(text, json, sender=text, to_group=text, correlation_id=text)
    assert store.messages.receive(text, text) == [message]
    assert store.messages.unread(text, text) == 1
    store.messages.acknowledge(message, text)
    assert store.messages.unread(text) == 0
    assert store.messages.get(message.id).content == json

    metric = store.metrics.record(text, 1, agent=text, type=text, unit=text, tags={text: text})
    assert store.metrics.find_all() == [metric]
    [total] = store.metrics.aggregate(text, agent=text, type=text, tags={text: text})
    assert (total.unit, total.count) == (text, 1)

    entry = store.config.set(text, json, by=text)
    assert store.config.entry(text) == entry
    assert store.config.get(text) == json
    assert store.config.prefix(text) == store.config.prefix(text[:-1]) == {text: json}
    assert store.config.compare_and_set(text, text, expected=1).value == text

    assert store.events.append(text, [NewEvent(text, json, json, id=text)], type=text, expected_version=0) == 1
    [event] = store.events.read(text, type=text)
    assert (event.id, event.aggregate_id, event.aggregate_type, event.event_type, event.event_data, event.metadata) == (
        text, text, text, text, json, json,
    )  # fmt: skip
    assert store.events.read_all(types=[text]) == [event]
    assert store.events.version(text, type=text) == 1

    assert store.tasks.count() == 3
    assert store.config.delete(text)
    store.agents.terminate(text)


WRITES: dict[str, Callable[[Store, Any], object]] = {
    "agent type": lambda store, bad: store.agents.register(bad),
    "agent name": lambda store, bad: store.agents.register("t", name=bad),
    "agent id": lambda store, bad: store.agents.register("t", id=bad),
    "capability": lambda store, bad: store.agents.register("t", capabilities=[bad]),
    "agent configuration": lambda store, bad: store.agents.register("t", configuration={"k": bad}),
    "agent configuration key": lambda store, bad: store.agents.register("t", configuration={bad: 1}),
    "inserted agent": lambda store, bad: store.agents.insert(Agent("x", bad, 0, 0)),
    "task type": lambda store, bad: store.tasks.enqueue(bad),
    "task id": lambda store, bad: store.tasks.enqueue("t", id=bad),
    "payload": lambda store, bad: store.tasks.enqueue("t", bad),
    "payload in a batch": lambda store, bad: store.tasks.enqueue_many([("t", 1), ("t", bad), ("t", 2)]),
    "type in a batch": lambda store, bad: store.tasks.enqueue_many([("t", 1), NewTask(bad)]),
    "payload key": lambda store, bad: store.tasks.enqueue("t", {"a": {bad: 1}}),
    "unique key": lambda store, bad: store.tasks.enqueue("t", unique_key=bad),
    "parent": lambda store, bad: store.tasks.enqueue("t", parent=bad),
    "dependency": lambda store, bad: store.tasks.enqueue("t", depends_on=[bad]),
    "inserted task": lambda store, bad: store.tasks.insert(Task("x", "t", {"k": [bad]}, 0)),
    "error message": lambda store, bad: store.tasks.fail("held", bad),
    "result": lambda store, bad: store.tasks.complete("held", bad),
    "results": lambda store, bad: store.tasks.complete_many([("held", [bad])]),
    "topic": lambda store, bad: store.messages.publish(bad),
    "content": lambda store, bad: store.messages.publish("t", {"k": bad}),
    "correlation": lambda store, bad: store.messages.publish("t", correlation_id=bad),
    "sender": lambda store, bad: store.messages.publish("t", sender=bad),
    "recipient": lambda store, bad: store.messages.publish("t", to=bad),
    "metric name": lambda store, bad: store.metrics.record(bad, 1),
    "metric unit": lambda store, bad: store.metrics.record("m", 1, unit=bad),
    "metric type": lambda store, bad: store.metrics.record("m", 1, type=bad),
    "tag": lambda store, bad: store.metrics.record("m", 1, tags={"k": bad}),
    "tag name": lambda store, bad: store.metrics.record_many([Sample("m", 1), Sample("m", 1, tags={bad: 1})]),
    "group name": lambda store, bad: store.groups.create(bad),
    "group configuration": lambda store, bad: store.groups.create("g", configuration={"k": bad}),
    "role": lambda store, bad: store.groups.join("team", "agent", role=bad),
    "config key": lambda store, bad: store.config.set(bad, 1),
    "config value": lambda store, bad: store.config.set("k", [bad]),
    "config value compared": lambda store, bad: store.config.compare_and_set("k", bad, expected=0),
    "config author": lambda store, bad: store.config.set("k", 1, by=bad),
    "inserted config": lambda store, bad: store.config.insert(ConfigEntry("k", bad, 0)),
    "aggregate": lambda store, bad: store.events.append(bad, [NewEvent("t")], type="t"),
    "aggregate type": lambda store, bad: store.events.append("a", [NewEvent("t")], type=bad),
    "event type": lambda store, bad: store.events.append("a", [NewEvent("t"), NewEvent(bad)], type="t"),
    "event data": lambda store, bad: store.events.append("a", [NewEvent("t"), NewEvent("t", {"k": bad})], type="t"),
    "event metadata": lambda store, bad: store.events.append("a", [NewEvent("t", 1, {bad: 1})], type="t"),
    "event id": lambda store, bad: store.events.append("a", [NewEvent("t", id=bad)], type="t"),
}  # fmt: skip


def everything(store: Store) -> dict[str, list[Any]]:
    return {name: list(store.execute(select(table))) for name, table in schema.metadata.tables.items()}


@pytest.mark.parametrize("write", WRITES)
def test_text_no_engine_can_hold_is_refused_and_nothing_is_written(store: Store, write):
    store.agents.register("worker", id="agent")
    store.groups.create("team", id="team")
    store.tasks.enqueue("t", id="held")
    store.tasks.claim("agent")
    before = everything(store)
    for bad in ("a\0b", "\0", "\ud800", "a\udfffb", "\ud83d\ud83d"):
        with pytest.raises(InvalidValue):
            WRITES[write](store, bad)
        assert everything(store) == before


READS: dict[str, Callable[[Store, Any], object]] = {
    "find_by_id": lambda store, bad: store.tasks.find_by_id(bad),
    "get": lambda store, bad: store.agents.get(bad),
    "find_many": lambda store, bad: store.agents.find_many([bad]),
    "exists": lambda store, bad: store.groups.exists(bad),
    "where": lambda store, bad: store.tasks.where(schema.tasks.c.type == bad).all(),
    "heartbeat": lambda store, bad: store.agents.heartbeat(bad),
    "heartbeat_many": lambda store, bad: store.agents.heartbeat_many([bad]),
    "set_status": lambda store, bad: store.agents.set_status(bad, "idle"),
    "terminate": lambda store, bad: store.agents.terminate(bad),
    "delete": lambda store, bad: store.agents.delete(bad),
    "claim": lambda store, bad: store.tasks.claim(bad),
    "claim types": lambda store, bad: store.tasks.claim("agent", types=[bad]),
    "start": lambda store, bad: store.tasks.start(bad),
    "cancel": lambda store, bad: store.tasks.cancel(bad, tree=True),
    "failures": lambda store, bad: store.tasks.failures(bad),
    "children": lambda store, bad: store.tasks.children(bad),
    "receive": lambda store, bad: store.messages.receive(bad),
    "receive topic": lambda store, bad: store.messages.receive("agent", bad),
    "unread": lambda store, bad: store.messages.unread("agent", bad),
    "acknowledge": lambda store, bad: store.messages.acknowledge(bad, "agent"),
    "conversation": lambda store, bad: store.messages.conversation("agent", bad).all(),
    "aggregate": lambda store, bad: store.metrics.aggregate(bad),
    "aggregate agent": lambda store, bad: store.metrics.aggregate("m", agent=bad),
    "aggregate tag": lambda store, bad: store.metrics.aggregate("m", tags={"a": bad}),
    "join": lambda store, bad: store.groups.join(bad, "agent"),
    "leave": lambda store, bad: store.groups.leave("team", bad),
    "members": lambda store, bad: store.groups.members(bad),
    "groups_of": lambda store, bad: store.groups.groups_of(bad),
    "config get": lambda store, bad: store.config.get(bad),
    "config delete": lambda store, bad: store.config.delete(bad),
    "prefix": lambda store, bad: store.config.prefix(bad),
    "read": lambda store, bad: store.events.read(bad),
    "read type": lambda store, bad: store.events.read("a", type=bad),
    "read_all types": lambda store, bad: store.events.read_all(types=[bad]),
    "version": lambda store, bad: store.events.version(bad, type="t"),
}


@pytest.mark.parametrize("read", READS)
def test_looking_for_what_cannot_be_there_is_an_error_of_ours_or_finds_nothing(store: Store, read):
    store.agents.register("worker", id="agent")
    store.groups.create("team", id="team")
    before = everything(store)
    for bad in ("\ud800", 2**70, b"bytes", ...):
        try:
            assert not READS[read](store, bad)
        except StoreError:
            pass
    assert everything(store) == before


# JSON


NOT_JSON = [
    math.nan, math.inf, -math.inf, {1: 2}, {None: 1}, {True: 1}, {1.5: 1}, {"a": {(1, 2): 3}}, {1, 2}, b"bytes", bytearray(b"x"), ...,
    1j, range(3), [[[{"x": math.nan}]]], {"deep": [{"er": {5: 6}}]},
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_JSON, ids=repr)
def test_what_is_not_json_is_refused_with_its_place(store: Store, value):
    for write in (
        lambda: store.tasks.enqueue("t", {"outer": [1, value]}),
        lambda: store.tasks.enqueue_many([("t", 1), ("t", {"outer": [1, value]})]),
        lambda: store.config.set("k", {"outer": [1, value]}),
        lambda: store.messages.publish("t", {"outer": [1, value]}),
        lambda: store.events.append("a", [NewEvent("t"), NewEvent("t", {"outer": [1, value]})], type="t"),
        lambda: store.agents.register("t", configuration={"outer": [1, value]}),
    ):
        with pytest.raises(InvalidValue, match=r"\['outer'\]\[1\]"):
            write()
    assert all(not rows for name, rows in everything(store).items() if name != "schema_migrations")


def test_types_that_only_look_like_json_are_refused(store: Store):
    import dataclasses
    import datetime
    import decimal
    import enum
    import uuid

    @dataclasses.dataclass
    class Data:
        x: int = 1

    class Number(enum.Enum):
        ONE = 1

    for value in (
        Data(), decimal.Decimal("1.5"), uuid.UUID(int=1), datetime.date(2026, 1, 1), datetime.timedelta(1), Number.ONE, NewEvent("t"),
        frozenset(),
    ):  # fmt: skip
        with pytest.raises(InvalidValue):
            store.tasks.enqueue("t", [value])
    assert store.tasks.count() == 0


def test_subclasses_are_stored_as_what_they_are(store: Store):
    import collections
    import enum

    class Colour(enum.StrEnum):
        RED = "red"

    class Size(enum.IntEnum):
        BIG = 7

    payload = collections.OrderedDict(b=Colour.RED, a=(Size.BIG, collections.defaultdict(int, x=1)))
    task = store.tasks.enqueue(Colour.RED, payload, priority=Size.BIG)
    expected = {"b": "red", "a": [7, {"x": 1}]}
    for found in (task, store.tasks.get(task)):
        assert exact(found.payload, expected)
        assert exact(found.type, "red")


def test_subclasses_of_text_and_numbers_become_what_they_hold(store: Store):
    import enum

    class Text(str):
        __slots__ = ()

    class Whole(int):
        pass

    class Fraction(float):  # as numpy.float64 is
        pass

    class Half(float, enum.Enum):
        HALF = 0.5

    payload = {
        Text("a"): Fraction(1.5),
        "b": [Whole(2**63), (Text("x"), True, None)],
        "c": {Text("\U0001f41d"): Half.HALF},
        "d": Fraction(1e16),
    }
    expected = {"a": 1.5, "b": [2**63, ["x", True, None]], "c": {"\U0001f41d": 0.5}, "d": 1e16}
    task = store.tasks.enqueue(Text("t"), payload, priority=Whole(7))
    [many] = store.tasks.enqueue_many([(Text("t"), payload)])
    for found in (task, many, store.tasks.get(task), store.tasks.get(many)):
        assert exact(found.payload, expected)
        assert exact(found.type, "t")
    assert exact(task.priority, 7)
    assert exact(store.metrics.record("m", Fraction(1.5)).value, 1.5)
    for bad in (Fraction("nan"), Fraction("inf"), Text("a\0b"), Text("\ud800"), {Text("\0"): 1}):
        with pytest.raises(InvalidValue):
            store.tasks.enqueue("t", [bad])
    assert store.tasks.count() == 2


def test_nesting_is_deep_but_not_endless(store: Store):
    def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
        value: Any = []
        for _ in range(depth):
            value = wrap(value)
        return value

    for wrap in (lambda value: [value], lambda value: {"k": value}, lambda value: [1, {"k": value}]):
        value = nested(100, wrap)
        assert store.tasks.get(store.tasks.enqueue("t", value)).payload == value
        for depth in (600, 1_500 if IN_BROWSER else 5_000):  # deeper ones Python itself cannot free there
            with pytest.raises(InvalidValue, match="nested"):
                store.tasks.enqueue("t", nested(depth, wrap))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidValue):
        store.tasks.enqueue("t", endless)
    assert store.tasks.count() == 3


def test_a_megabyte_comes_back_whole(store: Store):
    text = "\U0001f41d'\"\\\n" * 120_000
    values = [text, {"k": [text[:500_000], 1.0]}, list(range(150_000)), {f"key {n}": {"n": n} for n in range(30_000)}]
    for value in values:
        assert exact(store.tasks.get(store.tasks.enqueue("t", value)).payload, value)
    store.config.set("k", values)
    assert exact(store.config.get("k"), values)


NUMBERS = [
    0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 2**100, -(2**200), 10**300, 0.0, -0.0, 1.0, -1.0, 1e3,
    1e16, 1e22, 1e23, 1.5, 0.1, 1 / 3, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 123456789.123456789,
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_a_number_keeps_its_value_and_its_type(store: Store, number):
    for value in (number, [number], {"n": number}):
        task = store.tasks.enqueue("t", value)
        assert exact(task.payload, value)
        assert exact(store.tasks.get(task).payload, value)
        assert exact(store.execute(select(schema.tasks.c.payload).where(schema.tasks.c.id == task.id))[0][0], value)


@pytest.mark.parametrize("value", [None, False, True, "", [], {}, [[]], [{}], {"": None}, [None], " ", "null"], ids=repr)
def test_nothing_and_emptiness_stay_apart(store: Store, value):
    task = store.tasks.enqueue("t", value)
    assert exact(store.tasks.get(task).payload, value)
    store.config.set("k", value)
    assert exact(store.config.get("k", "missing"), value)
    store.events.append("a", [NewEvent("t", value, value)], type="t")
    [event] = store.events.read("a")
    assert exact(event.event_data, value)
    assert exact(event.metadata, value)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NUMBER = st.integers() | st.sampled_from(NUMBERS) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=25,
)


def test_any_json_makes_the_round_trip_exactly(store: Store):
    @given(st.lists(JSON, min_size=5, max_size=5))
    @example([{"n": [2**63 - 1, -(2**63), 2**64]}, 1.0, 1e3, [], {"\U0001f41d": {}}])
    def round_trip(values: list[Any]) -> None:
        with store.transaction() as work:
            tasks = work.tasks.enqueue_many([("t", value) for value in values])
            agent = work.agents.register("t", capabilities=values, configuration={"k": values})
            message = work.messages.publish("t", values)
            work.config.set("k", values)
            work.events.append(agent.id, [NewEvent("t", value, value) for value in values], type="t")
            metric = work.metrics.record("m", 1, tags={"k": values})
        assert all(exact(task.payload, value) for task, value in zip(tasks, values, strict=True))
        assert all(exact(store.tasks.get(task).payload, value) for task, value in zip(tasks, values, strict=True))
        assert exact(store.agents.get(agent).capabilities, values)
        assert exact(store.agents.get(agent).configuration, {"k": values})
        assert exact(store.messages.get(message).content, values)
        assert exact(store.config.get("k"), values)
        events = store.events.read(agent.id)
        assert all(exact([event.event_data, event.metadata], [value, value]) for event, value in zip(events, values, strict=True))
        assert exact(store.metrics.get(metric).tags, {"k": values})

    round_trip()


INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0])
COUNT = st.integers(0, 2**63 - 1)


def test_any_entity_makes_the_round_trip_exactly(store: Store):
    tasks = st.builds(
        Task,
        id=st.uuids().map(str),
        type=TEXT,
        payload=JSON,
        created_at=INT64,
        priority=st.integers(0, 100),
        result=JSON,
        error_message=st.none() | TEXT,
        run_at=st.none() | INT64,
        assigned_at=st.none() | INT64,
        started_at=st.none() | INT64,
        fence=COUNT,
        retry_count=COUNT,
        max_retries=COUNT,
        on_dependency_failure=st.sampled_from(["cancel", "fail"]),
        version=st.integers(1, 2**63 - 1),
    )
    agents = st.builds(
        Agent, id=st.uuids().map(str), type=TEXT, created_at=INT64, last_heartbeat=INT64, capabilities=JSON, configuration=JSON,
        version=st.integers(1, 2**63 - 1),
    )  # fmt: skip
    entries = st.builds(ConfigEntry, key=TEXT, value=JSON, updated_at=INT64, updated_by=st.none() | TEXT, version=st.integers(1, 2**63 - 1))

    @given(tasks, agents, entries)
    def round_trip(task: Task, agent: Agent, entry: ConfigEntry) -> None:
        for repository, entity in ((store.tasks, task), (store.agents, agent), (store.config, entry)):
            stored: Any = repository.insert(entity)
            assert repository.find_by_id(stored) == stored
            for name in entity.__struct_fields__:
                if name != "position":
                    value, expected = getattr(stored, name), getattr(entity, name)
                    assert exact(value, expected) or value == expected == str(value)  # a status given as text is its member
            store.execute(repository.mapping.table.delete())  # a deleted key's version would go on

    round_trip()


def test_every_row_written_here_is_valid_to_the_database(store: Store):
    store.tasks.enqueue_many([("t", value) for value in NUMBERS])
    assert store.check() == []
    assert store.execute(select(func.count()).select_from(schema.tasks)) == [(len(NUMBERS),)]


def test_what_is_no_argument_at_all_is_told_as_such(store: Store):
    agent = store.agents.register("worker")
    task = store.tasks.enqueue("t")
    claimed = store.tasks.claim(agent)

    async def later() -> None:
        raise AssertionError("awaited")

    refused: list[Callable[[], object]] = [
        lambda: store.agents.register("w", capabilities="crawl"),
        lambda: store.agents.register("w", id=""),
        lambda: store.tasks.enqueue("t", id=""),
        lambda: store.tasks.enqueue_many([NewTask("t", id="")]),
        lambda: store.groups.create("g", id=""),
        lambda: store.tasks.complete_many(["x"]),
        lambda: store.tasks.complete_many([(claimed, 1), "xy"]),
        lambda: store.tasks.complete_many("xy"),
        lambda: store.tasks.fail_many(["x"]),
        lambda: store.tasks.fail(claimed, "no", backoff=None),
        lambda: store.metrics.record_many([("a", 1)]),
        lambda: store.metrics.record_many([Sample("a", 1), None]),
        lambda: store.metrics.record("a", 1, tags=5),
        lambda: store.metrics.record("a", 1, tags=["b"]),
        lambda: store.metrics.aggregate("a", tags=["b"]),
        lambda: store.metrics.samples("a", tags=["b"]),
        lambda: store.events.project(5),
    ]
    for act in refused:
        with pytest.raises(InvalidValue):
            act()
    with store.transaction() as work:
        for hook in (None, 5, later):
            with pytest.raises(InvalidValue):
                work.after_commit(hook)
    assert (store.agents.count(), store.tasks.count(), store.metrics.count(), store.groups.count()) == (1, 1, 0, 0)
    assert store.tasks.get(task) == claimed


def test_an_error_of_a_key_or_a_reference_says_what_to_do(store: Store):
    agent = store.agents.register("worker")
    for act in (lambda: store.agents.insert(agent), lambda: store.tasks.insert(Task("a", "t", None, 0, agent_id="nobody"))):
        with pytest.raises(Conflict) as caught:
            act()
        assert caught.value.hint


def test_entities_are_hashed_by_what_names_them(store: Store):
    agent = store.agents.register("worker", capabilities=["a"], configuration={"b": 1})
    task = store.tasks.enqueue("t", {"a": [1]})
    message = store.messages.publish("t", {"a": 1})
    metric = store.metrics.record("m", 1, tags={"a": 1})
    entry = store.config.set("k", [1])
    group = store.groups.create("g", configuration={"a": 1})
    store.events.append("a", [NewEvent("e", {"a": 1})], type="t")
    kept = {agent, task, message, metric, entry, group, *store.events.read("a")}
    assert len(kept) == 7
    for noun, entity in ((store.agents, agent), (store.tasks, task), (store.messages, message), (store.metrics, metric)):
        assert noun.get(entity) in kept
    assert store.tasks.claim(agent) not in kept  # another version of it
    assert store.config.entry("k") in kept
