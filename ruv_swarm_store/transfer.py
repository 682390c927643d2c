"""Moves a whole store from one engine to another: every row as it was, in one transaction, compared at both ends."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Protocol

from msgspec import Struct
from sqlalchemy import Column, ColumnElement, Executable, Select, Table, and_, case, delete, exists, func, null, or_, select, tuple_, update

from ruv_swarm_store import codec, migrations, schema
from ruv_swarm_store.engines import Engine, Executor, Options, connect, constant, insert_into, journal, json_text, parameter
from ruv_swarm_store.entities import ConsumerKind
from ruv_swarm_store.errors import Conflict, CorruptRow, InvalidValue, StoreError

log = logging.getLogger(__name__)

PAGE = 1_000
"""Most rows held in memory at a time."""
WEIGHT = 8_000_000
"""Bytes a page is meant to have at most: where rows are heavy, fewer make a page."""

Rows = Sequence[Sequence[Any]]
Step = Literal["copied", "verified"]
Report = Callable[[Step, str, int, int], object]
"""Called as a transfer goes on: what was done to rows of which table, to how many so far in all, and of how many."""


class Content(Struct, frozen=True):
    """What a table holds."""

    rows: int
    checksum: str
    """SHA-256, in hexadecimal, of the rows in order of their keys; the same whichever engine holds them."""


def tables() -> list[Table[Any]]:
    """Every table but the schema's history, of which each database has its own."""
    return [table for table in schema.metadata.sorted_tables if table is not schema.schema_migrations]


def warn_of_others(engine: Engine) -> None:
    """Says which tables rows are not taken from: those that are not the store's."""
    if others := sorted(engine.tables() - schema.metadata.tables.keys() - {"alembic_version"}):
        log.warning("only the store's own tables are taken from %s, not %s", engine.name, ", ".join(others))


def forget_projections(run: Executor) -> None:
    """Makes every projection one to be built: for a database into which its tables have not come along."""
    run.run(_NO_BUILDS)
    run.run(_NO_PROJECTIONS)


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str], report: Report | None = None) -> dict[str, Content]:
    """Copies the store at one path or URL to another; what each table holds at both ends now.

    The target is created where there is none, a file for its owner only, and must be without rows. All is written in one transaction: a
    copy that does not end well leaves nothing. Others may go on using the source; what they commit after the beginning is not copied. Nor
    are tables of your own, and so projections are to be built in the target.
    Raises `Conflict` when the target holds rows, `SchemaMismatch` when the source is not at this release's revision,
    `CorruptRow` for a row that cannot be read, and `StoreError` when the target does not hold what the source does.
    """
    origin = connect(source, Options(read_only=True))
    try:
        migrations.prepare(origin, migrate=False)
        destination = connect(target, Options(durability="full", private=True))
        try:
            if not destination.capabilities.persistent:
                raise InvalidValue(f"a copy to {destination.name} would be gone at once", hint="Name a file or a server's database")
            migrations.prepare(destination, migrate=True)
            return copy_between(origin, destination, report)
        finally:
            destination.close()
    finally:
        origin.close()


def copy_between(source: Engine, target: Engine, report: Report | None = None) -> dict[str, Content]:
    """`copy` for two databases that are open, both of them at this release's revision."""
    warn_of_others(source)
    with source.snapshot() as here:
        # Where a projection has come to says nothing where its tables are not.
        plans = [
            _OTHER_CONSUMERS if table is schema.event_consumers else plan_of(table)
            for table in tables()
            if table is not schema.event_projections
        ]
        total = sum(plan.count(here) for plan in plans)
        whole = journal.journaling(here) is not None
        return fill(target, [Leaving(plan, here) for plan in plans], lambda: source.numbers(here), total, report, journaled=whole)


class Stream(Protocol):
    """One table's rows on their way from somewhere: to be asked for its parts in this order, each once and to its end."""

    plan: Plan

    def pages(self) -> Iterator[Rows]:
        """Every row by ascending key, each as `Plan.pages` gives it."""
        ...

    def late(self) -> Iterator[Rows]:
        """The references that had to wait, as `Plan.late` gives them."""
        ...

    def content(self) -> Content:
        """What that was in all."""
        ...


class Leaving:
    """The stream of a table in a database."""

    def __init__(self, plan: Plan, run: Executor) -> None:
        self.plan = plan
        self._run = run
        self._digest = Digest(plan)

    def pages(self) -> Iterator[Rows]:
        """Every row."""
        return self.plan.pages(self._run, self._digest)

    def late(self) -> Iterator[Rows]:
        """The references that have to wait."""
        return self.plan.late(self._run)

    def content(self) -> Content:
        """What there was."""
        return self._digest.content()


