"""Adds events to streams: the expected version, the numbers, the ids that make a repetition harmless."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, Final, NamedTuple

from msgspec import Struct
from sqlalchemy import Executable, Text, column, func, insert, literal_column, select, values

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import new_id, new_ids
from ruv_swarm_store.engines import Executor, Scope, insert_into, parameter, text_items
from ruv_swarm_store.engines.journal import MARKS
from ruv_swarm_store.entities import Event, NewEvent
from ruv_swarm_store.errors import Conflict, InvalidValue
from ruv_swarm_store.events.reading import EVENTS
from ruv_swarm_store.events.upcasting import Upcasters

ANY: Final = -1
"""As `expected_version`: append whatever the stream's version is."""
EXISTS: Final = -2
"""As `expected_version`: append if the stream has any event."""
NONE: Final = 0
"""As `expected_version`: append if the stream has no event."""

_FEW = 16
"""Up to how many events are added by one statement; there is one for each number of them."""

_c = schema.events.c
_aggregate: Any = parameter("aggregate", Text)
_type: Any = parameter("type", Text)
_in_stream = (_c.aggregate_id == _aggregate, _c.aggregate_type == _type)
_every: dict[str, Any] = {"aggregate_id": _aggregate, "aggregate_type": _type, "timestamp": parameter("now", schema.Int64)}
_own: dict[str, Any] = {"id": Text, "event_type": Text, "event_data": schema.Json}
# What most events are without; to leave a column out is cheaper than to name it.
_seldom: dict[str, Any] = {"metadata": schema.Json, "schema_version": schema.Int64, "correlation_id": Text, "causation_id": Text}
_current = func.coalesce(select(func.max(_c.sequence_number)).where(*_in_stream).scalar_subquery(), literal_column("0"))


class _Shape:
    """The statements that add events with these columns of their own.

    One event is one statement, and so are a few: it checks the expected version, or numbers the events, by itself.
    """

    def __init__(self, own: Mapping[str, Any]) -> None:
        self._own = own
        given = {name: parameter(name, type_) for name, type_ in own.items()}
        first: Any = literal_column("1")
        self.one_next, self.one_any = _append_next(given, first), _append_any(given, first)
        self._few: dict[tuple[int, bool], tuple[Executable, Sequence[str]]] = {}
        columns = {*_every, *own, "sequence_number"}
        self.rows = insert_into(schema.events, *(column for column in _c if column.name in columns), numbered=False)

    def few(self, count: int, *, guarded: bool) -> tuple[Executable, Sequence[str]]:
        """A statement for so many events, and the names of its parameters for their columns, event by event."""
        try:
            return self._few[count, guarded]
        except KeyError:
            pass
        names = [[f"{name}_{number}" for name in self._own] for number in range(count)]
        # Both engines take the rows of VALUES in their order.
        rows = [(*map(parameter, row, self._own.values()), literal_column(str(number))) for number, row in enumerate(names, 1)]
        columns = [column(name, type_) for name, type_ in {**self._own, "number": schema.Int64}.items()]
        given = values(*columns, name="few").data(rows).cte("given").c
        statement = (_append_next if guarded else _append_any)({name: given[name] for name in self._own}, given.number)
        made = self._few[count, guarded] = statement, [*chain.from_iterable(names)]
        return made


def _append_next(own: Mapping[str, Any], number: Any) -> Executable:
    expected = parameter("expected", schema.Int64)
    rows = select(*_every.values(), *own.values(), expected + number).where(expected == _current)
    return insert(schema.events).from_select([*_every, *own, "sequence_number"], rows)


def _append_any(own: Mapping[str, Any], number: Any) -> Executable:
    rows = select(*_every.values(), *own.values(), _current + number)
    return insert(schema.events).from_select([*_every, *own, "sequence_number"], rows).returning(_c.sequence_number)


_PLAIN, _WHOLE = _Shape(_own), _Shape({**_own, **_seldom})

_VERSION = select(_c.sequence_number).where(*_in_stream).order_by(_c.sequence_number.desc()).limit(1)
_VERSION_BEFORE = _VERSION.where(_c.position < parameter("before", schema.Int64))
_KNOWN = select(*EVENTS.columns).where(_c.id.in_(text_items("ids")))


class Append(Struct, frozen=True):
    """What `Events.append_many` adds to one stream; the fields are the arguments of `Events.append`."""

    aggregate_id: str
    events: Iterable[NewEvent]
    type: str
    expected_version: int = ANY
    cause: Event | None = None


class Checked(Struct, frozen=True, gc=False):
    """An append that can be stored: its events column by column, each value as it is stored."""

    stream: str
    kind: str
    expected: int
    ids: Sequence[str | None]
    """None where none was given."""
    types: Sequence[str]
    datas: Sequence[str]
    seldom: _Seldom | None


class _Seldom(NamedTuple):
    """The columns that most events are without, in the order of `_seldom`."""

    metadatas: Iterable[str | None]
    versions: Iterable[int]
    correlations: Iterable[str | None]
    causations: Iterable[str | None]


