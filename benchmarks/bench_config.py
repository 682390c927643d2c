"""Reading and setting a key of the configuration beside the plain driver on the same schema."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from floor import Floor
from places import Place

from ruv_swarm_store import ConfigEntry, Store

VALUE = {"limit": 12, "hosts": ["a", "b"], "on": True}
Compare = Callable[..., float]


def fill(place: Place, store: Store, floor: Floor, count: int) -> list[str]:
    """The same keys on both sides; some of them, in no order."""
    keys = [f"crawler.{number}.limits" for number in range(count)]
    store.config.insert_many([ConfigEntry(key, VALUE, 0) for key in keys])
    floor.within(lambda: floor.set_config([(key, json.dumps(VALUE)) for key in keys]))
    place.settle()
    return random.Random(1).choices(keys, k=place.round)


def bench_config_get(place: Place, store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    keys = fill(place, store, floor, rows // 10) * 5

    def ours() -> None:
        get = store.config.get
        for key in keys:
            get(key)

    compare(ours, lambda: floor.config(keys), operations=len(keys), floor_is="SELECT of the value by key and json.loads")


@pytest.mark.durable
def bench_config_set(place: Place, store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    keys = fill(place, store, floor, rows // 10)
    pairs = [(key, json.dumps(VALUE)) for key in keys]

    def ours() -> None:
        put = store.config.set
        for key in keys:
            put(key, VALUE)

    compare(
        ours,
        lambda: floor.set_config(pairs),
        operations=len(keys),
        floor_is="INSERT … ON CONFLICT … RETURNING in autocommit, JSON made before",
    )
