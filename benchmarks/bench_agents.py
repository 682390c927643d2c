"""An agent's heartbeat beside the plain driver on the same schema."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from floor import Floor
from places import Place

from ruv_swarm_store import Store

AGENTS = 100


@pytest.mark.durable
def bench_heartbeat(place: Place, store: Store, floor: Floor, compare: Callable[..., float]) -> None:
    ids = [store.agents.register("bench").id for _ in range(AGENTS)]
    for id in ids:
        floor.execute(f"INSERT INTO agents VALUES ('{id}', 'bench', 0, 0, NULL, 'idle', '[]', '{{}}', NULL, 1)")
    agents = list(itertools.islice(itertools.cycle(ids), place.round))

    def ours() -> None:
        heartbeat = store.agents.heartbeat
        for id in agents:
            heartbeat(id)

    compare(ours, lambda: floor.heartbeat(agents), operations=len(agents), floor_is="UPDATE by id in autocommit")