_NOTHING = _Seldom(repeat(None), repeat(1), repeat(None), repeat(None))


def check(append: Append, upcasters: Upcasters | None) -> Checked:
    """The append as it is stored. Raises `InvalidValue` for what cannot be."""
    if not isinstance(append, Append):
        raise InvalidValue(f"{append!r} is nothing to append", hint="Give Append(aggregate_id, events, type)")
    events = [*listed(append.events)]
    for event in events:
        if not isinstance(event, NewEvent):
            raise InvalidValue(f"{event!r} is no event to append", hint="Give NewEvent(type, data)")
    plain = append.cause is None and upcasters is None and all(map(_is_plain, events))
    return Checked(
        codec.text(append.aggregate_id, "aggregate id"),
        _kind(append.type),
        codec.integer(append.expected_version, "expected_version", EXISTS),
        [None if event.id is None else _id(event.id) for event in events],
        codec.texts([event.type for event in events], "event type"),
        codec.seal_many([event.data for event in events], "event data")[1],
        None if plain else _seldom_of(events, append.cause, upcasters),
    )


def listed(events: Iterable[NewEvent]) -> list[NewEvent]:
    """Events to append, in a list. Raises `InvalidValue` for what holds none."""
    if type(events) is list:
        return events
    if not isinstance(events, Iterable):
        raise InvalidValue(f"the events to append are a {type(events).__name__}", hint="Give a list of NewEvent, if only of one")
    return list(events)


def _id(id: Any) -> str:
    if not (text := codec.text(id, "event id")):
        raise InvalidValue("an event id is empty", hint="Leave it out for one that the store makes up")
    return text


def _kind(type: Any) -> str:
    kind = codec.text(type, "aggregate type")
    if kind.startswith(MARKS) and kind[len(MARKS) :][:1] in {"", "."}:
        raise InvalidValue(f"aggregate type {kind!r} belongs to the journal, which the database writes", hint="Choose another type")
    return kind


def _is_plain(event: NewEvent) -> bool:
    """Whether an event by itself has nothing in the columns that most are without."""
    return event.metadata is None and event.schema_version is None and event.correlation_id is None and event.causation_id is None


def _seldom_of(events: Sequence[NewEvent], cause: Event | None, upcasters: Upcasters | None) -> _Seldom:
    if cause is not None and not isinstance(cause, Event):
        raise InvalidValue(f"the cause is a {type(cause).__name__}", hint="Give the event that these come from")
    correlation, causation = (None, None) if cause is None else (cause.correlation_id or cause.id, cause.id)
    return _Seldom(
        [None if event.metadata is None else codec.seal(event.metadata, "event metadata")[1] for event in events],
        [_version_of(event, upcasters) for event in events],
        [correlation if (id := event.correlation_id) is None else codec.text(id, "correlation id") for event in events],
        [causation if (id := event.causation_id) is None else codec.text(id, "causation id") for event in events],
    )


def _version_of(event: NewEvent, upcasters: Upcasters | None) -> int:
    if event.schema_version is not None:
        return codec.integer(event.schema_version, "schema version", 1)
    return 1 if upcasters is None else upcasters.newest(event.type)


def append_one(
    scope: Scope, stream: str, kind: str, event: NewEvent, expected: int, cause: Event | None, upcasters: Upcasters | None
) -> int | None:
    """Adds an event without an id of its own in one statement; the stream's new version.

    None when the expected version is not the stream's, or somebody got in between. `EXISTS` is none to expect here.
    """
    params = {
        "aggregate": codec.text(stream, "aggregate id"),
        "type": _kind(kind),
        "event_type": codec.text(event.type, "event type"),
        "event_data": codec.seal(event.data, "event data")[1],
        "expected": codec.integer(expected, "expected_version", ANY),
    }
    shape = _PLAIN
    if cause is not None or upcasters is not None or not _is_plain(event):
        shape = _WHOLE
        for name, [value] in zip(_seldom, _seldom_of([event], cause, upcasters), strict=True):
            params[name] = value
    statement = shape.one_any if expected == ANY else shape.one_next

    def add(run: Executor) -> int | None:
        params["now"] = now = run.now
        params["id"] = new_id(now)
        if expected == ANY:
            row = run.one(statement, params)
            return None if row is None else int(row[0])
        return expected + 1 if run.run(statement, params) else None

    return _added(scope, add)


