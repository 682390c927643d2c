"""The journal of a store: switched on and off, and folded back into the rows it tells of, which are compared with the tables."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

from msgspec import Struct
from sqlalchemy import Table, Text, and_, func, null, or_, select, tuple_

from ruv_swarm_store import codec, migrations, schema
from ruv_swarm_store.engines import Engine, Executor, Options, connect, json_text, parameter, records, text_items
from ruv_swarm_store.engines import journal as triggers
from ruv_swarm_store.engines.journal import Journaling
from ruv_swarm_store.errors import CorruptRow, InvalidValue, NotFound, SchemaMismatch, StoreError, Unavailable
from ruv_swarm_store.transfer import PAGE, WEIGHT, Content, Digest, Plan, Rows, fill, plan_of

LISTED = 100
"""Most differences that are listed; all are counted."""
PATIENCE = 30.0
"""Seconds for which switching the journal on or off gives way to others, where transactions write side by side."""

Step = Literal["folded", "copied", "verified"]
Report = Callable[[Step, str, int, int], object]
"""Called as a rebuild goes on: of which table how many events, and then rows, have been dealt with so far in all, and of how many."""

SLICE = 200
"""Rows that are written at a time."""

T = TypeVar("T")
_Page = dict[str, list[Any]]
"""Rows in their columns' order, JSON as text, by the ids of their streams."""
_e = schema.events.c
_HEAD = select(func.coalesce(func.max(_e.position), 0))
_MARK = (
    select(_e.event_type, json_text(_e.event_data))
    .where(_e.aggregate_id == triggers.MARKS, _e.aggregate_type == triggers.MARKS, _e.position <= parameter("until", schema.Int64))
    .order_by(_e.sequence_number.desc())
    .limit(1)
)


class Difference(Struct, frozen=True):
    """A row that is not in its table as the journal has it."""

    table: str
    key: Any
    """What names the row; a list where several columns do."""
    what: Literal["missing", "unknown", "changed"]
    """Only the journal has it, only the table has it, or they differ."""
    columns: Sequence[str] = ()
    """Where they differ."""


class Rebuilt(Struct, frozen=True):
    """What a journal adds up to."""

    position: int
    """The position up to which events were taken."""
    events: int
    """How many there were."""
    rows: Mapping[str, int]
    """How many rows each table has by them."""
    compared: bool
    """Whether these rows were compared with the tables: not where the journal goes on after `position`."""
    differing: int = 0
    """How many rows are not in the tables as the journal has them."""
    differences: Sequence[Difference] = ()
    """The first of them."""
    into: str | None = None
    """The store the rows were written to."""

    @property
    def agrees(self) -> bool:
        """Whether the tables were found to hold what the journal says, all of it and nothing else."""
        return self.compared and not self.differing


