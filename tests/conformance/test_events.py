"""Events: numbered without gaps, appended once, changed never."""

import pytest
from sqlalchemy import delete, insert, update

from ruv_swarm_store import ANY, Conflict, Event, InvalidValue, NewEvent, Store, schema
from ruv_swarm_store.errors import StoreError, Unsupported


def append(store, stream="a", *names, kind="thing", **options):
    return store.events.append(stream, [NewEvent(name) for name in names], type=kind, **options)


def test_append_numbers_a_stream_from_one(store: Store, clock):
    version = store.events.append("task-1", [NewEvent("claimed", {"by": "x"}, {"trace": 1}), NewEvent("started")], type="task")
    assert version == 2
    events = store.events.read("task-1")
    assert events == [
        Event(events[0].id, "task-1", "task", "claimed", {"by": "x"}, {"trace": 1}, clock.now, 1, events[0].position),
        Event(events[1].id, "task-1", "task", "started", None, None, clock.now, 2, events[1].position),
    ]
    assert events[0].position < events[1].position
    assert append(store, "task-1", "completed", kind="task") == 3
    assert [event.sequence_number for event in store.events.read("task-1")] == [1, 2, 3]
    assert [store.events.get(event.id) for event in events] == events


def test_streams_are_told_apart_by_id_and_type(store: Store):
    append(store, "a", "1", "2", kind="x")
    append(store, "a", "3", kind="y")
    append(store, "b", "4", kind="x")
    assert [(event.event_type, event.sequence_number) for event in store.events.read("a", type="x")] == [("1", 1), ("2", 2)]
    assert [(event.event_type, event.sequence_number) for event in store.events.read("a", type="y")] == [("3", 1)]
    assert {event.event_type for event in store.events.read("a")} == {"1", "2", "3"}
    assert (store.events.version("a", type="x"), store.events.version("a", type="y"), store.events.version("c", type="x")) == (2, 1, 0)


# Expected versions


def test_an_expected_version_must_be_the_stream_s(store: Store):
    assert append(store, "a", "1", expected_version=0) == 1
    assert append(store, "a", "2", "3", expected_version=1) == 3
    assert append(store, "a", "4", expected_version=ANY) == 4
    for wrong in (0, 1, 3, 5):
        with pytest.raises(Conflict) as caught:
            append(store, "a", "5", expected_version=wrong)
        assert (caught.value.data["expected"], caught.value.data["actual"]) == (wrong, 4)
    with pytest.raises(Conflict) as caught:
        append(store, "new", "1", expected_version=1)
    assert caught.value.data["actual"] == 0
    assert store.events.count() == 4


def test_appending_nothing_still_checks_the_version(store: Store):
    append(store, "a", "1")
    assert append(store, "a") == append(store, "a", expected_version=1) == 1
    with pytest.raises(Conflict):
        append(store, "a", expected_version=0)


@pytest.mark.parametrize("version", [-2, 1.0, None, "0", True])
def test_a_version_is_a_number(store: Store, version):
    with pytest.raises(InvalidValue):
        append(store, "a", "1", expected_version=version)


def test_a_batch_is_appended_whole_or_not_at_all(store: Store):
    for wrong in (NewEvent("t", float("nan")), NewEvent("t", 1, {1: 2}), NewEvent(5), "t", NewEvent("t", 1, id=5)):
        with pytest.raises(InvalidValue):
            store.events.append("a", [NewEvent("t", 1), NewEvent("t", 2), wrong, NewEvent("t", 3)], type="thing")
    for options in ({"aggregate_id": 5}, {"type": None}):
        with pytest.raises(InvalidValue):
            store.events.append(**{"aggregate_id": "a", "events": [NewEvent("t")], "type": "thing", **options})
    assert store.events.count() == 0


# Idempotence


def test_an_append_repeated_by_id_adds_nothing(store: Store):
    batch = [NewEvent("t", 1, id="e-1"), NewEvent("t", 2, id="e-2")]
    assert store.events.append("a", batch, type="thing", expected_version=0) == 2
    append(store, "a", "later")
    assert store.events.append("a", batch, type="thing", expected_version=0) == 2
    assert store.events.append("a", batch, type="thing") == 2
    with pytest.raises(Conflict, match="e-"):
        store.events.append("a", [NewEvent("t", "other", id="e-1"), NewEvent("t", 2, id="e-2")], type="thing")
    assert [event.event_data for event in store.events.read("a")] == [1, 2, None]