def append_few(scope: Scope, append: Checked) -> int | None:
    """`append_one` for a few events. None also where they are not few, or carry ids: that is for `append_all`."""
    expected, count = append.expected, len(append.ids)
    if not 1 < count <= _FEW or expected == EXISTS or append.ids.count(None) < count:
        return None
    shape, seldom = (_PLAIN, ()) if append.seldom is None else (_WHOLE, append.seldom)
    statement, names = shape.few(count, guarded=expected != ANY)

    def add(run: Executor) -> int | None:
        now = run.now
        rows = zip(new_ids(now, count), append.types, append.datas, *seldom, strict=True)
        params = dict(zip(names, chain.from_iterable(rows), strict=True))
        params |= {"aggregate": append.stream, "type": append.kind, "now": now, "expected": expected}
        if expected == ANY:
            return max((int(number) for (number,) in run.all(statement, params)), default=None)
        return expected + count if run.run(statement, params) else None

    return _added(scope, add)


def _added(scope: Scope, add: Callable[[Executor], int | None]) -> int | None:
    try:
        return scope.write(add)
    except Conflict as error:
        if error.data.get("kind") != "unique":
            raise
        return None


def append_all(run: Executor, appends: Sequence[Checked]) -> list[int]:
    """Adds events to streams inside a transaction; the version that each append led to."""
    ids = [id for append in appends for id in append.ids if id is not None]
    if len(set(ids)) < len(ids):
        raise InvalidValue("two of the events carry the same id", hint="Give each event its own id, or none")
    run.lock(schema.events.name)  # the versions read now are still the streams' when the events are added
    if ids and (led := _repeated(run, appends, ids)) is not None:
        return led
    now = run.now
    led = []
    rows: list[tuple[Any, ...]] = []
    new = iter(new_ids(now, sum([len(append.ids) for append in appends]) - len(ids)))
    plain = all(append.seldom is None for append in appends)
    versions: dict[tuple[str, str], int] = {}
    for index, append in enumerate(appends):
        stream, kind = append.stream, append.kind
        version = versions.get((stream, kind))
        if version is None:
            version = version_of(run, stream, kind)
        if not (append.expected in (ANY, version) or (append.expected == EXISTS and version)):
            raise _moved(append, version, {"index": index} if len(appends) > 1 else {})
        versions[stream, kind] = after = version + len(append.ids)
        led.append(after)
        own = [next(new) if id is None else id for id in append.ids] if ids else islice(new, len(append.ids))
        common = own, repeat(stream), repeat(kind), append.types, append.datas
        times, numbers = repeat(now), range(version + 1, after + 1)
        if plain:
            rows += zip(*common, times, numbers, strict=False)
        else:
            rest = append.seldom or _NOTHING
            rows += zip(*common, rest.metadatas, times, numbers, rest.versions, rest.correlations, rest.causations, strict=False)
    if rows:
        run.insert_many((_PLAIN if plain else _WHOLE).rows, rows)
    return led


def version_of(run: Executor, stream: str, kind: str) -> int:
    """The number of a stream's last event; 0 when it has none."""
    row = run.one(_VERSION, {"aggregate": stream, "type": kind})
    return 0 if row is None else int(row[0])


def _repeated(run: Executor, appends: Sequence[Checked], ids: Sequence[str]) -> list[int] | None:
    """The versions that appending just these events has led to before; None when none of them is stored."""
    known = {event.id: event for event in EVENTS.load_all(run.all(_KNOWN, {"ids": codec.encode(ids)}))}
    if not known:
        return None
    for append in appends:
        metadatas = _NOTHING.metadatas if append.seldom is None else append.seldom.metadatas
        for id, event_type, data, metadata in zip(append.ids, append.types, append.datas, metadatas, strict=False):
            there = None if id is None else known.get(id)
            asked = (append.stream, append.kind, event_type, _canonical(data), _canonical(metadata))
            if there is None or asked != (
                there.aggregate_id, there.aggregate_type, there.event_type,
                _canonical(codec.encode(there.event_data)), _canonical(None if there.metadata is None else codec.encode(there.metadata)),
            ):  # fmt: skip
                taken = next(iter(known)) if there is None else there.id
                raise Conflict(f"event {taken!r} is stored already", hint="Repeat an append as it was, or give new ids", id=taken)
    first = min(event.position for event in known.values())
    led: list[int] = []
    versions: dict[tuple[str, str], int] = {}
    for append in appends:
        stream = append.stream, append.kind
        numbers = [known[id].sequence_number for id in append.ids if id is not None]
        if numbers:
            versions[stream] = max(numbers)
        elif stream not in versions:
            row = run.one(_VERSION_BEFORE, {"aggregate": append.stream, "type": append.kind, "before": first})
            versions[stream] = 0 if row is None else int(row[0])
        led.append(versions[stream])
    return led


def _canonical(text: str | None) -> bytes:
    return codec.canonical([None if text is None else codec.decode_canonical(text)])


def _moved(append: Checked, version: int, where: Mapping[str, int]) -> Conflict:
    if append.expected == EXISTS:
        what, hint = f"stream {append.stream!r} has no events", "Append its first one with another expected version"
    else:
        what = f"stream {append.stream!r} is at version {version}, not {append.expected}"
        hint = "Somebody appended to it: read on from there, then decide again"
    return Conflict(what, hint=hint, expected=append.expected, actual=version, **where)
