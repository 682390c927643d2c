"""Snapshots: a fold with them is what it is without, only shorter."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from msgspec import Struct, to_builtins
from sqlalchemy import func, select, update

from ruv_swarm_store import Event, InvalidValue, NewEvent, Snapshots, Store, schema


class Counting:
    """Adds numbers up, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state: Any, event: Event) -> Any:
        self.calls += 1
        return {"sum": state["sum"] + event.event_data, "last": event.sequence_number}


def fold(store: Store, snapshot: Snapshots | None, until: int | None = None, stream: str = "a", kind: str = "sum") -> tuple[Any, int]:
    """The state, and from how many events it was made."""
    apply = Counting()
    state = store.events.fold(stream, {"sum": 0, "last": 0}, apply, type=kind, until=until, snapshot=snapshot)
    return state, apply.calls


def add(store: Store, *numbers: int, stream: str = "a", kind: str = "sum") -> None:
    store.events.append(stream, [NewEvent("add", number) for number in numbers], type=kind)


def kept(store: Store) -> list[int]:
    c = schema.event_snapshots.c
    return [number for (number,) in store.execute(select(c.sequence_number).order_by(c.sequence_number))]


def result(until: int) -> Any:
    return {"sum": sum(range(until)), "last": until}


EVERY_10 = Snapshots("sum", every=10)


def test_a_fold_goes_on_from_the_newest_snapshot(store: Store):
    add(store, *range(9))
    assert fold(store, EVERY_10) == (result(9), 9)
    assert kept(store) == []
    add(store, 9)
    assert fold(store, EVERY_10) == (result(10), 10)
    assert kept(store) == [10]
    assert fold(store, EVERY_10) == (result(10), 0)
    add(store, *range(10, 19))
    assert fold(store, EVERY_10) == fold(store, EVERY_10) == (result(19), 9)
    add(store, *range(19, 25))
    assert fold(store, EVERY_10) == (result(25), 15)
    assert fold(store, EVERY_10) == (result(25), 0)
    assert kept(store) == [10, 25]
    assert fold(store, None) == (result(25), 25)


def test_the_newest_two_are_kept(store: Store):
    for start in range(0, 60, 15):
        add(store, *range(start, start + 15))
        fold(store, EVERY_10)
    assert kept(store) == [45, 60]


def test_the_past_is_folded_from_snapshots_at_or_before_it(store: Store):
    for start in (0, 20):
        add(store, *range(start, start + 20))
        fold(store, EVERY_10)
    assert kept(store) == [20, 40]
    for until, calls in ((40, 0), (39, 19), (21, 1), (20, 0), (19, 19), (1, 1), (50, 0)):
        assert fold(store, EVERY_10, until=until) == (result(min(until, 40)), calls)
    assert fold(store, EVERY_10, until=0) == ({"sum": 0, "last": 0}, 0)
    assert kept(store) == [20, 40], "a look at the past displaces nothing"


def test_a_snapshot_of_another_version_is_not_there(store: Store):
    add(store, *range(30))
    fold(store, EVERY_10)
    newer = Snapshots("sum", every=10, version=2)
    assert fold(store, newer) == (result(30), 30)
    assert fold(store, newer) == (result(30), 0)
    assert kept(store) == [30]
    assert fold(store, EVERY_10) == (result(30), 30)


def test_snapshots_are_told_apart_by_name_and_stream(store: Store):
    for stream, kind, numbers in (("a", "sum", range(10)), ("b", "sum", range(20)), ("a", "other", range(30))):
        add(store, *numbers, stream=stream, kind=kind)
        assert fold(store, EVERY_10, stream=stream, kind=kind) == (result(len(numbers)), len(numbers))
    assert fold(store, EVERY_10) == (result(10), 0)
    assert fold(store, Snapshots("product", every=10)) == (result(10), 10)


