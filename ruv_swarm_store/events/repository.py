"""Appends to streams and reads them, one by one or all in their global order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Final, NoReturn, TypeVar

from sqlalchemy import Text, func, insert, literal_column, or_, select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import new_id, new_ids
from ruv_swarm_store.engines import Executor, parameter, text_items
from ruv_swarm_store.entities import Event, NewEvent
from ruv_swarm_store.errors import Conflict, InvalidValue, Unsupported
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import Repository

EVENTS = Mapping(schema.events, Event)
ANY: Final = -1
"""As `expected_version`: append whatever the stream's version is."""
PAGE = 1_000
"""Events read at a time where a whole stream is walked."""

S = TypeVar("S")

_c = schema.events.c
_aggregate: Any = parameter("aggregate", Text)
_type: Any = parameter("type", Text)
_after: Any = parameter("after", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_expected: Any = parameter("expected", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_in_stream = (_c.aggregate_id == _aggregate, _c.aggregate_type == _type)

_VERSION = select(_c.sequence_number).where(*_in_stream).order_by(_c.sequence_number.desc()).limit(1)
_READ = (
    select(*EVENTS.columns)
    .where(
        _c.aggregate_id == _aggregate,
        or_(_type.is_(None), _c.aggregate_type == _type),
        _c.sequence_number > _after,
        _c.sequence_number <= _until,
    )
    .order_by(_c.sequence_number, _c.aggregate_type)
    .limit(_limit)
)
_READ_ALL = select(*EVENTS.columns).where(_c.position > _after).order_by(_c.position).limit(_limit)
_READ_TYPES = (
    select(*EVENTS.columns).where(_c.position > _after, _c.event_type.in_(text_items("types"))).order_by(_c.position).limit(_limit)
)
_values = {
    "id": parameter("id", Text),
    "aggregate_id": _aggregate,
    "aggregate_type": _type,
    "event_type": parameter("event_type", Text),
    "event_data": parameter("event_data", schema.Json()),
    "metadata": parameter("metadata", schema.Json()),
    "timestamp": parameter("now", schema.Int64),
    "schema_version": parameter("schema_version", schema.Int64),
    "correlation_id": parameter("correlation", Text),
    "causation_id": parameter("causation", Text),
}
_columns = [*_values, "sequence_number"]
_current = func.coalesce(select(func.max(_c.sequence_number)).where(*_in_stream).scalar_subquery(), literal_column("0"))
# One event is one statement: it checks the expected version, or numbers the event, by itself.
_APPEND_NEXT = insert(schema.events).from_select(
    _columns, select(*_values.values(), parameter("number", schema.Int64)).where(_expected == _current)
)
_APPEND_ANY = (
    insert(schema.events).from_select(_columns, select(*_values.values(), _current + literal_column("1"))).returning(_c.sequence_number)
)
_HEAD = select(func.coalesce(func.max(_c.position), 0))
_KNOWN = select(*EVENTS.columns).where(_c.id.in_(text_items("ids")))
_EVERYTHING = 2**63 - 1


class Events(Repository[Event]):
    """The event store.

    A stream is named by an aggregate's id and type. Its events are numbered from 1 without gaps by the store; its version is
    the number of its last event. `position` orders all events, and is never filled in later below one already read.
    """

    mapping = EVENTS

    def append(self, aggregate_id: str, events: Iterable[NewEvent], *, type: str, expected_version: int = ANY) -> int:
        """Adds events to a stream, all or none; returns its new version.

        `expected_version` is the version the caller has seen, 0 for a stream that must not exist, `ANY` for whatever it is;
        `Conflict` carries the `actual` one otherwise. An append whose events all carry ids stored before, in this stream, is
        taken as a repetition: nothing is added, and the version it led to then is returned.
        """
        stream = codec.text(aggregate_id, "aggregate id")
        kind = codec.text(type, "aggregate type")
        codec.integer(expected_version, "expected_version", ANY)
        checked = [_check(event) for event in events]
        if len(checked) == 1 and checked[0][3] is None and (added := self._append_one(stream, kind, checked[0], expected_version)):
            return added
        named = [event[3] for event in checked if event[3] is not None]
        if len(set(named)) < len(named):
            raise InvalidValue("two of the events carry the same id", hint="Give each event its own id, or none")
        with self._scope.transaction() as run:
            run.lock(schema.events.name)  # the version read now is still the stream's when the events are added
            version = self._version(run, stream, kind)
            if named and (repeated := self._repeated(run, stream, kind, checked, named)) is not None:
                return repeated
            if expected_version not in (ANY, version):
                raise Conflict(
                    f"stream {aggregate_id!r} is at version {version}, not {expected_version}",
                    hint="Somebody appended to it: read on from there, then decide again",
                    expected=expected_version,
                    actual=version,
                )
            if checked:
                now = run.now
                rows = [
                    (id or new, stream, kind, event_type, data, metadata, now, number, *rest)
                    for number, new, (event_type, data, metadata, id, *rest) in zip(
                        count(version + 1), new_ids(now, len(checked)), checked, strict=False
                    )
                ]
                run.insert_many(EVENTS.insertion, rows)
            return version + len(checked)

    def _append_one(self, stream: str, kind: str, event: _Checked, expected: int) -> int | None:
        """The common case in one statement; None when the expected version is not the stream's, or somebody got in between."""
        try:
            return self._append_next(stream, kind, event, expected)
        except Conflict as error:
            if error.data.get("kind") != "unique":
                raise
            return None

    def _append_next(self, stream: str, kind: str, event: _Checked, expected: int) -> int | None:
        event_type, data, metadata, _, schema_version, correlation, causation = event
        with self._scope.write() as run:
            now = run.now
            params = {
                "id": new_id(now),
                "aggregate": stream,
                "type": kind,
                "event_type": event_type,
                "event_data": data,
                "metadata": metadata,
                "now": now,
                "schema_version": schema_version,
                "correlation": correlation,
                "causation": causation,
                "expected": expected,
                "number": expected + 1,
            }
            if expected == ANY:
                row = run.one(_APPEND_ANY, params)
                return None if row is None else int(row[0])
            return expected + 1 if run.run(_APPEND_NEXT, params) else None

    def version(self, aggregate_id: str, *, type: str) -> int:
        """The number of a stream's last event; 0 when it has none."""
        with self._scope.read() as run:
            return self._version(run, aggregate_id, type)

    def _version(self, run: Executor, stream: str, kind: str) -> int:
        row = run.one(_VERSION, {"aggregate": stream, "type": kind})
        return 0 if row is None else int(row[0])

    def _repeated(self, run: Executor, stream: str, kind: str, events: Sequence[_Checked], ids: Sequence[str]) -> int | None:
        """The version an append of just these events has led to before; None when none of them is stored."""
        known = {event.id: event for event in EVENTS.load_all(run.all(_KNOWN, {"ids": codec.encode(ids)}))}
        if not known:
            return None
        asked = [(id, stream, kind, event_type, data) for event_type, data, _, id, *_ in events]
        there = [
            (event.id, event.aggregate_id, event.aggregate_type, event.event_type, codec.encode(event.event_data))
            for event in known.values()
        ]
        if sorted(there) == sorted((id or "", *rest) for id, *rest in asked):
            return max(event.sequence_number for event in known.values())
        id = next(iter(known))
        raise Conflict(f"event {id!r} is stored already", hint="Repeat an append as it was, or give new ids", id=id)

    def read(
        self, aggregate_id: str, *, type: str | None = None, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> list[Event]:
        """A stream's events with numbers above `after` and up to `until`, in order; at most `limit`.

        Without `type`, the events of every stream with this aggregate id.
        """
        params = {
            "aggregate": aggregate_id,
            "type": type,
            "after": codec.integer(after, "after", 0),
            "until": _EVERYTHING if until is None else codec.integer(until, "until", 0),
            "limit": _EVERYTHING if limit is None else codec.integer(limit, "limit", 0),
        }
        with self._scope.read() as run:
            return EVENTS.load_all(run.all(_READ, params))

    def read_all(self, *, after: int = 0, types: Iterable[str] | None = None, limit: int = PAGE) -> list[Event]:
        """Events of every stream with positions above `after`, in order; at most `limit`. Go on from the last one's position."""
        params = {"after": codec.integer(after, "after", 0), "limit": codec.integer(limit, "limit", 0)}
        with self._scope.read() as run:
            if types is None:
                return EVENTS.load_all(run.all(_READ_ALL, params))
            return EVENTS.load_all(run.all(_READ_TYPES, {**params, "types": codec.seal(list(types), "types")[1]}))

    def walk(self, *, after: int = 0, types: Sequence[str] | None = None) -> Iterator[Event]:
        """Every event above a position, in order, read in pages."""
        while page := self.read_all(after=after, types=types):
            yield from page
            after = page[-1].position

    def last_position(self) -> int:
        """The position of the newest event; 0 when there is none."""
        with self._scope.read() as run:
            return int((run.one(_HEAD) or [0])[0])

    def fold(self, aggregate_id: str, initial: S, apply: Callable[[S, Event], S], *, type: str, until: int | None = None) -> S:
        """The state a stream adds up to: `apply` over its events in order, from `initial`, up to number `until`."""
        state, after = initial, 0
        while page := self.read(aggregate_id, type=type, after=after, until=until, limit=PAGE):
            for event in page:
                state = apply(state, event)
            after = page[-1].sequence_number
        return state

    # Events are facts: the plain verbs that would change one refuse, and so does the database itself.

    def insert(self, entity: Event) -> NoReturn:
        """Refuses: `append` numbers events."""
        raise _append_only()

    def insert_many(self, entities: Iterable[Event]) -> NoReturn:
        """Refuses: `append` numbers events."""
        raise _append_only()

    def update(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def update_many(self, entities: Iterable[Event]) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def replace(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def upsert(self, entity: Event) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def delete(self, id: Event | str | int) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()

    def delete_many(self, ids: Iterable[Event | str | int]) -> NoReturn:
        """Refuses: events are facts."""
        raise _append_only()


def _append_only() -> Unsupported:
    return Unsupported("events are append-only", hint="Append a new event that says what changed")


_Checked = tuple[str, str, str | None, str | None, int, str | None, str | None]
"""An event's type, data, metadata, id, schema version, correlation and causation, each as it is stored."""


def _check(event: NewEvent) -> _Checked:
    if not isinstance(event, NewEvent):
        raise InvalidValue(f"{event!r} is no event to append", hint="Give NewEvent(type, data)")
    return (
        codec.text(event.type, "event type"),
        codec.seal(event.data, "event data")[1],
        None if event.metadata is None else codec.seal(event.metadata, "event metadata")[1],
        None if event.id is None else codec.text(event.id, "event id"),
        codec.integer(event.schema_version, "schema version", 1),
        None if event.correlation_id is None else codec.text(event.correlation_id, "correlation id"),
        None if event.causation_id is None else codec.text(event.causation_id, "causation id"),
    )
