"""A store with rows in every table, the most awkward values among them, and all it holds in a form to compare."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update

from ruv_swarm_store import NewEvent, NewTask, Store, schema
from ruv_swarm_store.transfer import tables

LEAST, MOST = -(2**63), 2**63 - 1
AWKWARD = 'it\'s "quoted"; DROP TABLE tasks; --\n\t\\ 🐝 \u200d \x01 ½ ẞ'
JSON: list[Any] = [
    None,
    True,
    0,
    1,
    1.0,
    -0.0,
    "",
    AWKWARD,
    [],
    {},
    [[], {}, [None], {"": None}],
    {"b": 1, "a": {"z": [1, 1.0, 1e16, 1e-7, 1e23, 5e-324, 1.7976931348623157e308], AWKWARD: AWKWARD}},
    [MOST, LEAST, 2**64, 10**30, 12345678901234567, 0.1, 1 / 3],
]


def fill(store: Store) -> None:
    """Puts rows into every table, and the most awkward values it takes."""
    scout = store.agents.register("scout", name=AWKWARD, capabilities=JSON, configuration={AWKWARD: JSON})
    other = store.agents.register("", id="' OR 1=1 --")
    store.agents.terminate(store.agents.register("gone", name="gone"))
    parent = store.tasks.enqueue(AWKWARD, JSON, priority=100, unique_key=AWKWARD, id="\t🐝")
    store.tasks.enqueue_many([NewTask("child", value, parent=parent, max_retries=0) for value in JSON])
    store.tasks.enqueue("last", depends_on=[parent], run_at=MOST)
    store.tasks.fail(store.tasks.claim(scout), AWKWARD)
    for value in JSON:
        store.tasks.complete(store.tasks.claim(scout), value)
    store.tasks.enqueue("held")
    store.tasks.claim(other)
    # A parent that comes after its child: the verbs do not allow it, so an update does it.
    first, second = store.tasks.enqueue("early child"), store.tasks.enqueue("late parent")
    store.execute(update(schema.tasks).where(schema.tasks.c.id == first.id).values(parent_task_id=second.id, created_at=LEAST))
    team = store.groups.create(AWKWARD, type="", configuration={"a": JSON})
    store.groups.join(team, scout, role=AWKWARD)
    for value in JSON:
        store.messages.publish(AWKWARD, value, sender=scout)
        store.config.set(f"{AWKWARD}/{value!r}", value, by=AWKWARD)
        store.metrics.record(AWKWARD, 1 / 3, agent=scout, tags={"a": AWKWARD})
        store.events.append(AWKWARD, [NewEvent(AWKWARD, value, value)], type="")
    store.messages.publish("t", 1, sender=scout, to_group=team)
    store.messages.acknowledge(store.messages.receive(scout)[0], scout)
    store.metrics.record("", 5e-324, unit=AWKWARD)
    store.execute(update(schema.swarm_config).values(updated_at=MOST, expires_at=LEAST))
    store.execute(update(schema.metrics).values(timestamp=LEAST))
    store.execute(insert(schema.event_journal).values(id=1, started_at=MOST, after=LEAST))
    for table in tables():
        if not store.execute(select(table).limit(1)):
            for nothing in (False, True):
                store.execute(insert(table).values({column.name: some(column, nothing) for column in table.c}))


def some(column: Any, nothing: bool) -> Any:
    """A value that a column takes; two that differ where it is part of a key."""
    if nothing and column.nullable:
        return None
    if isinstance(column.type, schema.Json):
        return JSON
    if isinstance(column.type, schema.Choice):
        return next(iter(column.type.members))
    if isinstance(column.type, schema.Int64):
        return (MOST if nothing else LEAST) if column.name.endswith("_at") else 60 + 60 * (nothing and column.primary_key)
    return 1 / 3 if isinstance(column.type, schema.Real) else AWKWARD + "!" * nothing


def rows(store: Store) -> dict[str, list[str]]:
    """All there is, in a form to compare: repr tells 1 from 1.0. Order in JSON does not count, nor does the sign of a zero."""
    return {table.name: sorted(repr(plain(tuple(row))) for row in store.execute(select(table))) for table in tables()}


def rows_to_copy(store: Store) -> dict[str, list[str]]:
    """`rows`, but for where projections have come to: that is left behind with the tables they are kept in."""
    return {name: found for name, found in rows(store).items() if name != schema.event_projections.name}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value