class Journal:
    """Events of every change to a store's agents, tasks, groups and configuration, written by the database itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        return f"<Journal of {self._engine!r}>"

    def status(self) -> Journaling | None:
        """Since when it is being written; None when it is not, or not all of it since one of its triggers is gone, off or another."""
        with self._engine.read() as run:
            return triggers.journaling(run)

    def start(self) -> Journaling:
        """Has it written from now on, whoever changes something, after an event for each row there is; since when it is written.

        Raises `Unavailable` where others' transactions leave no moment for it, and `StoreError` inside a transaction.
        """
        return self.status() or self._alone(self._start)

    def _start(self, run: Executor) -> Journaling:
        if (since := triggers.journaling(run)) is None:  # somebody else may just have done it
            since = triggers.start(run, run.now)
        return since

    def stop(self) -> bool:
        """Has it written no longer; whether it was. What it says stays; started again, it begins anew. Raises as `start`."""
        return self._alone(self._stop)

    def _stop(self, run: Executor) -> bool:
        begun = triggers.begun(run)
        if begun:
            triggers.stop(run)
        return begun

    def _alone(self, step: Callable[[Executor], T]) -> T:
        """Runs a step that takes the tables for itself."""
        if self._engine.within:
            raise StoreError("the journal is not switched inside a transaction", hint="Leave the with block first")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self._engine.transaction() as run:
                    triggers.give_way(run)
                    run.lock(triggers.MARKS)
                    return step(run)
            except Unavailable:
                if not self._engine.capabilities.concurrent_writers or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.05, 0.2))

    def rebuild(
        self, *, until_position: int | None = None, into: str | os.PathLike[str] | None = None, report: Report | None = None
    ) -> Rebuilt:
        """Adds up the journal; see the function of that name."""
        return rebuild(self._engine, until_position=until_position, into=into, report=report)


def rebuild(
    source: Engine, *, until_position: int | None = None, into: str | os.PathLike[str] | None = None, report: Report | None = None
) -> Rebuilt:
    """Adds up the journal to rows, from its events alone, as of one instant; and compares these with the tables, row for row.

    With `until_position` the rows are those of that position in the order of all events; one amid a transaction may leave out rows that
    others refer to. With `into`, a path or URL, they are written to the store there, created where there is none, in one transaction,
    and verified. It takes memory for a thousand events at a time, and with `into` for the key of each row.

    Raises `NotFound` where the journal was not kept at that position, `SchemaMismatch` where an earlier release's tables were
    journaled then, `CorruptRow` for an event that cannot be one of the journal's, and `Conflict` when the target holds such rows already.
    """
    report = report or (lambda *_: None)
    with source.snapshot() as run:
        head = int((run.one(_HEAD) or [0])[0])
        until = head if until_position is None else min(codec.integer(until_position, "until_position", 0), head)
        after = _beginning(run, until)
        span = {"after": after, "until": until}
        total = sum(int((run.one(fold_of(table).size, span) or [0])[0]) for table in triggers.TABLES)
        compared = not any(run.one(fold_of(table).any, {"after": until}) for table in triggers.TABLES)
        tally = _Tally()
        rows: dict[str, int] = {}
        keys: dict[str, dict[tuple[Any, ...], str]] = {}
        done = 0
        for table in triggers.TABLES:
            fold, matched = fold_of(table), 0
            rows[table.name], keys[table.name] = 0, {}
            for events, page in fold.pages(run, span):
                rows[table.name] += len(page)
                if compared:
                    matched += fold.compare(run, page, tally)
                if into is not None:
                    keys[table.name] |= {tuple(row[place] for place in fold.plan.key): stream for stream, row in page.items()}
                report("folded", table.name, done := done + events, total)
            if compared and (unknown := fold.plan.count(run) - matched):
                fold.find_unknown(run, span, unknown, tally)
        name = None
        if into is not None:
            streams = [_Stream(run, fold_of(table), keys[table.name], span) for table in triggers.TABLES]
            name = _write(into, streams, sum(rows.values()), report)
    return Rebuilt(until, total, rows, compared, tally.count, tally.listed, name)


class _Tally:
    """Differences, counted; and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.listed: list[Difference] = []

    def add(self, difference: Difference) -> None:
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append(difference)


def _beginning(run: Executor, until: int) -> int:
    """The position after which the journal that was kept at a position begins."""
    mark = run.one(_MARK, {"until": until})
    if mark is None or mark[0] != triggers.STARTED:
        raise NotFound(f"no journal was kept at position {until}", hint="Start it: Store.open(…, journal=True) or store.journal.start()")
    data = codec.decode(mark[1])
    if data["revision"] != schema.REVISION:
        raise SchemaMismatch(
            f"at position {until} the journal told of the tables of revision {data['revision']}, and this release has {schema.REVISION}",
            hint="Choose a position after the migration, or use the release of then",
            actual=data["revision"],
            expected=schema.REVISION,
        )
    return int(data["after"])


# Folding