def test_an_id_stored_already_is_refused_unless_all_is_repeated(store: Store):
    store.events.append("a", [NewEvent("t", id="e-1")], type="thing")
    for stream, kind, batch in (
        ("a", "thing", [NewEvent("t", id="e-1"), NewEvent("t", id="e-2")]),
        ("a", "thing", [NewEvent("t", id="e-1"), NewEvent("t")]),
        ("b", "thing", [NewEvent("t", id="e-1")]),
        ("a", "other", [NewEvent("t", id="e-1")]),
    ):
        with pytest.raises(Conflict, match="e-1"):
            store.events.append(stream, batch, type=kind)
    with pytest.raises(InvalidValue):
        store.events.append("a", [NewEvent("t", id="x"), NewEvent("t", id="x")], type="thing")
    assert store.events.count() == 1


# Reading


def test_read_takes_a_part_of_a_stream(store: Store):
    append(store, "a", *"abcdefghij")

    def names(**options):
        return "".join(event.event_type for event in store.events.read("a", **options))

    assert names() == "abcdefghij"
    assert names(after=3) == "defghij"
    assert names(until=3) == "abc"
    assert names(after=2, until=5) == "cde"
    assert names(after=2, limit=2) == "cd"
    assert names(limit=0) == names(after=10) == names(until=0) == ""
    assert store.events.read("nothing") == []
    for wrong in ({"after": -1}, {"until": -1}, {"limit": -1}, {"limit": 1.5}, {"after": None}):
        with pytest.raises(InvalidValue):
            store.events.read("a", **wrong)


def test_read_all_follows_one_order_over_all_streams(store: Store):
    for n in range(20):
        append(store, f"s-{n % 3}", f"t{n % 2}")
    everything = store.events.read_all()
    assert [event.position for event in everything] == sorted({event.position for event in everything})
    assert len(everything) == 20
    middle = everything[9].position
    assert store.events.read_all(after=middle) == everything[10:]
    assert store.events.read_all(after=middle, limit=3) == everything[10:13]
    assert store.events.read_all(types=["t1"]) == everything[1::2]
    assert store.events.read_all(types=["t1", "t0"], after=middle, limit=4) == everything[10:14]
    assert store.events.read_all(types=[]) == store.events.read_all(types=["other"]) == []
    assert store.events.last_position() == everything[-1].position
    for stream in range(3):
        assert [e.sequence_number for e in everything if e.aggregate_id == f"s-{stream}"] == list(range(1, 8 if stream < 2 else 7))


def test_an_empty_store_is_at_position_zero(store: Store):
    assert store.events.last_position() == 0
    assert store.events.read_all() == list(store.events.walk()) == []


def test_walk_and_fold_go_past_a_page(store: Store):
    store.events.append("a", [NewEvent("add", n) for n in range(2_500)], type="sum")
    assert [event.event_data for event in store.events.walk()] == list(range(2_500))
    assert [event.event_data for event in store.events.walk(after=store.events.read_all(limit=2_400)[-1].position)] == list(
        range(2_400, 2_500)
    )
    assert store.events.fold("a", 0, lambda total, event: total + event.event_data, type="sum") == sum(range(2_500))
    assert store.events.fold("a", 0, lambda total, event: total + event.event_data, type="sum", until=1_001) == sum(range(1_001))
    assert store.events.fold("a", [], lambda seen, event: [*seen, event.event_data], type="sum", until=3) == [0, 1, 2]
    assert store.events.fold("nothing", "initial", lambda state, event: state + 1, type="sum") == "initial"


# Append only


def test_the_plain_verbs_change_no_event(store: Store):
    append(store, "a", "1")
    [event] = store.events.find_all()
    for change in (
        lambda: store.events.insert(event),
        lambda: store.events.insert_many([event]),
        lambda: store.events.update(event),
        lambda: store.events.update_many([event]),
        lambda: store.events.replace(event),
        lambda: store.events.upsert(event),
        lambda: store.events.delete(event),
        lambda: store.events.delete_many([event.id]),
    ):
        with pytest.raises(Unsupported, match="append-only"):
            change()
    assert store.events.find_all() == [event]


def test_the_database_itself_refuses_to_change_events(store: Store):
    append(store, "a", "1", "2")
    before = store.events.find_all()
    for statement in (
        update(schema.events).values(event_type="changed"),
        update(schema.events).where(schema.events.c.id == before[0].id).values(event_data={"changed": True}),
        delete(schema.events),
        delete(schema.events).where(schema.events.c.sequence_number == 2),
    ):
        with pytest.raises(Unsupported, match="append-only"):
            store.execute(statement)
    assert store.events.find_all() == before


def test_one_number_of_a_stream_is_given_once(store: Store):
    append(store, "a", "1")
    [event] = store.events.find_all()
    row = {
        "id": "other", "aggregate_id": "a", "aggregate_type": "thing", "event_type": "t", "event_data": 1, "metadata": None,
        "timestamp": 0, "sequence_number": 1,
    }  # fmt: skip
    with pytest.raises(Conflict):
        store.execute(insert(schema.events).values(row))
    with pytest.raises(StoreError):
        store.execute(insert(schema.events).values({**row, "sequence_number": 0}))
    assert store.events.find_all() == [event]
