"""Events: numbered without gaps, appended once, changed never."""

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import crew
import pytest
from sqlalchemy import delete, insert, select, update

from ruv_swarm_store import ANY, EXISTS, NONE, Append, Conflict, Event, InvalidValue, NewEvent, Store, Upcasters, schema
from ruv_swarm_store.errors import CorruptRow, SchemaMismatch, StoreError, Unsupported
from ruv_swarm_store.events import reading


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


@pytest.mark.parametrize(
    "seldom", [{"metadata": {"m": 1}}, {"schema_version": 2}, {"correlation_id": "c"}, {"causation_id": "c"}, {"metadata": False}]
)
def test_what_an_event_carries_besides_its_data_is_kept(store: Store, seldom):
    field, value = next(iter(seldom.items()))
    without = {"schema_version": 1}.get(field)
    special = NewEvent("special", **seldom)
    store.events.append("a", [special], type="thing")
    store.events.append("a", [special], type="thing", expected_version=1)
    store.events.append("a", [NewEvent("plain"), special], type="thing")
    store.events.append_many([Append("a", [NewEvent("plain")], "thing"), Append("a", [special], "thing")])
    assert [getattr(event, field) for event in store.events.read("a")] == [value, value, without, value, without, value]
    for other in ("metadata", "schema_version", "correlation_id", "causation_id"):
        if other != field:
            assert {getattr(event, other) for event in store.events.read("a")} == {1 if other == "schema_version" else None}


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


def test_a_stream_may_be_expected_to_exist_or_not_to(store: Store):
    for names in (["1"], ["1", "2"], []):
        with pytest.raises(Conflict) as caught:
            append(store, "a", *names, expected_version=EXISTS)
        assert caught.value.data == {"expected": EXISTS, "actual": 0}
    assert append(store, "a", "1", expected_version=NONE) == 1
    assert append(store, "a", "2", expected_version=EXISTS) == 2
    assert append(store, "a", "3", "4", expected_version=EXISTS) == 4
    assert append(store, "a", expected_version=EXISTS) == 4
    for names in (["5"], ["5", "6"], []):
        with pytest.raises(Conflict) as caught:
            append(store, "a", *names, expected_version=NONE)
        assert caught.value.data == {"expected": NONE, "actual": 4}


def test_appending_nothing_still_checks_the_version(store: Store):
    append(store, "a", "1")
    assert append(store, "a") == append(store, "a", expected_version=1) == 1
    with pytest.raises(Conflict):
        append(store, "a", expected_version=0)


@pytest.mark.parametrize("version", [-3, 1.0, None, "0", True])
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


@pytest.mark.parametrize("seldom", [{}, {"metadata": {"m": "\u00e9\"'"}, "correlation_id": "c"}])
def test_a_batch_of_any_size_is_appended_in_its_order(store: Store, seldom):
    for size in range(1, 20):
        events = [NewEvent(f"t{number}", [number, 1e300, "\u00e9\"'"], **seldom) for number in range(1, size + 1)]
        stream = f"a{size}"
        with pytest.raises(Conflict) as caught:
            store.events.append(stream, events, type="thing", expected_version=1)
        assert caught.value.data == {"expected": 1, "actual": 0}
        assert store.events.append(stream, events, type="thing", expected_version=NONE) == size
        assert store.events.append(stream, events, type="thing") == 2 * size
        assert store.events.append(stream, events, type="thing", expected_version=2 * size) == 3 * size
        found = store.events.read(stream, type="thing")
        assert [event.sequence_number for event in found] == list(range(1, 3 * size + 1))
        assert [event.position for event in found] == sorted({event.position for event in found})
        for event, given in zip(found, 3 * events, strict=True):
            assert (event.event_type, event.event_data, event.metadata) == (given.type, given.data, given.metadata)
    assert store.events.count() == 3 * sum(range(1, 20))


@pytest.mark.needs("threads")
def test_batches_by_many_come_one_after_the_other(store: Store):
    def write(number: int, barrier: threading.Barrier) -> None:
        barrier.wait()
        for turn in range(20):
            events = [NewEvent(f"{number}-{turn}", part) for part in range(3)]
            if turn % 2:
                store.events.append("a", events, type="thing")
                continue
            while True:
                seen = store.events.version("a", type="thing")
                try:
                    assert store.events.append("a", events, type="thing", expected_version=seen) == seen + 3
                    break
                except Conflict as conflict:
                    assert conflict.data["expected"] == seen < conflict.data["actual"]

    crew.in_threads(4, write)
    found = store.events.read("a", type="thing")
    assert [event.sequence_number for event in found] == list(range(1, 241))
    assert [event.position for event in found] == sorted(event.position for event in found)
    assert [event.event_data for event in found] == 80 * [0, 1, 2]
    assert all(len({event.event_type for event in found[first : first + 3]}) == 1 for first in range(0, 240, 3))


