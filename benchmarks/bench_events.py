"""The event store's hot paths beside the plain driver on the same schema."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from floor import NOW, Floor
from places import Place

from ruv_swarm_store import NewEvent, Store
from ruv_swarm_store.clock import new_ids

DATA = {"x": 12, "y": 7, "by": "scout"}
Compare = Callable[..., float]


def fill(place: Place, store: Store, floor: Floor, count: int) -> int:
    """The same log on both sides: streams of a thousand events each. Returns how many."""
    streams = max(1, count // 1_000)
    text = json.dumps(DATA)

    def below() -> None:
        for number in range(streams):
            floor.version = 0
            floor.append(f"s{number}", new_ids(NOW, 1_000), text)
        floor.version = 0

    for number in range(streams):
        store.events.append(f"s{number}", [NewEvent("moved", DATA)] * 1_000, type="bench")
    floor.within(below)
    place.settle()
    return streams


@pytest.mark.durable
def bench_append_with_expected_version(place: Place, store: Store, floor: Floor, compare: Compare, rows: int, rounds: int) -> None:
    # A tenth: a hand-written append is no way to fill a large log.
    fill(place, store, floor, rows if place.engine == "sqlite" else rows // 10)
    text = json.dumps(DATA)
    batches = [new_ids(NOW + number, place.round) for number in range(1, rounds + 2)]
    version = 0

    def ours() -> None:
        nonlocal version
        append = store.events.append
        for _ in range(place.round):
            version = append("mine", [NewEvent("moved", DATA)], type="bench", expected_version=version)

    compare(
        ours,
        lambda: floor.append("mine", batches.pop(), text),
        operations=place.round,
        floor_is="guarded INSERT … SELECT in autocommit, JSON made before",
    )


def bench_read_a_stream_of_1000(place: Place, store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    streams = fill(place, store, floor, min(rows, 20_000))

    def ours() -> None:
        for number in range(streams):
            assert len(store.events.read(f"s{number}", type="bench")) == 1_000

    def below() -> None:
        for number in range(streams):
            assert len(floor.read(f"s{number}")) == 1_000

    compare(ours, below, operations=streams * 1_000, floor_is="SELECT, fetchall and json.loads of the data")
