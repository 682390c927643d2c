"""The event store's hot paths beside raw sqlite3 on the same schema."""

from __future__ import annotations

import json
from collections.abc import Callable

from floor import NOW, Floor

from ruv_swarm_store import NewEvent, Store
from ruv_swarm_store.clock import new_ids

DATA = {"x": 12, "y": 7, "by": "scout"}
Compare = Callable[..., float]
ROUND = 1_000


def fill(store: Store, floor: Floor, count: int) -> None:
    """The same log on both sides: streams of a thousand events each."""
    streams = max(1, count // 1_000)
    text = json.dumps(DATA)
    for number in range(streams):
        store.events.append(f"s{number}", [NewEvent("moved", DATA)] * 1_000, type="bench")
    floor.raw.execute("BEGIN IMMEDIATE")
    for number in range(streams):
        floor.version = 0
        floor.append(f"s{number}", new_ids(NOW, 1_000), text)
    floor.raw.execute("COMMIT")
    floor.version = 0


def bench_append_with_expected_version(store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)
    text = json.dumps(DATA)
    batches = [new_ids(NOW + number, ROUND) for number in range(40)]
    version = 0

    def ours() -> None:
        nonlocal version
        append = store.events.append
        for _ in range(ROUND):
            version = append("mine", [NewEvent("moved", DATA)], type="bench", expected_version=version)

    compare(
        ours,
        lambda: floor.append("mine", batches.pop(), text),
        operations=ROUND,
        floor_is="guarded INSERT … SELECT in autocommit, JSON made before",
    )


def bench_read_a_stream_of_1000(store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)

    def ours() -> None:
        for number in range(20):
            assert len(store.events.read(f"s{number}", type="bench")) == 1_000

    def below() -> None:
        for number in range(20):
            assert len(floor.read(f"s{number}")) == 1_000

    compare(ours, below, operations=20_000, floor_is="SELECT, fetchall and json.loads of the data")