# Several streams at once


def test_several_streams_are_appended_to_in_one_piece(store: Store):
    append(store, "b", "0")
    with store.transaction() as work:
        versions = work.events.append_many(
            [
                Append("a", [NewEvent("1"), NewEvent("2")], "thing", NONE),
                Append("b", [NewEvent("3")], "thing", EXISTS),
                Append("a", [NewEvent("4")], "other", NONE),
                Append("c", [], "thing", 0),
                Append("a", [NewEvent("5")], "thing", 2),
                Append("b", [NewEvent("6")], "thing"),
            ]
        )
    assert versions == [2, 2, 1, 0, 3, 3]
    everything = store.events.read_all()
    assert "".join(event.event_type for event in everything) == "0123456"
    assert [event.position for event in everything[1:]] == list(range(everything[1].position, everything[1].position + 6))
    assert [event.sequence_number for event in store.events.read("a", type="thing")] == [1, 2, 3]
    assert store.events.append_many([]) == []


def test_several_streams_are_appended_to_all_or_none(store: Store):
    append(store, "b", "0")
    good = Append("a", [NewEvent("1")], "thing", NONE)
    for wrong, expected, actual in (
        (Append("b", [NewEvent("2")], "thing", NONE), NONE, 1),
        (Append("b", [NewEvent("2")], "thing", 2), 2, 1),
        (Append("a", [NewEvent("2")], "thing", NONE), NONE, 1),
        (Append("c", [NewEvent("2")], "thing", EXISTS), EXISTS, 0),
        (Append("c", [], "thing", EXISTS), EXISTS, 0),
    ):
        with pytest.raises(Conflict) as caught:
            store.events.append_many([good, wrong])
        assert caught.value.data == {"expected": expected, "actual": actual, "index": 1}
    for nonsense in ("a", NewEvent("t"), Append("b", [NewEvent("t", float("nan"))], "thing"), Append(5, [], "thing")):
        with pytest.raises(InvalidValue):
            store.events.append_many([good, nonsense])
    assert [event.event_type for event in store.events.read_all()] == ["0"]


def test_appending_to_several_streams_may_be_repeated(store: Store):
    append(store, "b", "0")
    batch = [
        Append("a", [NewEvent("t", {"b": 1, "a": 1e16}, id="e-1")], "thing", NONE),
        Append("b", [NewEvent("t", id="e-2"), NewEvent("t", id="e-3")], "thing", 1),
        Append("b", [], "thing"),
        Append("a", [NewEvent("t", id="e-4")], "thing", 1),
    ]
    assert store.events.append_many(batch) == [1, 3, 3, 2]
    append(store, "a", "later")
    assert store.events.append_many(batch) == [1, 3, 3, 2]
    assert store.events.count() == 6
    for other in (
        [*batch, Append("c", [NewEvent("t", id="e-5")], "thing")],
        [*batch, Append("c", [NewEvent("t")], "thing")],
        [Append("b", [NewEvent("t", id="e-1")], "thing")],
        [Append("a", [NewEvent("t", {"b": 2, "a": 1e16}, id="e-1")], "thing")],
        [Append("a", [NewEvent("other", id="e-4")], "thing")],
    ):
        with pytest.raises(Conflict, match="e-"):
            store.events.append_many(other)
    with pytest.raises(InvalidValue, match="same id"):
        store.events.append_many([Append("x", [NewEvent("t", id="x")], "thing"), Append("y", [NewEvent("t", id="x")], "thing")])
    assert store.events.count() == 6


def test_what_is_no_list_of_events_or_has_an_empty_id_is_refused(store: Store):
    one: Any = NewEvent("t")
    for wrong in (one, None, 5, [NewEvent("t", id="")], [NewEvent("t", id=""), NewEvent("t")]):
        with pytest.raises(InvalidValue):
            store.events.append("a", wrong, type="thing")
        with pytest.raises(InvalidValue):
            store.events.append_many([Append("a", wrong, "thing")])
    assert store.events.count() == 0