class _Fold:
    """How one table's events are read and added up."""

    def __init__(self, table: Table[Any]) -> None:
        self.table = table
        self.plan: Plan = plan_of(table)
        self.key = triggers.key(table)
        self._keys = [self.plan.columns.index(column) for column in self.key]
        self._places = {column.name: index for index, column in enumerate(self.plan.columns)}
        self._json = {column.name: bool(column.nullable) for column in self.plan.columns if isinstance(column.type, schema.Json)}
        self._kinds = {f"{table.name}.{what}": what for what in ("inserted", "updated", "deleted")}
        mine = _e.aggregate_type == triggers.stream_type(table)
        # The sum keeps engines from walking along the positions, which are of every table's events.
        within = and_(mine, _e.position + 0 > parameter("after", schema.Int64), _e.position + 0 <= parameter("until", schema.Int64))
        events = (
            select(_e.aggregate_id, _e.sequence_number, _e.event_type, json_text(_e.event_data), json_text(_e.metadata), _e.id)
            .where(
                within, tuple_(_e.aggregate_id, _e.sequence_number) > tuple_(parameter("stream", Text), parameter("number", schema.Int64))
            )
            .order_by(_e.aggregate_id, _e.sequence_number)
            .limit(parameter("limit"))
        )
        self._all = events
        self._some = events.where(_e.aggregate_id.in_(text_items("streams")))
        self.size = select(func.count()).select_from(schema.events).where(within)
        self.any = select(_e.position).where(mine, _e.position > parameter("after", schema.Int64)).limit(1)
        # The rows of the table with certain keys, and those of which the journal does not know.
        columns = [json_text(column) if column.name in self._json else column for column in self.plan.columns]
        wanted = records("keys", **{f"key_{column.name}": column.type for column in self.key})
        self.rows = select(*columns).join_from(table, wanted, and_(*(column == wanted.c[f"key_{column.name}"] for column in self.key)))
        last = (
            select(_e.event_type)
            .where(within, _e.aggregate_id == triggers.stream_id(table))
            .order_by(_e.sequence_number.desc())
            .limit(1)
            .scalar_subquery()
        )
        self.unknown = select(*self.key).where(or_(last == null(), last == f"{table.name}.deleted")).limit(LISTED)

    def pages(self, run: Executor, span: Mapping[str, int], streams: Sequence[str] | None = None) -> Iterator[tuple[int, _Page]]:
        """The rows there are after a span of events, by stream and in the streams' order; with how many events each page took."""
        statement = self._all if streams is None else self._some
        given = {**span, "streams": codec.encode(streams)} if streams is not None else span
        stream, number, size = "", 0, 100
        row: list[Any] | None = None
        while True:
            events = run.all(statement, {**given, "stream": stream, "number": number, "limit": size})
            page: _Page = {}
            for event in events:
                if event[0] != stream:
                    if row is not None:
                        page[stream] = row
                    stream, row = event[0], None
                number = event[1]
                row = self._apply(row, event)
            ended = len(events) < size
            if ended and row is not None:
                page[stream] = row
            yield len(events), page
            if ended:
                return
            weight = sum(len(event[3]) for event in events)
            size = max(1, min(PAGE, WEIGHT * len(events) // max(weight, 1)))

    def _apply(self, row: list[Any] | None, event: Sequence[Any]) -> list[Any] | None:
        """The row as it is after an event; None when it is gone."""
        _, _, kind, text, metadata, id = event
        try:
            match self._kinds[kind]:
                case "deleted":
                    return None
                case "inserted":
                    row = [_ABSENT] * len(self._places)
                case _:
                    row = list(row or ())
            in_json = codec.decode(metadata) if metadata is not None else {}
            for name, value in codec.decode(text).items():
                absent = value is None and self._json.get(name, False) and name not in in_json
                row[self._places[name]] = codec.encode(value) if name in self._json and not absent else value
            if _ABSENT in row:
                raise KeyError
        except (KeyError, IndexError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptRow(
                f"event {id!r} cannot be one of the journal's: there is no row of {self.table.name} that it makes",
                hint="Only the database writes to the journal's streams; store.events.verify() tells whether events were changed",
                table=schema.events.name,
                id=id,
                column=schema.events.c.event_data.name,
            ) from error
        return row

    def name(self, row: Sequence[Any]) -> Any:
        """What a row is called."""
        values = [row[place] for place in self._keys]
        return values[0] if len(values) == 1 else values

    def actual(self, run: Executor, page: _Page) -> dict[Any, Sequence[Any]]:
        """The rows the table has under the keys of these, by key."""
        keys = [[row[place] for place in self._keys] for row in page.values()]
        return {codec.encode(self.name(row)): row for row in run.all(self.rows, {"keys": codec.encode(keys)})}

    def compare(self, run: Executor, page: _Page, tally: _Tally) -> int:
        """Compares rows with those in the table; how many of them are there, alike or not."""
        found = self.actual(run, page)
        for expected in page.values():
            key = self.name(expected)
            if (row := found.get(codec.encode(key))) is None:
                tally.add(Difference(self.table.name, key, "missing"))
            elif columns := self._differing(expected, row):
                tally.add(Difference(self.table.name, key, "changed", columns))
        return len(found)

    def _differing(self, expected: Sequence[Any], row: Sequence[Any]) -> Sequence[str]:
        if list(expected) == list(row):
            return ()  # to the letter
        try:
            pairs = zip(self._places, self.plan.comparable(expected), self.plan.comparable(row), strict=True)
            return [name for name, one, other in pairs if codec.canonical([one]) != codec.canonical([other])]
        except CorruptRow as error:
            return [error.data["column"]]

    def find_unknown(self, run: Executor, span: Mapping[str, int], count: int, tally: _Tally) -> None:
        """Finds the rows in the table that the journal does not know; there are `count`."""
        for row in run.all(self.unknown, span):
            tally.add(Difference(self.table.name, row[0] if len(row) == 1 else list(row), "unknown"))
            count -= 1
        tally.count += count


fold_of = cache(_Fold)  # an executor keeps each statement it has once compiled

_ABSENT = object()


# Writing


class _Stream:
    """One table's rows on their way from the journal to a store."""

    def __init__(self, run: Executor, fold: _Fold, keys: Mapping[tuple[Any, ...], str], span: Mapping[str, int]) -> None:
        self.plan = fold.plan
        self._run = run
        self._fold = fold
        self._keys = keys
        self._span = span
        self._digest = Digest(self.plan)
        self._late: list[Sequence[Any]] = []

    def pages(self) -> Iterator[Rows]:
        """Every row by ascending key; where a reference to another of them has to wait, without it."""
        keys = sorted(self._keys)
        places = {self._keys[key]: place for place, key in enumerate(keys)}
        for start in range(0, len(keys), SLICE):
            some = keys[start : start + SLICE]
            rows: _Page = {}
            for _, page in self._fold.pages(self._run, self._span, [self._keys[key] for key in some]):
                rows |= page
            ready = []
            for place, key in enumerate(some, start):
                row = rows[self._keys[key]]
                own = [row[self.plan.columns.index(column)] for column in self.plan.own]
                early = [value if value is not None and places.get(value, place) < place else None for value in own]
                if early != own:
                    self._late.append((*key, *own))
                ready.append([*row, *early])
            self._digest.add(ready)
            yield ready

    def late(self) -> Iterator[Rows]:
        """The references that had to wait."""
        if self._late:
            yield self._late

    def content(self) -> Content:
        """What there was."""
        return self._digest.content()


def _write(into: str | os.PathLike[str], streams: Sequence[_Stream], rows: int, report: Report) -> str:
    """Writes rows to the store at a path or URL; its name."""
    target = connect(into, Options(durability="full", private=True))
    try:
        if not target.capabilities.persistent:
            raise InvalidValue(f"what is written to {target.name} would be gone at once", hint="Name a file or a server's database")
        migrations.prepare(target, migrate=True)
        fill(target, streams, dict, rows, report)
        return target.name
    finally:
        target.close()
