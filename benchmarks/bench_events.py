"""The event store's hot paths beside the plain driver on the same schema, and beside another event store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from floor import NOW, Floor
from places import Place

from ruv_swarm_store import Event, NewEvent, Snapshots, Store
from ruv_swarm_store.clock import new_ids

DATA = {"x": 12, "y": 7, "by": "scout"}
Compare = Callable[..., float]
Rivals = Callable[..., Any]


def filling(count: int, size: int = 1_000) -> Callable[[Store], None]:
    """What gives a store a log: streams of `size` events each."""

    def fill_store(store: Store) -> None:
        for number in range(max(1, count // size)):
            store.events.append(f"s{number}", [NewEvent("moved", DATA)] * size, type="bench")

    return fill_store


def fill(place: Place, store: Store, floor: Floor, count: int, size: int = 1_000) -> int:
    """The same log on both sides. Returns how many streams it has."""
    streams = max(1, count // size)
    filling(count, size)(store)
    for number in range(streams):
        floor.version = 0
        floor.append_batch(f"s{number}", new_ids(NOW + number, size), DATA)
    floor.version = 0
    place.settle()
    return streams


@pytest.mark.durable
def bench_append_with_expected_version(
    place: Place, store: Store, floor: Floor, compare: Compare, rivals: Rivals, rows: int, rounds: int
) -> None:
    fill(place, store, floor, rows)
    batches = [new_ids(NOW - number, place.round) for number in range(1, rounds + 2)]
    version = 0

    def ours() -> None:
        nonlocal version
        append = store.events.append
        for _ in range(place.round):
            version = append("mine", [NewEvent("moved", DATA)], type="bench", expected_version=version)

    compare(
        ours,
        lambda: floor.append("mine", batches.pop(), DATA),
        operations=place.round,
        floor_is="json.dumps and guarded INSERT … SELECT in autocommit, ids made before",
        rivals=rivals("append", (place.round, 1), place.round, like=filling(rows)),
    )


@pytest.mark.durable
@pytest.mark.parametrize("size", [10, 10_000])
def bench_append_a_batch(
    place: Place, store: Store, floor: Floor, compare: Compare, rivals: Rivals, rows: int, rounds: int, size: int
) -> None:
    fill(place, store, floor, rows)
    times = max(1, place.round // 10 if size == 10 else 1)
    batches = [new_ids(NOW - number, size) for number in range(1, times * (rounds + 1) + 1)]
    version = 0

    def ours() -> None:
        nonlocal version
        for _ in range(times):
            events = [NewEvent("moved", DATA) for _ in range(size)]
            version = store.events.append("mine", events, type="bench", expected_version=version)

    def below() -> None:
        for _ in range(times):
            floor.append_batch("mine", batches.pop(), DATA)

    compare(
        ours,
        below,
        operations=times * size,
        floor_is="version checked, json.dumps, executemany or COPY in one transaction, ids made before",
        rivals=rivals("append", (times, size), times * size, like=filling(rows)),
    )


def bench_read_a_stream_of_1000(place: Place, store: Store, floor: Floor, compare: Compare, rivals: Rivals, rows: int) -> None:
    streams = fill(place, store, floor, min(rows, 20_000))

    def ours() -> None:
        for number in range(streams):
            assert len(store.events.read(f"s{number}", type="bench")) == 1_000

    def below() -> None:
        for number in range(streams):
            assert len(floor.read(f"s{number}")) == 1_000

    compare(
        ours,
        below,
        operations=streams * 1_000,
        floor_is="SELECT, fetchall and json.loads of the data",
        rivals=rivals("read_streams", streams, streams * 1_000, like=filling(min(rows, 20_000))),
    )


def bench_read_all(place: Place, store: Store, floor: Floor, compare: Compare, rivals: Rivals, rows: int) -> None:
    count = fill(place, store, floor, rows) * 1_000

    def ours() -> None:
        assert sum(1 for _ in store.events.walk()) == count

    def below() -> None:
        assert floor.read_all() == count

    compare(
        ours,
        below,
        operations=count,
        floor_is="SELECT of pages of 1000, fetchall and json.loads of the data",
        rivals=rivals("read_log", count // 1_000, count, like=filling(rows)),
    )


def add(total: int, event: Event) -> int:
    x: int = event.event_data["x"]
    return total + x


def bench_fold(place: Place, store: Store, floor: Floor, compare: Compare, rivals: Rivals, rows: int) -> None:
    count = fill(place, store, floor, rows, rows) * rows

    def ours() -> None:
        assert store.events.fold("s0", 0, add, type="bench") == 12 * count

    def below() -> None:
        assert floor.fold("s0") == 12 * count

    compare(
        ours,
        below,
        operations=count,
        floor_is="SELECT of pages of 1000, fetchall, json.loads of the data and the sum",
        rivals=rivals("fold", count // 1_000, count, like=filling(rows, rows)),
    )


def bench_fold_from_a_snapshot(place: Place, store: Store, floor: Floor, compare: Compare, rivals: Rivals, rows: int) -> None:
    """A snapshot of all but the newest fifty events."""
    count = fill(place, store, floor, rows, rows) * rows
    snapshot = Snapshots("sum", every=100)

    def go_on(store: Store) -> None:
        assert store.events.fold("s0", 0, add, type="bench", snapshot=snapshot) == 12 * count
        store.events.append("s0", [NewEvent("moved", DATA)] * 50, type="bench")

    def fill_like(store: Store) -> None:
        filling(rows, rows)(store)
        go_on(store)

    go_on(store)
    floor.keep("s0", count, 12 * count)
    floor.version = count
    floor.append_batch("s0", new_ids(NOW - 1, 50), DATA)
    times = 100

    def ours() -> None:
        for _ in range(times):
            assert store.events.fold("s0", 0, add, type="bench", snapshot=snapshot) == 12 * (count + 50)

    def below() -> None:
        for _ in range(times):
            assert floor.fold("s0") == 12 * (count + 50)

    compare(
        ours,
        below,
        operations=times,
        floor_is="SELECT of the snapshot and of what comes after it, json.loads and the sum",
        rivals=rivals("fold_from_a_snapshot", (count // 1_000, times), times, like=fill_like),
    )
