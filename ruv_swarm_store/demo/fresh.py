"""Starting afresh: a store that holds the demo's runs and nothing else is emptied."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, func, select

from ruv_swarm_store import migrations, schema
from ruv_swarm_store.demo.enlistment import enlist
from ruv_swarm_store.demo.run import RUN, TYPES
from ruv_swarm_store.demo.work import COORDINATES, INDEXER
from ruv_swarm_store.engines import Options, connect
from ruv_swarm_store.errors import Conflict
from ruv_swarm_store.store import Store

_OWN = {
    schema.tasks.c.type: TYPES,
    schema.agents.c.type: (INDEXER, COORDINATES),
    schema.events.c.aggregate_type: (RUN, *TYPES),
}
"""What the demo writes, by a column that tells it from others' rows."""


def forget(address: str) -> None:
    """Empties the demo's store. Raises `Conflict` when it holds anything that is not the demo's, or is being worked on."""
    with Store.open(address) as store:
        if not store.capabilities.persistent:
            return
        others = sum(_others(store, column, own) for column, own in _OWN.items()) + store.config.count() + store.groups.count()
        if others:
            raise Conflict(f"{address} holds {others} rows that are not the demo's", hint="Use another --store, or delete it yourself")
        enlist(store)  # raises while another coordinator is at work
    engine = connect(address, Options())
    try:
        migrations.downgrade(engine, "base")
    finally:
        engine.close()


def _others(store: Store, column: Column[Any], own: tuple[str, ...]) -> int:
    return int(store.execute(select(func.count()).where(column.not_in(own)))[0][0])
