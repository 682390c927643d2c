"""Snapshots: what a stream added up to, kept so that a fold can go on from there. They are a cache, and never believed blindly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from sqlalchemy import Text, delete, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Scope, parameter, upsert
from ruv_swarm_store.entities import Snapshot
from ruv_swarm_store.errors import InvalidValue, Unavailable, Unsupported
from ruv_swarm_store.query import Mapping

log = logging.getLogger(__name__)

KEPT = 2
"""Snapshots kept of a stream under one name: should the newest be damaged, there is another."""

SNAPSHOTS = Mapping(schema.event_snapshots, Snapshot, key="aggregate_id")
_c = schema.event_snapshots.c
_values = {
    "aggregate_id": parameter("aggregate", Text),
    "aggregate_type": parameter("type", Text),
    "name": parameter("name", Text),
    "sequence_number": parameter("number", schema.Int64),
    "schema_version": parameter("schema_version", schema.Int64),
    "state": parameter("state", schema.Json()),
    "created_at": parameter("now", schema.Int64),
}
_mine = [_c[name] == _values[name] for name in ("aggregate_id", "aggregate_type", "name")]
_FIND = (
    select(*SNAPSHOTS.columns)
    .where(*_mine, _c.sequence_number <= _values["sequence_number"], _c.schema_version == _values["schema_version"])
    .order_by(_c.sequence_number.desc())
    .limit(KEPT)
)
_KEEP = upsert(
    schema.event_snapshots,
    _values,
    on=["aggregate_id", "aggregate_type", "name", "sequence_number"],
    update={name: _values[name] for name in ("schema_version", "state", "created_at")},
)
_oldest_kept = select(_c.sequence_number).where(*_mine).order_by(_c.sequence_number.desc()).limit(1).offset(KEPT - 1).scalar_subquery()
_FORGET = delete(schema.event_snapshots).where(*_mine, _c.sequence_number < _oldest_kept)


class Snapshots(Struct, frozen=True):
    """How `Events.fold` keeps snapshots: one whenever it has gone over `every` events or more.

    `name` stands for the function that is folded with, and `version` for the form of its state: raise it when either changes, or an
    upcaster does, and snapshots of another version are as good as not there. The state is kept as JSON; `dump` makes that of a
    state it cannot hold, a Counter for one, and `load` makes the state of it again. Not every engine keeps the order of keys.
    """

    name: str
    every: int = 100
    version: int = 1
    dump: Callable[[Any], Any] | None = None
    load: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        codec.text(self.name, "name of snapshots")
        codec.integer(self.every, "every", 1)
        codec.integer(self.version, "version of snapshots", 1)

    def latest(self, scope: Scope, stream: str, kind: str, until: int) -> tuple[Any, int] | None:
        """The state at the newest usable snapshot at or below event number `until`, and its number."""
        params = {"aggregate": stream, "type": kind, "name": self.name, "number": until, "schema_version": self.version}
        with scope.read() as run:
            rows = run.all(_FIND, params)
        for row in rows:
            try:
                snapshot = SNAPSHOTS.load(row)
                return (snapshot.state if self.load is None else self.load(snapshot.state)), snapshot.sequence_number
            except Exception:  # it is damaged, or not of a form that `load` knows
                log.exception("the snapshot %s of %r at %s cannot be loaded: folding from before it", self.name, stream, row[3])
        return None

    def keep(self, scope: Scope, stream: str, kind: str, number: int, state: Any) -> None:
        """Keeps the state at event `number`, and of older ones one more. Raises `InvalidValue` for a state that JSON would change."""
        plain = state if self.dump is None else self.dump(state)
        copy, text = codec.seal(plain, "state of a snapshot")
        if self.load is None and not _same(copy, state):
            raise InvalidValue("the state would come back from JSON as something else", hint="Give Snapshots a dump and a load")
        params = {"aggregate": stream, "type": kind, "name": self.name, "number": number, "schema_version": self.version, "state": text}
        try:
            with scope.transaction() as run:
                run.run(_KEEP, {**params, "now": run.now})
                run.run(_FORGET, params)
        except (Unsupported, Unavailable) as error:  # a store that is read-only, or busy: the fold has its state nevertheless
            log.info("no snapshot %s of %r was kept: %s", self.name, stream, error)


def _same(copy: Any, state: Any) -> bool:
    """Whether they are equal and of the same types all the way down: a Counter equals the dict it comes back as, and is none."""
    if copy != state:
        return False
    pairs = [(copy, state)]
    while pairs:
        one, other = pairs.pop()
        if type(one) is not type(other):
            return False
        if isinstance(one, dict):
            pairs += zip(one, other, strict=True)
            pairs += zip(one.values(), other.values(), strict=True)
        elif isinstance(one, list):
            pairs += zip(one, other, strict=True)
    return True