def test_types_are_no_string(store: Store):
    append(store, "a", "sent")
    for read in (store.events.read_all, lambda types: list(store.events.walk(types=types))):
        with pytest.raises(InvalidValue, match="list of event types"):
            read(types="sent")


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


def test_a_repeated_append_is_told_by_type_data_and_metadata(store: Store):
    """As they are read again: `-0.0` and the order of keys are not what every engine keeps."""
    first = NewEvent("t", {"zero": -0.0, "b": 1, "a": 2}, {"m": [1]}, id="e-1")
    assert store.events.append("a", [first], type="thing") == 1
    for data in (first.data, {"a": 2, "b": 1, "zero": 0.0}):
        assert store.events.append("a", [NewEvent("t", data, {"m": [1]}, id="e-1")], type="thing") == 1
    for event_type, data, metadata in (
        ("t", first.data, {"m": [2]}),
        ("t", first.data, None),
        ("t", None, {"m": [1]}),
        ("u", first.data, {"m": [1]}),
    ):
        with pytest.raises(Conflict, match="e-1"):
            store.events.append("a", [NewEvent(event_type, data, metadata, id="e-1")], type="thing")


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


def test_reading_goes_backward_as_well(store: Store):
    append(store, "a", *"abcdefghij")
    append(store, "b", *"klm")

    def names(events):
        return "".join(event.event_type for event in events)

    assert names(store.events.read("a", type="thing", backward=True)) == names(store.events.read("a", backward=True)) == "jihgfedcba"
    for options in ({"type": "thing"}, {}):
        assert names(store.events.read("a", backward=True, limit=3, **options)) == "jih"
        assert names(store.events.read("a", backward=True, after=3, until=6, **options)) == "fed"
        assert names(store.events.read("a", backward=True, after=3, until=6, limit=2, **options)) == "fe"
        assert names(store.events.walk_stream("a", backward=True, after=2, **options)) == "jihgfedc"
    assert names(store.events.read_all(backward=True)) == names(store.events.walk(backward=True)) == "mlkjihgfedcba"
    page = store.events.read_all(backward=True, limit=4)
    assert names(page) == "mlkj"
    assert names(store.events.read_all(backward=True, before=page[-1].position, limit=2)) == "ih"
    assert names(store.events.read_all(backward=True, before=page[-1].position, after=page[-1].position - 2)) == "i"
    assert names(store.events.read_all(before=page[-1].position, types=["a", "i", "j"], backward=True)) == "ia"


def test_streams_that_share_an_id_are_read_number_by_number(store: Store, monkeypatch):
    append(store, "a", "x1", "x2", kind="x")
    append(store, "a", "1", "2", "3", kind="")
    append(store, "a", "y1", kind="y")
    order = ["1", "x1", "y1", "2", "x2", "3"]
    assert [event.event_type for event in store.events.read("a")] == order
    assert [event.event_type for event in store.events.read("a", backward=True)] == order[::-1]
    assert [event.event_type for event in store.events.read("a", after=1, until=2)] == ["2", "x2"]
    assert [event.event_type for event in store.events.read("a", after=1, until=2, backward=True)] == ["x2", "2"]
    for size in (1, 2, 4):
        monkeypatch.setattr(reading, "FIRST_PAGE", size)
        monkeypatch.setattr(reading, "PAGE", size)
        assert [event.event_type for event in store.events.walk_stream("a")] == order
        assert [event.event_type for event in store.events.walk_stream("a", backward=True)] == order[::-1]
    # What cannot be gone on from is not given out as a page.
    assert [len(store.events.read("a", limit=limit)) for limit in (0, 3, 5, 6, 7)] == [0, 3, 5, 6, 6]
    for limit in (1, 2, 4):
        with pytest.raises(InvalidValue, match="type"):
            store.events.read("a", limit=limit)
    assert [event.event_type for event in store.events.read("a", backward=True, limit=1)] == ["3"]