def leaving(run: Executor) -> list[Leaving]:
    """All there is, as `run` sees it."""
    return [Leaving(plan_of(table), run) for table in tables()]


def fill(
    target: Engine,
    streams: Sequence[Stream],
    numbers: Callable[[], Mapping[str, int]],
    total: int,
    report: Report | None = None,
    *,
    journaled: bool = True,
) -> dict[str, Content]:
    """Writes all streams, of `total` rows, into a database without rows, in one transaction; compares what has arrived.

    `numbers` is called after them for what `Engine.numbers` told. A journal that was begun goes on in the target; unless it is
    known not to be whole (`journaled=False`): then it is no more so there. Raises as `copy`.
    """
    report = report or (lambda *_: None)
    contents: dict[str, Content] = {}
    with target.transaction() as there:
        insist_on_empty(target, there, [stream.plan for stream in streams])
        done = 0
        for stream in streams:
            plan = stream.plan
            for rows in stream.pages():
                there.insert_many(plan.insertion, plan.insertable(rows))
                report("copied", plan.table.name, done := done + len(rows), total)
            for references in stream.late():
                plan.refer(there, references)
            contents[plan.table.name] = stream.content()
        target.number_on(there, numbers())
        begun = contents.get(schema.event_journal.name)
        if journaled and begun is not None and begun.rows and migrations.current(target) == schema.REVISION:
            journal.install(there)  # now that all is there: what was inserted was journaled where it happened
        done = 0
        for stream in streams:
            plan = stream.plan
            digest = Digest(plan)
            for rows in plan.pages(there, digest):
                report("verified", plan.table.name, done := done + len(rows), total)
            if (found := digest.content()) != (expected := contents[plan.table.name]):
                raise StoreError(
                    f"{plan.table.name} in {target.name} is not what was sent: {found.rows} rows of {expected.rows}, "
                    f"checksum {found.checksum[:12]} for {expected.checksum[:12]}",
                    hint="Nothing was kept. Try again; if it fails again, please report it",
                    table=plan.table.name,
                )
    return contents


def insist_on_empty(engine: Engine, run: Executor, plans: Sequence[Plan] | None = None) -> None:
    """Keeps everybody else from the tables that a transfer fills until the transaction ends. Raises `Conflict` if there are rows."""
    for plan in [plan_of(table) for table in tables()] if plans is None else plans:
        run.settle(plan.table)
        if run.one(plan.any) is not None:
            raise Conflict(
                f"{engine.name} is not empty: there are rows in {plan.table.name}", hint="Name a new store", table=plan.table.name
            )