@pytest.mark.parametrize("damaged", [[40], [20, 40]])
def test_a_damaged_snapshot_is_passed_over_and_made_anew(database, store: Store, damaged):
    for start in (0, 20):
        add(store, *range(start, start + 20))
        fold(store, EVERY_10)
    for number in damaged:
        database.damage(store, schema.event_snapshots, "sequence_number", number, "state", "{not json")
    assert fold(store, EVERY_10) == (result(40), 20 if damaged == [40] else 40)
    assert fold(store, EVERY_10) == (result(40), 0)
    assert kept(store) == [20, 40]


class Total(Struct):
    sum: int
    seen: tuple[int, ...] = ()


def test_a_state_that_is_not_json_is_dumped_and_loaded(store: Store):
    add(store, *range(10))

    def apply(state: Total, event: Event) -> Total:
        return Total(state.sum + event.event_data, (*state.seen, event.event_data))

    def total(snapshot: Snapshots | None) -> Total:
        return store.events.fold("a", Total(0), apply, type="sum", snapshot=snapshot)

    expected = Total(45, tuple(range(10)))
    for dump in (None, to_builtins, lambda state: {1: state.sum}):
        with pytest.raises(InvalidValue):
            total(Snapshots("x", every=1, dump=dump))
    assert kept(store) == []
    good = Snapshots("x", every=1, dump=to_builtins, load=lambda state: Total(state["sum"], tuple(state["seen"])))
    assert total(good) == total(good) == expected
    # One that its reader does not understand counts as not there.
    store.execute(update(schema.event_snapshots).values(state={"other": 1}))
    assert total(good) == total(None) == expected
    assert store.execute(select(schema.event_snapshots.c.state))[0][0]["sum"] == 45


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Counter(a=1),
        lambda: OrderedDict(a=1),
        lambda: {"a": [Counter(a=1)]},
        lambda: {"a": {"b": Colour.RED}},
        lambda: {Colour.RED: 1},
        lambda: [[Level.LOW]],
    ],
    ids=["Counter", "OrderedDict", "within", "text", "key", "number"],
)
def test_a_state_that_equals_what_it_is_not_is_refused(store: Store, make: Callable[[], Any]):
    """A fold that went on from a plain dict where a Counter was would be another one, without a word."""
    add(store, 1, 2)
    for _ in range(2):
        with pytest.raises(InvalidValue, match="something else"):
            store.events.fold("a", None, lambda state, event: make(), type="sum", snapshot=Snapshots("x", every=1))
    assert kept(store) == []
    counts = Snapshots("counts", every=1, load=Counter)
    for _ in range(2):
        assert store.events.fold(
            "a", Counter[str](), lambda state, event: state + Counter(a=event.event_data), type="sum", snapshot=counts
        ) == {"a": 3}
    plain = {"a": [1, 1.5, True, None, "x", {"b": []}]}
    assert store.events.fold("a", None, lambda state, event: plain, type="sum", snapshot=Snapshots("plain", every=1)) == plain
    assert len(kept(store)) == 2


def test_a_snapshot_shares_the_fate_of_the_events_it_was_made_from(store: Store):
    with pytest.raises(RuntimeError), store.transaction() as work:
        work.events.append("a", [NewEvent("add", n) for n in range(20)], type="sum")
        assert fold(work, EVERY_10) == (result(20), 20)
        assert fold(work, EVERY_10) == (result(20), 0)
        raise RuntimeError
    assert fold(store, EVERY_10) == ({"sum": 0, "last": 0}, 0)
    assert kept(store) == []


@pytest.mark.needs("processes")
def test_a_store_that_is_read_only_reads_snapshots_and_keeps_none(database, store: Store):
    add(store, *range(30))
    fold(store, EVERY_10)
    add(store, *range(30, 50))
    reader = database.open(read_only=True)
    assert fold(reader, EVERY_10) == fold(reader, EVERY_10) == (result(50), 20)
    assert kept(store) == [30]


def test_nonsense_is_refused(store: Store):
    for wrong in ({"name": 5}, {"every": 0}, {"every": 1.5}, {"version": 0}):
        with pytest.raises(InvalidValue):
            Snapshots(**{"name": "sum", **wrong})
    assert store.execute(select(func.count()).select_from(schema.event_snapshots))[0][0] == 0
