"""Which events to read: the SELECT for each combination of criteria, made to run along an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Executable, Text, func, literal_column, select, tuple_, union_all

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, milliseconds
from ruv_swarm_store.engines import Executor, Scope, parameter, text_items
from ruv_swarm_store.entities import Event
from ruv_swarm_store.errors import InvalidValue
from ruv_swarm_store.query import Mapping

EVENTS = Mapping(schema.events, Event)
PAGE = 1_000
"""Most events read at a time where many are gone through."""
WEIGHT = 8_000_000
"""Characters of data such a page is meant to have at most: where events are heavy, fewer make a page."""
FIRST_PAGE = 100
FOREVER = 2**63 - 1
MERGED = 8
"""Most types of events that are read each along the index and merged; for more of them the whole log is gone through."""

Rows = Sequence[Sequence[Any]]
_DATA = EVENTS.fields.index("event_data")

_c = schema.events.c
_after: Any = parameter("after", schema.Int64)
_last: Any = parameter("last", schema.Int64)
_since: Any = parameter("since", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_aggregate: Any = parameter("aggregate", Text)
_type: Any = parameter("type", Text)
_in_stream = (_c.aggregate_id == _aggregate, _c.aggregate_type == _type)
# Of two indexes that would do, these conditions leave the one that has the order.
_in_time = (_c.timestamp + literal_column("0") >= _since, _c.timestamp + literal_column("0") < _until)
_of_types = (_c.event_type + literal_column("''")).in_(text_items("types"))

_BOUNDS = select(func.min(_c.position), func.max(_c.position)).where(_c.timestamp >= _since, _c.timestamp < _until)


@cache
def _log(by: frozenset[str], types: int, backward: bool) -> Executable:
    """The SELECT of a page of the log by correlation, causation or time, and so many types."""
    order = _c.position.desc() if backward else _c.position
    criteria: list[Any] = [_c.position > _after, _c.position <= _last]
    if "correlation" in by:
        criteria.append(_c.correlation_id == parameter("correlation", Text))
    if "causation" in by:
        criteria.append(_c.causation_id == parameter("causation", Text))
    if "since" in by:
        criteria.extend(_in_time)
    page = select(*EVENTS.columns).order_by(order).limit(_limit)
    if not types:
        return page.where(*criteria)
    if by & {"correlation", "causation"} or types > MERGED:
        return page.where(*criteria, _of_types)
    each = [
        select(_c.position).where(_c.event_type == parameter(f"type_{number}", Text), *criteria).order_by(order).limit(_limit).subquery()
        for number in range(types)
    ]
    if types == 1:
        return page.where(_c.event_type == parameter("type_0", Text), *criteria)
    merged = union_all(*(select(one.c.position) for one in each)).subquery()
    first = merged.c.position.desc() if backward else merged.c.position
    return select(*EVENTS.columns).where(_c.position.in_(select(merged.c.position).order_by(first).limit(_limit))).order_by(order)


def _stream(*, backward: bool, typed: bool) -> Executable:
    page = select(*EVENTS.columns).limit(_limit)
    if typed:
        order = _c.sequence_number.desc() if backward else _c.sequence_number
        return page.where(*_in_stream, _c.sequence_number > _after, _c.sequence_number <= _last).order_by(order)
    # Streams of several types may share the id: their events stand side by side, number by number.
    page = page.where(_c.aggregate_id == _aggregate, _c.sequence_number > _after, _c.sequence_number <= _last)
    place, seen = tuple_(_c.sequence_number, _c.aggregate_type), tuple_(parameter("seen", schema.Int64), _type)
    if backward:
        return page.where(place < seen).order_by(_c.sequence_number.desc(), _c.aggregate_type.desc())
    return page.where(place > seen).order_by(_c.sequence_number, _c.aggregate_type)


_STREAM = {(backward, typed): _stream(backward=backward, typed=typed) for backward in (False, True) for typed in (False, True)}
_NUMBER, _AGGREGATE_TYPE, _POSITION = (EVENTS.fields.index(name) for name in ("sequence_number", "aggregate_type", "position"))


def distinct(types: Iterable[str]) -> list[str]:
    """Event types without repetitions. Raises `InvalidValue`."""
    if isinstance(types, str):
        raise InvalidValue(f"types is the string {types!r}", hint="Give a list of event types")
    return list(dict.fromkeys(codec.text(type, "event type") for type in types))


class LogReading:
    """A way through the log in order of position, page by page: after one position, up to another."""

    def __init__(
        self,
        after: int,
        before: int | None,
        types: Iterable[str] | None,
        correlation: str | None,
        causation: str | None,
        since: Moment | None,
        until: Moment | None,
        backward: bool,
    ) -> None:
        self._backward = backward
        self._after = codec.integer(after, "after", 0)
        self._last = FOREVER if before is None else codec.integer(before, "before", 0) - 1
        self._params: dict[str, Any] = {}
        for name, value in (("correlation", correlation), ("causation", causation)):
            if value is not None:
                self._params[name] = codec.text(value, f"{name} id")
        self._timed = since is not None or until is not None
        if self._timed:
            self._params["since"] = -(2**63) if since is None else milliseconds(since, "since")
            self._params["until"] = FOREVER if until is None else milliseconds(until, "until")
        named = None if types is None else distinct(types)
        self._over = named is not None and not named
        self._statement = _log(frozenset(self._params), len(named or ()) if len(named or ()) <= MERGED else MERGED + 1, backward)
        for number, name in enumerate(named or ()):
            self._params[f"type_{number}"] = name
        self._params["types"] = codec.encode(named or [])

    def page(self, run: Executor, limit: int) -> Rows:
        """The next rows, at most `limit`; nothing when there are no more."""
        if self._timed:  # once: where in the log that time is
            self._timed = False
            first, last = run.one(_BOUNDS, self._params) or (None, None)
            if first is None or last is None:
                self._over = True
            else:
                self._after, self._last = max(self._after, first - 1), min(self._last, last)
        if self._over:
            return []
        rows = run.all(self._statement, {**self._params, "after": self._after, "last": self._last, "limit": limit})
        if rows and self._backward:
            self._last = rows[-1][_POSITION] - 1
        elif rows:
            self._after = rows[-1][_POSITION]
        return rows


class StreamReading:
    """A way through a stream in order of number, page by page."""

    def __init__(self, aggregate_id: str, type: str | None, after: int, until: int | None, backward: bool) -> None:
        self._statement = _STREAM[backward, type is not None]
        self._typed, self._backward = type is not None, backward
        last = FOREVER if until is None else codec.integer(until, "until", 0)
        self._params: dict[str, Any] = {
            "aggregate": codec.text(aggregate_id, "aggregate id"),
            "type": None if type is None else codec.text(type, "aggregate type"),
            "after": codec.integer(after, "after", 0),
            "last": last,
        }
        if type is None:
            self._params |= {"type": "", "seen": min(last, FOREVER - 1) + 1 if backward else after}

    def page(self, run: Executor, limit: int) -> Rows:
        """The next rows, at most `limit`; nothing when there are no more."""
        rows = run.all(self._statement, {**self._params, "limit": limit})
        if rows and self._typed:
            number = rows[-1][_NUMBER]
            self._params |= {"last": number - 1} if self._backward else {"after": number}
        elif rows:
            self._params |= {"seen": rows[-1][_NUMBER], "type": rows[-1][_AGGREGATE_TYPE]}
        return rows


def pages(scope: Scope, reading: LogReading | StreamReading) -> Iterator[Rows]:
    """All that there is to read, in pages of as many rows as memory bears."""
    size = FIRST_PAGE
    while True:
        with scope.read() as run:
            rows = reading.page(run, size)
        if not rows:
            return
        yield rows
        size = next_size(rows, _DATA)


def next_size(rows: Rows, data: int) -> int:
    """How many rows the page after these is to have, by the length of what stands in them at place `data`."""
    weight = sum([len(row[data]) for row in rows])
    return max(1, min(PAGE, WEIGHT * len(rows) // max(weight, 1)))