class Plan:
    """The statements of one table, or of those of its rows that are `wanted`. Rows pass as the drivers have them, JSON as text."""

    def __init__(self, table: Table[Any], wanted: ColumnElement[bool] | None = None) -> None:
        self.table = table
        self.columns: list[Column[Any]] = list(table.c)
        self.json = [index for index, column in enumerate(self.columns) if isinstance(column.type, schema.Json)]
        self.key = [self.columns.index(column) for column in table.primary_key]
        self.insertion = insert_into(table, *self.columns)
        self.any = select(next(iter(table.primary_key))).limit(1)
        self._count = select(func.count()).select_from(table)
        whole = select(*(json_text(c) if isinstance(c.type, schema.Json) else c for c in self.columns))
        # A row may refer to one of the same table. Where that comes later, the reference waits until both are there.
        self.own = [column for column in self.columns if any(reference.column.table is table for reference in column.foreign_keys)]
        if self.own:
            whole = whole.add_columns(
                *(case((_refers_back(column), column), else_=null()).label(f"early_{column.name}") for column in self.own)
            )
            late = or_(*(and_(column.is_not(None), ~_refers_back(column)) for column in self.own))
            self._late = _paged(select(*table.primary_key, *self.own).where(late), table)
            self._refer = (
                update(table)
                .where(*(column == parameter(f"key_{column.name}", column.type) for column in table.primary_key))
                .values({column.name: parameter(f"new_{column.name}", column.type) for column in self.own})
            )
        if wanted is not None:
            self._count, whole = self._count.where(wanted), whole.where(wanted)
        self._pages = _paged(whole, table)

    def count(self, run: Executor) -> int:
        """How many rows there are."""
        row = run.one(self._count)
        return 0 if row is None else int(row[0])

    def pages(self, run: Executor, digest: Digest) -> Iterator[Rows]:
        """Every row by ascending key, after the digest has seen it; for each reference to its own table it has one column more."""
        size = min(100, PAGE)
        rows = run.all(self._pages[0], {"limit": size})
        while rows:
            weight = digest.add(rows)
            yield rows
            if len(rows) < size:
                return
            size = max(1, min(PAGE, WEIGHT * len(rows) // max(weight, 1)))
            rows = run.all(self._pages[1], {**self._seen(rows[-1], self.key), "limit": size})

    def insertable(self, rows: Rows) -> Rows:
        """The rows to insert: without the references that have to wait, and JSON's numbers spelled as every engine keeps them."""
        width = len(self.columns)
        places = [self.columns.index(column) for column in self.own]
        ready = []
        for row in rows:
            values = list(row[:width])
            for place, early in zip(places, row[width:], strict=True):
                values[place] = early
            for place in self.json:
                if values[place] is not None and _exponent(values[place]):
                    values[place] = codec.encode(codec.decode(values[place]))
            ready.append(values)
        return ready

    def comparable(self, row: Sequence[Any]) -> Sequence[Any]:
        """A row's values, in a form in which every engine's are alike. Raises `CorruptRow`."""
        values = list(row)
        for index in self.json:
            if values[index] is not None:
                try:
                    values[index] = [codec.decode_canonical(values[index])]  # in a list: null in JSON is not NULL
                except (ValueError, RecursionError) as error:
                    table, column = self.table.name, self.columns[index].name
                    key = [row[place] for place in self.key]
                    raise CorruptRow(
                        f"{table} {', '.join(map(repr, key))} cannot be read: {column} does not hold what it should",
                        hint="The row was changed from outside: repair or delete it",
                        table=table,
                        id=key[0] if len(key) == 1 else key,
                        column=column,
                    ) from error
        return values

    def late(self, run: Executor) -> Iterator[Rows]:
        """The references that have to wait until every row is there: each one's key and what it refers to."""
        if not self.own:
            return
        keys = range(len(self.key))
        rows = run.all(self._late[0], {"limit": PAGE})
        while rows:
            yield rows
            rows = run.all(self._late[1], {**self._seen(rows[-1], keys), "limit": PAGE})

    def refer(self, run: Executor, references: Rows) -> None:
        """Writes references that had to wait."""
        names = [f"key_{column.name}" for column in self.table.primary_key] + [f"new_{column.name}" for column in self.own]
        for row in references:
            run.run(self._refer, dict(zip(names, row, strict=True)))

    def _seen(self, row: Sequence[Any], key: Sequence[int]) -> dict[str, Any]:
        return {f"seen_{column.name}": row[place] for column, place in zip(self.table.primary_key, key, strict=True)}


plan_of = cache(Plan)  # an executor keeps each statement it has once compiled


def _refers_back(column: Column[Any]) -> Any:
    """Whether a reference to the same table is to a row with a lower key."""
    other = column.table.alias("other")
    target = next(reference.column for reference in column.foreign_keys if reference.column.table is column.table)
    key = column.table.primary_key
    lower = tuple_(*(other.c[part.name] for part in key)) < tuple_(*key)
    return exists(select(1).where(other.c[target.name] == column, lower))


def _paged(statement: Select[*tuple[Any, ...]], table: Table[Any]) -> tuple[Executable, Executable]:
    """The statements of a first page by ascending key, and of one after it."""
    page = statement.order_by(*table.primary_key).limit(parameter("limit"))
    seen = tuple_(*(parameter(f"seen_{column.name}", column.type) for column in table.primary_key))
    return page, page.where(tuple_(*table.primary_key) > seen)


class Digest:
    """Counts rows and sums them up, alike for every engine. They come by ascending key: text sorts by code point everywhere."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows = 0
        self._sum = hashlib.sha256()

    def add(self, rows: Rows) -> int:
        """Takes rows in; how many bytes they have. Raises `CorruptRow`."""
        weight = 0
        width = len(self._plan.columns)
        for row in rows:
            text = codec.canonical(self._plan.comparable(row[:width])) + b"\n"
            weight += len(text)
            self._sum.update(text)
        self._rows += len(rows)
        return weight

    def content(self) -> Content:
        """What there was."""
        return Content(self._rows, self._sum.hexdigest())


_kind = schema.event_consumers.c.kind
_projection = constant(_kind, ConsumerKind.PROJECTION)
_OTHER_CONSUMERS = Plan(schema.event_consumers, _kind != _projection)
_NO_PROJECTIONS = delete(schema.event_consumers).where(_kind == _projection)
_NO_BUILDS = delete(schema.event_projections)

_exponent: Callable[[str], Any] = re.compile(r"\d[eE]").search
"""Finds numbers like 1e16, as earlier releases stored them: an engine that keeps decimals makes whole ones of them."""
