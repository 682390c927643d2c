"""Where a named consumer stands among all events: what comes next for it, and the way past that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from msgspec import Struct
from sqlalchemy import Select, Text, delete, func, literal_column, null, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, Scope, parameter, text_items, upsert
from ruv_swarm_store.engines.journal import MARKS
from ruv_swarm_store.entities import Consumer, ConsumerKind
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound
from ruv_swarm_store.events.reading import EVENTS, Rows, distinct
from ruv_swarm_store.query import Mapping

CONSUMERS = Mapping(schema.event_consumers, Consumer, key="name")
SCAN = 10_000
"""Most events looked through at a time for those of some types: where there are none among them, the cursor moves on before more are."""

Start = int | Literal["now"]
"""The position after which a consumer begins, or `now`: the newest event's."""

_e = schema.events.c
_c = schema.event_consumers.c
_after: Any = parameter("after", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_now: Any = parameter("now", schema.Int64)
_one: Any = literal_column("1")
_zero: Any = literal_column("0")
_mine = _c.name == parameter("consumer", Text)
_head = select(func.coalesce(func.max(_e.position), _zero)).scalar_subquery()

_EVERY = select(*EVENTS.columns).where(_e.position > _after).order_by(_e.position).limit(_limit)
_window = select(_e.position).where(_e.position > _after).order_by(_e.position).limit(literal_column(str(SCAN))).subquery()
_EDGE = select(func.max(_window.c.position), func.count())
_within = select(*EVENTS.columns).where(_e.position > _after, _e.position <= _until).order_by(_e.position).limit(_limit)
_OF_TYPES = _within.where(_e.event_type.in_(text_items("types")))
# What a consumer does to the swarm's state the journal tells of: were that for it to consume, there would be no end to it.
_JOURNAL = f"{MARKS}."
_type_and_dot = _e.aggregate_type + literal_column("'.'", Text)
NOT_JOURNAL = func.substr(_type_and_dot, _one, literal_column(str(len(_JOURNAL)))) != literal_column(f"'{_JOURNAL}'", Text)
_OF_ANY = _within.where(NOT_JOURNAL)
_POSITION, _AGGREGATE_TYPE = (EVENTS.fields.index(name) for name in ("position", "aggregate_type"))

_CONSUMER = select(*CONSUMERS.columns).where(_mine)
_CONSUMERS = select(*CONSUMERS.columns).order_by(_c.name)
_ADD = upsert(
    schema.event_consumers,
    {
        "name": parameter("consumer"),
        "kind": parameter("kind", Text),
        "position": func.coalesce(parameter("position", schema.Int64), _head),
        "created_at": _now,
        "updated_at": _now,
        "failures": _zero,
        # A group's fences are counted from it: those of one that is removed and made again must not be given out twice.
        "version": parameter("version", schema.Int64),
    },
    on=["name"],
)
_NEWEST = select(_head)
_AHEAD = select(_c.position, _head).where(_mine)
_MOVE = (
    update(schema.event_consumers)
    .where(_mine, _c.position == _after)
    .values(position=_until, updated_at=_now, failures=_zero, error_message=null(), version=_c.version + _one)
)
_FAILED = (
    update(schema.event_consumers)
    .where(_mine, _c.position == _after)
    .values(updated_at=_now, failures=_c.failures + _one, error_message=parameter("error", Text), version=_c.version + _one)
)
_RESET = (
    update(schema.event_consumers)
    .where(_mine)
    .values(
        position=func.coalesce(parameter("position", schema.Int64), _head),
        updated_at=_now,
        failures=_zero,
        error_message=null(),
        version=_c.version + _one,
    )
)
_REMOVE = delete(schema.event_consumers).where(_mine)
_LAG = select(func.count()).where(_e.position > _after, NOT_JOURNAL)
_LAG_OF_TYPES = select(func.count()).where(_e.position > _after, _e.event_type.in_(text_items("types")))
CURSOR: Select[*tuple[Any, ...]] = select(_c.name).where(_c.name.in_(text_items("names"))).order_by(_c.name)
"""What to hold so that the consumers `names` stay where they are."""


class Stretch(Struct, frozen=True):
    """Some of what follows a position: the rows that are wanted of the events up to another."""

    rows: Rows
    after: int
    until: int
    more: bool
    """Whether it was cut short: there may be more events behind it."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to get past."""
        return self.until == self.after


def stretch(run: Executor, after: int, types: str | None, limit: int) -> Stretch:
    """What comes after a position: at most `limit` events of these types, given as JSON, or of any but the journal's.

    Events become visible in order of position: what is found up to the last one is all there will ever be.
    """
    if types is None:
        rows = run.all(_EVERY, {"after": after, "limit": limit})
        wanted = [row for row in rows if not f"{row[_AGGREGATE_TYPE]}.".startswith(_JOURNAL)]
        if len(wanted) == len(rows) or len(rows) < limit:
            return Stretch(wanted, after, rows[-1][_POSITION] if rows else after, len(rows) == limit)
    edge, count = run.one(_EDGE, {"after": after}) or (None, 0)
    if edge is None:
        return Stretch((), after, after, more=False)
    rows = run.all(_OF_ANY if types is None else _OF_TYPES, {"after": after, "until": edge, "types": types, "limit": limit})
    if len(rows) == limit:
        return Stretch(rows, after, rows[-1][_POSITION], more=True)
    return Stretch(rows, after, edge, count == SCAN)


class Cursor:
    """A named consumer's row."""

    def __init__(self, scope: Scope, name: str, kind: ConsumerKind) -> None:
        self.name = name
        self.kind = kind
        self._scope = scope

    @classmethod
    def established(cls, scope: Scope, name: str, kind: ConsumerKind, start: Start) -> Self:
        """That of a name, which is made where there is none. Raises `Conflict` when the name is another kind's."""
        cursor = cls(scope, codec.text(name, "name"), kind)
        cursor.establish(start)
        return cursor

    def establish(self, start: Start) -> None:
        """Makes the row where there is none. Raises `Conflict` for a consumer of another kind."""
        if start != "now":
            codec.integer(start, "start", 0)
        if (consumer := self._find()) is None:
            params = {"consumer": self.name, "kind": self.kind.value, "position": self.checked(start)}
            self._scope.write(lambda run: run.run(_ADD, {**params, "now": run.now, "version": max(run.now, 1)}))
            consumer = self._find()
        if consumer is not None and consumer.kind is not self.kind:
            raise Conflict(
                f"{self.name!r} is the name of a {consumer.kind}",
                hint="Choose another name: each consumer has a place of its own",
                name=self.name,
                kind=consumer.kind,
            )

    def _find(self) -> Consumer | None:
        with self._scope.read() as run:
            row = run.one(_CONSUMER, {"consumer": self.name})
        return None if row is None else CONSUMERS.load(row)

    def consumer(self) -> Consumer:
        """The row. Raises `NotFound` when it was removed."""
        if (consumer := self._find()) is None:
            raise self.removed()
        return consumer

    def ahead(self, run: Executor) -> tuple[int, int]:
        """Where this consumer is, and where the newest event is. Raises `NotFound`."""
        row = run.one(_AHEAD, {"consumer": self.name})
        if row is None:
            raise self.removed()
        return row[0], row[1]

    def move(self, run: Executor, after: int, until: int) -> bool:
        """Moves on from one position to another, and keeps the row until the transaction ends; False when it stood elsewhere."""
        return run.run(_MOVE, {"consumer": self.name, "after": after, "until": until, "now": run.now}) > 0

    def fail(self, after: int, error: BaseException) -> None:
        """Notes a failure at what follows a position."""
        params = {"consumer": self.name, "after": after, "error": codec.reason(error)}
        self._scope.write(lambda run: run.run(_FAILED, {**params, "now": run.now}))

    def checked(self, start: Start) -> int | None:
        """A position to begin after, None for the newest event's. Raises `InvalidValue` beyond that: events to come would be skipped."""
        if start == "now":
            return None
        if codec.integer(start, "position", 0):
            with self._scope.read() as run:
                newest = int((run.one(_NEWEST) or [0])[0])
            if start > newest:
                raise InvalidValue(f"position is {start}, and the newest event's is {newest}", hint="Use 'now' for events to come only")
        return start

    def reset(self, run: Executor, at: int | None) -> None:
        """Puts the row at a position that was `checked`, whatever it was at. Raises `NotFound`."""
        if not run.run(_RESET, {"consumer": self.name, "position": at, "now": run.now}):
            raise self.removed()

    def remove(self, run: Executor) -> bool:
        """Removes the row; whether there was one."""
        return run.run(_REMOVE, {"consumer": self.name}) > 0

    def removed(self) -> NotFound:
        """What to raise when there is no row."""
        return NotFound(f"there is no {self.kind} {self.name!r}", hint="It was removed: ask the store for it again", name=self.name)


def lag(run: Executor, after: int, types: str | None) -> int:
    """How many events of these types, or of any but the journal's, there are after a position."""
    row = run.one(_LAG if types is None else _LAG_OF_TYPES, {"after": after, "types": types})
    return 0 if row is None else int(row[0])


def consumers(run: Executor) -> Sequence[Consumer]:
    """Every consumer, by name."""
    return CONSUMERS.load_all(run.all(_CONSUMERS))


def checked_types(types: Iterable[str] | None) -> str | None:
    """Event types as JSON without repetitions, or None for any but the journal's."""
    if types is None:
        return None
    wanted = distinct(types)
    if not wanted:
        raise InvalidValue("types is empty", hint="Leave it out for events of any type")
    return codec.encode(wanted)