def test_events_are_found_by_what_they_belong_to_and_came_from(store: Store):
    store.events.append("order", [NewEvent("placed"), NewEvent("paid", correlation_id="own")], type="order")
    placed, paid = store.events.read("order")
    assert (placed.correlation_id, placed.causation_id, paid.correlation_id, paid.causation_id) == (None, None, "own", None)
    store.events.append("parcel", [NewEvent("packed"), NewEvent("sent")], type="parcel", cause=placed)
    packed, sent = store.events.read("parcel")
    assert {(event.correlation_id, event.causation_id) for event in (packed, sent)} == {(placed.id, placed.id)}
    store.events.append_many(
        [
            Append(
                "parcel", [NewEvent("delivered"), NewEvent("signed", correlation_id="mine", causation_id="other")], "parcel", cause=sent
            ),
            Append("invoice", [NewEvent("closed")], "invoice", cause=paid),
        ]
    )
    found = {event.event_type: event for event in store.events.read_all(after=sent.position)}
    assert (found["delivered"].correlation_id, found["delivered"].causation_id) == (placed.id, sent.id)
    assert (found["signed"].correlation_id, found["signed"].causation_id) == ("mine", "other")
    assert (found["closed"].correlation_id, found["closed"].causation_id) == ("own", paid.id)

    def names(**options):
        return [event.event_type for event in store.events.read_all(**options)]

    assert names(correlation=placed.id) == ["packed", "sent", "delivered"]
    assert names(correlation=placed.id, backward=True, limit=2) == ["delivered", "sent"]
    assert names(correlation=placed.id, types=["sent", "delivered", "closed"]) == ["sent", "delivered"]
    assert names(correlation="own") == ["paid", "closed"]
    assert names(causation=placed.id) == ["packed", "sent"]
    assert names(causation=sent.id, correlation=placed.id) == ["delivered"]
    assert names(causation="nothing") == names(correlation="") == []
    with pytest.raises(InvalidValue, match="cause"):
        store.events.append("a", [NewEvent("t")], type="x", cause="e-1")


def test_events_are_found_by_time(store: Store, clock):
    start = clock.now
    for n, step in enumerate([0, 10, 10, 0, -15, 30, 5]):  # a clock may be put back: order is by position nevertheless
        clock.advance(ms=step)
        append(store, "a", str(n), kind="x")
    # at         0  10 20 20  5  35 40
    for since, until, expected in (
        (None, None, "0123456"), (0, 41, "0123456"), (10, 20, "1"), (10, 21, "123"), (5, 20, "14"), (20, None, "2356"),
        (None, 10, "04"), (41, None, ""), (None, 0, ""), (21, 35, ""), (30, 20, ""),
    ):  # fmt: skip
        options = {
            "since": None if since is None else start + since,
            "until": None if until is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=start + until),
        }
        assert "".join(event.event_type for event in store.events.read_all(**options)) == expected, (since, until)
        assert "".join(event.event_type for event in store.events.walk(**options, backward=True)) == expected[::-1]
        ours = [event.event_type for event in store.events.read_all(**options, types=list("012345"), limit=2)]
        assert ours == list(expected.replace("6", ""))[:2]
    with pytest.raises(InvalidValue, match="time zone"):
        store.events.read_all(since=datetime(2030, 1, 1))  # noqa: DTZ001 - a naive one


@pytest.mark.parametrize("kinds", [1, 2, reading.MERGED, reading.MERGED + 1])
def test_events_of_several_types_come_in_one_order_page_by_page(store: Store, kinds, monkeypatch):
    names = [f"t{n % 12}" for n in range(120)]
    append(store, "a", *names)
    wanted = [f"t{n}" for n in range(kinds)]
    expected = [name for name in names if name in wanted]
    monkeypatch.setattr(reading, "FIRST_PAGE", 7)
    monkeypatch.setattr(reading, "PAGE", 7)
    for backward in (False, True):
        assert [event.event_type for event in store.events.walk(types=[*wanted, wanted[0]], backward=backward)] == (
            expected[::-1] if backward else expected
        )


def test_memory_bears_a_walk_however_heavy_the_events(store: Store, monkeypatch):
    store.events.append("a", [NewEvent("t", "x" * 1_000)] * 250, type="thing")
    monkeypatch.setattr(reading, "WEIGHT", 20_000)
    sizes = []
    load_all = type(store.events.mapping).load_all
    monkeypatch.setattr(type(store.events.mapping), "load_all", lambda self, rows: sizes.append(len(rows)) or load_all(self, rows))
    for walk in (store.events.walk(), store.events.walk_stream("a", type="thing")):
        sizes.clear()
        assert sum(1 for _ in walk) == 250
        assert max(sizes[1:]) < 20
        assert sum(sizes) == 250


# What others see while transactions are open


@pytest.mark.needs("threads")
def test_who_follows_the_log_misses_no_event_that_is_committed_late(database):
    """Writers hold their transactions open at random after they have appended; a reader follows by position all the while."""
    writers, rounds = 4, 12
    store = database.open()
    done = threading.Event()
    followed: list[Event] = []

    def follow() -> None:
        last = False
        while not last:
            last = done.is_set()
            while page := store.events.read_all(after=followed[-1].position if followed else 0, limit=7):
                followed.extend(page)

    def write(number: int, barrier: threading.Barrier) -> None:
        waits = random.Random(number)
        barrier.wait()
        for n in range(rounds):
            with store.transaction() as work:
                work.config.set(f"begun-{number}", n)
                work.events.append(f"s-{number}", [NewEvent("t", n)], type="x")
                time.sleep(waits.choice([0, 0.001, 0.004]))
                work.events.append("shared", [NewEvent("t", n)] * 2, type="x")

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        crew.in_threads(writers, write)
    finally:
        done.set()
        reader.join()
    assert followed == list(store.events.walk())
    assert len(followed) == writers * rounds * 3


# Old forms


def test_old_events_are_read_in_their_newest_form(database, clock):
    known = Upcasters()
    store = database.open(clock=clock, upcasters=known)
    store.events.append("a", [NewEvent("moved", {"x": 1}), NewEvent("other", 5)], type="x")
    known.register("moved", 1)(lambda data: {"x": data["x"], "y": 0})
    store.events.append("a", [NewEvent("moved", {"x": 1, "y": 2})], type="x")
    known.register("moved", 2)(lambda data: {"at": [data["x"], data["y"]]})
    store.events.append("a", [NewEvent("moved", {"at": [3, 3]}), NewEvent("moved", {"x": 4}, schema_version=1)], type="x")
    reads = {
        "read": store.events.read("a"),
        "read_all": store.events.read_all(),
        "walk": list(store.events.walk()),
        "walk_stream": list(store.events.walk_stream("a", type="x")),
        "find_all": store.events.find_all(),
        "query": store.events.query().order_by(schema.events.c.position).all(),
        "get": [store.events.get(event.id) for event in store.events.read("a")],
        "fold": store.events.fold("a", [], lambda seen, event: [*seen, event], type="x"),
    }
    with store.transaction() as work:
        reads["unit of work"] = work.events.read("a")
        with work.transaction() as inner:
            reads["savepoint"] = inner.events.read("a")
    for name, events in reads.items():
        data = [event.event_data if event.event_type == "other" else event.event_data["at"] for event in events]
        assert data == [[1, 0], 5, [1, 2], [3, 3], [4, 0]], name
        assert [event.schema_version for event in events] == [3, 1, 3, 3, 3], name
    c = schema.events.c
    assert [tuple(row) for row in store.execute(select(c.event_data, c.schema_version).order_by(c.position))] == [
        ({"x": 1}, 1), (5, 1), ({"x": 1, "y": 2}, 2), ({"at": [3, 3]}, 3), ({"x": 4}, 1),
    ]  # fmt: skip
    repeated = [NewEvent("moved", {"x": 9}, id="e-1", schema_version=1)]
    assert [store.events.append("b", repeated, type="x") for _ in "12"] == [1, 1], "what is stored counts"


def test_a_form_from_which_nothing_leads_on_is_an_error(database):
    known = Upcasters()
    store = database.open(upcasters=known)
    append(store, "a", "moved")
    [event] = store.events.read("a")
    known.register("moved", 2)(lambda data: data)
    with pytest.raises(SchemaMismatch, match="from 1 to 3"):
        store.events.read("a")
    known.register("moved", 1)(lambda data: data["no such key"])
    with pytest.raises(CorruptRow, match="from schema version 1 to 2") as caught:
        store.events.read("a")
    assert (caught.value.data["id"], caught.value.data["column"]) == (event.id, "event_data")
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(InvalidValue, match="already"):
        known.register("moved", 1)(lambda data: data)
    for wrong in ((5, 1), ("t", 0), ("t", "1")):
        with pytest.raises(InvalidValue):
            known.register(*wrong)
    store.events.append("b", [NewEvent("newer", schema_version=3)], type="thing")
    known.register("newer", 1)(lambda data: data)
    with pytest.raises(SchemaMismatch, match="newer code"):
        store.events.read("b")


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


@pytest.mark.parametrize("kind", ["journal", "journal.tasks", "journal."])
def test_the_journal_s_streams_are_the_database_s(store: Store, kind):
    for count in (1, 2):
        with pytest.raises(InvalidValue, match="journal"):
            append(store, "a", *["1"] * count, kind=kind)
    assert store.events.count() == 0
    assert append(store, "a", "1", kind="journalist") == append(store, "a", "1", kind="my journal") == 1
